"""Classes of labelled images in unlabelled ones: what is pasted, who is asked, what is learned, two ranks as one."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from leanlabel import dist
from leanlabel.augment.photometric import ColourSettings, colours
from leanlabel.errors import InputError
from leanlabel.losses.confident import confident_labels
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.terms import Setting, Term
from leanlabel.methods.terms.mixing import ClassMix
from leanlabel.methods.terms.online import online_labels
from leanlabel.models.decoders import upsample
from leanlabel.models.segmenters import DenseOutput, SegmenterSettings, build_segmenter
from leanlabel.rng import draw

KNOWN = Setting(("road", "car", "pole", "sky"), (50, 20, 5, 25), width=48, steps=10, seed=0)
SIDE = 16


class Owner:
    """A method that counts who is asked."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        settings = SegmenterSettings(name="tiny-fcn", norm="none")
        self.network = build_segmenter(settings, 4).double()
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        with torch.no_grad():  # another network than the student, and sure of some pixels only
            for parameter in self.average.get_submodule("decoder.classifier").parameters():
                parameter.mul_(400)
        self.asked: list[str] = []
        self.read: list[Tensor] = []
        self.reported: dict[str, float] = {}

    def student(self, images: Tensor) -> DenseOutput:
        self.asked.append("student")
        self.read.append(images)
        return self.network(images)

    def student_head(self, features: Tensor) -> Tensor:
        return self.network.head(features)

    def teacher_output(self, images: Tensor) -> DenseOutput:
        self.asked.append("teacher")
        with torch.no_grad():
            return self.average(images)

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return upsample(logits, size)

    def reference_output(self, images: Tensor) -> DenseOutput:
        raise NotImplementedError

    def initial_map(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def recoloured(self, images: Tensor, settings: ColourSettings, draw: Any) -> Tensor:
        changed = colours((images * 0.25 + 0.5).clamp(0, 1), settings, draw)
        return ((changed - 0.5) / 0.25).to(images)

    def own_network(self, name: str) -> nn.Module:
        raise NotImplementedError(name)

    def network_of(self, term: str, key: str) -> nn.Module | None:
        return None

    def update(self, loss: Tensor, which: str = "main") -> None:
        raise NotImplementedError(which)

    def report(self, **terms: Tensor | float) -> None:
        self.reported.update({name: float(value) for name, value in terms.items()})


def batch_of(rows: slice, first_id: int, labelled: bool, side: int = SIDE) -> DenseBatch:
    """Rows of a batch of four: images of four uniform patches each, classes at random, a few without one."""
    generator = torch.Generator().manual_seed(first_id)
    images = torch.rand(4, 3, side, side, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.randint(-1, 4, (4, side // 4, side // 4), generator=generator)
    labels = labels.masked_fill(labels < 0, -100).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels = labels if labelled else torch.full_like(labels, -100)
    return DenseBatch(torch.arange(first_id, first_id + 4)[rows], images[rows], labels[rows])


def step_of(owner: Owner, source: DenseBatch | None = None, target: DenseBatch | None = None) -> Step:
    def draws(batch: DenseBatch) -> Any:
        return lambda name: draw(0, name, 3, batch.ids)

    source = batch_of(slice(4), 10, True) if source is None else source
    target = batch_of(slice(4), 50, False) if target is None else target
    return Step(owner, 3, source, draws(source), Step(owner, 3, target, draws(target)))


def made(term: type[Term] = ClassMix, **settings: Any) -> Any:
    given = {"threshold": 0.4, **settings}
    return term(term.Settings.model_validate(given), KNOWN)


mix = partial(made, ClassMix)
PLAIN = ColourSettings()


def naive(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """sum of w l over the number of labelled pixels, pixel by pixel."""
    logits = interpolate(logits.detach(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    total, count = 0.0, 0
    for b, i, j in (labels != -100).nonzero().tolist():
        total += float(weights[b, i, j] * cross_entropy(logits[b, :, i, j], labels[b, i, j]))
        count += 1
    return total / count


def test_values_mixed() -> None:
    """Pasted pixels: source image, label, weight 1; the others: target image bit for bit, teacher's class, q."""
    owner = Owner()
    step = step_of(owner)
    mixed = mix().mixed(step)
    region = mixed.region
    taught = confident_labels(upsample(owner.average(step.target.images).logits, (SIDE, SIDE)), 0.4)
    share = float(taught.share)
    assert 0.05 < share < 0.95
    for b in range(4):
        pasted = step.labels[b][region[b]].unique()
        present = step.labels[b][step.labels[b] != -100].unique()
        assert len(pasted) == -(-len(present) // 2)
        assert torch.equal(region[b], torch.isin(step.labels[b], pasted))
    everywhere = region[:, None].expand_as(mixed.images)
    assert torch.equal(mixed.images[everywhere], step.images[everywhere])
    assert torch.equal(mixed.images[~everywhere], step.target.images[~everywhere])
    assert torch.equal(mixed.labels[region], step.labels[region])
    assert torch.equal(mixed.labels[~region], taught.labels[~region])
    assert bool((mixed.weights[region] == 1).all())
    assert bool((mixed.weights[~region] == taught.share).all())
    assert owner.asked == ["teacher"]


def test_values_margins() -> None:
    """Rows at top and bottom have weight 0, except where true labels are pasted."""
    step = step_of(Owner())
    mixed = mix(margins=(0.25, 0.5), sides=0.125).mixed(step)
    outside = ~mixed.region
    counted = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    counted[4:8, 2:14] = True
    assert torch.equal((mixed.weights > 0) & outside, counted & outside)
    assert bool((mixed.weights[mixed.region] == 1).all())


def test_values_classes() -> None:
    """Only listed classes are pasted; all of them with share 1."""
    step = step_of(Owner())
    mixed = mix(classes=("sky", "car"), share=1.0).mixed(step)
    assert torch.equal(mixed.region, (step.labels == 1) | (step.labels == 3))


def test_values_stored() -> None:
    """Without a teacher: stored labels with weight 1, pixels without one ignored."""
    owner = Owner()
    target = batch_of(slice(4), 50, False)
    target = target._replace(labels=batch_of(slice(4), 90, True).labels)
    step = step_of(owner, target=target)
    term = mix(online=False, strong=PLAIN)
    mixed = term.mixed(step)
    assert torch.equal(mixed.labels[~mixed.region], target.labels[~mixed.region])
    assert bool((mixed.weights == 1).all())
    value = term.loss(step)["mix"].detach()
    assert "teacher" not in owner.asked
    assert not owner.reported
    expected = naive(owner.network(mixed.images).logits, mixed.labels, mixed.weights)
    assert float(value) == pytest.approx(expected, rel=1e-9)


def test_values_padding() -> None:
    """Pixels of weight 0 in the unlabelled batch have no label and no part in the share; other weights multiply it."""
    owner = Owner()
    target = batch_of(slice(4), 50, False)
    weights = torch.ones(4, SIDE, SIDE)
    weights[:, :, 8:] = 0.25
    weights[:, :, 10:] = 0
    step = step_of(owner, target=target._replace(weights=weights))
    mixed = mix().mixed(step)
    padded = ~mixed.region & (weights == 0)
    assert bool((mixed.labels[padded] == -100).all())
    logits = upsample(owner.average(target.images).logits, (SIDE, SIDE))
    expected = (logits.softmax(1).amax(1)[:, :, :10] >= 0.4).double().mean()
    assert owner.reported["confident"] == pytest.approx(float(expected))
    found = torch.where(mixed.region, 1.0, weights * owner.reported["confident"])
    torch.testing.assert_close(mixed.weights, found)


@pytest.mark.parametrize("per_image", [False, True])
def test_reference(per_image: bool) -> None:
    """The loss of a naive loop over what the student read."""
    owner = Owner()
    step = step_of(owner)
    term = mix(per_image=per_image)
    losses = term.loss(step)
    assert list(losses) == ["mix"]
    mixed = term.mixed(step)
    expected = naive(owner.network(owner.read[0]).logits, mixed.labels, mixed.weights)
    assert float(losses["mix"].detach()) == pytest.approx(expected, rel=1e-9)
    shares = len(online_labels(step, 0.4, per_image=True).share.unique())
    assert shares > 2
    outside = mixed.weights[~mixed.region]
    assert len(outside.unique()) == (shares if per_image else 1)
    changed = (owner.read[0] - mixed.images).abs().amax((1, 2, 3)) > 1e-6
    assert bool(changed.any()), "the student reads other colours"


def test_values_teacher_runs_once() -> None:
    """Terms share the teacher's pass, and labels where their settings agree."""
    owner = Owner()
    step = step_of(owner)
    first = online_labels(step, 0.4, 0.1, 0.0)
    assert online_labels(step, 0.4, 0.1, 0.0) is first
    assert online_labels(step, 0.4) is not first
    mix().loss(step)
    assert owner.asked.count("teacher") == 1


def test_gradient() -> None:
    """The student learns; teacher and images have no gradient."""
    owner = Owner()
    step = step_of(owner)
    mix().loss(step)["mix"].backward()
    assert all(
        parameter.grad is not None and bool(parameter.grad.any())
        for name, parameter in owner.network.named_parameters()
        if name.startswith("decoder")
    )
    assert all(parameter.grad is None for parameter in owner.average.parameters())
    assert not step.images.requires_grad
    assert not step.target.images.requires_grad


def test_degenerate() -> None:
    """No source label: nothing is pasted. Nobody sure besides: exactly 0, with a gradient of 0."""
    owner = Owner()
    source = batch_of(slice(4), 10, True)
    step = step_of(owner, source._replace(labels=torch.full_like(source.labels, -100)))
    mixed = mix().mixed(step)
    assert not bool(mixed.region.any())
    assert torch.equal(mixed.images, step.target.images)
    value = mix(threshold=1.0).loss(step)["mix"]
    assert float(value.detach()) == 0
    assert owner.reported["confident"] == 0
    value.backward()
    assert all(not bool(p.grad.any()) for p in owner.network.parameters() if p.grad is not None)
    stored = mix(online=False).loss(step)["mix"]
    assert float(stored.detach()) == 0
    stored.backward()


def test_errors() -> None:
    owner = Owner()
    with pytest.raises(InputError, match="4 labelled images cannot be pasted into 3") as wrong:
        mix().loss(step_of(owner, target=batch_of(slice(3), 50, False)))
    assert "data.source.batch_size and data.target.batch_size" in str(wrong.value.suggestion)
    with pytest.raises(InputError, match="16 x 16 pixels, unlabelled ones 3 channels of 24 x 24") as wrong:
        mix().loss(step_of(owner, target=batch_of(slice(4), 50, False, side=24)))
    assert "augment.crop and target_augment.crop" in str(wrong.value.suggestion)
    assert not owner.asked, "found before anything is computed"
    with pytest.raises(ValueError, match=r"no class is called 'poles'; did you mean 'pole'\?"):
        mix(classes=("poles",))
    for settings in ({"margins": (0.5, 0.5)}, {"threshold": 1.5}, {"classes": ()}, {"share": 2.0}):
        with pytest.raises(ValidationError):
            mix(**settings)


def test_state() -> None:
    """What it reads follows from its settings; it remembers nothing."""
    assert not mix().state_dict()
    online, stored = (ClassMix.needs(mix(online=value).settings) for value in (True, False))
    assert (online.teacher, online.stored, stored.teacher, stored.stored) == (True, False, False, True)
    assert online.source
    assert online.target


def ranked() -> dict[str, Any]:
    """Loss, gradients and share of one rank's half of the batch."""
    rows = slice(0, 4) if dist.world() == 1 else slice(2 * dist.rank(), 2 * dist.rank() + 2)
    owner = Owner()
    target = batch_of(rows, 50, False)
    weights = torch.ones(4, SIDE, SIDE)
    weights[0, :, 5:] = 0  # ranks with other numbers of pixels
    step = step_of(owner, batch_of(rows, 10, True), target._replace(weights=weights[rows]))
    value = mix(margins=(0.1, 0.2)).loss(step)["mix"]
    value.backward()
    gradients = {n: p.grad for n, p in owner.network.named_parameters() if p.grad is not None}
    return {"loss": value.detach(), "share": owner.reported["confident"], "gradients": gradients}


def test_ranks(pool: Any) -> None:
    """Two ranks with other numbers of sure and of labelled pixels equal one."""
    whole, parts = ranked(), pool.run(ranked)
    assert [part["share"] for part in parts] == [whole["share"]] * 2
    assert float(parts[0]["loss"]) != pytest.approx(float(parts[1]["loss"]))
    torch.testing.assert_close((parts[0]["loss"] + parts[1]["loss"]) / 2, whole["loss"], rtol=1e-6, atol=0)
    for name, expected in whole["gradients"].items():
        found = (parts[0]["gradients"][name] + parts[1]["gradients"][name]) / 2
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=name)
