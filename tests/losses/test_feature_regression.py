"""Regression of feature maps: the oracle's numbers, loops, tolerance against misalignment, and two ranks as one."""

from __future__ import annotations

import math
import re
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.losses.feature_regression import (
    Kind,
    Tolerance,
    best_shifts,
    distillation_loss,
    mean_square,
    position_errors,
    regression_loss,
    valid_cells,
)

KINDS = get_args(Kind)
TARGET = torch.tensor([[[[1, 2], [0, -1]], [[0.5, 0], [2, 1]]]], dtype=torch.float64)
STUDENT = torch.tensor([[[[0, 2], [1, -1]], [[0.5, 1], [1, 0]]]], dtype=torch.float64)
ROW = torch.tensor([0, 1, 0, 0, 2], dtype=torch.float64).view(1, 1, 1, 5)
MOVED = torch.tensor([1, 0, 0, 2, 0], dtype=torch.float64).view(1, 1, 1, 5)
LOCAL, GLOBAL, POOL = (Tolerance(kind="local"), Tolerance(kind="global"), Tolerance(kind="pool", size=2))
TOLERANCES = [Tolerance(), POOL, LOCAL, GLOBAL]


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def masks(*shape: int, share: float = 0.7, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def exact(expected: float) -> Any:
    return pytest.approx(expected, rel=1e-10, abs=1e-14)


# ------------------------------------------------------------------------------------------------------- values


def test_values_mse() -> None:
    """F1: value, gradient, and none for the reference."""
    student, target = STUDENT.clone().requires_grad_(), TARGET.clone().requires_grad_()
    loss = regression_loss(student, target)
    loss.backward()
    assert loss.item() == exact(0.625)
    assert (loss * STUDENT.numel() / 2).item() == exact(2.5)  # half the sum of squares
    expected = [[[[-0.25, 0], [0.25, 0]], [[0, 0.25], [-0.25, -0.25]]]]
    assert student.grad is not None
    assert student.grad.tolist() == expected
    assert target.grad is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("relative", 0.4444444444444444), ("l1", 0.625), ("smooth-l1", 0.3125), ("cosine", 0.31103641278175786)],
)
def test_values_kinds(kind: Kind, expected: float) -> None:
    """F2."""
    assert float(regression_loss(STUDENT, TARGET, kind=kind)) == exact(expected)


