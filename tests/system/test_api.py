"""Whole runs through the Python interface: what they leave, what can be done with them, what they refuse."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import leanlabel
from leanlabel import api
from leanlabel.data.splits import load_splits
from leanlabel.engine import checkpoint
from leanlabel.engine.runfolder import read_json, read_lines
from leanlabel.errors import InputError, RunError
from leanlabel.methods.gca import GCA
from leanlabel.recipe import Recipe, read_recipe
from smallrun import RECIPE, arrays, graph_file, overrides

UNIFORM = {"steps": 2, "augment__scheme": "uniform"}


def fit(folder: Path, **changes: Any) -> api.Run:
    return leanlabel.fit(RECIPE, run=folder, overrides=overrides(**changes), quiet=True)


def fit_file(folder: Path, data: Path, **changes: Any) -> api.Run:
    """A run on a graph file."""
    plain = [text for text in overrides(**(UNIFORM | changes)) if not text.startswith("data.")]
    return leanlabel.fit(RECIPE, data=data, run=folder, overrides=plain, quiet=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """One run of six iterations; tests that write take a copy."""
    return fit(tmp_path_factory.mktemp("api") / "run")


@pytest.fixture
def copy(small: api.Run, tmp_path: Path) -> Path:
    shutil.copytree(small.path, tmp_path / "copy")
    return tmp_path / "copy"


# ------------------------------------------------------------------------------------------------- fit


def test_values(small: api.Run) -> None:
    """Metrics of every iteration, three readouts side by side, recorded splits, counts, a page."""
    assert [row["t"] for row in small.metrics] == list(range(6))
    assert set(small.metrics[0]) == {"t", "loss", "dead_units", "edge_drop_1", "edge_drop_2"}
    assert small.metrics[0]["loss"] == pytest.approx(
        np.log(2 * 80 - 1), rel=0.05
    )  # nothing is told apart yet
    assert small.metrics[-1]["loss"] < small.metrics[0]["loss"]
    found = small.results["protocols"]["logistic-l2"]
    assert list(found["readouts"]) == ["raw", "untrained", "trained"]
    assert all(0 <= one["mean"] <= 1 and len(one["per_split"]) == 2 for one in found["readouts"].values())
    assert (found["metric"], found["split"]["name"], found["split"]["count"]) == ("accuracy", "random", 2)
    splits = load_splits(small.path / "splits.npz")
    assert [(len(split.train), len(split.val), len(split.test)) for split in splits] == [(8, 8, 64)] * 2
    data = read_json(small.path / "data.json")
    assert data["counts"]["nodes"] == 80
    assert sum(row["count"] for row in data["classes"]) == 80
    assert small.results["parameters"] == sum(p.numel() for p in small.method.parameters())
    assert small.config.steps == 6
    assert any("no training node" in text for text in small.warnings)
    assert "logistic-l2" in (small.path / "report.html").read_text()
    figure = read_json(small.path / "figures" / "embedding.json")
    assert len(figure["points"]) == len(figure["labels"]) == 80
    assert not list(small.path.rglob("*.tmp"))


def test_values_of_json(small: api.Run) -> None:
    """Every JSON file is strict JSON: no NaN, no Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for path in [*small.path.rglob("*.json"), small.path / "metrics.jsonl", small.path / "timing.jsonl"]:
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=refuse)


def test_seeds(small: api.Run, tmp_path: Path) -> None:
    """The same seed gives the same bits; another seed other weights, another start and other splits."""
    again = fit(tmp_path / "again")
    for name in ("metrics.jsonl", "model.safetensors", "splits.npz", "config.yaml", "data.json"):
        assert (small.path / name).read_bytes() == (again.path / name).read_bytes(), name
    other = fit(tmp_path / "other", seed=1, evaluation__protocol="none")
    first, second = small.untrained().state_dict(), other.untrained().state_dict()
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    assert other.metrics[0]["loss"] != small.metrics[0]["loss"]


