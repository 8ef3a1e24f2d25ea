"""Places in a picture that is turned, sheared and bent."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def turning(degrees: Tensor, shear: Tensor) -> Tensor:
    """Matrices A of a turn by ``degrees`` (the picture turns counter-clockwise) and a horizontal shear by an angle.

    The picture is sheared, then turned: a pixel at q in the result is read at S^-1 R^-1 q, columns (y, x).

    Args:
        degrees: (B,) angle of the turn.
        shear: (B,) angle of the shear in degrees; upright lines lean by it.

    Returns:
        (B, 2, 2) float64, with determinant 1.

    Example:
        >>> turning(torch.tensor([90.0]), torch.tensor([0.0])).round().long().tolist()
        [[[0, 1], [-1, 0]]]
    """
    angle, lean = degrees.double() * (math.pi / 180), shear.double() * (math.pi / 180)
    cosine, sine, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([cosine, sine, -sine, cosine], 1).view(-1, 2, 2)
    slant = torch.stack([one, zero, lean.tan(), one], 1).view(-1, 2, 2)
    return slant @ turn


def warped_places(
    size: tuple[int, int],
    warp: Tensor | None,
    bend: Tensor | None,
    mirrored: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Where every pixel of a result is read before resizing: p = c + A (q - c) + e(q).

    Args:
        size: height and width of the result; c is its middle.
        warp: (2, 2), A on columns (y, x); None: the identity.
        bend: (2, g, g), e at control points spread evenly from edge to edge, (y, x) in pixels of the result; a cubic in
            between; None: zero.
        mirrored: whether q is taken from the right.
        device: where the result lives.

    Returns:
        y and x, each (h, w) float32, in pixels from the corner; the centre of the first pixel is at 1/2.

    Example:
        >>> y, x = warped_places((1, 3), None, None, mirrored=True)
        >>> y.tolist(), x.tolist()
        ([[0.5, 0.5, 0.5]], [[2.5, 1.5, 0.5]])
    """
    height, width = size
    y = torch.arange(height, device=device) + (0.5 - height / 2)
    x = torch.arange(width, device=device) + (0.5 - width / 2)
    x = -x if mirrored else x
    yy, yx, xy, xx = (1.0, 0.0, 0.0, 1.0) if warp is None else warp.flatten().tolist()
    place_y = (y * yy + height / 2)[:, None] + x * yx
    place_x = (y * xy)[:, None] + (x * xx + width / 2)
    if bend is not None:
        moved = F.interpolate(bend.to(device)[None], size=size, mode="bicubic", align_corners=True)[0]
        moved = moved.flip(2) if mirrored else moved
        place_y, place_x = place_y + moved[0], place_x + moved[1]
    return place_y, place_x
