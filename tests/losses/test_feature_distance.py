"""Distance of features at places that one class covers: cells by hand, loops, degenerate maps, two ranks as one."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.errors import InputError
from leanlabel.losses import feature_distance as module
from leanlabel.losses.feature_distance import cell_classes, feature_distance


def naive_cells(
    labels: Tensor, size: tuple[int, int], classes: int, purity: float, ignore: int = -100
) -> list[list[list[int]]]:
    """Count the pixels of each cell in lists."""
    height, width = labels.shape[1:]
    found = []
    for image in labels.tolist():
        rows = []
        for i in range(size[0]):
            row = []
            for j in range(size[1]):
                inside = [
                    image[y][x]
                    for y in range(i * height // size[0], (i + 1) * height // size[0])
                    for x in range(j * width // size[1], (j + 1) * width // size[1])
                ]
                counts = [inside.count(k) for k in range(classes)]
                best = counts.index(max(counts))
                enough = inside and counts[best] and counts[best] / len(inside) >= purity - 1e-9
                row.append(best if enough else ignore)
            rows.append(row)
        found.append(rows)
    return found


def random_labels(seed: int, batch: int, height: int, width: int, classes: int, ignore: int = -100) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, classes, (batch, height, width), generator=generator)
    smooth = labels[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]
    return smooth.where(smooth >= 0, ignore)


def test_values_cells() -> None:
    """Cells of 2 x 2 with 4, 3, 2 and 3 pixels of a class; ignored pixels count in the share."""
    labels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 2], [2, 2, -100, 1], [0, 0, 1, 1]]])
    assert cell_classes(labels, (2, 2), 3).tolist() == [[[0, 1], [-100, 1]]]
    assert cell_classes(labels, (2, 2), 3, purity=0.76).tolist() == [[[0, -100], [-100, -100]]]
    assert cell_classes(labels, (2, 2), 3, purity=0.5).tolist() == [[[0, 1], [0, 1]]]
    assert cell_classes(labels, (4, 4), 3).equal(labels)
    wrapped = labels.where(labels >= 0, 255).to(torch.uint8)
    assert cell_classes(wrapped, (2, 2), 3, ignore=255).tolist() == [[[0, 1], [255, 1]]]


def test_values_share() -> None:
    """7 of 10 pixels are a share of 0.7, 6 are not."""
    labels = torch.tensor([[[0] * 7 + [1] * 3], [[0] * 6 + [1] * 4]])
    assert cell_classes(labels, (1, 1), 2, purity=0.7).flatten().tolist() == [0, -100]


def test_values_distance() -> None:
    """Distances 5, 13 and 1 of which two are kept."""
    features = torch.tensor([[3.0, 5.0, 1.0], [4.0, 12.0, 0.0]], dtype=torch.float64)[None, :, None]
    keep = torch.tensor([[[True, True, False]]])
    assert float(feature_distance(features, torch.zeros_like(features), keep)) == 9
    assert float(feature_distance(features + 7, torch.full_like(features, 7), keep)) == 9


@pytest.mark.parametrize("size", [(2, 3), (3, 4), (7, 11), (9, 2), (1, 1), (8, 12)], ids=str)
@pytest.mark.parametrize("purity", [0.3, 0.75, 1.0])
def test_reference_cells(size: tuple[int, int], purity: float) -> None:
    """Sizes that divide the image and sizes that do not, also more cells than pixels."""
    for seed in range(3):
        labels = random_labels(seed, 2, 7, 11, 3)
        assert cell_classes(labels, size, 3, purity=purity).tolist() == naive_cells(labels, size, 3, purity)


def test_reference_distance() -> None:
    torch.manual_seed(0)
    features, fixed = torch.randn(2, 2, 5, 3, 4, dtype=torch.float64)
    keep = torch.rand(2, 3, 4) < 0.5
    found = [
        math.dist(features[b, :, i, j].tolist(), fixed[b, :, i, j].tolist())
        for b, i, j in keep.nonzero().tolist()
    ]
    assert float(feature_distance(features, fixed, keep)) == pytest.approx(sum(found) / len(found), rel=1e-12)


def test_gradient() -> None:
    """Right by finite differences, through the features only, and 0 where nothing has moved."""
    torch.manual_seed(0)
    features, fixed = (
        one.requires_grad_() for one in torch.randn(2, 1, 3, 2, 2, dtype=torch.float64).unbind(0)
    )
    keep = torch.tensor([[[True, False], [True, True]]])
    assert torch.autograd.gradcheck(lambda x: feature_distance(x, fixed, keep), (features,))
    feature_distance(features, fixed, keep).backward()
    assert fixed.grad is None
    same = fixed.detach().clone().requires_grad_()
    loss = feature_distance(same, fixed, keep)
    loss.backward()
    assert float(loss.detach()) == 0
    assert same.grad is not None
    assert float(same.grad.abs().max()) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    """Squares that half precision does not hold."""
    features = torch.full((1, 64, 1, 1), 1000.0, dtype=dtype, requires_grad=True)
    found = feature_distance(features, torch.zeros_like(features), torch.ones(1, 1, 1, dtype=torch.bool))
    found.backward()
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(8000)
    assert features.grad is not None
    assert bool(torch.isfinite(features.grad).all())


def test_degenerate() -> None:
    """Nothing kept, nothing labelled, no image; a place that is left out may hold anything."""
    for batch in (0, 2):
        features = torch.randn(batch, 3, 2, 2, requires_grad=True)
        loss = feature_distance(
            features, torch.zeros(batch, 3, 2, 2), torch.zeros(batch, 2, 2, dtype=torch.bool)
        )
        loss.backward()
        assert float(loss.detach()) == 0
        assert features.grad is not None
        assert not bool(features.grad.any())
    ignored = torch.full((1, 4, 4), -100)
    assert bool((cell_classes(ignored, (2, 2), 3, purity=0.01) == -100).all())
    assert cell_classes(ignored[:0], (2, 2), 3).shape == (0, 2, 2)
    features = torch.tensor([1.0, math.inf])[None, None, None].requires_grad_()
    loss = feature_distance(features, torch.zeros(1, 1, 1, 2), torch.tensor([[[True, False]]]))
    loss.backward()
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [1, 0]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 2\) and fixed \(1, 3, 2, 2\)"):
        feature_distance(
            torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
        )
    with pytest.raises(ValueError, match="keep must be bool"):
        feature_distance(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2))
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="purity"):
        cell_classes(labels, (2, 2), 3, purity=0.0)
    with pytest.raises(ValueError, match=r"size \(h, w\)"):
        cell_classes(labels, (0, 2), 3)
    with pytest.raises(InputError, match="label 3 is neither one of 3 classes"):
        cell_classes(labels + 3, (2, 2), 3)


@given(st.integers(0, 1000), st.permutations(range(4)), st.integers(1, 6), st.integers(1, 6))
def test_relabelling(seed: int, order: list[int], height: int, width: int) -> None:
    """Numbering classes in another way changes their numbers alone, where a cell has but one that covers it."""
    labels = random_labels(seed, 1, 6, 6, 4)
    names = torch.tensor(order)
    renamed = names[labels.clamp(min=0)].where(labels >= 0, -100)
    first, second = (cell_classes(one, (height, width), 4, purity=0.6) for one in (labels, renamed))
    assert second.equal(names[first.clamp(min=0)].where(first >= 0, -100))


def ranked(sizes: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features, fixed = torch.randn(2, 5, 3, 2, 2, generator=generator, dtype=torch.float64)
    keep = torch.rand(5, 2, 2, generator=generator) < 0.4
    start = sum(sizes[: dist.rank()])
    rows = slice(start, start + sizes[dist.rank()])
    features.requires_grad_()
    loss = feature_distance(features[rows], fixed[rows], keep[rows])
    return loss.detach(), torch.autograd.grad(loss, features)[0]


def test_ranks(pool) -> None:
    """Two ranks with unequal numbers of kept places are one."""
    loss, slope = ranked([5])
    for sizes in ([2, 3], [0, 5]):
        results = pool.run(ranked, sizes)
        torch.testing.assert_close(sum(one[0] for one in results) / 2, loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(sum(one[1] for one in results) / 2, slope, rtol=1e-12, atol=1e-15)


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0
