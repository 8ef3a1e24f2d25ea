"""Copies of a data set as another sensor would have taken them, computed when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from leanlabel import rng
from leanlabel.augment.geometry import apply_mask, outside
from leanlabel.augment.sensor import (
    SENSORS,
    SensorName,
    SensorSettings,
    ShiftSettings,
    change,
    channels_after,
    misalign,
    shift_geometry,
)
from leanlabel.data.class_map import IGNORE
from leanlabel.data.dense import COUNTED, DenseImages, Masks
from leanlabel.data.dense_parts import train_mask
from leanlabel.data.images import THREADS, Pixels
from leanlabel.errors import InputError

KEPT_BYTES = 256 << 20
"""Sets of fewer bytes are kept in memory once they were computed."""
_FEW = 8


@dataclass(frozen=True, eq=False)
class TransformedPixels:
    """Images that are computed from others each time they are asked for. Can be sent to other processes.

    An image depends on the seed and its row in the original set only, whichever others are read with it.

    Args:
        of: the M originals.
        rows: (N,) int64 row of each image among them.
        moved: (N,) bool: which images are shifted.
        sensor: change of values.
        shift: change of places.
        seed: of noise and shifts.
        kept: images by row in the original set, once computed; None where they are not kept.
    """

    of: Pixels
    rows: Tensor
    moved: Tensor
    sensor: SensorSettings
    shift: ShiftSettings
    seed: int
    kept: dict[tuple[int, bool], Tensor] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None if self.kept is None else {}}

    def __getitem__(self, index: int, /) -> Tensor:
        place = range(len(self))[index]
        row, moves = int(self.rows[place]), bool(self.moved[place])
        known = None if self.kept is None else self.kept.get((row, moves))
        if known is not None:
            return known
        image = self.of[row][None]
        ids = torch.tensor([row])
        if moves:
            image = misalign(image, None, self.shift, rng.draw(self.seed, "copy shift", 0, ids)).images
        else:
            image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        changed = change(image, self.sensor, rng.draw(self.seed, "copy noise", 0, ids))[0]
        result = changed.mul_(255).round_().byte()
        if self.kept is not None:
            self.kept[row, moves] = result
        return result

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) where the originals are known to have one size."""
        own = self.of.shape
        return None if own is None else (channels_after(own[0], self.sensor), own[1], own[2])

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Compute some images, several at a time: (B, C, H, W) uint8, or a list where sizes differ.

        Raises:
            InputError: an original cannot be read, or the sensor is not for images with its channels.
        """
        found = _each(self, rows)
        if not found:
            return torch.zeros((0, *(self.shape or (3, 0, 0))), dtype=torch.uint8)
        return torch.stack(found) if len({one.shape for one in found}) == 1 else found

    def valid(
        self, rows: Sequence[int], sizes: Sequence[tuple[int, int]] | None = None
    ) -> Tensor | list[Tensor]:
        """Say where images show something, and not what a shift filled in.

        Args:
            rows: B row numbers.
            sizes: height and width of each, where the caller has the images; None looks at them.

        Returns:
            (B, h, w) bool, or a list of (h, w) where sizes differ.
        """
        found = []
        for k, index in enumerate(rows):
            place, shape = range(len(self))[index], self.of.shape
            size = (shape[1:] if shape else tuple(self[place].shape[1:])) if sizes is None else sizes[k]
            if self.moved[place]:
                numbers = rng.draw(self.seed, "copy shift", 0, self.rows[place : place + 1])
                found.append(~outside(shift_geometry(torch.tensor([size]), self.shift, numbers))[0])
            else:
                found.append(torch.ones(size, dtype=torch.bool))
        if not found:
            return torch.zeros((0, *(self.shape or (0, 0, 0))[1:]), dtype=torch.bool)
        return torch.stack(found) if len({one.shape for one in found}) == 1 else found

    def take(self, rows: Sequence[int]) -> TransformedPixels:
        """Some of the images, in this order; the originals stay as they are, not copied."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return replace(self, rows=self.rows[index], moved=self.moved[index])

    @property
    def told(self) -> str:
        """What is done to the originals, in full, for fingerprints."""
        return f"{self.sensor.model_dump_json()} {_told(self)}"


