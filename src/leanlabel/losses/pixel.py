"""Losses that compare every pixel with its label: cross-entropy, and rules that let hard or rare pixels count more.

Scores are (B, C, *space) with one, two or three dimensions of space, labels (B, *space) integers. `ignore` may be any
integer, -1 and 255 included; pixels that carry it have no loss, no gradient and no part in a mean. Means run over the
pixels of all ranks (:func:`leanlabel.dist.global_mean`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel import dist
from leanlabel.errors import InputError

Divide = Literal["classes", "weights", "count"]
Rule = Literal["inverse-log", "median", "effective", "sqrt-inverse"]


def checked_labels(scores: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Refuse labels that do not fit the scores, and return them as int64.

    Args:
        scores: (B, C, *space), floating point.
        labels: (B, *space), integers in [0, C) or `ignore`.

    Raises:
        ValueError: shapes or types do not fit.
        InputError: a label that is neither a class nor `ignore`. Looking costs one wait for a GPU.
    """
    sizes = f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)}"
    if not 3 <= scores.ndim <= 5 or not scores.is_floating_point():
        raise ValueError(f"scores must be floating point (B, C, *space), got {scores.dtype}, {sizes}")
    if scores.shape[:1] + scores.shape[2:] != labels.shape:
        raise ValueError(f"{sizes} differ in size; leanlabel.losses.pixel.align brings them together")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    labels = labels.long()  # before any comparison: an unsigned type would wrap -100 to a class
    classes = scores.shape[1]
    wrong = (labels != ignore) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        value, count = int(labels[wrong][0]), int(wrong.sum())
        raise InputError(
            f"label {value} is neither one of {classes} classes (0 to {classes - 1}) nor the ignore label {ignore}; "
            f"{count} pixels have a label of this kind.",
            "Check the class map of the masks, or name the right ignore label.",
        )
    return labels


def check_class_weights(class_weights: Tensor | None, classes: int, smoothing: float = 0.0) -> None:
    """Raise ValueError when weights (C,) or a share of smoothing do not fit."""
    if class_weights is not None and (class_weights.shape != (classes,) or bool((class_weights < 0).any())):
        raise ValueError(
            f"class_weights must be ({classes},), not negative, got {tuple(class_weights.shape)}"
        )
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")


