"""The section on how hard the hardest negatives are: their shares of the softmax by rank."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from leanlabel.report.charts import Curve, line_chart
from leanlabel.report.markup import Markup, tag
from leanlabel.report.numbers import compact, finite
from leanlabel.report.page import details, section, table

TERM = re.compile(r"hardness_([1-9][0-9]{0,6})")
"""Name under which the mean share of the r-th hardest negative is logged."""


def hardness(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Share of the softmax by rank of the negative, at the first and at the last look."""
    looks = [(row["t"], found) for row in rows if finite(row.get("t")) and (found := shares(row))]
    if not looks:
        return None
    shown = [looks[0]] if len(looks) == 1 else [looks[0], looks[-1]]
    curves = [Curve(list(found), list(found.values()), f"iteration {compact(t)}") for t, found in shown]
    chart = line_chart(
        "share of the softmax", curves, x_label="rank of the negative", log_x=True, legend=True
    )
    ranks = sorted({rank for _, found in shown for rank in found})
    numbers = table(
        ["rank", *(curve.label for curve in curves)],
        [[f"{rank:,}", *(compact(found.get(rank), 3) for _, found in shown)] for rank in ranks],
        label="Share of the softmax by rank",
    )
    lead = "How much of the softmax the r-th hardest negative of a query takes, on average over a batch."
    text = "A steep curve means that few negatives do all the work; a flat one, that all are equally easy."
    text += " At iteration 0 they are noise." if looks[0][0] == 0 else ""
    parts = [tag("div", chart, class_="charts"), details("The numbers", numbers)] if chart else []
    return section(
        "hardness", "Hardest negatives", lead, *parts, tag("p", text, class_="note") if parts else None
    )


def shares(row: Mapping[str, Any]) -> dict[int, float]:
    """Rank -> share of one line of the metrics, ascending; empty where nothing was looked at.

    >>> shares({"t": 3, "loss": 1.0, "hardness_4": 0.1, "hardness_1": 0.3})
    {1: 0.3, 4: 0.1}
    """
    found = {int(match[1]): row[name] for name in row if (match := TERM.fullmatch(str(name)))}
    return {rank: float(found[rank]) for rank in sorted(found) if finite(found[rank])}


def without(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines without these terms, which get no chart of their own."""
    return [{name: value for name, value in row.items() if not TERM.fullmatch(str(name))} for row in rows]
