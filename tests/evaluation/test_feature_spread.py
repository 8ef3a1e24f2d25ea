"""Scatter of features within and between classes."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.evaluation import feature_spread
from leanlabel.evaluation.feature_spread import FeatureSpread
from pool import Pool


def sample(seed: int = 0, classes: int = 3, width: int = 4) -> tuple[Tensor, Tensor]:
    """Features (5, D, 6, 7) in float64 around centres of classes, and labels with some ignored."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (5, 6, 7), generator=g)
    centres = 3 * torch.randn(classes, width, generator=g, dtype=torch.float64)
    noise = torch.randn(5, 6, 7, width, generator=g, dtype=torch.float64)
    features = (centres[labels] + noise).movedim(-1, 1)
    return features, labels.masked_fill(torch.rand(labels.shape, generator=g) < 0.2, 255)


def naive(features: Tensor, labels: Tensor, classes: int) -> tuple[list[float], float, float]:
    """Means of squared distances, one by one."""
    rows: list[list[Tensor]] = [[] for _ in range(classes)]
    for b in range(len(features)):
        for y in range(features.shape[2]):
            for x in range(features.shape[3]):
                if int(labels[b, y, x]) != 255:
                    rows[int(labels[b, y, x])].append(features[b, :, y, x])
    means = [torch.stack(own).mean(0) if own else None for own in rows]
    intra = [
        sum(float((row - mean).square().sum()) for row in own) / len(own)
        for own, mean in zip(rows, means, strict=True)
        if mean is not None
    ]
    there = [mean for mean in means if mean is not None]
    pairs = [float((a - b).square().sum()) for i, a in enumerate(there) for b in there[:i]]
    return intra, sum(intra) / len(intra), sum(pairs) / len(pairs)


def test_values():
    """Class 0 at (0, 0) and (2, 0), class 1 at (1, 3) twice: spreads 1 and 0, means 3 apart."""
    features = torch.tensor([[[[0.0, 2, 1, 1, 99]], [[0.0, 0, 3, 3, 99]]]])
    spread = FeatureSpread(3, 2)
    spread.add(features, torch.tensor([[[0, 0, 1, 1, 255]]], dtype=torch.uint8))
    found = spread.scores()
    assert found.as_dict() == {"intra": 0.5, "inter": 9.0, "ratio": 0.5 / 9}
    assert found.intra_of[:2].tolist() == [1.0, 0.0]
    assert math.isnan(found.intra_of[2])
    assert found.counts.tolist() == [2, 2, 0]
    assert found.means[:2].tolist() == [[1, 0], [1, 3]]


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("block", [4096, 10])
def test_reference(monkeypatch: pytest.MonkeyPatch, normalise: bool, block: int):
    monkeypatch.setattr(feature_spread, "BLOCK", block)
    features, labels = sample(classes=4)
    labels[labels == 2] = 3
    spread = FeatureSpread(4, 4, normalise=normalise)
    spread.add(features[:2], labels[:2])
    spread.add(features[2:], labels[2:])
    own, intra, inter = naive(
        features / features.norm(dim=1, keepdim=True) if normalise else features, labels, 4
    )
    found = spread.scores()
    assert found.intra_of[~found.intra_of.isnan()].tolist() == pytest.approx(own, rel=1e-10)
    assert found.intra == pytest.approx(intra, rel=1e-10)
    assert found.inter == pytest.approx(inter, rel=1e-10)
    assert found.ratio == pytest.approx(intra / inter, rel=1e-10)


def test_reference_offset():
    """A common offset of a million leaves four digits."""
    features, labels = sample()
    spread, moved = FeatureSpread(3, 4), FeatureSpread(3, 4)
    spread.add(features, labels)
    moved.add(features + 1e6, labels)
    assert moved.scores().intra == pytest.approx(spread.scores().intra, rel=1e-3)
    assert moved.scores().inter == pytest.approx(spread.scores().inter, rel=1e-8)


