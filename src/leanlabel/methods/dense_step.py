"""What the terms of dense training see of one iteration: the batch, and everything computed from it on first use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from leanlabel.augment.photometric import ColourSettings
from leanlabel.errors import InputError
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

    def reference_output(self, images: Tensor, /) -> DenseOutput: ...

    def initial_map(self, images: Tensor, /) -> Tensor: ...

    def recoloured(self, images: Tensor, settings: ColourSettings, draw: Draw, /) -> Tensor: ...

    def own_network(self, name: str, /) -> nn.Module: ...

    def network_of(self, term: str, key: str, /) -> nn.Module | None: ...

    def update(self, loss: Tensor, which: str = "main") -> None: ...

    def report(self, **terms: Tensor | float) -> None: ...


class Step:
    """One iteration: its labelled images, and where a method adapts to another domain, those of that domain.

    Args:
        owner: the method.
        t: number of the iteration.
        batch: what the views of all terms left.
        draw: name of a stream -> random numbers of the batch's samples.
        target: images of the unlabelled domain, whose labels are stored pseudo labels, -100 where there are none.
        partner: for every one of these images the labelled one of the same scene, under the same geometry; weights
            are 0 where one of the two has no image.
        donor: labelled images that were drawn for their rare classes, as many as there are target images.

    Attributes:
        shared: what a term leaves for others in this iteration.
    """

    def __init__(
        self,
        owner: Owner,
        t: int,
        batch: DenseBatch,
        draw: Callable[[str], Draw],
        target: Step | None = None,
        partner: DenseBatch | None = None,
        donor: DenseBatch | None = None,
    ) -> None:
        self._owner = owner
        self.t = t
        self.batch = batch
        self.draw = draw
        self._target = target
        self.partner = partner
        self._donor = donor
        self.shared: dict[str, Any] = {}

    @property
    def donor(self) -> DenseBatch:
        """Labelled images drawn for their rare classes, one for every image of the target, without changed colours.

        Raises:
            InputError: there are none.
        """
        if self._donor is None:
            raise InputError(
                "method.terms: a term that pastes rare classes needs images drawn for them, and there are none.",
                "Use method.name=adapt with data.source and data.target.",
            )
        return self._donor

    @property
    def target(self) -> Step:
        """The images of the unlabelled domain.

        Raises:
            InputError: there is but one domain.
        """
        if self._target is None:
            raise InputError(
                "method.terms: a term that adapts needs images of a second domain.",
                "Use method.name=adapt with data.source and data.target.",
            )
        return self._target

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

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Scores (B, K, h, w) brought to another size, as the network's are; carries gradient."""
        return self._owner.enlarge(logits, size)

    def head(self, features: Tensor) -> Tensor:
        """The trained network's classifier on features (B, D, h, w), with gradient."""
        return self._owner.student_head(features)

    def teacher(self, images: Tensor) -> DenseOutput:
        """A pass of the teacher, without gradient."""
        return self._owner.teacher_output(images)

    def reference(self, images: Tensor) -> DenseOutput:
        """A pass of the network as it was when this stage of training began, frozen; without gradient."""
        return self._owner.reference_output(images)

    def initial(self, images: Tensor) -> Tensor:
        """Last map of the encoder as the run found it, frozen; (B, D, h, w) without gradient."""
        return self._owner.initial_map(images)

    def recolour(self, images: Tensor, settings: ColourSettings, draw: Draw) -> Tensor:
        """Change the colours of normalised images (B, C, H, W) at random; normalised, without gradient."""
        return self._owner.recoloured(images, settings, draw)

    def part(self, name: str) -> nn.Module:
        """A trained network of a term's own, by its full name (see :attr:`Term.names`)."""
        return self._owner.own_network(name)

    def network_of(self, term: str, key: str) -> nn.Module | None:
        """A trained network of another term of the recipe; None where there is no such term."""
        return self._owner.network_of(term, key)

    def update(self, loss: Tensor, which: str) -> None:
        """Backward pass and a step of an optimiser of the term's own."""
        self._owner.update(loss, which)

    def report(self, **values: Tensor | float) -> None:
        """Log named scalars of this iteration."""
        self._owner.report(**values)
