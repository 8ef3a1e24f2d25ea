"""The locally adaptive loss against a loop over windows and pixels: values, gradients, bounds, memory."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from leanlabel.losses.locally_adaptive import local_losses, locally_adaptive, window_weights


def looped(
    scores: Tensor,
    labels: Tensor,
    *,
    n: int = 3,
    sigma: float = 1.0,
    stride: int = 1,
    k: float = 5.0,
    pool: str = "scores",
    normaliser: str = "weights",
    anchor: str = "centre",
    root: bool = True,
    mix: float = 1.0,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    ignore: int = -100,
) -> Tensor:
    """One window and one pixel after the other."""
    classes, size = scores.shape[1], labels.shape[1:]
    weights = scores.new_ones(classes) if class_weights is None else class_weights
    held = scores.softmax(1) if pool == "probs" else scores

    def cost(log_p: Tensor, y: int) -> Tensor:
        smooth = (weights * log_p).sum() * smoothing / classes
        return -(1 - smoothing) * weights[y] * log_p[y] - smooth

    eps = []
    for b, *centre in itertools.product(range(len(scores)), *(range(0, side, stride) for side in size)):
        around = itertools.product(
            *(
                range(max(0, c - n // 2), min(side, c + n // 2 + 1))
                for c, side in zip(centre, size, strict=True)
            )
        )
        pixels = [p for p in around if int(labels[(b, *p)]) != ignore]
        own = int(labels[(b, *centre)])
        wanted = {own} - {ignore} if anchor == "centre" else {int(labels[(b, *p)]) for p in pixels}
        for y in sorted(wanted):
            total, divisor = scores.new_zeros(classes), 0.0
            for p in pixels:
                if int(labels[(b, *p)]) == y:
                    distance = max(abs(i - c) for i, c in zip(p, centre, strict=True))
                    weight = math.exp(-(distance**2) / (2 * sigma**2))
                    total = total + weight * held[(b, slice(None), *p)]
                    divisor += weight if normaliser == "weights" else 1
            rho = total / divisor
            eps.append(cost(rho.log() if pool == "probs" else rho.log_softmax(0), y))
    found = torch.stack(eps)
    loss = (found**k).mean() ** (1 / k if root else 1)
    each = [
        cost(scores.log_softmax(1)[(b, slice(None), *p)], int(labels[(b, *p)]))
        for b, *p in itertools.product(range(len(scores)), *map(range, size))
        if int(labels[(b, *p)]) != ignore
    ]
    return mix * loss + (1 - mix) * torch.stack(each).mean()


def random_case(*size: int, classes: int = 4, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(-1, classes, (batch, *size), generator=generator)
    return scores.requires_grad_(), labels.where(labels >= 0, -100)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"n": 5, "sigma": 0.8, "k": 3.0},
    {"n": 5, "stride": 2, "k": 2.0},
    {"n": 3, "stride": 4},
    {"n": 7, "stride": 3, "anchor": "all", "sigma": 2.0},
    {"anchor": "all", "normaliser": "count", "root": False, "k": 2.5},
    {"anchor": "all", "pool": "probs", "n": 5},
    {"anchor": "all", "pool": "probs", "smoothing": 0.2, "normaliser": "count"},
    {"pool": "probs", "n": 5, "k": 1.0},
    {"pool": "probs", "smoothing": 0.1, "class_weights": True, "stride": 2},
    {"pool": "probs", "class_weights": True, "n": 1},
    {"smoothing": 0.3, "class_weights": True, "mix": 0.4},
    {"root": False, "mix": 0.7, "normaliser": "count"},
]


@pytest.mark.parametrize(
    ("settings", "size"),
    [*((settings, (4, 5)) for settings in VARIANTS), *((VARIANTS[i], (3, 2, 3)) for i in (0, 2, 6, 9))],
    ids=str,
)
def test_reference(settings: dict[str, Any], size: tuple[int, ...]) -> None:
    """Value and gradient of the loop."""
    settings = dict(settings)
    if settings.pop("class_weights", False):
        settings["class_weights"] = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)
    scores, labels = random_case(*size)
    expected, found = looped(scores, labels, **settings), locally_adaptive(scores, labels, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    slopes = [torch.autograd.grad(loss, scores)[0] for loss in (expected, found)]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-9, atol=1e-12)


def test_reference_line() -> None:
    """One dimension of space, and memory that is laid out with channels last."""
    scores, labels = random_case(9)
    torch.testing.assert_close(locally_adaptive(scores, labels), looped(scores, labels), rtol=1e-10, atol=0)
    scores, labels = random_case(5, 6)
    last = scores.detach().to(memory_format=torch.channels_last).requires_grad_()
    torch.testing.assert_close(
        locally_adaptive(last, labels), locally_adaptive(scores, labels), rtol=1e-12, atol=0
    )


@torch.no_grad()
def test_reference_bound() -> None:
    """Without the power mean, pooling never exceeds the same weighted mean of the pixels' losses."""
    scores, labels = random_case(6, 6)
    smoothed = smoothed_losses(F.cross_entropy(scores, labels, reduction="none"), labels)
    for pool in ("scores", "probs"):
        found = local_losses(scores, labels, pool=pool)
        assert bool((found.eps <= smoothed + 1e-12)[found.valid].all())
        assert bool((found.eps < smoothed - 1e-3)[found.valid].any())


