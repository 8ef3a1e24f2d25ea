"""The locally adaptive loss: the numbers of its specification, a loop over windows, and what it does at the edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel import dist
from leanlabel.errors import InputError
from leanlabel.losses.locally_adaptive import (
    GUO2018,
    LocallyAdaptive,
    k_ramp,
    local_losses,
    locally_adaptive,
    window_weights,
)

INF = math.inf
PIXELS = [
    [[2, 0, 0], [0, 1, 0], [0, 0, 0]],
    [[1, 0, 1], [0, 2, 0], [0, 0, 3]],
    [[0, 0, 0], [-1, 1, 0], [0, 1, 1]],
]
LABELS = [[0, 0, 1], [0, 1, 1], [255, 1, 2]]


def oracle() -> tuple[Tensor, Tensor]:
    """Scores (1, 3, 3, 3) with gradient and labels with 255 ignored."""
    scores = torch.tensor(PIXELS, dtype=torch.float64).permute(2, 0, 1)[None].contiguous()
    return scores.requires_grad_(), torch.tensor(LABELS)[None]


def value(**settings: Any) -> float:
    scores, labels = oracle()
    return float(locally_adaptive(scores, labels, ignore=255, **settings).detach())


def costs(**settings: Any) -> list[float]:
    found = local_losses(*oracle(), ignore=255, **settings)
    return found.eps[found.valid].tolist()


def slope(**settings: Any) -> Tensor:
    """(3, 3, 3): row, column, class."""
    scores, labels = oracle()
    (found,) = torch.autograd.grad(locally_adaptive(scores, labels, ignore=255, **settings), scores)
    return found[0].permute(1, 2, 0)


def near(expected: list[float]) -> Any:
    return pytest.approx(expected, abs=1.1e-10)


def exact(expected: float) -> Any:
    return pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------------- values


def test_values_pixels() -> None:
    """L1: windows of one pixel and k = 1 are the mean cross-entropy."""
    expected = [0.2395447662, 1.5514447139, 1.0986122887, 0.8619948041]
    expected += [0.2395447662, 3.0949229564, 0.4076059644, 0.8619948041]
    assert value(n=1, k=1.0) == exact(1.0444581330032217)
    assert costs(n=1) == near(expected)
    scores, labels = oracle()
    assert value(n=1, k=1.0) == exact(float(F.cross_entropy(scores.detach(), labels, ignore_index=255)))


def test_values_plain_mean() -> None:
    """L2: all neighbours of the class alike, gradient included."""
    settings: dict[str, Any] = {"n": 3, "sigma": INF}
    alike, other = 0.7064750871, 0.8619948041
    assert costs(**settings) == near([alike, alike, 1.0678195356, alike, other, other, 0.8169552020, other])
    assert value(**settings, k=1.0) == exact(0.8237730513958177)
    assert value(**settings, k=5.0) == exact(0.8574484199439754)
    first, second = (
        [-0.0633274677, 0.0316637338, 0.0316637338],
        [0.0219160423, -0.0867079095, 0.0647918671],
    )
    expected = [
        [first, first, [0.0170639360, -0.0634485230, 0.0463845869]],
        [first, second, second],
        [[0, 0, 0], [0.0145622566, -0.0593644617, 0.0448022050], [0.0194203004, 0.0527898498, -0.0722101502]],
    ]
    found = slope(**settings, k=1.0)
    # The specification cuts its digits off.
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1.3e-10)


def test_values_gaussian() -> None:
    """L3: the reference configuration."""
    expected = [0.5933907027, 0.8191289218, 1.0624082905, 0.7236275097]
    expected += [0.7306502147, 1.0793858578, 0.7281515550, 0.8619948041]
    assert costs() == near(expected)
    assert value(k=1.0) == exact(0.8248422320242161)
    assert value() == value(**GUO2018) == exact(0.8852070843927663)
    found = slope(**GUO2018)
    assert found[1, 2].tolist() == near([0.0319827901, -0.1257990778, 0.0938162877])
    assert found[0, 0].tolist() == near([-0.0270293019, 0.0137880513, 0.0132412506])


def test_values_power_mean_and_stride() -> None:
    """L4."""
    assert value(n=1) == exact(2.0582395097636392)
    assert value(stride=2, k=2.0) == exact(0.8609798573116153)
    assert len(costs(stride=2)) == 3


def test_values_variants() -> None:
    """L5: probabilities, division by the count, all classes of a window."""
    assert value(pool="probs", sigma=INF, k=1.0) == exact(0.7883073647215136)
    assert value(normaliser="count", k=1.0) == exact(0.8758999641572609)
    assert value(normaliser="count") == exact(0.9080561122935072)
    assert value(anchor="all", sigma=INF, k=1.0) == exact(0.8307882797475421)
    assert value(anchor="all") == exact(1.0487200680058344)
    found = local_losses(*oracle(), anchor="all", ignore=255)
    assert int(found.valid.sum()) + len(found.extra) == 21


def pair() -> tuple[Tensor, Tensor]:
    """L6: the oracle image and its negative."""
    scores, labels = oracle()
    return torch.cat([scores, -scores]).detach().requires_grad_(), labels.repeat(2, 1, 1)


WHOLE = {1.0: 1.1957957752904393, 2.0: 1.2646018984533902, 5.0: 1.4177556362869255}
PARTS = {1.0: 1.1957957752904396, 2.0: 1.2094845280458460, 5.0: 1.2490126563638884}


@torch.no_grad()
@pytest.mark.parametrize("k", WHOLE)
def test_values_batch(k: float) -> None:
    """L6: the loss of a batch is not the mean of the losses of its parts."""
    scores, labels = pair()
    assert float(locally_adaptive(scores, labels, k=k, ignore=255)) == exact(WHOLE[k])
    parts = [float(locally_adaptive(scores[i, None], labels[i, None], k=k, ignore=255)) for i in range(2)]
    assert sum(parts) / 2 == exact(PARTS[k])


def test_values_large() -> None:
    """L7: losses of 100 and 0.1, and of ten million in float32."""
    gaps = torch.tensor([100.0, 0.1], dtype=torch.float64)
    scores = torch.stack([torch.log(torch.expm1(gaps)), torch.zeros(2, dtype=torch.float64)])[None]
    assert float(locally_adaptive(scores, torch.ones(1, 2, dtype=torch.int64), n=1)) == exact(
        87.05505632961244
    )
    huge = torch.tensor([[[1e7, 0.0], [0.0, 0.0]]], requires_grad=True)
    loss = locally_adaptive(huge, torch.ones(1, 2, dtype=torch.int64), n=1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1e7 * 2**-0.2, rel=1e-6)
    assert huge.grad is not None
    assert bool(huge.grad.isfinite().all())
    assert float(huge.grad[0, 0, 0]) == pytest.approx(2**-0.2, rel=1e-5)


def test_values_ramp() -> None:
    assert [k_ramp(t, 1000, 5.0, 0.1) for t in (0, 50, 100, 101, 999)] == [1, 3, 5, 5, 5]
    assert k_ramp(0, 1000, 5.0, 0.0) == 5.0
    assert k_ramp(0, 0, 5.0) == 5.0


def random_case(*size: int, classes: int = 4, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(-1, classes, (batch, *size), generator=generator)
    return scores.requires_grad_(), labels.where(labels >= 0, -100)


# -------------------------------------------------------------------------------------------- types and the edges


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    """Computed in float32; finite where eps^5 does not fit a half type."""
    scores, labels = random_case(8, 8)
    narrow = (scores.detach() * 20).to(dtype).requires_grad_()
    for labels_like in (labels.int(), labels.to(torch.int16), labels):
        loss = locally_adaptive(narrow, labels_like)
        assert loss.dtype == torch.float32
    loss.backward()
    expected = locally_adaptive(narrow.detach().double(), labels)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert narrow.grad is not None
    assert narrow.grad.dtype == dtype
    assert bool(narrow.grad.isfinite().all())


@pytest.mark.parametrize("pool", ["scores", "probs"])
def test_dtypes_autocast(pool: Any) -> None:
    """Inside autocast sums stay in float32."""
    scores, labels = random_case(6, 6)
    narrow = scores.detach().bfloat16().requires_grad_()
    plain = locally_adaptive(narrow, labels, pool=pool)
    (expected,) = torch.autograd.grad(plain, narrow)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = locally_adaptive(narrow, labels, pool=pool)
    (found,) = torch.autograd.grad(loss, narrow)
    assert float(loss.detach()) == float(plain.detach())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("pool", ["scores", "probs"])
@pytest.mark.parametrize("anchor", ["centre", "all"])
@pytest.mark.parametrize("k", [1.0, 5.0])
def test_degenerate_nothing_labelled(pool: Any, anchor: Any, k: float) -> None:
    for batch in (2, 0):
        scores = torch.randn(batch, 3, 4, 5, requires_grad=True)
        labels = torch.full((batch, 4, 5), -100)
        loss = locally_adaptive(scores, labels, pool=pool, anchor=anchor, k=k, mix=0.5)
        loss.backward()
        assert float(loss.detach()) == 0
        assert scores.grad is not None
        assert not scores.grad.any()
        assert not window_weights(scores, labels, k=k, anchor=anchor).any()


def test_degenerate_lonely_centre() -> None:
    """A window with only its centre of a class is that pixel; neither border nor ignored pixels enter a mean."""
    scores, labels = random_case(5, 5, batch=1)
    labels = labels.fill_(1)
    labels[0, 2, 2], labels[0, 0, 1] = 0, -100
    found = local_losses(scores, labels).eps
    own = F.cross_entropy(scores, labels, reduction="none")
    assert float(found[0, 2, 2].detach()) == exact(float(own[0, 2, 2].detach()))
    constant = local_losses(torch.ones(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)).eps
    torch.testing.assert_close(constant, torch.full_like(constant, math.log(3)))


@pytest.mark.parametrize("ignore", [-1, 255, -100, 2, 7])
@pytest.mark.parametrize("anchor", ["centre", "all"])
def test_degenerate_ignore(ignore: int, anchor: Any) -> None:
    """Any integer may be the ignore label, also one that could be a class."""
    scores, labels = random_case(5, 5)
    labels = torch.where((labels == 2) | (labels == -100), -100, labels)
    expected = locally_adaptive(scores, labels, anchor=anchor)
    renamed = torch.where(labels == -100, ignore, labels)
    torch.testing.assert_close(locally_adaptive(scores, renamed, anchor=anchor, ignore=ignore), expected)
    if ignore == 255:
        small = renamed.to(torch.uint8)
        torch.testing.assert_close(locally_adaptive(scores, small, anchor=anchor, ignore=255), expected)


def test_degenerate_bytes_do_not_wrap() -> None:
    """-100 is no uint8: class 156, which has its bits, stays a class."""
    scores = torch.randn(1, 160, 2, 2)
    labels = torch.full((1, 2, 2), 156, dtype=torch.uint8)
    assert float(locally_adaptive(scores, labels)) > 0
    torch.testing.assert_close(locally_adaptive(scores, labels), locally_adaptive(scores, labels.long()))


@pytest.mark.parametrize("pool", ["scores", "probs"])
def test_degenerate_no_loss(pool: Any) -> None:
    """Nothing to learn: one class, or scores that are right beyond doubt. Gradient 0, not NaN."""
    for scores in (torch.randn(2, 1, 4, 4), torch.tensor([200.0, 0.0]).view(1, 2, 1, 1).repeat(2, 1, 4, 4)):
        scores = scores.clone().requires_grad_()
        for k in (1.0, 5.0):
            for root in (True, False):
                loss = locally_adaptive(
                    scores, torch.zeros(2, 4, 4, dtype=torch.int64), k=k, pool=pool, root=root
                )
                (found,) = torch.autograd.grad(loss, scores)
                assert float(loss.detach()) == 0
                assert not found.any()


@pytest.mark.parametrize("pool", ["scores", "probs"])
def test_degenerate_large_window_and_stride(pool: Any) -> None:
    """A window over the whole image averages each class; a stride beyond it leaves the first place."""
    scores, labels = random_case(4, 3, batch=1)
    found = local_losses(scores, labels, n=99, sigma=INF, pool=pool)
    held = scores.softmax(1) if pool == "probs" else scores
    for y in range(4):
        mean = held[0][:, labels[0] == y].mean(1)
        cost = -mean[y].log() if pool == "probs" else -mean.log_softmax(0)[y]
        torch.testing.assert_close(found.eps[labels == y], cost.expand(int((labels == y).sum())))
    labels[0, 0, 0] = 1
    assert local_losses(scores, labels, stride=50).eps.shape == (1, 1, 1)


def test_degenerate_far_neighbours() -> None:
    """A sigma so small that neighbours weigh nothing, and windows that have nothing but neighbours."""
    scores, labels = random_case(5, 5, batch=1)
    scores = scores.detach().float().requires_grad_()
    labels[:] = 1
    labels[0, 2, 2] = -100
    for pool in ("scores", "probs"):
        loss = locally_adaptive(scores, labels, anchor="all", sigma=0.05, pool=pool)
        loss.backward()
        assert bool(loss.isfinite())
        assert scores.grad is not None
        assert bool(scores.grad.isfinite().all())


def test_degenerate_improbable() -> None:
    """Pooled probabilities that underflow keep their logarithm."""
    scores = torch.tensor([300.0, 0.0]).view(1, 2, 1, 1).repeat(1, 1, 3, 3).requires_grad_()
    loss = locally_adaptive(scores, torch.ones(1, 3, 3, dtype=torch.int64), pool="probs")
    (found,) = torch.autograd.grad(loss, scores)
    assert float(loss.detach()) == pytest.approx(300)
    assert float(found.abs().sum()) == pytest.approx(2, rel=1e-5)


# --------------------------------------------------------------------------------------------------- errors, state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0.5}, "k must be finite and at least 1"),
        ({"k": INF}, "k must be finite"),
        ({"k": math.nan}, "k must be finite"),
        ({"n": 2}, "odd n"),
        ({"n": 0}, "odd n"),
        ({"stride": 0}, "stride >= 1"),
        ({"sigma": 0.0}, "sigma > 0"),
        ({"sigma": math.nan}, "sigma > 0"),
        ({"mix": 1.5}, r"mix must be in \[0, 1\]"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\)"),
        ({"pool": "max"}, "'scores' or 'probs', got 'max'"),
        ({"normaliser": "none"}, "'weights' or 'count'"),
        ({"anchor": "center"}, "'centre' or 'all', got 'center'"),
        ({"class_weights": torch.ones(2)}, r"class_weights must be \(3,\)"),
        ({"class_weights": torch.tensor([1.0, -1, 1])}, "not negative"),
    ],
    ids=str,
)
def test_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        locally_adaptive(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64), **settings)


def test_errors_labels() -> None:
    scores = torch.zeros(1, 3, 4, 4)
    with pytest.raises(InputError, match=r"label 255 is neither one of 3 classes .* 16 pixels"):
        locally_adaptive(scores, torch.full((1, 4, 4), 255))
    with pytest.raises(ValueError, match=r"differ in size; leanlabel.losses.pixel.align"):
        locally_adaptive(scores, torch.zeros(1, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels must be integers"):
        locally_adaptive(scores, torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="scores must be floating point"):
        locally_adaptive(scores.long(), torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="unknown settings sigmoid"):
        LocallyAdaptive(sigmoid=1)


def test_state() -> None:
    """Class weights are a buffer, and go where the module goes; the exponent can be scheduled."""
    module = LocallyAdaptive(**GUO2018, class_weights=torch.tensor([1.0, 2.0, 3.0]))
    fresh = LocallyAdaptive(class_weights=torch.zeros(3))
    fresh.load_state_dict(module.state_dict())
    scores, labels = oracle()
    scores, labels = scores.detach(), labels.where(labels != 255, -100)
    assert float(fresh.double()(scores, labels)) == float(module(scores, labels))
    assert float(module(scores, labels, k=1.0)) < float(module(scores, labels))
    assert float(LocallyAdaptive()(scores, labels)) == exact(0.8852070843927663)


# ---------------------------------------------------------------------------------------------------------- ranks


def ranked(settings: dict[str, Any], share: list[int]) -> tuple[Tensor, Tensor]:
    scores, labels = pair()
    start = sum(share[: dist.rank()])
    rows = slice(start, start + share[dist.rank()])
    scores = scores[rows].detach().requires_grad_()
    loss = locally_adaptive(scores, labels[rows], ignore=255, **settings)
    loss.backward()
    assert scores.grad is not None
    return loss.detach(), scores.grad


WEIGHTED = {"class_weights": torch.tensor([1.0, 2.0, 0.5]), "mix": 0.5, "smoothing": 0.1}


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"k": 1.0}, [1, 1]),
        ({"k": 2.0}, [1, 1]),
        ({}, [1, 1]),
        ({}, [2, 0]),
        ({"root": False, "mix": 0.3}, [0, 2]),
        ({"anchor": "all", "pool": "probs"}, [1, 1]),
        (WEIGHTED, [1, 1]),
    ],
    ids=["k=1", "k=2", "k=5", "k=5, one rank has nothing", "no root", "all", "weights"],
)
def test_ranks(pool, settings: dict[str, Any], share: list[int]) -> None:
    """L6: two ranks are one that sees both images, also where one of them sees none."""
    scores, labels = pair()
    expected = locally_adaptive(scores, labels, ignore=255, **settings)
    (gradient,) = torch.autograd.grad(expected, scores)
    results = pool.run(ranked, settings, share)
    torch.testing.assert_close((results[0][0] + results[1][0]) / 2, expected.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        torch.cat([results[0][1], results[1][1]]) / 2, gradient, rtol=1e-11, atol=1e-14
    )
    if set(settings) <= {"k"}:
        assert float(results[0][0] + results[1][0]) / 2 == exact(WHOLE[settings.get("k", 5.0)])
