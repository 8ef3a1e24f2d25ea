"""The queue of a comparison: which runs it has, which are done, and the rest one after another."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leanlabel import api, dist, methods
from leanlabel.compare.summary import main_value, summarise, write_page
from leanlabel.config import EngineSettings, RunConfig
from leanlabel.engine.runfolder import JsonLines, RunFolder, environment, read_lines, write_json
from leanlabel.errors import InputError
from leanlabel.methods.resolve import resolve, with_data
from leanlabel.recipe import Recipe, merge, override, read_recipe

RESULT_KEYS = {"precision", "bf16_products"}
"""Engine settings that can change a result beyond rounding."""
NOT_RECORDED: Any = {"engine": set(EngineSettings.model_fields) - RESULT_KEYS, "about": True, "cost": True}
NOT_IN_KEY: Any = {**NOT_RECORDED, "fidelity": True, "task": True}
SAME = ("protocol", "split", "splits", "shares", "probe_epochs")
"""Evaluation settings that all arms of a comparison share."""
READING = {"normalise", "undirected", "features"}
"""Data settings that may differ between arms: how the same graph is read."""

Tell = Callable[[str], None] | None


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Attributes:
        arm: name of the arm.
        seed: its seed.
        recipe: raw keys, the seed among them.
        config: the same, complete and checked.
        baseline: added by the method, not given as a recipe.
    """

    arm: str
    seed: int
    recipe: Recipe
    config: RunConfig
    baseline: bool = False

    @property
    def key(self) -> str:
        """Hash of what can change the result, where it is not the default: keys added later leave it as it is."""
        values = self.config.model_dump(mode="json", exclude=NOT_IN_KEY, exclude_defaults=True)
        whole = self.config.model_dump(mode="json")
        values["chosen"] = [whole["method"]["name"], whole.get("data", {}).get("kind")]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def folder(self, out: Path) -> Path:
        """Where its run lies or will lie; a folder that holds a run of another configuration is left alone."""
        folder = out / self.arm / f"seed-{self.seed}"
        if not RunFolder(folder).exists():
            return folder
        try:
            same = replace(self, config=api.load(folder).config).key == self.key
        except InputError:  # what lies there cannot be read any more
            same = False
        return folder if same else folder.with_name(f"{folder.name}-{self.key}")


def plan(
    recipes: Iterable[str],
    *,
    seeds: int = 3,
    data: Iterable[str] = (),
    overrides: Iterable[str] = (),
    only: Iterable[str] = (),
    baselines: bool = True,
) -> list[Job]:
    """All runs, seed by seed, so that every arm has its first seed before any has its second.

    Args:
        recipes: packaged names or files; each is an arm, and brings the baselines of its method.
        seeds: runs per arm, with seeds counted up from the recipe's own.
        data, overrides: as for ``fit``, applied to every arm.
        only: names of arms to keep; empty for all.
        baselines: add the methods' baselines.

    Raises:
        InputError: a mistake in a recipe, or an unknown arm (names the known ones).
    """
    arms: dict[str, Recipe] = {}
    added: set[str] = set()
    for name in recipes:
        raw = override(with_data(read_recipe(name), list(data)), overrides)
        resolve(raw)
        method = methods.find(raw.values["method"]["name"])
        arms[_free(raw.name.replace("/", "-"), arms)] = raw
        for arm, changes in (method.baselines if baselines else {}).items():
            changed = Recipe(raw.name, merge(raw.values, changes), raw.origins)
            if arm not in arms or arms[arm].values != changed.values:
                free = _free(arm, arms)
                added.add(free)
                arms[free] = changed
    wanted = list(only)
    unknown = [name for name in wanted if name not in arms]
    if unknown:
        raise InputError(
            f"--arm {', '.join(unknown)}: no such arm.", f"This comparison has: {', '.join(arms)}."
        )
    jobs = []
    for offset in range(seeds):
        for arm, raw in arms.items():
            if wanted and arm not in wanted:
                continue
            seed = int(raw.values.get("seed", 0)) + offset
            one = Recipe(f"{raw.name} ({arm})", merge(raw.values, {"seed": seed}), raw.origins)
            jobs.append(Job(arm, seed, one, resolve(one), arm in added))
    _comparable(jobs)
    return jobs


def _comparable(jobs: list[Job]) -> None:
    """Refuse arms whose numbers could not stand in one table."""
    for job in jobs[1:]:
        for section, keys in (("evaluation", set(SAME)), ("data", None)):
            first, other = (one.config.model_dump(mode="json").get(section, {}) for one in (jobs[0], job))
            differing = [
                key
                for key in sorted(keys or (first.keys() | other.keys()) - READING)
                if first.get(key) != other.get(key)
            ]
            if differing:
                told = ", ".join(
                    f"{section}.{key} ({first.get(key)} and {other.get(key)})" for key in differing
                )
                same = " ".join(f"--set {section}.{key}={first.get(key)}" for key in differing)
                raise InputError(
                    f"{jobs[0].arm} and {job.arm} differ in {told}, so their numbers cannot be compared.",
                    f"Give both the same, for example with {same}.",
                )


