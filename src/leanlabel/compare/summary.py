"""From recorded runs to one comparison: means, spreads, paired differences, alarms, and the page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanlabel.compare.dial import dialled
from leanlabel.compare.scores import label_free
from leanlabel.compare.verdict import alarm, judge, pairs_of
from leanlabel.engine.runfolder import environment, read_json, read_lines
from leanlabel.errors import InputError
from leanlabel.report.numbers import are_shares

if TYPE_CHECKING:
    from leanlabel.compare.jobs import Job, Layout
    from leanlabel.compare.records import Row, Rows
    from leanlabel.compare.request import Request


@dataclass(frozen=True)
class Stop:
    """A run that stopped for good, or all runs that an arm was to be tuned with.

    Attributes:
        arm: name of the arm.
        key: of the run; empty for a whole arm.
        title: the run in words.
        reason: why.
    """

    arm: str
    key: str
    title: str
    reason: str


@dataclass
class Measured:
    """What the finished runs of one arm say, by seed."""

    runs: dict[int, tuple[Job, Row]] = field(default_factory=dict)

    @property
    def values(self) -> dict[int, float]:
        """Score of the arm's readout."""
        return {seed: main_value(row) for seed, (_, row) in self.runs.items()}

    @property
    def seconds(self) -> dict[int, float]:
        """Training time."""
        return {seed: row["results"]["training_seconds"] for seed, (_, row) in self.runs.items()}

    def readout(self, name: str) -> dict[int, float]:
        """Score of another readout of the same runs, where it was measured."""
        found = {seed: _protocol(row)["readouts"].get(name) for seed, (_, row) in self.runs.items()}
        return {seed: float(one["mean"]) for seed, one in found.items() if one is not None}


def summarise(
    layout: Layout,
    jobs: Sequence[Job],
    rows: Rows,
    request: Request,
    out: Path,
    *,
    tuning: Mapping[str, Any] | None = None,
    open_runs: Sequence[str] = (),
    stops: Sequence[Stop] = (),
) -> dict[str, Any]:
    """Table of arms, paired differences, alarms, and what has not run.

    Args:
        layout: the arms and settings of the dial.
        jobs: the runs that count.
        rows: those that are done, by key.
        request: what was asked for.
        out: folder of the runs, for the loss curves.
        tuning: what `compare.tuning` says; None where nothing was tuned.
        open_runs: what is to be run besides, in words.
        stops: runs that stopped for good.

    Raises:
        InputError: a run has no value to compare (data without labels).
    """
    arms, recipes = list(layout.arms), list(request.recipes)
    done = [job for job in jobs if job.key in rows]
    against = request.against and layout.same.get(request.against, request.against)
    budget = {one["arm"]: one["runs"] for one in tuning["arms"]} if tuning else None

    def table(some: list[Job], at: str = "") -> dict[str, Any]:
        return _table(layout, some, rows, against, budget, at)

    dial = dialled(layout.points, jobs, table) if request.dial else None
    whole = table([] if dial else list(jobs))
    stopped = {one.key for one in stops}
    first = dial["points"][0] if dial else whole
    if dial:
        whole |= {key: first[key] for key in ("metric", "protocol", "selection", "split", "splits")}
        whole["alarms"] = sorted(
            (one for point in dial["points"] for one in point["alarms"]),
            key=lambda one: one["level"] != "harm",
        )
    by_arm = {arm: [rows[job.key] for job in done if job.arm == arm] for arm in arms}
    means = {arm["name"]: arm["mean"] for arm in whole["arms"] if arm["mean"] is not None}
    return {
        "title": f"Comparison of {', '.join(recipes)}",
        "question": _question(arms, against, request.dial),
        "recipe": recipes[0],
        "recipes": recipes,
        "seeds": list(layout.seeds),
        "against": against,
        "same": dict(layout.same),
        **whole,
        "tuning": tuning,
        "dial": dial,
        "label_free": None if dial else label_free(by_arm, means),
        "pending": [job.title for job in jobs if job.key not in rows and job.key not in stopped]
        + list(open_runs),
        "stopped": [{"arm": one.arm, "run": one.title, "reason": one.reason} for one in stops],
        "curves": _curves([job for job in done if not dial or job.seed == layout.seeds[0]], rows, out),
        "environment": rows[done[0].key]["environment"] if done else environment(),
    }


def _question(arms: Sequence[str], against: str | None, dial: str | None) -> str:
    if len(arms) < 2:
        return ""
    if dial:
        turned = dial.partition("=")[0].replace("+", " and ")
        return f"When does {arms[0]} help over {', '.join(arms[1:])}, as {turned} changes?"
    if against:
        return f"What is better than {against}?"
    return f"Is {arms[0]} better than {', '.join(arms[1:])}?"


def _table(
    layout: Layout,
    jobs: Sequence[Job],
    rows: Rows,
    against: str | None,
    budget: Mapping[str, int] | None,
    at: str,
) -> dict[str, Any]:
    """Arms, pairs and alarms of runs that stand side by side."""
    found: dict[str, Measured] = {job.arm: Measured() for job in jobs}
    for job in jobs:
        if job.key in rows:
            found[job.arm].runs[job.seed] = (job, rows[job.key])
    some = next((row for one in found.values() for _, row in one.runs.values()), None)
    first = _protocol(some) if some else {}
    split = first.get("split", {})
    shares = are_shares(value for one in found.values() for value in one.values.values())
    return {
        "metric": first.get("metric", "accuracy"),
        "protocol": first.get("protocol", ""),
        "selection": first.get("selection", ""),
        "split": f"{split.get('name', '')} ({split.get('count', 0)} per seed)",
        "splits": {"name": split.get("name"), "count": split.get("count")},
        "arms": [_arm(layout, name, one) for name, one in found.items()],
        "pairs": _pairs(layout, found, against, budget, shares),
        "alarms": _alarms(layout, found, shares, at),
    }


