"""ONNX models: every convolution, every size, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exportsamples import FEATURES, NAMES, encoder, graph, model
from torch import nn

from leanlabel.data.graphs import Graph, normalise
from leanlabel.errors import InputError, RunError
from leanlabel.export import onnx_file
from leanlabel.export.graph_nodes import GraphNodes
from leanlabel.export.writing import write
from leanlabel.models.graph import ACTIVATIONS, ADJACENCY
from leanlabel.sparse import from_dense

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

GRAPHS = [graph(), graph(45, 300, seed=1), graph(3, 1, seed=2), graph(1, 0, seed=3), graph(4, 0, seed=4)]
CHOICES: list[dict[str, Any]] = [
    *({"convolution": kind} for kind in ADJACENCY),
    *({"convolution": kind, "norm": "batch", "layers": 3, "activation": "relu"} for kind in ADJACENCY),
    *({"activation": kind} for kind in ACTIVATIONS),
    {"width": 8, "hidden": 136},  # more columns than are aggregated at a time
]


def session(proto: Any, threads: int = 1) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


def network(**changes: Any) -> GraphNodes:
    made = model(**changes)
    return GraphNodes(made.exported.config, made.exported.tensors, made.classifier)


def answers(runs: Any, data: Graph) -> dict[str, np.ndarray]:
    x = data.x.to_dense() if not isinstance(data.x, torch.Tensor) else data.x
    inputs = {"x": x.numpy(), "edge_index": data.edge_index.numpy()}
    names = [one.name for one in runs.get_outputs()]
    return dict(zip(names, runs.run(names, inputs), strict=True))


@pytest.mark.parametrize("changes", CHOICES, ids=str)
def test_reference(changes: dict[str, Any]) -> None:
    """Equal to the original on graphs of other sizes, isolated nodes and no edges among them."""
    changes = {key: value for key, value in changes.items() if key != "width"}
    made = network(**changes)
    runs = session(made.onnx_model())
    for data in GRAPHS:
        found = answers(runs, data)
        np.testing.assert_allclose(found["embedding"], made.embed(data).numpy(), rtol=1e-4, atol=2e-6)
        np.testing.assert_allclose(found["probabilities"], made.predict(data).numpy(), rtol=1e-4, atol=2e-6)
        assert (found["probabilities"][:, 2] == 0).all()


@pytest.mark.parametrize("mode", ["row_sum", "row_sum_legacy", "shifted", "none"])
def test_reference_of_the_normalisation(mode: Any) -> None:
    """Features go in as they are on disk; negative ones and rows of zeros too."""
    made = network(normalise=mode, activation="identity")
    runs = session(made.onnx_model())
    for data in GRAPHS[:3]:
        signed = graph(data.num_nodes, 30, x=data.x - 0.25)  # type: ignore[operator]
        for one in (data, signed):
            expected = made.encoder(
                normalise(one.x, mode), made.encoder.prepare(one.edge_index, one.num_nodes)
            )
            found = answers(runs, one)["embedding"]
            scale = float(expected.abs().max())
            np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("convolution", ["gcn", "gat", "sage", "gin"])
def test_degenerate_untidy_edges(convolution: str) -> None:
    """Repeated edges and self-loops change nothing, and neither does the order."""
    made, data = network(convolution=convolution), graph()
    runs = session(made.onnx_model())
    loops = torch.arange(20).repeat(2, 1)
    messy = torch.cat([data.edge_index.flip(1), data.edge_index, loops, data.edge_index[:, :5]], 1)
    first, second = answers(runs, data), answers(runs, graph(edge_index=messy))
    np.testing.assert_array_equal(first["embedding"], second["embedding"])


def test_degenerate_without_a_readout() -> None:
    made = network(readout=False)
    assert set(answers(session(made.onnx_model()), graph())) == {"embedding"}


def test_values_do_not_depend_on_threads() -> None:
    """Rows that receive very many edges, several threads: additions must not be lost."""
    edges = torch.stack([torch.arange(3000), torch.arange(3000) % 3])
    data = graph(3000, 0, edge_index=edges, undirected=False)
    proto = network(convolution="graphconv", activation="identity").onnx_model()
    alone = answers(session(proto), data)["embedding"]
    for _ in range(3):
        np.testing.assert_array_equal(answers(session(proto, threads=4), data)["embedding"], alone)


def test_errors_of_the_graph() -> None:
    """A node id outside of the graph is an error, never another edge."""
    runs = session(network().onnx_model())
    for ends in ([[0], [20]], [[20], [0]], [[-21], [0]]):
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data"):
            answers(runs, graph(edge_index=torch.tensor(ends)))


def test_errors_of_unknown_parts() -> None:
    made = encoder()
    made.activation = nn.GELU()
    with pytest.raises(InputError, match="GELU has no form in ONNX"):
        onnx_model(made)
    made = encoder()
    made.layers[0] = nn.Linear(FEATURES, 16)
    with pytest.raises(InputError, match="Linear has no form in ONNX"):
        onnx_model(made)


def onnx_model(made: Any) -> Any:
    from leanlabel.export.onnx_graph import graph_model

    return graph_model(made, FEATURES, "none", None)


def test_values_of_the_files(tmp_path: Path) -> None:
    """Model and description; the check is measured on sparse features as well."""
    dense = graph()
    assert isinstance(dense.x, torch.Tensor)
    data = graph(x=from_dense(dense.x))
    found = write(model(), "onnx", tmp_path / "out", data=data)
    assert sorted(found["files"]) == ["model.onnx", "pipeline.json"]
    told = json.loads((tmp_path / "out" / "pipeline.json").read_text())
    assert told["classes"] == list(NAMES)
    assert told["inputs"]["x"]["shape"] == ["N", FEATURES]
    assert told["outputs"]["probabilities"]["shape"] == ["N", 3]
    assert told["check"]["max_abs_difference"] == found["check"]["max_abs_difference"]
    assert 0 <= told["check"]["max_relative_difference"]["embedding"] < 1e-5
    assert told["check"]["data"] == "graph-20"
    runs = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [(one.name, one.shape) for one in runs.get_inputs()] == [
        ("x", ["N", FEATURES]),
        ("edge_index", [2, "E"]),
    ]
    again = write(model(), "onnx", tmp_path / "again", data=data)
    assert again["files"] == found["files"]
    first, second = (
        path.joinpath("model.onnx").read_bytes() for path in (tmp_path / "out", tmp_path / "again")
    )
    assert first == second


@pytest.mark.parametrize("spoil", [1.0, float("nan")])
def test_errors_of_a_wrong_model(spoil: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that computes something else is not left behind."""
    real = GraphNodes.onnx_outputs
    monkeypatch.setattr(
        GraphNodes,
        "onnx_outputs",
        lambda self, data: {name: value + spoil for name, value in real(self, data).items()},
    )
    with pytest.raises(RunError, match="The ONNX model differs from the original in embedding"):
        write(model(), "onnx", tmp_path / "out", data=graph())
    assert list(tmp_path.iterdir()) == []


def test_errors_of_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(
        InputError, match=r"needs onnxruntime\. Install it with pip install 'leanlabel\[export\]'"
    ):
        write(model(), "onnx", tmp_path / "out", data=graph())
    assert list(tmp_path.iterdir()) == []
