"""A folder of tables (edges, features, labels, splits) as the named arrays of the .npz graph layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from leanlabel.data.graph_tables import (
    TEXT_KINDS,
    Table,
    find_file,
    is_integer,
    is_number,
    read_arrays,
    read_parquet,
    read_table,
    text_rows,
    words,
)
from leanlabel.errors import InputError

TABLES = (*TEXT_KINDS, ".parquet", ".npy")
LAYOUT = (
    "A graph folder holds edges.{csv,parquet,npy} with features.{csv,parquet,npy,npz} and, if you like, "
    "labels.{csv,parquet,npy} and splits.{csv,npz}; or edges with nodes.csv (id, label, features)."
)
_HEADERS = "If this row is a header, call its columns source and target, id and label, or id and split."
# Node numbers without a list of nodes may leave gaps (isolated nodes), but not mostly gaps.
MOST_GAPS = 100
PARTS = ("train", "val", "test")
# A table written with its row index has an empty name above it.
_ID = ("id", "node", "node_id", "name", "")
# What stands for no value: never a column's name.
_NO_VALUE = ("", "na", "n/a", "null", "none", "?", "-")
_LABEL = ("label", "labels", "class", "y", "target")
_SPLIT = ("split", "part", "set", "subset")
_SOURCE, _TARGET = ("source", "src", "from"), ("target", "dst", "to")
_PART_OF = {"training": "train", "valid": "val", "validation": "val"} | {part: part for part in PARTS}


@dataclass
class Parts:
    """Arrays under the keys of the .npz layout, and the file that each came from."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)

    def put(self, key: str, array: np.ndarray, source: Path) -> None:
        self.arrays[key] = array
        self.sources[key] = source


def read_folder(folder: Path, *, without_features: bool = False) -> Parts:
    """Read the tables of a graph folder.

    Nodes are named by the column `id` of the features (or nodes) table, or by any text in its first column;
    without names they are numbered by row from 0. Edges, labels and splits then refer to the names or to the
    numbers.

    Args:
        folder: the folder.
        without_features: the features may be missing; the edges then name or number the nodes.

    Raises:
        InputError: no edges or no nodes, a name that is unknown or given twice, a cell that is no number;
            names the file and the line.
    """
    edges = find_file(folder, "edges", TABLES)
    if edges is None:
        raise InputError(f"{folder} has no edges file, so it is not a graph.", LAYOUT)
    parts = Parts()
    nodes = _read_nodes(folder, parts)
    table = read_table(edges, pairs=True)
    if nodes is None:
        if not without_features:
            raise missing_features(folder, "features file (features.csv or nodes.csv, for example)")
        nodes = _nodes_of_edges(table, parts)
    parts.put("edge_index", _read_edges(table, nodes), edges)
    labels = find_file(folder, "labels", TABLES)
    if labels is not None:
        if "y" in parts.arrays:
            raise InputError(
                f"{parts.sources['y']} has a label column and {labels} exists.", "Keep one of them."
            )
        parts.put("y", _read_labels(read_table(labels), nodes), labels)
    splits = find_file(folder, "splits", (*TEXT_KINDS, ".npz"))
    if splits is not None:
        _read_splits(splits, nodes, parts)
    return parts


