"""Contrast two masked views of each row of features: a complete method for vectors, here 8 x 8 digits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from sklearn.datasets import load_digits
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.config import RunConfig, Settings
from leanlabel.engine import loaders, optim
from leanlabel.engine.method import Method
from leanlabel.losses.contrastive import two_view_contrast

Rows = tuple[Tensor, Tensor]


class VectorSettings(Settings):
    name: Literal["vectors"] = "vectors"
    tau: float = Field(default=0.2, gt=0)
    """Temperature."""
    masked: float = Field(default=0.3, ge=0, lt=1)
    """Share of features set to zero in each view."""


class DigitData(Settings):
    batch_size: int = Field(default=256, ge=2)
    """Rows per iteration, over all processes."""


class VectorConfig(RunConfig):
    steps: int = 200
    method: VectorSettings = VectorSettings()
    data: DigitData = DigitData()


class Vectors(Method):
    Config = VectorConfig

    def __init__(self, cfg: VectorConfig, data: Rows) -> None:
        super().__init__(cfg)
        self.rows = data[0]
        self.encoder = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
        self.projector = nn.Sequential(nn.ReLU(), nn.Linear(64, 32))

    @classmethod
    def read(cls, cfg: VectorConfig) -> Rows:
        digits: Any = load_digits()
        return torch.from_numpy(digits.data / 16).float(), torch.from_numpy(digits.target)

    def batches(self, start: int) -> Iterator[Any]:
        return loaders.batches(list(self.rows), self.cfg.data.batch_size, self.cfg.seed, start)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": optim.build(self.cfg.optim, self.parameters())}

    def step(self, t: int, batch: tuple[Tensor, Tensor]) -> None:
        ids, x = batch
        views = []
        for k in (0, 1):
            kept = self.draw(f"view {k}", t, ids).uniform(x.shape[1]) >= self.cfg.method.masked
            views.append(dist.all_rows(self.projector(self.encoder(x * kept))))
        mine = dist.shard(len(views[0]))
        total, count = two_view_contrast(*views, tau=self.cfg.method.tau, rows=mine, reduction="parts")
        loss = dist.global_mean(total, count)
        self.report(loss=loss)
        self.update(loss)

    def embed(self, data: Rows) -> Tensor:
        with torch.no_grad():
            return self.encoder(data[0].to(self.device)).float().cpu()

    def readouts(self, data: Rows, untrained: Method) -> dict[str, Any]:
        return {"raw": data[0], **super().readouts(data, untrained)}
