"""Bring one file from an address to a place: resumed where the server allows it, whole or not there at all."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import Message
from pathlib import Path
from typing import IO, Any

from leanlabel.errors import InputError, RunError

SCHEMES = ("http", "https", "file")
Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and, where the server says it, the bytes in all."""

_BLOCK = 1 << 16
# Another attempt may succeed: overload and timeouts; anything else the server says is final.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_AGENT = "leanlabel"


class NotThereError(RunError):
    """The server answers, and has no such file."""


def download(
    address: str,
    to: str | Path,
    *,
    most_bytes: int,
    check: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
    attempts: int = 3,
    pause: float = 1.0,
) -> Path:
    """Bring the file at an address to `to`.

    It grows as `<to>.part` and gets its name when it is complete and checked. A broken transfer goes on where it
    stopped, also in a later call, if the server still has the same file (its strong ETag, else its modification
    date, is the one noted in `<to>.part.json`); otherwise it starts anew. Proxies of the environment are used.

    Args:
        address: http, https or file; a redirect may lead to http and https only, and from https to https only.
        to: the file to make; folders are made.
        most_bytes: a larger file is refused.
        check: called with the complete `.part`; an InputError from it stops the file from getting its name, and
            the `.part` is removed.
        progress: see :data:`Progress`.
        timeout: seconds without any byte until an attempt is given up.
        attempts: how often to try, >= 1.
        pause: seconds before the second attempt; doubled before each further one.

    Returns:
        `to`.

    Raises:
        InputError: another scheme, no such local file, too large, or whatever `check` raises.
        NotThereError: the server has no such file.
        RunError: the server cannot be reached, breaks off, or refuses; the disk is full or not writable.
    """
    to = Path(to)
    scheme = _scheme(address)
    part = to.with_name(f"{to.name}.part")
    note = to.with_name(f"{to.name}.part.json")
    try:
        if scheme == "file":
            _copy(local_path(address), part, most_bytes, progress)
        else:
            _transfer(address, part, note, most_bytes, progress, timeout, attempts, pause)
        if check is not None:
            check(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, to)
        _remove(note)
    except InputError:  # another file than was wanted: nothing of it is of use
        _remove(part, note)
        raise
    except OSError as error:
        # What the network raises has been turned into RunError: this is the disk.
        raise RunError(
            f"{to}: could not be written ({error.strerror or error}).",
            "Make room or give another folder with --to; what is here so far is kept.",
        ) from error
    return to


def local_path(address: str) -> Path:
    """The path that a file address names.

    Raises:
        InputError: it names another machine.
    """
    parts = urllib.parse.urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{address}: a file on another machine.", "Write file:///path, or just the path.")
    return Path(urllib.request.url2pathname(parts.path))


def _scheme(address: str) -> str:
    scheme = urllib.parse.urlsplit(address).scheme.lower()
    if scheme not in SCHEMES:
        raise InputError(
            f"{address}: addresses start with {', '.join(SCHEMES)}, not with {scheme or 'nothing'}."
        )
    return scheme


def _copy(source: Path, part: Path, most_bytes: int, progress: Progress | None) -> None:
    if not source.is_file():
        raise InputError(f"{source}: no such file.")
    try:
        file = source.open("rb")
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror or error}.") from error
    part.parent.mkdir(parents=True, exist_ok=True)
    with file, part.open("wb") as out:
        _pour(file, out, 0, os.fstat(file.fileno()).st_size, most_bytes, str(source), progress)


def _transfer(
    address: str,
    part: Path,
    note: Path,
    most_bytes: int,
    progress: Progress | None,
    timeout: float,
    attempts: int,
    pause: float,
) -> None:
    failure: Exception | None = None
    for attempt in range(attempts):
        try:
            _attempt(address, part, note, most_bytes, progress, timeout)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if 300 <= error.code < 400:
                raise _refused(address, str(error.reason)) from error
            if error.code not in _PASSING:
                raise (NotThereError if error.code in (404, 410) else RunError)(
                    f"{address}: the server answered {error.code} {error.reason}.",
                    "The file may have moved: look for it, put it into a folder, and give that with --mirror.",
                ) from error
            failure = error
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            _BrokenOff,
            TimeoutError,
            ConnectionError,
        ) as error:
            failure = error
        if attempt + 1 < attempts:
            time.sleep(pause * 2**attempt)
    reason = getattr(failure, "reason", None) or failure or type(failure).__name__
    raise RunError(
        f"{address}: not downloaded after {attempts} attempts ({reason}).",
        "Run the same command again, it goes on where it stopped; or give a folder with the files by --mirror.",
    ) from failure


