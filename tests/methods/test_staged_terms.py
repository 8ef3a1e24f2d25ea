"""Terms in a chain of trainings: what stages hand on, first looks, drawn images, stored labels, several optimisers."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from test_adapt import TINY, built, config, label, save
from torch import Tensor, nn

from leanlabel import api
from leanlabel.augment.tail import tail_classes
from leanlabel.banks.prototypes import ImageMeans
from leanlabel.compare.arms import arms_of
from leanlabel.compare.request import Request
from leanlabel.config import EngineSettings, OptimSettings, to_yaml
from leanlabel.data.class_sampling import class_table
from leanlabel.data.pseudo_labels import MANIFEST
from leanlabel.engine import checkpoint, training
from leanlabel.engine import fit as fit_file
from leanlabel.engine.fit import Plan, fit, make_fabric
from leanlabel.engine.method import Method
from leanlabel.engine.pipeline import run_stage
from leanlabel.engine.runfolder import RunFolder, read_json, read_lines, write_json, write_text
from leanlabel.engine.stage_training import WEIGHTS
from leanlabel.engine.stop import Interrupted
from leanlabel.errors import InputError
from leanlabel.methods import find
from leanlabel.methods.adapt import Adapt
from leanlabel.methods.adapt_handing import CARRIED, FIRST, carried_of, look_at_source, take_carried
from leanlabel.methods.adapt_stages import LABELS, LOOK, rehearse
from leanlabel.methods.domains import mistaken_labels
from leanlabel.methods.terms.mixing import ContentTransfer
from leanlabel.methods.terms.prototypes import Prototypical
from leanlabel.recipe import packaged_recipes
from smallrun import cli, train

STILL = ("method.watch_every=0", "method.adabn=false", "method.ema=null", "model.norm=none")
CONTRAST = {"name": "prototype-contrast", "settings": {"target": "none", "tau": 0.1}}
STYLE = {"name": "zero-style", "settings": {"style_width": 4, "widths": [6, 6, 6]}}
PASTE = {"name": "content-transfer", "settings": {"min_pixels": 5}}
FLAT = ("augment.crop=null", "augment.scale=[1.0, 1.0]", "augment.flip=0.0")


def terms(*listed: Any, key: str = "method") -> str:
    entries = [{"name": one} if isinstance(one, str) else one for one in listed]
    return f"{key}.terms=" + json.dumps(entries)


def same(one: dict[str, Tensor], two: dict[str, Tensor], start: str = "") -> bool:
    names = [name for name in one if name.startswith(start)]
    return bool(names) and all(torch.equal(one[name], two[name]) for name in names)


def scrambled(method: Adapt) -> Adapt:
    """The method with other numbers in all that its terms remember and learn."""
    torch.manual_seed(9)
    for name, value in checkpoint.state_of(method).items():
        if name.startswith("term_") and value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    return method


# ------------------------------------------------------------------------------------------- what a stage hands on


def test_state_carried() -> None:
    """Prototypes, style encoder and decoder go on into the next stage, also over one that has no such terms."""
    cfg = config(terms("cross-entropy", STYLE, CONTRAST), *STILL)
    first = scrambled(built(cfg))
    left = first.carried()
    assert left.keys() == carried_of(first).keys()
    assert {name.split(".")[1] for name in left} == {"zero-style", "prototype-contrast"}
    assert all(name.startswith(CARRIED) for name in left)
    whole = checkpoint.state_of(first)

    # Other places in the list of terms, and another seed.
    second = built(config(terms(CONTRAST, "cross-entropy", STYLE), *STILL, "seed=5"))
    second.take({**first.handed_on(), **left})
    found = checkpoint.state_of(second)
    for name, value in found.items():
        if name.startswith("term_"):
            place = {"0": "2", "2": "1"}[name[5]]
            assert torch.equal(value, whole[f"term_{place}{name[6:]}"]), name

    between = built(config(terms("cross-entropy"), *STILL))
    between.take({**first.handed_on(), **left})
    third = built(cfg.model_copy(update={"seed": 7}))
    assert not same(whole, checkpoint.state_of(third), "term_1_decoder")
    third.take({**between.handed_on(), **between.carried()})
    assert same(whole, checkpoint.state_of(third), "term_")

    # The same through the chain of a whole run, whose own recipe has none of the terms.
    made = between.stage_method(cfg, "next")
    assert same(whole, checkpoint.state_of(made), "term_")


def test_state_carried_other_shapes() -> None:
    """A term of another shape begins anew as a whole, beside one that goes on; so does what no stage left."""
    first = scrambled(built(config(terms("cross-entropy", STYLE, CONTRAST), *STILL)))
    wider = {**STYLE, "settings": {**STYLE["settings"], "style_width": 5}}
    cfg = config(terms("cross-entropy", wider, CONTRAST, PASTE), *STILL)
    other = built(cfg)
    before = {name: value.clone() for name, value in checkpoint.state_of(other).items()}
    assert take_carried(other, first.carried()) == ["prototype-contrast"]
    after = checkpoint.state_of(other)
    assert same(before, after, "term_1")
    assert same(before, after, "term_3")  # what was pasted before is not counted again
    assert torch.equal(after["term_2.bank.values"], checkpoint.state_of(first)["term_2.bank.values"])
    assert take_carried(other, {}) == []
    # What the stage after it gets: its own of the one, that of the first of nothing.
    names = {name.split(".")[1] for name in other.carried()}
    assert names == {"zero-style", "prototype-contrast"}


# --------------------------------------------------------------------------------------------------- first looks


def looking(agree: str, *more: str) -> Any:
    contrast = {**CONTRAST, "settings": {**CONTRAST["settings"], "agree": agree}}
    return config(terms("cross-entropy", contrast), *STILL, "evaluation.batch=3", *more)


@pytest.mark.parametrize("agree", ["agreed", "fallback", "labels"])
def test_values_first_look(tmp_path: Path, agree: str) -> None:
    """The means of each class over images, read whole and without augmentation, in evaluation mode."""
    cfg = looking(
        agree, "model.norm=batch", "augment.jitter=[0.5,0.5,0.5,0.2]", "augment.jitter_probability=1.0"
    )
    method = built(cfg)
    for module in method.network.modules():  # statistics that are not those of a batch
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
    method.train()
    before = {name: one.clone() for name, one in checkpoint.state_of(method.network).items()}
    look_at_source(method, tmp_path)
    assert method.training
    assert same(before, checkpoint.state_of(method.network))
    found = checkpoint.load_weights(tmp_path / FIRST)

    classes, source = len(method.classes), method.data.source
    means = {strict: ImageMeans(classes, 48) for strict in (True, False)}
    network = method.network.eval()
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in (cfg.augment.mean, cfg.augment.std))
    for row in method.pool.tolist():
        images, masks = source.read([row])
        with torch.no_grad():
            output = network(((images[0].float() / 255 - mean) / std)[None])
        height, width = output.features.shape[2:]
        mask = masks[0].long()
        rows, columns = (
            torch.arange(small) * large // small
            for small, large in zip((height, width), mask.shape, strict=True)
        )
        labels = mask[rows][:, columns].masked_fill(mask[rows][:, columns] == 255, -100)[None]
        means[False].add(output.features, labels)
        means[True].add(output.features, labels.masked_fill(output.logits.argmax(1) != labels, -100))
    (every, _), (agreed, seen) = means[False].result(), means[True].result()
    expected = every if agree == "labels" else agreed
    if agree == "fallback":
        expected = torch.where((seen > 0)[:, None], agreed, every)
        assert bool((seen == 0).any()), "a network that has learned nothing sees some class nowhere"
    torch.testing.assert_close(
        found["prototype-contrast.bank.values"].double(), expected, rtol=1e-4, atol=1e-6
    )
    known = found["prototype-contrast.bank.counts"] > 0
    assert torch.equal(known, expected.abs().sum(1) > 0)


def test_state_first_look_is_shared(tmp_path: Path) -> None:
    """Done once for all runs whose images, network and settings of the look are the same."""

    def look(*more: str, agree: str = "labels") -> tuple[Any, Any]:
        method = built(looking(agree, *more))
        (stage,) = (one for one in method.stages(method.cfg, method.data) if one.name == LOOK)
        return method, stage

    method, stage = look()
    one, computed = run_stage(stage, tmp_path / "shared", tmp_path / "one")
    assert computed
    other, again = look("steps=2", "data.target.gap=0.5", "optim.lr=0.1", "data.source.batch_size=4")
    two, computed = run_stage(again, tmp_path / "shared", tmp_path / "two")
    assert (one, computed) == (two, False)
    assert read_json(one / "stage.json")["name"] == LOOK
    for taking in (method, other):
        taking.use_stage(LOOK, one)
    assert same(checkpoint.state_of(method), checkpoint.state_of(other), "term_1.bank")
    assert bool(method.prototypes.known.any())
    keys = {stage.key, *(look(*more)[1].key for more in (["seed=1"], ["data.source.seed=4"]))}
    assert len({*keys, look(agree="agreed")[1].key}) == 4
    untrained = built(looking("labels", "steps=0"))
    assert not [one for one in untrained.stages(untrained.cfg, untrained.data) if one.name == LOOK]


def test_ranks_first_look(pool: Any, tmp_path: Path) -> None:
    """Ranks share the images, also when they cannot be shared evenly, and find the same means."""
    method = built(looking("fallback", "data.source.train=7"))
    (tmp_path / "one").mkdir()
    look_at_source(method, tmp_path / "one")
    (tmp_path / "two").mkdir()
    pool.run(look_in_ranks, str(tmp_path / "two"))
    one, two = (checkpoint.load_weights(tmp_path / part / FIRST) for part in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-7, msg=name)


def look_in_ranks(folder: str) -> None:
    look_at_source(built(looking("fallback", "data.source.train=7")), Path(folder))


# ------------------------------------------------------------------------------------------------ drawn images


def drawing(*more: str, **settings: Any) -> Any:
    paste = {**PASTE, "settings": {**PASTE["settings"], **settings}}
    return config(
        terms("cross-entropy", paste), *STILL, "data.target.batch_size=4", "data.source.batch_size=2", *more
    )


def drawn(cfg: Any, start: int = 0, count: int = 6) -> tuple[Any, list[Any]]:
    """The method, and the drawn images of some iterations as they are read."""
    method = built(cfg)
    method.use_table(class_table(method.data.source, method.pool))
    term: Any = method.terms()[1][0]
    pixels = torch.arange(1, 1 + len(method.classes)) ** 3 * 100
    pixels[0] = 30  # the classes that are rare here: 0, 1, 2 and 3
    if cfg.method.terms[1].settings["tail"] is not None:
        term.stored_pixels(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = method.batches(start)
        return method, [next(batches)[2] for _ in range(count)]


def test_values_donors() -> None:
    """One image for every target image, each with pixels of the rare class that it was drawn for; a function of t."""
    method, found = drawn(drawing())
    (term, _) = method.terms()[1]
    tail, table = term.tail, method.table
    assert 0 < int(tail.sum()) < len(tail)
    assert method.donor_sampler.shares[~tail].sum() == 0
    for t, (ids, (images, _)) in enumerate(found):
        assert len(ids) == len(images) == 4
        wanted = method.donor_sampler.wanted(t)
        assert bool(tail[wanted].all())
        assert bool((table[ids % len(table), wanted] > 0).all())
    _, later = drawn(drawing(), start=3, count=3)
    assert all(torch.equal(one[0], two[0]) for one, two in zip(found[3:], later, strict=True))
    _, other = drawn(drawing("seed=3"))
    assert any(not torch.equal(one[0], two[0]) for one, two in zip(found, other, strict=True))
    _, some = drawn(drawing(tail=None, classes=["sky"]))
    assert some[0] is not None


def test_values_donor_view() -> None:
    """Drawn images have the geometry of the labelled ones, and none of their changes of colour."""
    loud = ("augment.jitter=[0.9,0.9,0.9,0.4]", "augment.jitter_probability=1.0", *FLAT)
    method, found = drawn(drawing(*loud))
    batch = next(method.batches(0))
    step = method.begin(0, batch)
    ids, (images, masks) = found[0]
    assert torch.equal(step.donor.ids, ids)
    mean, std = (
        torch.tensor(one).view(-1, 1, 1) for one in (method.cfg.augment.mean, method.cfg.augment.std)
    )
    plain = (torch.stack(list(images)).float() / 255 - mean) / std
    torch.testing.assert_close(step.donor.images, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(
        step.donor.labels, torch.stack(list(masks)).long().where(torch.stack(list(masks)) != 255, -100)
    )
    source = (torch.stack(list(batch[0][1][0])).float() / 255 - mean) / std
    assert (step.images - source).abs().max() > 0.1


def test_degenerate_no_donors() -> None:
    """Where no class is rare, nothing is drawn, and a term that asks all the same is told."""
    method, found = drawn(drawing(tail=1e-9))
    assert found == [None] * 6
    step = method.begin(0, next(method.batches(0)))
    with pytest.raises(InputError, match="drawn"):
        step.donor  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = method.terms()[1][0].loss(step)["content_transfer"]
    assert value.requires_grad
    assert float(value.detach()) == 0.0


def test_ranks_donors(pool: Any) -> None:
    """Two ranks draw what one draws, each its part, and see the same views of them."""
    whole = donor_views()
    parts = pool.run(donor_views)
    for t, (ids, images, labels) in enumerate(whole):
        for place, value in enumerate((ids, images, labels)):
            assert torch.equal(torch.cat([part[t][place] for part in parts]), value)


def donor_views() -> list[tuple[Tensor, Tensor, Tensor]]:
    method, _ = drawn(drawing())
    batches = method.batches(0)
    found = [method.begin(t, next(batches)).donor for t in range(3)]
    return [(one.ids, one.images, one.labels) for one in found]


# ------------------------------------------------------------------------------------------------ stored labels


def test_values_noise(tmp_path: Path) -> None:
    """Some classes of some images are given to the next one, the same ones at every visit; no file is touched."""
    cfg = config(terms("cross-entropy", "self-training"), *STILL, *FLAT, "data.target.batch_size=4")
    # Predictions of all classes: each pixel as the image is bright.
    method = built(cfg)
    label(method, tmp_path / "labels")
    bright(method, tmp_path / "labels")
    files = {path: path.read_bytes() for path in (tmp_path / "labels").rglob("*") if path.is_file()}
    noisy = built(cfg.model_copy(update={"method": with_noise(cfg.method, 0.4)}))
    for one in (method, noisy):
        one.use_labels(tmp_path / "labels")
    classes, seen, changed = len(method.classes), {}, 0
    batches = zip(method.batches(0), noisy.batches(0), strict=False)
    for t, (plain, wrong) in zip(range(4), batches, strict=False):  # every image twice
        right, found = (own.begin(t, raw).target for own, raw in ((method, plain), (noisy, wrong)))
        assert torch.equal(right.batch.ids, found.batch.ids)
        for id_, own, other in zip(right.batch.ids.tolist(), right.labels, found.labels, strict=True):
            mistakes = []
            for k in own.unique().tolist():
                (now,) = other[own == k].unique().tolist()  # all pixels of a class alike
                assert now in ({k, (k + 1) % classes} if k >= 0 else {k})
                mistakes.append((k, now))
            changed += sum(k != now for k, now in mistakes)
            assert seen.setdefault(id_ % len(method.target_rows), mistakes) == mistakes
    assert len(seen) == len(method.target_rows)
    assert 0 < changed < 2 * sum(len(one) for one in seen.values())
    assert files == {path: path.read_bytes() for path in (tmp_path / "labels").rglob("*") if path.is_file()}


def with_noise(method: Any, share: float) -> Any:
    return method.model_copy(
        update={"pseudo_labels": method.pseudo_labels.model_copy(update={"noise": share})}
    )


def bright(method: Adapt, folder: Path) -> None:
    """Write stored labels of all classes over those that a network without training gave."""
    for row in method.target_rows.tolist():
        (path,) = (one for one in folder.rglob("*.png") if int(one.stem) == row)
        image = method.data.target.read([row])[0][0].float().mean(0)
        wanted = (image / 256 * (len(method.classes) + 1)).to(torch.uint8)
        wanted = wanted.where(wanted < len(method.classes), 255)
        with Image.open(path) as old:
            palette = old.getpalette()
        new = Image.fromarray(wanted.numpy(), mode="P")
        new.putpalette(palette or [])
        new.save(path)


def test_values_share_of_mistakes() -> None:
    masks = torch.arange(10, dtype=torch.uint8).view(1, 2, 5).expand(400, 2, 5)
    for share in (0.0, 0.2, 1.0):
        found = torch.stack(mistaken_labels(torch.arange(400), masks, share, 10, seed=3))
        assert float((found != masks).double().mean()) == pytest.approx(share, abs=0.03)
        rest = torch.stack(mistaken_labels(torch.arange(400).flip(0), masks, share, 10, seed=3)).flip(0)
        assert torch.equal(found, rest)
    again = mistaken_labels(torch.arange(400), masks, 0.2, 10, seed=4)
    assert not torch.equal(
        torch.stack(again), torch.stack(mistaken_labels(torch.arange(400), masks, 0.2, 10, seed=3))
    )


def test_degenerate_noise_without_masks() -> None:
    """A target without any mask: what is tried before labels exist has nothing to make mistakes in."""
    cfg = config(terms("cross-entropy", "self-training"), *STILL, "method.pseudo_labels.noise=0.5")
    data = find(cfg.method.name).read(cfg)
    method: Any = api.build(cfg, replace(data, target=replace(data.target, masks=None)))
    rehearse(method)


@pytest.mark.parametrize("any_model", ["true", "false"])
def test_values_folder_of_a_stage(tmp_path: Path, any_model: str) -> None:
    """A stage that is given labels reads these, also when it is resumed; not those that came before, nor none."""
    label(built(config(terms("cross-entropy", "self-training"), *STILL)), tmp_path / "labels")
    label(built(config(terms("cross-entropy", "self-training"), *STILL, "seed=1")), tmp_path / "others")
    given = json.dumps({"folder": str(tmp_path / "labels"), "any_model": any_model == "true"})
    own = (
        "steps: 4, method: {terms: [{name: cross-entropy}, {name: self-training}], pseudo_labels: "
        + given
        + "}"
    )
    cfg = config(terms("cross-entropy", "self-training"), *STILL, "stages.one={" + own + "}")
    main = built(cfg)
    main.use_labels(tmp_path / "others")
    for start in (0, 3):
        made = main.stage_method(main.stage_config(cfg, "one"), "one")
        step = made.begin(start, next(made.batches(start)))
        assert made.stored is not None
        assert made.stored.folder == tmp_path / "labels"
        assert bool((step.target.labels >= 0).any())
    assert main.stored is not None
    assert main.stored.folder == tmp_path / "others"


def test_dtypes_of_a_stage() -> None:
    """The method of a stage is in the precision of the run, and what it starts from does not lose any of it."""
    cfg = config(terms("cross-entropy", CONTRAST), *STILL, "engine.precision=64-true")
    main = built(cfg).double()
    fine = torch.full_like(next(main.network.parameters()), 1 / 3)
    next(main.network.parameters()).data.copy_(fine)
    made = main.stage_method(cfg)
    assert {value.dtype for value in made.parameters()} == {torch.float64}
    assert torch.equal(next(made.network.parameters()), fine)


# ------------------------------------------------------------------------------------------------- whole chains


def through(folder: Path, cfg: Any, shared: Path | None = None) -> tuple[Adapt, list[str]]:
    """All stages of a run and the last training, or what is left of them; what was said meanwhile."""
    run, told = RunFolder(folder), []
    run.path.mkdir(parents=True, exist_ok=True)
    write_text(run.config, to_yaml(cfg))
    write_json(run.origin, {"stages": str((shared or folder / "shared").absolute())})
    method = built(cfg)
    training.train(run, cfg, method.data, method, make_fabric(cfg.engine), quiet=True, say=told.append)
    return method, told


QUIET = [one for one in TINY if not one.startswith(("stages.", "steps=", "method.watch_every"))]
ADVERSARY = {"name": "adversary", "weight": 0.01, "settings": {"layers": 3, "width": 4, "divisor": 1.0}}
CHAINS = {
    "spcl/scenes-2021": [
        "stages.warm-up.steps=3",
        terms("cross-entropy", ADVERSARY, key="stages.warm-up.method"),
        "stages.warm-up.method.watch_every=0",
        "stages.contrast.steps=4",
        "stages.contrast.method.watch_every=0",
    ],
    "content-transfer/scenes-small": [
        "stages.separate.steps=3",
        terms("cross-entropy", ADVERSARY, STYLE, key="stages.separate.method"),
        "stages.separate.method.watch_every=0",
        "stages.round-1={steps: 4, method: {watch_every: 0, sampling: {name: balanced}, "
        + terms("cross-entropy", "self-training", PASTE, STYLE, key="").replace(".terms=", "terms: ")
        + "}}",
        terms("cross-entropy", "self-training", PASTE, STYLE),
    ],
}


def chain(recipe: str, *more: str) -> Any:
    changes = [*QUIET, *CHAINS[recipe], "steps=5", "method.watch_every=0", "engine.checkpoint_every=2"]
    return api.resolve(recipe, [*changes, *more])


class Stopping:
    """Stops training at some places, each once; notes what each training begins with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *places: tuple[int, int], look: bool = False) -> None:
        self.left, self.begun = {*places}, {}
        step, observe = Adapt.step, Prototypical.observe
        looks = iter([True]) if look else iter(())

        def guarded(method: Adapt, t: int, batch: Any) -> None:
            trains = isinstance(method._updater, fit_file._Loop)  # no rehearsal
            if trains and t == 0:
                self.begun.setdefault(method.cfg.steps, checkpoint.state_of(method))
            if trains and (method.cfg.steps, t) in self.left:
                self.left.remove((method.cfg.steps, t))
                raise KeyboardInterrupt
            step(method, t, batch)

        def observed(term: Prototypical, output: Any, labels: Tensor) -> None:
            if next(looks, False):
                raise KeyboardInterrupt
            observe(term, output, labels)

        monkeypatch.setattr(Adapt, "step", guarded)
        monkeypatch.setattr(Prototypical, "observe", observed)


