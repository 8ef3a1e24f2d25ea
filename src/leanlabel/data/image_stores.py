"""Where the bytes of image files lie: a folder, a zip, one packed array. Read on demand, by any thread or process."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from leanlabel.errors import InputError

MOST_BYTES = 1 << 30
"""One image file of more bytes is refused unread."""


def printable(name: str) -> str:
    """A file name without the bytes that are no text, which are spelled out.

    >>> printable("cat\\udcff.png")
    'cat\\\\udcff.png'
    """
    return name.encode("utf-8", "backslashreplace").decode()


class Store(Protocol):
    """N encoded images."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Contents of one image file."""
        ...

    def where(self, index: int) -> str:
        """Its name, for messages."""
        ...

    def sizes(self) -> np.ndarray:
        """(N,) int64 bytes of all files."""
        ...

    def take(self, rows: Sequence[int]) -> Store:
        """Some of the images, in this order."""
        ...


@dataclass(frozen=True)
class FolderStore:
    """Files below a folder.

    Args:
        root: the folder.
        names: N paths relative to it, with forward slashes.
    """

    root: str
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """Contents of one file.

        Raises:
            InputError: it cannot be read.
        """
        try:
            with open(self._place(index), "rb") as file:
                _check_size(self.where(index), os.fstat(file.fileno()).st_size)
                return file.read()
        except OSError as error:
            raise InputError(f"{self.where(index)}: cannot be read ({error.strerror or error}).") from error

    def where(self, index: int) -> str:
        """Path of one file, as text that can be printed."""
        return printable(str(self._place(index)))

    def sizes(self) -> np.ndarray:
        """(N,) int64 bytes; -1 for a file that is gone."""
        return np.array([_size(self._place(index)) for index in range(len(self))], dtype=np.int64)

    def take(self, rows: Sequence[int]) -> FolderStore:
        """Some of the files, in this order."""
        return FolderStore(self.root, [self.names[row] for row in rows])

    def _place(self, index: int) -> Path:
        return Path(self.root) / self.names[index]


@dataclass
class ZipStore:
    """Members of a .zip, read in place. Each process opens the archive anew.

    Args:
        path: the archive.
        names: N members.
        bytes_of: (N,) int64 size of each, unpacked.
    """

    path: str
    names: list[str]
    bytes_of: np.ndarray
    _open: tuple[int, zipfile.ZipFile] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def read(self, index: int) -> bytes:
        """Contents of one member.

        Raises:
            InputError: it cannot be read, or is damaged.
        """
        _check_size(self.where(index), int(self.bytes_of[index]))
        try:
            return self._archive().read(self.names[index])
        except Exception as error:  # damage surfaces inside zipfile, zlib, lzma, ... as almost anything
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            raise InputError(f"{self.where(index)}: damaged in the archive ({reason}).") from error

    def where(self, index: int) -> str:
        """Archive and member."""
        return f"{self.path}: {self.names[index]}"

    def sizes(self) -> np.ndarray:
        """(N,) int64 bytes, unpacked."""
        return self.bytes_of

    def take(self, rows: Sequence[int]) -> ZipStore:
        """Some of the members, in this order."""
        return ZipStore(self.path, [self.names[row] for row in rows], self.bytes_of[list(rows)])

    def _archive(self) -> zipfile.ZipFile:
        # A copy that a fork made would share the position in the file with its parent.
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), zipfile.ZipFile(self.path)
        return self._open[1]


@dataclass(frozen=True)
class PackedStore:
    """Image files one after the other in one array.

    Args:
        content: (B,) uint8.
        starts: (N,) int64 first byte of each.
        ends: (N,) int64 byte after the last of each.
        path: where the array comes from, for messages.
        rows: (N,) int64 numbers of the images in the file, for messages.
    """

    content: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    path: str
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, index: int) -> bytes:
        """Contents of one file."""
        return self.content[self.starts[index] : self.ends[index]].tobytes()

    def where(self, index: int) -> str:
        """File and row."""
        return f"{self.path}, image {self.rows[index]}"

    def sizes(self) -> np.ndarray:
        """(N,) int64 bytes."""
        return self.ends - self.starts

    def take(self, rows: Sequence[int]) -> PackedStore:
        """Some of the images, in this order; the others stay in memory."""
        chosen = list(rows)
        return replace(self, starts=self.starts[chosen], ends=self.ends[chosen], rows=self.rows[chosen])


@dataclass(frozen=True)
class JoinedStore:
    """Several stores, one after the other."""

    parts: tuple[Store, ...]
    index_of: np.ndarray
    """(N, 2) int64: part, row in it."""

    def __len__(self) -> int:
        return len(self.index_of)

    def read(self, index: int) -> bytes:
        """Contents of one file."""
        part, row = self.index_of[index].tolist()
        return self.parts[part].read(row)

    def where(self, index: int) -> str:
        """Name of one file."""
        part, row = self.index_of[index].tolist()
        return self.parts[part].where(row)

    def sizes(self) -> np.ndarray:
        """(N,) int64 bytes."""
        sizes = [part.sizes() for part in self.parts]
        return np.array([sizes[part][row] for part, row in self.index_of.tolist()], dtype=np.int64)

    def take(self, rows: Sequence[int]) -> JoinedStore:
        """Some of the images, in this order."""
        return JoinedStore(self.parts, self.index_of[list(rows)])


def join_stores(parts: Sequence[Store]) -> JoinedStore:
    """Put stores one after the other."""
    numbers = [np.stack([np.full(len(one), k), np.arange(len(one))], 1) for k, one in enumerate(parts)]
    return JoinedStore(tuple(parts), np.concatenate(numbers).astype(np.int64))


@dataclass
class Listing:
    """What a place holds, before a pixel is decoded.

    Args:
        name: name of the data set, for people.
        source: N encoded images, or (N, 3, H, W) uint8 pixels.
        ids: N names.
        y: (N,) int64, class or -100; None without labels.
        class_names: C names.
        splits: published sets: "train", "val", "test" -> rows.
        domain: (N,) int64; None where there is but one.
        domain_names: names of the domains.
        facts: what was found and done.
    """

    name: str
    source: Store | Tensor
    ids: list[str] | None = None
    y: Tensor | None = None
    class_names: list[str] | None = None
    splits: dict[str, Tensor] = field(default_factory=dict)
    domain: Tensor | None = None
    domain_names: list[str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: Tensor) -> Listing:
        """Some of the images in this order, each at most once; splits are renumbered."""
        new = torch.full((len(self),), -1, dtype=torch.int64)
        new[rows] = torch.arange(len(rows))
        splits = {part: new[old][new[old] >= 0] for part, old in self.splits.items()}
        chosen = rows.tolist()
        return replace(
            self,
            source=self.source[rows] if isinstance(self.source, Tensor) else self.source.take(chosen),
            ids=None if self.ids is None else [self.ids[row] for row in chosen],
            y=None if self.y is None else self.y[rows],
            splits=splits,
            domain=None if self.domain is None else self.domain[rows],
        )


def _check_size(place: str, size: int) -> None:
    if size > MOST_BYTES:
        raise InputError(f"{place}: {size:,} bytes, at most {MOST_BYTES:,} are read as one image.")


def _size(place: Path) -> int:
    try:
        return os.stat(place).st_size
    except OSError:
        return -1
