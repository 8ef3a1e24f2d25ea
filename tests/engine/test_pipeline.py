"""Stages: named by a hash of what they depend on, computed once, shared, and never half there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leanlabel import dist
from leanlabel.engine.pipeline import DONE, Stage, run_stage
from leanlabel.errors import RunError


class Work:
    """A stage's function that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "result.txt").write_text(f"call {self.calls}")


def stage(work: Any, **inputs: Any) -> Stage:
    return Stage("warm", {"lr": 0.1, **inputs}, work)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_values_of_keys() -> None:
    """The key is that of name and inputs: the order of keys plays no part, every value does."""
    key = Stage("warm", {"a": 1, "b": [1, 2]}, Work()).key
    assert key == "69ddef58693e86f901e7"
    assert Stage("warm", {"b": [1, 2], "a": 1}, Work()).key == key
    others = [
        ("cold", {"a": 1, "b": [1, 2]}),
        ("warm", {"a": 2, "b": [1, 2]}),
        ("warm", {"a": 1, "b": [2, 1]}),
    ]
    assert len({Stage(name, inputs, Work()).key for name, inputs in others} | {key}) == 4
    with pytest.raises(ValueError, match="JSON compliant"):
        _ = Stage("warm", {"a": float("nan")}, Work()).key


def test_values(tmp_path: Path) -> None:
    """Computed the first time, taken the second time, by another run too; another input is another stage."""
    work, shared = Work(), tmp_path / "stages"
    folder, computed = run_stage(stage(work), shared, tmp_path / "run1" / "stages")
    assert computed
    assert folder == shared / stage(work).key
    assert listing(folder) == ["result.txt", DONE]
    assert json.loads((folder / DONE).read_text())["inputs"] == {"lr": 0.1}
    for run in ("run1", "run2"):
        assert run_stage(stage(work), shared, tmp_path / run / "stages") == (folder, False)
        pointer = json.loads((tmp_path / run / "stages" / "warm.json").read_text())
        assert (tmp_path / run / pointer["folder"]).resolve() == folder.resolve()
    assert work.calls == 1
    other, computed = run_stage(stage(work, seed=1), shared, tmp_path / "run1" / "stages")
    assert computed
    assert other != folder
    assert json.loads((tmp_path / "run1/stages/warm.json").read_text())["key"] == other.name


def test_values_pointer_is_left_alone(tmp_path: Path) -> None:
    run_stage(stage(Work()), tmp_path / "stages", tmp_path / "run" / "stages")
    pointer = tmp_path / "run/stages/warm.json"
    os.utime(pointer, (1, 1))
    run_stage(stage(Work()), tmp_path / "stages", tmp_path / "run" / "stages")
    assert pointer.stat().st_mtime == 1


def test_errors_leave_nothing(tmp_path: Path) -> None:
    """A stage that fails half-way leaves neither a result nor a temporary folder, and runs again."""

    def fails(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_stage(stage(fails), tmp_path / "stages", tmp_path / "run")
    assert listing(tmp_path / "stages") == []
    assert not (tmp_path / "run").exists()
    work = Work()
    assert run_stage(stage(work), tmp_path / "stages", tmp_path / "run")[1]

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"stage warm could not be written .No space left on device"):
        run_stage(stage(full, seed=2), tmp_path / "stages", tmp_path / "run")


def test_errors_killed(tmp_path: Path) -> None:
    """A stage that was killed by SIGKILL does not look finished: the next run computes it."""
    code = (
        "import os, sys, signal\n"
        "from pathlib import Path\n"
        "from leanlabel.engine.pipeline import Stage, run_stage\n"
        "def dies(folder):\n"
        "    (folder / 'result.txt').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "run_stage(Stage('warm', {'lr': 0.1}, dies), Path(sys.argv[1]), Path(sys.argv[1]) / 'run')\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert all(name.startswith(".") for name in listing(tmp_path))
    work = Work()
    folder, computed = run_stage(stage(work), tmp_path, tmp_path / "run")
    assert computed
    assert (folder / "result.txt").read_text() == "call 1"


def test_degenerate(tmp_path: Path) -> None:
    """A folder of that name without the mark of a finished stage is replaced."""
    work = Work()
    unfinished = tmp_path / stage(work).key
    unfinished.mkdir()
    (unfinished / "stray.txt").write_text("stray")
    folder, computed = run_stage(stage(work), tmp_path, tmp_path / "run")
    assert computed
    assert listing(folder) == ["result.txt", DONE]


def test_degenerate_race(tmp_path: Path) -> None:
    """Another process finished the same stage first: its result is taken."""
    work = Work()

    def overtaken(folder: Path) -> None:
        run_stage(stage(work), tmp_path / "stages", tmp_path / "other")
        (folder / "result.txt").write_text("late")
        raise OSError(39, "Directory not empty")

    folder, _ = run_stage(stage(overtaken), tmp_path / "stages", tmp_path / "run")
    assert (folder / "result.txt").read_text() == "call 1"


def on_a_rank(place: str) -> tuple[str, bool, bool, int]:
    work = Work()
    folder, computed = run_stage(stage(work), Path(place) / "stages", Path(place) / "run")
    there = (folder / "result.txt").exists()
    return folder.name, computed, there, work.calls if dist.is_main() else -work.calls


def test_ranks(pool, tmp_path: Path) -> None:
    """Rank 0 computes, both have the finished folder and know that it was computed now."""
    key = stage(Work()).key
    assert pool.run(on_a_rank, str(tmp_path)) == [(key, True, True, 1), (key, True, True, 0)]
    assert pool.run(on_a_rank, str(tmp_path)) == [(key, False, True, 0)] * 2
