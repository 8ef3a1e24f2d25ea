"""Colour changes of image views: brightness, contrast, saturation and hue with factors of each sample's own, in its own
order; grey; solarisation.

Functions whose name ends in an underscore work in place, as in torch. Values stay in [0, 1], after a turn of the hue
up to rounding.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor

Hue = Literal["hsv", "fast"]

# Luma of ITU-R BT.601.
GREY = (0.299, 0.587, 0.114)
# The order in which a factor stands in a row of factors.
OPERATIONS = ("brightness", "contrast", "saturation", "hue")
_CONTRAST, _SATURATION, _HUE = 1, 2, 3
ORDERS = torch.tensor(list(itertools.permutations(range(len(OPERATIONS)))))


def ordered(limits: tuple[float, float]) -> tuple[float, float]:
    """Check a setting of two limits: the smaller one stands first."""
    if limits[0] > limits[1]:
        raise ValueError("the smaller limit first")
    return limits


def half_turn(strengths: tuple[float, ...]) -> tuple[float, ...]:
    """Check the strengths of a colour jitter: the hue, the last one, turns by at most half a circle."""
    if strengths[3] > 0.5:
        raise ValueError("a hue of at most 0.5, half a turn")
    return strengths


def grey_plane(images: Tensor) -> Tensor:
    """Return 0.299 R + 0.587 G + 0.114 B, (B, 1, h, w), of images (B, 3, h, w)."""
    red, green, blue = images.split(1, dim=1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def grey_(images: Tensor) -> Tensor:
    """Replace every channel of (B, 3, h, w) by the grey value."""
    return images.copy_(grey_plane(images))


def hue_(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of HSV, keeping saturation and value.

    With V = max, m = min, C = V - m and the hue h in turns: h <- h + turns modulo 1, then
    R = m - C + 6C d(1/2), G = V + C - 6C d(1/3), B = V + C - 6C d(2/3) with d(c) = clamp(|h - c|, 1/6, 1/3).
    No clamping: values beyond [0, 1] come from rounding only.

    Args:
        images: (B, 3, h, w) in [0, 1]; changed in place.
        turns: (B,) in full turns; 1/3 takes red to green.

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
        >>> hue_(red, torch.tensor([1 / 3])).flatten().round(decimals=5).tolist()
        [0.0, 1.0, 0.0]
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    six = chroma * 6
    # For G >= B, 6h = (C + (G - m) + (B - m) - (R - m)) / C in [0, 3], else its negative: no case by largest channel.
    # Grey pixels: 0 / tiny = 0.
    hue = (green + blue).sub_(red).add_(value).sub_(least, alpha=2).copysign_(green - blue)
    hue.div_(six.clamp(min=torch.finfo(images.dtype).tiny))
    # Positive thanks to the whole turn, so that frac is modulo 1.
    hue.add_((turns - turns.floor() + 1).to(images).view(-1, 1, 1)).frac_()
    low, high = least - chroma, value + chroma
    for plane, base, corner, sign in (
        (red, low, 1 / 2, 1),
        (green, high, 1 / 3, -1),
        (blue, high, 2 / 3, -1),
    ):
        distance = (hue - corner).abs_().clamp_(1 / 6, 1 / 3)
        torch.addcmul(base, six, distance, value=sign, out=plane)
    return images


def fast_hue_(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the colour plane of YIQ: one 3 x 3 matrix per image, luma is kept, saturation only roughly.

    A quick stand-in for :func:`hue_`; the two agree in direction, not in value.

    Args:
        images: (B, 3, h, w) in [0, 1]; changed in place.
        turns: (B,) in full turns, same sense as in :func:`hue_`.
    """
    columns = yiq_rotation(turns).to(images)[..., None, None].unbind(2)
    red, green, blue = images.split(1, dim=1)
    # Sums of planes: a product with a 3 x 3 matrix is too small for the matrix kernels.
    result = (red * columns[0]).addcmul_(green, columns[1]).addcmul_(blue, columns[2])
    return torch.clamp(result, 0, 1, out=images)


