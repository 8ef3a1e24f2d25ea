"""How far two sets of images, or of features, are apart, without reading a label.

Where two domains differ in nothing that these numbers see, adapting from one to the other has little to gain; where
they differ only in colours and noise, changes of colour in training may do. None of them says what an adaptation will
bring: a classifier tells domains apart by things that do not matter for the task, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leanlabel.evaluation.domain_classifier import domain_error

BINS = 8
"""Bins of a channel's histogram in :func:`simple_features`."""
SCALES = 3
"""Sizes (1, 1/2, 1/4) at which gradients are measured there."""
SMALLEST_SPREAD = 1e-4
"""Spread between images below which none is credited in :func:`style_distance`: a fortieth of a grey level."""
_PLAIN = ("contrast", "sharpness", "noise", "saturation")
# Pixels of an image that are sorted for its contrast and noise, evenly spread.
_SORTED = 1 << 16
# A standard normal variable stays below this absolute value half of the times.
_QUARTILE = 0.6744897501960817


def proxy_a_distance(
    source: Tensor,
    target: Tensor,
    seed: int,
    folds: int = 5,
    *,
    groups: tuple[Tensor | None, Tensor | None] = (None, None),
) -> float:
    """Measure how well a linear classifier tells two domains apart: 0 not at all, 2 without a mistake.

    d = max(0, 2 (1 - 2 e)), e the error of telling them apart   [proxy A-distance: Ben-David et al., NIPS 2006]

    The error of chance or worse gives 0, which is also what a larger domain gives; with n rows of each, what equal
    domains give spreads by about 1.4 / sqrt(n).

    Args:
        source, target, seed, folds, groups: as in :func:`leanlabel.evaluation.domain_classifier.domain_error`; see
            :func:`blocks` for groups of rows whose sequences are not known.

    Returns:
        In [0, 2].

    Raises:
        ValueError: not two sets of rows of one width, fewer than two rows or groups, groups that do not fit the rows,
            not finite, or folds < 2.

    Example:
        >>> rows = torch.arange(20.0)[:, None]
        >>> proxy_a_distance(rows, rows + 100, seed=0)
        2.0
    """
    error = domain_error(source, target, seed, folds, groups=groups)
    return max(0.0, 2 * (1 - 2 * error))


