"""Unpack .zip and .tar archives that may be hostile: every member inside the target folder, or nothing at all."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from leanlabel.errors import InputError

MOST_MEMBERS = 200_000
MOST_GROWTH = 200
"""An archive may unpack to this many times its own size (and 100 MB); only a bomb needs more."""
_SPARE = 100 * 10**6
_BLOCK = 1 << 20
# Windows opens devices under these names, in any folder and with any ending.
_RESERVED = {"con", "prn", "aux", "nul"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10)
}
_FORBIDDEN = re.compile(r'[\x00-\x1f<>"|?*\\]')
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open, b"BZh": bz2.open}


def extract(
    path: str | Path, to: str | Path, *, most_bytes: int | None = None, most_members: int = MOST_MEMBERS
) -> list[Path]:
    """Unpack an archive into a new folder, which appears complete or not at all.

    Files get the permissions of new files, whatever the archive says.

    Args:
        path: a .zip, .tar, .tar.gz, .tar.xz or .tar.bz2 file; its contents decide, not its name.
        to: the folder to make; its parent exists, it does not.
        most_bytes: limit of all unpacked bytes; None allows 200 times the archive's size plus 100 MB.
        most_members: limit of files and folders.

    Returns:
        The files, sorted.

    Raises:
        InputError: not such an archive, damaged, encrypted, over a limit, or a member that is a link or device,
            leaves the folder, or has a name that not every system can hold; names archive and member.
    """
    path, to = Path(path), Path(to)
    if to.exists():
        raise InputError(f"{to} exists already.", "Remove it, or unpack elsewhere.")
    limit = most_bytes
    try:
        if limit is None:
            limit = MOST_GROWTH * path.stat().st_size + _SPARE
        unfinished = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    except OSError as error:
        raise InputError(f"{path} cannot be unpacked to {to}: {error.strerror or error}.") from error
    try:
        target = unfinished / "files"
        target.mkdir()
        intake = _Intake(path, target, limit, most_members)
        with _read_errors(path):
            with path.open("rb") as file:
                # Not zipfile.is_zipfile: a .tar whose last member is a .zip passes for one.
                is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
            (_unpack_zip if is_zip else _unpack_tar)(path, intake)
        target.rename(to)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sorted(file for file in to.rglob("*") if file.is_file())


@dataclass
class _Intake:
    """Takes members one by one, checks each, and counts what is written."""

    archive: Path
    folder: Path
    most_bytes: int
    most_members: int
    written: int = 0
    spellings: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def place(self, name: str, *, is_folder: bool) -> Path:
        """Where a member goes, once its name has been found harmless."""
        parts = [part for part in name.rstrip("/").split("/") if part != "."]
        if not is_folder and (not parts or name.endswith("/")):
            raise self.refuse(name, "has no file name")
        self._check_name(name, parts)
        for depth in range(1, len(parts) + 1):
            own = "/".join(parts[:depth])
            kind = "folder" if depth < len(parts) or is_folder else "file"
            self._claim(name, own, kind)
        if len(self.kinds) > self.most_members:
            raise InputError(f"{self.archive} holds more than {self.most_members} files and folders.")
        return self.folder.joinpath(*parts)

    def _check_name(self, name: str, parts: list[str]) -> None:
        if name.startswith("/") or re.match(r"[A-Za-z]:", name):
            raise self.refuse(name, "has an absolute path")
        if ".." in parts:
            raise self.refuse(name, "would leave the folder (..)")
        for part in parts:
            if not part:
                raise self.refuse(name, "has an empty part")
            if ":" in part or _FORBIDDEN.search(part) or not _is_text(part):
                raise self.refuse(name, "has a character that not every system allows in a name")
            if part.endswith((".", " ")) or part.split(".")[0].rstrip().lower() in _RESERVED:
                raise self.refuse(name, f"has the part {part!r}, which is reserved on Windows")
            if len(part.encode()) > 255:
                raise self.refuse(name, "has a part longer than 255 bytes")

    def _claim(self, name: str, own: str, kind: str) -> None:
        # Some file systems fold case, some normalise accents: two such names would be one file there.
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", own).casefold())
        spelled = self.spellings.setdefault(folded, own)
        if spelled != own:
            raise self.refuse(name, f"differs from {spelled!r} in case or accents only")
        before = self.kinds.get(own)
        if before is not None and "file" in (before, kind):
            raise self.refuse(name, "occurs twice" if before == kind else "is both a file and a folder")
        self.kinds[own] = kind

    def write(self, name: str, file: IO[bytes]) -> None:
        """Copy one regular member."""
        place = self.place(name, is_folder=False)
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as out:
            while block := file.read(_BLOCK):
                self.count(len(block))
                out.write(block)

    def make(self, name: str) -> None:
        """Make one folder."""
        if name.rstrip("/") not in ("", "."):
            self.place(name, is_folder=True).mkdir(parents=True, exist_ok=True)

    def count(self, size: int) -> None:
        """Count unpacked bytes; more than the limit is refused."""
        self.written += size
        if self.written > self.most_bytes:
            raise self.too_large()

    def too_large(self) -> InputError:
        """The error for a bomb."""
        return InputError(
            f"{self.archive} unpacks to more than {self.most_bytes:,} bytes.",
            "It may be a bomb; if you trust it, unpack it yourself.",
        )

    def refuse(self, name: str, why: str) -> InputError:
        """The error for one member; nothing of the archive is kept."""
        return InputError(f"{self.archive}: the member {name!r} {why}; nothing was unpacked.")


def _unpack_zip(path: Path, intake: _Intake) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        with path.open("rb") as file:
            file.seek(-22 - len(archive.comment), os.SEEK_END)
            count = int.from_bytes(file.read(12)[10:], "little")
        if count not in (len(members), 0xFFFF):  # 0xFFFF: a larger number stands elsewhere
            raise zipfile.BadZipFile(f"it lists {len(members)} of {count} members")
        # Before the first byte is written: a bomb need not be unpacked to be found.
        declared = sum(member.file_size for member in members)
        intake.count(declared)
        intake.written = 0
        for member in members:
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise intake.refuse(member.filename, "is a link or a device")
            if member.flag_bits & 1:
                raise intake.refuse(member.filename, "is encrypted")
            if member.filename.endswith("/"):  # is_dir() fails on an empty name
                intake.make(member.filename)
                continue
            with archive.open(member) as file:
                intake.write(member.filename, file)


def _unpack_tar(path: Path, intake: _Intake) -> None:
    with path.open("rb") as stored:
        head = stored.read(8)
        stored.seek(0)
        opener = next((one for magic, one in _OPENERS.items() if head.startswith(magic)), None)
        plain = _Counted(opener(stored) if opener else stored, intake)
        # One pass through the stream: headers are data too, and are counted before anything believes them.
        with tarfile.open(fileobj=plain, mode="r|", errorlevel=1) as archive:
            for member in archive:
                if member.isdir():
                    intake.make(member.name)
                elif not member.isreg() or member.issparse():
                    raise intake.refuse(member.name, "is a link, a device or a sparse file")
                else:
                    file = archive.extractfile(member)
                    if file is None:
                        raise intake.refuse(member.name, "has no contents")
                    intake.write(member.name, file)
            # tarfile takes a broken header for the end; behind the real end there are only zeros.
            rest = cast("IO[bytes]", archive.fileobj)
            zeros = 0
            while block := rest.read(_BLOCK):
                if block.strip(b"\0"):
                    raise tarfile.ReadError("a member's header is broken")
                zeros += len(block)
            if zeros == 0:
                raise tarfile.ReadError("its end is missing")


class _Counted(io.RawIOBase):
    """A stream that ends in an error once it has given more than the limit, and what headers may need, allow."""

    def __init__(self, file: IO[bytes], intake: _Intake) -> None:
        self.file, self.intake, self.taken = file, intake, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        block = self.file.read(_BLOCK if size < 0 else min(size, _BLOCK))
        self.taken += len(block)
        if self.taken > self.intake.most_bytes + _SPARE:
            raise self.intake.too_large()
        return block


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that the archive's encoding does not explain
        return False
    return True


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Say of whatever zipfile, tarfile, zlib and lzma raise on damage that the archive is damaged."""
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path} cannot be unpacked: {error.strerror}.") from error
        raise _damaged(path, error) from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, OverflowError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is not a complete .zip or .tar archive: {error or type(error).__name__}.",
        "It may be cut short; copy or download it again.",
    )
