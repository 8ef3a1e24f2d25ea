"""The queue of a comparison: what is not done yet, one run after another, then the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from leanlabel import api, dist
from leanlabel.compare import costs
from leanlabel.compare.jobs import Job, Layout, lay_out
from leanlabel.compare.lock import locked
from leanlabel.compare.records import Ledger, record
from leanlabel.compare.request import PLAIN, Request, dial_points, grid_points
from leanlabel.compare.summary import Stop, main_value, summarise, write_page
from leanlabel.compare.table import write_tables
from leanlabel.compare.tuning import Tuning
from leanlabel.engine.runfolder import RunFolder, safe_name, write_json
from leanlabel.errors import InputError, RunError
from leanlabel.recipe import read_recipe

Tell = Callable[[str], None] | None


def run(
    recipes: Request | Iterable[str],
    *,
    out: Path | None = None,
    results: Path | None = None,
    minutes: float | None = None,
    quiet: bool = False,
    tell: Tell = None,
    **settings: Any,
) -> dict[str, Any]:
    """Run what is not done yet, record it, and return the comparison.

    Args:
        recipes: names of packaged recipes or files, or a whole :class:`Request`.
        out: folder of runs and page; None makes ``runs/compare/<first recipe>``, with ``-`` for ``/``. One comparison
            at a time works in it.
        results: file of recorded results; None means ``<out>/results.jsonl``.
        minutes: start no new run after this time.
        quiet: no progress lines.
        tell: called with lines of text for the user.
        settings: fields of :class:`Request`: seeds, data, overrides, only, baselines, variants, grid, dial, and so on.

    Returns:
        The comparison, as written to ``<out>/comparison.json``, and "report", the path of its page.

    Raises:
        InputError: a mistake in a recipe, an option or the recorded results, or another comparison in this folder;
            nothing is run then.
    """
    request, layout, tuning = _prepare(recipes, settings)
    out = out or folder_of(request)
    queue = Queue(out, _ledger(out, results), minutes, quiet, tell)
    queue.ledger.rows()  # damage is told before a folder is made
    with locked(out):
        return _run(queue, request, layout, tuning)


def _run(queue: Queue, request: Request, layout: Layout, tuning: Tuning | None) -> dict[str, Any]:
    for name, kept in layout.same.items():
        queue.say(f"{name} is the same as {kept} and runs once.")
    try:
        _work(queue, layout, tuning)
    except (RunError, KeyboardInterrupt):
        if dist.is_main():
            with suppress(InputError, RunError):  # the table of what is done, where there can be one
                _write(queue, request, layout, tuning)
        raise
    return _write(queue, request, layout, tuning)


def _work(queue: Queue, layout: Layout, tuning: Tuning | None) -> None:
    """Choose settings where that was asked for, then run what counts."""
    if tuning is None:
        queue.work(layout.jobs)
    elif queue.work(tuning.jobs(), tuning=True):
        queue.work(tuning.final(dist.broadcast_object(tuning.chosen(queue.ledger))))


def _write(queue: Queue, request: Request, layout: Layout, tuning: Tuning | None) -> dict[str, Any]:
    """The comparison as it is now, its tables and its page."""
    jobs, told, waiting, stops = list(layout.jobs), None, [], []
    if tuning is not None:
        chosen = tuning.chosen(queue.ledger)
        jobs, waiting = tuning.final(chosen), tuning.waiting(queue.ledger, chosen)
        told = tuning.table(queue.ledger, chosen)
        stops = [
            Stop(arm, "", f"{arm}, every setting of the grid", reason)
            for arm, reason in tuning.hopeless(queue.ledger).items()
        ]
    rows = queue.ledger.rows_of(jobs)
    for job in jobs:
        reason = None if job.key in rows else queue.ledger.stopped(job)
        stops += [] if reason is None else [Stop(job.arm, job.key, job.title, reason)]
    comparison = summarise(
        layout, jobs, rows, request, queue.out, tuning=told, open_runs=waiting, stops=stops
    )
    if dist.is_main():
        write_json(queue.out / "comparison.json", comparison)
        write_tables(queue.out, comparison)
        comparison["report"] = str(write_page(queue.out))
    return comparison


def preview(
    recipes: Request | Iterable[str],
    *,
    out: Path | None = None,
    results: Path | None = None,
    minutes: float | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What :func:`run` with the same arguments would do, and how long it may take; nothing is written.

    Returns:
        As :func:`leanlabel.compare.costs.preview`.

    Raises:
        InputError: as :func:`run`.
    """
    request, layout, tuning = _prepare(recipes, settings)
    out = out or folder_of(request)
    ledger = _ledger(out, results)
    if tuning is None:
        return costs.preview(layout.jobs, ledger, minutes)
    chosen = tuning.chosen(ledger)
    return costs.preview(
        [*tuning.jobs(), *tuning.final(chosen)], ledger, minutes, later=tuning.stand_ins(chosen, ledger)
    )


