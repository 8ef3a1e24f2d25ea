"""Rare classes, colours of another image, parts that are large enough: oracles C3 and C4, loops, degenerate input."""

from __future__ import annotations

import doctest
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel.augment import tail as module
from leanlabel.augment.tail import moments, tail_classes, without_small

SHARES = (0.40, 0.25, 0.20, 0.09, 0.03, 0.02, 0.007, 0.003)


def chosen(pixels: Tensor | tuple[float, ...], share: float = 0.04) -> list[int]:
    return tail_classes(torch.as_tensor(pixels, dtype=torch.float64), share).nonzero()[:, 0].tolist()


def naive_parts(region: Tensor, least: int) -> Tensor:
    """Flood each part of each sample from its first pixel."""
    result = torch.zeros_like(region)
    height, width = region.shape[1:]
    for b, sample in enumerate(region.tolist()):
        seen: set[tuple[int, int]] = set()
        for i in range(height):
            for j in range(width):
                part, front = [], [(i, j)]
                while front:
                    y, x = front.pop()
                    inside = 0 <= y < height and 0 <= x < width
                    if not inside or not sample[y][x] or (y, x) in seen:
                        continue
                    seen.add((y, x))
                    part.append((y, x))
                    front += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
                if len(part) >= least:
                    for y, x in part:
                        result[b, y, x] = True
    return result


def test_values() -> None:
    """Oracle C3, of shares and of the pixels behind them."""
    for share, expected in ((0.01, [6, 7]), (0.04, [5, 6, 7]), (0.06, [4, 5, 6, 7])):
        assert chosen(SHARES, share) == expected
        pixels = torch.tensor([round(1000 * one) for one in SHARES])
        assert tail_classes(pixels, share).nonzero()[:, 0].tolist() == expected
    assert chosen(SHARES) == [5, 6, 7], "0.04 is the default"
    assert chosen((0.1, 0.2, 0.7), 0.3) == [0, 1], "0.1 + 0.2 is above 0.3 by rounding alone"


def test_values_moments() -> None:
    """Oracle C4; the variance may be that of a population or of a sample."""
    source = torch.tensor([0.0, 1, 2, 5], dtype=torch.float64).view(1, 1, 2, 2)
    target = torch.tensor([10.0, 10, 14, 14], dtype=torch.float64).view(1, 1, 2, 2)
    expected = [9.861910064700606, 10.930955032350303, 12.0, 15.207134902949093]
    assert moments(source, target).flatten().tolist() == pytest.approx(expected, rel=1e-10)
    x, z = source.flatten().tolist(), target.flatten().tolist()
    unbiased = [
        (one - statistics.mean(x)) / statistics.stdev(x) * statistics.stdev(z) + statistics.mean(z)
        for one in x
    ]
    assert unbiased == pytest.approx(expected, rel=1e-10)


def test_values_parts() -> None:
    """Corners do not connect, nor do samples."""
    region = torch.tensor([[[1, 0, 1, 1], [0, 1, 0, 1]], [[1, 1, 0, 0], [0, 0, 0, 1]]]).bool()
    assert without_small(region, 2).int().tolist() == [
        [[0, 0, 1, 1], [0, 0, 0, 1]],
        [[1, 1, 0, 0], [0, 0, 0, 0]],
    ]
    assert without_small(region, 3).int().tolist() == [[[0, 0, 1, 1], [0, 0, 0, 1]], [[0] * 4, [0] * 4]]
    assert not bool(without_small(region, 4).any())
    stacked = torch.ones(3, 2, 2, dtype=torch.bool)
    assert not bool(without_small(stacked, 5).any()), "samples do not touch"


