"""Markdown tables and plain values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def plain(value: Any) -> str:
    """A value as a recipe would write it."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float):
        return repr(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=_section)


def _section(value: Any) -> Any:
    """The keys of a section that stands in a list; those that are empty are left out."""
    return {key: one for key, one in value.model_dump(mode="json", exclude_defaults=True).items() if one}


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Key path -> value, sections opened."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
