"""One case with a known answer, and how far a device in a precision may be from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from leanlabel.verify import TABLE

PRECISIONS: dict[str, tuple[torch.dtype, float]] = {
    # The answers are printed to ten decimals, which is what bounds float64.
    "float64": (torch.float64, 1e-9),
    "float32": (torch.float32, 1e-5),
    "float16": (torch.float16, 5e-3),
    "bfloat16": (torch.bfloat16, 2e-2),
}
"""Precision -> type of the inputs, and the largest relative deviation that counts as right."""


@dataclass(frozen=True)
class Case:
    """A computation whose answer is known."""

    system: str
    """Whose case it is."""
    name: str
    """What is computed, in a few words."""
    run: Callable[[torch.device, torch.dtype], Tensor]
    """(device, type of the inputs) -> the result, any shape; what the library computes on the CPU in float64 whatever
    the settings stays there."""
    expected: Tensor
    """The answer, float64, of the same shape."""
    source: str
    """Where the answer comes from: equation, and who computed it."""


@dataclass(frozen=True)
class Outcome:
    """What came of the cases of one system on one device in one precision."""

    system: str
    device: str
    precision: str
    cases: int
    largest: float | None
    """Largest relative deviation; None where no case gave a number."""
    tolerance: float
    failed: list[dict[str, Any]] = field(default_factory=list)
    """name, source, deviation (None without a number) and error (None without one) of every case that failed."""

    @property
    def ok(self) -> bool:
        """Whether every case gave its answer."""
        return not self.failed


def system_cases(system: str) -> list[Case]:
    """The cases of a system; KeyError for one that is not in the table."""
    module, _, function = TABLE[system].partition(":")
    return list(getattr(import_module(module), function)())


def verify(
    cases: Iterable[Case], device: torch.device, precision: str, tell: Callable[[], None] | None = None
) -> list[Outcome]:
    """Run cases on a device in a precision, and sum up per system.

    A case that raises counts as failed, with what it said.

    Args:
        cases: of any systems.
        device: where to compute.
        precision: a key of :data:`PRECISIONS`.
        tell: called after every case.
    """
    dtype, tolerance = PRECISIONS[precision]
    rows: dict[str, list[tuple[Case, float | None, str | None]]] = {}
    for case in cases:
        found, error = None, None
        try:
            found = deviation(case.run(device, dtype), case.expected)
        except Exception as fault:  # whatever it is, the user is to read which case it was
            error = f"{type(fault).__name__}: {fault}"
        rows.setdefault(case.system, []).append((case, found, error))
        if tell is not None:
            tell()
    outcomes = []
    for system, done in rows.items():
        known = [found for _, found, _ in done if found is not None]
        failed = [
            {"name": case.name, "source": case.source, "deviation": found, "error": error}
            for case, found, error in done
            if found is None or found > tolerance
        ]
        largest = max(known, default=None)
        outcomes.append(Outcome(system, str(device), precision, len(done), largest, tolerance, failed))
    return outcomes


def deviation(result: Tensor, expected: Tensor) -> float:
    """Largest distance from the answer, relative to the answer's largest entry (absolute where that is 0).

    Args:
        result: any device and type.
        expected: float64, of the same shape.

    Returns:
        At least 0.

    Raises:
        ValueError: the shapes differ, or the result is not finite.

    Example:
        >>> deviation(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0], dtype=torch.float64))
        0.25
    """
    if result.shape != expected.shape:
        raise ValueError(f"result {tuple(result.shape)}, expected {tuple(expected.shape)}")
    distance = float((result.detach().cpu().double() - expected).abs().max())
    if not math.isfinite(distance):
        raise ValueError("the result is not finite")
    return distance / (float(expected.abs().max()) or 1.0)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Type in which weights, sums and probabilities are kept: float32 for a half precision, else the type itself."""
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def computing_in(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute networks as the engine does: half precisions by autocast over float32 weights, the others plainly."""
    with torch.autocast(device.type, dtype=dtype, enabled=wide(dtype) != dtype):
        yield
