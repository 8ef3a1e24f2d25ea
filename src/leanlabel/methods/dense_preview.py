"""What the first iterations of a dense training see, as pictures on disk: views, their labels, and what is pasted."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leanlabel.augment.class_mix import Mixed
from leanlabel.data.class_map import IGNORE
from leanlabel.data.class_sampling import class_table
from leanlabel.engine.method import Method
from leanlabel.engine.progress import Bar
from leanlabel.engine.runfolder import write_json
from leanlabel.errors import InputError
from leanlabel.evaluation import neighbours
from leanlabel.evaluation.pictures import grey_picture, palette_picture, rgb
from leanlabel.methods.adapt import Adapt
from leanlabel.methods.adapt_stages import _Rehearsal, moved
from leanlabel.methods.dense_readouts import name_of
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.segmentation import Segmentation
from leanlabel.methods.terms import Term
from leanlabel.methods.terms.mixing import ClassMix, decodes
from leanlabel.models.segmenters import DenseOutput

INDEX, PASTED, SUMMARY = "index.csv", "pasted.csv", "preview.json"
UNLABELLED = "pseudo labels do not exist before training: everything around what is pasted is unlabelled"
STAND_IN = (
    "classes that go by the pixels of pseudo labels in training go by those of the labelled images here, as pseudo "
    "labels do not exist before training"
)
UNTAUGHT = (
    "in training a running average of the network labels what is around the pasted pixels; it has learned nothing yet, "
    "so everything around them is unlabelled"
)
UNDRAWN = "the decoder of zero-style has learned nothing yet: what it will draw is shown as training begins, without it"
FEATURES = "mode feature mixes features, not images: the pictures show images of the same region"


class Picture(NamedTuple):
    """One row of the index.

    Attributes:
        file: its name.
        iteration: counted from 0.
        view: source, target, partner, donor, or the term that mixes.
        content: image, label, or region (white: what was pasted).
        place: number of the sample in its batch.
        image: name of the image; of a mix the one that something is pasted into.
        pasted_from: name of the image that it is taken from, of mixes.
        pasted: share of the pixels that was pasted, of mixes.
    """

    file: str
    iteration: int
    view: str
    content: str
    place: int
    image: str
    pasted_from: str = ""
    pasted: float | None = None


class _Count:
    """Pixels that one term pasted, by class."""

    def __init__(self, view: str, start: int, classes: int) -> None:
        self.view, self.start = view, start
        self.pixels = torch.zeros(classes, dtype=torch.int64)
        self.holding = torch.zeros(classes, dtype=torch.int64)
        self.images = self.with_pasted = self.area = 0

    def add(self, mixed: Mixed) -> None:
        """Labels and regions of a batch of mixes."""
        for label, region in zip(mixed.labels, mixed.region, strict=True):
            inside = label[region & (label >= 0)]
            found = inside.bincount(minlength=len(self.pixels)).cpu()
            self.pixels += found
            self.holding += found > 0
            self.images += 1
            self.with_pasted += int(bool(region.any()))
            self.area += region.numel()

    def told(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Plain data."""
        total = int(self.pixels.sum())
        return {
            "term": self.view,
            "start": self.start,
            "images": self.images,
            "images_with_pasted": self.with_pasted,
            "pixels": total,
            "share": total / self.area if self.area else None,
            "classes": [
                {
                    "name": name,
                    "pixels": pixels,
                    "share": pixels / total if total else None,
                    "images": images,
                }
                for name, pixels, images in zip(
                    names, self.pixels.tolist(), self.holding.tolist(), strict=True
                )
            ],
        }


def check_kind(kind: type[Method], name: str, steps: int) -> None:
    """Refuse recipes whose training reads no images with masks, or that train nothing.

    Args:
        kind: class of the recipe's method.
        name: its name.
        steps: iterations of the recipe.

    Raises:
        InputError: which, and what can be looked at.
    """
    if not issubclass(kind, Segmentation):
        raise InputError(
            f"method.name={name}: there is nothing to show; preview shows what recipes of segmentation and adaptation "
            "train on.",
            "Look at other data with `leanlabel data check`.",
        )
    if steps == 0:
        raise InputError("steps: 0, so this recipe trains on nothing.", "Set steps to 1 or more.")


