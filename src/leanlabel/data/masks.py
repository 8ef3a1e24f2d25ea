"""From the bytes of a mask file to label ids or colours, exactly as they were written; or an error naming the file."""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanlabel.data.class_map import IGNORE, UNLISTED, ClassMap, Colour
from leanlabel.data.decode import MOST_PIXELS, _guarded, _open
from leanlabel.data.dense_listing import MaskForm
from leanlabel.errors import InputError

_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""PNG's kinds of colour that may have 16 bits -> channels: grey, colour, grey and alpha, colour and alpha."""
_LOSSY = ("JPEG", "WEBP")
_BAND = 1024
"""Rows of a PNG that are put back together at once."""


@dataclass(frozen=True)
class LabelCounts:
    """What one mask holds.

    Args:
        raw: raw id, or red x 65536 + green x 256 + blue of masks told by colour -> pixels.
        wrong: the same, of those that the class map does not list.
        pixels: (K + 1,) int64 pixels of each class, and of no class at the end.
    """

    raw: dict[int, int]
    wrong: dict[int, int]
    pixels: np.ndarray


class MaskFormError(InputError):
    """A mask that can be read, but holds no labels in the form that is expected: never to be left out in silence."""


def decode_mask(data: bytes, where: str, form: MaskForm = "ids") -> np.ndarray:
    """Decode one mask without changing a value.

    A palette gives its indices, never its colours; grey of 1, 2, 4, 8 or 16 bits its numbers (0 .. 3 for two bits,
    not spread to 0 .. 255). Colour with three equal channels counts as grey. Alpha is passed over.

    Args:
        data: contents of a PNG, TIFF, BMP or GIF file.
        where: name of the file, for messages.
        form: ids; colour (palettes and grey become colours, too); either, whichever the file has; red, the first
            channel of 16-bit colour, as SYNTHIA stores ids.

    Returns:
        (h, w) uint8 or uint16 ids; of colours (h, w, 3) uint8.

    Raises:
        InputError: damaged, cut short, empty, lossy (JPEG), colours where ids are expected, or the reverse.
    """
    found = _guarded(lambda: _decode(data, where, form), where)
    if found.ndim == 2:
        return found
    if form in ("colour", "either"):
        return found
    first = found[..., 0]
    if bool((found == first[..., None]).all()):
        return np.ascontiguousarray(first)
    if form == "red":
        raise MaskFormError(
            f"{where}: 8-bit colour, but ids are expected in the red channel of 16-bit colour.",
            "Copy the published PNG files; a program that made 8 bits of them has lost the ids.",
        )
    colours = np.unique(found.reshape(-1, 3), axis=0)
    raise MaskFormError(
        f"{where}: a colour picture ({len(colours)} colours, such as {_spelled(colours[-1])}) where label ids are "
        "expected.",
        "Say by_colour: true in data.classes if colours mean classes; else write masks as grey or palette PNG.",
    )


def mask_classes(
    data: bytes,
    where: str,
    classes: ClassMap,
    form: MaskForm = "ids",
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decode one mask and turn it into classes.

    Args:
        data: contents of the file.
        where: its name, for messages.
        classes: what ids or colours mean.
        form: as for :func:`decode_mask`; colour where `classes` goes by colour.
        size: (height, width) to bring it to; each pixel takes the value of the source pixel under its centre.

    Returns:
        (h, w) uint8, 255 for no class.

    Raises:
        InputError: as for :func:`decode_mask`, or a value or colour that the map does not list.
    """
    raw = decode_mask(data, where, form_of(classes, form))
    return classes_of(raw if size is None else nearest(raw, size), classes, where)


def classes_of(raw: np.ndarray, classes: ClassMap, where: str) -> np.ndarray:
    """Turn what :func:`decode_mask` gives into classes.

    Args:
        raw: (h, w) ids or (h, w, 3) colours.
        classes: what they mean.
        where: name of the file, for messages.

    Returns:
        (h, w) uint8, 255 for no class.

    Raises:
        InputError: a value or colour that the map does not list.
    """
    if raw.ndim == 2:
        return classes.translate(raw, where)
    found = colour_table(classes)[_codes(raw)]
    if bool((found == UNLISTED).any()):
        raise refuse_colours(count_labels(raw, classes).wrong, where, classes)
    return found


def form_of(classes: ClassMap, form: MaskForm) -> MaskForm:
    """How masks are read: as their place says, or by colour where the class map says so."""
    return "colour" if classes.by_colour and form == "ids" else form


def nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring an array to a size; each pixel takes the value of the source pixel under its centre.

    Args:
        array: (h, w) or (h, w, C).
        size: (height, width).

    >>> nearest(np.arange(6)[None], (1, 3)).tolist()
    [[1, 3, 5]]
    """
    if array.shape[:2] == tuple(size):
        return array
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, array.shape[:2], strict=True)
    )
    return array[rows[:, None], columns]


