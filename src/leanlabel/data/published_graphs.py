"""Graphs as others publish them: Planetoid's eight files, gnn-benchmark's and GraphData's .npz, Wiki-CS's .json.

Each reader hands over the named arrays of this package's own .npz layout, so one place checks them all.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leanlabel.data.graph_folder import Parts
from leanlabel.data.graph_tables import read_arrays, unreadable
from leanlabel.data.pyg_files import read_pyg
from leanlabel.data.restricted_pickle import CsrParts, load_pickle
from leanlabel.data.splits import part_name
from leanlabel.errors import InputError

VALIDATION = 500
"""Nodes that follow the training nodes of a Planetoid set and validate by convention [Yang et al., 2016]."""

PLANETOID_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
"""Last parts of the names of the files that one Planetoid set consists of."""

_BENCHMARK_KEYS = ("adj_data", "adj_indices", "adj_indptr", "adj_shape")
_GRAPH_DATA_KEYS = ("adj_matrix", "node_attr", "node_label")


@dataclass
class Published:
    """Arrays of a published graph, its name, and what reading it did.

    Args:
        parts: named arrays.
        name: of the set, for people.
        facts: counts for `Graph.facts`.
    """

    parts: Parts
    name: str
    facts: dict[str, int] = field(default_factory=dict)


def read_published(path: Path) -> Published | None:
    """Read a graph in a published layout; None where the path has none of them.

    Known are a folder with Planetoid's `ind.*` files, the .npz of gnn-benchmark (`adj_data`, `attr_data`, ...) and of
    GraphData (`adj_matrix`, `node_attr`), the `data.json` of Wiki-CS, and torch_geometric's .pt; also a folder of
    torch_geometric that has one of these in `raw` or `processed`.

    Raises:
        InputError: it has such a layout and is damaged or incomplete.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".pt":
        return Published(*read_pyg(path))
    if path.suffix == ".json":
        return read_wikics(path)
    if path.suffix == ".npz":
        keys = _keys(path)
        if _BENCHMARK_KEYS[1] in keys:
            return read_benchmark(path)
        if _GRAPH_DATA_KEYS[0] in keys:
            return read_graph_data(path)
    return None


def _read_folder(folder: Path) -> Published | None:
    names = [file.name for file in _listing(folder) if re.fullmatch(r"ind\..+\.graph", file.name)]
    if len(names) > 1:
        raise InputError(
            f"{folder} holds several sets: {', '.join(names[:6])}.", "Give each a folder of its own."
        )
    if names:
        return read_planetoid(folder, names[0].split(".", 1)[1].removesuffix(".graph"))
    for inner in (folder / "raw", folder / "processed"):
        if inner.is_dir():
            # torch_geometric keeps a description of its filters beside the data.
            files = [file for file in _listing(inner) if file.stem not in ("pre_filter", "pre_transform")]
            files = [file for file in files if file.suffix in (".npz", ".json", ".pt")]
            found = _read_folder(inner) or (read_published(files[0]) if len(files) == 1 else None)
            if found is not None:
                found.name = folder.name
                return found
    return None


def read_planetoid(folder: Path, name: str) -> Published:
    """Read the eight `ind.<name>.*` files of a Planetoid set.

    `x`, `y` are the training rows and the first rows of `allx`, `ally`; row i of `tx`, `ty` belongs to the node in
    line i of `test.index`; `graph` lists the neighbours of every node. Test nodes that `test.index` leaves out (15 in
    CiteSeer, without edges) get no features and no label, as the files say; torch_geometric gives them class 0.

    Raises:
        InputError: a file is missing, damaged, or contradicts another.
    """
    paths = {part: folder / f"ind.{name}.{part}" for part in PLANETOID_PARTS}
    absent = [path.name for path in paths.values() if not path.is_file()]
    if absent:
        raise InputError(
            f"{folder} lacks {', '.join(absent)}.", "A Planetoid set consists of eight ind.* files."
        )
    read = {part: load_pickle(_bytes(path), path) for part, path in paths.items() if part != "test.index"}
    test = _numbers(paths["test.index"])
    allx, tx = (_matrix(read[part], paths[part]) for part in ("allx", "tx"))
    y, ally, ty = (_one_hot(read[part], paths[part]) for part in ("y", "ally", "ty"))
    edges = _neighbours(read["graph"], paths["graph"])
    known, classes = allx.shape[0], ally.shape[1]
    if len(ally) != known or len(ty) != tx.shape[0] or len(test) != tx.shape[0] or len(y) > known:
        raise InputError(
            f"{folder}: {known} rows of allx and {len(ally)} of ally, {tx.shape[0]} of tx, {len(ty)} of ty and "
            f"{len(test)} test nodes do not fit together."
        )
    if tx.shape[1] != allx.shape[1] or ty.shape[1] != classes:
        raise InputError(f"{folder}: allx and tx, or ally and ty, have different widths.")
    if len(np.unique(test)) < len(test) or (len(test) and test.min() < known):
        raise InputError(f"{paths['test.index']}: a test node is listed twice, or is also a row of allx.")
    nodes = max(known, int(test.max(initial=-1)) + 1)
    if nodes - known > 100 * (len(test) + 100):
        raise InputError(f"{paths['test.index']}: {len(test)} test nodes, numbered up to {nodes - 1}.")
    labels = np.full(nodes, -1, np.int64)
    for rows, one_hot in ((np.arange(known), ally), (test, ty)):
        labels[rows] = np.where(one_hot.any(1), one_hot.argmax(1), -1)
    parts = Parts()
    _put_csr(parts, _stack([(allx, np.arange(known)), (tx, test)], nodes), folder)
    parts.put("edge_index", edges, paths["graph"])
    parts.put("y", labels, folder)
    parts.put("train_idx", np.arange(len(y)), folder)
    parts.put("val_idx", np.arange(len(y), min(len(y) + VALIDATION, known)), folder)
    parts.put("test_idx", np.sort(test), paths["test.index"])
    left_out = nodes - known - len(test)
    return Published(parts, name, {"nodes_without_record": left_out} if left_out else {})


