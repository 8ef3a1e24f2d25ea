"""Boundary IoU."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.evaluation import boundary
from leanlabel.evaluation.boundary import BoundaryIoU, boundary_region, thickness
from pool import Pool


def blobs(count: int, classes: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Labels made of squares, with some ignored, and predictions that differ in places; both int64."""
    g = torch.Generator().manual_seed(seed)
    small = torch.randint(0, classes, (count, -(-height // 4), -(-width // 4)), generator=g)
    labels = small.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width].clone()
    other = torch.randint(0, classes, labels.shape, generator=g)
    predictions = torch.where(torch.rand(labels.shape, generator=g) < 0.1, other, labels)
    ignored = torch.rand(labels.shape, generator=g) < 0.1
    return labels.masked_fill(ignored, 255), predictions


def naive_region(
    ids: list[list[int]], skip: list[list[bool]], distance: int, frame: bool
) -> list[list[bool]]:
    """A pixel is near the contour of its class if the square around it holds anything else that counts."""
    height, width = len(ids), len(ids[0])
    found = [[False] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            for v in range(y - distance, y + distance + 1):
                for u in range(x - distance, x + distance + 1):
                    if not (0 <= v < height and 0 <= u < width):
                        found[y][x] |= frame
                    elif not skip[v][u] and ids[v][u] != ids[y][x]:
                        found[y][x] = True
            found[y][x] &= not skip[y][x]
    return found


def naive_counts(labels: Tensor, predictions: Tensor, classes: int, distance: int, frame: bool):
    both, either = [0] * classes, [0] * classes
    for label, guess in zip(labels, predictions, strict=True):
        skip = (label == 255).tolist()
        first = naive_region(label.tolist(), skip, distance, frame)
        second = naive_region(guess.tolist(), skip, distance, frame)
        for y in range(label.shape[0]):
            for x in range(label.shape[1]):
                for k in range(classes):
                    a = first[y][x] and int(label[y, x]) == k
                    b = second[y][x] and int(guess[y, x]) == k
                    both[k] += a and b
                    either[k] += a or b
    return both, either


def test_values():
    """Two halves of 6 x 8 whose border is predicted one column to the left, d = 1, without the frame."""
    label = torch.zeros(6, 8, dtype=torch.uint8)
    label[:, 4:] = 1
    guess = torch.zeros(6, 8, dtype=torch.uint8)
    guess[:, 3:] = 1
    counts = BoundaryIoU(2, 0.1, frame=False)
    assert thickness(6, 8, 0.1) == 1
    counts.add(label, guess)
    # Of class 0 the label has column 3, the prediction column 2; of class 1 columns 4 and 3.
    assert counts.intersection.tolist() == [0, 0]
    assert counts.union.tolist() == [12, 12]
    wide = BoundaryIoU(2, 0.2, frame=False)
    wide.add(label, guess)
    # d = 2: class 0 columns 2, 3 against 1, 2; class 1 columns 4, 5 against 3, 4.
    assert wide.scores().tolist() == pytest.approx([1 / 3, 1 / 3], rel=1e-12)
    framed = BoundaryIoU(2, 0.1)
    framed.add(label, guess)
    # With the frame, class 0 has 24 - 8 against 18 - 4 pixels, 10 of them (two rows and a column) in both.
    assert (int(framed.intersection[0]), int(framed.union[0])) == (10, 20)


@pytest.mark.parametrize("frame", [True, False])
@pytest.mark.parametrize(("share", "classes"), [(0.02, 3), (0.2, 3), (2.0, 2), (0.1, 1)])
def test_reference(share: float, classes: int, frame: bool):
    labels, predictions = blobs(2, classes, 11, 14)
    counts = BoundaryIoU(classes, share, frame=frame)
    counts.add(labels, predictions)
    both, either = naive_counts(labels, predictions, classes, thickness(11, 14, share), frame)
    assert counts.intersection.tolist() == both
    assert counts.union.tolist() == either


def test_reference_erosion():
    """The region of a class is its mask without the mask eroded d times by a 3 x 3 square, zeros outside."""
    labels, _ = blobs(1, 4, 30, 40, seed=2)
    label = labels[0].masked_fill(labels[0] == 255, 0)
    for distance in (1, 3):
        found = boundary_region(label, distance)
        for k in range(4):
            eroded = (label == k).float()[None]
            for _ in range(distance):
                eroded = -torch.nn.functional.max_pool2d(
                    -torch.nn.functional.pad(eroded, (1, 1, 1, 1)), 3, stride=1
                )
            expected = (label == k) & (eroded[0] == 0)
            assert torch.equal(found & (label == k), expected)


def test_dtypes():
    labels, predictions = blobs(2, 5, 20, 24)
    expected = BoundaryIoU(5)
    expected.add(labels, predictions)
    for label, ignore in (
        (labels.to(torch.uint8), 255),
        (labels.masked_fill(labels == 255, -100), -100),
        (labels.masked_fill(labels == 255, -1).to(torch.int32), -1),
    ):
        counts = BoundaryIoU(5)
        counts.add(label, predictions.to(torch.uint8), ignore)
        assert torch.equal(counts.intersection, expected.intersection)
        assert torch.equal(counts.union, expected.union)
    # Ids beyond a byte.
    far = boundary_region(labels[0].masked_fill(labels[0] == 255, 0) * 100, 2)
    assert torch.equal(far, boundary_region(labels[0].masked_fill(labels[0] == 255, 0), 2))
    top = torch.tensor([[253, 254]], dtype=torch.uint8)
    assert boundary_region(top, 1, frame=False).all()


def test_degenerate():
    counts = BoundaryIoU(3)
    counts.add(torch.full((2, 5, 6), 255), torch.zeros(2, 5, 6, dtype=torch.int64))
    counts.add(torch.zeros(0, 5, 6, dtype=torch.int64), torch.zeros(0, 5, 6, dtype=torch.int64))
    assert counts.scores().isnan().all()
    assert math.isnan(counts.mean())
    assert counts.scores("zero").tolist() == [0, 0, 0]
    # Agreement wherever the label counts is complete, whatever is predicted elsewhere.
    label = torch.zeros(12, 12, dtype=torch.uint8)
    label[:, 6:] = 1
    label[:, 4:8] = 255
    guess = label.clone()
    guess[:, 4:8] = 2
    counts.add(label, guess)
    assert counts.scores()[:2].tolist() == [1, 1]
    assert math.isnan(counts.scores()[2])
    assert counts.mean() == 1.0
    assert counts.mean("zero") == pytest.approx(2 / 3, rel=1e-12)
    # Ignored pixels are no contour: nothing of either half is near another class.
    assert not boundary_region(label, 1, outside=label == 255, frame=False).any()
    one = BoundaryIoU(1)
    one.add(torch.zeros(1, 1, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.uint8))
    assert one.scores().tolist() == [1.0]


def test_errors():
    counts = BoundaryIoU(2)
    with pytest.raises(ValueError, match="must both be"):
        counts.add(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"labels has class ids .* outside \[0, 2\): 5"):
        counts.add(torch.tensor([[0, 5]]), torch.tensor([[0, 0]]))
    with pytest.raises(ValueError, match=r"predictions has class ids .* outside \[0, 2\): 2"):
        counts.add(torch.tensor([[0, 1]]), torch.tensor([[0, 2]]))
    with pytest.raises(ValueError, match="must be positive"):
        BoundaryIoU(2, 0)
    with pytest.raises(ValueError, match="distance >= 1"):
        boundary_region(torch.zeros(2, 2, dtype=torch.int64), 0)
    with pytest.raises(ValueError, match="negative"):
        boundary_region(torch.tensor([[-1, 0]]), 1)


def test_state():
    labels, predictions = blobs(2, 3, 12, 12)
    counts, fresh = BoundaryIoU(3), BoundaryIoU(3)
    counts.add(labels[:1], predictions[:1])
    fresh.load_state_dict(counts.state_dict())
    for one in (counts, fresh):
        one.add(labels[1], predictions[1])
    assert torch.equal(counts.union, fresh.union)
    assert torch.equal(counts.scores(), fresh.scores())
    counts.reset()
    assert counts.scores().isnan().all()


def counted() -> list[float]:
    labels, predictions = blobs(3, 3, 12, 16)
    part = dist.shard(3)
    counts = BoundaryIoU(3)
    counts.add(labels[part], predictions[part])
    return [*counts.scores().tolist(), counts.mean()]


def test_ranks(pool: Pool):
    expected = counted()
    assert pool.run(counted) == [expected, expected]


@given(seed=st.integers(0, 1000), order=st.permutations(range(4)))
def test_relabelling(seed: int, order: list[int]):
    """Numbering the classes in another way permutes their scores; turning the image changes nothing."""
    labels, predictions = blobs(1, 4, 9, 9, seed)
    new = torch.tensor([*order, *([255] * 252)])
    first, second, turned = BoundaryIoU(4, 0.1), BoundaryIoU(4, 0.1), BoundaryIoU(4, 0.1)
    first.add(labels, predictions)
    second.add(new[labels], new[predictions])
    turned.add(labels.mT, predictions.mT)
    assert torch.equal(first.scores().nan_to_num(-1), second.scores()[order].nan_to_num(-1))
    assert torch.equal(first.union, turned.union)


def test_doctests():
    result = doctest.testmod(boundary)
    assert result.attempted
    assert not result.failed
