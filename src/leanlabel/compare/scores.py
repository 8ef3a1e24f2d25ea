"""Label-free scores of the arms beside their accuracy: do the signs that need no labels order them rightly?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from leanlabel.report.numbers import finite

ENOUGH = 4
"""Arms from which on a rank correlation is told."""


def label_free(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], means: Mapping[str, float]
) -> dict[str, Any] | None:
    """Table of arms and label-free scores; an arm that reads out the raw input has none.

    Args:
        rows: arm -> recorded runs; their ``results.label_free`` may lack any score.
        means: arm -> mean accuracy.

    Returns:
        "scores" (names), "arms" ("arm", "values": score -> mean over seeds), "correlation" ("score", "rank", "arms":
        how many arms have both); None where no run has a score.
    """
    table: dict[str, dict[str, float]] = {}
    for arm, runs in rows.items():
        found: dict[str, list[float]] = {}
        for row in runs:
            if row["readout"] == "raw":  # the scores are those of the network, not of its input
                continue
            for name, value in (row["results"].get("label_free") or {}).items():
                if finite(value):
                    found.setdefault(name, []).append(value)
        table[arm] = {name: statistics.fmean(values) for name, values in found.items()}
    names = list(dict.fromkeys(name for values in table.values() for name in values))
    if not names:
        return None
    correlation = []
    for name in names:
        both = [arm for arm in table if name in table[arm] and arm in means]
        if len(both) >= ENOUGH:
            rank = rank_correlation([table[arm][name] for arm in both], [means[arm] for arm in both])
            correlation.append({"score": name, "rank": rank, "arms": len(both)})
    arms = [{"arm": arm, "values": values} for arm, values in table.items() if values]
    return {"scores": names, "arms": arms, "correlation": correlation}


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, the correlation of ranks with mean ranks for ties; None where one is constant.

    Args:
        first, second: of the same length, finite.

    Example:
        >>> rank_correlation([1, 2, 3, 9], [1, 4, 9, 16])
        1.0
    """
    a, b = _ranks(first), _ranks(second)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return statistics.correlation(a, b)


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks."""
    return [
        1 + sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]
