"""What the rules for images with masks look at, measured once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from leanlabel.data.class_map import IGNORE
from leanlabel.data.dense import DenseImages
from leanlabel.data.image_files import IN_MEMORY
from leanlabel.methods.dense_readouts import parts_of
from leanlabel.methods.segmentation import training_rows

TRAINED, MEASURED = 320, 64
"""Masks, evenly spread, that stand for the training part, and for each of up to three other parts."""
PICTURES = 64
"""Images, evenly spread over the training part, whose pixels stand for all."""
RAREST, HOLDERS = 3, 64
"""Classes whose objects are measured, at most, and masks of each."""
SPECK = 20_000
"""A component of less than one pixel in so many of its mask is no object, and never one of less than four."""
_BLOCK = 16
_TOGETHER = np.ones((3, 3), dtype=np.int8)


@dataclass(frozen=True)
class Objects:
    """Connected components (eight neighbours) of one class.

    Args:
        name: of the class.
        count: components that were measured.
        height: median, in pixels.
        width: median, in pixels.
    """

    name: str
    count: int
    height: float
    width: float

    @property
    def longer(self) -> float:
        """Longer side of the box around a usual object."""
        return max(self.height, self.width)

    @property
    def side(self) -> float:
        """Side of a square as large as that box."""
        return (self.height * self.width) ** 0.5


@dataclass(frozen=True)
class DenseFacts:
    """Numbers about images with masks, at the size at which they are read.

    Args:
        images: N.
        trained: images of the training part.
        parts: images of each part, the training part included.
        height: median, in pixels.
        width: median, in pixels.
        smallest: smallest side looked at.
        largest: longest side looked at.
        one_size: whether all images have the same size.
        channels: of the images.
        value_bytes: bytes of one value of an image: 1, or 4 of more than 8 bits.
        names: K classes.
        shares: (K) shares of the labelled pixels of the training part.
        image_shares: (K) shares of the masks of the training part that hold the class.
        unlabelled: share of the pixels of the training part that have no class.
        lacking: part -> classes without a pixel in it; parts without any label are not among them.
        looked_at: part -> masks looked at; all of the part unless it is large.
        objects: of the rarest classes, rarest first.
        sequences: groups that the images come from; 0 where none are known.
        cut: how the reader made the validation part: "groups", "blocks", "images"; None where the data has one.
        grey: share of the images looked at whose three channels are the same.
        mean: per channel, of values in [0, 1].
        std: per channel, > 0.
        unreadable: files left out because they cannot be read.
        gpu: whether this machine has one.
        memory: of the GPU, in GiB.
    """

    images: int
    trained: int
    parts: Mapping[str, int]
    height: int
    width: int
    smallest: int
    largest: int
    one_size: bool
    channels: int
    value_bytes: int
    names: tuple[str, ...]
    shares: tuple[float, ...]
    image_shares: tuple[float, ...]
    unlabelled: float
    lacking: Mapping[str, tuple[str, ...]]
    looked_at: Mapping[str, int]
    objects: tuple[Objects, ...]
    sequences: int
    cut: str | None
    grey: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unreadable: int
    gpu: bool
    memory: float = field(default=10.0)

    @property
    def short(self) -> int:
        """Median shorter side."""
        return min(self.height, self.width)

    @property
    def stored(self) -> int:
        """Bytes of images and masks that reading keeps in memory; 0 where it decodes files each time."""
        every = (self.channels * self.value_bytes + 1) * self.height * self.width * self.images
        return every if self.one_size and every < IN_MEMORY else 0

    @property
    def present(self) -> list[int]:
        """Classes with training pixels, rarest first."""
        return sorted((c for c, share in enumerate(self.shares) if share > 0), key=lambda c: self.shares[c])

    @property
    def imbalance(self) -> float:
        """Times that the largest class has the pixels of the smallest that is there; 1 for a single class."""
        return self.shares[self.present[-1]] / self.shares[self.present[0]] if self.present else 1.0

    @property
    def usual_object(self) -> float | None:
        """Median, over the rarest classes, of the longer side of an object."""
        return median(one.longer for one in self.objects) if self.objects else None

    @property
    def smallest_object(self) -> Objects | None:
        """The class, of the rarest, whose objects are smallest."""
        return min(self.objects, key=lambda one: one.side, default=None)


@dataclass
class _Counts:
    """What some masks of a part hold.

    Args:
        rows: rows looked at.
        table: (n, K + 1) pixels of each class, and of none.
        sizes: height and width of each.
    """

    rows: list[int]
    table: np.ndarray
    sizes: list[tuple[int, int]]

    @property
    def labelled(self) -> bool:
        return bool(self.table[:, :-1].any())


def measure(data: DenseImages, *, gpu: bool, memory: float = 10.0) -> DenseFacts:
    """Measure images with masks; at most :data:`TRAINED` + 3 :data:`MEASURED` masks are decoded, evenly spread.

    Shares of classes are those that the reader counted, where it did.

    Args:
        data: with masks.
        gpu: see :class:`DenseFacts`.
        memory: see :class:`DenseFacts`.

    Raises:
        InputError: a file cannot be read.
        ValueError: no masks.
    """
    if data.masks is None:
        raise ValueError("facts about classes need masks")
    pool = training_rows(data)
    counts = {"train": _count(data, spread(pool, TRAINED))}
    others = sorted(parts_of(data), key=lambda part: (part != "val", not part.startswith("test")))
    counts |= {part: _count(data, spread(data.splits[part], MEASURED)) for part in others[:3]}
    train, sizes = counts["train"], [size for one in counts.values() for size in one.sizes]
    known = data.facts.get("train_class_pixels")
    pixels = np.asarray(known if known is not None else train.table[:, :-1].sum(0), dtype=np.float64)
    shares = tuple((pixels / max(pixels.sum(), 1)).tolist())
    grey, mean, std = _colours(data, spread(pool, PICTURES))
    return DenseFacts(
        images=len(data),
        trained=len(pool),
        parts={"train": len(pool)} | {part: len(data.splits[part]) for part in parts_of(data)},
        height=round(median(size[0] for size in sizes)),
        width=round(median(size[1] for size in sizes)),
        smallest=min(min(size) for size in sizes),
        largest=max(max(size) for size in sizes),
        one_size=data.shape is not None,
        channels=len(mean),
        value_bytes=data.pixels[spread(pool, 1)[0]].element_size() if len(pool) else 1,
        names=data.classes.names,
        shares=shares,
        image_shares=tuple((train.table[:, :-1] > 0).mean(0).tolist()),
        unlabelled=float(train.table[:, -1].sum() / max(train.table.sum(), 1)),
        lacking=_lacking(data, counts, pixels),
        looked_at={part: len(one.rows) for part, one in counts.items()},
        objects=_objects(data, train, shares),
        sequences=0 if data.groups is None else len(data.groups.unique()),
        cut=data.facts.get("val_by") if "val_cut_from_train" in data.facts else None,
        grey=grey,
        mean=mean,
        std=std,
        unreadable=int(data.facts.get("unreadable_skipped", 0)),
        gpu=gpu,
        memory=memory,
    )


def spread(rows: Tensor, limit: int) -> list[int]:
    """At most so many of the rows, evenly spread.

    >>> spread(torch.arange(10), 4)
    [0, 2, 5, 7]
    """
    n = min(len(rows), limit)
    return rows[torch.arange(n) * len(rows) // max(n, 1)].tolist()


def _count(data: DenseImages, rows: list[int]) -> _Counts:
    k, found, sizes = data.num_classes, [], []
    for start in range(0, len(rows), _BLOCK):
        assert data.masks is not None
        for mask in data.masks.read(rows[start : start + _BLOCK]):
            every = np.bincount(mask.numpy().reshape(-1), minlength=IGNORE + 1)
            found.append(np.append(every[:k], every[IGNORE]))
            sizes.append((int(mask.shape[0]), int(mask.shape[1])))
    return _Counts(rows, np.stack(found) if found else np.zeros((0, k + 1), dtype=np.int64), sizes)


def _lacking(
    data: DenseImages, counts: Mapping[str, _Counts], trained: np.ndarray
) -> dict[str, tuple[str, ...]]:
    """Of each labelled part the classes that no pixel looked at has; of the training part none that was counted has."""
    pixels = {part: one.table[:, :-1].sum(0) for part, one in counts.items() if one.labelled}
    pixels["train"] = trained
    return {
        part: tuple(name for name, count in zip(data.classes.names, own, strict=True) if not count)
        for part, own in pixels.items()
    }


def _objects(data: DenseImages, train: _Counts, shares: Sequence[float]) -> tuple[Objects, ...]:
    """Components of the rarest third of the classes, never of the largest class."""
    assert data.masks is not None
    present = sorted((c for c, share in enumerate(shares) if share > 0), key=lambda c: shares[c])
    found = []
    for label in present[: max(1, min(RAREST, len(present) // 3, len(present) - 1))]:
        holders = torch.tensor(train.rows)[torch.from_numpy(train.table[:, label] > 0)]
        sides: list[tuple[int, int]] = []
        for row in spread(holders, HOLDERS):
            sides += component_sides(np.asarray(data.masks[row]) == label)
        if sides and len(present) > 1:
            heights, widths = zip(*sides)
            found.append(Objects(data.classes.names[label], len(sides), median(heights), median(widths)))
    return tuple(found)


def component_sides(inside: np.ndarray) -> list[tuple[int, int]]:
    """Height and width of every connected component (eight neighbours) of a mask (h, w), specks left out.

    >>> component_sides(np.eye(5, dtype=bool))
    [(5, 5)]
    """
    found: Any = ndimage.label(inside, structure=_TOGETHER)
    numbered = found[0]
    areas = np.bincount(numbered.reshape(-1))[1:]
    boxes: Any = ndimage.find_objects(numbered)
    least = max(4, inside.size // SPECK)
    return [
        (down.stop - down.start, across.stop - across.start)
        for (down, across), area in zip(boxes, areas.tolist(), strict=True)
        if area >= least
    ]


def _colours(data: DenseImages, rows: list[int]) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Share of grey images, and mean and deviation per channel."""
    grey: Counter[bool] = Counter()
    total = squares = torch.zeros(1, dtype=torch.float64)
    count = 0
    for row in rows:
        image = data.pixels[row]
        grey[len(image) == 1 or bool((image == image[:1]).all())] += 1
        values = image.flatten(1).double() / (255 if image.dtype == torch.uint8 else 1)
        total, squares = total + values.sum(1), squares + values.square().sum(1)
        count += values.shape[1]
    mean = total / max(count, 1)
    std = (squares / max(count, 1) - mean.square()).clamp(min=0).sqrt().clamp(min=0.01)
    return grey[True] / max(len(rows), 1), _rounded(mean), _rounded(std)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values.tolist())
