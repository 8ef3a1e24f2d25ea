"""Typed settings: recipes in, one frozen and complete configuration out, every mistake reported at once.

A recipe is a YAML file. ``base: other/recipe`` starts from another recipe; ``--set a.b=c`` changes single keys.
YAML is read by the rules of version 1.2 where they differ in a way that bites: ``1e-5`` is a number, ``010``
is ten, ``no``, ``1:30`` and dates are words, and a key that appears twice is an error.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leanlabel.errors import InputError

Path_ = tuple[str, ...]
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
    schedule: Literal["constant", "cosine", "poly"] = "constant"
    """Course of the learning rate after warm-up; poly has power 0.9."""
    warmup: int = Field(default=0, ge=0)
    """Iterations of linear warm-up."""
    clip: float | None = Field(default=None, gt=0)
    """Largest global gradient norm; null for no clipping."""


class EngineSettings(Settings):
    """Where and how a run is executed. Nothing here changes what is computed, up to rounding."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
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
    on rows as they are; none: no labels are read."""
    split: Literal["auto", "public", "random"] = "auto"
    """The data's own split, random ones, or the data's where it has one."""
    splits: int = Field(default=4, ge=1)
    """Number of random splits."""
    shares: tuple[float, float, float] = (0.1, 0.1, 0.8)
    """Shares of the labelled rows for training, validation and test in random splits."""
    probe_epochs: int = Field(default=3000, ge=1)
    """Epochs of the linear probe."""
    readout: str = "trained"
    """Which readout stands for this run in a comparison: trained, untrained, raw."""
    select: Literal["last", "best_val"] = "last"
    """Which weights are kept: the last ones, or those of the best validation score."""
    every: int = Field(default=20, ge=1)
    """Iterations between validations, where select is best_val."""


class RunConfig(Settings):
    """The keys that every configuration has; a method adds its own sections."""

    about: str = ""
    """One line on what this recipe is."""
    task: str = ""
    """Kind of job: graph, ssl, segmentation, adapt, semi, classify-adapt, volumes, text."""
    fidelity: Literal["official", "paper", "corrected", "small"] = "corrected"
    """official: the authors' code; paper: the paper's text; corrected: known faults mended; small: fits two cores."""
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
    stages: dict[str, dict[str, Any]] = {}
    """Stage name -> keys that differ from the main configuration in this stage."""


# ---------------------------------------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """Safe YAML with the 1.2 rules for numbers and booleans."""


_OTHER_IN_1_2 = {f"tag:yaml.org,2002:{kind}" for kind in ("float", "bool", "int", "timestamp", "value")}
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in _OTHER_IN_1_2]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    list("-+0123456789"),
)
_Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda _, node: int(node.value, {"0o": 8, "0x": 16}.get(node.value[:2], 10)),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF")
)


@dataclass
class Recipe:
    """Raw keys of a recipe with where each came from.

    Attributes:
        name: name for run folders, such as ``gca/cora``.
        values: nested plain data.
        origins: key path -> "file, line n" or the ``--set`` text.
    """

    name: str
    values: dict[str, Any]
    origins: dict[Path_, str] = field(default_factory=dict)


def packaged_recipes() -> dict[str, Path]:
    """Names and files of all recipes that ship with the package, found at any depth."""
    root = Path(str(resources.files("leanlabel") / "recipes"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def read_recipe(source: str | Path, *, _seen: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by packaged name or file path and merge it over its ``base``.

    Raises:
        InputError: unknown name (with the nearest), unreadable or malformed YAML (with line), circular base.
    """
    path, name = _find(str(source))
    here = str(path.resolve())
    if here in _seen:
        raise InputError(f"{path}: the recipe is its own base ({' -> '.join([*_seen, here])}).")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    values, lines = _parse(text, path)
    recipe = Recipe(name, values, {key: f"{path}, line {line}" for key, line in lines.items()})
    base = values.pop("base", None)  # merged in here: a complete configuration stands alone
    if base is None:
        return recipe
    if not isinstance(base, str):
        raise InputError(f"{path}: base must be the name or path of a recipe, got {base!r}.")
    beside = path.parent / base
    parent = read_recipe(beside if beside.is_file() else base, _seen=(*_seen, here))
    return Recipe(name, merge(parent.values, values), {**parent.origins, **recipe.origins})


