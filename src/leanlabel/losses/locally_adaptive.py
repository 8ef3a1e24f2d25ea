"""The locally adaptive loss: neighbours of one class are pooled before they meet their label, hard places count more.

Scores are (B, C, *space) with one, two or three dimensions of space, labels (B, *space). What is pooled, how windows
lie and how their losses are combined are options; :data:`GUO2018` names the paper's settings, as far as they are known.
Nothing is unfolded (:mod:`leanlabel.losses.windows`): whatever n is, a few tensors of the size of the scores are held.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from leanlabel import dist
from leanlabel.losses.pixel import check_class_weights, checked_labels, pixel_cross_entropy, wide
from leanlabel.losses.windows import Anchor, Normaliser, Windows, pool_pairs, pool_places

Pool = Literal["scores", "probs"]

GUO2018: Mapping[str, Any] = MappingProxyType(
    {
        "n": 3,
        "sigma": 1.0,
        "stride": 1,
        "k": 5.0,
        "pool": "scores",
        "normaliser": "weights",
        "anchor": "centre",
        "root": True,
    }
)
"""Settings of Guo et al. 2018 (arXiv 1802.08290). A reconstruction: k = 5 is reported as the best; window, stride,
sigma, the divisor and the outer root are not known and are our choice. No code was published."""


class LocalLosses(NamedTuple):
    """Losses of windows, before they are combined.

    Attributes:
        eps: (B, *grid), loss of the window at each place of the grid of centres, >= 0; 0 where there is none.
        valid: (B, *grid) bool, where there is one.
        extra: (P,) losses of further classes of windows; empty unless `anchor="all"`.
        place: (P,) int64, which window of the flattened (B, *grid) they belong to.
    """

    eps: Tensor
    valid: Tensor
    extra: Tensor
    place: Tensor


def locally_adaptive(
    scores: Tensor,
    labels: Tensor,
    *,
    n: int = 3,
    sigma: float = 1.0,
    stride: int = 1,
    k: float = 5.0,
    pool: Pool = "scores",
    normaliser: Normaliser = "weights",
    anchor: Anchor = "centre",
    root: bool = True,
    mix: float = 1.0,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    ignore: int = -100,
) -> Tensor:
    """Pool each window's scores over the pixels of its centre's class, and lean on the windows with large losses.

    rho_q = sum_i w_qi x_i / Z_q   over pixels i of the window around q with y_i = y_q, clipped to the image,
    w_qi = exp(-d^2 / (2 sigma^2)), d the chessboard distance of i and q
    eps_q = logsumexp(rho_q) - rho_q[y_q]
    L = (1/M sum_q eps_q^k)^(1/k)   over the M windows of the batch of all ranks    [Guo et al. 2018; see GUO2018]

    n = 1, k = 1 is the mean cross-entropy of pixels. With k > 1, L of a batch is not the mean of L of its parts. Ranks
    are taken care of here. Whoever accumulates gradients over parts needs two passes: sum eps^k and M over all parts
    without gradient, then go backward from each part's (eps^k).sum() / (k M L^(k - 1)), with eps from
    :func:`local_losses`.

    Args:
        scores: (B, C, *space) before the softmax, any float type, carries gradient.
        labels: (B, *space), integers in [0, C) or `ignore`. Pixels that are ignored are neither pooled nor centres.
        n: side of the window in pixels of the scores, odd; may exceed the image.
        sigma: width of the weights in pixels, > 0; infinity weighs all alike.
        stride: distance of the centres; the first is at 0.
        k: exponent, >= 1.
        pool: "scores", or "probs": the softmax is pooled, eps_q = -log rho_q[y_q].
        normaliser: Z is the sum of the "weights", or the "count" of pixels, which draws scores towards 0.
        anchor: the class of the "centre", or "all" classes in a window, each with a loss of its own; then every place
            is a window, also one whose own label is ignored.
        root: False leaves the k-th root out.
        mix: share of L in the result; the rest is the mean cross-entropy of pixels.
        class_weights: (C,) >= 0, multiply eps as in torch's cross_entropy; M stays a count.
        smoothing: share of the target inside eps that is spread evenly over the classes, in [0, 1).
        ignore: label that is left out.

    Returns:
        Scalar, float32 or wider; 0 attached to the graph where nothing is labelled. On several ranks every rank gets a
        part of which the mean over ranks is the result of one process with the whole batch, gradients likewise.

    Raises:
        ValueError: shapes, types or settings do not fit; InputError for labels that are no class.

    Example:
        >>> scores, labels = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([[0, 0]])
        >>> locally_adaptive(scores, labels, sigma=float("inf"), k=1.0)  # two pixels with scores (1, 0)
        tensor(0.3133)
    """
    if not 1 <= k < math.inf:
        raise ValueError(f"k must be finite and at least 1, got {k}")
    if not 0 <= mix <= 1:
        raise ValueError(f"mix must be in [0, 1], got {mix}")
    found = local_losses(
        scores,
        labels,
        n=n,
        sigma=sigma,
        stride=stride,
        pool=pool,
        normaliser=normaliser,
        anchor=anchor,
        class_weights=class_weights,
        smoothing=smoothing,
        ignore=ignore,
    )
    loss = _power_mean(found, k, root, shared=True)
    if mix < 1:
        pixels = pixel_cross_entropy(
            scores, labels, class_weights=class_weights, smoothing=smoothing, ignore=ignore, divide="count"
        )
        loss = mix * loss + (1 - mix) * pixels
    return loss


class LocallyAdaptive(nn.Module):
    """Module form of :func:`locally_adaptive`; class weights are a buffer.

    Args:
        class_weights: (C,) or None.
        settings: every other keyword of :func:`locally_adaptive`, such as those of :data:`GUO2018`.

    Example:
        >>> LocallyAdaptive(**GUO2018)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
        tensor(0.6931)
    """

    class_weights: Tensor | None

    def __init__(self, *, class_weights: Tensor | None = None, **settings: Any) -> None:
        super().__init__()
        unknown = sorted(set(settings) - {*GUO2018, "mix", "smoothing", "ignore"})
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}; see locally_adaptive")
        self.settings = settings
        self.register_buffer("class_weights", class_weights)

    def forward(self, scores: Tensor, labels: Tensor, k: float | None = None) -> Tensor:
        """Return the loss; `k` overrides the exponent, for a schedule."""
        settings = self.settings if k is None else {**self.settings, "k": k}
        return locally_adaptive(scores, labels, class_weights=self.class_weights, **settings)


def local_losses(
    scores: Tensor,
    labels: Tensor,
    *,
    n: int = 3,
    sigma: float = 1.0,
    stride: int = 1,
    pool: Pool = "scores",
    normaliser: Normaliser = "weights",
    anchor: Anchor = "centre",
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    ignore: int = -100,
) -> LocalLosses:
    """Losses eps of all windows of this rank, with gradient; arguments as in :func:`locally_adaptive`.

    Raises:
        ValueError: shapes, types or settings do not fit; InputError for labels that are no class.

    Example:
        >>> found = local_losses(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, -100]]]))
        >>> found.eps, found.valid
        (tensor([[[0.6931, 0.6931, 0.0000]]]), tensor([[[ True,  True, False]]]))
    """
    for name, value, known in (
        ("pool", pool, ("scores", "probs")),
        ("normaliser", normaliser, ("weights", "count")),
        ("anchor", anchor, ("centre", "all")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {value!r}")
    if n < 1 or n % 2 == 0 or stride < 1 or not sigma > 0:
        raise ValueError(
            f"windows need an odd n >= 1, a stride >= 1 and a sigma > 0, got {n}, {stride}, {sigma}"
        )
    labels = checked_labels(scores, labels, ignore)
    check_class_weights(class_weights, scores.shape[1], smoothing)
    valid = labels != ignore
    values, log = wide(scores), pool == "probs"
    windows = Windows.of(labels, valid, n=n, sigma=sigma, stride=stride, normaliser=normaliser, anchor=anchor)
    if log:
        values = F.log_softmax(values, 1)
        if smoothing == 0:  # nobody reads the probability of another class than the label
            values = values.gather(1, labels.where(valid, 0)[:, None])
    cost = partial(_cost, log=log, weights=class_weights, smoothing=smoothing)
    eps = cost(pool_places(values, windows, log), windows.anchors.long())
    extra = eps.new_zeros(0)
    if len(windows.place):
        extra = cost(pool_pairs(values, windows, log), windows.classes.long())
    return LocalLosses(eps, windows.anchors >= 0, extra, windows.place)


@torch.no_grad()
def window_weights(scores: Tensor, labels: Tensor, *, k: float = 5.0, **windows: Any) -> Tensor:
    """Map the weight (eps_q / L)^(k - 1) that the power mean gives to each window, relative to the plain mean.

    A picture of it shows whether a large k follows rare classes and borders, or wrong labels. L is taken over what is
    given, without other ranks.

    Args:
        scores: (B, C, *space).
        labels: (B, *space), integers in [0, C) or `ignore`.
        k: exponent, >= 1.
        windows: further keywords of :func:`local_losses`.

    Returns:
        (B, *grid), >= 0, without gradient; 0 where there is no window. With `anchor="all"` summed over a window's
        classes.

    Example:
        >>> scores = torch.tensor([[[4.0, 0.0], [0.0, 0.0]]])
        >>> window_weights(scores, torch.tensor([[0, 1]]), k=2.0, n=1)
        tensor([[0.0370, 1.4137]])
    """
    if not 1 <= k < math.inf:
        raise ValueError(f"k must be finite and at least 1, got {k}")
    found = local_losses(scores, labels, **windows)
    level = _power_mean(found, k, root=True, shared=False)
    level = level.where(level > 0, 1)
    weights = ((found.eps / level) ** (k - 1)).where(found.valid, 0)
    further = (found.extra / level) ** (k - 1)
    return weights.view(-1).index_add(0, found.place, further).view_as(weights)


def k_ramp(t: int, steps: int, k: float, share: float = 0.15) -> float:
    """Let the exponent rise linearly from 1 to k over the first share of the training.

    Large exponents follow outliers and wrong labels while a network still knows nothing.

    Args:
        t: iteration, >= 0.
        steps: iterations of the training.
        k: final exponent, >= 1.
        share: share of the iterations over which it rises, in [0, 1]; 0 starts with k.

    Returns:
        Exponent in [1, k].

    Example:
        >>> [k_ramp(t, 100, 5.0, 0.2) for t in (0, 10, 20, 99)]
        [1.0, 3.0, 5.0, 5.0]
    """
    rise = share * steps
    return k if t >= rise else 1 + (k - 1) * t / rise


def _cost(pooled: Tensor, target: Tensor, log: bool, weights: Tensor | None, smoothing: float) -> Tensor:
    """Cross-entropy of pooled scores, or of the logarithm of pooled probabilities; 0 where the target is negative."""
    if weights is not None:
        weights = weights.to(pooled)
    if not log:
        return F.cross_entropy(pooled, target, weights, None, -1, None, "none", smoothing)
    valid = target >= 0
    known = target.where(valid, 0)
    of_target = pooled[:, 0] if smoothing == 0 else pooled.gather(1, known[:, None])[:, 0]
    cost = -of_target if weights is None else -of_target * weights[known]
    if smoothing:
        every = pooled if weights is None else pooled * weights.view(-1, *[1] * (pooled.ndim - 2))
        cost = (1 - smoothing) * cost - smoothing * every.mean(1)
    return cost.where(valid, 0)


def _power_mean(found: LocalLosses, k: float, root: bool, *, shared: bool) -> Tensor:
    """(mean of eps^k)^(1/k) over all windows, of all ranks where `shared`."""
    eps = torch.cat([found.eps.flatten(), found.extra])
    count = found.valid.sum() + len(found.extra)
    return _PowerMean.apply(eps, count, k, root, shared)  # pyright: ignore[reportReturnType]


class _PowerMean(torch.autograd.Function):
    """Power mean of losses in which zeros may stand for windows that do not exist; `count` says how many do.

    Computed from logarithms: eps^k leaves the number range early. Each rank returns the value over all ranks; its
    gradient is multiplied by the number of ranks, because the training loop averages over them.
    """

    @staticmethod
    def forward(ctx: Any, eps: Tensor, count: Tensor, k: float, root: bool, shared: bool) -> Tensor:
        log_eps = eps.clamp(min=0).log()  # rounding may leave -1e-8
        total = torch.stack([(k * log_eps).logsumexp(0), count.to(eps)])
        ranks = dist.all_rows(total[None]) if shared else total[None]
        count = ranks[:, 1].sum().clamp(min=1)
        log_mean = ranks[:, 0].logsumexp(0) - count.log()
        ctx.save_for_backward(log_eps, log_mean, count)
        ctx.k, ctx.root, ctx.factor = k, root, dist.world() if shared else 1
        return (log_mean / k if root else log_mean).exp()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        log_eps, log_mean, count = ctx.saved_tensors
        k = ctx.k
        scale = gradients[0] * ctx.factor / count
        if k == 1:
            return scale.expand_as(log_eps), None, None, None, None
        # (eps / L)^(k - 1), or k eps^(k - 1) without the root; both 0 where every loss is 0.
        level = log_mean.where(log_mean.isfinite(), 0) / k if ctx.root else torch.zeros_like(log_mean)
        slope = ((k - 1) * (log_eps - level)).exp() * scale
        return slope if ctx.root else slope * k, None, None, None, None