def read_benchmark(path: Path) -> Published:
    """Read an .npz of gnn-benchmark: `adj_*` and `attr_*` as CSR parts (or `attr_matrix`), and `labels`.

    Row i, column j of the adjacency is an edge from i to j; its values are not used. Arrays of Python objects, such
    as `idx_to_attr`, are left unread.

    Raises:
        InputError: an array is missing or damaged.
    """
    wanted = {
        *_BENCHMARK_KEYS,
        *(f"attr_{key}" for key in ("data", "indices", "indptr", "shape", "matrix")),
        "labels",
    }
    arrays = read_arrays(path, lambda key: key in wanted)
    parts = Parts()
    parts.put("edge_index", _edges_of(_csr_of(arrays, "adj", path), path), path)
    if "attr_matrix" in arrays:
        parts.put("x", arrays["attr_matrix"], path)
    else:
        _put_csr(parts, _csr_of(arrays, "attr", path), path)
    if "labels" in arrays:
        parts.put("y", arrays["labels"], path)
        _put_names(parts, path)
    return Published(parts, path.stem)


def _put_names(parts: Parts, path: Path) -> None:
    """Names of the classes, where they are stored as text."""
    try:
        names = read_arrays(path, lambda key: key == "class_names").get("class_names")
    except InputError:  # pickled objects, or damage: names are no reason to refuse a graph
        return
    labels = parts.arrays["y"]
    usable = names is not None and names.dtype.kind == "U" and names.ndim == 1 and labels.dtype.kind in "iu"
    if names is not None and usable and len(names) > int(labels.max(initial=-1)):
        parts.put("class_names", names, path)


def read_graph_data(path: Path) -> Published:
    """Read an .npz of GraphData: `adj_matrix`, `node_attr` as pickled SciPy matrices, and `node_label`.

    Raises:
        InputError: an array is missing or damaged, or a pickle names anything but matrices.
    """
    found = {key: _object(path, key) for key in _GRAPH_DATA_KEYS if key in _keys(path)}
    absent = [key for key in _GRAPH_DATA_KEYS[:2] if key not in found]
    if absent:
        raise InputError(f"{path} has no array {absent[0]!r}, so it is a graph without features.")
    parts = Parts()
    parts.put("edge_index", _edges_of(_matrix(found["adj_matrix"], path), path), path)
    if isinstance(found["node_attr"], np.ndarray):
        parts.put("x", found["node_attr"], path)
    else:
        _put_csr(parts, _matrix(found["node_attr"], path), path)
    if isinstance(found.get("node_label"), np.ndarray):
        parts.put("y", found["node_label"], path)
    return Published(parts, path.stem)


def _object(path: Path, key: str) -> Any:
    """An array of numbers, or the one object that an array of objects holds."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError(f"{key} has an unknown array format")
            _, _, dtype = np.lib.format.read_array_header_1_0(file)
            pickled = file.read() if dtype.hasobject else None
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # as in read_arrays: damage surfaces in many libraries
        raise InputError(f"{path} is not a complete .npz file: {error or type(error).__name__}.") from error
    if pickled is None:
        return read_arrays(path, lambda name: name == key)[key]
    return load_pickle(pickled, path)


def read_wikics(path: Path) -> Published:
    """Read the `data.json` of Wiki-CS: features, labels, links, and its 20 published splits.

    Split k takes `train_masks[k]`, `val_masks[k]` and the one `test_mask`; `stopping_masks` (for early stopping) are
    left unread.

    Raises:
        InputError: not such a file; names what is missing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not complete JSON ({error}).") from error
    keys = ("features", "labels", "links")
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in keys):
        raise InputError(f"{path} does not hold a graph: expected lists {', '.join(keys)}.")
    parts = Parts()
    parts.put("edge_index", _neighbours(dict(enumerate(content["links"])), path), path)
    parts.put("x", _array(content["features"], "features", path), path)
    parts.put("y", _array(content["labels"], "labels", path), path)
    masks = {"train": content.get("train_masks", []), "val": content.get("val_masks", [])}
    if "test_mask" in content:
        masks["test"] = [content["test_mask"]]
    for part, listed in masks.items():
        if not isinstance(listed, list):
            raise InputError(f"{path}: {part}_masks is not a list of masks.")
        for k, mask in enumerate(listed):
            array = _array(mask, f"{part} mask {k}", path)
            parts.put(f"{part_name(part, k)}_mask", array.astype(bool), path)
    return Published(parts, "wikics")


