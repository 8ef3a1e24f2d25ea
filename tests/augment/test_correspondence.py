"""Counterparts of positions in two views: hand-made windows, a loop, images that say where their pixels are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from leanlabel.augment.correspondence import counterparts, read_at
from leanlabel.augment.image import Places, ViewSettings, random_view, view_places
from leanlabel.rng import draw


def places(*rows: tuple[int, int, int, int, bool]) -> Places:
    """Top, left, height, width, mirrored of each image."""
    return Places(torch.tensor([row[:4] for row in rows]), torch.tensor([row[4] for row in rows]))


def test_values() -> None:
    """The right half of an image, mirrored, in a view of the whole: its columns come in reverse order."""
    whole, right = places((0, 0, 8, 8, False)), places((0, 4, 8, 4, True))
    grid, inside = counterparts(whole, right, 2, 4)
    assert inside.tolist() == [[[False, False, True, True]] * 2]
    # Centres of the two cells inside: 5 and 7 of 8 pixels, which is 1/4 and 3/4 of the half, mirrored 3/4 and 1/4.
    assert grid[0, 0, 2:].tolist() == [[0.5, -0.5], [-0.5, -0.5]]
    assert grid[0, 1, 2:].tolist() == [[0.5, 0.5], [-0.5, 0.5]]
    back, inside = counterparts(right, whole, 2, 2)
    assert bool(inside.all())
    assert back[0, 0].tolist() == [[0.75, -0.5], [0.25, -0.5]]  # 7 and 5 of 8 pixels


def test_values_without_overlap() -> None:
    grid, inside = counterparts(places((0, 0, 4, 4, False)), places((0, 4, 4, 4, True)), 3, 3)
    assert not bool(inside.any())
    assert bool(torch.isfinite(grid).all())


def test_reference() -> None:
    """A loop over images and cells."""
    generator = torch.Generator().manual_seed(0)

    def some() -> Places:
        corner = torch.randint(0, 20, (7, 2), generator=generator)
        return Places(
            torch.cat([corner, torch.randint(1, 30, (7, 2), generator=generator)], 1),
            torch.rand(7, generator=generator) < 0.5,
        )

    first, second = some(), some()
    grid, inside = counterparts(first, second, 3, 5)
    assert 0 < int(inside.sum()) < inside.numel()
    for b in range(7):
        (top, left, height, width), (top2, left2, height2, width2) = (
            one.windows[b].tolist() for one in (first, second)
        )
        for i in range(3):
            for j in range(5):
                a = (j + 0.5) / 5
                x = left + width * (1 - a if first.mirrored[b] else a)
                y = top + height * (i + 0.5) / 3
                across, down = (x - left2) / width2, (y - top2) / height2
                if second.mirrored[b]:
                    across = 1 - across
                assert grid[b, i, j].tolist() == pytest.approx([2 * across - 1, 2 * down - 1], abs=1e-12)
                assert bool(inside[b, i, j]) == (0 <= across <= 1 and 0 <= down <= 1)


def test_reference_of_pixels() -> None:
    """Views of an image whose colours are coordinates: what lies at a counterpart has the colours of the position."""
    ids = torch.arange(6)
    y, x = torch.meshgrid(torch.arange(40) / 40, torch.arange(60) / 60, indexing="ij")
    images = torch.stack([x, y, x * 0])[None].repeat(6, 1, 1, 1)
    settings = ViewSettings(
        size=32, scale=(0.3, 0.8), jitter_probability=0, grey=0, blur=0, mean=(0, 0, 0), std=(1, 1, 1)
    )
    views = [random_view(images, settings, draw(3, f"view {k}", 0, ids)) for k in (0, 1)]
    first, second = (view_places(images, settings, draw(3, f"view {k}", 0, ids)) for k in (0, 1))
    assert {bool(one) for one in torch.cat([first.mirrored, second.mirrored])} == {True, False}
    grid, inside = counterparts(first, second, 32, 32)
    inner = inside & (grid.abs() < 0.9).all(3)
    inner[:, [0, 1, -2, -1]] = inner[:, :, [0, 1, -2, -1]] = False  # a window's border repeats its last pixel
    assert int(inner.sum()) > 500
    found = read_at(views[1], grid)
    difference = (found - views[0]).abs().amax(1)[inner]
    assert float(difference.max()) < 5e-3  # a pixel of the image is 0.017 or 0.025
    flipped = Places(second.windows, ~second.mirrored)
    wrong = (read_at(views[1], counterparts(first, flipped, 32, 32)[0]) - views[0]).abs().amax(1)[inner]
    assert float(wrong.mean()) > 0.05


def test_view_places_are_those_of_the_views() -> None:
    """Also of images of several sizes, and not without ids."""
    images = [torch.zeros(3, 20, 30), torch.zeros(3, 50, 10)]
    settings = ViewSettings(size=8)
    found = view_places(images, settings, draw(0, "view", 0, torch.tensor([4, 9])))
    alone = view_places(images[1:], settings, draw(0, "view", 0, torch.tensor([9])))
    assert found.windows[1:].tolist() == alone.windows.tolist()
    assert found.mirrored[1:].tolist() == alone.mirrored.tolist()
    with pytest.raises(ValueError, match="2 images need a draw with as many ids"):
        view_places(images, settings, draw(0, "view", 0, torch.tensor([4])))


def test_values_of_reading() -> None:
    """Between centres bilinear, beyond them constant."""
    maps = torch.tensor([[0.0, 4.0], [8.0, 12.0]], dtype=torch.float64)[None, None]
    at = torch.tensor([[-0.5, -0.5], [0.0, -0.5], [0.5, 0.0], [0.0, 0.0], [1.0, 1.0]])[None, None]
    assert read_at(maps, at).flatten().tolist() == [0.0, 2.0, 8.0, 6.0, 12.0]


def test_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    grid = torch.rand(2, 2, 2, 2, dtype=torch.float64, generator=generator) - 0.5
    assert torch.autograd.gradcheck(lambda one: read_at(one, grid), maps)


def test_dtypes() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        found = read_at(torch.ones(1, 2, 3, 3, dtype=dtype), torch.zeros(1, 2, 2, 2, dtype=torch.float64))
        assert (found.dtype, found.tolist()) == (dtype, torch.ones(1, 2, 2, 2).tolist())


def test_degenerate() -> None:
    """No image; a window of one pixel; the same view twice."""
    none = Places(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    grid, inside = counterparts(none, none, 2, 3)
    assert (grid.shape, inside.shape) == ((0, 2, 3, 2), (0, 2, 3))
    pixel = places((3, 5, 1, 1, False))
    assert counterparts(pixel, places((0, 0, 8, 8, False)), 1, 1)[0].flatten().tolist() == [0.375, -0.125]


def test_errors() -> None:
    one, two = places((0, 0, 2, 2, False)), places((0, 0, 2, 2, False), (0, 0, 2, 2, True))
    with pytest.raises(ValueError, match="places of 1 and of 2 images"):
        counterparts(one, two, 2, 2)
    with pytest.raises(ValueError, match="a map needs a position, got 0 x 2"):
        counterparts(one, one, 0, 2)


window = st.tuples(
    st.integers(0, 50), st.integers(0, 50), st.integers(1, 60), st.integers(1, 60), st.booleans()
)


@given(window, window, st.integers(1, 6), st.integers(1, 6))
@hypothesis_settings(max_examples=50, deadline=None)
def test_mirroring_both_views(
    one: tuple[int, int, int, int, bool], two: tuple[int, int, int, int, bool], rows: int, columns: int
) -> None:
    """Mirroring both views mirrors the map of counterparts and their places across."""
    grid, inside = counterparts(places(one), places(two), rows, columns)
    mirrored = [places((*window[:4], not window[4])) for window in (one, two)]
    other, there = counterparts(mirrored[0], mirrored[1], rows, columns)
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(other.flip(2) * sign, grid, rtol=0, atol=1e-9)
    edge = (grid.abs() - 1).abs().amin(3) < 1e-9  # a place on the very edge may round to either side
    assert bool(((there.flip(2) == inside) | edge).all())
    itself: Tensor = counterparts(places(one), places(one), rows, columns)[0]
    across = (2 * (torch.arange(columns) + 0.5) / columns - 1).double()
    torch.testing.assert_close(itself[0, 0, :, 0], across, rtol=0, atol=1e-6)
