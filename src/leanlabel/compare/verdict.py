"""What a comparison says about two arms, in numbers and in one sentence; and when it must sound an alarm.

Pure functions on plain data. Scores are taken to be better when higher.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from leanlabel.evaluation.statistics import PairedDifference, paired_difference
from leanlabel.report.numbers import MINUS, difference, plural, signed

Values = Mapping[int, float]

WHY = {
    "untrained": "training did harm",
    "raw": "what was learned is worse than the raw input",
    "supervised": "training on the labels alone does better",
}
"""What it means to fall behind a reference of this kind."""
RANGE = 1.0
"""Largest difference of two shares."""


def judge(
    arm: str,
    against: str,
    values: Values,
    others: Values,
    *,
    seconds: Values | None = None,
    other_seconds: Values | None = None,
    tuned: tuple[int, int] | None = None,
    shares: bool = True,
    cost_note: str = "",
) -> dict[str, Any]:
    """Compare two arms seed by seed.

    Args:
        arm, against: their names.
        values, others: seed -> score; at least one seed in common.
        seconds, other_seconds: seed -> training time; what does not train has 0.
        tuned: runs that were spent on choosing the settings of both; None for no tuning.
        shares: scores lie in [0, 1], and differences are told in points (hundredths).
        cost_note: what has to be known about the cost, behind it in brackets.

    Returns:
        "arm", "against", "difference", "low", "high" (95 % t interval, None for one seed), "n", "p_value",
        "minimal_detectable" (with n seeds, 80 % power), "seeds_needed" (for the observed difference; both None for one
        seed, and for two with the same difference),
        "cost_factor" (training time of arm over that of the other; None where one does not train), "verdict" and
        "sentence".

    Raises:
        ValueError: no seed in common, or a value that is not finite.

    Example:
        >>> judge("a", "b", {0: 0.91, 1: 0.92, 2: 0.93}, {0: 0.88, 1: 0.89, 2: 0.91})["sentence"]
        'a helps over b by 2.7 points [1.2, 4.1], 3 seeds.'
    """
    found = paired_difference(values, others)
    low, high = found.interval or (None, None)
    cost = _cost_factor(seconds or {}, other_seconds or {})
    return {
        "arm": arm,
        "against": against,
        "difference": found.mean,
        "low": low,
        "high": high,
        "n": found.n,
        "p_value": found.p_value,
        "minimal_detectable": found.detectable,
        "seeds_needed": found.seeds_needed,
        "cost_factor": cost,
        "verdict": found.verdict,
        "sentence": _sentence(arm, against, found, _price(cost, cost_note), tuned, shares),
    }


def pairs_of(
    arms: Sequence[str], leading: Sequence[str], against: str | None = None
) -> list[tuple[str, str]]:
    """Which arms are compared: every leading arm with those after it and with the rest, or all with one.

    Example:
        >>> pairs_of(["a", "b", "raw"], ["a", "b"])
        [('a', 'b'), ('a', 'raw'), ('b', 'raw')]
        >>> pairs_of(["a", "b", "raw"], ["a", "b"], "raw")
        [('a', 'raw'), ('b', 'raw')]
    """
    if against is not None:
        return [(arm, against) for arm in arms if arm != against]
    first = [arm for arm in arms if arm in leading]
    rest = [arm for arm in arms if arm not in leading]
    return [(arm, other) for place, arm in enumerate(first) for other in (*first[place + 1 :], *rest)]


def alarm(
    arm: str, against: str, values: Values, others: Values, *, kind: str, shares: bool = True, at: str = ""
) -> dict[str, Any] | None:
    """Tell when a trained arm lies below what it must not lie below.

    It is "harm" when the whole 95 % interval of the paired difference is below zero, or when it is more than one point
    below with every seed (so that a further seed that says the same never takes an alarm back); "below" when only the
    mean is below. What it means is told only where the interval says so.

    Args:
        arm: trained arm.
        against: what it is held against.
        values, others: seed -> score.
        kind: "untrained", "raw" or "supervised": says what being below means.
        shares: scores lie in [0, 1]; a point is 0.01 then, else 1.
        at: setting of the dial, for the sentence.

    Returns:
        "arm", "against", "kind", "level", "difference", "low", "high", "n", "at", "sentence"; None where there is no
        reason, or no seed in common.

    Example:
        >>> alarm("a", "raw", {0: 0.70}, {0: 0.75}, kind="raw")["sentence"]
        'one seed: a is below raw by 5.0 points; run more seeds.'
    """
    common = values.keys() & others.keys()
    if not common:
        return None
    found = paired_difference(values, others)
    if found.mean >= 0:
        return None
    low, high = found.interval or (None, None)
    sure = found.verdict == "hurts"
    every = all(values[seed] - others[seed] < (-0.01 if shares else -1) for seed in common)
    place, size = f" at {at}" if at else "", _size(found.mean, shares)
    told = f"{arm} is {size} below {against}{place}"
    if found.interval is None:
        sentence = f"one seed: {arm} is below {against}{place} by {size}; run more seeds."
    else:
        seeds = f"{_span(found.interval, shares)}, {found.n} seeds"
        if sure:
            sentence = f"{told}, {seeds}: {WHY[kind]}."
        elif every:
            least = "1 point" if shares else "1"
            sentence = f"{told}, and with every seed by more than {least} ({seeds}); run more seeds."
        else:
            sentence = f"{told}, within noise ({seeds})."
    return {
        "arm": arm,
        "against": against,
        "kind": kind,
        "level": "harm" if sure or every else "below",
        "difference": found.mean,
        "low": low,
        "high": high,
        "n": found.n,
        "at": at or None,
        "sentence": sentence,
    }


def _sentence(
    arm: str, against: str, found: PairedDifference, price: str, tuned: tuple[int, int] | None, shares: bool
) -> str:
    budget = "" if tuned is None else f"; tuned: {_budget(tuned)}"
    if found.interval is None:
        return f"{arm} - {against}: {_signed(found.mean, shares)}{price}; one seed: no interval{budget}."
    if found.sd == 0 and found.mean == 0:
        return f"{arm} and {against} gave the same score with every seed{price}{budget}."
    if found.verdict != "cannot tell":
        word = "helps over" if found.verdict == "helps" else "hurts against"
        told = f"by {_size(found.mean, shares)} {_span(found.interval, shares)}, {found.n} seeds"
        return f"{arm} {word} {against} {told}{price}{budget}."
    unclear = f"cannot tell {arm} from {against}: {_signed(found.mean, shares)}"
    if found.sd == 0:
        same = f"the same with {found.n} seeds, which says nothing about the noise"
        return f"{unclear}{price}; {same}: run more seeds{budget}."
    seen = (
        f"with {plural(found.n, 'seed')} any difference would mostly go unseen"
        if shares and (found.detectable or 0.0) > RANGE
        else f"with {found.n} seeds only differences above {_size(found.detectable or 0.0, shares)} are seen"
    )
    parts = [f"{unclear} {_span(found.interval, shares, signed=True)}{price}", seen]
    if found.seeds_needed is not None:
        parts.append(f"about {found.seeds_needed:,} seeds would settle one of this size")
    return "; ".join(parts) + budget + "."


def _price(cost: float | None, note: str) -> str:
    if cost is None:
        return ""
    times = f"{cost:.2g}" if cost < 10 else f"{cost:.0f}"
    return f", at {times} times the cost" + (f" ({note})" if note else "")


def _budget(tuned: tuple[int, int]) -> str:
    if tuned[0] == tuned[1]:
        return f"{tuned[0]} run{'s' if tuned[0] != 1 else ''} per arm"
    return f"{tuned[0]} and {tuned[1]} runs"


def _cost_factor(seconds: Values, others: Values) -> float | None:
    """Mean training time over the seeds that both have, as a ratio."""
    common = seconds.keys() & others.keys()
    if not common:
        return None
    one, other = (statistics.fmean(of[seed] for seed in common) for of in (seconds, others))
    return one / other if one > 0 and other > 0 else None


def _signed(value: float, shares: bool) -> str:
    """As on a page, with a hyphen for a terminal; two decimals of a point where one would show nothing."""
    if shares and 0.005 <= abs(100 * value) < 0.095:
        return f"{signed(100 * value, 2)} points".replace(MINUS, "-")
    return difference(value, shares).replace(MINUS, "-")


def _size(value: float, shares: bool) -> str:
    return _signed(abs(value), shares).removeprefix("+")


def _span(interval: tuple[float, float], shares: bool, signed: bool = False) -> str:
    ends = [_signed(end, shares).removesuffix(" points") for end in interval]
    return f"[{', '.join(ends if signed else [end.removeprefix('+') for end in ends])}]"
