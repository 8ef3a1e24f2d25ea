"""The sections on a segmentation: scores by class, what is taken for what, shares, and images with their errors."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leanlabel.report.answer import mapping
from leanlabel.report.charts import _label, _n, _x_axis, figure, svg
from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import MISSING, fixed, plural
from leanlabel.report.page import details, facts, section, table, words
from leanlabel.report.scales import Scale

MOST_CLASSES = 254
MOST_BARS = 40
"""Classes that are drawn; a table holds all."""
MOST_CELLS = 26
"""Classes of a confusion matrix that is shown whole; of more, the largest confusions are listed."""
LISTED = 20
ROOM = 2_300_000
"""Letters of all pictures on one page."""
SIDE = 1024
# PNG and nothing else, in base64; see neighbours.py.
PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]{20,400000}={0,2}")
KINDS = {"worst": "Worst", "typical": "Typical", "best": "Best"}
PICTURES = {
    "image": "image",
    "label": "label",
    "prediction": "prediction",
    "error": "errors",
    "confidence": "confidence",
    "weight": "weight in the loss",
}
_LEAST = 1e-5  # a share that stands at the left edge


@dataclass(frozen=True)
class _Class:
    """What the file says of a class, as far as it can be believed; shares and scores lie in [0, 1]."""

    place: int
    name: str
    colour: tuple[int, int, int]
    iou: float | None
    untrained: float | None
    boundary: float | None
    share: float | None
    predicted: float | None


def segmentation(values: Mapping[str, Any]) -> list[tuple[str, str, Markup | None]]:
    """Anchor, title and content of each section; content is None where the file does not give it.

    Args:
        values: ``figures/segmentation.json``, as :func:`leanlabel.evaluation.pictures.segmentation_figure` makes it;
            may be damaged.
    """
    listed = values.get("classes")
    classes = [
        _class(k, mapping(one))
        for k, one in enumerate((listed if isinstance(listed, list) else [])[:MOST_CLASSES])
    ]
    # Head before tail; the order of the map decides between equal shares.
    order = sorted(classes, key=lambda one: -(one.share or 0.0))
    return [
        ("classes", "Classes", _by_class(values, order)),
        ("confusion", "Confusion", _confusion(values.get("confusion"), order)),
        ("examples", "Examples", _examples(values.get("examples"), classes)),
    ]


def _class(place: int, one: Mapping[str, Any]) -> _Class:
    colour = one.get("colour")
    known = (
        isinstance(colour, list)
        and len(colour) == 3
        and all(type(v) is int and 0 <= v <= 255 for v in colour)
    )
    scores = [_unit(one.get(key)) for key in ("iou", "untrained", "boundary_iou", "share", "predicted_share")]
    name = one.get("name")
    return _Class(
        place,
        name[:100] if isinstance(name, str) and name else str(place),
        tuple(colour) if known and colour is not None else (128, 128, 128),  # type: ignore[arg-type]
        *scores,
    )


def _unit(value: Any) -> float | None:
    """A number in [0, 1]; None for anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if known else None


def _by_class(values: Mapping[str, Any], order: Sequence[_Class]) -> Markup | None:
    if not order:
        return None
    part = values.get("part")
    told = [(_metric(key), fixed(_unit(value))) for key, value in mapping(values.get("scores")).items()]
    drawn = order[:MOST_BARS]
    columns = [
        "class",
        "IoU",
        "untrained",
        "boundary IoU",
        "share of labels",
        "of predictions",
        "predicted / labelled",
    ]
    numbers = table(columns, [_numbers(one) for one in order], label="Scores and shares by class")
    count = (
        f"The {len(drawn)} largest of {len(order)} classes"
        if len(drawn) < len(order)
        else f"All {len(order)} classes"
    )
    lead = f"Scores on {part}. " if isinstance(part, str) and part else ""
    return section(
        "classes",
        "Classes",
        f"{lead}The most frequent class stands first: what happens to the tail is seen at the end.",
        facts(told, "facts figures"),
        _score_chart(drawn, count),
        _share_chart(drawn, count),
        details("The numbers", numbers),
    )


