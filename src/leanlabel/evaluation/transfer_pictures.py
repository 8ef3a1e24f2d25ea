"""Pictures of transfer between domains: what is pasted from one into the other, and images without their style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanlabel.evaluation.pictures import (
    SIDE,
    Colours,
    _array,
    _check_picture,
    _mask,
    _plain,
    overlay,
    png,
    rgb,
    small_map,
    thumbnail,
)

if TYPE_CHECKING:
    from leanlabel.data.class_map import ClassMap

MOST = 4
"""Mixed images that are shown, and images of each domain without their style."""
_PALE = 0.6
"""How much of the white is laid over what was not pasted."""


@dataclass(frozen=True, eq=False)
class Pasted:
    """One mixed image as training makes it.

    Attributes:
        id: name of the image that it was pasted into.
        image: (C, h, w) uint8, or floating point in [0, 1].
        label: (h, w) uint8, 255 = ignore.
        region: (h, w) bool, where the pasted pixels are.
    """

    id: str
    image: Any
    label: Any
    region: Any


@dataclass(frozen=True, eq=False)
class Unstyled:
    """One image, what the decoder makes of its content and its style, and of its content alone.

    Attributes:
        id: its name.
        image, rebuilt, zero: (C, h, w) floating point in [0, 1], of one size.
        error: mean absolute difference of image and rebuilt, as training measures it; None where it is not known.
    """

    id: str
    image: Any
    rebuilt: Any
    zero: Any
    error: float | None = None


def outlined(picture: np.ndarray, region: Any) -> np.ndarray:
    """Draw a line around a region: white on its own edge, black just outside, so that it is seen on any ground.

    Args:
        picture: (h, w, 3) uint8.
        region: (h, w) bool.

    Returns:
        (h, w, 3) uint8, a copy. No line runs along the border of the picture.

    Example:
        >>> region = np.array([[False, True, True, True]])
        >>> outlined(np.full((1, 4, 3), 9, np.uint8), region)[0, :, 0].tolist()
        [0, 255, 9, 9]
    """
    _check_picture(picture)
    inside = _region(region, picture.shape[:2])
    found = picture.copy()
    found[inside & _beside(~inside)] = 255
    found[~inside & _beside(inside)] = 0
    return found


def pasted_only(picture: np.ndarray, region: Any) -> np.ndarray:
    """Turn everything pale that is not in a region, and outline the region.

    Takes and returns (h, w, 3) uint8; the region is (h, w) bool.
    """
    _check_picture(picture)
    inside = _region(region, picture.shape[:2])
    pale = np.rint(picture * (1 - _PALE) + 255 * _PALE).astype(np.uint8)
    return outlined(np.where(inside[..., None], picture, pale), inside)


def transfer_figure(
    classes: ClassMap,
    *,
    term: str,
    around: str,
    examples: Sequence[Pasted],
    tail: Sequence[bool] | None = None,
    pasted: Sequence[int] | None = None,
    source_share: Sequence[float] | None = None,
    target_share: Sequence[float] | None = None,
    side: int = SIDE,
    most: int = MOST,
) -> dict[str, Any]:
    """Plain data behind the pictures of pasted content.

    Args:
        classes: K names and colours.
        term: the term that pastes.
        around: where labels of what is not pasted come from, a sentence; empty where nobody knows.
        examples: mixed images; the first ones are shown.
        tail: K, whether a class may be pasted; None: any.
        pasted: K numbers of pixels that training pasted, or None.
        source_share: K shares of the labelled pixels, or None.
        target_share: K shares of the target's labels that were learned from, or None.
        side: longest side of a picture.
        most: mixed images that are shown.

    Returns:
        "term", "around", "classes" (name, colour, tail, pasted, pasted_share, source_share, target_share) and
        "examples" (id, share that is pasted, names of the classes pasted, and PNGs in base64: image, pasted, label).
        What is not known is None.

    Raises:
        ValueError: numbers of classes, or shapes, differ.
    """
    count = len(classes.names)
    total = sum(pasted) if pasted is not None else 0
    columns: dict[str, Sequence[Any] | None] = {
        "tail": None if tail is None else [bool(one) for one in tail],
        "pasted": None if pasted is None else [int(one) for one in pasted],
        "pasted_share": None if pasted is None or not total else [_plain(one / total) for one in pasted],
        "source_share": None if source_share is None else [_plain(one) for one in source_share],
        "target_share": None if target_share is None else [_plain(one) for one in target_share],
    }
    for key, values in columns.items():
        if values is not None and len(values) != count:
            raise ValueError(f"{key} has {len(values)} values for {count} classes")
    return {
        "term": term,
        "around": around,
        "classes": [
            {
                "name": str(name),
                "colour": [int(one) for one in colour],
                **{key: None if values is None else values[k] for key, values in columns.items()},
            }
            for k, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True))
        ],
        "examples": [_mix(one, classes, side) for one in examples[:most]],
    }


def _mix(one: Pasted, classes: ClassMap, side: int) -> dict[str, Any]:
    whole = rgb(one.image)
    label = _mask("label", one.label, whole.shape[:2])
    region = _region(one.region, whole.shape[:2])
    image = thumbnail(whole, side)
    height, width = image.shape[:2]
    small, inside = small_map(label, height, width), small_map(region, height, width)
    names: Colours = classes.colours
    return {
        "id": one.id,
        "share": _plain(region.mean()),
        "classes": [
            str(classes.names[k]) for k in np.unique(label[region]).tolist() if k < len(classes.names)
        ],
        "image": png(image),
        "pasted": png(pasted_only(image, inside)),
        "label": png(outlined(overlay(image, small, names, 0.6), inside)),
    }


def zero_style_figure(
    source: Sequence[Unstyled], target: Sequence[Unstyled], *, side: int = SIDE, most: int = MOST
) -> dict[str, Any]:
    """Plain data behind the pictures of content without style.

    Args:
        source, target: images of both domains; the first ones are shown.
        side: longest side of a picture.
        most: images of each domain that are shown.

    Returns:
        "domains": name ("source", "target") and "examples" (id, error, and PNGs in base64: image, rebuilt, zero).
    """
    return {
        "domains": [
            {"name": name, "examples": [_unstyled(one, side) for one in listed[:most]]}
            for name, listed in (("source", source), ("target", target))
            if listed
        ]
    }


def _unstyled(one: Unstyled, side: int) -> dict[str, Any]:
    pictures = {key: thumbnail(rgb(getattr(one, key)), side) for key in ("image", "rebuilt", "zero")}
    if len({picture.shape for picture in pictures.values()}) > 1:
        raise ValueError(f"{one.id}: pictures of different sizes")
    return {
        "id": one.id,
        "error": None if one.error is None else _plain(one.error),
        **{key: png(picture) for key, picture in pictures.items()},
    }


def _region(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    region = _array(values)
    if region.shape != tuple(shape) or region.dtype != np.bool_:
        raise ValueError(f"region must be {tuple(shape)} bool, got {region.shape} {region.dtype}")
    return region


def _beside(region: np.ndarray) -> np.ndarray:
    """Pixels with one of the region above, below, left or right of them."""
    wide = np.pad(region, 1)
    return wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
