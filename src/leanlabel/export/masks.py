"""Masks of images as files that other programs read: palette PNGs, overlays, confidence, and a summary beside them."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.class_map import ClassMap
from leanlabel.data.decode import ENDINGS
from leanlabel.data.image_stores import printable
from leanlabel.engine.progress import Bar
from leanlabel.engine.runfolder import read_json, write_json
from leanlabel.errors import InputError, RunError
from leanlabel.export.image_inputs import Source, image_sources, own_images, unreadable
from leanlabel.export.mask_pictures import KINDS, Form, legend, pixel_values, reading_map, write_image
from leanlabel.export.predictions import NAME
from leanlabel.export.staging import check_target, staged

_BLOCK = 1 << 20
_SHOWN = 5


class Segmented(Protocol):
    """What a model says about the pixels of one image: classes (h, w) uint8, and confidence (h, w) in [0, 1]."""

    @property
    def classes(self) -> Any: ...

    @property
    def confidence(self) -> Any: ...


class Segmenting(Protocol):
    """Who segments an image (C, h, w), uint8 or floating point in [0, 1], of any size."""

    @property
    def classes(self) -> ClassMap: ...

    def segment(self, image: Tensor, /) -> Segmented: ...


class Found(NamedTuple):
    """The segmentation of one image.

    Attributes:
        name: path of the image relative to its folder, with forward slashes; decides where the mask goes.
        segmented: its classes, and how sure the model is.
        image: (C, h, w), needed for an overlay only.
    """

    name: str
    segmented: Segmented
    image: Any = None


def write_masks(
    found: Iterable[Found],
    out: str | Path,
    classes: ClassMap,
    *,
    overlay: Literal["jpeg", "png"] | None = "jpeg",
    confidence: bool = False,
    raw_ids: bool = False,
    force: bool = False,
    about: Callable[[], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write the segmentations of images, one after the other; the folder appears whole or not at all.

    In ``masks/`` lies a PNG for every image, under the image's own name and in its own sub-folder: a palette PNG whose
    pixels are numbers of classes, or with ``raw_ids`` the first id that the class map lists for the class (16-bit
    grey where an id is above 255; a colour picture where the map tells classes by colour). In ``overlays/`` lie masks
    over images, in ``confidence/`` grey PNGs of round(255 p). Beside them: ``predictions.json`` (shares of the
    classes, mean confidence, of each image and of all), ``classes.json`` (a class map that reads the masks) and
    ``legend.png``. One image is held at a time.

    Args:
        found: segmentations; consumed once, while files are written.
        out: folder to make.
        classes: names, colours and ids of the K classes.
        overlay: kind of the overlays, which need the images; None writes none. What does not fit into a JPEG becomes
            a PNG.
        confidence: write maps of the confidence.
        raw_ids: write the user's own label ids.
        force: replace files of a folder that is there; files of an earlier call that are not written again go.
        about: more keys for the summary, asked for at the end.

    Returns:
        The summary, as written.

    Raises:
        InputError: a place that is taken, a name that leaves the folder, two images with one mask.
        ValueError: classes, confidence and image do not fit each other.
    """
    out, form = Path(out), Form(overlay, confidence, raw_ids)
    earlier = _earlier(out)
    pixels, sure, images = np.zeros(len(classes), dtype=np.int64), 0.0, []
    with staged(out, force) as folder:
        taken: dict[str, str] = {}
        for name, segmented, image in found:
            stem = _claim(name, taken)
            labels, p = _checked(name, segmented, len(classes))
            counts = _counts(labels, len(classes))
            pixels, sure = pixels + counts, sure + float(p.sum(dtype=np.float64))
            written = write_image(folder, stem, labels, p, image, classes, form)
            images.append(
                {
                    "name": printable(name),
                    **{kind: printable(path) for kind, path in written.items()},
                    "height": labels.shape[0],
                    "width": labels.shape[1],
                    "shares": [round(float(one), 6) for one in counts / labels.size],
                    "mean_confidence": round(float(p.mean(dtype=np.float64)), 6),
                }
            )
        total = int(pixels.sum())
        values = pixel_values(classes, raw_ids)
        summary = {
            "pixel_values": "colours" if values is None else "raw ids" if raw_ids else "classes",
            "pixels": total,
            "mean_confidence": sure / total if total else None,
            "classes": [
                {
                    "name": name,
                    "value": None if values is None else values[k],
                    "colour": list(classes.colours[k]),
                    "pixels": int(pixels[k]),
                    "share": int(pixels[k]) / total if total else None,
                    "images": sum(one["shares"][k] > 0 for one in images),
                }
                for k, name in enumerate(classes.names)
            ],
            **(about() if about is not None else {}),
            "images": images,
        }
        write_json(folder / f"{NAME}.json", summary)
        write_json(folder / "classes.json", reading_map(classes, raw_ids).as_dict())
        legend(classes, values).save(folder / "legend.png")
    _drop_earlier(out, earlier, images)
    return summary


