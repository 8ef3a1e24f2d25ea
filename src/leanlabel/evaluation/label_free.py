"""Scores of a model that need no label: to choose between settings where nobody has labelled anything.

None of them is accuracy. Each rewards something that good models tend to have, and each can be fooled: the entropy of
predictions by a model that always says the same class, the density of neighbourhoods by one that maps everything to
one point, the effective rank by noise. Read several, and hold them against the untrained model.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from leanlabel.evaluation.collapse import effective_rank
from leanlabel.losses.contrastive import unit

DIRECTION: dict[str, Literal["higher", "lower"]] = {
    "effective_rank": "higher",
    "neighbourhood_density": "higher",
    "entropy": "lower",
    "mutual_information": "higher",
    "teacher_agreement": "higher",
}
"""Score -> which way is better where it chooses between models of the same data."""

LIMIT = 4096
"""Rows that the neighbourhood density reads: its time grows with their square."""
# Softmax outputs in bfloat16 sum to one within a few thousandths.
_SUM_TOLERANCE = 1e-2


@torch.no_grad()
def prediction_entropy(probabilities: Tensor) -> float:
    """Measure how undecided predictions are, on average; lower is more decided.

    H = -1/N sum_i sum_c p_ic log p_ic, in nats, with 0 log 0 = 0   [Shannon 1948]

    Args:
        probabilities: (N, C), N, C >= 1, in [0, 1], rows that sum to one; no gradient.

    Returns:
        In [0, log C].

    Raises:
        ValueError: not (N, C), no rows, or rows that are no distributions.

    Example:
        >>> round(prediction_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])), 6)
        0.346574
    """
    return float(_entropy(_distributions(probabilities)).mean())


@torch.no_grad()
def mutual_information(probabilities: Tensor) -> float:
    """Measure what a prediction tells about its row: decided on each row, and spread over the classes.

    I = H(mean_i p_i) - mean_i H(p_i), in nats   [information maximisation: Bridle, Heading and MacKay 1991; Krause,
    Perona and Gomes 2010]

    Unlike the entropy of predictions it is 0, not best, for a model that always says the same class.

    Args:
        probabilities: as in :func:`prediction_entropy`.

    Returns:
        In [0, log C]; 0 for one row.

    Raises:
        ValueError: as in :func:`prediction_entropy`.

    Example:
        >>> round(mutual_information(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), 6)
        0.693147
    """
    rows = _distributions(probabilities)
    return max(0.0, float(_entropy(rows.mean(0)) - _entropy(rows).mean()))


@torch.no_grad()
def neighbourhood_density(
    rows: Tensor, tau: float = 0.05, *, chunk: int = 1024, limit: int | None = LIMIT
) -> float:
    """Measure how many near neighbours a row has: the entropy of its soft neighbourhood; higher is denser.

    P_ij = e^{u_i.u_j/tau} / sum_{k != i} e^{u_i.u_k/tau} for j != i,  u_i = rows_i / ||rows_i||
    SND = -1/N sum_i sum_{j != i} P_ij log P_ij   [soft neighbourhood density: Saito et al., ICCV 2021]

    The paper reads it on the softmax outputs of a classifier, tau = 0.05; any rows will do. Its code gives a row the
    similarity -1 to itself, the paper leaves the row out, and so does this. The value grows with the logarithm of the
    number of rows: compare models on the same rows only. Rows that are all alike have the highest value there is.

    Args:
        rows: (N, D), N, D >= 1, finite; a zero row is orthogonal to every row. No gradient.
        tau: temperature, > 0, dimensionless.
        chunk: rows of the similarity matrix computed at a time; memory is O(chunk N + N D).
        limit: most rows read, evenly spaced, >= 2; None reads all.

    Returns:
        In [0, log(N - 1)] with the N rows that were read; 0 for one or two rows.

    Raises:
        ValueError: not (N, D), no rows, not finite, or tau, chunk or limit out of range.

    Example:
        >>> pairs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(neighbourhood_density(pairs), 6)  # one neighbour each
        0.0
        >>> round(neighbourhood_density(torch.ones(4, 2)), 6)  # three each: log 3
        1.098612
    """
    if tau <= 0 or chunk < 1 or (limit is not None and limit < 2):
        raise ValueError(
            f"tau and chunk must be positive and limit at least 2, got {tau}, {chunk} and {limit}"
        )
    rows = _checked(rows, "rows")
    if limit is not None and len(rows) > limit:
        rows = rows[torch.arange(limit, device=rows.device) * len(rows) // limit]
    units = unit(rows)
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    for start in range(0, len(units) if len(units) > 2 else 0, chunk):
        logits = units[start : start + chunk] @ units.mT / tau
        own = torch.arange(len(logits), device=rows.device)
        logits[own, own + start] = -torch.inf
        log_share = logits.log_softmax(1)
        share = log_share.exp()
        # A row's own share is 0, and 0 times -inf must stay 0.
        log_share[own, own + start] = 0.0
        total -= (share * log_share).sum(dtype=torch.float64)
    return max(0.0, float(total) / len(units))


@torch.no_grad()
def teacher_agreement(student: Tensor, teacher: Tensor, *, probabilities: bool = False) -> float:
    """Measure how far a student says what its teacher (its moving average, say) says.

    embeddings: 1/N sum_i cos(s_i, t_i); probabilities: 1/N sum_i 1[argmax_c s_ic = argmax_c t_ic]

    Args:
        student: (N, D), N, D >= 1, finite; no gradient.
        teacher: (N, D), row i from the same sample.
        probabilities: the rows are predictions over D classes (probabilities or logits). The first of equal
            maxima counts.

    Returns:
        Cosine in [-1, 1], a zero row counting 0; or a share in [0, 1].

    Raises:
        ValueError: shapes differ, no rows, or not finite.

    Example:
        >>> teacher_agreement(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        0.5
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher differ in shape: {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    first, second = _checked(student, "student"), _checked(teacher, "teacher").to(student.device)
    if probabilities:
        return float((first.argmax(1) == second.argmax(1)).double().mean())
    cosine = (unit(first.double()) * unit(second.double())).sum(1)
    return min(1.0, max(-1.0, float(cosine.mean())))


@torch.no_grad()
def label_free_scores(
    z: Tensor, probabilities: Tensor | None = None, teacher: Tensor | None = None
) -> dict[str, float]:
    """All scores that can be had without labels, by name; :data:`DIRECTION` says which way each is better.

    Args:
        z: (N, d) embeddings, N >= 1, finite.
        probabilities: (N, C) predictions of the same rows, where there is a classifier.
        teacher: what the teacher makes of the same rows: its probabilities where `probabilities` are given, else
            its embeddings.

    Returns:
        effective_rank of z; neighbourhood_density, of the probabilities where they are given as in its paper, else
        of z; with probabilities entropy and mutual_information; with a teacher teacher_agreement.

    Raises:
        ValueError: shapes do not fit, no rows, not finite, or probabilities that are no distributions.

    Example:
        >>> sorted(label_free_scores(torch.eye(3)))
        ['effective_rank', 'neighbourhood_density']
    """
    said = z if probabilities is None else probabilities
    if z.ndim != 2 or said.ndim != 2 or len(said) != len(z):
        raise ValueError(f"z and probabilities need the same rows: {tuple(z.shape)} and {tuple(said.shape)}")
    scores = {"effective_rank": effective_rank(z), "neighbourhood_density": neighbourhood_density(said)}
    if probabilities is not None:
        scores["entropy"] = prediction_entropy(probabilities)
        scores["mutual_information"] = mutual_information(probabilities)
    if teacher is not None:
        scores["teacher_agreement"] = teacher_agreement(
            said, teacher, probabilities=probabilities is not None
        )
    return scores


def _entropy(rows: Tensor) -> Tensor:
    return torch.special.entr(rows).sum(-1)


def _checked(rows: Tensor, name: str) -> Tensor:
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 1:
        raise ValueError(f"{name} must be (N, D) with N, D >= 1, got {tuple(rows.shape)}")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{name} hold {int((~torch.isfinite(rows)).sum())} values that are not finite")
    return rows.detach()


def _distributions(probabilities: Tensor) -> Tensor:
    rows = _checked(probabilities, "probabilities").double()
    if float(rows.min()) < 0 or float((rows.sum(1) - 1).abs().max()) > _SUM_TOLERANCE:
        low, sums = float(rows.min()), rows.sum(1).aminmax()
        raise ValueError(
            f"probabilities {tuple(rows.shape)} must be >= 0 with rows that sum to 1; the smallest is {low:.4g}, "
            f"sums lie in [{float(sums.min):.4g}, {float(sums.max):.4g}]"
        )
    return rows
