"""Images in one .npz: arrays of pixels, or of image files one after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.graph_tables import read_arrays, unreadable
from leanlabel.data.graphs import UNLABELLED
from leanlabel.data.image_stores import JoinedStore, Listing, PackedStore, Store, join_stores
from leanlabel.data.splits import PARTS
from leanlabel.errors import InputError

_IMAGE, _LABEL = ("image", "images", "x", "data"), ("label", "labels", "y")
_LAYOUT = (
    "An .npz of images holds image (N, H, W), (N, H, W, 3) or (N, 3, H, W) uint8 and, if you like, label (N,); or "
    "train_image, train_label, test_image, test_label; or the files as jpeg (bytes) and offsets (N + 1)."
)


def _names(kind: tuple[str, ...], part: str | None) -> list[str]:
    if part is None:
        return list(kind)
    return [joined for key in kind for joined in (f"{part}_{key}", f"{key}_{part}")]


_KEYS = {
    key
    for kind in (_IMAGE, _LABEL, ("jpeg", "offsets"))
    for part in (None, *PARTS)
    for key in _names(kind, part)
} | {"class_names"}


def packed_parts(path: Path) -> dict[str, Path] | None:
    """The files of a folder that holds one set as NAME_train.npz, NAME_test.npz and perhaps NAME_val.npz, else None."""
    found: dict[str, dict[str, Path]] = {}
    try:
        for file in path.iterdir():
            match = re.fullmatch(r"(.+)_(train|val|test)\.npz", file.name)
            if match:
                found.setdefault(match[1], {})[match[2]] = file
    except OSError as error:
        raise unreadable(path, error) from error
    if len(found) != 1:
        return None
    parts = next(iter(found.values()))
    return {part: parts[part] for part in PARTS if part in parts}


def read_image_arrays(path: Path) -> Listing:
    """Read an .npz of images, or a folder of one such file per part (:func:`packed_parts`).

    Pixels are uint8, grey or three channels, channels first or last; labels are integers 0 .. C-1, others are
    numbered in sorted order, below 0 means not known. Parts that the file or the folder names become the published
    split, provided that there is a train part and another one.

    Raises:
        InputError: damaged, no images, another type or shape, or labels that do not fit; names file and array.
    """
    if path.is_dir():
        files = packed_parts(path) or {}
        loaded = [
            (part, _block(file, read_arrays(file, _KEYS.__contains__), None)) for part, file in files.items()
        ]
        return _joined(path, path.name, loaded)
    arrays = read_arrays(path, _KEYS.__contains__)
    parts = [part for part in PARTS if any(key in arrays for key in _names((*_IMAGE, "jpeg"), part))]
    whole = any(key in arrays for key in (*_IMAGE, "jpeg"))
    if whole and parts:
        raise InputError(f"{path} holds images both as one array and as {', '.join(parts)}.", _LAYOUT)
    if not whole and not parts:
        raise InputError(
            f"{path} holds no images (arrays: {', '.join(arrays) or 'none of the names below'}).", _LAYOUT
        )
    blocks = [(part, _block(path, arrays, part)) for part in (parts or [None])]
    return _joined(path, path.stem, blocks)


class _Block:
    """Images and labels of one part, and the array names they came under."""

    def __init__(self, source: Store | Tensor, labels: np.ndarray | None, names: list[str] | None) -> None:
        self.source, self.labels, self.names = source, labels, names


def _block(path: Path, arrays: Mapping[str, np.ndarray], part: str | None) -> _Block:
    packed = next((key for key in _names(("jpeg",), part) if key in arrays), None)
    if packed:
        source: Store | Tensor = _packed_files(path, packed, arrays, part)
    else:
        key = next((key for key in _names(_IMAGE, part) if key in arrays), None)
        if key is None:
            raise InputError(f"{path} holds no images.", _LAYOUT)
        source = channels_first(arrays[key], f"{path}: array {key!r}")
    label = next((key for key in _names(_LABEL, part) if key in arrays), None)
    labels = None
    if label:
        labels = arrays[label]
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.shape != (len(source),) or labels.dtype.kind not in "iuU":
            raise InputError(
                f"{path}: array {label!r} is {labels.shape} {labels.dtype}, expected one integer or name for each of "
                f"{len(source)} images."
            )
        if labels.dtype.kind == "u" and labels.size and int(labels.max()) >= 2**63:
            raise InputError(f"{path}: array {label!r} holds {labels.max()}, which is no class.")
    names = [str(name) for name in arrays["class_names"].ravel()] if "class_names" in arrays else None
    return _Block(source, labels, names)


def _packed_files(path: Path, key: str, arrays: Mapping[str, np.ndarray], part: str | None) -> PackedStore:
    content = arrays[key]
    name = next((own for own in _names(("offsets",), part) if own in arrays), None)
    if name is None:
        raise InputError(
            f"{path}: {key!r} needs 'offsets', the first byte of each file and the end.", _LAYOUT
        )
    offsets = arrays[name]
    if content.ndim != 1 or content.dtype != np.uint8:
        raise InputError(
            f"{path}: array {key!r} is {content.shape} {content.dtype}, expected bytes in one row."
        )
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 1:
        raise InputError(
            f"{path}: array {name!r} is {offsets.shape} {offsets.dtype}, expected integers in one row."
        )
    if int(offsets[0]) < 0 or int(offsets.max()) > len(content) or bool((offsets[1:] < offsets[:-1]).any()):
        raise InputError(
            f"{path}: {name!r} must rise from 0 to at most {len(content)}, the bytes of {key!r}."
        )
    places = offsets.astype(np.int64)
    return PackedStore(content, places[:-1], places[1:], str(path), np.arange(len(places) - 1))


def channels_first(pixels: np.ndarray, what: str) -> Tensor:
    """Turn uint8 pixels (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W) into (N, 3, H, W).

    Raises:
        InputError: another shape or type.
    """
    if pixels.dtype != np.uint8:
        raise InputError(
            f"{what} has type {pixels.dtype}, expected uint8.", "Scale pixels to 0 .. 255 as uint8."
        )
    last = pixels.ndim == 4 and pixels.shape[3] in (1, 3)
    first = pixels.ndim == 4 and pixels.shape[1] in (1, 3)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif last and not (first and pixels.shape[3] == 1 and pixels.shape[1] == 3):
        pixels = pixels.transpose(0, 3, 1, 2)
    elif not first:
        raise InputError(f"{what} has shape {pixels.shape}, expected images.", _LAYOUT)
    if min(pixels.shape[2:]) < 1:
        raise InputError(f"{what} has shape {pixels.shape}: the images have no pixels.")
    return torch.from_numpy(np.array(np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:])), order="C"))


def _joined(path: Path, name: str, blocks: Sequence[tuple[str | None, _Block]]) -> Listing:
    sources = [block.source for _, block in blocks]
    counts = [len(source) for source in sources]
    if sum(counts) == 0:
        raise InputError(f"{path} holds no images.", _LAYOUT)
    arrays = [source for source in sources if isinstance(source, Tensor)]
    stores = [source for source in sources if not isinstance(source, Tensor)]
    if arrays and stores:
        raise InputError(f"{path} holds pixels in one part and image files in another.")
    if len({source.shape[1:] for source in arrays}) > 1:
        shapes = ", ".join(f"{part} {tuple(one.shape)}" for (part, _), one in zip(blocks, arrays))
        raise InputError(f"{path}: the parts have images of different sizes ({shapes}).")
    source: Store | Tensor | JoinedStore
    if arrays:
        source = torch.cat(arrays) if len(arrays) > 1 else arrays[0]
    else:
        source = join_stores(stores) if len(stores) > 1 else stores[0]
    listing = Listing(name, source, facts={"layout": "npz"})
    ends = np.cumsum([0, *counts])
    parts = {part: torch.arange(int(a), int(b)) for (part, _), a, b in zip(blocks, ends, ends[1:]) if part}
    if "train" in parts and len(parts) > 1:
        listing.splits = parts
    if any(block.labels is not None for _, block in blocks):
        kinds = {
            "U" if block.labels.dtype.kind == "U" else "i" for _, block in blocks if block.labels is not None
        }
        if len(kinds) > 1:
            raise InputError(f"{path}: labels are numbers in one part and names in another.")
        empty = "" if kinds == {"U"} else UNLABELLED
        labels: list[Any] = []
        for (_, block), count in zip(blocks, counts):
            labels += [empty] * count if block.labels is None else block.labels.tolist()
        names = next((block.names for _, block in blocks if block.names), None)
        listing.y, listing.class_names = _classes(path, labels, names)
    return listing


def _classes(
    path: Path, labels: list[Any], names: list[str] | None
) -> tuple[Tensor | None, list[str] | None]:
    known = sorted({one for one in labels if (one != "" if isinstance(one, str) else one >= 0)})
    if not known:
        return None, None
    numbers = not isinstance(known[0], str)
    if names is not None and numbers:
        if int(known[-1]) >= len(names):
            raise InputError(f"{path}: label {known[-1]} has no name, class_names has {len(names)}.")
        known = list(range(len(names)))
    dense = numbers and known == list(range(len(known)))
    number = {value: k for k, value in enumerate(known)}
    y = torch.tensor([number.get(one, UNLABELLED) for one in labels], dtype=torch.int64)
    return y, (names if dense else [str(value) for value in known])
