"""Masks are decoded exactly as they were written, whatever the format; what cannot hold labels is refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from leanlabel.data.class_map import class_map, plain_map
from leanlabel.data.masks import (
    classes_of,
    count_labels,
    decode_mask,
    form_of,
    mask_classes,
    nearest,
    sixteen_bit_png,
)
from leanlabel.errors import InputError

IDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 3, 0, 3]], np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(lines: bytes, width: int, height: int, bits: int, kind: int, interlace: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def filtered(values: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits; kind 0 to 4 is one filter for all rows, 5 takes turns."""
    height, width, channels = values.shape
    lines, step = b"", 2 * channels
    rows = np.frombuffer(values.astype(">u2").tobytes(), np.uint8).reshape(height, -1).astype(int)
    for y in range(height):
        own = y % 5 if kind == 5 else kind
        line = [own]
        for x, value in enumerate(rows[y]):
            a = int(rows[y, x - step]) if x >= step else 0
            b = int(rows[y - 1, x]) if y else 0
            c = int(rows[y - 1, x - step]) if y and x >= step else 0
            p = a + b - c
            paeth = min(((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c)))[2]
            line.append((int(value) - (0, a, b, (a + b) // 2, paeth)[own]) & 255)
        lines += bytes(line)
    return raw_png(lines, width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels])


def coloured(ids: np.ndarray, colours: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(colours, np.uint8)[ids]


def test_values() -> None:
    palette = Image.fromarray(IDS, "P")
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    assert decode_mask(saved(palette), "a").tolist() == IDS.tolist()
    assert decode_mask(saved(palette, transparency=0), "a").tolist() == IDS.tolist()
    for kind in ("PNG", "TIFF", "BMP"):
        assert decode_mask(saved(Image.fromarray(IDS), kind), "a").tolist() == IDS.tolist()
    deep = (IDS.astype(np.uint16) * 1000) + 5
    for kind in ("PNG", "TIFF"):
        found = decode_mask(saved(Image.fromarray(deep), kind), "a")
        assert found.dtype == np.uint16
        assert found.tolist() == deep.tolist()
    one = saved(Image.fromarray(IDS > 1))
    assert decode_mask(one, "a").tolist() == (IDS > 1).astype(int).tolist()
    grey = Image.merge("RGB", [Image.fromarray(IDS)] * 3)
    assert decode_mask(saved(grey), "a").tolist() == IDS.tolist()
    alpha = Image.merge("LA", [Image.fromarray(IDS), Image.fromarray(np.full_like(IDS, 9))])
    assert decode_mask(saved(alpha), "a").tolist() == IDS.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_values_few_bits(bits: int) -> None:
    """Grey of 1, 2 and 4 bits keeps its numbers; Pillow would spread them to 0 .. 255."""
    ids = np.arange(8).reshape(1, 8) % (1 << bits)
    packed = int("".join(f"{one:0{bits}b}" for one in ids[0]), 2).to_bytes(bits, "big")
    assert decode_mask(raw_png(b"\0" + packed, 8, 1, bits, 0), "a").tolist() == ids.tolist()
    head = chunk(b"PLTE", bytes(range(3 << bits)))
    palette = raw_png(b"\0" + packed, 8, 1, bits, 3)
    palette = palette[:33] + head + palette[33:]
    assert decode_mask(palette, "a").tolist() == ids.tolist()


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_reference_sixteen_bits(kind: int, channels: int) -> None:
    """All filters of PNG, for all kinds of pixels, against what was written."""
    values = np.random.default_rng(kind).integers(0, 65536, (9, 7, channels))
    found = sixteen_bit_png(filtered(values, kind), "a")
    assert found is not None
    assert found.dtype == np.uint16
    assert np.array_equal(found.transpose(1, 2, 0), values)
    last = sixteen_bit_png(filtered(values, kind), "a", [channels - 1])
    assert last is not None
    assert np.array_equal(last[0], values[..., -1])


def test_reference_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond one band go on where the band before ended."""
    values = np.random.default_rng(0).integers(0, 65536, (11, 5, 3))
    monkeypatch.setattr("leanlabel.data.masks._BAND", 4)
    found = sixteen_bit_png(filtered(values, 5), "a")
    assert found is not None
    assert np.array_equal(found.transpose(1, 2, 0), values)


def test_values_synthia() -> None:
    """The id is the red channel of 16 bits, the instance another one; Pillow alone would lose both."""
    values = np.stack([IDS + 1, IDS.astype(int) * 1000, IDS * 0], -1)
    data = filtered(values, 5)
    assert decode_mask(data, "a", "red").tolist() == (IDS + 1).tolist()
    classes = mask_classes(data, "a", class_map("synthia-16"), "red")
    assert classes.tolist() == class_map("synthia-16").translate(IDS + 1, "a").tolist()
    assert np.asarray(Image.open(io.BytesIO(data))).max() < 12  # what the usual way makes of them
    with pytest.raises(InputError, match="16-bit colour where label ids are expected"):
        decode_mask(data, "a")
    assert decode_mask(saved(Image.fromarray(IDS)), "a", "red").tolist() == IDS.tolist()
    with pytest.raises(InputError, match="8-bit colour, but ids are expected in the red channel"):
        decode_mask(saved(Image.fromarray(np.stack([IDS, IDS, IDS + 1], -1))), "a", "red")


def test_values_colours() -> None:
    table = [(1, 2, 3), (4, 5, 6), (7, 8, 9), (200, 0, 0)]
    own = plain_map(["a", "b", "c"], table[:3], by_colour=True, ignored_colours=[table[3]])
    expected = [[255 if one == 3 else one for one in row] for row in IDS.tolist()]
    picture = saved(Image.fromarray(coloured(IDS, table)))
    assert form_of(own, "ids") == "colour"
    assert mask_classes(picture, "a", own).tolist() == expected
    palette = Image.fromarray(IDS[::-1].copy(), "P")
    palette.putpalette([part for colour in table for part in colour])
    assert mask_classes(saved(palette), "a", own).tolist() == expected[::-1]
    counts = count_labels(decode_mask(picture, "a", "colour"), own)
    assert counts.pixels.tolist() == [4, 2, 2, 4]
    with pytest.raises(
        InputError, match=r"a: colour \(200, 0, 0\) \(4 pixels\) not in the class map own classes"
    ):
        mask_classes(picture, "a", plain_map(["a", "b", "c"], table[:3], by_colour=True))
    assert (
        mask_classes(saved(Image.fromarray(IDS)), "a", class_map("voc-21"), "either").tolist() == IDS.tolist()
    )


def test_values_nearest() -> None:
    """Each pixel takes the value under its centre, as Pillow's own nearest filter does."""
    values = np.random.default_rng(0).integers(0, 255, (37, 23), np.uint8)
    for size in ((12, 9), (37, 11), (50, 40), (1, 1)):
        expected = Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.NEAREST)
        assert np.array_equal(nearest(values, size), np.asarray(expected))
    assert nearest(values, (37, 23)) is values


def test_reference_counts() -> None:
    own = plain_map(["a", "b", "c"], ids={0: 0, 7: 1, 300: 2, 9: 1}, ignored=[8])
    raw = np.random.default_rng(0).choice(np.array([0, 7, 300, 9, 8, 5], np.uint16), (20, 30))
    counts = count_labels(raw, own)
    assert counts.raw == {int(value): int((raw == value).sum()) for value in np.unique(raw)}
    assert counts.wrong == {5: int((raw == 5).sum())}
    expected = [(raw == 0).sum(), ((raw == 7) | (raw == 9)).sum(), (raw == 300).sum(), (raw == 8).sum()]
    assert counts.pixels.tolist() == expected
    good = np.where(raw == 5, 8, raw).astype(np.uint16)
    assert np.array_equal(classes_of(good, own, "a"), own.translate(good, "a"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x.png: the file is empty"),
        (saved(Image.fromarray(IDS))[:48], "x.png: damaged or cut short"),
        (b"not a picture", "x.png: not a JPEG"),
        (saved(Image.fromarray(IDS), "JPEG"), "x.png: JPEG changes the values of pixels"),
        (saved(Image.fromarray(coloured(IDS, [(0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9)]))), "4 colours"),
        (saved(Image.fromarray(IDS.astype(np.float32)), "TIFF"), "the format F are no label ids"),
        (saved(Image.fromarray(IDS.astype(np.int32) - 1), "TIFF"), "label values from -1 to 2"),
        (saved(Image.fromarray(IDS), "TIFF", tiffinfo={262: 0}), "white is zero"),
    ],
    ids=["empty", "cut", "text", "jpeg", "colours", "float", "negative", "white"],
)
def test_errors(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_mask(data, "x.png")


def test_errors_sixteen_bits() -> None:
    data = filtered(np.full((4, 3, 3), 500), 0)
    for wrong, message in (
        (data[:-20], "its end is missing"),
        (data[:45], "its end is missing"),
        (data[:50] + bytes([data[50] ^ 255]) + data[51:], "a wrong checksum"),
        (raw_png(b"\0" * 10, 3, 4, 16, 2), r"10 of 76 bytes"),
        (raw_png((b"\x07" + b"\0" * 18) * 4, 3, 4, 16, 2), "a filter numbered 7"),
        (raw_png(b"\0" * 76, 3, 4, 16, 2, interlace=1), "interlaced"),
        (raw_png(b"\0" * 76, 3, 4, 16, 5), "no PNG's"),
        (raw_png(b"\0" * 76, 30_000, 30_000, 16, 2), "more than the limit"),
    ):
        with pytest.raises(InputError, match=message):
            sixteen_bit_png(wrong, "a")
    assert sixteen_bit_png(saved(Image.fromarray(IDS)), "a") is None
    assert sixteen_bit_png(b"", "a") is None
