"""A recipe so small that a whole run takes about a second, graph files to break, and the command line in-process."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanlabel import api, dist
from leanlabel.cli import main
from leanlabel.engine.fit import Plan, fit, make_fabric
from leanlabel.engine.runfolder import RunFolder
from leanlabel.methods import find

RECIPE = "gca/generated"
SMALL: dict[str, Any] = {
    "steps": 6,
    "data.nodes": 80,
    "data.draws": 300,
    "data.noise_words": 60,
    "model.width": 16,
    "model.projection": 16,
    "evaluation.splits": 2,
    "engine.accelerator": "cpu",
    "engine.threads": 1,
    "engine.loggers": "[]",
    "engine.checkpoint_every": 2,
}


def overrides(**changes: Any) -> list[str]:
    """Assignments of the small run; ``optim__lr=0.1`` stands for ``optim.lr=0.1``."""
    values = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in values.items()]


def options(**changes: Any) -> list[str]:
    """The same as ``--set`` options."""
    return [part for text in overrides(**changes) for part in ("--set", text)]


def file_options(**changes: Any) -> list[str]:
    """The same for a run on a graph file, which has no settings of a generated graph."""
    kept = {key: value for key, value in SMALL.items() if not key.startswith("data.")}
    values = kept | {key.replace("__", "."): value for key, value in changes.items()}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@dataclass(frozen=True)
class Answer:
    """What a call of the command line left behind."""

    code: int
    out: str
    err: str


def cli(*arguments: object) -> Answer:
    """``leanlabel ARGUMENTS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = "did not exit"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = leave.code
    return Answer(0 if code is None else code, out.getvalue(), err.getvalue())


def arrays(nodes: int = 60, classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """A sound graph in the layout of an .npz file: classes are visible in edges and features."""
    numbers = np.random.default_rng(seed)
    y = np.arange(nodes) % classes
    same = numbers.integers(0, nodes // classes, (2, 4 * nodes)) * classes + numbers.integers(
        0, classes, 4 * nodes
    )
    x = (numbers.random((nodes, 12)) < 0.2).astype(np.float32)
    x[np.arange(nodes), y] = 1
    return {"x": x, "edge_index": np.concatenate([same, same[::-1]], 1).astype(np.int64), "y": y}


def graph_file(path: Path, **changes: np.ndarray | None) -> Path:
    """Write the sound graph with some arrays replaced; None leaves an array out."""
    content = {key: value for key, value in (arrays() | changes).items() if value is not None}
    np.savez(path, allow_pickle=True, **content)
    return path


def train(folder: Path, cfg: Any, steps: int | None = None, method: Any = None) -> Any:
    """The method of a configuration, trained; up to iteration ``steps`` of the schedule if given, as a kill would
    leave it. ``method`` is one that is built already."""
    method = method or api.build(cfg, find(cfg.method.name).read(cfg))
    if steps is not None:
        step = method.step

        def guarded(t: int, batch: Any) -> None:
            if t >= steps:
                raise KeyboardInterrupt
            step(t, batch)

        method.step = guarded  # type: ignore[method-assign]
    plan = Plan(cfg.steps, cfg.seed, cfg.optim, cfg.engine, quiet=True)
    try:
        fit(method, RunFolder(folder), plan, make_fabric(cfg.engine))
    except KeyboardInterrupt:
        assert steps is not None
    return method


def as_rank(port: int) -> None:
    """In a worker of the pool: let the engine start as one of two processes of a group that is there already."""
    rank = str(dist.rank())
    os.environ.update(dict.fromkeys(("RANK", "LOCAL_RANK"), rank))
    os.environ.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"))
    os.environ.update({"TORCHELASTIC_RUN_ID": "pool", "GROUP_RANK": "0"})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