def interrupted(call: Callable[[], Any]) -> None:
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        call()


def compared(whole: Path, parts: Path) -> None:
    """Weights, metrics and what every stage left are the same, bit for bit."""
    one, two = (checkpoint.load_weights(folder / "model.safetensors") for folder in (whole, parts))
    assert one.keys() == two.keys()
    assert same(one, two)
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    left = {place.parent.name for place in (whole / "shared").glob("*/stage.json")}
    assert left == {place.parent.name for place in (parts / "shared").glob("*/stage.json")}
    for key in left:
        for file in (whole / "shared" / key).rglob("*"):
            if file.name in (WEIGHTS, FIRST, "metrics.jsonl") or file.suffix == ".png":
                assert (
                    file.read_bytes()
                    == (parts / "shared" / key / file.relative_to(whole / "shared" / key)).read_bytes()
                )


def stage_folders(shared: Path) -> dict[str, Path]:
    return {read_json(place)["name"]: place.parent for place in shared.glob("*/stage.json")}


def test_state_chain_of_spcl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up, first look, pseudo labels, contrast, pseudo labels, self-training: stopped in each, and resumed."""
    cfg = chain("spcl/scenes-2021")
    noted = Stopping(monkeypatch)
    through(tmp_path / "whole", cfg)
    monkeypatch.undo()
    stops = Stopping(monkeypatch, (3, 2), (4, 3), (5, 3), look=True)
    for _ in range(4):
        interrupted(lambda: through(tmp_path / "parts", cfg))
    assert not stops.left
    through(tmp_path / "parts", cfg)
    compared(tmp_path / "whole", tmp_path / "parts")

    found = stage_folders(tmp_path / "whole" / "shared")
    names = ["warm-up", f"{LABELS}-contrast", f"{LOOK}-contrast", "contrast", LABELS]
    assert set(found) == {"class-pixels", *names}
    first = checkpoint.load_weights(found[f"{LOOK}-contrast"] / FIRST)
    begun = noted.begun[4]
    assert torch.equal(begun["term_1.bank.values"], first["prototype-contrast.bank.values"])
    contrast = checkpoint.load_weights(found["contrast"] / WEIGHTS)
    assert not torch.equal(
        contrast[f"{CARRIED}prototype-contrast.state.bank.values"], begun["term_1.bank.values"]
    )
    rows = read_lines(found["contrast"] / "metrics.jsonl")
    assert all(torch.isfinite(torch.tensor(row["prototype"])) for row in rows)


@pytest.mark.slow
def test_state_chain_of_content_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1, pseudo labels and a round, and these once more: stopped in each training, and resumed."""
    cfg = chain("content-transfer/scenes-small")
    noted = Stopping(monkeypatch)
    through(tmp_path / "whole", cfg)
    monkeypatch.undo()
    stops = Stopping(monkeypatch, (3, 2), (4, 3), (5, 3))
    for _ in range(3):
        interrupted(lambda: through(tmp_path / "parts", cfg))
    assert not stops.left
    through(tmp_path / "parts", cfg)
    compared(tmp_path / "whole", tmp_path / "parts")

    found = stage_folders(tmp_path / "whole" / "shared")
    assert set(found) == {"class-pixels", "separate", f"{LABELS}-round-1", "round-1", LABELS}
    for before, steps in (("separate", 4), ("round-1", 5)):
        left = checkpoint.load_weights(found[before] / WEIGHTS)
        own = {
            name.removeprefix(f"{CARRIED}zero-style."): one
            for name, one in left.items()
            if "zero-style" in name
        }
        assert len(own) > 8
        for name, value in own.items():
            part, _, inside = name.partition(".")
            full = f"term_3.{inside}" if part == "state" else f"term_3_{part}.{inside}"
            assert torch.equal(noted.begun[steps][full], value), name
        assert any("decoder" in name for name in own)


