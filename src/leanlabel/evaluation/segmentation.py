"""Scores of a segmentation: one table of counts over all pixels, and the intersections over unions that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.data.class_map import IGNORE
from leanlabel.data.published_classes import SIXTEEN_OF_NINETEEN
from leanlabel.evaluation.confusion import confusion_matrix

Empty = Literal["exclude", "zero"]


@dataclass(frozen=True, eq=False)
class SegmentationScores:
    """What one table of counts says.

    Attributes:
        miou: mean IoU over classes, in [0, 1]; NaN where no class counts.
        iou: (K,) float64, TP / (TP + FP + FN); NaN where a class is neither labelled nor predicted ("exclude"), or 0
            there ("zero").
        recall: (K,) float64, TP / (TP + FN); NaN for a class without labelled pixels.
        precision: (K,) float64, TP / (TP + FP); NaN for a class that is never predicted.
        pixel_accuracy: share of counted pixels that are right; NaN without pixels.
        mean_accuracy: mean recall over the classes with labelled pixels.
        frequency_weighted: IoU weighted by each class's share of labelled pixels.
        support: (K,) int64, labelled pixels of each class.
        predicted: (K,) int64, pixels predicted as each class.
        subsets: mean IoU over some classes, by name of the subset.
    """

    miou: float
    iou: Tensor
    recall: Tensor
    precision: Tensor
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted: float
    support: Tensor
    predicted: Tensor
    subsets: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON; None stands for NaN."""
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                found[name] = [_plain(one) for one in value.tolist()]
            elif isinstance(value, Mapping):
                found[name] = {key: _plain(one) for key, one in value.items()}
            else:
                found[name] = _plain(value)
        return found


class Confusion(nn.Module):
    """Counts of labelled against predicted classes over any number of images; rows are labels.

    All pixels of all images count alike: scores are of the sum, never means over images. Each rank adds its own images;
    `total`, `scores` and `restricted` are of all ranks together, and all ranks call them. For the scores of one image
    on one rank, use :func:`segmentation_scores` on a table.

    Args:
        classes: K >= 1.

    Raises:
        ValueError: classes < 1.

    Example:
        >>> counts = Confusion(2)
        >>> counts.add(torch.tensor([[0, 0], [1, 255]]), torch.tensor([[0, 1], [1, 1]]))
        >>> counts.table.tolist(), counts.scores().iou.tolist()
        ([[1, 1], [0, 1]], [0.5, 0.5])
    """

    table: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes must be at least 1, got {classes}")
        self.classes = classes
        self.register_buffer("table", torch.zeros(classes, classes, dtype=torch.int64))

    @torch.no_grad()
    def add(self, labels: Tensor, predictions: Tensor, ignore: int = IGNORE) -> None:
        """Count the pixels of one or more images.

        Args:
            labels: any shape, integers in [0, K) or `ignore`; uint8 is fastest. No gradient.
            predictions: same shape, integers in [0, K); anything where the label is `ignore`. No gradient.
            ignore: label of the pixels to leave out, 255 on disk, -100 on the device.

        Raises:
            ValueError: shapes differ, types are not integers, or a label or prediction is outside [0, K).
        """
        for name, ids in (("labels", labels), ("predictions", predictions)):
            if ids.is_floating_point() or ids.is_complex():
                raise ValueError(
                    f"{name} must be integers, got {ids.dtype}; take the argmax over classes first"
                )
        counts = confusion_matrix(
            labels,
            predictions.to(labels.device),
            self.classes,
            ignore=ignore,
            names=("labels", "predictions"),
        )
        self.table += counts.to(self.table.device)

    def reset(self) -> None:
        """Forget all pixels."""
        self.table.zero_()

    def total(self) -> Tensor:
        """(K, K) int64, the counts of all ranks together."""
        return dist.all_sum(self.table.clone())

    def scores(
        self, empty: Empty = "exclude", subsets: Mapping[str, Sequence[int]] | None = None
    ) -> SegmentationScores:
        """Scores over all pixels that any rank added; see :func:`segmentation_scores`."""
        return segmentation_scores(self.total(), empty=empty, subsets=subsets)

    def restricted(
        self, ids: Sequence[int], *, outside: Literal["ignore", "errors"] = "ignore", empty: Empty = "exclude"
    ) -> SegmentationScores:
        """Scores over some of the classes, over all ranks; see :func:`restricted_scores`."""
        return restricted_scores(self.total(), ids, outside=outside, empty=empty)


def segmentation_scores(
    table: Tensor, *, empty: Empty = "exclude", subsets: Mapping[str, Sequence[int]] | None = None
) -> SegmentationScores:
    """Compute all scores of a table of counts.

    IoU_k = TP_k / (TP_k + FP_k + FN_k); TP_k is on the diagonal, FN_k the rest of row k, FP_k the rest of column k.

    Args:
        table: (K, K) int64, rows are labels, columns are predictions.
        empty: how a class with an empty union enters means of IoU: not at all ("exclude"), or as 0 ("zero", as in
            published scripts that add a small number to the denominator). Where no union is empty both agree.
        subsets: name -> classes over which IoU is averaged once more. Nothing else changes: predictions of other
            classes stay errors, as for mIoU* over 13 of the 16 classes of SYNTHIA.

    Returns:
        Scores, in float64 on the CPU.

    Raises:
        ValueError: the table is not square, `empty` has another value, or a subset has no class or one out of range.

    Example:
        >>> scores = segmentation_scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), subsets={"first": (0,)})
        >>> scores.iou.tolist(), round(scores.miou, 3), dict(scores.subsets)
        ([0.75, 0.8, nan], 0.775, {'first': 0.75})
    """
    table = _checked(table)
    return _scores(table.diagonal(), table.sum(1), table.sum(0), empty, subsets or {})


