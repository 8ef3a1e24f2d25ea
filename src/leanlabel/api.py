"""From a recipe to a finished run: resolve, read, train, evaluate, report. What the command line calls.

A run folder holds ``config.yaml`` (complete), ``run.json`` (recipe, place of shared stages), ``environment.json``,
``data.json`` (fingerprint and class counts), ``metrics.jsonl``, ``timing.jsonl``, ``checkpoints/``, ``stages/``,
``model.safetensors``, ``splits.npz``, ``results.json``, ``warnings.json``, ``figures/`` and ``report.html``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanlabel import dist, methods, rng
from leanlabel.config import RunConfig, to_yaml
from leanlabel.data.rows import check_ending, write_rows
from leanlabel.engine import checkpoint
from leanlabel.engine.fabric import make_fabric
from leanlabel.engine.fit import Plan
from leanlabel.engine.fit import fit as run_loop
from leanlabel.engine.method import Method
from leanlabel.engine.pipeline import run_stage
from leanlabel.engine.runfolder import (
    RunFolder,
    default_run,
    environment,
    read_json,
    read_lines,
    write_json,
    write_text,
)
from leanlabel.engine.stop import Interrupted
from leanlabel.errors import InputError
from leanlabel.methods.resolve import resolve
from leanlabel.recipe import Recipe, packaged_recipes, read_recipe

Tell = Callable[[str], None] | None


# -------------------------------------------------------------------------------------------------- runs


class Run:
    """A run folder with the model in it, loaded when first asked for.

    Attributes:
        path: the folder.
        config: its complete configuration.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder.existing(path)
        self.path = self.folder.path
        self.config = resolve(replace(read_recipe(self.folder.config), name=str(self.folder.config)))

    @property
    def results(self) -> dict[str, Any]:
        """What ``evaluate`` measured, as in ``results.json``; empty before."""
        return read_json(self.folder.results, {})

    @property
    def warnings(self) -> list[str]:
        """What the run wants its user to know."""
        return read_json(self.folder.warnings, [])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of ``metrics.jsonl``."""
        return read_lines(self.folder.metrics)

    @cached_property
    def data(self) -> Any:
        """The data the run was trained on, read again."""
        return _method_class(self.config).read(self.config)

    @cached_property
    def method(self) -> Method:
        """The trained method: final weights, or those of the newest checkpoint of an unfinished run."""
        method = build(self.config, self.data)
        checkpoint.restore(method, self._state)
        return method.eval()

    def untrained(self) -> Method:
        """The method as it was initialised."""
        return build(self.config, self.data).eval()

    @property
    def iterations(self) -> int:
        """Iterations behind the present weights."""
        best = self.folder.checkpoints / "best.ckpt"
        if self.folder.weights.exists() and self.config.evaluation.select != "last" and best.exists():
            return checkpoint.load(best).t
        if self.folder.weights.exists():
            return self.config.steps
        found = checkpoint.latest(self.folder.checkpoints)
        return 0 if found is None else found.t

    @property
    def _state(self) -> dict[str, Tensor]:
        if self.folder.weights.exists():
            return checkpoint.load_weights(self.folder.weights)
        found = checkpoint.latest(self.folder.checkpoints)
        if found is None:
            raise InputError(
                f"{self.path}: nothing is trained yet.", f"Go on with `leanlabel resume {self.path}`."
            )
        return found.method

    def embed(self, data: Any = None) -> Tensor:
        """Embeddings (N, d), float32, on the CPU: of the run's own data, or of other data in the same form."""
        method = self.method
        with torch.no_grad():
            return method.embed(self.data if data is None else data).cpu()

    def evaluate(self, protocol: str | None = None) -> dict[str, Any]:
        """Measure by a named protocol (the recipe's by default); see :func:`evaluate`."""
        return _evaluate(self, protocol)