@pytest.mark.slow
def test_values_tail_of_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before every training whose terms read stored labels these are told, and what is rare follows from them."""
    told: list[Tensor] = []
    right = ContentTransfer.stored_pixels

    def noting(term: ContentTransfer, pixels: Tensor) -> None:
        told.append(pixels.clone())
        right(term, pixels)

    monkeypatch.setattr(ContentTransfer, "stored_pixels", noting)
    noted = Stopping(monkeypatch)
    through(tmp_path, chain("content-transfer/scenes-small", "stages.round-1.optim.lr=0.2"))
    found = stage_folders(tmp_path / "shared")
    kept = {}
    for steps, name in ((4, f"{LABELS}-round-1"), (5, LABELS)):
        kept[steps] = torch.tensor(read_json(found[name] / MANIFEST)["kept"])
        assert any(torch.equal(kept[steps], one) for one in told)
        tail = noted.begun[steps]["term_2.tail"]
        assert bool((tail_classes(kept[steps], 0.04) <= tail).all())
        assert bool((kept[steps][tail] <= kept[steps].sum() * 0.04).all())
    assert not torch.equal(kept[4], kept[5])
    assert torch.equal(told[-1], kept[5])


# ---------------------------------------------------------------------------- networks that only training reads


@pytest.fixture(scope="module")
def separated(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    changes = [*TINY, terms("cross-entropy", STYLE), *STILL, "steps=3", "engine.checkpoint_every=2"]
    folder = tmp_path_factory.mktemp("separated") / "run"
    return api.fit(api.read_recipe("adapt/scenes-small"), run=folder, overrides=changes, quiet=True)


def stripped(place: Path) -> set[str]:
    """Take the networks of terms out of a model; their names."""
    with safe_open(place, "pt") as file:
        about = file.metadata()
    state = checkpoint.load_weights(place)
    gone = {name for name in state if name.startswith(("term_1_style.", "term_1_decoder."))}
    save_file({name: value for name, value in state.items() if name not in gone}, place, about)
    return gone


def test_values_model_alone(separated: api.Run, tmp_path: Path) -> None:
    """A model without what only training reads loads, predicts the same and is measured the same."""
    image = separated.data.target.read([0])[0][0]
    save(tmp_path / "new" / "one.png", image.permute(1, 2, 0).numpy()) if (
        tmp_path / "new"
    ).mkdir() is None else None
    before = separated.method.read_batch(image[None]).confidence
    assert len(stripped(separated.folder.weights)) > 10
    run = api.load(separated.path)
    assert torch.equal(run.method.read_batch(image[None]).confidence, before)
    answer = cli("predict", separated.path, tmp_path / "new", "--out", tmp_path / "masks")
    assert answer.code == 0, answer.err
    assert list((tmp_path / "masks").rglob("*.png"))


def test_state_checkpoint_without(
    separated: api.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint without them goes on, and says what begins anew; half a network is a mistake."""
    cfg = separated.config
    train(tmp_path, cfg, steps=2)
    path = checkpoint.saved(tmp_path / "checkpoints")[-1]
    found = checkpoint.load(path)
    assert found.t == 2
    kept = {name: one for name, one in found.method.items() if not name.startswith("term_1_style.")}
    told: list[str] = []
    monkeypatch.setattr(fit_file.console, "print", lambda text, **_: told.append(text))

    def go_on(state: dict[str, Tensor]) -> dict[str, Tensor]:
        rest = checkpoint.Checkpoint(found.t, state, found.optimisers, found.best, found.scaler)
        checkpoint.save(path.parent, rest, keep_last=1)
        method = built(cfg)
        fit(
            method,
            RunFolder(tmp_path),
            Plan(2, cfg.seed, cfg.optim, cfg.engine, quiet=True),
            make_fabric(cfg.engine),
        )
        return checkpoint.state_of(method)

    after = go_on(kept)
    assert told == ["Begun anew, because the checkpoint lacks it: term_1_style."]
    assert same(checkpoint.state_of(built(cfg)), after, "term_1_style.")
    assert same(found.method, after, "term_1_decoder.")
    assert same(found.method, after, "network.")
    go_on(kept)
    path = checkpoint.saved(tmp_path / "checkpoints")[-1]
    assert read_lines(train(tmp_path, cfg) and tmp_path / "metrics.jsonl")[-1]["t"] == 2
    half = {name: one for name, one in found.method.items() if name != "term_1_style.last.weight"}
    assert len(half) == len(found.method) - 1
    for leftover in checkpoint.saved(tmp_path / "checkpoints"):
        leftover.unlink()
    with pytest.raises(InputError, match=r"term_1_style\.last\.weight is missing"):
        go_on(half)


