"""What an adaptation measures beside IoU: prototypes of the source on the target, content and style apart."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from leanlabel import api
from leanlabel.engine.runfolder import read_json
from leanlabel.evaluation.domain_classifier import domain_error
from leanlabel.evaluation.domain_gap import blocks
from leanlabel.methods import adapt_prototypes
from leanlabel.methods.adapt import Adapt
from leanlabel.methods.adapt_prototypes import measured, numbers_of, prototype_figure, prototype_numbers
from leanlabel.methods.adapt_separation import held_out, separation_numbers

TERMS = [
    {"name": "cross-entropy"},
    {"name": "prototype-contrast", "settings": {"target": "none"}},
    {"name": "zero-style", "settings": {"style_width": 4, "widths": [8, 8]}},
]
TINY = [
    *(
        f"data.{domain}.{key}"
        for domain in ("source", "target")
        for key in ("train=6", "val=5", "batch_size=2", "height=32", "width=48")
    ),
    "data.target.test=4",
    "augment.crop=[32,32]",
    "steps=2",
    "method.ema=null",
    "optim.warmup=0",
    "engine={loggers: [], accelerator: cpu, threads: 1, log_every: 1}",
    "evaluation.prototypes=true",
    "stages={source: {steps: 10, method: {terms: [{name: cross-entropy}]}}}",
    f"method.terms={json.dumps(TERMS)}",
]
NAMES = {
    "own similarity",
    "other similarity",
    "prototype gap",
    "prototype class gap",
    "nearest-prototype accuracy",
    "nearest-prototype mIoU",
    "one-shot mIoU",
    "one-shot mIoU alone",
}


def run(folder: Path, *more: str) -> api.Run:
    whole = api.read_recipe("adapt/scenes-small")
    bare = replace(whole, values={key: value for key, value in whole.values.items() if key != "stages"})
    return api.fit(bare, run=folder, overrides=[*TINY, *more], quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    return run(tmp_path_factory.mktemp("measures") / "run")


def method_of(found: api.Run) -> Adapt:
    method = found.method
    assert isinstance(method, Adapt)
    method.keep_initial(found.initial(), found.data)
    return method


def test_values(trained: api.Run) -> None:
    """Both readouts have the numbers, the label-free scores those of content and style; they belong together."""
    readouts = trained.results["protocols"]["miou"]["readouts"]
    for key in ("initial", "trained"):
        others = readouts[key]["others"]
        assert set(others) >= NAMES
        assert others["prototype gap"] == pytest.approx(others["own similarity"] - others["other similarity"])
        assert all(0 <= others[name] <= 1 for name in NAMES if "mIoU" in name or "accuracy" in name)
    free = trained.results["label_free"]
    assert 0 <= free["domain accuracy content"] <= 1
    assert 0 <= free["domain accuracy style"] <= 1
    assert min(free[name] for name in ("content drift", "style emptiness", "reconstruction error")) > 0


def test_values_figure(trained: api.Run) -> None:
    """The file for the report has a row for each class and says the same as the results."""
    made = read_json(trained.folder.figures / "prototypes.json")
    readouts = trained.results["protocols"]["miou"]["readouts"]
    assert (made["part"], made["images"], made["shot"]["part"]) == ("test", {"source": 6, "target": 4}, "val")
    assert made["before"] == "weights after stage source"
    for when, key in (("before", "initial"), ("after", "trained")):
        assert made["numbers"][when].items() <= readouts[key]["others"].items()
        drawn = made["embedding"][when]
        assert len(drawn["points"]) == len(drawn["classes"]) == len(drawn["domains"]) > 0
        pairs = list(zip(drawn["classes"], drawn["domains"], strict=True))
        assert max(pairs.count(pair) for pair in set(pairs)) <= 60
        assert {domain for _, domain in pairs} == {0, 1}
        gaps = [one[f"gap_{when}"] for one in made["classes"] if one[f"gap_{when}"] is not None]
        mean = sum(gaps) / len(gaps)
        assert mean == pytest.approx(made["numbers"][when]["prototype class gap"], abs=1e-4)
    assert len(made["classes"]) == len(made["embedding"]["after"]["prototypes"])
    for one, place in zip(made["classes"], made["embedding"]["after"]["prototypes"], strict=True):
        assert (one["images"] > 0) == (place is not None) == (one["norm"] is not None)
        assert one["norm"] is None or 0 < one["norm"] <= 1.0001
    bank, learned = made["bank"], method_of(trained).prototypes
    assert learned is not None
    assert bank["pixels"] == learned.counts.tolist()
    known = [k for k, count in enumerate(bank["pixels"]) if count]
    assert [bank["between"][k][k] for k in known] == pytest.approx([1.0] * len(known), abs=1e-4)
    assert all(-1.0001 <= bank["cosine"][k] <= 1.0001 for k in known)


def test_reference(trained: api.Run) -> None:
    """By loops over images and pixels: prototypes over images, similarity and the nearest one on the target."""
    method, data = method_of(trained), trained.data
    network, k = method.deployed.eval(), len(method.classes)

    def read(images: Any, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        (image,), (mask,) = images.read([row])
        with torch.no_grad(), method.reading(images):
            output = network(method.normalised(image[None]))
        h, w = output.features.shape[-2:]
        down, across = (torch.arange(a) * b // a for a, b in zip((h, w), mask.shape, strict=True))
        z = output.features[0].double().flatten(1).T
        return (
            z / z.norm(dim=1, keepdim=True),
            mask[down][:, across].flatten(),
            output.logits[0].argmax(0).flatten(),
        )

    means: dict[bool, dict[int, list[torch.Tensor]]] = {True: {}, False: {}}
    for row in method.pool.tolist():
        z, labels, guess = read(data.source, row)
        for y in set(labels.tolist()) - {255}:
            for strict in means:
                chosen = (labels == y) & ((guess == y) | (not strict))
                if chosen.any():
                    means[strict].setdefault(y, []).append(z[chosen].mean(0))
    prototypes = {y: torch.stack(means[True].get(y, own)).mean(0) for y, own in means[False].items()}
    assert set(means[True]) < set(means[False]), (
        "some class is nowhere recognised, which is what fallback is for"
    )
    own, other, table = [], [], torch.zeros(k, k, dtype=torch.int64)
    for row in data.target.splits["test"].tolist():
        z, labels, _ = read(data.target, row)
        for one, y in zip(z, labels.tolist(), strict=True):
            if y != 255:
                near = {c: float(one @ p / p.norm()) for c, p in prototypes.items()}
                table[y, max(near, key=lambda c: near[c])] += 1
                if y in prototypes:
                    own.append(float(one @ prototypes[y]))
                    other.append(
                        sum(float(one @ p) for c, p in prototypes.items() if c != y) / (len(prototypes) - 1)
                    )
    found = numbers_of(network, method, data)
    assert found["own similarity"] == pytest.approx(sum(own) / len(own), abs=1e-5)
    assert found["other similarity"] == pytest.approx(sum(other) / len(other), abs=1e-5)
    recall = [float(table[y, y] / table[y].sum()) for y in range(k) if table[y].sum()]
    assert found["nearest-prototype accuracy"] == pytest.approx(sum(recall) / len(recall), abs=0.01)


def test_reference_separation(trained: api.Run) -> None:
    """Drift, emptiness and errors of each domain by plain means, image by image; accuracies are 1 - error."""
    method, data = method_of(trained), trained.data
    encoder, decoder = (method.network_of("zero-style", key).eval() for key in ("style", "decoder"))  # type: ignore[union-attr]
    network, found, means = method.deployed.eval(), separation_numbers(method, data), []
    contents: list[torch.Tensor] = []
    parts = held_out(method, data)
    assert [rows.tolist() for _, rows in parts] == [
        one.splits[name].tolist() for one, name in ((data.source, "val"), (data.target, "test"))
    ]
    for images, rows in parts:
        own = []
        with torch.no_grad(), method.reading(images):
            x = method.normalised(images.pixels.read(rows.tolist()))
            c, s = network(x).features, encoder(x)
            zero = decoder(c, None, x.shape[-2:])
            drift = (network(zero).features - c).abs().mean() / c.abs().mean()
            own += [drift, encoder(zero).abs().mean(), (decoder(c, s, x.shape[-2:]) - x).abs().mean()]
        contents.append(c.mean((2, 3)))
        means.append(torch.stack(own))
    wanted = (sum(means) / 2).tolist()  # type: ignore[union-attr]
    names = ("content drift", "style emptiness", "reconstruction error")
    assert [found[name] for name in names] == pytest.approx(wanted, rel=1e-4)
    groups = tuple(blocks(len(one)) for one in contents)
    error = domain_error(*contents, method.cfg.seed, groups=groups)  # type: ignore[arg-type]
    assert found["domain accuracy content"] == pytest.approx(1 - error)


def test_values_one_shot(trained: api.Run) -> None:
    """The shot is the first image of val; where val is measured, it is left out of what it is scored on."""
    method, data = method_of(trained), trained.data
    found = measured(method.deployed, method, data)
    assert found is not None
    assert found.shot is not None
    assert found.one_shot is not None
    assert found.shot.row == int(data.target.splits["val"][0])
    assert found.one_shot.table.sum() == found.scores.table.sum()
    on_val = api.build(
        method.cfg.model_copy(
            update={"evaluation": method.cfg.evaluation.model_copy(update={"part": "val"})}
        ),
        data,
    )
    assert isinstance(on_val, Adapt)
    again = measured(on_val.deployed, on_val, data)
    assert again is not None
    assert again.one_shot is not None
    assert again.one_shot.table.sum() < again.scores.table.sum()
    lacking = again.one_shot.table.sum(0) > 0
    assert lacking.sum() >= (again.alone.table.sum(0) > 0).sum()  # type: ignore[union-attr]


def test_state(trained: api.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes and weights stay; what was measured is drawn without reading images again, once."""
    method, data = method_of(trained), trained.data
    method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    numbers = prototype_numbers(method, data)
    separation_numbers(method, data)
    assert method.deployed.training
    assert all(value.equal(before[name]) for name, value in method.state_dict().items())
    calls: list[Any] = []
    look = adapt_prototypes.measured
    monkeypatch.setattr(adapt_prototypes, "measured", lambda *given: calls.append(given) or look(*given))
    drawn = prototype_figure(method, data)
    assert not calls
    assert prototype_figure(method, data) == drawn
    assert len(calls) == 2
    assert {when: drawn["numbers"][when] for when in ("before", "after")} == {
        "before": numbers["initial"],
        "after": numbers["trained"],
    }


def test_degenerate(tmp_path: Path) -> None:
    """Without labels of the target there is nothing to hold prototypes against; without the term nothing is parted."""
    found = run(
        tmp_path / "run",
        "data.target.labels=none",
        "method.terms=[{name: cross-entropy}]",
        "stages.source=null",
    )
    method = method_of(found)
    assert prototype_numbers(method, found.data) == {"trained": {}}
    assert prototype_figure(method, found.data) == {}
    assert separation_numbers(method, found.data) == {}
    assert not (found.folder.figures / "prototypes.json").exists()
    assert not NAMES & set(found.results["protocols"]["miou"]["readouts"]["trained"]["others"])
    assert not any(math.isnan(value) for value in found.results["label_free"].values())
