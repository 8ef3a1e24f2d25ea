"""Thresholds of each class: the specification's case, sorting in a loop, bins on the safe side, ranks as one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.banks.class_thresholds import ClassThresholds
from pool import Pool

CASE = [[0.95, 0.97, 0.99, 0.93, 0.91], [0.5, 0.6, 0.7, 0.8], [0.4, 0.45, 0.55], [], [0.3]]
EXPECTED = [0.9, 0.7, 0.55, 0.0, 0.3]
KEPT = [5, 2, 1, 0, 1]


def flat(groups: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Confidences and classes of all pixels, in an order that mixes the classes."""
    values = torch.tensor([value for group in groups for value in group], dtype=torch.float64)
    classes = torch.tensor([k for k, group in enumerate(groups) for _ in group], dtype=torch.int64)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    return values[order], classes[order]


def filled(groups: list[list[float]], **options: int | bool) -> ClassThresholds:
    found = ClassThresholds(len(groups), **options)  # type: ignore[arg-type]
    found.add(*flat(groups))
    return found


def random_pixels(n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return (
        torch.rand(n, generator=numbers, dtype=torch.float64) ** 0.3,
        torch.randint(classes, (n,), generator=numbers),
    )


def test_values_exact() -> None:
    """Specification, case 5: a capped median, halves rounded to even, an empty class, a single pixel."""
    sure = filled(CASE, exact=True)
    thresholds = sure.thresholds()
    assert thresholds.dtype == torch.float64
    assert thresholds.tolist() == EXPECTED
    assert sure.kept(thresholds).tolist() == KEPT
    assert sure.counts().tolist() == [5, 4, 3, 0, 1]


def test_values_histogram() -> None:
    """The same case from bins: at most a bin below, never above, and the same pixels kept."""
    sure = filled(CASE)
    thresholds = sure.thresholds()
    for found, exact in zip(thresholds.tolist(), EXPECTED, strict=True):
        assert exact - 1 / 65536 < found <= exact
    assert thresholds[0] == 0.9  # the cap is no edge of a bin, and is not rounded
    assert sure.kept(thresholds).tolist() == KEPT
    assert sure.counts().tolist() == [5, 4, 3, 0, 1]


@pytest.mark.parametrize("quantile", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("cap", [0.6, 0.9, 1.0])
def test_reference(quantile: float, cap: float) -> None:
    """Against sorted lists, in parts of different shapes."""
    values, classes = random_pixels(600, 4)
    exact, binned = ClassThresholds(4, exact=True), ClassThresholds(4, bins=1024)
    for part in (slice(0, 1), slice(1, 400), slice(400, 600)):
        for one in (exact, binned):
            one.add(values[part].reshape(1, -1), classes[part].reshape(1, -1))
    for k in range(4):
        own = sorted(values[classes == k].tolist())
        expected = min(cap, own[min(round(quantile * len(own)), len(own) - 1)])
        assert float(exact.thresholds(quantile, cap)[k]) == expected
        assert expected - 1 / 1024 < float(binned.thresholds(quantile, cap)[k]) <= expected
        kept = sum(value >= expected for value in own)
        assert int(exact.kept(exact.thresholds(quantile, cap))[k]) == kept
        assert int(binned.kept(binned.thresholds(quantile, cap))[k]) >= kept


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40),
    st.sampled_from([1, 3, 10, 49, 1000, 65536]),
    st.floats(0, 1),
)
def test_reference_never_fewer(values: list[float], bins: int, quantile: float) -> None:
    """Whatever the bins, rounding lowers a threshold by less than a bin, and keeps no fewer pixels."""
    exact, binned = filled([values], exact=True), filled([values], bins=bins)
    one, other = (float(sure.thresholds(quantile, 1.0)[0]) for sure in (exact, binned))
    assert one - 1 / bins <= other <= one
    assert sum(value >= other for value in values) >= sum(value >= one for value in values)
    assert int(binned.kept(torch.tensor([one]))[0]) >= int(exact.kept(torch.tensor([one]))[0])


@pytest.mark.parametrize("bins", [3, 10, 49, 1000])
def test_reference_edges(bins: int) -> None:
    """Values on the edges of bins, and the next numbers below and above: the edge of a value's bin is not above it."""
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    for value in torch.cat([edges, edges.nextafter(edges * 0), edges.nextafter(edges + 1)]).tolist():
        found = float(filled([[value]], bins=bins).thresholds(cap=1.0)[0])
        assert value - 1 / bins - 1e-15 <= found <= value


@given(st.permutations(range(5)))
def test_reference_relabelled(order: list[int]) -> None:
    """Classes by other numbers have their thresholds by these numbers."""
    exact = filled([CASE[k] for k in order], exact=True)
    assert exact.thresholds().tolist() == [EXPECTED[k] for k in order]


