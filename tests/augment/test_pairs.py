"""Random crops of images with masks: identity, the same places, every sample on its own, chosen windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from leanlabel.augment.colour import ORDERS, jitter_
from leanlabel.augment.geometry import apply_image, apply_mask, outside
from leanlabel.augment.image import jitter_factors
from leanlabel.augment.pairs import Pair, PairSettings, colours, plain_image, random_pair, standardised
from leanlabel.augment.photometric import COLOUR_DRAWS, ColourSettings
from leanlabel.augment.resample import gaussian_blur
from leanlabel.errors import InputError
from leanlabel.rng import Draw, draw

IDS = torch.tensor([5, 900, 12, 3, 77, 2**40])
OFF: dict[str, Any] = {"flip": 0.0, "mean": (0.0,), "std": (1.0,)}
BUSY = PairSettings(
    crop=(20, 26),
    scale=(0.4, 2.0),
    rotate=20.0,
    shear=8.0,
    affine_probability=0.6,
    elastic=2.0,
    elastic_probability=0.6,
    jitter=(0.5, 0.5, 0.5, 0.2),
    gamma=0.5,
    grey=0.3,
    blur=0.5,
    noise=0.5,
    max_share=0.6,
    wanted_pixels=40,
)


def photos(count: int = 6, height: int = 30, width: int = 40, seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def label_maps(count: int = 6, height: int = 30, width: int = 40, seed: int = 1, classes: int = 4) -> Tensor:
    """Blocks of classes, a few unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(classes + 1, (count, 1, 6, 8), generator=generator)
    coarse[coarse == classes] = 255
    return F.interpolate(coarse.float(), (height, width), mode="nearest")[:, 0].byte()


def pair_draw(ids: Tensor = IDS, seed: int = 0, t: int = 0) -> Draw:
    return draw(seed, "pair", t, ids)


def same(one: Pair, other: Pair) -> None:
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-5)
    assert one.masks is not None
    assert other.masks is not None
    assert torch.equal(one.masks, other.masks)


def test_values() -> None:
    """All off: the image and mask as they are. A mirror mirrors both. Normalised."""
    images, masks = photos(), label_maps()
    for form in (images, images / 255, list(images)):
        pair = random_pair(form, masks, PairSettings(**OFF), pair_draw())
        torch.testing.assert_close(pair.images, images / 255, rtol=0, atol=1e-6)
        assert pair.masks is not None
        assert torch.equal(pair.masks, masks)
    cropped = random_pair(images, masks, PairSettings(**OFF, crop=(30, 40)), pair_draw())
    assert torch.equal(cropped.images, images / 255)
    flipped = random_pair(images, masks, PairSettings(**{**OFF, "flip": 1.0}), pair_draw())
    assert torch.equal(flipped.images, (images / 255).flip(3))
    assert flipped.masks is not None
    assert torch.equal(flipped.masks, masks.flip(2))
    scaled = random_pair(
        images, None, PairSettings(flip=0.0, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0)), pair_draw()
    )
    assert scaled.masks is None
    torch.testing.assert_close(scaled.images[:, 0], images[:, 0] / 255 * 2 - 1, rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.images[:, 2], images[:, 2] / 510, rtol=0, atol=1e-6)


def test_values_base() -> None:
    """Whole images to a shorter side; crops of what is thought resized."""
    images, masks = photos(), label_maps()
    pair = random_pair(images, masks, PairSettings(**OFF, base=15), pair_draw())
    expected = F.interpolate(images / 255, (15, 20), mode="bilinear", antialias=True)
    torch.testing.assert_close(pair.images, expected, rtol=0, atol=1e-5)
    assert pair.masks is not None
    assert torch.equal(pair.masks, masks[:, 1::2, 1::2])
    pair = random_pair(images, masks, PairSettings(**OFF, base=60, crop=(20, 20)), pair_draw())
    assert pair.geometry.source[:, 2:].unique(dim=0).tolist() == [[10, 10]]


