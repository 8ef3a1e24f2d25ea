"""Rare classes of labelled images in unlabelled ones: what is pasted, in which colours, by which network, two ranks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_adapt import built, config, label
from test_mixing_term import SIDE, Owner, batch_of, mix, naive
from torch import Tensor, nn
from torch.nn.functional import interpolate

from leanlabel import dist
from leanlabel.augment.tail import moments, without_small
from leanlabel.engine import checkpoint
from leanlabel.errors import InputError, RunError
from leanlabel.methods.content_transfer import ContentTransferMethod
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.terms import Setting, find_term
from leanlabel.methods.terms.mixing import PATIENCE, ClassMix, ClassMixSettings, ContentTransfer
from leanlabel.methods.terms.online import weighted_loss
from leanlabel.methods.terms.pasting import mixed_content, resized
from leanlabel.methods.terms.zero_style import REBUILT, zero_image
from leanlabel.models.segmenters import DenseOutput
from leanlabel.models.separator import ContentDecoder, StyleEncoder
from leanlabel.rng import draw
from smallrun import train

CLASSES = ("road", "car", "pole", "sky")
PIXELS = (500, 300, 15, 10)  # of the labelled images: pole and sky are rare
KNOWN = Setting(CLASSES, PIXELS, width=48, steps=10, seed=0, stride=4)


class Separating(Owner):
    """A method whose recipe has zero-style, too."""

    def __init__(self, separate: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.parts: dict[str, nn.Module] = {}
        if separate:
            style, decoder = StyleEncoder(3, 5, (4, 4)), ContentDecoder(48, 5, 3, 4, (8, 8, 6))
            self.parts = {"style": style.double(), "decoder": decoder.double()}

    def network_of(self, term: str, key: str) -> nn.Module | None:
        return self.parts.get(key) if term == "zero-style" else None


def transfer(**changes: Any) -> ContentTransfer:
    return ContentTransfer(ContentTransfer.Settings.model_validate(changes), KNOWN)


def stored_of(rows: slice = slice(4), side: int = SIDE) -> DenseBatch:
    """Unlabelled images with pseudo labels."""
    return batch_of(rows, 50, False, side)._replace(labels=batch_of(rows, 90, True, side).labels)


def donors_of(rows: slice = slice(4), side: int = SIDE) -> DenseBatch:
    return batch_of(rows, 30, True, side)


def step_of(
    owner: Any, target: DenseBatch | None = None, donor: DenseBatch | None = None, rows: slice = slice(4)
) -> Step:
    """Labelled images, unlabelled ones and, unless it is an empty batch, donors."""
    source = batch_of(rows, 10, True)
    target = stored_of(rows) if target is None else target
    donor = donors_of(rows) if donor is None else donor

    def draws(batch: DenseBatch) -> Any:
        return lambda name: draw(0, name, 3, batch.ids)

    inner = Step(owner, 3, target, draws(target))
    return Step(owner, 3, source, draws(source), inner, donor=donor if len(donor.ids) else None)


# ------------------------------------------------------------------------------------------------------- values


def test_values_composition() -> None:
    """The written example: labels, images and the thinned region of one image of 4 x 4 pixels."""
    ignored = -100
    y_s = torch.tensor([[[0, 0, 5, 5], [0, 4, 5, 1], [1, 4, 4, 1], [1, 1, 1, ignored]]])
    y_t = torch.tensor([[[0, 0, 0, ignored], [2, 2, ignored, 2], [1, 1, 1, 1], [1, 1, 4, 1]]])
    x_s = torch.arange(16.0).view(1, 1, 4, 4)
    names = tuple("abcdef")
    term = ContentTransfer(
        ContentTransfer.Settings.model_validate({"tail": None, "classes": ("e", "f"), "style": "none"}),
        Setting(names, (9,) * 6, width=4, steps=1, seed=0),
    )
    source, target = (DenseBatch(torch.tensor([1]), x, y) for x, y in ((x_s, y_s), (100 + x_s, y_t)))
    step = step_of(Separating(), target, source)
    found = term.mixed(step)
    assert found.region.long().tolist() == [[[0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]]
    assert found.labels.tolist() == [[[0, 0, 5, 5], [2, 4, 5, 2], [1, 4, 4, 1], [1, 1, 4, 1]]]
    assert int((found.labels != ignored).sum()) == 16
    expected = [[100, 101, 2, 3], [104, 5, 6, 107], [108, 9, 10, 111], [112, 113, 114, 115]]
    assert found.images[0, 0].tolist() == expected
    thin = mixed_content(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), found.region)
    assert thin.tolist() == [[[[0, 1], [0, 1]]]]


def test_values_weighted_loss() -> None:
    """The written example of the loss: the divisor is the number of labelled pixels, whatever their weights."""
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [1, 1, 1]], dtype=torch.float64)
    labels = torch.tensor([0, 2, 2, -100]).view(1, 2, 2)

    class Saying(Owner):
        def student(self, images: Tensor) -> DenseOutput:
            return DenseOutput(logits.T.reshape(1, 3, 2, 2), images)

    step, images = step_of(Saying()), torch.zeros(1, 3, 2, 2)
    for weights, expected in (((1.0, 1, 1, 1), 0.6286374788582988), ((1, 0.5, 1, 1), 0.3700633598696237)):
        found = weighted_loss(step, images, labels, torch.tensor(weights).view(1, 2, 2))
        assert float(found) == pytest.approx(expected, rel=1e-10)


def test_values_defaults() -> None:
    """Rare classes of drawn images, all of them, in the colours of the image around; the rest as it was."""
    owner, term = Separating(), transfer()
    step = step_of(owner)
    found, donor = term.mixed(step), donors_of()
    assert torch.equal(found.region, (donor.labels == 2) | (donor.labels == 3))
    inside = found.region[:, None].expand_as(found.images)
    moved = moments(donor.images, step.target.images)
    assert torch.equal(found.images[inside], moved[inside])
    assert torch.equal(found.images[~inside], step.target.images[~inside])
    assert torch.equal(found.labels[~found.region], step.target.labels[~found.region])
    assert bool((found.weights == 1).all())
    assert not owner.reported
    value = term.loss(step)["content_transfer"]
    assert torch.equal(owner.read[0], found.images), "the student reads the mix itself"
    expected = naive(owner.network(found.images).logits, found.labels, found.weights)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9)
    share = float(found.region.double().mean())
    without = float((~found.region.flatten(1).any(1)).double().mean())
    assert owner.reported == pytest.approx({"pasted_share": share, "without_tail": without})
    expected_pixels = torch.bincount(donor.labels[found.region], minlength=4)
    pasted = term.pasted_pixels()
    assert pasted is not None
    assert torch.equal(pasted, expected_pixels)
    term.loss(step)
    assert torch.equal(term.pasted, 2 * expected_pixels)


def test_values_share_of_pixels() -> None:
    """Weights of pixels without a label from the teacher; padding has weight 0, what is pasted over it 1."""
    owner = Separating()
    target = stored_of()
    weights = torch.ones(4, SIDE, SIDE)
    weights[:, :, 9:] = 0
    term = transfer(online=True, threshold=0.4)
    found = term.mixed(step_of(owner, target._replace(weights=weights)))
    outside = torch.where(weights > 0, owner.reported["confident"], 0.0)
    torch.testing.assert_close(found.weights, torch.where(found.region, 1.0, outside))
    assert 0 < owner.reported["confident"] < 1


def test_values_tail() -> None:
    """By pseudo labels where these are read, else by labelled images; a class that is lost in them is rare."""
    term = transfer()
    assert term.tail.tolist() == [False, False, True, True], "before pseudo labels are there"
    term.stored_pixels(torch.tensor([700, 10, 290, 0]))
    assert term.tail.tolist() == [False, True, False, True]
    term.stored_pixels(torch.tensor([700, 290, 10, 9]))
    assert term.tail.tolist() == [False, False, True, True], "those of the latest labels"
    nobody = transfer()
    nobody.stored_pixels(torch.zeros(4, dtype=torch.int64))
    assert nobody.tail.tolist() == [False, False, True, True]
    taught = transfer(online=True)
    taught.stored_pixels(torch.tensor([700, 10, 290, 0]))
    assert taught.tail.tolist() == [False, False, True, True]
    listed = transfer(tail=None, classes=("car",))
    listed.stored_pixels(torch.tensor([700, 10, 290, 0]))
    classes, temperature, least = listed.donor_rule()
    assert (classes.tolist(), temperature, least) == ([False, True, False, False], 0.1, 3000)


def test_values_resized() -> None:
    """Donors of another size: brought to that of the target whole, labels of the nearest pixel."""
    donor = donors_of(side=2 * SIDE)
    found = resized(donor, (SIDE, SIDE))
    expected = interpolate(donor.labels[:, None].double(), size=(SIDE, SIDE), mode="nearest-exact")[
        :, 0
    ].long()
    assert torch.equal(found.labels, expected)
    pixels = interpolate(donor.images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    assert torch.equal(found.images, pixels)
    mixed = transfer(style="none").mixed(step_of(Separating(), donor=donor))
    inside = mixed.region[:, None].expand_as(mixed.images)
    assert torch.equal(mixed.images[inside], pixels[inside])
    assert torch.equal(mixed.region, (expected == 2) | (expected == 3))
    assert resized(donor, (2 * SIDE, 2 * SIDE)) is donor


def test_values_least() -> None:
    """Small parts are left out."""
    step = step_of(Separating())
    whole, some = (transfer(least=least).mixed(step).region for least in (0, 17))
    assert torch.equal(some, without_small(whole, 17))
    assert int(some.sum()) < int(whole.sum())


def test_values_batch() -> None:
    """With labelled images of the batch and no further key: class mixing of those classes, and nothing is drawn."""
    nobody = donors_of(slice(0))
    term = transfer(donors="batch", style="none", tail=None, classes=("car", "sky"))
    found = term.mixed(step_of(Separating(), donor=nobody))
    same = mix(online=False, share=1.0, classes=("car", "sky")).mixed(step_of(Separating(), donor=nobody))
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))
    assert not ContentTransfer.needs(term.settings).donors
    assert ContentTransfer.needs(transfer().settings).donors


@pytest.mark.parametrize("donors", ["drawn", "batch"])
def test_values_feature(donors: str) -> None:
    """The classifier reads mixed features; what is looked at is the mixed image."""
    owner, term = Separating(), transfer(mode="feature", donors=donors)
    step = step_of(owner)
    mixed = term.mixed(step)
    labelled = donors_of().images if donors == "drawn" else step.images
    own, other = (owner.network(images).features for images in (labelled, step.target.images))
    places = torch.arange(own.shape[-1]) * SIDE // own.shape[-1]
    thin = mixed.region[:, places][:, :, places]
    content = torch.where(thin[:, None], own, other)
    expected = naive(owner.network.head(content), mixed.labels, mixed.weights)
    value = term.loss(step)["content_transfer"]
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9)
    assert mixed.images.shape == step.target.images.shape
    value.backward()
    assert all(p.grad is not None for p in owner.network.encoder.parameters())
    assert len(owner.read) == 2


@pytest.mark.parametrize("donors", ["drawn", "batch"])
def test_values_decoded(donors: str) -> None:
    """Mixed content, drawn in the style of the unlabelled image; the decoder learns nothing from it."""
    owner = Separating()
    step = step_of(owner)
    step.shared[REBUILT] = torch.tensor(0.2)
    term = transfer(mode="decoded", donors=donors)
    mixed = term.mixed(step)
    labelled = donors_of().images if donors == "drawn" else step.images
    own, other = (owner.network(images).features for images in (labelled, step.target.images))
    style = owner.parts["style"](step.target.images)
    content = mixed_content(own, other, mixed.region)
    expected = owner.parts["decoder"](content, style, (SIDE, SIDE))
    torch.testing.assert_close(mixed.images, expected.detach(), rtol=1e-10, atol=1e-12)
    assert not mixed.images.requires_grad
    (value,) = term.loss(step).values()
    value.backward()
    assert owner.reported["fell_back"] == 0
    assert all(p.grad is None for part in owner.parts.values() for p in part.parameters())
    # Passes that other terms read, too, have kept their gradient.
    assert step.target.features.requires_grad
    assert donors == "drawn" or step.features.requires_grad


def test_values_style_decoder() -> None:
    """What is pasted is drawn again in the style of the unlabelled image; around it that image is left."""
    owner = Separating()
    step = step_of(owner)
    step.shared[REBUILT] = torch.tensor(0.2)
    mixed = transfer(style="decoder").mixed(step)
    style = owner.parts["style"](step.target.images)
    drawn = owner.parts["decoder"](owner.network(donors_of().images).features, style, (SIDE, SIDE)).detach()
    inside = mixed.region[:, None].expand_as(mixed.images)
    torch.testing.assert_close(mixed.images[inside], drawn[inside], rtol=1e-10, atol=1e-12)
    assert torch.equal(mixed.images[~inside], step.target.images[~inside])


@pytest.mark.parametrize("changes", [{"mode": "decoded"}, {"style": "decoder"}])
@pytest.mark.parametrize("rebuilt", [None, 0.25, float("inf"), float("nan")])
def test_values_unreliable(changes: dict[str, str], rebuilt: float | None) -> None:
    """Before the decoder draws well enough: images in the colours of those around, and the step is counted."""
    owner = Separating()
    step = step_of(owner)
    if rebuilt is not None:
        step.shared[REBUILT] = torch.tensor(rebuilt)
    term, plain = transfer(**changes), transfer()
    assert torch.equal(term.mixed(step).images, plain.mixed(step).images)
    assert torch.equal(term.loss(step)["content_transfer"], plain.loss(step)["content_transfer"])
    assert owner.reported["fell_back"] == 1
    assert int(term.broken) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from(["none", "moments"]), st.integers(2, 9), st.integers(2, 9))
def test_values_outside(seed: int, style: str, height: int, width: int) -> None:
    """Outside of what is pasted: image and pseudo labels, bit for bit; inside: true labels of rare classes."""
    generator = torch.Generator().manual_seed(seed)

    def batch(first: int) -> DenseBatch:
        labels = torch.randint(-1, 4, (2, height, width), generator=generator)
        images = torch.randn(2, 3, height, width, generator=generator)
        return DenseBatch(torch.arange(first, first + 2), images, labels.masked_fill(labels < 0, -100))

    target, donor = batch(0), batch(2)
    found = transfer(style=style).mixed(step_of(object(), target, donor))
    outside = ~found.region
    apart = outside[:, None].expand_as(found.images)
    assert torch.equal(found.images[apart], target.images[apart])
    assert torch.equal(found.labels[outside], target.labels[outside])
    assert torch.equal(found.region, (donor.labels == 2) | (donor.labels == 3))
    assert torch.equal(found.labels[found.region], donor.labels[found.region])


# ------------------------------------------------------------------------------------------------------- degenerate


def test_degenerate_no_tail() -> None:
    """No class is rare: one warning, a loss of 0 on the graph, and no image is asked for."""
    term = transfer(tail=0.001)
    owner = Separating()
    step = step_of(owner, donor=donors_of(slice(0)))
    assert not term.mixed(step).region.any()
    term.stored_pixels(torch.tensor([5, 5, 5, 5]))
    with pytest.warns(UserWarning, match=r"content-transfer: no class is rare enough \(tail: 0.001\)"):
        value = term.loss(step)["content_transfer"]
    assert float(value.detach()) == 0
    value.backward()
    assert all(p.grad is not None and not p.grad.any() for p in owner.network.decoder.parameters())
    term.loss(step)  # silent
    assert not term.donor_rule()[0].any()


def test_degenerate_absent_class() -> None:
    """A class that no labelled image has is not pasted, and this is said once; not before it is settled."""
    known = Setting(CLASSES, (500, 300, 15, 0), width=48, steps=10, seed=0)
    term = ContentTransfer(ContentTransfer.Settings(), known)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        term.donor_rule()
    term.stored_pixels(torch.tensor([500, 300, 15, 2]))
    with pytest.warns(UserWarning, match="no labelled pixel of sky, so that nothing"):
        classes, *_ = term.donor_rule()
    assert classes.tolist() == [False, False, True, False]
    term.donor_rule()


def test_degenerate_no_tail_pixel() -> None:
    """Nothing to paste in what was drawn: self-training on that image, counted."""
    owner, donor = Separating(), donors_of()
    labels = donor.labels.clone()
    labels[:2] = 0
    labels[2:] = -100
    step, term = step_of(owner, donor=donor._replace(labels=labels)), transfer()
    value = term.loss(step)["content_transfer"]
    assert owner.reported == {"pasted_share": 0, "without_tail": 1}
    ones = torch.ones(4, SIDE, SIDE)
    expected = naive(owner.network(step.target.images).logits, step.target.labels, ones)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9)


def test_degenerate_everything() -> None:
    """All pixels are pasted: legal, no pseudo label is left. No pixel with a label at all: 0 on the graph."""
    donor = donors_of()
    term, owner = transfer(), Separating()
    found = term.mixed(step_of(owner, donor=donor._replace(labels=torch.full_like(donor.labels, 3))))
    assert bool(found.region.all())
    assert bool((found.labels == 3).all())
    nothing = torch.full_like(donor.labels, -100)
    target = stored_of()._replace(labels=nothing)
    value = term.loss(step_of(owner, target, donor._replace(labels=nothing)))["content_transfer"]
    assert float(value.detach()) == 0
    value.backward()


def test_degenerate_one_colour() -> None:
    """A donor of one colour gets the mean colour of the image around."""
    donor = donors_of()
    images = torch.full_like(donor.images, 0.3)
    step = step_of(Separating(), donor=donor._replace(images=images))
    found = transfer().mixed(step)
    middle = step.target.images.mean((2, 3), keepdim=True).expand_as(images)
    inside = found.region[:, None].expand_as(images)
    torch.testing.assert_close(found.images[inside], middle[inside])


def test_degenerate_broken_decoder() -> None:
    """Images that are not finite: done without, counted; a good one begins anew; too many in a row end the run."""
    owner, term = Separating(), transfer(mode="decoded")
    step = step_of(owner)
    step.shared[REBUILT] = torch.tensor(0.1)
    weights = next(owner.parts["decoder"].parameters()).data
    sound = weights.clone()
    weights.fill_(float("nan"))
    assert bool(term.mixed(step).images.isfinite().all())
    for _ in range(3):
        assert bool(term.loss(step)["content_transfer"].isfinite())
    assert owner.reported["fell_back"] == 1
    assert int(term.broken) == 3
    step.shared[REBUILT] = torch.tensor(1.0)
    term.loss(step)
    assert int(term.broken) == 3, "nothing was drawn, and so nothing is known"
    step.shared[REBUILT] = torch.tensor(0.1)
    weights.copy_(sound)
    term.loss(step)
    assert int(term.broken) == 0
    weights.fill_(float("inf"))
    term.broken.fill_(PATIENCE - 1)
    with pytest.raises(RunError, match=f"no finite image in {PATIENCE} iterations") as wrong:
        term.loss(step)
    assert "content-transfer" in str(wrong.value.suggestion)


def test_degenerate_zero_image_is_of_content_alone() -> None:
    """A zero-style image depends on content alone, to the last bit."""
    decoder = Separating().parts["decoder"]
    content = torch.rand(2, 48, 4, 4, dtype=torch.float64)
    one = zero_image(decoder, content, (SIDE, SIDE))
    assert torch.equal(one, decoder(content, torch.zeros(2, 5, dtype=torch.float64), (SIDE, SIDE)))


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("sky",)}, "tail: null beside classes"),
        ({"style": "decoder", "mode": "feature"}, "style: none or moments with mode feature"),
        ({"style": "decoder", "mode": "decoded"}, "style: none or moments with mode decoded"),
        ({"tail": 0.0}, "greater than 0"),
        ({"donors": "other"}, "'batch' or 'drawn'"),
        ({"min_pixels": 0}, "greater than or equal to 1"),
    ],
)
def test_errors_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ContentTransfer.Settings.model_validate(changes)


def test_errors() -> None:
    """Modes that draw need the term zero-style, which the recipe is told, and so is who calls nevertheless."""
    asked = [
        ContentTransfer.asks(transfer(**one).settings) for one in ({"mode": "decoded"}, {"style": "decoder"})
    ]
    assert asked == [("zero-style",)] * 2
    assert ContentTransfer.asks(transfer(mode="feature").settings) == ()
    with pytest.raises(InputError, match=r"no term of the recipe trains one\. Add the term zero-style"):
        transfer(mode="decoded").loss(step_of(Separating(separate=False)))
    with pytest.raises(InputError, match="images drawn for them"):
        transfer().loss(step_of(Separating(), donor=donors_of(slice(0))))
    step = step_of(Separating(), target=stored_of(), rows=slice(3), donor=donors_of())
    with pytest.raises(InputError, match=r"method\.terms, content-transfer: 3 labelled images"):
        transfer(donors="batch").loss(step)
    with pytest.raises(ValueError, match="no class is called"):
        transfer(tail=None, classes=("skye",))


# ------------------------------------------------------------------------------------------------------- state


def test_state() -> None:
    """Counts go on where they were; class mixing as it was before has no memory, and no new key in its name."""
    first, second = transfer(), transfer()
    first.stored_pixels(torch.tensor([700, 10, 290, 0]))
    first.loss(step_of(Separating()))
    second.load_state_dict(first.state_dict())
    assert second.state_dict().keys() == {"tail", "pasted", "broken"}
    for term in (first, second):
        term.loss(step_of(Separating()))
    assert all(torch.equal(one, second.state_dict()[name]) for name, one in first.state_dict().items())
    assert bool(first.pasted.any())
    plain = mix()
    assert not plain.state_dict()
    assert plain.pasted_pixels() is None
    with pytest.raises(NotImplementedError):
        plain.donor_rule()
    fields = ClassMixSettings.model_fields
    assert set(ClassMixSettings.later) == set(fields) - {
        *("share", "classes", "online", "threshold", "margins", "sides", "per_image", "strong")
    }
    assert find_term("content-transfer") is ContentTransfer
    assert mix(least=1).counted
    assert isinstance(transfer(), ClassMix)


def test_state_of_another_run() -> None:
    """Of a run whose weights are taken over neither the choice of classes nor the counts go on."""
    other, own = transfer(), transfer(tail=None, classes=(transfer().known.classes[0],))
    other.stored_pixels(torch.tensor([700, 10, 290, 0]))
    other.loss(step_of(Separating()))
    wanted = own.tail.clone()
    own.load_state_dict(other.state_dict())
    assert not torch.equal(own.tail, wanted)
    assert bool(own.pasted.any())
    own.taken_over()
    assert torch.equal(own.tail, wanted)
    assert not bool(own.pasted.any())


def test_values_baselines() -> None:
    """No arm without the term that trains the decoder, where it draws what is pasted."""
    drawing = {"name": "content-transfer", "settings": {"mode": "decoded"}}
    plain = {"name": "content-transfer"}
    for pasting, left in ((drawing, False), (plain, True)):
        values = {"method": {"terms": [{"name": "cross-entropy"}, pasting, {"name": "zero-style"}]}}
        assert ("minus-zero-style" in ContentTransferMethod.baselines_of(values)) == left
        assert "minus-transfer" in ContentTransferMethod.baselines_of(values)


# ------------------------------------------------------------------------------------------------------- ranks


def ranked(changes: dict[str, Any]) -> dict[str, Any]:
    """Loss, gradients, counts and reports of one rank's half of the batch."""
    rows = slice(0, 4) if dist.world() == 1 else slice(2 * dist.rank(), 2 * dist.rank() + 2)
    owner = Separating()
    term = transfer(**changes)
    step = step_of(owner, rows=rows)
    step.shared[REBUILT] = torch.tensor(0.1)
    (value,) = term.loss(step).values()
    value.backward()
    gradients = {n: p.grad for n, p in owner.network.named_parameters() if p.grad is not None}
    return {"loss": value.detach(), "gradients": gradients, "pasted": term.pasted, "told": owner.reported}


