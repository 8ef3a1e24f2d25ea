"""Counts of true against predicted classes, and the scores that follow from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def confusion_matrix(truth: Tensor, predicted: Tensor, classes: int, *, ignore: int = -100) -> Tensor:
    """Count how often each true class was predicted as each class.

    Args:
        truth: (...) int64 in [0, classes), or `ignore`: such positions are left out.
        predicted: same shape, int64 in [0, classes).

    Returns:
        (C, C) int64 on the device of `truth`; entry (i, j) counts true class i predicted as j.

    Raises:
        ValueError: shapes differ, or an id lies outside [0, classes).

    Example:
        >>> confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth {tuple(truth.shape)} and predicted {tuple(predicted.shape)} differ in shape")
    kept = truth != ignore
    truth, predicted = truth[kept].long(), predicted[kept].long()
    for name, ids in (("truth", truth), ("predicted", predicted)):
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= classes):
            raise ValueError(
                f"{name} has class ids {int(ids.min())}..{int(ids.max())} outside [0, {classes})"
            )
    return torch.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def accuracy(confusion: Tensor) -> float:
    """Share of the rows counted in a (C, C) confusion matrix on its diagonal; ValueError without rows."""
    if not int(confusion.sum()):
        raise ValueError("accuracy needs at least one counted row; the confusion matrix is all zero")
    return int(confusion.diagonal().sum()) / int(confusion.sum())


def class_recall(confusion: Tensor) -> tuple[float | None, ...]:
    """Share of each true class (row of the matrix) that was found; None for a class that never occurs."""
    hits, rows = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    return tuple(hit / count if count else None for hit, count in zip(hits, rows))


def macro_f1(confusion: Tensor) -> float:
    """Mean over classes of F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c).

    A class that is neither true nor predicted anywhere has no F1 and is left out of the mean; one that is
    predicted without being true counts as 0. ValueError without rows.
    """
    hits = confusion.diagonal().tolist()
    sizes = (confusion.sum(0) + confusion.sum(1)).tolist()
    scores = [2 * hit / size for hit, size in zip(hits, sizes) if size]
    if not scores:
        raise ValueError("macro F1 needs at least one counted row; the confusion matrix is all zero")
    return math.fsum(scores) / len(scores)
