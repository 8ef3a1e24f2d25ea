"""Feature regression: what may not move, what is compared, other sensors and networks, rivals, resume, ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from leanlabel import api
from leanlabel.augment.pairs import plain_image
from leanlabel.config import EngineSettings
from leanlabel.engine import checkpoint
from leanlabel.engine.runfolder import read_json, read_lines
from leanlabel.engine.stop import Interrupted
from leanlabel.errors import InputError
from leanlabel.methods.dense_measuring import device_labels
from leanlabel.methods.feature_regression import FeatureRegression
from leanlabel.recipe import Recipe, merge, override
from smallrun import as_rank, train

SCENES = {"kind": "scenes", "train": 4, "val": 0, "test": 1, "height": 32, "width": 48}
TINY: dict[str, Any] = {
    "about": "pairs of generated scenes",
    "task": "adapt",
    "fidelity": "small",
    "cost": "a second",
    "seed": 0,
    "steps": 2,
    "stages": {"source": {"steps": 2, "method": {"terms": [{"name": "cross-entropy"}]}}},
    "method": {"name": "feature-regression", "watch_every": 0},
    "model": {"name": "tiny-fcn"},
    "data": {
        "source": {**SCENES, "batch_size": 2},
        "target": {"kind": "transformed", "of": SCENES, "sensor": "camera", "batch_size": 2},
        "pairs": {"by": "same"},
    },
    "augment": {"crop": [32, 32]},
    "optim": {"name": "sgd", "lr": 0.01, "warmup": 0, "weight_decay": 0.1},
    "engine": {"loggers": [], "checkpoint_every": 3, "log_every": 1, "accelerator": "cpu", "threads": 1},
    "evaluation": {"further": [], "boundary": False, "spread": False, "source": False},
}
ALONE = "stages.source=null"
UNMEASURED = "evaluation.protocol=none"
SEVERAL = "method.terms=" + json.dumps(
    [{"name": "feature-regression", "settings": {"layers": ["map1", "features"], "scale_batches": 4}}]
)
INFRARED = ("data.target.sensor=infrared", "target_augment={crop: [32, 32], mean: [0.5], std: [0.25]}")
OTHER = ("method.fresh=true", "stages.source.model={name: tiny-fcn, width: 24}")
ADAPTED = "method.terms=" + json.dumps(
    [{"name": "feature-regression", "settings": {"adaptors": {"features": [48, 24]}}}]
)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages that all runs here share."""
    return tmp_path_factory.mktemp("stages")


def recipe(*more: str, changes: Any = None) -> Recipe:
    found = override(Recipe("tiny", TINY), more)
    return Recipe(found.name, merge(found.values, changes or {}))


def config(*more: str) -> Any:
    return api.resolve(recipe(*more))


def built(*more: str) -> FeatureRegression:
    cfg = config(*more)
    method = api.build(cfg, FeatureRegression.read(cfg))
    assert isinstance(method, FeatureRegression)
    return method


def run(folder: Path, *more: str, changes: Any = None, **options: Any) -> api.Run:
    return api.fit(recipe(*more, changes=changes), run=folder, quiet=True, **options)


def weights(method: Any, start: str = "network.") -> dict[str, torch.Tensor]:
    return {name: one for name, one in checkpoint.state_of(method).items() if name.startswith(start)}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def frozen(method: FeatureRegression) -> set[str]:
    return {f"network.{name}" for name, one in method.network.named_parameters() if not one.requires_grad}


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("norm", ["none", "frozen"])
def test_values_identity(tmp_path: Path, norm: str, optimiser: str) -> None:
    """The same images on both sides: a loss of exactly 0, and nothing moves."""
    same = ("data.target.sensor=identity", "optim.weight_decay=0.0", f"optim.name={optimiser}")
    network = ("model={name: fcn, encoder: small-cnn, widths: [4, 8]}", f"model.norm={norm}")
    cfg = config(ALONE, *same, *network, "augment.scale=[0.75, 1.5]", SEVERAL)
    method = api.build(cfg, FeatureRegression.read(cfg))
    before = weights(method)
    train(tmp_path, cfg, method=method)
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [row["loss"] for row in rows] == [0.0] * cfg.steps
    assert changed(before, weights(method)) == set()


