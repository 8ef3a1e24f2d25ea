"""The crop that a multi-resolution network reads at full scale learns from labels of its own."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from leanlabel.config import Settings
from leanlabel.errors import InputError
from leanlabel.losses.pixel import align, pixel_cross_entropy
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms.pixel import CrossEntropySettings, _Weighted


class DetailSettings(CrossEntropySettings):
    """Pixel-wise cross-entropy of the crop. In HRDA its weight is 0.1, and 0.9 that of the fused scores."""


class Detail(_Weighted):
    """Mean cross-entropy over the labelled pixels inside the crop, of its scores before they are fused.

    Without it, the crop's scores learn only as far as the attention lets them through [Hoyer et al. 2022b].
    """

    Settings: ClassVar[type[Settings]] = DetailSettings

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean over the pixels of the crops of all ranks; weighted by pixel where the batch has weights.

        Raises:
            InputError: the network reads no crop.
        """
        if step.output.detail is None:
            raise InputError(
                "method.terms, detail: the network reads no crop at full scale.",
                "Set model.multi_resolution=true, or take detail out of method.terms.",
            )
        scores, (top, left, height, width) = step.output.detail
        rows, columns = slice(top, top + height), slice(left, left + width)
        logits, labels = align(scores, step.labels[:, rows, columns], at=self.settings.at)
        weights = step.weights
        if weights is not None:
            weights = align(scores, weights[:, rows, columns], at=self.settings.at)[1]
        value = pixel_cross_entropy(
            logits,
            labels,
            class_weights=self.class_weights,
            smoothing=self.settings.smoothing,
            weight=weights,
        )
        return {"detail": value}
