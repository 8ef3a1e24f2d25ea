"""Terms on target images: stored labels, true labels, entropy; the tempered cross-entropy of the specification."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import interpolate

from leanlabel import dist
from leanlabel.errors import InputError
from leanlabel.methods.dense_step import DenseBatch, Owner, Step
from leanlabel.methods.terms import TABLE, Needs, Setting, Term, find_term
from leanlabel.methods.terms.pixel import CrossEntropy
from leanlabel.methods.terms.self_training import Entropy, LabelledTarget, SelfTraining, mean_entropy
from leanlabel.models.segmenters import DenseOutput
from leanlabel.rng import Draw
from pool import Pool

KNOWN = Setting(("road", "car", "sky"), (60, 30, 10), 4, 10, 0)
LEARNED = ["self-training", "labelled-target"]


class Fake:
    """A method whose network returns its images as logits; enlarges bilinearly."""

    def __init__(self) -> None:
        self.reported: dict[str, float] = {}

    def student(self, images: Tensor) -> DenseOutput:
        return DenseOutput(images, images)

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def report(self, **terms: Tensor | float) -> None:
        self.reported |= {name: float(value) for name, value in terms.items()}


def no_draw(name: str) -> Draw:
    raise AssertionError(f"{name}: nothing is drawn")


def step_of(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, *, source: Tensor | None = None
) -> tuple[Step, Fake]:
    """A step whose target has these logits and labels; the source's logits are others, or none that fit."""
    fake = Fake()
    owner = cast(Owner, fake)
    target = Step(owner, 0, DenseBatch(torch.arange(len(logits)), logits, labels, weights), no_draw)
    own = torch.full((1, 1, 1, 1), float("nan")) if source is None else source
    batch = DenseBatch(torch.arange(len(own)), own, torch.zeros(len(own), *own.shape[2:], dtype=torch.int64))
    return Step(owner, 0, batch, no_draw, target), fake


def single(logits: Tensor, labels: Tensor) -> Step:
    """A step of one domain."""
    batch = DenseBatch(torch.arange(len(logits)), logits, labels)
    return Step(cast(Owner, Fake()), 0, batch, no_draw)


def made(name: str, **settings: Any) -> Term:
    kind = find_term(name)
    return kind(kind.Settings(**settings), KNOWN).double()


