"""Look at data of any kind: find out what a place or a recipe's source holds, and let the right check look at it."""

from __future__ import annotations

import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leanlabel.data.cifar_batches import find_batches
from leanlabel.data.coco import is_coco
from leanlabel.data.decode import ENDINGS
from leanlabel.data.dense_check import DenseFindings, check_dense
from leanlabel.data.dense_files import list_dense
from leanlabel.data.dense_layouts import IMAGE_FOLDERS, open_place, recognise
from leanlabel.data.dense_parts import cut_validation, hide_training_masks, keep_groups, limit_images
from leanlabel.data.dense_pass import Step
from leanlabel.data.dense_place import Place
from leanlabel.data.dense_source import DenseFiles, Scenes, Transformed, chosen_classes, open_dense
from leanlabel.data.findings import Finding
from leanlabel.data.graph_check import check_graph
from leanlabel.data.graph_folder import TABLES
from leanlabel.data.graph_source import PYG, GraphFile, PlantedGraph, find, open_graph
from leanlabel.data.graph_tables import find_file
from leanlabel.data.image_check import check_images
from leanlabel.data.image_folder import LIST_ENDINGS
from leanlabel.data.image_packed import _KEYS, packed_parts
from leanlabel.data.image_source import Domains, Glyphs, ImageFiles, open_images
from leanlabel.errors import InputError

Kind = Literal["graph", "images", "segmentation"]
IMAGES = (
    "A set of images is a folder (of images, per class, or train and test), a .zip of it, a list of files, an .npz "
    "with image (N, H, W, 3), or CIFAR's batches."
)
_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
_HEAD = 1 << 16
_MOST_LOOKS = 100_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def check_place(place: str) -> list[Finding]:
    """Check a graph, a set of images, or images with masks on disk.

    Args:
        place: a path, also below LEANLABEL_DATA; or pyg:NAME.

    Raises:
        InputError: nothing there, or neither of them.
    """
    if place.startswith(PYG):
        return check_source(GraphFile(path=place))
    path = find(place)
    kind = kind_of(path)
    if kind == "segmentation":
        return check_dense(path).findings
    if kind == "images":
        return check_images(path)
    try:
        return check_graph(path)
    except InputError as error:
        # What else the reader of graphs says is about a graph that it knows.
        if kind == "graph" or not (error.suggestion or "").startswith("A graph "):
            raise
        raise InputError(
            f"{path} holds neither a graph nor images.", f"{error.suggestion} {IMAGES}"
        ) from error


def check_masks(place: str, progress: Step | None = None) -> DenseFindings | None:
    """Check a place that holds images with masks, and keep the figures behind the findings.

    Args:
        place: a path, also below LEANLABEL_DATA.
        progress: called now and then with the number of images looked at, and of all.

    Returns:
        What was found; None where the place holds something else, which :func:`check_place` looks at.

    Raises:
        InputError: nothing there.
    """
    if place.startswith(PYG):
        return None
    path = find(place)
    return check_dense(path, progress=progress) if kind_of(path) == "segmentation" else None


def check_source_masks(source: Any, progress: Step | None = None) -> DenseFindings | None:
    """Check the images with masks that a recipe names; None where its data is of another kind.

    Files are looked at as they are, also where training would refuse them; only their class map, groups and limit
    follow the recipe.

    Args:
        source: the settings under ``data``.
        progress: called now and then with the number of images looked at, and of all.
    """
    if isinstance(source, GraphFile | PlantedGraph | Glyphs | ImageFiles | Domains):
        return None
    if isinstance(source, Scenes | Transformed):
        return check_dense(open_dense(source), progress=progress)
    if not isinstance(source, DenseFiles):
        return None
    classes = chosen_classes(source.classes)
    listing = list_dense(
        find(source.path),
        layout=source.layout,
        images=source.images,
        masks=source.masks,
        labels=source.labels,
        classes=classes,
    )
    listing = keep_groups(listing, source.only_groups, source.without_groups)
    if listing.masks is not None:
        cut_validation(listing, source.val_share, source.split_by)
    if source.limit is not None:
        listing = limit_images(listing, source.limit)
    if source.labels == "held-out":
        listing = hide_training_masks(listing)
    return check_dense(listing, classes=classes, progress=progress)


def is_here(place: str) -> bool:
    """Whether there is anything at a place, or below LEANLABEL_DATA."""
    try:
        return find(place).exists()
    except (InputError, OSError, ValueError):
        return False


def check_source(source: Any) -> list[Finding]:
    """Check the data that a recipe names, as training would read it.

    Of two domains, findings of both say whose they are; labels that training leaves unread are not looked at.

    Args:
        source: the settings under ``data``.

    Raises:
        InputError: what the readers say, or settings of data that no check looks at.
    """
    if isinstance(source, GraphFile | PlantedGraph):
        return check_graph(open_graph(source))
    if isinstance(source, Glyphs | Domains):
        return check_images(open_images(source))
    if isinstance(source, ImageFiles):
        found = check_images(open_images(source.model_copy(update={"skip_unreadable": True})))
        return found if source.skip_unreadable else [_stopping(one) for one in found]
    dense = check_source_masks(source)
    if dense is not None:
        return dense.findings
    if hasattr(source, "source") and hasattr(source, "target"):
        return _check_domains(source.source, source.target)
    kind = getattr(source, "kind", None) or type(source).__name__
    raise InputError(f"data check looks at graphs, images and masks, not at data of kind {kind!r}.")


