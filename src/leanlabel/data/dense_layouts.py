"""Where images and their masks lie: folders of one's own, and the layouts in which public sets are published."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from leanlabel.data.class_map import ClassMap, class_map
from leanlabel.data.dense_listing import DenseListing, Fault
from leanlabel.data.dense_lists import Pair, pair_listing, part_of, split_rows
from leanlabel.data.dense_place import Place, stored_classes
from leanlabel.errors import InputError

DenseLayout = Literal[
    "auto", "folders", "list", "csv", "coco", "cityscapes", "gta5", "synthia", "synscapes", "voc", "camvid"
]
IMAGE_FOLDERS = (
    "images", "image", "imgs", "img", "rgb", "photos", "frames", "pictures", "inputs", "input", "jpegimages",
    "leftimg8bit",
)  # fmt: skip
"""Names of folders that hold images, in lower case."""
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "annots", "gt", "gts", "gtfine",
    "ground_truth", "groundtruth", "segmentation", "segmentations", "segmentationclass", "seg", "targets", "target",
)  # fmt: skip
"""Names of folders that hold masks, in lower case."""
MASK_ENDS = (
    "_gtFine_labelIds", "_gtFine_labelTrainIds", "_labelIds", "_labelTrainIds", "_mask", "_masks", "_label",
    "_labels", "_gt", "_seg", "_segmentation", "_annotation", "_L",
)  # fmt: skip
"""What the name of a mask may have behind that of its image; of several masks of one image the first ending counts."""
IMAGE_ENDS = ("_leftImg8bit", "_image", "_img", "_rgb", "_sat")
"""What the name of an image may have behind that of its mask."""
_BESIDE = re.compile(r"_(colou?rs?|instance(train)?ids|polygons|vis|overlay)$", re.IGNORECASE)
_KEPT = {*IMAGE_FOLDERS, *MASK_FOLDERS, "train", "val", "valid", "validation", "test", "training", "testing"}
_CITY_IMAGE = "_leftImg8bit"
_CITY_MASKS = ("_gtFine_labelIds", "_gtFine_labelTrainIds")


def recognise(place: Place) -> DenseLayout | None:
    """Which layout a folder or .zip has; None where nothing in it looks like masks.

    Args:
        place: what :func:`open_place` gives.
    """
    names = place.names
    tops = {name.split("/")[0] for name in names if "/" in name}
    if "leftImg8bit" in tops and any(f"{_CITY_IMAGE}." in name for name in names):
        return "cityscapes"
    if {"JPEGImages", "SegmentationClass"} <= tops:
        return "voc"
    if "RGB" in tops and any(name.startswith("GT/LABELS/") for name in names):
        return "synthia"
    if all(any(name.startswith(start) for name in names) for start in ("img/rgb/", "img/class/")):
        return "synscapes"
    if any(f"{top}annot" in tops for top in tops):
        return "camvid"
    stored = stored_classes(place)
    roles = {_role(name.split("/")[:-1], MASK_FOLDERS) is not None for name in names}
    named = any(_sequence(name.rpartition("/")[2]) in SEQUENCES for name in names)
    if named and stored is not None and _same_classes(stored, class_map("camvid-11")) and True in roles:
        return "camvid"
    if {"images", "labels"} <= tops and place.title.lower().startswith("gta"):
        return "gta5"
    if True in roles or _suffixed(names):
        return "folders"
    return None


def open_place(place: Place) -> Place:
    """Pass over single folders around everything."""
    return place.unwrap(_KEPT)


def read_layout(
    place: Place, layout: DenseLayout, images: str | None = None, masks: str | None = None
) -> DenseListing:
    """List the images and masks of a folder or .zip.

    Args:
        place: what :func:`open_place` gives.
        layout: one that :func:`recognise` knows.
        images: name of the folder of images; None looks for a usual name. Folders only.
        masks: the same for masks.

    Raises:
        InputError: the layout does not fit, or no images.
    """
    if layout == "folders":
        return read_folders(place, images, masks)
    if images or masks:
        raise InputError(
            f"{place.path}: data.images and data.masks name folders, but the layout {layout} has its own.",
            "Leave them out, or set data.layout: folders.",
        )
    published = {
        "cityscapes": _cityscapes, "gta5": _gta5, "synthia": _synthia, "synscapes": _synscapes, "voc": _voc,
        "camvid": _camvid,
    }  # fmt: skip
    return published[layout](place)


def read_folders(place: Place, images: str | None = None, masks: str | None = None) -> DenseListing:
    """Pair the files of a folder of images and a folder of masks, or of pairs of such folders.

    A folder called train, val or test (also test_dusk, ...) above or below them is a part of the split; what other
    folders there are is the group of an image. Pairs have the same place and name; else the same name after what is
    usual behind it (_mask, _gtFine_labelIds, ...) is cut off; else the same name, where it occurs once. Where there
    are no such folders, a file x_mask belongs to x. Text files in ``splits`` (or train.txt, val.txt, test.txt) say
    which image belongs to which part, and go before folders.

    Args:
        place: what :func:`open_place` gives.
        images: name of the folder of images, if need be with slashes.
        masks: the same for masks.

    Raises:
        InputError: a folder that is asked for is not there.
    """
    faults: list[Fault] = []
    found, masks_of = _sorted_roles(place, images, masks)
    ids = [_name(name, at) for name, at in found]
    if len(set(ids)) < len(ids):
        ids = [name for name, _ in found]
    keys = [name.rpartition(".")[0] for name in ids]
    partner = _partners(place, keys, masks_of, faults)
    pairs = []
    for (image, _), name, key in zip(found, ids, keys, strict=True):
        folders = name.split("/")[:-1]
        split = part_of(folders[0]) if folders else None
        group = "/".join(folders[1:] if split else folders)
        pairs.append(Pair(image, partner.get(key), name, split, group or None))
    files = _split_files(place)
    splits = split_rows(place, files, pairs, faults) if files else None
    return pair_listing(
        place, pairs, faults=faults, facts={"layout": "folders"}, splits=splits, classes=stored_classes(place)
    )


def _split_files(place: Place) -> list[str]:
    beside = [name for name in place.texts("") if part_of(name.rpartition(".")[0])]
    return [name for name in place.texts("splits") if part_of(Path(name).stem)] or beside


def _sorted_roles(
    place: Place, images: str | None, masks: str | None
) -> tuple[list[tuple[str, tuple[int, int]]], list[tuple[str, tuple[int, int]]]]:
    """Images and masks, each with the place (first, last + 1) of the folders that say so; (0, 0) for none."""
    of_images = (images,) if images else IMAGE_FOLDERS
    of_masks = (masks,) if masks else MASK_FOLDERS
    found: dict[str, list[tuple[str, tuple[int, int]]]] = {"image": [], "mask": [], "none": []}
    for name in place.names:
        folders = name.split("/")[:-1]
        image, mask = _role(folders, of_images), _role(folders, of_masks)
        if mask is not None and (image is None or mask < image or (masks and not images)):
            found["mask"].append((name, mask))
        else:
            found["image" if image else "none"].append((name, image or (0, 0)))
    for key, role, asked in (("images", "image", images), ("masks", "mask", masks)):
        if asked and not found[role]:
            tops = sorted({name.rpartition("/")[0] for name in place.names if "/" in name})
            raise InputError(
                f"{place.path}: data.{key}: no folder {asked!r} with image files.",
                f"Folders with image files: {', '.join(tops[:12]) or 'none'}.",
            )
    if not found["image"]:  # images lie beside the folder of masks, or masks are told by their names
        own, own_masks = found["none"], found["mask"]
        if not own_masks:
            cut = _suffixed([name for name, _ in own])
            own_masks = [(name, at) for name, at in own if name in cut]
            own = [(name, at) for name, at in own if name not in cut]
        return own, own_masks
    return found["image"], found["mask"]


def _role(folders: list[str], names: Iterable[str]) -> tuple[int, int] | None:
    """Where the first of some folder names stands; those with capitals or slashes must fit exactly."""
    best: tuple[int, int] | None = None
    for name in names:
        wanted = name.strip("/").split("/")
        for start in range(len(folders) - len(wanted) + 1):
            here = folders[start : start + len(wanted)]
            same = here == wanted or (len(wanted) == 1 and here[0].lower() == name)
            if same and (best is None or start < best[0]):
                best = start, start + len(wanted)
    return best


def _name(name: str, at: tuple[int, int]) -> str:
    parts = name.split("/")
    return "/".join(parts[: at[0]] + parts[at[1] :])


def _stripped(key: str, ends: tuple[str, ...]) -> tuple[str, int]:
    """A name without the first ending that it has, and the ending's number; -1 for none."""
    for number, end in enumerate(ends):
        if key.lower().endswith(end.lower()) and len(key.rpartition("/")[2]) > len(end):
            return key[: -len(end)], number
    return key, -1


