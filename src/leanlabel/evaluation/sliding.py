"""Segment images of any size: whole or in overlapping windows, at several scales and mirrored, in bounded memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanlabel.errors import RunError
from leanlabel.evaluation.windows import Place, Weighting, axis_spans, positions, sampled

Average = Literal["probabilities", "logits"]
MEMORY = 1 << 28
"""Bytes of class scores at full size that are held at a time, unless told otherwise."""


class Segmented(NamedTuple):
    """Most probable class of every pixel, and its probability.

    Attributes:
        classes: (H, W) uint8; (B, H, W) of a batch.
        confidence: same shape, float32, in [0, 1].
    """

    classes: Tensor
    confidence: Tensor


class Tile(NamedTuple):
    """Finished class probabilities of a rectangle.

    Attributes:
        rows, columns: where it lies in the image.
        probabilities: (K, rows, columns), float32 or wider; they sum to 1 over K.
    """

    rows: slice
    columns: slice
    probabilities: Tensor


def segment_image(
    network: Callable[[Tensor], Any],
    image: Tensor,
    *,
    window: tuple[int, int] | None = None,
    overlap: float = 0.5,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    align_corners: bool = False,
    batch: int = 4,
    classes: int | None = None,
    weighting: Weighting = "tapered",
    halo: int = 0,
    average: Average = "probabilities",
    memory: int = MEMORY,
) -> Segmented:
    """Segment one image of any size; see :func:`segment_tiles` for what is computed and how.

    Args:
        network, image, window, overlap, scales, flip, align_corners, batch, classes, weighting, halo, average, memory:
            as in :func:`segment_tiles`.

    Returns:
        Classes (H, W) uint8 and confidence (H, W) float32, on the device of the image.

    Raises:
        ValueError: as :func:`segment_tiles`, or more than 255 classes.

    Example:
        >>> from types import SimpleNamespace
        >>> bright = lambda x: SimpleNamespace(logits=torch.cat([-x, x], dim=1))
        >>> segment_image(bright, torch.tensor([[[-2.0, 3.0]]])).classes.tolist()
        [[0, 1]]
    """
    found, confidence = None, None
    for rows, columns, probabilities in segment_tiles(
        network,
        image,
        window=window,
        overlap=overlap,
        scales=scales,
        flip=flip,
        align_corners=align_corners,
        batch=batch,
        classes=classes,
        weighting=weighting,
        halo=halo,
        average=average,
        memory=memory,
    ):
        if found is None or confidence is None:
            if len(probabilities) > 255:
                raise ValueError(f"{len(probabilities)} classes do not fit uint8 beside 255 = ignore")
            found = torch.empty(image.shape[1:], dtype=torch.uint8, device=image.device)
            confidence = torch.empty(image.shape[1:], device=image.device)
        best, chosen = probabilities.max(0)
        found[rows, columns], confidence[rows, columns] = chosen.to(found), best.to(confidence)
    assert found is not None and confidence is not None  # noqa: PT018
    return Segmented(found, confidence)


def segment(network: Callable[[Tensor], Any], images: Tensor, **settings: Any) -> Segmented:
    """Segment a batch of images of one size, each by :func:`segment_image`.

    Args:
        network: as in :func:`segment_tiles`.
        images: (B, C, H, W) floating point, normalised.
        settings: of :func:`segment_image`.

    Returns:
        Classes (B, H, W) uint8 and confidence (B, H, W) float32, on the device of the images.

    Raises:
        ValueError: as :func:`segment_image`; no image.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be (B, C, H, W) with B >= 1, got {tuple(images.shape)}")
    found = [segment_image(network, image, **settings) for image in images]
    return Segmented(
        torch.stack([one.classes for one in found]), torch.stack([one.confidence for one in found])
    )


