"""Untrained image models and small images for the tests of exports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from leanlabel.data.images import Images, PixelArray
from leanlabel.engine.method import Exported
from leanlabel.evaluation.classifier import Classifier, rows_of
from leanlabel.export.writing import Model
from leanlabel.models.backbones import BackboneSettings, build_backbone

NAMES = ("left", 'a "quoted", name', "right")
SMALL: dict[str, Any] = {"name": "small-cnn", "widths": (4, 6)}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def images(n: int = 10, height: int = 20, width: int = 24, seed: int = 0, **changes: Any) -> Images:
    """Noise with a colour of its own for each image."""
    numbers = np.random.default_rng(seed)
    colour = numbers.integers(0, 200, (n, 3, 1, 1))
    pixels = colour + numbers.integers(0, 56, (n, 3, height, width))
    values = {
        "name": f"noise-{n}",
        "pixels": PixelArray(torch.from_numpy(pixels.astype(np.uint8))),
        "y": torch.arange(n) % 3,
    }
    return Images(**{**values, **changes})


def drawn(make: Callable[[], nn.Module]) -> Any:
    """A network whose normalisations have drawn weights and running estimates; the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make()
        for part in made.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.GroupNorm) and part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, std=0.2)
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.normal_(std=0.2)
                part.running_var.uniform_(0.5, 2)
    return made.eval()


def network(**changes: Any) -> Any:
    """A drawn backbone of these settings."""
    return drawn(lambda: build_backbone(BackboneSettings(**(changes or SMALL))))


def model(
    *,
    size: int = 16,
    resize: int | None = None,
    readout: bool = True,
    data: Images | None = None,
    projector: nn.Sequential | None = None,
    reading: dict[str, Any] | None = None,
    **changes: Any,
) -> Model:
    """What a method and a run would hand over."""
    made = network(**changes)
    settings = BackboneSettings(**(changes or SMALL))
    config = {
        "backbone": settings.model_dump(mode="json"),
        "preprocessing": {"size": size, "resize": resize, "mean": list(MEAN), "std": list(STD)},
    }
    if reading is not None:
        config["preprocessing"]["reading"] = reading
    tensors = {f"backbone.{name}": value for name, value in made.state_dict().items()}
    width = made.width
    if projector is not None:
        tensors |= {f"projector.{name}": value for name, value in projector.state_dict().items()}
        width = [part.out_features for part in projector if isinstance(part, nn.Linear)][-1]
    about = {"kind": "logistic-l2", "rows_of": rows_of(data) if data is not None else None}
    weight = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    rule = Classifier(weight, torch.tensor([0.0, 0.5, -torch.inf]), True, NAMES, torch.tensor([2, 3]), about)
    exported = Exported("images", config, tensors, "backbone.")
    return Model(exported, rule if readout else None, {"recipe": "sample", "method": "none"})