def test_dtypes():
    features, labels = sample()
    exact = FeatureSpread(3, 4)
    exact.add(features, labels)
    for kind, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 5e-3)):
        spread = FeatureSpread(3, 4)
        spread.add(features.to(kind), labels.masked_fill(labels == 255, -100), ignore=-100)
        assert spread.scores().intra == pytest.approx(exact.scores().intra, rel=tolerance)


def test_degenerate():
    spread = FeatureSpread(3, 2)
    features = torch.ones(1, 2, 2, 2)
    spread.add(torch.full_like(features, math.nan), torch.full((1, 2, 2), 255))
    spread.add(features[:0], torch.zeros(0, 2, 2, dtype=torch.int64))
    assert all(math.isnan(value) for value in spread.scores().as_dict().values())
    spread.add(features, torch.zeros(1, 2, 2, dtype=torch.int64))
    one = spread.scores()
    assert one.intra == 0.0
    assert math.isnan(one.inter)
    assert math.isnan(one.ratio)
    spread.add(features, torch.ones(1, 2, 2, dtype=torch.int64))
    same = spread.scores()
    assert (same.intra, same.inter) == (0.0, 0.0)
    assert math.isnan(same.ratio)
    zero = FeatureSpread(1, 2, normalise=True)
    zero.add(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64))
    assert zero.scores().intra == 0.0


def test_errors():
    spread = FeatureSpread(2, 3)
    features, labels = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(B, 3, h, w\)"):
        spread.add(torch.zeros(1, 2, 2, 2), labels)
    with pytest.raises(ValueError, match="thin them out"):
        spread.add(features, torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"class ids 2\.\.2 outside \[0, 2\)"):
        spread.add(features, labels + 2)
    with pytest.raises(ValueError, match="1 labelled features are not finite"):
        spread.add(features.index_fill(3, torch.tensor([0]), math.inf)[:, :, :1], labels[:, :1])
    with pytest.raises(ValueError, match="at least 1"):
        FeatureSpread(0, 3)


def test_state():
    features, labels = sample()
    spread, fresh = FeatureSpread(3, 4), FeatureSpread(3, 4)
    spread.add(features[:2], labels[:2])
    fresh.load_state_dict(spread.state_dict())
    for one in (spread, fresh):
        one.add(features[2:], labels[2:])
    for name, value in spread.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    spread.reset()
    assert int(spread.counts.sum()) == 0


def counted() -> list[float]:
    features, labels = sample()
    part = slice(None) if dist.world() == 1 else (slice(0, 1), slice(1, 5))[dist.rank()]
    spread = FeatureSpread(3, 4)
    spread.add(features[part], labels[part])
    return [*spread.scores().as_dict().values(), *spread.scores().intra_of.tolist()]


def test_ranks(pool: Pool):
    expected = counted()
    for found in pool.run(counted):
        assert found == pytest.approx(expected, rel=1e-12)


@given(seed=st.integers(0, 1000), order=st.permutations(range(3)), scale=st.floats(0.1, 10))
def test_turned(seed: int, order: list[int], scale: float):
    """Turning and scaling the feature space and renaming classes leave the ratio."""
    features, labels = sample(seed)
    g = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64))
    names = torch.tensor([*order, *([255] * 253)])
    first, second = FeatureSpread(3, 4), FeatureSpread(3, 4)
    first.add(features, labels)
    second.add(scale * torch.einsum("ij,bjyx->biyx", turn, features), names[labels])
    a, b = first.scores(), second.scores()
    assert b.ratio == pytest.approx(a.ratio, rel=1e-9)
    assert b.intra == pytest.approx(a.intra * scale**2, rel=1e-9)
    assert b.intra_of[order].tolist() == pytest.approx((a.intra_of * scale**2).tolist(), rel=1e-9)


def test_doctests():
    result = doctest.testmod(feature_spread)
    assert result.attempted
    assert not result.failed
