"""A folder of images through the command line: train, predict, embed, export, start from weights of others."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import leanlabel
from leanlabel import api, export
from leanlabel.config import to_yaml
from leanlabel.export.images import ImageModel
from leanlabel.models.backbones import BackboneSettings, build_backbone
from smallrun import Answer, cli

image_module = pytest.importorskip("PIL.Image")

CLASSES = ("blue", "green", "red")
RECIPE = """
method: {name: METHOD}
steps: 3
model: {name: small-cnn, widths: [4, 6], norm: group, norm_groups: 2}
data: {path: PATH, batch_size: 6}
augment: {size: 16}
optim: {name: sgd, lr: 0.1}
engine: {accelerator: cpu, threads: 1, loggers: [], checkpoint_every: 10}
evaluation: {protocol: logistic-l2, splits: 1, shares: [0.5, 0.25, 0.25]}
watch: {every: 0}
"""


def pictures(folder: Path, names: list[str], seed: int = 0, sizes: tuple[int, ...] = (20,)) -> Path:
    """PNG files: noise, brighter in the channel of the class that the name holds."""
    numbers = np.random.default_rng(seed)
    for k, name in enumerate(names):
        pixels = numbers.integers(0, 80, (18, sizes[k % len(sizes)], 3)).astype(np.uint8)
        pixels[..., 2 - next((c for c, one in enumerate(CLASSES) if one in name), 0)] += 150
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image_module.fromarray(pixels).save(folder / name)
    return folder


def recipe(folder: Path, method: str, data: Path) -> Path:
    path = folder / f"{method}.yaml"
    path.write_text(RECIPE.replace("METHOD", method).replace("PATH", json.dumps(str(data))))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in a folder each."""
    names = [f"{one}/{k}.png" for one in CLASSES for k in range(8)]
    return pictures(tmp_path_factory.mktemp("images") / "train", names)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other images without labels, of several sizes."""
    names = ["z red.png", "deep/er/a green.png", "b, blue.png", "Ä.png"]
    return pictures(tmp_path_factory.mktemp("others") / "new", names, 1, (16, 31, 40))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """A supervised run."""
    folder = tmp_path_factory.mktemp("runs")
    answer = cli("fit", recipe(folder, "supervised-image", data), "--run", folder / "run")
    assert answer.code == 0, answer.err
    return leanlabel.load(folder / "run")


@pytest.fixture(scope="module")
def model(run: api.Run) -> Path:
    """Its export."""
    place = run.path.parent / "model"
    run.export("safetensors", place)
    return place


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def succeeded(answer: Answer) -> Answer:
    assert answer.code == 0, answer.err
    return answer


def test_values(run: api.Run, others: Path, tmp_path: Path) -> None:
    """A row per image, ids are paths, in their order."""
    answer = succeeded(cli("predict", run.path, others, "--out", tmp_path / "out"))
    rows = table(tmp_path / "out")
    ids = sorted(["z red.png", "deep/er/a green.png", "b, blue.png", "Ä.png"])
    assert [row["id"] for row in rows] == ids
    p = run.predict(run.open(str(others)))
    assert [row["class"] for row in rows] == [run.classes[c] for c in p.argmax(1)]
    assert run.classes == list(CLASSES)
    assert all(row["seen"] == "false" for row in rows)
    assert "4 rows" in answer.out
    for form in ("npz", "parquet"):
        succeeded(cli("predict", run.path, others, "--out", tmp_path / form, "--format", form))
    stored = np.load(tmp_path / "npz" / "predictions.npz")
    assert stored["ids"].tolist() == ids
    np.testing.assert_array_equal(stored["probabilities"], p.numpy())
    told = json.loads((tmp_path / "parquet" / "predictions.json").read_text(encoding="utf-8"))
    assert (told["rows"], told["model"]["method"]) == (4, "supervised-image")


def test_values_of_embeddings(run: api.Run, model: Path, others: Path, tmp_path: Path) -> None:
    """From the run and from its export: the same numbers, with the paths as ids."""
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, source in (("run", run.path), ("export", model)):
        answer = succeeded(cli("embed", source, others, "--out", tmp_path / f"{name}.parquet"))
        assert "4 embeddings of width 6" in answer.out
    first, second = (parquet.read_table(tmp_path / f"{name}.parquet") for name in ("run", "export"))
    assert first.column_names == ["id", *(f"e{k}" for k in range(6))]
    assert first.column("id").to_pylist() == run.open(str(others)).ids
    assert first.equals(second)
    succeeded(cli("embed", run.path, "--out", tmp_path / "own.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "own.npy"), run.embed().numpy())


def test_values_of_an_export(run: api.Run, model: Path, data: Path, others: Path, tmp_path: Path) -> None:
    """Bit for bit the run's predictions, rows that trained the readout included; several inputs."""
    for name, source in (("run", run.path), ("export", model)):
        succeeded(cli("predict", source, data, others, "--out", tmp_path / name))
    for file in ("train/predictions.csv", "train/predictions.json", "new/predictions.csv"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "export" / file).read_bytes()
    seen = [k for k, row in enumerate(table(tmp_path / "export" / "train")) if row["seen"] == "true"]
    assert run.classifier is not None
    assert seen == sorted(run.classifier.seen.tolist())
    assert len(seen) == 12
    assert [row["id"] for row in table(tmp_path / "run" / "train")][:2] == ["blue/0.png", "blue/1.png"]