def folder_of(request: Request) -> Path:
    """Where a comparison goes that was given no folder: recipes of one name of two methods do not share it."""
    return Path("runs") / "compare" / safe_name(read_recipe(request.recipes[0]).name)


def _prepare(
    recipes: Request | Iterable[str], settings: dict[str, Any]
) -> tuple[Request, Layout, Tuning | None]:
    if not isinstance(recipes, Request):
        recipes = Request((recipes,) if isinstance(recipes, str) else tuple(recipes), **settings)
    points = grid_points(recipes.grid) if recipes.grid else [PLAIN]
    points = dial_points(recipes.dial) if recipes.dial else points
    layout = lay_out(recipes, points)
    return recipes, layout, Tuning.plan(layout, recipes) if recipes.grid else None


def _ledger(out: Path, results: Path | None) -> Ledger:
    return Ledger(results or out / "results.jsonl", out / "stopped.jsonl")


def diverged(error: RunError) -> str | None:
    """Why a run can never be finished with its settings; None for every other error.

    Example:
        >>> diverged(RunError("Iteration 1: loss is not finite, the run was stopped.")) is None
        False
        >>> diverged(RunError("x.ckpt: could not be written.")) is None
        True
    """
    return error.message if "is not finite" in error.message else None


class Queue:
    """Runs jobs one after another within a time, and records each.

    Attributes:
        out: folder of the runs.
        ledger: what is done.
        minutes: start no new run after this time; None for no end.
        quiet: no progress lines.
        tell: called with lines of text for the user.
    """

    def __init__(
        self, out: Path, ledger: Ledger, minutes: float | None = None, quiet: bool = False, tell: Tell = None
    ) -> None:
        self.out, self.ledger, self.minutes, self.quiet, self.tell = out, ledger, minutes, quiet, tell
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """One line for the user, from one process."""
        if self.tell is not None and dist.is_main():
            self.tell(text)

    def work(self, jobs: Sequence[Job], tuning: bool = False) -> bool:
        """Run what is not done; False when the time was over before the end.

        A run whose numbers leave what floats can hold is noted and not tried again as long as it is the same run; the
        others go on.

        Args:
            jobs: in order.
            tuning: these runs choose settings.
        """
        for position, job in enumerate(jobs):
            known = self.ledger.done(job) or self.ledger.stopped(job) is not None
            if dist.broadcast_object(known):
                continue
            if dist.broadcast_object(self._late()):
                self.say(f"Stopped after {self.minutes:g} minutes; the same command goes on.")
                return False
            self.say(f"\n[{position + 1}/{len(jobs)}] {'tuning ' if tuning else ''}{job.title}")
            try:
                self._run(job)
            except RunError as error:
                reason = diverged(error)
                if reason is None:
                    raise
                self.say(f"stopped     {reason}")
                if dist.is_main():
                    self.ledger.note_stop(job, reason)
                dist.barrier()
        return True

    def _late(self) -> bool:
        return self.minutes is not None and (time.monotonic() - self.began) / 60 >= self.minutes

    def _run(self, job: Job) -> None:
        """Fit, or resume what an earlier call left; record."""
        folder, start = self.ledger.folder(job, self.out), time.monotonic()
        resumed = dist.broadcast_object(RunFolder(folder).exists())
        if resumed:
            finished = api.resume(folder, quiet=self.quiet, tell=self.tell)
        else:
            stages = self.out / "stages"
            finished = api.fit(job.recipe, run=folder, stages=stages, quiet=self.quiet, tell=self.tell)
        if dist.is_main():
            record(self.ledger.file, job, finished, time.monotonic() - start, resumed)
        dist.barrier()
        # That there is nothing to compare is said after the first run, not after hours.
        main_value(self.ledger.rows()[job.key])
