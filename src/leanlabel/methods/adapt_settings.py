"""The keys of every recipe that adapts a segmentation network to an unlabelled domain."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from leanlabel.augment.pairs import PairSettings
from leanlabel.augment.photometric import ColourSettings
from leanlabel.config import Settings
from leanlabel.data.class_sampling import SamplingSettings
from leanlabel.data.dense_source import DenseSource
from leanlabel.data.pairs import PairSection
from leanlabel.methods.dense_settings import DenseConfig, DenseEvaluation, DenseMethodSettings
from leanlabel.methods.terms import Needs, find_term


class PseudoLabelSettings(Settings):
    """How target images are labelled by the network, before a training whose terms read stored pseudo labels."""

    quantile: float = Field(default=0.5, ge=0, le=1)
    """Share of the pixels predicted as a class that is left out, the least confident ones; at most, see cap."""
    cap: float = Field(default=0.9, gt=0, le=1)
    """Confidence from which on a pixel is kept in any case."""
    exact: bool = False
    """Sort all confidences in place of counting them in 65,536 bins: for small sets."""
    folder: str | None = None
    """Folder of pseudo labels that were written before, in place of computing them; null computes them."""
    any_model: bool = False
    """Take those of a folder though other weights made them than training starts from."""
    noise: float = Field(default=0.0, ge=0, le=1)
    """An experiment on how well training bears systematic mistakes: with this probability all pixels of a class in an
    image are given to the next class, the same ones whenever the image is met. The files stay as they are."""


class AdaptMethodSettings(DenseMethodSettings):
    """What adaptation minimises, and what it reads."""

    name: Literal["adapt", "feature-regression", "spcl", "content-transfer"] = "adapt"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method."""
    sampling: SamplingSettings = SamplingSettings()
    """Which labelled images are drawn."""
    pseudo_labels: PseudoLabelSettings = PseudoLabelSettings()
    """Stored pseudo labels of the target images."""
    teacher_norm: Literal["running", "batch"] = "running"
    """Statistics of batch norms in the running average when it labels target images: its running ones, or those of the
    batch of target images at hand."""
    adabn: bool = False
    """When training is done, estimate the statistics of batch norms anew from the target's training images (AdaBN)."""
    target_labels: bool = False
    """Read labels of the target's training images, too: for upper bounds, which are no adaptation."""
    fresh: bool = False
    """Train a network from the seed in place of going on with that of the last stage, which is asked only, as a term's
    reference; it may then be another network, set in that stage."""
    watch_every: int = Field(default=50, ge=0)
    """Iterations between measurements of the gap between the domains, which read no labels; 0 for none."""


class AdaptData(Settings):
    """Two domains."""

    source: DenseSource
    """Images with masks."""
    target: DenseSource
    """Images of the other domain. Masks of its training part are not read unless labels is auto; those of other parts
    are, to measure."""
    pairs: PairSection | None = None
    """Which target image shows the same scene as which source image, for terms that compare the two; null: nobody
    knows."""

    @field_validator("target")
    @classmethod
    def _held_out(cls, given: Any) -> Any:
        """Leave labels of target training images unread, unless somebody asks for them."""
        return (
            given if "labels" in given.model_fields_set else given.model_copy(update={"labels": "held-out"})
        )


class AdaptEvaluation(DenseEvaluation):
    """How a run is measured: on the target, and on held-out images of the source."""

    selectable: ClassVar[tuple[str, ...]] = (
        "last",
        "best_val",
        "entropy",
        "teacher_agreement",
        "best_target_val",
    )
    select: Literal["last", "best_val", "entropy", "teacher_agreement", "best_target_val"] = "last"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which weights are kept: the last ones; those of the best mean IoU on the source's val part; those of the lowest
    entropy, or of the best agreement with the running average, on target training images, which read no labels; or
    those of the best mean IoU on the target's val part, as publications do: that lets labels of the target in."""
    source: bool = True
    """Measure on a held-out part of the source, too."""
    untrained: bool = False
    """Measure the network as it was initialised, too."""
    prototypes: bool = False
    """Measure how near features of the target are to mean features of the source's classes, before and after."""
    tail: float = Field(default=0.04, gt=0, lt=1)
    """Share of the labelled source pixels below which the rarest classes together are the tail, whose mean IoU is
    given beside that of the other classes."""


class AdaptConfig(DenseConfig):
    """The keys of every recipe of adaptation."""

    task: str = "adapt"
    """Kind of job."""
    method: AdaptMethodSettings = AdaptMethodSettings()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Terms, running average, sampling, pseudo labels."""
    data: AdaptData  # pyright: ignore[reportIncompatibleVariableOverride]
    """Source and target."""
    target_augment: PairSettings | None = None
    """What happens to target images before they are trained on; null: what happens to source images, but for the
    changes of colour."""
    evaluation: AdaptEvaluation = AdaptEvaluation()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Protocol, parts of the target, selection of weights."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        needs = needs_of(self)
        if needs.target_labels and not self.method.target_labels:
            raise ValueError(
                "method.target_labels: true with the term labelled-target, which trains on labels of the target: an "
                "upper bound, no adaptation"
            )
        if needs.target_labels and needs.stored:
            raise ValueError("no stored pseudo labels beside labelled-target: a pixel has one label")
        if self.method.fresh and (needs.stored or not self.stages or self.method.adabn):
            raise ValueError("method.fresh: false with stored pseudo labels, with adabn, and without stages")
        names = {term.name for term in self.method.terms}
        for term in self.method.terms:
            for other in find_term(term.name).asks(term.typed()):
                if other not in names:
                    raise ValueError(f"the term {other} beside {term.name} with these settings")
        drawing = [one.name for one in self.method.terms if find_term(one.name).needs(one.typed()).donors]
        if len(drawing) > 1:
            raise ValueError(
                f"donors: batch in {drawing[0]} or {drawing[1]}: images are drawn for one term only"
            )
        if needs.pairs and self.data.pairs is None:
            raise ValueError("data.pairs, for a term that compares images of the same scene")
        if self.evaluation.select == "teacher_agreement" and self.method.ema is None:
            raise ValueError("method.ema, such as 0.99, with evaluation.select: teacher_agreement")
        return self

    def plain_target(self) -> PairSettings:
        """What happens to target images."""
        if self.target_augment is not None:
            return self.target_augment
        return without_colours(self.augment)


def without_colours(augment: PairSettings) -> PairSettings:
    """The same geometry without any change of colour."""
    plain = {key: field.default for key, field in ColourSettings.model_fields.items()}
    return augment.model_copy(update=plain)


def needs_of(cfg: Any) -> Needs:
    """What all terms of a configuration read together."""
    every = [find_term(entry.name).needs(entry.typed()) for entry in cfg.method.terms]
    frozen = {one.frozen for one in every}
    return Needs(
        *(
            any(getattr(one, key) for one in every)
            for key in ("source", "target", "stored", "target_labels", "pairs")
        ),
        teacher=any(one.teacher for one in every),
        frozen="reference" if "reference" in frozen else "initial" if "initial" in frozen else "",
        donors=any(one.donors for one in every),
    )


def frozen_of(cfg: Any) -> set[str]:
    """Frozen networks that the terms of a configuration read."""
    return {find_term(entry.name).needs(entry.typed()).frozen for entry in cfg.method.terms} - {""}
