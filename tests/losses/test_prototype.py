"""Contrast with prototypes: the specification's case, a loop over pixels, degenerate rows, two ranks as one."""

from __future__ import annotations

import doctest
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.errors import InputError
from leanlabel.losses import prototype as module
from leanlabel.losses.prototype import (
    Similarity,
    SimilarityMeter,
    feature_spread,
    prototype_contrast,
    prototype_logits,
    unit,
)
from pool import Pool

PROTOTYPES = torch.tensor([[0.6, 0.5, 0.1], [0.1, 0.2, 0.9], [0.5, 0.1, 0.3]], dtype=torch.float64)
SOURCE = [[3, 4, 0], [0, 0, 2], [1, 1, 1], [0, 0, 0]]
TARGET = [[1, 0, 0], [0, 5, 0], [0, 3, 4], [2, 2, 1]]
LABELS = torch.tensor([0, 1, 255, 2]).view(1, 2, 2)
VALUES = {
    100.0: (1.0960372930715234, 1.0984656630417637, 2.194502956113287),
    1.0: (0.8697048369307488, 1.0988487219910301, 1.968553558921779),
    0.1: (0.37598493007558137, 2.060282541760695, 2.4362674718362762),
}
SLOPES = {
    100.0: (-1.0596338223510288e-05, 7.947253667632722e-06, 2.2177474141361672e-04),
    0.1: (1.3429194844994832e-03, -1.0071896133746108e-03, 5.250442256904497e-03),
}


def pixels(rows: list[list[int]], height: int = 2) -> Tensor:
    """Features (1, D, h, w) of pixels in reading order."""
    return torch.tensor(rows, dtype=torch.float64).t().reshape(1, len(rows[0]), height, -1)