def test_values_cosines() -> None:
    """F2: the cosines of the four positions."""
    found = 1 - position_errors(STUDENT, TARGET, "cosine")[0]
    expected = [[0.2**0.5, 0.8**0.5], [0.5**0.5, 0.5**0.5]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_values_mask_and_pool() -> None:
    """F3: a mask of positions, and means of 2 x 2."""
    valid = torch.tensor([[[True, True], [False, True]]])
    assert float(regression_loss(STUDENT, TARGET, valid=valid)) == exact(0.5)
    assert float(regression_loss(STUDENT, TARGET, tolerance=POOL)) == exact(0.03125)


def test_values_layers() -> None:
    """F4: a second layer, weighted."""
    reference, student = (torch.tensor(v).double().view(1, 3, 1, 1) for v in ([1, 1, 0], [0, 3, 0]))
    second = regression_loss(student, reference)
    assert float(second) == exact(5 / 3)
    assert float(0.25 * regression_loss(STUDENT, TARGET) + 0.75 * second) == exact(1.40625)


def test_values_misalignment() -> None:
    """F5: plain, the best of neighbouring positions, the best shift of the whole row."""
    assert float(regression_loss(MOVED, ROW)) == exact(2.0)
    assert float(regression_loss(MOVED, ROW, tolerance=LOCAL)) == 0
    assert float(regression_loss(MOVED, ROW, tolerance=GLOBAL)) == 0
    assert best_shifts(MOVED, ROW, 1).tolist() == [[0, 1]]
    expected = {-1: 1.25, 0: 2.0, 1: 0.0}
    for shift, value in expected.items():
        here = MOVED[..., max(0, -shift) : 5 - max(0, shift)]
        there = ROW[..., max(0, shift) : 5 - max(0, -shift)]
        assert float(regression_loss(here, there)) == exact(value)


def test_values_resize() -> None:
    """F6: a reference of 2 x 2 against a student of 3 x 3 whose loss is 0 at the resized reference."""
    first = [[1, 1.5, 2], [0.5, 0.5, 0.5], [0, -0.5, -1]]
    second = [[0.5, 0.25, 0], [1.25, 0.875, 0.5], [2, 1.5, 1]]
    student = torch.tensor([[first, second]], dtype=torch.float64)
    assert float(regression_loss(student, TARGET)) < 1e-28
    assert float(regression_loss(student + 1, TARGET)) == exact(1.0)


def test_values_training() -> None:
    """F7: a linear student under gradient descent, losses and parameters step by step, and the optimum."""
    seen = torch.tensor([0, 1, 2, 5], dtype=torch.float64)
    reference, other = seen.view(1, 1, 1, 4), (2 * seen + 1).view(1, 1, 1, 4)
    student = torch.nn.Conv2d(1, 1, 1).double()
    with torch.no_grad():
        student.weight.fill_(1.0)
        assert student.bias is not None
        student.bias.fill_(0.0)
    optimiser = torch.optim.SGD(student.parameters(), lr=0.02)
    losses, found = [], []
    for _ in range(3):
        loss = regression_loss(student(other), reference)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        found.append((student.weight.item(), student.bias.item()))
    assert losses == [exact(12.5), exact(4.332), exact(1.5271744)]
    assert found == [
        (exact(0.12), exact(-0.12)),
        (exact(0.6368), exact(-0.0592)),
        (exact(0.335232), exact(-0.104192)),
    ]
    with torch.no_grad():
        student.weight.fill_(0.5)
        student.bias.fill_(-0.5)
    loss = regression_loss(student(other), reference)
    gradients = torch.autograd.grad(loss, list(student.parameters()))
    assert loss.item() == 0
    assert not any(one.any() for one in gradients)


def test_values_robust() -> None:
    """tau log(1 + e / tau); its gradient is that of e times 1 / (1 + e / tau)."""
    student = STUDENT.clone().requires_grad_()
    errors = position_errors(student, TARGET)[0]
    tau = 0.5
    loss = regression_loss(student, TARGET, robust=tau)
    assert loss.item() == exact(
        sum(tau * math.log1p(e / tau) for e in errors.detach().flatten().tolist()) / 4
    )
    (gradient,) = torch.autograd.grad(loss, student)
    weights = 1 / (1 + errors.detach() / tau)
    (expected,) = torch.autograd.grad((weights * errors).mean(), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_values_distillation() -> None:
    """KL of two classes by hand, at two temperatures."""
    student = torch.tensor([math.log(3), 0.0], dtype=torch.float64).view(1, 2, 1, 1)
    reference = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(distillation_loss(student, reference)) == exact(expected)
    assert float(distillation_loss(2 * student, reference, temperature=2)) == exact(4 * expected)


def test_values_cells() -> None:
    """A cell is valid where all of it is, also where sides do not divide."""
    valid = torch.ones(1, 5, 5, dtype=torch.bool)
    valid[0, 2, 4] = False
    # Rows 0-2 and 2-4, columns likewise: the hole lies in the right cell of both rows.
    assert valid_cells(valid, (2, 2)).tolist() == [[[True, False], [True, False]]]
    assert valid_cells(valid, (5, 5)).equal(valid)
    assert valid_cells(valid, (10, 10)).sum() == 96


# ---------------------------------------------------------------------------------------------------- reference


def one_error(left: Tensor, right: Tensor, kind: str) -> float:
    """Error of one position, number by number."""
    pairs = list(zip(left.tolist(), right.tolist(), strict=True))
    if kind == "cosine":
        dot = sum(a * b for a, b in pairs)
        return 1 - dot / math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
    rule = {
        "mse": lambda d: d * d,
        "relative": lambda d: d * d,
        "l1": abs,
        "smooth-l1": lambda d: d * d / 2 if abs(d) < 1 else abs(d) - 0.5,
    }[kind]
    return sum(rule(a - b) for a, b in pairs) / len(pairs)


def naive(student: Tensor, target: Tensor, valid: Tensor, kind: str, tolerance: str, r: int) -> float:
    """The loss of maps of one size, loop by loop."""
    images, _, height, width = target.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    steps = range(-r, r + 1)
    shifts = sorted(((a, b) for a in steps for b in steps), key=lambda s: (s[0] ** 2 + s[1] ** 2, s))
    found: list[float] = []
    for image in range(images):
        by_shift: dict[tuple[int, int], dict[tuple[int, int], float]] = {}
        for dy, dx in shifts:
            by_shift[dy, dx] = {
                (y, x): one_error(student[image, :, y, x], target[image, :, y + dy, x + dx], kind)
                for y, x in cells
                if 0 <= y + dy < height and 0 <= x + dx < width
                if valid[image, y, x] and valid[image, y + dy, x + dx]
            }
        if tolerance == "local":
            found += [
                min(by_shift[s][cell] for s in shifts if cell in by_shift[s])
                for cell in cells
                if valid[image, cell[0], cell[1]]
            ]
        elif tolerance == "global":
            means = {s: sum(e.values()) / len(e) for s, e in by_shift.items() if e}
            found += by_shift[min(means, key=lambda s: means[s])].values() if means else []
        else:
            found += by_shift[0, 0].values()
    squares = [
        float((target[b, :, y, x] ** 2).mean()) for b in range(images) for y, x in cells if valid[b, y, x]
    ]
    scale = sum(squares) / len(squares) if kind == "relative" else 1.0
    return sum(found) / len(found) / scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tolerance", "size"), [("none", 1), ("local", 1), ("global", 2)])
def test_reference(kind: Kind, tolerance: Any, size: int) -> None:
    student, target, valid = maps(2, 3, 4, 5), maps(2, 3, 4, 5, seed=1), masks(2, 4, 5)
    found = regression_loss(
        student, target, kind=kind, valid=valid, tolerance=Tolerance(kind=tolerance, size=size)
    )
    assert float(found) == exact(naive(student, target, valid, kind, tolerance, size))


def test_reference_pool() -> None:
    """Cells of 2 x 2 with narrower ones at the edge; a cell with a hole is left out."""
    student, target = maps(1, 2, 3, 5), maps(1, 2, 3, 5, seed=1)
    valid = torch.ones(1, 3, 5, dtype=torch.bool)
    valid[0, 0, 1] = False
    errors = []
    for y, x in [(0, 2), (0, 4), (2, 0), (2, 2), (2, 4)]:  # all cells but the first
        means = [one[0, :, y : y + 2, x : x + 2].mean((1, 2)) for one in (student, target)]
        errors.append(float((means[0] - means[1]).square().mean()))
    found = regression_loss(student, target, valid=valid, tolerance=POOL)
    assert float(found) == exact(sum(errors) / 5)


def test_reference_resized_mask() -> None:
    """A pixel without image takes away every position that reads it, also through the resized reference."""
    student, target = maps(1, 2, 4, 4), maps(1, 2, 2, 2, seed=1)
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    valid[0, 0, 0] = False
    resized = torch.nn.functional.interpolate(target, size=(4, 4), mode="bilinear")
    kept = torch.ones(1, 4, 4, dtype=torch.bool)
    kept[0, :3, :3] = False  # bilinear weights of the upper left position of the reference
    expected = (student - resized).square().mean(1)[kept].mean()
    assert float(regression_loss(student, target, valid=valid)) == exact(float(expected))


def test_reference_distillation() -> None:
    student, reference, valid = maps(2, 4, 3, 3), maps(2, 4, 3, 3, seed=1), masks(2, 3, 3)
    total = 0.0
    for image, y, x in valid.nonzero().tolist():
        p = (reference[image, :, y, x] / 3).softmax(0)
        q = (student[image, :, y, x] / 3).softmax(0)
        total += float((p * (p / q).log()).sum())
    found = distillation_loss(student, reference, temperature=3, valid=valid)
    assert float(found) == exact(9 * total / int(valid.sum()))


# ----------------------------------------------------------------------------------------------------- gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", TOLERANCES, ids=lambda one: one.kind)
def test_gradient(kind: Kind, tolerance: Tolerance) -> None:
    student, target = maps(2, 2, 3, 3).requires_grad_(), maps(2, 2, 2, 3, seed=1)
    valid = torch.ones(2, 3, 3, dtype=torch.bool)
    valid[0, 0, 0] = False
    assert torch.autograd.gradcheck(
        lambda x: regression_loss(x, target, kind=kind, valid=valid, tolerance=tolerance, robust=2.0), student
    )


def test_gradient_distillation() -> None:
    student, reference = maps(1, 3, 2, 2).requires_grad_(), maps(1, 3, 2, 2, seed=1)
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, reference, temperature=2), student)


