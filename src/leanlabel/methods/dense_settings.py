"""The keys of every recipe of dense training (segmentation)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from leanlabel.augment.pairs import PairSettings
from leanlabel.config import EvaluationSettings, OptimSettings, RunConfig, Settings
from leanlabel.data.dense_source import DenseSource
from leanlabel.errors import InputError
from leanlabel.methods.terms import Needs, find_term
from leanlabel.models.segmenters import SegmenterSettings

Side = Annotated[int, Field(ge=1)]


class TermEntry(Settings):
    """One term of the training."""

    name: str
    """Which one; `leanlabel show` of a recipe prints all their settings."""
    weight: float = Field(default=1.0, ge=0)
    """What its losses are multiplied by."""
    start: int = Field(default=0, ge=0)
    """Iteration from which on it takes part."""
    settings: dict[str, Any] = Field(default={})
    """Its own keys."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """Write defaults of the term's own keys out, so that a configuration is complete."""
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            return given
        own = given.get("settings", {})
        if not isinstance(own, Mapping):
            return given
        try:
            checked = find_term(given["name"]).Settings.model_validate_json(json.dumps(own), strict=True)
        except InputError as error:
            raise ValueError(
                f"{error.message.rpartition(': ')[2].rstrip('.')} ({error.suggestion})"
            ) from error
        except ValidationError as error:
            raise ValueError(
                f"settings that {given['name']} has ({_faults(error, given['name'])})"
            ) from error
        return {**given, "settings": checked.model_dump(mode="json")}

    def typed(self) -> Settings:
        """Its own keys as its class of settings."""
        return find_term(self.name).Settings.model_validate_json(json.dumps(self.settings), strict=True)


def _faults(error: ValidationError, name: str) -> str:
    """Every mistake in the keys of a term, in words."""
    told = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            told.append(f"{key}: unknown key; valid here: {', '.join(find_term(name).Settings.model_fields)}")
        else:
            told.append(f"{key}: {fault['msg'][:1].lower()}{fault['msg'][1:]}")
    return "; ".join(told)


def adapts(needs: Needs) -> bool:
    """Whether a term reads more than labelled images and a running average."""
    return needs.target or needs.pairs or bool(needs.frozen)


class DenseMethodSettings(Settings):
    """What dense training minimises."""

    name: Literal["segmentation"] = "segmentation"
    """Method."""
    terms: tuple[TermEntry, ...] = (TermEntry(name="cross-entropy"),)
    """Ordered list of {name, weight, start, settings}."""
    ema: float | None = Field(default=None, ge=0, lt=1)
    """Momentum of the running average of the network that is handed out in its place; null keeps none. Before
    iteration t it is at most 1 - 1 / (t + 1), so that the average does not hold on to the initialisation."""

    label_noise: float = Field(default=0.0, ge=0, le=1)
    """Share of the labelled training pixels whose class is exchanged for one drawn evenly from all, once and for good:
    an experiment on how well training bears wrong labels. Other parts are left as they are."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [term.name for term in self.terms]
        if not names:
            raise ValueError("at least one term in method.terms")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"each term once; {twice} stands there {names.count(twice)} times")
        other = [term.name for term in self.terms if adapts(find_term(term.name).needs(term.typed()))]
        if other and self.name == "segmentation":
            raise ValueError(f"method.name: adapt for the term {other[0]}, which reads a second domain")
        needy = [term.name for term in self.terms if find_term(term.name).needs(term.typed()).teacher]
        if needy and self.ema is None:
            raise ValueError(f"method.ema, such as 0.99, for the term {needy[0]}, which asks a teacher")
        return self


class DenseOptim(OptimSettings):
    """How parameters are updated."""

    head_factor: float = Field(default=1.0, gt=0)
    """Learning rate of everything behind the encoder, relative to the encoder's; 10 in DeepLab."""


class DenseEvaluation(EvaluationSettings):
    """How a run is measured: protocol, parts of the data, selection."""

    selectable: ClassVar[tuple[str, ...]] = ("last", "best_val")
    protocol: str = "miou"
    """miou: mean intersection over union, from one confusion matrix over all labelled pixels of a part; none: no labels
    are read."""
    part: str = "auto"
    """Part of the data that the main score is of; auto: test where there is one, else the first whose name begins with
    test, else val."""
    further: tuple[str, ...] = ("val",)
    """Further parts that are measured, under the name miou:PART, where they are there."""
    empty: Literal["exclude", "zero"] = "exclude"
    """What becomes of a class that neither labels nor predictions have: left out of the mean, or counted as 0, as
    published scripts do."""
    subset: str | None = None
    """Named subset of the classes that is averaged instead of all, such as 13 of the 16 classes of SYNTHIA."""
    window: tuple[Side, Side] | None = None
    """Height and width of a sliding window; null: images are read whole."""
    overlap: float = Field(default=0.5, ge=0, lt=1)
    """Share that neighbouring windows have in common."""
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1.0,), min_length=1)
    """Sizes at which an image is read, relative to its own; probabilities are averaged."""
    flip: bool = False
    """Average with the mirrored image."""
    network: Literal["auto", "student", "teacher"] = "auto"
    """Which network is measured and predicts: the trained one, or its running average; auto: that where it is kept."""
    boundary: bool = True
    """Measure boundary IoU, too."""
    spread: bool = True
    """Measure how far features of a class scatter, and how far classes are apart."""
    untrained: bool = True
    """Measure the network as it was initialised, too."""
    batch: int = Field(default=8, ge=1)
    """Images of one size read at a time."""

    @field_validator("subset", mode="before")
    @classmethod
    def _number_as_name(cls, given: Any) -> Any:
        return str(given) if isinstance(given, int) else given

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.protocol not in ("miou", "none"):
            raise ValueError(f"miou or none as evaluation.protocol of a segmentation, got {self.protocol!r}")
        if self.also:
            raise ValueError("no evaluation.also; parts of the data go into evaluation.further")
        return self

    @field_validator("select")
    @classmethod
    def _selectable(cls, given: str) -> str:
        if given not in cls.selectable:
            raise ValueError(f"{', '.join(cls.selectable[:-1])} or {cls.selectable[-1]}")
        return given


class DenseConfig(RunConfig):
    """The keys of every recipe of dense training."""

    task: str = "segmentation"
    """Kind of job."""
    steps: int = Field(default=1000, ge=0)
    """Iterations."""
    method: DenseMethodSettings = DenseMethodSettings()
    """Terms, running average."""
    model: SegmenterSettings = SegmenterSettings()
    """Network."""
    data: DenseSource
    """Images and masks."""
    augment: PairSettings = PairSettings()
    """What happens to images and masks together before they are trained on."""
    optim: DenseOptim = DenseOptim(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4, schedule="poly")  # pyright: ignore[reportIncompatibleVariableOverride]
    """Optimiser."""
    evaluation: DenseEvaluation = DenseEvaluation()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Protocol, parts of the data, selection of weights."""

    @model_validator(mode="after")
    def _has_average(self) -> Self:
        if self.evaluation.network == "teacher" and self.method.ema is None:
            raise ValueError("method.ema, such as 0.99, with evaluation.network: teacher")
        return self
