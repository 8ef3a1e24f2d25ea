"""Pictures of what is pasted and of images without style: the line around a region, the data that a page reads."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlabel.data.class_map import plain_map
from leanlabel.evaluation.transfer_pictures import (
    Pasted,
    Unstyled,
    outlined,
    pasted_only,
    transfer_figure,
    zero_style_figure,
)

CLASSES = plain_map(("road", "car", "sign"))


def mix(side: int = 12, region: Any = None) -> Pasted:
    """A car of 4 x 4 pixels pasted into a road; one row without a label."""
    label = np.zeros((side, side), np.uint8)
    label[4:8, 4:8] = 1
    label[-1] = 255
    return Pasted("a.png", torch.full((3, side, side), 0.5), label, label == 1 if region is None else region)


def size_of(held: str) -> tuple[int, int]:
    head = base64.b64decode(held)
    assert head[:4] == b"\x89PNG"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_values_outline() -> None:
    """White on the region's own edge, black just outside, nothing in its middle nor far away."""
    region = np.zeros((7, 7), bool)
    region[2:5, 2:5] = True
    picture = np.full((7, 7, 3), 100, np.uint8)
    drawn = outlined(picture, region)[..., 0]
    assert drawn[3, 3] == 100
    assert (drawn[region] == 255).sum() == 8
    assert {tuple(place) for place in np.argwhere(drawn == 0).tolist()} == {
        *((row, column) for row in (1, 5) for column in (2, 3, 4)),
        *((row, column) for row in (2, 3, 4) for column in (1, 5)),
    }
    assert (picture == 100).all(), "the picture that was given stays"
    pale = pasted_only(picture, region)[..., 0]
    assert (pale[3, 3], pale[0, 0]) == (100, 193)


@given(rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_reference_outline(rows: list[list[bool]]) -> None:
    """The line is where a neighbour is on the other side, found one pixel at a time."""
    region = np.array(rows)
    drawn = outlined(np.full((*region.shape, 3), 7, np.uint8), region)
    for (y, x), inside in np.ndenumerate(region):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        near = [region[a, b] for a, b in around if 0 <= a < region.shape[0] and 0 <= b < region.shape[1]]
        wanted = (255 if inside else 0) if any(one != inside for one in near) else 7
        assert (drawn[y, x] == wanted).all()


def test_values_transfer() -> None:
    found = transfer_figure(
        CLASSES,
        term="content-transfer",
        around="stored pseudo labels",
        examples=[mix()] * 6,
        tail=[False, True, True],
        pasted=[0, 30, 10],
        source_share=[0.9, 0.08, 0.02],
    )
    assert json.loads(json.dumps(found)) == found
    assert len(found["examples"]) == 4
    one = found["examples"][0]
    assert (one["id"], one["share"], one["classes"]) == ("a.png", round(16 / 144, 6), ["car"])
    assert {size_of(one[key]) for key in ("image", "pasted", "label")} == {(12, 12)}
    assert len({one[key] for key in ("image", "pasted", "label")}) == 3
    assert [(k["pasted"], k["pasted_share"], k["tail"], k["target_share"]) for k in found["classes"]] == [
        (0, 0.0, False, None),
        (30, 0.75, True, None),
        (10, 0.25, True, None),
    ]


def test_values_zero_style() -> None:
    plain = [torch.full((3, 500, 250), shade) for shade in (0.1, 0.2, 0.3)]
    one = Unstyled("b.png", plain[0], plain[1], plain[2], error=0.125)
    found = zero_style_figure([one] * 5, [], side=100)
    assert json.loads(json.dumps(found)) == found
    assert [(domain["name"], len(domain["examples"])) for domain in found["domains"]] == [("source", 4)]
    held = found["domains"][0]["examples"][0]
    assert held["error"] == 0.125
    assert {size_of(held[key]) for key in ("image", "rebuilt", "zero")} == {(50, 100)}
    assert len({held[key] for key in ("image", "rebuilt", "zero")}) == 3


def test_degenerate() -> None:
    """Nothing pasted, everything pasted, nothing labelled, values that are not finite."""
    nothing, everything = (np.full((12, 12), value) for value in (False, True))
    found = transfer_figure(
        CLASSES,
        term="class-mix",
        around="",
        examples=[
            mix(region=nothing),
            mix(region=everything),
            Pasted(
                "c", torch.full((1, 4, 4), torch.nan), np.full((4, 4), 255, np.uint8), np.ones((4, 4), bool)
            ),
        ],
        pasted=[0, 0, 0],
    )
    assert [(one["share"], one["classes"]) for one in found["examples"]] == [
        (0.0, []),
        (1.0, ["road", "car"]),
        (1.0, []),
    ]
    assert {one["pasted_share"] for one in found["classes"]} == {None}
    picture = np.full((12, 12, 3), 5, np.uint8)
    assert (outlined(picture, everything) == picture).all()
    assert (outlined(picture, nothing) == picture).all()


def test_errors() -> None:
    with pytest.raises(ValueError, match="pasted has 2 values for 3 classes"):
        transfer_figure(CLASSES, term="x", around="", examples=[], pasted=[1, 2])
    with pytest.raises(ValueError, match=r"region must be \(12, 12\) bool"):
        transfer_figure(CLASSES, term="x", around="", examples=[mix(region=np.ones((12, 12)))])
    with pytest.raises(ValueError, match="sizes"):
        zero_style_figure(
            [Unstyled("a", torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), torch.zeros(3, 4, 5))], []
        )
