"""When does it help? Curves over the settings of a dial, with intervals, and the table of verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from leanlabel.report.charts import figure, svg
from leanlabel.report.intervals import interval
from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import MISSING, compact, difference, finite, fixed, plural
from leanlabel.report.page import notice, section, table
from leanlabel.report.scales import Scale, padded
from leanlabel.report.scatter import marker

WIDTH, HEIGHT, LEFT, BOTTOM = 440.0, 250.0, 46.0, 196.0
SYMBOLS = {"helps": "▲", "hurts": "▼", "cannot tell": "◆"}
COLOURS = (0, 3, 2, 4, 1, 5, 6)
"""Colour of the marks of each line; the style sheet gives its lines the same colours in this order."""


@dataclass(frozen=True)
class Series:
    """One line of a dial chart.

    Attributes:
        label: its name.
        points: (setting, mean, low, high); low and high are None where there is no interval.
    """

    label: str
    points: Sequence[tuple[int, float, float | None, float | None]]


def dial_section(
    dial: Mapping[str, Any],
    labels: Mapping[str, str],
    metric: str,
    shares: bool,
    about: Sequence[Markup] = (),
) -> Markup | None:
    """Means, differences and verdicts over the settings; None where there is no dial.

    Args:
        dial: "name", "points" ("text", "x", "arms", "pairs"), "sentences".
        labels: name of an arm -> its label.
        metric: name of the score.
        shares: differences are told in points.
        about: how the scores were measured, one line each.
    """
    points = [one for one in dial.get("points") or [] if isinstance(one, Mapping)]
    if not points:
        return None
    name = str(dial.get("name") or "setting")
    chart = dial_chart(
        join(
            [
                tag("b", metric.capitalize()),
                " ",
                tag("span", "mean and 95 % interval over seeds", class_="soft"),
            ]
        ),
        _means(points, labels),
        points,
        name=f"{metric} over {name}",
        x_label=name,
        y_label=metric,
    )
    said = [tag("li", one) for one in dial.get("sentences") or []]
    return section(
        "dial",
        "When does it help?",
        f"Every arm and seed at every setting of {name}.",
        tag("ul", *said) if said else None,
        chart,
        _means_table(points, labels, name, metric, about),
        _verdict_table(points, labels, name, shares),
    )


def dial_answer(
    dial: Mapping[str, Any], labels: Mapping[str, str], metric: str, shares: bool
) -> Markup | None:
    """At how many settings the first arm helps over all others that it is compared with."""
    points = [point for point in dial.get("points") or [] if isinstance(point, Mapping)]
    found = [_rows(point, "pairs") for point in points]
    first = next((str(pair.get("arm")) for pairs in found for pair in pairs), None)
    if first is None:
        return notice("info", "There is no pair of arms to compare.")
    words: dict[str, list[str]] = {}
    for pairs in found:
        for pair in pairs:
            if str(pair.get("arm")) == first:
                words.setdefault(str(pair.get("against")), []).append(str(pair.get("verdict")))
    helps = sum(
        bool(mine) and all(pair.get("verdict") == "helps" for pair in mine)
        for mine in ([pair for pair in pairs if str(pair.get("arm")) == first] for pairs in found)
    )
    lines = [
        tag(
            "li",
            f"over {_label(other, labels)}: " + ", ".join(f"{said.count(word)} {word}" for word in SYMBOLS),
        )
        for other, said in words.items()
    ]
    kind = "gain" if helps else "none" if any("hurts" in said for said in words.values()) else "unclear"
    others = "every other arm" if len(words) > 1 else _label(next(iter(words)), labels)
    said = [
        tag("p", f"{helps} of {len(points)}", class_="big"),
        tag("p", f"settings at which {_label(first, labels)} helps over {others}", class_="over"),
        tag("ul", *lines, class_="sentence"),
    ]
    chart = difference_chart(dial, labels, metric, shares)
    return tag("div", tag("div", *said, class_="said"), chart, class_=f"answer {kind}")


def difference_chart(
    dial: Mapping[str, Any], labels: Mapping[str, str], metric: str, shares: bool
) -> Markup | None:
    """Paired differences of the first arm over the settings, a line for each other arm; None without any."""
    points = [one for one in dial.get("points") or [] if isinstance(one, Mapping)]
    scale = 100 if shares else 1
    lines: dict[tuple[str, str], list[tuple[int, float, float | None, float | None]]] = {}
    for place, point in enumerate(points):
        for pair in _rows(point, "pairs"):
            if finite(pair.get("difference")):
                ends = [scale * pair[key] if finite(pair.get(key)) else None for key in ("low", "high")]
                one = (place, scale * pair["difference"], ends[0], ends[1])
                lines.setdefault((str(pair.get("arm")), str(pair.get("against"))), []).append(one)
    shown = [pair for pair in _shown([_rows(point, "pairs") for point in points]) if pair in lines]
    series = [Series(f"{_label(a, labels)} − {_label(b, labels)}", lines[a, b]) for a, b in shown]
    unit = f"Difference in {metric}{', points' if shares else ''}"
    return dial_chart(
        join(
            [
                tag("b", unit),
                " ",
                tag("span", "mean and 95 % interval over seeds", class_="soft"),
            ]
        ),
        series,
        points,
        name="Paired differences over the dial",
        x_label=str(dial.get("name") or "setting"),
        y_label=unit,
        zero=True,
        note="Above the dashed line the first arm is ahead.",
    )


def dial_chart(
    title: Any,
    series: Sequence[Series],
    points: Sequence[Mapping[str, Any]],
    *,
    name: str,
    x_label: str,
    y_label: str,
    zero: bool = False,
    note: Any = None,
) -> Markup | None:
    """Lines with intervals over the settings of a dial; None where nothing can be drawn.

    Settings that are all numbers stand at their place on the axis, others one after another. An interval much
    wider than the means is cut at the edge.

    Args:
        title: caption.
        series: the lines.
        points: settings in order, each with "text" and "x".
        name: title of the picture.
        x_label, y_label: names of the axes.
        zero: whether the y axis must hold zero, marked by a line.
        note: text below.
    """
    drawn = [one for one in series if one.points]
    core = [mean for one in drawn for _, mean, *_ in one.points] + ([0.0] if zero and drawn else [])
    if not core:
        return None
    room = 1.0 * (max(core) - min(core)) or max(abs(max(core)) * 0.1, 1e-3)
    ends = [v for one in drawn for *_, low, high in one.points for v in (low, high) if v is not None]
    within = [min(max(v, min(core) - room), max(core) + room) for v in ends]
    y = Scale(*padded([*core, *within]), BOTTOM, 8)
    places = _places(points)
    x = _x_scale(places, _numeric(points))
    parts: list[Markup | None] = [_y_axis(y), _x_axis(x, points, _numeric(points), x_label)]
    if zero:
        parts.append(tag("line", x1=_n(LEFT), x2=_n(WIDTH - 10), y1=_n(y(0)), y2=_n(y(0)), class_="zero"))
    parts += [_line(index, len(drawn), one, x, y, places) for index, one in enumerate(drawn)]
    spoken = "; ".join(
        f"{one.label}: "
        + ", ".join(f"{points[at].get('text')} {compact(mean, 3)}" for at, mean, *_ in one.points)
        for one in drawn
    )
    picture = svg(WIDTH, HEIGHT, name, f"{y_label} over {x_label}. {spoken}", *parts, kind="wide")
    return figure(title, join([picture, _legend(drawn)]), note)


def _line(index: int, count: int, one: Series, x: Scale, y: Scale, places: Sequence[float]) -> Markup:
    """Line, intervals and marks of one series, moved a little aside so that intervals do not hide each other."""
    aside = 5.0 * (index - (count - 1) / 2) if count > 1 else 0.0
    kind, solid = _kind(index), "stroke-dasharray:none"
    ordered = sorted(one.points, key=lambda point: places[point[0]])
    spots = [(x(places[at]) + aside, y(mean)) for at, mean, *_ in ordered]
    parts = []
    if len(spots) > 1:
        path = "M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in spots)
        parts.append(tag("path", d=path, class_=kind))
    for (across, _), (_, _, low, high) in zip(spots, ordered):
        if low is not None and high is not None:
            caps = "".join(
                f"M{_n(across - 3)} {_n(y(end))}H{_n(across + 3)}"
                for end in (low, high)
                if y.low <= end <= y.high
            )
            shape = f"M{_n(across)} {_n(y(low))}V{_n(y(high))}{caps}"
            parts.append(tag("path", d=shape, class_=kind, style=solid))
    for across, up in spots:
        shape = f"M{_n(across)} {_n(up)}{marker(index, 4)}"
        parts.append(tag("path", d=shape, class_=f"point p{COLOURS[index % len(COLOURS)]}"))
    return tag("g", *parts)


def _legend(drawn: Sequence[Series]) -> Markup:
    items = []
    for index, one in enumerate(drawn):
        line = tag("path", d="M0 8H32", class_=_kind(index))
        mark = tag("path", d=f"M16 8{marker(index, 4)}", class_=f"point p{COLOURS[index % len(COLOURS)]}")
        key = tag(
            "svg", line, mark, viewBox="0 0 32 16", class_="key", style="width:2.2rem", aria_hidden="true"
        )
        items.append(tag("li", key, tag("span", one.label)))
    return tag("ul", *items, class_="legend", style="flex-direction:row;flex-wrap:wrap", aria_label="Lines")


def _kind(index: int) -> str:
    return f"curve s{index % len(COLOURS)}" if index else "curve"


def _numeric(points: Sequence[Mapping[str, Any]]) -> bool:
    numbers = [point.get("x") for point in points]
    return len(set(map(str, numbers))) == len(numbers) and all(finite(number) for number in numbers)


def _places(points: Sequence[Mapping[str, Any]]) -> list[float]:
    """Where the settings stand on the x axis."""
    return (
        [float(point["x"]) for point in points]
        if _numeric(points)
        else [float(k) for k in range(len(points))]
    )


def _x_scale(places: Sequence[float], numeric: bool) -> Scale:
    """Logarithmic where numbers are positive and span two decades or more."""
    low, high = min(places), max(places)
    if numeric and low > 0 and high / low >= 100:
        room = (high / low) ** 0.06
        return Scale(low / room, high * room, LEFT, WIDTH - 10, log=True)
    return Scale(*padded(places, 0.08), LEFT, WIDTH - 10)


def _x_axis(x: Scale, points: Sequence[Mapping[str, Any]], numeric: bool, label: str) -> Markup:
    ticks = [(place, str(point.get("text"))) for place, point in zip(_places(points), points)]
    at = sorted(x(place) for place, _ in ticks)
    if numeric and any(b - a < 44 for a, b in pairwise(at)):
        ticks = x.ticks(6)
    room = int((x.stop - x.start) / max(len(ticks), 1) / 7.6)
    parts = [tag("line", x1=_n(x.start), x2=_n(x.stop), y1=_n(BOTTOM), y2=_n(BOTTOM), class_="axis")]
    for value, written in ticks:
        place = x(value)
        parts.append(tag("line", x1=_n(place), x2=_n(place), y1=_n(BOTTOM), y2=_n(BOTTOM + 4), class_="axis"))
        shown = written if numeric or len(written) <= room else written[: max(room - 1, 1)] + "…"
        parts.append(tag("text", shown, x=_n(place), y=_n(BOTTOM + 18), text_anchor="middle"))
    middle = (x.start + x.stop) / 2
    parts.append(tag("text", label, x=_n(middle), y=_n(BOTTOM + 38), text_anchor="middle", class_="unit"))
    return tag("g", *parts)


def _y_axis(y: Scale) -> Markup:
    parts = []
    for value, written in y.ticks(4):
        place = y(value)
        parts.append(tag("line", x1=_n(LEFT), x2=_n(WIDTH - 10), y1=_n(place), y2=_n(place), class_="grid"))
        parts.append(tag("text", written, x=_n(LEFT - 6), y=_n(place + 4), text_anchor="end"))
    return tag("g", *parts)


def _means(
    points: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
) -> list[Series]:
    lines: dict[str, list[tuple[int, float, float | None, float | None]]] = {}
    for place, point in enumerate(points):
        for arm in _rows(point, "arms"):
            values = [run["value"] for run in _rows(arm, "runs") if finite(run.get("value"))]
            if values:
                low, high = interval(values) or (None, None)
                one = (place, sum(values) / len(values), low, high)
                lines.setdefault(str(arm.get("name")), []).append(one)
    return [Series(_label(name, labels), found) for name, found in lines.items()]


def _means_table(
    points: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
    name: str,
    metric: str,
    about: Sequence[Markup],
) -> Markup | None:
    """Mean of every arm by setting."""
    arms = list(dict.fromkeys(str(arm.get("name")) for point in points for arm in _rows(point, "arms")))
    rows = []
    for point in points:
        by = {str(arm.get("name")): arm for arm in _rows(point, "arms")}
        counts = {arm.get("n") for arm in by.values()}
        seeds = compact(counts.pop()) if len(counts) == 1 else MISSING
        rows.append([tag("b", point.get("text")), seeds, *(fixed(by.get(a, {}).get("mean")) for a in arms)])
    caption = join([tag("b", f"Mean {metric} at {plural(len(points), 'setting')}"), *about])
    columns = [name, "seeds", *(_label(arm, labels) for arm in arms)]
    return table(columns, rows, caption=caption, label="Means over the dial")


def _verdict_table(
    points: Sequence[Mapping[str, Any]], labels: Mapping[str, str], name: str, shares: bool
) -> Markup | None:
    """Difference and verdict of the pairs that are drawn, by setting."""
    shown = _shown([_rows(point, "pairs") for point in points])
    if not shown:
        return None
    rows = []
    for point in points:
        by = {(str(pair.get("arm")), str(pair.get("against"))): pair for pair in _rows(point, "pairs")}
        rows.append([tag("b", point.get("text")), *(_verdict(by.get(pair), shares) for pair in shown)])
    columns = [name, *(f"{_label(a, labels)} − {_label(b, labels)}" for a, b in shown)]
    return table(columns, rows, caption=tag("b", "Paired differences"), label="Differences over the dial")


def _verdict(pair: Mapping[str, Any] | None, shares: bool) -> str:
    if pair is None:
        return MISSING
    word = str(pair.get("verdict"))
    return (
        f"{difference(pair.get('difference'), shares).removesuffix(' points')} {SYMBOLS.get(word, '')} {word}"
    )


def _shown(found: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """The pairs of the first arm; all of them where all arms are compared with one."""
    pairs = list(
        dict.fromkeys((str(pair.get("arm")), str(pair.get("against"))) for rows in found for pair in rows)
    )
    one_reference = len({against for _, against in pairs}) == 1
    return [pair for pair in pairs if one_reference or pair[0] == pairs[0][0]]


def _rows(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = value.get(key)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _label(name: str, labels: Mapping[str, str]) -> str:
    return labels.get(name, name)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