def test_values_of_a_recipe_in_memory(tmp_path: Path) -> None:
    """Raw keys in Python; nothing to train and nothing to read out is fine too."""
    raw = read_recipe(RECIPE)
    recipe = Recipe("mine", {**raw.values, "steps": 0, "evaluation": {"protocol": "none"}})
    run = leanlabel.fit(recipe, run=tmp_path / "run", overrides=["data.nodes=30", "engine.loggers=[]"])
    assert run.results["protocols"] == {}
    assert run.metrics == []
    assert set(run.results["monitors"]) == {"untrained"}
    assert read_json(tmp_path / "run" / "run.json")["recipe"] == "mine"
    state = run.untrained().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in run.method.state_dict().items())


def test_values_of_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """select=best_val keeps the weights of the best validation, the first of equal ones."""
    scores = iter([0.2, 0.7, 0.7])
    monkeypatch.setattr(GCA, "validate", lambda self, t: next(scores))
    run = fit(
        tmp_path / "run",
        evaluation__select="best_val",
        evaluation__every=2,
        evaluation__protocol="logistic-l2",
    )
    best = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert (best.t, best.best) == (4, {"score": 0.7, "t": 4.0})
    kept = checkpoint.load_weights(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in best.method.items())
    last = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert last is not None
    assert any(not torch.equal(kept[name], value) for name, value in last.method.items())
    assert run.results["weights"] == "best_val"


def test_degenerate_without_labels(tmp_path: Path) -> None:
    """A graph without labels trains, embeds and reports; it says that nothing could be read out."""
    run = fit_file(tmp_path / "run", graph_file(tmp_path / "graph.npz", y=None))
    assert run.results["protocols"] == {}
    assert run.warnings == ["the data has no labels: embeddings were trained, but nothing could be read out"]
    assert not (run.path / "splits.npz").exists()
    assert "could be read out" in (run.path / "report.html").read_text()
    assert run.embed().shape == (60, 16)


def test_degenerate_with_some_labels(tmp_path: Path) -> None:
    """Unlabelled nodes are embedded, but are in no split."""
    y = arrays()["y"].copy()
    y[::2] = -1
    run = fit_file(tmp_path / "run", graph_file(tmp_path / "graph.npz", y=y))
    for split in load_splits(run.path / "splits.npz"):
        assert (torch.cat([split.train, split.val, split.test]) % 2 == 1).all()
    assert read_json(run.path / "data.json")["classes"][0]["count"] == int((y == 0).sum())


def test_degenerate_public_split(tmp_path: Path) -> None:
    path = graph_file(
        tmp_path / "graph.npz",
        train_idx=np.arange(0, 12),
        val_idx=np.arange(12, 24),
        test_idx=np.arange(24, 60),
    )
    run = fit_file(tmp_path / "run", path, evaluation__split="auto")
    (split,) = load_splits(run.path / "splits.npz")
    assert (split.name, split.train.tolist()) == ("public", list(range(12)))
    assert run.results["protocols"]["logistic-l2"]["split"]["name"] == "public"


# ---------------------------------------------------------------------------------- load, embed, evaluate


def test_state_of_a_loaded_run(small: api.Run, tmp_path: Path) -> None:
    """A run read back has the weights it was left with; an unfinished one those of its newest checkpoint."""
    loaded = leanlabel.load(small.path)
    assert torch.equal(loaded.embed(), small.embed())
    assert not loaded.method.training
    assert loaded.embed().requires_grad is False
    shutil.copytree(small.path, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "model.safetensors").unlink()
    assert torch.equal(leanlabel.load(tmp_path / "unfinished").embed(), small.embed())
    shutil.rmtree(tmp_path / "unfinished" / "checkpoints")
    with pytest.raises(InputError, match="nothing is trained yet"):
        leanlabel.load(tmp_path / "unfinished").embed()


