"""Images by their names, as people write them in tables: with or without folders and ending."""

from __future__ import annotations

import difflib
import unicodedata
from pathlib import Path

from leanlabel.data.decode import ENDINGS
from leanlabel.data.dense import DenseImages
from leanlabel.data.graph_tables import Table, read_table
from leanlabel.errors import InputError


class ImageNames:
    """Images by their names: in full, without ending, or without the first folders where that names one image.

    What is asked for is taken as it is written: none of its own folders is left out.
    """

    def __init__(self, data: DenseImages) -> None:
        self.data, names = data, [composed(name) for name in names_of(data)]
        self.rows: dict[str, int] = {}
        for row, name in enumerate(names):
            parts = name.split("/")
            for tail in ("/".join(parts[start:]) for start in range(len(parts))):
                for key in {tail, without_ending(tail)}:
                    self.rows[key] = row if self.rows.get(key, row) == row else -1
        for row, name in enumerate(names):  # what is spelled in full always counts
            self.rows[name] = row

    def find(self, name: str) -> int | None:
        """Row of an image; -1 for several, None for none."""
        asked = composed(name)
        parts = asked.replace("\\", "/").split("/")
        plain = "/".join(part for part in parts if part != ".")
        return self.rows.get(asked, self.rows.get(plain)) if asked else None

    def row(self, name: str, where: str, role: str) -> int:
        """Row of an image that must be there.

        Raises:
            InputError: none or several have this name; says where it stands, and the nearest name.
        """
        row = self.find(name)
        if row is not None and row >= 0:
            return row
        near = difflib.get_close_matches(name, names_of(self.data), n=1, cutoff=0.5)
        what = "names several images" if row == -1 else "names no image"
        raise InputError(
            f"{where}: {name[:200]!r} {what} of the {role}, {self.data.name}.",
            f"Nearest: {near[0]}." if near and row is None else "Write names with their folders.",
        )


def composed(name: str) -> str:
    """A name with its accents as parts of their letters: file systems differ in how they write them.

    >>> composed("u\u0308.png") == "\u00fc.png"
    True
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def names_of(data: DenseImages) -> list[str]:
    """Names of all images.

    Raises:
        InputError: they have none.
    """
    if data.ids is None:
        raise InputError(f"data.pairs: images of {data.name} have no names.", "Pair them with by: same.")
    return data.ids


def without_ending(name: str) -> str:
    """A name without the ending of an image file.

    >>> without_ending("a/b.PNG"), without_ending("a/1525428672.5")
    ('a/b', 'a/1525428672.5')
    """
    stem, dot, ending = name.rpartition(".")
    return stem if f"{dot}{ending}".lower() in ENDINGS else name


def file_stem(name: str) -> str:
    """A name without folders and ending.

    >>> file_stem("a/b.png")
    'b'
    """
    return without_ending(name.rpartition("/")[2])


def two_columns(path: Path, roles: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[Table, tuple[int, int]]:
    """Read a table and find its two columns by the names in its header; without a header they are its only two.

    Args:
        path: .csv, .tsv or .parquet; text may also be separated by blanks.
        roles: names that each column may have, in lower case; one of them in the first line makes that a header.

    Raises:
        InputError: it cannot be read, is empty, or does not have these columns.
    """
    table = read_table(path)
    if not len(table):
        raise InputError(f"{path} is empty.", f"Write two columns, {roles[0][0]} and {roles[1][0]}.")
    if table.header is None and any(cell.lower() in (*roles[0], *roles[1]) for cell in table.first_row()):
        table.name_columns()
    first, second = (table.find(names) if table.header else None for names in roles)
    if first is not None and second is not None:
        return table, (first, second)
    if table.header or len(table.columns) != 2:
        raise InputError(
            f"{path} has {len(table.columns)} columns, and not one called {roles[0][0]} and one {roles[1][0]}.",
            f"Write a first line that names them: {roles[0][0]},{roles[1][0]}.",
        )
    return table, (0, 1)
