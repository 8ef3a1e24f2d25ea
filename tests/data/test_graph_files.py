from __future__ import annotations

import dataclasses
import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlabel.data.graph_files import read_graph
from leanlabel.data.graphs import UNLABELLED, Graph, fingerprint, normalise, tidy_edges
from leanlabel.errors import InputError
from leanlabel.sparse import Csr, from_dense

_EDGES = np.array([[0, 1, 0, 2, 3, 0], [1, 0, 2, 0, 0, 3]])
_X = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]], dtype=np.float32)


def _parts(**changes: Any) -> dict[str, Any]:
    parts = {
        "x_data": np.ones(5, np.uint8),
        "x_indices": np.array([0, 2, 1, 0, 1], np.uint16),
        "x_indptr": np.array([0, 2, 3, 3, 5], np.int32),
        "x_shape": np.array([4, 3]),
        "edge_index": _EDGES.astype(np.int32),
        "y": np.array([0, 1, 0, 1]),
    } | changes
    return {key: value for key, value in parts.items() if value is not None}


def _npz(folder: Path, **changes: Any) -> Path:
    path = folder / "small.npz"
    np.savez_compressed(path, **_parts(**changes))
    return path


def _folder(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_csv", ".csv")).write_text(text, encoding="utf-8")
    return folder


def _dense(graph: Graph) -> torch.Tensor:
    return graph.x.to_dense() if isinstance(graph.x, Csr) else graph.x


def test_values(tmp_path: Path) -> None:
    graph = read_graph(_npz(tmp_path, train_idx=np.array([0, 1]), test_mask=np.array([0, 0, 1, 1], bool)))
    assert isinstance(graph.x, Csr)
    assert graph.x.values is None
    assert _dense(graph).tolist() == _X.tolist()
    assert graph.edge_index.tolist() == [[0, 0, 0, 1, 2, 3], [1, 2, 3, 0, 0, 0]]
    assert graph.edge_index.dtype == torch.int64
    assert (graph.num_nodes, graph.num_edges, graph.num_features, graph.num_classes) == (4, 6, 3, 2)
    assert graph.undirected
    assert graph.name == "small"
    assert {part: nodes.tolist() for part, nodes in graph.splits.items()} == {"train": [0, 1], "test": [2, 3]}


def test_values_layouts(tmp_path: Path) -> None:
    """Pairs by rows, dense features, floats that are whole: the same graph."""
    first = read_graph(_npz(tmp_path))
    changes = dict.fromkeys(("x_data", "x_indices", "x_indptr", "x_shape"))
    second = read_graph(
        _npz(tmp_path, x=_X.astype(np.float64), edge_index=_EDGES.T.astype(np.float64), **changes)
    )
    assert isinstance(second.x, torch.Tensor)
    assert second.x.dtype == torch.float32
    assert _dense(first).tolist() == second.x.tolist()
    assert torch.equal(first.edge_index, second.edge_index)


def test_values_tidy(tmp_path: Path) -> None:
    """Self-loops, duplicates, stored zeros, repeated and unsorted entries are put right and counted."""
    messy = np.array([[0, 0, 2, 3, 1], [1, 1, 2, 0, 2]])
    path = _npz(
        tmp_path,
        edge_index=messy,
        x_data=np.array([2.0, 1.0, 0.0, 1.0, 3.0]),
        x_indices=np.array([2, 0, 1, 1, 1]),
        x_indptr=np.array([0, 2, 3, 3, 5]),
    )
    graph = read_graph(path)
    assert _dense(graph).tolist() == [[1, 0, 2], [0, 0, 0], [0, 0, 0], [0, 4, 0]]
    assert graph.edge_index.tolist() == [[0, 1, 3], [1, 2, 0]]
    assert not graph.undirected
    assert graph.facts == {
        "edges_read": 5,
        "self_loops_removed": 1,
        "duplicates_removed": 1,
        "reverses_added": 0,
        "feature_entries_merged": 1,
        "stored_zeros_removed": 1,
    }
    mirrored = read_graph(path, undirected=True)
    assert mirrored.num_edges == 6
    assert mirrored.facts["reverses_added"] == 3


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        ([0, 1, 2, 1], [0, 1, 2, 1], None),
        ([3, 7, 3, 7], [0, 1, 0, 1], ["3", "7"]),
        ([0, -1, 1, -100], [0, UNLABELLED, 1, UNLABELLED], None),
        ([0.0, float("nan"), 1.0, 1.0], [0, UNLABELLED, 1, 1], None),
        (["b", "a", "", "b"], [1, 0, UNLABELLED, 1], ["a", "b"]),
        (["10", "9", "10", "9"], [1, 0, 1, 0], ["9", "10"]),
        ([[0], [1], [0], [1]], [0, 1, 0, 1], None),
        ([True, False, True, True], [1, 0, 1, 1], None),
    ],
)
def test_values_labels(
    tmp_path: Path, labels: list[Any], expected: list[int], names: list[str] | None
) -> None:
    graph = read_graph(_npz(tmp_path, y=np.array(labels)))
    assert graph.y is not None
    assert graph.y.tolist() == expected
    assert graph.class_names == names


