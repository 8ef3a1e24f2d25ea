"""Names of the files in an export folder, and the kinds of model that there are."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

FORMAT = 1
"""Version of the layout of an export folder."""
FORMATS = ("safetensors", "onnx", "backbone")
CONFIG, WEIGHTS, BACKBONE = "config.json", "model.safetensors", "backbone.safetensors"
ONNX, PIPELINE = "model.onnx", "pipeline.json"
HELD = {CONFIG: (WEIGHTS, BACKBONE), PIPELINE: (ONNX,)}
"""File of settings -> the models that it may describe."""

KINDS: dict[str, str] = {
    "graph-nodes": "leanlabel.export.graph_nodes:GraphNodes",
    "images": "leanlabel.export.images:ImageModel",
    "segmentation": "leanlabel.export.segmentation:SegmentationModel",
}
"""Kind of model -> the class that uses its plain data."""


def kind_class(name: str) -> type[Any] | None:
    """The class of a kind; None for a kind that this version does not know."""
    if name not in KINDS:
        return None
    module, _, attribute = KINDS[name].partition(":")
    return getattr(import_module(module), attribute)


def weights_of(settings: Any) -> str:
    """Name of the file of weights that an export's settings describe."""
    return BACKBONE if isinstance(settings, dict) and settings.get("format") == "backbone" else WEIGHTS


def is_export(folder: Path) -> bool:
    """Whether this looks like a folder that `export` wrote."""
    return (folder / CONFIG).is_file() or (folder / PIPELINE).is_file()
