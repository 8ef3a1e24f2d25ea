"""``leanlabel doctor``: what is installed, what was found, what is missing."""

from __future__ import annotations

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


def command(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Show versions, devices, extras, threads and data roots."""
    found = diagnosis()
    if as_json:
        output.as_json(found)
        return
    rows = [["python", found["python"]], ["system", found["system"]]]
    rows += [[name, version or "missing"] for name, version in found["packages"].items()]
    rows += [["processors", f"{found['cpu_count']} ({found['cpu_capability']}), {found['threads']} threads"]]
    rows += [["bf16 products", "supported" if found["bf16_products"] else "not supported here"]]
    rows += [["GPUs", ", ".join(found["gpus"]) or "none"]]
    rows += [["LEANLABEL_DATA", found["data_root"] or "not set"]]
    rows += [
        [
            f"extra {name}",
            "installed" if not missing else f"missing {', '.join(missing)}: pip install 'leanlabel[{name}]'",
        ]
        for name, missing in found["extras"].items()
    ]
    output.table(["what", "found"], rows)


def diagnosis() -> dict:
    """Everything the verb prints, as plain data."""
    import os
    from importlib.util import find_spec

    from torch import ops

    from leanlabel.engine.runfolder import environment

    extras = {name: [m for m in modules if find_spec(m) is None] for name, modules in EXTRAS.items()}
    root = os.environ.get("LEANLABEL_DATA")
    state = root and (root if os.path.isdir(root) else f"{root} (no such folder)")
    return {
        **environment(),
        "bf16_products": bool(ops.mkldnn._is_mkldnn_bf16_supported()),
        "data_root": state,
        "extras": extras,
    }
