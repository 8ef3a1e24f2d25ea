"""``leanlabel resume``: go on with a run that was stopped or killed, or train a finished one longer."""

from __future__ import annotations

from pathlib import Path

import typer

from leanlabel.cli import output
from leanlabel.cli.fit import print_run


def command(
    run: Path = typer.Argument(help="Folder of the run."),
    assignments: list[str] = typer.Option(
        [], "--set", help="Change steps, engine.* or evaluation.*: --set steps=400 (may be repeated)."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Go on with a run from its newest checkpoint; the result is the same as without the stop."""
    from leanlabel import api

    print_run(api.resume(run, overrides=assignments, tell=None if as_json else output.say), as_json)
