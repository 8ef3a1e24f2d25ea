"""One prototype of each class: where its features lie on average, over the last batches or over a whole data set.

Features count by their direction, z = f / |f| (:mod:`leanlabel.losses.prototype`). Prototypes are means of z and are
not normalised again: a shorter one belongs to a class that is more spread.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.banks.class_means import ImageMeans, agreeing_labels, class_sums, nearest_labels
from leanlabel.losses.prototype import prototype_contrast, prototype_logits, unit

__all__ = [
    "ImageMeans",
    "PrototypeContrast",
    "Prototypes",
    "agreeing_labels",
    "class_sums",
    "nearest_labels",
]

Estimator = Literal["ema", "running_mean"]
Absent = Literal["keep", "decay"]


class Prototypes(nn.Module):
    """Remember a prototype of each class and bring it up to date with every batch, on all ranks alike.

    c_k is the mean of z over the labelled pixels of class k in the batches of all ranks, m_k their number:

        P_k <- alpha P_k + (1 - alpha) c_k              [ema; SPCL. alpha = 0.1: nine tenths are the last batch]
        P_k <- (n_k P_k + m_k c_k) / (n_k + m_k)        [running_mean; SePiCo. n_k: pixels seen before]

    The first mean of a class is taken whole.

    Args:
        classes: K.
        width: D, channels of the features.
        estimator: which of the two.
        alpha: share that stays, in [0, 1]; of ema only.
        absent: what becomes of a class that a batch lacks. keep: nothing; decay: P_k <- alpha P_k, as published, which
            after three batches leaves a thousandth. Without effect on a running mean.

    Raises:
        ValueError: no class or channel, an alpha out of range, or an unknown estimator or rule.

    Example:
        >>> bank = Prototypes(3, 2)
        >>> bank.update(torch.tensor([[3.0, 0.0], [4.0, 2.0]])[None, :, None], torch.tensor([[[0, 2]]]))
        >>> bank.known.tolist(), bank.values[2].tolist()
        ([True, False, True], [0.0, 1.0])
    """

    values: Tensor
    """(K, D) float32, the prototypes; 0 for a class that was never seen."""
    counts: Tensor
    """(K,) float64, pixels of each class so far."""

    def __init__(
        self,
        classes: int,
        width: int,
        *,
        estimator: Estimator = "ema",
        alpha: float = 0.1,
        absent: Absent = "keep",
    ) -> None:
        super().__init__()
        if classes < 1 or width < 1:
            raise ValueError(f"there must be a class and a channel, got {classes} and {width}")
        if estimator not in ("ema", "running_mean"):
            raise ValueError(f'estimator must be "ema" or "running_mean", got {estimator!r}')
        if absent not in ("keep", "decay"):
            raise ValueError(f'absent must be "keep" or "decay", got {absent!r}')
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        self.estimator, self.alpha, self.absent = estimator, alpha, absent
        self.register_buffer("values", torch.zeros(classes, width))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.float64))

    @property
    def known(self) -> Tensor:
        """(K,) bool, classes that were seen."""
        return self.counts > 0

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, *, ignore: int = -100) -> None:
        """Take in a batch; on several ranks all must call it, each with its own.

        Sums and counts are added over ranks before they are divided, so prototypes are bit-identical on all ranks and
        those of one process that sees all pixels. A pixel with |f| < 1e-6 counts with z = 0.

        Args:
            features: (B, D, h, w), floating point; no gradient is taken.
            labels: (B, h, w) integers in [0, K) or `ignore`.
            ignore: label that is left out.

        Raises:
            ValueError: shapes or types do not fit; InputError for a label that is neither a class nor `ignore`.
        """
        self._check_width(features)
        sums, counts = dist.sums(*class_sums(features, labels, len(self.values), ignore=ignore))
        sums, counts = sums.to(self.values), counts.to(self.counts)
        seen, present = self.known[:, None], (counts > 0)[:, None]
        means = sums / counts.clamp(min=1).to(sums)[:, None]
        if self.estimator == "ema":
            stay = self.alpha
            old = self.alpha * self.values if self.absent == "decay" else self.values
        else:
            stay = (self.counts / (self.counts + counts).clamp(min=1)).to(sums)[:, None]
            old = self.values
        blended = stay * self.values + (1 - stay) * means
        self.values.copy_(torch.where(present, blended.where(seen, means), old))
        self.counts += counts

    @torch.no_grad()
    def begin(self, values: Tensor, counts: Tensor) -> None:
        """Start from prototypes that were computed elsewhere, say by :class:`ImageMeans`.

        Args:
            values: (K, D).
            counts: (K,) >= 0, how many pixels (for ema, of anything) each stands for; where 0, the class counts as
                never seen and its value as 0.

        Raises:
            ValueError: shapes do not fit, or a number is negative or not finite.
        """
        if values.shape != self.values.shape or counts.shape != self.counts.shape:
            raise ValueError(
                f"prototypes must be {tuple(self.values.shape)} and counts {tuple(self.counts.shape)}, got "
                f"{tuple(values.shape)} and {tuple(counts.shape)}"
            )
        if bool((counts < 0).any()):
            raise ValueError("counts must not be negative")
        known = (counts > 0).to(values.device)
        values = values.where(known[:, None], 0)
        if not bool(torch.isfinite(values).all()) or not bool(torch.isfinite(counts).all()):
            raise ValueError("prototypes and counts must be finite")
        self.values.copy_(values)
        self.counts.copy_(counts)

    @torch.no_grad()
    def cosines(self, features: Tensor) -> Tensor:
        """Compare directions alone: z . P_k / |P_k|.

        Args:
            features: (B, D, h, w), floating point; no gradient is taken.

        Returns:
            (B, K, h, w) in [-1, 1], float32 or wider; 0 for a class that is not known and for features of length 0.

        Raises:
            ValueError: shapes or types do not fit.
        """
        self._check_width(features)
        return prototype_logits(features, unit(self.values), 1.0)

    @torch.no_grad()
    def nearest(self, features: Tensor, *, ignore: int = -100) -> Tensor:
        """Find the known class whose prototype has the direction that is nearest to that of each feature.

        Args:
            features: (B, D, h, w), floating point; no gradient is taken.
            ignore: the answer where no class is known.

        Returns:
            (B, h, w) int64; of several classes that are as near, the first.

        Raises:
            ValueError: shapes or types do not fit.

        Example:
            >>> bank = Prototypes(3, 2)
            >>> bank.begin(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.2]]), torch.tensor([5, 0, 2]))
            >>> bank.nearest(torch.tensor([[3.0, 1.0], [2.0, 2.0]])[None, :, None])
            tensor([[[0, 2]]])
        """
        near = self.cosines(features).masked_fill(~self.known[:, None, None], -torch.inf)
        return near.argmax(1).where(self.known.any(), ignore)

    def _check_width(self, features: Tensor) -> None:
        if features.ndim != 4 or features.shape[1] != self.values.shape[1]:
            raise ValueError(
                f"features must be (B, {self.values.shape[1]}, h, w), got {tuple(features.shape)}"
            )


class PrototypeContrast(nn.Module):
    """Contrast features with prototypes of their own past, ready for any training loop.

    Call `update` with labelled features, then add `loss` of these and of features with pseudo labels to what is
    trained; save the state dict with the network's. On several ranks prototypes and losses are those of all pixels
    when gradients are averaged over ranks.

    Args:
        num_classes: K.
        dim: D, channels of the features.
        tau: temperature of the loss.
        alpha, absent, estimator: see :class:`Prototypes`.
        balance: what counts the same in the loss, pixels or classes.
        mask_unknown: leave prototypes of classes that were never seen out of the loss's denominator.
        ignore: label that is left out.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> contrast = PrototypeContrast(2, 3, tau=0.1)
        >>> features = torch.eye(3)[:2].t()[None, :, None].requires_grad_()  # two pixels
        >>> labels = torch.tensor([[[0, 1]]])
        >>> contrast.update(features, labels)
        >>> round(float(contrast.loss(features, labels).detach()), 6)
        4.5e-05
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        tau: float = 100.0,
        alpha: float = 0.1,
        absent: Absent = "keep",
        estimator: Estimator = "ema",
        balance: Literal["pixel", "class"] = "pixel",
        mask_unknown: bool = False,
        ignore: int = -100,
    ) -> None:
        super().__init__()
        if not tau > 0:
            raise ValueError(f"tau must be positive, got {tau}")
        if balance not in ("pixel", "class"):
            raise ValueError(f'balance must be "pixel" or "class", got {balance!r}')
        self.bank = Prototypes(num_classes, dim, estimator=estimator, alpha=alpha, absent=absent)
        self.balance: Literal["pixel", "class"] = balance
        self.tau, self.mask_unknown, self.ignore = tau, mask_unknown, ignore

    @property
    def prototypes(self) -> Tensor:
        """(K, D) copy of the prototypes."""
        return self.bank.values.clone()

    @property
    def counts(self) -> Tensor:
        """(K,) copy of the pixels of each class so far; 0: it has no prototype yet."""
        return self.bank.counts.clone()

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Bring the prototypes up to date with labelled features; before the loss of the same batch.

        Args:
            features: (B, D, h, w); no gradient is taken.
            labels: (B, H, W) integers in [0, K) or `ignore`, of the size of the features or larger; thinned out by
                :func:`nearest_labels`.

        Raises:
            ValueError: shapes or types do not fit; InputError for a wrong label.
        """
        self.bank.update(features, nearest_labels(labels, features.shape[2:]), ignore=self.ignore)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Contrast labelled features with the prototypes, see :func:`leanlabel.losses.prototype.prototype_contrast`.

        Args:
            features: (B, D, h, w), carries gradient.
            labels: (B, H, W), as for :meth:`update`.

        Returns:
            Scalar, this rank's share of the mean; pixels of classes that were never seen are left out.

        Raises:
            ValueError: shapes or types do not fit; InputError for a wrong label.
        """
        return prototype_contrast(
            features,
            nearest_labels(labels, features.shape[2:]),
            self.bank.values,
            tau=self.tau,
            balance=self.balance,
            known=self.bank.known,
            mask_unknown=self.mask_unknown,
            ignore=self.ignore,
        )
