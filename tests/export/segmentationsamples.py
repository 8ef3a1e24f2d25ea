"""Untrained segmentation models and small images for the tests of their exports."""

from __future__ import annotations

from typing import Any

import torch
from imagesamples import drawn
from torch import Tensor, nn

from leanlabel.data.class_map import ClassMap
from leanlabel.data.dense import DenseImages
from leanlabel.data.images import PixelArray
from leanlabel.engine.method import Exported
from leanlabel.export.segmentation import SegmentationModel
from leanlabel.export.writing import Model
from leanlabel.models.frozen_norm import FrozenBatchNorm
from leanlabel.models.segmenters import SegmenterSettings, build_segmenter, encoder_name

CLASSES = ClassMap(
    "own", ("road", "car", "wall"), ((128, 64, 128), (0, 0, 142), (70, 70, 70)), {7: 0, 26: 1, 12: 2}
)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TINY: dict[str, Any] = {"name": "tiny-fcn"}


def images(count: int = 2, height: int = 41, width: int = 53, channels: int = 3) -> Tensor:
    """Coarse coloured squares, so that classes form regions, with noise."""
    numbers = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(count, channels, -(-height // 8), -(-width // 8), generator=numbers)
    smooth = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :height, :width]
    noise = torch.rand(smooth.shape, generator=numbers)
    return (200 * smooth + 55 * noise).to(torch.uint8)


def dense(pixels: Tensor) -> DenseImages:
    return DenseImages("squares", PixelArray(pixels), None, CLASSES)


def network(channels: int = 3, **changes: Any) -> Any:
    """A network with drawn normalisations and filters, frozen ones included, that tells classes apart."""

    def make() -> nn.Module:
        made = build_segmenter(SegmenterSettings(**(changes or TINY)), len(CLASSES), channels)
        for part in made.modules():
            if isinstance(part, FrozenBatchNorm):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(std=0.2)
                part.running_var.uniform_(0.5, 2)
        for value in made.parameters():  # what starts as zero, too
            if value.ndim == 4 and not value.any():
                nn.init.normal_(value, std=0.1)
        return made

    made = drawn(make)
    last = [value for value in made.decoder.parameters() if len(value) == len(CLASSES)]
    with torch.no_grad():  # scores of standard deviation 1, no class above the others everywhere
        for value in last:
            value.div_(made(normalised(images(1, 64, 64, channels))).logits.std() if value.ndim == 4 else 1)
        mean = made(normalised(images(1, 64, 64, channels))).logits.mean((0, 2, 3))
        next(value for value in last if value.ndim == 1).sub_(mean)
    return made


def model(
    *,
    channels: int = 3,
    base: int | None = None,
    reading: dict[str, Any] | None = None,
    inference: dict[str, Any] | None = None,
    **changes: Any,
) -> Model:
    """What a method and a run would hand over."""
    made, settings = network(channels, **changes), SegmenterSettings(**(changes or TINY))
    usual = {"window": None, "overlap": 0.5, "scales": [1.0], "flip": False, "batch": 4}
    config = {
        "network": settings.model_dump(mode="json"),
        "channels": channels,
        "class_map": CLASSES.as_dict(),
        "backbone": {"name": encoder_name(settings), "stem": settings.stem, "norm": settings.norm},
        "preprocessing": {
            "mean": list((MEAN * channels)[:channels]),
            "std": list((STD * channels)[:channels]),
            "base": base,
            "reading": reading or {},
        },
        "inference": {**usual, **(inference or {})},
    }
    exported = Exported("segmentation", config, dict(made.state_dict()), "encoder.")
    return Model(exported, None, {"recipe": "sample", "supervised": True})


def held(**changes: Any) -> SegmentationModel:
    made = model(**changes)
    return SegmentationModel(made.exported.config, made.exported.tensors)


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor((row * len(pixels[0]))[: len(pixels[0])])[:, None, None] for row in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std
