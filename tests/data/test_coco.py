"""Objects of COCO files come out as masks: polygons and codes against loops, order, and what is wrong by its id."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanlabel.data.class_map import plain_map
from leanlabel.data.coco import CocoMasks, is_coco, read_coco
from leanlabel.data.coco_shapes import decode_runs, polygon_mask
from leanlabel.errors import InputError

# Two images of 6 x 5 (width x height); the second has no object.
SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]
CONTENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 6, "height": 5},
        {"id": 9, "file_name": "deep/b.png", "width": 6, "height": 5},
    ],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "segmentation": [SQUARE], "iscrowd": 0}],
    "categories": [{"id": 8, "name": "tree"}, {"id": 3, "name": "car"}],
}


def written(folder: Path, content: Any = CONTENT, name: str = "marks.json") -> Path:
    """The JSON file with its (empty) image files."""
    folder.mkdir(parents=True, exist_ok=True)
    for place in ("a.png", "deep/b.png"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_bytes(b"")
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder / name


def changed(path: str, value: Any) -> dict[str, Any]:
    """CONTENT with another value at a place such as annotations/0/id; ... takes it away."""
    content = copy.deepcopy(CONTENT)
    *places, last = [int(one) if one.isdigit() else one for one in path.split("/")]
    inner: Any = content
    for one in places:
        inner = inner[one]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return content


def masks_of(path: Path) -> CocoMasks:
    masks = read_coco(path).masks
    assert isinstance(masks, CocoMasks)
    return masks


def spelled(mask: np.ndarray) -> tuple[list[int], str]:
    """Run lengths of a mask, and the same compressed, bit by bit."""
    flat = mask.T.reshape(-1).tolist()
    lengths, last = [0], False
    for value in flat:
        if bool(value) != last:
            lengths.append(0)
            last = bool(value)
        lengths[-1] += 1
    text = ""
    for k, length in enumerate(lengths):
        value = length - (lengths[k - 2] if k > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return lengths, text


def inside(polygon: list[float], height: int, width: int) -> np.ndarray:
    """Even-odd by a ray upwards from every pixel centre."""
    corners = list(zip(polygon[0::2], polygon[1::2]))
    mask = np.zeros((height, width), dtype=bool)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5, row + 0.5
            for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1]):
                if min(x1, x2) < x <= max(x1, x2):
                    mask[row, column] ^= y1 + (y2 - y1) * (x - x1) / (x2 - x1) <= y
    return mask


def test_values(tmp_path: Path) -> None:
    listing = read_coco(written(tmp_path))
    assert listing.name == "marks"
    assert listing.ids == ["a.png", "deep/b.png"]
    assert listing.images.where(1) == str(tmp_path / "deep" / "b.png")
    assert listing.classes is not None
    assert listing.classes.names == ("background", "car", "tree")
    assert dict(listing.classes.ids) == {0: 0, 3: 1, 8: 2}
    assert listing.faults == []
    masks = masks_of(tmp_path / "marks.json")
    expected = np.zeros((5, 6), np.uint8)
    expected[1:4, 1:4] = 1
    assert masks[0].tolist() == expected.tolist()
    assert masks[1].tolist() == np.zeros((5, 6)).tolist()
    assert masks.shape == (5, 6)
    both = masks.take([1, 0]).read([1, 0])
    assert isinstance(both, torch.Tensor)
    assert both.tolist() == [expected.tolist(), masks[1].tolist()]
    assert is_coco(tmp_path / "marks.json")
    assert not is_coco(written(tmp_path, "{}", "other.json"))


def test_values_runs() -> None:
    mask = np.array([[0, 1, 1], [1, 1, 0]], dtype=bool)
    lengths, text = spelled(mask)
    assert lengths == [1, 4, 1]
    assert decode_runs(lengths, 2, 3).tolist() == mask.tolist()
    assert decode_runs(text, 2, 3).tolist() == mask.tolist()
    # Starts with a one; a length above 31 takes two characters.
    assert decode_runs([0, 40], 5, 8).all()
    assert decode_runs("0X1", 5, 8).all()


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_reference_runs(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    lengths, text = spelled(mask)
    assert np.array_equal(decode_runs(lengths, height, width), mask)
    assert np.array_equal(decode_runs(text, height, width), mask)


@given(st.lists(st.tuples(st.floats(-9, 19), st.floats(-9, 19)), min_size=3, max_size=9))
def test_reference(corners: list[tuple[float, float]]) -> None:
    polygon = [value for corner in corners for value in corner]
    assert np.array_equal(polygon_mask(polygon, 9, 11), inside(polygon, 9, 11))


def test_values_polygons() -> None:
    """A triangle covers half of its box; a hole that crosses itself is open; neighbours do not overlap."""
    assert polygon_mask([0, 0, 100, 0, 0, 100], 100, 100).sum() == pytest.approx(5000, abs=51)
    star = [50 + 40 * math.sin(k * 4 * math.pi / 5) for k in range(5)]
    polygon = [v for k, x in enumerate(star) for v in (x, 50 - 40 * math.cos(k * 4 * math.pi / 5))]
    assert not polygon_mask(polygon, 100, 100)[50, 50]
    left, right = (
        polygon_mask([0, 0, 3.3, 0, 5.1, 9, 0, 9], 9, 9),
        polygon_mask([3.3, 0, 9, 0, 9, 9, 5.1, 9], 9, 9),
    )
    assert (left ^ right).all()
    assert polygon_mask([-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12], 4, 4).all()


def test_values_order(tmp_path: Path) -> None:
    """Small objects lie over large ones whatever their order; crowds lie below all."""
    whole, content = [0, 0, 6, 0, 6, 5, 0, 5], copy.deepcopy(CONTENT)
    crowd = np.zeros((5, 6), dtype=bool)
    crowd[0] = True
    content["annotations"] = [
        {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [SQUARE]},
        {"id": 2, "image_id": 7, "category_id": 8, "segmentation": [whole]},
    ]
    expected = np.full((5, 6), 2, np.uint8)
    expected[1:4, 1:4] = 1
    assert masks_of(written(tmp_path, content))[0].tolist() == expected.tolist()
    content["annotations"].reverse()
    assert masks_of(written(tmp_path, content))[0].tolist() == expected.tolist()
    for counts in spelled(crowd):
        row = {"id": 3, "image_id": 7, "category_id": 3, "iscrowd": 1}
        row["segmentation"] = {"counts": counts, "size": [5, 6]}
        crowded = {**content, "annotations": [*content["annotations"], row]}
        assert masks_of(written(tmp_path, crowded))[0].tolist() == expected.tolist()
        crowded = {**content, "annotations": [row]}
        assert masks_of(written(tmp_path, crowded))[0].tolist() == crowd.astype(int).tolist()


def test_values_classes(tmp_path: Path) -> None:
    """Ids from 0, a category called background, and a map of one's own."""
    content = changed("categories", [{"id": 0, "name": "tree"}, {"id": 3, "name": "car"}])
    assert read_coco(written(tmp_path, content)).classes.names == ("background", "tree", "car")  # type: ignore[union-attr]
    assert int(masks_of(tmp_path / "marks.json")[0].max()) == 2
    content = changed("categories", [{"id": 3, "name": "car"}, {"id": 5, "name": "Background"}])
    assert dict(read_coco(written(tmp_path, content)).classes.ids) == {3: 1, 5: 0}  # type: ignore[union-attr]
    own = plain_map(["vehicle"], ids={3: 0})
    masks = read_coco(written(tmp_path), classes=own).masks
    assert isinstance(masks, CocoMasks)
    assert sorted(set(masks[0].flatten().tolist())) == [0, 255]
    with pytest.raises(InputError, match="annotation 1: the class map own classes does not list category 3"):
        read_coco(written(tmp_path), classes=plain_map(["plant"], ids={8: 0}))


