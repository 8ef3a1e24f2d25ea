"""Dense training: first losses against written-out equations, every pair of terms, resume, ranks, bad input, scores."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate

from leanlabel import api
from leanlabel.compare.jobs import lay_out
from leanlabel.compare.request import Request
from leanlabel.config import EngineSettings
from leanlabel.data.class_map import plain_map
from leanlabel.data.dense import DenseImages, MaskArray
from leanlabel.data.images import PixelArray
from leanlabel.engine import checkpoint
from leanlabel.engine.runfolder import read_lines
from leanlabel.errors import InputError
from leanlabel.evaluation.enlarging import enlarged_classes
from leanlabel.methods import find
from leanlabel.methods.dense_readouts import labelled_parts, main_part
from leanlabel.methods.dense_settings import adapts
from leanlabel.methods.segmentation import IGNORED, Segmentation, device_labels
from leanlabel.methods.terms import TABLE, Term, find_term
from leanlabel.models.segmenters import upsample
from smallrun import as_rank, train

TINY = [
    "data.train=8",
    "data.val=3",
    "data.test=4",
    "data.height=32",
    "data.width=48",
    "data.batch_size=4",
    "augment.crop=[32,32]",
    "steps=6",
    "optim.lr=0.02",
    "optim.name=sgd",
    "engine.loggers=[]",
    "engine.checkpoint_every=3",
    "engine.log_every=1",
    "engine.accelerator=cpu",
    "engine.threads=1",
]
TERMS = [
    name
    for name in sorted(TABLE)
    if name != "detail" and not adapts(find_term(name).needs(find_term(name).Settings()))
]  # the others are in the tests of adaptation; detail needs a network of two scales


def config(*more: str, recipe: str = "segmentation/scenes-small") -> Any:
    return api.resolve(recipe, [*TINY, *more])


def listed(*names: str) -> str:
    return "method.terms=" + json.dumps([{"name": name} for name in names])


def built(cfg: Any) -> tuple[DenseImages, Segmentation]:
    data = find(cfg.method.name).read(cfg)
    method = api.build(cfg, data)
    assert isinstance(method, Segmentation)
    return data, method


def losses(folder: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in read_lines(folder / "metrics.jsonl")]


def first_batch(method: Segmentation) -> Any:
    method.train()
    return method.views(0, next(method.batches(0)))


@pytest.mark.parametrize("at", ["input", "feature"])
def test_reference_cross_entropy(tmp_path: Path, at: str) -> None:
    """The first loss is the mean cross-entropy of the labelled pixels, at the size of the labels or of the scores."""
    cfg = config("engine.precision=64-true", "steps=1", f"method.terms.cross-entropy.settings.at={at}")
    _, method = built(cfg)
    method.double()
    batch = first_batch(method)
    logits, labels = method.network(batch.images).logits, batch.labels
    if at == "input":
        logits = interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    else:
        h, w = logits.shape[-2:]
        rows = [i * labels.shape[1] // h for i in range(h)]
        columns = [j * labels.shape[2] // w for j in range(w)]
        labels = labels[:, rows][:, :, columns]
    expected = cross_entropy(logits, labels, ignore_index=IGNORED)
    train(tmp_path, cfg)
    assert losses(tmp_path)[0] == pytest.approx(expected.item(), rel=1e-7)


def test_values_locally_adaptive_is_cross_entropy(tmp_path: Path) -> None:
    """Windows of one pixel and k = 1 leave pixel-wise cross-entropy, through a whole training."""
    plain = train(tmp_path / "plain", config("engine.precision=64-true"))
    changed = ["n=1", "k=1.0", "ramp=0.0"]
    name = "method.terms.locally-adaptive.settings"
    cfg = config(
        "engine.precision=64-true",
        *(f"{name}.{one}" for one in changed),
        recipe="locally-adaptive/scenes-small",
    )
    other = train(tmp_path / "other", cfg)
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "other"), rel=1e-6)
    for name, value in checkpoint.state_of(plain).items():
        if name.startswith("network."):
            torch.testing.assert_close(checkpoint.state_of(other)[name], value, rtol=1e-5, atol=1e-8)


def test_weights_add_up(tmp_path: Path) -> None:
    """The loss is the weighted sum of the terms, of those that have started."""
    terms = [{"name": "cross-entropy", "weight": 0.5}, {"name": "dice", "weight": 2.0, "start": 2}]
    train(tmp_path, config(f"method.terms={json.dumps(terms)}", "steps=4"))
    rows = read_lines(tmp_path / "metrics.jsonl")
    for t, row in enumerate(rows):
        dice = 2 * row["dice"] if t >= 2 else 0.0
        assert ("dice" in row) == (t >= 2)
        assert row["loss"] == pytest.approx(0.5 * row["cross_entropy"] + dice, rel=1e-5)


@pytest.mark.parametrize("pair", list(itertools.combinations(TERMS, 2)), ids="+".join)
def test_pairs_of_terms(tmp_path: Path, pair: tuple[str, str]) -> None:
    """Every two terms train together for two steps, and each of them moves the weights."""
    cfg = config(listed(*pair), "steps=2")
    _, method = built(cfg)
    before = checkpoint.state_of(method)
    after = checkpoint.state_of(train(tmp_path, cfg))
    moved = [
        name for name in before if name.startswith("network.") and not torch.equal(before[name], after[name])
    ]
    assert moved
    for name in (one.replace("-", "_") for one in pair):
        assert all(value > 0 for value in losses(tmp_path, name))


def test_state(tmp_path: Path) -> None:
    """Killed at iteration 5, saved at 3, resumed: the weights, average and metrics of an uninterrupted run."""
    cfg = config("method.ema=0.9", listed("locally-adaptive", "dice"))
    whole = train(tmp_path / "whole", cfg)
    train(tmp_path / "parts", cfg, steps=5)
    resumed = train(tmp_path / "parts", cfg)
    one, two = checkpoint.state_of(whole), checkpoint.state_of(resumed)
    assert one.keys() == two.keys()
    assert any(name.startswith("average.") for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()


RANKED = {
    "cross-entropy": [listed("cross-entropy"), "model.norm=none"],
    "locally adaptive": [listed("locally-adaptive", "dice"), "model.norm=sync", "method.ema=0.9"],
}


def ranked(folder: str, more: list[str]) -> dict[str, torch.Tensor]:
    as_rank(29993)
    cfg = config("engine.precision=64-true", *more)
    two = cfg.model_copy(update={"engine": EngineSettings(**{**cfg.engine.model_dump(), "devices": 2})})
    return checkpoint.state_of(train(Path(folder), two))


@pytest.mark.parametrize("arm", RANKED)
def test_ranks(pool: Any, tmp_path: Path, arm: str) -> None:
    """Two ranks equal one: weights, average, logged terms."""
    more = [*RANKED[arm], "optim.lr=0.002", "optim.weight_decay=0.0"]
    alone = train(tmp_path / "one", config("engine.precision=64-true", *more))
    results = pool.run(ranked, str(tmp_path / "two"), more, timeout=180.0)
    for name, value in checkpoint.state_of(alone).items():
        for result in results:
            torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-9, msg=name)
    one, two = (read_lines(tmp_path / part / "metrics.jsonl") for part in ("one", "two"))
    for left, right in zip(one, two, strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-7)


def pictures(n: int = 6, size: int = 32, classes: int = 3, splits: bool = True) -> DenseImages:
    """Images whose mask can be seen: the class is the colour."""
    numbers = torch.Generator().manual_seed(0)
    coarse = torch.randint(classes, (n, size // 8, size // 8), generator=numbers)
    masks = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
    images = (masks[:, None].repeat(1, 3, 1, 1) * 100).to(torch.uint8)
    rows = torch.arange(n)
    parts = {"train": rows[: n - 2], "val": rows[n - 2 : n - 1], "test": rows[n - 1 :]} if splits else {}
    classes_map = plain_map([f"c{k}" for k in range(classes)])
    ids = [f"p{row}" for row in range(n)]
    return DenseImages("pictures", PixelArray(images), MaskArray(masks), classes_map, splits=parts, ids=ids)


def with_data(monkeypatch: pytest.MonkeyPatch, data: DenseImages) -> None:
    monkeypatch.setattr("leanlabel.methods.segmentation.open_dense", lambda source: data)


@pytest.mark.parametrize("term", TERMS)
def test_degenerate_all_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, term: str) -> None:
    """A batch without one labelled pixel: no loss, no gradient, nothing that is not finite."""
    data = pictures()
    assert isinstance(data.masks, MaskArray)
    data.masks.array[data.splits["train"]] = 255
    with_data(monkeypatch, data)
    cfg = config(listed(term), "steps=2", "optim.weight_decay=0.0", "model.norm=none")
    before = checkpoint.state_of(built(cfg)[1])
    after = checkpoint.state_of(train(tmp_path, cfg))
    assert losses(tmp_path) == [0.0, 0.0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_learns_and_measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Masks that are the colours are learned; records, notes, figure and predictions say so."""
    with_data(monkeypatch, pictures(12))
    changes = [
        *TINY,
        "steps=120",
        "optim.name=adamw",
        "optim.lr=0.01",
        "augment.crop=[32,32]",
        "data.batch_size=8",
    ]
    run = api.fit("segmentation/scenes-small", run=tmp_path / "run", overrides=changes, quiet=True)
    scores = run.results["protocols"]
    assert set(scores) == {"miou", "miou:val"}
    trained, untrained = (scores["miou"]["readouts"][key] for key in ("trained", "untrained"))
    assert trained["mean"] > 0.8 > untrained["mean"]
    assert trained["details"][0]["val_accuracy"] == scores["miou:val"]["readouts"]["trained"]["mean"]
    assert [row["name"] for row in scores["miou"]["per_class"]] == ["c0", "c1", "c2"]
    figure = json.loads((tmp_path / "run/figures/segmentation.json").read_text())
    assert len(figure["confusion"]) == 3
    assert figure["examples"]
    assert (tmp_path / "run/splits/test.txt").read_text() == "p11\n"
    image, mask = pictures(12).read([11])
    found = run.method.segment(image[0])  # type: ignore[operator]
    assert float((found.classes == mask[0]).float().mean()) > 0.8  # type: ignore[index]
    assert "report.html" in {path.name for path in (tmp_path / "run").iterdir()}


