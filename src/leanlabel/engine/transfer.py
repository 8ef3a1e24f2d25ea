"""Starting from the weights of another run or library: which tensors fit, which go where, what was left out."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanlabel.config import RunConfig
from leanlabel.engine import checkpoint
from leanlabel.engine.method import Method
from leanlabel.engine.runfolder import RunFolder, read_json
from leanlabel.errors import InputError
from leanlabel.models import public_keys
from leanlabel.recipe import read_recipe

FIRST_NAMES = 3
"""How many names of each kind a report for people shows."""


@dataclass(frozen=True)
class Source:
    """Weights to start from.

    Attributes:
        path: file they came from.
        tensors: name -> tensor.
        parts: part -> the module of the source that holds it; "" where the file is that module.
        supervised: labels of rows went into them.
    """

    path: Path
    tensors: dict[str, Tensor]
    parts: dict[str, str] = field(default_factory=dict)
    supervised: bool = False

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        with open(self.path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()


@dataclass(frozen=True)
class KeyReport:
    """What became of every tensor.

    Attributes:
        taken: tensors of the model that were filled.
        missing: tensors of the model (of the part) that the source does not have.
        left: tensors of the source that the model has no place for.
        shape: tensors of both whose shapes differ.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    left: tuple[str, ...]
    shape: tuple[str, ...]

    def lines(self) -> list[str]:
        """One line per kind of outcome, with the first names."""
        told = {
            "taken": self.taken,
            "missing in the source": self.missing,
            "left over in the source": self.left,
            "of another shape": self.shape,
        }
        return [f"{len(names):>5} {what}{_first(names)}" for what, names in told.items()]

    def as_dict(self) -> dict[str, list[str]]:
        """Plain data for JSON."""
        return {name: list(getattr(self, name)) for name in ("taken", "missing", "left", "shape")}


def _first(names: tuple[str, ...]) -> str:
    more = ", …" if len(names) > FIRST_NAMES else ""
    return f": {', '.join(names[:FIRST_NAMES])}{more}" if names else ""


