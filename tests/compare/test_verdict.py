"""Verdicts and alarms on plain numbers."""

from __future__ import annotations

from typing import Any

import pytest
from scipy import stats

from leanlabel.compare.verdict import alarm, judge, pairs_of


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_values_numbers() -> None:
    """Differences 0.01, 0.02, 0.03: mean 0.02, sd 0.01, half-width 4.302653 x 0.01 / sqrt(3)."""
    found = judge("a", "b", by_seed(0.81, 0.82, 0.83), by_seed(0.8, 0.8, 0.8))
    half = 4.302652729911275 * 0.01 / 3**0.5
    assert found["difference"] == pytest.approx(0.02, rel=1e-10)
    assert (found["low"], found["high"]) == pytest.approx((0.02 - half, 0.02 + half), rel=1e-10)
    expected = stats.ttest_rel([0.81, 0.82, 0.83], [0.8, 0.8, 0.8]).pvalue
    assert found["p_value"] == pytest.approx(expected, rel=1e-8)
    assert found["n"] == 3
    assert found["verdict"] == "cannot tell"
    assert found["minimal_detectable"] > 0.02
    assert found["seeds_needed"] > 3
    assert found["cost_factor"] is None


def test_values_sentences() -> None:
    """One plain sentence for each outcome."""
    high, low = by_seed(0.915, 0.925, 0.93, 0.94, 0.91), by_seed(0.90, 0.915, 0.92, 0.92, 0.895)
    times: dict[str, Any] = {"seconds": by_seed(*5 * [11.0]), "other_seconds": by_seed(*5 * [10.0])}
    helps = judge("gca", "grace", high, low, **times)
    assert helps["verdict"] == "helps"
    assert helps["cost_factor"] == pytest.approx(1.1, rel=1e-10)
    assert (
        helps["sentence"] == "gca helps over grace by 1.4 points [0.9, 1.9], 5 seeds, at 1.1 times the cost."
    )
    hurts = judge("grace", "gca", low, high, tuned=(6, 6))
    assert hurts["sentence"] == (
        "grace hurts against gca by 1.4 points [-1.9, -0.9], 5 seeds; tuned: 6 runs per arm."
    )
    unclear = judge("gca", "grace", by_seed(0.80, 0.84, 0.81), by_seed(0.80, 0.80, 0.80), tuned=(3, 0))
    assert unclear["verdict"] == "cannot tell"
    assert unclear["sentence"].startswith(
        "cannot tell gca from grace: +1.7 points [-3.5, +6.8]; with 3 seeds only "
    )
    assert f"about {unclear['seeds_needed']} seeds would settle one of this size" in unclear["sentence"]
    assert unclear["sentence"].endswith("; tuned: 3 and 0 runs.")
    one = judge("gca", "grace", by_seed(0.80), by_seed(0.82))
    assert one["sentence"] == "gca - grace: -2.0 points; one seed: no interval."
    assert (one["low"], one["p_value"], one["seeds_needed"]) == (None, None, None)
    equal = judge("gca", "grace", by_seed(0.8, 0.9), by_seed(0.8, 0.9))
    assert equal["sentence"] == "gca and grace gave the same score with every seed."
    plain = judge("a", "b", by_seed(12.0, 13.0, 14.0), by_seed(10.0, 11.0, 12.0), shares=False)
    assert plain["sentence"] == "a helps over b by 2 [2, 2], 3 seeds."


def test_values_two_equal_differences() -> None:
    """Two seeds that agree to the last digit are no proof, also where subtraction leaves rounding behind."""
    found = judge("a", "b", by_seed(0.80, 0.90), by_seed(0.70, 0.80))
    assert 0.80 - 0.70 != 0.90 - 0.80
    assert (found["verdict"], found["minimal_detectable"], found["seeds_needed"]) == (
        "cannot tell",
        None,
        None,
    )
    assert found["sentence"] == (
        "cannot tell a from b: +10.0 points; the same with 2 seeds, which says nothing about the noise: run more seeds."
    )


def test_values_nothing_would_be_seen() -> None:
    """A detectable effect beyond what the metric can show is told as that."""
    found = judge("a", "b", by_seed(0.9, 0.2), by_seed(0.5, 0.5))
    assert found["minimal_detectable"] > 1
    assert "; with 2 seeds any difference would mostly go unseen; " in found["sentence"]
    wide = judge("a", "b", by_seed(9.0, 2.0), by_seed(5.0, 5.0), shares=False)
    assert "only differences above " in wide["sentence"]


def test_values_cost_note() -> None:
    times: dict[str, Any] = {"seconds": by_seed(4.0), "other_seconds": by_seed(2.0)}
    found = judge("a", "b", by_seed(0.5), by_seed(0.4), cost_note="a trains one network per split", **times)
    assert ", at 2 times the cost (a trains one network per split); one seed" in found["sentence"]
    assert "network" not in judge("a", "b", by_seed(0.5), by_seed(0.4), cost_note="a network")["sentence"]


