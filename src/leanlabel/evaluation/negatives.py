"""How hard the negatives of a contrast are, and how many of them are false: keys of the query's own class.

All of it reads a trained or training encoder and a queue (or batch) without changing either, block by block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from leanlabel.losses.contrastive import contrast
from leanlabel.losses.mixing import MixingDraws, hardest
from leanlabel.losses.relations import KeepRule

ENOUGH = 4.0
"""N C / K from which mixing has been seen to work; below it the hardest keys are mostly of the query's own class."""


class ProxyAccuracy(NamedTuple):
    """Share of queries whose positive is more similar than every negative, each in [0, 1]."""

    plain: float
    """Against the keys."""
    mixed: float
    """Against the keys and the extra logits; equal to `plain` without any."""


class FalseNegatives(NamedTuple):
    """What to expect of the hardest keys where all classes are equally frequent."""

    same_class: float
    """K / C, keys of a query's own class."""
    ratio: float
    """N C / K, how many keys are ranked for each of them."""
    enough: bool
    """Whether the ratio reaches :data:`ENOUGH`."""


class SyntheticFalseNegatives(NamedTuple):
    """Share of synthetic points made of negatives of the query's own class, each in [0, 1]."""

    one: float
    """Of at least one."""
    two: float
    """Of two (type 1 only, which is made of two)."""


