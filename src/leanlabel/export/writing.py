"""From a trained model to an export folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from leanlabel import __version__
from leanlabel.engine.checkpoint import save_tensors
from leanlabel.engine.method import Exported
from leanlabel.engine.runfolder import read_json, write_json
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import Classifier
from leanlabel.export import layout
from leanlabel.export.onnx_file import check_packages, write_onnx
from leanlabel.export.public_names import CONFIGS, DETECTRON2, check_keys, renamed, write_detectron2
from leanlabel.export.reading import READOUT
from leanlabel.export.staging import check_target, staged


@dataclass(frozen=True)
class Model:
    """Everything that an export is made of.

    Attributes:
        exported: network and settings, from the method.
        classifier: readout of the classes; None where there is none.
        provenance: recipe, method, data, iterations: plain data.
    """

    exported: Exported
    classifier: Classifier | None
    provenance: dict[str, Any]


def write(
    model: Model, form: str, out: Path, *, data: Any = None, force: bool = False, keys: str = "own"
) -> dict[str, Any]:
    """Write an export folder, whole or not at all.

    Args:
        model: what to export.
        form: "safetensors", "onnx" or "backbone".
        out: folder to make.
        data: the run's own data, on which an ONNX model is checked against the original.
        force: replace files of a folder that is there already, and remove an earlier export in another format.
        keys: whose names the tensors of a backbone get: "own", "torchvision" or "detectron2".

    Returns:
        Plain data: folder, files with sizes in bytes and, for onnx, what the check measured.

    Raises:
        InputError: unknown format, a place that is taken or belongs to a run, a missing package, a network that
            ONNX has no form or another library no names for.
        RunError: the files could not be written, or the ONNX model does not compute what the original does.
    """
    if form not in layout.FORMATS:
        raise InputError(f"--format {form}: an export is one of {', '.join(layout.FORMATS)}.")
    # An encoder of images has the names of a backbone of images, whatever was trained on top of it.
    named = "images" if "backbone" in model.exported.config else model.exported.kind
    check_keys(keys, form, named, model.exported.config)
    check_target(out, force)
    found: dict[str, Any] = {}
    earlier = _exported_before(out)
    if form == "onnx":
        check_packages()
    with staged(out, force) as folder:
        if form == "onnx":
            kind = _kind(model)
            network = kind(model.exported.config, model.exported.tensors, model.classifier)
            about = {**head(model, form), "readout": _about(model), "provenance": model.provenance}
            found["check"] = write_onnx(folder, network, about, data)
        elif form == "backbone":
            _write_backbone(folder, model, keys)
        else:
            _write_model(folder, model)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    for name in earlier - files.keys():  # the settings beside it are another model's now
        (out / name).unlink(missing_ok=True)
    return {"folder": str(out), "format": form, "files": files, **found}


def _exported_before(out: Path) -> set[str]:
    """Names of the files that earlier exports may have left in a folder; none of anything else's."""
    found: set[str] = set()
    for settings, models in layout.HELD.items():
        try:
            told = read_json(out / settings, {})
        except InputError:  # not readable, so nobody knows whose it is
            continue
        if isinstance(told, dict) and told.get("library") == "leanlabel":
            found |= {settings, *models}
            if told.get("names") == "detectron2":
                found |= {DETECTRON2, *CONFIGS}
    return found


def head(model: Model, form: str) -> dict[str, Any]:
    """What the settings of every export begin with."""
    return {
        "library": "leanlabel",
        "version": __version__,
        "layout": layout.FORMAT,
        "format": form,
        "kind": model.exported.kind,
        **model.exported.config,
    }


def _kind(model: Model) -> type[Any]:
    kind = layout.kind_class(model.exported.kind)
    if kind is None:
        raise InputError(f"Models of kind {model.exported.kind!r} cannot be written yet.")
    return kind


def _about(model: Model) -> dict[str, Any] | None:
    return None if model.classifier is None else model.classifier.described()


def _noted(model: Model, module: str) -> dict[str, Any]:
    """What a file of weights tells a training that starts from it."""
    noted = {"parts": {"backbone": module}}
    return {**noted, "supervised": True} if model.provenance.get("supervised") else noted


def _write_model(folder: Path, model: Model) -> None:
    tensors: dict[str, Tensor] = dict(model.exported.tensors)
    readout = model.classifier
    kind = layout.kind_class(model.exported.kind)
    if kind is not None:
        kind(
            model.exported.config, tensors, readout
        )  # what does not fit together is refused now, not when read
    if readout is not None:
        tensors |= {f"{READOUT}{name}": value for name, value in readout.tensors().items()}
    module = model.exported.backbone.removesuffix(".")
    save_tensors(folder / layout.WEIGHTS, tensors, _noted(model, module))
    settings = {
        **head(model, "safetensors"),
        "readout": _about(model),
        "provenance": model.provenance,
    }
    write_json(folder / layout.CONFIG, settings)


def _write_backbone(folder: Path, model: Model, keys: str) -> None:
    prefix = model.exported.backbone
    own = {
        name.removeprefix(prefix): value
        for name, value in model.exported.tensors.items()
        if name.startswith(prefix)
    }
    tensors = renamed(own, keys)
    save_tensors(folder / layout.BACKBONE, tensors, _noted(model, ""))
    if keys == "detectron2":
        write_detectron2(folder, tensors, model.exported.config)
    settings = {
        **head(model, "backbone"),
        "names": keys,
        "keys": _kind(model).described(tensors),
        "readout": None,
        "provenance": model.provenance,
    }
    write_json(folder / layout.CONFIG, settings)