def test_values_small_numbers_keep_a_digit() -> None:
    found = judge("a", "b", by_seed(0.5004, 0.5005), by_seed(0.5, 0.5))
    assert "by 0.04 points" in found["sentence"] or "+0.04 points" in found["sentence"]


def test_values_pairs_only_common_seeds() -> None:
    found = judge("a", "b", {0: 0.5, 1: 0.6, 7: 0.9}, {1: 0.5, 0: 0.4, 8: 0.1})
    assert (found["n"], round(found["difference"], 12)) == (2, 0.1)


@pytest.mark.parametrize(
    ("seconds", "others", "factor"),
    [
        ({0: 4.0, 1: 8.0}, {0: 2.0, 1: 4.0, 2: 100.0}, 2.0),
        ({0: 4.0}, {0: 0}, None),
        ({0: 0.0}, {0: 3.0}, None),
        ({0: 4.0}, {1: 3.0}, None),
        ({0: 0}, {0: 0}, None),
    ],
)
def test_values_cost(seconds: dict[int, float], others: dict[int, float], factor: float | None) -> None:
    found = judge("a", "b", by_seed(0.5), by_seed(0.4), seconds=seconds, other_seconds=others)
    assert found["cost_factor"] == factor


def test_values_pairs_of() -> None:
    arms = ["a", "raw", "b", "grace"]
    assert pairs_of(arms, ["a", "b"]) == [
        ("a", "b"),
        ("a", "raw"),
        ("a", "grace"),
        ("b", "raw"),
        ("b", "grace"),
    ]
    assert pairs_of(arms, ["a", "b"], "b") == [("a", "b"), ("raw", "b"), ("grace", "b")]
    assert pairs_of(["a"], ["a"]) == []


def told(values: tuple[float, ...], others: tuple[float, ...], **more: Any) -> dict[str, Any] | None:
    return alarm("gca", "raw", by_seed(*values), by_seed(*others), **{"kind": "raw", **more})


def test_values_alarm() -> None:
    """The whole interval below zero is harm; only the mean below is noise; above is nothing."""
    harm = told((0.70, 0.71, 0.72), (0.80, 0.805, 0.825))
    assert harm is not None
    assert harm["level"] == "harm"
    assert harm["high"] < 0
    assert harm["sentence"] == (
        "gca is 10.0 points below raw, [-11.2, -8.8], 3 seeds: what was learned is worse than the raw input."
    )
    below = told((0.70, 0.80), (0.72, 0.80), at="nodes=9")
    assert below is not None
    assert below["level"] == "below"
    assert (
        below["sentence"] == "gca is 1.0 points below raw at nodes=9, within noise ([-13.7, 11.7], 2 seeds)."
    )
    assert below["at"] == "nodes=9"
    assert told((0.8, 0.9), (0.8, 0.9)) is None
    assert told((0.9, 0.7), (0.8, 0.7)) is None
    untrained = told((0.7,), (0.8,), kind="untrained")
    assert untrained is not None
    assert untrained["sentence"] == "one seed: gca is below raw by 10.0 points; run more seeds."


def test_values_alarm_is_not_taken_back_by_a_seed_that_agrees() -> None:
    """Harm with one seed stays harm when a second one says the same, whatever the interval of two seeds is."""
    first, second = told((0.78,), (0.80,)), told((0.78, 0.70), (0.80, 0.80))
    assert first is not None
    assert second is not None
    assert (first["level"], second["level"]) == ("harm", "harm")
    assert second["high"] > 0
    assert second["sentence"] == (
        "gca is 6.0 points below raw, and with every seed by more than 1 point "
        "([-56.8, 44.8], 2 seeds); run more seeds."
    )
    mild = told((0.78, 0.795), (0.80, 0.80))
    assert mild is not None
    assert mild["level"] == "below"
    equal = told((0.795, 0.695), (0.80, 0.70))
    assert equal is not None
    assert equal["level"] == "below"


@pytest.mark.parametrize(
    ("value", "shares", "level"),
    [(0.791, True, "below"), (0.789, True, "harm"), (-0.3, False, "harm"), (-0.1, False, "below")],
)
def test_values_alarm_with_one_seed(value: float, shares: bool, level: str) -> None:
    """One seed has no interval: more than one point is harm."""
    found = told((value,), (0.8,), shares=shares)
    assert found is not None
    assert found["level"] == level
    assert (found["low"], found["high"]) == (None, None)


def test_degenerate_alarm_without_a_common_seed() -> None:
    assert alarm("a", "b", {0: 0.1}, {1: 0.9}, kind="raw") is None


def test_errors() -> None:
    with pytest.raises(ValueError, match="no seed in common"):
        judge("a", "b", {0: 1.0}, {1: 1.0})
    with pytest.raises(ValueError, match="finite"):
        judge("a", "b", {0: float("nan")}, {0: 1.0})
