"""Cases of prototype contrast: the loss and its gradient, how prototypes begin and move, parts of a batch as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leanlabel.banks.prototypes import ImageMeans, Prototypes, class_sums
from leanlabel.losses.prototype import prototype_contrast
from leanlabel.verify.case import Case, wide

SOURCE = "Xie et al. 2021, code, {}; in float64 by plain loops elsewhere"
# Small integers, exact in every precision; prototypes are kept in float32 or wider.
PROTOTYPES = [[0.6, 0.5, 0.1], [0.1, 0.2, 0.9], [0.5, 0.1, 0.3]]
LABELLED = [[3, 4, 0], [0, 0, 2], [1, 1, 1], [0, 0, 0]]
UNLABELLED = [[1, 0, 0], [0, 5, 0], [0, 3, 4], [2, 2, 1]]
LABELS = [0, 1, 255, 2]
LOSSES = {
    100.0: (1.0960372930715234, 1.0984656630417637),
    1.0: (0.8697048369307488, 1.0988487219910301),
    0.1: (0.37598493007558137, 2.060282541760695),
}
SLOPES = {
    100.0: [-1.0596338223510288e-05, 7.947253667632722e-06, 2.2177474141361672e-04],
    0.1: [1.3429194844994832e-03, -1.0071896133746108e-03, 5.250442256904497e-03],
}
# Pixels of two ranks, all of class 0, and of two images.
RANKS = ([[3, 4, 0], [4, 3, 0]], [[1, 2, 2]])
IMAGES = (
    ([[3, 4, 0], [4, 3, 0], [0, 0, 1]], [0, 0, 1]),
    ([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 3, 4]], [0, 255, 1, 1]),
)

Run = Callable[[torch.device, torch.dtype], Tensor]


def cases() -> list[Case]:
    """All cases of SPCL."""
    return [*_losses(), *_means(), *_parts()]


def _case(name: str, run: Run, values: Any, source: str) -> Case:
    return Case("spcl", name, run, torch.tensor(values, dtype=torch.float64), SOURCE.format(source))


def _map(rows: list[list[int]], device: torch.device, dtype: torch.dtype) -> Tensor:
    """N pixels as features (1, 3, 1, N)."""
    return torch.tensor(rows, device=device).to(dtype).T[None, :, None].contiguous()


def _labels(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, 1, -1)


def _prototypes(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(PROTOTYPES, dtype=torch.float64).to(device, wide(dtype))


def _bank(device: torch.device, dtype: torch.dtype, **settings: Any) -> Prototypes:
    bank = Prototypes(3, 3, **settings).to(device)
    return bank.double() if dtype == torch.float64 else bank


def _losses() -> list[Case]:
    def loss(tau: float) -> Run:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            prototypes, labels = _prototypes(device, dtype), _labels(LABELS, device)
            found = [
                prototype_contrast(_map(rows, device, dtype), labels, prototypes, tau=tau, ignore=255)
                for rows in (LABELLED, UNLABELLED)
            ]
            return torch.stack([*found, found[0] + found[1]])

        return run

    def slope(tau: float, pixel: int) -> Run:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            features = _map(LABELLED, device, dtype).requires_grad_()
            value = prototype_contrast(
                features, _labels(LABELS, device), _prototypes(device, dtype), tau=tau, ignore=255
            )
            return torch.autograd.grad(value, features)[0][0, :, 0, pixel]

        return run

    found = [
        _case(f"contrast, tau = {tau:g}", loss(tau), [*values, sum(values)], "loss")
        for tau, values in LOSSES.items()
    ]
    found += [
        _case(f"contrast, gradient, tau = {tau:g}", slope(tau, 0), values, "loss")
        for tau, values in SLOPES.items()
    ]
    return [*found, _case("contrast, gradient of a zero pixel", slope(0.1, 3), [0.0, 0.0, 0.0], "loss")]


def _means() -> list[Case]:
    def moved(absent: Any) -> Run:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            bank = _bank(device, dtype, absent=absent)
            bank.begin(_prototypes(device, dtype), torch.ones(3, device=device))
            rows = [[3, 4, 0], [4, 3, 0], [0, 0, 2], [0, 5, 12], [1, 2, 2]]
            bank.update(_map(rows, device, dtype), _labels([0, 0, 255, 2, 2], device), ignore=255)
            return bank.values

        return run

    def begun(device: torch.device, dtype: torch.dtype) -> Tensor:
        means = ImageMeans(3, 3)
        for rows, labels in IMAGES:
            means.add(_map(rows, device, dtype), _labels(labels, device), ignore=255)
        return means.result()[0]

    first, last = [0.69, 0.68, 0.01], [0.2, 0.4830769230769231, 0.7453846153846155]
    image_means = [[0.85, 0.35, 0.0], [0.0, 0.15, 0.95], [0.0, 0.0, 0.0]]
    return [
        _case("prototypes, update", moved("keep"), [first, [0.1, 0.2, 0.9], last], "update"),
        _case("prototypes, update with decay", moved("decay"), [first, [0.01, 0.02, 0.09], last], "update"),
        _case("prototypes, means over images", begun, image_means, "initialisation"),
    ]


def _parts() -> list[Case]:
    """What several processes compute: sums and numbers are added, and only then divided."""

    def loss(device: torch.device, dtype: torch.dtype) -> Tensor:
        features, labels = _map(UNLABELLED, device, dtype), _labels(LABELS, device)
        total, count = torch.zeros((), dtype=wide(dtype), device=device), 0
        for part in (slice(0, 1), slice(1, 4)):
            own = labels[..., part]
            here = int((own != 255).sum())
            mean = prototype_contrast(
                features[..., part], own, _prototypes(device, dtype), tau=0.1, ignore=255
            )
            total, count = total + mean * here, count + here
        return (total / count)[None]

    def mean(device: torch.device, dtype: torch.dtype) -> Tensor:
        parts = [class_sums(_map(rows, device, dtype), _labels([0] * len(rows), device), 3) for rows in RANKS]
        sums, counts = (torch.stack(list(values)).sum(0) for values in zip(*parts, strict=True))
        return sums[0] / counts[0]

    centre = [0.5777777777777777, 0.6888888888888888, 0.2222222222222222]
    return [
        _case("two parts, loss", loss, LOSSES[0.1][1:], "corrected: summed over processes"),
        _case("two parts, class mean", mean, centre, "corrected: summed over processes"),
    ]
