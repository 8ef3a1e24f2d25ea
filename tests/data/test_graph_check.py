from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from leanlabel.data.generated.graphs import planted_graph
from leanlabel.data.graph_check import Finding, check_graph
from leanlabel.data.graphs import UNLABELLED, Graph, tidy_edges
from leanlabel.errors import InputError
from leanlabel.sparse import from_dense


def _graph(
    x: torch.Tensor, edges: list[tuple[int, int]], undirected: bool | None = True, **more: object
) -> Graph:
    pairs = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    tidy, symmetric, facts = tidy_edges(pairs, len(x), undirected)
    return Graph(
        x=x,
        edge_index=tidy,
        y=more.pop("y", None),
        num_nodes=len(x),
        name="small",
        undirected=symmetric,
        facts=facts,
        **more,
    )  # type: ignore[arg-type]


def _found(graph: Graph) -> dict[str, Finding]:
    return {finding.code: finding for finding in check_graph(graph)}


def test_values() -> None:
    x = torch.tensor(
        [
            [1.0, 0.0, 2.0, 0.0],
            [1.0, 0.0, 2.0, 3.0],
            [1.0, 0.0, 2.0, 1.0],
            [1.0, 0.0, 2.0, 0.0],
            [1.0, 0.0, 2.0, 5.0],
        ]
    )
    graph = _graph(
        x,
        [(0, 1), (0, 1), (1, 1), (1, 2)],
        y=torch.tensor([0, 0, 1, 1, UNLABELLED]),
        splits={"train": torch.tensor([0, 1]), "val": torch.tensor([2]), "test": torch.tensor([1, 3, 4])},
    )
    counts = {code: (finding.severity, finding.count) for code, finding in _found(graph).items()}
    assert counts == {
        "nodes": ("info", 5),
        "edges": ("info", 2),
        "self_loops_removed": ("info", 1),
        "duplicates_removed": ("info", 1),
        "reverses_added": ("info", 2),
        "components": ("info", 3),
        "degree": ("info", 2),
        "isolated": ("info", 2),
        "features": ("info", 4),
        "dead_features": ("info", 1),
        "constant_features": ("info", 2),
        "unlabelled": ("info", 1),
        "classes": ("info", 2),
        "small_classes": ("warning", 2),
        "split_train": ("info", 2),
        "split_val": ("info", 1),
        "split_test": ("info", 3),
        "split_unlabelled": ("error", 1),
        "split_missing_classes": ("warning", 1),
        "split_leak": ("error", 1),
        "leak_features": ("warning", 1),
        "conflicting_labels": ("warning", 2),
    }
    assert "65 % non-zero, values from 0 to 5" in _found(graph)["features"].message


def test_values_clean() -> None:
    """A planted graph has nothing to complain about."""
    assert {finding.severity for finding in check_graph(planted_graph())} == {"info"}


