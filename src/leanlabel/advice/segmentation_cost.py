"""Time and memory of a training of a segmentation network, from plain formulas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from leanlabel.advice.segmentation_facts import DenseFacts
from leanlabel.advice.ssl_cost import CPU, FRAMEWORK, GPU, OVERHEAD, VIEWS, Cost, one_pass
from leanlabel.models.segmenters import SegmenterSettings, build_segmenter

PER_VALUE = 7e-9
"""Seconds that a processor takes per value of a map, forth and back, beside its products; measured on one idle core."""


def expected_cost(facts: DenseFacts, model: Mapping[str, Any], size: Sequence[int], batch: int) -> Cost:
    """Estimate one iteration on measured data, pixels in memory included.

    Args:
        facts: of the images as they are read.
        model: the section ``model`` of a recipe.
        size: height and width of the crop.
        batch: images per iteration.
    """
    settings = SegmenterSettings.model_validate_json(json.dumps(model), strict=True)
    height, width = size
    return estimate(
        settings,
        len(facts.names),
        (height, width),
        batch,
        channels=facts.channels,
        gpu=facts.gpu,
        stored=0 if facts.gpu else facts.stored,
    )


def estimate(
    model: SegmenterSettings,
    classes: int,
    crop: tuple[int, int],
    batch: int,
    *,
    channels: int = 3,
    gpu: bool,
    stored: int = 0,
) -> Cost:
    """Estimate one iteration of supervised training: views, a pass with gradient, the loss at full size.

    With f operations and v values of maps per image, B crops of h x w pixels and K classes: 3 B f operations, and on a
    processor a time for each of the B (v + K h w) values. Memory: all maps with their gradients, scores at full size
    four times, weights with gradient and two averages, the images.

    Args:
        model: network; it is not built in memory.
        classes: K.
        crop: h and w.
        batch: B.
        channels: of the images.
        gpu: whether there is one.
        stored: bytes of pixels and masks kept in memory.

    >>> small = estimate(SegmenterSettings(name="tiny-fcn"), 11, (96, 128), 8, gpu=False)
    >>> round(small.seconds, 2), round(small.memory, 1)
    (0.06, 0.5)
    """
    operations, values, weights = per_image(model.model_dump_json(), classes, channels, crop)
    pixels = crop[0] * crop[1]
    work, scores = 3 * batch * operations, batch * classes * pixels
    seconds = OVERHEAD[gpu] + work / (GPU if gpu else CPU)
    if not gpu:
        seconds += PER_VALUE * (batch * values + scores) + VIEWS * batch * pixels
    held = 4 * (2 * batch * values + 4 * scores + 4 * weights + 2 * batch * channels * pixels) + stored
    return Cost(seconds, FRAMEWORK + held / 2**30)


@lru_cache(maxsize=64)
def per_image(model: str, classes: int, channels: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """Operations of a forward pass, values of all maps that it makes, and weights; the network takes no memory.

    Args:
        model: settings as JSON.
        classes: K.
        channels: of the image.
        size: its height and width.
    """
    settings = SegmenterSettings.model_validate_json(model, strict=True)
    with torch.device("meta"):
        net = build_segmenter(settings, classes, channels).eval()
        image = torch.zeros(1, channels, *size)
    return one_pass(net, image)
