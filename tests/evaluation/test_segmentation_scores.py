"""The table of counts of a segmentation and the scores that follow from it."""

from __future__ import annotations

import doctest
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.evaluation import confusion, segmentation
from leanlabel.evaluation.confusion import confusion_matrix
from leanlabel.evaluation.segmentation import (
    SIXTEEN_OF_NINETEEN,
    Confusion,
    mean_over_classes,
    miou16_from_19,
    restricted_scores,
    segmentation_scores,
)
from pool import Pool


def maps(count: int, classes: int, shape: tuple[int, ...], seed: int = 0, ignore: int = 255):
    """Labels, a tenth of them ignored, and predictions that are often right; both int64."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count, *shape), generator=g)
    other = torch.randint(0, classes, (count, *shape), generator=g)
    right = torch.rand(count, *shape, generator=g) < 0.6
    predictions = torch.where(right, labels, other)
    labels = labels.masked_fill(torch.rand(count, *shape, generator=g) < 0.1, ignore)
    return labels, predictions


def naive_table(labels: Tensor, predictions: Tensor, classes: int, ignore: int) -> list[list[int]]:
    table = [[0] * classes for _ in range(classes)]
    for label, prediction in zip(labels.flatten().tolist(), predictions.flatten().tolist(), strict=True):
        if label != ignore:
            table[label][prediction] += 1
    return table


def test_values():
    counts = Confusion(3)
    counts.add(torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]]), torch.tensor([[0, 0, 1, 1], [1, 0, 2, 7]]))
    assert counts.table.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    scores = counts.scores(subsets={"both": (0, 1), "last two": (1, 2), "last": (2,)})
    assert scores.iou[:2].tolist() == [0.5, 0.5]
    assert math.isnan(scores.iou[2])
    assert scores.miou == 0.5
    assert scores.iou.dtype == torch.float64
    assert scores.pixel_accuracy == pytest.approx(4 / 6, rel=1e-12)
    assert scores.mean_accuracy == pytest.approx(2 / 3, rel=1e-12)
    assert scores.recall[:2].tolist() == pytest.approx([2 / 3, 2 / 3], rel=1e-12)
    assert scores.precision[:2].tolist() == pytest.approx([2 / 3, 2 / 3], rel=1e-12)
    assert scores.frequency_weighted == 0.5
    assert (scores.support.tolist(), scores.predicted.tolist()) == ([3, 3, 0], [3, 3, 0])
    assert scores.subsets["both"] == 0.5
    assert scores.subsets["last two"] == 0.5
    assert math.isnan(scores.subsets["last"])
    zero = counts.scores(empty="zero", subsets={"last two": (1, 2), "last": (2,)})
    assert zero.miou == pytest.approx(1 / 3, rel=1e-12)
    assert zero.iou.tolist() == [0.5, 0.5, 0.0]
    assert dict(zero.subsets) == {"last two": 0.25, "last": 0.0}


def test_values_weighted():
    """Pixel counts 8 and 2; a class that is predicted without being labelled counts as 0 and has no recall."""
    scores = segmentation_scores(torch.tensor([[6, 0, 2], [0, 2, 0], [0, 0, 0]]))
    assert scores.iou.tolist() == [0.75, 1.0, 0.0]
    assert scores.miou == pytest.approx(1.75 / 3, rel=1e-12)
    assert scores.frequency_weighted == pytest.approx(0.8 * 0.75 + 0.2, rel=1e-12)
    assert scores.mean_accuracy == pytest.approx(0.875, rel=1e-12)
    assert math.isnan(scores.recall[2])
    assert scores.precision[2] == 0.0


def test_values_large():
    """Counts beyond 2^24 and 2^31 stay exact."""
    scores = segmentation_scores(torch.tensor([[3 * 2**40, 2**40], [0, 1]]))
    assert scores.iou.tolist() == [0.75, 1 / (2**40 + 1)]


def test_values_sixteen():
    """Three classes of 19 that are never predicted: 19/16 of the mean over 19 where their pixels count."""
    g = torch.Generator().manual_seed(0)
    table = torch.randint(1, 50, (19, 19), generator=g)
    absent = [9, 14, 16]
    table[:, absent] = 0
    nineteen = segmentation_scores(table, empty="zero").miou
    assert miou16_from_19(table, outside="errors") == pytest.approx(nineteen * 19 / 16, rel=1e-12)
    own = table[list(SIXTEEN_OF_NINETEEN)][:, list(SIXTEEN_OF_NINETEEN)]
    assert miou16_from_19(table) == pytest.approx(segmentation_scores(own).miou, rel=1e-12)
    assert miou16_from_19(table) > miou16_from_19(table, outside="errors")


def test_values_restricted():
    """A prediction outside of the kept classes is an error of the labelled class."""
    table = torch.tensor([[6, 1, 3], [2, 8, 0], [4, 0, 5]])
    ignored = restricted_scores(table, (1, 0))
    assert ignored.iou.tolist() == pytest.approx([8 / 11, 6 / 12], rel=1e-12)
    assert ignored.recall.tolist() == pytest.approx([0.8, 0.6], rel=1e-12)
    assert ignored.pixel_accuracy == pytest.approx(14 / 20, rel=1e-12)
    errors = restricted_scores(table, (1, 0), outside="errors")
    assert errors.iou.tolist() == pytest.approx([8 / 11, 6 / 16], rel=1e-12)
    whole = restricted_scores(table, (0, 1, 2))
    assert torch.equal(whole.iou, segmentation_scores(table).iou)
    counts = Confusion(3)
    counts.table += table
    assert torch.equal(counts.restricted((1, 0)).iou, ignored.iou)


@pytest.mark.parametrize("classes", [1, 2, 19, 181, 254])
@pytest.mark.parametrize(("kind", "ignore"), [("uint8", 255), ("int64", 255), ("int64", -100), ("int32", -1)])
def test_reference(classes: int, kind: str, ignore: int):
    labels, predictions = maps(3, classes, (7, 9), ignore=ignore)
    labels = labels.to(getattr(torch, kind))
    expected = naive_table(labels, predictions, classes, ignore)
    for guess in (predictions, predictions.to(torch.uint8), predictions.to(torch.int32)):
        counts = Confusion(classes)
        counts.add(labels, guess, ignore)
        assert counts.table.tolist() == expected
    # Images one at a time, and strided views of them, say the same.
    counts = Confusion(classes)
    for label, guess in zip(labels, predictions, strict=True):
        counts.add(label.T, guess.T, ignore)
    assert counts.table.tolist() == expected


def test_reference_blocks(monkeypatch: pytest.MonkeyPatch):
    """Several blocks, the last one not full, count the same as one."""
    labels, predictions = maps(2, 5, (11, 13))
    expected = confusion_matrix(labels, predictions, 5, ignore=255)
    monkeypatch.setattr(confusion, "BLOCK", 100)
    assert torch.equal(confusion_matrix(labels, predictions, 5, ignore=255), expected)


def test_dtypes():
    """bool is two classes; a class and the label to ignore are not mixed up modulo 256."""
    truth = torch.tensor([True, False, True])
    assert confusion_matrix(truth, ~truth, 2).tolist() == [[0, 1], [2, 0]]
    labels = torch.tensor([156, 3], dtype=torch.uint8)
    assert confusion_matrix(labels, labels, 160, ignore=-100)[156, 156] == 1
    assert confusion_matrix(labels.long(), labels, 160, ignore=-100)[156, 156] == 1
    wide = torch.tensor([300, 1])
    assert confusion_matrix(wide, torch.tensor([0, 1]), 2, ignore=300).tolist() == [[0, 0], [0, 1]]
    background = torch.tensor([0, 0, 1, 1], dtype=torch.uint8)
    assert confusion_matrix(background, torch.tensor([0, 1, 0, 1]), 2, ignore=0).tolist() == [[0, 0], [1, 1]]


def test_degenerate():
    counts = Confusion(2)
    counts.add(torch.full((2, 4, 4), 255, dtype=torch.uint8), torch.zeros(2, 4, 4, dtype=torch.uint8))
    counts.add(torch.zeros(0, 4, 4, dtype=torch.uint8), torch.zeros(0, 4, 4, dtype=torch.uint8))
    assert int(counts.table.sum()) == 0
    scores = counts.scores(subsets={"all": (0, 1)})
    assert all(
        math.isnan(one)
        for one in (scores.miou, scores.pixel_accuracy, scores.mean_accuracy, scores.frequency_weighted)
    )
    assert counts.scores(empty="zero").miou == 0.0
    plain = scores.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["iou"] == [None, None]
    assert plain["subsets"] == {"all": None}
    # What is predicted where the label is ignored does not matter.
    counts.add(torch.tensor([255, 1]), torch.tensor([77, 1]))
    assert counts.scores().miou == 1.0
    one = Confusion(1)
    one.add(torch.tensor([0, 255]), torch.tensor([0, 0]))
    assert one.scores().miou == one.scores().pixel_accuracy == 1.0
    assert math.isnan(mean_over_classes(torch.zeros(0), torch.zeros(0, dtype=torch.bool), "zero"))


def test_errors():
    counts = Confusion(3)
    with pytest.raises(ValueError, match=r"labels has class ids 0\.\.11 outside \[0, 3\): 7, 11"):
        counts.add(torch.tensor([0, 7, 11], dtype=torch.uint8), torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match=r"labels has class ids -1\.\.2"):
        counts.add(torch.tensor([2, -1]), torch.tensor([0, 0]), ignore=-100)
    with pytest.raises(ValueError, match=r"predictions has class ids 0\.\.3 outside \[0, 3\): 3"):
        counts.add(torch.tensor([0, 1], dtype=torch.uint8), torch.tensor([0, 3], dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"predictions has class ids 256\.\.256"):
        counts.add(torch.tensor([0]), torch.tensor([256]))
    with pytest.raises(ValueError, match=r"labels \(2,\) and predictions \(1,\) differ"):
        counts.add(torch.tensor([0, 1]), torch.tensor([0]))
    with pytest.raises(ValueError, match="argmax"):
        counts.add(torch.tensor([0]), torch.tensor([0.5]))
    assert int(counts.table.sum()) == 0
    with pytest.raises(ValueError, match="at least 1"):
        Confusion(0)
    with pytest.raises(ValueError, match=r"subset far \(3,\)"):
        counts.scores(subsets={"far": (3,)})
    with pytest.raises(ValueError, match="one or more"):
        counts.restricted(())
    with pytest.raises(ValueError, match="twice"):
        counts.restricted((0, 0))
    with pytest.raises(ValueError, match="outside must be"):
        counts.restricted((0,), outside="drop")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="empty must be"):
        counts.scores(empty="skip")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"\(19, 19\)"):
        miou16_from_19(torch.zeros(16, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(K, K\)"):
        segmentation_scores(torch.zeros(2, 3, dtype=torch.int64))


def test_state():
    labels, predictions = maps(2, 4, (6, 6))
    counts, fresh = Confusion(4), Confusion(4)
    counts.add(labels[0], predictions[0])
    fresh.load_state_dict(counts.state_dict())
    for one in (counts, fresh):
        one.add(labels[1], predictions[1])
    assert torch.equal(counts.table, fresh.table)
    assert int(counts.table.sum()) == int((labels != 255).sum())
    # What is asked for is a copy.
    counts.total().zero_()
    assert torch.equal(counts.table, fresh.table)
    counts.reset()
    assert int(counts.table.sum()) == 0


def counted(empty_rank: bool) -> tuple[list[list[int]], dict]:
    labels, predictions = maps(5, 4, (6, 8))
    part = dist.shard(5)
    if empty_rank and dist.world() > 1:
        part = slice(0, 5) if dist.rank() == 0 else slice(0, 0)
    counts = Confusion(4)
    counts.add(labels[part], predictions[part])
    scores = counts.scores(subsets={"some": (1, 3)})
    assert counts.restricted((0, 2)).support.sum() == scores.support[[0, 2]].sum()
    return counts.total().tolist(), scores.as_dict()


@pytest.mark.parametrize("empty_rank", [False, True])
def test_ranks(pool: Pool, empty_rank: bool):
    """Two ranks with a part of the images each say what one says, also where one has none."""
    expected = counted(empty_rank)
    assert pool.run(counted, empty_rank) == [expected, expected]


@given(seed=st.integers(0, 1000), classes=st.integers(2, 6), order=st.randoms(use_true_random=False))
def test_relabelling(seed: int, classes: int, order):
    """Numbering the classes in another way permutes what belongs to classes, and leaves the means."""
    labels, predictions = maps(1, classes, (5, 5), seed)
    names = list(range(classes))
    order.shuffle(names)
    new = torch.tensor([*names, *([255] * (256 - classes))])
    first, second = Confusion(classes), Confusion(classes)
    first.add(labels, predictions)
    second.add(new[labels], new[predictions])
    a, b = first.scores(), second.scores()
    for value, other in ((a.iou, b.iou), (a.recall, b.recall), (a.precision, b.precision)):
        assert torch.equal(value.nan_to_num(-1), other[names].nan_to_num(-1))
    assert a.miou == pytest.approx(b.miou, rel=1e-12)
    assert a.frequency_weighted == pytest.approx(b.frequency_weighted, rel=1e-12)


def test_doctests():
    for module in (segmentation, confusion):
        result = doctest.testmod(module)
        assert result.attempted
        assert not result.failed
