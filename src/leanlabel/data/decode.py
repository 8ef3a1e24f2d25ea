"""From the bytes of one image file to uint8 RGB pixels of a wanted size, or one error that names the file."""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from leanlabel.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""Endings of image files that are read, in lower case."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")
"""What Pillow may take the contents for; the contents decide, not the ending."""
MOST_PIXELS = 89_478_485
"""Limit of pixels of one image where Pillow's own (Image.MAX_IMAGE_PIXELS, the same number) was switched off."""
MOST_GROWTH = 10_000
"""Pixels that one byte of a file may stand for, beyond a few million; a white page of one bit per pixel needs 8,300."""
_SPARE = 4_000_000
_ORIENTATION = 0x0112
_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
    7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
_TURNED = (5, 6, 7, 8)
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Fit:
    """Size that images are brought to when they are read.

    Args:
        resize: the shorter side is scaled down to this many pixels, antialiased; None leaves sizes alone.
        square: cut the middle resize x resize pixels out; smaller images are scaled up to fill it. Needs `resize`.
    """

    resize: int | None = None
    square: bool = False

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"resize must be at least 1, got {self.resize}")
        if self.square and self.resize is None:
            raise ValueError("square needs resize, the side of the square")

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after scaling, before the middle is cut out.

        >>> Fit(100).scaled(400, 200), Fit(100).scaled(50, 80), Fit(100, square=True).scaled(50, 80)
        ((200, 100), (50, 80), (100, 160))
        """
        short = min(width, height)
        if self.resize is None or short == self.resize or (short < self.resize and not self.square):
            return width, height
        return tuple(max(self.resize, round(side * self.resize / short)) for side in (width, height))  # type: ignore[return-value]

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the result.

        >>> Fit(100, square=True).size(400, 200)
        (100, 100)
        """
        return (self.resize, self.resize) if self.square and self.resize else self.scaled(width, height)


AS_IS = Fit()


@dataclass(frozen=True)
class Header:
    """What the head of a file says.

    Args:
        width: pixels, upright (after the orientation that a camera noted).
        height: pixels, upright.
        mode: Pillow's name of the pixel format: "RGB", "L", "P", "CMYK", "I;16", ...
        format: Pillow's name of the file format: "JPEG", "PNG", ...
    """

    width: int
    height: int
    mode: str
    format: str


def decode(data: bytes, where: str, fit: Fit = AS_IS) -> Tensor:
    """Decode one image.

    Grey becomes three equal channels; CMYK becomes RGB without a colour profile; what is transparent lies on white;
    16-bit grey v becomes round(v / 257), the full range and not the range that the image uses; of 16-bit colour the
    upper byte is kept (as Pillow does); the orientation that a camera noted is applied; of several frames the first
    is used.

    Args:
        data: contents of a JPEG, PNG, BMP, GIF, WebP or TIFF file.
        where: name of the file, for messages.
        fit: wanted size.

    Returns:
        (3, h, w) uint8, RGB.

    Raises:
        InputError: not such an image, damaged, cut short, or larger than Pillow's limit of pixels.
    """
    return decode_with_header(data, where, fit)[0]


def decode_with_header(data: bytes, where: str, fit: Fit = AS_IS) -> tuple[Tensor, Header]:
    """Decode one image and say what its file was: :func:`decode` and :func:`read_header` at once."""

    def look() -> tuple[Tensor, Header]:
        image = _open(data, where)
        header = _header(image)
        return _pixels(image, where, fit), header

    return _guarded(look, where)


def fit_pixels(pixels: np.ndarray, fit: Fit) -> Tensor:
    """Bring (h, w, 3) uint8 pixels to a wanted size; (3, h', w') uint8."""
    height, width = pixels.shape[:2]
    return _tensor(_fitted(_pillow().fromarray(pixels), fit, width, height))


def read_header(data: bytes, where: str) -> Header:
    """Read size and format without decoding pixels.

    Raises:
        InputError: as for :func:`decode`, as far as the head of the file shows it.
    """

    return _guarded(lambda: _header(_open(data, where)), where)


def try_decoding(data: bytes, where: str) -> Header:
    """Decode an image only to see whether it can be: JPEG files at an eighth of their size, which costs less.

    Raises:
        InputError: as for :func:`decode`.
    """

    def look() -> Header:
        image = _open(data, where)
        header = _header(image)
        if header.format == "JPEG":
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
        else:
            image.load()
            header = _header(image)  # a PNG may note its orientation behind the pixels
        _rgb(image, where)
        return header

    return _guarded(look, where)


