"""Losses that part an image into content and style: what is rebuilt, and what an image without style must look like.

With an encoder of content E_c, an encoder of styles E_s and a decoder G: c = E_c(x), s = E_s(x), x0 = G(c, 0) is the
image without style, c0 = E_c(x0) its content. All sums run in float32 or wider, all means over the elements of all
ranks (:func:`leanlabel.dist.global_mean`): what a function returns is this rank's share.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel import dist
from leanlabel.losses.pixel import wide

FLOOR = 1e-6
"""Added to the mean size of the content that a drift is relative to."""
HALF_FLOOR = 1e-3
"""Smallest mean size of the content in half precision, whose numbers below 6e-5 are coarse."""


def reconstruction(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Average how far rebuilt images are from the images.

    L = mean |G(c, s) - x|

    Args:
        images: x, (B, C, H, W), normalised as networks read them, no gradient.
        rebuilt: G(c, s), (B, C, H, W), carries gradient.

    Returns:
        Scalar in float32 or wider, 0 attached to the graph where there is no image.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> reconstruction(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, -3.0]]]]))
        tensor(2.)
    """
    _check_alike(images=images, rebuilt=rebuilt)
    return dist.global_mean(_apart(rebuilt, images), images.numel())


def content_drift(again: Tensor, content: Tensor) -> Tensor:
    """Compare the content of images without style with that of the images, relative to its size.

    L = mean |c0 - c| / (mean |c| + 1e-6)

    c is taken as constant: with a gradient to it, content could become the same everywhere. Where one of the two has
    half precision, the divisor is max(mean |c|, 1e-3), so that content that is 0 everywhere (dead units) does not
    multiply the loss by a million.

    Args:
        again: c0, (B, D, h, w), carries gradient.
        content: c, (B, D, h, w), no gradient.

    Returns:
        Scalar in float32 or wider; 0 attached to the graph where there is no image. Over several ranks the ratio of the
        means over all ranks, also where these have unequal numbers of elements.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> again, content = torch.tensor([1.625, 0.25]), torch.tensor([2.5, 1.0])
        >>> round(float(content_drift(again.view(1, 2, 1, 1), content.view(1, 2, 1, 1))), 6)
        0.464285
    """
    _check_alike(again=again, content=content)
    numbers = torch.tensor(content.numel(), device=content.device)
    total, count = dist.sums(wide(content.detach()).abs().sum(), numbers)
    size = total / count.clamp(min=1)
    half = {again.dtype, content.dtype} & {torch.float16, torch.bfloat16}
    divisor = size.clamp(min=HALF_FLOOR) if half else size + FLOOR
    return dist.global_mean(_apart(again, content) / divisor, content.numel())


def emptiness(style: Tensor) -> Tensor:
    """Average the size of the styles of images without style.

    L = mean |E_s(x0)|

    Args:
        style: E_s(x0), (B, N) or of any shape, carries gradient, to the encoder and to the image.

    Returns:
        Scalar in float32 or wider; 0 attached to the graph where there is no image.

    Example:
        >>> emptiness(torch.tensor([[0.25, -0.75]]))
        tensor(0.5000)
    """
    return dist.global_mean(wide(style).abs().sum(), style.numel())


def _apart(one: Tensor, constant: Tensor) -> Tensor:
    """Sum of absolute differences, whose gradient is 0 where there is none."""
    # Not (a - b).abs(): that would keep a map of the differences for the backward pass.
    return F.l1_loss(wide(one), wide(constant.detach()), reduction="sum")


def _check_alike(**tensors: Tensor) -> None:
    (one, first), (other, second) = tensors.items()
    if first.shape != second.shape:
        raise ValueError(
            f"{one} {tuple(first.shape)} and {other} {tuple(second.shape)} must have the same shape"
        )