def test_values_padding() -> None:
    """Beyond the image: 255 in masks, and exactly the fill in images, whatever happens to the colours."""
    images, masks = photos(), torch.zeros(6, 30, 40, dtype=torch.uint8)
    fills: tuple[tuple[Any, tuple[float, ...]], ...] = (
        ("mean", (0.0, 0.0, 0.0)),
        ("black", (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225)),
    )
    places: set[tuple[int, ...]] = set()
    for fill, expected in fills:
        for turn, strength in ((0.0, 0.0), (30.0, 2.0)):
            settings = PairSettings(
                crop=(50, 44),
                jitter=(0.5, 0.5, 0.5, 0.2),
                gamma=1.0,
                noise=1.0,
                blur=1.0,
                fill=fill,
                rotate=turn,
                elastic=strength,
            )
            pair = random_pair(images, masks, settings, pair_draw())
            assert pair.masks is not None
            beyond = outside(pair.geometry)
            assert torch.equal(pair.masks == 255, beyond)
            assert int(beyond.sum()) >= 6 * (50 * 44 - 30 * 40)
            padding = pair.images.movedim(1, 3)[beyond]
            torch.testing.assert_close(padding, torch.tensor(expected).expand_as(padding), rtol=0, atol=1e-5)
            places |= {tuple(row) for row in pair.geometry.target[:, :2].tolist()}
    assert len(places) > 2, "the image stands at random places"


def test_values_scales() -> None:
    """The laws of the factor (1,500 samples: standard error 0.013); windows have crop / factor pixels."""
    ids, images = torch.arange(1500), torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1500, 1, 100, 100)
    laws: dict[Any, float] = {"uniform": 1 / 3, "log": 0.5, "halves": 0.5}
    for law, share in laws.items():
        settings = PairSettings(**OFF, crop=(40, 40), scale=(0.5, 2.0), scale_law=law)
        factors = 40 / random_pair(images, None, settings, pair_draw(ids)).geometry.source[:, 2].double()
        assert 0.49 < float(factors.min()) < 0.52
        assert 1.9 < float(factors.max()) < 2.1
        assert abs(float((factors < 1).double().mean()) - share) < 0.04, law


def test_values_shares() -> None:
    """Mirrors, turns and bends come as often as they should, and turn both ways."""
    ids, images = torch.arange(1500), torch.zeros(1500, 1, 4, 4, dtype=torch.uint8)
    settings = PairSettings(
        **{**OFF, "flip": 0.3},
        rotate=30.0,
        shear=10.0,
        affine_probability=0.4,
        elastic=1.0,
        elastic_probability=0.2,
    )
    geometry = random_pair(images, None, settings, pair_draw(ids)).geometry
    assert geometry.warp is not None
    assert geometry.bend is not None
    turned = (geometry.warp != torch.eye(2)).flatten(1).any(1)
    bent = geometry.bend.flatten(1).any(1)
    for flags, share in ((geometry.mirrored, 0.3), (turned, 0.4), (bent, 0.2)):
        assert abs(float(flags.float().mean()) - share) < 0.05
    for one, other, share in (
        (turned, bent, 0.08),
        (turned, geometry.mirrored, 0.12),
        (bent, geometry.mirrored, 0.06),
    ):
        assert abs(float((one & other).float().mean()) - share) < 0.03, "independent"
    sine = geometry.warp[turned, 0, 1]
    assert 0.45 < float(sine.max()) <= 0.5
    assert -0.5 <= float(sine.min()) < -0.45
    assert 0.9 < float(geometry.bend.abs().max()) <= 1


def test_values_colours() -> None:
    """One colour change at a time against its formula, from the sample's own numbers."""
    x = photos().float() / 255
    u = pair_draw().uniform(COLOUR_DRAWS)
    cases: dict[str, tuple[ColourSettings, Tensor]] = {}
    settings = ColourSettings(jitter=(0.5, 0.4, 0.3, 0.2), jitter_probability=1.0)
    orders = (u[:, 5].double() * len(ORDERS)).long()
    cases["jitter"] = (
        settings,
        jitter_(x.clone(), torch.arange(6), jitter_factors(settings.jitter, u[:, 1:5]), orders),
    )
    power = torch.tensor(0.5) * torch.tensor(4.0) ** u[:, 7]
    settings = ColourSettings(gamma=1.0, gamma_range=(0.5, 2.0))
    cases["gamma"] = settings, x ** power.view(-1, 1, 1, 1)
    grey = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    cases["grey"] = ColourSettings(grey=1.0), grey.expand_as(x)
    settings = ColourSettings(blur=1.0, blur_sigma=(0.5, 1.0))
    cases["blur"] = settings, gaussian_blur(x, 0.5 + 0.5 * u[:, 10], 1.0)
    for name, (settings, expected) in cases.items():
        before = x.clone()
        torch.testing.assert_close(colours(x, settings, pair_draw()), expected, rtol=0, atol=1e-5, msg=name)
        assert torch.equal(x, before)
        pair = random_pair(x, None, PairSettings(**OFF, **settings.model_dump()), pair_draw())
        assert pair.images.shape == x.shape
        assert not torch.allclose(pair.images, x, atol=1e-3)


