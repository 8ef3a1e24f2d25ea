"""The section on pairs: what it says of shifts and agreement, and that no file can break the page."""

from __future__ import annotations

from typing import Any

import pytest

from leanlabel.report.pairs import pairs

GOOD: dict[str, Any] = {
    "shifts": [
        {"id": "a.png", "dy": 0, "dx": 4, "response": 0.6},
        {"id": "<b>", "dy": 3, "dx": 4, "response": 0.1},
        {"id": "c.png", "dy": 0, "dx": 0, "response": 0.5},
    ],
    "least_response": 0.3,
    "agreement": {
        "before": {"agreement": 0.5, "regions": {"agreement": [[0.1, 0.2, 0.3]] * 3}},
        "after": {"agreement": 0.875, "regions": {"agreement": [[0.4, None, 0.6]] * 3}},
    },
}


def test_values() -> None:
    text = str(pairs(GOOD))
    assert "4.0 pixels" in text
    assert "5.0 pixels" in text
    assert "0.875" in text
    assert "0.500" in text
    assert text.index("&lt;b&gt;") < text.index("a.png"), "the largest shift stands first, escaped"
    assert "<b>" not in text


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"shifts": "no", "agreement": 3, "least_response": "x"},
        {
            "shifts": [
                3,
                {"dy": "a"},
                {"dy": float("nan"), "dx": 1, "response": 1},
                {"dy": 1e300, "dx": 1, "response": 1},
            ]
        },
        {"agreement": {"after": {"agreement": True, "regions": {"agreement": [[1], [1, 2]]}}}},
    ],
)
def test_degenerate(values: dict[str, Any]) -> None:
    assert pairs(values) is None or "nan" not in str(pairs(values))
