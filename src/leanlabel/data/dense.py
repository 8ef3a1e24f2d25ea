"""Images with a class for each pixel: in memory or on disk, with names, sequences and splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.class_map import IGNORE, ClassMap
from leanlabel.data.decode import AS_IS, Fit
from leanlabel.data.dense_listing import MaskForm
from leanlabel.data.image_stores import Store
from leanlabel.data.images import THREADS, Images, PixelArray, PixelFiles, Pixels, fingerprint, originals
from leanlabel.data.masks import mask_classes, nearest

if TYPE_CHECKING:
    from typing_extensions import TypeIs

_FEW = 8


class Masks(Protocol):
    """N masks of classes: uint8, 255 for no class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any:
        """(h, w) uint8 (int32 of instances)."""
        ...

    @property
    def shape(self) -> tuple[int, int] | None:
        """(H, W) where all masks have this size, None where they differ or nobody looked."""
        ...

    def read(self, rows: Sequence[int]) -> Any:
        """(B, H, W) where these masks are of one size, else a list of (h, w)."""
        ...

    def take(self, rows: Sequence[int]) -> Masks:
        """Some of the masks, in this order."""
        ...


@dataclass(frozen=True, eq=False)
class MaskArray:
    """Masks of one size in memory.

    Args:
        array: (N, H, W) uint8 classes, 255 for none; int32 of instance numbers, 0 for none.

    Raises:
        ValueError: another shape or type.
    """

    array: Tensor

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or self.array.dtype not in (torch.uint8, torch.int32):
            raise ValueError(
                "masks must be (N, H, W) uint8, instances int32, "
                f"got {tuple(self.array.shape)} {self.array.dtype}"
            )

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int, /) -> Tensor:
        return self.array[index]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return int(self.array.shape[1]), int(self.array.shape[2])

    def read(self, rows: Sequence[int]) -> Tensor:
        """(B, H, W), a copy."""
        return self.array[torch.as_tensor(rows, dtype=torch.int64)]

    def take(self, rows: Sequence[int]) -> MaskArray:
        """Some of the masks, in this order."""
        return MaskArray(self.read(rows))


@dataclass(frozen=True, eq=False)
class MaskFiles:
    """Mask files, decoded each time they are asked for. Can be sent to other processes.

    Args:
        source: M encoded masks, or M masks of classes that something else makes.
        classes: what the ids or colours in the files mean.
        sizes: (N, 2) int64 height and width that each comes out with.
        rows: (N,) int64 mask of each image in `source`; -1 where it has none and all of its pixels are 255.
        form: how files say the class.
    """

    source: Store | Masks
    classes: ClassMap
    sizes: Tensor
    rows: Tensor
    form: MaskForm = "ids"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Tensor:
        row, size = int(self.rows[index]), (int(self.sizes[index, 0]), int(self.sizes[index, 1]))
        if row < 0:
            return torch.full(size, IGNORE, dtype=torch.uint8)
        source = self.source
        if is_store(source):
            found = mask_classes(source.read(row), source.where(row), self.classes, self.form, size)
        else:
            found = nearest(np.asarray(source[row]), size)
        return torch.from_numpy(np.array(found, dtype=np.uint8))

    @property
    def shape(self) -> tuple[int, int] | None:
        """(H, W) where all have one size."""
        if not len(self.sizes) or bool((self.sizes != self.sizes[0]).any()):
            return None
        return int(self.sizes[0, 0]), int(self.sizes[0, 1])

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Decode some masks, several at a time.

        Raises:
            InputError: one cannot be read, or holds what the class map does not list; names it.
        """
        if len(rows) < _FEW:
            found = [self[row] for row in rows]
        else:
            with ThreadPoolExecutor(THREADS) as threads:
                found = list(threads.map(self.__getitem__, rows))
        if not found:
            return torch.zeros((0, *(self.shape or (0, 0))), dtype=torch.uint8)
        return torch.stack(found) if len({one.shape for one in found}) == 1 else found

    def take(self, rows: Sequence[int]) -> MaskFiles:
        """Some of the files, in this order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return replace(self, sizes=self.sizes[index], rows=self.rows[index])


