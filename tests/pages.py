"""Pages of the documentation as programs: their fenced commands, run as a reader would."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from smallrun import cli

FENCE = re.compile(r"^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
FLOAT = re.compile(r"\d\.\d")
SETUP = ("python3", ".venv/bin/pip", ".")
"""Commands of the installation, which a test cannot repeat."""
EXACT = ("data", "init", "fit", "export", "embed")
"""Verbs whose output is the same everywhere, but for numbers with a point."""


class Command(NamedTuple):
    """A command of the page and what the page shows of its output."""

    words: list[str]
    shown: list[str]


def commands(body: str) -> Iterator[Command]:
    """The commands of a console block."""
    for text in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        line, *shown = text.splitlines()
        yield Command(shlex.split(line), [one for one in shown if one.strip() not in ("", "…")])


def squeezed(text: str) -> str:
    return " ".join(text.split())


def run(command: Command) -> None:
    """Run a command of the page; check its status and, where it is the same everywhere, its output."""
    words = command.words
    if words[0] in SETUP:
        return
    assert words[0] == "leanlabel", words
    if "onnx" in words:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    answer = cli(*words[1:])
    assert answer.code == 0, (words, answer.err)
    found = {squeezed(line) for line in answer.out.splitlines()}
    for line in command.shown:
        exact = words[1] in EXACT and not FLOAT.search(line) and not re.search(r"\.\w+ +\d+$", line)
        assert not exact or squeezed(line) in found, (words, line, answer.out)
