"""Backbones by name: norms, MobileNet-V2 written out, models of transformers from classes and folders."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from leanlabel.errors import InputError
from leanlabel.models.backbones import BackboneSettings, build_backbone, has_batch_statistics, norm_layer
from leanlabel.models.mobilenet import MobileNetV2
from leanlabel.models.norm import SplitBatchNorm, SyncBatchNorm

OWN = ("small-cnn", "resnet18", "mobilenet-v2")


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def kinds(net: nn.Module) -> set[str]:
    return {type(part).__name__ for part in net.modules() if "Norm" in type(part).__name__}


@pytest.mark.parametrize(
    ("name", "count", "width"),
    [
        ("small-cnn", 93_472, 128),
        ("resnet18", 11_176_512, 512),
        ("mobilenet-v2", 2_223_872, 1280),
        ("convnext-tiny", 27_820_128, 768),
        ("vit-small", 21_665_664, 384),
    ],
)
def test_values(name, count: int, width: int) -> None:
    net = build_backbone(BackboneSettings(name=name))
    assert sum(p.numel() for p in net.parameters()) == count
    assert net.width == width
    net.eval()
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        features, maps = net(x), net.maps(x)
    assert features.shape == (2, width)
    assert all(one.ndim == 4 and len(one) == 2 for one in maps)
    sides = [one.shape[2] for one in maps]
    assert sides == sorted(sides, reverse=True)
    assert maps[-1].shape[1] == width


@pytest.mark.parametrize("name", OWN)
def test_values_norms(name) -> None:
    expected = {
        "batch": {"BatchNorm2d"},
        "sync": {"SyncBatchNorm"},
        "split": {"SplitBatchNorm"},
        "group": {"GroupNorm"},
        "none": set(),
    }
    counts = set()
    for norm, classes in expected.items():
        net = build_backbone(BackboneSettings(name=name, norm=norm, norm_groups=4, stem="cifar"))
        assert kinds(net) == classes
        assert has_batch_statistics(net) == (norm in ("batch", "sync", "split"))
        biases = [part.bias for part in net.modules() if isinstance(part, nn.Conv2d)]
        assert all((bias is None) == (norm != "none") for bias in biases)
        splits = [part.groups for part in net.modules() if isinstance(part, SplitBatchNorm)]
        assert set(splits) == ({4} if norm == "split" else set())
        counts.add(len([part for part in net.modules() if "Norm" in type(part).__name__]))
    assert len(counts) == 2  # as many norms of every kind, and none


def test_values_groups() -> None:
    make = norm_layer("group", 8)
    assert make is not None
    found = [make(channels) for channels in (64, 24, 12, 7, 11, 1)]
    assert [part.num_groups for part in found if isinstance(part, nn.GroupNorm)] == [8, 8, 6, 7, 1, 1]
    sync = norm_layer("sync")
    assert sync is not None
    assert isinstance(sync(4), SyncBatchNorm)
    assert norm_layer("none") is None


@pytest.mark.parametrize("norm", ["group", "none"])
def test_values_alone(norm) -> None:
    """Without batch statistics a sample's features do not depend on the others, in training either."""
    torch.manual_seed(0)
    net = build_backbone(BackboneSettings(name="small-cnn", norm=norm))
    x = images(4, 3, 16, 16)
    torch.testing.assert_close(net(x)[:2], net(x[:2]))


def test_values_seed() -> None:
    for name in OWN:
        weights = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            weights.append(next(build_backbone(BackboneSettings(name=name)).parameters()))
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])


def test_values_options() -> None:
    net = build_backbone(BackboneSettings(name="resnet18", stem="cifar", output_stride=2), channels=1)
    with torch.no_grad():
        assert [m.shape[2] for m in net.eval().maps(images(1, 1, 16, 16))] == [16, 8, 8, 8]
    net = build_backbone(BackboneSettings(name="small-cnn", widths=(4, 5), first_stride=1))
    assert [tuple(m.shape[1:]) for m in net.maps(images(2, 3, 8, 8))] == [(4, 8, 8), (5, 4, 4)]
    assert has_batch_statistics(nn.Linear(2, 2)) is False


