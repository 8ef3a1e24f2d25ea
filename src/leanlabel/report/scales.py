"""From data to positions in a picture: linear and logarithmic axes with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from leanlabel.report.numbers import MINUS


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, stop], linearly or in the logarithm.

    Attributes:
        low, high: range of the data, low < high; both > 0 where `log`.
        start, stop: range of positions; start may be above stop (y axes run upwards).
        log: equal ratios instead of equal differences get equal distances.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Position of a value, held within the range."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Round values within the range with their labels."""
        values = log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, count)
        step = min((b - a for a, b in pairwise(values)), default=0.0)
        return [(value, tick_label(value, step, self.log)) for value in values]


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten within [low, high].

    Example:
        >>> linear_ticks(0, 10, 5)
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    raw = (high - low) / max(count, 1)
    if raw <= 0 or not math.isfinite(raw):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    if power == 0:
        return [low]
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.75)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounding keeps 3 * 0.1 from becoming 0.30000000000000004.
    decimals = 1 - math.floor(math.log10(step))
    return [round(k * step, decimals) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high]; where there are fewer than two, 2 and 5 times them as well."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [k for k in exponents if low * 0.999 <= 10.0**k <= high * 1.001]
    if len(inside) >= 2:
        every = math.ceil(len(inside) / 6)
        return [10.0**k for k in inside[::every]]
    values = [factor * 10.0**k for k in exponents for factor in (1, 2, 5)]
    return [value for value in values if low * 0.999 <= value <= high * 1.001] or [low]


def tick_label(value: float, step: float, log: bool = False) -> str:
    """Short label: as many decimals as the step needs.

    Example:
        >>> tick_label(0.30000000000000004, 0.1), tick_label(20000, 5000), tick_label(0.00001, 0, log=True)
        ('0.3', '20k', '1e−5')
        >>> tick_label(1000, 0, log=True), tick_label(100000, 0, log=True)
        ('1000', '1e5')
    """
    size = abs(value)
    if log and 1 <= size < 1e4:
        written = f"{value:.0f}"
    elif log or (size != 0 and (size >= 1e7 or (step and step < 1e-4))):
        written = f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    elif size >= 10000 and step >= 100:
        written = f"{value / 1000:.{0 if step % 1000 == 0 else 1}f}k"
    else:
        decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 3
        written = f"{value:.{decimals}f}"
    return written.replace("-", MINUS)


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Range of values with a margin on both sides; never empty."""
    low, high = min(values), max(values)
    room = (high - low) * share or max(abs(high) * 0.05, 1e-3)
    return low - room, high + room


def thinned(t: Sequence[float], values: Sequence[float], limit: int = 600) -> list[tuple[float, float]]:
    """At most `limit` points of a curve: lowest and highest of each stretch, so that no spike is lost.

    Example:
        >>> len(thinned(range(10_000), range(10_000)))
        600
    """
    points = list(zip(t, values))
    if len(points) <= limit:
        return points
    stretches = limit // 2
    kept: list[tuple[float, float]] = []
    for k in range(stretches):
        first, last = k * len(points) // stretches, (k + 1) * len(points) // stretches
        part = range(first, last)
        low, high = min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])
        if low == high:
            high = last - 1
        kept += [points[i] for i in sorted({low, high})]
    return kept
