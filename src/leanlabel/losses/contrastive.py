"""Contrast queries with keys: one exact loss for every system that has positives and negatives.

:func:`contrast` is the general form, :func:`two_view_contrast` the loss of SimCLR, GRACE and GCA. What makes
them fit into memory is in :mod:`leanlabel.losses.streaming`, who is whose positive in
:mod:`leanlabel.losses.relations`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from leanlabel.losses.relations import (
    Distinct,
    KeepRule,
    Matching,
    NotItself,
    OwnKey,
    Relation,
    SameId,
    Weights,
)
from leanlabel.losses.streaming import Pairs, bf16_products, log_sum_exp, takes_bf16_products

__all__ = [
    "Distinct",
    "KeepRule",
    "Matching",
    "NotItself",
    "OwnKey",
    "Reduction",
    "Relation",
    "SameId",
    "Weights",
    "bf16_products",
    "contrast",
    "two_view_contrast",
    "unit",
]

Reduction = Literal["mean", "sum", "none", "parts"]


def contrast(
    query: Tensor,
    keys: Tensor,
    *,
    tau: float,
    own: Tensor | None = None,
    relation: Relation | None = None,
    extra: Tensor | None = None,
    keep: KeepRule | None = None,
    chunk: int | None = None,
    reduction: Reduction = "mean",
    inside: bool = False,
) -> Any:
    """Contrast every query's positives against all its keys, exactly and without an N x K matrix.

    With s_ij = q_i . k_j / tau, the keys A_i that `keep` allows, P_i the positives among them, and o_i the
    logit of the query's own key where `own` is given:

        Z_i = sum_{j in A_i} e^{s_ij} + e^{o_i} + sum_e e^{extra_ie}
        L_i = log Z_i - mean over P_i and own of their logits              [SupCon, L_out; InfoNCE for one]
        L_i = log Z_i - log( mean over P_i and own of e^{logit} )          [SupCon, L_in; `inside=True`]
        L_i = sum_j w_ij (log Z_i - s_ij)                                  [`Weights`]

    Queries without a positive give 0 and are left out of the mean. Rows are used as they are: normalise
    with :func:`unit` first where cosine similarity is meant. When `keys` is the same tensor object as
    `query` (and `keep` treats both alike) half of the work is saved and the gradient goes to the one tensor.

    Args:
        query: (N, D), gradient.
        keys: (K, D), gradient where it requires one; a queue costs nothing in the backward pass.
        tau: temperature, > 0, dimensionless.
        own: (N, D), each query's own positive where it is not among the keys (MoCo); gradient.
        relation: which keys are positive: `OwnKey`, `SameId` or `Weights`; None leaves only `own`.
        extra: (N, E) additional negative **logits, already divided by tau** (MoCHi); -inf means absent;
            gradient.
        keep: which keys are compared: `NotItself`, `Distinct`, `Matching`, joined by `&`. A positive that
            `keep` drops is neither in the numerator nor in the denominator; `own` and `extra` always stay.
        chunk: rows of the matrix computed at a time; None chooses. Changes memory and time, not the result.
        reduction: "mean" over the queries with a positive, "sum", "none" -> (N,), or "parts" -> the pair
            (sum, number of queries with a positive) for `leanlabel.dist.global_mean`.
        inside: take the mean over positives inside the logarithm.

    Returns:
        Scalar, (N,) or a pair of scalars, in float32 or wider whatever the input type; a zero attached to
        the graph when there is no query or no positive.

    Raises:
        ValueError: ranks, widths or types differ, ids do not fit, tau <= 0, chunk < 1, neither `own` nor
            `relation` is given, or `inside` is combined with `Weights`.

    Example:
        >>> rows = unit(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]]))
        >>> partner = OwnKey(torch.tensor([2, 3, 0, 1]))
        >>> round(float(contrast(rows, rows, tau=0.5, relation=partner, keep=NotItself())), 4)
        0.2899
    """
    _check(query, keys, tau, own, relation, extra, keep, chunk, reduction, inside)
    with torch.autocast(query.device.type, enabled=False):
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        rows = query.to(dtype)
        columns = rows if keys is query else keys.to(dtype)
        if len(rows) == 0 or (len(columns) == 0 and own is None):
            attached = sum(t[:0].sum().to(dtype) for t in (query, keys, own, extra) if t is not None)
            return _reduce(rows.new_zeros(len(rows)) + attached, rows.new_zeros(len(rows)), reduction)
        closed = _closed_positives(rows, columns, tau, relation, keep, inside)
        in_blocks = relation if closed is None and not isinstance(relation, OwnKey) else None
        in_sums, apart = keep, None
        if takes_bf16_products(dtype) and isinstance(relation, OwnKey) and closed and len(columns):
            # Rounding must not touch the positive: its share p enters the gradient as p - 1, often near 0.
            apart = closed[0].where(closed[1] > 0, -torch.inf)
            in_sums = NotItself(relation.index) if keep is None else keep & NotItself(relation.index)
        pairs = Pairs(tau, in_sums, in_blocks, inside, chunk)
        lse, score, mass = log_sum_exp(rows, None if columns is rows else columns, pairs)
        positives = [] if relation is None else [closed or (score, mass)]
        logits = [lse[:, None]] if apart is None else [lse[:, None], apart[:, None]]
        if own is not None:
            own_logit = (rows * own.to(dtype)).sum(1) / tau
            logits.append(own_logit[:, None])
            own_mass = torch.ones_like(own_logit)
            if isinstance(relation, Weights) and relation.own is not None:
                own_mass = relation.own.detach().to(own_logit)
            positives.append((own_logit * own_mass, own_mass))
        if extra is not None and extra.shape[1]:
            logits.append(extra.to(dtype))
        total = _row_lse(torch.cat(logits, 1)) if len(logits) > 1 else lse
        mass = positives[0][1] if len(positives) == 1 else positives[0][1] + positives[1][1]
        scores = [score for score, _ in positives]
        if len(scores) == 1:
            score = scores[0]
        else:
            score = _row_lse(torch.stack(scores, 1)) if inside else scores[0] + scores[1]
        # where() rather than a product: rows without a positive may hold -inf and must get a gradient of 0.
        valid = mass > 0
        total, score = total.where(valid, 0.0), score.where(valid, 0.0)
        if isinstance(relation, Weights):
            return _reduce(mass * total - score, valid, reduction)
        count = mass.clamp(min=1)
        return _reduce(total - (score - count.log() if inside else score / count), valid, reduction)


def two_view_contrast(
    first: Tensor,
    second: Tensor,
    *,
    tau: float,
    extra: Tensor | None = None,
    rows: slice | None = None,
    chunk: int | None = None,
    reduction: Reduction = "mean",
) -> Any:
    """Contrast two views of the same N samples: every row against its partner and all other 2N - 2 rows.

    With a, b the unit rows of the two views (SimCLR's NT-Xent; GRACE and GCA, equation of the objective J):

        l_i(a, b) = -a_i.b_i/tau + log( sum_k e^{a_i.b_k/tau} + sum_{k != i} e^{a_i.a_k/tau} )
        J = 1/(2N) sum_i [ l_i(a, b) + l_i(b, a) ]

    Args:
        first: (N, D), any norm, gradient; a zero row counts as orthogonal to everything and gets gradient 0.
        second: (N, D), row i is the other view of row i of `first`; gradient.
        tau: temperature, > 0, dimensionless.
        extra: (2R, E) additional negative **logits, already divided by tau**, for the R rows of `first`, then those of
            `second` (`two_view_mixed` of `leanlabel.losses.mixing`); -inf means absent; gradient.
        rows: samples whose two losses are computed, against all rows of both views; None means all.
            Where ranks share one batch or graph, each rank gathers both views, takes its slice and gives
            `reduction="parts"` to `leanlabel.dist.global_mean`.
        chunk, reduction: as in :func:`contrast`; "none" gives the losses of `first`, then of `second`.

    Returns:
        Scalar, (2R,) for R samples, or a pair, as in :func:`contrast`; 0 for N = 1.

    Raises:
        ValueError: the two shapes or types differ, `rows` has a step, or what :func:`contrast` raises.

    Example:
        >>> views = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]])
        >>> others = torch.tensor([[2.0, 0.5], [0.5, 0.5], [-1.0, 1.0]])
        >>> round(float(two_view_contrast(views, others, tau=0.5)), 6)
        0.985337
    """
    if first.ndim != 2 or first.shape != second.shape or first.dtype != second.dtype:
        raise ValueError(
            f"the two views must be (N, D) of one shape and type, got {first.dtype} {tuple(first.shape)} "
            f"and {second.dtype} {tuple(second.shape)}"
        )
    n = len(first)
    both = unit(torch.cat([first, second]))
    own = torch.arange(2 * n, device=both.device)
    partner = own.roll(-n)
    if rows is None:
        return contrast(
            both,
            both,
            tau=tau,
            relation=OwnKey(partner),
            keep=NotItself(),
            extra=extra,
            chunk=chunk,
            reduction=reduction,
        )
    start, stop, step = rows.indices(n)
    if step != 1:
        raise ValueError(f"rows must be a contiguous slice, got {rows}")
    anchors = torch.cat([own[start:stop], own[n + start : n + stop]])
    return contrast(
        both.index_select(0, anchors),
        both,
        tau=tau,
        relation=OwnKey(partner[anchors]),
        keep=NotItself(anchors),
        extra=extra,
        chunk=chunk,
        reduction=reduction,
    )


def unit(rows: Tensor, eps: float = 1e-12) -> Tensor:
    """Scale every row to norm 1; rows of norm <= eps become 0 and get gradient 0, not NaN.

    Args:
        rows: (..., D), gradient.
        eps: norm up to which a row counts as zero, > 0.

    Returns:
        (..., D) in float32 or wider.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
        square = rows.square().sum(-1, keepdim=True)
        zero = square <= eps * eps
        return rows * square.masked_fill(zero, 1.0).rsqrt().masked_fill(zero, 0.0)


