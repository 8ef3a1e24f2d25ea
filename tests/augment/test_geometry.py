"""Geometries: literal cases, loops over pixels, image and mask at the same places, what lies outside."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from leanlabel.augment.elastic import turning, warped_places
from leanlabel.augment.geometry import (
    Geometry,
    apply_image,
    apply_mask,
    best_window,
    crop_boxes,
    outside,
    placed,
)


def still(height: int, width: int, rows: int = 1, **changes: object) -> Geometry:
    """The geometry that changes nothing, with changes."""
    box = torch.tensor([[0, 0, height, width]]).expand(rows, 4)
    fields = {
        "size": (height, width),
        "native": box[:, 2:],
        "source": box,
        "target": box,
        "mirrored": torch.zeros(rows, dtype=torch.bool),
        **changes,
    }
    return Geometry(**fields)  # pyright: ignore[reportArgumentType]


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def coded(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Image (2, H, W) whose value is the pixel centre's place; map (H, W) of pixel numbers."""
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    image = torch.stack([y[:, None].expand(-1, width), x.expand(height, -1)])
    return image, torch.arange(height * width).view(height, width)


def busy(seed: int, native: tuple[int, int], size: tuple[int, int], rows: int, kind: str) -> Geometry:
    """Random geometries: windows of all scales, mirrored; turned and sheared, or bent, or both."""
    factor = 0.4 + 2 * numbers(seed, rows)
    sizes = torch.tensor([native]).expand(rows, 2)
    source, target = crop_boxes(sizes, factor, size, numbers(seed + 1, rows, 1, 2))
    warp = bend = None
    if kind in ("affine", "both"):
        warp = turning(60 * numbers(seed + 2, rows) - 30, 20 * numbers(seed + 3, rows) - 10)
    if kind in ("elastic", "both"):
        bend = (2 * numbers(seed + 4, rows, 2, 4, 4) - 1) * (min(size) / 12)
    mirrored = numbers(seed + 5, rows) < 0.5
    return Geometry(size, sizes, source[:, 0], target[:, 0], mirrored, warp, bend)


def test_values() -> None:
    """Nothing changes; mirror; a quarter turn; a move."""
    image, number = numbers(0, 1, 3, 6, 6), torch.arange(36).view(1, 6, 6)
    assert torch.equal(apply_image(still(6, 6), image), image)
    assert torch.equal(apply_mask(still(6, 6), number), number)
    mirror = still(6, 6, mirrored=torch.tensor([True]))
    assert torch.equal(apply_image(mirror, image), image.flip(3))
    assert torch.equal(apply_mask(mirror, number), number.flip(2))
    quarter = still(6, 6, warp=turning(torch.tensor([90.0]), torch.tensor([0.0])))
    torch.testing.assert_close(apply_image(quarter, image), image.rot90(1, (2, 3)), rtol=0, atol=1e-5)
    assert torch.equal(apply_mask(quarter, number), number.rot90(1, (1, 2)))
    both = still(6, 6, warp=quarter.warp, mirrored=torch.tensor([True]))
    assert torch.equal(apply_mask(both, number), number.rot90(1, (1, 2)).flip(2)), "mirrored last"
    move = placed(torch.tensor([[6, 6]]), torch.ones(1), torch.tensor([[2, -1]]), (6, 6))
    moved = apply_mask(move, number, ignore=-100)
    assert torch.equal(moved[0, 2:, :5], number[0, :4, 1:])
    assert int((moved == -100).sum()) == 36 - 20
    assert torch.equal(outside(move), moved == -100)
    torch.testing.assert_close(
        apply_image(move, image, fill=(0.1, 0.2, 0.3))[0, :, 0, 0], torch.tensor([0.1, 0.2, 0.3])
    )


def test_values_boxes() -> None:
    native = torch.tensor([[100, 200], [10, 300], [100, 100]])
    factor, corners = (
        torch.tensor([2.0, 1.0, 0.5]),
        torch.tensor([[[0.0, 0.0], [0.999, 0.999]]]).expand(3, 2, 2),
    )
    source, target = crop_boxes(native, factor, (40, 60), corners)
    assert source[:, 0].tolist() == [[0, 0, 20, 30], [0, 0, 10, 60], [0, 0, 80, 100]]
    assert source[:, 1].tolist() == [[80, 170, 20, 30], [0, 240, 10, 60], [20, 0, 80, 100]]
    assert target[:, 0].tolist() == [[0, 0, 40, 60], [0, 0, 10, 60], [0, 0, 40, 50]]
    assert target[:, 1].tolist() == [[0, 0, 40, 60], [30, 0, 10, 60], [0, 10, 40, 50]]


