"""Parts of one labelled image pasted into another: half of its classes, chosen classes or instances, boxes.

What is pasted is a region, a bool tensor (B, h, w) on the image that it comes from. Regions come from
:func:`class_mix_masks`, :func:`class_region`, :func:`cutmix_boxes` or from anywhere else; :func:`mix_pair` pastes a
region where it is, :func:`copy_paste` moves it before. Who is pasted into whom is the caller's choice of rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from leanlabel.augment.geometry import apply_image, apply_mask, placed
from leanlabel.rng import Draw

# Classes that a batch of labels may have; every sample draws a number for each, so that its choice is its own.
_CLASSES = 256


class Mixed(NamedTuple):
    """Images with something pasted into them."""

    images: Tensor
    """(B, C, h, w)."""
    labels: Tensor
    """(B, h, w)."""
    weights: Tensor
    """(B, h, w) float32: how far each label is to be trusted."""
    region: Tensor
    """(B, h, w) bool: where the pasted pixels are."""


def class_mix_masks(
    labels: Tensor,
    draw: Draw,
    share: float = 0.5,
    classes: Sequence[int] | None = None,
    *,
    ignore: int = -100,
) -> Tensor:
    """Choose some of the classes that are present in each sample, and return their pixels.

    ceil(share * n) of the n classes present, every choice equally likely [ClassMix: half of them, rounded up].

    Args:
        labels: (B, h, w) integers, classes 0..255 or ``ignore``.
        draw: numbers of the B samples. One call is made on it.
        share: of the classes present that is chosen, in [0, 1].
        classes: only these may be chosen and count as present; None: all.
        ignore: label of pixels without a class; they are never chosen.

    Returns:
        (B, h, w) bool on the device of the labels.

    Raises:
        ValueError: not integers (B, h, w), classes beyond 255, share outside of [0, 1], or another number of ids.

    Example:
        >>> from leanlabel.rng import draw
        >>> labels = torch.tensor([[[0, 1], [2, -100]]])
        >>> int(class_mix_masks(labels, draw(0, "mix", 3, torch.tensor([8]))).sum())
        2
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    labels = _checked(labels, ignore)
    numbers = _numbers(draw, _CLASSES, len(labels), labels.device)
    # One more column takes the pixels without a class.
    columns = labels.masked_fill(labels == ignore, _CLASSES).flatten(1)
    present = torch.zeros(len(labels), _CLASSES + 1, dtype=torch.bool, device=labels.device)
    present.scatter_(1, columns, True)
    present[:, _CLASSES] = False
    if classes is not None:
        listed = torch.zeros(_CLASSES + 1, dtype=torch.bool, device=labels.device)
        listed[torch.tensor(list(classes), dtype=torch.long, device=labels.device)] = True
        present &= listed
    count = (share * present.sum(1, keepdim=True).double() - 1e-9).ceil()
    order = numbers.masked_fill(~present[:, :_CLASSES], 2.0).argsort(dim=1, stable=True).argsort(1)
    present[:, :_CLASSES] &= order < count
    return present.gather(1, columns).view(labels.shape)


def class_region(labels: Tensor, classes: Sequence[int] | Tensor, *, ignore: int = -100) -> Tensor:
    """Return the pixels of chosen classes, or of chosen instances of a map of instance numbers.

    Args:
        labels: (B, h, w) integers.
        classes: numbers chosen for all samples, or (B, n) integers: those of each sample; ``ignore`` counts for
            nothing, so that it can fill rows with fewer.
        ignore: label of pixels that are never chosen; 0 for instances, where 0 is none.

    Returns:
        (B, h, w) bool.

    Example:
        >>> class_region(torch.tensor([[[0, 3, 5, -100]]]), [3, 5, -100]).tolist()
        [[[False, True, True, False]]]
    """
    chosen = torch.as_tensor(classes, dtype=torch.long, device=labels.device)
    if chosen.ndim == 1:
        chosen = chosen.expand(len(labels), -1)
    if chosen.ndim != 2 or len(chosen) != len(labels):
        raise ValueError(f"classes must be (n,) or ({len(labels)}, n), got {tuple(chosen.shape)}")
    region = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    for column in chosen.unbind(1):
        region |= labels == column[:, None, None]
    return region & (labels != ignore)


