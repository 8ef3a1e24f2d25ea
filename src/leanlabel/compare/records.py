"""Recorded results: one line per finished run, and whether a line still stands for a run that is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leanlabel import api, methods
from leanlabel.compare.jobs import NOT_RECORDED, Job
from leanlabel.engine.runfolder import JsonLines, environment
from leanlabel.errors import InputError

Row = dict[str, Any]
Rows = dict[str, Row]


NEEDED = ("key", "seed", "recipe", "readout", "fingerprint", "steps", "results", "config")
"""What every recorded run has."""


def recorded(file: Path) -> Rows:
    """Finished runs by key.

    Raises:
        InputError: as :func:`read_rows`.
    """
    return {row["key"]: row for row in read_rows(file, NEEDED)}


def read_rows(file: Path, needed: Iterable[str]) -> list[Row]:
    """All lines of a file of records; only a last line that was not finished is left out.

    Raises:
        InputError: it cannot be read, or a line is no record (what follows it would be run again otherwise); names
            the line.
    """
    try:
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}).") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith(b"\n"):
            break  # a process was killed while it wrote
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        lacking = [key for key in needed if key not in row] if isinstance(row, dict) else []
        if not isinstance(row, dict) or lacking:
            why = f"it has no {lacking[0]!r}" if lacking else "not one JSON object"
            raise InputError(
                f"{file}, line {number}: no record of a run ({why}).",
                "Mend or remove this line (a mark of a merge?); nothing was changed.",
            )
        rows.append(row)
    return rows


def record(file: Path, job: Job, run: api.Run, seconds: float | None = None, resumed: bool = False) -> None:
    """Append one finished run; every protocol that was measured, with its per-split values.

    Args:
        file: where to.
        job: what was asked for.
        run: what came out.
        seconds: wall time of this call of fit or resume, evaluation and report included.
        resumed: an earlier call began the run, so that `seconds` is less than the whole.
    """
    lines = JsonLines(file)
    lines.append(
        {
            "key": job.key,
            "arm": job.arm,
            "role": job.role,
            "seed": job.seed,
            "recipe": job.recipe.name,
            "readout": run.config.evaluation.readout,
            "fingerprint": json.loads(run.folder.data.read_text(encoding="utf-8"))["fingerprint"],
            "steps": run.config.steps,
            "results": run.results,
            "seconds": None if seconds is None else round(seconds, 3),
            "resumed": resumed,
            "warnings": run.warnings,
            "config": run.config.model_dump(mode="json", exclude=NOT_RECORDED),
            "environment": environment(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
    )
    lines.close()


def holds(row: Row, job: Job) -> bool:
    """Whether a recorded run is this job's: every key that it recorded still has the value that it had."""
    now = job.config.model_dump(mode="json", exclude=NOT_RECORDED)
    return all(
        now.get(section) == _laid_over(now.get(section), value) for section, value in row["config"].items()
    )


def _laid_over(now: Any, then: Any) -> Any:
    """What was recorded, completed by keys that settings have gained since, also those of entries of a list."""
    if isinstance(now, dict) and isinstance(then, dict):
        return {**now, **{key: _laid_over(now.get(key), value) for key, value in then.items()}}
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [_laid_over(*pair) for pair in zip(now, then, strict=True)]
    return then


class Ledger:
    """Which runs are done: their rows, and the fingerprint of their data as it is now."""

    def __init__(self, file: Path, stopped: Path | None = None) -> None:
        self.file = file
        self._stopped = stopped
        self._prints: dict[str, str | None] = {}
        self._read: tuple[Any, Rows] = (None, {})

    def rows(self) -> Rows:
        """Finished runs by key, as they are in the file now."""
        state = self.file.stat() if self.file.exists() else None
        stamp = state and (state.st_mtime_ns, state.st_size)
        if stamp is None or stamp != self._read[0]:
            self._read = (stamp, recorded(self.file))
        return self._read[1]

    def done(self, job: Job) -> bool:
        """Whether a run was made with this configuration on this data."""
        return self._find(job) is not None

    def _find(self, job: Job) -> Row | None:
        for key in (job.key, job.twin):
            row = self.rows().get(key)
            if row is not None and holds(row, job) and self._fingerprint(job) in (row["fingerprint"], None):
                return row
        return None

    def rows_of(self, jobs: Iterable[Job]) -> Rows:
        """The recorded runs that still stand for these jobs."""
        return {job.key: row for job in jobs if (row := self._find(job)) is not None}

    def stopped(self, job: Job) -> str | None:
        """Why an earlier try of this run stopped for good; None where there was none, or a later one was finished."""
        if self._stopped is None or not self._stopped.exists() or self.done(job):
            return None
        for row in read_rows(self._stopped, ("key", "fingerprint", "reason")):
            if row["key"] == job.key and self._fingerprint(job) in (row["fingerprint"], None):
                return row["reason"]
        return None

    def note_stop(self, job: Job, reason: str) -> None:
        """Remember that a run stops for good, so that it is not tried again."""
        if self._stopped is not None:
            lines = JsonLines(self._stopped)
            found = self._fingerprint(job)
            lines.append({"key": job.key, "run": job.title, "fingerprint": found, "reason": reason})
            lines.close()

    def folder(self, job: Job, out: Path) -> Path:
        """Where a run lies or will lie; one of the same configuration on other data is left alone."""
        return job.folder(out, self._fingerprint(job))

    def _fingerprint(self, job: Job) -> str | None:
        """Read once for each way of reading; None where the data is not at hand: the record is believed then."""
        name = json.dumps(job.config.model_dump(mode="json").get("data"), sort_keys=True)
        if name not in self._prints:
            method = methods.find(job.recipe.values["method"]["name"])
            try:
                self._prints[name] = method.describe(job.config, method.read(job.config))["fingerprint"]
            except InputError:
                self._prints[name] = None
        return self._prints[name]
