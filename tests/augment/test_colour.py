"""Colour operations against colorsys and loops over pixels, in float64; what must not change does not change."""

from __future__ import annotations

import colorsys
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel.augment.colour import (
    ORDERS,
    Hue,
    fast_hue_,
    grey_,
    grey_plane,
    hue_,
    jitter_,
    normalise,
    solarise_,
    yiq_rotation,
)

NEUTRAL = (1.0, 1.0, 1.0, 0.0)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pixels(*rows: list[float]) -> Tensor:
    """One image with a pixel per row."""
    return torch.tensor(rows, dtype=torch.float64).T.reshape(1, 3, 1, len(rows))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def jittered(images: Tensor, factors: Tensor, orders: Tensor, hue: Hue | None = "hsv") -> Tensor:
    """All images, as new ones."""
    return jitter_(images.clone(), torch.arange(len(images)), factors, orders, hue=hue)


def only(kind: int, images: Tensor, factor: Tensor) -> Tensor:
    """One of the four operations, the others neutral."""
    factors = torch.tensor(NEUTRAL, dtype=images.dtype).repeat(len(images), 1)
    factors[:, kind] = factor
    return jittered(images, factors, torch.arange(len(images)), None if kind < 3 else "hsv")


def turned(image: Tensor, turns: float) -> Tensor:
    """HSV hue rotation of (3, h, w), pixel by pixel."""
    result = torch.empty_like(image)
    for y, x in itertools.product(range(image.shape[1]), range(image.shape[2])):
        h, s, v = colorsys.rgb_to_hsv(*image[:, y, x].tolist())
        result[:, y, x] = column(*colorsys.hsv_to_rgb((h + turns) % 1.0, s, v))
    return result


def one_operation(kind: int, image: Tensor, factor: float) -> Tensor:
    """One operation on one image (3, h, w), the plain way."""
    red, green, blue = image
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    if kind == 0:
        return (factor * image).clamp(0, 1)
    if kind == 1:
        return (factor * image + (1 - factor) * grey.mean()).clamp(0, 1)
    if kind == 2:
        return (factor * image + (1 - factor) * grey).clamp(0, 1)
    return turned(image, factor)


def test_values() -> None:
    image = pixels([0.5, 0.25, 1.0], [0.0, 0.0, 0.0])
    # Grey of the first pixel: 0.1495 + 0.14675 + 0.114 = 0.41025, mean of the image 0.205125.
    torch.testing.assert_close(grey_plane(image), column(0.41025, 0).view(1, 1, 1, 2), rtol=1e-10, atol=0)
    torch.testing.assert_close(only(0, image, column(1.5)), pixels([0.75, 0.375, 1.0], [0.0, 0.0, 0.0]))
    torch.testing.assert_close(
        only(1, image, column(0.5)), pixels([0.3525625, 0.2275625, 0.6025625], [0.1025625] * 3)
    )
    torch.testing.assert_close(only(2, image, column(0.5)), pixels([0.455125, 0.330125, 0.705125], [0.0] * 3))
    torch.testing.assert_close(grey_(image.clone()), pixels([0.41025] * 3, [0.0] * 3))
    torch.testing.assert_close(solarise_(image.clone(), 0.5), pixels([0.5, 0.25, 0.0], [0.0] * 3))
    normal = normalise(image, (0.5, 0.25, 0.5), (0.5, 0.25, 0.25))
    torch.testing.assert_close(normal, pixels([0.0, 0.0, 2.0], [-1.0, -1.0, -2.0]))


def test_values_hue() -> None:
    image = pixels([1, 0, 0], [0, 1, 0], [0, 0, 1], [0.8, 0.6, 0.2], [0.3, 0.3, 0.3])
    third = pixels([0, 1, 0], [0, 0, 1], [1, 0, 0], [0.2, 0.8, 0.6], [0.3, 0.3, 0.3])
    torch.testing.assert_close(hue_(image.clone(), column(1 / 3)), third, rtol=0, atol=1e-12)
    torch.testing.assert_close(hue_(third.clone(), column(-1 / 3)), image, rtol=0, atol=1e-12)
    sixth = pixels([1, 1, 0], [0, 1, 1], [1, 0, 1])
    torch.testing.assert_close(hue_(image[..., :3].clone(), column(1 / 6)), sixth, rtol=0, atol=1e-12)


def test_reference_hue() -> None:
    images = random_images(5, 3, 4, 6)
    images[0, 1] = images[0, 0]  # ties between the largest channels
    images[1, 2] = images[1, 1]
    turns = column(0.0, 0.5, -0.5, 0.1, -0.37)
    expected = torch.stack([turned(image, float(t)) for image, t in zip(images, turns, strict=True)])
    torch.testing.assert_close(hue_(images.clone(), turns), expected, rtol=1e-10, atol=1e-12)


