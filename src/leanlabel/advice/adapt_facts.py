"""What the rules for two domains look at, measured once: sizes, classes, looks, and whether images belong together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel.advice.segmentation_facts import MEASURED, PICTURES, DenseFacts, _colours, _count, spread
from leanlabel.data.dense import DenseImages
from leanlabel.data.pairs import PairSection, check_pair_sizes, find_pairs
from leanlabel.errors import InputError
from leanlabel.evaluation.domain_gap import (
    blocks,
    proxy_a_distance,
    simple_features,
    style_distance,
    style_statistics,
)
from leanlabel.methods.dense_readouts import parts_of
from leanlabel.methods.segmentation import training_rows

LOOKED_AT = 200
"""Training images of each domain, evenly spread, whose looks stand for all."""
FOLDS = 5
"""Sequences from which on images are told apart by whole sequences; with fewer, by blocks of neighbours."""
COMPARED = 64
"""Pairs of images by name, evenly spread, that are looked at to find out whether they show the same."""
_MAP = 48
"""Side of the maps of edges by which they are compared."""


@dataclass(frozen=True)
class Looks:
    """How two domains look, at the size at which they are read, and how far they are apart.

    Args:
        gap: proxy A-distance, 0: a linear classifier cannot tell them apart, 2: it never errs; None where a domain has
            fewer than two images.
        images: images of source and target that were looked at.
        distances: measure -> difference, target less source, in spreads from image to image; empty where no spread is
            known. Measures are those of :class:`leanlabel.evaluation.domain_gap.Style`.
        source: measure -> its mean over images.
        target: likewise.
    """

    gap: float | None
    images: tuple[int, int]
    distances: Mapping[str, float]
    source: Mapping[str, float]
    target: Mapping[str, float]

    @property
    def brightness(self) -> float:
        """Difference of the brightness, mean over channels, in spreads."""
        return float(np.mean(self._channels)) if self._channels else 0.0

    @property
    def balance(self) -> float:
        """Largest difference of a channel's brightness from that of all, in spreads: a cast of colour."""
        return max((abs(one - self.brightness) for one in self._channels), default=0.0)

    @property
    def contrast(self) -> float:
        """Difference of the contrast in spreads."""
        return self.distances.get("contrast", 0.0)

    @property
    def saturation(self) -> float:
        """Difference of the saturation in spreads."""
        return self.distances.get("saturation", 0.0)

    @property
    def sharpness(self) -> float:
        """Difference of the sharpness in spreads."""
        return self.distances.get("sharpness", 0.0)

    @property
    def noise(self) -> float:
        """Difference of the noise in spreads."""
        return self.distances.get("noise", 0.0)

    @property
    def colours(self) -> float:
        """Largest of the differences that changes of colour can bridge, in spreads."""
        return max(map(abs, (self.brightness, self.contrast, self.saturation, self.balance)))

    @property
    def largest(self) -> float:
        """Largest difference of all, in spreads."""
        return max(self.colours, abs(self.sharpness), abs(self.noise))

    def ratio(self, name: str) -> float:
        """Target's mean of a measure over the source's; "mean" is the brightness over all channels."""
        own, other = (
            [value for key, value in side.items() if key == name or key.startswith(f"{name} ")]
            for side in (self.source, self.target)
        )
        return sum(other) / max(sum(own), 1e-6)

    @property
    def _channels(self) -> list[float]:
        return [value for key, value in self.distances.items() if key.startswith("mean ")]


@dataclass(frozen=True)
class Partners:
    """Images of source and target that have one name.

    Args:
        share: of the target's training images that have a namesake in the source.
        alike: share of comparisons in which an image is more like its namesake than like the namesake of another, by
            where edges are; 0.5 is chance. 0 where there are fewer than four pairs.
        one_size: whether the images of each pair have the same size.
    """

    share: float
    alike: float
    one_size: bool


