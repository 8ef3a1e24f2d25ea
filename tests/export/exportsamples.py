"""Untrained models and small graphs for the tests of exports."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from leanlabel.data.graphs import Graph, tidy_edges
from leanlabel.engine.method import Exported
from leanlabel.evaluation.classifier import Classifier, rows_of
from leanlabel.export.writing import Model
from leanlabel.models.graph import GraphEncoder

FEATURES = 6
NAMES = ("left", 'a "quoted", name', "right")


def graph(nodes: int = 20, draws: int = 40, seed: int = 0, features: int = FEATURES, **changes: Any) -> Graph:
    """Features in [0, 1) with zeros among them, node 0 all zero; tidy undirected edges, the last node alone."""
    numbers = np.random.default_rng(seed)
    x = numbers.random((nodes, features)) * (numbers.random((nodes, features)) < 0.5)
    x[0] = 0
    ends = torch.from_numpy(numbers.integers(0, max(1, nodes - 1), (2, draws)))
    edges, undirected, _ = tidy_edges(ends, nodes, True)
    values = {
        "x": torch.from_numpy(x).float(),
        "edge_index": edges,
        "y": torch.arange(nodes) % 3,
        "num_nodes": nodes,
        "name": f"graph-{nodes}",
        "undirected": undirected,
    }
    return Graph(**{**values, **changes})


def encoder(**changes: Any) -> GraphEncoder:
    """An encoder with drawn running estimates where it has batch norms."""
    torch.manual_seed(0)
    made = GraphEncoder(FEATURES, 8, **changes).eval()
    for norm in made.norms:
        norm.running_mean.normal_()  # type: ignore[union-attr,operator]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
    return made


def model(
    *, normalise: str = "row_sum", readout: bool = True, data: Graph | None = None, **changes: Any
) -> Model:
    """What a method and a run would hand over."""
    made = encoder(**changes)
    config = {
        "encoder": {"in_features": FEATURES, "width": 8, **changes},
        "preprocessing": {"normalise": normalise, "undirected": None, "features": "file"},
    }
    tensors = {f"encoder.{name}": value for name, value in made.state_dict().items()}
    about = {"kind": "logistic-l2", "rows_of": rows_of(data) if data is not None else None}
    rule = Classifier(
        torch.randn(3, 8), torch.tensor([0.0, 0.5, -torch.inf]), True, NAMES, torch.tensor([2, 3]), about
    )
    exported = Exported("graph-nodes", config, tensors, "encoder.")
    return Model(exported, rule if readout else None, {"recipe": "sample", "method": "none"})
