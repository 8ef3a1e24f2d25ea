"""Images as another sensor would have taken them, and from a place not quite the same: for studies of new cameras.

A sensor is a fixed change of values, the same for all images of a data set; only its noise is fresh for each image. A
shift is a change of places, drawn for each image: copies that are only roughly aligned with their originals.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from leanlabel.augment.colour import grey_, hue_
from leanlabel.augment.elastic import turning
from leanlabel.augment.geometry import Geometry, Maps, apply_image, apply_mask, outside, placed
from leanlabel.augment.image import Positive, Strength
from leanlabel.augment.photometric import ColourSettings, noise_of
from leanlabel.augment.resample import gaussian_blur, resized
from leanlabel.config import Settings
from leanlabel.errors import InputError
from leanlabel.rng import Draw

INFRARED = (0.5, 1.4, -0.9)
"""Weights of red, green and blue in the infrared channel. They sum to 1, so that grey stays; what is green becomes
bright, as leaves are in the near infrared, and blue sky dark."""
MOST_PIXELS = 1 << 16
"""Longest shift: what is further away is no image."""
Pixels = Annotated[int, Field(ge=-MOST_PIXELS, le=MOST_PIXELS)]
_NOISY = ColourSettings(noise=1.0)
# Columns of a sample's uniform numbers: down, across, turn, shear, zoom.
_SHIFT_DRAWS = 5


class SensorSettings(Settings):
    """What another sensor makes of an image; all off unless set.

    The order is fixed, as listed: infrared, grey, hue, gamma, channels, invert, gain and offset, vignetting, blur,
    coarse, noise, jpeg. Values are kept in [0, 1] after every step that can leave it.
    """

    infrared: bool = False
    """One channel in place of three: 0.5 red + 1.4 green - 0.9 blue, as near infrared sees leaves and sky."""
    grey: bool = False
    """Replace every channel by the grey value. Images must be RGB."""
    hue: float = Field(default=0.0, ge=-0.5, le=0.5)
    """Full turns by which the hue is turned. Images must be RGB."""
    gamma: Positive = 1.0
    """Power to which values are raised; above 1 is darker."""
    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Order of the channels: channel k of the result is this channel; null leaves it."""
    invert: bool = False
    """1 - value, as of a negative."""
    gain: tuple[Strength, ...] = Field(default=(1.0,), min_length=1)
    """Factor of each channel, or one for all."""
    offset: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    """What is added to each channel after that, or one number for all; 1 is white."""
    vignetting: float = Field(default=0.0, ge=0, le=1)
    """Share of the light that is missing in the corners; it grows with the square of the distance from the middle."""
    blur: float = Field(default=0.0, ge=0, le=100)
    """Standard deviation of a Gaussian blur in pixels."""
    coarse: float = Field(default=1.0, ge=1, le=1000)
    """Factor by which the image is scaled down, and up again."""
    noise: Strength = 0.0
    """Standard deviation of Gaussian noise, independent per pixel and channel, fresh for each image; 1 is white."""
    jpeg: int | None = Field(default=None, ge=1, le=95)
    """Quality of a JPEG file that the image passes through; null: none. Images must be grey or RGB."""

    @model_validator(mode="after")
    def _fits(self) -> SensorSettings:
        if self.channels is not None and sorted(self.channels) != list(range(len(self.channels))):
            raise ValueError("channels in which each of 0, 1, ... occurs once, such as [2, 0, 1]")
        if self.infrared and (self.grey or self.hue or self.channels is not None):
            raise ValueError("no grey, hue or channels with infrared, which leaves one channel")
        counts = {len(own) for own in (self.gain, self.offset, self.channels or (0,))} - {1}
        if len(counts) > 1 or (self.infrared and counts):
            raise ValueError("channels, gain and offset for the same number of channels")
        return self


SensorName = Literal["identity", "camera", "inversion", "grey-blur", "infrared", "published-toy"]
SENSORS: dict[SensorName, SensorSettings] = {
    "identity": SensorSettings(),
    "camera": SensorSettings(
        gamma=1.35, gain=(0.8, 0.95, 1.1), offset=(0.05, 0.02, 0.0), vignetting=0.35, blur=0.7, noise=0.02
    ),
    "inversion": SensorSettings(invert=True),
    "grey-blur": SensorSettings(grey=True, blur=1.0),
    "infrared": SensorSettings(infrared=True, noise=0.02),
    "published-toy": SensorSettings(
        gamma=1.6, channels=(1, 2, 0), invert=True, gain=(0.7, 1.0, 0.5), offset=(0.1,), noise=0.05
    ),
}
"""Sensors that have a name. camera: another camera of the same scene; published-toy: gamma, channels, inversion, gain
and noise of the small proof of regression between feature maps."""


