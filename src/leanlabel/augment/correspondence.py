"""Which places of two random views of an image show the same thing, and what a map says there.

A view is a window of the image, resized to a square and perhaps mirrored; a map of h x w positions divides it into
equal cells. Positions stand for the centres of their cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from leanlabel.augment.image import Places


def counterparts(first: Places, second: Places, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Where the positions of a map of one view lie in another view of the same images.

    With (t, l, h, w) and m the window and mirroring of a view, the centre of cell (i, j) of the first view is at

        x = l + w a,  a = (j + 1/2) / columns, or 1 - a if m;   y = t + h (i + 1/2) / rows

    of the image, which is a' = (x - l') / w' (1 - a' if m') and b' = (y - t') / h' of the second.

    Args:
        first: places of the views that the map is of.
        second: places of the other views of the same B images.
        rows: rows of the map.
        columns: columns of the map.

    Returns:
        (B, rows, columns, 2) float64 on the CPU, (2 a' - 1, 2 b' - 1): across, then down, -1 and 1 the edges of the
        second view; and (B, rows, columns) bool, whether the place lies in it. No gradient.

    Raises:
        ValueError: the places are not of as many images, or the map has no position.

    Example:
        >>> whole = Places(torch.tensor([[0, 0, 4, 4]]), torch.tensor([False]))
        >>> right = Places(torch.tensor([[0, 2, 4, 2]]), torch.tensor([True]))
        >>> grid, inside = counterparts(whole, right, 1, 2)
        >>> inside.tolist(), grid[inside].tolist()
        ([[[False, True]]], [[0.0, 0.0]])
    """
    if len(first.windows) != len(second.windows):
        raise ValueError(f"places of {len(first.windows)} and of {len(second.windows)} images")
    if min(rows, columns) < 1:
        raise ValueError(f"a map needs a position, got {rows} x {columns}")
    across = _centres(columns)[None].repeat(len(first.windows), 1)
    across = torch.where(first.mirrored[:, None], 1 - across, across)
    down = _centres(rows)[None].repeat(len(first.windows), 1)
    one, two = first.windows.double()[:, :, None], second.windows.double()[:, :, None]
    across = (one[:, 1] + one[:, 3] * across - two[:, 1]) / two[:, 3]
    down = (one[:, 0] + one[:, 2] * down - two[:, 0]) / two[:, 2]
    across = torch.where(second.mirrored[:, None], 1 - across, across)
    inside = _within(down)[:, :, None] & _within(across)[:, None]
    grid = torch.stack(
        [across[:, None].expand(-1, rows, -1), down[:, :, None].expand(-1, -1, columns)], dim=-1
    )
    return 2 * grid - 1, inside


def read_at(maps: Tensor, grid: Tensor) -> Tensor:
    """Read maps between their positions, bilinearly; beyond the centres of the outermost cells their values hold.

    Args:
        maps: (B, C, h, w) floating point, gradient.
        grid: (B, rows, columns, 2) as from :func:`counterparts`, of any float type, on any device.

    Returns:
        (B, C, rows, columns) in the type of ``maps``.

    Example:
        >>> maps = torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 2)
        >>> read_at(maps, torch.tensor([[[[-1.0, 0.0], [-0.5, 0.0], [0.0, 0.0]]]])).tolist()
        [[[[0.0, 0.0, 1.0]]]]
    """
    return F.grid_sample(maps, grid.to(maps), mode="bilinear", padding_mode="border", align_corners=False)


def _centres(count: int) -> Tensor:
    """Centres of equal cells of [0, 1]."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _within(places: Tensor) -> Tensor:
    return (places >= 0) & (places <= 1)
