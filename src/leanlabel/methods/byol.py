"""BYOL: bootstrap your own latent, no negatives [Grill et al., NeurIPS 2020].

In the paper's order: two views → online backbone, projector and predictor → target backbone and projector, without
gradient → each prediction meets the target of the other view → one update → the target follows by a moving average.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from leanlabel import dist
from leanlabel.banks.teacher import Teacher, rising_momentum
from leanlabel.config import RunConfig, Settings
from leanlabel.data.images import Images
from leanlabel.losses.bootstrap import bootstrap_cosine
from leanlabel.methods.image import Batch, ImageMethod
from leanlabel.methods.image_settings import ImageConfig


class BYOLSettings(Settings):
    """The objective."""

    name: Literal["byol"] = "byol"
    """Method."""
    momentum: float = Field(default=0.996, ge=0, le=1)
    """Momentum of the target at the start; it rises to 1 by half a cosine. The paper's for 1,000 epochs; shorter
    trainings need less, such as 0.97."""
    hidden: int = Field(default=4096, ge=1)
    """Hidden width of projector and predictor."""
    width: int = Field(default=256, ge=1)
    """Width of the projection."""


class BYOLConfig(ImageConfig):
    """All keys of a BYOL recipe."""

    method: BYOLSettings = BYOLSettings()
    """Objective."""


class BYOL(ImageMethod):
    """An online network predicts what a slowly following target network sees in the other view."""

    Config: ClassVar[type[RunConfig]] = BYOLConfig
    least_rows: ClassVar[int] = 2

    def build(self, images: Images) -> None:
        """Online backbone, projector and predictor; target backbone and projector."""
        super().build(images)
        method = self.cfg.method
        hidden, width = method.hidden, method.width
        self.projector = self.make_head(self.backbone.width, hidden, width, norm="batch", last_bias=False)
        self.predictor = self.make_head(width, hidden, width, norm="batch", last_bias=False)
        self.target_backbone = Teacher(self.backbone)
        self.target_projector = Teacher(self.projector)

    def took(self, names: Collection[str]) -> None:
        """Start the target where the online network starts, as from a seed."""
        if not all(name in names for name in self.state_dict() if name.startswith("target_")):
            self.target_backbone.follow(self.backbone, 0.0)
            self.target_projector.follow(self.projector, 0.0)

    @classmethod
    def follows_steps(cls, cfg: BYOLConfig) -> list[str]:
        """The momentum reaches 1 at the last iteration."""
        return [*super().follows_steps(cfg), "the rise of method.momentum"]

    def step(self, t: int, batch: Batch) -> None:
        """Predict the target's view of each image from the other view, both ways round; update; follow."""
        views = [self.view(k, t, batch) for k in (0, 1)]
        online = [self.projector(self.backbone(x)) for x in views]
        with torch.no_grad(), self.autocast():
            targets = [self.target_projector(self.target_backbone(x)) for x in views]
        loss: Tensor = online[0].new_zeros(())
        for one, other in ((0, 1), (1, 0)):
            losses = bootstrap_cosine(self.predictor(online[one]), targets[other], reduction="none")
            loss = loss + dist.global_mean(losses.sum(), len(losses))
        momentum = rising_momentum(t, self.cfg.steps, self.cfg.method.momentum)
        self.report(loss=loss, momentum=momentum)
        self.watch(t, online[0])
        self.update(loss)
        self.target_backbone.follow(self.backbone, momentum, buffers=False)
        self.target_projector.follow(self.projector, momentum, buffers=False)
