"""How pixels lie to prototypes, and how evenly: similarities by hand and by loops, the spread of mean features."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from leanlabel.losses.prototype import (
    SimilarityMeter,
    feature_spread,
    unit,
)

PROTOTYPES = torch.tensor([[0.6, 0.5, 0.1], [0.1, 0.2, 0.9], [0.5, 0.1, 0.3]], dtype=torch.float64)
TARGET = [[1, 0, 0], [0, 5, 0], [0, 3, 4], [2, 2, 1]]


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


def slope(loss: Tensor, features: Tensor) -> Tensor:
    return torch.autograd.grad(loss, features)[0]


def test_values_spread() -> None:
    """A mean that is as near to all prototypes: 0; on one of them: 1; between: by the entropy."""
    even = torch.eye(3, dtype=torch.float64).view(1, 3, 1, 3)
    assert float(feature_spread(even, torch.eye(3), tau=0.1)) == pytest.approx(0, abs=1e-15)
    one = even[..., :1]
    assert float(feature_spread(one, torch.eye(3), tau=0.01)) == pytest.approx(1, abs=1e-12)
    share = torch.tensor([1.0, 0, 0], dtype=torch.float64).softmax(0)
    entropy = -float((share * share.log()).sum())
    assert float(feature_spread(7 * one, torch.eye(3), tau=1.0)) == pytest.approx(1 - entropy / math.log(3))
    # Around 1e-10, where float32 would only show rounding.
    tiny = float(feature_spread(one.float(), torch.eye(3), tau=1e4))
    assert tiny == pytest.approx(1e-8 * (1 / 3 - 1 / 9) / 2 / math.log(3), rel=1e-3)


def test_values_similarity() -> None:
    """By hand: two pixels of class 0, one of 1, none of 2."""
    features = pixels([[3, 4, 0], [0, 0, 2], [5, 0, 0], [1, 1, 1]])
    labels = torch.tensor([0, 1, 0, -100]).view(1, 2, 2)
    meter = SimilarityMeter(3)
    meter.add(features, labels, PROTOTYPES)
    found = meter.result()
    own, other = [0.76, 0.9, 0.6], [(0.22 + 0.38) / 2, (0.1 + 0.3) / 2, (0.1 + 0.5) / 2]
    assert found.own == pytest.approx(sum(own) / 3)
    assert found.other == pytest.approx(sum(other) / 3)
    assert found.gap == pytest.approx((sum(own) - sum(other)) / 3)
    assert found.counts.tolist() == [2, 1, 0]
    assert found.own_by_class.tolist() == pytest.approx([0.68, 0.9, math.nan], nan_ok=True)
    assert found.other_by_class.tolist() == pytest.approx([0.3, 0.2, math.nan], nan_ok=True)
    assert found.gap_by_class.tolist() == pytest.approx([0.38, 0.7, math.nan], nan_ok=True)
    assert found.class_gap == pytest.approx(0.54)


def test_reference_spread() -> None:
    """By means of normalised features."""
    features, _, prototypes = case(2)
    known = torch.tensor([True, True, False, True])
    mean = unit(features).mean((0, 2, 3))
    for kept, few in ((None, prototypes), (known, prototypes[known])):
        p = (few @ mean / 0.2).softmax(0)
        expected = 1 + (p * p.log()).sum() / math.log(len(few))
        torch.testing.assert_close(feature_spread(features, prototypes, 0.2, kept), expected)


@pytest.mark.parametrize("known", [None, [True, False, True, True]])
def test_reference_similarity(known: list[bool] | None) -> None:
    """A loop over the pixels of two batches."""
    meter = SimilarityMeter(4)
    own: dict[int, list[float]] = {k: [] for k in range(4)}
    other: dict[int, list[float]] = {k: [] for k in range(4)}
    for seed in range(2):
        features, labels, prototypes = case(seed)
        meter.add(features, labels, prototypes, None if known is None else torch.tensor(known))
        z = unit(features)
        for b, i, j in (labels >= 0).nonzero().tolist():
            label = int(labels[b, i, j])
            if known is None or known[label]:
                near = (prototypes @ z[b, :, i, j]).tolist()
                rest = [s for k, s in enumerate(near) if k != label and (known is None or known[k])]
                own[label].append(near[label])
                other[label].append(sum(rest) / len(rest))
    found = meter.result()
    assert found.counts.tolist() == [len(own[k]) for k in range(4)]
    flat_own, flat_other = ([s for each in by.values() for s in each] for by in (own, other))
    assert found.own == pytest.approx(sum(flat_own) / len(flat_own))
    assert found.other == pytest.approx(sum(flat_other) / len(flat_other))
    for k in range(4):
        if own[k]:
            assert float(found.own_by_class[k]) == pytest.approx(sum(own[k]) / len(own[k]))
            assert float(found.other_by_class[k]) == pytest.approx(sum(other[k]) / len(other[k]))
        else:
            assert math.isnan(found.own_by_class[k])


def test_degenerate_similarity() -> None:
    """Nothing added; one known class, which has no others, and others later."""
    empty = SimilarityMeter(3).result()
    assert math.isnan(empty.own)
    assert math.isnan(empty.class_gap)
    assert empty.counts.tolist() == [0, 0, 0]
    meter = SimilarityMeter(3)
    features, labels = pixels(TARGET), torch.zeros(1, 2, 2, dtype=torch.int64)
    meter.add(features, labels, PROTOTYPES, torch.tensor([True, False, False]))
    assert math.isnan(meter.result().other)
    assert math.isfinite(meter.result().own)
    meter.add(features, labels, PROTOTYPES)
    other = SimilarityMeter(3)
    other.add(features, labels, PROTOTYPES)
    assert meter.result().gap == pytest.approx(other.result().gap)
    assert meter.result().counts.tolist() == [8, 0, 0]


def test_degenerate_spread() -> None:
    """One prototype, none known, no image."""
    features, _, prototypes = case(0)
    features.requires_grad_()
    for loss in (
        feature_spread(features, prototypes[:1]),
        feature_spread(features, prototypes, known=torch.zeros(4, dtype=torch.bool)),
        feature_spread(features[:0], prototypes),
    ):
        assert float(loss.detach()) == pytest.approx(0, abs=1e-15)
        assert not slope(loss, features).any()