def _suffixed(names: Iterable[str]) -> set[str]:
    """Files called like another one with an ending of masks behind it."""
    stems = {name: name.rpartition(".")[0] for name in names}
    plain = {_stripped(stem, IMAGE_ENDS)[0] for stem in stems.values()}
    own = set(stems.values())
    cut = {name: _stripped(stem, MASK_ENDS) for name, stem in stems.items()}
    return {
        name
        for name, (stem, end) in cut.items()
        if end >= 0 and (stem in own or stem in plain - {stems[name]})
    }


def _partners(
    place: Place, keys: list[str], masks: list[tuple[str, tuple[int, int]]], faults: list[Fault]
) -> dict[str, str]:
    """Mask of each image by the image's key; masks that belong to none are faults."""
    if not masks:
        return {}
    key_of = {name: _name(name, at).rpartition(".")[0] for name, at in masks}
    twice = Counter(key_of.values())
    faults += [
        Fault("two_masks", f"{place.where(name)}: another mask has the same name with another ending")
        for name, key in key_of.items()
        if twice[key] > 1
    ]
    found: dict[str, str] = {}
    used: set[str] = set()

    def give(
        key_of_mask: Callable[[str], str], key_of_image: Callable[[str], str], *, once: bool = False
    ) -> None:
        left: dict[str, list[str]] = {}
        for name, key in sorted(key_of.items(), key=lambda pair: _stripped(pair[1], MASK_ENDS)[1]):
            if name not in used:
                left.setdefault(key_of_mask(key), []).append(name)
        wanting = Counter(key_of_image(key) for key in keys if key not in found)
        for key in keys:
            own = left.get(key_of_image(key), [])
            if key not in found and own and not (once and (len(own) > 1 or wanting[key_of_image(key)] > 1)):
                found[key] = own[0]
                used.update(own)

    give(str, str)
    give(lambda key: _stripped(key, MASK_ENDS)[0], lambda key: _stripped(key, IMAGE_ENDS)[0])
    give(
        lambda key: _stripped(key, MASK_ENDS)[0].rpartition("/")[2],
        lambda key: _stripped(key, IMAGE_ENDS)[0].rpartition("/")[2],
        once=True,
    )
    rest = [name for name in key_of if name not in used and not _BESIDE.search(key_of[name])]
    faults += [Fault("missing_image", f"{place.where(name)}: no image belongs to this mask") for name in rest]
    return found


