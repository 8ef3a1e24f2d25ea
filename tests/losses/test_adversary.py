"""The adversary's loss: the numbers of the specification, a loop, large scores, and two ranks as one."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.losses import adversary
from leanlabel.losses.adversary import SOURCE, TARGET, domain_cross_entropy, self_information


def test_values() -> None:
    """O10 of the specification of SPCL."""
    scores = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    assert float(domain_cross_entropy(scores, SOURCE)) == pytest.approx(1.0815219076165103, rel=1e-12)
    assert float(domain_cross_entropy(scores, TARGET)) == pytest.approx(0.7148552409498437, rel=1e-12)
    assert 0.001 * float(domain_cross_entropy(scores, SOURCE)) == pytest.approx(
        0.0010815219076165104, rel=1e-12
    )


def test_values_self_information() -> None:
    """Probabilities 1/2, 1/4, 1/4 by hand: 0.5, 0.5 and 0.5 bits of log2 3."""
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()[None, :, None, None]
    found = self_information(logits + 7)
    torch.testing.assert_close(found.flatten(), torch.full((3,), 0.5 / math.log2(3), dtype=torch.float64))


def test_reference() -> None:
    """Loops over places."""
    torch.manual_seed(0)
    scores = torch.randn(2, 1, 3, 4, dtype=torch.float64) * 3
    for domain in (0, 1):
        total = 0.0
        for s in scores.flatten().tolist():
            p = 1 / (1 + math.exp(-s))
            total -= math.log(p) if domain else math.log(1 - p)
        assert float(domain_cross_entropy(scores, domain)) == pytest.approx(total / 24, rel=1e-10)  # type: ignore[arg-type]
    logits = torch.randn(1, 4, 2, dtype=torch.float64)
    p = logits.softmax(1)
    expected = [[-float(v) * math.log(float(v)) / math.log(4) for v in row] for row in p[0]]
    torch.testing.assert_close(self_information(logits)[0], torch.tensor(expected, dtype=torch.float64))


def test_gradient() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: domain_cross_entropy(x, SOURCE), (scores,))
    assert torch.autograd.gradcheck(lambda x: domain_cross_entropy(x, TARGET), (scores,))
    logits = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(self_information, (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    """Large scores stay finite, and so do their gradients."""
    scores = torch.tensor([-3e4, -20.0, 0.0, 3e4], dtype=dtype, requires_grad=True)
    for domain in (SOURCE, TARGET):
        found = domain_cross_entropy(scores, domain)
        (slope,) = torch.autograd.grad(found, scores)
        assert found.dtype == torch.float32
        assert bool(torch.isfinite(found))
        assert bool(torch.isfinite(slope).all())
    logits = torch.tensor([[3e4, -3e4, 0.0]], dtype=dtype, requires_grad=True)
    found = self_information(logits)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    assert found.dtype == torch.float32
    assert not bool(found.detach().any())
    assert bool(torch.isfinite(slope).all())


def test_degenerate() -> None:
    """No place gives a zero with a gradient; a single class has no uncertainty."""
    none = torch.zeros(0, 1, 2, 2, requires_grad=True)
    loss = domain_cross_entropy(none, SOURCE)
    loss.backward()
    assert float(loss.detach()) == 0
    assert none.grad is not None
    assert self_information(torch.randn(2, 1, 3)).abs().max() == 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="domain must be 0"):
        domain_cross_entropy(torch.zeros(2), 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="floating point"):
        domain_cross_entropy(torch.zeros(2, dtype=torch.int64), SOURCE)
    with pytest.raises(ValueError, match="floating point"):
        self_information(torch.zeros(2))


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=6))
def test_domains_mirror(values: list[float]) -> None:
    """Exchanging the domains is changing the sign of the scores; the two losses differ by the mean score."""
    scores = torch.tensor(values, dtype=torch.float64)
    source, target = domain_cross_entropy(scores, SOURCE), domain_cross_entropy(scores, TARGET)
    torch.testing.assert_close(source, domain_cross_entropy(-scores, TARGET))
    torch.testing.assert_close(source - target, scores.mean(), rtol=1e-9, atol=1e-9)


@given(st.integers(0, 1000), st.integers(2, 6))
def test_self_information_is_entropy(seed: int, classes: int) -> None:
    """Summed over classes: the entropy in units of its largest value."""
    logits = torch.randn(1, classes, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    entropy = torch.distributions.Categorical(logits=logits.mT).entropy() / math.log(classes)
    torch.testing.assert_close(self_information(logits).sum(1), entropy)


def ranked(sizes: list[int]) -> tuple[Tensor, Tensor]:
    scores = torch.linspace(-2, 3, 20, dtype=torch.float64).view(5, 1, 2, 2).requires_grad_()
    start = sum(sizes[: dist.rank()])
    loss = domain_cross_entropy(scores[start : start + sizes[dist.rank()]], SOURCE)
    return loss.detach(), torch.autograd.grad(loss, scores)[0]


def test_ranks(pool) -> None:
    """Two ranks with unequal numbers of places are one."""
    loss, slope = ranked([5])
    for sizes in ([2, 3], [0, 5]):
        results = pool.run(ranked, sizes)
        torch.testing.assert_close(sum(one[0] for one in results) / 2, loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(sum(one[1] for one in results) / 2, slope, rtol=1e-12, atol=0)


def test_doctests() -> None:
    assert doctest.testmod(adversary).failed == 0
