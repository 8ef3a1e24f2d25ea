"""Advice for graphs on disk: the recipe loads, fits its data, and says why."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanlabel import methods
from leanlabel.advice import TASKS, Task, advise, graph
from leanlabel.advice.graph_facts import GraphFacts
from leanlabel.advice.recipe import Advice, Choice, has_key, to_text
from leanlabel.config import RunConfig, Settings
from leanlabel.errors import InputError
from leanlabel.methods.gca import GCAConfig
from leanlabel.methods.resolve import resolve
from smallrun import arrays, graph_file

SMALL = arrays()
PAIRS = SMALL["edge_index"][:, SMALL["edge_index"][0] < SMALL["edge_index"][1]]
RING = np.stack([np.arange(60), (np.arange(60) + 1) % 60])


def _split(**parts: list[int]) -> dict[str, np.ndarray]:
    return {f"{name}_idx": np.array(nodes, dtype=np.int64) for name, nodes in parts.items()}


# What differs in the file, and what the recipe says then.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sound": (
        {},
        {
            "data.undirected": None,
            "data.features": "file",
            "data.normalise": "row_sum",
            "augment.scheme": "degree",
            "augment.edge_score": "mean",
            "augment.feature_rule": "sparse",
            "augment.feature_rates": [0.1, 0.0],
            "model.width": 64,
            "steps": 100,
            "evaluation.split": "random",
            "evaluation.shares": [0.2, 0.2, 0.6],
        },
    ),
    "pairs listed once": ({"edge_index": PAIRS}, {"data.undirected": True, "augment.edge_score": "mean"}),
    "directed": (
        {"edge_index": np.concatenate([PAIRS, PAIRS[::-1, :60]], 1)},
        {"data.undirected": False, "augment.edge_score": "sink"},
    ),
    "no edges": (
        {"edge_index": np.zeros((2, 0), np.int64)},
        {"data.undirected": None, "augment.scheme": "uniform", "augment.edge_rates": [0.2, 0.3]},
    ),
    "ring": (
        {"edge_index": RING},
        {"data.undirected": True, "augment.scheme": "uniform", "augment.edge_rates": [0.2, 0.3]},
    ),
    "no features": ({"x": None}, {"data.features": "degree", "data.normalise": "none"}),
    "no features, pairs listed once": (
        {"x": None, "edge_index": PAIRS},
        {"data.features": "degree", "data.undirected": True},
    ),
    "signed": (
        {"x": np.random.default_rng(0).normal(size=(60, 20)).astype(np.float32)},
        {"data.normalise": "none", "augment.feature_rule": "dense", "augment.feature_rates": [0.1, 0.1]},
    ),
    "one feature": ({"x": np.arange(60.0)[:, None]}, {"data.normalise": "none"}),
    "no labels": ({"y": None}, {"evaluation.protocol": "none"}),
    "one class": ({"y": np.zeros(60, int)}, {"evaluation.protocol": "none"}),
    "five labels": (
        {"y": np.array([0, 0, 1, 1, 1] + [-1] * 55)},
        {"evaluation.split": "random", "evaluation.shares": [0.4, 0.2, 0.4]},
    ),
    "split": (
        _split(train=[0, 1, 2], val=[3, 4, 5], test=list(range(6, 60))),
        {"evaluation.split": "public"},
    ),
    "split without val": (_split(train=[0, 1, 2], test=[4, 5]), {"evaluation.split": "random"}),
    "split that leaks": (
        _split(train=[0, 1, 2], val=[3, 4, 5], test=[2, 6, 7]),
        {"evaluation.split": "random"},
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_values(case: str, tmp_path: Path) -> None:
    """The recipe says what fits, loads, and its method accepts the data."""
    changes, expected = CASES[case]
    data = graph_file(tmp_path / "graph.npz", **changes)
    advice = advise("graph", [str(data)])
    chosen = {choice.key: choice.value for choice in advice.choices}
    assert {key: chosen[key] for key in expected} == expected
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_text(advice, "recipe.yaml"), encoding="utf-8")
    config = resolve(recipe)
    assert isinstance(config, GCAConfig)
    values = config.model_dump(mode="json")
    for key, value in chosen.items():
        found = values
        for part in key.split("."):
            found = found[part]
        assert found == value, key
    read = methods.find(config.method.name).read(config)
    assert read.undirected is (chosen["augment.edge_score"] == "mean")


def test_values_warnings(tmp_path: Path) -> None:
    """What the data check finds is said, but not what the recipe has already answered."""
    changes = CASES["split that leaks"][0] | {"edge_index": PAIRS}
    advice = advise("graph", [str(graph_file(tmp_path / "graph.npz", **changes))])
    text = "\n".join(advice.warnings)
    assert "error: 1 nodes are in both train and test" in text
    assert "warning: the data's own split is not used" in text
    assert "listed once" not in text
    ring = advise("graph", [str(graph_file(tmp_path / "graph.npz", edge_index=RING))])
    assert not any("says nothing" in warning for warning in ring.warnings)
    assert "60 undirected edges (mean degree 2)" in ring.facts[0]


def test_values_comments(tmp_path: Path) -> None:
    """Every line has its reason, in full."""
    advice = advise("graph", [str(graph_file(tmp_path / "graph.npz"))])
    text = to_text(advice, "recipe.yaml")
    lines = text.splitlines()
    keys = [i for i, line in enumerate(lines) if re.match(r" *[a-z0-9_]+:", line)]
    sections = {choice.key.partition(".")[0] for choice in advice.choices if "." in choice.key}
    assert len(keys) == len(advice.choices) + len(sections)
    for i in keys:
        assert " # " in lines[i] or lines[i - 1].lstrip().startswith("# "), lines[i]
    said = " ".join(line.partition("# ")[2].strip() for line in lines)
    for choice in advice.choices:
        assert " ".join(choice.reason.split()) in said
    assert max(len(line) for line in lines if not line.lstrip().startswith("path:")) <= 110


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not take these names")
@pytest.mark.parametrize(
    "name",
    [
        "a # b",
        'it\'s "so"',
        "key: value",
        "two\nlines: 1",
        "größe 図 🦊",
        "- x",
        "*a &b !c",
        " blank ",
        "w w " * 40,
    ],
)
def test_values_safe_paths(name: str, tmp_path: Path) -> None:
    """A path cannot break out of its line; a fit of the recipe finds the very file."""
    data = graph_file(tmp_path / f"{name}.npz")
    advice = advise("graph", [str(data)])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_text(advice, f"{name}.yaml"), encoding="utf-8", newline="\n")
    config = resolve(recipe)
    assert isinstance(config, GCAConfig)
    assert config.data.model_dump()["path"] == str(data)
    assert config.about == f"GCA on {name}"
    assert config.model_dump(exclude_unset=True).keys() == advice.recipe.values.keys()


def test_values_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is here stands by its full path, what is below LEANLABEL_DATA as it was written."""
    (tmp_path / "root").mkdir()
    (tmp_path / "here").mkdir()
    graph_file(tmp_path / "root" / "one.npz")
    graph_file(tmp_path / "here" / "two.npz")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LEANLABEL_DATA", str(tmp_path / "root"))
    for place, written in (("one.npz", "one.npz"), ("two.npz", str(tmp_path / "here" / "two.npz"))):
        assert advise("graph", [place]).recipe.values["data"]["path"] == written