def _array(value: Any, what: str, path: Path) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{path}: the {what} have rows of different lengths.") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: the {what} are not numbers.")
    return array


def _keys(path: Path) -> set[str]:
    """Names of the arrays in an .npz; empty where it cannot be opened, which its reader will say."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return set()


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def _numbers(path: Path) -> np.ndarray:
    """One whole number per line."""
    try:
        return np.array([int(cell) for cell in _bytes(path).split()], np.int64)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: expected one node number per line ({error}).") from error


def _one_hot(found: Any, path: Path) -> np.ndarray:
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "biuf":
        raise InputError(f"{path} does not hold one-hot labels.")
    return found != 0


def _matrix(found: Any, path: Path) -> CsrParts:
    """A sparse matrix whose parts fit together."""
    if not isinstance(found, CsrParts):
        raise InputError(f"{path} does not hold a CSR matrix.")
    data, indices, indptr, (rows, columns) = found.data, found.indices, found.indptr, found.shape
    if data.ndim != 1 or indices.ndim != 1 or indptr.ndim != 1 or len(indptr) == 0:
        raise InputError(f"{path}: the parts of a CSR matrix must have one dimension.")
    if data.dtype.kind not in "biuf" or indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        raise InputError(f"{path}: a CSR matrix needs numbers, and whole numbers for its structure.")
    indices, indptr = indices.astype(np.int64), indptr.astype(np.int64)
    steps = np.diff(indptr)
    if (
        len(indptr) != rows + 1
        or indptr[0] != 0
        or indptr[-1] != len(data)
        or len(indices) != len(data)
        or (steps < 0).any()
        or (indices < 0).any()
        or (indices >= columns).any()
    ):
        raise InputError(f"{path}: the parts of a CSR matrix of shape {found.shape} do not fit together.")
    return CsrParts(data, indices, indptr, (rows, columns))


def _csr_of(arrays: dict[str, np.ndarray], prefix: str, path: Path) -> CsrParts:
    for part in ("data", "indices", "indptr", "shape"):
        if f"{prefix}_{part}" not in arrays:
            raise InputError(f"{path} has no array {prefix}_{part!s}, which its {prefix}_* arrays need.")
    data, indices, indptr, shape = (
        arrays[f"{prefix}_{part}"] for part in ("data", "indices", "indptr", "shape")
    )
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or indptr.ndim != 1:
        raise InputError(f"{path}: {prefix}_shape or {prefix}_indptr has an unexpected form.")
    return _matrix(CsrParts(data, indices, indptr, (int(shape[0]), int(shape[1]))), path)


def _edges_of(matrix: CsrParts, path: Path) -> np.ndarray:
    """(2, E): row i, column j is an edge from i to j, unless a zero is stored there."""
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"{path}: an adjacency of shape {matrix.shape} is not square.")
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return np.stack([rows, matrix.indices])[:, matrix.data != 0]


def _stack(blocks: list[tuple[CsrParts, np.ndarray]], rows: int) -> CsrParts:
    """Matrices of one width as one, row i of each at the given row."""
    at = np.concatenate([np.repeat(target, np.diff(block.indptr)) for block, target in blocks])
    order = np.argsort(at, kind="stable")
    data = np.concatenate([block.data for block, _ in blocks])[order]
    indices = np.concatenate([block.indices for block, _ in blocks])[order]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=rows))])
    return CsrParts(data, indices, indptr, (rows, blocks[0][0].shape[1]))


def _put_csr(parts: Parts, matrix: CsrParts, source: Path) -> None:
    for key, array in (
        ("x_data", matrix.data),
        ("x_indices", matrix.indices),
        ("x_indptr", matrix.indptr),
        ("x_shape", np.array(matrix.shape)),
    ):
        parts.put(key, array, source)


def _neighbours(found: Any, path: Path) -> np.ndarray:
    """(2, E) from node -> list of its neighbours."""
    if not isinstance(found, dict) or not all(
        isinstance(node, int) and isinstance(listed, list) for node, listed in found.items()
    ):
        raise InputError(f"{path} does not list the neighbours of every node.")
    # A pickle may refer to one list many times over; honest lists are as long as the file allows.
    total = sum(len(listed) for listed in found.values())
    if total > path.stat().st_size:
        raise InputError(f"{path}: {total} neighbours in a file of {path.stat().st_size} bytes.")
    try:
        source = np.repeat(
            np.fromiter(found, np.int64, len(found)), [len(listed) for listed in found.values()]
        )
        target = np.array([one for listed in found.values() for one in listed], dtype=np.int64)
        if len(target) and not all(isinstance(one, int) for listed in found.values() for one in listed):
            raise TypeError("not whole numbers")
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: a neighbour is not a node number ({error}).") from error
    return np.stack([source, target])
