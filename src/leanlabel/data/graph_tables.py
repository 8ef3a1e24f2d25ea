"""Plain arrays and tables from files that may be damaged: .npy, .npz, .csv, .tsv, .parquet."""

from __future__ import annotations

import csv
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from leanlabel.errors import InputError

TEXT_KINDS = (".csv", ".tsv")
_WIDEST = 1000


def read_arrays(path: Path, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, np.ndarray]:
    """Read arrays of numbers or text from an .npz, or the one array of an .npy (key ""); never runs code.

    Each header is compared with the stored size before anything of its size is allocated.

    Args:
        path: the file.
        wanted: which keys to read; the rest is not touched.

    Raises:
        InputError: the file cannot be read, is damaged, holds Python objects, or is larger than the memory.
    """
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return {"": _read_array(file, path.stat().st_size, path.name, path)}
        with zipfile.ZipFile(path) as archive:
            members = [
                m for m in archive.infolist() if m.filename.endswith(".npy") and wanted(m.filename[:-4])
            ]
            _fits_memory(path, sum(member.file_size for member in members))
            arrays = {}
            for member in members:
                with archive.open(member) as file:
                    key = member.filename[:-4]
                    arrays[key] = _read_array(file, member.file_size, f"array {key!r}", path)
            return arrays
    except InputError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:
        # Damage surfaces inside zipfile, zlib, lzma, struct, the tokenizer of the header reader, ...: one
        # cause here.
        raise InputError(
            f"{path} is not a complete {path.suffix} file: {error or type(error).__name__}.",
            "It may be cut short; copy or write it again.",
        ) from error


def _read_array(file: IO[bytes], size: int, what: str, path: Path) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if header is None:
        raise InputError(f"{path}: {what} has array format {version}, expected (1, 0) or (2, 0).")
    shape, _, dtype = header(file)
    if dtype.hasobject:
        raise InputError(
            f"{path}: {what} holds pickled Python objects, which could run code when they are read.",
            "Write it again as plain numbers or fixed-width text.",
        )
    if dtype.kind not in "biufUS":
        raise InputError(f"{path}: {what} has type {dtype}, expected numbers or text.")
    declared, stored = math.prod(shape) * dtype.itemsize, size - file.tell()
    # Text of width 0 would declare any number of entries at no size.
    hollow = dtype.itemsize == 0 and math.prod(shape) > 0
    if min(shape, default=0) < 0 or declared != stored or hollow:
        raise InputError(
            f"{path}: {what} declares {declared} bytes for shape {shape} and holds {stored}.",
            "It may be cut short; copy or write it again.",
        )
    _fits_memory(path, declared)
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False)
    if dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind == "U":
        "".join(array.ravel().tolist()).encode()  # damaged text fails here and not later
    return array


def _fits_memory(path: Path, size: int) -> None:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return
    if size > memory:
        raise InputError(
            f"{path} unpacks to {size / 2**30:.1f} GiB, this machine has {memory / 2**30:.1f} GiB."
        )


def unreadable(path: Path, error: OSError) -> InputError:
    """Turn a failure of the file system into the error a user sees."""
    return InputError(f"{path} cannot be read: {error.strerror or error}.")


@dataclass
class Table:
    """A narrow table: columns of equal length, their names where known, and where each row stands in the
    file.

    Args:
        path: the file.
        header: column names, or None while the first row may still be a row of names.
        columns: K lists of text or arrays.
        lines: line number of every row in a text file, else None.
    """

    path: Path
    header: list[str] | None
    columns: list[list[str]] | list[np.ndarray]
    lines: list[int] | None

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def where(self, row: int) -> str:
        """File and line of a row."""
        return f"{self.path}, line {self.lines[row]}" if self.lines else f"{self.path}, row {row}"

    def first_row(self) -> list[str]:
        """Text of the first row, without surrounding blanks."""
        return [str(column[0]).strip() for column in self.columns] if len(self) else []

    def name_columns(self) -> None:
        """Declare the first row a row of names."""
        self.header = self.first_row()
        self.columns = cast("list[list[str]]", [column[1:] for column in self.columns])
        self.lines = self.lines[1:] if self.lines else None

    def find(self, names: tuple[str, ...]) -> int | None:
        """Position of the first column whose name, in lower case, is among `names`."""
        header = [name.strip().lower() for name in self.header or []]
        return next((i for i, name in enumerate(header) if name in names), None)

    def text(self, column: int) -> list[str]:
        """A column as text without surrounding blanks."""
        return texts(self.columns[column])


