"""Labelled images that a user names one by one, such as the few that prototypes are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from leanlabel.data.bands import BandFiles
from leanlabel.data.class_map import IGNORE, ClassMap
from leanlabel.data.dense_listing import MaskForm
from leanlabel.data.images import PixelFiles
from leanlabel.data.masks import mask_classes
from leanlabel.errors import InputError
from leanlabel.export.image_inputs import image_files


def read_support(
    images: Sequence[str | Path],
    masks: Sequence[str | Path],
    classes: ClassMap,
    form: MaskForm = "ids",
    bands: tuple[tuple[int, ...] | None, float | None] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Read labelled images at the size of their files.

    Args:
        images: S image files.
        masks: the mask of each.
        classes: what values or colours in the masks mean.
        form: how masks say the class.
        bands: bands (None: all) and value of white; None: images are read as RGB.

    Returns:
        S pairs of an image (C, h, w), uint8 or float32 in [0, 1], and its classes (h, w) uint8, 255 for none.

    Raises:
        InputError: another number of masks than of images, a file that cannot be read or is none, a value that the
            class map does not list, a mask without any class, or an image and a mask of different sizes.
    """
    if len(images) != len(masks):
        raise InputError(
            f"{len(images)} labelled images and {len(masks)} masks of such.",
            "Give each --support a --support-mask, in the same order.",
        )
    return [
        _pair(str(one), str(other), classes, form, bands) for one, other in zip(images, masks, strict=True)
    ]


def _pair(
    image: str,
    mask: str,
    classes: ClassMap,
    form: MaskForm,
    bands: tuple[tuple[int, ...] | None, float | None] | None,
) -> tuple[Tensor, Tensor]:
    for place, what in ((image, "an image"), (mask, "a mask")):
        if not Path(place).expanduser().is_file():
            raise InputError(f"{place}: there is no such file.", f"Name {what} file.")
    names, pixels = image_files(image)
    if len(names) != 1:
        raise InputError(
            f"{image}: {len(names)} images, where one is to be named.", "Repeat --support for several."
        )
    if bands is not None and isinstance(pixels, PixelFiles):
        pixels = BandFiles(pixels.store, *bands)
    try:
        content = Path(mask).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"{mask}: this file cannot be read ({error.strerror or error}).") from error
    found, labels = pixels[0], mask_classes(content, mask, classes, form)
    if tuple(found.shape[1:]) != labels.shape:
        (height, width), (h, w) = found.shape[1:], labels.shape
        raise InputError(
            f"{image} has {width} x {height} pixels, its mask {mask} {w} x {h}.",
            "Give the mask of this image, at its size.",
        )
    if bool((labels == IGNORE).all()):
        raise InputError(f"{mask}: none of its pixels has a class, so it says nothing.")
    return found, torch.from_numpy(labels)
