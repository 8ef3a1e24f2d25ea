"""The section on the gap between two domains over time, and where the metrics of earlier stages lie."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leanlabel.engine.runfolder import RunFolder, read_json, read_lines
from leanlabel.errors import InputError
from leanlabel.report.answer import mapping
from leanlabel.report.charts import Curve, line_chart
from leanlabel.report.domains import is_adaptation
from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import compact, finite
from leanlabel.report.page import facts, section

CURVES = {
    "domain_gap": ("gap between the domains", "0: their features have the same means"),
    "target_entropy": ("entropy on the target", "0: sure of every pixel, 1: every class alike"),
}
"""Terms of this section, with a title and what their ends mean."""
LAST = ("entropy", "teacher agreement")
"""Scores of target training images after training, of those that read no labels."""
_STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def gap(run: RunFolder, results: Mapping[str, Any], config: Mapping[str, Any]) -> Markup | None:
    """Curves over all stages from the first one that looked, one after the other; None where nobody looked.

    Args:
        run: its folder; may be damaged.
        results: ``results.json``.
        config: the configuration.
    """
    if not is_adaptation(config):
        return None
    stages, after = stage_metrics(run, config), mapping(results.get("label_free"))
    looked = [any(_has(row, name) for row in rows for name in CURVES) for _, rows in stages]
    stages = stages[looked.index(True) :] if any(looked) else []
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in CURVES}
    marks: list[tuple[float, str]] = []
    start = 0
    for name, rows in stages:
        marks.append((start, name))
        for row in rows:
            for term in CURVES:
                if _has(row, term):
                    points[term].append((start + row["t"], row[term]))
        start += 1 + max((row["t"] for row in rows if _is_time(row.get("t"))), default=-1)
    marks = marks[1:]  # the first stage begins where the axis does
    charts = [
        _curve(title, told, points[term], marks) for term, (title, told) in CURVES.items() if points[term]
    ]
    known = [(name, compact(after[name], 3)) for name in LAST if _is_number(after.get(name))]
    told = facts(known, "facts figures") if known else None
    if not charts and not told:
        return None
    lead = "Measured on the same few images while training goes on; this reads no label of the target."
    order = (
        f"Stages in order: {', '.join(name for name, _ in stages)}; an upright line where the next begins."
    )
    note = tag("p", order, class_="note") if marks and charts else None
    drawn = join([tag("div", *charts, class_="charts"), note]) if charts else None
    last = tag("p", "After training, on the target's images to train on:", class_="note")
    return section("gap", "Gap over time", lead, drawn, tag("div", last, told) if told else None)


def _curve(
    title: str, told: str, points: Sequence[tuple[float, float]], marks: Sequence[tuple[float, str]]
) -> Markup | None:
    curve = Curve([t for t, _ in points], [value for _, value in points])
    return line_chart(title, [curve], unit=told, marks=marks)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300 and finite(value)


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _has(row: Mapping[str, Any], term: str) -> bool:
    return _is_time(row.get("t")) and _is_number(row.get(term))


def without(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Lines of the metrics without the terms that have a section of their own."""
    if not is_adaptation(config):
        return rows
    return [{name: value for name, value in row.items() if name not in CURVES} for row in rows]


def stage_metrics(run: RunFolder, config: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Name and lines of the metrics of each stage that trained, in order; those of the run itself last.

    What cannot be read is left out.
    """
    names = [name for name in mapping(config.get("stages")) if isinstance(name, str)]
    found = []
    for name in names:
        folder = stage_folder(run, name)
        rows = _lines(folder / run.metrics.name) if folder is not None else []
        if rows:
            found.append((name, rows))
    return [*found, ("last stage", _lines(run.metrics))]


def stage_folder(run: RunFolder, name: str) -> Path | None:
    """Where the result of a stage lies, as its pointer says."""
    if not _STAGE.fullmatch(name):
        return None
    try:
        folder = mapping(read_json(run.stages / f"{name}.json")).get("folder")
        return run.path / folder if isinstance(folder, str) and (run.path / folder).is_dir() else None
    except (InputError, OSError, ValueError):
        return None


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return read_lines(path)
    except (InputError, OSError, ValueError):
        return []
