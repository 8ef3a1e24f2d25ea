"""The two kinds of failure a user meets: a mistake in the input, and a fault while running."""

from __future__ import annotations


class _Told(Exception):  # noqa: N818
    """What both kinds share: a sentence on what is wrong, one on what to do, and an exit status.

    Args:
        message: one sentence that says what is wrong and where: file, line, key, iteration.
        suggestion: one sentence that says what is safe, or what to do next.
    """

    exit_code = 1

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion

    def __str__(self) -> str:
        return f"{self.message} {self.suggestion}" if self.suggestion else self.message


class InputError(_Told, ValueError):
    """Something the user gave is wrong: a file, a line, a key, a value. The command line exits with 2."""

    exit_code = 2


class RunError(_Told, RuntimeError):
    """A run could not go on: non-finite loss, full disk, broken checkpoint. The command line exits with 1."""
