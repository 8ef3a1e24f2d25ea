"""The locally adaptive loss as a term: same-class neighbours are pooled, hard places count more."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor

from leanlabel.config import Settings
from leanlabel.losses.locally_adaptive import k_ramp, locally_adaptive, window_weights
from leanlabel.losses.pixel import align
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms.pixel import Weighted, _Weighted, placed


class LocallyAdaptiveSettings(Weighted):
    """Windows, pooling and power mean. The paper gives k; window, stride and sigma are our choice."""

    n: int = Field(default=3, ge=1)
    """Side of the window in positions, odd; 1 does not pool."""
    stride: int = Field(default=1, ge=1)
    """Positions between the centres of windows."""
    sigma: float | None = Field(default=1.0, gt=0)
    """Width of the Gaussian of the chessboard distance to the centre; null weighs all neighbours alike."""
    k: float = Field(default=5.0, ge=1)
    """Exponent of the power mean over windows; 1 is the mean."""
    ramp: float = Field(default=0.0, ge=0, lt=1)
    """Share of the iterations over which the exponent rises from 1 to k."""
    pool: Literal["scores", "probs"] = "scores"
    """What neighbours of one class average: scores before the softmax, or probabilities."""
    normaliser: Literal["weights", "count"] = "weights"
    """What the sum over neighbours is divided by: the sum of their weights, or their number."""
    anchor: Literal["centre", "all"] = "centre"
    """Whose class a window pools: that of its centre, or every class in it."""
    root: bool = True
    """Take the k-th root of the mean of the k-th powers."""
    mix: float = Field(default=1.0, ge=0, le=1)
    """Share of this loss; the rest is pixel-wise cross-entropy."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of every target that is spread evenly over the classes."""

    @field_validator("n")
    @classmethod
    def _odd(cls, n: int) -> int:
        if n % 2 == 0:
            raise ValueError("an odd number, so that windows have a centre")
        return n


class LocallyAdaptive(_Weighted):
    """Cross-entropy of pooled neighbourhoods under a power mean. Weights of single pixels are not read."""

    Settings: ClassVar[type[Settings]] = LocallyAdaptiveSettings

    @classmethod
    def follows_steps(cls, settings: Any) -> list[str]:
        """The ramp of the exponent is a share of all iterations."""
        return ["ramp"] if settings.ramp > 0 else []

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The power mean over the windows of all ranks together."""
        s = self.settings
        logits, labels = placed(step, s.at)
        k = k_ramp(step.t, self.known.steps, s.k, s.ramp)
        value = locally_adaptive(
            logits,
            labels,
            k=k,
            root=s.root,
            mix=s.mix,
            smoothing=s.smoothing,
            class_weights=self.class_weights,
            **self._windows(),
        )
        return {"locally_adaptive": value}

    def emphasis(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(eps / L)^(k - 1) of every window, relative to the mean."""
        logits, labels = align(logits, labels, at=self.settings.at)
        return window_weights(logits, labels, k=self.settings.k, **self._windows())

    def _windows(self) -> dict[str, Any]:
        s = self.settings
        sigma = float("inf") if s.sigma is None else s.sigma
        return {
            "n": s.n,
            "stride": s.stride,
            "sigma": sigma,
            "pool": s.pool,
            "normaliser": s.normaliser,
            "anchor": s.anchor,
        }
