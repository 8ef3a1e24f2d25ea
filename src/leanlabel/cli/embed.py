"""``leanlabel embed``: embeddings of a run's own data or of other data, as a file."""

from __future__ import annotations

from pathlib import Path

import typer

from leanlabel.cli import output


def command(
    run: Path = typer.Argument(help="Folder of the run."),
    data: str = typer.Argument(None, metavar="[INPUT]", help="Data to embed; the run's own when left out."),
    out: Path = typer.Option(..., "--out", help="File to write: .npy (array) or .parquet (with ids)."),
) -> None:
    """Write embeddings as .npy or .parquet, one row per item in the order of the data."""
    from leanlabel import api

    rows, width = api.embed(run, data, out)
    output.say(f"{rows} embeddings of width {width} written to {out}")
