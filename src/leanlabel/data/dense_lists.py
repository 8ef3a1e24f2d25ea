"""Lists of images and masks: text files, tables, and split files that are written and read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanlabel.data.dense_listing import DenseListing, Fault
from leanlabel.data.dense_place import Place, stored_classes, text_lines
from leanlabel.data.graph_tables import read_table, unreadable
from leanlabel.data.image_folder import PART_NAMES
from leanlabel.errors import InputError

_PART = re.compile(r"(train|val|test)[_-].+", re.IGNORECASE)
_IMAGE = ("image", "path", "img", "file", "filename", "file_name", "image_path", "rgb")
_MASK = ("mask", "label", "annotation", "mask_path", "label_path", "labels", "target", "gt")
_SPLIT = ("split", "part", "set", "subset")
_GROUP = ("group", "sequence", "city", "patient", "scene", "video")


@dataclass
class Pair:
    """One image and where its mask is.

    Args:
        image: file of the image, relative to the place.
        mask: file of the mask; None without.
        name: its id.
        split: part it belongs to.
        group: sequence it belongs to.
    """

    image: str
    mask: str | None
    name: str
    split: str | None = None
    group: str | None = None


def part_of(name: str) -> str | None:
    """Part of the split that a name of a folder or file says, such as "train" or "test_dusk"; None for others.

    >>> part_of("Training"), part_of("test_dusk"), part_of("aachen")
    ('train', 'test_dusk', None)
    """
    known = PART_NAMES.get(name.lower())
    return known if known else name if _PART.fullmatch(name) else None


def write_split(path: str | Path, ids: Iterable[str]) -> None:
    """Write the names of one part of a split, one a line; the file appears complete or not at all.

    Raises:
        InputError: a name that a line cannot hold, or the file cannot be written.
    """
    path, names = Path(path), list(ids)
    for name in names:
        if not name.strip() or name != name.strip() or name.startswith("#") or "\n" in name or "\r" in name:
            raise InputError(f"{path}: the name {name!r} cannot be a line of a split file.")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes("".join(f"{name}\n" for name in names).encode())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def read_split(path: str | Path) -> list[str]:
    """Read the names that :func:`write_split` wrote, or any file with one name a line; # starts a comment.

    Raises:
        InputError: it cannot be read, or is no UTF-8 text.
    """
    return [name for _, name in text_lines(_text_of(Path(path)))]


def split_rows(
    place: Place, files: Sequence[str], pairs: Sequence[Pair], faults: list[Fault]
) -> dict[str, list[int]]:
    """Find the rows that split files name; each file is one part, called like the file.

    Args:
        place: where the files lie.
        files: split files, relative to the place.
        pairs: the images. A line may give an id or path with or without ending, or only the file's stem where that
            names one image.
        faults: lines that name no image are added here.
    """
    index: dict[str, int] = {}
    for row, pair in enumerate(pairs):
        for spelling in {pair.name, pair.image}:
            parts = spelling.split("/")
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                for key in {tail, tail.rpartition(".")[0]}:
                    index[key] = row if index.get(key, row) == row else -1
    for row, pair in enumerate(pairs):  # what is spelled in full always counts
        for key in (pair.name.rpartition(".")[0], pair.image.rpartition(".")[0], pair.name, pair.image):
            index[key] = row
    found: dict[str, list[int]] = {}
    for file in files:
        stem = file.rpartition("/")[2].rpartition(".")[0]
        rows: dict[int, None] = {}
        for number, line in text_lines(place.text(file) or ""):
            row = _find(index, line)
            if row is None or row < 0:
                what = "names several images" if row == -1 else "names no image that is here"
                text = f"{place.where(file)}, line {number}: {line[:200]!r} {what}"
                faults.append(Fault("missing_file", text))
            else:
                rows[row] = None
        found[part_of(stem) or stem] = list(rows)
    return found


def _find(index: Mapping[str, int], line: str) -> int | None:
    """Row that a line names; -1 for several, None for none."""
    several = False
    for text in dict.fromkeys((line, re.split(r"[\s,;]", line)[0])):
        parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            row = index.get("/".join(parts[start:]))
            if row is not None and row >= 0:
                return row
            several |= row == -1
    return -1 if several else None


def pair_listing(
    place: Place,
    pairs: Sequence[Pair],
    *,
    faults: list[Fault],
    facts: dict[str, Any],
    splits: Mapping[str, list[int]] | None = None,
    **more: Any,
) -> DenseListing:
    """Make a listing of pairs.

    A part in which no image has a mask is unlabelled; elsewhere an image without a mask is a fault.

    Args:
        place: where the files lie.
        pairs: images and masks.
        faults: what was wrong so far; more is added.
        facts: what is known.
        splits: rows of parts; without it, those that the pairs say.
        more: further arguments of :class:`DenseListing`.
    """
    if not pairs:
        raise InputError(
            f"{place.path} holds no images that its layout would show ({place.others} other files)."
        )
    if splits is None:
        splits = {}
        for row, pair in enumerate(pairs):
            if pair.split is not None:
                splits.setdefault(pair.split, []).append(row)
    part: dict[int, str] = {row: name for name, rows in splits.items() for row in rows}
    masked = {part.get(row, "") for row, pair in enumerate(pairs) if pair.mask is not None}
    for row, pair in enumerate(pairs):
        if pair.mask is None and part.get(row, "") in masked:
            faults.append(
                Fault("missing_mask", f"{place.where(pair.image)}: no mask belongs to this image", row)
            )
    files = list(dict.fromkeys(pair.mask for pair in pairs if pair.mask is not None))
    number = {name: row for row, name in enumerate(files)}
    twice = sorted(name for name, n in Counter(pair.mask for pair in pairs if pair.mask).items() if n > 1)
    faults += [Fault("two_masks", f"{place.where(name)}: two images share this mask") for name in twice]
    groups, group_names = _numbered([pair.group for pair in pairs])
    if place.others:
        facts.setdefault("other_files", place.others)
    return DenseListing(
        name=place.title,
        images=place.store([pair.image for pair in pairs]),
        masks=place.store(files) if files else None,
        mask_of=torch.tensor([-1 if pair.mask is None else number[pair.mask] for pair in pairs]),
        ids=[pair.name for pair in pairs],
        splits={name: torch.tensor(rows, dtype=torch.int64) for name, rows in splits.items()},
        groups=groups,
        group_names=group_names,
        faults=faults,
        facts=facts,
        **more,
    )


def read_pair_list(path: Path) -> DenseListing:
    """List images and masks from a text file: image and mask a line, separated by a tab, comma or blank.

    Paths are relative to the folder of the list. Without a second column images have no masks. # starts a comment.

    Raises:
        InputError: it cannot be read, or a line has more or fewer columns than the first.
    """
    rows: list[tuple[int, list[str]]] = []
    for number, line in text_lines(_text_of(path)):
        cells = re.split(r"\t|,|;", line) if re.search(r"[\t,;]", line) else line.split()
        rows.append((number, [cell.strip().replace("\\", "/") for cell in cells]))
        if len(cells) > 2 or len(cells) != len(rows[0][1]):
            raise InputError(
                f"{path}, line {number}: {len(cells)} columns, expected {min(len(rows[0][1]), 2)}.",
                "Write `image mask` a line; separate them by a tab where names have blanks.",
            )
    if not rows:
        raise InputError(f"{path} names no image.", "Write `image mask` a line.")
    masks = [cells[1] if len(cells) > 1 else "" for _, cells in rows]
    return _named_listing(
        path, [cells[0] for _, cells in rows], masks, [number for number, _ in rows], "list"
    )


def read_pair_table(path: Path, images: str | None = None, masks: str | None = None) -> DenseListing:
    """List images and masks from a .csv or .tsv with a header: image, mask, and if you like split and group.

    Args:
        path: the table; file names in it are relative to its folder. An empty mask means none.
        images: name of the column of images; None looks for a usual name.
        masks: name of the column of masks; None looks for a usual name.

    Raises:
        InputError: it cannot be read, or a column is not there.
    """
    table = read_table(path)
    if not len(table):
        raise InputError(
            f"{path} is empty.", "Write a header with image, mask, and if you like split and group."
        )
    table.name_columns()
    wanted = {
        "image": (images.lower(),) if images else _IMAGE,
        "mask": (masks.lower(),) if masks else _MASK,
        "split": _SPLIT,
        "group": _GROUP,
    }
    places = {role: table.find(names) for role, names in wanted.items()}
    for role, asked in (("image", images or "image"), ("mask", masks)):
        if places[role] is None and asked is not None:
            raise InputError(
                f"{path} has the columns {', '.join(table.header or [])[:200]}, none of them {asked!r}.",
                "Name the columns image, mask, split and group, or give names with data.images and data.masks.",
            )
    text = {role: table.text(at) for role, at in places.items() if at is not None}
    names = [name.replace("\\", "/") for name in text["image"]]
    own = [name.replace("\\", "/") for name in text.get("mask", [""] * len(names))]
    lines = table.lines or list(range(2, len(names) + 2))
    return _named_listing(path, names, own, lines, "csv", text.get("split"), text.get("group"))


def _named_listing(
    path: Path,
    names: list[str],
    masks: list[str],
    lines: list[int],
    layout: str,
    splits: list[str] | None = None,
    groups: list[str] | None = None,
) -> DenseListing:
    faults: list[Fault] = []
    files = [_normal(path.parent, name) for name in names]
    twice = [file for file, count in Counter(files).items() if count > 1]
    if twice:
        at = [row for row, file in enumerate(files) if file == twice[0]][:2]
        spelled = " and ".join(dict.fromkeys(repr(names[row][:200]) for row in at))
        raise InputError(
            f"{path}, lines {lines[at[0]]} and {lines[at[1]]} both name {spelled}; {len(twice)} such images."
        )
    spellings: dict[str, str] = {}  # two images that share a mask are told whatever its spelling
    masks = [mask and spellings.setdefault(_normal(path.parent, mask), mask) for mask in masks]
    for row, (name, mask, line) in enumerate(zip(names, masks, lines, strict=True)):
        for what, one in (("image", name), ("mask", mask)):
            if one and not _is_file(path.parent / one):
                faults.append(
                    Fault(
                        "missing_file", f"{path}, line {line}: the {what} {one[:200]!r} does not exist", row
                    )
                )
    pairs = [
        Pair(
            name,
            mask or None,
            name,
            (part_of(splits[row]) or splits[row]) if splits and splits[row] else None,
            groups[row] if groups and groups[row] else None,
        )
        for row, (name, mask) in enumerate(zip(names, masks, strict=True))
    ]
    place = Place(path.parent, names)
    listing = pair_listing(
        place, pairs, faults=faults, facts={"layout": layout}, classes=stored_classes(place)
    )
    listing.name = path.stem
    return listing


def _numbered(names: Sequence[str | None]) -> tuple[Tensor | None, list[str] | None]:
    """Numbers of groups in the order of sorted names; rows without one are a group called ""."""
    if not any(names):
        return None, None
    known = sorted({name or "" for name in names})
    number = {name: k for k, name in enumerate(known)}
    return torch.tensor([number[name or ""] for name in names], dtype=torch.int64), known


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _normal(folder: Path, name: str) -> str:
    """One spelling of a file, however its path is written; links are not followed."""
    return os.path.normcase(os.path.normpath(folder / name))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that the system does not take
        return False
