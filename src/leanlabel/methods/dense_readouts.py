"""Measuring dense networks on the parts of a data set: scores, pictures, and the records that a run keeps."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.data.class_map import IGNORE
from leanlabel.data.dense import DenseImages
from leanlabel.engine.progress import Bar
from leanlabel.errors import InputError
from leanlabel.evaluation.boundary import BoundaryIoU
from leanlabel.evaluation.feature_spread import FeatureSpread
from leanlabel.evaluation.pictures import ImageScore, image_score
from leanlabel.evaluation.segmentation import Confusion, SegmentationScores
from leanlabel.evaluation.sliding import Segmented

LONG = 32
"""Images from which on a progress bar is shown."""
METRIC = "mIoU"


@dataclass
class Measured:
    """What one network reaches on one part.

    Attributes:
        part: its name.
        scores: from one confusion matrix over all labelled pixels.
        table: (K, K) that matrix, rows are labels.
        boundary: (K,) boundary IoU, NaN where a class has no boundary; None where it was not asked for.
        spread: intra-class spread, inter-class distance, their ratio; empty where they were not asked for.
        images: row -> score of that image alone.
        confidence: mean probability of the chosen class over all pixels.
    """

    part: str
    scores: SegmentationScores
    table: Tensor
    boundary: Tensor | None = None
    spread: dict[str, float] = field(default_factory=dict)
    images: dict[int, ImageScore] = field(default_factory=dict)
    confidence: float = math.nan


def parts_of(data: DenseImages) -> list[str]:
    """Parts that can be measured: those with images, but for the training part."""
    return [name for name, rows in data.splits.items() if name != "train" and len(rows)]


_LABELLED: WeakKeyDictionary[DenseImages, list[str]] = WeakKeyDictionary()


def labelled_parts(data: DenseImages) -> list[str]:
    """Those of :func:`parts_of` with a labelled pixel: published test parts may come without labels."""
    if data not in _LABELLED:
        _LABELLED[data] = [name for name in parts_of(data) if _has_label(data, data.splits[name])]
    return _LABELLED[data]


def _has_label(data: DenseImages, rows: Tensor) -> bool:
    if data.masks is None:
        return False
    return any(bool((data.masks[row] != IGNORE).any()) for row in rows.tolist())


def main_part(data: DenseImages, wanted: str) -> str:
    """The part that the main score is of.

    Raises:
        InputError: no such part, none of its pixels is labelled, or nothing to measure on.
    """
    known = labelled_parts(data)
    order = ("test", *sorted(name for name in known if name.startswith("test")), "val")
    found = next((name for name in order if name in known), None) if wanted == "auto" else wanted
    if found is None:
        raise InputError(
            f"{data.name}: there are only training images with labels, so nothing can be measured.",
            "Set data.val_share, give a val part, or evaluation.protocol=none.",
        )
    if found not in known:
        what = "has no label" if found in data.splits else f"is not there: {data.name} has no part {found!r}"
        raise InputError(
            f"evaluation.part: {found} {what}.", f"It has {', '.join(known) or 'only training images'}."
        )
    return found


def by_size(data: DenseImages, rows: Tensor, batch: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Images and masks in batches of one size, in the order of the rows as far as sizes let it.

    Yields:
        Row numbers (B), images (B, C, H, W), masks (B, H, W) uint8.
    """
    for part in rows.split(batch):
        images, masks = data.read(part)
        assert masks is not None
        groups: dict[tuple[int, ...], list[int]] = {}
        for place in range(len(part)):
            groups.setdefault(tuple(images[place].shape), []).append(place)
        for places in groups.values():
            yield (
                part[places].tolist(),
                torch.stack([images[place] for place in places]),
                torch.stack([masks[place] for place in places]),
            )


def measure_part(
    method: Any,
    data: DenseImages,
    part: str,
    *,
    boundary: bool = False,
    spread: bool = False,
    each: bool = False,
) -> Measured:
    """Run a method's network over a part of the data, in evaluation mode; ranks that all call it share the images.

    Args:
        method: has ``read_batch(images)`` -> classes and confidence, and ``dense_features(images)``.
        data: with masks.
        part: name of a split.
        boundary: measure boundary IoU.
        spread: measure the scatter of features.
        each: keep scores of every image.
    """
    settings = method.cfg.evaluation
    rows = data.splits[part]
    rows = rows[dist.shard(len(rows))]
    k = data.num_classes
    confusion = Confusion(k)
    edges = BoundaryIoU(k) if boundary else None
    scatter = FeatureSpread(k, method.feature_width) if spread else None
    images_of: dict[int, ImageScore] = {}
    sure, pixels, done = 0.0, 0, 0
    with Bar(len(rows), label=f"measure {part}", show=len(rows) >= LONG) as bar:
        for numbers, images, masks in by_size(data, rows, settings.batch):
            found = method.read_batch(images)
            confusion.add(masks, found.classes)
            if edges is not None:
                edges.add(masks, found.classes)
            if scatter is not None:
                scatter.add(*method.dense_features(images, masks))
            if each:
                for row, label, guess in zip(numbers, masks, found.classes, strict=True):
                    images_of[row] = image_score(name_of(data, row), guess, label, k)
            sure += float(found.confidence.double().sum())
            pixels += found.confidence.numel()
            done += len(numbers)
            bar.advance(done)
    scores = confusion.scores(empty=settings.empty, subsets=data.classes.subsets)
    return Measured(
        part,
        scores,
        confusion.total(),
        None if edges is None else edges.scores(),
        {} if scatter is None else scatter.scores().as_dict(),
        images_of,
        sure / max(1, pixels),
    )


