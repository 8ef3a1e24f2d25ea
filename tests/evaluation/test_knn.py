"""The weighted vote of nearest neighbours: known answers, a naive loop, blocks, labels of every kind."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

from leanlabel.evaluation import knn
from leanlabel.evaluation.knn import knn_scores, weighted_knn
from leanlabel.sparse import from_dense

float64 = torch.float64
BANK = torch.tensor([[1, 0], [4, 1], [1, 1], [0, 1], [-1, 3]], dtype=float64)
LABELS = torch.tensor([0, 1, 1, 2, 2])
QUERY = torch.tensor([[3, 1]], dtype=float64)


def normal(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=float64)


def naive(bank, labels, queries, k, temperature, classes):
    """One query after the other, one neighbour after the other."""
    found = []
    for query in queries:
        alike = [float(query @ row / (query.norm() * row.norm())) for row in bank]
        nearest = sorted(range(len(bank)), key=lambda j: -alike[j])[:k]
        votes = [0.0] * classes
        for j in nearest:
            votes[int(labels[j])] += math.exp(alike[j] / temperature)
        found.append([vote / sum(votes) for vote in votes])
    return torch.tensor(found, dtype=float64)


def test_values():
    expected = torch.tensor([[0.3121739814, 0.6878260186, 0.0]], dtype=float64)
    torch.testing.assert_close(weighted_knn(BANK, LABELS, QUERY, k=3), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        weighted_knn(from_dense(BANK), LABELS, from_dense(QUERY), k=3), expected, rtol=1e-9, atol=1e-10
    )
    # The three similarities, one neighbour at a time: exp(difference / T) is the odds of the two closest.
    two = weighted_knn(BANK, LABELS, QUERY, k=2)[0]
    assert float(two[0] / two[1]) == pytest.approx(math.exp((0.9486832981 - 0.9970544855) / 0.1), rel=1e-8)
    assert weighted_knn(BANK, LABELS, QUERY, k=1).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.07), (40, 1.0), (200, 0.1)])
def test_reference(k, temperature):
    bank, queries, labels = normal(40, 6), normal(13, 6, seed=1), torch.arange(40) % 5
    found = weighted_knn(bank, labels, queries, k=k, temperature=temperature)
    torch.testing.assert_close(found, naive(bank, labels, queries, k, temperature, 5), rtol=1e-10, atol=1e-12)
    stored = weighted_knn(from_dense(bank), labels, from_dense(queries), k=k, temperature=temperature)
    torch.testing.assert_close(stored, found, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sum(1), torch.ones(13, dtype=float64))


def test_reference_invariances():
    bank, queries, labels = normal(30, 4), normal(9, 4, seed=1), torch.arange(30) % 3
    found = weighted_knn(bank, labels, queries, k=6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(normal(4, 4, seed=2)).Q
    changed = weighted_knn(3e20 * bank[order] @ turn, labels[order], 1e-20 * queries @ turn, k=6)
    torch.testing.assert_close(changed, found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    bank, queries, labels = normal(50, 8).to(dtype), normal(9, 8, seed=1).to(dtype), torch.arange(50) % 4
    found = weighted_knn(bank, labels, queries, k=10, temperature=0.01)
    assert found.dtype == torch.float32
    exact = weighted_knn(bank.double(), labels, queries.double(), k=10, temperature=0.01)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(weighted_knn(bank, labels, queries, k=10, temperature=0.01), found)
    assert weighted_knn(bank, labels, queries.double(), k=10).dtype == float64
    # Large rows: the norm of float32 entries near the limit is no infinity, stored or not.
    big = normal(6, 3).float() * 1e30
    torch.testing.assert_close(
        weighted_knn(from_dense(big), LABELS.repeat(2)[:6], from_dense(big), k=3),
        weighted_knn(big / 1e30, LABELS.repeat(2)[:6], big / 1e30, k=3),
        rtol=1e-4,
        atol=1e-5,
    )


def test_degenerate():
    # More neighbours than the bank has rows: all of them vote.
    everything = weighted_knn(BANK, LABELS, QUERY, k=5)
    assert torch.equal(weighted_knn(BANK, LABELS, QUERY, k=200), everything)
    # Labels of any value, one column for each in ascending order; the others in between get none.
    named = torch.tensor([-7, 40, 40, 1000, 1000])
    assert torch.equal(weighted_knn(BANK, named, QUERY), everything)
    wide = weighted_knn(BANK, LABELS * 2, QUERY, classes=6)
    assert torch.equal(wide[:, [0, 2, 4]], everything)
    assert int(wide[:, [1, 3, 5]].count_nonzero()) == 0
    # Rows without a label have no vote, however close.
    more = torch.cat([QUERY, BANK, QUERY])
    labels = torch.cat([torch.tensor([-100]), LABELS, torch.tensor([-100])])
    assert torch.equal(weighted_knn(more, labels, QUERY, k=3), weighted_knn(BANK, LABELS, QUERY, k=3))
    # A zero row is at cosine 0 of everything, and nothing is NaN.
    zero = torch.zeros(1, 2, dtype=float64)
    assert weighted_knn(BANK, LABELS, zero).tolist()[0] == pytest.approx([0.2, 0.4, 0.4], rel=1e-12)
    for form in (lambda x: x, from_dense):
        found = weighted_knn(form(torch.cat([zero, zero])), torch.tensor([0, 1]), form(QUERY))
        assert found.tolist() == [[0.5, 0.5]]
        found = weighted_knn(form(torch.cat([-QUERY, zero])), torch.tensor([0, 1]), form(QUERY), k=1)
        assert found.tolist() == [[0.0, 1.0]]
    assert weighted_knn(BANK, LABELS, BANK[:0]).shape == (0, 3)
    # Small temperatures: no overflow, and the closest row decides.
    assert weighted_knn(BANK, LABELS, QUERY, temperature=1e-6).tolist() == [[0.0, 1.0, 0.0]]
    assert weighted_knn(BANK.int().float(), LABELS.to(torch.uint8), QUERY.float(), k=1).tolist() == [
        [0, 1, 0]
    ]


def test_degenerate_split():
    z = torch.cat([torch.eye(3).repeat(4, 1), torch.eye(3)[:1]])
    y = torch.cat([(torch.arange(12) % 3) * 2, torch.tensor([-100])])  # classes 0, 2, 4 and one row without
    rows = torch.arange(12)
    split = {"train": rows[:6], "val": rows[6:9], "test": rows[9:11]}
    found = knn_scores(z, y, split)
    assert (found.accuracy, found.val_accuracy, found.k) == (1.0, 1.0, 6)
    # The test rows lack class 4; classes 1 and 3 have no row at all.
    assert found.recall == (1.0, None, 1.0, None, None)
    # A class that training lacks is never predicted, whatever lies closest.
    lacking = {"train": rows[:6][y[:6] != 4], "val": rows[6:9], "test": rows[9:12]}
    found = knn_scores(z, y, lacking)
    assert found.accuracy == pytest.approx(2 / 3)
    assert int(found.confusion[4, 4]) == 0
    assert knn_scores(from_dense(z), y, split).accuracy == 1.0


def test_errors():
    with pytest.raises(ValueError, match=r"must be positive, got 0, 0\.1, None"):
        weighted_knn(BANK, LABELS, QUERY, k=0)
    with pytest.raises(ValueError, match=r"must be positive, got 200, 0\.0"):
        weighted_knn(BANK, LABELS, QUERY, temperature=0.0)
    with pytest.raises(ValueError, match=r"got \(5, 2\) and \(1, 3\)"):
        weighted_knn(BANK, LABELS, torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"labels must be \(5,\) integers, got \(4,\)"):
        weighted_knn(BANK, LABELS[:4], QUERY)
    with pytest.raises(ValueError, match=r"integers, got \(5,\) torch.float32"):
        weighted_knn(BANK, LABELS.float(), QUERY)
    with pytest.raises(ValueError, match="no labelled row among 5"):
        weighted_knn(BANK, torch.full((5,), -100), QUERY)
    with pytest.raises(ValueError, match=r"labels 0\.\.2 of the bank lie outside \[0, 2\)"):
        weighted_knn(BANK, LABELS, QUERY, classes=2)
    with pytest.raises(ValueError, match="queries holds 1 values that are not finite"):
        weighted_knn(BANK, LABELS, torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize("tile", [1, 3, 16, 64])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunked(monkeypatch, tile, chunk):
    """Blocks of queries and of the bank change nothing."""
    bank, queries, labels = normal(41, 5), normal(11, 5, seed=1), torch.arange(41) % 6
    whole = weighted_knn(bank, labels, queries, k=9)
    monkeypatch.setattr(knn, "TILE", tile)
    torch.testing.assert_close(
        weighted_knn(bank, labels, queries, k=9, chunk=chunk), whole, rtol=1e-12, atol=0
    )
    stored = weighted_knn(from_dense(bank), labels, from_dense(queries), k=9, chunk=chunk)
    torch.testing.assert_close(stored, whole, rtol=1e-12, atol=1e-14)


def test_chunked_memory(monkeypatch):
    """No product is larger than a block, and none is one-hot."""
    largest = 0
    topk = torch.Tensor.topk

    def watched(self, *args, **kwargs):
        nonlocal largest
        largest = max(largest, self.numel())
        return topk(self, *args, **kwargs)

    monkeypatch.setattr(knn, "TILE", 64)
    monkeypatch.setattr(knn, "BLOCK", 640)
    monkeypatch.setattr(torch.Tensor, "topk", watched)
    weighted_knn(normal(1000, 4), torch.arange(1000) % 50, normal(300, 4, seed=1), k=8)
    assert 0 < largest <= 640


@pytest.mark.gpu
def test_values_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    bank, queries, labels = normal(500, 16), normal(60, 16, seed=1), torch.arange(500) % 7
    here = weighted_knn(bank, labels, queries, k=20)
    there = weighted_knn(bank.cuda(), labels, queries.cuda(), k=20)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-9, atol=1e-12)


def test_examples():
    assert doctest.testmod(knn, extraglobs={"torch": torch}).failed == 0
