"""What a look at data finds: one thing each, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing about the data.

    Args:
        severity: "error" stops training or evaluation, "warning" may explain a bad result, "info" is a fact.
        code: short stable name, for programs.
        message: one sentence, for people.
        count: the number the sentence is about.
    """

    severity: Severity
    code: str
    message: str
    count: int


def share(count: int, total: int) -> str:
    """A count as a share of a total.

    >>> share(1, 3), share(0, 0)
    ('33.3 %', '0 %')
    """
    return f"{100 * count / max(total, 1):.3g} %"


SMALL_CLASS = 10
"""Fewer rows than this and a 10 % split may miss the class."""
LONG_TAIL = 10
"""Times that the largest class is as large as the smallest, from which on it is said."""


def class_findings(
    present: Sequence[tuple[int, str]], absent: int, what: str, *, shares: bool
) -> list[Finding]:
    """What sizes of classes say: their list, a long tail, small and absent classes.

    Args:
        present: (rows, name) of the classes that have rows, largest first; at least one.
        absent: classes without any.
        what: one row, as in "node".
        shares: tell the share of each class, too.
    """
    rows = sum(count for count, _ in present)
    shown = ", ".join(
        f"{name} {count}" + (f" ({share(count, rows)})" if shares else "") for count, name in present[:12]
    )
    more = ", ..." if len(present) > 12 else ""
    found = [Finding("info", "classes", f"{len(present)} classes: {shown}{more}", len(present))]
    ratio = present[0][0] / present[-1][0]
    if ratio >= LONG_TAIL:
        text = f"long tail: the largest class is {ratio:.0f} times the smallest; look at macro scores too"
        found.append(Finding("warning", "long_tail", text, int(ratio)))
    small = [name for count, name in present if count < SMALL_CLASS]
    if small:
        text = f"{len(small)} classes have fewer than {SMALL_CLASS} {what}s, a 10 % split may miss them: "
        found.append(Finding("warning", "small_classes", text + ", ".join(small[:12]), len(small)))
    if absent:
        found.append(Finding("warning", "absent_classes", f"{absent} classes have no {what}", absent))
    return found
