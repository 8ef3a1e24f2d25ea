"""``leanlabel preview``: what the first iterations of a dense recipe would train on, as pictures."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from leanlabel.cli import output


def command(
    recipe: str = typer.Argument(
        help="Name of a packaged recipe, or a YAML file.", autocompletion=output.complete_recipe
    ),
    data: list[str] = typer.Option([], "--data", help="Use this data instead of the recipe's."),
    assignments: list[str] = typer.Option(
        [], "--set", help="Change a key: --set method.sampling.name=rare (may be repeated)."
    ),
    out: Path = typer.Option(Path("preview"), "--out", help="Folder to make."),
    iterations: int = typer.Option(4, "--iterations", min=1, help="How many iterations to show."),
    force: bool = typer.Option(False, "--force", help="Replace the files of a folder that is not empty."),
    as_json: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
) -> None:
    """Write what the first iterations of a recipe with masks see: views, labels, what is pasted; trains nothing."""
    from leanlabel import api, methods
    from leanlabel.export.mask_pictures import legend
    from leanlabel.export.staging import check_target, staged
    from leanlabel.methods.dense_preview import check_kind, previewed, write_preview

    config: Any = api.resolve(recipe, assignments, data)
    kind = methods.find(config.method.name)
    check_kind(kind, config.method.name, config.steps)
    check_target(out, force)
    config = previewed(config)
    method: Any = api.build(config, kind.read(config))
    with staged(out, force) as folder:
        told = write_preview(method, folder, iterations)
        legend(method.classes, None).save(folder / "legend.png")
        written = {path.name for path in folder.iterdir()}
        earlier = _earlier(out)
    for name in earlier - written:  # it would be taken for part of the new preview
        with suppress(OSError):
            (out / name).unlink(missing_ok=True)
    if as_json:
        output.as_json({"out": str(out), **told})
        return
    for term in told["terms"]:
        output.table(
            ["class", "pasted pixels", "share", "images"],
            [[one["name"], one["pixels"], _percent(one["share"]), one["images"]] for one in term["classes"]],
            title=f"{term['term']}: {term['images_with_pasted']} of {term['images']} images with something pasted, "
            f"{_percent(term['share'])} of their pixels",
        )
        if term["start"]:
            output.say(f"start       iteration {term['start']}; until then training goes on without it")
        output.say()
    for note in told["notes"]:
        output.say(f"note        {note}")
    output.say(
        f"pictures    {told['pictures']} of {told['iterations']} iterations; index.csv says what each one shows"
    )
    output.say(f"written to  {out}")


def _earlier(out: Path) -> set[str]:
    """Files that an earlier preview wrote here, by its own index; other names in it are not believed."""
    import csv

    from leanlabel.methods.dense_preview import INDEX, PASTED

    with (
        suppress(OSError, KeyError, ValueError, csv.Error),
        open(out / INDEX, encoding="utf-8", newline="") as handle,
    ):
        names = [row["file"] for row in csv.DictReader(handle)]
        return {name for name in names if name.endswith(".png") and Path(name).name == name} | {PASTED}
    return set()


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"