def test_values_places(tmp_path: Path) -> None:
    """Images are found beside the file, in folders that are called like it, or where they are said to be."""
    for place in ("images", "val2017", "far/away"):
        written(tmp_path / place)
    (tmp_path / "annotations").mkdir()
    for name, given_, place in (
        ("annotations/instances_val2017.json", None, "images"),
        ("annotations/b.json", tmp_path / "far" / "away", "far/away"),
        ("c.json", "val2017", "val2017"),
    ):
        path = tmp_path / name
        path.write_text(json.dumps(CONTENT))
        assert read_coco(path, given_).images.where(0) == str(tmp_path / place / "a.png")
    (tmp_path / "images" / "deep" / "b.png").unlink()
    faults = read_coco(tmp_path / "annotations" / "instances_val2017.json").faults
    assert [(one.code, one.row) for one in faults] == [("missing_file", 1)]
    assert "b.png" in faults[0].message


def test_degenerate(tmp_path: Path) -> None:
    listing = read_coco(written(tmp_path, changed("annotations", [])))
    assert listing.facts["objects"] == 0
    assert masks_of(tmp_path / "marks.json").read([0, 1]).max() == 0  # type: ignore[union-attr]
    boxes = copy.deepcopy(CONTENT)
    boxes["annotations"].append({"id": 2, "image_id": 7, "category_id": 3, "segmentation": []})
    assert read_coco(written(tmp_path, boxes)).facts["annotations_without_shape"] == 1
    assert masks_of(tmp_path / "marks.json").take([]).read([]).shape == (0, 0, 0)  # type: ignore[union-attr]
    assert polygon_mask([0.6, 0, 0.9, 0, 0.9, 5], 5, 5).sum() == 0


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is not complete JSON"),
        ('{"images": [', "is not complete JSON"),
        ("[" * 100_000, "is not complete JSON"),
        ("[]", "'images' is missing"),
        (changed("categories", ...), "'categories' is missing"),
        (changed("annotations/0/image_id", 8), "annotation 1: no image has the id 8"),
        (changed("annotations/0/category_id", 4), "annotation 1: no category has the id 4. Known ids: 3, 8"),
        (changed("annotations/0/segmentation", "abc"), "annotation 1: its segmentation is neither"),
        (changed("annotations/0/segmentation", ...), "none of 1 annotations has a segmentation"),
        (changed("annotations/0/segments_info", []), "panoptic"),
        (changed("annotations/0", 5), "annotation number 0"),
        (changed("images", []), "lists no image"),
        (changed("images/1/id", 7), "image 7: the id occurs twice"),
        (changed("images/0/height", ...), "image 7: its height is None"),
        (changed("images/0/width", -3), "image 7: its width is -3"),
        (changed("images/0/file_name", "../a.png"), "image 7: its file_name '../a.png' leaves the folder"),
        (changed("images/0/file_name", "C:/a.png"), "leaves the folder"),
        (changed("images/0/file_name", 3), "image 7: it has no file_name"),
        (changed("categories/0/name", "car"), "two categories are called 'car'"),
        (changed("categories/0/id", 3), "the id 3 occurs twice"),
        (changed("categories/0/id", "8"), "category 0: it has no integer id"),
        (changed("categories/0/id", 70000), "category id 70000 is not in 0 to 65535"),
    ],
)
def test_errors(content: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text) as caught:
        read_coco(written(tmp_path, content))
    assert "marks.json" in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ({"counts": [3, 4], "size": [5, 6]}, "its runs cover 7 pixels, the image has 5 x 6 = 30"),
        ({"counts": [30], "size": [6, 5]}, r"its code is of \[6, 5\] pixels"),
        ({"counts": [31, -1], "size": [5, 6]}, "not an integer >= 0"),
        ({"counts": "0~", "size": [5, 6]}, "damaged"),
        ({"counts": "0o", "size": [5, 6]}, "cut short"),
        ({"counts": "o" * 99, "size": [5, 6]}, "damaged"),
        ({"size": [5, 6]}, "counts"),
        ([[1, 2, 3, 4]], "three or more corners"),
        ([[1, 2, 3, 4, 5]], "three or more corners"),
        ([[1, 2, 3, 4, 5, math.nan]], "not finite"),
        ([["a", 2, 3, 4, 5, 6]], "could not convert"),
    ],
)
def test_errors_shapes(shape: Any, text: str, tmp_path: Path) -> None:
    masks = masks_of(written(tmp_path, changed("annotations/0/segmentation", shape)))
    with pytest.raises(InputError, match=text) as caught:
        masks[0]
    assert "marks.json, annotation 1: " in str(caught.value)


def test_errors_no_images(tmp_path: Path) -> None:
    (tmp_path / "marks.json").write_text(json.dumps(CONTENT))
    with pytest.raises(InputError, match=r"the image 'a.png' is not beside it.*data.images"):
        read_coco(tmp_path / "marks.json")
