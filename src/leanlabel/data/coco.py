"""COCO JSON: objects as polygons or run-length codes, painted into one mask of classes when a mask is asked for."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.class_map import IGNORE, MOST_CLASSES, ClassMap, plain_map
from leanlabel.data.coco_shapes import decode_runs, polygon_mask
from leanlabel.data.dense_listing import DenseListing, Fault
from leanlabel.data.graph_tables import unreadable
from leanlabel.data.image_stores import FolderStore
from leanlabel.errors import InputError

BACKGROUND = "background"
"""Name of class 0: what no object covers."""
MOST_SIDE = 1 << 16
"""An image that claims a longer side is refused."""
_MOST_IDS = 1 << 16


@dataclass(frozen=True)
class CocoObject:
    """One object of one image.

    Args:
        id: the annotation's id, for messages.
        label: class, or 255 to ignore its pixels.
        shape: list of polygons, or a run-length code with "counts" and "size".
        crowd: a region of many objects.
        wrong: what is wrong with it, said when it is painted; None where nothing is known to be.
    """

    id: Any
    label: int
    shape: Any
    crowd: bool = False
    wrong: InputError | None = None


@dataclass(frozen=True, eq=False)
class CocoMasks:
    """Masks that are painted each time they are asked for.

    Crowds first, then objects, each of them from the largest to the smallest, so that what lies in front stays
    visible; of equal areas the later one in the file wins.

    Args:
        path: the JSON file, for messages.
        objects: N lists.
        sizes: N pairs (height, width).
        fill: label of pixels without an object.
    """

    path: str
    objects: list[list[CocoObject]]
    sizes: list[tuple[int, int]]
    fill: int = 0

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: int, /) -> Tensor:
        """Paint one mask: (h, w) uint8.

        Raises:
            InputError: an annotation is wrong; names file and id.
        """
        height, width = self.sizes[index]
        painted = [(one, self._rasterised(one, height, width)) for one in self.objects[index]]
        painted.sort(key=lambda pair: (not pair[0].crowd, -int(np.count_nonzero(pair[1]))))
        mask = np.full((height, width), self.fill, dtype=np.uint8)
        for one, inside in painted:
            mask[inside] = one.label
        return torch.from_numpy(mask)

    @property
    def shape(self) -> tuple[int, int] | None:
        """(H, W) where all masks have this size."""
        return self.sizes[0] if len(set(self.sizes)) == 1 else None

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """(B, H, W) uint8 where these masks are of one size, else a list of (h, w)."""
        found = [self[row] for row in rows]
        if not found:
            return torch.zeros((0, *(self.shape or (0, 0))), dtype=torch.uint8)
        return torch.stack(found) if len({one.shape for one in found}) == 1 else found

    def take(self, rows: Sequence[int]) -> CocoMasks:
        """Some of the masks, in this order."""
        return CocoMasks(
            self.path, [self.objects[row] for row in rows], [self.sizes[row] for row in rows], self.fill
        )

    def _rasterised(self, one: CocoObject, height: int, width: int) -> np.ndarray:
        if one.wrong is not None:
            raise InputError(one.wrong.message, one.wrong.suggestion)
        try:
            if isinstance(one.shape, Mapping):
                size = one.shape.get("size")
                if size is not None and list(size) != [height, width]:
                    raise ValueError(f"its code is of {size} pixels, the image has {[height, width]}")
                return decode_runs(one.shape["counts"], height, width)
            inside = np.zeros((height, width), dtype=bool)
            for polygon in one.shape:
                inside |= polygon_mask(polygon, height, width)
            return inside
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise InputError(
                f"{self.path}, annotation {one.id!r}: {error}.",
                "Correct the segmentation of this annotation.",
            ) from error


def read_coco(
    path: str | Path,
    images: str | Path | None = None,
    classes: ClassMap | None = None,
    *,
    later: bool = False,
) -> DenseListing:
    """List the images of a COCO JSON file with their masks.

    Class 0 is "background"; a category becomes the class behind it in the order of ids. A category that is called
    background, whatever its id, is class 0, too. Annotations without a segmentation (boxes, key points) are counted
    in the facts.

    Args:
        path: the JSON file, with images, annotations and categories.
        images: folder that file names are relative to; None looks beside the file: its folder, "images" there or one
            up, and folders that are called like the file.
        classes: category ids to classes, where the default will not do; what no object covers then is its class
            "background", or ignored where it has none.
        later: whether an annotation of an image that is wrong stops only who paints that image's mask, as some masks
            stay unread; False: it stops the reading.

    Raises:
        InputError: not such a file, or something in it does not fit together; names file and annotation. No image
            file is where it should be.
    """
    path = Path(path)
    content = _content(path)
    categories = _categories(path, content["categories"])
    own = classes if classes is not None else _class_map(path, categories)
    entries = _images(path, content["images"])
    place = {entry["id"]: row for row, entry in enumerate(entries)}
    objects: list[list[CocoObject]] = [[] for _ in entries]
    without = 0
    for one in _annotations(path, content["annotations"]):
        where = f"{path}, annotation {one.get('id')!r}"
        if one.get("image_id") not in place:
            raise InputError(f"{where}: no image has the id {one.get('image_id')!r}.")
        try:
            found = _object(one, where, categories, own)
        except InputError as error:
            if not later:
                raise
            found = CocoObject(one.get("id"), IGNORE, None, wrong=error)
        if found is None:
            without += 1
        else:
            objects[place[one["image_id"]]].append(found)
    if without and not any(objects) and not later:
        raise InputError(
            f"{path}: none of {without} annotations has a segmentation, only boxes.",
            "Export the annotations with polygons or masks.",
        )
    names = [entry["file_name"] for entry in entries]
    store = FolderStore(str(_folder(path, images, names)), names)
    fill = own.names.index(BACKGROUND) if BACKGROUND in own.names else IGNORE
    masks = CocoMasks(str(path), objects, [(entry["height"], entry["width"]) for entry in entries], fill)
    facts = {"layout": "coco", "objects": sum(map(len, objects))}
    if without:
        facts["annotations_without_shape"] = without
    faults = [
        Fault("missing_file", f"{store.where(row)}: {path} lists this image, which is not there", row)
        for row, size in enumerate(store.sizes().tolist())
        if size < 0
    ]
    return DenseListing(path.stem, store, masks, ids=names, classes=own, faults=faults, facts=facts)


def _object(
    one: dict[str, Any], where: str, categories: Mapping[int, str], classes: ClassMap
) -> CocoObject | None:
    """The object of an annotation; None where it has no segmentation."""
    if one.get("category_id") not in categories:
        raise InputError(
            f"{where}: no category has the id {one.get('category_id')!r}.",
            f"Known ids: {', '.join(map(str, list(categories)[:12]))}.",
        )
    shape = one.get("segmentation")
    if not shape:
        return None
    if not isinstance(shape, list | dict):
        raise InputError(f"{where}: its segmentation is neither polygons nor a run-length code.")
    label = _label(classes, one["category_id"], where)
    return CocoObject(one.get("id"), label, shape, bool(one.get("iscrowd", 0)))


def is_coco(path: Path) -> bool:
    """Whether a file seems to be COCO JSON, from its ending and the keys in it."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "images" in found and "annotations" in found


