"""Numbers of the specification of adapted segmentation that existing code must give.

The places of the nearest down-sampling (O4) are in test_pixel.py, at `align`; here is the form that terms use for the
weights of pixels.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from leanlabel.data.published_classes import NAMED
from leanlabel.evaluation.segmentation import Confusion, mean_over_classes
from leanlabel.losses.pixel import pixel_cross_entropy
from leanlabel.methods.terms.pixel import placed_weights

TRUTH = [0, 0, 0, 1, 1, 1, 2, 2, 255, 255]
GUESS = [0, 0, 1, 1, 1, 2, 2, 0, 0, 1]
SIXTEEN = [93.3, 54.0, 81.3, 14.3, 0.7, 28.8, 21.3, 22.8, 82.6, 83.3, 57.7, 22.8, 83.4, 30.7, 20.2, 47.2]
"""IoU of the 16 classes of a published result, in per cent."""


@pytest.mark.parametrize(
    ("large", "small", "expected"),
    [
        (5, 2, [0, 2]),
        (8, 3, [0, 2, 5]),
        (720, 90, list(range(0, 720, 8))),
        (1024, 128, list(range(0, 1024, 8))),
    ],
)
def test_values_nearest(large: int, small: int, expected: list[int]) -> None:
    """O4: weights of pixels are thinned out at the places of their labels."""
    weights = torch.arange(large, dtype=torch.float64)[None, :, None].expand(1, large, 3)
    step = cast(Any, SimpleNamespace(weights=weights))
    found = placed_weights(step, torch.Size((small, 3)))
    assert found is not None
    assert found[0, :, 0].tolist() == expected


def test_values_table() -> None:
    """O7: intersections 2, 2, 1, 0 and unions 4, 4, 3, 0."""
    counts = Confusion(4)
    counts.add(torch.tensor(TRUTH)[None], torch.tensor(GUESS)[None])
    hits = counts.table.diagonal()
    assert hits.tolist() == [2, 2, 1, 0]
    assert (counts.table.sum(0) + counts.table.sum(1) - hits).tolist() == [4, 4, 3, 0]
    assert counts.scores().miou == pytest.approx(0.4444444444444444, rel=1e-12)
    assert counts.scores(empty="zero").miou == pytest.approx(0.3333333333, abs=1e-9)


def test_values_subset() -> None:
    """O7: the mean of all 16 classes, and without wall, fence and pole."""
    values, there = torch.tensor(SIXTEEN, dtype=torch.float64), torch.ones(16, dtype=torch.bool)
    assert mean_over_classes(values, there, "exclude") == pytest.approx(46.525, rel=1e-12)
    assert NAMED["synthia-16"]["subsets"] == NAMED["cityscapes-16"]["subsets"]
    thirteen = list(NAMED["synthia-16"]["subsets"]["13"])
    found = mean_over_classes(values[thirteen], there[thirteen], "exclude")
    assert found == pytest.approx(53.892307692307696, rel=1e-12)


def test_values_subset_of_a_table() -> None:
    """The same means through a table of counts: what misses a class is taken for a class outside of the subset."""
    right = torch.tensor([round(10 * one) for one in SIXTEEN])
    counts = Confusion(17)
    counts.table[:16, :16] = torch.diag(right)
    counts.table[:16, 16] = 1000 - right
    every = {"16": tuple(range(16)), **NAMED["synthia-16"]["subsets"]}
    scores = counts.scores(subsets=every)
    assert scores.iou[:16].tolist() == pytest.approx([one / 100 for one in SIXTEEN], rel=1e-12)
    assert scores.subsets["16"] == pytest.approx(0.46525, rel=1e-12)
    assert scores.subsets["13"] == pytest.approx(0.53892307692307696, rel=1e-12)


def test_values_tempered() -> None:
    """O8: cross-entropy of scores as they are, and divided by 1.8."""
    logits = torch.tensor([[2, 1, 0], [0, 0, 3], [1, -1, 0.5]], dtype=torch.float64).T[None]
    labels = torch.tensor([[0, 1, 255]])
    for divisor, expected in ((1.0, 1.7512644604326706), (1.8, 1.3152613509531212)):
        found = pixel_cross_entropy(logits / divisor, labels, ignore=255)
        assert float(found) == pytest.approx(expected, rel=1e-12)
