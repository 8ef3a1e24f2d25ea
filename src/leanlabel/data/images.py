"""Images in memory or on disk, with labels, names, domains and splits where the source has them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.decode import AS_IS, Fit, decode
from leanlabel.data.graphs import UNLABELLED
from leanlabel.data.image_stores import Store

THREADS = 4
"""Threads that decode one request; Pillow lets others run while it decodes."""
_FEW = 8


class Pixels(Protocol):
    """N images, channel first: uint8 RGB, unless a source says that it has other bands."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor:
        """(C, h, w) uint8, or float32 in [0, 1]."""
        ...

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) where all images have this shape, None where they differ or nobody looked."""
        ...

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """(B, C, H, W) where these images are of one size, else a list of (C, h, w)."""
        ...

    def take(self, rows: Sequence[int]) -> Pixels:
        """Some of the images, in this order."""
        ...


@dataclass(frozen=True, eq=False)
class PixelArray:
    """Images of one size in memory.

    Args:
        array: (N, 3, H, W) uint8 RGB; with `bands` (N, C, H, W) uint8, or float32 in [0, 1].
        bands: channels are whatever bands were asked for. What looks at RGB images only need not expect it.

    Raises:
        ValueError: another shape, type or range.
    """

    array: Tensor
    bands: bool = False

    def __post_init__(self) -> None:
        channels, kinds = ("C", (torch.uint8, torch.float32)) if self.bands else ("3", (torch.uint8,))
        wrong = self.array.ndim != 4 or self.array.dtype not in kinds
        if wrong or not (self.bands or self.array.shape[1] == 3):
            expected = f"(N, {channels}, H, W) uint8" + (", or float32 in [0, 1]" if self.bands else "")
            raise ValueError(f"pixels must be {expected}, got {tuple(self.array.shape)} {self.array.dtype}")
        if self.array.dtype == torch.float32 and self.array.numel():
            low, high = (float(edge) for edge in torch.aminmax(self.array))
            if not (low >= 0 and high <= 1):  # also where one is not a number
                raise ValueError(f"pixels of float32 must be in [0, 1], got {low:.6g} to {high:.6g}")

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int, /) -> Tensor:
        return self.array[index]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return int(self.array.shape[1]), int(self.array.shape[2]), int(self.array.shape[3])

    def read(self, rows: Sequence[int]) -> Tensor:
        """(B, C, H, W), a copy."""
        return self.array[torch.as_tensor(rows, dtype=torch.int64)]

    def take(self, rows: Sequence[int]) -> PixelArray:
        """Some of the images, in this order."""
        return PixelArray(self.read(rows), self.bands)


@dataclass(frozen=True, eq=False)
class PixelFiles:
    """Image files, decoded each time they are asked for. Can be sent to other processes.

    Args:
        store: N encoded images.
        fit: size they are brought to.
        known_shape: (3, H, W) where all images are known to come out like this.
    """

    store: Store
    fit: Fit = AS_IS
    known_shape: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int, /) -> Tensor:
        row = range(len(self))[index]
        return decode(self.store.read(row), self.store.where(row), self.fit)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(3, H, W) where it is known."""
        return self.known_shape

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Decode some images, several at a time.

        Raises:
            InputError: one cannot be read; names it.
        """
        if len(rows) < _FEW:
            found = [self[row] for row in rows]
        else:
            with ThreadPoolExecutor(THREADS) as threads:
                found = list(threads.map(self.__getitem__, rows))
        if not found:
            return torch.zeros((0, *(self.shape or (3, 0, 0))), dtype=torch.uint8)
        return torch.stack(found) if len({one.shape for one in found}) == 1 else found

    def take(self, rows: Sequence[int]) -> PixelFiles:
        """Some of the files, in this order."""
        return replace(self, store=self.store.take(rows))


@dataclass(frozen=True, eq=False)
class JoinedPixels:
    """Images of several sources as one, each still read by its own; of whatever sizes.

    Args:
        parts: RGB images of each source.
        places: (N, 2) int64, part and row within it of each image; None takes all images, part after part.

    Raises:
        ValueError: no part, or a place that does not exist.

    >>> ones, twos = (PixelArray(torch.full((2, 3, 4, 4), k, dtype=torch.uint8)) for k in (1, 2))
    >>> joined = JoinedPixels((ones, twos))
    >>> len(joined), joined.shape, joined.read([3, 0])[:, 0, 0, 0].tolist(), int(joined.take([2])[0].amax())
    (4, (3, 4, 4), [2, 1], 2)
    """

    parts: tuple[Pixels, ...]
    places: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("joined pixels need at least one part")
        if self.places is None:
            rows = [
                torch.stack([torch.full((len(part),), k), torch.arange(len(part))], 1)
                for k, part in enumerate(self.parts)
            ]
            object.__setattr__(self, "places", torch.cat(rows))
        places = self._places
        sizes = torch.tensor([len(part) for part in self.parts])
        part, row = places.unbind(1)
        inside = (part >= 0) & (part < len(self.parts)) & (row >= 0)
        if not bool(inside.all()) or not bool((row < sizes[part]).all()):
            raise ValueError("a place of joined pixels names an image that does not exist")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> Tensor:
        part, row = self._places[range(len(self))[index]].tolist()
        return self.parts[part][row]

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) where the images of all parts are known to have this shape."""
        shapes = {part.shape for part in self.parts}
        return shapes.pop() if len(shapes) == 1 else None

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Read some images, those of a part in one request.

        Raises:
            InputError: one cannot be read; names it.
        """
        places = self._places[torch.as_tensor(rows, dtype=torch.int64)]
        found: list[Tensor] = [torch.empty(0)] * len(places)
        for number in places[:, 0].unique().tolist():
            wanted = (places[:, 0] == number).nonzero()[:, 0].tolist()
            for k, image in zip(wanted, self.parts[number].read(places[wanted, 1].tolist()), strict=True):
                found[k] = image
        if not found:
            return torch.zeros((0, *(self.shape or (3, 0, 0))), dtype=torch.uint8)
        return torch.stack(found) if len({one.shape for one in found}) == 1 else found

    def take(self, rows: Sequence[int]) -> JoinedPixels:
        """Some of the images, in this order; nothing is copied."""
        return JoinedPixels(self.parts, self._places[torch.as_tensor(rows, dtype=torch.int64)])

    @property
    def _places(self) -> Tensor:
        assert self.places is not None  # filled above
        return self.places


@dataclass(frozen=True, eq=False)
class Images:
    """A set of images.

    Args:
        name: name of the data set, for people.
        pixels: the N images.
        y: (N,) int64, class in [0, C) or -100 where it is not known; None without labels.
        class_names: C names, where the source has them.
        splits: published sets of rows: "train", "val", "test" -> (n,) int64.
        ids: N names, such as paths relative to the root with forward slashes.
        domain: (N,) int64, number of the domain; None where the source knows of one only.
        domain_names: names of the domains.
        facts: what reading found and did: counts such as "other_files", and how a validation part was made.

    Raises:
        ValueError: labels, names or domains are not N, or a split names a row that does not exist.

    >>> images = Images("two", PixelArray(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)), y=torch.tensor([0, 1]))
    >>> len(images), images.shape, images.read([1]).shape, images.take([1]).y.tolist()
    (2, (3, 4, 4), torch.Size([1, 3, 4, 4]), [1])
    """

    name: str
    pixels: Pixels
    y: Tensor | None = None
    class_names: list[str] | None = None
    splits: Mapping[str, Tensor] = field(default_factory=dict)
    ids: list[str] | None = None
    domain: Tensor | None = None
    domain_names: list[str] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.pixels)
        for name in ("y", "domain"):
            rows = getattr(self, name)
            if rows is not None and (rows.shape != (n,) or rows.dtype != torch.int64):
                raise ValueError(f"{name} must be ({n},) int64, got {tuple(rows.shape)} {rows.dtype}")
        if self.ids is not None and len(self.ids) != n:
            raise ValueError(f"{len(self.ids)} ids for {n} images")
        for part, rows in self.splits.items():
            if rows.ndim != 1 or rows.dtype != torch.int64:
                raise ValueError(f"split {part} must be (n,) int64, got {tuple(rows.shape)} {rows.dtype}")
            if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= n):
                raise ValueError(f"split {part} holds rows outside [0, {n})")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        """(3, h, w) uint8 RGB."""
        return self.pixels[index]

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(3, H, W) of all images; None where sizes differ or are not known."""
        return self.pixels.shape

    @property
    def num_classes(self) -> int:
        """Number C of classes: of the names where there are any, else one more than the largest label."""
        if self.class_names is not None:
            return len(self.class_names)
        return 0 if self.y is None or len(self.y) == 0 else max(int(self.y.max()) + 1, 0)

    @property
    def labelled(self) -> Tensor:
        """(n,) int64 rows whose class is known."""
        if self.y is None:
            return torch.zeros(0, dtype=torch.int64)
        return torch.nonzero(self.y != UNLABELLED).flatten()

    def read(self, rows: Tensor | Sequence[int]) -> Tensor | list[Tensor]:
        """Read some images.

        Args:
            rows: B row numbers, in any order, also repeated.

        Returns:
            (B, 3, H, W) uint8 where these images are of one size, else a list of B tensors (3, h, w).

        Raises:
            InputError: a file cannot be read any more.
        """
        return self.pixels.read(_row_list(rows))

    def take(self, rows: Tensor | Sequence[int]) -> Images:
        """Some of the images, in this order, with their labels, names and domains; without splits."""
        chosen = _row_list(rows)
        index = torch.tensor(chosen, dtype=torch.int64)
        return replace(
            self,
            pixels=self.pixels.take(chosen),
            y=None if self.y is None else self.y[index],
            ids=None if self.ids is None else [self.ids[row] for row in chosen],
            domain=None if self.domain is None else self.domain[index],
            splits={},
        )