def _published(place: Place, pairs: list[Pair], layout: str, classes: str, **more: Any) -> DenseListing:
    used = {pair.mask for pair in pairs}
    facts = {"layout": layout, **more.pop("facts", {})}
    faults = more.pop("faults", [])
    for start in more.pop("masks_below", ()):
        rest = [name for name in place.names if name.startswith(start) and name not in used]
        faults += [
            Fault("missing_image", f"{place.where(name)}: no image belongs to this mask") for name in rest
        ]
    return pair_listing(place, pairs, faults=faults, facts=facts, classes=class_map(classes), **more)


def _cityscapes(place: Place) -> DenseListing:
    here = set(place.names)
    trained = not any(name.endswith(f"{_CITY_MASKS[0]}.png") for name in here)
    end = (
        _CITY_MASKS[1]
        if trained and any(name.endswith(f"{_CITY_MASKS[1]}.png") for name in here)
        else _CITY_MASKS[0]
    )
    pairs = []
    for name in place.names:
        parts = name.split("/")
        stem = parts[-1].rpartition(".")[0]
        if parts[0] != "leftImg8bit" or len(parts) < 3 or not stem.endswith(_CITY_IMAGE):
            continue
        mask = "/".join(["gtFine", *parts[1:-1], f"{stem[: -len(_CITY_IMAGE)]}{end}.png"])
        city = parts[-2] if len(parts) > 3 else stem.split("_")[0]
        pairs.append(Pair(name, mask if mask in here else None, "/".join(parts[1:]), parts[1], city))
    classes = "cityscapes-19-train-ids" if end == _CITY_MASKS[1] else "cityscapes-19"
    used = {pair.mask for pair in pairs}
    rest = [name for name in place.names if name.endswith(f"{end}.png") and name not in used]
    faults = [Fault("missing_image", f"{place.where(name)}: no image belongs to this mask") for name in rest]
    return _published(place, pairs, "cityscapes", classes, faults=faults)