def test_reference() -> None:
    """Classes one after the other, from the rarest."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        pixels = (torch.rand(9, generator=generator) ** 6 * 1000).long()
        share = float(torch.rand((), generator=generator)) * 0.5
        found, total = [], 0
        for number, k in sorted((number, k) for k, number in enumerate(pixels.tolist())):
            if (total + number) / int(pixels.sum()) > share + 1e-12:
                break
            total += number
            found += [k] if number else []
        assert chosen(pixels, share) == sorted(found)


def test_reference_moments() -> None:
    """Image by image and channel by channel, from images of another size."""
    torch.manual_seed(0)
    source, target = (
        torch.randn(2, 3, 4, 5, dtype=torch.float64),
        torch.randn(2, 3, 7, 2, dtype=torch.float64) * 3,
    )
    found = moments(source, target)
    for b in range(2):
        for c in range(3):
            x, z = source[b, c].flatten().tolist(), target[b, c].flatten().tolist()
            scale = statistics.pstdev(z) / statistics.pstdev(x)
            expected = [(one - statistics.mean(x)) * scale + statistics.mean(z) for one in x]
            assert found[b, c].flatten().tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("least", [0, 1, 2, 3, 6, 200])
def test_reference_parts(least: int) -> None:
    for seed in range(3):
        region = torch.rand(3, 9, 13, generator=torch.Generator().manual_seed(seed)) < 0.45
        assert torch.equal(without_small(region, least), naive_parts(region, least))


def test_gradient() -> None:
    """Right by finite differences, through both; finite where a channel has one colour."""
    torch.manual_seed(0)
    source, target = (
        one.requires_grad_() for one in torch.randn(2, 1, 2, 2, 3, dtype=torch.float64).unbind(0)
    )
    assert torch.autograd.gradcheck(moments, (source, target))
    flat = torch.ones(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    moments(flat, flat).square().sum().backward()
    assert flat.grad is not None
    assert bool(flat.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    """The type of the images; sums and squares that half precision does not hold."""
    source = torch.tensor([0.0, 600.0] * 2048, dtype=dtype).view(1, 1, 64, 64)
    found = moments(source, torch.tensor([10.0, 14.0]).view(1, 1, 1, 2))
    assert found.dtype == dtype
    assert found.unique().tolist() == [10, 14]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_degenerate_moments(dtype: torch.dtype) -> None:
    """A channel of one colour, on either side or both; one pixel; no image."""
    flat = torch.full((1, 3, 31, 37), 0.1, dtype=dtype)
    target = torch.randn(1, 3, 31, 37, dtype=torch.float64).mul(50).to(dtype)
    mean = target.to(torch.promote_types(dtype, torch.float32)).mean((2, 3), keepdim=True)
    assert moments(flat, target).allclose(mean.to(dtype).expand_as(flat), rtol=1e-3, atol=1e-5)
    for colour in (0.1, -2.3, 1 / 3, 255.7):
        one = moments(torch.full_like(flat, colour), target)
        assert bool((one == one[:, :, :1, :1]).all()), "one colour stays one"
    assert moments(target, flat).allclose(flat)
    assert moments(flat, flat).allclose(flat)
    assert moments(flat[..., :1, :1], target).isfinite().all()
    assert moments(flat[:0], target[:0]).shape == flat[:0].shape


def test_degenerate_tail() -> None:
    """Nothing counted, no class, balanced classes, a bound of nothing or all; classes without pixels never count."""
    assert chosen((0, 0, 0)) == []
    assert chosen(()) == []
    assert chosen((5, 5, 5)) == []
    assert chosen((1000, 0, 1), 0.0) == []
    assert chosen((1000, 0, 1)) == [2]
    assert chosen((1000, 0, 1), 1.0) == [0, 2]
    assert chosen((7,), 1.0) == [0]
    assert chosen((7,)) == []
    assert chosen((90, 3, 3, 3, 1), 0.05) == [1, 4], "of equally rare ones the first"
    assert chosen((10**12, 1)) == [1]


def test_degenerate_parts() -> None:
    """Nothing, everything, no sample; a bound below 2 leaves the region as it is."""
    nothing = torch.zeros(2, 4, 5, dtype=torch.bool)
    assert torch.equal(without_small(nothing, 3), nothing)
    assert torch.equal(without_small(~nothing, 20), ~nothing)
    assert torch.equal(without_small(~nothing, 21), nothing)
    assert without_small(nothing[:0], 3).shape == (0, 4, 5)
    region = torch.rand(1, 5, 5) < 0.5
    before = region.clone()
    for least in (-1, 0, 1, 2):
        assert torch.equal(without_small(region, least), naive_parts(region, least))
    assert torch.equal(region, before)


def test_errors() -> None:
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"share must be in \[0, 1\]"):
            tail_classes(torch.ones(3), share)
    for pixels in (torch.tensor([1, -1]), torch.tensor([1.0, math.nan]), torch.ones(2, 2), torch.tensor(3)):
        with pytest.raises(ValueError, match=r"pixels must be \(K,\), finite and not negative"):
            tail_classes(pixels)
    with pytest.raises(ValueError, match=r"images \(1, 3, 2, 2\) and like \(1, 1, 2, 2\)"):
        moments(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"bool \(B, h, w\), got torch.int64 \(1, 2, 2\)"):
        without_small(torch.zeros(1, 2, 2, dtype=torch.int64), 2)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12, unique=True), st.floats(0, 1), st.randoms())
def test_invariance_tail(pixels: list[int], share: float, random) -> None:
    """Names of classes and units of counts do not matter; a larger bound never takes a class away."""
    counts = torch.tensor(pixels)
    found = tail_classes(counts, share)
    order = list(range(len(pixels)))
    random.shuffle(order)
    assert torch.equal(tail_classes(counts[order], share), found[order])
    assert torch.equal(tail_classes(counts * 8, share), found)
    assert not bool((found & ~tail_classes(counts, min(1.0, share + 0.1))).any())
    if any(pixels):
        assert int(counts[found].sum()) <= (share + 1e-9) * int(counts.sum())


@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_invariance_moments(seed: int, scale: float, shift: float) -> None:
    """Gain and offset of the images do not matter; the result has the moments of the others."""
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    found = moments(source, target)
    torch.testing.assert_close(moments(source * scale + shift, target), found)
    for ours, theirs in zip(torch.std_mean(found, (2, 3)), torch.std_mean(target, (2, 3)), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(moments(target, target), target)


@given(st.integers(0, 1000), st.integers(0, 12))
def test_invariance_parts(seed: int, least: int) -> None:
    """Twice is once; a mirror image has the mirrored parts; no pixel is added."""
    region = torch.rand(2, 7, 6, generator=torch.Generator().manual_seed(seed)) < 0.5
    found = without_small(region, least)
    assert torch.equal(without_small(found, least), found)
    assert torch.equal(without_small(region.flip(2), least), found.flip(2))
    assert torch.equal(without_small(region.mT, least), found.mT)
    assert not bool((found & ~region).any())


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0
