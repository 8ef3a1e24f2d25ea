"""Random views of images, one recipe of window, colour and blur for the whole batch and fresh numbers for each sample.

The order is fixed: window and mirror, colour jitter, grey, blur, solarisation, normalisation. (Published recipes mirror
after the colours; the two commute.) A sample's numbers are the same whichever operations are switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor

from leanlabel.augment.colour import (
    OPERATIONS,
    ORDERS,
    Hue,
    grey_,
    half_turn,
    jitter_,
    normalise,
    ordered,
    solarise_,
)
from leanlabel.augment.resample import (
    WINDOW_DRAWS,
    crop_resize,
    crop_windows,
    gaussian_blur,
    resized,
)
from leanlabel.config import Settings
from leanlabel.rng import Draw

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Strength = Annotated[float, Field(ge=0)]
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CIFAR_MEAN: Triple = (0.4914, 0.4822, 0.4465)
CIFAR_STD: Triple = (0.2023, 0.1994, 0.2010)

# Columns of a sample's uniform numbers after those of the window.
_MIRROR, _JITTER, _FACTORS, _ORDER, _GREY, _BLUR, _SIGMA, _SOLARISE = (
    WINDOW_DRAWS + offset for offset in (0, 1, 2, 6, 7, 8, 9, 10)
)
_DRAWS = _SOLARISE + 1
# Values per tile of a batch on a CPU, so that the passes over it meet the cache.
_TILE = 3 << 16


class ViewSettings(Settings):
    """How one random view of an image is made."""

    size: int = Field(default=224, ge=1)
    """Side of the view in pixels."""
    scale: tuple[Positive, Positive] = (0.2, 1.0)
    """Smallest and largest share of the image's area that the window covers."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the window before it is resized to a square."""
    flip: Probability = 0.5
    """Probability of exchanging left and right."""
    jitter: tuple[Strength, Strength, Strength, Strength] = (0.4, 0.4, 0.4, 0.1)
    """Brightness, contrast and saturation factors are uniform in [max(0, 1 - j), 1 + j]; hue is turned by up to j full
    turns, at most 0.5. The four come in random order."""
    jitter_probability: Probability = 0.8
    """Probability of the colour jitter."""
    hue: Hue = "hsv"
    """hsv: turn the hue exactly; fast: turn the colour plane of YIQ instead, a cheaper approximation."""
    grey: Probability = 0.2
    """Probability of removing colour."""
    blur: Probability = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur in pixels of the view. The official code hands this number to
    the Python Imaging Library as a radius, which means the same."""
    solarise: Probability = 0.0
    """Probability of solarisation: values from the threshold on are inverted."""
    solarise_threshold: Probability = 0.5
    """Threshold of the solarisation."""
    mean: Triple = IMAGENET_MEAN
    """Mean per channel that is subtracted."""
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD
    """Standard deviation per channel that is divided by."""

    _ordered = field_validator("scale", "ratio", "blur_sigma")(ordered)

    @field_validator("scale")
    @classmethod
    def _share(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[1] > 1:
            raise ValueError("shares of the area, at most 1")
        return limits

    _half_turn = field_validator("jitter")(half_turn)


MOCO_V1 = ViewSettings(jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0, blur=0.0)
"""MoCo, official code."""
MOCO_V2 = ViewSettings()
"""MoCo v2, official code."""
SIMCLR = ViewSettings(scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2))
"""SimCLR, jitter strength 1; :func:`simclr` has others."""
BYOL = (
    ViewSettings(scale=(0.08, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur=1.0),
    ViewSettings(scale=(0.08, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur=0.1, solarise=0.2),
)
"""BYOL: its two views are made differently."""
CIFAR = ViewSettings(size=32, scale=(0.08, 1.0), blur=0.0, mean=CIFAR_MEAN, std=CIFAR_STD)
"""MoCo's CIFAR demonstration."""


def simclr(strength: float = 1.0, **changes: object) -> ViewSettings:
    """SimCLR's view for a colour strength s: jitter (0.8 s, 0.8 s, 0.8 s, 0.2 s).

    Args:
        strength: s, >= 0.
        changes: other keys of :class:`ViewSettings`.

    Example:
        >>> simclr(0.5, size=32).jitter
        (0.4, 0.4, 0.4, 0.1)
    """
    colours = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    return ViewSettings.model_validate({**SIMCLR.model_dump(), "jitter": colours, **changes})


class Places(NamedTuple):
    """Where in their images the views of a batch were cut out.

    Attributes:
        windows: (B, 4) int64 on the CPU: top, left, height, width in pixels of the image.
        mirrored: (B,) bool on the CPU: left and right of the view are exchanged.
    """

    windows: Tensor
    mirrored: Tensor