def test_gradient() -> None:
    """Nothing carries gradient, and what is given is not changed."""
    sure = ClassThresholds(3)
    values, classes = torch.rand(4, 5, requires_grad=True), torch.randint(3, (4, 5))
    before = values.detach().clone(), classes.clone()
    sure.add(values, classes)
    assert torch.equal(values, before[0])
    assert torch.equal(classes, before[1])
    assert not sure.thresholds().requires_grad
    assert not list(sure.parameters())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, kind: torch.dtype, exact: bool) -> None:
    sure = ClassThresholds(200, exact=exact)
    sure.add(torch.tensor([0.5, 0.75, 1.0], dtype=dtype), torch.tensor([199, 199, 3]).to(kind))
    assert sure.counts()[[3, 199]].tolist() == [1, 2]
    assert float(sure.thresholds()[199]) == 0.75
    assert float(sure.thresholds(cap=1.0)[3]) == (1.0 if exact else 1 - 1 / 65536)


@pytest.mark.parametrize("exact", [False, True])
def test_degenerate(exact: bool) -> None:
    """Nothing added, no pixel, one class, probabilities 0 and 1, and a little more than 1 from half precision."""
    sure = ClassThresholds(2, exact=exact)
    sure.add(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert sure.thresholds().tolist() == [0.0, 0.0]
    assert sure.counts().tolist() == sure.kept(torch.zeros(2)).tolist() == [0, 0]
    sure.add(torch.tensor([0.0, 1.0005]), torch.tensor([0, 1]))
    assert sure.kept(torch.tensor([0.0, 1.0])).tolist() == [1, 1]
    assert sure.thresholds(0.0).tolist() == [0.0, 0.9]
    one = ClassThresholds(1, bins=1, exact=exact)
    one.add(torch.tensor(0.25), torch.tensor(0))
    assert float(one.thresholds()) == (0.25 if exact else 0.0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="0 classes and 4 bins"):
        ClassThresholds(0, 4)
    sure = ClassThresholds(3)
    classes = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(3,\) torch.float32 and classes \(2,\)"):
        sure.add(torch.zeros(3), classes)
    with pytest.raises(ValueError, match="floating point"):
        sure.add(classes, classes)
    with pytest.raises(ValueError, match="must be integers"):
        sure.add(torch.zeros(2), torch.zeros(2))
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\], got"):
            sure.add(torch.tensor([0.5, wrong]), classes)
    for label in (-100, 3, 255):
        with pytest.raises(ValueError, match=r"classes must be in \[0, 3\)"):
            sure.add(torch.zeros(2), torch.tensor([0, label]))
    with pytest.raises(ValueError, match="quantile and cap"):
        sure.thresholds(1.5)
    with pytest.raises(ValueError, match="quantile and cap"):
        sure.thresholds(cap=-0.5)
    with pytest.raises(ValueError, match=r"must be \(3,\), got \(2,\)"):
        sure.kept(torch.zeros(2))
    assert sure.counts().sum() == 0  # what was refused did not count


@pytest.mark.parametrize("exact", [False, True])
def test_state(exact: bool) -> None:
    """Saved in the middle, loaded into a fresh object, gone on: bit-equal."""
    values, classes = random_pixels(50, 3)
    whole, first, second = (ClassThresholds(3, bins=64, exact=exact) for _ in range(3))
    whole.add(values[:20], classes[:20])
    first.add(values[:20], classes[:20])
    second.load_state_dict(first.state_dict())
    for one in (whole, second):
        one.add(values[20:], classes[20:])
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert torch.equal(whole.thresholds(), second.thresholds())
    assert whole.counts().sum() == second.counts().sum() == 50
    with pytest.raises(RuntimeError, match="size mismatch" if not exact else "Missing key"):
        second.load_state_dict(ClassThresholds(4, bins=64).state_dict())


def _shared(exact: bool, uneven: bool) -> list[Tensor]:
    values, classes = random_pixels(301, 5)
    cut = 0 if uneven else 120
    part = slice(None) if dist.world() == 1 else (slice(0, cut), slice(cut, 301))[dist.rank()]
    sure = ClassThresholds(6, exact=exact)
    sure.add(values[part], classes[part])
    thresholds = sure.thresholds(0.3, 0.95)
    return [thresholds, sure.counts(), sure.kept(thresholds)]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("uneven", [False, True])
def test_ranks(pool: Pool, exact: bool, uneven: bool) -> None:
    """Two ranks that saw a part each, or one of them nothing, find what one finds."""
    expected = _shared(exact, uneven)
    for found in pool.run(_shared, exact, uneven):
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one, other)
