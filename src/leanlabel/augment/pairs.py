"""Random crops of images with their masks: one geometry for both, colours for the image only.

The window is chosen in the pixels of the image and only it is resized, so that the cost is that of the crop. The order
is fixed: window, turn and shear, bending, mirror; then the colours; normalisation. A sample's numbers are the same
whichever operations are switched on, except those of bending and noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from leanlabel.augment.colour import ordered
from leanlabel.augment.elastic import turning
from leanlabel.augment.geometry import Geometry, Maps, best_window, crop_boxes
from leanlabel.augment.image import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Positive,
    Probability,
    Strength,
)
from leanlabel.augment.photometric import COLOUR_DRAWS, ColourSettings, check_colours, noise_of, recolour_
from leanlabel.augment.photometric import colours as colours
from leanlabel.errors import InputError
from leanlabel.rng import Draw

IGNORE = 255
"""Value of a mask's pixels that have no label."""
TRIES = 10
"""Windows that are tried for a sample whose window must meet a condition."""

# Columns of a sample's uniform numbers.
_PLACES = 1
_MIRROR, _AFFINE, _TURN, _SHEAR, _BENT = range(_PLACES + 2 * TRIES, _PLACES + 2 * TRIES + 5)
_GEOMETRY_DRAWS = _BENT + 1
# Values per tile of a batch on a CPU, so that the passes over it meet the cache.
_TILE = 3 << 16


class PairSettings(ColourSettings):
    """How one random crop of an image and its mask is made."""

    crop: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Height and width of the result in pixels; null: the whole image, and then all of a batch must have one size."""
    base: int | None = Field(default=None, ge=1)
    """Shorter side in pixels to which the image is first thought resized; null: its own size."""
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    """Smallest and largest factor by which the image (after base) is resized before the crop is cut."""
    scale_law: Literal["uniform", "log", "halves"] = "uniform"
    """How the factor is spread between the two: evenly, evenly in its logarithm, or evenly below 1 half of the times
    and evenly above 1 the other half."""
    flip: Probability = 0.5
    """Probability of exchanging left and right."""
    affine_probability: Probability = 1.0
    """Probability of turn and shear, where either is above 0."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Largest turn in degrees to either side, about the middle of the crop."""
    shear: float = Field(default=0.0, ge=0, lt=80)
    """Largest angle in degrees by which upright lines lean to either side."""
    elastic_probability: Probability = 1.0
    """Probability of the elastic change, where it is above 0."""
    elastic: Strength = 0.0
    """Largest displacement of a control point in pixels of the crop, down and across. It should stay below half the
    distance of control points, or the image folds."""
    elastic_grid: int = Field(default=5, ge=2)
    """Control points along each side, evenly spread; a cubic in between."""
    max_share: float = Field(default=1.0, gt=0, le=1)
    """The window is chosen again, at most 10 in all, while one class has more than this share of its labelled pixels;
    1: any window is good. Without masks any window is good."""
    wanted_pixels: int = Field(default=1500, ge=1)
    """Where a class is wanted in a sample, the window is chosen again, at most 10 in all, while fewer pixels of the
    crop belong to it. The default is half of 3,000, for crops of 512 x 512."""
    fill: Literal["mean", "black"] = "mean"
    """What stands where the crop reaches beyond the image: the colour that is subtracted, or 0."""
    mean: tuple[float, ...] = Field(default=IMAGENET_MEAN, min_length=1)
    """Mean per channel that is subtracted; one number for all channels, or one each."""
    std: tuple[Positive, ...] = Field(default=IMAGENET_STD, min_length=1)
    """Standard deviation per channel that is divided by; one number for all channels, or one each."""

    _scale = field_validator("scale")(ordered)

    @model_validator(mode="after")
    def _sizes(self) -> PairSettings:
        if self.crop is None and self.scale != (1.0, 1.0):
            raise ValueError("crops of random scale need a size: set crop, or leave scale at (1, 1)")
        if self.scale_law == "halves" and not self.scale[0] <= 1 <= self.scale[1]:
            raise ValueError("scale_law halves needs a scale from below 1 to above 1")
        return self


class Pair(NamedTuple):
    """What :func:`random_pair` gives."""

    images: Tensor
    """(B, C, h, w) float32, normalised."""
    masks: Tensor | None
    """(B, h, w) uint8, 255 where there is no label or no image."""
    geometry: Geometry
    """Where the results come from; moves other maps of the same images likewise."""


