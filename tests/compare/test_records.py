"""Recorded results stay valid: keys never change, and a row stands only for what it was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakeruns import SMALL, Fake, row

from leanlabel.compare.jobs import Job, plan
from leanlabel.compare.records import Ledger, holds, recorded
from leanlabel.config import to_yaml
from leanlabel.engine.runfolder import read_lines
from leanlabel.errors import InputError
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


@pytest.mark.parametrize(
    ("damage", "number", "why"),
    [
        ("<<<<<<< HEAD\n{0}{0}", 1, "not one JSON object"),
        ("{0}=======\n{0}", 2, "not one JSON object"),
        ("{0}[1]\n", 2, "not one JSON object"),
        ("{0}\n{0}", 2, "not one JSON object"),
        ('{0}{{"key": "x"}}\n', 2, "it has no 'seed'"),
    ],
)
def test_errors_damaged_line(
    damage: str, number: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged line is told with its number; nothing is run and nothing is written."""
    fake = Fake(monkeypatch)
    out = tmp_path / "out"
    out.mkdir()
    text = damage.format(json.dumps(row(some(), 0.5)) + "\n")
    (out / "results.jsonl").write_text(text)
    with pytest.raises(InputError, match=rf"results.jsonl, line {number}: no record of a run \({why}\)"):
        fake.compare(out, only=["grace"], seeds=1)
    assert fake.ran == []
    assert [path.name for path in out.iterdir()] == ["results.jsonl"]
    assert (out / "results.jsonl").read_text() == text


def test_values_folder_of_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on data that has changed since is left alone; one on the present data is found again."""
    job = some()
    plain = tmp_path / "grace" / "seed-0"
    for data, folder in (("old", plain), ("newer", plain.with_name(f"seed-0-{job.key}"))):
        assert job.folder(tmp_path, data) == folder
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml(job.config), encoding="utf-8")
        assert job.folder(tmp_path, data) == folder
        (folder / "data.json").write_text(json.dumps({"fingerprint": data}), encoding="utf-8")
        assert job.folder(tmp_path, data) == folder
    assert job.folder(tmp_path, "newest").name == f"seed-0-{job.key}-2"
    assert job.folder(tmp_path) == plain
    monkeypatch.setattr(Ledger, "_fingerprint", lambda *_: "newer")
    assert Ledger(tmp_path / "r.jsonl").folder(job, tmp_path).name == f"seed-0-{job.key}"


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