def test_values(tmp_path: Path, stages: Path) -> None:
    """The reference is what the stage left, to the last bit; all but the classifier follows it; shifts are found."""
    large = [f"data.{one}.{key}" for one in ("source", "target.of") for key in ("height=48", "width=64")]
    found = run(tmp_path / "run", *large, "data.target.shift.constant=[0, 4]", stages=stages)
    method: Any = found.method
    left = checkpoint.load_weights(found.folder.before)
    asked = {
        name.replace("reference.network.", "network."): one
        for name, one in weights(method, "reference.network.").items()
    }
    assert changed(left, asked) == set()
    assert any(name.endswith("running_mean") for name in asked)
    moved, still = changed(left, weights(method)), frozen(method)
    assert len(still) == 2, "weight and bias of the classifier, which decays no more than it learns"
    assert any(left[name].shape[0] == len(method.classes) for name in still)
    assert moved == {name for name in left if name not in still}

    pairs = read_json(found.folder.figures / "pairs.json")
    names = [method.data.target.ids[row] for row in method.target_rows.tolist()]
    assert [one["id"] for one in pairs["shifts"]] == names
    assert [(one["dy"], one["dx"]) for one in pairs["shifts"]].count((0, 4)) >= len(names) - 1
    assert 0 < pairs["least_response"] < 1
    assert set(pairs["agreement"]) == {"before", "after"}
    told = found.results["label_free"]
    assert told["pair agreement before"] == pairs["agreement"]["before"]["agreement"]
    assert told["pair agreement"] == pairs["agreement"]["after"]["agreement"]
    assert pairs["agreement"]["after"]["pairs"] == len(names)
    assert found.results["protocols"]["miou"]["domain"] == "target"


def test_gradient(tmp_path: Path) -> None:
    """No gradient reaches the reference; its statistics stay in training mode of the rest."""
    method = built(ALONE, "optim.lr=0.1")
    before = weights(method, "reference.")
    train(tmp_path, method.cfg, method=method)
    method.train()
    assert method.reference is not None
    assert not any(one.training for one in method.reference.modules())
    assert all(one.grad is None and not one.requires_grad for one in method.reference.parameters())
    assert changed(before, weights(method, "reference.")) == set()


def test_values_classifier() -> None:
    """The classifier learns where logits are compared, or labels read; else it does not."""
    logits = "method.terms=[{name: feature-regression, settings: {layers: [features, logits]}}]"
    assert len(frozen(built(ALONE))) == 2
    assert frozen(built(ALONE, logits)) == set()
    assert frozen(built(ALONE, "method.terms=[{name: feature-regression}, {name: mask-reuse}]")) == set()
    coarse = built(ALONE, "method.terms=[{name: feature-regression, settings: {layers: [map1]}}]")
    assert len(frozen(coarse)) > 2


@pytest.mark.slow
def test_values_infrared(tmp_path: Path, stages: Path) -> None:
    """One channel in place of three: trained, measured on the target alone, the source stage as it would be alone."""
    found = run(tmp_path / "run", *INFRARED, "evaluation.source=true", stages=stages)
    method: Any = found.method
    first = next(one for one in method.network.modules() if isinstance(one, torch.nn.Conv2d))
    assert first.in_channels == 1
    assert set(found.results["protocols"]) == {"miou"}
    assert all(torch.isfinite(torch.tensor(row["regression"])) for row in found.metrics)
    told = found.results["label_free"]
    assert {"pair agreement", "pair agreement before"} <= set(told)
    kept = next(iter(weights(method, "reference.network.").values()))
    assert kept.shape[1] == 3
    # Three channels that start alike would see grey only.
    assert not torch.allclose(kept[:, 0], kept[:, 1], atol=1e-3)


