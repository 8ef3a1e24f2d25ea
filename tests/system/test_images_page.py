"""The page on images, run from top to bottom as a reader would, with fewer iterations."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from pages import FENCE, commands, run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "images.md"
FILE = re.compile(r"<!-- file: (?P<name>\S+) -->\n```yaml\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    text = PAGE.read_text(encoding="utf-8")
    for file in FILE.finditer(text):
        body, changed = re.subn(r"^steps: \d+$", "steps: 20", file["body"], flags=re.MULTILINE)
        assert changed == 1
        Path(file["name"]).write_text(body, encoding="utf-8")
    shown = ""
    for block in FENCE.finditer(text):
        if block["kind"] == "python":
            exec(compile(block["body"], "images.md", "exec"), {})
        elif block["kind"] == "console":
            for command in commands(block["body"]):
                run(command)
        elif block["kind"] == "yaml" and block["body"].startswith("  "):
            shown += block["body"]

    recipe = {line.strip() for line in Path("my_images.yaml").read_text(encoding="utf-8").splitlines()}
    assert shown
    for line in shown.splitlines():
        assert line.strip() in recipe, line
    with open(Path("predictions") / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list(Path("new_scans").iterdir())) == 36
    assert {row["seen"] for row in rows} == {"false"}
    page = Path("runs/first/report.html").read_text(encoding="utf-8")
    assert "Nearest neighbours" in page
    assert Path("backbone/backbone.safetensors").stat().st_size > 1000
