"""CIFAR-10 and CIFAR-100 as published for Python: pickled batches, read without running anything in them."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from leanlabel.data.archives import _OPENERS, MOST_MEMBERS, _Counted, _Intake, _read_errors
from leanlabel.data.graph_tables import unreadable
from leanlabel.data.image_stores import Listing
from leanlabel.data.restricted_pickle import load_pickle
from leanlabel.errors import InputError

_BATCHES = {
    "cifar-10-batches-py": {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]},
    "cifar-100-python": {"train": ["train"], "test": ["test"]},
}
_META = {"batches.meta": "label_names", "meta": "fine_label_names"}
_MOST_TAR = 1 << 30
_SIDE = 32


def find_batches(path: Path) -> Path | None:
    """Where CIFAR's published Python batches are: in this folder, or in the folder or .tar.gz of their name in it."""
    for name in ("cifar-10-python.tar.gz", "cifar-100-python.tar.gz"):
        if (path / name).is_file():
            return path / name
    for folder in (path, *(path / name for name in _BATCHES)):
        if any((folder / name).is_file() for name in ("data_batch_1", "batches.meta")):
            return folder
        if (folder / "meta").is_file() and (folder / "train").is_file():
            return folder
    return None


def read_batches(path: Path) -> Listing:
    """Read CIFAR-10 or CIFAR-100 as published for Python: the folder of batches, or the .tar.gz of it.

    The batches are pickles; nothing in them is run. CIFAR-100 gets its 100 fine classes.

    Raises:
        InputError: not these files, some missing, or damaged.
    """
    files = _folder_files(path) if path.is_dir() else _tar_files(path)
    layout = next(
        (
            name
            for name, parts in _BATCHES.items()
            if any(one in files for own in parts.values() for one in own)
        ),
        None,
    )
    if layout is None:
        raise InputError(f"{path} holds none of CIFAR's batches (data_batch_1, ..., or train and test).")
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    name = layout.removesuffix("-batches-py").removesuffix("-python")
    listing = Listing(name, torch.zeros(0), facts={"layout": layout})
    for part, members in _BATCHES[layout].items():
        start = len(labels)
        for member in members:
            if member not in files:
                raise InputError(
                    f"{path} has no {member}.", "It may be cut short; copy or download it again."
                )
            x, y = _batch(files[member], path / member)
            pixels.append(x)
            labels += y
        listing.splits[part] = torch.arange(start, len(labels))
    if not labels:
        raise InputError(f"{path} holds no images.")
    listing.source = torch.from_numpy(np.concatenate(pixels).reshape(-1, 3, _SIDE, _SIDE))
    listing.class_names = _meta(files, path)
    if listing.class_names is not None and labels and max(labels) >= len(listing.class_names):
        raise InputError(f"{path}: label {max(labels)} has no name among {len(listing.class_names)}.")
    listing.y = torch.tensor(labels, dtype=torch.int64)
    return listing


def _batch(data: bytes, path: Path) -> tuple[np.ndarray, list[int]]:
    batch = load_pickle(data, path)
    if not isinstance(batch, dict):
        raise InputError(f"{path} is not a batch of CIFAR.")
    x, y = batch.get("data"), batch.get("fine_labels", batch.get("labels"))
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3 * _SIDE**2:
        raise InputError(f"{path}: data is not (N, {3 * _SIDE**2}) uint8.")
    if (
        not isinstance(y, list)
        or len(y) != len(x)
        or not all(type(one) is int and 0 <= one < 1000 for one in y)
    ):
        raise InputError(f"{path}: labels are not one small integer for each of {len(x)} images.")
    return x, y


def _meta(files: Mapping[str, bytes], path: Path) -> list[str] | None:
    for name, key in _META.items():
        if name in files:
            meta = load_pickle(files[name], path / name)
            names = meta.get(key) if isinstance(meta, dict) else None
            if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
                raise InputError(f"{path / name}: {key} is not a list of names.")
            return names
    return None


def _wanted(name: str) -> bool:
    return name in _META or any(name in own for parts in _BATCHES.values() for own in parts.values())


def _folder_files(path: Path) -> dict[str, bytes]:
    try:
        return {
            file.name: file.read_bytes() for file in path.iterdir() if _wanted(file.name) and file.is_file()
        }
    except OSError as error:
        raise unreadable(path, error) from error


def _tar_files(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    intake = _Intake(path, Path(), _MOST_TAR, MOST_MEMBERS)
    with _read_errors(path), path.open("rb") as stored:
        head = stored.read(8)
        stored.seek(0)
        opener = next((one for magic, one in _OPENERS.items() if head.startswith(magic)), None)
        plain = _Counted(opener(stored) if opener else stored, intake)
        with tarfile.open(fileobj=plain, mode="r|", errorlevel=1) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if not member.isreg() or member.issparse() or not _wanted(name):
                    continue
                file = archive.extractfile(member)
                if name in files or file is None:
                    raise intake.refuse(name, "occurs twice")
                intake.count(member.size)
                files[name] = file.read()
    return files