def test_values_folder(tmp_path: Path) -> None:
    """A folder of tables with edges alone: the degree stands in."""
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "edges.csv").write_text("source,target\n" + "".join(f"{a},{b}\n" for a, b in PAIRS.T.tolist()))
    values = advise("graph", [str(folder)]).recipe.values
    assert values["data"] == {
        "kind": "file",
        "path": str(folder),
        "undirected": True,
        "features": "degree",
        "normalise": "none",
    }


def test_reference(tmp_path: Path) -> None:
    """The reading that is measured is the one that the recipe makes."""
    from leanlabel.data.graph_source import open_graph
    from leanlabel.data.graphs import fingerprint

    for case in ("pairs listed once", "directed", "no features, pairs listed once", "ring"):
        data = graph_file(tmp_path / "graph.npz", **CASES[case][0])
        config = resolve(advise("graph", [str(data)]).recipe)
        assert isinstance(config, GCAConfig)
        measured, again = graph._read(data)[0], open_graph(config.data)
        assert fingerprint(measured) == fingerprint(again)
        assert measured.facts == again.facts


def test_state(tmp_path: Path) -> None:
    """The same data give the same text."""
    data = graph_file(tmp_path / "graph.npz")
    first, again = (to_text(advise("graph", [str(data)]), "a.yaml") for _ in range(2))
    assert first == again


class _Whole(RunConfig):
    """A schema without batches."""


class _BatchSettings(Settings):
    nodes: int | None = None
    sampler: str = "anchors"


class _Batches(RunConfig):
    batch: _BatchSettings = _BatchSettings()