def read_table(path: Path, *, pairs: bool = False) -> Table:
    """Read a .csv, .tsv, .parquet or .npy file as a table.

    Args:
        path: the file.
        pairs: an .npy of shape (2, E) is read as E rows of two.

    Raises:
        InputError: unreadable, or a row of another length than the first; names the line.
    """
    if path.suffix == ".npy":
        array = read_arrays(path)[""]
        if pairs and array.ndim == 2 and array.shape[0] == 2 != array.shape[1]:
            array = array.T
        if array.ndim not in (1, 2) or array.shape[-1] > array.shape[0] + _WIDEST:
            raise InputError(f"{path} has shape {array.shape}, expected rows and few columns.")
        return Table(path, [], list(array.T) if array.ndim == 2 else [array], None)
    if path.suffix == ".parquet":
        names, columns = read_parquet(path)
        return Table(path, names, columns, None)
    rows = list(text_rows(path))
    return Table(
        path, None, [list(column) for column in zip(*(row for _, row in rows))], [line for line, _ in rows]
    )


def text_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every non-blank row; comma, semicolon, tab or blank separated.

    Raises:
        InputError: not UTF-8 text, or a row with another number of cells than the first; names the line.
    """
    line, width = 0, 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(
                file, delimiter=_delimiter(file.readline(1 << 16), path), skipinitialspace=True
            )
            file.seek(0)
            for row in reader:
                line = reader.line_num
                if not any(cell.strip() for cell in row):
                    continue
                width = width or len(row)
                if len(row) != width:
                    raise InputError(f"{path}, line {line} has {len(row)} cells, the first row has {width}.")
                yield line, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} after line {line}.") from error
    except csv.Error as error:
        raise InputError(
            f"{path}, after line {line}: {error}.", "Look for a quote that never ends."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _delimiter(first_line: str, path: Path) -> str:
    if path.suffix == ".tsv":
        return "\t"
    bare = re.sub(r'"[^"]*"', "", first_line.strip())
    return next((mark for mark in ",;\t " if mark in bare), ",")


def read_parquet(path: Path) -> tuple[list[str], list[np.ndarray]]:
    """Read names and columns of a .parquet file.

    Raises:
        InputError: pyarrow is missing, the file is damaged, or a column has empty cells.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"{path} needs pyarrow, which is not installed.",
            'Install it with: pip install "leanlabel[graph]"',
        ) from error
    try:
        # A file of pyarrow's own and one thread: threads that hold a Python file and outlive an error abort the
        # process at its end.
        with pyarrow.OSFile(str(path), "rb") as source, pyarrow.parquet.ParquetFile(source) as file:
            # A few bytes can stand for any number of rows.
            _fits_memory(path, file.metadata.num_rows * file.metadata.num_columns * 8)
            table = file.read(use_threads=False)
            names = list(table.column_names)
            columns = [column.to_numpy() for column in table.columns]
    except InputError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # pyarrow's own errors, and those of whatever codec a damaged file names
        raise InputError(f"{path} is not a complete .parquet file: {error}.") from error
    for name, column, array in zip(names, table.columns, columns):
        if column.null_count and array.dtype.kind not in "fO":
            raise InputError(f"{path}: column {name!r} has {column.null_count} empty cells.")
    return names, [
        words(["" if cell is None else str(cell) for cell in array]) if array.dtype.kind == "O" else array
        for array in columns
    ]


def words(cells: list[str]) -> np.ndarray:
    """Text as an array of objects: a fixed width would cost every cell the memory of the longest."""
    return np.array(cells, dtype=object)


def texts(values: Iterable[object]) -> list[str]:
    """Turn every value into text without surrounding blanks."""
    return [str(value).strip() for value in values]


def is_number(cell: str) -> bool:
    """Whether a cell reads as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def is_integer(cell: str) -> bool:
    """Whether a cell reads as a 64-bit integer."""
    try:
        return abs(int(cell)) < 2**63
    except ValueError:
        return False


def find_file(folder: Path, stem: str, kinds: tuple[str, ...]) -> Path | None:
    """Find `stem` with one of the endings in a folder.

    Raises:
        InputError: there are two of them, or the folder cannot be searched.
    """
    try:
        found = [folder / f"{stem}{kind}" for kind in kinds if (folder / f"{stem}{kind}").is_file()]
    except OSError as error:
        raise unreadable(folder, error) from error
    if len(found) > 1:
        raise InputError(f"{folder} holds both {found[0].name} and {found[1].name}.", "Keep one of them.")
    return found[0] if found else None