def wide(scores: Tensor) -> Tensor:
    """Scores in float32 or wider."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def pixel_losses(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    ignore: int = -100,
) -> Tensor:
    """Cross-entropy of every pixel: l = logsumexp(x) - x[y], smoothed and weighted as in torch's cross_entropy.

    Args:
        logits: (B, C, *space), carries gradient.
        labels: (B, *space), integers in [0, C) or `ignore`.
        class_weights: (C,) >= 0, or None for 1.
        smoothing: share of the target that is spread evenly over the classes, in [0, 1).
        ignore: label that is left out.

    Returns:
        (B, *space) in float32 or wider, 0 where the label is ignored.

    Raises:
        ValueError, InputError: see :func:`checked_labels`, :func:`check_class_weights`.

    Example:
        >>> pixel_losses(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, -100]]]))
        tensor([[[0.6931, 0.0000]]])
    """
    labels, logits = checked_labels(logits, labels, ignore), wide(logits)
    check_class_weights(class_weights, logits.shape[1], smoothing)
    return F.cross_entropy(
        logits,
        labels,
        weight=None if class_weights is None else class_weights.to(logits),
        ignore_index=ignore,
        reduction="none",
        label_smoothing=smoothing,
    )


def pixel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    ignore: int = -100,
    weight: Tensor | None = None,
    divide: Divide = "classes",
) -> Tensor:
    """Average the cross-entropy over all labelled pixels of all ranks.

    L = sum_i v_i l_i / D, with l_i of :func:`pixel_losses` (class weights inside) and v_i the weight of pixel i. D sums
    over labelled pixels the weight of their class ("classes", as torch does: a weight of a pixel scales its part of
    the loss), that times the weight of the pixel ("weights": a weighted mean), or 1 ("count").

    Args:
        logits, labels, class_weights, smoothing, ignore: as in :func:`pixel_losses`.
        weight: (B, *space) >= 0, weight of every pixel, no gradient; None for 1.
        divide: what the weighted sum is divided by.

    Returns:
        Scalar, float32 or wider; 0 attached to the graph where nothing is labelled. On several ranks this rank's share:
        the mean over ranks is the loss of all pixels.

    Raises:
        ValueError: shapes, types or values do not fit; InputError for labels.

    Example:
        >>> float(pixel_cross_entropy(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)))
        1.3862943649291992
    """
    if divide not in ("classes", "weights", "count"):
        raise ValueError(f'divide must be "classes", "weights" or "count", got {divide!r}')
    if weight is not None and weight.shape != labels.shape:
        raise ValueError(f"weight must have the shape of the labels, got {tuple(weight.shape)}")
    losses = pixel_losses(logits, labels, class_weights=class_weights, smoothing=smoothing, ignore=ignore)
    labels = labels.long()
    counted = valid = labels != ignore
    if class_weights is not None and divide != "count":
        counted = class_weights.to(losses)[labels.where(valid, 0)].where(valid, 0)
    if weight is not None:
        losses = losses * weight.detach().to(losses)
        counted = counted * weight.detach().to(losses) if divide == "weights" else counted
    return dist.global_mean(losses.sum(), counted.sum())


def ohem(
    logits: Tensor,
    labels: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: float = 100_000,
    class_weights: Tensor | None = None,
    ignore: int = -100,
) -> Tensor:
    """Average the cross-entropy over hard pixels: those whose class has a low probability, and at least so many.

    A pixel is kept if p[y] < threshold, or if it is among the `min_kept` pixels with the smallest p[y], ties included.
    Each rank chooses among its own pixels, with its share of `min_kept`; the mean runs over the kept pixels of all
    ranks. So several ranks equal one where the threshold decides, and not quite where `min_kept` does.

    Args:
        logits, labels, ignore: as in :func:`pixel_losses`.
        threshold: probability in (0, 1].
        min_kept: pixels of the batch over all ranks (an int), or share of the labelled pixels (a float in [0, 1]).
        class_weights: (C,) >= 0, multiply the loss of kept pixels and do not enter the choice.

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: shapes, types or values do not fit; InputError for labels.

    Example:
        >>> logits = torch.tensor([[[[0.0, 9.0]], [[0.0, 0.0]]]])
        >>> float(ohem(logits, torch.zeros(1, 1, 2, dtype=torch.int64), min_kept=1))
        0.6931471824645996
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    share = isinstance(min_kept, float) and min_kept <= 1
    if min_kept < 0 or (isinstance(min_kept, float) and not share):
        raise ValueError(f"min_kept must be a number of pixels (int) or a share in [0, 1], got {min_kept}")
    check_class_weights(class_weights, logits.shape[1])
    losses, labels = pixel_losses(logits, labels, ignore=ignore), labels.long()
    valid = labels != ignore
    losses, classes = losses[valid], labels[valid]
    found = losses.detach()
    keep = found > -math.log(threshold)
    kept = min(len(found), math.ceil(min_kept * len(found) if share else min_kept / dist.world()))
    if kept:
        keep |= found >= found.kthvalue(len(found) - kept + 1).values
    if class_weights is not None:
        losses = losses * class_weights.to(losses)[classes]
    return dist.global_mean(losses.where(keep, 0).sum(), keep.sum())