def test_values_class_names(tmp_path: Path) -> None:
    graph = read_graph(_npz(tmp_path, y=np.array([0, 2, 2, 0]), class_names=np.array(["a", "b", "c"])))
    assert graph.y.tolist() == [0, 2, 2, 0]
    assert graph.num_classes == 3


_NAMED = {
    "features_csv": "id,f0,f1,f2\np,1,0,1\nq,0,1,0\nr,0,0,0\ns,1,1,0\n",
    "edges_csv": "source,target\np,q\nq,p\np,r\nr,p\ns,p\np,s\n",
    "labels_csv": "id,label\ns,sport\np,art\nr,art\n",
    "splits_csv": "id,split\np,train\ns,test\nr,val\n",
}


def test_values_folder(tmp_path: Path) -> None:
    graph = read_graph(_folder(tmp_path, **_NAMED))
    assert graph.ids == ["p", "q", "r", "s"]
    assert _dense(graph).tolist() == _X.tolist()
    assert graph.edge_index.tolist() == [[0, 0, 0, 1, 2, 3], [1, 2, 3, 0, 0, 0]]
    assert graph.y.tolist() == [0, UNLABELLED, 0, 1]
    assert graph.class_names == ["art", "sport"]
    assert {part: nodes.tolist() for part, nodes in graph.splits.items()} == {
        "train": [0],
        "val": [2],
        "test": [3],
    }


@pytest.mark.parametrize(
    ("features", "edges", "labels"),
    [
        ("1,0,1\n0,1,0\n0,0,0\n1,1,0\n", "0,1\n0,2\n0,3\n", "0\n1\n0\n1\n"),  # no header anywhere
        ("a,b,c\n1,0,1\n0,1,0\n0,0,0\n1,1,0\n", "u,v\n0,1\n0,2\n0,3\n", "class\n0\n1\n0\n1\n"),
        (
            "1;0;1\n0;1;0\n0;0;0\n1;1;0\n",
            "0\t1\n0\t2\n0\t3\n",
            "1,1\n0,0\n2,0\n3,1\n",
        ),  # other marks, by number
        (
            "﻿,x,y,z\n0,1,0,1\n1,0,1,0\n2,0,0,0\n3,1,1,0\n",
            ",source,target,w\n0,0,1,9\n1,0,2,9\n2,0,3,9\n",
            ",label\n0,0\n1,1\n2,0\n3,1\n",
        ),
    ],
)
def test_values_folder_forms(tmp_path: Path, features: str, edges: str, labels: str) -> None:
    graph = read_graph(
        _folder(tmp_path, features_csv=features, edges_csv=edges, labels_csv=labels), undirected=True
    )
    assert _dense(graph).tolist() == _X.tolist()
    assert graph.edge_index.tolist() == [[0, 0, 0, 1, 2, 3], [1, 2, 3, 0, 0, 0]]
    assert graph.y.tolist() == [0, 1, 0, 1]