def _same_names(place: Place, images: str, masks: str) -> list[Pair]:
    """Pairs of files with the same stem in two folders."""
    own = {name[len(masks) :].rpartition(".")[0]: name for name in place.names if name.startswith(masks)}
    found = [name for name in place.names if name.startswith(images)]
    return [
        Pair(name, own.get(name[len(images) :].rpartition(".")[0]), name[len(images) :]) for name in found
    ]


def _gta5(place: Place) -> DenseListing:
    pairs = _same_names(place, "images/", "labels/")
    return _published(place, pairs, "gta5", "gta5-19", form="either", masks_below=("labels/",))


def _synthia(place: Place) -> DenseListing:
    pairs = _same_names(place, "RGB/", "GT/LABELS/")
    return _published(place, pairs, "synthia", "synthia-16", form="red", masks_below=("GT/LABELS/",))


def _synscapes(place: Place) -> DenseListing:
    pairs = _same_names(place, "img/rgb/", "img/class/")
    return _published(place, pairs, "synscapes", "synscapes-19", masks_below=("img/class/",))


def _voc(place: Place) -> DenseListing:
    pairs = _same_names(place, "JPEGImages/", "SegmentationClass/")
    lists = place.texts("ImageSets/Segmentation")
    stems = {name.rpartition("/")[2] for name in lists}
    if {"train.txt", "val.txt"} <= stems:  # their union is no part of its own
        lists = [name for name in lists if not name.endswith("/trainval.txt")]
    faults: list[Fault] = []
    if not lists:
        pairs = [pair for pair in pairs if pair.mask]
        return _published(place, pairs, "voc", "voc-21")
    rows = split_rows(place, lists, pairs, faults)
    kept = sorted({row for own in rows.values() for row in own})
    new = {row: k for k, row in enumerate(kept)}
    splits = {part: [new[row] for row in own] for part, own in rows.items()}
    facts = {"outside_splits": len(pairs) - len(kept)}
    return _published(
        place, [pairs[row] for row in kept], "voc", "voc-21", splits=splits, faults=faults, facts=facts
    )


SEQUENCES = frozenset({"0001TP", "0006R0", "0016E5", "Seq05VD"})
"""Films of CamVid, which the names of its frames begin with; data of other names may have the same classes."""


def _same_classes(stored: ClassMap, named: ClassMap) -> bool:
    """Whether a class file says what a named map says: the same names for the same ids."""
    return stored.names == named.names and dict(stored.ids) == dict(named.ids)


def _camvid_classes(stored: ClassMap | None) -> ClassMap:
    """The published map, which knows colours and subsets, unless the data says otherwise."""
    published = class_map("camvid-11")
    return published if stored is None or _same_classes(stored, published) else stored


def _camvid(place: Place) -> DenseListing:
    tops = {name.split("/")[0] for name in place.names if "/" in name}
    annotated = sorted(top for top in tops if f"{top}annot" in tops)
    if not annotated:
        listing = read_folders(place)
        groups = [_sequence(name.rpartition("/")[2]) for name in listing.ids]
        names = sorted(set(groups))
        numbers = torch.tensor([names.index(group) for group in groups], dtype=torch.int64)
        return replace(
            listing,
            groups=numbers,
            group_names=names,
            classes=_camvid_classes(listing.classes),
            facts={**listing.facts, "layout": "camvid"},
        )
    pairs = []
    for top in annotated:
        for pair in _same_names(place, f"{top}/", f"{top}annot/"):
            pairs.append(
                replace(pair, name=pair.image, split=part_of(top) or top, group=_sequence(pair.name))
            )
    return _published(place, pairs, "camvid", "camvid-11", masks_below=[f"{top}annot/" for top in annotated])


def _sequence(name: str) -> str:
    """Sequence that a frame of CamVid belongs to: its name up to the first underscore."""
    return name.rpartition(".")[0].split("_")[0]