def test_values_noise() -> None:
    """Normal, with the sample's own width, independent between samples and channels."""
    x = torch.full((3, 3, 64, 64), 0.5)
    settings = ColourSettings(noise=1.0, noise_sigma=(0.01, 0.1))
    source = pair_draw(IDS[:3])
    noise = colours(x, settings, source) - 0.5
    sigma = 0.01 + 0.09 * pair_draw(IDS[:3]).uniform(COLOUR_DRAWS)[:, 12]
    torch.testing.assert_close(noise.flatten(1).std(1), sigma, rtol=0.03, atol=0)
    assert float(noise.flatten(1).mean(1).abs().max()) < 0.004
    standard = (noise / sigma.view(-1, 1, 1, 1)).flatten()
    assert float(standard.abs().max()) > 3.2
    assert float((standard**4).mean()) == pytest.approx(3, abs=0.2)
    correlation = torch.corrcoef(noise.reshape(9, -1)) - torch.eye(9)
    assert float(correlation.abs().max()) < 0.08


def test_values_plain() -> None:
    image = photos(1)[0]
    expected = (image / 255 - 0.25) / 0.5
    torch.testing.assert_close(plain_image(image, (0.25,), (0.5,)), expected, rtol=0, atol=1e-6)
    before = (image / 255).clone()
    torch.testing.assert_close(plain_image(before, (0.25,) * 3, (0.5,) * 3), expected, rtol=0, atol=1e-6)
    assert torch.equal(before, image / 255), "the caller's image must stay as it is"
    whole = random_pair(image[None], None, PairSettings(flip=0.0), pair_draw(IDS[:1]))
    torch.testing.assert_close(whole.images[0], plain_image(image, PairSettings().mean, PairSettings().std))