def test_values_folder_nodes(tmp_path: Path) -> None:
    nodes = "id,label,f0,f1,f2\n7,x,1,0,1\n8,y,0,1,0\n9,,0,0,0\n5,y,1,1,0\n"
    graph = read_graph(_folder(tmp_path, nodes_csv=nodes, edges_csv="7,8\n7,9\n7,5\n"))
    assert graph.ids == ["7", "8", "9", "5"]
    assert _dense(graph).tolist() == _X.tolist()
    assert graph.edge_index.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert graph.y.tolist() == [0, 1, UNLABELLED, 1]
    assert not graph.undirected


def test_values_folder_arrays(tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    np.save(tmp_path / "edges.npy", _EDGES)
    sparse.save_npz(tmp_path / "features.npz", sparse.csr_matrix(_X))
    np.save(tmp_path / "labels.npy", np.array(["b", "a", "b", "a"]))
    np.savez(tmp_path / "splits.npz", train=np.array([0]), test_idx=np.array([1, 2]))
    graph = read_graph(tmp_path)
    assert isinstance(graph.x, Csr)
    assert _dense(graph).tolist() == _X.tolist()
    assert torch.equal(graph.edge_index, tidy_edges(torch.from_numpy(_EDGES), 4)[0])
    assert graph.y.tolist() == [1, 0, 1, 0]
    assert graph.splits["test"].tolist() == [1, 2]
    (tmp_path / "features.npz").unlink()
    np.save(tmp_path / "features.npy", _X)
    assert _dense(read_graph(tmp_path)).tolist() == _X.tolist()


def test_values_folder_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = ["p", "q", "r", "s"]
    columns = {f"f{i}": _X[:, i] for i in range(3)}
    parquet.write_table(arrow.table({"id": names} | columns), tmp_path / "features.parquet")
    pairs = {"source": [names[i] for i in _EDGES[0]], "target": [names[i] for i in _EDGES[1]]}
    parquet.write_table(arrow.table(pairs), tmp_path / "edges.parquet")
    parquet.write_table(arrow.table({"label": [0, 1, None, 1]}), tmp_path / "labels.parquet")
    graph = read_graph(tmp_path)
    assert graph.ids == names
    assert _dense(graph).tolist() == _X.tolist()
    assert graph.num_edges == 6
    assert graph.y.tolist() == [0, 1, UNLABELLED, 1]
    whole = (tmp_path / "edges.parquet").read_bytes()
    (tmp_path / "edges.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"edges\.parquet"):
        read_graph(tmp_path)


def test_values_degree_features(tmp_path: Path) -> None:
    folder = _folder(tmp_path, edges_csv="a,b\na,c\na,d\nb,c\n")
    graph = read_graph(folder, undirected=True, features="degree")
    assert graph.ids == ["a", "b", "c", "d"]
    # Degrees 3, 2, 2, 1: bands floor(log2(degree + 1)) = 2, 1, 1, 1.
    assert _dense(graph).tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0]]
    path = tmp_path / "bare.npz"
    np.savez(path, edge_index=_EDGES)
    assert read_graph(path, features="degree").num_nodes == 4


def test_values_normalise() -> None:
    x = torch.tensor([[1.0, 3.0, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]])
    expected = {
        "row_sum_legacy": [[0.25, 0.75, 0], [0.25, 0.25, 0], [0, 0, 0]],
        "shifted": [[0.25, 0.75, 0], [0.25, 0.25, 0], [0, 0, 0]],
        "row_sum": [[0.25, 0.75, 0], [0.5, 0.5, 0], [0, 0, 0]],
        "none": x.tolist(),
    }
    for mode, rows in expected.items():
        one, two = normalise(x, mode), normalise(from_dense(x), mode)  # type: ignore[arg-type]
        assert isinstance(two, Csr)
        assert one.tolist() == two.to_dense().tolist() == rows
    signed = torch.tensor([[-1.0, 3.0], [0.0, 0.0]])
    for form in (signed, from_dense(signed)):
        shifted = normalise(form, "shifted")
        assert isinstance(shifted, torch.Tensor)
        assert shifted.tolist() == [[0, 1], [0.5, 0.5]]
    # Every entry stored and positive: the smallest one is subtracted.
    full = torch.tensor([[2.0, 4.0], [3.0, 3.0]])
    assert normalise(from_dense(full), "shifted").tolist() == [[0, 1], [0.5, 0.5]]
    assert normalise(torch.tensor([[1, 3]]), "row_sum").tolist() == [[0.25, 0.75]]


