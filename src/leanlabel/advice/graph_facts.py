"""What the rules for graphs look at, measured once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from leanlabel.data.graphs import UNLABELLED, Graph, mutual_edges
from leanlabel.sparse import Csr, components, from_edges

SplitState = Literal["none", "incomplete", "unsound", "sound"]

# Rows count as normalised when all their sums (or lengths) are this close to 1.
_CLOSE = 1e-3


@dataclass(frozen=True)
class GraphFacts:
    """Numbers about one graph, read as the recipe will read it.

    Args:
        nodes: N.
        edges: E, both directions of an undirected edge counted.
        mutual: share of the listed edges whose reverse is listed too, before reverses are added; 1 without edges.
        undirected: whether the recipe reads it so.
        degrees: smallest and largest (in-)degree.
        components: connected components.
        features: F.
        density: share of non-zero feature values, in [0, 1].
        lowest: smallest feature value, the zeros of sparse features included.
        highest: largest feature value.
        unit_rows: every row that is not zero sums to 1 or has length 1.
        likeness: mean cosine of the feature rows of two nodes, in [-1, 1].
        by_degree: the file has no features; the degree stands in.
        classes: labelled nodes per class, classes without any left out.
        split: of the file: none; incomplete: train, val or test is empty; unsound: `data check` finds an error
            in it; sound.
    """

    nodes: int
    edges: int
    mutual: float
    undirected: bool
    degrees: tuple[int, int]
    components: int
    features: int
    density: float
    lowest: float
    highest: float
    unit_rows: bool
    likeness: float
    by_degree: bool
    classes: tuple[int, ...]
    split: SplitState

    @property
    def mean_degree(self) -> float:
        """Edges that end in a node, on average."""
        return self.edges / self.nodes

    @property
    def labelled(self) -> int:
        """Nodes with a label."""
        return sum(self.classes)


def mutual_share(edge_index: Tensor, num_nodes: int) -> float:
    """Share of edges whose reverse is an edge too.

    Args:
        edge_index: (2, E) int64, each edge once, no self-loops.
        num_nodes: N.

    Returns:
        In [0, 1]; 1 without edges.

    >>> mutual_share(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 0]]), 3)
    0.5
    """
    if edge_index.shape[1] == 0:
        return 1.0
    return mutual_edges(edge_index, num_nodes) / edge_index.shape[1]


def measure(graph: Graph, *, mutual: float, by_degree: bool, split: SplitState) -> GraphFacts:
    """Measure a graph.

    Args:
        graph: as the recipe will read it.
        mutual: :func:`mutual_share` of the edges as they are listed.
        by_degree, split: see :class:`GraphFacts`.
    """
    degree = torch.bincount(graph.edge_index[1], minlength=graph.num_nodes)
    x = graph.x
    values = x if isinstance(x, Tensor) else torch.ones(x.nnz) if x.values is None else x.values
    used = values[values != 0]
    nonzero, entries = len(used), x.shape[0] * x.shape[1]
    bounds = [float(used.min()), float(used.max())] if nonzero else [0.0]
    bounds += [0.0] if nonzero < entries else []
    sums, lengths, likeness = _rows(x, values)
    known = torch.zeros(0, dtype=torch.int64) if graph.y is None else graph.y[graph.y != UNLABELLED]
    return GraphFacts(
        nodes=graph.num_nodes,
        edges=graph.num_edges,
        mutual=mutual,
        undirected=graph.undirected,
        degrees=(int(degree.min()), int(degree.max())),
        components=components(from_edges(graph.edge_index, graph.num_nodes))[1],
        features=graph.num_features,
        density=nonzero / max(1, entries),
        lowest=min(bounds),
        highest=max(bounds),
        unit_rows=nonzero > 0 and any(_all_one(size, lengths) for size in (sums, lengths)),
        likeness=likeness,
        by_degree=by_degree,
        classes=tuple(count for count in torch.bincount(known).tolist() if count),
        split=split,
    )


def _rows(x: Csr | Tensor, values: Tensor) -> tuple[Tensor, Tensor, float]:
    """Sums (N,) and lengths (N,) of the rows, and the mean cosine of two rows: |mean of unit rows|^2."""
    values = values.double()
    if isinstance(x, Tensor):
        lengths = values.norm(dim=1)
        mean = (values / lengths.clamp(min=1e-12)[:, None]).mean(0)
        return values.sum(1), lengths, float(mean @ mean)
    empty = torch.zeros(x.shape[0], dtype=torch.float64)
    sums = empty.index_add(0, x.rows, values)
    lengths = empty.index_add(0, x.rows, values**2).sqrt()
    shares = values / lengths[x.rows].clamp(min=1e-12) / x.shape[0]
    mean = torch.zeros(x.shape[1], dtype=torch.float64).index_add(0, x.col, shares)
    return sums, lengths, float(mean @ mean)


def _all_one(size: Tensor, lengths: Tensor) -> bool:
    return bool(((size - 1).abs() < _CLOSE)[lengths > 0].all())
