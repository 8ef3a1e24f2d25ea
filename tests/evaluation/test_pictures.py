"""Pictures of segmentations: colours, overlays, errors, and which images a figure shows."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlabel.data.class_map import plain_map
from leanlabel.evaluation.pictures import (
    WRONG,
    ImageScore,
    Shown,
    error_picture,
    grey_picture,
    image_score,
    overlay,
    palette_picture,
    png,
    rgb,
    segmentation_figure,
    small_map,
    table_iou,
    telling,
    thumbnail,
)

COLOURS = ((0, 0, 255), (255, 128, 0), (10, 20, 30))
CLASSES = plain_map(["road", "car", "pole"], COLOURS)


def decoded(held: str) -> np.ndarray:
    """A PNG as this library writes it (filter 2, RGB), read by hand."""
    data = base64.b64decode(held)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    at, packed = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        packed += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + 3 * width)
    return np.cumsum(rows[:, 1:].astype(np.int64), 0).astype(np.uint8).reshape(height, width, 3)


def masks(height: int = 12, width: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 3, (height, width)).astype(np.uint8)
    label[0] = 255
    return draw.integers(0, 3, (height, width)).astype(np.uint8), label


def grey(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array([0.299, 0.587, 0.114])


def test_values() -> None:
    label = np.array([[0, 1], [2, 255]], np.uint8)
    painted = palette_picture(label, COLOURS)
    assert [tuple(painted[0, 0]), tuple(painted[0, 1]), tuple(painted[1, 0])] == list(COLOURS)
    assert len(set(painted[1, 1].tolist())) == 1  # grey
    assert np.array_equal(decoded(png(painted)), painted)
    image = np.full((2, 2, 3), 100, np.uint8)
    mixed = overlay(image, label, COLOURS, alpha=0.25)
    assert mixed.tolist()[0] == [[75, 75, 139], [139, 107, 75]]
    assert mixed[1, 1].tolist() == [100, 100, 100]
    assert np.array_equal(overlay(image, label, COLOURS, alpha=0)[0], image[0])
    assert np.array_equal(overlay(image, label, COLOURS, alpha=1)[0], painted[0])


def test_values_of_errors_read_without_colour() -> None:
    """Whatever is wrong is darker than whatever is right or not scored, over any image."""
    prediction, label = masks()
    wrong, scored = (prediction != label) & (label != 255), label != 255
    for image in (None, np.zeros((12, 16, 3), np.uint8), np.full((12, 16, 3), 255, np.uint8)):
        picture = error_picture(prediction, label, image)
        assert np.array_equal((picture == WRONG).all(2), wrong)
        level = grey(picture)
        assert level[wrong].max() + 40 < level[~wrong].min()
        assert level[scored & ~wrong].min() >= 200
        assert len(np.unique(level[~scored].round())) == 2  # hatched


def test_values_of_images_of_other_bands() -> None:
    many = torch.arange(5 * 2 * 3, dtype=torch.uint8).reshape(5, 2, 3)
    assert np.array_equal(rgb(many), many[:3].permute(1, 2, 0).numpy())
    one = torch.tensor([[[0.0, 0.5, 2.0, float("nan")]]])
    assert rgb(one)[0, :, 1].tolist() == [0, 128, 255, 0]


def test_values_of_choice() -> None:
    """Worst from below, best from above, typical around the median, none twice."""
    scores = [ImageScore(str(k), (k * 7 % 20) / 20, 0.5) for k in range(20)]
    chosen = telling(scores)
    by_kind = {
        kind: [scores[place].miou for own, place in chosen if own == kind]
        for kind in ("worst", "typical", "best")
    }
    assert by_kind == {"worst": [0.0, 0.05, 0.1], "typical": [0.45, 0.5], "best": [0.85, 0.9, 0.95]}
    assert [kind for kind, _ in telling(scores[:1])] == ["typical"]
    assert sorted(kind for kind, _ in telling(scores[:3])) == ["best", "typical", "worst"]
    assert telling([ImageScore("a", None, None), ImageScore("b", float("nan"), 1.0)]) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=30))
def test_values_of_any_choice(values: list[float | None]) -> None:
    scores = [ImageScore(str(k), value, value) for k, value in enumerate(values)]
    chosen = telling(scores)
    places = [place for _, place in chosen]
    assert len(set(places)) == len(places) == min(8, sum(value is not None for value in values))
    groups: dict[str, list[Any]] = {"worst": [], "typical": [], "best": []}
    for kind, place in chosen:
        groups[kind].append(scores[place].miou)
    ordered = groups["worst"] + groups["typical"] + groups["best"]
    assert ordered == sorted(ordered)
    everything, low, high = (
        sorted(v for v in values if v is not None),
        len(groups["worst"]),
        len(groups["best"]),
    )
    assert groups["worst"] == everything[:low]
    assert groups["best"] == everything[len(everything) - high :]


def test_values_of_figure() -> None:
    """Numbers by hand, pictures that decode to what they show, and JSON that holds no NaN."""
    table = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])
    asked = []

    def show(place: int) -> Shown:
        asked.append(place)
        prediction, label = masks(seed=place)
        image = torch.full((3, 12, 16), place, dtype=torch.uint8)
        return Shown(
            image, label, torch.from_numpy(prediction), np.full((12, 16), 0.5), np.full((12, 16), 3.0)
        )

    scores = [ImageScore(f"{k}.png", k / 20, 0.5) for k in range(20)]
    figure = segmentation_figure(
        "val",
        CLASSES,
        scores={"miou": 0.7, "boundary_iou": float("nan")},
        confusion=torch.from_numpy(table),
        images=scores,
        show=show,
        untrained=table.T,
        boundary=[0.5, None, float("nan")],
    )
    json.loads(json.dumps(figure, allow_nan=False))
    assert figure["scores"] == {"miou": 0.7, "boundary_iou": None}
    road, car, pole = figure["classes"]
    assert (road["iou"], road["share"], road["predicted_share"]) == (
        0.75,
        pytest.approx(2 / 3, abs=1e-6),
        0.5,
    )
    assert (car["iou"], car["untrained"], car["boundary_iou"]) == (pytest.approx(4 / 6, abs=1e-6),) * 2 + (
        None,
    )
    assert (pole["iou"], pole["share"], pole["colour"]) == (None, 0.0, [10, 20, 30])
    assert figure["confusion"] == table.tolist()
    assert sorted(asked) == [0, 1, 2, 9, 10, 17, 18, 19]  # only what is shown was asked for
    first = figure["examples"][0]
    assert (first["id"], first["kind"], first["miou"]) == ("0.png", "worst", 0.0)
    prediction, label = masks(seed=0)
    assert np.array_equal(decoded(first["prediction"]), palette_picture(prediction, COLOURS))
    assert np.array_equal(decoded(first["label"]), palette_picture(label, COLOURS))
    assert decoded(first["confidence"])[0, 0, 0] == 128
    assert decoded(first["weight"]).min() == 255


def test_values_of_thumbnails() -> None:
    """Never more than the wanted side; masks only have classes that were there."""
    image = np.random.default_rng(0).integers(0, 255, (300, 1000, 3)).astype(np.uint8)
    small = thumbnail(image, 240)
    assert small.shape == (72, 240, 3)
    label = np.kron(np.array([[0, 2]], np.uint8), np.ones((300, 500), np.uint8))
    assert np.array_equal(small_map(label, 72, 240), np.kron([[0, 2]], np.ones((72, 120))))
    assert np.array_equal(small_map(label, 300, 1000), label)
    scores = [ImageScore("a", 0.5, 0.5)]
    shown = Shown(image.transpose(2, 0, 1), label, label)
    figure = segmentation_figure(
        "val", CLASSES, scores={}, confusion=np.eye(3, dtype=int), images=scores, show=lambda _: shown
    )
    assert decoded(figure["examples"][0]["error"]).shape == (72, 240, 3)
    assert "confidence" not in figure["examples"][0]


def test_reference_of_png() -> None:
    module = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    assert np.array_equal(np.array(module.open(io.BytesIO(base64.b64decode(png(picture))))), picture)


def test_reference_of_scores() -> None:
    """Naive loops over classes."""
    prediction, label = masks(40, 50)
    kept = label != 255
    values = [
        ((prediction == c) & (label == c))[kept].sum() / ((prediction == c) | (label == c))[kept].sum()
        for c in range(3)
    ]
    found = image_score("a", prediction, label, 4)
    assert found.miou == pytest.approx(np.mean(values), rel=1e-12)
    assert found.accuracy == pytest.approx((prediction == label)[kept].mean(), rel=1e-12)
    table = np.array([[((label == a) & (prediction == b)).sum() for b in range(4)] for a in range(4)])
    assert table_iou(table) == [*(pytest.approx(v, rel=1e-12) for v in values), None]


def test_reference_of_overlay_in_blocks() -> None:
    """More pixels than one block holds."""
    draw = np.random.default_rng(1)
    image = draw.integers(0, 255, (700, 2000, 3)).astype(np.uint8)
    label = draw.integers(0, 3, (700, 2000)).astype(np.uint8)
    label[650] = 255
    expected = np.floor(0.5 * image + 0.5 * np.array(COLOURS)[np.minimum(label, 2)] + 0.5)
    expected[650] = image[650]
    assert np.array_equal(overlay(image, label, COLOURS), expected)


def test_degenerate() -> None:
    nothing = np.full((3, 4), 255, np.uint8)
    found = np.zeros((3, 4), np.uint8)
    assert image_score("a", found, nothing, 2) == ImageScore("a", None, None)
    assert not (error_picture(found, nothing) == WRONG).all(2).any()
    assert palette_picture(np.zeros((1, 1), np.uint8), COLOURS).shape == (1, 1, 3)
    assert grey_picture(np.array([[np.nan, np.inf, 0.5]])).tolist() == [[[0] * 3, [0] * 3, [128] * 3]]
    empty = segmentation_figure(
        "val",
        CLASSES,
        scores={},
        confusion=np.zeros((3, 3), int),
        images=[],
        show=lambda _: pytest.fail("nothing is to be shown"),
    )
    assert empty["examples"] == []
    assert [one["iou"] for one in empty["classes"]] == [None] * 3


def test_errors() -> None:
    mask, image = np.zeros((2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match=r"values \[7\] are none of 3 classes"):
        palette_picture(mask + np.uint8(7), COLOURS)
    with pytest.raises(ValueError, match=r"classes must be \(h, w\) uint8, got \(2, 3\) int64"):
        palette_picture(mask.astype(np.int64), COLOURS)
    with pytest.raises(ValueError, match=r"classes is \(2, 3\), expected \(3, 2\)"):
        overlay(image.transpose(1, 0, 2), mask, COLOURS)
    with pytest.raises(ValueError, match="alpha must lie in"):
        overlay(image, mask, COLOURS, alpha=1.5)
    with pytest.raises(ValueError, match="prediction is"):
        error_picture(mask.T, mask)
    with pytest.raises(ValueError, match="differ in size"):
        error_picture(mask, mask, image.transpose(1, 0, 2))
    with pytest.raises(ValueError, match=r"a picture must be \(h, w, 3\) uint8"):
        png(image.astype(np.float32))
    with pytest.raises(ValueError, match=r"image must be \(C, h, w\)"):
        rgb(mask)
    with pytest.raises(ValueError, match="a: class 5, there are 3"):
        image_score("a", mask + np.uint8(5), mask, 3)
    with pytest.raises(ValueError, match=r"confusion must be \(3, 3\)"):
        segmentation_figure(
            "val", CLASSES, scores={}, confusion=np.eye(2), images=[], show=lambda _: Shown(image, mask, mask)
        )
