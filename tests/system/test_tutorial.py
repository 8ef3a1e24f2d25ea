"""The tutorial, run from top to bottom as a reader would: its commands work, and what it shows is what comes out."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from smallrun import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
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


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    return tmp_path


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


@pytest.mark.slow
def test_page_runs_from_top_to_bottom(shop: Path) -> None:
    names: dict[str, object] = {}
    shown = {"yaml": "", "text": ""}
    for block in FENCE.finditer(PAGE.read_text(encoding="utf-8")):
        if block["kind"] == "python":
            exec(compile(block["body"], "tutorial.md", "exec"), names)
        elif block["kind"] == "console":
            for command in commands(block["body"]):
                run(command)
        else:
            shown[block["kind"]] += block["body"]

    recipe = {line.strip() for line in (shop / "my_graph.yaml").read_text(encoding="utf-8").splitlines()}
    for line in shown["yaml"].splitlines():
        assert line.strip() in recipe or line == "# …", line

    with open(shop / "predictions" / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 400
    assert ",".join(rows[0]) in shown["text"]
    aisles, aisle = names["aisles"], names["aisle"]
    unseen = [(row["class"], aisles[aisle[k]]) for k, row in enumerate(rows) if row["seen"] == "false"]  # type: ignore[index]
    assert len(unseen) == 200
    assert sum(guess == true for guess, true in unseen) > 140

    table = (shop / "predictions" / "predictions.csv").read_bytes()
    assert (shop / "from_export" / "predictions.csv").read_bytes() == table
    for name in ("runs/first/report.html", "runs/compare/my_graph/report.html", "embeddings.parquet"):
        assert (shop / name).stat().st_size > 1000, name


def test_commands_are_found() -> None:
    body = "$ leanlabel fit a.yaml\nrecipe  x\n…\n\n$ leanlabel embed 'my run'\n"
    assert list(commands(body)) == [
        Command(["leanlabel", "fit", "a.yaml"], ["recipe  x"]),
        Command(["leanlabel", "embed", "my run"], []),
    ]