def _check_domains(source: Any, target: Any) -> list[Finding]:
    """Findings of both domains, and whether their classes are the same ones in the same order."""
    found: list[Finding] = []
    classes: list[tuple[str, ...]] = []
    for role, one in (("source", source), ("target", target)):
        dense = check_source_masks(one)
        found += [
            replace(finding, message=f"{role}: {finding.message}")
            for finding in (check_source(one) if dense is None else dense.findings)
        ]
        if dense is not None and dense.figures["labelled"]:
            classes.append(dense.classes.names)
    if len(classes) == 2 and classes[0] != classes[1]:
        own, other = classes
        place = next(
            (k for k, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(map(len, classes))
        )
        a, b = (names[place] if place < len(names) else "not there" for names in classes)
        text = f"classes differ: class {place} is {a} in the source and {b} in the target"
        found.append(Finding("error", "classes_differ", text, abs(len(own) - len(other)) or 1))
    return found


def _stopping(one: Finding) -> Finding:
    """Files that were left out here stop a training that does not leave them out."""
    if one.code != "unreadable_skipped":
        return one
    text = (
        f"{one.count} images cannot be read, and training stops there; data.skip_unreadable leaves them out"
    )
    return replace(one, severity="error", code="unreadable", message=text)


def kind_of(path: Path) -> Kind | None:
    """What a place seems to hold, by names and array shapes; None where nothing tells."""
    try:
        if path.is_dir():
            if find_file(path, "edges", TABLES) is not None:
                return "graph"
            packed = find_batches(path) is not None or packed_parts(path) is not None
            if not packed and _holds_masks(path):
                return "segmentation"
            return "images" if packed or _holds_image(path) else None
        name = path.name.lower()
        if name.endswith(".npz"):
            return _kind_of_arrays(path)
    except OSError:  # the reader says what is wrong
        return None
    if name.endswith(".pt"):
        return "graph"
    if _holds_masks(path):
        return "segmentation"
    return "images" if name.endswith((*ENDINGS, *LIST_ENDINGS, ".zip", ".tar", ".tar.gz", ".tgz")) else None


def _holds_masks(path: Path) -> bool:
    """Whether a place holds masks beside images, and not a folder per class that only sounds like it."""
    name = path.name.lower()
    try:
        if name.endswith(".json"):
            return is_coco(path)
        if name.endswith(LIST_ENDINGS):
            return _lists_masks(path)
        if not path.is_dir() and not name.endswith(".zip"):
            return False
        place = open_place(Place.open(path))
        layout = recognise(place) if place.names else None
        if layout != "folders":
            return layout is not None
        listing = list_dense(path)
    except (InputError, OSError, ValueError):  # the reader says what is wrong
        return False
    if not bool(listing.labelled.any()) or listing.masks is None:
        return False
    folders = {part.lower() for one in place.names for part in one.split("/")[:-1]}
    names = getattr(listing.masks, "names", [])
    return bool(folders & set(IMAGE_FOLDERS)) or not all(one.lower().endswith(_LOSSY) for one in names)


def _lists_masks(path: Path) -> bool:
    """Whether the second line of a list or table names two image files: the first may be a header."""
    with path.open("rb") as file:
        lines = file.read(_HEAD).decode("utf-8-sig", "replace").lower().splitlines()
    rows = [line for line in lines if line.strip() and not line.startswith("#")][:2]
    cells = re.split(r"[,;\t\s]+", rows[-1].replace('"', "")) if rows else []
    return sum(cell.endswith(ENDINGS) for cell in cells) > 1


def _holds_image(folder: Path) -> bool:
    """Whether there is an image file below a folder; gives up after many other files."""
    looks = 0
    for _, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                return True
            looks += 1
        if looks > _MOST_LOOKS:
            return False
    return False


def _kind_of_arrays(path: Path) -> Kind | None:
    """A graph where an array holds edges, images where one has the shape of pixels or holds packed files."""
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {name.removesuffix(".npy"): _dimensions(archive, name) for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return None
    if any(name.startswith(("edge", "adj")) for name in shapes):
        return "graph"
    pictures = any(count >= 3 for name, count in shapes.items() if name in _KEYS)
    return "images" if pictures or any("jpeg" in name for name in shapes if name in _KEYS) else None


def _dimensions(archive: zipfile.ZipFile, name: str) -> int:
    """Number of dimensions of an array, from its header; 0 where it has none that can be read."""
    with archive.open(name) as file:
        try:
            read = _HEADERS[np.lib.format.read_magic(file)]
            return len(read(file)[0])
        except (KeyError, ValueError):
            return 0
