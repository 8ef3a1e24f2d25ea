"""Weighted nearest neighbours: which class the rows of a training set that lie closest vote for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanlabel.evaluation.collapse import directions
from leanlabel.evaluation.confusion import accuracy, confusion_matrix
from leanlabel.evaluation.probe import Scores, Split, _labels, score_fields, split_parts
from leanlabel.sparse import Csr, scaled, spmm, take_rows

# Rows of the bank, and similarities, that are held at once: 16 MiB in float32, whatever the number of rows.
TILE = 1 << 16
BLOCK = 1 << 22


@dataclass(frozen=True)
class Neighbours(Scores):
    """Result of :func:`knn_scores`."""

    k: int
    """Neighbours that were asked: fewer than wanted where training has fewer rows."""


@torch.no_grad()
def weighted_knn(
    bank: Tensor | Csr,
    labels: Tensor,
    queries: Tensor | Csr,
    *,
    k: int = 200,
    temperature: float = 0.1,
    classes: int | None = None,
    ignore: int = -100,
    chunk: int | None = None,
) -> Tensor:
    """Let the k labelled rows closest to each query vote for their classes, the closer the heavier.

    share_c = sum_{j in top-k, y_j = c} w_j / sum_{j in top-k} w_j,  w_j = exp(cos(query, bank_j) / T)
    [Wu et al. 2018, section 3.4; the settings of the MoCo demonstration]

    Products of a block of queries with a block of the bank are formed and their k largest kept, so that memory does
    not grow with queries x bank. Where equal similarities straddle the k-th place, any of them may be taken.

    Args:
        bank: (N, d), dense or stored, any scale; a row of norm 0 has cosine 0 with everything. No gradient.
        labels: (N,) integers, any values; rows labelled `ignore` do not take part.
        queries: (M, d), dense or stored as the bank is; M >= 0.
        k: neighbours, >= 1; all rows of a smaller bank.
        temperature: T, > 0; the smaller, the more the closest row decides alone.
        classes: C, with labels in [0, C); None: one class per distinct label, ascending (`torch.unique` gives them).
        ignore: label of the rows to leave out.
        chunk: queries per block; None for about 16 MiB of similarities.

    Returns:
        (M, C) shares in float32 or wider; rows sum to 1.

    Raises:
        ValueError: shapes do not fit, no labelled row, labels outside [0, C), values that are not finite, or k,
            temperature or chunk not positive.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> weighted_knn(bank, torch.tensor([7, 9]), torch.tensor([[3.0, 0.0]]), k=1).tolist()
        [[1.0, 0.0]]
    """
    if k < 1 or temperature <= 0 or (chunk is not None and chunk < 1):
        raise ValueError(f"k, temperature and chunk must be positive, got {k}, {temperature}, {chunk}")
    if len(bank.shape) != 2 or len(queries.shape) != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"bank must be (N, d) and queries (M, d), got {tuple(bank.shape)} and {tuple(queries.shape)}"
        )
    if labels.shape != (bank.shape[0],) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be ({bank.shape[0]},) integers, got {tuple(labels.shape)} {labels.dtype}"
        )
    labels = labels.to(bank.device).long()
    kept = (labels != ignore).nonzero()[:, 0]
    if len(kept) == 0:
        raise ValueError(f"the bank has no labelled row among {bank.shape[0]}")
    if len(kept) < len(labels):
        bank, labels = take_rows(bank, kept), labels[kept]
    if classes is None:
        present, labels = torch.unique(labels, return_inverse=True)
        classes = len(present)
    elif int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"labels {int(labels.min())}..{int(labels.max())} of the bank lie outside [0, {classes})"
        )
    unit, wanted = _directions("bank", bank), _directions("queries", queries)
    rows, count = bank.shape[0], queries.shape[0]
    dtype = torch.promote_types(_dtype(unit), _dtype(wanted))
    tiles = [_some(unit, start, start + TILE, dtype) for start in range(0, rows, TILE)]
    step = chunk or max(1, BLOCK // min(TILE, rows))
    shares = torch.zeros(count, classes, dtype=dtype, device=labels.device)
    for start in range(0, count, step):
        block = _some(wanted, start, start + step, dtype)
        # One factor of a product may be stored; a block of queries is small enough to be spread out.
        near, found = _nearest(block.to_dense() if isinstance(block, Csr) else block, tiles, min(k, rows))
        weight = torch.exp((near - near.amax(1, keepdim=True)) / temperature)
        part = shares[start : start + step]
        part.scatter_add_(1, labels[found], weight / weight.sum(1, keepdim=True))
    return shares


def knn_scores(
    z: Tensor | Csr, y: Tensor, split: Split, *, k: int = 200, temperature: float = 0.1
) -> Neighbours:
    """Score embeddings by the class that the nearest training rows vote for; nothing is fitted.

    The training part is the bank of :func:`weighted_knn`; validation and test rows are the queries, scored alike.
    Of classes with equal shares the smallest wins, and a class without training rows is never predicted.

    Args:
        z: (N, d) embeddings or stored features, finite, any scale; no gradient.
        y: (N,) int64 classes in [0, C); rows outside the split may carry a negative label.
        split: row ids under "train", "val", "test".
        k, temperature: as in :func:`weighted_knn`.

    Returns:
        Scores on the test rows, and the neighbours asked.

    Raises:
        ValueError: shapes, labels, split or settings do not fit; z is not finite.

    Example:
        >>> rows = torch.arange(12)
        >>> z = torch.nn.functional.one_hot(rows % 2).float()
        >>> knn_scores(z, rows % 2, {"train": rows[:4], "val": rows[4:8], "test": rows[8:]}, k=1).accuracy
        1.0
    """
    y, classes = _labels(z, y)
    train, val, test = split_parts(split, y)
    present = torch.unique(y.cpu()[train])
    asked = torch.cat([val, test])
    shares = weighted_knn(
        take_rows(z, train.to(z.device)),
        y[train.to(y.device)],
        take_rows(z, asked.to(z.device)),
        k=k,
        temperature=temperature,
    )
    guess = present[shares.argmax(1).cpu()]
    tables = [
        confusion_matrix(y.cpu()[rows], part, classes)
        for rows, part in zip((val, test), guess.split([len(val), len(test)]), strict=True)
    ]
    return Neighbours(**score_fields(tables[1], accuracy(tables[0])), k=min(k, len(train)))


def _nearest(queries: Tensor, tiles: Sequence[Tensor | Csr], k: int) -> tuple[Tensor, Tensor]:
    """Similarities and row numbers (B, k) of the k rows of the bank, given in tiles, that are closest."""
    near = queries.new_empty(len(queries), 0)
    found = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    start = 0
    for tile in tiles:
        # Autocast would round the similarities, and with them the ranking.
        with torch.autocast(queries.device.type, enabled=False):
            alike = spmm(tile, queries.mT).mT if isinstance(tile, Csr) else queries @ tile.mT
        values, places = alike.topk(min(k, tile.shape[0]))
        if start == 0:
            near, found = values, places
        else:
            near, order = torch.cat([near, values], 1).topk(min(k, near.shape[1] + values.shape[1]))
            found = torch.cat([found, places + start], 1).gather(1, order)
        start += tile.shape[0]
    return near, found


def _some(rows: Tensor | Csr, start: int, stop: int, dtype: torch.dtype) -> Tensor | Csr:
    """Rows start..stop-1 in a type; a view where that is possible."""
    if isinstance(rows, Tensor):
        return rows[start:stop].to(dtype)
    ids = torch.arange(start, min(stop, rows.shape[0]), device=rows.device)
    return take_rows(rows, ids).to(dtype=dtype)


def _directions(name: str, rows: Tensor | Csr) -> Tensor | Csr:
    """Rows of norm 1 in float32 or wider; a zero row stays zero."""
    values = rows.values if isinstance(rows, Csr) else rows
    if values is not None and not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} holds {int((~torch.isfinite(values)).sum())} values that are not finite")
    if isinstance(rows, Tensor):
        return directions(rows.detach().to(torch.promote_types(rows.dtype, torch.float32)))
    entries = torch.ones(rows.nnz, device=rows.device) if values is None else values.detach()
    entries = entries.to(torch.promote_types(entries.dtype, torch.float32))
    # By the largest entry first, so that no square leaves the range of its type.
    none = entries.new_zeros(rows.shape[0])
    largest = none.scatter_reduce(0, rows.rows, entries.abs(), "amax")
    entries = entries / largest[rows.rows].where(entries != 0, 1)
    norm = none.index_add(0, rows.rows, entries.square()).sqrt()
    return scaled(rows.with_values(entries), 1 / norm.where(norm > 0, 1), None)


def _dtype(rows: Tensor | Csr) -> torch.dtype:
    values = rows.values if isinstance(rows, Csr) else rows
    return torch.float32 if values is None else values.dtype
