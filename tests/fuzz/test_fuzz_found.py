"""What the other files of this folder found, one small input each, with what is read or said now."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corrupt import attempt, peak_megabytes
from lying import LIES, Member, archive, npy

from leanlabel.data.graph_files import read_graph
from leanlabel.data.graphs import UNLABELLED, Graph
from leanlabel.data.rows import check_ending, write_rows
from leanlabel.data.splits import Split, load_splits, save_splits
from leanlabel.engine import checkpoint
from leanlabel.engine.checkpoint import Checkpoint
from leanlabel.engine.runfolder import JsonCache, JsonLines, read_json, read_lines
from leanlabel.errors import InputError, RunError
from leanlabel.recipe import Recipe, override, read_recipe

NAMED = "id,f0\np,1\nq,2\nr,3\n"


def folder(place: Path, **files: str | np.ndarray) -> Path:
    """Tables as text and arrays: `edges`, `features`, ..."""
    for name, content in files.items():
        if isinstance(content, str):
            (place / f"{name}.csv").write_text(content, encoding="utf-8")
        else:
            np.save(place / f"{name}.npy", content)
    return place


def edges(graph: Graph) -> list[list[int]]:
    return graph.edge_index.t().tolist()


# ----------------------------------------------------------------------------------------- graphs as tables


@pytest.mark.parametrize(
    ("features", "table", "message"),
    [
        (
            NAMED,
            "x,y\np,q\n",
            r"edges\.csv, line 1 refers to node 'x', .* call its columns source and target",
        ),
        ("1\n2\n3\n", "7,8\n0,1\n", r"edges\.csv, line 1 refers to node 7, but the features have 3 nodes"),
        ("1\n2\n3\n", "0.0,1.0\n", r"edges\.csv, line 1 refers to node '0\.0'"),
        ("id,f\n7,1\n8,2\n", "1,2\n7,8\n", r"edges\.csv, line 1 refers to node '1'"),
    ],
)
def test_errors_first_edge(tmp_path: Path, features: str, table: str, message: str) -> None:
    """A first row that names no known node was taken for a header, and its edge was lost in silence."""
    with pytest.raises(InputError, match=message):
        read_graph(folder(tmp_path, features=features, edges=table))


@pytest.mark.parametrize(
    ("features", "table", "expected"),
    [
        (NAMED, "p,q\nq,r\n", [[0, 1], [1, 2]]),
        (NAMED, "from,to\np,q\n", [[0, 1]]),
        ("1\n2\n3\n", "u,v\n0,1\n", [[0, 1]]),
        ("id,f\n7,1\n8,2\n", "paper,cites\n7,8\n", [[0, 1]]),
        ("1\n2\n3\n", ",u,v\n0,1,2\n1,2,0\n", [[1, 2], [2, 0]]),
    ],
)
def test_values_header(tmp_path: Path, features: str, table: str, expected: list[list[int]]) -> None:
    """Names of columns that cannot be nodes are still known for what they are, behind a column of row numbers too."""
    assert edges(read_graph(folder(tmp_path, features=features, edges=table))) == expected


def test_errors_first_label(tmp_path: Path) -> None:
    """The same in labels and splits: a class called y, a node that is not listed."""
    place = folder(tmp_path, features=NAMED, edges="p,q\n", labels="p,y\nq,n\nr,n\n")
    assert read_graph(place).y.tolist() == [1, 0, 0]  # type: ignore[union-attr]
    assert read_graph(folder(place, labels="y\nn\nn\n")).y.tolist() == [1, 0, 0]  # type: ignore[union-attr]
    assert read_graph(folder(place, labels="y\nn\nn\ny\n")).y.tolist() == [0, 0, 1]  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"splits\.csv, line 1 refers to node 'z'"):
        read_graph(folder(place, splits="z,train\np,test\n"))
    with pytest.raises(InputError, match=r"labels\.csv, line 1 refers to node 'z'"):
        read_graph(folder(place, labels="z,a\np,b\n"))


@pytest.mark.parametrize("features", ["?,?\n1,2\n3,4\n", "n,,\nm,1,2\n", "3,a,b\n1,2,3\n"])
def test_errors_first_features(tmp_path: Path, features: str) -> None:
    """A first row of missing values was taken for a header: every later node moved up by one."""
    with pytest.raises(InputError, match=r"features\.csv, line 1, column"):
        read_graph(folder(tmp_path, features=features, edges="0,1\n"))
    with pytest.raises(InputError, match=r"features have shape \(3, 0\)"):
        read_graph(folder(tmp_path, features="NA\n1\n2\n", edges="1,2\n"))


def test_values_one_long_name(tmp_path: Path) -> None:
    """One long cell cost every row as much memory: 8 GB for this graph."""
    nodes, long, peak = 20_000, "x" * 100_000, peak_megabytes()
    features = "id,f\n" + "".join(f"{long if i == 5 else i},1\n" for i in range(nodes))
    labels = "".join(f"{i},{long if i == 7 else 'a'}\n" for i in range(nodes) if i != 5)
    graph = read_graph(folder(tmp_path, features=features, edges="0,1\n", labels=labels))
    assert graph.num_classes == 2
    assert peak_megabytes() - peak < 200


def test_values_wide_arrays(tmp_path: Path) -> None:
    """Edges of shape (2, E) became E columns; with text, the names of the first two edges only."""
    pairs = np.random.default_rng(0).integers(0, 10, (2, 300_000))
    place = folder(tmp_path, features=np.ones((10, 1)), edges=pairs)
    assert len(edges(read_graph(place))) == 90
    with pytest.raises(InputError, match=r"labels\.npy has shape \(5, 300000\)"):
        read_graph(folder(place, labels=np.zeros((5, 300_000), np.int8)))
    (tmp_path / "words").mkdir()
    words = folder(tmp_path / "words", edges=np.array([["a", "b", "c"], ["b", "c", "d"]]))
    assert read_graph(words, features="degree").ids == ["a", "b", "c", "d"]


def test_values_parquet_gaps(tmp_path: Path) -> None:
    """An empty cell in a column of numbers became a class called nan."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    place = folder(tmp_path, features=NAMED, edges="p,q\n")
    parquet.write_table(arrow.table({"id": ["r", "p", "q"], "label": [4, None, 2]}), place / "labels.parquet")
    graph = read_graph(place)
    assert (graph.y.tolist(), graph.class_names) == ([UNLABELLED, 0, 1], ["2", "4"])  # type: ignore[union-attr]


