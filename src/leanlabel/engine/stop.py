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
    """Turn the first Ctrl-C or SIGTERM into a request honoured between iterations; a second one acts at once.

    Windows delivers no SIGTERM; Ctrl-Break (SIGBREAK), which exists only there, counts as one.
    """
    asked = threading.Event()

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        console.print("Stopping after this iteration; once more to stop at once without saving.")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    old = {name: signal.signal(getattr(signal, name), ask) for name in names}
    try:
        yield asked.is_set
    finally:
        for name, handler in old.items():
            # None stands for a handler that was not set from Python; there is no way to put that one back.
            signal.signal(getattr(signal, name), signal.SIG_DFL if handler is None else handler)
