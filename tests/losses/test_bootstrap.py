"""The loss of methods without negatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanlabel.losses.bootstrap import bootstrap_cosine


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_values() -> None:
    """Angles of 0, 90, 180 and arccos 0.6 degrees by hand: 2 - 2 cos."""
    q = rows([2, 0], [0, 3], [1, 0], [3, 4])
    t = rows([5, 0], [1, 0], [-2, 0], [1, 0])
    found = bootstrap_cosine(q, t, reduction="none")
    torch.testing.assert_close(found, torch.tensor([0, 2, 4, 0.8], dtype=torch.float64))
    assert float(bootstrap_cosine(q, t)) == pytest.approx(1.7)
    assert float(bootstrap_cosine(q, t, reduction="sum")) == pytest.approx(6.8)


def test_reference() -> None:
    """The squared distance of unit rows."""
    q, t = torch.randn(2, 7, 5, dtype=torch.float64)
    distance = (torch.nn.functional.normalize(q) - torch.nn.functional.normalize(t)).square().sum(1)
    torch.testing.assert_close(bootstrap_cosine(q, t, reduction="none"), distance)


def test_gradient() -> None:
    """Through the prediction only, right by finite differences."""
    q = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    t = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bootstrap_cosine(x, t), (q,))
    bootstrap_cosine(q, t).backward()
    assert t.grad is None


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_scale_invariance(a: float, b: float) -> None:
    q, t = rows([1, 2], [-1, 0.5]), rows([0.3, 1], [2, 2])
    torch.testing.assert_close(bootstrap_cosine(a * q, b * t), bootstrap_cosine(q, t))


def test_dtypes() -> None:
    q = torch.randn(3, 4)
    assert bootstrap_cosine(q.half(), q.half()).dtype == torch.float32
    assert bootstrap_cosine(q.double(), q.double()).dtype == torch.float64


def test_degenerate() -> None:
    """No rows give a zero with a gradient; a zero row has cosine 0 and no gradient."""
    empty = torch.zeros(0, 3, requires_grad=True)
    loss = bootstrap_cosine(empty, torch.zeros(0, 3))
    loss.backward()
    assert float(loss) == 0
    zero = torch.zeros(1, 3, requires_grad=True)
    loss = bootstrap_cosine(zero, torch.ones(1, 3))
    loss.backward()
    assert float(loss) == 2
    assert zero.grad is not None
    assert bool((zero.grad == 0).all())


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 3\)"):
        bootstrap_cosine(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="must be"):
        bootstrap_cosine(torch.zeros(3), torch.zeros(3))
