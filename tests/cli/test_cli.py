"""The command line, verb by verb: what is printed, what is written, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import leanlabel
from leanlabel.methods.gca import GCA
from leanlabel.recipe import packaged_recipes
from smallrun import RECIPE, SMALL, Answer, cli, file_options, graph_file, options


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """One run that many tests look at."""
    run = tmp_path_factory.mktemp("cli") / "runs" / "small"
    return run, cli("fit", RECIPE, "--run", run, *options())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default folders of runs are made below an empty folder; no real data is found by chance."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)


# ------------------------------------------------------------------------------------------- front door


def test_help_and_version() -> None:
    for flag in ("--help", "-h"):
        answer = cli(flag)
        assert answer.code == 0
        verbs = (
            "recipes",
            "show",
            "data",
            "fit",
            "resume",
            "evaluate",
            "predict",
            "preview",
            "embed",
            "compare",
            "report",
            "export",
            "doctor",
        )
        assert all(verb in answer.out for verb in verbs)
    assert cli("--version").out == f"leanlabel {leanlabel.__version__}\n"
    for verb in ("fit", "compare", "data", "embed"):
        assert cli(verb, "--help").code == 0


@pytest.mark.parametrize(
    "arguments", [["nope"], ["fit"], ["fit", RECIPE, "--nope"], ["compare", RECIPE, "--seeds", "0"], ["data"]]
)
def test_errors_of_usage(arguments: list[str]) -> None:
    answer = cli(*arguments)
    assert answer.code == 2
    assert "Traceback" not in answer.err


def test_debug_shows_the_traceback_and_keeps_the_exit_code() -> None:
    for place in (0, 1, 2):
        arguments = ["show", "no/such"]
        arguments.insert(place, "--debug")
        answer = cli(*arguments)
        assert answer.code == 2
        assert "Traceback" in answer.err
        assert "error: Unknown recipe 'no/such'" in answer.err
    assert "Traceback" not in cli("show", "no/such").err


def test_faults_end_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("leanlabel.api.resolve", broken)
    answer = cli("show", RECIPE)
    assert answer.code == 1
    assert "An unexpected fault: ZeroDivisionError: a bug" in answer.err
    assert "--debug" in answer.err
    assert "Traceback" not in answer.err
    answer = cli("show", RECIPE, "--debug")
    assert answer.code == 1
    assert "Traceback" in answer.err


# ------------------------------------------------------------------------------------ recipes, show, doctor


def test_recipes() -> None:
    rows = json.loads(cli("recipes", "--json").out)
    assert [row["name"] for row in rows] == list(packaged_recipes())
    assert all(
        row["task"]
        and row["about"]
        and row["cost"]
        and row["fidelity"] in ("official", "paper", "corrected", "reconstruction", "small")
        for row in rows
    )
    table = cli("recipes").out
    assert all(row["name"] in table for row in rows)
    chosen = json.loads(cli("recipes", "--task", "graph", "--json").out)
    assert chosen == [row for row in rows if row["task"] == "graph"]
    assert 0 < len(chosen) < len(rows)
    answer = cli("recipes", "--task", "grph")
    assert answer.code == 2
    assert "graph" in answer.err


def test_show(tmp_path: Path) -> None:
    """The output is a recipe again, and --set, --data and --json are honoured."""
    answer = cli("show", RECIPE, "--set", "optim.lr=1e-5", "--set", "about=no")
    assert answer.code == 0
    (tmp_path / "again.yaml").write_text(answer.out, encoding="utf-8")
    again = cli("show", tmp_path / "again.yaml")
    assert again.out == answer.out
    shown = json.loads(cli("show", RECIPE, "--set", "optim.lr=1e-5", "--json").out)
    assert shown["optim"]["lr"] == 1e-5
    path = graph_file(tmp_path / "g.npz")
    replaced = json.loads(cli("show", RECIPE, "--data", "g.npz", "--json").out)
    assert replaced["data"]["path"] == str(path)  # absolute: the run can be resumed from anywhere
    assert replaced["data"]["kind"] == "file"


def test_doctor() -> None:
    found = json.loads(cli("doctor", "--json").out)
    assert found["packages"]["leanlabel"]
    assert found["packages"]["torch"]
    assert isinstance(found["bf16_products"], bool)
    assert found["data_root"] is None
    assert set(found["extras"]) == {"graph", "text", "vision", "medical", "export"}
    table = cli("doctor")
    assert table.code == 0
    assert "LEANLABEL_DATA" in table.out


def test_doctor_names_a_data_root_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANLABEL_DATA", "/no/such/folder")
    assert json.loads(cli("doctor", "--json").out)["data_root"] == "/no/such/folder (no such folder)"


# ------------------------------------------------------------------------------------------------ data


def test_data_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graph_file(tmp_path / "good.npz")
    answer = cli("data", "check", path, "--json", "--html", tmp_path / "page.html")
    assert answer.code == 0
    rows = json.loads(answer.out)
    assert {"severity": "info", "code": "nodes", "message": "60 nodes", "count": 60} in rows
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "60 nodes" in page
    assert "<html" in page
    assert "60 nodes" in cli("data", "check", path).out
    assert cli("data", "check", RECIPE).code == 0
    monkeypatch.setenv("LEANLABEL_DATA", str(tmp_path))
    monkeypatch.chdir("/")
    assert cli("data", "check", "good.npz").code == 0  # found where fit would find it


def test_data_check_of_bad_data(tmp_path: Path) -> None:
    """Findings that stop a training, and files that are no graph: both end with 2, without a page half-written."""
    one_class = graph_file(tmp_path / "one.npz", y=np.zeros(60, dtype=np.int64))
    answer = cli("data", "check", one_class, "--html", tmp_path / "one.html")
    assert answer.code in (0, 2)
    assert (tmp_path / "one.html").exists()
    broken = graph_file(tmp_path / "broken.npz", edge_index=np.array([[0, 99], [1, 2]]))
    answer = cli("data", "check", broken, "--html", tmp_path / "broken.html")
    assert answer.code == 2
    assert "99" in answer.err
    assert not (tmp_path / "broken.html").exists()
    assert cli("data", "check", tmp_path / "missing.npz").code == 2
    assert cli("data", "check", "gca/coraa").code == 2
    assert "LEANLABEL_DATA is not set" in cli("data", "check", "gca/cora").err


# ----------------------------------------------------------------------------- fit, resume, evaluate, embed


def test_fit(fitted: tuple[Path, Answer]) -> None:
    run, answer = fitted
    assert answer.code == 0, answer.err
    for part in (
        "80 nodes",
        "topic 0: 14",
        "parameters",
        "centrality: computed",
        "raw",
        "untrained",
        "trained",
    ):
        assert part in answer.out
    assert f"run folder  {run}" in answer.out
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml",
        "run.json",
        "readout.safetensors",
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "timing.jsonl",
        "checkpoints",
        "stages",
        "model.safetensors",
        "splits.npz",
        "results.json",
        "warnings.json",
        "notes.json",
        "figures",
        "report.html",
    }
    assert "steps: 6" in (run / "config.yaml").read_text()


def test_fit_default_folder_and_json(tmp_path: Path) -> None:
    answer = cli(
        "fit", RECIPE, "--json", *options(steps=1, evaluation__protocol="none", augment__scheme="uniform")
    )
    assert answer.code == 0
    found = json.loads(answer.out)  # nothing else on standard output
    run = Path(found["run"])
    assert run.parent == Path("runs") / "gca" / "generated"
    assert found["protocols"] == {}
    assert found["t"] == 1
    assert (run / "report.html").exists()


def test_resume_of_a_finished_run(fitted: tuple[Path, Answer]) -> None:
    run, _ = fitted
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    answer = cli("resume", run, "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["t"] == 6
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_evaluate(fitted: tuple[Path, Answer]) -> None:
    run, _ = fitted
    answer = cli("evaluate", run)
    assert answer.code == 0
    assert "logistic-l2" in answer.out
    assert f"report      {run / 'report.html'}" in answer.out
    assert set(json.loads(cli("evaluate", run, "--json").out)["protocols"]) == {"logistic-l2"}
    before = (run / "results.json").read_bytes()
    answer = cli("evaluate", run, "--protocol", "logistc-l2")
    assert answer.code == 2
    assert "Did you mean logistic-l2?" in answer.err
    assert (run / "results.json").read_bytes() == before


def test_embed(fitted: tuple[Path, Answer], tmp_path: Path) -> None:
    run, _ = fitted
    answer = cli("embed", run, "--out", tmp_path / "z.npy")
    assert answer.code == 0
    assert "80 embeddings of width 16" in answer.out
    assert np.load(tmp_path / "z.npy").shape == (80, 16)
    for out, part in (
        ("z.txt", "not .txt"),
        ("z", "a name without an ending"),
        ("no/z.npy", "the folder no does not exist"),
    ):
        answer = cli("embed", run, "--out", out)
        assert answer.code == 2
        assert part in answer.err
    (tmp_path / "folder.npy").mkdir()
    assert "this is a folder" in cli("embed", run, "--out", "folder.npy").err
    answer = cli("embed", run, graph_file(tmp_path / "g.npz"), "--out", "other.npy")
    assert answer.code == 2
    assert "12 features per node, the model was trained on 150" in answer.err
    assert not (tmp_path / "other.npy").exists()


def test_report(fitted: tuple[Path, Answer], tmp_path: Path) -> None:
    run, _ = fitted
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert cli("report", run).out == f"report      {run / 'report.html'}\n"
    assert (run / "report.html").read_bytes() == before
    for place in (tmp_path, tmp_path / "none"):
        answer = cli("report", place)
        assert answer.code == 2
        assert str(place) in answer.err


@pytest.mark.parametrize("verb", ["resume", "evaluate", "embed", "report"])
def test_errors_not_a_run(verb: str, tmp_path: Path) -> None:
    extra = ["--out", "z.npy"] if verb == "embed" else []
    assert "no such run folder" in cli(verb, tmp_path / "none", *extra).err
    (tmp_path / "empty").mkdir()
    assert "it has no config.yaml" in cli(verb, tmp_path / "empty", *extra).err
    (tmp_path / "file").write_text("")
    assert cli(verb, tmp_path / "file", *extra).code == 2


def test_errors_damaged_run(fitted: tuple[Path, Answer], tmp_path: Path) -> None:
    """A config with a mistake, cut-off weights: named, and nothing of the run is touched."""
    run = tmp_path / "run"
    run.mkdir()
    config = (fitted[0] / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("steps: 6", "steps: six"))
    answer = cli("evaluate", run)
    assert answer.code == 2
    assert "config.yaml, line 6: steps: expected integer, got 'six'" in answer.err
    (run / "config.yaml").write_text(config)
    answer = cli("evaluate", run)
    assert answer.code == 2
    assert "nothing is trained yet" in answer.err
    assert "leanlabel resume" in answer.err
    (run / "model.safetensors").write_bytes((fitted[0] / "model.safetensors").read_bytes()[:50])
    answer = cli("evaluate", run)
    assert answer.code == 2
    assert "model.safetensors: cannot be read as safetensors" in answer.err
    assert not (run / "results.json").exists()


def test_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: saved, exit code 130, and told how to go on; going on gives the result of an undisturbed run."""
    step = GCA.step

    def interrupted(self: GCA, t: int, batch: object) -> None:
        if t == 2:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, t, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(GCA, "step", interrupted)
    small = options(evaluation__protocol="none", augment__scheme="uniform")
    answer = cli("fit", RECIPE, "--run", "run", *small)
    assert answer.code == 130
    assert "Stopped after iteration 3 of 6; everything is saved." in answer.err
    assert "leanlabel resume run" in answer.err
    monkeypatch.setattr(GCA, "step", step)
    assert cli("resume", "run").code == 0
    assert cli("fit", RECIPE, "--run", "whole", *small).code == 0
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_file_data_by_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a file given by a relative path can be used from another working directory, stages included."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    graph_file(tmp_path / "here" / "g.npz")
    small = file_options(steps=1, evaluation__protocol="none")
    assert cli("fit", RECIPE, "--data", "g.npz", "--run", "runs/a", *small).code == 0
    monkeypatch.chdir(tmp_path / "there")
    answer = cli("resume", "../here/runs/a")
    assert answer.code == 0, answer.err
    assert "taken from an earlier run" in answer.out
    assert list((tmp_path / "there").iterdir()) == []


# ------------------------------------------------------------------------------------------- processes


def test_processes(tmp_path: Path) -> None:
    """The installed command in a real process: exit code and streams as in-process."""
    done = subprocess.run(
        [sys.executable, "-m", "leanlabel", "show", "gca/cora", "--set", "steps=x", "--set", "modle.width=3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "error: 2 mistakes in recipe gca/cora:"
    assert "nearest valid key: model." in done.stderr
    assert "Traceback" not in done.stderr


def test_small_settings_are_all_valid() -> None:
    assert cli("show", RECIPE, *options()).code == 0
    assert len(options()) == 2 * len(SMALL)