def _closed_positives(
    rows: Tensor,
    columns: Tensor,
    tau: float,
    relation: Relation | None,
    keep: KeepRule | None,
    inside: bool,
) -> tuple[Tensor, Tensor] | None:
    """Score and mass of the positives where they need no block: cost O((N + K) D), or the size of a given w.

    The score is linear in the keys, sum_j w_ij q_i . k_j = q_i . (sum_j w_ij k_j), so that one key, the sum
    of a class, or a product with given weights is enough. None where the blocks have to be looked at.
    """
    nothing = -torch.inf if inside else 0.0
    if relation is not None and len(columns) == 0:
        return rows.new_full((len(rows),), nothing), rows.new_zeros(len(rows))
    if isinstance(relation, OwnKey):
        mass = rows.new_ones(len(rows))
        if keep is not None:
            mass = keep.kept_pairs(relation.index).to(rows)
        score = (rows * columns.index_select(0, relation.index)).sum(1) / tau
        return score.where(mass > 0, nothing), mass
    if isinstance(relation, SameId) and not inside and (keep is None or type(keep) is NotItself):
        query_codes, key_codes, classes = relation.codes()
        sums = rows.new_zeros(classes, rows.shape[1]).index_add(0, key_codes, columns)
        mass = torch.bincount(key_codes, minlength=classes)[query_codes].to(rows)
        score = (rows * sums.index_select(0, query_codes)).sum(1)
        if keep is not None:
            itself = torch.arange(len(rows), device=rows.device) if keep.index is None else keep.index
            itself = itself[itself < len(columns)] if keep.index is None else itself
            matched = torch.zeros_like(mass)
            matched[: len(itself)] = (query_codes[: len(itself)] == key_codes[itself]).to(rows)
            pair = rows.new_zeros(len(rows))
            pair[: len(itself)] = (rows[: len(itself)] * columns.index_select(0, itself)).sum(1)
            mass, score = mass - matched, score - matched * pair
        return score / tau, mass
    if isinstance(relation, Weights) and isinstance(relation.w, Tensor) and keep is None:
        w = relation.w.detach().to(rows)
        return (rows * (w @ columns)).sum(1) / tau, w.sum(1)
    return None


