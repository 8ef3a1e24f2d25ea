"""What every method has that labels pixels: reading images with its network, measuring it, handing it out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanlabel.augment.pairs import plain_image
from leanlabel.banks.teacher import Teacher, plain
from leanlabel.data.bands import fitted
from leanlabel.data.class_map import IGNORE, ClassMap
from leanlabel.data.decode import Fit
from leanlabel.data.dense import DenseImages
from leanlabel.data.dense_lists import write_split
from leanlabel.data.dense_source import DenseFiles, open_dense
from leanlabel.engine.checkpoint import state_of
from leanlabel.engine.method import Exported, Method
from leanlabel.engine.progress import Bar
from leanlabel.errors import InputError, RunError
from leanlabel.evaluation.enlarging import at_size, enlarged_classes, readable, window_for
from leanlabel.evaluation.pictures import Shown, segmentation_figure
from leanlabel.evaluation.sliding import Segmented, segment_image
from leanlabel.methods.dense_readouts import (
    LONG,
    Measured,
    joined,
    labelled_parts,
    main_part,
    mean_boundary,
    measure_part,
    record,
    value_of,
)
from leanlabel.methods.terms import Term
from leanlabel.models.map_probe import blank_image
from leanlabel.models.segmenters import Segmenter, encoder_name

IGNORED = -100
"""Label of a pixel that no loss reads, on the device."""
SELECTION = {
    "last": "weights of the last iteration",
    "best_val": "weights of the best mean IoU on val",
    "entropy": "weights of the lowest entropy on target training images, no labels read",
    "teacher_agreement": "weights that agree best with their average on target training images, no labels read",
    "best_target_val": "weights of the best mean IoU on val of the target: chosen by target labels",
}


class Measuring(Method):
    """A method with a network that labels pixels, a running average of it or none, and terms.

    Attributes:
        network: the trained one.
        average: what is handed out in its place, where it is kept.
        classes: names and colours of the classes.
        data: what `read` returned: images with masks, or two domains.
    """

    network: nn.Module
    average: Teacher | None
    classes: ClassMap
    data: Any
    _start: Any
    _found: dict[tuple[str, str], Measured]

    def terms(self) -> list[tuple[Term, Any]]:
        """Terms of the recipe with their entries, in its order."""
        raise NotImplementedError

    @classmethod
    def reading_of(cls, cfg: Any) -> Any:
        """The section that says how the images are read that the network is for."""
        return cfg.data

    @property
    def look(self) -> Any:
        """How these are normalised."""
        return self.cfg.augment

    @classmethod
    def open(cls, cfg: Any, path: str) -> DenseImages:
        """Other images, read as those of the recipe; masks optional."""
        kept = {"classes", "resize", "bands", "white", "load", "skip_unreadable"}
        reading = cls.reading_of(cfg)
        known = reading.model_dump(include=kept) if isinstance(reading, DenseFiles) else {}
        return open_dense(DenseFiles(path=path, labels="none", **known))

    def keep_initial(self, initial: Method | None, data: Any) -> None:
        """Remember the weights that training started from, to be measured, too."""
        self._start = initial if isinstance(initial, Measuring) else None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_start":  # another method is no part of this one
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def deployed(self) -> Segmenter:
        """The network that is measured and predicts."""
        wanted = self.cfg.evaluation.network
        use_average = self.average is not None and wanted != "student"
        return plain_segmenter(
            self.average.network if use_average and self.average is not None else self.network
        )

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.deployed.width

    @torch.no_grad()
    def read_batch(self, images: Tensor, size: tuple[int, int] | None = None) -> Segmented:
        """Classes (B, H, W) uint8 and confidence (B, H, W) of images (B, C, h, w) of one size, on the CPU.

        Args:
            images: uint8, or float in [0, 1].
            size: height H and width W of the result; None: those of the images.
        """
        settings, network = self.cfg.evaluation, self.deployed.eval()
        size = size or (int(images.shape[-2]), int(images.shape[-1]))
        x = self.normalised(images)
        window = window_for(int(x.shape[-2]), int(x.shape[-1]), settings.window)
        if window is None and settings.scales == (1.0,) and not settings.flip:
            return enlarged_classes(network(x).logits, size, self.cfg.model.align_corners)
        return joined([at_size(self._slide(network, one, window), size) for one in x])

    def _slide(self, network: Segmenter, image: Tensor, window: tuple[int, int] | None) -> Segmented:
        settings = self.cfg.evaluation
        found = segment_image(
            network,
            image,
            window=window,
            overlap=settings.overlap,
            scales=settings.scales,
            flip=settings.flip,
            align_corners=self.cfg.model.align_corners,
            batch=settings.batch,
        )
        return Segmented(found.classes.cpu(), found.confidence.float().cpu())

    def segment(self, image: Tensor) -> Segmented:
        """Classes (h, w) uint8 and confidence (h, w) of one image (C, h, w) of any size, uint8 or float in [0, 1].

        It is brought to the size at which training images were read, and the scores back to its own.
        """
        reading = getattr(self.reading_of(self.cfg), "resize", None)
        size, small = (int(image.shape[-2]), int(image.shape[-1])), image
        if reading is not None:
            small = fitted(image, Fit(reading))
        found = self.read_batch(small[None], size)
        return Segmented(found.classes[0], found.confidence[0])

    @property
    def band_reading(self) -> tuple[tuple[int, ...] | None, float | None] | None:
        """Bands (None: all) and value of white with which files are read; None where they are read as RGB."""
        reading = self.reading_of(self.cfg)
        bands = getattr(reading, "bands", None)
        return None if bands is None else (bands or None, reading.white)

    def normalised(self, images: Tensor) -> Tensor:
        augment = self.look
        x = torch.stack([plain_image(one, augment.mean, augment.std) for one in images.to(self.device)])
        x = readable(x, augment.base, self.deployed.min_size)
        return x.to(self._dtype)

    @torch.no_grad()
    def dense_features(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D, h, w) of images, and their labels thinned out to the same positions."""
        features = self.deployed.eval()(self.normalised(images)).features.float().cpu()
        rows, columns = (
            torch.arange(small) * large // small
            for small, large in zip(features.shape[-2:], masks.shape[-2:], strict=True)
        )
        return features, masks[:, rows][:, :, columns]

    @torch.no_grad()
    def embed(self, data: DenseImages) -> Tensor:
        """Embeddings (N, D) of images: their features, averaged over all positions."""
        network, parts, done = self.deployed.eval(), [], 0
        with Bar(len(data), label="embed", show=len(data) >= LONG) as bar:
            for rows in torch.arange(len(data)).split(self.cfg.evaluation.batch):
                for image in data.read(rows)[0]:
                    parts.append(network(self.normalised(image[None])).features.float().mean((2, 3)).cpu())
                done += len(rows)
                bar.advance(done)
        return torch.cat(parts) if parts else torch.zeros(0, self.feature_width)

    def exported(self) -> Exported:
        """The network that predicts, with what is done to an image before it and how it is read."""
        augment, evaluation, model, network = (
            self.look,
            self.cfg.evaluation,
            self.cfg.model,
            self.deployed,
        )
        channels = blank_image(network.encoder, 1).shape[1]
        mean, std = (list(one) * (channels // len(one)) for one in (augment.mean, augment.std))
        section = self.reading_of(self.cfg)
        keys = ("resize", "bands", "white", "load") if isinstance(section, DenseFiles) else ()
        reading = {key: getattr(section, key) for key in keys}
        config: dict[str, Any] = {
            "network": model.model_dump(mode="json"),
            "channels": channels,
            "class_map": self.classes.as_dict(),
            "backbone": {"name": encoder_name(model), "stem": model.stem, "norm": model.norm},
            "preprocessing": {"mean": mean, "std": std, "base": augment.base, "reading": reading},
            "inference": {
                "window": evaluation.window,
                "overlap": evaluation.overlap,
                "scales": list(evaluation.scales),
                "flip": evaluation.flip,
                "batch": evaluation.batch,
            },
        }
        return Exported("segmentation", config, state_of(network), "encoder.")

    def validate(self, t: int) -> float:
        """Mean IoU on the validation part."""
        for name, value in plain_segmenter(self.network).named_parameters():
            if not bool(torch.isfinite(value).all()):
                raise RunError(
                    f"{name} is not finite after iteration {t}.", "Lower optim.lr, or set optim.clip."
                )
        return value_of(measure_part(self, self.data, "val").scores, self.cfg.evaluation.subset)

    def evaluate(
        self,
        data: DenseImages,
        untrained: Method,
        protocol: str | None = None,
        splits_file: Path | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Measure the network on the parts of the data, beside itself as it was initialised.

        Raises:
            InputError: another protocol.
        """
        settings = self.cfg.evaluation
        name = protocol or settings.protocol
        if name not in ("miou", "none"):
            raise InputError(f"A segmentation is measured by miou, not by {name}.", "Use --protocol miou.")
        if name == "none":
            return {"protocol": None, "monitors": {}, "warnings": [], "figure": None}
        parts = self.to_measure(data)
        if splits_file is not None and parts[0][1].ids is not None:
            self._write_parts(parts[0][1], splits_file.with_suffix(""))
        networks: dict[str, Any] = (
            {"untrained": untrained} if settings.untrained or not self.has_trained else {}
        )
        networks |= {"initial": self._start} if self._start is not None else {}
        networks |= {"trained": self} if self.has_trained else {}
        found: dict[str, dict[str, Measured]] = {}
        for name, images, part in parts:
            found[name] = {}
            for key, network in networks.items():
                with network.reading(images):
                    found[name][key] = measure_part(
                        network,
                        images,
                        part,
                        boundary=settings.boundary,
                        spread=settings.spread,
                        each=name == "miou",
                    )
        validating = next(
            (name for name, images, part in parts if part == "val" and images is parts[0][1]), ""
        )
        validation = {
            key: value_of(one.scores, settings.subset) for key, one in found.get(validating, {}).items()
        }
        self._found = {(name, key): value for name, each in found.items() for key, value in each.items()}
        records = [
            record(found[name], images, settings, name, self.selection, validation)
            for name, images, _ in parts
        ]
        return {
            "protocol": records[0],
            "further": records[1:],
            "monitors": {},
            "warnings": self._warnings(found["miou"]),
            "figure": None,
        }

    @property
    def selection(self) -> str:
        """How the weights were chosen, for people."""
        return SELECTION[self.cfg.evaluation.select]

    @property
    def has_trained(self) -> bool:
        """Whether anything was trained."""
        return self.cfg.steps > 0

    def to_measure(self, data: Any) -> list[tuple[str, DenseImages, str]]:
        """What is measured, the main part first: name of the record, images, their part."""
        settings = self.cfg.evaluation
        part = main_part(data, settings.part)
        further = [one for one in settings.further if one != part and one in labelled_parts(data)]
        return [("miou", data, part), *((f"miou:{one}", data, one) for one in further)]

    def reading(self, images: DenseImages, /) -> AbstractContextManager[Any]:
        """While it lasts, images are normalised as these are."""
        return nullcontext()

    @staticmethod
    def _write_parts(data: DenseImages, folder: Path) -> None:
        """Write which images were trained on and which measured: files that a folder of data takes as its splits."""
        assert data.ids is not None
        folder.mkdir(exist_ok=True)
        for part, rows in data.splits.items():
            with suppress(InputError):  # a name that no line can hold
                write_split(folder / f"{part}.txt", (data.ids[row] for row in rows.tolist()))

    def _warnings(self, measured: dict[str, Measured]) -> list[str]:
        one = measured.get("trained")
        if one is None:
            return []
        support, predicted = one.scores.support.tolist(), one.scores.predicted.tolist()
        names = self.classes.names
        absent = [n for n, s in zip(names, support, strict=True) if s == 0]
        never = [n for n, s, p in zip(names, support, predicted, strict=True) if s > 0 and p == 0]
        found = []
        if absent:
            found.append(f"{one.part} has no pixel of {', '.join(absent)}: their IoU says nothing there")
        if never:
            found.append(
                f"never predicted on {one.part} though it has pixels of them: {', '.join(never)}; more "
                f"iterations, class weights or a larger network may help"
            )
        if "untrained" in measured and one.scores.miou <= measured["untrained"].scores.miou:
            found.append(
                f"trained is no better than untrained on {one.part}: lower optim.lr, or train longer"
            )
        return found

    def label_free(self, data: Any) -> dict[str, float]:
        """Mean confidence on the main part."""
        if self.cfg.evaluation.protocol == "none":
            return {}
        one = self._found.get(("miou", "trained"))
        return {} if one is None else {"confidence": one.confidence}

    def figures(self, data: Any) -> dict[str, Any]:
        """Scores by class, the confusion matrix, and images with label, prediction and error."""
        if self.cfg.evaluation.protocol == "none":
            return {}
        _, data, part = self.to_measure(data)[0]
        one = self._found.get(("miou", "trained" if self.has_trained else "untrained"))
        if one is None:
            return {}
        rows, before = list(one.images), self._found.get(("miou", "untrained"))

        def show(place: int) -> Shown:
            images, masks = data.read([rows[place]])
            image, mask = images[0], masks[0]
            with self.reading(data):
                found = self.read_batch(image[None])
                emphasis = self._emphasis(image, mask)
            return Shown(image, mask, found.classes[0], found.confidence[0], emphasis)

        scores = one.scores
        means = {
            "miou": value_of(scores, self.cfg.evaluation.subset),
            "boundary_iou": mean_boundary(one),
            "frequency_weighted": scores.frequency_weighted,
            "pixel_accuracy": scores.pixel_accuracy,
        }
        return {
            "segmentation": segmentation_figure(
                part,
                self.classes,
                scores=means,
                confusion=one.table,
                images=list(one.images.values()),
                show=show,
                untrained=None if before is None or before is one else before.table,
                boundary=None if one.boundary is None else one.boundary.tolist(),
            )
        }

    @torch.no_grad()
    def _emphasis(self, image: Tensor, mask: Tensor) -> Tensor | None:
        """How much the pixels of an image weigh in the first term that weighs them."""
        logits = self.deployed.eval()(self.normalised(image[None])).logits.float()
        for term, _ in self.terms():
            found = term.emphasis(logits, device_labels(mask[None]).to(logits.device))
            if found is not None:
                return found[0].float().cpu()
        return None

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype


def plain_segmenter(module: nn.Module) -> Segmenter:
    """The segmentation network inside the engine's wrapper."""
    found = plain(module)
    assert isinstance(found, Segmenter)
    return found


def device_labels(masks: Tensor) -> Tensor:
    """Masks (…) uint8 with 255 for ignore as labels (…) int64 with -100."""
    labels = masks.long()
    return labels.masked_fill_(labels == IGNORE, IGNORED)