def focal(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
    ignore: int = -100,
) -> Tensor:
    """Average a cross-entropy that counts sure pixels less.

    l_i = -a[y] (1 - p[y])^gamma log p[y]    [Lin et al. 2017, eq. 5], with the softmax in place of the sigmoid

    Args:
        logits, labels, ignore: as in :func:`pixel_losses`.
        gamma: >= 0; 0 gives cross-entropy.
        class_weights: a, (C,) >= 0; the divisor stays the number of labelled pixels.

    Returns:
        Scalar, float32 or wider, this rank's share of the mean over all ranks.

    Raises:
        ValueError: shapes, types or values do not fit; InputError for labels.

    Example:
        >>> float(focal(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64), gamma=1.0))
        0.3465735912322998
    """
    if gamma < 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")
    check_class_weights(class_weights, logits.shape[1])
    losses, labels = pixel_losses(logits, labels, ignore=ignore), labels.long()
    valid = labels != ignore
    # 1 - p from the loss itself keeps its digits at p near 1; the floor keeps a power below 1 differentiable there.
    doubt = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
    weighted = losses * doubt**gamma
    if class_weights is not None:
        weighted = weighted * class_weights.to(losses)[labels.where(valid, 0)]
    return dist.global_mean(weighted.where(valid, 0).sum(), valid.sum())


def max_pooling_loss(
    logits: Tensor, labels: Tensor, *, p: float = 1.7, support: float = 0.25, ignore: int = -100
) -> Tensor:
    """Weight pixels in the worst way that a norm allows.

    L = max_w sum_i w_i l_i  over  w >= 0, |w|_p <= n^(1/p - 1), |w|_inf <= tau    [Rota Bulo et al., CVPR 2017]

    n is the number of labelled pixels; the uniform mean w = 1/n is allowed, so L is at least the cross-entropy. tau is
    such that at least `support` n pixels carry weight. With q = p/(p - 1) the worst weights are
    w_i = min(tau, c l_i^(q-1)), which is solved exactly by sorting. Without the bound tau, L is the power mean of the
    losses with exponent q. The gradient takes w as constant, as the maximum's gradient does.

    Every rank weights its own pixels; the result is averaged over ranks by their numbers of pixels, which is not the
    maximum over all ranks' pixels.

    Args:
        logits, labels, ignore: as in :func:`pixel_losses`.
        p: >= 1; 1 averages the `support` n worst pixels, infinity all.
        support: smallest share of pixels with weight, in (0, 1]; 1 gives cross-entropy.

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: shapes, types or values do not fit; InputError for labels.

    Example:
        >>> logits = torch.tensor([[[[0.0, 9.0]], [[0.0, 0.0]]]])
        >>> float(max_pooling_loss(logits, torch.zeros(1, 1, 2, dtype=torch.int64), p=1.0, support=0.5))
        0.6931471824645996
    """
    if not p >= 1 or not 0 < support <= 1:
        raise ValueError(f"p must be at least 1 and support in (0, 1], got {p} and {support}")
    losses = pixel_losses(logits, labels, ignore=ignore)
    losses = losses[labels.long() != ignore]
    worst = _worst_weights(losses.detach(), p, support) if len(losses) else losses.detach()
    return dist.global_mean((worst * losses).sum() * len(losses), len(losses))


def _worst_weights(losses: Tensor, p: float, support: float) -> Tensor:
    """Weights (N,) that maximise w . losses under both norms; N >= 1."""
    n, top = len(losses), losses.max()
    pixels = max(1.0, support * n)  # (gamma / tau)^p: so many pixels at the bound use the p-norm up
    if math.isinf(p) or pixels >= n or not top > 0:
        return torch.full_like(losses, 1 / n)
    order = losses.argsort(descending=True)
    rank = torch.arange(n, device=losses.device, dtype=losses.dtype)
    if p == 1:
        return torch.empty_like(losses).index_put_((order,), (pixels - rank).clamp(0, 1) / pixels)
    # Relative to the largest loss, powers stay in range. rest[j] sums the powers of all but the j largest.
    power = (losses[order] / top) ** (p / (p - 1))
    rest = power.flip(0).cumsum(0).flip(0)
    # j pixels at the bound are enough once the next one's weight does not exceed it. The last j < pixels always are.
    left = pixels - rank
    enough = (left * power <= rest) & (left > 0)
    bound = int(enough.to(torch.uint8).argmax())
    tau = n ** (1 / p - 1) * pixels ** (-1 / p)
    # (c / tau)^p l^q with q = (q - 1) p; zeros have weight 0, also where all the rest is 0.
    below = left[bound] * power / rest[bound].clamp(min=torch.finfo(power.dtype).tiny)
    relative = torch.where(rank < bound, torch.ones_like(below), below.clamp(max=1)) ** (1 / p)
    return torch.empty_like(losses).index_put_((order,), tau * relative)


