from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from leanlabel.losses.contrastive import (
    Distinct,
    NotItself,
    OwnKey,
    SameId,
    Weights,
    bf16_products,
    contrast,
    two_view_contrast,
    unit,
)

D = 4


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels(count: int, classes: int, seed: int) -> Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


def test_values_two_views() -> None:
    first = torch.tensor([[1, 0], [0.6, 0.8], [0, 2]], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([[2, 0.5], [0.5, 0.5], [-1, 1]], dtype=torch.float64, requires_grad=True)
    losses = two_view_contrast(first, second, tau=0.5, reduction="none")
    expected = [0.809368876, 1.091127951, 1.3460383685, 1.0157167844, 1.1122841363, 0.5374841967]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    mean = two_view_contrast(first, second, tau=0.5)
    torch.testing.assert_close(mean.item(), 0.985336718823, rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(mean, first)
    literal = [[0, 0.1614807415], [-0.0469757064, 0.0352317799], [0.2946568355, 0]]
    torch.testing.assert_close(gradient, torch.tensor(literal, dtype=torch.float64), rtol=1e-8, atol=1e-12)


def test_values_queue_and_mixed_negatives() -> None:
    query = unit(torch.tensor([[1, 2, 2], [2, -1, 2]], dtype=torch.float64)).requires_grad_()
    own = unit(torch.tensor([[2, 2, 1], [1, 0, 1]], dtype=torch.float64))
    queue = [[0, 3, 4], [4, 0, 3], [-1, 2, 2], [1, 1, -1], [2, 1, -1]]
    keys = unit(torch.tensor(queue, dtype=torch.float64))
    losses = contrast(query, keys, tau=0.2, own=own, reduction="none")
    expected = torch.tensor([1.1719645118, 0.7086829208], dtype=torch.float64)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)
    mean = contrast(query, keys, tau=0.2, own=own)
    torch.testing.assert_close(mean.item(), 0.9403237163, rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(losses.sum(), query)
    literal = [[-2.1037377388, -0.4914276811, 1.2388427406], [0.1161331622, 0.1075093757, -0.3009284435]]
    torch.testing.assert_close(gradient, torch.tensor(literal, dtype=torch.float64), rtol=1e-8, atol=0)
    mixed = [[4.1353524156, 4.7970806300, 4.8786937691], [4.0038174464, 0.8681196401, 2.1320071636]]
    extra = torch.tensor(mixed, dtype=torch.float64)
    with_mixed = contrast(query, keys, tau=0.2, own=own, extra=extra, reduction="none")
    expected = torch.tensor([1.9357239955, 0.9631104508], dtype=torch.float64)
    torch.testing.assert_close(with_mixed, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_values_equal_similarities(n: int) -> None:
    same = torch.ones(n, 3, dtype=torch.float64)
    torch.testing.assert_close(two_view_contrast(same, same, tau=0.1).item(), math.log(2 * n - 1))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("chunk", [None, 2])
def test_gradient(inside: bool, chunk: int | None) -> None:
    def loss(query: Tensor, keys: Tensor, own: Tensor, extra: Tensor) -> Tensor:
        setting = {"tau": 0.7, "own": own, "extra": extra, "chunk": chunk, "inside": inside}
        keep = Distinct(labels(5, 4, 5), labels(7, 4, 6))
        return contrast(query, keys, relation=SameId(labels(5, 3, 1), labels(7, 3, 2)), keep=keep, **setting)

    leaves = [rows(5, D, seed=1), rows(7, D, seed=2), rows(5, D, seed=3), rows(5, 2, seed=4)]
    assert torch.autograd.gradcheck(loss, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("chunk", [None, 3])
def test_gradient_two_views(chunk: int | None) -> None:
    leaves = [rows(5, D, seed=1).requires_grad_(), rows(5, D, seed=2).requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: two_view_contrast(a, b, tau=0.5, chunk=chunk), leaves)


def test_gradient_twice_through_one_graph() -> None:
    query = rows(6, D, seed=1).requires_grad_()
    keys = rows(9, D, seed=2).requires_grad_()
    for columns, relation, keep in (
        (query, OwnKey(torch.arange(6).roll(3)), NotItself()),
        (keys, OwnKey(torch.arange(6)), None),
        (keys.detach(), OwnKey(torch.arange(6)), None),
    ):
        loss = contrast(query, columns, tau=0.5, relation=relation, keep=keep)
        first = torch.autograd.grad(loss, query, retain_graph=True)[0]
        torch.testing.assert_close(torch.autograd.grad(loss, query)[0], first, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    first, second = (8 * rows(20, 16, seed=s, dtype=dtype) for s in (1, 2))
    first.requires_grad_()
    loss = two_view_contrast(first, second, tau=0.1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert first.grad is not None
    assert first.grad.dtype == dtype
    assert first.grad.isfinite().all()
    exact = two_view_contrast(first.detach().double(), second.double(), tau=0.1)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)


def test_dtypes_autocast() -> None:
    query, keys = rows(20, 16, seed=1, dtype=torch.float32), rows(20, 16, seed=2, dtype=torch.float32)
    query.requires_grad_()
    relation = OwnKey(torch.arange(20))
    plain = contrast(query, keys, tau=0.1, relation=relation)
    expected = torch.autograd.grad(plain, query)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrast(query, keys, tau=0.1, relation=relation)
        gradient = torch.autograd.grad(loss, query)[0]
    torch.testing.assert_close(loss, plain, rtol=0, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


@pytest.mark.parametrize("tau", [0.4, 0.2])
def test_dtypes_bf16_products(tau: float) -> None:
    shared = rows(600, 64, seed=1)
    views = [(shared + 0.5 * rows(600, 64, seed=s)).float().requires_grad_() for s in (2, 3)]
    plain = two_view_contrast(*views, tau=tau)
    with bf16_products():
        rounded = two_view_contrast(*views, tau=tau)
    torch.testing.assert_close(rounded, plain, rtol=1e-4, atol=0)
    for mine, right in zip(
        torch.autograd.grad(rounded, views), torch.autograd.grad(plain, views), strict=True
    ):
        error = float((mine - right).norm() / right.norm())
        assert 0 < error < 1e-3
    queue = rows(700, 64, seed=4, dtype=torch.float32)
    query, keys = views[0].detach() / 8, unit(queue)
    query.requires_grad_()
    plain = contrast(query, keys, tau=tau, own=unit(views[1]), chunk=128)
    with bf16_products():
        rounded = contrast(query, keys, tau=tau, own=unit(views[1]), chunk=128)
    mine, right = torch.autograd.grad(rounded, query)[0], torch.autograd.grad(plain, query)[0]
    assert 0 < float((mine - right).norm() / right.norm()) < 1e-3


def test_degenerate_nothing_to_compare() -> None:
    for n, k in ((0, 4), (3, 0), (0, 0)):
        query, keys = torch.zeros(n, D, requires_grad=True), torch.zeros(k, D, requires_grad=True)
        relation = SameId(torch.zeros(n).long(), torch.zeros(k).long())
        loss = contrast(query, keys, tau=0.5, relation=relation)
        loss.backward()
        assert loss == 0
        assert query.grad is not None
        assert keys.grad is not None
        assert not query.grad.any()
        total, count = contrast(query, keys, tau=0.5, relation=relation, reduction="parts")
        assert (total.item(), count.item()) == (0.0, 0.0)
        assert total.requires_grad


@pytest.mark.parametrize("inside", [False, True])
def test_degenerate_no_positive(inside: bool) -> None:
    query = rows(4, D, seed=1).requires_grad_()
    keys = rows(5, D, seed=2).requires_grad_()
    none = SameId(torch.zeros(4).long(), torch.ones(5).long())
    for relation, keep in (
        (none, None),
        (none, Distinct(torch.zeros(4).long(), torch.zeros(5).long())),
        (OwnKey(torch.arange(4)), NotItself()),
    ):
        loss = contrast(query, keys, tau=0.5, relation=relation, keep=keep, inside=inside)
        gradients = torch.autograd.grad(loss, [query, keys])
        assert loss == 0
        assert not any(g.any() for g in gradients)


def test_degenerate_rows_without_positive_leave_the_mean() -> None:
    query, keys = rows(4, D, seed=1), rows(5, D, seed=2)
    ids, key_ids = torch.tensor([0, 7, 1, 7]), torch.tensor([0, 1, 1, 0, 3])
    losses = contrast(query, keys, tau=0.5, relation=SameId(ids, key_ids), reduction="none")
    mean = contrast(query, keys, tau=0.5, relation=SameId(ids, key_ids))
    assert losses[1] == losses[3] == 0
    torch.testing.assert_close(mean, losses.sum() / 2)


def test_degenerate_empty_queue_and_absent_extra() -> None:
    query, own = rows(4, D, seed=1).requires_grad_(), rows(4, D, seed=2)
    extra = torch.full((4, 2), -torch.inf, dtype=torch.float64)
    for more in (None, extra, extra[:, :0]):
        loss = contrast(query, query.new_zeros(0, D), tau=0.5, own=own, extra=more)
        (gradient,) = torch.autograd.grad(loss, query)
        assert loss.detach().abs() < 1e-15
        assert gradient.abs().max() < 1e-15


def test_degenerate_single_sample() -> None:
    first, second = rows(1, D, seed=1).requires_grad_(), rows(1, D, seed=2)
    loss = two_view_contrast(first, second, tau=0.1)
    assert loss.detach().abs() < 1e-14
    assert torch.autograd.grad(loss, first)[0].abs().max() < 1e-13


def test_degenerate_zero_row() -> None:
    first, second = rows(5, D, seed=1), rows(5, D, seed=2)
    first[2] = 0
    first.requires_grad_()
    loss = two_view_contrast(first, second, tau=0.5)
    (gradient,) = torch.autograd.grad(loss, first)
    assert not gradient[2].any()
    assert gradient.isfinite().all()
    assert gradient[1].any()


def test_degenerate_nan_is_passed_on() -> None:
    query, keys = rows(4, D, seed=1), rows(5, D, seed=2)
    query[1, 0] = torch.nan
    assert contrast(query, keys, tau=0.5, relation=OwnKey(torch.arange(4))).isnan()


def test_errors() -> None:
    query, keys, own = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, 4)
    relation = OwnKey(torch.tensor([0, 1, 2]))
    wrong: list[tuple[str, dict[str, Any]]] = [
        (r"tau must be positive, got 0", {"tau": 0}),
        (r"tau must be positive, got nan", {"tau": math.nan}),
        (r"chunk must be at least 1, got 0", {"chunk": 0}),
        (r"reduction must be mean, sum, none or parts, got 'avg'", {"reduction": "avg"}),
        (r"must share D, got \(3, 4\) and \(5, 3\)", {"keys": torch.zeros(5, 3)}),
        (r"must share D, got \(3, 4\) and \(5,\)", {"keys": torch.zeros(5)}),
        (r"query must be floating point, got torch.int64", {"query": torch.zeros(3, 4).long()}),
        (r"query and keys must have one type, got torch.float32 and torch.float64", {"keys": keys.double()}),
        (r"own must have the shape of query \(3, 4\), got \(2, 4\)", {"own": own[:2]}),
        (r"extra must be \(3, E\), got \(2, 4\)", {"extra": own[:2]}),
        (r"no positives: give own, relation or both", {"relation": None}),
        (r"OwnKey.index must be int64 \(3,\), got torch.int64 \(2,\)", {"relation": OwnKey(torch.arange(2))}),
        (r"OwnKey.index must lie in \[0, 5\), got 3 to 5", {"relation": OwnKey(torch.arange(3, 6))}),
        (r"NotItself.index must lie in \[0, 5\)", {"keep": NotItself(torch.tensor([-1, 0, 0]))}),
        (
            r"SameId needs ids of shape \(3,\) and \(5,\), got \(3,\) and \(3,\)",
            {"relation": SameId(torch.arange(3), torch.arange(3))},
        ),
        (
            r"Distinct needs ids of shape \(3,\) and \(5,\), got \(5,\) and \(5,\)",
            {"keep": NotItself() & Distinct(torch.arange(5), torch.arange(5))},
        ),
        (r"Weights.w must be \(3, 5\), got \(5, 3\)", {"relation": Weights(torch.ones(5, 3))}),
        (
            r"Weights.own must be \(3,\), got \(4,\)",
            {"relation": Weights(torch.ones(3, 5), torch.ones(4)), "own": own},
        ),
        (
            r"own keys and Weights.own must be given together",
            {"relation": Weights(torch.ones(3, 5)), "own": own},
        ),
        (r"inside=True has no meaning for Weights", {"relation": Weights(torch.ones(3, 5)), "inside": True}),
        (
            r"Weights.w\(0:3, 0:5\) must be \(3, 5\), got \(1, 5\)",
            {"relation": Weights(lambda r, c: torch.ones(1, 5))},
        ),
    ]
    for message, change in wrong:
        setting: dict[str, Any] = {"query": query, "keys": keys, "tau": 0.5, "relation": relation} | change
        with pytest.raises(ValueError, match=message):
            contrast(setting.pop("query"), setting.pop("keys"), **setting)
    with pytest.raises(
        ValueError, match=r"one shape and type, got torch.float32 \(3, 4\) and torch.float32 \(5, 4\)"
    ):
        two_view_contrast(query, keys, tau=0.5)
    with pytest.raises(ValueError, match=r"rows must be a contiguous slice, got slice\(0, 3, 2\)"):
        two_view_contrast(query, query, tau=0.5, rows=slice(0, 3, 2))


@pytest.mark.parametrize("same", [True, False])
def test_chunked_default_blocks(same: bool) -> None:
    """More rows than one default block: ragged edges, half of the matrix, closed forms."""
    n, k = 1100, 1100 if same else 1300
    query = rows(n, 8, seed=1).requires_grad_()
    keys = query if same else rows(k, 8, seed=2).requires_grad_()
    partner = torch.randint(0, k, (n,), generator=torch.Generator().manual_seed(3))
    partner = torch.where(partner == torch.arange(n), (partner + 1) % k, partner)
    ids = labels(k, 9, 4)
    query_ids = ids if same else ids[:n]
    scores = query @ keys.t() / 0.7
    lse = scores.masked_fill(torch.eye(n, k, dtype=torch.bool), -torch.inf).logsumexp(1)
    matched = (query_ids[:, None] == ids) & ~torch.eye(n, k, dtype=torch.bool)
    for relation, expected in (
        (OwnKey(partner), (lse - scores.gather(1, partner[:, None])[:, 0]).mean()),
        (SameId(query_ids, ids), (lse - (scores * matched).sum(1) / matched.sum(1)).mean()),
    ):
        right = torch.autograd.grad(expected, query, retain_graph=True)[0]
        for chunk in (None, 300):
            loss = contrast(query, keys, tau=0.7, relation=relation, keep=NotItself(), chunk=chunk)
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
            (gradient,) = torch.autograd.grad(loss, query)
            torch.testing.assert_close(gradient, right, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("keys_learn", [True, False])
@pytest.mark.parametrize("longest", [1.0, 1e4])
def test_chunked_columns(longest: float, keys_learn: bool) -> None:
    """Several blocks of columns, with one long row that forbids exponentials without a running maximum."""
    n, k = 530, 1050
    query, keys, own = rows(n, 8, seed=1), rows(k, 8, seed=2), rows(n, 8, seed=3)
    query[0] *= longest
    query.requires_grad_()
    keys.requires_grad_(keys_learn)
    ids, key_ids, images = labels(n, 3, 1), labels(k, 3, 2), labels(k, 50, 3)
    scores, kept = query @ keys.t() / 0.7, images[:n, None] != images
    own_logit = (query * own).sum(1) / 0.7
    lse = scores.masked_fill(~kept, -torch.inf).logsumexp(1).logaddexp(own_logit)
    matched = (ids[:, None] == key_ids) & kept
    chosen = scores.masked_fill(~matched, -torch.inf).logsumexp(1).logaddexp(own_logit)
    outside = ((scores * matched).sum(1) + own_logit) / (matched.sum(1) + 1)
    same = SameId(ids, key_ids)
    leaves = [query, keys] if keys_learn else [query]
    for relation, inside, expected in (
        (None, False, lse - own_logit),
        (same, False, lse - outside),
        (same, True, lse - chosen + (matched.sum(1) + 1).double().log()),
    ):
        right = torch.autograd.grad(expected.sum(), leaves, retain_graph=True)
        losses = contrast(
            query,
            keys,
            tau=0.7,
            own=own,
            relation=relation,
            keep=Distinct(images[:n], images),
            chunk=300,
            reduction="none",
            inside=inside,
        )
        torch.testing.assert_close(losses, expected, rtol=1e-11, atol=1e-11)
        for mine, exact in zip(torch.autograd.grad(losses.sum(), leaves), right, strict=True):
            torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-10 * longest)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("relation", ["OwnKey", "SameId"])
def test_chunked_saves_no_matrix(same: bool, relation: str) -> None:
    n, width, sizes = 400, 6, []
    query = rows(n, width, seed=1).requires_grad_()
    keys = query if same else rows(n, width, seed=2).requires_grad_()
    ids = labels(n, 5, 1)
    rule = SameId(ids, ids) if relation == "SameId" else OwnKey(torch.arange(n).roll(1))

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        contrast(
            query, keys, tau=0.5, relation=rule, keep=Distinct(labels(n, 3, 2), labels(n, 3, 3)), chunk=50
        )
    assert sizes
    assert max(sizes) <= n * (width + 4)


def test_chunked_same_bits_again() -> None:
    first, second = rows(700, 8, seed=1, dtype=torch.float32), rows(700, 8, seed=2, dtype=torch.float32)
    first.requires_grad_()
    runs = []
    for _ in range(2):
        loss = two_view_contrast(first, second, tau=0.2)
        runs.append((loss.detach(), torch.autograd.grad(loss, first)[0]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_ranks_anchor_slices_sum_to_the_whole(dtype: torch.dtype) -> None:
    """What two ranks compute from gathered views: sums and counts add up, gradients add up."""
    first, second = (rows(9, D, seed=s, dtype=dtype).requires_grad_() for s in (1, 2))
    whole = two_view_contrast(first, second, tau=0.4)
    parts = [
        two_view_contrast(first, second, tau=0.4, rows=part, reduction="parts")
        for part in (slice(0, 4), slice(4, 9))
    ]
    count = sum(float(count) for _, count in parts)
    assert count == 18
    mean = torch.stack([total for total, _ in parts]).sum() / count
    tolerance: dict[str, Any] = (
        {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 1e-2, "atol": 1e-3}
    )
    torch.testing.assert_close(mean, whole, **tolerance)
    for mine, right in zip(
        torch.autograd.grad(mean, (first, second)), torch.autograd.grad(whole, (first, second)), strict=True
    ):
        torch.testing.assert_close(mine, right, **tolerance)
