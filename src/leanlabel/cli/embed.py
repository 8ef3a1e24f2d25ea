"""``leanlabel embed``: embeddings of a run's own data or of other data, as a file."""

from __future__ import annotations

from pathlib import Path

import typer

from leanlabel.cli import output


def command(
    model: Path = typer.Argument(metavar="RUN|EXPORT", help="Folder of a run or of a safetensors export."),
    data: str = typer.Argument(None, metavar="[INPUT]", help="Data to embed; a run's own when left out."),
    out: Path = typer.Option(..., "--out", help="File to write: .npy (array) or .parquet (with ids)."),
) -> None:
    """Write embeddings as .npy or .parquet, one row per item in the order of the data (images: sorted by path)."""
    from leanlabel import api, export
    from leanlabel.errors import InputError
    from leanlabel.export.embeddings import embed_input

    if api.is_run(model) or not export.is_export(model):
        rows, width = api.embed(model, data, out)
    elif data is None:
        raise InputError(f"{model}: an export holds no data.", "Name what is to be embedded.")
    else:
        rows, width = embed_input(model, data, out)
    output.say(f"{rows} embeddings of width {width} written to {out}")