@pytest.mark.parametrize(
    "changes",
    [{}, {"mode": "feature", "least": 20}, {"mode": "decoded"}, {"online": True, "threshold": 0.4}],
    ids=["image", "feature", "decoded", "online"],
)
def test_ranks(pool: Any, changes: dict[str, Any]) -> None:
    """Two ranks with other numbers of labelled pixels equal one; counts are those of both, on both."""
    whole, parts = ranked(changes), pool.run(ranked, changes)
    assert float(parts[0]["loss"]) != pytest.approx(float(parts[1]["loss"]))
    torch.testing.assert_close((parts[0]["loss"] + parts[1]["loss"]) / 2, whole["loss"], rtol=1e-6, atol=0)
    for name, expected in whole["gradients"].items():
        found = (parts[0]["gradients"][name] + parts[1]["gradients"][name]) / 2
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=name)
    for part in parts:
        assert torch.equal(part["pasted"], whole["pasted"])
        assert part["told"] == pytest.approx(whole["told"])


# ------------------------------------------------------------------------------------------------------- whole runs


def test_whole_run(tmp_path: Path) -> None:
    """As a term of a recipe, with images that are drawn for rare classes; killed and resumed as if nothing had been."""
    terms = [{"name": "cross-entropy"}, {"name": "content-transfer", "settings": {"min_pixels": 5}}]
    cfg = config("method.terms=" + json.dumps(terms), "method.ema=null", "method.watch_every=0")

    def trained(folder: Path, *stops: int | None) -> dict[str, Tensor]:
        folder.mkdir()
        found: dict[str, Tensor] = {}
        for number, stop in enumerate(stops):
            method = built(cfg)
            method.use_table(torch.full((8, len(method.classes)), 50))
            label(method, folder / f"labels {number}")
            found = checkpoint.state_of(train(folder, cfg, stop, method=method))
        return found

    whole, parts = trained(tmp_path / "whole", None), trained(tmp_path / "parts", 2, None)
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert int(whole["term_1.pasted"].sum()) > 0