def test_values_of_onnx(run: api.Run, others: Path, tmp_path: Path) -> None:
    """What onnxruntime makes of prepared images is what the run says."""
    onnxruntime = pytest.importorskip("onnxruntime")
    answer = succeeded(cli("export", run.path, "--format", "onnx", "--out", tmp_path / "onnx"))
    assert "probabilities: largest difference" in answer.out
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    images = run.open(str(others))
    exported = run.method.exported()
    inputs = ImageModel(exported.config, exported.tensors).onnx_inputs(images)
    assert inputs["image"].shape == (4, 3, 16, 16)
    embedding, p = session.run(["embedding", "probabilities"], inputs)
    np.testing.assert_allclose(embedding, run.embed(images).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(p, run.predict(images).numpy(), rtol=1e-4, atol=1e-6)


def test_values_of_a_method_without_labels(data: Path, model: Path, others: Path, tmp_path: Path) -> None:
    """SimCLR starts from the exported backbone; a readout of its embeddings names classes."""
    answer = succeeded(
        cli(
            "fit",
            recipe(tmp_path, "simclr", data),
            *("--run", tmp_path / "run", "--from", model, "--part", "backbone"),
        )
    )
    assert "0 missing in the source" in answer.out
    found = leanlabel.load(tmp_path / "run")
    succeeded(cli("export", found.path, "--format", "backbone", "--out", tmp_path / "backbone"))
    succeeded(cli("export", found.path, "--format", "safetensors", "--out", tmp_path / "model"))
    images = found.open(str(others))
    assert torch.equal(export.load(tmp_path / "backbone").embed(images), found.embed(images))
    assert torch.equal(export.load(tmp_path / "model").predict(images), found.predict(images))
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["from"]["supervised"] is True  # labels trained what it started from


@pytest.mark.slow
def test_values_of_a_start_from_moco(data: Path, tmp_path: Path) -> None:
    """An official checkpoint of MoCo; its backbone comes out again under Detectron2's names."""
    net = build_backbone(BackboneSettings(name="resnet18"))
    state = {f"module.encoder_q.{name}": value for name, value in net.state_dict().items()}
    state |= {"module.encoder_q.fc.weight": torch.zeros(128, 512), "module.queue": torch.zeros(128, 16)}
    content = {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "moco.pth.tar")
    chosen = ["model.name=resnet18", "model.norm=batch", "augment.size=32", "steps=1", "optim.lr=1e-9"]
    answer = succeeded(
        cli(
            "fit",
            recipe(tmp_path, "simclr", data),
            *("--run", tmp_path / "run", "--from", tmp_path / "moco.pth.tar", "--part", "backbone"),
            *(part for text in chosen for part in ("--set", text)),
        )
    )
    assert f"{len(net.state_dict())} taken: backbone.conv1.weight" in answer.out
    assert "2 left over in the source: module.encoder_q.fc.weight, module.queue" in answer.out
    out = tmp_path / "backbone"
    succeeded(cli("export", tmp_path / "run", "--format", "backbone", "--keys", "detectron2", "--out", out))
    found = torch.load(out / "backbone.pth", weights_only=True)["model"]
    torch.testing.assert_close(
        found["res2.0.conv1.weight"], net.state_dict()["layer1.0.conv1.weight"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("verb", ["predict", "embed"])
@pytest.mark.parametrize("source", ["run", "export"])
def test_errors(verb: str, source: str, run: api.Run, model: Path, tmp_path: Path) -> None:
    """Images that cannot be read are named before anything is written."""
    folder = pictures(tmp_path / "in", ["a.png", "b.png", "c.png"])
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    out = tmp_path / "out.npy"
    place = run.path if source == "run" else model
    sound = [pictures(tmp_path / "sound", ["a.png"])] if verb == "predict" else []
    answer = cli(verb, place, *sound, folder, "--out", out)
    assert answer.code == 2
    assert "1 of 3 images cannot be read" in answer.err
    assert "b.png" in answer.err
    assert "Traceback" not in answer.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in", *(["sound"] if sound else [])])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "MODEL", "--out", "OUT.npy"], "Name what is to be embedded"),
        (["embed", "MODEL", "OTHERS", "--out", "OUT.txt"], "rows are written as .npy or .parquet"),
        (["embed", "RUN", "EMPTY", "--out", "OUT.npy"], "holds no image files"),
        (["predict", "MODEL", "EMPTY", "--out", "OUT"], "holds no image files"),
        (["predict", "MODEL", "nowhere", "--out", "OUT"], "nowhere: no such file or folder"),
        (
            ["export", "RUN", "--format", "backbone", "--keys", "detectron2", "--out", "OUT"],
            "small-cnn has no names",
        ),
        (
            ["export", "RUN", "--format", "onnx", "--keys", "torchvision", "--out", "OUT"],
            "Add --format backbone",
        ),
    ],
    ids=str,
)
def test_errors_of_arguments(
    arguments: list[str],
    message: str,
    run: api.Run,
    model: Path,
    others: Path,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    """Exit 2, one sentence, nothing written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    (tmp_path / "empty").mkdir()
    places = {"RUN": run.path, "MODEL": model, "OTHERS": others, "EMPTY": tmp_path / "empty"}
    answer = cli(*(places.get(one, one) for one in arguments))
    assert answer.code == 2
    assert message in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_values_of_a_recipe(run: api.Run) -> None:
    """The complete recipe of a run on images can be read again."""
    assert to_yaml(run.config) == (run.path / "config.yaml").read_text(encoding="utf-8")