def test_segment_other_sizes() -> None:
    """An image of any size comes back at its own size, with probabilities."""
    _, method = built(config())
    for height, width in ((32, 48), (61, 47), (130, 200)):
        found = method.segment(torch.randint(256, (3, height, width), dtype=torch.uint8))
        assert found.classes.shape == found.confidence.shape == (height, width)
        assert found.classes.dtype == torch.uint8
        assert int(found.classes.max()) < 11
        assert 0 <= float(found.confidence.min()) <= float(found.confidence.max()) <= 1


def test_segment_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images beyond a limit are predicted in windows, which see nearly what the whole shows."""
    _, method = built(config("steps=0", "data.test=1"))
    image = torch.randint(256, (3, 12, 20), dtype=torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    whole = method.segment(image)
    monkeypatch.setattr("leanlabel.evaluation.enlarging.LARGE", 1000)
    monkeypatch.setattr("leanlabel.evaluation.enlarging.LARGE_WINDOW", (64, 64))
    seen: list[tuple[int, ...]] = []
    method.network.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape[2:])))
    tiled = method.segment(image)
    assert set(seen) == {(64, 64)}
    assert tiled.classes.shape == whole.classes.shape == (96, 160)
    assert float((tiled.classes == whole.classes).float().mean()) > 0.5


@pytest.mark.parametrize("align", [False, True])
def test_reference_enlarged_classes(monkeypatch: pytest.MonkeyPatch, align: bool) -> None:
    """A block of rows at a time gives what enlarging all at once gives."""
    monkeypatch.setattr("leanlabel.evaluation.enlarging.HELD_SCORES", 500)
    logits = torch.randn(2, 5, 7, 6, generator=torch.Generator().manual_seed(1))
    found = enlarged_classes(logits, (33, 29), align)
    confidence, classes = upsample(logits, (33, 29), align).softmax(1).max(1)
    assert bool((found.classes == classes).all())
    torch.testing.assert_close(found.confidence, confidence)


def test_average_is_measured() -> None:
    """Where a running average is kept, it predicts, unless the trained network is asked for."""
    for wanted, name in (("auto", "average.network"), ("student", "network")):
        _, method = built(config("method.ema=0.9", f"evaluation.network={wanted}"))
        assert method.deployed is method.get_submodule(name)


def test_head_factor() -> None:
    """What stands behind the encoder learns at its own rate, and everything is in one group."""
    _, method = built(config("optim.head_factor=10.0", "optim.lr=0.01"))
    groups = method.optimisers()["main"].param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in method.network.named_parameters():
        inside = name.startswith("encoder.")
        assert rates[id(parameter)] == pytest.approx(0.01 if inside else 0.1), name
    assert len(rates) == len(list(method.network.parameters()))


def test_start_from_backbone(tmp_path: Path) -> None:
    """The encoder of one run starts another; the rest stays as its seed makes it; the average follows."""
    train(tmp_path / "one", config("steps=2"))
    cfg = config("method.ema=0.9", "seed=5")
    _, method = built(cfg)
    fresh = checkpoint.state_of(method)
    method.took({"network.encoder.x"})
    assert all(
        torch.equal(fresh[n], v) for n, v in checkpoint.state_of(method).items() if n.startswith("network")
    )
    with torch.no_grad():
        next(method.network.parameters()).add_(1.0)
    method.took({"network.encoder.x"})
    assert method.average is not None
    first = next(iter(method.average.network.parameters()))
    assert torch.equal(first, next(method.network.parameters()))


def test_device_labels() -> None:
    assert device_labels(torch.tensor([[0, 7, 255]], dtype=torch.uint8)).tolist() == [[0, 7, -100]]


def test_small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images below what the network reads are enlarged for measuring and predicting."""
    _, method = built(config())
    found = method.segment(torch.randint(256, (3, 5, 20), dtype=torch.uint8))
    assert found.classes.shape == (5, 20)


