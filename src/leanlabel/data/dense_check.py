"""Look at segmentation data before a run does: files, pairs, label values, classes, copies and sequences across parts.

Looks at listings, so that data which training would refuse is described, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.class_map import ClassMap
from leanlabel.data.decode import Fit
from leanlabel.data.dense import DenseImages
from leanlabel.data.dense_labels import (
    MOST_NAMED,
    Tally,
    label_findings,
    listed,
    row_name,
    tally_labels,
    value_findings,
)
from leanlabel.data.dense_listing import DenseListing
from leanlabel.data.dense_pass import Look, Step, cache_folder, look_at, look_at_each, seen_mask
from leanlabel.data.findings import Finding, Severity, share
from leanlabel.data.masks import form_of
from leanlabel.data.near_copies import NEAR, difference_hash, nearest_copies
from leanlabel.data.splits import PARTS
from leanlabel.errors import InputError

EXAMPLES = 12
"""Images that the page shows."""
FEW_CACHED = 64
"""Fewer images are looked at anew each time, unless a folder for the results is named."""
_SHOWN = 3
_TEXTS = {
    "missing_mask": "images have no mask",
    "missing_image": "masks have no image",
    "missing_file": "files are named that do not exist",
    "two_masks": "images have more than one mask",
    "unknown_name": "names stand in lists of parts but not among the images",
    "unreadable": "images cannot be read",
    "unreadable_mask": "masks cannot be read",
    "size_mismatch": "masks have another size than their image",
}
_FACTS: tuple[tuple[str, Severity, str], ...] = (
    ("other_files", "info", "files are neither images nor masks and were passed over"),
    (
        "annotations_without_shape",
        "warning",
        "annotations have no segmentation (boxes only) and are not painted",
    ),
    (
        "val_cut_from_train",
        "info",
        "images of the training part are its validation part, drawn with a fixed seed",
    ),
    ("limited_from", "info", "images are there, of which a limit keeps some"),
)


@dataclass(frozen=True, eq=False)
class DenseFindings:
    """What a look at segmentation data found.

    Args:
        findings: one sentence each.
        figures: plain data for a page: name, images, labelled, parts, classes (name, colour, raw, pixels, images and
            the same by part), ignored, values, examples.
        data: what was looked at.
        classes: the class map by which labels were counted.
    """

    findings: list[Finding]
    figures: dict[str, Any]
    data: DenseListing | DenseImages
    classes: ClassMap


def check_dense(
    data: DenseListing | DenseImages | str | Path,
    *,
    classes: ClassMap | None = None,
    progress: Step | None = None,
    cache: Path | Literal["auto"] | None = "auto",
) -> DenseFindings:
    """Describe images and masks, and name everything in them that may surprise; reads every file once.

    Args:
        data: images with masks, a listing of them, or where they are.
        classes: what labels mean, instead of what the data says. Where nobody says it, each value is a class.
        progress: called now and then with the number of images looked at, and of all.
        cache: folder for what was seen of each file, told by name, size and time of change, so that a second look is
            quick; auto is the user's cache folder for sets of 64 images or more; None keeps nothing.

    Returns:
        Findings (files first, then sizes, labels, classes, parts, copies) and the figures behind them.

    Raises:
        InputError: the place holds no images and masks at all. Single wrong files are findings.
    """
    if isinstance(data, str | Path):
        from leanlabel.data.dense_files import list_dense

        data = list_dense(data)
    own = classes or data.classes
    if cache == "auto":
        cache = cache_folder() / "data_check" if len(data) >= FEW_CACHED else None
    looks = _looks(data, own, progress, cache)
    tally = tally_labels(data, looks, own)
    labelled = _labelled(data)
    found = [*_files(data, looks, labelled), *_sizes(looks)]
    if labelled.any():
        found += [*value_findings(data, tally, guessed=own is None), *label_findings(data, tally)]
    else:
        found.append(
            Finding("info", "no_labels", "no masks: a model can be adapted to these images, not trained", 0)
        )
    found += [*_splits(data), *_groups(data), *_copies(data, looks)]
    return DenseFindings(found, _figures(data, looks, tally, labelled), data, tally.classes)


def _looks(
    data: DenseListing | DenseImages, classes: ClassMap | None, progress: Step | None, cache: Path | None
) -> list[Look]:
    if isinstance(data, DenseListing):
        return look_at(data, data.form if classes is None else form_of(classes, data.form), progress, cache)
    shrink = Fit(64)

    def one(row: int) -> Look:
        look = Look()
        try:
            image = data.pixels[row]
            height, width = image.shape[1:]
            look.size, look.mode = (int(width), int(height)), f"{len(image)} bands"
            step = max(1, min(height, width) // (2 * (shrink.resize or 1)))
            look.code = difference_hash(image[:, ::step, ::step])
        except InputError as error:
            look.fault = error.message
        try:
            return look if data.masks is None else seen_mask(look, np.asarray(data.masks[row]))
        except InputError as error:
            look.mask_fault = error.message
            return look

    return look_at_each(one, len(data), progress)


def _labelled(data: DenseListing | DenseImages) -> Tensor:
    if isinstance(data, DenseListing):
        return data.labelled
    return torch.full((len(data),), data.masks is not None)


# ------------------------------------------------------------------------------------------- files and sizes


def _files(data: DenseListing | DenseImages, looks: Sequence[Look], labelled: Tensor) -> list[Finding]:
    n, known = len(data), int(labelled.sum())
    masks = "all with masks" if known == n else f"{known} with masks"
    found = [Finding("info", "images", f"{n} images, {masks}" if known else f"{n} images", n)]
    wrong: dict[str, list[str]] = defaultdict(list)
    said: set[tuple[str, int]] = set()
    if isinstance(data, DenseListing):
        for one in data.faults:
            wrong[one.code].append(one.message)
            said.add((one.code, one.row))
    gone = {row for code, row in said if code == "missing_file"}
    for row, look in enumerate(looks):
        if look.fault and row not in gone and ("unreadable", row) not in said:
            wrong["unreadable"].append(look.fault)
        if look.mask_fault and ("unreadable_mask", row) not in said:
            wrong["unreadable_mask"].append(look.mask_fault)
        sizes = look.size, look.mask_size
        if None not in sizes and sizes[0] != sizes[1] and ("size_mismatch", row) not in said:
            (width, height), (mask_width, mask_height) = sizes  # type: ignore[misc]
            name = data.ids[row] if data.ids else f"image {row}"
            wrong["size_mismatch"].append(
                f"{name}: {width} x {height}, its mask {mask_width} x {mask_height}"
            )
    for code, messages in wrong.items():
        shown = "; ".join(one.rstrip(".") for one in messages[:_SHOWN])
        more = f"; and {len(messages) - _SHOWN} more" if len(messages) > _SHOWN else ""
        text = f"{len(messages)} {_TEXTS.get(code, code.replace('_', ' '))}: {shown}{more}"
        found.append(Finding("error", code, text, len(messages)))
    if 0 < known < n and "missing_mask" not in wrong:
        text = f"{n - known} images ({share(n - known, n)}) have no mask"
        found.append(Finding("info", "unlabelled", text, n - known))
    for key, severity, text in _FACTS:
        count = data.facts.get(key, 0)
        if isinstance(count, int) and count:
            found.append(Finding(severity, key, f"{count} {text}", count))
    return found


def _sizes(looks: Sequence[Look]) -> list[Finding]:
    known = [look.size for look in looks if look.size is not None]
    if not known:
        return []
    sizes, modes = Counter(known), Counter(look.mode for look in looks if look.size is not None)
    if len(sizes) == 1:
        text = "all images are {} x {} pixels".format(*known[0])
    else:
        widths, heights = ([size[axis] for size in known] for axis in (0, 1))
        text = (
            f"{len(sizes)} sizes (width x height): from {min(widths)} x {min(heights)} to {max(widths)} x "
            f"{max(heights)}, median {median(widths):g} x {median(heights):g}"
        )
    found = [Finding("info", "sizes", text, len(sizes))]
    if len(modes) > 1:
        shown = ", ".join(f"{mode} {count}" for mode, count in modes.most_common(8))
        found.append(Finding("info", "mixed_modes", f"{len(modes)} pixel formats: {shown}", len(modes)))
    return found


# ------------------------------------------------------------------------------------------- parts and copies


def _parts(data: DenseListing | DenseImages) -> dict[str, Tensor]:
    """The parts of the split: train, val, test, then others, so that train is the one that others leak from."""
    order = {part: place for place, part in enumerate(PARTS)}
    return {
        part: data.splits[part] for part in sorted(data.splits, key=lambda part: order.get(part, len(order)))
    }


def _splits(data: DenseListing | DenseImages) -> list[Finding]:
    found = []
    for part, rows in _parts(data).items():
        found.append(Finding("info", f"split_{part}", f"{part}: {len(rows)} images", len(rows)))
        repeated = len(rows) - len(torch.unique(rows))
        if repeated:
            found.append(
                Finding("error", "split_repeats", f"{part} lists {repeated} images more than once", repeated)
            )
    for one, other in combinations(_parts(data), 2):
        shared = int(torch.isin(torch.unique(data.splits[one]), data.splits[other]).sum())
        if shared:
            text = f"{shared} images are in both {one} and {other}: scores on {other} are too good"
            found.append(Finding("error", "split_leak", text, shared))
    if not data.splits:
        text = "no parts: a validation part will be drawn with a fixed seed"
        found.append(Finding("info", "no_splits", text, 0))
    return found


def _groups(data: DenseListing | DenseImages) -> list[Finding]:
    if data.groups is None:
        return []
    names = data.group_names or [str(k) for k in range(int(data.groups.max()) + 1)]
    sizes = Counter(data.groups.tolist())
    shown = ", ".join(f"{names[group]} {count}" for group, count in sizes.most_common(MOST_NAMED))
    found = [Finding("info", "groups", f"{len(sizes)} sequences or places: {shown}", len(sizes))]
    for one, other in combinations(_parts(data), 2):
        rows = data.splits[other]
        both = set(data.groups[data.splits[one]].tolist()) & set(data.groups[rows].tolist())
        if both:
            count = sum(group in both for group in data.groups[rows].tolist())
            text = (
                f"{count} of {len(rows)} images of {other} come from sequences that {one} has, too "
                f"({listed([names[group] for group in sorted(both)])}): scores on {other} may be too good"
            )
            found.append(Finding("warning", "sequence_leak", text, count))
    return found


def _copies(data: DenseListing | DenseImages, looks: Sequence[Look]) -> list[Finding]:
    found = []
    digests = [look.digest for look in looks if look.digest]
    extra = len(digests) - len(set(digests))
    if extra:
        text = f"{extra} images ({share(extra, len(looks))}) are exact copies of another one"
        found.append(Finding("warning" if extra >= 0.01 * len(looks) else "info", "duplicates", text, extra))
    for one, other in combinations(_parts(data), 2):
        first, second = (
            [row for row in data.splits[part].tolist() if looks[row].code is not None]
            for part in (one, other)
        )
        near = nearest_copies(
            [looks[row].code or 0 for row in second], [looks[row].code or 0 for row in first]
        )
        rows = [
            (row, first[k])
            for row, k in zip(second, near.tolist(), strict=True)
            if k >= 0 and row != first[k]
        ]
        if rows:
            of = len(data.splits[other])
            text = (
                f"{len(rows)} of {of} images of {other} ({share(len(rows), of)}) look nearly the same as an image of "
                f"{one} ({NEAR} or fewer of 64 bits of a hash differ), such as {row_name(data, rows[0][0])} and "
                f"{row_name(data, rows[0][1])}: scores on {other} may be too good"
            )
            found.append(Finding("warning", "near_copies", text, len(rows)))
    return found


# ------------------------------------------------------------------------------------------- figures


def _figures(
    data: DenseListing | DenseImages, looks: Sequence[Look], tally: Tally, labelled: Tensor
) -> dict[str, Any]:
    """Everything that a page shows, as plain data."""
    parts = {part: rows.tolist() for part, rows in _parts(data).items()}
    every = {"all": list(range(len(data))), **parts}
    sums = {part: tally.table[rows].sum(0) for part, rows in every.items()}
    held = {part: (tally.table[rows] > 0).sum(0) for part, rows in every.items()}
    known = {part: int(labelled[rows].sum()) for part, rows in every.items()}

    def shares(label: int) -> dict[str, dict[str, float]]:
        return {
            part: {
                "pixels": float(sums[part][label] / max(int(sums[part][: len(tally.classes)].sum()), 1)),
                "images": float(held[part][label] / max(known[part], 1)),
                "count": int(held[part][label]),
            }
            for part in every
        }

    raw: dict[int, list[int]] = defaultdict(list)
    for value, label in tally.classes.ids.items():
        raw[label].append(value)
    return {
        "name": data.name,
        "images": len(data),
        "labelled": int(labelled.sum()),
        "map": tally.classes.name,
        "sizes": [[*size, count] for size, count in Counter(k.size for k in looks if k.size).most_common(8)],
        "parts": [
            {"name": part, "images": len(rows), "labelled": known[part]} for part, rows in parts.items()
        ],
        "classes": [
            {
                "name": name,
                "colour": list(tally.classes.colours[label]),
                "raw": raw[label],
                "shares": shares(label),
            }
            for label, name in enumerate(tally.classes.names)
        ],
        "ignored": {part: float(sums[part][-2] / max(int(sums[part].sum()), 1)) for part in every},
        "values": [[value, count] for value, count in sorted(tally.values.items())[:256]],
        "examples": _examples(data, looks, tally),
    }


def _examples(data: DenseListing | DenseImages, looks: Sequence[Look], tally: Tally) -> list[int]:
    """Rows of images to show: for each class from the rarest on the image with most of it, then evenly over all."""
    good = [row for row, look in enumerate(looks) if look.size and look.mask_size == look.size]
    table, chosen = tally.table[:, :-2], []
    for label in np.argsort(table.sum(0), kind="stable").tolist():
        left = [row for row in good if row not in chosen]
        if left and table[left, label].any() and len(chosen) < EXAMPLES - 2:
            chosen.append(left[int(np.argmax(table[left, label]))])
    left = [row for row in good if row not in chosen]
    more = min(EXAMPLES - len(chosen), len(left))
    chosen += [left[k * len(left) // more] for k in range(more)]
    return sorted(chosen)
