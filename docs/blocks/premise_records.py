"""Recorded runs of `proofs/spcl/premise.py`: prototype contrast on 256 pre-trained features."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.adaptation_records import MAIN, SOURCE, by_class, scaled
from blocks.tables import ROOT

PREMISE = ROOT / "proofs" / "spcl" / "premise.jsonl"
PLAIN, CONTRAST = "target-ce", "target-ce+contrast"
"""The pair of arms that dials are turned for."""


@dataclass(frozen=True)
class Premise:
    """One finished run.

    Attributes:
        part: "choose", "main", "noise" or "gap".
        arm: its arm, without the setting of a dial.
        seed: its seed.
        setting: of the part's dial; None where it has none.
        values: title of a measure -> number, scores in percent.
        classes: class -> IoU on the target in percent.
        seconds: of the last training.
        contrast: weight, temperature and mean of its contrast, in words; empty without one.
    """

    part: str
    arm: str
    seed: int
    setting: float | None
    values: Mapping[str, float]
    classes: Mapping[str, float]
    seconds: float
    contrast: str


def premises(file: Path) -> list[Premise]:
    """All recorded runs; the file may be absent, and a line cut off by a kill is left out."""
    from leanlabel.engine.runfolder import read_lines

    found = []
    for row in read_lines(file):
        score = row.get("miou", {}).get("trained")
        if score is None:
            continue
        arm, _, setting = row["arm"].rpartition(f", {row['part']} ")
        listed = [{"name": name, "iou": iou} for name, iou in row.get("per_class", {}).items()]
        found.append(
            Premise(
                row["part"],
                arm or row["arm"],
                row["seed"],
                float(setting) if arm else None,
                _values(row, score),
                by_class({"per_class": listed}, "iou"),
                row.get("training_seconds", 0.0),
                _contrast(row.get("changes", [])),
            )
        )
    return found


def _values(row: Mapping[str, Any], score: float) -> dict[str, float]:
    source = row.get("miou:source", {}).get("trained")
    main = {MAIN.title: 100 * score} | ({} if source is None else {SOURCE.title: 100 * source})
    return {**scaled(row.get("others", {}).get("trained", {})), **main}


def _contrast(changes: Sequence[str]) -> str:
    """Settings of the term prototype-contrast among changes of a recipe."""
    entry = re.search(r"name: prototype-contrast.*", " ".join(changes))
    told = dict(re.findall(r"(weight|tau|balance): ([\w.]+)", entry[0])) if entry else {}
    if len(told) < 3:
        return ""
    places = {"pixel": "pixels", "class": "classes"}.get(told["balance"], told["balance"])
    return f"weight {float(told['weight']):g}, τ = {float(told['tau']):g}, mean over {places}"
