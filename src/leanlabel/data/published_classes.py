"""Classes, label ids and colours of public segmentation sets, as their authors published them."""

from __future__ import annotations

from typing import Any

import numpy as np

Colour = tuple[int, int, int]
"""Red, green and blue, 0 .. 255."""

_CITY: tuple[tuple[str, int, Colour], ...] = (
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)), ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)), ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)), ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
)  # fmt: skip
"""Name, raw id and colour of the 19 classes of Cityscapes."""
SIXTEEN_OF_NINETEEN = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
"""The 16 classes by their number among the 19; terrain, truck and train are missing."""
_SYNTHIA = (3, 4, 2, 21, 5, 7, 15, 9, 6, 1, 10, 17, 8, 19, 12, 11)
"""Raw ids of SYNTHIA, of the 16 classes in order."""
_SYNTHIA_REST = frozenset({0, 13, 14, 16, 18, 20, 22})
"""Raw ids of SYNTHIA that are none of the 16: void, parking slot, road work, terrain, truck, train, lane marking."""
_THIRTEEN = {"13": tuple(k for k in range(16) if k not in (3, 4, 5))}
"""The classes of mIoU*: without wall, fence and pole."""
_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_CAMVID: tuple[tuple[str, Colour], ...] = (
    ("sky", (128, 128, 128)), ("building", (128, 0, 0)), ("pole", (192, 192, 128)), ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)), ("tree", (128, 128, 0)), ("sign_symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)), ("car", (64, 0, 128)), ("pedestrian", (64, 64, 0)), ("bicyclist", (0, 128, 192)),
)  # fmt: skip
_NINETEEN_OF = np.full(256, 255, dtype=np.uint8)
_NINETEEN_OF[:16] = SIXTEEN_OF_NINETEEN


def sixteen_to_nineteen(classes: np.ndarray) -> np.ndarray:
    """Turn the 16 classes that Cityscapes and SYNTHIA share into the numbers that they have among the 19.

    Args:
        classes: any shape, uint8, 0 .. 15 or 255.

    Returns:
        The same shape, uint8; 255 stays.

    Raises:
        ValueError: other values.

    >>> sixteen_to_nineteen(np.array([8, 9, 13, 15, 255], dtype=np.uint8)).tolist()
    [8, 10, 15, 18, 255]
    """
    if classes.dtype != np.uint8 or bool(((classes > 15) & (classes != 255)).any()):
        raise ValueError("classes must be uint8, 0 to 15 or 255")
    return _NINETEEN_OF[classes]


def voc_colour(index: int) -> Colour:
    """Colour that PASCAL VOC gives an index: its bits dealt to red, green and blue from the highest down.

    >>> voc_colour(1), voc_colour(15), voc_colour(255)
    ((128, 0, 0), (192, 128, 128), (224, 224, 192))
    """
    parts = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            parts[channel] |= (index >> channel & 1) << shift
        index >>= 3
    return parts[0], parts[1], parts[2]


def _street(
    name: str, classes: tuple[int, ...], ids: dict[int, int], ignored: frozenset[int], unlisted: str
) -> dict[str, Any]:
    rows = [_CITY[k] for k in classes]
    return {
        "name": name,
        "names": tuple(own for own, _, _ in rows),
        "colours": tuple(colour for _, _, colour in rows),
        "ids": ids,
        "ignored": ignored,
        "unlisted": unlisted,
        "subsets": _THIRTEEN if len(rows) == 16 else {},
    }


def _raw_city(name: str, classes: tuple[int, ...]) -> dict[str, Any]:
    ids = {_CITY[k][1]: label for label, k in enumerate(classes)}
    return _street(name, classes, ids, frozenset(), "ignore")


_ALL = tuple(range(19))
_SYNTHIA_IDS = {raw: label for label, raw in enumerate(_SYNTHIA)}
_maps: tuple[dict[str, Any], ...] = (
    _raw_city("cityscapes-19", _ALL),
    _raw_city("cityscapes-16", SIXTEEN_OF_NINETEEN),
    _street("cityscapes-19-train-ids", _ALL, {k: k for k in _ALL}, frozenset({255}), "error"),
    _raw_city("gta5-19", _ALL),
    _raw_city("synscapes-19", _ALL),
    _street("synthia-16", SIXTEEN_OF_NINETEEN, _SYNTHIA_IDS, _SYNTHIA_REST, "error"),
    {
        "name": "voc-21",
        "names": _VOC,
        "colours": tuple(voc_colour(k) for k in range(21)),
        "ids": {k: k for k in range(21)},
        "ignored": frozenset({255}),
        "ignored_colours": frozenset({voc_colour(255)}),
    },
    {
        "name": "camvid-11",
        "names": tuple(name for name, _ in _CAMVID),
        "colours": tuple(colour for _, colour in _CAMVID),
        "ids": {k: k for k in range(11)},
        "ignored": frozenset({11}),
        "ignored_colours": frozenset({(0, 0, 0)}),
    },
)
NAMED: dict[str, dict[str, Any]] = {one["name"]: one for one in _maps}
"""Arguments of :class:`leanlabel.data.class_map.ClassMap`, by name of the map."""