@dataclass(frozen=True, eq=False)
class Style:
    """How images look, on average over images, and how much that differs from image to image.

    Attributes:
        images: number N of images.
        mean: (C,) float64, brightness of each channel, in [0, 1].
        std: (C,) float64, standard deviation of each channel within an image.
        contrast: 95th less 5th percentile of the brightness (mean over channels) within an image.
        sharpness: mean absolute Laplacian of the brightness, |4 x - left - right - up - down|.
        noise: standard deviation of white noise per channel, from the median of |x * M| with
            M = ((1, -2, 1), (-2, 4, -2), (1, -2, 1)), which neither slopes nor straight edges change much
            [Immerkær 1996, with a median]; fine texture counts as noise.
        saturation: mean of (largest - smallest) / largest channel; 0 for one channel.
        spread: name of a measure, "mean 0" .. "mean C-1", "std 0" .., "contrast" .. -> its standard deviation between
            images (N - 1 in the denominator); NaN for one image.
    """

    images: int
    mean: Tensor
    std: Tensor
    contrast: float
    sharpness: float
    noise: float
    saturation: float
    spread: Mapping[str, float]

    def measures(self) -> dict[str, float]:
        """All measures by name, in the order of the spreads."""
        values = [*self.mean.tolist(), *self.std.tolist(), *(getattr(self, name) for name in _PLAIN)]
        return dict(zip(self.spread, values, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "images": self.images,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            **{name: getattr(self, name) for name in _PLAIN},
            "spread": {name: None if math.isnan(value) else value for name, value in self.spread.items()},
        }


@torch.no_grad()
def style_statistics(images: Iterable[Tensor]) -> Style:
    """Measure brightness, contrast, sharpness, noise and saturation of images.

    Sharpness and noise belong to the size at which images are read: compare images at the size of training.

    Args:
        images: N >= 1 images (C, h, w) of any sizes, or batches (B, C, h, w); uint8, or floating point in [0, 1]. Read
            once, one after the other; only numbers are kept.

    Returns:
        Means over images, and spreads between them. An image with a side below 3 has sharpness and noise 0.

    Raises:
        ValueError: no image, other shapes or types, different numbers of channels, no pixel, or not finite.

    Example:
        >>> style = style_statistics([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
        >>> style.mean.tolist(), round(style.spread["mean 0"], 4), style.contrast
        ([0.5, 0.5, 0.5], 0.7071, 0.0)
    """
    rows = [_style(image) for image in _singly(images)]
    if not rows:
        raise ValueError("there is no image")
    table = torch.stack(rows)
    c = (table.shape[1] - len(_PLAIN)) // 2
    names = [f"{name} {channel}" for name in ("mean", "std") for channel in range(c)] + [*_PLAIN]
    spread = table.std(0).tolist() if len(rows) > 1 else [math.nan] * len(names)
    centre = table.mean(0)
    return Style(
        len(rows),
        *(centre[:c], centre[c : 2 * c]),
        *centre[2 * c :].tolist(),
        spread=dict(zip(names, spread, strict=True)),
    )


def style_distance(source: Style, target: Style) -> dict[str, float]:
    """Measure how far the looks of two sets of images are apart, in units of the spread between images.

    d = (target - source) / s,  s^2 = ((N - 1) s_source^2 + (M - 1) s_target^2) / (N + M - 2)   [Cohen 1969]

    Args:
        source, target: of :func:`style_statistics`, with equally many channels.

    Returns:
        Measure -> signed difference, positive where the target has more of it; a value of 1 is what one image differs
        from the next. A measure with (almost) no spread is divided by :data:`SMALLEST_SPREAD`. NaN where both sets
        have one image, so that no spread is known.

    Raises:
        ValueError: different numbers of channels.

    Example:
        >>> dark, light = ([torch.full((1, 4, 4), low + k) for k in (0.0, 0.2)] for low in (0.2, 0.6))
        >>> round(style_distance(style_statistics(dark), style_statistics(light))["mean 0"], 3)
        2.828
    """
    if len(source.mean) != len(target.mean):
        raise ValueError(f"{len(source.mean)} channels cannot be held against {len(target.mean)}")
    mine, theirs, found = source.measures(), target.measures(), dict[str, float]()
    freedom = source.images + target.images - 2
    for name in mine:
        squares = sum(
            (style.images - 1) * style.spread[name] ** 2 for style in (source, target) if style.images > 1
        )
        spread = math.sqrt(squares / freedom) if freedom else math.nan
        # max() keeps a NaN that stands first.
        found[name] = (theirs[name] - mine[name]) / max(spread, SMALLEST_SPREAD)
    return found


@torch.no_grad()
def simple_features(images: Iterable[Tensor]) -> Tensor:
    """Describe images by colours and gradients, without a network.

    Per channel: the shares of :data:`BINS` equal bins of its values; and at full, half and quarter size (means of 2 x 2
    pixels) log(10^-3 + v) of four numbers v: mean |across|, mean |down| of differences between neighbours, the root of
    the mean square of both, and the mean absolute Laplacian. For each pair of neighbouring channels: their correlation
    over pixels, 0 where one is constant. The numbers of gradients belong to the size at which images are read.

    Args:
        images: as in :func:`style_statistics`.

    Returns:
        (N, D) float32, D = C (BINS + 4 SCALES) + C - 1; (0, 0) without images.

    Raises:
        ValueError: other shapes or types, different numbers of channels, no pixel, or not finite.

    Example:
        >>> simple_features(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5, 62])
    """
    rows = [_described(image) for image in _singly(images)]
    return torch.stack(rows).float() if rows else torch.zeros(0, 0)


def share_distance(p: Tensor, q: Tensor) -> float:
    """Measure how different the shares of classes are: total variation, 1/2 sum_c |p_c - q_c|.

    Args:
        p: (K,) shares or counts of the classes, >= 0, not all 0; brought to sum 1.
        q: likewise.

    Returns:
        In [0, 1]: the share of pixels whose class would have to change.

    Raises:
        ValueError: shapes differ, a negative or not finite value, or all 0.

    Example:
        >>> share_distance(torch.tensor([3, 1, 0]), torch.tensor([0.5, 0.25, 0.25]))
        0.25
    """
    if p.shape != q.shape or p.ndim != 1:
        raise ValueError(f"shares must be (K,) and (K,), got {tuple(p.shape)} and {tuple(q.shape)}")
    both = [one.detach().double().cpu() for one in (p, q)]
    for name, one in zip("pq", both, strict=True):
        if not bool(torch.isfinite(one).all()) or bool((one < 0).any()) or not float(one.sum()) > 0:
            raise ValueError(f"{name} must be finite, not negative and not all 0")
    return min(1.0, float((both[0] / both[0].sum() - both[1] / both[1].sum()).abs().sum() / 2))


def blocks(count: int, number: int = 5) -> Tensor:
    """Groups for rows in the order in which they were taken, where sequences are not known: blocks of neighbours.

    >>> blocks(7, 3).tolist()
    [0, 0, 0, 1, 1, 2, 2]
    """
    return torch.arange(count) * min(number, count) // max(count, 1)


def _singly(images: Iterable[Tensor]) -> Iterable[Tensor]:
    """One image (C, h, w) float32 in [0, 1] on the CPU after the other, checked."""
    channels = None
    for given in images:
        for image in given if given.ndim == 4 else (given,):
            if image.ndim != 3 or not image.numel():
                raise ValueError(
                    f"images must be (C, h, w) or (B, C, h, w) with pixels, got {tuple(given.shape)}"
                )
            if image.dtype != torch.uint8 and not image.is_floating_point():
                raise ValueError(f"images must be uint8 or floating point, got {image.dtype}")
            channels = channels or len(image)
            if len(image) != channels:
                raise ValueError(f"all images must have {channels} channels, one has {len(image)}")
            values = image.detach().cpu().float()
            if image.dtype == torch.uint8:
                values = values / 255
            elif not bool(torch.isfinite(values).all()):
                raise ValueError("an image holds values that are not finite")
            yield values


def _style(image: Tensor) -> Tensor:
    """The 2 C + 4 measures of an image, in the order of :class:`Style`, float64."""
    flat = image.flatten(1)
    spread, mean = torch.std_mean(flat.double(), dim=1, correction=0)
    brightness = image.mean(0)
    low, high = _quantiles(brightness.flatten(), (0.05, 0.95))
    most, least = flat.amax(0), flat.amin(0)
    saturation = ((most - least) / most.clamp_min(1e-6)).clamp(0, 1).double().mean()
    plain = [high - low, _laplacian(brightness[None]), _noise(image), saturation]
    return torch.cat([mean, spread, torch.stack([value.double() for value in plain])])


def _laplacian(maps: Tensor) -> Tensor:
    """Mean absolute Laplacian of (C, h, w) over all pixels that have four neighbours; 0 where none has."""
    if min(maps.shape[1:]) < 3:
        return maps.new_zeros(())
    inner = maps[:, 1:-1, 1:-1] * 4
    inner = inner - maps[:, 1:-1, :-2] - maps[:, 1:-1, 2:] - maps[:, :-2, 1:-1] - maps[:, 2:, 1:-1]
    return inner.abs().mean()


def _noise(image: Tensor) -> Tensor:
    """Standard deviation of white noise in (C, h, w), mean over channels; the mask's squares sum to 36."""
    if min(image.shape[1:]) < 3:
        return image.new_zeros(())
    across = image[:, :, :-2] - 2 * image[:, :, 1:-1] + image[:, :, 2:]
    both = across[:, :-2] - 2 * across[:, 1:-1] + across[:, 2:]
    return torch.stack([_quantiles(one.abs().flatten(), (0.5,))[0] for one in both]).mean() / (6 * _QUARTILE)


def _quantiles(values: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Quantiles of (n,) values, of at most 65,536 of them, evenly spread."""
    if len(values) > _SORTED:
        values = values[torch.arange(_SORTED) * len(values) // _SORTED]
    return values.quantile(torch.tensor(shares))


def _described(image: Tensor) -> Tensor:
    """The features (D,) of one image."""
    c, flat = len(image), image.flatten(1)
    bins = (flat * BINS).long().clamp(0, BINS - 1) + BINS * torch.arange(c)[:, None]
    shares = torch.bincount(bins.flatten(), minlength=BINS * c) / flat.shape[1]
    gradients, current = [], image
    for _ in range(SCALES):
        gradients.append(torch.stack([_gradients(channel) for channel in current]))
        if min(current.shape[1:]) >= 2:
            current = functional.avg_pool2d(current, 2)
    centred = flat.double() - flat.double().mean(1, keepdim=True)
    power = (centred**2).sum(1)
    together = (centred[1:] * centred[:-1]).sum(1)
    scale = (power[1:] * power[:-1]).sqrt()
    correlation = torch.where(scale > 1e-9 * flat.shape[1], together / scale, 0.0)
    return torch.cat([shares.double(), (1e-3 + torch.cat(gradients).flatten().double()).log(), correlation])


def _gradients(channel: Tensor) -> Tensor:
    """Mean |across|, mean |down|, root mean square of both, mean |Laplacian| of (h, w); 0 where there is no pair."""
    steps = [channel.diff(dim=1).flatten(), channel.diff(dim=0).flatten()]
    means = [step.abs().mean() if len(step) else channel.new_zeros(()) for step in steps]
    every = torch.cat(steps)
    root = every.square().mean().sqrt() if len(every) else channel.new_zeros(())
    return torch.stack([*means, root, _laplacian(channel[None])])
