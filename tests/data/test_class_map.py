"""Class maps: ids as published, fast translation, and what is said of values that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanlabel.data.class_map import (
    IGNORE,
    ClassMap,
    class_map,
    class_map_names,
    default_colours,
    plain_map,
    sixteen_to_nineteen,
)
from leanlabel.data.published_classes import voc_colour
from leanlabel.errors import InputError

CITY = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def test_values() -> None:
    every = np.arange(256, dtype=np.uint8)
    for name in ("cityscapes-19", "gta5-19", "synscapes-19"):
        city = class_map(name)
        found = city.translate(every, "a.png")
        assert [int(found[raw]) for raw in CITY] == list(range(19))
        assert int((found == IGNORE).sum()) == 256 - 19
    sixteen = class_map("cityscapes-16")
    raws = [7, 8, 11, 12, 13, 17, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33]
    assert sixteen.translate(np.array(raws, np.uint8), "a").tolist() == list(range(16))
    synthia = class_map("synthia-16")
    raws = [3, 4, 2, 21, 5, 7, 15, 9, 6, 1, 10, 17, 8, 19, 12, 11]
    assert synthia.translate(np.array(raws, np.uint16), "a").tolist() == list(range(16))
    assert synthia.translate(np.array([0, 16, 22], np.uint16), "a").tolist() == [255] * 3
    assert synthia.names == sixteen.names
    assert synthia.subsets["13"] == (0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    assert [synthia.names[k] for k in range(16) if k not in synthia.subsets["13"]] == [
        "wall",
        "fence",
        "pole",
    ]
    voc = class_map("voc-21")
    assert voc.colours[1:4] == ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert voc.colours[20] == (0, 64, 128)
    assert voc.ignored_colours == {(224, 224, 192)}
    assert voc.translate(np.array([0, 20, 255], np.uint8), "a").tolist() == [0, 20, 255]
    camvid = class_map("camvid-11")
    assert camvid.names[0] == "sky"
    assert camvid.names[10] == "bicyclist"
    assert camvid.translate(np.array([0, 10, 11], np.uint8), "a").tolist() == [0, 10, 255]


def test_values_sixteen_to_nineteen() -> None:
    expected = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]
    found = sixteen_to_nineteen(np.array([*range(16), 255], np.uint8))
    assert found.tolist() == [*expected, 255]
    names = class_map("cityscapes-19").names
    assert tuple(names[k] for k in expected) == class_map("cityscapes-16").names
    with pytest.raises(ValueError, match="0 to 15"):
        sixteen_to_nineteen(np.array([16], np.uint8))


def test_values_voc_colours() -> None:
    """The palette of VOC, by the loop of its development kit."""
    for index in range(256):
        red = green = blue = 0
        rest = index
        for bit in range(8):
            red |= (rest & 1) << (7 - bit)
            green |= (rest >> 1 & 1) << (7 - bit)
            blue |= (rest >> 2 & 1) << (7 - bit)
            rest >>= 3
        assert voc_colour(index) == (red, green, blue)


@given(st.dictionaries(st.integers(0, 65535), st.integers(0, 4), min_size=5, max_size=12), st.data())
def test_reference(ids: dict[int, int], data: st.DataObject) -> None:
    """The table translates as a plain loop does."""
    used = sorted(set(ids.values()))
    ids = {raw: used.index(label) for raw, label in ids.items()}
    own = plain_map([f"c{k}" for k in range(len(used))], ids=ids, ignored=(), unlisted="ignore")
    raw = data.draw(st.lists(st.one_of(st.sampled_from(sorted(ids)), st.integers(0, 65535)), max_size=30))
    found = own.translate(np.array(raw, np.uint16), "a.png")
    assert found.dtype == np.uint8
    assert found.tolist() == [ids.get(one, 255) for one in raw]


def test_dtypes() -> None:
    own = plain_map(["a", "b"])
    for kind in (np.uint8, np.uint16, np.int32, np.int64, bool):
        assert own.translate(np.array([[0, 1]], kind), "a").tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="integers"):
        own.translate(np.zeros(2), "a")
    with pytest.raises(InputError, match="values from -1 to 1"):
        own.translate(np.array([-1, 1]), "a")


def test_degenerate() -> None:
    own = plain_map(["only"])
    assert own.translate(np.zeros((0, 3), np.uint8), "a").shape == (0, 3)
    assert own.translate(np.full((2, 2), 255, np.uint8), "a").tolist() == [[255, 255]] * 2
    assert len(plain_map([str(k) for k in range(254)])) == 254
    colours = default_colours(254)
    assert len(set(colours)) == 254
    assert colours[:32] == default_colours(32)


def test_errors_values() -> None:
    own = plain_map(["a", "b", "c"])
    with pytest.raises(InputError) as told:
        own.translate(np.array([[0, 7, 7], [9, 1, 255]], np.uint8), "x/mask.png")
    assert told.value.message == (
        "x/mask.png: label values 7 (2 pixels), 9 (1 pixels) not in the class map own classes "
        "(it lists 0-2; ignored 255)."
    )
    assert "unlisted: ignore" in (told.value.suggestion or "")
    binary = plain_map(["back", "cell"], ignored=())
    with pytest.raises(InputError, match=r"looks like a binary mask written as 0/255; ids: \{0: 0, 255: 1\}"):
        binary.translate(np.array([0, 255], np.uint8), "m.png")
    with pytest.raises(InputError, match="All ids one too large: off by one"):
        own.translate(np.array([1, 2, 3, 255], np.uint8), "m.png")
    with pytest.raises(InputError, match="class map camvid-11") as told:
        class_map("camvid-11").translate(np.array([12, 0], np.uint8), "m.png")
    assert "off by one" not in str(told.value)


def test_values_doubt() -> None:
    """What a whole set of masks says, though the map lists every value."""
    two = plain_map(["back", "cell"])
    assert "0/255" in (two.doubt({0: 10, 255: 3}) or "")
    assert two.doubt({0: 10, 1: 1, 255: 3}) is None
    assert plain_map(["one"]).doubt({0: 10, 255: 3}) is None
    assert plain_map(["back", "cell"], ids={0: 0, 255: 1}).doubt({0: 10, 255: 3}) is None
    city = class_map("cityscapes-19")
    assert "train ids" in (city.doubt({0: 50, 1: 10, 13: 5, 255: 9}) or "")
    assert city.doubt({0: 5, 7: 50, 26: 10}) is None
    assert city.doubt({3: 5, 7: 50, 11: 10}) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plain_map([]), "0 classes"),
        (lambda: plain_map([str(k) for k in range(255)]), "255 classes"),
        (lambda: plain_map(["a", "a"]), "'a' occurs twice"),
        (lambda: plain_map(["a"], [(0, 0, 0), (1, 1, 1)]), "2 colours for 1"),
        (lambda: plain_map(["a"], [(0, 0, 256)]), "not a colour"),
        (lambda: plain_map(["a"], ids={70000: 0}), "raw id 70000"),
        (lambda: plain_map(["a"], ids={0: 1}), "class 0 has no raw id"),
        (lambda: plain_map(["a"], ids={0: 0, 1: 1}), "class 1 does not exist"),
        (lambda: plain_map(["a"], ignored=[0]), "listed as a class and as ignored"),
        (lambda: plain_map(["a", "b"], [(1, 1, 1)] * 2, by_colour=True), "share a colour"),
        (lambda: ClassMap("x", ("a",), ((0, 0, 0),), {0: 0}, subsets={"s": (1,)}), "subset names class 1"),
    ],
)
def test_errors(make: Callable[[], ClassMap], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_errors_names() -> None:
    with pytest.raises(InputError, match=r"no class map 'citiscapes-19'. Nearest: cityscapes-19;"):
        class_map("citiscapes-19")


def test_state() -> None:
    """Maps go through JSON and come back equal."""
    for name in class_map_names():
        own = class_map(name)
        again = ClassMap.from_dict(json.loads(json.dumps(own.as_dict())))
        assert again == own
        assert hash(again) == hash(own)
        assert np.array_equal(again.table, own.table)
        assert own.translate(np.array(own.raw_ids, np.uint16), "a").tolist() == list(range(len(own)))
    with pytest.raises(InputError, match="'colours' is missing"):
        ClassMap.from_dict({"name": "x", "names": ["a"]})
    with pytest.raises(InputError, match="stored class map"):
        ClassMap.from_dict({"name": "x", "names": ["a"], "colours": [[1, 2]], "ids": {}})
