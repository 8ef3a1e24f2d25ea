"""What a place of images and masks holds, before a pixel is decoded; and its faults, which stop training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from leanlabel.data.class_map import ClassMap
from leanlabel.data.image_stores import Store

if TYPE_CHECKING:
    from leanlabel.data.dense import Masks

MaskForm = Literal["ids", "colour", "either", "red"]
"""How mask files say the class: by numbers, by colours, either of these, or by the red channel of 16-bit colour."""
Code = Literal[
    "missing_mask", "missing_image", "missing_file", "two_masks", "unknown_name", "unreadable", "unreadable_mask",
    "wrong_form", "size_mismatch", "label_values",
]  # fmt: skip
"""Short stable names of what can be wrong with images and masks."""


@dataclass(frozen=True)
class Fault:
    """One thing that must be put right before training.

    Args:
        code: short stable name.
        message: file, or list and line, and what is wrong with it; without a full stop.
        row: row of the image that it is about; -1 where there is none.
    """

    code: Code
    message: str
    row: int = -1


@dataclass
class DenseListing:
    """N images and where their masks are.

    Args:
        name: name of the data set, for people.
        images: N encoded images.
        masks: M encoded masks, or anything that makes M masks of classes; None without labels.
        mask_of: (N,) int64, each image's mask in `masks`, -1 for none; None where image k has mask k (or there are
            no masks at all).
        ids: N names: paths relative to the folder of images, with forward slashes.
        splits: sets of rows: "train", "val", "test", and others such as "test_dusk".
        groups: (N,) int64 number of the sequence, city or patient that an image belongs to; None where not known.
        group_names: their names.
        classes: the class map, where the place itself says it or its layout has one.
        form: how mask files say the class.
        faults: what is wrong already: pairs that are not complete, lists that name files that do not exist.
        facts: what was found and done, as plain data.
    """

    name: str
    images: Store
    masks: Store | Masks | None = None
    mask_of: Tensor | None = None
    ids: list[str] = field(default_factory=list)
    splits: dict[str, Tensor] = field(default_factory=dict)
    groups: Tensor | None = None
    group_names: list[str] | None = None
    classes: ClassMap | None = None
    form: MaskForm = "ids"
    faults: list[Fault] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def mask_row(self, row: int) -> int:
        """Row of an image's mask in `masks`, -1 where it has none."""
        if self.masks is None:
            return -1
        return row if self.mask_of is None else int(self.mask_of[row])

    @property
    def labelled(self) -> Tensor:
        """(N,) bool: which images have a mask."""
        if self.masks is None:
            return torch.zeros(len(self), dtype=torch.bool)
        return torch.ones(len(self), dtype=torch.bool) if self.mask_of is None else self.mask_of >= 0

    def take(self, rows: Tensor | Sequence[int]) -> DenseListing:
        """Some of the images in this order, each at most once; splits are renumbered, faults of others dropped."""
        kept = torch.as_tensor(rows, dtype=torch.int64)
        new = torch.full((len(self),), -1, dtype=torch.int64)
        new[kept] = torch.arange(len(kept))
        splits = {part: new[old][new[old] >= 0] for part, old in self.splits.items()}
        chosen = kept.tolist()
        of = None
        if self.masks is not None:
            of = kept.clone() if self.mask_of is None else self.mask_of[kept]
        faults = [replace(one, row=int(new[one.row]) if one.row >= 0 else -1) for one in self.faults]
        return replace(
            self,
            images=self.images.take(chosen),
            mask_of=of,
            ids=[self.ids[row] for row in chosen],
            splits={part: own for part, own in splits.items() if len(own)},
            groups=None if self.groups is None else self.groups[kept],
            faults=[own for own, old in zip(faults, self.faults) if own.row >= 0 or old.row < 0],
        )
