"""Means of IoU over frequent and over rare classes apart: a mean over all hides which of the two a method helps."""

from __future__ import annotations

import torch
from torch import Tensor

from leanlabel.augment.tail import tail_classes
from leanlabel.evaluation.segmentation import mean_over_classes


def head_and_tail(iou: Tensor, pixels: Tensor, share: float = 0.04) -> tuple[float, float, Tensor]:
    """Average IoU over head and tail classes.

    The tail are the classes with fewest labelled pixels that together have no more than a share of all, as in
    :func:`leanlabel.augment.tail.tail_classes`; the head are all other classes that have a pixel. What is counted are
    training pixels, so that the classes are the same ones whatever is measured on. A class without any cannot be
    learned and is in neither.

    Args:
        iou: (K,) floating point in any unit; NaN for a class that has none, which is left out.
        pixels: (K,) numbers >= 0 of labelled training pixels of the source.
        share: of all pixels that the tail has at most, in [0, 1].

    Returns:
        Mean over the head, mean over the tail, each NaN without a class to average over; (K,) bool, which classes are
        tail.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> head, tail, rare = head_and_tail(torch.tensor([0.8, 0.6, 0.1]), torch.tensor([900, 80, 20]))
        >>> round(head, 3), round(tail, 3), rare.tolist()
        (0.7, 0.1, [False, False, True])
    """
    if iou.ndim != 1 or iou.shape != pixels.shape:
        raise ValueError(f"iou and pixels must be (K,), got {tuple(iou.shape)} and {tuple(pixels.shape)}")
    pixels = pixels.detach().cpu()
    tail = tail_classes(pixels, share).cpu()
    return subset_mean(iou, ~tail & (pixels > 0)), subset_mean(iou, tail), tail


def subset_mean(iou: Tensor, chosen: Tensor) -> float:
    """Average IoU over some of the classes.

    Args:
        iou: (K,) floating point; NaN for a class that has none, which is left out.
        chosen: (K,) bool.

    Returns:
        The mean; NaN without a class to average over.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> subset_mean(torch.tensor([0.5, torch.nan, 0.25]), torch.tensor([True, True, False]))
        0.5
    """
    if iou.ndim != 1 or iou.shape != chosen.shape:
        raise ValueError(f"iou and chosen must be (K,), got {tuple(iou.shape)} and {tuple(chosen.shape)}")
    iou = iou.detach().cpu()
    return mean_over_classes(iou, chosen.cpu() & ~torch.isnan(iou), "exclude")
