"""Look at a graph before a run does: counts, oddities and mistakes, as plain findings."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from leanlabel.data.findings import Finding, Severity, class_findings, share
from leanlabel.data.graph_copies import Copies, stored
from leanlabel.data.graph_files import read_graph
from leanlabel.data.graphs import UNLABELLED, Graph, mutual_edges
from leanlabel.data.splits import group_parts
from leanlabel.sparse import Csr, components, from_edges

FEW_REVERSES = 0.05
"""Below this share of edges that have their reverse, the list probably names each pair once."""
CONFLICTS = 0.01
"""From this share of labelled nodes on, features that two classes have are more than a curiosity."""


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
    if graph.undirected:
        found.append(Finding("info", "edges", f"{e // 2} undirected edges", e // 2))
    else:
        mutual = mutual_edges(graph.edge_index, n)
        found.append(Finding("info", "edges", f"{e} directed edges, {mutual} of them with their reverse", e))
        if mutual < FEW_REVERSES * e:
            # A file that lists each pair once may still list some pairs twice.
            which = f"only {mutual} of {e} edges ({share(mutual, e)}) have" if mutual else "no edge has"
            reverse = "their reverse" if mutual else "its reverse"
            hint = f"{which} {reverse}; if each pair is listed once, read the graph with undirected = true"
            found.append(Finding("warning", "one_way", hint, e - mutual))
    done: tuple[tuple[str, Severity, str], ...] = (
        ("self_loops_removed", "info", "self-loops removed"),
        ("duplicates_removed", "info", "duplicate edges removed"),
        ("reverses_added", "info", "missing reverse edges added"),
        ("feature_entries_merged", "warning", "repeated entries of the sparse features added up"),
        ("stored_zeros_removed", "info", "zeros stored in the sparse features dropped"),
        ("features_set_to_one", "info", "positive feature values set to one, as torch_geometric does"),
        (
            "nodes_without_record",
            "info",
            "nodes that the files leave out: no features, no label, mostly no edges",
        ),
    )
    for key, severity, text in done:
        count = graph.facts.get(key, 0)
        if count:
            found.append(Finding(severity, key, f"{count} {text}", count))
    label, number = components(from_edges(graph.edge_index, n))
    if number > 1:
        sizes = torch.bincount(label)
        largest = f"the largest holds {share(int(sizes.max()), n)} of the nodes"
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
        text = f"{isolated} nodes ({share(isolated, n)}) have no edges"
        found.append(Finding("info", "isolated", text, isolated))
    if int(degree.max()) == int(degree.min()):
        text = (
            f"every node has {kind} {int(degree[0])}: degree says nothing, its scheme drops edges uniformly"
        )
        found.append(Finding("warning", "regular", text, int(degree[0])))
    return found


def _features(graph: Graph) -> list[Finding]:
    x, (n, f) = graph.x, graph.x.shape
    values, rows, columns = stored(x)
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
    text = f"{f} features ({kind}), {share(nonzero, n * f)} non-zero, values from {low:g} to {high:g}"
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
        text = f"{empty} nodes ({share(empty, n)}) have only zero features"
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
        text = f"{missing} nodes ({share(missing, graph.num_nodes)}) are unlabelled"
        found.append(Finding("info", "unlabelled", text, missing))
    if len(present) < 2:
        text = f"{len(present)} class with labels: a classifier needs two"
        return [*found, Finding("error", "one_class", text, len(present))]
    return [*found, *class_findings(present, counts.count(0), "node", shares=False)]


def _splits(graph: Graph) -> list[Finding]:
    published = group_parts(graph.splits)
    copies = Copies(graph) if graph.y is not None or published else None
    found = [] if copies is None else _conflicts(graph, copies)
    if copies is None or not published:
        return found
    if len(published) == 1:
        return found + list(_one_split(graph, published[0], copies).values())
    found.append(
        Finding("info", "splits", f"{len(published)} published splits, all measured", len(published))
    )
    several: dict[tuple[str, ...], list[tuple[int, Finding]]] = {}
    for k, parts in enumerate(published):
        for key, one in _one_split(graph, parts, copies).items():
            several.setdefault(key, []).append((k, one))
    for group in several.values():
        k, one = max(group, key=lambda pair: pair[1].count)
        alike = len(group) == len(published) and len({other.count for _, other in group}) == 1
        where = "in each split" if alike else f"split {k}, the largest of {len(published)}"
        found.append(replace(one, message=f"{one.message} ({where})"))
    return found


def _one_split(graph: Graph, parts: dict[str, Tensor], copies: Copies) -> dict[tuple[str, ...], Finding]:
    """Findings about one split, by code and parts."""
    found: dict[tuple[str, ...], Finding] = {}
    for part, nodes in parts.items():
        found["size", part] = Finding("info", f"split_{part}", f"{part}: {len(nodes)} nodes", len(nodes))
        repeated = len(nodes) - len(torch.unique(nodes))
        if repeated:
            text = f"{part} lists {repeated} nodes more than once"
            found["repeats", part] = Finding("error", "split_repeats", text, repeated)
        if graph.y is not None:
            unlabelled = int((graph.y[nodes] == UNLABELLED).sum())
            if unlabelled:
                text = f"{part} contains {unlabelled} nodes without a label"
                found["unlabelled", part] = Finding("error", "split_unlabelled", text, unlabelled)
    if graph.y is not None and "train" in parts:
        known = set(graph.y[graph.y != UNLABELLED].tolist())
        missing = known - set(graph.y[parts["train"]].tolist())
        if missing:
            text = f"{len(missing)} of {len(known)} classes have no training node"
            found["classes",] = Finding("warning", "split_missing_classes", text, len(missing))
    for one, other in combinations(parts, 2):
        shared = int(torch.isin(parts[one], parts[other]).sum())
        if shared:
            text = f"{shared} nodes are in both {one} and {other}: scores on {other} are too good"
            found["shared", one, other] = Finding("error", "split_leak", text, shared)
        found |= _leaks(one, parts[one], other, parts[other], copies)
    return found


def _leaks(
    one: str, first: Tensor, other: str, second: Tensor, copies: Copies
) -> dict[tuple[str, ...], Finding]:
    """Nodes of the second part that are copies of nodes of the first, not counting nodes that are in both."""
    found = {}
    second = second[~torch.isin(second, first)]
    same = copies.among(second, first)
    if same:
        count = f"{same} of {len(second)} nodes of {other} ({share(same, len(second))})"
        text = f"{count} have exactly the features of a node of {one}: scores on {other} may be too good"
        found["features", one, other] = Finding("warning", "leak_features", text, same)
        twins = copies.twins(second, first)
        if twins:
            count = f"{twins} of these nodes of {other}"
            text = (
                f"{count} also have the neighbours of their copy in {one}: no method can tell the two apart"
            )
            found["twins", one, other] = Finding("warning", "leak_neighbours", text, twins)
    return found


def _conflicts(graph: Graph, copies: Copies) -> list[Finding]:
    """Labelled nodes whose features another class has too."""
    if graph.y is None:
        return []
    count = copies.conflicts(graph.y)
    if not count:
        return []
    labelled = int((graph.y != UNLABELLED).sum())
    text = f"{count} labelled nodes ({share(count, labelled)}) have exactly the features of a node of another class"
    severity: Severity = "warning" if count >= CONFLICTS * labelled else "info"
    return [Finding(severity, "conflicting_labels", text, count)]


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
