"""The supervised arm: a graph encoder with a linear head, trained with cross-entropy on the labelled nodes.

One network per split of the evaluation, trained side by side, so that its test nodes are those of every other arm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from leanlabel.banks.teacher import Teacher, plain
from leanlabel.config import OptimSettings, RunConfig, Settings
from leanlabel.data.graphs import Graph
from leanlabel.engine.checkpoint import restore
from leanlabel.engine.method import Method
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import Classifier
from leanlabel.evaluation.label_free import label_free_scores
from leanlabel.evaluation.protocols import PROTOCOLS
from leanlabel.evaluation.readouts import class_names, planned_splits
from leanlabel.methods.graph import Batch, GraphConfig, GraphMethod
from leanlabel.models.graph import GraphEncoder
from leanlabel.sparse import Csr

SELECTION = "iteration with best validation accuracy, first maximum; trained on the training part only"


class SupervisedSettings(Settings):
    """The objective."""

    name: Literal["supervised-graph"] = "supervised-graph"
    """Method."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of embedding units dropped before the head while training."""
    every: int = Field(default=5, ge=1)
    """Iterations between looks at the validation nodes, with one after the last; the best weights are kept."""


class SupervisedConfig(GraphConfig):
    """All keys of a supervised recipe on a graph."""

    method: SupervisedSettings = SupervisedSettings()
    """Objective."""
    optim: OptimSettings = OptimSettings(lr=0.01, weight_decay=5e-4)
    """Optimiser."""


class Network(nn.Module):
    """Encoder and linear head: class scores of all nodes."""

    def __init__(self, encoder: GraphEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, classes)

    def forward(self, x: Csr | Tensor, adjacency: Csr, drop: float = 0.0) -> Tensor:
        """Logits (N, C); ``drop`` is the share of embedding units left out."""
        return self.head(dropout(self.encoder(x, adjacency), drop, training=drop > 0))


class Networks(nn.Module):
    """One network per split."""

    def __init__(self, networks: list[Network]) -> None:
        super().__init__()
        self.members = nn.ModuleList(networks)

    def forward(self, x: Csr | Tensor, adjacency: Csr, drop: float = 0.0) -> Tensor:
        """Logits (splits, N, C)."""
        return torch.stack([network(x, adjacency, drop) for network in self.members])