def test_errors_parquet_of_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes of Parquet can stand for any number of equal rows; the table is not made when it cannot fit."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    place = folder(tmp_path, features=NAMED)
    parquet.write_table(
        arrow.table({"source": [0] * 100_000, "target": [1] * 100_000}), place / "edges.parquet"
    )
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 10**6}.__getitem__, raising=False)
    with pytest.raises(InputError, match=r"edges\.parquet unpacks to"):
        read_graph(place)


# ------------------------------------------------------------------------------------------- graphs as .npz


def test_errors_sums(tmp_path: Path) -> None:
    """Repeated entries that are finite one by one."""
    parts: dict[str, Any] = {
        "x_data": np.array([3e38, 3e38], np.float32),
        "x_indices": [0, 0],
        "x_indptr": [0, 2, 2],
    }
    np.savez(tmp_path / "g.npz", x_shape=[2, 1], edge_index=[[0], [1]], **parts)
    with pytest.raises(InputError, match=r"g\.npz: repeated entries of the features add up"):
        read_graph(tmp_path / "g.npz")


def test_errors_names(tmp_path: Path) -> None:
    """Names that the system refuses, and a number of a split beyond what Python turns into one."""
    long = tmp_path / ("x" * 300 + ".npz")
    with pytest.raises(InputError, match="cannot be read"):
        read_graph(long)
    with pytest.raises(InputError, match="cannot be written"):
        check_ending(long.with_suffix(".npy"))
    path = tmp_path / "g.npz"
    stray: dict[str, Any] = {f"train_{'9' * 5_000}_idx": [0]}
    np.savez(path, x=np.ones((2, 1)), edge_index=[[0], [1]], **stray)
    assert read_graph(path).splits == {}


