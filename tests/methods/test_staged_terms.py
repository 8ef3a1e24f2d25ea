"""Terms in a chain of trainings: what stages hand on, first looks, drawn images, stored labels, several optimisers."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_adapt import built, config, label
from torch import Tensor, nn

from leanlabel import api
from leanlabel.banks.prototypes import ImageMeans
from leanlabel.data.class_sampling import class_table
from leanlabel.engine import checkpoint
from leanlabel.engine.pipeline import run_stage
from leanlabel.engine.runfolder import read_json
from leanlabel.errors import InputError
from leanlabel.methods import find
from leanlabel.methods.adapt import Adapt
from leanlabel.methods.adapt_handing import CARRIED, FIRST, carried_of, look_at_source, take_carried
from leanlabel.methods.adapt_stages import LOOK, rehearse
from leanlabel.methods.domains import mistaken_labels

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
