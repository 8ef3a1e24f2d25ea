"""One pass over images and masks before training: what cannot be read, what does not fit, how many pixels of what."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.class_map import IGNORE, ClassMap
from leanlabel.data.decode import Fit, decode_with_header, read_header, try_decoding
from leanlabel.data.dense import fitted_size, is_store
from leanlabel.data.dense_listing import DenseListing, Fault
from leanlabel.data.image_files import IN_MEMORY, Load, Step
from leanlabel.data.images import THREADS
from leanlabel.data.masks import MaskFormError, classes_of, count_labels, decode_mask, form_of, nearest
from leanlabel.errors import InputError

_CHUNK = 16


@dataclass
class Seen:
    """What was seen of one image and its mask.

    Args:
        size: (channels, height, width) as read, resized; None where it cannot be read.
        mode: Pillow's name of the pixel format, or the number of bands.
        pixels: (K + 1,) int64 pixels of each class, and of none; None where there is no mask, or it was not decoded.
        wrong: whether the mask holds values that the class map does not list.
        faults: what is wrong otherwise.
    """

    size: tuple[int, int, int] | None = None
    mode: str = ""
    pixels: np.ndarray | None = None
    wrong: bool = False
    faults: list[Fault] = field(default_factory=list)


@dataclass
class Looking:
    """One pass over all images and masks, which are kept where memory is asked for.

    Args:
        listing: images and masks.
        classes: what label values mean.
        fit: size that images and masks are brought to.
        load: whether to keep pixels.
        bands: bands to read; () for all; None for RGB.
        white: value that means 1.0 in 16-bit files.
        verify: whether to decode what is not kept.
        pixels: (N, C, H, W), once kept.
        labels: (N, H, W), once kept.
        values: label values (or colours) of all masks -> pixels.
        by_colour: whether a mask held colours.
    """

    listing: DenseListing
    classes: ClassMap
    fit: Fit
    load: Load
    bands: tuple[int, ...] | None
    white: float | None
    verify: bool
    pixels: Tensor | None = None
    labels: Tensor | None = None
    values: Counter[int] = field(default_factory=Counter)
    by_colour: bool = False
    _lock: Any = field(default_factory=Lock, repr=False)

    def run(self, path: str, progress: Step | None) -> list[Seen]:
        n = len(self.listing)
        broken = {one.row for one in self.listing.faults if one.code == "missing_file"}
        self._make_room(path, broken)
        found: list[Seen] = []

        def chunk(start: int) -> list[Seen]:
            rows = range(start, min(start + _CHUNK, n))
            return [Seen() if row in broken else self.one(row) for row in rows]

        sizes: set[tuple[int, int, int]] = set()
        with ThreadPoolExecutor(THREADS) as threads:
            for rows in threads.map(chunk, range(0, n, _CHUNK)):
                found += rows
                sizes |= {row.size for row in rows if row.size is not None}
                if len(sizes) > 1 and self.pixels is not None:
                    self.pixels = self.labels = None  # what is decoded from now on is not kept
                if len(sizes) > 1 and self.load == "memory":
                    (_, h, w), (_, g, v) = sorted(sizes)[:2]
                    raise InputError(
                        f"{path}: images have different sizes or bands ({w} x {h} and {v} x {g}).",
                        "Set data.load: disk instead of memory.",
                    )
                if progress is not None:
                    progress(len(found), n)
        if self.pixels is not None and sizes != {tuple(self.pixels.shape[1:])}:
            self.pixels = self.labels = None
        return found

    def one(self, row: int) -> Seen:
        """Look at one image and its mask."""
        seen = Seen()
        pixels, labels = self.pixels, self.labels
        full: tuple[int, int] | None = None
        where = self.listing.images.where(row)
        try:
            full = self._image(row, where, seen, pixels)
        except InputError as error:
            seen.faults.append(Fault("unreadable", str(error), row))
        at = self.listing.mask_row(row)
        if at < 0:
            if labels is not None:
                labels[row] = IGNORE
            return seen
        masks = self.listing.masks
        try:
            self._mask(masks, at, row, full, seen, labels)
        except MaskFormError as error:
            seen.faults.append(Fault("wrong_form", str(error), row))
        except InputError as error:
            seen.faults.append(Fault("unreadable_mask", str(error), row))
        return seen

    def _image(self, row: int, where: str, seen: Seen, pixels: Tensor | None) -> tuple[int, int]:
        data = self.listing.images.read(row)
        if self.bands is not None:
            full, image = self.decode_bands(data, where)
            seen.size, seen.mode = size_of(image), f"{image.shape[0]} bands {str(image.dtype)[6:]}"
        elif pixels is not None:
            image, head = decode_with_header(data, where, self.fit)
            full, seen.size, seen.mode = (head.height, head.width), size_of(image), head.mode
        else:
            head = (try_decoding if self.verify else read_header)(data, where)
            full, image = (head.height, head.width), None
            seen.size, seen.mode = (3, *fitted_size(self.fit, *full)), head.mode
        if pixels is not None and image is not None and image.shape == pixels.shape[1:]:
            if image.dtype == pixels.dtype:
                pixels[row] = image
            else:
                raise InputError(f"{where}: {image.dtype} pixels, the others have {pixels.dtype}.")
        return full

    def decode_bands(self, data: bytes, where: str) -> tuple[tuple[int, int], Tensor]:
        """Height and width of a file before resizing, and its bands after."""
        from leanlabel.data.bands import read_bands

        image = read_bands(data, where, self.bands or None, self.white)
        full = int(image.shape[1]), int(image.shape[2])
        if fitted_size(self.fit, *full) != full:
            image = read_bands(data, where, self.bands or None, self.white, self.fit)
        return full, image

    def _mask(
        self, masks: Any, at: int, row: int, full: tuple[int, int] | None, seen: Seen, labels: Tensor | None
    ) -> None:
        stored = is_store(masks)
        where = masks.where(at) if stored else self.listing.images.where(row)
        if stored and not self.verify and labels is None:
            head = read_header(masks.read(at), where)
            self._compare((head.height, head.width), full, where, row, seen)
            return
        form = form_of(self.classes, self.listing.form)
        raw = decode_mask(masks.read(at), where, form) if stored else np.asarray(masks[at])
        self._compare(raw.shape[:2], full, where, row, seen)
        if stored:
            counts = count_labels(raw, self.classes)
            seen.pixels, seen.wrong = counts.pixels, bool(counts.wrong)
            with self._lock:
                self.values.update(counts.raw)
                self.by_colour |= raw.ndim == 3
        else:  # made by something else, and classes already
            every = np.bincount(raw.reshape(-1), minlength=256)
            seen.pixels = np.append(every[: len(self.classes)], every[IGNORE])
        small = nearest(raw, fitted_size(self.fit, raw.shape[0], raw.shape[1]))
        if labels is None or seen.wrong or seen.faults or small.shape[:2] != labels.shape[1:]:
            return
        found = classes_of(small, self.classes, where) if stored else small
        labels[row] = torch.from_numpy(np.ascontiguousarray(found))

    def _compare(
        self, size: tuple[int, ...], full: tuple[int, int] | None, where: str, row: int, seen: Seen
    ) -> None:
        if full is not None and size != full:
            text = f"{where}: {size[1]} x {size[0]} pixels, its image has {full[1]} x {full[0]}"
            seen.faults.append(Fault("size_mismatch", text, row))

    def _make_room(self, path: str, broken: set[int]) -> None:
        """Empty arrays for all images and masks if the first readable image lets them fit."""
        if self.load == "disk":
            return
        n, images = len(self.listing), self.listing.images
        for row in (row for row in range(n) if row not in broken):
            try:
                data, where = images.read(row), images.where(row)
                if self.bands is not None:
                    first = self.decode_bands(data, where)[1]
                    size, kind = size_of(first), first.dtype
                else:
                    head = read_header(data, where)
                    size, kind = (3, *fitted_size(self.fit, head.height, head.width)), torch.uint8
            except InputError:
                continue
            each = int(np.prod(size)) * kind.itemsize + size[1] * size[2]
            if self.load == "auto" and each * n >= IN_MEMORY:
                return
            try:
                self.pixels = torch.empty((n, *size), dtype=kind)
                if self.listing.masks is not None:
                    self.labels = torch.empty((n, *size[1:]), dtype=torch.uint8)
            except RuntimeError as error:
                raise InputError(
                    f"{path}: {n} images of {size[2]} x {size[1]} do not fit into memory.",
                    "Set data.load: disk, or data.resize.",
                ) from error
            return


def size_of(image: Tensor) -> tuple[int, int, int]:
    """(C, h, w) of one image."""
    return int(image.shape[0]), int(image.shape[1]), int(image.shape[2])