def test_reference() -> None:
    """Sparse and dense storage give the same findings but for the word."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(40, 12, generator=generator) < 0.2).float()
    x[:, 3], x[:, 4] = 0, 2
    graph = planted_graph(nodes=40, classes=4)
    one, two = (_found(dataclasses.replace(graph, x=form)) for form in (x, from_dense(x)))
    assert one["features"].message.replace("dense", "sparse") == two["features"].message
    for found in (one, two):
        del found["features"]
    assert one == two
    assert one["dead_features"].count == int((x == 0).all(0).sum())
    assert one["constant_features"].count == 1


@pytest.mark.parametrize("sparse", [False, True])
def test_degenerate_features(sparse: bool) -> None:
    def look(x: torch.Tensor) -> dict[str, Finding]:
        return _found(dataclasses.replace(_graph(x, [(0, 1)]), x=from_dense(x) if sparse else x))

    found = look(torch.tensor([[0.0, -1.0], [0.5, 0.0], [0.0, 0.0]]))
    assert found["negative"].severity == "warning"
    assert found["zero_rows"].count == 1
    assert "-1 to 0.5" in found["features"].message
    zero = look(torch.zeros(3, 2))
    assert zero["dead_features"].count == 2
    assert zero["zero_rows"].severity == "warning"
    assert look(torch.tensor([[float("nan")], [1.0], [float("inf")]]))["not_finite"].count == 2


def test_degenerate_edges() -> None:
    x = torch.eye(4)
    assert _found(_graph(x, []))["no_edges"].severity == "warning"
    ring = _found(_graph(x, [(0, 1), (1, 2), (2, 3), (3, 0)]))
    assert ring["regular"].count == 2
    assert "components" not in ring
    listed_once = _found(_graph(x, [(0, 1), (0, 2), (2, 3)], undirected=None))
    assert listed_once["one_way"].severity == "warning"
    # 2 of 43 edges have their reverse: somebody's list names nearly every pair once.
    pairs = [(k, (k + 1) % 42) for k in range(42)]
    nearly = _found(_graph(torch.eye(42), [*pairs, (1, 0)], undirected=None))["one_way"]
    assert "only 2 of 43 edges (4.65 %) have their reverse" in nearly.message
    assert nearly.count == 41
    assert "one_way" not in _found(_graph(torch.eye(42), [*pairs, (1, 0), (2, 1)], undirected=None))
    mixed = _found(_graph(x, [(0, 1), (1, 0), (2, 3)], undirected=None))
    assert "3 directed edges, 2 of them with their reverse" in mixed["edges"].message


def test_degenerate_labels() -> None:
    x, edges = torch.eye(24), [(0, 1)]
    assert _found(_graph(x, edges))["no_labels"].severity == "info"
    assert _found(_graph(x, edges, y=torch.zeros(24, dtype=torch.int64)))["one_class"].severity == "error"
    nothing = torch.full((24,), UNLABELLED)
    assert _found(_graph(x, edges, y=nothing))["one_class"].count == 0
    tail = torch.zeros(24, dtype=torch.int64)
    tail[:2] = 2
    found = _found(_graph(x, edges, y=tail))
    assert found["long_tail"].count == 11
    assert found["small_classes"].message.endswith(": 2")
    assert found["absent_classes"].count == 1
    named = _found(_graph(x, edges, y=tail, class_names=["a", "b", "c"]))
    assert named["classes"].message == "2 classes: a 22, c 2"


def test_degenerate_splits() -> None:
    graph = planted_graph(nodes=30, classes=3)
    repeated = dataclasses.replace(graph, splits={"test": torch.tensor([4, 4, 5])})
    assert _found(repeated)["split_repeats"].count == 1
    # Rows without any feature are no evidence of a copy.
    blank = dataclasses.replace(
        graph, x=torch.zeros(30, 3), splits={"train": torch.tensor([0]), "test": torch.tensor([1])}
    )
    assert "leak_features" not in _found(blank)


def _leaks(graph: Graph) -> dict[tuple[str, str], int]:
    """Counts of leaks by code and by the two parts that their messages name."""
    words = {"train", "val", "test"}
    return {
        (one.code, " ".join(sorted(words & set(one.message.replace(":", "").split())))): one.count
        for one in check_graph(graph)
        if one.code.startswith("leak_")
    }


@pytest.mark.parametrize("sparse", [False, True])
def test_values_leaks(sparse: bool) -> None:
    """Copies are counted per pair of parts; bit for bit, zero rows and the very same node left out."""
    rows = [
        [1, 0, 2],
        [0, 3, 0],
        [0, 0, 0],
        [1, 0, 2],
        [0, 0, 0],
        [0, 3, 0],
        [1, 0, 2],
        [1, 0, 2 + 1e-6],
        [5, 5, 5],
    ]
    x = torch.tensor(rows, dtype=torch.float32)
    splits = {
        "train": torch.tensor([0, 1, 2]),
        "val": torch.tensor([3, 4, 8]),
        "test": torch.tensor([5, 6, 7, 2]),
    }
    graph = dataclasses.replace(_graph(x, [], splits=splits), x=from_dense(x) if sparse else x)
    # Without edges every copy has the neighbours of its original: none.
    assert _leaks(graph) == {
        ("leak_features", "train val"): 1,
        ("leak_neighbours", "train val"): 1,
        ("leak_features", "test train"): 2,
        ("leak_neighbours", "test train"): 2,
        ("leak_features", "test val"): 1,
        ("leak_neighbours", "test val"): 1,
    }
    message = _found(graph)["leak_features"].message
    assert "1 of 4 nodes of test (25 %) have exactly the features of a node of val" in message


@pytest.mark.parametrize(
    ("edges", "undirected", "twins"),
    [
        ([(0, 2), (1, 2)], True, 1),  # the same neighbour
        ([(0, 1)], True, 1),  # joined to each other only
        ([(0, 1), (0, 2), (1, 2)], True, 1),  # joined, with the same others
        ([(0, 1), (0, 2)], True, 0),
        ([(0, 2), (1, 3)], True, 0),  # neighbours that are copies are not the same neighbours
        ([(0, 2)], True, 0),
        ([(0, 2), (1, 2)], False, 1),
        ([(2, 0), (1, 2)], False, 0),  # directions count
        ([(2, 0), (2, 1), (0, 3), (1, 3)], False, 1),
        ([(0, 1)], False, 0),  # one points, the other is pointed at
    ],
)
def test_values_neighbours(edges: list[tuple[int, int]], undirected: bool, twins: int) -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    splits = {"train": torch.tensor([0, 2]), "test": torch.tensor([1])}
    found = _leaks(_graph(x, edges, undirected, splits=splits))
    assert found.get(("leak_neighbours", "test train"), 0) == twins
    assert found["leak_features", "test train"] == 1


def test_reference_leaks() -> None:
    """Counted pair by pair with dense matrices."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(60, 4, generator=generator) < 0.4).float()
    pairs = torch.randint(0, 60, (40, 2), generator=generator).tolist()
    y = torch.randint(0, 2, (60,), generator=generator)
    order = torch.randperm(60, generator=generator)
    splits = {"train": order[:20], "val": order[20:35], "test": order[35:55]}
    graph = _graph(x, pairs, splits=splits, y=y)
    joined = torch.zeros(60, 60, dtype=torch.bool)
    joined[graph.edge_index[0], graph.edge_index[1]] = True

    def copies(u: int, v: int) -> bool:
        return bool((x[u] == x[v]).all()) and bool(x[u].any())

    def twins(u: int, v: int) -> bool:
        others = torch.tensor([w not in (u, v) for w in range(60)])
        return copies(u, v) and bool((joined[u] == joined[v])[others].all())

    found = _leaks(graph)
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        key = " ".join(sorted((one, other)))
        for code, rule in (("leak_features", copies), ("leak_neighbours", twins)):
            nodes = [v for v in splits[other].tolist() if any(rule(u, v) for u in splits[one].tolist())]
            assert found.get((code, key), 0) == len(nodes)
    differ = [v for v in range(60) if any(copies(u, v) and y[u] != y[v] for u in range(60))]
    assert _found(graph)["conflicting_labels"].count == len(differ) > 0


