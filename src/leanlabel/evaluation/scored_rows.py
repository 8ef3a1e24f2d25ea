"""Which rows a result was measured on, so that two results can be told to be of the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from leanlabel.evaluation.probe import PARTS, Split, split_parts


def describe_splits(splits: Sequence[Split], y: Tensor, name: str | None, seed: int | None) -> dict[str, Any]:
    """Name, shares of the parts in all rows, seed and hash of the row ids of the splits of a result.

    Args:
        splits: row ids under "train", "val", "test"; name and seed where they say so.
        y: (N,) int64 classes.
        name, seed: to be recorded in place of what the splits say.
    """
    digest = hashlib.sha256()
    sizes = dict.fromkeys(PARTS, 0)
    for split in splits:
        for part, ids in zip(PARTS, split_parts(split, y)):
            sizes[part] += len(ids)
            digest.update(f"{part} {len(ids)}:".encode())
            digest.update(ids.numpy().astype("<i8").tobytes())
    rows = len(y) * len(splits)
    return {
        "name": name if name is not None else _own(splits, "name"),
        "shares": {part: size / rows for part, size in sizes.items()},
        "seed": seed if seed is not None else _own(splits, "seed"),
        "sha256": digest.hexdigest(),
    }


def describe_labelled(y: Tensor) -> dict[str, Any]:
    """The same of all rows that have a label."""
    rows = (y.cpu() >= 0).nonzero()[:, 0]
    digest = hashlib.sha256(f"scored {len(rows)}:".encode() + rows.numpy().astype("<i8").tobytes())
    return {
        "name": "all labelled rows",
        "shares": {"scored": len(rows) / len(y)},
        "seed": None,
        "sha256": digest.hexdigest(),
    }


def _own(splits: Sequence[Mapping[str, Any]], key: str) -> Any:
    """What the splits say about themselves: one value where all agree, else a list; None where unsaid."""
    said = [split.get(key) for split in splits]
    return said[0] if all(value == said[0] for value in said) else said
