"""Classes of labelled images pasted into unlabelled ones: class mixing, and the transfer of rare classes' content.

Both are one component. Class mixing pastes half of the classes of a labelled image, whatever they are and as they look.
Content transfer pastes rare classes alone, of images that are drawn for them, in the colours of the image around.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from leanlabel import dist
from leanlabel.augment.class_mix import Mixed, class_mix_masks, mix_pair
from leanlabel.augment.photometric import ColourSettings
from leanlabel.augment.tail import moments, tail_classes, without_small
from leanlabel.config import Settings
from leanlabel.errors import InputError, RunError
from leanlabel.losses.pixel import pixel_cross_entropy
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms import Needs, Setting, Term
from leanlabel.methods.terms.online import OnlineSettings, Share, enlarged, taught_labels, weighted_loss
from leanlabel.methods.terms.pasting import Drawn, Given, drawn_again, mixed_content, resized

PATIENCE = 50
"""Iterations in a row in which the decoder draws no finite image, after which a run stops."""

_MOST = 0.5
"""Share of the labelled pixels above which classes that count as rare are no tail."""


class ClassMixSettings(OnlineSettings):
    """What is pasted, and where the labels of the rest come from."""

    later: ClassVar[tuple[str, ...]] = (
        *("tail", "donors", "temperature", "min_pixels", "mode", "style", "least", "reliable"),
    )
    """Keys that were added after results were recorded: at their default they are not part of what names a run."""
    share: Share = 0.5
    """Share of the classes of a labelled image that is pasted, rounded up."""
    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the classes that may be pasted; null: all, or those that tail says."""
    online: bool = True
    """Whether the labels around what is pasted are the teacher's of this iteration; false: the stored pseudo labels,
    with weight 1, without a teacher. threshold, margins, sides and per_image are without effect then."""
    tail: float | None = Field(default=None, gt=0, le=1)
    """Paste rare classes only: from the rarest on, those that together have no more than this share of the pixels of
    the stored pseudo labels, or of the labelled images with online. null: those that classes says."""
    donors: Literal["batch", "drawn"] = "batch"
    """Where what is pasted comes from. batch: labelled image i of the batch; drawn: images that are drawn for one of
    these classes, the rarer the likelier, and brought to the size of the unlabelled ones."""
    temperature: float = Field(default=0.1, gt=0)
    """With donors drawn: how evenly classes are drawn; class k with probability proportional to exp((1 - f_k) /
    temperature), f_k its share of the labelled pixels."""
    min_pixels: int = Field(default=3000, ge=1)
    """With donors drawn: pixels of its class that an image must have, where there are such images."""
    mode: Literal["image", "feature", "decoded"] = "image"
    """What is mixed. image: images; feature: features, which the classifier alone reads then; decoded: features, from
    which the decoder of the term zero-style draws an image in the style of the unlabelled one."""
    style: Literal["none", "moments", "decoder"] = "none"
    """How what is pasted into images is brought to their colours. moments: mean and standard deviation of each channel;
    decoder: it is drawn again by the decoder of the term zero-style."""
    least: int = Field(default=0, ge=0)
    """Pixels that a connected part of what is pasted must have; smaller ones are left out."""
    reliable: float = Field(default=0.25, gt=0)
    """Error of images that the decoder draws again below which it is used; else mode is image and style, in place of
    decoder, moments in that iteration."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tail is not None and self.classes is not None:
            raise ValueError("tail: null beside classes, which says what is pasted")
        if self.style == "decoder" and self.mode != "image":
            raise ValueError(
                f"style: none or moments with mode {self.mode}, which pastes no part of an image"
            )
        return self


class ContentTransferSettings(ClassMixSettings):
    """What is pasted, from where and how. None of the numbers is published."""

    later: ClassVar[tuple[str, ...]] = ()
    share: Share = 1.0
    """Share of the rare classes of a labelled image that is pasted, rounded up."""
    online: bool = False
    """Whether the labels around what is pasted are the teacher's of this iteration; false: the stored pseudo labels,
    with weight 1, without a teacher. threshold, margins, sides and per_image are without effect then."""
    strong: ColourSettings = ColourSettings()
    """How the colours of mixed images are changed."""
    tail: float | None = Field(default=0.04, gt=0, le=1)
    """Paste rare classes only: from the rarest on, those that together have no more than this share of the pixels of
    the stored pseudo labels, or of the labelled images with online. null: those that classes says."""
    donors: Literal["batch", "drawn"] = "drawn"
    """Where what is pasted comes from. batch: labelled image i of the batch; drawn: images that are drawn for one of
    these classes, the rarer the likelier, and brought to the size of the unlabelled ones."""
    style: Literal["none", "moments", "decoder"] = "moments"
    """How what is pasted into images is brought to their colours. moments: mean and standard deviation of each channel;
    decoder: it is drawn again by the decoder of the term zero-style."""


class ClassMix(Term):
    """Cross-entropy of unlabelled images with some classes of labelled ones in them [ClassMix; DACS; DAFormer].

    Labelled image i goes into unlabelled image i. Pasted pixels have their true label and weight 1, the others the
    teacher's label and the share of pixels that it is sure of.

    Where a key says more than what classes to paste, the term keeps count: buffers `tail` (K,) bool, the classes that
    are pasted, fixed before training; `pasted` (K,) int64, pasted pixels of each class over all ranks; `broken` int64,
    iterations in a row without a finite image of the decoder.
    """

    Settings: ClassVar[type[Settings]] = ClassMixSettings
    teacher: ClassVar[bool] = True
    source: ClassVar[bool] = True
    target: ClassVar[bool] = True
    title: ClassVar[str] = "class-mix"
    loss_name: ClassVar[str] = "mix"
    counts: ClassVar[bool] = False
    """Whether it keeps count whatever its settings are."""
    tail: Tensor
    pasted: Tensor
    broken: Tensor

    def __init__(self, settings: Any, known: Setting) -> None:
        super().__init__(settings, known)
        self.chosen = None if settings.classes is None else class_numbers(settings.classes, known.classes)
        fields = type(settings).model_fields
        later = ClassMixSettings.later
        self.counted = self.counts or any(getattr(settings, key) != fields[key].default for key in later)
        self._lacking: list[str] = []
        self._told = False
        # Before stored labels are there, as in a preview, rare classes are those of the labelled images.
        self._waits = settings.tail is not None and not settings.online
        if self.counted:
            self.register_buffer("tail", self._rare(torch.tensor(known.pixels)))
            self.register_buffer("pasted", torch.zeros(len(known.classes), dtype=torch.int64))
            self.register_buffer("broken", torch.zeros((), dtype=torch.int64))

    @classmethod
    def needs(cls, settings: Any) -> Needs:
        """A teacher, or stored pseudo labels; images that are drawn for rare classes."""
        drawn = settings.donors == "drawn"
        return replace(
            super().needs(settings), teacher=settings.online, stored=not settings.online, donors=drawn
        )

    @classmethod
    def asks(cls, settings: Any) -> tuple[str, ...]:
        """The term that trains a decoder, where one draws images."""
        return ("zero-style",) if decodes(settings) else ()

    def stored_pixels(self, pixels: Tensor) -> None:
        """Choose the rare classes by the stored pseudo labels; by labelled images where none has a label."""
        if self.settings.tail is not None and not self.settings.online:
            known = torch.tensor(self.known.pixels)
            counts = pixels.to(known) if bool(pixels.any()) else known
            self.tail.copy_(self._rare(counts))
            self._waits = False

    def taken_over(self) -> None:
        """Choose classes by these settings and data, and count from 0."""
        if self.counted:
            self.tail.copy_(self._rare(torch.tensor(self.known.pixels)))
            self.pasted.zero_()
            self.broken.zero_()

    def donor_rule(self) -> tuple[Tensor, float, int]:
        """Images are drawn for the classes that are pasted."""
        if not self.counted:
            return super().donor_rule()
        self._tell()
        return self.tail.clone(), self.settings.temperature, self.settings.min_pixels

    def pasted_pixels(self) -> Tensor | None:
        """Pixels (K,) int64 of each class that were pasted so far on all ranks; None where nobody counts."""
        return self.pasted.clone() if self.counted else None

    def notes(self) -> list[str]:
        """What is pasted is no tail, where a network that has learned little names few classes."""
        if not self.counted or self.settings.tail is None:
            return []
        pixels = torch.tensor(self.known.pixels, dtype=torch.float64)
        share = float(pixels[self.tail.cpu()].sum() / pixels.sum().clamp_min(1))
        if share <= _MOST:
            return []
        return [
            f"{self.title}: what counts as rare has {share:.0%} of the labelled pixels, because pseudo labels name few "
            f"classes; train the stage before for longer"
        ]

    def mixed(self, step: Step) -> Mixed:
        """What is mixed, before its colours change: images, labels, weights and the region that was pasted.

        With mode feature these are the images and labels of the same region, for people to look at.

        Raises:
            InputError: labelled and unlabelled images differ in number or size, or the recipe has no decoder.
        """
        given = self._given(step)
        return self._mixed(step, given, self._drawn(step, given))

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean over the labelled pixels of all ranks' mixes of weight times cross-entropy."""
        if self.counted:
            self._tell()
            if not bool(self.tail.any()):
                return {self.loss_name: step.target.logits.sum() * 0}
        given = self._given(step)
        drawn = self._drawn(step, given)
        mixed = self._mixed(step, given, drawn)
        if self.counted:
            self._count(step, given, drawn)
        if self.settings.mode == "feature":
            return {self.loss_name: self._feature_loss(step, given, mixed)}
        images = self._recoloured(step, mixed.images)
        return {self.loss_name: weighted_loss(step, images, mixed.labels, mixed.weights)}

    def _given(self, step: Step) -> Given:
        """Labelled images, and what of them is pasted."""
        target, s = step.target, self.settings
        size = target.images.shape[-2:]
        if s.donors == "batch":
            _check_alike(self.title, step.images, target.images)
            batch, draw = step.batch, step.draw("class mix")
        elif bool(self.tail.any()):
            batch, draw = resized(step.donor, size), target.draw("class mix")
        else:
            nothing = torch.zeros(len(target.images), *size, dtype=torch.bool, device=target.images.device)
            return Given(target.images, target.labels, 1.0, nothing)
        chosen = self.tail.nonzero()[:, 0].tolist() if self.counted else self.chosen
        region = class_mix_masks(batch.labels, draw, s.share, chosen)
        region = without_small(region, s.least) if s.least else region
        return Given(batch.images, batch.labels, 1.0 if batch.weights is None else batch.weights, region)

    def _drawn(self, step: Step, given: Given) -> Drawn | None:
        """What the decoder draws; None where it is not asked."""
        s = self.settings
        if not decodes(s):
            return None
        return drawn_again(step, given, s.reliable, mix=s.mode == "decoded", own=s.donors == "batch")

    def _mixed(self, step: Step, given: Given, drawn: Drawn | None) -> Mixed:
        target, s = step.target, self.settings
        if s.online:
            taught = taught_labels(step, s)
            labels, weights = taught.labels, taught.weights
        else:
            labels, weights = target.labels, 1.0 if target.weights is None else target.weights
        images, found = given.images, None if drawn is None else drawn.images
        if found is not None and s.mode == "image":
            images = found
        elif s.style != "none":
            images = moments(images, target.images)
        mixed = mix_pair(
            *(images, given.labels, target.images, labels, given.region),
            weights_from=given.weights,
            weights_to=weights,
        )
        return mixed._replace(images=found) if found is not None and s.mode == "decoded" else mixed

    def _feature_loss(self, step: Step, given: Given, mixed: Mixed) -> Tensor:
        """Cross-entropy of the classifier on mixed features."""
        own = step.features if self.settings.donors == "batch" else step.forward(given.images).features
        logits = step.head(mixed_content(own, step.target.features, given.region))
        height, width = mixed.labels.shape[-2:]
        logits = enlarged(step, logits, (height, width))
        return pixel_cross_entropy(logits, mixed.labels, weight=mixed.weights, divide="count")

    def _recoloured(self, step: Step, images: Tensor) -> Tensor:
        """Mixed images in other colours; where none change, bit for bit the same."""
        strong = self.settings.strong
        if self.counted and strong == ColourSettings():
            return images
        return step.recolour(images, strong, step.target.draw("class mix colours"))

    def _count(self, step: Step, given: Given, drawn: Drawn | None) -> None:
        """Count what is pasted, on all ranks together; stop a run whose decoder draws nothing any more.

        Raises:
            RunError: it has not drawn a finite image for too long.
        """
        region, classes = given.region, len(self.tail)
        pixels = torch.bincount(given.labels[region], minlength=classes)
        without = (~region.flatten(1).any(1)).sum()
        sizes = torch.tensor([region.numel(), len(region)], device=region.device)
        found, of = dist.sums(torch.cat([pixels, without[None]]), sizes)
        self.pasted += found[:classes]
        shares = torch.stack([found[:classes].sum(), found[classes]]) / of.clamp(min=1)
        step.report(pasted_share=shares[0], without_tail=shares[1])
        if drawn is None:
            return
        step.report(fell_back=float(drawn.images is None))
        if drawn.images is not None:
            self.broken.zero_()
        elif drawn.broken:
            self.broken += 1
            if int(self.broken) >= PATIENCE:
                raise RunError(
                    f"Iteration {step.t}: the decoder of zero-style drew no finite image in {PATIENCE} iterations.",
                    f"Lower the lr of zero-style, or set mode to image and style to moments in {self.title}.",
                )

    def _rare(self, pixels: Tensor) -> Tensor:
        """Classes (K,) bool that are pasted, by the pixels (K,) of each; remembers which no labelled image has."""
        here = torch.tensor(self.known.pixels) > 0
        found = torch.zeros_like(here)
        if self.settings.tail is not None:
            # A class that no pseudo label names is the rarest: the network has lost it.
            found = tail_classes(pixels, self.settings.tail) | ((pixels == 0) & here)
        elif self.chosen is not None:
            found[self.chosen] = True
        else:
            found = here
        lacking = (found & ~here).tolist()
        self._lacking = [name for name, told in zip(self.known.classes, lacking, strict=True) if told]
        return found & here

    def _tell(self) -> None:
        """Warn once of classes that cannot be pasted, once it is settled which are."""
        if self._told or self._waits:
            return
        self._told = True
        if self._lacking:
            warnings.warn(
                f"{self.title}: no labelled pixel of {', '.join(self._lacking)}, so that nothing of it is pasted.",
                stacklevel=3,
            )
        if not bool(self.tail.any()):
            why = "" if self.settings.tail is None else f" (tail: {self.settings.tail})"
            warnings.warn(
                f"{self.title}: no class is rare enough{why}: nothing is pasted, and its loss is 0. Set a larger tail, "
                "or classes.",
                stacklevel=3,
            )


