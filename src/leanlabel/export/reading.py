"""From an export folder back to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from leanlabel.engine.checkpoint import load_tensors
from leanlabel.engine.runfolder import read_json
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import Classifier, from_parts
from leanlabel.export import layout

READOUT = "readout."


def read(folder: Path) -> Any:
    """The model in an export folder; see :func:`leanlabel.export.load`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.", "Write one with `leanlabel export RUN --out DIR`.")
    if not (folder / layout.CONFIG).is_file():
        if (folder / layout.PIPELINE).is_file():
            raise InputError(
                f"{folder}: an ONNX model, which onnxruntime runs.",
                "Export the run with --format safetensors to use it here.",
            )
        raise InputError(
            f"{folder}: not an export, it has no {layout.CONFIG}.",
            "Write one with `leanlabel export RUN --out DIR`.",
        )
    config = read_json(folder / layout.CONFIG)
    kind = _known_kind(folder / layout.CONFIG, config)
    path = folder / layout.weights_of(config)
    tensors, _ = load_tensors(path)
    try:
        readout = _readout(tensors, config.get("readout"))
        rest = {name: value for name, value in tensors.items() if not name.startswith(READOUT)}
        return kind(config, rest, readout, config.get("provenance"))
    except InputError as error:
        raise InputError(f"{folder}: {error.message}", error.suggestion) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder}: {layout.CONFIG} and {path.name} do not fit each other ({error})."
        ) from error


def weights_file(place: Path) -> Path:
    """The file of weights at a place: the one that the settings of an export name; else the place itself.

    Raises:
        InputError: settings that are not readable.
    """
    if not place.is_dir():
        return place
    settings = read_json(place / layout.CONFIG, {})
    if isinstance(settings, dict) and settings.get("library") == "leanlabel":
        return place / layout.weights_of(settings)
    loose = [place / name for name in (layout.WEIGHTS, layout.BACKBONE)]
    return next((file for file in loose if file.is_file()), place)


def _known_kind(path: Path, config: Any) -> type[Any]:
    if not isinstance(config, dict) or config.get("library") != "leanlabel":
        raise InputError(f"{path}: not the settings of a leanlabel export.")
    if config.get("layout") != layout.FORMAT:
        raise InputError(
            f"{path}: layout {config.get('layout')} of an export, this version reads {layout.FORMAT}.",
            f"It was written by leanlabel {config.get('version')}.",
        )
    kind = layout.kind_class(str(config.get("kind")))
    if kind is None:
        raise InputError(
            f"{path}: kind {config.get('kind')!r} is not known here.",
            f"It was written by leanlabel {config.get('version')}.",
        )
    return kind


def _readout(tensors: dict[str, Tensor], described: Any) -> Classifier | None:
    if not described:
        return None
    named = {name.removeprefix(READOUT): value for name, value in tensors.items() if name.startswith(READOUT)}
    return from_parts(named, described)
