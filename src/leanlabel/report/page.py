"""The shell of a page and its building blocks: sections, tables, notices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from leanlabel.report.markup import Markup, join, tag, text
from leanlabel.report.numbers import compact

# A page may load nothing, neither from the network nor from a disk; its own styles and the pictures that stand in it
# are the only exceptions.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def page(title: str, header: Markup, sections: Iterable[Markup | None], footer: str) -> str:
    """A complete, self-contained HTML document.

    Args:
        title: title of the window.
        header: what stands above the sections.
        sections: made by :func:`section`; None is left out.
        footer: one sentence at the end.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(_style())),
    )
    body = tag("body", tag("main", header, *sections, tag("footer", tag("p", footer))))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _style() -> str:
    return resources.files("leanlabel.report").joinpath("style.css").read_text(encoding="utf-8")


def header(kicker: str, title: str, *content: Any) -> Markup:
    """The top of a page: what it is, its title, anything else."""
    return tag("header", tag("p", kicker, class_="kicker"), tag("h1", title), *content)


def section(anchor: str, title: str, lead: Any, *content: Any) -> Markup | None:
    """A section with its heading and one sentence in the margin; None where all content is missing."""
    kept = [part for part in content if part]
    if not kept:
        return None
    side = tag("div", tag("h2", title), tag("p", lead, class_="lead") if lead else None, class_="side")
    return tag("section", side, tag("div", *kept, class_="content"), id=anchor)


def contents(sections: Sequence[tuple[str, str, Markup | None]]) -> Markup | None:
    """Links to the sections that are there, given as (anchor, title, section)."""
    links = [tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title, part in sections if part]
    return tag("nav", tag("ul", *links), aria_label="Sections") if len(links) > 2 else None


def notice(kind: str, title: str, *content: Any) -> Markup:
    """A marked box; `kind` is "good", "bad", "warn" or "info". The title says what the colour says."""
    return tag("div", tag("p", tag("strong", title)), *content, class_=f"notice {kind}", role="note")


def paragraphs(lines: Iterable[Any]) -> Markup:
    """One paragraph per line."""
    return join(tag("p", line) for line in lines)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    caption: Any = None,
    strong: Sequence[int] = (),
    words: Sequence[int] = (0,),
    label: str = "Table",
    kind: str | None = None,
) -> Markup:
    """A table in a box of its own that scrolls sideways where the screen is narrow.

    Args:
        columns: headings.
        rows: cells; the first cell of a row is its heading.
        caption: what the numbers are.
        strong: rows to set in bold.
        words: columns of words; all others hold numbers and stand to the right.
        label: name of the box for screen readers.
        kind: class in the style sheet; "fixed" gives several tables of three columns the same widths.
    """

    def place(column: int) -> str | None:
        return None if column in words else "number"

    head = tag("tr", *(tag("th", name, scope="col", class_=place(i)) for i, name in enumerate(columns)))
    body = []
    for number, row in enumerate(rows):
        first, *rest = row
        cells = [tag("td", cell, class_=place(i)) for i, cell in enumerate(rest, start=1)]
        heading = tag("th", first, scope="row", class_=place(0))
        body.append(tag("tr", heading, *cells, class_="best" if number in strong else None))
    content = [tag("caption", caption) if caption else None, tag("thead", head), tag("tbody", *body)]
    return tag(
        "div",
        tag("table", *content, class_=kind),
        class_="scroll",
        role="region",
        aria_label=label,
        tabindex="0",
    )


def facts(values: Mapping[str, Any] | Sequence[tuple[str, Any]], kind: str = "facts") -> Markup | None:
    """Names and values side by side; None where there are none."""
    pairs = list(values.items()) if isinstance(values, Mapping) else list(values)
    rows = [
        tag("div", tag("dt", name), tag("dd", value if isinstance(value, Markup) else compact(value)))
        for name, value in pairs
    ]
    return tag("dl", *rows, class_=kind) if rows else None


def words(key: Any) -> str:
    """A key as words: ``self_loops_removed`` is "self loops removed"."""
    return str(key).replace("_", " ")


def details(summary: Any, *content: Any, opened: bool = False) -> Markup:
    """Content that is folded away until it is asked for; print shows it."""
    return tag("details", tag("summary", summary), *content, open="open" if opened else None)


def code(value: Any) -> Markup:
    """A name as it is written in a file."""
    return tag("code", text(value))