@dataclass(frozen=True, eq=False)
class TransformedMasks:
    """Masks that are moved like the images of :class:`TransformedPixels`.

    Args:
        of: the M originals.
        rows: (N,) int64 row of each mask among them.
        moved: (N,) bool: which masks are shifted.
        shift: change of places.
        seed: of the shifts.
        outside: value where there is no image.
    """

    of: Masks
    rows: Tensor
    moved: Tensor
    shift: ShiftSettings
    seed: int
    outside: int = IGNORE

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Tensor:
        place = range(len(self))[index]
        row = int(self.rows[place])
        mask = torch.as_tensor(self.of[row])
        if not self.moved[place]:
            return mask
        numbers = rng.draw(self.seed, "copy shift", 0, torch.tensor([row]))
        geometry = shift_geometry(torch.tensor([tuple(mask.shape)]), self.shift, numbers)
        return apply_mask(geometry, mask[None], self.outside)[0]

    @property
    def shape(self) -> tuple[int, int] | None:
        """(H, W) where the originals are known to have one size."""
        return self.of.shape

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Move some masks: (B, H, W), or a list where sizes differ."""
        found = _each(self, rows)
        if not found:
            return torch.zeros((0, *(self.shape or (0, 0))), dtype=torch.uint8)
        return torch.stack(found) if len({one.shape for one in found}) == 1 else found

    def take(self, rows: Sequence[int]) -> TransformedMasks:
        """Some of the masks, in this order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return replace(self, rows=self.rows[index], moved=self.moved[index])

    @property
    def told(self) -> str:
        """What is done to the originals, in full, for fingerprints."""
        return f"{self.outside} {_told(self)}"


def transformed(
    data: DenseImages,
    sensor: SensorSettings | SensorName,
    shift: ShiftSettings | None = None,
    seed: int = 0,
    *,
    shift_all: bool = False,
) -> DenseImages:
    """Show a data set as another sensor would have taken it, roughly aligned with the original.

    Names, sequences and parts are those of the original, so that row i of the copy shows the scene of row i. Images
    are uint8 whatever the originals are. Masks are moved like their images, 255 where there is no image.

    Args:
        data: the original.
        sensor: change of values, or the name of one.
        shift: change of places; None for none.
        seed: of noise and shifts; not the run's, so that the copy is the same in every run.
        shift_all: shift all parts; False: the training part only, so that what is measured lies where it should.

    Raises:
        InputError: no sensor of this name, or one that is not for images with these channels.

    Example:
        >>> from leanlabel.data.generated.scenes import scene_images
        >>> scenes = scene_images(train=2, val=1, test=0, height=32, width=48)
        >>> copy = transformed(scenes, "inversion", ShiftSettings(constant=(0, 4)))
        >>> copy.ids == scenes.ids, bool((copy.pixels[2] == 255 - scenes.pixels[2]).all())
        (True, True)
        >>> bool((copy.masks[0][:, 4:] == scenes.masks[0][:, :-4]).all()), copy.facts["copied_sensor"]
        (True, 'inversion')
    """
    if isinstance(sensor, str) and sensor not in SENSORS:
        raise InputError(f"sensor: there is none of the name {sensor!r}.", f"Known: {', '.join(SENSORS)}.")
    own = SENSORS[sensor] if isinstance(sensor, str) else sensor
    shift = shift or ShiftSettings()
    every = torch.ones(len(data), dtype=torch.bool)
    moved = every if shift_all else train_mask(len(data), data.splits)
    if shift.still:
        moved = torch.zeros_like(every)
    rows = torch.arange(len(data))
    pixels = TransformedPixels(data.pixels, rows, moved, own, shift, seed)
    size = pixels.shape  # refuses what the sensor is not for, where the channels are known
    if size is not None and len(data) * size[0] * size[1] * size[2] < KEPT_BYTES:
        pixels = replace(pixels, kept={})

    def masks(of: Masks | None, outside: int) -> Masks | None:
        return (
            None if of is None or not moved.any() else TransformedMasks(of, rows, moved, shift, seed, outside)
        )

    # Shifts push pixels out of the image, so that what was counted no longer holds; no pixels stay none.
    gone = [
        key
        for key in COUNTED
        if moved.any() and (key != "train_class_pixels" or any(data.facts.get(key, ())))
    ]
    facts = {
        **{key: value for key, value in data.facts.items() if key not in gone},
        "copied_from": data.name,
        "copied_sensor": sensor if isinstance(sensor, str) else _given(own),
        "copied_shift": _given(shift) if moved.any() else {},
        "copied_shift_images": int(moved.sum()),
        "copied_seed": seed,
    }
    return replace(
        data,
        name=f"{data.name}-{sensor if isinstance(sensor, str) else 'copy'}",
        pixels=pixels,
        masks=masks(data.masks, IGNORE) or data.masks,
        instances=masks(data.instances, 0) or data.instances,
        facts=facts,
    )


def _each(maps: Any, rows: Sequence[int]) -> list[Tensor]:
    """Some of the maps: one after the other, or in threads, as originals may have to be decoded."""
    if len(rows) < _FEW:
        return [maps[row] for row in rows]
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(maps.__getitem__, rows))


def _told(maps: TransformedPixels | TransformedMasks) -> str:
    places = hashlib.sha256(maps.rows.numpy().astype("<i8").tobytes())
    places.update(maps.moved.numpy().astype("u1").tobytes())
    # Where nothing moves it does not matter how far.
    shift = maps.shift.model_dump_json() if bool(maps.moved.any()) else ""
    return f"{shift} {maps.seed} {places.hexdigest()}"


def _given(settings: SensorSettings | ShiftSettings) -> dict[str, Any]:
    """What differs from the default, as plain data."""
    return json.loads(settings.model_dump_json(exclude_defaults=True))