def test_values_fresh(tmp_path: Path, stages: Path) -> None:
    """From the seed: the reference is what the stage left, and the network is not."""
    found = run(tmp_path / "run", "method.fresh=true", UNMEASURED, stages=stages)
    method: Any = found.method
    left, seed = checkpoint.load_weights(found.folder.before), weights(built("method.fresh=true"))
    still = frozen(method)
    assert len(still) == 2
    for name in still:
        assert torch.equal(weights(method)[name], seed[name])
        assert torch.equal(weights(method, "reference.")[f"reference.{name}"], left[name])
    assert still <= changed(left, seed)


def test_values_other_network(tmp_path: Path, stages: Path) -> None:
    """Another network than the last stage's, a step of adaptors between the two."""
    found = run(tmp_path / "run", *OTHER, ADAPTED, UNMEASURED, stages=stages)
    method: Any = found.method
    assert method.reference.network.width == 24
    assert method.network.width == 48
    assert "pair agreement" in found.results["label_free"]


def test_values_two_stages_fresh(tmp_path: Path, stages: Path) -> None:
    """The second stage goes on with what the first one left, though the last training begins anew."""
    second = "stages.more={steps: 1, method: {terms: [{name: cross-entropy}]}, optim: {lr: 1.0e-12}}"
    found = run(tmp_path / "run", "method.fresh=true", second, "model.norm=none", UNMEASURED, stages=stages)
    pointers = [read_json(found.folder.stages / f"{name}.json")["folder"] for name in ("source", "more")]
    first, last = (checkpoint.load_weights(found.path / folder / "model.safetensors") for folder in pointers)
    assert all(torch.allclose(first[name], last[name], rtol=0, atol=1e-9) for name in first)
    seed = weights(built("method.fresh=true", "model.norm=none"))
    assert any(not torch.allclose(first[name], seed[name], rtol=0, atol=1e-6) for name in first)


BASELINES = sorted(FeatureRegression.baselines)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines(tmp_path: Path, stages: Path, name: str) -> None:
    """Every rival runs on the recipe, also on one that trains a fresh network."""
    fresh = ["method.fresh=true"] if name in ("unadapted", "adabn", "self-training") else []
    found = run(tmp_path / "run", *fresh, changes=FeatureRegression.baselines[name], stages=stages)
    readouts = found.results["protocols"]["miou"]["readouts"]
    assert set(readouts) == {"initial", "trained"}
    still = name in ("unadapted", "adabn")
    assert len(found.metrics) == (0 if still else 2)
    if name == "unadapted":
        assert readouts["initial"] == readouts["trained"]
    if name == "adabn":
        assert found.results["label_free"]["pair agreement"] != 1.0
    assert any("upper bound" in text for text in found.warnings) == (name == "labelled")


def table(folder: Path, text: str) -> str:
    place = folder / "pairs.csv"
    place.write_text("target,source\n" + text)
    return f"data.pairs={{by: csv, path: {json.dumps(str(place))}}}"


def test_values_candidates(tmp_path: Path) -> None:
    """Of several partners one is taken whole, image and mask, and another one in another epoch."""
    lines = [f"train/{a:06},train/{b:06}\n" for a in range(3) for b in range(4) if b != a]
    whole = ("augment.crop=null", "augment.flip=0.0")
    method = built(ALONE, *whole, table(tmp_path, "".join(lines)))
    source = method.data.source
    images = [
        plain_image(one, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) for one in source.pixels.read(range(4))
    ]
    assert method.target_rows.tolist() == [0, 1, 2], "the fourth has no partner"
    assert any("no partner" in text for text in method.notes())
    seen: dict[int, set[int]] = {}
    batches = method.batches(0)
    for t in range(12):
        step = method.begin(t, next(batches))
        assert step.partner is not None
        for place, row in enumerate((step.target.batch.ids % 3).tolist()):
            (other,) = (
                k
                for k, one in enumerate(images)
                if torch.allclose(step.partner.images[place], one, atol=1e-5)
            )
            assert other != row
            assert torch.equal(step.partner.labels[place], device_labels(source.masks.read([other])[0]))  # type: ignore[union-attr]
            seen.setdefault(row, set()).add(other)
    assert all(len(one) > 1 for one in seen.values())


