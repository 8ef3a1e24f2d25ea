"""Rows of numbers as files that other programs read: .npy, or .parquet with names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leanlabel.errors import InputError

ENDINGS = (".npy", ".parquet")


def check_ending(path: Path) -> None:
    """Refuse a file name that no writer is for.

    Raises:
        InputError: another ending than .npy or .parquet, or no such folder.
    """
    if path.suffix not in ENDINGS:
        found = path.suffix or "a name without an ending"
        raise InputError(f"{path}: rows are written as .npy or .parquet, not {found}.")
    try:
        placed, taken = path.parent.is_dir(), path.is_dir()
    except OSError as error:  # a name that the system does not take, or a place where nobody may look
        raise InputError(f"{path}: cannot be written ({error.strerror or error}).") from error
    if not placed:
        raise InputError(f"{path}: the folder {path.parent} does not exist.")
    if taken:
        raise InputError(f"{path}: this is a folder, name a file.")


def write_rows(path: Path, rows: np.ndarray, ids: Sequence[str] | None = None) -> None:
    """Write (N, d) numbers; the file appears whole or not at all.

    A .parquet file has a column ``id`` (the names, or 0 … N-1) and one column ``e0`` … per dimension.

    Args:
        path: the file to write.
        rows: (N, d) numbers.
        ids: N names.

    Raises:
        InputError: another ending, an unwritable place, names that are not text, or pyarrow is missing.
        ValueError: the rows are not (N, d), or there are not N names.
    """
    if rows.ndim != 2 or (ids is not None and len(ids) != len(rows)):
        raise ValueError(
            f"rows {rows.shape} must be (N, d), with N names or none, got {None if ids is None else len(ids)}"
        )
    check_ending(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".npy":
            with open(unfinished, "wb") as file:
                np.save(file, rows, allow_pickle=False)
        else:
            _write_parquet(path, unfinished, rows, ids)
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _write_parquet(path: Path, unfinished: Path, rows: np.ndarray, ids: Sequence[str] | None) -> None:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        hint = 'Install it with pip install "leanlabel[graph]", or write .npy.'
        raise InputError(f"{path}: {path.suffix} files need pyarrow.", hint) from error
    try:
        columns = {"id": arrow.array(list(range(len(rows))) if ids is None else list(ids))}
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: the names are not text ({error}).", "Write .npy.") from error
    columns |= {f"e{k}": arrow.array(np.ascontiguousarray(rows[:, k])) for k in range(rows.shape[1])}
    parquet.write_table(arrow.table(columns), unfinished)
