"""Honest tuning: the same grid for every arm that trains, chosen by validation accuracy, never by test numbers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from leanlabel.compare.arms import takes
from leanlabel.compare.jobs import Job, Layout, comparable
from leanlabel.compare.records import Ledger, Row
from leanlabel.compare.request import Point, Request
from leanlabel.errors import InputError
from leanlabel.evaluation.protocols import PROTOCOLS
from leanlabel.methods.resolve import schema

CRITERION = "mean validation accuracy over splits, first maximum"


@dataclass(frozen=True)
class Tuning:
    """The part of a comparison that chooses settings.

    Attributes:
        layout: every arm at every point of the grid, with every seed.
        seeds: seeds that the points are tried with.
        kept: arm that is not tuned -> why.
    """

    layout: Layout
    seeds: tuple[int, ...]
    kept: dict[str, str]

    @classmethod
    def plan(cls, layout: Layout, request: Request) -> Tuning:
        """Tell which arms can be tuned.

        Raises:
            InputError: a key whose values cannot be compared by validation accuracy, a protocol without any, or a point
                at which nothing is trained.
        """
        for key in layout.points[0].texts:
            if key.split(".")[0] in ("evaluation", "data"):
                raise InputError(
                    f"--grid {key}: validation accuracy cannot choose how it is measured itself.",
                    "Use --dial to see the effect of data and protocol.",
                )
        kept = {}
        for arm in layout.arms:
            runs = layout.of(lambda job, arm=arm: job.arm == arm and job.seed == layout.seeds[0])
            if not any(job.trains for job in runs):
                kept[arm] = "does not train"
            elif not any(
                takes(schema(runs[0].recipe), key, runs[0].recipe.values) for key in layout.points[0].texts
            ):
                kept[arm] = "has none of these settings"
            elif len({job.key for job in runs}) == 1:
                kept[arm] = "fixes these settings itself"
            else:
                _check_choice(runs)
        return cls(layout, layout.seeds[: request.grid_seeds], kept)

    def jobs(self) -> list[Job]:
        """The runs that choose: seed by seed, point by point, each configuration once."""
        unique: dict[tuple[str, str], Job] = {}
        for job in self.layout.jobs:
            if job.seed in self.seeds and job.arm not in self.kept:
                unique.setdefault((job.arm, job.key), job)
        return list(unique.values())

    def final(self, chosen: dict[str, Point | None]) -> list[Job]:
        """The runs that count, of every arm whose setting is known: chosen, or not tuned at all."""
        jobs = [job for job in self.layout.plain if job.arm in self.kept]
        for job in self.layout.jobs:
            point = chosen.get(job.arm)
            if point is not None and job.point.label == point.label:
                jobs.append(job)
        order = list(self.layout.arms)
        jobs.sort(key=lambda job: (job.seed, order.index(job.arm)))
        comparable([job for job in jobs if job.seed == self.layout.seeds[0]])
        return jobs

    def chosen(self, ledger: Ledger) -> dict[str, Point | None]:
        """The chosen point of every tuned arm; None where runs are missing, or every point stopped.

        Raises:
            InputError: nothing was recorded that could choose.
        """
        return {arm: self._choose(arm, ledger) for arm in self._tuned()}

    def waiting(self, ledger: Ledger, chosen: dict[str, Point | None]) -> list[str]:
        """What is still to run before and after the choice of the arms that have none, in words."""
        told = [
            f"tuning {job.title}"
            for job in self.jobs()
            if not ledger.done(job) and ledger.stopped(job) is None
        ]
        seeds = f"{len(self.layout.seeds)} seed{'s' if len(self.layout.seeds) > 1 else ''}"
        return told + [f"{arm}, {seeds}, once its settings are chosen" for arm in self._open(chosen, ledger)]

    def hopeless(self, ledger: Ledger) -> dict[str, str]:
        """Arms of which every point stopped -> why the first one did. They have nothing to choose from."""
        found = {}
        for arm in self._tuned():
            scores = list(self._scores(arm, ledger).values())
            if isinstance(scores[0], str) and all(isinstance(one, str) for one in scores):
                found[arm] = scores[0]
        return found

    def stand_ins(self, chosen: dict[str, Point | None], ledger: Ledger) -> list[Job]:
        """The runs after the choice of arms that have none yet, at the first point of the grid; those of the tuning
        itself are not made again."""
        first, waiting = self.layout.points[0].label, self._open(chosen, ledger)
        return self.layout.of(
            lambda job: job.arm in waiting and job.point.label == first and job.seed not in self.seeds
        )

    def _open(self, chosen: dict[str, Point | None], ledger: Ledger) -> list[str]:
        hopeless = self.hopeless(ledger)
        return [arm for arm in self._tuned() if chosen.get(arm) is None and arm not in hopeless]

    def _choose(self, arm: str, ledger: Ledger) -> Point | None:
        scores = self._scores(arm, ledger)
        if any(one is None for one in scores.values()):
            return None
        left = {label: one for label, one in scores.items() if isinstance(one, float)}
        if not left:
            return None
        best = max(left, key=lambda label: left[label])  # the first of equal ones
        return next(point for point in self.layout.points if point.label == best)

    def _tuned(self) -> Iterable[str]:
        return (arm for arm in self.layout.arms if arm not in self.kept)

    def _at(self, arm: str, label: str) -> list[Job]:
        return self.layout.of(
            lambda job: job.arm == arm and job.point.label == label and job.seed in self.seeds
        )

    def _scores(self, arm: str, ledger: Ledger) -> dict[str, float | str | None]:
        """Point -> mean score over its seeds, why it stopped, or None where a run is missing."""
        found: dict[str, float | str | None] = {}
        for point in self.layout.points:
            jobs = self._at(arm, point.label)
            reasons = [reason for job in jobs if (reason := ledger.stopped(job))]
            rows = ledger.rows_of(jobs)
            if reasons:
                found[point.label] = reasons[0]
            elif all(job.key in rows for job in jobs):
                found[point.label] = statistics.fmean(validation(rows[job.key]) for job in jobs)
            else:
                found[point.label] = None
        return found

    def table(self, ledger: Ledger, chosen: dict[str, Point | None]) -> dict[str, Any]:
        """What the comparison says about the tuning.

        Returns:
            "criterion", "keys", "seeds", "finished", and "arms": "arm", "runs" (tried configurations × seeds),
            "chosen" (label), "settings" (key -> value), "why" (where it is not tuned), "stopped" (why, where every
            point did), "points" of "label", "score" and "stopped".
        """
        arms, hopeless = [], self.hopeless(ledger)
        for arm in self.layout.arms:
            scores = {} if arm in self.kept else self._scores(arm, ledger)
            point = chosen.get(arm)
            arms.append(
                {
                    "arm": arm,
                    "runs": sum(job.arm == arm for job in self.jobs()),
                    "chosen": point and point.label,
                    "settings": dict(point.values) if point else {},
                    "why": self.kept.get(arm),
                    "stopped": hopeless.get(arm),
                    "points": [
                        {
                            "label": label,
                            "score": one if isinstance(one, float) else None,
                            "stopped": one if isinstance(one, str) else None,
                        }
                        for label, one in scores.items()
                    ],
                }
            )
        return {
            "criterion": CRITERION,
            "keys": list(self.layout.points[0].texts),
            "seeds": list(self.seeds),
            "finished": not self._open(chosen, ledger),
            "arms": arms,
        }


def _check_choice(runs: Sequence[Job]) -> None:
    """Refuse a choice that could only fail after its runs.

    Args:
        runs: of one arm, at every point.
    """
    for job in runs:
        if not job.trains:
            raise InputError(
                f"--grid {', '.join(f'{key}={text}' for key, text in job.point.texts.items())}: {job.arm} would not "
                "train at this point.",
                "A network without training is an arm of its own (untrained), not a setting; leave steps=0 out.",
            )
        name = job.config.evaluation.protocol
        if name == "none" or (name in PROTOCOLS and not PROTOCOLS[name].needs_splits):
            raise InputError(
                f"--grid: protocol {name} of {job.arm} records no validation accuracy, so it cannot choose.",
                "Choose another with --set evaluation.protocol=logistic-l2.",
            )


def validation(row: Row) -> float:
    """Mean validation accuracy of a recorded run, by its protocol and readout.

    Raises:
        InputError: the protocol records none.
    """
    protocol = row["results"]["protocols"].get(row["config"]["evaluation"]["protocol"], {})
    details = protocol.get("readouts", {}).get(row["readout"], {}).get("details", [])
    found = [one["val_accuracy"] for one in details if one.get("val_accuracy") is not None]
    if not found:
        raise InputError(
            f"--grid: protocol {row['config']['evaluation']['protocol']} records no validation accuracy.",
            "Choose another with --set evaluation.protocol=logistic-l2.",
        )
    return statistics.fmean(found)
