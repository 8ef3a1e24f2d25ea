"""The loss of CCA-SSG."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanlabel.losses.decorrelation import cca_ssg, standardise


def test_values() -> None:
    """Two views of three nodes and two columns, by hand.

    First view: columns (-1, 0, 1)/sqrt 2 and (1, -2, 1)/sqrt 6, orthogonal. Second: the first column twice, so its
    correlation matrix is all ones: off-diagonal squares 1 + 1. Traces: 1 + 0.
    """
    first = torch.tensor([[1.0, 5], [2, 2], [3, 5]], dtype=torch.float64)
    second = torch.tensor([[10.0, -3], [20, 0], [30, 3]], dtype=torch.float64)
    found = cca_ssg(first, second, weight=0.25)
    assert float(found["invariance"]) == pytest.approx(1.0, abs=1e-12)
    assert float(found["decorrelation"]) == pytest.approx(2.0, abs=1e-12)
    assert float(found["loss"]) == pytest.approx(1.5, abs=1e-12)


def test_reference() -> None:
    """The paper's form with the standard deviations of numpy: half of ||Z1 - Z2||^2, and the two Gram matrices."""
    generator = np.random.default_rng(3)
    one, two = generator.normal(size=(2, 11, 4))
    z = [(v - v.mean(0)) / (v.std(0) * np.sqrt(11)) for v in (one, two)]
    gram = sum(((v.T @ v - np.eye(4)) ** 2).sum() for v in z)
    expected = ((z[0] - z[1]) ** 2).sum() / 2 + 0.01 * gram
    found = cca_ssg(torch.from_numpy(one), torch.from_numpy(two), weight=0.01)
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-12)


def test_gradient() -> None:
    one, two = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: cca_ssg(a, b, weight=0.1)["loss"], (one, two))


@given(st.floats(0.1, 50), st.floats(-20, 20))
def test_affine_invariance(scale: float, shift: float) -> None:
    """Scaling and shifting a column changes nothing."""
    one, two = torch.randn(2, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cca_ssg(one * scale + shift, two)["loss"], cca_ssg(one, two)["loss"])


def test_dtypes() -> None:
    z = torch.randn(6, 2)
    assert cca_ssg(z.bfloat16(), z.bfloat16())["loss"].dtype == torch.float32
    torch.testing.assert_close(
        cca_ssg(z, z.flip(0))["loss"].double(), cca_ssg(z.double(), z.double().flip(0))["loss"]
    )


def test_degenerate() -> None:
    """A constant column, one row, all zeros: finite values and gradients; the missing variance is counted."""
    for z in (torch.ones(4, 2), torch.randn(1, 2), torch.zeros(3, 2), torch.tensor([[7.0, 1], [7, 2]])):
        z = z.clone().requires_grad_()
        found = cca_ssg(z, z * 1.0)
        found["loss"].backward()
        assert z.grad is not None
        assert bool(torch.isfinite(z.grad).all())
    constant = cca_ssg(torch.ones(4, 2), torch.ones(4, 2))
    assert float(constant["decorrelation"]) == 4
    assert float(constant["invariance"]) == 2
    assert bool((standardise(torch.full((5, 1), 1e6)) == 0).all())


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        cca_ssg(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="N >= 1"):
        cca_ssg(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="negative"):
        cca_ssg(torch.zeros(2, 3), torch.zeros(2, 3), weight=-1.0)