class _Nodes:
    """Row numbers of the nodes, by name where they have names."""

    def __init__(self, count: int | None, ids: list[str] | None, path: Path | None) -> None:
        self.count = count
        self.index = None if ids is None else {name: row for row, name in enumerate(ids)}
        self.numbered = ids is None or all(is_number(name) for name in ids)
        if self.index is not None and ids is not None and len(self.index) < len(ids):
            seen: set[str] = set()
            twice = next(name for name in ids if name in seen or seen.add(name))
            raise InputError(f"{path} names node {twice!r} more than once.", "Give every node one row.")

    def row(self, cell: str, where: str, hint: str | None = None) -> int:
        """Row number of one cell."""
        if self.index is not None:
            if cell not in self.index:
                raise InputError(f"{where} refers to node {cell!r}, which the features do not list.", hint)
            return self.index[cell]
        if not is_integer(cell):
            raise InputError(
                f"{where} refers to node {cell!r}; the features give no names, so a row number is expected.",
                "Put the names into a first column `id` of the features.",
            )
        return int(cell)

    def rows(self, table: Table, column: int) -> np.ndarray:
        """Row numbers of one column."""
        cells = table.columns[column]
        if self.index is None and isinstance(cells, np.ndarray) and cells.dtype.kind in "iu":
            rows = cells.astype(np.int64)
        else:
            names = table.text(column)
            # A first row that is no known header is a row like any other: to drop it would lose an edge in silence.
            hint = _HEADERS if table.header is None else None
            rows = [self.row(name, table.where(i), None if i else hint) for i, name in enumerate(names)]
            rows = np.array(rows, dtype=np.int64)
        if self.count is not None:
            bad = np.flatnonzero((rows < 0) | (rows >= self.count))
            if len(bad):
                raise InputError(
                    f"{table.where(int(bad[0]))} refers to node {rows[bad[0]]}, but the features have "
                    f"{self.count} nodes (0 to {self.count - 1}); {len(bad)} such rows."
                )
        return rows

    def knows(self, cell: str) -> bool:
        """Whether a cell refers to a node."""
        return cell in self.index if self.index is not None else is_integer(cell)

    def never(self, cell: str) -> bool:
        """Whether a cell can only be the name of a column: a word where all nodes are numbers."""
        return self.numbered and not is_number(cell)


def missing_features(path: Path, what: str) -> InputError:
    """Build the error for a graph that has edges only."""
    return InputError(
        f"{path} has edges but no {what}.",
        "Add it, or set features to `degree` to use the nodes' degrees instead.",
    )


def _nodes_of_edges(table: Table, parts: Parts) -> _Nodes:
    """Nodes of a graph without features: the names that the edges use, or the numbers."""
    if table.header is None and len(table):
        below = [str(column[1]).strip() for column in table.columns[:2]] if len(table) > 1 else []
        numbered = bool(below) and all(is_integer(cell) for cell in below)
        row = table.first_row()
        if _spelled(row) or (numbered and not any(is_number(cell) for cell in row[:2])):
            table.name_columns()
        else:
            table.header = []
    if len(table.columns) < 2:
        return _Nodes(None, None, None)
    names = [name for pair in zip(*(table.text(i) for i in _end_columns(table))) for name in pair]
    if all(is_integer(name) for name in names):
        return _Nodes(None, None, None)
    ids = list(dict.fromkeys(names))
    parts.put("ids", words(ids), table.path)
    return _Nodes(len(ids), ids, table.path)


def _read_nodes(folder: Path, parts: Parts) -> _Nodes | None:
    kinds = (*TABLES, ".npz")
    features, together = find_file(folder, "features", kinds), find_file(folder, "nodes", TABLES[:-1])
    if features is not None and together is not None:
        raise InputError(f"{folder} holds both {features.name} and {together.name}.", "Keep one of them.")
    path = features or together
    if path is None:
        return None
    if path.suffix == ".npz":
        return _Nodes(_array_features(path, parts), None, None)
    if path.suffix == ".npy":
        parts.put("x", np.atleast_1d(read_arrays(path)[""]), path)
        return _Nodes(len(parts.arrays["x"]), None, None)
    read = _parquet_features if path.suffix == ".parquet" else _text_features
    ids, labels, x = read(path, labelled=path is together)
    parts.put("x", x, path)
    if labels is not None:
        parts.put("y", labels, path)
    nodes = _Nodes(len(x), ids, path)
    if ids is not None:
        parts.put("ids", words(ids), path)
    return nodes


def _array_features(path: Path, parts: Parts) -> int:
    """Put the features of an .npz in place, also under the names of scipy's `save_npz`; returns the nodes."""
    arrays = read_arrays(path)
    layout = str(arrays["format"].astype(np.str_)) if "format" in arrays else "csr"
    if layout != "csr":
        raise InputError(f"{path} holds a sparse matrix in {layout} form.", "Save it as x.tocsr().")
    for name in ("data", "indices", "indptr", "shape"):
        for key in (f"x_{name}", name):
            if key in arrays:
                parts.put(f"x_{name}", arrays[key], path)
                break
    if "x" in arrays:
        parts.put("x", np.atleast_1d(arrays["x"]), path)
        return len(parts.arrays["x"])
    return max(parts.arrays["x_indptr"].size - 1, 0) if "x_indptr" in parts.arrays else 0


