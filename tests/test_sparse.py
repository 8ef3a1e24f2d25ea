"""Sparse structure and product: values, gradients, masks, transposes, empty matrices."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanlabel.sparse import (
    Csr,
    components,
    from_dense,
    from_edges,
    from_parts,
    normalised,
    pair_ids,
    scaled,
    select,
    spmm,
)

PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


def random_edges(nodes: int, edges: int, seed: int = 0, undirected: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, nodes, (2, edges), generator=generator)
    return torch.cat([edge_index, edge_index.flip(0)], 1) if undirected else edge_index


def random_matrix(rows: int, columns: int, seed: int = 0, share: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return dense * (torch.rand(rows, columns, generator=generator) < share)


def test_values_from_edges() -> None:
    edges = torch.tensor([[0, 0, 2, 1, 0], [1, 1, 1, 1, 3]])  # 0->1 twice, a self-loop at 1, node 4 isolated
    matrix = from_edges(edges, 5)
    assert matrix.crow.tolist() == [0, 0, 2, 2, 3, 3]
    assert matrix.col.tolist() == [0, 2, 0]  # row 1 holds the sources 0 and 2
    assert not matrix.symmetric
    assert from_edges(edges, 5, loops="keep").col.tolist() == [0, 1, 2, 0]
    assert from_edges(edges, 5, loops="add").to_dense().diagonal().tolist() == [1.0] * 5
    assert from_edges(PATH, 3).symmetric


def test_values_normalised() -> None:
    matrix = normalised(from_edges(PATH, 3, loops="add"), "gcn", torch.float64)
    edge = 6**-0.5
    expected = [[1 / 2, edge, 0], [edge, 1 / 3, edge], [0, edge, 1 / 2]]
    torch.testing.assert_close(
        matrix.to_dense(), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0
    )
    assert matrix.symmetric
    mean = normalised(from_edges(PATH, 3), "mean", torch.float64)
    assert mean.to_dense().tolist() == [[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]]
    assert mean.transpose().to_dense().tolist() == mean.to_dense().T.tolist()


def test_values_pairs_and_components() -> None:
    matrix = from_edges(torch.tensor([[0, 1, 3, 4, 2], [1, 0, 4, 3, 0]]), 6)
    place, count = pair_ids(matrix)
    assert count == 3
    by_edge = {(int(c), int(r)): int(p) for c, r, p in zip(matrix.col, matrix.rows, place, strict=True)}
    assert by_edge[0, 1] == by_edge[1, 0] != by_edge[3, 4] == by_edge[4, 3]
    label, number = components(matrix)
    assert number == 3
    assert label.tolist() == [0, 0, 0, 1, 1, 2]


def test_reference_product() -> None:
    for rows, columns, seed in ((5, 7, 0), (7, 5, 1), (1, 6, 2), (30, 30, 3)):
        dense = random_matrix(rows, columns, seed)
        right = torch.randn(columns, 4, dtype=torch.float64)
        matrix = from_dense(dense)
        torch.testing.assert_close(spmm(matrix, right), dense @ right, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(spmm(matrix, right[:, 0]), dense @ right[:, 0], rtol=1e-12, atol=1e-14)
        assert torch.equal(matrix.transpose().to_dense(), dense.T)
        assert torch.equal(matrix.to_dense(), dense)


@pytest.mark.parametrize("undirected", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_reference_select(undirected: bool, together: bool) -> None:
    matrix = from_edges(random_edges(12, 40, 3, undirected), 12, loops="add")
    assert matrix.symmetric is undirected
    place, count = pair_ids(matrix)
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(matrix.nnz, generator=generator) < 0.6
    if together:
        keep = (torch.rand(count, generator=generator) < 0.6)[place]
    whole = matrix.to_dense(torch.float64)
    whole[matrix.rows[~keep], matrix.col[~keep]] = 0
    part = select(matrix, keep)
    assert torch.equal(part.to_dense(torch.float64), whole)
    assert torch.equal(part.transpose().to_dense(torch.float64), whole.T)
    assert part.symmetric is (undirected and together)
    # The transposes of a view stay right through the normalisation.
    left, right = torch.rand(12, dtype=torch.float64), torch.rand(12, dtype=torch.float64)
    product = left[:, None] * whole * right
    weighted = scaled(part, left, right)
    torch.testing.assert_close(weighted.to_dense(), product, rtol=1e-12, atol=0)
    torch.testing.assert_close(weighted.transpose().to_dense(), product.T, rtol=1e-12, atol=0)
    degree = whole.sum(1).clamp(min=1)
    gcn = normalised(part, "gcn", torch.float64)
    expected = whole / (degree[:, None] * degree).sqrt()
    torch.testing.assert_close(gcn.to_dense(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gcn.transpose().to_dense(), expected.T, rtol=1e-12, atol=0)


def test_reference_select_values() -> None:
    dense = random_matrix(6, 9, 5)
    matrix = from_dense(dense)
    keep = torch.arange(matrix.nnz) % 2 == 0
    part = select(matrix, keep)
    expected = dense.clone()
    expected[matrix.rows[~keep], matrix.col[~keep]] = 0
    assert torch.equal(part.to_dense(), expected)
    assert torch.equal(part.transpose().to_dense(), expected.T)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.floats(0, 1), st.integers(0, 10**6))
def test_reference_transpose_is_involution(rows: int, columns: int, share: float, seed: int) -> None:
    dense = random_matrix(rows, columns, seed, share)
    matrix = from_dense(dense)
    twice = matrix.transpose().transpose()
    assert torch.equal(twice.crow, matrix.crow)
    assert torch.equal(twice.col, matrix.col)
    assert torch.equal(twice.to_dense(), dense)
    right = torch.randn(columns, 2, dtype=torch.float64)
    torch.testing.assert_close(spmm(matrix, right), dense @ right, rtol=1e-12, atol=1e-13)


def test_gradient() -> None:
    for dense in (random_matrix(4, 6, 1), random_matrix(6, 4, 2)):
        matrix = from_dense(dense)
        right = torch.randn(dense.shape[1], 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda h, m=matrix: spmm(m, h), (right,))
        assert torch.autograd.gradgradcheck(lambda h, m=matrix: spmm(m, h) ** 2, (right,))


def test_gradient_symmetric_reuses_the_matrix() -> None:
    matrix = normalised(from_edges(random_edges(9, 20), 9, loops="add"), "gcn", torch.float64)
    assert matrix.transpose() is matrix
    right = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: spmm(matrix, h), (right,))


def test_gradient_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = from_dense(random_matrix(5, 6, 4))
    assert matrix.values is not None
    values = matrix.values.clone().requires_grad_()
    right = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)

    def product(v: Tensor, h: Tensor) -> Tensor:
        return spmm(matrix.with_values(v), h)

    assert torch.autograd.gradcheck(product, (values, right))
    assert torch.autograd.gradgradcheck(product, (values, right))
    monkeypatch.setattr("leanlabel.sparse._GATHER_LIMIT", 7)  # two entries at a time
    assert torch.autograd.gradcheck(product, (values, right))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    matrix = normalised(from_edges(random_edges(9, 20), 9, loops="add"), "gcn")
    right = torch.randn(9, 2, dtype=dtype, requires_grad=True)
    result = spmm(matrix, right)
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(
        result, matrix.to_dense(result.dtype) @ right.to(result.dtype), rtol=1e-5, atol=1e-6
    )
    result.sum().backward()
    assert right.grad is not None
    assert right.grad.dtype == dtype
    wide = matrix.to(dtype=torch.float64)
    assert spmm(wide, right).dtype == torch.float64
    assert wide.to(dtype=torch.float64) is wide
    assert wide.symmetric


def test_dtypes_autocast() -> None:
    matrix = normalised(from_edges(random_edges(9, 20), 9, loops="add"), "gcn")
    right = torch.randn(9, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = spmm(matrix, right)
    torch.testing.assert_close(result, matrix.to_dense() @ right, rtol=1e-5, atol=1e-6)


def test_degenerate() -> None:
    empty = from_edges(torch.zeros(2, 0, dtype=torch.int64), 4)
    right = torch.randn(4, 3, requires_grad=True)
    result = spmm(empty, right)
    assert torch.equal(result, torch.zeros(4, 3))
    result.sum().backward()
    assert right.grad is not None
    assert torch.equal(right.grad, torch.zeros(4, 3))
    assert normalised(empty, "gcn").symmetric
    assert select(empty, torch.zeros(0, dtype=torch.bool)).nnz == 0
    assert pair_ids(empty)[1] == 0
    assert components(empty)[1] == 4
    assert empty.transpose().nnz == 0
    nothing = from_edges(torch.zeros(2, 0, dtype=torch.int64), 0)
    assert nothing.shape == (0, 0)
    assert nothing.density == 0
    assert spmm(nothing, torch.zeros(0, 3)).shape == (0, 3)
    assert spmm(from_dense(torch.zeros(3, 0)), torch.zeros(0, 2)).shape == (3, 2)
    only_loops = from_edges(torch.zeros(2, 0, dtype=torch.int64), 3, loops="add")
    assert torch.equal(spmm(normalised(only_loops, "gcn"), torch.eye(3)), torch.eye(3))
    assert spmm(only_loops, torch.zeros(3, 0)).shape == (3, 0)


def test_degenerate_parts() -> None:
    unsorted = from_parts([0, 3, 3], [2, 0, 2], [1.0, 2.0, 4.0], (2, 3))
    assert unsorted.to_dense().tolist() == [[2, 0, 5], [0, 0, 0]]
    assert from_parts([0, 2], [1, 1], None, (1, 2)).to_dense().tolist() == [[0, 2]]
    assert from_parts([0, 1], [1], None, (1, 2)).values is None


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"edge_index must be integers of shape \(2, E\), got \(3, 2\)"):
        from_edges(torch.zeros(3, 2, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=r"node ids must be in \[0, 2\), got 0 to 2"):
        from_edges(PATH, 2)
    with pytest.raises(ValueError, match=r"cannot multiply \(3, 3\) with \(4, 2\)"):
        spmm(from_edges(PATH, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"keep must be bool of shape \(4,\)"):
        select(from_edges(PATH, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"crow must rise from 0"):
        from_parts([0, 2, 1], [0], [1.0], (2, 2))
    with pytest.raises(ValueError, match=r"columns must be in \[0, 2\), got 5 to 5"):
        from_parts([0, 1], [5], [1.0], (1, 2))
    with pytest.raises(ValueError, match=r"values \(2,\) do not fit col \(1,\)"):
        from_parts([0, 1], [0], [1.0, 2.0], (1, 2))
    with pytest.raises(ValueError, match=r"do not fit 3 rows"):
        from_parts([0, 1], [0], None, (3, 2))
    with pytest.raises(ValueError, match=r"values \(3,\) do not fit 4 stored entries"):
        from_edges(PATH, 3).with_values(torch.ones(3))
    with pytest.raises(ValueError, match=r"must have two dimensions"):
        from_dense(torch.ones(3))


def test_errors_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spmm(from_edges(PATH, 3), torch.ones(3, 1))


def test_state() -> None:
    matrix = normalised(from_edges(random_edges(9, 20, undirected=False), 9, loops="add"), "gcn")
    again: Csr = pickle.loads(pickle.dumps(matrix))
    right = torch.randn(9, 2)
    assert torch.equal(spmm(again, right), spmm(matrix, right))
    assert torch.equal(again.transpose().to_dense(), matrix.transpose().to_dense())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_reference_on_gpu() -> None:
    matrix = normalised(
        from_edges(random_edges(90, 400, undirected=False), 90, loops="add"), "gcn", torch.float64
    )
    right = torch.randn(90, 5, dtype=torch.float64)
    for moved in (
        matrix.to("cuda"),
        normalised(from_edges(random_edges(90, 400), 90, loops="add").to("cuda"), "gcn"),
    ):
        there = right.to("cuda", moved.to_dense().dtype).requires_grad_()
        result = spmm(moved, there)
        torch.testing.assert_close(result, moved.to_dense() @ there)
        result.square().sum().backward()
        assert there.grad is not None
        torch.testing.assert_close(there.grad, 2 * moved.to_dense().T @ result.detach())
