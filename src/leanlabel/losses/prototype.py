"""Contrast of the features of pixels with one prototype of each class, and how far they lie apart.

A feature f counts by its direction z = f / |f|; where |f| < 1e-6 it counts as 0 and has no gradient, because that of
the direction grows as 1 / |f|. Prototypes P_k are used as they are: their length says how much a class is spread.
Everything is computed in float32 or wider. Nothing here has a normalised copy of the features.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanlabel import dist
from leanlabel.losses.pixel import checked_labels, wide

SMALLEST = 1e-6
"""Length below which a feature counts as 0."""
_CACHED = 1 << 18
"""Numbers that are squared at a time on a CPU: they stay in its cache."""


def unit(features: Tensor, dim: int = 1) -> Tensor:
    """Divide features by their length: z = f / |f|, and 0 without gradient where |f| < 1e-6.

    Args:
        features: any shape, floating point, carries gradient.
        dim: the dimension of channels.

    Returns:
        The same shape in float32 or wider.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    features = wide(features)
    small = torch.linalg.vector_norm(features.detach(), dim=dim, keepdim=True) < SMALLEST
    # Before the division and behind it: else the gradient of what is not used would be 0 times infinity.
    lengths = torch.linalg.vector_norm(features.where(~small, 1), dim=dim, keepdim=True)
    return (features / lengths).where(~small, 0)


