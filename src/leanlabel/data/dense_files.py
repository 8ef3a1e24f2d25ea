"""Read images and masks from wherever people keep them; whatever is wrong with them is found before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.class_map import UNLISTED, ClassMap
from leanlabel.data.decode import ENDINGS, Fit
from leanlabel.data.dense import DenseImages, MaskArray, MaskFiles, is_store
from leanlabel.data.dense_layouts import DenseLayout, open_place, read_layout, recognise
from leanlabel.data.dense_listing import Code, DenseListing
from leanlabel.data.dense_lists import read_pair_list, read_pair_table
from leanlabel.data.dense_look import Looking, Seen
from leanlabel.data.dense_parts import (
    Labels,
    SplitBy,
    cut_validation,
    forget_masks,
    hide_training_masks,
    keep_groups,
    limit_images,
    train_mask,
)
from leanlabel.data.dense_place import Place
from leanlabel.data.image_files import Load, Step, _is_zip
from leanlabel.data.images import PixelArray, PixelFiles, Pixels
from leanlabel.data.masks import colour_table, refuse_colours
from leanlabel.errors import InputError

_SHOWN = 5
_WHAT: dict[Code, str] = {
    "missing_mask": "images without a mask",
    "missing_image": "masks without an image",
    "missing_file": "named files that do not exist",
    "two_masks": "masks that are not one for one image",
    "unreadable": "images that cannot be read",
    "unreadable_mask": "masks that cannot be read",
    "wrong_form": "masks that hold no labels in the form expected",
    "size_mismatch": "masks of another size than their image",
}
_HINTS: dict[Code, str] = {
    "missing_mask": "Add the masks, remove the images, or set data.labels: none.",
    "missing_image": "Add the images, or remove the masks.",
    "missing_file": "Correct the list; its paths are relative to its folder.",
    "two_masks": "Keep one mask for each image.",
    "unreadable": "Mend or remove them, or set data.skip_unreadable: true to leave them out.",
    "unreadable_mask": "Mend or remove them, or set data.skip_unreadable: true to leave them out.",
    "wrong_form": "Say data.classes.by_colour: true if colours mean classes; else write masks as grey or palette PNG.",
    "size_mismatch": "Write masks with the size of their images, without smoothing.",
}


def list_dense(
    path: str | Path,
    *,
    layout: DenseLayout = "auto",
    images: str | None = None,
    masks: str | None = None,
    labels: Labels = "auto",
    classes: ClassMap | None = None,
) -> DenseListing:
    """Find out which images and masks a place holds, without decoding a pixel.

    Args:
        path: a folder or .zip of images and masks, a list of pairs (.txt), a table (.csv), or COCO JSON.
        layout: what folders mean; auto looks.
        images: folder or column of images; None looks for a usual name.
        masks: the same for masks.
        labels: none forgets masks; splits and groups stay. (What held-out hides depends on the parts, so that readers
            do it once they are cut.)
        classes: class map of the categories of COCO JSON, in place of their order; others take no notice.

    Returns:
        The listing, whose faults say which pairs are not complete and which named files do not exist.

    Raises:
        InputError: nothing that can be read.
    """
    path = Path(path)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # a name that the system does not take
        raise InputError(f"{path} cannot be read: {error}.") from error
    if not is_folder and not is_file:
        raise InputError(f"{path} does not exist.")
    if is_folder or (
        path.suffix.lower() not in (".txt", ".lst", ".list", ".csv", ".tsv", ".json") and _is_zip(path)
    ):
        listing = _list_place(path, layout, images, masks, labels)
    else:
        listing = _list_file(path, layout, images, masks, classes, labels)
    return forget_masks(listing) if labels == "none" else listing


def _list_place(
    path: Path, layout: DenseLayout, images: str | None, masks: str | None, labels: str
) -> DenseListing:
    if layout in ("list", "csv", "coco"):
        raise InputError(
            f"{path} is a folder or .zip; the layout {layout} is a file.", "Name the file in data.path."
        )
    place = open_place(Place.open(path))
    if not place.names:
        raise InputError(f"{path} holds no image files ({place.others} other files).")
    if layout == "auto":
        found = recognise(place)
        if found is None and not images and not masks and labels != "none":
            raise InputError(
                f"{path}: {len(place.names)} images, but nothing that looks like masks.",
                "Name the folders with data.images and data.masks, or set data.labels: none.",
            )
        layout = "folders" if found is None or images or masks else found
    return read_layout(place, layout, images, masks)


def _list_file(
    path: Path,
    layout: DenseLayout,
    images: str | None,
    masks: str | None,
    classes: ClassMap | None,
    labels: Labels,
) -> DenseListing:
    ending = path.suffix.lower()
    kind = {
        ".json": "coco",
        ".csv": "csv",
        ".tsv": "csv",
        ".txt": "list",
        ".lst": "list",
        ".list": "list",
    }.get(ending)
    if kind is not None and layout not in ("auto", kind):
        raise InputError(f"{path} is read with the layout {kind}, not {layout}.", "Set data.layout: auto.")
    if kind == "coco":
        from leanlabel.data.coco import read_coco

        # Annotations that stay unread are not judged, either.
        return read_coco(path, images, None if labels == "none" else classes, later=labels != "auto")
    if kind == "csv":
        return read_pair_table(path, images, masks)
    if kind == "list":
        return read_pair_list(path)
    raise InputError(
        f"{path} is not a set of images and masks.",
        "Give a folder, a .zip, a list (.txt), a table (.csv) or COCO JSON"
        + (f", not {'a single image' if ending in ENDINGS else f'a {ending} file'}." if ending else "."),
    )


def read_dense(
    path: str | Path,
    *,
    layout: DenseLayout = "auto",
    classes: ClassMap | None = None,
    images: str | None = None,
    masks: str | None = None,
    load: Load = "auto",
    resize: int | None = None,
    limit: int | None = None,
    val_share: float = 0.1,
    split_by: SplitBy = "auto",
    only_groups: Sequence[str] | None = None,
    without_groups: Sequence[str] | None = None,
    bands: Sequence[int] | None = None,
    white: float | None = None,
    labels: Labels = "auto",
    unread: bool = False,
    verify: bool = True,
    skip_unreadable: bool = False,
    progress: Step | None = None,
) -> DenseImages:
    """Read images and masks.

    Every image and mask is decoded once before anything else happens: broken files, masks of another size than their
    image and values that the class map does not list are found now, and pixels of each class are counted.

    Args:
        path: as for :func:`list_dense`.
        layout: what folders mean; auto looks.
        classes: what label values mean; None takes the map that lies beside the data, or that of the layout.
        images: folder or column of images; None looks for a usual name.
        masks: the same for masks.
        load: memory, disk (decode files each time they are asked for), or auto: memory where all images have one
            size and take less than 1 GiB.
        resize: the shorter side is scaled down to this: images antialiased, masks by the nearest pixel centre.
        limit: number of images to keep, drawn with a fixed seed, the same share of every part; None keeps all.
        val_share: share of the training part that becomes the validation part where there are masks, but none is.
        split_by: whether that goes by image or by sequence; auto: by sequence where groups are known.
        only_groups: keep these groups only.
        without_groups: leave these groups out.
        bands: bands to read, counted from 0, of files with any number of them; None reads RGB.
        white: value that means 1.0 in 16-bit files; used with `bands`.
        labels: none reads images only; held-out opens only masks of parts called val or test, once a validation part
            was cut.
        unread: whether to open no mask at all, but to cut and to limit as if those that `labels` names were read: the
            same images in the same parts.
        verify: False only reads the heads of files that are not kept in memory; nothing is counted then.
        skip_unreadable: leave unreadable images and masks out instead of refusing the set.
        progress: called now and then with the number of images looked at, and of all.

    Raises:
        InputError: nothing that can be read, no class map, or the first few faults and their number.
    """
    if unread and labels != "none":
        listing = _list_unread(path, layout, images, masks, classes)
    else:
        listing = list_dense(path, layout=layout, images=images, masks=masks, labels=labels, classes=classes)
    own = classes or listing.classes
    if own is None:
        if listing.masks is not None and not unread:
            raise InputError(
                f"{path}: nothing says what the values in masks mean.",
                "Set data.classes to the name of a class map or to names of classes, or write classes.json there.",
            )
        own = ClassMap("none", ("unknown",), ((128, 128, 128),), {0: 0})
    listing = keep_groups(listing, only_groups, without_groups)
    if listing.masks is not None:  # a part without labels measures nothing
        cut_validation(listing, val_share, split_by)
    if limit is not None:
        listing = limit_images(listing, limit)
    if unread:
        listing = forget_masks(listing)
    elif labels == "held-out":
        listing = hide_training_masks(listing)
    chosen = tuple(bands) if bands is not None else None
    looking = Looking(listing, own, Fit(resize), load, chosen, white, verify)
    seen = looking.run(str(path), progress)
    kept = _judge(looking, seen, str(path), skip_unreadable)
    return _assembled(looking, seen, kept)


def _list_unread(
    path: str | Path, layout: DenseLayout, images: str | None, masks: str | None, classes: ClassMap | None
) -> DenseListing:
    """The listing with its masks, which say that a part to measure is cut; without them where they are no masks."""
    try:
        return list_dense(path, layout=layout, images=images, masks=masks, labels="held-out", classes=classes)
    except InputError:  # so nothing can be trained on with these masks, and no part is cut elsewhere
        return list_dense(path, layout=layout, images=images, masks=masks, labels="none")


def _judge(looking: Looking, seen: list[Seen], path: str, skip_unreadable: bool) -> list[int]:
    """Rows that stay; an error where anything is wrong that may not be skipped."""
    listing = looking.listing
    faults = [*listing.faults, *(one for row in seen for one in row.faults)]
    kept = list(range(len(listing)))
    if skip_unreadable:
        broken = {one.row for one in faults if one.code in ("unreadable", "unreadable_mask")}
        if len(broken) < len(kept):
            kept = [row for row in kept if row not in broken]
            faults = [one for one in faults if one.row not in broken]
    of_values = _wrong_values(looking, seen, path)
    if not faults and of_values is None:
        return kept
    parts = []
    codes: list[Code] = list(dict.fromkeys(one.code for one in faults))
    for code in codes:
        own = [one.message for one in faults if one.code == code]
        more = f"\n    ... and {len(own) - _SHOWN} more" if len(own) > _SHOWN else ""
        parts.append(f"  {_WHAT.get(code, code)} ({len(own)}):\n    " + "\n    ".join(own[:_SHOWN]) + more)
    if of_values is not None:
        if not parts:
            raise of_values
        parts.append(f"  {of_values}")
    raise InputError(
        f"{path}: images and masks that do not fit together or cannot be read:\n" + "\n".join(parts) + "\n",
        _HINTS.get(faults[0].code),
    )


def _wrong_values(looking: Looking, seen: list[Seen], path: str) -> InputError | None:
    """The error for label values that the class map does not list, or that are probably meant otherwise."""
    listing, classes, values = looking.listing, looking.classes, looking.values
    wrong = [row for row, one in enumerate(seen) if one.wrong]
    if wrong:
        masks = listing.masks
        assert masks is not None  # else nothing was translated
        assert is_store(masks)
        first = masks.where(listing.mask_row(wrong[0]))
        files = f"; in {len(wrong)} of {int(listing.labelled.sum())} masks, first in {first}"
        if looking.by_colour:
            found = {value: n for value, n in values.items() if colour_table(classes)[value] == UNLISTED}
            return refuse_colours(found, path, classes, files)
        return classes.refuse(values, path, files)
    doubt = None if looking.by_colour else classes.doubt(values)
    return (
        None
        if doubt is None
        else InputError(f"{path}: masks and class map {classes.name} do not match.", doubt)
    )


def _assembled(looking: Looking, seen: list[Seen], kept: list[int]) -> DenseImages:
    listing, classes = looking.listing, looking.classes
    pixels, labels = looking.pixels, looking.labels
    if len(kept) < len(listing):
        rows = torch.tensor(kept, dtype=torch.int64)
        skipped = len(listing) - len(kept)
        listing = listing.take(rows)
        listing.facts = {**listing.facts, "unreadable_skipped": skipped}
        seen = [seen[row] for row in kept]
        pixels = None if pixels is None else pixels[rows]
        labels = None if labels is None else labels[rows]
    sizes = [one.size for one in seen if one.size is not None]
    shape = sizes[0] if len(set(sizes)) == 1 else None
    masks = None
    if listing.masks is not None:
        of = listing.mask_of if listing.mask_of is not None else torch.arange(len(listing))
        heights = torch.tensor([size[1:] for size in sizes], dtype=torch.int64).reshape(-1, 2)
        masks = (
            MaskFiles(listing.masks, classes, heights, of, listing.form)
            if labels is None
            else MaskArray(labels)
        )
    modes = Counter(one.mode for one in seen)
    return DenseImages(
        name=listing.name,
        pixels=_pixels(looking, listing, pixels, shape),
        masks=masks,
        classes=classes,
        splits=listing.splits,
        ids=listing.ids,
        groups=listing.groups,
        group_names=listing.group_names,
        facts={**listing.facts, **_counted(listing, seen), "modes": dict(modes.most_common())},
    )


def _pixels(
    looking: Looking, listing: DenseListing, pixels: Tensor | None, shape: tuple[int, int, int] | None
) -> Pixels:
    if pixels is not None:
        return PixelArray(pixels, bands=looking.bands is not None)
    if looking.bands is not None:
        from leanlabel.data.bands import BandFiles

        return BandFiles(listing.images, looking.bands or None, looking.white, looking.fit, shape)
    return PixelFiles(listing.images, looking.fit, shape)


def _counted(listing: DenseListing, seen: list[Seen]) -> dict[str, Any]:
    """What the masks hold: pixels and images of each class, pixels and masks without any."""
    if listing.masks is None:
        return {}
    facts: dict[str, Any] = {"unlabelled": int((~listing.labelled).sum())}
    rows = [row for row, one in enumerate(seen) if one.pixels is not None]
    if not rows:
        return facts
    table = np.stack([seen[row].pixels for row in rows])  # type: ignore[arg-type]
    train = train_mask(len(listing), listing.splits)
    pixels = table.sum(0)
    return {
        **facts,
        "class_pixels": pixels[:-1].tolist(),
        "train_class_pixels": table[train[rows].numpy()].sum(0)[:-1].tolist(),
        "class_images": (table[:, :-1] > 0).sum(0).tolist(),
        "ignore_share": float(pixels[-1] / max(1, pixels.sum())),
        "all_ignore": int((table[:, :-1].sum(1) == 0).sum()),
    }
