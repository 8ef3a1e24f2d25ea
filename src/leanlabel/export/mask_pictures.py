"""The pictures of one segmented image on disk, and their legend."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leanlabel.data.class_map import ClassMap
from leanlabel.errors import InputError
from leanlabel.evaluation.pictures import overlay, rgb

MASKS, OVERLAYS, CONFIDENCE = "masks", "overlays", "confidence"
"""Folders of what is written for each image."""
KINDS = {"mask": MASKS, "overlay": OVERLAYS, "confidence": CONFIDENCE}
OVERLAY_ENDINGS = {"jpeg": ".jpg", "png": ".png"}
_JPEG_SIDE = 65_500  # longer sides do not fit into a JPEG


@dataclass(frozen=True)
class Form:
    """How masks are written.

    Attributes:
        overlay: kind of the picture of the mask over its image; None for none.
        confidence: whether maps of the confidence are written.
        raw_ids: whether pixels hold the user's own label ids, not numbers of classes.
    """

    overlay: Literal["jpeg", "png"] | None = "jpeg"
    confidence: bool = False
    raw_ids: bool = False


def reading_map(classes: ClassMap, raw_ids: bool) -> ClassMap:
    """The class map that reads what was written: the given one for raw ids, else each class's own number."""
    if raw_ids:
        return classes
    own = {k: k for k in range(len(classes))}
    return replace(
        classes, ids=own, ignored=frozenset(), unlisted="error", by_colour=False, ignored_colours=frozenset()
    )


def write_image(
    folder: Path,
    stem: str,
    labels: np.ndarray,
    p: np.ndarray,
    image: Any,
    classes: ClassMap,
    form: Form,
) -> dict[str, str]:
    """Write the files of one image; kind -> path below the folder."""
    made = {"mask": (f"{MASKS}/{stem}.png", _mask_picture(labels, classes, form.raw_ids))}
    if form.overlay is not None:
        if image is None:
            raise ValueError(f"{stem}: an overlay needs the image")
        ending = OVERLAY_ENDINGS["png" if max(labels.shape) > _JPEG_SIDE else form.overlay]
        picture = _pillow().fromarray(overlay(rgb(image), labels, classes.colours))
        made["overlay"] = (f"{OVERLAYS}/{stem}{ending}", picture)
    if form.confidence:
        level = np.rint(255 * p).astype(np.uint8)
        made["confidence"] = (f"{CONFIDENCE}/{stem}.png", _pillow().fromarray(level))
    for path, picture in made.values():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, **({"quality": 90} if path.endswith(".jpg") else {}))
    return {kind: path for kind, (path, _) in made.items()}


def pixel_values(classes: ClassMap, raw_ids: bool) -> Sequence[int] | None:
    """K values of pixels in the masks; None where colours tell the classes."""
    if not raw_ids:
        return range(len(classes))
    return None if classes.by_colour else classes.raw_ids


def _mask_picture(labels: np.ndarray, classes: ClassMap, raw_ids: bool) -> Any:
    values = pixel_values(classes, raw_ids)
    if values is None:
        return _pillow().fromarray(np.array(classes.colours, dtype=np.uint8)[labels])
    written = np.array(values, dtype=np.uint16)
    if written.max() > 255:
        return _pillow().fromarray(written[labels])
    picture = _pillow().fromarray(written.astype(np.uint8)[labels])
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[written] = classes.colours
    picture.putpalette(palette.tobytes())
    return picture


def legend(classes: ClassMap, values: Sequence[int] | None) -> Any:
    """A picture of the colours with value and name of each class."""
    from PIL import ImageDraw

    font, row, swatch = _font(), 28, 40
    lines = [name if values is None else f"{values[k]}  {name}" for k, name in enumerate(classes.names)]
    lines = [" ".join(line.split())[:60] for line in lines]
    width = round(max(font.getlength(line) for line in lines))
    picture = _pillow().new("RGB", (swatch + width + 36, row * len(lines) + 16), "white")
    pen = ImageDraw.Draw(picture)
    for k, line in enumerate(lines):
        top = 8 + row * k
        pen.rectangle(
            (12, top + 4, 12 + swatch, top + row - 5), fill=classes.colours[k], outline=(90, 90, 90)
        )
        pen.text((24 + swatch, top + row // 2), line, fill="black", font=font, anchor="lm")
    return picture


def _font() -> Any:
    """DejaVu Sans, which has most alphabets, where matplotlib brings it; else Pillow's own."""
    from PIL import ImageFont

    place = find_spec("matplotlib")
    if place is not None and place.origin is not None:
        with suppress(OSError, ImportError):
            return ImageFont.truetype(Path(place.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf", 15)
    return ImageFont.load_default(15)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            "Image files need Pillow, which is not installed.",
            'Install it with: pip install "leanlabel[vision]"',
        ) from error
    return Image