@dataclass(frozen=True, eq=False)
class DenseImages:
    """A set of images with a class for each pixel.

    Args:
        name: name of the data set, for people.
        pixels: N images.
        masks: N masks; None without labels. An image without a mask among others that have one is all 255.
        classes: the K classes.
        splits: sets of rows: "train", "val", "test", and others such as "test_dusk" -> (n,) int64.
        ids: N names: paths relative to the folder of images, with forward slashes.
        groups: (N,) int64 number of the sequence, city or patient that an image belongs to.
        group_names: their names.
        instances: N masks of int32 instance numbers, 0 for none.
        facts: what reading found and did: "class_pixels" and "train_class_pixels" (K pixels of all images and of the
            training part), "class_images" (K images that hold the class), "ignore_share", and how a validation part
            was made.

    Raises:
        ValueError: masks, names or groups are not N, sizes differ, or a split names a row that does not exist.

    >>> from leanlabel.data.class_map import plain_map
    >>> pixels, masks = torch.zeros(2, 3, 4, 6, dtype=torch.uint8), torch.ones(2, 4, 6, dtype=torch.uint8)
    >>> two = DenseImages("two", PixelArray(pixels), MaskArray(masks), plain_map(["field", "road"]))
    >>> two.shape, two.num_classes, [part.shape[0] for part in two.read([0, 1, 1])], len(two.take([1]))
    ((3, 4, 6), 2, [3, 3], 1)
    """

    name: str
    pixels: Pixels
    masks: Masks | None
    classes: ClassMap
    splits: Mapping[str, Tensor] = field(default_factory=dict)
    ids: list[str] | None = None
    groups: Tensor | None = None
    group_names: list[str] | None = None
    instances: Masks | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.pixels)
        for name in ("masks", "instances", "ids", "groups"):
            own = getattr(self, name)
            if own is not None and len(own) != n:
                raise ValueError(f"{len(own)} {name} for {n} images")
        if self.groups is not None and (self.groups.ndim != 1 or self.groups.dtype != torch.int64):
            raise ValueError(
                f"groups must be ({n},) int64, got {tuple(self.groups.shape)} {self.groups.dtype}"
            )
        for name in ("masks", "instances"):
            own, size = getattr(self, name), self.pixels.shape
            if own is not None and own.shape is not None and size is not None and own.shape != size[1:]:
                raise ValueError(f"{name} are {own.shape}, images {size[1:]} pixels")
        for part, rows in self.splits.items():
            if rows.ndim != 1 or rows.dtype != torch.int64:
                raise ValueError(f"split {part} must be (n,) int64, got {tuple(rows.shape)} {rows.dtype}")
            if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= n):
                raise ValueError(f"split {part} holds rows outside [0, {n})")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of all images; None where sizes differ or are not known."""
        return self.pixels.shape

    @property
    def num_classes(self) -> int:
        """Number K of classes."""
        return len(self.classes)

    def read(self, rows: Tensor | Sequence[int]) -> tuple[Any, Any]:
        """Read some images and their masks.

        Args:
            rows: B row numbers, in any order, also repeated.

        Returns:
            Images (B, C, H, W) uint8 or float32 in [0, 1], and masks (B, H, W) uint8 or None without labels; each a
            list of B tensors where these images have different sizes.

        Raises:
            InputError: a file cannot be read any more.
        """
        chosen = _row_list(rows)
        return self.pixels.read(chosen), None if self.masks is None else self.masks.read(chosen)

    def take(self, rows: Tensor | Sequence[int]) -> DenseImages:
        """Some of the images, in this order, with masks, names and groups; without splits and what was counted."""
        chosen = _row_list(rows)
        index = torch.tensor(chosen, dtype=torch.int64)
        return replace(
            self,
            pixels=self.pixels.take(chosen),
            masks=None if self.masks is None else self.masks.take(chosen),
            ids=None if self.ids is None else [self.ids[row] for row in chosen],
            groups=None if self.groups is None else self.groups[index],
            instances=None if self.instances is None else self.instances.take(chosen),
            splits={},
            facts={key: value for key, value in self.facts.items() if key not in COUNTED},
        )


COUNTED = ("class_pixels", "train_class_pixels", "class_images", "ignore_share", "all_ignore", "unlabelled")
"""Facts that were counted over all images, and no longer hold of some."""


def is_store(source: Store | Masks) -> TypeIs[Store]:
    """Whether masks are encoded files, and not made by something else."""
    return not hasattr(source, "shape")


def fingerprint_dense(data: DenseImages) -> str:
    """Compute the SHA-256 of images, masks, class map, names, groups and splits; not of name or facts.

    Of what is in memory every pixel counts; of files their names, sizes in bytes and how they are read, as in
    :func:`leanlabel.data.images.fingerprint`. The two forms differ. Of copies that are computed, their originals and
    what is done to them count.

    Returns:
        64 hexadecimal digits, the same on every platform.
    """
    digest = hashlib.sha256(b"dense 1")
    pixels = originals(data.pixels, digest)
    if not isinstance(pixels, PixelArray | PixelFiles) and hasattr(pixels, "store"):
        own: Any = pixels
        digest.update(f"|bands {own.bands} {own.white} ".encode())
        pixels = PixelFiles(own.store, getattr(own, "fit", AS_IS))
    digest.update(fingerprint(Images("", pixels, ids=data.ids, splits=data.splits)).encode())
    classes = data.classes.as_dict()
    del classes["name"]
    digest.update(json.dumps(classes, sort_keys=True).encode())
    for role in ("masks", "instances"):
        own = getattr(data, role)
        if own is None:
            continue
        digest.update(f"|{role} ".encode())
        own = originals(own, digest)
        if isinstance(own, MaskFiles) and is_store(own.source):
            sizes = torch.from_numpy(np.asarray(own.source.sizes(), dtype=np.int64))
            _add(
                digest,
                torch.where(own.rows < 0, -1, sizes[own.rows.clamp_min(0)]) if len(sizes) else own.rows,
            )
            _add(digest, own.sizes)
            digest.update(own.form.encode())
        elif isinstance(own, MaskArray):
            _add(digest, own.array)
        else:
            for row in range(len(own)):
                _add(digest, torch.as_tensor(np.asarray(own[row])))
    if data.groups is not None:
        _add(digest, data.groups)
        digest.update(json.dumps(data.group_names).encode())
    return digest.hexdigest()


def fitted_size(fit: Fit, height: int, width: int) -> tuple[int, int]:
    """Height and width of an image once it has been brought to a size.

    >>> fitted_size(Fit(120), 360, 480)
    (120, 160)
    """
    new_width, new_height = fit.size(width, height)
    return new_height, new_width


def _add(digest: Any, array: Tensor) -> None:
    values = np.ascontiguousarray(array.numpy(), dtype=array.numpy().dtype.newbyteorder("<"))
    digest.update(f"|{values.dtype.kind}{values.dtype.itemsize} {values.shape} ".encode())
    digest.update(values.data if values.size else b"")


def _row_list(rows: Tensor | Sequence[int]) -> list[int]:
    return rows.flatten().tolist() if isinstance(rows, Tensor) else [int(row) for row in rows]