@pytest.mark.parametrize("lie", LIES)
def test_errors_headers(tmp_path: Path, lie: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers that lie are refused before anything of their size is made, and none is run."""
    monkeypatch.chdir(tmp_path)
    members = [Member("x.npy", npy(np.ones((2, 1)))), Member("edge_index.npy", lie)]
    (tmp_path / "g.npz").write_bytes(archive(members))
    before = peak_megabytes()
    attempt(lambda: read_graph(tmp_path / "g.npz"), "g.npz")  # a few are sound headers in an odd form
    assert peak_megabytes() - before < 50
    assert not (tmp_path / "escaped").exists()


# ---------------------------------------------------------------------------------------- splits and rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": np.array([np.inf])}, "seed has shape"),
        ({"0_train": np.array([[0], [1]])}, "0_train has shape"),
        ({"0_train": np.array([0.0, 1.0])}, "0_train has shape"),
        ({"0_train": np.array(["9" * 30, "1"])}, "0_train has shape"),
        ({"0_train": np.array([-1, 1])}, "0_train holds -1"),
        ({"0_warnings": np.array("careful")}, "0_warnings has shape"),
        ({"name": np.array("random")}, "name has shape"),
        ({"0_test": None}, "0_test"),
        ({"0_test": np.array([3, 2])}, "does not have its recorded hash"),
    ],
)
def test_errors_splits(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    path = tmp_path / "splits.npz"
    parts = [torch.tensor(nodes) for nodes in ([0, 1], [], [2, 3])]
    save_splits(path, [Split("random-0-0", *(part.long() for part in parts), seed=0)])
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files} | changes
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"splits\.npz.*{message}"):
        load_splits(path)


def test_errors_rows(tmp_path: Path) -> None:
    parquet = tmp_path / "z.parquet"
    for rows, ids in ((np.zeros(3), None), (np.zeros(()), None), (np.zeros((2, 1)), ["a"])):
        with pytest.raises(ValueError, match=r"must be \(N, d\)"):
            write_rows(parquet, rows, ids)
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=r"z\.parquet: the names are not text"):
        write_rows(parquet, np.zeros((1, 1)), ["\ud800"])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!bool x\n", "line 1: not valid YAML .tag tag:yaml.org,2002:bool"),
        ("a: !!float ''\n", "line 1: not valid YAML"),
        ("a: !!timestamp x\n", "line 1: not valid YAML"),
        ("a: 1\nb: !!set {c}\n", "line 2: not valid YAML"),
        ("a: !!binary aGk=\n", "line 1: not valid YAML"),
        ("a: " + "[" * 30_000, "line 1: not valid YAML .sections and lists nested more than 40 deep"),
        ("a: " + "1," * 40_000, "longer than 32,768 characters"),
        ('a: "\\ud800"\n', "not valid YAML"),
        ("a: [{b: 1, b: 2}]\n", r"line 1: the key a\.0\.b appears twice"),
        ("c: 1\nbase: " + "x" * 300 + "\n", "line 2: base: Unknown recipe"),
    ],
)
def test_errors_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"mine\.yaml.*{message}"):
        read_recipe(path)


@pytest.mark.parametrize(
    "text", ["a=!!bool x", "a={b: 1, b: 2}", 'a="\\ud800"', "a" + ".a" * 50 + "=1", "a=" + "[" * 70_000]
)
def test_errors_overrides(text: str) -> None:
    with pytest.raises(InputError, match="--set") as caught:
        override(Recipe("mine", {}), [text])
    assert len(caught.value.message) < 400


# ------------------------------------------------------------------------------- files of a run, checkpoints


def test_values_lines(tmp_path: Path) -> None:
    """Bytes that are no text, nesting without end, rows without an iteration: what stands before them is kept."""
    path = tmp_path / "m.jsonl"
    whole = b'{"t": 0}\n{"t": 1}\n'
    for tail in (b"\xff\xfe\n", b'{"t": "\xc3', b"[" * 100_000 + b"\n", b'{"loss": 1}\n', b'{"t": "2"}\n'):
        path.write_bytes(whole + tail)
        assert read_lines(path)[:2] == [{"t": 0}, {"t": 1}]
        JsonLines(path).cut(5)
        assert path.read_bytes() == whole
    with pytest.raises(InputError, match="cannot be read"):
        read_lines(tmp_path)


def test_errors_json(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"deep\.json: not readable as JSON"):
        read_json(tmp_path / "deep.json")
    (tmp_path / "list.json").write_text("[1]")
    assert JsonCache(tmp_path).get("deep") is JsonCache(tmp_path).get("list") is None


def test_errors_flipped_bit(tmp_path: Path) -> None:
    """torch writes checksums and does not compare them: a flipped bit was a run that went on with another weight."""
    values = torch.arange(1000.0)
    path = checkpoint.save(tmp_path, Checkpoint(3, {"w": values}, {}, None), keep_last=1)
    content = bytearray(path.read_bytes())
    content[content.find(values[500:502].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"t=00000003\.ckpt: .*the checksum of .* is wrong"):
        checkpoint.latest(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"t": "3"},
        {"t": -1},
        {"t": torch.tensor(3)},
        {"method": {"w": 3}},
        {"method": {"w": torch.empty(1, device="meta")}},
        {"method": {"w": torch.zeros(2).to_sparse()}},
        {"method": [torch.zeros(1)]},
        {"optimisers": {"main": 3}},
        {"best": {"t": 1.0}},
        {"best": 0.5},
        {"scaler": None},
    ],
)
def test_errors_contents(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Contents of other types are refused where they are read, not where they are used."""
    content: dict[str, Any] = {
        "format": 1,
        "t": 3,
        "method": {},
        "optimisers": {},
        "best": None,
        "scaler": {},
    }
    path = tmp_path / "t=00000003.ckpt"
    torch.save(content, path)
    assert checkpoint.load(path).t == 3
    torch.save(content | changes, path)
    with pytest.raises(RunError, match=r"ckpt: this checkpoint cannot be read .*not the state of a run"):
        checkpoint.load(path)


def test_errors_notes_of_weights(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"leanlabel": "[" * 100_000}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InputError, match=r"m\.safetensors: cannot be read"):
        checkpoint.load_weights(tmp_path / "m.safetensors")


