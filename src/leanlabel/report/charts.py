"""Charts as inline SVG, drawn for the width of a phone; the style sheet sets colours and letter sizes.

Every chart is a `figure` with an HTML caption. A picture carries a title and a description for screen
readers, and never relies on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import compact, finite, plural
from leanlabel.report.scales import Scale, padded, thinned

LETTER = 7.6
"""Mean width of a letter at the largest letter size of charts, in user units."""


@dataclass(frozen=True)
class Row:
    """One row of an interval chart.

    Attributes:
        label: name of the row.
        values: single measurements, each drawn as a dot.
        mean: drawn as an upright bar; None for none.
        interval: (low, high) drawn as a line with caps; None for none.
        note: short text at the right end of the label line.
        kind: style of the row: "plain", "strong" or "soft".
    """

    label: str
    values: Sequence[float] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""
    kind: str = "plain"


@dataclass(frozen=True)
class Curve:
    """Values over iterations."""

    t: Sequence[float]
    values: Sequence[float]
    label: str = ""
    finite: list[tuple[float, float]] = field(init=False)

    def __post_init__(self) -> None:
        pairs = [(a, b) for a, b in zip(self.t, self.values) if finite(a) and finite(b)]
        object.__setattr__(self, "finite", pairs)


def svg(width: float, height: float, title: str, description: str, *parts: Any, kind: str = "") -> Markup:
    """The frame of a picture, scaled to the width it is given."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *parts,
        viewBox=f"0 0 {_n(width)} {_n(height)}",
        role="img",
        class_=f"plot {kind}".strip(),
    )


def figure(caption: Any, picture: Markup, note: Any = None, kind: str = "") -> Markup:
    """A picture with its caption above and a note below."""
    head = tag("figcaption", caption)
    return tag("figure", head, picture, tag("p", note, class_="note") if note else None, class_=kind or None)


def line_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x_label: str = "iteration",
    unit: str = "",
    log_x: bool = False,
    legend: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> Markup | None:
    """Curves of one quantity over iterations; None where no value can be drawn.

    The y axis is logarithmic where all values are positive and span two decades or more. Long curves are
    thinned to 600 points that keep the extremes.

    Args:
        title: name of the quantity.
        curves: one line each.
        x_label: name of the x axis.
        unit: unit of the y axis, where it has one.
        log_x: equal ratios on the x axis get equal distances, where all places are positive and differ.
        legend: name the lines below, where there are several.
        marks: places on the x axis where something begins, as an upright line with its name; those outside of the
            values are not drawn.
    """
    drawn = [curve for curve in curves if curve.finite]
    values = [value for curve in drawn for _, value in curve.finite]
    if not values:
        return None
    times = [t for curve in drawn for t, _ in curve.finite]
    low, high = min(values), max(values)
    log = low > 0 and high / low >= 100
    width, height, left, bottom = 360.0, 200.0, 48.0, 162.0
    if log:
        y = Scale(low, high, bottom, 10, log=True)
    else:
        y = Scale(*padded(values), bottom, 10)
    first, last = min(times), max(times)
    log_x = log_x and 0 < first < last
    right = width - (20 if log_x else 12)  # a power of ten may stand at the very end
    x = Scale(first, last if last > first else first + 1, left, right, log=log_x)
    lines = []
    for index, curve in enumerate(drawn):
        points = thinned([t for t, _ in curve.finite], [value for _, value in curve.finite])
        kind = f"curve s{index % 8}" if len(drawn) > 1 else "curve"
        if len(points) == 1:
            lines.append(tag("circle", cx=_n(x(points[0][0])), cy=_n(y(points[0][1])), r="3.5", class_="dot"))
        else:
            path = "M" + "L".join(f"{_n(x(t))} {_n(y(value))}" for t, value in points)
            lines.append(tag("path", d=path, class_=kind))
    dropped = sum(len(curve.values) - len(curve.finite) for curve in curves)
    ends = f"{compact(drawn[0].finite[0][1])} → {compact(drawn[0].finite[-1][1])}" if len(drawn) == 1 else ""
    facts = [
        ends,
        plural(len(drawn), "line") if len(drawn) > 1 else "",
        unit,
        "log scales" if log and log_x else "log scale" if log else "log x axis" if log_x else "",
        f"{plural(dropped, 'value')} not finite, not drawn" if dropped else "",
    ]
    detail = " · ".join(fact for fact in facts if fact)
    described = (
        f"{title} over {x_label} {compact(first)} to {compact(last)}, from {compact(low)} to {compact(high)}."
    )
    described += f" Lines: {', '.join(curve.label for curve in drawn)}." if len(drawn) > 1 else ""
    within = [(t, name) for t, name in marks if first <= t <= last]
    described += "".join(f" {name} begins at {compact(t)}." for t, name in within)
    picture = svg(
        width,
        height,
        title,
        described,
        _y_axis(y, left, right),
        _x_axis(x, bottom, x_label, whole=True),
        *_marks([(x(t), name) for t, name in within], bottom, right),
        *lines,
    )
    named = _legend(drawn) if legend and len(drawn) > 1 else None
    return figure(join([tag("b", title), " ", tag("span", detail, class_="soft")]), join([picture, named]))


