"""Nodes that are copies of others: rows of features that are equal bit for bit, and nodes with equal neighbours."""

from __future__ import annotations

from functools import cached_property
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.graphs import UNLABELLED, Graph
from leanlabel.sparse import Csr

_ZERO = -1


def stored(x: Csr | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, rows and columns of the stored entries, by rows; all entries of a dense tensor."""
    if isinstance(x, Csr):
        return torch.ones(x.nnz) if x.values is None else x.values, x.rows, x.col
    n, f = x.shape
    return x.reshape(-1), torch.arange(n).repeat_interleave(f), torch.arange(f).repeat(n)


class Copies:
    """Groups of nodes with equal features; a row without any feature is a copy of none.

    Args:
        graph: the graph; it is read when first asked.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @cached_property
    def group(self) -> Tensor:
        """(N,) int64: equal numbers for equal rows of features, -1 for rows of zeros."""
        values, rows, columns = stored(self.graph.x)
        used = values != 0
        starts = torch.searchsorted(rows[used], torch.arange(self.graph.num_nodes + 1))
        return _numbered(starts, columns[used], values[used])

    def among(self, nodes: Tensor, others: Tensor) -> int:
        """How many of `nodes` have the features of one of `others`."""
        group = self.group[others]
        return int(torch.isin(self.group[nodes], group[group != _ZERO]).sum())

    def twins(self, nodes: Tensor, others: Tensor) -> int:
        """How many of `nodes` have the features and the neighbours of one of `others`.

        Neighbours are equal when the sets are, or when they are once each node is counted to its own: u and v that
        are joined to each other cannot have equal sets otherwise.
        """
        alike = torch.zeros(len(nodes), dtype=torch.bool)
        originals = others[self.group[others] != _ZERO]
        for both in (self._open, self._closed):
            alike |= torch.isin(both[nodes], both[originals])
        return int(alike.sum())

    def conflicts(self, y: Tensor) -> int:
        """How many labelled nodes have the features of a labelled node of another class."""
        nodes = ((y != UNLABELLED) & (self.group != _ZERO)).nonzero()[:, 0]
        group, label = self.group[nodes], y[nodes]
        pairs = torch.unique(torch.stack([group, label], 1), dim=0)
        several, count = torch.unique(pairs[:, 0], return_counts=True)
        return int(torch.isin(group, several[count > 1]).sum())

    @cached_property
    def _open(self) -> Tensor:
        return self._neighbourhoods(loops=False)

    @cached_property
    def _closed(self) -> Tensor:
        return self._neighbourhoods(loops=True)

    def _neighbourhoods(self, *, loops: bool) -> Tensor:
        """(N,) int64: equal numbers for equal features and neighbours, in both directions of a directed graph."""
        n, (source, target) = self.graph.num_nodes, self.graph.edge_index
        # Neighbour v of u as 2v where u -> v, as 2v + 1 where v -> u.
        end = torch.cat([source, target])
        neighbour = torch.cat([2 * target, 2 * source + 1])
        if loops:
            own = torch.arange(n)
            end, neighbour = torch.cat([end, own, own]), torch.cat([neighbour, 2 * own, 2 * own + 1])
        key = torch.sort(end * (2 * n) + neighbour).values
        starts = torch.searchsorted(key, torch.arange(n + 1) * (2 * n))
        pairs = torch.stack([self.group, _numbered(starts, key % (2 * n))], 1)
        return torch.unique(pairs, dim=0, return_inverse=True)[1]


def _numbered(starts: Tensor, *entries: Tensor) -> Tensor:
    """(N,) int64: equal numbers for equal runs of entries, -1 for empty ones.

    Args:
        starts: (N + 1,) where the run of each row begins; ends with the number of entries.
        entries: (nnz,) each.
    """
    begin = starts.numpy()
    columns = [np.ascontiguousarray(entry.numpy()) for entry in entries]
    seen: dict[bytes, int] = {}
    numbers = np.full(len(begin) - 1, _ZERO, np.int64)
    for row in np.flatnonzero(begin[1:] > begin[:-1]):
        digest = blake2b(digest_size=16)
        for column in columns:
            digest.update(column[begin[row] : begin[row + 1]].data)
        numbers[row] = seen.setdefault(digest.digest(), len(seen))
    return torch.from_numpy(numbers)
