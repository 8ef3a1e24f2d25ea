"""Recorded runs on images: which arm each of them is, what it scored, and which learning rate counts."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blocks.records import TUNED, changed
from blocks.tables import ROOT, plain

RESULTS = ROOT / "proofs" / "mochi" / "results.jsonl"

DATA = {"glyphs": "Glyphs, 200 classes", "cifar10": "CIFAR-10, 10 classes", "pacs": "PACS, 7 classes"}
"""Name of the recipes on it -> title of a data set."""
METHODS = {
    "moco-v2": "MoCo-v2",
    "mochi": "MoCHi",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "vicreg": "VICReg",
    "supervised-image": "supervised",
}
"""Folder of the recipes -> the method's title."""
PLAIN, MIXED, UNTRAINED = METHODS["moco-v2"], METHODS["mochi"], "untrained backbone"
CLASSES, PER_CLASS = "data.classes", "data.per_class"
"""What the dial turns."""
_SIZES = ("hardest", "pairs", "with_query")
_OF_ARM = {TUNED, "method.class_oracle", "method.mixing", *(f"method.mixing.{key}" for key in _SIZES)}


@dataclass(frozen=True)
class Measure:
    """One number of a run.

    Attributes:
        title: its heading.
        of: "protocols" or "label_free", where it stands in the results.
        key: its name there.
        higher: whether more is better; None where that cannot be said.
        digits: decimals that are shown.
    """

    title: str
    of: str
    key: str
    higher: bool | None = True
    digits: int = 2

    def value(self, row: Mapping[str, Any]) -> float | None:
        """The number of a recorded run, scores in percent; None where it was not measured."""
        found = row["results"].get(self.of, {}).get(self.key)
        if self.of != "protocols" or found is None:
            return found
        readout = found["readouts"].get(row["readout"])
        return None if readout is None else 100 * readout["mean"]

    def spread(self, numbers: Sequence[float]) -> str:
        """Mean ± standard deviation over seeds."""
        more = f" ± {statistics.stdev(numbers):.{self.digits}f}" if len(numbers) > 1 else ""
        return f"{statistics.fmean(numbers):.{self.digits}f}{more}"


