"""``leanlabel doctor``: what is installed, what was found, what is missing, and whether it computes right."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import typer

from leanlabel.cli import output

EXTRAS = {
    "graph": ("pyarrow",),
    "text": ("transformers", "tokenizers", "lemminflect"),
    "vision": ("PIL", "transformers"),
    "medical": ("monai", "nibabel"),
    "export": ("onnx", "onnxruntime"),
}
"""Extra of the package -> modules it brings."""
OPTIONAL = (
    "pyarrow",
    "torch_geometric",
    "transformers",
    "tokenizers",
    "lemminflect",
    "pillow",
    "monai",
    "nibabel",
    "onnx",
    "onnxruntime",
)
"""Packages whose version is told where they are installed."""


class Device(StrEnum):
    """Where the cases are computed."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    """Number formats of the cases, as in `leanlabel.verify.case.PRECISIONS`."""

    float64 = "float64"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def command(
    verify: bool = typer.Option(
        False, "--verify", help="Compute cases with known answers here; exits with 1 if one is wrong."
    ),
    device: Device = typer.Option(
        Device.auto, "--device", help="With --verify: where; auto takes a GPU if there is one."
    ),
    precision: list[Precision] = typer.Option(
        [], "--precision", help="With --verify: in which precision (may be repeated); float32 and float64."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show versions, devices, extras, threads, disk space and data roots; with --verify check the arithmetic."""
    from leanlabel.errors import InputError

    if not verify and (device != Device.auto or precision):
        raise InputError("--device and --precision say how to verify.", "Add --verify.")
    chosen = list(dict.fromkeys(precision)) or [Precision.float32, Precision.float64]
    found = diagnosis()
    if verify:
        found["verify"] = verification(device.value, [one.value for one in chosen], show=not as_json)
    if as_json:
        output.as_json(found)
    else:
        _print(found)
        _print_verification(found.get("verify", []))
    if not all(outcome["ok"] for outcome in found.get("verify", ())):
        raise typer.Exit(1)


def _print(found: dict[str, Any]) -> None:
    rows = [["python", found["python"]], ["system", found["system"]]]
    rows += [[name, version or "missing"] for name, version in found["packages"].items()]
    rows += [[name, version] for name, version in found["optional"].items() if version]
    rows += [["processors", f"{found['cpu_count']} ({found['cpu_capability']}), {found['threads']} threads"]]
    rows += [["bf16 products", "supported" if found["bf16_products"] else "not supported here"]]
    rows += [["GPUs", ", ".join(found["gpus"]) or "none"]]
    disk = found["disk"]
    told = (
        "unknown" if disk is None else f"{disk['free'] / 2**30:.1f} GiB free of {disk['total'] / 2**30:.1f}"
    )
    rows += [["disk of this folder", told]]
    rows += [["LEANLABEL_DATA", found["data_root"] or "not set"]]
    rows += [
        [
            f"extra {name}",
            "installed" if not missing else f"missing {', '.join(missing)}: pip install 'leanlabel[{name}]'",
        ]
        for name, missing in found["extras"].items()
    ]
    output.table(["what", "found"], rows)


def diagnosis() -> dict[str, Any]:
    """Everything the verb prints, as plain data."""
    import os
    import shutil
    from importlib import metadata
    from importlib.util import find_spec

    from torch import ops

    from leanlabel.engine.runfolder import environment

    optional: dict[str, str | None] = {}
    for name in OPTIONAL:
        try:
            optional[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            optional[name] = None
    try:
        usage = shutil.disk_usage(".")
        disk = {"free": usage.free, "total": usage.total}
    except OSError:  # a folder that is gone
        disk = None
    root = os.environ.get("LEANLABEL_DATA")
    state = root and (root if os.path.isdir(root) else f"{root} (no such folder)")
    return {
        **environment(),
        "optional": optional,
        "bf16_products": bool(ops.mkldnn._is_mkldnn_bf16_supported()),
        "disk": disk,
        "data_root": state,
        "extras": {name: [m for m in modules if find_spec(m) is None] for name, modules in EXTRAS.items()},
    }


def verification(device: str, precisions: list[str], *, show: bool = False) -> list[dict[str, Any]]:
    """Outcomes of all cases of all systems, per precision, as plain data.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    import itertools
    from dataclasses import asdict

    import torch

    from leanlabel.engine.progress import Bar
    from leanlabel.errors import InputError
    from leanlabel.verify import TABLE
    from leanlabel.verify import case as known

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no GPU can be used here.", "Leave it out, or use --device cpu.")
    cases = [case for system in TABLE for case in known.system_cases(system)]
    outcomes, done, threads = [], itertools.count(1), torch.get_num_threads()
    torch.set_num_threads(1)  # the cases are small: on a busy machine threads would only wait for each other
    try:
        with Bar(len(cases) * len(precisions), label="verify", show=show) as bar:
            for precision in precisions:
                outcomes += known.verify(
                    cases, torch.device(device), precision, lambda: bar.advance(next(done))
                )
    finally:
        torch.set_num_threads(threads)
    return [{**asdict(outcome), "ok": outcome.ok} for outcome in outcomes]


def _print_verification(outcomes: list[dict[str, Any]]) -> None:
    if not outcomes:
        return
    output.say()
    output.table(
        ["system", "device", "precision", "cases", "largest deviation", "tolerance", ""],
        [
            [
                *(one[key] for key in ("system", "device", "precision", "cases", "largest", "tolerance")),
                "ok" if one["ok"] else "FAILED",
            ]
            for one in outcomes
        ],
        title="Cases with known answers; deviations are relative",
    )
    for one in outcomes:
        for case in one["failed"]:
            what = case["error"] or f"relative deviation {case['deviation']:.2g}"
            output.say(
                f"FAILED: {one['system']}, {one['precision']}: {case['name']}: {what} ({case['source']})"
            )
