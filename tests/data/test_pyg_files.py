from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leanlabel.data.catalogue import find_entry
from leanlabel.data.graph_files import read_graph
from leanlabel.data.graph_source import GraphFile, find, open_graph
from leanlabel.data.graphs import Graph
from leanlabel.data.splits import make_splits
from leanlabel.errors import InputError
from leanlabel.sparse import Csr

pyg = pytest.importorskip("torch_geometric")
from torch_geometric.data import Data, HeteroData, InMemoryDataset  # noqa: E402

EDGES = torch.tensor([[0, 0, 1, 2, 3, 3], [1, 2, 0, 0, 4, 4]])
X = torch.tensor([[1.0, 0, 2], [0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0.5, 0]])
Y = torch.tensor([0, 1, -1, 1, 0])


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def data(**changes: Any) -> Data:
    masks = {f"{part}_mask": torch.arange(5) == k for k, part in enumerate(("train", "val", "test"))}
    return Data(**{"x": X, "edge_index": EDGES, "y": Y, **masks, **changes})


def saved(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def dense(graph: Graph) -> torch.Tensor:
    return graph.x.to_dense() if isinstance(graph.x, Csr) else graph.x


def check_equal(graph: Graph, like: Data) -> None:
    """Features, edges without repeats, labels and masks are those of torch_geometric's object."""
    tidy = like.clone().coalesce()
    assert torch.equal(dense(graph), like.x.to_dense() if like.x.layout != torch.strided else like.x)
    assert torch.equal(graph.edge_index, tidy.edge_index)
    assert graph.y is not None
    assert torch.equal(graph.y, torch.where(like.y < 0, -100, like.y))
    for part in ("train", "val", "test"):
        assert torch.equal(graph.splits[part], like[f"{part}_mask"].nonzero()[:, 0])


def test_values(tmp_path: Path) -> None:
    graph = read_graph(saved(tmp_path / "small.pt", data(num_nodes=5, name="a", weights=[1.5])))
    check_equal(graph, data())
    assert graph.name == "small"
    assert graph.edge_index.tolist() == [[0, 0, 1, 2, 3], [1, 2, 0, 0, 4]]
    assert graph.facts["duplicates_removed"] == 1


@pytest.mark.parametrize(
    "kind", ["dict", "triple", "pair", "legacy", "coo", "csr", "half", "bytes", "wrapped"]
)
def test_reference_forms(tmp_path: Path, kind: str) -> None:
    """Every way in which torch_geometric keeps one graph gives the same graph."""
    path, like = tmp_path / "processed" / "data.pt", data()
    if kind == "dict":
        saved(path, like.to_dict())
    elif kind == "triple":
        path.parent.mkdir()
        InMemoryDataset.save([like], str(path))
    elif kind == "pair":
        single = {key: torch.tensor([0, 1]) for key in like.to_dict()}
        saved(path, (like, single))
    elif kind == "legacy":
        path.parent.mkdir()
        torch.save((like, None), path, _use_new_zipfile_serialization=False)
    elif kind == "coo":
        saved(path, data(x=X.to_sparse()))
    elif kind == "csr":
        saved(path, data(x=X.to_sparse_csr()))
    elif kind == "half":
        saved(path, data(x=X.half()))
    elif kind == "bytes":
        saved(path, data(train_mask=like.train_mask.to(torch.uint8)))
    else:
        saved(path, data(edge_index=pyg.EdgeIndex(EDGES, sort_order="row")))
    check_equal(read_graph(path), like)


def test_reference_adjacency(tmp_path: Path) -> None:
    """`adj_t` has a row per target."""
    pairs = torch.stack([EDGES[1], EDGES[0]])
    adjacency = torch.sparse_coo_tensor(pairs, torch.ones(6), (5, 5)).coalesce().to_sparse_csr()
    like = data(adj_t=adjacency)
    del like.edge_index
    assert torch.equal(read_graph(saved(tmp_path / "a.pt", like)).edge_index, data().coalesce().edge_index)


def test_values_splits(tmp_path: Path) -> None:
    """A mask with K columns is K published splits, and all of them are made."""
    train = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)
    val = train.roll(1, 1)
    graph = read_graph(saved(tmp_path / "a.pt", data(train_mask=train, val_mask=val)))
    assert sorted(graph.splits) == ["test", "train", "train_1", "train_2", "val", "val_1", "val_2"]
    splits = make_splits(graph, "public")
    assert [(one.name, one.index) for one in splits] == [("public", 0), ("public-1", 1), ("public-2", 2)]
    assert [one.train.tolist() for one in splits] == [[0], [1], [3]]
    assert [one.val.tolist() for one in splits] == [[3], [0], [1]]
    assert [one.test.tolist() for one in splits] == [[2]] * 3
    assert len({one.sha256 for one in splits}) == 3


