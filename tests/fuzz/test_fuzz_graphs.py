"""Whatever a graph file or folder holds: a sound graph, or one error that names the file."""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corrupt import CHANGES, MANY, QUICK, Reader, attempt, damaged, hold, sweep
from hypothesis import strategies as st
from lying import ARRAYS, LIES, Member, Payload, archive, archives, npy

from leanlabel.data.graph_files import read_graph
from leanlabel.data.graphs import UNLABELLED, Graph, fingerprint
from leanlabel.data.splits import PARTS
from leanlabel.sparse import Csr

pytestmark = pytest.mark.slow

EDGES = np.array([[0, 1, 0, 2, 3, 0], [1, 0, 2, 0, 0, 3]])
X = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]], dtype=np.float32)
DENSE = {"x": X, "edge_index": EDGES, "y": np.array([0, 1, -1, 1])}
SPARSE = {
    "x_data": np.array([1, 2, 1, 1, 1], np.float32),
    "x_indices": np.array([0, 2, 1, 0, 1], np.uint16),
    "x_indptr": np.array([0, 2, 3, 3, 5], np.int32),
    "x_shape": np.array([4, 3]),
    "edge_index": EDGES.astype(np.int32),
    "y": np.array(["b", "a", "", "b"]),
}
EXTRA = ("ids", "class_names", "train_idx", "val_mask", "test_idx", "x", "x_shape", "stray", "train_1_idx")
EXTRA += ("test_" + "9" * 5_000 + "_idx",)


def sound(graph: Graph) -> None:
    """What the type promises."""
    n = graph.num_nodes
    assert n > 0
    assert len(graph.x.shape) == 2
    assert graph.x.shape[0] == n
    assert graph.num_features > 0
    values = graph.x.values if isinstance(graph.x, Csr) else graph.x
    assert values is None or (values.dtype == torch.float32 and bool(torch.isfinite(values).all()))
    if isinstance(graph.x, Csr):
        crow, col = graph.x.crow, graph.x.col
        assert crow.shape == (n + 1,)
        assert int(crow[0]) == 0
        assert int(crow[-1]) == len(col)
        assert bool((graph.x.counts >= 0).all())
        assert values is None or (values.shape == col.shape and bool((values != 0).all()))
        if len(col):
            assert int(col.min()) >= 0
            assert int(col.max()) < graph.num_features
            rises = (graph.x.rows[1:] > graph.x.rows[:-1]) | (col[1:] > col[:-1])
            assert bool(rises.all())
    source, target = graph.edge_index
    assert graph.edge_index.dtype == torch.int64
    pairs = list(zip(source.tolist(), target.tolist()))
    assert pairs == sorted(set(pairs))
    assert all(0 <= one < n and 0 <= other < n and one != other for one, other in pairs)
    assert not graph.undirected or {(b, a) for a, b in pairs} == set(pairs)
    if graph.y is not None:
        assert graph.y.dtype == torch.int64
        assert graph.y.shape == (n,)
        known = graph.y[graph.y != UNLABELLED]
        assert bool(((known >= 0) & (known < graph.num_classes)).all())
    assert graph.ids is None or len(set(graph.ids)) == len(graph.ids) == n
    for part, nodes in graph.splits.items():
        assert part.split("_")[0] in PARTS
        assert nodes.dtype == torch.int64
        assert nodes.ndim == 1
        assert bool(((nodes >= 0) & (nodes < n)).all())
    assert len(fingerprint(graph)) == 64


def read(path: Path, **options: Any) -> Graph | None:
    graph = attempt(lambda: read_graph(path, **options), path)
    if graph is not None:
        sound(graph)
    return graph


# ----------------------------------------------------------------------------------------------- .npz files

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "undirected": st.sampled_from([True, False]),
        "features": st.just("degree"),
    },
)