def _content(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not complete JSON: {error}.") from error
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(found, dict) or not isinstance(found.get(key), list)]
    if missing:
        raise InputError(f"{path} is not COCO JSON: the list {missing[0]!r} is missing.")
    return found


def _fault(where: str, text: str) -> NoReturn:
    raise InputError(f"{where}: {text}.")


def _categories(path: Path, rows: list[Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for number, one in enumerate(rows):
        where = f"{path}, category {number}"
        if (
            not isinstance(one, dict)
            or type(one.get("id")) is not int
            or not isinstance(one.get("name"), str)
        ):
            _fault(where, "it has no integer id and name")
        if one["id"] in found:
            _fault(where, f"the id {one['id']} occurs twice")
        found[one["id"]] = one["name"]
    return dict(sorted(found.items()))


def _class_map(path: Path, categories: Mapping[int, str]) -> ClassMap:
    objects = [name for name in categories.values() if name.lower() != BACKGROUND]
    twice = [name for name, count in Counter(objects).items() if count > 1]
    if twice:
        _fault(str(path), f"two categories are called {twice[0]!r}")
    if len(objects) >= MOST_CLASSES:
        _fault(str(path), f"{len(objects)} categories, at most {MOST_CLASSES - 1} fit into a mask")
    outside = [one for one in categories if not 0 <= one < _MOST_IDS]
    if outside:
        _fault(str(path), f"the category id {outside[0]} is not in 0 to {_MOST_IDS - 1}")
    names = (BACKGROUND, *objects)
    ids = {one: 0 if name.lower() == BACKGROUND else names.index(name) for one, name in categories.items()}
    if 0 not in ids.values():
        # The map wants an id for what no object covers; some tools number categories from 0.
        ids[next(one for one in range(_MOST_IDS) if one not in ids)] = 0
    return plain_map(names, name=path.stem, ids=dict(sorted(ids.items())), ignored=())


def _label(classes: ClassMap, category: int, where: str) -> int:
    if category in classes.ids:
        return classes.ids[category]
    if category in classes.ignored or classes.unlisted == "ignore":
        return IGNORE
    raise InputError(f"{where}: the class map {classes.name} does not list category {category}.")


def _images(path: Path, rows: list[Any]) -> list[dict[str, Any]]:
    seen: set[Any] = set()
    for number, one in enumerate(rows):
        where = f"{path}, image {one.get('id', number) if isinstance(one, dict) else number!r}"
        if not isinstance(one, dict) or not isinstance(one.get("id"), int | str):
            _fault(where, "it has no id")
        if one["id"] in seen:
            _fault(where, "the id occurs twice")
        seen.add(one["id"])
        name = one.get("file_name")
        if not isinstance(name, str) or not name or "\0" in name:
            _fault(where, "it has no file_name")
        one["file_name"] = name = name.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or (len(name) > 1 and name[1] == ":"):
            _fault(where, f"its file_name {name!r} leaves the folder")
        for side in ("height", "width"):
            value = one.get(side)
            if isinstance(value, float) and math.isfinite(value) and value == int(value):
                one[side] = value = int(value)
            if type(value) is not int or not 0 < value <= MOST_SIDE:
                _fault(where, f"its {side} is {value!r}")
    if not rows:
        _fault(str(path), "it lists no image")
    return rows


def _annotations(path: Path, rows: list[Any]) -> Iterator[dict[str, Any]]:
    for number, one in enumerate(rows):
        if not isinstance(one, dict):
            _fault(f"{path}, annotation number {number}", "it is not an object")
        if "segments_info" in one:
            _fault(str(path), "these are panoptic annotations, whose masks are PNG files")
        yield one


def _folder(path: Path, images: str | Path | None, names: list[str]) -> Path:
    """The folder that holds the images: the named one, or the first likely one that has any of the first files."""
    if images is not None:
        own = Path(images)
        return own if own.is_absolute() or own.is_dir() else path.parent / own
    here, above = path.parent, path.parent.parent
    # annotations/instances_val2017.json goes with val2017/ beside the folder of annotations.
    called = [path.stem, path.stem.rpartition("_")[2]]
    tried = [here, here / "images", above / "images", above]
    tried += [base / one for one in called for base in (here, above, here / "images", above / "images")]
    for folder in tried:
        if any((folder / name).is_file() for name in names[:20]):
            return folder
    raise InputError(
        f"{path}: the image {names[0]!r} is not beside it (looked in {', '.join(str(one) for one in tried[:4])}).",
        "Name the folder of images (data.images).",
    )