def test_reference_without_pyg(tmp_path: Path) -> None:
    """A process that cannot import torch_geometric reads the same."""
    saved(tmp_path / "a.pt", data())
    saved(tmp_path / "b.pt", (data(edge_index=pyg.EdgeIndex(EDGES)).to_dict(), None, Data))
    code = (
        "import sys; sys.modules['torch_geometric'] = None\n"
        "from leanlabel.data.graph_files import read_graph\n"
        "for name in 'ab':\n"
        "    graph = read_graph(name + '.pt')\n"
        "    print(graph.x.tolist(), graph.edge_index.tolist(), graph.y.tolist(), sorted(graph.splits))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    graph = read_graph(tmp_path / "a.pt")
    assert graph.y is not None
    line = f"{graph.x.tolist()} {graph.edge_index.tolist()} {graph.y.tolist()} {sorted(graph.splits)}"  # type: ignore[union-attr]
    assert done.stdout.splitlines() == [line, line], done.stderr


def test_degenerate(tmp_path: Path) -> None:
    bare = read_graph(
        saved(tmp_path / "a.pt", Data(edge_index=EDGES, num_nodes=7)), features="degree", undirected=True
    )
    assert bare.num_nodes == 7  # the last two have no edges
    assert bare.y is None
    lonely = read_graph(saved(tmp_path / "b.pt", Data(x=X, edge_index=torch.zeros(2, 0, dtype=torch.long))))
    assert lonely.num_edges == 0
    assert lonely.splits == {}
    assert read_graph(saved(tmp_path / "c.pt", data(y=Y[:, None]))).y is not None


class Hostile:
    """Makes a file when it is read by an ordinary unpickler."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"echo > {self.mark}",)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("place", ["whole", "attribute", "slices"])
def test_errors_hostile(tmp_path: Path, place: str, new: bool) -> None:
    mark = tmp_path / "mark"
    bomb = Hostile(mark)
    value: Any = {"whole": bomb, "attribute": data(extra=bomb), "slices": (data(), {"x": bomb})}[place]
    path = tmp_path / "a.pt"
    torch.save(value, path, _use_new_zipfile_serialization=new)
    with pytest.raises(InputError, match=r"names (posix|nt)\.system, which could run code"):
        read_graph(path)
    assert not mark.exists()
    plain = tmp_path / "b.pt"
    plain.write_bytes(pickle.dumps(bomb))
    with pytest.raises(InputError, match=r"b\.pt"):
        read_graph(plain)
    assert not mark.exists()


def test_errors_names_allowed_elsewhere(tmp_path: Path) -> None:
    """What another package allowed in this process is not allowed here, and is allowed again afterwards."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([types.SimpleNamespace])
    try:
        path = saved(tmp_path / "a.pt", data(extra=types.SimpleNamespace(a=1)))
        with pytest.raises(InputError, match=r"types\.SimpleNamespace"):
            read_graph(path)
        assert types.SimpleNamespace in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def hetero() -> HeteroData:
    graph = HeteroData()
    graph["a"].x = X
    graph["a", "to", "a"].edge_index = EDGES
    return graph


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: hetero(), "several kinds of nodes"),
        (lambda: (hetero().to_dict(), None, HeteroData), "several kinds of nodes"),
        (lambda: (*InMemoryDataset.collate([data(), data(), data()]), Data), "holds 3 graphs"),
        (lambda: {"weight": X}, "holds no graph"),
        (lambda: [X, X], "holds no graph"),
        (lambda: torch.ones(3), "holds no graph"),
        (lambda: data(edge_index=EDGES + 1), "joins 3 and 5|joins 4 and 5"),
        (lambda: data(y=torch.eye(5)), r"shape \(5, 5\)"),
        (lambda: data(train_mask=torch.ones(4, dtype=torch.bool)), "4 entries for 5 nodes"),
        (lambda: data(x=X[:1].expand(10**9, 3)), "declares shape"),
        (lambda: data(edge_index=EDGES.to_sparse()), "not a plain tensor"),
        (lambda: data(x=torch.full((5, 3), float("nan"))), "not finite"),
        (lambda: Data(edge_index=EDGES), "no features"),
    ],
)
def test_errors(tmp_path: Path, value: Any, message: str) -> None:
    path = saved(tmp_path / "a.pt", value())
    with pytest.raises(InputError, match=message) as caught:
        read_graph(path)
    assert "a.pt" in str(caught.value)


