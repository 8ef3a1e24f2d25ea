"""Scores without labels: numbers by hand, naive loops, what they must not depend on."""

from __future__ import annotations

import doctest
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanlabel.evaluation import label_free
from leanlabel.evaluation.collapse import effective_rank
from leanlabel.evaluation.label_free import (
    DIRECTION,
    label_free_scores,
    mutual_information,
    neighbourhood_density,
    prediction_entropy,
    teacher_agreement,
)

QUARTERS = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distributions(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).softmax(-1)


def naive_density(rows: Tensor, tau: float) -> float:
    """The definition, one pair at a time."""
    units = [(row / (float(row.norm()) or 1.0)).tolist() for row in rows]
    total = 0.0
    for i, one in enumerate(units):
        powers = [
            math.exp(sum(a * b for a, b in zip(one, other)) / tau) for j, other in enumerate(units) if j != i
        ]
        shares = [power / sum(powers) for power in powers]
        total -= sum(share * math.log(share) for share in shares if share > 0)
    return total / len(units)


def test_values_entropy() -> None:
    # H(1/4, 3/4) = 2 log 2 - 3/4 log 3 = 0.56233514461, H(1, 0) = 0, H(1/2, 1/2) = log 2 = 0.69314718056
    assert prediction_entropy(QUARTERS) == pytest.approx((0.56233514461880 + 0.69314718055994) / 3, rel=1e-10)
    assert prediction_entropy(torch.full((7, 5), 0.2, dtype=torch.float64)) == pytest.approx(
        math.log(5), rel=1e-12
    )


def test_values_mutual_information() -> None:
    # Mean (7/12, 5/12): H = log 12 - (7 log 7 + 5 log 5) / 12 = 0.679193255...; minus the entropy above.
    mean = math.log(12) - (7 * math.log(7) + 5 * math.log(5)) / 12
    assert mutual_information(QUARTERS) == pytest.approx(mean - 0.41849410839291, rel=1e-10)
    assert mutual_information(torch.eye(5)) == pytest.approx(math.log(5), rel=1e-12)
    # A model that always says the same: its entropy is the best there is, its information the worst.
    constant = torch.tensor([[1.0, 0.0]] * 4)
    assert (prediction_entropy(constant), mutual_information(constant)) == (0.0, 0.0)


def test_values_density() -> None:
    # Three unit rows with cosines 0 (first, second) and 0.6, 0.8 (third); tau = 0.2, logits 0, 3, 4.
    rows = torch.tensor([[2.0, 0.0], [0.0, 0.5], [0.6, 0.8]], dtype=torch.float64)

    def two(logit: float) -> float:
        """Entropy of a softmax over two logits that differ so much."""
        share = 1 / (1 + math.exp(-logit))
        return -share * math.log(share) - (1 - share) * math.log(1 - share)

    expected = (two(3) + two(4) + two(1)) / 3  # of the first row 0 against 3, the second 0, 4, the third 3, 4
    assert neighbourhood_density(rows, 0.2) == pytest.approx(expected, rel=1e-10)


def test_values_density_prefers_crowds() -> None:
    """Many rows per direction are denser than few; the number of rows is the same."""
    few, many = torch.eye(12).repeat_interleave(2, 0), torch.eye(2).repeat_interleave(12, 0)
    assert neighbourhood_density(few) == pytest.approx(0, abs=1e-6)
    assert neighbourhood_density(many) == pytest.approx(math.log(11), rel=1e-6)


def test_values_agreement() -> None:
    student = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.1], [1.0, 1.0]], dtype=torch.float64)
    assert teacher_agreement(student, teacher) == pytest.approx((0.6 - 1 + 1 + 0) / 4, rel=1e-12)
    said = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.5, 0.5]])
    other = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.8, 0.2]])  # of two equal maxima the first counts
    assert teacher_agreement(said, other, probabilities=True) == pytest.approx(2 / 3)


def test_values_all_scores() -> None:
    z, said, teacher = normal(9, 4), distributions(9, 3, seed=1), distributions(9, 3, seed=2)
    found = label_free_scores(z, said, teacher)
    assert found == {
        "effective_rank": effective_rank(z),
        "neighbourhood_density": neighbourhood_density(said),
        "entropy": prediction_entropy(said),
        "mutual_information": mutual_information(said),
        "teacher_agreement": teacher_agreement(said, teacher, probabilities=True),
    }
    assert found.keys() == DIRECTION.keys()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    without = label_free_scores(z, teacher=normal(9, 4, seed=5))
    assert without == {
        "effective_rank": effective_rank(z),
        "neighbourhood_density": neighbourhood_density(z),
        "teacher_agreement": teacher_agreement(z, normal(9, 4, seed=5)),
    }
    assert DIRECTION["entropy"] == "lower"
    assert {way for name, way in DIRECTION.items() if name != "entropy"} == {"higher"}


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_reference_density(tau: float) -> None:
    rows = normal(11, 3)
    rows[4] = 0
    assert neighbourhood_density(rows, tau) == pytest.approx(naive_density(rows, tau), rel=1e-10)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 9), width=st.integers(1, 4))