def fit(
    recipe: str | Path | Recipe,
    *,
    data: str | Path | Iterable[str | Path] | None = None,
    run: str | Path | None = None,
    overrides: Iterable[str] = (),
    stages: str | Path | None = None,
    quiet: bool = False,
    tell: Tell = None,
) -> Run:
    """Train a recipe, evaluate it beside its baselines, write a report.

    Args:
        recipe: name of a packaged recipe, a YAML file, or raw keys.
        data: place of the data; None takes the recipe's.
        run: folder of the run; None makes ``runs/<recipe>/<date-time>``.
        overrides: ``key.path=value`` assignments.
        stages: folder of shared stages; None puts them beside the runs.
        quiet: no progress line.
        tell: called with lines of text for the user.

    Raises:
        InputError: a mistake in recipe, data or folder; nothing is written then.
        RunError: the run could not go on; what was saved is intact.
    """
    raw = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    paths = (
        [] if data is None else [str(data)] if isinstance(data, str | Path) else [str(one) for one in data]
    )
    config = resolve(raw, overrides, paths)
    content = _method_class(config).read(config)
    method = build(config, content)  # before anything is written: a network may refuse its settings
    fabric = make_fabric(config.engine)
    folder = RunFolder(dist.broadcast_object(str(run if run is not None else default_run(raw.name))))
    if dist.any_true(folder.exists()):
        raise InputError(
            f"{folder.path}: there is a run in this folder already.",
            f"Go on with `leanlabel resume {folder.path}`, or give another --run.",
        )
    dist.barrier()
    if dist.is_main():
        _make(folder.path)
        write_json(folder.environment, environment())
        write_json(folder.origin, {"recipe": raw.name, "stages": _stage_root(folder.path, stages)})
        write_text(folder.config, to_yaml(config))
    dist.barrier()
    return _continue(folder, config, content, method, fabric, quiet=quiet, tell=tell)


def resume(run: str | Path, *, quiet: bool = False, tell: Tell = None) -> Run:
    """Go on with a run from its newest checkpoint (or from the start, if it has none).

    Raises:
        InputError: not a run folder, or its data changed since.
    """
    found = Run(run)
    method = build(found.config, found.data)
    fabric = make_fabric(found.config.engine)
    return _continue(found.folder, found.config, found.data, method, fabric, quiet=quiet, tell=tell)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: this folder cannot be made ({error.strerror or error}).", "Give another --run."
        ) from error


def load(run: str | Path) -> Run:
    """A run folder as an object: ``.config``, ``.results``, ``.method``, ``.embed()``, ``.evaluate()``."""
    return Run(run)


def build(config: RunConfig, data: Any) -> Method:
    """The method of a configuration, initialised by its seed (the same on every rank)."""
    rng.reseed(config.seed, 2**32 - 1, 0)
    return _method_class(config)(config, data)


def _method_class(config: Any) -> type[Method]:
    return methods.find(config.method.name)


def _stage_root(run: Path, stages: str | Path | None) -> str:
    """Folder of shared stages as seen from the run folder: a resume may start in another working directory."""
    if stages is None:
        above = [folder for folder in run.parents if folder.name == "runs"]
        stages = (above[0] if above else run.parent) / "stages"
    try:
        return Path(os.path.relpath(stages, run)).as_posix()
    except ValueError:  # another drive
        return str(Path(stages).absolute())


def _continue(
    folder: RunFolder, config: Any, data: Any, method: Method, fabric: Any, *, quiet: bool, tell: Tell
) -> Run:
    """Everything after the configuration stands; Ctrl-C outside the training loop says how to go on, too."""
    try:
        return _run(folder, config, data, method, fabric, quiet=quiet, tell=tell)
    except KeyboardInterrupt as stop:
        hint = f"Go on with `leanlabel resume {folder.path}`."
        raise Interrupted("Stopped; what was finished before is saved.", hint) from stop


def _run(
    folder: RunFolder, config: Any, data: Any, method: Method, fabric: Any, *, quiet: bool, tell: Tell
) -> Run:
    """Stages, training, weights, evaluation, report."""
    say = tell if tell is not None and dist.is_main() else lambda _: None
    kind = _method_class(config)
    summary = kind.describe(config, data)
    known = read_json(folder.data)
    if known is not None and known["fingerprint"] != summary["fingerprint"]:
        raise InputError(
            f"{folder.path}: the data is not what this run was started on (another fingerprint).",
            "Put the old data back, or start a new run.",
        )
    if dist.is_main() and known is None:
        write_json(folder.data, summary)
    _introduce(config, summary, say)
    say(f"model       {sum(p.numel() for p in method.parameters() if p.requires_grad):,} parameters")
    root = folder.path / (read_json(folder.origin, {}).get("stages") or _stage_root(folder.path, None))
    for stage in kind.stages(config, data):
        place, computed = run_stage(stage, root, folder.stages)
        method.use_stage(stage.name, place)
        say(f"stage       {stage.name}: {'computed' if computed else 'taken from an earlier run'}")
    plan = Plan(
        steps=config.steps,
        seed=config.seed,
        optim=config.optim,
        engine=config.engine,
        validate_every=config.evaluation.every if config.evaluation.select != "last" else 0,
        quiet=quiet,
    )
    run_loop(method, folder, plan, fabric)
    _finish(folder, config, method)
    notes = method.notes()
    if dist.is_main() and (notes or not folder.notes.exists()):
        write_json(folder.notes, notes)
    run = Run(folder.path)
    run.data = data
    if dist.is_main():
        _evaluate(run, None)
    dist.barrier()
    return run