def fingerprint(images: Images) -> str:
    """Compute the SHA-256 of a set of images: pixels, labels, names, domains and splits; not its name or facts.

    Of images in memory every pixel counts. Of files their names, sizes in bytes and the size that they are brought
    to count, not every byte: reading them all would take as long as an epoch. The two forms differ. Of copies that are
    computed, their originals and what is done to them count.

    Returns:
        64 hexadecimal digits, the same on every platform.
    """
    digest = hashlib.sha256(b"images 1")

    def add(role: str, array: Tensor | np.ndarray | list[str] | None) -> None:
        if array is None:
            return
        if isinstance(array, list):
            encoded = [text.encode("utf-8", "surrogatepass") for text in array]
            digest.update(f"|{role} text {len(array)} ".encode())
            for text in encoded:
                digest.update(len(text).to_bytes(8, "little") + text)
            return
        values = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        digest.update(f"|{role} {values.dtype.kind}{values.dtype.itemsize} {values.shape} ".encode())
        digest.update(values.data if values.size else b"")

    pixels = originals(images.pixels, digest)
    if isinstance(pixels, PixelArray):
        add("pixels", pixels.array)
    elif isinstance(pixels, PixelFiles):
        add("file sizes", pixels.store.sizes())
        digest.update(f"|fit {pixels.fit.resize} {pixels.fit.square} ".encode())
    elif isinstance(pixels, JoinedPixels):
        add("part", [fingerprint(Images("", part)) for part in pixels.parts])
        add("places", pixels.places)
    else:
        for row in range(len(pixels)):
            add("image", pixels[row])
    add("y", images.y)
    add("classes", images.class_names)
    add("ids", images.ids)
    add("domain", images.domain)
    add("domains", images.domain_names)
    for part in sorted(images.splits):
        add(f"split {part}", images.splits[part])
    return digest.hexdigest()


def originals(maps: Any, digest: Any) -> Any:
    """What images or masks are computed from; what is done to it goes into the digest."""
    while hasattr(maps, "told"):
        digest.update(f"|copies {maps.told} ".encode())
        whole = torch.equal(maps.rows, torch.arange(len(maps.of)))
        maps = maps.of if whole else maps.of.take(maps.rows.tolist())
    return maps


def _row_list(rows: Tensor | Sequence[int]) -> list[int]:
    return rows.flatten().tolist() if isinstance(rows, Tensor) else [int(row) for row in rows]
