"""Cases of the methods that GCA is held against: their losses on a few rows, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from leanlabel.banks.teacher import Teacher, rising_momentum
from leanlabel.losses.bootstrap import bootstrap_cosine
from leanlabel.losses.decorrelation import cca_ssg as cca_loss
from leanlabel.methods.dgi import Discriminator
from leanlabel.verify.case import Case, wide

Run = Callable[[torch.device, torch.dtype], Tensor]
HAND = "{}; by hand"


def bgrl() -> list[Case]:
    """Cosines of 1, 0, -1 and 0.6; the moving average; the momentum's course."""

    def loss(device: torch.device, dtype: torch.dtype) -> Tensor:
        prediction = torch.tensor([[2, 0], [0, 3], [1, 0], [3, 4]], dtype=dtype, device=device)
        target = torch.tensor([[5, 0], [1, 0], [-2, 0], [1, 0]], dtype=dtype, device=device)
        return bootstrap_cosine(prediction, target, reduction="none")

    def slope(device: torch.device, dtype: torch.dtype) -> Tensor:
        prediction = torch.tensor([[3.0, 4.0]], dtype=wide(dtype), device=device, requires_grad=True)
        target = torch.tensor([[1.0, 0.0]], dtype=wide(dtype), device=device)
        return torch.autograd.grad(bootstrap_cosine(prediction, target), prediction)[0]

    def average(device: torch.device, dtype: torch.dtype) -> Tensor:
        layers = [torch.nn.Linear(1, 1, bias=False, device=device, dtype=wide(dtype)) for _ in range(2)]
        with torch.no_grad():
            for layer, value in zip(layers, (0.0, 1.0), strict=True):
                layer.weight.fill_(value)
        teacher = Teacher(layers[0])
        found = []
        for _ in range(3):
            teacher.follow(layers[1], 0.5)
            found.append(teacher(torch.ones(1, 1, device=device, dtype=wide(dtype))).flatten())
        return torch.cat(found)

    def course(device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.tensor([rising_momentum(t, 10, 0.9) for t in (0, 5, 10)], dtype=torch.float64)

    return [
        _case("bgrl", "loss of four rows", loss, [0, 2, 4, 0.8], "Grill et al. 2020, eq. 2"),
        # d/dq (2 - 2 q1/|q|) at q = (3, 4): -2 (1/5 - 9/125), +2 * 12/125
        _case("bgrl", "gradient of the loss", slope, [[-0.256, 0.192]], "Grill et al. 2020, eq. 2"),
        _case("bgrl", "moving average", average, [0.5, 0.75, 0.875], "He et al. 2020, eq. 2"),
        _case("bgrl", "momentum", course, [0.9, 0.95, 1.0], "Grill et al. 2020, section 3.2"),
    ]


def cca_ssg() -> list[Case]:
    """Two views of three nodes: one with orthogonal columns, one with the same column twice."""

    def run(device: torch.device, dtype: torch.dtype) -> Tensor:
        first = torch.tensor([[1.0, 5], [2, 2], [3, 5]], dtype=dtype, device=device)
        second = torch.tensor([[10.0, -3], [20, 0], [30, 3]], dtype=dtype, device=device)
        found = cca_loss(first, second, weight=0.25)
        return torch.stack([found["loss"], found["invariance"], found["decorrelation"]])

    return [
        _case("cca-ssg", "loss, invariance, decorrelation", run, [1.5, 1.0, 2.0], "Zhang et al. 2021, eq. 5")
    ]


def dgi() -> list[Case]:
    """Two nodes against a summary of (1, 0) through W = [[0, 1], [1, 0]]: logits 0 and 2."""

    def scores(device: torch.device, dtype: torch.dtype) -> Tensor:
        judge = Discriminator(2).to(device, wide(dtype))
        with torch.no_grad():
            judge.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
            rows = torch.tensor([[1.0, 0.0], [3.0, 2.0]], dtype=wide(dtype), device=device)
            return judge(rows, torch.tensor([1.0, 0.0], dtype=wide(dtype), device=device))

    def loss(device: torch.device, dtype: torch.dtype) -> Tensor:
        logits = scores(device, dtype)
        return binary_cross_entropy_with_logits(logits, logits.new_tensor([1.0, 0.0]))[None]

    answer = (math.log(2) + math.log1p(math.exp(2))) / 2
    return [
        _case(
            "dgi", "scores of the discriminator", scores, [0.0, 2.0], "Velickovic et al. 2019, section 3.4"
        ),
        _case("dgi", "loss of a true and a false node", loss, [answer], "Velickovic et al. 2019, eq. 1"),
    ]


def _case(system: str, name: str, run: Run, expected: list[Any], source: str) -> Case:
    return Case(system, name, run, torch.tensor(expected, dtype=torch.float64), HAND.format(source))
