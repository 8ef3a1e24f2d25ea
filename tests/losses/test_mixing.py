"""Mixed hard negatives: closed forms against vectors that are built, who is mixed, and where gradient flows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel.losses.contrastive import contrast, two_view_contrast, unit
from leanlabel.losses.mixing import (
    Hardest,
    Mixing,
    MixingDraws,
    draw_mixing,
    hardest,
    mixed_logits,
    two_view_mixed,
)
from leanlabel.losses.relations import Distinct, KeepRule, Matching, NotItself
from leanlabel.rng import Draw, draw

QUERY = [[1, 2, 2], [2, -1, 2]]
OWN = [[2, 2, 1], [1, 0, 1]]
QUEUE = [[0, 3, 4], [4, 0, 3], [-1, 2, 2], [1, 1, -1], [2, 1, -1]]
TAU = 0.2


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def source(ids: int | Tensor, t: int = 0) -> Draw:
    return draw(5, "mix", t, torch.arange(ids) if isinstance(ids, int) else ids)


def given_draws() -> MixingDraws:
    """The draws of case 2 of the specification."""
    first, second = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[1, 2], [2, 1]])
    alpha = torch.tensor([[0.25, 0.5], [0.7, 0.9]], dtype=torch.float64)
    beta = torch.tensor([[0.4], [0.1]], dtype=torch.float64)
    return MixingDraws(first, second, alpha, torch.tensor([[0], [1]]), beta)


def case() -> tuple[Tensor, Tensor, Tensor]:
    query, own, queue = (unit(torch.tensor(part, dtype=torch.float64)) for part in (QUERY, OWN, QUEUE))
    return query.requires_grad_(), own, queue


def built(
    query: Tensor, keys: Tensor, draws: MixingDraws, n: int, kept: Tensor | None = None, constant: bool = True
) -> Tensor:
    """(N, s + s', D) synthetic points, one query and one point after the other."""
    points = []
    for i in range(len(query)):
        allowed = range(len(keys)) if kept is None else kept[i].nonzero().flatten().tolist()
        ranked = sorted(allowed, key=lambda j, i=i: -float(query[i].detach() @ keys[j]))[:n]
        inner = query[i].detach() if constant else query[i]
        for a, b, alpha in zip(draws.first[i], draws.second[i], draws.alpha[i].double(), strict=True):
            one, two = keys[ranked[a % len(ranked)]], keys[ranked[b % len(ranked)]]
            mixture = alpha * one + (1 - alpha) * two
            points.append(mixture / mixture.norm() if mixture.norm() > 1e-8 else one)
        for a, beta in zip(draws.partner[i], draws.beta[i].double(), strict=True):
            one = keys[ranked[a % len(ranked)]]
            mixture = beta * inner + (1 - beta) * one
            points.append(mixture / mixture.norm() if mixture.norm() > 1e-8 else one)
    return torch.stack(points).view(len(query), -1, query.shape[1])


def built_logits(query: Tensor, keys: Tensor, draws: MixingDraws, n: int, **how: Any) -> Tensor:
    return torch.einsum("nd,nsd->ns", query, built(query, keys.detach(), draws, n, **how)) / TAU


def close(result: Tensor, literal: list, rtol: float = 1e-10) -> None:
    """Equal to what is printed with ten decimals."""
    torch.testing.assert_close(result, torch.tensor(literal, dtype=torch.float64), rtol=rtol, atol=6e-11)


def test_values_plain() -> None:
    """Case 1 of the specification: InfoNCE with a queue."""
    query, own, queue = case()
    close(query.detach() @ queue.mT / TAU, [
        [4.6666666667, 3.3333333333, 3.8888888889, 0.9622504486, 1.3608276349],
        [1.6666666667, 4.6666666667, 0.0, -0.9622504486, 0.6804138174],
    ])  # fmt: skip
    losses = contrast(query, queue, own=own, tau=TAU, reduction="none")
    close(losses.detach(), [1.1719645118, 0.7086829208])
    close(losses.detach().mean(), 0.9403237163)  # pyright: ignore[reportArgumentType]
    close(torch.autograd.grad(losses.sum(), query)[0], [
        [-2.1037377388, -0.4914276811, 1.2388427406],
        [0.1161331622, 0.1075093757, -0.3009284435],
    ])  # fmt: skip


def test_values() -> None:
    """Case 2: (N, s, s') = (3, 2, 1) with given draws; losses and gradients."""
    query, own, queue = case()
    assert hardest(query, queue, 3).index.tolist() == [[0, 2, 1], [1, 0, 4]]
    extra = mixed_logits(query, queue, Mixing(3, 2, 1), given_draws(), tau=TAU)
    close(extra.detach(), [
        [4.1353524156, 4.7970806300, 4.8786937691],
        [4.0038174464, 0.8681196401, 2.1320071636],
    ])  # fmt: skip
    losses = contrast(query, queue, own=own, extra=extra, tau=TAU, reduction="none")
    close(losses.detach(), [1.9357239955, 0.9631104508])
    close(losses.detach().mean(), 1.4494172231)  # pyright: ignore[reportArgumentType]
    close(torch.autograd.grad(losses.sum(), query)[0], [
        [-2.4253606881, -0.4963556378, 1.7718088802],
        [0.2105617909, 0.3132684627, -0.5976114518],
    ])  # fmt: skip


def test_values_synthetic_points() -> None:
    """The points behind case 2, and what would come out if gradient flowed through the query inside them."""
    query, own, queue = case()
    points = built(query, queue, given_draws(), 3)
    close(points, [
        [
            [-0.2531848418, 0.6582805886, 0.7089175570],
            [0.3099652099, 0.4428074428, 0.8413341413],
            [0.1355192714, 0.6369405754, 0.7589079196],
        ],
        [
            [0.9285689981, 0.1412835042, 0.3432179880],
            [0.8188742314, 0.4762979167, -0.3202893810],
            [0.0710669055, 0.5401084814, 0.8385894843],
        ],
    ])  # fmt: skip
    leaky = built_logits(query, queue, given_draws(), 3, constant=False)
    losses = contrast(query, queue, own=own, extra=leaky, tau=TAU, reduction="none")
    wrong = torch.autograd.grad(losses.sum(), query)[0]
    close(wrong, [
        [-2.3342799822, -0.4758936710, 1.7383710320],
        [0.2203520818, 0.3045970622, -0.5928561677],
    ])  # fmt: skip
    extra = mixed_logits(query, queue, Mixing(3, 2, 1), given_draws(), tau=TAU)
    right = torch.autograd.grad(contrast(query, queue, own=own, extra=extra, tau=TAU) * 2, query)[0]
    assert float((right - wrong).abs().max()) > 0.02


def test_values_closed_forms() -> None:
    """Case 6: type 2 from c = 14/15 and beta = 0.4; type 1 from c = 14/15 and 7/9, g = 14/15 and alpha = 0.25."""
    query = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    c, other, g = 14 / 15, 7 / 9, 14 / 15
    one = [c, (1 - c**2) ** 0.5, 0.0, 0.0]
    along = (g - c * other) / one[1]
    two = [other, along, (1 - other**2 - along**2) ** 0.5, 0.0]
    keys = torch.tensor([one, two], dtype=torch.float64)
    half = torch.tensor([[0.25]], dtype=torch.float64)
    draws = MixingDraws(
        torch.tensor([[0]]), torch.tensor([[1]]), half, torch.tensor([[0]]), torch.full_like(half, 0.4)
    )
    close(mixed_logits(query, keys, Mixing(2, 1, 1), draws, tau=TAU), [[4.1353524156, 4.8786937691]])


RULES: dict[str, KeepRule | None] = {
    "all": None,
    "class oracle": Distinct(torch.arange(6) % 3, torch.arange(40) % 3),
    "not itself": NotItself(torch.arange(6)),
    "partition": Matching(torch.arange(6) % 4, torch.arange(40) % 4),
    "two rules": NotItself(torch.arange(6)) & NotItself(torch.arange(6) + 20),
}


def kept_pairs(keep: KeepRule | None, queries: int, keys: int) -> Tensor:
    kept = torch.ones(queries, keys)
    if keep is not None:
        keep.fill(kept, slice(0, queries), slice(0, keys), 0.0)
    return kept > 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mixing", [Mixing(5, 7, 4), Mixing(1, 3, 2), Mixing(40, 6, 6), Mixing(99, 2, 3)])
def test_reference(rule: str, mixing: Mixing) -> None:
    """Values and gradients equal those of points that are built; rows of any length."""
    query, keys, keep = rows(6, 5, seed=1).requires_grad_(), rows(40, 5, seed=2), RULES[rule]
    kept = kept_pairs(keep, 6, 40)
    draws = draw_mixing(source(6), mixing, kept.sum(1).clamp(max=mixing.n))
    logits = mixed_logits(query, keys, mixing, source(6), tau=TAU, keep=keep)
    expected = built_logits(query, keys, draws, mixing.n, kept=kept)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    arriving = rows(6, mixing.points, seed=3)
    mine, right = (torch.autograd.grad((out * arriving).sum(), query)[0] for out in (logits, expected))
    torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_reference_hardest(rule: str) -> None:
    query, keys, keep = rows(6, 5, seed=1), rows(40, 5, seed=2), RULES[rule]
    found = hardest(query, keys, 30, keep=keep)
    kept = kept_pairs(keep, 6, 40)
    assert found.count.tolist() == kept.sum(1).clamp(max=30).tolist()
    for i in range(6):
        ranked = sorted(kept[i].nonzero().flatten().tolist(), key=lambda j, i=i: -float(query[i] @ keys[j]))
        ranked = ranked[:30]
        assert found.index[i].tolist() == ranked + [-1] * (30 - len(ranked))
        torch.testing.assert_close(found.similarity[i, : len(ranked)], keys[ranked] @ query[i])
        assert (found.similarity[i, len(ranked) :] == -torch.inf).all()


def test_values_draws() -> None:
    """Positions cover a query's keys evenly, shares their ranges; pairs are distinct where keys are few."""
    mixing = Mixing(64, 4000, 4000)
    count = torch.tensor([64, 40, 31, 2, 1, 0])
    draws = draw_mixing(source(6), mixing, count)
    for places in (draws.first, draws.second, draws.partner):
        assert places.dtype == torch.int64
        assert places.amin(1).tolist() == [0] * 6
        assert places.amax(1).tolist() == [63, 39, 30, 1, 0, 0]
        for row, size in enumerate((64, 40, 31, 2)):
            share = torch.bincount(places[row], minlength=size) * size / 4000
            assert (share - 1).abs().max() < 0.6
    same = (draws.first == draws.second).double().mean(1)
    assert 0.008 < float(same[0]) < 0.025  # 1 / 64 with replacement
    assert 0.015 < float(same[1]) < 0.038
    assert same[2:].tolist() == [0, 0, 1, 1]
    assert len(torch.unique(draws.first[2] * 31 + draws.second[2])) > 30 * 31 * 0.95
    for share, top in ((draws.alpha, 1.0), (draws.beta, 0.5)):
        assert 0 <= float(share.min()) < 0.001
        assert 0.999 * top < float(share.max()) < top
        assert abs(float(share.mean()) / top - 0.5) < 0.01


def test_values_draws_belong_to_samples() -> None:
    """Parts of a batch get what the whole batch gets, and nobody's keys change another's draws."""
    mixing, count = Mixing(9, 5, 3), torch.tensor([9, 4, 9, 2, 9])
    whole = draw_mixing(source(torch.tensor([3, 1, 4, 15, 9])), mixing, count)
    part = draw_mixing(source(torch.tensor([4, 15])), mixing, count[2:4])
    changed = draw_mixing(source(torch.tensor([3, 1, 4, 15, 9])), mixing, torch.tensor([1, 4, 9, 2, 0]))
    for all_rows, some, other in zip(whole, part, changed, strict=True):
        assert torch.equal(all_rows[2:4], some)
        assert torch.equal(all_rows[1:4], other[1:4])


@given(st.permutations(range(30)), st.integers(0, 3))
def test_values_order_of_keys(order: list[int], seed: int) -> None:
    """The order in which keys stand in the queue does not matter."""
    query, keys = unit(rows(4, 6, seed=seed)), unit(rows(30, 6, seed=seed + 10))
    mixing = Mixing(7, 5, 5)
    plain, mixed = (
        mixed_logits(query, one, mixing, source(4), tau=TAU) for one in (keys, keys[torch.tensor(order)])
    )
    torch.testing.assert_close(plain, mixed, rtol=1e-12, atol=1e-12)


def test_values_rotation() -> None:
    """Nor does the basis of the feature space."""
    query, keys = unit(rows(4, 6, seed=1)), unit(rows(30, 6, seed=2))
    turn = torch.linalg.qr(rows(6, 6, seed=3)).Q
    plain, turned = (
        mixed_logits(q, k, Mixing(7, 5, 5), source(4), tau=TAU)
        for q, k in ((query, keys), (query @ turn, keys @ turn))
    )
    torch.testing.assert_close(plain, turned, rtol=1e-10, atol=1e-12)


def test_gradient() -> None:
    """Finite differences of the outer product, the points held where they are; nothing reaches the keys."""
    query, keys = unit(rows(3, 4, seed=1)).requires_grad_(), unit(rows(20, 4, seed=2)).requires_grad_()
    mixing = Mixing(6, 5, 4)
    logits = mixed_logits(query, keys, mixing, source(3), tau=TAU)
    arriving = rows(3, 9, seed=3)
    mine, to_keys = torch.autograd.grad((logits * arriving).sum(), (query, keys), allow_unused=True)
    assert to_keys is None
    draws = draw_mixing(source(3), mixing, torch.full((3,), 6))
    points = built(query.detach(), keys.detach(), draws, 6)
    step, numeric = 1e-6, torch.zeros_like(query)
    for i in range(3):
        for j in range(4):
            moved = torch.zeros_like(query)
            moved[i, j] = step
            ends = [
                (torch.einsum("nd,nsd->ns", query.detach() + sign * moved, points) / TAU * arriving).sum()
                for sign in (1, -1)
            ]
            numeric[i, j] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(mine, numeric, rtol=1e-6, atol=1e-7)


def test_gradient_without_one() -> None:
    query, keys = unit(rows(3, 4, seed=1)), unit(rows(20, 4, seed=2))
    assert not mixed_logits(query, keys, Mixing(6, 5, 4), source(3), tau=TAU).requires_grad
    with torch.no_grad():
        plain = mixed_logits(query, keys, Mixing(6, 5, 4), source(3), tau=TAU)
    assert torch.equal(plain, mixed_logits(query.requires_grad_(), keys, Mixing(6, 5, 4), source(3), tau=TAU))


def test_gradient_keeps_little() -> None:
    """What waits for the backward pass beside the inputs is a few numbers per point, not a vector."""
    saved: list[Tensor] = []
    query, keys = unit(rows(8, 64, seed=1)).requires_grad_(), unit(rows(300, 64, seed=2))
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        mixed_logits(query, keys, Mixing(50, 40, 20), source(8), tau=TAU).sum().backward()
    inside = sum(one.numel() for one in saved) - keys.numel() - query.numel()
    assert 0 < inside <= 8 * 5 * 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    """Computed in float32: what differs from float64 is the ranking of near ties and the last digits."""
    query, keys = (unit(rows(count, 16, seed=count)).to(dtype) for count in (6, 50))
    query.requires_grad_()
    logits = mixed_logits(query, keys, Mixing(50, 9, 9), source(6), tau=TAU)
    (gradient,) = torch.autograd.grad(logits.sum(), query)
    assert logits.dtype == torch.float32
    assert gradient.dtype == dtype
    draws = draw_mixing(source(6), Mixing(50, 9, 9), torch.full((6,), 50))
    exact = built_logits(query.detach().double(), keys.double(), draws, 50)
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert gradient.isfinite().all()


@pytest.mark.gpu
def test_dtypes_gpu() -> None:
    """The same numbers on a GPU, wherever the random numbers are drawn."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    query, keys = unit(rows(40, 16, seed=1)), unit(rows(900, 16, seed=2))
    results = []
    for device in ("cpu", "cuda"):
        leaf = query.to(device).requires_grad_()
        logits = mixed_logits(leaf, keys.to(device), Mixing(50, 30, 20), source(40), tau=TAU)
        results.append((logits.cpu(), torch.autograd.grad(logits.sum(), leaf)[0].cpu()))
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-10, atol=1e-12)


def test_dtypes_autocast() -> None:
    query, keys = (unit(rows(count, 16, seed=count)).float() for count in (6, 50))
    query.requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = mixed_logits(query, keys, Mixing(9, 9, 9), source(6), tau=TAU)
            results.append((logits, torch.autograd.grad(logits.sum(), query)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_degenerate_sizes() -> None:
    query, keys = rows(3, 4, seed=1).requires_grad_(), rows(5, 4, seed=2)
    assert mixed_logits(query, keys[:0], Mixing(2, 3, 1), source(3), tau=TAU).shape == (3, 0)
    assert mixed_logits(query, keys, Mixing(2, 0, 0), source(3), tau=TAU).shape == (3, 0)
    assert mixed_logits(query, keys, Mixing(2, 0, 4), source(3), tau=TAU).shape == (3, 4)
    assert mixed_logits(query, keys, Mixing(2, 4, 0), source(3), tau=TAU).shape == (3, 4)
    none = mixed_logits(query[:0], keys, Mixing(2, 3, 1), source(0), tau=TAU)
    assert none.shape == (0, 4)
    none.sum().backward()
    assert hardest(query, keys[:0], 4).index.shape == (3, 0)
    assert hardest(query, keys, 9).index.shape == (3, 5)


def test_degenerate_few_keys() -> None:
    """No key: absent. One key: type 1 is that key. Fewer than N: only those."""
    query = unit(rows(3, 4, seed=1)).requires_grad_()
    keys = unit(rows(4, 4, seed=2))
    keep = Matching(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 2, 2]))
    logits = mixed_logits(query, keys, Mixing(8, 5, 2), source(3), tau=TAU, keep=keep)
    assert (logits[0] == -torch.inf).all()
    torch.testing.assert_close(logits[1, :5], (query[1] @ keys[0] / TAU).expand(5))
    assert logits[1:].isfinite().all()
    (gradient,) = torch.autograd.grad(logits, query, torch.ones_like(logits), retain_graph=True)
    assert gradient[0].tolist() == [0, 0, 0, 0]
    loss = contrast(query, keys, own=unit(rows(3, 4, seed=3)), extra=logits, keep=keep, tau=TAU)
    (gradient,) = torch.autograd.grad(loss, query)
    assert gradient.isfinite().all()
    # A query without negatives has nothing to learn from.
    assert gradient[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_degenerate_zero_mixture(dtype: torch.dtype) -> None:
    """Antipodal keys in equal shares leave nothing: the first stands in. So does the key for a type 2 of length 0."""
    key = unit(rows(1, 4, seed=1)).to(dtype)
    keys, query = torch.cat([key, -key, torch.zeros_like(key)]), unit(rows(1, 4, seed=2)).to(dtype)
    up = float((query @ key.mT).item()) > 0
    query = query.requires_grad_()
    half = torch.full((1, 1), 0.5, dtype=dtype)
    # Ranked: the one on the query's side, the zero row, the other one.
    for pair, expected in (((0, 2), 0 if up else 1), ((2, 0), 1 if up else 0), ((1, 1), 2)):
        first, second = (torch.tensor([[place]]) for place in pair)
        draws = MixingDraws(first, second, half, torch.tensor([[1]]), torch.zeros_like(half))
        logits = mixed_logits(query, keys, Mixing(3, 1, 1), draws, tau=TAU)
        torch.testing.assert_close(logits[0, 0], (query[0] @ keys[expected]) / TAU)
        assert logits[0, 1] == 0
        (gradient,) = torch.autograd.grad(logits[0, 0], query)
        torch.testing.assert_close(gradient, keys[expected : expected + 1] / TAU)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_degenerate_antipodal_to_the_query(dtype: torch.dtype) -> None:
    """Type 2 of opposite rows in nearly equal shares: little is left but rounding, which must not blow up."""
    query = unit(rows(200, 8, seed=1)).to(dtype)
    for share in (0.5 - 2**-25, 0.4999, 0.25):
        for row in query[:, None]:
            row = row.detach().requires_grad_()
            beta, place = torch.full((1, 1), share), torch.zeros(1, 1, dtype=torch.int64)
            draws = MixingDraws(place[:, :0], place[:, :0], beta[:, :0], place, beta)
            logits = mixed_logits(row, -row.detach(), Mixing(1, 0, 1), draws, tau=1.0)
            (gradient,) = torch.autograd.grad(logits.sum(), row)
            assert logits.abs().max() < (1.01 if share == 0.25 else 2)
            assert gradient.isfinite().all()


def test_degenerate_zero_query() -> None:
    query, keys = torch.zeros(2, 4, requires_grad=True), unit(rows(6, 4)).float()
    logits = mixed_logits(query, keys, Mixing(4, 5, 5), source(2), tau=TAU)
    assert logits.tolist() == [[0.0] * 10] * 2
    (gradient,) = torch.autograd.grad(logits.sum(), query)
    assert gradient.isfinite().all()
    zero = mixed_logits(query, torch.zeros(3, 4), Mixing(4, 5, 5), source(2), tau=TAU)
    assert zero.tolist() == [[0.0] * 10] * 2


def test_errors() -> None:
    query, keys = rows(3, 4), rows(5, 4)
    with pytest.raises(ValueError, match="n 0, s 1, s2 0"):
        Mixing(0, 1)
    with pytest.raises(ValueError, match="s -1"):
        Mixing(1, -1)
    with pytest.raises(ValueError, match="tau must be positive"):
        mixed_logits(query, keys, Mixing(2, 1), source(3), tau=0.0)
    with pytest.raises(ValueError, match=r"\(3, 4\) and torch.float64 \(5, 3\)"):
        mixed_logits(query, keys[:, :3], Mixing(2, 1), source(3), tau=TAU)
    with pytest.raises(ValueError, match="floating point"):
        mixed_logits(query.long(), keys, Mixing(2, 1), source(3), tau=TAU)
    with pytest.raises(ValueError, match="chunk"):
        mixed_logits(query, keys, Mixing(2, 1), source(3), tau=TAU, chunk=0)
    with pytest.raises(ValueError, match="one id per query: 3 queries"):
        mixed_logits(query, keys, Mixing(2, 1), source(4), tau=TAU)
    with pytest.raises(ValueError, match=r"ids of shape \(3,\) and \(5,\)"):
        mixed_logits(
            query, keys, Mixing(2, 1), source(3), tau=TAU, keep=Distinct(torch.arange(3), torch.arange(4))
        )
    with pytest.raises(ValueError, match="draws must have the shapes"):
        mixed_logits(query, keys, Mixing(3, 2, 1), given_draws(), tau=TAU)
    with pytest.raises(ValueError, match="n must be at least 1"):
        hardest(query, keys, 0)
    with pytest.raises(ValueError, match="available must be"):
        draw_mixing(source(3), Mixing(2, 1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="one shape"):
        two_view_mixed(query, keys, Mixing(2, 1), source(3), tau=TAU)
    with pytest.raises(ValueError, match="contiguous"):
        two_view_mixed(query, query, Mixing(2, 1), source(3), tau=TAU, rows=slice(0, 3, 2))


@pytest.mark.parametrize("rule", ["all", "class oracle", "partition"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 40, 50])
def test_chunked(rule: str, chunk: int) -> None:
    query, keys, keep = rows(6, 5, seed=1).requires_grad_(), rows(40, 5, seed=2), RULES[rule]
    found = [hardest(query, keys, 12, keep=keep, chunk=size) for size in (None, chunk)]
    assert torch.equal(found[0].index, found[1].index)
    assert torch.equal(found[0].count, found[1].count)
    results = []
    for size in (None, chunk):
        logits = mixed_logits(query, keys, Mixing(12, 7, 4), source(6), tau=TAU, keep=keep, chunk=size)
        results.append((logits, torch.autograd.grad(logits.sum(), query)[0]))
    for plain, cut in zip(*results, strict=True):
        torch.testing.assert_close(plain, cut, rtol=1e-12, atol=1e-12)


def test_chunked_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes that are chosen where none is given: several blocks of queries, keys and mixtures."""
    query, keys = rows(50, 5, seed=1).requires_grad_(), rows(90, 5, seed=2)
    results = []
    for _ in range(2):
        logits = mixed_logits(query, keys, Mixing(12, 7, 4), source(50), tau=TAU)
        results.append((logits, torch.autograd.grad(logits.sum(), query)[0]))
        for name, value in (("_AREA", 400), ("_WIDTH", 20), ("_CPU_MIXTURES", 13)):
            monkeypatch.setattr(f"leanlabel.losses.mixing.{name}", value)
    for plain, cut in zip(*results, strict=True):
        torch.testing.assert_close(plain, cut, rtol=1e-12, atol=1e-12)


def test_chunked_ranking_at_hand() -> None:
    query, keys = rows(6, 5, seed=1), rows(40, 5, seed=2)
    top = hardest(query, keys, 12)
    assert isinstance(top, Hardest)
    again = mixed_logits(query, keys, Mixing(12, 7, 4), source(6), tau=TAU, top=top)
    assert torch.equal(again, mixed_logits(query, keys, Mixing(12, 7, 4), source(6), tau=TAU))


def naive_two_views(first: Tensor, second: Tensor, mixing: Mixing, draws: MixingDraws) -> Tensor:
    """(2N,) losses with all synthetic points built."""
    both = torch.cat([first, second])
    both = both / both.norm(dim=1, keepdim=True)
    count = len(both)
    itself = torch.eye(count, dtype=torch.bool)
    partner = torch.arange(count).roll(-len(first))
    points = built(both.detach(), both.detach(), draws, mixing.n, kept=~(itself | itself[partner]))
    similar = (both @ both.mT).masked_fill(itself, -torch.inf)
    logits = torch.cat([similar, torch.einsum("nd,nsd->ns", both, points)], 1) / TAU
    return logits.logsumexp(1) - logits[torch.arange(count), partner]


@pytest.mark.parametrize("mixing", [Mixing(4, 6, 3), Mixing(50, 6, 3)])
def test_two_views(mixing: Mixing) -> None:
    """The contrast of SimCLR, GRACE and GCA with mixed negatives: neither a row nor its partner is mixed."""
    first, second = rows(7, 5, seed=1).requires_grad_(), rows(7, 5, seed=2).requires_grad_()
    extra = two_view_mixed(first, second, mixing, source(7), tau=TAU)
    losses = two_view_contrast(first, second, tau=TAU, extra=extra, reduction="none")
    drawn = source(7)
    halves = [draw_mixing(drawn, mixing, torch.full((7,), min(mixing.n, 12))) for _ in range(2)]
    draws = MixingDraws(*(torch.cat(parts) for parts in zip(*halves, strict=True)))
    expected = naive_two_views(first, second, mixing, draws)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    for mine, right in zip(
        torch.autograd.grad(losses.mean(), (first, second)),
        torch.autograd.grad(expected.mean(), (first, second)),
        strict=True,
    ):
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-12)
    plain = two_view_contrast(first, second, tau=TAU, reduction="none")
    assert (losses > plain).all()


