"""What the rules for images look at, measured once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from leanlabel.data.images import Images, PixelArray
from leanlabel.data.splits import PARTS
from leanlabel.methods.image import training_rows

SplitState = Literal["none", "incomplete", "unsound", "sound"]
Triple = tuple[float, float, float]

LOOKED_AT = 512
"""Images, evenly spread, whose pixels and sizes stand for all."""
_BLOCK = 64


@dataclass(frozen=True)
class ImageFacts:
    """Numbers about a set of images.

    Args:
        images: N.
        trained: images trained on: all but those of a published test part.
        side: median of the shorter sides, in pixels.
        smallest: smallest of the shorter sides looked at.
        largest: largest of the longer sides looked at.
        one_size: whether all images have the same size.
        in_memory: whether reading keeps the pixels in memory.
        classes: labelled images per class, classes without any left out.
        crowding: chance that two labelled images trained on are of one class, sum_c p_c^2; 1 without labels.
        domains: domains named by the source; 1 where it names none.
        grey: share of the images looked at whose three channels are the same, in [0, 1].
        mean: per channel, of values in [0, 1].
        std: per channel, > 0.
        unreadable: files left out because they cannot be read.
        split: of the source: none; incomplete: train, val or test has no labelled image; unsound: an image is in two
            parts; sound.
        gpu: whether this machine has one.
    """

    images: int
    trained: int
    side: int
    smallest: int
    largest: int
    one_size: bool
    in_memory: bool
    classes: tuple[int, ...]
    crowding: float
    domains: int
    grey: float
    mean: Triple
    std: Triple
    unreadable: int
    split: SplitState
    gpu: bool

    @property
    def labelled(self) -> int:
        """Images with a label."""
        return sum(self.classes)

    @property
    def even_classes(self) -> float:
        """As many classes of one size would crowd the data as much: 1 / sum_c p_c^2."""
        return 1 / self.crowding


def measure(images: Images, *, gpu: bool) -> ImageFacts:
    """Measure a set of images; at most :data:`LOOKED_AT` of them are decoded.

    Args:
        images: at least one.
        gpu: see :class:`ImageFacts`.

    Raises:
        InputError: an image cannot be read.
    """
    some = (torch.arange(min(len(images), LOOKED_AT)) * len(images) // min(len(images), LOOKED_AT)).tolist()
    sides: list[tuple[int, int]] = []
    grey, count = 0, 0
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(some), _BLOCK):
        for pixels in images.read(some[start : start + _BLOCK]):
            sides.append((pixels.shape[1], pixels.shape[2]))
            grey += bool((pixels == pixels[:1]).all())
            values = pixels.reshape(3, -1).double() / 255
            total, squares = total + values.sum(1), squares + values.square().sum(1)
            count += values.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=0.01)
    pool = training_rows(images)
    shorter = sorted(min(size) for size in sides)
    return ImageFacts(
        images=len(images),
        trained=len(pool),
        side=shorter[len(shorter) // 2],
        smallest=shorter[0],
        largest=max(max(size) for size in sides),
        one_size=images.shape is not None,
        in_memory=isinstance(images.pixels, PixelArray),
        classes=tuple(count for count in _counts(images.y).tolist() if count),
        crowding=_crowding(None if images.y is None else images.y[pool]),
        domains=1 if images.domain is None else len(images.domain.unique()),
        grey=grey / len(sides),
        mean=_triple(mean),
        std=_triple(std),
        unreadable=int(images.facts.get("unreadable_skipped", 0)),
        split=_split_state(images),
        gpu=gpu,
    )


def _counts(y: Tensor | None) -> Tensor:
    return torch.zeros(0, dtype=torch.int64) if y is None else torch.bincount(y[y >= 0])


def _crowding(y: Tensor | None) -> float:
    counts = _counts(y).double()
    shares = counts / counts.sum().clamp(min=1)
    return float(shares.square().sum()) or 1.0


def _split_state(images: Images) -> SplitState:
    parts = [images.splits.get(part, torch.zeros(0, dtype=torch.int64)) for part in PARTS]
    if not images.splits:
        return "none"
    known = torch.zeros(len(images), dtype=torch.bool)
    known[images.labelled] = True
    if any(not bool(known[part].any()) for part in parts):
        return "incomplete"
    rows = torch.cat(parts)
    return "sound" if len(rows.unique()) == len(rows) else "unsound"


def _triple(values: Tensor) -> Triple:
    first, second, third = (round(value, 4) for value in values.tolist())
    return first, second, third