def test_gradient_of_the_match_only() -> None:
    """Under the local search a position is drawn towards its match, not towards its own place."""
    student = MOVED.clone().requires_grad_()
    with torch.no_grad():
        student[0, 0, 0, 3] = 1.5  # matches the 2 on its right
    (gradient,) = torch.autograd.grad(regression_loss(student, ROW, tolerance=LOCAL), student)
    assert gradient.flatten().tolist() == [0, 0, 0, pytest.approx(2 * -0.5 / 5), 0]


@pytest.mark.parametrize("tolerance", [LOCAL, GLOBAL], ids=lambda one: one.kind)
def test_gradient_keeps_little(tolerance: Tolerance) -> None:
    """What waits for the backward pass does not grow with the number of shifts."""
    student, target = maps(1, 16, 12, 12).requires_grad_(), maps(1, 16, 12, 12, seed=1)
    kept = []
    for size in (1, 4):
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=saved: s.append(x) or x, lambda x: x):
            regression_loss(student, target, tolerance=tolerance.model_copy(update={"size": size}))
        kept.append(sum(one.numel() for one in saved))
    assert 0 < kept[1] <= kept[0] <= 2 * student.numel() + 4 * 12 * 12


# ------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", TOLERANCES, ids=lambda one: one.kind)
def test_dtypes(dtype: torch.dtype, kind: Kind, tolerance: Tolerance) -> None:
    """Values of 1e4, whose squares overflow in float16."""
    student, target = (1e4 * maps(2, 3, 4, 4, seed=seed).sign() for seed in (0, 1))
    half = student.to(dtype).requires_grad_()
    loss = regression_loss(half, target.to(dtype), kind=kind, tolerance=tolerance)
    assert loss.dtype == torch.float32
    loss.backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype
    assert half.grad.isfinite().all()
    exactly = regression_loss(
        half.detach().double(), target.to(dtype).double(), kind=kind, tolerance=tolerance
    )
    torch.testing.assert_close(loss.detach().double(), exactly, rtol=1e-5, atol=1e-6)


