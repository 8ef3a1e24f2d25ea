from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leanlabel.data.graph_files import read_graph
from leanlabel.data.graphs import UNLABELLED, Graph, fingerprint
from leanlabel.data.published_graphs import PLANETOID_PARTS, read_published
from leanlabel.data.restricted_pickle import CsrParts, load_pickle
from leanlabel.data.splits import group_parts, make_splits
from leanlabel.errors import InputError
from leanlabel.sparse import Csr

sparse = pytest.importorskip("scipy.sparse")

KNOWN, TRAIN, WORDS, CLASSES = 8, 3, 5, 3
NODES, TEST_INDEX = 12, [11, 8, 10]  # node 9 is left out, as 15 nodes of CiteSeer are


def python2(text: bytes) -> bytes:
    """A pickle of protocol 2 as Python 2 and an old NumPy wrote it: bytes as text, old names of modules."""
    for new, old in (
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
        (b"scipy.sparse._csr", b"scipy.sparse.csr"),
    ):
        text = text.replace(new, old)
    return text


def planetoid(folder: Path, name: str = "tiny", *, known: int = KNOWN, **changes: Any) -> Path:
    nodes, left_out, test = known + 4, known + 1, [known + 3, known, known + 2]
    x = (np.random.default_rng(0).random((nodes, WORDS)) < 0.4).astype(np.float32)
    one_hot = np.eye(CLASSES, dtype=np.int32)[np.arange(nodes) % CLASSES]
    graph = defaultdict(list)
    for node in range(nodes):
        others = ((node + 1) % nodes, (node - 1) % nodes, node)
        if node != left_out:
            graph[node] += [other for other in others if other != left_out]
    objects = {
        "x": sparse.csr_matrix(x[:TRAIN]),
        "tx": sparse.csr_matrix(x[test]),
        "allx": sparse.csr_matrix(x[:known]),
        "y": one_hot[:TRAIN],
        "ty": one_hot[test],
        "ally": one_hot[:known],
        "graph": graph,
        "test.index": test,
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    for part, value in objects.items():
        path = folder / f"ind.{name}.{part}"
        if part == "test.index":
            path.write_text("".join(f"{node}\n" for node in value), encoding="utf-8")
        else:
            path.write_bytes(value if isinstance(value, bytes) else python2(pickle.dumps(value, 2)))
    return folder


def dense(graph: Graph) -> torch.Tensor:
    return graph.x.to_dense() if isinstance(graph.x, Csr) else graph.x


def y_of(graph: Graph) -> torch.Tensor:
    assert graph.y is not None
    return graph.y


# ------------------------------------------------------------------------------------------------ Planetoid


def test_values_planetoid(tmp_path: Path) -> None:
    graph = read_graph(planetoid(tmp_path))
    assert (graph.name, graph.num_nodes, graph.num_features) == ("tiny", NODES, WORDS)
    assert y_of(graph).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, UNLABELLED, 1, 2]
    assert dense(graph)[9].tolist() == [0] * WORDS
    assert {part: nodes.tolist() for part, nodes in graph.splits.items()} == {
        "train": [0, 1, 2],
        "val": [3, 4, 5, 6, 7],
        "test": [8, 10, 11],
    }
    assert graph.facts["nodes_without_record"] == 1
    assert graph.facts["self_loops_removed"] == NODES - 1
    rows = np.random.default_rng(0).random((NODES, WORDS)) < 0.4
    for node in (*range(KNOWN), *TEST_INDEX):
        assert dense(graph)[node].bool().tolist() == rows[node].tolist()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_reference_planetoid(tmp_path: Path, protocol: int) -> None:
    """As torch_geometric reads the same files, but for the label of the node that they leave out."""
    io_of_pyg = pytest.importorskip("torch_geometric.io")
    folder = planetoid(tmp_path, "citeseer", known=520)
    if protocol > 2:
        for part in PLANETOID_PARTS[:-1]:
            file = folder / f"ind.citeseer.{part}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                content = pickle.loads(file.read_bytes(), encoding="latin1")
            file.write_bytes(pickle.dumps(content, protocol))
    like = io_of_pyg.read_planetoid_data(str(folder), "citeseer")
    graph = read_graph(folder)
    assert torch.equal(dense(graph), like.x)
    assert torch.equal(graph.edge_index, like.coalesce().edge_index)
    differ = (y_of(graph) != like.y).nonzero()[:, 0].tolist()
    assert differ == [521]
    for part in ("train", "val", "test"):
        assert torch.equal(graph.splits[part], like[f"{part}_mask"].nonzero()[:, 0])
    assert len(graph.splits["val"]) == 500


