"""Parts of a listing: some groups only, a validation part cut from the training part, a limit of images."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from leanlabel import rng
from leanlabel.data.dense_listing import DenseListing, Fault
from leanlabel.data.image_files import VAL_SEED
from leanlabel.errors import InputError

SplitBy = Literal["auto", "image", "sequence"]
Labels = Literal["auto", "none", "held-out"]
"""Which masks are read: all, none, or those of the parts that are measured."""
_MEASURED = re.compile(r"(val|test)([_-].+)?", re.IGNORECASE)


def keep_groups(
    listing: DenseListing, only: Sequence[str] | None = None, without: Sequence[str] | None = None
) -> DenseListing:
    """Keep the images of some groups.

    Args:
        listing: with groups.
        only: names of groups to keep; None keeps all.
        without: names of groups to leave out; None leaves none out.

    Raises:
        InputError: no groups, no such group, or no images left.
    """
    if only is None and without is None:
        return listing
    if listing.groups is None or listing.group_names is None:
        raise InputError(
            f"{listing.name}: data.only_groups and data.without_groups need groups, and none are known here.",
            "Groups are cities, sequences, folders below the images, or the column group of a table.",
        )
    for key, asked in (("only_groups", only), ("without_groups", without)):
        for name in asked or ():
            if name not in listing.group_names:
                near = difflib.get_close_matches(name, listing.group_names, n=1)
                raise InputError(
                    f"{listing.name}: data.{key}: there is no group {name!r}.",
                    f"{f'Nearest: {near[0]}; groups' if near else 'Groups'}: {', '.join(listing.group_names[:20])}.",
                )
    kept = [(only is None or name in only) and name not in (without or ()) for name in listing.group_names]
    rows = torch.tensor(kept)[listing.groups].nonzero()[:, 0]
    if not len(rows):
        raise InputError(f"{listing.name}: data.only_groups and data.without_groups leave no image.")
    smaller = listing.take(rows)
    smaller.facts = {**smaller.facts, "groups_kept": [n for n, own in zip(listing.group_names, kept) if own]}
    return smaller


def cut_validation(listing: DenseListing, share: float, by: SplitBy = "auto") -> None:
    """Make a validation part where the data has none, with a fixed seed, and say so in the facts.

    It is taken from the training part, or from all images that are in no part. By sequence: whole groups, if some
    make up about the share; else one block of neighbours from the end of each group (of all images where there are no
    groups). Frames of one sequence are never shuffled into both parts.

    Args:
        listing: changed in place.
        share: share of the training part, in [0, 1); 0 cuts nothing.
        by: auto goes by sequence where groups are known, else by image.
    """
    if "val" in listing.splits:
        return
    if "train" not in listing.splits:
        listed = torch.zeros(len(listing), dtype=torch.bool)
        for rows in listing.splits.values():
            listed[rows] = True
        train = (~listed).nonzero()[:, 0]
        if not len(train):
            return
        listing.splits = {"train": train, **listing.splits}
    train = listing.splits["train"]
    wanted = round(share * len(train))
    if share <= 0 or not 0 < wanted < len(train):
        return
    by_sequence = by == "sequence" or (by == "auto" and listing.groups is not None)
    groups = torch.zeros(len(train), dtype=torch.int64) if listing.groups is None else listing.groups[train]
    if not by_sequence:
        order = rng.draw(VAL_SEED, "validation part", 0).permutation(len(train))
        chosen, how = order[:wanted], "images"
    else:
        chosen, how = _whole_groups(groups, wanted), "groups"
        if chosen is None:
            chosen, how = _blocks(groups, wanted, [listing.ids[row] for row in train.tolist()]), "blocks"
    inside = torch.zeros(len(train), dtype=torch.bool)
    inside[chosen] = True
    rest = {part: rows for part, rows in listing.splits.items() if part != "train"}
    listing.splits = {"train": train[~inside], "val": train[inside], **rest}
    listing.facts |= {
        "val_cut_from_train": int(inside.sum()),
        "val_share": share,
        "val_seed": VAL_SEED,
        "val_by": how,
    }
    if how == "groups" and listing.group_names is not None:
        listing.facts["val_groups"] = sorted(listing.group_names[k] for k in groups[inside].unique().tolist())


def _whole_groups(groups: Tensor, wanted: int) -> Tensor | None:
    """Rows of groups that together have half to one and a half times the wanted number; None if none have."""
    numbers, sizes = groups.unique(return_counts=True)
    taken: list[int] = []
    total = 0
    for k in rng.draw(VAL_SEED, "validation groups", 0).permutation(len(numbers)).tolist():
        if total + int(sizes[k]) <= 1.5 * wanted and total < wanted:
            taken.append(int(numbers[k]))
            total += int(sizes[k])
    if total < 0.5 * wanted or not taken:
        return None
    return torch.isin(groups, torch.tensor(taken)).nonzero()[:, 0]


def _blocks(groups: Tensor, wanted: int, names: list[str]) -> Tensor:
    """Rows at the end of each group, in the order of names, as many of each as its size asks for."""
    found: list[int] = []
    for number in groups.unique().tolist():
        rows = sorted((groups == number).nonzero()[:, 0].tolist(), key=lambda row: names[row])
        count = min(round(wanted * len(rows) / len(groups)), len(rows) - 1)
        found += rows[len(rows) - count :]
    if not found:  # every group is too small for one: the last image of all
        found = [max(range(len(names)), key=lambda row: names[row])]
    return torch.tensor(found, dtype=torch.int64)


def limit_images(listing: DenseListing, limit: int) -> DenseListing:
    """Keep some images, drawn with a fixed seed: the same share of every part.

    Raises:
        InputError: a limit below 1.
    """
    n = len(listing)
    if limit < 1:
        raise InputError(f"the limit of images must be at least 1, got {limit}.")
    if limit >= n:
        return listing
    part = torch.full((n,), len(listing.splits), dtype=torch.int64)
    for number, rows in reversed(list(enumerate(listing.splits.values()))):
        part[rows] = number
    sizes = torch.bincount(part, minlength=len(listing.splits) + 1)
    quotas = sizes * limit // n
    # What rounding left over goes to the largest remainders.
    for number in torch.argsort(sizes * limit % n, descending=True, stable=True)[: limit - int(quotas.sum())]:
        quotas[number] += 1
    order = rng.draw(VAL_SEED, "limit of images", 0).permutation(n)
    kept = [order[part[order] == number][:quota] for number, quota in enumerate(quotas.tolist())]
    smaller = listing.take(torch.cat(kept).sort().values)
    smaller.facts = {**smaller.facts, "limited_from": n, "limit_seed": VAL_SEED}
    return smaller


def hide_training_masks(listing: DenseListing) -> DenseListing:
    """Forget the masks of what may be trained on, and what is wrong with them; measured parts keep theirs.

    The files of these masks are not in the result, so that nothing that reads it can open them.

    Args:
        listing: after a validation part was cut, which keeps its masks.
    """
    if listing.masks is None:
        return listing
    hidden = ~measured_mask(len(listing), listing.splits)
    of = torch.tensor([listing.mask_row(row) for row in range(len(listing))], dtype=torch.int64)
    kept = of.masked_fill(hidden, -1)
    wanted, place = kept[kept >= 0].unique(return_inverse=True)
    kept[kept >= 0] = place
    smaller = replace(
        listing,
        masks=listing.masks.take(wanted.tolist()) if len(wanted) else None,
        mask_of=kept if len(wanted) else None,
        faults=[one for one in listing.faults if one.row < 0 or not hidden[one.row] or not _of_mask(one)],
        facts={**listing.facts, "training_masks_hidden": int((hidden & (of >= 0)).sum())},
    )
    _count_objects(smaller)
    return smaller


def forget_masks(listing: DenseListing) -> DenseListing:
    """Leave images, parts and groups, and of what is wrong that which is not about masks."""
    rest = [one for one in listing.faults if one.code == "missing_file" and "the mask" not in one.message]
    bare = replace(listing, masks=None, mask_of=None, faults=rest, facts=dict(listing.facts))
    _count_objects(bare)
    return bare


def _of_mask(fault: Fault) -> bool:
    return fault.code == "missing_mask" or (fault.code == "missing_file" and "the mask" in fault.message)


def _count_objects(listing: DenseListing) -> None:
    """Objects are counted in masks that are read."""
    if "objects" in listing.facts:
        painted = getattr(listing.masks, "objects", ())
        listing.facts["objects"] = sum(map(len, painted))


def measured_mask(count: int, splits: Mapping[str, Tensor]) -> Tensor:
    """Which of `count` images are of measured parts only, called val, test, or val or test and more; (count,) bool.

    All others may be trained on: those of other parts, such as "train_night", of several, and of none.

    >>> measured_mask(4, {"train_day": torch.tensor([0, 1]), "val": torch.tensor([1, 2])}).tolist()
    [False, False, True, False]
    """
    measured = torch.zeros(count, dtype=torch.bool)
    for part, rows in splits.items():
        if _MEASURED.fullmatch(part):
            measured[rows] = True
    for part, rows in splits.items():
        if not _MEASURED.fullmatch(part):
            measured[rows] = False
    return measured & ~train_mask(count, splits)


def train_mask(count: int, splits: Mapping[str, Tensor]) -> Tensor:
    """Which of `count` images belong to the training part: of that name, else in no part; (count,) bool.

    >>> train_mask(3, {"val": torch.tensor([1])}).tolist()
    [True, False, True]
    """
    if "train" in splits:
        train = torch.zeros(count, dtype=torch.bool)
        train[splits["train"]] = True
        return train
    train = torch.ones(count, dtype=torch.bool)
    for rows in splits.values():
        train[rows] = False
    return train