def yiq_rotation(turns: Tensor) -> Tensor:
    """RGB matrices (B, 3, 3) float64 that turn the (I, Q) plane by -2 pi turns (hue grows from I towards -Q)."""
    analysis = torch.tensor(
        [GREY, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)],
        dtype=torch.float64,
        device=turns.device,
    )
    angle = turns.double() * (2 * math.pi)
    zero, one, cosine, sine = torch.zeros_like(angle), torch.ones_like(angle), angle.cos(), angle.sin()
    rows = [one, zero, zero, zero, cosine, sine, zero, -sine, cosine]
    return torch.linalg.inv(analysis) @ torch.stack(rows, 1).view(-1, 3, 3) @ analysis


def jitter_(
    images: Tensor, rows: Tensor, factors: Tensor, orders: Tensor, *, hue: Hue | None = "hsv"
) -> Tensor:
    """Change brightness, contrast, saturation and hue of some images, of each in its own order.

    With g the grey value of a pixel and m its mean over the image: brightness f x, contrast f x + (1 - f) m, saturation
    f x + (1 - f) g, each clamped to [0, 1]; then the hue. As the three are of one form, images with different orders
    share a pass: sorted by the place of the hue in their order, they take up to three steps before it, the hue all
    at once, and the rest of the steps after it.

    Args:
        images: (B, 3, h, w) in [0, 1], changed in place.
        rows: (n,) integers on the CPU: which images.
        factors: (n, 4) on the CPU: brightness, contrast, saturation >= 0, hue in turns.
        orders: (n,) integers on the CPU in [0, 24): which permutation of the four.
        hue: "hsv" as in :func:`hue_`, "fast" as in :func:`fast_hue_`, None: leave it out.

    Example:
        >>> image = torch.full((1, 3, 1, 1), 0.5)
        >>> factors = torch.tensor([[1.5, 1.0, 1.0, 0.0]])
        >>> jitter_(image, torch.tensor([0]), factors, torch.tensor([7])).flatten().tolist()
        [0.75, 0.75, 0.75]
    """
    steps = ORDERS[orders]
    place, sequence = torch.sort((steps == _HUE).int().argmax(1), stable=True)
    rows, steps, factors = rows[sequence].to(images.device), steps[sequence], factors[sequence]
    own = factors.gather(1, steps)
    # Columns of every step: f, a for saturation (g the pixel's grey), b for contrast (times the image's mean grey).
    rest = 1 - own
    columns = torch.stack([own, rest * (steps == _SATURATION), rest * (steps == _CONTRAST)], 2).to(images)
    turns = factors[:, _HUE].to(images)
    x = images.index_select(0, rows)
    for step in range(len(OPERATIONS) - 1):
        first = int((place <= step).sum())
        _blend_(x[first:], columns[first:, step])
    if hue is not None:
        x = hue_(x, turns) if hue == "hsv" else fast_hue_(x, turns)
    for step in range(1, len(OPERATIONS)):
        last = int((place < step).sum())
        _blend_(x[:last], columns[:last, step])
    return images.index_copy_(0, rows, x)


def _blend_(images: Tensor, columns: Tensor) -> None:
    """x <- clamp(f x + a g + b m) with g the grey value of a pixel, m of an image; columns (B, 3) of f, a, b."""
    if not len(images):
        return
    factor, by_pixel, by_mean = columns[..., None, None, None].unbind(1)
    grey = grey_plane(images)
    constant = by_mean * grey.mean((1, 2, 3), keepdim=True)
    torch.addcmul(grey.mul_(by_pixel).add_(constant), images, factor, out=images).clamp_(0, 1)


def solarise_(images: Tensor, threshold: float) -> Tensor:
    """x <- 1 - x where x >= threshold.

    Example:
        >>> solarise_(torch.tensor([0.25, 0.5, 1.0]), 0.5).tolist()
        [0.25, 0.5, 0.0]
    """
    return images.copy_(torch.where(images >= threshold, 1 - images, images))


def normalise(
    images: Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / std per channel of (B, 3, h, w), written to ``out`` where given."""
    centre, width = (torch.tensor(row).to(images).view(3, 1, 1) for row in (mean, std))
    return torch.sub(images, centre, out=out).div_(width)
