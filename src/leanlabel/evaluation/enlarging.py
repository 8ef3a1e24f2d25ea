"""From scores at a network's stride, or from a prediction at another size, to the class of every pixel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from leanlabel.evaluation.sliding import Segmented
from leanlabel.models.segmenters import upsample

LARGE = 4_000_000
"""Images of more pixels are predicted in windows, so that memory stays bounded."""
LARGE_WINDOW = (1024, 1024)
"""Height and width of these windows."""
HELD_SCORES = 1 << 24
"""Scores that are held at full size at a time."""


def enlarged_classes(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Segmented:
    """Most probable class of every pixel of a larger map, scores enlarged bilinearly a block of rows at a time.

    Args:
        logits: (B, K, h, w) on any device.
        size: height H and width W of the result.
        align_corners: whether the centres of the corner positions coincide, in place of their outer edges.

    Returns:
        Classes (B, H, W) uint8 and their probabilities (B, H, W) float32, on the CPU; never more than about 16 million
        scores are held at that size.

    Example:
        >>> logits = torch.tensor([[[[0.0, 4.0]], [[3.0, 3.0]]]])
        >>> enlarged_classes(logits, (1, 3), align_corners=False).classes.tolist()
        [[[1, 1, 0]]]
    """
    height, width = size
    b, k, h, _ = logits.shape
    wide = upsample(logits.float(), (h, width), align_corners)
    rows = torch.arange(height, device=logits.device, dtype=torch.float32)
    place = rows * ((h - 1) / max(1, height - 1)) if align_corners else ((rows + 0.5) * (h / height) - 0.5)
    place = place.clamp(0, h - 1)
    below = place.floor().long()
    above, share = (below + 1).clamp_max(h - 1), (place - below).view(1, 1, -1, 1)
    classes = torch.empty(b, height, width, dtype=torch.uint8)
    confidence = torch.empty(b, height, width)
    step = max(1, HELD_SCORES // (b * k * width))
    for start in range(0, height, step):
        part = slice(start, start + step)
        scores = torch.lerp(wide[:, :, below[part]], wide[:, :, above[part]], share[:, :, part])
        best, chosen = scores.max(1)
        # The largest probability is exp(best - logsumexp); the softmax of all classes is not needed.
        confidence[:, part] = (best - scores.logsumexp(1)).exp().cpu()
        classes[:, part] = chosen.to(torch.uint8).cpu()
    return Segmented(classes, confidence)


def readable(x: Tensor, base: int | None, least: int) -> Tensor:
    """Bring normalised images to the size at which a network reads them.

    Args:
        x: (B, C, h, w).
        base: length of the shorter side; None leaves it as it is.
        least: smallest side that the network takes; smaller images are enlarged to it.

    Example:
        >>> [tuple(readable(torch.zeros(1, 3, 6, 20), base, 8).shape[2:]) for base in (None, 24)]
        [(8, 27), (24, 80)]
    """
    short = min(x.shape[-2:])
    wanted = max(least, short if base is None else base)
    if wanted == short:
        return x
    size = [max(1, round(side * wanted / short)) for side in x.shape[-2:]]
    return F.interpolate(x, size=size, mode="bilinear", antialias=wanted < short, align_corners=False)


def window_for(height: int, width: int, window: tuple[int, int] | None) -> tuple[int, int] | None:
    """The window in which an image is predicted: the one that is set; else none, but of a large image.

    >>> window_for(360, 480, None), window_for(8000, 6000, None), window_for(8000, 6000, (512, 512))
    (None, (1024, 1024), (512, 512))
    """
    return LARGE_WINDOW if window is None and height * width > LARGE else window


def at_size(found: Segmented, size: tuple[int, int]) -> Segmented:
    """Bring a prediction (h, w) to another size: the nearest position's class and confidence.

    Example:
        >>> found = Segmented(torch.tensor([[3, 5]], dtype=torch.uint8), torch.tensor([[0.5, 1.0]]))
        >>> at_size(found, (1, 4)).classes.tolist()
        [[3, 3, 5, 5]]
    """
    if tuple(found.classes.shape) == size:
        return found
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long().clamp_max(old - 1)
        for new, old in zip(size, found.classes.shape, strict=True)
    )
    return Segmented(found.classes[rows][:, columns], found.confidence[rows][:, columns])
