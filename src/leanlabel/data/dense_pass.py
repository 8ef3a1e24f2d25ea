"""One look at every image and mask of a listing, in threads; what was seen is kept for the next time."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from leanlabel.data.bands import read_bands
from leanlabel.data.coco import CocoMasks
from leanlabel.data.decode import Fit, decode_with_header
from leanlabel.data.dense import is_store
from leanlabel.data.dense_listing import DenseListing, MaskForm
from leanlabel.data.image_stores import FolderStore, JoinedStore, Store, ZipStore
from leanlabel.data.images import THREADS
from leanlabel.data.masks import decode_mask
from leanlabel.data.near_copies import difference_hash
from leanlabel.errors import InputError

Step = Callable[[int, int], None]
"""Called with the number of images looked at so far, and of all."""
MOST_VALUES = 4096
"""Different values of one mask that are counted; a smoothed colour mask has more, and is wrong anyway."""
_VERSION = 1
_SMALL = Fit(64)
_CHUNK = 16
_TIFF = (b"II", b"MM")


@dataclass
class Look:
    """What was seen of one image and its mask.

    Args:
        size: width and height of the image; None where it cannot be read.
        mode: Pillow's name of the pixel format, or the number of bands.
        code: difference hash; None of images of one colour.
        digest: hash of the file, or of the pixels of an image in memory.
        fault: why the image cannot be read.
        mask_size: width and height of the mask; None where there is none, or it cannot be read.
        mask_fault: why the mask cannot be read.
        values: raw id (or colour, red x 65536 + green x 256 + blue; or class, of masks that are made) -> pixels.
        colours: whether these are colours.
    """

    size: tuple[int, int] | None = None
    mode: str = ""
    code: int | None = None
    digest: str = ""
    fault: str | None = None
    mask_size: tuple[int, int] | None = None
    mask_fault: str | None = None
    values: dict[int, int] = field(default_factory=dict)
    colours: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Look:
        """Read what :meth:`as_dict` made, through JSON."""
        size, mask_size = (
            None if stored[key] is None else tuple(stored[key]) for key in ("size", "mask_size")
        )
        values = {int(value): int(count) for value, count in stored["values"].items()}
        return cls(**{**stored, "size": size, "mask_size": mask_size, "values": values})


def look_at(
    listing: DenseListing, form: MaskForm, progress: Step | None = None, cache: Path | None = None
) -> list[Look]:
    """Look at every image and mask once.

    Args:
        listing: where they are.
        form: how mask files say the class.
        progress: called now and then with the number of images looked at, and of all.
        cache: folder in which results are kept, by name, size and time of change of each file; None keeps nothing.

    Returns:
        One entry per image. Nothing is raised for files that cannot be read: the entry says why.
    """

    def one(row: int) -> Look:
        look = Look()
        try:
            data = listing.images.read(row)
            look.digest = hashlib.blake2b(data, digest_size=16).hexdigest()
            small, look.size, look.mode = _small(data, listing.images.where(row))
            look.code = difference_hash(small)
        except InputError as error:
            look.fault = error.message
        return _with_mask(look, listing, row, form)

    keys = None if cache is None else _keys(listing, form)
    if cache is None or keys is None:
        return look_at_each(one, len(listing), progress)
    place = cache / f"{_hash(_root(listing.images), _root(listing.masks), form)}.json"
    known = _read(place)
    rows = [row for row, key in enumerate(keys) if key not in known]
    fresh = look_at_each(lambda k: one(rows[k]), len(rows), progress)
    found = dict(zip(rows, fresh, strict=True))
    looks = [found[row] if row in found else known[keys[row]] for row in range(len(listing))]
    if rows or len(known) != len(looks):
        # What could not be read may be mended in a second, or be the network's fault: it is read again.
        good = {
            key: look for key, look in zip(keys, looks, strict=True) if not (look.fault or look.mask_fault)
        }
        _write(place, good)
    return looks


def look_at_each(one: Callable[[int], Look], count: int, progress: Step | None = None) -> list[Look]:
    """Look at `count` rows in threads, in order."""
    looks: list[Look] = []

    def chunk(start: int) -> list[Look]:
        return [one(row) for row in range(start, min(start + _CHUNK, count))]

    with ThreadPoolExecutor(max(THREADS, os.cpu_count() or 1)) as threads:
        for found in threads.map(chunk, range(0, count, _CHUNK)):
            looks += found
            if progress is not None:
                progress(len(looks), count)
    return looks


def seen_mask(look: Look, mask: np.ndarray) -> Look:
    """Note size and values of a mask, (h, w) or (h, w, 3)."""
    look.mask_size = int(mask.shape[1]), int(mask.shape[0])
    if mask.ndim == 3:
        wide = mask.astype(np.int32)
        values, counts = np.unique(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:MOST_VALUES]
        values, counts, look.colours = values[order], counts[order], True
    else:
        every = np.bincount(mask.reshape(-1))
        values = np.flatnonzero(every)
        counts = every[values]
    look.values = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return look


def cache_folder() -> Path:
    """Folder for what can be made again: LEANLABEL_CACHE, else the system's folder for a user's caches."""
    own = os.environ.get("LEANLABEL_CACHE")
    if own:
        return Path(own).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "leanlabel" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "leanlabel"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "leanlabel"


def _small(data: bytes, where: str) -> tuple[Tensor, tuple[int, int], str]:
    """A small version of an image, its width and height, and its pixel format."""
    try:
        small, head = decode_with_header(data, where, _SMALL)
        return small, (head.width, head.height), head.mode
    except InputError:
        if not data.startswith(_TIFF):
            raise
    whole = read_bands(data, where)
    return whole, (int(whole.shape[2]), int(whole.shape[1])), f"{len(whole)} bands"


def _with_mask(look: Look, listing: DenseListing, row: int, form: MaskForm) -> Look:
    place = listing.mask_row(row)
    if place < 0 or listing.masks is None:
        return look
    try:
        masks: Any = listing.masks
        if is_store(masks):
            return seen_mask(look, decode_mask(masks.read(place), masks.where(place), form))
        return seen_mask(look, np.asarray(masks[place]))
    except InputError as error:
        look.mask_fault = error.message
    return look


def _keys(listing: DenseListing, form: MaskForm) -> list[str] | None:
    """A name for the state of each row's files; None where files are not told apart by name and time."""
    images, masks = _stamps(listing.images), _stamps(listing.masks)
    if images is None or masks is None:
        return None
    of = [listing.mask_row(row) for row in range(len(listing))]
    return [_hash(own, masks[k] if k >= 0 else "", form) for own, k in zip(images, of, strict=True)]


