"""Harder negatives for any contrast: mixtures of the hardest keys of a query, and of those keys with the query.

The synthetic points of MoCHi [Kalantidis et al., NeurIPS 2020] enter a loss only through their products with the query,
and those have closed forms in products that ranking the keys gives anyway. So no synthetic point is stored:
:func:`mixed_logits` returns their logits, to be given to :func:`leanlabel.losses.contrastive.contrast` as `extra`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanlabel.losses.contrastive import unit
from leanlabel.losses.relations import KeepRule, NotItself
from leanlabel.rng import Draw

# Entries of a block of similarities, and its least width: the top N of a wide block cost less than of many narrow ones.
_AREA, _WIDTH = 1 << 22, 1 << 14
# Mixtures whose lengths are computed at once. On a CPU they are to stay in the caches, on a GPU to be worth a launch.
_CPU_MIXTURES, _GPU_MIXTURES = 1 << 14, 1 << 18
# From so many keys on, drawing a pair with replacement can hardly be told from drawing distinct ones.
_REPLACEMENT = 32


@dataclass(frozen=True)
class Mixing:
    """How many synthetic negatives a query gets, and from which keys; written MoCHi (N, s, s') in the paper."""

    n: int
    """N: how many of the hardest keys are mixed, >= 1."""
    s: int
    """s, type 1: mixtures of two of them, >= 0."""
    s2: int = 0
    """s', type 2: mixtures of one of them with the query, >= 0."""

    def __post_init__(self) -> None:
        if self.n < 1 or self.s < 0 or self.s2 < 0:
            raise ValueError(
                f"mixing needs n >= 1, s >= 0 and s2 >= 0, got n {self.n}, s {self.s}, s2 {self.s2}"
            )

    @property
    def points(self) -> int:
        """Synthetic negatives per query, s + s'."""
        return self.s + self.s2


@dataclass(frozen=True, eq=False)
class Hardest:
    """The keys most similar to each query, hardest first."""

    similarity: Tensor
    """(N, n) products q . k, detached, descending; -inf where a query has fewer than n keys."""
    index: Tensor
    """(N, n) int64, which keys; -1 where a query has fewer."""
    count: Tensor
    """(N,) int64, how many of the n are there."""


class MixingDraws(NamedTuple):
    """Which of a query's hardest keys are mixed, and in which proportions. Positions count from 0, the hardest."""

    first: Tensor
    """(N, s) int64, position of n_i of type 1."""
    second: Tensor
    """(N, s) int64, position of n_j."""
    alpha: Tensor
    """(N, s) in [0, 1), share of n_i."""
    partner: Tensor
    """(N, s') int64, position of the key of type 2."""
    beta: Tensor
    """(N, s') in [0, 0.5), share of the query: the key always has more."""


def mixed_logits(
    query: Tensor,
    keys: Tensor,
    mixing: Mixing,
    draw: Draw | MixingDraws,
    *,
    tau: float,
    keep: KeepRule | None = None,
    top: Hardest | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Logits of a query with mixtures of its hardest keys, without building the mixtures.

    With n_i, n_j among the N keys most similar to q, c = q . n, alpha ~ U(0, 1), beta ~ U(0, 1/2):

        type 1: h = (alpha n_i + (1 - alpha) n_j) / ||.||,  q . h = (alpha c_i + (1 - alpha) c_j) / ||.||
        type 2: h = (beta q + (1 - beta) n_j) / ||.||,      q . h = (beta q . q + (1 - beta) c_j) / ||.||

    [Kalantidis et al. 2020, section 4]. Synthetic points are constants: the gradient of q . h is h, none flows
    through the query inside h, and none to the keys. A mixture of length 0 is replaced by n_i (n_j for type 2).

    Ranking takes O(N K) time and one block of memory, mixing O(N (s + s')) memory. The class oracle of the paper is
    `keep=Distinct(labels, key_labels)`, for the loss too; where labels are missing, mark queries and keys by different
    numbers. In a queue that is still partly noise, give only its real rows and their ids.

    Args:
        query: (N, D), meant to be unit rows, gradient.
        keys: (K, D), meant to be unit rows; detached here.
        mixing: how many keys are ranked and how many points mixed.
        draw: source of random numbers with one id per query, so that results do not depend on the ranks; or the draws
            themselves, positions beyond a query's keys being wrapped around.
        tau: temperature, > 0, dimensionless.
        keep: keys that take part at all, as in `contrast`; dropped keys are not ranked.
        top: what :func:`hardest` found for the same arguments, where it is at hand.
        chunk: keys ranked at a time; None chooses. Changes memory and time, not the result.

    Returns:
        (N, s + s') **logits, already divided by tau**, type 1 first, in float32 or wider; (N, 0) without keys. A query
        without a key that `keep` allows gets -inf (absent), one with a single such key gets its logit from type 1.

    Raises:
        ValueError: shapes do not fit, tau <= 0 or chunk < 1.

    Example:
        >>> from leanlabel.rng import draw
        >>> query = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> queue = torch.tensor([[0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]])
        >>> source = draw(0, "mix", t=0, ids=torch.tensor([4, 9]))
        >>> mixed_logits(query, queue, Mixing(n=2, s=3, s2=1), source, tau=0.2).shape
        torch.Size([2, 4])
    """
    _check(query, keys, tau, keep, chunk)
    with torch.autocast(query.device.type, enabled=False):
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        rows, columns = query.to(dtype), keys.detach().to(dtype)
        if len(columns) == 0 or mixing.points == 0:
            return rows.new_zeros(len(rows), 0)
        if top is None:
            top = hardest(rows, columns, mixing.n, keep=keep, chunk=chunk)
        draws = (
            draw_mixing(draw, mixing, top.count) if isinstance(draw, Draw) else _wrapped(draw, mixing, top)
        )
        draws = MixingDraws(*(part.to(rows.device) for part in draws))
        return _MixedLogits.apply(rows, columns, top, draws, tau)  # pyright: ignore[reportReturnType]


def two_view_mixed(
    first: Tensor,
    second: Tensor,
    mixing: Mixing,
    draw: Draw,
    *,
    tau: float,
    rows: slice | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Mixed negatives for :func:`leanlabel.losses.contrastive.two_view_contrast`, to be given to it as `extra`.

    The keys of a row are all rows of both views but itself and its partner; see :func:`mixed_logits`.

    Args:
        first: (N, D), any norm, gradient.
        second: (N, D), row i is the other view of row i of `first`; gradient.
        mixing: how many keys are ranked and how many points mixed.
        draw: source of random numbers with the ids of the R samples of `rows`; both views of a sample get their own.
        tau: temperature, > 0, dimensionless.
        rows: as in `two_view_contrast`.
        chunk: as in :func:`mixed_logits`.

    Returns:
        (2R, s + s'), the rows of `first`, then those of `second`; -inf for N = 1, where there is no negative.

    Raises:
        ValueError: the two shapes differ, `rows` has a step, or what :func:`mixed_logits` raises.

    Example:
        >>> from leanlabel.losses.contrastive import two_view_contrast
        >>> from leanlabel.rng import draw
        >>> views, others = torch.eye(4), torch.eye(4) + 0.1
        >>> source = draw(0, "mix", t=0, ids=torch.arange(4))
        >>> extra = two_view_mixed(views, others, Mixing(n=3, s=2, s2=1), source, tau=0.5)
        >>> bool(two_view_contrast(views, others, tau=0.5, extra=extra) > two_view_contrast(views, others, tau=0.5))
        True
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"the two views must be (N, D) of one shape, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    n = len(first)
    both = unit(torch.cat([first, second]))
    start, stop, step = slice(None).indices(n) if rows is None else rows.indices(n)
    if step != 1:
        raise ValueError(f"rows must be a contiguous slice, got {rows}")
    own = torch.arange(2 * n, device=both.device)
    anchors = torch.cat([own[start:stop], own[n + start : n + stop]])
    keep = NotItself(anchors) & NotItself(own.roll(-n)[anchors])
    query = both.index_select(0, anchors)
    if n == 0 or mixing.points == 0:
        return query.new_zeros(len(query), 0)
    top = hardest(query, both, mixing.n, keep=keep, chunk=chunk)
    halves = [draw_mixing(draw, mixing, count) for count in top.count.chunk(2)]
    draws = MixingDraws(*(torch.cat(parts) for parts in zip(*halves, strict=True)))
    return mixed_logits(query, both, mixing, draws, tau=tau, top=top)


@torch.no_grad()
def hardest(
    query: Tensor, keys: Tensor, n: int, *, keep: KeepRule | None = None, chunk: int | None = None
) -> Hardest:
    """Rank the keys of every query by q . k and keep the n highest, block by block.

    Args:
        query: (N, D); no gradient.
        keys: (K, D); no gradient.
        n: how many, >= 1; fewer where K is smaller.
        keep: keys that take part, or None.
        chunk: keys in a block; None chooses. Where two keys are equally similar it may decide which is taken.

    Raises:
        ValueError: shapes do not fit, n < 1 or chunk < 1.

    Example:
        >>> found = hardest(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.8, 0.6], [1.0, 0.0]]), 2)
        >>> found.index.tolist()
        [[2, 1]]
    """
    _check(query, keys, 1.0, keep, chunk)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    with torch.autocast(query.device.type, enabled=False):
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        left, right = query.to(dtype), keys.to(dtype)
        n = min(n, len(right))
        similarity = left.new_empty(len(left), n)
        index = torch.empty(len(left), n, dtype=torch.int64, device=left.device)
        width = min(chunk or max(_WIDTH, 4 * n), max(len(right), 1))
        for rows in _slices(len(left), max(1, _AREA // width)):
            best = place = None
            for cols in _slices(len(right), width):
                block = left[rows] @ right[cols].mT
                if keep is not None:
                    keep.fill(block, rows, cols, -torch.inf)
                # Not in order: only what remains in the end is sorted.
                value, where = block.topk(min(n, block.shape[1]), dim=1, sorted=False)
                where += cols.start
                if best is not None and place is not None:
                    value, where = torch.cat([best, value], 1), torch.cat([place, where], 1)
                    value, chosen = value.topk(min(n, value.shape[1]), dim=1, sorted=False)
                    where = where.gather(1, chosen)
                best, place = value, where
            if best is not None and place is not None:
                similarity[rows], order = best.sort(dim=1, descending=True)
                index[rows] = place.gather(1, order)
        absent = similarity == -torch.inf
        return Hardest(similarity, index.masked_fill_(absent, -1), (~absent).sum(1))


def draw_mixing(draw: Draw, mixing: Mixing, available: Tensor) -> MixingDraws:
    """Draw positions and shares of the mixtures of every query.

    Both positions of a pair come from all of a query's keys, with replacement; where a query has fewer than 32 keys
    (and at least 2) they are distinct. Which numbers a query gets depends on its id and its own number of keys only.

    Args:
        draw: source with one id per query.
        mixing: how many keys are ranked and how many points mixed.
        available: (N,) int64, how many ranked keys each query has, >= 0.

    Raises:
        ValueError: the source does not give one row per query.
    """
    if available.ndim != 1:
        raise ValueError(f"available must be (N,), got {tuple(available.shape)}")
    # Single words of 24 bits: exact integers, and half the price of 64-bit draws.
    first, second, alpha = (draw.uniform(mixing.s) for _ in range(3))
    partner, beta = draw.uniform(mixing.s2), draw.uniform(mixing.s2)
    if alpha.shape != (len(available), mixing.s):
        raise ValueError(
            f"draw must have one id per query: {len(available)} queries, but it gives {tuple(alpha.shape)}"
        )
    count = available.clamp(max=mixing.n).to(alpha.device)[:, None]
    one, two = _position(first, count), _position(second, count)
    # Steps of 1 .. count - 1 from the first position, around the circle.
    step = 1 + _position(second, count - 1)
    distinct = (one + step) % count.clamp(min=1)
    two = torch.where((count > 1) & (count < _REPLACEMENT), distinct, two)
    return MixingDraws(one, two, alpha, _position(partner, count), beta / 2)


class _MixedLogits(torch.autograd.Function):
    """The backward pass needs one weighted sum of keys per query: the shares of all its mixtures, key by key."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, top: Hardest, draws: MixingDraws, tau: float
    ) -> Tensor:
        similarity = top.similarity.masked_fill(top.index < 0, 0.0)
        alpha, beta = draws.alpha.to(query), draws.beta.to(query)
        # Bags of indices may be int32, half the memory.
        index = top.index.clamp(min=0).to(torch.int32)
        ones, twos, partners = (
            index.gather(1, place) for place in (draws.first, draws.second, draws.partner)
        )
        one, two = _shares(keys, torch.stack([ones, twos], 2), torch.stack([alpha, 1 - alpha], 2)).unbind(2)
        square = query.square().sum(1, keepdim=True)
        near = similarity.gather(1, draws.partner)
        longer = _lengths(keys, partners[..., None], (1 - beta)[..., None]).square()
        longer += beta * (beta * square + 2 * (1 - beta) * near)
        zero = longer <= _short(longer) ** 2
        scale = longer.masked_fill(zero, 1.0).rsqrt()
        own, other = (beta * scale).masked_fill(zero, 0.0), ((1 - beta) * scale).masked_fill(zero, 1.0)
        logits = torch.cat(
            [
                one * similarity.gather(1, draws.first) + two * similarity.gather(1, draws.second),
                own * square + other * near,
            ],
            1,
        ).div_(tau)
        absent = (top.count == 0)[:, None]
        ctx.tau, ctx.s = tau, alpha.shape[1]
        ctx.save_for_backward(query, keys, torch.cat([ones, twos, partners], 1), one, two, own, other, absent)
        return logits.masked_fill_(absent, -torch.inf)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, keys, index, one, two, own, other, absent = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            grad = (grad_outputs[0] / ctx.tau).masked_fill_(absent, 0.0)
            pairs, mixed = grad[:, : ctx.s], grad[:, ctx.s :]
            weights = torch.cat([pairs * one, pairs * two, mixed * other], 1)
            pulled = F.embedding_bag(index, keys, mode="sum", per_sample_weights=weights)
            pulled.addcmul_((mixed * own).sum(1, keepdim=True), query)
        return pulled, None, None, None, None


def _shares(keys: Tensor, index: Tensor, shares: Tensor) -> Tensor:
    """Divide the shares of mixtures of keys, (N, s, 2), by the mixtures' lengths; a mixture of length 0 becomes its
    first key."""
    length = _lengths(keys, index, shares)[..., None]
    zero = length <= _short(length)
    alone = torch.tensor([1.0, 0.0], device=shares.device, dtype=shares.dtype)
    return torch.where(zero, alone, shares / length.masked_fill_(zero, 1.0))


def _lengths(keys: Tensor, index: Tensor, shares: Tensor) -> Tensor:
    """Norms of sum_p shares_p keys[index_p] over the last dimension, a few thousand mixtures at a time."""
    bags, weights = index.flatten(0, -2), shares.flatten(0, -2)
    lengths = weights.new_empty(len(bags))
    for part in _slices(len(bags), _GPU_MIXTURES if keys.is_cuda else _CPU_MIXTURES):
        mixture = F.embedding_bag(bags[part], keys, mode="sum", per_sample_weights=weights[part])
        torch.linalg.vector_norm(mixture, dim=1, out=lengths[part])
    return lengths.view(index.shape[:-1])


def _short(like: Tensor) -> float:
    """Norm up to which a mixture counts as zero: 1e-8, or what rounding leaves of a sum that cancels."""
    return max(1e-8, torch.finfo(like.dtype).eps)


def _position(uniform: Tensor, count: Tensor) -> Tensor:
    """floor(u count) of multiples u of 2^-24, in exact integer arithmetic."""
    return ((uniform * 2.0**24).long() * count) >> 24


def _wrapped(draws: MixingDraws, mixing: Mixing, top: Hardest) -> MixingDraws:
    shapes = [tuple(part.shape) for part in draws]
    expected = [(len(top.count), width) for width in (*[mixing.s] * 3, *[mixing.s2] * 2)]
    if shapes != expected:
        raise ValueError(f"draws must have the shapes {expected}, got {shapes}")
    count = top.count.clamp(min=1).to(draws.first.device)[:, None]
    first, second, partner = (place % count for place in (draws.first, draws.second, draws.partner))
    return MixingDraws(first, second, draws.alpha, partner, draws.beta)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _check(query: Tensor, keys: Tensor, tau: float, keep: KeepRule | None, chunk: int | None) -> None:
    if not tau > 0:
        raise ValueError(f"tau must be positive, got {tau}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if not query.is_floating_point() or query.ndim != 2 or keys.ndim != 2 or query.shape[1] != keys.shape[1]:
        raise ValueError(
            f"query (N, D) and keys (K, D) must be floating point and share D, "
            f"got {query.dtype} {tuple(query.shape)} and {keys.dtype} {tuple(keys.shape)}"
        )
    if keep is not None:
        keep.check(len(query), len(keys))
