"""The shift between two images of one scene: found whatever the sensor, doubted where there is none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from leanlabel.augment.sensor import SENSORS, ShiftSettings
from leanlabel.data.generated.scenes import scene_images
from leanlabel.data.transformed import transformed
from leanlabel.errors import InputError
from leanlabel.evaluation.shift import estimate_shift, least_response


def blocks(seed: int = 0, height: int = 40, width: int = 56) -> Tensor:
    """A picture with edges, (3, h, w) in [0, 1]."""
    coarse = torch.rand(1, 3, height // 5, width // 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="nearest")[0]


def test_values() -> None:
    """Street scenes, shifted and seen by other sensors; other scenes give a low response."""
    scenes = scene_images(train=8, val=0, test=0)
    least = least_response(96, 128)
    for name in SENSORS:
        for shift in ((0, 0), (4, -7)):
            copy = transformed(scenes, name, ShiftSettings(constant=shift))
            found = [estimate_shift(scenes.pixels[row], copy.pixels[row], 8) for row in range(8)]
            assert [(one.dy, one.dx) for one in found] == [shift] * 8, name
            assert min(one.response for one in found) > least
            wrong = [estimate_shift(scenes.pixels[row], copy.pixels[row - 1], 8) for row in range(8)]
            assert sorted(one.response for one in wrong)[4] < 0.75 * least


def test_reference() -> None:
    """Against the plain sum of products of the same edges at every shift, where nothing else differs."""
    first = blocks()
    second = torch.zeros_like(first)
    second[:, 3:, :-2] = first[:, :-3, 2:]
    best, score = (0, 0), -1.0
    for dy in range(-5, 6):
        for dx in range(-5, 6):
            moved = first.roll((dy, dx), (1, 2))[:, 5:-5, 5:-5]
            own = -float((moved - second[:, 5:-5, 5:-5]).square().mean())
            if own > score:
                best, score = (dy, dx), own
    found = estimate_shift(first, second, 5)
    assert (found.dy, found.dx) == best == (3, -2)


def test_dtypes() -> None:
    first = (blocks() * 255).round().byte()
    second = first.roll((1, 2), (1, 2))
    expected = estimate_shift(first, second, 4)
    assert (expected.dy, expected.dx) == (1, 2)
    for dtype in (torch.float16, torch.float32, torch.float64):
        found = estimate_shift(first.to(dtype), second.to(dtype), 4)
        assert (found.dy, found.dx) == (1, 2)
        assert abs(found.response - expected.response) < 1e-6
    assert estimate_shift(first, second[:1], 4)[:2] == (1, 2)


def test_degenerate() -> None:
    """No edges, the same image, one pixel, no shift allowed."""
    plain = torch.full((3, 20, 20), 0.5)
    assert estimate_shift(plain, blocks(height=20, width=20), 3) == (0, 0, 0.0)
    assert estimate_shift(plain, plain, 3) == (0, 0, 0.0)
    same = estimate_shift(blocks(), blocks(), 6)
    assert same[:2] == (0, 0)
    assert abs(same.response - 1) < 1e-9
    assert estimate_shift(torch.rand(1, 1, 1), torch.rand(1, 1, 1), 0) == (0, 0, 0.0)
    assert estimate_shift(blocks(), blocks().roll(3, 1), 0)[:2] == (0, 0)


def test_errors() -> None:
    with pytest.raises(InputError, match="got 56 x 40 and 40 x 40"):
        estimate_shift(blocks(), blocks()[:, :, :40], 3)
    with pytest.raises(ValueError, match=r"must be \(C, h, w\)"):
        estimate_shift(blocks()[0], blocks(), 3)
    with pytest.raises(ValueError, match="max_shift must be in"):
        estimate_shift(blocks(), blocks(), 20)


@given(st.integers(-6, 6), st.integers(-6, 6), st.floats(0.3, 3), st.booleans())
def test_invariance(dy: int, dx: int, gain: float, negative: bool) -> None:
    """Brightness and contrast do not matter, a negative neither; the other way round is the opposite shift."""
    first = blocks(1)
    second = first.roll((dy, dx), (1, 2)) * (-gain if negative else gain) + 0.2
    there, back = estimate_shift(first, second, 8), estimate_shift(second, first, 8)
    assert there[:2] == (dy, dx)
    assert back[:2] == (-dy, -dx)
    assert abs(there.response - back.response) < 1e-9
