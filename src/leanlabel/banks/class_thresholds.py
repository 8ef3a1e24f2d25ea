"""How sure a model is of each class over a whole data set, and the confidence above which a share of it is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanlabel import dist

BINS = 1 << 16
_SLACK = 1e-3
"""Half precision rounds probabilities up to a little more than 1."""


class ClassThresholds(nn.Module):
    """Confidences of all pixels by predicted class, as histograms: its memory does not grow with the pixels.

    A confidence p falls into bin floor(p bins), which stands for its lower edge. So a threshold from the histogram is
    at most 1 / bins below the exact one and never above it: rounding keeps more pixels, never fewer. On several ranks
    each adds its own pixels; what is read counts those of all ranks (then all ranks must ask).

    Args:
        classes: number K.
        bins: equal bins of [0, 1].
        exact: keep every value instead, 16 bytes each: for small sets.

    Raises:
        ValueError: no class, or no bin.

    Example:
        >>> sure = ClassThresholds(2)
        >>> sure.add(torch.tensor([0.5, 0.625, 0.75, 0.875]), torch.zeros(4, dtype=torch.int64))
        >>> sure.thresholds().tolist(), sure.counts().tolist(), sure.kept(sure.thresholds()).tolist()
        ([0.75, 0.0], [4, 0], [2, 0])
    """

    histogram: Tensor
    values: Tensor
    owners: Tensor
    written: Tensor

    def __init__(self, classes: int, bins: int = BINS, exact: bool = False) -> None:
        super().__init__()
        if classes < 1 or bins < 1:
            raise ValueError(f"there must be a class and a bin, got {classes} classes and {bins} bins")
        self.classes, self.bins, self.exact = classes, bins, exact
        if exact:
            self.register_buffer("values", torch.zeros(0, dtype=torch.float64))
            self.register_buffer("owners", torch.zeros(0, dtype=torch.int64))
            self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        else:
            self.register_buffer("histogram", torch.zeros(classes, bins, dtype=torch.int64))

    @torch.no_grad()
    def add(self, confidence: Tensor, classes: Tensor) -> None:
        """Count some pixels of this rank.

        Args:
            confidence: any shape, floating point, largest probability in [0, 1] (a rounding above 1 counts as 1);
                no gradient.
            classes: the same shape, integers in [0, K): the class that has it.

        Raises:
            ValueError: shapes or types do not fit, or a value is out of range or not a number.
        """
        own = self.values if self.exact else self.histogram
        if confidence.shape != classes.shape or not confidence.is_floating_point():
            raise ValueError(
                f"confidence {tuple(confidence.shape)} {confidence.dtype} and classes {tuple(classes.shape)} must have "
                "one shape, and confidence be floating point"
            )
        if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
            raise ValueError(f"classes must be integers, got {classes.dtype}")
        if not confidence.numel():
            return
        # In float64: products with a number of bins that is no power of two are rounded, and so are means of halves.
        p, k = confidence.flatten().to(own.device).double(), classes.flatten().to(own.device).long()
        low, high = (float(edge) for edge in torch.aminmax(p))
        if not (low >= 0 and high <= 1 + _SLACK):  # also where one is not a number
            raise ValueError(f"confidence must be in [0, 1], got {low:.6g} to {high:.6g}")
        first, last = (int(edge) for edge in torch.aminmax(k))
        if first < 0 or last >= self.classes:
            raise ValueError(f"classes must be in [0, {self.classes}), got {first} to {last}")
        p = p.clamp(max=1)
        if self.exact:
            self._keep(p, k)
            return
        index = k * self.bins + self._bin(p)
        total = self.histogram.view(-1)
        if index.numel() < total.numel():
            total.index_add_(0, index, torch.ones_like(index))
        else:
            total += torch.bincount(index, minlength=total.numel())

    def _bin(self, p: Tensor) -> Tensor:
        """Bin of each value in [0, 1] (float64); its lower edge is never above the value."""
        found = (p * self.bins).long().clamp_(max=self.bins - 1)
        return found - (found.double() / self.bins > p).long()

    def _keep(self, p: Tensor, k: Tensor) -> None:
        start = int(self.written)
        end = start + len(p)
        if end > len(self.values):  # twice as many as needed, so that all copies together stay linear
            for name in ("values", "owners"):
                old = getattr(self, name)
                setattr(self, name, torch.cat([old[:start], old.new_zeros(2 * end - start)]))
        self.values[start:end], self.owners[start:end] = p, k
        self.written += len(p)

    @torch.no_grad()
    def thresholds(self, quantile: float = 0.5, cap: float = 0.9) -> Tensor:
        """Confidence from which on pixels of each class are kept.

        thr_k = min(cap, x_(round(quantile n))), with the n values of class k in ascending order x_(0) ... x_(n-1),
        halves rounded to even, and the place at most n - 1    [SPCL's pseudo labels]

        So at least the surer 1 - quantile of each class stays, and everything from `cap` on.

        Args:
            quantile: share of each class, in [0, 1], that may be left out.
            cap: largest threshold, in [0, 1].

        Returns:
            (K,) float64; 0 of a class without pixels. The same on every rank.

        Raises:
            ValueError: quantile or cap out of range.
        """
        if not 0 <= quantile <= 1 or not 0 <= cap <= 1:
            raise ValueError(f"quantile and cap must be in [0, 1], got {quantile} and {cap}")
        if self.exact:
            values, owners = self._all_values()
            found = torch.zeros(self.classes, dtype=torch.float64, device=values.device)
            for k in range(self.classes):
                own = values[owners == k].sort().values
                if len(own):
                    found[k] = own[min(round(quantile * len(own)), len(own) - 1)]
            return found.clamp(max=cap)
        histogram = dist.all_sum(self.histogram)
        counts = histogram.sum(1)
        places = [max(min(round(quantile * n), n - 1), 0) for n in counts.tolist()]
        rank = torch.tensor(places, device=histogram.device)
        edges = (histogram.cumsum(1) <= rank[:, None]).sum(1).double() / self.bins
        return torch.where(counts > 0, edges, 0.0).clamp(max=cap)

    @torch.no_grad()
    def counts(self) -> Tensor:
        """(K,) int64 pixels of each class so far, of all ranks."""
        if self.exact:
            return self._all_values()[1].bincount(minlength=self.classes)
        return dist.all_sum(self.histogram.sum(1))

    @torch.no_grad()
    def kept(self, thresholds: Tensor) -> Tensor:
        """Count the pixels with at least the confidence that their class asks for.

        Args:
            thresholds: (K,) in [0, 1].

        Returns:
            (K,) int64, of all ranks. Of the bin that a threshold lies in all pixels count.

        Raises:
            ValueError: another shape.
        """
        if thresholds.shape != (self.classes,):
            raise ValueError(f"thresholds must be ({self.classes},), got {tuple(thresholds.shape)}")
        if self.exact:
            values, owners = self._all_values()
            sure = values >= thresholds.to(values)[owners]
            return owners[sure].bincount(minlength=self.classes)
        least = self._bin(thresholds.to(self.histogram.device).double())
        bins = torch.arange(self.bins, device=self.histogram.device)
        return dist.all_sum((self.histogram * (bins >= least[:, None])).sum(1))

    def _all_values(self) -> tuple[Tensor, Tensor]:
        """Values and classes of all ranks' pixels."""
        n = int(self.written)
        return dist.all_rows(self.values[:n]), dist.all_rows(self.owners[:n])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any, **more: Any) -> None:
        for name in ("values", "owners") if self.exact else ():  # they are as long as what was added
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.ndim == 1:
                setattr(self, name, getattr(self, name).new_zeros(len(stored)))
        super()._load_from_state_dict(state_dict, prefix, *rest, **more)
