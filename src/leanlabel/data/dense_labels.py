"""Label values of masks against a class map, and what classes make of them: sums over many masks, and findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from leanlabel.data.class_map import IGNORE, MOST_CLASSES, UNLISTED, ClassMap, plain_map
from leanlabel.data.dense import DenseImages, is_store
from leanlabel.data.dense_listing import DenseListing
from leanlabel.data.dense_pass import Look
from leanlabel.data.findings import LONG_TAIL, Finding, Severity, share
from leanlabel.data.masks import colour_table, refuse_colours

MOST_NAMED = 12
"""Names in one sentence."""


@dataclass
class Tally:
    """All rows together.

    Args:
        classes: what labels mean.
        table: (N, K + 2) int64 pixels of each class, of none (ignored), and of values that the map does not list.
        values: raw id or colour -> pixels.
        at: raw id or colour -> first row that has it.
        colours: whether values are colours.
    """

    classes: ClassMap
    table: np.ndarray
    values: Counter[int] = field(default_factory=Counter)
    at: dict[int, int] = field(default_factory=dict)
    colours: bool = False


def _made(data: DenseListing | DenseImages) -> bool:
    """Whether masks hold classes already, and not what is written in files."""
    return isinstance(data, DenseImages) or (data.masks is not None and not is_store(data.masks))


def tally_labels(data: DenseListing | DenseImages, looks: Sequence[Look], classes: ClassMap | None) -> Tally:
    """Sum the labels of all masks.

    Args:
        data: where the masks are.
        looks: what was seen of each.
        classes: what labels mean; None makes a class of each value.
    """
    values: Counter[int] = Counter()
    at: dict[int, int] = {}
    colours = any(look.colours for look in looks)
    for row, look in enumerate(looks):
        if look.colours == colours:
            values.update(look.values)
            for value in look.values:
                at.setdefault(value, row)
    known = classes or _guessed(values, colours)
    if colours:
        meaning = colour_table(known)
    elif _made(data):
        meaning = np.full(1 << 16, UNLISTED, dtype=np.uint8)
        meaning[: len(known)] = np.arange(len(known))
        meaning[IGNORE] = IGNORE
    else:
        meaning = known.table
    table = np.zeros((len(looks), IGNORE + 1), dtype=np.int64)
    for row, look in enumerate(looks):
        if look.values and look.colours == colours:
            seen = np.fromiter(look.values, dtype=np.int64, count=len(look.values))
            np.add.at(table[row], meaning[seen], list(look.values.values()))
    kept = [*range(len(known)), IGNORE, UNLISTED]
    return Tally(known, table[:, kept], values, at, colours)


def _guessed(values: Mapping[int, int], colours: bool) -> ClassMap:
    """A map where the data has none: each value is a class; 255 is ignored where there are others besides 0."""
    present = sorted(values)
    if colours:
        parts = [(code >> 16, code >> 8 & 255, code & 255) for code in present[:MOST_CLASSES]]
        names = [f"colour {red} {green} {blue}" for red, green, blue in parts] or ["colour"]
        return plain_map(names, parts or None, name="colours found", unlisted="ignore", by_colour=True)
    kept = [value for value in present if value != IGNORE or present == [0, IGNORE]]
    kept = kept[:MOST_CLASSES] or [0]
    ids = {value: label for label, value in enumerate(kept)}
    return plain_map([f"value {value}" for value in kept], name="values found", ids=ids, unlisted="ignore")


def value_findings(data: DenseListing | DenseImages, tally: Tally, *, guessed: bool) -> list[Finding]:
    """Say what the raw values in masks are, and which of them do not fit the class map.

    Args:
        data: where the masks are.
        tally: the sums.
        guessed: whether the class map was made from the values.
    """
    classes, values = tally.classes, {value: n for value, n in tally.values.items() if n}
    found = []
    what = "colours" if tally.colours else "values"
    if not tally.colours:
        shown = ", ".join(map(str, sorted(values)[:40])) + (", ..." if len(values) > 40 else "")
        found.append(
            Finding("info", "label_values_found", f"{len(values)} label values: {shown}", len(values))
        )
    if guessed:
        text = (
            f"no class map: each of the {what} found counts as a class; name them in classes.json beside the data or "
            "data.classes"
        )
        found.append(Finding("warning", "no_class_map", text, len(values)))
    wrong = {} if guessed or classes.unlisted == "ignore" else _unlisted(data, tally)
    present = set(values) - {IGNORE}
    binary = not tally.colours and not _made(data) and set(values) == {0, IGNORE}
    if binary and (guessed or IGNORE not in classes.ids):
        text = "masks hold 0 and 255 only: binary masks written as 0/255"
        if not guessed:
            text += f", but 255 {'is no id of' if IGNORE in wrong else 'means ignore in'} the class map"
        severity: Severity = "warning" if guessed else "error"
        text += "; ids: {0: 0, 255: 1}"
        found.append(Finding(severity, "binary_mask", text, values[IGNORE]))
    elif wrong:
        rows = sorted({tally.at[value] for value in wrong})
        holding = int((tally.table[:, -1] > 0).sum())
        files = f", in {holding} masks such as {row_name(data, rows[0])}"
        if tally.colours:
            error = refuse_colours(wrong, data.name, classes, files)
        else:
            error = classes.refuse(values, data.name, files)
        one_off = 0 not in present and present and max(present) == max(classes.ids) + 1 and not tally.colours
        code = "off_by_one" if one_off else "label_values"
        found.append(Finding("error", code, str(error), sum(wrong.values())))
    known = sorted(classes.ids)
    beyond = known[-1] + 1
    shifted = known[0] not in present and beyond in classes.ignored and {*known[1:], beyond} <= set(present)
    if shifted and not tally.colours:
        text = (
            f"no mask holds {known[0]} ({classes.names[classes.ids[known[0]]]}), but {beyond}, which means no class, "
            f"occurs: ids may be one too large (off by one); list them in data.classes as ids: {{1: 0, 2: 1, ...}}"
        )
        found.append(Finding("warning", "off_by_one", text, values[beyond]))
    none = int(tally.table[:, -2].sum())
    total = int(tally.table.sum())
    if none:
        severity = "warning" if none > 0.5 * total else "info"
        text = f"{share(none, total)} of labelled pixels are ignored"
        found.append(Finding(severity, "ignored_pixels", text, none))
    empty = np.flatnonzero((tally.table[:, -2] > 0) & (tally.table[:, :-2].sum(1) == 0))
    if len(empty):
        text = f"{len(empty)} masks hold nothing but ignored pixels, such as {row_name(data, int(empty[0]))}"
        found.append(Finding("warning", "all_ignore", text, len(empty)))
    return found


def _unlisted(data: DenseListing | DenseImages, tally: Tally) -> dict[int, int]:
    """Values that the class map does not list, and their pixels."""
    if tally.colours:
        meaning = colour_table(tally.classes)
    elif _made(data):
        return {v: n for v, n in tally.values.items() if v >= len(tally.classes) and v != IGNORE}
    else:
        meaning = tally.classes.table
    return {value: n for value, n in tally.values.items() if meaning[value] == UNLISTED}


def label_findings(data: DenseListing | DenseImages, tally: Tally) -> list[Finding]:
    """Say which classes there are, how large, and which are missing from where."""
    pixels = tally.table[:, :-2].sum(0)
    total, names = int(pixels.sum()), tally.classes.names
    present = sorted((label for label in range(len(names)) if pixels[label]), key=lambda c: -int(pixels[c]))
    if not present:
        return [Finding("error", "no_class", "no pixel belongs to a class", 0)]
    shown = ", ".join(f"{names[c]} {share(int(pixels[c]), total)}" for c in present[:MOST_NAMED])
    more = ", ..." if len(present) > MOST_NAMED else ""
    found = [Finding("info", "classes", f"{len(present)} classes by pixels: {shown}{more}", len(present))]
    ratio = int(pixels[present[0]]) // max(int(pixels[present[-1]]), 1)
    if ratio >= LONG_TAIL:
        text = f"long tail: {names[present[0]]} has {ratio} times the pixels of {names[present[-1]]}"
        found.append(Finding("info", "long_tail", text, ratio))
    if len(present) == 1:
        text = f"only {names[present[0]]} is there: a segmentation needs two classes"
        found.append(Finding("warning", "one_class", text, 1))
    absent = [names[c] for c in range(len(names)) if not pixels[c]]
    if absent:
        text = f"{len(absent)} classes are in no mask: {listed(absent)}"
        found.append(Finding("warning", "absent_classes", text, len(absent)))
    for part, rows in data.splits.items():
        own = tally.table[rows.numpy()][:, :-2].sum(0)
        lacking = [names[c] for c in present if not own[c]]
        if not lacking or not own.any():
            continue
        if part == "train":
            text = f"{len(lacking)} classes are missing from train and cannot be learnt: {listed(lacking)}"
            found.append(Finding("warning", "split_missing_classes", text, len(lacking)))
        else:
            text = f"{len(lacking)} classes are missing from {part}, which says nothing about them: {listed(lacking)}"
            found.append(Finding("info", "absent_in_part", text, len(lacking)))
    return found


def row_name(data: DenseListing | DenseImages, row: int) -> str:
    """Name of one image."""
    return data.ids[row] if data.ids else f"image {row}"


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
