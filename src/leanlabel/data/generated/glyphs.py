"""Pictures of symbols: up to 1,000 known classes, twelve type styles as domains, dials for the nuisance."""

from __future__ import annotations

import functools
import importlib.util
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel.data.images import Images, PixelArray
from leanlabel.errors import InputError
from leanlabel.rng import Draw, draw

STYLES = tuple(
    f"DejaVu{family}{cut}"
    for family, slanted in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for cut in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
)
"""The text styles, in the order of `styles` and of the domains; names of the font files without .ttf."""

MOST_CLASSES = 1000
PER_CLASS_LIMIT = 1 << 20
# Side of the small pictures that decide whether two symbols look alike, and the font size they are drawn at.
SHAPE = 16
SHAPE_FONT = 48
# Correlations above which two symbols count as alike, tried from the strictest on until enough remain.
ALIKE = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
# Longest over shortest side of a symbol's ink: beyond it the strokes of a dash vanish in small pictures.
SLENDER = 6.0
# Combining marks, spaces, format characters, and the small copies of letters and accents in the modifiers.
NO_SYMBOLS = frozenset({"Mn", "Zs", "Cf", "Lm", "Sk", "Co"})
# Lines and blocks that differ in their place in the cell, which the pictures do not keep.
BOX_DRAWING = range(0x2500, 0x25A0)
LUMA = (0.299, 0.587, 0.114)
# Pictures painted, and candidates compared, at a time; parts of a texture.
ROWS, BLOCK = 1024, 64
BLOBS, CELLS = 5, 6


