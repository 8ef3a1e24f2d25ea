"""From a recipe to a finished run: resolve, read, train, evaluate, report. What the command line calls.

A run folder holds ``config.yaml`` (complete), ``run.json`` (recipe, place of shared stages), ``environment.json``,
``data.json`` (fingerprint and class counts), ``metrics.jsonl``, ``timing.jsonl``, ``checkpoints/``, ``stages/``,
``model.safetensors``, ``readout.safetensors`` (its classifier), ``splits.npz``, ``results.json``, ``warnings.json``,
``figures/`` and ``report.html``; one that started from other weights holds these as ``initial.safetensors``, one whose
earlier stages trained what they left as ``before.safetensors``.
"""

from __future__ import annotations

import difflib
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
from leanlabel.engine import checkpoint, readout
from leanlabel.engine.extend import apply_changes, check_changes, differences
from leanlabel.engine.fabric import make_fabric
from leanlabel.engine.measuring import measure
from leanlabel.engine.method import Method
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
from leanlabel.engine.training import check_data, stage_root, train
from leanlabel.engine.transfer import (
    KeyReport,
    Source,
    from_run,
    iterations_behind,
    keep_start,
    provenance,
    read_weights,
    recorded,
    run_of_checkpoint,
    run_source,
    start_from,
    trained_state,
)
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import Classifier
from leanlabel.export.reading import weights_file
from leanlabel.methods.resolve import resolve
from leanlabel.recipe import Recipe, packaged_recipes, read_recipe

Tell = Callable[[str], None] | None


