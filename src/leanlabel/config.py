"""Typed settings: a recipe's raw keys in, one frozen and complete configuration out, every mistake at once."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from leanlabel.errors import InputError
from leanlabel.recipe import KeyPath, Recipe, dump, merge

_LONGEST = 300
StageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
"""It becomes the name of a folder of the run."""
Decay = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """A section of a configuration: frozen, typed strictly, unknown keys forbidden."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class OptimSettings(Settings):
    """How parameters are updated."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate at its highest."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty added to the gradient (adam, sgd) or decoupled (adamw)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum; used by sgd only."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of the moment averages; used by adam and adamw only."""
    schedule: Literal["constant", "cosine", "poly", "linear", "drops"] = "constant"
    """Course of the learning rate after warm-up; poly has power 0.9, linear power 1, drops multiplies it by drop_factor
    at each of drops."""
    horizon: int | None = Field(default=None, ge=1)
    """Iterations that the schedule is laid over, where training stops before its end; null: steps."""
    stair: int = Field(default=1, ge=1)
    """Iterations between changes of the learning rate by its schedule; the length of an epoch for one that changes
    once per epoch, as in MoCo's code."""
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.6, 0.8)
    """Shares of all iterations at which the learning rate falls; used by drops only."""
    drop_factor: float = Field(default=0.1, gt=0, lt=1)
    """What it is multiplied by there."""
    decay_all: bool = True
    """Whether weight decay acts on biases and normalisation weights, too, as in MoCo's code."""
    warmup: int = Field(default=0, ge=0)
    """Iterations of linear warm-up."""
    clip: float | None = Field(default=None, gt=0)
    """Largest global gradient norm; null for no clipping."""


class EngineSettings(Settings):
    """Where and how a run is executed. Nothing here changes what is computed, up to rounding."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Kind of device."""
    devices: int = Field(default=1, ge=1)
    """Devices (processes) per node."""
    nodes: int = Field(default=1, ge=1)
    """Machines that take part."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How processes share the work; auto is ddp as soon as there is more than one."""
    precision: Literal["32-true", "64-true", "16-mixed", "bf16-mixed"] = "32-true"
    """Number format of weights and of the forward pass, as Lightning Fabric names it."""
    bf16_products: bool = False
    """Use bfloat16 inside float32 matrix products on processors that support it."""
    threads: int | None = Field(default=None, ge=1)
    """Threads per process; null leaves the choice to torch. Bit-equality holds for equal thread counts."""
    workers: int = Field(default=0, ge=0)
    """Processes that load data, per rank."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Iterations between checkpoints."""
    keep_last: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept, besides the best."""
    log_every: int = Field(default=1, ge=1)
    """Iterations between lines of metrics.jsonl."""
    loggers: tuple[Literal["tensorboard", "csv"], ...] = ("tensorboard",)
    """Loggers beside metrics.jsonl."""


class EvaluationSettings(Settings):
    """How a run is measured: protocol, splits, selection."""

    protocol: str = "logistic-l2"
    """logistic-l2: L2-regularised logistic regression on normalised rows; gca-probe: the linear probe of the GCA paper
    on rows as they are; knn: weighted vote of the nearest training rows; clustering: k-means against the classes,
    without splits; linear-moco, linear-imagenet100, linear-lightly: a linear layer on a frozen backbone, trained on
    augmented images; finetune-1, finetune-10: the whole network, trained on 1 % or 10 % of the training images; none:
    no labels are read."""
    also: tuple[str, ...] = ()
    """Further protocols that are measured when training is done."""
    split: Literal["auto", "public", "random"] = "auto"
    """The data's own split, random ones, or the data's where it has one."""
    splits: int = Field(default=4, ge=1)
    """Number of random splits."""
    shares: tuple[float, float, float] = (0.1, 0.1, 0.8)
    """Shares of the labelled rows for training, validation and test in random splits."""
    probe_epochs: int = Field(default=3000, ge=1)
    """Epochs of the linear probe."""
    knn_k: int = Field(default=200, ge=1)
    """Neighbours that vote, under protocol knn."""
    knn_temperature: float = Field(default=0.1, gt=0)
    """Temperature of their votes: a neighbour at cosine s counts exp(s / temperature)."""
    readout: Literal["trained", "untrained", "raw"] = "trained"
    """Which readout stands for this run in a comparison."""
    select: Literal[
        "last", "best_val", "effective_rank", "neighbourhood_density", "entropy", "teacher_agreement"
    ] = "last"
    """Which weights are kept: the last ones, those of the best validation score, or those that are best by a score
    that reads no labels."""
    every: int = Field(default=20, ge=1)
    """Iterations between validations, where select is not last."""

    @field_validator("shares")
    @classmethod
    def _whole(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError("three shares above 0 that sum to 1")
        return shares


class RunConfig(Settings):
    """The keys that every configuration has; a method adds its own sections."""

    about: str = ""
    """One line on what this recipe is."""
    task: str = ""
    """Kind of job: graph, ssl, segmentation, adapt, semi, classify-adapt, volumes, text."""
    fidelity: Literal["official", "paper", "corrected", "reconstruction", "small"] = "corrected"
    """official: the authors' code; paper: the paper's text; corrected: known faults mended; reconstruction: of the
    published idea, whose details were not at hand; small: fits two cores."""
    cost: str = ""
    """Measured or estimated time and memory."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of every random number of the run."""
    steps: int = Field(ge=0)
    """Iterations of training; 0 leaves the model as initialised."""
    optim: OptimSettings = OptimSettings()
    """Optimiser."""
    engine: EngineSettings = EngineSettings()
    """Devices, precision, workers, checkpoints."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Protocol, splits, selection of weights."""
    stages: dict[StageName, dict[str, Any]] = {}
    """Stage name (a-z, 0-9 and -) -> keys that differ from the main configuration in this stage; null leaves a stage
    out."""

    @field_validator("stages", mode="before")
    @classmethod
    def _without_null(cls, given: Any) -> Any:
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _whole_schedule(self) -> Self:
        horizon = self.optim.horizon
        if horizon is not None and horizon < max(self.steps, self.optim.warmup + 1):
            raise ValueError(
                f"optim.horizon ({horizon}) of at least steps ({self.steps}) and above "
                f"optim.warmup ({self.optim.warmup})"
            )
        return self


