"""``leanlabel show``: the complete configuration of a recipe."""

from __future__ import annotations

import typer

from leanlabel.cli import output


def command(
    recipe: str = typer.Argument(
        help="Name of a packaged recipe, or a YAML file.", autocompletion=output.complete_recipe
    ),
    assignments: list[str] = typer.Option(
        [], "--set", help="Change a key: --set optim.lr=0.01 (may be repeated)."
    ),
    data: list[str] = typer.Option([], "--data", help="Use this data instead of the recipe's."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of YAML."),
) -> None:
    """Print the complete resolved configuration; saved to a file it can be given to fit."""
    from leanlabel import api
    from leanlabel.config import to_yaml

    config = api.resolve(recipe, assignments, data)
    if as_json:
        output.as_json(config.model_dump(mode="json"))
    else:
        typer.echo(to_yaml(config), nl=False)