def channels_after(channels: int, settings: SensorSettings) -> int:
    """Number of channels that a sensor makes of images with so many.

    Raises:
        InputError: the settings are not for images with this number of channels.

    Example:
        >>> channels_after(3, SENSORS["infrared"])
        1
    """
    rgb = [name for name in ("infrared", "grey", "hue") if getattr(settings, name)]
    if rgb and channels != 3:
        raise InputError(f"sensor: {rgb[0]} is for RGB images, but these have {channels} channels.")
    result = 1 if settings.infrared else channels
    for name in ("channels", "gain", "offset"):
        own = getattr(settings, name)
        if own is not None and len(own) != result and (len(own) > 1 or name == "channels"):
            raise InputError(f"sensor: {name} has {len(own)} numbers, but the images have {result} channels.")
    if settings.jpeg is not None and result not in (1, 3):
        raise InputError(f"sensor: jpeg is for images of 1 or 3 channels, but these have {result}.")
    return result


@torch.no_grad()
def change(images: Tensor, settings: SensorSettings, draw: Draw | None = None) -> Tensor:
    """Take images again with another sensor.

    Args:
        images: (B, C, h, w) floating point in [0, 1].
        settings: the sensor.
        draw: numbers of the B samples, for noise; None where the sensor has none.

    Returns:
        (B, C', h, w) float32 in [0, 1], C' as :func:`channels_after` says; no gradient.

    Raises:
        InputError: the sensor is not for images with C channels.
        ValueError: not (B, C, h, w) floating point, or noise without a draw of B ids.

    Example:
        >>> change(torch.tensor([0.0, 0.25, 1.0]).reshape(1, 3, 1, 1), SENSORS["inversion"]).flatten().tolist()
        [1.0, 0.75, 0.0]
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be (B, C, h, w) floating point, got {tuple(images.shape)} of {images.dtype}"
        )
    channels_after(images.shape[1], settings)
    with torch.autocast(images.device.type, enabled=False):
        return _changed(images.float().clone(), settings, draw)


def _changed(x: Tensor, settings: SensorSettings, draw: Draw | None) -> Tensor:
    if settings.infrared:
        x = (x * _row(INFRARED, x)).sum(1, keepdim=True).clamp_(0, 1)
    if settings.grey:
        grey_(x)
    if settings.hue:
        hue_(x, torch.full((len(x),), settings.hue)).clamp_(0, 1)
    if settings.gamma != 1:
        x.clamp_(min=0).pow_(settings.gamma)
    if settings.channels is not None:
        x = x[:, list(settings.channels)]
    if settings.invert:
        x = 1 - x
    if set(settings.gain) != {1.0} or any(settings.offset):
        x.mul_(_row(settings.gain, x)).add_(_row(settings.offset, x)).clamp_(0, 1)
    if settings.vignetting:
        x.mul_(1 - settings.vignetting * _off_centre(x))
    if settings.blur:
        x = gaussian_blur(x, torch.full((len(x),), settings.blur)).contiguous()
    if settings.coarse > 1:
        height, width = x.shape[2:]
        small = resized(x, *(max(1, round(side / settings.coarse)) for side in (height, width)))
        x = resized(small, height, width).clamp_(0, 1)
    if settings.noise:
        noise = None if draw is None else noise_of(tuple(x.shape[1:]), _NOISY, draw)
        if noise is None or noise.shape != x.shape:
            raise ValueError(f"noise on {len(x)} images needs a draw with as many ids")
        x.add_(noise.to(x.device), alpha=settings.noise).clamp_(0, 1)
    if settings.jpeg is not None:
        x = torch.stack([_through_jpeg(image, settings.jpeg) for image in x]) if len(x) else x
    return x


def _row(values: Sequence[float], images: Tensor) -> Tensor:
    return torch.tensor(tuple(values)).to(images).view(1, -1, 1, 1)


def _off_centre(images: Tensor) -> Tensor:
    """(h, w): squared distance of every pixel from the middle, as a share of that of the corners of the image."""
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device) + (0.5 - height / 2)
    x = torch.arange(width, device=images.device) + (0.5 - width / 2)
    return (y.square()[:, None] + x.square()) / ((height / 2) ** 2 + (width / 2) ** 2)


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    from PIL import Image

    values = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(values if len(image) == 3 else values[..., 0]).save(file, "JPEG", quality=quality)
    read = np.array(Image.open(file, formats=("JPEG",)))
    return torch.from_numpy(read.reshape(values.shape)).permute(2, 0, 1).to(image) / 255


class ShiftSettings(Settings):
    """How far an image lies from where it should; all off unless set, and all of them add up."""

    random: int = Field(default=0, ge=0, le=MOST_PIXELS)
    """Largest shift in pixels: a whole number for each image, uniform from minus this to this, down and across."""
    constant: tuple[Pixels, Pixels] = (0, 0)
    """Pixels by which all images are shifted down and to the right: a sensor mounted askew."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Largest turn in degrees to either side, about the middle."""
    shear: float = Field(default=0.0, ge=0, lt=80)
    """Largest angle in degrees by which upright lines lean to either side."""
    zoom: float = Field(default=0.0, ge=0, lt=1)
    """Largest share by which things grow or shrink."""
    elastic: float = Field(default=0.0, ge=0, le=MOST_PIXELS)
    """Largest displacement of a control point in pixels, down and across: a smooth field. It should stay below half the
    distance of control points, or the image folds."""
    elastic_grid: int = Field(default=5, ge=2, le=256)
    """Control points along each side, evenly spread; a cubic in between."""

    @property
    def still(self) -> bool:
        """Whether nothing moves."""
        return not (self.random or any(self.constant) or self.bends)

    @property
    def bends(self) -> bool:
        """Whether more is done than a shift by whole pixels, which keeps every value."""
        return bool(self.rotate or self.shear or self.zoom or self.elastic)


