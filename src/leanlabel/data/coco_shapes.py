"""Shapes of objects as COCO writes them, polygons and run-length codes, as masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_LONGEST_CODE = 13
"""Characters of one number in a run-length code; 64 bits need no more."""


def polygon_mask(polygon: Sequence[float], height: int, width: int) -> np.ndarray:
    """Rasterise one polygon by the even-odd rule at pixel centres.

    Pixel (row r, column c) is inside where a ray upwards from (c + 1/2, r + 1/2) crosses the outline an odd number of
    times; a centre that lies on the upper edge is inside. pycocotools uses the same rule after it has rounded
    corners to 1/5 of a pixel, so that only pixels whose centres lie that close to the outline can differ.

    Args:
        polygon: x0, y0, x1, y1, ... in pixels from the upper left corner of the image; closed by itself. May reach
            beyond the image.
        height: rows.
        width: columns.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: fewer than three corners, an odd number of values, or one that is not finite.

    >>> polygon_mask([0, 0, 2, 0, 2, 1, 0, 1], 2, 3).astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    corners = np.asarray(polygon, dtype=np.float64)
    if corners.ndim != 1 or len(corners) % 2 or len(corners) < 6:
        raise ValueError(f"a polygon has three or more corners x, y; got {corners.size} values")
    if not np.isfinite(corners).all():
        raise ValueError("a corner of the polygon is not finite")
    inside = np.zeros((height, width), dtype=bool)
    x, y = corners[0::2], corners[1::2]
    # Columns whose centres lie between the smallest and the largest x; the picture is only as large as its box.
    left, right = _columns(x.min(), width), _columns(x.max(), width)
    if left >= right:
        return inside
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    turned = x > x2
    x1, y1, x2, y2 = (
        np.where(turned, x2, x), np.where(turned, y2, y), np.where(turned, x, x2), np.where(turned, y, y2)
    )  # fmt: skip
    first, last = _columns(x1, width), _columns(x2, width)
    spans = last - first
    edge = np.repeat(np.arange(len(x1)), spans)
    column = np.arange(len(edge)) - np.repeat(np.cumsum(spans) - spans, spans) + first[edge]
    crossing = y1[edge] + (y2 - y1)[edge] * (column + 0.5 - x1[edge]) / (x2 - x1)[edge]
    row = np.clip(np.ceil(crossing - 0.5), 0, height).astype(np.int64)
    toggles = np.zeros((height + 1, right - left), dtype=np.uint8)
    # uint8 wraps at 256, an even number: parity survives.
    np.add.at(toggles, (row, column - left), 1)
    inside[:, left:right] = np.cumsum(toggles[:height], axis=0, dtype=np.uint8) & 1
    return inside


def _columns(x: Any, width: int) -> Any:
    """First column whose centre is at x or right of it, within the picture."""
    return np.clip(np.ceil(np.asarray(x) - 0.5), 0, width).astype(np.int64)


def decode_runs(code: str | Sequence[int], height: int, width: int) -> np.ndarray:
    """Decode a run-length code: lengths of runs of zeros and ones in turn, column by column.

    A compressed code spells each length in groups of five bits, lowest first, as characters from "0" on; bit 32 says
    that more follow, bit 16 of the last group is the sign. From the fourth length on, what is spelled is the
    difference to the length two before.

    Args:
        code: text (compressed) or integers.
        height: rows.
        width: columns.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: not such a code, or its lengths do not add up to height * width.

    >>> decode_runs([1, 2, 3], 2, 3).astype(int).tolist()
    [[0, 1, 0], [1, 0, 0]]
    >>> bool((decode_runs("123", 2, 3) == decode_runs([1, 2, 3], 2, 3)).all())
    True
    """
    lengths = _spelled(code) if isinstance(code, str) else list(code)
    if any(not isinstance(one, int) or isinstance(one, bool) or one < 0 for one in lengths):
        raise ValueError("a run has a length that is not an integer >= 0")
    total = sum(lengths)
    if total != height * width:
        raise ValueError(
            f"its runs cover {total} pixels, the image has {height} x {width} = {height * width}"
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, np.asarray(lengths, dtype=np.int64)).reshape(width, height).T


def _spelled(code: str) -> list[int]:
    lengths: list[int] = []
    value = place = 0
    for character in code:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or place >= _LONGEST_CODE:
            raise ValueError("the compressed code is damaged")
        value |= (bits & 31) << (5 * place)
        place += 1
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << (5 * place)
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = place = 0
    if place:
        raise ValueError("the compressed code is cut short")
    return lengths
