"""``leanlabel init``: a recipe that fits given data, every line with its reason."""

from __future__ import annotations

from pathlib import Path

import typer

from leanlabel.cli import output


def command(
    task: str = typer.Argument(help="Kind of job, for example graph."),
    data: list[str] = typer.Argument(
        metavar="DATA...", help="The data; a source and a target where the task adapts."
    ),
    out: Path = typer.Option(None, "--out", help="Recipe file to write; printed when left out."),
    force: bool = typer.Option(False, "--force", help="Replace the file if it exists."),
    as_json: bool = typer.Option(
        False, "--json", help="Print key, value and reason of every choice as JSON."
    ),
) -> None:
    """Look at data and write a commented recipe with settings that fit it."""
    if out is not None:
        _check_place(out, force)
    from rich.console import Console

    from leanlabel.advice import advise
    from leanlabel.advice.recipe import to_text

    with Console(stderr=True).status("looking at the data"):
        advice = advise(task, data)
    text = to_text(advice, str(out) if out is not None else "recipe.yaml")
    if out is not None:
        from leanlabel.engine.runfolder import write_text

        write_text(out, text)
    if as_json:
        output.as_json([{"key": one.key, "value": one.value, "reason": one.reason} for one in advice.choices])
    elif out is None:
        typer.echo(text, nl=False)
    else:
        output.say(f"recipe      {out}")
    # Beside a recipe or JSON on standard output, which may go into a file.
    for warning in advice.warnings:
        typer.echo(warning, err=True)


def _check_place(out: Path, force: bool) -> None:
    from leanlabel.errors import InputError

    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {out}: a recipe file ends with .yaml or .yml.")
    if out.is_dir():
        raise InputError(f"--out {out}: this is a folder.", "Give the name of a file in it.")
    if out.exists() and not force:
        raise InputError(f"--out {out}: this file exists.", "Give another name, or --force to replace it.")
