"""The page of a data check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leanlabel.engine.runfolder import write_text
from leanlabel.report.markup import tag
from leanlabel.report.numbers import MISSING, compact, plural
from leanlabel.report.page import code, header, notice, page, section, table

SEVERITIES = {
    "error": ("Errors", "Training on this data would fail or mean nothing."),
    "warning": ("Warnings", "Training works, but the result may not be what was wanted."),
    "info": ("Facts", "What was found; nothing to do."),
}


def write_findings(path: str | Path, title: str, findings: Sequence[Mapping[str, Any]]) -> Path:
    """Write one self-contained page with the findings of a data check, errors first.

    Args:
        path: where the page goes.
        title: what was checked.
        findings: mappings with "severity" (error, warning or info), "code", "message" and "count".

    Returns:
        Path of the page.

    Raises:
        RunError: the page cannot be written; an earlier page is untouched.
    """
    write_text(Path(path), findings_page(title, findings))
    return Path(path)


def findings_page(title: str, findings: Sequence[Mapping[str, Any]]) -> str:
    """The HTML of :func:`write_findings`."""
    order = [
        *SEVERITIES,
        *dict.fromkeys(str(one.get("severity")) for one in findings if _kind(one) not in SEVERITIES),
    ]
    groups = {kind: [one for one in findings if _kind(one) == kind] for kind in order}
    errors, warnings, rest = (len(groups[kind]) for kind in SEVERITIES)
    told = f"{plural(errors, 'error')}, {plural(warnings, 'warning')}, {plural(rest, 'fact')}."
    if errors:
        box = notice("bad", "This data has errors.", tag("p", told))
    elif warnings:
        box = notice("warn", "This data can be used; read the warnings first.", tag("p", told))
    else:
        box = notice("good", "Nothing found that would spoil a training.", tag("p", told))
    parts = []
    for kind, group in groups.items():
        name, lead = SEVERITIES.get(kind, (kind.capitalize(), ""))
        rows = [
            [one.get("message", ""), code(one.get("code", MISSING)), compact(one.get("count"))]
            for one in group
        ]
        listed = (
            table(["finding", "code", "count"], rows, words=(0, 1), label=name, kind="fixed")
            if rows
            else None
        )
        parts.append(section(kind if kind in SEVERITIES else "other", name, lead, listed))
    return page(
        f"{title} – leanlabel", header("leanlabel data check", title, box), parts, "Written by leanlabel."
    )


def _kind(finding: Mapping[str, Any]) -> str:
    return str(finding.get("severity"))
