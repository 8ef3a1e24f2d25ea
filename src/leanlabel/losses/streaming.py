"""Log-sum-exp over the rows of a product of two matrices, block by block: the core of the contrastive kernel.

The forward pass keeps one number per query; the backward pass computes the blocks a second time. Logits are
kept in base 2 (log2(e) / tau is folded into the rows once), because exp2 is the cheaper exponential.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanlabel.losses.relations import KeepRule, SameId, Weights

_LN_2 = math.log(2.0)
# Side of a block. On a CPU: small enough for the caches, large enough that threads seldom wait for each other
# (512 is as fast on an idle machine and far slower on a busy one). On a GPU: worth its launches.
_CPU_SIDE, _GPU_SIDE = 1024, 4096
# Below this bound on |logit| sums of exp(logit) and their reciprocals stay far inside the number range, so
# that no maximum has to be subtracted.
_SAFE_LOGIT = {torch.float32: 40.0, torch.float64: 300.0}

_bf16_products: ContextVar[bool] = ContextVar("bf16_products", default=False)


@contextmanager
def bf16_products() -> Iterator[None]:
    """Compute the block products of the contrastive losses with bfloat16 factors inside this context.

    Off by default. Acts on float32 (or narrower) inputs whose |logit| stays below 40 and whose positives
    need no blocks; everything else is computed as without it. Exponentials and sums stay in float32, and so
    do single positives (`OwnKey`, `own`). Read in the forward pass, it holds for its backward pass.

    Logits of negatives carry a relative error of 2^-9. Measured relative errors of the gradient, two noisy
    views of the same rows: 1e-4 to 7e-4 at tau 0.2 to 0.4, up to 2e-3 at tau 0.1, 3e-3 when nearly all
    rows coincide. Do not use it below tau 0.1.

    Example:
        >>> with bf16_products():
        ...     pass
    """
    token = _bf16_products.set(True)
    try:
        yield
    finally:
        _bf16_products.reset(token)


def takes_bf16_products(dtype: torch.dtype) -> bool:
    """True inside :func:`bf16_products`, for rows of float32."""
    return _bf16_products.get() and dtype == torch.float32


@dataclass(frozen=True)
class Pairs:
    """What the blocks are to be asked for.

    Args:
        tau: temperature, > 0.
        keep: rule that drops pairs, or None.
        positives: relation evaluated inside the blocks, or None.
        inside: collect the log-sum-exp of the positives instead of the sum of their logits.
        chunk: rows of a block, or None.
    """

    tau: float
    keep: KeepRule | None = None
    positives: SameId | Weights | None = None
    inside: bool = False
    chunk: int | None = None


def log_sum_exp(query: Tensor, keys: Tensor | None, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce the logits s_ij = q_i . k_j / tau of every query over its keys without holding them all.

    lse_i = log sum_{j kept} e^{s_ij};  mass_i = sum_j w_ij;  score_i = sum_j w_ij s_ij, or, when `inside`,
    log sum_{j: w_ij > 0} e^{s_ij}. All are exact; the gradient flows into `query` and `keys`.

    Args:
        query: (N, D) float32 or float64, N >= 1, gradient.
        keys: (K, D) of the same type, gradient; None when the keys are the queries themselves.
        pairs: temperature, rules and block size.

    Returns:
        lse (N,), -inf where no key is kept; score (N,) and mass (N,) of the positives evaluated inside the
        blocks, empty when `pairs.positives` is None. `mass` carries no gradient.
    """
    return _LogSumExp.apply(query, keys, pairs, torch.is_grad_enabled())  # pyright: ignore[reportReturnType]


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor | None, pairs: Pairs, record: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        cut, left, right = _prepare(query, keys, pairs)
        needs = [needed and record for needed in ctx.needs_input_grad[:2]]
        blocks = _Blocks(cut, left, right)
        # What spares the backward pass its second visit: the one block there is, or, where only the queries
        # need a gradient, sum_j e^{s_ij} k_j, which does not depend on what comes from above.
        keep_block = any(needs) and cut.single and cut.plain
        pulled = None
        if needs[0] and keys is not None and not needs[1] and cut.plain and not keep_block:
            pulled = torch.zeros_like(query)
        total, score, mass = _forward(blocks, pulled)
        ctx.cut, ctx.tau, ctx.pulled = cut, pairs.tau, pulled is not None
        if pulled is not None:
            ctx.save_for_backward(total, pulled)
        elif any(needs):
            ctx.save_for_backward(total, score, left, right, blocks.logits if keep_block else None)
        mass = mass.to(query.dtype)
        ctx.mark_non_differentiable(mass)
        return (total * _LN_2).to(query.dtype), (score * _LN_2).to(query.dtype), mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_lse, grad_score, _ = grad_outputs
        with torch.autocast(grad_lse.device.type, enabled=False):
            if ctx.pulled:
                total, pulled = ctx.saved_tensors
                share = (_share(grad_lse, total) / ctx.tau).to(pulled.dtype)
                return pulled * share[:, None], None, None, None
            total, score, left, right, block = ctx.saved_tensors
            blocks = _Blocks(ctx.cut, left, right)
            if ctx.cut.half:
                return _backward_half(blocks, total, grad_lse, block), None, None, None
            needs = (True, True) if ctx.cut.shared else ctx.needs_input_grad[:2]
            to_query, to_keys = _backward(blocks, total, score, grad_lse, grad_score, block, needs)
            if ctx.cut.shared and to_query is not None and to_keys is not None:
                return to_query.add_(to_keys), None, None, None
            return to_query, to_keys, None, None


