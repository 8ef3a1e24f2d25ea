"""Exports as safetensors: written whole, read back, refused when they are not sound."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from exportsamples import NAMES, graph, model
from safetensors.torch import load_file, save_file

from leanlabel import export
from leanlabel.engine.method import Exported
from leanlabel.errors import InputError, RunError
from leanlabel.export.graph_nodes import GraphNodes
from leanlabel.export.reading import weights_file
from leanlabel.export.staging import check_target, staged
from leanlabel.export.writing import Model, write
from leanlabel.models.graph import ADJACENCY, GraphEncoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(model(), "safetensors", tmp_path / "model")
    return tmp_path / "model"


def original() -> GraphNodes:
    made = model()
    return GraphNodes(made.exported.config, made.exported.tensors, made.classifier)


def test_values(folder: Path) -> None:
    """Read back it computes the same bits and knows where it comes from."""
    made, data = original(), graph(30, 80, seed=5)
    found = export.load(folder)
    assert torch.equal(found.embed(data), made.embed(data))
    assert torch.equal(found.predict(data), made.predict(data))
    assert found.classes == list(NAMES)
    assert found.provenance == {"recipe": "sample", "method": "none"}
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (told["library"], told["kind"], told["format"]) == ("leanlabel", "graph-nodes", "safetensors")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_values_of_an_opened_graph(folder: Path, tmp_path: Path) -> None:
    """Read as the training graph was: here with reverse edges added, and degrees for features."""
    config = json.loads((folder / "config.json").read_text())
    config["preprocessing"] = {"normalise": "none", "undirected": True, "features": "degree"}
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "edges.csv").write_text("source,target\n0,1\n1,2\n")
    found = export.load(folder).open(str(tmp_path / "g"))
    assert found.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert found.undirected


def test_loading_is_light(folder: Path) -> None:
    """Neither the training engine nor a method nor scikit-learn is loaded to embed and predict."""
    code = (
        "import sys, torch\n"
        "from leanlabel import export\n"
        "from leanlabel.data.graphs import Graph\n"
        f"model = export.load({str(folder)!r})\n"
        "edges = torch.tensor([[0, 1], [1, 0]])\n"
        "print(model.predict(Graph(torch.rand(3, 6), edges, None, 3, 'g', True)).shape)\n"
        "heavy = ('lightning_fabric', 'sklearn', 'leanlabel.methods', 'leanlabel.engine.fit', 'leanlabel.api')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["torch.Size([3, 3])", "[]"]


@pytest.mark.parametrize("convolution", ADJACENCY)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_values_of_a_backbone(convolution: str, norm: str, tmp_path: Path) -> None:
    """Plain names, every one of them explained, and loadable by plain torch."""
    made = model(convolution=convolution, norm=norm)
    write(made, "backbone", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = load_file(tmp_path / "out" / "backbone.safetensors")
    assert told["keys"].keys() == tensors.keys()
    for name, one in told["keys"].items():
        assert one["shape"] == list(tensors[name].shape)
        assert one["what"].strip(": ")
        assert name not in one["what"]
    encoder = GraphEncoder(**told["encoder"])
    encoder.load_state_dict(tensors)
    data = graph()
    found = export.load(tmp_path / "out")
    assert torch.equal(found.embed(data), GraphNodes(made.exported.config, made.exported.tensors).embed(data))
    assert found.classes == []
    with pytest.raises(InputError, match="no readout, it can only embed"):
        found.predict(data)


def test_dtypes(tmp_path: Path) -> None:
    """Weights keep their type; embeddings are float32 whatever it is."""
    made = model()
    double = {name: value.double() for name, value in made.exported.tensors.items()}
    write(
        Model(Exported("graph-nodes", made.exported.config, double, "encoder."), made.classifier, {}),
        "safetensors",
        tmp_path / "out",
    )
    found = export.load(tmp_path / "out")
    assert found.encoder.layers[0].weight.dtype == torch.float64
    assert found.embed(graph()).dtype == torch.float32
    torch.testing.assert_close(found.embed(graph()), original().embed(graph()))


def test_state(folder: Path, tmp_path: Path) -> None:
    """Equal models are equal files."""
    write(model(), "safetensors", tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


# ------------------------------------------------------------------------------------------------ errors


def test_errors_of_the_place(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=r"not empty\. Give another --out, or --force"):
        write(model(), "backbone", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "mine.txt").write_text("keep")
    write(model(normalise="none"), "safetensors", folder, force=True)
    assert (folder / "mine.txt").read_text() == "keep"
    assert export.load(folder).preprocessing["normalise"] == "none"
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="this is a file"):
        write(model(), "safetensors", file, force=True)
    with pytest.raises(InputError, match="this folder cannot be made"):
        write(model(), "safetensors", file / "below")
    with pytest.raises(InputError, match="an export is one of safetensors, onnx, backbone"):
        write(model(), "pickle", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    write(model(), "safetensors", tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "model"]


@pytest.mark.parametrize("then", ["safetensors", "backbone"])
def test_state_replaced(then: str, folder: Path) -> None:
    """Another format over an earlier export: no file of the earlier one stays, files of others do."""
    first = "backbone" if then == "safetensors" else "safetensors"
    write(model(), first, folder, force=True)
    (folder / "pipeline.json").write_text('{"library": "leanlabel"}')
    (folder / "model.onnx").write_bytes(b"earlier")
    (folder / "mine.onnx").write_bytes(b"mine")
    write(model(normalise="none"), then, folder, force=True)
    kept = "model.safetensors" if then == "safetensors" else "backbone.safetensors"
    assert sorted(path.name for path in folder.iterdir()) == sorted(["config.json", "mine.onnx", kept])
    assert weights_file(folder) == folder / kept
    assert export.load(folder).preprocessing["normalise"] == "none"


@pytest.mark.parametrize("settings", ['{"model_type": "other"}', "[1]", "{", None])
def test_state_foreign_files(settings: str | None, tmp_path: Path) -> None:
    """What another program calls model.safetensors stays; a start takes the weights that the settings are about."""
    (tmp_path / "model.safetensors").write_bytes(b"foreign")
    if settings is not None:
        (tmp_path / "config.json").write_text(settings)
    write(model(), "backbone", tmp_path, force=True)
    assert (tmp_path / "model.safetensors").read_bytes() == b"foreign"
    assert weights_file(tmp_path) == tmp_path / "backbone.safetensors"


def test_values_of_the_file_of_weights(tmp_path: Path) -> None:
    """Loose files without settings, a file itself, and a folder without any."""
    assert weights_file(tmp_path / "none") == tmp_path / "none"
    assert weights_file(tmp_path) == tmp_path
    for name in ("backbone.safetensors", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
        assert weights_file(tmp_path) == weights_file(tmp_path / name) == tmp_path / name


def test_errors_of_a_run_folder(tmp_path: Path) -> None:
    """A run and the places of its own files are refused, present or not; other folders below it are not."""
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    with pytest.raises(InputError, match="this is the folder of a run"):
        write(model(), "safetensors", run, force=True)
    check_target(run / "figures", force=True)  # another program's folder, for all that is known
    (run / "run.json").write_text("{}")
    for place in ("figures", "figures/new", "Stages", "checkpoints/new", "results.json"):
        with pytest.raises(InputError, match="this belongs to the run in"):
            check_target(run / place, force=True)
    check_target(run / "export", force=False)
    check_target(tmp_path, force=True)
    with pytest.raises(InputError, match="this belongs to the run in"):
        check_target(run / "figures" / ".." / "stages", force=True)


def test_degenerate_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The present folder, and one below folders that are not there yet, with a name that is not plain."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(model(), "safetensors", Path("."))
    assert export.load(".").classes == list(NAMES)
    write(model(), "safetensors", Path("..") / "new one" / "Ä b")
    assert export.load(tmp_path / "new one" / "Ä b").classes == list(NAMES)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["here", "new one", "Ä b"]


def half(out: Path, fault: Exception) -> None:
    with staged(out) as unfinished:
        (unfinished / "part").write_text("half")
        raise fault


def test_errors_leave_nothing(tmp_path: Path) -> None:
    """A fault in the middle: no folder, no temporary one."""
    for fault, told in ((ValueError("middle"), ValueError), (OSError(28, "No space left"), RunError)):
        with pytest.raises(told, match=r"middle|could not be written"):
            half(tmp_path / "out", fault)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_an_unknown_kind(tmp_path: Path) -> None:
    made = model()
    other = Model(Exported("sounds", made.exported.config, made.exported.tensors, ""), None, {})
    with pytest.raises(InputError, match="kind 'sounds' cannot be written"):
        write(other, "onnx", tmp_path / "out", data=graph())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"library": "other"}, "not the settings of a leanlabel export"),
        ({"layout": 99}, "layout 99 of an export, this version reads 1"),
        ({"kind": "sounds"}, "kind 'sounds' is not known here"),
        ({"encoder": {"in_features": 6}}, "do not fit"),
        ({"encoder": {"in_features": 7, "width": 8}}, "do not fit"),
        ({"encoder": None}, "do not fit"),
        ({"preprocessing": None}, "do not fit"),
        ({"readout": {"classes": ["only one"], "normalise": True, "about": {}}}, "1 class names for 3"),
        ({"readout": {}}, None),
    ],
    ids=str,
)
def test_errors_of_settings(change: dict[str, Any], message: str | None, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if message is None:
        assert export.load(folder).classes == []
        return
    with pytest.raises(InputError, match=message) as caught:
        export.load(folder)
    assert str(folder) in str(caught.value)


def test_errors_of_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        export.load(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"not an export, it has no config\.json"):
        export.load(tmp_path / "bare")
    (tmp_path / "bare" / "pipeline.json").write_text("{}")
    with pytest.raises(InputError, match="an ONNX model, which onnxruntime runs"):
        export.load(tmp_path / "bare")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:40])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        export.load(folder)
    weights.unlink()
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        export.load(folder)
    save_file({"encoder.other": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match="do not fit"):
        export.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        export.load(folder)


def test_errors_of_the_graph(folder: Path) -> None:
    with pytest.raises(InputError, match="graph-20: 9 features per node, the model was trained on 6"):
        export.load(folder).predict(graph(features=9))