def random_case(size: int = 6, stride: int = 1, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    small = size // stride
    logits = 2 * torch.randn(batch, 3, small, small, generator=numbers, dtype=torch.float64)
    labels = torch.randint(-1, 3, (batch, size, size), generator=numbers)
    return logits.requires_grad_(), labels.where(labels >= 0, -100)


def naive(logits: Tensor, labels: Tensor, divisor: float, weights: list[float] | None = None) -> float:
    """Cross-entropy pixel by pixel."""
    total, count = 0.0, 0.0
    for image, mask in zip(logits.tolist(), labels.tolist(), strict=True):
        for i, line in enumerate(mask):
            for j, label in enumerate(line):
                if label == -100:
                    continue
                scores = [image[k][i][j] / divisor for k in range(len(image))]
                own = 1.0 if weights is None else weights[label]
                total += own * (math.log(sum(map(math.exp, scores))) - scores[label])
                count += own
    return total / count


# --------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(("divisor", "expected"), [(1.0, 1.7512644604326706), (1.8, 1.3152613509531212)])
@pytest.mark.parametrize("name", ["cross-entropy", *LEARNED])
def test_values_tempered(name: str, divisor: float, expected: float) -> None:
    """Specification, case 8: three pixels, the last one ignored."""
    rows = torch.tensor([[2.0, 1, 0], [0, 0, 3], [1, -1, 0.5]], dtype=torch.float64)
    logits, labels = rows.mT.reshape(1, 3, 1, 3), torch.tensor([[[0, 1, -100]]])
    step = single(logits, labels) if name == "cross-entropy" else step_of(logits, labels)[0]
    (found,) = made(name, divisor=divisor).loss(step).values()
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_values_entropy() -> None:
    """Two certain pixels, two that are evenly split over two of four classes, by hand."""
    sure, half = [100.0, 0, 0, 0], [50.0, 50, 0, 0]
    logits = torch.tensor([sure, half, half, sure], dtype=torch.float64).mT.reshape(1, 4, 2, 2)
    assert float(mean_entropy(logits)) == pytest.approx(0.25, rel=1e-12)  # log 2 / log 4 of every other pixel
    assert float(mean_entropy(torch.zeros(1, 5, 2, 2))) == pytest.approx(1.0)


def test_values_names_and_needs() -> None:
    """What the terms say that they read, and the names of their losses and settings."""
    logits, labels = random_case()
    for name, own in [
        ("self-training", {"stored": True, "target_labels": False}),
        ("labelled-target", {"stored": False, "target_labels": True}),
        ("entropy", {"stored": False, "target_labels": False}),
    ]:
        assert name in TABLE
        term = made(name)
        assert term.needs(term.settings) == Needs(
            source=False, target=True, pairs=False, teacher=False, frozen="", **own
        )
        assert list(term.loss(step_of(logits, labels)[0])) == [name.replace("-", "_")]
    assert (SelfTraining, LabelledTarget, Entropy) == tuple(find_term(name) for name in (*LEARNED, "entropy"))
    assert made("cross-entropy").settings.divisor == 1.0


@pytest.mark.parametrize("kept", [0, 7, 18])
def test_values_kept_share(kept: int) -> None:
    """The share of all target pixels that have a pseudo label is reported."""
    labels = torch.full((18,), -100)
    labels[:kept] = 1
    step, fake = step_of(torch.zeros(2, 3, 3, 3), labels.view(2, 3, 3))
    made("self-training").float().loss(step)
    assert fake.reported == {"kept_share": pytest.approx(kept / 18)}


# ------------------------------------------------------------------------------------------------------ reference


@pytest.mark.parametrize("divisor", [1.0, 1.8])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.25]])
@pytest.mark.parametrize("name", LEARNED)
def test_reference(name: str, weights: list[float] | None, divisor: float) -> None:
    """Target logits against target labels in a loop; the source is not looked at."""
    logits, labels = random_case()
    settings: dict[str, Any] = {"divisor": divisor, "class_weights": tuple(weights or ()) or "none"}
    (found,) = made(name, **settings).loss(step_of(logits, labels)[0]).values()
    assert found.item() == pytest.approx(naive(logits, labels, divisor, weights), rel=1e-10)


