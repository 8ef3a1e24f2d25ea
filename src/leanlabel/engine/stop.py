"""Stopping a run in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from leanlabel.engine.progress import console
from leanlabel.errors import RunError


class Interrupted(RunError):  # noqa: N818  (asked for, not a mistake)
    """Ctrl-C or a termination signal: everything is saved. The command line exits with 130."""

    exit_code = 130


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request honoured between iterations; a second one acts at once."""
    asked = threading.Event()

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        console.print("Stopping after this iteration; once more to stop at once without saving.")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