def previewed(cfg: Any) -> Any:
    """A configuration whose training can be looked at before anything has trained.

    Given pseudo labels are taken whichever weights made them; mistakes are put into no labels but given ones.
    """
    section = getattr(cfg.method, "pseudo_labels", None)
    if section is None:
        return cfg
    changes = {"any_model": True} if section.folder is not None else {"noise": 0.0}
    method = cfg.method.model_copy(update={"pseudo_labels": section.model_copy(update=changes)})
    return cfg.model_copy(update={"method": method})


@torch.no_grad()
def write_preview(method: Segmentation, folder: Path, iterations: int) -> dict[str, Any]:
    """Write views, labels and mixes of the first iterations, exactly as training would make them; nothing is trained.

    Written are PNG files, ``index.csv`` (which file shows what), ``pasted.csv`` (pixels of each class that were pasted,
    by term) and ``preview.json``. Images are shown before a term that mixes changes their colours. Labels that only a
    trained network can give are left out, and a note says so.

    Args:
        method: as its seed made it, with the configuration of :func:`previewed`.
        folder: exists, and is empty.
        iterations: how many, >= 1; at most all of the training.

    Returns:
        What ``preview.json`` says: "iterations", "pictures", "terms" (term, start, images, images_with_pasted, pixels,
        share, classes: name, pixels, share, images) and "notes".

    Raises:
        InputError: what a term says of the recipe.
    """
    iterations, notes = min(iterations, method.cfg.steps), []
    _prepare(method, notes)
    counts = {view: _Count(view, start, len(method.classes)) for view, _, start in _mixing(method)}
    pictures: list[Picture] = []

    def keep(picture: Picture, array: Any) -> None:
        pixels = torch.from_numpy(array).permute(2, 0, 1)
        (folder / picture.file).write_bytes(neighbours.png(pixels))
        pictures.append(picture)

    was, method._updater = method._updater, _Rehearsal()
    method.train()
    try:
        with Bar(iterations, label="preview") as bar, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for t, batch in zip(range(iterations), method.batches(0), strict=False):
                _show_iteration(method, t, moved(batch, method.device), counts, keep, notes)
                bar.advance(t + 1)
    finally:
        method._updater = was
    notes += [str(one.message) for one in caught if "leanlabel" in Path(one.filename).parts]
    told = {
        "iterations": iterations,
        "pictures": len(pictures),
        "terms": [one.told(method.classes.names) for one in counts.values()],
        "notes": list(dict.fromkeys(notes)),
    }
    _write_tables(folder, pictures, told)
    write_json(folder / SUMMARY, told)
    return told


def _prepare(method: Segmentation, notes: list[str]) -> None:
    """What stages before the training count: classes of each labelled image, and of pseudo labels where there are."""
    if not isinstance(method, Adapt):
        return
    if method.cfg.method.sampling.name != "uniform" or method.needs.donors:
        with Bar(len(method.pool), label="count classes", show=len(method.pool) >= 256) as bar:
            method.use_table(
                class_table(method.data.source, method.pool, progress=lambda done, _: bar.advance(done))
            )
    if method.needs.stored and method.stored is None:
        pixels = torch.tensor(method.class_pixels(method.data.source), dtype=torch.int64)
        for term, _ in method.terms():
            goes_by = type(term).stored_pixels is not Term.stored_pixels
            if goes_by and getattr(term.settings, "tail", True) is not None:
                notes.append(STAND_IN)
            term.stored_pixels(pixels)


def _mixing(method: Segmentation) -> Iterator[tuple[str, Any, int]]:
    """Terms of the recipe that mix images: what their pictures are called, the term, and its first iteration."""
    seen: dict[str, int] = {}
    for term, entry in method.terms():
        if callable(getattr(term, "mixed", None)):
            seen[entry.name] = seen.get(entry.name, 0) + 1
            number = f"-{seen[entry.name]}" if seen[entry.name] > 1 else ""
            yield f"{entry.name}{number}", term, entry.start


