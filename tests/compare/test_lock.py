"""Two comparisons in one folder: the second is told, a dead one is succeeded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakeruns import Fake

from leanlabel.compare import lock
from leanlabel.compare.lock import NAME, locked
from leanlabel.errors import InputError
from smallrun import RECIPE, cli, options


def dead() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_values(tmp_path: Path) -> None:
    """Held by this process and told to everybody else; gone at the end, also of a failure."""
    out = tmp_path / "new"
    with locked(out):
        found = json.loads((out / NAME).read_text(encoding="utf-8"))
        assert found.keys() == {"pid", "started"}
        assert found["pid"] == os.getpid()
        with (
            pytest.raises(InputError, match=f"another comparison .process {os.getpid()}, since"),
            locked(out),
        ):
            pass
        assert (out / NAME).exists()
    assert not out.exists()  # nothing was run, so nothing stays
    out.mkdir()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), locked(out):
            raise error
        assert list(out.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": "x"}', '{"pid": -1}', None, "own"])
def test_degenerate_left_behind(content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that nobody can hold any more is taken over."""
    monkeypatch.setattr(lock, "HALF_WRITTEN", 0.0)
    if content in (None, "own"):
        content = json.dumps({"pid": dead() if content is None else os.getpid(), "started": "then"})
    (tmp_path / NAME).write_text(content, encoding="utf-8")
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_state_a_new_lock_is_not_taken_for_the_stale_one(tmp_path: Path) -> None:
    """What another process made after we looked stays."""
    (tmp_path / NAME).write_text("new", encoding="utf-8")
    lock._remove(tmp_path / NAME, "old")
    assert (tmp_path / NAME).read_text(encoding="utf-8") == "new"


def test_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first of several processes takes it: the others work beside it."""
    with locked(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with locked(tmp_path):
            pass
        assert (tmp_path / NAME).exists()


def test_errors_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    sleeper = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        held = {"pid": sleeper.pid, "started": "2026-01-01 00:00:00"}
        (tmp_path / NAME).write_text(json.dumps(held), encoding="utf-8")
        answer = cli("compare", RECIPE, "--seeds", "1", "--out", tmp_path, *options())
        assert answer.code == 2
        assert f"{NAME}: another comparison (process {sleeper.pid}, since 2026-01-01 00:00:00)" in answer.err
        assert "give another --out" in answer.err
        assert fake.ran == []
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
    finally:
        sleeper.communicate()
    assert cli("compare", RECIPE, "--seeds", "1", "--out", tmp_path, *options()).code == 0
    assert not (tmp_path / NAME).exists()
