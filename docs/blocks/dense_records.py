"""Recorded runs of segmentation: which loss each of them minimised, where and with which labels, and what it scored."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.image_records import Arms, Measure, Run
from blocks.records import TUNED, changed
from blocks.tables import ROOT, plain

RESULTS = ROOT / "proofs" / "locally-adaptive" / "results.jsonl"

DATA = {
    "camvid-small": "CamVid at 160 x 120, test_dusk",
    "scenes-small": "Generated scenes at 128 x 96, test",
}
"""Name of the recipes on it -> title of a data set with the part that scores are of."""
TAIL = ("pole", "sign_symbol", "fence", "pedestrian", "bicyclist")
"""Classes with less than 2 % of the labelled training pixels, the same ones on both data sets."""
BASE = "cross-entropy"
NAMED = {(3, 5.0): "locally adaptive", (3, 1.0): "pooling alone", (1, 5.0): "power mean alone"}
"""Window and exponent -> what such a loss is called beside them."""
PLACES = {"input": "at the size of the labels", "feature": "at the stride of the scores"}
NOISE = "method.label_noise"

MAIN = Measure("mIoU", "protocols", "miou")
VAL = Measure("mIoU on val", "protocols", "miou:val")
EDGE = Measure("boundary IoU", "protocols", "boundary IoU")
HEAD = Measure("head IoU", "protocols", "head")
RARE = Measure("tail IoU", "protocols", "tail")
MEASURES = (MAIN, VAL, EDGE, HEAD, RARE)


@dataclass(frozen=True)
class Setting:
    """What runs share that can be compared: all but their loss, learning rate and seed.

    Attributes:
        data: a key of `DATA`.
        place: a key of `PLACES`.
        noise: share of exchanged training labels.
        changes: other settings that depart from the recipe, in words.
    """

    data: str
    place: str = "input"
    noise: float = 0.0
    changes: str = ""


def adaptive(n: int, k: float) -> str:
    """Title of the locally adaptive loss with a window and an exponent, and otherwise the packaged settings."""
    if (n, k) == (1, 1.0):
        return f"{BASE} (n = 1, k = 1)"
    return f"{NAMED.get((n, k), 'locally adaptive')} (n = {n}, k = {k:g})"


def read(file: Path) -> dict[Setting, Arms]:
    """All recorded runs that trained, by what they share; the file may be absent, and a cut line is left out."""
    from leanlabel.engine.runfolder import read_lines

    found: dict[Setting, list[Run]] = {}
    for row in read_lines(file):
        recipe = row["recipe"].partition(" (")[0]
        data = recipe.rpartition("/")[2]
        if data not in DATA or row["steps"] == 0 or "miou" not in row["results"]["protocols"]:
            continue
        arm, place = _loss(row["config"]["method"]["terms"], data)
        apart = {key: value for key, value in changed(row, recipe).items() if key not in _OF_ARM}
        told = ", ".join(f"`{key}={plain(value)}`" for key, value in apart.items())
        values = _values(row)
        run = Run(
            data, arm, row["seed"], values, values.get(VAL.title), row["results"]["training_seconds"],
            row["steps"], row["config"], apart,
        )  # fmt: skip
        noise = row["config"]["method"]["label_noise"]
        found.setdefault(Setting(data, place, noise, told), []).append(run)
    return {setting: Arms(runs) for setting, runs in found.items()}


_OF_ARM = {TUNED, NOISE, "method.terms"}


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    """Title of a measure -> percent."""
    protocols = row["results"]["protocols"]
    main = protocols["miou"]["readouts"][row["readout"]]
    names = [one["name"] for one in protocols["miou"]["per_class"]]
    iou = dict(zip(names, main["details"][0]["iou"], strict=True))
    found: dict[str, float | None] = {
        MAIN.title: main["mean"],
        EDGE.title: main.get("others", {}).get("boundary IoU"),
        HEAD.title: _mean(value for name, value in iou.items() if name not in TAIL),
        RARE.title: _mean(value for name, value in iou.items() if name in TAIL),
    }
    if "miou:val" in protocols:
        found[VAL.title] = protocols["miou:val"]["readouts"][row["readout"]]["mean"]
    return {title: 100 * value for title, value in found.items() if value is not None}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _loss(terms: list[dict[str, Any]], data: str) -> tuple[str, str]:
    """Title of what is minimised, and where: "feature" if any of its terms says so."""
    titles, places = [], set()
    for term in terms:
        own = dict(term["settings"])
        places.add(own.pop("at", "input"))
        usual = _usual(term["name"], data)
        if term["name"] == "locally-adaptive":
            title = adaptive(own.pop("n"), float(own.pop("k")))
        else:
            title = BASE if term["name"] == "cross-entropy" else term["name"]
        other = [f"{key}={plain(value)}" for key, value in own.items() if usual.get(key, value) != value]
        weight = "" if term["weight"] == 1 else f"{term['weight']:g} × "
        titles.append(weight + title + (f", {', '.join(other)}" if other else ""))
    return " + ".join(titles), "feature" if "feature" in places else "input"


@functools.cache
def _usual(term: str, data: str) -> dict[str, Any]:
    """Settings of a term in the packaged recipe of its name, else its defaults."""
    from leanlabel import api
    from leanlabel.methods.terms import find_term
    from leanlabel.recipe import packaged_recipes

    name = f"{term}/{data}"
    if name in packaged_recipes():
        return api.resolve(name).model_dump(mode="json")["method"]["terms"][0]["settings"]
    return find_term(term).Settings().model_dump(mode="json")