# ----------------------------------------------------------------------------------------- several optimisers


class Two(Method):
    """Two numbers that are fitted together, each by its own optimiser."""

    def __init__(self, which: Any) -> None:
        super().__init__(None)
        self.which = which
        self.one, self.two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        for part, value in ((self.one, 2.0), (self.two, -1.0)):
            nn.init.constant_(part.weight, value)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "main": torch.optim.SGD(self.one.parameters(), lr=0.1, momentum=0.5),
            "own": torch.optim.Adam(self.two.parameters(), lr=0.01),
        }

    def batches(self, start: int) -> Any:
        while True:
            yield torch.tensor([[3.0]])

    def step(self, t: int, batch: Any) -> None:
        loss = (4 * self.one(batch) + self.two(batch)).square().sum()
        self.report(loss=loss)
        self.update(loss, self.which)


def fitted(folder: Path, which: Any, clip: float | None = None) -> tuple[float, float]:
    method = Two(which)
    engine = EngineSettings(loggers=(), accelerator="cpu", threads=1)
    plan = Plan(2, 0, OptimSettings(clip=clip, schedule="constant"), engine, quiet=True)
    fit(method, RunFolder(folder), plan, make_fabric(engine))
    return method.one.weight.item(), method.two.weight.item()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_values_several_optimisers(tmp_path: Path, clip: float | None) -> None:
    """One backward pass, then each moves its own weights, from gradients that are clipped each by itself."""
    one, two = (nn.Parameter(torch.tensor(value)) for value in (2.0, -1.0))
    makers = torch.optim.SGD([one], lr=0.1, momentum=0.5), torch.optim.Adam([two], lr=0.01)
    for _ in range(2):
        residual = float((4 * one * 3 + two * 3).detach())
        one.grad, two.grad = torch.tensor(24 * residual), torch.tensor(6 * residual)
        for weight, maker in zip((one, two), makers, strict=True):
            if clip is not None:
                weight.grad = weight.grad * (clip / (abs(float(weight.grad)) + 1e-6))  # type: ignore[operator]
            maker.step()
    found = fitted(tmp_path / "both", ["main", "own"], clip)
    assert found == pytest.approx((float(one), float(two)), rel=1e-5)
    assert fitted(tmp_path / "alone", "own", clip)[0] == 2.0
    assert fitted(tmp_path / "list", ["main"], clip)[1] == -1.0
    assert fitted(tmp_path / "list", ["main"], clip) == fitted(tmp_path / "name", "main", clip)