def _text_features(path: Path, labelled: bool) -> tuple[list[str] | None, np.ndarray | None, np.ndarray]:
    rows = text_rows(path)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} is empty.", LAYOUT)
    cells = [cell.strip() for cell in first[1]]
    second = next(rows, None)
    valued = any(is_number(cell) or cell.lower() in _NO_VALUE for cell in cells[1:])
    named = cells[0].lower() in _ID or (len(cells) > 1 and not valued and not is_number(cells[0]))
    # Numbered columns of a table writer: 0, 1, 2, ... in every cell is a header and not a node.
    named = named or (len(cells) >= 8 and cells == [str(i) for i in range(len(cells))])
    if not named and cells[0].lower() not in _NO_VALUE and second is not None and len(cells) == 1:
        named = not is_number(cells[0]) and is_number(second[1][0].strip())
    header = [cell.lower() for cell in cells] if named else []
    label = next((i for i, name in enumerate(header) if name == "label"), None) if labelled else None
    body = chain([] if named else [first], [] if second is None else [second], rows)
    sample = second if named else first
    by_name = bool(header) and header[0] in _ID
    by_name = by_name or (sample is not None and not is_number(sample[1][0].strip()) and label != 0)
    keys = {0} if by_name else set()
    keys |= set() if label is None else {label}
    keep = [i for i in range(len(cells)) if i not in keys]
    ids: list[str] = []
    labels: list[str] = []
    numbers: list[np.ndarray] = []
    for line, row in body:
        if by_name:
            ids.append(row[0].strip())
        if label is not None:
            labels.append(row[label].strip())
        try:
            with np.errstate(over="ignore"):  # too large becomes infinite, which is refused later
                numbers.append(np.array([row[i] for i in keep], dtype=np.float32))
        except ValueError:
            bad = next((i for i in keep if not is_number(row[i].strip())), keep[0])
            name = f" ({header[bad]})" if header else ""
            raise InputError(
                f"{path}, line {line}, column {bad + 1}{name}: {row[bad].strip()!r} is not a number."
            ) from None
    x = np.stack(numbers) if numbers else np.zeros((0, len(keep)), np.float32)
    return ids if by_name else None, words(labels) if label is not None else None, x


def _parquet_features(path: Path, labelled: bool) -> tuple[list[str] | None, np.ndarray | None, np.ndarray]:
    names, columns = read_parquet(path)
    if not columns:
        raise InputError(f"{path} has no columns.", LAYOUT)
    by_name = names[0].strip().lower() in _ID or columns[0].dtype.kind not in "biuf"
    label = (
        next((i for i, name in enumerate(names) if name.strip().lower() == "label"), None)
        if labelled
        else None
    )
    if label == 0:
        by_name = False
    numbers = []
    for i, column in enumerate(columns):
        if i == label or (i == 0 and by_name):
            continue
        if column.dtype.kind not in "biuf":
            raise InputError(f"{path}: column {names[i]!r} has type {column.dtype}, expected numbers.")
        with np.errstate(over="ignore"):  # as in text
            numbers.append(column.astype(np.float32))
    x = np.stack(numbers, 1) if numbers else np.zeros((len(columns[0]), 0), np.float32)
    ids = [str(cell).strip() for cell in columns[0]] if by_name else None
    return ids, None if label is None else columns[label], x


def _read_edges(table: Table, nodes: _Nodes) -> np.ndarray:
    if not table.columns:
        return np.zeros((2, 0), np.int64)
    if len(table.columns) < 2:
        raise InputError(f"{table.path} has one column, expected source and target.")
    if table.header is None:
        row = table.first_row()
        if _spelled(row) or (nodes.never(row[0]) and nodes.never(row[1])):
            table.name_columns()
    source, target = _end_columns(table)
    return np.stack([nodes.rows(table, source), nodes.rows(table, target)])


def _spelled(row: list[str]) -> bool:
    lower = {cell.lower() for cell in row}
    return bool(lower & set(_SOURCE)) and bool(lower & set(_TARGET))