def read_weights(path: Path) -> Source:
    """Weights of a safetensors file, of a checkpoint of this library, or of a plain torch file of tensors.

    No code from the file runs: torch files are read with ``weights_only``.

    Raises:
        InputError: no such file, or not readable as one of the three.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such run, export or file of weights.",
            "Give the folder of a run or of an export, a .safetensors file or a torch checkpoint.",
        )
    if path.suffix == ".safetensors":
        tensors, about = checkpoint.load_tensors(path)
        parts = about.get("parts")
        known = parts if isinstance(parts, dict) else {}
        modules = {str(name): str(module) for name, module in known.items()}
        return Source(path, tensors, modules, about.get("supervised") is True)
    return Source(path, _torch_file(path))


def _torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file: a checkpoint's method, a state dict, or a state dict under a usual key."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as a file of tensors ({reason}).",
            "Give a .safetensors file, or a torch file of plain tensors.",
        ) from error
    for key in ("method", "state_dict", "model"):
        inner = content.get(key) if isinstance(content, dict) else None
        if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in inner.values()):
            content = inner
            break
    pairs = content.items() if isinstance(content, dict) else ()
    tensors = {str(name): value for name, value in pairs if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path}: holds no tensors by name.", "Give a .safetensors file or a state dict.")
    return tensors


def start_from(method: Method, source: Source, part: str | None = None) -> KeyReport:
    """Put the weights of a source into a newly built method, where names and shapes fit.

    Args:
        method: its tensors are overwritten; untouched if this raises.
        source: the weights.
        part: only the modules that ``method.parts`` lists under this name, also from a file with the names that
            torchvision, timm, MoCo, transformers or Detectron2 give to a residual network, SegFormer's authors or
            transformers to a Mix Transformer; None means every tensor whose name and shape are in both.

    Raises:
        InputError: no such part (names the known ones), or not one tensor of more than one number fits.
    """
    own = method.state_dict(keep_vars=True)
    if part is None:
        pairs, unused = _whole(own, source)
    else:
        source, pairs, unused = _part(method, own, source, part)
    fitting = {mine: theirs for mine, theirs in pairs.items() if theirs in source.tensors}
    shape = tuple(mine for mine, theirs in fitting.items() if own[mine].shape != source.tensors[theirs].shape)
    taken = tuple(mine for mine in fitting if mine not in shape)
    report = KeyReport(taken, tuple(mine for mine in pairs if mine not in fitting), unused, shape)
    if not any(own[mine].numel() > 1 for mine in taken):
        raise InputError(_nothing(report, own, source), _hint(report, method, part))
    with torch.no_grad():
        for mine in taken:
            own[mine].copy_(source.tensors[fitting[mine]])
    method.took(frozenset(taken))
    return report


def _whole(own: Mapping[str, Tensor], source: Source) -> tuple[dict[str, str], tuple[str, ...]]:
    """Every tensor by its own name: which of the source's belongs to which of the model's, and which to none."""
    pairs = {name: name for name in own}
    return pairs, tuple(name for name in source.tensors if name not in own)


def _part(
    method: Method, own: Mapping[str, Tensor], source: Source, part: str
) -> tuple[Source, dict[str, str], tuple[str, ...]]:
    """The same for the modules of one part, by the names inside these modules; and the source with the names meant.

    Where not one name is the same, the source may be a backbone under the names of another library.
    """
    patterns = method.parts.get(part)
    if patterns is None:
        known = ", ".join(method.parts) or "none"
        raise InputError(
            f"--part {part}: this method has no part of that name.",
            f"Its parts: {known}; or leave --part out.",
        )
    homes = _homes(own, patterns)
    pairs, unused = _named(homes, source, source.parts.get(part))
    if any(name in source.tensors for name in pairs.values()):
        return source, pairs, unused
    found = _published(homes, source)
    if found is None:
        return source, pairs, unused
    renamed = replace(source, tensors=found.tensors)
    pairs, unused = _named(homes, renamed, "")
    # Counters of batches, which some libraries do not keep, change nothing in what is computed.
    pairs = {
        mine: theirs
        for mine, theirs in pairs.items()
        if theirs in found.tensors or not mine.endswith("num_batches_tracked")
    }
    return renamed, pairs, (*unused, *found.dropped)


def _named(
    homes: Mapping[str, list[str]], source: Source, given: str | None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Which tensor of the source belongs to which of the modules, and which to none.

    Args:
        homes: module of the model -> names inside it.
        source: the weights.
        given: the module of the source that holds the part; None: the same as in the model.
    """
    pairs: dict[str, str] = {}
    for module, names in homes.items():
        prefix = _prefix(given if given is not None else module, source.tensors)
        pairs |= {f"{module}.{name}": f"{prefix}{name}" for name in names}
    wanted = set(pairs.values())
    inside = given if given is not None else next(iter(homes), "")
    start = _prefix(inside, source.tensors)
    unused = (name for name in source.tensors if name.startswith(start) and name not in wanted)
    return pairs, tuple(unused)


def _published(homes: Mapping[str, list[str]], source: Source) -> public_keys.Renamed | None:
    """The source under the names used here; None where the model has none of those that are known elsewhere.

    Raises:
        InputError: no known layout, or another network than a plain one.
    """
    names = {name for inside in homes.values() for name in inside}
    if not public_keys.has_layouts(names):
        return None
    try:
        return public_keys.to_own(source.tensors, names)
    except InputError as error:
        raise InputError(f"{source.path}: {error.message}", error.suggestion) from error


def _prefix(module: str, tensors: Mapping[str, Tensor]) -> str:
    """What the names of a module's tensors start with; nothing where the file holds just that module."""
    prefix = f"{module}." if module else ""
    return prefix if any(name.startswith(prefix) for name in tensors) else ""


def _homes(own: Mapping[str, Tensor], patterns: tuple[str, ...]) -> dict[str, list[str]]:
    """Module -> names of its tensors inside it, for every module that a pattern names."""
    homes: dict[str, list[str]] = {}
    for pattern in patterns:
        depth = pattern.count(".") + 1
        for name in own:
            steps = name.split(".")
            matches = zip(steps[:depth], pattern.split("."), strict=False)
            if len(steps) > depth and all(fnmatch.fnmatchcase(step, one) for step, one in matches):
                homes.setdefault(".".join(steps[:depth]), []).append(".".join(steps[depth:]))
    return homes


