"""Optimisers and the learning rate as a pure function of the iteration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer

from leanlabel.config import OptimSettings


def build(settings: OptimSettings, parameters: Iterable[Any]) -> Optimizer:
    """Optimiser over ``parameters`` (tensors or groups) with the learning rate at its highest."""
    if settings.name == "sgd":
        return SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    kind = AdamW if settings.name == "adamw" else Adam
    return kind(parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


def factor(settings: OptimSettings, t: int, steps: int) -> float:
    """Learning rate of iteration ``t`` of ``steps``, relative to the highest, in [0, 1].

    Warm-up: (t + 1) / warmup. Then, with x = (t - warmup) / (steps - warmup):
    constant 1, cosine (1 + cos(pi x)) / 2, poly (1 - x)^0.9.
    """
    if t < settings.warmup:
        return (t + 1) / settings.warmup
    x = min(1.0, (t - settings.warmup) / max(1, steps - settings.warmup))
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * x)) / 2
    return (1 - x) ** 0.9 if settings.schedule == "poly" else 1.0
