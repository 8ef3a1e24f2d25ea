"""What is seen and kept of a running training."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from leanlabel.engine import progress
from leanlabel.engine.progress import Bar, Metrics, peak_memory
from leanlabel.engine.runfolder import RunFolder, read_lines


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress.time, "monotonic", found.monotonic)
    return found


def console(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(
        progress, "console", Console(file=text, force_terminal=terminal, width=140, color_system=None)
    )
    return text


def test_values_without_a_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of text now and then: iterations, rate since this start, remaining time, terms."""
    text = console(monkeypatch, terminal=False)
    with Bar(100, 20, quiet=30) as bar:
        for done in range(21, 61):
            clock.now += 1
            bar.advance(done, {"loss": 0.123456})
    assert text.getvalue().strip() == "fit 50/100  1.00 it/s  50 s left  loss 0.1235"


def test_values_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = console(monkeypatch, terminal=True)
    with Bar(10, 2) as bar:
        bar.advance(3, {"loss": 0.5, "dead": 0.0})
        bar.advance(10)
    shown = text.getvalue()
    assert "10/10" in shown
    assert "loss 0.5  dead 0" in shown
    assert "it/s" in shown
    assert "left" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_degenerate_silent(clock: Clock, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    text = console(monkeypatch, terminal)
    with Bar(10, 0, show=False, quiet=0) as bar:
        clock.now += 5
        bar.advance(5, {"loss": 1.0})
    assert text.getvalue() == ""


def test_values_peak_memory() -> None:
    peak = peak_memory(torch.device("cpu"))
    assert peak is None or 2**24 < peak < 2**40


def test_state_metrics(tmp_path: Path) -> None:
    """A start at an iteration cuts what lies after it, in both files."""
    run = RunFolder(tmp_path)
    for start, end in ((0, 5), (3, 6)):
        metrics = Metrics(run, (), start, write=True)
        for t in range(start, end):
            metrics.log(t, {"loss": float(t)}, {"seconds": 0.1})
        metrics.close()
    assert read_lines(run.metrics) == [{"t": t, "loss": float(t)} for t in range(6)]
    assert read_lines(run.timing) == [{"t": t, "seconds": 0.1} for t in range(6)]


def test_degenerate_other_ranks_write_nothing(tmp_path: Path) -> None:
    metrics = Metrics(RunFolder(tmp_path / "run"), ("tensorboard", "csv"), 0, write=False)
    metrics.log(0, {"loss": 1.0}, {"seconds": 0.1})
    metrics.close()
    assert not (tmp_path / "run").exists()


def test_values_of_loggers(tmp_path: Path) -> None:
    """TensorBoard events and CSV rows beside the JSON lines; a resume keeps the earlier CSV."""
    for start in (0, 2):
        metrics = Metrics(RunFolder(tmp_path), ("tensorboard", "csv"), start, write=True)
        for t in range(start, start + 2):
            metrics.log(t, {"loss": 0.5 + t}, {})
        metrics.close()
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 2
    rows = [(tmp_path / f"csv-from-{start}" / "metrics.csv").read_text() for start in (0, 2)]
    assert rows[0].split() == ["loss,step", "0.5,0", "1.5,1"]
    assert rows[1].split() == ["loss,step", "2.5,2", "3.5,3"]
