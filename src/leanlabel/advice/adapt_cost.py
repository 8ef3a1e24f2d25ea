"""Time and memory of an adaptation, from those of supervised training on the same crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from leanlabel.advice.segmentation_cost import expected_cost
from leanlabel.advice.segmentation_facts import DenseFacts
from leanlabel.advice.ssl_cost import FRAMEWORK, OVERHEAD, Cost

Way = Literal["mixes", "pairs"]
"""mixes: labelled images, mixes and masked images, and a teacher; pairs: images of the target, and a reference."""
PASSES: dict[Way, tuple[int, int]] = {"mixes": (3, 1), "pairs": (1, 1)}
"""Passes of each image of a batch with gradient, and without."""


def adaptation_cost(
    facts: DenseFacts, model: Mapping[str, Any], size: Sequence[int], batch: int, way: Way
) -> Cost:
    """Estimate one iteration: passes with gradient take three forward passes each, those without one.

    All passes with gradient are kept until the sum of their losses is differentiated.

    Args:
        facts: of the labelled images as they are read.
        model: the section ``model`` of a recipe.
        size: height and width of the crop.
        batch: images of each domain per iteration.
        way: what is trained on.
    """
    one = expected_cost(facts, model, size, batch)
    with_gradient, without = PASSES[way]
    idle = OVERHEAD[facts.gpu]
    stored = 0.0 if facts.gpu else facts.stored / 2**30
    seconds = idle + (one.seconds - idle) * (with_gradient + without / 3)
    return Cost(seconds, FRAMEWORK + 2 * stored + (one.memory - FRAMEWORK - stored) * with_gradient)
