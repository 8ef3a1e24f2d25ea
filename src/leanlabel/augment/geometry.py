"""One geometry for all maps of an image: a box of pixels onto a box of the result, mirrored, rotated, sheared, bent.

A geometry is a handful of numbers per sample. Applied to an image it interpolates, with antialiasing where it
shrinks; applied to a mask it takes the nearest pixel; both read at the same places, and what lies outside of the image
is filled. Only the pixels of the result are computed, whatever the size of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leanlabel.augment.elastic import warped_places
from leanlabel.augment.resample import resized

# Images or masks of one batch: one tensor, or one tensor per sample where sizes differ.
Maps = Tensor | Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Geometry:
    """How every sample of a batch is cut out, resized, warped and mirrored; all tensors on the CPU.

    With q a place in the result in pixels from its corner (a pixel's centre is at + 1/2), mirrored back where the
    sample is mirrored, and c the middle of the result:
    p = c + A (q - c) + e(q);  place in the image = source corner + (p - target corner) * source size / target size.
    """

    size: tuple[int, int]
    """Height and width of the result."""
    native: Tensor
    """(B, 2) int64: height and width of the images."""
    source: Tensor
    """(B, 4) int64: top, left, height, width of the box in the image, inside it."""
    target: Tensor
    """(B, 4) int64: the box of the result that it fills, before mirroring; the rest of the result is outside."""
    mirrored: Tensor
    """(B,) bool: left and right exchanged, last of all."""
    warp: Tensor | None = None
    """(B, 2, 2) float64, A on (y, x) columns; None: the identity."""
    bend: Tensor | None = None
    """(B, 2, g, g) float32, e at control points spread evenly from edge to edge, (y, x) in pixels of the result, a
    cubic in between; None: zero."""

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: Tensor | slice) -> Geometry:
        """Return the geometry of some samples."""
        return Geometry(
            self.size,
            self.native[rows],
            self.source[rows],
            self.target[rows],
            self.mirrored[rows],
            None if self.warp is None else self.warp[rows],
            None if self.bend is None else self.bend[rows],
        )

    def lookup(self, row: int, device: torch.device | str = "cpu") -> Lookup:
        """Return the places that one sample's result is read from."""
        warp = None if self.warp is None else self.warp[row]
        bend = None if self.bend is None else self.bend[row]
        straight = (warp is None or bool((warp == torch.eye(2)).all())) and (
            bend is None or not bool(bend.any())
        )
        places = None if straight else self._places(row, torch.device(device))
        return Lookup(
            self.size,
            _pair(self.native[row]),
            _box(self.source[row]),
            _box(self.target[row]),
            bool(self.mirrored[row]),
            places,
        )

    def _places(self, row: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Places y and x in the image of every pixel of the result, (h, w) float32."""
        warp = None if self.warp is None else self.warp[row]
        bend = None if self.bend is None else self.bend[row]
        places = warped_places(self.size, warp, bend, bool(self.mirrored[row]), device)
        source, target = _box(self.source[row]), _box(self.target[row])
        for place, corner, origin, step in zip(places, target, source, _steps(source, target)):
            place.sub_(corner).mul_(step).add_(origin)
        return places


@dataclass(frozen=True, eq=False)
class Lookup:
    """Where the pixels of one sample's result are read; made by :meth:`Geometry.lookup`."""

    size: tuple[int, int]
    native: tuple[int, int]
    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]
    mirrored: bool
    places: tuple[Tensor, Tensor] | None
    """y and x in the image of every pixel, where boxes do not say it all."""

    @property
    def whole(self) -> bool:
        """Whether nothing lies outside; known without looking at pixels, so a warped sample counts as not whole."""
        return self.places is None and self.target == (0, 0, *self.size)

    def image(self, image: Tensor, out: Tensor, fill: Tensor) -> None:
        """Interpolate an image (C, H, W) into ``out`` (C, h, w); ``fill`` (C, 1, 1) is for what is outside.

        Inside the window the filter sees the window only, as if it had been cut out first.
        """
        if self.places is not None:
            self._image_at(image, out, fill, *self.places)
            return
        top, left, height, width = self.source
        rows, columns = self._filled()
        if not self.whole:
            out.copy_(fill.expand_as(out))
        if not self._empty:
            piece = image[:, top : top + height, left : left + width]
            out[:, rows, columns] = resized(piece.flip(2) if self.mirrored else piece, *self.target[2:])

    def mask(self, mask: Tensor, out: Tensor, ignore: int) -> None:
        """Read a mask (H, W) at the nearest pixels into ``out`` (h, w); ``ignore`` is for what is outside."""
        if self.places is not None:
            y, x = self.places
            index = y.clamp(0, self.native[0] - 1).long().mul_(self.native[1])
            index += x.clamp(0, self.native[1] - 1).long()
            out.copy_(mask.reshape(-1).take(index).masked_fill_(self.outside(mask.device), ignore))
            return
        rows, columns = self._filled()
        if not self.whole:
            out.fill_(ignore)
        if not self._empty:
            top, left, height, width = self.source
            piece = mask[top : top + height, left : left + width]
            down = _centres(height, self.target[2], mask.device)
            across = _centres(width, self.target[3], mask.device)
            across = across.flip(0) if self.mirrored else across
            # Rows are copied whole; within them, reading by index is several times quicker than selecting columns.
            out[rows, columns] = piece.index_select(0, down).gather(1, across.expand(len(down), -1))

    def outside(self, device: torch.device | str = "cpu") -> Tensor:
        """Which pixels of the result (h, w) lie outside of the image."""
        if self.places is not None:
            y, x = self.places
            return (y < 0) | (y >= self.native[0]) | (x < 0) | (x >= self.native[1])
        result = torch.ones(self.size, dtype=torch.bool, device=device)
        result[self._filled()] = False
        return result

    @property
    def _empty(self) -> bool:
        return min(self.target[2:]) < 1

    def _filled(self) -> tuple[slice, slice]:
        """Rows and columns of the result that come from the image."""
        top, left, height, width = self.target
        if self.mirrored:
            left = self.size[1] - left - width
        return slice(top, top + height), slice(left, left + width)

    def _image_at(self, image: Tensor, out: Tensor, fill: Tensor, y: Tensor, x: Tensor) -> None:
        spans, grid = [], []
        for place, length, step in zip((y, x), self.native, _steps(self.source, self.target)):
            shrink = max(1.0, step)
            # Some more pixels than are read, so that the filter of the reduction does not end at the edge.
            first = min(max(0, math.floor(float(place.min()) - 2 * shrink)), length - 1)
            last = min(max(first + 1, math.ceil(float(place.max()) + 2 * shrink)), length)
            spans.append((first, last, max(1, math.ceil((last - first) / shrink))))
            grid.append((place - first) * (2 / (last - first)) - 1)
        (top, bottom, height), (left, right, width) = spans
        # Bilinear reading at a distance of more than a pixel would skip pixels: reduce first, with antialiasing.
        piece = resized(image[:, top:bottom, left:right], height, width)[None]
        places = torch.stack([grid[1], grid[0]], 2)[None].to(piece.dtype)
        read = F.grid_sample(piece, places, mode="bilinear", padding_mode="border", align_corners=False)[0]
        out.copy_(torch.where(self.outside(), fill, read))


def apply_image(geometry: Geometry, maps: Maps, fill: float | Sequence[float] = 0.0) -> Tensor:
    """Move images, or other continuous maps of the same images, by a geometry.

    Args:
        geometry: of B samples.
        maps: (B, C, H, W), or B tensors (C, h, w), with the heights and widths that the geometry was made for; uint8,
            or floating point; gradient flows through floating point.
        fill: value of what lies outside, one for all channels or one each, in the unit of the result.

    Returns:
        (B, C, *geometry.size) float32 on the device of the maps; uint8 values are divided by 255.

    Raises:
        ValueError: other sizes than those of the geometry, or another number of samples.

    Example:
        >>> shift = placed(torch.tensor([[2, 3]]), torch.ones(1), torch.tensor([[0, 1]]), (2, 3))
        >>> apply_image(shift, torch.arange(6.0).reshape(1, 1, 2, 3), fill=9.0)
        tensor([[[[9., 0., 1.],
                  [9., 3., 4.]]]])
    """
    check_sizes(geometry, maps, 3)
    first = maps[0] if len(maps) else maps
    channels = first.shape[-3] if isinstance(first, Tensor) else 1
    device = first.device if isinstance(first, Tensor) else torch.device("cpu")
    colour = torch.as_tensor(fill, dtype=torch.float32, device=device).reshape(-1, 1, 1)
    colour = colour.expand(channels, 1, 1)
    result = torch.empty(len(maps), channels, *geometry.size, device=device)
    for row in range(len(maps)):
        geometry.lookup(row, device).image(maps[row], result[row], colour)
    return result


def apply_mask(geometry: Geometry, masks: Maps, ignore: int = 255) -> Tensor:
    """Move masks, or other maps of numbers that must not be mixed, by a geometry.

    Args:
        geometry: of B samples.
        masks: (B, H, W), or B tensors (h, w), of any type, with the sizes that the geometry was made for.
        ignore: value of what lies outside.

    Returns:
        (B, *geometry.size) in the type and on the device of the masks.

    Raises:
        ValueError: other sizes than those of the geometry, or another number of samples.

    Example:
        >>> half = placed(torch.tensor([[2, 4]]), torch.tensor([0.5]), torch.tensor([[0, 1]]), (2, 4))
        >>> apply_mask(half, torch.tensor([[[1, 1, 2, 2], [1, 1, 2, 2]]]), ignore=9)
        tensor([[[9, 1, 2, 9],
                 [9, 9, 9, 9]]])
    """
    check_sizes(geometry, masks, 2)
    first = masks[0] if len(masks) else (masks if isinstance(masks, Tensor) else torch.empty(0))
    result = torch.empty(len(masks), *geometry.size, dtype=first.dtype, device=first.device)
    for row in range(len(masks)):
        geometry.lookup(row, first.device).mask(masks[row], result[row], ignore)
    return result


def outside(geometry: Geometry, device: torch.device | str = "cpu") -> Tensor:
    """Which pixels of the results lie outside of the images.

    Returns:
        (B, *geometry.size) bool.

    Example:
        >>> shift = placed(torch.tensor([[1, 3]]), torch.ones(1), torch.tensor([[0, 1]]), (1, 3))
        >>> outside(shift)
        tensor([[[ True, False, False]]])
    """
    rows = [geometry.lookup(row, device).outside(device) for row in range(len(geometry))]
    return torch.stack(rows) if rows else torch.empty(0, *geometry.size, dtype=torch.bool, device=device)


def placed(native: Tensor, scale: Tensor, corner: Tensor, size: tuple[int, int]) -> Geometry:
    """Resize every image by its own factor and put its corner at a place of the result.

    Args:
        native: (B, 2) integer heights and widths of the images.
        scale: (B,) factors, > 0.
        corner: (B, 2) integer top and left of the resized image in the result; what sticks out is cut off.
        size: height and width of the result.

    Example:
        >>> there = placed(torch.tensor([[10, 10]]), torch.tensor([2.0]), torch.tensor([[-4, 16]]), (20, 20))
        >>> there.source.tolist(), there.target.tolist()
        ([[2, 0, 8, 2]], [[0, 16, 16, 4]])
    """
    native = native.long()
    new = (native * scale.double()[:, None]).round().long().clamp(min=1)
    first = corner.long().clamp(min=0)
    end = torch.minimum(corner.long() + new, torch.tensor(size))
    start = (((first - corner) * native) / new + 0.5).floor().long()
    stop = (((end - corner) * native) / new + 0.5).floor().long()
    start = torch.minimum(start.clamp(min=0), native - 1)
    stop = torch.minimum(torch.maximum(stop, start + 1), native)
    extent = (end - first).clamp(min=0)
    return Geometry(
        size,
        native,
        torch.cat([start, stop - start], 1),
        torch.cat([first, extent], 1),
        torch.zeros(len(native), dtype=torch.bool),
    )


def crop_boxes(
    native: Tensor, factor: Tensor, size: tuple[int, int], places: Tensor
) -> tuple[Tensor, Tensor]:
    """Choose windows of images that are thought resized, in pixels of the images as they are.

    Along each side a window of round(size / factor) pixels, at a uniform place; where the image has fewer, all of
    them, and they fill round(pixels * factor) of the result at a uniform place.

    Args:
        native: (B, 2) integer heights and widths.
        factor: (B,) of the resizing, > 0.
        size: height and width of the result.
        places: (B, n, 2) uniform in [0, 1): n places to try.

    Returns:
        Boxes in the image and boxes in the result, both (B, n, 4) int64: top, left, height, width.

    Example:
        >>> native, half = torch.tensor([[8, 4]]), torch.tensor([0.5])
        >>> source, target = crop_boxes(native, half, (3, 3), torch.full((1, 1, 2), 0.9))
        >>> source.tolist(), target.tolist()
        ([[[2, 0, 6, 4]]], [[[0, 1, 3, 2]]])
    """
    length, factor, wanted = native.double(), factor.double()[:, None], torch.tensor(size).double()
    window = (wanted / factor).round().clamp(min=1)
    fits = window <= length
    extent = torch.minimum(window, length)[:, None]
    reached = torch.where(fits, wanted, (length * factor).round().clamp(min=1).minimum(wanted))[:, None]
    places = places.double()
    first = (places * (length[:, None] - extent + 1)).floor()
    corner = (places * (wanted - reached + 1)).floor()
    boxes = (
        torch.cat([start, side.expand_as(start)], 2) for start, side in ((first, extent), (corner, reached))
    )
    source, target = (box.long() for box in boxes)
    return source, target


def best_window(
    mask: Tensor, source: Tensor, target: Tensor, *, wanted: int, pixels: int, max_share: float, ignore: int
) -> int:
    """Return the first window that meets two conditions, or the nearest to it.

    The conditions: at least ``pixels`` pixels of the result belong to class ``wanted``, and no class has more than
    ``max_share`` of the labelled pixels. Where no window meets both, one with most pixels of the class is taken (more
    than asked for count for nothing), and among those the one with the smallest share.

    Args:
        mask: (H, W) uint8 on the CPU.
        source: (n, 4) boxes in the image.
        target: (n, 4) boxes in the result.
        wanted: class, or -1 for none.
        pixels: how many are asked for.
        max_share: in (0, 1].
        ignore: value of pixels without a label. A window without labels counts as one class.

    Example:
        >>> mask = torch.tensor([[0, 0, 0, 1]], dtype=torch.uint8)
        >>> boxes = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2], [0, 2, 1, 2]])
        >>> best_window(mask, boxes, boxes, wanted=1, pixels=1, max_share=1.0, ignore=255)
        2
    """
    best, reached = 0, (-1.0, -2.0)
    for number, (box, place) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        top, left, height, width = box
        counts = torch.bincount(mask[top : top + height, left : left + width].reshape(-1), minlength=256)
        enlarged = place[2] * place[3] / (height * width)
        present = min(float(counts[wanted]) * enlarged, float(pixels)) if wanted >= 0 else 0.0
        counts[ignore] = 0
        labelled = int(counts.sum())
        share = int(counts.max()) / labelled if labelled else 1.0
        if (present, -max(share, max_share)) > reached:
            best, reached = number, (present, -max(share, max_share))
        if share <= max_share and (wanted < 0 or present >= pixels):
            return number
    return best


def check_sizes(geometry: Geometry, maps: Maps, dimensions: int) -> None:
    """Raise ValueError where maps are not those of a geometry; ``dimensions`` of one sample's map."""
    if len(maps) != len(geometry):
        raise ValueError(f"the geometry of {len(geometry)} samples cannot be applied to {len(maps)}")
    for row, (one, native) in enumerate(zip(maps, geometry.native.tolist(), strict=True)):
        if one.ndim != dimensions or list(one.shape[-2:]) != native:
            raise ValueError(
                f"map {row} must have {dimensions} dimensions and the size {native[0]} x {native[1]} of the geometry,"
                f" got {tuple(one.shape)}"
            )


def _centres(length: int, count: int, device: torch.device) -> Tensor:
    """Pixels nearest to the centres of ``count`` equal parts of a row, in exact integer arithmetic."""
    return (torch.arange(count, device=device) * 2 + 1) * length // (2 * count)


def _steps(source: tuple[int, int, int, int], target: tuple[int, int, int, int]) -> tuple[float, float]:
    """Pixels of the image per pixel of the result, down and across."""
    return source[2] / max(1, target[2]), source[3] / max(1, target[3])


def _pair(row: Tensor) -> tuple[int, int]:
    first, second = row.tolist()
    return first, second


def _box(row: Tensor) -> tuple[int, int, int, int]:
    top, left, height, width = row.tolist()
    return top, left, height, width