def test_errors_damage(tmp_path: Path) -> None:
    """Cut and flipped files are refused with their name, whatever the reader underneath says."""
    whole = saved(tmp_path / "a.pt", data()).read_bytes()
    path = tmp_path / "b.pt"
    for content in [b"", b"PK\x03\x04", *(whole[: len(whole) * k // 7] for k in range(1, 7))]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"b\.pt"):
            read_graph(path)
    numbers, messages = np.random.default_rng(0), []
    for _ in range(60):
        broken = bytearray(whole)
        broken[numbers.integers(len(whole))] ^= 1 << numbers.integers(8)
        path.write_bytes(broken)
        try:
            read_graph(path)
        except InputError as error:
            messages.append(str(error))
    assert messages
    assert all("b.pt" in message for message in messages)


# ---------------------------------------------------------------------------------------------- sets by name


def benchmark_npz(path: Path) -> Path:
    """A file of gnn-benchmark: five nodes, an edge in one direction only, features that are counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    adjacency, x = np.array([0, 1, 2, 2, 3, 3]), np.array([0, 2, 3, 3, 5, 6])
    np.savez(
        path,
        adj_data=np.ones(3, np.float32),
        adj_indices=np.array([1, 2, 4], np.int32),
        adj_indptr=adjacency,
        adj_shape=np.array([5, 5]),
        attr_data=np.array([1, 2, 1, 1, 1, 3], np.float32),
        attr_indices=np.array([0, 2, 1, 0, 1, 1], np.int32),
        attr_indptr=x,
        attr_shape=np.array([5, 3]),
        labels=np.array([0, 1, 0, 1, 0]),
    )
    return path


@pytest.mark.parametrize("name", ["pyg:Amazon/Photo", "pyg:Photo", "pyg:amazon/photo"])
@pytest.mark.parametrize("root", ["data", "."])
def test_reference_benchmark(tmp_path: Path, name: str, root: str) -> None:
    """A set by its name is what torch_geometric makes of the same file, raw or processed."""
    raw = benchmark_npz(tmp_path / root / "Amazon" / "Photo" / "raw" / "amazon_electronics_photo.npz")
    like = pyg.datasets.Amazon(str(tmp_path / root / "Amazon"), "Photo")._data
    assert find(name) == raw.relative_to(tmp_path)
    graph = open_graph(GraphFile(path=name))
    assert torch.equal(dense(graph), like.x)
    assert torch.equal(graph.edge_index, like.coalesce().edge_index)
    assert graph.y is not None
    assert torch.equal(graph.y, like.y)
    assert graph.undirected
    assert graph.facts["features_set_to_one"] == 2
    kept = open_graph(GraphFile(path=name, undirected=False))
    assert kept.edge_index.tolist() == [[0, 1, 3], [1, 2, 4]]
    raw.unlink()
    processed = open_graph(GraphFile(path=name))
    assert torch.equal(dense(processed), like.x)
    assert torch.equal(processed.edge_index, graph.edge_index)
    assert "features_set_to_one" not in processed.facts


def test_values_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = saved(tmp_path / "elsewhere" / "Planetoid" / "Cora" / "processed" / "data.pt", data().to_dict())
    monkeypatch.setenv("LEANLABEL_DATA", str(tmp_path / "elsewhere"))
    for name in ("pyg:Cora", "pyg:Planetoid/Cora"):
        assert find(name) == place
        assert open_graph(GraphFile(path=name)).name == "cora"
    unknown = saved(tmp_path / "elsewhere" / "Actor" / "processed" / "data.pt", data())
    assert find("pyg:Actor") == unknown
    assert open_graph(GraphFile(path="pyg:Actor")).name == "Actor"


def test_values_packaged_path(tmp_path: Path) -> None:
    """The path of a packaged recipe falls back on the published files of the same set."""
    raw = benchmark_npz(tmp_path / "data" / "Amazon" / "Photo" / "raw" / "amazon_electronics_photo.npz")
    path = "graphs/amazon_photo.npz"
    assert find(path) == raw.relative_to(tmp_path)
    # As the file is: no feature is set to one behind the recipe's back.
    assert float(dense(open_graph(GraphFile(path=path))).max()) == 3
    packed = tmp_path / "data" / path
    packed.parent.mkdir()
    packed.write_bytes(b"")
    assert find(path) == packed.relative_to(tmp_path)


def test_errors_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leanlabel data get coauthor-cs"):
        find("pyg:Coauthor/CS")
    with pytest.raises(InputError, match=r"leanlabel data get wikics"):
        find("graphs/wikics.npz")
    with pytest.raises(InputError, match=r"no folder Nothing with processed/data.pt.*Planetoid/Cora"):
        find("pyg:Nothing")
    for name in ("pyg:", "pyg:../secret", "pyg:/"):
        with pytest.raises(InputError, match="expected a name"):
            find(name)


def test_values_catalogue_and_names_agree() -> None:
    """What `data get` brings is where a name is looked for."""
    entry = find_entry("cora")
    for file in entry.files:
        assert file.path.startswith(f"{entry.pyg}/raw/")
    assert dataclasses.is_dataclass(entry)