def test_two_views_of_a_part() -> None:
    """The losses of a slice of the samples are those of the whole batch, draws included."""
    first, second = rows(7, 5, seed=1), rows(7, 5, seed=2)
    mixing, part = Mixing(4, 6, 3), slice(2, 5)
    whole = two_view_mixed(first, second, mixing, source(7), tau=TAU)
    some = two_view_mixed(first, second, mixing, source(torch.arange(2, 5)), tau=TAU, rows=part)
    torch.testing.assert_close(some, torch.cat([whole[2:5], whole[9:12]]), rtol=1e-12, atol=0)
    losses = two_view_contrast(first, second, tau=TAU, extra=whole, reduction="none")
    of_part = two_view_contrast(first, second, tau=TAU, extra=some, rows=part, reduction="none")
    torch.testing.assert_close(of_part, torch.cat([losses[2:5], losses[9:12]]), rtol=1e-12, atol=0)


def test_two_views_without_points() -> None:
    """s = s' = 0 is the plain loss bit for bit, and so is a queue's."""
    first, second = (rows(7, 5, seed=seed, dtype=torch.float32).requires_grad_() for seed in (1, 2))
    extra = two_view_mixed(first, second, Mixing(4, 0, 0), source(7), tau=TAU)
    losses = [two_view_contrast(first, second, tau=TAU, extra=one) for one in (None, extra)]
    gradients = [torch.autograd.grad(loss, (first, second)) for loss in losses]
    assert torch.equal(losses[0], losses[1])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    query, own, queue = case()
    extra = mixed_logits(query, queue, Mixing(3, 0, 0), source(2), tau=TAU)
    plain, mixed = (contrast(query, queue, own=own, tau=TAU, extra=one) for one in (None, extra))
    assert torch.equal(plain, mixed)
    assert torch.equal(torch.autograd.grad(plain, query)[0], torch.autograd.grad(mixed, query)[0])


def test_two_views_of_one_sample() -> None:
    """A sample alone has no negatives to mix."""
    first, second = rows(1, 5, seed=1).requires_grad_(), rows(1, 5, seed=2)
    extra = two_view_mixed(first, second, Mixing(4, 2, 2), source(1), tau=TAU)
    assert (extra == -torch.inf).all()
    loss = two_view_contrast(first, second, tau=TAU, extra=extra)
    assert abs(loss.item()) < 1e-12
    assert torch.autograd.grad(loss, first)[0].abs().max() < 1e-12
    assert two_view_mixed(first[:0], second[:0], Mixing(4, 2, 2), source(0), tau=TAU).shape == (0, 0)
