"""Losses that measure the overlap of whole classes: soft Dice and the Lovász-softmax.

Arguments are those of :mod:`leanlabel.losses.pixel`. Pixels that are ignored enter neither numerator nor denominator.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.losses.pixel import check_class_weights, checked_labels, wide

Per = Literal["batch", "image"]
Classes = Literal["present", "all"]


def soft_dice(
    logits: Tensor,
    labels: Tensor,
    *,
    smooth: float = 1.0,
    squared: bool = False,
    generalised: bool = False,
    per: Per = "batch",
    classes: Classes = "present",
    class_weights: Tensor | None = None,
    ignore: int = -100,
) -> Tensor:
    """Take one minus the soft overlap of each class, averaged over classes.

    L = mean over classes of 1 - (2 I_c + s) / (P_c + N_c + s)    [Milletari et al. 2016, with `squared`]
    I_c = sum of p_c over pixels of class c, P_c = sum of p_c (or p_c^2) over labelled pixels, N_c number of pixels of c

    `generalised` takes one overlap of all classes: 1 - (2 sum v_c I_c + s) / (sum v_c (P_c + N_c) + s) with
    v_c = 1 / N_c^2    [Sudre et al. 2017], scaled to mean 1 over the classes, so that s means the same.

    Sums run over the batch of all ranks (`per="batch"`), or over each image, and then the mean over images.

    Args:
        logits, labels, ignore: as in :func:`leanlabel.losses.pixel.pixel_losses`.
        smooth: s, pixels, >= 0.
        squared: sum squared probabilities in the denominator.
        generalised: one overlap of all classes, rare ones weighted up.
        per: what a sum runs over.
        classes: "present": those with a labelled pixel in the sum; "all": a class without one, too, whose overlap is
            s / (P_c + s): what is predicted of it counts as wrong. With `generalised`, only those present count.
        class_weights: (C,) >= 0, of the mean over classes.

    Returns:
        Scalar in [0, 1], float32 or wider; 0 attached to the graph where nothing is labelled. On several ranks this
        rank's share: the mean over ranks is the loss of all images.

    Raises:
        ValueError: shapes, types or values do not fit; InputError for labels.

    Example:
        >>> logits = torch.tensor([[[[50.0, 0.0]], [[0.0, 0.0]]]])
        >>> soft_dice(logits, torch.tensor([[[0, 1]]]), smooth=0.0)  # 1 - 2/2.5 and 1 - 1/1.5
        tensor(0.2667)
    """
    _check(per, classes)
    if smooth < 0:
        raise ValueError(f"smooth must not be negative, got {smooth}")
    labels = checked_labels(logits, labels, ignore)
    check_class_weights(class_weights, logits.shape[1])
    # 0 where ignored, in P and, as no class is -1 there, in I
    labels = labels.where(labels != ignore, -1).flatten(1)
    p = wide(logits).softmax(1).flatten(2).where(labels[:, None] >= 0, 0)
    # A comparison instead of scattering: scattered sums have no fixed order on a GPU.
    own = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)[:, None]
    sums = torch.stack([p.where(own, 0).sum(2), (p * p if squared else p).sum(2), own.sum(2).to(p)])
    if per == "batch":
        sums = dist.all_sum(sums.sum(1))[:, None]
    inside, predicted, labelled = sums
    weights = p.new_ones(p.shape[1]) if class_weights is None else class_weights.to(p)
    counted = (labelled > 0) if classes == "present" or generalised else torch.ones_like(labelled).bool()
    weights = (weights * counted).detach()
    some = (labelled.sum(1) > 0) & (weights.sum(1) > 0)
    both = predicted + labelled
    if generalised:
        rare = weights / labelled.detach().clamp(min=1) ** 2
        # Relative to their mean, or small weights of large classes would vanish beside s.
        rare = rare * (weights > 0).sum(1, keepdim=True) / rare.sum(1, keepdim=True).where(some[:, None], 1)
        inside, both = (inside * rare).sum(1), (both * rare).sum(1)
        losses = 1 - (2 * inside + smooth) / (both + smooth).where(some, 1)
    else:
        share = weights / weights.sum(1, keepdim=True).where(some[:, None], 1)
        overlap = (2 * inside + smooth) / (both + smooth).where(both + smooth > 0, 1)
        losses = (share * (1 - overlap)).sum(1)
    losses = losses.where(some, losses * 0)
    # The sums of a batch are known to every rank, so each returns the whole; their mean is the same.
    return losses.sum() if per == "batch" else dist.global_mean(losses.sum(), some.sum())


def lovasz_softmax(
    logits: Tensor,
    labels: Tensor,
    *,
    per: Per = "batch",
    classes: Classes = "present",
    class_weights: Tensor | None = None,
    ignore: int = -100,
) -> Tensor:
    """Extend one minus the intersection over union of each class to probabilities, convexly, and average.

    L = mean over classes of sum_i e_(i) (J_i - J_(i-1)), errors e = |[y = c] - p_c| sorted from large to small, J_i one
    minus the intersection over union if the i worst pixels were wrong    [Berman et al. 2018, eq. 8 and 9]

    For hard predictions that is one minus the intersection over union. Sorting needs all pixels at once: with
    `per="batch"` each rank sorts its own images, and the result is the mean over the ranks that have labels; with
    `per="image"` the mean over the images of all ranks is exact.

    Args:
        logits, labels, ignore: as in :func:`leanlabel.losses.pixel.pixel_losses`.
        per: over which pixels errors are sorted.
        classes: "present": those with a labelled pixel; "all": also others, whose loss is their largest probability.
        class_weights: (C,) >= 0, of the mean over classes.

    Returns:
        Scalar in [0, 1], float32 or wider; 0 attached to the graph where nothing is labelled.

    Raises:
        ValueError: shapes, types or values do not fit; InputError for labels.

    Example:
        >>> logits = torch.tensor([[[[50.0, 50.0]], [[0.0, 0.0]]]])
        >>> float(lovasz_softmax(logits, torch.tensor([[[0, 1]]])))  # IoU 1/2 and 0
        0.75
    """
    _check(per, classes)
    labels = checked_labels(logits, labels, ignore)
    check_class_weights(class_weights, logits.shape[1])
    p = wide(logits).softmax(1).flatten(2)
    labels = labels.flatten(1)
    weights = p.new_ones(p.shape[1]) if class_weights is None else class_weights.to(p)
    if per == "batch":
        p, labels = p.movedim(1, 0).flatten(1)[None], labels.flatten()[None]
    total, count = p.sum() * 0, 0
    for image, known in zip(p, labels, strict=True):
        valid = known != ignore
        found = _lovasz(image[:, valid], known[valid], weights, classes)
        if found is not None:
            total, count = total + found, count + 1
    return dist.global_mean(total, count)


def _lovasz(p: Tensor, labels: Tensor, weights: Tensor, classes: Classes) -> Tensor | None:
    """Loss of probabilities (C, N) with labels (N,); None where no class counts.

    Linear in p once the order is known, with J_i - J_(i-1) as slopes: these are computed without gradient, one class
    after the other, and one product remains.
    """
    with torch.no_grad():
        slopes, constant = torch.zeros_like(p), p.new_zeros(())
        counted = torch.bincount(labels, minlength=len(p))
        used = weights * (
            (counted > 0) if classes == "present" else torch.full_like(counted, len(labels) > 0)
        )
        if not used.any():
            return None
        used = used / used.sum()
        for c in used.nonzero().flatten().tolist():
            own = (labels == c).to(p)
            order = torch.argsort((own - p[c]).abs(), descending=True, stable=True)
            hits = own[order].double().cumsum(0)
            ranks = torch.arange(1, len(own) + 1, device=p.device, dtype=torch.float64)
            size = float(hits[-1])
            jaccard = 1 - (size - hits) / (size + ranks - hits)
            rise = torch.diff(jaccard, prepend=jaccard.new_zeros(1)).to(p) * used[c]
            # e = 1 - p for pixels of the class, else p
            sign = 1 - 2 * own[order]
            slopes[c, order] = rise * sign
            constant += (rise * own[order]).sum()
    return (slopes * p).sum() + constant


def _check(per: Any, classes: Any) -> None:
    if per not in ("batch", "image"):
        raise ValueError(f'per must be "batch" or "image", got {per!r}')
    if classes not in ("present", "all"):
        raise ValueError(f'classes must be "present" or "all", got {classes!r}')