def _metric(key: Any) -> str:
    known = {"miou": "mIoU", "boundary_iou": "boundary IoU", "frequency_weighted": "frequency-weighted IoU"}
    return known.get(str(key), words(key))


def _numbers(one: _Class) -> list[Any]:
    ratio = one.predicted / one.share if one.predicted is not None and one.share else None
    scores = [fixed(score) for score in (one.iou, one.untrained, one.boundary)]
    name = join([_swatch(one), " ", tag("b", one.name)])
    return [name, *scores, _percent(one.share), _percent(one.predicted), fixed(ratio, 2)]


def _percent(share: float | None) -> str:
    """A share in percent with about three digits.

    >>> _percent(0.2913), _percent(0.00042), _percent(0.000001), _percent(0.0), _percent(None)
    ('29.1 %', '0.042 %', '< 0.001 %', '0 %', '–')
    """
    if share is None:
        return MISSING
    if 0 < share < _LEAST:
        return "< 0.001 %"
    value = 100 * share
    return f"{value:.{0 if value in (0, 100) else 1 if value >= 9.995 else 2 if value >= 0.0995 else 3}f} %"


def _score_chart(classes: Sequence[_Class], count: str) -> Markup:
    width, step, left, right = 400.0, 36.0, 132.0, 352.0
    x, bottom = Scale(0, 1, left, right), len(classes) * step + 2
    parts = [_x_axis(x, bottom, "IoU", grid_top=0)]
    for row, one in enumerate(classes):
        top = row * step
        parts.append(_label(one.name, left - 8, top + 15, left - 10, anchor="end", kind="name"))
        parts.append(tag("text", _percent(one.share), x=_n(left - 8), y=_n(top + 29), text_anchor="end"))
        if one.iou is not None:
            parts.append(_bar(left, top + 4, x(one.iou) - left, 13, "bar"))
        if one.boundary is not None:
            parts.append(_bar(left, top + 20, x(one.boundary) - left, 8, "bar second"))
            parts.append(tag("text", fixed(one.boundary, 2), x=_n(right + 8), y=_n(top + 29)))
        if one.untrained is not None:
            place = _n(x(one.untrained))
            parts.append(tag("line", x1=place, x2=place, y1=_n(top + 1), y2=_n(top + 20), class_="mean"))
        parts.append(tag("text", fixed(one.iou, 2), x=_n(right + 8), y=_n(top + 15), class_="value"))
    described = "; ".join(
        f"{one.name}: IoU {fixed(one.iou)}, untrained {fixed(one.untrained)}, boundary IoU {fixed(one.boundary)}, "
        f"{_percent(one.share)} of the pixels"
        for one in classes
    )
    keys = [("IoU", tag("rect", x="0", y="2", width="32", height="12", class_="bar"))]
    if any(one.boundary is not None for one in classes):
        keys.append(("boundary IoU", tag("rect", x="0", y="4", width="32", height="8", class_="bar second")))
    if any(one.untrained is not None for one in classes):
        keys.append(("IoU untrained", tag("path", d="M16 0V16", class_="mean")))
    caption = join(
        [
            tag("b", "IoU by class"),
            " ",
            tag("span", f"{count}; below each name its share of the pixels", class_="soft"),
        ]
    )
    picture = svg(width, bottom + 38, "IoU by class", described, *parts, kind="wide")
    note = (
        "A dash: the class is neither in the labels nor in the predictions."
        if any(one.iou is None for one in classes)
        else None
    )
    return figure(caption, join([_keys(keys), picture]), note)


def _bar(left: float, top: float, length: float, height: float, kind: str) -> Markup:
    return tag(
        "rect", x=_n(left), y=_n(top), width=_n(max(length, 0.6)), height=_n(height), rx="1.5", class_=kind
    )