def test_dtypes_under_autocast() -> None:
    student, target = (1e4 * maps(1, 2, 3, 3, seed=seed, dtype=torch.float32) for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = regression_loss(student, target)
    torch.testing.assert_close(found, regression_loss(student, target), rtol=1e-6, atol=0)


# --------------------------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", TOLERANCES, ids=lambda one: one.kind)
def test_degenerate_identity(kind: Kind, tolerance: Tolerance) -> None:
    """Equal maps: loss 0, and nothing moves."""
    student = maps(2, 3, 4, 4).requires_grad_()
    loss = regression_loss(student, student.detach().clone(), kind=kind, tolerance=tolerance)
    loss.backward()
    assert student.grad is not None
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert float(student.grad.abs().max()) < 1e-15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", TOLERANCES, ids=lambda one: one.kind)
@pytest.mark.parametrize("images", [0, 2])
def test_degenerate_nothing_valid(kind: Kind, tolerance: Tolerance, images: int) -> None:
    """No valid position, or no image: 0 on the graph, no NaN."""
    student, target = maps(images, 3, 4, 4).requires_grad_(), maps(images, 3, 2, 4, seed=1)
    valid = torch.zeros(images, 8, 8, dtype=torch.bool)
    loss = regression_loss(student, target, kind=kind, valid=valid, tolerance=tolerance)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()
    assert distillation_loss(student, target, valid=valid).item() == 0


def test_degenerate_one_image_without_valid() -> None:
    """An image without valid positions adds nothing to the mean of the others."""
    student, target = maps(2, 3, 4, 4), maps(2, 3, 4, 4, seed=1)
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1] = False
    for tolerance in TOLERANCES:
        found = regression_loss(student, target, valid=valid, tolerance=tolerance)
        alone = regression_loss(student[:1], target[:1], tolerance=tolerance)
        assert float(found) == exact(float(alone))


