from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanlabel.evaluation import collapse
from leanlabel.evaluation.collapse import (
    alignment,
    dead_units,
    effective_rank,
    mean_pairwise_cosine,
    monitors,
    same_class_alignment,
    uniformity,
)

float64 = torch.float64


def rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=float64)


def unit(z: torch.Tensor) -> torch.Tensor:
    return z / z.norm(dim=1, keepdim=True)


def test_values():
    # Singular values 3 and 1: p = (3/4, 1/4), entropy = log 4 - 3/4 log 3.
    z = torch.diag(torch.tensor([3.0, 1.0], dtype=float64))
    assert effective_rank(z, centre=False) == pytest.approx(4 / 3**0.75, rel=1e-10)
    assert effective_rank(torch.eye(5, dtype=float64), centre=False) == pytest.approx(5, rel=1e-10)
    # Centring removes exactly one direction of the identity.
    assert effective_rank(torch.eye(5, dtype=float64)) == pytest.approx(4, rel=1e-10)
    ramp = torch.arange(6, dtype=float64)[:, None] * torch.tensor([[1.0, -2.0, 0.5]], dtype=float64)
    assert effective_rank(ramp + 7) == pytest.approx(1, abs=1e-6)
    assert dead_units(torch.tensor([[0.0, 1, 5, 2], [0, 1, 6, 2]])) == 0.75
    assert dead_units(torch.tensor([[0.0, 1], [0.01, 2]]), tolerance=0.1) == 0.5
    # A regular simplex of n vertices has cosine -1/(n - 1) everywhere.
    simplex = torch.eye(4, dtype=float64) - 0.25
    assert mean_pairwise_cosine(simplex) == pytest.approx(-1 / 3, rel=1e-10)
    assert uniformity(simplex) == pytest.approx(-2 * (2 + 2 / 3), rel=1e-10)
    square = torch.tensor([[1.0, 0], [0, 2], [-3, 0], [0, -1]], dtype=float64)
    assert uniformity(square, t=1.0) == pytest.approx(
        math.log((4 * math.exp(-2) + 2 * math.exp(-4)) / 6), rel=1e-10
    )
    assert alignment(torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[5.0, 0], [0, -1]])) == 2.0


def test_values_hypersphere():
    """Four pairs of views worked out by an independent script."""
    x = torch.tensor([[1, 0], [0, 1], [-1, 0], [3, 4]], dtype=float64)
    y = torch.tensor([[1, 1], [0, 1], [-1, 1], [4, 3]], dtype=float64)
    assert alignment(x, y) == pytest.approx(0.3128932188, rel=1e-9)
    assert alignment(x, y, alpha=1.0) == pytest.approx(0.4533941105, rel=1e-9)
    # With the pairs i = i it would be -1.0899547065.
    assert uniformity(x, t=2.0) == pytest.approx(-2.1630350864, rel=1e-10)
    assert same_class_alignment(x, torch.tensor([0, 0, 1, 1])) == pytest.approx(2.6, rel=1e-12)
    # Pairs count, not classes: 2 and 3.2 in classes of two rows, 0 in three pairs of a class of one direction.
    more = torch.cat([x, torch.ones(3, 2, dtype=float64)])
    assert same_class_alignment(more, torch.tensor([0, 0, 1, 1, 7, 7, 7])) == pytest.approx(
        5.2 / 5, rel=1e-12
    )


def test_reference():
    z = rows(23, 7) + 0.4
    sigma = torch.linalg.svdvals(z - z.mean(0))
    share = sigma / sigma.sum()
    expected = float((-(share * share.log()).sum()).exp())
    assert effective_rank(z) == pytest.approx(expected, rel=1e-8)
    wide = rows(5, 40)
    sigma = torch.linalg.svdvals(wide)
    share = sigma / sigma.sum()
    assert effective_rank(wide, centre=False) == pytest.approx(
        float((-(share * share.log()).sum()).exp()), rel=1e-8
    )
    u = unit(z)
    pairs = [(i, j) for i in range(23) for j in range(i)]
    assert mean_pairwise_cosine(z) == pytest.approx(
        sum(float(u[i] @ u[j]) for i, j in pairs) / len(pairs), rel=1e-10
    )
    energy = sum(math.exp(-2 * float((u[i] - u[j]).square().sum())) for i, j in pairs) / len(pairs)
    assert uniformity(z) == pytest.approx(math.log(energy), rel=1e-10)
    other = rows(23, 7, seed=1)
    gaps = [float((u[i] - unit(other)[i]).square().sum()) for i in range(23)]
    assert alignment(z, other) == pytest.approx(sum(gaps) / 23, rel=1e-10)
    for alpha in (0.5, 1.0, 3.0):
        expected = sum(gap ** (alpha / 2) for gap in gaps) / 23
        assert alignment(z, other, alpha=alpha) == pytest.approx(expected, rel=1e-10)


