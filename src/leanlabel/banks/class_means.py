"""Which pixels speak for a class, and the mean of their features: over a batch, or over the images of a data set.

Features count by their direction, z = f / |f|, and as 0 where |f| < 1e-6 (:mod:`leanlabel.losses.prototype`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.losses.pixel import align, checked_labels, wide
from leanlabel.losses.prototype import class_counts, inverse_lengths


class ImageMeans:
    """Average the mean features of a class over images, so that every image counts as much, however large the class.

    mu_ik = mean of z over the pixels of class k in image i; P_k = mean of mu_ik over the images that have k    [SPCL]

    Streams: memory is K D numbers. On several ranks each adds its own images; the result is that of all.

    Args:
        classes: K.
        width: D.

    Raises:
        ValueError: no class or channel.

    Example:
        >>> means = ImageMeans(2, 2)
        >>> means.add(torch.tensor([[3.0, 0.0], [0.0, 2.0]])[None, :, None], torch.tensor([[[0, 0]]]))
        >>> means.add(torch.tensor([1.0, 0.0])[None, :, None, None], torch.tensor([[[0]]]))
        >>> values, images = means.result()
        >>> values[0].tolist(), images.tolist()
        ([0.75, 0.25], [2, 0])
    """

    def __init__(self, classes: int, width: int) -> None:
        if classes < 1 or width < 1:
            raise ValueError(f"there must be a class and a channel, got {classes} and {width}")
        self._sums = torch.zeros(classes, width, dtype=torch.float64)
        self._images = torch.zeros(classes, dtype=torch.int64)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, *, ignore: int = -100) -> None:
        """Take in some images of this rank.

        Args:
            features: (B, D, h, w), floating point; no gradient is taken.
            labels: (B, h, w) integers in [0, K) or `ignore`.
            ignore: label that is left out.

        Raises:
            ValueError: shapes or types do not fit; InputError for a label that is neither a class nor `ignore`.
        """
        classes, width = self._sums.shape
        if features.ndim != 4 or features.shape[1] != width or len(features) != len(labels):
            raise ValueError(
                f"features must be (B, {width}, h, w) and labels (B, h, w), got {tuple(features.shape)} and "
                f"{tuple(labels.shape)}"
            )
        for image, of in zip(features.split(1), labels.split(1), strict=True):
            sums, counts = (one.cpu() for one in class_sums(image, of, classes, ignore=ignore))
            self._sums += sums.double() / counts.clamp(min=1)[:, None]
            self._images += counts > 0

    def result(self) -> tuple[Tensor, Tensor]:
        """Return the prototypes (K, D) in float64, 0 without an image, and (K,) int64 images, on the CPU.

        On several ranks all must ask.
        """
        sums, images = dist.sums(self._sums, self._images)
        return sums / images.clamp(min=1)[:, None], images


@torch.no_grad()
def class_sums(
    features: Tensor, labels: Tensor, classes: int, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    """Sum the directions of features by class, on this rank.

    One product of (K, N) weights, 1 / |f_i| in the row of the label of i, with the features: no mask of each class, and
    no normalised copy.

    Args:
        features: (B, D, h, w), floating point; no gradient is taken.
        labels: (B, h, w) integers in [0, K) or `ignore`.
        classes: K.
        ignore: label that is left out.

    Returns:
        (K, D) sums of z in float32 or wider, and (K,) int64 counts of pixels.

    Raises:
        ValueError: shapes or types do not fit; InputError for a label that is neither a class nor `ignore`.

    Example:
        >>> features = torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])[None, :, None]  # three pixels
        >>> sums, counts = class_sums(features, torch.tensor([[[1, 1, -100]]]), 2)
        >>> counts.tolist(), [round(float(one), 3) for one in sums[1]]
        ([0, 2], [0.6, 1.8])
    """
    if features.ndim != 4 or not features.is_floating_point():
        raise ValueError(
            f"features must be floating point (B, D, h, w), got {features.dtype}, {tuple(features.shape)}"
        )
    if labels.shape != features[:, 0].shape:
        raise ValueError(
            f"features {tuple(features.shape)} and labels {tuple(labels.shape)} differ in size; "
            "leanlabel.banks.class_means.nearest_labels thins labels out"
        )
    form = torch.empty(1).expand(len(features), classes, *labels.shape[1:])
    labels = checked_labels(form, labels, ignore).flatten(1)
    counted = labels != ignore
    with torch.autocast(features.device.type, enabled=False):
        rows = wide(features.detach()).flatten(2)
        # What is ignored falls into a row of its own, which is not summed.
        weights = rows.new_zeros(len(rows), classes + 1, rows.shape[2])
        weights.scatter_(1, labels.where(counted, classes)[:, None], inverse_lengths(rows)[:, None])
        sums = torch.bmm(weights[:, :classes], rows.transpose(1, 2)).sum(0)
    return sums, class_counts(labels, counted, classes)


@torch.no_grad()
def agreeing_labels(labels: Tensor, logits: Tensor, *, fallback: bool = False, ignore: int = -100) -> Tensor:
    """Keep the labels that the network itself would give.

    m = y where y = argmax_k logits_k, else `ignore`    [SPCL]

    A class that the network never says is so locked out, and it is the one that needs help; hence the fallback.

    Args:
        labels: y, (B, h, w) integers in [0, K) or `ignore`.
        logits: (B, K, h, w); no gradient is taken.
        fallback: a class that agrees nowhere in the batches of all ranks (then all ranks must call) keeps all labels.
        ignore: label that is left out.

    Returns:
        (B, h, w) int64.

    Raises:
        ValueError: shapes or types do not fit; InputError for a label that is neither a class nor `ignore`.

    Example:
        >>> logits = torch.eye(3)[[0, 2, 2]].t()[None, :, None]  # three pixels, said to be 0, 2 and 2
        >>> labels = torch.tensor([[[0, 1, 2]]])
        >>> agreeing_labels(labels, logits).tolist(), agreeing_labels(labels, logits, fallback=True).tolist()
        ([[[0, -100, 2]]], [[[0, 1, 2]]])
    """
    if logits.ndim != 4:
        raise ValueError(f"logits must be (B, K, h, w), got {tuple(logits.shape)}")
    labels = checked_labels(logits, labels, ignore)
    agree = logits.argmax(1) == labels
    if fallback:
        agreed = dist.all_sum(class_counts(labels, agree, logits.shape[1]))
        labelled = labels != ignore
        agree |= labelled & (agreed == 0)[labels.where(labelled, 0)]
    return labels.where(agree, ignore)


def nearest_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Thin labels out to a coarser grid: place i of h along an axis of H takes the label at floor(i H / h).

    Args:
        labels: (B, H, W), any type.
        size: h and w, the true size of the features.

    Returns:
        (B, h, w) of the same type.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> nearest_labels(torch.arange(8)[None, None], (1, 3))
        tensor([[[0, 2, 5]]])
    """
    if labels.ndim != 3 or len(size) != 2 or min(size) < 1:
        raise ValueError(
            f"labels must be (B, H, W) and size (h, w), got {tuple(labels.shape)} and {tuple(size)}"
        )
    return align(torch.empty(1).expand(len(labels), 1, *size), labels, "feature")[1]