@dataclass(frozen=True)
class AdaptFacts:
    """Two domains, at the size at which they are read.

    Args:
        source: labelled images.
        target: images of the other domain; shares, lacking and present are of its held-out labelled parts alone.
        looks: how far they are apart.
        partners: whether images belong together.
        hidden: masks of target training images that are there and stay unread.
    """

    source: DenseFacts
    target: DenseFacts
    looks: Looks
    partners: Partners
    hidden: int = 0

    @property
    def gpu(self) -> bool:
        """Whether this machine has one."""
        return self.source.gpu

    @property
    def trained(self) -> int:
        """Training images of the larger domain."""
        return max(self.source.trained, self.target.trained)

    @property
    def measured(self) -> list[str]:
        """Held-out parts of the target that have labels."""
        return list(self.target.lacking)

    @property
    def same_channels(self) -> bool:
        """Whether images of both can be trained on together."""
        return self.source.channels == self.target.channels


def target_facts(data: DenseImages, source: DenseFacts) -> DenseFacts:
    """Measure the target; of masks, only those of held-out parts are read.

    Args:
        data: the target; masks of its training part are hidden, or there are none.
        source: facts of the source, whose classes count.

    Raises:
        InputError: a file cannot be read.
    """
    pool = training_rows(data)
    rows = {"train": spread(pool, PICTURES)}
    rows |= {part: spread(data.splits[part], MEASURED) for part in parts_of(data)}
    looked = [row for one in rows.values() for row in (one if data.shape is None else one[:1])]
    sizes = [(int(image.shape[1]), int(image.shape[2])) for image in _images(data, looked)]
    pixels = np.zeros(len(source.names))
    lacking: dict[str, tuple[str, ...]] = {}
    if data.masks is not None:
        for part in parts_of(data):
            own = _count(data, rows[part]).table[:, :-1].sum(0)
            if own.any():
                pixels += own
                lacking[part] = tuple(name for name, n in zip(source.names, own, strict=True) if not n)
    grey, mean, std = _colours(data, rows["train"])
    first = data.pixels[int(pool[0])] if len(pool) else torch.zeros(len(mean), 1, 1, dtype=torch.uint8)
    return replace(
        source,
        images=len(data),
        trained=len(pool),
        parts={"train": len(pool)} | {part: len(data.splits[part]) for part in parts_of(data)},
        height=round(median(size[0] for size in sizes)),
        width=round(median(size[1] for size in sizes)),
        smallest=min(map(min, sizes)),
        largest=max(map(max, sizes)),
        one_size=data.shape is not None,
        channels=len(first),
        value_bytes=first.element_size(),
        shares=tuple((pixels / max(pixels.sum(), 1)).tolist()),
        image_shares=(0.0,) * len(source.names),
        unlabelled=0.0,
        lacking=lacking,
        looked_at={part: len(one) for part, one in rows.items()},
        objects=(),
        sequences=0 if data.groups is None else len(data.groups.unique()),
        cut=data.facts.get("val_by") if "val_cut_from_train" in data.facts else None,
        grey=grey,
        mean=mean,
        std=std,
        unreadable=int(data.facts.get("unreadable_skipped", 0)),
    )


def compare_looks(
    source: DenseImages, target: DenseImages, sides: tuple[int | None, int | None] = (None, None)
) -> Looks:
    """Measure how far the training images of two domains are apart; no label is read.

    Args:
        source, target: images. Those of different channels are compared by their mean over channels.
        sides: shorter side to which images of each are scaled down before; None: as they are.

    Raises:
        InputError: a file cannot be read.
    """
    rows = [spread(training_rows(data), LOOKED_AT) for data in (source, target)]
    grey = len({len(data.pixels[own[0]]) for data, own in zip((source, target), rows, strict=True)}) > 1

    def images(which: int) -> Iterator[Tensor]:
        for image in _images((source, target)[which], rows[which], sides[which]):
            yield image.float().mean(0, keepdim=True) / _white(image) if grey else image

    features = [simple_features(images(which)) for which in (0, 1)]
    styles = [style_statistics(images(which)) for which in (0, 1)]
    enough = min(map(len, features)) >= 2
    distances = style_distance(*styles)
    together = _taken_together(source, rows[0]), _taken_together(target, rows[1])
    return Looks(
        gap=proxy_a_distance(*features, seed=0, groups=together) if enough else None,
        images=(len(rows[0]), len(rows[1])),
        distances={} if any(map(math.isnan, distances.values())) else distances,
        source=styles[0].measures(),
        target=styles[1].measures(),
    )


