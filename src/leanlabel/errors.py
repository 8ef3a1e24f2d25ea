"""The two kinds of failure a user meets: a mistake in the input, and a fault while running."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong: a file, a line, a key, a value. The command line exits with 2.

    Args:
        message: one sentence that names the file, line or key, what was found and what was expected.
        suggestion: one sentence that says what to do about it.
    """

    exit_code = 2

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion

    def __str__(self) -> str:
        return f"{self.message} {self.suggestion}" if self.suggestion else self.message


class RunError(RuntimeError):
    """A run could not go on: non-finite loss, full disk, broken checkpoint. The command line exits with 1.

    Args:
        message: one sentence that says what happened and where.
        suggestion: one sentence that says what is safe and what to do next.
    """

    exit_code = 1

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion

    def __str__(self) -> str:
        return f"{self.message} {self.suggestion}" if self.suggestion else self.message