@pytest.mark.parametrize("kind", ["plain", "affine", "elastic", "both"])
def test_reference_same_places(kind: str) -> None:
    """An image whose values are places, and a mask of cells: every pixel lies in its cell within half a pixel."""
    height, width, cell = 60, 80, 5
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    image = torch.stack([y[:, None].expand(-1, width), x.expand(height, -1)])
    rows, columns = torch.arange(height) // cell, torch.arange(width) // cell
    mask = (rows[:, None] * (width // cell) + columns).byte()
    settings = PairSettings(
        **{**OFF, "flip": 0.5},
        crop=(40, 48),
        scale=(0.5, 2.0),
        rotate=25.0 if kind in ("affine", "both") else 0.0,
        shear=10.0 if kind in ("affine", "both") else 0.0,
        elastic=4.0 if kind in ("elastic", "both") else 0.0,
    )
    images, masks = image.expand(12, -1, -1, -1), mask.expand(12, -1, -1)
    pair = random_pair(images, masks, settings, pair_draw(torch.arange(12)))
    assert pair.masks is not None
    labelled = pair.masks != 255
    assert 0.3 < float(labelled.float().mean()) <= 1
    step = (pair.geometry.source[:, 2:] / pair.geometry.target[:, 2:]).clamp(min=1)
    row, column = pair.masks.long() // (width // cell), pair.masks.long() % (width // cell)
    for axis, (number, length) in enumerate(((row, height), (column, width))):
        place = pair.images[:, axis] * length
        half = 0.52 * step[:, axis, None, None]
        inside = (place >= number * cell - half) & (place <= (number + 1) * cell + half)
        assert bool(inside[labelled].all())
    # The geometry moves other maps of the same images to the same places.
    assert torch.equal(apply_mask(pair.geometry, masks), pair.masks)
    again = apply_image(pair.geometry, images)
    torch.testing.assert_close(again[:, 0][labelled], pair.images[:, 0][labelled], rtol=0, atol=1e-6)


@given(st.integers(0, 10**6), st.permutations(range(6)), st.sampled_from(["batch", "list", "ragged"]))
def test_reference_order(seed: int, order: list[int], form: str) -> None:
    """Permuted samples give permuted results."""
    images, masks = photos(seed=seed), label_maps(seed=seed)
    if form != "batch":
        cut = [30 - 2 * k * (form == "ragged") for k in range(6)]
        images = [image[:, :side] for image, side in zip(images, cut, strict=True)]
        masks = [mask[:side] for mask, side in zip(masks, cut, strict=True)]
    wanted = torch.tensor([0, -1, 2, 3, -1, 1])
    pair = random_pair(images, masks, BUSY, pair_draw(seed=seed), wanted=wanted)
    turned = random_pair(
        [images[k] for k in order],
        [masks[k] for k in order],
        BUSY,
        pair_draw(IDS[order], seed=seed),
        wanted=wanted[order],
    )
    assert pair.masks is not None
    same(turned, Pair(pair.images[order], pair.masks[order], pair.geometry))


def test_reference_alone() -> None:
    """A sample's crop is the same alone, and through tensor or list."""
    images, masks = photos(), label_maps()
    together = random_pair(images, masks, BUSY, pair_draw())
    same(together, random_pair(list(images), list(masks), BUSY, pair_draw()))
    same(together, random_pair(images / 255, masks, BUSY, pair_draw()))
    assert together.masks is not None
    for k in range(6):
        alone = random_pair(images[k : k + 1], masks[k : k + 1], BUSY, pair_draw(IDS[k : k + 1]))
        assert together.masks is not None
        same(alone, Pair(together.images[k : k + 1], together.masks[k : k + 1], alone.geometry))


def test_reference_draws() -> None:
    """Fixed by (seed, t, id); nothing is taken from or left in global generators; operations draw independently."""
    images, masks, state = photos(), label_maps(), torch.get_rng_state()
    first = random_pair(images, masks, BUSY, pair_draw())
    again = random_pair(images, masks, BUSY, pair_draw())
    assert torch.equal(first.images, again.images)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (pair_draw(seed=1), pair_draw(t=1), pair_draw(IDS + 1)):
        assert not torch.allclose(first.images, random_pair(images, masks, BUSY, other).images)
    changes = {
        "jitter_probability": 0.0,
        "gamma": 0.0,
        "grey": 0.0,
        "blur": 0.0,
        "noise": 0.0,
        "elastic": 0.0,
    }
    plain = random_pair(images, masks, BUSY.model_copy(update=changes), pair_draw()).geometry
    for field in ("source", "target", "mirrored", "warp"):
        assert torch.equal(getattr(plain, field), getattr(first.geometry, field)), field


def test_reference_wanted() -> None:
    """A rare class is more often in the crop where it is wanted, and where only one sample wants it, in that one."""
    masks = torch.zeros(200, 60, 80, dtype=torch.uint8)
    spots = draw(0, "spot", 0, torch.arange(200)).uniform(2)
    for mask, (down, across) in zip(masks, spots.tolist(), strict=True):
        mask[int(down * 54) :, int(across * 74) :][:6, :6] = 3
    images = torch.zeros(200, 3, 60, 80, dtype=torch.uint8)
    settings = PairSettings(crop=(24, 24), scale=(0.9, 1.1), wanted_pixels=20)

    def present(wanted: Tensor | None) -> Tensor:
        pair = random_pair(images, masks, settings, pair_draw(torch.arange(200)), wanted=wanted)
        assert pair.masks is not None
        return (pair.masks == 3).flatten(1).sum(1) >= 15

    anywhere, everywhere = present(None), present(torch.full((200,), 3))
    assert float(anywhere.float().mean()) < 0.25
    assert float(everywhere.float().mean()) > 0.65
    half = torch.where(torch.arange(200) < 100, 3, -1)
    assert torch.equal(present(half), torch.where(half == 3, everywhere, anywhere))
    assert torch.equal(present(torch.full((200,), -1)), anywhere)


def test_reference_share() -> None:
    """Fewer crops are almost all one class."""
    masks = torch.zeros(100, 60, 80, dtype=torch.uint8)
    masks[:, :, 60:] = 1
    masks[:, :4] = 255
    images = torch.zeros(100, 3, 60, 80, dtype=torch.uint8)

    def poor(max_share: float) -> float:
        settings = PairSettings(crop=(24, 24), scale=(0.9, 1.1), max_share=max_share)
        pair = random_pair(images, masks, settings, pair_draw(torch.arange(100)))
        assert pair.masks is not None
        counts = torch.stack([(pair.masks == k).flatten(1).sum(1) for k in (0, 1)])
        return float((counts.amax(0) > 0.78 * counts.sum(0)).float().mean())

    assert poor(1.0) > 0.5
    assert poor(0.75) < 0.25


def test_dtypes() -> None:
    images, masks = photos(), label_maps()
    expected = random_pair(images, masks, BUSY, pair_draw())
    assert expected.images.dtype == torch.float32
    assert expected.masks is not None
    assert expected.masks.dtype == torch.uint8
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-4), (torch.bfloat16, 0.4)):
        pair = random_pair((images / 255).to(dtype), masks, BUSY, pair_draw())
        torch.testing.assert_close(pair.images, expected.images, rtol=0, atol=tolerance)
        assert pair.images.dtype == torch.float32
    leaf = (images / 255).requires_grad_()
    assert not random_pair(leaf, masks, BUSY, pair_draw()).images.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = random_pair(images, masks, BUSY, pair_draw())
    torch.testing.assert_close(again.images, expected.images, rtol=0, atol=1e-6)


