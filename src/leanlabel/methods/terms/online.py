"""What terms share that learn from a teacher's labels of this iteration's unlabelled images."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from torch import Tensor

from leanlabel.augment.photometric import ColourSettings
from leanlabel.config import Settings
from leanlabel.losses.confident import Confident, confident_labels
from leanlabel.losses.pixel import pixel_cross_entropy
from leanlabel.methods.dense_step import Step

Share = Annotated[float, Field(ge=0, le=1)]
Margin = Annotated[float, Field(ge=0, lt=0.5)]

STRONG = ColourSettings(
    jitter=(0.2, 0.2, 0.2, 0.2), jitter_probability=0.8, blur=0.5, blur_sigma=(0.15, 1.15)
)
"""Colours of what the student is to label: those of DAFormer and MIC."""


class OnlineSettings(Settings):
    """Labels that the teacher gives in every iteration, and the colours that the student sees."""

    threshold: Share = 0.968
    """Probability from which on the teacher is sure of a pixel. The share of sure pixels of the whole batch is the
    weight of all of its labels."""
    margins: tuple[Share, Share] = (0.0, 0.0)
    """Shares of the height at the top and at the bottom of the images where its labels have weight 0: places that
    cameras distort or that show their own car. Published for Cityscapes: 15 and 120 of 512 rows, [0.0293, 0.2344]."""
    sides: Margin = 0.0
    """The same on the left and on the right, as a share of the width."""
    per_image: bool = False
    """Weigh each image by its own share of sure pixels."""
    strong: ColourSettings = STRONG
    """How the colours of what the student reads are changed; the teacher reads the images as they are."""

    @field_validator("margins")
    @classmethod
    def _something_left(cls, margins: tuple[float, float]) -> tuple[float, float]:
        if sum(margins) >= 1:
            raise ValueError("two shares that leave some of the height, so that their sum is below 1")
        return margins


def online_labels(
    step: Step,
    threshold: float,
    top: float = 0.0,
    bottom: float = 0.0,
    *,
    sides: float = 0.0,
    per_image: bool = False,
) -> Confident:
    """The teacher's labels of the unlabelled images at their size; computed once per iteration and settings.

    Pixels whose weight in the batch is 0, such as padding, are no pixels: -100, weight 0, not counted.

    Args:
        step: the iteration; ``step.target`` keeps the result. Logs the share of sure pixels as ``confident``.
        threshold: probability from which on a pixel is sure.
        top, bottom: margins of weight 0, as shares of the height.
        sides: margin on the left and on the right, as a share of the width.
        per_image: a share for each image.

    Returns:
        Labels, share and weights, without gradient. Collective on several ranks.
    """
    target = step.target
    found: dict[tuple[float | bool, ...], Confident] = vars(target).setdefault("online labels", {})
    key = (threshold, top, bottom, sides, per_image)
    if key not in found:
        height, width = target.images.shape[-2:]
        labels = confident_labels(
            enlarged(target, target.taught.logits, (height, width)),
            threshold,
            top=round(top * height),
            bottom=round(bottom * height),
            left=round(sides * width),
            right=round(sides * width),
            per_image=per_image,
            valid=None if target.weights is None else target.weights > 0,
        )
        if target.weights is not None:
            labels = labels._replace(weights=labels.weights * target.weights)
        found[key] = labels
        step.report(confident=labels.share.mean())
    return found[key]


def taught_labels(step: Step, settings: OnlineSettings) -> Confident:
    """:func:`online_labels` as a term's settings say."""
    top, bottom = settings.margins
    return online_labels(
        step, settings.threshold, top, bottom, sides=settings.sides, per_image=settings.per_image
    )


def weighted_loss(step: Step, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of what the student says about images: sum of w l over the number of labelled pixels.

    The weights do not enter the divisor: where all are small, the loss is small.

    Args:
        step: the iteration.
        images: (B, C, H, W), normalised.
        labels: (B, H, W) int64, -100 ignored.
        weights: (B, H, W) >= 0.

    Returns:
        Scalar with gradient to the student, this rank's share of the mean over all ranks.
    """
    height, width = labels.shape[-2:]
    logits = enlarged(step, step.forward(images).logits, (height, width))
    return pixel_cross_entropy(logits, labels, weight=weights, divide="count")


def enlarged(step: Step, logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores (B, K, h, w) brought to another size as the method does it."""
    return step.enlarge(logits, size)