@functools.cache
def _pillow() -> Any:
    """Pillow's Image; imported late, so that packed arrays are read without it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            "Image files need Pillow, which is not installed.",
            'Install it with: pip install "leanlabel[vision]"',
        ) from error
    for plugin in ("Jpeg", "Mpo", "Png", "Bmp", "Gif", "WebP", "Tiff"):  # else Pillow would load all it has
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    return Image


def _guarded(call: Callable[[], Value], where: str) -> Value:
    try:
        return call()
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{where}: this image does not fit into memory.") from error
    except Exception as error:  # damage surfaces as almost anything: SyntaxError, struct.error, KeyError, ...
        name = type(error).__name__
        if name.startswith("DecompressionBomb"):
            raise InputError(f"{where}: {_too_many()}") from error
        if name == "UnidentifiedImageError":
            reason = "not a JPEG, PNG, BMP, GIF, WebP or TIFF image"
        else:
            reason = f"damaged or cut short ({str(error)[:200] or name})"
        raise InputError(f"{where}: {reason}.") from error


def _too_many() -> str:
    return f"more pixels than the limit of {_most_pixels():,}; it may be a bomb."


def _most_pixels() -> int:
    return _pillow().MAX_IMAGE_PIXELS or MOST_PIXELS


def _open(data: bytes, where: str) -> Any:
    if not data:
        raise InputError(f"{where}: the file is empty.")
    try:
        image = _pillow().open(io.BytesIO(data), formats=FORMATS)
    except OSError as error:
        if data[:4] not in (b"II*\0", b"MM\0*") or type(error).__name__ != "UnidentifiedImageError":
            raise
        raise InputError(
            f"{where}: a TIFF that cannot be read as RGB; segmentation reads any bands (data.bands: [0, 1])."
        ) from error
    # Pillow itself only warns up to twice its limit.
    pixels = image.width * image.height
    if pixels > _most_pixels():
        raise InputError(f"{where}: {image.width} x {image.height} pixels, {_too_many()}")
    # Memory for all pixels is reserved before the first one is decoded.
    if pixels > MOST_GROWTH * len(data) + _SPARE:
        raise InputError(
            f"{where}: {image.width} x {image.height} pixels in {len(data)} bytes; damaged, or a bomb."
        )
    if image.width < 1 or image.height < 1:
        raise InputError(f"{where}: {image.width} x {image.height} pixels.")
    return image


def _header(image: Any) -> Header:
    width, height = image.size
    # Pillow turns TIFF itself, and looks for the note in a PNG by decoding all of it.
    noted = image.format not in ("TIFF", "PNG") or (image.format == "PNG" and "exif" in image.info)
    if noted and _orientation(image) in _TURNED:
        width, height = height, width
    return Header(width, height, image.mode, image.format)


def _orientation(image: Any) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken note of the camera does not spoil the picture
        return 1


def _pixels(image: Any, where: str, fit: Fit) -> Tensor:
    module = _pillow()
    width, height = image.size
    wanted = fit.scaled(width, height)
    if wanted != (width, height) and image.format == "JPEG":
        # A JPEG decodes at 1/2, 1/4 or 1/8 of its size for less; twice the wanted size is left for the filter.
        image.draft(None, (2 * wanted[0], 2 * wanted[1]))
    image.load()
    orientation = _orientation(image)
    turned = image
    if orientation in _TURNS:
        turned = image.transpose(getattr(module.Transpose, _TURNS[orientation]))
    if image.format != "TIFF" and orientation in _TURNED:
        width, height = height, width
    return _tensor(_fitted(_rgb(turned, where), fit, width, height))


def _rgb(image: Any, where: str) -> Any:
    module = _pillow()
    if image.mode in _SIXTEEN or image.mode == "I":
        return _from_sixteen(image, where)
    if image.mode == "F":
        raise InputError(
            f"{where}: pixels are floating-point numbers, whose black and white are not known.",
            "Write the images with 8 or 16 bits.",
        )
    clear = "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    if clear or image.mode in ("LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        white = module.new("RGBA", image.size, (255, 255, 255, 255))
        image = module.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_sixteen(image: Any, where: str) -> Any:
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 0xFFFF):
        raise InputError(
            f"{where}: pixels from {values.min()} to {values.max()} are more than 16 bits.",
            "Write the images with 8 or 16 bits.",
        )
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return _pillow().fromarray(grey).convert("RGB")


def _fitted(image: Any, fit: Fit, width: int, height: int) -> Any:
    module = _pillow()
    wanted = fit.scaled(width, height)
    if wanted != image.size:
        image = image.resize(wanted, module.Resampling.BICUBIC, reducing_gap=3.0)
    side = fit.resize
    if not fit.square or side is None:
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())