def _taken_together(data: DenseImages, rows: list[int]) -> Tensor:
    """Groups of images that may be near copies: sequences, or neighbours in the order of the set."""
    if data.groups is not None:
        found = data.groups[rows]
        if len(found.unique()) >= FOLDS:
            return found
    return blocks(len(rows), FOLDS)


def compare_names(source: DenseImages, target: DenseImages) -> Partners:
    """Find out whether target training images have namesakes in the source that show the same scene.

    Equal names alone say little, as many sets count from 0. So maps of edges are compared, which hardly depend on
    colours or on the kind of sensor: those of an image and its namesake, and of that image and other namesakes.

    Raises:
        InputError: a file cannot be read.
    """
    rows = training_rows(target)
    if source.ids is None or target.ids is None or not len(rows):
        return Partners(0.0, 0.0, False)
    try:
        pairs = find_pairs(source, target, PairSection(by="name"), rows)
    except InputError:  # none
        return Partners(0.0, 0.0, False)
    try:
        check_pair_sizes(source, target, pairs)
        one_size = True
    except InputError:
        one_size = False
    some = spread(pairs.rows, COMPARED)
    partners = [pairs.candidates[row][0] for row in some]
    alike = 0.0
    if len(set(partners)) >= 4:
        alike = likeness(edges(_images(source, partners)), edges(_images(target, some)))
    return Partners(len(pairs) / len(rows), alike, one_size)


def edges(images: Iterator[Tensor] | list[Tensor]) -> Tensor:
    """Where the edges of images are: sizes of gradients on a coarse grid.

    Args:
        images: n images (C, h, w), uint8 or floating point in [0, 1].

    Returns:
        (n, D) float32, rows of mean 0 and length 1, or 0 where an image has no edge.
    """
    found = []
    for image in images:
        plain = image.float().mean(0)[None, None] / _white(image)
        # Padding with the border's own values: a frame around all images would make all alike.
        wide = F.pad(plain, (1, 1, 1, 1), mode="replicate")
        across = wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]
        down = wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]
        coarse = F.adaptive_avg_pool2d((across.square() + down.square()).sqrt(), _MAP).flatten()
        found.append(coarse - coarse.mean())
    return F.normalize(torch.stack(found), dim=1)


def likeness(source: Tensor, target: Tensor) -> float:
    """Share of comparisons in which a row is more like its partner than like another row's.

    Args:
        source: (n, D) unit rows, n >= 2.
        target: (n, D) unit rows; row k belongs to row k of the source.

    Returns:
        In [0, 1]; 0.5 is chance, ties count half.

    Example:
        >>> likeness(torch.eye(3), torch.eye(3)), likeness(torch.ones(3, 2), torch.ones(3, 2))
        (1.0, 0.5)
    """
    products = target @ source.T
    own = products.diagonal()[:, None]
    won = (own > products).double() + 0.5 * (own == products).double()
    other = ~torch.eye(len(source), dtype=torch.bool)
    return float(won[other].mean())


def _images(data: DenseImages, rows: list[int], side: int | None = None) -> Iterator[Tensor]:
    """Images one by one, the shorter side scaled down to so many pixels."""
    for row in rows:
        image = data.pixels[row]
        short = min(image.shape[1:])
        if side is not None and side < short:
            size = [max(1, round(one * side / short)) for one in image.shape[1:]]
            small = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
            image = small.round().to(torch.uint8) if image.dtype == torch.uint8 else small.clamp(0, 1)
        yield image


def _white(image: Tensor) -> float:
    return 255.0 if image.dtype == torch.uint8 else 1.0