def _find(source: str) -> tuple[Path, str]:
    path = Path(source)
    try:
        present, folder = path.exists(), path.is_dir()
    except (OSError, ValueError):  # a name that the system does not take: too long, with a null character
        present, folder = False, False
    if path.suffix in (".yaml", ".yml") or (present and not folder):
        if folder or not present:
            raise InputError(
                f"{path}: no such recipe file.", "List the packaged ones with `leanlabel recipes`."
            )
        return path, path.stem
    known = packaged_recipes()
    if source in known:
        return known[source], source
    near = difflib.get_close_matches(source, known, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]!r}?" if near else "List them with `leanlabel recipes`."
    raise InputError(f"Unknown recipe {source!r}: neither a file nor a packaged recipe.", hint)


def _parse(text: str, path: Path | str) -> tuple[dict[str, Any], dict[Path_, int]]:
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)  # _Loader is a SafeLoader
        json.dumps(values, default=str)  # refuses sections that contain themselves
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)}).") from error
    except (ValueError, TypeError, RecursionError) as error:  # such as an integer of 5,000 digits
        raise InputError(f"{path}: not valid YAML ({error}).") from error
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}: a recipe is a mapping of keys to values, found {type(values).__name__}.")
    lines: dict[Path_, int] = {}
    _walk(node, (), lines, path)
    return values, lines


def _walk(node: yaml.Node, prefix: Path_, lines: dict[Path_, int], path: Path | str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*prefix, str(key.value))
        if here in lines:
            raise InputError(
                f"{path}, line {key.start_mark.line + 1}: the key {'.'.join(here)} appears twice "
                f"(first in line {lines[here]})."
            )
        lines[here] = key.start_mark.line + 1
        _walk(value, here, lines, path)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mapping ``below`` with the keys of ``above`` laid over it, section by section."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        replace = not (isinstance(old, dict) and isinstance(value, dict)) or _other_kind(old, value)
        result[key] = value if replace else merge(old, value)  # type: ignore[arg-type]
    return result


def _other_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether ``new`` chooses another variant of a section: then nothing of the old variant is kept."""
    return any(key in new and key in old and new[key] != old[key] for key in ("kind",))


def override(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """Recipe with ``a.b=c`` assignments applied; values are read as YAML scalars or lists.

    Raises:
        InputError: every malformed assignment, in one message.
    """
    values, origins, faults = recipe.values, dict(recipe.origins), []
    for text in assignments:
        key, equals, value = text.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            faults.append(f"--set {text!r}: write it as key.path=value, for example --set optim.lr=0.01.")
            continue
        try:
            parsed: Any = yaml.load(value, Loader=_Loader)
            json.dumps(parsed, default=str)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError):
            faults.append(f"--set {text!r}: {value!r} is not a YAML value.")
            continue
        clash = _scalar_on_the_way(values, path)
        if clash:
            faults.append(f"--set {text!r}: {clash} is a value, not a section.")
            continue
        for part in reversed(path):
            parsed = {part: parsed}
        values = merge(values, parsed)
        origins[path] = f"--set {text}"
    if faults:
        raise InputError("\n".join(faults))
    return Recipe(recipe.name, values, origins)


def _scalar_on_the_way(values: Any, path: Path_) -> str | None:
    for depth, part in enumerate(path[:-1], start=1):
        values = values.get(part)
        if values is None:
            return None
        if not isinstance(values, dict):
            return ".".join(path[:depth])
    return None


# ------------------------------------------------------------------------------------------ validating

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
    if kind in ("too_long", "too_short"):
        limit = fault["ctx"].get("max_length", fault["ctx"].get("min_length"))
        expected = f"{limit} values"
    return f"{where}: {dotted}: expected {expected}, got {found!r}."


def _key_path(loc: tuple[Any, ...], schema: type[BaseModel]) -> tuple[Path_, type[BaseModel] | None]:
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


# -------------------------------------------------------------------------------------------- printing


class _Dumper(yaml.SafeDumper):
    """Block style for sections, flow style for short lists; numbers survive the way back."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers  # quote what the loader would misread
_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)
_Dumper.add_representer(
    float, lambda dumper, data: dumper.represent_scalar("tag:yaml.org,2002:float", _number(data))
)


def _number(value: float) -> str:
    text = repr(value)
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)


def to_yaml(config: RunConfig) -> str:
    """The complete configuration as YAML; reading it back gives an equal configuration."""
    return yaml.dump(
        config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )


def stage_config(config: Config, stage: str) -> Config:
    """The configuration of one stage: the main one with the keys under ``stages.<stage>`` laid over it."""
    values = merge(config.model_dump(mode="json"), config.stages.get(stage, {}))
    return validate(Recipe(f"stage {stage}", {**values, "stages": {}}), type(config))
