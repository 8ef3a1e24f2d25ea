"""Random and plain views: every sample on its own, against a loop over samples, ready-made recipes, bad input."""

from __future__ import annotations

import colorsys
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from leanlabel.augment import image as module
from leanlabel.augment.colour import Hue
from leanlabel.augment.image import (
    BYOL,
    CIFAR,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MOCO_V1,
    MOCO_V2,
    SIMCLR,
    ViewSettings,
    jitter_factors,
    multi_crop,
    plain_view,
    random_view,
    simclr,
)
from leanlabel.rng import Draw, draw

IDS = torch.tensor([5, 900, 12, 3, 77, 2**40])
OFF = ViewSettings(
    size=8,
    scale=(1.0, 1.0),
    ratio=(1.0, 1.0),
    flip=0.0,
    jitter_probability=0.0,
    grey=0.0,
    blur=0.0,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
# Everything at once, often.
BUSY = ViewSettings(
    size=12,
    scale=(0.1, 1.0),
    jitter=(0.8, 0.8, 0.8, 0.2),
    grey=0.3,
    blur=0.6,
    blur_sigma=(0.1, 1.2),
    solarise=0.4,
    solarise_threshold=0.6,
)


def photos(count: int = 6, height: int = 20, width: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def view_draw(ids: Tensor = IDS, seed: int = 0, t: int = 0) -> Draw:
    return draw(seed, "view", t, ids)


def changed(settings: ViewSettings, **changes: object) -> ViewSettings:
    return ViewSettings.model_validate({**settings.model_dump(), **changes})


def grey_of(image: Tensor) -> Tensor:
    return 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]


def turned(image: Tensor, turns: float) -> Tensor:
    result = image.clone()
    for y, x in itertools.product(range(image.shape[1]), range(image.shape[2])):
        h, s, v = colorsys.rgb_to_hsv(*image[:, y, x].tolist())
        result[:, y, x] = torch.tensor(colorsys.hsv_to_rgb((h + turns) % 1.0, s, v))
    return result


def blurred(image: Tensor, sigma: float, reach: int) -> Tensor:
    weights = torch.tensor([math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)])
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    padded = F.pad(image[None], (reach,) * 4, mode="replicate")[0]
    return F.conv2d(padded[:, None], kernel[None, None])[:, 0]


def naive_view(image: Tensor, settings: ViewSettings, u: list[float]) -> Tensor:
    """One sample from its 33 uniform numbers, step by step."""
    _, H, W = image.shape
    top, left, h, w = 0, 0, H, W
    low, high = (math.log(r) for r in settings.ratio)
    for k in range(10):
        area = H * W * (settings.scale[0] + (settings.scale[1] - settings.scale[0]) * u[k])
        r = math.exp(low + (high - low) * u[10 + k])
        w, h = round(math.sqrt(area * r)), round(math.sqrt(area / r))
        if 0 < w <= W and 0 < h <= H:
            top, left = int(u[20] * (H - h + 1)), int(u[21] * (W - w + 1))
            break
    else:
        raise AssertionError("chosen so that a try fits")
    piece = image[None, :, top : top + h, left : left + w].float() / 255
    view = F.interpolate(piece, (settings.size, settings.size), mode="bilinear", antialias=True)[0]
    if u[22] < settings.flip:
        view = view.flip(2)
    if u[23] < settings.jitter_probability:
        factors = [max(0, 1 - j) + (1 + j - max(0, 1 - j)) * v for j, v in zip(settings.jitter[:3], u[24:27])]
        for kind in list(itertools.permutations(range(4)))[int(u[28] * 24)]:
            if kind == 0:
                view = (view * factors[0]).clamp(0, 1)
            elif kind == 1:
                view = (view * factors[1] + (1 - factors[1]) * grey_of(view).mean()).clamp(0, 1)
            elif kind == 2:
                view = (view * factors[2] + (1 - factors[2]) * grey_of(view)).clamp(0, 1)
            else:
                view = turned(view, settings.jitter[3] * (2 * u[27] - 1))
    if u[29] < settings.grey:
        view = grey_of(view).expand(3, -1, -1)
    if u[30] < settings.blur:
        low, high = settings.blur_sigma
        view = blurred(view, low + (high - low) * u[31], math.ceil(3 * high))
    if u[32] < settings.solarise:
        view = torch.where(view >= settings.solarise_threshold, 1 - view, view)
    return (view - torch.tensor(settings.mean).view(3, 1, 1)) / torch.tensor(settings.std).view(3, 1, 1)


