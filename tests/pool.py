"""Two worker processes in one gloo group, shared by the whole test session.

`pool.run(function, *args)` calls a top-level function of a test module on both ranks and returns
[result of rank 0, result of rank 1]. The function travels by reference: workers put the test session's
sys.path in front of theirs and import its module, so test files need unique base names (test folders are not
packages). Arguments and results travel pickled.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

WORLD = 2
START = 180.0  # seconds until both workers have answered the first time; a busy machine imports torch slowly
# Seconds that the other rank gets after one failed: it may wait in a collective for the failed one.
GRACE = 5.0


class RemoteError(RuntimeError):
    """A worker failed; the text is its traceback, or what is known about its end."""


class Pool:
    """Lazily started pair of workers; a call after which one hangs or is gone replaces both."""

    def __init__(self) -> None:
        self._workers: list[tuple[Any, Connection]] = []
        self._folder: Path | None = None

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 120.0) -> list[Any]:
        """Call function(*args) on both ranks at once.

        Args:
            function: importable top-level function of a test module.
            args: the same for both ranks; the function asks `leanlabel.dist.rank()` who it is.
            timeout: seconds until the workers are killed.

        Returns:
            The results in rank order.

        Raises:
            TimeoutError: a worker did not answer in time.
            Exception: what the worker raised, caused by a RemoteError with its traceback.
        """
        if not self._workers:
            self._start()
        return self._call(pickle.dumps((function, args)), timeout)

    def close(self) -> None:
        """End the workers."""
        for process, connection in self._workers:
            connection.close()
            process.kill()
            process.join()
        self._workers = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start(self) -> None:
        context = get_context("spawn")
        self._folder = Path(tempfile.mkdtemp(prefix="leanlabel-pool-"))
        for rank in range(WORLD):
            here, there = context.Pipe()
            process = context.Process(
                target=serve,
                args=(there, rank, str(self._folder / "store")),
                name=f"pool-{rank}",
                daemon=True,
            )
            process.start()
            there.close()
            self._workers.append((process, here))
        self._call(pickle.dumps((os.getpid, ())), START)

    def _call(self, job: bytes, timeout: float) -> list[Any]:
        end = time.monotonic() + timeout
        answers: dict[int, tuple[bool, Any, str]] = {}
        for rank, (_, connection) in enumerate(self._workers):
            try:
                connection.send_bytes(pickle.dumps((sys.path, job)))
            except OSError:
                answers[rank] = self._lost(rank)
        while len(answers) < WORLD:
            waiting = {worker[1]: rank for rank, worker in enumerate(self._workers) if rank not in answers}
            ready = wait(list(waiting), max(0.0, end - time.monotonic()))
            for connection in ready:
                rank = waiting[connection]  # pyright: ignore[reportArgumentType]
                try:
                    answers[rank] = pickle.loads(self._workers[rank][1].recv_bytes())
                except (EOFError, OSError):
                    answers[rank] = self._lost(rank)
            if not ready:
                break
            if any(not answer[0] for answer in answers.values()):
                end = min(end, time.monotonic() + GRACE)
        failed = sorted(rank for rank, answer in answers.items() if not answer[0])
        silent = [rank for rank in range(WORLD) if rank not in answers]
        if silent or any(answers[rank][2] == "" for rank in failed):
            self.close()
        if failed:
            _, error, text = answers[failed[0]]
            raise error from RemoteError(f"on rank {failed[0]}:\n{text}")
        if silent:
            raise TimeoutError(f"ranks {silent} did not answer within {timeout:g} s; the workers were ended")
        return [pickle.loads(answers[rank][1]) for rank in range(WORLD)]

    def _lost(self, rank: int) -> tuple[bool, Any, str]:
        """Return the answer that stands for a worker that is gone."""
        process = self._workers[rank][0]
        process.join(GRACE)
        return False, RemoteError(f"rank {rank} ended with exit code {process.exitcode}"), ""


def serve(connection: Connection, rank: int, store: str) -> None:
    """Join the group and answer calls until the connection closes; the body of a worker."""
    import torch
    import torch.distributed as group

    torch.set_num_threads(1)
    # Without a named interface gloo looks up the host name, which may not resolve.
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    group.init_process_group(
        "gloo",
        store=group.FileStore(store, WORLD),  # pyright: ignore[reportPrivateImportUsage]
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=300),
    )
    with contextlib.suppress(EOFError, OSError):
        while True:
            path, job = pickle.loads(connection.recv_bytes())
            connection.send_bytes(pickle.dumps(_answer(path, job)))


def _answer(path: list[str], job: bytes) -> tuple[bool, Any, str]:
    """Run one job from a clean state; return (True, pickled result, "") or (False, exception, traceback)."""
    import torch

    sys.path[:0] = [entry for entry in path if entry not in sys.path]
    random.seed(0)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    try:
        function, args = pickle.loads(job)
        return True, pickle.dumps(function(*args)), ""
    except Exception as error:
        text = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RemoteError(f"{type(error).__name__}: {error}")
        return False, error, text
