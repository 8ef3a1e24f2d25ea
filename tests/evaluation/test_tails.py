"""Head and tail means: the published row, the rule on given shares, classes that are in neither."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanlabel.evaluation import tails
from leanlabel.evaluation.tails import head_and_tail, subset_mean

# Published IoU of 19 classes, road to bicycle, and the ten that count as tail there.
ROW = torch.tensor(
    [
        *(95.3, 65.1, 84.6, 33.2, 23.7, 32.8, 32.7, 36.9, 86.0, 41.0),
        *(85.6, 56.1, 25.9, 86.3, 34.5, 39.1, 11.5, 28.3, 43.0),
    ],
    dtype=torch.float64,
)
TAIL = torch.zeros(19, dtype=torch.bool).index_fill(
    0, torch.tensor([3, 4, 6, 7, 12, 14, 15, 16, 17, 18]), value=True
)


def test_values() -> None:
    assert subset_mean(ROW, torch.ones(19, dtype=torch.bool)) == pytest.approx(49.5578947368421, rel=1e-10)
    assert subset_mean(ROW, TAIL) == pytest.approx(30.88, rel=1e-10)
    assert subset_mean(ROW, ~TAIL) == pytest.approx(70.3111111111111, rel=1e-10)
    # Ten classes of a thousandth each beside nine large ones: the rule finds the same ten.
    pixels = torch.where(TAIL, 1, 1000)
    head, tail, chosen = head_and_tail(ROW, pixels)
    assert chosen.equal(TAIL)
    assert (head, tail) == pytest.approx((70.3111111111111, 30.88), rel=1e-10)


@pytest.mark.parametrize(("share", "wanted"), [(0.01, {6, 7}), (0.04, {5, 6, 7}), (0.06, {4, 5, 6, 7})])
def test_values_share(share: float, wanted: set[int]) -> None:
    pixels = torch.tensor([400, 250, 200, 90, 30, 20, 7, 3])
    iou = torch.arange(8, dtype=torch.float64) / 10
    head, tail, chosen = head_and_tail(iou, pixels, share)
    assert set(chosen.nonzero().flatten().tolist()) == wanted
    assert tail == pytest.approx(sum(wanted) / 10 / len(wanted))
    assert head == pytest.approx((28 - sum(wanted)) / 10 / (8 - len(wanted)))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.integers(0, 99))
def test_reference(counts: list[int], seed: int) -> None:
    """A loop over classes, with some without an IoU."""
    numbers = torch.Generator().manual_seed(seed)
    iou = torch.rand(len(counts), generator=numbers, dtype=torch.float64)
    iou[torch.rand(len(counts), generator=numbers) < 0.2] = math.nan
    found = head_and_tail(iou, torch.tensor(counts), 0.2)
    order = sorted((k for k in range(len(counts)) if counts[k]), key=lambda k: (counts[k], k))
    total, running, tail = sum(counts), 0, set()
    for k in order:
        running += counts[k]
        if running > 0.2 * total + 1e-9:
            break
        tail.add(k)
    assert set(found[2].nonzero().flatten().tolist()) == tail
    for value, group in zip(found, (set(order) - tail, tail), strict=False):
        known = [float(iou[k]) for k in group if not math.isnan(iou[k])]
        assert value == pytest.approx(sum(known) / len(known) if known else math.nan, nan_ok=True)


def test_dtypes() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        head, tail, _ = head_and_tail(torch.tensor([0.5, 0.25], dtype=dtype), torch.tensor([99, 1]))
        assert (head, tail) == (0.5, 0.25)
    assert head_and_tail(torch.tensor([0.5, 0.25]), torch.tensor([99.0, 1.0]))[:2] == (0.5, 0.25)


def test_degenerate() -> None:
    """A class without pixels is in neither; balanced classes have no tail; NaN is left out, also of all."""
    iou = torch.tensor([0.5, 0.0, 0.25])
    head, tail, chosen = head_and_tail(iou, torch.tensor([990, 0, 10]))
    assert (head, tail, chosen.tolist()) == (0.5, 0.25, [False, False, True])
    head, tail, chosen = head_and_tail(iou, torch.tensor([10, 10, 10]))
    assert head == pytest.approx(0.25)
    assert math.isnan(tail)
    assert not chosen.any()
    head, tail, _ = head_and_tail(torch.tensor([0.5, math.nan]), torch.tensor([99, 1]))
    assert head == 0.5
    assert math.isnan(tail)
    head, tail, chosen = head_and_tail(iou, torch.zeros(3, dtype=torch.int64))
    assert math.isnan(head)
    assert math.isnan(tail)
    assert not chosen.any()


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"iou and pixels must be \(K,\), got \(3,\) and \(2,\)"):
        head_and_tail(torch.zeros(3), torch.ones(2))
    with pytest.raises(ValueError, match=r"iou and chosen must be \(K,\), got \(3,\) and \(2,\)"):
        subset_mean(torch.zeros(3), torch.ones(2, dtype=torch.bool))


def test_doctests() -> None:
    assert doctest.testmod(tails).failed == 0