def count_labels(raw: np.ndarray, classes: ClassMap) -> LabelCounts:
    """Count the values of one mask.

    Args:
        raw: what :func:`decode_mask` gives: (h, w) ids or (h, w, 3) colours.
        classes: what they mean.
    """
    if raw.ndim == 3:
        values, counts = np.unique(_codes(raw), return_counts=True)
        meaning = colour_table(classes)[values]
    else:
        every = np.bincount(raw.reshape(-1), minlength=256)
        values = np.flatnonzero(every)
        counts, meaning = every[values], classes.table[values]
    pixels = np.zeros(256, dtype=np.int64)
    np.add.at(pixels, meaning, counts)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    wrong = {value: found[value] for value in values[meaning == UNLISTED].tolist()}
    return LabelCounts(found, wrong, np.append(pixels[: len(classes)], pixels[IGNORE]))


def refuse_colours(wrong: dict[int, int], where: str, classes: ClassMap, files: str = "") -> InputError:
    """Make the error for masks with colours that the class map does not list.

    Args:
        wrong: red x 65536 + green x 256 + blue -> pixels.
        where: name of the file or of the data.
        classes: the map.
        files: which files hold them, where several were looked at.
    """
    first = sorted(wrong, key=lambda code: -wrong[code])
    shown = ", ".join(f"{_spelled(_parts(code))} ({wrong[code]:,} pixels)" for code in first[:5])
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    hint = "List these colours in data.classes (colours, or ignored_colours), or say unlisted: ignore."
    if len(wrong) > 64:
        hint = "So many colours come from smoothing or JPEG: write masks without either, in PNG."
    return InputError(
        f"{where}: colour{'s' * (len(wrong) > 1)} {shown}{more} not in the class map {classes.name}{files}.",
        hint,
    )


@functools.lru_cache(maxsize=4)
def colour_table(classes: ClassMap) -> np.ndarray:
    """(2^24,) uint8: red x 65536 + green x 256 + blue -> class, 255 for ignored, 254 for a mistake."""
    table = np.full(1 << 24, IGNORE if classes.unlisted == "ignore" else UNLISTED, dtype=np.uint8)
    for red, green, blue in classes.ignored_colours:
        table[red << 16 | green << 8 | blue] = IGNORE
    for label, (red, green, blue) in enumerate(classes.colours):
        table[red << 16 | green << 8 | blue] = label
    return table


def sixteen_bit_png(data: bytes, where: str, channels: Sequence[int] | None = None) -> np.ndarray | None:
    """Decode a PNG of 16 bits per channel with all of its bits, which Pillow halves for colour.

    Args:
        data: contents of the file.
        where: its name, for messages.
        channels: which channels to decode, counted from 0; None for all.

    Returns:
        (C, h, w) uint16; None where the file is no PNG or has fewer bits.

    Raises:
        InputError: damaged, cut short, interlaced, or too large.
    """
    if not data.startswith(_PNG) or len(data) < 33 or data[12:16] != b"IHDR" or data[24] != 16:
        return None
    width, height = struct.unpack(">II", data[16:24])
    _, kind, packing, filtering, interlace = data[24:29]
    if kind not in _CHANNELS or packing or filtering or not width or not height:
        raise InputError(f"{where}: damaged or cut short (its head is no PNG's).")
    if interlace:
        raise InputError(f"{where}: an interlaced PNG of 16 bits is not read.", "Write it without interlace.")
    if width * height > MOST_PIXELS:
        raise InputError(f"{where}: {width} x {height} pixels, more than the limit of {MOST_PIXELS:,}.")
    count = _CHANNELS[kind]
    line = 1 + 2 * count * width
    packed = b"".join(_chunks(data, where))
    try:
        stream = zlib.decompressobj()
        content = stream.decompress(packed, line * height)
    except zlib.error as error:
        raise InputError(f"{where}: damaged or cut short ({error}).") from error
    if len(content) != line * height:
        raise InputError(f"{where}: damaged or cut short ({len(content):,} of {line * height:,} bytes).")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(height, line)
    if rows[:, 0].max() > 4:
        raise InputError(f"{where}: damaged (a filter numbered {rows[:, 0].max()}).")
    wanted = range(count) if channels is None else channels
    lanes = [lane for channel in wanted for lane in (2 * channel, 2 * channel + 1)]
    pixels = _unfiltered(rows[:, 1:].reshape(height, width, 2 * count)[..., lanes], rows[:, 0])
    values = pixels.reshape(height, width, -1, 2).astype(np.uint16)
    return np.ascontiguousarray((values[..., 0] << 8 | values[..., 1]).transpose(2, 0, 1))


def _chunks(data: bytes, where: str) -> list[bytes]:
    """Contents of all chunks of pixels; every chunk up to the end is there and has its checksum."""
    found: list[bytes] = []
    at = len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if len(data) < at + 12 + length:
            break
        if zlib.crc32(data[at + 4 : at + 8 + length]) != int.from_bytes(
            data[at + 8 + length : at + 12 + length], "big"
        ):
            raise InputError(f"{where}: damaged (a wrong checksum).")
        if kind == b"IDAT":
            found.append(content)
        if kind == b"IEND":
            return found
        at += 12 + length
    raise InputError(f"{where}: damaged or cut short (its end is missing).")


