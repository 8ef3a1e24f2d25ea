"""Labels that a model gave to images without masks: written once, checked when they are read, like masks from then on.

A folder holds one palette PNG for every image, named by its row number, and ``manifest.json``, which is written last
and says what the labels were made of: classes, images, weights, thresholds.
"""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.data.class_map import IGNORE, ClassMap, plain_map
from leanlabel.data.decode import _pillow
from leanlabel.data.dense import DenseImages, MaskFiles, Masks, _row_list, fingerprint_dense
from leanlabel.data.image_stores import FolderStore
from leanlabel.data.label_manifest import AGAIN, MANIFEST, VERSION, read_manifest
from leanlabel.data.masks import decode_mask
from leanlabel.errors import InputError, RunError

MEMORY = 1 << 28
"""Bytes of predictions (5 per pixel) up to which they are held between the two passes, instead of made again."""

Predict = Callable[[Any], Sequence[tuple[Any, Any]]]
"""Images (B, C, h, w) or a list of (C, h, w) -> of each: classes (h, w) uint8, confidence (h, w) in [0, 1]."""


class Counter(Protocol):
    """Who turns confidences of all pixels into a threshold of each class: `leanlabel.banks.class_thresholds`."""

    bins: int
    exact: bool

    def add(self, confidence: Tensor, classes: Tensor, /) -> None: ...

    def thresholds(self, quantile: float, cap: float, /) -> Tensor: ...

    def counts(self) -> Tensor: ...


