"""TIFF files of every layout that is read come out as they went in; whatever is not read says what it is."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanlabel.data.bands import BandFiles, read_bands
from leanlabel.data.decode import Fit, decode
from leanlabel.data.image_stores import FolderStore
from leanlabel.errors import InputError

Image = pytest.importorskip("PIL.Image")


def values(bands: int, height: int, width: int, dtype: str = "u1") -> np.ndarray:
    """(C, h, w) of numbers that all differ from their neighbours."""
    count = np.arange(bands * height * width).reshape(bands, height, width)
    if dtype == "f4":
        return (count % 97 / 96).astype("f4")
    return (count * 40503 % (256 ** np.dtype(dtype).itemsize)).astype(dtype)


def lzw(data: bytes) -> bytes:
    """Compress by the textbook: codes of 9 to 12 bits, highest bit first, 256 clears, 257 ends."""
    table = {bytes([k]): k for k in range(256)}
    bits, size, following, word = [(256, 9)], 9, 258, b""
    for k in range(len(data)):
        longer = word + data[k : k + 1]
        if longer in table:
            word = longer
            continue
        bits.append((table[word], size))
        table[longer] = following
        following += 1
        if following == 4094:
            bits.append((256, size))
            table, size, following = {bytes([k]): k for k in range(256)}, 9, 258
        elif following >= (1 << size):
            size += 1
        word = data[k : k + 1]
    bits += [(table[word], size)] if word else []
    # The decoder's table is one entry behind; a longer code may be due for the end.
    bits.append((257, size + (following + 1 >= (1 << size) and size < 12)))
    stream = "".join(f"{code:0{width}b}" for code, width in bits)
    stream += "0" * (-len(stream) % 8)
    return bytes(int(stream[k : k + 8], 2) for k in range(0, len(stream), 8))


def tiff(
    image: np.ndarray, *, order: str = "<", planar: bool = False, tile: tuple[int, int] | None = None, strip: int = 3,
    compression: int = 1, predictor: int = 1, big: bool = False, **changed: int | list[int],
) -> bytes:  # fmt: skip
    """Write (C, h, w) as TIFF; `changed` sets other fields, as in t266=2."""
    bands, height, width = image.shape
    rows, columns = tile or (strip, width)
    pieces = []
    for plane in [image[k : k + 1] for k in range(bands)] if planar else [image]:
        for top, left in product(range(0, height, rows), range(0, width, columns)):
            piece = plane[:, top : top + rows, left : left + columns].transpose(1, 2, 0)
            if tile:
                lack = [(0, want - got) for want, got in zip((rows, columns), piece.shape)]
                piece = np.pad(piece, [*lack, (0, 0)], mode="edge")
            if predictor == 2:
                piece = np.diff(piece, axis=1, prepend=np.zeros_like(piece[:, :1]))
            raw = piece.astype(image.dtype.newbyteorder(order)).tobytes()
            pieces.append({1: bytes, 8: zlib.compress, 32946: zlib.compress, 5: lzw}[compression](raw))
    head = 16 if big else 8
    starts = [head + sum(map(len, pieces[:k])) for k in range(len(pieces))]
    fields: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]), 257: ("H", [height]), 258: ("H", [8 * image.dtype.itemsize] * bands),
        259: ("H", [compression]), 262: ("H", [1]), 277: ("H", [bands]), 284: ("H", [2 if planar else 1]),
        317: ("H", [predictor]), 339: ("H", [3 if image.dtype.kind == "f" else 1] * bands),
    }  # fmt: skip
    sizes = [len(piece) for piece in pieces]
    if tile:
        fields |= {322: ("H", [columns]), 323: ("H", [rows]), 324: ("I", starts), 325: ("I", sizes)}
    else:
        fields |= {273: ("I", starts), 278: ("I", [rows]), 279: ("I", sizes)}
    for name, given_ in changed.items():
        fields[int(name[1:])] = ("H", given_ if isinstance(given_, list) else [given_])
    place = head + sum(sizes)
    # An entry that is too long for its room lies behind the directory.
    room, step = (8, 20) if big else (4, 12)
    after = place + (8 if big else 2) + step * len(fields) + room
    entries, tail = b"", b""
    for number, (kind, listed) in sorted(fields.items()):
        packed = struct.pack(f"{order}{len(listed)}{kind}", *listed)
        if len(packed) > room:
            packed, tail = struct.pack(order + ("Q" if big else "I"), after + len(tail)), tail + packed
        code = {"H": 3, "I": 4}[kind]
        entries += struct.pack(order + ("HHQ" if big else "HHI"), number, code, len(listed)) + packed.ljust(
            room, b"\0"
        )
    mark = b"II" if order == "<" else b"MM"
    start = (
        mark + struct.pack(order + "HHHQ", 43, 8, 0, place)
        if big
        else mark + struct.pack(order + "HI", 42, place)
    )
    count = struct.pack(order + ("Q" if big else "H"), len(fields))
    return start + b"".join(pieces) + count + entries + b"\0" * room + tail


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [1, 8, 32946, 5])
@pytest.mark.parametrize("tile", [None, (4, 5)])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_values(order: str, planar: bool, tile: tuple[int, int] | None, compression: int, big: bool) -> None:
    for dtype, predictor in (("u1", 1), ("u1", 2), ("u2", 1), ("u2", 2), ("f4", 1)):
        image = values(5, 10, 7, dtype)
        data = tiff(
            image,
            order=order,
            planar=planar,
            tile=tile,
            compression=compression,
            predictor=predictor,
            big=big,
        )
        found = read_bands(data, "a.tif", white=None)
        expected = image.astype("f4") / np.float32(65535) if dtype == "u2" else image
        assert found.dtype == (torch.uint8 if dtype == "u1" else torch.float32)
        assert np.array_equal(found.numpy(), expected), (dtype, predictor)


def test_reference() -> None:
    """Of what Pillow can read and write, both say the same."""
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(0, 4, (40, 31, 3)), axis=0).astype(np.uint8)
    for name, size in product(("raw", "tiff_lzw", "tiff_adobe_deflate"), (40, 7)):
        file = io.BytesIO()
        Image.fromarray(smooth[:size]).save(file, "TIFF", compression=name, tiffinfo={278: 3})
        data = file.getvalue()
        assert torch.equal(read_bands(data, "a.tif"), decode(data, "a.tif")), name
    grey = io.BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000).save(grey, "TIFF")
    assert read_bands(grey.getvalue(), "a.tif", white=5000)[0].tolist()[0] == [0, 1, 1, 1]
    assert Image.open(io.BytesIO(tiff(values(3, 9, 8), compression=5, t262=2))).size == (8, 9)


def test_values_png() -> None:
    rgb = values(3, 4, 5).transpose(1, 2, 0)
    assert np.array_equal(read_bands(png(rgb), "a.png").numpy(), rgb.transpose(2, 0, 1))
    rgba = values(4, 4, 5).transpose(1, 2, 0)
    assert np.array_equal(read_bands(png(rgba), "a.png").numpy(), rgba.transpose(2, 0, 1))
    deep = values(1, 4, 5, "u2")
    assert np.allclose(read_bands(png(deep[0]), "a.png", white=1000), np.minimum(deep / 1000, 1))


def test_values_choice() -> None:
    image = values(6, 8, 8)
    data = tiff(image)
    assert np.array_equal(read_bands(data, "a.tif", [5, 0, 5]).numpy(), image[[5, 0, 5]])
    assert np.array_equal(read_bands(data, "a.tif", [2], white=10).numpy(), image[[2]])
    white = tiff(image[:1], t262=0)
    assert np.array_equal(read_bands(white, "a.tif").numpy(), 255 - image[:1])


def test_values_fit() -> None:
    """Bands are scaled one by one, as colours are."""
    rgb = np.add.outer(np.arange(30), np.arange(40))[..., None] + np.array([0, 50, 100])
    data = png(rgb.astype(np.uint8))
    for fit in (Fit(15), Fit(15, square=True)):
        assert torch.equal(read_bands(data, "a.png", fit=fit), decode(data, "a.png", fit))
    deep = read_bands(tiff(values(5, 30, 40, "u2")), "a.tif", fit=Fit(10))
    assert deep.shape == (5, 10, 13)
    assert 0 <= float(deep.min()) < float(deep.max()) <= 1


def test_values_files(tmp_path: Path) -> None:
    images = [values(5, 6, 7), values(5, 6, 7) // 2, values(5, 8, 7), values(4, 6, 7), values(5, 6, 7, "u2")]
    for k, image in enumerate(images):
        (tmp_path / f"{k}.tif").write_bytes(tiff(image))
    files = pickle.loads(
        pickle.dumps(BandFiles(FolderStore(str(tmp_path), [f"{k}.tif" for k in range(5)]), (4, 1)))
    )
    assert len(files) == 5
    assert files.shape is None
    both = files.read([1, 0])
    assert isinstance(both, torch.Tensor)
    assert np.array_equal(both.numpy(), np.stack([images[1][[4, 1]], images[0][[4, 1]]]))
    assert [tuple(one.shape) for one in files.read([0, 2])] == [(2, 6, 7), (2, 8, 7)]
    assert torch.equal(files.take([2])[0], files[2])
    assert tuple(files.read([]).shape) == (0, 0, 0, 0)  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"3\.tif: band 4"):
        files.read([0, 3])
    with pytest.raises(InputError, match=r"4\.tif: 2 bands of 16 bits"):
        files.read([0, 4])


def test_degenerate() -> None:
    one = values(1, 1, 1)
    for data in (tiff(one), tiff(one, tile=(16, 16)), tiff(one, compression=5)):
        assert np.array_equal(read_bands(data, "a.tif").numpy(), one)
    zero = np.zeros((2, 4, 4), np.float32)
    assert float(read_bands(tiff(zero), "a.tif").sum()) == 0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is empty"),
        (b"hello", "not a JPEG"),
        (b"II*\0", "cut short"),
        (tiff(values(2, 4, 4))[:60], "cut short"),
        (tiff(values(2, 4, 4), t259=7), "compression JPEG is not read"),
        (tiff(values(2, 4, 4), t259=50000), "Zstandard"),
        (tiff(values(2, 4, 4), t317=3), "predictor 3"),
        (tiff(values(2, 4, 4), t339=[2, 2]), "8 bits .signed. are not read"),
        (tiff(values(2, 4, 4), t258=[8, 16]), "8 and 16 bits"),
        (tiff(values(1, 4, 4), t262=3), "palette"),
        (tiff(values(2, 4, 4), t274=6), "unusual order"),
        (tiff(values(2, 4, 4), t256=5), "pieces|bytes"),
        (tiff(values(2, 4, 4), t257=0), "claims"),
        (tiff(values(2, 4, 4), t278=4), "pieces"),
        (tiff(values(2, 4, 4), t256=30000, t257=30000), "pixels than|bomb|limit"),
        (tiff(values(2, 4, 4), t256=9000, t257=9000), "bomb"),
        (tiff(values(2, 4, 4), compression=8, t279=[9, 9]), "damaged|a piece has"),
        (tiff(np.full((1, 2, 2), np.nan, "f4")), "not finite"),
        (tiff(np.full((1, 2, 2), 3, "f4")), "floats from 3 to 3"),
        (tiff(np.full((1, 2, 2), -0.1, "f4")), "floats from -0.1"),
    ],
)
def test_errors(data: bytes, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        read_bands(data, "place/a.tif")
    assert "place/a.tif" in str(caught.value)


def test_errors_choice() -> None:
    data = tiff(values(2, 4, 4))
    with pytest.raises(InputError, match="band 2; it has the bands 0 to 1"):
        read_bands(data, "a.tif", [0, 2])
    with pytest.raises(InputError, match="empty"):
        read_bands(data, "a.tif", [])
    with pytest.raises(InputError, match="white must be positive"):
        read_bands(data, "a.tif", white=0)


@given(st.integers(0, 400), st.integers(0, 255), st.sampled_from([1, 5, 8]))
def test_any_damage(place: int, byte: int, compression: int) -> None:
    """One wrong byte gives an image or an InputError, nothing else."""
    data = bytearray(tiff(values(3, 9, 8, "u2"), compression=compression))
    data[place % len(data)] = byte
    found = None
    with suppress(InputError):
        found = read_bands(bytes(data), "a.tif")
    assert found is None or found.ndim == 3
