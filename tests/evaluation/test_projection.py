from __future__ import annotations

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from leanlabel.evaluation import projection
from leanlabel.evaluation.projection import principal_components, project_2d, thin
from leanlabel.sparse import from_dense


def rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values():
    # Points on a 4 x 2 rectangle: the long side first, signs fixed by the entry of largest magnitude.
    z = torch.tensor([[0.0, 0], [0, 4], [2, 0], [2, 4], [1, 2]], dtype=torch.float64)
    points = principal_components(z, 2)
    torch.testing.assert_close(points[:, 0].abs(), torch.tensor([2.0, 2, 2, 2, 0], dtype=torch.float64))
    torch.testing.assert_close(points[:, 1].abs(), torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64))


def test_values_separation():
    # Three well separated clouds stay apart: every point's nearest neighbour has its class.
    y = torch.arange(90) % 3
    z = 8 * torch.eye(3, 10, dtype=torch.float64)[y] + rows(90, 10)
    found = project_2d(z, y=y)
    assert (found.method, found.points.shape, found.points.dtype) == ("tsne", (90, 2), torch.float32)
    distance = torch.cdist(found.points, found.points).fill_diagonal_(float("inf"))
    assert torch.equal(y[distance.argmin(1)], y)


@given(shape=st.sampled_from([(30, 7), (6, 20), (9, 9)]), seed=st.integers(0, 99))
def test_reference_components(shape, seed):
    z = rows(*shape, seed=seed)
    count = min(4, min(shape) - 1)
    foreign = torch.from_numpy(PCA(count).fit_transform(z.numpy()))
    found = principal_components(z, count)
    torch.testing.assert_close(found.abs(), foreign.abs(), rtol=1e-6, atol=1e-8)
    assert bool((found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all())


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    limit=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_reference_thin(sizes, limit, seed):
    y = torch.repeat_interleave(torch.arange(len(sizes)) * 3 - 2, torch.tensor(sizes))
    chosen = thin(y, limit, seed)
    assert len(chosen) == min(limit, len(y))
    assert bool((chosen[1:] > chosen[:-1]).all())
    counts = [int((y[chosen] == c * 3 - 2).sum()) for c in range(len(sizes))]
    # Even: a class with rows to spare is never more than one behind the largest.
    assert all(count == size or count >= max(counts) - 1 for count, size in zip(counts, sizes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    found = project_2d(rows(20, 4).to(dtype))
    exact = project_2d(rows(20, 4).to(dtype).double())
    torch.testing.assert_close(found.points, exact.points)


def test_degenerate():
    flat = project_2d(torch.full((60, 5), 0.1))
    assert flat.method == "pca"
    assert not flat.points.any()
    one = project_2d(torch.ones(1, 3))
    assert one.points.tolist() == [[0.0, 0.0]]
    two = project_2d(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert two.points.abs().tolist() == [[2.5, 0.0], [2.5, 0.0]]
    line = project_2d(rows(10, 1))
    assert line.points.shape == (10, 2)
    assert line.points[:, 0].any()
    assert not line.points[:, 1].any()
    # Repeated rows and a single varying column reach t-SNE and stay finite.
    repeated = torch.cat([rows(3, 4)] * 20)
    assert bool(torch.isfinite(project_2d(repeated).points).all())
    assert bool(torch.isfinite(project_2d(rows(60, 1)).points).all())
    assert project_2d(rows(49, 4)).method == "pca"
    assert project_2d(rows(60, 4), method="pca").method == "pca"
    assert project_2d(rows(60, 4), limit=20).method == "pca"
    assert torch.equal(thin(5, 9, 0), torch.arange(5))


def test_degenerate_stored():
    z = rows(40, 6) * (rows(40, 6, seed=1) > 0)
    found, stored = project_2d(z, 25), project_2d(from_dense(z), 25)
    assert torch.equal(found.rows, stored.rows)
    torch.testing.assert_close(found.points, stored.points)


def test_errors():
    with pytest.raises(ValueError, match="1 values that are not finite"):
        project_2d(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"at least one row and column, got \(0, 3\)"):
        project_2d(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"y must be \(2,\), got \(3,\)"):
        project_2d(torch.zeros(2, 3), y=torch.zeros(3))
    with pytest.raises(ValueError, match="limit >= 1 and method tsne or pca, got 5 and 'umap'"):
        project_2d(torch.zeros(2, 3), 5, method="umap")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="limit >= 1"):
        project_2d(torch.zeros(2, 3), 0)


def test_state():
    z, y = rows(200, 12), torch.arange(200) % 4
    torch.manual_seed(1)
    first = project_2d(z, 80, 3, y=y)
    torch.manual_seed(2)
    again = project_2d(z, 80, 3, y=y)
    assert torch.equal(first.points, again.points)
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.rows, project_2d(z, 80, 4, y=y, method="pca").rows)


def test_examples():
    assert doctest.testmod(projection, extraglobs={"torch": torch}).failed == 0
