"""HTML and SVG as nested function calls: whatever is not marked as markup is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

VOID = frozenset({"meta", "br", "hr", "img", "path", "line", "rect", "circle", "polyline"})
# Not allowed in XML at all, or not encodable as UTF-8: shown as the replacement character.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML or SVG already and must not be escaped again."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """Escape a value for element content or a quoted attribute; markup passes unchanged.

    Example:
        >>> text("a < b")
        'a &lt; b'
    """
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", str(value)), quote=True))


def join(parts: Iterable[Any]) -> Markup:
    """Escape and concatenate; None is left out."""
    return Markup("".join(text(part) for part in parts if part is not None))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element, well-formed as HTML and as XML.

    Args:
        name: element name; trusted, never from a file.
        children: escaped unless they are `Markup`; None is left out.
        attributes: ``class_`` is class, ``stroke_width`` is stroke-width; None is left out.

    Example:
        >>> tag("p", "1 < 2", class_="note")
        '<p class="note">1 &lt; 2</p>'
    """
    head = name + "".join(
        f' {key.strip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{head}/>" if name in VOID else f"<{head}>{join(children)}</{name}>")
