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
        "split_duplicates": ("warning", 1),
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
    assert "split_duplicates" not in _found(blank)


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