def test_reference_normalise() -> None:
    transforms = pytest.importorskip("torch_geometric.transforms")
    data = pytest.importorskip("torch_geometric.data")
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    theirs = transforms.NormalizeFeatures()(data.Data(x=x.clone())).x
    torch.testing.assert_close(normalise(x, "shifted"), theirs, rtol=1e-6, atol=1e-7)


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40),
    st.booleans(),
)
def test_reference_tidy_edges(nodes: int, pairs: list[tuple[int, int]], undirected: bool) -> None:
    pairs = [(u % nodes, v % nodes) for u, v in pairs]
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    wanted = {(u, v) for u, v in pairs if u != v}
    directed, symmetric, facts = tidy_edges(edges, nodes)
    assert directed.T.tolist() == [list(pair) for pair in sorted(wanted)]
    assert symmetric == (wanted == {(v, u) for u, v in wanted})
    assert facts["self_loops_removed"] == sum(u == v for u, v in pairs)
    both, flag, facts = tidy_edges(edges, nodes, undirected)
    if undirected:
        assert flag
        assert {(u, v) for u, v in both.T.tolist()} == wanted | {(v, u) for u, v in wanted}
        assert (
            both.shape[1]
            == facts["edges_read"]
            - facts["self_loops_removed"]
            - facts["duplicates_removed"]
            + facts["reverses_added"]
        )
    else:
        assert not flag
        assert torch.equal(both, directed)


@pytest.mark.real
def test_reference_real(data_root: Path) -> None:
    expected = {
        "acm": (3025, 26_256, 1870, 3),
        "amazon_computers": (13_752, 491_722, 767, 10),
        "amazon_photo": (7650, 238_162, 745, 8),
        "blogcatalog": (5196, 343_486, 8189, 6),
        "coauthor_physics": (34_493, 495_924, 8415, 5),
        "cora": (2708, 10_556, 1433, 7),
    }
    for name, sizes in expected.items():
        graph = read_graph(data_root / "graphs" / f"{name}.npz")
        assert (graph.num_nodes, graph.num_edges, graph.num_features, graph.num_classes) == sizes
        assert graph.undirected
        assert isinstance(graph.x, Csr)
    stored = np.load(data_root / "graphs" / "cora.npz")
    graph = read_graph(data_root / "graphs" / "cora.npz")
    assert graph.splits["test"].tolist() == stored["test_idx"].tolist()
    assert graph.y.tolist() == stored["y"].tolist()


