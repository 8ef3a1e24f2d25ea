"""Optimisers and the learning rate as a pure function of the iteration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from leanlabel.config import OptimSettings

POWERS = {"constant": 0.0, "poly": 0.9, "linear": 1.0}
"""Schedule -> power to which the part of training that is left is raised."""


def build(settings: OptimSettings, parameters: Iterable[Any]) -> Optimizer:
    """Optimiser over ``parameters`` (tensors or groups) with the learning rate at its highest."""
    if settings.name == "sgd":
        return SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    kind = AdamW if settings.name == "adamw" else Adam
    return kind(parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


def groups(settings: OptimSettings, module: nn.Module) -> list[dict[str, Any]]:
    """Trained parameters of a module in groups for :func:`build`: vectors apart where they are not to be decayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if settings.decay_all or settings.weight_decay == 0:
        return [{"params": trained}]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def factor(settings: OptimSettings, t: int, steps: int) -> float:
    """Learning rate of iteration ``t`` of ``steps``, relative to the highest, in [0, 1].

    Warm-up: (t + 1) / warmup. Then, with x = (t - warmup) / (steps - warmup) and t rounded down to a multiple of the
    stair: constant 1, cosine (1 + cos(pi x)) / 2, poly (1 - x)^0.9, linear 1 - x, drops: the factor to the power of the
    drops passed.
    A horizon stands in place of the steps, where one is set.
    """
    steps = settings.horizon or steps
    if t < settings.warmup:
        return (t + 1) / settings.warmup
    t = max(t // settings.stair * settings.stair, settings.warmup)
    x = min(1.0, (t - settings.warmup) / max(1, steps - settings.warmup))
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * x)) / 2
    if settings.schedule == "drops":
        return settings.drop_factor ** sum(t >= round(share * steps) for share in settings.drops)
    return (1 - x) ** POWERS[settings.schedule]