class SupervisedGraph(GraphMethod):
    """What labels alone reach with the same encoder: the arm that a method without labels is held against."""

    Config: ClassVar[type[RunConfig]] = SupervisedConfig
    parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "backbone": ("networks.members.*.encoder", "kept.network.members.*.encoder")
    }
    sources: ClassVar[dict[str, str]] = {"backbone": "kept.network.members.0.encoder"}
    fixed: ClassVar[tuple[str, ...]] = ("evaluation.split", "evaluation.splits", "evaluation.shares")
    scores: ClassVar[tuple[str, ...]] = (*GraphMethod.scores, "entropy")
    supervised_only: ClassVar[bool] = True
    best: Tensor
    whole: Csr

    @classmethod
    def read(cls, cfg: Any) -> Graph:
        """The graph; it needs labels."""
        graph = super().read(cfg)
        if not planned_splits(graph, cfg.evaluation, cfg.seed):
            protocol = cfg.evaluation.protocol
            if graph.y is not None and protocol != "none":
                names = ", ".join(
                    name for name, one in PROTOCOLS.items() if one.needs_splits and not one.images
                )
                raise InputError(
                    f"evaluation.protocol={protocol}: supervised training needs a protocol with splits, for it learns "
                    f"from their training parts.",
                    f"Use {names}; `leanlabel evaluate RUN --protocol {protocol}` measures the finished run.",
                )
            raise InputError(
                f"{graph.name}: supervised training needs labels and a protocol other than none.",
                "Train without labels with gca, bgrl, dgi or cca-ssg.",
            )
        return graph

    def build(self, graph: Graph) -> None:
        """As many networks as splits, each with a copy of its best weights."""
        self.splits = planned_splits(graph, self.cfg.evaluation, self.cfg.seed)
        self.networks = Networks([Network(self.make_encoder(graph), graph.num_classes) for _ in self.splits])
        self.kept = Teacher(self.networks)
        self.register_buffer("best", torch.full((len(self.splits),), -1.0))

    def batches(self, start: int) -> Iterator[Batch]:
        """The whole graph, again and again."""
        self.whole = self.adjacency(self.graph)
        yield from super().batches(start)

    def step(self, t: int, batch: Batch) -> None:
        """Cross-entropy of every network on the training nodes of its split, one update, a look at validation."""
        y = self._y().to(self.device)
        logits = self.networks(batch.x, self.whole, self.cfg.method.dropout)
        losses = [
            cross_entropy(scores[split.train], y[split.train])
            for scores, split in zip(logits, self.splits, strict=True)
        ]
        self.report(loss=torch.stack(losses).detach().mean())
        self.update(torch.stack(losses).sum())
        if (t + 1) % self.cfg.method.every == 0:  # never by the last: a longer run would differ
            self._keep_better(batch.x, y)

    @torch.no_grad()
    def _keep_better(self, x: Csr | Tensor, y: Tensor) -> None:
        """Copy the networks that beat their best validation accuracy."""
        self.networks.eval()
        guess = self.networks(x, self.whole).argmax(2)
        for k, split in enumerate(self.splits):
            score = (guess[k, split.val] == y[split.val]).float().mean()
            if score > self.best[k]:
                self.best[k] = score
                kept = self._member(self.kept.network, k).state_dict(keep_vars=True)
                for name, value in self._member(self.networks, k).state_dict().items():
                    kept[name].copy_(value)

    @property
    def embedder(self) -> GraphEncoder:
        """The encoder of the first split's network, at its best."""
        return self._member(self.kept.network, 0).encoder

    def took(self, names: Collection[str]) -> None:
        """What was best in another run need not be best here."""
        self.best.fill_(-1)

    def classifier(self) -> Classifier | None:
        """The head of the first split's network, at its best; it has seen the training nodes of that split."""
        if self.cfg.steps == 0:
            return None
        head, rows = self._member(self.kept.network, 0).head, self.splits[0].train
        about = {"kind": "head", "rows": len(rows), "part": f"training part of split {self.splits[0].name}"}
        weight, bias = head.weight.detach().cpu().float(), head.bias.detach().cpu().float()
        return Classifier(weight, bias, False, tuple(class_names(self.graph)), rows, about)

    def logits(self, graph: Graph) -> Tensor:
        """Class scores (splits, N, C) of the kept networks, in evaluation mode."""
        self.kept.eval()
        return self.kept(self._features(self.check_features(graph)), self.adjacency(graph)).float().cpu()

    def finish(self) -> None:
        """A last look at validation: the present networks may be better than those kept at the last regular one."""
        if self.cfg.steps > 0:
            self.whole = self.adjacency(self.graph)
            self._keep_better(self._features(self.graph), self._y().to(self.device))

    def validate(self, t: int) -> float:
        """Score of what would be handed out now: mean best validation accuracy, or the label-free one that selects."""
        before = {name: value.clone() for name, value in self.state_dict().items()}
        self.finish()
        select = self.cfg.evaluation.select
        score = self._selecting(select) if select in self.scores else float(self.best.mean())
        restore(self, before)
        return score

    def label_free(self, graph: Graph) -> dict[str, float]:
        """Scores that need no labels, entropy of the predictions among them."""
        return label_free_scores(self.embed(graph), probabilities=self.logits(graph)[0].softmax(1))

    def evaluate(
        self,
        data: Any,
        untrained: Method,
        protocol: str | None = None,
        splits_file: Path | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Accuracy of the networks' own heads, beside readouts of raw features and of the untrained encoder."""
        own = {"trained": list(self.logits(data))} if self.cfg.steps > 0 else {}
        return super().evaluate(
            data, untrained, protocol, splits_file, predictions=own, selection=SELECTION, **more
        )

    @staticmethod
    def _member(networks: nn.Module, k: int) -> Network:
        found = plain(networks)
        assert isinstance(found, Networks)
        member = found.members[k]
        assert isinstance(member, Network)
        return member

    def _y(self) -> Tensor:
        assert self.graph.y is not None
        return self.graph.y