def test_values() -> None:
    """All off: the resized image. One operation at a time: its formula."""
    images = photos(height=8, width=8)
    plain = images / 255
    torch.testing.assert_close(random_view(images, OFF, view_draw()), plain, rtol=0, atol=1e-6)
    flipped = random_view(images, changed(OFF, flip=1.0), view_draw())
    torch.testing.assert_close(flipped, plain.flip(3), rtol=0, atol=1e-6)
    grey = random_view(images, changed(OFF, grey=1.0), view_draw())
    torch.testing.assert_close(grey[:, 0], torch.stack([grey_of(i) for i in plain]), rtol=0, atol=1e-6)
    assert torch.equal(grey[:, 0], grey[:, 2])
    solarised = random_view(images, changed(OFF, solarise=1.0, solarise_threshold=0.0), view_draw())
    torch.testing.assert_close(solarised, 1 - plain, rtol=0, atol=1e-6)
    scaled = random_view(images, changed(OFF, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0)), view_draw())
    torch.testing.assert_close(scaled[:, 0], plain[:, 0] * 2 - 1, rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled[:, 2], plain[:, 2] / 2, rtol=0, atol=1e-6)


def test_values_factors() -> None:
    numbers = torch.tensor([[0.0, 0.25, 0.5, 0.75]])
    torch.testing.assert_close(
        jitter_factors((0.4, 2.0, 0.0, 0.1), numbers), torch.tensor([[0.6, 0.75, 1.0, 0.05]])
    )


def test_values_plain() -> None:
    # 2 x 4 to shorter side 2: nothing to resize, columns 1 and 2 remain.
    image = torch.arange(24.0).reshape(1, 3, 2, 4) / 24
    view = plain_view(image, 2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    torch.testing.assert_close(view, image[..., 1:3])
    view = plain_view(image.mT, 2, mean=(0.5, 0.0, 0.0), std=(0.5, 1.0, 1.0))
    torch.testing.assert_close(view[:, 0], image.mT[:, 0, 1:3] * 2 - 1)


def test_values_recipes() -> None:
    assert (MOCO_V2.size, MOCO_V2.scale, MOCO_V2.jitter_probability, MOCO_V2.grey) == (
        224,
        (0.2, 1.0),
        0.8,
        0.2,
    )
    assert (MOCO_V2.blur, MOCO_V2.blur_sigma, MOCO_V2.jitter) == (0.5, (0.1, 2.0), (0.4, 0.4, 0.4, 0.1))
    assert (MOCO_V1.jitter, MOCO_V1.jitter_probability, MOCO_V1.blur) == ((0.4, 0.4, 0.4, 0.4), 1.0, 0.0)
    assert simclr(1.0) == SIMCLR
    assert SIMCLR.jitter == (0.8, 0.8, 0.8, 0.2)
    assert [view.blur for view in BYOL] == [1.0, 0.1]
    assert [view.solarise for view in BYOL] == [0.0, 0.2]
    assert (CIFAR.size, CIFAR.scale, CIFAR.blur) == (32, (0.08, 1.0), 0.0)


def test_reference() -> None:
    ids, images = torch.arange(40), photos(40)
    numbers = draw(3, "view", 1, ids).uniform(33).double().tolist()
    views = random_view(images, BUSY, draw(3, "view", 1, ids))
    for image, row, view in zip(images, numbers, views, strict=True):
        # A value at the solarisation's threshold turns rounding into a step.
        error = (view - naive_view(image, BUSY, row)).abs()
        assert float((error < 1e-4).float().mean()) > 0.99
        assert float(error.median()) < 1e-5
    smooth = changed(BUSY, solarise=0.0)
    views = random_view(images, smooth, draw(3, "view", 1, ids))
    expected = torch.stack([naive_view(i, smooth, row) for i, row in zip(images, numbers, strict=True)])
    torch.testing.assert_close(views, expected, rtol=0, atol=1e-4)


def test_reference_plain() -> None:
    for height, width, size, shorter in (
        (20, 31, 8, 10),
        (31, 20, 10, None),
        (9, 9, 12, 16),
        (10, 14, 7, 10),
    ):
        images = photos(height=height, width=width)
        short = size if shorter is None else shorter
        new = (short, int(short * width / height)) if height < width else (int(short * height / width), short)
        expected = F.interpolate(images / 255, new, mode="bilinear", antialias=True)
        top, left = round((new[0] - size) / 2), round((new[1] - size) / 2)
        expected = expected[..., top : top + size, left : left + size]
        expected = (expected - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(
            3, 1, 1
        )
        for form in (images, list(images), images / 255):
            view = plain_view(form, size, resize=shorter, mean=IMAGENET_MEAN, std=IMAGENET_STD)
            torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)
            assert view.is_contiguous()


@pytest.mark.parametrize("hue", ["hsv", "fast"])
@pytest.mark.parametrize("form", ["batch", "list", "ragged"])
def test_reference_alone(form: str, hue: Hue) -> None:
    """A sample's view is the same alone, in another batch, at another place and in another tile."""
    settings = changed(BUSY, hue=hue)
    images: Tensor | list[Tensor] = photos()
    if form != "batch":
        images = [image[:, : 20 - k * (form == "ragged")] for k, image in enumerate(images)]
    together = random_view(images, settings, view_draw())
    for k in range(6):
        alone = random_view(images[k : k + 1], settings, view_draw(IDS[k : k + 1]))
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=1e-5)
    back = random_view([images[k] for k in range(5, -1, -1)], settings, view_draw(IDS.flip(0)))
    torch.testing.assert_close(back.flip(0), together, rtol=0, atol=1e-5)