def test_values_folder_of_pyg(tmp_path: Path) -> None:
    planetoid(tmp_path / "Tiny" / "raw")
    (tmp_path / "Tiny" / "processed").mkdir()
    graph = read_graph(tmp_path / "Tiny")
    assert graph.name == "Tiny"
    assert torch.equal(dense(graph), dense(read_graph(tmp_path / "Tiny" / "raw")))


def _broken_csr() -> bytes:
    matrix = sparse.csr_matrix(np.eye(KNOWN, WORDS, dtype=np.float32))
    matrix.indices = matrix.indices + 10
    return pickle.dumps(matrix, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allx": b""}, r"ind\.tiny\.allx is not a complete pickle"),
        ({"allx": pickle.dumps([1], 2)}, r"ind\.tiny\.allx does not hold a CSR matrix"),
        ({"allx": _broken_csr()}, "do not fit together"),
        ({"ally": np.eye(3)[:2]}, "8 rows of allx and 2 of ally"),
        ({"ty": np.eye(3)[[0, 0, 0], :2]}, "different widths"),
        ({"y": np.arange(3)}, "one-hot"),
        ({"graph": {0: [1], 1: [99]}}, "joins 1 and 99"),
        ({"graph": {0: ["a"]}}, "not a node number"),
        ({"graph": {0: [0.5]}}, "not a node number"),
        ({"graph": {"0": [1]}}, "does not list the neighbours"),
        ({"graph": [0, 1]}, "does not list the neighbours"),
        ({"test.index": [11, 8, 8]}, "listed twice"),
        ({"test.index": [11, 8, 2]}, "also a row of allx"),
        ({"test.index": [11, 8, "x"]}, "one node number per line"),
        ({"test.index": [11, 8, 10**9]}, "numbered up to 1000000000"),
        ({"test.index": [11, 8]}, "2 test nodes do not fit"),
    ],
)
def test_errors_planetoid(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = planetoid(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        read_graph(folder)


def test_errors_planetoid_files(tmp_path: Path) -> None:
    folder = planetoid(tmp_path)
    (folder / "ind.tiny.tx").unlink()
    with pytest.raises(InputError, match=r"lacks ind\.tiny\.tx"):
        read_graph(folder)
    planetoid(folder, "other")
    with pytest.raises(InputError, match="several sets"):
        read_graph(folder)


def test_errors_shared_lists(tmp_path: Path) -> None:
    """A pickle may name one long list as the neighbours of every node; that is refused before it is unfolded."""
    long = list(range(12)) * 40
    folder = planetoid(tmp_path, graph=dict.fromkeys(range(2000), long))
    with pytest.raises(InputError, match="960000 neighbours in a file"):
        read_graph(folder)


# ----------------------------------------------------------------------------------------- restricted pickles


class Hostile:
    """Makes a file when it is read by an ordinary unpickler."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"echo > {self.mark}",)


def test_values_pickle() -> None:
    """What honest pickles hold comes back as it was."""
    arrays = [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", "bc"]),
        np.zeros((0, 3), np.float32),
        np.array([True, False]),
        np.array(5),
    ]
    for protocol in (2, 3, 4):
        for array in arrays:
            found = load_pickle(pickle.dumps(array, protocol), Path("a"))
            assert found.tolist() == array.tolist()
            assert found.dtype == array.dtype.newbyteorder("=")
        found = load_pickle(pickle.dumps({"a": [1, "x", None, 2.5]}, protocol), Path("a"))
        assert found == {"a": [1, "x", None, 2.5]}
        matrix = sparse.csr_matrix(np.eye(2))
        found = load_pickle(pickle.dumps(np.array(matrix, dtype=object), protocol), Path("a"))
        assert isinstance(found, CsrParts)
        assert found.shape == (2, 2)


@pytest.mark.parametrize("where", ["whole", "dict", "array", "reduce"])
def test_errors_hostile(tmp_path: Path, where: str) -> None:
    mark = tmp_path / "mark"
    bomb = Hostile(mark)
    value: Any = {
        "whole": bomb,
        "dict": {0: [bomb]},
        "array": np.array([bomb, 1], dtype=object),
        "reduce": defaultdict(print),
    }[where]
    with pytest.raises(InputError, match="could run code when it is read"):
        load_pickle(pickle.dumps(value, 2), tmp_path / "ind.a.graph")
    assert not mark.exists()
    if where == "whole":
        with pytest.raises(InputError, match=r"ind\.tiny\.graph names (posix|nt)\.system"):
            read_graph(planetoid(tmp_path / "set", graph=pickle.dumps(bomb, 2)))
        assert not mark.exists()


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


ARRAY, DTYPE = _global("numpy", "ndarray"), _global("numpy", "dtype")


@pytest.mark.parametrize(
    "content",
    [
        _global("builtins", "eval"),
        _global("numpy", "load"),
        _global("leanlabel.data.restricted_pickle", "load_pickle"),
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
        # Setting an attribute of an allowed class (BUILD with a second dictionary).
        ARRAY + b"N}(V__setstate__\nVx\nu\x86b.",
        _global("collections", "defaultdict") + b"N}(Vkeys\nVx\nu\x86b.",
        # A memo number that would make the reader reserve 32 GiB.
        b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",
        b"Np4000000000\n.",
        # An array that describes itself wrongly: too large, of a structured type, with itself inside.
        ARRAY + b")\x81(K\x01(K\xffK\xfft" + DTYPE + b"(Vf8\ntR\x89Vab\ntb.",
        ARRAY + b")\x81(K\x01(K\x01t" + DTYPE + b"(VV8\ntR\x89V12345678\ntb.",
        ARRAY + b")\x81q\x00(K\x01(K\x01t" + DTYPE + b"(VO8\ntR\x89]h\x00atb.",
        _global("scipy.sparse.csr", "csr_matrix") + b")\x81}b.",
        b"(lp0\n",
        b"",
        b"\x80\x02",
        b"garbage",
    ],
)
def test_errors_pickle(content: bytes) -> None:
    with pytest.raises(InputError, match="a file"):
        load_pickle(content, Path("a file"))
    # Nothing of it stays behind in the classes that stand for NumPy's.
    assert load_pickle(pickle.dumps(np.arange(3), 2), Path("b")).tolist() == [0, 1, 2]


def test_errors_pickle_damage() -> None:
    """Whatever single bit is flipped, the answer is plain data or an InputError."""
    whole = pickle.dumps({"a": np.arange(4.0), "m": sparse.csr_matrix(np.eye(3))}, 2)
    refused = 0
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 1 << (position % 8)
        try:
            load_pickle(bytes(broken), Path("a"))
        except InputError:
            refused += 1
    assert refused > len(whole) // 4


# --------------------------------------------------------------------------------------------- .npz and .json


def benchmark(path: Path, **changes: Any) -> Path:
    x = np.array([[0, 2.0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
    adjacency = np.array([[0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0], [0, 0, 1, 1]])
    matrices = {"adj": sparse.csr_matrix(adjacency), "attr": sparse.csr_matrix(x)}
    arrays: dict[str, Any] = {"labels": np.array([0, 1, 1, 2], np.int8)}
    for name, matrix in matrices.items():
        for part in ("data", "indices", "indptr"):
            arrays[f"{name}_{part}"] = getattr(matrix, part)
        arrays[f"{name}_shape"] = np.array(matrix.shape)
    arrays["idx_to_attr"] = np.array({0: "word"}, dtype=object)
    arrays["class_names"] = np.array(["a", "b", "c"])
    arrays |= changes
    np.savez(path, allow_pickle=True, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_values_benchmark(tmp_path: Path) -> None:
    graph = read_graph(benchmark(tmp_path / "set.npz"))
    assert graph.edge_index.tolist() == [[0, 1, 1, 3], [1, 0, 2, 2]]
    assert not graph.undirected
    assert dense(graph).tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert y_of(graph).tolist() == [0, 1, 1, 2]
    assert graph.class_names == ["a", "b", "c"]
    assert graph.name == "set"
    objects = np.array(["a", "b", "c"], dtype=object)
    assert read_graph(benchmark(tmp_path / "o.npz", class_names=objects)).class_names is None
    matrix = benchmark(tmp_path / "m.npz", attr_data=None, attr_matrix=np.ones((4, 2), np.float32))
    assert dense(read_graph(matrix)).tolist() == [[1, 1]] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adj_indices": np.array([1, 0, 2, 2, 9])}, "do not fit together"),
        ({"adj_indptr": None}, "no array adj_indptr"),
        ({"adj_shape": np.array([4, 3])}, "not square|do not fit"),
        ({"adj_shape": np.array(4)}, "unexpected form"),
        ({"attr_shape": np.array([3, 3])}, "do not fit together"),
        ({"attr_data": np.array(["a"] * 5)}, "needs numbers"),
        ({"labels": np.array([0, 1])}, "2 labels"),
        ({"adj_data": np.array([object()] * 5)}, "pickled Python objects"),
    ],
)
def test_errors_benchmark(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_graph(benchmark(tmp_path / "set.npz", **changes))


def graph_data(path: Path, **changes: Any) -> Path:
    arrays = {
        "adj_matrix": np.array(sparse.csr_matrix(np.eye(3)[[1, 2, 0]].astype(np.float32)), dtype=object),
        "node_attr": np.array(sparse.csr_matrix(np.eye(3, 2, dtype=np.float32)), dtype=object),
        "node_label": np.array([0, 1, 0], np.int32),
        "metadata": np.array({"unread": Hostile(path)}, dtype=object),
    } | changes
    np.savez(path, allow_pickle=True, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_values_graph_data(tmp_path: Path) -> None:
    graph = read_graph(graph_data(tmp_path / "acm.npz"))
    assert graph.edge_index.tolist() == [[0, 1, 2], [1, 2, 0]]
    assert dense(graph).tolist() == [[1, 0], [0, 1], [0, 0]]
    assert y_of(graph).tolist() == [0, 1, 0]
    plain = graph_data(tmp_path / "b.npz", node_attr=np.ones((3, 2), np.float32), node_label=None)
    assert read_graph(plain).y is None


def test_errors_graph_data(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = graph_data(tmp_path / "a.npz", node_attr=np.array(Hostile(mark), dtype=object))
    with pytest.raises(InputError, match=r"a\.npz names (posix|nt)\.system"):
        read_graph(path)
    assert not mark.exists()
    with pytest.raises(InputError, match="node_attr"):
        read_graph(graph_data(tmp_path / "b.npz", node_attr=None))
    whole = path.read_bytes()
    for size in range(0, len(whole), len(whole) // 9):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"a\.npz"):
            read_graph(path)


def wikics(path: Path, **changes: Any) -> Path:
    content = {
        "features": [[0.5, -1.0], [0.25, 2.0], [1.0, 1.0], [0.0, 3.0]],
        "labels": [0, 1, 1, 0],
        "links": [[1, 2], [], [0, 2], [0]],
        "train_masks": [[True, False, False, False], [False, True, False, False]],
        "val_masks": [[False, True, False, False], [True, False, False, False]],
        "stopping_masks": [[False, False, False, False]] * 2,
        "test_mask": [False, False, True, True],
    } | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")
    return path


def test_values_wikics(tmp_path: Path) -> None:
    graph = read_graph(wikics(tmp_path / "data.json"))
    assert graph.name == "wikics"
    assert graph.edge_index.tolist() == [[0, 0, 2, 3], [1, 2, 0, 0]]
    assert dense(graph).tolist() == [[0.5, -1], [0.25, 2], [1, 1], [0, 3]]
    splits = make_splits(graph, "public")
    found = [[getattr(one, part).tolist() for part in ("train", "val", "test")] for one in splits]
    assert found == [[[0], [1], [2, 3]], [[1], [0], [2, 3]]]
    bare = wikics(tmp_path / "b.json", train_masks=None, val_masks=None, test_mask=None)
    assert read_graph(bare).splits == {}


def test_reference_wikics(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torch_geometric.datasets")
    (tmp_path / "raw").mkdir()
    path = wikics(tmp_path / "raw" / "data.json")
    like = datasets.WikiCS(str(tmp_path), is_undirected=True)._data
    for place in (path, tmp_path / "processed" / "data_undirected.pt"):
        graph = read_graph(place, undirected=True)
        assert torch.equal(dense(graph), like.x)
        assert torch.equal(graph.edge_index, like.edge_index[:, like.edge_index[0] != like.edge_index[1]])
        assert torch.equal(y_of(graph), like.y)
        for k, split in enumerate(make_splits(graph, "public")):
            assert torch.equal(split.train, like.train_mask[:, k].nonzero()[:, 0])
            assert torch.equal(split.val, like.val_mask[:, k].nonzero()[:, 0])
            assert torch.equal(split.test, like.test_mask.nonzero()[:, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"links": None}, "does not hold a graph"),
        ({"links": [[1], [2], [77], []]}, "joins 2 and 77"),
        ({"links": [["1"], [], [], []]}, "not a node number"),
        ({"links": [1, 2, 3, 4]}, "neighbours"),
        ({"features": [[1.0], [1.0, 2.0], [1.0], [1.0]]}, "rows of different lengths"),
        ({"features": [["a"]] * 4}, "not numbers"),
        ({"labels": [0, 1]}, "2 labels"),
        ({"train_masks": [[True, False]]}, "2 entries for 4 nodes"),
    ],
)
def test_errors_wikics(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_graph(wikics(tmp_path / "data.json", **changes))


def test_errors_json(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    for content in (
        "",
        "[1, 2]",
        "{",
        "[" * 100_000,
        '{"features": 1}',
        "\ud800".encode("utf-8", "surrogatepass"),
    ):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(InputError, match=r"data\.json"):
            read_graph(path)


def test_values_splits_npz(tmp_path: Path) -> None:
    """Our own .npz may number further splits too; it is not taken for a published layout."""
    path = tmp_path / "own.npz"
    arrays = {"x": np.eye(4), "edge_index": np.array([[0], [1]]), "y": np.array([0, 1, 0, 1])}
    sets = {"train_idx": [0], "test_idx": [3], "train_1_idx": [1], "val_1_mask": [False, False, True, False]}
    np.savez(
        path, **arrays, **{key: np.array(value) for key, value in sets.items()}, train_01_idx=np.array([9])
    )
    assert read_published(path) is None
    graph = read_graph(path)
    assert {part: nodes.tolist() for part, nodes in graph.splits.items()} == {
        "train": [0],
        "test": [3],
        "train_1": [1],
        "val_1": [2],
    }
    first, second = make_splits(graph, "public")
    assert (first.val.tolist(), second.val.tolist(), second.test.tolist()) == ([], [2], [3])


def test_values_group_parts() -> None:
    """Numbers may have gaps; names that are no parts are left alone; parts that are missing are the first's."""
    one, two, three = (torch.tensor([k]) for k in range(3))
    found = group_parts(
        {"train": one, "test": two, "train_7": three, "train_x": one, "other_1": one, "test_2": one}
    )
    assert [{part: nodes.item() for part, nodes in parts.items()} for parts in found] == [
        {"train": 0, "test": 1},
        {"train": 0, "test": 0},
        {"train": 2, "test": 1},
    ]
    assert group_parts({}) == []


def test_degenerate_folders(tmp_path: Path) -> None:
    assert read_published(tmp_path) is None
    (tmp_path / "raw").mkdir()
    assert read_published(tmp_path) is None
    stream = io.BytesIO()
    np.savez(stream, x=np.eye(2), edge_index=np.zeros((2, 0), np.int64))
    (tmp_path / "raw" / "own.npz").write_bytes(stream.getvalue())
    assert read_published(tmp_path) is None
    with pytest.raises(InputError, match="no edges file"):
        read_graph(tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("name", ["Cora", "CiteSeer", "PubMed"])
def test_reference_real(data_root: Path, name: str) -> None:
    """The published files give the graph that the packed file holds, split included."""
    raw = data_root / "Planetoid" / name / "raw"
    packed = data_root / "graphs" / f"{name.lower()}.npz"
    if not raw.is_dir() or not packed.is_file():
        pytest.skip(f"{raw} and {packed} are not both here")
    assert fingerprint(read_graph(raw)) == fingerprint(read_graph(packed))
