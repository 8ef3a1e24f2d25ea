"""The section on prototypes: pixels of both domains around them, how far classes stand apart, and how that grew.

It reads ``figures/prototypes.json``, of which everything may be missing::

    {"part": name of the target's images, "before": a sentence on what "before" is,
     "numbers": {"before": {name: number}, "after": {...}}, "bank": {"cosine": [number or null, ...]},
     "classes": [{"name", "colour": [r, g, b], "gap_before", "gap_after", "norm", "pixels"}, ...],
     "embedding": {"before": E, "after": E}}

where a gap is the mean similarity of a class's target pixels to their own prototype minus that to the others, norm and
pixels are those of the source prototypes after training, cosine is that to what the term remembers, and E has "points"
[[x, y], ...], their "classes" [k, ...] and "domains" [0 or "source", 1 or "target", ...], and "prototypes" [[x, y] or
null for each class].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from leanlabel.engine.runfolder import RunFolder
from leanlabel.report.answer import mapping
from leanlabel.report.charts import Curve, _label, _n, _x_axis, figure, line_chart, svg
from leanlabel.report.gap import _has, _is_number, _is_time, stage_metrics
from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import MISSING, compact, fixed, plural, signed
from leanlabel.report.page import details, section, table
from leanlabel.report.scales import Scale, padded
from leanlabel.report.scatter import SIDE, _fit, marker
from leanlabel.report.segmentation import (
    MOST_BARS,
    MOST_CLASSES,
    _bar,
    _Class,
    _class,
    _diamond,
    _keys,
    _swatch,
)

TERM = "prototype-contrast"
CURVES: dict[str, dict[str, str]] = {
    "own minus other similarity": {
        "similarity_gap": "source, by label",
        "target_gap": "target, by pseudo label",
    },
    "cosine similarity": {
        "own_similarity": "source, own class",
        "other_similarity": "source, other classes",
        "target_own_similarity": "target, own class",
        "target_other_similarity": "target, other classes",
    },
}
"""Title of a chart -> logged terms of its lines, with their names."""
WHEN = ("before", "after")
DOMAINS = {"source": 0, "target": 2}
"""Places of their shapes among those of scatter charts: circle and triangle."""
LAYERS = 8
MOST_NUMBERS = 20
LARGE = 10.0
"""Temperature from which on the softmax over similarities is nearly even whatever the features are."""


@dataclass(frozen=True)
class _Apart:
    """What the file says of a class, as far as it can be believed."""

    known: _Class
    before: float | None
    after: float | None
    norm: float | None
    pixels: float | None
    cosine: float | None


@dataclass(frozen=True)
class _Cloud:
    """Points of a picture by class and domain, and prototypes by class."""

    points: dict[tuple[int, str], list[tuple[float, float]]]
    prototypes: dict[int, tuple[float, float]]


def prototypes(run: RunFolder, values: Mapping[str, Any], config: Mapping[str, Any]) -> Markup | None:
    """The section; None for a run without prototypes.

    Args:
        run: its folder, for the metrics of all stages; may be damaged.
        values: ``figures/prototypes.json``, see above; may be damaged.
        config: the configuration.
    """
    listed = values.get("classes")
    cosines = mapping(values.get("bank")).get("cosine")
    cosines = cosines if isinstance(cosines, list) else []
    classes = [
        _apart(k, mapping(one), cosines[k] if k < len(cosines) else None)
        for k, one in enumerate((listed if isinstance(listed, list) else [])[:MOST_CLASSES])
    ]
    charts = _curves(run, config)
    lead = "A prototype is the mean feature of a class in the source. Features of a class should be near their own."
    return section(
        "prototypes",
        "Prototypes",
        lead,
        _summary(values),
        _clouds(mapping(values.get("embedding")), classes),
        _gap_chart(classes),
        _table(classes),
        tag("div", tag("div", *charts, class_="charts"), _flat(config, len(classes))) if charts else None,
    )


def without(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of the metrics without the terms that have their charts here.

    >>> without([{"t": 3, "loss": 1.0, "target_gap": 0.1}])
    [{'t': 3, 'loss': 1.0}]
    """
    drawn = {name for lines in CURVES.values() for name in lines}
    return [{name: value for name, value in row.items() if name not in drawn} for row in rows]


