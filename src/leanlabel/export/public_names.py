"""Plain backbones under the names of other libraries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from leanlabel.engine.runfolder import write_atomic, write_text
from leanlabel.errors import InputError
from leanlabel.models.public_keys import detectron2_config, to_detectron2

KEYS = ("own", "torchvision", "detectron2")
"""Whose names an export can have; those of this library are torchvision's for residual networks and MobileNet-V2."""
DETECTRON2 = "backbone.pth"
"""File that Detectron2 reads, which does not read safetensors."""
CONFIGS: dict[str, Literal["voc", "coco"]] = {"detectron2-voc.yaml": "voc", "detectron2-coco.yaml": "coco"}
BATCH_NORMS = ("batch", "sync", "split")


def check_keys(keys: str, form: str, kind: str, config: Mapping[str, Any]) -> None:
    """Refuse names that a model cannot have.

    Args:
        keys: whose names.
        form: format of the export.
        kind: kind of the model.
        config: settings of the model.

    Raises:
        InputError: no such names, or not for this format, kind of model or backbone.
    """
    if keys not in KEYS:
        raise InputError(f"--keys {keys}: names are one of {', '.join(KEYS)}.")
    if keys == "own":
        return
    if form != "backbone":
        raise InputError(
            f"--keys {keys}: a model as {form} has names of its own only.", "Add --format backbone."
        )
    backbone = config.get("backbone") or {}
    name = str(backbone.get("name")) if kind == "images" else kind
    residual = name.startswith("resnet")
    if not (residual or (keys == "torchvision" and name == "mobilenet-v2")):
        raise InputError(f"--keys {keys}: {name} has no names there.", "Leave --keys out.")
    if keys == "detectron2" and backbone.get("norm", "batch") not in BATCH_NORMS:
        raise InputError(
            f"--keys detectron2: its residual networks have batch normalisation, this one norm {backbone['norm']}.",
            "Train with model.norm batch, sync or split.",
        )
    if keys == "detectron2" and backbone.get("stem", "imagenet") != "imagenet":
        raise InputError(
            f"--keys detectron2: its residual networks begin with a 7x7 convolution, this one with stem "
            f"{backbone['stem']}.",
            "Train with model.stem imagenet.",
        )


def renamed(tensors: Mapping[str, Tensor], keys: str) -> dict[str, Tensor]:
    """A backbone's tensors under other names; see :func:`check_keys`."""
    return to_detectron2(tensors) if keys == "detectron2" else dict(tensors)


def write_detectron2(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write what Detectron2 reads: the renamed backbone as a torch file, and two configurations for a ResNet-50.

    Args:
        folder: where to.
        tensors: renamed.
        config: settings of the model.
    """
    content = {
        "model": {name: value.contiguous().clone() for name, value in tensors.items()},
        "matching_heuristics": True,  # the names end like those of a detector, which has more in front of them
    }
    write_atomic(folder / DETECTRON2, lambda temporary: torch.save(content, temporary))
    if config["backbone"]["name"] != "resnet50":
        return
    prepared = config["preprocessing"]
    for name, task in CONFIGS.items():
        text = _normalised_by(detectron2_config(task, weights=DETECTRON2), prepared["mean"], prepared["std"])
        write_text(folder / name, text)


def _normalised_by(text: str, mean: Sequence[float], std: Sequence[float]) -> str:
    """A configuration with the mean and standard deviation of this model's training, from 0 to 255."""
    for key, values in (("PIXEL_MEAN", mean), ("PIXEL_STD", std)):
        row = ", ".join(f"{255 * value:.6g}" for value in values)
        text, count = re.subn(rf"(?m)^( *{key}: ).*$", rf"\g<1>[{row}]", text)
        if count != 1:
            raise RuntimeError(f"the configuration has {count} lines of {key}, not one")
    return text