class ContentTransfer(ClassMix):
    """Cross-entropy of unlabelled images with rare classes of labelled ones in them, in their own colours.

    An implementation of the published idea [Lee, Hyun, Seong, Kim: Unsupervised Domain Adaptation for Semantic
    Segmentation by Content Transfer, AAAI 2021]; its text and code were not at hand. For every unlabelled image a
    labelled one is drawn for a rare class, and all of its rare classes are pasted where they are.
    """

    Settings: ClassVar[type[Settings]] = ContentTransferSettings
    title: ClassVar[str] = "content-transfer"
    loss_name: ClassVar[str] = "content_transfer"
    counts: ClassVar[bool] = True


def decodes(settings: Any) -> bool:
    """Whether settings of class mixing let a decoder draw images."""
    return settings.mode == "decoded" or settings.style == "decoder"


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


def _check_alike(title: str, images: Tensor, others: Tensor) -> None:
    """Refuse batches of which one cannot be pasted into the other, for a term of this name."""
    if len(images) != len(others):
        raise InputError(
            f"method.terms, {title}: {len(images)} labelled images cannot be pasted into {len(others)} "
            "unlabelled ones, one into each.",
            "Set data.source.batch_size and data.target.batch_size to the same number.",
        )
    if images.shape != others.shape:
        one, other = (
            f"{shape[1]} channels of {shape[2]} x {shape[3]}" for shape in (images.shape, others.shape)
        )
        raise InputError(
            f"method.terms, {title}: labelled images have {one} pixels, unlabelled ones {other}.",
            "Set augment.crop and target_augment.crop to the same size.",
        )
