from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from leanlabel.data.generated.glyphs import STYLES, glyph_images
from leanlabel.data.images import Images, fingerprint
from leanlabel.errors import InputError

BLACK_ON_WHITE: dict[str, Any] = {"distortion": 0.0, "background": 0.0, "colour": 0.0}


def _pixels(images: Images) -> Tensor:
    pixels = images.read(range(len(images)))
    assert isinstance(pixels, Tensor)
    return pixels


def _labels(images: Images) -> Tensor:
    assert images.y is not None
    return images.y


def _domain(images: Images) -> Tensor:
    assert images.domain is not None
    return images.domain


def _luma(pixels: Tensor) -> Tensor:
    return (pixels.double() / 255 * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1)


def test_values() -> None:
    images = glyph_images(classes=12, per_class=20, size=24, seed=3)
    assert images.shape == (3, 24, 24)
    assert _pixels(images).dtype == torch.uint8
    assert torch.equal(_labels(images), torch.arange(12).repeat_interleave(20))
    assert images.class_names is not None
    assert images.ids is not None
    codes = [int(name[2:].split()[0], 16) for name in images.class_names]
    assert codes == sorted(set(codes))
    assert images.class_names == [f"U+{code:04X} {chr(code)}" for code in codes]
    assert images.ids[21] == f"U+{codes[1]:04X}/00001"
    assert len(set(images.ids)) == 240
    assert images.facts["distortion"] == 1.0
    assert images.facts["alike"] == 0.7


def test_values_styles() -> None:
    """Every style is a domain; fewer styles leave the classes as they are."""
    images = glyph_images(classes=10, per_class=40, size=16, seed=1)
    assert images.domain_names == list(STYLES)
    assert torch.bincount(_domain(images), minlength=12).min() > 15
    part = glyph_images(classes=10, per_class=40, size=16, styles=[8, 0], seed=1)
    assert part.domain_names == ["DejaVuSerif", "DejaVuSans"]
    assert part.class_names == images.class_names
    assert set(_domain(part).tolist()) == {0, 1}


def test_values_domain() -> None:
    """Pictures of one symbol in one style are equal when nothing varies, and differ between styles."""
    images = glyph_images(classes=4, per_class=60, size=16, seed=2, **BLACK_ON_WHITE)
    pixels = _pixels(images)
    for label in range(4):
        pictures = [pixels[(_labels(images) == label) & (_domain(images) == d)] for d in range(12)]
        assert all(bool((p == p[:1]).all()) for p in pictures)
        regular, bold = (
            pixels[(_labels(images) == label) & (_domain(images) == d)][0].double().mean() for d in (0, 1)
        )
        assert regular != bold


def test_values_splits() -> None:
    images = glyph_images(classes=5, per_class=40, size=16, test_share=0.25, val_share=0.1)
    assert {name: len(rows) for name, rows in images.splits.items()} == {"train": 130, "val": 20, "test": 50}
    assert torch.cat(list(images.splits.values())).sort().values.equal(torch.arange(200))
    for rows, each in ((images.splits["val"], 4), (images.splits["test"], 10)):
        assert torch.bincount(_labels(images)[rows]).tolist() == [each] * 5


def test_values_colour() -> None:
    """Black on white at 0; otherwise the symbol's brightness is at least 0.5^colour from its ground."""
    still: dict[str, Any] = {"classes": 8, "per_class": 30, "size": 32, "background": 0.0, "seed": 4}
    plain = _pixels(glyph_images(**still, colour=0.0))
    assert plain[:, 0].equal(plain[:, 1])
    assert plain[:, 0].equal(plain[:, 2])
    assert plain[:, :, 0, 0].min() == 255
    assert plain.flatten(1).min(1).values.max() < 90
    for colour, least in ((1.0, 0.5), (2.0, 0.25)):
        luma = _luma(_pixels(glyph_images(**still, distortion=0.0, colour=colour))).flatten(1)
        ground = luma[:, 0]
        gap = (luma - ground[:, None]).abs().amax(1)
        # A stroke thinner than a pixel is mixed with the ground, so the medians are compared.
        assert gap.median() > least
        assert gap.min() > 0.6 * least
    assert 0.3 < float((luma.mean(1) > ground).double().mean()) < 0.7


def test_values_background() -> None:
    """Without background the edge of a centred picture is one colour; with it, all but few pixels differ."""
    still: dict[str, Any] = {"classes": 6, "per_class": 8, "size": 32, "distortion": 0.0, "seed": 5}
    for background, low, high in ((0.0, 1, 1), (1.0, 8, 64), (2.0, 8, 64)):
        pixels = _pixels(glyph_images(**still, background=background))
        rim = torch.cat([pixels[:, :, 0], pixels[:, :, -1]], 2)
        colours = [len(torch.unique(picture, dim=1).T) for picture in rim]
        assert low <= min(colours)
        assert max(colours) <= high