def test_values_conflicts() -> None:
    x = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0], [1, 1]])
    y = torch.tensor([0, 0, 1, 1, UNLABELLED, 0, 1, 1])
    found = _found(_graph(x, [(0, 1)], y=y))["conflicting_labels"]
    assert (found.severity, found.count) == ("warning", 3)
    assert "3 labelled nodes (42.9 %) have exactly the features of a node of another class" in found.message
    many = torch.cat([torch.eye(400) + 1, torch.ones(1, 400) + torch.eye(400)[:1]])
    labels = torch.arange(401) % 2
    labels[400] = 1
    rare = _found(_graph(many, [(0, 1)], y=labels))["conflicting_labels"]
    assert (rare.severity, rare.count) == ("info", 2)  # 0.5 %
    assert "conflicting_labels" not in _found(_graph(x, [(0, 1)]))


def test_values_several_splits() -> None:
    """Published splits are compared within themselves only; the largest count of each finding is told."""
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [2, 2], [3, 3]])
    y = torch.tensor([0, 0, 1, 1, 0, 1])
    splits = {
        "train": torch.tensor([0, 2]),
        "test": torch.tensor([4, 5]),
        "train_1": torch.tensor([0, 1]),  # shares a node with train, which is no leak
        "test_1": torch.tensor([2, 3]),
        "train_2": torch.tensor([0, 2]),
        "test_2": torch.tensor([1, 3, 4]),
    }
    graph = _graph(x, [(0, 1), (2, 3)], splits=splits, y=y)
    found = _found(graph)
    assert found["splits"].count == 3
    assert "split_leak" not in found
    assert found["split_test"].message == "test: 3 nodes (split 2, the largest of 3)"
    assert found["split_train"].message == "train: 2 nodes (in each split)"
    assert found["split_missing_classes"].message.endswith("(split 1, the largest of 3)")
    assert found["leak_features"].count == 2
    assert found["leak_features"].message.endswith("(split 2, the largest of 3)")
    assert len([one for one in check_graph(graph) if one.code == "leak_features"]) == 1


def test_values_facts() -> None:
    """What reading a published set did is told."""
    graph = planted_graph(nodes=30, classes=3)
    facts = {"nodes_without_record": 15, "features_set_to_one": 7}
    found = _found(dataclasses.replace(graph, facts=facts))
    assert found["nodes_without_record"].count == 15
    assert found["features_set_to_one"].message.startswith("7 positive feature values set to one")


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        check_graph(tmp_path / "none.npz")


def test_values_path(tmp_path: Path) -> None:
    graph = planted_graph(nodes=30, classes=3)
    np.savez(
        tmp_path / "g.npz",
        x=graph.x.to_dense().numpy(),
        edge_index=graph.edge_index.numpy(),
        y=graph.y.numpy(),
    )
    codes = {finding.code: finding.count for finding in check_graph(tmp_path / "g.npz")}
    assert codes["nodes"] == 30
    assert codes["edges"] == graph.num_edges // 2
    assert codes["classes"] == 3


@pytest.mark.real
def test_reference_real(data_root: Path) -> None:
    found = {f.code: f for f in check_graph(data_root / "graphs" / "coauthor_physics.npz")}
    assert (found["nodes"].count, found["edges"].count) == (34_493, 247_962)
    assert "components" not in found
    assert found["classes"].count == 5
