"""Losses of single pixels: numbers by hand, loops, what is left out of a mean, and two ranks as one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.errors import InputError
from leanlabel.losses.pixel import (
    align,
    class_balanced_weights,
    focal,
    max_pooling_loss,
    ohem,
    pixel_cross_entropy,
    pixel_losses,
)

LOSSES = {"cross-entropy": pixel_cross_entropy, "ohem": ohem, "focal": focal, "max-pooling": max_pooling_loss}


def random_case(*size: int, classes: int = 4, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(-1, classes, (batch, *size), generator=generator)
    return scores.requires_grad_(), labels.where(labels >= 0, -100)


def of_losses(values: list[float]) -> tuple[Tensor, Tensor]:
    """Two-class scores whose pixel losses are given, and labels."""
    gaps = torch.expm1(torch.tensor(values, dtype=torch.float64)).log()
    return torch.stack([gaps, torch.zeros_like(gaps)])[None], torch.ones(1, len(values), dtype=torch.int64)


def chances(*values: float) -> tuple[Tensor, Tensor]:
    """Scores under which the label's class has the probabilities given."""
    return of_losses([-math.log(p) for p in values])


def exact(expected: float) -> Any:
    return pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------------- values


def test_values_cross_entropy() -> None:
    """Three pixels with losses 1, 2 and 3, the third ignored: means by hand."""
    scores, labels = of_losses([1.0, 2.0, 3.0])
    labels[0, 2] = -100
    assert float(pixel_cross_entropy(scores, labels)) == exact(1.5)
    weight = torch.tensor([[0.5, 0.25, 9.0]])
    assert float(pixel_cross_entropy(scores, labels, weight=weight)) == exact(0.5)
    assert float(pixel_cross_entropy(scores, labels, weight=weight, divide="weights")) == exact(4 / 3)
    classes = torch.tensor([7.0, 3.0])
    for divide, expected in (("classes", 1.5), ("weights", 1.5), ("count", 4.5)):
        assert float(pixel_cross_entropy(scores, labels, class_weights=classes, divide=divide)) == exact(  # type: ignore[arg-type]
            expected
        )


def test_values_ohem() -> None:
    """Probabilities .9 .8 .6 .3 .1: two below 0.5; at least four; the three worst of five."""
    p = (0.9, 0.8, 0.6, 0.3, 0.1)
    scores, labels = chances(*p)
    cases: list[tuple[dict[str, Any], tuple[float, ...]]] = [
        ({"threshold": 0.5, "min_kept": 0}, p[3:]),
        ({"threshold": 0.5, "min_kept": 4}, p[1:]),
        ({"threshold": 0.5, "min_kept": 0.6}, p[2:]),
        ({"threshold": 0.7, "min_kept": 1}, p[2:]),
        ({"threshold": 1e-3, "min_kept": 0}, ()),
        ({}, p),
    ]
    for settings, kept in cases:
        expected = sum(-math.log(one) for one in kept) / max(1, len(kept))
        assert float(ohem(scores, labels, **settings)) == exact(expected)
    assert float(ohem(scores, labels, min_kept=0, class_weights=torch.tensor([1.0, 2.0]))) == exact(
        -2 * sum(math.log(one) for one in p[2:]) / 3
    )


def test_values_focal() -> None:
    scores, labels = chances(0.9, 0.25)
    expected = [-(0.1**2) * math.log(0.9), -(0.75**2) * math.log(0.25)]
    assert float(focal(scores, labels)) == exact(sum(expected) / 2)
    assert float(focal(scores, labels, gamma=0.0)) == exact(float(pixel_cross_entropy(scores, labels)))
    weights = torch.tensor([5.0, 0.5])
    assert float(focal(scores, labels, class_weights=weights)) == exact(sum(expected) / 4)


def test_values_max_pooling() -> None:
    """Losses 4 3 2 1. Half of the pixels at p = 1: (4 + 3) / 2. No bound in reach at p = 2: their root mean square."""
    scores, labels = of_losses([2.0, 4.0, 1.0, 3.0])
    assert float(max_pooling_loss(scores, labels, p=1.0, support=0.5)) == exact(3.5)
    assert float(max_pooling_loss(scores, labels, p=1.0, support=0.375)) == exact((4 + 3 / 2) / 1.5)
    assert float(max_pooling_loss(scores, labels, p=2.0, support=0.25)) == exact(math.sqrt(30 / 4))
    assert float(max_pooling_loss(scores, labels, p=math.inf)) == exact(2.5)
    assert float(max_pooling_loss(scores, labels, support=1.0)) == exact(2.5)


