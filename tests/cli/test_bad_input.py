"""Everything a user can get wrong, end to end: exit code 2, the file, key or line by name, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from smallrun import RECIPE, Answer, arrays, cli, file_options, graph_file, options


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)


def refused(*arguments: object) -> Answer:
    """Call `leanlabel`, and hold it to what is promised about wrong input."""
    before = sorted(Path().rglob("*"))
    answer = cli(*arguments)
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert sorted(Path().rglob("*")) == before, "something was written"
    return answer


def fit(data: Path, *more: object) -> Answer:
    return refused("fit", RECIPE, "--data", data, "--run", "runs/bad", *file_options(), *more)


# -------------------------------------------------------------------------------------------- the data


def with_nan() -> np.ndarray:
    x = arrays()["x"].copy()
    x[7, 3] = np.nan
    x[9, 0] = np.inf
    return x


BAD_GRAPHS: dict[str, tuple[dict[str, np.ndarray | None], list[str]]] = {
    "edge out of range": (
        {"edge_index": np.array([[0, 1, 60], [1, 2, 3]])},
        ["edge 2 joins 60 and 3", "60 nodes (0 to 59)"],
    ),
    "negative edge": ({"edge_index": np.array([[0, -1], [1, 2]])}, ["edge 1 joins -1 and 2"]),
    "edges that are not whole": ({"edge_index": np.array([[0, 1.5], [1, 2]])}, ["edge_index holds 1.5"]),
    "edges of another shape": ({"edge_index": np.zeros((3, 4), int)}, ["edge_index has shape (3, 4)"]),
    "NaN features": ({"x": with_nan()}, ["2 feature values are not finite", "row 7, column 3"]),
    "features of another length": ({"x": arrays()["x"][:50]}, ["50 nodes"]),
    "labels of another length": (
        {"y": arrays()["y"][:50], "edge_index": np.array([[0], [1]])},
        ["50 labels", "60 nodes"],
    ),
    "labels in two dimensions": ({"y": np.eye(3)[arrays()["y"]]}, ["labels have shape (60, 3)", "argmax"]),
    "no nodes": (
        {"x": np.zeros((0, 3), np.float32), "edge_index": np.zeros((2, 0), int), "y": np.zeros(0, int)},
        ["no nodes"],
    ),
    "one class": ({"y": np.zeros(60, int)}, ["1 class", "at least two", "evaluation.protocol=none"]),
    "no edges in the file": ({"edge_index": None}, ["no array 'edge_index'", "it has x, y"]),
    "no features in the file": ({"x": None}, ["features"]),
    "words as features": ({"x": np.full((60, 2), "a")}, ["expected numbers"]),
    "objects in the file": ({"y": np.array([object()] * 60)}, ["y"]),
}


@pytest.mark.parametrize("case", list(BAD_GRAPHS))
def test_graphs(case: str, tmp_path: Path) -> None:
    changes, parts = BAD_GRAPHS[case]
    path = graph_file(tmp_path / "graph.npz", **changes)
    answer = fit(path)
    assert "graph" in answer.err
    for part in parts:
        assert part in answer.err
    if case != "one class":  # data that can be trained on, only not be read out
        assert cli("data", "check", path).code == 2


def test_one_class_trains_without_readout(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "graph.npz", y=np.zeros(60, int))
    more = ["--set", "evaluation.protocol=none"]
    assert cli("fit", RECIPE, "--data", path, "--run", "runs/one", *file_options(steps=1), *more).code == 0
    assert "1 class" in cli("data", "check", path).out


def truncated(path: Path) -> None:
    content = graph_file(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_a_zip(path: Path) -> None:
    path.write_bytes(b"hello")


def one_array(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").rename(path)


def damaged_inside(path: Path) -> None:
    content = bytearray(graph_file(path).read_bytes())
    content[len(content) // 3 : len(content) // 3 + 40] = b"\xff" * 40
    path.write_bytes(content)


@pytest.mark.parametrize("make", [truncated, empty, not_a_zip, one_array, damaged_inside])
def test_damaged_files(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    make(path)
    assert str(path) in fit(path).err
    assert cli("data", "check", path).code == 2


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing there, something else there, names the system does not take, an empty folder, no permission."""
    assert "no such file or folder here, and LEANLABEL_DATA is not set" in fit(Path("nowhere.npz")).err
    assert "does not exist" in fit(tmp_path / "nowhere.npz").err
    monkeypatch.setenv("LEANLABEL_DATA", str(tmp_path))
    assert f"nor below LEANLABEL_DATA ({tmp_path})" in fit(Path("nowhere.npz")).err
    (tmp_path / "graph.txt").write_text("0 1\n")
    assert "neither a folder nor an .npz file" in fit(tmp_path / "graph.txt").err
    (tmp_path / "folder").mkdir()
    assert "folder" in fit(tmp_path / "folder").err
    assert "cannot be looked at" in fit(Path("x" * 300)).err
    assert "cannot be looked at" in refused("data", "check", "~nobody-of-that-name/x").err


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without read permission, for root too, who may read everything."""
    path = graph_file(tmp_path / "graph.npz")
    real = open

    def guarded(file: object, *arguments: object, **options: object) -> object:
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", guarded)
    monkeypatch.setattr("io.open", guarded)
    answer = fit(path)
    assert str(path) in answer.err
    assert "Permission denied" in answer.err


def test_tables(tmp_path: Path) -> None:
    """A folder of tables: the line of the mistake."""
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "edges.csv").write_text("source,target\n0,1\n1,x\n")
    np.save(folder / "features.npy", np.ones((3, 2), np.float32))
    answer = fit(folder)
    assert "edges.csv" in answer.err
    assert "line 3" in answer.err
    (folder / "edges.csv").write_text("source,target\n0,1\n1,3\n")
    assert "edges.csv, line 3 refers to node 3" in fit(folder).err


# -------------------------------------------------------------------------------------- recipe and options


def test_unknown_recipe() -> None:
    answer = refused("fit", "gca/generatd", "--run", "runs/bad")
    assert answer.err == (
        "error: Unknown recipe 'gca/generatd': neither a file nor a packaged recipe.\n"
        "       Did you mean 'gca/generated'?\n"
    )
    refused("fit", "x" * 300)
    refused("compare", "gca/generated", "gca/generatd")


def test_unknown_method(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("steps: 3\nmethod:\n  name: gcaa\n")
    assert "Did you mean 'gca'?" in refused("fit", tmp_path / "mine.yaml").err
    (tmp_path / "mine.yaml").write_text("steps: 3\n")
    assert "method.name: missing; known methods: gca" in refused("fit", tmp_path / "mine.yaml").err


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("optim.lr=fast", "optim.lr: expected number, got 'fast'"),
        ("optim.lr=0", "optim.lr: expected greater than 0, got 0"),
        ("optim.lr=.inf", "optim.lr: expected finite number"),
        ("optim.betas=[0.9, 1.5]", "optim.betas.1: expected less than 1, got 1.5"),
        ("optim.learning_rate=1", "optim.learning_rate: unknown key"),
        ("steps=-1", "steps: expected greater than or equal to 0, got -1"),
        ("steps=2.5", "steps: expected integer"),
        ("seed=99999999999999999999", "seed: expected less than"),
        ("data.kind=drawn", "data.kind: expected 'file' or 'planted', got 'drawn'"),
        ("data.nodes=3", "nodes must be >= 6, got 3"),
        ("data.path=x", "data.path: unknown key"),
        ("augment.edge_rates=[0.5, 1.5]", "augment.edge_rates"),
        (
            "augment.scheme=betweenness",
            "augment.scheme: expected 'degree', 'pagerank', 'eigenvector' or 'uniform'",
        ),
        ("evaluation.protocol=logistic", "there is no protocol 'logistic'"),
        (
            "evaluation.shares=[0.5, 0.5, 0.5]",
            "evaluation.shares: expected three shares above 0 that sum to 1",
        ),
        ("evaluation.shares=[0.5, 0, 0.5]", "evaluation.shares: expected three shares above 0"),
        ("evaluation.split=public", "no published train and test"),
        ("evaluation.readout=foo", "evaluation.readout: expected 'trained', 'untrained' or 'raw'"),
        ("engine.accelerator=cudda", "engine.accelerator: expected"),
        ("engine.checkpoint_every=0", "engine.checkpoint_every: expected greater than or equal to 1, got 0"),
        ("engine", "write it as key.path=value"),
        ("=3", "write it as key.path=value"),
        ("optim.lr.x=3", "optim.lr is a value, not a section"),
        ("optim.lr=[", "is not a YAML value"),
    ],
)
def test_settings(assignment: str, part: str) -> None:
    answer = refused("fit", RECIPE, "--run", "runs/bad", *options(), "--set", assignment)
    assert part in answer.err


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    answer = refused("fit", RECIPE, "--run", "runs/bad", *options(engine__accelerator="cuda"))
    assert "accelerator cuda with 1 devices cannot be had here" in answer.err


def test_selection_that_cannot_be(tmp_path: Path) -> None:
    """best_val without anything to validate on: said before training, not at the first validation."""
    choice = {"evaluation__select": "best_val", "evaluation__every": 2}
    none = options(evaluation__protocol="none", **choice)
    assert "evaluation.select=best_val needs labels" in refused("fit", RECIPE, "--run", "runs/bad", *none).err
    path = graph_file(tmp_path / "graph.npz", y=None)
    extra = [part for key, value in choice.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
    assert "evaluation.select=best_val needs labels" in fit(path, *extra).err


def test_several_mistakes_at_once(tmp_path: Path) -> None:
    """File, line and option of every one, in one message."""
    path = tmp_path / "mine.yaml"
    path.write_text("base: gca/generated\nstps: 3\noptim:\n  lr: high\naugment:\n  edge_rate: [0.1, 0.1]\n")
    sets = ["--set", "model.width=0", "--set", "engine.device=2"]
    answer = refused("fit", path, "--run", "runs/bad", *sets)
    assert answer.err.splitlines() == [
        "error: 5 mistakes in recipe mine:",
        "--set engine.device=2: engine.device: unknown key; nearest valid key: engine.devices.",
        "--set model.width=0: model.width: expected greater than or equal to 1, got 0.",
        f"{path}, line 2: stps: unknown key; nearest valid key: steps.",
        f"{path}, line 4: optim.lr: expected number, got 'high'.",
        f"{path}, line 6: augment.edge_rate: unknown key; nearest valid key: augment.edge_rates.",
    ]
    wrong = ["--set", "a", "--set", "b=[", "--set", "seed.x=1"]
    assert len(refused("show", RECIPE, *wrong).err.splitlines()) == 3


def test_recipe_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 3\n  seed: 1\n")
    assert f"{path}, line 2: not valid YAML" in refused("fit", path).err
    path.write_text("steps: 3\nsteps: 4\n")
    assert "line 2: the key steps appears twice (first in line 1)" in refused("fit", path).err
    path.write_bytes(b"about: \xff\n")
    assert f"{path}: cannot be read" in refused("fit", path).err
    assert "no such recipe file" in refused("fit", tmp_path / "none.yaml").err


def test_two_data_where_there_is_one(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "graph.npz")
    answer = refused("fit", RECIPE, "--data", path, "--data", path)
    assert "data.source: unknown key" in answer.err
    assert "--data was given 3 times" in refused("fit", RECIPE, *["--data", path] * 3).err


# ------------------------------------------------------------------------------------------------ places


def test_run_folders(tmp_path: Path) -> None:
    """A folder that has a run, and one that cannot be made."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").write_text("steps: 1\n")
    answer = refused("fit", RECIPE, "--run", tmp_path / "taken", *options())
    assert "there is a run in this folder already" in answer.err
    assert f"leanlabel resume {tmp_path / 'taken'}" in answer.err
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["config.yaml"]
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "this folder cannot be made" in refused("fit", RECIPE, "--run", place, *options()).err
    assert (tmp_path / "file").read_text() == "mine"


def test_comparisons(tmp_path: Path) -> None:
    answer = refused("compare", RECIPE, "--out", "cmp", "--arm", "nope", *options())
    assert "This comparison has: gca-generated, raw, untrained, grace." in answer.err
    assert "optim.lrr" in refused("compare", RECIPE, "--out", "cmp", *options(optim__lrr=1)).err
    answer = cli("compare", RECIPE, "--out", "cmp", "--data", "nowhere", *file_options())
    assert answer.code == 2
    assert "nowhere: no such file or folder here" in answer.err
    assert not Path("cmp").exists()
