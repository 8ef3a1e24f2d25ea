"""A comparison killed by SIGKILL ends, when called again, with the numbers of one that was left alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leanlabel.engine.runfolder import read_lines
from smallrun import RECIPE, options

START = """
import os, signal, sys
import leanlabel.compare.queue as queue
real, count = queue.record, []
def record(*arguments, **rest):
    real(*arguments, **rest)
    count.append(1)
    if len(count) == {rows}:
        os.kill(os.getpid(), signal.SIGKILL)
queue.record = record
from leanlabel.cli import main
main(sys.argv[1:])
"""
ARGUMENTS = [
    *("compare", RECIPE, "--seeds", "2", "--arm", "raw", "--arm", "grace", "--grid", "optim.lr=0.01,0.1"),
    *options(steps=2),
]


def start(out: Path, rows: int = 0) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, killed after so many recorded rows."""
    code = START.format(rows=rows)
    done = [sys.executable, "-c", code, *ARGUMENTS, "--out", str(out)]
    return subprocess.run(done, capture_output=True, text=True, timeout=300, check=False)


def numbers(out: Path) -> dict[str, Any]:
    """What must be equal: all that is not time."""
    found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    for arm in found["arms"]:
        arm.pop("seconds")
        for run in arm["runs"]:
            run.pop("seconds"), run.pop("whole_seconds")
    for pair in found["pairs"]:
        pair.pop("cost_factor"), pair.pop("sentence")
    return {key: found[key] for key in ("arms", "pairs", "alarms", "tuning", "curves", "pending")}


@pytest.mark.slow
def test_state_after_sigkill(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).returncode == 0
    first = start(killed, rows=1)
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert len(read_lines(killed / "results.jsonl")) == 1
    assert not (killed / "comparison.json").exists()
    assert start(killed, rows=2).returncode == -signal.SIGKILL
    assert len(read_lines(killed / "results.jsonl")) == 3
    last = start(killed)
    assert last.returncode == 0, last.stderr
    assert numbers(killed) == numbers(whole)
    keys = [row["key"] for row in read_lines(killed / "results.jsonl")]
    assert len(set(keys)) == len(keys) == len(read_lines(whole / "results.jsonl"))
