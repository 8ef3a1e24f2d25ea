"""Losses that bring the maps of one network to those of another, which sees the same scene through another sensor.

Maps are (B, C, h, w). The reference's never carry gradient, and where sizes differ they are resized to the student's
(bilinear, edges onto edges). The error of a position is a mean over channels; means over positions run over the valid
positions of all ranks (:func:`leanlabel.dist.global_mean`). Everything is computed in float32 or wider.

Two images of a scene are seldom aligned to the pixel. What a :class:`Tolerance` says decides how exactly positions must
correspond.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from leanlabel import dist
from leanlabel.config import Settings

Kind = Literal["mse", "l1", "smooth-l1", "cosine", "relative"]

FLOOR = 1e-6
"""Least scale that errors are divided by, and least length of a vector that has a direction."""
Shift = tuple[int, int]
Part = tuple[slice, slice]


class Tolerance(Settings):
    """How exactly positions of two maps must correspond."""

    kind: Literal["none", "pool", "local", "global"] = "none"
    """none: position against position; pool: means of size x size positions; local: each position against the most
    similar one of the reference, at most size positions away; global: the reference moved by one shift per image, of at
    most size positions, that makes the two most similar, compared where they overlap. local may find a match
    everywhere, where there is none."""
    size: int = Field(default=1, ge=1)
    """Side of a cell for pool, largest shift down and across for local and global, in positions of the student's map.
    Keep shifts well below the sides of the map."""


def regression_loss(
    student: Tensor,
    target: Tensor,
    *,
    kind: Kind = "mse",
    scale: Tensor | float | None = None,
    valid: Tensor | None = None,
    tolerance: Tolerance | None = None,
    robust: float | None = None,
) -> Tensor:
    """Average the difference of two maps over all valid positions.

    With d = student - target, e of a position is the mean over channels of d^2 ("mse"), |d| ("l1"), d^2 / 2 where
    |d| < 1 else |d| - 1/2 ("smooth-l1"), d^2 / max(scale, 1e-6) ("relative"), or 1 - cos of the two vectors ("cosine",
    positions where the target is shorter than 1e-6 are left out). With `robust` (tau) e counts as tau log(1 + e / tau),
    whose gradient is that of e times 1 / (1 + e / tau).

    Args:
        student: (B, C, h, w), floating point, carries gradient.
        target: (B, C, h', w'), the reference; no gradient.
        kind: how two vectors are compared.
        scale: of "relative" only: mean square of the reference's values; a constant makes losses of different batches
            comparable. None: that of this batch over all ranks (:func:`mean_square`).
        valid: (B, H, W) bool, pixels or positions at any resolution where both images show the scene; a position counts
            where all of its cell is valid in both maps. None: everywhere.
        tolerance: None compares position with position.
        robust: tau > 0, in the unit of e; None counts all errors as they are.

    Returns:
        Scalar, 0 attached to the graph where no position is valid. On several ranks this rank's share: the mean over
        ranks is the loss of all positions.

    Raises:
        ValueError: shapes, types or settings do not fit.

    Example:
        >>> float(regression_loss(torch.tensor([[[[1.0, 3.0]]]]), torch.zeros(1, 1, 1, 2)))
        5.0
        >>> left, right = torch.tensor([[[[1.0, 0.0, 2.0]]]]), torch.tensor([[[[0.0, 1.0, 0.0]]]])
        >>> float(regression_loss(left, right, tolerance=Tolerance(kind="global")))
        0.0
    """
    _check(student, target, kind, scale, robust)
    student, target, counted = _matched(student, target, valid)
    divisor = None
    if kind == "relative":
        divisor = mean_square(target, valid=counted)[0] if scale is None else torch.as_tensor(scale)
        divisor = divisor.detach().to(target).clamp(min=FLOOR)
    student, target, counted = _tolerated(student, target, counted, kind, tolerance or Tolerance())
    errors = position_errors(student, target, kind)
    if divisor is not None:
        errors = errors / divisor
    if robust is not None:
        errors = robust * torch.log1p(errors / robust)
    return dist.global_mean(errors.where(counted, 0).sum(), counted.sum())


def position_errors(student: Tensor, target: Tensor, kind: Kind = "mse") -> Tensor:
    """Compare two maps of one size at every position; "relative" is not divided here.

    Args:
        student: (B, C, h, w), carries gradient.
        target: (B, C, h, w), no gradient.
        kind: how two vectors are compared, see :func:`regression_loss`.

    Returns:
        (B, h, w), >= 0. "cosine" of a vector without a direction is 1.
    """
    target = target.detach()
    if kind == "cosine":
        products = (_directed(student) * _directed(target)).sum(1)
        return 1 - products
    if kind == "l1":
        return F.l1_loss(student, target, reduction="none").mean(1)
    if kind == "smooth-l1":
        return F.smooth_l1_loss(student, target, reduction="none").mean(1)
    return F.mse_loss(student, target, reduction="none").mean(1)


@torch.no_grad()
def mean_square(target: Tensor, *, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Measure how large the values of a map are.

    Args:
        target: (B, C, h, w); no gradient.
        valid: (B, H, W) bool at any resolution; None: everywhere.

    Returns:
        Mean of the squares over valid positions and channels of all ranks, 0 without any, and the number (int64) of
        these positions; the same on every rank.

    Example:
        >>> [float(one) for one in mean_square(torch.tensor([[[[1.0, 3.0]]]]))]
        [5.0, 2.0]
    """
    wide = target.to(torch.promote_types(target.dtype, torch.float32))
    counted = _counted(wide, valid, [wide.shape[-2:]])
    total = wide.square().mean(1).where(counted, 0).sum()
    total, count = dist.sums(total, counted.sum())
    return total / count.clamp(min=1), count