class _Fingerprints:
    """Fingerprint of a job's data as it is now, read once for each way of reading it."""

    def __init__(self) -> None:
        self.known: dict[str, str | None] = {}

    def of(self, job: Job) -> str | None:
        """None where the data is not at hand: then what was recorded is believed."""
        name = json.dumps(job.config.model_dump(mode="json").get("data"), sort_keys=True)
        if name not in self.known:
            method = methods.find(job.recipe.values["method"]["name"])
            try:
                self.known[name] = method.describe(job.config, method.read(job.config))["fingerprint"]
            except InputError:
                self.known[name] = None
        return self.known[name]


def _free(name: str, taken: dict[str, Any]) -> str:
    counter, free = 1, name
    while free in taken:
        counter += 1
        free = f"{name}-{counter}"
    return free


def run(
    recipes: Iterable[str],
    *,
    seeds: int = 3,
    data: Iterable[str] = (),
    overrides: Iterable[str] = (),
    only: Iterable[str] = (),
    baselines: bool = True,
    out: Path | None = None,
    results: Path | None = None,
    minutes: float | None = None,
    quiet: bool = False,
    tell: Tell = None,
) -> dict[str, Any]:
    """Run what is not done yet, record it, and return the comparison.

    Args:
        recipes, seeds, data, overrides, only, baselines: as for :func:`plan`.
        out: folder of runs and page; None makes ``runs/compare/<first recipe>``.
        results: file of recorded results; None means ``<out>/results.jsonl``.
        minutes: start no new run after this time.
        quiet: no progress lines.
        tell: called with lines of text for the user.

    Returns:
        The comparison, as written to ``<out>/comparison.json``.
    """
    names = list(recipes)
    jobs = plan(names, seeds=seeds, data=data, overrides=overrides, only=only, baselines=baselines)
    out = out or Path("runs") / "compare" / Path(names[0]).stem
    file = results or out / "results.jsonl"
    say: Callable[[str], None] = lambda text: tell(text) if tell and dist.is_main() else None  # noqa: E731
    began, fingerprints = time.monotonic(), _Fingerprints()
    for position, job in enumerate(jobs):
        row = recorded(file).get(job.key)
        done = row is not None and _holds(row, job) and fingerprints.of(job) in (row["fingerprint"], None)
        if dist.broadcast_object(done):
            continue
        if dist.broadcast_object(minutes is not None and (time.monotonic() - began) / 60 >= minutes):
            say(f"Stopped after {minutes:g} minutes; the same command goes on.")
            break
        say(f"\n[{position + 1}/{len(jobs)}] {job.arm}, seed {job.seed}")
        finished = _run_one(job, out, quiet, tell)
        if dist.is_main():
            record(file, job, finished)
        dist.barrier()
        main_value(recorded(file)[job.key])  # not after hours: nothing to compare is said after the first run
    comparison = summarise(jobs, recorded(file), names, out)
    if dist.is_main():
        write_json(out / "comparison.json", comparison)
        comparison["report"] = str(write_page(out))
    return comparison


def _run_one(job: Job, out: Path, quiet: bool, tell: Tell) -> api.Run:
    """Fit, or resume what an earlier call left."""
    folder = job.folder(out)
    if RunFolder(folder).exists():
        return api.resume(folder, quiet=quiet, tell=tell)
    return api.fit(job.recipe, run=folder, stages=out / "stages", quiet=quiet, tell=tell)


def record(file: Path, job: Job, run: api.Run) -> None:
    """Append one finished run to the results; every protocol that was measured, with its per-split values."""
    lines = JsonLines(file)
    lines.append(
        {
            "key": job.key,
            "arm": job.arm,
            "seed": job.seed,
            "recipe": job.recipe.name,
            "readout": run.config.evaluation.readout,
            "fingerprint": json.loads(run.folder.data.read_text(encoding="utf-8"))["fingerprint"],
            "steps": run.config.steps,
            "results": run.results,
            "warnings": run.warnings,
            "config": run.config.model_dump(mode="json", exclude=NOT_RECORDED),
            "environment": environment(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
    )
    lines.close()


def _holds(row: dict[str, Any], job: Job) -> bool:
    """Whether a recorded run is this job's: every key that it recorded still has the value that it had."""
    now = job.config.model_dump(mode="json", exclude=NOT_RECORDED)
    return all(
        now.get(section) == _laid_over(now.get(section), value) for section, value in row["config"].items()
    )


def _laid_over(now: Any, then: Any) -> Any:
    return merge(now, then) if isinstance(now, dict) and isinstance(then, dict) else then


def recorded(file: Path) -> dict[str, dict[str, Any]]:
    """Finished runs by key."""
    return {row["key"]: row for row in read_lines(file)}
