"""What a user names to be predicted: folders, archives, lists and single images, read and looked at file by file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from leanlabel.data.bands import BandFiles
from leanlabel.data.decode import ENDINGS, try_decoding
from leanlabel.data.dense_files import list_dense
from leanlabel.data.dense_layouts import open_place, recognise
from leanlabel.data.dense_place import Place
from leanlabel.data.image_files import list_images
from leanlabel.data.image_stores import FolderStore
from leanlabel.data.images import THREADS, PixelArray, PixelFiles, Pixels
from leanlabel.engine.progress import Bar
from leanlabel.errors import InputError
from leanlabel.export.predictions import _stems

Source = tuple[list[str], Pixels]
"""Names of images, paths with forward slashes, and their pixels."""


def image_files(place: str) -> Source:
    """Names and pixels, at their own sizes, of all images of a folder, a .zip, a list file, or of one image file.

    Raises:
        InputError: there are none.
    """
    path = Path(place).expanduser()
    if path.name.lower().endswith(ENDINGS) and path.is_file():
        return [path.name], PixelFiles(FolderStore(str(path.parent), [path.name]))
    without_masks = _beside_masks(path)
    if without_masks is not None:
        return without_masks
    try:
        listing = list_images(path, layout="flat")
    except InputError:
        pairs = _of_pairs(path)
        if pairs is None:
            raise
        return pairs
    if isinstance(listing.source, Tensor):
        return listing.ids or _numbers(len(listing)), PixelArray(listing.source)
    names = listing.source.names if isinstance(listing.source, FolderStore) else listing.ids
    names = list(names or _numbers(len(listing)))
    if any(
        ".." in name.split("/") or os.path.isabs(name) for name in names
    ):  # a list may name files anywhere
        places = [os.path.abspath(path.parent / name) for name in names]
        try:
            root = os.path.commonpath([os.path.dirname(one) for one in places])
        except ValueError as error:  # on different drives
            raise InputError(
                f"{place}: its images have no folder in common.", "Write a list for each."
            ) from error
        names = [Path(os.path.relpath(one, root)).as_posix() for one in places]
    return names, PixelFiles(listing.source)


def _beside_masks(path: Path) -> Source | None:
    """The images of a folder or .zip that holds their masks, too; None of any other place."""
    if not path.is_dir() and path.suffix.lower() != ".zip":
        return None
    try:
        if recognise(open_place(Place.open(path))) is None:
            return None
        listing = list_dense(path, labels="none")
    except InputError:
        return None
    return list(listing.ids), PixelFiles(listing.images)


def _of_pairs(path: Path) -> Source | None:
    """The images that a list or table of images and masks names; None of anything else."""
    try:
        listing = list_dense(path, labels="none")
    except InputError:
        return None
    return None if listing.faults else (list(listing.ids), PixelFiles(listing.images))


def image_sources(method: Any, inputs: Sequence[str], out: Path) -> list[Source]:
    """Names and pixels of every input; names of several inputs stand in a folder each, but for single files."""
    bands = getattr(method, "band_reading", None)
    groups = [place for place in inputs if not _is_image(place)]
    stems = dict(zip(groups, _stems(groups), strict=True)) if len(inputs) > 1 else {}
    sources = []
    for place in inputs:
        names, pixels = image_files(str(place))
        if bands is not None and isinstance(pixels, PixelFiles):
            pixels = BandFiles(pixels.store, *bands)
        if Path(place).expanduser().is_dir():  # an output below the input is no input
            root, target = Path(place).expanduser().resolve(), out.resolve()
            below = f"{target.relative_to(root).as_posix()}/" if target.is_relative_to(root) else None
            rows = [row for row, name in enumerate(names) if below is None or not name.startswith(below)]
            names, pixels = (
                [names[row] for row in rows],
                pixels if len(rows) == len(names) else pixels.take(rows),
            )
        stem = stems.get(place)
        sources.append(([f"{stem}/{name}" if stem else name for name in names], pixels))
    if not any(names for names, _ in sources):
        raise InputError(f"{', '.join(map(str, inputs))}: no images but those of --out.")
    return sources


def own_images(data: Any) -> Source:
    data = getattr(data, "target", data)  # of two domains, the one that the network is for
    pixels = getattr(data, "pixels", None)
    if pixels is None:
        raise InputError(
            "There is nothing to predict.", "Name a folder of images, a .zip, a list, or an image."
        )
    return list(getattr(data, "ids", None) or _numbers(len(pixels))), pixels


def _is_image(place: str) -> bool:
    return str(place).lower().endswith(ENDINGS) and not Path(place).expanduser().is_dir()


def _numbers(count: int) -> list[str]:
    return [f"{row:0{len(str(max(count - 1, 0)))}d}" for row in range(count)]


def unreadable(sources: Sequence[Source], quiet: bool) -> dict[str, str]:
    """Name -> what is wrong with it, of all files that cannot be read; several are looked at at a time."""
    found: dict[str, str] = {}
    total, done = sum(len(names) for names, _ in sources), 0
    with Bar(total, label="check", show=not quiet) as bar, ThreadPoolExecutor(THREADS) as threads:
        for names, pixels in sources:
            if isinstance(pixels, PixelArray):
                continue
            for name, reason in zip(
                names, threads.map(partial(_fault, pixels), range(len(names))), strict=True
            ):
                if reason is not None:
                    found[name] = reason
                done += 1
                bar.advance(done)
    return found


def _fault(pixels: Pixels, row: int) -> str | None:
    try:
        if isinstance(pixels, PixelFiles):
            try_decoding(pixels.store.read(row), pixels.store.where(row))
        else:
            pixels[row]
    except InputError as error:
        return error.message
    return None