KNN = Measure("kNN %", "protocols", "knn")
LOGISTIC = Measure("logistic %", "protocols", "logistic-l2")
UNIFORM = Measure("uniformity", "label_free", "uniformity", higher=False, digits=3)
ALIGNED = Measure("same-class alignment", "label_free", "same_class_alignment", higher=None, digits=3)
MEASURES = (KNN, LOGISTIC, UNIFORM, ALIGNED)


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        data: its data set, a key of `DATA`.
        arm: its method, with (N, s, s') where negatives are mixed.
        seed: its seed.
        values: title of a measure -> its number.
        validation: mean validation accuracy in percent under the protocol that rates are tuned by.
        seconds: of training.
        steps: iterations.
        config: settings that can change a result.
        changed: key -> value, where it departs from its recipe, and neither arm, seed nor tuning says so.
        domains: domain -> score in percent within it, under the first protocol that gives one.
    """

    data: str
    arm: str
    seed: int
    values: Mapping[str, float]
    validation: float | None
    seconds: float
    steps: int
    config: Mapping[str, Any]
    changed: Mapping[str, Any] = field(default_factory=dict)
    domains: Mapping[str, float] = field(default_factory=dict)

    @property
    def lr(self) -> float:
        """Its learning rate."""
        return self.config["optim"]["lr"]

    @property
    def dialled(self) -> bool:
        """Whether the number of classes was turned."""
        return CLASSES in self.changed

    @property
    def changes(self) -> str:
        """The changed settings in words, but for the number of classes."""
        rest = {key: value for key, value in self.changed.items() if key not in (CLASSES, PER_CLASS)}
        return ", ".join(f"`{key}={plain(value)}`" for key, value in rest.items())


def read(file: Path) -> list[Run]:
    """All recorded runs on these data sets; the file may be absent, and a line cut off by a kill is left out."""
    from leanlabel.engine.runfolder import read_lines

    found = []
    for row in read_lines(file):
        recipe = row["recipe"].partition(" (")[0]
        data, arm = recipe.rpartition("/")[2], _arm(row["config"], row["steps"])
        if data not in DATA or arm is None:
            continue
        own = _OF_ARM | ({"steps", "evaluation.readout"} if arm == UNTRAINED else set())
        numbers = {one.title: one.value(row) for one in MEASURES}
        found.append(
            Run(
                data,
                arm,
                row["seed"],
                {title: value for title, value in numbers.items() if value is not None},
                _validation(row),
                row["results"]["training_seconds"],
                row["steps"],
                row["config"],
                {key: value for key, value in changed(row, recipe).items() if key not in own},
                _domains(row),
            )
        )
    return found


def _arm(config: Mapping[str, Any], steps: int) -> str | None:
    """The title of an arm, by its settings: comparisons call the same arm by several names."""
    method = config["method"]
    if steps == 0:
        return UNTRAINED
    mixing = method.get("mixing")
    name = PLAIN if method["name"] == "mochi" and mixing is None else METHODS.get(method["name"])
    if name is None:
        return None
    sizes = "" if mixing is None else f" ({', '.join(str(mixing[key]) for key in _SIZES)})"
    return name + sizes + (", class oracle" if method.get("class_oracle") else "")


@functools.cache
def mixed_arm(data: str) -> str:
    """The arm of the packaged MoCHi recipe on a data set; its bare title where there is none."""
    from leanlabel import api
    from leanlabel.recipe import packaged_recipes

    name = f"mochi/{data}"
    if name not in packaged_recipes():
        return MIXED
    config = api.resolve(name)
    return _arm(config.model_dump(mode="json"), config.steps) or MIXED


def _validation(row: Mapping[str, Any]) -> float | None:
    measured = row["results"]["protocols"].get(row["config"]["evaluation"]["protocol"], {})
    details = measured.get("readouts", {}).get(row["readout"], {}).get("details", [])
    scores = [one["val_accuracy"] for one in details if "val_accuracy" in one]
    return 100 * statistics.fmean(scores) if scores else None


def _domains(row: Mapping[str, Any]) -> dict[str, float]:
    for measured in row["results"]["protocols"].values():
        told = {
            one["name"]: 100 * one["readouts"][row["readout"]]
            for one in measured.get("domains", [])
            if row["readout"] in one["readouts"]
        }
        if told:
            return told
    return {}


class Arms:
    """Runs on one data set with the same settings, by arm, learning rate and seed."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.by: dict[str, dict[float, dict[int, Run]]] = {}
        for one in runs:
            self.by.setdefault(one.arm, {}).setdefault(one.lr, {})[one.seed] = one

    def tried(self, arm: str) -> list[float]:
        """The learning rates of an arm, in the order in which they were recorded."""
        return list(self.by.get(arm, {}))

    def chosen(self, arm: str) -> dict[int, Run]:
        """Seed -> run of the rate that counts: of best validation accuracy at the first seed, the first maximum.

        As `compare --grid` chooses; the other protocols follow that choice.
        """
        rates = self.by.get(arm, {})
        if not rates:
            return {}
        first = min(seed for runs in rates.values() for seed in runs)
        known = {rate: runs[first].validation for rate, runs in rates.items() if first in runs}
        best = max(known, key=lambda rate: known[rate] or 0.0)
        return dict(sorted(rates[best].items()))

    def rate(self, arm: str) -> float:
        """The learning rate that counts."""
        return next(iter(self.chosen(arm).values())).lr

    def told(self, arm: str) -> str:
        """The rate that counts, and among which it was chosen; empty for an arm that does not train."""
        if arm == UNTRAINED:
            return ""
        rates = sorted(self.tried(arm))
        among = f" of {', '.join(f'{one:g}' for one in rates)}" if len(rates) > 1 else ""
        return f"{self.rate(arm):g}{among}"


def values(runs: Mapping[int, Run], measure: Measure) -> dict[int, float]:
    """Seed -> number."""
    return {seed: one.values[measure.title] for seed, one in runs.items() if measure.title in one.values}
