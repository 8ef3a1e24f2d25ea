"""Square blocks of an image hidden at random, so that what is seen around them has to do."""

from __future__ import annotations

import torch
from torch import Tensor

from leanlabel.rng import Draw


def block_mask(size: tuple[int, int, int], block: int, ratio: float, draw: Draw) -> Tensor:
    """Choose the blocks of each sample that stay; each block is dropped by itself with probability ``ratio``.

    M = [u >= r] on a grid of blocks, one u ~ U(0, 1) for each block    [MIC, Hoyer et al., CVPR 2023]

    Blocks are laid from the upper left corner; the last ones of a row and of a column are cut by the border. (The
    published code stretches its grid where the sides are no multiples of the block.)

    Args:
        size: samples B, height and width in pixels.
        block: side of the blocks in pixels, >= 1; one as large as the image hides all of it or nothing.
        ratio: probability of dropping a block, in [0, 1].
        draw: numbers of the B samples. One call is made on it.

    Returns:
        (B, 1, h, w) bool on the device of the draw, True where pixels are kept.

    Raises:
        ValueError: block or ratio out of range, or another number of ids.

    Example:
        >>> from leanlabel.rng import draw
        >>> kept = block_mask((2, 5, 6), 2, 0.5, draw(0, "mask", 3, torch.tensor([8, 9])))
        >>> kept.shape, bool((kept[..., 0] == kept[..., 1]).all())
        (torch.Size([2, 1, 5, 6]), True)
    """
    if block < 1:
        raise ValueError(f"block must be at least 1 pixel, got {block}")
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in [0, 1], got {ratio}")
    batch, height, width = size
    rows, columns = -(-height // block), -(-width // block)
    numbers = draw.uniform((rows, columns))
    if numbers.shape != (batch, rows, columns):
        raise ValueError(f"{batch} samples need a draw with as many ids, got numbers {tuple(numbers.shape)}")
    kept = (numbers >= ratio).repeat_interleave(block, 1).repeat_interleave(block, 2)
    return kept[:, None, :height, :width]


def apply_block_mask(images: Tensor, kept: Tensor) -> Tensor:
    """Set what is not kept to 0: in normalised images the mean colour.

    Args:
        images: (B, C, h, w), normalised; gradient flows through what is kept.
        kept: (B, 1, h, w) bool, on any device.

    Returns:
        (B, C, h, w).

    Raises:
        ValueError: shapes do not belong together.

    Example:
        >>> apply_block_mask(torch.ones(1, 1, 1, 2), torch.tensor([[[[True, False]]]])).tolist()
        [[[[1.0, 0.0]]]]
    """
    if images.ndim != 4 or kept.dtype != torch.bool or kept.shape != (len(images), 1, *images.shape[2:]):
        raise ValueError(
            f"images {tuple(images.shape)} need a bool mask (B, 1, h, w), got {kept.dtype} {tuple(kept.shape)}"
        )
    return images.masked_fill(~kept.to(images.device), 0)
