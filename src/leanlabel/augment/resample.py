"""Spatial filters of image views: random windows, antialiased resizing of a window, Gaussian blur.

All are separable and linear; a batch whose images have one size goes through two matrix products with weights of its
own for every sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TRIES = 10
# Uniform numbers that a window takes: area and ratio of every try, vertical and horizontal place.
WINDOW_DRAWS = 2 * TRIES + 2
# Largest side of source or result for which dense weights are quicker than one call per sample on a CPU.
_DENSE_SIDE = 64
# Side of the blocks in which the blur is computed.
_BLOCK = 32


def crop_windows(
    heights: Tensor, widths: Tensor, scale: tuple[float, float], ratio: tuple[float, float], numbers: Tensor
) -> Tensor:
    """Choose one window per image: its share of the area uniform, its width / height log-uniform.

    A try has w = round(sqrt(a r)), h = round(sqrt(a / r)) with a = H W U(scale), r = exp U(log ratio); the first of ten
    that fits into the image is taken, at a uniform place. Where none fits: the largest central window whose ratio
    is the image's own, clamped to the range [Szegedy et al. 2015, section 6, in torchvision's form].

    Args:
        heights: (B,) image heights in pixels, >= 1.
        widths: (B,) image widths in pixels, >= 1.
        scale: smallest and largest share of the area, above 0.
        ratio: smallest and largest width / height, above 0.
        numbers: (B, 22) uniform in [0, 1).

    Returns:
        (B, 4) int64: top, left, height, width.

    Example:
        >>> crop_windows(torch.tensor([4]), torch.tensor([6]), (1.0, 1.0), (1.0, 1.0), torch.zeros(1, 22)).tolist()
        [[0, 1, 4, 4]]
    """
    H, W, numbers = heights.double()[:, None], widths.double()[:, None], numbers.double()
    low, high = math.log(ratio[0]), math.log(ratio[1])
    area = H * W * (scale[0] + (scale[1] - scale[0]) * numbers[:, :TRIES])
    root = (low + (high - low) * numbers[:, TRIES : 2 * TRIES]).mul(0.5).exp()
    side = area.sqrt()
    w, h = (side * root).round(), (side / root).round()
    fits = (w >= 1) & (w <= W) & (h >= 1) & (h <= H)
    first = fits.int().argmax(1, keepdim=True)
    found = fits.gather(1, first)
    own = W / H
    whole_w = torch.where(own > ratio[1], (H * ratio[1]).round(), W).clamp(min=1).minimum(W)
    whole_h = torch.where(own < ratio[0], (W / ratio[0]).round(), H).clamp(min=1).minimum(H)
    w = torch.where(found, w.gather(1, first), whole_w)
    h = torch.where(found, h.gather(1, first), whole_h)
    top = torch.where(found, numbers[:, -2:-1] * (H - h + 1), (H - h) / 2).floor()
    left = torch.where(found, numbers[:, -1:] * (W - w + 1), (W - w) / 2).floor()
    return torch.cat([top, left, h, w], 1).long()


def triangle_weights(
    starts: Tensor,
    extents: Tensor,
    inputs: int,
    outputs: int,
    *,
    mirrored: Tensor | None = None,
    total: float = 1.0,
) -> Tensor:
    """Weights of an antialiased linear resize of one window per row of pixels.

    w_oj = max(0, 1 - |j + 1/2 - start - (o + 1/2) s| / max(1, s)) for pixels j of the window, s = extent / outputs,
    normalised over j: the triangle filter, widened when shrinking. Pixels outside the window count for nothing,
    as if it had been cut out first.

    Args:
        starts: (B,) integer first pixel of the window.
        extents: (B,) integer pixels in the window, >= 1.
        inputs: pixels in a row.
        outputs: pixels wanted.
        mirrored: (B,) bool, rows whose outputs come in reverse order.
        total: sum of the weights over j.

    Returns:
        (B, outputs, inputs) float32, on the device of ``starts``.

    Example:
        >>> triangle_weights(torch.tensor([1]), torch.tensor([2]), 4, 1).tolist()
        [[[0.0, 0.5, 0.5, 0.0]]]
    """
    step = (extents.double() / outputs).float()[:, None]
    support = step.clamp(min=1)
    order = torch.arange(outputs, device=starts.device)[None]
    if mirrored is not None:
        order = torch.where(mirrored[:, None], outputs - 1 - order, order)
    centre = (order + 0.5) * step / support
    place = torch.arange(inputs, device=starts.device) - starts[:, None]
    outside = (place < 0) | (place >= extents[:, None])
    # Far away, so that no output reaches it.
    place = ((place + 0.5) / support).masked_fill_(outside, torch.inf)
    distance = (place[:, None] - centre[..., None]).abs_()
    weights = torch.sub(distance.new_ones(()), distance, out=distance).clamp_(min=0)
    return weights.mul_(total / weights.sum(2, keepdim=True))


def crop_resize(images: Tensor | Sequence[Tensor], windows: Tensor, size: int, mirrored: Tensor) -> Tensor:
    """Cut a window out of every image, resize it with antialiasing and mirror some of them.

    Values are those of ``torch.nn.functional.interpolate`` with antialias=True on the piece that is cut out. A batch of
    one size is two matrix products, for which torch's float32 matrix product precision holds.

    Args:
        images: (B, C, H, W) or B tensors (C, h, w); uint8, or floating point.
        windows: (B, 4) integers on the CPU: top, left, height, width; inside the image.
        size: side of the result in pixels.
        mirrored: (B,) bool on the CPU: exchange left and right.

    Returns:
        (B, C, size, size) float32; uint8 values are divided by 255.

    Example:
        >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> crop_resize(image, torch.tensor([[0, 2, 2, 2]]), 2, torch.tensor([True]))
        tensor([[[[3., 2.],
                  [7., 6.]]]])
    """
    if isinstance(images, Tensor):
        dense = max(images.shape[2], images.shape[3], size) <= _DENSE_SIDE
        if dense or images.device.type != "cpu":
            return _by_weights(images, windows, size, mirrored)
    return _one_by_one(images, windows, size, mirrored)


def _by_weights(images: Tensor, windows: Tensor, size: int, mirrored: Tensor) -> Tensor:
    """All samples at once, by two products."""
    B, C, H, W = images.shape
    windows, mirrored = windows.to(images.device), mirrored.to(images.device)
    top, left, height, width = windows.unbind(1)
    down = triangle_weights(top, height, H, size)
    unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
    across = triangle_weights(left, width, W, size, mirrored=mirrored, total=unit)
    narrow = torch.bmm(images.float().reshape(B, C * H, W), across.mT)
    down = down[:, None].expand(B, C, size, H).reshape(B * C, size, H)
    return torch.bmm(down, narrow.view(B * C, H, size)).view(B, C, size, size)


def _one_by_one(images: Tensor | Sequence[Tensor], windows: Tensor, size: int, mirrored: Tensor) -> Tensor:
    """Sample after sample, for images of several sizes and for large ones on a CPU, where most weights are zero."""
    first = images[0]
    result = torch.empty(len(images), len(first), size, size, device=first.device)
    for image, window, mirror, row in zip(images, windows.tolist(), mirrored.tolist(), result, strict=True):
        top, left, height, width = window
        piece = image[:, top : top + height, left : left + width]
        row.copy_(resized(piece, size, size).flip(2) if mirror else resized(piece, size, size))
    return result


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Resize whole images with the triangle filter of :func:`triangle_weights`.

    Args:
        images: (C, h, w) or (B, C, h, w); uint8, or floating point.
        height: rows wanted.
        width: columns wanted.

    Returns:
        (..., C, height, width) float32; uint8 values are divided by 255.
    """
    values = images.float()
    if images.dtype == torch.uint8:
        values = values.div_(255)
    if values.shape[-2:] == (height, width):
        return values
    batch = values if values.ndim == 4 else values[None]
    result = F.interpolate(batch, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return result if values.ndim == 4 else result[0]


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float | None = None) -> Tensor:
    """Blur every image with a Gaussian of its own width.

    Weights exp(-k^2 / 2 sigma^2) for |k| <= ceil(3 sigma_max), normalised; beyond the border the edge pixel is
    repeated, which is defined for any image size and is what the Python Imaging Library does.

    Args:
        images: (B, C, h, w) floating point.
        sigma: (B,) standard deviations in pixels, above 0.
        largest: sigma_max; give it so that a result does not depend on the other samples. Default: the largest sigma.

    Returns:
        (B, C, h, w) in the type of ``images``.

    Example:
        >>> spike = torch.zeros(1, 1, 1, 5)
        >>> spike[..., 2] = 1
        >>> gaussian_blur(spike, torch.tensor([0.5])).round(decimals=3)
        tensor([[[[0.0000, 0.1060, 0.7870, 0.1060, 0.0000]]]])
    """
    if not len(images):
        return images.clone()
    B, C, h, w = images.shape
    reach = max(1, math.ceil(3 * (float(sigma.max()) if largest is None else largest)))
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = (offsets / sigma.to(images)[:, None]).square().mul(-0.5).exp()
    kernel = kernel / kernel.sum(1, keepdim=True)
    # The banded matrix in blocks: a block of results is the product of one small matrix, the same for all blocks of
    # an image, and the pixels around the block.
    block = min(_BLOCK, max(h, w))
    down, across = -(-h // block), -(-w // block)
    matrix = _band(kernel, block)
    border = (reach, across * block - w + reach, reach, down * block - h + reach)
    pieces = F.pad(images, border, mode="replicate").unfold(3, block + 2 * reach, block)
    narrow = torch.bmm(pieces.reshape(B, -1, block + 2 * reach), matrix.mT).view(B, C, -1, across * block)
    pieces = narrow.unfold(2, block + 2 * reach, block).mT
    result = torch.matmul(matrix[:, None, None], pieces)
    return result.reshape(B, C, down * block, across * block)[..., :h, :w]


def _band(kernel: Tensor, rows: int) -> Tensor:
    """(B, rows, rows + taps - 1): every row holds the filter (B, taps), one place further than the row above."""
    B, taps = kernel.shape
    length = rows + taps - 1
    # Read with a period one longer than a row, a repeated filter moves by one from row to row.
    period = F.pad(kernel, (0, length + 1 - taps))[:, None].expand(B, rows, length + 1)
    return period.reshape(B, -1)[:, : rows * length].view(B, rows, length)
