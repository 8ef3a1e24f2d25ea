"""Points in the plane, told apart by colour and by shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from leanlabel.report.charts import figure, svg
from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import finite, plural

SIDE = 400.0
LAYERS = 8
COLOURS = 8
"""Okabe and Ito's eight colours; the style sheet holds them as --c0 ... --c7."""


# Corners in units of the radius, chosen so that all shapes cover about the same area; None is the circle.
SHAPES: tuple[tuple[tuple[float, float], ...] | None, ...] = (
    None,
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.25), (1.2, 0.85), (-1.2, 0.85)),
    ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    ((0, 1.25), (1.2, -0.85), (-1.2, -0.85)),
    tuple(
        (a * x, a * y)
        for a in (1, -1)
        for x, y in ((-0.42, -1.3), (0.42, -1.3), (0.42, -0.42), (1.3, -0.42), (1.3, 0.42), (0.42, 0.42))
    ),
    tuple(
        (a * x, a * y)
        for a in (1, -1)
        for x, y in ((-1.2, -0.6), (-0.6, -1.2), (0, -0.6), (0.6, -1.2), (1.2, -0.6), (0.6, 0))
    ),
    ((-0.6, -1.15), (0.6, -1.15), (1.25, 0), (0.6, 1.15), (-0.6, 1.15), (-1.25, 0)),
)


def marker(index: int, r: float) -> str:
    """Relative path of the marker of class `index`, around the current point.

    Colours repeat after eight classes, then with another shape: 64 classes can be told apart.
    """
    corners = SHAPES[(index + index // COLOURS) % len(SHAPES)]
    if corners is None:
        return f"m{_n(-r)} 0a{_n(r)} {_n(r)} 0 1 0 {_n(2 * r)} 0a{_n(r)} {_n(r)} 0 1 0 {_n(-2 * r)} 0z"
    steps = [corners[0], *((b[0] - a[0], b[1] - a[1]) for a, b in pairwise(corners))]
    return "m" + "l".join(f"{_n(r * x)} {_n(r * y)}" for x, y in steps) + "z"


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def scatter_chart(
    title: Any,
    points: Sequence[Any],
    labels: Sequence[Any] | None,
    class_names: Sequence[Any] | None,
    *,
    name: str,
    axis: str,
    note: Any = None,
) -> Markup | None:
    """Points by class with a legend; None where no point can be drawn. Both axes have the same scale.

    Args:
        title: caption.
        points: pairs of finite coordinates; others are left out and counted in the note.
        labels: class of each point, >= 0; negative is unlabelled.
        class_names: name of each class; its number where there is none.
        name: title of the picture.
        axis: name of the axes.
        note: text below.
    """
    given = labels if labels is not None and len(labels) == len(points) else [-1] * len(points)
    groups: dict[int, list[tuple[float, float]]] = {}
    for point, label in zip(points, given):
        if isinstance(point, list | tuple) and len(point) == 2 and all(finite(v) for v in point):
            index = label if isinstance(label, int) and label >= 0 else -1
            groups.setdefault(index, []).append((float(point[0]), float(point[1])))
    everything = [point for group in groups.values() for point in group]
    if not everything:
        return None
    place = _fit(everything)
    r = 3.2 if len(everything) <= 2000 else 2.4
    # Classes are drawn in alternating slices, so that the last class does not cover all others.
    parts = [
        _markers(index, groups[index][layer::LAYERS], place, r)
        for layer in range(LAYERS)
        for index in sorted(groups)
        if groups[index][layer::LAYERS]
    ]
    frame = tag("rect", x="0.5", y="0.5", width=f"{SIDE - 1:.0f}", height=f"{SIDE - 1:.0f}", class_="frame")
    titles = [
        tag("text", f"{axis} 1", x=f"{SIDE - 8:.0f}", y=f"{SIDE - 8:.0f}", text_anchor="end", class_="unit"),
        tag("text", f"{axis} 2", x="8", y="18", class_="unit"),
    ]
    described = f"{plural(len(everything), 'point')} of {plural(len(groups), 'class', 'classes')}."
    lost = len(points) - len(everything)
    notes = join([note, f" {plural(lost, 'point')} without finite coordinates left out." if lost else None])
    picture = svg(SIDE, SIDE, name, described, frame, *parts, *titles, kind="wide square")
    both = tag("div", picture, _legend(groups, class_names), class_="beside")
    return figure(title, both, notes)


def _fit(points: Sequence[tuple[float, float]]) -> Any:
    """Map data to the picture: equal scale on both axes, centred."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    reach = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    middle_x, middle_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    factor = (SIDE - 44) / reach
    return lambda p: (SIDE / 2 + (p[0] - middle_x) * factor, SIDE / 2 - (p[1] - middle_y) * factor)


def _markers(index: int, points: Sequence[tuple[float, float]], place: Any, r: float) -> Markup:
    shape = marker(max(index, 0), r)
    path = "".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in map(place, points))
    return tag("path", d=path, class_=_colour(index))


def _colour(index: int) -> str:
    return "point none" if index < 0 else f"point p{index % COLOURS}"


def _legend(groups: dict[int, list[tuple[float, float]]], class_names: Sequence[Any] | None) -> Markup:
    items = []
    for index in sorted(groups, key=lambda i: (i < 0, i)):
        named = class_names is not None and 0 <= index < len(class_names)
        label = str(class_names[index]) if named and class_names is not None else str(index)
        path = tag("path", d=f"M8 8{marker(max(index, 0), 5)}", class_=_colour(index))
        key = tag("svg", path, viewBox="0 0 16 16", class_="key", aria_hidden="true")
        count = tag("span", f"{len(groups[index]):,}", class_="soft")
        items.append(tag("li", key, tag("span", "unlabelled" if index < 0 else label), count))
    return tag("ul", *items, class_="legend", aria_label="Classes and points shown")
