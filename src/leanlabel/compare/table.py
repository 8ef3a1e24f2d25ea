"""A comparison as CSV files: one row per run, one row per pair of arms."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leanlabel.engine.runfolder import write_text

RUN = ("arm", "recipe", "role", "seed", "dial", "value", "training_seconds", "seconds", "steps", "key")
PAIR = (
    "dial", "arm", "against", "n", "difference", "low", "high", "p_value", "minimal_detectable", "seeds_needed",
    "cost_factor", "verdict", "sentence",
)  # fmt: skip


def write_tables(folder: Path, comparison: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write ``comparison.csv`` and ``pairs.csv``; return their paths.

    Raises:
        RunError: they cannot be written; earlier ones are untouched.
    """
    runs, pairs = folder / "comparison.csv", folder / "pairs.csv"
    write_text(runs, as_csv(*run_rows(comparison)))
    write_text(pairs, as_csv(PAIR, [[one.get(name) for name in PAIR] for one in _pairs(comparison)]))
    return runs, pairs


def run_rows(comparison: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of all runs: what is named in `RUN`, then the keys that a dial or a grid has set."""
    rows, keys = [], list((comparison.get("dial") or comparison.get("tuning") or {}).get("keys", []))
    chosen = {one["arm"]: one["settings"] for one in (comparison.get("tuning") or {}).get("arms", [])}
    for point in _points(comparison):
        at = dict.fromkeys(keys, point.get("value"))
        for arm in point["arms"]:
            for run in arm["runs"]:
                named = {
                    "arm": arm["name"],
                    "recipe": arm.get("recipe"),
                    "role": arm.get("role"),
                    "seed": run["seed"],
                    "dial": point.get("text"),
                    "value": run["value"],
                    "training_seconds": run["seconds"],
                    "seconds": run.get("whole_seconds"),
                    "steps": run.get("steps"),
                    "key": run.get("key"),
                }
                settings = at if comparison.get("dial") else chosen.get(arm["name"], {})
                rows.append([*(named[name] for name in RUN), *(settings.get(key) for key in keys)])
    return [*RUN, *keys], rows


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """CSV text in which a spreadsheet finds numbers and words, and never a formula.

    A text that begins like a formula gets an apostrophe in front; numbers, negative ones too, stay numbers.

    Example:
        >>> as_csv(["a", "b"], [["=1+1", -2.5]]).splitlines()
        ['a,b', "'=1+1,-2.5"]
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    written = value if isinstance(value, str) else json.dumps(value)
    return f"'{written}" if written.lstrip().startswith(("=", "+", "-", "@")) else written


def _points(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of the dial, or the comparison itself."""
    return comparison["dial"]["points"] if comparison.get("dial") else [comparison]


def _pairs(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**pair, "dial": point.get("text")} for point in _points(comparison) for pair in point["pairs"]]