def test_degenerate_zero_reference() -> None:
    """Relative: the scale has a floor. Cosine: positions without a direction are left out."""
    student, zero = maps(1, 3, 2, 2).requires_grad_(), torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    found = regression_loss(student, zero, kind="relative")
    assert found.item() == exact(float(student.detach().square().mean()) / 1e-6)
    assert regression_loss(student, zero, kind="cosine").item() == 0
    target = zero.clone()
    target[0, :, 1, 0] = torch.tensor([0.0, 2.0, 0.0])
    alone = one_error(student.detach()[0, :, 1, 0], target[0, :, 1, 0], "cosine")
    assert regression_loss(student, target, kind="cosine").item() == exact(alone)


def test_degenerate_zero_student() -> None:
    """A student's vector without a direction is as far as one at right angles, with a finite gradient."""
    student = torch.zeros(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = regression_loss(student, maps(1, 3, 2, 2), kind="cosine")
    loss.backward()
    assert loss.item() == 1
    assert student.grad is not None
    assert student.grad.abs().max() <= 1


def test_degenerate_zero_neighbour() -> None:
    """A position of the reference without a direction is no match, and its own place is compared with a neighbour."""
    student = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    target = torch.tensor([[-1.0, 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    assert float(regression_loss(student, target, kind="cosine")) == 2
    assert float(regression_loss(student, target, kind="cosine", tolerance=LOCAL)) == 2


@pytest.mark.parametrize("tolerance", TOLERANCES, ids=lambda one: one.kind)
@pytest.mark.parametrize("whose", [0, 1], ids=["student", "reference"])
def test_degenerate_nan_is_found_out(tolerance: Tolerance, whose: int) -> None:
    """A search for the best match does not pass over what is not a number."""
    pair = [maps(1, 2, 4, 4), maps(1, 2, 4, 4, seed=1)]
    pair[whose][0, 0, 0, 0] = math.nan  # in a corner, which most shifts leave out
    for kind in KINDS:
        assert math.isnan(float(regression_loss(*pair, kind=kind, tolerance=tolerance)))


def test_degenerate_dead_channels_and_odd_sizes() -> None:
    """Constant channels only dilute the mean; maps that differ by one position are compared."""
    dead = torch.full((1, 2, 3, 3), 7.0, dtype=torch.float64)
    student, target = maps(1, 2, 3, 3), maps(1, 2, 3, 3, seed=1)
    found = regression_loss(torch.cat([student, dead], 1), torch.cat([target, dead], 1))
    assert float(found) == exact(float(regression_loss(student, target)) / 2)
    assert math.isfinite(float(regression_loss(maps(1, 2, 9, 12), maps(1, 2, 8, 13, seed=1))))


def test_degenerate_shift_beyond_the_map() -> None:
    """Shifts under which nothing overlaps are no candidates."""
    for tolerance in (Tolerance(kind="local", size=9), Tolerance(kind="global", size=9)):
        assert float(regression_loss(MOVED, ROW, tolerance=tolerance)) == 0


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": maps(1, 3, 2, 2)},
            "student (1, 2, 2, 2) and target (1, 3, 2, 2) differ in images or channels",
        ),
        ({"target": maps(2, 2, 2)}, "target must be (B, C, h, w), floating point, not empty, got (2, 2, 2)"),
        ({"kind": "l2"}, "kind must be one of mse, l1, smooth-l1, cosine, relative, got 'l2'"),
        ({"scale": 2.0}, "scale is for kind \"relative\" only, got kind 'mse'"),
        ({"robust": 0.0}, "robust must be positive, got 0.0"),
        ({"valid": torch.ones(1, 4, 4)}, "valid must be (B, H, W) bool, got (1, 4, 4) of torch.float32"),
        ({"valid": masks(3, 4, 4)}, "valid must be (1, H, W), got (3, 4, 4)"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        regression_loss(**{"student": STUDENT, "target": TARGET, **change})


def test_errors_others() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        distillation_loss(STUDENT, TARGET, temperature=0)
    with pytest.raises(ValueError, match="radius must not be negative, got -1"):
        best_shifts(STUDENT, TARGET, -1)


# ---------------------------------------------------------------------------------------------------- invariance


@given(
    st.integers(-2, 2),
    st.integers(-2, 2),
    st.sampled_from(["mse", "l1", "smooth-l1", "cosine", "relative"]),
    st.integers(0, 3),
)
def test_shift_is_found(dy: int, dx: int, kind: Any, seed: int) -> None:
    """The reference, cut out at another place, is found again, and then nothing differs."""
    scene = maps(1, 3, 12, 13, seed=seed)
    target, student = scene[..., 2:10, 2:11], scene[..., 2 + dy : 10 + dy, 2 + dx : 11 + dx]
    assert best_shifts(student, target, 2, kind=kind).tolist() == [[dy, dx]]
    loss = regression_loss(student, target, kind=kind, tolerance=Tolerance(kind="global", size=2))
    assert loss.item() == pytest.approx(0, abs=1e-12)


@given(st.permutations(range(4)), st.sampled_from(TOLERANCES), st.sampled_from(KINDS))
def test_order_of_channels_and_images(order: list[int], tolerance: Tolerance, kind: Any) -> None:
    student, target, valid = maps(4, 4, 3, 3), maps(4, 4, 3, 3, seed=1), masks(4, 3, 3)
    found = regression_loss(
        student[order][:, order],
        target[order][:, order],
        kind=kind,
        valid=valid[order],
        tolerance=tolerance,
    )
    expected = regression_loss(student, target, kind=kind, valid=valid, tolerance=tolerance)
    assert float(found) == exact(float(expected))


# --------------------------------------------------------------------------------------------------------- ranks


def ranked(kind: Kind, tolerance: Tolerance, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    start = sum(sizes[: dist.rank()])
    rows = slice(start, start + sizes[dist.rank()])
    student, target, valid = maps(3, 2, 4, 4), maps(3, 2, 4, 4, seed=1), masks(3, 4, 4)
    student = student[rows].requires_grad_()
    loss = regression_loss(student, target[rows], kind=kind, valid=valid[rows], tolerance=tolerance)
    loss = loss + distillation_loss(student, target[rows], valid=valid[rows])
    loss.backward()
    assert student.grad is not None
    return loss.detach(), student.grad, mean_square(target[rows], valid=valid[rows])[0]


@pytest.mark.parametrize(
    ("kind", "tolerance", "sizes"),
    [
        ("mse", Tolerance(), [1, 2]),
        ("relative", LOCAL, [2, 1]),
        ("cosine", GLOBAL, [0, 3]),
        ("smooth-l1", POOL, [1, 2]),
    ],
)
def test_ranks(pool, kind: Kind, tolerance: Tolerance, sizes: list[int]) -> None:
    """Two ranks with unequal numbers of images and valid positions are one."""
    loss, gradient, scale = ranked(kind, tolerance, [3])
    results = pool.run(ranked, kind, tolerance, sizes)
    torch.testing.assert_close((results[0][0] + results[1][0]) / 2, loss, rtol=1e-12, atol=0)
    found = torch.cat([results[0][1], results[1][1]]) / 2
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-15)
    for result in results:
        torch.testing.assert_close(result[2], scale, rtol=1e-12, atol=0)
