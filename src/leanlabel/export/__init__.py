"""Trained models outside their run folders: weights with settings, ONNX, plain backbones; and back again.

Light on purpose: loading an export needs neither the method that trained it nor the training engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leanlabel.export.layout import FORMATS, KINDS, is_export

__all__ = ["FORMATS", "KINDS", "is_export", "load"]


def load(folder: str | Path) -> Any:
    """A model that was exported with ``--format safetensors`` (or ``backbone``: embeddings only).

    Args:
        folder: what ``leanlabel export`` wrote.

    Returns:
        :class:`leanlabel.export.graph_nodes.GraphNodes` or :class:`leanlabel.export.images.ImageModel`: an object
        with ``open(path)``, with ``embed`` and ``predict`` of what that gives, and with ``classes``; or
        :class:`leanlabel.export.segmentation.SegmentationModel`, with ``segment(image)`` in place of ``predict``.

    Raises:
        InputError: no such folder, not an export, of a later version, or damaged.
    """
    from leanlabel.export.reading import read

    return read(Path(folder))
