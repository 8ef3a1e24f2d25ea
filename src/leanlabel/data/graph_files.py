"""Read a graph from an .npz file or a folder of tables, and say exactly what is wrong when it is not one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.graph_folder import LAYOUT, MOST_GAPS, PARTS, Parts, missing_features, read_folder
from leanlabel.data.graph_tables import read_arrays, texts, unreadable, words
from leanlabel.data.graphs import UNLABELLED, Graph, tidy_edges
from leanlabel.data.published_graphs import read_published
from leanlabel.errors import InputError
from leanlabel.sparse import Csr, from_parts

_SPARSE = ("x_data", "x_indices", "x_indptr", "x_shape")
_KEYS = ("x", *_SPARSE, "edge_index", "y", "class_names", "ids")
# train_idx, or train_1_idx of a further published split.
_SPLIT = re.compile(rf"(({'|'.join(PARTS)})(_[1-9][0-9]{{0,5}})?)_(idx|mask)")
_NPZ_LAYOUT = (
    "A graph .npz holds edge_index (2, E), features as x (N, F) or as x_data, x_indices, x_indptr, x_shape, "
    "and, if you like, y (N,), class_names, ids, train_idx, val_idx, test_idx."
)
# Row and column numbers must fit together into one 64-bit key.
_LIMIT = 2**31


def read_graph(
    path: str | Path, *, undirected: bool | None = None, features: Literal["file", "degree"] = "file"
) -> Graph:
    """Read a graph with node features.

    An .npz holds `edge_index` (2, E) or (E, 2), features as `x` (N, F) or as the CSR parts `x_data`,
    `x_indices`, `x_indptr`, `x_shape`, and optionally `y` (N,), `class_names` (C,), `ids` (N,) and
    `train_idx`, `val_idx`, `test_idx` (or boolean `train_mask`, ...; `train_1_idx`, ... for further published
    splits). A folder holds `edges`, `features` or `nodes`, `labels`, `splits` as tables
    (:func:`leanlabel.data.graph_folder.read_folder`). Files of Planetoid, gnn-benchmark, GraphData, Wiki-CS and
    torch_geometric are read as well (:func:`leanlabel.data.published_graphs.read_published`).
    Self-loops and duplicate edges are removed and counted in `Graph.facts`, entries of sparse features that
    store a zero likewise. Labels that are not 0 .. C-1 are numbered in sorted order and their old values
    become `class_names`. -1, -100, an empty cell, or no row in the labels table mean that a node is
    unlabelled.

    Args:
        path: an .npz file, a folder, or a published file.
        undirected: True mirrors every edge (an edge list that names each pair once); False keeps directions;
            None keeps them too and calls the graph undirected when every edge has its reverse.
        features: "file", or "degree" for a graph without features: one 0/1 column per power of two of the
            in-degree, floor(log2(degree + 1)), up to the largest in this graph. So the width depends on the graph,
            and a model fits another graph only where both have the same.

    Raises:
        InputError: the path is not a graph, is damaged, or contradicts itself; names file, key or line, what
            was found and what was expected.
    """
    path = Path(path)
    if features not in ("file", "degree"):
        raise InputError(f"features must be 'file' or 'degree', got {features!r}.")
    try:
        present = path.exists()
    except OSError as error:  # a name that the system does not take, or a place where nobody may look
        raise unreadable(path, error) from error
    if not present:
        raise InputError(f"{path} does not exist.")
    published = read_published(path)
    if published is not None:
        graph = _assemble(path, published.parts, undirected, features)
        return replace(graph, name=published.name, facts={**graph.facts, **published.facts})
    if path.is_dir():
        parts = read_folder(path, without_features=features == "degree")
    elif path.suffix == ".npz":
        parts = Parts()
        for key, array in read_arrays(path, lambda key: key in _KEYS or bool(_SPLIT.fullmatch(key))).items():
            parts.put(key, array, path)
    else:
        raise InputError(f"{path} is neither a folder nor an .npz file.", f"{_NPZ_LAYOUT} {LAYOUT}")
    return _assemble(path, parts, undirected, features)


def _assemble(
    path: Path, parts: Parts, undirected: bool | None, features: Literal["file", "degree"]
) -> Graph:
    arrays = parts.arrays
    edges = _edges(path, parts)
    facts: dict[str, int] = {}
    x: Csr | Tensor | None = None
    if features == "file":
        x = _features(path, parts, facts)
        nodes = x.shape[0]
    else:
        listed = [len(arrays[key]) for key in ("ids", "x", "y") if key in arrays and arrays[key].ndim]
        nodes = listed[0] if listed else int(edges.max(initial=-1)) + 1
        if not listed and nodes > MOST_GAPS * max(edges.shape[1], 10_000):
            raise InputError(
                f"{parts.sources['edge_index']}: {edges.shape[1]} edges number nodes up to {nodes - 1}."
            )
    if nodes == 0:
        raise InputError(f"{path} has no nodes.")
    if nodes >= _LIMIT:
        raise InputError(f"{path} has {nodes} nodes, at most {_LIMIT - 1} are supported.")
    bad = np.flatnonzero(((edges < 0) | (edges >= nodes)).any(0))
    if len(bad):
        source, target = edges[:, bad[0]]
        raise InputError(
            f"{parts.sources['edge_index']}: edge {bad[0]} joins {source} and {target}, but the graph has "
            f"{nodes} nodes (0 to {nodes - 1}); {len(bad)} such edges.",
            "Node numbers start at 0." if int(edges.min()) == 1 and int(edges.max()) == nodes else None,
        )
    edge_index, is_undirected, counts = tidy_edges(torch.from_numpy(edges), nodes, undirected)
    if x is None:
        x = _degree_features(edge_index, nodes)
    labels, class_names = _labels(parts, nodes)
    ids = texts(arrays["ids"].ravel().tolist()) if "ids" in arrays else None
    if ids is not None and (len(ids) != nodes or len(set(ids)) != nodes):
        raise InputError(f"{parts.sources['ids']} has {len(set(ids))} distinct ids for {nodes} nodes.")
    return Graph(
        x=x,
        edge_index=edge_index,
        y=labels,
        num_nodes=nodes,
        name=path.stem,
        undirected=is_undirected,
        ids=ids,
        splits=_splits(parts, nodes),
        class_names=class_names,
        facts=counts | facts,
    )


def _edges(path: Path, parts: Parts) -> np.ndarray:
    if "edge_index" not in parts.arrays:
        raise _missing(path, "edge_index", parts)
    source, edges = parts.sources["edge_index"], parts.arrays["edge_index"]
    if edges.ndim != 2 or 2 not in edges.shape:
        if edges.size == 0:
            return np.zeros((2, 0), np.int64)
        raise InputError(f"{source}: edge_index has shape {edges.shape}, expected (2, E) or (E, 2).")
    edges = _whole(edges if edges.shape[0] == 2 else edges.T, "edge_index", source)
    return np.ascontiguousarray(edges)


def _features(path: Path, parts: Parts, facts: dict[str, int]) -> Csr | Tensor:
    arrays = parts.arrays
    if not any(key in arrays for key in ("x", *_SPARSE)):
        raise missing_features(path, "features (x, or x_data with x_indices, x_indptr, x_shape)")
    if "x" in arrays:
        x, source = arrays["x"], parts.sources["x"]
        if x.ndim != 2 or x.shape[1] == 0 or x.dtype.kind not in "biuf":
            raise InputError(
                f"{source}: features have shape {x.shape} and type {x.dtype}, expected numbers (N, F > 0)."
            )
        _refuse_non_finite(x, source, lambda position: divmod(position, x.shape[1]))
        return torch.from_numpy(np.array(x, dtype=np.float32))
    for key in _SPARSE:
        if key not in arrays:
            raise _missing(path, key, parts)
    source = parts.sources["x_data"]
    data, indices, indptr, shape = (arrays[key] for key in _SPARSE)
    for key in _SPARSE:
        if arrays[key].ndim != 1:
            raise InputError(f"{source}: {key} has shape {arrays[key].shape}, expected one dimension.")
    shape = _whole(shape, "x_shape", source)
    if shape.shape != (2,) or shape.min() < 0 or shape.max() >= _LIMIT or shape[1] == 0:
        raise InputError(f"{source}: x_shape is {shape.tolist()[:4]}, expected nodes and features (> 0).")
    rows, columns = (int(size) for size in shape)
    indices, indptr = _whole(indices, "x_indices", source), _whole(indptr, "x_indptr", source)
    if data.dtype.kind not in "biuf" or data.shape != indices.shape:
        raise InputError(
            f"{source}: x_data {data.shape} {data.dtype} does not fit x_indices {indices.shape}."
        )
    if len(indptr) != rows + 1:
        raise InputError(
            f"{source}: x_indptr has {len(indptr)} entries, expected {rows + 1} for {rows} nodes."
        )
    falls = np.flatnonzero(indptr[1:] < indptr[:-1])
    if indptr[0] != 0 or indptr[-1] != len(data) or len(falls):
        at = f", it falls at row {falls[0]}" if len(falls) else ""
        raise InputError(
            f"{source}: x_indptr runs from {indptr[0]} to {indptr[-1]}{at}; expected 0 rising to {len(data)}."
        )
    outside = np.flatnonzero((indices < 0) | (indices >= columns))
    if len(outside):
        raise InputError(
            f"{source}: x_indices[{outside[0]}] is {indices[outside[0]]}, expected 0 to {columns - 1}; "
            f"{len(outside)} such entries."
        )

    def place(position: int) -> tuple[int, int]:
        return int(np.searchsorted(indptr, position, side="right")) - 1, int(indices[position])

    _refuse_non_finite(data, source, place)
    matrix = _canonical(data.astype(np.float32), indices, indptr, (rows, columns), facts)
    if matrix.values is not None and not bool(torch.isfinite(matrix.values).all()):
        raise InputError(f"{source}: repeated entries of the features add up to more than float32 holds.")
    return matrix


def _canonical(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int], facts: dict[str, int]
) -> Csr:
    """Sorted columns, repeated entries summed, no stored zeros; no values when all of them are one."""
    matrix = from_parts(indptr, indices, data, shape)
    facts["feature_entries_merged"] = len(data) - matrix.nnz
    values = torch.ones(0) if matrix.values is None else matrix.values
    used = values != 0
    facts["stored_zeros_removed"] = int((~used).sum())
    before = torch.cat([torch.zeros(1, dtype=torch.int64), used.cumsum(0)])
    values = values[used]
    return Csr(before[matrix.crow], matrix.col[used], None if bool((values == 1).all()) else values, shape)


def _degree_features(edge_index: Tensor, nodes: int) -> Csr:
    degree = torch.bincount(edge_index[1], minlength=nodes)
    band = torch.log2(degree.double() + 1).floor().long()
    return Csr(torch.arange(nodes + 1), band, None, (nodes, int(band.max()) + 1))


def _labels(parts: Parts, nodes: int) -> tuple[Tensor | None, list[str] | None]:
    if "y" not in parts.arrays:
        return None, None
    source, y = parts.sources["y"], parts.arrays["y"]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        hint = "For one column per class write y.argmax(1)." if y.ndim == 2 else None
        raise InputError(f"{source}: labels have shape {y.shape}, expected ({nodes},).", hint)
    if len(y) != nodes:
        raise InputError(f"{source} has {len(y)} labels, the features have {nodes} nodes.")
    names = texts(parts.arrays["class_names"].ravel().tolist()) if "class_names" in parts.arrays else None
    if y.dtype.kind in "OUS":
        cells = words(texts(y.tolist()))
        y, missing = cells, cells == ""
        try:
            y = np.where(missing, "-1", cells).astype(np.int64)
        except (ValueError, OverflowError):
            found, codes = np.unique(cells[~missing], return_inverse=True)
            return _with_unlabelled(codes, ~missing, nodes), found.tolist()
    elif y.dtype.kind == "b":
        y = y.astype(np.int64)
    elif y.dtype.kind == "f":
        y = np.where(np.isnan(y), -1, y)
    y = _whole(y, "y", source)
    missing = (y == -1) | (y == UNLABELLED)
    wrong = np.flatnonzero((y < 0) & ~missing)
    if len(wrong):
        raise InputError(
            f"{source}: the label of node {wrong[0]} is {y[wrong[0]]}, expected 0 or more, or -1 for none."
        )
    found, codes = np.unique(y[~missing], return_inverse=True)
    if names is not None:
        if len(found) and found[-1] >= len(names):
            raise InputError(f"{source}: label {found[-1]} has no name, class_names lists {len(names)}.")
        return _with_unlabelled(y[~missing], ~missing, nodes), names
    regular = bool((found == np.arange(len(found))).all())
    return _with_unlabelled(codes, ~missing, nodes), None if regular else texts(found.tolist())


def _with_unlabelled(codes: np.ndarray, known: np.ndarray, nodes: int) -> Tensor:
    y = np.full(nodes, UNLABELLED, dtype=np.int64)
    y[known] = codes
    return torch.from_numpy(y)


def _splits(parts: Parts, nodes: int) -> dict[str, Tensor]:
    """Published sets of nodes by name; of an index and a mask of one name the index counts."""
    found = {key: match for key in parts.arrays if (match := _SPLIT.fullmatch(key))}

    def order(key: str) -> tuple[int, int, str]:
        _, part, index, form = found[key].groups()
        return int((index or "_0")[1:]), PARTS.index(part), form

    splits: dict[str, Tensor] = {}
    for key in sorted(found, key=order):
        if found[key][1] not in splits:
            splits[found[key][1]] = _split(parts.arrays[key], key, parts.sources[key], nodes)
    return splits


def _split(chosen: np.ndarray, key: str, source: Path, nodes: int) -> Tensor:
    if chosen.ndim != 1:
        raise InputError(f"{source}: {key} has shape {chosen.shape}, expected one dimension.")
    if chosen.dtype.kind == "b":
        if len(chosen) != nodes:
            raise InputError(f"{source}: {key} has {len(chosen)} entries for {nodes} nodes.")
        return torch.from_numpy(np.flatnonzero(chosen))
    chosen = _whole(chosen, key, source)
    bad = np.flatnonzero((chosen < 0) | (chosen >= nodes))
    if len(bad):
        raise InputError(f"{source}: {key}[{bad[0]}] is {chosen[bad[0]]}, expected 0 to {nodes - 1}.")
    return torch.from_numpy(chosen)


def _whole(array: np.ndarray, key: str, source: Path) -> np.ndarray:
    """The array as int64, or an error when a value is not a whole number."""
    if array.dtype.kind not in "iuf":
        raise InputError(f"{source}: {key} has type {array.dtype}, expected integers.")
    limit = 2.0**53 if array.dtype.kind == "f" else 2**63 - 1
    with np.errstate(invalid="ignore", over="ignore"):
        wrong = (
            array > limit
            if array.dtype.kind in "iu"
            else ~(np.isfinite(array) & (array == np.floor(array)) & (np.abs(array) <= limit))
        )
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{source}: {key} holds {array.ravel()[at]} at position {at}, expected integers.")
    return array.astype(np.int64)


def _refuse_non_finite(data: np.ndarray, source: Path, place: Callable[[int], tuple[int, int]]) -> None:
    if data.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        wrong = np.flatnonzero(~np.isfinite(data.astype(np.float32)))
    if len(wrong):
        row, column = place(int(wrong[0]))
        raise InputError(
            f"{source}: {len(wrong)} feature values are not finite, the first in row {row}, column {column}.",
            "Replace them, for example by the column's mean.",
        )


def _missing(path: Path, key: str, parts: Parts) -> InputError:
    present = ", ".join(sorted(parts.arrays)) or "none of the known keys"
    return InputError(f"{path} has no array {key!r}; it has {present}.", _NPZ_LAYOUT)
