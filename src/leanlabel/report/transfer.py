"""The sections on transfer: images with pasted content, how much of each class, and images without their style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leanlabel.report.answer import mapping
from leanlabel.report.charts import _label, _n, _x_axis, figure, svg
from leanlabel.report.gap import _is_number
from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import MISSING, compact, fixed
from leanlabel.report.page import details, section, table
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
"""Letters of all pictures of one section."""
MIXED = {"image": "image", "pasted": "what is pasted", "label": "label"}
REBUILT = {"image": "image", "rebuilt": "from content and style", "zero": "from content alone"}
MEANS = ("head mIoU", "tail mIoU")
"""Names of further numbers of a readout in ``results.json``."""
SEPARATION = {
    "domain accuracy content": "a linear classifier tells the domain by the content: 0.5 is chance, and wanted",
    "domain accuracy style": "it tells the domain by the style: should stay high",
    "content drift": "mean |content of the image without style − content| / mean |content|: 0 is wanted",
    "style emptiness": "mean |style of the image without style|: 0 is wanted",
    "reconstruction error": "mean |image − image rebuilt from content and style|, normalised: low is wanted",
}
"""Scores of held-out images that read no labels, and what they mean."""


@dataclass(frozen=True)
class _Moved:
    """What the file says of a class, as far as it can be believed; shares lie in [0, 1]."""

    known: _Class
    tail: bool | None
    pasted: int | None
    pasted_share: float | None
    source: float | None
    target: float | None


def transfer(
    values: Mapping[str, Any],
    unstyled: Mapping[str, Any],
    results: Mapping[str, Any],
    main: str | None = None,
    called: Mapping[str, str] | None = None,
) -> list[tuple[str, str, Markup | None]]:
    """Anchor, title and content of each section; content is None where the run has nothing for it.

    Args:
        values: ``figures/mixes.json``, as :func:`leanlabel.evaluation.transfer_pictures.transfer_figure` makes it;
            may be damaged.
        unstyled: ``figures/zero_style.json``, as that module's ``zero_style_figure`` makes it; may be damaged.
        results: ``results.json``; may be damaged.
        main: name of the main protocol.
        called: readout -> when the network was as it has it, where its own name would mislead.
    """
    return [
        (
            "pasted",
            "Pasted content",
            _pasted(values, mapping(mapping(results.get("protocols")).get(str(main))), called),
        ),
        ("zero-style", "Content without style", _zero_style(unstyled, mapping(results.get("label_free")))),
    ]


# -- what is pasted ------------------------------------------------------------------------------------------------


def _pasted(
    values: Mapping[str, Any], protocol: Mapping[str, Any], called: Mapping[str, str] | None
) -> Markup | None:
    listed = values.get("classes")
    classes = [
        _moved(k, mapping(one))
        for k, one in enumerate((listed if isinstance(listed, list) else [])[:MOST_CLASSES])
    ]
    examples = _examples(values, classes)
    chart = _chart(classes)
    if examples is None and chart is None:
        return None
    term = values.get("term")
    lead = "Pixels of labelled source images in target images, as training sees them."
    lead = f"{lead} Term: {term[:100]}." if isinstance(term, str) and term else lead
    return section(
        "pasted",
        "Pasted content",
        lead,
        _means(protocol, called or {}),
        chart,
        _table(classes) if chart else None,
        examples,
    )


def _moved(place: int, one: Mapping[str, Any]) -> _Moved:
    tail, count = one.get("tail"), one.get("pasted")
    return _Moved(
        _class(place, one),
        tail if isinstance(tail, bool) else None,
        count if type(count) is int and 0 <= count < 2**53 else None,
        *(_unit(one.get(key)) for key in ("pasted_share", "source_share", "target_share")),
    )


def _means(protocol: Mapping[str, Any], called: Mapping[str, str]) -> Markup | None:
    """Mean IoU of frequent and of rare classes, by readout: one number may hide that one pays for the other."""
    rows = []
    for name, one in mapping(protocol.get("readouts")).items():
        others = mapping(mapping(one).get("others"))
        means = [_unit(others.get(key)) for key in MEANS]
        if any(mean is not None for mean in means):
            rows.append([called.get(name, str(name)), *map(fixed, means)])
    if not rows:
        return None
    caption = join(
        [
            tag("b", "Frequent and rare classes apart"),
            " ",
            tag("span", "rare (tail): the smallest classes by labelled pixels of the source", class_="soft"),
        ]
    )
    return table(["readout", *MEANS], rows, caption=caption, label="Mean IoU of frequent and of rare classes")


def _chart(classes: Sequence[_Moved]) -> Markup | None:
    """A bar for the share of the pasted pixels, a diamond for that of the source's labels."""
    shown = sorted((one for one in classes if one.pasted), key=lambda one: -(one.pasted_share or 0.0))
    order = shown[:MOST_BARS]
    most = max((share for one in order for share in (one.pasted_share, one.source) if share), default=0.0)
    if not most:
        return None
    width, step, left, right = 400.0, 25.0, 132.0, 276.0
    x, bottom = Scale(0, 100 * most * 1.05, left, right), len(order) * step + 2
    parts = [_x_axis(x, bottom, "share in %", grid_top=0)]
    for row, one in enumerate(order):
        middle = row * step + 13
        parts.append(_label(one.known.name, left - 8, middle + 4, left - 10, anchor="end", kind="name"))
        if one.pasted_share is not None:
            parts.append(_bar(left, middle - 8, x(100 * one.pasted_share) - left, 16, "bar"))
        if one.source is not None:
            parts.append(tag("path", d=_diamond(x(100 * one.source), middle), class_="found"))
        written = f"{_percent(one.pasted_share)} ({_percent(one.source)})"
        parts.append(tag("text", written, x=_n(width - 2), y=_n(middle + 4), text_anchor="end"))
    described = "; ".join(
        f"{one.known.name}: {_percent(one.pasted_share)} of the pasted pixels, {_percent(one.source)} of the labels"
        for one in order
    )
    keys = [
        ("of the pasted pixels", tag("rect", x="0", y="1", width="32", height="14", class_="bar")),
        ("of the source's labels", tag("path", d=_diamond(16, 8), class_="found")),
    ]
    count = f"the {len(order)} most pasted of {len(shown)} classes" if len(order) < len(shown) else ""
    told = "; ".join(filter(None, ["share of all pasted pixels, in brackets of the source's labels", count]))
    caption = join([tag("b", "Pasted pixels by class"), " ", tag("span", told, class_="soft")])
    picture = svg(width, bottom + 38, "Pasted pixels by class", described, *parts, kind="wide")
    never = [one.known.name for one in classes if one.tail and one.pasted == 0]
    note = f"May be pasted, but never was: {', '.join(never)}." if never else None
    return figure(caption, join([_keys(keys), picture]), note)


