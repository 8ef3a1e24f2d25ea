"""Another sensor and another place: every change by its formula, presets, noise and shifts of each sample's own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from leanlabel.augment.colour import GREY
from leanlabel.augment.sensor import (
    INFRARED,
    SENSORS,
    SensorSettings,
    ShiftSettings,
    change,
    channels_after,
    misalign,
    shift_geometry,
)
from leanlabel.errors import InputError
from leanlabel.rng import Draw, draw

IDS = torch.tensor([4, 900, 7, 2**40])
EVERY = ShiftSettings(random=3, constant=(1, -2), rotate=8.0, shear=3.0, zoom=0.1, elastic=1.5)


def photos(count: int = 4, height: int = 18, width: int = 26, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def label_maps(count: int = 4, height: int = 18, width: int = 26) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(5, (count, height, width), dtype=torch.uint8, generator=generator)


def numbers(ids: Tensor = IDS, seed: int = 0) -> Draw:
    return draw(seed, "sensor", 0, ids)


def test_values() -> None:
    """One change at a time, each by its formula."""
    x = photos()
    torch.testing.assert_close(change(x, SensorSettings()), x, rtol=0, atol=0)
    red, green, blue = x.unbind(1)
    seen = INFRARED[0] * red + INFRARED[1] * green + INFRARED[2] * blue
    torch.testing.assert_close(change(x, SensorSettings(infrared=True))[:, 0], seen.clamp(0, 1))
    luma = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    torch.testing.assert_close(change(x, SensorSettings(grey=True)), luma[:, None].expand(-1, 3, -1, -1))
    torch.testing.assert_close(change(x, SensorSettings(gamma=1.6)), x**1.6)
    torch.testing.assert_close(
        change(x, SensorSettings(channels=(2, 0, 1))), torch.stack([blue, red, green], 1)
    )
    torch.testing.assert_close(change(x, SensorSettings(invert=True)), 1 - x)
    gained = change(x, SensorSettings(gain=(0.7, 1.0, 0.5), offset=(0.1,)))
    torch.testing.assert_close(gained[:, 1], (green + 0.1).clamp(0, 1))
    torch.testing.assert_close(gained[:, 2], blue * 0.5 + 0.1)
    turned = change(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), SensorSettings(hue=1 / 3))
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.0, 1.0, 0.0]))


def test_values_places() -> None:
    """What looks at places: dark corners, blur, coarser pixels, JPEG."""
    white = torch.ones(1, 3, 9, 13)
    dark = change(white, SensorSettings(vignetting=0.4))[0, 0]
    assert float(dark[4, 6]) == 1.0
    share = (4**2 + 6**2) / (4.5**2 + 6.5**2)
    torch.testing.assert_close(float(dark[0, 0]), 1 - 0.4 * share)
    x = photos()
    for settings in (SensorSettings(blur=1.0), SensorSettings(coarse=2.0)):
        smooth = change(x, settings)
        assert smooth.shape == x.shape
        assert float(smooth.std()) < 0.8 * float(x.std())
        assert abs(float(smooth.mean()) - float(x.mean())) < 0.01
    plain = torch.full((2, 3, 16, 16), 0.4)
    torch.testing.assert_close(change(plain, SensorSettings(jpeg=90)), plain, rtol=0, atol=3 / 255)
    one = change(plain, SensorSettings(infrared=True, jpeg=90))
    assert one.shape == (2, 1, 16, 16)
    x = x[:, :1].expand(-1, 3, -1, -1)  # colours are stored more coarsely whatever the quality
    rough, fine = (change(x, SensorSettings(jpeg=quality)) for quality in (10, 95))
    assert float((rough - x).abs().mean()) > 2 * float((fine - x).abs().mean())


def test_values_named() -> None:
    """Every named sensor keeps to [0, 1]; the toy's numbers; infrared turns leaves bright and sky dark."""
    x = photos()
    for name, settings in SENSORS.items():
        y = change(x, settings, numbers())
        assert y.shape[1] == channels_after(3, settings), name
        assert 0 <= float(y.min()) <= float(y.max()) <= 1, name
    toy = SENSORS["published-toy"]
    assert (toy.gamma, toy.invert, toy.gain, toy.offset, toy.noise) == (
        1.6,
        True,
        (0.7, 1.0, 0.5),
        (0.1,),
        0.05,
    )
    quiet = change(x, toy.model_copy(update={"noise": 0.0}))
    expected = (1 - x[:, [1, 2, 0]] ** 1.6) * torch.tensor([0.7, 1.0, 0.5]).view(3, 1, 1) + 0.1
    torch.testing.assert_close(quiet, expected.clamp(0, 1))
    leaf, sky = (torch.tensor(rgb).view(1, 3, 1, 1) for rgb in ((0.2, 0.4, 0.15), (0.5, 0.7, 0.95)))
    assert float(leaf.mean()) < float(sky.mean())
    assert float(change(leaf, SensorSettings(infrared=True))) > float(
        change(sky, SensorSettings(infrared=True))
    )