def test_reference_mobilenet() -> None:
    """The whole network from the names of its tensors, in evaluation mode."""
    torch.manual_seed(0)
    net = MobileNetV2(stem="cifar").double()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 1.5)
    state, x = net.state_dict(), images(2, 3, 18, 16).double()
    maps = net.eval().maps(x)

    def layer(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
        mean, var = (state[f"{bn}.running_{kind}"][:, None, None] for kind in ("mean", "var"))
        return (x - mean) / (var + 1e-5).sqrt()

    strides = dict.fromkeys(range(1, 18), 1) | {4: 2, 7: 2, 14: 2}
    result, seen = layer(x, "features.0.0", "features.0.1").clamp(0, 6), []
    for block, stride in strides.items():
        at, inner = f"features.{block}.conv", result
        if block > 1:
            inner = layer(inner, f"{at}.0.0", f"{at}.0.1").clamp(0, 6)
        deep = int(block > 1)
        inner = layer(inner, f"{at}.{deep}.0", f"{at}.{deep}.1", stride).clamp(0, 6)
        inner = layer(inner, f"{at}.{deep + 1}", f"{at}.{deep + 2}")
        result = result + inner if inner.shape == result.shape else inner
        seen.append(result)
    result = layer(result, "features.18.0", "features.18.1").clamp(0, 6)
    for ours, theirs in zip(maps, [seen[2], seen[5], seen[12], result], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_values_mobilenet() -> None:
    net = MobileNetV2().eval()
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert shapes["features.0.0.weight"] == (32, 3, 3, 3)
    assert shapes["features.1.conv.1.weight"] == (16, 32, 1, 1)
    assert shapes["features.2.conv.0.0.weight"] == (96, 16, 1, 1)
    assert shapes["features.17.conv.2.weight"] == (320, 960, 1, 1)
    assert shapes["features.18.1.running_var"] == (1280,)
    assert len(shapes) == 312
    with torch.no_grad():
        maps = net.maps(images(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 16, 24), (32, 8, 12), (96, 4, 6), (1280, 2, 3)]


def test_errors() -> None:
    with pytest.raises(ValidationError, match="a folder exactly where name is folder"):
        BackboneSettings(name="folder")
    with pytest.raises(ValidationError, match="a folder exactly where name is folder"):
        BackboneSettings(folder="x")
    with pytest.raises(ValidationError, match="brings its own normalisation"):
        BackboneSettings(name="vit-small", norm="group")
    with pytest.raises(ValidationError, match="widths"):
        BackboneSettings(widths=())
    with pytest.raises(ValidationError, match="widths"):
        BackboneSettings(widths=(8, 0))
    with pytest.raises(ValueError, match="the output stride is 8, 4 or 2, got 16"):
        build_backbone(BackboneSettings(name="resnet18", stem="cifar", output_stride=16))
    with pytest.raises(InputError, match="16x16 pixels are too small"):
        build_backbone(BackboneSettings(name="mobilenet-v2"))(images(2, 3, 16, 16))


def test_errors_folder(tmp_path: Path) -> None:
    def built(folder: Path) -> None:
        build_backbone(BackboneSettings(name="folder", folder=str(folder)))

    with pytest.raises(InputError, match="no such folder"):
        built(tmp_path / "absent")
    with pytest.raises(InputError, match=r"has no config\.json"):
        built(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(InputError, match="has no weights"):
        built(tmp_path)
    # Not even opened: it is no pickle.
    (tmp_path / "pytorch_model.bin").write_text("x")
    with pytest.raises(InputError, match=r"as a pickle only \(pytorch_model\.bin\), which may run code"):
        built(tmp_path)
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(InputError, match="transformers cannot read the model"):
        built(tmp_path)


def test_errors_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="needs the transformers library"):
        build_backbone(BackboneSettings(name="vit-small"))


def test_state() -> None:
    for name in OWN:
        torch.manual_seed(0)
        first = build_backbone(BackboneSettings(name=name, stem="cifar", norm="split", norm_groups=2))
        x = images(4, 3, 16, 16)
        first(x)
        torch.manual_seed(1)
        second = build_backbone(BackboneSettings(name=name, stem="cifar", norm="split", norm_groups=2))
        second.load_state_dict(first.state_dict())
        third = pickle.loads(pickle.dumps(first))
        expected = first.eval()(x)
        assert torch.equal(second.eval()(x), expected)
        assert torch.equal(third.eval()(x), expected)
        assert torch.equal(first(x), expected)


class TestTransformers:
    """Models of the transformers library; skipped where it is not installed."""

    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("transformers")

    @pytest.fixture
    def residual(self, tmp_path: Path) -> Path:
        from transformers import ResNetConfig, ResNetModel

        torch.manual_seed(0)
        config = ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 1])
        ResNetModel(config).save_pretrained(tmp_path)
        return tmp_path

    @pytest.fixture
    def transformer(self, tmp_path: Path) -> Path:
        from transformers import ViTConfig, ViTModel

        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=4,
        )
        ViTModel(config).save_pretrained(tmp_path)
        return tmp_path

    def settings(self, folder: Path, **options) -> BackboneSettings:
        return BackboneSettings(name="folder", folder=str(folder), **options)

    def test_values_residual(self, residual: Path, capfd: pytest.CaptureFixture[str]) -> None:
        from transformers import ResNetModel

        reference = ResNetModel.from_pretrained(residual).eval()
        capfd.readouterr()
        net = build_backbone(self.settings(residual))
        assert "".join(capfd.readouterr()) == ""
        assert net.training
        assert has_batch_statistics(net)
        x = images(2, 3, 32, 24)
        expected = reference(x)
        assert torch.equal(net.eval()(x), expected.pooler_output.flatten(1))
        maps = net.maps(x)
        assert [tuple(m.shape[1:]) for m in maps] == [(8, 8, 6), (16, 4, 3)]
        assert torch.equal(maps[-1], expected.last_hidden_state)
        assert (net.width, net.min_size) == (16, 8)

    def test_values_norm(self, residual: Path) -> None:
        net = build_backbone(self.settings(residual, norm="split", norm_groups=2))
        assert kinds(net) == {"SplitBatchNorm"}
        assert kinds(build_backbone(self.settings(residual, norm="sync"))) == {"SyncBatchNorm"}

    def test_values_tokens(self, transformer: Path) -> None:
        """The class token after the last norm; patches as a map; any size of image."""
        from transformers import ViTModel

        reference = ViTModel.from_pretrained(transformer).eval()
        net = build_backbone(self.settings(transformer)).eval()
        x = images(2, 3, 16, 16)
        expected = reference(x).last_hidden_state
        torch.testing.assert_close(net(x), expected[:, 0])
        (only,) = net.maps(x)
        torch.testing.assert_close(only[:, :, 1, 2], expected[:, 1 + 4 + 2])
        assert only.shape == (2, 8, 4, 4)
        assert net(images(2, 3, 8, 24)).shape == (2, 8)
        assert net.maps(images(2, 3, 8, 24))[0].shape == (2, 8, 2, 6)
        with pytest.raises(InputError, match="3x16 pixels are too small"):
            net(images(2, 3, 3, 16))

    def test_gradient(self, transformer: Path) -> None:
        """Every trained parameter gets a gradient, which data-parallel training waits for."""
        net = build_backbone(self.settings(transformer))
        net(images(2, 3, 16, 16)).square().sum().backward()
        assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_errors(self, transformer: Path) -> None:
        with pytest.raises(InputError, match="reads images of 3 channels, the data have 1"):
            build_backbone(self.settings(transformer), channels=1)
        with pytest.raises(InputError, match="patches of 16 pixels do not tile images of 40"):
            build_backbone(BackboneSettings(name="vit-small", image_size=40))

    def test_errors_incomplete(self, residual: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = residual / "model.safetensors"
        weights = load_file(file)
        del weights["encoder.stages.1.layers.0.layer.0.convolution.weight"]
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match=r"1 tensors of ResNetModel are missing .*\.stages\.1\.layers"):
            build_backbone(self.settings(residual))

    def test_errors_code(self, residual: Path) -> None:
        """A folder that brings its own code is refused, and the code does not run."""
        (residual / "own.py").write_text(f"open({str(residual / 'ran')!r}, 'w')\n")
        config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
        (residual / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="code in the folder is not run"):
            build_backbone(self.settings(residual))
        assert not (residual / "ran").exists()

    def test_errors_text(self, tmp_path: Path) -> None:
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        BertModel(config).save_pretrained(tmp_path)
        with pytest.raises(InputError, match="BertModel is not a model of images alone"):
            build_backbone(self.settings(tmp_path))
