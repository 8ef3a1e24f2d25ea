"""The interval of a mean, without any numerical library: a page must be renewable fast."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def t_quantile(degrees: int) -> float:
    """The 97.5 % point of Student's t distribution.

    The first degrees of freedom have closed forms or are tabulated; above 10 the Cornish-Fisher expansion
    z + (z^3 + z)/4n + (5 z^5 + 16 z^3 + 3 z)/96 n^2 + (3 z^7 + 19 z^5 + 17 z^3 - 15 z)/384 n^3
    [Abramowitz and Stegun, 26.7.5] is right to three decimals.

    Args:
        degrees: degrees of freedom n, >= 1.

    Example:
        >>> round(t_quantile(4), 3), round(t_quantile(20), 3)
        (2.776, 2.086)
    """
    table = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
    if degrees <= len(table):
        return table[degrees - 1]
    z, n = 1.959963984540054, degrees
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % t interval of a mean, mean ± t s / sqrt(n); None for fewer than two values.

    Example:
        >>> low, high = interval([0.90, 0.91, 0.92])
        >>> round(low, 3), round(high, 3)
        (0.885, 0.935)
    """
    if len(values) < 2:
        return None
    reach = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - reach, statistics.fmean(values) + reach
