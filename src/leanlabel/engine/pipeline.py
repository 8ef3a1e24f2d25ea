"""Stages: results that are computed once, named by a hash of what they depend on, and shared between runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanlabel import dist
from leanlabel.engine.runfolder import put_in_place, read_json, write_json
from leanlabel.errors import RunError

DONE = "stage.json"


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: what it is called in the run folder.
        inputs: everything its result depends on, as plain JSON data (settings, data fingerprint, code version,
            hashes of earlier stages).
        run: computes the result into the folder it is given, and only there.
        everywhere: all processes compute it together, into the same folder; else the first one alone.
    """

    name: str
    inputs: dict[str, Any]
    run: Callable[[Path], None]
    everywhere: bool = False

    @property
    def key(self) -> str:
        """Hash of name and inputs."""
        text = json.dumps({"name": self.name, "inputs": self.inputs}, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def run_stage(stage: Stage, shared: Path, pointers: Path) -> tuple[Path, bool]:
    """Make sure a stage is done; return its folder and whether it was computed now.

    The result lies in ``shared/<hash>``; ``pointers/<name>.json`` in the run folder says so. A stage is written to
    a temporary folder and renamed, so a killed one leaves nothing that looks finished. Rank 0 computes, or all
    do where the stage says so.

    Raises:
        RunError: the folder could not be written.
    """
    folder = shared / stage.key
    computed = dist.broadcast_object(not (folder / DONE).exists())
    if computed and stage.everywhere:
        _compute(stage, shared, folder)
    elif computed and dist.is_main():
        with dist.alone():
            _compute(stage, shared, folder)
    dist.barrier()
    if dist.is_main():
        pointer = pointers / f"{stage.name}.json"
        entry = {"key": stage.key, "folder": _seen_from(pointers.parent, folder)}
        if read_json(pointer) != entry:
            write_json(pointer, entry)
    return folder, computed


def _compute(stage: Stage, shared: Path, folder: Path) -> None:
    """Compute a stage into a temporary folder, and put that in place."""
    temporary = dist.broadcast_object(shared / f".{stage.key}.{os.getpid()}.tmp")
    try:
        if dist.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        dist.barrier()
        stage.run(temporary)
        dist.barrier()
        if dist.is_main():
            write_json(temporary / DONE, {"name": stage.name, "key": stage.key, "inputs": stage.inputs})
            if folder.exists() and not (folder / DONE).exists():
                shutil.rmtree(folder)
            put_in_place(temporary, folder)
    except OSError as error:
        if not (folder / DONE).exists():  # else another process finished the same stage first
            raise RunError(
                f"{folder}: stage {stage.name} could not be written ({error.strerror})."
            ) from error
    finally:
        if dist.is_main():
            shutil.rmtree(temporary, ignore_errors=True)


def _seen_from(start: Path, folder: Path) -> str:
    """A folder relative to another one, or in full where it lies on another drive."""
    try:
        return Path(os.path.relpath(folder, start)).as_posix()
    except ValueError:
        return str(folder.absolute())