@torch.no_grad()
def random_view(images: Tensor | Sequence[Tensor], settings: ViewSettings, draw: Draw) -> Tensor:
    """Make one random view of every image.

    Every sample's view depends on its own image and numbers only, up to rounding also across devices. All choices are
    made on the CPU.

    Args:
        images: (B, 3, H, W), or B tensors (3, h, w) of any sizes; uint8, or floating point in [0, 1].
        settings: the recipe.
        draw: numbers of the B samples (:func:`leanlabel.rng.draw` with ids). One call is made on it.

    Returns:
        (B, 3, size, size) float32 on the device of the images, normalised; no gradient.

    Raises:
        ValueError: the images are not RGB, or empty, or not as many as the draw has ids.

    Example:
        >>> from leanlabel.rng import draw
        >>> images = torch.randint(256, (2, 3, 40, 30), dtype=torch.uint8)
        >>> random_view(images, CIFAR, draw(0, "query", t=5, ids=torch.tensor([17, 4]))).shape
        torch.Size([2, 3, 32, 32])
    """
    heights, widths, device = _check_images(images)
    numbers = _numbers(draw, len(images))
    with torch.autocast(device.type, enabled=False):
        windows, mirrored = _places(heights, widths, settings, numbers)
        tile = max(1, _TILE // (3 * settings.size**2)) if device.type == "cpu" else max(1, len(images))
        result = torch.empty(len(images), 3, settings.size, settings.size, device=device)
        for start in range(0, len(images), tile):
            part = slice(start, start + tile)
            x = crop_resize(images[part], windows[part], settings.size, mirrored[part])
            _change_(x, settings, numbers[part])
            normalise(x, settings.mean, settings.std, out=result[part])
    return result


def view_places(images: Tensor | Sequence[Tensor], settings: ViewSettings, draw: Draw) -> Places:
    """Where :func:`random_view` cuts its views out, given the same images and settings and an equal draw.

    Args:
        images: as for :func:`random_view`; only their sizes are looked at.
        settings: the recipe.
        draw: a new draw equal to that of the views. One call is made on it.

    Returns:
        Windows and which of them are mirrored, of the B images; no gradient.

    Raises:
        ValueError: as :func:`random_view`.

    Example:
        >>> from leanlabel.rng import draw
        >>> images, whole = torch.zeros(1, 3, 6, 6), ViewSettings(scale=(1, 1), ratio=(1, 1), flip=1)
        >>> windows, mirrored = view_places(images, whole, draw(0, "query", t=5, ids=torch.tensor([17])))
        >>> windows.tolist(), mirrored.tolist()
        ([[0, 0, 6, 6]], [True])
    """
    heights, widths, _ = _check_images(images)
    return _places(heights, widths, settings, _numbers(draw, len(images)))


def _numbers(draw: Draw, count: int) -> Tensor:
    """The uniform numbers (count, _DRAWS) of a view, on the CPU."""
    numbers = draw.uniform(_DRAWS).cpu()
    if numbers.shape != (count, _DRAWS):
        raise ValueError(f"{count} images need a draw with as many ids, got numbers {tuple(numbers.shape)}")
    return numbers


def _places(heights: Tensor, widths: Tensor, settings: ViewSettings, numbers: Tensor) -> Places:
    windows = crop_windows(heights, widths, settings.scale, settings.ratio, numbers[:, :WINDOW_DRAWS])
    return Places(windows, numbers[:, _MIRROR] < settings.flip)


def _change_(x: Tensor, settings: ViewSettings, numbers: Tensor) -> None:
    """Colours and blur of some views (B, 3, size, size), in place."""

    def chosen(column: int, probability: float) -> Tensor:
        return (numbers[:, column] < probability).nonzero()[:, 0]

    rows = chosen(_JITTER, settings.jitter_probability)
    if len(rows) and any(settings.jitter):
        factors = jitter_factors(settings.jitter, numbers[rows, _FACTORS : _FACTORS + len(OPERATIONS)])
        orders = (numbers[rows, _ORDER].double() * len(ORDERS)).long()
        jitter_(x, rows, factors, orders, hue=settings.hue if settings.jitter[3] else None)
    rows = chosen(_GREY, settings.grey)
    if len(rows):
        there = rows.to(x.device)
        x.index_copy_(0, there, grey_(x.index_select(0, there)))
    rows = chosen(_BLUR, settings.blur)
    if len(rows):
        there, (low, high) = rows.to(x.device), settings.blur_sigma
        sigma = low + (high - low) * numbers[rows, _SIGMA]
        x.index_copy_(0, there, gaussian_blur(x.index_select(0, there), sigma, high))
    rows = chosen(_SOLARISE, settings.solarise)
    if len(rows):
        there = rows.to(x.device)
        x.index_copy_(0, there, solarise_(x.index_select(0, there), settings.solarise_threshold))


def jitter_factors(strengths: tuple[float, float, float, float], numbers: Tensor) -> Tensor:
    """Turn uniform numbers (B, 4) into factors: U[max(0, 1 - j), 1 + j] for three, U[-j, j] turns for the hue."""
    low = torch.tensor([*(max(0.0, 1 - j) for j in strengths[:3]), -strengths[3]])
    high = torch.tensor([*(1 + j for j in strengths[:3]), strengths[3]])
    return low + (high - low) * numbers


@torch.no_grad()
def plain_view(
    images: Tensor | Sequence[Tensor], size: int, *, resize: int | None = None, mean: Triple, std: Triple
) -> Tensor:
    """Make the test-time view: shorter side to ``resize``, central square, normalised.

    The longer side becomes floor(resize * longer / shorter); the square starts at round((side - size) / 2), halves to
    the even number, as in torchvision.

    Args:
        images: (B, 3, H, W), or B tensors (3, h, w) of any sizes; uint8, or floating point in [0, 1].
        size: side of the result in pixels.
        resize: length of the shorter side before the square is cut, >= size; None: size.
        mean: per channel, subtracted.
        std: per channel, divided by.

    Returns:
        (B, 3, size, size) float32 on the device of the images; no gradient.

    Raises:
        ValueError: the images are not RGB or have no pixels, or resize < size.

    Example:
        >>> images = torch.randint(256, (2, 3, 40, 30), dtype=torch.uint8)
        >>> plain_view(images, 24, resize=28, mean=IMAGENET_MEAN, std=IMAGENET_STD).shape
        torch.Size([2, 3, 24, 24])
    """
    shorter = size if resize is None else resize
    if not 1 <= size <= shorter:
        raise ValueError(f"the square of side {size} must fit into the image resized to {shorter}")
    _, _, device = _check_images(images)
    with torch.autocast(device.type, enabled=False):
        if isinstance(images, Tensor):
            return normalise(_central(images, size, shorter), mean, std).contiguous()
        result = torch.empty(len(images), 3, size, size, device=device)
        for row, image in zip(result, images, strict=True):
            normalise(_central(image, size, shorter), mean, std, out=row)
        return result


def _central(images: Tensor, size: int, shorter: int) -> Tensor:
    """Central square of (..., 3, h, w) after its shorter side was resized."""
    h, w = images.shape[-2:]
    height, width = (shorter, int(shorter * w / h)) if h <= w else (int(shorter * h / w), shorter)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized(images, height, width)[..., top : top + size, left : left + size]


def multi_crop(
    images: Tensor | Sequence[Tensor],
    globals_: ViewSettings,
    n_global: int,
    locals_: ViewSettings,
    n_local: int,
    draw_of: Callable[[int], Draw],
) -> list[Tensor]:
    """Make several large and several small views of every image.

    Args:
        images: as for :func:`random_view`.
        globals_: recipe of the large views.
        n_global: how many of them.
        locals_: recipe of the small views.
        n_local: how many of them.
        draw_of: number of the view, 0 to n_global + n_local - 1, to its own draw.

    Returns:
        n_global tensors (B, 3, S, S), then n_local tensors (B, 3, s, s).

    Example:
        >>> from leanlabel.rng import draw
        >>> images, ids = torch.zeros(2, 3, 40, 40, dtype=torch.uint8), torch.tensor([3, 8])
        >>> small = CIFAR.model_copy(update={"size": 16, "scale": (0.05, 0.2)})
        >>> views = multi_crop(images, CIFAR, 2, small, 3, lambda k: draw(0, f"view {k}", 0, ids))
        >>> [view.shape[-1] for view in views]
        [32, 32, 16, 16, 16]
    """
    recipes = [globals_] * n_global + [locals_] * n_local
    return [random_view(images, recipe, draw_of(number)) for number, recipe in enumerate(recipes)]


def _check_images(images: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor, torch.device]:
    """Heights and widths (B,) and the device."""
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        sizes, device = [tuple(images.shape[1:])] * len(images), images.device
        kinds = {images.dtype}
        _check_size(0, tuple(images.shape[1:]))
    else:
        sizes, kinds = [tuple(image.shape) for image in images], {image.dtype for image in images}
        device = images[0].device if len(images) else torch.device("cpu")
        for row, shape in enumerate(sizes):
            _check_size(row, shape)
    for kind in kinds:
        if kind != torch.uint8 and not kind.is_floating_point:
            raise ValueError(f"images must be uint8 or floating point, got {kind}")
    return torch.tensor([s[1] for s in sizes]), torch.tensor([s[2] for s in sizes]), device


def _check_size(row: int, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"image {row} must be RGB, (3, h, w), got {shape}")
    if min(shape) < 1:
        raise ValueError(f"image {row} has no pixels: {shape}")
