"""One training from a built method to its weights in a run folder: data check, stages, loop, selection, notes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from leanlabel import dist
from leanlabel.config import RunConfig
from leanlabel.engine import checkpoint
from leanlabel.engine.fit import fit as run_loop
from leanlabel.engine.method import Method
from leanlabel.engine.pipeline import run_stage
from leanlabel.engine.runfolder import RunFolder, read_json, write_json
from leanlabel.engine.stage_training import TrainingStage, plan_of, take_selected, train_stage
from leanlabel.engine.transfer import offered, saw_labels
from leanlabel.errors import InputError

MOST_CLASSES = 20
"""Up to this many classes are named, one by one, before training."""


def train(
    folder: RunFolder,
    config: RunConfig,
    data: Any,
    method: Method,
    fabric: Fabric,
    *,
    quiet: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Go on with a run to its last iteration and write the weights that its selection rule names.

    Args:
        folder: of the run; its configuration is written.
        config: that configuration.
        data: read by the method.
        method: built from both; trained in place.
        fabric: started processes.
        quiet: no progress line.
        say: called with lines of text for the user.

    Raises:
        InputError: the data is not what the run was started on.
        RunError: the run could not go on; what was saved is intact.
    """
    summary = type(method).describe(config, data)
    check_data(folder, summary)
    if dist.is_main() and not folder.data.exists():
        write_json(folder.data, summary)
    _introduce(config, method, summary, say)
    trained = False
    method.to(fabric.device)
    if config.engine.precision == "64-true":
        method.double()
    for stage in method.stages(config, data):
        if isinstance(stage, TrainingStage):
            say(f"stage       {stage.name}: {stage.config.steps if stage.config else 0} iterations")
            place, computed = train_stage(stage, folder, shared_stages(folder), fabric, quiet=quiet)
            trained = True
        else:
            place, computed = run_stage(stage, shared_stages(folder), folder.stages)
        method.use_stage(stage.name, place)
        say(f"stage       {stage.name}: {'computed' if computed else 'taken from an earlier run'}")
    if trained and dist.is_main() and not folder.before.exists():
        before = method.handed_on()
        if before:
            checkpoint.save_tensors(folder.before, before, {"weights": "before"})
    run_loop(method, folder, plan_of(config, quiet=quiet), fabric)
    notes = method.notes()
    if dist.is_main():
        _keep_weights(folder, config, method)
        if notes or not folder.notes.exists():
            write_json(folder.notes, notes)


def check_data(folder: RunFolder, summary: dict[str, Any]) -> None:
    """Refuse data that is not what a run was started on.

    Raises:
        InputError: another fingerprint than the one in ``data.json``.
    """
    known = read_json(folder.data)
    if known is not None and known["fingerprint"] != summary["fingerprint"]:
        raise InputError(
            f"{folder.path}: the data is not what this run was started on (another fingerprint).",
            "Put the old data back, or start a new run.",
        )


def stage_root(run: Path, stages: str | Path | None) -> str:
    """Folder of shared stages as seen from the run folder: a resume may start in another working directory."""
    if stages is None:
        above = [folder for folder in run.parents if folder.name == "runs"]
        stages = (above[0] if above else run.parent) / "stages"
    try:
        return Path(os.path.relpath(stages, run)).as_posix()
    except ValueError:  # another drive
        return str(Path(stages).absolute())


def shared_stages(folder: RunFolder) -> Path:
    """Folder of shared stages of a run."""
    return folder.path / (read_json(folder.origin, {}).get("stages") or stage_root(folder.path, None))


def _introduce(config: Any, method: Method, summary: dict[str, Any], say: Callable[[str], None]) -> None:
    counts = ", ".join(f"{value:,} {name}" for name, value in summary["counts"].items())
    classes = _classes(summary["classes"])
    parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
    say(f"recipe      {config.about or config.method.name}")
    say(f"data        {summary['name']}: {counts}")
    say(f"classes     {classes}")
    say(f"model       {parameters:,} parameters")


def _classes(rows: list[dict[str, Any]]) -> str:
    """Names and sizes; of many classes their number, and sizes from smallest to largest."""
    if len(rows) <= MOST_CLASSES:
        return ", ".join(f"{row['name']}: {row['count']}" for row in rows) or "none"
    sizes = sorted(row["count"] for row in rows)
    each = str(sizes[0]) if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    return f"{len(rows)}, of {each} each"


def _keep_weights(folder: RunFolder, config: Any, method: Method) -> None:
    """Write the weights that the selection rule names: the last, or those of the best validation."""
    chosen = take_selected(method, folder, config)
    about = {
        "method": config.method.name,
        "weights": chosen,
        "parts": offered(type(method)),
        "supervised": saw_labels(folder, type(method)),
        "config": config.model_dump(mode="json"),
    }
    checkpoint.save_weights(folder.weights, method, about)
