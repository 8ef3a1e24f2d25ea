"""Pictures of segmentations for people: masks in colour, masks over images, errors; the data of a run's figure.

A picture is (h, w, 3) uint8. All functions raise ValueError for shapes, types or values that do not fit.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from leanlabel.evaluation import neighbours

if TYPE_CHECKING:
    from leanlabel.data.class_map import ClassMap

IGNORE = 255
SIDE = 240
"""Longest side of a picture in a figure, in pixels."""
WORST, BEST, TYPICAL = 3, 3, 2
# Dark red: darker than everything else in a picture of errors, in colour, in grey, and to the colour-blind.
WRONG = (150, 16, 32)
_PALEST = 205
_HATCH = ((232, 232, 232), (120, 120, 120))
_BLOCK = 1 << 20  # pixels that are mixed at a time

Colours = Sequence[Sequence[int]]


def rgb(image: Any) -> np.ndarray:
    """Show an image of any bands: one band becomes grey, of more than three the first three are shown.

    Args:
        image: (C, h, w) uint8, or floating point in [0, 1] (cut at the ends); array or tensor.

    Returns:
        (h, w, 3) uint8.

    Example:
        >>> rgb(np.full((1, 1, 2), 0.5, dtype=np.float32)).tolist()
        [[[128, 128, 128], [128, 128, 128]]]
    """
    bands = _array(image)
    if bands.ndim != 3 or 0 in bands.shape:
        raise ValueError(f"image must be (C, h, w), got {bands.shape}")
    bands = bands[:3] if len(bands) >= 3 else np.repeat(bands[:1], 3, axis=0)
    if np.issubdtype(bands.dtype, np.floating):
        bands = np.rint(255 * np.clip(np.nan_to_num(bands), 0, 1)).astype(np.uint8)
    if bands.dtype != np.uint8:
        raise ValueError(f"image must be uint8 or floating point, got {bands.dtype}")
    return np.ascontiguousarray(bands.transpose(1, 2, 0))


def png(array: np.ndarray) -> str:
    """Encode a picture as PNG in base64, without a prefix.

    Example:
        >>> png(np.zeros((2, 2, 3), np.uint8))[:11]
        'iVBORw0KGgo'
    """
    _check_picture(array)
    pixels = torch.from_numpy(np.array(array)).permute(2, 0, 1)
    return base64.b64encode(neighbours.png(pixels)).decode("ascii")


def thumbnail(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Scale a picture down until its longer side has ``side`` pixels, antialiased; smaller ones stay as they are.

    Takes and returns (h, w, 3) uint8.
    """
    _check_picture(image)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return neighbours.thumbnail(pixels, side).permute(1, 2, 0).contiguous().numpy()


