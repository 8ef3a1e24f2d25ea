"""What an adaptation leaves for its page: target images before and after, and whose images a record is of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leanlabel import api
from leanlabel.engine.runfolder import read_json
from leanlabel.methods.adapt_figures import adaptation_pictures, with_domains

TINY = [
    *(
        f"data.{domain}.{key}"
        for domain in ("source", "target")
        for key in ("train=6", "val=2", "batch_size=2")
    ),
    *(f"data.{domain}.{key}" for domain in ("source", "target") for key in ("height=32", "width=48")),
    "data.target.test=4",
    "augment.crop=[32,32]",
    "steps=2",
    "method.terms=[{name: cross-entropy}, {name: self-training}]",
    "method.ema=null",
    "optim.warmup=0",
    "engine={loggers: [], accelerator: cpu, threads: 1, log_every: 1}",
]


def run(folder: Path, *more: str, staged: bool = True) -> api.Run:
    whole = api.read_recipe("adapt/scenes-small")
    bare = replace(whole, values={key: value for key, value in whole.values.items() if key != "stages"})
    stages = "stages={source: {steps: 3, method: {terms: [{name: cross-entropy}]}}}"
    return api.fit(bare, run=folder, overrides=[*TINY, *([stages] if staged else []), *more], quiet=True)


def figure(found: api.Run) -> dict[str, Any]:
    return read_json(found.folder.figures / "adaptation.json")


def test_values(tmp_path: Path) -> None:
    """IoUs of both readouts, on the part that was measured; pictures of both networks; domains of all records."""
    found = run(tmp_path / "run")
    made, protocols = figure(found), found.results["protocols"]
    assert (made["part"], made["before"]) == ("test", "weights after stage source")
    details = {key: one["details"][0] for key, one in protocols["miou"]["readouts"].items()}
    for key, readout in (("before", "initial"), ("after", "trained")):
        wanted = [None if iou is None else round(iou, 6) for iou in details[readout]["iou"]]
        assert [one[key] for one in made["classes"]] == wanted
    assert sum(one["source_share"] for one in made["classes"]) == pytest.approx(1, abs=1e-4)
    assert sum(one["predicted_share"] for one in made["classes"]) == pytest.approx(1, abs=1e-4)
    assert len(made["examples"]) == 4
    assert all(one["label"] for one in made["examples"])
    assert {name: one["domain"] for name, one in protocols.items()} == {
        "miou": "target",
        "miou:val": "target",
        "miou:source": "source",
    }
    page = found.folder.report.read_text(encoding="utf-8")
    assert "Pseudo labels kept" in page  # from the stage: a loaded run does not hold them
    assert "before the last stage" in page
    method = found.method
    start = found.initial()
    method.keep_initial(start, found.data)
    method.evaluate(found.data, found.untrained())
    again = adaptation_pictures(method, found.data)["adaptation"]  # type: ignore[arg-type]
    assert again == made
    method.keep_initial(None, found.data)
    assert adaptation_pictures(method, found.data) == {}  # type: ignore[arg-type]


def test_degenerate_without_labels(tmp_path: Path) -> None:
    """Training images of the target without scores, and records of the source."""
    found = run(tmp_path / "run", "data.target.labels=none")
    made = figure(found)
    assert made["part"] == "images to train on"
    assert {one["after"] for one in made["classes"]} == {None}
    assert sum(one["predicted_share"] for one in made["classes"]) == pytest.approx(1, abs=1e-4)
    assert {(one["kind"], one["label"], one["miou_after"]) for one in made["examples"]} == {
        ("spread", None, None)
    }
    assert [one["domain"] for one in found.results["protocols"].values()] == ["source"]
    assert "Measured on held-out source images" in found.folder.report.read_text(encoding="utf-8")


def test_degenerate_nothing_before(tmp_path: Path) -> None:
    """A run from its seed has no picture of before; with protocol none nothing is measured."""
    found = run(tmp_path / "a", "method.terms=[{name: cross-entropy}]", staged=False)
    assert not (found.folder.figures / "adaptation.json").exists()
    found = run(tmp_path / "b", "evaluation.protocol=none")
    assert not (found.folder.figures / "adaptation.json").exists()


def test_reference_domains() -> None:
    """By which data was read, not by the name."""

    class Both:
        source, target = object(), object()

    found = {"protocol": {"protocol": "miou"}, "further": [{"protocol": "miou:val"}]}
    measured: Any = [("miou", Both.source, "val"), ("miou:val", Both.target, "val")]
    with_domains(found, Both, measured)  # type: ignore[arg-type]
    assert found["protocol"]["domain"] == "source"  # type: ignore[index]
    assert found["further"][0]["domain"] == "target"  # type: ignore[index]