@torch.no_grad()
def random_pair(
    images: Maps, masks: Maps | None, settings: PairSettings, draw: Draw, *, wanted: Tensor | None = None
) -> Pair:
    """Make one random crop of every image and the same crop of its mask.

    Every sample's crop depends on its own image, mask and numbers only, up to rounding also across devices. All choices
    are made on the CPU.

    Args:
        images: (B, C, H, W), or B tensors (C, h, w) of any sizes; uint8, or floating point in [0, 1].
        masks: (B, H, W), or B tensors (h, w), uint8, 255 = no label; None: no labels.
        settings: the recipe.
        draw: numbers of the B samples (:func:`leanlabel.rng.draw` with ids).
        wanted: (B,) integers: the class of which a sample's crop should hold ``wanted_pixels``, -1 for none. Where no
            window of ten does, the one with most of them is taken.

    Returns:
        Crops (B, C, h, w) float32 on the device of the images, normalised, their masks and the geometry; no gradient.

    Raises:
        InputError: an image and its mask differ in size; colours of images that are not RGB; mean and std for another
            number of channels; whole images of several sizes.
        ValueError: other types or shapes, or not as many images as the draw has ids.

    Example:
        >>> from leanlabel.rng import draw
        >>> images = torch.randint(256, (2, 3, 40, 60), dtype=torch.uint8)
        >>> masks = torch.randint(5, (2, 40, 60), dtype=torch.uint8)
        >>> settings = PairSettings(crop=(24, 32), scale=(0.5, 2.0))
        >>> pair = random_pair(images, masks, settings, draw(0, "pair", t=5, ids=torch.tensor([17, 4])))
        >>> pair.images.shape, pair.masks.shape
        (torch.Size([2, 3, 24, 32]), torch.Size([2, 24, 32]))
    """
    native, channels, device = _check(images, masks, settings)
    numbers = draw.uniform(_GEOMETRY_DRAWS + COLOUR_DRAWS).cpu()
    if numbers.shape != (len(images), _GEOMETRY_DRAWS + COLOUR_DRAWS):
        raise ValueError(
            f"{len(images)} images need a draw with as many ids, got numbers {tuple(numbers.shape)}"
        )
    if wanted is not None and (masks is None or wanted.shape != (len(images),)):
        raise ValueError(
            f"wanted must be ({len(images)},) and come with masks, got {tuple(wanted.shape)}"
            f"{' without masks' if masks is None else ''}"
        )
    geometry = _geometry(native, masks, settings, numbers[:, :_GEOMETRY_DRAWS], draw, wanted)
    height, width = geometry.size
    colours_, noise = numbers[:, _GEOMETRY_DRAWS:], noise_of((channels, height, width), settings, draw)
    fill = torch.tensor(settings.mean if settings.fill == "mean" else (0.0,), device=device)
    fill = fill.view(-1, 1, 1).expand(channels, 1, 1)
    padding = standardised(fill[None], settings.mean, settings.std)[0]
    result = torch.empty(len(images), channels, height, width, device=device)
    labels = (
        None if masks is None else torch.empty(len(images), height, width, dtype=torch.uint8, device=device)
    )
    tile = len(images) if device.type != "cpu" else max(1, _TILE // (channels * height * width))
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(images), max(1, tile)):
            rows = range(start, min(start + tile, len(images)))
            lookups = [geometry.lookup(row, device) for row in rows]
            for row, lookup in zip(rows, lookups, strict=True):
                lookup.image(images[row], result[row], fill)
                if masks is not None and labels is not None:
                    lookup.mask(masks[row].to(device), labels[row], IGNORE)
            part = slice(start, rows.stop)
            x = result[part]
            recolour_(x, settings, colours_[part], None if noise is None else noise[part])
            standardised(x, settings.mean, settings.std, out=x)
            for row, lookup in zip(rows, lookups, strict=True):
                if not lookup.whole:  # the colours of padding stay as they are
                    result[row] = torch.where(lookup.outside(device), padding, result[row])
    return Pair(result, labels, geometry)