def archives_of_graphs(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Arrays of any type in the place of others, headers that lie, code, names that lead elsewhere."""
    marker, path = folder / "escaped", folder / "graph.npz"

    def check(one: tuple[bytes, dict[str, Any]]) -> None:
        path.write_bytes(one[0])
        read(path, **one[1])

    content = st.one_of(archives(DENSE, marker, EXTRA), archives(SPARSE, marker, EXTRA))
    return check, st.tuples(content, OPTIONS)


def damaged_archives(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Sound files with bytes flipped, dropped, repeated, put in; as stored and as packed."""
    path = folder / "graph.npz"
    whole = []
    for save, arrays in itertools.product((np.savez, np.savez_compressed), (DENSE, SPARSE)):
        file = io.BytesIO()
        save(file, **arrays)
        whole.append(file.getvalue())

    def check(one: tuple[bytes, list[Any]]) -> None:
        path.write_bytes(damaged(*one))
        read(path)

    return check, st.tuples(st.sampled_from(whole), CHANGES)


# -------------------------------------------------------------------------------------------------- tables

TOKENS = (
    "", " ", "0", "1", "2", "3", "4", "-1", "+1", "00", "1.0", "1_0", "1e0", "1e308", "1e999", "nan", "inf",
    "-inf", "NA", "p", "q", "z", "P", "é", "\u0661", "\uff11", "\u200b", "\0", "a\0", "a\x00\x00", '"',
    '""', '"p"', '"a,b"', '"a\nb"', "'", "id", "label", "source", "train", "dev", "x" * 200, "9" * 30,
    "9" * 5000, str(2**63), str(-(2**63)), "0x1", "True", "#", "\u2028", "\r", "\x1a", "\x0c",
    "../../escaped", "=1+1", "p q", "\ufeff",
)  # fmt: skip
NAMED = {
    "edges": ["source,target", "p,q", "q,p", "p,r", "r,p", "s,p"],
    "features": ["id,f0,f1", "p,1,0", "q,0,1.5", "r,0,0", "s,1,-1"],
    "labels": ["id,label", "s,sport", "p,art", "r,art"],
    "splits": ["id,split", "p,train", "s,test", "r,val"],
}
NUMBERED = {
    "edges": ["0,1", "1,2", "2,3", "3,0"],
    "features": ["1,0,1", "0,1,0", "0,0,0", "1,1,0"],
    "labels": ["0", "1", "", "1"],
    "splits": ["train", "", "val", "test"],
}
TOGETHER = {"edges": ["0 1", "1 2", "2 0"], "nodes": ["id,label,f0,f1", "0,a,1,0", "1,b,0,1", "2,,1,1"]}
ENDINGS, MARKS = ("\n", "\r\n", "\r", "\n\n", ""), (",", ";", "\t", " ", "|", ", ")
CODES = ("utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32")
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["cell", "cell", "cell", "add", "drop row", "repeat row", "drop cell", "first"]),
        st.integers(0, 6),
        st.integers(0, 4),
        st.sampled_from(TOKENS),
    ),
    max_size=4,
)


def edited(lines: list[str], edits: list[tuple[str, int, int, str]]) -> list[list[str]]:
    rows = [line.replace(" ", ",").split(",") for line in lines]
    for kind, row, column, token in edits:
        if not rows:
            break
        at = row % len(rows)
        cells = rows[at]
        if kind == "cell" and cells:
            cells[column % len(cells)] = token
        elif kind == "add":
            cells.insert(column, token)
        elif kind == "drop row":
            del rows[at]
        elif kind == "repeat row":
            rows.insert(at, list(cells))
        elif kind == "drop cell" and cells:
            del cells[column % len(cells)]
        elif kind == "first":
            rows.insert(0, [token] * (column + 1))
    return rows