def test_average_is_handed_out(tmp_path: Path) -> None:
    """The written network is the running average; checkpoints keep both, and a recipe can ask for the other."""
    for wanted in ("auto", "student"):
        run = api.fit(
            "segmentation/scenes-small",
            run=tmp_path / wanted,
            overrides=[*TINY, "method.ema=0.9", f"evaluation.network={wanted}"],
            quiet=True,
        )
        method: Any = run.method
        own, average = method.network.state_dict(), method.average.network.state_dict()
        assert all(torch.equal(own[name], average[name]) for name in own) == (wanted == "auto")


def test_parts_without_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A published test part whose masks are empty is not what a run is measured on, unless it is asked for."""
    data = pictures()
    assert isinstance(data.masks, MaskArray)
    data.masks.array[data.splits["test"]] = 255
    with_data(monkeypatch, data)
    assert labelled_parts(data) == ["val"]
    assert main_part(data, "auto") == "val"
    with pytest.raises(InputError, match="test has no label"):
        built(config("evaluation.part=test"))


def test_notes_on_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures()
    leaking = {**data.splits, "val": torch.tensor([0, 4])}
    with_data(monkeypatch, DenseImages("leaking", data.pixels, data.masks, data.classes, splits=leaking))
    assert "1 images of val are trained on" in built(config())[1].notes()[0]


def test_follows_steps() -> None:
    """A ramp is a share of all iterations; a longer run has another one."""
    for ramp, told in ((0.2, True), (0.0, False)):
        cfg = config(
            listed("locally-adaptive"),
            f"method.terms.0.settings.ramp={ramp}",
            "optim.schedule=constant",
        )
        found = Segmentation.follows_steps(cfg)
        assert found == (["method.terms.locally-adaptive.settings.ramp"] if told else [])


def test_untrained_is_one_arm() -> None:
    """Recipes that differ in their terms only share the untrained network of a comparison."""
    both = ("segmentation/scenes-small", "locally-adaptive/scenes-small")
    small = [one for one in TINY if not one.startswith("engine")]
    names = [
        name for name, arm in lay_out(Request(both, seeds=1, overrides=small)).arms.items() if arm.baseline
    ]
    assert names == ["untrained"]


ERRORS = {
    "term": (
        ["method.terms=[{name: cross-entropi}]"],
        "unknown term 'cross-entropi'.*Did you mean 'cross-entropy'",
    ),
    "key": (
        ["method.terms.cross-entropy.settings.att=input"],
        "att: unknown key; valid here: at, class_weights",
    ),
    "window": ([listed("locally-adaptive"), "method.terms.0.settings.n=4"], "an odd number"),
    "twice": ([listed("dice", "dice")], "each term once; dice stands there 2 times"),
    "entry": (["method.terms.dice.weight=2"], "method.terms has no entry 'dice', but cross-entropy"),
    "protocol": (["evaluation.protocol=knn"], "miou or none"),
    "select": (["evaluation.select=entropy"], "last or best_val"),
    "part": (["evaluation.part=test_night"], "has no part 'test_night'.*It has val, test"),
    "subset": (["evaluation.subset=13"], "have no subset '13'"),
    "batch": (["data.batch_size=9"], "9 is more than the 8 images"),
    "crop": (["augment.crop=[2,2]"], "augment.crop"),
    "window of evaluation": (
        ["evaluation.window=[4,4]"],
        "evaluation.window: windows of 4 x 4 pixels; tiny-fcn needs 8",
    ),
    "none": (["method.terms=[]"], "at least one term"),
    "teacher": (["evaluation.network=teacher"], "method.ema, such as 0.99"),
    "horizon": (["optim.horizon=5"], "optim.horizon .5. of at least steps .6."),
    "stride": (
        ["model.name=fcn", "model.encoder=resnet18", "model.output_stride=4"],
        "model: .*output stride",
    ),
    "statistics": (["augment.mean=[0.5, 0.5]"], "3 channels, but mean has 2"),
    "one image": (
        ["model.name=deeplab-v3+", "model.encoder=resnet18", "data.batch_size=1"],
        "too few for batch norm",
    ),
    "weights": (["method.terms.cross-entropy.settings.class_weights=[1.0, 2.0]"], "2 numbers for 11 classes"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    changes, text = ERRORS[case]
    with pytest.raises(InputError) as told:
        built(config(*changes))
    assert re.search(text, f"{told.value.message} {told.value.suggestion}", re.DOTALL), told.value


def test_errors_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures()
    with_data(monkeypatch, DenseImages("bare", data.pixels, None, data.classes, splits=data.splits))
    with pytest.raises(InputError, match="no masks"):
        built(config())


def test_terms_are_complete() -> None:
    """A configuration shows all keys of every term, and takes them back."""
    cfg = config(listed("locally-adaptive"))
    settings = cfg.method.terms[0].settings
    assert settings["n"] == 3
    assert settings["k"] == 5.0
    assert set(settings) == set(find_term("locally-adaptive").Settings.model_fields)
    assert issubclass(find_term("locally-adaptive"), Term)


def test_bands(tmp_path: Path) -> None:
    """Images of four bands and various sizes: trained on, predicted from files, exported, all by the same reading."""
    from PIL import Image

    from leanlabel.export import load
    from leanlabel.export.masks import predict_masks

    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(8):
        height, width = 40 + number, 44
        pixels = torch.randint(256, (height, width, 4), generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.byte().numpy(), "RGBA").save(tmp_path / f"data/images/{number}.tif")
        mask = (torch.arange(width) % 2).to(torch.uint8).expand(height, width)
        Image.fromarray(mask.numpy().copy()).save(tmp_path / f"data/masks/{number}.png")
    rest = "bands: [3, 0], resize: 36, batch_size: 2, val_share: 0.3, classes: {names: [a, b]}"
    section = f"data={{kind: file, path: {tmp_path / 'data'}, {rest}}}"
    own = [one for one in TINY if not one.startswith("data.")]
    changes = [*own, section, "steps=2", "augment.mean=[0.5]", "augment.std=[0.5]"]
    run = api.fit("segmentation/scenes-small", run=tmp_path / "run", overrides=changes, quiet=True)
    first = next(iter(run.method.network.encoder.parameters()))  # type: ignore[union-attr]
    assert first.shape[1] == 2
    run.export("safetensors", tmp_path / "export")
    for name, model in {"run": run, "export": load(tmp_path / "export")}.items():
        predict_masks(model, [str(tmp_path / "data/images")], tmp_path / f"of-{name}", quiet=True)
    for number in range(8):
        one, two = (tmp_path / f"of-{name}/masks/{number}.png" for name in ("run", "export"))
        assert one.read_bytes() == two.read_bytes()
        assert Image.open(one).size == (44, 40 + number)