def _show_iteration(
    method: Segmentation,
    t: int,
    batch: Any,
    counts: dict[str, _Count],
    keep: Callable[[Picture, Any], None],
    notes: list[str],
) -> None:
    step = method.begin(t, batch)
    for term, entry in method.terms():
        if t >= entry.start:
            step.batch = term.views(step.batch, step.draw)
    adapts = isinstance(method, Adapt)
    needs = method.needs if adapts else None
    if needs is None or needs.source:
        _show_batch(method, t, "source", step.batch, keep)
    if needs is None:
        return
    if step._donor is not None:
        _show_batch(method, t, "donor", step._donor, keep)
    if step.partner is not None:
        _show_batch(method, t, "partner", step.partner, keep)
    if not needs.target:
        return
    target = step.target
    if needs.stored and method.stored is None:  # what the data has by that name are labels of people
        target.batch = target.batch._replace(labels=torch.full_like(target.labels, -100))
        notes.append(UNLABELLED)
    _show_batch(method, t, "target", target.batch, keep, labelled=bool((target.labels >= 0).any()))
    # An average that has learned nothing is not asked: it is sure of nothing.
    nobody = torch.zeros(len(target.images), len(method.classes), 1, 1, dtype=target.images.dtype)
    vars(target)["taught"] = DenseOutput(nobody, nobody)
    for view, term, _ in _mixing(method):
        _show_mix(method, t, view, term, step, counts[view], keep, notes)


def _show_mix(
    method: Segmentation,
    t: int,
    view: str,
    term: Any,
    step: Step,
    count: _Count,
    keep: Callable[[Picture, Any], None],
    notes: list[str],
) -> None:
    mixed: Mixed = term.mixed(step)
    labels = mixed.labels
    if getattr(term.settings, "online", False):
        labels = labels.masked_fill(~mixed.region, -100)
        notes.append(UNTAUGHT)
    if isinstance(term, ClassMix) and decodes(term.settings):
        notes.append(UNDRAWN)
    if isinstance(term, ClassMix) and term.settings.mode == "feature":
        notes.append(FEATURES)
    count.add(mixed)
    batch = step.target.batch._replace(images=mixed.images, labels=labels)
    given = step._donor if getattr(term.settings, "donors", "") == "drawn" else step.batch
    origins = [] if given is None else _names(method, "source", given.ids)
    _show_batch(method, t, view, batch, keep, region=mixed.region, origins=origins)


def _show_batch(
    method: Segmentation,
    t: int,
    view: str,
    batch: DenseBatch,
    keep: Callable[[Picture, Any], None],
    *,
    labelled: bool = True,
    region: Tensor | None = None,
    origins: Sequence[str] = (),
) -> None:
    """Write image, label and region of every sample of a batch."""
    of_source = view in ("source", "donor", "partner")
    look = method.cfg.augment if of_source else method.look
    names = _names(method, view, batch.ids)
    masks = batch.labels.masked_fill(batch.labels < 0, IGNORE).to(torch.uint8).cpu()
    for place, name in enumerate(names):
        inside = None if region is None else region[place].cpu()
        shown = {"image": rgb(_plain(batch.images[place], look))}
        if labelled:
            shown["label"] = palette_picture(masks[place], method.classes.colours)
        if inside is not None:
            shown["region"] = grey_picture(inside.float())
        pasted = None if inside is None else float(inside.double().mean())
        for content, array in shown.items():
            file = f"{t:04d}-{view}-{place:02d}-{content}.png"
            origin = origins[place] if origins else ""
            keep(Picture(file, t, view, content, place, name, origin, pasted), array)


def _names(method: Segmentation, view: str, ids: Tensor) -> list[str]:
    """Names of the images behind sample ids."""
    if not isinstance(method, Adapt):
        data, rows = method.data, method.pool
    elif view in ("source", "donor"):
        data, rows = method.data.source, method.pool
    else:  # a partner is known by the image that it belongs to
        data, rows = method.data.target, method.target_rows
    return [name_of(data, int(rows[number % len(rows)])) for number in ids.tolist()]


def _plain(image: Tensor, look: Any) -> Tensor:
    """A normalised image (C, h, w) in [0, 1], on the CPU."""
    mean, std = (torch.tensor(one, dtype=torch.float64).view(-1, 1, 1) for one in (look.mean, look.std))
    return (image.detach().cpu().double() * std + mean).clamp(0, 1)


def _write_tables(folder: Path, pictures: list[Picture], told: dict[str, Any]) -> None:
    with open(folder / INDEX, "w", encoding="utf-8", errors="backslashreplace", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(Picture._fields)
        for one in pictures:
            table.writerow([*one[:-1], "" if one.pasted is None else f"{one.pasted:.6f}"])
    if not told["terms"]:
        return
    with open(folder / PASTED, "w", encoding="utf-8", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["term", "class", "pixels", "share", "images"])
        for term in told["terms"]:
            for one in term["classes"]:
                share = "" if one["share"] is None else f"{one['share']:.6f}"
                table.writerow([term["term"], one["name"], one["pixels"], share, one["images"]])
