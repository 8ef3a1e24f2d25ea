"""Time and memory of a training on images, from plain formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leanlabel.models.backbones import BackboneSettings, build_backbone

CPU = 100e9
"""Floating point operations a second that two processor cores are taken to do; measured 90 to 180 on idle ones."""
GPU = 5.5e12
"""The same for a GPU: what the published 53 hours of MoCo-v2 on 8 V100 come to; newer ones are faster."""
VIEWS = 40e-9
"""Seconds that two processor cores take per pixel of a random view."""
OVERHEAD = {True: 0.02, False: 0.01}
"""Seconds of an iteration whatever the size, with and without a GPU."""
FRAMEWORK = 0.45
"""GiB that torch takes before any data."""


@dataclass(frozen=True)
class Cost:
    """What a training is expected to take.

    Args:
        seconds: of one iteration.
        memory: peak, in GiB.
    """

    seconds: float
    memory: float


def estimate(
    model: BackboneSettings, size: int, batch: int, queue: int, width: int, *, gpu: bool, stored: int = 0
) -> Cost:
    """Estimate one iteration of MoCo: a forward pass with gradient and one without, and a contrast with the queue.

    With f operations per image and forward pass, B images and K keys of width d: 4 B f + 6 B K d operations, and two
    views of B images of size^2 pixels. Memory: all maps of one pass, weights with momentum and copy, queue.

    Args:
        model: backbone; it is not built in memory.
        size: side of the views.
        batch: B.
        queue: K.
        width: d.
        gpu: whether there is one.
        stored: bytes of pixels kept in memory.
    """
    operations, values, weights = per_image(model, size)
    work = 4 * batch * operations + 6 * batch * queue * width
    seconds = OVERHEAD[gpu] + work / (GPU if gpu else CPU) + (0 if gpu else VIEWS * 2 * batch * size**2)
    held = 4 * (2 * batch * values + 4 * weights + 2 * queue * width + 6 * batch * 3 * size**2) + stored
    return Cost(seconds, FRAMEWORK + held / 2**30)


def per_image(model: BackboneSettings, size: int) -> tuple[int, int, int]:
    """Operations of a forward pass, values of all maps that it makes, and weights; the network takes no memory."""
    with torch.device("meta"):
        net = build_backbone(model).eval()
        image = torch.zeros(1, 3, size, size)
    return one_pass(net, image)


def one_pass(net: nn.Module, image: torch.Tensor) -> tuple[int, int, int]:
    """Operations of a forward pass, values of all maps of its layers, and weights.

    Args:
        net: in evaluation mode; on the device "meta" nothing is computed and no memory is taken.
        image: (B, C, H, W), on the same device.
    """
    values: list[int] = []

    def count(_: nn.Module, __: Any, output: Any) -> None:
        values.append(output.numel() if isinstance(output, torch.Tensor) else 0)

    for part in net.modules():
        kept = not isinstance(part, nn.Identity) and not getattr(part, "inplace", False)
        if kept and not list(part.children()):
            part.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    return counter.get_total_flops(), sum(values), sum(p.numel() for p in net.parameters())
