"""The container of images, and how the bytes of one file become pixels."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanlabel.data.decode import Fit, decode, read_header, try_decoding
from leanlabel.data.image_stores import FolderStore, PackedStore, join_stores
from leanlabel.data.images import Images, PixelArray, PixelFiles, fingerprint
from leanlabel.errors import InputError

ARRAY = torch.arange(5 * 3 * 4 * 6, dtype=torch.int64).remainder(251).to(torch.uint8).view(5, 3, 4, 6)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(width: int = 6, height: int = 4) -> Image.Image:
    """A picture whose four corners differ."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, width)
    pixels[..., 1] = np.linspace(0, 250, height)[:, None]
    pixels[..., 2] = 99
    return Image.fromarray(pixels)


def saved(folder: Path, sizes: list[tuple[int, int]]) -> FolderStore:
    for number, size in enumerate(sizes):
        picture(*size).save(folder / f"{number}.png")
    return FolderStore(str(folder), [f"{number}.png" for number in range(len(sizes))])


# ---------------------------------------------------------------------------------------------------- container


def test_values_array() -> None:
    images = Images("a", PixelArray(ARRAY), y=torch.tensor([0, 1, -100, 1, 2]), ids=list("abcde"))
    assert len(images) == 5
    assert images.shape == (3, 4, 6)
    assert images.num_classes == 3
    assert images.labelled.tolist() == [0, 1, 3, 4]
    assert torch.equal(images[2], ARRAY[2])
    for rows in ([4, 0, 0], torch.tensor([4, 0, 0])):
        assert torch.equal(images.read(rows), ARRAY[[4, 0, 0]])  # type: ignore[arg-type]


def test_values_take() -> None:
    domain = torch.tensor([0, 1, 0, 1, 0])
    images = Images(
        "a", PixelArray(ARRAY), torch.arange(5), None, {"train": torch.tensor([0])}, list("abcde"), domain
    )
    few = images.take(torch.tensor([3, 1]))
    assert torch.equal(few.read([0, 1]), ARRAY[[3, 1]])  # type: ignore[arg-type]
    assert few.y is not None
    assert few.y.tolist() == [3, 1]
    assert few.ids == ["d", "b"]
    assert few.domain is not None
    assert few.domain.tolist() == [1, 1]
    assert few.splits == {}
    assert len(images.splits) == 1


def test_values_files(tmp_path: Path) -> None:
    """Files of different sizes come as a list, of one size as one tensor, in the order asked for."""
    images = Images("f", PixelFiles(saved(tmp_path, [(6, 4), (6, 4), (5, 5)] + [(6, 4)] * 9)))
    assert images.shape is None
    read = images.read([0, 2])
    assert isinstance(read, list)
    assert [one.shape for one in read] == [(3, 4, 6), (3, 5, 5)]
    whole = images.read([1, 0, *range(3, 12)])  # enough for the threads
    assert isinstance(whole, torch.Tensor)
    assert whole.shape == (11, 3, 4, 6)
    assert torch.equal(whole[0], images[1])
    assert torch.equal(images.take([2]).pixels[0], images[2])
    assert torch.equal(images[-1], images[11])
    assert len(images.read([])) == 0


def test_values_fingerprint(tmp_path: Path) -> None:
    """Everything but name and facts counts, and nothing of it is mistaken for another part."""
    base = Images("a", PixelArray(ARRAY), torch.arange(5), ids=list("abcde"))
    other = ARRAY.clone()
    other[4, 2, 3, 5] ^= 1
    files = PixelFiles(saved(tmp_path, [(6, 4)] * 5))
    changed = [
        Images("a", PixelArray(other), base.y, ids=base.ids),
        Images("a", PixelArray(ARRAY.reshape(5, 3, 6, 4)), base.y, ids=base.ids),
        Images("a", base.pixels, torch.arange(5).flip(0), ids=base.ids),
        Images("a", base.pixels, None, domain=torch.arange(5), ids=base.ids),
        Images("a", base.pixels, base.y, list("vwxyz"), ids=base.ids),
        Images("a", base.pixels, base.y, ids=list("abcdf")),
        Images("a", base.pixels, base.y, ids=base.ids, splits={"train": torch.arange(2)}),
        Images("a", files, base.y, ids=base.ids),
        Images("a", PixelFiles(files.store, Fit(2)), base.y, ids=base.ids),
    ]
    found = [fingerprint(one) for one in (base, *changed)]
    assert len(set(found)) == len(found)
    assert found[0] == fingerprint(
        Images("b", PixelArray(ARRAY.clone()), base.y, ids=base.ids, facts={"x": 1})
    )
    assert found[0] == "38f5a8b2d54433c1dfded11ea191007d6888fa6f818ba61b708f6afd261a910c"
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes() + b"\0")
    assert fingerprint(changed[-2]) != found[-2]