@settings(max_examples=15)
def test_reference_what_does_not_matter(seed: int, count: int, width: int) -> None:
    """Order of rows, length of rows, rotation of the space, names of the classes."""
    rows, said = normal(count, width, seed=seed), distributions(count, width, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    order, names = torch.randperm(count, generator=generator), torch.randperm(width, generator=generator)
    scale = torch.rand(count, 1, generator=generator).double() + 0.1
    turn = torch.linalg.qr(normal(width, width, seed=seed + 1))[0]
    density = neighbourhood_density(rows, 0.1)
    assert neighbourhood_density((scale * rows)[order] @ turn, 0.1) == pytest.approx(
        density, rel=1e-7, abs=1e-9
    )
    assert 0 <= density <= math.log(max(1, count - 1)) + 1e-9
    entropy, information = prediction_entropy(said), mutual_information(said)
    assert prediction_entropy(said[order][:, names]) == pytest.approx(entropy, rel=1e-9, abs=1e-12)
    assert mutual_information(said[order][:, names]) == pytest.approx(information, rel=1e-7, abs=1e-12)
    assert 0 <= entropy <= math.log(width) + 1e-12
    assert 0 <= information <= math.log(width) + 1e-12
    other = normal(count, width, seed=seed + 2)
    cosine = teacher_agreement(rows, other)
    assert teacher_agreement((scale * rows)[order] @ turn, 3 * other[order] @ turn) == pytest.approx(
        cosine, rel=1e-7, abs=1e-9
    )
    assert teacher_agreement(rows, 2 * rows) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    z, said = 100 * normal(20, 6, dtype=dtype), distributions(20, 4).to(dtype)
    found = label_free_scores(z, said, said)
    exact = label_free_scores(z.double(), said.double(), said.double())
    for name, value in found.items():
        assert value == pytest.approx(exact[name], rel=1e-5), name
    assert neighbourhood_density(z) == pytest.approx(neighbourhood_density(z.double()), rel=1e-4)


def test_degenerate() -> None:
    """One row, two rows, rows of zeros, rows that are all alike."""
    one = normal(1, 3)
    assert label_free_scores(one, torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])) == {
        "effective_rank": 0.0,
        "neighbourhood_density": 0.0,
        "entropy": 0.0,
        "mutual_information": 0.0,
        "teacher_agreement": 0.0,
    }
    assert neighbourhood_density(normal(2, 3)) == 0.0
    assert neighbourhood_density(torch.zeros(5, 3)) == pytest.approx(math.log(4))
    assert neighbourhood_density(torch.full((5, 3), 7.0)) == pytest.approx(math.log(4))
    assert teacher_agreement(torch.zeros(3, 2), torch.zeros(3, 2)) == 0.0
    assert label_free_scores(torch.full((5, 3), 7.0))["effective_rank"] == 0.0
    assert prediction_entropy(torch.ones(4, 1)) == 0.0
    assert 0 <= neighbourhood_density(normal(30, 4), 1e-4) < 1e-4  # e^10000 does not overflow


def test_errors() -> None:
    for function in (prediction_entropy, mutual_information):
        with pytest.raises(ValueError, match=r"probabilities \(3, 2\) must be >= 0 .* smallest is -1"):
            function(torch.tensor([[-1.0, 2.0]] * 3))
        with pytest.raises(ValueError, match=r"sums lie in \[1, 1\.5\]"):
            function(torch.tensor([[1.0, 0.0], [1.0, 0.5]]))
        with pytest.raises(ValueError, match=r"must be \(N, D\) with N, D >= 1, got \(0, 2\)"):
            function(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="1 values that are not finite"):
        neighbourhood_density(torch.tensor([[1.0, float("nan")]]))
    for wrong in ({"tau": 0.0}, {"chunk": 0}, {"limit": 1}):
        with pytest.raises(ValueError, match="must be positive"):
            neighbourhood_density(torch.eye(3), **wrong)
    with pytest.raises(ValueError, match=r"differ in shape: \(3, 3\) and \(2, 2\)"):
        teacher_agreement(torch.eye(3), torch.eye(2))
    with pytest.raises(ValueError, match=r"the same rows: \(3, 3\) and \(2, 2\)"):
        label_free_scores(torch.eye(3), torch.eye(2))


@pytest.mark.parametrize("chunk", [1, 3, 11, 16])
def test_chunked(chunk: int) -> None:
    rows = normal(11, 3)
    whole = neighbourhood_density(rows, chunk=11, limit=None)
    assert neighbourhood_density(rows, chunk=chunk, limit=None) == pytest.approx(whole, rel=1e-12)


def test_chunked_limit() -> None:
    """Evenly spaced rows are read where there are too many."""
    rows = normal(10, 3)
    assert neighbourhood_density(rows, limit=4) == neighbourhood_density(rows[torch.tensor([0, 2, 5, 7])])
    assert neighbourhood_density(rows, limit=10) == neighbourhood_density(rows, limit=None)


def test_examples() -> None:
    assert doctest.testmod(label_free).failed == 0
