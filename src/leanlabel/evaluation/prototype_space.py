"""What class prototypes say about labelled features: how near each class is to its own, and which is nearest.

Features z are divided by their norm; a prototype P_k is a mean of such features and is not. K classes, D channels,
labels at the positions of the features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanlabel import rng
from leanlabel.banks.prototypes import Prototypes, class_sums
from leanlabel.evaluation.projection import principal_components
from leanlabel.evaluation.segmentation import Confusion
from leanlabel.losses.prototype import Similarity, SimilarityMeter, unit

MOST = 60
"""Pixels of a class and domain in a picture."""
DIGITS = 4
"""Decimals of a picture's coordinates, whose unit is the length of a feature."""


@dataclass(frozen=True, eq=False)
class PrototypeScores:
    """How labelled features lie to prototypes.

    Attributes:
        similarity: own z·P_y, other mean of z·P_k over k != y, and gap, over all positions and by class; positions of
            a class without prototype are left out.
        table: (K, K) int64, rows are labels, columns the nearest prototype; a class without one is never nearest.
        accuracy: mean over the labelled classes of the share whose nearest prototype is their own (macro accuracy).
        miou: mean IoU of that classification, over the classes that are labelled or nearest somewhere.

    accuracy and miou are in [0, 1], and NaN without labelled positions or without any prototype.
    """

    similarity: Similarity
    table: Tensor
    accuracy: float
    miou: float


class PrototypeMeter:
    """Scores of prototypes over any number of batches; the sum of all ranks, and all of them call `result`.

    Args:
        values: (K, D) prototypes, on any device; no gradient.
        counts: (K,) what they were made of, such as pixels or images; 0: there is none of this class.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> meter = PrototypeMeter(torch.eye(2), torch.ones(2))
        >>> meter.add(torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]]), torch.tensor([[[0, 0]]]))
        >>> found = meter.result()
        >>> found.accuracy, found.similarity.own, found.similarity.other
        (0.5, 0.5, 0.5)
    """

    def __init__(self, values: Tensor, counts: Tensor) -> None:
        if values.ndim != 2 or counts.shape != values.shape[:1]:
            raise ValueError(
                f"prototypes must be (K, D) with K counts, got {tuple(values.shape)} and {tuple(counts.shape)}"
            )
        classes, width = values.shape
        self.bank = Prototypes(classes, width).to(values.device)
        if values.dtype == torch.float64:
            self.bank.double()
        self.bank.begin(values.detach(), counts.detach())
        self.confusion = Confusion(classes)
        self.similar = SimilarityMeter(classes)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, ignore: int = -100) -> None:
        """Count some labelled features.

        Args:
            features: (B, D, h, w), any length, floating point.
            labels: (B, h, w) int64 classes, or `ignore`.
            ignore: label of the positions to leave out.
        """
        labels = labels.to(features.device).long()
        labels = labels.masked_fill(labels == ignore, -100)
        bank = self.bank.to(features.device)
        features = features.detach().to(torch.promote_types(features.dtype, bank.values.dtype))
        self.similar.add(features, labels, bank.values, bank.known)
        if bool(bank.known.any()):
            self.confusion.add(labels, bank.nearest(features), ignore=-100)

    def result(self) -> PrototypeScores:
        """Scores of all that was added."""
        scores = self.confusion.scores()
        return PrototypeScores(
            self.similar.result(), self.confusion.total(), scores.mean_accuracy, scores.miou
        )


def score_prototypes(
    batches: Iterable[tuple[Tensor, Tensor]], values: Tensor, counts: Tensor, ignore: int = -100
) -> PrototypeScores:
    """Score prototypes on labelled features, one batch after the other.

    Args:
        batches: features (B, D, h, w) and labels (B, h, w) as in :meth:`PrototypeMeter.add`.
        values, counts: as in :class:`PrototypeMeter`.
        ignore: label of the positions to leave out.

    Example:
        >>> one = torch.tensor([[[[1.0, 0.0]], [[1.0, 2.0]]]]), torch.tensor([[[0, 1]]])
        >>> score_prototypes([one], torch.eye(2), torch.ones(2)).table.tolist()
        [[1, 0], [0, 1]]
    """
    meter = PrototypeMeter(values, counts)
    for features, labels in batches:
        meter.add(features, labels, ignore)
    return meter.result()