def _share_chart(classes: Sequence[_Class], count: str) -> Markup | None:
    shares = [share for one in classes for share in (one.share, one.predicted) if share]
    if not shares:
        return None
    width, step, left, right = 400.0, 25.0, 132.0, 288.0
    low = max(min(shares), _LEAST)
    x = Scale(100 * low / 1.3, 100 * max(max(shares), 10 * low) * 1.1, left + 4, right, log=True)
    bottom = len(classes) * step + 2
    parts = [_x_axis(x, bottom, "share of all pixels in %, logarithmic", grid_top=0)]
    for row, one in enumerate(classes):
        middle = row * step + 13
        ends = [x(100 * share) for share in (one.share, one.predicted) if share]
        parts.append(_label(one.name, left - 8, middle + 4, left - 10, anchor="end", kind="name"))
        if len(ends) == 2:
            parts.append(
                tag("line", x1=_n(ends[0]), x2=_n(ends[1]), y1=_n(middle), y2=_n(middle), class_="span")
            )
        if one.predicted:
            parts.append(tag("path", d=_diamond(x(100 * one.predicted), middle), class_="found"))
        if one.share:
            parts.append(tag("circle", cx=_n(x(100 * one.share)), cy=_n(middle), r="4", class_="bar"))
        written = f"{_bare(one.share)} → {_bare(one.predicted)}"
        parts.append(tag("text", written, x=_n(width - 4), y=_n(middle + 4), text_anchor="end"))
    keys = [
        ("in the labels", tag("circle", cx="16", cy="8", r="5", class_="bar")),
        ("in the predictions", tag("path", d=_diamond(16, 8), class_="found")),
    ]
    described = "; ".join(
        f"{one.name}: {_percent(one.share)} labelled, {_percent(one.predicted)} predicted" for one in classes
    )
    caption = join(
        [tag("b", "Class shares"), " ", tag("span", f"{count}; labelled → predicted, in %", class_="soft")]
    )
    picture = svg(
        width, bottom + 38, "Class shares in labels and predictions", described, *parts, kind="wide"
    )
    return figure(
        caption,
        join([_keys(keys), picture]),
        "A diamond to the left of its dot: the class is predicted too rarely.",
    )


def _diamond(x: float, y: float) -> str:
    return f"M{_n(x)} {_n(y - 5.5)}l5.5 5.5l-5.5 5.5l-5.5 -5.5Z"


def _bare(share: float | None) -> str:
    return _percent(share).removesuffix(" %")


def _keys(keys: Sequence[tuple[str, Markup]]) -> Markup:
    items = [
        tag(
            "li",
            tag("svg", shape, viewBox="0 0 32 16", class_="key long", aria_hidden="true"),
            tag("span", name),
        )
        for name, shape in keys
    ]
    return tag("ul", *items, class_="legend row above", aria_label="Signs")


def _confusion(held: Any, order: Sequence[_Class]) -> Markup | None:
    """Where the pixels of each class go, as shares of the class."""
    count = len(order)
    fits = (
        isinstance(held, list)
        and len(held) == count
        and all(isinstance(row, list) and len(row) == count for row in held)
    )
    # A count beyond this would not come back whole from other programs.
    if (
        not fits
        or not all(type(n) is int and 0 <= n < 2**53 for row in held for n in row)
        or not any(map(any, held))
    ):
        return None
    lead = "Where the pixels of a class go: a row is a label and sums to 100 %, a column is a prediction."
    content = _matrix(held, order) if count <= MOST_CELLS else _largest(held, order)
    return section("confusion", "Confusion", lead, content)


def _matrix(held: list[list[int]], order: Sequence[_Class]) -> Markup:
    heads = [tag("th", tag("span", one.name), scope="col", title=one.name) for one in order]
    rows = []
    for one in order:
        total = sum(held[one.place])
        cells = [_cell(held[one.place][other.place], total, one, other) for other in order]
        rows.append(tag("tr", tag("th", one.name, scope="row", title=one.name), *cells))
    corner = tag("td", "label ↓ prediction →", class_="soft")
    caption = tag(
        "caption",
        tag("b", "Confusion in % of the label"),
        tag("span", "Outlined: right. Empty: none; < 1: less than half a percent."),
    )
    grid = tag("table", caption, tag("thead", tag("tr", corner, *heads)), tag("tbody", *rows), class_="heat")
    return tag("div", grid, class_="scroll", role="region", aria_label="Confusion matrix", tabindex="0")


