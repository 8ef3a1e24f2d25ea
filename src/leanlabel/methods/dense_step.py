"""What the terms of dense training see of one iteration: the batch, and everything computed from it on first use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, Protocol

from torch import Tensor

from leanlabel.models.segmenters import DenseOutput
from leanlabel.rng import Draw


class DenseBatch(NamedTuple):
    """Images and labels as the network sees them.

    Attributes:
        ids: (B,) global sample ids.
        images: (B, C, H, W), normalised.
        labels: (B, H, W) int64, class or -100.
        weights: (B, H, W) weight of every pixel's loss; None: 1.
        domain: (B,) int64, 0 labelled (source), 1 unlabelled (target); None where there is but one.
    """

    ids: Tensor
    images: Tensor
    labels: Tensor
    weights: Tensor | None = None
    domain: Tensor | None = None


class Owner(Protocol):
    """The method behind a step."""

    def student(self, images: Tensor, /) -> DenseOutput: ...

    def student_head(self, features: Tensor, /) -> Tensor: ...

    def teacher_output(self, images: Tensor, /) -> DenseOutput: ...

    def enlarge(self, logits: Tensor, size: tuple[int, int], /) -> Tensor: ...

    def update(self, loss: Tensor, which: str = "main") -> None: ...

    def report(self, **terms: Tensor | float) -> None: ...


class Step:
    """One iteration.

    Attributes:
        t: its number.
        batch: what the views of all terms left.
    """

    def __init__(self, owner: Owner, t: int, batch: DenseBatch, draw: Callable[[str], Draw]) -> None:
        self._owner = owner
        self.t = t
        self.batch = batch
        self.draw = draw

    @property
    def images(self) -> Tensor:
        """(B, C, H, W), normalised."""
        return self.batch.images

    @property
    def labels(self) -> Tensor:
        """(B, H, W) int64, -100 ignored."""
        return self.batch.labels

    @property
    def weights(self) -> Tensor | None:
        """(B, H, W) weights of the pixels; None: all 1."""
        return self.batch.weights

    @cached_property
    def output(self) -> DenseOutput:
        """What the trained network says about the images, with gradient."""
        return self.forward(self.images)

    @property
    def logits(self) -> Tensor:
        """(B, K, h, w) at the network's stride, with gradient."""
        return self.output.logits

    @property
    def features(self) -> Tensor:
        """(B, D, h, w), with gradient."""
        return self.output.features

    @cached_property
    def full_logits(self) -> Tensor:
        """(B, K, H, W), brought to the size of the labels, with gradient."""
        height, width = self.labels.shape[-2:]
        return self._owner.enlarge(self.logits, (height, width))

    @cached_property
    def taught(self) -> DenseOutput:
        """What the teacher says about the images, without gradient."""
        return self.teacher(self.images)

    def forward(self, images: Tensor) -> DenseOutput:
        """Another pass of the trained network, with gradient."""
        return self._owner.student(images)

    def head(self, features: Tensor) -> Tensor:
        """The trained network's classifier on features (B, D, h, w), with gradient."""
        return self._owner.student_head(features)

    def teacher(self, images: Tensor) -> DenseOutput:
        """A pass of the teacher, without gradient."""
        return self._owner.teacher_output(images)

    def update(self, loss: Tensor, which: str) -> None:
        """Backward pass and a step of an optimiser of the term's own."""
        self._owner.update(loss, which)

    def report(self, **values: Tensor | float) -> None:
        """Log named scalars of this iteration."""
        self._owner.report(**values)