def some_instances(instances: Tensor, draw: Draw, count: int = 1, least: int = 1) -> Tensor:
    """Choose instances of each sample at random.

    Args:
        instances: (B, h, w) integers, 0 = none.
        draw: numbers of the B samples. One call is made on it, of a length that depends on the largest
            number.
        count: how many per sample, fewer where there are fewer.
        least: smallest number of pixels of an instance that may be chosen.

    Returns:
        (B, count) int64 numbers of instances, 0 where there are no more; for :func:`class_region` with ignore=0.

    Example:
        >>> from leanlabel.rng import draw
        >>> some_instances(torch.tensor([[[0, 7, 7, 2]]]), draw(0, "paste", 1, torch.tensor([4])), least=2).tolist()
        [[7]]
    """
    flat = instances.long().flatten(1)
    largest = int(flat.max()) if flat.numel() else 0
    numbers = _numbers(draw, largest + 1, len(flat), flat.device)
    pixels = torch.zeros(len(flat), largest + 1, dtype=torch.long, device=flat.device)
    pixels.scatter_add_(1, flat, torch.ones_like(flat))
    able = pixels >= least
    able[:, 0] = False
    ranked = numbers.masked_fill(~able, 2.0).argsort(dim=1, stable=True)[:, :count]
    chosen = ranked.masked_fill(~able.gather(1, ranked), 0)
    return torch.nn.functional.pad(chosen, (0, count - chosen.shape[1]))


def cutmix_boxes(
    size: tuple[int, int],
    draw: Draw,
    share: tuple[float, float] = (0.5, 0.5),
    device: torch.device | str = "cpu",
) -> Tensor:
    """Choose one box per sample at a uniform place.

    The box covers a uniform share a of the area; its height is log-uniform between a and 1 times the image's, both
    sides are rounded, at least 1 pixel.

    Args:
        size: height and width of the images.
        draw: numbers of the B samples. One call is made on it.
        share: smallest and largest share of the area, in (0, 1].
        device: where the result lives.

    Returns:
        (B, h, w) bool, True inside the box.

    Example:
        >>> from leanlabel.rng import draw
        >>> cutmix_boxes((8, 8), draw(0, "box", 1, torch.tensor([4])), (1.0, 1.0)).all().item()
        True
    """
    if not 0 < share[0] <= share[1] <= 1:
        raise ValueError(f"share must be two shares of the area, the smaller first, in (0, 1], got {share}")
    height, width = size
    area, slender, top, left = draw.uniform(4).cpu().double().unbind(1)
    area = share[0] + (share[1] - share[0]) * area
    down = area**slender
    h = (height * down).round().clamp(1, height)
    w = (width * area / down).round().clamp(1, width)
    first = torch.stack([(top * (height - h + 1)).floor(), (left * (width - w + 1)).floor()])
    first, extent = first.to(device)[..., None], torch.stack([h, w]).to(device)[..., None]
    rows, columns = (torch.arange(side, device=device) for side in size)
    inside = [
        (at >= low) & (at < low + long) for at, low, long in zip((rows, columns), first, extent, strict=True)
    ]
    return inside[0][:, :, None] & inside[1][:, None, :]


def paste(images_from: Tensor, images_to: Tensor, region: Tensor) -> Tensor:
    """Return ``images_to`` with the pixels of a region replaced by those of ``images_from``; gradient flows to both.

    Args:
        images_from: (B, C, h, w), or labels (B, h, w).
        images_to: the same shape.
        region: (B, h, w) bool.

    Raises:
        ValueError: shapes differ; nothing is cut to size silently.

    Example:
        >>> paste(torch.tensor([[[1, 2]]]), torch.tensor([[[8, 9]]]), torch.tensor([[[True, False]]])).tolist()
        [[[1, 9]]]
    """
    sizes = {tuple(images_from.shape), tuple(images_to.shape)}
    expected = (images_to.shape[0], *images_to.shape[-2:])
    if len(sizes) > 1 or tuple(region.shape) != expected:
        raise ValueError(
            f"cannot paste {tuple(images_from.shape)} into {tuple(images_to.shape)} by a region {tuple(region.shape)}"
        )
    return torch.where(region[:, None] if images_to.ndim == 4 else region, images_from, images_to)


def mix_pair(
    images_from: Tensor,
    labels_from: Tensor,
    images_to: Tensor,
    labels_to: Tensor,
    region: Tensor,
    *,
    weights_from: float | Tensor = 1.0,
    weights_to: float | Tensor = 1.0,
) -> Mixed:
    """Paste a region of labelled images into others, labels and weights with it.

    Args:
        images_from: (B, C, h, w).
        labels_from: (B, h, w) integers.
        images_to: (B, C, h, w).
        labels_to: (B, h, w) integers, for instance pseudo labels.
        region: (B, h, w) bool, on ``images_from``.
        weights_from: of the pasted labels: a number, (B,) or (B, h, w).
        weights_to: of the others, likewise; for instance the share of confident pixels.

    Returns:
        Mixed images, labels and weights; gradient flows through the images.

    Example:
        >>> ones, zeros = torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2)
        >>> region = torch.tensor([[[True, False]]])
        >>> mixed = mix_pair(ones, torch.tensor([[[4, 4]]]), zeros, torch.tensor([[[2, 2]]]), region, weights_to=0.5)
        >>> mixed.labels.tolist(), mixed.weights.tolist()
        ([[[4, 2]]], [[[1.0, 0.5]]])
    """
    one, other = (_weights(value, region) for value in (weights_from, weights_to))
    return Mixed(
        paste(images_from, images_to, region),
        paste(labels_from, labels_to.to(labels_from.dtype), region),
        paste(one, other, region),
        region,
    )


