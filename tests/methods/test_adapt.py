"""Adaptation: stages, what is shared, what is never read, resume, ranks, every pair of terms, bad input."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from leanlabel import api
from leanlabel.config import EngineSettings
from leanlabel.engine import checkpoint
from leanlabel.engine import fit as fit_file
from leanlabel.engine.runfolder import read_json, read_lines
from leanlabel.engine.stop import Interrupted
from leanlabel.errors import InputError
from leanlabel.methods import find
from leanlabel.methods.adapt import Adapt, fill
from leanlabel.methods.adapt_settings import needs_of
from leanlabel.methods.adapt_stages import rehearse
from leanlabel.methods.dense_settings import adapts
from leanlabel.methods.domains import target_ids
from leanlabel.methods.segmentation import channels_read
from leanlabel.methods.terms import TABLE, find_term
from smallrun import as_rank, train

SIZES = [
    f"data.{domain}.{key}"
    for domain in ("source", "target")
    for key in ("train=8", "val=3", "height=32", "width=48", "batch_size=2")
]
TINY = [
    *SIZES,
    "data.target.test=4",
    "augment.crop=[32,32]",
    "steps=4",
    "stages.source=null",
    "optim.lr=0.01",
    "optim.name=sgd",
    "optim.warmup=0",
    "method.watch_every=2",
    "evaluation.part=auto",
    "engine.loggers=[]",
    "engine.checkpoint_every=2",
    "engine.log_every=1",
    "engine.accelerator=cpu",
    "engine.threads=1",
]
SOURCE = "stages.source={steps: 3, method: {terms: [{name: cross-entropy}]}}"
SMALL = {"adversary": {"layers": 3, "width": 4}, "masked-consistency": {"block": 8}}


def config(*more: str, recipe: str = "adapt/scenes-small") -> Any:
    return api.resolve(recipe, [*TINY, *more])


def listed(*names: str) -> str:
    return "method.terms=" + json.dumps([{"name": name, "settings": SMALL.get(name, {})} for name in names])


def needed(*names: str) -> list[str]:
    """What else a recipe with these terms must say."""
    found = [listed(*names)]
    needs = [find_term(name).needs(find_term(name).Settings()) for name in names]
    if any(one.target_labels for one in needs):
        found.append("method.target_labels=true")
    if any(one.pairs for one in needs):
        found += ["data.pairs={by: same}", "data.target.test=0", "data.source.test=0"]
    if any(one.stored for one in needs):
        found.append(SOURCE)
    if "detail" in names:
        found.append("model.multi_resolution=true")
    return found


def built(cfg: Any) -> Adapt:
    method = api.build(cfg, find(cfg.method.name).read(cfg))
    assert isinstance(method, Adapt)
    return method


def run(folder: Path, *more: str, **options: Any) -> api.Run:
    recipe = api.read_recipe("adapt/scenes-small")
    return api.fit(recipe, run=folder, overrides=[*TINY, *more], quiet=True, **options)


def label(method: Adapt, folder: Path) -> None:
    """Let a method label its target images, as the stage before a training does."""
    method.begun.fill_(True)
    (stage,) = (one for one in method.stages(method.cfg, method.data) if one.name.startswith("pseudo-labels"))
    folder.mkdir()
    stage.run(folder)
    method.use_stage(stage.name, folder)


ADAPTING = [name for name in sorted(TABLE) if adapts(find_term(name).needs(find_term(name).Settings()))]
STORED = [name for name in ADAPTING if find_term(name).needs(find_term(name).Settings()).stored]
BOTH = {tuple(sorted(("labelled-target", name))) for name in STORED}  # a pixel has one label
PAIRS = [("cross-entropy", name) for name in ADAPTING if name != "detail"]
MORE = list(itertools.combinations([name for name in ADAPTING if name != "detail"], 2))
NEIGHBOURS = set(itertools.pairwise([name for name in ADAPTING if name != "detail"]))
PAIRS += [
    pair if pair in NEIGHBOURS else pytest.param(pair, marks=pytest.mark.slow)
    for pair in MORE
    if pair not in BOTH
]


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_pairs_of_terms(tmp_path: Path, pair: tuple[str, str]) -> None:
    """Every two terms train together for two steps and move the weights."""
    cfg = config(*needed(*pair), "stages.source=null", "steps=2", "method.watch_every=0")
    method = built(cfg)
    if needs_of(cfg).stored:
        label(method, tmp_path / "labels")
    before = checkpoint.state_of(method)
    after = checkpoint.state_of(train(tmp_path, cfg, method=method))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("network."))
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows)


def test_values_first_loss(tmp_path: Path) -> None:
    """The loss is the weighted sum of what the terms say, source and target each in a stream of its own."""
    terms = [{"name": "cross-entropy"}, {"name": "entropy", "weight": 0.5}]
    train(tmp_path, config("method.terms=" + json.dumps(terms), "method.watch_every=0"))
    for row in read_lines(tmp_path / "metrics.jsonl"):
        assert row["loss"] == pytest.approx(row["cross_entropy"] + 0.5 * row["entropy"], rel=1e-5)


def test_values_target_ids() -> None:
    """Every image once per epoch; the same image has another id when it comes again."""
    found = [target_ids(5, 1, 3, 0, t) for t in range(5)]
    assert sorted(torch.cat(found).remainder(5).tolist()) == sorted([*range(5)] * 3)
    assert sorted(torch.cat(found)[:5].remainder(5).tolist()) == [*range(5)]
    assert all(len(set(one.tolist())) == 3 for one in found)
    large = target_ids(2, 1, 7, 0, 3)
    assert len(set(large.tolist())) == 7, (
        "a batch of more than all images gives each of them numbers of its own"
    )


@pytest.mark.slow
def test_state_in_every_stage(tmp_path: Path) -> None:
    """Killed in the first stage and in the last one, and resumed: the weights of a run that nobody stopped."""
    more = (SOURCE, listed("cross-entropy", "class-mix", "self-training"), "method.ema=0.9")
    whole = run(tmp_path / "whole", *more, stages=tmp_path / "a")
    kill = tmp_path / "killed"
    step, stops = Adapt.step, {(False, 1), (True, 1)}  # in the first stage, then in the last

    def guarded(self: Adapt, t: int, batch: Any) -> None:
        place = (bool(self.cfg.stages), t)
        if place in stops and isinstance(self._updater, fit_file._Loop):  # no rehearsal
            stops.remove(place)
            raise KeyboardInterrupt
        step(self, t, batch)

    Adapt.step = guarded  # type: ignore[method-assign]
    try:
        with pytest.raises(Interrupted):
            run(kill, *more, stages=tmp_path / "b")
        done = [read_json(place)["name"] for place in (tmp_path / "b").glob("*/stage.json")]
        assert "source" not in done
        with pytest.raises(Interrupted):
            api.resume(kill, quiet=True)
        api.resume(kill, quiet=True)
    finally:
        Adapt.step = step  # type: ignore[method-assign]
    one, two = (checkpoint.load_weights(folder / "model.safetensors") for folder in (whole.path, kill))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    texts = [(folder / "metrics.jsonl").read_text() for folder in (whole.path, kill)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_state_shared_stages(tmp_path: Path) -> None:
    """What is not read is not in the key: another target, other terms afterwards share the stage on the source."""
    shared = tmp_path / "stages"
    run(tmp_path / "one", SOURCE, listed("cross-entropy"), stages=shared)
    told: list[str] = []
    run(tmp_path / "two", SOURCE, listed("entropy"), "data.target.gap=0.5", stages=shared, tell=told.append)
    assert any("source: taken from an earlier run" in line for line in told)
    told.clear()
    run(tmp_path / "three", SOURCE, listed("cross-entropy"), "seed=1", stages=shared, tell=told.append)
    assert any("source: computed" in line for line in told)
    results = read_json(tmp_path / "two" / "results.json")
    assert set(results["stage_seconds"]) == {"source"}
    before = [
        read_json(tmp_path / name / "results.json")["protocols"]["miou:source"] for name in ("one", "two")
    ]
    assert len({one["readouts"]["initial"]["mean"] for one in before}) == 1


def test_target_labels_are_not_read(tmp_path: Path) -> None:
    """No mask of a target training image is opened: reading one raises, and a whole run with stages passes."""
    folder = tmp_path / "target"
    written = config("data.target.seed=5")
    images = find("adapt").read(written).target
    (folder / "images" / "train").mkdir(parents=True)
    (folder / "masks" / "train").mkdir(parents=True)
    for part in ("train", "val", "test"):
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(exist_ok=True)
        for row in images.splits[part].tolist():
            pixels, mask = images.pixels.read([row])[0], images.masks.read([row])[0]  # type: ignore[union-attr]
            save(folder / "images" / part / f"{row}.png", pixels.permute(1, 2, 0).numpy())
            place = folder / "masks" / part / f"{row}.png"
            if part == "train":
                place.write_bytes(b"nobody may look in here")
            else:
                save(place, mask.numpy())
    names = json.dumps({"names": list(images.classes.names)})
    target = f"data.target={{kind: file, path: {json.dumps(str(folder))}, classes: {names}, batch_size: 2}}"
    kept = [one for one in TINY if not one.startswith("data.target")]
    found = api.fit(
        api.read_recipe("adapt/scenes-small"),
        run=tmp_path / "run",
        overrides=[*kept, target, SOURCE, listed("cross-entropy", "self-training")],
        quiet=True,
    )
    assert found.results["protocols"]["miou"]["split"]["name"] == "test"
    with pytest.raises(InputError, match="train"):
        api.fit(
            api.read_recipe("adapt/scenes-small"),
            run=tmp_path / "oracle",
            overrides=[*kept, target, listed("labelled-target"), "method.target_labels=true"],
            quiet=True,
        )


def save(place: Path, pixels: Any) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(place)


@pytest.mark.parametrize("select", ["best_val", "entropy", "teacher_agreement", "best_target_val"])
def test_selection(tmp_path: Path, select: str) -> None:
    """Weights are chosen by what is asked for, and by labels of the target only then, which the run says."""
    more = ("method.ema=0.9", listed("cross-entropy"), f"evaluation.select={select}", "evaluation.every=2")
    found = run(tmp_path / "run", *more)
    record = found.results["protocols"]["miou"]
    assert record["selection"] != "weights of the last iteration"
    assert ("chosen by target labels" in record["selection"]) == (select == "best_target_val")
    assert any("labels of the target" in text for text in found.warnings) == (select == "best_target_val")
    assert {"entropy", "confidence"} <= set(found.results["label_free"])


def test_adabn(tmp_path: Path) -> None:
    """Running statistics become those of the target; weights stay, and no iteration is needed."""
    found = run(
        tmp_path / "run", SOURCE, "steps=0", "method.adabn=true", "method.ema=null", listed("cross-entropy")
    )
    after = checkpoint.load_weights(found.folder.weights)
    before = checkpoint.load_weights(found.folder.before)
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (
            not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        )
    readouts = found.results["protocols"]["miou"]["readouts"]
    assert readouts["initial"]["mean"] != readouts["trained"]["mean"]


def test_values_fill_channels() -> None:
    """A first convolution for one channel answers to a grey image as that for three channels does."""
    one, three = torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(3, 4, 3)
    fill(one, three.state_dict())
    grey = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(one(grey), three(grey.expand(2, 3, 8, 8)))
    assert channels_read(torch.nn.Sequential(one)) == 1


def test_degenerate_no_target_labels(tmp_path: Path) -> None:
    """A target without any label is adapted to; what is measured is the source, and the run says so."""
    found = run(tmp_path / "run", "data.target.labels=none", listed("cross-entropy", "entropy"))
    assert found.results["protocols"]["miou"]["split"]["name"] == "val"
    assert any("no labels" in text and "source" in text for text in found.warnings)


def two_ranks(folder: str) -> dict[str, torch.Tensor]:
    as_rank(29995)
    cfg = rank_config()
    two = cfg.model_copy(update={"engine": EngineSettings(**{**cfg.engine.model_dump(), "devices": 2})})
    return checkpoint.state_of(train(Path(folder), two))


def rank_config(*more: str) -> Any:
    terms = listed("cross-entropy", "class-mix", "masked-consistency", "adversary", "feature-distance")
    still = ("model.norm=none", "engine.precision=64-true", "method.adabn=false", "method.ema=0.9")
    return config(terms, *still, "method.sampling.name=rare", "method.sampling.min_pixels=1", *more)


def test_ranks(pool: Any, tmp_path: Path) -> None:
    """Two ranks equal one: weights, average, discriminator, logged terms."""
    alone = train(tmp_path / "one", rank_config())
    results = pool.run(two_ranks, str(tmp_path / "two"), timeout=180.0)
    whole = checkpoint.state_of(alone)
    assert any("discriminator" in name for name in whole)
    for name, value in whole.items():
        for result in results:
            torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-9, msg=name)
    one, two = (read_lines(tmp_path / part / "metrics.jsonl") for part in ("one", "two"))
    for left, right in zip(one, two, strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.pairs=null", "method.terms=[{name: mask-reuse}]"], "data.pairs"),
        (["method.terms=[{name: labelled-target}]"], "method.target_labels: true"),
        (["method.terms=[{name: self-training}]"], "Add a stage under stages"),
        (["method.ema=null"], "method.ema"),
        (["evaluation.select=best_target_val", "data.target.val=0"], "no val part"),
        (
            ["evaluation.select=teacher_agreement", "method.terms=[{name: entropy}]", "method.ema=null"],
            "method.ema",
        ),
        (["data.source.batch_size=9"], "data.source.batch_size"),
        (["data.source.batch_size=4"], "batch_size"),
        (["method.adabn=true", "model.norm=none"], "no batch norm"),
        (["stages.warm-up={steps: 3, stepss: 3}"], "stepss"),
        (["stages.warm-up={method: {terms: [{name: cross-entropy}]}}"], "stages.warm-up.steps"),
        (["stages={/somewhere/else: {steps: 3}}"], "/somewhere/else"),
        (["stages.pseudo-labels={steps: 3}"], "taken"),
        (["stages.first-look={steps: 3}"], "taken"),
        (
            [
                "method.terms=[{name: class-mix, settings: {donors: drawn, online: false}}, {name: content-transfer}]",
                SOURCE,
            ],
            "one term only",
        ),
        (["stages.warm-up={steps: 3, data: {source: {seed: 4}}}"], "same data"),
        (["stages.warm-up={steps: 3, engine: {precision: 64-true}}"], "one value holds"),
        (
            ["stages.warm-up={steps: 3, evaluation: {select: best_val}}", "data.source.val=0"],
            "stages.warm-up: eval",
        ),
        (
            ["method.terms=[{name: self-training}, {name: labelled-target}]", "method.target_labels=true"],
            "a pixel has one label",
        ),
    ],
)
def test_errors(tmp_path: Path, changes: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path / "run", *changes)
    assert said in f"{caught.value} {caught.value.suggestion}"


def test_errors_before_the_first_stage(tmp_path: Path) -> None:
    """What the last training cannot do is said before an earlier one has spent its time."""
    told: list[str] = []
    late = "method.terms=" + json.dumps([{"name": "cross-entropy"}, {"name": "detail", "start": 3}])
    with pytest.raises(InputError, match="multi_resolution"):
        run(tmp_path / "run", SOURCE, late, stages=tmp_path / "stages", tell=told.append)
    assert not any("computed" in line for line in told)


def test_values_stage_method() -> None:
    """The method of a stage stands where the run's does, in its precision: it looks at whole data sets, too."""
    method = built(config("stages.warm-up={steps: 1, method: {terms: [{name: cross-entropy}]}}"))
    weight = next(method.network.parameters())
    made = method.stage_method(method.stage_config(method.cfg, "warm-up"), "warm-up")
    assert next(made.network.parameters()).dtype == weight.dtype
    method.double()
    made = method.stage_method(method.stage_config(method.cfg, "warm-up"), "warm-up")
    assert next(made.network.parameters()).dtype == torch.float64
    assert torch.equal(next(made.network.parameters()), next(method.network.parameters()))