def test_reference_fast_hue() -> None:
    """The fast form turns like the true one: no turn changes nothing, a full turn returns, luma stays."""
    torch.testing.assert_close(yiq_rotation(column(0.0, 1.0)), torch.eye(3).double().expand(2, 3, 3))
    grey = torch.tensor([[0.299, 0.587, 0.114]], dtype=torch.float64)
    torch.testing.assert_close(grey @ yiq_rotation(column(0.2)), grey.expand(1, 1, 3))
    images = random_images(3, 3, 4, 4) * 0.2 + 0.4  # far from the limits
    turns = column(0.05, -0.05, 0.1)
    true, fast = hue_(images.clone(), turns), fast_hue_(images.clone(), turns)
    moves = torch.nn.functional.cosine_similarity((true - images).flatten(1), (fast - images).flatten(1))
    assert bool((moves > 0.5).all()), moves
    assert int(fast_hue_(pixels([1, 0, 0]), column(1 / 3)).flatten().argmax()) == 1


@pytest.mark.parametrize("hue", ["hsv", None])
def test_reference_jitter(hue: Hue | None) -> None:
    """All 24 orders against one operation after another on one image; the rows that are not named stay."""
    images = random_images(30, 3, 3, 4)
    factors = random_images(24, 4, seed=1) * 1.6 + 0.2
    factors[:, 3] = factors[:, 3] / 2 - 0.5
    generator = torch.Generator().manual_seed(2)
    orders, rows = torch.randperm(24, generator=generator), torch.randperm(30, generator=generator)[:24]
    expected = images.clone()
    permutations = list(itertools.permutations(range(4)))
    assert ORDERS.tolist() == [list(row) for row in permutations]
    for row, factor, order in zip(rows.tolist(), factors.tolist(), orders.tolist(), strict=True):
        for kind in permutations[order]:
            if kind < 3 or hue:
                expected[row] = one_operation(kind, expected[row], factor[kind])
    result = jitter_(images, rows, factors, orders, hue=hue)
    assert result is images
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


def test_dtypes() -> None:
    images = random_images(2, 3, 4, 4)
    factors, orders = torch.tensor([[1.2, 0.7, 1.3, 0.1], [0.8, 1.2, 0.7, -0.1]]), torch.tensor([3, 17])
    wide = jittered(images, factors, orders)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        narrow = jittered(images.to(dtype), factors, orders)
        assert narrow.dtype == dtype
        torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=tolerance)


def test_degenerate() -> None:
    # Grey images have no colour to change; a constant image has no contrast; black has nothing at all.
    grey = random_images(3, 1, 4, 5).expand(3, 3, 4, 5)
    factors = column(0.2, 1.0, 1.9)
    torch.testing.assert_close(only(2, grey, factors), grey, rtol=0, atol=1e-12)
    for turn in (hue_, fast_hue_):
        torch.testing.assert_close(turn(grey.clone(), factors / 4), grey, rtol=0, atol=1e-6)
    torch.testing.assert_close(grey_(grey.clone()), grey, rtol=0, atol=1e-12)
    constant = column(0.3, 0.3, 0.3).view(1, 3, 1, 1).expand(3, 3, 2, 2)
    torch.testing.assert_close(only(1, constant, factors), constant, rtol=0, atol=1e-12)
    black = torch.zeros(1, 3, 2, 2)
    for kind in range(4):
        assert torch.equal(only(kind, black, torch.tensor([0.4])), black)
    # Factors of one and no turn.
    images = random_images(2, 3, 3, 3)
    same = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 2)
    torch.testing.assert_close(jittered(images, same, torch.tensor([0, 23])), images, rtol=0, atol=1e-12)
    assert jittered(images[:0], same[:0], torch.tensor([], dtype=torch.long)).shape == (0, 3, 3, 3)


@given(st.integers(0, 10**6), st.sampled_from(["hsv", "fast"]))
def test_degenerate_range(seed: int, kind: Hue) -> None:
    """Values stay in [0, 1] and finite, saturated ones included."""
    images = (random_images(6, 3, 3, 3, seed=seed) * 3 - 1).clamp(0, 1).float()
    factors = random_images(6, 4, seed=seed + 1).float() * torch.tensor([4.0, 4, 4, 1]) - torch.tensor(
        [0, 0, 0, 0.5]
    )
    orders = torch.randint(24, (6,), generator=torch.Generator().manual_seed(seed))
    result = jittered(images, factors, orders, kind)
    # The hue comes last in some orders, and is not clamped.
    assert bool(((result >= -1e-6) & (result <= 1 + 1e-6)).all())
