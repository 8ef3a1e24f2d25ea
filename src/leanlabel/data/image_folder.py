"""Folders, zips and lists of image files: which files are images, and what their places say about them."""

from __future__ import annotations

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.archives import _SPARE, MOST_GROWTH, _Intake, _read_errors
from leanlabel.data.decode import ENDINGS
from leanlabel.data.graph_tables import is_integer, read_table, texts, unreadable
from leanlabel.data.graphs import UNLABELLED
from leanlabel.data.image_stores import FolderStore, Listing, ZipStore, printable
from leanlabel.data.splits import PARTS
from leanlabel.errors import InputError

Layout = Literal["auto", "flat", "class", "split/class", "domain/class"]
MOST_IMAGES = 5_000_000
"""A .zip with more files and folders is refused."""
LIST_ENDINGS = (".txt", ".lst", ".list", ".csv", ".tsv")
"""Endings of list files."""
PART_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
"""Folder name in lower case -> part of the split."""
_JUNK = ("thumbs.db", "desktop.ini", "ehthumbs.db")
_JUNK_FOLDERS = ("__macosx", "$recycle.bin", "system volume information")
_UNKNOWN = ("", "-1", str(UNLABELLED))
_PATH = ("path", "image", "file", "filename", "file_name", "filepath", "image_path", "name", "id")
_LABEL = ("label", "class", "y", "target", "category")
_SPLIT = ("split", "part", "set", "subset")
_DOMAIN = ("domain",)
_SHOWN = 5


def read_image_folder(path: Path, layout: Layout = "auto") -> Listing:
    """List the images below a folder; see :func:`arrange` for what their places mean.

    Hidden files, Thumbs.db, desktop.ini and __MACOSX are passed over; files with other endings than those of images
    are counted in the facts. Links to folders are followed, each folder once.

    Raises:
        InputError: the folder cannot be read or holds no image, or the layout does not fit.
    """
    names, others, empty = _walk(path)
    if not names:
        packed = sorted(file.name for file in path.glob("*.npz"))[:_SHOWN]
        raise InputError(
            f"{path} holds no image files ({others} other files).",
            f"Name one of its files: {', '.join(packed)}."
            if packed
            else f"Endings that are read: {', '.join(ENDINGS)}.",
        )
    spelled = {printable(name): name for name in names}
    listing = arrange(spelled, layout, str(path))
    listing.name = path.name or path.resolve().name
    listing.source = FolderStore(str(path), [spelled[name] for name in listing.ids or []])
    if empty:
        listing.facts["empty_folders"] = empty
    return _noted(listing, others)


def read_image_zip(path: Path, layout: Layout = "auto") -> Listing:
    """List the images in a .zip, which are then read in place; members obey the rules of unpacking.

    Raises:
        InputError: not a complete archive, a member that is a link, encrypted, or has an unsafe name, more bytes
            than 200 times the archive's, no image, or the layout does not fit.
    """
    sizes, others = _zip_members(path)
    if not sizes:
        raise InputError(
            f"{path} holds no image files ({others} other files).",
            f"Endings that are read: {', '.join(ENDINGS)}.",
        )
    listing = arrange(list(sizes), layout, str(path))
    names = listing.ids or []
    stored = np.array([sizes[name] for name in names], dtype=np.int64)
    listing.name, listing.source = path.stem, ZipStore(str(path), names, stored)
    return _noted(listing, others)


def _noted(listing: Listing, others: int) -> Listing:
    if others:
        listing.facts["other_files"] = others
    return listing


def _walk(root: Path) -> tuple[list[str], int, int]:
    """Image files below a folder, relative to it; the numbers of other files, and of folders without any image."""
    names: list[str] = []
    others, folders, seen, stack = 0, set(), set(), [(str(root), "")]
    while stack:
        folder, prefix = stack.pop()
        try:
            real = os.path.realpath(folder)
            if real in seen:
                continue
            seen.add(real)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_junk(entry.name):
                        continue
                    if entry.is_dir():
                        stack.append((entry.path, f"{prefix}{entry.name}/"))
                        folders.add(f"{prefix}{entry.name}")
                    elif entry.name.lower().endswith(ENDINGS) and entry.is_file():
                        names.append(prefix + entry.name)
                    else:
                        others += 1
        except OSError as error:
            raise unreadable(Path(folder), error) from error
    used = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 1)}
    return names, others, len(folders - used)


