"""Arrays of any type, headers and archives that lie, and code in disguise."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corrupt import CHANGES, damaged
from hypothesis import strategies as st


class Payload:
    """Unpickled without care, this makes the folder ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.marker,)


def npy(array: np.ndarray) -> bytes:
    """An array as the content of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(text: str, version: tuple[int, int] = (1, 0), body: bytes = bytes(16)) -> bytes:
    """An .npy file with any text in the place of its header."""
    encoded = text.encode("latin1", "replace") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(encoded))
    return b"\x93NUMPY" + bytes(version) + length + encoded + body


def declared(shape: object, descr: object = "<f8", order: object = False) -> str:
    """The text of a header."""
    return repr({"descr": descr, "fortran_order": order, "shape": shape})


LIES = (
    header(declared((10**12,))),
    header(declared((2**62, 8))),
    header(declared((2**40, 0))),
    header(declared((-1, 2))),
    header(declared((10**15,), "<U0")),
    header(declared((2,), "<U1000000000")),
    header(declared((2,), "|V8")),
    header(declared((2,), "|O")),
    header(declared((2,), [("a", "<f4"), ("b", "<f4")])),
    header(declared((2,), "<M8[s]")),
    header(declared((2,), "(2,)<f4")),
    header(declared((2,), "no such type")),
    header(declared("many")),
    header(declared((2.5,))),
    header(declared((1,) * 70)),
    header(declared((2,), order=3)),
    header(declared((2,)), (2, 0)),
    header(declared((2,)), (3, 0)),
    header(declared((2,)), (9, 9)),
    header("-" * 9_000 + "1"),
    header("(" * 150 + ")" * 150),
    header("[" * 5_000),
    header("__import__('os').mkdir('escaped')"),
    header("{" + "'a': 1, " * 5_000 + "}", (2, 0)),
    header(declared((2,)), body=b""),
    header(declared((2,)), body=bytes(1000)),
    b"\x93NUMPY\x02\x00\xff\xff\xff\x7f",
    b"\x93NUMPY",
    b"",
)

_NUMBERS = (0, 1, 2, 3, 4, 5, -1, -2, -100, 127, 255, 1000, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**64 - 1)
_FLOATS = (0.0, -0.0, 1.0, 2.0, 0.5, -1.0, 1e-45, 3e38, -3e38, 1e300, np.inf, -np.inf, np.nan)
_TEXTS = (
    "",
    "0",
    "1",
    "a",
    "b",
    "-1",
    "nan",
    "é",
    "\u0661",
    "1_0",
    " ",
    "\0",
    "x" * 300,
    "\U0001f600",
    "1e5",
    "0.0",
)
_TYPES = (
    "i1", "i2", "<i4", ">i4", "i8", "u1", "u4", "<u8", ">u8", "f2", "f4", ">f8", "f8", "g", "?", "U", "S",
    "c8", "M8[s]",
)  # fmt: skip


def _array(kind: str, shape: tuple[int, ...], picks: list[int]) -> np.ndarray:
    dtype = np.dtype(kind)
    pool: tuple[Any, ...] = {"U": _TEXTS, "S": _TEXTS, "f": _FLOATS, "c": _FLOATS}.get(dtype.kind, _NUMBERS)
    values = [pool[pick % len(pool)] for pick in picks]
    if dtype.kind == "S":
        values = [text.encode() for text in values]
    with np.errstate(all="ignore"):
        if dtype.kind in "iu":  # wraps around, as in a file of another type
            flat = np.array([value % 2**64 for value in values], np.uint64).astype(dtype)
        elif dtype.kind == "M":
            flat = np.array([value % 2**40 for value in values], np.int64).astype(dtype)
        elif dtype.kind == "b":
            flat = np.array([value % 2 for value in values], np.uint8).astype(dtype)
        else:
            flat = np.array(values).astype(dtype)
    return np.resize(flat, shape)


ARRAYS = st.builds(
    _array,
    st.sampled_from(_TYPES),
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7]), max_size=3).map(tuple),
    st.lists(st.integers(0, 50), min_size=1, max_size=8),
)


@dataclass(frozen=True)
class Member:
    """One file of an archive, with what may be wrong about it.

    Args:
        name: its name, also one that leads out of the folder.
        content: what it holds.
        method: how it is packed.
        checksum: False spoils it.
        size: what the directory says it unpacks to; None for the truth.
    """

    name: str
    content: bytes
    method: int = zipfile.ZIP_DEFLATED
    checksum: bool = True
    size: int | None = None


def archive(members: list[Member]) -> bytes:
    """A .zip of the members; names may repeat."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as target:
        warnings.simplefilter("ignore")  # names that repeat are meant
        for member in members:
            target.writestr(zipfile.ZipInfo(member.name), member.content, compress_type=member.method)
    content = bytearray(file.getvalue())
    # The central directory: signature PK\1\2, then at fixed distances the checksum and the size unpacked.
    place = content.find(b"PK\1\2", target.start_dir)
    for member in members:
        if not member.checksum:
            content[place + 16] ^= 0xFF
        if member.size is not None:
            content[place + 24 : place + 28] = struct.pack("<I", member.size)
        place = content.find(b"PK\1\2", place + 1)
    return bytes(content)


METHODS = st.sampled_from(
    [*[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED] * 4, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
_SIZES = (0, 1, 200, 2**31, 2**32 - 1)


def archives(
    sound: Mapping[str, np.ndarray], marker: Path, extra: tuple[str, ...] = ()
) -> st.SearchStrategy[bytes]:
    """An .npz that holds ``sound`` arrays, some of them replaced by odd ones, lies, code, and more.

    Args:
        sound: name -> array.
        marker: folder that code in the archive would make.
        extra: names that may be added.
    """
    whole = {name: npy(array) for name, array in sound.items()}
    names = (*sound, *extra)
    code = [npy(np.array([Payload(marker)], dtype=object)), pickle.dumps(Payload(marker))]
    odd = st.one_of(
        ARRAYS.map(npy),
        ARRAYS.map(npy),
        ARRAYS.map(npy),
        st.sampled_from(LIES),
        st.sampled_from(code),
        st.sampled_from(list(whole.values())),
        st.builds(damaged, st.sampled_from(list(whole.values())), CHANGES),
    )
    outside = st.builds(
        Member, st.sampled_from(["../../escaped.npy", "/escaped.npy", "..\\escaped.npy", ".npy"]), odd
    )
    lying = st.builds(
        Member,
        st.sampled_from(names).map("{}.npy".format),
        odd,
        METHODS,
        st.booleans(),
        st.sampled_from(_SIZES),
    )

    def build(
        changed: Mapping[str, bytes], gone: set[str], more: list[Member], swap: bool, method: int
    ) -> bytes:
        content = {name: data for name, data in {**whole, **changed}.items() if name not in gone}
        if swap and len(content) > 1:
            first, second = list(content)[:2]
            content[first], content[second] = content[second], content[first]
        return archive([*(Member(f"{name}.npy", data, method) for name, data in content.items()), *more])

    return st.builds(
        build,
        st.dictionaries(st.sampled_from(names), odd, min_size=0, max_size=2),
        st.sets(st.sampled_from(names), max_size=1),
        st.one_of(st.just([]), st.lists(st.one_of(outside, lying), min_size=1, max_size=2)),
        st.sampled_from([False, False, False, True]),
        METHODS,
    )