@pytest.mark.parametrize("at", ["input", "feature"])
def test_reference_place(at: str) -> None:
    """Scores at half the size: enlarged to the labels, or labels thinned out to them."""
    logits, labels = random_case(6, 2)
    (found,) = made("self-training", at=at).loss(step_of(logits, labels)[0]).values()
    if at == "input":
        expected = naive(interpolate(logits, size=(6, 6), mode="bilinear"), labels, 1.0)
    else:
        expected = naive(logits, labels[:, ::2, ::2], 1.0)
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_reference_pixel_weights() -> None:
    """Weights of target pixels scale their parts of the loss."""
    logits, labels = random_case()
    weights = torch.rand(labels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (found,) = made("self-training").loss(step_of(logits, labels, weights)[0]).values()
    valid = labels >= 0
    each = torch.logsumexp(logits, 1) - logits.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    torch.testing.assert_close(found, (each * weights)[valid].sum() / valid.sum())


def test_reference_entropy() -> None:
    """At the network's stride, in a loop."""
    logits, labels = random_case(6, 2)
    (found,) = made("entropy").loss(step_of(logits, labels)[0]).values()
    total = 0.0
    for pixel in logits.detach().movedim(1, -1).reshape(-1, 3).tolist():
        z = sum(map(math.exp, pixel))
        total -= sum(math.exp(x) / z * math.log(math.exp(x) / z) for x in pixel)
    assert found.item() == pytest.approx(total / 18 / math.log(3), rel=1e-12)


@given(st.permutations(range(3)), st.floats(-5, 5))
def test_reference_invariances(order: list[int], shift: float) -> None:
    """The entropy knows neither the numbers of classes nor a constant added to all scores."""
    logits, _ = random_case(4)
    torch.testing.assert_close(mean_entropy(logits[:, order] + shift), mean_entropy(logits))


def test_gradient() -> None:
    logits, labels = random_case(3)
    for name in (*LEARNED, "entropy"):
        term = made(name, **({"divisor": 1.8} if name != "entropy" else {}))

        def value(x: Tensor, term: Term = term) -> Tensor:
            return next(iter(term.loss(step_of(x, labels)[0]).values()))

        assert torch.autograd.gradcheck(value, (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*LEARNED, "entropy"])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    """Large scores stay finite; the loss is float32."""
    logits, labels = random_case()
    term = made(name, **({"divisor": 1.8} if name != "entropy" else {})).float()
    small = (logits.detach() * 1000).to(dtype).requires_grad_()
    (found,) = term.loss(step_of(small, labels)[0]).values()
    assert found.dtype == torch.float32
    found.backward()
    assert bool(torch.isfinite(found))
    assert small.grad is not None
    assert bool(torch.isfinite(small.grad).all())


# ----------------------------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize("weights", ["none", (1.0, 2.0, 0.0)])
@pytest.mark.parametrize("at", ["input", "feature"])
@pytest.mark.parametrize("name", LEARNED)
def test_degenerate_no_label(name: str, at: str, weights: Any) -> None:
    """No pixel with a label: exactly 0, attached to the graph, no gradient."""
    logits, labels = random_case(6, 2)
    term = made(name, at=at, class_weights=weights, divisor=1.8)
    (found,) = term.loss(step_of(logits, torch.full_like(labels, -100))[0]).values()
    assert float(found.detach()) == 0.0
    found.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_degenerate_one_class() -> None:
    """With one class there is nothing to be unsure of: 0, attached, no gradient."""
    logits = torch.randn(1, 1, 2, 2, requires_grad=True)
    found = mean_entropy(logits)
    found.backward()
    assert found.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_degenerate_certain() -> None:
    """Scores far apart: entropy 0, gradient finite."""
    logits = torch.tensor([[1e4, 0.0, -1e4]]).view(1, 3, 1, 1).requires_grad_()
    found = mean_entropy(logits)
    found.backward()
    assert found.item() == 0.0
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_errors() -> None:
    logits, labels = random_case()
    for name in (*LEARNED, "entropy"):
        with pytest.raises(InputError, match="second domain"):
            made(name).loss(single(logits, labels))
    for wrong in (0.0, -1.0):
        with pytest.raises(ValidationError, match="divisor"):
            made("self-training", divisor=wrong)
        with pytest.raises(ValidationError, match="divisor"):
            made("cross-entropy", divisor=wrong)
    with pytest.raises(ValueError, match="2 numbers for 3 classes"):
        made("self-training", class_weights=(1.0, 2.0))
    with pytest.raises(InputError, match="label 3 is neither"):
        made("self-training").loss(step_of(logits, torch.full_like(labels, 3))[0])
    with pytest.raises(ValueError, match=r"must be \(B, K"):
        mean_entropy(torch.zeros(3))


def test_state() -> None:
    """The terms remember nothing; class weights follow the module."""
    for name in (*LEARNED, "entropy"):
        assert made(name).state_dict() == {}
    term = made("self-training", class_weights="inverse-log")
    assert isinstance(term, CrossEntropy)
    assert term.class_weights is not None
    assert term.class_weights.dtype == torch.float64


def _shared(name: str) -> tuple[float, Tensor, dict[str, float]]:
    """Loss of all target images, gradient of this rank's, what is reported; the ranks' shares of pixels differ."""
    logits, labels = random_case(batch=4)
    labels[:2, 1:] = -100
    part = slice(None) if dist.world() == 1 else slice(2 * dist.rank(), 2 * dist.rank() + 2)
    own = logits.detach()[part].clone().requires_grad_()
    step, fake = step_of(own, labels[part])
    (found,) = made(name, **({"divisor": 1.8} if name != "entropy" else {})).loss(step).values()
    found.backward()
    assert own.grad is not None
    return float(found.detach()), own.grad, fake.reported


@pytest.mark.parametrize("name", [*LEARNED, "entropy"])
def test_ranks(pool: Pool, name: str) -> None:
    """The mean over two ranks is the loss, the gradient and the reported share of one."""
    value, gradient, reported = _shared(name)
    found = pool.run(_shared, name)
    assert sum(one[0] for one in found) / 2 == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(torch.cat([one[1] for one in found]) / 2, gradient, rtol=1e-12, atol=1e-15)
    for key, expected in reported.items():
        assert sum(one[2][key] for one in found) / 2 == pytest.approx(expected, rel=1e-12)
