"""An attributed graph in memory: its parts, tidy edges, fingerprint and feature normalisation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from leanlabel.sparse import Csr

UNLABELLED = -100
"""Label of a node whose class is not known; the ignore value that every loss of the package uses."""

Normalisation = Literal["row_sum_legacy", "shifted", "row_sum", "none"]


@dataclass(frozen=True, eq=False)
class Graph:
    """One graph with node features; labels, names and splits where the source has them.

    Args:
        x: node features (N, F), float32: a Csr where the source is sparse, a tensor where it is dense.
            As read: no normalisation.
        edge_index: (2, E) int64, row 0 source and row 1 target, in [0, N), sorted, each edge once, no
            self-loops. An undirected graph lists both directions.
        y: (N,) int64, class in [0, C) or UNLABELLED; None without labels.
        num_nodes: N, nodes without edges included.
        name: name of the data set, for people.
        undirected: every edge has its reverse and the pair is one edge.
        ids: N names in the order of the rows, where the source names its nodes.
        splits: published node sets: "train", "val", "test" -> (n,) int64.
        class_names: C names, where the source has them.
        facts: what tidying did: counts such as "self_loops_removed".
    """

    x: Csr | Tensor
    edge_index: Tensor
    y: Tensor | None
    num_nodes: int
    name: str
    undirected: bool
    ids: list[str] | None = None
    splits: Mapping[str, Tensor] = field(default_factory=dict)
    class_names: list[str] | None = None
    facts: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_edges(self) -> int:
        """Directed edges E; an undirected edge counts twice."""
        return self.edge_index.shape[1]

    @property
    def num_features(self) -> int:
        """Width F of the features."""
        return int(self.x.shape[1])

    @property
    def num_classes(self) -> int:
        """Number C of classes: of the names where there are any, else one more than the largest label."""
        if self.class_names is not None:
            return len(self.class_names)
        return 0 if self.y is None or len(self.y) == 0 else max(int(self.y.max()) + 1, 0)


def tidy_edges(
    edge_index: Tensor, num_nodes: int, undirected: bool | None = None
) -> tuple[Tensor, bool, dict[str, int]]:
    """Remove self-loops and duplicates, sort by (source, target), and mirror the edges on request.

    Args:
        edge_index: (2, E) int64 in [0, num_nodes).
        num_nodes: N >= 0.
        undirected: True adds every missing reverse; False keeps the directions; None keeps the directions too
            and calls the graph undirected when every edge already has its reverse.

    Returns:
        The edges (2, E'), whether the graph is undirected, and counts: edges_read, self_loops_removed,
        duplicates_removed, reverses_added.

    Raises:
        ValueError: the shape is not (2, E), the type is not int64, or a node is out of range.

    >>> edges = torch.tensor([[0, 1, 1, 2], [1, 1, 0, 0]])
    >>> tidy_edges(edges, 3, undirected=True)[0].tolist()
    [[0, 0, 1, 2], [1, 2, 0, 0]]
    """
    if edge_index.ndim != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise ValueError(f"edge_index must be (2, E) int64, got {tuple(edge_index.shape)} {edge_index.dtype}")
    if edge_index.numel() and not (int(edge_index.min()) >= 0 and int(edge_index.max()) < num_nodes):
        raise ValueError(
            f"edge_index {tuple(edge_index.shape)} holds nodes in [{int(edge_index.min())}, "
            f"{int(edge_index.max())}], expected [0, {num_nodes})"
        )
    source, target = edge_index[:, edge_index[0] != edge_index[1]]
    # One integer per edge: sorting and comparing sets of edges becomes sorting and comparing integers.
    forward = torch.unique(source * num_nodes + target)
    backward = torch.unique(target * num_nodes + source)
    facts = {
        "edges_read": edge_index.shape[1],
        "self_loops_removed": edge_index.shape[1] - len(source),
        "duplicates_removed": len(source) - len(forward),
        "reverses_added": 0,
    }
    symmetric = torch.equal(forward, backward)
    if undirected and not symmetric:
        both = torch.unique(torch.cat([forward, backward]))
        facts["reverses_added"] = len(both) - len(forward)
        forward = both
    scale = max(num_nodes, 1)
    edges = torch.stack([torch.div(forward, scale, rounding_mode="floor"), forward % scale])
    return edges, symmetric if undirected is None else undirected, facts


def mutual_edges(edge_index: Tensor, num_nodes: int) -> int:
    """How many edges have their reverse in the list; (2, E) int64, each edge once, no self-loops."""
    source, target = edge_index
    return int(torch.isin(source * num_nodes + target, target * num_nodes + source).sum())


def fingerprint(graph: Graph) -> str:
    """Compute the SHA-256 of a graph's contents: features, edges, labels, names, splits; not its name or
    facts.

    Every array is hashed as little-endian bytes behind its role, type and shape, so that the value is the
    same on every platform. A Csr without values counts as one with ones. A sparse and a dense copy differ.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(b"graph 1")

    def add(role: str, array: Tensor | np.ndarray | list[str] | None) -> None:
        if array is None:
            return
        if isinstance(array, list):
            encoded = [text.encode() for text in array]
            data = b"".join(len(text).to_bytes(8, "little") + text for text in encoded)
            kind, shape = "text", (len(array),)
        else:
            values = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
            values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
            data, kind, shape = values.tobytes(), f"{values.dtype.kind}{values.dtype.itemsize}", values.shape
        digest.update(f"|{role} {kind} {shape} ".encode())
        digest.update(data)

    if isinstance(graph.x, Csr):
        add("x shape", np.asarray(graph.x.shape, dtype=np.int64))
        add("x crow", graph.x.crow.to(torch.int64))
        add("x col", graph.x.col.to(torch.int64))
        add("x values", _values(graph.x))
    else:
        add("x", graph.x)
    add("nodes", np.asarray(graph.num_nodes, dtype=np.int64))
    add("undirected", np.asarray(graph.undirected, dtype=np.int8))
    add("edges", graph.edge_index)
    add("y", graph.y)
    add("ids", graph.ids)
    add("classes", graph.class_names)
    for part in sorted(graph.splits):
        add(f"split {part}", graph.splits[part])
    return digest.hexdigest()


def normalise(x: Csr | Tensor, mode: Normalisation) -> Csr | Tensor:
    """Scale the rows of node features.

    row_sum_legacy:  x_ui / max(sum_j x_uj, 1)      (torch_geometric of 2021: what the published GCA numbers
        used)
    shifted:         with x' = x - min(x):  x'_ui / max(sum_j x'_uj, 1)      (torch_geometric today)
    row_sum:         x_ui / sum_j x_uj; a row whose sum is 0 stays as it is
    none:            x

    `shifted` of a Csr whose smallest entry (missing entries are 0) is 0 equals `row_sum_legacy`. With a
    negative entry, or with no missing entry and all entries positive, the shift makes every zero non-zero:
    the result is then a dense tensor of N x F values.

    Args:
        x: (N, F), Csr or tensor; integer types become float32.
        mode: one of the four above.

    Returns:
        (N, F) of the type of x (but see `shifted`); a new object unless mode is "none".

    Raises:
        ValueError: the mode is unknown or x is not two-dimensional.

    >>> normalise(torch.tensor([[1.0, 3.0], [0.2, 0.2]]), "row_sum_legacy").tolist()[0]
    [0.25, 0.75]
    """
    if mode not in get_args(Normalisation):
        raise ValueError(f"normalisation must be one of {', '.join(get_args(Normalisation))}, got {mode!r}")
    if len(x.shape) != 2:
        raise ValueError(f"x must be (N, F), got {tuple(x.shape)}")
    if mode == "none":
        return x
    if isinstance(x, Csr):
        lowest = _lowest(x)
        if mode != "shifted" or lowest == 0:
            return _scale_rows(x, mode)
        x = x.to_dense()
    elif not x.is_floating_point():
        x = x.float()
    if mode == "shifted" and x.numel():
        x = x - x.min()
    return x / _divisor(x.sum(1, keepdim=True), mode)


def _values(x: Csr) -> Tensor:
    return torch.ones(len(x.col), device=x.col.device) if x.values is None else x.values


def _lowest(x: Csr) -> float:
    entries = x.shape[0] * x.shape[1]
    if entries == 0:
        return 0.0
    lowest = float(_values(x).min()) if len(x.col) else 0.0
    return lowest if len(x.col) == entries else min(lowest, 0.0)


def _divisor(sums: Tensor, mode: Normalisation) -> Tensor:
    if mode == "row_sum":
        return torch.where(sums == 0, torch.ones_like(sums), sums)
    return sums.clamp(min=1)


def _scale_rows(x: Csr, mode: Normalisation) -> Csr:
    values = _values(x)
    if not values.is_floating_point():
        values = values.float()
    sums = torch.zeros(x.shape[0], dtype=values.dtype, device=values.device).index_add_(0, x.rows, values)
    return x.with_values(values / _divisor(sums, mode)[x.rows])
