"""``leanlabel predict``: classes of rows or of pixels without labels, with how sure the model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    overlay: bool = typer.Option(
        None, "--overlay/--no-overlay", help="Masks: lay them over the images as well; on unless refused."
    ),
    confidence: bool = typer.Option(False, "--confidence", help="Masks: also write maps of the confidence."),
    raw_ids: bool = typer.Option(False, "--raw-ids", help="Masks: write the label ids of the training data."),
    skip_unreadable: bool = typer.Option(
        False, "--skip-unreadable", help="Masks: leave out images that cannot be read."
    ),
    prototypes: bool = typer.Option(
        False,
        "--prototypes",
        help="Masks: name the class of the nearest prototype, not that of the classifier.",
    ),
    support: list[Path] = typer.Option(
        [], "--support", help="Masks: take prototypes from this labelled image (may be repeated)."
    ),
    support_mask: list[Path] = typer.Option(
        [], "--support-mask", help="The mask of each --support, in the same order."
    ),
    support_only: bool = typer.Option(
        False, "--support-only", help="Never predict classes that the labelled images lack."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the summaries as JSON."),
) -> None:
    """Predict the class of every row as a table, or of every pixel as masks, with a summary of what to expect."""
    from leanlabel import api, export
    from leanlabel.errors import InputError
    from leanlabel.export.predictions import predict_inputs

    given = list(inputs or [])
    _check_support(support, support_mask, support_only, prototypes)
    is_run = api.is_run(model) or not export.is_export(model)
    if not is_run and not given:
        raise InputError(f"{model}: an export holds no data.", "Name what is to be predicted.")
    held = api.load(model) if is_run else export.load(model)
    own = held.data if is_run and not given else None
    for_masks = {
        "--overlay": overlay is not None,
        "--confidence": confidence,
        "--raw-ids": raw_ids,
        "--skip-unreadable": skip_unreadable,
        "--prototypes": prototypes,
        "--support": bool(support),
    }
    if _segments(held):
        if form != "csv":
            raise InputError(
                f"--format {form}: this model segments images, whose masks are PNG.", "Leave it out."
            )
        from leanlabel.export.masks import predict_masks
        from leanlabel.export.staging import check_target

        if prototypes or support:
            check_target(out, force)  # before all labelled images are read
            held = _by_prototype(held, model, support, support_mask, support_only)
        whole = getattr(held, "segmenter", None)
        if whole is not None:
            whole()  # the export of an encoder alone is refused before images are looked at
        _show_masks(
            predict_masks(
                held,
                given,
                out,
                own=own,
                overlay=None if overlay is False else "jpeg",
                confidence=confidence,
                raw_ids=raw_ids,
                skip_unreadable=skip_unreadable,
                force=force,
            ),
            out,
            as_json,
        )
        return
    refused = ", ".join(name for name, said in for_masks.items() if said)
    if refused:
        raise InputError(f"{refused}: {model} does not segment images.", "Leave it out.")
    found = predict_inputs(held, given, out, own=own, form=form, force=force)
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


def _check_support(support: list[Path], masks: list[Path], only: bool, prototypes: bool) -> None:
    """Refuse options of prototypes that do not go together, before anything is read."""
    from leanlabel.errors import InputError

    if len(support) != len(masks):
        raise InputError(
            f"--support was given {len(support)} times, --support-mask {len(masks)} times.",
            "Give each labelled image its mask, in the same order.",
        )
    if only and (prototypes or not support):
        why = "--prototypes asks for those of the run" if prototypes else "there are no labelled images"
        raise InputError(f"--support-only: {why}.", "Use it with --support and --support-mask alone.")


def _by_prototype(held: Any, place: Path, images: list[Path], masks: list[Path], only: bool) -> Any:
    """What names the class of the nearest prototype in the place of a run."""
    from types import SimpleNamespace

    from leanlabel import api
    from leanlabel.errors import InputError
    from leanlabel.export.support import read_support
    from leanlabel.methods.nearest_prototype import support_reading

    if not isinstance(held, api.Run):
        raise InputError(
            f"{place}: prototypes need the run itself, not an export.", "Name the folder of the run."
        )
    classes, form = support_reading(held.method)
    bands = getattr(held.method, "band_reading", None)
    reader = held.by_prototype(read_support(images, masks, classes, form, bands), support_only=only)
    names = reader.classes.names
    told = {
        "classes by": "nearest prototype",
        "support": [[str(one), str(other)] for one, other in zip(images, masks, strict=True)],
        "classes of the support": [names[k] for k in reader.supported],
        "never predicted": [name for k, name in enumerate(names) if k not in reader.numbers.tolist()],
    }
    return SimpleNamespace(method=reader, data=held.data, provenance={**held.provenance, **told})


def _segments(held: Any) -> bool:
    """Whether a run or an export names the classes of pixels; a run's method is not built for the question."""
    if hasattr(held, "segment"):
        return True
    config = getattr(held, "config", None)
    name = getattr(getattr(config, "method", None), "name", None)
    if name is None:
        return False
    from leanlabel import methods

    return hasattr(methods.find(name), "segment")


def _show_masks(summary: dict, out: Path, as_json: bool) -> None:
    """Shares of the classes over all images, and where the masks went."""
    if as_json:
        output.as_json({key: value for key, value in summary.items() if key != "images"})
        return
    images, pixels = summary["images"], summary["pixels"]
    output.table(
        ["class", "value", "share", "images"],
        [[one["name"], one["value"], _percent(one["share"]), one["images"]] for one in summary["classes"]],
        title=f"{len(images)} {'image' if len(images) == 1 else 'images'}, {pixels:,} pixels",
    )
    output.say(f"confidence  {_number(summary['mean_confidence'])} on average")
    known = summary["expected"]
    told = (
        f"mIoU {known['miou']:.3f} (measured on {known['part']})" if known else "mIoU unknown: not measured"
    )
    output.say(f"expected    {told}")
    model = summary["model"]
    if "classes by" in model:
        of = ", ".join(model["classes of the support"])
        output.say(f"prototypes  of the support: {of}" if of else "prototypes  of the run")
        if model["never predicted"]:
            output.say(f"never       {', '.join(model['never predicted'])}: no prototype")
    for one in summary["skipped"][:5]:
        output.say(f"skipped     {one['name']}: {one['reason']}")
    if len(summary["skipped"]) > 5:
        output.say(f"skipped     {len(summary['skipped'])} images in all; predictions.json names them")
    also = [kind for kind in ("overlay", "confidence") if images and kind in images[0]]
    output.say(f"masks       {out / 'masks'}{''.join(f', {kind}' for kind in also)}")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


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
