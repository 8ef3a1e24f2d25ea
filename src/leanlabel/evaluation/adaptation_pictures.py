"""Pictures of an adaptation: the same images of the target before and after, and what each class gained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from leanlabel.evaluation.pictures import (
    SIDE,
    Colours,
    _array,
    _mask,
    _plain,
    palette_picture,
    png,
    rgb,
    small_map,
    table_iou,
    thumbnail,
)

if TYPE_CHECKING:
    from leanlabel.data.class_map import ClassMap

MOST = 6
"""Images that are shown."""

Change = tuple[float | None, float | None]
"""Mean IoU of one image before and after; None where no pixel of it is labelled."""


@dataclass(frozen=True, eq=False)
class Shown2:
    """One image with what two networks see in it, at full size.

    Attributes:
        image: (C, h, w) uint8, or floating point in [0, 1].
        label: (h, w) uint8, 255 = ignore; None where nobody knows it.
        before, after: (h, w) uint8, classes.
    """

    image: Any
    label: Any
    before: Any
    after: Any


def changed(scores: Sequence[Change], most: int = MOST) -> list[tuple[str, int]]:
    """Choose images by gain = after - before: those that gained most, that lost most, and typical ones, in turn.

    The first three are the largest gain, the smallest one and the one closest to the median; then each kind's next.

    Args:
        scores: mean IoU of each image before and after; images without both are left out.
        most: number of images to choose, >= 0.

    Returns:
        Kind and place in ``scores``, in the order chosen, each place once. Kinds: "gained" and "lost" with the sign
        of the change; "least gained" or "least lost" where the smallest gain is none at all, or the largest is; or
        "typical".

    Example:
        >>> changed([(0.5, 0.4), (0.1, 0.9), (0.3, 0.4), (None, 0.2)])
        [('gained', 1), ('lost', 0), ('typical', 2)]
    """
    gains = [
        (after - before, place)
        for place, (before, after) in enumerate(scores)
        if before is not None and after is not None and np.isfinite(before) and np.isfinite(after)
    ]
    order = sorted(gains, key=lambda one: (-one[0], one[1]))
    middle = (len(order) - 1) / 2
    typical = sorted(range(len(order)), key=lambda rank: abs(rank - middle))
    turns = zip_longest(
        [("gained" if gain > 0 else "least lost", place) for gain, place in order],
        [("lost" if gain < 0 else "least gained", place) for gain, place in reversed(order)],
        [("typical", order[rank][1]) for rank in typical],
    )
    found: dict[int, str] = {}
    for kind, place in (one for one in chain(*turns) if one is not None):
        found.setdefault(place, kind)
    return [(kind, place) for place, kind in list(found.items())[:most]]


def evenly_spread(count: int, most: int = MOST) -> list[int]:
    """Choose places of images where nothing is known about them.

    >>> evenly_spread(11, 3), evenly_spread(2, 6)
    ([0, 5, 10], [0, 1])
    """
    return np.linspace(0, max(0, count - 1), min(count, most)).round().astype(int).tolist()


def adaptation_figure(
    part: str,
    classes: ClassMap,
    *,
    started: str,
    before: Any,
    after: Any,
    names: Sequence[str],
    scores: Sequence[Change] | None,
    show: Callable[[int], Shown2],
    kept: Sequence[float | None] | None = None,
    thresholds: Sequence[float] | None = None,
    source_share: Sequence[float] | None = None,
    predicted_share: Sequence[float] | None = None,
    side: int = SIDE,
    most: int = MOST,
) -> dict[str, Any]:
    """Plain data behind the pictures of an adaptation; only the images that are shown are asked for.

    Args:
        part: name of the images, such as "test".
        classes: K names and colours.
        started: what "before" is, such as "weights after stage source".
        before, after: (K, K) pixels of that part, rows = labels; None without labels.
        names: of N images.
        scores: N mean IoUs before and after; None without labels.
        show: gives image, label and both predictions of a place in ``names``.
        kept: K shares of the pixels predicted as a class that stored pseudo labels kept, or None.
        thresholds: K confidences from which on they were kept, or None.
        source_share: K shares of the labelled pixels that were trained on, or None.
        predicted_share: K shares of the target's pixels in the predictions after, or None.
        side: longest side of a picture.
        most: images that are shown.

    Returns:
        "part", "before" (a sentence), "classes" (name, colour, before, after, kept, threshold, source_share,
        predicted_share) and "examples" (id, kind, miou_before, miou_after, and PNGs in base64: image, label or None,
        before, after). What is not known or not finite is None. Without labels images are spread evenly.

    Raises:
        ValueError: numbers of classes, images or scores differ.
    """
    count = len(classes.names)
    tables = {"before": before, "after": after}
    columns = {key: _ious(key, table, count) for key, table in tables.items()}
    shares = {
        "kept": kept,
        "threshold": thresholds,
        "source_share": source_share,
        "predicted_share": predicted_share,
    }
    for key, values in shares.items():
        columns[key] = [None] * count if values is None else list(values)
        if len(columns[key]) != count:
            raise ValueError(f"{key} has {len(columns[key])} values for {count} classes")
    if scores is not None and len(scores) != len(names):
        raise ValueError(f"{len(scores)} scores for {len(names)} images")
    chosen = changed(scores, most) if scores is not None else []
    chosen = chosen or [("spread", place) for place in evenly_spread(len(names), most)]
    known: Sequence[Change] = scores if scores is not None else [(None, None)] * len(names)
    return {
        "part": part,
        "before": started,
        "classes": [
            {
                "name": str(name),
                "colour": [int(one) for one in colour],
                **{key: _plain(values[k]) for key, values in columns.items()},
            }
            for k, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True))
        ],
        "examples": [
            _example(names[place], kind, known[place], show(place), classes.colours, side)
            for kind, place in chosen
        ],
    }


def _ious(key: str, table: Any, count: int) -> list[float | None]:
    if table is None:
        return [None] * count
    found = _array(table)
    if found.shape != (count, count):
        raise ValueError(f"{key} must be ({count}, {count}), got {found.shape}")
    return table_iou(found)


def _example(
    name: str, kind: str, score: Change, shown: Shown2, colours: Colours, side: int
) -> dict[str, Any]:
    image = thumbnail(rgb(shown.image), side)

    def painted(key: str, mask: Any) -> str:
        return png(palette_picture(small_map(_mask(key, mask), *image.shape[:2]), colours))

    return {
        "id": str(name),
        "kind": kind,
        "miou_before": _plain(score[0]),
        "miou_after": _plain(score[1]),
        "image": png(image),
        "label": None if shown.label is None else painted("label", shown.label),
        "before": painted("before", shown.before),
        "after": painted("after", shown.after),
    }
