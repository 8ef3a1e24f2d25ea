"""Rules on ids that say which keys are a query's positives and which keys it is compared with at all.

A rule never holds a queries-by-keys matrix: :func:`leanlabel.losses.contrastive.contrast` asks it for one
block of rows and columns at a time, and a rule that can tell that nothing happens in a block answers None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WeightBlock = Callable[[slice, slice], Tensor]


@dataclass(frozen=True, eq=False)
class OwnKey:
    """Query i has one positive, key `index[i]`.

    Args:
        index: (N,) int64, values in [0, K).
    """

    index: Tensor

    def check(self, queries: int, keys: int) -> None:
        """Raise ValueError when the index does not fit `queries` rows and `keys` columns."""
        _check_index("OwnKey.index", self.index, queries, keys)


@dataclass(frozen=True, eq=False)
class SameId:
    """Every key that carries the query's id is a positive (supervised contrast, prototypes).

    Args:
        query_ids: (N,) integer ids; the same values mean the same class, image or partition.
        key_ids: (K,) integer ids. Give the same tensor twice when queries and keys are the same rows:
            only then is half of the work saved.
    """

    query_ids: Tensor
    key_ids: Tensor

    def check(self, queries: int, keys: int) -> None:
        """Raise ValueError when the ids do not fit `queries` rows and `keys` columns."""
        _check_ids("SameId", self.query_ids, self.key_ids, queries, keys)

    def block(self, rows: slice, cols: slice) -> Tensor:
        """(rows, cols) bool, True where the pair is positive."""
        return self.query_ids[rows, None] == self.key_ids[None, cols]

    def codes(self) -> tuple[Tensor, Tensor, int]:
        """Ids renumbered 0..C-1 over queries and keys together: (N,), (K,) and C."""
        if self.query_ids is self.key_ids:
            unique, codes = torch.unique(self.query_ids, return_inverse=True)
            return codes, codes, len(unique)
        both = torch.cat([self.query_ids, self.key_ids])
        unique, codes = torch.unique(both, return_inverse=True)
        return codes[: len(self.query_ids)], codes[len(self.query_ids) :], len(unique)


@dataclass(frozen=True, eq=False)
class Weights:
    """Every key is a positive with a target weight; no gradient flows into the weights.

    The loss of query i is sum_j w_ij (lse_i - s_ij) over its own key and all keys: the cross-entropy between
    w_i and the softmax when w_i sums to 1 (SEED, CompRess, the response form of ReKD).

    Args:
        w: (N, K) targets in [0, 1], or a function (rows: slice, cols: slice) -> (rows, cols) block, called
            again in the backward pass and expected to give the same values.
        own: (N,) target of each query's own key; needed exactly when `own` keys are given to `contrast`.
    """

    w: Tensor | WeightBlock
    own: Tensor | None = None

    def check(self, queries: int, keys: int) -> None:
        """Raise ValueError when the weights do not fit `queries` rows and `keys` columns."""
        if isinstance(self.w, Tensor) and self.w.shape != (queries, keys):
            raise ValueError(f"Weights.w must be ({queries}, {keys}), got {tuple(self.w.shape)}")
        if self.own is not None and self.own.shape != (queries,):
            raise ValueError(f"Weights.own must be ({queries},), got {tuple(self.own.shape)}")

    def block(self, rows: slice, cols: slice) -> Tensor:
        """(rows, cols) target weights, detached."""
        if isinstance(self.w, Tensor):
            return self.w[rows, cols].detach()
        block = self.w(rows, cols).detach()
        expected = (rows.stop - rows.start, cols.stop - cols.start)
        if block.shape != expected:
            raise ValueError(
                f"Weights.w({rows.start}:{rows.stop}, {cols.start}:{cols.stop}) must be {expected}, "
                f"got {tuple(block.shape)}"
            )
        return block


Relation = OwnKey | SameId | Weights


class KeepRule(ABC):
    """Which keys a query is compared with; two rules are joined by `&` (a key must pass both)."""

    def __and__(self, other: KeepRule) -> KeepRule:
        return Both(self, other)

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """True when queries and keys are ruled by the same ids, so that (i, j) and (j, i) have one answer."""

    @abstractmethod
    def check(self, queries: int, keys: int) -> None:
        """Raise ValueError when the rule does not fit `queries` rows and `keys` columns."""

    @abstractmethod
    def fill(self, block: Tensor, rows: slice, cols: slice, value: float) -> None:
        """Write `value` over the dropped pairs of a (rows, cols) block, in place."""

    @abstractmethod
    def kept_pairs(self, index: Tensor) -> Tensor:
        """(N,) bool, True where the pair (i, index[i]) is kept."""


@dataclass(frozen=True, eq=False)
class NotItself(KeepRule):
    """Drop one key per query: the query itself.

    Costs nothing outside the blocks that hold such a pair, unlike :class:`Distinct` on running numbers.

    Args:
        index: (N,) int64, the key to drop for each query; None means that key i is query i.
    """

    index: Tensor | None = None

    @property
    def symmetric(self) -> bool:
        if self.index is None:
            return True
        itself = torch.arange(len(self.index), device=self.index.device)
        return bool((self.index[self.index] == itself).all())

    def check(self, queries: int, keys: int) -> None:
        if self.index is not None:
            _check_index("NotItself.index", self.index, queries, keys)

    def fill(self, block: Tensor, rows: slice, cols: slice, value: float) -> None:
        if self.index is None:
            if rows.start < cols.stop and cols.start < rows.stop:
                block.diagonal(rows.start - cols.start).fill_(value)
            return
        index = self.index[rows]
        hit = ((index >= cols.start) & (index < cols.stop)).nonzero().squeeze(1)
        if len(hit):
            block[hit, index[hit] - cols.start] = value

    def kept_pairs(self, index: Tensor) -> Tensor:
        itself = torch.arange(len(index), device=index.device) if self.index is None else self.index
        return index != itself


@dataclass(frozen=True, eq=False)
class _IdRule(KeepRule):
    query_ids: Tensor
    key_ids: Tensor

    @property
    def symmetric(self) -> bool:
        return self.query_ids is self.key_ids

    def check(self, queries: int, keys: int) -> None:
        _check_ids(type(self).__name__, self.query_ids, self.key_ids, queries, keys)

    def _apart(self, rows: slice, cols: slice) -> bool:
        """True when the id ranges of the block do not meet; asked on CPU only, where it needs no wait."""
        if self.query_ids.is_cuda:
            return False
        low, high = torch.aminmax(self.query_ids[rows])
        key_low, key_high = torch.aminmax(self.key_ids[cols])
        return bool(high < key_low) or bool(key_high < low)


class Distinct(_IdRule):
    """Drop the keys that carry the query's id: the same image in a queue, or the same class (class oracle).

    Args:
        query_ids: (N,) integer ids.
        key_ids: (K,) integer ids; the same tensor object where queries and keys are the same rows.
    """

    def fill(self, block: Tensor, rows: slice, cols: slice, value: float) -> None:
        if not self._apart(rows, cols):
            block.masked_fill_(self.query_ids[rows, None] == self.key_ids[None, cols], value)

    def kept_pairs(self, index: Tensor) -> Tensor:
        return self.query_ids != self.key_ids[index]


class Matching(_IdRule):
    """Keep only the keys that carry the query's id: comparisons inside one partition, volume or domain.

    Args:
        query_ids: (N,) integer ids.
        key_ids: (K,) integer ids; the same tensor object where queries and keys are the same rows.
    """

    def fill(self, block: Tensor, rows: slice, cols: slice, value: float) -> None:
        block.masked_fill_(self.query_ids[rows, None] != self.key_ids[None, cols], value)

    def kept_pairs(self, index: Tensor) -> Tensor:
        return self.query_ids == self.key_ids[index]


@dataclass(frozen=True, eq=False)
class Both(KeepRule):
    """A key must pass two rules; written `first & second`."""

    first: KeepRule
    second: KeepRule

    @property
    def symmetric(self) -> bool:
        return self.first.symmetric and self.second.symmetric

    def check(self, queries: int, keys: int) -> None:
        self.first.check(queries, keys)
        self.second.check(queries, keys)

    def fill(self, block: Tensor, rows: slice, cols: slice, value: float) -> None:
        self.first.fill(block, rows, cols, value)
        self.second.fill(block, rows, cols, value)

    def kept_pairs(self, index: Tensor) -> Tensor:
        return self.first.kept_pairs(index) & self.second.kept_pairs(index)


def _check_index(name: str, index: Tensor, queries: int, keys: int) -> None:
    if index.shape != (queries,) or index.dtype != torch.int64:
        raise ValueError(f"{name} must be int64 ({queries},), got {index.dtype} {tuple(index.shape)}")
    if queries and keys:
        low, high = torch.stack(torch.aminmax(index)).tolist()
        if low < 0 or high >= keys:
            raise ValueError(f"{name} must lie in [0, {keys}), got {low} to {high}")


def _check_ids(name: str, query_ids: Tensor, key_ids: Tensor, queries: int, keys: int) -> None:
    if query_ids.shape != (queries,) or key_ids.shape != (keys,):
        raise ValueError(
            f"{name} needs ids of shape ({queries},) and ({keys},), "
            f"got {tuple(query_ids.shape)} and {tuple(key_ids.shape)}"
        )
