"""Look at a graph before a run does: counts, oddities and mistakes, as plain findings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.graph_files import read_graph
from leanlabel.data.graphs import UNLABELLED, Graph
from leanlabel.sparse import Csr, components, from_edges

Severity = Literal["info", "warning", "error"]

SMALL_CLASS = 10
"""A class with fewer nodes may get none of them in a 10 % split."""


@dataclass(frozen=True)
class Finding:
    """One thing about the data.

    Args:
        severity: "error" stops training or evaluation, "warning" may explain a bad result, "info" is a fact.
        code: short stable name, for programs.
        message: one sentence, for people.
        count: the number the sentence is about.
    """

    severity: Severity
    code: str
    message: str
    count: int


def check_graph(graph: Graph | str | Path) -> list[Finding]:
    """Describe a graph and name everything in it that may surprise.

    Args:
        graph: a graph, or the path of one.

    Returns:
        Findings: edges first, then features, labels, splits.

    Raises:
        InputError: the path cannot be read as a graph.
    """
    if not isinstance(graph, Graph):
        graph = read_graph(graph)
    return [*_structure(graph), *_degrees(graph), *_features(graph), *_labels(graph), *_splits(graph)]


def _structure(graph: Graph) -> list[Finding]:
    n, e = graph.num_nodes, graph.num_edges
    found = [Finding("info", "nodes", f"{n} nodes", n)]
    if e == 0:
        return [*found, Finding("warning", "no_edges", "the graph has no edges: nodes are embedded alone", 0)]
    source, target = graph.edge_index
    if graph.undirected:
        found.append(Finding("info", "edges", f"{e // 2} undirected edges", e // 2))
    else:
        mutual = int(torch.isin(source * n + target, target * n + source).sum())
        found.append(Finding("info", "edges", f"{e} directed edges, {mutual} of them with their reverse", e))
        if mutual == 0:
            hint = (
                "no edge has its reverse; if each pair is listed once, read the graph with undirected = true"
            )
            found.append(Finding("warning", "one_way", hint, e))
    done: tuple[tuple[str, Severity, str], ...] = (
        ("self_loops_removed", "info", "self-loops removed"),
        ("duplicates_removed", "info", "duplicate edges removed"),
        ("reverses_added", "info", "missing reverse edges added"),
        ("feature_entries_merged", "warning", "repeated entries of the sparse features added up"),
        ("stored_zeros_removed", "info", "zeros stored in the sparse features dropped"),
    )
    for key, severity, text in done:
        count = graph.facts.get(key, 0)
        if count:
            found.append(Finding(severity, key, f"{count} {text}", count))
    label, number = components(from_edges(graph.edge_index, n))
    if number > 1:
        sizes = torch.bincount(label)
        largest = f"the largest holds {_share(int(sizes.max()), n)} of the nodes"
        text = f"{number} connected components, {largest}; eigenvector centrality is computed in each"
        found.append(Finding("info", "components", text, number))
    return found


def _degrees(graph: Graph) -> list[Finding]:
    n = graph.num_nodes
    if graph.num_edges == 0:
        return []
    degree = torch.bincount(graph.edge_index[1], minlength=n)
    touched = degree + torch.bincount(graph.edge_index[0], minlength=n)
    kind = "degree" if graph.undirected else "in-degree"
    mean, median, largest = float(degree.double().mean()), int(degree.median()), int(degree.max())
    text = f"{kind}: mean {mean:.1f}, median {median}, largest {largest}"
    found = [Finding("info", "degree", text, largest)]
    isolated = int((touched == 0).sum())
    if isolated:
        text = f"{isolated} nodes ({_share(isolated, n)}) have no edges"
        found.append(Finding("info", "isolated", text, isolated))
    if int(degree.max()) == int(degree.min()):
        text = (
            f"every node has {kind} {int(degree[0])}: degree says nothing, its scheme drops edges uniformly"
        )
        found.append(Finding("warning", "regular", text, int(degree[0])))
    return found


def _features(graph: Graph) -> list[Finding]:
    x, (n, f) = graph.x, graph.x.shape
    values, rows, columns = _stored(x)
    used = values != 0
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        count = int((~finite).sum())
        return [Finding("error", "not_finite", f"{count} feature values are not finite", count)]
    nonzero = int(used.sum())
    full = nonzero == n * f
    low = float(values.min()) if len(values) else 0.0
    high = float(values.max()) if len(values) else 0.0
    low, high = (low, high) if full else (min(low, 0.0), max(high, 0.0))
    kind = "sparse" if isinstance(x, Csr) else "dense"
    text = f"{f} features ({kind}), {_share(nonzero, n * f)} non-zero, values from {low:g} to {high:g}"
    found = [Finding("info", "features", text, f)]
    negative = int((values < 0).sum())
    if negative:
        text = f"{negative} feature values are negative: use the dense rule for features and no row sums"
        found.append(Finding("warning", "negative", text, negative))
    # Sorting the used columns, not counting into F bins: F is what a file claims.
    live = len(torch.unique(columns[used]))
    if live < f:
        text = f"{f - live} features are zero for every node; they are never masked"
        found.append(Finding("info", "dead_features", text, f - live))
    constant = _constant_columns(values[used], columns[used], n)
    if constant:
        text = f"{constant} features have one non-zero value for all nodes: they tell nothing apart"
        found.append(Finding("info", "constant_features", text, constant))
    empty = n - len(torch.unique(rows[used]))
    if empty:
        text = f"{empty} nodes ({_share(empty, n)}) have only zero features"
        found.append(Finding("warning" if empty > n // 2 else "info", "zero_rows", text, empty))
    return found


def _labels(graph: Graph) -> list[Finding]:
    if graph.y is None:
        return [Finding("info", "no_labels", "no labels: embeddings can be trained but not evaluated", 0)]
    known = graph.y[graph.y != UNLABELLED]
    counts = torch.bincount(known, minlength=graph.num_classes).tolist()
    names = graph.class_names or [str(c) for c in range(len(counts))]
    order = sorted((c for c, count in enumerate(counts) if count), key=lambda c: -counts[c])
    present = [(counts[c], names[c]) for c in order]
    found = []
    if len(known) < graph.num_nodes:
        missing = graph.num_nodes - len(known)
        text = f"{missing} nodes ({_share(missing, graph.num_nodes)}) are unlabelled"
        found.append(Finding("info", "unlabelled", text, missing))
    if len(present) < 2:
        text = f"{len(present)} class with labels: a classifier needs two"
        return [*found, Finding("error", "one_class", text, len(present))]
    shown = ", ".join(f"{name} {count}" for count, name in present[:12]) + (
        ", ..." if len(present) > 12 else ""
    )
    found.append(Finding("info", "classes", f"{len(present)} classes: {shown}", len(present)))
    ratio = present[0][0] / present[-1][0]
    if ratio >= 10:
        text = f"long tail: the largest class is {ratio:.0f} times the smallest; look at macro scores too"
        found.append(Finding("warning", "long_tail", text, int(ratio)))
    small = [name for count, name in present if count < SMALL_CLASS]
    if small:
        text = f"{len(small)} classes have fewer than {SMALL_CLASS} nodes, a 10 % split may miss them: "
        found.append(Finding("warning", "small_classes", text + ", ".join(small[:12]), len(small)))
    absent = counts.count(0)
    if absent:
        found.append(Finding("warning", "absent_classes", f"{absent} classes have no node", absent))
    return found


def _splits(graph: Graph) -> list[Finding]:
    found = []
    for part, nodes in graph.splits.items():
        found.append(Finding("info", f"split_{part}", f"{part}: {len(nodes)} nodes", len(nodes)))
        repeated = len(nodes) - len(torch.unique(nodes))
        if repeated:
            text = f"{part} lists {repeated} nodes more than once"
            found.append(Finding("error", "split_repeats", text, repeated))
        if graph.y is not None:
            unlabelled = int((graph.y[nodes] == UNLABELLED).sum())
            if unlabelled:
                text = f"{part} contains {unlabelled} nodes without a label"
                found.append(Finding("error", "split_unlabelled", text, unlabelled))
    if graph.y is not None and "train" in graph.splits:
        known = set(graph.y[graph.y != UNLABELLED].tolist())
        missing = known - set(graph.y[graph.splits["train"]].tolist())
        if missing:
            text = f"{len(missing)} of {len(known)} classes have no training node"
            found.append(Finding("warning", "split_missing_classes", text, len(missing)))
    for one, other in combinations(graph.splits, 2):
        shared = int(torch.isin(graph.splits[one], graph.splits[other]).sum())
        if shared:
            text = f"{shared} nodes are in both {one} and {other}: scores on {other} are too good"
            found.append(Finding("error", "split_leak", text, shared))
    if graph.splits:
        found += _duplicates_across(graph)
    return found


def _duplicates_across(graph: Graph) -> list[Finding]:
    """Nodes outside train with the features of a training node."""
    if "train" not in graph.splits:
        return []
    words = _row_bytes(graph.x, torch.cat(list(graph.splits.values())))
    train = {words[node] for node in graph.splits["train"].tolist()} - {b""}
    train_nodes = set(graph.splits["train"].tolist())
    found = []
    for part, nodes in graph.splits.items():
        if part == "train":
            continue
        same = sum(words[node] in train for node in nodes.tolist() if node not in train_nodes)
        if same:
            text = f"{same} nodes of {part} have exactly the features of a training node"
            found.append(Finding("warning", "split_duplicates", text, same))
    return found


def _row_bytes(x: Csr | Tensor, nodes: Tensor) -> dict[int, bytes]:
    """The non-zero entries of each row as bytes; a zero row is empty."""
    values, rows, columns = _stored(x)
    used = values != 0
    starts = torch.searchsorted(rows[used], torch.arange(x.shape[0] + 1)).numpy()
    entries = columns[used].numpy(), values[used].numpy()
    return {
        node: b"".join(
            np.ascontiguousarray(part[starts[node] : starts[node + 1]]).tobytes() for part in entries
        )
        for node in nodes.tolist()
    }


def _stored(x: Csr | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, rows and columns of the stored entries, by rows; all entries of a dense tensor."""
    if isinstance(x, Csr):
        return torch.ones(x.nnz) if x.values is None else x.values, x.rows, x.col
    n, f = x.shape
    return x.reshape(-1), torch.arange(n).repeat_interleave(f), torch.arange(f).repeat(n)


def _constant_columns(values: Tensor, columns: Tensor, nodes: int) -> int:
    """Number of columns in which all nodes have the same non-zero value."""
    if nodes < 2 or len(values) == 0:
        return 0
    order = torch.argsort(columns, stable=True)
    values, (_, counts) = values[order], torch.unique_consecutive(columns[order], return_counts=True)
    ends = counts.cumsum(0)
    jumps = torch.zeros(len(values), dtype=torch.int64)
    jumps[1:] = (values[1:] != values[:-1]).long()
    jumps[ends - counts] = 0  # a column's first entry is compared with nothing
    total = torch.cat([torch.zeros(1, dtype=torch.int64), jumps.cumsum(0)])
    steady = total[ends] == total[ends - counts]
    return int(((counts == nodes) & steady).sum())


def _share(count: int, total: int) -> str:
    return f"{100 * count / max(total, 1):.3g} %"
