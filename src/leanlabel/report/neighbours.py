"""The section that shows images with their nearest neighbours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from leanlabel.report.answer import mapping
from leanlabel.report.markup import Markup, tag
from leanlabel.report.numbers import finite, fixed, plural
from leanlabel.report.page import section

MOST = 64
"""Pictures on one page."""
# PNG and nothing else, in base64: the first eight bytes of every PNG file give "iVBORw0KGgo".
PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]{20,60000}={0,2}")


def neighbours(values: Mapping[str, Any]) -> Markup | None:
    """Some images, each with the training images whose embeddings are closest."""
    listed = values.get("queries")
    queries = [one for one in map(mapping, listed if isinstance(listed, list) else []) if picture(one)]
    left, rows, same = MOST, [], []
    for query in queries:
        near = query.get("neighbours")
        found = [one for one in map(mapping, near if isinstance(near, list) else []) if picture(one)]
        if left < 1 + len(found) or not found:
            break
        left -= 1 + len(found)
        same += [one["same"] for one in found if isinstance(one.get("same"), bool)]
        rows.append(_row(query, found))
    if not rows:
        return None
    lead = "A picture, not a measurement: what the embedding takes for alike."
    return section("neighbours", "Nearest neighbours", lead, _told(values, same), *rows)


def picture(entry: Mapping[str, Any]) -> str | None:
    """The address of an entry's picture; None for anything that is not a small PNG."""
    held = entry.get("image")
    return f"data:image/png;base64,{held}" if isinstance(held, str) and PNG.fullmatch(held) else None


def _told(values: Mapping[str, Any], same: list[bool]) -> Markup:
    """Where the images come from, and how often the class agrees."""
    asked, bank = str(values.get("asked") or "images"), str(values.get("bank") or "images")
    size = values.get("bank_size")
    among = f"{size:,} {bank}" if isinstance(size, int) else bank
    text = f"On the left {asked}, one row each; beside them the closest of {among}, by cosine, closest first."
    if not same:
        return tag("p", text)
    counted = f" {sum(same)} of {plural(len(same), 'neighbour')} {'has' if len(same) == 1 else 'have'} the class of "
    key = " ✓ is the same class, ✗ another one."
    return tag("p", text, tag("strong", counted + "their query."), key)


def _row(query: Mapping[str, Any], found: list[Mapping[str, Any]]) -> Markup:
    asked = tag(
        "div",
        _image(query, "Query"),
        tag("p", tag("b", query.get("class") or query.get("name") or "query")),
        class_="asked",
    )
    items = [
        tag("li", _image(one, f"Neighbour {place}"), *_caption(one), class_=_kind(one))
        for place, one in enumerate(found, start=1)
    ]
    return tag("div", asked, tag("ol", *items), class_="near")


def _image(entry: Mapping[str, Any], what: str) -> Markup:
    name = entry.get("name")
    described = f"{what}: {name}" if name else what
    return tag("img", src=picture(entry), alt=described, title=name or None)


def _caption(entry: Mapping[str, Any]) -> list[Markup | None]:
    """Mark and cosine of a neighbour, and its class below."""
    same, mark = entry.get("same"), None
    if isinstance(same, bool):
        sign, word = ("✓", "same class") if same else ("✗", "another class")
        mark = tag("span", sign, class_="mark", role="img", aria_label=word)
    alike = entry.get("similarity")
    told = tag("span", fixed(alike, 2), class_="soft") if finite(alike) else None
    between = " " if mark and told else None
    known = entry.get("class")
    return [tag("p", mark, between, told) if mark or told else None, tag("p", known) if known else None]


def _kind(entry: Mapping[str, Any]) -> str | None:
    same = entry.get("same")
    return ("alike" if same else "unlike") if isinstance(same, bool) else None
