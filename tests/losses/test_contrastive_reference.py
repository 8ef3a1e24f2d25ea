"""`contrast` against its definition written as a loop over rows, for every combination of its settings."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanlabel.losses.contrastive import (
    Distinct,
    KeepRule,
    Matching,
    NotItself,
    OwnKey,
    Relation,
    SameId,
    Weights,
    contrast,
    two_view_contrast,
    unit,
)

N, K, D = 7, 7, 4


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels(count: int, classes: int, seed: int) -> Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


def naive(
    query: Tensor,
    keys: Tensor,
    tau: float,
    weight: Tensor,
    kept: Tensor,
    own: Tensor | None = None,
    own_weight: Tensor | None = None,
    extra: Tensor | None = None,
    inside: bool = False,
    targets: bool = False,
) -> tuple[Tensor, Tensor]:
    """Losses row by row from the definition: weight (N, K) of the positives, kept (N, K) bool."""
    losses, counts = [], []
    for i in range(len(query)):
        logits, weights = [], []
        for j in range(len(keys)):
            if kept[i, j]:
                logits.append(query[i] @ keys[j] / tau)
                weights.append(float(weight[i, j]))
        if own is not None:
            logits.append(query[i] @ own[i] / tau)
            weights.append(1.0 if own_weight is None else float(own_weight[i]))
        if extra is not None:
            logits.extend(extra[i])
            weights.extend([0.0] * extra.shape[1])
        mass = sum(weights)
        counts.append(mass > 0)
        if not mass > 0:
            losses.append(query[i].sum() * 0)
            continue
        every, w = torch.stack(logits), torch.tensor(weights, dtype=query.dtype)
        lse = torch.logsumexp(every, 0)
        chosen = every[w > 0]
        if targets:
            losses.append((w[w > 0] * (lse - chosen)).sum())
        elif inside:
            losses.append(lse - (torch.logsumexp(chosen, 0) - math.log(mass)))
        else:
            losses.append(lse - chosen.mean())
    return torch.stack(losses), torch.tensor(counts)


QUERY_IDS, KEY_IDS = labels(N, 3, 1), labels(K, 3, 2)
PARTNER = torch.tensor([3, 4, 5, 6, 0, 1, 2])
TARGETS = rows(N, K, seed=3).softmax(1)
FIRST_IDS, SECOND_IDS = labels(N, 4, 5), labels(K, 4, 6)


def relations(same: bool) -> dict[str, tuple[Relation, Tensor]]:
    key_ids = QUERY_IDS if same else KEY_IDS
    matched = (QUERY_IDS[:, None] == key_ids).double()
    return {
        "OwnKey": (OwnKey(PARTNER), torch.nn.functional.one_hot(PARTNER, K).double()),
        "SameId": (SameId(QUERY_IDS, key_ids), matched),
        "Weights": (Weights(TARGETS), TARGETS),
        "WeightsFunction": (Weights(lambda r, c: TARGETS[r, c]), TARGETS),
    }


def keeps(same: bool) -> dict[str, tuple[KeepRule | None, Tensor]]:
    second = FIRST_IDS if same else SECOND_IDS
    equal, others = FIRST_IDS[:, None] == second, ~torch.eye(N, K, dtype=torch.bool)
    partner = torch.arange(N).roll(2)
    return {
        "all": (None, torch.ones(N, K, dtype=torch.bool)),
        "NotItself": (NotItself(), others),
        "NotItselfIndex": (NotItself(partner), torch.arange(K) != partner[:, None]),
        "Distinct": (Distinct(FIRST_IDS, second), ~equal),
        # The same rows under two different sets of ids: the matrix is not symmetric.
        "Matching": (Matching(FIRST_IDS, SECOND_IDS), FIRST_IDS[:, None] == SECOND_IDS),
        "Both": (NotItself() & Distinct(FIRST_IDS, second), others & ~equal),
    }


CASES = [
    (name, keep, own, extra, inside, same)
    for name, keep, own, extra, inside, same in itertools.product(
        ["OwnKey", "SameId", "Weights", "WeightsFunction", "none"],
        ["all", "NotItself", "NotItselfIndex", "Distinct", "Matching", "Both"],
        [False, True],
        [False, True],
        [False, True],
        [False, True],
    )
    if (name != "none" or own) and not (inside and name.startswith("Weights"))
]


def compare(case: tuple[str, str, bool, bool, bool, bool], size: float = 1.0, tau: float = 0.5) -> None:
    """Value and gradients of every reduction and chunk against the naive loop."""
    name, keep_name, has_own, has_extra, inside, same = case
    relation, weight = (None, torch.zeros(N, K)) if name == "none" else relations(same)[name]
    keep, kept = keeps(same)[keep_name]
    own_weight = None
    if isinstance(relation, Weights) and has_own:
        own_weight = torch.linspace(0, 0.6, N, dtype=torch.float64)
        relation = Weights(relation.w, own_weight)
    query = (size * rows(N, D, seed=7)).requires_grad_()
    keys = query if same else (size * rows(K, D, seed=8)).requires_grad_()
    own = (size * rows(N, D, seed=9)).requires_grad_() if has_own else None
    extra = None
    if has_extra:
        extra = rows(N, 3, seed=10)
        extra[0] = -torch.inf
        extra[1, 2] = -torch.inf
        extra.requires_grad_()
    leaves = [leaf for leaf in ([query] if same else [query, keys]) + [own, extra] if leaf is not None]
    losses, counts = naive(
        query, keys, tau, weight, kept, own, own_weight, extra, inside, isinstance(relation, Weights)
    )
    up = rows(N, seed=11)
    scale = float(losses.detach().abs().max().clamp(min=1))
    expected = torch.autograd.grad((losses * up).sum(), leaves, allow_unused=True)
    for chunk in (None, 1, 3, N, N + 5):
        got = contrast(
            query,
            keys,
            tau=tau,
            own=own,
            relation=relation,
            extra=extra,
            keep=keep,
            chunk=chunk,
            reduction="none",
            inside=inside,
        )
        torch.testing.assert_close(got, losses, rtol=1e-12, atol=1e-12 * scale)
        for mine, right in zip(
            torch.autograd.grad((got * up).sum(), leaves, allow_unused=True), expected, strict=True
        ):
            right = torch.zeros(()) if right is None else right
            mine = torch.zeros_like(right) if mine is None else mine
            bound = max(1.0, float(right.abs().max()))
            torch.testing.assert_close(mine, right.to(mine).expand_as(mine), rtol=1e-12, atol=2e-12 * bound)
    setting = {"tau": tau, "own": own, "relation": relation, "extra": extra, "keep": keep, "inside": inside}
    total, count = contrast(query, keys, reduction="parts", **setting)
    torch.testing.assert_close(total, losses.sum(), rtol=1e-12, atol=1e-12 * scale)
    assert float(count) == float(counts.sum())
    torch.testing.assert_close(contrast(query, keys, reduction="sum", **setting), total, rtol=0, atol=0)
    mean = contrast(query, keys, **setting)
    torch.testing.assert_close(mean, losses.sum() / counts.sum().clamp(min=1), rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_reference(case: tuple[str, str, bool, bool, bool, bool]) -> None:
    compare(case)


@pytest.mark.parametrize("case", CASES[::7], ids=lambda case: "-".join(map(str, case)))
def test_reference_large_logits(case: tuple[str, str, bool, bool, bool, bool]) -> None:
    compare(case, size=100.0, tau=0.1)


@pytest.mark.parametrize("keep", [None, NotItself(), Distinct(FIRST_IDS, SECOND_IDS)])
@pytest.mark.parametrize("size", [1.0, 100.0])
@pytest.mark.parametrize("frozen", ["keys", "query"])
def test_reference_one_side_without_gradient(frozen: str, size: float, keep: KeepRule | None) -> None:
    kept = torch.ones(N, K, dtype=torch.bool)
    if keep is not None:
        keep.fill(kept, slice(0, N), slice(0, K), False)
    query, keys, own = (size * rows(N, D, seed=seed) for seed in (1, 2, 3))
    leaf = query if frozen == "keys" else keys
    leaf.requires_grad_()
    expected, _ = naive(query, keys, 0.5, torch.zeros(N, K), kept, own)
    (right,) = torch.autograd.grad(expected.mean(), leaf)
    for chunk in (None, 2, 3):
        loss = contrast(query, keys, tau=0.5, own=own, keep=keep, chunk=chunk)
        torch.testing.assert_close(loss, expected.mean(), rtol=1e-12, atol=1e-12)
        (gradient,) = torch.autograd.grad(loss, leaf)
        torch.testing.assert_close(gradient, right, rtol=1e-12, atol=1e-11)


def test_reference_float32() -> None:
    first, second = rows(60, 16, seed=1), rows(60, 16, seed=2)
    for tau in (0.5, 0.1, 0.05, 0.005):
        values, gradients = [], []
        for dtype in (torch.float64, torch.float32):
            leaf = first.to(dtype).requires_grad_()
            loss = two_view_contrast(leaf, second.to(dtype), tau=tau, chunk=None if tau > 0.2 else 16)
            values.append(loss.detach().double())
            gradients.append(torch.autograd.grad(loss, leaf)[0].double())
        torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=0)
        assert (gradients[1] - gradients[0]).norm() < 1e-6 / tau * gradients[0].norm()


def test_reference_float32_long_rows() -> None:
    """Rows of norm 100 at tau 0.005: logits of 2e6 are rounded by about 0.1, nothing overflows."""
    query, keys = 100 * unit(rows(30, 8, seed=1)), 100 * unit(rows(40, 8, seed=2))
    relation = OwnKey(torch.arange(30))
    exact = contrast(query, keys, tau=0.005, relation=relation, reduction="none")
    for chunk in (None, 7):
        short = query.float().requires_grad_()
        losses = contrast(short, keys.float(), tau=0.005, relation=relation, reduction="none", chunk=chunk)
        torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1.0)
        (gradient,) = torch.autograd.grad(losses.sum(), short)
        assert gradient.isfinite().all()


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), k=st.integers(1, 9), seed=st.integers(0, 10_000), tau=st.floats(0.002, 5))
def test_reference_invariances(n: int, k: int, seed: int, tau: float) -> None:
    """Order of keys and queries and a rotation of the feature space change nothing."""
    query, keys, own = rows(n, D, seed=seed), rows(k, D, seed=seed + 1), rows(n, D, seed=seed + 2)
    query_ids, key_ids = labels(n, 3, seed), labels(k, 3, seed + 1)
    keep = Distinct(labels(n, 4, seed + 2), labels(k, 4, seed + 3))
    setting = {"tau": tau, "reduction": "none", "chunk": 1 + seed % 4}
    base = contrast(query, keys, own=own, relation=SameId(query_ids, key_ids), keep=keep, **setting)
    generator = torch.Generator().manual_seed(seed)
    order, key_order = torch.randperm(n, generator=generator), torch.randperm(k, generator=generator)
    turn = torch.linalg.qr(rows(D, D, seed=seed + 4))[0]
    moved = contrast(
        query[order] @ turn,
        keys[key_order] @ turn,
        own=own[order] @ turn,
        relation=SameId(query_ids[order], key_ids[key_order]),
        keep=Distinct(keep.query_ids[order], keep.key_ids[key_order]),
        **setting,
    )
    torch.testing.assert_close(moved, base[order], rtol=1e-11, atol=1e-13 * 40 / tau)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("chunk", [None, 64])
def test_reference_gpu(chunk: int | None) -> None:
    results = []
    for device in ("cpu", "cuda"):
        leaf = rows(300, 16, seed=1).to(device).requires_grad_()
        other = rows(300, 16, seed=2).to(device)
        ids = labels(300, 5, 3).to(device)
        loss = two_view_contrast(leaf, other, tau=0.3, chunk=chunk)
        loss = loss + contrast(leaf, other, tau=0.9, relation=SameId(ids, ids), keep=NotItself(), chunk=chunk)
        loss = loss + contrast(
            leaf,
            other,
            tau=0.01,
            relation=SameId(ids, ids),
            keep=Distinct(ids % 2, ids),
            chunk=chunk,
            inside=True,
        )
        results.append((loss.detach().cpu(), torch.autograd.grad(loss, leaf)[0].cpu()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)
