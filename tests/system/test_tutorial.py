"""The tutorial, run from top to bottom as a reader would: its commands work, and what it shows is what comes out."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pages import FENCE, Command, commands, run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    return tmp_path


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
