"""A run folder: what is in it, and how files get there whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
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
        put_in_place(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = _writing_failed(error)
        if reason is None:
            raise
        raise RunError(
            f"{path}: could not be written ({reason}).", "What was saved before is intact."
        ) from error


def put_in_place(temporary: Path, path: Path, *, patience: float = 2.0) -> None:
    """Rename a finished file or folder to its name.

    Windows refuses while another process reads what is replaced or moved (a virus scanner, an indexer, a viewer):
    there it is tried again for ``patience`` seconds.

    Raises:
        OSError: it cannot be renamed.
    """
    end = time.monotonic() + (patience if os.name == "nt" else 0.0)
    while True:
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)


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
    except (OSError, ValueError, RecursionError) as error:
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
        self.initial = self.path / "initial.safetensors"
        self.before = self.path / "before.safetensors"
        self.readout = self.path / "readout.safetensors"
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


class JsonCache:
    """Plain data by name, one JSON file each, in a folder that several runs may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> dict[str, Any] | None:
        """What was put under a name; None where there is nothing, or nothing readable."""
        try:
            found = read_json(self.folder / f"{name}.json")
        except InputError:
            return None
        return found if isinstance(found, dict) else None

    def put(self, name: str, value: dict[str, Any]) -> None:
        """Keep a value, whole or not at all."""
        write_json(self.folder / f"{name}.json", value)


def default_run(recipe: str, root: Path = Path("runs")) -> Path:
    """``runs/<recipe>/<date-time>``, with a counter where that second is taken; safe on every system.

    Example:
        >>> default_run("gca/cora: my try.").parent.as_posix()
        'runs/gca/cora- my try'
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    above = root.joinpath(*(safe_name(part) for part in re.split(r"[/\\]", recipe)))
    path, counter = above / stamp, 1
    while path.exists():
        counter += 1
        path = above / f"{stamp}-{counter}"
    return path


_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"^(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])$", re.IGNORECASE)
LONGEST_NAME = 80
"""Characters of a name made from what a user wrote: a path on Windows has 260 in all."""


def safe_name(name: str) -> str:
    """The name of a file or folder that every system takes, from any text; what is safe stays as it is.

    Characters that Windows forbids become ``-``; dots and spaces at the end, which it drops in silence, go; a device
    name (``con``, ``aux``, ``nul.txt``) gets a ``_`` in front; a long name is cut.

    Example:
        >>> safe_name("tau=0.4"), safe_name("a:b?"), safe_name("CON"), safe_name("..")
        ('tau=0.4', 'a-b-', '_CON', '_')
    """
    text = name.encode("utf-8", "replace").decode("utf-8")
    kept = _FORBIDDEN.sub("-", text)[:LONGEST_NAME]
    kept = kept.encode("utf-8")[:200].decode("utf-8", "ignore")  # Linux counts bytes, 255 of them
    kept = kept.strip(" ").rstrip(". ")
    return f"_{kept}" if not kept or _RESERVED.match(kept.partition(".")[0].rstrip(" ")) else kept


class JsonLines:
    """An append-only file of JSON lines that can be cut back to an iteration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None

    def cut(self, before: int) -> None:
        """Keep only whole lines whose ``t`` is below ``before``: what a checkpoint at that iteration knows of."""
        self.close()  # an open file cannot be replaced on Windows, and elsewhere the old one would be written on
        if not self.path.exists():
            return
        kept = []
        for line, row in _whole_lines(self.path):
            if not isinstance(row.get("t"), int):
                break  # damage: what follows cannot be told apart from what a later run repeats
            if row["t"] < before:
                kept.append(line)
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
    """All whole JSON lines of a file; a line cut off by a kill is left out.

    Raises:
        InputError: the system does not let it be read.
    """
    return [row for _, row in _whole_lines(path)] if path.exists() else []


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with open(path, "rb") as handle:
            for content in handle:
                try:
                    line = content.decode()
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    return
                if not line.endswith("\n") or not isinstance(row, dict):
                    return
                yield line, row
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error


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
