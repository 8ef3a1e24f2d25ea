"""When images were taken, as people write it in names and tables."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from leanlabel.data.graph_tables import is_number
from leanlabel.errors import InputError

_DATES = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


def seconds_of(text: str, form: str | None, where: str) -> float:
    """Read a time: seconds since some moment; a time without a zone counts as UTC.

    Args:
        text: as it is written.
        form: how, such as "%Y%m%d_%H%M%S"; None: a number of seconds, or ISO 8601 with separators.
        where: file and line, or the image, for messages.

    Raises:
        InputError: it is written otherwise, or a number that is rather a date.

    Example:
        >>> seconds_of("1525428900.5", None, "x"), seconds_of("2018-05-04T12:15+02:00", None, "x")
        (1525428900.5, 1525428900.0)
        >>> seconds_of("20180504_101500", "%Y%m%d_%H%M%S", "x")
        1525428900.0
    """
    number = form is None and is_number(text)
    if number and ("_" in text or _is_date(text)):
        raise InputError(
            f"{where}: {text[:100]!r} looks like a date, and would be read as a number of seconds.",
            "Set data.pairs.time_format, such as '%Y%m%d%H%M%S' or '%Y%m%d_%H%M%S'.",
        )
    try:
        if number:
            value = float(text)
            if not math.isfinite(value):
                raise ValueError("not finite")
            return value
        moment = datetime.fromisoformat(text) if form is None else datetime.strptime(text, form)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except ValueError as error:
        expected = "a number of seconds or ISO 8601" if form is None else f"a time as {form}"
        raise InputError(
            f"{where}: {text[:100]!r} is not {expected}.",
            "Set data.pairs.time_rule and data.pairs.time_format.",
        ) from error


def _is_date(text: str) -> bool:
    """Whether digits read as year, month and day, with or without hours, minutes and seconds."""
    form = _DATES.get(len(text.partition(".")[0]))
    try:
        return form is not None and 1900 <= datetime.strptime(text.partition(".")[0], form).year < 2100
    except ValueError:
        return False
