"""Cases of adaptation: regression between feature maps, the adversary, the divisor, rare classes, online labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leanlabel.data.class_sampling import rare_class_shares
from leanlabel.losses.adversary import domain_cross_entropy
from leanlabel.losses.confident import confident_labels
from leanlabel.losses.feature_regression import Tolerance, regression_loss
from leanlabel.losses.pixel import pixel_cross_entropy
from leanlabel.verify.case import Case

REGRESSION = "Benbihi et al. 2018 as reconstructed; by hand"
ADAPTATION = "{}; in float64 by plain loops elsewhere"
# Small numbers, exact in every precision: reference and student, two channels of 2 x 2.
REFERENCE = [[[1, 2], [0, -1]], [[0.5, 0], [2, 1]]]
STUDENT = [[[0, 2], [1, -1]], [[0.5, 1], [1, 0]]]

Run = Callable[[torch.device, torch.dtype], Tensor]


def cases() -> list[Case]:
    """All cases of adaptation."""
    return [*_regression(), *_rest()]


def _case(name: str, run: Run, values: Any, source: str) -> Case:
    return Case("adapt", name, run, torch.tensor(values, dtype=torch.float64), source)


def _maps(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    student, reference = (torch.tensor(rows, device=device).to(dtype)[None] for rows in (STUDENT, REFERENCE))
    return student.requires_grad_(), reference


def _regression() -> list[Case]:
    def loss(**settings: Any) -> Run:
        return lambda device, dtype: regression_loss(*_maps(device, dtype), **settings)[None]

    def slope(device: torch.device, dtype: torch.dtype) -> Tensor:
        student, reference = _maps(device, dtype)
        return torch.autograd.grad(regression_loss(student, reference), student)[0][0]

    def row(kind: Any) -> Run:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            reference, student = (
                torch.tensor(values, device=device).to(dtype).view(1, 1, 1, 5)
                for values in ([0.0, 1, 0, 0, 2], [1.0, 0, 0, 2, 0])
            )
            tolerance = None if kind is None else Tolerance(kind=kind, size=1)
            return regression_loss(student, reference, tolerance=tolerance)[None]

        return run

    gradient = [[[-0.25, 0], [0.25, 0]], [[0, 0.25], [-0.25, -0.25]]]
    return [
        _case("regression, squared", loss(), [0.625], REGRESSION),
        _case("regression, gradient", slope, gradient, REGRESSION),
        _case("regression, relative", loss(kind="relative"), [0.4444444444444444], REGRESSION),
        _case("regression, absolute", loss(kind="l1"), [0.625], REGRESSION),
        _case("regression, smooth", loss(kind="smooth-l1"), [0.3125], REGRESSION),
        _case("regression, cosine", loss(kind="cosine"), [0.31103641278175786], REGRESSION),
        _case("regression, pooled", loss(tolerance=Tolerance(kind="pool", size=2)), [0.03125], REGRESSION),
        _case("regression, a row", row(None), [2.0], REGRESSION),
        _case("regression, nearest match", row("local"), [0.0], REGRESSION),
        _case("regression, one shift", row("global"), [0.0], REGRESSION),
    ]


def _rest() -> list[Case]:
    def adversary(domain: Any) -> Run:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            scores = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64).to(device, dtype)
            return domain_cross_entropy(scores.view(1, 1, 1, 3), domain)[None]

        return run

    def divided(divisor: float) -> Run:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            rows = torch.tensor([[2.0, 1, 0], [0, 0, 3], [1, -1, 0.5]], device=device).to(dtype)
            labels = torch.tensor([0, 1, 255], device=device).view(1, 1, 3)
            return pixel_cross_entropy(rows.T.reshape(1, 3, 1, 3) / divisor, labels, ignore=255)[None]

        return run

    def share(device: torch.device, dtype: torch.dtype) -> Tensor:
        sure = torch.tensor([0.99, 0.97, 0.968, 0.5, 0.9679, 0.2], dtype=torch.float64, device=device)
        # The probability of class 0 among 8, so that it is the largest one even at 0.2.
        scores = (sure / (1 - sure) * 7).log()
        logits = torch.cat([scores.view(1, 1, 1, 6), torch.zeros(1, 7, 1, 6, device=device)], 1)
        return confident_labels(logits, 0.968).share.reshape(1)

    def rare(temperature: float) -> Run:
        pixels = torch.tensor([5000, 3000, 1500, 400, 100])
        return lambda device, dtype: rare_class_shares(pixels, temperature).to(device)

    tempered = [1.7512644604326706, 1.3152613509531212]
    frequent = [4.994233276911156e-22, 2.4230281637146785e-13, 7.920921161172481e-07]
    return [
        _case("adversary, source", adversary(0), [1.0815219076165103], ADAPTATION.format("Tsai et al. 2018")),
        _case("adversary, target", adversary(1), [0.7148552409498437], ADAPTATION.format("Tsai et al. 2018")),
        _case("cross-entropy", divided(1.0), tempered[:1], ADAPTATION.format("Xie et al. 2021, code")),
        _case(
            "cross-entropy, divisor 1.8",
            divided(1.8),
            tempered[1:],
            ADAPTATION.format("Xie et al. 2021, code"),
        ),
        _case("share of sure pixels", share, [0.5], ADAPTATION.format("Hoyer et al. 2022, code")),
        _case(
            "rare classes, T = 0.01",
            rare(0.01),
            [*frequent, 0.04742583561189504, 0.9525733722957465],
            ADAPTATION.format("Hoyer et al. 2022, eq. 6"),
        ),
    ]
