"""Kind "segmentation": a network that names the class of every pixel, or its encoder alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from leanlabel.augment.pairs import plain_image
from leanlabel.data.bands import fitted
from leanlabel.data.class_map import ClassMap
from leanlabel.data.decode import Fit
from leanlabel.data.dense import DenseImages
from leanlabel.data.dense_source import DenseFiles, open_dense
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import Classifier
from leanlabel.evaluation.enlarging import at_size, enlarged_classes, readable, window_for
from leanlabel.evaluation.sliding import Segmented, segment_image
from leanlabel.export.images import ImageModel, _decoding
from leanlabel.models.backbones import has_batch_statistics
from leanlabel.models.image import Backbone
from leanlabel.models.public_keys import from_detectron2
from leanlabel.models.segmenters import Segmenter, SegmenterSettings, build_segmenter, upsample

ENCODER = "encoder."
CHECKED, CHECKED_SIDE = 2, 511
"""Images on which an ONNX model is compared with the original, and the largest side that is cut out of them."""


class SegmentationModel:
    """A trained segmentation network that needs no run folder.

    Args:
        config: "network" (as `models.segmenters.SegmenterSettings`), "channels" of its images, "class_map" (as
            `ClassMap.as_dict` gives it), "names" (whose, of an encoder's tensors; see
            `leanlabel.export.public_names`), "format" ("backbone": the tensors are those of the encoder alone),
            "preprocessing" (mean and std per channel, base as in `augment.pairs.PairSettings`, and under "reading" how
            files are read: resize, bands, white, load of `data.dense_source.DenseFiles`) and "inference" (window,
            overlap, scales, flip, batch as for :func:`leanlabel.evaluation.sliding.segment_image`).
        tensors: state of the network, names behind ``encoder.`` and ``decoder.``; of an encoder alone plain names.
        classifier: must be None: the network names classes itself.
        provenance: what it was trained from, for people.

    Attributes:
        classes: names, colours and ids of the K classes.
        network: the network; None where there is only its encoder.
        encoder: what gives its maps.
        batch: windows that are read at a time; lower it where memory is short.

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
        if classifier is not None:
            raise InputError("A segmentation network has no readout of images.")
        self.config, self.provenance = dict(config), dict(provenance or {})
        self.classes = ClassMap.from_dict(config["class_map"])
        self.channels = int(config["channels"])
        self._read_preprocessing(dict(config["preprocessing"]))
        self._read_inference(dict(config["inference"]))
        alone = config.get("format") == "backbone"
        try:
            self.settings = SegmenterSettings.model_validate_json(json.dumps(config["network"]))
            with torch.random.fork_rng(devices=[]):  # its initial weights are thrown away
                made = build_segmenter(self.settings, len(self.classes), self.channels)
            state = from_detectron2(tensors) if config.get("names") == "detectron2" else tensors
            dtype = next((value.dtype for value in state.values() if value.is_floating_point()), None)
            (made.encoder if alone else made).to(dtype=dtype).load_state_dict(dict(state))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"Settings and weights of the network do not fit: {error}.") from error
        self.network: Segmenter | None = None if alone else made
        self.encoder: Backbone = made.encoder
        made.eval().requires_grad_(False)

    def _read_preprocessing(self, given: dict[str, Any]) -> None:
        self.mean, self.std = (tuple(float(one) for one in given[key]) for key in ("mean", "std"))
        self.base = None if given.get("base") is None else int(given["base"])
        self.reading = {
            key: value for key, value in dict(given.get("reading") or {}).items() if value is not None
        }
        sizes = {len(self.mean), len(self.std)} - {self.channels}
        if sizes or min(self.std) <= 0 or (self.base is not None and self.base < 1):
            raise InputError(
                f"No such preparation of images of {self.channels} channels: mean {self.mean}, std {self.std}, base "
                f"{self.base}."
            )

    def _read_inference(self, given: dict[str, Any]) -> None:
        window = given.get("window")
        self.window = None if window is None else (int(window[0]), int(window[1]))
        self.scales = tuple(float(one) for one in given["scales"])
        self.overlap, self.flip, self.batch = (
            float(given["overlap"]),
            bool(given["flip"]),
            int(given["batch"]),
        )

    @property
    def width(self) -> int:
        """Width D of the embeddings: channels of the features, or of the encoder's last map."""
        return self.encoder.width if self.network is None else self.network.width

    def to(self, device: str | torch.device) -> Self:
        """Move the network to a device; results still come back to the CPU."""
        (self.encoder if self.network is None else self.network).to(device)
        return self

    def open(self, path: str) -> DenseImages:
        """Images on disk, of any size, read as the training images were; their masks play no part.

        Raises:
            InputError: there are none, or some cannot be read; names them.
        """
        files = DenseFiles.model_validate_json(json.dumps({**self.reading, "path": path, "labels": "none"}))
        return replace(open_dense(files), classes=self.classes)

    def segmenter(self) -> Segmenter:
        """The whole network.

        Raises:
            InputError: there is only its encoder.
        """
        if self.network is None:
            raise InputError(
                "This export is the encoder of a segmentation network, it can only embed.",
                "Export the run with --format safetensors for masks.",
            )
        return self.network

    @torch.no_grad()
    def segment(self, image: Tensor) -> Segmented:
        """Classes (h, w) uint8 and their probabilities (h, w) float32 of one image, on the CPU.

        The image is brought to the size at which training images were read, and the scores back to its own.

        Args:
            image: (C, h, w) of any size; uint8, or floating point in [0, 1].

        Raises:
            InputError: other channels than the network reads, an image that is too small, or only an encoder.
        """
        network, align = self.segmenter(), self.settings.align_corners
        self._check(image)
        size, resize = (int(image.shape[1]), int(image.shape[2])), self.reading.get("resize")
        if resize is not None:
            image = fitted(image, Fit(resize))
        x = self.prepared(image[None])
        window = window_for(int(x.shape[-2]), int(x.shape[-1]), self.window)
        if window is None and self.read_whole:
            found = enlarged_classes(network(x).logits, size, align)
            return Segmented(found.classes[0], found.confidence[0])
        found = segment_image(
            network,
            x[0],
            window=window,
            overlap=self.overlap,
            scales=self.scales,
            flip=self.flip,
            align_corners=align,
            batch=self.batch,
        )
        return at_size(Segmented(found.classes.cpu(), found.confidence.float().cpu()), size)

    @property
    def band_reading(self) -> tuple[tuple[int, ...] | None, float | None] | None:
        """Bands (None: all) and value of white with which files are read; None where they are read as RGB."""
        bands = self.reading.get("bands")
        return None if bands is None else (tuple(bands) or None, self.reading.get("white"))

    @property
    def read_whole(self) -> bool:
        """Whether images are read at once, at one size and as they are."""
        return self.window is None and self.scales == (1.0,) and not self.flip

    @torch.no_grad()
    def embed(self, images: DenseImages) -> Tensor:
        """Embeddings (N, D), float32, on the CPU, of all images: features averaged over all positions."""
        read = self.encoder if self.network is None else self.network.features
        rows = []
        for start in range(0, len(images), self.batch):
            for image in images.read(range(start, min(start + self.batch, len(images))))[0]:
                self._check(image)
                maps = read(self.prepared(image[None]))
                rows.append((maps.float().mean((2, 3)) if maps.ndim == 4 else maps.float()).cpu())
        return torch.cat(rows) if rows else torch.zeros(0, self.width)

    def prepared(self, images: Tensor) -> Tensor:
        """Images as the network sees them: (B, C, h', w'), normalised, on its device.

        Args:
            images: (B, C, h, w); uint8, or floating point in [0, 1].
        """
        first = next(self.encoder.parameters())
        x = plain_image(images.to(first.device), self.mean, self.std)
        return readable(x, self.base, self.encoder.min_size).to(first.dtype)

    def _check(self, image: Tensor) -> None:
        if image.ndim != 3 or len(image) != self.channels:
            raise InputError(
                f"an image {tuple(image.shape)}; the network reads images ({self.channels}, h, w).",
                "Give images with the channels of those it was trained on.",
            )

    def onnx_model(self) -> Any:
        """The same computation as an ONNX model; see `leanlabel.export.onnx_segmentation.segmentation_model`.

        Raises:
            InputError: it reads windows, several sizes or mirrored images, or has a part that has no form in ONNX.
        """
        network = self.segmenter()
        for name, value, plain in (
            ("window", self.window, None),
            ("scales", self.scales, (1.0,)),
            ("flip", self.flip, False),
        ):
            if value != plain:
                told = json.dumps(plain)
                raise InputError(
                    f"evaluation.{name} is {json.dumps(value)}; an ONNX model reads an image once, as a whole.",
                    f"Use --format safetensors, or go on with the run with --set evaluation.{name}={told} first.",
                )
        from leanlabel.export.onnx_segmentation import segmentation_model

        return segmentation_model(network, self.mean, self.std, base=self.base, sized=self.sized)

    @property
    def sized(self) -> bool:
        """Whether files are scaled before the network reads them, so that an ONNX model must be told their size."""
        return self.reading.get("resize") is not None and self.channels == 3

    def onnx_inputs(self, images: DenseImages) -> dict[str, Any]:
        """The middle of the first few images, with odd sides, as that model takes them."""
        first = list(images.read(range(min(CHECKED, len(images))))[0])
        least = self.encoder.min_size
        sides = [min(CHECKED_SIDE, *(one.shape[dim] for one in first)) for dim in (1, 2)]
        sides = [side if side % 2 or side <= least else side - 1 for side in sides]
        starts = [
            [(one.shape[dim] - side) // 2 for dim, side in zip((1, 2), sides, strict=True)] for one in first
        ]
        cut = [
            one[:, top : top + sides[0], left : left + sides[1]]
            for one, (top, left) in zip(first, starts, strict=True)
        ]
        found = {"image": plain_image(torch.stack(cut), (0.0,), (1.0,)).numpy()}
        return found | ({"size": torch.tensor(sides).mul(3).div(2).long().numpy()} if self.sized else {})

    @torch.no_grad()
    def onnx_outputs(self, images: DenseImages) -> dict[str, Any]:
        """What that model should answer for them, computed by this one; its classes follow from its logits."""
        given = self.onnx_inputs(images)
        size = given.get("size", given["image"].shape[2:])
        x = self.prepared(torch.from_numpy(given["image"]))
        logits = upsample(
            self.segmenter()(x).logits.float(), [int(side) for side in size], self.settings.align_corners
        )
        return {"logits": logits.cpu().numpy(), "confidence": logits.softmax(1).amax(1).cpu().numpy()}

    def onnx_pipeline(self) -> dict[str, Any]:
        """What goes into that model, who prepares it, and what its outputs mean."""
        sides = ["height", "width"] if self.sized else ["H", "W"]
        what = "RGB from 0 to 1" if self.channels == 3 else "bands from 0 to 1"
        inputs: dict[str, Any] = {
            "image": {
                "shape": ["B", self.channels, "H", "W"],
                "type": "float32",
                "what": f"{what}, channels first; sides of any size from {self.encoder.min_size} pixels on",
            }
        }
        if self.sized:
            inputs["size"] = {"shape": [2], "type": "int64", "what": "height and width of the outputs"}
        scaled = [] if self.base is None else [f"the image is scaled to a shorter side of {self.base} pixels"]
        estimates = has_batch_statistics(self.segmenter())
        return {
            "inputs": inputs,
            "by_the_caller": self._by_the_caller(),
            "by_the_model": [
                f"the mean per channel {list(self.mean)} is subtracted, then divided by {list(self.std)}",
                *scaled,
                *(["batch normalisation uses the estimates of the training"] if estimates else []),
                f"scores are enlarged to {'size' if self.sized else 'the size of the image'}, bilinear",
            ],
            "outputs": {
                "logits": {"shape": ["B", len(self.classes), *sides], "type": "float32"},
                "classes": {"shape": ["B", *sides], "type": "uint8"},
                "confidence": {"shape": ["B", *sides], "type": "float32"},
            },
            "after": [
                "classes: pixel value k belongs to classes[k], the argmax of the logits; class_map has the colours and "
                "the ids of the training masks",
                "confidence: probability of that class, from the softmax of the logits",
            ],
            "classes": list(self.classes.names),
        }

    def _by_the_caller(self) -> list[str]:
        if self.reading.get("bands") is None:
            size = ["size: height and width of the file before it was scaled"] if self.sized else []
            return [*_decoding({"resize": self.reading.get("resize")}), "divide by 255", *size]
        bands = self.reading["bands"]
        chosen = f"take the bands {list(bands)}, counted from 0" if bands else "take all bands"
        white = self.reading.get("white")
        return [
            f"decode as it is and {chosen}",
            f"divide by 255 where the file has 8 bits, else by "
            f"{'65535 (16 bits) or 1 (floats)' if white is None else f'{white:g}'}, larger values are 1",
        ]

    @staticmethod
    def described(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """What each tensor of the encoder is: name -> shape and meaning; names without ``encoder.``."""
        return ImageModel.described(tensors)