def test_embed(small: api.Run, tmp_path: Path) -> None:
    """The same rows as .npy and .parquet, the ids of the data beside them."""
    assert api.embed(small.path, None, tmp_path / "z.npy") == (80, 16)
    rows = np.load(tmp_path / "z.npy")
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, small.embed().numpy())
    parquet = pytest.importorskip("pyarrow.parquet")
    api.embed(small.path, None, tmp_path / "z.parquet")
    table = parquet.read_table(tmp_path / "z.parquet")
    assert table.column_names == ["id", *(f"e{k}" for k in range(16))]
    assert table["id"].to_pylist() == list(range(80))
    np.testing.assert_array_equal(table["e3"].to_numpy(), rows[:, 3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["z.npy", "z.parquet"]


def test_embed_other_data(tmp_path: Path) -> None:
    """Another graph with the same features, its ids kept; other features are refused."""
    run = fit_file(tmp_path / "run", graph_file(tmp_path / "graph.npz"), evaluation__protocol="none")
    ids = np.array([f"n{k}" for k in range(30)])
    other = tmp_path / "other.npz"
    graph_file(other, **arrays(30, seed=1), ids=ids)
    parquet = pytest.importorskip("pyarrow.parquet")
    assert api.embed(run.path, str(other), tmp_path / "z.parquet") == (30, 16)
    assert parquet.read_table(tmp_path / "z.parquet")["id"].to_pylist() == ids.tolist()
    wider = graph_file(tmp_path / "wider.npz", x=np.ones((60, 13), np.float32))
    with pytest.raises(InputError, match="13 features per node, the model was trained on 12"):
        api.embed(run.path, str(wider), tmp_path / "w.npy")
    assert not (tmp_path / "w.npy").exists()


def test_evaluate_by_another_protocol(copy: Path) -> None:
    """Added to the results; what was there stays."""
    before = read_json(copy / "results.json")
    run = leanlabel.load(copy)
    short = run.config.evaluation.model_copy(update={"probe_epochs": 40})
    run.config = run.config.model_copy(update={"evaluation": short})
    found = leanlabel.evaluate(run, "gca-probe")
    assert list(found["protocols"]) == ["logistic-l2", "gca-probe"]
    assert found["protocols"]["logistic-l2"] == before["protocols"]["logistic-l2"]
    assert read_json(copy / "results.json") == found
    assert "gca-probe" in (copy / "report.html").read_text()
    assert leanlabel.evaluate(copy, "none")["protocols"] == found["protocols"]
    with pytest.raises(InputError, match="no protocol 'mean'"):
        leanlabel.evaluate(copy, "mean")
    assert read_json(copy / "results.json")["protocols"] == found["protocols"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_errors_read_only(copy: Path) -> None:
    """A run folder without write permission can be read; what wants to write says so."""
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        run = leanlabel.load(copy)
        assert run.embed().shape == (80, 16)
        with pytest.raises(RunError, match="could not be written"):
            run.evaluate()
    finally:
        for path in [copy, *copy.rglob("*")]:
            path.chmod(0o755)


# ----------------------------------------------------------------------------------------------- resume


def test_resume_of_a_finished_run_changes_nothing(copy: Path) -> None:
    before = contents(copy)
    leanlabel.resume(copy, quiet=True)
    assert contents(copy) == before


def test_resume_from_a_checkpoint(small: api.Run, copy: Path) -> None:
    """Everything after a checkpoint thrown away, as after a kill: the same bits in the end."""
    for name in ("model.safetensors", "results.json", "warnings.json", "splits.npz", "report.html"):
        (copy / name).unlink()
    (copy / "checkpoints" / "t=00000006.ckpt").unlink()
    leanlabel.resume(copy, quiet=True)
    for name in ("metrics.jsonl", "model.safetensors", "splits.npz", "warnings.json"):
        assert (copy / name).read_bytes() == (small.path / name).read_bytes(), name
    assert leanlabel.load(copy).results["protocols"] == small.results["protocols"]


def test_resume_without_a_checkpoint(small: api.Run, copy: Path) -> None:
    """Killed before the first checkpoint: from the start."""
    shutil.rmtree(copy / "checkpoints")
    (copy / "model.safetensors").unlink()
    leanlabel.resume(copy, quiet=True)
    assert (copy / "metrics.jsonl").read_bytes() == (small.path / "metrics.jsonl").read_bytes()
    assert (copy / "model.safetensors").read_bytes() == (small.path / "model.safetensors").read_bytes()


def test_resume_without_its_stages(small: api.Run, copy: Path, tmp_path: Path) -> None:
    """A run folder copied without the shared stages computes them again, beside itself."""
    (copy / "checkpoints" / "t=00000006.ckpt").unlink()
    said: list[str] = []
    leanlabel.resume(copy, quiet=True, tell=said.append)
    assert "stage       centrality: computed" in said
    assert (tmp_path / "stages").is_dir()
    assert (copy / "model.safetensors").read_bytes() == (small.path / "model.safetensors").read_bytes()


def test_errors_damaged_checkpoint(copy: Path) -> None:
    newest = copy / "checkpoints" / "t=00000006.ckpt"
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(RunError, match=r"t=00000006.ckpt: this checkpoint cannot be read.*Delete it"):
        leanlabel.resume(copy, quiet=True)
    newest.unlink()
    leanlabel.resume(copy, quiet=True)
    assert checkpoint.load(newest).t == 6


def test_errors_data_changed(tmp_path: Path) -> None:
    """The file behind a run is another one now: refused, nothing touched."""
    path = graph_file(tmp_path / "graph.npz")
    run = fit_file(tmp_path / "run", path, evaluation__protocol="none")
    before = contents(run.path)
    x = arrays()["x"].copy()
    x[3, 5] += 1
    graph_file(path, x=x)
    with pytest.raises(InputError, match="the data is not what this run was started on"):
        leanlabel.resume(run.path, quiet=True)
    assert contents(run.path) == before
    path.unlink()
    with pytest.raises(InputError, match=r"graph\.npz does not exist"):
        leanlabel.resume(run.path, quiet=True)


# ------------------------------------------------------------------------------------------------ errors


def test_errors_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for bad in (
        ["evaluation.protocol=x"],
        ["optim.lr=.inf"],
        ["data.classes=500"],
        ["engine.accelerator=mps"],
    ):
        if bad[0].endswith("mps") and torch.backends.mps.is_available():
            continue
        with pytest.raises(InputError):
            leanlabel.fit(RECIPE, overrides=[*overrides(), *bad], quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_errors_in_training_keep_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that explodes: the iteration, the term and the last good checkpoint are named."""
    real = GCA.report

    def spoiled(self: GCA, **terms: Any) -> None:
        if self._updater.t == 4 and "loss" in terms:  # type: ignore[union-attr]
            terms["loss"] = terms["loss"] * float("nan")
        real(self, **terms)

    update = GCA.update
    monkeypatch.setattr(GCA, "report", spoiled)
    monkeypatch.setattr(
        GCA, "update", lambda self, loss: update(self, loss * float("nan") if self._updater.t == 4 else loss)
    )
    with pytest.raises(RunError) as caught:
        fit(tmp_path / "run")
    assert "Iteration 4: term loss is not finite" in caught.value.message
    assert "t=00000004.ckpt" in (caught.value.suggestion or "")
    assert [row["t"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 3]
    monkeypatch.undo()
    leanlabel.resume(tmp_path / "run", quiet=True)
    assert len(leanlabel.load(tmp_path / "run").metrics) == 6


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "changes",
    [
        {"data__draws": 0},
        {"data__noise_draws": 0, "data__draws": 1},
        {"augment__edge_rates": "[1.0, 1.0]", "augment__feature_rates": "[1.0, 1.0]"},
        {"augment__scheme": "eigenvector", "data__draws": 30},
        {"augment__scheme": "pagerank", "augment__official_centrality": "true"},
        {"engine__precision": "64-true"},
        {"engine__precision": "bf16-mixed"},
        {"engine__bf16_products": "true"},
        {"method__chunk": 7, "augment__level": "topology"},
    ],
    ids=str,
)
def test_degenerate_settings(changes: dict[str, Any], tmp_path: Path) -> None:
    """No edges, hardly any, empty views, disconnected graphs, every number format: finite losses to the end."""
    run = fit(tmp_path / "run", **{"steps": 2, "evaluation__protocol": "none", **changes})
    assert [row["t"] for row in run.metrics] == [0, 1]
    assert all(np.isfinite(row["loss"]) for row in run.metrics)
    assert torch.isfinite(run.embed()).all()
