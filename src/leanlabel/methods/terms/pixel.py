"""Terms that compare every pixel, or every class, with its label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from leanlabel.config import Settings
from leanlabel.losses.overlap import lovasz_softmax, soft_dice
from leanlabel.losses.pixel import (
    align,
    class_balanced_weights,
    focal,
    max_pooling_loss,
    ohem,
    pixel_cross_entropy,
    wide,
)
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms import Setting, Term

Rule = Literal["none", "inverse-log", "median", "effective", "sqrt-inverse"]
Place = Literal["input", "feature"]


class Placed(Settings):
    """Where a term compares."""

    at: Place = "input"
    """input: scores are brought to the size of the labels; feature: labels are thinned out to the stride of the
    scores."""


class Weighted(Placed):
    """Where a term compares, and how much classes count."""

    class_weights: Rule | tuple[Annotated[float, Field(ge=0)], ...] = "none"
    """Weight of every class: none (all 1), by its share of the training pixels (inverse-log, median, effective,
    sqrt-inverse), or as many numbers as there are classes."""


class CrossEntropySettings(Weighted):
    """Pixel-wise cross-entropy."""

    later: ClassVar[tuple[str, ...]] = ("divisor",)
    """Keys that were added after results were recorded: at their default they are not part of what names a run."""
    divisor: float = Field(default=1.0, gt=0)
    """Scores are divided by it in this loss only: above 1, it softens what the network is driven to."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of every target that is spread evenly over the classes."""


class OhemSettings(Weighted):
    """Cross-entropy of the hardest pixels."""

    threshold: float = Field(default=0.7, gt=0, le=1)
    """Pixels whose class has a lower probability are kept."""
    min_kept: float = Field(default=0.0625, gt=0, le=1)
    """Share of the labelled pixels that is kept at least."""


class FocalSettings(Weighted):
    """Focal loss."""

    gamma: float = Field(default=2.0, ge=0)
    """Exponent of 1 - p; 0 is cross-entropy."""


class MaxPoolingSettings(Placed):
    """Loss max-pooling."""

    p: float = Field(default=1.7, ge=1)
    """Norm that bounds the weights; 1 averages the worst pixels."""
    support: float = Field(default=0.25, gt=0, le=1)
    """Smallest share of the labelled pixels that carries weight; 1 is cross-entropy."""


class DiceSettings(Placed):
    """Soft Dice loss."""

    smooth: float = Field(default=1.0, ge=0)
    """Added to numerator and denominator of every class."""


class LovaszSettings(Placed):
    """Lovász-softmax loss."""


def placed(step: Step, at: Place) -> tuple[Tensor, Tensor]:
    """Scores (B, K, h, w) and labels (B, h, w) of one size."""
    if at == "input":
        return step.full_logits, step.labels
    return align(step.logits, step.labels, at="feature")


def placed_weights(step: Step, size: torch.Size) -> Tensor | None:
    """Weights of the pixels at the size at which they are compared."""
    if step.weights is None or step.weights.shape[-2:] == size:
        return step.weights
    rows, columns = (
        torch.arange(small, device=step.weights.device) * large // small
        for small, large in zip(size, step.weights.shape[-2:], strict=True)
    )
    return step.weights[:, rows][:, :, columns]


def weights_of(rule: Rule | Sequence[float], known: Setting) -> Tensor | None:
    """Weights (K,) of the classes; None: all 1.

    Raises:
        ValueError: not as many numbers as classes.
    """
    if rule == "none":
        return None
    if isinstance(rule, str):
        return class_balanced_weights(torch.tensor(known.pixels), rule=rule).float()
    if len(rule) != len(known.classes):
        raise ValueError(f"class_weights: {len(rule)} numbers for {len(known.classes)} classes")
    return torch.tensor(rule)


class _Weighted(Term):
    """A term with class weights, which are a buffer."""

    class_weights: Tensor | None

    def __init__(self, settings: Any, known: Setting) -> None:
        super().__init__(settings, known)
        self.register_buffer("class_weights", weights_of(settings.class_weights, known), persistent=False)


class CrossEntropy(_Weighted):
    """Mean cross-entropy over all labelled pixels."""

    Settings: ClassVar[type[Settings]] = CrossEntropySettings

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean over the labelled pixels of all ranks; weighted by pixel where the batch has weights."""
        return {"cross_entropy": self.compare(step)}

    def compare(self, step: Step) -> Tensor:
        """Mean cross-entropy of one batch of a step: the labelled one, or its target; a scalar."""
        settings = self.settings
        logits, labels = placed(step, settings.at)
        return pixel_cross_entropy(
            logits if settings.divisor == 1 else wide(logits) / settings.divisor,
            labels,
            class_weights=self.class_weights,
            smoothing=settings.smoothing,
            weight=placed_weights(step, labels.shape[-2:]),
        )


class Ohem(_Weighted):
    """Cross-entropy over the pixels that the network is least sure of."""

    Settings: ClassVar[type[Settings]] = OhemSettings

    def loss(self, step: Step) -> dict[str, Tensor]:
        """Mean over the kept pixels."""
        logits, labels = placed(step, self.settings.at)
        kept = self.settings.min_kept
        value = ohem(
            logits, labels, threshold=self.settings.threshold, min_kept=kept, class_weights=self.class_weights
        )
        return {"ohem": value}


class Focal(_Weighted):
    """Cross-entropy that counts sure pixels less."""

    Settings: ClassVar[type[Settings]] = FocalSettings

    def loss(self, step: Step) -> dict[str, Tensor]:
        """Mean over the labelled pixels."""
        logits, labels = placed(step, self.settings.at)
        return {"focal": focal(logits, labels, gamma=self.settings.gamma, class_weights=self.class_weights)}


class MaxPooling(Term):
    """Cross-entropy under the worst weights that a norm allows."""

    Settings: ClassVar[type[Settings]] = MaxPoolingSettings

    def loss(self, step: Step) -> dict[str, Tensor]:
        """Sum of the weighted losses of each rank's pixels."""
        logits, labels = placed(step, self.settings.at)
        found = max_pooling_loss(logits, labels, p=self.settings.p, support=self.settings.support)
        return {"max_pooling": found}


class Dice(Term):
    """One minus the overlap of each class."""

    Settings: ClassVar[type[Settings]] = DiceSettings

    def loss(self, step: Step) -> dict[str, Tensor]:
        """Mean over the classes."""
        logits, labels = placed(step, self.settings.at)
        return {"dice": soft_dice(logits, labels, smooth=self.settings.smooth)}


class Lovasz(Term):
    """A convex extension of one minus the intersection over union."""

    Settings: ClassVar[type[Settings]] = LovaszSettings

    def loss(self, step: Step) -> dict[str, Tensor]:
        """Mean over the classes that are present."""
        logits, labels = placed(step, self.settings.at)
        return {"lovasz": lovasz_softmax(logits, labels)}
