"""BGRL: bootstrapped graph latents, no negatives [Thakoor et al., ICLR 2022].

In the paper's order: two views → online encoder and predictor on each → target encoder on each, without gradient →
every node's prediction meets its target in the other view → one update → the target follows by a moving average.
Time and memory grow with the number of nodes, not with its square.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.banks.teacher import Teacher, rising_momentum
from leanlabel.config import RunConfig, Settings
from leanlabel.data.graphs import Graph
from leanlabel.evaluation.label_free import label_free_scores
from leanlabel.losses.bootstrap import bootstrap_cosine
from leanlabel.methods.graph import Batch
from leanlabel.methods.graph_views import TwoViewConfig, TwoViewMethod, UniformViews


class BGRLSettings(Settings):
    """The objective."""

    name: Literal["bgrl"] = "bgrl"
    """Method."""
    momentum: float = Field(default=0.99, ge=0, le=1)
    """Momentum of the target encoder at the start; it rises to 1 by half a cosine."""


class BGRLConfig(TwoViewConfig):
    """All keys of a BGRL recipe."""

    method: BGRLSettings = BGRLSettings()
    """Objective."""
    augment: UniformViews = UniformViews()
    """Views; the paper's are uniform."""


class BGRL(TwoViewMethod):
    """An online encoder predicts what a slowly following target encoder sees in the other view."""

    Config: ClassVar[type[RunConfig]] = BGRLConfig
    scores: ClassVar[tuple[str, ...]] = (*TwoViewMethod.scores, "teacher_agreement")

    def build(self, graph: Graph) -> None:
        """Encoder, predictor, target encoder."""
        super().build(graph)
        width, hidden = self.cfg.model.width, self.cfg.model.projection
        self.predictor = nn.Sequential(nn.Linear(width, hidden), nn.PReLU(), nn.Linear(hidden, width))
        self.teacher = Teacher(self.encoder)

    def took(self, names: Collection[str]) -> None:
        """Start the target where the encoder starts, as from a seed."""
        if not any(name.startswith("teacher.") for name in names):
            self.teacher.follow(self.encoder, 0.0)

    @classmethod
    def follows_steps(cls, cfg: BGRLConfig) -> list[str]:
        """The momentum reaches 1 at the last iteration."""
        return [*super().follows_steps(cfg), "the rise of method.momentum"]

    def step(self, t: int, batch: Batch) -> None:
        """Predict the target's view 2 from the online view 1 and the other way round; update; follow."""
        with torch.no_grad():
            target = self.two_views(t, batch, self.teacher)
        online = self.two_views(t, batch)  # the same views: the draws belong to (seed, t)
        rows = self.own_rows(len(online[0])) or slice(None)
        loss = online[0].new_zeros(())
        for one, other in ((0, 1), (1, 0)):
            losses = bootstrap_cosine(
                self.predictor(online[one][rows]), target[other][rows], reduction="none"
            )
            loss = loss + dist.global_mean(losses.sum() / 2, len(losses))
        momentum = rising_momentum(t, self.cfg.steps, self.cfg.method.momentum)
        self.report(loss=loss, momentum=momentum)
        self.update(loss)
        self.teacher.follow(self.encoder, momentum)

    def label_free(self, graph: Graph) -> dict[str, float]:
        """Scores that need no labels, agreement of the encoder with its target among them."""
        with torch.no_grad():
            theirs: Tensor = self.teacher(self._features(graph), self.adjacency(graph)).float().cpu()
        return label_free_scores(self.embed(graph), teacher=theirs)