def test_degenerate(tmp_path: Path) -> None:
    assert read_graph(_npz(tmp_path, edge_index=np.zeros((2, 0), np.int64))).num_edges == 0
    assert read_graph(_npz(tmp_path, y=None)).y is None
    one_class = read_graph(_npz(tmp_path, y=np.zeros(4, np.int64)))
    assert one_class.num_classes == 1
    empty = _npz(tmp_path, x_data=np.zeros(0), x_indices=np.zeros(0, int), x_indptr=np.zeros(5, int))
    assert _dense(read_graph(empty)).tolist() == [[0, 0, 0]] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_index": None}, "has no array 'edge_index'; it has x_data, x_indices, x_indptr, x_shape, y"),
        ({"x_indptr": None}, "has no array 'x_indptr'"),
        (
            dict.fromkeys(("x_data", "x_indices", "x_indptr", "x_shape")),
            "has edges but no features .* `degree`",
        ),
        (
            {"edge_index": np.array([[0, 1], [1, 4]])},
            r"edge 1 joins 1 and 4, but the graph has 4 nodes \(0 to 3\)",
        ),
        ({"edge_index": np.array([[1, 4], [2, 1]])}, "Node numbers start at 0"),
        ({"edge_index": np.array([[0, -1], [1, 2]])}, "edge 1 joins -1 and 2"),
        (
            {"edge_index": np.array([[0, 1.5], [1, 2]])},
            "edge_index holds 1.5 at position 1, expected integers",
        ),
        ({"edge_index": np.zeros((3, 3), int)}, r"shape \(3, 3\), expected \(2, E\)"),
        ({"edge_index": np.array([["a"], ["b"]])}, "edge_index has type <U1, expected integers"),
        ({"edge_index": np.array([[2**63], [0]], np.uint64)}, "expected integers"),
        ({"y": np.array([0, 1])}, "has 2 labels, the features have 4 nodes"),
        ({"y": np.eye(4, dtype=int)}, r"labels have shape \(4, 4\), .* y.argmax\(1\)"),
        ({"y": np.array([0, 1, 0.5, 1])}, "y holds 0.5 at position 2"),
        ({"y": np.array([0, 1, -7, 1])}, "label of node 2 is -7"),
        ({"y": np.array([0, 1, 2, 1]), "class_names": np.array(["a", "b"])}, "label 2 has no name"),
        ({"y": np.array([0, 1, "x", None], dtype=object)}, "array 'y' holds pickled Python objects"),
        (
            {"x_data": np.array([1, np.nan, 1, np.inf, 1])},
            "2 feature values are not finite, the first in row 0, column 2",
        ),
        (
            {"x_data": np.array([1, 1, 1, 1e300, 1])},
            "1 feature values are not finite, the first in row 3, column 0",
        ),
        ({"x_indices": np.array([0, 2, 3, 0, 1])}, r"x_indices\[2\] is 3, expected 0 to 2; 1 such entries"),
        ({"x_indptr": np.array([0, 2, 1, 3, 5])}, "x_indptr runs from 0 to 5, it falls at row 1"),
        ({"x_indptr": np.array([0, 2, 3, 3, 9])}, "x_indptr runs from 0 to 9; expected 0 rising to 5"),
        ({"x_indptr": np.array([0, 2, 5])}, "x_indptr has 3 entries, expected 5 for 4 nodes"),
        ({"x_shape": np.array([4, 2**40])}, "x_shape is"),
        ({"x_data": np.ones(3)}, r"x_data \(3,\) float64 does not fit x_indices \(5,\)"),
        ({"x_data": np.array(1.0)}, "x_data has shape"),
        ({"train_idx": np.array([0, 4])}, r"train_idx\[1\] is 4, expected 0 to 3"),
        ({"train_mask": np.array([True, False])}, "train_mask has 2 entries for 4 nodes"),
        ({"ids": np.array(["a", "b", "b", "c"])}, "3 distinct ids for 4 nodes"),
        ({"x": np.zeros((4, 0))}, r"features have shape \(4, 0\)"),
        ({"x": np.zeros((4, 2), complex)}, "type complex128"),
        ({"x": np.zeros((0, 2)), "y": None, "edge_index": np.zeros((2, 0), int)}, "has no nodes"),
    ],
)
def test_errors(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = _npz(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        read_graph(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges_csv": None}, "has no edges file"),
        ({"features_csv": None}, r"no features file \(features.csv or nodes.csv, .* `degree`"),
        (
            {"features_csv": "id,f\np,1\nq,x\nr,1\ns,1\n"},
            r"features.csv, line 3, column 2 \(f\): 'x' is not a number",
        ),
        ({"features_csv": "id,f\np,1\nq\n"}, "features.csv, line 3 has 1 cells, the first row has 2"),
        ({"features_csv": "id,f\np,1\np,2\n"}, "names node 'p' more than once"),
        (
            {"features_csv": "id,f\np,1\nq,nan\nr,1\ns,2\n"},
            "1 feature values are not finite, the first in row 1, column 0",
        ),
        ({"features_csv": ""}, "features.csv is empty"),
        ({"features_csv": "id,f\n"}, "edges.csv, line 1 refers to node|edges.csv, line 2 refers to node 'p'"),
        ({"features_csv": 'id,f\n"p,1\nq,2\n'}, "features.csv"),
        (
            {"edges_csv": "source,target\np,q\n\np,z\n"},
            "edges.csv, line 4 refers to node 'z', which the features do not",
        ),
        ({"edges_csv": "p\nq\n"}, "has one column"),
        ({"labels_csv": "id,label\np,a\np,b\n"}, "labels.csv, line 3 lists its node a second time"),
        ({"labels_csv": "label\na\nb\n"}, "has 2 labels, the features have 4 nodes"),
        ({"splits_csv": "id,split\np,dev\n"}, "splits.csv, line 2: 'dev' is not a split"),
        ({"nodes_csv": "id,f\np,1\n"}, "holds both features.csv and nodes.csv"),
    ],
)
def test_errors_folder(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    _folder(tmp_path, **{name: text for name, text in (_NAMED | changes).items() if text is not None})
    with pytest.raises(InputError, match=message):
        read_graph(tmp_path)


def test_errors_folder_numbers(tmp_path: Path) -> None:
    _folder(tmp_path, features_csv="1,0\n0,1\n", edges_csv="0,1\n1,2\n")
    with pytest.raises(
        InputError, match=r"edges\.csv, line 2 refers to node 2, but the features have 2 nodes"
    ):
        read_graph(tmp_path)
    _folder(tmp_path, edges_csv=f"0,1\n1,{10**30}\n")
    with pytest.raises(InputError, match=r"a row number is expected"):
        read_graph(tmp_path)
    _folder(tmp_path, edges_csv=f"0,{2**40}\n", features_csv="")
    (tmp_path / "features.csv").unlink()
    with pytest.raises(InputError, match="number nodes up to"):
        read_graph(tmp_path, features="degree")


def test_errors_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_graph(tmp_path / "none.npz")
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    with pytest.raises(InputError, match=r"neither a folder nor an \.npz file"):
        read_graph(other)
    with pytest.raises(InputError, match="has no edges file"):
        read_graph(tmp_path)
    fake = tmp_path / "fake.npz"
    fake.write_text("hello")
    with pytest.raises(InputError, match=r"fake\.npz is not a complete \.npz file"):
        read_graph(fake)
    with pytest.raises(InputError, match="features must be"):
        read_graph(_npz(tmp_path), features="none")  # type: ignore[arg-type]
    (tmp_path / "edges.csv").write_bytes(b"0,1\n\xff\xfe,2\n")
    (tmp_path / "features.csv").write_text("1\n2\n")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_graph(tmp_path)


def _declaring(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    """A member that claims a shape and holds 8 bytes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(8)


@pytest.mark.parametrize(
    "member", [_declaring((10**12,)), _declaring((-1,)), _declaring((10**15,), "<U0"), _declaring((2**62, 8))]
)
def test_errors_false_sizes(tmp_path: Path, member: bytes) -> None:
    """Nothing of the declared size is allocated."""
    path = _npz(tmp_path, y=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y.npy", member)
    with pytest.raises(InputError, match="array 'y' declares"):
        read_graph(path)


def _never_another_error(read: Callable[[], object]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except InputError:
            return False
    return True


_BUILT: dict[str, bytes] = {}


def _bytes_of(kind: str) -> bytes:
    if not _BUILT:
        file = io.BytesIO()
        np.savez_compressed(file, **_parts())
        _BUILT["packed"] = file.getvalue()
        file = io.BytesIO()
        np.savez(file, **_parts(y=np.array(["a", "b", "a", "b"])))
        _BUILT["plain"] = file.getvalue()
        file = io.BytesIO()
        np.save(file, _EDGES)
        _BUILT["npy"] = file.getvalue()
        _BUILT["csv"] = _NAMED["features_csv"].encode()
    return _BUILT[kind]


_CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=0, max_size=8)


@settings(max_examples=300)
@given(
    kind=st.sampled_from(["packed", "plain", "npy", "csv"]),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
    changes=_CHANGES,
)
def test_errors_fuzz(
    tmp_path_factory: pytest.TempPathFactory, kind: str, cut: float, changes: list[tuple[float, int]]
) -> None:
    """A damaged file is read or refused with an InputError, never anything else."""
    content = bytearray(_bytes_of(kind))
    for place, value in changes:
        content[int(place * len(content))] = value
    content = content[: int(cut * len(content))]
    folder = tmp_path_factory.getbasetemp() / f"fuzz-{kind}"
    folder.mkdir(exist_ok=True)
    if kind in ("packed", "plain"):
        path = folder / "graph.npz"
        path.write_bytes(content)
    elif kind == "npy":
        path = _folder(folder, features_csv="1\n2\n3\n4\n")
        (path / "edges.npy").write_bytes(content)
    else:
        path = _folder(folder, **_NAMED)
        (path / "features.csv").write_bytes(content)
    read = _never_another_error(lambda: fingerprint(read_graph(path)))
    if kind == "packed" and cut < 0.99:
        assert not read


@settings(max_examples=200)
@given(key=st.sampled_from(sorted(_parts())), text=st.booleans(), changes=_CHANGES)
def test_errors_fuzz_members(
    tmp_path_factory: pytest.TempPathFactory, key: str, text: bool, changes: list[tuple[float, int]]
) -> None:
    """Damage inside one array of an archive that is otherwise whole, checksums included."""
    arrays = _parts(y=np.array(["a", "b", "a", "b"])) if text else _parts()
    path = tmp_path_factory.getbasetemp() / "members.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            content = bytearray(file.getvalue())
            for place, value in changes if name == key else []:
                content[int(place * len(content))] = value
            archive.writestr(f"{name}.npy", bytes(content))
    _never_another_error(lambda: fingerprint(read_graph(path)))


@settings(max_examples=150)
@given(
    key=st.sampled_from(sorted(_parts())),
    kind=st.sampled_from(["int", "float", "text", "bool"]),
    shape=st.lists(st.integers(0, 5), max_size=3),
    values=st.lists(st.integers(-3, 9), min_size=1, max_size=6),
)
def test_errors_fuzz_arrays(
    tmp_path_factory: pytest.TempPathFactory, key: str, kind: str, shape: list[int], values: list[int]
) -> None:
    """Any array in the place of any other."""
    array = np.resize(np.array(values), shape)
    array = array.astype({"int": np.int64, "float": np.float64, "text": np.str_, "bool": np.bool_}[kind])
    path = _npz(tmp_path_factory.getbasetemp(), **{key: array})
    _never_another_error(lambda: fingerprint(read_graph(path)))


def test_state_fingerprint(tmp_path: Path) -> None:
    graph = read_graph(_npz(tmp_path))
    assert fingerprint(graph) == "e527c763b0b9371d7978ec5fde085ec3147f4b428e85a7ec991e438cc53a9a0c"
    same = dataclasses.replace(graph, name="other", facts={})
    assert fingerprint(same) == fingerprint(graph)
    spelled = dataclasses.replace(graph, x=graph.x.with_values(torch.ones(5)))  # type: ignore[union-attr]
    assert fingerprint(spelled) == fingerprint(graph)
    shuffled = read_graph(_npz(tmp_path, edge_index=_EDGES[:, ::-1]))
    assert fingerprint(shuffled) == fingerprint(graph)
    others = [
        dataclasses.replace(graph, y=None),
        dataclasses.replace(graph, y=graph.y + 1),  # type: ignore[operator]
        dataclasses.replace(graph, edge_index=graph.edge_index[:, :-2]),
        dataclasses.replace(graph, x=_dense(graph)),
        dataclasses.replace(graph, ids=["a", "b", "c", "d"]),
        dataclasses.replace(graph, ids=["ab", "", "c", "d"]),
        dataclasses.replace(graph, splits={"train": torch.tensor([0])}),
        dataclasses.replace(graph, splits={"test": torch.tensor([0])}),
        dataclasses.replace(graph, undirected=False),
    ]
    assert len({fingerprint(other) for other in [graph, *others]}) == 1 + len(others)


def test_errors_functions() -> None:
    with pytest.raises(ValueError, match=r"edge_index must be \(2, E\) int64, got \(3, 2\)"):
        tidy_edges(torch.zeros(3, 2, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match=r"nodes in \[0, 4\], expected \[0, 4\)"):
        tidy_edges(torch.tensor([[0], [4]]), 4)
    with pytest.raises(ValueError, match=r"normalisation must be one of .*, got 'rows'"):
        normalise(torch.zeros(2, 2), "rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must be \(N, F\), got \(2,\)"):
        normalise(torch.zeros(2), "row_sum")