def write_labels(
    folder: str | Path,
    data: DenseImages,
    rows: Tensor | Sequence[int],
    predict: Predict,
    classes: ClassMap,
    model: str,
    *,
    counter: Counter,
    quantile: float = 0.5,
    cap: float = 0.9,
    batch: int = 1,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Label images by what a model predicts, where it is sure enough for the class, and write the labels.

    The first pass over the images finds the thresholds; the second writes, of every pixel, the predicted class where
    its confidence is at least that class's threshold, else 255. Predictions are made again for the second pass unless
    all of them fit into `memory`; either way no more than a batch of images is held. On several ranks each predicts
    and writes its share of the images, and rank 0 the manifest, when all are done.

    Args:
        folder: place of the files; made where it is missing, the same for all ranks. Labels of an earlier call count
            as gone from the start of this one.
        data: images; masks are not looked at.
        rows: N row numbers in `data`, each once.
        predict: makes the predictions, at the size of the images; the same ones whenever it is asked.
        classes: names and colours of the K classes.
        model: digest of the weights behind `predict`.
        counter: fresh ``ClassThresholds`` of K classes, which also says how exact it is.
        quantile: share of each class that may be left out.
        cap: confidence from which on every pixel is kept.
        batch: images per call of `predict`.
        memory: bytes of predictions that may be held between the passes.
        progress: called after every image with the number done on this rank in both passes, and of all.
        about: more facts for the manifest, plain JSON data.

    Returns:
        The manifest, as written: "thresholds", pixels "seen" and "kept" of each class, "kept_share" of each (None of
        a class that was never predicted) and "share" of all, and what :meth:`PseudoLabels.open` checks.

    Raises:
        ValueError: no rows, one twice, one outside of the data, a counter that is not fresh, or predictions that do
            not fit the images or classes.
        InputError: an image cannot be read. RunError: the files could not be written.

    Example:
        >>> import tempfile
        >>> from leanlabel.banks.class_thresholds import ClassThresholds
        >>> from leanlabel.data.images import PixelArray
        >>> data = DenseImages("one", PixelArray(torch.zeros(1, 3, 1, 2).byte()), None, plain_map(["road", "car"]))
        >>> sure = [(torch.tensor([[1, 1]]).byte(), torch.tensor([[0.25, 0.5]]))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_labels(folder, data, [0], lambda x: sure, data.classes, "", counter=ClassThresholds(2))
        ...     PseudoLabels.open(folder, classes=data.classes).read([0]).tolist()
        [[[255, 1]]]
    """
    folder = Path(folder)
    chosen = _row_list(rows)
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0 or max(chosen) >= len(data):
        raise ValueError(f"rows must be numbers in [0, {len(data)}), each once and at least one of them")
    before = counter.counts()
    if before.shape != (len(classes),) or bool(before.any()):
        raise ValueError(f"counter must be a fresh one of {len(classes)} classes")
    if dist.is_main():
        _prepare(folder)
    dist.barrier()
    own, count = chosen[dist.shard(len(chosen))], len(classes)
    held: list[tuple[int, Tensor, Tensor]] | None = []
    free, done = memory, itertools.count(1)
    tell = progress or (lambda *_: None)
    for row, known, sure in _predictions(data, own, predict, count, batch):
        counter.add(sure, known)
        free -= known.nbytes + sure.nbytes
        if free < 0:
            held = None  # too many: they are made again
        if held is not None:
            held.append((row, known, sure))
        tell(next(done), 2 * len(own))
    thresholds = counter.thresholds(quantile, cap).double().cpu()
    seen = counter.counts().cpu()
    kept, sizes = torch.zeros(count, dtype=torch.int64), []
    for row, known, sure in _predictions(data, own, predict, count, batch) if held is None else held:
        labels = known.where(sure.double() >= thresholds[known.long()], IGNORE)
        kept += labels[labels != IGNORE].long().bincount(minlength=count)
        sizes.append(list(labels.shape))
        _write(folder / file_name(row), _picture(labels.numpy(), classes))
        tell(next(done), 2 * len(own))
    kept = dist.all_sum(kept)
    all_sizes = [size for part in dist.gather_objects(sizes) for size in part]  # all have written all by now
    manifest = {
        "form": "hard",
        "version": VERSION,
        "classes": classes.as_dict(),
        "model": model,
        "data": images_fingerprint(data),
        "quantile": quantile,
        "cap": cap,
        "exact": counter.exact,
        "bins": None if counter.exact else counter.bins,
        "thresholds": thresholds.tolist(),
        "seen": seen.tolist(),
        "kept": kept.tolist(),
        "kept_share": [k / n if n else None for k, n in zip(kept.tolist(), seen.tolist(), strict=True)],
        "share": int(kept.sum()) / int(seen.sum()),
        "about": dict(about or {}),
        "images": None if data.ids is None else [data.ids[row] for row in chosen],
        "rows": chosen,
        "sizes": all_sizes,
    }
    if dist.is_main():
        _write(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    dist.barrier()
    return manifest


def images_fingerprint(data: DenseImages) -> str:
    """Compute the SHA-256 of images and their names only: not of masks, classes, groups or splits.

    See :func:`leanlabel.data.dense.fingerprint_dense` for what counts of files.
    """
    bare = {"masks": None, "instances": None, "groups": None, "group_names": None, "splits": {}}
    return fingerprint_dense(replace(data, **bare, classes=plain_map(["any"])))


def file_name(row: int) -> str:
    """Name of the file with the labels of an image.

    >>> file_name(123)
    '000123.png'
    """
    return f"{row:06d}.png"


@dataclass(frozen=True, eq=False)
class LabelFiles(MaskFiles):
    """Files of pseudo labels as masks; each must have the size that it was written with, and hold classes or 255."""

    def __getitem__(self, index: int, /) -> Tensor:
        row = int(self.rows[index])
        assert isinstance(self.source, FolderStore)
        where = self.source.where(row)
        try:
            found = decode_mask(self.source.read(row), where)
        except InputError as error:
            raise InputError(error.message, AGAIN) from error
        size = (int(self.sizes[index, 0]), int(self.sizes[index, 1]))
        if found.shape != size:
            raise InputError(
                f"{where}: labels of {_spelled(found.shape)} pixels for an image of {_spelled(size)}.", AGAIN
            )
        wrong = (found >= len(self.classes)) & (found != IGNORE)
        if wrong.any():
            raise InputError(
                f"{where}: label {int(found[wrong][0])} ({int(wrong.sum()):,} pixels) is none of "
                f"{len(self.classes)} classes (0 to {len(self.classes) - 1}), nor 255.",
                AGAIN,
            )
        return torch.from_numpy(np.array(found, dtype=np.uint8))


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Pseudo labels on disk.

    Args:
        folder: where they lie.
        manifest: what they were made of.
        files: labels of the N images, in the order of the manifest.
    """

    folder: Path
    manifest: Mapping[str, Any]
    files: LabelFiles
    _places: Mapping[int, int] = field(repr=False)

    @classmethod
    def open(
        cls, folder: str | Path, *, classes: ClassMap, data: str | None = None, model: str | None = None
    ) -> PseudoLabels:
        """Open what :func:`write_labels` wrote, if it belongs to these classes, images and weights.

        Args:
            folder: place of the files.
            classes: the K classes: names and order must be the same; raw ids and colours need not.
            data: :func:`images_fingerprint` of the images; None does not check.
            model: digest of the weights; None does not check.

        Raises:
            InputError: no manifest, one that cannot be read, other classes, images or weights, or a file is missing.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        names = list(manifest["classes"]["names"])
        if names != list(classes.names):
            raise InputError(
                f"{folder}: pseudo labels of other classes: {', '.join(map(str, names))}; now there are "
                f"{len(classes)}: {', '.join(classes.names)}.",
                "Compute them again, or use the class map that they were made with.",
            )
        if data is not None and manifest["data"] != data:
            raise InputError(
                f"{folder}: pseudo labels of other images; names, sizes or pixels differ.",
                "Compute them again, or give the images that they were made of, read in the same way.",
            )
        if model is not None and manifest["model"] != model:
            raise InputError(
                f"{folder}: pseudo labels of another model (weights {str(manifest['model'])[:12]}, not {model[:12]}).",
                "Compute them again from the weights that training starts from.",
            )
        rows = manifest["rows"]
        store = FolderStore(str(folder), [file_name(row) for row in rows])
        missing = np.flatnonzero(store.sizes() < 0)
        if len(missing):
            more = f" and {len(missing) - 1} more of {len(rows)}" if len(missing) > 1 else ""
            raise InputError(f"{store.where(int(missing[0]))}{more}: this file is missing.", AGAIN)
        sizes = torch.tensor(manifest["sizes"], dtype=torch.int64).view(-1, 2)
        files = LabelFiles(store, plain_map(classes.names, classes.colours), sizes, torch.arange(len(rows)))
        return cls(folder, manifest, files, {row: place for place, row in enumerate(rows)})

    def __len__(self) -> int:
        return len(self.files)

    @property
    def thresholds(self) -> list[float]:
        """K confidences from which on pixels were kept."""
        return list(self.manifest["thresholds"])

    @property
    def kept_share(self) -> list[float | None]:
        """Share of the pixels of each of the K classes that was kept; None of a class that was never predicted."""
        return list(self.manifest["kept_share"])

    def read(self, rows: Tensor | Sequence[int]) -> Tensor | list[Tensor]:
        """Read the labels of some images.

        Args:
            rows: B row numbers in the data that they were made of.

        Returns:
            (B, H, W) uint8, 255 for no class; a list of (h, w) where sizes differ.

        Raises:
            InputError: an image without labels, or a file that is missing, damaged, of another size, or holds what is
                no class; names it.
        """
        return self.files.read(self._places_of(rows))

    def masks(self, rows: Tensor | Sequence[int]) -> Masks:
        """Labels of some images, in this order, as a `DenseImages` carries masks: read when they are asked for.

        Raises:
            InputError: an image without labels.
        """
        return self.files.take(self._places_of(rows))

    def _places_of(self, rows: Tensor | Sequence[int]) -> list[int]:
        found = [self._places.get(row, -1) for row in _row_list(rows)]
        if -1 in found:
            row = _row_list(rows)[found.index(-1)]
            raise InputError(f"{self.folder}: image {row} has no pseudo labels.", AGAIN)
        return found


def _predictions(
    data: DenseImages, rows: Sequence[int], predict: Predict, count: int, batch: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Row, classes and confidence of one image after the other, on the CPU."""
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        images = data.pixels.read(part)
        found = predict(images)
        if len(found) != len(part):
            raise ValueError(f"{len(found)} predictions for {len(part)} images")
        for row, image, (labels, sure) in zip(part, images, found, strict=True):
            k, p = (torch.as_tensor(one).detach().cpu() for one in (labels, sure))
            if k.dtype != torch.uint8 or k.shape != image.shape[1:] or k.shape != p.shape:
                raise ValueError(
                    f"image {row}: classes {tuple(k.shape)} {k.dtype} and confidence {tuple(p.shape)} do not fit "
                    f"{tuple(image.shape[1:])} pixels"
                )
            if k.numel() and int(k.max()) >= count:
                raise ValueError(f"image {row}: class {int(k.max())}, there are {count}")
            yield row, k, p


def _picture(labels: np.ndarray, classes: ClassMap) -> bytes:
    """A PNG of 8 bits with a palette: pixels are numbers of classes, 255 is black."""
    picture = _pillow().fromarray(labels)
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(classes)] = classes.colours
    picture.putpalette(palette.tobytes())
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def _prepare(folder: Path) -> None:
    """Make the folder; without a manifest nothing in it counts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error}).") from error


def _write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error.strerror or error}).") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _spelled(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)