def _row_lse(logits: Tensor) -> Tensor:
    """Log-sum-exp over dim 1; a row of -inf only gives -inf and gradient 0, where torch gives NaN."""
    empty = (logits == -torch.inf).all(1)
    return torch.logsumexp(logits.masked_fill(empty[:, None], 0.0), 1).masked_fill(empty, -torch.inf)


def _reduce(loss: Tensor, valid: Tensor, reduction: Reduction) -> Any:
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    count = valid.sum().to(loss.dtype)
    return (total, count) if reduction == "parts" else total / count.clamp(min=1)


def _check(
    query: Tensor,
    keys: Tensor,
    tau: float,
    own: Tensor | None,
    relation: Relation | None,
    extra: Tensor | None,
    keep: KeepRule | None,
    chunk: int | None,
    reduction: str,
    inside: bool,
) -> None:
    if not tau > 0:
        raise ValueError(f"tau must be positive, got {tau}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if reduction not in ("mean", "sum", "none", "parts"):
        raise ValueError(f"reduction must be mean, sum, none or parts, got {reduction!r}")
    if not query.is_floating_point():
        raise ValueError(f"query must be floating point, got {query.dtype}")
    if query.ndim != 2 or keys.ndim != 2 or query.shape[1] != keys.shape[1]:
        raise ValueError(
            f"query (N, D) and keys (K, D) must share D, got {tuple(query.shape)} and {tuple(keys.shape)}"
        )
    if own is not None and own.shape != query.shape:
        raise ValueError(f"own must have the shape of query {tuple(query.shape)}, got {tuple(own.shape)}")
    if extra is not None and (extra.ndim != 2 or len(extra) != len(query)):
        raise ValueError(f"extra must be ({len(query)}, E), got {tuple(extra.shape)}")
    for name, other in (("keys", keys), ("own", own)):
        if other is not None and other.dtype != query.dtype:
            raise ValueError(f"query and {name} must have one type, got {query.dtype} and {other.dtype}")
    if relation is None and own is None:
        raise ValueError("no positives: give own, relation or both")
    if isinstance(relation, Weights) and inside:
        raise ValueError("inside=True has no meaning for Weights; use SameId or OwnKey")
    if isinstance(relation, Weights) and (relation.own is None) != (own is None):
        raise ValueError("own keys and Weights.own must be given together")
    if relation is not None:
        relation.check(len(query), len(keys))
    if keep is not None:
        keep.check(len(query), len(keys))
