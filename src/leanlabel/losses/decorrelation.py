"""Losses that keep embeddings apart by decorrelating their columns instead of repelling their rows."""

from __future__ import annotations

import torch
from torch import Tensor


def standardise(z: Tensor, eps: float = 1e-6) -> Tensor:
    """Scale every column to mean 0 and sum of squares 1: z~ = (z - mean) / (sd sqrt(N)), sd with divisor N.

    A column whose spread is at most eps of its magnitude is set to 0 and gets gradient 0, not NaN.

    Args:
        z: (N, D), N >= 1, carries gradient.
        eps: spread relative to the root mean square that counts as none, dimensionless.

    Returns:
        (N, D), float32 or wider.
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    centred = z - z.mean(0)
    square = centred.square().sum(0)
    live = square.detach() > eps**2 * z.detach().square().sum(0)
    # The inner `where` keeps the root away from 0, whose gradient is infinite.
    norm = torch.where(live, square, torch.ones_like(square)).sqrt()
    return torch.where(live, centred / norm, torch.zeros_like(centred))


def cca_ssg(first: Tensor, second: Tensor, *, weight: float = 1e-3) -> dict[str, Tensor]:
    """Make two views agree column by column, and the columns of each view uncorrelated.

    L = invariance + weight * decorrelation    [CCA-SSG, Zhang et al. 2021, eq. 5]
    invariance = || Z1 - Z2 ||_F^2 = 2 D - 2 tr(Z1^T Z2);   decorrelation = sum_v || Zv^T Zv - I ||_F^2

    with standardised columns (:func:`standardise`). The code of its authors minimises -tr(Z1^T Z2) in place of
    the first term, which halves it; so does this function, up to the constant: (2 D - 2 tr)/2 = D - tr.
    Time and memory are O(N D^2) and O(N D + D^2): no row meets another.

    Args:
        first, second: (N, D), N >= 1, row i of both from the same sample; both carry gradient.
        weight: lambda, >= 0, dimensionless.

    Returns:
        "loss", "invariance" (in [0, 2 D]) and "decorrelation" (>= 0): scalars, float32 or wider. Where columns
        are constant their diagonal entry counts as missed (1 per view), as the identity asks for it.

    Raises:
        ValueError: shapes differ, no rows, or a negative weight.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> float(cca_ssg(z, z)["loss"])
        0.0
    """
    if first.ndim != 2 or first.shape != second.shape or len(first) == 0:
        raise ValueError(
            f"the views must be (N, D) with N >= 1, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if weight < 0:
        raise ValueError(f"weight must not be negative, got {weight}")
    one, two = standardise(first), standardise(second)
    invariance = one.shape[1] - (one * two).sum()
    identity = torch.eye(one.shape[1], dtype=one.dtype, device=one.device)
    decorrelation = sum((z.mT @ z - identity).square().sum() for z in (one, two))
    return {
        "loss": invariance + weight * decorrelation,
        "invariance": invariance,
        "decorrelation": torch.as_tensor(decorrelation),
    }