def test_reference_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    images, whole = photos(), random_view(photos(), BUSY, view_draw())
    monkeypatch.setattr(module, "_TILE", 2 * 3 * 12 * 12)
    torch.testing.assert_close(random_view(images, BUSY, view_draw()), whole, rtol=0, atol=1e-5)


def test_reference_draws() -> None:
    """Fixed by (seed, t, id); nothing is taken from or left in global generators; operations draw independently."""
    images, state = photos(), torch.get_rng_state()
    first = random_view(images, BUSY, view_draw())
    assert torch.equal(first, random_view(images, BUSY, view_draw()))
    assert torch.equal(torch.get_rng_state(), state)
    for other in (view_draw(seed=1), view_draw(t=1), view_draw(IDS + 1)):
        assert not torch.allclose(first, random_view(images, BUSY, other))
    without = changed(BUSY, solarise=0.0, blur=0.0, grey=0.0, jitter_probability=0.0)
    solarised = changed(without, solarise=0.4)
    same = (
        (random_view(images, without, view_draw()) == random_view(images, solarised, view_draw()))
        .flatten(1)
        .all(1)
    )
    assert 0 < int(same.sum()) < 6, "the window must not move when another operation is switched on"


def test_reference_shares() -> None:
    """Operations come as often as they should (4,000 samples: standard error 0.008)."""
    images, ids = photos(1, 4, 4).expand(4000, 3, 4, 4), torch.arange(4000)
    base = random_view(images, changed(OFF, size=4), draw(0, "share", 0, ids))
    for name in ("flip", "grey", "solarise", "blur", "jitter_probability"):
        settings = changed(OFF, size=4, solarise_threshold=0.1, **{name: 0.3})
        view = random_view(images, settings, draw(0, "share", 0, ids))
        share = float(((view - base).abs() > 1e-6).flatten(1).any(1).float().mean())
        assert abs(share - 0.3) < 0.03, name


def test_dtypes() -> None:
    images = photos()
    expected = random_view(images, changed(BUSY, solarise=0.0), view_draw())
    assert expected.dtype == torch.float32
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-4), (torch.bfloat16, 0.2)):
        view = random_view((images / 255).to(dtype), changed(BUSY, solarise=0.0), view_draw())
        assert view.dtype == torch.float32
        torch.testing.assert_close(view, expected, rtol=0, atol=tolerance)
    leaf = (images / 255).requires_grad_()
    assert not random_view(leaf, BUSY, view_draw()).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = random_view(images, changed(BUSY, solarise=0.0), view_draw())
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-6)