def test_values_batch_keys() -> None:
    """Keys of batches stand in a recipe only where the schema has them, and the estimate knows it."""
    facts = GraphFacts(
        nodes=50_000,
        edges=500_000,
        mutual=1.0,
        undirected=True,
        degrees=(0, 90),
        components=1,
        features=2000,
        density=0.01,
        lowest=0.0,
        highest=1.0,
        unit_rows=False,
        likeness=0.0,
        by_degree=False,
        classes=(30_000, 20_000),
        split="none",
    )

    def chosen(schema: type[RunConfig], nodes: int) -> dict[str, Any]:
        found = graph._choices("g", "g.npz", dataclasses.replace(facts, nodes=nodes), schema)
        return {choice.key: choice.value for choice in found}

    whole, parts = chosen(_Whole, 50_000), chosen(_Batches, 50_000)
    assert not any(key.startswith("batch") for key in whole)
    assert parts["batch.nodes"] == 4096
    assert parts["batch.sampler"] == "anchors"
    assert chosen(_Batches, 20_000)["batch.nodes"] is None
    assert " h on 2 cores" in whole["cost"]
    assert " min on 2 cores" in parts["cost"]
    own = chosen(GCAConfig, 2_000_000)
    assert ("batch.nodes" in own) is has_key(GCAConfig, "batch.nodes")
    assert all(has_key(GCAConfig, key) for key in own)
    for nodes in (20_000, 50_000, 2_000_000):  # all nodes, anchors, neighbours: each loads
        choices = graph._choices("g", "g.npz", dataclasses.replace(facts, nodes=nodes), GCAConfig)
        assert resolve(Advice("graph", (), tuple(choices)).recipe).seed == 0


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = str(graph_file(tmp_path / "graph.npz"))
    with pytest.raises(InputError, match="unknown task") as caught:
        advise("grpah", [data])
    assert caught.value.suggestion == "Did you mean 'graph'?"
    with pytest.raises(InputError, match="unknown task") as caught:
        advise("zzzzzz", [data])
    assert "There are rules for: graph" in str(caught.value)
    for task in [name for name, one in TASKS.items() if one.rules is None]:
        with pytest.raises(InputError, match=r"no system for that job yet\. There are rules for: graph"):
            advise(task, [data])
    for places in ([], [data, data]):
        with pytest.raises(InputError, match=f"init graph takes one place of data, got {len(places)}"):
            advise("graph", places)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    with pytest.raises(InputError, match="no such file or folder"):
        advise("graph", ["nowhere.npz"])
    (tmp_path / "text.txt").write_text("0 1\n")
    with pytest.raises(InputError, match=r"neither a folder nor an \.npz file"):
        advise("graph", [str(tmp_path / "text.txt")])
    nothing = {"x": np.zeros((0, 3), np.float32), "edge_index": np.zeros((2, 0), int), "y": np.zeros(0, int)}
    with pytest.raises(InputError, match="has no nodes"):
        advise("graph", [str(graph_file(tmp_path / "empty.npz", **nothing))])
    # Features that are there but wrong are no reason to do without.
    for wrong in (np.full((60, 2), np.nan), np.zeros((60, 0)), np.full((60, 2), "a")):
        with pytest.raises(InputError, match=r"wrong\.npz"):
            advise("graph", [str(graph_file(tmp_path / "wrong.npz", x=wrong))])


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the file system takes only Unicode names")
def test_errors_name_that_is_no_text(tmp_path: Path) -> None:
    data = tmp_path / os.fsdecode(b"caf\xe9.npz")
    graph_file(tmp_path / "graph.npz").rename(data)
    with pytest.raises(InputError, match="cannot hold this name") as caught:
        advise("graph", [str(data)])
    str(caught.value).encode()


def fake(places: list[str]) -> Advice:
    return Advice("adapt", tuple(places), (Choice("seed", 1, "a test"),))


def test_errors_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later system only names its rules; tasks that adapt take a source and a target."""
    assert TASKS["adapt"].places == 2
    monkeypatch.setitem(TASKS, "adapt", Task(TASKS["adapt"].places, f"{__name__}:fake"))
    assert advise("adapt", ["a", "b"]).facts == ("a", "b")
    for places in (["a"], ["a", "b", "c"]):
        with pytest.raises(InputError, match="init adapt takes a source and a target"):
            advise("adapt", places)


def test_table_is_light() -> None:
    """The table of tasks can be asked without torch."""
    code = (
        "import sys, leanlabel.advice as a; assert a.TASKS['graph'].rules; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.real
def test_real_cora(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cora: settings close to those published for it."""
    monkeypatch.chdir(data_root / "graphs")
    advice = advise("graph", ["graphs/cora.npz"])
    config = resolve(advice.recipe)
    assert isinstance(config, GCAConfig)
    assert config.data.model_dump()["path"] == "graphs/cora.npz"
    assert config.augment.edge_rates == (0.2, 0.3)
    assert config.augment.feature_rates == (0.3, 0.4)
    assert config.evaluation.split == "public"
    assert config.data.normalise == "row_sum"
    assert "2,708 nodes, 5,278 undirected edges" in advice.facts[0]
