"""Label-free signs of collapse in a set of embeddings: rank, dead units, crowding, spread."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows per block of the streamed sums: a block of squared distances takes 16 MB in float32.
CHUNK = 2048


@torch.no_grad()
def effective_rank(z: Tensor, *, centre: bool = True) -> float:
    """Count the directions in which embeddings effectively vary.

    erank = exp(-sum_k p_k log p_k), p_k = sigma_k / sum_j sigma_j   [Roy and Vetterli 2007, eqs. 1-3]

    with the singular values sigma of z, or of z minus its column means. They are taken as square roots of the
    eigenvalues of the smaller of z^T z and z z^T, in float64; eigenvalues below rounding count as zero.

    Args:
        z: (N, d), finite; no gradient.
        centre: subtract the mean row first, so that a constant offset is no direction.

    Returns:
        Between 1 and min(N, d), or 0 where nothing varies (every sigma is 0).

    Raises:
        ValueError: z is not (N, d) with N, d >= 1, or not finite.

    Example:
        >>> round(effective_rank(torch.eye(4), centre=False), 6)
        4.0
    """
    rows = _rows(z, 1).double()
    # Sigma and erank scale out; a largest entry of 1 keeps the squares in range.
    rows = rows / rows.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    if centre:
        rows = rows - rows.mean(0)
        rows[:, rows.abs().amax(0) < 1e-15 * len(rows)] = 0.0
    gram = rows.mT @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.mT
    power = torch.linalg.eigvalsh(gram)
    floor = power.max() * torch.finfo(torch.float64).eps * max(rows.shape)
    sigma = power[power > floor].clamp(min=0).sqrt()
    if len(sigma) == 0 or float(sigma.sum()) == 0:
        return 0.0
    share = sigma / sigma.sum()
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def dead_units(z: Tensor, *, tolerance: float = 0.0) -> float:
    """Share of columns that are the same for all rows, zero or not: max_i z_ik - min_i z_ik <= tolerance.

    Args:
        z: (N, d), finite. With N = 1 every column is constant.
        tolerance: largest spread that counts as none, in the unit of z, >= 0.

    Returns:
        In [0, 1].

    Raises:
        ValueError: z is not (N, d) with N, d >= 1, or not finite.

    Example:
        >>> dead_units(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
        0.5
    """
    low, high = _rows(z, 1).aminmax(dim=0)
    return float((high - low <= tolerance).double().mean())


@torch.no_grad()
def mean_pairwise_cosine(z: Tensor) -> float:
    """Mean cosine over all pairs of different rows, without forming the pairs.

    mean_{i != j} u_i . u_j = (||sum_i u_i||^2 - sum_i ||u_i||^2) / (N (N - 1)),  u_i = z_i / ||z_i||

    Args:
        z: (N, d), N >= 2, finite. A zero row has cosine 0 with every row.

    Returns:
        In [-1/(N - 1), 1]; near 1 when all rows point the same way.

    Raises:
        ValueError: fewer than two rows, or z not finite.

    Example:
        >>> mean_pairwise_cosine(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        0.0
    """
    unit = directions(_rows(z, 2).double())
    count = len(unit)
    value = (unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1))
    # Rounding must not leave the range in which cosines lie.
    return min(1.0, max(-1.0, float(value)))


@torch.no_grad()
def alignment(first: Tensor, second: Tensor, *, alpha: float = 2.0) -> float:
    """Mean distance between the directions of two views of the same samples, to a power.

    mean_i ||u_i - v_i||^alpha, u = first / ||first||, v = second / ||second||   [Wang and Isola 2020]

    Args:
        first, second: (N, d), N >= 1, row i of both from the same sample; finite.
        alpha: power, > 0, dimensionless; 2 for squared distances.

    Returns:
        In [0, 2^alpha]; 0 when both views agree.

    Raises:
        ValueError: shapes differ, no rows, not finite, or alpha not positive.

    Example:
        >>> alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[-2.0, 0.0]]), alpha=3.0)
        8.0
    """
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if first.shape != second.shape:
        raise ValueError(f"the views differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
    gap = directions(_rows(first, 1).double()) - directions(_rows(second, 1).double())
    # Of the square, since the square root of a square would round what alpha = 2 needs exactly.
    return float(gap.square().sum(1).pow(alpha / 2).mean())


@torch.no_grad()
def same_class_alignment(z: Tensor, y: Tensor, *, ignore: int = -100, chunk: int = CHUNK) -> float:
    """Mean squared distance between the directions of two rows of one class, over all such pairs.

    sum over classes of (M sum_i ||u_i||^2 - ||sum_i u_i||^2) / sum over classes of M (M - 1) / 2, with the M rows
    u_i = z_i / ||z_i|| of a class; for unit rows of one class 2 - 2 (||sum_i u_i||^2 - M) / (M (M - 1))
    [Wang and Isola 2020, alpha = 2, pairs as in Kalantidis et al. 2020]. No pair is formed: time and memory are
    O(N d).

    Args:
        z: (N, d), finite. A row of norm 0 stays 0.
        y: (N,) integer classes, any values; rows labelled `ignore` are left out.
        ignore: label of the rows to leave out.
        chunk: rows per block that is brought to float64.

    Returns:
        In [0, 4]; 0 when every class has one direction.

    Raises:
        ValueError: shapes do not fit, z not finite, chunk not positive, or no class has two rows.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
        >>> same_class_alignment(z, torch.tensor([4, 4, 5]))
        2.0
    """
    if y.shape != z.shape[:1] or y.is_floating_point() or y.is_complex():
        raise ValueError(f"y must be ({len(z)},) integers, got {tuple(y.shape)} {y.dtype}")
    if chunk < 1:
        raise ValueError(f"chunk must be positive, got {chunk}")
    rows, kept = _rows(z, 1), (y.to(z.device) != ignore).nonzero()[:, 0]
    classes, own = torch.unique(y.to(z.device)[kept], return_inverse=True)
    sums = torch.zeros(len(classes), rows.shape[1], dtype=torch.float64, device=rows.device)
    squares = sums.new_zeros(len(classes))
    for ids, members in zip(kept.split(chunk), own.split(chunk), strict=True):
        block = directions(rows[ids].double())
        sums.index_add_(0, members, block)
        squares.index_add_(0, members, block.square().sum(1))
    sizes = torch.bincount(own, minlength=len(classes)).double()
    pairs = float((sizes * (sizes - 1)).sum() / 2)
    if pairs == 0:
        raise ValueError(f"none of the {len(classes)} classes has two rows")
    # Rounding must not take classes of one direction below zero.
    return max(0.0, float((sizes * squares - sums.square().sum(1)).sum()) / pairs)


@torch.no_grad()
def uniformity(z: Tensor, *, t: float = 2.0, chunk: int = CHUNK) -> float:
    """How evenly the directions of embeddings cover the sphere; lower is more even.

    log mean_{i < j} exp(-t ||u_i - u_j||^2),  u_i = z_i / ||z_i||   [Wang and Isola 2020]

    Args:
        z: (N, d), N >= 2, finite.
        t: sharpness of the Gaussian, > 0, dimensionless.
        chunk: rows per block; memory is O(chunk^2 + N d), time O(N^2 d).

    Returns:
        In [-4t, 0]; 0 when all directions are the same.

    Raises:
        ValueError: fewer than two rows, z not finite, or t or chunk not positive.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]))
        -8.0
    """
    if t <= 0 or chunk < 1:
        raise ValueError(f"t and chunk must be positive, got {t} and {chunk}")
    rows = _rows(z, 2)
    unit = directions(rows.to(torch.promote_types(rows.dtype, torch.float32)))
    square = unit.square().sum(1)
    parts = []
    for start in range(0, len(unit), chunk):
        upper = slice(start, start + chunk)
        for other in range(start, len(unit), chunk):
            right = slice(other, other + chunk)
            distance = square[upper, None] + square[right] - 2 * unit[upper] @ unit[right].mT
            exponent = distance.clamp_(min=0).mul_(-t)
            if other == start:
                # Each pair once: only entries above the diagonal.
                below = torch.ones_like(exponent, dtype=torch.bool).tril_()
                exponent.masked_fill_(below, float("-inf"))
            parts.append(torch.logsumexp(exponent.flatten(), 0).double())
    pairs = len(unit) * (len(unit) - 1) / 2
    return min(0.0, float(torch.logsumexp(torch.stack(parts), 0) - torch.tensor(pairs).double().log()))


def monitors(z: Tensor, *, limit: int = 4096) -> dict[str, float]:
    """All signs that need one set of embeddings, by name, for a log line.

    Args:
        z: (N, d), N >= 2, finite.
        limit: rows that uniformity reads, evenly spaced, since its time grows with their square.

    Returns:
        effective_rank, dead_units, mean_pairwise_cosine, uniformity.

    Raises:
        ValueError: fewer than two rows, z not finite, or limit < 2.
    """
    if limit < 2:
        raise ValueError(f"limit must be at least 2 rows, got {limit}")
    return {
        "effective_rank": effective_rank(z),
        "dead_units": dead_units(z),
        "mean_pairwise_cosine": mean_pairwise_cosine(z),
        "uniformity": uniformity(z if len(z) <= limit else z[torch.arange(limit) * len(z) // limit]),
    }


def _rows(z: Tensor, least: int) -> Tensor:
    if z.ndim != 2 or z.shape[0] < least or z.shape[1] < 1:
        raise ValueError(f"embeddings must be (N, d) with N >= {least} and d >= 1, got {tuple(z.shape)}")
    if not bool(torch.isfinite(z).all()):
        raise ValueError(f"embeddings hold {int((~torch.isfinite(z)).sum())} values that are not finite")
    return z.detach()


def directions(rows: Tensor) -> Tensor:
    """Rows of norm 1; a zero row stays zero. Scaled first, so that the square of a tiny entry is not lost.

    Args:
        rows: (N, d), d >= 1, floating point.

    Returns:
        (N, d) in the type of `rows`.
    """
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1)
    norm = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(norm > 0, norm, 1)
