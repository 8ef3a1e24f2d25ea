"""Recorded runs as the tables of evidence need them: which settings they changed, and which of them were chosen."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blocks.tables import ROOT, leaves, plain

GCA_RESULTS = ROOT / "proofs" / "gca" / "results.jsonl"
PROOFS = ROOT / "proofs" / "gca"

TUNED = "optim.lr"
"""The key that the proofs tune with --grid."""
RATES = ("augment.edge_rates", "augment.feature_rates")
ATTACHMENT = "data.crossing_attachment"
"""What the dials of the proofs turn."""


@dataclass(frozen=True)
class Record:
    """One finished run under one protocol.

    Attributes:
        recipe: packaged name, or the stem of a file beside the results.
        arm: its arm in the comparison.
        seed: its seed.
        protocol: how it was measured.
        value: score in percent.
        validation: mean validation accuracy over splits in percent; None where the protocol has none.
        seconds: of training.
        steps: iterations.
        config: settings that can change a result.
        changed: key -> value, where the run departs from its recipe, and neither its arm nor its seed says so.
    """

    recipe: str
    arm: str
    seed: int
    protocol: str
    value: float
    validation: float | None
    seconds: float
    steps: int
    config: Mapping[str, Any]
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Name of its method."""
        return self.config["method"]["name"]

    @property
    def lr(self) -> float:
        """Its learning rate."""
        return self.config["optim"]["lr"]

    @property
    def shown(self) -> str:
        """The recipe as it can be given to a command."""
        return self.recipe if "/" in self.recipe else f"proofs/gca/{self.recipe}.yaml"

    @property
    def dials(self) -> set[str]:
        """Keys that a dial has turned: both views lose the same share, which no recipe says, or another graph."""
        rates = self.changed.get(RATES[0])
        turned = {RATES[0]} if rates is not None and rates[0] == rates[1] else set()
        return turned | ({ATTACHMENT} & self.changed.keys())

    def changes(self, without: Iterable[str] = ()) -> str:
        """The changed settings in words."""
        return ", ".join(f"`{key}={plain(v)}`" for key, v in self.changed.items() if key not in set(without))


def read(file: Path) -> list[Record]:
    """All recorded runs; the file may be absent, and a line cut off by a kill is left out."""
    from leanlabel.engine.runfolder import read_lines

    found = []
    for row in read_lines(file):
        recipe = row["recipe"].partition(" (")[0]
        for protocol, measured in row["results"]["protocols"].items():
            readout = measured["readouts"].get(row["readout"])
            if readout is None:
                continue
            scores = [one["val_accuracy"] for one in readout.get("details", []) if "val_accuracy" in one]
            found.append(
                Record(
                    recipe,
                    row["arm"],
                    row["seed"],
                    protocol,
                    100 * readout["mean"],
                    100 * statistics.fmean(scores) if scores else None,
                    row["results"]["training_seconds"],
                    row["steps"],
                    row["config"],
                    changed(row, recipe),
                )
            )
    return found


def changed(row: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """Settings of a recorded run that differ from its recipe and do not follow from its arm or its seed."""
    from leanlabel import methods

    published = _published(recipe)
    if published is None:
        return {}
    method = methods.find(row["config"]["method"]["name"])
    arm = method.baselines_of(_values(recipe)).get(row["arm"], {})
    expected = set(leaves(arm)) | {"seed", "cost", "about", "fidelity", "task", "data.path"}
    if row.get("role") == "variant":
        expected.add("augment.scheme")
    return {
        key: value
        for key, value in leaves(row["config"]).items()
        if key not in expected and _first_form(published.get(key, value)) != _first_form(value)
    }


def _first_form(value: Any) -> Any:
    """A list of terms without settings that were added after results were recorded, where they change nothing."""
    from leanlabel.methods.terms import TABLE, find_term

    if not isinstance(value, list) or not all(isinstance(one, dict) and "settings" in one for one in value):
        return value
    found = []
    for entry in value:
        schema = find_term(entry["name"]).Settings if entry.get("name") in TABLE else None
        later = {key: schema.model_fields[key].default for key in getattr(schema, "later", ()) if schema}
        kept = {key: one for key, one in entry["settings"].items() if key not in later or one != later[key]}
        found.append({**entry, "settings": kept})
    return found


@functools.cache
def _published(recipe: str) -> dict[str, Any] | None:
    """The settings of a recipe; None for one that is not at hand."""
    from leanlabel import api
    from leanlabel.recipe import packaged_recipes

    file = PROOFS / f"{recipe}.yaml"
    if recipe not in packaged_recipes() and not file.is_file():
        return None
    return leaves(api.resolve(recipe if recipe in packaged_recipes() else file).model_dump(mode="json"))


@functools.cache
def _values(recipe: str) -> dict[str, Any]:
    """The keys of a recipe as they are written."""
    from leanlabel.recipe import packaged_recipes, read_recipe

    return read_recipe(recipe if recipe in packaged_recipes() else PROOFS / f"{recipe}.yaml").values


def chosen(records: Sequence[Record]) -> list[Record]:
    """The runs that count where a learning rate was tuned: those of the rate with the best validation accuracy.

    As `compare --grid` chooses: at the first seed, the first maximum. Runs without training are not tuned.
    """
    rates: dict[tuple[str, ...], dict[float, list[Record]]] = {}
    for one in records:
        rates.setdefault(tuned_with(one), {}).setdefault(one.lr, []).append(one)
    return [one for one in records if one.steps == 0 or one.lr == _best(rates[tuned_with(one)])]


def tuned_with(one: Record) -> tuple[str, ...]:
    """What runs share that differ in their learning rate and seed only."""
    return one.recipe, one.arm, one.protocol, one.changes([TUNED])


def _best(rates: Mapping[float, Sequence[Record]]) -> float:
    first = min(one.seed for found in rates.values() for one in found)
    scores = {rate: one.validation for rate, found in rates.items() for one in found if one.seed == first}
    return max(scores, key=lambda rate: scores[rate] if scores[rate] is not None else -1.0)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds."""
    more = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{more}"
