"""The section on pairs of images: how far they are shifted, which may not belong together, agreement by region."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from leanlabel.report.answer import mapping
from leanlabel.report.markup import Markup
from leanlabel.report.numbers import MISSING, fixed
from leanlabel.report.page import facts, section, table

MOST = 12
"""Pairs that are listed, those with the largest shifts."""
NAMES = {"before": "before", "after": "after training"}


def pairs(values: Mapping[str, Any]) -> Markup | None:
    """Shifts and agreement of the pairs that a regression between feature maps learned from.

    Args:
        values: ``figures/pairs.json``; may be damaged.
    """
    shifts = [one for one in map(_shift, _listed(values.get("shifts"))) if one is not None]
    limit = _number(values.get("least_response"))
    told: dict[str, Any] = {}
    if shifts:
        lengths = sorted(math.hypot(dy, dx) for _, dy, dx, _ in shifts)
        told = {"pairs looked at": len(shifts), "median shift": f"{median(lengths):.1f} pixels"}
        told |= {"largest shift": f"{lengths[-1]:.1f} pixels"}
        if limit is not None:
            told["may not be one scene"] = sum(response < limit for *_, response in shifts)
    agreement = mapping(values.get("agreement"))
    for key, name in NAMES.items():
        share = _number(mapping(agreement.get(key)).get("agreement"))
        if share is not None:
            told[f"same class {name}"] = fixed(share)
    largest = sorted(shifts, key=lambda one: -math.hypot(one[1], one[2]))[:MOST]
    listed = [[name, str(dy), str(dx), fixed(response)] for name, dy, dx, response in largest]
    columns = ["target image", "down", "across", "response"]
    return section(
        "pairs",
        "Pairs",
        "How well the two images of a pair lie on one another, and how often both networks name the same class. No "
        "label is read for it.",
        facts(told),
        table(columns, listed, caption="Largest shifts, pixels", label="Shifts of pairs") if listed else None,
        *(_regions(name, agreement.get(key)) for key, name in NAMES.items()),
    )


def _regions(name: str, found: Any) -> Markup | None:
    rows = _listed(mapping(mapping(found).get("regions")).get("agreement"))
    shown = [
        [MISSING if _number(one) is None else fixed(_number(one)) for one in _listed(row)] for row in rows
    ]
    width = max((len(row) for row in shown), default=0)
    if not shown or not width or any(len(row) != width for row in shown):
        return None
    places = ["top", "", "bottom"] if len(shown) == 3 else [str(k + 1) for k in range(len(shown))]
    return table(
        ["", *(("left", "middle", "right") if width == 3 else [str(k + 1) for k in range(width)])],
        [[place or "middle", *row] for place, row in zip(places, shown, strict=True)],
        caption=f"Same class by region of the image, {name}",
        label=f"Agreement by region, {name}",
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _shift(held: Any) -> tuple[str, int, int, float] | None:
    one = mapping(held)
    numbers = [_number(one.get(key)) for key in ("dy", "dx", "response")]
    if any(number is None or abs(number) > 1e6 for number in numbers):
        return None
    dy, dx, response = (float(number or 0) for number in numbers)
    return str(one.get("id", ""))[:100], round(dy), round(dx), response