def test_degenerate() -> None:
    images, masks = photos(), label_maps()
    kept, kept_masks = images.clone(), masks.clone()
    for height, width in ((1, 1), (1, 90), (90, 1), (3, 2)):
        pair = random_pair(
            photos(height=height, width=width), label_maps(height=height, width=width), BUSY, pair_draw()
        )
        assert pair.images.shape == (6, 3, 20, 26)
        assert bool(pair.images.isfinite().all())
    nothing = torch.full_like(masks, 255)
    wanted = torch.full((6,), 2)
    unlabelled = random_pair(images, nothing, BUSY, pair_draw(), wanted=wanted)
    assert unlabelled.masks is not None
    assert bool((unlabelled.masks == 255).all())
    for crop in ((1, 1), (20, 26)):
        settings = BUSY.model_copy(update={"crop": crop})
        for empty, none in ((images[:0], masks[:0]), ([], [])):
            pair = random_pair(empty, none, settings, pair_draw(IDS[:0]))
            assert pair.images.shape == (0, 3, *crop)
            assert pair.masks is not None
            assert pair.masks.shape == (0, *crop)
        assert random_pair(images, masks, settings, pair_draw()).images.shape == (6, 3, *crop)
    assert colours(torch.zeros(0, 3, 4, 4), BUSY, pair_draw(IDS[:0])).shape == (0, 3, 4, 4)
    assert torch.equal(images, kept)
    assert torch.equal(masks, kept_masks)
    floats = images / 255
    before = floats.clone()
    for form in (floats, list(floats)):
        random_pair(
            form, masks, PairSettings(jitter=(0.5, 0.5, 0.5, 0.2), jitter_probability=1.0), pair_draw()
        )
    assert torch.equal(floats, before), "the caller's images must stay as they are"


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_degenerate_bands(channels: int) -> None:
    """Any number of channels, where no colours of red, green and blue are asked for."""
    images = photos(channels=channels)
    settings = PairSettings(
        crop=(20, 20),
        rotate=20.0,
        elastic=1.0,
        gamma=0.5,
        blur=0.5,
        noise=0.5,
        mean=(0.5,) * channels,
        std=(0.2,),
    )
    pair = random_pair(images, label_maps(), settings, pair_draw())
    assert pair.images.shape == (6, channels, 20, 20)
    assert bool(pair.images.isfinite().all())
    refused: list[dict[str, Any]] = [{"jitter": (0.1, 0.0, 0.0, 0.0)}, {"grey": 0.1}]
    for wrong in refused:
        with pytest.raises(InputError, match=f"for RGB images, but these have {channels} channels"):
            random_pair(images, None, settings.model_copy(update=wrong), pair_draw())
        with pytest.raises(InputError, match="for RGB images"):
            colours(images / 255, ColourSettings(**wrong), pair_draw())
    with pytest.raises(InputError, match=f"The images have {channels} channels, but mean has 3"):
        random_pair(images, None, PairSettings(), pair_draw())