def glyph_images(
    *,
    classes: int = 200,
    per_class: int = 50,
    size: int = 32,
    distortion: float = 1.0,
    background: float = 1.0,
    colour: float = 1.0,
    styles: Sequence[int] | None = None,
    test_share: float = 0.25,
    val_share: float = 0.1,
    seed: int = 0,
) -> Images:
    """Draw labelled pictures of symbols in the twelve DejaVu text styles that matplotlib ships.

    The styles have 2,383 characters in common, 2,363 of them with ink and 2,222 of those pairwise different
    once cut to their ink. Left out here are combining marks, modifiers and box drawing, which are small or
    placed copies of others, and lines more than six times as long as thick. The rest is taken in an order
    that belongs to the seed, composed characters such as É last; a symbol enters if its 16 x 16 picture, cut
    to its ink and scaled to one size, correlates with that of no chosen symbol by more than 0.7 in any style:
    of A, Α and А, or of o and O, one at most. Where fewer than `classes` remain, the limit rises in steps of
    0.05 to 0.95; `facts["alike"]` is the limit used. The choice does not depend on `styles`: two calls with
    the same seed and classes and different styles are two domains of one task.

    Each picture has one style, rotation, shear, aspect, scale, place, colour of symbol and ground, texture
    (gradient, stripes, blobs or soft noise) and pixel noise, all drawn from (seed, symbol, number within the
    class): the first pictures of a class, and the part of the split they are in, stay the same when
    `per_class` grows. A symbol is always inside the picture as a whole, and its brightness (Rec. 601 luma, in
    [0, 1]) differs from that of its ground by at least 0.5^colour before texture and noise.

    The dials, each in [0, 2]; 0 switches a nuisance off and 1 is meant for comparisons of self-supervised
    methods:
        distortion: 0: upright, centred, as large as fits. 1: rotated by up to 15 degrees, sheared by up to
            0.2, 50 to 100 % of the size that fits, anywhere. 2: 30 degrees, 0.4, 33 to 100 %.
        background: 0: one plain colour. 1: texture towards a second colour, which comes nearer to the symbol's
            brightness by up to 25 % of the difference, and noise of up to 6 % of the range. 2: 50 %, 12 %.
        colour: 0: black on white. 1: any two hues, dark on light or light on dark. 2: the same with less
            difference in brightness.

    A horizontal flip turns some symbols into others or into none: views for training should not flip.
    A seed means the same pictures with one version of Pillow and matplotlib; another version of the font
    renderer may move an edge by a grey level, or a pair of symbols over the limit.

    Args:
        classes: C in [2, 1000].
        per_class: pictures of each class, in [1, 2^20].
        size: side of the pictures in pixels, >= 16.
        distortion: in [0, 2].
        background: in [0, 2].
        colour: in [0, 2].
        styles: numbers in `STYLES`, each once; None: all twelve. Domain d is the d-th of them.
        test_share: share of each class in the split "test", in [0, 1).
        val_share: share of each class in the split "val"; test_share + val_share < 1.
        seed: >= 0.

    Returns:
        Images of N = C per_class pictures, class by class in the order of code points; domain is the style.
        Splits "train", "val" and "test"; one that gets no row (its share is 0, or too small for per_class)
        is missing.

    Raises:
        InputError: matplotlib or Pillow is not installed.
        ValueError: an argument is out of its range; the message names it.

    >>> images = glyph_images(classes=3, per_class=8, size=24, styles=[0, 8], seed=1)
    >>> images.shape, images.domain_names, {name: len(rows) for name, rows in images.splits.items()}
    ((3, 24, 24), ['DejaVuSans', 'DejaVuSerif'], {'train': 15, 'val': 3, 'test': 6})
    """
    limits: dict[str, tuple[float, float, float | None]] = {
        "classes": (classes, 2, MOST_CLASSES),
        "per_class": (per_class, 1, PER_CLASS_LIMIT),
        "size": (size, 16, None),
        "distortion": (distortion, 0, 2),
        "background": (background, 0, 2),
        "colour": (colour, 0, 2),
        "test_share": (test_share, 0, 1),
        "val_share": (val_share, 0, 1),
        "seed": (seed, 0, None),
    }
    _check(limits)
    if not test_share + val_share < 1:
        raise ValueError(f"test_share + val_share must be < 1, got {test_share} + {val_share}")
    chosen = list(range(len(STYLES))) if styles is None else [int(style) for style in styles]
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(len(STYLES))):
        raise ValueError(f"styles must be different numbers from 0 to {len(STYLES) - 1}, got {styles}")
    symbols, alike = _choose(classes, seed)
    masks = _masks(symbols, chosen, 2 * size)
    y = torch.arange(classes).repeat_interleave(per_class)
    ids = torch.tensor(symbols)[y] * PER_CLASS_LIMIT + torch.arange(per_class).repeat(classes)
    pixels = torch.empty(len(y), 3, size, size, dtype=torch.uint8)
    domain = torch.empty(len(y), dtype=torch.int64)
    for part in torch.arange(len(y)).split(ROWS):
        place = draw(seed, "glyph-place", 0, ids[part])
        domain[part] = place.integers(0, len(chosen))
        ink = _ink(masks[y[part], domain[part]], size, distortion, place)
        pixels[part] = _paint(ink, background, colour, seed, ids[part])
    names = [f"U+{symbol:04X} {chr(symbol)}" for symbol in symbols]
    return Images(
        name=f"glyphs-{seed}",
        pixels=PixelArray(pixels),
        y=y,
        class_names=names,
        splits=_splits(classes, per_class, val_share, test_share),
        ids=[f"{names[c].split()[0]}/{k:05d}" for c in range(classes) for k in range(per_class)],
        domain=domain,
        domain_names=[STYLES[style] for style in chosen],
        facts={name: value for name, (value, _, _) in limits.items()} | {"styles": chosen, "alike": alike},
    )


