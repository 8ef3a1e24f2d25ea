"""Exports of segmentation models: masks of the run, encoders for others, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from segmentationsamples import CLASSES, dense, held, images, model, network, normalised
from torch import nn
from torch.nn.functional import interpolate

from leanlabel import api, export
from leanlabel.engine.transfer import read_weights, start_from
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import Classifier
from leanlabel.export.reading import weights_file
from leanlabel.export.segmentation import SegmentationModel
from leanlabel.export.writing import Model, write
from leanlabel.methods import find
from leanlabel.methods.segmentation import Segmentation
from leanlabel.models.resnet import resnet
from smallrun import cli

SIZES = ((41, 53), (64, 48), (37, 90))
RUN = [
    "data.train=4",
    "data.val=2",
    "data.test=2",
    "data.height=40",
    "data.width=56",
    "data.batch_size=2",
    "augment.crop=[32,32]",
    "steps=2",
    "engine.loggers=[]",
    "engine.accelerator=cpu",
    "engine.threads=1",
]


def test_values(tmp_path: Path) -> None:
    """Read back, it computes what the network does, at any size, and knows where it comes from."""
    made = model()
    write(made, "safetensors", tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    found = export.load(tmp_path / "model")
    assert isinstance(found, SegmentationModel)
    assert found.classes == CLASSES
    assert found.provenance == made.provenance
    for height, width in SIZES:
        image = images(1, height, width)[0]
        with torch.no_grad():
            logits = network()(normalised(image[None])).logits
        scores = interpolate(logits, (height, width), mode="bilinear")[0].softmax(0)
        one = found.segment(image)
        assert one.classes.dtype == torch.uint8
        assert len(one.classes.unique()) > 1
        clear = scores.topk(2, 0).values.diff(dim=0).abs()[0] > 1e-4
        assert bool((one.classes == scores.argmax(0))[clear].all())
        torch.testing.assert_close(one.confidence, scores.amax(0))


RUNS = {
    "whole": [],
    "average": ["method.ema=0.5"],
    "frozen, corners": ["model.norm=frozen", "model.align_corners=true"],
    "windows": ["evaluation.window=[24,32]", "evaluation.overlap=0.3"],
    "scales, flip": ["evaluation.scales=[0.5,1.25]", "evaluation.flip=true"],
    "base": ["augment.base=29", "augment.mean=[0.4]", "augment.std=[0.3]"],
    "base, windows": ["augment.base=60", "evaluation.window=[32,32]"],
    "double": ["engine.precision=64-true"],
}


@pytest.mark.parametrize("which", RUNS)
def test_reference(which: str, tmp_path: Path) -> None:
    """Masks, confidence and embeddings of the method itself, bit for bit, on odd sizes."""
    cfg: Any = api.resolve("segmentation/scenes-small", [*RUN, *RUNS[which]])
    data = find(cfg.method.name).read(cfg)
    method = api.build(cfg, data)
    assert isinstance(method, Segmentation)
    if which == "double":
        method.double()
    sharp = (value for value in method.deployed.parameters() if len(value) == len(data.classes))
    for value in sharp:
        nn.init.normal_(value, std=0.5)
    write(Model(method.exported(), None, {}), "safetensors", tmp_path / "out")
    found = export.load(tmp_path / "out")
    for height, width in ((40, 56), (67, 35)):
        for image in (images(1, height, width)[0], images(1, height, width)[0] / 255):
            expected, one = method.segment(image), found.segment(image)
            assert torch.equal(one.classes, expected.classes)
            assert torch.equal(one.confidence, expected.confidence)
    assert torch.equal(found.embed(data), method.embed(data))


def pictures(folder: Path, count: int = 4, height: int = 45, width: int = 61) -> Path:
    """Images with masks beside them, in folders."""
    image_module = pytest.importorskip("PIL.Image")
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for k, pixels in enumerate(images(count, height, width)):
        image_module.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / "images" / f"{k}.png")
        mask = np.where(pixels[0].numpy() > 99, 26, 7).astype(np.uint8)
        image_module.fromarray(mask).save(folder / "masks" / f"{k}.png")
    return folder


def recipe(folder: Path, data: Path) -> Path:
    path = folder / "files.yaml"
    path.write_text(
        "method: {name: segmentation}\nsteps: 2\nmodel: {name: tiny-fcn}\naugment: {crop: [24, 24]}\n"
        f"data: {{path: {json.dumps(str(data))}, resize: 33, batch_size: 2, val_share: 0.25, "
        "classes: {names: [a, b], ids: {7: 0, 26: 1}}}\n"
        "engine: {accelerator: cpu, threads: 1, loggers: []}\n"
    )
    return path


def test_reference_of_files(tmp_path: Path) -> None:
    """Images on disk are read as those of the training were, and masks have the size of the file."""
    cfg: Any = api.resolve(recipe(tmp_path, pictures(tmp_path / "in")))
    data = find(cfg.method.name).read(cfg)
    method = api.build(cfg, data)
    write(Model(method.exported(), None, {}), "safetensors", tmp_path / "out")
    found = export.load(tmp_path / "out")
    image = images(1, 45, 61)[0]
    assert torch.equal(found.segment(image).confidence, method.segment(image).confidence)  # type: ignore[operator]
    opened = found.open(str(tmp_path / "in" / "images"))
    assert opened.shape == data.shape == (3, 33, 45)
    assert opened.classes.names == ("a", "b")
    assert torch.equal(found.embed(opened), method.embed(data))


def test_loading_is_light(tmp_path: Path) -> None:
    """Neither the training engine nor a method nor transformers is loaded to segment."""
    write(model(), "safetensors", tmp_path / "model")
    code = (
        "import sys, torch\n"
        "from leanlabel import export\n"
        f"model = export.load({str(tmp_path / 'model')!r})\n"
        "print(model.segment(torch.zeros(3, 21, 30, dtype=torch.uint8)).classes.shape)\n"
        "heavy = ('lightning_fabric', 'sklearn', 'transformers', 'onnx', 'leanlabel.methods', 'leanlabel.engine.fit',\n"
        "         'leanlabel.api')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["torch.Size([21, 30])", "[]"]


def test_values_of_an_encoder(tmp_path: Path) -> None:
    """Under the names of others, every one of them explained; it embeds, and does not pretend to segment."""
    made = model(name="deeplab-v3+", encoder="resnet18", width=8)
    write(made, "backbone", tmp_path / "own")
    write(made, "backbone", tmp_path / "torchvision", keys="torchvision")
    told = json.loads((tmp_path / "torchvision" / "config.json").read_text())
    tensors = load_file(tmp_path / "torchvision" / "backbone.safetensors")
    assert (
        tensors.keys() == load_file(tmp_path / "own" / "backbone.safetensors").keys() == told["keys"].keys()
    )
    assert "transformers" not in str(told["keys"])
    assert told["backbone"] == {"name": "resnet18", "stem": "imagenet", "norm": "batch"}
    plain = resnet(18, output_stride=16).eval()
    plain.load_state_dict(tensors)
    pixels = images(2, 41, 53)
    found = export.load(tmp_path / "own")
    with torch.no_grad():
        torch.testing.assert_close(found.embed(dense(pixels)), plain(normalised(pixels)))
    assert found.width == 512
    with pytest.raises(InputError, match="encoder of a segmentation network, it can only embed"):
        found.segment(pixels[0])
    write(made, "backbone", tmp_path / "detectron2", keys="detectron2")
    assert (tmp_path / "detectron2" / "backbone.pth").is_file()
    renamed = export.load(tmp_path / "detectron2")
    assert torch.equal(renamed.embed(dense(pixels)), found.embed(dense(pixels)))


def test_dtypes() -> None:
    """Weights keep their type; confidence and embeddings are float32 whatever it is."""
    made, pixels = model(), images(1)
    double = {name: t.double() if t.is_floating_point() else t for name, t in made.exported.tensors.items()}
    found, plain = SegmentationModel(made.exported.config, double), held()
    one, other = found.segment(pixels[0]), plain.segment(pixels[0])
    assert (one.classes.dtype, one.confidence.dtype) == (torch.uint8, torch.float32)
    torch.testing.assert_close(one.confidence, other.confidence)
    assert found.embed(dense(pixels)).dtype == torch.float32


def test_degenerate() -> None:
    """The smallest image, none at all, bands; and building a model changes no random number drawn afterwards."""
    made = model()
    before = torch.random.get_rng_state()
    found = SegmentationModel(made.exported.config, made.exported.tensors).to("cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.segment(images(1, 8, 8)[0]).classes.shape == (8, 8)
    assert found.embed(dense(images(0))).shape == (0, 48)
    bands = held(channels=5, name="unet", width=2, levels=1)
    assert bands.segment(images(1, 9, 7, 5)[0]).classes.shape == (9, 7)
    assert held(reading={"resize": 16}).segment(images(1, 50, 70)[0]).classes.shape == (50, 70)


def test_errors_of_settings(tmp_path: Path) -> None:
    """Settings and tensors that do not fit are refused with the folder's name."""
    write(model(), "safetensors", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    told = json.loads(path.read_text())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"network": {"name": "small-fcn"}}, "do not fit"),
        ({"network": {"name": "other"}}, "do not fit"),
        ({"network": None}, "do not fit"),
        ({"channels": 4}, "No such preparation"),
        ({"class_map": {"names": ["a"]}}, "stored class map"),
        ({"preprocessing": {**told["preprocessing"], "std": [0, 1, 1]}}, "No such preparation"),
        ({"preprocessing": None}, "do not fit"),
        ({"inference": {}}, "do not fit"),
        ({"format": "backbone"}, "no such|not an export|missing|cannot"),
    ]
    for change, message in changes:
        path.write_text(json.dumps(told | change))
        with pytest.raises(InputError, match=message) as caught:
            export.load(tmp_path / "model")
        assert str(tmp_path / "model") in str(caught.value)


