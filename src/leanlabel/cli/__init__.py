"""The command line: one file per verb. Nothing here imports torch; verbs import what they need when they run."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from leanlabel.cli import (
    compare,
    data,
    doctor,
    embed,
    evaluate,
    export,
    fit,
    init,
    output,
    predict,
    preview,
    recipes,
    report,
    resume,
    show,
)
from leanlabel.errors import InputError, RunError

app = typer.Typer(
    name="leanlabel",
    help="Train good models when labels are scarce, skewed, or come from the wrong domain.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _stoppable(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, saying a word on Ctrl-C outside the training loop; typer alone would leave in silence."""

    @wraps(verb)
    def guarded(*arguments: Any, **options: Any) -> None:
        try:
            verb(*arguments, **options)
        except KeyboardInterrupt as stop:
            _complain(str(stop) or "Stopped.", None)
            raise typer.Exit(130) from stop

    return guarded


VERBS = (recipes, init, show, preview, fit, resume, evaluate, predict, embed, compare, report, export, doctor)

for verb in VERBS:
    app.command(name=verb.__name__.rpartition(".")[2])(_stoppable(verb.command))
app.add_typer(data.app, name="data")


def _version(asked: bool) -> None:
    if asked:
        from leanlabel import __version__

        typer.echo(f"leanlabel {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error. May stand anywhere."),
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_version, is_eager=True
    ),
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 0 (fine), 2 (wrong input), 1 (fault) or 130 (interrupted)."""
    output.take_any_text()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        app(args=[argument for argument in given if argument != "--debug"], prog_name="leanlabel")
    except (InputError, RunError) as error:
        if debug:
            traceback.print_exc()
        _complain(error.message, error.suggestion)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _complain(
            f"An unexpected fault: {type(error).__name__}: {error}",
            None if debug else "Run again with --debug for the traceback.",
        )
        sys.exit(1)


def _complain(message: str, suggestion: str | None) -> None:
    if any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK")):
        return  # one of several processes speaks
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(message, err=True)
    if suggestion:
        typer.echo(f"       {suggestion}", err=True)