def _marks(places: Sequence[tuple[float, str]], bottom: float, right: float) -> list[Markup]:
    """Upright lines, each with its name to the right, cut where the next one stands."""
    parts = []
    ends = [*(place for place, _ in places), right][1:]
    for (place, name), end in zip(places, ends, strict=True):
        parts.append(tag("line", x1=_n(place), x2=_n(place), y1="2", y2=_n(bottom), class_="zero"))
        if name and end - place >= 5 * LETTER:
            parts.append(_label(name, place + 4, 11, end - place - 4))
    return parts


def _legend(drawn: Sequence[Curve]) -> Markup:
    """The names of the lines, each beside a piece of its line."""
    items = []
    for index, curve in enumerate(drawn):
        line = tag("path", d="M0 8H32", class_=f"curve s{index % 8}")
        key = tag("svg", line, viewBox="0 0 32 16", class_="key long", aria_hidden="true")
        items.append(tag("li", key, tag("span", curve.label)))
    return tag("ul", *items, class_="legend row", aria_label="Lines")


def bar_chart(
    title: Any, rows: Sequence[tuple[str, float | None, str]], *, name: str, top: float | None = None
) -> Markup:
    """Horizontal bars from zero, the value written at each.

    Args:
        title: caption.
        rows: (label, value >= 0 or None, text of the value).
        name: what the bars count, for the description.
        top: value of a full bar; the largest value when left out.
    """
    full = top or max((value for _, value, _ in rows if finite(value)), default=1) or 1  # type: ignore[type-var]
    width, step, left = 400.0, 25.0, 132.0
    end = max(len(written) for *_, written in rows) * LETTER + 8
    x = Scale(0, full, left, width - end)
    parts = []
    for index, (label, value, written) in enumerate(rows):
        middle = index * step + step / 2
        reach = x(value) if value is not None and finite(value) else left
        parts.append(_label(label, left - 8, middle + 4, left - 10, anchor="end"))
        parts.append(
            tag(
                "rect",
                x=_n(left),
                y=_n(middle - 8),
                width=_n(max(reach - left, 0.6)),
                height="16",
                rx="1.5",
                class_="bar",
            )
        )
        parts.append(tag("text", written, x=_n(reach + 6), y=_n(middle + 4)))
    axis = tag("line", x1=_n(left), x2=_n(left), y1="0", y2=_n(len(rows) * step), class_="axis")
    described = "; ".join(f"{label}: {written}" for label, _, written in rows[:60])
    return figure(title, svg(width, len(rows) * step, name, described, *parts, axis, kind="wide"))


def interval_chart(
    title: Any, rows: Sequence[Row], *, name: str, x_label: str, zero: bool = False, note: Any = None
) -> Markup | None:
    """Dots, means and intervals on one shared axis; None where nothing can be drawn.

    An interval much wider than the measurements (two seeds give one) is cut at the edge, with an arrow there.

    Args:
        title: caption.
        rows: top to bottom.
        name: title of the picture.
        x_label: name and unit of the axis.
        zero: whether the axis must hold zero, marked by a line.
        note: text below.
    """
    core = [v for row in rows for v in (*row.values, row.mean) if v is not None and finite(v)]
    core += [0.0] if zero and core else []
    if not core:
        return None
    room = 1.5 * (max(core) - min(core)) or max(abs(max(core)) * 0.1, 1e-3)
    ends = [v for row in rows for v in row.interval or () if finite(v)]
    within = [min(max(v, min(core) - room), max(core) + room) for v in ends]
    width, step = 400.0, 46.0
    bottom = len(rows) * step + 2
    x = Scale(*padded([*core, *within]), 10, width - 10)
    parts = [_x_axis(x, bottom, x_label, grid_top=4)]
    if zero:
        parts.append(tag("line", x1=_n(x(0)), x2=_n(x(0)), y1="4", y2=_n(bottom), class_="zero"))
    for index, row in enumerate(rows):
        parts.append(_interval_row(row, index * step, x, width))
    described = "; ".join(_spoken(row) for row in rows)
    return figure(title, svg(width, bottom + 38, name, described, *parts, kind="wide"), note)


