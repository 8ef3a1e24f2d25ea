"""The runs of a comparison: arms × points × seeds, each with the key that its result is recorded under."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from leanlabel import api
from leanlabel.compare.arms import Arm, arms_of
from leanlabel.compare.request import PLAIN, Point, Request
from leanlabel.config import EngineSettings, RunConfig
from leanlabel.engine.runfolder import RunFolder, read_json
from leanlabel.errors import InputError
from leanlabel.methods.resolve import resolve
from leanlabel.methods.terms import find_term
from leanlabel.recipe import Recipe, merge

RESULT_KEYS = {"precision", "bf16_products"}
"""Engine settings that can change a result beyond rounding."""
NOT_RECORDED: Any = {"engine": set(EngineSettings.model_fields) - RESULT_KEYS, "about": True, "cost": True}
NOT_IN_KEY: Any = {**NOT_RECORDED, "fidelity": True, "task": True}
SAME = (
    *("protocol", "split", "splits", "shares", "probe_epochs", "knn_k", "knn_temperature"),
    *("part", "empty", "subset", "window", "overlap", "scales", "flip"),
)
"""Evaluation settings that all arms of a comparison share."""
READING = {"normalise", "undirected", "features", "batch_size", "load", "verify"}
"""Data settings that may differ between arms: how the same data is read."""


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Attributes:
        arm: name of the arm.
        seed: its seed.
        recipe: raw keys, the seed among them.
        config: the same, complete and checked.
        source: name of the arm of the recipe that it comes from.
        role: "recipe", "variant", or the name of the baseline in its method.
        point: setting of the dial, or chosen point of the grid.
    """

    arm: str
    seed: int
    recipe: Recipe
    config: RunConfig
    source: str = ""
    role: str = "recipe"
    point: Point = PLAIN

    @property
    def baseline(self) -> bool:
        """Added by the method, not given as a recipe or a variant."""
        return self.role not in ("recipe", "variant")

    @property
    def trains(self) -> bool:
        """Whether it has any iteration."""
        return self.config.steps > 0

    @cached_property
    def key(self) -> str:
        """Hash of what can change the result, where it is not the default: keys added later leave it as it is."""
        return _hash(self._hashed)

    @cached_property
    def twin(self) -> str:
        """The key of the same run where engine settings that change nothing are (not) written in its recipe.

        They leave an empty section behind, which is in the keys of recorded results and has to stay there.
        """
        values = self._hashed
        if values.get("engine"):
            return self.key
        rest = {section: value for section, value in values.items() if section != "engine"}
        return _hash(rest if "engine" in values else {**rest, "engine": {}})

    @property
    def _hashed(self) -> dict[str, Any]:
        values = self.config.model_dump(mode="json", exclude=NOT_IN_KEY, exclude_defaults=True)
        whole = self.config.model_dump(mode="json")
        for entry in values.get("method", {}).get("terms", ()):
            schema = find_term(entry["name"]).Settings
            for key in getattr(schema, "later", ()):
                if entry["settings"].get(key) == schema.model_fields[key].default:
                    del entry["settings"][key]
        values["chosen"] = [whole["method"]["name"], whole.get("data", {}).get("kind")]
        return values

    @cached_property
    def identity(self) -> str:
        """Equal for runs whose numbers are equal: those of one key, those that differ in the optimiser of a training
        without iterations, and all that read out the same raw input."""
        if self.trains:
            return min(self.key, self.twin)
        whole = self.config.model_dump(mode="json")
        if whole["evaluation"]["readout"] != "raw":
            return _hash(
                {name: part for name, part in self._hashed.items() if name != "optim" and part != {}}
            )
        kind = type(getattr(self.config, "data", None)).__qualname__
        read: dict[str, Any] = {section: whole.get(section) for section in ("data", "seed", "task")}
        read |= {key: whole["evaluation"][key] for key in SAME if key in whole["evaluation"]}
        return _hash({**read, "kind": kind, "precision": whole["engine"]["precision"]})

    @property
    def title(self) -> str:
        """The run in words."""
        return ", ".join(part for part in (self.arm, self.point.label, f"seed {self.seed}") if part)

    def folder(self, out: Path, fingerprint: str | None = None) -> Path:
        """Where its run lies or will lie; a folder that holds another run is left alone.

        Args:
            out: folder of the comparison.
            fingerprint: of the data; None takes a run on any data for this one.
        """
        plain = out / self.arm / f"seed-{self.seed}"
        folder = out / self.arm / _safe(self.point.label) / plain.name if self.point.label else plain
        for place in dict.fromkeys((folder, plain)):
            if RunFolder(place).exists() and self._lies_in(place, fingerprint):
                return place
        named = folder.with_name(f"{folder.name}-{self.key}")
        more = (named.with_name(f"{named.name}-{count}") for count in itertools.count(2))
        return next(
            place
            for place in itertools.chain((folder, named), more)
            if not RunFolder(place).exists() or self._lies_in(place, fingerprint)
        )

    def _lies_in(self, folder: Path, fingerprint: str | None) -> bool:
        try:
            found = api.load(folder)
            data = read_json(found.folder.data, {}).get("fingerprint")
        except InputError:  # what lies there cannot be read any more
            return False
        same = replace(self, config=found.config).key in (self.key, self.twin)
        return same and (None in (fingerprint, data) or fingerprint == data)


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _safe(label: str) -> str:
    """A label as the name of a folder on every system."""
    plain = re.sub(r", *", "-", re.sub(r"[\[\]]", "", label))
    return re.sub(r"[^A-Za-z0-9=.+-]+", "_", plain)[:60].strip("._")


