"""From recorded runs to one comparison: means, spreads, paired differences, and the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanlabel.engine.runfolder import environment, read_json, read_lines
from leanlabel.errors import InputError
from leanlabel.evaluation.statistics import paired_difference

if TYPE_CHECKING:
    from leanlabel.compare.queue import Job

Rows = dict[str, dict[str, Any]]


def summarise(jobs: Sequence[Job], rows: Rows, recipes: Sequence[str], out: Path) -> dict[str, Any]:
    """Table of arms, paired differences against the baselines, and what has not run.

    Raises:
        InputError: a run has no value to compare (data without labels).
    """
    done = [job for job in jobs if job.key in rows]
    arms = list(dict.fromkeys(job.arm for job in jobs))
    values = {arm: {job.seed: main_value(rows[job.key]) for job in done if job.arm == arm} for arm in arms}
    seconds = {
        arm: {job.seed: rows[job.key]["results"]["training_seconds"] for job in done if job.arm == arm}
        for arm in arms
    }
    first = _protocol(rows[done[0].key]) if done else {}
    split = first.get("split", {})
    return {
        "title": f"Comparison of {', '.join(recipes)}",
        "question": f"Is {arms[0]} better than {', '.join(arms[1:])}?" if len(arms) > 1 else "",
        "recipe": recipes[0],
        "metric": first.get("metric", "accuracy"),
        "protocol": first.get("protocol", ""),
        "selection": first.get("selection", ""),
        "split": f"{split.get('name', '')} ({split.get('count', 0)} per seed)",
        "arms": [_arm(arm, values[arm], seconds[arm]) for arm in arms],
        "pairs": _pairs(arms, [job.arm for job in jobs if not job.baseline], values),
        "pending": [f"{job.arm}, seed {job.seed}" for job in jobs if job.key not in rows],
        "curves": {arm: [_curve(out, job) for job in done if job.arm == arm] for arm in arms},
        "environment": rows[done[0].key]["environment"] if done else environment(),
    }


def _protocol(row: dict[str, Any]) -> dict[str, Any]:
    wanted = row["config"]["evaluation"]["protocol"]
    found = row["results"]["protocols"].get(wanted)
    if found is None:
        raise InputError(
            f"{row['recipe']}, seed {row['seed']}: no result of protocol {wanted}, nothing can be compared.",
            "Comparisons need labels and a protocol other than none.",
        )
    return found


def main_value(row: dict[str, Any]) -> float:
    """The number that stands for a recorded run: the mean of its chosen readout.

    Raises:
        InputError: it was not measured (no labels, protocol none), or has no such readout.
    """
    readouts = _protocol(row)["readouts"]
    if row["readout"] not in readouts:
        raise InputError(
            f"{row['recipe']}, seed {row['seed']}: there is no readout {row['readout']!r}.",
            f"evaluation.readout can be {', '.join(readouts)}.",
        )
    return float(readouts[row["readout"]]["mean"])


def _arm(name: str, values: dict[int, float], seconds: dict[int, float]) -> dict[str, Any]:
    numbers = list(values.values())
    return {
        "name": name,
        "label": name,
        "runs": [{"seed": seed, "value": value, "seconds": seconds[seed]} for seed, value in values.items()],
        "mean": statistics.fmean(numbers) if numbers else None,
        "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "n": len(numbers),
        "seconds": statistics.fmean(seconds.values()) if seconds else None,
    }


def _pairs(arms: list[str], main: list[str], values: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    """Every arm that a recipe was given for against every other one, where they share seeds."""
    pairs = []
    leading = [arm for arm in arms if arm in main]
    for position, arm in enumerate(leading):
        for against in [*leading[position + 1 :], *(other for other in arms if other not in main)]:
            if not set(values[arm]) & set(values[against]):
                continue
            found = paired_difference(values[arm], values[against])
            low, high = found.interval or (None, None)
            pairs.append(
                {
                    "arm": arm,
                    "against": against,
                    "difference": found.mean,
                    "low": low,
                    "high": high,
                    "n": found.n,
                    "verdict": found.verdict,
                    "minimal_detectable": found.detectable,
                }
            )
    return pairs


def _curve(out: Path, job: Job) -> dict[str, Any]:
    rows = [row for row in read_lines(job.folder(out) / "metrics.jsonl") if "loss" in row]
    return {"seed": job.seed, "t": [row["t"] for row in rows], "loss": [row["loss"] for row in rows]}


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison."""
    return (folder / "comparison.json").is_file()


def write_page(folder: Path) -> Path:
    """Write ``report.html`` of a comparison from its ``comparison.json``."""
    from leanlabel.report.comparison import write_comparison

    return write_comparison(folder / "report.html", read_json(folder / "comparison.json"))