class Apart(Two):
    """The second number has no part in the loss of odd iterations; small steps, which half precision holds."""

    def batches(self, start: int) -> Any:
        while True:
            yield torch.tensor([[0.25]])

    def step(self, t: int, batch: Any) -> None:
        total = 4 * self.one(batch) + (self.two(batch) if t % 2 == 0 else 0)
        self.update(total.float().square().sum(), self.which)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_dtypes_scaled(tmp_path: Path, clip: float | None) -> None:
    """With a scaled loss both step at the scale of their backward pass, which changes once; one without a gradient
    stays as it is."""
    found = []
    for scaled in (True, False):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_factor=2.0, growth_interval=1)
        plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin] if scaled else [])
        fabric.launch()
        method = Apart(["main", "own"])
        engine = EngineSettings(loggers=(), accelerator="cpu", threads=1)
        plan = Plan(4, 0, OptimSettings(clip=clip, schedule="constant"), engine, quiet=True)
        fit(method, RunFolder(tmp_path / str(scaled)), plan, fabric)
        found.append([float(part.weight.detach()) for part in (method.one, method.two)])
        if scaled:
            assert scaler.get_scale() == 8.0 * 2**4
    assert found[0] == pytest.approx(found[1], rel=5e-3)
    assert all(math.isfinite(value) for value in found[0])


