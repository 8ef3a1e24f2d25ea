"""How far two networks agree on pairs of images of one scene: what can be known of an adapted network without labels.

The reference reads the image of the domain that it was trained on, the student the image of the other. Agreement is no
accuracy: it cannot exceed what misalignment of the pairs leaves, and a student that repeats the reference's mistakes
agrees. Held against the same numbers before training (the reference itself as the student), it tells whether training
moved the network in the right direction, and the regions tell where it did not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel import dist
from leanlabel.errors import InputError, RunError
from leanlabel.evaluation.segmentation import Confusion
from leanlabel.losses.feature_regression import FLOOR, position_errors, valid_cells
from leanlabel.models.segmenters import DenseOutput

Predict = Callable[[Tensor], DenseOutput]
PairImages = tuple[Tensor, Tensor, Tensor | None]
"""Images (B, C, H, W) of the reference's domain, their partners (B, C', H', W'), and pixels (B, h, w) bool where both
show the scene; None: everywhere."""
IGNORED = -100


@torch.no_grad()
def pair_agreement(
    predict_reference: Predict,
    predict_student: Predict,
    pairs: Iterable[PairImages],
    classes: int,
    *,
    regions: int = 3,
) -> dict[str, Any]:
    """Compare what two networks say about pairs of images, position by position, in one pass.

    Compared are classes of the highest score at the resolution of the student's logits, and features at that of the
    student's features; the reference's maps are resized (bilinear) where theirs differs. A position counts where all of
    its cell is valid. Nothing is kept of an image once it is counted.

    Args:
        predict_reference: images -> logits (B, K, h, w) and features (B, D, h', w'), in evaluation mode.
        predict_student: likewise, of the partners.
        pairs: batches of this rank, normalised as the networks read them.
        classes: K >= 1.
        regions: parts of height and of width by which agreement and error are told apart, >= 1.

    Returns:
        Plain data, the same on all ranks, over all their pairs; None where nothing was counted:
        pairs, positions: how many;
        agreement: share of positions with the same class, in [0, 1]; mean_iou: mean over classes of intersection over
        union, the reference's classes taken for labels;
        classes: by class, agreement (share of the reference's positions of it), iou and positions;
        feature_error: mean squared difference of features; relative_feature_error: that divided by the mean square of
        the reference's; both None where the two have features of different widths;
        regions: agreement and feature_error as rows of columns, from the top left;
        entropy: of reference and student, mean entropy of the class probabilities / log K, in [0, 1].

    Raises:
        InputError: no pair.
        RunError: a network gives values that are not finite.
        ValueError: classes or regions below 1, or networks with other than K classes.

    Example:
        >>> images = torch.tensor([[[[2.0, -1.0]], [[0.0, 3.0]]]])
        >>> def same(x):
        ...     return DenseOutput(x, x)
        >>> found = pair_agreement(same, lambda x: same(-x), [(images, images, None)], 2)
        >>> found["agreement"], found["feature_error"]
        (0.0, 14.0)
    """
    if classes < 1 or regions < 1:
        raise ValueError(f"classes and regions must be at least 1, got {classes} and {regions}")
    confusion, tally = Confusion(classes), _Tally(regions)
    for first, second, valid in pairs:
        reference, student = predict_reference(first), predict_student(second)
        for name, output in (("reference", reference), ("student", student)):
            if output.logits.shape[:2] != (len(second), classes):
                raise ValueError(
                    f"{name} must give logits ({len(second)}, {classes}, h, w), got {tuple(output.logits.shape)}"
                )
        known, said = (_wide(one.logits) for one in (reference, student))
        theirs, own = _wide(reference.features), _wide(student.features)
        tally.count_faults((known, theirs), (said, own))
        known, counted = _same_size(known, said, valid)
        labels, guesses = known.argmax(1), said.argmax(1)
        confusion.add(labels.masked_fill(~counted, IGNORED).cpu(), guesses.cpu(), IGNORED)
        tally.add("same", (labels == guesses).float(), counted)
        tally.add("reference", _entropy(known), counted)
        tally.add("student", _entropy(said), counted)
        tally.count_pairs(len(second))
        if theirs.shape[1] == own.shape[1]:
            theirs, counted = _same_size(theirs, own, valid)
            tally.add("error", position_errors(own, theirs), counted)
            tally.add("square", theirs.square().mean(1), counted)
    tally.gather()
    if not tally.pairs:
        raise InputError("No pair of images to compare.", "Check data.pairs: which images belong together.")
    for name, count in zip(("reference", "trained network"), tally.faults.tolist(), strict=True):
        if count:
            raise RunError(
                f"The {name} gives scores or features that are not finite, on {count} images.",
                "Its training diverged: lower optim.lr, or set engine.precision=32-true.",
            )
    scores = confusion.scores()
    error, square = tally.mean("error"), tally.mean("square")
    relative = None if error is None or square is None else error / max(square, FLOOR)
    return {
        "pairs": tally.pairs,
        "positions": int(scores.support.sum()),
        "agreement": tally.mean("same"),
        "mean_iou": _plain(scores.miou),
        "classes": {
            "agreement": [_plain(one) for one in scores.recall.tolist()],
            "iou": [_plain(one) for one in scores.iou.tolist()],
            "positions": scores.support.tolist(),
        },
        "feature_error": error,
        "relative_feature_error": relative,
        "regions": {"agreement": tally.by_region("same"), "feature_error": tally.by_region("error")},
        "entropy": {name: tally.mean(name) for name in ("reference", "student")},
    }


class _Tally:
    """Sums of values and of positions, by name and region of the image; on the CPU in float64."""

    NAMES = ("same", "reference", "student", "error", "square")

    def __init__(self, regions: int) -> None:
        self.regions = regions
        self.sums = torch.zeros(2, len(self.NAMES), regions * regions, dtype=torch.float64)
        self.images = torch.zeros((), dtype=torch.int64)
        self.faults = torch.zeros(2, dtype=torch.int64)

    @property
    def pairs(self) -> int:
        return int(self.images)

    def count_pairs(self, count: int) -> None:
        self.images += count

    def count_faults(self, *networks: tuple[Tensor, ...]) -> None:
        """Count images of the reference and of the student whose maps hold something that is no number."""
        for number, maps in enumerate(networks):
            sound = torch.stack([one.isfinite().flatten(1).all(1) for one in maps]).all(0)
            self.faults[number] += int((~sound).sum())

    def add(self, name: str, values: Tensor, counted: Tensor) -> None:
        """Add values (B, h, w) at the positions (B, h, w) that count."""
        rows, columns = (torch.arange(side) * self.regions // side for side in values.shape[-2:])
        place = (rows[:, None] * self.regions + columns).expand(values.shape).reshape(-1)
        kept = counted.cpu().reshape(-1)
        number = self.NAMES.index(name)
        for part, weights in ((0, values.cpu().double().reshape(-1)[kept]), (1, None)):
            found = torch.bincount(place[kept], weights, minlength=self.regions**2)
            self.sums[part, number] += found

    def gather(self) -> None:
        """Sum over ranks."""
        self.sums, self.images = dist.all_sum(self.sums), dist.all_sum(self.images)
        self.faults = dist.all_sum(self.faults)  # so that all ranks stop, and none waits

    def mean(self, name: str) -> float | None:
        total, count = self.sums[:, self.NAMES.index(name)].sum(1).tolist()
        return total / count if count else None

    def by_region(self, name: str) -> list[list[float | None]]:
        total, count = self.sums[:, self.NAMES.index(name)]
        found = [_plain(one) for one in (total / count).tolist()]
        return [found[row : row + self.regions] for row in range(0, len(found), self.regions)]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _same_size(reference: Tensor, student: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The reference's map at the student's size, and the positions (B, h, w) that count."""
    size = student.shape[-2:]
    counted = torch.ones_like(student[:, 0], dtype=torch.bool)
    if valid is not None:
        counted = valid_cells(valid.to(student.device), size)
    if reference.shape[-2:] != size:
        reference = F.interpolate(reference, size=size, mode="bilinear", align_corners=False)
    return reference, counted


def _entropy(logits: Tensor) -> Tensor:
    """(B, h, w) entropy of the softmax over channels, in shares of log K; 0 for one class."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1) / math.log(max(2, logits.shape[1]))


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