def small_map(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring a map (h, w) of any type to (height, width): row i shows row floor((i + 0.5) h / height)."""
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(np.int64)
    return values[rows[:, None], columns[None]]


def palette_picture(classes: Any, colours: Colours, ignore: int = IGNORE) -> np.ndarray:
    """Paint a mask; what is ignored is hatched in grey.

    Args:
        classes: (h, w) uint8, 0..K-1 or ``ignore``.
        colours: K of (red, green, blue), 0..255.
        ignore: value of pixels without a class.

    Example:
        >>> palette_picture(np.array([[1, 0]], np.uint8), [(0, 0, 255), (255, 0, 0)]).tolist()
        [[[255, 0, 0], [0, 0, 255]]]
    """
    mask = _mask("classes", classes)
    painted = _table(mask, colours, ignore)[mask]
    return _hatched(painted, mask == ignore)


def overlay(
    image: np.ndarray, classes: Any, colours: Colours, alpha: float = 0.5, ignore: int = IGNORE
) -> np.ndarray:
    """Lay the colours of a mask over its image; ignored pixels show the image as it is.

    value = round((1 - a) image + a colour), with a = alpha to the nearest 1/256.

    Args:
        image: (h, w, 3) uint8.
        classes: (h, w) uint8, 0..K-1 or ``ignore``.
        colours: K of (red, green, blue).
        alpha: weight of the colours, 0..1.
        ignore: value of pixels without a class.

    Example:
        >>> overlay(np.full((1, 1, 3), 100, np.uint8), np.zeros((1, 1), np.uint8), [(200, 0, 100)]).tolist()
        [[[150, 50, 100]]]
    """
    _check_picture(image)
    mask = _mask("classes", classes, image.shape[:2])
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    table, weight = _table(mask, colours, ignore), round(256 * alpha)
    mixed = np.empty_like(image)
    step = max(1, _BLOCK // mask.shape[1])
    for start in range(0, len(mask), step):
        rows = slice(start, start + step)
        own, over = image[rows].astype(np.uint16), table[mask[rows]].astype(np.uint16)
        mixed[rows] = np.where(
            (mask[rows] == ignore)[..., None], own, (own * (256 - weight) + over * weight + 128) >> 8
        )
    return mixed


def error_picture(
    prediction: Any, label: Any, image: np.ndarray | None = None, ignore: int = IGNORE
) -> np.ndarray:
    """Mark wrong pixels dark red on a pale ground, and hatch what is not scored in grey.

    Everything else is lighter than any wrong pixel, so that the picture reads without colour.

    Args:
        prediction: (h, w) uint8.
        label: (h, w) uint8; ``ignore`` is not scored.
        image: (h, w, 3) uint8, shown in pale grey where the prediction is right; None leaves these pixels white.
        ignore: value of labels without a class.
    """
    truth = _mask("label", label)
    found = _mask("prediction", prediction, truth.shape)
    picture = np.full((*truth.shape, 3), 255, dtype=np.uint8)
    if image is not None:
        _check_picture(image)
        if image.shape[:2] != truth.shape:
            raise ValueError(f"image {image.shape[:2]} and label {truth.shape} differ in size")
        grey = image @ np.array([0.299, 0.587, 0.114])
        picture[:] = np.rint(_PALEST + grey * (255 - _PALEST) / 255).astype(np.uint8)[..., None]
    picture[(found != truth) & (truth != ignore)] = WRONG
    return _hatched(picture, truth == ignore)


def grey_picture(values: Any, most: float = 1.0) -> np.ndarray:
    """Show a map (h, w) in grey: 0, and what is not finite, is black; ``most`` > 0 and above is white."""
    level = np.nan_to_num(_array(values).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0) / most
    return np.repeat(np.rint(255 * np.clip(level, 0, 1)).astype(np.uint8)[..., None], 3, axis=2)


@dataclass(frozen=True)
class ImageScore:
    """How well one image was segmented.

    Attributes:
        id: name of the image.
        miou, accuracy: mean over the classes in its label or prediction, share of pixels that are right; None where
            no pixel is scored.
    """

    id: str
    miou: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Shown:
    """One image with what belongs to it, at full size.

    Attributes:
        image: (C, h, w) uint8, or floating point in [0, 1].
        label, prediction: (h, w) uint8, 255 = ignore.
        confidence, weight: (h, w) in [0, 1], (h, w) >= 0 (of pixels in the loss), or None.
    """

    image: Any
    label: Any
    prediction: Any
    confidence: Any = None
    weight: Any = None


def image_score(name: str, prediction: Any, label: Any, classes: int, ignore: int = IGNORE) -> ImageScore:
    """Score one image: IoU_c = |prediction_c and label_c| / |prediction_c or label_c|, mean over classes that occur.

    Masks are (h, w) uint8; pixels whose label is ``ignore`` are left out, ``classes`` is K.

    Example:
        >>> label, found = np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 1, 1, 1]], np.uint8)
        >>> image_score("a.png", found, label, 2)
        ImageScore(id='a.png', miou=0.5, accuracy=0.6666666666666666)
    """
    truth = _mask("label", label)
    found = _mask("prediction", prediction, truth.shape)
    kept = truth != ignore
    truth, found = truth[kept].astype(np.int64), found[kept].astype(np.int64)
    if not len(truth):
        return ImageScore(name, None, None)
    if max(truth.max(), found.max()) >= classes:
        raise ValueError(f"{name}: class {max(truth.max(), found.max())}, there are {classes}")
    table = np.bincount(truth * classes + found, minlength=classes**2).reshape(classes, classes)
    values = [one for one in table_iou(table) if one is not None]
    return ImageScore(name, float(np.mean(values)), float(np.trace(table) / len(truth)))


def table_iou(table: Any) -> list[float | None]:
    """IoU of each class of a confusion table (K, K), rows = labels; None for a class that occurs nowhere.

    >>> table_iou([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    [0.75, 0.8, None]
    """
    counts = _array(table)
    hits = np.diagonal(counts)
    union = counts.sum(0) + counts.sum(1) - hits
    return [float(hit / all_) if all_ else None for hit, all_ in zip(hits, union, strict=True)]


def telling(images: Sequence[ImageScore]) -> list[tuple[str, int]]:
    """Choose images to show: 3 worst, 3 best and 2 typical (closest to the median) by mIoU, each image once.

    Where there are fewer images, the kinds take turns.

    Returns:
        Kind and place in ``images``, ascending by mIoU within a kind; images without one are left out.
    """
    scored = [(one.miou, place) for place, one in enumerate(images) if one.miou is not None]
    order = [place for miou, place in sorted(scored) if np.isfinite(miou)]
    if not order:
        return []
    counts, left = {"worst": 0, "best": 0, "typical": 0}, len(order)
    most = {"worst": WORST, "best": BEST, "typical": TYPICAL}
    turns = [kind for turn in range(max(most.values())) for kind in counts if turn < most[kind]]
    for kind in turns[:left]:
        counts[kind] += 1
    if left == 1:
        return [("typical", order[0])]
    low, high = counts["worst"], left - counts["best"]
    # The middle of all, as far as it is not taken by the ends.
    start = min(max(low, (left - counts["typical"]) // 2), high - counts["typical"])
    groups = {"worst": (0, low), "typical": (start, start + counts["typical"]), "best": (high, left)}
    return [(kind, place) for kind, (first, last) in groups.items() for place in order[first:last]]


def segmentation_figure(
    part: str,
    classes: ClassMap,
    *,
    scores: Mapping[str, float | None],
    confusion: Any,
    images: Sequence[ImageScore],
    show: Callable[[int], Shown],
    untrained: Any = None,
    boundary: Sequence[float | None] | None = None,
    side: int = SIDE,
) -> dict[str, Any]:
    """Plain data behind the pictures of a segmentation run; only the images that are shown are asked for.

    Args:
        part: name of the images, such as "val".
        classes: K names and colours.
        scores: means to show: miou, boundary_iou, frequency_weighted, pixel_accuracy.
        confusion: (K, K) pixels, rows = labels.
        images: score of every image.
        show: gives image, label and prediction of a place in ``images``.
        untrained: (K, K) of the model as initialised, or None.
        boundary: K boundary IoUs, or None.
        side: longest side of a picture.

    Returns:
        "part", "scores", "classes" (name, colour, iou, untrained, boundary_iou, share, predicted_share), "confusion",
        "examples" (id, kind, miou, accuracy, and PNGs in base64: image, label, prediction, error, and confidence and
        weight where they are known). What is not finite is None.
    """
    count, table = len(classes.names), _array(confusion)
    if table.shape != (count, count):
        raise ValueError(f"confusion must be ({count}, {count}), got {table.shape}")
    before = table_iou(untrained) if untrained is not None else [None] * count
    edges = list(boundary) if boundary is not None else [None] * count
    if len(before) != count or len(edges) != count:
        raise ValueError(f"{len(before)} untrained and {len(edges)} boundary IoUs for {count} classes")
    total = max(1, int(table.sum()))
    rows = zip(
        classes.names,
        classes.colours,
        table_iou(table),
        before,
        edges,
        table.sum(1),
        table.sum(0),
        strict=True,
    )
    return {
        "part": part,
        "scores": {name: _plain(value) for name, value in scores.items()},
        "classes": [
            {
                "name": str(name),
                "colour": [int(one) for one in colour],
                "iou": _plain(iou),
                "untrained": _plain(first),
                "boundary_iou": _plain(edge),
                "share": _plain(labels / total),
                "predicted_share": _plain(found / total),
            }
            for name, colour, iou, first, edge, labels, found in rows
        ],
        "confusion": [[int(one) for one in row] for row in table],
        "examples": [
            _example(images[place], kind, show(place), classes.colours, side)
            for kind, place in telling(images)
        ],
    }


def _example(score: ImageScore, kind: str, shown: Shown, colours: Colours, side: int) -> dict[str, Any]:
    image = thumbnail(rgb(shown.image), side)
    height, width = image.shape[:2]
    label = small_map(_mask("label", shown.label), height, width)
    prediction = small_map(_mask("prediction", shown.prediction), height, width)
    pictures = {
        "image": image,
        "label": palette_picture(label, colours),
        "prediction": palette_picture(prediction, colours),
        "error": error_picture(prediction, label, image),
    }
    if shown.confidence is not None:
        pictures["confidence"] = grey_picture(small_map(_array(shown.confidence), height, width))
    if shown.weight is not None:
        weight = small_map(_array(shown.weight).astype(np.float64), height, width)
        most = float(np.max(weight, initial=0.0, where=np.isfinite(weight)))
        pictures["weight"] = grey_picture(weight, most if most > 0 else 1.0)
    return {
        "id": score.id,
        "kind": kind,
        "miou": _plain(score.miou),
        "accuracy": _plain(score.accuracy),
        **{name: png(picture) for name, picture in pictures.items()},
    }


def _plain(value: Any) -> float | None:
    return round(float(value), 6) if value is not None and np.isfinite(value) else None


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def _mask(name: str, values: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    mask = _array(values)
    if mask.ndim != 2 or 0 in mask.shape or mask.dtype != np.uint8:
        raise ValueError(f"{name} must be (h, w) uint8, got {mask.shape} {mask.dtype}")
    if shape is not None and mask.shape != tuple(shape):
        raise ValueError(f"{name} is {mask.shape}, expected {tuple(shape)}")
    return mask


def _table(mask: np.ndarray, colours: Colours, ignore: int) -> np.ndarray:
    """(256, 3) uint8: colour of every value."""
    strange = (mask >= len(colours)) & (mask != ignore)
    if strange.any():
        raise ValueError(f"values {np.unique(mask[strange])[:5].tolist()} are none of {len(colours)} classes")
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colours)] = np.asarray(colours, dtype=np.uint8).reshape(-1, 3)
    return table


def _hatched(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Fill some pixels with grey diagonals, in place."""
    rows, columns = np.nonzero(where)
    dark = (rows + columns) % 6 < 2
    picture[rows, columns] = np.array(_HATCH, dtype=np.uint8)[dark.astype(np.int64)]
    return picture


def _check_picture(array: np.ndarray) -> None:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(f"a picture must be (h, w, 3) uint8, got {array.shape} {array.dtype}")