def _zip_members(path: Path) -> tuple[dict[str, int], int]:
    """Image members of a .zip with their sizes, and the number of other members."""
    sizes: dict[str, int] = {}
    others = 0
    with _read_errors(path), zipfile.ZipFile(path) as archive:
        intake = _Intake(path, Path(), MOST_GROWTH * path.stat().st_size + _SPARE, MOST_IMAGES)
        for member in archive.infolist():
            is_folder = member.filename.endswith("/")
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise intake.refuse(member.filename, "is a link or a device")
            if member.flag_bits & 1:
                raise intake.refuse(member.filename, "is encrypted")
            intake.place(member.filename, is_folder=is_folder)
            intake.count(member.file_size)
            if is_folder or any(_is_junk(part) for part in member.filename.split("/")):
                continue
            if member.filename.lower().endswith(ENDINGS):
                sizes[member.filename] = member.file_size
            else:
                others += 1
    return sizes, others


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK or name.lower() in _JUNK_FOLDERS


def arrange(names: Iterable[str], layout: Layout, where: str) -> Listing:
    """Read classes, splits and domains from the places of files.

    flat: no labels. class: the first folder is the class. split/class: train, val (valid, validation) and test
    (training, testing) hold one folder per class, or files without labels. domain/class: two folders deep. Files
    that lie elsewhere have no label. auto: split/class where there is a train folder beside a val or test folder, or
    nothing but folders of these names; domain/class where every file is two folders deep and the domains share their
    classes; class where there are folders; else flat. A single folder around everything is passed over. Classes are
    sorted by name.

    Args:
        names: paths with forward slashes, relative to the root.
        layout: one of the five above.
        where: the root, for messages.

    Returns:
        A listing whose ids are the names, sorted, and whose source is still empty.

    Raises:
        InputError: the layout needs folders that are not there.
    """
    ids = sorted(names)
    parts = [name.split("/") for name in ids]
    inner = parts
    while inner and min(map(len, inner)) > 1 and max(map(len, inner)) > 2 and len({p[0] for p in inner}) == 1:
        needed = {"class": 2, "domain/class": 3}.get(layout, 0)
        part = PART_NAMES.get(inner[0][0].lower())
        if min(map(len, inner)) <= needed or part == "train" or (part and layout == "split/class"):
            break
        inner = [p[1:] for p in inner]
    chosen = _layout(inner) if layout == "auto" else layout
    listing = Listing("", torch.zeros(0, 3, 0, 0, dtype=torch.uint8), ids=ids, facts={"layout": chosen})
    labels: list[str | None] = [None] * len(ids)
    if chosen == "class":
        labels = [p[0] if len(p) > 1 else None for p in inner]
    elif chosen == "split/class":
        part_of = [PART_NAMES.get(p[0].lower()) if len(p) > 1 else None for p in inner]
        if "train" not in part_of and layout != "auto":
            raise InputError(f"{where}: the layout split/class needs a folder named train.")
        labels = [p[1] if part and len(p) > 2 else None for p, part in zip(inner, part_of)]
        found = _parts(part_of)
        listing.splits = found if "train" in found and len(found) > 1 else {}
        listing.facts["outside_splits"] = part_of.count(None)
    elif chosen == "domain/class":
        deep = sum(len(p) < 3 for p in inner)
        if deep:
            raise InputError(
                f"{where}: the layout domain/class needs two folders above each file; {deep} have less."
            )
        labels = [p[1] for p in inner]
        domains = sorted({p[0] for p in inner})
        number = {name: k for k, name in enumerate(domains)}
        listing.domain = torch.tensor([number[p[0]] for p in inner], dtype=torch.int64)
        listing.domain_names = domains
    if chosen == "class" and not any(labels):
        raise InputError(f"{where}: the layout class needs one folder per class, all files lie at the top.")
    listing.y, listing.class_names = _numbered(labels)
    return listing


def _layout(parts: Sequence[list[str]]) -> Layout:
    tops = {PART_NAMES.get(p[0].lower()) for p in parts if len(p) > 1}
    # Folders that are called train, val or test are no classes, even where some are missing.
    if ("train" in tops and len(tops - {None}) > 1) or (tops and None not in tops):
        return "split/class"
    if parts and all(len(p) == 3 for p in parts):
        inside: dict[str, set[str]] = {}
        for domain, label, _ in parts:
            inside.setdefault(domain, set()).add(label)
        shared = set.intersection(*inside.values())
        named = set(PART_NAMES) & {name.lower() for p in parts for name in p[:2]}
        if len(inside) > 1 and len(shared) > 1 and not named and shared == set.union(*inside.values()):
            return "domain/class"
    return "class" if tops else "flat"


def _numbered(labels: Sequence[str | None]) -> tuple[Tensor | None, list[str] | None]:
    """Class numbers in the order of sorted names; None where nothing has a label."""
    names = sorted({label for label in labels if label is not None})
    if not names:
        return None, None
    number = {name: k for k, name in enumerate(names)}
    return torch.tensor(
        [UNLABELLED if one is None else number[one] for one in labels], dtype=torch.int64
    ), names