@torch.no_grad()
def few_shot_prototypes(
    shots: Iterable[tuple[Tensor, Tensor]], classes: int, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    """Make prototypes from a few labelled images: P_k is the mean of z over all their positions of class k.

    Args:
        shots: at least one batch of features (B, D, h, w) and labels (B, h, w).
        classes: K.
        ignore: label of the positions to leave out.

    Returns:
        (K, D) prototypes, float32 or float64, zero for a class that the images lack; (K,) float64 positions.

    Raises:
        ValueError: there is no image.

    Example:
        >>> values, counts = few_shot_prototypes([(torch.tensor([[[[3.0]], [[4.0]]]]), torch.tensor([[[1]]]))], 3)
        >>> [round(one, 3) for one in values[1].tolist()], counts.tolist()
        ([0.6, 0.8], [0.0, 1.0, 0.0])
    """
    total, counts, kind = None, torch.zeros(classes, dtype=torch.float64), torch.float32
    for features, labels in shots:
        own, there = class_sums(features, labels.to(features.device), classes, ignore=ignore)
        kind = own.dtype
        total = own.double().cpu() if total is None else total + own.double().cpu()
        counts += there.cpu()
    if total is None:
        raise ValueError("there is no image to make prototypes from")
    return (total / counts.clamp_min(1)[:, None]).to(kind), counts


def completed(values: Tensor, counts: Tensor, others: Tensor, other_counts: Tensor) -> tuple[Tensor, Tensor]:
    """Take the prototypes of classes that are not there from others.

    Args:
        values, counts: (K, D) and (K,), of few images.
        others, other_counts: likewise, such as those of the source.

    Returns:
        (K, D) and (K,).

    Example:
        >>> values, counts = completed(torch.eye(2), torch.tensor([3, 0]), -torch.eye(2), torch.tensor([5, 5]))
        >>> values.tolist(), counts.tolist()
        ([[1.0, 0.0], [-0.0, -1.0]], [3.0, 5.0])
    """
    own = (counts > 0).to(values.device)
    filled = torch.where(own[:, None], values, others.to(values))
    return filled, torch.where(own, counts.to(own.device).double(), other_counts.to(own.device).double())


class PixelSample:
    """Up to so many labelled features of each class, chosen at random from any number of images.

    Every position has a random number that belongs to the seed, the stream and its image; the smallest are kept. So
    the choice does not depend on batches or their order.

    Args:
        classes: K.
        most: of each class, >= 1.
        seed: of the numbers.
        stream: which images these are, such as "source".

    Example:
        >>> sample = PixelSample(2, most=3)
        >>> sample.add(torch.rand(1, 4, 5, 5), torch.arange(25).view(1, 5, 5) % 2, torch.tensor([7]))
        >>> features, classes = sample.result()
        >>> tuple(features.shape), classes.tolist()
        ((6, 4), [0, 0, 0, 1, 1, 1])
    """

    def __init__(self, classes: int, most: int = MOST, seed: int = 0, stream: str = "") -> None:
        self.classes, self.most, self.seed, self.stream = classes, most, seed, stream
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, ids: Tensor) -> None:
        """Draw from some images.

        Args:
            features: (B, D, h, w).
            labels: (B, h, w) integers; what is no class in [0, K) is left out.
            ids: (B,) numbers of the images, >= 0, each once.
        """
        labels = labels.cpu().long()
        size = (int(labels.shape[1]), int(labels.shape[2]))
        stream = f"prototype pixels {self.stream}"
        numbers = rng.draw(self.seed, stream, 0, ids=ids.cpu()).uniform(size, dtype=torch.float64)
        there = ((labels >= 0) & (labels < self.classes)).flatten().nonzero()[:, 0]
        own, number = labels.flatten()[there], numbers.flatten()[there]
        kept = smallest(own, number, self.most)
        image, place = (
            one.to(features.device)
            for one in (there[kept] // labels[0].numel(), there[kept] % labels[0].numel())
        )
        found = unit(features.detach().flatten(2)[image, :, place].float(), dim=1).cpu()
        parts = (found, own[kept], number[kept])
        if self._kept is not None:
            parts = tuple(torch.cat(pair) for pair in zip(self._kept, parts, strict=True))
        chosen = smallest(parts[1], parts[2], self.most)
        self._kept = (parts[0][chosen], parts[1][chosen], parts[2][chosen])

    def result(self) -> tuple[Tensor, Tensor]:
        """Features (N, D) float32 of length 1 and their classes (N,), by class; (0, 0) before anything was added."""
        if self._kept is None:
            return torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)
        features, classes, numbers = self._kept
        order = numbers.argsort(stable=True)
        order = order[classes[order].argsort(stable=True)]
        return features[order], classes[order]