def test_reference() -> None:
    """Shifts by whole pixels keep every value: against a loop over pixels."""
    x, masks = photos(height=6, width=7), label_maps(height=6, width=7)
    moved = misalign(x, masks, ShiftSettings(random=2, constant=(1, 0)), numbers())
    assert moved.masks is not None
    vectors = set()
    for row in range(4):
        one = misalign(x[row : row + 1], None, ShiftSettings(random=2), numbers(IDS[row : row + 1]))
        rows, columns = one.valid[0].any(1), one.valid[0].any(0)
        dy = int(rows.int().argmax()) if rows[-1] else int(rows.sum()) - 6
        dx = int(columns.int().argmax()) if columns[-1] else int(columns.sum()) - 7
        assert abs(dy) <= 2
        assert abs(dx) <= 2
        vectors.add((dy, dx))
        for i in range(6):
            for j in range(7):
                y, z = i - dy - 1, j - dx
                inside = 0 <= y < 6 and 0 <= z < 7
                assert bool(moved.valid[row, i, j]) == inside
                assert int(moved.masks[row, i, j]) == (int(masks[row, y, z]) if inside else 255)
                expected = x[row, :, y, z] if inside else x[row].mean((1, 2))
                torch.testing.assert_close(moved.images[row, :, i, j], expected, rtol=0, atol=1e-6)
    assert len(vectors) > 1


def test_values_shift() -> None:
    """Vectors are uniform in both directions; bent images and masks move together; nothing set, nothing moves."""
    many = torch.arange(4000)
    geometry = shift_geometry(torch.full((4000, 2), 20), ShiftSettings(random=2), numbers(many))
    corner = geometry.target[:, :2] - geometry.source[:, :2]
    counts = torch.bincount((corner[:, 0] + 2) * 5 + corner[:, 1] + 2, minlength=25)
    assert int(counts.min()) > 100
    x, masks = photos(), label_maps()
    still = misalign(x, masks, ShiftSettings(), numbers())
    assert torch.equal(still.images, x)
    assert bool(still.valid.all())
    assert ShiftSettings().still
    assert not EVERY.still
    assert EVERY.bends
    for settings in (EVERY, ShiftSettings(elastic=1.0), ShiftSettings(zoom=0.2), ShiftSettings(rotate=5.0)):
        # A smooth picture whose value says the place, so that image and mask can be compared.
        ramp = torch.linspace(0, 1, 26).expand(4, 3, 18, 26).contiguous()
        bent = misalign(ramp, (ramp[:, 0] * 200).round().byte(), settings, numbers())
        assert bent.masks is not None
        assert bool((bent.masks[~bent.valid] == 255).all())
        inner = bent.valid & (bent.images[:, 0] > 0.05) & (bent.images[:, 0] < 0.95)
        near = (bent.images[:, 0] - bent.masks / 200).abs()[inner]
        assert float(near.max()) < 0.05
        assert not torch.equal(bent.images, ramp)


def test_dtypes() -> None:
    x, masks = photos(), label_maps().int()
    for dtype in (torch.float64, torch.float16):
        y = change(x.to(dtype), SENSORS["camera"], numbers())
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, change(x, SENSORS["camera"], numbers()), rtol=0, atol=2e-3)
    bytes_ = (x * 255).round().byte()
    moved = misalign(list(bytes_), masks, EVERY, numbers(), ignore=0)
    torch.testing.assert_close(
        moved.images, misalign(x, None, EVERY, numbers()).images, rtol=0, atol=0.6 / 255
    )
    assert moved.masks is not None
    assert moved.masks.dtype == torch.int32
    assert int(moved.masks[~moved.valid].abs().sum()) == 0


