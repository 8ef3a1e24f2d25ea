"""``leanlabel data``: look at data before training on it."""

from __future__ import annotations

from pathlib import Path

import typer

from leanlabel.cli import output

app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def check(
    what: str = typer.Argument(
        metavar="PATH|RECIPE", help="A graph file or folder, or a recipe whose data to check."
    ),
    html: Path = typer.Option(None, "--html", help="Also write the findings to this HTML page."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Check data: counts, classes, duplicates, leaks, whatever would spoil a training. Exits with 2 on errors."""
    from leanlabel import api

    findings = api.check(what)
    if html is not None:
        from leanlabel.report.findings import write_findings

        write_findings(html, f"Data check of {what}", findings)
    if as_json:
        output.as_json(findings)
    else:
        output.table(
            ["severity", "code", "count", "message"],
            [[one["severity"], one["code"], one["count"], one["message"]] for one in findings],
        )
    if any(one["severity"] == "error" for one in findings):
        raise typer.Exit(2)