class Run:
    """A run folder with the model in it, loaded when first asked for.

    Attributes:
        path: the folder.
        config: its complete configuration.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder.existing(path)
        self.path = self.folder.path
        self.config = resolve(_raw(self.folder))

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
        checkpoint.restore(method, trained_state(self.folder)[1], method.optional())
        return method.eval()

    def untrained(self) -> Method:
        """The method as its seed initialises it."""
        return build(self.config, self.data).eval()

    def initial(self) -> Method | None:
        """The method with the weights that training started from: those of its earlier stages, or of another run.

        None for a run from its seed.
        """
        if self.folder.before.exists():
            method = build(self.config, self.data)
            before = checkpoint.load_weights(self.folder.before)
            checkpoint.restore(method, {**checkpoint.state_of(method), **before})
            method.took(frozenset(before))
            return method.eval()
        if not self.folder.initial.exists():
            return None
        return _with_start(self.folder, build(self.config, self.data)).eval()

    @property
    def classifier(self) -> Classifier | None:
        """The run's classifier; None without labels, or with evaluation.protocol=none."""
        return self._classifier

    @cached_property
    def _classifier(self) -> Classifier | None:
        found = readout.read(self.folder.readout)  # there since the run was evaluated, but for older runs
        return readout.classifier_of(self.method, self.data) if found is None else found

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the columns of `predict`; empty without labels."""
        return [] if self.classifier is None else list(self.classifier.classes)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the model comes from, as predictions and exports say it."""
        return provenance(self.folder, self.config, _method_class(self.config))

    @property
    def iterations(self) -> int:
        """Iterations behind the present weights."""
        return iterations_behind(self.folder, self.config)

    def embed(self, data: Any = None) -> Tensor:
        """Embeddings (N, d), float32, on the CPU: of the run's own data, or of other data in the same form."""
        method = self.method
        with torch.no_grad():
            return method.embed(self.data if data is None else data).cpu()

    def open(self, path: str) -> Any:
        """Other data for this model, read as its own was."""
        return _method_class(self.config).open(self.config, path)

    def predict(self, data: Any = None) -> Tensor:
        """Class probabilities (N, C), on the CPU: of the run's own data, or of other data in the same form."""
        if self.classifier is None:
            raise InputError(
                f"{self.path}: this run has no labels (or evaluation.protocol=none), so it cannot name classes.",
                f"Take its embeddings: leanlabel embed {self.path} --out embeddings.npy.",
            )
        return self.classifier.probabilities(self.embed(data))

    @property
    def prototypes(self) -> tuple[list[str], Tensor, Tensor]:
        """Names (K) of the classes, their prototypes (K, D), and what is behind each (K,), of a run with masks.

        See `leanlabel.methods.nearest_prototype.own_prototypes`.
        """
        own = self._prototypes
        return own.names, own.values, own.counts

    @cached_property
    def _prototypes(self) -> Any:
        from leanlabel.methods.nearest_prototype import own_prototypes

        return own_prototypes(self.method)

    def by_prototype(
        self, support: Iterable[tuple[Tensor, Tensor]] = (), *, support_only: bool = False
    ) -> Any:
        """What names the class of the nearest prototype, through ``segment`` and ``read_batch`` as the method has them.

        Args:
            support: labelled images (C, h, w) and masks (h, w) of classes, 255 for none; the prototypes of classes that
                they have are taken from them.
            support_only: leave the other classes out, in place of taking their prototypes from the run.
        """
        from leanlabel.methods import nearest_prototype as by

        own = self._prototypes if not support_only and by.has_own(self.method) else None
        return by.nearest_prototype(self.method, list(support), support_only=support_only, own=own)

    def nearest_prototype(
        self, images: Tensor, support: Iterable[tuple[Tensor, Tensor]] = (), *, support_only: bool = False
    ) -> Any:
        """Classes (B, h, w) uint8 and confidence of images (B, C, h, w), by :meth:`by_prototype`."""
        return self.by_prototype(support, support_only=support_only).segment_all(images)

    def export(self, form: str, out: str | Path, *, force: bool = False, keys: str = "own") -> dict[str, Any]:
        """Write the model for use elsewhere; see `leanlabel.export.writing.write`."""
        from leanlabel.export.writing import Model, write

        told = self.provenance
        measured = self.results.get("protocols", {}).get("miou", {})
        if "trained" in measured.get("readouts", {}):
            miou, part = measured["readouts"]["trained"]["mean"], measured["split"]["name"]
            told = {**told, "expected": {"miou": miou, "part": part}}
        model = Model(self.method.exported(), self.classifier, told)
        return write(model, form, Path(out), data=self.data, force=force, keys=keys)

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
    source: str | Path | None = None,
    part: str | None = None,
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
        source: run, export or file of weights to start from; None starts from the seed.
        part: take only this part of the source, such as "backbone"; None takes every tensor that fits.
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
    started = _start(method, source, part)
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
        origin: dict[str, Any] = {"recipe": raw.name, "stages": stage_root(folder.path, stages)}
        if started is not None:
            keep_start(folder.initial, method)
            origin["from"] = recorded(started[0], str(source), part, started[1])
        write_json(folder.origin, origin)
        write_text(folder.config, to_yaml(config))
    dist.barrier()
    if started is not None and tell is not None and dist.is_main():
        tell("\n".join([f"from        {source}", *started[1].lines()]))
    return _continue(folder, config, content, method, fabric, quiet=quiet, tell=tell)


def resume(run: str | Path, *, overrides: Iterable[str] = (), quiet: bool = False, tell: Tell = None) -> Run:
    """Go on with a run from its newest checkpoint (or from the start, if it has none).

    Args:
        run: folder of the run.
        overrides: changes to a started run: ``steps=N`` trains it longer; ``engine.*`` and ``evaluation.*`` say where
            it is executed and how it is measured.
        quiet, tell: as for :func:`fit`.

    Raises:
        InputError: not a run folder, its data changed since, or a change that a started run cannot have.
    """
    found = Run(run)
    folder, config = found.folder, resolve(_raw(found.folder), overrides)
    kind = _method_class(config)
    changed = check_changes(folder, found.config, config, kind.fixed)
    content = kind.read(config)
    method = _with_start(folder, build(config, content))
    if changed:
        check_data(folder, kind.describe(config, content))
    fabric = make_fabric(config.engine)
    dist.barrier()  # every process has read the old configuration
    if changed and dist.is_main():
        apply_changes(folder, changed, to_yaml(config))
        for text in differences(kind, found.config, config):
            if tell is not None:
                tell(f"note        {text}: a run of that length from the start differs")
    dist.barrier()
    return _continue(folder, config, content, method, fabric, quiet=quiet, tell=tell)


