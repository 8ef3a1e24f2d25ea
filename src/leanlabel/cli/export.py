"""``leanlabel export``: a trained model outside its run folder."""

from __future__ import annotations

from pathlib import Path

import typer

from leanlabel.cli import output


def command(
    run: Path = typer.Argument(help="Folder of the run."),
    form: str = typer.Option(
        ...,
        "--format",
        help="safetensors (model and readout), onnx, or backbone (the encoder alone).",
    ),
    out: Path = typer.Option(..., "--out", help="Folder to make."),
    keys: str = typer.Option(
        "own",
        "--keys",
        help="Names in a backbone: own, torchvision or detectron2 (both of a resnet only).",
    ),
    force: bool = typer.Option(False, "--force", help="Replace the files of a folder that is not empty."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Write a trained model for use elsewhere: predict with it, run it with onnxruntime, or start from it."""
    from leanlabel import api

    found = api.load(run).export(form, out, force=force, keys=keys)
    if as_json:
        output.as_json(found)
        return
    output.table(["file", "bytes"], [[name, size] for name, size in found["files"].items()])
    for name, gap in found.get("check", {}).get("max_abs_difference", {}).items():
        output.say(f"check       {name}: largest difference from the original {gap:.2g}")
    output.say(f"written to  {out}")
