"""Recorded results stay valid: keys never change, and a row stands only for what it was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakeruns import SMALL, row

from leanlabel.compare.jobs import Job, plan
from leanlabel.compare.records import Ledger, holds, recorded
from leanlabel.engine.runfolder import read_lines
from leanlabel.methods.resolve import resolve
from leanlabel.recipe import Recipe
from smallrun import RECIPE

PROOFS = Path(__file__).parents[2] / "proofs"
FILES = sorted(PROOFS.glob("*/results.jsonl"))


@pytest.mark.parametrize("file", FILES, ids=[path.parent.name for path in FILES])
def test_reference_recorded_keys(file: Path) -> None:
    """The key of every recorded run follows from its recorded configuration, whatever keys were added since."""
    rows = read_lines(file)
    assert rows
    for one in rows:
        recipe = Recipe(one["recipe"], one["config"])
        job = Job(one["arm"], one["seed"], recipe, resolve(recipe))
        assert one["key"] in (job.key, job.twin), (one["arm"], one["seed"])
        assert holds(one, job)


def test_reference_packaged_recipe_is_done() -> None:
    """What the proof of GCA has recorded is found again by the command that asked for it."""
    found = recorded(PROOFS / "gca" / "results.jsonl")
    jobs = plan([RECIPE], seeds=5)
    assert [job.arm for job in jobs[:4]] == ["gca-generated", "raw", "untrained", "grace"]
    assert all(job.key in found and holds(found[job.key], job) for job in jobs)


def test_values_literal_keys() -> None:
    assert [job.key for job in plan([RECIPE], seeds=1)] == [
        "345e94016fdef7ed",
        "fbe643f80a3fb3a5",
        "c80b3631bef06952",
        "0ecb0cc85ca30533",
    ]


def test_values_engine_settings_do_not_hide_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a run is executed is no part of what it is, written in the recipe or not."""
    plain, threads, precise = (
        plan(["gca/cora"], seeds=1, baselines=False, overrides=change)[0]
        for change in ((), ("engine.threads=1", "engine.accelerator=cpu"), ("engine.precision=64-true",))
    )
    assert {plain.key, plain.twin} == {threads.key, threads.twin}
    assert plain.key != threads.key
    assert precise.key == precise.twin
    assert plain.identity == threads.identity != precise.identity
    monkeypatch.setattr(Ledger, "_fingerprint", lambda *_: None)
    (tmp_path / "r.jsonl").write_text(json.dumps(row(plain, 0.5)) + "\n")
    ledger = Ledger(tmp_path / "r.jsonl")
    assert [ledger.done(job) for job in (plain, threads, precise)] == [True, True, False]
    assert list(ledger.rows_of([threads])) == [threads.key]


def some() -> Job:
    return plan([RECIPE], seeds=1, overrides=SMALL, only=["grace"])[0]


def change(values: dict[str, Any], *path: str, to: Any) -> dict[str, Any]:
    copied = json.loads(json.dumps(values))
    section = copied
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = to
    return copied


def test_values_holds() -> None:
    """Every recorded key must have its value; keys that were added since do not matter, lost ones do."""
    job, one = some(), row(some(), 0.5)
    assert holds(one, job)
    assert not holds(change(one, "config", "optim", "lr", to=0.77), job)
    assert not holds(change(one, "config", "augment", "gone", to=1), job)
    older = change(one, "config", "augment", "cutoff", to=0)
    del older["config"]["augment"]["cutoff"]
    assert holds(older, job)


def test_values_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of other data is not this run; where the data is not at hand the row is believed."""
    job, file = some(), tmp_path / "results.jsonl"
    ledger = Ledger(file)
    assert not ledger.done(job)
    prints = iter(["x", "y", None])
    monkeypatch.setattr(Ledger, "_fingerprint", lambda *_: next(prints))
    file.write_text(json.dumps(row(job, 0.5)) + "\n")
    assert [ledger.done(job) for _ in range(3)] == [True, False, True]


def test_state_rows_are_read_again_when_the_file_grows(tmp_path: Path) -> None:
    job, file = some(), tmp_path / "results.jsonl"
    ledger = Ledger(file)
    file.write_text(json.dumps(row(job, 0.5)) + "\n")
    assert list(ledger.rows()) == [job.key]
    assert ledger.rows() is ledger.rows()
    with file.open("a") as lines:
        lines.write(json.dumps({**row(job, 0.5), "key": "other"}) + "\n")
        lines.write('{"key": "half')
    assert list(ledger.rows()) == [job.key, "other"]
    file.unlink()
    assert ledger.rows() == {}


def test_values_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stopped for good is remembered, for this data."""
    job, ledger = some(), Ledger(tmp_path / "r.jsonl", tmp_path / "stopped.jsonl")
    monkeypatch.setattr(Ledger, "_fingerprint", lambda *_: "x")
    assert ledger.stopped(job) is None
    ledger.note_stop(job, "not finite")
    assert ledger.stopped(job) == "not finite"
    assert Ledger(tmp_path / "r.jsonl").stopped(job) is None
    monkeypatch.setattr(Ledger, "_fingerprint", lambda *_: "y")
    assert ledger.stopped(job) is None
