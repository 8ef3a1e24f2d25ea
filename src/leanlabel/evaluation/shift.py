"""How far two images of one scene lie apart, whatever sensors took them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from leanlabel.errors import InputError

# Response of images of different scenes, times the square root of the number of pixels: measured on street scenes of
# 48 x 64 and 96 x 128 pixels, the median is 11 at both sizes, and one of a hundred pairs reaches 20.
_CHANCE = 20.0
# Frequencies of this share of the sampling rate count 60 %: higher ones are noise, and the edges of coarse pixels.
_BAND = 0.125


class Shift(NamedTuple):
    """What :func:`estimate_shift` gives."""

    dy: int
    """Pixels by which the second image shows things further down."""
    dx: int
    """Pixels by which it shows them further to the right."""
    response: float
    """Up to 1, which means that edges agree exactly; see :func:`least_response`."""


def least_response(height: int, width: int) -> float:
    """Response from which on a shift can be believed: images of different scenes hardly reach it.

    The smaller the images, the more agrees by chance.

    >>> round(least_response(100, 400), 3)
    0.1
    """
    return _CHANCE / math.sqrt(height * width)


@torch.no_grad()
def estimate_shift(first: Tensor, second: Tensor, max_shift: int) -> Shift:
    """Find the shift between two images by phase correlation of the strength of their edges.

    With G the magnitude of the gradient of the mean of all channels, times a Hann window, and F its Fourier transform:
    r = IFFT( W conj(F1) F2 / |F1 F2| ) / mean W, W a Gaussian low-pass; the shift is where r is largest, the response r
    there [Kuglin and Hines 1975, on gradients]. The strength of an edge is the same in a negative, so that sensors
    may differ in brightness, contrast and colour; edges that one of them does not see lower the response.

    Args:
        first: (C, h, w) uint8 or floating point.
        second: (C', h, w), channels may differ.
        max_shift: largest shift in pixels, down and across; below half of both sides.

    Returns:
        Whole pixels (dy, dx), so that second[y + dy, x + dx] shows what first[y, x] shows, and the response: 0 where an
        image has no edges.

    Raises:
        InputError: images of different sizes.
        ValueError: not (C, h, w), or max_shift out of range.

    Example:
        >>> scene = torch.zeros(1, 24, 32)
        >>> scene[:, 8:14, 10:20] = 1
        >>> found = estimate_shift(scene, 1 - scene.roll((2, -3), (1, 2)), 5)
        >>> found.dy, found.dx, found.response > least_response(24, 32)
        (2, -3, True)
    """
    if first.ndim != 3 or second.ndim != 3:
        raise ValueError(f"images must be (C, h, w), got {tuple(first.shape)} and {tuple(second.shape)}")
    if first.shape[1:] != second.shape[1:]:
        (h, w), (g, v) = first.shape[1:], second.shape[1:]
        raise InputError(f"a shift is between images of one size, got {w} x {h} and {v} x {g} pixels.")
    height, width = first.shape[1:]
    if not 0 <= 2 * max_shift < min(height, width):
        raise ValueError(f"max_shift must be in [0, {min(height, width)} / 2), got {max_shift}")
    one, other = (torch.fft.rfft2(_edges(image)) for image in (first, second))
    cross = one.conj() * other
    size = cross.abs()
    if not float(size.max()) > 0:
        return Shift(0, 0, 0.0)
    down = torch.fft.fftfreq(height, dtype=torch.float64)
    across = torch.fft.rfftfreq(width, dtype=torch.float64)
    weight = (-0.5 * (down.square()[:, None] + across.square()) / _BAND**2).exp()
    # Where nothing is there is no phase.
    phase = torch.where(size > 1e-12 * size.max(), cross / size.clamp(min=torch.finfo(size.dtype).tiny), 0)
    peak = torch.fft.irfft2(weight, s=(height, width))[0, 0]
    found = torch.fft.irfft2(weight * phase, s=(height, width)) / peak
    reach = torch.arange(-max_shift, max_shift + 1)
    window = found[reach][:, reach]
    place = int(window.argmax())
    dy, dx = divmod(place, 2 * max_shift + 1)
    return Shift(dy - max_shift, dx - max_shift, float(window.flatten()[place]))


def _edges(image: Tensor) -> Tensor:
    """(h, w) float64: strength of edges, fading out towards the border."""
    grey = image.cpu().double().mean(0)
    inner = torch.zeros_like(grey)
    if min(grey.shape) > 2:
        down, across = grey[2:, 1:-1] - grey[:-2, 1:-1], grey[1:-1, 2:] - grey[1:-1, :-2]
        inner[1:-1, 1:-1] = (down.square() + across.square()).sqrt()
    windows = [torch.hann_window(side + 2, periodic=False, dtype=torch.float64)[1:-1] for side in grey.shape]
    return (inner - inner.mean()) * windows[0][:, None] * windows[1]
