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