def test_state_pickle(tmp_path: Path) -> None:
    """Sets of every kind of place can be sent to another process."""
    folder = saved(tmp_path, [(6, 4), (5, 5)])
    data = encoded(picture())
    content = np.frombuffer(data * 2, np.uint8)
    packed = PackedStore(content, np.array([0, len(data)]), np.array([len(data)] * 2), "p", np.arange(2))
    joined = join_stores([folder, packed])
    images = Images("x", PixelFiles(joined))
    again = pickle.loads(pickle.dumps(images))
    assert len(again) == 4
    for row in range(3):
        assert torch.equal(again[row], images[row])
    assert joined.take([2, 0]).where(0) == "p, image 0"
    with pytest.raises(InputError, match="p, image 1: the file is empty"):
        images.read([3])


def test_errors_container() -> None:
    pixels = PixelArray(ARRAY)
    for wrong, message in (
        (lambda: PixelArray(ARRAY.float()), "uint8"),
        (lambda: PixelArray(ARRAY[:, :1]), r"\(5, 1, 4, 6\)"),
        (lambda: Images("a", pixels, torch.zeros(4, dtype=torch.int64)), r"y must be \(5,\)"),
        (lambda: Images("a", pixels, domain=torch.zeros(5)), r"domain must be \(5,\) int64"),
        (lambda: Images("a", pixels, ids=["a"]), "1 ids for 5 images"),
        (lambda: Images("a", pixels, splits={"train": torch.tensor([5])}), "outside"),
        (lambda: Images("a", pixels, splits={"train": torch.zeros(1)}), "split train must be"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


# ----------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_values_formats(kind: str) -> None:
    """Every format gives the same picture, exactly where it is lossless."""
    image = picture(16, 8)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    found = decode(encoded(image, kind, **options), "x")
    assert found.shape == (3, 8, 16)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    wanted = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    tolerance = {"JPEG": 14, "GIF": 30}.get(kind, 0)
    assert int((found.int() - wanted.int()).abs().max()) <= tolerance


def _alpha() -> Image.Image:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (0, 0, 0, 51))
    return image


def _palette() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 0, 0, 0])
    image.putpixel((1, 0), 1)
    return encoded(image, transparency=1)


def _sixteen() -> bytes:
    return encoded(Image.fromarray(np.array([[0, 65535, 32768, 300]], np.uint16)))


CONVERSIONS: dict[str, tuple[Callable[[], bytes], list[list[int]]]] = {
    # name -> file, RGB of its pixels in one row
    "grey": (lambda: encoded(Image.new("L", (1, 1), 7)), [[7, 7, 7]]),
    "black and white": (lambda: encoded(Image.new("1", (1, 1), 1)), [[255, 255, 255]]),
    "alpha": (lambda: encoded(_alpha()), [[10, 20, 30], [204, 204, 204]]),
    "grey with alpha": (lambda: encoded(Image.new("LA", (1, 1), (0, 51))), [[204, 204, 204]]),
    "palette with a transparent colour": (_palette, [[10, 20, 30], [255, 255, 255]]),
    "rgb with a transparent colour": (
        lambda: encoded(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)),
        [[255, 255, 255]],
    ),
    "16 bits": (_sixteen, [[0] * 3, [255] * 3, [128] * 3, [1] * 3]),
    "16 bits in TIFF": (
        lambda: encoded(Image.fromarray(np.array([[65535, 514]], np.uint16)), "TIFF"),
        [[255] * 3, [2] * 3],
    ),
    "32 bits": (lambda: encoded(Image.fromarray(np.array([[65535]], np.int32)), "TIFF"), [[255] * 3]),
    "cmyk": (lambda: encoded(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF"), [[0, 0, 0]]),
    "cmyk jpeg": (
        lambda: encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG", quality=100),
        [[255, 255, 255]] * 8,
    ),
    "first of two frames": (
        lambda: encoded(
            Image.new("RGB", (1, 1), (255, 0, 0)),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (1, 1))],
        ),
        [[255, 0, 0]],
    ),
}


