"""Labels that a network gives itself, and how far they are trusted: one weight for all, the share of sure pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.losses.pixel import wide

# A probability that equals the threshold but for rounding of the softmax counts as reaching it.
_ROUNDING = 4


class Confident(NamedTuple):
    """Labels of every pixel and their weights; nothing carries gradient."""

    labels: Tensor
    """(B, H, W) int64, the likeliest class; the ignore label where the caller said that there is no pixel."""
    share: Tensor
    """Share q of sure pixels in [0, 1], float32: a scalar, equal on all ranks, or (B,), one per image."""
    weights: Tensor
    """(B, H, W) float32: q, and 0 in the margins and where there is no pixel."""


@torch.no_grad()
def confident_labels(
    logits: Tensor,
    threshold: float,
    *,
    top: int = 0,
    bottom: int = 0,
    left: int = 0,
    right: int = 0,
    per_image: bool = False,
    valid: Tensor | None = None,
    ignore: int = -100,
) -> Confident:
    """Give every pixel its likeliest class, and all of them the share of sure pixels as weight.

    q = (pixels with max_c p_c >= threshold) / (pixels)    [Tranheden et al., WACV 2021; Hoyer et al., CVPR 2022]

    The share counts all pixels of the batch, those in the margins included, over all ranks. So a network that is not
    sure of much teaches little, without a choice of pixels that would favour easy classes.

    Args:
        logits: (B, K, H, W) scores at the size of the labels; no gradient is taken. Probabilities are computed in
            float32 or wider.
        threshold: in [0, 1].
        top, bottom, left, right: pixels at each border whose weight is 0, >= 0.
        per_image: take the share of each image by itself, without other images and ranks.
        valid: (B, H, W) bool, False where there is no pixel, such as padding: no label, weight 0, not counted; None:
            all are.
        ignore: label of these.

    Returns:
        Labels, share and weights. The share of no pixel at all is 0.

    Raises:
        ValueError: scores that are not (B, K, H, W) floating point with a class, a threshold outside of [0, 1], margins
            that are negative or larger than the image, or another shape of ``valid``.

    Example:
        >>> logits = torch.tensor([[[[9.0, 0.1]], [[0.0, 0.0]]]])
        >>> found = confident_labels(logits, 0.9)
        >>> found.labels.tolist(), float(found.share)
        ([[[0, 0]]], 0.5)
    """
    if logits.ndim != 4 or not logits.is_floating_point() or not logits.shape[1]:
        raise ValueError(
            f"scores must be floating point (B, K, H, W), got {logits.dtype}, {tuple(logits.shape)}"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    batch, _, height, width = logits.shape
    margins = (top, bottom, left, right)
    if min(margins) < 0 or top + bottom > height or left + right > width:
        raise ValueError(
            f"margins (top, bottom, left, right) must fit into {height} x {width}, got {margins}"
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != (batch, height, width)):
        raise ValueError(
            f"valid must be bool ({batch}, {height}, {width}), got {valid.dtype}, {tuple(valid.shape)}"
        )
    confidence, labels = wide(logits).softmax(1).max(1)
    sure = confidence >= threshold * (1 - _ROUNDING * torch.finfo(confidence.dtype).eps)
    if valid is not None:
        sure &= valid
        labels = labels.masked_fill(~valid, ignore)
    share = _share(sure, valid, per_image)
    weights = share.view(-1, 1, 1).expand(labels.shape).clone()
    weights[:, :top] = 0
    weights[:, height - bottom :] = 0
    weights[:, :, :left] = 0
    weights[:, :, width - right :] = 0
    if valid is not None:
        weights.masked_fill_(~valid, 0)
    return Confident(labels, share, weights)


def _share(sure: Tensor, valid: Tensor | None, per_image: bool) -> Tensor:
    """Share of sure pixels, float32: a scalar over all ranks, or (B,) of each image."""
    counted = torch.ones_like(sure) if valid is None else valid
    if per_image:
        found, of = sure.flatten(1).sum(1), counted.flatten(1).sum(1)
    else:
        found, of = dist.sums(sure.sum(), counted.sum())
    # Counts of pixels lose nothing that matters in float32, which every device has.
    return found.float() / of.clamp(min=1).float()