@dataclass(frozen=True)
class _Cut:
    """How the matrix is cut into blocks, and what may be saved on the way.

    Args:
        pairs: what is asked for.
        rows, cols: the ranges of the blocks.
        shared: queries and keys are the same rows.
        safe: |logit| is small enough to do without subtracting a maximum.
        half: blocks below the diagonal are the transposes of those above and are not visited.
        dtype: of exponentials and sums; the rows themselves may be bfloat16.
    """

    pairs: Pairs
    rows: list[slice]
    cols: list[slice]
    shared: bool
    safe: bool
    half: bool
    dtype: torch.dtype

    @property
    def plain(self) -> bool:
        return self.safe and self.pairs.positives is None

    @property
    def single(self) -> bool:
        return len(self.rows) == 1 and len(self.cols) == 1 and self.pairs.chunk is None

    def visits(self) -> Iterator[tuple[slice, slice]]:
        for rows in self.rows:
            for cols in self.cols:
                if not self.half or cols.start >= rows.start:
                    yield rows, cols


def _prepare(query: Tensor, keys: Tensor | None, pairs: Pairs) -> tuple[_Cut, Tensor, Tensor]:
    """Choose the way through the matrix and scale the rows so that left . right is the logit in base 2."""
    columns = query if keys is None else keys
    n, k = len(query), len(columns)
    safe = _bounded(query, columns, pairs.tau)
    plain = safe and pairs.positives is None
    half = keys is None and plain and (pairs.keep is None or pairs.keep.symmetric)
    scale = 1.0 / (pairs.tau * _LN_2)
    # With both sides the same rows the factor is split: one scaled copy serves as both.
    left = query * (math.sqrt(scale) if half else scale)
    if plain and takes_bf16_products(query.dtype):
        # Not torch's own switch for bfloat16 inside float32 products: on processors that have bfloat16
        # instructions but no matrix tiles it leaves the products in float32 (measured).
        left, columns = left.bfloat16(), columns.bfloat16()
    right = left if half else columns
    side = _GPU_SIDE if query.is_cuda else _CPU_SIDE
    if pairs.chunk is None and n * k <= side * side:
        height, width = n, k
    else:
        # Blocks on the diagonal are computed whole: at least eight to a side keep that below an eighth.
        fitting = min(side, max(side // 2, n // 8)) if half else side
        height = min(n, pairs.chunk or fitting)
        width = height if half else max(side * side // height, side // 4)
    cut = _Cut(pairs, _ranges(n, height), _ranges(k, width), keys is None, safe, half, query.dtype)
    return cut, left, right


class _Blocks:
    """Computes one block of logits after the other into the same memory."""

    def __init__(self, cut: _Cut, left: Tensor, right: Tensor) -> None:
        self.cut, self.left, self.right = cut, left, right
        height = max((r.stop - r.start for r in cut.rows), default=0)
        width = max((c.stop - c.start for c in cut.cols), default=0)
        self._room = left.new_empty(height * width, dtype=cut.dtype)
        self._narrow = left.new_empty(height * width) if left.dtype != cut.dtype else None
        self.logits = self._room

    def visit(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor | None]:
        """Logits in base 2 (until the next visit), -inf where dropped, and the positives' weights."""
        shape = (rows.stop - rows.start, cols.stop - cols.start)
        area = shape[0] * shape[1]
        logits = self._room[:area].view(shape)
        if self._narrow is None:
            torch.mm(self.left[rows], self.right[cols].t(), out=logits)
        else:
            narrow = self._narrow[:area].view(shape)
            logits.copy_(torch.mm(self.left[rows], self.right[cols].t(), out=narrow))
        pairs, weights = self.cut.pairs, None
        if pairs.positives is not None:
            weights = pairs.positives.block(rows, cols).to(logits, copy=True)
        if pairs.keep is not None:
            pairs.keep.fill(logits, rows, cols, -torch.inf)
            if weights is not None:
                pairs.keep.fill(weights, rows, cols, 0.0)
        self.logits = logits
        return logits, weights

    def add_product(self, target: Tensor, block: Tensor, rows: Tensor) -> None:
        """target += block @ rows, with the factors in the type of the rows."""
        if self._narrow is None:
            target.addmm_(block, rows)
        else:
            target.add_(torch.mm(block, rows))

    def narrowed(self, block: Tensor) -> Tensor:
        """The block in the type of the rows, as a factor of a product."""
        return block if self._narrow is None else self._narrow[: block.numel()].view(block.shape).copy_(block)


class _RunningLogSum:
    """log2 sum_j 2^{block_ij} over blocks that come one after the other; sums are kept in float64."""

    def __init__(self, like: Tensor, dtype: torch.dtype, safe: bool) -> None:
        self.sums = like.new_zeros(len(like), dtype=torch.float64)
        self.peaks = None if safe else like.new_full((len(like),), -torch.inf, dtype=dtype)

    def add(self, rows: slice, block: Tensor) -> None:
        """Add a block of logits in base 2; it is replaced by its (scaled) exponentials."""
        if self.peaks is None:
            self.sums[rows] += block.exp2_().sum(1)
            return
        before = self.peaks[rows]
        peak = torch.maximum(before, block.amax(1))
        shift = peak.masked_fill(peak == -torch.inf, 0.0)
        self.sums[rows] *= (before - shift).exp2()
        self.sums[rows] += block.sub_(shift[:, None]).exp2_().sum(1)
        self.peaks[rows] = peak

    def result(self) -> Tensor:
        logs = self.sums.log2()
        return logs if self.peaks is None else logs + self.peaks


def _forward(blocks: _Blocks, pulled: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Base-2 log-sum-exp, score and mass of every query; adds sum_j e^{s_ij} k_j to `pulled` if given."""
    cut, left = blocks.cut, blocks.left
    running = _RunningLogSum(left, cut.dtype, cut.safe)
    tiled = cut.pairs.positives is not None
    chosen = _RunningLogSum(left, cut.dtype, cut.safe) if cut.pairs.inside and tiled else None
    score = left.new_zeros(len(left) if tiled else 0, dtype=torch.float64)
    mass = torch.zeros_like(score)
    for rows, cols in cut.visits():
        block, weights = blocks.visit(rows, cols)
        if weights is not None:
            mass[rows] += weights.sum(1)
            if chosen is not None:
                chosen.add(rows, block.masked_fill(weights == 0, -torch.inf))
            else:
                # A dropped pair holds -inf and has weight 0.
                score[rows] += weights.mul(block).masked_fill_(weights == 0, 0.0).sum(1)
        running.add(rows, block)
        if cut.half and cols.start != rows.start:
            running.sums[cols] += block.sum(0)
        if pulled is not None:
            blocks.add_product(pulled[rows], blocks.narrowed(block), blocks.right[cols])
    return running.result(), score if chosen is None else chosen.result(), mass


def _backward_half(blocks: _Blocks, total: Tensor, grad_lse: Tensor, block: Tensor | None) -> Tensor:
    """Gradient of the rows that are both queries and keys: sum_j e^{s_ij} (share_i + share_j) z_j / tau."""
    cut, left = blocks.cut, blocks.left
    share = _share(grad_lse, total).to(cut.dtype)
    grad = left.new_zeros(left.shape, dtype=cut.dtype)
    factors = torch.empty_like(blocks.logits)
    for rows, cols in cut.visits():
        powers = blocks.visit(rows, cols)[0].exp2_() if block is None else block
        factor = factors[: powers.numel()].view(powers.shape)
        torch.add(share[rows, None], share[None, cols], out=factor)
        pull = blocks.narrowed(factor.mul_(powers))
        blocks.add_product(grad[rows], pull, left[cols])
        if cols.start != rows.start:
            blocks.add_product(grad[cols], pull.t(), left[rows])
    # left holds the rows times sqrt(log2(e) / tau).
    return grad.mul_(math.sqrt(_LN_2 / cut.pairs.tau))


def _backward(
    blocks: _Blocks,
    total: Tensor,
    score: Tensor,
    grad_lse: Tensor,
    grad_score: Tensor,
    block: Tensor | None,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of queries and keys. Where nothing but e^{s_ij} stands in a block, the factor of a row is
    applied to the narrow matrices beside it instead of the block itself."""
    cut, left, right = blocks.cut, blocks.left, blocks.right
    to_query = left.new_zeros(left.shape, dtype=cut.dtype) if needs[0] else None
    to_keys = right.new_zeros(right.shape, dtype=cut.dtype) if needs[1] else None
    share = _share(grad_lse, total).to(cut.dtype)[:, None]
    weighted = (left * share).to(left.dtype) if cut.plain else left
    lse = total.masked_fill(total == -torch.inf, torch.inf).to(cut.dtype)[:, None]
    chosen = score.masked_fill(score == -torch.inf, torch.inf).to(cut.dtype)[:, None]
    for rows, cols in cut.visits():
        if block is not None:
            pull = block
        else:
            pull, weights = blocks.visit(rows, cols)
            if cut.plain:
                pull.exp2_()
            else:
                positive = None
                if weights is not None and cut.pairs.inside:
                    positive = (pull - chosen[rows]).exp2_().masked_fill_(weights == 0, 0.0)
                elif weights is not None:
                    positive = weights
                pull.sub_(lse[rows]).exp2_().mul_(grad_lse[rows, None])
                if positive is not None:
                    pull.addcmul_(positive, grad_score[rows, None])
        pull = blocks.narrowed(pull)
        if to_query is not None:
            blocks.add_product(to_query[rows], pull, right[cols])
        if to_keys is not None:
            blocks.add_product(to_keys[cols], pull.t(), weighted[rows])
    if to_query is not None:
        to_query.mul_(share / cut.pairs.tau if cut.plain else 1.0 / cut.pairs.tau)
    if to_keys is not None:
        to_keys.mul_(_LN_2)  # left holds the queries times log2(e) / tau.
    return to_query, to_keys


def _share(grad_lse: Tensor, total: Tensor) -> Tensor:
    """d loss / d (sum of exponentials) of every query; 0 where nothing is kept. float64: it may be tiny."""
    return grad_lse * torch.exp2(-total).masked_fill_(total == -torch.inf, 0.0)


def _bounded(query: Tensor, keys: Tensor, tau: float) -> bool:
    """True when |q . k| / tau stays below the safe bound for all pairs (Cauchy-Schwarz)."""
    if len(keys) == 0:
        return True
    longest = float(torch.linalg.vector_norm(query, dim=1).max())
    other = longest if keys is query else float(torch.linalg.vector_norm(keys, dim=1).max())
    return longest * other <= _SAFE_LOGIT[query.dtype] * tau


def _ranges(length: int, size: int) -> list[slice]:
    """Cut [0, length) into ranges of at most `size`, as equal as multiples of 16 allow."""
    if length == 0:
        return []
    step = math.ceil(length / math.ceil(length / size))
    step = min(size, 16 * math.ceil(step / 16))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
