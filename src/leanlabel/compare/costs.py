"""What a comparison will take before anything starts: runs done and to do, and minutes from recorded runs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from leanlabel.compare.jobs import Job
from leanlabel.compare.records import Ledger, Row

ALIKE = ("data", "model", "batch", "engine")
"""Sections of the configuration that decide what an iteration costs."""


@dataclass(frozen=True)
class Estimate:
    """Minutes of one run.

    Attributes:
        minutes: None where nothing like it was measured.
        basis: how they were found.
    """

    minutes: float | None
    basis: str


def estimate(job: Job, rows: Iterable[Row]) -> Estimate:
    """Minutes of a run from recorded runs of the same arm of the same recipe on the same data and network.

    Training time is scaled by iterations; what a run took beyond it (stages, evaluation, report) is added as it was
    measured. Runs that were interrupted, and rows from before whole runs were timed, only give training time.
    """
    like = [row for row in rows if _alike(row, job)]
    if not like:
        return Estimate(None, "not measured")
    same = [row for row in like if row["steps"] == job.config.steps]
    used = same or [row for row in like if row["steps"] > 0]
    if not used:
        return Estimate(None, "not measured")
    scale = 1.0 if same else job.config.steps / statistics.fmean(row["steps"] for row in used)
    training = scale * statistics.fmean(row["results"]["training_seconds"] for row in used)
    whole = [row for row in used if row.get("seconds") is not None and not row.get("resumed")]
    rest = [max(row["seconds"] - row["results"]["training_seconds"], 0.0) for row in whole]
    basis = f"{len(used)} run{'s' if len(used) > 1 else ''}"
    if not same:
        basis += f" of {', '.join(sorted({str(row['steps']) for row in used}))} iterations"
    if not whole:
        basis += ", training only"
    return Estimate((training + (statistics.fmean(rest) if rest else 0.0)) / 60, basis)


def _alike(row: Row, job: Job) -> bool:
    config = job.config.model_dump(mode="json")
    then = row["config"]
    return (
        row["recipe"] == job.recipe.name
        and then["method"]["name"] == config["method"]["name"]
        and all(_within(then.get(section), config.get(section)) for section in ALIKE)
    )


def _within(then: Any, now: Any) -> bool:
    """Whether what was recorded still stands in the present settings."""
    if isinstance(then, dict) and isinstance(now, dict):
        return all(_within(value, now.get(key)) for key, value in then.items())
    return then is None or then == now


def preview(
    jobs: Sequence[Job], ledger: Ledger, minutes: float | None = None, later: Sequence[Job] = ()
) -> dict[str, Any]:
    """The queue in numbers.

    Args:
        jobs: in the order of running.
        ledger: what is done.
        minutes: time that a call would be given.
        later: stand-ins for runs whose settings are yet to be chosen: counted, and never done.

    Returns:
        "arms": rows of "arm", "runs", "done", "to_do", "minutes_per_run", "minutes", "basis", "cost" (what its recipe
        says); "runs", "done", "to_do", "minutes" (of all that is to do), "measured" (False where some run has no
        estimate, so that minutes are too few), "limit" and "left" (runs that would not be started within it).
    """
    rows = list(ledger.rows().values())
    seen: set[str] = set()
    queue: list[tuple[Job, bool, Estimate]] = []
    for job in jobs:
        if job.key not in seen:
            seen.add(job.key)
            queue.append((job, ledger.done(job) or ledger.stopped(job) is not None, estimate(job, rows)))
    queue += [(job, False, estimate(job, rows)) for job in later]
    waiting = [(job, found) for job, done, found in queue if not done]
    return {
        "arms": [_arm(name, [one for one in queue if one[0].arm == name]) for name in _names(queue)],
        "runs": len(queue),
        "done": len(queue) - len(waiting),
        "to_do": len(waiting),
        "minutes": sum(found.minutes or 0.0 for _, found in waiting),
        "measured": all(found.minutes is not None for _, found in waiting),
        "limit": minutes,
        "left": None if minutes is None else _left([found for _, found in waiting], minutes),
    }


def _names(queue: Sequence[tuple[Job, bool, Estimate]]) -> list[str]:
    return list(dict.fromkeys(job.arm for job, *_ in queue))


def _arm(name: str, runs: Sequence[tuple[Job, bool, Estimate]]) -> dict[str, Any]:
    waiting = [found for _, done, found in runs if not done]
    told = waiting or [found for *_, found in runs]
    known = [found.minutes for found in told if found.minutes is not None]
    return {
        "arm": name,
        "runs": len(runs),
        "done": len(runs) - len(waiting),
        "to_do": len(waiting),
        "minutes_per_run": statistics.fmean(known) if known else None,
        "minutes": sum(found.minutes or 0.0 for found in waiting) if known else None,
        "basis": _basis(told),
        "cost": runs[0][0].config.cost,
    }


def _basis(told: Sequence[Estimate]) -> str:
    """The most common basis, and for how many runs there is none."""
    known = [found for found in told if found.minutes is not None]
    basis = Counter(found.basis for found in known or told).most_common(1)[0][0]
    if known and len(known) < len(told):
        return f"{basis}; {len(told) - len(known)} of {len(told)} not measured"
    return basis


def _left(waiting: Sequence[Estimate], minutes: float) -> int:
    """Runs that are not begun when none starts after the given time."""
    passed = 0.0
    for place, found in enumerate(waiting):
        if passed >= minutes:
            return len(waiting) - place
        passed += found.minutes or 0.0
    return 0
