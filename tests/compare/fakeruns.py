"""Runs that take no time: a queue whose runs are recorded with scores from a formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leanlabel import compare, methods
from leanlabel.compare.jobs import NOT_RECORDED, Job
from leanlabel.compare.queue import Queue
from leanlabel.engine.runfolder import JsonLines
from smallrun import overrides

SMALL = overrides(steps=4, data__nodes=60)
Score = Callable[[Job], float]


OWN = {"raw": 0.5, "untrained": 0.6}


def row(
    job: Job,
    value: float,
    *,
    validation: float | None = None,
    own: dict[str, float] = OWN,
    **changes: Any,
) -> dict[str, Any]:
    """A recorded run; its own raw and untrained readouts are fixed, and validation is as good as the test."""
    readouts = own | {job.config.evaluation.readout: value}
    details = [{"val_accuracy": value if validation is None else validation}]
    protocol = {
        "protocol": "logistic-l2",
        "metric": "accuracy",
        "selection": "by validation",
        "split": {"name": "random", "count": 2},
        "readouts": {name: {"mean": one, "std": 0.0, "details": details} for name, one in readouts.items()},
    }
    return {
        "key": job.key,
        "arm": job.arm,
        "seed": job.seed,
        "recipe": job.recipe.name,
        "readout": job.config.evaluation.readout,
        "fingerprint": "x",
        "steps": job.config.steps,
        "results": {"protocols": {"logistic-l2": protocol}, "training_seconds": 2.0 * job.config.steps},
        "seconds": 2.0 * job.config.steps + 3,
        "resumed": False,
        "config": job.config.model_dump(mode="json", exclude=NOT_RECORDED),
        "environment": {},
    } | changes


class Fake:
    """Stands in for training; what was run is in ``ran``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[Job] = []
        self.score: Score = lambda job: 0.7 + 0.01 * job.seed
        self.more: Callable[[Job], dict[str, Any]] = lambda job: {}
        known = methods.entry_points(group="leanlabel.methods")
        monkeypatch.setattr(
            methods, "entry_points", lambda group: known
        )  # looked up for every setting otherwise
        monkeypatch.setattr("leanlabel.compare.records.Ledger._fingerprint", lambda ledger, job: "x")
        monkeypatch.setattr(Queue, "_run", lambda queue, job: self.run(queue, job))

    def run(self, queue: Queue, job: Job) -> None:
        self.ran.append(job)
        lines = JsonLines(queue.ledger.file)
        lines.append(row(job, self.score(job), **self.more(job)))
        lines.close()

    def compare(
        self, out: Path, recipes: tuple[str, ...] = ("gca/generated",), **settings: Any
    ) -> dict[str, Any]:
        given = {"overrides": SMALL, "out": out, "quiet": True, **settings}
        return compare.run(recipes, **given)

    @property
    def titles(self) -> list[str]:
        return [job.title for job in self.ran]


def deviating(seed: int) -> float:
    """The same small noise for every arm, and a little of its own."""
    return [0.0, 0.02, -0.01, 0.03, -0.02][seed % 5]
