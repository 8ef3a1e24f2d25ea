"""``leanlabel fit``: train a recipe on data."""

from __future__ import annotations

from pathlib import Path

import typer

from leanlabel.cli import output


def command(
    recipe: str = typer.Argument(
        help="Name of a packaged recipe, or a YAML file.", autocompletion=output.complete_recipe
    ),
    data: list[str] = typer.Option([], "--data", help="Use this data instead of the recipe's."),
    run: Path = typer.Option(
        None, "--run", help="Folder of the run; runs/<recipe>/<date-time> when left out."
    ),
    source: str = typer.Option(
        None, "--from", metavar="RUN|FILE", help="Start from the weights of a run, an export or a file."
    ),
    part: str = typer.Option(None, "--part", help="Take only this part of them: backbone."),
    assignments: list[str] = typer.Option(
        [], "--set", help="Change a key: --set optim.lr=0.01 (may be repeated)."
    ),
    as_json: bool = typer.Option(
        False, "--json", help="Print the results as JSON, progress on standard error."
    ),
) -> None:
    """Train a recipe on data, evaluate it beside its baselines, and write a report."""
    from leanlabel import api

    finished = api.fit(
        recipe,
        data=data,
        run=run,
        overrides=assignments,
        source=source,
        part=part,
        tell=None if as_json else output.say,
    )
    print_run(finished, as_json)


def print_run(finished: object, as_json: bool) -> None:
    """Results, warnings and places of a finished run; only the first process speaks."""
    from leanlabel import api, dist

    assert isinstance(finished, api.Run)
    if not dist.is_main():
        return
    if as_json:
        output.as_json({"run": str(finished.path), **finished.results})
        return
    output.say()
    output.show_results(finished.results)
    for warning in finished.warnings:
        output.say(f"warning: {warning}")
    output.say(f"run folder  {finished.path}")
    output.say(f"report      {finished.path / 'report.html'}")
