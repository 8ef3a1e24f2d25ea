"""Methods that compare two views of a graph: how views are drawn, from the whole graph or from a part of its nodes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor

from leanlabel import dist
from leanlabel.augment.graph import AdaptiveAugmentor, centralities
from leanlabel.config import Settings
from leanlabel.data.graph_sampler import sample_neighbours
from leanlabel.data.graphs import Graph, fingerprint
from leanlabel.engine.loaders import batch_ids
from leanlabel.engine.pipeline import Stage
from leanlabel.engine.runfolder import read_json, write_json
from leanlabel.methods.graph import Batch, Features, GraphConfig, GraphMethod
from leanlabel.sparse import Csr, from_edges, take_rows

Rate = Annotated[float, Field(ge=0, le=1)]


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


class UniformViews(ViewSettings):
    """How the two views are drawn; uniform unless said otherwise."""

    scheme: Literal["degree", "pagerank", "eigenvector", "uniform"] = "uniform"
    """Centrality; uniform drops everything alike."""


class BatchSettings(Settings):
    """Training on a part of the nodes at a time, for graphs whose whole does not fit; another estimator of the loss."""

    nodes: int | None = Field(default=None, ge=2)
    """Nodes per iteration, over all processes; null takes all of them, as the papers do."""
    sampler: Literal["anchors", "neighbours"] = "neighbours"
    """anchors: the whole graph is encoded, the loss sees the chosen nodes; neighbours: only the chosen nodes and
    sampled in-neighbours are encoded."""
    fanouts: tuple[Annotated[int, Field(ge=-1)], ...] = (10, 10)
    """Neighbours drawn per node and hop; -1 takes all. As many hops as the encoder has layers."""


class TwoViewConfig(GraphConfig):
    """The keys of a recipe that compares two views of a graph; a method adds ``augment``, how they are drawn."""

    batch: BatchSettings = BatchSettings()
    """Nodes per iteration."""

    @model_validator(mode="after")
    def _hops(self) -> Self:
        sampled = self.batch.nodes is not None and self.batch.sampler == "neighbours"
        if sampled and len(self.batch.fanouts) != self.model.layers:
            raise ValueError(
                f"batch.fanouts with one entry per layer of the encoder ({self.model.layers}), "
                f"got {list(self.batch.fanouts)}"
            )
        return self


class TwoViewMethod(GraphMethod):
    """A method that draws two views of the graph by dropping edges and features, and compares what they become."""

    def __init__(self, cfg: Any, graph: Graph) -> None:
        super().__init__(cfg, graph)
        self.centralities: tuple[Tensor, Tensor] | None = None
        self.stage_notes: list[str] = []
        self.augmentor: AdaptiveAugmentor | None = None
        self.structure: Csr | None = None

    def stages(self, cfg: Any, graph: Graph) -> list[Stage]:
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
        if self.cfg.batch.nodes is not None:
            found.append(
                f"trained on {self.cfg.batch.nodes} of {self.num_nodes} nodes at a time "
                f"({self.cfg.batch.sampler}): another estimator than the whole graph's loss"
            )
        return [*found, *super().notes()]

    def batches(self, start: int) -> Iterator[Batch]:
        """The features, with the chosen nodes of every iteration."""
        view, size = self.cfg.augment, self.cfg.batch.nodes
        self.structure = _structure(self.graph)
        self.augmentor = AdaptiveAugmentor(
            self.structure,
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
        x, t = self._features(self.graph), start
        while True:
            yield Batch(x, None if size is None else batch_ids(self.num_nodes, size, self.cfg.seed, t))
            t += 1

    def two_views(self, t: int, batch: Batch, encoder: Any = None) -> tuple[Tensor, Tensor]:
        """Embeddings of two views of the batch's nodes, the same rows on every rank: 2 x (B, d), with gradient.

        Reports ``edge_drop_1``, ``edge_drop_2`` (share of the edges that a view lost) and ``dead_units`` (share of
        the embedding's units that are zero for all these nodes).

        Args:
            t: iteration; the draws belong to it.
            batch: from :meth:`batches`.
            encoder: None for the method's own.
        """
        z = [self._view(k, t, batch, encoder or self.encoder) for k in (0, 1)]
        self.report(dead_units=(z[0].detach().abs().amax(0) == 0).double().mean())
        return z[0], z[1]

    def _view(self, k: int, t: int, batch: Batch, encoder: Any) -> Tensor:
        assert self.augmentor is not None
        name = f"view {k}"
        if batch.nodes is not None and self.cfg.batch.sampler == "neighbours":
            return self._sampled_view(k, t, batch.x, batch.nodes, encoder)
        view = self.augmentor.view(k, self.draw(name, t))
        self.report(**{f"edge_drop_{k + 1}": self._dropped(view.adjacency)})
        z = encoder(batch.x, view.adjacency, view.feature_mask)
        return z if batch.nodes is None else z[batch.nodes.to(z.device)]

    def _sampled_view(self, k: int, t: int, x: Features, nodes: Tensor, encoder: Any) -> Tensor:
        """The nodes among sampled neighbours, the same on every rank: a node's weights depend on who else is there."""
        assert self.augmentor is not None
        assert self.structure is not None
        part = sample_neighbours(
            self.structure, nodes, self.cfg.batch.fanouts, partial(self.draw, "neighbours", t)
        )
        view = self.augmentor.view_of(
            k, part.nodes, part.edge, part.structure, partial(self.draw, f"view {k}", t)
        )
        self.report(**{f"edge_drop_{k + 1}": self._dropped(view.adjacency, part.structure)})
        return encoder(take_rows(x, part.nodes), view.adjacency, view.feature_mask)[: len(nodes)]

    def own_rows(self, count: int) -> slice | None:
        """Which of the batch's rows this rank's share of the loss stands for; None for all of them."""
        return dist.shard(count) if dist.world() > 1 else None

    def _dropped(self, adjacency: Csr, whole: Csr | None = None) -> float:
        """Share of the edges that a view lost; the adaptive schemes' cut-off keeps it at or below their rate."""
        nodes, edges = (
            (self.num_nodes, self.graph.num_edges) if whole is None else (whole.shape[0], whole.nnz)
        )
        loops = nodes if self.encoder.loops == "add" else 0
        return 1 - (adjacency.nnz - loops) / max(1, edges)


def _structure(graph: Graph) -> Csr:
    return from_edges(graph.edge_index, graph.num_nodes)
