"""Paired statistics of two arms run with the same seeds: what can, and what cannot, be told apart."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["helps", "hurts", "cannot tell"]
Values = Mapping[int, float] | Sequence[float]

# More seeds than anybody runs; beyond it the answer is "too many".
MOST_SEEDS = 1_000_000
# Pairs from which on equal differences are taken for a sign that noise is small; two agree by chance.
ENOUGH_EQUAL = 3


@dataclass(frozen=True)
class PairedDifference:
    """Difference arm - baseline over the seeds that both have run, in the unit of the metric."""

    n: int
    """Pairs."""
    mean: float
    sd: float | None
    """Standard deviation of the differences (n - 1 in the denominator); None for one pair."""
    interval: tuple[float, float] | None
    """t interval of the mean; None for one pair."""
    confidence: float
    """Coverage of the interval, e.g. 0.95."""
    p_value: float | None
    """Two-sided paired t-test of "no difference"; None for one pair or where all differences are equal."""
    detectable: float | None
    """Smallest true difference that n pairs would find with the given power; None for one pair, or two equal ones."""
    power: float
    seeds_needed: int | None
    """Pairs needed to find a true difference of the observed size; None when that is zero or unknown, as it is with
    one pair, or two equal ones."""
    verdict: Verdict
    unpaired: tuple[int, ...] = ()
    """Seeds that only one of the two arms has run; they are left out."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "interval": list(self.interval) if self.interval else None,
            "unpaired": list(self.unpaired),
        }


def paired_difference(
    arm: Values,
    baseline: Values,
    *,
    confidence: float = 0.95,
    power: float = 0.8,
    higher_is_better: bool = True,
) -> PairedDifference:
    """Compare two arms seed by seed.

    d_s = arm_s - baseline_s; interval = mean(d) ± t_{(1 + confidence)/2, n - 1} sd(d) / sqrt(n)

    The verdict is "helps" or "hurts" when the interval lies on one side of zero, else "cannot tell", as with
    one pair. Where all differences are equal up to rounding (sd = 0) the interval is a point; its sign decides from
    three pairs on, and two equal differences cannot tell: they say nothing about the noise.

    Args:
        arm, baseline: metric by seed, or two lists in the same order of seeds; finite.
        confidence: coverage of the interval, in (0, 1); the tests are two-sided at 1 - confidence.
        power: chance of finding the detectable difference, in (0, 1).
        higher_is_better: False for losses and error rates.

    Returns:
        Differences, interval, detectable effect, seeds needed and verdict.

    Raises:
        ValueError: lists of different lengths, no common seed, or a value that is not finite.

    Example:
        >>> paired_difference([0.91, 0.92, 0.93], [0.88, 0.89, 0.91]).verdict
        'helps'
    """
    _check_share(confidence=confidence, power=power)
    differences, unpaired = _differences(arm, baseline)
    count = len(differences)
    mean = math.fsum(differences) / count
    if count == 1:
        return PairedDifference(
            1, mean, None, None, confidence, None, None, power, None, "cannot tell", unpaired
        )
    from scipy import stats

    alpha = 1 - confidence
    sd = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (count - 1))
    if sd <= _rounding(arm, baseline):
        sd, mean = 0.0, 0.0 if abs(mean) <= _rounding(arm, baseline) else mean
    known = sd > 0 or count >= ENOUGH_EQUAL
    half = float(stats.t.ppf(1 - alpha / 2, count - 1)) * sd / math.sqrt(count)
    low, high = mean - half, mean + half
    p_value = float(2 * stats.t.sf(abs(mean) / (sd / math.sqrt(count)), count - 1)) if sd > 0 else None
    sign = 1 if higher_is_better else -1
    verdict: Verdict = "cannot tell"
    if known and (low > 0 or high < 0):
        verdict = "helps" if sign * mean > 0 else "hurts"
    return PairedDifference(
        n=count,
        mean=mean,
        sd=sd,
        interval=(low, high),
        confidence=confidence,
        p_value=p_value,
        detectable=detectable_effect(sd, count, alpha=alpha, power=power) if known else None,
        power=power,
        seeds_needed=seeds_needed(sd, mean, alpha=alpha, power=power) if known else None,
        verdict=verdict,
        unpaired=unpaired,
    )