def copy_paste(
    images_from: Tensor,
    labels_from: Tensor,
    images_to: Tensor,
    labels_to: Tensor,
    region: Tensor,
    draw: Draw,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    shift: float = 0.0,
    weights_from: float | Tensor = 1.0,
    weights_to: float | Tensor = 1.0,
    ignore: int = -100,
) -> Mixed:
    """Paste a region of labelled images into others after resizing and moving it.

    Each sample's region is resized about the middle of its bounding box by a log-uniform factor, and moved by up to
    ``shift`` of the height and of the width; the middle stays in the image.

    Args:
        images_from: (B, C, h, w) floating point.
        labels_from: (B, h, w) integers.
        images_to: (B, C, h, w).
        labels_to: (B, h, w) integers.
        region: (B, h, w) bool, what to copy; pixels without a label are left out. It may be empty.
        draw: numbers of the B samples. One call is made on it.
        scale: smallest and largest factor, > 0; (1, 1) keeps the size.
        shift: largest move as a share of the sides, in [0, 1]; 0 keeps the place.
        weights_from: of the pasted labels: a number or (B,).
        weights_to: of the others: a number, (B,) or (B, h, w).
        ignore: label of pixels without a class.

    Returns:
        Mixed images, labels, weights and the region where it ended; gradient flows through the images.

    Example:
        >>> from leanlabel.rng import draw
        >>> ones, zeros = torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
        >>> labels = torch.arange(16).view(1, 4, 4)
        >>> numbers = draw(0, "paste", 1, torch.tensor([4]))
        >>> mixed = copy_paste(ones, labels, zeros, labels * 0, labels == 5, numbers, shift=0.5)
        >>> int(mixed.images.sum()), int(mixed.labels.sum())
        (3, 5)
    """
    if not (0 < scale[0] <= scale[1] and 0 <= shift <= 1):
        raise ValueError(f"scale must be two factors > 0 and shift in [0, 1], got {scale} and {shift}")
    if torch.is_tensor(weights_from) and weights_from.ndim > 1:
        raise ValueError("weights of what is moved must be a number or (B,)")
    if images_from.shape[-2:] != images_to.shape[-2:]:
        raise ValueError(f"cannot paste {tuple(images_from.shape)} into {tuple(images_to.shape)}")
    region = region & (labels_from != ignore)
    numbers = _numbers(draw, 3, len(region), torch.device("cpu")).double()
    height, width = region.shape[1:]
    size = torch.tensor([height, width])
    factor = (math.log(scale[0]) + math.log(scale[1] / scale[0]) * numbers[:, 0]).exp()
    middle = _middles(region)
    goal = (middle + (2 * numbers[:, 1:] - 1) * shift * size).clamp(min=0.5).minimum(size - 0.5)
    corner = (goal - middle * factor[:, None]).round().long()
    geometry = placed(size.expand(len(region), 2), factor, corner, (height, width))
    moved = apply_mask(geometry, region.byte(), ignore=0).bool()
    return mix_pair(
        *(apply_image(geometry, images_from).to(images_to.dtype), apply_mask(geometry, labels_from, ignore)),
        *(images_to, labels_to, moved),
        weights_from=weights_from,
        weights_to=weights_to,
    )


def _checked(labels: Tensor, ignore: int) -> Tensor:
    if labels.ndim != 3 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be (B, h, w) integers, got {tuple(labels.shape)} of {labels.dtype}")
    labels = labels.long()
    wrong = ((labels < 0) | (labels >= _CLASSES)) & (labels != ignore)
    if bool(wrong.any()):
        raise ValueError(
            f"labels must be classes 0..{_CLASSES - 1} or {ignore} (ignore), got {int(labels[wrong][0])}"
        )
    return labels


def _numbers(draw: Draw, count: int, rows: int, device: torch.device) -> Tensor:
    numbers = draw.uniform(count)
    if numbers.shape != (rows, count):
        raise ValueError(f"{rows} samples need a draw with as many ids, got numbers {tuple(numbers.shape)}")
    return numbers.to(device)


def _weights(value: float | Tensor, region: Tensor) -> Tensor:
    """(B, h, w) float32."""
    weights = torch.as_tensor(value, dtype=torch.float32, device=region.device)
    return (weights.view(-1, 1, 1) if weights.ndim == 1 else weights).expand(region.shape)


def _middles(region: Tensor) -> Tensor:
    """Middle of the bounding box of every region, (B, 2) float64 on the CPU; of the image where a region is empty."""
    result = []
    for dimension in (1, 2):
        hit = region.any(3 - dimension)
        length = hit.shape[1]
        first = hit.int().argmax(1)
        last = length - hit.int().flip(1).argmax(1)
        result.append((first + last).cpu().double() / 2)
    return torch.stack(result, 1)
