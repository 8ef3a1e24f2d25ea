"""Classes of labelled images pasted into unlabelled ones: half of the pixels of a mix have true labels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from leanlabel.augment.class_mix import Mixed, class_mix_masks, mix_pair
from leanlabel.config import Settings
from leanlabel.errors import InputError
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms import Needs, Setting, Term
from leanlabel.methods.terms.online import OnlineSettings, Share, taught_labels, weighted_loss


class ClassMixSettings(OnlineSettings):
    """What is pasted, and where the labels of the rest come from."""

    share: Share = 0.5
    """Share of the classes of a labelled image that is pasted, rounded up."""
    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the classes that may be pasted; null: all."""
    online: bool = True
    """Whether the labels around what is pasted are the teacher's of this iteration; false: the stored pseudo labels,
    with weight 1, without a teacher. threshold, margins, sides and per_image are without effect then."""


class ClassMix(Term):
    """Cross-entropy of unlabelled images with some classes of labelled ones in them [ClassMix; DACS; DAFormer].

    Labelled image i goes into unlabelled image i. Pasted pixels have their true label and weight 1, the others the
    teacher's label and the share of pixels that it is sure of.
    """

    Settings: ClassVar[type[Settings]] = ClassMixSettings
    teacher: ClassVar[bool] = True
    source: ClassVar[bool] = True
    target: ClassVar[bool] = True

    def __init__(self, settings: Any, known: Setting) -> None:
        super().__init__(settings, known)
        self.chosen = None if settings.classes is None else class_numbers(settings.classes, known.classes)

    @classmethod
    def needs(cls, settings: Any) -> Needs:
        """A teacher, or stored pseudo labels."""
        return replace(super().needs(settings), teacher=settings.online, stored=not settings.online)

    def mixed(self, step: Step) -> Mixed:
        """What is mixed, before its colours change: images, labels, weights and the region that was pasted.

        Raises:
            InputError: labelled and unlabelled images differ in number or size.
        """
        target, s = step.target, self.settings
        _check_alike(step.images, target.images)
        if s.online:
            taught = taught_labels(step, s)
            labels, weights = taught.labels, taught.weights
        else:
            labels, weights = target.labels, 1.0 if target.weights is None else target.weights
        region = class_mix_masks(step.labels, step.draw("class mix"), s.share, self.chosen)
        return mix_pair(
            *(step.images, step.labels, target.images, labels, region),
            weights_from=1.0 if step.weights is None else step.weights,
            weights_to=weights,
        )

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean over the labelled pixels of all ranks' mixes of weight times cross-entropy."""
        mixed = self.mixed(step)
        images = step.recolour(mixed.images, self.settings.strong, step.target.draw("class mix colours"))
        return {"mix": weighted_loss(step, images, mixed.labels, mixed.weights)}


def class_numbers(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Numbers of classes by their names.

    Raises:
        ValueError: a name that no class has; tells the nearest one.

    Example:
        >>> class_numbers(["pole"], ["road", "pole"])
        [1]
    """
    numbers = {name: number for number, name in enumerate(known)}
    for name in names:
        if name not in numbers:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            told = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"no class is called {name!r}; {told}")
    return [numbers[name] for name in names]


def _check_alike(images: Tensor, others: Tensor) -> None:
    """Refuse batches of which one cannot be pasted into the other."""
    if len(images) != len(others):
        raise InputError(
            f"method.terms, class-mix: {len(images)} labelled images cannot be pasted into {len(others)} "
            "unlabelled ones, one into each.",
            "Set data.source.batch_size and data.target.batch_size to the same number.",
        )
    if images.shape != others.shape:
        one, other = (
            f"{shape[1]} channels of {shape[2]} x {shape[3]}" for shape in (images.shape, others.shape)
        )
        raise InputError(
            f"method.terms, class-mix: labelled images have {one} pixels, unlabelled ones {other}.",
            "Set augment.crop and target_augment.crop to the same size.",
        )
