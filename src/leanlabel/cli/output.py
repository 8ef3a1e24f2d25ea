"""How verbs print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer


def take_any_text() -> None:
    """Let the standard streams take every character.

    Into a file or pipe goes UTF-8, which is what recipes and JSON are read as (Windows would write its own code page)
    unless PYTHONIOENCODING says otherwise; what a terminal cannot show is shown as an escape, not as a fault at the
    end of a long run.
    """
    for stream in (sys.stdout, sys.stderr):
        change: Any = getattr(stream, "reconfigure", None)
        if change is None:  # not a stream of the system
            continue
        free = not stream.isatty() and not os.environ.get("PYTHONIOENCODING")
        change(encoding="utf-8" if free else None, errors="backslashreplace")


def say(text: str = "") -> None:
    """One line on standard output."""
    typer.echo(text)


def as_json(value: Any) -> None:
    """A value as JSON on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Rows under column names; numbers stand to the right."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = [list(row) for row in rows]
    if title:
        typer.secho(title, bold=True)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(
            isinstance(row[index], int | float) or row[index] is None for row in rows
        )
        grid.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(escape(_cell(value)) for value in row))
    console = Console()
    if not console.is_terminal:  # a pipe has no width to wrap at
        console = Console(width=240)
    console.print(grid)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def complete_recipe(incomplete: str) -> list[str]:
    """Packaged recipes that begin with what was typed; the shell itself offers files where there are none."""
    from leanlabel.recipe import packaged_recipes

    return [name for name in packaged_recipes() if name.startswith(incomplete)]


def show_results(results: dict[str, Any]) -> None:
    """The readouts of every protocol side by side."""
    for protocol in results["protocols"].values():
        split = protocol["split"]
        table(
            ["readout", protocol["metric"], "std", f"{protocol.get('unit', 'split')}s"],
            [
                [name, one["mean"], one["std"], len(one["per_split"])]
                for name, one in protocol["readouts"].items()
            ],
            title=f"{protocol['protocol']} · split {split['name']} · selection: {protocol['selection']}",
        )
        say()