def name_of(data: DenseImages, row: int) -> str:
    """Name of an image: that of its file, else its number."""
    return str(row) if data.ids is None else data.ids[row]


def value_of(scores: SegmentationScores, subset: str | None) -> float:
    """The main number: mean IoU over all classes, or over a named subset."""
    return scores.miou if subset is None else scores.subsets[subset]


def record(
    measured: Mapping[str, Measured],
    data: DenseImages,
    settings: Any,
    name: str,
    selection: str,
    validation: Mapping[str, float | None],
) -> dict[str, Any]:
    """What ``results.json`` keeps of one part, in the form that all protocols have.

    Args:
        measured: readout -> what it reached, "trained" among them after training.
        data: for names and the part's images.
        settings: of the evaluation.
        name: under which it is filed.
        selection: how the weights were chosen, for people.
        validation: readout -> mean IoU on the validation part, where there is one.
    """
    last = measured["trained" if "trained" in measured else next(iter(measured))]
    subset = settings.subset
    readouts = {}
    for readout, one in measured.items():
        value = value_of(one.scores, subset)
        readouts[readout] = {
            "mean": value,
            "std": None,
            "per_split": [value],
            "macro_f1": None,
            "details": [detail(one, validation.get(readout))],
            "others": others(one),
        }
    support, total = last.scores.support.tolist(), max(1, int(last.scores.support.sum()))
    rows = data.splits[last.part]
    return {
        "protocol": name,
        "metric": METRIC if subset is None else f"{METRIC} ({subset})",
        "selection": selection,
        "settings": {key: _plain(getattr(settings, key)) for key in MODE},
        "split": {
            "name": last.part,
            "count": 1,
            "images": len(rows),
            "seed": None,
            "sha256": names_digest(data, rows),
        },
        "unit": "part",
        "readouts": readouts,
        "per_class": [
            {
                "name": label,
                "count": count,
                "share": count / total,
                "iou": _number(iou),
                "recall": _number(recall),
            }
            for label, count, iou, recall in zip(
                data.classes.names,
                support,
                last.scores.iou.tolist(),
                last.scores.recall.tolist(),
                strict=True,
            )
        ],
    }


MODE = ("empty", "subset", "window", "overlap", "scales", "flip", "network")
"""Settings that say how images are read and scores are made."""


def detail(one: Measured, validation: float | None) -> dict[str, Any]:
    """Everything measured on a part, as plain data."""
    found = one.scores.as_dict()
    if one.boundary is not None:
        found["boundary"] = [_number(value) for value in one.boundary.tolist()]
    return found | {
        "spread": {key: _number(value) for key, value in one.spread.items()},
        "val_accuracy": validation,
    }


def others(one: Measured) -> dict[str, float]:
    """Numbers beside the main one."""
    found = {
        "pixel accuracy": one.scores.pixel_accuracy,
        "mean accuracy": one.scores.mean_accuracy,
        "frequency weighted IoU": one.scores.frequency_weighted,
    }
    found |= {f"{METRIC} {name}": value for name, value in one.scores.subsets.items()}
    if one.boundary is not None:
        found["boundary IoU"] = mean_boundary(one)
    found |= {f"feature {key}": value for key, value in one.spread.items() if value is not None}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def mean_boundary(one: Measured) -> float:
    """Mean boundary IoU over the classes that have a boundary; NaN where it was not measured."""
    return math.nan if one.boundary is None else float(one.boundary.nanmean())


def names_digest(data: DenseImages, rows: Tensor) -> str:
    """Hash of the names of some images, or of their numbers where they have none."""
    text = "\n".join(name_of(data, row) for row in rows.tolist())
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def class_pixels(data: DenseImages, rows: Sequence[int] | Tensor) -> list[int]:
    """Numbers (K) of labelled pixels of each class in some images."""
    table = torch.zeros(256, dtype=torch.int64)
    for part in torch.as_tensor(rows).split(64):
        for mask in () if data.masks is None else data.masks.read(part.tolist()):
            table += torch.bincount(mask.flatten().long(), minlength=256)
    return table[: data.num_classes].tolist()


def joined(found: Sequence[Segmented]) -> Segmented:
    """Several images of one size as one batch."""
    return Segmented(
        torch.stack([one.classes for one in found]), torch.stack([one.confidence for one in found])
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
