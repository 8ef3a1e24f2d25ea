"""The sections on an adaptation: the target before and after, gain by class, kept pseudo labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leanlabel.engine.runfolder import RunFolder, read_json
from leanlabel.errors import InputError
from leanlabel.report.answer import mapping
from leanlabel.report.charts import _label, _n, _x_axis, bar_chart, figure, svg
from leanlabel.report.gap import stage_folder
from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import MISSING, difference, fixed, signed
from leanlabel.report.page import details, facts, section, table
from leanlabel.report.scales import Scale
from leanlabel.report.segmentation import (
    MOST_BARS,
    MOST_CLASSES,
    _bar,
    _Class,
    _class,
    _diamond,
    _is_picture,
    _keys,
    _percent,
    _swatch,
    _unit,
)

ROOM = 1_500_000
"""Letters of all pictures of this section."""
KINDS = {
    "gained": "Gained most",
    "least lost": "Lost least",
    "lost": "Lost most",
    "least gained": "Gained least",
    "typical": "Typical",
}
PICTURES = ("image", "label", "before", "after")
"""Two and two on a phone, so that before and after stay side by side."""


@dataclass(frozen=True)
class _Changed:
    """What the file says of a class before and after, as far as it can be believed; all in [0, 1]."""

    known: _Class
    before: float | None
    after: float | None
    kept: float | None
    threshold: float | None
    source: float | None
    predicted: float | None

    @property
    def gain(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


def adaptation(run: RunFolder, values: Mapping[str, Any]) -> list[tuple[str, str, Markup | None]]:
    """Anchor, title and content of each section; content is None where the run has nothing for it.

    Args:
        run: its folder, for what is written of stored pseudo labels; may be damaged.
        values: ``figures/adaptation.json``, as :func:`leanlabel.evaluation.adaptation_pictures.adaptation_figure`
            makes it; may be damaged.
    """
    listed = values.get("classes")
    classes = [
        _changed(k, mapping(one))
        for k, one in enumerate((listed if isinstance(listed, list) else [])[:MOST_CLASSES])
    ]
    if not any(one.kept is not None for one in classes):
        classes = _with_kept(classes, _stored(run))
    return [
        ("before-after", "Before and after", _pictures(values, classes)),
        ("gain", "Gain by class", _gains(values, classes)),
    ]


def _stored(run: RunFolder) -> Mapping[str, Any]:
    """What is written of the pseudo labels that the last stage read."""
    folder = stage_folder(run, "pseudo-labels")
    try:
        return mapping(read_json(folder / "manifest.json")) if folder is not None else {}
    except (InputError, OSError, ValueError):
        return {}


def _with_kept(classes: list[_Changed], stored: Mapping[str, Any]) -> list[_Changed]:
    names = mapping(stored.get("classes")).get("names")
    kept, thresholds = stored.get("kept_share"), stored.get("thresholds")
    fits = all(isinstance(one, list) and len(one) == len(classes) for one in (names, kept, thresholds))
    if not fits or names != [one.known.name for one in classes]:
        return classes
    assert isinstance(kept, list)
    assert isinstance(thresholds, list)
    return [
        _Changed(one.known, one.before, one.after, _unit(share), _unit(sure), one.source, one.predicted)
        for one, share, sure in zip(classes, kept, thresholds, strict=True)
    ]


def _changed(place: int, one: Mapping[str, Any]) -> _Changed:
    keys = ("before", "after", "kept", "threshold", "source_share", "predicted_share")
    return _Changed(_class(place, one), *(_unit(one.get(key)) for key in keys))


def _pictures(values: Mapping[str, Any], classes: Sequence[_Changed]) -> Markup | None:
    listed = values.get("examples")
    chosen, left = [], ROOM
    for one in map(mapping, listed if isinstance(listed, list) else []):
        pictures = {key: one[key] for key in PICTURES if _is_picture(one.get(key))}
        needed = sum(map(len, pictures.values()))
        if {"image", "before", "after"} <= pictures.keys() and needed <= left:
            left -= needed
            chosen.append((one, pictures))
    if not chosen:
        return None
    kinds = [str(one.get("kind")) for one, _ in chosen]
    scored = any(_unit(one.get("miou_after")) is not None for one, _ in chosen)
    items = [tag("li", _swatch(one.known), tag("span", one.known.name)) for one in classes]
    legend = tag("ul", *items, class_="legend row", aria_label="Colours of the classes") if items else None
    part = _text(values.get("part"))
    lead = (
        f"The same images of the target{f' ({part})' if part else ''}, seen by the network before and after."
    )
    told = f"Before: {_text(values.get('before')) or 'the weights that training started from'}."
    told += (
        " Images that gained most, that lost most, and typical ones, by their own mIoU."
        if scored
        else " The target has no labels: images are spread evenly, and nothing here says which picture is right."
    )
    told += " Hatched in a label: not scored." if any("label" in pictures for _, pictures in chosen) else ""
    shown = [_example(_title(kinds, place), one, held) for place, (one, held) in enumerate(chosen)]
    note = tag("p", told, class_="note")
    return section("before-after", "Before and after", lead, tag("div", legend, note), *shown)


def _text(value: Any) -> str:
    return value[:200] if isinstance(value, str) else ""


def _title(kinds: Sequence[str], place: int) -> str:
    """What an image stands for; those after the first of a kind come next in its order.

    >>> [_title(["gained", "lost", "typical", "gained", "typical", "odd"], place) for place in (0, 3, 4, 5)]
    ['Gained most', 'Gained most, 2', 'Typical', 'Example']
    """
    kind, rank = kinds[place], kinds[: place + 1].count(kinds[place])
    numbered = kind in KINDS and kind != "typical" and rank > 1
    return f"{KINDS.get(kind, 'Example')}{f', {rank}' if numbered else ''}"


def _example(title: str, one: Mapping[str, Any], pictures: Mapping[str, str]) -> Markup:
    name = _text(one.get("id")) or "an image"
    before, after = (_unit(one.get(f"miou_{key}")) for key in ("before", "after"))
    told = ""
    if before is not None and after is not None:
        told = f"mIoU {fixed(before)} → {fixed(after)}, {difference(after - before, True)}"
    head = join(
        [
            tag("b", title),
            f" {name} ",
            tag("span", told, class_="soft") if told else None,
        ]
    )
    panels = [
        tag(
            "div",
            tag("img", src=f"data:image/png;base64,{held}", alt=f"{key} of {name}"),
            tag("p", key),
        )
        for key, held in pictures.items()
    ]
    return figure(head, tag("div", *panels, class_="panels"))


def _gains(values: Mapping[str, Any], classes: Sequence[_Changed]) -> Markup | None:
    if not any(one.gain is not None or one.kept is not None for one in classes):
        return None
    # The order of the map decides between equal gains.
    order = sorted(classes, key=lambda one: (one.gain is None, -(one.gain or 0.0)))
    gains = [one.gain for one in order if one.gain is not None]
    drawn = order[:MOST_BARS]
    part = _text(values.get("part"))
    told = (
        [
            ("classes that gained", sum(gain > 0 for gain in gains)),
            ("that lost", sum(gain < 0 for gain in gains)),
            ("mean gain", difference(sum(gains) / len(gains), True)),
        ]
        if gains
        else []
    )
    columns = [
        "class",
        "before",
        "after",
        "gain",
        "kept",
        "from confidence",
        "of source labels",
        "of predictions",
    ]
    numbers = table(columns, [_numbers(one) for one in order], label="Gain by class")
    lead = f"IoU on {part}, before → after; " if part and gains else ""
    lead += "the class that gained most stands first." if gains else "Pseudo labels that were kept."
    return section(
        "gain",
        "Gain by class",
        lead[0].upper() + lead[1:],
        facts(told, "facts figures"),
        _gain_chart(drawn, len(order)) if gains else None,
        _kept_chart(drawn),
        details("The numbers", numbers),
    )


def _numbers(one: _Changed) -> list[Any]:
    return [
        join([_swatch(one.known), " ", tag("b", one.known.name)]),
        fixed(one.before),
        fixed(one.after),
        _points(one.gain),
        _percent(one.kept),
        fixed(one.threshold),
        _percent(one.source),
        _percent(one.predicted),
    ]


def _points(gain: float | None) -> str:
    return MISSING if gain is None else signed(100 * gain)


def _gain_chart(classes: Sequence[_Changed], count: int) -> Markup:
    """A bar from the IoU before to that after: filled for a gain, hollow and dashed for a loss."""
    width, step, left, right = 400.0, 36.0, 132.0, 296.0
    x, bottom = Scale(0, 1, left, right), len(classes) * step + 2
    parts = [_x_axis(x, bottom, "IoU", grid_top=0)]
    for row, one in enumerate(classes):
        top = row * step
        parts.append(_label(one.known.name, left - 10, top + 15, left - 12, anchor="end", kind="name"))
        parts.append(tag("text", _percent(one.source), x=_n(left - 10), y=_n(top + 29), text_anchor="end"))
        written = f"{fixed(one.before, 2)} → {fixed(one.after, 2)}"
        parts.append(
            tag("text", _points(one.gain), x=_n(width - 2), y=_n(top + 15), text_anchor="end", class_="value")
        )
        parts.append(tag("text", written, x=_n(width - 2), y=_n(top + 29), text_anchor="end"))
        if one.before is not None and one.after is not None:
            low, high = sorted((x(one.before), x(one.after)))
            parts.append(_stretch(low, top + 9, high - low, one.after >= one.before))
        if one.before is not None:
            parts.append(tag("path", d=_diamond(x(one.before), top + 18), class_="found"))
        if one.after is not None:
            place = _n(x(one.after))
            parts.append(tag("line", x1=place, x2=place, y1=_n(top + 6), y2=_n(top + 30), class_="mean"))
    described = "; ".join(
        f"{one.known.name}: IoU {fixed(one.before)} before, {fixed(one.after)} after, {_points(one.gain)} points"
        for one in classes
    )
    keys = [
        ("before", tag("path", d=_diamond(16, 8), class_="found")),
        ("after", tag("path", d="M16 0V16", class_="mean")),
        ("gain", _stretch(0, 0, 32, True, 16)),
        ("loss", _stretch(1, 1, 30, False, 14)),
    ]
    shown = (
        f"The {len(classes)} that gained most of {count} classes"
        if len(classes) < count
        else f"{count} classes"
    )
    caption = join(
        [
            tag("b", "IoU before and after"),
            " ",
            tag(
                "span",
                f"{shown}; gain in points; below each name its share of the source's labels",
                class_="soft",
            ),
        ]
    )
    picture = svg(width, bottom + 38, "IoU by class before and after", described, *parts, kind="wide")
    note = (
        "A dash: the class is neither in the labels nor in the predictions."
        if any(one.gain is None for one in classes)
        else None
    )
    return figure(caption, join([_keys(keys), picture]), note)


def _stretch(left: float, top: float, length: float, gain: bool, height: float = 18) -> Markup:
    if gain:
        return _bar(left, top, length, height, "bar")
    return tag(
        "rect",
        x=_n(left),
        y=_n(top),
        width=_n(max(length, 0.6)),
        height=_n(height),
        rx="1.5",
        class_="found",
        stroke_dasharray="4 2.5",
    )


def _kept(one: _Changed) -> str:
    known = one.kept is not None and one.threshold is not None
    return f"{_percent(one.kept)}, ≥ {fixed(one.threshold, 2)}" if known else _percent(one.kept)


def _kept_chart(classes: Sequence[_Changed]) -> Markup | None:
    if all(one.kept is None for one in classes):
        return None
    rows = [(one.known.name, one.kept, _kept(one)) for one in classes]
    caption = join(
        [
            tag("b", "Pseudo labels kept"),
            " ",
            tag(
                "span",
                "share of the pixels predicted as the class, and from which confidence on",
                class_="soft",
            ),
        ]
    )
    bars = bar_chart(caption, rows, name="Share of pseudo labels kept by class", top=1.0)
    note = "A dash: the class was never predicted." if any(one.kept is None for one in classes) else None
    return join([bars, tag("p", note, class_="note") if note else None])
