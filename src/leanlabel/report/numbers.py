"""How numbers are written on a page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

MISSING = "–"
MINUS = "−"


def finite(value: Any) -> bool:
    """Whether a value read from a file is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def fixed(value: Any, digits: int = 3) -> str:
    """A number with a fixed count of decimals; a dash where there is none.

    Example:
        >>> fixed(-0.12345), fixed(None)
        ('−0.123', '–')
    """
    if not finite(value):
        return MISSING
    written = f"{value:,.{digits}f}"
    return (written[1:] if float(written.replace(",", "")) == 0 and written[0] == "-" else written).replace(
        "-", MINUS
    )


def signed(value: Any, digits: int = 1) -> str:
    """A difference with its sign; zero has none.

    Example:
        >>> signed(3.21), signed(-0.04), signed(-2)
        ('+3.2', '0.0', '−2.0')
    """
    written = fixed(value, digits)
    if not finite(value) or round(value, digits) == 0:
        return written
    return written if value < 0 else f"+{written}"


def compact(value: Any, digits: int = 4) -> str:
    """Any value: integers with thousands separators, floats with ``digits`` significant digits.

    Example:
        >>> compact(119081), compact(0.00001234), compact(True), compact("x")
        ('119,081', '1.234e−05', 'yes', 'x')
    """
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    if isinstance(value, float):
        if not math.isfinite(value):
            return "not finite"
        wide = 1000 <= abs(value) < 1e9
        return (f"{value:,.0f}" if wide else f"{value:.{digits}g}").replace("-", MINUS)
    if isinstance(value, list | tuple):
        return ", ".join(compact(one, digits) for one in value) or MISSING
    return str(value)


def size(count: Any) -> str:
    """Bytes in binary units.

    Example:
        >>> size(900), size(3 * 2**30)
        ('900 B', '3.00 GiB')
    """
    if not finite(count):
        return MISSING
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return (
        f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}" if value < 1 else f"{_three(value)} {unit}"
    )


def duration(seconds: Any) -> str:
    """Seconds in the unit a person would use.

    Example:
        >>> duration(0.0123), duration(75), duration(7300)
        ('12.3 ms', '1 min 15 s', '2 h 2 min')
    """
    if not finite(seconds):
        return MISSING
    if seconds < 1:
        return f"{_three(seconds * 1000)} ms"
    if seconds < 60:
        return f"{_three(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _three(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "seed"), plural(1200, "class", "classes")
        ('1 seed', '1,200 classes')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def are_shares(values: Iterable[Any]) -> bool:
    """Whether all values lie in [0, 1], so that a difference can be told in points (hundredths)."""
    known = [value for value in values if finite(value)]
    return bool(known) and all(0 <= value <= 1 for value in known)


def difference(value: Any, shares: bool) -> str:
    """A difference of two scores: in points where scores are shares, else as it is.

    Example:
        >>> difference(0.032, True), difference(0.001, True), difference(-2.5, False)
        ('+3.2 points', '+0.1 points', '−2.5')
    """
    if not finite(value):
        return MISSING
    if shares:
        return f"{signed(100 * value)} points"
    return ("+" if value > 0 else "") + compact(float(value), 3)