def _parts(part_of: Sequence[str | None]) -> dict[str, Tensor]:
    rows = {part: [row for row, own in enumerate(part_of) if own == part] for part in PARTS}
    return {part: torch.tensor(own, dtype=torch.int64) for part, own in rows.items() if own}


def read_image_list(path: Path) -> Listing:
    """List the images that a file names: one ``path label`` a line, or a table with a header.

    In .txt, .lst and .list files the label is the last word of a line, behind a blank or a tab; a line that ends
    like an image file has none. Lines that start with # are passed over. A .csv or .tsv has a header with path, and
    if you like label, split (train, val, test) and domain. Labels are integers or names: integers 0 .. C-1 stay as
    they are, others are numbered in sorted order; -1, -100 and an empty cell mean that the class is not known.
    Paths are relative to the list's folder.

    Raises:
        InputError: unreadable, an unknown column or part, an image that is missing or named twice; names the line.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        columns, lines = _table_columns(path)
    else:
        columns, lines = _plain_columns(path)
    names = [name.replace("\\", "/") for name in columns["path"]]
    if not names:
        raise InputError(f"{path} names no image.", "Write one `path label` a line.")
    _check_names(path, names, lines)
    listing = Listing(path.stem, FolderStore(str(path.parent), names), ids=names, facts={"layout": "list"})
    if "label" in columns:
        listing.y, listing.class_names = _list_labels(columns["label"])
    if "split" in columns:
        part_of = [PART_NAMES.get(cell.lower()) for cell in columns["split"]]
        bad = [k for k, cell in enumerate(columns["split"]) if cell and part_of[k] is None]
        if bad:
            cell = columns["split"][bad[0]]
            raise InputError(f"{path}, line {lines[bad[0]]}: {cell!r} is none of train, val, test.")
        listing.splits = _parts(part_of)
    if "domain" in columns:
        domain, listing.domain_names = _numbered(columns["domain"])
        listing.domain = domain
    return listing


def _table_columns(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    table = read_table(path)
    if not len(table):
        raise InputError(f"{path} is empty.", "Write a header with path, and if you like label and split.")
    table.name_columns()
    found = {"path": _PATH, "label": _LABEL, "split": _SPLIT, "domain": _DOMAIN}
    places = {name: table.find(known) for name, known in found.items()}
    if places["path"] is None:
        raise InputError(
            f"{path} has the columns {', '.join(table.header or [])[:200]}, none of them a path.",
            "Name the columns in the first line: path, and if you like label, split, domain.",
        )
    columns = {name: table.text(place) for name, place in places.items() if place is not None}
    return columns, table.lines or []


def _plain_columns(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except OSError as error:
        raise unreadable(path, error) from error
    names, labels, lines = [], [], []
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if "\t" in stripped:
            name, _, label = stripped.partition("\t")
        elif stripped.lower().endswith(ENDINGS):
            name, label = stripped, ""
        else:
            name, _, label = stripped.rpartition(" ")
        if not name.strip().lower().endswith(ENDINGS):
            raise InputError(
                f"{path}, line {number}: {stripped[:100]!r} does not start with the name of an image file.",
                f"Write `path label`; endings that are read: {', '.join(ENDINGS)}.",
            )
        names.append(name.strip())
        labels.append(label.strip())
        lines.append(number)
    return {"path": texts(names), **({"label": labels} if any(labels) else {})}, lines


def _check_names(path: Path, names: list[str], lines: list[int]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        at = [line for name, line in zip(names, lines) if name == twice[0]]
        raise InputError(
            f"{path}, lines {at[0]} and {at[1]} both name {twice[0][:200]!r}; {len(twice)} such images."
        )
    gone: list[str] = []
    for name, line in zip(names, lines):
        if not _is_file(path.parent / name):
            gone.append(f"line {line}: {name[:200]}")
    if gone:
        more = ", ..." if len(gone) > _SHOWN else ""
        raise InputError(
            f"{path} names {len(gone)} of {len(names)} images that do not exist: {', '.join(gone[:_SHOWN])}{more}.",
            "Paths are relative to the folder of the list.",
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that the system does not take
        return False


def _list_labels(cells: list[str]) -> tuple[Tensor | None, list[str] | None]:
    known = [cell for cell in cells if cell not in _UNKNOWN]
    if not known or not all(is_integer(cell) for cell in known):
        return _numbered([None if cell in _UNKNOWN else cell for cell in cells])
    values = sorted({int(cell) for cell in known})
    number = {value: k for k, value in enumerate(values)}
    y = [UNLABELLED if cell in _UNKNOWN else number[int(cell)] for cell in cells]
    dense = values == list(range(len(values)))
    return torch.tensor(y, dtype=torch.int64), None if dense else [str(value) for value in values]