def smallest(groups: Tensor, numbers: Tensor, most: int) -> Tensor:
    """Choose the rows with the smallest numbers of each group.

    Args:
        groups: (N,) integers.
        numbers: (N,).
        most: of each group.

    Returns:
        (M,) int64, ascending.

    Example:
        >>> smallest(torch.tensor([0, 0, 1, 0]), torch.tensor([0.3, 0.1, 0.9, 0.2]), 2).tolist()
        [1, 2, 3]
    """
    order = numbers.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    _, group, sizes = groups[order].unique(return_inverse=True, return_counts=True)
    place = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[group]
    return order[place < most].sort().values


@torch.no_grad()
def embedding(
    points: Tensor,
    classes: Tensor,
    domains: Tensor,
    values: Tensor,
    counts: Tensor,
    *,
    names: Sequence[str] = ("source", "target"),
    most: int = MOST,
    seed: int = 0,
) -> dict[str, Any]:
    """Lay labelled features of several domains and prototypes out in the plane, as plain data for a picture.

    The plane is that of the first two principal components of all that is shown together. Features are brought to
    length 1; prototypes are shown where they are, inside the ball.

    Args:
        points: (N, D) features.
        classes: (N,) int64, class of each.
        domains: (N,) int64, place of each one's domain in `names`.
        values: (K, D) prototypes.
        counts: (K,) what they were made of; 0: there is none.
        names: of the domains.
        most: points of each class and domain, chosen at random.
        seed: of that choice.

    Returns:
        "points": [[x, y], ...] by the order of the rows; "classes" and "domains": a number for each of them;
        "prototypes": [x, y] for each of K classes, None for one without; "names": of the domains; "explained": shares
        of the variance that lie along x and y, [0, 0] where all points are one.

    Raises:
        ValueError: shapes do not fit, or a point or prototype is not finite.

    Example:
        >>> found = embedding(torch.eye(2), torch.arange(2), torch.zeros(2).long(), torch.eye(2), torch.zeros(2))
        >>> found["points"], found["explained"], found["prototypes"]
        ([[0.7071, 0.0], [-0.7071, 0.0]], [1.0, 0.0], [None, None])
    """
    if points.ndim != 2 or values.ndim != 2 or (len(points) and points.shape[1] != values.shape[1]):
        raise ValueError(
            f"points must be (N, D) and prototypes (K, D), got {tuple(points.shape)} and {tuple(values.shape)}"
        )
    if not classes.shape == domains.shape == points.shape[:1] or counts.shape != values.shape[:1]:
        raise ValueError(
            f"{len(points)} points need classes and domains, {len(values)} prototypes counts; got "
            f"{tuple(classes.shape)}, {tuple(domains.shape)} and {tuple(counts.shape)}"
        )
    classes, domains = classes.detach().cpu().long(), domains.detach().cpu().long()
    numbers = rng.draw(seed, "prototype points", 0, ids=torch.arange(len(points))).uniform(
        dtype=torch.float64
    )
    chosen = smallest(classes * max(1, len(names)) + domains, numbers, most)
    known = (counts > 0).nonzero()[:, 0].cpu()
    shown = [
        unit(points.detach().cpu().double(), dim=1)[chosen] if len(points) else values.new_zeros(0),
        values.detach().cpu().double()[known],
    ]
    every = torch.cat([one for one in shown if len(one)]) if len(chosen) + len(known) else torch.zeros(0, 1)
    if not bool(torch.isfinite(every).all()):
        raise ValueError("a point or a prototype is not finite")
    flat = principal_components(every, 2)[:, :2] if len(every) else torch.zeros(0, 2)
    total = float((every - every.mean(0)).square().sum()) if len(every) else 0.0
    along = flat.square().sum(0).tolist() if total > 0 else [0.0, 0.0]

    places = [[round(one, DIGITS) + 0.0 for one in place] for place in flat.tolist()]
    marks: list[list[float] | None] = [None] * len(values)
    for k, place in zip(known.tolist(), places[len(chosen) :], strict=True):
        marks[k] = place
    return {
        "points": places[: len(chosen)],
        "classes": classes[chosen].tolist(),
        "domains": domains[chosen].tolist(),
        "prototypes": marks,
        "names": list(names),
        "explained": [round(one / total, DIGITS) if total > 0 else 0.0 for one in along],
    }