# ---------------------------------------------------------------------------------------------- arms, asks


NAMES = {
    "spcl/gta5-cityscapes": {"source-only", "minus-prototypes", "minus-stage"},
    "spcl/synthia-cityscapes": {"source-only", "minus-prototypes", "minus-stage"},
    "spcl/scenes-2021": {"source-only", "minus-prototypes", "minus-stage"},
    "spcl/gta5-cityscapes-modern": {"source-only", "minus-prototypes"},
    "spcl/scenes-small": {"source-only", "minus-prototypes"},
    "spcl/scenes-target": {"source-only", "minus-prototypes"},
}
OURS = [name for name in packaged_recipes() if name.startswith(("spcl/", "content-transfer/"))]


@pytest.mark.parametrize("recipe", OURS)
def test_values_baselines(recipe: str) -> None:
    """Every arm is a valid recipe of as many iterations, and has what its name says."""
    both = {"source-only", "self-training", "minus-transfer", "minus-zero-style"}
    arms = arms_of(Request([recipe]))
    own = arms.pop(recipe.replace("/", "-"))
    assert set(arms) == NAMES.get(recipe, both)
    whole = api.resolve(own.recipe)
    for name, arm in arms.items():
        cfg = api.resolve(arm.recipe)
        method = find(cfg.method.name)
        listed = {key: method.stage_config(cfg, key) for key in cfg.stages}
        used = {entry.name for one in (cfg, *listed.values()) for entry in one.method.terms}
        gone = {
            "minus-prototypes": {"prototype-contrast"},
            "minus-stage": {"prototype-contrast"},
            "minus-transfer": {"content-transfer"},
            "minus-zero-style": {"zero-style"},
            "self-training": {"content-transfer", "zero-style"},
            "source-only": used - {"cross-entropy"},
        }[name]
        assert not gone & used, (name, used)
        assert "cross-entropy" in used
        assert cfg.steps == whole.steps
        assert (len(whole.stages) - len(cfg.stages)) == (name == "minus-stage")
        if name == "source-only":
            assert used == {"cross-entropy"}
            assert (cfg.method.ema, cfg.method.adabn) == (None, False)
        if name in ("minus-transfer", "self-training"):
            assert "self-training" in used


@pytest.mark.parametrize("changes", [{"mode": "decoded"}, {"style": "decoder"}], ids=str)
def test_errors_asks(changes: dict[str, str]) -> None:
    """A decoder that no term trains is missed before anything starts, in the recipe and in a stage."""
    paste = {"name": "content-transfer", "settings": {"style": "none", **changes}}
    with pytest.raises(InputError, match="zero-style beside content-transfer"):
        config(terms("cross-entropy", paste), *STILL)
    assert config(terms("cross-entropy", paste, STYLE), *STILL)
    stage = json.dumps({"steps": 2, "method": {"terms": [{"name": "cross-entropy"}, paste]}})
    with pytest.raises(InputError, match="zero-style"):
        built(config(terms("cross-entropy"), *STILL, f"stages.pasted={stage}"))