# ------------------------------------------------------------------------------------- layouts of others


def loose(indices: list[list[int]], shape: list[int]) -> torch.Tensor:
    with torch.sparse.check_sparse_tensor_invariants(False):
        return torch.sparse_coo_tensor(torch.tensor(indices), torch.ones(len(indices[0])), shape)


@pytest.mark.filterwarnings("ignore")
def test_errors_sparse_tensors(tmp_path: Path) -> None:
    """Indices outside a sparse tensor were followed into foreign memory: a segmentation fault."""
    with torch.sparse.check_sparse_tensor_invariants(False):
        wild = torch.sparse_csr_tensor(
            torch.tensor([0, 2, 9, 1, 3]), torch.tensor([0, 99, -1]), torch.ones(3), (4, 3)
        )
    edge_index = torch.tensor([[0, 1], [1, 0]])
    for x in (wild, loose([[0, -1], [0, 1]], [4, 3]), loose([[0, 1], [0, 1]], [2**40, 3])):
        torch.save({"x": x, "edge_index": edge_index}, tmp_path / "g.pt")
        with pytest.raises(InputError, match=r"g\.pt"):
            read_graph(tmp_path / "g.pt")
    torch.save({"edge_index": edge_index, "num_nodes": 2**30}, tmp_path / "g.pt")
    with pytest.raises(InputError, match=r"g\.pt: num_nodes declares"):
        read_graph(tmp_path / "g.pt", features="degree")


@pytest.mark.parametrize(
    "x",
    [torch.empty(2, 1, device="meta"), torch.zeros(2, 1, dtype=torch.complex64).conj()],
    ids=["meta", "complex"],
)
def test_errors_tensors_without_numbers(tmp_path: Path, x: torch.Tensor) -> None:
    torch.save({"x": x, "edge_index": torch.tensor([[0], [1]])}, tmp_path / "g.pt")
    with pytest.raises(InputError, match=r"g\.pt: x is not a plain tensor"):
        read_graph(tmp_path / "g.pt")


def test_errors_slices(tmp_path: Path) -> None:
    content = {"x": torch.ones(2, 1), "edge_index": torch.tensor([[0], [1]])}
    for slices in ({"x": torch.tensor(3)}, 3):
        torch.save((content, slices), tmp_path / "g.pt")
        assert read_graph(tmp_path / "g.pt").num_nodes == 2


def test_errors_published(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "features": [[1.0]] * 2,
        "labels": [0, 1],
        "links": [[1], [0]],
        "train_masks": None,
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"data\.json: train_masks is not a list"):
        read_graph(tmp_path / "data.json")
    matrix: dict[str, Any] = {"data": np.array(1), "indices": [1], "indptr": [0, 1, 1], "shape": [2, 2]}
    arrays = {f"adj_{key}": part for key, part in matrix.items()} | {"attr_matrix": np.ones((2, 1))}
    np.savez(tmp_path / "g.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"g\.npz: the parts of a CSR matrix must have one dimension"):
        read_graph(tmp_path / "g.npz")


def test_errors_empty_member(tmp_path: Path) -> None:
    from leanlabel.data.archives import extract

    (tmp_path / "a.zip").write_bytes(archive([Member("", b"text")]))
    with pytest.raises(InputError, match=r"a\.zip: the member ''"):
        extract(tmp_path / "a.zip", tmp_path / "out")