Config = TypeVar("Config", bound=RunConfig)


def validate(recipe: Recipe, schema: type[Config]) -> Config:
    """Check a recipe against a schema.

    Raises:
        InputError: all mistakes in one message, one a line: where it stands, key path, what was expected, and
            the nearest valid key for an unknown one.
    """
    try:
        text = json.dumps(recipe.values, default=str, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"recipe {recipe.name}: not plain data ({error}).",
            "Keys are words; values are numbers, words, lists and sections.",
        ) from error
    try:
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        lines = sorted({_line(fault, recipe, schema) for fault in error.errors()})  # type: ignore[arg-type]
        head = f"{len(lines)} mistakes in recipe {recipe.name}:\n" if len(lines) > 1 else ""
        raise InputError(head + "\n".join(lines)) from error


def _line(fault: Mapping[str, Any], recipe: Recipe, schema: type[BaseModel]) -> str:
    path, section = _key_path(fault["loc"], schema)
    kind, found = fault["type"], fault.get("input")
    if kind == "union_tag_invalid":
        path, found = (*path, "kind"), found.get("kind") if isinstance(found, dict) else found
    dotted = ".".join(path) or "(top level)"
    where = next(
        (recipe.origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in recipe.origins), recipe.name
    )
    if kind == "extra_forbidden":
        options = list(section.model_fields) if section else []
        near = difflib.get_close_matches(path[-1], options, n=1, cutoff=0.5)
        prefix = "".join(f"{part}." for part in path[:-1])
        hint = f"nearest valid key: {prefix}{near[0]}" if near else f"valid here: {', '.join(options)}"
        return f"{where}: {dotted}: unknown key; {hint}."
    if kind == "missing":
        return f"{where}: {dotted}: missing; give it a value."
    expected = re.sub(r"^Input should be (?:an? )?(?:valid )?", "", fault["msg"])
    if kind == "union_tag_invalid":
        expected = fault["ctx"]["expected_tags"].replace(", ", " or ")
    if kind == "union_tag_not_found":
        expected = "a section of keys"
    if kind == "value_error":
        expected = str(fault["ctx"]["error"])
    if kind in ("too_long", "too_short"):
        limit = fault["ctx"].get("max_length", fault["ctx"].get("min_length"))
        expected = f"{limit} values"
    said = repr(found)
    got = f", got {said}" if len(said) <= _LONGEST else ""  # of a whole section nobody reads it all
    return f"{where}: {dotted}: expected {expected}{got}."


def _key_path(loc: tuple[Any, ...], schema: type[BaseModel]) -> tuple[KeyPath, type[BaseModel] | None]:
    """Key path of a fault without the tags pydantic adds for variants, and the section its last key stands in."""
    path: list[str] = []
    options: list[type[BaseModel]] = [schema]
    section: type[BaseModel] | None = schema
    for part in loc:
        chosen = [variant for variant in options if _tag(variant) == part] if len(options) > 1 else []
        if chosen:
            options = chosen
            continue
        section = options[0] if len(options) == 1 else None
        path.append(str(part))
        known = section.model_fields.get(str(part)) if section else None
        options = variants(known.annotation) if known else []
    return tuple(path), section


def variants(annotation: Any) -> list[type[BaseModel]]:
    """The section classes that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [v for part in getattr(annotation, "__args__", ()) for v in variants(part)]


def _tag(variant: type[BaseModel]) -> str | None:
    kind = variant.model_fields.get("kind")
    return None if kind is None else str(kind.default)


def to_yaml(config: RunConfig) -> str:
    """The complete configuration as YAML; reading it back gives an equal configuration."""
    return dump(config.model_dump(mode="json"))


def check_stages(config: RunConfig, known: tuple[str, ...]) -> None:
    """Refuse settings of stages that a method does not have.

    Raises:
        InputError: an unknown stage.
    """
    unknown = [name for name in config.stages if name not in known]
    if unknown:
        hint = (
            f"its stages are {', '.join(known)}" if known else "it has no stages with settings of their own"
        )
        raise InputError(f"stages.{unknown[0]}: unknown stage of this method; {hint}.")


def stage_config(config: Config, stage: str) -> Config:
    """The configuration of one stage: the main one with the keys under ``stages.<stage>`` laid over it."""
    values = merge(config.model_dump(mode="json"), config.stages.get(stage, {}))
    return validate(Recipe(f"stage {stage}", {**values, "stages": {}}), type(config))
