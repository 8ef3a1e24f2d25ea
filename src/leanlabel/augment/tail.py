"""Rare classes of labelled images on their way into others: which are rare, in which colours, without crumbs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SLACK = 1e-12
"""By which a sum of shares may exceed its bound: rounding of shares that meet it exactly."""
FLOOR = 1e-6
"""Smallest standard deviation that is divided by."""
# By the sides of pixels within a sample; samples, the first axis, do not touch.
_NEIGHBOURS = np.zeros((3, 3, 3), dtype=bool)
_NEIGHBOURS[1, 1, :] = _NEIGHBOURS[1, :, 1] = True


def tail_classes(pixels: Tensor, share: float = 0.04) -> Tensor:
    """Find the rarest classes, which together have no more than a share of all pixels.

    Classes are taken from the rarest upwards, of equally rare ones the first, as long as the sum of their shares stays
    within the bound.

    Args:
        pixels: (K,) labelled pixels of each class, or their shares, >= 0.
        share: bound in [0, 1].

    Returns:
        (K,) bool on the device of pixels. A class without pixels is never among them; where no class has any, none is.

    Raises:
        ValueError: not (K,), a count that is negative or not finite, or a share outside of [0, 1].

    Example:
        >>> tail_classes(torch.tensor([90, 6, 0, 1, 3])).tolist()
        [False, False, False, True, True]
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    counts = pixels.detach().cpu().double()
    if counts.ndim != 1 or not bool((counts.isfinite() & (counts >= 0)).all()):
        raise ValueError(f"pixels must be (K,), finite and not negative, got {tuple(pixels.shape)}")
    order = counts.argsort(stable=True)
    sums = counts[order].cumsum(0)
    found = torch.zeros(len(counts), dtype=torch.bool)
    if len(counts):
        found[order] = sums <= (share + SLACK) * sums[-1]
    return (found & (counts > 0)).to(pixels.device)


def moments(images: Tensor, like: Tensor) -> Tensor:
    """Give images the colours of others: mean and standard deviation of each channel of each image.

    y = (x - mean x) / max(std x, 1e-6) * std z + mean z, over the pixels of an image, with the deviation of the
    population on both sides

    Args:
        images: x, (B, C, H, W) floating point.
        like: z, (B, C, H', W'), of which the moments are taken.

    Returns:
        (B, C, H, W) in the type of images, computed in float32 or wider. A channel of one colour gets the mean of z,
        exactly. Gradient flows through both.

    Raises:
        ValueError: not as many images or channels.

    Example:
        >>> source = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)
        >>> moments(source, torch.tensor([10.0, 10.0, 14.0, 14.0]).view(1, 1, 2, 2)).flatten().tolist()
        [10.0, 14.0]
    """
    if images.ndim != 4 or like.ndim != 4 or images.shape[:2] != like.shape[:2]:
        raise ValueError(
            f"images {tuple(images.shape)} and like {tuple(like.shape)} must be (B, C, H, W) of equal B and C"
        )
    if not images.numel():
        return images
    kind = torch.promote_types(images.dtype, torch.float32)
    wide = images.to(kind)
    # Both at once, by running differences: of one colour the mean is that colour, where a rounded sum of many pixels
    # would leave something to divide by 1e-6.
    spread, middle = torch.std_mean(wide, (2, 3), correction=0, keepdim=True)
    wanted, goal = torch.std_mean(like.to(kind), (2, 3), correction=0, keepdim=True)
    return torch.addcmul(goal, wide - middle, wanted / spread.clamp(min=FLOOR)).to(images.dtype)


def without_small(region: Tensor, least: int) -> Tensor:
    """Leave out of a region the parts that are too small.

    A part is what hangs together by the sides of pixels, in one sample.

    Args:
        region: (B, h, w) bool. Parts are found on the CPU.
        least: pixels that a part must have; 1 or less leaves all as they are.

    Returns:
        (B, h, w) bool on the device of the region.

    Raises:
        ValueError: not bool (B, h, w).

    Example:
        >>> region = torch.tensor([[[True, True, False, True]]])
        >>> without_small(region, 2).tolist()
        [[[True, True, False, False]]]
    """
    if region.ndim != 3 or region.dtype != torch.bool:
        raise ValueError(f"region must be bool (B, h, w), got {region.dtype} {tuple(region.shape)}")
    if least <= 1 or not region.numel():
        return region
    from scipy import ndimage

    parts = np.zeros(region.shape, dtype=np.int32)
    ndimage.label(region.cpu().numpy(), _NEIGHBOURS, output=parts)
    numbers = torch.from_numpy(parts).flatten()
    kept = numbers.bincount() >= least
    kept[0] = False
    return kept[numbers].view(region.shape).to(region.device)
