"""What lies beside stored labels and says what they were made of; read as if anybody could have changed it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leanlabel.errors import InputError

MANIFEST = "manifest.json"
VERSION = 1
AGAIN = "Compute the pseudo labels again."
_MOST_SIDE = 1 << 16


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of labels.

    Raises:
        InputError: there is none, or it is not one that this version wrote, whole.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: no pseudo labels, or unfinished ones: there is no {MANIFEST}.", AGAIN
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}).", AGAIN) from error
    try:
        rows, names, sizes = found["rows"], found["classes"]["names"], found["sizes"]
        sound = (found["form"], found["version"]) == ("hard", VERSION) and {"data", "model"} <= found.keys()
        sound &= type(names) is list and all(type(one) is str for one in names)
        sound &= type(found["data"]) is type(found["model"]) is str
        sound &= len(found["thresholds"]) == len(found["kept_share"]) == len(names)
        sound &= all(map(_is_share, found["thresholds"]))
        sound &= all(one is None or _is_share(one) for one in found["kept_share"])
        sound &= len(sizes) == len(rows) == len(set(rows)) > 0 and all(len(size) == 2 for size in sizes)
        numbers = [(row, 0, 1 << 63) for row in rows] + [
            (side, 1, _MOST_SIDE + 1) for size in sizes for side in size
        ]
        sound &= all(type(one) is int and low <= one < end for one, low, end in numbers)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise InputError(f"{path}: not a whole manifest of pseudo labels that this version reads.", AGAIN)
    return found


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # a NaN is not
