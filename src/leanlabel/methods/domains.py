"""Two domains of images: what is trained on, and how batches of the unlabelled one are made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanlabel import rng
from leanlabel.augment.geometry import Geometry, apply_mask, outside
from leanlabel.data.class_map import ClassMap
from leanlabel.data.dense import DenseImages, Masks, fingerprint_dense
from leanlabel.data.pairs import Pairs as Partners
from leanlabel.data.pseudo_labels import images_fingerprint
from leanlabel.errors import InputError
from leanlabel.methods.segmentation import training_rows

TURNS = 64
"""Epochs after which the choice among several partners of an image begins again."""


@dataclass(frozen=True, eq=False)
class Domains:
    """Images with masks, and images of another domain.

    Attributes:
        source: labelled.
        target: not labelled, but for parts that are measured.
        partners: which image of the source shows the same scene as one of the target's; None where nobody knows.
    """

    source: DenseImages
    target: DenseImages
    partners: Partners | None = None

    @property
    def classes(self) -> ClassMap:
        """Those of the source."""
        return self.source.classes

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.source.name} to {self.target.name}"

    @property
    def ids(self) -> list[str] | None:
        """Names of the target's images."""
        return self.target.ids

    def __len__(self) -> int:
        return len(self.target)

    def read(self, rows: Tensor | Sequence[int]) -> tuple[Any, Any]:
        """Images of the target and their masks."""
        return self.target.read(rows)

    @property
    def partners_digest(self) -> str:
        """Hash of which image belongs to which; empty where it is row by row, or nobody knows."""
        known = {} if self.partners is None else self.partners.candidates
        if all(list(own) == [row] for row, own in known.items()):
            return ""
        listed = sorted((row, list(own)) for row, own in known.items())
        return hashlib.sha256(str(listed).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Of all images, and of the labels that are used: all of the source's, of the target those of held-out parts.

        So a run that reads no label of target training images and one that does are on the same data.
        """
        kept = torch.ones(len(self.target), dtype=torch.bool)
        kept[training_rows(self.target)] = False
        measured = self.target.take(kept.nonzero()[:, 0])
        parts = (fingerprint_dense(self.source), images_fingerprint(self.target), fingerprint_dense(measured))
        parts = (*parts, self.partners_digest) if self.partners_digest else parts
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def check_classes(source: DenseImages, target: DenseImages) -> None:
    """Refuse domains whose classes are not the same ones in the same order.

    Raises:
        InputError: names the first class that differs.
    """
    if target.masks is None or source.classes.names == target.classes.names:
        return
    own, other = source.classes.names, target.classes.names
    place = next(
        (k for k, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other))
    )
    a, b = (names[place] if place < len(names) else "not there" for names in (own, other))
    raise InputError(
        f"data.target.classes: class {place} is {b}, in the source it is {a}; both domains need the same classes "
        f"({len(own)} in {source.name}, {len(other)} in {target.name}).",
        "Set data.source.classes and data.target.classes so that they agree, such as cityscapes-16 for SYNTHIA.",
    )


class TargetRows:
    """Training images of the target as the loader reads them: with stored labels, and with a partner.

    Sample i + n e is image i, with the partner that is drawn for it in epoch e.
    """

    def __init__(
        self, domains: Domains, rows: Tensor, stored: Masks | None, *, paired: bool, seed: int
    ) -> None:
        self.domains, self.rows, self.stored, self.seed = domains, rows, stored, seed
        self.partners = domains.partners if paired else None
        several = self.partners is not None and any(len(one) > 1 for one in self.partners.candidates.values())
        self.turns = TURNS if several else 1

    def __len__(self) -> int:
        return len(self.rows) * self.turns

    def __getitem__(self, index: int) -> Any:
        images, masks, valid, partner = self.read([index])
        return (
            images[0],
            None if masks is None else masks[0],
            None if valid is None else valid[0],
            None if partner is None else tuple(None if one is None else one[0] for one in partner),
        )

    def read(self, samples: Sequence[int]) -> tuple[Any, Any, Any, Any]:
        """Images; stored labels, or the masks of the data; where they are valid; the same three of partners.

        None stands for what there is not: labels, partners, and places that are not valid.
        """
        places = [sample % len(self.rows) for sample in samples]
        rows = [int(self.rows[place]) for place in places]
        images, masks = self.domains.target.read(rows)
        if self.stored is not None:
            masks = self.stored.read(places)
        valid = valid_places(self.domains.target, rows, images)
        if self.partners is None:
            return images, masks, valid, None
        chosen = [
            int(
                self.partners.choose(
                    torch.tensor([row]),
                    torch.tensor([row]),
                    seed=self.seed,
                    epoch=sample // len(self.rows),
                )
            )
            for row, sample in zip(rows, samples, strict=True)
        ]
        there, marks = self.domains.source.read(chosen)
        return images, masks, valid, (there, marks, valid_places(self.domains.source, chosen, there))


def valid_places(data: DenseImages, rows: Sequence[int], images: Any) -> Any:
    """Where some images show something, and not what the shift of a copy filled in.

    Args:
        data: images.
        rows: B row numbers.
        images: those images.

    Returns:
        (B, h, w) bool, or a list of (h, w) where sizes differ; None where no image of the set was shifted.
    """
    pixels: Any = data.pixels
    if not hasattr(pixels, "valid") or not bool(pixels.moved.any()):
        return None
    return pixels.valid(rows, [tuple(one.shape[-2:]) for one in images])


def shown(geometry: Geometry, valid: Any, device: torch.device) -> Tensor:
    """1 where the results of a geometry show something: no padding, and nothing that the shift of a copy filled in.

    Args:
        geometry: of B samples.
        valid: what :func:`valid_places` says of them.
        device: where the result is wanted.

    Returns:
        (B, h, w) float32.
    """
    found = (~outside(geometry, device)).float()
    return (
        found if valid is None else found * apply_mask(geometry, [one.byte().to(device) for one in valid], 0)
    )


def mistaken_labels(rows: Tensor, masks: Any, share: float, classes: int, seed: int) -> list[Tensor]:
    """Give whole classes of some images to the next class: mistakes of the kind that a network makes, not of chance.

    Args:
        rows: (B,) image numbers; an image has the same mistakes whenever it is met.
        masks: B masks (h, w) uint8.
        share: probability of a mistake for each class of each image.
        classes: number K; the last class becomes the first.
        seed: of the choice.

    Returns:
        B masks.

    Example:
        >>> [one.tolist() for one in mistaken_labels(torch.tensor([3]), torch.tensor([[[0, 1, 255]]]), 1.0, 3, 0)]
        [[[1, 2, 255]]]
    """
    chosen = rng.draw(seed, "pseudo label mistakes", 0, rows.cpu()).uniform(classes).cpu() < share
    table = torch.arange(256, dtype=torch.uint8).repeat(len(rows), 1)
    following = (torch.arange(classes) + 1) % classes
    table[:, :classes] = torch.where(chosen, following, torch.arange(classes)).byte()
    return [own.to(mask.device)[mask.long()] for own, mask in zip(table, masks, strict=True)]


def collate_target(samples: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """A batch of what :class:`TargetRows` gives one by one."""
    images, masks, valid, partners = zip(*samples, strict=True)
    both = None if partners[0] is None else tuple(map(_stacked, zip(*partners, strict=True)))
    return _stacked(images), _stacked(masks), _stacked(valid), both


def _stacked(maps: Sequence[Any]) -> Any:
    if maps[0] is None:
        return None
    return torch.stack(list(maps)) if len({tuple(one.shape) for one in maps}) == 1 else list(maps)


def target_ids(n: int, turns: int, batch_size: int, seed: int, t: int) -> Tensor:
    """Samples (batch_size,) of iteration ``t``: every image once per epoch, in an order of its own for each.

    Epochs follow one another without a gap, so a batch may be larger than the n images. The e-th epoch counts images
    from n e on, so that the same image has other random numbers each time.
    """
    found = []
    for place in range(t * batch_size, (t + 1) * batch_size):
        epoch, position = divmod(place, n)
        turn = epoch % max(turns, 2 + batch_size // n)
        found.append(int(_order(n, seed, epoch)[position]) + n * turn)
    return torch.tensor(found, dtype=torch.int64)


_ORDERS: dict[tuple[int, int, int], Tensor] = {}


def _order(n: int, seed: int, epoch: int) -> Tensor:
    key = (n, seed, epoch)
    if key not in _ORDERS:
        while len(_ORDERS) > 8:
            _ORDERS.pop(next(iter(_ORDERS)))
        _ORDERS[key] = rng.permutation(seed, "shuffle target", epoch, n)
    return _ORDERS[key]


def usable_rows(domains: Domains, *, paired: bool) -> Tensor:
    """Rows of the target that are trained on: its training part; with a partner, where terms compare the two."""
    rows = training_rows(domains.target)
    if not paired or domains.partners is None:
        return rows
    return rows[torch.isin(rows, domains.partners.rows)]
