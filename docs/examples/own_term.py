"""Neighbouring pixels of one colour should be of one class: a complete term of dense training."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from leanlabel import dist
from leanlabel.config import Settings
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms import Term


class SmoothSettings(Settings):
    contrast: float = Field(default=5.0, gt=0)
    """How fast the pull between neighbours falls with the difference of their colours."""


class Smooth(Term):
    """Mean squared difference of neighbouring probabilities, less where colours differ."""

    Settings: ClassVar[type[Settings]] = SmoothSettings

    def loss(self, step: Step) -> dict[str, Tensor]:
        """This rank's share of the mean over all neighbours, labelled or not."""
        p = step.logits.softmax(1)
        colours = F.interpolate(step.images, p.shape[-2:], mode="area")
        total, count = p.new_zeros(()), 0
        for dim in (2, 3):
            alike = (-self.settings.contrast * colours.diff(dim=dim).abs().mean(1)).exp()
            apart = p.diff(dim=dim).square().sum(1)
            total, count = total + (alike * apart).sum(), count + apart.numel()
        return {"smooth": dist.global_mean(total, count)}
