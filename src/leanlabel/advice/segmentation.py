"""Advice for images with masks: read them, measure them, apply the rules, in the order of the recipe."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from leanlabel.advice import segmentation_rules as rules
from leanlabel.advice.graph_cost import duration
from leanlabel.advice.place import written_place
from leanlabel.advice.recipe import Advice, Choice
from leanlabel.advice.segmentation_facts import DenseFacts, measure, spread
from leanlabel.data.bands import read_bands
from leanlabel.data.class_map import IGNORE, ClassMap
from leanlabel.data.dense import DenseImages
from leanlabel.data.dense_check import check_dense
from leanlabel.data.dense_files import list_dense
from leanlabel.data.dense_listing import DenseListing
from leanlabel.data.dense_source import DenseFiles, open_dense
from leanlabel.errors import InputError

DECODED = 2_000
"""Images up to which all are decoded and checked; of more only the heads of files are read, and some decoded."""
LOOKED_AT = 512
"""Masks of a larger set whose values become classes, where nobody says what they mean."""
MANY = 64
"""Values that nobody named, from which on they may be no classes."""
_TIFF = (b"II", b"MM")
_BANDS = 8
_FAR = 2.0**40
_SETTLED = {
    "absent_classes", "all_ignore", "binary_mask", "label_values", "missing_mask", "no_class_map", "off_by_one",
    "one_class", "split_missing_classes", "unreadable", "unreadable_mask",
}  # fmt: skip
"""Findings of the data check that stop reading, that the recipe answers, or that stand among its own warnings."""


def advise(places: list[str]) -> Advice:
    """Choose the settings of a supervised segmentation for images with masks.

    Args:
        places: one path of a folder or .zip of images and masks, a list, a table or COCO JSON, also below
            LEANLABEL_DATA.

    Raises:
        InputError: no such place, no masks, one that no recipe can name, or what else the reader says: pairs that are
            not complete, masks whose values the class map does not list.
    """
    (place,) = places
    path, written = written_place(place)
    listing = list_dense(path)
    if not bool(listing.labelled.any()):
        raise InputError(
            f"{written}: {len(listing)} images and no masks; a segmentation network is trained on labels.",
            "Put masks beside the images, in a folder called masks, under the same names.",
        )
    few = len(listing) <= DECODED
    if listing.classes is None and listing.form == "ids":
        listing = replace(listing, form="either")  # nobody says whether numbers or colours are classes
    checked = check_dense(listing) if few else None
    guessed = None
    if listing.classes is None:
        some = listing if few else listing.take(spread(torch.arange(len(listing)), LOOKED_AT))
        guessed = (checked or check_dense(some, cache=None)).classes
    reading = [
        Choice("data.kind", "file", "files of one's own or of a public set"),
        Choice("data.path", written, "relative paths are also looked for below LEANLABEL_DATA"),
        *_classes(listing, guessed),
        *_bands(listing),
        *_validation(listing),
    ]
    data = _read(path, reading, few)
    gpu = torch.cuda.is_available()
    facts = measure(data, gpu=gpu, memory=_gpu_memory() if gpu else 0.0)
    if not facts.present:
        raise InputError(
            f"{written}: no pixel of the {facts.trained} training images has a class.",
            "Give the training part masks; `leanlabel data check` tells what the others hold.",
        )
    if facts.smallest < rules.SMALLEST:
        raise InputError(
            f"{written}: an image has a side of {facts.smallest} pixels; the smallest network needs {rules.SMALLEST}.",
            "Leave such images out.",
        )
    choices, shown = _choices(data, reading, facts)
    said = [] if checked is None else checked.findings
    found = [f"{o.severity}: {o.message}" for o in said if o.severity != "info" and o.code not in _SETTLED]
    cautions = (f"warning: {text}" for text in _cautions(facts, shown, data, guessed))
    return Advice(
        task="segmentation",
        facts=(f"Looked at {written}: {_counts(facts)}.", *_held(facts)),
        choices=tuple(choices),
        warnings=(*found, *cautions),
    )


def _choices(data: DenseImages, reading: list[Choice], facts: DenseFacts) -> tuple[list[Choice], DenseFacts]:
    """All choices in the order of the file, and the facts of the images as they will be read."""
    shrunk = rules.resize(facts)
    shown = rules.as_read(facts, shrunk.value)
    window = rules.crop(shown)
    model = rules.network(shown, facts, window.value, rules.wanted_batch(shown))
    batch, size = rules.fitted_batch(shown, rules.settings_of(model), window.value)
    if size != window.value:
        about = f"height and width; {window.value} would not fit into {shown.memory:.2g} GiB"
        window = Choice(window.key, size, about)
        model = rules.network(shown, facts, size, batch)
    model = [*model, rules.normalisation(shown, batch)]
    cost = rules.expected_cost(shown, rules.settings_of(model), size, batch)
    steps = rules.steps(shown, batch, cost.seconds)
    gpu = facts.gpu
    skipped = f"{facts.unreadable:,} files cannot be read"
    spent = Choice(
        "cost",
        f"estimate: about {duration(cost.seconds * steps.value)} of training on {'a GPU' if gpu else '2 cores'} "
        f"({duration(cost.seconds)} an iteration), {cost.memory:.2g} GiB",
        f"not measured: three forward passes' operations for each of {batch} images, at "
        f"{'5.5 trillion' if gpu else '100 billion'} a second; may be off by a factor of two",
    )
    found = [
        Choice("about", f"Segmentation of {data.name}", "title of the reports"),
        Choice("task", "segmentation", "kind of job"),
        Choice("fidelity", "corrected" if gpu else "small", "a GPU here" if gpu else "no GPU here"),
        spent,
        Choice("seed", 0, "of every random number; `compare` counts up from it"),
        steps,
        Choice("method.name", "segmentation", "supervised training on masks"),
        rules.terms(shown),
        *model,
        *reading,
        *([Choice("data.skip_unreadable", True, skipped)] if facts.unreadable else []),
        shrunk,
        rules.batch(shown, batch, size, cost.memory),
        window,
        rules.scale(shown),
        *rules.augmentation(shown),
        *rules.optimiser(model[0].value, batch),
        *rules.evaluation(shown),
        *rules.engine(shown, steps.value),
    ]
    return found, shown


# ------------------------------------------------------------------------------------------------ reading


def _read(path: Path, reading: list[Choice], few: bool) -> DenseImages:
    """The images and masks as training will read them; of many only the heads are looked at."""
    values: dict[str, Any] = {choice.key.removeprefix("data."): choice.value for choice in reading}
    values |= {"path": str(path), "verify": few, "load": "auto" if few else "disk", "skip_unreadable": True}
    values |= {key: tuple(values[key]) for key in ("bands",) if key in values}
    return open_dense(DenseFiles.model_validate(values))


def _classes(listing: DenseListing, guessed: ClassMap | None) -> list[Choice]:
    """What the values in masks mean: as the data says, else each value is a class."""
    if guessed is None:
        known = listing.classes
        assert known is not None
        return [Choice("data.classes", None, f"{len(known)} classes, said by the data ({known.name})")]
    key = "data.classes"
    if guessed.by_colour:
        colours = [list(colour) for colour in guessed.colours]
        value = {"names": list(guessed.names), "colours": colours, "by_colour": True}
        return [Choice(key, value, "nothing names the colours in masks, and each became a class: name them")]
    binary = set(guessed.ids) in ({0, IGNORE}, {0, 1})
    names = ["background", "foreground"] if binary else list(guessed.names)
    ignored = [] if IGNORE in guessed.ids else [IGNORE]
    about = "nothing names the values in masks, and each became a class: name them"
    if IGNORE in guessed.ids:
        about += f"; 0 and {IGNORE} only are a binary mask"
    return [Choice(key, {"names": names, "ids": dict(guessed.ids), "ignored": ignored}, about)]


def _bands(listing: DenseListing) -> list[Choice]:
    """Which bands to read: all, where files hold more than a picture has."""
    shapes: set[int] = set()
    deep, top = False, 0.0
    for row in spread(torch.arange(len(listing)), _BANDS):
        try:
            data = listing.images.read(row)
            if data[:2] not in _TIFF:
                return []
            # A power of two divides and multiplies without rounding, whatever the values are.
            values = read_bands(data, listing.images.where(row), None, _FAR)
        except InputError:  # the reader of all says what is wrong
            continue
        shapes.add(len(values))
        if values.dtype != torch.uint8:
            deep, top = True, max(top, float(values.max()) * _FAR)
    if not shapes or (not deep and shapes <= {1, 3}):
        return []
    counts = ", ".join(map(str, sorted(shapes)))
    found = [
        Choice(
            "data.bands", [], f"TIFF files of {counts} bands: all are read; or list them, such as [2, 1, 0]"
        )
    ]
    if deep:
        white = float(2 ** max(1, int(top).bit_length()) - 1) if top > 1 else 1.0
        about = f"largest value of {_BANDS} images is {top:.6g}; what is larger is cut off"
        found.append(Choice("data.white", white, about))
    return found


def _validation(listing: DenseListing) -> list[Choice]:
    """How a validation part is made where the data has none."""
    if "val" in listing.splits:
        return []
    listed = sum(len(rows) for rows in listing.splits.values())
    trained = len(listing.splits["train"]) if "train" in listing.splits else len(listing) - listed
    usual = 0.1 if trained >= 100 else 0.2
    wanted = min(0.5, max(usual, math.ceil(100 / max(trained, 1)) / 100))  # one image at least
    why = f"{trained:,} training images, {'100 or more' if trained >= 100 else 'fewer than 100'}"
    share = Choice(
        "data.val_share", wanted, f"the data has no validation part: this share becomes one; {why}"
    )
    if listing.groups is not None:
        groups = len(listing.groups.unique())
        about = f"{groups} sequences are known: frames of one are near-copies and are not shuffled into both parts"
        return [share, Choice("data.split_by", "sequence", about)]
    about = "no sequences are known; with frames of videos use a folder for each, or sequence"
    return [share, Choice("data.split_by", "image", about)]


def _gpu_memory() -> float:
    """Memory of the first GPU in GiB; 10 where nothing says it."""
    try:
        return torch.cuda.get_device_properties(0).total_memory / 2**30
    except (RuntimeError, AssertionError):
        return 10.0


# ------------------------------------------------------------------------------------------------- telling


def _counts(facts: DenseFacts) -> str:
    parts = ", ".join(f"{count:,} {part}" for part, count in facts.parts.items())
    size = f"{facts.width} x {facts.height} pixels"
    if not facts.one_size:
        size = f"{facts.smallest} to {facts.largest} pixels on a side (median {size})"
    bands = "" if facts.channels == 3 else f", {facts.channels} bands"
    groups = f", {facts.sequences} sequences" if facts.sequences else ""
    return f"{facts.images:,} images with masks ({parts}), {size}{bands}{groups}"


def _held(facts: DenseFacts) -> list[str]:
    """Sentences on classes and objects."""
    order = [*reversed(facts.present)]
    shown = order if len(order) <= 12 else [*order[:6], *order[-5:]]
    told = [f"{facts.names[c]} {100 * facts.shares[c]:.2g} %" for c in shown]
    held = min(order, key=lambda c: facts.image_shares[c])
    found = [
        f"Classes by pixels ({len(order)} of {len(facts.names)}): {', '.join(told)}; "
        f"{100 * facts.unlabelled:.2g} % have no class; {facts.names[held]} is in "
        f"{100 * facts.image_shares[held]:.3g} % of the training masks, the fewest."
    ]
    if facts.objects:
        sizes = ", ".join(f"{o.name} {o.height:.0f} x {o.width:.0f}" for o in facts.objects)
        found.append(f"Median height and width of connected objects of the rarest classes: {sizes} pixels.")
    return found


def _cautions(facts: DenseFacts, shown: DenseFacts, data: DenseImages, guessed: ClassMap | None) -> list[str]:
    """What no setting mends."""
    found = []
    if guessed is not None:
        found.append(
            "nothing says what values in masks mean: each became a class; name them in data.classes.names"
        )
        if len(guessed) > MANY:
            found.append(
                f"masks hold {len(guessed)} values or colours, more than {MANY}: look whether they were smoothed or "
                "packed with loss, which makes values that mean nothing"
            )
    if facts.trained < rules.FEW:
        found.append(
            f"{facts.trained} training images, fewer than {rules.FEW}, are few: start from a trained backbone "
            "(fit --from FILE --part backbone), and trust no single score"
        )
    if len(facts.present) == 1:
        found.append(
            f"only {facts.names[facts.present[0]]} has training pixels: a segmentation needs two classes"
        )
    for part, lacking in facts.lacking.items():
        if not lacking or len(lacking) == len(facts.names):
            continue
        looked = facts.looked_at[part]
        some = f" among {looked} masks looked at" if looked < facts.parts[part] else ""
        what = "cannot be learned" if part == "train" else "scores say nothing about them"
        found.append(f"no pixel of {', '.join(lacking)} in {part}{some}: {what}")
    blank = [part for part in facts.looked_at if part not in facts.lacking]
    if blank:
        found.append(f"{' and '.join(blank)} have no labels and are not measured")
    bare = int(data.facts.get("unlabelled", 0))
    if bare:
        found.append(f"{bare:,} images have no mask and are not trained on")
    small = shown.smallest_object
    if small is not None and small.side < rules.LEAST_OBJECT:
        found.append(
            f"objects of {small.name} have about {small.height:.1f} x {small.width:.1f} pixels as they are read: "
            "expect few of them to be found; a larger data.resize helps, at more cost"
        )
    if facts.unreadable:
        found.append(f"{facts.unreadable:,} files cannot be read and are left out")
    return found
