"""Bring a public set of the catalogue into a data folder, and keep the checksums of what came.

The folder's `checksums.json` names every file that was brought: set, address, sha256, bytes, date. What the catalogue
does not know is recorded there at the first download and must match from then on.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leanlabel.data.archives import extract
from leanlabel.data.catalogue import Entry, Remote
from leanlabel.data.download import NotThereError, download, local_path
from leanlabel.errors import InputError, RunError

RECORD = "checksums.json"
Verified = Literal["catalogue", "git", "record", "nothing"]
Step = Callable[[Remote, int, int | None], None]
"""Called during a transfer with the file, the bytes that are here, and the bytes in all where they are known."""


@dataclass(frozen=True)
class Obtained:
    """One file that is in its place.

    Args:
        file: what it is in the catalogue.
        path: where it is.
        state: "there" before the call, "downloaded" or "copied" by it.
        sha256: of the file.
        verified: by what: "catalogue", "git" (the catalogue knows git's SHA-1), "record" (the folder's
            checksums.json), or "nothing" for a first download.
    """

    file: Remote
    path: Path
    state: Literal["there", "downloaded", "copied"]
    sha256: str
    verified: Verified


def data_folder(to: str | Path | None = None) -> Path:
    """Return the folder that data goes to: `to`, else what LEANLABEL_DATA names, else ./data."""
    return Path(to or os.environ.get("LEANLABEL_DATA") or "data").expanduser()


def missing(entry: Entry, folder: Path) -> tuple[Remote, ...]:
    """Return the files of a set that are not in a folder; none where its packed file is."""
    if entry.packed and (folder / entry.packed.path).is_file():
        return ()
    return tuple(file for file in entry.files if not (folder / file.path).is_file())


def obtain(
    entry: Entry,
    folder: str | Path,
    *,
    mirror: str | None = None,
    most_bytes: int | None = None,
    step: Step | None = None,
    timeout: float = 30.0,
    attempts: int = 3,
    pause: float = 1.0,
) -> list[Obtained]:
    """Bring all files of a set below a folder and verify them; what is there already is only verified.

    Args:
        entry: the set.
        folder: data folder; made if need be.
        mirror: folder or address that holds the files, each under its path below the data folder or under its
            plain name, or else the set's packed file instead of all of them; None takes the published addresses.
        most_bytes: limit of each file; None allows four times its size in the catalogue plus 10 MB.
        step: see :data:`Step`.
        timeout, attempts, pause: as for :func:`leanlabel.data.download.download`.

    Raises:
        InputError: a checksum does not match, the mirror has none of the files, a file is too large.
        RunError: no connection, or a folder that cannot be written.
    """
    folder = Path(folder)
    intake = _Intake(
        entry, folder, most_bytes, step, {"timeout": timeout, "attempts": attempts, "pause": pause}
    )
    packed = (entry.packed,) if entry.packed else ()
    if not missing(entry, folder):
        raw_here = all((folder / file.path).is_file() for file in entry.files)
        return [intake.there(file) for file in (entry.files if raw_here else packed)]
    if mirror is None:
        return [intake.take(file, [file.address]) for file in entry.files]
    for files in (entry.files, packed):
        places = [[] if (folder / file.path).is_file() else _in_mirror(mirror, file) for file in files]
        if files and all(found or (folder / file.path).is_file() for found, file in zip(places, files)):
            try:
                return [intake.take(file, found) for file, found in zip(files, places, strict=True)]
            except NotThereError:
                continue
    wanted = [file.name for file in entry.files]
    names = ", ".join(wanted[:3]) + (f", ... ({len(wanted)} files)" if len(wanted) > 3 else "")
    raise InputError(
        f"{mirror} has neither {names} nor {entry.packed.name if entry.packed else 'a packed file'}.",
        f"The files are published at {entry.files[0].address.rpartition('/')[0]}.",
    )


def _in_mirror(mirror: str, file: Remote) -> list[str]:
    """Addresses at which a mirror may hold a file; for a folder only those where it does."""
    if mirror.lower().startswith(("http://", "https://")):
        base = mirror.rstrip("/")
        return [f"{base}/{urllib.parse.quote(name)}" for name in (file.path, file.name)]
    folder = local_path(mirror) if "://" in mirror else Path(mirror).expanduser()
    if not folder.is_dir():
        raise InputError(f"{mirror}: this mirror is no folder, and no http or https address.")
    places = (folder / file.path, folder / file.name)
    return [place.absolute().as_uri() for place in places if place.is_file()]


@dataclass
class _Intake:
    """Takes the files of one set into one folder."""

    entry: Entry
    folder: Path
    most_bytes: int | None
    step: Step | None
    options: dict[str, Any]

    def take(self, file: Remote, places: list[str]) -> Obtained:
        """Bring one file from the first place that has it, unless it is here."""
        path = self.folder / file.path
        if path.is_file():
            return self.there(file)
        limit = self.most_bytes or 4 * (file.size or self.entry.size) + 10 * 10**6
        for place in places:
            try:
                taken = self._from(file, place, path, limit)
            except NotThereError:
                if place == places[-1]:
                    raise
            else:
                self._unpack(file, path)
                return taken
        raise InputError(f"{file.name} is published nowhere; give a folder that has it with --mirror.")

    def _from(self, file: Remote, place: str, path: Path, limit: int) -> Obtained:
        known = read_record(self.folder).get(file.path, {}).get("sha256")
        sums: list[tuple[str, Verified]] = []

        def check(part: Path) -> None:
            sums.append(verify(part, file, known, f"{file.name} from {place}", "It was removed again."))

        def progress(here: int, total: int | None) -> None:
            if self.step is not None:
                self.step(file, here, total)

        download(place, path, most_bytes=limit, check=check, progress=progress, **self.options)
        sha256, verified = sums[0]
        self._note(file, place, path, sha256)
        return Obtained(file, path, "copied" if place.startswith("file:") else "downloaded", sha256, verified)

    def there(self, file: Remote) -> Obtained:
        """Verify one file that is here."""
        path = self.folder / file.path
        known = read_record(self.folder).get(file.path, {}).get("sha256")
        advice = f"Move it away and run the command again, or delete its entry in {RECORD} if it may differ."
        sha256, verified = verify(path, file, known, str(path), advice)
        if verified in ("nothing", "git") and known is None:
            self._note(file, "", path, sha256)
        self._unpack(file, path)
        return Obtained(file, path, "there", sha256, verified)

    def _unpack(self, file: Remote, path: Path) -> None:
        if file.unpack is not None and not (self.folder / file.unpack).exists():
            extract(path, self.folder / file.unpack)

    def _note(self, file: Remote, place: str, path: Path, sha256: str) -> None:
        found = {
            "set": self.entry.name,
            "address": place or file.address,
            "sha256": sha256,
            "bytes": path.stat().st_size,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_record(self.folder, {**read_record(self.folder), file.path: found})


def verify(path: Path, file: Remote, recorded: str | None, what: str, advice: str) -> tuple[str, Verified]:
    """Compare a file with what is known of it: the catalogue's sha256, else the recorded one, else git's SHA-1.

    Returns:
        Its sha256, and by what it was verified.

    Raises:
        InputError: it is another file; names both checksums.
    """
    size, sha256 = path.stat().st_size, hashlib.sha256()
    # Not for security: git names contents so, and a second checksum is better than none.
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stored:
        while block := stored.read(1 << 20):
            sha256.update(block)
            git.update(block)
    found: list[tuple[Verified, str, str | None, str]] = [
        ("catalogue", "sha256", file.sha256, sha256.hexdigest()),
        ("record", "sha256", recorded, sha256.hexdigest()),
        ("git", "git's SHA-1", file.git_sha1, git.hexdigest()),
    ]
    for by, kind, expected, own in found:
        if expected is not None:
            if own != expected:
                raise InputError(f"{what}: {kind} is {own}, expected {expected} ({size:,} bytes).", advice)
            return sha256.hexdigest(), by
    return sha256.hexdigest(), "nothing"


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """Read a folder's checksums.json; empty where there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}).", "Restore or delete it.") from error
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise InputError(f"{path}: expected one section per file.", "Restore or delete it.")
    return found


def write_record(folder: Path, record: dict[str, dict[str, Any]]) -> None:
    """Write a folder's checksums.json, whole or not at all.

    Raises:
        RunError: the folder cannot be written.
    """
    path = folder / RECORD
    unfinished = path.with_name(f".{RECORD}.{os.getpid()}.tmp")
    try:
        text = json.dumps(record, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RunError(f"{path}: could not be written ({error.strerror or error}).") from error
