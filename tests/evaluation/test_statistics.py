from __future__ import annotations

import doctest
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from leanlabel.evaluation import statistics
from leanlabel.evaluation.statistics import detectable_effect, paired_difference, seeds_needed


def test_values():
    # Differences 1, 2, 3: mean 2, sd 1; for 2 degrees of freedom t_q = (2q - 1) / sqrt(2q (1 - q)).
    found = paired_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.interval == pytest.approx((2 - half, 2 + half), rel=1e-10)
    assert found.verdict == "cannot tell"
    assert found.seeds_needed == 5
    ten = paired_difference([x + d for x, d in enumerate([1, 2, 3] * 4)], list(range(12)))
    assert ten.verdict == "helps"


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_values_sample_size(effect, pairs):
    # Published tables of the paired t-test: two-sided 5 %, power 80 %.
    assert seeds_needed(1.0, effect) == pairs
    assert seeds_needed(2.5, -2.5 * effect) == pairs
    assert detectable_effect(1.0, pairs) <= effect < detectable_effect(1.0, pairs - 1)


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=8),
    st.sampled_from([0.9, 0.95, 0.99]),
)
def test_reference(pairs, confidence):
    arm, baseline = [a for a, _ in pairs], [b for _, b in pairs]
    found = paired_difference(arm, baseline, confidence=confidence)
    if found.sd is None or found.sd < 1e-6:
        return
    foreign = stats.ttest_rel(arm, baseline)
    interval = foreign.confidence_interval(confidence)
    assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assert found.p_value == pytest.approx(foreign.pvalue, rel=1e-6, abs=1e-12)
    assert (found.verdict == "cannot tell") == (interval.low <= 0 <= interval.high)


@pytest.mark.parametrize(("n", "effect"), [(2, 2.0), (3, 1.0), (5, 1.7), (34, 0.5), (200, 0.2), (10, 0.0)])
def test_reference_power(n, effect):
    limit, centre = stats.t.ppf(0.975, n - 1), math.sqrt(n) * effect
    foreign = stats.nct.sf(limit, n - 1, centre) + stats.nct.cdf(-limit, n - 1, centre)
    assert statistics._power(effect, n, 0.05) == pytest.approx(float(foreign), abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5, 20, 500])
def test_reference_detectable(n):
    effect = detectable_effect(1.0, n)
    assert statistics._power(effect, n, 0.05) == pytest.approx(0.8, abs=1e-9)
    assert detectable_effect(0.3, n) == pytest.approx(0.3 * effect, rel=1e-10)
    assert seeds_needed(1.0, effect * 1.001) == n


def test_degenerate():
    one = paired_difference({7: 0.9}, {7: 0.8})
    assert (one.n, one.sd, one.interval, one.p_value, one.detectable) == (1, None, None, None, None)
    assert one.verdict == "cannot tell"
    same = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (same.mean, same.sd, same.interval, same.verdict) == (0, 0, (0, 0), "cannot tell")
    assert (same.detectable, same.seeds_needed, same.p_value) == (None, None, None)
    pair = paired_difference([1.0, 2.0], [2.0, 3.0])
    assert (pair.interval, pair.verdict, pair.seeds_needed) == ((-1, -1), "cannot tell", None)
    shifted = paired_difference([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert (shifted.interval, shifted.verdict, shifted.seeds_needed) == ((-1, -1), "hurts", 2)
    assert shifted.detectable == 0.0
    assert paired_difference([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], higher_is_better=False).verdict == "helps"
    rounded = paired_difference([0.1 + 0.2, 0.3, 0.6], [0.3, 0.1 + 0.2, 0.6])
    assert rounded.sd is not None
    assert (rounded.sd, rounded.mean, rounded.verdict) == (0, 0, "cannot tell")
    assert seeds_needed(1.0, 1e-6) is None
    assert seeds_needed(1.0, 1e6) == 2
    some = paired_difference({1: 0.9, 2: 0.8, 3: 0.7}, {2: 0.7, 3: 0.7, 5: 0.1})
    assert (some.n, some.unpaired, some.mean) == (2, (1, 5), pytest.approx(0.05))
    assert json.loads(json.dumps(some.as_dict()))["unpaired"] == [1, 5]
    assert json.loads(json.dumps(one.as_dict()))["interval"] is None


def test_errors():
    with pytest.raises(ValueError, match=r"no seed in common: \[1\] and \[2\]"):
        paired_difference({1: 0.5}, {2: 0.5})
    with pytest.raises(ValueError, match="same length, got 1 and 2"):
        paired_difference([0.5], [0.5, 0.6])
    with pytest.raises(ValueError, match="both as lists"):
        paired_difference([0.5], {1: 0.5})
    with pytest.raises(ValueError, match="finite"):
        paired_difference([float("nan")], [0.5])
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        paired_difference([0.5], [0.5], confidence=95)
    with pytest.raises(ValueError, match="need n >= 2"):
        detectable_effect(1.0, 1)
    with pytest.raises(ValueError, match="power must be above alpha"):
        detectable_effect(1.0, 5, power=0.01)
    with pytest.raises(ValueError, match="power must be above alpha"):
        seeds_needed(1.0, 0.5, power=0.05)
    with pytest.raises(ValueError, match="finite sd >= 0"):
        seeds_needed(-1.0, 1.0)


def test_state_no_torch():
    code = "import sys, leanlabel.evaluation.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_examples():
    assert doctest.testmod(statistics).failed == 0
