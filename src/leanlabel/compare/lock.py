"""One comparison at a time in a folder: two would make the same runs in the same places."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from leanlabel.errors import InputError, RunError

NAME = "compare.lock"
HALF_WRITTEN = 1.0
"""Seconds after which a lock without content was left by a process that ended while it made it."""
TRIES = 20
_held: set[Path] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process: a file with its number and the time, made in one step, gone at the end.

    A lock whose process is gone is taken over. Of several processes of one run only the first takes it.

    Raises:
        InputError: another comparison holds the folder; names the file.
        RunError: the folder cannot be written.
    """
    if any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        yield  # asked of the environment: the processes join only when the first run starts
        return
    path = folder.resolve() / NAME
    new = [above for above in (path.parent, *path.parent.parents) if not above.exists()]
    try:
        _take(path)
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error.strerror or error}).") from error
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        with suppress(OSError):
            path.unlink(missing_ok=True)
            for made in new:  # where nothing was run, nothing stays
                made.rmdir()


def _take(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"pid": os.getpid(), "started": datetime.now().isoformat(" ", "seconds")}
    for _ in range(TRIES):
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except (
            FileExistsError,
            PermissionError,
        ) as error:  # Windows refuses a file that is just being removed
            if isinstance(error, PermissionError) and (os.name != "nt" or not path.exists()):
                raise
            content = _content(path)
            if content is None:
                continue
            holder = _parsed(content)
            if holder is not None and _alive(holder["pid"], path):
                raise InputError(
                    f"{path}: another comparison (process {holder['pid']}, since {holder.get('started')}) "
                    "is at work in this folder.",
                    "Wait until it ends, or give another --out.",
                ) from error
            _remove(path, content)
            continue
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(told))
        return
    raise InputError(f"{path}: other comparisons take this folder at the same time.", "Try it again.")


def _content(path: Path) -> str | None:
    """What a lock says; None where it is gone. Waits a little for one that is just being written."""
    end = time.monotonic() + HALF_WRITTEN
    while True:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except PermissionError:  # Windows, while its owner removes it
            text = ""
        if _parsed(text) is not None or time.monotonic() >= end:
            return text
        time.sleep(0.05)


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) else None


def _remove(path: Path, stale: str) -> None:
    """Take a stale lock away by renaming it, so that of several processes only one does; a lock that another process
    has made meanwhile is put back."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.replace(path, aside)
        if aside.read_text(encoding="utf-8", errors="replace") == stale:
            aside.unlink()
        else:
            os.replace(aside, path)


def _alive(pid: int, path: Path) -> bool:
    """Whether a process of this machine holds the lock. One with our own number that we do not hold was left by an
    earlier process: in a container the numbers come again."""
    if pid == os.getpid():
        return path in _held
    if pid <= 0:
        return False
    if os.name == "nt":
        return _alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True


def _alive_on_windows(pid: int) -> bool:
    """Asked of the system there: `os.kill` would end the process."""
    import ctypes

    system: Any = ctypes
    kernel = system.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = ctypes.c_void_p
    limited_query, still_active, access_denied = 0x1000, 259, 5
    handle = kernel.OpenProcess(limited_query, False, pid & 0xFFFFFFFF)
    if not handle:
        return system.get_last_error() == access_denied
    code = ctypes.c_ulong()
    known = kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
    kernel.CloseHandle(ctypes.c_void_p(handle))
    return not known or code.value == still_active