class Shifted(NamedTuple):
    """What :func:`misalign` gives."""

    images: Tensor
    """(B, C, h, w) float32; the mean colour of the image where there is none."""
    valid: Tensor
    """(B, h, w) bool: where there is an image."""
    masks: Tensor | None
    """(B, h, w) in the type of the masks, which were moved likewise."""


def shift_geometry(native: Tensor, settings: ShiftSettings, draw: Draw) -> Geometry:
    """Draw a shift for every image of a batch of one size.

    Args:
        native: (B, 2) integer heights and widths, all the same.
        settings: how far.
        draw: numbers of the B samples; a sample's are the same whichever changes are switched on.

    Raises:
        ValueError: several sizes, or not as many images as the draw has ids.

    Example:
        >>> from leanlabel.rng import draw
        >>> settings = ShiftSettings(constant=(1, -2))
        >>> moved = shift_geometry(torch.tensor([[4, 6]]), settings, draw(0, "x", 0, torch.tensor([3])))
        >>> moved.source.tolist(), moved.target.tolist()
        ([[0, 2, 3, 4]], [[1, 0, 3, 4]])
    """
    sizes: Any = native.unique(dim=0).tolist() or [[1, 1]]
    if len(sizes) != 1:
        raise ValueError(f"images of one size are shifted together, got {len(sizes)} sizes")
    numbers = draw.uniform(_SHIFT_DRAWS, dtype=torch.float64).cpu()
    if numbers.shape != (len(native), _SHIFT_DRAWS):
        raise ValueError(
            f"{len(native)} images need a draw with as many ids, got numbers {tuple(numbers.shape)}"
        )
    reach = settings.random
    vector = (numbers[:, :2] * (2 * reach + 1)).floor().long() - reach + torch.tensor(settings.constant)
    geometry = placed(native, torch.ones(len(native)), vector, (sizes[0][0], sizes[0][1]))
    if not settings.bends:
        return geometry
    turn, shear, zoom = (2 * numbers[:, 2:] - 1).unbind(1)
    warp = turning(turn * settings.rotate, shear * settings.shear) / (1 + zoom * settings.zoom)[:, None, None]
    bend = None
    if settings.elastic:
        grid = (2, settings.elastic_grid, settings.elastic_grid)
        bend = (2 * draw.uniform(grid).cpu() - 1) * settings.elastic
    return replace(geometry, warp=warp, bend=bend)


@torch.no_grad()
def misalign(
    images: Maps, masks: Maps | None, settings: ShiftSettings, draw: Draw, *, ignore: int = 255
) -> Shifted:
    """Move images, and their masks likewise, from where they should lie.

    A shift by (dy, dx) brings the pixel (y, x) to (y + dy, x + dx). Whole pixels keep every value; turns and elastic
    changes interpolate images, and take the nearest pixel of masks.

    Args:
        images: (B, C, h, w), or B tensors of one size; uint8, or floating point in [0, 1].
        masks: (B, h, w) of any type, or None.
        settings: how far.
        draw: numbers of the B samples.
        ignore: value of masks where there is no image.

    Raises:
        ValueError: several sizes, masks of other sizes, or not as many images as the draw has ids.

    Example:
        >>> from leanlabel.rng import draw
        >>> image, mask = torch.arange(3.0).reshape(1, 1, 1, 3), torch.tensor([[[5, 6, 7]]])
        >>> moved = misalign(image, mask, ShiftSettings(constant=(0, 1)), draw(0, "x", 0, torch.tensor([0])))
        >>> moved.images.tolist(), moved.valid.tolist(), moved.masks.tolist()
        ([[[[1.0, 0.0, 1.0]]]], [[[False, True, True]]], [[[255, 5, 6]]])
    """
    native = torch.tensor([tuple(image.shape[-2:]) for image in images], dtype=torch.long).view(-1, 2)
    geometry = shift_geometry(native, settings, draw)
    device = images[0].device if len(images) else torch.device("cpu")
    moved = []
    for row in range(len(images)):
        image = images[row].float() / 255 if images[row].dtype == torch.uint8 else images[row].float()
        moved.append(
            apply_image(geometry.take(slice(row, row + 1)), image[None], image.mean((1, 2)).tolist())
        )
    channels = images.shape[1] if isinstance(images, Tensor) else 3
    empty = torch.empty(0, channels, *geometry.size, device=device)
    return Shifted(
        torch.cat(moved) if moved else empty,
        ~outside(geometry, device),
        None if masks is None else apply_mask(geometry, masks, ignore),
    )
