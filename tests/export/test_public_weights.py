"""Backbones under the names of other libraries: written, and read from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from imagesamples import drawn, model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leanlabel import export
from leanlabel.engine.method import Exported, Method
from leanlabel.engine.transfer import KeyReport, read_weights, start_from
from leanlabel.errors import InputError
from leanlabel.export.images import ImageModel
from leanlabel.export.public_names import CONFIGS
from leanlabel.export.reading import weights_file
from leanlabel.export.writing import Model, write
from leanlabel.models.backbones import BackboneSettings, build_backbone
from leanlabel.models.public_keys import to_detectron2, to_transformers
from leanlabel.models.resnet import ResNet
from leanlabel.models.small_cnn import SmallCNN

CIFAR: dict[str, Any] = {"name": "resnet18", "stem": "cifar"}
RESIDUAL: dict[str, Any] = {"name": "resnet18"}


class Toy(Method):
    """A backbone to be started from a file; its head is no part."""

    parts = {"backbone": ("backbone",)}  # noqa: RUF012

    def __init__(self, backbone: Any) -> None:
        super().__init__(None)
        self.backbone = backbone
        self.head = nn.Linear(backbone.width, 2)


def tiny(**changes: Any) -> ResNet:
    """A residual network of all kinds of layers, small enough to be copied often."""
    options = {"bottleneck": True, "width": 2, **changes}
    return drawn(lambda: ResNet((1, 1, 2, 1), **options))


@pytest.fixture(scope="module")
def residual() -> dict[str, Tensor]:
    """Its tensors."""
    return tiny().state_dict()


def own(made: Model) -> dict[str, Tensor]:
    return {name.removeprefix("backbone."): value for name, value in made.exported.tensors.items()}


@pytest.mark.parametrize("keys", ["torchvision", "detectron2"])
def test_reference_of_public_names(keys: str, tmp_path: Path) -> None:
    """Names, shapes and values there, and every tensor back again by ``fit --from FOLDER --part backbone``."""
    made = model(size=32, **RESIDUAL)
    found = write(made, "backbone", tmp_path / "out", keys=keys)
    expected = own(made)
    tensors = load_file(tmp_path / "out" / "backbone.safetensors")
    named = to_detectron2(expected) if keys == "detectron2" else expected
    assert tensors.keys() == named.keys()
    assert all(torch.equal(tensors[name], value) for name, value in named.items())
    if keys == "detectron2":
        assert {"stem.conv1.norm.running_var", "res3.0.shortcut.weight", "res5.1.conv2.norm.bias"} < set(
            tensors
        )
        content = torch.load(tmp_path / "out" / "backbone.pth", weights_only=True)
        assert content["matching_heuristics"] is True
        assert all(torch.equal(content["model"][name], value) for name, value in tensors.items())
    assert ("backbone.pth" in found["files"]) == (keys == "detectron2")
    toy = Toy(build_backbone(BackboneSettings(**RESIDUAL)))
    report = start_from(toy, read_weights(weights_file(tmp_path / "out")), "backbone")
    assert (len(report.taken), report.missing, report.left, report.shape) == (len(expected), (), (), ())
    after = toy.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in expected.items())
    again = export.load(tmp_path / "out")
    assert isinstance(again, ImageModel)
    assert all(torch.equal(again.backbone.state_dict()[name], value) for name, value in expected.items())


def test_values_of_the_detector(tmp_path: Path) -> None:
    """Two configurations of a ResNet-50, with the normalisation of this training; replaced ones do not stay."""
    made = Exported(
        "images",
        {
            "backbone": BackboneSettings(name="resnet50").model_dump(mode="json"),
            "preprocessing": {"size": 32, "resize": None, "mean": [0.5, 0.25, 0.0], "std": [0.2, 0.2, 0.1]},
        },
        {"backbone.conv1.weight": torch.zeros(2, 3, 7, 7), "backbone.layer4.2.bn3.bias": torch.ones(2)},
        "backbone.",
    )
    found = write(Model(made, None, {}), "backbone", tmp_path / "out", keys="detectron2")
    assert set(found["files"]) == {"backbone.pth", "backbone.safetensors", "config.json", *CONFIGS}
    for name in CONFIGS:
        told = yaml.safe_load((tmp_path / "out" / name).read_text())["MODEL"]
        assert told["WEIGHTS"] == "backbone.pth"
        assert told["RESNETS"]["DEPTH"] == 50
        assert told["PIXEL_MEAN"] == [127.5, 63.75, 0]
        assert told["PIXEL_STD"] == [51, 51, 25.5]
    write(model(), "safetensors", tmp_path / "out", force=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("changes", "form", "keys", "message"),
    [
        ({}, "backbone", "detectron2", "--keys detectron2: small-cnn has no names there. Leave --keys out"),
        ({}, "backbone", "torchvision", "small-cnn has no names there"),
        ({"name": "mobilenet-v2"}, "backbone", "detectron2", "mobilenet-v2 has no names there"),
        (CIFAR, "backbone", "detectron2", "begin with a 7x7 convolution, this one with stem cifar"),
        ({**RESIDUAL, "norm": "group"}, "backbone", "detectron2", "this one norm group"),
        (RESIDUAL, "safetensors", "torchvision", "a model as safetensors has names of its own only"),
        (RESIDUAL, "onnx", "detectron2", "a model as onnx has names of its own only"),
        (RESIDUAL, "backbone", "caffe", "names are one of own, torchvision, detectron2"),
    ],
    ids=str,
)
def test_errors_of_public_names(
    changes: dict[str, Any], form: str, keys: str, message: str, tmp_path: Path
) -> None:
    """Refused before anything is written."""
    settings = BackboneSettings(**(changes or {"name": "small-cnn"})).model_dump(mode="json")
    made = Model(Exported("images", {"backbone": settings}, {}, "backbone."), None, {})
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        write(made, form, tmp_path / "out", keys=keys)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_names_of_a_graph(tmp_path: Path) -> None:
    made = Model(Exported("graph-nodes", {}, {}, "encoder."), None, {})
    with pytest.raises(InputError, match="--keys torchvision: graph-nodes has no names there"):
        write(made, "backbone", tmp_path / "out", keys="torchvision")


def moco(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What MoCo's official code saves: query and key encoder, head, queue; optimiser and epoch."""
    state = {f"module.encoder_q.{name}": value for name, value in tensors.items()}
    state |= {f"module.encoder_k.{name}": value + 1 for name, value in tensors.items()}
    for net in ("q", "k"):
        state[f"module.encoder_{net}.fc.0.weight"] = torch.zeros(2, 2)
    state |= {"module.queue": torch.zeros(2, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    group = {"lr": 0.03, "momentum": 0.9, "params": [0], "nesterov": False}
    momentum = {0: {"momentum_buffer": torch.zeros(2)}}
    optimiser = {"state": momentum, "param_groups": [group]}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimiser}


def without_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}


