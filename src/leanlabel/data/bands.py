"""Images with any number of bands: TIFF of 8 and 16 bits or floats, read by an own strict parser, and PNG."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.decode import AS_IS, FORMATS, MOST_PIXELS, Fit, _guarded, _open, _pillow, fit_pixels
from leanlabel.data.image_stores import Store
from leanlabel.data.images import THREADS
from leanlabel.errors import InputError

WHITE = 65535.0
"""Value of 16-bit files that becomes 1.0 unless something else is asked for."""
MOST_BANDS = 4096
MOST_GROWTH = 1100
"""Bytes that one byte of a compressed file may stand for; deflate reaches 1,032."""
_SPARE = 4_000_000
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Field type -> bytes of one value and how struct spells it; fractions and signed types are never needed here.
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_PLAIN, _LZW, _DEFLATE = (1,), (5,), (8, 32946)
_COMPRESSIONS = {
    2: "CCITT", 3: "CCITT G3", 4: "CCITT G4", 6: "old JPEG", 7: "JPEG", 32773: "PackBits", 34712: "JPEG 2000",
    34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP",
}  # fmt: skip
_FEW = 8
_HINT = "Write it again as plain, LZW or deflate TIFF of 8 or 16 bits, or as PNG."


def read_bands(
    data: bytes, where: str, bands: Sequence[int] | None = None, white: float | None = None, fit: Fit = AS_IS
) -> Tensor:
    """Decode an image of any number of bands.

    Read are: TIFF and BigTIFF with strips or tiles, bands side by side or one after the other, either byte order,
    8-bit and 16-bit unsigned and 32-bit float values, plain, LZW or deflate, with or without differences in rows
    (predictor 2); PNG and other image files as far as Pillow keeps all that is in them. White-is-zero files are
    turned round. Nothing else is guessed at: it is an error that says what the file has.

    Args:
        data: contents of the file.
        where: its name, for messages.
        bands: bands to keep, counted from 0, in this order; None keeps all.
        white: value that becomes 1.0; 65535 for 16 bits and 1 for floats when left out. 8-bit values stay as they
            are whatever it says.
        fit: wanted size.

    Returns:
        (C, h, w): uint8 of 8-bit files; float32 in [0, 1] of others, larger values cut off.

    Raises:
        InputError: another kind of file, damaged, cut short, a band that is not there, or floats outside [0, white].
    """
    if not data:
        raise InputError(f"{where}: the file is empty.")
    if white is not None and not (math.isfinite(white) and white > 0):
        raise InputError(f"the value of white must be positive, got {white}.")
    if data[:4] in _MAGIC:
        values = _guarded(lambda: _Tiff(data, where).pixels(), where)
    else:
        values = _guarded(lambda: _other(data, where), where)
    if bands is not None:
        missing = [band for band in bands if not 0 <= band < len(values)]
        if missing or not bands:
            raise InputError(
                f"{where}: band {missing[0] if missing else 'list is empty'}; it has the bands 0 to {len(values) - 1}."
            )
        values = values[list(bands)]
    return fit_bands(_scaled(values, where, white), fit)


def _scaled(values: np.ndarray, where: str, white: float | None) -> np.ndarray:
    """Bring all but 8-bit values to float32 in [0, 1]."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.float32:
        top = 1.0 if white is None else white
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(f"{where}: some pixels are not finite.", "Fill them before training.")
        # A stated white may be passed, as bright clouds do; without one the range is not known.
        if low < 0 or (white is None and high > 1):
            raise InputError(
                f"{where}: floats from {low:g} to {high:g}, not from 0 to {top:g}.",
                "Set data.white to the value that means 1.",
            )
    else:
        top = WHITE if white is None else white
    return np.minimum(values.astype(np.float32) / np.float32(top), np.float32(1))