def test_values_windows() -> None:
    """The first that meets the conditions, else the nearest; unlabelled pixels count for nothing."""
    mask = torch.full((4, 8), 255, dtype=torch.uint8)
    mask[:, 2:6] = torch.tensor([0, 0, 1, 1])
    boxes = torch.tensor([[0, x, 4, 2] for x in range(7)])

    def best(wanted: int = -1, pixels: int = 1, max_share: float = 1.0, target: Tensor = boxes) -> int:
        return best_window(mask, boxes, target, wanted=wanted, pixels=pixels, max_share=max_share, ignore=255)

    assert best() == 0
    assert best(max_share=0.5) == 3, "columns 3 and 4 hold both classes"
    assert best(wanted=1, pixels=1) == 3
    assert best(wanted=1, pixels=8) == 4
    assert best(wanted=1, pixels=9) == 4, "none holds as many: the one with most"
    assert best(wanted=1, pixels=9, max_share=0.5) == 4
    assert best(wanted=1, pixels=4, max_share=0.4) == 3, "equally many of the class: the more mixed one"
    twice = boxes * torch.tensor([1, 1, 2, 2])
    assert best(wanted=1, pixels=20, target=twice) == 4
    assert best(wanted=7) == 0
    # A window without labels is the worst for the share.
    assert best(max_share=0.9) == 3


def test_reference() -> None:
    """Masks against exact fractions, images against torch on the piece that is cut out."""
    for seed in range(12):
        geometry = busy(seed, (31, 23), (19, 27), 1, "none")
        mask = torch.arange(31 * 23).view(1, 31, 23)
        image = numbers(seed, 1, 2, 31, 23)
        top, left, height, width = geometry.source[0].tolist()
        down, across, rows, columns = geometry.target[0].tolist()
        expected = torch.full((19, 27), -1)
        for y in range(rows):
            for x in range(columns):
                at_y = math.floor(top + (y + Fraction(1, 2)) * height / rows)
                at_x = math.floor(left + (x + Fraction(1, 2)) * width / columns)
                expected[down + y, across + x] = mask[0, at_y, at_x]
        flipped = bool(geometry.mirrored[0])
        assert torch.equal(apply_mask(geometry, mask, -1)[0], expected.flip(1) if flipped else expected)
        piece = image[:, :, top : top + height, left : left + width]
        fitted = F.interpolate(piece, (rows, columns), mode="bilinear", antialias=True)[0]
        view = torch.full((2, 19, 27), 0.25)
        view[:, down : down + rows, across : across + columns] = fitted
        result = apply_image(geometry, image, fill=0.25)[0]
        torch.testing.assert_close(result, view.flip(2) if flipped else view, rtol=0, atol=1e-5)


def test_reference_places() -> None:
    """p = c + A (q - c) + e(q), pixel after pixel; e is that of the control points in the corners."""
    warp = turning(torch.tensor([25.0]), torch.tensor([8.0]))[0]
    bend = numbers(3, 2, 3, 3) * 4 - 2
    for flipped in (False, True):
        y, x = warped_places((7, 9), warp, None, flipped)
        for row in range(7):
            for column in range(9):
                q = (row + 0.5 - 3.5, (9 - column - 0.5 if flipped else column + 0.5) - 4.5)
                p_y = 3.5 + float(warp[0, 0]) * q[0] + float(warp[0, 1]) * q[1]
                p_x = 4.5 + float(warp[1, 0]) * q[0] + float(warp[1, 1]) * q[1]
                assert float(y[row, column]) == pytest.approx(p_y, abs=1e-5)
                assert float(x[row, column]) == pytest.approx(p_x, abs=1e-5)
        bent_y, bent_x = warped_places((7, 9), warp, bend, flipped)
        for row, column in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1)):
            at = (row * 3, (2 - column if flipped else column) * 4)
            assert float((bent_y - y)[at]) == pytest.approx(float(bend[0, row, column]), abs=1e-5)
            assert float((bent_x - x)[at]) == pytest.approx(float(bend[1, row, column]), abs=1e-5)


def test_reference_turning() -> None:
    """The picture turns counter-clockwise and its upright lines lean to the right."""
    mask = torch.zeros(1, 41, 41, dtype=torch.long)
    mask[0, 20, 38] = 1
    turned = apply_mask(still(41, 41, warp=turning(torch.tensor([30.0]), torch.zeros(1))), mask, 0).nonzero()[
        0
    ]
    assert abs(float(turned[1]) - (20 - 18 * math.sin(math.pi / 6))) <= 1
    assert abs(float(turned[2]) - (20 + 18 * math.cos(math.pi / 6))) <= 1
    mask = torch.zeros(1, 41, 41, dtype=torch.long)
    mask[0, :, 20] = 1
    leaning = apply_mask(still(41, 41, warp=turning(torch.zeros(1), torch.tensor([20.0]))), mask, 0)
    top, bottom = (float(leaning[0, row].nonzero().float().mean()) for row in (0, 40))
    assert top - bottom == pytest.approx(40 * math.tan(math.radians(20)), abs=1)
    assert torch.allclose(
        torch.linalg.det(turning(numbers(0, 5) * 90, numbers(1, 5) * 40)), torch.ones(5).double()
    )


