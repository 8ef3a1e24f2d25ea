"""An ONNX model with a description of what surrounds it, checked against the original before it is kept."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from leanlabel.engine.runfolder import write_json
from leanlabel.errors import InputError, RunError
from leanlabel.export import layout

TOLERANCE = 1e-4
"""Largest difference from the original, relative to the largest value of an output."""


def check_packages() -> None:
    """Refuse to start without the packages of the extra.

    Raises:
        InputError: onnx or onnxruntime is missing.
    """
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"ONNX export needs {' and '.join(missing)}.", "Install it with pip install 'leanlabel[export]'."
        )


def write_onnx(folder: Path, network: Any, about: dict[str, Any], data: Any) -> dict[str, Any]:
    """Write ``model.onnx`` and ``pipeline.json``; run the model on data and compare it with the original.

    Args:
        folder: where to; nothing is left there if this raises.
        network: object of a kind, with `onnx_model`, `onnx_inputs(data)`, `onnx_outputs(data)`, `onnx_pipeline`.
        about: what the description begins with.
        data: on which both are run.

    Returns:
        The check: runtime, data, largest differences.

    Raises:
        InputError: packages are missing, or a part of the network has no form in ONNX.
        RunError: the model does not compute what the original does.
    """
    check_packages()
    path = folder / layout.ONNX
    path.write_bytes(network.onnx_model().SerializeToString())
    try:
        check = _compare(path, network.onnx_inputs(data), network.onnx_outputs(data))
    except RunError:
        path.unlink()
        raise
    check["data"] = str(getattr(data, "name", "the run's own"))
    write_json(folder / layout.PIPELINE, {**about, **network.onnx_pipeline(), "check": check})
    return check


def _compare(path: Path, inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, Any]:
    """Run the model and hold every output against what the original gives."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = dict(zip(expected, session.run(list(expected), inputs), strict=True))
    absolute: dict[str, float] = {}
    relative: dict[str, float] = {}
    for name, value in expected.items():
        scale = float(np.abs(value).max()) if value.size else 0.0
        gap = np.abs(np.asarray(found[name]) - value)
        absolute[name] = float(gap.max()) if value.size else 0.0
        relative[name] = absolute[name] / scale if scale else absolute[name]
        if not relative[name] <= TOLERANCE:  # a NaN must fail, too
            raise RunError(
                f"The ONNX model differs from the original in {name}: by {relative[name]:.2g} of its largest "
                f"value, {TOLERANCE:g} are allowed.",
                "Nothing was written; use --format safetensors.",
            )
    return {
        "onnxruntime": onnxruntime.__version__,
        "max_abs_difference": absolute,
        "max_relative_difference": relative,
        "tolerance": TOLERANCE,
    }