def _table(classes: Sequence[_Moved]) -> Markup:
    rows = []
    for one in classes:
        ratio = one.pasted_share / one.source if one.pasted_share is not None and one.source else None
        rows.append(
            [
                join([_swatch(one.known), " ", tag("b", one.known.name)]),
                MISSING if one.tail is None else "yes" if one.tail else "no",
                compact(one.pasted),
                _percent(one.pasted_share),
                _percent(one.source),
                _percent(one.target),
                fixed(ratio, 2),
            ]
        )
    columns = [
        "class",
        "may be pasted",
        "pixels pasted",
        "of all pasted",
        "of source labels",
        "of pseudo labels",
        "pasted / source",
    ]
    return details("The numbers", table(columns, rows, label="Pasted pixels by class"))


def _examples(values: Mapping[str, Any], classes: Sequence[_Moved]) -> Markup | None:
    shown = []
    for one, pictures in _fitting(values.get("examples"), MIXED, ROOM):
        name, share = _name(one), _unit(one.get("share"))
        listed = one.get("classes")
        pasted = [str(k)[:100] for k in (listed if isinstance(listed, list) else [])[:MOST_CLASSES]]
        told = f"{_percent(share)} pasted" + (f": {', '.join(pasted)}" if pasted else "")
        head = join([tag("b", "Into"), f" {name} ", tag("span", told, class_="soft")])
        alts = {
            "image": f"{name} with pixels of a source image in it",
            "pasted": f"what was pasted into {name}, outlined, everything else pale",
            "label": f"label of the mixed image {name} over it, what was pasted outlined",
        }
        shown.append(_figure(head, pictures, MIXED, alts))
    if not shown:
        return None
    around = values.get("around")
    around = f"labels around it are from {around[:200]}" if isinstance(around, str) and around else ""
    told = around or "labels around it were not at hand when this page was made, and are left out"
    note = f"Before colours change; what is pasted is outlined in white and black; {told}. Without a colour: no label."
    items = [tag("li", _swatch(one.known), tag("span", one.known.name)) for one in classes]
    legend = tag("ul", *items, class_="legend row", aria_label="Colours of the classes") if items else None
    return join([tag("div", legend, tag("p", note, class_="note")), *shown])


