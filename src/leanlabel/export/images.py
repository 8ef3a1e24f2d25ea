"""Kind "images": a backbone that embeds images, with or without a readout of their classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from leanlabel.augment.image import plain_view
from leanlabel.data.image_source import ImageFiles, open_images
from leanlabel.data.images import Images
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import Classifier
from leanlabel.models.backbones import BackboneSettings, build_backbone, has_batch_statistics
from leanlabel.models.public_keys import from_detectron2

BACKBONE, PROJECTOR = "backbone.", "projector."
BATCH = 256
"""Images that are embedded at a time: as many as a run takes by default."""
DECODED = 16
"""Images that are held at their full size at a time."""
CHECKED = 4
"""Images on which an ONNX model is compared with the original."""


class ImageModel:
    """A trained image backbone that needs no run folder.

    Args:
        config: "backbone" (as `models.backbones.BackboneSettings`), "names" (whose, of a backbone's tensors; see
            `leanlabel.export.public_names`) and "preprocessing": size, resize, mean, std of
            :func:`leanlabel.augment.image.plain_view`, and under "reading" the resize and square with which files
            are read, where the training images were read so.
        tensors: state of the backbone, names behind ``backbone.``; where the embedding is that of a projector
            behind it, its state behind ``projector.``.
        classifier: readout of the classes; None embeds only.
        provenance: what it was trained from, for people.

    Attributes:
        batch: images that are embedded at a time; lower it where memory is short.

    Raises:
        InputError: settings and tensors do not fit each other.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        classifier: Classifier | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.classifier, self.provenance = dict(config), classifier, dict(provenance or {})
        self.batch = BATCH
        self._read_preprocessing(dict(config["preprocessing"]))
        head = {name.removeprefix(PROJECTOR): t for name, t in tensors.items() if name.startswith(PROJECTOR)}
        state = {
            name.removeprefix(BACKBONE): t for name, t in tensors.items() if not name.startswith(PROJECTOR)
        }
        try:
            state = from_detectron2(state) if config.get("names") == "detectron2" else state
            self.settings = BackboneSettings.model_validate_json(json.dumps(config["backbone"]))
            with torch.random.fork_rng(devices=[]):  # its initial weights are thrown away
                self.backbone = build_backbone(self.settings)
            dtype = next((value.dtype for value in state.values() if value.is_floating_point()), None)
            self.backbone.to(dtype=dtype).load_state_dict(state)
            self.projector = perceptron(head) if head else None
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"Settings and weights of the backbone do not fit: {error}.") from error
        if classifier is not None and classifier.weight.shape[1] != self.width:
            raise InputError(
                f"The readout is for embeddings of width {classifier.weight.shape[1]}, the network's are {self.width}."
            )
        for network in self._networks():
            network.eval().requires_grad_(False)

    def _read_preprocessing(self, given: dict[str, Any]) -> None:
        self.size, resize = int(given["size"]), given.get("resize")
        self.resize = self.size if resize is None else int(resize)
        red, green, blue = (float(one) for one in given["mean"])
        self.mean = (red, green, blue)
        red, green, blue = (float(one) for one in given["std"])
        self.std = (red, green, blue)
        self.reading = {key: value for key, value in dict(given.get("reading") or {}).items() if value}
        if not 1 <= self.size <= self.resize or min(self.std) <= 0:
            raise InputError(
                f"No such preparation of images: size {self.size}, resize {self.resize}, std {self.std}."
            )

    def _networks(self) -> list[nn.Module]:
        return [self.backbone] if self.projector is None else [self.backbone, self.projector]

    @property
    def width(self) -> int:
        """Width d of the embeddings."""
        if self.projector is None:
            return self.backbone.width
        return [part.out_features for part in self.projector if isinstance(part, nn.Linear)][-1]

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty without a readout."""
        return [] if self.classifier is None else list(self.classifier.classes)

    def to(self, device: str | torch.device) -> Self:
        """Move the networks to a device; embeddings still come back to the CPU."""
        for network in self._networks():
            network.to(device)
        return self

    def open(self, path: str) -> Images:
        """Images on disk, of any size, read as the training images were; their labels play no part.

        Raises:
            InputError: there are none, or some cannot be read; names them.
        """
        return open_images(ImageFiles(path=path, labels="none", **self.reading))

    @torch.no_grad()
    def embed(self, images: Images) -> Tensor:
        """Embeddings (N, d), float32, on the CPU, of all images, in their order."""
        rows = [self._features(self._views(images, start)) for start in range(0, len(images), self.batch)]
        return torch.cat(rows) if rows else torch.zeros(0, self.width)

    def _views(self, images: Images, start: int) -> Tensor:
        """The batch from row ``start`` on, as :meth:`prepared` gives it; few files at a time are held whole."""
        end = min(start + self.batch, len(images))
        parts = [range(low, min(low + DECODED, end)) for low in range(start, end, DECODED)]
        return torch.cat([self.prepared(images.read(part)) for part in parts])

    def prepared(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Images as the backbone sees them: (B, 3, size, size), normalised, on its device.

        Args:
            images: (B, 3, H, W), or B tensors (3, h, w) of any sizes; uint8, or floating point in [0, 1].
        """
        first = next(self.backbone.parameters())
        moved = (
            images.to(first.device)
            if isinstance(images, Tensor)
            else [one.to(first.device) for one in images]
        )
        return plain_view(moved, self.size, resize=self.resize, mean=self.mean, std=self.std).to(first.dtype)

    def _features(self, x: Tensor) -> Tensor:
        for network in self._networks():
            x = network(x)
        return x.float().cpu()

    def predict(self, images: Images) -> Tensor:
        """Class probabilities (N, C) of all images; rows sum to 1.

        Raises:
            InputError: it has no readout.
        """
        if self.classifier is None:
            raise InputError(
                "This export has no readout, it can only embed.",
                "Export the run with --format safetensors for class probabilities.",
            )
        return self.classifier.probabilities(self.embed(images))

    def onnx_model(self) -> Any:
        """The same computation as an ONNX model; see :func:`leanlabel.export.onnx_images.image_model`."""
        from leanlabel.export.onnx_images import image_model

        return image_model(
            self.backbone, self.size, self.mean, self.std, head=self.projector, classifier=self.classifier
        )

    def onnx_inputs(self, images: Images) -> dict[str, Any]:
        """The first few images as that model takes them."""
        first = images.read(range(min(CHECKED, len(images))))
        plain = plain_view(first, self.size, resize=self.resize, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return {"image": plain.numpy()}

    def onnx_outputs(self, images: Images) -> dict[str, Any]:
        """What that model should answer for them, computed by this one."""
        z = self.embed(images.take(range(min(CHECKED, len(images)))))
        found = {"embedding": z.numpy()}
        if self.classifier is None:
            return found
        return {**found, "probabilities": self.classifier.probabilities(z).numpy()}

    def onnx_pipeline(self) -> dict[str, Any]:
        """What goes into that model, who prepares it, and what its outputs mean."""
        outputs = {"embedding": {"shape": ["B", self.width], "type": "float32"}}
        estimates = any(has_batch_statistics(network) for network in self._networks())
        after = []
        if self.classifier is not None:
            outputs["probabilities"] = {"shape": ["B", len(self.classes)], "type": "float32"}
            after = [
                "probabilities: column c belongs to classes[c], rows sum to 1; the class is the argmax of a row"
            ]
        return {
            "inputs": {
                "image": {
                    "shape": ["B", 3, self.size, self.size],
                    "type": "float32",
                    "what": "RGB from 0 to 1, channels first",
                }
            },
            "by_the_caller": [*_decoding(self.reading), *_cutting(self.size, self.resize)],
            "by_the_model": [
                f"the mean per channel {list(self.mean)} is subtracted, then divided by {list(self.std)}",
                *(["batch normalisation uses the estimates of the training"] if estimates else []),
            ],
            "outputs": outputs,
            "after": after,
            "classes": self.classes,
        }

    @staticmethod
    def described(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """What each tensor of the backbone is: name -> shape and meaning; names without ``backbone.``."""
        return {
            name: {"shape": list(value.shape), "what": _meaning(name.rpartition(".")[2], value)}
            for name, value in tensors.items()
        }


def perceptron(state: Mapping[str, Tensor]) -> nn.Sequential:
    """The projector whose state this is: linear layers, batch norms, and a ReLU wherever a number is left out.

    Args:
        state: names like ``0.weight``, as in a sequence of layers made by :func:`leanlabel.models.heads.projector`.

    Raises:
        ValueError: other names.
    """
    numbers = [name.partition(".")[0] for name in state]
    if not numbers or not all(number.isdigit() for number in numbers):
        raise ValueError(f"not the state of a projector: {', '.join(sorted(state)[:3])}")
    parts: list[nn.Module] = []
    for k in range(max(map(int, numbers)) + 1):
        weight, mean = state.get(f"{k}.weight"), state.get(f"{k}.running_mean")
        if mean is not None:
            parts.append(nn.BatchNorm1d(len(mean), affine=weight is not None))
        elif weight is not None:
            parts.append(nn.Linear(weight.shape[1], weight.shape[0], bias=f"{k}.bias" in state))
        else:
            parts.append(nn.ReLU())
    made = nn.Sequential(*parts)
    made.to(next((one.dtype for one in state.values() if one.is_floating_point()), None))
    made.load_state_dict(dict(state))
    return made


def _decoding(reading: Mapping[str, Any]) -> list[str]:
    """How a file becomes pixels."""
    steps = [
        "decode to 8-bit RGB: grey becomes three equal channels, what is transparent lies on white, the orientation "
        "that a camera noted is applied, the first of several frames is taken"
    ]
    if reading.get("resize") and reading.get("square"):
        side = reading["resize"]
        steps.append(
            f"scale until the shorter side has {side} pixels (bicubic, antialiased) and cut the middle {side} x {side} "
            f"out, from floor((side - {side}) / 2) on"
        )
    elif reading.get("resize"):
        steps.append(
            f"where the shorter side has more than {reading['resize']} pixels, scale it down to that (bicubic, "
            f"antialiased), the longer one in proportion"
        )
    return steps


def _cutting(size: int, resize: int) -> list[str]:
    """How pixels become the input."""
    return [
        "divide by 255",
        f"scale until the shorter side has {resize} pixels, the longer one floor({resize} * longer / shorter) "
        f"(linear, antialiased, centres of pixels at half; no rounding to 8 bits)",
        f"cut the middle {size} x {size} out, from round((side - {size}) / 2) on, halves to the even number",
    ]


def _meaning(last: str, value: Tensor) -> str:
    """What a tensor is, by the last word of its name and its shape."""
    if last == "weight":
        return {
            4: "convolution, (outputs, inputs, height, width)",
            2: "linear map, (outputs, inputs)",
        }.get(value.ndim, "scale of a normalisation")
    return _KNOWN.get(last, "parameter of a model of the transformers library")


_KNOWN = {
    "bias": "added: shift of a normalisation, or bias of a convolution or linear map",
    "running_mean": "mean over the training iterations",
    "running_var": "variance over the training iterations",
    "num_batches_tracked": "iterations seen",
    "cls_token": "token of the whole image",
    "position_embeddings": "codes of the places of tokens",
    "layer_scale_parameter": "scale of a block's output",
}
