"""Trained models outside their run folders: weights with settings, ONNX, plain backbones; and back again.

Light on purpose: loading an export needs neither the method that trained it nor the training engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from leanlabel.export.layout import FORMATS, KINDS, is_export

if TYPE_CHECKING:
    from leanlabel.export.graph_nodes import GraphNodes

__all__ = ["FORMATS", "KINDS", "is_export", "load"]


def load(folder: str | Path) -> GraphNodes:
    """A model that was exported with ``--format safetensors`` (or ``backbone``: embeddings only).

    Args:
        folder: what ``leanlabel export`` wrote.

    Returns:
        An object with ``embed(graph)``, ``predict(graph)`` and ``classes``.

    Raises:
        InputError: no such folder, not an export, of a later version, or damaged.
    """
    from leanlabel.export.reading import read

    return read(Path(folder))