def case(
    seed: int, batch: int = 2, width: int = 5, size: tuple[int, int] = (4, 3), classes: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Random features with a zero among them, labels with ignored ones, prototypes shorter than 1."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, width, *size, generator=generator, dtype=torch.float64).relu()
    features[0, :, 0, 0] = 0
    labels = torch.randint(-1, classes, (batch, *size), generator=generator)
    labels[0, 0, 0] = 1
    prototypes = 0.8 * unit(torch.randn(classes, width, generator=generator, dtype=torch.float64))
    return features, labels.where(labels >= 0, -100), prototypes


def naive(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    tau: float = 100.0,
    balance: str = "pixel",
    known: list[bool] | None = None,
    mask_unknown: bool = False,
    ignore: int = -100,
) -> Tensor:
    """One pixel after another, as the formula stands; gradients by autograd."""
    classes = len(prototypes)
    known = known or [True] * classes
    losses: dict[int, list[Tensor]] = {}
    for b, i, j in (labels != ignore).nonzero().tolist():
        label = int(labels[b, i, j])
        if not known[label]:
            continue
        feature = features[b, :, i, j]
        length = feature.square().sum().sqrt()
        zero = bool(feature.detach().norm() < 1e-6)
        scores = [feature.sum() * 0 if zero else feature @ row / length / tau for row in prototypes]
        among = [score.exp() for k, score in enumerate(scores) if known[k] or not mask_unknown]
        losses.setdefault(label, []).append(-(scores[label].exp() / torch.stack(among).sum()).log())
    if balance == "class":
        return torch.stack([torch.stack(each).mean() for each in losses.values()]).mean()
    return torch.stack([one for each in losses.values() for one in each]).mean()


def slope(loss: Tensor, features: Tensor) -> Tensor:
    return torch.autograd.grad(loss, features)[0]


@pytest.mark.parametrize("tau", VALUES)
def test_values(tau: float) -> None:
    """Specification, case 1: the losses of source and target, and the gradients of the first and the zero pixel."""
    source, target, both = VALUES[tau]
    features = pixels(SOURCE).requires_grad_()
    one = prototype_contrast(features, LABELS, PROTOTYPES, tau=tau, ignore=255)
    other = prototype_contrast(pixels(TARGET), LABELS, PROTOTYPES, tau=tau, ignore=255)
    found = torch.stack([one, other, one + other]).detach()
    expected = torch.tensor([source, target, both], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradient = slope(one, features)[0].flatten(1)
    assert gradient[:, 3].tolist() == [0, 0, 0]
    assert gradient[:, 2].tolist() == [0, 0, 0]  # ignored
    assert abs(float(gradient[:, 0] @ features.detach()[0].flatten(1)[:, 0])) < 1e-16
    if tau in SLOPES:
        first = torch.tensor(SLOPES[tau], dtype=torch.float64)
        torch.testing.assert_close(gradient[:, 0], first, rtol=1e-10, atol=0)


def test_values_logits() -> None:
    """Cross-entropy of these logits is the loss; the zero pixel has zeros."""
    logits = prototype_logits(pixels(SOURCE), PROTOTYPES, 0.1)
    assert logits[0, :, 1, 1].tolist() == [0, 0, 0]
    torch.testing.assert_close(
        logits[0, :, 0, 0], torch.tensor([7.6, 2.2, 3.8], dtype=torch.float64), rtol=1e-12, atol=0
    )
    loss = torch.nn.functional.cross_entropy(logits, LABELS, ignore_index=255)
    assert float(loss) == pytest.approx(VALUES[0.1][0], rel=1e-12)


def test_values_flat() -> None:
    """At tau = 100: log K less a hundredth of the gap of own and mean similarity, to first order."""
    features, labels, prototypes = case(0)
    meter = SimilarityMeter(4)
    meter.add(features, labels, prototypes)
    found = meter.result()
    expected = math.log(4) - (found.own - (found.own + 3 * found.other) / 4) / 100
    assert float(prototype_contrast(features, labels, prototypes)) == pytest.approx(expected, abs=1e-4)
    assert expected != pytest.approx(math.log(4), abs=1e-4)


@pytest.mark.parametrize("balance", ["pixel", "class"])
@pytest.mark.parametrize("tau", [0.1, 100.0])
@pytest.mark.parametrize("known", [None, [True, False, True, True]])
@pytest.mark.parametrize("mask", [False, True])
def test_reference(balance: Any, tau: float, known: list[bool] | None, mask: bool) -> None:
    """A loop over pixels gives the same value and the same gradient."""
    for seed in range(3):
        features, labels, prototypes = case(seed)
        features.requires_grad_()
        found = prototype_contrast(
            features,
            labels,
            prototypes,
            tau=tau,
            balance=balance,
            known=None if known is None else torch.tensor(known),
            mask_unknown=mask,
        )
        expected = naive(features, labels, prototypes, tau, balance, known, mask)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            slope(found, features), slope(expected, features), rtol=1e-10, atol=1e-15 / tau
        )


def test_reference_layout() -> None:
    """Channels last, a slice, and more positions than are squared at a time."""
    features, labels, prototypes = case(0, size=(4, 6))
    expected = prototype_contrast(features, labels, prototypes, tau=0.1)
    last = features.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(prototype_contrast(last, labels, prototypes, tau=0.1), expected)
    halves = [
        prototype_contrast(features[..., part], labels[..., part], prototypes, tau=0.1)
        * (labels[..., part] >= 0).sum()
        for part in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(sum(halves) / (labels >= 0).sum(), expected)
    wide = torch.randn(1, 3, 300, 900)
    torch.testing.assert_close(module.inverse_lengths(wide.flatten(2)), 1 / wide.flatten(2).norm(dim=1))


def test_reference_unit() -> None:
    features, _, _ = case(1)
    found = unit(features)
    for b, i, j in features[:, 0].isfinite().nonzero().tolist():
        feature = features[b, :, i, j]
        expected = feature if feature.norm() == 0 else feature / feature.norm()
        torch.testing.assert_close(found[b, :, i, j], expected)


@pytest.mark.parametrize("balance", ["pixel", "class"])
def test_gradient(balance: Any) -> None:
    """Right by finite differences; prototypes get none; 0 at features that are nearly 0 and infinitely steep else."""
    features, labels, prototypes = case(0, batch=1, size=(2, 3))
    features = (features + 0.1).requires_grad_()
    prototypes.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: prototype_contrast(x, labels, prototypes, tau=0.5, balance=balance), (features,)
    )
    assert torch.autograd.gradcheck(lambda x: prototype_logits(x, prototypes, 0.5), (features,))
    assert torch.autograd.gradcheck(lambda x: feature_spread(x, prototypes, 0.5), (features,))
    assert torch.autograd.gradcheck(lambda x: unit(x), (features,))
    prototype_contrast(features, labels, prototypes, balance=balance).backward()
    assert prototypes.grad is None


@pytest.mark.parametrize("length", [0.0, 1e-12, 5e-7])
def test_gradient_zero(length: float) -> None:
    """Exactly 0 for every form, where the ordinary normalisation gives up to 1e11."""
    features = torch.full((1, 3, 1, 1), length / 2, dtype=torch.float64, requires_grad=True)
    label = torch.zeros(1, 1, 1, dtype=torch.int64)
    for loss in (
        prototype_contrast(features, label, PROTOTYPES, tau=0.1),
        prototype_logits(features, PROTOTYPES, 0.1).sum(),
        feature_spread(features, PROTOTYPES, 0.1),
        unit(features).sum(),
    ):
        assert slope(loss, features).flatten().tolist() == [0, 0, 0]
    assert not unit(features).any()
    loss = prototype_contrast(features, label, PROTOTYPES, tau=0.1)
    assert float(loss.detach()) == pytest.approx(math.log(3), rel=1e-15)


@pytest.mark.parametrize("balance", ["pixel", "class"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype, balance: Any) -> None:
    """Half inputs are computed with in float32: the same as their values in float64, near log K, squares past 65504."""
    features, labels, prototypes = case(0, width=64)
    features = (300 * features).to(dtype)
    exact = features.double().requires_grad_()
    features.requires_grad_()
    found = prototype_contrast(features, labels, prototypes, balance=balance)
    expected = prototype_contrast(exact, labels, prototypes, balance=balance)
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=3e-7)
    # Scaled as mixed precision does, or half precision would not hold the gradient.
    gradient, wanted = slope(found * 2**20, features), slope(expected * 2**20, exact)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-2, atol=1e-3 * float(wanted.abs().max()))
    assert unit(features).dtype == torch.float32
    assert feature_spread(features, prototypes).dtype == torch.float32