def test_values_distortion() -> None:
    """Ink stays inside the picture, and is smaller and off centre when distorted."""
    shares, shifts = [], []
    for distortion in (0.0, 1.0, 2.0):
        images = glyph_images(
            classes=20, per_class=20, distortion=distortion, background=0.0, colour=0.0, seed=6
        )
        ink = _pixels(images)[:, 0] < 250
        assert not ink[:, [0, -1]].any()
        assert not ink[:, :, [0, -1]].any()
        assert ink.flatten(1).any(1).all()
        used = [ink.any(axis).double() for axis in (1, 2)]
        shares.append(float(torch.stack([u.sum(1) for u in used]).amax(0).mean()) / 32)
        middles = torch.stack([(u * torch.arange(32)).sum(1) / u.sum(1) for u in used])
        shifts.append(float((middles - 15.5).abs().mean()))
    assert shares[0] > 0.9
    assert shares[0] > shares[1] + 0.1
    assert shares[1] > shares[2] + 0.05
    assert shifts[0] < 0.5
    assert shifts[1] > 2
    assert shifts[2] > shifts[1]


def test_reference() -> None:
    """No two classes share a shape: 16 x 16 means of upright pictures correlate by little in every style."""
    images = glyph_images(classes=60, per_class=1, size=32, styles=[4], seed=7, **BLACK_ON_WHITE)
    first = 255 - _pixels(images)[:, 0].double()
    small = torch.nn.functional.avg_pool2d(first[:, None], 2).flatten(1)
    likeness = torch.corrcoef(small) - 2 * torch.eye(60)
    assert likeness.max() < 0.8


def test_reference_pixels() -> None:
    """Raw pixels are poor features: the nearest neighbour is seldom of the class, unless nothing varies."""
    rates = []
    for dials in ({}, BLACK_ON_WHITE):
        images = glyph_images(classes=40, per_class=16, size=16, val_share=0.0, seed=8, **dials)
        rows = _pixels(images).flatten(1).float()
        train, test = images.splits["train"], images.splits["test"]
        nearest = train[torch.cdist(rows[test], rows[train]).argmin(1)]
        rates.append(float((_labels(images)[nearest] == _labels(images)[test]).double().mean()))
    assert rates[0] < 0.2
    assert rates[1] > 0.8


def test_degenerate() -> None:
    images = glyph_images(classes=2, per_class=1, size=16, styles=[11], distortion=2, background=2, colour=2)
    assert {name: rows.tolist() for name, rows in images.splits.items()} == {"train": [0, 1]}
    whole = glyph_images(classes=2, per_class=4, size=17, test_share=0.0, val_share=0.0)
    assert list(whole.splits) == ["train"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"classes": 1001}, "classes must be >= 2 and <= 1000, got 1001"),
        ({"classes": 1}, "classes must be >= 2"),
        ({"per_class": 0}, "per_class must be >= 1"),
        ({"size": 15}, "size must be >= 16, got 15"),
        ({"distortion": 2.5}, "distortion must be >= 0 and <= 2, got 2.5"),
        ({"background": float("nan")}, "background must be"),
        ({"colour": -0.1}, "colour must be"),
        ({"test_share": 0.5, "val_share": 0.5}, r"test_share \+ val_share must be < 1, got 0.5 \+ 0.5"),
        ({"styles": []}, "styles must be different numbers from 0 to 11"),
        ({"styles": [0, 12]}, "styles must be different numbers"),
        ({"styles": [3, 3]}, "styles must be different numbers"),
        ({"seed": -1}, "seed must be >= 0"),
    ],
)
def test_errors(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        glyph_images(**setting)


def test_errors_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("matplotlib", "PIL") else find(name, *rest),
    )
    # Fonts and symbols found earlier in this process are remembered.
    from leanlabel.data.generated import glyphs

    for kept in (glyphs._candidates, glyphs._shape, glyphs._font):
        kept.cache_clear()
    with pytest.raises(InputError, match=r"need matplotlib and Pillow.*pip install 'leanlabel\[vision\]'"):
        glyph_images(classes=2, per_class=1)


def test_state() -> None:
    first = glyph_images(classes=6, per_class=6, size=16, seed=9)
    assert fingerprint(first) == fingerprint(glyph_images(classes=6, per_class=6, size=16, seed=9))
    other = glyph_images(classes=6, per_class=6, size=16, seed=10)
    assert other.class_names != first.class_names


@pytest.mark.parametrize("size", [16, 21])
def test_chunked(size: int) -> None:
    """The first pictures of a class, their styles and splits do not depend on how many follow."""
    few = glyph_images(classes=5, per_class=7, size=size, seed=11)
    many = glyph_images(classes=5, per_class=300, size=size, seed=11)
    rows = (torch.arange(5)[:, None] * 300 + torch.arange(7)).flatten()
    assert _pixels(few).equal(_pixels(many)[rows])
    assert _domain(few).equal(_domain(many)[rows])
    for name, chosen in few.splits.items():
        same = (rows[:, None] == many.splits[name]).any(1).nonzero().squeeze(1)
        assert same.equal(chosen)