@torch.no_grad()
def hardness_curve(
    query: Tensor,
    keys: Tensor,
    own: Tensor,
    *,
    tau: float,
    top: int = 1024,
    keep: KeepRule | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Mean probability of the hardest negative, of the second hardest, and so on.

    p_ij = e^{q_i.n_j/tau} / ( e^{q_i.k_i/tau} + sum_l e^{q_i.n_l/tau} ), sorted per query, then averaged
    [Kalantidis et al. 2020, figure of the hardest negatives]

    Args:
        query: (N, D), N >= 1, unit rows.
        keys: (K, D), unit rows, the negatives.
        own: (N, D), each query's positive.
        tau: temperature, > 0, dimensionless.
        top: length of the curve, >= 1; K where K is smaller.
        keep: keys that count as negatives, as in `contrast`; a query with fewer of them adds 0 beyond.
        chunk: keys ranked at a time; None chooses.

    Returns:
        (min(top, K),) float64, descending, in [0, 1].

    Raises:
        ValueError: no queries, or shapes that do not fit.

    Example:
        >>> curve = hardness_curve(torch.eye(2), torch.eye(2), torch.eye(2), tau=0.5)
        >>> [round(float(value), 4) for value in curve]
        [0.4683, 0.0634]
    """
    _some(query)
    found = hardest(query, keys, top, keep=keep, chunk=chunk)
    loss = contrast(query, keys, tau=tau, own=own, keep=keep, reduction="none")
    total = loss + (query.to(loss) * own.to(loss)).sum(1) / tau
    return (found.similarity / tau - total[:, None]).exp().double().mean(0)


@torch.no_grad()
def proxy_accuracy(
    query: Tensor,
    keys: Tensor,
    own: Tensor,
    *,
    tau: float = 1.0,
    extra: Tensor | None = None,
    keep: KeepRule | None = None,
    chunk: int | None = None,
) -> ProxyAccuracy:
    """Score the task that a contrast trains on: is the positive above all negatives? A tie counts as no.

    Args:
        query: (N, D), N >= 1.
        keys: (K, D), the negatives; without any every query is right.
        own: (N, D), each query's positive.
        tau: temperature by which `extra` has been divided, > 0.
        extra: (N, E) logits of synthetic negatives as `mixed_logits` returns them; -inf means absent.
        keep: keys that count as negatives, as in `contrast`.
        chunk: keys looked at at a time; None chooses.

    Raises:
        ValueError: no queries, tau <= 0 or shapes that do not fit.

    Example:
        >>> query, own = torch.eye(2), torch.tensor([[0.9, 0.1], [0.5, 0.5]])
        >>> proxy_accuracy(query, torch.tensor([[0.0, 0.7]]), own)
        ProxyAccuracy(plain=0.5, mixed=0.5)
    """
    _some(query)
    if not tau > 0:
        raise ValueError(f"tau must be positive, got {tau}")
    if own.shape != query.shape:
        raise ValueError(f"own must have the shape of query {tuple(query.shape)}, got {tuple(own.shape)}")
    if extra is not None and (extra.ndim != 2 or len(extra) != len(query)):
        raise ValueError(f"extra must be ({len(query)}, E), got {tuple(extra.shape)}")
    similarity = hardest(query, keys, 1, keep=keep, chunk=chunk).similarity
    logit = (query.to(similarity) * own.to(similarity)).sum(1)
    plain = (logit[:, None] > similarity).all(1)
    mixed = plain if extra is None else plain & (logit[:, None] / tau > extra).all(1)
    return ProxyAccuracy(float(plain.double().mean()), float(mixed.double().mean()))


def false_negative_share(labels: Tensor, key_labels: Tensor, index: Tensor) -> float | None:
    """Share of the given keys that are of their query's class, over all pairs whose two labels are known.

    Args:
        labels: (N,) int64 classes of the queries; negative ones (-100) are unknown.
        key_labels: (K,) int64 classes of the keys; negative ones are unknown.
        index: (N, n) int64, which keys, as in `hardest(...).index`; negative ones are left out.

    Returns:
        In [0, 1]; None where no pair is known.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> labels, key_labels = torch.tensor([0, 1]), torch.tensor([0, 1, -100])
        >>> false_negative_share(labels, key_labels, torch.tensor([[0, 1], [0, 2]]))
        0.3333333333333333
    """
    same, known = _same_class(labels, key_labels, index)
    count = int(known.sum())
    return int(same.sum()) / count if count else None


def expected_false_negatives(classes: int, n: int, k: int) -> FalseNegatives:
    """Estimate, before any training, whether the hardest keys leave room for true negatives.

    Of K keys in C equally frequent classes K / C are of the query's own class, and a good encoder ranks those first:
    of the N hardest, 1 / (N C / K) or more are false. Mixing them makes more false negatives. The paper works at
    N C / K from 2 to 16.

    Args:
        classes: C, number of classes that a user would tell apart, >= 1.
        n: N, keys ranked, >= 1.
        k: K, keys in all, >= 1.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> expected_false_negatives(classes=100, n=1024, k=16384)
        FalseNegatives(same_class=163.84, ratio=6.25, enough=True)
        >>> expected_false_negatives(classes=10, n=64, k=512).enough
        False
    """
    if min(classes, n, k) < 1:
        raise ValueError(f"classes, n and k must be at least 1, got {classes}, {n} and {k}")
    ratio = n * classes / k
    return FalseNegatives(k / classes, ratio, ratio >= ENOUGH)


def synthetic_false_negatives(
    draws: MixingDraws, labels: Tensor, key_labels: Tensor, index: Tensor
) -> SyntheticFalseNegatives | None:
    """Share of synthetic points made of at least one, and of two, negatives of the query's class.

    Args:
        draws: what was mixed, from `draw_mixing`.
        labels: (N,) int64 classes of the queries; negative ones (-100) are unknown.
        key_labels: (K,) int64 classes of the keys; negative ones are unknown.
        index: (N, n) int64, the ranked keys that the draws point into, as in `hardest(...).index`; negative where a
            query has fewer.

    Returns:
        Over the points of both types whose ingredients are all of known class; None where there are none.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> pair, none = torch.tensor([[0]]), torch.empty(1, 0)
        >>> draws = MixingDraws(pair, pair + 1, none, pair, none)
        >>> synthetic_false_negatives(draws, torch.tensor([5]), torch.tensor([5, 6]), torch.tensor([[0, 1]]))
        SyntheticFalseNegatives(one=1.0, two=0.0)
    """
    if any(len(places) != len(index) for places in (draws.first, draws.second, draws.partner)):
        raise ValueError(
            f"draws are for {len(draws.first)} queries, but index is {tuple(index.shape)}: one row each is needed"
        )
    same, known = _same_class(labels, key_labels, index)
    if index.shape[1] == 0:
        return None
    both = known.gather(1, draws.first) & known.gather(1, draws.second)
    first, second = (same.gather(1, places) & both for places in (draws.first, draws.second))
    alone = same.gather(1, draws.partner)
    count = int(both.sum()) + int(known.gather(1, draws.partner).sum())
    if count == 0:
        return None
    one, two = int((first | second).sum()) + int(alone.sum()), int((first & second).sum())
    return SyntheticFalseNegatives(one / count, two / count)


def _same_class(labels: Tensor, key_labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """(N, n) bool twice: the key is of the query's class; both labels are known."""
    if labels.ndim != 1 or key_labels.ndim != 1 or index.ndim != 2 or len(index) != len(labels):
        raise ValueError(
            f"labels (N,), key_labels (K,) and index (N, n) do not fit: {tuple(labels.shape)}, "
            f"{tuple(key_labels.shape)} and {tuple(index.shape)}"
        )
    if len(key_labels) == 0:
        nothing = torch.zeros(index.shape, dtype=torch.bool, device=index.device)
        return nothing, nothing
    theirs = key_labels.to(index.device)[index.clamp(min=0)]
    mine = labels.to(index.device)[:, None]
    known = (index >= 0) & (theirs >= 0) & (mine >= 0)
    return known & (theirs == mine), known


def _some(query: Tensor) -> None:
    if len(query) == 0:
        raise ValueError("no queries: the mean over them is not defined")
