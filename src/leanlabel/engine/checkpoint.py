"""Checkpoints: everything a run needs to go on, written whole or not at all."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from leanlabel.engine.runfolder import write_atomic
from leanlabel.errors import InputError, RunError

FORMAT = 1
_NAME = re.compile(r"^t=(\d+)\.ckpt$")


@dataclass(frozen=True)
class Checkpoint:
    """State before iteration ``t``.

    Attributes:
        t: the next iteration.
        method: state dict of the method: networks, banks, counters.
        optimisers: state dict of each optimiser.
        best: score and iteration of the best validation so far, or None.
        scaler: state of the loss scaling of 16-bit training; empty otherwise.
    """

    t: int
    method: dict[str, Tensor]
    optimisers: dict[str, dict[str, Any]]
    best: dict[str, float] | None
    scaler: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint, *, keep_last: int, is_best: bool = False) -> Path:
    """Write ``best.ckpt`` (if it is the best) and ``t=<t>.ckpt``, then delete all but the newest ``keep_last``.

    The best comes first: a run killed between the two goes on from the checkpoint before and finds it again; the
    other way round ``t=<t>.ckpt`` would name a best that was never written.

    Raises:
        RunError: it could not be written; earlier checkpoints are intact.
    """
    content = {
        "format": FORMAT,
        "t": checkpoint.t,
        "method": checkpoint.method,
        "optimisers": checkpoint.optimisers,
        "best": checkpoint.best,
        "scaler": checkpoint.scaler,
    }
    path = folder / f"t={checkpoint.t:08d}.ckpt"
    if is_best:
        write_atomic(folder / "best.ckpt", lambda temporary: torch.save(content, temporary))
    write_atomic(path, lambda temporary: torch.save(content, temporary))
    for old in saved(folder)[:-keep_last]:
        old.unlink(missing_ok=True)
    for leftover in folder.glob(".*.tmp"):  # of a process that was killed while writing
        leftover.unlink(missing_ok=True)
    return path


def saved(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first; half-written temporary files do not count."""
    return (
        sorted(path for path in folder.glob("t=*.ckpt") if _NAME.match(path.name)) if folder.is_dir() else []
    )


def load(path: Path) -> Checkpoint:
    """Read a checkpoint without running any code from it.

    Raises:
        RunError: the file is damaged or of another format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()  # torch writes checksums and does not compare them
        if wrong is not None:
            raise ValueError(f"the checksum of {wrong} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
        if content["format"] != FORMAT:
            raise RunError(f"{path}: checkpoint format {content['format']}, this version reads {FORMAT}.")
        found = Checkpoint(
            content["t"], content["method"], content["optimisers"], content["best"], content.get("scaler", {})
        )
        if not _is_sound(found):
            raise ValueError("what it holds is not the state of a run")
        return found
    except RunError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"{path}: this checkpoint cannot be read ({reason}).",
            "Delete it to go on from the one before, or from the start if there is none.",
        ) from error


def _is_sound(found: Checkpoint) -> bool:
    return (
        type(found.t) is int
        and found.t >= 0
        and _named(found.method, Tensor)
        and all(
            value.layout == torch.strided and value.device.type == "cpu" for value in found.method.values()
        )
        and _named(found.optimisers, dict)
        and (found.best is None or (_named(found.best, (int, float)) and "score" in found.best))
        and isinstance(found.scaler, dict)
    )


def _named(values: Any, kind: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(value, kind) for name, value in values.items()
    )


def latest(folder: Path) -> Checkpoint | None:
    """The newest finished checkpoint, or None before the first."""
    paths = saved(folder)
    return load(paths[-1]) if paths else None


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Own copy of a module's state, on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


@torch.no_grad()
def restore(module: nn.Module, state: dict[str, Tensor], optional: Sequence[str] = ()) -> list[str]:
    """Copy a state into a module, through the engine's wrappers.

    Args:
        module: what is filled.
        state: tensors by name.
        optional: what names begin with that may be missing as a whole; they stay as they are.

    Returns:
        Those of ``optional`` that were missing.

    Raises:
        InputError: names or shapes differ; lists them.
    """
    present = module.state_dict(keep_vars=True)
    absent = [start for start in optional if not any(name.startswith(start) for name in state)]
    present = {name: own for name, own in present.items() if not name.startswith(tuple(absent))}
    faults = [f"{name} is missing" for name in present if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in present]
    faults += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in present.items()
        if name in state and state[name].shape != value.shape
    ]
    if faults:
        raise InputError(f"The saved state does not fit the model: {'; '.join(faults[:8])}.")
    for name, value in present.items():
        value.copy_(state[name])
    return absent


def save_weights(path: Path, module: nn.Module, about: dict[str, Any]) -> None:
    """Write a module's state as safetensors; see :func:`save_tensors`."""
    save_tensors(path, state_of(module), about)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors as safetensors; ``about`` goes into the file's metadata as JSON, under one key.

    One key, because the order of several is not the same from call to call, and equal runs are equal files.
    """
    state = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    write_atomic(
        path, lambda temporary: save_file(state, temporary, metadata={"leanlabel": json.dumps(about)})
    )


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: missing or damaged file.
    """
    return load_tensors(path)[0]


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file with what :func:`save_tensors` noted about it; of other writers' files, nothing.

    Raises:
        InputError: missing or damaged file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Copies: what the file lends stays tied to it, and Windows then refuses to replace the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            noted = (file.metadata() or {}).get("leanlabel")
        about = {} if noted is None else json.loads(noted)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error}).") from error
    return tensors, about if isinstance(about, dict) else {}