@torch.no_grad()
def segment_tiles(
    network: Callable[[Tensor], Any],
    image: Tensor,
    *,
    window: tuple[int, int] | None = None,
    overlap: float = 0.5,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    align_corners: bool = False,
    batch: int = 4,
    classes: int | None = None,
    weighting: Weighting = "tapered",
    halo: int = 0,
    average: Average = "probabilities",
    memory: int = MEMORY,
) -> Iterator[Tile]:
    """Yield the class probabilities of one image of any size, rectangle by rectangle; together they cover it once.

    At every scale the image is resized bilinearly (antialiased where it shrinks) and read in windows. The logits of a
    window are interpolated bilinearly at the pixel centres of the original image that fall into it, softmax follows,
    and the result is p(x) = mean over scales and mirrorings of sum_j w_j(x) p_j(x), with weights w_j of the windows j
    that cover x which sum to 1. "flat" weights are equal; "tapered" ones fall linearly from the middle of a window to
    its edge along both axes, since the network sees less around pixels near an edge. Where an edge is the image's own,
    only one window is there, so nothing is lost. With `halo` pixels at each inner edge having no weight at all, the
    result is that of the whole image for a network that looks no further than `halo` pixels (and whose stride divides
    all window starts: they are multiples of ``network.stride`` where it has one, but for the last of a row, which
    ends with the image).

    Memory: full-size class scores are held for one strip only, at most `memory` bytes of them where windows let it
    (never less than one window). A wider strip is cut into bands; windows across a cut are read twice. A network
    that reads the whole image (``window=None``) keeps its own logits, at its own stride, for each scale and mirroring.

    Args:
        network: (B, C, h, w) -> object with `.logits` (B, K, h', w'), any stride. A module is set to evaluation mode
            while this runs and to its own mode afterwards. An attribute `min_size` is the least side it can read:
            smaller images are padded; `stride` see above.
        image: (C, H, W) floating point, normalised; no gradient. May be on another device than the network.
        window: height and width of windows in pixels of the scaled image; None reads all of it at once. A scaled image
            that is smaller is padded with zeros (the mean colour) below and to the right.
        overlap: share of a window that the next one reads again, in [0, 1).
        scales: factors of the image's size, > 0.
        flip: read mirrored left to right as well.
        align_corners: whether logits are interpolated so that the centres of corner positions coincide (True) or the
            outer edges of the map (False); as in training.
        batch: windows read at once.
        classes: K that the logits must have; None takes what they have.
        weighting: weights of overlapping windows.
        halo: pixels at inner edges of windows to throw away; both sides together less than a window.
        average: what the weighted means are of: probabilities, or logits with one softmax at the end.
        memory: bytes, see above.

    Yields:
        Finished rectangles on the network's device.

    Raises:
        ValueError: shapes or settings are out of range; logits that are not (B, K, h', w') or not finite.
    """
    _check(image, window, overlap, scales, batch, halo, weighting, average)
    least, stride = int(getattr(network, "min_size", 1)), int(getattr(network, "stride", 1))
    if window is not None and min(window) < least:
        raise ValueError(f"window {window} is smaller than the network can read, {least}")
    size = (image.shape[1], image.shape[2])
    scaled = [(max(1, round(size[0] * scale)), max(1, round(size[1] * scale))) for scale in scales]
    places = []
    for number, full in enumerate(scaled):
        axes = [
            axis_spans(
                size[dim],
                full[dim],
                window[dim] if window else max(full[dim], least),
                overlap,
                halo,
                stride,
                weighting,
            )
            for dim in (0, 1)
        ]
        places += [Place(number, rows, columns) for rows, columns in itertools.product(*axes)]
    reader = _Reader(network, image, scaled, flip, batch, classes)
    blend = _Blend(1 / (len(scales) * (2 if flip else 1)), align_corners, average == "probabilities")
    with _evaluating(network):
        yield from (_whole if window is None else _windowed)(reader, blend, places, size, memory)