def class_balanced_weights(
    counts: Tensor | Sequence[float], rule: Rule = "inverse-log", *, beta: float = 0.9999
) -> Tensor:
    """Weigh classes by how rare they are.

    With f_c the share of class c:
    "inverse-log": 1 / ln(1.02 + f_c), between 1.4 and 50.5    [Paszke et al. 2016]
    "median": median of the f of classes that occur / f_c    [Eigen and Fergus 2015, with shares of all pixels]
    "effective": (1 - beta) / (1 - beta^n_c), scaled to mean 1    [Cui et al. 2019]
    "sqrt-inverse": f_c^(-1/2), scaled to mean 1

    Args:
        counts: (C,) pixels, images or objects of every class, >= 0. "effective" saturates where counts are far above
            1 / (1 - beta): give it images or objects rather than pixels.
        rule: which.
        beta: of "effective", in [0, 1).

    Returns:
        (C,) float32. A class that does not occur gets the largest weight of those that do ("inverse-log": its own).

    Raises:
        ValueError: a negative count, none at all, or an unknown rule.

    Example:
        >>> class_balanced_weights([900, 100], "sqrt-inverse")
        tensor([0.5000, 1.5000])
    """
    numbers = torch.as_tensor(counts).detach().cpu().double()
    if numbers.ndim != 1 or bool((numbers < 0).any()) or not float(numbers.sum()) > 0:
        raise ValueError("counts must be (C,), not negative, and not all 0")
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), got {beta}")
    some = numbers > 0
    share = numbers / numbers.sum()
    if rule == "inverse-log":
        return (1 / torch.log(1.02 + share)).float()
    occurring = share[some]
    if rule == "median":
        weights = occurring.quantile(0.5) / occurring
    elif rule == "effective":
        weights = (1 - beta) / (1 - beta ** numbers[some])
    elif rule == "sqrt-inverse":
        weights = occurring.rsqrt()
    else:
        raise ValueError(f"rule must be inverse-log, median, effective or sqrt-inverse, got {rule!r}")
    if rule != "median":
        weights = weights / weights.mean()
    return torch.full_like(share, float(weights.max())).masked_scatter(some, weights).float()


def align(
    logits: Tensor, labels: Tensor, at: Literal["input", "feature"] = "input", align_corners: bool = False
) -> tuple[Tensor, Tensor]:
    """Bring scores and labels to one size.

    "input": scores are interpolated linearly to the size of the labels. "feature": labels are thinned out to the size
    of the scores; place i of h takes the label at floor(i H / h).

    Args:
        logits: (B, C, *space), carries gradient.
        labels: (B, *space) of another size.
        at: where the loss is taken.
        align_corners: of the interpolation.

    Returns:
        Scores and labels; what has the right size already is returned as it is.

    Raises:
        ValueError: another number of samples or dimensions, or an unknown place.

    Example:
        >>> labels = torch.arange(5)[None, None]
        >>> align(torch.zeros(1, 2, 1, 2), labels, "feature")[1]
        tensor([[[0, 2]]])
    """
    if at not in ("input", "feature"):
        raise ValueError(f'at must be "input" or "feature", got {at!r}')
    if not 3 <= logits.ndim <= 5 or logits.ndim != labels.ndim + 1 or len(logits) != len(labels):
        raise ValueError(
            f"scores {tuple(logits.shape)} and labels {tuple(labels.shape)} do not belong together"
        )
    small, large = logits.shape[2:], labels.shape[1:]
    if small == large:
        return logits, labels
    if at == "input":
        mode = ("linear", "bilinear", "trilinear")[len(small) - 1]
        return F.interpolate(logits, size=large, mode=mode, align_corners=align_corners), labels
    for axis, (kept, of) in enumerate(zip(small, large, strict=True), start=1):
        labels = labels.index_select(axis, torch.arange(kept, device=labels.device) * of // kept)
    return logits, labels
