"""Predictions and exports of whole runs, through the command line and in Python."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import leanlabel
from leanlabel import api, export
from leanlabel.data.graph_source import GraphFile, open_graph
from leanlabel.errors import InputError
from leanlabel.recipe import Recipe, merge, read_recipe
from smallrun import RECIPE, arrays, cli, file_options, graph_file, options, overrides

METHODS = ("bgrl", "cca-ssg", "dgi", "supervised-graph")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """A run on a generated graph; tests that write take a copy."""
    return leanlabel.fit(
        RECIPE,
        run=tmp_path_factory.mktemp("predict") / "run",
        overrides=overrides(data__nodes=48),
        quiet=True,
    )


@pytest.fixture(scope="module")
def fileful(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on a graph file with a published split, and the file."""
    folder = tmp_path_factory.mktemp("fileful")
    parts = {"train_idx": np.arange(0, 20), "val_idx": np.arange(20, 40), "test_idx": np.arange(40, 60)}
    data = graph_file(folder / "graph.npz", **parts)
    chosen = file_options(steps=2, augment__scheme="uniform", evaluation__split="auto")
    assert cli("fit", RECIPE, "--data", data, "--run", folder / "run", *chosen).code == 0
    return folder / "run", data


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_values(run: api.Run, tmp_path: Path) -> None:
    """The run's own data: a row per node, a summary with the accuracy that was measured."""
    answer = cli("predict", run.path, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    rows = table(tmp_path / "out")
    p = run.predict()
    assert len(rows) == 48
    assert p.shape == (48, 6)
    assert rows[0]["class"] == run.classes[int(p[0].argmax())]
    assert np.float32(rows[0]["probability"]) == p[0].max()
    assert all(row["seen"] == "true" for row in rows)  # random splits: every label is used
    told = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (
        told["readout"]["expected"]["accuracy"]
        == run.results["protocols"]["logistic-l2"]["readouts"]["trained"]["mean"]
    )
    assert told["model"]["recipe"] == RECIPE
    assert "accuracy 0." in answer.out
    assert "seen        48 rows" in answer.out
    as_json = cli("predict", run.path, "--out", tmp_path / "again", "--json", "--format", "npz")
    assert json.loads(as_json.out) == [{**told, "format": "npz"}]


def test_values_of_a_published_split(fileful: tuple[Path, Path], tmp_path: Path) -> None:
    """Only the training part is seen, in the run's own data as well as in the same file given by name."""
    folder, data = fileful
    for inputs in ([], [data]):
        out = tmp_path / str(len(inputs))
        assert cli("predict", folder, *inputs, "--out", out).code == 0
        assert [k for k, row in enumerate(table(out)) if row["seen"] == "true"] == list(range(20))
    bare = graph_file(tmp_path / "bare.npz", y=None)  # the same rows, without their labels
    assert cli("predict", folder, bare, "--out", tmp_path / "bare").code == 0
    assert sum(row["seen"] == "true" for row in table(tmp_path / "bare")) == 20


def test_values_of_other_graphs(fileful: tuple[Path, Path], tmp_path: Path) -> None:
    """Several inputs, files and folders, ids kept; a folder each."""
    folder, _ = fileful
    ids = np.array([f"n,{k}" for k in range(30)])
    first = graph_file(tmp_path / "first.npz", **arrays(30, seed=1), ids=ids)
    second = tmp_path / "second.d"
    second.mkdir()
    content = arrays(15, seed=2)
    np.savetxt(second / "edges.csv", content["edge_index"].T, "%d", ",", header="source,target", comments="")
    np.save(second / "features.npy", content["x"])
    answer = cli("predict", folder, first, second, "--out", tmp_path / "out", "--json")
    assert answer.code == 0, answer.err
    assert [one["rows"] for one in json.loads(answer.out)] == [30, 15]
    assert [row["id"] for row in table(tmp_path / "out" / "first")] == ids.tolist()
    found = leanlabel.load(folder)
    p = found.predict(found.open(str(second)))
    assert [row["class"] for row in table(tmp_path / "out" / "second.d")] == [
        found.classes[c] for c in p.argmax(1)
    ]


def test_values_of_an_export(fileful: tuple[Path, Path], tmp_path: Path) -> None:
    """Bit for bit the run's predictions: in memory, and in the files."""
    folder, data = fileful
    assert cli("export", folder, "--format", "safetensors", "--out", tmp_path / "model").code == 0
    found, whole = export.load(tmp_path / "model"), leanlabel.load(folder)
    assert torch.equal(found.predict(whole.data), whole.predict())
    assert torch.equal(found.embed(found.open(str(data))), whole.embed())
    for name, model in (("run", folder), ("export", tmp_path / "model")):
        assert cli("predict", model, data, "--out", tmp_path / name).code == 0
    for file in ("predictions.csv", "predictions.json"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "export" / file).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_values_of_every_method(method: str, tmp_path: Path) -> None:
    """Embeddings and probabilities survive the export, batch norms and target networks included."""
    raw = merge(read_recipe(f"{method}/generated").values, {"model": {"norm": "batch"}, "steps": 2})
    chosen = [text for text in overrides(steps=2, data__nodes=48) if not text.startswith("model.projection")]
    run = leanlabel.fit(Recipe("sample", raw), run=tmp_path / "run", overrides=chosen, quiet=True)
    for form in export.FORMATS:
        if form == "onnx":
            pytest.importorskip("onnxruntime")
        run.export(form, tmp_path / form)
    found = export.load(tmp_path / "safetensors")
    assert torch.equal(found.predict(run.data), run.predict())
    assert torch.equal(export.load(tmp_path / "backbone").embed(run.data), run.embed())
    if method == "supervised-graph":
        torch.testing.assert_close(run.predict(), run.method.logits(run.data)[0].softmax(1))
        assert run.classifier is not None
        assert run.classifier.about["expected"]["protocol"] == "own classifier"


def test_state_of_the_readout(run: api.Run, tmp_path: Path) -> None:
    """Made when the run is evaluated; made again for a run without it, as accurate."""
    assert (run.path / "readout.safetensors").exists()
    shutil.copytree(run.path, tmp_path / "old")
    (tmp_path / "old" / "readout.safetensors").unlink()
    old = leanlabel.load(tmp_path / "old")
    torch.testing.assert_close(old.predict(), run.predict())
    assert not (tmp_path / "old" / "readout.safetensors").exists()  # looking at a run changes nothing
    old.evaluate()
    assert (tmp_path / "old" / "readout.safetensors").read_bytes() == (
        run.path / "readout.safetensors"
    ).read_bytes()
    (tmp_path / "old" / "readout.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"readout\.safetensors: cannot be read"):
        _ = leanlabel.load(tmp_path / "old").classes


def test_degenerate_without_labels(tmp_path: Path) -> None:
    """No classes to name: refused with a way out; everything else works."""
    data = graph_file(tmp_path / "graph.npz", y=None)
    chosen = file_options(steps=1, augment__scheme="uniform")
    assert cli("fit", RECIPE, "--data", data, "--run", tmp_path / "run", *chosen).code == 0
    answer = cli("predict", tmp_path / "run", "--out", tmp_path / "out")
    assert answer.code == 2
    assert "cannot name classes" in answer.err
    assert "leanlabel embed" in answer.err
    assert not (tmp_path / "out").exists()
    run = leanlabel.load(tmp_path / "run")
    assert run.classes == []
    with pytest.raises(InputError, match="cannot name classes"):
        run.predict()
    assert cli("export", run.path, "--format", "safetensors", "--out", tmp_path / "model").code == 0
    assert torch.equal(export.load(tmp_path / "model").embed(run.data), run.embed())
    answer = cli("predict", tmp_path / "model", data, "--out", tmp_path / "out")
    assert (answer.code, (tmp_path / "out").exists()) == (2, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "WIDE", "--out", "OUT"], "13 features per node, the model was trained on 12"),
        (["RUN", "nowhere.npz", "--out", "OUT"], "nowhere.npz: no such file or folder"),
        (["nowhere", "--out", "OUT"], "nowhere: no such run folder"),
        (["MODEL", "--out", "OUT"], "an export holds no data"),
        (["RUN", "--out", "OUT", "--format", "xlsx"], "csv, parquet, npz"),
        (["RUN", "--out", "MODEL"], "this folder is not empty"),
        (["RUN", "--out", "RUN", "--force"], "this is the folder of a run"),
        (["BACKBONE", "DATA", "--out", "OUT"], "cannot name classes"),
    ],
    ids=str,
)
def test_errors(
    arguments: list[str], message: str, fileful: tuple[Path, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    """Exit 2, one sentence, nothing written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    folder, data = fileful
    leanlabel.load(folder).export("safetensors", tmp_path / "model")
    leanlabel.load(folder).export("backbone", tmp_path / "backbone")
    graph_file(tmp_path / "wide.npz", x=np.ones((60, 13), np.float32))
    places = {
        "RUN": folder,
        "DATA": data,
        "WIDE": tmp_path / "wide.npz",
        "OUT": tmp_path / "out",
        "MODEL": tmp_path / "model",
        "BACKBONE": tmp_path / "backbone",
    }
    before = sorted(path.name for path in folder.iterdir())
    answer = cli("predict", *(places.get(one, one) for one in arguments))
    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in folder.iterdir()) == before


def test_errors_of_export(run: api.Run, tmp_path: Path) -> None:
    for arguments, message in (
        (["--format", "pickle"], "an export is one of safetensors, onnx, backbone"),
        (["--format", "safetensors", "--out", str(run.path), "--force"], "this is the folder of a run"),
        (["--format", "onnx", "--out", str(run.path / "figures"), "--force"], "this belongs to the run"),
    ):
        answer = cli("export", run.path, "--out", tmp_path / "out", *arguments)
        assert answer.code == 2
        assert message in answer.err
    assert cli("export", tmp_path / "nowhere", "--format", "onnx", "--out", tmp_path / "out").code == 2
    assert list(tmp_path.iterdir()) == []


def test_values_of_onnx(run: api.Run, tmp_path: Path) -> None:
    """Outside of this library: onnxruntime on a graph of another size, with the description at hand."""
    onnxruntime = pytest.importorskip("onnxruntime")
    answer = cli("export", run.path, "--format", "onnx", "--out", tmp_path / "model")
    assert answer.code == 0, answer.err
    assert "largest difference from the original" in answer.out
    settings = run.config.model_dump()["data"] | {"nodes": 70, "seed": 7}
    from leanlabel.data.graph_source import PlantedGraph

    other = open_graph(PlantedGraph.model_validate(settings))
    x = other.x if isinstance(other.x, torch.Tensor) else other.x.to_dense()
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx")
    embedding, p = session.run(
        ["embedding", "probabilities"], {"x": x.numpy(), "edge_index": other.edge_index.numpy()}
    )
    torch.testing.assert_close(torch.from_numpy(embedding), run.embed(other), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(p), run.predict(other), rtol=1e-4, atol=1e-5)
    told = json.loads((tmp_path / "model" / "pipeline.json").read_text())
    assert told["classes"] == run.classes
    assert told["provenance"]["iterations"] == 6


def test_settings_of_the_data_travel(tmp_path: Path) -> None:
    """An export reads a graph as the run's recipe does."""
    data = graph_file(tmp_path / "graph.npz")
    chosen = file_options(
        steps=1, augment__scheme="uniform", data__undirected="false", data__normalise="shifted"
    )
    assert cli("fit", RECIPE, "--data", data, "--run", tmp_path / "run", *chosen).code == 0
    leanlabel.load(tmp_path / "run").export("safetensors", tmp_path / "model")
    found = export.load(tmp_path / "model")
    assert found.preprocessing == {"normalise": "shifted", "undirected": False, "features": "file"}
    read = open_graph(GraphFile(path=str(data), undirected=False))
    assert torch.equal(found.open(str(data)).edge_index, read.edge_index)


def test_help() -> None:
    for verb in ("predict", "export"):
        assert cli(verb, "--help").code == 0
    assert cli("predict").code == 2
    assert cli("fit", RECIPE, "--help", *options()).code == 0
