"""How tightly the features of a class lie around their mean, and how far apart the means of classes are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.data.class_map import IGNORE
from leanlabel.evaluation.confusion import ignored

# Positions per block that is brought to float64: with 2048 features 64 MB.
BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Spread:
    """Scatter of labelled features.

    Attributes:
        intra: mean over classes of the mean squared distance of a feature to the mean of its class, >= 0.
        inter: mean over pairs of classes of the squared distance between their means, >= 0.
        ratio: intra / inter; small where classes are compact and apart.
        intra_of: (K,) float64, the mean squared distance in each class; NaN where a class has no feature.
        means: (K, D) float64, the class means; NaN where a class has no feature.
        counts: (K,) int64, features of each class.

    intra is NaN without features, inter and ratio with fewer than two classes; ratio is NaN where all means coincide.
    """

    intra: float
    inter: float
    ratio: float
    intra_of: Tensor
    means: Tensor
    counts: Tensor

    def as_dict(self) -> dict[str, Any]:
        """The three numbers by name."""
        return {"intra": self.intra, "inter": self.inter, "ratio": self.ratio}


class FeatureSpread(nn.Module):
    """Intra-class spread and inter-class distance of features over any number of images.

    With the features x of class k, n_k their number and mu_k their mean,
    intra_k = 1/n_k sum ||x - mu_k||^2 = 1/n_k sum ||x||^2 - ||mu_k||^2, intra = mean of intra_k over the classes that
    occur, inter = mean of ||mu_j - mu_k||^2 over pairs j < k of them. Both are squared distances, so that their ratio
    has no unit and does not change when features are scaled or turned. Only n_k, sum x and sum ||x||^2 are kept, in
    float64: means up to 10^6 times the spread leave it 4 digits. Each rank adds its own images; `scores` is of all
    ranks together, and all ranks call it.

    Args:
        classes: K >= 1.
        width: D >= 1, channels of the features.
        normalise: divide every feature by its Euclidean norm first (a zero feature stays zero).

    Raises:
        ValueError: classes or width < 1.

    Example:
        >>> spread = FeatureSpread(2, 1)
        >>> spread.add(torch.tensor([[[[1.0, 3.0, 6.0]]]]), torch.tensor([[[0, 0, 1]]]))
        >>> spread.scores().as_dict()
        {'intra': 0.5, 'inter': 16.0, 'ratio': 0.03125}
    """

    counts: Tensor
    sums: Tensor
    squares: Tensor

    def __init__(self, classes: int, width: int, *, normalise: bool = False) -> None:
        super().__init__()
        if classes < 1 or width < 1:
            raise ValueError(f"classes and width must be at least 1, got {classes} and {width}")
        self.classes, self.width, self.normalise = classes, width, normalise
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("sums", torch.zeros(classes, width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(classes, dtype=torch.float64))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, ignore: int = IGNORE) -> None:
        """Add the features of a batch.

        Args:
            features: (B, D, h, w) floating point, finite where labelled. No gradient.
            labels: (B, h, w) integers in [0, K) or `ignore`, at the resolution of the features. No gradient.
            ignore: label of the positions to leave out.

        Raises:
            ValueError: shapes do not fit, a label is outside [0, K), or a labelled feature is not finite.
        """
        if features.ndim != 4 or features.shape[1] != self.width:
            raise ValueError(f"features must be (B, {self.width}, h, w), got {tuple(features.shape)}")
        if labels.shape != (len(features), *features.shape[2:]):
            raise ValueError(
                f"labels must be {(len(features), *features.shape[2:])} as the features, got {tuple(labels.shape)}; "
                f"thin them out to the resolution of the features"
            )
        kept = ~ignored(labels, ignore).to(features.device)
        ids = labels.to(features.device).long()
        wrong = ids[kept & ((ids < 0) | (ids >= self.classes))]
        if len(wrong):
            raise ValueError(
                f"labels has class ids {int(wrong.min())}..{int(wrong.max())} outside [0, {self.classes})"
            )
        # One more class takes what is ignored, so that no feature is gathered.
        ids = ids.where(kept, self.classes).flatten(1)
        for rows, own in zip(features.detach().flatten(2), ids, strict=True):
            for block, classes in zip(rows.split(BLOCK, 1), own.split(BLOCK), strict=True):
                self._add_block(block, classes)

    def _add_block(self, block: Tensor, ids: Tensor) -> None:
        """Add features (D, n) with classes (n,), where K means ignored."""
        left_out = ids == self.classes
        block = block.to(self.sums).masked_fill(left_out.to(self.sums.device), 0)
        ids = ids.to(self.sums.device)
        if self.normalise:
            norm = block.norm(dim=0)
            block = block / norm.where(norm > 0, 1)
        squares = block.square().sum(0)
        if not bool(torch.isfinite(squares).all()):
            raise ValueError(f"{int((~torch.isfinite(squares)).sum())} labelled features are not finite")
        member = torch.zeros(len(ids), self.classes + 1, dtype=block.dtype, device=block.device)
        member.scatter_(1, ids[:, None], 1.0)
        member = member[:, : self.classes]
        self.counts += member.sum(0).long()
        self.sums += (block @ member).T
        self.squares += squares @ member

    def reset(self) -> None:
        """Forget all features."""
        for buffer in (self.counts, self.sums, self.squares):
            buffer.zero_()

    def scores(self) -> Spread:
        """Scatter of the features of all ranks; all ranks call it."""
        counts, sums, squares = (
            dist.all_sum(part.clone()).cpu() for part in (self.counts, self.sums, self.squares)
        )
        means = sums / counts[:, None]
        # Rounding must not take the spread of equal features below zero.
        own = (squares / counts - means.square().sum(1)).clamp(min=0)
        there = means[counts > 0]
        k = len(there)
        intra = float(own[counts > 0].mean()) if k else math.nan
        # Over pairs, sum ||mu_j - mu_k||^2 = k sum ||mu_k - mean||^2: no pair is formed, and nothing large cancels.
        inter = float((there - there.mean(0)).square().sum()) * k / (k * (k - 1) / 2) if k > 1 else math.nan
        return Spread(intra, inter, intra / inter if inter > 0 else math.nan, own, means, counts)
