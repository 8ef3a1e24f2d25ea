"""Stages that train: a warm-up or a first round, computed once and shared between all runs that need the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric

from leanlabel import dist
from leanlabel.config import RunConfig, to_yaml
from leanlabel.engine import checkpoint
from leanlabel.engine.fit import Plan
from leanlabel.engine.fit import fit as run_loop
from leanlabel.engine.method import Method
from leanlabel.engine.pipeline import DONE, Stage, run_stage
from leanlabel.engine.runfolder import RunFolder, read_json, write_json, write_text
from leanlabel.engine.stop import Interrupted
from leanlabel.errors import RunError

WEIGHTS = "model.safetensors"
"""What a training stage leaves in its folder: what its method holds at the end."""


@dataclass(frozen=True)
class TrainingStage(Stage):
    """A stage that trains a method of its own, on all processes; ``run`` is not used.

    Attributes:
        config: its complete configuration.
        build: makes the method, with the weights that it starts from.
    """

    config: RunConfig | None = None
    build: Callable[[], Method] | None = None


def plan_of(config: RunConfig, *, quiet: bool = False) -> Plan:
    """What the loop needs of a configuration."""
    return Plan(
        steps=config.steps,
        seed=config.seed,
        optim=config.optim,
        engine=config.engine,
        validate_every=config.evaluation.every if config.evaluation.select != "last" else 0,
        quiet=quiet,
    )


def take_selected(method: Method, folder: RunFolder, config: RunConfig) -> str:
    """Bring the weights that the selection rule names into a trained method, and let it finish them; say which."""
    best, chosen = folder.checkpoints / "best.ckpt", "last"
    if config.evaluation.select != "last" and best.exists():
        found = checkpoint.load(best)
        checkpoint.restore(method, found.method)
        chosen = f"iteration {found.t}, best validation"
    method.finish()
    return chosen


def train_stage(
    stage: TrainingStage, run: RunFolder, shared: Path, fabric: Fabric, *, quiet: bool = False
) -> tuple[Path, bool]:
    """Make sure a training stage is done; return its folder and whether it was computed now.

    It trains in ``stages/<name>`` of the run, where it goes on from its newest checkpoint after a stop; what it leaves
    (weights, metrics, configuration) is then put into ``shared/<hash>``, and the checkpoints are dropped.

    Raises:
        RunError: the loop stopped, or a folder could not be written.
        Interrupted: after Ctrl-C or SIGTERM; nothing is lost.
    """
    assert stage.config is not None
    assert stage.build is not None
    config, build = stage.config, stage.build
    work = RunFolder(run.stages / stage.name)
    if dist.broadcast_object((shared / stage.key / DONE).exists()):
        if dist.is_main():
            shutil.rmtree(work.path, ignore_errors=True)  # of a kill after it was done
        return run_stage(stage, shared, run.stages)
    if dist.is_main():
        known = work.path / "key.json"
        if work.path.exists() and read_json(known) != stage.key:
            shutil.rmtree(work.path)  # of other settings, or another version
        write_json(known, stage.key)
    dist.barrier()
    method = build()
    try:
        run_loop(method, work, plan_of(config, quiet=quiet), fabric)
    except Interrupted as stop:
        told = f"Stage {stage.name}: {stop.message[:1].lower()}{stop.message[1:]}"
        raise Interrupted(told, f"Go on with `leanlabel resume {run.path}`.") from stop

    def keep(folder: Path) -> None:
        chosen = take_selected(method, work, config)
        about = {"method": "stage", "stage": stage.name, "weights": chosen, "notes": method.notes()}
        checkpoint.save_tensors(folder / WEIGHTS, {**method.handed_on(), **method.carried()}, about)
        write_text(folder / "config.yaml", to_yaml(config))
        for file in (work.metrics, work.timing):
            if file.exists():
                shutil.copyfile(file, folder / file.name)

    done = Stage(stage.name, stage.inputs, keep)
    if done.key != stage.key:
        raise RunError(f"stage {stage.name}: its key changed while it was computed.")
    place, _ = run_stage(done, shared, run.stages)
    if dist.is_main():
        shutil.rmtree(work.path, ignore_errors=True)
    dist.barrier()
    return place, True
