"""Read images from wherever people keep them, and find out before training which files cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from leanlabel import rng
from leanlabel.data.cifar_batches import find_batches, read_batches
from leanlabel.data.decode import ENDINGS, Fit, decode_with_header, fit_pixels, read_header, try_decoding
from leanlabel.data.graph_tables import unreadable
from leanlabel.data.image_folder import (
    LIST_ENDINGS,
    Layout,
    read_image_folder,
    read_image_list,
    read_image_zip,
)
from leanlabel.data.image_packed import packed_parts, read_image_arrays
from leanlabel.data.image_stores import Listing, Store
from leanlabel.data.images import THREADS, Images, PixelArray, PixelFiles, Pixels
from leanlabel.data.splits import PARTS
from leanlabel.errors import InputError

Load = Literal["auto", "memory", "disk"]
Step = Callable[[int, int], None]
"""Called with the number of images looked at so far, and of all."""
IN_MEMORY = 1 << 30
"""Pixels of fewer bytes are kept in memory with load = auto."""
VAL_SEED = 0
"""Seed of the validation part that is cut from a training part, and of what a limit keeps: the same in every run."""
_CHUNK = 32
_SHOWN = 5


def read_images(
    path: str | Path,
    *,
    layout: Layout = "auto",
    labels: Literal["auto", "none"] = "auto",
    load: Load = "auto",
    resize: int | None = None,
    square: bool = False,
    limit: int | None = None,
    val_share: float = 0.1,
    verify: bool = True,
    skip_unreadable: bool = False,
    progress: Step | None = None,
) -> Images:
    """Read a set of images.

    Read are: a folder, a folder per class, train/val/test folders, domain/class folders, and a .zip of each
    (:func:`leanlabel.data.image_folder.arrange`); list files (:func:`leanlabel.data.image_folder.read_image_list`);
    an .npz (:func:`leanlabel.data.image_packed.read_image_arrays`) and CIFAR's Python batches
    (:func:`leanlabel.data.cifar_batches.read_batches`). How pixels become uint8 RGB:
    :func:`leanlabel.data.decode.decode`.

    Every file is decoded once before anything else happens, so that a broken one is found now.

    Args:
        path: a folder or file as above.
        layout: what folders mean; auto looks.
        labels: none forgets the labels; splits and domains stay.
        load: memory, disk (decode files each time they are asked for), or auto: memory where all images have one
            size and take less than 1 GiB.
        resize: the shorter side is scaled down to this; None leaves sizes alone.
        square: cut the middle resize x resize out; smaller images are scaled up.
        limit: number of images to keep, drawn with a fixed seed; the same share of every part of the split, and
            within it as even as possible over the classes. None keeps all.
        val_share: share of the training part, class by class, that becomes the validation part where the source
            has train and test but no val; drawn with a fixed seed. 0 for none. Where it has train and val but no
            test, as ImageNet, its val is called test.
        verify: False only reads the heads of files that are not kept in memory.
        skip_unreadable: leave unreadable files out instead of refusing the set.
        progress: called now and then with the number of images looked at, and of all.

    Raises:
        InputError: nothing that can be read; or the first few unreadable files and their number.
    """
    try:
        fit = Fit(resize, square)
    except ValueError as error:
        raise InputError(f"{error}.") from error
    listing = list_images(path, layout=layout)
    if labels == "none":
        listing.y = listing.class_names = None
    _cut_validation(listing, val_share)
    if limit is not None:
        listing = _limited(listing, limit)
    seen = _look(listing.source, fit, load, verify, str(path), progress)
    if seen.faults:
        if not skip_unreadable or len(seen.faults) == len(listing):
            raise _unreadable(path, seen.faults, len(listing))
        kept = torch.tensor([row for row in range(len(listing)) if row not in seen.faults], dtype=torch.int64)
        listing = listing.take(kept)
        listing.facts["unreadable_skipped"] = len(seen.faults)
        if seen.array is not None:
            seen.array = seen.array[kept]
    if seen.modes:
        listing.facts["modes"] = dict(seen.modes.most_common())
    return Images(
        name=listing.name,
        pixels=_pixels(listing, seen, fit),
        y=listing.y,
        class_names=listing.class_names,
        splits=listing.splits,
        ids=listing.ids,
        domain=listing.domain,
        domain_names=listing.domain_names,
        facts=listing.facts,
    )


def list_images(path: str | Path, *, layout: Layout = "auto") -> Listing:
    """Find out what a place holds, without decoding a pixel.

    Raises:
        InputError: nothing that can be read.
    """
    path = Path(path)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # a name that the system does not take
        raise InputError(f"{path} cannot be read: {error}.") from error
    if is_folder:
        batches = find_batches(path)
        if batches is not None:
            return read_batches(batches)
        return read_image_arrays(path) if packed_parts(path) else read_image_folder(path, layout)
    if not is_file:
        raise InputError(f"{path} does not exist.")
    name = path.name.lower()
    if name.endswith(".npz"):
        return read_image_arrays(path)
    if name.endswith((".tar.gz", ".tgz", ".tar")):
        return read_batches(path)
    if name.endswith(LIST_ENDINGS):
        return read_image_list(path)
    if _is_zip(path):
        return read_image_zip(path, layout)
    raise InputError(
        f"{path} is not a set of images.",
        f"Give a folder, a .zip, an .npz, a list ({', '.join(LIST_ENDINGS)}) or CIFAR's .tar.gz."
        + (" This is a single image; give its folder." if name.endswith(ENDINGS) else ""),
    )


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06") or path.suffix.lower() == ".zip"
    except OSError as error:
        raise unreadable(path, error) from error


def _cut_validation(listing: Listing, share: float) -> None:
    """Make a validation part of the training part where there is train and test but no val.

    Of train and val without test, as ImageNet is published, val is the part that results are reported on: it becomes
    the test part.
    """
    if "val" in listing.splits and "train" in listing.splits and "test" not in listing.splits:
        listing.facts["val_used_as_test"] = len(listing.splits["val"])
        listing.splits = {"train": listing.splits["train"], "test": listing.splits["val"]}
    splits = listing.splits
    if share <= 0 or "val" in splits or not {"train", "test"} <= splits.keys():
        return
    train = splits["train"]
    order = rng.draw(VAL_SEED, "validation part", 0).permutation(len(train))
    y = torch.zeros(len(train), dtype=torch.int64) if listing.y is None else listing.y[train]
    chosen = torch.zeros(len(train), dtype=torch.bool)
    for label in torch.unique(y).tolist():
        own = order[y[order] == label]
        chosen[own[: round(share * len(own))]] = True
    if bool(chosen.any()) and not bool(chosen.all()):
        listing.splits = {"train": train[~chosen], "val": train[chosen], "test": splits["test"]}
        listing.facts |= {"val_cut_from_train": int(chosen.sum()), "val_share": share, "val_seed": VAL_SEED}


def _limited(listing: Listing, limit: int) -> Listing:
    """The first rows of a fixed shuffle: shares of the parts as they are, classes as even as possible."""
    n = len(listing)
    if limit < 1:
        raise InputError(f"the limit of images must be at least 1, got {limit}.")
    if limit >= n:
        return listing
    part = torch.full((n,), len(PARTS), dtype=torch.int64)
    for number, name in enumerate(PARTS):
        part[listing.splits.get(name, torch.zeros(0, dtype=torch.int64))] = number
    y = torch.zeros(n, dtype=torch.int64) if listing.y is None else listing.y
    order = rng.draw(VAL_SEED, "limit of images", 0).permutation(n)
    sizes = torch.bincount(part, minlength=len(PARTS) + 1)
    quotas = sizes * limit // n
    # What rounding left over goes to the largest remainders.
    for number in torch.argsort(sizes * limit % n, descending=True, stable=True)[: limit - int(quotas.sum())]:
        quotas[number] += 1
    kept: list[int] = []
    for number, quota in enumerate(quotas.tolist()):
        turns: Counter[int] = Counter()
        ranked = []
        for place, row in enumerate(order[part[order] == number].tolist()):
            label = int(y[row])
            ranked.append((turns[label], place, row))
            turns[label] += 1
        kept += [row for _, _, row in sorted(ranked)[:quota]]
    smaller = listing.take(torch.tensor(sorted(kept), dtype=torch.int64))
    smaller.facts = {**smaller.facts, "limited_from": n, "limit_seed": VAL_SEED}
    return smaller


@dataclass
class _Seen:
    """What one pass over all images found.

    Args:
        array: (N, 3, H, W) pixels where they were kept.
        shape: (3, H, W) of all readable images, None where they differ.
        faults: row -> message.
        modes: pixel formats and their number.
    """

    array: Tensor | None = None
    shape: tuple[int, int, int] | None = None
    faults: dict[int, str] = field(default_factory=dict)
    modes: Counter[str] = field(default_factory=Counter)


def _look(
    source: Store | Tensor, fit: Fit, load: Load, verify: bool, path: str, progress: Step | None
) -> _Seen:
    if isinstance(source, Tensor):
        return _Seen(_refit(source, fit))
    n = len(source)
    array = _room(source, fit, load, path)
    sizes: set[tuple[int, int]] = set()
    seen = _Seen()

    def one(row: int) -> tuple[int, int, str] | str:
        where = source.where(row)
        try:
            data = source.read(row)
            target = array
            if target is not None:
                pixels, head = decode_with_header(data, where, fit)
                if pixels.shape[1:] == target.shape[2:]:
                    target[row] = pixels
                return int(pixels.shape[2]), int(pixels.shape[1]), head.mode
            head = (try_decoding if verify else read_header)(data, where)
        except InputError as error:
            return str(error)
        return *fit.size(head.width, head.height), head.mode

    def chunk(start: int) -> list[tuple[int, int, str] | str]:
        return [one(row) for row in range(start, min(start + _CHUNK, n))]

    done = 0
    with ThreadPoolExecutor(THREADS) as threads:
        for found in threads.map(chunk, range(0, n, _CHUNK)):
            for row, result in enumerate(found, done):
                if isinstance(result, str):
                    seen.faults[row] = result
                else:
                    sizes.add(result[:2])
                    seen.modes[result[2]] += 1
            done += len(found)
            if len(sizes) > 1:
                if load == "memory":
                    (w, h), (v, g) = sorted(sizes)[:2]
                    raise InputError(
                        f"{path}: images have different sizes ({w} x {h} and {v} x {g}).",
                        "Set data.resize and data.square: true, or data.load: disk instead of memory.",
                    )
                array = None  # what is decoded from now on is not kept
            if progress is not None:
                progress(done, n)
    if len(sizes) == 1:
        width, height = sizes.pop()
        seen.shape = (3, height, width)
        # The head of the first file may have promised another size.
        seen.array = array if array is not None and array.shape[2:] == (height, width) else None
    return seen


def _room(source: Store, fit: Fit, load: Load, path: str) -> Tensor | None:
    """An empty array for all images if the first readable one lets them fit, else None."""
    if load == "disk":
        return None
    for row in range(len(source)):
        try:
            head = read_header(source.read(row), source.where(row))
        except InputError:
            continue
        width, height = fit.size(head.width, head.height)
        if load == "auto" and 3 * width * height * len(source) >= IN_MEMORY:
            return None
        try:
            return torch.empty((len(source), 3, height, width), dtype=torch.uint8)
        except RuntimeError as error:
            raise InputError(
                f"{path}: {len(source)} images of {width} x {height} do not fit into memory.",
                "Set data.load: disk, or data.resize.",
            ) from error
    return None


def _refit(array: Tensor, fit: Fit) -> Tensor:
    height, width = array.shape[2:]
    if fit.size(width, height) == (width, height):
        return array
    with ThreadPoolExecutor(THREADS) as threads:
        rows = array.permute(0, 2, 3, 1).numpy()
        return torch.stack(list(threads.map(lambda one: fit_pixels(np.ascontiguousarray(one), fit), rows)))


def _pixels(listing: Listing, seen: _Seen, fit: Fit) -> Pixels:
    if seen.array is not None:
        return PixelArray(seen.array)
    if isinstance(listing.source, Tensor):
        return PixelArray(listing.source)
    return PixelFiles(listing.source, fit, seen.shape)


def _unreadable(path: str | Path, faults: dict[int, str], total: int) -> InputError:
    shown = "\n".join(f"  {faults[row]}" for row in sorted(faults)[:_SHOWN])
    more = f"\n  ... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return InputError(
        f"{path}: {len(faults)} of {total} images cannot be read:\n{shown}{more}\n",
        "Mend or remove them, or set data.skip_unreadable: true to leave them out.",
    )