def test_values_class_weights() -> None:
    """Counts 60, 30, 10 and none."""
    counts = [60, 30, 10, 0]
    inverse_log = [1 / math.log(1.02 + f) for f in (0.6, 0.3, 0.1, 0.0)]
    torch.testing.assert_close(class_balanced_weights(counts), torch.tensor(inverse_log))
    torch.testing.assert_close(class_balanced_weights(counts, "median"), torch.tensor([0.5, 1, 3, 3]))
    roots = torch.tensor([60.0, 30, 10, 10]).rsqrt()
    torch.testing.assert_close(class_balanced_weights(counts, "sqrt-inverse"), roots / roots[:3].mean())
    effective = 0.1 / (1 - 0.9 ** torch.tensor([60.0, 30, 10, 10]))
    torch.testing.assert_close(
        class_balanced_weights(torch.tensor(counts), "effective", beta=0.9), effective / effective[:3].mean()
    )


@pytest.mark.parametrize(
    ("large", "small", "expected"),
    [
        (5, 2, [0, 2]),
        (8, 3, [0, 2, 5]),
        (720, 90, list(range(0, 720, 8))),
        (1024, 128, list(range(0, 1024, 8))),
    ],
)
def test_values_align_feature(large: int, small: int, expected: list[int]) -> None:
    """Nearest places of the specification of SPCL, O4, along each axis."""
    numbers = torch.arange(large)
    labels = numbers[None, :, None].expand(1, large, 4)
    logits = torch.zeros(1, 2, small, 4)
    kept, thin = align(logits, labels, "feature")
    assert kept is logits
    assert thin[0, :, 0].tolist() == expected
    assert align(logits.mT, labels.mT, "feature")[1][0, 0].tolist() == expected


def test_values_align_input() -> None:
    """Corners stay where they are with align_corners; what fits is returned as it is."""
    logits, labels = torch.randn(1, 2, 3, 4), torch.zeros(1, 5, 7, dtype=torch.int64)
    grown, same = align(logits, labels, align_corners=True)
    assert same is labels
    assert grown.shape == (1, 2, 5, 7)
    torch.testing.assert_close(grown[..., ::4, ::6], logits[..., ::2, ::3])
    torch.testing.assert_close(align(logits, labels)[0], F.interpolate(logits, (5, 7), mode="bilinear"))
    volume, _ = align(torch.randn(1, 2, 2, 3, 4), torch.zeros(1, 4, 6, 8, dtype=torch.int64))
    assert volume.shape == (1, 2, 4, 6, 8)
    fitting = torch.zeros(1, 2, 5, 7)
    assert align(fitting, labels, "feature") == (fitting, labels)


# ---------------------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("size", [(7,), (4, 5), (2, 3, 4)], ids=str)
def test_reference(size: tuple[int, ...]) -> None:
    """What torch computes, with all of its options."""
    scores, labels = random_case(*size)
    weights = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)
    for smoothing in (0.0, 0.3):
        for one in (None, weights):
            found = pixel_cross_entropy(scores, labels, class_weights=one, smoothing=smoothing)
            expected = F.cross_entropy(scores, labels, weight=one, label_smoothing=smoothing)
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        pixel_losses(scores, labels), F.cross_entropy(scores, labels, reduction="none")
    )


def worst(losses: Tensor, p: float, support: float) -> float:
    """The largest w . l under both norms, by bisection over c in w = min(tau, c l^(q - 1))."""
    n, q = len(losses), p / (p - 1)
    gamma, tau = n ** (1 / p - 1), n ** (1 / p - 1) * (support * n) ** (-1 / p)
    low, high, weights = 0.0, 1e6, losses
    for _ in range(200):
        c = (low + high) / 2
        weights = (c * losses ** (q - 1)).clamp(max=tau)
        low, high = (c, high) if float((weights**p).sum() ** (1 / p)) < gamma else (low, c)
    return float((weights * losses).sum())