class _BrokenOff(Exception):  # noqa: N818
    """The connection ended before the file did."""


def _attempt(
    address: str, part: Path, note: Path, most_bytes: int, progress: Progress | None, timeout: float
) -> None:
    here, mark = _resumable(address, part, note)
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
    if here:
        headers |= {"Range": f"bytes={here}-", "If-Range": mark}
    request = urllib.request.Request(address, headers=headers)
    try:
        answer = _opener().open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not here:
            raise
        error.close()
        whole = error.headers.get("Content-Range", "").strip() == f"bytes */{here}"
        if whole and _mark(error.headers) in ("", mark):  # all of it came, the name did not
            if here > most_bytes:
                raise _too_large(address, most_bytes) from error
            if progress:
                progress(here, here)
            return
        # The file is shorter than what is here: it is another file.
        _remove(part, note)
        raise _BrokenOff("the file has changed") from error
    with answer:
        start, total = _extent(answer)
        if answer.status == 206 and (start != here or _mark(answer.headers) not in ("", mark)):
            # If-Range should have prevented this; gluing would make a file that never was.
            _remove(part, note)
            raise _BrokenOff("the server sent a part of another file")
        here = start  # 0: the whole file comes, for the server knows no ranges or the file has changed
        if total is not None and total > most_bytes:
            raise _too_large(address, most_bytes)
        part.parent.mkdir(parents=True, exist_ok=True)
        if not here:
            note.write_text(json.dumps({"address": address, "mark": _mark(answer.headers)}), encoding="utf-8")
        with part.open("ab" if here else "wb") as out:
            here = _pour(_Network(answer), out, here, total, most_bytes, address, progress)
    if total is not None and here != total:
        raise _BrokenOff(f"{here:,} of {total:,} bytes came")


def _resumable(address: str, part: Path, note: Path) -> tuple[int, str]:
    """How many bytes of the same file are here already, and the server's mark of that file."""
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        mark = noted["mark"] if noted["address"] == address else ""
        size = part.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""
    return (size, mark) if mark and isinstance(mark, str) else (0, "")


def _mark(headers: Mapping[str, str] | Message) -> str:
    """What tells this file from others at the same address; "" where the server says nothing of use."""
    tag = headers.get("ETag", "")
    # A weak ETag says that two files mean the same, not that they are the same bytes.
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _extent(answer: Any) -> tuple[int, int | None]:
    """First byte that an answer brings, and the length of the whole file where it says so."""
    if answer.status == 206:
        place, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        start, _, _ = place.partition("-")
        if not start.isdigit():
            raise _BrokenOff("the server sent a part without saying which")
        return int(start), int(total) if total.isdigit() else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


class _Network:
    """An answer whose failures are told apart from those of the disk."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def read(self, size: int) -> bytes:
        try:
            return self.answer.read1(size)  # what has come, not a full block: silence may follow
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenOff(str(error) or type(error).__name__) from error


def _pour(
    source: IO[bytes] | _Network,
    out: IO[bytes],
    here: int,
    total: int | None,
    most_bytes: int,
    what: str,
    progress: Progress | None,
) -> int:
    if progress:
        progress(here, total)
    while block := source.read(_BLOCK):
        here += len(block)
        if here > most_bytes:
            raise _too_large(what, most_bytes)
        out.write(block)
        if progress:
            progress(here, total)
    return here


def _too_large(what: str, most_bytes: int) -> InputError:
    return InputError(
        f"{what} is larger than {most_bytes:,} bytes, which is far more than expected.",
        "Look at what is there; --max-bytes raises the limit.",
    )


def _refused(address: str, why: str) -> InputError:
    return InputError(
        f"{address}: the server points to an address that is refused ({why}).",
        "Give a folder with the files by --mirror.",
    )


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect to http or https, never to a local file and never from https to plain http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme.lower()
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise _refused(req.full_url, f"from {req.type} to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https only; urllib's own would open files and ftp too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