def _apart(place: int, one: Mapping[str, Any], cosine: Any) -> _Apart:
    before, after, near = (
        value if value is not None and -2 <= value <= 2 else None
        for value in map(_number, (*(one.get(f"gap_{when}") for when in WHEN), cosine))
    )
    norm, pixels = (
        value if value is not None and 0 <= value < 2**53 else None
        for value in (_number(one.get(key)) for key in ("norm", "pixels"))
    )
    return _Apart(_class(place, one), before, after, norm, pixels, near)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) and not isinstance(value, bool) else None


def _summary(values: Mapping[str, Any]) -> Markup | None:
    """Scores of the prototypes before and after, in one table."""
    held = mapping(values.get("numbers"))
    columns = {when: mapping(held.get(when)) for when in WHEN}
    names = list(dict.fromkeys(str(name)[:100] for one in columns.values() for name in one))[:MOST_NUMBERS]
    rows = []
    for name in names:
        before, after = (_number(one.get(name)) for one in columns.values())
        change = MISSING if before is None or after is None else signed(after - before, 3)
        rows.append([name, fixed(before), fixed(after), change])
    if not rows:
        return None
    told = {"target images,": values.get("part"), "before:": values.get("before")}
    said = "; ".join(f"{key} {text[:200]}" for key, text in told.items() if isinstance(text, str) and text)
    caption = join(
        [tag("b", "Prototypes of the source on the target"), " ", tag("span", said, class_="soft")]
    )
    return table(
        ["measure", "before", "after", "change"], rows, caption=caption, label="Scores of prototypes"
    )


# -- pixels around their prototypes --------------------------------------------------------------------------------


def _clouds(held: Mapping[str, Any], classes: Sequence[_Apart]) -> Markup | None:
    clouds = {when: _cloud(mapping(held.get(when))) for when in WHEN}
    there = {when: cloud for when, cloud in clouds.items() if cloud is not None}
    if not there:
        return None
    names = {k: one.known.name for k, one in enumerate(classes)}
    pictures = [_scatter(when, cloud, names) for when, cloud in there.items()]
    numbers = sorted(
        {k for cloud in there.values() for k in (*(k for k, _ in cloud.points), *cloud.prototypes)}
    )
    signs = [
        ("pixel of the source", tag("path", d=f"M16 8{marker(0, 4)}", class_="point p0")),
        ("pixel of the target", tag("path", d=f"M16 8{marker(2, 4)}", class_="point p0")),
        ("prototype, with the number of its class", tag("path", d=_diamond(16, 8), class_="found")),
    ]
    note = (
        "Shape tells the domain, colour the class; hollow and pale marks are classes whose colour stands twice. "
        "A projection: distances in it are a hint, the gap below is the measurement."
    )
    return tag(
        "div",
        _keys(signs),
        tag("div", *pictures, class_="charts"),
        _class_legend(numbers, names),
        tag("p", note, class_="note"),
    )


def _cloud(held: Mapping[str, Any]) -> _Cloud | None:
    listed = [held.get(key) for key in ("points", "classes", "domains")]
    points: dict[tuple[int, str], list[tuple[float, float]]] = {}
    if all(isinstance(one, list) for one in listed):
        for point, number, domain in zip(*listed, strict=False):  # type: ignore[arg-type]
            place, name = _place(point), _domain(domain)
            if place is not None and name is not None and type(number) is int and 0 <= number < MOST_CLASSES:
                points.setdefault((number, name), []).append(place)
    known = held.get("prototypes")
    marks = {
        k: place
        for k, one in enumerate((known if isinstance(known, list) else [])[:MOST_CLASSES])
        if (place := _place(one)) is not None
    }
    return _Cloud(points, marks) if points else None


def _place(held: Any) -> tuple[float, float] | None:
    if not isinstance(held, list) or len(held) != 2:
        return None
    x, y = map(_number, held)
    return (x, y) if x is not None and y is not None and max(abs(x), abs(y)) < 1e9 else None


def _domain(held: Any) -> str | None:
    if type(held) is int and held in (0, 1):
        return ("source", "target")[held]
    return held if isinstance(held, str) and held in DOMAINS else None