@pytest.mark.parametrize("p", [1.3, 1.7, 2.0, 4.0])
@pytest.mark.parametrize("support", [0.1, 0.25, 0.7])
def test_reference_max_pooling(p: float, support: float) -> None:
    losses = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) ** 4 * 9
    scores, labels = of_losses(losses.tolist())
    found = float(max_pooling_loss(scores, labels, p=p, support=support))
    assert found == pytest.approx(worst(losses, p, support), rel=1e-9)


# ----------------------------------------------------------------------------------------------------- gradient


@pytest.mark.parametrize("name", LOSSES)
def test_gradient(name: str) -> None:
    """Right by finite differences, and none at ignored pixels."""
    scores, labels = random_case(3, 3, classes=3)
    settings: dict[str, Any] = {"min_kept": 4} if name == "ohem" else {}
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels, **settings), (scores,))
    (found,) = torch.autograd.grad(LOSSES[name](scores, labels), scores)
    assert not found.movedim(1, -1)[labels == -100].any()
    assert found.any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    scores, labels = random_case(5, 5)
    narrow = (scores.detach() * 20).to(dtype).requires_grad_()
    loss = LOSSES[name](narrow, labels.to(torch.int16))
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(
        float(LOSSES[name](narrow.detach().double(), labels)), rel=1e-4
    )
    assert narrow.grad is not None
    assert bool(narrow.grad.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
def test_degenerate(name: str) -> None:
    """Nothing labelled, no image, one class, certainty: 0 with a gradient of 0."""
    ignored = torch.full((2, 3, 3), -100)
    for scores, labels in (
        (torch.randn(2, 4, 3, 3), ignored),
        (torch.randn(0, 4, 3, 3), ignored[:0]),
        (torch.randn(2, 1, 3, 3), torch.zeros_like(ignored)),
        (torch.tensor([400.0, 0.0]).view(1, 2, 1, 1).repeat(2, 1, 3, 3), torch.zeros_like(ignored)),
    ):
        scores = scores.clone().requires_grad_()
        loss = LOSSES[name](scores, labels)
        loss.backward()
        assert float(loss.detach()) == 0
        assert scores.grad is not None
        assert not scores.grad.any()


def test_degenerate_focal_root() -> None:
    """An exponent below 1 has an infinite slope at p = 1, which is never reached."""
    scores = torch.tensor([[[400.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    focal(scores, torch.zeros(1, 2, dtype=torch.int64), gamma=0.5).backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ignore", [-1, 255, 2])
def test_degenerate_ignore(name: str, ignore: int) -> None:
    scores, labels = random_case(4, 4)
    labels = torch.where(labels == 2, -100, labels)
    renamed = torch.where(labels == -100, ignore, labels)
    expected = LOSSES[name](scores, labels)
    torch.testing.assert_close(LOSSES[name](scores, renamed, ignore=ignore), expected)
    if ignore == 255:
        torch.testing.assert_close(LOSSES[name](scores, renamed.to(torch.uint8), ignore=255), expected)


def test_degenerate_bytes_do_not_wrap() -> None:
    """-100 is no uint8: class 156, which has its bits, stays a class."""
    scores, labels = torch.randn(1, 160, 2, 2), torch.full((1, 2, 2), 156, dtype=torch.uint8)
    for loss in LOSSES.values():
        assert float(loss(scores, labels)) == float(loss(scores, labels.long())) > 0


# ------------------------------------------------------------------------------------------------------- errors


def test_errors() -> None:
    scores, labels = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    for loss in LOSSES.values():
        with pytest.raises(InputError, match=r"label 3 is neither one of 3 classes \(0 to 2\)"):
            loss(scores, labels + 3)
        with pytest.raises(ValueError, match="align brings them together"):
            loss(scores, labels[:, :2])
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (pixel_cross_entropy, {"weight": torch.ones(1, 2, 2)}, "shape of the labels"),
        (pixel_cross_entropy, {"divide": "sum"}, "got 'sum'"),
        (pixel_cross_entropy, {"class_weights": torch.ones(4)}, r"class_weights must be \(3,\)"),
        (pixel_cross_entropy, {"smoothing": -0.1}, "smoothing"),
        (ohem, {"threshold": 0.0}, "threshold"),
        (ohem, {"min_kept": 1.5}, "min_kept"),
        (ohem, {"min_kept": -1}, "min_kept"),
        (focal, {"gamma": -1.0}, "gamma"),
        (max_pooling_loss, {"p": 0.9}, "p must be at least 1"),
        (max_pooling_loss, {"support": 0.0}, "support"),
    ]
    for loss, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            loss(scores, labels, **settings)


def test_errors_class_weights() -> None:
    for counts in ([0, 0], [-1, 2], [[1, 2]], []):
        with pytest.raises(ValueError, match="counts must be"):
            class_balanced_weights(torch.tensor(counts))
    with pytest.raises(ValueError, match="rule must be"):
        class_balanced_weights([1, 2], "inverse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta"):
        class_balanced_weights([1, 2], "effective", beta=1.0)


def test_errors_align() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        align(torch.zeros(2, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="got 'output'"):
        align(torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.int64), "output")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- invariances


@trials(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from(sorted(LOSSES)))
def test_invariances(seed: int, name: str) -> None:
    """Other orders of images, pixels and classes; scores shifted by a constant."""
    scores, labels = (x.detach() for x in random_case(3, 4, seed=seed))
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    renamed = torch.where(labels >= 0, order.argsort()[labels.clamp(min=0)], -100)
    expected = LOSSES[name](scores, labels)
    for x, y in (
        (scores.flip(0, 2), labels.flip(0, 1)),
        (scores[:, order], renamed),
        (scores - 3.25, labels),
    ):
        torch.testing.assert_close(LOSSES[name](x, y), expected)


@trials(max_examples=10)
@given(st.integers(0, 1000), st.floats(1, 9), st.floats(0.01, 1))
def test_max_pooling_is_between(seed: int, p: float, support: float) -> None:
    """Never below the mean, never above the largest loss."""
    scores, labels = (x.detach() for x in random_case(3, 4, seed=seed))
    found = float(max_pooling_loss(scores, labels, p=p, support=support))
    losses = pixel_losses(scores, labels)[labels != -100]
    assert float(losses.mean()) - 1e-9 <= found <= float(losses.max()) + 1e-9


# ---------------------------------------------------------------------------------------------------------- ranks


def ranked(name: str, settings: dict[str, Any], sizes: list[int]) -> tuple[Tensor, Tensor]:
    scores, labels = random_case(4, 3, batch=3)
    start = sum(sizes[: dist.rank()])
    rows = slice(start, start + sizes[dist.rank()])
    if "weight" in settings:
        settings = {**settings, "weight": settings["weight"][rows]}
    scores = scores[rows].detach().requires_grad_()
    loss = LOSSES[name](scores, labels[rows], **settings)
    loss.backward()
    assert scores.grad is not None
    return loss.detach(), scores.grad


CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "settings", "sizes"),
    [
        ("cross-entropy", {"class_weights": CLASS_WEIGHTS}, [1, 2]),
        ("cross-entropy", {"weight": torch.linspace(0.1, 1, 36).view(3, 4, 3), "divide": "weights"}, [0, 3]),
        ("ohem", {"threshold": 0.6, "min_kept": 0, "class_weights": CLASS_WEIGHTS}, [2, 1]),
        ("focal", {"class_weights": CLASS_WEIGHTS}, [1, 2]),
        ("max-pooling", {"p": math.inf}, [1, 2]),
    ],
    ids=["classes", "weights", "ohem", "focal", "max-pooling"],
)
def test_ranks(pool, name: str, settings: dict[str, Any], sizes: list[int]) -> None:
    """Two ranks with unequal numbers of labelled pixels are one."""
    scores, labels = random_case(4, 3, batch=3)
    expected = LOSSES[name](scores, labels, **settings)
    (gradient,) = torch.autograd.grad(expected, scores)
    results = pool.run(ranked, name, settings, sizes)
    torch.testing.assert_close((results[0][0] + results[1][0]) / 2, expected.detach(), rtol=1e-12, atol=0)
    found = torch.cat([results[0][1], results[1][1]]) / 2
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-15)
