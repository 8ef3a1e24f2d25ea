"""Scores without labels beside accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from leanlabel.compare.scores import label_free, rank_correlation


def run(readout: str = "trained", **scores: Any) -> dict[str, Any]:
    return {"readout": readout, "results": {"label_free": scores}}


def test_values_table() -> None:
    """Means over seeds; what is missing or not finite is left out."""
    rows = {
        "a": [run(effective_rank=2.0, entropy=1.0), run(effective_rank=4.0)],
        "b": [run(effective_rank=float("nan"), entropy=None), run(effective_rank=5)],
        "raw": [run("raw", effective_rank=100.0)],
        "none": [{"readout": "trained", "results": {}}],
    }
    found = label_free(rows, {"a": 0.9, "b": 0.8})
    assert found == {
        "scores": ["effective_rank", "entropy"],
        "arms": [
            {"arm": "a", "values": {"effective_rank": 3.0, "entropy": 1.0}},
            {"arm": "b", "values": {"effective_rank": 5}},
        ],
        "correlation": [],
    }
    assert label_free({"a": [run()]}, {"a": 0.9}) is None


def test_values_correlation_from_four_arms_on() -> None:
    rows = {name: [run(effective_rank=value)] for name, value in zip("abcd", (1.0, 3.0, 2.0, 9.0))}
    means = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    found = label_free(rows, means)
    assert found is not None
    assert found["correlation"] == [{"score": "effective_rank", "rank": pytest.approx(0.8), "arms": 4}]
    few = label_free(rows, {key: means[key] for key in "abc"})
    assert few is not None
    assert few["correlation"] == []


def test_reference_rank_correlation() -> None:
    numbers = np.random.default_rng(0)
    for count in (4, 7, 30):
        a, b = numbers.integers(0, 5, count).tolist(), numbers.normal(size=count).tolist()
        assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b)[0], rel=1e-10)


def test_degenerate() -> None:
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1], [1]) is None
    assert rank_correlation([], []) is None