def _stamps(store: Any) -> list[str] | None:
    if store is None:
        return []
    if isinstance(store, FolderStore):
        return [_stamp(Path(store.root) / name) for name in store.names]
    if isinstance(store, ZipStore):
        archive = _stamp(Path(store.path))
        return [f"{archive}|{name}" for name in store.names]
    if isinstance(store, JoinedStore):
        parts = [_stamps(part) for part in store.parts]
        if any(part is None for part in parts):
            return None
        return [parts[part][row] for part, row in store.index_of.tolist()]  # type: ignore[index]
    if isinstance(store, CocoMasks):
        file = _stamp(Path(store.path))
        labels = [[one.label for one in own] for own in store.objects]
        return [f"{file}|{row}|{store.fill}|{own}" for row, own in enumerate(labels)]
    return None


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return f"{path}|gone"
    return f"{path.absolute()}|{found.st_size}|{found.st_mtime_ns}"


def _root(store: Store | Any) -> str:
    if isinstance(store, JoinedStore):
        return "|".join(_root(part) for part in store.parts)
    own = getattr(store, "root", None) or getattr(store, "path", None)
    return "" if own is None else str(Path(own).absolute())


def _hash(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _read(place: Path) -> dict[str, Look]:
    """Rows by key; nothing where there is no cache, or a damaged one, or one of another version."""
    try:
        stored = json.loads(place.read_bytes())
        if stored["version"] != _VERSION:
            return {}
        return {key: Look.from_dict(row) for key, row in stored["rows"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _write(place: Path, rows: dict[str, Look]) -> None:
    """Keep rows, whole or not at all; a cache that cannot be written is no fault."""
    content = json.dumps({"version": _VERSION, "rows": {key: look.as_dict() for key, look in rows.items()}})
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
            os.replace(name, place)
        except OSError:
            os.unlink(name)
            raise