@torch.no_grad()
def valid_cells(valid: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Reduce a mask to the positions of a map: valid where the whole cell is.

    Position i of h stands for rows floor(i H / h) to ceil((i + 1) H / h) - 1, columns likewise.

    Args:
        valid: (B, H, W) bool.
        size: height h and width w of the map, smaller or larger than the mask.

    Returns:
        (B, h, w) bool.

    Example:
        >>> valid_cells(torch.tensor([[[True, True, True, False]]]), (1, 2)).tolist()
        [[[True, False]]]
    """
    if valid.dtype != torch.bool or valid.ndim != 3:
        raise ValueError(f"valid must be (B, H, W) bool, got {tuple(valid.shape)} of {valid.dtype}")
    if valid.shape[1:] == tuple(size):
        return valid
    holes = F.adaptive_max_pool2d((~valid)[:, None].float(), (int(size[0]), int(size[1])))
    return holes[:, 0] == 0


@torch.no_grad()
def best_shifts(
    student: Tensor, target: Tensor, radius: int, *, kind: Kind = "mse", valid: Tensor | None = None
) -> Tensor:
    """Find for every image the shift that makes two maps most similar on their overlap.

    Args:
        student: (B, C, h, w); no gradient.
        target: (B, C, h', w'); no gradient.
        radius: largest shift down and across, in positions of the student's map, >= 0.
        kind: how two vectors are compared.
        valid: (B, H, W) bool at any resolution; None: everywhere.

    Returns:
        (B, 2) int64, (dy, dx): position (y, x) of the student belongs to (y + dy, x + dx) of the reference. Of shifts
        that are equally good the shortest; 0 where no position is valid.

    Example:
        >>> best_shifts(torch.tensor([[[[1.0, 0.0, 2.0]]]]), torch.tensor([[[[0.0, 1.0, 0.0]]]]), 1).tolist()
        [[0, 1]]
    """
    _check(student, target, kind, None, None)
    student, target, counted = _matched(student, target, valid)
    shifts = _shifts(radius)
    return torch.tensor(shifts, device=student.device)[_global_choice(student, target, counted, kind, radius)]


def distillation_loss(
    student: Tensor, reference: Tensor, *, temperature: float = 1.0, valid: Tensor | None = None
) -> Tensor:
    """Average how far the student's class probabilities are from the reference's.

    L = T^2 mean_i sum_c p_ic (log p_ic - log q_ic),  p = softmax(reference / T), q = softmax(student / T)
    [Hinton, Vinyals and Dean 2015]

    Args:
        student: (B, K, h, w) scores, carry gradient.
        reference: (B, K, h', w') scores, no gradient; resized to the student's size.
        temperature: T > 0.
        valid: as in :func:`regression_loss`.

    Returns:
        Scalar >= 0, 0 attached to the graph where no position is valid; on several ranks this rank's share.

    Raises:
        ValueError: shapes, types or temperature do not fit.

    Example:
        >>> float(distillation_loss(torch.zeros(1, 2, 1, 1), torch.tensor([9.0, 9.0]).view(1, 2, 1, 1)))
        0.0
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    _check(student, reference, "mse", None, None)
    student, reference, counted = _matched(student, reference, valid)
    wanted, found = (reference / temperature).log_softmax(1), (student / temperature).log_softmax(1)
    errors = F.kl_div(found, wanted, reduction="none", log_target=True).sum(1) * temperature**2
    return dist.global_mean(errors.where(counted, 0).sum(), counted.sum())


def _check(
    student: Tensor, target: Tensor, kind: str, scale: Tensor | float | None, robust: float | None
) -> None:
    for name, one in (("student", student), ("target", target)):
        if one.ndim != 4 or not one.is_floating_point() or 0 in one.shape[1:]:
            raise ValueError(
                f"{name} must be (B, C, h, w), floating point, not empty, got {tuple(one.shape)} of {one.dtype}"
            )
    if student.shape[:2] != target.shape[:2]:
        raise ValueError(
            f"student {tuple(student.shape)} and target {tuple(target.shape)} differ in images or channels"
        )
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if scale is not None and kind != "relative":
        raise ValueError(f'scale is for kind "relative" only, got kind {kind!r}')
    if robust is not None and not robust > 0:
        raise ValueError(f"robust must be positive, got {robust}")


def _matched(student: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both maps wide and of the student's size, the target without gradient, and valid positions (B, h, w)."""
    dtype = torch.promote_types(torch.promote_types(student.dtype, target.dtype), torch.float32)
    student, target = student.to(dtype), target.detach().to(dtype)
    counted = _counted(student, valid, [student.shape[-2:], target.shape[-2:]])
    if target.shape[-2:] != student.shape[-2:]:
        target = F.interpolate(target, size=student.shape[-2:], mode="bilinear", align_corners=False)
    return student, target, counted


def _counted(x: Tensor, valid: Tensor | None, sizes: list[torch.Size]) -> Tensor:
    """Positions (B, h, w) of x that are valid in maps of all the sizes."""
    height, width = x.shape[-2:]
    found = torch.ones(len(x), height, width, dtype=torch.bool, device=x.device)
    if valid is None:
        return found
    if valid.ndim != 3 or len(valid) != len(x):
        raise ValueError(f"valid must be ({len(x)}, H, W), got {tuple(valid.shape)}")
    for size in sizes:
        cells = valid_cells(valid, size)
        if size != x.shape[-2:]:  # every position that a resized one reads must be valid
            shares = F.interpolate(cells[:, None].float(), size=(height, width), mode="bilinear")
            cells = shares[:, 0] > 1 - FLOOR
        found = found & cells
    return found


def _tolerated(
    student: Tensor, target: Tensor, counted: Tensor, kind: Kind, tolerance: Tolerance
) -> tuple[Tensor, Tensor, Tensor]:
    """What is compared, position by position, under a tolerance; all of one size."""
    size = tolerance.size
    if tolerance.kind == "pool":
        student, target = (F.avg_pool2d(x, size, ceil_mode=True) for x in (student, target))
        holes = F.max_pool2d((~counted)[:, None].float(), size, ceil_mode=True)
        counted = holes[:, 0] == 0
    elif tolerance.kind in ("local", "global"):
        with torch.no_grad():
            search = _local_choice if tolerance.kind == "local" else _global_choice
            choice = search(student.detach(), target, counted, kind, size)
            target, counted = _moved(target, counted, choice, size)
    return student, target, counted & _comparable(target, kind)


def _directed(x: Tensor) -> Tensor:
    """Vectors over channels of length one; shorter than FLOOR they stay as they are, so that gradients stay finite."""
    squares = x.square().sum(1, keepdim=True)
    short = squares <= FLOOR**2
    return x / squares.where(~short, 1).sqrt()


def _comparable(target: Tensor, kind: Kind) -> Tensor:
    """Positions (B, h, w) where the reference has what is compared; NaN counts, so that it is found out."""
    if kind != "cosine":
        return torch.ones_like(target[:, 0], dtype=torch.bool)
    return ~(target.square().sum(1) <= FLOOR**2)


def _shifts(radius: int) -> list[Shift]:
    """Shifts (dy, dx) of at most radius down and across, the shortest first."""
    if radius < 0:
        raise ValueError(f"radius must not be negative, got {radius}")
    line = range(-radius, radius + 1)
    return sorted(((dy, dx) for dy in line for dx in line), key=lambda s: (s[0] ** 2 + s[1] ** 2, s))


def _overlaps(size: torch.Size, radius: int) -> Iterator[tuple[int, Part, Part]]:
    """Number of every shift under which maps of a size overlap, and the overlap in the student and the reference."""
    for number, shift in enumerate(_shifts(radius)):
        if all(abs(step) < side for step, side in zip(shift, size, strict=True)):
            here, there = (
                [slice(max(0, -sign * step), side - max(0, sign * step)) for step, side in zip(shift, size)]
                for sign in (1, -1)
            )
            yield number, (here[0], here[1]), (there[0], there[1])


def _compared(
    student: Tensor, target: Tensor, counted: Tensor, kind: Kind, radius: int
) -> Iterator[tuple[int, Part, Tensor, Tensor]]:
    """For every shift its number, the overlap in the student, errors there, and which of them count."""
    usable = counted & _comparable(target, kind)
    for number, here, there in _overlaps(student.shape[-2:], radius):
        errors = position_errors(student[(..., *here)], target[(..., *there)], kind)
        yield number, here, errors, counted[(..., *here)] & usable[(..., *there)]


def _local_choice(student: Tensor, target: Tensor, counted: Tensor, kind: Kind, radius: int) -> Tensor:
    """Number (B, h, w) of the shift with the smallest error at each position."""
    best = torch.full_like(student[:, 0], torch.inf)
    choice = torch.zeros_like(best, dtype=torch.int64)
    for number, here, errors, counts in _compared(student, target, counted, kind, radius):
        at = (..., *here)
        # No shift comes first and is taken whatever its error, so that NaN there is not passed over.
        better = counts if number == 0 else counts & (errors < best[at])
        best[at] = torch.where(better, errors, best[at])
        choice[at] = choice[at].masked_fill(better, number)
    return choice


def _global_choice(student: Tensor, target: Tensor, counted: Tensor, kind: Kind, radius: int) -> Tensor:
    """Number (B,) of the shift with the smallest mean error over the overlap."""
    best = student.new_full((len(student),), torch.inf)
    choice = torch.zeros_like(best, dtype=torch.int64)
    for number, _, errors, counts in _compared(student, target, counted, kind, radius):
        count = counts.sum((1, 2))
        mean = errors.where(counts, 0).sum((1, 2)) / count.clamp(min=1)
        better = (count > 0) & ((mean < best) if number else True)
        best, choice = torch.where(better, mean, best), choice.masked_fill(better, number)
    return choice


def _moved(target: Tensor, counted: Tensor, choice: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """The reference read at the chosen shifts, (B,) or (B, h, w), and where that is inside and valid on both sides."""
    count, channels, height, width = target.shape
    steps = torch.tensor(_shifts(radius), device=target.device)[choice]
    steps = steps[:, None, None] if choice.ndim == 1 else steps
    rows = torch.arange(height, device=target.device)[:, None] + steps[..., 0]
    columns = torch.arange(width, device=target.device) + steps[..., 1]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    places = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).view(count, height * width)
    moved = target.flatten(2).gather(2, places[:, None].expand(-1, channels, -1)).view_as(target)
    kept = counted.flatten(1).gather(1, places).view_as(counted)
    return moved, counted & kept & inside