def test_errors(tmp_path: Path) -> None:
    """Images that the network does not read, a readout, names that an encoder does not have."""
    found = held()
    assert found.segment(images(1, 7, 30)[0]).classes.shape == (7, 30)  # enlarged, as by the run
    with pytest.raises(InputError, match=r"the network reads images \(3, h, w\)"):
        found.segment(images(1, 30, 30, 4)[0])
    made = model()
    rule = Classifier(torch.zeros(2, 48), torch.zeros(2), True, ("a", "b"), None, {})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no readout of images"):
        SegmentationModel(made.exported.config, made.exported.tensors, rule)
    with pytest.raises(InputError, match="--keys torchvision: tiny-fcn has no names there"):
        write(made, "backbone", tmp_path / "out", keys="torchvision")
    with pytest.raises(InputError, match="Add --format backbone"):
        write(made, "safetensors", tmp_path / "out", keys="torchvision")
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path: Path) -> None:
    """An export predicts the files that the run predicts; its encoder embeds, starts a run, and names no classes."""
    place = str(pictures(tmp_path / "in") / "images")
    bare = ["evaluation.protocol=none"]
    run = api.fit(recipe(tmp_path, tmp_path / "in"), run=tmp_path / "run", overrides=bare, quiet=True)
    for form in ("safetensors", "backbone"):
        answer = cli("export", run.path, "--format", form, "--out", tmp_path / form)
        assert answer.code == 0, answer.err
    for model_, out in ((run.path, "one"), (tmp_path / "safetensors", "two")):
        answer = cli("predict", model_, place, "--out", tmp_path / out, "--confidence", "--raw-ids")
        assert answer.code == 0, answer.err
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert Path("masks/0.png") in names
    assert Path("confidence/3.png") in names
    for name in names:
        if name.name != "predictions.json":  # which says who predicted
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    answer = cli("predict", tmp_path / "backbone", place, "--out", tmp_path / "three")
    assert answer.code == 2
    assert "encoder of a segmentation network" in answer.err
    assert not (tmp_path / "three").exists()
    answer = cli("embed", tmp_path / "backbone", place, "--out", tmp_path / "z.npy")
    assert answer.code == 0, answer.err
    assert np.load(tmp_path / "z.npy").shape == (4, 48)
    taken = export.load(tmp_path / "backbone").encoder.state_dict()
    for form in ("safetensors", "backbone"):
        method = api.build(api.resolve(tmp_path / "files.yaml", ["seed=7"]), run.data)
        start_from(method, read_weights(weights_file(tmp_path / form)), "backbone")
        assert isinstance(method, Segmentation)
        assert all(torch.equal(v, taken[n]) for n, v in method.deployed.encoder.state_dict().items())