def test_dtypes_autocast() -> None:
    """Inside of autocast nothing is rounded."""
    features, labels, prototypes = case(0)
    features, prototypes = features.float().requires_grad_(), prototypes.float()
    plain = prototype_contrast(features, labels, prototypes, tau=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = prototype_contrast(features, labels, prototypes, tau=0.1)
        gradient = slope(found, features)
    assert torch.equal(plain, found)
    assert torch.equal(slope(plain, features), gradient)


@pytest.mark.parametrize("balance", ["pixel", "class"])
def test_degenerate(balance: Any) -> None:
    """Nothing labelled, no image, no prototype yet, one class, a tiny tau."""
    for batch in (0, 2):
        features = torch.randn(batch, 3, 2, 2, requires_grad=True)
        labels = torch.full((batch, 2, 2), 255, dtype=torch.uint8)
        loss = prototype_contrast(features, labels, torch.randn(4, 3), balance=balance, ignore=255)
        assert float(loss.detach()) == 0
        assert not slope(loss, features).any()
    features, labels, prototypes = case(0)
    features.requires_grad_()
    loss = prototype_contrast(features, labels, torch.zeros_like(prototypes), balance=balance)
    assert float(loss.detach()) == pytest.approx(math.log(4), rel=1e-15)
    assert not slope(loss, features).any()
    loss = prototype_contrast(features, labels.clamp(max=0), prototypes[:1], balance=balance)
    assert float(loss.detach()) == 0
    assert not slope(loss, features).any()
    for known in (False, True):
        everything = torch.full((4,), known)
        loss = prototype_contrast(
            features, labels, prototypes, balance=balance, known=everything, mask_unknown=True
        )
        assert bool(loss.detach() > 0) is known
        gradient = slope(loss, features)
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any()) is known
    small = prototype_contrast(features, labels, prototypes, tau=1e-3, balance=balance)
    assert math.isfinite(small.detach())
    assert bool(slope(small, features).isfinite().all())


