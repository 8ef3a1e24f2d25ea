"""Two places of data as a recipe of adaptation reads them: which masks count, and which classes both have."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from leanlabel.advice.place import written_place
from leanlabel.advice.recipe import Choice
from leanlabel.advice.segmentation import _SETTLED, DECODED, LOOKED_AT, _bands, _classes, _read, _validation
from leanlabel.advice.segmentation_facts import spread
from leanlabel.data.class_map import ClassMap, class_map
from leanlabel.data.dense import DenseImages
from leanlabel.data.dense_check import check_dense
from leanlabel.data.dense_files import list_dense
from leanlabel.data.dense_listing import DenseListing
from leanlabel.data.dense_parts import cut_validation, hide_training_masks, train_mask
from leanlabel.data.dense_source import ClassSection
from leanlabel.errors import InputError

Role = Literal["source", "target"]
Labels = Literal["held-out", "none"]


@dataclass(frozen=True)
class Place:
    """One domain on its way into the recipe.

    Args:
        role: which.
        path: where it is.
        written: how the recipe names it.
        listing: images and masks; of the target all that are there, also those that stay unread.
        reading: choices that say how to read it, with keys as of a recipe of one domain (data.path).
    """

    role: Role
    path: Path
    written: str
    listing: DenseListing
    reading: tuple[Choice, ...]

    def choices(self) -> list[Choice]:
        """As a recipe of two domains writes them."""
        return [replace(one, key=one.key.replace("data.", f"data.{self.role}.", 1)) for one in self.reading]

    def value(self, key: str, default: Any = None) -> Any:
        """What was chosen for a key below data."""
        return next((one.value for one in self.reading if one.key == f"data.{key}"), default)

    def read(self) -> DenseImages:
        """The images and masks as training will read them; of many only the heads are looked at."""
        return _read(self.path, list(self.reading), len(self.listing) <= DECODED)

    def findings(self) -> list[str]:
        """What the data check warns of, where it is not too much to look at."""
        listing = self.listing
        if len(listing) > DECODED:
            return []
        if self.value("labels") == "held-out":
            listing = replace(listing)  # parts are cut in place
            cut_validation(listing, self.value("val_share", 0.0), self.value("split_by", "auto"))
            listing = hide_training_masks(listing)
        known = _map_of(self.value("classes")) or listing.classes
        return [
            f"{one.severity}: {self.role}: {one.message}"
            for one in check_dense(listing, classes=known, cache=None).findings
            if one.severity != "info" and one.code not in _SETTLED
        ]


class Places(NamedTuple):
    """Both domains."""

    source: Place
    target: Place
    hidden: int
    """Masks of target training images that are there; a part of them may be held out to measure."""
    warnings: list[str]
    """What was strange."""


def find_places(places: list[str]) -> Places:
    """Look for both domains, and choose how they are read.

    Args:
        places: paths of source and target, also below LEANLABEL_DATA.

    Raises:
        InputError: no such place, the same one twice, no masks in the source, or classes that differ.
    """
    (path, written), (other, named) = (written_place(place) for place in places)
    if path.resolve() == other.resolve():
        raise InputError(
            f"init adapt: source and target are the same place, {written}.",
            "Give two places; parts of one are told apart in a recipe by data.source.only_groups and "
            "data.target.only_groups.",
        )
    source = list_dense(path)
    if not bool(source.labelled.any()):
        raise InputError(
            f"{written}: {len(source)} images and no masks; adaptation needs labels of the source.",
            "Put masks beside the images, in a folder called masks, under the same names.",
        )
    target, labels, hidden = _list_target(other)
    warnings = []
    if labels == "none" and hidden:
        warnings.append(
            f"{hidden:,} images of the target have masks, but not all, and no part is held out: none is read; put "
            "those with masks into a part called val"
        )
    theirs = target.classes if labels != "none" else None
    if source.classes is None and theirs is None:
        if source.form == "ids":
            source = replace(source, form="either")  # nobody says whether numbers or colours are classes
        warnings.append(
            "nothing says what values in masks mean: each became a class; name them in data.*.classes"
        )
    own, others = _both_classes(source, theirs, written, named)
    if labels == "none":
        others = []
    reading = [*_start(written), *own, *_bands(source), *_validation(source)]
    found = [*_start(named), *others, *_bands(target), _label_choice(labels, hidden)]
    if labels == "held-out":
        found += _measured_part(target)
    return Places(
        Place("source", path, written, source, tuple(reading)),
        Place("target", other, named, target, tuple(found)),
        hidden,
        warnings,
    )


def _start(written: str) -> list[Choice]:
    return [
        Choice("data.kind", "file", "files of one's own or of a public set"),
        Choice("data.path", written, "relative paths are also looked for below LEANLABEL_DATA"),
    ]


def _list_target(path: Path) -> tuple[DenseListing, Labels, int]:
    """The target, which of its masks are read, and how many of training images are there."""
    try:
        listing = list_dense(path)
    except InputError:  # nothing that looks like masks; or nothing at all, which is said now
        return list_dense(path, labels="none"), "none", 0
    train = train_mask(len(listing), listing.splits)
    labelled = listing.labelled
    hidden = int((labelled & train).sum())
    if bool((labelled & ~train).any()) or (hidden > 1 and hidden == int(train.sum())):
        return listing, "held-out", hidden
    return list_dense(path, labels="none"), "none", hidden


def _measured_part(target: DenseListing) -> list[Choice]:
    """A part to measure on is cut where there is none and all training images have masks."""
    train = train_mask(len(target), target.splits)
    if bool((target.labelled & ~train).any()):
        if "val" in target.splits:
            return []
        return [Choice("data.val_share", 0.0, "another part of the target has labels to measure with")]
    return _validation(target)


def _label_choice(labels: Labels, hidden: int) -> Choice:
    if labels == "none":
        return Choice("data.labels", "none", "the target has no masks that are held out; none are read")
    about = "masks of parts that are not trained on are read, to measure"
    if hidden:
        about += "; those of images that are trained on stay unread"
    return Choice("data.labels", "held-out", about)


# ------------------------------------------------------------------------------------------------ classes


def _both_classes(
    source: DenseListing, theirs: ClassMap | None, written: str, named: str
) -> tuple[list[Choice], list[Choice]]:
    """What values in masks mean, for each domain, so that both have the same classes in the same order.

    Raises:
        InputError: both say it, and the classes are not the same.
    """
    own = source.classes
    if own is None and theirs is None:
        some = source if len(source) <= DECODED else source.take(spread(torch.arange(len(source)), LOOKED_AT))
        guessed = _classes(source, check_dense(some, cache=None).classes)
        return guessed, [
            replace(one, reason="as in the source; nothing names them there either") for one in guessed
        ]
    said = [Choice("data.classes", None, f"{len(own or theirs or ())} classes, said by the data")]
    if own is None and theirs is not None:
        return [_written(theirs, "as the target says; nothing beside the source names them")], said
    assert own is not None
    if theirs is None:
        return said, [_written(own, "as the source says; nothing beside the target names them")]
    if set(own.names) != set(theirs.names):
        raise InputError(
            f"classes differ: {_difference(own, theirs, written, named)}; both domains need the same ones.",
            "Give both the same classes.json; or hand over a target without masks, which needs none.",
        )
    if own.names == theirs.names:
        return said, said
    return said, [_written(_reordered(theirs, own.names), "the same classes, in the order of the source's")]


def _difference(own: ClassMap, theirs: ClassMap, written: str, named: str) -> str:
    parts = []
    for where, names, other in ((written, own.names, theirs.names), (named, theirs.names, own.names)):
        alone = [name for name in names if name not in other]
        if alone:
            more = ", ..." if len(alone) > 5 else ""
            parts.append(f"{', '.join(alone[:5])}{more} only in {where} ({len(names)} classes)")
    return "; ".join(parts)


def _reordered(classes: ClassMap, names: tuple[str, ...]) -> ClassMap:
    """The same classes in another order."""
    place = {name: number for number, name in enumerate(names)}
    colours = dict(zip(classes.names, classes.colours, strict=True))
    return replace(
        classes,
        name="reordered",
        names=names,
        colours=tuple(colours[name] for name in names),
        ids={raw: place[classes.names[label]] for raw, label in classes.ids.items()},
        subsets={},
    )


def _written(classes: ClassMap, about: str) -> Choice:
    """A class map as a recipe writes it: its name where it has one."""
    key = "data.classes"
    try:
        if class_map(classes.name) == classes:
            return Choice(key, classes.name, about)
    except InputError:  # one of somebody's own
        pass
    value: dict[str, Any] = {"names": list(classes.names), "colours": [list(one) for one in classes.colours]}
    if classes.by_colour:
        value |= {
            "by_colour": True,
            "ignored_colours": [list(one) for one in sorted(classes.ignored_colours)],
        }
    else:
        value |= {"ids": dict(classes.ids), "ignored": sorted(classes.ignored)}
    if classes.unlisted == "ignore":
        value["unlisted"] = "ignore"
    return Choice(key, value, about)


def _map_of(value: Any) -> ClassMap | None:
    """The class map that a choice means."""
    if not isinstance(value, dict):
        return None if value is None else class_map(value)
    return ClassSection.model_validate_json(json.dumps(value), strict=True).class_map()
