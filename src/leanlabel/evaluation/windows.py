"""Windows over an image: where they lie, what they weigh, and bilinear values between the positions of a map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Weighting = Literal["tapered", "flat"]


@dataclass(frozen=True, eq=False)
class Span:
    """One window along one axis.

    Attributes:
        begin, length: of the window in the scaled image; it may reach past the end.
        start, stop: pixels of the original image that it says something about.
        centres: (stop - start,) float64, their centres in pixels of the scaled image, from the window's begin.
        weights: (stop - start,) float64; over all windows of an axis they sum to 1 at every pixel.
    """

    begin: int
    length: int
    start: int
    stop: int
    centres: Tensor
    weights: Tensor


class Place(NamedTuple):
    """A window of one of the scaled images."""

    scale: int
    rows: Span
    columns: Span


def axis_spans(
    size: int, scaled: int, window: int, overlap: float, halo: int, stride: int, weighting: Weighting
) -> list[Span]:
    """Lay windows along one axis, with weights that sum to 1 at every pixel.

    Args:
        size: pixels of the original image along the axis.
        scaled: pixels of the scaled image.
        window: pixels of a window.
        overlap, halo, weighting: as in :func:`segment_tiles`.
        stride: all windows but the last begin at a multiple of it.

    Returns:
        The windows in order.

    Example:
        >>> [(one.begin, one.start, one.stop) for one in axis_spans(10, 10, 4, 0.5, 0, 1, "flat")]
        [(0, 0, 4), (2, 2, 6), (4, 4, 8), (6, 6, 10)]
        >>> [one.weights.tolist() for one in axis_spans(4, 4, 3, 0.5, 0, 1, "flat")]
        [[1.0, 0.5, 0.5], [0.5, 0.5, 1.0]]
    """
    begins = [0]
    if scaled > window:
        widest = window - 2 * halo
        step = max(1, min(round(window * (1 - overlap)), widest))
        if stride <= widest:
            step = max(1, step // stride) * stride
        begins = [*range(0, scaled - window, step), scaled - window]
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * (scaled / size) - 0.5
    total, drafts = torch.zeros(size, dtype=torch.float64), []
    for begin in begins:
        # Where the window's edge is the image's own, it alone answers for all pixels up to there.
        left = begin + halo - 0.5 if begin > 0 else -math.inf
        right = begin + window - halo - 0.5 if begin + window < scaled else math.inf
        inside = ((centres >= left) & (centres < right)).nonzero()[:, 0]
        if not len(inside):
            continue  # a scale so small that no pixel's centre falls into this window
        start, stop = int(inside[0]), int(inside[-1]) + 1
        own = centres[start:stop]
        weights = torch.ones_like(own)
        if weighting == "tapered":
            weights = torch.minimum(own - left, right - own).clamp(min=1e-3, max=window / 2)
        total[start:stop] += weights
        drafts.append((begin, start, stop, own - begin, weights))
    return [
        Span(begin, window, start, stop, own, weights / total[start:stop])
        for begin, start, stop, own, weights in drafts
    ]


def positions(centres: Tensor, length: int, side: int, align_corners: bool) -> Tensor:
    """Say where pixel centres of a window lie on the network's map of it, which has fewer positions.

    Args:
        centres: (n,) float64, in pixels from the window's begin.
        length: pixels of the window.
        side: positions of the map.
        align_corners: whether the centres of the outermost positions coincide, or the outer edges.

    Returns:
        (n,) float64; may lie a little beyond [0, side - 1].
    """
    if align_corners:
        return centres * ((side - 1) / max(1, length - 1))
    return (centres + 0.5) * (side / length) - 0.5


def sampled(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take bilinear values of maps at a grid of positions; beyond the edge, those of the edge.

    Args:
        maps: (K, h, w) floating point.
        rows, columns: (n,) and (m,) float64, ascending.

    Returns:
        (K, n, m), a new tensor in the type of `maps`.

    Example:
        >>> sampled(torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]), torch.tensor([0.5]), torch.tensor([-1.0, 0.25])).tolist()
        [[[1.0, 1.25]]]
    """
    steps = []
    for dim, spots in ((1, rows), (2, columns)):
        side = maps.shape[dim]
        spots = spots.clamp(0, side - 1)
        low = spots.floor()
        near, far = int(low[0]), min(int(low[-1]) + 2, side)
        # Only what is between the outermost positions is looked at: a strip costs no more than it covers.
        maps = maps.narrow(dim, near, far - near)
        steps.append((dim, (low - near).long().to(maps.device), spots - low))
    # Columns first, while there are few rows; whole rows are then copied at once.
    for dim, index, share in reversed(steps):
        start = maps.index_select(dim, index)
        if bool(share.any()):
            end = maps.index_select(dim, (index + 1).clamp_max(maps.shape[dim] - 1))
            start = start.lerp_(end, share.to(maps).view(-1, 1) if dim == 1 else share.to(maps))
        maps = start
    return maps
