"""Embeddings of data as a file, from an export."""

from __future__ import annotations

from pathlib import Path

from leanlabel.data.rows import check_ending, write_rows
from leanlabel.export.reading import read


def embed_input(model: Path, place: str, out: Path) -> tuple[int, int]:
    """Write the embeddings of an input to ``out`` (.npy, or .parquet with ids); return rows and width.

    Args:
        model: folder of an export as safetensors or backbone.
        place: the input.
        out: file to write; it appears whole or not at all.

    Raises:
        InputError: another ending, an unwritable place, an export that cannot be read, data that does not fit it.
    """
    check_ending(out)
    found = read(model)
    data = found.open(place)
    z = found.embed(data)
    write_rows(out, z.numpy(), getattr(data, "ids", None))
    return z.shape[0], z.shape[1]