def _scatter(when: str, cloud: _Cloud, names: Mapping[int, str]) -> Markup:
    place = _fit([*(point for group in cloud.points.values() for point in group), *cloud.prototypes.values()])
    # In alternating slices, so that what is drawn last does not cover all the others.
    parts = [
        _marks(key, group[layer::LAYERS], place)
        for layer in range(LAYERS)
        for key, group in sorted(cloud.points.items())
        if group[layer::LAYERS]
    ]
    for number, middle in cloud.prototypes.items():
        x, y = place(middle)
        parts.append(tag("path", d=f"M{x:.1f} {y - 12:.1f}l12 12l-12 12l-12 -12Z", class_="found"))
        parts.append(tag("text", number, x=_n(x), y=_n(y + 4), text_anchor="middle", class_="value"))
    frame = tag("rect", x="0.5", y="0.5", width=f"{SIDE - 1:.0f}", height=f"{SIDE - 1:.0f}", class_="frame")
    counts = {
        domain: sum(len(group) for (_, own), group in cloud.points.items() if own == domain)
        for domain in DOMAINS
    }
    told = ", ".join(f"{plural(count, 'pixel')} of the {domain}" for domain, count in counts.items())
    found = ", ".join(f"{k} {names.get(k, '')}".strip() for k in cloud.prototypes) or "none"
    title = "After training" if when == "after" else "Before training"
    picture = svg(
        *(SIDE, SIDE, f"Pixels around their prototypes, {when}", f"{told}; prototypes: {found}."),
        *(frame, *parts),
        kind="wide square",
    )
    return figure(join([tag("b", title), " ", tag("span", told, class_="soft")]), picture)


def _marks(key: tuple[int, str], points: Sequence[tuple[float, float]], place: Any) -> Markup:
    number, domain = key
    shape = marker(DOMAINS[domain], 3.2)
    path = "".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in map(place, points))
    return tag("path", d=path, **_look(number))


def _look(number: int) -> dict[str, str]:
    """Colours repeat after eight classes: the next eight are hollow, those after them pale.

    >>> _look(3), _look(11)["style"]
    ({'class_': 'point p3'}, 'fill:none;stroke:var(--c3);stroke-width:1.3')
    """
    colour, turn = number % 8, number // 8 % 3
    if turn == 1:
        return {"class_": "point", "style": f"fill:none;stroke:var(--c{colour});stroke-width:1.3"}
    return {"class_": f"point p{colour}"} | ({"style": "fill-opacity:.35"} if turn else {})


def _class_legend(numbers: Iterable[int], names: Mapping[int, str]) -> Markup:
    items = []
    for number in numbers:
        path = tag("path", d=f"M8 8{marker(0, 5)}", **_look(number))
        key = tag("svg", path, viewBox="0 0 16 16", class_="key", aria_hidden="true")
        items.append(tag("li", key, tag("span", f"{number} {names.get(number, '')}".strip())))
    return tag("ul", *items, class_="legend row", aria_label="Numbers and colours of the classes")


# -- gaps ----------------------------------------------------------------------------------------------------------


def _gap_chart(classes: Sequence[_Apart]) -> Markup | None:
    """Two bars a class from zero: pale before, full after."""
    found = [gap for one in classes for gap in (one.before, one.after) if gap is not None]
    if not found:
        return None
    # Who gained least stands first: what training did not pull apart.
    order = sorted(classes, key=lambda one: (one.after is None, one.after or 0.0))[:MOST_BARS]
    width, step, left, right = 400.0, 36.0, 132.0, 336.0
    x, bottom = Scale(*padded([0.0, *found]), left, right), len(order) * step + 2
    zero = x(0)
    parts = [
        _x_axis(x, bottom, "similarity to the own prototype minus that to the others", grid_top=0),
        tag("line", x1=_n(zero), x2=_n(zero), y1="0", y2=_n(bottom), class_="zero"),
    ]
    for row, one in enumerate(order):
        top = row * step
        parts.append(_label(one.known.name, left - 8, top + 22, left - 10, anchor="end", kind="name"))
        for gap, at, kind in ((one.before, top + 6, "bar second"), (one.after, top + 18, "bar")):
            if gap is not None:
                low, high = sorted((zero, x(gap)))
                parts.append(_bar(low, at, high - low, 11, kind))
        end = {"x": _n(width - 2), "text_anchor": "end"}
        parts.append(tag("text", fixed(one.before, 2), y=_n(top + 15), **end))
        parts.append(tag("text", fixed(one.after, 2), y=_n(top + 28), class_="value", **end))
    described = "; ".join(
        f"{one.known.name}: gap {fixed(one.before)} before, {fixed(one.after)} after" for one in order
    )
    keys = [
        ("before", tag("rect", x="0", y="3", width="32", height="10", class_="bar second")),
        ("after", tag("rect", x="0", y="3", width="32", height="10", class_="bar")),
    ]
    shown = f"the {len(order)} smallest of {len(classes)}" if len(order) < len(classes) else "smallest first"
    caption = join([tag("b", "Gap by class"), " ", tag("span", f"target pixels; {shown}", class_="soft")])
    picture = svg(width, bottom + 38, "Gap by class before and after", described, *parts, kind="wide")
    lacking = any(one.before is None and one.after is None for one in classes)
    note = "A dash: the class has no pixel there, or no prototype." if lacking else None
    return figure(caption, join([_keys(keys), picture]), note)