def test_reference_bilinear() -> None:
    """A turned image without shrinking: four neighbours by their distance, edges repeated, outside filled."""
    image = numbers(1, 1, 1, 9, 11)
    geometry = still(9, 11, warp=turning(torch.tensor([20.0]), torch.tensor([5.0])))
    places = geometry.lookup(0).places
    assert places is not None
    expected = torch.full((9, 11), 0.7)
    for row in range(9):
        for column in range(11):
            y, x = (float(place[row, column]) for place in places)
            if not (0 <= y < 9 and 0 <= x < 11):
                continue
            y, x = y - 0.5, x - 0.5
            total = 0.0
            for k in (math.floor(y), math.floor(y) + 1):
                for j in (math.floor(x), math.floor(x) + 1):
                    value = image[0, 0, min(max(k, 0), 8), min(max(j, 0), 10)]
                    total += float(value) * (1 - abs(y - k)) * (1 - abs(x - j))
            expected[row, column] = total
    torch.testing.assert_close(apply_image(geometry, image, fill=0.7)[0, 0], expected, rtol=0, atol=1e-5)
    assert bool((expected == 0.7).any())


def test_reference_tiny_turn() -> None:
    """A turn by next to nothing gives next to the same as no turn, for windows of all scales, padded and mirrored."""
    for native, size in (((60, 80), (40, 40)), ((33, 51), (64, 48))):
        image, number = coded(*native)
        images, maps = image.expand(8, -1, -1, -1), number.expand(8, -1, -1)
        plain = busy(11, native, size, 8, "none")
        assert 0 < int(plain.mirrored.sum()) < 8
        turned = Geometry(**{**vars(plain), "warp": turning(torch.full((8,), 1e-3), torch.zeros(8))})
        assert turned.lookup(0).places is not None
        labels = apply_mask(plain, maps, -1)
        assert float((labels == apply_mask(turned, maps, -1)).float().mean()) > 0.97
        inner = (labels != -1) & ~outside(turned)
        error = (apply_image(turned, images) - apply_image(plain, images)).abs().movedim(1, 3)[inner]
        assert float(error.max()) < 0.6
        assert float(error.mean()) < 0.02


def test_reference_antialias() -> None:
    """Stripes of one pixel become grey when shrunk, also on the way through a turn."""
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64).contiguous()
    shrunk = placed(torch.tensor([[64, 64]]), torch.tensor([0.25]), torch.tensor([[0, 0]]), (16, 16))
    turned = Geometry(**{**vars(shrunk), "warp": turning(torch.tensor([0.5]), torch.tensor([0.0]))})
    for geometry in (shrunk, turned):
        inner = apply_image(geometry, stripes)[0, 0, 2:-2, 2:-2]
        torch.testing.assert_close(inner, torch.full_like(inner, 0.5), rtol=0, atol=0.02)