def _nothing(report: KeyReport, own: Mapping[str, Tensor], source: Source) -> str:
    if report.shape:
        name = report.shape[0]
        return f"{source.path}: no tensor fits the model; {name} must be {tuple(own[name].shape)} there."
    return f"{source.path}: no tensor fits the model; it holds{_first(tuple(source.tensors)).lstrip(':')}."


def _hint(report: KeyReport, method: Method, part: str | None) -> str:
    if report.shape:
        return "Give both the same model settings and data with the same features."
    if part is None and method.parts:
        return f"Name what it holds: --part {' or '.join(method.parts)}."
    return f"The model's tensors are{_first(tuple(method.state_dict())).lstrip(':')}."


def trained_state(run: RunFolder) -> tuple[Path, dict[str, Tensor]]:
    """The weights of a run, with their file: the final ones, or those of its newest checkpoint.

    Raises:
        InputError: nothing is trained yet.
    """
    if run.weights.exists():
        return run.weights, checkpoint.load_weights(run.weights)
    paths = checkpoint.saved(run.checkpoints)
    if not paths:
        raise InputError(f"{run.path}: nothing is trained yet.", f"Go on with `leanlabel resume {run.path}`.")
    return paths[-1], checkpoint.load(paths[-1]).method


def iterations_behind(run: RunFolder, cfg: RunConfig) -> int:
    """Iterations behind the present weights of a run; 0 where nothing is trained."""
    best = run.checkpoints / "best.ckpt"
    if run.weights.exists() and cfg.evaluation.select != "last" and best.exists():
        return checkpoint.load(best).t
    if run.weights.exists():
        return cfg.steps
    found = checkpoint.latest(run.checkpoints)
    return 0 if found is None else found.t


def provenance(run: RunFolder, cfg: RunConfig, kind: type[Method]) -> dict[str, Any]:
    """Where the model of a run comes from, as predictions and exports say it."""
    data = read_json(run.data, {})
    return {
        "recipe": read_json(run.origin, {}).get("recipe"),
        "method": cfg.model_dump(mode="json")["method"]["name"],
        "supervised": saw_labels(run, kind),
        "seed": cfg.seed,
        "iterations": iterations_behind(run, cfg),
        "weights": cfg.evaluation.select,
        "data": {key: data.get(key) for key in ("name", "fingerprint", "counts")},
    }


def saw_labels(run: RunFolder, kind: type[Method]) -> bool:
    """Whether labels of rows went into the weights of a run: by its method, or before in what it started from."""
    return kind.sees_labels(read_recipe(run.config).values) or started_supervised(run)


def started_supervised(run: RunFolder) -> bool:
    """Whether the weights that a run started from were trained with labels."""
    return bool(read_json(run.origin, {}).get("from", {}).get("supervised"))


def run_source(run: RunFolder, kind: type[Method]) -> Source:
    """The weights of a run to start from."""
    return Source(*trained_state(run), offered(kind), saw_labels(run, kind))


def run_of_checkpoint(path: Path) -> RunFolder | None:
    """The run that a checkpoint file lies in; None for any other file."""
    run = RunFolder(path.absolute().parent.parent)
    return run if path.absolute().parent == run.checkpoints and run.exists() else None


def from_run(source: Source, run: RunFolder, kind: type[Method]) -> Source:
    """A source with what is known about the run that its file lies in."""
    return replace(source, supervised=saw_labels(run, kind))


def keep_start(path: Path, method: nn.Module) -> None:
    """Write the weights that training starts from, so that a resume does not need their source."""
    checkpoint.save_weights(path, method, {"weights": "initial"})


def recorded(source: Source, given: str, part: str | None, report: KeyReport) -> dict[str, Any]:
    """What ``run.json`` keeps of a start."""
    plain = {
        "source": given,
        "sha256": source.sha256,
        "part": part,
        "supervised": source.supervised,
        "report": report.as_dict(),
    }
    return json.loads(json.dumps(plain))


def offered(kind: type[Method]) -> dict[str, str]:
    """Part -> the module that it is taken from, of the trained models of a method."""
    return {part: kind.sources.get(part, modules[0]) for part, modules in kind.parts.items()}