def predict_masks(
    model: Any,
    inputs: Sequence[str],
    out: str | Path,
    *,
    own: Any = None,
    overlay: Literal["jpeg", "png"] | None = "jpeg",
    confidence: bool = False,
    raw_ids: bool = False,
    skip_unreadable: bool = False,
    force: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Segment image files and write their masks with :func:`write_masks`, at the size of the files.

    Every file is decoded once before the first is segmented, so that a broken one is found now.

    Args:
        model: a run or an export, with ``method.segment`` and ``method.classes`` or these two itself.
        inputs: folders (with their sub-folders), .zip files, list files, single images; of several folders, zips and
            lists each gets a sub-folder of its name. Empty means ``own``.
        out: folder to make.
        own: data that a run was trained on: ``pixels`` and ``ids``.
        overlay, confidence, raw_ids, force: as for :func:`write_masks`.
        skip_unreadable: leave out files that cannot be read, and say so in the summary, instead of writing nothing.
        quiet: no progress line.

    Returns:
        The summary, as written: also "skipped" (name and reason), "expected" (mIoU that the run measured) and "model".

    Raises:
        InputError: a place that is taken, inputs that hold no images, unreadable files, names that collide, an image
            that the model does not take; nothing is written then.
    """
    out = Path(out)
    check_target(out, force)
    method: Segmenting = getattr(model, "method", model)
    sources = image_sources(method, inputs, out) if inputs else [own_images(own)]
    taken: dict[str, str] = {}
    for names, _ in sources:
        for name in names:
            _claim(name, taken)
    faults = unreadable(sources, quiet)
    count = sum(len(names) for names, _ in sources)
    if faults and (not skip_unreadable or len(faults) == count):
        shown = "\n".join(f"  {reason}" for reason in list(faults.values())[:_SHOWN])
        more = f"\n  ... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise InputError(
            f"{len(faults)} of {count} images cannot be read, so nothing was written:\n{shown}{more}\n",
            "Mend or remove them, or leave them out with --skip-unreadable.",
        )
    with Bar(count - len(faults), label="predict", show=not quiet) as bar:
        found = _segmented(method, sources, faults, skip_unreadable, bar)
        return write_masks(
            found,
            out,
            method.classes,
            overlay=overlay,
            confidence=confidence,
            raw_ids=raw_ids,
            force=force,
            about=lambda: {
                "skipped": [{"name": printable(name), "reason": why} for name, why in faults.items()],
                "expected": _expected(model),
                "model": dict(getattr(model, "provenance", {})),
            },
        )


def _segmented(
    method: Segmenting,
    sources: Sequence[Source],
    faults: dict[str, str],
    skip: bool,
    bar: Bar,
) -> Iterator[Found]:
    """Segment one image after the other; a file that broke since it was looked at is a fault like the others."""
    done = 0
    for names, pixels in sources:
        for row, name in enumerate(names):
            if name in faults:
                continue
            try:
                image = pixels[row]
            except InputError as error:
                if not skip:
                    raise
                faults[name] = error.message
                continue
            try:
                with torch.no_grad():
                    segmented = method.segment(image)
            except InputError as error:
                raise InputError(f"{printable(name)}: {error.message}", error.suggestion) from error
            if tuple(np.shape(segmented.classes)) != tuple(image.shape[1:]):
                raise RunError(
                    f"{printable(name)}: the model gave classes of {tuple(np.shape(segmented.classes))} pixels for an "
                    f"image of {tuple(image.shape[1:])}."
                )
            yield Found(name, segmented, image)
            done += 1
            bar.advance(done)


def _expected(model: Any) -> dict[str, Any] | None:
    """The mIoU that a run measured, and on what; None where it measured none."""
    with suppress(KeyError, TypeError, AttributeError):
        known = model.provenance.get("expected")  # of an export
        if not known:
            protocol = model.results["protocols"]["miou"]
            known = {"miou": protocol["readouts"]["trained"]["mean"], "part": protocol["split"]["name"]}
        miou, part = float(known["miou"]), str(known["part"])
        return {"miou": miou, "part": part} if math.isfinite(miou) else None
    return None


def _claim(name: str, taken: dict[str, str]) -> str:
    """Where the files of an image go, without the ending; refuses names that leave the folder or meet another's."""
    parts = (name.replace("\\", "/") if os.name == "nt" else name).split("/")
    drive = os.name == "nt" and any(":" in part for part in parts)
    if not all(parts) or drive or "\0" in name or {".", ".."} & set(parts):
        raise InputError(f"{printable(name)!r}: a mask of this name would lie outside of its folder.")
    ending = next(
        (one for one in ENDINGS if parts[-1].lower().endswith(one) and len(parts[-1]) > len(one)), ""
    )
    stem = "/".join(parts)[: len("/".join(parts)) - len(ending)]
    # Some file systems fold case, some normalise accents: two such names would be one file there.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())
    other = taken.get(folded)
    if other is not None:
        raise InputError(
            f"{printable(other)} and {printable(name)} would have the same mask, {printable(stem)}.png.",
            "Rename one of them, or predict them one after the other, each with its own --out.",
        )
    taken[folded] = name
    return stem


def _checked(name: str, segmented: Segmented, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes (h, w) uint8 below K, and confidence (h, w) float32 in [0, 1]."""
    labels, p = _plain(segmented.classes), _plain(segmented.confidence).astype(np.float32, copy=False)
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.shape != p.shape or not labels.size:
        raise ValueError(f"{name}: classes {labels.shape} {labels.dtype} and confidence {p.shape} do not fit")
    if int(labels.max()) >= count:
        raise ValueError(f"{name}: class {labels.max()}, there are {count}")
    low, high = float(p.min()), float(p.max())
    if not (low >= 0 and high <= 1.001):  # half precision rounds up
        raise ValueError(f"{name}: confidence from {low} to {high} is not in [0, 1]")
    return labels, np.minimum(p, np.float32(1))


def _plain(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _counts(labels: np.ndarray, count: int) -> np.ndarray:
    """(K,) int64 pixels of each class; counted in blocks, since bincount holds eight bytes a pixel."""
    flat, total = labels.reshape(-1), np.zeros(count, dtype=np.int64)
    for start in range(0, flat.size, _BLOCK):
        total += np.bincount(flat[start : start + _BLOCK], minlength=count)
    return total


def _earlier(out: Path) -> set[str]:
    """Files of images that an earlier call wrote here, by its own summary; other names in it are not believed."""
    try:
        listed = read_json(out / f"{NAME}.json", {})["images"]
        paths = [one[kind] for one in listed for kind in KINDS if kind in one]
    except (InputError, OSError, KeyError, TypeError):
        return set()
    held = [one.split("/") for one in paths if isinstance(one, str)]
    return {
        "/".join(parts) for parts in held if parts[0] in KINDS.values() and ".." not in parts and all(parts)
    }


def _drop_earlier(out: Path, earlier: set[str], images: Sequence[Mapping[str, Any]]) -> None:
    """Take away what an earlier call wrote and this one did not: it would contradict the new summary."""
    written = {one[kind] for one in images for kind in KINDS if kind in one}
    for path in earlier - written:
        with suppress(OSError):
            (out / path).unlink(missing_ok=True)
