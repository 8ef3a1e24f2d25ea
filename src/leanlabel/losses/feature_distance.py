"""A loss that keeps features near those of a fixed network, at places that one class covers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.losses.pixel import checked_labels, wide


def cell_classes(
    labels: Tensor, size: Sequence[int], classes: int, *, purity: float = 0.75, ignore: int = -100
) -> Tensor:
    """Find the class that covers each cell of a coarse map.

    Cell i of h along an axis of H pixels covers the pixels from floor(i H / h) to before floor((i + 1) H / h), so that
    all pixels belong to one cell each, also where h does not divide H. Every pixel of a cell counts in the share,
    ignored ones included [Hoyer et al. 2022, section 3.3].

    Args:
        labels: (B, H, W) integers in [0, K) or `ignore`.
        size: h and w of the map.
        classes: K.
        purity: smallest share of the cell's pixels, in (0, 1]; of several classes that reach it the one with the most
            pixels, then the first.
        ignore: label that is no class.

    Returns:
        (B, h, w) int64, the class, or `ignore` where no class covers enough of the cell. Counting takes memory for
        B h w (K + 1) numbers, none for K maps of the labels' size.

    Raises:
        ValueError: shapes or purity do not fit; InputError for a label that is neither a class nor `ignore`.

    Example:
        >>> labels = torch.tensor([[[0, 0, 1, 2], [0, 1, 1, 2]]])
        >>> cell_classes(labels, (1, 2), 3)
        tensor([[[   0, -100]]])
    """
    if labels.ndim != 3 or len(size) != 2 or min(size) < 1:
        raise ValueError(
            f"labels must be (B, H, W) and size (h, w), got {tuple(labels.shape)} and {tuple(size)}"
        )
    if not 0 < purity <= 1:
        raise ValueError(f"purity must be in (0, 1], got {purity}")
    labels = checked_labels(
        torch.empty(1).expand(labels.shape[0], classes, *labels.shape[1:]), labels, ignore
    )
    device, batch, (height, width) = labels.device, len(labels), size
    rows, tall = _cells(labels.shape[1], height)
    columns, broad = _cells(labels.shape[2], width)
    cell = (torch.arange(batch)[:, None, None] * height + rows[:, None]) * width + columns
    slots = cell.to(device) * (classes + 1) + labels.where(labels != ignore, classes)
    counts = torch.zeros(batch * height * width * (classes + 1), dtype=torch.int32, device=device)
    counts.scatter_add_(0, slots.flatten(), counts.new_ones(1).expand(slots.numel()))
    most, found = counts.view(batch, height, width, classes + 1)[..., :classes].max(-1)
    # In whole pixels, so that a share such as 0.7 of 10 pixels is reached by 7 on every device.
    least = (purity * (tall[:, None] * broad).double() - 1e-6).ceil().clamp(min=1).int()
    return found.where(most >= least.to(device), ignore)


def feature_distance(features: Tensor, fixed: Tensor, keep: Tensor) -> Tensor:
    """Average the distance between two maps of features over chosen places.

    L = mean over kept i of |f_i - g_i|_2, the norm over channels    [Hoyer et al. 2022, section 3.3]

    Args:
        features: f, (B, D, h, w), carries gradient; at a place where f = g it is 0.
        fixed: g, (B, D, h, w), no gradient.
        keep: (B, h, w) bool.

    Returns:
        Scalar in float32 or wider, this rank's share of the mean over the kept places of all ranks; 0 attached to the
        graph where none is kept.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> features = torch.tensor([3.0, 4.0])[None, :, None, None]
        >>> feature_distance(features, torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool))
        tensor(5.)
    """
    if features.ndim != 4 or features.shape != fixed.shape:
        raise ValueError(
            f"features {tuple(features.shape)} and fixed {tuple(fixed.shape)} must be (B, D, h, w)"
        )
    if keep.dtype != torch.bool or keep.shape != features[:, 0].shape:
        raise ValueError(
            f"keep must be bool of {tuple(features[:, 0].shape)}, got {keep.dtype} {tuple(keep.shape)}"
        )
    apart = wide(features) - wide(fixed.detach())
    # What is left out becomes 0 before the norm: behind it, a place that is not finite would spoil the gradient.
    distances = torch.linalg.vector_norm(apart.where(keep[:, None], 0), dim=1)
    return dist.global_mean(distances.sum(), keep.sum())


def _cells(pixels: int, cells: int) -> tuple[Tensor, Tensor]:
    """Cell of every pixel along an axis, and number of pixels of every cell."""
    edges = torch.arange(cells + 1) * pixels // cells
    sizes = edges.diff()
    return torch.arange(cells).repeat_interleave(sizes), sizes
