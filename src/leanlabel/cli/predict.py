"""``leanlabel predict``: classes of rows without labels, with how sure the model is."""

from __future__ import annotations

from pathlib import Path

import typer

from leanlabel.cli import output


def command(
    model: Path = typer.Argument(metavar="RUN|EXPORT", help="Folder of a run or of a safetensors export."),
    inputs: list[str] = typer.Argument(
        None, metavar="[INPUT]...", help="Data to predict; a run's own when left out."
    ),
    out: Path = typer.Option(..., "--out", help="Folder to make; several inputs get a folder each below it."),
    form: str = typer.Option("csv", "--format", help="csv, parquet or npz."),
    force: bool = typer.Option(False, "--force", help="Replace the files of a folder that is not empty."),
    as_json: bool = typer.Option(False, "--json", help="Print the summaries as JSON."),
) -> None:
    """Predict the class of every row: a table of probabilities and a summary with the accuracy to expect."""
    from leanlabel import api, export
    from leanlabel.errors import InputError
    from leanlabel.export.predictions import predict_inputs

    given = list(inputs or [])
    if api.is_run(model) or not export.is_export(model):
        run = api.load(model)
        own = None if given else run.data
        found = predict_inputs(run, given, out, own=own, form=form, force=force)
    elif given:
        found = predict_inputs(export.load(model), given, out, form=form, force=force)
    else:
        raise InputError(f"{model}: an export holds no data.", "Name what is to be predicted.")
    if as_json:
        output.as_json(found)
        return
    for one in found:
        output.table(
            ["class", "rows"],
            [[row["name"], row["rows"]] for row in one["classes"]],
            title=f"{one['input']}: {one['rows']} rows",
        )
        output.say(f"confidence  {_number(one['mean_confidence'])} on average")
        output.say(f"entropy     {_number(one['mean_entropy'])} nats, {one['largest_entropy']:.4g} at most")
        output.say(f"seen        {one['seen']} rows were used to fit the readout")
        output.say()
    output.say(f"expected    {expected(found[0]['readout'])}")
    output.say(f"written to  {out}")


def expected(readout: dict) -> str:
    """The accuracy to expect, with how it was measured, in one line."""
    known = readout.get("expected")
    if known is None:
        return "accuracy unknown: it was not measured"
    spread = "" if known["std"] is None else f" ± {known['std']:.3f}"
    splits = "1 split" if known["splits"] == 1 else f"{known['splits']} splits"
    return (
        f"accuracy {known['accuracy']:.3f}{spread} on unseen rows ({known['protocol']}, {known['split']}, "
        f"{splits}, {known['training_rows']} training rows each)"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