def _protocol(row: Row) -> dict[str, Any]:
    wanted = row["config"]["evaluation"]["protocol"]
    found = row["results"]["protocols"].get(wanted)
    if found is None:
        raise InputError(
            f"{row['recipe']}, seed {row['seed']}: no result of protocol {wanted}, nothing can be compared.",
            "Comparisons need labels and a protocol other than none.",
        )
    return found


def main_value(row: Row) -> float:
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


def _arm(layout: Layout, name: str, one: Measured) -> dict[str, Any]:
    numbers, seconds = list(one.values.values()), list(one.seconds.values())
    arm = layout.arms[name]
    return {
        "name": name,
        "label": name,
        "role": arm.role if arm.role in ("recipe", "variant") else "baseline",
        "supervised": arm.supervised,
        "readout": next((row["readout"] for _, row in one.runs.values()), None),
        "recipe": arm.recipe.name,
        "also": [other for other, kept in layout.same.items() if kept == name],
        "runs": [
            {
                "seed": seed,
                "value": main_value(row),
                "seconds": row["results"]["training_seconds"],
                "whole_seconds": row.get("seconds"),
                "steps": row["steps"],
                "key": row["key"],
            }
            for seed, (_, row) in one.runs.items()
        ],
        "mean": statistics.fmean(numbers) if numbers else None,
        "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "n": len(numbers),
        "seconds": statistics.fmean(seconds) if seconds else None,
    }


def _pairs(
    layout: Layout,
    found: Mapping[str, Measured],
    against: str | None,
    budget: Mapping[str, int] | None,
    shares: bool,
) -> list[dict[str, Any]]:
    """Every recipe and variant against every other arm, or every arm against one, where they share seeds.

    Where only baselines were asked for, those that train lead.
    """
    leading = [name for name in found if not layout.arms[name].baseline]
    leading = leading or [
        name for name, one in found.items() if any(job.trains for job, _ in one.runs.values())
    ]
    pairs = []
    for arm, other in pairs_of(list(found), leading, against):
        one, two = found[arm], found[other]
        if one.runs.keys() & two.runs.keys():
            tuned = (budget[arm], budget[other]) if budget else None
            pairs.append(
                judge(
                    arm,
                    other,
                    one.values,
                    two.values,
                    seconds=one.seconds,
                    other_seconds=two.seconds,
                    tuned=tuned,
                    shares=shares,
                    cost_note=_cost_note(layout, arm, other),
                )
            )
    return pairs


def _cost_note(layout: Layout, *names: str) -> str:
    """What makes the costs of two arms unlike: supervised training fits a network to every split."""
    per_split = [name for name in names if layout.arms[name].supervised]
    return f"{per_split[0]} trains one network per split" if len(per_split) == 1 else ""


def _alarms(layout: Layout, found: Mapping[str, Measured], shares: bool, at: str) -> list[dict[str, Any]]:
    """Trained arms below raw input, below their untrained selves, or below what labels alone reach; worst first.

    The reference is what the same runs have read out raw and untrained: their own network, data and splits. Only where
    a run lacks that does the baseline of its recipe stand in.
    """
    alarms = []
    for name, one in found.items():
        if not any(job.trains for job, _ in one.runs.values()):
            continue
        mine = layout.arms[name]
        for role in ("untrained", "raw"):
            reference, own = layout.baselines.get((mine.source, role), ""), one.readout(role)
            values = {**(found[reference].values if reference in found else {}), **own}
            label = f"its own {role} readout" if own else reference
            alarms.append(alarm(name, label, one.values, values, kind=role, shares=shares, at=at))
        for other, two in found.items():
            if (
                layout.arms[other].supervised
                and not mine.supervised
                and any(j.trains for j, _ in two.runs.values())
            ):
                told = alarm(name, other, one.values, two.values, kind="supervised", shares=shares, at=at)
                alarms.append(told)
    kept = [one for one in alarms if one is not None]
    return sorted(kept, key=lambda one: (one["level"] != "harm", one["difference"]))


def _curves(done: Sequence[Job], rows: Rows, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Loss over iterations."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for job in done:
        folder = job.folder(out, rows[job.key]["fingerprint"])
        found = [row for row in read_lines(folder / "metrics.jsonl") if "loss" in row]
        one = {"seed": job.seed, "t": [row["t"] for row in found], "loss": [row["loss"] for row in found]}
        curves.setdefault(job.arm, []).append(
            {**one, **({"label": job.point.label} if job.point.label else {})}
        )
    return curves


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison."""
    return (folder / "comparison.json").is_file()


def write_page(folder: Path) -> Path:
    """Write ``report.html`` of a comparison from its ``comparison.json``."""
    from leanlabel.report.comparison import write_comparison

    return write_comparison(folder / "report.html", read_json(folder / "comparison.json"))
