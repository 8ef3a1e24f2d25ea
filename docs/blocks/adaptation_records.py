"""Recorded runs between two domains: which arm each of them is, on which data, and what it scored on both."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from blocks.dense_records import TAIL
from blocks.image_records import Measure
from blocks.records import changed
from blocks.tables import ROOT, plain

ADAPTED = ROOT / "proofs" / "adapt" / "results.jsonl"
REGRESSED = ROOT / "proofs" / "feature-regression" / "results.jsonl"

RECIPE = "recipe"
"""What the arm of the recipe itself is called here: comparisons name it after the recipe."""
GAP, SENSOR, SHIFT = "data.target.gap", "data.target.sensor", "data.target.shift"

MAIN = Measure("target mIoU", "protocols", "miou")
RARE = Measure("target tail IoU", "protocols", "tail")
SOURCE = Measure("source mIoU", "protocols", "miou:source")
MEASURES = (MAIN, RARE, SOURCE)
HEAD = Measure("head mIoU", "others", "head mIoU")
TAIL_MEAN = Measure("tail mIoU", "others", "tail mIoU")
"""Means over frequent and rare classes by the share of labelled source pixels (``evaluation.tail``)."""


@dataclass(frozen=True)
class Adapted:
    """One finished run between two domains.

    Attributes:
        data: name of its recipe without the folder.
        arm: its arm; `RECIPE` for that of the recipe.
        seed: its seed.
        values: title of a measure -> number, scores in percent; what stands beside the scores, too, by its own name.
        classes: class -> IoU on the target in percent.
        shares: class -> share of the target's labelled pixels in percent.
        seconds: of the last training.
        before: seconds of the trainings before it, which arms may share.
        steps: iterations of the last training.
        selection: how its weights were chosen.
        config: settings that can change a result.
        changes: settings that depart from the recipe, beyond what makes the arm, in words.
    """

    data: str
    arm: str
    seed: int
    values: Mapping[str, float]
    classes: Mapping[str, float]
    shares: Mapping[str, float]
    seconds: float
    before: float
    steps: int
    selection: str
    config: Mapping[str, Any]
    changes: str

    @property
    def target(self) -> Mapping[str, Any]:
        """Section of the target's data."""
        return self.config["data"]["target"]


def read(file: Path, folder: str, turned: Iterable[str]) -> list[Adapted]:
    """All recorded runs of a folder of recipes; the file may be absent, and a line cut off by a kill is left out.

    Args:
        file: of results.
        folder: of the recipes, such as "adapt".
        turned: key paths, or their beginnings, that tables tell by themselves.
    """
    from leanlabel.engine.runfolder import read_lines

    found = []
    for row in read_lines(file):
        recipe = row["recipe"].partition(" (")[0]
        protocols = row["results"]["protocols"]
        if recipe.partition("/")[0] != folder or row["readout"] not in protocols.get("miou", {}).get(
            "readouts", {}
        ):
            continue
        main = protocols["miou"]
        found.append(
            Adapted(
                recipe.partition("/")[2],
                RECIPE if row["role"] == "recipe" else row["arm"],
                row["seed"],
                _values(row),
                by_class(main, "iou"),
                by_class(main, "share"),
                row["results"]["training_seconds"],
                sum((row["results"].get("stage_seconds") or {}).values()),
                row["steps"],
                main.get("selection", ""),
                row["config"],
                _changes(row, recipe, tuple(turned)),
            )
        )
    return found


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    protocols = row["results"]["protocols"]
    names = [one["name"] for one in protocols["miou"].get("per_class", [])]
    details = protocols["miou"]["readouts"][row["readout"]].get("details", [])
    rare = [
        value
        for name, value in zip(names, details[0]["iou"] if details else [], strict=False)
        if name in TAIL and value is not None
    ]
    found = {MAIN.title: MAIN.value(row), SOURCE.title: SOURCE.value(row)}
    if rare:
        found[RARE.title] = 100 * statistics.fmean(rare)
    beside = protocols["miou"]["readouts"][row["readout"]].get("others", {})
    found = {**scaled(beside), **scaled(row["results"].get("label_free") or {}), **found}
    return {title: value for title, value in found.items() if value is not None}


def scaled(numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers by their names; scores in percent."""
    return {
        name: 100 * value if "IoU" in name or "accuracy" in name else value
        for name, value in numbers.items()
        if value is not None
    }


def by_class(record: Mapping[str, Any], key: str) -> dict[str, float]:
    """Class -> a number of a protocol's record in percent, where it has one."""
    return {one["name"]: 100 * one[key] for one in record.get("per_class", []) if one.get(key) is not None}


# What says how a run is watched, or which of its measurements are left out, and so changes no weight.
_ASIDE = ("evaluation.further", "evaluation.boundary", "evaluation.spread", "method.watch_every", "stages.")


def _changes(row: Mapping[str, Any], recipe: str, turned: tuple[str, ...]) -> str:
    """Settings that neither the arm nor the table tells; an arm other than the recipe's is made by its method."""
    own = () if row["role"] == "recipe" else ("method.", "steps")
    left_out = (*turned, *_ASIDE, *own)
    rest = {key: value for key, value in changed(row, recipe).items() if not key.startswith(left_out)}
    return ", ".join(f"`{key}={plain(value)}`" for key, value in rest.items())


Arms = dict[str, dict[int, Adapted]]


def by_arm(runs: Iterable[Adapted]) -> Arms:
    """Arm -> seed -> run; of several of a seed the newest."""
    found: Arms = {}
    for one in runs:
        found.setdefault(one.arm, {})[one.seed] = one
    return {arm: dict(sorted(seeds.items())) for arm, seeds in found.items()}


class Measured(Protocol):
    """A finished run, whatever else is known of it."""

    @property
    def values(self) -> Mapping[str, float]:
        """Title of a measure -> number."""
        ...


def values(runs: Mapping[int, Measured], measure: Measure) -> dict[int, float]:
    """Seed -> number."""
    return {seed: one.values[measure.title] for seed, one in runs.items() if measure.title in one.values}