def _table(classes: Sequence[_Apart]) -> Markup | None:
    if not any(
        value is not None for one in classes for value in (one.before, one.after, one.norm, one.pixels)
    ):
        return None
    remembered = any(one.cosine is not None for one in classes)
    rows = [
        [
            join([_swatch(one.known), " ", tag("b", one.known.name)]),
            fixed(one.before),
            fixed(one.after),
            MISSING if one.before is None or one.after is None else signed(one.after - one.before, 3),
            fixed(one.norm),
            MISSING if one.pixels is None else compact(round(one.pixels)),
            *([fixed(one.cosine)] if remembered else []),
        ]
        for one in classes
    ]
    columns = ["class", "gap before", "after", "change", "length of the prototype", "pixels behind it"]
    columns += ["cosine to the term's own"] if remembered else []
    return details("The numbers", table(columns, rows, label="Prototypes by class"))


# -- over time -----------------------------------------------------------------------------------------------------


def _curves(run: RunFolder, config: Mapping[str, Any]) -> list[Markup]:
    """One chart each of gaps and similarities, over all stages from the first one that has them."""
    wanted = [name for lines in CURVES.values() for name in lines]
    stages = stage_metrics(run, config)
    there = [any(_has(row, name) for row in rows for name in wanted) for _, rows in stages]
    stages = stages[there.index(True) :] if any(there) else []
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in wanted}
    marks: list[tuple[float, str]] = []
    start = 0
    for stage, rows in stages:
        marks.append((start, stage))
        for row in rows:
            for name in wanted:
                if _has(row, name):
                    points[name].append((start + row["t"], row[name]))
        start += max((row["t"] + 1 for row in rows if _is_time(row.get("t"))), default=0)
    charts = []
    for title, lines in CURVES.items():
        curves = [
            Curve([t for t, _ in points[name]], [value for _, value in points[name]], told)
            for name, told in lines.items()
            if points[name]
        ]
        charts.append(line_chart(title, curves, legend=True, marks=marks[1:]))
    return [chart for chart in charts if chart is not None]


def _flat(config: Mapping[str, Any], classes: int) -> Markup | None:
    """What the loss of the term can be expected to look like."""
    settings = _settings(config)
    tau = _number(settings.get("tau", 100.0))
    if tau is None or tau < LARGE:
        return None
    parts = 1 if settings.get("target") == "none" else 2
    name = "log K" if parts == 1 else "2 log K"
    value = f" = {parts * log(classes):.2f}" if classes > 1 else ""
    told = (
        f"The loss itself stays near {name}{value} at a temperature of {compact(tau)}: a flat curve of it is "
        "expected and no sign that nothing is learned. These curves show what is learned."
    )
    return tag("p", told, class_="note")


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the term in the recipe, or in the last of its stages that has it."""
    stages = [mapping(one) for one in mapping(config.get("stages")).values()]
    for part in (config, *reversed(stages)):
        terms = mapping(part.get("method")).get("terms")
        for entry in map(mapping, terms if isinstance(terms, list) else []):
            if entry.get("name") == TERM:
                return mapping(entry.get("settings"))
    return {}
