"""Segmentation networks by name: sizes, strides, odd images, features and logits, norms, weights, ranks."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.errors import InputError
from leanlabel.models import public_keys
from leanlabel.models.backbones import BackboneSettings, build_backbone, has_batch_statistics
from leanlabel.models.mobilenet import MobileNetV2
from leanlabel.models.resnet import resnet
from leanlabel.models.segmenters import (
    Segmenter,
    SegmenterSettings,
    build_segmenter,
    encoder_name,
    encoder_parameters,
    head_parameters,
)

# Name -> settings and the stride of its logits; every decoder and every encoder of this library's own.
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "deeplab-v2 resnet18": ({"encoder": "resnet18", "dilations": (1, 2)}, 8),
    "deeplab-v2 mobilenet": ({"encoder": "mobilenet-v2", "output_stride": 16}, 16),
    "deeplab-v3+ resnet18": ({"name": "deeplab-v3+", "encoder": "resnet18", "width": 16}, 4),
    "deeplab-v3+ small-cnn": ({"name": "deeplab-v3+", "encoder": "small-cnn", "widths": (4, 6, 8)}, 4),
    "fcn cifar": ({"name": "fcn", "encoder": "resnet18", "stem": "cifar"}, 2),
    "linear": ({"name": "linear", "encoder": "small-cnn", "widths": (4, 6)}, 4),
    "segformer small-cnn": (
        {"name": "segformer", "encoder": "small-cnn", "widths": (4, 6, 8), "width": 8},
        2,
    ),
    "daformer small-cnn": (
        {"name": "daformer", "encoder": "small-cnn", "widths": (4, 6, 8), "width": 8, "dilations": (1, 2)},
        2,
    ),
    "unet": ({"name": "unet", "width": 4, "levels": 2}, 1),
    "small-fcn": ({"name": "small-fcn"}, 4),
    "tiny-fcn": ({"name": "tiny-fcn"}, 4),
}
LIGHT = (
    "deeplab-v3+ small-cnn",
    "linear",
    "segformer small-cnn",
    "daformer small-cnn",
    "unet",
    "tiny-fcn",
)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def built(key: str, classes: int = 5, channels: int = 3, seed: int = 0, **options: Any) -> Segmenter:
    torch.manual_seed(seed)
    settings = SegmenterSettings.model_validate({**NETWORKS[key][0], **options})
    return build_segmenter(settings, classes, channels)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("key", NETWORKS)
def test_values(key: str) -> None:
    """Sides are ceil(side / stride), for odd sides too; the head gives the logits again; channels are free."""
    net, stride = built(key, channels=4).eval(), NETWORKS[key][1]
    assert net.stride == stride
    with torch.no_grad():
        for height, width in ((32, 48), (37, 51), (33, 32)):
            found = net(images(2, 4, height, width))
            size = (-(-height // stride), -(-width // stride))
            assert found.logits.shape == (2, 5, *size)
            assert found.features.shape == (2, net.width, *size)
            assert torch.equal(net.head(found.features), found.logits)
            assert torch.equal(net.features(images(2, 4, height, width)), found.features)
            own = net.encoder.maps(images(2, 4, height, width))
            assert all(torch.equal(one, other) for one, other in zip(found.maps, own, strict=True))
            assert found.detail is None
    assert net.align_corners is False


@pytest.mark.parametrize("key", ["tiny-fcn", "small-fcn"])
def test_reference(key: str) -> None:
    """The small networks from the names of their tensors."""
    net = built(key).double().eval()
    nn.init.normal_(net.encoder.whole.weight, std=0.1)  # it starts at zero
    state = net.state_dict()
    blocks, fine = (4, 1) if key == "small-fcn" else (3, 0)

    def mixed(x: Tensor, at: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = state[f"{at}.0.weight"]
        padding, groups = dilation * (weight.shape[2] // 2), x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, None, stride, padding, dilation, groups) / (1 + 1e-5) ** 0.5

    def step(x: Tensor, at: str, stride: int = 1, dilation: int = 1) -> Tensor:
        return mixed(x, at, stride, dilation).clamp(min=0)

    x = images(2, 3, 37, 50).double()
    near = step(step(x, "encoder.stem", 2), "encoder.fine.0", 2)
    for i in range(fine):
        near = step(near, f"encoder.fine.{i + 1}")
    far = step(near, "encoder.coarse.0", 2)
    for i in range(blocks):
        at = f"encoder.coarse.{i + 1}"
        inner = step(step(far, f"{at}.first.0", dilation=2**i), f"{at}.first.1")
        far = (far + mixed(inner, f"{at}.second")).clamp(min=0)
    whole = torch.einsum("kc,bc->bk", state["encoder.whole.weight"][:, :, 0, 0], far.mean((2, 3)))
    far = far + whole[:, :, None, None]
    enlarged = F.interpolate(mixed(far, "decoder.from_coarse"), near.shape[2:], mode="bilinear")
    total = (mixed(near, "decoder.from_fine") + enlarged).clamp(min=0)
    if key == "small-fcn":
        features = step(total, "decoder.filter")
    else:
        features = step(step(total, "decoder.filter.0"), "decoder.filter.1")
    found = net(x)
    torch.testing.assert_close(found.features, features, rtol=1e-9, atol=1e-12)
    logits = F.conv2d(features, state["decoder.classifier.weight"], state["decoder.classifier.bias"])
    torch.testing.assert_close(found.logits, logits, rtol=1e-9, atol=1e-12)


def test_values_counts() -> None:
    """Published and promised sizes."""
    with torch.device("meta"):
        deeplab = build_segmenter(SegmenterSettings(), 19)
    assert count(deeplab) == 42_500_160 + 4 * (2048 * 9 + 1) * 19 == 43_901_068
    assert (deeplab.width, deeplab.stride, deeplab.min_size) == (2048, 8, 32)
    assert count(built("tiny-fcn", 19)) == 45_283 <= 60_000
    assert count(built("small-fcn", 19)) == 336_499 <= 400_000
    assert count(build_segmenter(SegmenterSettings(name="unet", width=12, levels=3), 6)) == 119_058


def test_values_defaults() -> None:
    """Output stride and dilations where none are given."""

    def dilations(**options: Any) -> list[int]:
        settings = {"name": "deeplab-v3+", "encoder": "resnet18", "width": 8} | options
        pooling = build_segmenter(SegmenterSettings.model_validate(settings), 2).decoder.pooling
        found = {part.dilation[0] for part in pooling.modules() if isinstance(part, nn.Conv2d)}
        return sorted(found - {1})

    assert dilations() == [6, 12, 18]
    assert dilations(output_stride=8) == [12, 24, 36]
    assert dilations(stem="cifar") == [6, 12, 18]
    assert dilations(dilations=(2, 5)) == [2, 5]
    assert encoder_name(SegmenterSettings()) == "resnet101"
    assert encoder_name(SegmenterSettings(name="segformer")) == "mit-b0"
    assert encoder_name(SegmenterSettings(name="linear")) == "dinov2-small"
    assert encoder_name(SegmenterSettings(name="daformer")) == "mit-b5"
    assert encoder_name(SegmenterSettings(name="unet")) == "unet"
    assert encoder_name(SegmenterSettings(name="fcn", encoder="resnet34")) == "resnet34"


@pytest.mark.parametrize("norm", ["batch", "sync", "split", "group", "none", "frozen"])
def test_values_norms(norm: str) -> None:
    kinds = {
        "batch": {"BatchNorm2d"},
        "sync": {"SyncBatchNorm"},
        "split": {"SplitBatchNorm"},
        "group": {"GroupNorm"},
        "none": set(),
        "frozen": {"FrozenBatchNorm"},
    }
    for key in LIGHT:
        net = built(key, norm=norm, norm_groups=2)
        assert {type(part).__name__ for part in net.modules() if "Norm" in type(part).__name__} == kinds[norm]
        assert has_batch_statistics(net) == (norm in ("batch", "sync", "split"))
        alone = norm in ("group", "none", "frozen")
        assert bool(net(images(1 if alone else 4, 3, 24, 24)).logits.isfinite().all())
    if alone:
        x = images(3, 3, 24, 24)
        torch.testing.assert_close(net(x).logits[:1], net(x[:1]).logits)


def test_values_frozen() -> None:
    """A step of training moves no estimate and no affine value; eps is left out on demand."""
    net = built("deeplab-v3+ small-cnn", norm="frozen", frozen_eps=False).train()
    norms = [part for part in net.modules() if type(part).__name__ == "FrozenBatchNorm"]
    assert {part.eps for part in norms} == {0.0}
    before = {name: value.clone() for name, value in net.named_buffers()}
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    net(images(1, 3, 24, 24)).logits.square().sum().backward()
    optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    other = built("deeplab-v3+ small-cnn", norm="batch")
    assert other.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("key", NETWORKS)
def test_gradient(key: str) -> None:
    """Every parameter gets a gradient from the logits, which data-parallel training waits for."""
    net = built(key)
    found = net(images(2, 3, 37, 40))
    found.logits.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    groups = [*encoder_parameters(net), *head_parameters(net)]
    assert {id(p) for p in groups} == {id(p) for p in net.parameters()}
    assert len(groups) == len(list(net.parameters()))
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"encoder", "decoder"}


def test_gradient_fixed() -> None:
    """An encoder that does not learn: no gradient, no moved estimate, also in training mode."""
    net = built("fcn cifar", train_encoder=False).train()
    before = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    found = net(images(2, 3, 16, 16))
    assert [one.requires_grad for one in found.maps] == [False] * 4
    found.logits.sum().backward()
    assert not net.encoder.training
    assert net.decoder.training
    assert encoder_parameters(net) == []
    assert all(p.grad is None for p in net.encoder.parameters())
    assert all(p.grad is not None for p in head_parameters(net))
    assert all(torch.equal(value, before[name]) for name, value in net.encoder.state_dict().items())


@pytest.mark.parametrize("key", LIGHT)
def test_dtypes(key: str) -> None:
    x = images(2, 3, 19, 24)
    for norm in ("batch", "frozen"):
        found = built(key, norm=norm).to(torch.bfloat16)(x.to(torch.bfloat16))
        assert found.logits.dtype == torch.bfloat16
        assert bool(found.logits.isfinite().all())
        with torch.autocast("cpu", torch.bfloat16):
            assert bool(built(key, norm=norm)(x).logits.isfinite().all())
    assert built(key).double()(x.double()).logits.dtype == torch.float64


def test_degenerate() -> None:
    """The smallest images of each network, one class, one channel."""
    for key in LIGHT:
        net = built(key, classes=1, channels=1).eval()
        side = net.min_size
        assert bool(net(images(1, 1, side, side)).logits.isfinite().all())
        with pytest.raises(InputError, match=f"{side - 1}x{side} pixels are too small"):
            net(images(1, 1, side - 1, side))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "unet", "encoder": "resnet18"}, "no encoder for unet, which brings its own"),
        ({"encoder": "folder"}, "a folder exactly where encoder is folder"),
        ({"encoder": "resnet18", "folder": "x"}, "a folder exactly where encoder is folder"),
        ({"encoder": "small-cnn", "output_stride": 8}, "output_stride for a resnet or mobilenet-v2 only"),
        ({"name": "linear", "output_stride": 8}, "output_stride for a resnet or mobilenet-v2 only"),
        ({"name": "fcn", "dilations": (2,)}, "dilations for deeplab-v2, deeplab-v3\\+ and daformer only"),
        ({"dilations": ()}, "at least 1 item"),
        ({"detail_crop": (64, 64)}, "detail_crop with multi_resolution only"),
        ({"multi_resolution": True, "context_scale": 0.4}, "1 divided by a whole number"),
        ({"name": "deeplab"}, "deeplab-v2"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SegmenterSettings.model_validate(options)


def test_errors_built() -> None:
    with pytest.raises(ValueError, match="at least one class, got 0"):
        built("tiny-fcn", 0)
    with pytest.raises(ValueError, match="the output stride is 8, 4 or 2, got 16"):
        built("fcn cifar", output_stride=16)
    with pytest.raises(InputError, match="maps of stride 2 only"):
        built("deeplab-v3+ small-cnn", widths=(4,))
    with pytest.raises(InputError, match="expected images"):
        built("tiny-fcn")(images(3, 16, 16))


def test_state() -> None:
    for key in LIGHT:
        first, second = built(key, seed=0), built(key, seed=1)
        x = images(2, 3, 17, 26)
        first(x)
        second.load_state_dict(first.state_dict())
        third = pickle.loads(pickle.dumps(first))
        expected = first.eval()(x).logits
        assert not torch.equal(built(key, seed=1).eval()(x).logits, expected)
        assert torch.equal(second.eval()(x).logits, expected)
        assert torch.equal(third.eval()(x).logits, expected)


def test_state_seed() -> None:
    for key in LIGHT:
        assert all(torch.equal(a, b) for a, b in zip(built(key).parameters(), built(key).parameters()))


def test_state_public() -> None:
    """Encoders have the names of the backbones: pre-trained ones and published layouts go in."""
    torch.manual_seed(5)
    published = {f"module.encoder_q.{name}": value for name, value in resnet(18).state_dict().items()}
    for norm in ("batch", "frozen"):
        net = built("deeplab-v2 resnet18", norm=norm)
        report = public_keys.fill(net.encoder, published | {"module.encoder_q.fc.0.weight": torch.zeros(1)})
        assert report.dropped == ("module.encoder_q.fc.0.weight",)
        for name, value in published.items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(net.encoder.state_dict()[name.removeprefix("module.encoder_q.")], value)
    net = built("deeplab-v2 mobilenet")
    report = public_keys.fill(net.encoder, MobileNetV2().state_dict())
    assert {name.split(".")[1] for name in report.dropped} == {"18"}
    for key, name in (("fcn cifar", "resnet18"), ("linear", "small-cnn")):
        settings = {"name": name, "stem": "cifar", "widths": (4, 6)}
        backbone = build_backbone(BackboneSettings.model_validate(settings))
        built(key).encoder.load_state_dict(backbone.state_dict())


def on_rank(norm: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of this rank's image, and gradients as data-parallel training averages them."""
    net = built("deeplab-v3+ small-cnn", norm=norm, dropout=0.0).double().train()
    x = images(2, 3, 24, 31).double()[dist.shard(2)]
    logits = net(x).logits
    dist.global_mean(logits.square().sum(), len(x)).backward()
    averaged = {
        name: dist.all_sum(p.grad) / dist.world() for name, p in net.named_parameters() if p.grad is not None
    }
    return logits.detach(), averaged


@pytest.mark.parametrize("norm", ["sync", "frozen"])
def test_ranks(pool, norm: str) -> None:
    """Two ranks with one image each give the logits and gradients of one rank with both, pooling included."""
    logits, gradients = on_rank(norm)
    results = pool.run(on_rank, norm)
    torch.testing.assert_close(torch.cat([one for one, _ in results]), logits, rtol=1e-9, atol=1e-12)
    assert len(gradients) > 10
    for _, found in results:
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-10)
