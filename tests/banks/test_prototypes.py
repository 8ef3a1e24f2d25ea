"""Prototypes of classes: the specification's cases, loops over pixels, degenerate batches, two ranks as one."""

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
from leanlabel.banks import class_means, prototypes
from leanlabel.banks.prototypes import (
    ImageMeans,
    PrototypeContrast,
    Prototypes,
    agreeing_labels,
    class_sums,
    nearest_labels,
)
from leanlabel.errors import InputError
from leanlabel.losses.prototype import prototype_contrast
from pool import Pool

START = torch.tensor([[0.6, 0.5, 0.1], [0.1, 0.2, 0.9], [0.5, 0.1, 0.3]], dtype=torch.float64)
BATCH = [[3, 4, 0], [4, 3, 0], [0, 0, 2], [0, 5, 12], [1, 2, 2]]
MASK = [0, 0, 255, 2, 2]


def pixels(rows: list[list[int]]) -> Tensor:
    """Features (1, D, 1, N)."""
    return torch.tensor(rows, dtype=torch.float64).t()[None, :, None]


def line(labels: list[int]) -> Tensor:
    return torch.tensor(labels).view(1, 1, -1)


def random_batch(
    seed: int, batch: int = 3, width: int = 5, classes: int = 4, size: tuple[int, int] = (4, 3)
) -> tuple[Tensor, Tensor]:
    """Features with a zero among them, and labels with ignored ones."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, width, *size, generator=generator, dtype=torch.float64)
    features[0, :, 1, 1] = 0
    labels = torch.randint(-1, classes, (batch, *size), generator=generator)
    return features, labels.where(labels >= 0, -100)


def rows_of(features: Tensor, labels: Tensor, k: int) -> list[Tensor]:
    """Directions of the pixels of a class, one after another."""
    found = []
    for b, i, j in (labels == k).nonzero().tolist():
        feature = features[b, :, i, j]
        found.append(feature / feature.norm() if feature.norm() > 0 else feature)
    return found


def bank(**options: Any) -> Prototypes:
    found = Prototypes(3, 3, **options).double()
    found.begin(START, torch.ones(3))
    return found


@pytest.mark.parametrize("absent", ["keep", "decay"])
def test_values_update(absent: Any) -> None:
    """Specification, case 2."""
    found = bank(absent=absent)
    found.update(pixels(BATCH), line(MASK), ignore=255)
    rest = [0.1, 0.2, 0.9] if absent == "keep" else [0.01, 0.02, 0.09]
    rows = [[0.69, 0.68, 0.01], rest, [0.2, 0.4830769230769231, 0.7453846153846155]]
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=0)
    assert found.counts.tolist() == [3, 1, 3]
    means, counts = class_sums(pixels(BATCH), line(MASK), 3, ignore=255)
    assert counts.tolist() == [2, 0, 2]
    rows = [[0.7, 0.7, 0], [0, 0, 0], [0.16666666666666666, 0.5256410256410257, 0.7948717948717949]]
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(means / counts.clamp(min=1)[:, None], expected, rtol=1e-12, atol=0)


def test_values_first() -> None:
    """A class that was never seen takes its first mean whole."""
    found = Prototypes(3, 3).double()
    found.update(pixels(BATCH), line(MASK), ignore=255)
    torch.testing.assert_close(
        found.values[0], torch.tensor([0.7, 0.7, 0], dtype=torch.float64), rtol=1e-12, atol=0
    )
    assert found.known.tolist() == [True, False, True]
    assert found.values[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("estimator", ["ema", "running_mean"])
@pytest.mark.parametrize("absent", ["keep", "decay"])
def test_reference(estimator: Any, absent: Any) -> None:
    """Several batches, some of which lack a class, by loops."""
    found = Prototypes(5, 5, estimator=estimator, absent=absent, alpha=0.3).double()
    values: list[Tensor] = [torch.zeros(5, dtype=torch.float64) for _ in range(5)]
    seen = [0] * 5
    for seed in range(4):
        features, labels = random_batch(seed)
        labels = labels.where(labels != seed, -100)
        found.update(features, labels)
        for k in range(5):
            rows = rows_of(features, labels, k)
            if not rows:
                if estimator == "ema" and absent == "decay":
                    values[k] = 0.3 * values[k]
                continue
            mean = torch.stack(rows).mean(0)
            if estimator == "running_mean":
                values[k] = (seen[k] * values[k] + torch.stack(rows).sum(0)) / (seen[k] + len(rows))
            else:
                values[k] = 0.3 * values[k] + 0.7 * mean if seen[k] else mean
            seen[k] += len(rows)
    torch.testing.assert_close(found.values, torch.stack(values), rtol=1e-12, atol=1e-16)
    assert found.counts.tolist() == seen
    assert found.known.tolist() == [True] * 4 + [False]


def test_reference_nearest() -> None:
    """The largest cosine among known classes, by loops."""
    features, _ = random_batch(8)
    generator = torch.Generator().manual_seed(8)
    values = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    values *= torch.tensor([[0.1], [1], [3], [1]])
    found = Prototypes(4, 5).double()
    found.begin(values, torch.tensor([1, 2, 3, 0]))
    nearest = found.nearest(features)
    for b, i, j in features[:, 0].isfinite().nonzero().tolist():
        feature = features[b, :, i, j]
        cosines = [float(torch.cosine_similarity(feature, row, 0)) for row in values[:3]]
        assert int(nearest[b, i, j]) == max(range(3), key=lambda k: cosines[k])
        torch.testing.assert_close(
            found.cosines(features)[b, :, i, j],
            torch.tensor([*cosines, 0.0], dtype=torch.float64),
            atol=1e-12,
            rtol=0,
        )
    assert set(nearest.flatten().tolist()) == {0, 1, 2}


def test_gradient() -> None:
    """Nothing carries gradient or is trained, and what is given is not changed."""
    features, labels = random_batch(0)
    features.requires_grad_()
    before = features.detach().clone(), labels.clone()
    found = Prototypes(4, 5).double()
    found.update(features, labels)
    assert torch.equal(features.detach(), before[0])
    assert torch.equal(labels, before[1])
    assert not found.values.requires_grad
    assert not class_sums(features, labels, 4)[0].requires_grad
    assert not found.cosines(features).requires_grad
    assert not list(found.parameters())
    # An update behind a loss does not spoil its backward pass.
    loss = prototype_contrast(features, labels, found.values, tau=0.1)
    found.update(features, labels)
    loss.backward()
    assert features.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    """Half inputs are summed in float32, also where their squares are past 65504; prototypes stay float32."""
    features, labels = random_batch(0, width=64, size=(16, 16))
    features = (300 * features).to(dtype)
    found, exact = Prototypes(4, 64), Prototypes(4, 64).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.update(features, labels)
    exact.update(features.double(), labels)
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(found.values.double(), exact.values, rtol=0, atol=1e-6)
    assert found.nearest(features).dtype == torch.int64
    masks = labels.where(labels >= 0, 255).to(torch.uint8)
    again = Prototypes(4, 64)
    again.update(features, masks, ignore=255)
    assert torch.equal(again.values, found.values)


def test_dtypes_bank() -> None:
    """float64 only where it is asked for; counts are exact either way."""
    assert Prototypes(2, 3).values.dtype == torch.float32
    assert Prototypes(2, 3).counts.dtype == torch.float64
    assert Prototypes(2, 3).double().values.dtype == torch.float64
    found = Prototypes(2, 3)
    found.begin(torch.ones(2, 3), torch.tensor([2**25 + 1, 0]))
    found.update(torch.ones(1, 3, 1, 1), line([0]))
    assert found.counts.tolist() == [2**25 + 2, 0]


@pytest.mark.parametrize("estimator", ["ema", "running_mean"])
@pytest.mark.parametrize("absent", ["keep", "decay"])
def test_degenerate(estimator: Any, absent: Any) -> None:
    """Nothing labelled, no image, features of length 0, one class."""
    found = bank(estimator=estimator, absent=absent)
    factor = 0.1 if (estimator, absent) == ("ema", "decay") else 1.0
    for times, batch in enumerate((0, 1), start=1):
        found.update(torch.ones(batch, 3, 2, 2), torch.full((batch, 2, 2), -100))
        torch.testing.assert_close(found.values, START * factor**times)
        assert found.counts.tolist() == [1, 1, 1]
    never = Prototypes(2, 3, estimator=estimator, absent=absent)
    never.update(torch.ones(1, 3, 1, 2), line([-100, -100]))
    assert not never.values.any()
    assert never.nearest(torch.ones(1, 3, 1, 2)).tolist() == [[[-100, -100]]]
    never.update(torch.zeros(1, 3, 1, 2), line([1, 1]))
    assert never.known.tolist() == [False, True]  # seen, though its direction is none
    assert never.nearest(torch.ones(1, 3, 1, 2)).tolist() == [[[1, 1]]]
    one = Prototypes(1, 3, estimator=estimator, absent=absent)
    one.update(torch.ones(1, 3, 1, 1), line([0]))
    assert one.values[0].tolist() == pytest.approx([1 / math.sqrt(3)] * 3)


def test_degenerate_start() -> None:
    """Empty collections, and a beginning in which a class has no count: its value is nothing."""
    values, images = ImageMeans(2, 3).result()
    assert not values.any()
    assert images.tolist() == [0, 0]
    means = ImageMeans(2, 3)
    means.add(torch.zeros(0, 3, 2, 2), torch.zeros(0, 2, 2, dtype=torch.int64))
    assert means.result()[1].tolist() == [0, 0]
    found = Prototypes(2, 2)
    found.begin(torch.tensor([[1.0, 2.0], [math.nan, 0.0]]), torch.tensor([1, 0]))
    assert found.values.tolist() == [[1, 2], [0, 0]]
    # A class that never agrees and is not there at all has nothing to fall back to.
    ignored = torch.full((1, 2, 2), -100)
    assert agreeing_labels(ignored, torch.zeros(1, 3, 2, 2), fallback=True).equal(ignored)


def test_errors() -> None:
    with pytest.raises(ValueError, match="a class and a channel, got 0 and 3"):
        Prototypes(0, 3)
    with pytest.raises(ValueError, match="estimator"):
        Prototypes(2, 3, estimator="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="absent"):
        Prototypes(2, 3, absent="drop")  # type: ignore[arg-type]
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            Prototypes(2, 3, alpha=alpha)
    found = bank()
    features, labels = pixels(BATCH), line([0, 0, 1, 2, 2])
    with pytest.raises(ValueError, match=r"features must be \(B, 3, h, w\), got \(1, 2, 1, 5\)"):
        found.update(features[:, :2], labels)
    with pytest.raises(ValueError, match=r"features must be \(B, 3, h, w\)"):
        found.nearest(features[0])
    with pytest.raises(ValueError, match="differ in size"):
        found.update(features, labels[..., :4])
    with pytest.raises(InputError, match="label 3 is neither one of 3 classes"):
        found.update(features, labels + 1)
    with pytest.raises(ValueError, match="floating point"):
        class_sums(features.long(), labels, 3)
    with pytest.raises(ValueError, match=r"prototypes must be \(3, 3\) and counts \(3,\)"):
        found.begin(START, torch.ones(2))
    with pytest.raises(ValueError, match="must not be negative"):
        found.begin(START, -torch.ones(3))
    with pytest.raises(ValueError, match="must be finite"):
        found.begin(START / 0, torch.ones(3))
    assert torch.equal(found.values, START)  # what was refused changed nothing
    with pytest.raises(ValueError, match="a class and a channel"):
        ImageMeans(2, 0)
    with pytest.raises(ValueError, match=r"\(B, 3, h, w\) and labels \(B, h, w\)"):
        ImageMeans(3, 3).add(features, labels.expand(2, 1, 5))
    with pytest.raises(ValueError, match=r"logits must be \(B, K, h, w\)"):
        agreeing_labels(labels, features[0])
    with pytest.raises(InputError, match="label 5"):
        agreeing_labels(labels + 5, torch.zeros(1, 3, 1, 5))
    with pytest.raises(ValueError, match=r"size \(h, w\)"):
        nearest_labels(labels, (0, 2))
    with pytest.raises(ValueError, match="tau"):
        PrototypeContrast(2, 3, tau=0)
    with pytest.raises(ValueError, match="balance"):
        PrototypeContrast(2, 3, balance="image")  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["ema", "running_mean"])
def test_state(estimator: Any) -> None:
    """Saved in the middle, loaded into a fresh object, gone on: bit-equal."""
    whole, first, second = (PrototypeContrast(4, 5, estimator=estimator) for _ in range(3))
    for seed in range(2):
        whole.update(*random_batch(seed))
        first.update(*random_batch(seed))
    second.load_state_dict(first.state_dict())
    for seed in range(2, 4):
        whole.update(*random_batch(seed))
        second.update(*random_batch(seed))
    assert whole.state_dict().keys() == {"bank.values", "bank.counts"}
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    features, labels = random_batch(9)
    assert torch.equal(whole.loss(features, labels), second.loss(features, labels))


@pytest.mark.parametrize("balance", ["pixel", "class"])
@pytest.mark.parametrize("mask", [False, True])
def test_module(balance: Any, mask: bool) -> None:
    """The stand-alone form is the bank and the loss; labels of images are thinned out."""
    features, labels = random_batch(1)
    labels = labels.where(labels != 2, -100)
    found = PrototypeContrast(4, 5, tau=0.3, balance=balance, mask_unknown=mask).double()
    large = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)[
        :, :31
    ]  # 31 rows: 8 is not what divides them
    found.update(features, large)
    alone = Prototypes(4, 5).double()
    alone.update(features, nearest_labels(large, (4, 3)))
    assert torch.equal(found.prototypes, alone.values)
    assert found.counts.tolist() == alone.counts.tolist()
    more, marks = random_batch(2)
    expected = prototype_contrast(
        more, marks, alone.values, tau=0.3, balance=balance, known=alone.known, mask_unknown=mask
    )
    assert torch.equal(found.loss(more, marks), expected)
    found.prototypes.zero_()
    assert found.bank.values.any()  # a copy was handed out


@settings(max_examples=10)
@given(st.integers(0, 1000), st.permutations(range(4)), st.permutations(range(12)))
def test_invariance(seed: int, order: list[int], places: list[int]) -> None:
    """Neither the numbers of the classes nor the order of the pixels nor their lengths matter."""
    features, labels = random_batch(seed)
    one, other = Prototypes(4, 5).double(), Prototypes(4, 5).double()
    one.update(features, labels)
    names = torch.tensor(order)
    renamed = names[labels.clamp(min=0)].where(labels >= 0, -100)
    scaled = features * (1 + labels[:, None].abs() / 7)
    other.update(scaled.flatten(2)[..., None, places], renamed.flatten(1)[:, None, places])
    torch.testing.assert_close(other.values[names], one.values)
    assert torch.equal(other.counts[names], one.counts)


def ranked(sizes: list[int], options: dict[str, Any]) -> dict[str, Tensor]:
    """Three batches of which every rank sees its images; then the loss of the last one, with its gradient."""
    start = sum(sizes[: dist.rank()])
    rows = slice(start, start + sizes[dist.rank()])
    found = PrototypeContrast(5, 5, tau=0.1, **options).double()
    means = ImageMeans(5, 5)
    features, labels = random_batch(0)
    for seed in range(3):
        features, labels = random_batch(seed, batch=5)
        labels = labels.where(labels != seed, -100)
        found.update(features[rows], labels[rows])
        means.add(features[rows], labels[rows])
    features.requires_grad_()
    loss = found.loss(features[rows], labels[rows])
    logits = torch.randn(5, 4, 4, 3, generator=torch.Generator().manual_seed(1))
    logits[:, 1] = -9
    agreed = agreeing_labels(labels[rows], logits[rows], fallback=True)
    return {
        "values": found.bank.values,
        "counts": found.bank.counts,
        "loss": loss.detach(),
        "slope": torch.autograd.grad(loss, features)[0],
        "images": means.result()[1],
        "means": means.result()[0],
        "agreed": agreed,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"absent": "decay", "balance": "class", "mask_unknown": True},
        {"estimator": "running_mean", "balance": "class"},
    ],
    ids=["ema", "decay", "running mean"],
)
def test_ranks(pool: Pool, options: dict[str, Any]) -> None:
    """Two ranks, or one of two that sees nothing, have bit-identical banks, equal to one process's."""
    expected = ranked([5], options)
    for sizes in ([2, 3], [5, 0]):
        first, second = pool.run(ranked, sizes, options)
        for name in ("values", "counts", "means", "images"):
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], expected[name], rtol=1e-12, atol=1e-15)
        for name in ("loss", "slope"):
            mean = (first[name] + second[name]) / 2
            torch.testing.assert_close(mean, expected[name], rtol=1e-10, atol=1e-15)
        assert torch.equal(torch.cat([first["agreed"], second["agreed"]]), expected["agreed"])
    assert (expected["agreed"] == 1).any()  # by falling back


def ranked_oracle() -> Tensor:
    """Specification, case 9: rank 0 holds two pixels, rank 1 one."""
    found = Prototypes(1, 3).double()
    rows = [[3, 4, 0], [4, 3, 0]] if dist.rank() == 0 else [[1, 2, 2]]
    found.update(pixels(rows), line([0] * len(rows)))
    return found.values[0]


def test_ranks_oracle(pool: Pool) -> None:
    first, second = pool.run(ranked_oracle)
    assert torch.equal(first, second)
    expected = [0.5777777777777777, 0.6888888888888888, 0.2222222222222222]
    assert first.tolist() == pytest.approx(expected, rel=1e-12)


def test_doctests() -> None:
    for module in (class_means, prototypes):
        found = doctest.testmod(module)
        assert found.attempted > 0
        assert found.failed == 0
