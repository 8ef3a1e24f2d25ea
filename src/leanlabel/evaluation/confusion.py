"""Counts of true against predicted classes, and the scores that follow from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Positions per block: what is held beside the inputs stays below 20 MB for narrow ids, 150 MB for others.
BLOCK = 1 << 22
# Most classes whose pairs, with one more row for what is ignored, still have a number in int16.
MOST_NARROW = 180


def confusion_matrix(
    truth: Tensor,
    predicted: Tensor,
    classes: int,
    *,
    ignore: int = -100,
    names: tuple[str, str] = ("truth", "predicted"),
) -> Tensor:
    """Count how often each true class was predicted as each class.

    Args:
        truth: (...) integers in [0, classes), or `ignore`: such positions are left out. uint8 is fastest.
        predicted: same shape, integers in [0, classes); anything where the truth is `ignore`.
        names: what messages call the two.

    Returns:
        (C, C) int64 on the device of `truth`; entry (i, j) counts true class i predicted as j.

    Raises:
        ValueError: shapes differ, or an id lies outside [0, classes).

    Example:
        >>> confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    if truth.shape != predicted.shape:
        first, second = names
        raise ValueError(
            f"{first} {tuple(truth.shape)} and {second} {tuple(predicted.shape)} differ in shape"
        )
    table = torch.zeros(classes * classes, dtype=torch.int64, device=truth.device)
    for block, guess in zip(truth.reshape(-1).split(BLOCK), predicted.reshape(-1).split(BLOCK), strict=True):
        if len(block):
            counts = _count_narrow(block, guess, classes, ignore)
            table += _count(block, guess, classes, ignore, names) if counts is None else counts
    return table.reshape(classes, classes)


def ignored(ids: Tensor, ignore: int) -> Tensor:
    """Find the positions labelled `ignore`; nowhere where the type of the ids cannot hold that number.

    A plain comparison would take it modulo the type's range: uint8 156 == -100 is true.

    Args:
        ids: any shape, integers (or bool, or floating point).
        ignore: the label to leave out.

    Returns:
        Same shape, bool.

    Example:
        >>> ignored(torch.tensor([156, 255], dtype=torch.uint8), -100).tolist()
        [False, False]
    """
    if ids.dtype == torch.bool:
        ids = ids.to(torch.uint8)
    if not ids.is_floating_point():
        range_ = torch.iinfo(ids.dtype)
        if not range_.min <= ignore <= range_.max:
            return torch.zeros_like(ids, dtype=torch.bool)
    return ids == ignore


def _count_narrow(truth: Tensor, predicted: Tensor, classes: int, ignore: int) -> Tensor | None:
    """Count pairs of ids that fit a byte, without masks; None where that cannot be done or an id is wrong.

    Masks and selections by them take several times as long as all that is done here.
    """
    if not 0 < classes <= MOST_NARROW:
        return None
    rows, columns = _narrow(truth, min(0, ignore)), _narrow(predicted, 0)
    mark = ignore & 255
    if rows is None or columns is None or mark < classes or ignore not in (mark, mark - 256):
        return None
    if ignore < 0 and truth.dtype in (torch.uint8, torch.bool) and int(rows.max()) >= classes:
        return None  # here `mark` is a wrong id, not the one to leave out
    # Besides classes only `mark` may occur: nothing above it, and nothing between the classes and it.
    if (
        int(rows.max()) > mark
        or int((rows - classes).min()) < mark - classes
        or int(columns.max()) >= classes
    ):
        return None
    pairs = rows.clamp(max=classes).to(torch.int16).mul_(classes).add_(columns)
    return torch.bincount(pairs, minlength=classes * (classes + 1))[: classes * classes]


def _narrow(ids: Tensor, low: int) -> Tensor | None:
    """Ids as uint8, modulo 256, where they all lie in [low, low + 256) and so stay distinct; None elsewhere."""
    if ids.dtype == torch.uint8:
        return ids
    if ids.dtype == torch.bool:
        return ids.to(torch.uint8)
    if ids.is_floating_point() or ids.is_complex():
        return None
    least, most = ids.aminmax()
    return ids.to(torch.uint8) if int(least) >= low and int(most) < low + 256 else None


def _count(truth: Tensor, predicted: Tensor, classes: int, ignore: int, names: tuple[str, str]) -> Tensor:
    """Count pairs of any ids; ValueError names those outside [0, classes)."""
    kept = ~ignored(truth, ignore)
    truth, predicted = truth[kept].long(), predicted[kept].long()
    for name, ids in zip(names, (truth, predicted), strict=True):
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= classes):
            wrong = torch.unique(ids[(ids < 0) | (ids >= classes)]).tolist()
            listed = ", ".join(map(str, wrong[:5])) + (" ..." if len(wrong) > 5 else "")
            raise ValueError(
                f"{name} has class ids {int(ids.min())}..{int(ids.max())} outside [0, {classes}): {listed}"
            )
    return torch.bincount(truth * classes + predicted, minlength=classes * classes)


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
