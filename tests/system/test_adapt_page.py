"""The page on a new domain, run from top to bottom as a reader would, with fewer iterations."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from pages import FENCE, commands, run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adapt.md"
FILE = re.compile(r"<!-- file: (?P<name>\S+) -->\n```yaml\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
STEPS = re.compile(r"^( *)steps: \d+$", re.MULTILINE)
SHORT = re.compile(r"(steps|every)=[1-9]\d*")


@pytest.mark.slow
def test_adapt_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text, told = SHORT.subn(r"\1=2", PAGE.read_text(encoding="utf-8"))
    assert told == 5
    shortened = 0
    for file in FILE.finditer(text):
        body, changed = STEPS.subn(r"\1steps: 2", file["body"])
        shortened += changed
        Path(file["name"]).write_text(body, encoding="utf-8")
    assert shortened == 3
    shown = ""
    for block in FENCE.finditer(text):
        if block["kind"] == "python":
            exec(compile(block["body"], "adapt.md", "exec"), {})
        elif block["kind"] == "console":
            for command in commands(block["body"]):
                run(command)
        elif block["kind"] == "yaml" and not block["body"].startswith("base:"):
            shown += block["body"]

    lines = Path("camera.yaml").read_text(encoding="utf-8").splitlines()
    recipe = {part.strip() for line in lines for part in (line, line.partition("  #")[0])}
    assert shown
    for line in shown.splitlines():
        assert line.strip() in recipe, line
    measured = json.loads(Path("runs/first/results.json").read_text(encoding="utf-8"))["protocols"]
    assert measured["miou"]["domain"] == "target"
    assert measured["miou:source"]["domain"] == "source"
    report = Path("runs/first/report.html").read_text(encoding="utf-8")
    assert all(word in report for word in ("Before and after", "Gain by class", "Gap over time"))
    pointer = json.loads(Path("runs/labels/stages/pseudo-labels.json").read_text(encoding="utf-8"))
    folder = Path("runs/labels", pointer["folder"])
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["thresholds"]) == len(manifest["classes"]["names"]) == 11
    with Image.open(next(folder.glob("*.png"))) as picture:
        assert picture.mode == "P"
    masks = sorted(path.name for path in Path("predictions/masks").iterdir())
    assert masks == sorted(path.name for path in Path("new_pictures").iterdir())
    assert "adabn" in Path("runs/compare/camera_small/report.html").read_text(encoding="utf-8")