def test_degenerate() -> None:
    """No images; one pixel; a shift that leaves nothing."""
    empty = torch.empty(0, dtype=torch.int64)
    assert change(torch.zeros(0, 3, 4, 4), SENSORS["camera"], numbers(empty)).shape == (0, 3, 4, 4)
    assert misalign(torch.zeros(0, 3, 4, 4), None, EVERY, numbers(empty)).images.shape[:2] == (0, 3)
    pixel = torch.full((1, 3, 1, 1), 0.5)
    assert change(pixel, SENSORS["camera"], numbers(IDS[:1])).isfinite().all()
    gone = misalign(photos(1), label_maps(1), ShiftSettings(constant=(18, 0)), numbers(IDS[:1]))
    assert gone.masks is not None
    assert not gone.valid.any()
    assert bool((gone.masks == 255).all())
    assert gone.images.isfinite().all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channels": (0, 0, 1)}, "each of 0, 1"),
        ({"infrared": True, "grey": True}, "leaves one channel"),
        ({"gain": (1.0, 0.5), "offset": (0.1, 0.1, 0.1)}, "same number of channels"),
        ({"gamma": 0.0}, "greater than 0"),
        ({"jpeg": 0}, "greater than or equal to 1"),
        ({"gama": 2.0}, "Extra inputs"),
        ({"blur": 1e6}, "less than or equal to 100"),
        ({"coarse": 1e9}, "less than or equal to 1000"),
    ],
)
def test_errors(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SensorSettings.model_validate(keys)


@pytest.mark.parametrize(
    "keys", [{"random": 10**19}, {"constant": (0, -(10**6))}, {"elastic": 1e6}, {"elastic_grid": 4000}]
)
def test_errors_shift(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="than or equal to"):
        ShiftSettings.model_validate(keys)


def test_errors_images() -> None:
    with pytest.raises(InputError, match="grey is for RGB images, but these have 4 channels"):
        channels_after(4, SENSORS["grey-blur"])
    with pytest.raises(InputError, match="gain has 3 numbers, but the images have 4 channels"):
        channels_after(4, SensorSettings(gain=(1.0, 0.9, 0.8)))
    with pytest.raises(InputError, match="jpeg is for images of 1 or 3"):
        channels_after(4, SensorSettings(jpeg=50))
    with pytest.raises(ValueError, match="floating point"):
        change(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), SensorSettings())
    with pytest.raises(ValueError, match="as many ids"):
        change(photos(), SensorSettings(noise=0.1))
    with pytest.raises(ValueError, match="as many ids"):
        change(photos(), SensorSettings(noise=0.1), numbers(IDS[:2]))
    with pytest.raises(ValueError, match="as many ids"):
        misalign(photos(), None, EVERY, numbers(IDS[:2]))
    with pytest.raises(ValueError, match="2 sizes"):
        misalign([torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)], None, EVERY, numbers(IDS[:2]))


def test_state() -> None:
    """A sample's change does not depend on the batch it is in; settings read back."""
    x, masks = photos(), label_maps()
    whole = change(x, SENSORS["camera"], numbers())
    moved = misalign(x, masks, EVERY, numbers())
    assert moved.masks is not None
    for row in range(4):
        own = numbers(IDS[row : row + 1])
        alone = change(x[row : row + 1], SENSORS["camera"], own)
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-5)
        one = misalign(x[row : row + 1], masks[row : row + 1], EVERY, numbers(IDS[row : row + 1]))
        assert one.masks is not None
        assert torch.equal(one.masks[0], moved.masks[row])
    assert not torch.equal(whole, change(x, SENSORS["camera"], numbers(seed=1)))
    noise = change(torch.full((1, 3, 64, 64), 0.5), SensorSettings(noise=0.05), numbers(IDS[:1])) - 0.5
    assert math.isclose(float(noise.std()), 0.05, rel_tol=0.05)
    for settings in (*SENSORS.values(), EVERY):
        assert type(settings).model_validate_json(settings.model_dump_json()) == settings


@given(st.integers(-20, 20), st.integers(-30, 30))
def test_invariance(dy: int, dx: int) -> None:
    """There and back again: what stayed inside is as it was."""
    x = photos(1)
    there = misalign(x, None, ShiftSettings(constant=(dy, dx)), numbers(IDS[:1]))
    back = misalign(there.images, None, ShiftSettings(constant=(-dy, -dx)), numbers(IDS[:1]))
    kept = torch.zeros(18, 26, dtype=torch.bool)
    kept[max(0, -dy) : max(0, 18 - max(0, dy)), max(0, -dx) : max(0, 26 - max(0, dx))] = True
    assert torch.equal(back.images[0][:, kept], x[0][:, kept])
