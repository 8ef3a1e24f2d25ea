"""Pictures of an adaptation: which images are shown, and that they are what was asked for."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlabel.data.class_map import plain_map
from leanlabel.evaluation.adaptation_pictures import Shown2, adaptation_figure, changed, evenly_spread
from leanlabel.evaluation.pictures import palette_picture, png

CLASSES = plain_map(["road", "car", "pole"], ((0, 0, 255), (255, 128, 0), (10, 20, 30)))
IMAGE = np.full((3, 6, 8), 90, np.uint8)
LABEL = np.array([[0, 1], [255, 2]], np.uint8).repeat(3, 0).repeat(4, 1)
SCORES = [(0.5, 0.4), (0.1, 0.9), (0.3, 0.4), (0.2, 0.25)]


def figure(**more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "started": "weights after stage source",
        "before": [[3, 1, 0], [0, 4, 0], [0, 0, 0]],
        "after": [[4, 0, 0], [2, 2, 0], [0, 0, 0]],
        "names": list("abcd"),
        "scores": SCORES,
        "show": lambda place: Shown2(IMAGE, LABEL, np.full_like(LABEL, place % 3), LABEL),
    }
    return adaptation_figure("test", CLASSES, **(given | more))


def test_values() -> None:
    """Classes with both IoUs; the label of the image painted in their colours; only shown images are asked for."""
    asked: list[int] = []

    def show(place: int) -> Shown2:
        asked.append(place)
        return Shown2(IMAGE, LABEL, np.full_like(LABEL, place % 3), LABEL)

    found = figure(
        show=show,
        most=3,
        kept=[0.5, None, 1.0],
        thresholds=[0.9, 0.0, 0.3],
        source_share=[0.5, 0.25, 0.25],
        predicted_share=[1.0, 0.0, float("nan")],
    )
    assert asked == [1, 0, 2]
    assert (found["part"], found["before"]) == ("test", "weights after stage source")
    assert found["classes"][0] == {
        "name": "road",
        "colour": [0, 0, 255],
        "before": 0.75,
        "after": 0.666667,
        "kept": 0.5,
        "threshold": 0.9,
        "source_share": 0.5,
        "predicted_share": 1.0,
    }
    assert [found["classes"][2][key] for key in ("before", "after", "kept", "predicted_share")] == [
        None,
        None,
        1.0,
        None,
    ]
    first = found["examples"][0]
    assert (first["id"], first["kind"], first["miou_before"], first["miou_after"]) == (
        "b",
        "gained",
        0.1,
        0.9,
    )
    assert first["label"] == first["after"] == png(palette_picture(LABEL, CLASSES.colours))
    assert first["before"] == png(palette_picture(np.ones_like(LABEL), CLASSES.colours))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_values_kinds() -> None:
    """Three kinds in turn; the words follow the sign of the change."""
    assert changed(SCORES) == [("gained", 1), ("lost", 0), ("typical", 2), ("least gained", 3)]
    assert changed([(0.5, 0.4), (0.5, 0.3)]) == [("least lost", 0), ("lost", 1)]
    assert changed([(0.5, 0.6), (0.5, 0.7)]) == [("gained", 1), ("least gained", 0)]
    assert changed([(0.5, 0.5)]) == [("least lost", 0)]
    many = [(0.0, gain / 20) for gain in range(11)]
    assert changed(many) == [
        ("gained", 10),
        ("least gained", 0),
        ("typical", 5),
        ("gained", 9),
        ("least gained", 1),
        ("typical", 6),
    ]


def test_values_size() -> None:
    """Pictures of one image have one size, the longer side at most the one that was asked for."""
    large = Shown2(*(np.zeros((*one, 60, 80), np.uint8) for one in ((3,), (), (), ())))
    one = figure(show=lambda _: large, side=40, most=1)["examples"][0]
    for key in ("image", "label", "before", "after"):
        assert struct.unpack(">II", base64.b64decode(one[key])[16:24]) == (40, 30)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12), st.integers(1, 8))
def test_reference(scores: list[tuple[float, float]], most: int) -> None:
    """The first is the largest gain and the second the smallest; each image once, as many as there are."""
    found = changed(scores, most)
    gains = [after - before for before, after in scores]
    places = [place for _, place in found]
    assert len(places) == len(set(places)) == min(most, len(scores))
    assert gains[places[0]] == max(gains)
    if len(places) > 1:
        assert gains[places[1]] == min(gains)
    for kind, place in found:
        if kind in ("gained", "lost"):
            assert gains[place] > 0 if kind == "gained" else gains[place] < 0


def test_degenerate() -> None:
    """Without labels, with labels of no pixel, and with no image at all."""
    bare = figure(
        before=None,
        after=None,
        scores=None,
        names=[str(k) for k in range(11)],
        show=lambda place: Shown2(IMAGE, None, LABEL, LABEL),
        most=3,
    )
    assert [one["id"] for one in bare["examples"]] == ["0", "5", "10"]
    assert {one["kind"] for one in bare["examples"]} == {"spread"}
    assert {one["label"] for one in bare["examples"]} == {None}
    assert {one["miou_after"] for one in bare["examples"]} == {None}
    assert {one["before"] for one in bare["classes"]} == {None}
    unscored = figure(scores=[(None, 0.5)] * 4)
    assert [one["kind"] for one in unscored["examples"]] == ["spread"] * 4
    assert figure(names=[], scores=[])["examples"] == []
    assert changed([(float("nan"), 0.5), (None, None)]) == []
    assert evenly_spread(0) == []


def test_errors() -> None:
    for more, message in (
        ({"scores": SCORES[:2]}, "2 scores for 4 images"),
        ({"before": [[1, 0], [0, 1]]}, r"before must be \(3, 3\)"),
        ({"kept": [0.5]}, "kept has 1 values for 3 classes"),
        ({"show": lambda _: Shown2(IMAGE, LABEL, LABEL.astype(np.int64), LABEL)}, "before must be"),
    ):
        with pytest.raises(ValueError, match=message):
            figure(**more)