def smoothed_losses(losses: Tensor, labels: Tensor) -> Tensor:
    """The mean of pixel losses over the same class and window, n = 3 and sigma = 1."""
    result = torch.zeros_like(losses)
    for b, i, j in itertools.product(*map(range, losses.shape)):
        near_by = [
            (u, v)
            for u in range(max(0, i - 1), min(losses.shape[1], i + 2))
            for v in range(max(0, j - 1), min(losses.shape[2], j + 2))
            if labels[b, u, v] == labels[b, i, j]
        ]
        weights = torch.tensor([1.0 if p == (i, j) else math.exp(-0.5) for p in near_by], dtype=torch.float64)
        result[b, i, j] = (weights * torch.stack([losses[b, u, v] for u, v in near_by])).sum() / weights.sum()
    return result


def test_reference_two_passes() -> None:
    """Gradients accumulated over parts in two passes, as the documentation says, are those of the whole."""
    scores, labels = random_case(5, 4, batch=3)
    k = 5.0
    (expected,) = torch.autograd.grad(locally_adaptive(scores, labels, k=k), scores)
    with torch.no_grad():
        firsts = [local_losses(scores[i, None], labels[i, None]) for i in range(3)]
    count = sum(int(found.valid.sum()) for found in firsts)
    level = (sum(float((found.eps**k).sum()) for found in firsts) / count) ** (1 / k)
    for i in range(3):
        eps = local_losses(scores[i, None], labels[i, None]).eps
        ((eps**k).sum() / (k * count * level ** (k - 1))).backward()
    torch.testing.assert_close(scores.grad, expected, rtol=1e-10, atol=1e-14)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, Tensor):
                self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("pool", ["scores", "probs"])
@pytest.mark.parametrize("anchor", ["centre", "all"])
def test_reference_memory(pool: Any, anchor: Any) -> None:
    """Nothing is unfolded: no tensor of both passes is larger than the scores, where windows have 25 pixels."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 21, 16, 16, generator=generator, requires_grad=True)
    blocks = torch.randint(0, 21, (2, 2, 2), generator=generator)
    labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    with Largest() as largest:
        locally_adaptive(scores, labels, n=5, pool=pool, anchor=anchor).backward()
    assert scores.nbytes <= largest.bytes <= scores.nbytes * (1 if anchor == "centre" else 1.5)


# ----------------------------------------------------------------------------------------------------- gradient


@pytest.mark.parametrize("settings", [VARIANTS[i] for i in (0, 2, 5, 7, 8)], ids=str)
def test_gradient(settings: dict[str, Any]) -> None:
    scores, labels = random_case(3, 3, classes=3, batch=1)
    assert torch.autograd.gradcheck(lambda x: locally_adaptive(x, labels, **settings), (scores,))


def test_gradient_is_where_it_should_be() -> None:
    """None at ignored pixels; a pixel moves with every window of its class that covers it."""
    scores, labels = random_case(6, 6, batch=1)
    (found,) = torch.autograd.grad(locally_adaptive(scores, labels), scores)
    assert bool((found.abs().sum(1)[labels == -100] == 0).all())
    assert bool((found.abs().sum(1)[labels != -100] > 0).all())
    found = local_losses(scores, torch.zeros(1, 6, 6, dtype=torch.int64)).eps[0, 2, 2]
    (around,) = torch.autograd.grad(found, scores)
    assert around.abs().sum((0, 1)).nonzero().tolist() == [[i, j] for i in (1, 2, 3) for j in (1, 2, 3)]


def test_window_weights() -> None:
    """The power mean's slopes: their mean over the windows is what L gains when every loss rises by 1."""
    scores, labels = random_case(6, 6)
    found = local_losses(scores, labels)
    level = ((found.eps**5)[found.valid].mean()) ** 0.2
    weights = window_weights(scores, labels, k=5.0)
    torch.testing.assert_close(weights, ((found.eps / level) ** 4).where(found.valid, 0).detach())
    assert bool((window_weights(scores, labels, k=1.0)[found.valid] == 1).all())
    # Twice the window at a place where a second class shares it.
    shared = window_weights(scores, labels, k=1.0, anchor="all")
    assert float(shared.sum()) == len(local_losses(scores, labels, anchor="all").extra) + shared.numel()


# ---------------------------------------------------------------------------------------------------- invariances


@trials(max_examples=8)
@given(st.integers(0, 1000), st.sampled_from(["scores", "probs"]), st.sampled_from(["centre", "all"]))
def test_invariances(seed: int, pool: Any, anchor: Any) -> None:
    """Mirrored images, swapped axes, renamed classes, other batch orders, scores shifted by a constant."""
    scores, labels = (x.detach() for x in random_case(3, 4, seed=seed))
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    renamed = torch.where(labels >= 0, order.argsort()[labels.clamp(min=0)], -100)
    expected = locally_adaptive(scores, labels, pool=pool, anchor=anchor)
    for x, y in (
        (scores.flip(-1), labels.flip(-1)),
        (scores.mT, labels.mT),
        (scores.flip(0), labels.flip(0)),
        (scores[:, order], renamed),
        (scores + 7.5, labels),
    ):
        torch.testing.assert_close(
            locally_adaptive(x, y, pool=pool, anchor=anchor), expected, rtol=1e-10, atol=0
        )


@given(st.integers(0, 1000), st.floats(1, 8), st.floats(0, 4))
def test_grows_with_k(seed: int, k: float, more: float) -> None:
    """A power mean grows with its exponent, from the mean towards the largest loss."""
    scores, labels = (x.detach() for x in random_case(3, 4, seed=seed))
    low, high = (float(locally_adaptive(scores, labels, k=e)) for e in (k, k + more))
    assert low <= high * (1 + 1e-12)
    assert high <= float(local_losses(scores, labels).eps.max()) * (1 + 1e-12)
