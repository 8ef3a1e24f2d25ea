"""GCA: graph contrastive learning with adaptive augmentation [Zhu et al., WWW 2021], and GRACE as its uniform case.

In the paper's order: centrality of nodes → drop probabilities of edges and features (`augment.graph`) → two views →
encoder and projector (`models.graph`) → contrast of the two views of every node (`losses.contrastive`) → one update.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from leanlabel import dist
from leanlabel.augment.graph import AdaptiveAugmentor, centralities
from leanlabel.config import OptimSettings, RunConfig, Settings
from leanlabel.data.graph_source import GraphFile, GraphSource, open_graph
from leanlabel.data.graphs import Graph, fingerprint, normalise
from leanlabel.engine import optim
from leanlabel.engine.method import Method
from leanlabel.engine.pipeline import Stage
from leanlabel.engine.runfolder import read_json, write_json
from leanlabel.errors import InputError
from leanlabel.evaluation.readouts import planned_splits, validation_score
from leanlabel.losses.contrastive import bf16_products, two_view_contrast
from leanlabel.models.graph import HEADS, GraphEncoder, Projector, pack_features
from leanlabel.sparse import Csr, from_edges

Rate = Annotated[float, Field(ge=0, le=1)]


class GCASettings(Settings):
    """The objective."""

    name: Literal["gca"] = "gca"
    """Method."""
    tau: float = Field(default=0.4, gt=0)
    """Temperature (tau) of the contrast."""
    chunk: int | None = Field(default=None, ge=1)
    """Rows of the similarity matrix computed at a time; null chooses. Does not change the result."""


class EncoderSettings(Settings):
    """The graph encoder and the projector of the loss."""

    width: int = Field(default=256, ge=1)
    """Width d of the embedding; the first layer has 2d."""
    projection: int = Field(default=32, ge=1)
    """Hidden width of the projector, which is dropped after training."""
    activation: Literal["relu", "prelu", "rrelu", "elu", "leaky_relu", "identity"] = "prelu"
    """After every layer, one module shared by all; rrelu is the fixed slope 11/48 that the official code runs."""
    convolution: Literal["gcn", "sgc", "sage", "gat", "graphconv", "gin"] = "gcn"
    """Graph convolution."""
    layers: int = Field(default=2, ge=2)
    """Graph convolutions."""

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.convolution == "gat" and self.width % HEADS:
            raise ValueError(f"a width divisible by {HEADS}, the number of attention heads, for gat")
        return self


class ViewSettings(Settings):
    """How the two views are drawn."""

    scheme: Literal["degree", "pagerank", "eigenvector", "uniform"] = "degree"
    """Centrality; uniform drops everything alike, which is GRACE."""
    level: Literal["both", "topology", "attribute"] = "both"
    """What is dropped adaptively; the other is dropped uniformly at its rate."""
    edge_rates: tuple[Rate, Rate] = (0.3, 0.4)
    """Overall share of edges dropped in view 1 and 2."""
    feature_rates: tuple[Rate, Rate] = (0.1, 0.0)
    """Overall share of features masked in view 1 and 2."""
    cutoff: float = Field(default=0.7, ge=0, le=1)
    """Largest drop probability (p_tau)."""
    edge_score: Literal["auto", "mean", "sink"] = "auto"
    """Centrality of an edge: mean of both ends, that of its sink, or mean for undirected graphs only."""
    independent_directions: bool = False
    """Drop the two directions of an undirected edge on their own, as the official code does."""
    feature_rule: Literal["auto", "sparse", "dense"] = "auto"
    """Feature importance counts non-zeros (sparse) or sums magnitudes (dense); auto decides by density."""
    official_centrality: bool = False
    """The centralities of the official code: its PageRank is a walk without restarts."""


class GCAConfig(RunConfig):
    """All keys of a GCA recipe."""

    task: str = "graph"
    """Kind of job."""
    steps: int = Field(default=200, ge=0)
    """Iterations; each sees the whole graph."""
    method: GCASettings = GCASettings()
    """Objective."""
    model: EncoderSettings = EncoderSettings()
    """Encoder."""
    data: GraphSource
    """The graph."""
    augment: ViewSettings = ViewSettings()
    """Views."""
    optim: OptimSettings = OptimSettings(lr=0.01, weight_decay=1e-5)
    """Optimiser."""


class GCA(Method):
    """Two views of one graph, contrasted node by node."""

    Config: ClassVar[type[RunConfig]] = GCAConfig
    baselines: ClassVar[dict[str, dict[str, Any]]] = {
        "raw": {"steps": 0, "evaluation": {"readout": "raw"}},
        "untrained": {"steps": 0, "evaluation": {"readout": "untrained"}},
        "grace": {"augment": {"scheme": "uniform"}},
    }

    def __init__(self, cfg: GCAConfig, graph: Graph) -> None:
        super().__init__(cfg)
        self.encoder = GraphEncoder(
            graph.num_features,
            cfg.model.width,
            layers=cfg.model.layers,
            activation=cfg.model.activation,
            convolution=cfg.model.convolution,
        )
        self.projector = Projector(cfg.model.width, cfg.model.projection)
        self.graph = graph
        self.num_nodes = graph.num_nodes
        self.centralities: tuple[Tensor, Tensor] | None = None
        self.stage_notes: list[str] = []
        self.augmentor: AdaptiveAugmentor | None = None

    # ------------------------------------------------------------------------------------------ data

    @classmethod
    def read(cls, cfg: GCAConfig) -> Graph:
        """The graph, checked, with the splits of the evaluation drawn once to see that they can be."""
        graph = open_graph(cfg.data)
        splits = planned_splits(graph, cfg.evaluation, cfg.seed)
        if cfg.evaluation.select == "best_val" and not splits:
            raise InputError(
                "evaluation.select=best_val needs labels and a protocol to read them out with.",
                "Use evaluation.select=last.",
            )
        return graph

    @classmethod
    def open(cls, cfg: GCAConfig, path: str) -> Graph:
        """Another graph to embed with a trained model; needs the same features."""
        settings = (
            cfg.data
            if isinstance(cfg.data, GraphFile)
            else GraphFile(path=path, normalise=cfg.data.normalise)
        )
        return open_graph(settings.model_copy(update={"path": path}))

    @classmethod
    def describe(cls, cfg: GCAConfig, graph: Graph) -> dict[str, Any]:
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

    # ---------------------------------------------------------------------------------------- stages

    @classmethod
    def stages(cls, cfg: GCAConfig, graph: Graph) -> list[Stage]:
        """The centralities: computed once per graph and scheme, whatever else changes."""
        if cfg.augment.scheme == "uniform" or cfg.steps == 0:
            return []
        scheme, official = cfg.augment.scheme, cfg.augment.official_centrality

        def run(folder: Path) -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                for_edges, for_features = centralities(_structure(graph), scheme, official=official)
            save_file(
                {"edges": for_edges, "features": for_features.clone()}, folder / "centrality.safetensors"
            )
            write_json(folder / "notes.json", [str(one.message) for one in caught])

        inputs = {"graph": fingerprint(graph), "scheme": scheme, "official": official, "version": 2}
        return [Stage("centrality", inputs, run)]

    def use_stage(self, name: str, folder: Path) -> None:
        """Take the centralities from a finished stage."""
        found = load_file(folder / "centrality.safetensors")
        self.centralities = (found["edges"], found["features"])
        self.stage_notes = read_json(folder / "notes.json", [])

    def notes(self) -> list[str]:
        """What the centralities, the views and the features met."""
        if self.augmentor is None:
            return []
        facts, found = self.augmentor.facts, list(self.stage_notes)
        for part in ("edge", "feature"):
            if facts[f"equal_{part}_scores"]:
                found.append(
                    f"all {part} scores are equal: {part}s were dropped uniformly, at their overall rate"
                )
        if facts["isolated_nodes"]:
            found.append(
                f"{facts['isolated_nodes']} nodes have no edge: only their own features tell them apart"
            )
        if facts["dead_features"]:
            found.append(
                f"{facts['dead_features']} features are zero for every node and were left out of the scores"
            )
        x = self.graph.x.values if isinstance(self.graph.x, Csr) else self.graph.x
        if (
            self.cfg.data.normalise.startswith("row_sum")
            and x is not None
            and x.numel()
            and float(x.min()) < 0
        ):
            found.append(
                "features have negative values, so sums of rows mean little: use data.normalise=none"
            )
        return found

    # -------------------------------------------------------------------------------------- training

    def batches(self, start: int) -> Iterator[Csr | Tensor]:
        """The whole graph, again and again."""
        view = self.cfg.augment
        self.augmentor = AdaptiveAugmentor(
            _structure(self.graph),
            self.graph.x,
            scheme=view.scheme,
            level=view.level,
            edge_rates=view.edge_rates,
            feature_rates=view.feature_rates,
            cutoff=view.cutoff,
            edge_score=view.edge_score,
            independent_directions=view.independent_directions,
            feature_rule=view.feature_rule,
            official=view.official_centrality,
            known=self.centralities,
            loops=self.encoder.loops == "add",
            weighting=self.encoder.weighting,
        ).to(self.device)
        x = self._features(self.graph)
        while True:
            yield x

    def optimisers(self) -> dict[str, Optimizer]:
        """One, over encoder and projector."""
        return {
            "main": optim.build(self.cfg.optim, [*self.encoder.parameters(), *self.projector.parameters()])
        }

    def step(self, t: int, batch: Csr | Tensor) -> None:
        """Draw two views, embed and project them, contrast every node with its other self, update."""
        assert self.augmentor is not None
        views = [self.augmentor.view(k, self.draw(f"view {k}", t)) for k in (0, 1)]
        products = bf16_products() if self.cfg.engine.bf16_products else nullcontext()
        with products:
            z = [self.encoder(batch, view.adjacency, view.feature_mask) for view in views]
            first, second = (self.projector(rows) for rows in z)
            total, count = two_view_contrast(
                first,
                second,
                tau=self.cfg.method.tau,
                rows=dist.shard(self.num_nodes) if dist.world() > 1 else None,
                chunk=self.cfg.method.chunk,
                reduction="parts",
            )
            loss = dist.global_mean(total, count)
            dead = (z[0].detach().abs().amax(0) == 0).double().mean()
            dropped = {f"edge_drop_{k + 1}": self._dropped(view.adjacency) for k, view in enumerate(views)}
            self.report(loss=loss, dead_units=dead, **dropped)
            self.update(loss)

    def _dropped(self, adjacency: Csr) -> float:
        """Share of the edges that a view lost; the adaptive schemes' cut-off keeps it at or below their rate."""
        loops = self.num_nodes if self.encoder.loops == "add" else 0
        return 1 - (adjacency.nnz - loops) / max(1, self.graph.num_edges)

    # ------------------------------------------------------------------------------------- using it

    def embed(self, graph: Graph | None = None) -> Tensor:
        """Embeddings (N, d) of all nodes of a graph: encoder output on the whole graph, without projector."""
        graph = graph or self.graph
        if graph.num_features != self.graph.num_features:
            raise InputError(
                f"{graph.name}: {graph.num_features} features per node, the model was trained on "
                f"{self.graph.num_features}."
            )
        adjacency = self.encoder.prepare(graph.edge_index, graph.num_nodes, self._dtype).to(self.device)
        with torch.no_grad():
            return self.encoder(self._features(graph), adjacency).float().cpu()

    def readouts(self, graph: Graph, untrained: Method, /) -> dict[str, Any]:
        """Raw features, untrained and trained embeddings."""
        return {"raw": normalise(graph.x, self.cfg.data.normalise), **super().readouts(graph, untrained)}

    def validate(self, t: int) -> float:
        """Validation accuracy of a logistic readout on the first split."""
        return validation_score(self.graph, self.embed(), self.cfg.evaluation, self.cfg.seed)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _features(self, graph: Graph) -> Csr | Tensor:
        return pack_features(normalise(graph.x, self.cfg.data.normalise)).to(self.device, self._dtype)


def _structure(graph: Graph) -> Csr:
    return from_edges(graph.edge_index, graph.num_nodes)