def _choose(classes: int, seed: int) -> tuple[list[int], float]:
    """The code points of `classes` symbols that differ in shape, ascending, and the limit on their likeness."""
    candidates = _candidates()
    order = draw(seed, "glyph-classes", 0).permutation(len(candidates)).tolist()
    order.sort(key=lambda i: unicodedata.normalize("NFKD", chr(candidates[i])) != chr(candidates[i]))
    found: list[int] = []
    shapes = np.empty((len(STYLES), 0, SHAPE * SHAPE), dtype=np.float32)
    likeness = np.empty((len(order), len(order)), dtype=np.float32)
    seen, kept = 0, []
    for limit in ALIKE:
        kept = []
        for i in range(len(order)):
            # Few classes need few candidates, and drawing them is what takes long: look at some at a time.
            while i >= len(found) and seen < len(order):
                block = {candidates[k]: _shape(candidates[k]) for k in order[seen : seen + BLOCK]}
                new = {code: shape for code, shape in block.items() if shape is not None}
                seen += len(block)
                if new:
                    rows = np.stack(list(new.values()), 1)
                    shapes = np.concatenate([shapes, rows], 1)
                    alike = np.matmul(rows, shapes.transpose(0, 2, 1)).max(0)
                    likeness[len(found) : len(found) + len(new), : len(found) + len(new)] = alike
                    found += new
            if i >= len(found):
                break
            if likeness[i, kept].max(initial=-1.0) <= limit:
                kept.append(i)
            if len(kept) == classes:
                return sorted(found[k] for k in kept), limit
    raise InputError(
        f"The installed fonts have {len(kept)} symbols that differ in shape, fewer than {classes} classes.",
        f"Ask for at most {len(kept)} classes, or install matplotlib >= 3.8.",
    )


@functools.cache
def _candidates() -> list[int]:
    """Code points in all styles that can be symbols of their own, ascending."""
    files = [str(_font_file(style)) for style in STYLES]
    from matplotlib.ft2font import FT2Font

    common = set.intersection(*(set(FT2Font(file).get_charmap()) for file in files))
    return [
        code
        for code in sorted(common)
        if unicodedata.category(chr(code)) not in NO_SYMBOLS and code not in BOX_DRAWING
    ]


@functools.cache
def _shape(code: int) -> np.ndarray | None:
    """A symbol's small pictures, (styles, pixels) of mean 0 and norm 1; None for a blank or a thin line."""
    inks = [ink for style in STYLES if (ink := _glyph(code, style, SHAPE_FONT, SHAPE)) is not None]
    if len(inks) < len(STYLES) or any(max(ink.shape) > SLENDER * min(ink.shape) for ink in inks):
        return None
    rows = np.stack([_centred(ink, SHAPE).astype(np.float32).ravel() for ink in inks])
    rows -= rows.mean(1, keepdims=True)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / norm if norm.all() else None  # a full square has no shape to compare


def _masks(symbols: list[int], styles: list[int], side: int) -> Tensor:
    """(C, S, side, side) uint8 ink of each symbol and style, its longer side filling the square."""
    out = np.zeros((len(symbols), len(styles), side, side), dtype=np.uint8)
    for c, symbol in enumerate(symbols):
        for s, style in enumerate(styles):
            ink = _glyph(symbol, STYLES[style], round(1.25 * side), side)
            assert ink is not None  # the choice of symbols has dropped blank ones
            out[c, s] = _centred(ink, side)
    return torch.from_numpy(out)


def _glyph(code: int, style: str, font_size: int, side: int) -> np.ndarray | None:
    """A character cut to its ink, scaled so that the longer side is `side`; None if it has no ink."""
    from PIL import Image

    core = _font(style, font_size).getmask(chr(code), mode="L")
    box = core.getbbox()
    if box is None:
        return None
    scale = side / max(box[2] - box[0], box[3] - box[1])
    to = (max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale)))
    picture = Image.frombytes("L", core.size, bytes(core))
    return np.asarray(picture.resize(to, Image.Resampling.BILINEAR, box=box))