@pytest.mark.parametrize("name", list(CONVERSIONS))
def test_values_conversions(name: str) -> None:
    make, wanted = CONVERSIONS[name]
    found = decode(make(), "x")
    assert found[:, 0].T.tolist() == wanted
    assert try_decoding(make(), "x").width == len(wanted)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_reference_orientation(kind: str, orientation: int) -> None:
    """What the camera noted is applied, as Pillow's own function does, and the head tells the upright size."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    data = encoded(picture(24, 16), kind, exif=exif.tobytes() if kind != "TIFF" else exif, **options)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    found = decode(data, "x")
    assert torch.equal(found, torch.from_numpy(np.array(wanted)).permute(2, 0, 1))
    upright = (16, 24) if orientation > 4 else (24, 16)
    for look in (read_header, try_decoding):
        assert (look(data, "x").width, look(data, "x").height) == upright
    small = decode(data, "x", Fit(8))
    assert small.shape == (3, *((12, 8) if orientation > 4 else (8, 12)))


def test_values_fit() -> None:
    data = encoded(picture(40, 20))
    assert decode(data, "x", Fit(10)).shape == (3, 10, 20)
    assert decode(data, "x", Fit(30)).shape == (3, 20, 40)  # never larger
    assert decode(data, "x", Fit(30, square=True)).shape == (3, 30, 30)
    square = decode(data, "x", Fit(20, square=True))
    assert torch.equal(square, decode(data, "x")[:, :, 10:30])
    # Antialiased: thin stripes become grey, not black or white.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    grey = decode(encoded(Image.fromarray(stripes)), "x", Fit(8)).float()
    assert float((grey - 127.5).abs().max()) < 20


def test_reference_fit_jpeg() -> None:
    """A JPEG that is decoded small and then scaled is close to one that is only scaled, and of the same size."""
    image = picture(1001, 667)
    data = encoded(image, "JPEG", quality=95)
    found = decode(data, "x", Fit(50)).float()
    whole = Image.open(io.BytesIO(data)).resize((75, 50), Image.Resampling.BICUBIC)
    assert found.shape == (3, 50, 75)
    assert float((found - torch.from_numpy(np.array(whole)).permute(2, 0, 1)).abs().mean()) < 1.5


def test_errors_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(picture(64, 64), "JPEG")
    floats = encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF")
    wide = encoded(Image.fromarray(np.array([[0, 10**6]], np.int32)), "TIFF")
    for data, message in (
        (b"", "cat: the file is empty"),
        (b"hello", "cat: not a JPEG, PNG"),
        (whole[: len(whole) // 2], r"cat: damaged or cut short \("),
        (encoded(picture(), "PPM"), "cat: not a JPEG, PNG"),
        (floats, "cat: pixels are floating-point numbers"),
        (wide, "cat: pixels from 0 to 1000000"),
    ):
        for look in (decode, try_decoding):
            with pytest.raises(InputError, match=message):
                look(data, "cat")
    header = bytearray(encoded(picture(), "BMP"))
    header[18:26] = (8000).to_bytes(4, "little") * 2
    with pytest.raises(InputError, match=r"cat: 8000 x 8000 pixels in [0-9]+ bytes; damaged, or a bomb"):
        decode(bytes(header), "cat")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for width in (11, 200):  # Pillow itself warns about the first and refuses the second
        with (
            pytest.raises(InputError, match=r"cat: .*more pixels than the limit of 100; it may be a bomb"),
            pytest.warns(Image.DecompressionBombWarning) if width == 11 else io.StringIO(),
        ):
            decode(encoded(Image.new("1", (width, 10))), "cat")
    with pytest.raises(ValueError, match="square needs resize"):
        Fit(square=True)
    with pytest.raises(ValueError, match="at least 1"):
        Fit(0)