def started(path: Path, **changes: Any) -> tuple[Toy, KeyReport]:
    toy = Toy(ResNet((1, 1, 2, 1), **{"bottleneck": True, "width": 2, **changes}))
    return toy, start_from(toy, read_weights(path), "backbone")


def test_reference_of_moco(residual: dict[str, Tensor], tmp_path: Path) -> None:
    """The query encoder of an official checkpoint, as today's torch saves it and as the torch of its time did."""
    tensors, path = residual, tmp_path / "checkpoint_0199.pth.tar"
    for zipped in (True, False):
        torch.save(moco(tensors), path, _use_new_zipfile_serialization=zipped)
        toy, report = started(path)
        after = toy.backbone.state_dict()
        assert all(torch.equal(after[name], value) for name, value in tensors.items())
        assert (len(report.taken), report.missing, report.shape) == (len(tensors), (), ())
        assert {"module.queue", "module.encoder_q.fc.0.weight", "module.encoder_k.conv1.weight"} < set(
            report.left
        )
    assert [line.split()[0] for line in report.lines()][:2] == [str(len(tensors)), "0"]


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model.backbone."])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_reference_of_torchvision(
    prefix: str, ending: str, residual: dict[str, Tensor], tmp_path: Path
) -> None:
    """Also timm's, data-parallel and Lightning prefixes, and weights saved before batches were counted."""
    tensors, path = without_counters(residual), tmp_path / f"weights{ending}"
    content = {f"{prefix}{name}": value for name, value in tensors.items()}
    content[f"{prefix}fc.weight"] = torch.zeros(3, 64)
    if ending == ".pth":
        torch.save(content, path)
    else:
        save_file(content, path)
    toy, report = started(path)
    after = toy.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in tensors.items())
    assert report.left == (f"{prefix}fc.weight",)
    assert all(name.endswith("num_batches_tracked") for name in report.missing)


def test_reference_of_transformers_and_detectors(residual: dict[str, Tensor], tmp_path: Path) -> None:
    """A residual network of transformers with its classifier; a trained detector."""
    tensors = without_counters(residual)
    path = tmp_path / "model.safetensors"
    there = {f"resnet.{name}": value for name, value in to_transformers(tensors).items()}
    save_file({**there, "classifier.1.bias": torch.zeros(3)}, path)
    detector = {f"backbone.{name}": value for name, value in to_detectron2(tensors).items()}
    torch.save(
        {"model": {**detector, "proposal_generator.bias": torch.zeros(3)}}, tmp_path / "model_final.pth"
    )
    for file, rest in (
        (path, "classifier.1.bias"),
        (tmp_path / "model_final.pth", "proposal_generator.bias"),
    ):
        toy, report = started(file)
        after = toy.backbone.state_dict()
        assert all(torch.equal(after[name], value) for name, value in tensors.items())
        assert (len(report.taken), report.missing, report.left) == (len(tensors), (), (rest,))


def test_reference_of_another_stem(residual: dict[str, Tensor], tmp_path: Path) -> None:
    """Into a network for small images goes all but the first convolution."""
    torch.save(moco(residual), tmp_path / "moco.pth.tar")
    _, report = started(tmp_path / "moco.pth.tar", stem="cifar")
    assert report.shape == ("backbone.conv1.weight",)


def test_errors_of_public_weights(residual: dict[str, Tensor], tmp_path: Path) -> None:
    """Named file and reason; nothing is changed."""
    path = tmp_path / "weights.pth"
    save = {f"net.{name}": value for name, value in residual.items()}
    cases = [
        ({"some.weight": torch.zeros(2, 2)}, tiny(), "no published layout of a residual network"),
        ({**save, "net.layer1.0.se.fc1.weight": torch.zeros(2)}, tiny(), "has no place in a plain residual"),
        (save, SmallCNN((2,)), r"no tensor fits the model; it holds net\.conv1\.weight"),
        (save, tiny(width=3, bottleneck=False), r"no tensor fits the model; backbone\.conv1\.weight must be"),
    ]
    for content, net, message in cases:
        torch.save(content, path)
        toy = Toy(net)
        before = {name: value.clone() for name, value in toy.state_dict().items()}
        with pytest.raises(InputError, match=message) as caught:
            start_from(toy, read_weights(path), "backbone")
        assert str(path) in str(caught.value)
        assert all(torch.equal(before[name], value) for name, value in toy.state_dict().items())