def test_degenerate_unknown() -> None:
    """A class that was never seen is no positive; it leaves the denominator when it is told to."""
    prototypes = PROTOTYPES * torch.tensor([[1.0], [1], [0]])
    known = torch.tensor([True, True, False])
    features = pixels(TARGET)
    labels = torch.tensor([0, 1, 2, 2]).view(1, 2, 2)
    kept = labels.where(labels < 2, -100)
    full = prototype_contrast(features, kept, prototypes, tau=0.1)
    few = prototype_contrast(features, kept, prototypes[:2], tau=0.1)
    assert torch.equal(prototype_contrast(features, labels, prototypes, tau=0.1, known=known), full)
    found = prototype_contrast(features, labels, prototypes, tau=0.1, known=known, mask_unknown=True)
    torch.testing.assert_close(found, few)
    assert full > few


def test_errors() -> None:
    features, labels, prototypes = case(0)
    with pytest.raises(ValueError, match=r"\(B, D, h, w\) and prototypes \(K, D\)"):
        prototype_logits(features[0], prototypes)
    with pytest.raises(ValueError, match=r"5 channels, prototypes are \(4, 4\)"):
        prototype_logits(features, prototypes[:, :4])
    with pytest.raises(ValueError, match="5 channels"):
        prototype_logits(features, prototypes[:0])
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="tau must be positive"):
            prototype_contrast(features, labels, prototypes, tau=tau)
    with pytest.raises(ValueError, match="balance"):
        prototype_contrast(features, labels, prototypes, balance="image")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(2, 5, 4, 3\) and labels \(2, 4, 4\) differ in size"):
        prototype_contrast(features, torch.zeros(2, 4, 4, dtype=torch.int64), prototypes)
    with pytest.raises(InputError, match="label 4 is neither one of 4 classes"):
        prototype_contrast(features, torch.full_like(labels, 4), prototypes)
    with pytest.raises(InputError, match="label 255"):
        prototype_contrast(features, torch.full_like(labels, 255).to(torch.uint8), prototypes)
    with pytest.raises(ValueError, match=r"known must be bool \(4,\), got torch.float32"):
        prototype_contrast(features, labels, prototypes, known=torch.ones(4))
    with pytest.raises(ValueError, match=r"known must be bool \(4,\)"):
        feature_spread(features, prototypes, known=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="there must be a class"):
        SimilarityMeter(0)
    with pytest.raises(ValueError, match="there must be 3 prototypes"):
        SimilarityMeter(3).add(features, labels, prototypes)


def test_memory() -> None:
    """Of the forward pass only the features themselves are kept, and nothing with channels for every class."""
    features, labels, prototypes = case(0, width=32, size=(6, 7))
    features.requires_grad_()
    sizes: list[tuple[int, int]] = []

    def note(saved: Tensor) -> Tensor:
        sizes.append((saved.data_ptr(), saved.numel()))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        prototype_contrast(features, labels, prototypes)
    large = {pointer for pointer, numbers in sizes if numbers >= features.numel()}
    assert large == {features.data_ptr()}


