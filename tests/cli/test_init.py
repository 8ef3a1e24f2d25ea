"""`leanlabel init`: what it prints and writes, and that its recipe trains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from leanlabel.recipe import read_recipe
from smallrun import SMALL, cli, file_options, graph_file


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return graph_file(tmp_path / "my graph.npz")


def test_values(data: Path) -> None:
    """Without --out the recipe is all there is on standard output; warnings stand beside it."""
    answer = cli("init", "graph", data)
    assert answer.code == 0
    Path("printed.yaml").write_text(answer.out, encoding="utf-8")
    assert read_recipe("printed.yaml").values["data"]["path"] == str(data)
    assert "leanlabel fit recipe.yaml" in answer.out
    rare = np.array([0] * 57 + [1] * 3)
    answer = cli("init", "graph", graph_file(data, y=rare))
    assert answer.code == 0
    assert "warning: 1 classes have fewer than 10 nodes" in answer.err
    assert "warning:" not in answer.out


def test_values_json(data: Path) -> None:
    rows = json.loads(cli("init", "graph", data, "--json", "--out", "mine.yaml").out)
    assert all(set(row) == {"key", "value", "reason"} and row["reason"] for row in rows)
    chosen = {row["key"]: row["value"] for row in rows}
    assert chosen["data.path"] == str(data)
    assert chosen["augment.edge_rates"] == [0.3, 0.4]
    assert read_recipe("mine.yaml").values["steps"] == chosen["steps"]
    assert json.loads(cli("init", "graph", data, "--json").out) == rows


def test_trains(data: Path) -> None:
    """The written recipe goes through show, data check and fit; the header names it."""
    answer = cli("init", "graph", data, "--out", "folder/mine.yaml")
    assert answer.code == 0
    assert answer.out == f"recipe      {Path('folder/mine.yaml')}\n"
    text = Path("folder/mine.yaml").read_text(encoding="utf-8")
    assert f"leanlabel compare {Path('folder/mine.yaml')} --seeds 5" in text
    assert cli("show", "folder/mine.yaml").code == 0
    assert cli("data", "check", "folder/mine.yaml").code == 0
    answer = cli("fit", "folder/mine.yaml", "--run", "runs/one", "--json", *file_options(steps=3))
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["protocols"]["logistic-l2"]["readouts"]["trained"]["mean"] > 0.3


@pytest.mark.parametrize(
    "changes",
    [
        {"edge_index": np.zeros((2, 0), np.int64)},
        {"x": None, "y": np.array([0, 0, 1, 1, 1] + [-1] * 55)},
    ],
    ids=["no edges", "no features, five labels"],
)
def test_trains_degenerate(changes: dict[str, np.ndarray | None], data: Path) -> None:
    graph_file(data, **changes)
    assert cli("init", "graph", data, "--out", "mine.yaml").code == 0
    answer = cli("fit", "mine.yaml", "--run", "runs/one", *file_options(steps=2, evaluation__splits=1))
    assert answer.code == 0, answer.err


def test_trains_images(tmp_path: Path) -> None:
    """The same for images: the header's commands work on the recipe, and `data check` on the images."""
    numbers = np.random.default_rng(0)
    label = np.arange(64) % 4
    image = (numbers.integers(0, 120, (64, 12, 12, 3)) + 40 * label[:, None, None, None]).astype(np.uint8)
    np.savez("pictures.npz", image=image, label=label)
    answer = cli("init", "ssl", "pictures.npz", "--out", "mine.yaml")
    assert answer.code == 0, answer.err
    assert "warning: 64 images are few" in answer.err
    for what in ("mine.yaml", "pictures.npz"):
        found = json.loads(cli("data", "check", what, "--json").out)
        assert {"severity": "info", "code": "images", "message": "64 images", "count": 64} in found
    options = [f"{key}={value}" for key, value in SMALL.items() if key.startswith("engine.")]
    sets = [
        part
        for text in ["steps=3", "model.widths=[4,8]", "evaluation.splits=1", *options]
        for part in ("--set", text)
    ]
    answer = cli("fit", "mine.yaml", "--run", "runs/one", "--json", *sets)
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["protocols"]["logistic-l2"]["readouts"].keys() == {"untrained", "trained"}
    assert "Nearest neighbours" in Path("runs/one/report.html").read_text(encoding="utf-8")


def test_errors(data: Path) -> None:
    """One sentence, one suggestion, exit code 2, nothing written."""
    Path("mine.yaml").write_text("about: kept\n", encoding="utf-8")
    Path("folder.yaml").mkdir()
    for arguments, text in (
        (["graph", data, "--out", "mine.yaml"], "this file exists"),
        (["graph", data, "--out", "folder.yaml"], "this is a folder"),
        (["graph", data, "--out", "mine.txt"], "ends with .yaml or .yml"),
        (["graph", "nowhere.npz", "--out", "new.yaml"], "no such file or folder"),
        (["graph", "mine.yaml", "--out", "new.yaml"], "neither a folder nor an .npz file"),
        (["graph", data, data, "--out", "new.yaml"], "takes one place of data, got 2"),
        (["text", data, "--out", "new.yaml"], "There are rules for: graph, ssl, segmentation, adapt."),
        (["grap", data, "--out", "new.yaml"], "Did you mean 'graph'?"),
    ):
        answer = cli("init", *arguments)
        assert answer.code == 2
        assert text in answer.err
        assert answer.out == ""
    assert cli("init").code == 2
    assert cli("init", "graph").code == 2
    assert Path("mine.yaml").read_text(encoding="utf-8") == "about: kept\n"
    assert not Path("new.yaml").exists()
    assert cli("init", "graph", data, "--out", "mine.yaml", "--force").code == 0
    assert read_recipe("mine.yaml").values["method"] == {"name": "gca", "tau": 0.4, "chunk": None}
