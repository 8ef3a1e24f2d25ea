"""``leanlabel recipes``: what exists, for which job, at which cost."""

from __future__ import annotations

import typer

from leanlabel.cli import output


def complete_task(incomplete: str) -> list[str]:
    """Jobs that there are recipes for."""
    from leanlabel.recipe import packaged_recipes, read_recipe

    tasks = {str(read_recipe(name).values.get("task", "")) for name in packaged_recipes()}
    return sorted(task for task in tasks if task and task.startswith(incomplete))


def command(
    task: str = typer.Option(
        None,
        "--task",
        help="Only recipes for this job, for example graph.",
        autocompletion=complete_task,
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List the packaged recipes: what exists, for which job, at which cost."""
    from leanlabel.errors import InputError
    from leanlabel.recipe import packaged_recipes, read_recipe

    rows = []
    for name in packaged_recipes():
        values = read_recipe(name).values
        rows.append(
            {key: values.get(key, "") for key in ("task", "fidelity", "cost", "about")} | {"name": name}
        )
    if task:
        known = sorted({row["task"] for row in rows})
        if task not in known:
            raise InputError(
                f"--task {task!r}: no recipe for it yet.", f"There are recipes for: {', '.join(known)}."
            )
        rows = [row for row in rows if row["task"] == task]
    if as_json:
        output.as_json(rows)
        return
    columns = ["name", "task", "fidelity", "cost", "about"]
    output.table(columns, [[row[column] for column in columns] for row in rows])
