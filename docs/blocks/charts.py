"""Curves of the arms as SVG: readable in print, and told apart without colour."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 460.0, 330.0, 58.0, 52.0, 262.0
LOOKS = {"GRACE": ("#D55E00", "6 4", "circle"), "GCA, degree": ("#0072B2", "", "square")}
"""Arm -> colour, dashes, marker."""

Lines = Mapping[str, Mapping[float, Sequence[float]]]
"""Arm -> setting -> scores in percent."""


def chart(
    title: str,
    panels: Sequence[tuple[str, Lines | None]],
    x_label: str,
    looks: Mapping[str, tuple[str, str, str]] = LOOKS,
    y_label: str = "accuracy %",
) -> str:
    """Panels side by side, a curve per arm with its own dashes and marker, bars of one standard deviation.

    Args:
        title: of the whole picture.
        panels: name and lines of each; None for what has not run.
        x_label: name of the settings.
        looks: arm -> colour, dashes, marker (circle, square or diamond).
        y_label: name and unit of the scores.
    """
    width = WIDTH * len(panels)
    drawn = [
        f'<g transform="translate({place * WIDTH:g} 0)">{_panel(name, lines, x_label, looks, y_label)}</g>'
        for place, (name, lines) in enumerate(panels)
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {HEIGHT:g}" role="img" '
        'aria-labelledby="t d" font-family="Helvetica, Arial, sans-serif">'
    )
    said = "; ".join(_spoken(name, lines) for name, lines in panels)
    parts, wide = _legend(looks)
    legend = f'<g transform="translate({width / 2 - wide / 2:g} {HEIGHT - 14:g})">{parts}</g>'
    return "\n".join(
        [
            head,
            f'<title id="t">{escape(title)}</title>',
            f'<desc id="d">{escape(said)}</desc>',
            f'<rect width="{width:g}" height="{HEIGHT:g}" fill="#ffffff"/>',
            *drawn,
            legend,
            "</svg>\n",
        ]
    )


def _panel(
    name: str, lines: Lines | None, x_label: str, looks: Mapping[str, tuple[str, str, str]], y_label: str
) -> str:
    right = WIDTH - 16
    parts = [_text((LEFT + right) / 2, 24, name, size=15, bold=True)]
    if lines is None:
        parts.append(f'<path d="M{LEFT:g} {TOP:g}V{BOTTOM:g}H{right:g}" fill="none" stroke="#1a1a1a"/>')
        return "".join([*parts, _text((LEFT + right) / 2, (TOP + BOTTOM) / 2, "not run", colour="#555555")])
    values = [value for found in lines.values() for scores in found.values() for value in scores]
    settings = sorted({x for found in lines.values() for x in found})
    span = settings[-1] - settings[0] or 1.0  # one setting stands at the left
    step = next(step for step in (1, 2, 5, 10, 20) if (max(values) - min(values)) / step <= 6)
    low, high = step * (min(values) // step), step * (max(values) // step + 1)

    def x(setting: float) -> float:
        return LEFT + 20 + (setting - settings[0]) / span * (right - LEFT - 40)

    def y(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    for k in range(round((high - low) / step) + 1):
        place = y(low + k * step)
        parts.append(f'<path d="M{LEFT:g} {place:.1f}H{right:g}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 8, place + 4, f"{low + k * step:g}", anchor="end"))
    parts.append(f'<path d="M{LEFT:g} {BOTTOM:g}H{right:g}" stroke="#1a1a1a"/>')
    parts += [_text(x(setting), BOTTOM + 18, f"{setting:g}") for setting in settings]
    parts.append(_text((LEFT + right) / 2, BOTTOM + 36, x_label))
    parts.append(_text(LEFT - 42, TOP - 10, y_label, anchor="start"))
    for arm, (colour, dashes, marker) in looks.items():
        found = lines.get(arm, {})
        means = [(x(setting), y(statistics.fmean(scores))) for setting, scores in found.items()]
        path = " ".join(f"{'L' if k else 'M'}{a:.1f} {b:.1f}" for k, (a, b) in enumerate(means))
        if len(means) > 1:
            parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{_dash(dashes)}/>')
        for (a, b), scores in zip(means, found.values()):
            if len(scores) > 1:
                parts.append(_bar(a, b, b - y(statistics.fmean(scores) + statistics.stdev(scores)), colour))
            parts.append(_mark(marker, a, b, colour))
    return "".join(parts)


def _bar(x: float, y: float, half: float, colour: str) -> str:
    ends = "".join(f"M{x - 4:.1f} {end:.1f}H{x + 4:.1f}" for end in (y - half, y + half))
    return f'<path d="M{x:.1f} {y - half:.1f}V{y + half:.1f}{ends}" fill="none" stroke="{colour}"/>'


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    if kind == "circle":
        return (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="#ffffff" stroke="{colour}" stroke-width="2"/>'
        )
    if kind == "diamond":
        return f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" fill="{colour}"/>'
    return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{colour}"/>'


def _legend(looks: Mapping[str, tuple[str, str, str]]) -> tuple[str, float]:
    """The legend, and how wide it is."""
    parts, start = [], 0
    for arm, (colour, dashes, marker) in looks.items():
        parts.append(
            f'<path d="M{start} -4H{start + 34}" stroke="{colour}" stroke-width="2"{_dash(dashes)}/>'
        )
        parts += [_mark(marker, start + 17, -4, colour), _text(start + 42, 0, arm, anchor="start")]
        start += max(130, 64 + 6 * len(arm))
    return "".join(parts), start - 20


def _dash(dashes: str) -> str:
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    anchor: str = "middle",
    bold: bool = False,
    colour: str = "",
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight} '
        f'fill="{colour or "#1a1a1a"}">{escape(text)}</text>'
    )


def _spoken(name: str, lines: Lines | None) -> str:
    """A panel in words."""
    if lines is None:
        return f"{name}: not run"
    told = (
        f"{arm} {', '.join(f'{statistics.fmean(scores):.1f} at {x:g}' for x, scores in found.items())}"
        for arm, found in lines.items()
        if found
    )
    return f"{name}: {'; '.join(told)}"