@settings(max_examples=10)
@given(st.integers(0, 1000), st.permutations(range(4)), st.sampled_from(["pixel", "class"]))
def test_invariance(seed: int, order: list[int], balance: Any) -> None:
    """Numbering classes in another way, turning the space and scaling features change nothing."""
    features, labels, prototypes = case(seed)
    expected = prototype_contrast(features, labels, prototypes, tau=0.2, balance=balance)
    names = torch.tensor(order)
    renamed = names[labels.clamp(min=0)].where(labels >= 0, -100)
    found = prototype_contrast(features, renamed, prototypes[names.argsort()], tau=0.2, balance=balance)
    torch.testing.assert_close(found, expected)
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    turned = torch.einsum("de,behw->bdhw", turn, features)
    found = prototype_contrast(turned, labels, prototypes @ turn.t(), tau=0.2, balance=balance)
    torch.testing.assert_close(found, expected)
    scale = 0.5 + torch.rand(2, 1, 4, 3, generator=generator, dtype=torch.float64)
    found = prototype_contrast(scale * features, labels, prototypes, tau=0.2, balance=balance)
    torch.testing.assert_close(found, expected)


def ranked(sizes: list[int], balance: Any, kind: str) -> tuple[Tensor, Tensor]:
    """Loss and gradient of this rank's images."""
    features, labels, prototypes = case(3, batch=5)
    features.requires_grad_()
    start = sum(sizes[: dist.rank()])
    rows = slice(start, start + sizes[dist.rank()])
    if kind == "contrast":
        loss = prototype_contrast(features[rows], labels[rows], prototypes, tau=0.1, balance=balance)
    else:
        loss = feature_spread(features[rows], prototypes, tau=0.1)
    return loss.detach(), slope(loss, features)


@pytest.mark.parametrize(
    ("balance", "kind"), [("pixel", "contrast"), ("class", "contrast"), ("pixel", "spread")]
)
def test_ranks(pool: Pool, balance: str, kind: str) -> None:
    """Two ranks with unequal numbers of images, or one without any, are one."""
    loss, gradient = ranked([5], balance, kind)
    for sizes in ([2, 3], [5, 0]):
        results = pool.run(ranked, sizes, balance, kind)
        torch.testing.assert_close(sum(one[0] for one in results) / 2, loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(sum(one[1] for one in results) / 2, gradient, rtol=1e-10, atol=1e-15)


def ranked_oracle() -> tuple[Tensor, float, Similarity]:
    """Specification, case 9: rank 0 holds the first target pixel, rank 1 the other three."""
    part = slice(0, 1) if dist.rank() == 0 else slice(1, 4)
    features = pixels(TARGET, height=1)[..., part]
    labels = LABELS.view(1, 1, 4)[..., part]
    with dist.alone():
        local = prototype_contrast(features, labels, PROTOTYPES, tau=0.1, ignore=255)
    meter = SimilarityMeter(3)
    meter.add(features, labels, PROTOTYPES, ignore=255)
    share = prototype_contrast(features, labels, PROTOTYPES, tau=0.1, ignore=255)
    return share, float(local), meter.result()


def test_ranks_oracle(pool: Pool) -> None:
    first, second = pool.run(ranked_oracle)
    assert first[1] == pytest.approx(0.31817542924745457, rel=1e-12)
    assert second[1] == pytest.approx(2.931336098017315, rel=1e-12)
    assert float(first[0] + second[0]) / 2 == pytest.approx(2.060282541760695, rel=1e-12)
    meter = SimilarityMeter(3)
    meter.add(pixels(TARGET), LABELS, PROTOTYPES, ignore=255)
    expected = meter.result()
    for _, _, found in (first, second):
        assert found.gap == pytest.approx(expected.gap, rel=1e-14)
        assert torch.equal(found.counts, expected.counts)
        torch.testing.assert_close(found.gap_by_class, expected.gap_by_class)


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0