def restricted_scores(
    table: Tensor,
    ids: Sequence[int],
    *,
    outside: Literal["ignore", "errors"] = "ignore",
    empty: Empty = "exclude",
) -> SegmentationScores:
    """Compute scores over some of the K classes, for a network that knows more classes than are evaluated.

    A pixel that is labelled with a kept class and predicted as another is an error of its class (a false negative),
    and a false positive of no kept class.

    Args:
        table: (K, K) int64, rows are labels.
        ids: kept classes; the scores are in this order.
        outside: what pixels count whose label is not kept: nothing, as if they had been ignored from the start
            ("ignore"), or as false positives of the kept class that they are predicted as ("errors").
        empty: as in :func:`segmentation_scores`.

    Returns:
        Scores with len(ids) classes. pixel_accuracy is over the pixels with a kept label.

    Raises:
        ValueError: ids are empty, repeated or out of range.

    Example:
        >>> table = torch.tensor([[3, 0, 1], [0, 4, 0], [2, 0, 0]])
        >>> restricted_scores(table, (0, 1)).iou.tolist()
        [0.75, 1.0]
        >>> restricted_scores(table, (0, 1), outside="errors").iou.tolist()
        [0.5, 1.0]
    """
    table = _checked(table)
    kept = _ids("ids", ids, len(table))
    if len(set(ids)) != len(ids):
        raise ValueError(f"ids {tuple(ids)} name a class twice")
    if outside not in ("ignore", "errors"):
        raise ValueError(f'outside must be "ignore" or "errors", got {outside!r}')
    rows = table[kept] if outside == "ignore" else table
    return _scores(table.diagonal()[kept], table.sum(1)[kept], rows.sum(0)[kept], empty, {})


def miou16_from_19(
    table: Tensor, *, outside: Literal["ignore", "errors"] = "ignore", empty: Empty = "exclude"
) -> float:
    """Mean IoU over the 16 classes that SYNTHIA has, of a network with the 19 outputs of Cityscapes.

    The mean over 19 under-reports such a network: three classes are never trained and score 0. With
    ``outside="errors"`` and those three at exactly 0 the result is mIoU19 * 19 / 16. With the default, pixels labelled
    terrain, truck or train are left out, as they are where Cityscapes is read with 16 classes; predictions of these
    three stay errors either way.

    Args:
        table: (19, 19) int64, rows are labels.
        outside, empty: as in :func:`restricted_scores`.

    Returns:
        In [0, 1].

    Raises:
        ValueError: another size of table.
    """
    if table.shape != (19, 19):
        raise ValueError(f"the table must be (19, 19), got {tuple(table.shape)}")
    return restricted_scores(table, SIXTEEN_OF_NINETEEN, outside=outside, empty=empty).miou


def mean_over_classes(values: Tensor, present: Tensor, empty: Empty) -> float:
    """Mean of one value per class; a class that is not present is left out, or counts as 0.

    Args:
        values: (K,) floating point; what stands where `present` is false is not read.
        present: (K,) bool.
        empty: "exclude" or "zero".

    Returns:
        The mean; NaN without classes to average over.

    Raises:
        ValueError: `empty` has another value.

    Example:
        >>> found = torch.tensor([0.5, math.nan]), torch.tensor([True, False])
        >>> mean_over_classes(*found, "exclude"), mean_over_classes(*found, "zero")
        (0.5, 0.25)
    """
    if empty not in ("exclude", "zero"):
        raise ValueError(f'empty must be "exclude" or "zero", got {empty!r}')
    chosen = values[present].double().tolist()
    count = len(chosen) if empty == "exclude" else len(values)
    return math.fsum(chosen) / count if count else math.nan


def _scores(
    hits: Tensor, support: Tensor, predicted: Tensor, empty: Empty, subsets: Mapping[str, Sequence[int]]
) -> SegmentationScores:
    union, right = support + predicted - hits, hits.double()
    iou, recall, precision = right / union, right / support, right / predicted
    there, labelled = union > 0, support > 0
    miou = mean_over_classes(iou, there, empty)
    further = {}
    for name, ids in subsets.items():
        own = _ids(f"subset {name}", ids, len(hits))
        further[name] = mean_over_classes(iou[own], there[own], empty)
    pixels = int(support.sum())
    weighted = math.fsum((iou[labelled] * support[labelled]).tolist())
    return SegmentationScores(
        miou=miou,
        iou=iou if empty == "exclude" else iou.where(there, torch.zeros_like(iou)),
        recall=recall,
        precision=precision,
        pixel_accuracy=int(hits.sum()) / pixels if pixels else math.nan,
        mean_accuracy=mean_over_classes(recall, labelled, "exclude"),
        frequency_weighted=weighted / pixels if pixels else math.nan,
        support=support,
        predicted=predicted,
        subsets=further,
    )


def _checked(table: Tensor) -> Tensor:
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not len(table):
        raise ValueError(f"the table must be (K, K) with K >= 1, got {tuple(table.shape)}")
    return table.detach().cpu().long()


def _ids(what: str, ids: Sequence[int], classes: int) -> Tensor:
    wrong = [one for one in ids if not 0 <= one < classes]
    if wrong or not len(ids):
        raise ValueError(f"{what} {tuple(ids)} must name one or more of the classes 0..{classes - 1}")
    return torch.tensor(list(ids), dtype=torch.int64)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