def _interval_row(row: Row, top: float, x: Scale, width: float) -> Markup:
    middle = top + 31
    # Bold letters are wider.
    room = (width - 30 - len(row.note) * LETTER) / (1.12 if row.kind == "strong" else 1)
    parts = [_label(row.label, 10, top + 16, room, kind="name")]
    if row.note:
        parts.append(
            tag("text", row.note, x=_n(width - 10), y=_n(top + 16), text_anchor="end", class_="value")
        )
    if row.interval and all(finite(end) for end in row.interval):
        low, high = row.interval
        parts.append(tag("line", x1=_n(x(low)), x2=_n(x(high)), y1=_n(middle), y2=_n(middle), class_="span"))
        for end, inside, way in ((low, low >= x.low, 1), (high, high <= x.high, -1)):
            shape = "M0 -5V5" if inside else f"M{6 * way} -5L0 0L{6 * way} 5"
            parts.append(
                tag("path", d=shape, transform=f"translate({_n(x(end))} {_n(middle)})", class_="span")
            )
    parts += [
        tag("circle", cx=_n(x(value)), cy=_n(middle), r="3.4", class_="dot")
        for value in row.values
        if finite(value)
    ]
    if row.mean is not None and finite(row.mean):
        place = x(row.mean)
        parts.append(
            tag("line", x1=_n(place), x2=_n(place), y1=_n(middle - 9), y2=_n(middle + 9), class_="mean")
        )
    return tag("g", *parts, class_=row.kind)


def _spoken(row: Row) -> str:
    mean = f", mean {compact(row.mean)}" if row.mean is not None else ""
    interval = f", interval {compact(row.interval[0])} to {compact(row.interval[1])}" if row.interval else ""
    return f"{row.label}: {plural(len(row.values), 'value')}{mean}{interval}"


def _label(label: str, x: float, y: float, room: float, anchor: str | None = None, kind: str = "") -> Markup:
    """Text that is cut to its room; the whole text is its tooltip."""
    fits = max(int(room / LETTER), 4)
    if len(label) <= fits:
        return tag("text", label, x=_n(x), y=_n(y), text_anchor=anchor, class_=kind or None)
    cut = label[: fits - 1].rstrip() + "…"
    return tag("text", tag("title", label), cut, x=_n(x), y=_n(y), text_anchor=anchor, class_=kind or None)


def _y_axis(y: Scale, left: float, right: float) -> Markup:
    parts = []
    for value, label in y.ticks(4):
        place = y(value)
        parts.append(tag("line", x1=_n(left), x2=_n(right), y1=_n(place), y2=_n(place), class_="grid"))
        parts.append(tag("text", label, x=_n(left - 6), y=_n(place + 4), text_anchor="end"))
    return tag("g", *parts)


def _x_axis(x: Scale, y: float, label: str, grid_top: float | None = None, whole: bool = False) -> Markup:
    parts = [tag("line", x1=_n(x.start), x2=_n(x.stop), y1=_n(y), y2=_n(y), class_="axis")]
    for value, written in x.ticks(5):
        if whole and value != round(value):
            continue
        place = x(value)
        if grid_top is not None:
            parts.append(tag("line", x1=_n(place), x2=_n(place), y1=_n(grid_top), y2=_n(y), class_="grid"))
        parts.append(tag("line", x1=_n(place), x2=_n(place), y1=_n(y), y2=_n(y + 4), class_="axis"))
        parts.append(tag("text", written, x=_n(place), y=_n(y + 16), text_anchor="middle"))
    middle = (x.start + x.stop) / 2
    parts.append(tag("text", label, x=_n(middle), y=_n(y + 32), text_anchor="middle", class_="unit"))
    return tag("g", *parts)


def _n(value: float) -> str:
    """A coordinate with at most one decimal."""
    written = f"{value:.1f}"
    return written[:-2] if written.endswith(".0") else written
