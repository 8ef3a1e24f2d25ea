"""Losses of whole classes: sums by hand, loops over classes, classes that are not there, and two ranks as one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.errors import InputError
from leanlabel.losses.overlap import lovasz_softmax, soft_dice

LOSSES = {"dice": soft_dice, "lovasz": lovasz_softmax}


def random_case(*size: int, classes: int = 4, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(-1, classes, (batch, *size), generator=generator)
    return scores.requires_grad_(), labels.where(labels >= 0, -100)


def of_chances(rows: list[list[float]], labels: list[int]) -> tuple[Tensor, Tensor]:
    """Scores of one image of a line of pixels, whose softmax is given row by row, and labels."""
    return torch.tensor(rows, dtype=torch.float64).log().mT[None], torch.tensor([labels])


def exact(expected: float) -> Any:
    return pytest.approx(expected, rel=1e-12)


# Three pixels of classes 0, 0, 1 and one that is ignored; class 2 is not there.
ROWS = [[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]
KNOWN = [0, 0, 1, -100]


def test_values_dice() -> None:
    """Sums: I = 1.3, 0.7, 0; P = 1.5, 1.1, 0.4; N = 2, 1, 0; squares 0.93, 0.59, 0.06."""
    case = of_chances(ROWS, KNOWN)
    one, two = 1 - 2.6 / 3.5, 1 - 1.4 / 2.1
    assert float(soft_dice(*case, smooth=0.0)) == exact((one + two) / 2)
    assert float(soft_dice(*case)) == exact((2 - 3.6 / 4.5 - 2.4 / 3.1) / 2)
    assert float(soft_dice(*case, smooth=0.0, classes="all")) == exact((one + two + 1) / 3)
    assert float(soft_dice(*case, classes="all")) == exact((3 - 3.6 / 4.5 - 2.4 / 3.1 - 1 / 1.4) / 3)
    assert float(soft_dice(*case, smooth=0.0, squared=True)) == exact((2 - 2.6 / 2.93 - 1.4 / 1.59) / 2)
    # 1/4 and 1, whose mean over the two is 5/8: 0.4 and 1.6
    inside, both = 0.4 * 1.3 + 1.6 * 0.7, 0.4 * 3.5 + 1.6 * 2.1
    assert float(soft_dice(*case, smooth=0.0, generalised=True)) == exact(1 - 2 * inside / both)
    assert float(soft_dice(*case, generalised=True)) == exact(1 - (2 * inside + 1) / (both + 1))
    weighted = soft_dice(*case, smooth=0.0, class_weights=torch.tensor([1.0, 3.0, 9.0]))
    assert float(weighted) == exact((one + 3 * two) / 4)


def test_values_lovasz() -> None:
    """Class 0: errors .5 .2 .2 of pixels 0, 2, 1 (in and out); class 1: .3 .3 .1, all by hand."""
    case = of_chances([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]], KNOWN)
    # Class 0, worst first: pixel 0 (0.5, of the class), 2 (0.2, not), 1 (0.1, of the class). J: 1/2, 2/3, 1.
    first = 0.5 * 1 / 2 + 0.2 * (2 / 3 - 1 / 2) + 0.1 * (1 - 2 / 3)
    # Class 1: pixel 2 (0.3, of the class), 0 (0.25, not), 1 (0.05, not). J: 1 at once.
    second = 0.3
    assert float(lovasz_softmax(*case)) == exact((first + second) / 2)
    # Class 2 is absent: J is 1 at once, the loss its largest probability.
    assert float(lovasz_softmax(*case, classes="all")) == exact((first + second + 0.25) / 3)
    weighted = lovasz_softmax(*case, class_weights=torch.tensor([1.0, 3.0, 9.0]))
    assert float(weighted) == exact((first + 3 * second) / 4)


def test_values_hard_predictions() -> None:
    """For certain predictions both are one minus the usual overlap."""
    generator = torch.Generator().manual_seed(0)
    labels, guess = torch.randint(0, 3, (2, 1, 6, 6), generator=generator)
    scores = torch.nn.functional.one_hot(guess, 3).movedim(-1, 1).double() * 500
    shared = [((labels == c) & (guess == c)).sum() for c in range(3)]
    union = [((labels == c) | (guess == c)).sum() for c in range(3)]
    total = [(labels == c).sum() + (guess == c).sum() for c in range(3)]
    jaccard = sum(1 - i / u for i, u in zip(shared, union, strict=True)) / 3
    dice = sum(1 - 2 * i / t for i, t in zip(shared, total, strict=True)) / 3
    assert float(lovasz_softmax(scores, labels)) == pytest.approx(float(jaccard), rel=1e-6)
    assert float(soft_dice(scores, labels, smooth=0.0)) == pytest.approx(float(dice), rel=1e-6)


def looped_dice(scores: Tensor, labels: Tensor, smooth: float, classes: str, squared: bool) -> Tensor:
    p, valid = scores.softmax(1), labels != -100
    found = []
    for c in range(scores.shape[1]):
        if classes == "all" or (labels == c).any():
            inside = p[:, c][labels == c].sum()
            predicted = (p[:, c] ** 2 if squared else p[:, c])[valid].sum()
            found.append(1 - (2 * inside + smooth) / (predicted + (labels == c).sum() + smooth))
    return torch.stack(found).mean()


def looped_lovasz(scores: Tensor, labels: Tensor, classes: str) -> Tensor:
    """The definition: errors times the growth of the Jaccard loss of the set of the worst pixels."""
    valid = labels != -100
    p, known = scores.softmax(1).movedim(1, -1)[valid], labels[valid]
    found = []
    for c in range(p.shape[1]):
        own = known == c
        if classes == "present" and not own.any():
            continue
        errors = torch.where(own, 1 - p[:, c], p[:, c])
        order, before, total = errors.argsort(descending=True).tolist(), 0.0, errors.new_zeros(())
        for i in range(1, len(order) + 1):
            wrong = torch.zeros_like(own)
            wrong[order[:i]] = True
            now = 1 - float((own & ~wrong).sum()) / float((own | wrong).sum())
            total = total + errors[order[i - 1]] * (now - before)
            before = now
        found.append(total)
    return torch.stack(found).mean()


@pytest.mark.parametrize("size", [(9,), (4, 5), (2, 3, 3)], ids=str)
@pytest.mark.parametrize("classes", ["present", "all"])
def test_reference(size: tuple[int, ...], classes: Any) -> None:
    scores, labels = random_case(*size)
    labels = torch.where(labels == 3, -100, labels)
    for squared in (False, True):
        found = soft_dice(scores, labels, smooth=0.7, classes=classes, squared=squared)
        torch.testing.assert_close(found, looped_dice(scores, labels, 0.7, classes, squared))
    torch.testing.assert_close(
        lovasz_softmax(scores, labels, classes=classes), looped_lovasz(scores, labels, classes)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_reference_per_image(name: str) -> None:
    """The mean over images; one without labels is left out."""
    scores, labels = random_case(4, 4, batch=3)
    labels[1] = -100
    each = [LOSSES[name](scores[i, None], labels[i, None]) for i in (0, 2)]
    torch.testing.assert_close(LOSSES[name](scores, labels, per="image"), (each[0] + each[1]) / 2)
    assert float((LOSSES[name](scores, labels) - (each[0] + each[1]) / 2).detach().abs()) > 1e-4


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dice", {"smooth": 0.0}),
    ("dice", {"squared": True, "classes": "all", "per": "image"}),
    ("dice", {"generalised": True, "class_weights": torch.tensor([1.0, 0.5, 2.0])}),
    ("lovasz", {"classes": "all"}),
    ("lovasz", {"per": "image"}),
]


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_gradient(name: str, settings: dict[str, Any]) -> None:
    """Right by finite differences, and none at ignored pixels."""
    scores, labels = random_case(3, 3, classes=3)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels, **settings), (scores,))
    (found,) = torch.autograd.grad(LOSSES[name](scores, labels, **settings), scores)
    assert not found.movedim(1, -1)[labels == -100].any()
    assert found.any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    scores, labels = random_case(5, 5)
    narrow = scores.detach().to(dtype).requires_grad_()
    loss = LOSSES[name](narrow, labels.to(torch.int16))
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(
        float(LOSSES[name](narrow.detach().double(), labels)), rel=1e-5
    )
    assert narrow.grad is not None
    assert bool(narrow.grad.isfinite().all())


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_degenerate(name: str, settings: dict[str, Any]) -> None:
    """Nothing labelled or no image: 0 with a gradient of 0. A weight of 0 for all that is there likewise."""
    ignored = torch.full((2, 3, 3), -100)
    cases = [(ignored, settings), (ignored[:0], settings)]
    cases.append((ignored * 0 + 1, {**settings, "class_weights": torch.tensor([1.0, 0.0, 0.0])}))
    for labels, given_settings in cases:
        if settings.get("classes") == "all" and len(labels) and labels[0, 0, 0] == 1:
            continue
        scores = torch.randn(len(labels), 3, 3, 3, requires_grad=True)
        loss = LOSSES[name](scores, labels, **given_settings)
        loss.backward()
        assert float(loss.detach()) == 0
        assert scores.grad is not None
        assert not scores.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_degenerate_perfect(name: str) -> None:
    """Certain and right: 0; one class: 0; certain and wrong: 1. Finite gradients."""
    labels = torch.tensor([[0, 1, 1, -100]])
    right = torch.tensor([[900.0, 0, 0, 5], [0, 900.0, 900.0, 0]])[None]
    for scores, known, expected in (
        (right, labels, 0.0),
        (torch.randn(1, 1, 4), labels.clamp(max=0), 0.0),
        (right.flip(1), labels, 1.0),
    ):
        scores = scores.clone().requires_grad_()
        loss = LOSSES[name](scores, known, **({"smooth": 0.0} if name == "dice" else {}))
        loss.backward()
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
        assert scores.grad is not None
        assert bool(scores.grad.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ignore", [-1, 255, 2])
def test_degenerate_ignore(name: str, ignore: int) -> None:
    scores, labels = random_case(4, 4)
    labels = torch.where(labels == 2, -100, labels)
    renamed = torch.where(labels == -100, ignore, labels)
    torch.testing.assert_close(LOSSES[name](scores, renamed, ignore=ignore), LOSSES[name](scores, labels))
    if ignore == 255:
        small = renamed.to(torch.uint8)
        torch.testing.assert_close(LOSSES[name](scores, small, ignore=255), LOSSES[name](scores, labels))


def test_errors() -> None:
    scores, labels = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    for loss in LOSSES.values():
        with pytest.raises(InputError, match="label 3 is neither one of 3 classes"):
            loss(scores, labels + 3)
        with pytest.raises(ValueError, match="got 'pixel'"):
            loss(scores, labels, per="pixel")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="got 'seen'"):
            loss(scores, labels, classes="seen")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="class_weights"):
            loss(scores, labels, class_weights=torch.ones(1))
    with pytest.raises(ValueError, match="smooth must not be negative"):
        soft_dice(scores, labels, smooth=-1.0)


@trials(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from(sorted(LOSSES)), st.sampled_from(["batch", "image"]))
def test_invariances(seed: int, name: str, per: Any) -> None:
    """Other orders of images, pixels and classes; scores shifted by a constant; always in [0, 1]."""
    scores, labels = (x.detach() for x in random_case(3, 4, seed=seed))
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    renamed = torch.where(labels >= 0, order.argsort()[labels.clamp(min=0)], -100)
    expected = LOSSES[name](scores, labels, per=per)
    assert 0 <= float(expected) <= 1
    for x, y in (
        (scores.flip(0, 2), labels.flip(0, 1)),
        (scores[:, order], renamed),
        (scores - 3.25, labels),
    ):
        torch.testing.assert_close(LOSSES[name](x, y, per=per), expected)


def ranked(name: str, settings: dict[str, Any], sizes: list[int]) -> tuple[Tensor, Tensor]:
    scores, labels = random_case(4, 3, batch=3, classes=3)
    start = sum(sizes[: dist.rank()])
    rows = slice(start, start + sizes[dist.rank()])
    scores = scores[rows].detach().requires_grad_()
    loss = LOSSES[name](scores, labels[rows], **settings)
    loss.backward()
    assert scores.grad is not None
    return loss.detach(), scores.grad


@pytest.mark.parametrize(
    ("name", "settings", "sizes"),
    [
        ("dice", {}, [1, 2]),
        ("dice", {"squared": True, "smooth": 0.0}, [0, 3]),
        ("dice", {"generalised": True}, [2, 1]),
        ("dice", {"per": "image", "classes": "all"}, [1, 2]),
        ("lovasz", {"per": "image"}, [1, 2]),
        ("lovasz", {}, [0, 3]),
    ],
    ids=str,
)
def test_ranks(pool, name: str, settings: dict[str, Any], sizes: list[int]) -> None:
    """Two ranks are one: sums run over both, and a rank without images changes nothing."""
    scores, labels = random_case(4, 3, batch=3, classes=3)
    expected = LOSSES[name](scores, labels, **settings)
    (gradient,) = torch.autograd.grad(expected, scores)
    results = pool.run(ranked, name, settings, sizes)
    torch.testing.assert_close((results[0][0] + results[1][0]) / 2, expected.detach(), rtol=1e-12, atol=0)
    found = torch.cat([results[0][1], results[1][1]]) / 2
    torch.testing.assert_close(found, gradient, rtol=1e-11, atol=1e-15)
    assert math.isfinite(float(expected.detach()))
