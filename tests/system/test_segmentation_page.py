"""The page on images with masks, run from top to bottom as a reader would, with fewer iterations."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pages import FENCE, commands, run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "segmentation.md"
FILE = re.compile(r"<!-- file: (?P<name>\S+) -->\n```yaml\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
STEPS = re.compile(r"^steps: \d+$", re.MULTILINE)


@pytest.mark.slow
def test_segmentation_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = PAGE.read_text(encoding="utf-8").replace("--set steps=200", "--set steps=2")
    shortened = 0
    for file in FILE.finditer(text):
        body, changed = STEPS.subn("steps: 8", file["body"])
        shortened += changed
        Path(file["name"]).write_text(body, encoding="utf-8")
    assert shortened == 1
    assert "--set steps=2\n" in text
    shown = ""
    for block in FENCE.finditer(text):
        if block["kind"] == "python":
            exec(compile(block["body"], "segmentation.md", "exec"), {})
        elif block["kind"] == "console":
            for command in commands(block["body"]):
                run(command)
        elif block["kind"] == "yaml" and block["body"].startswith("  "):
            shown += block["body"]

    recipe = {line.strip() for line in Path("my_streets.yaml").read_text(encoding="utf-8").splitlines()}
    assert shown
    for line in shown.splitlines():
        assert line.strip() in recipe, line
    assert "street-0" in Path("check.html").read_text(encoding="utf-8")
    masks = sorted(Path("predictions/masks").iterdir())
    assert [path.name for path in masks] == sorted(path.name for path in Path("new_streets").iterdir())
    for path in masks:
        with Image.open(path) as picture:
            assert picture.mode == "P"
            values = np.asarray(picture)
        assert values.shape == (72, 96)
        assert values.max() <= 10
    names = [one["name"] for one in json.loads(Path("predictions/predictions.json").read_text())["classes"]]
    assert names == Path("my_streets/classes.txt").read_text().split()
    report = Path("runs/first/report.html").read_text(encoding="utf-8")
    assert all(word in report for word in ("Confusion", "Examples", "bicyclist"))
    compared = Path("runs/compare/plain/report.html").read_text(encoding="utf-8")
    assert "local" in compared
    assert Path("streets_backbone/backbone.safetensors").stat().st_size > 1000
