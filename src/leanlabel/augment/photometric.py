"""Colours of images changed at random: jitter, gamma, grey, blur and noise, fresh numbers for each sample.

The order is fixed, as listed; clamped to [0, 1]. A sample's numbers are the same whichever operations are switched on.
"""

from __future__ import annotations

import torch
from pydantic import field_validator
from torch import Tensor

from leanlabel.augment.colour import OPERATIONS, ORDERS, Hue, grey_, half_turn, jitter_, ordered
from leanlabel.augment.image import Positive, Probability, Strength, jitter_factors
from leanlabel.augment.resample import gaussian_blur
from leanlabel.config import Settings
from leanlabel.errors import InputError
from leanlabel.rng import Draw

# Columns of a sample's uniform numbers.
_JITTER, _FACTORS, _ORDER, _GAMMA, _POWER = 0, 1, 5, 6, 7
_GREY, _BLUR, _SIGMA, _NOISE, _LEVEL = 8, 9, 10, 11, 12
COLOUR_DRAWS = _LEVEL + 1


class ColourSettings(Settings):
    """How the colours of an image are changed at random; all off unless set."""

    jitter: tuple[Strength, Strength, Strength, Strength] = (0.0, 0.0, 0.0, 0.0)
    """Brightness, contrast and saturation factors are uniform in [max(0, 1 - j), 1 + j]; hue is turned by up to j full
    turns, at most 0.5. The four come in random order. Images must be RGB."""
    jitter_probability: Probability = 0.8
    """Probability of the colour jitter."""
    hue: Hue = "hsv"
    """hsv: turn the hue exactly; fast: turn the colour plane of YIQ instead, a cheaper approximation."""
    gamma: Probability = 0.0
    """Probability of raising values to a power."""
    gamma_range: tuple[Positive, Positive] = (0.7, 1.4)
    """Smallest and largest power, evenly spread in its logarithm."""
    grey: Probability = 0.0
    """Probability of removing colour. Images must be RGB."""
    blur: Probability = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[Positive, Positive] = (0.15, 1.15)
    """Smallest and largest standard deviation of the blur in pixels of the crop."""
    noise: Probability = 0.0
    """Probability of Gaussian noise, independent per pixel and channel."""
    noise_sigma: tuple[Strength, Strength] = (0.01, 0.05)
    """Smallest and largest standard deviation of the noise, where 1 is white."""

    _ordered = field_validator("gamma_range", "blur_sigma", "noise_sigma")(ordered)

    _half_turn = field_validator("jitter")(half_turn)


@torch.no_grad()
def colours(x: Tensor, settings: ColourSettings, draw: Draw) -> Tensor:
    """Change the colours of images at random and nothing else: a strong view for consistency.

    Args:
        x: (B, C, H, W) floating point in [0, 1], C = 3 where the settings jitter or remove colour.
        settings: the recipe.
        draw: numbers of the B samples.

    Returns:
        (B, C, H, W) float32 in [0, 1], not normalised; no gradient.

    Raises:
        InputError: the settings need RGB and the images are not.
        ValueError: not (B, C, H, W) floating point, or not as many images as the draw has ids.

    Example:
        >>> from leanlabel.rng import draw
        >>> settings = ColourSettings(grey=1.0)
        >>> grey = colours(torch.rand(2, 3, 4, 4), settings, draw(0, "strong", 7, torch.tensor([3, 9])))
        >>> bool((grey[:, 0] == grey[:, 2]).all())
        True
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"images must be (B, C, H, W) floating point, got {tuple(x.shape)} of {x.dtype}")
    check_colours(x.shape[1], settings)
    numbers = draw.uniform(COLOUR_DRAWS).cpu()
    if numbers.shape != (len(x), COLOUR_DRAWS):
        raise ValueError(f"{len(x)} images need a draw with as many ids, got numbers {tuple(numbers.shape)}")
    result = x.float().clone()
    with torch.autocast(x.device.type, enabled=False):
        recolour_(result, settings, numbers, noise_of(tuple(x.shape[1:]), settings, draw))
    return result


def noise_of(shape: tuple[int, ...], settings: ColourSettings, draw: Draw) -> Tensor | None:
    """Standard normal numbers (B, *shape), or None where there is no noise."""
    if not settings.noise:
        return None
    # The inverse of the distribution function takes half the numbers of Draw.normal and a quarter of its time.
    centred = draw.uniform(shape).mul_(2).sub_(1 - 2.0**-24)
    return torch.special.erfinv(centred).mul_(2**0.5)


def recolour_(x: Tensor, settings: ColourSettings, numbers: Tensor, noise: Tensor | None) -> None:
    """Change the colours of (B, C, h, w) in place, by numbers (B, COLOUR_DRAWS)."""

    def chosen(column: int, probability: float) -> Tensor:
        return (numbers[:, column] < probability).nonzero()[:, 0]

    def between(limits: tuple[float, float], rows: Tensor, column: int) -> Tensor:
        return limits[0] + (limits[1] - limits[0]) * numbers[rows, column]

    rows = chosen(_JITTER, settings.jitter_probability)
    if len(rows) and any(settings.jitter):
        factors = jitter_factors(settings.jitter, numbers[rows, _FACTORS : _FACTORS + len(OPERATIONS)])
        orders = (numbers[rows, _ORDER].double() * len(ORDERS)).long()
        jitter_(x, rows, factors, orders, hue=settings.hue if settings.jitter[3] else None)
    rows = chosen(_GAMMA, settings.gamma)
    if len(rows):
        low, high = (torch.tensor(limit).log() for limit in settings.gamma_range)
        power = between((float(low), float(high)), rows, _POWER).exp().to(x.device)
        there = rows.to(x.device)
        x.index_copy_(0, there, x.index_select(0, there).clamp_(min=0).pow_(power.view(-1, 1, 1, 1)))
    rows = chosen(_GREY, settings.grey)
    if len(rows):
        there = rows.to(x.device)
        x.index_copy_(0, there, grey_(x.index_select(0, there)))
    rows = chosen(_BLUR, settings.blur)
    if len(rows):
        there, sigma = rows.to(x.device), between(settings.blur_sigma, rows, _SIGMA)
        x.index_copy_(0, there, gaussian_blur(x.index_select(0, there), sigma, settings.blur_sigma[1]))
    rows = chosen(_NOISE, settings.noise)
    if len(rows) and noise is not None:
        there, sigma = rows.to(x.device), between(settings.noise_sigma, rows, _LEVEL)
        added = noise[rows.to(noise.device)].to(x.device) * sigma.to(x.device).view(-1, 1, 1, 1)
        x.index_copy_(0, there, x.index_select(0, there).add_(added).clamp_(0, 1))


def check_colours(channels: int, settings: ColourSettings) -> None:
    """Refuse colour changes that are defined for red, green and blue only."""
    if channels == 3:
        return
    if (settings.jitter_probability and any(settings.jitter)) or settings.grey:
        raise InputError(
            f"jitter and grey are for RGB images, but these have {channels} channels.",
            "Set jitter to (0, 0, 0, 0) and grey to 0; gamma, blur and noise work with any channels.",
        )