def _raw(folder: RunFolder) -> Recipe:
    return replace(read_recipe(folder.config), name=str(folder.config))


def _start(method: Method, place: str | Path | None, part: str | None) -> tuple[Source, KeyReport] | None:
    """Put the weights of a run, an export or a file into a new method; nothing where none is named."""
    if place is None:
        if part is not None:
            raise InputError(f"--part {part}: of what?", "Name a run, an export or a file with --from.")
        return None
    path = Path(place)
    if is_run(path):
        found = run_source(RunFolder(path), _method_class(Run(path).config))
    else:
        found = read_weights(weights_file(path))
        home = run_of_checkpoint(path)
        if home is not None:
            found = from_run(found, home, _method_class(Run(home.path).config))
    return found, start_from(method, found, part)


def _with_start(folder: RunFolder, method: Method) -> Method:
    """The method with the weights that its run started from, where these are not those of its seed."""
    if folder.initial.exists():
        checkpoint.restore(method, checkpoint.load_weights(folder.initial))
    return method


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


def is_run(place: str | Path) -> bool:
    """Whether there is a run folder at this place."""
    return RunFolder(place).exists()


def build(config: RunConfig, data: Any) -> Method:
    """The method of a configuration, initialised by its seed (the same on every rank)."""
    rng.reseed(config.seed, 2**32 - 1, 0)
    return _method_class(config)(config, data)


def _method_class(config: Any) -> type[Method]:
    return methods.find(config.method.name)


def _continue(
    folder: RunFolder, config: Any, data: Any, method: Method, fabric: Any, *, quiet: bool, tell: Tell
) -> Run:
    """Everything after the configuration stands; Ctrl-C outside the training loop says how to go on, too."""
    say = tell if tell is not None and dist.is_main() else lambda _: None
    try:
        train(folder, config, data, method, fabric, quiet=quiet, say=say)
        run = Run(folder.path)
        run.data = data
        if dist.is_main():
            with dist.alone():  # the others wait below
                _evaluate(run, None)
        dist.barrier()
    except KeyboardInterrupt as stop:
        hint = f"Go on with `leanlabel resume {folder.path}`."
        raise Interrupted("Stopped; what was finished before is saved.", hint) from stop
    return run


def evaluate(run: str | Path | Run, protocol: str | None = None) -> dict[str, Any]:
    """Measure a run by a named protocol beside its baselines; add it to ``results.json`` and renew the report.

    Raises:
        InputError: not a run folder, nothing trained yet, unknown protocol (names the known ones).
    """
    return _evaluate(run if isinstance(run, Run) else Run(run), protocol)


def _evaluate(run: Run, protocol: str | None) -> dict[str, Any]:
    from leanlabel.report.run import write_report

    results = measure(
        run.folder,
        run.method,
        run.data,
        untrained=run.untrained(),
        initial=run.initial(),
        protocol=protocol,
        iterations=run.iterations,
    )
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
    """Findings about a place of data (a graph, images), or about the data of a recipe.

    Returns:
        Rows of severity (info, warning, error), code, count and message.

    Raises:
        InputError: no such place or recipe, or data of another kind.
    """
    from leanlabel.data.checks import check_place, check_source, is_here

    if what in packaged_recipes() or Path(what).suffix in (".yaml", ".yml"):
        found = check_source(getattr(resolve(what), "data", None))
    else:
        near = difflib.get_close_matches(what, packaged_recipes(), n=1)
        if near and not is_here(what):
            raise InputError(f"{what}: neither data nor a recipe.", f"Did you mean {near[0]!r}?")
        found = check_place(what)
    return [asdict(finding) for finding in found]