def _unfiltered(rows: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Undo PNG's row filters (0 none, 1 left, 2 above, 3 mean of both, 4 Paeth).

    A byte depends on those left of, above and left above it, so all bytes of one anti-diagonal are known at once.

    Args:
        rows: (H, W, L) uint8, bytes of the same place in each pixel do not mix.
        filters: (H,) 0 to 4.
    """
    height, width, lanes = rows.shape
    out = np.empty_like(rows)
    above = np.zeros((width, lanes), dtype=np.int16)
    for top in range(0, height, _BAND):
        count = min(_BAND, height - top)
        # Entry [d + 2, r + 1] is the pixel of row r and column d - r; row 0 is the one above the band.
        known = np.zeros((width + count + 2, count + 1, lanes), dtype=np.int16)
        known[1 : width + 1, 0] = above
        skewed = np.zeros((width + count, count, lanes), dtype=np.int16)
        at = np.arange(count)
        for column in range(width):
            skewed[column + at, at] = rows[top : top + count, column]
        left_of, above_of, mean_of, paeth_of = (
            (filters[top : top + count, None] == kind).astype(np.int16) for kind in (1, 2, 3, 4)
        )
        for d in range(width + count - 1):
            part = slice(max(0, d - width + 1), min(count, d + 1))
            a, b = known[d + 1, part.start + 1 : part.stop + 1], known[d + 1, part]
            c = known[d, part]
            to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
            paeth = np.where((to_a <= to_b) & (to_a <= to_c), a, np.where(to_b <= to_c, b, c))
            guess = (
                left_of[part] * a
                + above_of[part] * b
                + mean_of[part] * ((a + b) >> 1)
                + paeth_of[part] * paeth
            )
            known[d + 2, part.start + 1 : part.stop + 1] = (skewed[d, part] + guess) & 255
        for row in range(count):
            out[top + row] = known[row + 2 : row + 2 + width, row + 1]
        above = out[top + count - 1].astype(np.int16)
    return out


def _decode(data: bytes, where: str, form: MaskForm) -> np.ndarray:
    """(h, w) ids, or (h, w, 3) uint8 where the file has colours."""
    deep = _deep_colour(data, where, form)
    if deep is not None:
        return deep
    image = _open(data, where)
    if image.format in _LOSSY:
        raise MaskFormError(
            f"{where}: {image.format} changes the values of pixels, so it cannot hold labels.",
            "Write masks as PNG from the original labels.",
        )
    if image.format == "TIFF" and image.tag_v2.get(262) == 0:
        raise MaskFormError(
            f"{where}: a TIFF in which white is zero.", "Write it with black as zero, or as PNG."
        )
    image.load()
    if form == "colour":
        return np.asarray(image.convert("RGB"))
    if image.mode in ("RGB", "RGBA", "RGBX"):
        return np.asarray(image)[..., :3]
    if image.mode in ("P", "L", "1"):
        values = np.asarray(image).astype(np.uint8)
        # Pillow spreads grey of 2 and 4 bits to 0 .. 255.
        return values // _spread(data, image) if image.mode == "L" else values
    if image.mode in ("LA", "PA"):
        return np.asarray(image.getchannel(0))
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 0xFFFF):
            raise MaskFormError(
                f"{where}: label values from {values.min()} to {values.max()}, at most 65535 are read."
            )
        return values.astype(np.uint16)
    raise MaskFormError(
        f"{where}: pixels of the format {image.mode} are no label ids.", "Write masks as grey or palette PNG."
    )


def _deep_colour(data: bytes, where: str, form: MaskForm) -> np.ndarray | None:
    """Ids of a PNG with 16-bit colour; None where the file is something else."""
    if not data.startswith(_PNG) or len(data) < 33 or data[24] != 16 or data[25] not in (2, 6):
        return None
    if form == "colour":
        raise MaskFormError(
            f"{where}: colours of 16 bits are not read as classes.", "Write masks with 8 bits."
        )
    if form == "red":
        red = sixteen_bit_png(data, where, (0,))
        assert red is not None  # the same head was looked at above
        return red[0]
    found = sixteen_bit_png(data, where, (0, 1, 2))
    assert found is not None
    if bool((found == found[:1]).all()):
        return found[0]
    raise MaskFormError(
        f"{where}: 16-bit colour where label ids are expected.",
        "Set data.layout: synthia if ids are in its red channel; else write masks as grey or palette PNG.",
    )


def _spread(data: bytes, image: Any) -> int:
    if image.format == "PNG":
        bits = data[24]
    elif image.format == "TIFF":
        noted = image.tag_v2.get(258, (8,))
        bits = noted[0] if isinstance(noted, tuple) else noted
    else:
        return 1
    return {1: 255, 2: 85, 4: 17}.get(int(bits), 1)


def _codes(colours: np.ndarray) -> np.ndarray:
    wide = colours.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _parts(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _spelled(colour: Sequence[int] | np.ndarray) -> str:
    return f"({', '.join(str(int(part)) for part in colour)})"