def _introduce(config: Any, summary: dict[str, Any], say: Callable[[str], None]) -> None:
    counts = ", ".join(f"{value:,} {name}" for name, value in summary["counts"].items())
    classes = ", ".join(f"{row['name']}: {row['count']}" for row in summary["classes"]) or "none"
    say(f"recipe      {config.about or config.method.name}")
    say(f"data        {summary['name']}: {counts}")
    say(f"classes     {classes}")


def _finish(folder: RunFolder, config: Any, method: Method) -> None:
    """Write the weights that the selection rule names: the last, or those of the best validation."""
    if not dist.is_main():
        return
    best = folder.checkpoints / "best.ckpt"
    chosen = "last"
    if config.evaluation.select != "last" and best.exists():
        found = checkpoint.load(best)
        checkpoint.restore(method, found.method)
        chosen = f"iteration {found.t}, best validation"
    about = {
        "method": config.method.name,
        "weights": chosen,
        "config": config.model_dump(mode="json"),
    }
    checkpoint.save_weights(folder.weights, method, about)


# -------------------------------------------------------------------------------------------- evaluation


def evaluate(run: str | Path | Run, protocol: str | None = None) -> dict[str, Any]:
    """Measure a run by a named protocol beside its baselines; add it to ``results.json`` and renew the report.

    Raises:
        InputError: not a run folder, nothing trained yet, unknown protocol (names the known ones).
    """
    return _evaluate(run if isinstance(run, Run) else Run(run), protocol)


def _evaluate(run: Run, protocol: str | None) -> dict[str, Any]:
    from leanlabel.report.run import write_report

    method = run.method
    measured = method.evaluate(run.data, run.untrained(), protocol, run.folder.splits)
    results = run.results or {"protocols": {}}
    if measured["protocol"] is not None:
        found = {**measured["protocol"], "warnings": measured["warnings"]}
        results["protocols"][found["protocol"]] = found
    warnings = [text for one in results["protocols"].values() for text in one["warnings"]]
    timing = read_lines(run.folder.timing)
    results |= {
        "monitors": measured["monitors"],
        "weights": run.config.evaluation.select,
        "t": run.iterations,
        "training_seconds": round(sum(row["seconds"] * row.get("iterations", 1) for row in timing), 3),
        "parameters": sum(p.numel() for p in method.parameters()),
    }
    write_json(run.folder.results, results)
    noted = read_json(run.folder.notes, [])
    write_json(run.folder.warnings, list(dict.fromkeys([*noted, *warnings, *measured["warnings"]])))
    if measured["figure"] is not None:
        write_json(run.folder.figures / "embedding.json", measured["figure"])
    write_report(run.folder)
    return results


def embed(run: str | Path, data: str | None, out: Path) -> tuple[int, int]:
    """Write embeddings to ``out`` (.npy, or .parquet with ids); return rows and width.

    Raises:
        InputError: another ending, an unwritable place, data that does not fit the model.
    """
    check_ending(out)
    found = Run(run)
    method = found.method
    content = found.data if data is None else method.open(found.config, data)
    with torch.no_grad():
        z = method.embed(content).cpu()
    write_rows(out, z.numpy(), getattr(content, "ids", None))
    return z.shape[0], z.shape[1]


def check(what: str) -> list[dict[str, Any]]:
    """Findings about a place of data, or about the data of a recipe.

    Returns:
        Rows of severity (info, warning, error), code, count and message.
    """
    from leanlabel.data.graph_check import check_graph
    from leanlabel.data.graph_source import find, open_graph

    is_recipe = what in packaged_recipes() or Path(what).suffix in (".yaml", ".yml")
    config: Any = resolve(what) if is_recipe else None
    near = difflib.get_close_matches(what, packaged_recipes(), n=1)
    if not is_recipe and near and not Path(what).exists():
        raise InputError(f"{what}: neither data nor a recipe.", f"Did you mean {near[0]!r}?")
    source = open_graph(config.data) if is_recipe else find(what)
    return [asdict(finding) for finding in check_graph(source)]