def test_degenerate() -> None:
    images = photos()
    before = images.clone()
    for height, width in ((1, 1), (1, 200), (200, 1), (3, 2)):
        view = random_view(photos(height=height, width=width), BUSY, view_draw())
        assert view.shape == (6, 3, 12, 12)
        assert bool(view.isfinite().all())
        plain = plain_view(photos(height=height, width=width), 4, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        assert plain.shape == (6, 3, 4, 4)
    assert random_view(images, changed(BUSY, size=1), view_draw()).shape == (6, 3, 1, 1)
    for empty in (images[:0], []):
        assert random_view(empty, BUSY, view_draw(IDS[:0])).shape == (0, 3, 12, 12)
        assert plain_view(empty, 4, mean=IMAGENET_MEAN, std=IMAGENET_STD).shape == (0, 3, 4, 4)
    assert torch.equal(images, before)
    floats = (images / 255)[..., :16, :].contiguous()
    kept = floats.clone()
    for form in (floats, list(floats)):
        random_view(form, changed(OFF, size=16, solarise=1.0), view_draw())
        plain_view(form, 16, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert torch.equal(floats, kept), "the caller's images must stay as they are"


@given(
    st.integers(0, 10**6),
    st.sampled_from([(5, 5), (1, 9), (30, 4)]),
    st.sampled_from(["hsv", "fast"]),
    st.sampled_from(["uint8", "float", "list"]),
)
@hypothesis_settings(max_examples=40)
def test_degenerate_range(seed: int, size: tuple[int, int], hue: Hue, form: str) -> None:
    """Before normalisation values are in [0, 1]."""
    images = photos(4, *size, seed=seed)
    settings = changed(
        BUSY, size=7, hue=hue, solarise=0.5, blur=0.5, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    given_ = {"uint8": images, "float": images / 255, "list": list(images)}[form]
    view = random_view(given_, settings, view_draw(torch.arange(4), seed))
    assert float(view.min()) >= -1e-6
    assert float(view.max()) <= 1 + 1e-6


def test_degenerate_multi_crop() -> None:
    images = photos()
    views = multi_crop(images, BUSY, 2, changed(BUSY, size=5), 3, lambda k: draw(0, f"view {k}", 0, IDS))
    assert [view.shape[-1] for view in views] == [12, 12, 5, 5, 5]
    assert torch.equal(views[1], random_view(images, BUSY, draw(0, "view 1", 0, IDS)))
    assert not torch.allclose(views[0], views[1])
    assert multi_crop(images, BUSY, 0, BUSY, 0, lambda k: view_draw()) == []


def test_errors() -> None:
    images = photos()
    with pytest.raises(ValueError, match=r"image 0 must be RGB, \(3, h, w\), got \(1, 20, 16\)"):
        random_view(images[:, :1], BUSY, view_draw())
    with pytest.raises(ValueError, match=r"image 1 must be RGB.*got \(20, 16\)"):
        random_view([images[0], images[1, 0]], BUSY, view_draw(IDS[:2]))
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(3, 20, 16\)"):
        random_view(images[0], BUSY, view_draw())
    with pytest.raises(ValueError, match=r"image 0 has no pixels: \(3, 0, 16\)"):
        plain_view(images[:, :, :0], 4, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with pytest.raises(ValueError, match=r"uint8 or floating point, got torch\.int64"):
        random_view(images.long(), BUSY, view_draw())
    with pytest.raises(ValueError, match=r"6 images need a draw with as many ids, got numbers \(2, 33\)"):
        random_view(images, BUSY, view_draw(IDS[:2]))
    with pytest.raises(ValueError, match=r"6 images need a draw with as many ids, got numbers \(33,\)"):
        random_view(images, BUSY, draw(0, "view", 0))
    with pytest.raises(ValueError, match="side 9 must fit into the image resized to 8"):
        plain_view(images, 9, resize=8, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size", 0, "greater than or equal to 1"),
        ("scale", (0.5, 0.2), "the smaller limit first"),
        ("scale", (0.5, 1.5), "at most 1"),
        ("ratio", (0.0, 1.0), "greater than 0"),
        ("jitter", (0.4, 0.4, 0.4, 0.6), "at most 0.5"),
        ("jitter", (0.4, -0.4, 0.4, 0.1), "greater than or equal to 0"),
        ("blur_sigma", (0.0, 2.0), "greater than 0"),
        ("flip", 1.5, "less than or equal to 1"),
        ("std", (1.0, 0.0, 1.0), "greater than 0"),
        ("hue", "hsl", "'hsv' or 'fast'"),
    ],
)
def test_errors_settings(key: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ViewSettings.model_validate({key: value})


@pytest.mark.gpu
def test_reference_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = photos(64, 40, 30)
    for hue in ("hsv", "fast"):
        for size in (32, 96):
            settings = changed(MOCO_V2, size=size, hue=hue, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
            here = random_view(images, settings, draw(0, "view", 0, torch.arange(64)))
            for form in (images.cuda(), [image.cuda() for image in images]):
                there = random_view(form, settings, draw(0, "view", 0, torch.arange(64), device="cuda"))
                torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-5)
    here = plain_view(images, 24, resize=28, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    there = plain_view(images.cuda(), 24, resize=28, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-5)
