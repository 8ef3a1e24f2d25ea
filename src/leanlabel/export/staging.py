"""A folder of results that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from leanlabel.engine.runfolder import RunFolder, put_in_place
from leanlabel.errors import InputError, RunError


def check_target(out: Path, force: bool) -> None:
    """Refuse a place that holds something already, unless told otherwise; a run's own files always.

    Raises:
        InputError: a file, a folder with something in it and no ``force``, or a place that belongs to a run.
    """
    run = _run_of(out)
    if run is not None:
        what = "this is the folder of a run" if run == out.resolve() else f"this belongs to the run in {run}"
        raise InputError(f"{out}: {what}, whose files would be lost.", "Give another --out.")
    if out.is_dir():
        if not force and any(out.iterdir()):
            raise InputError(
                f"{out}: this folder is not empty.",
                "Give another --out, or --force to replace the files in it.",
            )
    elif out.exists() or out.is_symlink():
        raise InputError(f"{out}: this is a file.", "Give a folder with --out.")


def _run_of(out: Path) -> Path | None:
    """The run whose folder, or one of whose files or folders, a place is; None for a folder of another name in it."""
    place = out.resolve()
    if RunFolder(place).exists():
        return place
    inside = [place, *place.parents]
    for below, folder in pairwise(inside):
        run = RunFolder(folder)
        own = {path.name.casefold() for path in vars(run).values() if path != folder}
        # Other programs have a config.yaml, too; a run has both.
        if below.name.casefold() in own and run.exists() and run.origin.is_file():
            return folder
    return None


@contextmanager
def staged(out: Path, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place when the block ends well, and is removed when not.

    Into a folder that exists the files are moved one by one, each whole; other files in it stay.

    Raises:
        InputError: what :func:`check_target` refuses, or a place where no folder can be made.
        RunError: the files could not be written; what was at ``out`` before is left as far as it was not replaced.
    """
    check_target(out, force)
    out = Path(os.path.abspath(out))  # "." has no name to derive another from
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{out}: this folder cannot be made ({error.strerror or error}).", "Give another --out."
        ) from error
    try:
        yield unfinished
        _move(unfinished, out)
    except OSError as error:
        raise RunError(f"{out}: could not be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _move(folder: Path, out: Path) -> None:
    if not out.exists():
        put_in_place(folder, out)
        return
    for path in sorted(folder.rglob("*")):
        target = out / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            put_in_place(path, target)