def fitted(image: Tensor, fit: Fit) -> Tensor:
    """Bring an image to the size at which files would be read, by the filter that reading uses.

    Args:
        image: (C, h, w) uint8, or float32 in [0, 1].
        fit: wanted size.

    Example:
        >>> fitted(torch.zeros(3, 40, 60, dtype=torch.uint8), Fit(20)).shape
        torch.Size([3, 20, 30])
    """
    if image.dtype == torch.uint8 and len(image) == 3:
        return fit_pixels(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()), fit)
    return fit_bands(image.cpu().numpy(), fit)


def fit_bands(values: np.ndarray, fit: Fit) -> Tensor:
    """Scale and cut every band as :func:`leanlabel.data.decode.decode` does with images."""
    height, width = values.shape[1:]
    wanted = fit.scaled(width, height)
    if wanted != (width, height):
        module = _pillow()
        rows = [
            np.asarray(module.fromarray(band).resize(wanted, module.Resampling.BICUBIC, reducing_gap=3.0))
            for band in values
        ]
        values = np.stack(rows)
        if values.dtype != np.uint8:  # the filter overshoots at edges
            values = np.clip(values, 0, 1)
    if fit.square and fit.resize is not None:
        top, left = (values.shape[1] - fit.resize) // 2, (values.shape[2] - fit.resize) // 2
        values = values[:, top : top + fit.resize, left : left + fit.resize]
    return torch.from_numpy(np.ascontiguousarray(values).copy())


def _other(data: bytes, where: str) -> np.ndarray:
    """Decode (C, h, w) of anything that is not a TIFF."""
    from leanlabel.data.masks import sixteen_bit_png

    deep = sixteen_bit_png(data, where)
    if deep is not None:
        return deep
    image = _open(data, where)
    image.load()
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        raise InputError(f"{where}: pixels of the format {image.mode} are not read as bands.", _HINT)
    values = np.array(image)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))


