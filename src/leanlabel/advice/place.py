"""Where the data of a recipe is, as the recipe writes it."""

from __future__ import annotations

from pathlib import Path

from leanlabel.data.graph_source import find
from leanlabel.errors import InputError


def written_place(place: str) -> tuple[Path, str]:
    """The path of data, and how a recipe names it.

    What is here is named by its full path; what lies below LEANLABEL_DATA as it was given, for other machines.

    Raises:
        InputError: no such place, or a name that no recipe can hold.
    """
    path = find(place)
    written = str(path.absolute()) if path == Path(place).expanduser() else place
    try:
        written.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{written!r}: a recipe is UTF-8 text and cannot hold this name.", "Rename the data."
        ) from error
    return path, written
