"""Windows, antialiased resizing and blur: literals, naive loops, the same filter of torch, degenerate sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from leanlabel.augment import resample
from leanlabel.augment.resample import (
    WINDOW_DRAWS,
    crop_resize,
    crop_windows,
    gaussian_blur,
    resized,
    triangle_weights,
)
from leanlabel.rng import draw

RATIO = (3 / 4, 4 / 3)


def one_window(H: int, W: int, scale: tuple[float, float], ratio: tuple[float, float], numbers: list[float]):
    """The usual loop over ten tries."""
    for k in range(10):
        area = H * W * (scale[0] + (scale[1] - scale[0]) * numbers[k])
        r = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * numbers[10 + k])
        w, h = round(math.sqrt(area * r)), round(math.sqrt(area / r))
        if 0 < w <= W and 0 < h <= H:
            return [int(numbers[20] * (H - h + 1)), int(numbers[21] * (W - w + 1)), h, w]
    own = W / H
    if own < ratio[0]:
        w, h = W, round(W / ratio[0])
    elif own > ratio[1]:
        w, h = round(H * ratio[1]), H
    else:
        w, h = W, H
    return [(H - h) // 2, (W - w) // 2, h, w]


def naive_blur(image: Tensor, sigma: float, reach: int) -> Tensor:
    _, h, w = image.shape
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)]
    total = sum(weights) ** 2
    result = torch.zeros_like(image)
    for y in range(h):
        for x in range(w):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    value = image[:, min(max(y + dy, 0), h - 1), min(max(x + dx, 0), w - 1)]
                    result[:, y, x] += weights[dy + reach] * weights[dx + reach] / total * value
    return result


def windows_of(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows)


def test_values_window() -> None:
    # Half of the area of 8 x 8, ratio 2: 32 = 8 * 4; places at 0.99 of the free rows, none free across.
    numbers = torch.zeros(1, WINDOW_DRAWS)
    numbers[:, 20:] = 0.99
    assert crop_windows(torch.tensor([8]), torch.tensor([8]), (0.5, 0.5), (2.0, 2.0), numbers).tolist() == [
        [4, 0, 4, 8]
    ]


def test_values_weights() -> None:
    # Two pixels per output: triangle of half-width 2 around 1 and 3, pixel centres 0.5 .. 3.5.
    shrink = triangle_weights(torch.tensor([0]), torch.tensor([4]), 4, 2)
    torch.testing.assert_close(shrink, torch.tensor([[[3.0, 3, 1, 0], [0, 1, 3, 3]]]) / 7)
    # Half a pixel per output: plain linear interpolation, ends held.
    grow = triangle_weights(torch.tensor([0]), torch.tensor([2]), 2, 4)
    torch.testing.assert_close(grow, torch.tensor([[[4.0, 0], [3, 1], [1, 3], [0, 4]]]) / 4)
    back = triangle_weights(
        torch.tensor([0]), torch.tensor([2]), 2, 4, mirrored=torch.tensor([True]), total=2
    )
    torch.testing.assert_close(back, grow.flip(1) * 2)


def test_values_blur() -> None:
    # exp(-1/2) = 0.60653066, exp(-2) = 0.13533528, exp(-9/2) = 0.01110900; sum 1 + 2 * 0.75297494 = 2.50594988
    spike = torch.zeros(1, 1, 1, 7, dtype=torch.float64)
    spike[..., 3] = 1
    half = [0.0044330480, 0.0540055826, 0.2420362294, 0.3990502797]
    expected = torch.tensor([*half, *half[2::-1]], dtype=torch.float64)
    blurred = gaussian_blur(spike, torch.tensor([1.0]).double())[0, 0, 0]
    torch.testing.assert_close(blurred, expected, rtol=0, atol=6e-10)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6))
def test_reference_windows(height: int, width: int, seed: int) -> None:
    numbers = draw(seed, "window", 0, torch.arange(4)).uniform(WINDOW_DRAWS)
    sides = torch.full((4,), height), torch.full((4,), width)
    for scale, ratio in (((0.2, 1.0), RATIO), ((0.01, 0.3), (0.3, 3.0)), ((0.9, 1.0), (2.0, 4.0))):
        windows = crop_windows(*sides, scale, ratio, numbers)
        for row, number in zip(windows.tolist(), numbers.double().tolist(), strict=True):
            expected = one_window(height, width, scale, ratio, number)
            assert [max(1, side) for side in expected[2:]] == row[2:]
            if min(expected[2:]) > 0:
                assert expected == row
            top, left, h, w = row
            assert 0 <= top <= top + h <= height
            assert 0 <= left <= left + w <= width


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (20, 50, 7), (9, 11, 40), (1, 1, 5), (64, 3, 1)]
)
def test_reference_resize(
    height: int, width: int, size: int, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both paths equal torch's antialiased resize of the piece that is cut out."""
    monkeypatch.setattr(resample, "_DENSE_SIDE", 1000 if dense else 0)
    images = torch.rand(12, 3, height, width, generator=torch.Generator().manual_seed(0))
    numbers = draw(0, "window", 0, torch.arange(12)).uniform(WINDOW_DRAWS)
    windows = crop_windows(torch.full((12,), height), torch.full((12,), width), (0.05, 1.0), RATIO, numbers)
    mirrored = torch.arange(12) % 3 == 0
    result = crop_resize(images, windows, size, mirrored)
    for image, (top, left, h, w), mirror, row in zip(images, windows.tolist(), mirrored, result, strict=True):
        piece = image[None, :, top : top + h, left : left + w]
        expected = F.interpolate(piece, (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
        torch.testing.assert_close(row, expected.flip(2) if mirror else expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(crop_resize(list(images), windows, size, mirrored), result, rtol=0, atol=1e-5)


def test_reference_blur() -> None:
    images = torch.rand(4, 2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigmas = torch.tensor([0.1, 0.6, 1.0, 1.3], dtype=torch.float64)
    result = gaussian_blur(images, sigmas, 1.3)
    for image, sigma, row in zip(images, sigmas.tolist(), result, strict=True):
        torch.testing.assert_close(row, naive_blur(image, sigma, 4), rtol=1e-10, atol=1e-12)


def test_dtypes() -> None:
    pixels = torch.randint(256, (3, 3, 10, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    windows, mirrored = (
        windows_of([[0, 0, 10, 12], [2, 3, 5, 4], [9, 0, 1, 12]]),
        torch.tensor([True, False, True]),
    )
    for images in (pixels, list(pixels)):
        result = crop_resize(images, windows, 6, mirrored)
        assert result.dtype == torch.float32
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 4e-3)):
            floats = [(image / 255).to(dtype) for image in images]
            other = crop_resize(
                torch.stack(floats) if isinstance(images, Tensor) else floats, windows, 6, mirrored
            )
            assert other.dtype == torch.float32
            torch.testing.assert_close(other, result, rtol=0, atol=tolerance)
    assert gaussian_blur(torch.rand(1, 3, 4, 4).bfloat16(), torch.tensor([1.0])).dtype == torch.bfloat16


def test_degenerate() -> None:
    # A window without change is copied; weights of every output sum to one; no image, no result.
    image = torch.rand(1, 3, 8, 8)
    whole = windows_of([[0, 0, 8, 8]])
    assert torch.equal(crop_resize(list(image), whole, 8, torch.tensor([False])), image)
    torch.testing.assert_close(crop_resize(image, whole, 8, torch.tensor([False])), image, rtol=0, atol=1e-7)
    weights = triangle_weights(torch.tensor([5, 0, 99]), torch.tensor([1, 100, 1]), 100, 13)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 13))
    torch.testing.assert_close(weights[0, :, 5], torch.ones(13))
    assert (
        crop_resize(torch.zeros(0, 3, 4, 4), windows_of([]).reshape(0, 4), 2, torch.zeros(0).bool()).shape[0]
        == 0
    )
    assert gaussian_blur(torch.zeros(0, 3, 4, 4), torch.zeros(0)).shape == (0, 3, 4, 4)
    # A filter much wider than the image, and one much narrower than a pixel.
    flat = torch.full((1, 3, 1, 2), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, torch.tensor([5.0])), flat)
    torch.testing.assert_close(gaussian_blur(image, torch.tensor([1e-3])), image)


def test_degenerate_long_images() -> None:
    """Where no try fits, the window is central and keeps the nearest allowed ratio."""
    numbers = torch.full((2, WINDOW_DRAWS), 0.5)
    windows = crop_windows(torch.tensor([10, 1000]), torch.tensor([1000, 10]), (0.9, 1.0), RATIO, numbers)
    assert windows.tolist() == [[0, 493, 10, 13], [493, 0, 13, 10]]
    assert crop_windows(torch.tensor([1]), torch.tensor([1]), (0.01, 0.02), RATIO, numbers[:1]).tolist() == [
        [0, 0, 1, 1]
    ]


def test_degenerate_blur_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blur does not depend on the blocks in which it is computed, nor on the other samples."""
    images, sigma = torch.rand(3, 3, 37, 70), torch.tensor([0.4, 1.1, 2.0])
    result = gaussian_blur(images, sigma)
    monkeypatch.setattr(resample, "_BLOCK", 100)
    torch.testing.assert_close(gaussian_blur(images, sigma), result, rtol=0, atol=1e-6)
    torch.testing.assert_close(gaussian_blur(images[:1], sigma[:1], 2.0), result[:1], rtol=0, atol=1e-6)


def test_reference_resized() -> None:
    image = torch.randint(256, (3, 9, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    expected = F.interpolate(image[None] / 255, (6, 9), mode="bilinear", antialias=True)[0]
    assert torch.equal(resized(image, 6, 9), expected)
    assert torch.equal(resized(image[None], 6, 9)[0], expected)
    assert torch.equal(resized(image, 9, 14), image / 255)
