"""A run folder: what is in it, and how files get there whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from leanlabel.errors import InputError, RunError

_UMASK = os.umask(0)
os.umask(_UMASK)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename: readers see the old file or the new one.

    Raises:
        RunError: the disk is full or the folder cannot be written; an earlier file at ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(0o666 & ~_UMASK)  # some writers make files that only their owner can read
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = _writing_failed(error)
        if reason is None:
            raise
        raise RunError(
            f"{path}: could not be written ({reason}).", "What was saved before is intact."
        ) from error


def _writing_failed(error: BaseException) -> str | None:
    """Why the system refused a write; None for any other kind of error.

    torch and safetensors write through their own code, which turns the system's error into one of theirs.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    if (
        "inline_container" in text
        or "PytorchStreamWriter" in text
        or type(error).__name__ == "SafetensorError"
    ):
        return f"is the disk full? {text.splitlines()[0]}"
    return None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted layout, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    """JSON at ``path``, or ``default`` where there is no such file."""
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}).") from error


class RunFolder:
    """Paths of one run; see the list in the module ``leanlabel.api``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.origin = self.path / "run.json"
        self.environment = self.path / "environment.json"
        self.data = self.path / "data.json"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.stages = self.path / "stages"
        self.weights = self.path / "model.safetensors"
        self.results = self.path / "results.json"
        self.splits = self.path / "splits.npz"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"
        self.warnings = self.path / "warnings.json"
        self.notes = self.path / "notes.json"

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """The run folder at ``path``.

        Raises:
            InputError: there is no such folder, or it holds no ``config.yaml``.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise InputError(
                f"{path}: no such run folder.", "Runs are below `runs/` unless --run said otherwise."
            )
        if not run.config.is_file():
            raise InputError(f"{path}: not a run folder, it has no config.yaml.")
        return run

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config.is_file()


def default_run(recipe: str, root: Path = Path("runs")) -> Path:
    """``runs/<recipe>/<date-time>``, with a counter where that second is taken."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    path, counter = root / recipe / stamp, 1
    while path.exists():
        counter += 1
        path = root / recipe / f"{stamp}-{counter}"
    return path


class JsonLines:
    """An append-only file of JSON lines that can be cut back to an iteration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None

    def cut(self, before: int) -> None:
        """Keep only whole lines whose ``t`` is below ``before``: what a checkpoint at that iteration knows of."""
        if not self.path.exists():
            return
        kept = [line for line, row in _whole_lines(self.path) if row["t"] < before]
        write_text(self.path, "".join(kept))

    def append(self, row: dict[str, Any]) -> None:
        """Write one line through to the operating system."""
        try:
            if self._handle is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._drop_half_a_line()
                self._handle = open(self.path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
            self._handle.write(json.dumps(row) + "\n")
            self._handle.flush()
        except OSError as error:
            raise RunError(f"{self.path}: could not be written ({error.strerror}).") from error

    def _drop_half_a_line(self) -> None:
        """Cut off what a killed process left without a line end: the next line must not be glued to it."""
        if not self.path.exists():
            return
        with open(self.path, "rb+") as handle:
            whole = handle.read().rfind(b"\n") + 1
            handle.truncate(whole)

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole JSON lines of a file; a line cut off by a kill is left out."""
    return [row for _, row in _whole_lines(path)] if path.exists() else []


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8", newline="\n") as handle:
        for line in handle:
            try:
                row = json.loads(line)
            except ValueError:
                return
            if not line.endswith("\n") or not isinstance(row, dict):
                return
            yield line, row


def environment() -> dict[str, Any]:
    """Versions and hardware that a result depends on; no names of users, hosts or paths."""
    import torch

    packages = ("leanlabel", "torch", "lightning-fabric", "numpy", "scikit-learn", "pydantic", "safetensors")
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": found,
        "cpu_count": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": devices,
        "byte_order": sys.byteorder,
    }