def folders(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Tables with odd cells, quotes, line ends, encodings, ragged and repeated rows, missing and empty files."""

    def check(one: tuple[Any, ...]) -> None:
        base, edits, name, ending, mark, code, changes, missing, suffix, options = one
        for old in folder.iterdir():
            old.unlink()
        for stem, lines in base.items():
            rows = edited(lines, edits) if stem == name else edited(lines, [])
            text = ending.join(mark.join(row) for row in rows) + ending
            content = text.encode(code if stem == name else "utf-8", "replace")
            if stem == name:
                content = damaged(content, changes)
            if stem != missing:
                (folder / f"{stem}{suffix}").write_bytes(content)
        read(folder, **options)

    inputs = st.tuples(
        st.sampled_from([NAMED, NAMED, NUMBERED, TOGETHER]),
        EDITS,
        st.sampled_from(["edges", "features", "labels", "splits", "nodes"]),
        st.sampled_from(ENDINGS),
        st.sampled_from(MARKS),
        st.sampled_from(CODES),
        st.one_of(st.just([]), st.just([]), CHANGES),
        st.sampled_from([None, None, None, "features", "edges", "labels"]),
        st.sampled_from([".csv", ".csv", ".tsv"]),
        OPTIONS,
    )
    return check, inputs


def arrays_in_folders(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Folders of .npy, .npz and scipy's .npz: odd arrays and damaged bytes in every place."""
    sparse = {key.removeprefix("x_"): SPARSE[key] for key in ("x_data", "x_indices", "x_indptr", "x_shape")}
    sparse["format"] = np.array(b"csr")
    marker = folder / "escaped"
    sound_files = {
        "edges.npy": npy(EDGES.T),
        "features.npz": archive([Member(f"{key}.npy", npy(array)) for key, array in sparse.items()]),
        "labels.npy": npy(SPARSE["y"]),
        "splits.npz": archive(
            [Member("train.npy", npy(np.array([0]))), Member("test_idx.npy", npy(np.array([1, 2])))]
        ),
    }
    single = st.one_of(
        ARRAYS.map(npy),
        ARRAYS.map(npy),
        st.sampled_from(LIES),
        st.just(npy(np.array([Payload(marker)], dtype=object))),
        st.builds(damaged, st.just(sound_files["edges.npy"]), CHANGES),
    )
    packed = archives(sparse, marker, ("x", "y", "train", "val_mask", "test_idx"))
    changed = st.one_of(
        st.tuples(st.sampled_from(["edges.npy", "labels.npy", "features.npy"]), single),
        st.tuples(st.sampled_from(["features.npz", "splits.npz"]), packed),
    )

    def check(one: tuple[tuple[str, bytes], dict[str, Any]]) -> None:
        (name, content), options = one
        files = {**sound_files, name: content}
        if name == "features.npy":
            del files["features.npz"]
        for old in folder.iterdir():
            old.unlink()
        for file, data in files.items():
            (folder / file).write_bytes(data)
        read(folder, **options)

    return check, st.tuples(changed, OPTIONS)


def columnar(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Folders of .parquet: columns of any type, empty cells, damaged bytes."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "words": ["p", "q", "r", "s"],
        "numbers": [0, 1, 2, 3],
        "floats": [0.0, 1.5, float("nan"), 1e308],
        "gaps": [0, None, 2, 3],
        "wordless": ["p", None, "r", ""],
        "nothing": [None] * 4,
        "large": arrow.array([0, 1, 2**64 - 1, 2**63], arrow.uint64()),
        "bytes": [b"p", b"\xff", b"r", b"s"],
        "truth": [True, False, None, True],
        "lists": [[1], [], [2, 3], None],
        "records": [{"a": 1}] * 4,
        "dates": arrow.array([0, 1, 2, 3], arrow.timestamp("s")),
        "coded": arrow.array(["p", "q", "p", "q"]).dictionary_encode(),
        "broken": arrow.Array.from_buffers(
            arrow.utf8(),
            4,
            [None, arrow.py_buffer(np.arange(5, dtype="<i4")), arrow.py_buffer(b"\xff\xfe\xfd\xfc")],
        ),
    }
    sound_files = {
        "features": {"id": "words", "f": "numbers"},
        "edges": {"source": "words", "target": "words"},
        "labels": {"id": "words", "label": "numbers"},
    }
    names = ("id", "f", "label", "source", "target", "", "Label", "é", "\0", "x")

    def written(table: Mapping[str, str]) -> bytes:
        file = io.BytesIO()
        parquet.write_table(arrow.table({name: columns[kind] for name, kind in table.items()}), file)
        return file.getvalue()

    table = st.one_of(
        st.sampled_from(list(sound_files.values())),
        st.dictionaries(st.sampled_from(names), st.sampled_from(list(columns)), max_size=3),
    )

    whole = {stem: written(kinds) for stem, kinds in sound_files.items()}

    def check(one: tuple[str, Mapping[str, str], list[Any], dict[str, Any]]) -> None:
        name, odd, changes, options = one
        for stem, content in (whole | {name: damaged(written(odd), changes)}).items():
            (folder / f"{stem}.parquet").write_bytes(content)
        read(folder, **options)

    return check, st.tuples(
        st.sampled_from(list(sound_files)), table, st.one_of(st.just([]), CHANGES), OPTIONS
    )


# ------------------------------------------------------------------------------------------------ the tests

READERS = (archives_of_graphs, damaged_archives, folders, arrays_in_folders, columnar)


@pytest.mark.parametrize("reader", READERS)
def test_errors_any_input(reader: Reader, tmp_path: Path) -> None:
    assert hold(reader, tmp_path, QUICK) >= QUICK


@pytest.mark.real
@pytest.mark.parametrize("name", ["acm", "blogcatalog", "cora"])
def test_errors_real(data_root: Path, name: str, tmp_path: Path) -> None:
    """Copies of published graphs with damage: to the file, and to one array of it behind a checksum that is right."""
    source = data_root / "graphs" / f"{name}.npz"
    if not source.is_file():
        pytest.skip(f"{source} is not there")
    whole, path = source.read_bytes(), tmp_path / f"{name}.npz"
    with zipfile.ZipFile(source) as file:
        members = [Member(info.filename, file.read(info), zipfile.ZIP_STORED) for info in file.infolist()]

    def check(one: tuple[int | None, list[Any]]) -> None:
        index, changes = one
        if index is None:
            content = damaged(whole, changes)
        else:
            at = index % len(members)
            new = Member(members[at].name, damaged(members[at].content, changes), zipfile.ZIP_STORED)
            content = archive([*members[:at], new, *members[at + 1 :]])
        path.write_bytes(content)
        attempt(lambda: read_graph(path), path)

    inputs = st.tuples(st.one_of(st.none(), st.integers(0, 20), st.integers(0, 20)), CHANGES)
    assert sweep(check, inputs, 40) == 40


def test_values_total() -> None:
    """The slow tests of this folder make up ten thousand inputs."""
    assert sum(MANY.values()) >= 10_000


@pytest.mark.slow
def test_errors_many_inputs(tmp_path: Path) -> None:
    share = -(-MANY["graphs"] // len(READERS))
    seen = sum(hold(reader, tmp_path / reader.__name__, share) for reader in READERS)
    assert seen >= MANY["graphs"]