def inverse_lengths(features: Tensor) -> Tensor:
    """Find 1 / |f| of each position, and 0 where |f| < 1e-6.

    Args:
        features: (B, D, N), float32 or wider; no gradient is taken.

    Returns:
        (B, N) of the same type.

    Example:
        >>> inverse_lengths(torch.tensor([[[3.0, 0.0], [4.0, 0.0]]]))
        tensor([[0.2000, 0.0000]])
    """
    features = features.detach()
    if features.is_cpu:  # there, a norm over a dimension that is not the last one takes several times as long
        batch, width, positions = features.shape
        squares = features.new_zeros(batch, positions)
        step = max(1, _CACHED // max(batch * positions, 1))
        for start in range(0, width, step):
            squares += features[:, start : start + step].square().sum(1)
        lengths = squares.sqrt_()
    else:
        lengths = torch.linalg.vector_norm(features, dim=1)
    return (1 / lengths).where(~(lengths < SMALLEST), 0)


class _Logits(torch.autograd.Function):
    """s_k = P_k . f / (|f| tau); of the forward pass only f, 1 / |f| and s are kept."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, prototypes: Tensor, tau: float) -> Tensor:
        ctx.device = features.device.type
        with torch.autocast(ctx.device, enabled=False):
            scaled, values = prototypes / tau, wide(features)
            inverse = inverse_lengths(values)
            logits = torch.bmm(scaled.expand(len(values), *scaled.shape), values).mul_(inverse[:, None])
        ctx.save_for_backward(features, scaled, inverse, logits)
        return logits

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *slopes: Tensor
    ) -> tuple[Tensor, None, None]:
        """ds_k / df = P_k / (|f| tau) - s_k f / |f|^2"""
        features, scaled, inverse, logits = ctx.saved_tensors
        with torch.autocast(ctx.device, enabled=False):
            slope = slopes[0]
            back = scaled.t().expand(len(features), *scaled.t().shape)
            found = torch.bmm(back, slope * inverse[:, None])
            along = (slope * logits).sum(1).mul_(inverse).mul_(inverse).neg_()
            found.addcmul_(wide(features), along[:, None])
        return found.to(features.dtype), None, None


def prototype_logits(features: Tensor, prototypes: Tensor, tau: float = 100.0) -> Tensor:
    """Compare every feature with every prototype.

    s_k = z . P_k / tau = P_k . f / (|f| tau)    [SPCL]

    Args:
        features: f, (B, D, h, w), floating point, carries gradient; where |f| < 1e-6 logits and gradient are 0.
        prototypes: P, (K, D), no gradient is taken.
        tau: temperature, > 0. With prototypes of length 1 or less, logits are in [-1 / tau, 1 / tau].

    Returns:
        (B, K, h, w) in float32 or wider, by the type of the features.

    Raises:
        ValueError: shapes or types do not fit, or tau is not positive.

    Example:
        >>> features = torch.tensor([3.0, 4.0])[None, :, None, None]
        >>> prototype_logits(features, torch.eye(2), tau=0.1).flatten().tolist()
        [6.0, 8.0]
    """
    if features.ndim != 4 or not features.is_floating_point() or prototypes.ndim != 2:
        raise ValueError(
            f"features must be floating point (B, D, h, w) and prototypes (K, D), got {features.dtype}, "
            f"{tuple(features.shape)} and {tuple(prototypes.shape)}"
        )
    if features.shape[1] != prototypes.shape[1] or not prototypes.numel():
        raise ValueError(
            f"features have {features.shape[1]} channels, prototypes are {tuple(prototypes.shape)}"
        )
    if not tau > 0:
        raise ValueError(f"tau must be positive, got {tau}")
    kind = torch.promote_types(features.dtype, torch.float32)
    rows = prototypes.detach().to(features.device, kind)
    logits = _Logits.apply(features.flatten(2), rows, tau)
    return logits.view(len(features), len(rows), *features.shape[2:])  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def prototype_contrast(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    tau: float = 100.0,
    balance: Literal["pixel", "class"] = "pixel",
    known: Tensor | None = None,
    mask_unknown: bool = False,
    ignore: int = -100,
) -> Tensor:
    """Let every labelled pixel find the prototype of its class among all of them.

    l_i = -log( e^{s_iy} / sum_k e^{s_ik} ), with s of :func:`prototype_logits` and y the label    [SPCL]
    L = mean of l_i over labelled pixels, or over classes of their means    [balance "pixel", "class"]

    At a high temperature l_i stays near log K, whatever is learned: what counts is the gap of :class:`Similarity`. A
    mean over pixels gives most of the pull to the classes that cover most of the image.

    Args:
        features: (B, D, h, w), carries gradient.
        labels: (B, h, w) integers in [0, K) or `ignore`.
        prototypes: (K, D), no gradient is taken.
        tau: temperature, > 0.
        balance: pixel: every pixel counts the same; class: every class that is present on any rank does.
        known: (K,) bool, classes that have a prototype; None: all. Pixels of others are left out.
        mask_unknown: take the other prototypes out of the denominator too; they are zero vectors, whose logit is 0.
        ignore: label that is left out.

    Returns:
        Scalar in float32 or wider, this rank's share: the mean over ranks is the loss of all pixels. 0 attached to the
        graph where nothing is labelled.

    Raises:
        ValueError: shapes, types, tau or balance do not fit; InputError for a label that is neither a class nor
            `ignore`.

    Example:
        >>> features = torch.tensor([[3.0, 0.0], [0.0, 2.0]])[None, :, None]  # two pixels
        >>> round(float(prototype_contrast(features, torch.tensor([[[0, 1]]]), torch.eye(2), tau=1.0)), 5)
        0.31326
    """
    if balance not in ("pixel", "class"):
        raise ValueError(f'balance must be "pixel" or "class", got {balance!r}')
    logits = prototype_logits(features, prototypes, tau)
    labels, known = _checked(features, labels, len(prototypes), known, ignore)
    counted = labels != ignore
    if known is not None:
        counted = counted & known[labels.where(counted, 0)]
        if mask_unknown:
            # Where nothing is known nothing is counted, and all logits at -inf would only make NaN.
            hidden = ~known & known.any()
            logits = logits.masked_fill(hidden[:, None, None], -math.inf)
    losses = F.cross_entropy(logits, labels.where(counted, -100), ignore_index=-100, reduction="none")
    if balance == "pixel":
        return dist.global_mean(losses.sum(), counted.sum())
    counts = dist.all_sum(class_counts(labels, counted, len(prototypes))).to(losses)
    # One over pixels of a class times number of classes: what every pixel of it counts.
    share = (1 / (counts * (counts > 0).sum())).where(counts > 0, 0)
    return (losses * share[labels.where(counted, 0)]).sum() * dist.world()


def class_counts(labels: Tensor, counted: Tensor, classes: int) -> Tensor:
    """Count the pixels of each class, on this rank.

    Args:
        labels: int64, in [0, K) where it counts.
        counted: the same shape, bool.
        classes: K.

    Returns:
        (K,) int64.

    Example:
        >>> class_counts(torch.tensor([0, 2, 2]), torch.tensor([True, True, False]), 3).tolist()
        [1, 0, 1]
    """
    return labels.where(counted, classes).flatten().bincount(minlength=classes + 1)[:classes]


def feature_spread(
    features: Tensor, prototypes: Tensor, tau: float = 100.0, known: Tensor | None = None
) -> Tensor:
    """Penalise features that lie, on average, near few of the prototypes.

    L = 1 - H(p) / log K, p = softmax_k( m . P_k / tau ), m = mean of z over all positions of all ranks
    [the regulariser of SePiCo, scaled to [0, 1]]

    H is the entropy; 0 where the mean feature is as near to every prototype, 1 where all of p is on one.

    Args:
        features: (B, D, h, w), carries gradient.
        prototypes: (K, D), no gradient is taken.
        tau: temperature, > 0.
        known: (K,) bool, the prototypes that are compared with, K of the formula of them; None: all.

    Returns:
        Scalar in float32 or wider, the same on every rank; 0 attached to the graph with fewer than two prototypes.

    Raises:
        ValueError: shapes, types or tau do not fit.

    Example:
        >>> features = torch.tensor([[3.0, 0.0], [0.0, 2.0]])[None, :, None]
        >>> float(feature_spread(features, torch.eye(2), tau=0.1))
        0.0
    """
    logits = prototype_logits(features, prototypes, tau)
    known = _checked_known(known, len(prototypes), features.device)
    # The mean of the logits is the logit of the mean: they are linear in z.
    total = dist.all_sum(logits.sum((0, 2, 3)))
    positions = dist.all_sum(torch.tensor(logits[:, 0].numel()))
    if known is not None:
        total = total[known]
    if len(total) < 2:
        return logits.sum() * 0
    # At tau = 100 this is about 1e-9: rounding of log K in float32 would be all that is left.
    exact = total if total.device.type == "mps" else total.double()
    log_p = (exact / max(int(positions), 1)).log_softmax(0)
    return ((log_p.exp() * (log_p + math.log(len(total)))).sum() / math.log(len(total))).to(total.dtype)


class Similarity(NamedTuple):
    """How near pixels are to the prototype of their class and to the others, z . P_k, without temperature."""

    own: float
    """Mean over labelled pixels of the similarity to the own prototype; NaN where none is labelled."""
    other: float
    """Mean over labelled pixels of the mean similarity to the other prototypes; NaN with a single one."""
    gap: float
    """own - other: what contrast widens."""
    own_by_class: Tensor
    """(K,) float64, means over the pixels of each class; NaN where it has none."""
    other_by_class: Tensor
    """(K,) float64."""
    gap_by_class: Tensor
    """(K,) float64."""
    counts: Tensor
    """(K,) int64, pixels of each class."""

    @property
    def class_gap(self) -> float:
        """Mean of the gap over the classes that are present: rare ones count as much as common ones."""
        return float(self.gap_by_class.nanmean())


class SimilarityMeter:
    """Collect the similarities of pixels to prototypes over batches; on several ranks over all of them.

    Args:
        classes: K, at least 1.

    Raises:
        ValueError: no class.

    Example:
        >>> meter = SimilarityMeter(2)
        >>> features = torch.tensor([[3.0, 0.0], [4.0, 2.0]])[None, :, None]  # two pixels
        >>> meter.add(features, torch.tensor([[[0, 1]]]), torch.eye(2))
        >>> found = meter.result()
        >>> round(found.own, 3), round(found.other, 3), found.counts.tolist()
        (0.8, 0.4, [1, 1])
    """

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ValueError(f"there must be a class, got {classes}")
        self.classes = classes
        self._sums = torch.zeros(2, classes, dtype=torch.float64)
        # Of both, because a batch with a single known class has no others.
        self._counts = torch.zeros(2, classes, dtype=torch.int64)

    @torch.no_grad()
    def add(
        self,
        features: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        known: Tensor | None = None,
        *,
        ignore: int = -100,
    ) -> None:
        """Count the labelled pixels of a batch of this rank.

        Args:
            features: (B, D, h, w).
            labels: (B, h, w) integers in [0, K) or `ignore`.
            prototypes: (K, D), which may differ from those of the batches before.
            known: (K,) bool, classes that have a prototype; None: all. Pixels of others are left out, and they are no
                others.
            ignore: label that is left out.

        Raises:
            ValueError: shapes or types do not fit; InputError for a label that is neither a class nor `ignore`.
        """
        if len(prototypes) != self.classes:
            raise ValueError(f"there must be {self.classes} prototypes, got {tuple(prototypes.shape)}")
        near = prototype_logits(features, prototypes, 1.0)
        labels, known = _checked(features, labels, self.classes, known, ignore)
        counted, others = labels != ignore, self.classes - 1
        if known is not None:
            counted = counted & known[labels.where(counted, 0)]
            near, others = near * known[:, None, None], int(known.sum()) - 1
        classes = labels.where(counted, 0)
        own = near.gather(1, classes[:, None])[:, 0]
        other = (near.sum(1) - own) / max(others, 1)
        chosen = classes[counted].cpu()
        for row, values in enumerate((own, other)[: 1 + (others > 0)]):
            # On the CPU the order of the sum, and so its last bits, are always the same.
            self._sums[row] += chosen.bincount(values[counted].cpu().double(), minlength=self.classes)
            self._counts[row] += chosen.bincount(minlength=self.classes)

    def result(self) -> Similarity:
        """Return the means over all that was added, on all ranks (then all ranks must ask)."""
        sums, counts = dist.sums(self._sums, self._counts)
        own, other = (sums.sum(1) / counts.sum(1)).tolist()  # 0 / 0 is NaN
        own_by_class, other_by_class = sums / counts
        gaps = own_by_class - other_by_class
        return Similarity(own, other, own - other, own_by_class, other_by_class, gaps, counts[0])


def _checked(
    features: Tensor, labels: Tensor, classes: int, known: Tensor | None, ignore: int
) -> tuple[Tensor, Tensor | None]:
    """Labels as int64 and known classes where the features are, both of the right form."""
    if labels.shape != features[:, 0].shape:
        raise ValueError(
            f"features {tuple(features.shape)} and labels {tuple(labels.shape)} differ in size; "
            "leanlabel.banks.class_means.nearest_labels thins labels out"
        )
    form = torch.empty(1).expand(len(features), classes, *labels.shape[1:])
    return checked_labels(form, labels, ignore), _checked_known(known, classes, features.device)


def _checked_known(known: Tensor | None, classes: int, device: torch.device) -> Tensor | None:
    if known is None:
        return None
    if known.dtype != torch.bool or known.shape != (classes,):
        raise ValueError(f"known must be bool ({classes},), got {known.dtype} {tuple(known.shape)}")
    return known.to(device)