@given(st.integers(0, 10**6), st.sampled_from([(5, 5), (1, 9), (40, 30)]))
def test_degenerate_range(seed: int, size: tuple[int, int]) -> None:
    """Before normalisation values are in [0, 1]."""
    settings = BUSY.model_copy(update={"mean": (0.0,), "std": (1.0,)})
    pair = random_pair(photos(6, *size, seed=seed), None, settings, pair_draw(seed=seed))
    assert float(pair.images.min()) >= -1e-6
    assert float(pair.images.max()) <= 1 + 1e-6
    strong = colours(photos(6, *size, seed=seed) / 255, settings, pair_draw(seed=seed))
    assert float(strong.min()) >= -1e-6
    assert float(strong.max()) <= 1 + 1e-6


def test_errors() -> None:
    images, masks = photos(), label_maps()
    with pytest.raises(InputError, match="Image 2 of the batch has 30 x 40 pixels, its mask 20 x 40"):
        random_pair(list(images), [*masks[:2], masks[2][:20], *masks[3:]], BUSY, pair_draw())
    with pytest.raises(InputError, match="Whole images of a batch must have one size, got 20 x 40, 30 x 40"):
        random_pair([images[0], images[1][:, :20]], None, PairSettings(), pair_draw(IDS[:2]))
    for call, message in (
        (
            lambda: random_pair(images, masks, BUSY, pair_draw(IDS[:2])),
            "6 images need a draw with as many ids",
        ),
        (lambda: random_pair(images, masks[:2], BUSY, pair_draw()), "6 images need as many masks, got 2"),
        (lambda: random_pair(images, masks.long(), BUSY, pair_draw()), "mask 0 must be"),
        (lambda: random_pair(images[0], masks, BUSY, pair_draw()), "images must be"),
        (lambda: random_pair(images.int(), masks, BUSY, pair_draw()), "must be uint8 or floating point"),
        (lambda: random_pair([images[0], images[1, :2]], None, BUSY, pair_draw()), "image 1 must be"),
        (lambda: random_pair(images, None, BUSY, pair_draw(), wanted=torch.zeros(6)), "without masks"),
        (lambda: random_pair(images, masks, BUSY, pair_draw(), wanted=torch.zeros(5)), "wanted must be"),
        (lambda: colours(images, BUSY, pair_draw()), "floating point"),
        (lambda: colours(images / 255, BUSY, pair_draw(IDS[:1])), "6 images need a draw"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(InputError, match="mean has 2 and std 1 numbers"):
        standardised(torch.zeros(3, 1, 1), (0.0, 0.0), (1.0,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": (0.5, 2.0)}, "set crop, or leave scale"),
        ({"crop": (8, 8), "scale": (2.0, 0.5)}, "the smaller limit first"),
        ({"crop": (0, 8)}, "greater than or equal to 1"),
        ({"crop": (8, 8), "scale": (1.5, 2.0), "scale_law": "halves"}, "scale_law halves"),
        ({"jitter": (0.0, 0.0, 0.0, 0.6)}, "half a turn"),
        ({"gamma_range": (2.0, 1.0)}, "the smaller limit first"),
        ({"max_share": 0.0}, "greater than 0"),
        ({"rotate": 200.0}, "less than or equal to 180"),
        ({"shear": 85.0}, "less than 80"),
        ({"elastic_grid": 1}, "greater than or equal to 2"),
        ({"std": (0.0,)}, "greater than 0"),
        ({"rotat": 5.0}, "Extra inputs"),
    ],
)
def test_errors_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PairSettings.model_validate(changes)
