"""What an adaptation leaves of transfer for its page: mixes of its training stream, images without their style."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from leanlabel import api
from leanlabel.banks.class_thresholds import ClassThresholds
from leanlabel.data.pseudo_labels import write_labels
from leanlabel.engine.checkpoint import state_of
from leanlabel.engine.runfolder import RunFolder, read_json
from leanlabel.methods import adapt_mixes
from leanlabel.methods.adapt import Adapt
from leanlabel.methods.adapt_mixes import mix_figure, zero_figure
from leanlabel.methods.resolve import resolve

DOMAINS = ("source", "target")
TINY = [
    *(f"data.{domain}.{key}" for domain in DOMAINS for key in ("train=6", "val=2", "batch_size=2")),
    *(f"data.{domain}.{key}" for domain in DOMAINS for key in ("height=32", "width=48")),
    "data.target.test=4",
    "augment.crop=[32,32]",
    "steps=2",
    "optim.warmup=0",
    "engine={loggers: [], accelerator: cpu, threads: 1, log_every: 1}",
]
TRANSFER = "{name: content-transfer, settings: {tail: 0.3, min_pixels: 1}}"
ZERO = "{name: zero-style, settings: {widths: [8, 8]}}"


def built(*terms: str, more: tuple[str, ...] = ()) -> Any:
    """The method as its seed makes it, and its data; nothing is trained."""
    whole = api.read_recipe("adapt/scenes-small")
    bare = replace(whole, values={key: value for key, value in whole.values.items() if key != "stages"})
    listed = ", ".join(("{name: cross-entropy}", *terms))
    config = resolve(bare, [*TINY, f"method.terms=[{listed}]", "stages={source: {steps: 1}}", *more])
    data = Adapt.read(config)
    method = api.build(config, data).eval()
    assert isinstance(method, Adapt)
    return method, data


def test_values_mixes() -> None:
    """The mixed images are those of the term; nothing that the method holds changes, and twice is the same."""
    method, data = built(TRANSFER, more=("method.ema=null",))
    before = state_of(method)
    found = mix_figure(method, data)
    assert found["term"] == "content-transfer"
    assert 1 <= len(found["examples"]) <= 4
    rare = {one["name"] for one in found["classes"] if one["tail"]}
    assert rare
    assert all(one["classes"] and set(one["classes"]) <= rare for one in found["examples"])
    assert sum(one["source_share"] for one in found["classes"]) == pytest.approx(1, abs=1e-4)
    assert {one["pasted"] for one in found["classes"]} == {None}, "nothing was trained"
    assert mix_figure(method, data) == found
    after = state_of(method)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert method._updater is None
    term: Any = method.terms()[1][0]
    term.pasted[:] = torch.arange(len(term.pasted))
    shown = mix_figure(method, data)["classes"]
    assert [one["pasted"] for one in shown] == list(range(len(shown)))


def test_values_labels_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without stored pseudo labels nothing stands around: never the true labels of the target."""
    method, data = built(TRANSFER, more=("method.ema=null", "data.target.labels=auto"))
    seen: list[Any] = []
    monkeypatch.setattr(adapt_mixes, "transfer_figure", lambda *_, **more: seen.append(more) or {})
    mix_figure(method, data)
    assert seen[0]["around"] == ""
    assert seen[0]["examples"]
    for one in seen[0]["examples"]:
        assert bool((one.label[~one.region] == 255).all())
        assert bool((one.label[one.region] != 255).all())
        assert 0 <= float(one.image.min()) < float(one.image.max()) <= 1


