"""A small method that uses everything the engine offers: two networks, two optimisers, two updates per iteration,
dropout, synchronised batch norm, a bank, gathered rows, draws by sample id, a shuffled loader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.config import EngineSettings, OptimSettings, RunConfig, Settings
from leanlabel.engine import checkpoint, loaders, optim
from leanlabel.engine.fit import Plan, fit, make_fabric
from leanlabel.engine.method import Method
from leanlabel.engine.runfolder import RunFolder
from leanlabel.models.norm import SyncBatchNorm


class ToySettings(Settings):
    name: Literal["toy"] = "toy"
    dropout: float = 0.0


class ToyData(Settings):
    batch_size: int = 8


class ToyConfig(RunConfig):
    steps: int = 6
    method: ToySettings = ToySettings()
    data: ToyData = ToyData()
    optim: OptimSettings = OptimSettings(lr=0.05, schedule="cosine", warmup=2)


class Toy(Method):
    """Predict a hidden linear map, and push a second network towards a running mean of the first one's outputs."""

    Config = ToyConfig

    def __init__(self, cfg: ToyConfig, samples: Tensor) -> None:
        super().__init__(cfg)
        self.samples = samples
        self.student = nn.Sequential(
            nn.Linear(5, 7), SyncBatchNorm(7), nn.Tanh(), nn.Dropout(cfg.method.dropout), nn.Linear(7, 3)
        )
        self.critic = nn.Linear(3, 1)
        self.register_buffer("bank", torch.zeros(3))
        self.fail_at = -1

    def batches(self, start: int) -> Iterator[Any]:
        return loaders.batches(
            self.samples, self.cfg.data.batch_size, self.cfg.seed, start, workers=self.cfg.engine.workers
        )

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "main": optim.build(self.cfg.optim, self.student.parameters()),
            "critic": optim.build(OptimSettings(name="sgd", lr=0.1), self.critic.parameters()),
        }

    def step(self, t: int, batch: tuple[Tensor, Tensor]) -> None:
        ids, x = batch
        x = x.to(next(self.parameters()).dtype)
        noise = self.draw("noise", t, ids.cpu()).normal((5,)).to(x)
        out = self.student(x + 0.1 * noise)
        everyone = dist.all_rows(out)
        target = x[:, :3].cumsum(1)
        fit_term = dist.global_mean((out - target).square().sum(), out.numel())
        spread = dist.global_mean((out - everyone.mean(0)).square().sum(), len(out))
        loss = fit_term + 0.01 * spread + 0.1 * (everyone.mean(0) - self.bank).square().sum()
        if t == self.fail_at:
            spread = spread * float("nan")
            loss = loss + spread
        self.report(fit=fit_term, spread=spread)
        self.update(loss)
        score = self.critic(out.detach())
        critic = dist.global_mean((score - 1).square().sum(), len(score))
        self.report(critic=critic)
        self.update(critic, "critic")
        total, count = dist.sums(out.detach().sum(0), torch.tensor(float(len(out))))
        self.bank.mul_(0.9).add_(total / count, alpha=0.1)

    def validate(self, t: int) -> float:
        return -abs(t - 4.0)


def toy_config(**changes: Any) -> ToyConfig:
    return ToyConfig.model_validate({"engine": EngineSettings(loggers=(), checkpoint_every=2), **changes})


def samples(n: int = 21) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(3))


def build(cfg: ToyConfig) -> Toy:
    torch.manual_seed(cfg.seed)
    return Toy(cfg, samples())


def run(
    folder: Path, cfg: ToyConfig, steps: int | None = None, method: Toy | None = None, **plan: Any
) -> Toy:
    """Train up to ``steps`` (all by default) of the schedule of ``cfg``."""
    method = method or build(cfg)
    fabric = make_fabric(cfg.engine)
    whole = Plan(cfg.steps, cfg.seed, cfg.optim, cfg.engine, quiet=True, **plan)
    if steps is None:
        fit(method, RunFolder(folder), whole, fabric)
        return method
    with contextlib.suppress(StoppedError):
        fit(stop_at(method, steps), RunFolder(folder), whole, fabric)
    return method


class StoppedError(Exception):
    """Raised in place of an iteration, as a kill would end it."""


def stop_at(method: Toy, t: int) -> Toy:
    step = method.step

    def guarded(now: int, batch: Any) -> None:
        if now >= t:
            raise StoppedError
        step(now, batch)

    method.step = guarded  # type: ignore[method-assign]
    return method


def state(method: Toy) -> dict[str, Tensor]:
    return checkpoint.state_of(method)