def test_reference_same_class():
    z, y = rows(40, 6), torch.arange(40) % 7 * 3 - 5
    y[:4] = -100
    u = unit(z)
    gaps = [
        float((u[i] - u[j]).square().sum())
        for i in range(40)
        for j in range(i)
        if y[i] == y[j] and int(y[i]) != -100
    ]
    assert same_class_alignment(z, y) == pytest.approx(sum(gaps) / len(gaps), rel=1e-10)
    assert same_class_alignment(z * 1e-25, y, ignore=-100) == pytest.approx(sum(gaps) / len(gaps), rel=1e-10)
    assert same_class_alignment(z, y, ignore=-5) != same_class_alignment(z, y)
    for chunk in (1, 7, 39):
        assert same_class_alignment(z, y, chunk=chunk) == pytest.approx(same_class_alignment(z, y), rel=1e-12)


@given(seed=st.integers(0, 1000))
def test_reference_invariances(seed):
    z = rows(17, 5, seed)
    turn = torch.linalg.qr(rows(5, 5, seed + 1)).Q
    order = torch.randperm(17, generator=torch.Generator().manual_seed(seed))
    for sign in (effective_rank, mean_pairwise_cosine, uniformity):
        assert sign(z[order] @ turn * 3.5) == pytest.approx(sign(z), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    z = rows(40, 6).to(dtype)
    exact = monitors(z.double())
    for name, value in monitors(z).items():
        assert math.isfinite(value)
        assert value == pytest.approx(exact[name], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_degenerate(scale):
    same = torch.full((9, 4), 0.1) * scale
    assert effective_rank(same) == 0.0
    assert dead_units(same) == 1.0
    assert mean_pairwise_cosine(same) == pytest.approx(1.0, abs=1e-12)
    assert uniformity(same) == pytest.approx(0.0, abs=1e-5)
    z = rows(9, 4).float() * scale
    assert monitors(z) == pytest.approx(monitors(rows(9, 4).float()), rel=1e-4)
    zero = torch.zeros(3, 2)
    assert monitors(zero) == {
        "effective_rank": 0.0,
        "dead_units": 1.0,
        "mean_pairwise_cosine": 0.0,
        "uniformity": 0.0,
    }
    assert alignment(zero, zero, alpha=0.5) == 0.0
    assert same_class_alignment(torch.full((9, 4), 0.1) * scale, torch.zeros(9).long()) < 1e-12
    # A zero row is at distance 1 of a unit row, and 0 of another zero row.
    half = torch.tensor([[0.0, 0.0], [0.0, 0.0], [scale, 0.0]])
    assert same_class_alignment(half, torch.zeros(3).long()) == pytest.approx(2 / 3, rel=1e-6)
    # One row: nothing varies; N < d and d = 1 are legal.
    assert effective_rank(torch.ones(1, 3)) == 0.0
    assert effective_rank(torch.tensor([[1.0], [2.0]])) == 1.0


def test_errors():
    for sign, least in ((effective_rank, 1), (dead_units, 1), (mean_pairwise_cosine, 2), (uniformity, 2)):
        with pytest.raises(ValueError, match=rf"N >= {least} and d >= 1, got \({least - 1}, 3\)"):
            sign(torch.zeros(least - 1, 3))
        with pytest.raises(ValueError, match="2 values that are not finite"):
            sign(torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]]))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 3\)"):
        alignment(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        alignment(torch.zeros(2, 3), torch.zeros(2, 3), alpha=0.0)
    with pytest.raises(ValueError, match=r"none of the 2 classes has two rows"):
        same_class_alignment(torch.ones(3, 2), torch.tensor([0, 1, -100]))
    with pytest.raises(ValueError, match=r"y must be \(3,\) integers, got \(2,\)"):
        same_class_alignment(torch.ones(3, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="chunk must be positive, got 0"):
        same_class_alignment(torch.ones(2, 2), torch.tensor([0, 0]), chunk=0)
    with pytest.raises(ValueError, match="t and chunk must be positive"):
        uniformity(torch.zeros(2, 3), t=0)
    with pytest.raises(ValueError, match="at least 2 rows"):
        monitors(torch.zeros(2, 3), limit=1)


@pytest.mark.parametrize("chunk", [1, 2, 7, 30, 31, 100])
def test_chunked(chunk):
    z = rows(31, 5)
    assert uniformity(z, chunk=chunk) == pytest.approx(uniformity(z, chunk=31), rel=1e-12)


def test_chunked_limit():
    z = rows(31, 5)
    assert monitors(z, limit=10)["uniformity"] == uniformity(
        z[torch.tensor([31 * i // 10 for i in range(10)])]
    )
    assert monitors(z, limit=31)["uniformity"] == uniformity(z)


def test_examples():
    assert doctest.testmod(collapse, extraglobs={"torch": torch}).failed == 0