def _cell(pixels: int, total: int, label: _Class, found: _Class) -> Markup:
    share = pixels / total if total else None
    little = "little" if share is not None and share < 0.005 else ""
    kinds = [f"h{round(9 * share)}" if share else "", little, "own" if label is found else ""]
    written = (
        MISSING if share is None else "" if not pixels else "< 1" if share < 0.005 else f"{100 * share:.0f}"
    )
    told = f"{label.name} taken for {found.name}: {_percent(share)}, {plural(pixels, 'pixel')}"
    return tag("td", written, class_=" ".join(filter(None, kinds)) or None, title=told)


def _largest(held: list[list[int]], order: Sequence[_Class]) -> Markup:
    found = [
        (held[one.place][other.place], one, other) for one in order for other in order if one is not other
    ]
    largest = sorted((row for row in found if row[0]), key=lambda row: -row[0])[:LISTED]
    rows = [
        [one.name, other.name, _percent(pixels / sum(held[one.place])), f"{pixels:,}"]
        for pixels, one, other in largest
    ]
    caption = f"The largest confusions of {len(order)} classes, by pixels"
    return table(["label", "taken for", "share of the label", "pixels"], rows, caption=caption, words=(0, 1))


def _examples(listed: Any, classes: Sequence[_Class]) -> Markup | None:
    examples = [mapping(one) for one in listed] if isinstance(listed, list) else []
    kinds = list(KINDS)
    examples.sort(key=lambda one: kinds.index(one["kind"]) if one.get("kind") in kinds else len(kinds))
    shown, left, used = [], ROOM, set[str]()
    for one in examples:
        pictures = {key: one[key] for key in PICTURES if _is_picture(one.get(key))}
        needed = sum(map(len, pictures.values()))
        if "image" in pictures and len(pictures) > 1 and needed <= left:
            left -= needed
            used |= set(pictures)
            shown.append(_example(one, pictures))
    if not shown:
        return None
    notes = [
        "errors: dark red is wrong, pale is right, hatched is not scored" if "error" in used else "",
        "confidence: white is sure, black is not" if "confidence" in used else "",
        "weight in the loss: white is the largest of the image" if "weight" in used else "",
    ]
    told = "; ".join(note for note in notes if note)
    items = [tag("li", _swatch(one), tag("span", one.name)) for one in classes]
    legend = tag("ul", *items, class_="legend row", aria_label="Colours of the classes") if items else None
    lead = "Worst, typical and best images by their own mIoU: look here before you believe a mean."
    note = tag("p", f"{told[0].upper()}{told[1:]}.", class_="note") if told else None
    return section("examples", "Examples", lead, tag("div", legend, note), *shown)


def _is_picture(held: Any) -> bool:
    """Whether this is a PNG of a modest size."""
    if not isinstance(held, str) or not PNG.fullmatch(held):
        return False
    head = base64.b64decode(held[:32])
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    return 1 <= width <= SIDE and 1 <= height <= SIDE


def _example(one: Mapping[str, Any], pictures: Mapping[str, str]) -> Markup:
    name, accuracy = str(one.get("id") or "an image")[:200], _unit(one.get("accuracy"))
    told = [f"mIoU {fixed(_unit(one.get('miou')))}"]
    told += [f"{_percent(accuracy)} of the pixels right"] if accuracy is not None else []
    head = join(
        [
            tag("b", KINDS.get(str(one.get("kind")), "Example")),
            f" {name} ",
            tag("span", ", ".join(told), class_="soft"),
        ]
    )
    panels = [
        tag(
            "div",
            tag("img", src=f"data:image/png;base64,{held}", alt=f"{PICTURES[key]} of {name}"),
            tag("p", PICTURES[key]),
        )
        for key, held in pictures.items()
    ]
    return figure(head, tag("div", *panels, class_="panels"))


def _swatch(one: _Class) -> Markup:
    red, green, blue = one.colour
    box = tag(
        "rect", x="1", y="1", width="14", height="14", fill=f"rgb({red},{green},{blue})", class_="swatch"
    )
    return tag("svg", box, viewBox="0 0 16 16", class_="key", aria_hidden="true")
