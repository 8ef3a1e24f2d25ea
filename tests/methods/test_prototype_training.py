"""Prototype contrast inside a training: resume, ranks, as the only term, with a first look at the labelled images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leanlabel import api
from leanlabel.config import EngineSettings
from leanlabel.engine import checkpoint
from leanlabel.engine.runfolder import read_lines
from leanlabel.methods import find
from leanlabel.methods.adapt import Adapt
from smallrun import as_rank, train

pytestmark = pytest.mark.slow

TINY = [
    *(
        f"data.{domain}.{key}"
        for domain in ("source", "target")
        for key in ("train=6", "val=2", "height=32", "width=32", "batch_size=2")
    ),
    "data.target.test=2",
    "augment.crop=[32,32]",
    "stages.source=null",
    "optim.lr=0.01",
    "optim.name=sgd",
    "optim.warmup=0",
    "method.watch_every=0",
    "method.adabn=false",
    "engine.loggers=[]",
    "engine.checkpoint_every=3",
    "engine.log_every=1",
    "engine.accelerator=cpu",
    "engine.threads=1",
]


def config(*more: str, others: tuple[str, ...] = ("cross-entropy",), **settings: Any) -> Any:
    terms = [{"name": name} for name in others] + [{"name": "prototype-contrast", "settings": settings}]
    return api.resolve("adapt/scenes-small", [*TINY, "method.terms=" + json.dumps(terms), *more])


ONLINE = {"target": "online", "threshold": 0.05, "tau": 0.1, "initial": "batch"}
STILL = ("model.norm=none", "engine.precision=64-true", "method.ema=0.9")


@pytest.mark.parametrize(
    "settings", [ONLINE, {**ONLINE, "head": 8, "features": "teacher"}], ids=["plain", "head"]
)
def test_state_in_training(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Three iterations, a kill and three more end with the bits of six: weights, head, prototypes, metrics."""
    cfg = config("steps=6", "model.norm=group", "method.ema=0.9", **settings)
    whole = checkpoint.state_of(train(tmp_path / "one", cfg))
    train(tmp_path / "two", cfg, steps=3)
    parts = checkpoint.state_of(train(tmp_path / "two", cfg))
    assert any(".bank." in name for name in whole)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "two")]
    assert lines[0] == lines[1]
    assert "target_gap" in lines[0]


def two_ranks(folder: str, settings: dict[str, Any]) -> dict[str, Tensor]:
    as_rank(29987)
    cfg = config("steps=3", *STILL, **settings)
    two = cfg.model_copy(update={"engine": EngineSettings(**{**cfg.engine.model_dump(), "devices": 2})})
    return checkpoint.state_of(train(Path(folder), two))


@pytest.mark.parametrize("head", [0, 8])
def test_ranks_in_training(pool: Any, tmp_path: Path, head: int) -> None:
    """Two ranks equal one: weights, head, prototypes, logged terms; with a few iterations of waiting."""
    settings = {**ONLINE, "head": head, "wait": 1}
    whole = checkpoint.state_of(train(tmp_path / "one", config("steps=3", *STILL, **settings)))
    results = pool.run(two_ranks, str(tmp_path / "two"), settings, timeout=180.0)
    assert any("_head." in name for name in whole) == bool(head)
    for name, value in whole.items():
        for result in results:
            torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-9, msg=name)
    one, two = (read_lines(tmp_path / part / "metrics.jsonl") for part in ("one", "two"))
    for left, right in zip(one, two, strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-7)


def test_values_alone(tmp_path: Path) -> None:
    """As the only term it trains the features; the classifier is frozen and stays as it was."""
    cfg = config("steps=2", others=(), target="none", initial="batch", tau=0.1)
    method = api.build(cfg, find("adapt").read(cfg))
    assert isinstance(method, Adapt)
    learns = {name for name, one in method.named_parameters() if one.requires_grad}
    assert learns
    assert not any("classifier" in name for name in learns)
    before = checkpoint.state_of(method)
    after = checkpoint.state_of(train(tmp_path, cfg, method=method))
    for name, value in before.items():
        if name.startswith("network.decoder.classifier"):
            assert torch.equal(value, after[name]), name
    assert not torch.equal(*(one["network.encoder.stem.0.weight"] for one in (before, after)))


def test_values_whole_run(tmp_path: Path) -> None:
    """Warm-up, first look, stored pseudo labels, contrast: the pass leaves prototypes that training begins with."""
    source = "stages.source={steps: 2, method: {terms: [{name: cross-entropy}]}}"
    terms = json.dumps(
        [{"name": "cross-entropy"}, {"name": "prototype-contrast", "settings": {"agree": "labels"}}]
    )
    found = api.fit(
        api.read_recipe("adapt/scenes-small"),
        run=tmp_path / "run",
        overrides=[*TINY, "steps=2", "model.norm=group", source, f"method.terms={terms}"],
        quiet=True,
    )
    (first, *_) = read_lines(found.path / "metrics.jsonl")
    assert first["own_similarity"] > first["other_similarity"] - 1
    state = checkpoint.load_weights(found.folder.weights)
    (counts,) = (value for name, value in state.items() if name.endswith("bank.counts"))
    classes = len(find("adapt").read(found.config).source.classes)
    assert first["prototype_source"] == pytest.approx(math.log(classes), abs=0.02)
    # Two iterations see two images of 64 positions each; all the others come from the pass over six images.
    assert float(counts.sum()) > 2 * 2 * 64
