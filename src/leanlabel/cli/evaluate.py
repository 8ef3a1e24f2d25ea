"""``leanlabel evaluate``: measure a run by a named protocol."""

from __future__ import annotations

from pathlib import Path

import typer

from leanlabel.cli import output


def command(
    run: Path = typer.Argument(help="Folder of the run."),
    protocol: str = typer.Option(None, "--protocol", help="Named protocol; the recipe's when left out."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Measure a run by a named protocol, beside raw features and the untrained model, and renew its report."""
    from leanlabel import api

    results = api.evaluate(run, protocol)
    if as_json:
        output.as_json(results)
    else:
        output.show_results(results)
        output.say(f"report      {run / 'report.html'}")