@dataclass(frozen=True)
class Layout:
    """All runs of a comparison.

    Attributes:
        arms: the arms that differ, in order.
        same: name of an arm that is equal to an earlier one -> name of that.
        seeds: in order.
        points: in order; only `PLAIN` where nothing is turned.
        jobs: seed by seed, and point by point within a seed.
        plain: the runs where nothing is turned, seed by seed.
        baselines: (arm of a recipe, name of a baseline in its method) -> arm that stands for it.
    """

    arms: dict[str, Arm]
    same: dict[str, str]
    seeds: tuple[int, ...]
    points: tuple[Point, ...]
    jobs: tuple[Job, ...]
    plain: tuple[Job, ...]
    baselines: dict[tuple[str, str], str]

    def of(self, wanted: Callable[[Job], bool]) -> list[Job]:
        """The runs that fulfil a condition, in order."""
        return [job for job in self.jobs if wanted(job)]


def lay_out(request: Request, points: Sequence[Point] = (PLAIN,)) -> Layout:
    """Arms × points × seeds, equal arms once.

    Raises:
        InputError: a mistake in a recipe or an option, an unknown arm (names the known ones), or arms whose numbers
            could not stand in one table.
    """
    tables = [arms_of(request, point) for point in (PLAIN, *points)]
    first = next(iter(tables[0].values())).recipe
    seeds = tuple(resolve(first).seed + offset for offset in range(request.seeds))
    plain = {name: _jobs(arm, seeds, PLAIN) for name, arm in tables[0].items()}
    runs = {
        name: _shared(
            plain[name], [_jobs(arms[name], seeds, point) for point, arms in zip(points, tables[1:])]
        )
        for name in plain
    }
    kept, same = _distinct(runs)
    wanted = _wanted(request.only, "--arm", runs, same)
    against = _wanted([request.against] if request.against else [], "--against", runs, same)
    left = [name for name in kept if not wanted or name in wanted]
    if against and against[0] not in left:
        raise InputError(
            f"--against {request.against}: this arm is left out by --arm.", "Name it there, too."
        )
    for place in range(len(points)):
        comparable([runs[name][place][0] for name in left])
    jobs = [runs[name][place][k] for k in range(len(seeds)) for place in range(len(points)) for name in left]
    arms = {name: tables[0][name] for name in left}
    told = {one: other for one, other in same.items() if other in arms and one in (request.only or same)}
    baselines = {
        (arm.source, arm.role): same.get(name, name) for name, arm in tables[0].items() if arm.baseline
    }
    still = [plain[name][k] for k in range(len(seeds)) for name in left]
    return Layout(arms, told, seeds, tuple(points), tuple(jobs), tuple(still), baselines)


def _jobs(arm: Arm, seeds: Sequence[int], point: Point) -> list[Job]:
    jobs: list[Job] = []
    for seed in seeds:
        values = merge(arm.recipe.values, {"seed": seed})
        one = Recipe(f"{arm.recipe.name} ({arm.name})", values, arm.recipe.origins)
        config = jobs[0].config.model_copy(update={"seed": seed}) if jobs else resolve(one)
        jobs.append(Job(arm.name, seed, one, config, arm.source, arm.role, point))
    return jobs


def _shared(plain: list[Job], table: list[list[Job]]) -> list[list[Job]]:
    """The runs of an arm at all points, those of equal numbers with one configuration: they are made once."""
    known: dict[str, Job] = {job.identity: job for job in plain}
    shared = []
    for jobs in table:
        first = [known.setdefault(job.identity, job) for job in jobs]
        shared.append([replace(job, recipe=one.recipe, config=one.config) for job, one in zip(jobs, first)])
    return shared


def _distinct(runs: dict[str, list[list[Job]]]) -> tuple[list[str], dict[str, str]]:
    """Arms that differ somewhere from every earlier one, and for the others the arm that they are equal to."""
    known: dict[tuple[str, ...], str] = {}
    same = {}
    for name, table in runs.items():
        identity = tuple(jobs[0].identity for jobs in table)
        if identity in known:
            same[name] = known[identity]
        else:
            known[identity] = name
    return list(known.values()), same


def _wanted(names: Sequence[str], option: str, runs: dict[str, Any], same: dict[str, str]) -> list[str]:
    unknown = [name for name in names if name not in runs]
    if unknown:
        raise InputError(
            f"{option} {', '.join(unknown)}: no such arm.", f"This comparison has: {', '.join(runs)}."
        )
    return [same.get(name, name) for name in names]


def comparable(jobs: Sequence[Job]) -> None:
    """Refuse arms whose numbers could not stand in one table.

    Raises:
        InputError: two arms differ in data or protocol; names the keys.
    """
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


def plan(recipes: Sequence[str] | Request, **settings: Any) -> list[Job]:
    """All runs of a plain comparison, so that every arm has its first seed before any has its second.

    Args:
        recipes: names, or a whole `Request`.
        settings: fields of `Request`.

    Raises:
        InputError: as :func:`lay_out`.
    """
    return list(lay_out(recipes if isinstance(recipes, Request) else Request(recipes, **settings)).jobs)
