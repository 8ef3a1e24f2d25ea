"""The page of segmentation data: complete, self-contained, escaped, and its pictures show what masks say."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leanlabel.data.class_map import plain_map
from leanlabel.data.dense import DenseImages, MaskArray
from leanlabel.data.dense_check import DenseFindings, check_dense
from leanlabel.data.dense_listing import DenseListing
from leanlabel.data.image_stores import FolderStore
from leanlabel.data.images import PixelArray
from leanlabel.report.data_page import WIDEST, data_page, draw_overlay, overlays, write_data_page

Image = pytest.importorskip("PIL.Image")
NAMES = ("field", "<b>road</b>", "car")
CLASSES = plain_map(NAMES, [(200, 0, 0), (0, 200, 0), (0, 0, 200)])


class Tags(HTMLParser):
    """Elements of a page in order, and whether they close as they opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def scene(count: int = 14, size: tuple[int, int] = (60, 90)) -> DenseImages:
    """Noise under masks of three bands."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, 3, *size)).astype(np.uint8))
    masks = torch.zeros((count, *size), dtype=torch.uint8)
    masks[:, 20:40], masks[:, 40:] = 1, 2
    masks[:, :5] = 255
    parts = {"train": torch.arange(count * 5 // 7), "val": torch.arange(count * 5 // 7, count)}
    return DenseImages(
        "set", PixelArray(pixels), MaskArray(masks), CLASSES, parts, [f"a&{k}" for k in range(count)]
    )


@pytest.fixture(scope="module")
def found() -> DenseFindings:
    return check_dense(scene())


def pixels_of(entry: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["image"]))).convert("RGB"))


def test_values(found: DenseFindings, tmp_path: Path) -> None:
    path = write_data_page(tmp_path / "page.html", "Data check of <i>set</i>", found)
    text = path.read_text(encoding="utf-8")
    tags = Tags(text)
    assert tags.open == []
    images = [attributes for name, attributes in tags.seen if name == "img"]
    assert len(images) == 12
    assert all(str(one["src"]).startswith("data:image/png;base64,") for one in images)
    assert "a&amp;0: 1 &lt;b&gt;road&lt;/b&gt;, 2 car, 0 field" in text
    assert "<b>road</b>" not in text
    assert "<i>set</i>" not in text
    assert "3 classes by pixels" in text
    assert len(re.findall('class="bar"', text)) == 6
    for part in ("train", "val"):
        assert f'<th scope="col" class="number">{part}</th>' in text
    assert "36.4 % · 10" in text  # car in train: 20 of 55 labelled rows
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)


def test_values_overlays(found: DenseFindings) -> None:
    drawn = overlays(found)
    assert len(drawn) == 12
    assert drawn[0]["classes"] == [1, 2, 0]  # 1 and 2 have as many pixels
    assert not drawn[0]["unlisted"]
    assert pixels_of(drawn[0]).shape == (60, 90, 3)


def test_values_draw() -> None:
    """Class colours are mixed half and half; edges are dark, numbers white, ignored pixels striped."""
    image = np.full((40, 40, 3), 100, np.uint8)
    labels = np.full((40, 40), 1, np.uint8)
    labels[:, 30:] = 255
    labels[:3, :3] = 254
    drawn = draw_overlay(image, labels, CLASSES)
    assert drawn[35, 5].tolist() == [50, 150, 50]
    assert drawn[1, 1].tolist() == [50, 50, 50]
    assert drawn[35, 30].max() < 70
    stripes = drawn[20, 32:].mean(1)
    assert set(stripes.tolist()) == {50.0, 177.0}
    assert (drawn[:, :29] > 230).all(-1).any()
    small = draw_overlay(image, np.where(np.indices((40, 40)).sum(0) % 2, 1, 0).astype(np.uint8), CLASSES)
    assert not (small > 230).all(-1).any()  # no room for a number


def test_values_large(tmp_path: Path) -> None:
    """Pictures of files, and of noise, are as small as they are said to be; 16-bit bands are shown, too."""
    rng = np.random.default_rng(1)
    names = ["0.png", "1.png"]
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(rng.integers(0, 256, (500, 700, 3)).astype(np.uint8)).save(tmp_path / "images" / "0.png")
    Image.fromarray(rng.integers(0, 65536, (700, 500)).astype(np.uint16)).save(tmp_path / "images" / "1.png")
    for name, shape in zip(names, ((500, 700), (700, 500)), strict=True):
        Image.fromarray(rng.integers(0, 5, shape).astype(np.uint8)).save(tmp_path / "masks" / name)
    stores = (FolderStore(str(tmp_path / kind), names) for kind in ("images", "masks"))
    found = check_dense(DenseListing("set", *stores, ids=names, classes=CLASSES))
    drawn = overlays(found)
    assert [max(pixels_of(one).shape[:2]) for one in drawn] == [WIDEST, WIDEST]
    assert pixels_of(drawn[1]).shape[0] == WIDEST
    assert drawn[0]["unlisted"]
    text = data_page("set", [], found.figures, drawn)
    assert text.count("<img") == 2
    assert "not in the class map" in text


def test_values_order(found: DenseFindings) -> None:
    """Errors come first, facts last."""
    rows = [
        {"severity": kind, "code": kind, "message": f"one {kind}", "count": 1}
        for kind in ("info", "warning", "error")
    ]
    text = data_page("set", rows, found.figures)
    places = [text.index(f'id="{anchor}"') for anchor in ("error", "warning", "classes", "info")]
    assert places == sorted(places)
    assert "errors of this data right before training" in text
    assert "read the warnings first" in data_page("set", rows[:2], found.figures)
    assert "Nothing found" in data_page("set", rows[:1], found.figures)


def test_degenerate() -> None:
    """No classes, no masks, no pictures, a forged picture: still a page."""
    assert Tags(data_page("x", [], {})).open == []
    data = scene(2)
    bare = check_dense(DenseImages("set", data.pixels, None, CLASSES))
    text = data_page("x", [], bare.figures, overlays(bare))
    assert "<img" not in text
    assert 'class="bar"' not in text
    forged = [{"name": "x", "image": '"><script>alert(1)</script>', "classes": [0]}]
    assert "<script" not in data_page("x", [], check_dense(data).figures, forged)