class _Reader:
    """Cuts windows out of scaled images and runs the network on them."""

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        image: Tensor,
        scaled: Sequence[tuple[int, int]],
        flip: bool,
        batch: int,
        classes: int | None,
    ) -> None:
        self.network, self.scaled, self.flip, self.batch, self.classes = network, scaled, flip, batch, classes
        self.full = image.detach()
        # Smaller images are kept; windows of larger ones are interpolated when they are read.
        self.images = [self._shrunk(height, width) for height, width in scaled]
        known = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        self.device = image.device if known is None else known.device
        self.dtype = known.dtype if known is not None and known.is_floating_point() else image.dtype

    def read(self, places: Sequence[Place]) -> Iterator[list[Tensor]]:
        """Yield the logits (K, h', w') of each window: one map, and that of the mirrored window turned back."""
        if not places:
            return
        windows = torch.stack([self._cut(place) for place in places]).to(self.device, self.dtype)
        if self.flip:
            windows = torch.cat([windows, windows.flip(-1)])
        maps = torch.cat([self._logits(part) for part in windows.split(self.batch)])
        for number in range(len(places)):
            yield [maps[number], maps[len(places) + number].flip(-1)] if self.flip else [maps[number]]

    def _logits(self, windows: Tensor) -> Tensor:
        logits = self.network(windows).logits
        wanted = "K" if self.classes is None else self.classes
        if logits.ndim != 4 or len(logits) != len(windows) or self.classes not in (None, logits.shape[1]):
            raise ValueError(f"logits must be ({len(windows)}, {wanted}, h, w), got {tuple(logits.shape)}")
        if not bool(torch.isfinite(logits).all()):
            raise RunError(
                "The network's logits are not finite.", "Look at its weights and at the image's values."
            )
        self.classes = logits.shape[1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _cut(self, place: Place) -> Tensor:
        image, (height, width) = self.images[place.scale], self.scaled[place.scale]
        rows = (place.rows.begin, min(place.rows.begin + place.rows.length, height))
        columns = (place.columns.begin, min(place.columns.begin + place.columns.length, width))
        if image is None:
            points = [
                (torch.arange(*ends, dtype=torch.float64) + 0.5) * (side / full) - 0.5
                for ends, side, full in zip(
                    (rows, columns), self.full.shape[1:], (height, width), strict=True
                )
            ]
            found = sampled(self.full, points[0], points[1])
        else:
            found = image[:, slice(*rows), slice(*columns)]
        below, beside = (span.length - size for span, size in zip(place[1:], found.shape[1:], strict=True))
        return F.pad(found, (0, beside, 0, below)) if below or beside else found

    def _shrunk(self, height: int, width: int) -> Tensor | None:
        if (height, width) == self.full.shape[1:]:
            return self.full
        if height > self.full.shape[1] or width > self.full.shape[2]:
            return None
        return F.interpolate(self.full[None], (height, width), mode="bilinear", antialias=True)[0]


@dataclass(frozen=True)
class _Blend:
    """How what windows say is added up: the share of each map, and what is averaged."""

    share: float
    align_corners: bool
    probabilities: bool

    def add(self, total: Tensor, maps: Sequence[Tensor], place: Place, rows: slice, columns: slice) -> None:
        """Add a window's part to the rectangle `total` (K, rows, columns) of the original image."""
        down = slice(rows.start - place.rows.start, rows.stop - place.rows.start)
        across = slice(columns.start - place.columns.start, columns.stop - place.columns.start)
        weights = self.share * torch.outer(place.rows.weights[down], place.columns.weights[across])
        for logits in maps:
            spots = [
                positions(span.centres[part], span.length, side, self.align_corners)
                for span, part, side in zip(place[1:], (down, across), logits.shape[1:], strict=True)
            ]
            found = sampled(logits, spots[0], spots[1])
            found = found.softmax(0) if self.probabilities else found
            total.addcmul_(found, weights.to(total))

    def finish(self, total: Tensor) -> Tensor:
        """Probabilities (K, rows, columns) of sums over all windows."""
        return total if self.probabilities else total.softmax(0)


def _whole(
    reader: _Reader, blend: _Blend, places: Sequence[Place], size: tuple[int, int], memory: int
) -> Iterator[Tile]:
    """Read each scaled image at once, and bring the logits to full size some rows at a time."""
    found = [(place, maps) for place in places for maps in reader.read([place])]
    first = found[0][1][0]
    # Interpolation and softmax hold about four times what they return.
    step = max(1, memory // (4 * len(first) * size[1] * first.element_size()))
    columns = slice(0, size[1])
    for start in range(0, size[0], step):
        rows = slice(start, min(start + step, size[0]))
        total = first.new_zeros(len(first), rows.stop - start, size[1])
        for place, maps in found:
            blend.add(total, maps, place, rows, columns)
        yield Tile(rows, columns, blend.finish(total))


def _windowed(
    reader: _Reader, blend: _Blend, places: Sequence[Place], size: tuple[int, int], memory: int
) -> Iterator[Tile]:
    """Read windows from the top down; rows that no later window reaches are finished."""
    places = sorted(places, key=lambda place: (place.rows.start, place.scale, place.columns.start))
    depth = max(place.rows.stop - place.rows.start for place in places)
    # The first window tells how many classes there are, and with that how wide a band may be.
    known = list(reader.read(places[:1]))
    first = known[0][0]
    widest = max(place.columns.stop - place.columns.start for place in places)
    width = max(widest, memory // (2 * len(first) * depth * first.element_size()))
    bands = math.ceil(size[1] / width)
    cuts = [size[1] * band // bands for band in range(bands + 1)]
    for left, right in itertools.pairwise(cuts):
        own = [place for place in places if place.columns.start < right and place.columns.stop > left]
        total, top = first.new_zeros(len(first), depth, right - left), 0
        for start in range(0, len(own), reader.batch):
            part = own[start : start + reader.batch]
            read = itertools.chain(known, reader.read(part[len(known) :]))
            for place, maps in zip(part, read, strict=True):
                if place.rows.start > top:
                    done = place.rows.start - top
                    finished = blend.finish(total[:, :done].clone())
                    for scores in total:  # one class at a time: what moves up overlaps where it comes from
                        scores[:-done] = scores[done:].clone()
                        scores[-done:] = 0
                    yield Tile(slice(top, place.rows.start), slice(left, right), finished)
                    top = place.rows.start
                columns = slice(max(left, place.columns.start), min(right, place.columns.stop))
                target = total[:, : place.rows.stop - top, columns.start - left : columns.stop - left]
                blend.add(target, maps, place, slice(top, place.rows.stop), columns)
            known = []
        yield Tile(slice(top, size[0]), slice(left, right), blend.finish(total[:, : size[0] - top]))


@contextmanager
def _evaluating(network: Callable[[Tensor], Any]) -> Iterator[None]:
    """Evaluation mode for a while; every part of the network gets its own mode back."""
    if not isinstance(network, nn.Module):
        yield
        return
    training = [part for part in network.modules() if part.training]
    network.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _check(
    image: Tensor,
    window: tuple[int, int] | None,
    overlap: float,
    scales: Sequence[float],
    batch: int,
    halo: int,
    weighting: str,
    average: str,
) -> None:
    if image.ndim != 3 or not image.numel() or not image.is_floating_point():
        raise ValueError(
            f"the image must be (C, H, W) floating point, got {tuple(image.shape)} {image.dtype}"
        )
    if not len(scales) or min(scales) <= 0:
        raise ValueError(f"scales must be positive, and at least one, got {tuple(scales)}")
    if not 0 <= overlap < 1 or batch < 1 or halo < 0:
        raise ValueError(f"need 0 <= overlap < 1, batch >= 1, halo >= 0; got {overlap}, {batch}, {halo}")
    if window is not None and min(window) <= 2 * halo:
        raise ValueError(f"window {window} must be larger than 2 * halo = {2 * halo}")
    if weighting not in ("tapered", "flat") or average not in ("probabilities", "logits"):
        raise ValueError(f"no weighting {weighting!r} or average {average!r}")