def detectable_effect(sd: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest true mean difference that a two-sided paired t-test with n pairs finds with the given power.

    Solves  P(|T| > t_{1 - alpha/2, n - 1}) = power  for delta, T noncentral t with n - 1 degrees of freedom
    and noncentrality sqrt(n) delta / sd.

    Args:
        sd: standard deviation of the differences, >= 0.
        n: pairs, >= 2.
        alpha: level of the test, in (0, 1).
        power: in (alpha, 1).

    Returns:
        delta in the unit of sd.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> round(detectable_effect(1.0, 34), 3)
        0.495
    """
    if n < 2 or not (math.isfinite(sd) and sd >= 0):
        raise ValueError(f"need n >= 2 pairs and a finite sd >= 0, got n = {n} and sd = {sd}")
    _check_share(alpha=alpha, power=power)
    if power <= alpha:
        raise ValueError(f"power must be above alpha, got {power} and {alpha}")
    from scipy.optimize import brentq

    # Power grows with the effect: double the bracket until it holds the answer.
    high = 1.0
    while _power(high, n, alpha) < power:
        high *= 2
    root: Any = brentq(lambda effect: _power(effect, n, alpha) - power, 0.0, high, xtol=1e-12)
    return sd * float(root)


def seeds_needed(sd: float, difference: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Pairs with which a two-sided paired t-test finds a true mean difference with the given power.

    Args:
        sd: standard deviation of the differences, >= 0.
        difference: true mean difference to be found, in the unit of sd; its sign does not matter.
        alpha: level of the test, in (0, 1).
        power: in (alpha, 1).

    Returns:
        The smallest n >= 2, or None for no difference, or for one so small that n exceeds a million.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> seeds_needed(1.0, 0.5)
        34
    """
    if not (math.isfinite(sd) and sd >= 0 and math.isfinite(difference)):
        raise ValueError(f"need a finite sd >= 0 and difference, got {sd} and {difference}")
    _check_share(alpha=alpha, power=power)
    if power <= alpha:
        raise ValueError(f"power must be above alpha, got {power} and {alpha}")
    if difference == 0:
        return None
    if sd == 0:
        return 2
    effect = abs(difference) / sd
    low, high = 1, 2
    while _power(effect, high, alpha) < power:
        low, high = high, 2 * high
        if high > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if _power(effect, middle, alpha) < power:
            low = middle
        else:
            high = middle
    return high


def _power(effect: float, n: int, alpha: float) -> float:
    """Chance that the two-sided t-test with n pairs rejects when the true mean is `effect` sd from zero.

    P(|T| > c) = E[Phi(m - c S) + Phi(-m - c S)], m = sqrt(n) effect, S = sqrt(chi2_{n-1} / (n - 1)), as a
    Gauss-Legendre sum over the quantiles of S: SciPy's noncentral t is not a number for n = 2 and large m.
    """
    from scipy import special

    level, weight = _nodes()
    freedom = n - 1
    spread = (special.chdtri(freedom, 1 - level) / freedom) ** 0.5
    limit = float(special.stdtrit(freedom, 1 - alpha / 2))
    centre = math.sqrt(n) * effect
    chance = special.ndtr(centre - limit * spread) + special.ndtr(-centre - limit * spread)
    return float(weight @ chance)


@functools.cache
def _nodes() -> tuple[Any, Any]:
    """Points and weights of a Gauss-Legendre sum on [0, 1]."""
    import numpy as np

    points, weights = np.polynomial.legendre.leggauss(400)
    return (points + 1) / 2, weights / 2


def _differences(arm: Values, baseline: Values) -> tuple[list[float], tuple[int, ...]]:
    if isinstance(arm, Mapping) != isinstance(baseline, Mapping):
        raise ValueError("give both arms by seed, or both as lists")
    if isinstance(arm, Mapping) and isinstance(baseline, Mapping):
        common = sorted(arm.keys() & baseline.keys())
        unpaired = tuple(sorted(arm.keys() ^ baseline.keys()))
        pairs = [(float(arm[seed]), float(baseline[seed])) for seed in common]
    else:
        if len(arm) != len(baseline):
            raise ValueError(f"lists must have the same length, got {len(arm)} and {len(baseline)}")
        unpaired, pairs = (), [(float(a), float(b)) for a, b in zip(arm, baseline)]
    if not pairs:
        raise ValueError(f"the arms have no seed in common: {sorted(arm)} and {sorted(baseline)}")
    for a, b in pairs:
        if not (math.isfinite(a) and math.isfinite(b)):
            raise ValueError(f"values must be finite, got the pair {a} and {b}")
    return [a - b for a, b in pairs], unpaired


def _rounding(arm: Values, baseline: Values) -> float:
    """Size of what is left of equal differences after subtraction in float64."""
    both = [*(arm.values() if isinstance(arm, Mapping) else arm)]
    both += baseline.values() if isinstance(baseline, Mapping) else baseline
    return 4 * sys.float_info.epsilon * max(abs(float(value)) for value in both)


def _check_share(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")