def stopping(at: int) -> Callable[..., None]:
    step = FeatureRegression.step

    def guarded(self: FeatureRegression, t: int, batch: Any) -> None:
        if t == at:
            raise KeyboardInterrupt
        step(self, t, batch)

    return guarded


@pytest.mark.slow
def test_state(tmp_path: Path, stages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three iterations and three more are six, with the scales that losses of several layers are divided by."""
    more = (SEVERAL, "steps=6", UNMEASURED)
    whole = run(tmp_path / "whole", *more, stages=stages)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureRegression, "step", stopping(3))
        with pytest.raises(Interrupted):
            run(tmp_path / "half", *more, stages=stages)
    half = api.resume(tmp_path / "half", quiet=True)
    one, two = (checkpoint.load_weights(each.folder.weights) for each in (whole, half))
    assert changed(one, two) == set()
    assert int(one["term_0.batches"].min()) == 4
    assert float(one["term_0.scales"].min()) > 0
    texts = [each.folder.metrics.read_text() for each in (whole, half)]
    assert texts[0] == texts[1]


def ranked(*more: str) -> Any:
    still = ("model.norm=none", "engine.precision=64-true", "optim.clip=null", "steps=3")
    return config(ALONE, SEVERAL, *still, *more)


def two_ranks(folder: str) -> dict[str, torch.Tensor]:
    as_rank(29994)
    cfg = ranked()
    two = cfg.model_copy(update={"engine": EngineSettings(**{**cfg.engine.model_dump(), "devices": 2})})
    return checkpoint.state_of(train(Path(folder), two))


def test_ranks(pool: Any, tmp_path: Path) -> None:
    """Two ranks equal one, with a classifier that gets no gradient; it stays where it was on both."""
    cfg = ranked()
    method: Any = api.build(cfg, FeatureRegression.read(cfg))
    before, still = weights(method), frozen(method)
    whole = checkpoint.state_of(train(tmp_path / "one", cfg, method=method))
    assert len(still) == 2
    results = pool.run(two_ranks, str(tmp_path / "two"), timeout=180.0)
    for name, value in whole.items():
        for result in results:
            torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-9, msg=name)
    for name in still:
        assert all(torch.equal(one[name], before[name].double()) for one in (whole, *results))
    assert any(not torch.equal(whole[name], before[name].double()) for name in before)
    one, two = (read_lines(tmp_path / part / "metrics.jsonl") for part in ("one", "two"))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.pairs=null"], "expected data.pairs, for a term"),
        (["data.target.of.train=5"], "needs sets of one length"),
        (["data.target.of.height=48", "data.target.of.width=64"], "data.source.resize"),
        (["data.target.sensor=infrared"], "Set target_augment.mean and target_augment.std"),
        (["augment.mean=[0.5, 0.5]"], "augment: images of scenes"),
        (["method.fresh=true", ALONE], "method.fresh: false"),
        (["stages.source.model={name: small-fcn}"], "stages.source.model: another network"),
        ([*OTHER], "{features: [48, 24]}"),
        ([ALONE], "has learned nothing"),
        (["method.most_shift=0"], "method.most_shift"),
        (
            ["method.terms=[{name: feature-regression, settings: {layers: [map9]}}]"],
            "no map9; the encoder has",
        ),
    ],
)
def test_errors(tmp_path: Path, stages: Path, changes: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path / "run", *changes, stages=stages)
    assert said in f"{caught.value} {caught.value.suggestion}"


def test_errors_pairs(tmp_path: Path) -> None:
    """No pair remains; a table that names what is not there."""
    with pytest.raises(InputError, match="none of 4 target images has a partner"):
        built(table(tmp_path, "test/000000,train/000000\n"))
    with pytest.raises(InputError, match=r"pairs\.csv"):
        built(table(tmp_path, "train/000009,train/000000\n"))


def test_degenerate_small_images(tmp_path: Path, stages: Path) -> None:
    """Images of less than twice the largest shift: as far as can be looked is looked."""
    found = run(tmp_path / "run", "method.most_shift=40", "steps=0", UNMEASURED, stages=stages)
    assert len(read_json(found.folder.figures / "pairs.json")["shifts"]) == 4
