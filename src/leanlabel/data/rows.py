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
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist.")
    if path.is_dir():
        raise InputError(f"{path}: this is a folder, name a file.")


def write_rows(path: Path, rows: np.ndarray, ids: Sequence[str] | None = None) -> None:
    """Write (N, d) numbers; the file appears whole or not at all.

    A .parquet file has a column ``id`` (the names, or 0 … N-1) and one column ``e0`` … per dimension.

    Raises:
        InputError: another ending, an unwritable place, or pyarrow is missing.
    """
    check_ending(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".npy":
            with open(unfinished, "wb") as file:
                np.save(file, rows, allow_pickle=False)
        else:
            _write_parquet(unfinished, rows, ids)
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _write_parquet(path: Path, rows: np.ndarray, ids: Sequence[str] | None) -> None:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        hint = 'Install it with pip install "leanlabel[graph]", or write .npy.'
        raise InputError(f"{path.suffix} files need pyarrow.", hint) from error
    columns = {"id": arrow.array(list(range(len(rows))) if ids is None else list(ids))}
    columns |= {f"e{k}": arrow.array(np.ascontiguousarray(rows[:, k])) for k in range(rows.shape[1])}
    parquet.write_table(arrow.table(columns), path)
