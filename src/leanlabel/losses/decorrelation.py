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


def vicreg(
    first: Tensor,
    second: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
) -> dict[str, Tensor]:
    """Make two views agree while every column keeps varying and no two columns of a view are correlated.

    L = lambda s + mu v + nu c    [VICReg, Bardes et al. 2022, eq. 6]
    s = 1/(N D) sum ||a_i - b_i||^2
    v = 1/2 sum over views of 1/D sum_k max(0, 1 - sqrt(Var_k + eps))
    c = sum over views of 1/D sum_{k != l} C_kl^2,   Var and C with divisor N - 1

    The paper divides s by N alone and does not halve v; its authors' code, which gives the published numbers, does
    as written here.

    Args:
        first, second: (N, D), N >= 2, row i of both from the same sample; both carry gradient.
        invariance, variance, covariance: lambda, mu, nu, >= 0, dimensionless.
        eps: added to the variance, > 0, keeps the gradient of the root finite.

    Returns:
        "loss", "invariance", "variance" (in [0, 1]) and "covariance": scalars, float32 or wider, unweighted but for
        "loss".

    Raises:
        ValueError: shapes differ, or fewer than two rows.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> {name: float(value) for name, value in vicreg(z, z).items()}["loss"]
        0.0
    """
    if first.ndim != 2 or first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"the views must be (N, D) with N >= 2, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    wide = torch.promote_types(first.dtype, torch.float32)
    views = [first.to(wide), second.to(wide)]
    count, width = first.shape
    near = (views[0] - views[1]).square().mean()
    spread, joint = near.new_zeros(()), near.new_zeros(())
    for z in views:
        centred = z - z.mean(0)
        squares = centred.mT @ centred / (count - 1)
        own = squares.diagonal()
        spread = spread + (1 - (own + eps).sqrt()).clamp(min=0).mean() / 2
        joint = joint + (squares.square().sum() - own.square().sum()) / width
    return {
        "loss": invariance * near + variance * spread + covariance * joint,
        "invariance": near,
        "variance": spread,
        "covariance": joint,
    }