def _centred(ink: np.ndarray, side: int) -> np.ndarray:
    out = np.zeros((side, side), dtype=ink.dtype)
    top, left = (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2
    out[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return out


@functools.lru_cache(maxsize=64)
def _font(style: str, font_size: int) -> Any:
    """The opened font; the plain layout, because the other one depends on what else is installed."""
    from PIL import ImageFont

    return ImageFont.truetype(str(_font_file(style)), font_size, layout_engine=ImageFont.Layout.BASIC)


def _font_file(style: str) -> Path:
    """Find a font in matplotlib's folder, or say what is missing."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or importlib.util.find_spec("PIL") is None:
        hint = "Install them with pip install 'leanlabel[vision]'."
        raise InputError("Generated glyphs need matplotlib and Pillow.", hint)
    folders = [Path(place) / "mpl-data" / "fonts" / "ttf" for place in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / f"{style}.ttf").is_file():
            return folder / f"{style}.ttf"
    raise InputError(
        f"matplotlib is installed without the font {style}.ttf (looked in {', '.join(map(str, folders))}).",
        "Install it again with pip install --force-reinstall matplotlib.",
    )


def _ink(masks: Tensor, size: int, distortion: float, place: Draw) -> Tensor:
    """Warp (B, side, side) masks into pictures: (B, 1, size, size) float32 coverage in [0, 1].

    A point q of the mask goes to p + s R(angle) H(shear) diag(a, 1/a) q, both in [-1, 1]; s is a share of the
    largest scale at which the box around the ink, so moved, stays one pixel off the edges.
    """
    inked = masks > 0
    wide, high = _half(inked.any(1)), _half(inked.any(2))
    # The CPU may round transcendental functions differently at the end of a batch: in float64 that is lost in
    # the rounding to float32, and a picture does not depend on its neighbours. No matrix product, same reason.
    u = place.uniform(6).double()
    angle = math.radians(15 * distortion) * (2 * u[:, 0] - 1)
    shear = 0.2 * distortion * (2 * u[:, 1] - 1)
    aspect = torch.exp(0.15 * distortion * (2 * u[:, 2] - 1))
    cos, sin = angle.cos(), angle.sin()
    xx, xy = cos * aspect, (cos * shear - sin) / aspect
    yx, yy = sin * aspect, (sin * shear + cos) / aspect
    reach_x, reach_y = xx.abs() * wide + xy.abs() * high, yx.abs() * wide + yy.abs() * high
    inside = 1 - 2 / size
    least = 1 / (1 + distortion)
    scale = inside / torch.maximum(reach_x, reach_y) * (least + (1 - least) * u[:, 3])
    spread = min(distortion, 1.0)
    at_x = (inside - scale * reach_x) * (2 * u[:, 4] - 1) * spread
    at_y = (inside - scale * reach_y) * (2 * u[:, 5] - 1) * spread
    # The inverse map; R and H have determinant 1, and so has diag(a, 1/a).
    back = [(value / scale).float()[:, None, None] for value in (yy, -xy, -yx, xx)]
    at_x, at_y = at_x.float()[:, None, None], at_y.float()[:, None, None]
    # Twice the resolution, then means: a single sample per pixel would break thin strokes.
    line = (torch.arange(2 * size) + 0.5) / size - 1
    x, y = line[None, None, :] - at_x, line[None, :, None] - at_y
    grid = torch.stack([back[0] * x + back[1] * y, back[2] * x + back[3] * y], 3)
    return F.avg_pool2d(F.grid_sample(masks[:, None].float() / 255, grid, align_corners=False), 2)


def _half(used: Tensor) -> Tensor:
    """Half the extent of the used part of (B, side) columns or rows around the centre, as a share of side/2."""
    side = used.shape[1]
    distance = (torch.arange(side, dtype=torch.float64) + 0.5 - side / 2).abs() + 0.5
    return (distance * used).amax(1) / (side / 2)


def _paint(ink: Tensor, background: float, colour: float, seed: int, ids: Tensor) -> Tensor:
    """Colour (B, 1, size, size) coverage over a textured ground: (B, 3, size, size) uint8."""
    size = ink.shape[-1]
    u = draw(seed, "glyph-colour", 0, ids).uniform(10).double()
    least = 0.5**colour
    gap = least + (1 - least) * u[:, 0] ** 2
    dark = (1 - gap) * u[:, 1]
    swap = u[:, 2] < 0.5 * min(colour, 1.0)
    front = torch.where(swap, dark + gap, dark)
    ground = torch.where(swap, dark, dark + gap)
    # The second colour of the ground: from the end of the scale that is away from the symbol to a bit nearer.
    away = torch.where(swap, 0.0, 1.0)
    near = ground + 0.25 * background * (front - ground)
    second = away + (near - away) * u[:, 3]
    strength = min(colour, 1.0)
    symbol, base, other = (
        _hue(luma, u[:, 4 + i], strength * u[:, 7 + i].sqrt()).float()[:, :, None, None]
        for i, luma in enumerate((front, ground, second))
    )
    texture = _texture(size, draw(seed, "glyph-texture", 0, ids))
    picture = base + min(background, 1.0) * texture * (other - base)
    picture = picture + ink * (symbol - picture)
    if background > 0:
        noise = draw(seed, "glyph-noise", 0, ids)
        amplitude = 0.06 * background * noise.uniform()
        # One 24-bit number serves the three channels of a pixel with 8 bits each.
        bits = (noise.uniform((1, size, size)) * 2**24).int()
        channels = torch.cat([bits & 255, (bits >> 8) & 255, bits >> 16], 1)
        picture = picture + amplitude[:, None, None, None] * (channels / 127.5 - 1)
    return (picture * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _hue(luma: Tensor, hue: Tensor, strength: Tensor) -> Tensor:
    """(B, 3) colours of brightness `luma`, `strength` of the way from grey to the edge of the RGB cube."""
    red, green, blue = ((6 * ((hue + turn) % 1 - 0.5).abs() - 1).clamp(0, 1) for turn in (0.0, 2 / 3, 1 / 3))
    grey = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    direction = torch.stack([red - grey, green - grey, blue - grey], 1)
    limit = torch.where(direction > 0, 1 - luma[:, None], luma[:, None]) / direction.abs().clamp_min(1e-6)
    return luma[:, None] + (strength * limit.amin(1))[:, None] * direction


def _texture(size: int, numbers: Draw) -> Tensor:
    """(B, 1, size, size) in [0, 1]: a gradient, stripes, blobs or soft noise."""
    kind = numbers.integers(0, 4)
    u = numbers.uniform(CELLS * CELLS).double()
    line = (torch.arange(size, dtype=torch.float64) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    out = torch.empty(len(u), size, size, dtype=torch.float64)

    def along(v: Tensor) -> Tensor:
        angle = (2 * math.pi * v[:, 0])[:, None, None]
        return angle.cos() * x + angle.sin() * y

    out[kind == 0] = 0.5 + along(u[kind == 0]) / math.sqrt(8)
    v = u[kind == 1]
    cycles, phase, edge = 1.5 + 4.5 * v[:, 1], 2 * math.pi * v[:, 2], 0.5 + 1.5 * v[:, 3]
    wave = (math.pi * cycles[:, None, None] * along(v) + phase[:, None, None]).sin()
    out[kind == 1] = (0.5 + edge[:, None, None] * wave).clamp(0, 1)
    v = u[kind == 2][:, : 3 * BLOBS].view(-1, BLOBS, 3, 1, 1)
    square = (x - 2 * v[:, :, 0] + 1) ** 2 + (y - 2 * v[:, :, 1] + 1) ** 2
    out[kind == 2] = 1 - (1 - torch.exp(-square / (0.1 + 0.3 * v[:, :, 2]) ** 2)).prod(1)
    v = u[kind == 3].view(-1, 1, CELLS, CELLS)
    if len(v):
        out[kind == 3] = F.interpolate(v, (size, size), mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)
    return out.float()[:, None]


def _splits(classes: int, per_class: int, val_share: float, test_share: float) -> dict[str, Tensor]:
    """Deal each class's pictures in turn to the split that is furthest behind its share.

    Pictures of a class are drawn alike, so no shuffling; a picture keeps its split when per_class grows.
    """
    shares = {"train": 1 - val_share - test_share, "val": val_share, "test": test_share}
    dealt: dict[str, list[int]] = {name: [] for name in shares}
    for k in range(per_class):
        dealt[max(shares, key=lambda name: shares[name] * (k + 1) - len(dealt[name]))].append(k)
    first = torch.arange(classes)[:, None] * per_class
    return {name: (first + torch.tensor(rows)).flatten() for name, rows in dealt.items() if rows}


def _check(limits: dict[str, tuple[float, float, float | None]]) -> None:
    for name, (value, low, high) in limits.items():
        if not value >= low or (high is not None and value > high):
            upper = "" if high is None else f" and <= {high}"
            raise ValueError(f"{name} must be >= {low}{upper}, got {value}")
