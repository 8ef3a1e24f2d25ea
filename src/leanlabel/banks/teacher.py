"""A teacher: a copy of a network that follows it by an exponential moving average."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """Slow copy of a student. Its tensors are part of the state dict; none of them carries gradient.

    theta' <- m theta' + (1 - m) theta    [Tarvainen and Valpola 2017; He et al. 2020, eq. 2]

    Buffers that are numbers (running statistics of a batch norm) follow the student's in the same way where they
    are floating point, and are copied where they are not (counters).

    Args:
        student: network to copy; the copy starts equal to it.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> teacher = Teacher(student)
        >>> with torch.no_grad():
        ...     _ = student.weight.fill_(1.0), teacher.network.weight.fill_(0.0)
        >>> teacher.follow(student, momentum=0.9)
        >>> round(float(teacher(torch.ones(1, 1))), 4)
        0.1
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the teacher says, without gradient."""
        with torch.no_grad():
            return self.network(*inputs, **options)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float, *, buffers: bool = True) -> None:
        """Move a step towards the student.

        Args:
            student: network of the same structure; a wrapper with the network under ``module`` will do.
            momentum: m in [0, 1]; 1 stays, 0 copies.
            buffers: move buffers, too; without, a teacher in training mode keeps running statistics of its own, as
                MoCo's key network does.

        Raises:
            ValueError: momentum out of range, or another structure (names the first difference).
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        theirs = plain(student).state_dict(keep_vars=True)
        own = self.network.state_dict(keep_vars=True)
        different = sorted(own.keys() ^ theirs.keys())
        if different:
            raise ValueError(f"student and teacher differ in {different[0]}")
        for name, value in own.items():
            if not buffers and not isinstance(value, nn.Parameter):
                continue
            new = theirs[name].detach()
            if value.is_floating_point():
                value.lerp_(new.to(value), 1 - momentum)
            else:
                value.copy_(new)


def rising_momentum(t: int, steps: int, base: float) -> float:
    """Momentum that rises from ``base`` to 1 by half a cosine.

    m_t = 1 - (1 - base) (cos(pi t / steps) + 1) / 2    [BYOL, Grill et al. 2020, section 3.2]

    Args:
        t: iteration, 0 .. steps.
        steps: iterations in all, >= 1.
        base: momentum at t = 0, in [0, 1].

    Example:
        >>> [round(rising_momentum(t, 10, 0.9), 4) for t in (0, 5, 10)]
        [0.9, 0.95, 1.0]
    """
    if steps < 1 or not 0 <= base <= 1:
        raise ValueError(f"steps must be at least 1 and base in [0, 1], got {steps} and {base}")
    return 1 - (1 - base) * (math.cos(math.pi * min(t, steps) / steps) + 1) / 2


def plain(module: nn.Module) -> nn.Module:
    """The network inside the engine's or torch's data-parallel wrapper; a plain network is returned as it is."""
    while isinstance(getattr(module, "module", None), nn.Module):
        inner: Tensor | nn.Module = module.module
        assert isinstance(inner, nn.Module)
        module = inner
    return module