class _Tiff:
    """The first picture of a TIFF file."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where = data, where
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = data[2:4] in (b"+\0", b"\0+")
        self.fields = self._directory()
        self.width, self.height = self._one(256), self._one(257)
        self.bands = self._one(277, 1)
        self.compression, self.predictor = self._one(259, 1), self._one(317, 1)
        self.planar = self._one(284, 1) == 2
        self.tiled = 322 in self.fields
        self.type = self._type()
        self._check()

    def pixels(self) -> np.ndarray:
        """(C, h, w) in the machine's byte order, as stored."""
        planes = self.bands if self.planar else 1
        inner = 1 if self.planar else self.bands
        rows, columns = self._piece_size()
        down, across = -(-self.height // rows), -(-self.width // columns)
        starts, counts = (self._many(tag) for tag in ((324, 325) if self.tiled else (273, 279)))
        if len(starts) != planes * down * across or len(counts) != len(starts):
            raise self._refuse(f"it lists {len(starts)} pieces where {planes * down * across} are needed")
        out = np.empty((planes, self.height, self.width, inner), dtype=self.type.newbyteorder("="))
        for number, (start, count) in enumerate(zip(starts, counts)):
            plane, place = divmod(number, down * across)
            top, left = (one * step for one, step in zip(divmod(place, across), (rows, columns)))
            # Tiles are always whole, the last strip is as short as it has to be.
            high = rows if self.tiled else min(rows, self.height - top)
            piece = self._piece(start, count, high, columns, inner)
            bottom, right = min(top + high, self.height), min(left + columns, self.width)
            out[plane, top:bottom, left:right] = piece[: bottom - top, : right - left]
        result = out[..., 0] if self.planar else out[0].transpose(2, 0, 1)
        if self._one(262, 1) == 0 and result.dtype.kind == "u":
            result = np.iinfo(result.dtype).max - result
        return np.ascontiguousarray(result)

    def _piece(self, start: int, count: int, rows: int, columns: int, inner: int) -> np.ndarray:
        """Unpack one strip or tile: (rows, columns, inner)."""
        packed = self.data[start : start + count]
        if len(packed) != count:
            raise self._refuse("it is cut short")
        size = rows * columns * inner * self.type.itemsize
        if self.compression in _PLAIN:
            plain = packed
        elif self.compression in _DEFLATE:
            plain = zlib.decompressobj().decompress(packed, size)
        else:
            plain = _unpacked_lzw(packed, rows, columns * inner * self.type.itemsize)
        if len(plain) < size:
            raise self._refuse(f"a piece has {len(plain)} of {size} bytes")
        piece = np.frombuffer(plain, self.type, rows * columns * inner).reshape(rows, columns, inner)
        piece = piece.astype(self.type.newbyteorder("="))
        if self.predictor == 2:
            # Differences wrap around, and so does the sum.
            np.cumsum(piece, axis=1, dtype=piece.dtype, out=piece)
        return piece

    def _piece_size(self) -> tuple[int, int]:
        if self.tiled:
            rows, columns = self._one(323), self._one(322)
        else:
            rows, columns = min(self._one(278, self.height), self.height), self.width
        if rows < 1 or columns < 1 or rows * columns * self.bands > _SPARE + MOST_GROWTH * len(self.data):
            raise self._refuse(f"its pieces are of {columns} x {rows} pixels")
        return rows, columns

    def _check(self) -> None:
        """Refuse what is not understood, before memory is reserved."""
        if self.width < 1 or self.height < 1 or not 1 <= self.bands <= MOST_BANDS:
            raise self._refuse(f"it claims {self.width} x {self.height} pixels of {self.bands} bands")
        values = self.width * self.height * self.bands
        most = _pillow().MAX_IMAGE_PIXELS or MOST_PIXELS
        if self.width * self.height > most:
            raise self._refuse(f"{self.width} x {self.height} are more pixels than the limit of {most:,}")
        if values * self.type.itemsize > MOST_GROWTH * len(self.data) + _SPARE:
            raise self._refuse(f"{values} values in {len(self.data)} bytes; damaged, or a bomb")
        if self.compression not in (*_PLAIN, *_LZW, *_DEFLATE):
            name = _COMPRESSIONS.get(self.compression, str(self.compression))
            raise self._refuse(f"the compression {name} is not read")
        if self.predictor not in (1, 2) or (self.predictor == 2 and self.type.kind == "f"):
            raise self._refuse(f"the predictor {self.predictor} is not read for values of {self.type.name}")
        if self._one(262, 1) not in (0, 1, 2, 5):
            raise self._refuse(
                "its colours are a palette" if self._one(262) == 3 else "its colour model is not read"
            )
        if self._one(266, 1) != 1 or self._one(274, 1) != 1:
            raise self._refuse("its bits or rows are in an unusual order")

    def _type(self) -> np.dtype:
        bits, kinds = set(self._many(258, [1])), set(self._many(339, [1]))
        known = {(8, 1): "u1", (16, 1): "u2", (32, 3): "f4"}
        one = min(bits), min(kinds)
        if len(bits) != 1 or len(kinds) != 1 or one not in known:
            kind = {1: "unsigned", 2: "signed", 3: "float"}.get(min(kinds), "unknown")
            raise self._refuse(f"values of {' and '.join(map(str, sorted(bits)))} bits ({kind}) are not read")
        return np.dtype(self.order + known[one])

    def _directory(self) -> dict[int, tuple[int, int, int]]:
        """Field number -> (type, number of values, where they are)."""
        if self.big and self._unpack("HH", 4) != (8, 0):
            raise self._refuse("its head is damaged")
        (place,) = self._unpack("Q", 8) if self.big else self._unpack("I", 4)
        (count,) = self._unpack("Q" if self.big else "H", place)
        place += 8 if self.big else 2
        step, inline = (20, 8) if self.big else (12, 4)
        if count > 65535:
            raise self._refuse("its directory is damaged")
        fields = {}
        for start in range(place, place + count * step, step):
            tag, kind, number = self._unpack("HHQ" if self.big else "HHI", start)
            if kind not in _TYPES:
                continue
            at = start + step - inline
            if number * struct.calcsize("=" + _TYPES[kind]) > inline:
                (at,) = self._unpack("Q" if self.big else "I", at)
            fields[tag] = kind, number, at
        return fields

    def _many(self, tag: int, default: list[int] | None = None) -> list[int]:
        if tag not in self.fields:
            if default is None:
                raise self._refuse(f"the field {tag} is missing")
            return default
        kind, number, at = self.fields[tag]
        if not 1 <= number <= len(self.data):
            raise self._refuse(f"the field {tag} is damaged")
        return list(self._unpack(f"{number}{_TYPES[kind]}", at))

    def _one(self, tag: int, default: int | None = None) -> int:
        return self._many(tag, None if default is None else [default])[0]

    def _unpack(self, spelled: str, at: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(self.order + spelled, self.data, at)
        except struct.error as error:
            raise self._refuse("it is cut short") from error

    def _refuse(self, text: str) -> InputError:
        return InputError(f"{self.where}: TIFF: {text}.", _HINT)


def _unpacked_lzw(packed: bytes, rows: int, row_bytes: int) -> bytes:
    """Let Pillow unpack LZW: the bytes are put into a file of one grey strip, whatever they mean."""
    fields = [
        (256, 4, row_bytes), (257, 4, rows), (258, 3, 8), (259, 3, 5), (262, 3, 1), (273, 4, 8), (277, 3, 1),
        (278, 4, rows), (279, 4, len(packed)),
    ]  # fmt: skip
    padded = packed + b"\0" * (len(packed) % 2)
    directory = struct.pack("<H", len(fields))
    for tag, kind, value in fields:
        directory += struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value)
    data = b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + directory + b"\0\0\0\0"
    image = _pillow().open(io.BytesIO(data), formats=FORMATS)
    return image.tobytes()


@dataclass(frozen=True, eq=False)
class BandFiles:
    """Image files of any number of bands, decoded each time they are asked for. Can be sent to other processes.

    Args:
        store: N encoded images.
        bands: bands to keep, counted from 0; None keeps all.
        white: value of 16-bit and float files that becomes 1.0; None is 65535 and 1.
        fit: size they are brought to.
        known_shape: (C, H, W) where all images are known to come out like this.
    """

    store: Store
    bands: tuple[int, ...] | None = None
    white: float | None = None
    fit: Fit = AS_IS
    known_shape: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int, /) -> Tensor:
        row = range(len(self))[index]
        return read_bands(self.store.read(row), self.store.where(row), self.bands, self.white, self.fit)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) where it is known."""
        return self.known_shape

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Decode some images, several at a time.

        Returns:
            (B, C, H, W) where these images are of one size and type, else a list of (C, h, w).

        Raises:
            InputError: one cannot be read, or has another number of bands or bits than the first; names it.
        """
        if len(rows) < _FEW:
            found = [self[row] for row in rows]
        else:
            with ThreadPoolExecutor(THREADS) as threads:
                found = list(threads.map(self.__getitem__, rows))
        if not found:
            return torch.zeros((0, *(self.shape or (0, 0, 0))), dtype=torch.uint8)
        for row, one in zip(rows, found):
            if one.shape[0] != found[0].shape[0] or one.dtype != found[0].dtype:
                raise InputError(
                    f"{self.store.where(row)}: {_kind(one)}, but {self.store.where(rows[0])} has {_kind(found[0])}.",
                    "Choose bands that all files have (data.bands), and write all files with the same bits.",
                )
        return torch.stack(found) if len({one.shape for one in found}) == 1 else found

    def take(self, rows: Sequence[int]) -> BandFiles:
        """Some of the files, in this order."""
        return replace(self, store=self.store.take(rows))


def _kind(image: Tensor) -> str:
    bits = "8 bits" if image.dtype == torch.uint8 else "16 bits or floats"
    return f"{image.shape[0]} bands of {bits}"
