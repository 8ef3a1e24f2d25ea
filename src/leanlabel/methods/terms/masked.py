"""Unlabelled images with most of their blocks hidden: what is hidden must be guessed from what is around it."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from leanlabel.augment.block_masks import apply_block_mask, block_mask
from leanlabel.config import Settings
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms import Term
from leanlabel.methods.terms.online import OnlineSettings, Share, taught_labels, weighted_loss


class MaskedConsistencySettings(OnlineSettings):
    """What is hidden."""

    block: int = Field(default=64, ge=1)
    """Side of the hidden blocks in pixels of the crop. Published for crops of 512 and more; smaller images need
    smaller blocks: an eighth of the crop is alike."""
    ratio: Share = 0.7
    """Share of the blocks that is hidden."""


class MaskedConsistency(Term):
    """Cross-entropy of masked unlabelled images to the labels that the teacher gives to the whole ones [MIC]."""

    Settings: ClassVar[type[Settings]] = MaskedConsistencySettings
    teacher: ClassVar[bool] = True
    source: ClassVar[bool] = False
    target: ClassVar[bool] = True

    def masked(self, step: Step) -> Tensor:
        """What the student reads: unlabelled images in other colours, with blocks of them set to the mean colour."""
        target, s = step.target, self.settings
        images = step.recolour(target.images, s.strong, target.draw("masked colours"))
        batch, _, height, width = images.shape
        kept = block_mask((batch, height, width), s.block, s.ratio, target.draw("block mask"))
        return apply_block_mask(images, kept)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean over the pixels of all ranks of weight times cross-entropy, hidden pixels included."""
        taught = taught_labels(step, self.settings)
        return {"masked": weighted_loss(step, self.masked(step), taught.labels, taught.weights)}
