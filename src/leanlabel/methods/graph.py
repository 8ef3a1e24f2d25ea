"""What all methods on one attributed graph share: settings, data, encoder, views, batches, embeddings.

A method of this family names its settings, says in :meth:`GraphMethod.step` what its loss is, and inherits the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.optim import Optimizer

from leanlabel.config import OptimSettings, RunConfig, Settings
from leanlabel.data.graph_source import GraphFile, GraphSource, open_graph
from leanlabel.data.graphs import Graph, fingerprint, normalise
from leanlabel.engine import optim
from leanlabel.engine.checkpoint import state_of
from leanlabel.engine.method import Exported, Method
from leanlabel.errors import InputError
from leanlabel.evaluation.label_free import DIRECTION, label_free_scores
from leanlabel.evaluation.readouts import planned_splits, validation_score
from leanlabel.models.graph import HEADS, GraphEncoder, pack_features
from leanlabel.sparse import Csr

Rate = Annotated[float, Field(ge=0, le=1)]
Features = Csr | Tensor


class EncoderSettings(Settings):
    """The graph encoder and the projector of the loss."""

    width: int = Field(default=256, ge=1)
    """Width d of the embedding; the first layer has 2d."""
    projection: int = Field(default=32, ge=1)
    """Hidden width of the projector or predictor, which is dropped after training."""
    activation: Literal["relu", "prelu", "rrelu", "elu", "leaky_relu", "identity"] = "prelu"
    """After every layer, one module shared by all; rrelu is the fixed slope 11/48 that the official code runs."""
    convolution: Literal["gcn", "sgc", "sage", "gat", "graphconv", "gin"] = "gcn"
    """Graph convolution."""
    layers: int = Field(default=2, ge=2)
    """Graph convolutions."""
    norm: Literal["none", "batch"] = "none"
    """Batch normalisation over the nodes before every activation; without negatives it keeps units alive."""

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.convolution == "gat" and self.width % HEADS:
            raise ValueError(f"a width divisible by {HEADS}, the number of attention heads, for gat")
        return self


class GraphConfig(RunConfig):
    """The keys of every recipe on a graph."""

    task: str = "graph"
    """Kind of job."""
    steps: int = Field(default=200, ge=0)
    """Iterations."""
    model: EncoderSettings = EncoderSettings()
    """Encoder."""
    data: GraphSource
    """The graph."""
    optim: OptimSettings = OptimSettings(lr=0.01, weight_decay=1e-5)
    """Optimiser."""


class Batch(NamedTuple):
    """What an iteration sees."""

    x: Features
    """(N, F) features of all nodes, on the device."""
    nodes: Tensor | None
    """(B,) ids of the chosen nodes over all ranks; None for all nodes."""


class GraphMethod(Method):
    """A method on one graph: encoder, embeddings, readouts. Subclasses say what they train for."""

    Config: ClassVar[type[RunConfig]] = GraphConfig
    parts: ClassVar[dict[str, tuple[str, ...]]] = {"backbone": ("encoder",)}
    scores: ClassVar[tuple[str, ...]] = ("effective_rank", "neighbourhood_density")
    baselines: ClassVar[dict[str, dict[str, Any]]] = {
        "raw": {"steps": 0, "evaluation": {"readout": "raw"}},
        "untrained": {"steps": 0, "evaluation": {"readout": "untrained"}},
    }

    def __init__(self, cfg: Any, graph: Graph) -> None:
        super().__init__(cfg)
        self.graph = graph
        self.num_nodes = graph.num_nodes
        self.build(graph)

    def build(self, graph: Graph) -> None:
        """Make the networks; the encoder first, so that all methods of a seed start from the same one."""
        self.encoder = self.make_encoder(graph)

    def make_encoder(self, graph: Graph) -> GraphEncoder:
        """An encoder as the settings say, newly initialised."""
        return GraphEncoder(**self.encoder_settings(graph))

    def encoder_settings(self, graph: Graph) -> dict[str, Any]:
        """What the encoder is built from, as plain data."""
        model = self.cfg.model
        return {
            "in_features": graph.num_features,
            "width": model.width,
            "layers": model.layers,
            "activation": model.activation,
            "convolution": model.convolution,
            "norm": model.norm,
        }

    @classmethod
    def read(cls, cfg: Any) -> Graph:
        """The graph, checked, with the splits of the evaluation drawn once to see that they can be."""
        graph = open_graph(cfg.data)
        splits = planned_splits(graph, cfg.evaluation, cfg.seed)
        cls.check_selection(cfg, splits)
        batch = getattr(cfg, "batch", None)
        if batch is not None and batch.nodes is not None and batch.nodes > graph.num_nodes:
            raise InputError(
                f"batch.nodes is {batch.nodes}, {graph.name} has {graph.num_nodes} nodes.",
                "Leave batch.nodes at null to train on all of them.",
            )
        return graph

    @classmethod
    def open(cls, cfg: Any, path: str) -> Graph:
        """Another graph to embed with a trained model; needs the same features."""
        settings = (
            cfg.data
            if isinstance(cfg.data, GraphFile)
            else GraphFile(path=path, normalise=cfg.data.normalise)
        )
        return open_graph(settings.model_copy(update={"path": path}))

    @classmethod
    def describe(cls, cfg: Any, graph: Graph) -> dict[str, Any]:
        """What ``data.json`` says."""
        edges = graph.num_edges // 2 if graph.undirected else graph.num_edges
        kind = "undirected edges" if graph.undirected else "directed edges"
        return {
            **super().describe(cfg, graph),
            "kind": "graph",
            "fingerprint": fingerprint(graph),
            "counts": {"nodes": graph.num_nodes, kind: edges, "features": graph.num_features},
            "facts": dict(graph.facts),
        }

    def notes(self) -> list[str]:
        """What the features met."""
        x = self.graph.x.values if isinstance(self.graph.x, Csr) else self.graph.x
        summed = self.cfg.data.normalise.startswith("row_sum")
        if summed and x is not None and x.numel() and float(x.min()) < 0:
            return ["features have negative values, so sums of rows mean little: use data.normalise=none"]
        return []

    def batches(self, start: int) -> Iterator[Any]:
        """The whole graph, again and again."""
        x = self._features(self.graph)
        while True:
            yield Batch(x, None)

    def optimisers(self) -> dict[str, Optimizer]:
        """One, over everything that learns."""
        return {"main": optim.build(self.cfg.optim, [p for p in self.parameters() if p.requires_grad])}

    @property
    def embedder(self) -> GraphEncoder:
        """The encoder whose output is the embedding."""
        return self.encoder

    def adjacency(self, graph: Graph) -> Csr:
        """The whole graph as the encoder reads it, on the device."""
        return self.embedder.prepare(graph.edge_index, graph.num_nodes, self._dtype).to(self.device)

    def check_features(self, graph: Graph) -> Graph:
        """The graph itself; InputError where its features are not those the model was trained on."""
        if graph.num_features != self.graph.num_features:
            by_degree = getattr(self.cfg.data, "features", "file") == "degree"
            raise InputError(
                f"{graph.name}: {graph.num_features} features per node, the model was trained on "
                f"{self.graph.num_features}.",
                "With data.features=degree the width follows the largest degree of each graph."
                if by_degree
                else None,
            )
        return graph

    def embed(self, graph: Graph | None = None) -> Tensor:
        """Embeddings (N, d) of all nodes of a graph: encoder output on the whole graph, without projector."""
        graph = self.check_features(graph or self.graph)
        with torch.no_grad():
            return self.embedder(self._features(graph), self.adjacency(graph)).float().cpu()

    def exported(self) -> Exported:
        """The encoder behind the embeddings, with what is done to a graph before it."""
        data = GraphFile(path="").model_dump() | self.cfg.data.model_dump()
        config = {
            "encoder": self.encoder_settings(self.graph),
            "preprocessing": {key: data[key] for key in ("normalise", "undirected", "features")},
        }
        tensors = {f"encoder.{name}": value for name, value in state_of(self.embedder).items()}
        return Exported("graph-nodes", config, tensors, "encoder.")

    def readouts(self, graph: Graph, untrained: Method, /) -> dict[str, Any]:
        """Raw features, untrained and trained embeddings."""
        return {"raw": normalise(graph.x, self.cfg.data.normalise), **super().readouts(graph, untrained)}

    def validate(self, t: int) -> float:
        """Validation accuracy of a logistic readout on the first split, or the label-free score that selects."""
        select = self.cfg.evaluation.select
        if select in self.scores:
            return self._selecting(select)
        return validation_score(self.graph, self.embed(), self.cfg.evaluation, self.cfg.seed)

    def _selecting(self, score: str) -> float:
        """A score without labels, turned so that higher is better."""
        found = self.label_free(self.graph)[score]
        return found if DIRECTION[score] == "higher" else -found

    def label_free(self, graph: Graph) -> dict[str, float]:
        """Scores of the present weights that need no labels."""
        return label_free_scores(self.embed(graph))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _features(self, graph: Graph) -> Features:
        return pack_features(normalise(graph.x, self.cfg.data.normalise)).to(self.device, self._dtype)
