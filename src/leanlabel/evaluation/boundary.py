"""Boundary IoU: the overlap of segmentations near their contours, where plain IoU of large regions is blind."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.data.class_map import IGNORE
from leanlabel.evaluation.confusion import confusion_matrix, ignored
from leanlabel.evaluation.segmentation import Empty, mean_over_classes

SHARE = 0.02
"""Thickness of boundary regions as a share of the image's diagonal, as published."""


class BoundaryIoU(nn.Module):
    """Boundary IoU of each class over any number of images.

    With G_k and P_k the pixels labelled and predicted as class k, and G_k^d the pixels of G_k within d of its contour,
    BoundaryIoU_k = sum |G_k^d & P_k^d| / sum |G_k^d | P_k^d|   [Cheng et al. 2021], both sums over all images.
    See :func:`boundary_region` for "within d". Pixels that the label ignores are neither counted nor seen as another
    class: a prediction that agrees on all other pixels reaches 1. Sums are over all ranks in `total` and `scores`,
    which all ranks call.

    Args:
        classes: K >= 1.
        share: d as a share of each image's diagonal, > 0; d = max(1, round(share * diagonal)) pixels.
        frame: count the image's frame as contour, as published code does.

    Raises:
        ValueError: classes or share not positive.

    Example:
        >>> counts = BoundaryIoU(2)
        >>> label = torch.zeros(1, 8, 8, dtype=torch.uint8)
        >>> label[:, :, 4:] = 1
        >>> counts.add(label, label)
        >>> counts.scores().tolist()
        [1.0, 1.0]
    """

    intersection: Tensor
    union: Tensor

    def __init__(self, classes: int, share: float = SHARE, *, frame: bool = True) -> None:
        super().__init__()
        if classes < 1 or share <= 0:
            raise ValueError(f"classes and share must be positive, got {classes} and {share}")
        self.classes, self.share, self.frame = classes, share, frame
        self.register_buffer("intersection", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("union", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def add(self, labels: Tensor, predictions: Tensor, ignore: int = IGNORE) -> None:
        """Count the boundary pixels of one or more images of one size.

        Images are taken one at a time: memory does not grow with their number.

        Args:
            labels: (H, W) or (B, H, W), integers in [0, K) or `ignore`. No gradient.
            predictions: same shape, integers in [0, K); anything where the label is `ignore`. No gradient.
            ignore: label of the pixels to leave out.

        Raises:
            ValueError: shapes differ or are others, or a label or prediction is outside [0, K).
        """
        if labels.shape != predictions.shape or labels.ndim not in (2, 3):
            raise ValueError(
                f"labels {tuple(labels.shape)} and predictions {tuple(predictions.shape)} must both be (H, W) or "
                f"(B, H, W)"
            )
        if not labels.numel():
            return
        height, width = labels.shape[-2:]
        distance = thickness(height, width, self.share)
        for label, guess in zip(
            labels.reshape(-1, height, width), predictions.reshape(-1, height, width), strict=True
        ):
            self._add_one(label, guess.to(label.device), distance, ignore)

    def _add_one(self, label: Tensor, guess: Tensor, distance: int, ignore: int) -> None:
        # Counted for its checks: both maps hold classes, and nothing else where the label is not ignored.
        confusion_matrix(label, guess, self.classes, ignore=ignore, names=("labels", "predictions"))
        outside, rest = ignored(label, ignore), self.classes  # `rest`: away from contours, or ignored
        kind = torch.uint8 if rest < 256 else torch.int32
        edges = []
        for ids in (label, guess):
            near = boundary_region(ids, distance, outside=outside, frame=self.frame)
            edges.append(ids.to(kind).where(near, rest))
        table = confusion_matrix(edges[0], edges[1], rest + 1)
        both = table.diagonal()[:rest]
        self.intersection += both.to(self.intersection.device)
        self.union += (table.sum(1)[:rest] + table.sum(0)[:rest] - both).to(self.union.device)

    def reset(self) -> None:
        """Forget all images."""
        self.intersection.zero_()
        self.union.zero_()

    def total(self) -> tuple[Tensor, Tensor]:
        """Intersections and unions (K,) int64 of all ranks together."""
        return dist.all_sum(self.intersection.clone()), dist.all_sum(self.union.clone())

    def scores(self, empty: Empty = "exclude") -> Tensor:
        """Boundary IoU of each class over all ranks.

        Args:
            empty: a class without boundary pixels is NaN ("exclude") or 0 ("zero").

        Returns:
            (K,) float64 on the CPU, in [0, 1].
        """
        both, either = (part.cpu() for part in self.total())
        return (both.double() / either).where(either > 0, math.nan if empty == "exclude" else 0.0)

    def mean(self, empty: Empty = "exclude") -> float:
        """Mean over classes; NaN where no class has a boundary pixel. All ranks call it."""
        found = self.scores()
        return mean_over_classes(found, ~found.isnan(), empty)


def thickness(height: int, width: int, share: float = SHARE) -> int:
    """Distance d in pixels for an image: its share of the diagonal, rounded, at least 1.

    Example:
        >>> thickness(1024, 2048)
        46
    """
    return max(1, round(share * math.hypot(height, width)))


@torch.no_grad()
def boundary_region(
    classes: Tensor, distance: int, *, outside: Tensor | None = None, frame: bool = True
) -> Tensor:
    """Find the pixels that lie within a distance of the contour of their own class, inside it.

    A pixel does where the square of side 2 d + 1 around it holds a pixel of another class; that is what stays of a
    mask after taking away its erosion by d steps of a 3 x 3 square. All classes are done at once: the square holds
    another class exactly where its smallest and largest class differ.

    Args:
        classes: (H, W) integers >= 0. No gradient.
        distance: d >= 1 in pixels.
        outside: (H, W) bool, pixels that are in no region and are no other class to their neighbours.
        frame: what lies outside of the image is another class.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: the map is not (H, W), ids are negative where not ignored, or distance < 1.

    Example:
        >>> boundary_region(torch.tensor([[0, 0, 0, 1, 1, 1]]), 1, frame=False).int().tolist()
        [[0, 0, 1, 1, 0, 0]]
    """
    if classes.ndim != 2 or distance < 1:
        raise ValueError(f"need a map (H, W) and a distance >= 1, got {tuple(classes.shape)} and {distance}")
    if not classes.numel():
        return torch.zeros_like(classes, dtype=torch.bool)
    kept = classes if outside is None else classes.masked_fill(outside, 0)
    if int(kept.min()) < 0:
        raise ValueError(f"class ids must not be negative, got {int(kept.min())}")
    top = int(kept.max()) + 1
    kind = torch.uint8 if top < 255 else torch.int32
    shifted = kept.to(kind) + 1  # 0 and top + 1 are free: below every class, above every class
    low, high = shifted, shifted
    if outside is not None:
        low, high = shifted.masked_fill(outside, top + 1), shifted.masked_fill(outside, 0)
    for dim in (0, 1):
        high = _sliding_max(high, distance, dim, 0)
        low = (top + 1) - _sliding_max((top + 1) - low, distance, dim, 0)
    found = low != high
    if frame:
        for dim, size in enumerate(classes.shape):
            found.narrow(dim, 0, min(distance, size)).fill_(True)
            found.narrow(dim, max(0, size - distance), min(distance, size)).fill_(True)
    return found if outside is None else found & ~outside


def _sliding_max(values: Tensor, distance: int, dim: int, least: int) -> Tensor:
    """Largest value within `distance` along a dimension; `least` stands for what is outside.

    Windows are doubled until one more step covers 2 d + 1: log2(2 d + 1) maxima of whole maps, whatever d is.
    """
    size = values.shape[dim]
    distance = min(distance, size)  # a longer reach sees nothing new
    shape = list(values.shape)
    shape[dim] = distance
    margin = values.new_full(shape, least)
    found, reach, window = torch.cat([margin, values, margin], dim), 1, 2 * distance + 1
    while reach < window:
        step = min(reach, window - reach)
        length = found.shape[dim] - step
        found = torch.maximum(found.narrow(dim, 0, length), found.narrow(dim, step, length))
        reach += step
    return found
