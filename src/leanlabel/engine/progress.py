"""What is seen and kept of a running training: one progress line, metrics, timings, loggers."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from leanlabel.engine.runfolder import JsonLines, RunFolder

console = Console(stderr=True)


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes: of the GPU's allocator, else of this process so far; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it")


class Bar:
    """One line on a terminal; where the output is not a terminal, a line of text every ``quiet`` seconds."""

    def __init__(
        self, total: int, start: int = 0, label: str = "fit", *, show: bool = True, quiet: float = 30
    ) -> None:
        self.total, self.label, self.show, self.quiet = total, label, show, quiet
        self.began = self.spoke = time.monotonic()
        self.start = start
        self.live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            console=console,
            disable=not (show and console.is_terminal),
        )
        self.task = self.live.add_task(label, total=total, completed=start, terms="")

    def __enter__(self) -> Bar:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def advance(self, done: int, terms: dict[str, float] | None = None) -> None:
        """Show ``done`` iterations and the newest loss terms."""
        if not self.show:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in (terms or {}).items())
        if console.is_terminal:
            self.live.update(self.task, completed=done)
            if text:
                self.live.update(self.task, terms=text)
            return
        now = time.monotonic()
        if now - self.spoke >= self.quiet:
            self.spoke = now
            rate = (done - self.start) / (now - self.began)
            left = (self.total - done) / rate if rate else float("nan")
            console.print(
                f"{self.label} {done}/{self.total}  {rate:.2f} it/s  {left:.0f} s left  {text}",
                highlight=False,
            )


class Metrics:
    """``metrics.jsonl`` (bit-identical for equal runs), ``timing.jsonl`` (not), and other loggers."""

    def __init__(self, run: RunFolder, loggers: tuple[str, ...], start: int, *, write: bool) -> None:
        self.write = write
        self.rows, self.times = JsonLines(run.metrics), JsonLines(run.timing)
        self.loggers: list[Any] = []
        if not write:
            return
        self.rows.cut(start)
        self.times.cut(start)
        self.loggers = [_logger(name, run.path, start) for name in loggers]

    def log(self, t: int, terms: dict[str, float], timing: dict[str, float]) -> None:
        """Write one iteration."""
        if not self.write:
            return
        self.rows.append({"t": t, **terms})
        self.times.append({"t": t, **timing})
        for logger in self.loggers:
            logger.log_metrics(terms, t)

    def close(self) -> None:
        """Flush and close everything."""
        self.rows.close()
        self.times.close()
        for logger in self.loggers:
            logger.finalize("success")


def _logger(name: str, folder: Path, start: int) -> Any:
    if name == "tensorboard":
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version="tensorboard", purge_step=start)
    from lightning_fabric.loggers.csv_logs import CSVLogger

    return CSVLogger(folder, name="", version=f"csv-from-{start}")
