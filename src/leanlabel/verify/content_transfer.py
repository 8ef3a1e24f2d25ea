"""Cases of content transfer: zero-style losses of a linear model, rare classes, colours, weighted cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leanlabel.augment.tail import moments, tail_classes
from leanlabel.data.class_sampling import rare_class_shares
from leanlabel.losses.pixel import pixel_cross_entropy
from leanlabel.losses.zero_style import content_drift, emptiness, reconstruction
from leanlabel.verify.case import Case

SOURCE = "Lee et al. 2021 as reconstructed, {}; in float64 by plain loops elsewhere"
# A linear model on one pixel, by hand: image, image drawn again, content, and content, style and scores of the image
# that is drawn without style.
IMAGE, REBUILT = [1, 2, 3], [2.28, 0.52, 0.85]
CONTENT, AGAIN, STYLE = [2.5, 1], [1.625, 0.25], [0.45]
SCORES = [1.625, 0.25, 0.6875]
PARTS = (0.46428544897974344, 0.45, 0.7226460667243314)
SHARES = [0.40, 0.25, 0.20, 0.09, 0.03, 0.02, 0.007, 0.003]

Run = Callable[[torch.device, torch.dtype], Tensor]


def cases() -> list[Case]:
    """All cases of content transfer."""
    return [*_zero_style(), *_tail(), *_weighted()]


def _case(name: str, run: Run, values: Any, source: str) -> Case:
    return Case(
        "content-transfer", name, run, torch.tensor(values, dtype=torch.float64), SOURCE.format(source)
    )


def _pixel(values: list, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A map (1, C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float64).to(device, dtype).view(1, -1, 1, 1)


def _zero_style() -> list[Case]:
    def rebuilt(device: torch.device, dtype: torch.dtype) -> Tensor:
        return reconstruction(_pixel(IMAGE, device, dtype), _pixel(REBUILT, device, dtype))[None]

    def drift(device: torch.device, dtype: torch.dtype) -> Tensor:
        return content_drift(_pixel(AGAIN, device, dtype), _pixel(CONTENT, device, dtype))[None]

    def empty(device: torch.device, dtype: torch.dtype) -> Tensor:
        return emptiness(_pixel(STYLE, device, dtype))[None]

    def semantics(device: torch.device, dtype: torch.dtype) -> Tensor:
        label = torch.zeros(1, 1, 1, dtype=torch.int64, device=device)
        return pixel_cross_entropy(_pixel(SCORES, device, dtype) / 1.8, label)[None]

    def together(device: torch.device, dtype: torch.dtype) -> Tensor:
        return drift(device, dtype) + empty(device, dtype) + semantics(device, dtype)

    return [
        _case("images drawn again", rebuilt, [1.6366666666666667], "reconstruction"),
        _case("zero style, content", drift, PARTS[:1], "zero-style loss (a)"),
        _case("zero style, emptiness", empty, PARTS[1:2], "zero-style loss (b)"),
        _case("zero style, semantics", semantics, PARTS[2:], "zero-style loss (c)"),
        _case("zero style, whole", together, [sum(PARTS)], "zero-style loss"),
    ]


def _tail() -> list[Case]:
    def rarest(share: float) -> Run:
        # Which classes are rare is found in float64, whatever the precision.
        shares = torch.tensor(SHARES, dtype=torch.float64)
        return lambda device, dtype: tail_classes(shares, share).double()

    def drawn(temperature: float) -> Run:
        pixels, classes = torch.tensor([900, 60, 30, 10]), torch.tensor([False, True, True, True])
        return lambda device, dtype: rare_class_shares(pixels, temperature, classes).to(device)

    def recoloured(device: torch.device, dtype: torch.dtype) -> Tensor:
        images, like = (
            torch.tensor(values, device=device).to(dtype).view(1, 1, 2, 2)
            for values in ([0, 1, 2, 5], [10, 10, 14, 14])
        )
        return moments(images, like).flatten()

    found = [
        _case(f"rare classes, share {share:g}", rarest(share), [float(k in rare) for k in range(8)], "tail")
        for share, rare in ((0.01, {6, 7}), (0.04, {5, 6, 7}), (0.06, {4, 5, 6, 7}))
    ]
    warm = [0.0, 0.2500887766217052, 0.33758453779871656, 0.41232668557957824]
    cold = [0.0, 0.005899750401902698, 0.11849965453500962, 0.8756005950630877]
    return [
        *found,
        _case("rare classes drawn, T = 0.1", drawn(0.1), warm, "sampling"),
        _case("rare classes drawn, T = 0.01", drawn(0.01), cold, "sampling"),
        _case(
            "mean and deviation of colours",
            recoloured,
            [9.861910064700606, 10.930955032350303, 12.0, 15.207134902949093],
            "style of pasted pixels",
        ),
    ]


def _weighted() -> list[Case]:
    def loss(weights: list[float]) -> Run:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            rows = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [1, 1, 1]], device=device).to(dtype)
            labels = torch.tensor([0, 2, 2, 255], device=device).view(1, 1, 4)
            weight = torch.tensor(weights, device=device).view(1, 1, 4)
            scores = rows.T.reshape(1, 3, 1, 4)
            return pixel_cross_entropy(scores, labels, ignore=255, weight=weight, divide="count")[None]

        return run

    return [
        _case("pasted pixels, all weights 1", loss([1, 1, 1, 1]), [0.6286374788582988], "transfer loss"),
        _case("pasted pixels, a weight of 0.5", loss([1, 0.5, 1, 1]), [0.3700633598696237], "transfer loss"),
    ]
