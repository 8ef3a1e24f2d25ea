"""One backward pass for several optimisers: each moves its own weights, clipped and scaled as if alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from leanlabel.config import EngineSettings, OptimSettings
from leanlabel.engine.fit import Plan, fit, make_fabric
from leanlabel.engine.method import Method
from leanlabel.engine.runfolder import RunFolder


class Two(Method):
    """Two numbers that are fitted together, each by its own optimiser."""

    def __init__(self, which: Any) -> None:
        super().__init__(None)
        self.which = which
        self.one, self.two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        for part, value in ((self.one, 2.0), (self.two, -1.0)):
            nn.init.constant_(part.weight, value)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "main": torch.optim.SGD(self.one.parameters(), lr=0.1, momentum=0.5),
            "own": torch.optim.Adam(self.two.parameters(), lr=0.01),
        }

    def batches(self, start: int) -> Any:
        while True:
            yield torch.tensor([[3.0]])

    def step(self, t: int, batch: Any) -> None:
        loss = (4 * self.one(batch) + self.two(batch)).square().sum()
        self.report(loss=loss)
        self.update(loss, self.which)


def fitted(folder: Path, which: Any, clip: float | None = None) -> tuple[float, float]:
    method = Two(which)
    engine = EngineSettings(loggers=(), accelerator="cpu", threads=1)
    plan = Plan(2, 0, OptimSettings(clip=clip, schedule="constant"), engine, quiet=True)
    fit(method, RunFolder(folder), plan, make_fabric(engine))
    return method.one.weight.item(), method.two.weight.item()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_values_several_optimisers(tmp_path: Path, clip: float | None) -> None:
    """One backward pass, then each moves its own weights, from gradients that are clipped each by itself."""
    one, two = (nn.Parameter(torch.tensor(value)) for value in (2.0, -1.0))
    makers = torch.optim.SGD([one], lr=0.1, momentum=0.5), torch.optim.Adam([two], lr=0.01)
    for _ in range(2):
        residual = float((4 * one * 3 + two * 3).detach())
        one.grad, two.grad = torch.tensor(24 * residual), torch.tensor(6 * residual)
        for weight, maker in zip((one, two), makers, strict=True):
            if clip is not None:
                weight.grad = weight.grad * (clip / (abs(float(weight.grad)) + 1e-6))  # type: ignore[operator]
            maker.step()
    found = fitted(tmp_path / "both", ["main", "own"], clip)
    assert found == pytest.approx((one.item(), two.item()), rel=1e-5)
    assert fitted(tmp_path / "alone", "own", clip)[0] == 2.0
    assert fitted(tmp_path / "list", ["main"], clip)[1] == -1.0
    assert fitted(tmp_path / "list", ["main"], clip) == fitted(tmp_path / "name", "main", clip)


class Apart(Two):
    """The second number has no part in the loss of odd iterations; small steps, which half precision holds."""

    def batches(self, start: int) -> Any:
        while True:
            yield torch.tensor([[0.25]])

    def step(self, t: int, batch: Any) -> None:
        total = 4 * self.one(batch) + (self.two(batch) if t % 2 == 0 else 0)
        self.update(total.float().square().sum(), self.which)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_dtypes_scaled(tmp_path: Path, clip: float | None) -> None:
    """With a scaled loss both step at the scale of their backward pass, which changes once; one without a gradient
    stays as it is."""
    found = []
    for scaled in (True, False):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_factor=2.0, growth_interval=1)
        plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin] if scaled else [])
        fabric.launch()
        method = Apart(["main", "own"])
        engine = EngineSettings(loggers=(), accelerator="cpu", threads=1)
        plan = Plan(4, 0, OptimSettings(clip=clip, schedule="constant"), engine, quiet=True)
        fit(method, RunFolder(tmp_path / str(scaled)), plan, fabric)
        found.append([float(part.weight.detach()) for part in (method.one, method.two)])
        if scaled:
            assert scaler.get_scale() == 8.0 * 2**4
    assert found[0] == pytest.approx(found[1], rel=5e-3)
    assert all(math.isfinite(value) for value in found[0])
