"""How often a linear classifier takes rows of one domain for the other's, on rows that it has not seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leanlabel import rng


def domain_error(
    source: Tensor,
    target: Tensor,
    seed: int,
    folds: int = 5,
    *,
    groups: tuple[Tensor | None, Tensor | None] = (None, None),
) -> float:
    """Measure the error of a linear classifier that tells two domains apart, on rows left out of its training.

    The classifier is a logistic regression with an L2 penalty, min ||w||^2 / 2 + sum over rows of cross-entropy, on
    features brought to mean 0 and spread 1 over the training rows and divided by the root of their number D. The error
    is the mean of the two domains' error rates on rows left out, so that 1/2 is chance, also what a larger domain
    gives; both domains weigh alike in training. Rows that are near copies, such as frames of one sequence, must be in
    one group: else the classifier knows those that are left out, and the error is too small.

    Args:
        source: (N, D), N >= 2, finite; no gradient.
        target: (M, D), M >= 2, finite; no gradient.
        seed: of the folds.
        folds: parts of each domain that are left out in turn, >= 2; never more than the smaller domain has groups.
        groups: (N,) and (M,) integer group of each row, at least two in each domain; rows of one group are left out
            together. None: each row is a group of its own.

    Returns:
        In [0, 1]; above 1/2 where what held for the training rows is the other way round for those left out.

    Raises:
        ValueError: not two sets of rows of one width, fewer than two rows or groups, groups that do not fit the rows,
            not finite, or folds < 2.

    Example:
        >>> rows = torch.arange(20.0)[:, None]
        >>> domain_error(rows, rows + 100, seed=0)
        0.0
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    first, second = _rows(source, "source"), _rows(target, "target")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"source and target must be equally wide, got {tuple(source.shape)} and {tuple(target.shape)}"
        )
    own = [
        _numbered(one, len(given), name)
        for one, given, name in zip(groups, (first, second), ("source", "target"), strict=True)
    ]
    folds = min(folds, *(int(one.max()) + 1 for one in own))
    rows = torch.cat([first, second])
    domain = torch.arange(len(rows)) >= len(first)
    part = torch.cat([_folds(one, folds, seed, which) for which, one in enumerate(own)])
    wrong = torch.zeros(len(rows), dtype=torch.bool)
    with threadpool_limits(1):  # many small products: threads would wait for each other
        for fold in range(folds):
            out = part == fold
            spread, mean = torch.std_mean(rows[~out], dim=0, correction=0)
            # A feature that is constant in training, up to rounding, says nothing.
            useful = spread > 1e-9 * mean.abs().clamp_min(1e-300)
            scaled = torch.where(useful, (rows - mean) / spread, 0.0) / math.sqrt(rows.shape[1])
            model = LogisticRegression(class_weight="balanced", max_iter=1000)
            model.fit(scaled[~out].numpy(), domain[~out].numpy())
            wrong[out] = torch.from_numpy(model.predict(scaled[out].numpy())) != domain[out]
    return float((wrong[~domain].double().mean() + wrong[domain].double().mean()) / 2)


def _rows(rows: Tensor, name: str) -> Tensor:
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] < 1:
        raise ValueError(f"{name} must be (N, D) with N >= 2 and D >= 1, got {tuple(rows.shape)}")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{name} holds {int((~torch.isfinite(rows)).sum())} values that are not finite")
    return rows.detach().double().cpu()


def _numbered(groups: Tensor | None, count: int, name: str) -> Tensor:
    """Groups (count,) numbered from 0."""
    if groups is None:
        return torch.arange(count)
    if groups.shape != (count,) or groups.is_floating_point():
        raise ValueError(
            f"groups of {name} must be ({count},) integers, got {tuple(groups.shape)} {groups.dtype}"
        )
    found = groups.detach().cpu().unique(return_inverse=True)[1]
    if int(found.max()) < 1:
        raise ValueError(f"{name} has one group only, which cannot be left out")
    return found


def _folds(groups: Tensor, folds: int, seed: int, which: int) -> Tensor:
    """Fold (n,) of each row: groups stay whole, the largest first, each to the fold that has fewest rows."""
    sizes = groups.bincount()
    part, filled = torch.empty_like(sizes), [0] * folds
    order = rng.permutation(seed, "domain folds", which, len(sizes))
    for group in order[sizes[order].argsort(descending=True, stable=True)].tolist():
        fold = filled.index(min(filled))
        part[group] = fold
        filled[fold] += int(sizes[group])
    return part[groups]
