"""What prototype contrast is for: features of the unlabelled domain nearer to the prototype of their class."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanlabel import api

COMMON = [
    "engine.threads=1",
    "engine.loggers=[]",
    "evaluation.boundary=false",
    "evaluation.spread=false",
    "evaluation.further=[]",
    "method.watch_every=0",
    "data.source.train=60",
    "data.source.val=0",
    "data.target.train=60",
    "data.target.val=0",
    "data.target.test=30",
    "evaluation.source=false",
    "stages.source.steps=200",
    "steps=80",
]
TERMS = "{name: cross-entropy}, {name: self-training}"


@pytest.mark.slow
def test_gap_of_the_target_rises(tmp_path: Path) -> None:
    """From the same weights, for as many iterations, with the contrast and without, the mean of classes' gaps."""
    contrast = "{name: prototype-contrast, weight: 200.0, settings: {tau: 100.0, balance: class}}"
    gaps = {}
    for name, terms in (("without", TERMS), ("with", f"{TERMS}, {contrast}")):
        run = api.fit(
            "spcl/scenes-target",
            run=tmp_path / name,
            overrides=[*COMMON, f"method.terms=[{terms}]"],
            stages=tmp_path / "stages",
            quiet=True,
        )
        readouts = run.results["protocols"]["miou"]["readouts"]
        gaps[name] = readouts["trained"]["others"]["prototype class gap"]
        gaps["before"] = readouts["initial"]["others"]["prototype class gap"]
    assert gaps["with"] - gaps["without"] >= 0.01, gaps