# -- content without style -----------------------------------------------------------------------------------------


def _zero_style(values: Mapping[str, Any], scores: Mapping[str, Any]) -> Markup | None:
    rows = [
        [tag("b", name), fixed(scores.get(name)), means]
        for name, means in SEPARATION.items()
        if _is_number(scores.get(name))
    ]
    numbers = (
        table(
            ["measure", "value", "what it means"],
            rows,
            words=(0, 2),
            caption="On images of both domains that were not trained on, where there are any; no label is read.",
            label="How far content and style are apart",
        )
        if rows
        else None
    )
    listed, shown = values.get("domains"), []
    left = ROOM
    for domain in map(mapping, (listed if isinstance(listed, list) else [])[:2]):
        title = {"source": "Source", "target": "Target"}.get(str(domain.get("name")))
        for one, pictures in _fitting(domain.get("examples"), REBUILT, left) if title else ():
            left -= sum(map(len, pictures.values()))
            name, error = _name(one), one.get("error")
            told = f"mean error {fixed(error)}, normalised" if _is_number(error) else ""
            head = join([tag("b", title), f" {name} ", tag("span", told, class_="soft") if told else None])
            alts = {
                "image": f"{name} as it is",
                "rebuilt": f"{name} rebuilt from its content and its style",
                "zero": f"{name} drawn from its content alone, without style",
            }
            shown.append(_figure(head, pictures, REBUILT, alts))
    note = "Images drawn from content alone should look alike in both domains, and still show every object."
    lead = "What the network's features hold, once the look of a domain is taken away."
    pictures = join([tag("p", note, class_="note"), *shown]) if shown else None
    return section("zero-style", "Content without style", lead, numbers, pictures)


# -- pictures ------------------------------------------------------------------------------------------------------


def _fitting(
    listed: Any, wanted: Mapping[str, str], left: int
) -> list[tuple[Mapping[str, Any], dict[str, str]]]:
    """Examples with all their pictures, as many as there is room for."""
    found = []
    for one in map(mapping, listed if isinstance(listed, list) else []):
        pictures = {key: one[key] for key in wanted if _is_picture(one.get(key))}
        needed = sum(map(len, pictures.values()))
        if len(pictures) == len(wanted) and needed <= left:
            left -= needed
            found.append((one, pictures))
    return found


def _name(one: Mapping[str, Any]) -> str:
    name = one.get("id")
    return name[:200] if isinstance(name, str) and name else "an image"


def _figure(
    head: Markup, pictures: Mapping[str, str], names: Mapping[str, str], alts: Mapping[str, str]
) -> Markup:
    panels = [
        tag("div", tag("img", src=f"data:image/png;base64,{held}", alt=alts[key]), tag("p", names[key]))
        for key, held in pictures.items()
    ]
    return figure(head, tag("div", *panels, class_="panels"))