def test_values_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the method holds stored pseudo labels, these stand around what is pasted."""
    method, data = built(TRANSFER, more=("method.ema=null",))

    def all_of_class_2(images: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.full(one.shape[-2:], 2).byte(), torch.ones(one.shape[-2:])) for one in images]

    write_labels(
        *(tmp_path, data.target, method.target_rows, all_of_class_2, method.classes, ""),
        counter=ClassThresholds(len(method.classes)),
    )
    method.use_labels(tmp_path)
    found = mix_figure(method, data)
    assert found["around"] == "stored pseudo labels"
    assert [one["target_share"] for one in found["classes"]] == [
        float(k == 2) for k in range(len(method.classes))
    ]
    seen: list[Any] = []
    monkeypatch.setattr(adapt_mixes, "transfer_figure", lambda *_, **more: seen.append(more) or {})
    mix_figure(method, data)
    assert any(bool((~one.region).any()) for one in seen[0]["examples"])
    assert all(bool((one.label[~one.region] == 2).all()) for one in seen[0]["examples"])


def test_values_online() -> None:
    """The average of the network labels what is around."""
    method, data = built("{name: class-mix}", more=("method.ema=0.9",))
    found = mix_figure(method, data)
    assert found["term"] == "class-mix"
    assert found["around"].startswith("the average of the network")
    assert len(found["examples"]) == 4
    assert {one["tail"] for one in found["classes"]} == {None}


def test_values_zero_style(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of both domains as they were read, and the error of what the decoder makes of them."""
    method, data = built(ZERO, more=("method.ema=null",))
    seen: list[Any] = []
    monkeypatch.setattr(adapt_mixes, "zero_style_figure", lambda *given: seen.append(given) or {})
    zero_figure(method, data)
    source, target = seen[0]
    assert (len(source), len(target)) == (2, 4)
    encoder, decoder = (method.network_of("zero-style", key) for key in ("style", "decoder"))
    for images, listed, part in ((data.source, source, "val"), (data.target, target, "test")):
        row = int(images.splits[part][0])
        raw = images.pixels.read([row])[0]
        torch.testing.assert_close(listed[0].image, raw.float() / 255, atol=1e-5, rtol=0)
        with torch.no_grad(), method.reading(images):
            x = method.normalised(raw[None])
            content = method.deployed(x).features
            rebuilt, zero = decoder(content, encoder(x), x.shape[-2:]), decoder(content, None, x.shape[-2:])
        assert listed[0].error == pytest.approx(float((rebuilt - x).abs().mean()), rel=1e-5)
        mean, std = (torch.tensor(one).view(-1, 1, 1) for one in (method.look.mean, method.look.std))
        torch.testing.assert_close(listed[0].zero, (zero[0] * std + mean).clamp(0, 1))
    assert source[0].id != target[0].id


def test_degenerate() -> None:
    """No such term: nothing to show. A val part without images: training images stand for it."""
    method, data = built()
    assert mix_figure(method, data) == {}
    assert zero_figure(method, data) == {}

    method, data = built(ZERO, more=("method.ema=null",))
    data.source.splits["val"] = torch.zeros(0, dtype=torch.int64)
    shown = {one["name"]: len(one["examples"]) for one in zero_figure(method, data)["domains"]}
    assert shown == {"source": 4, "target": 4}


def test_state_lost_labels(tmp_path: Path) -> None:
    """A run whose pseudo labels are damaged is measured as before; its pictures are without them, and it says so."""
    whole = api.read_recipe("adapt/scenes-small")
    bare = replace(whole, values={key: value for key, value in whole.values.items() if key != "stages"})
    stage = "{steps: 2, method: {terms: [{name: cross-entropy}]}}"
    terms = f"method.terms=[{{name: cross-entropy}}, {{name: self-training}}, {TRANSFER}]"
    overrides = [*TINY, "method.ema=null", f"stages={{source: {stage}}}", terms]
    run = api.fit(bare, run=tmp_path / "run", overrides=overrides, quiet=True)
    place = RunFolder(run.path)
    before, mixes = read_json(place.results), place.figures / "mixes.json"
    assert read_json(mixes)["around"] == "stored pseudo labels"

    pointer = place.stages / "pseudo-labels.json"
    next((run.path / read_json(pointer)["folder"]).glob("*.png")).unlink()
    api.evaluate(run.path)
    after = read_json(place.results)
    assert {**after, "protocols": None} == {**before, "protocols": None}
    assert after["protocols"]["miou"]["readouts"] == before["protocols"]["miou"]["readouts"]
    assert read_json(mixes)["around"] == ""
    assert any("stage pseudo-labels" in one for one in read_json(place.warnings))