def test_state_labels_of_a_folder(tmp_path: Path) -> None:
    """A training reads the labels of its own folder, whatever an earlier stage left, and after a stop, too."""
    method = built(config(listed("self-training"), SOURCE))
    for name in ("given", "earlier"):
        label(method, tmp_path / name)
    folder = json.dumps(str(tmp_path / "given"))
    given = f"method.pseudo_labels={{folder: {folder}, any_model: true}}"
    cfg = config(listed("self-training"), given)
    for start in (0, 1):
        other = built(cfg)
        other.use_labels(tmp_path / "earlier")
        next(other.batches(start))
        assert other.stored is not None
        assert other.stored.folder == tmp_path / "given"
    # Nothing is learned yet when a run is gone through once: labels by other weights are told when training starts.
    checked = built(config(listed("self-training"), f"method.pseudo_labels={{folder: {folder}}}", "seed=3"))
    rehearse(checked)
    with pytest.raises(InputError):
        checked.batches(0)


def test_degenerate_no_measured_target(tmp_path: Path) -> None:
    """A target with labels of training images only is measured on the source, which the run says."""
    found = run(tmp_path / "run", "data.target.val=0", "data.target.test=0", listed("cross-entropy"))
    assert any("no labels to measure with" in text for text in found.warnings)


def test_values_labels_in_a_stage(tmp_path: Path) -> None:
    """A stage that trains on target labels, or is selected by them, makes the whole run say so."""
    oracle = "{steps: 2, method: {target_labels: true, terms: [{name: labelled-target}]}}"
    found = run(tmp_path / "one", f"stages.source={oracle}", listed("entropy"))
    assert any("upper bound" in text for text in found.warnings)
    chosen = "{steps: 2, method: {terms: [{name: cross-entropy}]}, evaluation: {select: best_target_val, every: 1}}"
    found = run(tmp_path / "two", f"stages.source={chosen}", listed("entropy"))
    assert "target labels" in found.results["protocols"]["miou"]["selection"]
    assert any("too good" in text for text in found.warnings)


def test_values_adabn_of_the_average(tmp_path: Path) -> None:
    """With a running average, what is handed out and what a later run starts from have the target's statistics."""
    found = run(tmp_path / "run", listed("cross-entropy"), "method.adabn=true", "method.ema=0.5")
    state = checkpoint.load_weights(found.folder.weights)
    names = [name for name in state if name.startswith("network.") and name.endswith("running_mean")]
    assert names
    assert all(
        torch.equal(state[name], state[name.replace("network.", "average.network.", 1)]) for name in names
    )