def _end_columns(table: Table) -> tuple[int, int]:
    source, target = table.find(_SOURCE), table.find(_TARGET)
    if source is not None and target is not None:
        return source, target
    numbered_rows = bool(table.header) and table.header[0] == "" and len(table.columns) > 2
    return (1, 2) if numbered_rows else (0, 1)


def _read_labels(table: Table, nodes: _Nodes) -> np.ndarray:
    column, node = _key_columns(table, nodes, _LABEL)
    if column is None:
        return np.zeros(0, np.int64)
    if node is None:
        if nodes.count is not None and len(table) != nodes.count:
            raise InputError(f"{table.path} has {len(table)} labels, the features have {nodes.count} nodes.")
        labels = table.columns[column]
        return labels if isinstance(labels, np.ndarray) else words(table.text(column))
    rows = nodes.rows(table, node)
    _refuse_repeats(table, rows)
    count = nodes.count if nodes.count is not None else int(rows.max(initial=-1)) + 1
    if count > MOST_GAPS * max(len(rows), 10_000) or rows.min(initial=0) < 0:
        raise InputError(
            f"{table.path} numbers nodes from {rows.min()} to {rows.max()}, expected 0 to N - 1."
        )
    labels = table.columns[column]
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "f":  # whose empty cells are NaN
        numbers = np.full(count, np.nan, labels.dtype)
        numbers[rows] = labels
        return numbers
    spread = np.full(count, "", dtype=object)
    spread[rows] = table.text(column)
    return spread


def _read_splits(path: Path, nodes: _Nodes, parts: Parts) -> None:
    if path.suffix == ".npz":
        arrays = read_arrays(path)
        for part in PARTS:
            key = next((key for key in (f"{part}_idx", part, f"{part}_mask") if key in arrays), None)
            if key is not None:
                parts.put(key if key.endswith("_mask") else f"{part}_idx", arrays[key], path)
        return
    table = read_table(path)
    column, node = _key_columns(table, nodes, _SPLIT)
    if column is None:
        return
    if node is None and nodes.count is not None and len(table) != nodes.count:
        raise InputError(f"{path} has {len(table)} rows, the features have {nodes.count} nodes.")
    rows = np.arange(len(table)) if node is None else nodes.rows(table, node)
    _refuse_repeats(table, rows)
    names = table.text(column)
    for i, name in enumerate(names):
        if name and name.lower() not in _PART_OF:
            raise InputError(
                f"{table.where(i)}: {name!r} is not a split.", "Use train, val, test or an empty cell."
            )
    part_of = np.array([_PART_OF.get(name.lower(), "") for name in names])
    for part in PARTS:
        if (part_of == part).any():
            parts.put(f"{part}_idx", rows[part_of == part].astype(np.int64), path)


def _key_columns(table: Table, nodes: _Nodes, names: tuple[str, ...]) -> tuple[int | None, int | None]:
    """Columns of the value and of the node (None: by row) of a labels or splits table."""
    if not table.columns or (table.header is None and not len(table)):
        return None, None
    if len(table.columns) > 2 and table.header == []:
        raise InputError(
            f"{table.path} has {len(table.columns)} columns, expected one, or node and {names[0]}."
        )
    if table.header is None:
        row = table.first_row()
        spelled = any(cell.lower() in names for cell in row)
        if len(row) == 1:  # a class may be called y
            named = spelled and len(table) != nodes.count
        else:
            named = not nodes.knows(row[0]) and (spelled or row[0].lower() in _ID or nodes.never(row[0]))
        if named:
            table.name_columns()
    width = len(table.columns)
    column = table.find(names)
    if width == 1:
        return 0, None
    node = table.find(_ID)
    if column is None and width > 2:
        raise InputError(f"{table.path} has {width} columns and none is called {names[0]!r}.")
    column = 1 if column is None else column
    return column, next(i for i in (node, 0, 1) if i is not None and i != column)


def _refuse_repeats(table: Table, rows: np.ndarray) -> None:
    seen, first = np.unique(rows, return_index=True)
    if len(seen) < len(rows):
        again = int(np.setdiff1d(np.arange(len(rows)), first)[0])
        raise InputError(f"{table.where(again)} lists its node a second time.", "Give every node one row.")