@given(
    st.integers(0, 10**6),
    st.sampled_from(["none", "affine", "elastic", "both"]),
    st.sampled_from([((60, 80), (40, 40)), ((33, 51), (64, 48)), ((120, 90), (31, 57))]),
)
def test_reference_same_places(seed: int, kind: str, sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """Image and mask agree about the place within half a pixel, of the image or of the result."""
    native, size = sizes
    image, number = coded(*native)
    geometry = busy(seed, native, size, 3, kind)
    read = apply_image(geometry, image.expand(3, -1, -1, -1), fill=-1.0)
    nearest = apply_mask(geometry, number.expand(3, -1, -1), ignore=-1)
    beyond = nearest == -1
    assert torch.equal(beyond, outside(geometry))
    assert torch.equal(beyond, read[:, 0] == -1)
    step = (geometry.source[:, 2:] / geometry.target[:, 2:]).clamp(min=1)
    for axis, place in enumerate((nearest // native[1] + 0.5, nearest % native[1] + 0.5)):
        error = (read[:, axis] - place).abs().masked_fill(beyond, 0.0).amax((1, 2))
        # The reduction before a turned reading adds at most 2 % of a pixel.
        assert bool((error <= (0.5 if kind == "none" else 0.52) * step[:, axis] + 1e-4).all()), error


def test_reference_resized_first() -> None:
    """Window before resize shows what resize before window shows."""
    image = numbers(5, 1, 3, 100, 120)
    for factor, corner in ((0.5, (8, 16)), (1.6, (48, 64)), (2.0, (64, 40))):
        new = [round(side * factor) for side in (100, 120)]
        whole = F.interpolate(image, new, mode="bilinear", antialias=True)
        expected = whole[0, :, corner[0] : corner[0] + 32, corner[1] : corner[1] + 40]
        geometry = placed(
            torch.tensor([[100, 120]]), torch.tensor([factor]), -torch.tensor([corner]), (32, 40)
        )
        # The filter ends at the window's edge, not at the image's.
        inner = (slice(None), slice(2, -2), slice(2, -2))
        result = apply_image(geometry, image)[0]
        torch.testing.assert_close(result[inner], expected[inner], rtol=0, atol=1e-4)
        assert float((result - expected).abs().max()) < 0.5


def test_gradient() -> None:
    """The result is linear in the image, hence <w, f(d)> is the derivative of <w, f(x)> along d."""
    for kind in ("none", "both"):
        geometry = busy(4, (20, 24), (16, 16), 2, kind)
        image = numbers(0, 2, 3, 20, 24).requires_grad_()
        weight, direction = numbers(1, 2, 3, 16, 16), numbers(2, 2, 3, 20, 24) - 0.5
        (apply_image(geometry, image) * weight).sum().backward()
        assert image.grad is not None
        along = (apply_image(geometry, direction) * weight).sum()
        torch.testing.assert_close((image.grad * direction).sum(), along, rtol=1e-4, atol=1e-3)


def test_dtypes() -> None:
    geometry = busy(2, (20, 24), (16, 16), 2, "both")
    image = torch.randint(256, (2, 3, 20, 24), generator=torch.Generator().manual_seed(0)).byte()
    expected = apply_image(geometry, image)
    assert expected.dtype == torch.float32
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 0.01)):
        result = apply_image(geometry, (image / 255).to(dtype))
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(apply_image(geometry, list(image)), expected, rtol=0, atol=0)
    for dtype in (torch.uint8, torch.int32, torch.int64, torch.bool):
        mask = (image[:, 0] % 2).to(dtype)
        result = apply_mask(geometry, mask, 0)
        assert result.dtype == dtype
        assert torch.equal(result, apply_mask(geometry, list(mask), 0))


def test_degenerate() -> None:
    none = still(4, 5, rows=0)
    assert apply_image(none, torch.zeros(0, 3, 4, 5)).shape == (0, 3, 4, 5)
    assert apply_mask(none, torch.zeros(0, 4, 5, dtype=torch.uint8)).shape == (0, 4, 5)
    assert outside(none).shape == (0, 4, 5)
    one, seven = torch.tensor([[1, 1]]), torch.tensor([[[7]]])
    spread = placed(one, torch.tensor([5.0]), torch.tensor([[0, 0]]), (5, 5))
    assert torch.equal(apply_mask(spread, seven), torch.full((1, 5, 5), 7))
    gone = placed(one, torch.tensor([2.0]), torch.tensor([[9, 9]]), (5, 5))
    assert torch.equal(apply_mask(gone, seven, -1), torch.full((1, 5, 5), -1))
    assert torch.equal(apply_image(gone, torch.ones(1, 1, 1, 1), 0.5), torch.full((1, 1, 5, 5), 0.5))
    bent = still(6, 6, bend=torch.full((1, 2, 3, 3), 40.0))
    assert bool(outside(bent).all()), "everything read beyond the image"
    assert torch.equal(apply_image(bent, torch.ones(1, 1, 6, 6), 0.5), torch.full((1, 1, 6, 6), 0.5))
    # Straight samples of a batch with warps take the exact path.
    warp = turning(torch.tensor([0.0, 30.0]), torch.zeros(2))
    mixed = still(6, 6, rows=2, warp=warp)
    images = numbers(0, 2, 3, 6, 6)
    assert torch.equal(apply_image(mixed, images)[0], images[0])
    assert torch.equal(apply_image(mixed.take(torch.tensor([1])), images[1:]), apply_image(mixed, images)[1:])


def test_errors() -> None:
    geometry = still(4, 5, rows=2)
    with pytest.raises(ValueError, match="geometry of 2 samples cannot be applied to 1"):
        apply_image(geometry, torch.zeros(1, 3, 4, 5))
    with pytest.raises(ValueError, match="map 0 must have 3 dimensions and the size 4 x 5"):
        apply_image(geometry, torch.zeros(2, 3, 5, 4))
    with pytest.raises(ValueError, match="map 1 must have 2 dimensions"):
        apply_mask(geometry, [torch.zeros(4, 5), torch.zeros(1, 4, 5)])
