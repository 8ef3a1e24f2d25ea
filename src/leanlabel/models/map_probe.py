"""What an encoder gives, found out by a blank image: sizes of its maps, its border, the parameters that count."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from leanlabel.models.decoders import Level
from leanlabel.models.image import Backbone


@torch.no_grad()
def map_levels(encoder: Backbone, channels: int) -> list[Level]:
    """Channels and strides of an encoder's maps, from those of a blank image."""
    was, side = encoder.training, 2 * encoder.min_size
    encoder.eval()
    maps = encoder.maps(blank_image(encoder, side, channels))
    encoder.train(was)
    return [Level(one.shape[1], side // one.shape[2]) for one in maps]


def blank_image(encoder: nn.Module, side: int, channels: int | None = None) -> Tensor:
    """An image of zeros with the dtype and on the device of an encoder; channels as its first filters have."""
    first = next(encoder.parameters())
    if channels is None:
        channels = next(p.shape[1] for p in encoder.parameters() if p.ndim == 4)
    return torch.zeros(1, channels, side, side, dtype=first.dtype, device=first.device)


@torch.no_grad()
def leaves_border(encoder: Backbone) -> bool:
    """Whether what lies beyond the last whole patch is not read; encoders that pad give one more position for it."""
    was, side = encoder.training, 2 * encoder.min_size
    encoder.eval()
    counts = [encoder.maps(blank_image(encoder, one))[-1].shape[2] for one in (side, side + 1)]
    encoder.train(was)
    return counts[0] == counts[1]


def parameters_behind(outputs: Iterable[Tensor]) -> set[int]:
    """Identities of the parameters that outputs depend on, read from their graph without computing a gradient."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(id(leaf))
        waiting.extend(before for before, _ in node.next_functions)
    return found