@torch.no_grad()
def plain_image(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise a whole image.

    Args:
        image: (C, h, w) or (B, C, h, w); uint8, or floating point in [0, 1].
        mean: one for all channels, or one each; subtracted.
        std: likewise; divided by.

    Returns:
        The same shape, float32; no gradient.

    Example:
        >>> plain_image(torch.full((3, 1, 1), 255, dtype=torch.uint8), (0.5,), (0.5,)).flatten().tolist()
        [1.0, 1.0, 1.0]
    """
    values = image.float()
    return standardised(values.div_(255) if image.dtype == torch.uint8 else values, mean, std)


def standardised(
    images: Tensor, mean: Sequence[float], std: Sequence[float], out: Tensor | None = None
) -> Tensor:
    """(x - mean) / std of (..., C, h, w), mean and std for all channels or for each, written to ``out`` if given."""
    _check_statistics(images.shape[-3], mean, std)
    centre, width = (torch.tensor(tuple(row)).to(images).view(-1, 1, 1) for row in (mean, std))
    return torch.sub(images, centre, out=out).div_(width)


def _geometry(
    native: Tensor,
    masks: Maps | None,
    settings: PairSettings,
    numbers: Tensor,
    draw: Draw,
    wanted: Tensor | None,
) -> Geometry:
    """Choose the geometry of every sample from its numbers (B, _GEOMETRY_DRAWS)."""
    factor = torch.ones(len(native), dtype=torch.float64)
    if settings.base is not None:
        factor = settings.base / native.amin(1).double()
    size = settings.crop or _common_size(native, factor)
    low, high = settings.scale
    u = numbers[:, 0].double()
    if settings.scale_law == "log":
        factor = factor * low * (high / low) ** u
    elif settings.scale_law == "halves":
        factor = factor * torch.where(u < 0.5, low + (1 - low) * 2 * u, 1 + (high - 1) * (2 * u - 1))
    else:
        factor = factor * (low + (high - low) * u)
    source, target = crop_boxes(native, factor, size, numbers[:, _PLACES:_MIRROR].unflatten(1, (TRIES, 2)))
    chosen = torch.zeros(len(native), dtype=torch.long)
    classes = [-1] * len(native) if wanted is None else wanted.tolist()
    for row, cls in enumerate(classes):
        if masks is not None and (cls >= 0 or settings.max_share < 1):
            chosen[row] = best_window(
                *(masks[row].cpu(), source[row], target[row]),
                wanted=cls,
                pixels=settings.wanted_pixels,
                max_share=settings.max_share,
                ignore=IGNORE,
            )
    every = torch.arange(len(native))
    warp = bend = None
    if settings.rotate or settings.shear:
        angles = [
            limit * (2 * numbers[:, at] - 1)
            for limit, at in ((settings.rotate, _TURN), (settings.shear, _SHEAR))
        ]
        still = numbers[:, _AFFINE] >= settings.affine_probability
        warp = turning(*(angle.masked_fill(still, 0.0) for angle in angles))
    if settings.elastic:
        grid = (2, settings.elastic_grid, settings.elastic_grid)
        bend = (2 * draw.uniform(grid).cpu() - 1) * settings.elastic
        bend[numbers[:, _BENT] >= settings.elastic_probability] = 0
    mirrored = numbers[:, _MIRROR] < settings.flip
    return Geometry(size, native, source[every, chosen], target[every, chosen], mirrored, warp, bend)


def _common_size(native: Tensor, factor: Tensor) -> tuple[int, int]:
    """The size of whole images, which must be one."""
    sizes = (native * factor[:, None]).round().long().clamp(min=1).unique(dim=0).tolist()
    if len(sizes) != 1:
        several = ", ".join(f"{height} x {width}" for height, width in sizes[:3]) or "none"
        raise InputError(
            f"Whole images of a batch must have one size, got {several}.", "Set crop to a height and width."
        )
    return sizes[0][0], sizes[0][1]


def _check(images: Maps, masks: Maps | None, settings: PairSettings) -> tuple[Tensor, int, torch.device]:
    """Heights and widths (B, 2), number of channels and device of the images."""
    shapes = [tuple(image.shape) for image in images]
    if isinstance(images, Tensor) and images.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), got {tuple(images.shape)}")
    for row, (image, shape) in enumerate(zip(images, shapes, strict=True)):
        if len(shape) != 3 or min(shape) < 1 or shape[0] != shapes[0][0]:
            raise ValueError(f"image {row} must be (C, h, w) with the channels of the first, got {shape}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ValueError(f"image {row} must be uint8 or floating point, got {image.dtype}")
    first = images if isinstance(images, Tensor) else (images[0] if len(images) else torch.empty(0, 0, 0))
    channels = first.shape[-3] or max(3, len(settings.mean))
    sizes = [shape[1:] for shape in shapes]
    native = torch.tensor(sizes, dtype=torch.long).view(-1, 2)
    check_colours(channels, settings)
    _check_statistics(channels, settings.mean, settings.std)
    if masks is None:
        return native, channels, first.device
    if len(masks) != len(images):
        raise ValueError(f"{len(images)} images need as many masks, got {len(masks)}")
    for row, (mask, size) in enumerate(zip(masks, sizes, strict=True)):
        if mask.ndim != 2 or mask.dtype != torch.uint8:
            raise ValueError(f"mask {row} must be (h, w) uint8, got {tuple(mask.shape)} of {mask.dtype}")
        if tuple(mask.shape) != size:
            raise InputError(
                f"Image {row} of the batch has {size[0]} x {size[1]} pixels, its mask"
                f" {mask.shape[0]} x {mask.shape[1]}.",
                "Give masks of the size of their images.",
            )
    return native, channels, first.device


def _check_statistics(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if {len(mean), len(std)} - {1, channels}:
        raise InputError(
            f"The images have {channels} channels, but mean has {len(mean)} and std {len(std)} numbers.",
            f"Give one number, or {channels}.",
        )
