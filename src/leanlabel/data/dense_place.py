"""What a folder or a .zip holds: image files, the text files beside them, and the class map among these."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from leanlabel.data.class_map import ClassMap, plain_map
from leanlabel.data.image_folder import _walk, _zip_members
from leanlabel.data.image_stores import FolderStore, Store, ZipStore, printable
from leanlabel.errors import InputError

MOST_TEXT = 256 << 20
"""A text file of more bytes is refused."""


@dataclass
class Place:
    """Image files below a folder or in a .zip, and the text files beside them.

    Args:
        path: the folder or archive.
        names: image files, sorted, relative to `prefix`, with forward slashes.
        prefix: folder that is passed over, with a slash at the end; "" for none.
        spelled: printable name with prefix -> name on the disk; folders only.
        sizes: bytes of all members of an archive; None for a folder.
        others: number of other files.
    """

    path: Path
    names: list[str]
    prefix: str = ""
    spelled: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] | None = None
    others: int = 0

    @classmethod
    def open(cls, path: Path) -> Place:
        """Look into a folder or .zip.

        Raises:
            InputError: it cannot be read, is damaged, has members that are links or would leave the folder.
        """
        if path.is_dir():
            names, others, _ = _walk(path)
            spelled = {printable(name): name for name in names}
            return cls(path, sorted(spelled), spelled=spelled, others=others)
        images, others = _zip_members(path)
        with zipfile.ZipFile(path) as archive:
            sizes = {one.filename: one.file_size for one in archive.infolist()}
        return cls(path, sorted(images), sizes=sizes, others=others)

    @property
    def title(self) -> str:
        """Name of the data set."""
        return (self.path.name or self.path.resolve().name) if self.sizes is None else self.path.stem

    def unwrap(self, kept: Iterable[str]) -> Place:
        """Pass over single folders around everything, unless their names, in lower case, are among `kept`."""
        place, kept = self, set(kept)
        while True:
            tops = {name.split("/")[0] for name in place.names if "/" in name}
            flat = any("/" not in name for name in place.names)
            if flat or len(tops) != 1 or next(iter(tops)).lower() in kept:
                return place
            top = f"{tops.pop()}/"
            place = replace(
                place, prefix=place.prefix + top, names=[name[len(top) :] for name in place.names]
            )

    def where(self, name: str) -> str:
        """A file of the place, for messages."""
        return (
            f"{self.path}: {self.prefix}{name}"
            if self.sizes is not None
            else str(self.path / self.prefix / name)
        )

    def store(self, names: Sequence[str]) -> Store:
        """Files of the place, to be read."""
        full = [self.prefix + name for name in names]
        if self.sizes is None:
            return FolderStore(str(self.path), [self.spelled.get(name, name) for name in full])
        return ZipStore(str(self.path), full, np.array([self.sizes[name] for name in full], dtype=np.int64))

    def texts(self, folder: str, ending: str = ".txt") -> list[str]:
        """Text files directly in a folder of the place ("" for itself), sorted."""
        start = f"{self.prefix}{folder}/" if folder else self.prefix
        if self.sizes is not None:
            found = [name[len(start) :] for name in self.sizes if name.startswith(start)]
        else:
            try:
                found = [one.name for one in os.scandir(self.path / start) if one.is_file()]
            except OSError:
                found = []
        inside = sorted(
            one for one in found if one.lower().endswith(ending) and "/" not in one and one[0] != "."
        )
        return [f"{folder}/{one}" if folder else one for one in inside]

    def text(self, name: str) -> str | None:
        """Contents of a text file of the place; None where there is none.

        Raises:
            InputError: it cannot be read, or is no UTF-8 text.
        """
        try:
            if self.sizes is None:
                file = self.path / self.prefix / name
                if not file.is_file():
                    return None
                if file.stat().st_size > MOST_TEXT:
                    raise InputError(f"{self.where(name)}: more than {MOST_TEXT:,} bytes of text.")
                return file.read_bytes().decode("utf-8-sig")
            if self.prefix + name not in self.sizes:
                return None
            if self.sizes[self.prefix + name] > MOST_TEXT:
                raise InputError(f"{self.where(name)}: more than {MOST_TEXT:,} bytes of text.")
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.prefix + name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.where(name)} is not UTF-8 text: {error.reason}.") from error
        except (OSError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
            raise InputError(f"{self.where(name)} cannot be read ({error}).") from error


def stored_classes(place: Place) -> ClassMap | None:
    """Class map that lies beside the data: classes.json or classes.txt; None where there is neither.

    classes.json holds what :meth:`ClassMap.as_dict` gives, or ``names`` and, if you like, ``colours``, ``ids``,
    ``ignored``, ``unlisted``, ``ignore_index``; or a list of names. Raw id k is the k-th name; a name whose number
    is the ignore index is no class. classes.txt has one name a line.

    Raises:
        InputError: it is no such file; names it.
    """
    text = place.text("classes.json")
    if text is None:
        plain = place.text("classes.txt")
        names = [name for _, name in text_lines(plain or "")]
        return _made(place.where("classes.txt"), {"names": names}) if names else None
    where = place.where("classes.json")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not complete JSON: {error}.") from error
    found = {"names": found} if isinstance(found, list) else found
    if not isinstance(found, dict) or not isinstance(found.get("names"), list):
        raise InputError(f"{where}: no list `names` of class names.")
    return _made(where, found)


def _made(where: str, found: dict[str, Any]) -> ClassMap:
    try:
        if {"name", "colours", "ids"} <= found.keys():
            return ClassMap.from_dict(found)
        names = [str(name) for name in found["names"]]
        colours = found.get("colours", found.get("colors"))
        ids = {
            int(raw): int(label)
            for raw, label in dict(found.get("ids") or enumerate(range(len(names)))).items()
        }
        ignored = {int(one) for one in found.get("ignored", ())}
        ignore = found.get("ignore_index")
        if ignore is not None:
            ignored.add(int(ignore))
            if not found.get("ids") and int(ignore) < len(names):  # one of the names says "none"
                kept = [k for k in range(len(names)) if k != int(ignore)]
                names, ids = [names[k] for k in kept], {raw: k for k, raw in enumerate(kept)}
                colours = [colours[k] for k in kept] if colours else None
        elif not found.get("ignored") and 255 not in ids:
            ignored.add(255)
        return plain_map(
            names,
            colours,
            name=str(found.get("name", "classes of the data")),
            ids=ids,
            ignored=sorted(ignored),
            unlisted=found.get("unlisted", "error"),
            by_colour=bool(found.get("by_colour", False)),
        )
    except InputError as error:
        raise InputError(f"{where}: {error.message}", error.suggestion) from error
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{where} does not describe classes: {error}.") from error


def text_lines(text: str) -> list[tuple[int, str]]:
    """Lines with their numbers, without blank ones and comments."""
    rows = enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1)
    return [
        (number, line.strip()) for number, line in rows if line.strip() and not line.lstrip().startswith("#")
    ]
