"""Sums over neighbouring pixels of one class: how windows lie on a label map, and pooling without unfolding.

Both passes go through the shifts of a window one after the other and add in place. A pixel's part in a window is
decided by labels alone, so the backward pass decides again and the forward pass keeps no masks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Normaliser = Literal["weights", "count"]
Anchor = Literal["centre", "all"]

# Pixels that are ignored, and windows without a class: two values that equal neither each other nor any class.
_IGNORED, _NO_CLASS = -2, -1
# A neighbour of smaller weight than this gets it: windows whose centre is ignored must not divide by 0.
_LEAST_WEIGHT = 1e-20


@dataclass(frozen=True, eq=False)
class Windows:
    """How windows lie on a label map, and which class or classes each of them pools.

    Attributes:
        labels: (B, *space) int32, ignored ones -2.
        anchors: (B, *grid) int32, class that each window pools, -1 for none.
        place: (P,) int64, window of each further pair of a window and a class.
        classes: (P,) int32, its class.
        stride: distance of centres in pixels.
        weights: weight at chessboard distance 0, 1, ...
        normaliser: what a sum is divided by: the sum of the "weights", or the "count" of pixels.
    """

    labels: Tensor
    anchors: Tensor
    place: Tensor
    classes: Tensor
    stride: int
    weights: tuple[float, ...]
    normaliser: Normaliser

    @classmethod
    def of(
        cls,
        labels: Tensor,
        valid: Tensor,
        *,
        n: int,
        sigma: float,
        stride: int,
        normaliser: Normaliser,
        anchor: Anchor,
    ) -> Windows:
        """Lay windows of side n over labels (B, *space), where they are valid.

        Args:
            labels: integers >= 0 where valid.
            valid: bool of the same shape.
            n, sigma, stride, normaliser, anchor: as in :func:`leanlabel.losses.locally_adaptive.locally_adaptive`.
        """
        labels = labels.where(valid, _IGNORED).int()
        reach = min(n // 2, max(1, *labels.shape[1:]) - 1)
        weights = tuple(max(math.exp(-((d / sigma) ** 2) / 2), _LEAST_WEIGHT) for d in range(reach + 1))
        own = labels[(slice(None), *(slice(None, None, stride) for _ in labels.shape[1:]))]
        anchors = own.clamp(min=_NO_CLASS)
        empty = torch.zeros(0, dtype=torch.int64, device=labels.device)
        windows = cls(labels, anchors, empty, empty.int(), stride, weights, normaliser)
        if anchor == "centre" or anchors.numel() == 0:
            return windows
        for _, places, pixels in windows.shifts():
            near, held = labels[pixels], anchors[places]
            anchors[places] = torch.where((held < 0) & (near >= 0), near, held)
        # Which other classes each window sees: a bit per place and class, a quarter of the scores.
        count = max(1, int(labels.max()) + 1)
        seen = torch.zeros(anchors.numel(), count, dtype=torch.bool, device=labels.device)
        number = torch.arange(anchors.numel(), device=labels.device).view_as(anchors)
        for _, places, pixels in windows.shifts():
            near = labels[pixels]
            other = (near >= 0) & (near != anchors[places])
            seen[number[places][other], near[other].long()] = True
        place, classes = seen.nonzero(as_tuple=True)
        return cls(labels, anchors, place, classes.int(), stride, weights, normaliser)

    def offsets(self) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Weight and offset of every pixel of a window, the centre included."""
        reach = len(self.weights) - 1
        for offset in itertools.product(range(-reach, reach + 1), repeat=self.labels.ndim - 1):
            yield self.weights[max(map(abs, offset))], offset

    def shifts(self) -> Iterator[tuple[float, tuple[slice, ...], tuple[slice, ...]]]:
        """Weight of every offset, the places whose window has a pixel there, and these pixels, as slices of
        (B, *grid) and (B, *space)."""
        for weight, offset in self.offsets():
            places, pixels = [slice(None)], [slice(None)]
            for d, size, grid in zip(offset, self.labels.shape[1:], self.anchors.shape[1:], strict=True):
                first = max(0, -(d // self.stride))
                last = min(grid, (size - 1 - d) // self.stride + 1)
                if first >= last:
                    break
                places.append(slice(first, last))
                pixels.append(slice(first * self.stride + d, (last - 1) * self.stride + d + 1, self.stride))
            else:
                yield weight, tuple(places), tuple(pixels)

    def matches(self) -> Iterator[tuple[float, Tensor, tuple[Tensor, slice, Tensor]]]:
        """For every offset its weight, the pairs that have a pixel of their class there, and the index of these
        pixels in (B, C, N). No pixel occurs twice for one offset."""
        sample, *where = torch.unravel_index(self.place, self.anchors.shape)
        flat = self.labels.flatten(1)
        for weight, offset in self.offsets():
            inside = torch.ones_like(self.place, dtype=torch.bool)
            pixel = torch.zeros_like(self.place)
            for axis, d, size in zip(where, offset, self.labels.shape[1:], strict=True):
                at = axis * self.stride + d
                inside &= (at >= 0) & (at < size)
                pixel = pixel * size + at.clamp(0, size - 1)
            pairs = (inside & (flat[sample, pixel] == self.classes)).nonzero().squeeze(1)
            yield weight, pairs, (sample[pairs], slice(None), pixel[pairs])

    def divisors(self, dtype: torch.dtype) -> Tensor:
        """Z of every place, (B, *grid); 1 where there is no window."""
        found = torch.zeros(self.anchors.shape, dtype=dtype, device=self.labels.device)
        for weight, places, pixels in self.shifts():
            same = self.labels[pixels] == self.anchors[places]
            found[places].add_(same, alpha=weight if self.normaliser == "weights" else 1)
        return found.masked_fill_(self.anchors < 0, 1)

    def pair_divisors(self, dtype: torch.dtype) -> Tensor:
        """Z of every further pair, (P,)."""
        found = torch.zeros(self.place.shape, dtype=dtype, device=self.labels.device)
        for weight, pairs, _ in self.matches():
            found[pairs] += weight if self.normaliser == "weights" else 1
        return found


def pool_places(values: Tensor, windows: Windows, log: bool = False) -> Tensor:
    """Average values over the pixels of each window's class: sum_i w_i v_i / Z.

    Args:
        values: (B, C, *space), float32 or wider, carries gradient.
        windows: where, and over which class.
        log: values are logarithms, and the result is the logarithm of the average of their exponentials.

    Returns:
        (B, C, *grid), of no meaning where there is no window.
    """
    if len(windows.weights) == 1 and windows.stride == 1:
        return values
    return _Places.apply(values.contiguous(), windows, log)  # pyright: ignore[reportReturnType]


def pool_pairs(values: Tensor, windows: Windows, log: bool = False) -> Tensor:
    """Average values over the pixels of the further pairs of a window and a class, (P, C); see :func:`pool_places`."""
    return _Pairs.apply(values.contiguous(), windows, log)  # pyright: ignore[reportReturnType]


class _Places(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, windows: Windows, log: bool) -> Tensor:
        ctx.windows, ctx.log = windows, log
        labels, anchors = windows.labels[:, None], windows.anchors[:, None]
        divisors = windows.divisors(values.dtype)[:, None]
        pooled = values.new_zeros(*values.shape[:2], *windows.anchors.shape[1:])
        slices = [(w, _channels(places), _channels(pixels)) for w, places, pixels in windows.shifts()]
        if not log:
            divisors = divisors.reciprocal_()
            for weight, places, pixels in slices:
                share = (labels[pixels] == anchors[places]) * divisors[places]
                pooled[places].addcmul_(values[pixels], share, value=weight)
            ctx.save_for_backward(divisors)
            return pooled
        highest = torch.full_like(pooled, -torch.inf)
        for _, places, pixels in slices:
            near = values[pixels].where(labels[pixels] == anchors[places], -torch.inf)
            torch.maximum(highest[places], near, out=highest[places])
        highest.masked_fill_(anchors < 0, 0)
        for weight, places, pixels in slices:
            near = (values[pixels] - highest[places]).where(labels[pixels] == anchors[places], -torch.inf)
            pooled[places].add_(near.exp_(), alpha=weight)
        total = pooled.masked_fill_(anchors < 0, 1).log_().add_(highest)
        ctx.save_for_backward(values, total)
        return total - divisors.log_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        windows, arriving = ctx.windows, gradients[0]
        labels, anchors = windows.labels[:, None], windows.anchors[:, None]
        spread = arriving.new_zeros(*arriving.shape[:2], *windows.labels.shape[1:])
        for weight, *slices in windows.shifts():
            places, pixels = map(_channels, slices)
            same = labels[pixels] == anchors[places]
            if ctx.log:
                values, total = ctx.saved_tensors
                near = (values[pixels] - total[places]).where(same, -torch.inf).exp_()
            else:
                near = same * ctx.saved_tensors[0][places]
            spread[pixels].addcmul_(arriving[places], near, value=weight)
        return spread, None, None


class _Pairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, windows: Windows, log: bool) -> Tensor:
        ctx.windows, ctx.log = windows, log
        ctx.size = values.shape
        flat = values.flatten(2)
        divisors = windows.pair_divisors(values.dtype)[:, None]
        pooled = values.new_zeros(len(windows.place), values.shape[1])
        if not log:
            for weight, pairs, pixels in windows.matches():
                pooled[pairs] += weight * flat[pixels]
            ctx.save_for_backward(divisors)
            return pooled.div_(divisors)
        highest = torch.full_like(pooled, -torch.inf)
        for _, pairs, pixels in windows.matches():
            highest[pairs] = torch.maximum(highest[pairs], flat[pixels])
        for weight, pairs, pixels in windows.matches():
            pooled[pairs] += weight * (flat[pixels] - highest[pairs]).exp_()
        total = pooled.log_().add_(highest)
        ctx.save_for_backward(values, total)
        return total - divisors.log_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        arriving = gradients[0]
        spread = arriving.new_zeros(ctx.size)
        flat = spread.view(*ctx.size[:2], -1)
        for weight, pairs, pixels in ctx.windows.matches():
            if ctx.log:
                values, total = ctx.saved_tensors
                near = (values.flatten(2)[pixels] - total[pairs]).exp_()
            else:
                near = 1 / ctx.saved_tensors[0][pairs]
            # Pixels are distinct here, so reading and writing is adding, in a fixed order on every device.
            flat[pixels] += weight * near * arriving[pairs]
        return spread, None, None


def _channels(slices: tuple[slice, ...]) -> tuple[slice, ...]:
    """Slices of (B, *space) as slices of (B, C, *space)."""
    return slices[0], slice(None), *slices[1:]
