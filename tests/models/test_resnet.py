"""Residual networks: shapes, names, a forward pass written out, dilation, errors."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlabel.errors import InputError
from leanlabel.models.resnet import BasicBlock, Bottleneck, ResNet, resnet


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(*, bottleneck: bool = False, seed: int = 0, **options) -> ResNet:
    """A narrow network in double precision with norms that are not the identity."""
    torch.manual_seed(seed)
    net = ResNet((1, 2, 1, 2), bottleneck, width=4, **options).double()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value in (part.weight, part.running_var):
                value.data.uniform_(0.5, 1.5)
            for value in (part.bias, part.running_mean):
                value.data.uniform_(-0.2, 0.2)
    return net.eval()


def naive(state: dict[str, Tensor], x: Tensor, stem: str) -> list[Tensor]:
    """The four maps, computed from the names of the tensors."""

    def layer(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        mean, var, scale, shift = (
            state[f"{bn}.{kind}"][:, None, None] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = layer(x, "conv1", "bn1", 2 if stem == "imagenet" else 1).clamp(min=0)
    if stem == "imagenet":
        x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage in range(1, 5):
        blocks = {int(name.split(".")[1]) for name in state if name.startswith(f"layer{stage}.")}
        for block in sorted(blocks):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            deep = f"{at}.conv3.weight" in state
            shortcut = x
            if f"{at}.downsample.0.weight" in state:
                shortcut = layer(x, f"{at}.downsample.0", f"{at}.downsample.1", stride)
            x = layer(x, f"{at}.conv1", f"{at}.bn1", 1 if deep else stride).clamp(min=0)
            x = layer(x, f"{at}.conv2", f"{at}.bn2", stride if deep else 1)
            if deep:
                x = layer(x.clamp(min=0), f"{at}.conv3", f"{at}.bn3")
            x = (x + shortcut).clamp(min=0)
        maps.append(x)
    return maps


@pytest.mark.parametrize(
    ("depth", "count", "entries", "width"),
    [
        (18, 11_176_512, 120, 512),
        (34, 21_284_672, 216, 512),
        (50, 23_508_032, 318, 2048),
        (101, 42_500_160, 624, 2048),
    ],
)
def test_values(depth: int, count: int, entries: int, width: int) -> None:
    """Sizes of the published networks without their classifiers."""
    net = resnet(depth)
    assert sum(p.numel() for p in net.parameters()) == count
    assert len(net.state_dict()) == entries
    assert net.width == width


def test_values_names() -> None:
    state = resnet(50).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["bn1.running_var"] == (64,)
    assert shapes["layer1.0.conv3.weight"] == (256, 64, 1, 1)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["layer4.0.downsample.1.weight"] == (2048,)
    assert "layer4.1.downsample.0.weight" not in shapes
    basic = resnet(18, stem="cifar").state_dict()
    assert tuple(basic["conv1.weight"].shape) == (64, 3, 3, 3)
    assert "layer1.0.downsample.0.weight" not in basic


@pytest.mark.parametrize(
    ("stem", "side", "sides"),
    [
        ("imagenet", 32, [8, 4, 2, 1]),
        ("imagenet", 224, [56, 28, 14, 7]),
        ("cifar", 32, [32, 16, 8, 4]),
        ("cifar", 64, [64, 32, 16, 8]),
    ],
)
def test_values_maps(stem, side: int, sides: list[int]) -> None:
    net, x = small(stem=stem), images(1, 3, side, side)
    maps = net.maps(x)
    assert [tuple(one.shape) for one in maps] == [(1, 4 * 2**k, s, s) for k, s in enumerate(sides)]
    torch.testing.assert_close(net(x), maps[-1].mean((2, 3)), rtol=0, atol=0)


def test_values_initialisation() -> None:
    torch.manual_seed(0)
    net = resnet(18)
    weight = net.layer4[1].conv2.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert float(net.layer4[0].downsample[0].weight.detach().std()) == pytest.approx(
        (2 / 512) ** 0.5, rel=0.01
    )
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert torch.equal(part.weight, torch.ones_like(part.weight))
            assert not part.bias.any()
    torch.manual_seed(0)
    assert torch.equal(resnet(18).layer4[1].conv2.weight, weight)
    assert not torch.equal(resnet(18).layer4[1].conv2.weight, weight)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_values_zero_init(bottleneck: bool) -> None:
    """Every block without a change of shape starts as the identity for what a ReLU lets through."""
    for zero in (False, True):
        net = ResNet((2, 2, 2, 2), bottleneck, width=4, zero_init=zero)
        channels = 16 if bottleneck else 4
        x = images(2, channels, 6, 6).float()
        assert torch.equal(net.layer1[1](x), x) == zero
        blocks = [part for part in net.modules() if isinstance(part, BasicBlock | Bottleneck)]
        assert len(blocks) == 8
        assert all(bool(block.bn1.weight.all()) for block in blocks)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("size", [(2, 3, 32, 32), (1, 3, 37, 44)])
def test_reference(stem, bottleneck: bool, size: tuple[int, ...]) -> None:
    net, x = small(bottleneck=bottleneck, stem=stem), images(*size)
    for ours, theirs in zip(net.maps(x), naive(net.state_dict(), x, stem), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize(
    ("stem", "output_stride", "finer"),
    [("imagenet", 16, 2), ("imagenet", 8, 4), ("cifar", 4, 2), ("cifar", 2, 4)],
)
def test_reference_dilation(stem, output_stride: int, finer: int, bottleneck: bool) -> None:
    """A dilated network holds the maps of the plain one: every second, or every fourth, position."""
    plain = small(bottleneck=bottleneck, stem=stem)
    dilated = small(bottleneck=bottleneck, stem=stem, output_stride=output_stride)
    dilated.load_state_dict(plain.state_dict())
    x = images(1, 3, 45, 64)
    ours, theirs = dilated.maps(x), plain.maps(x)
    for k, factor in enumerate((1, 1, finer // 2, finer)):
        torch.testing.assert_close(ours[k][:, :, ::factor, ::factor], theirs[k], rtol=1e-10, atol=1e-12)
    assert ours[3].shape[3] == 64 // output_stride


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, None])
def test_gradient(norm) -> None:
    net = small(norm=norm).train()
    x = images(2, 3, 32, 32).requires_grad_()
    net(x).square().sum().backward()
    assert x.grad is not None
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        # A bias before a batch norm would have none; here a bias is there only without norms.
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    net, x = small(stem="cifar"), images(4, 3, 16, 16)
    expected = net(x)
    result = net.to(dtype)(x.to(dtype))
    assert result.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_degenerate() -> None:
    net = small(stem="cifar")
    assert net(images(0, 3, 8, 8)).shape == (0, 32)
    assert net(images(1, 3, 8, 8)).shape == (1, 32)
    assert small(channels=1)(images(2, 1, 32, 40)).shape == (2, 32)


def test_errors() -> None:
    with pytest.raises(InputError, match=re.escape("images of 31x40 pixels are too small")) as caught:
        small()(images(1, 3, 31, 40))
    assert "stem to cifar" in str(caught.value)
    with pytest.raises(InputError, match="7x8"):
        small(stem="cifar").maps(images(1, 3, 7, 8))
    with pytest.raises(
        InputError, match=re.escape("expected images (B, C, H, W), got a tensor of shape (3, 32, 32)")
    ):
        small()(images(3, 32, 32))
    with pytest.raises(ValueError, match="18, 34, 50, 101 layers here, got 19"):
        resnet(19)
    for stem, stride in (("imagenet", 4), ("imagenet", 64), ("cifar", 16), ("cifar", 3), ("cifar", 1)):
        with pytest.raises(ValueError, match=f"the output stride is .*, got {stride}"):
            small(stem=stem, output_stride=stride)


def test_state() -> None:
    first, second = small(seed=1), small(seed=2)
    x = images(2, 3, 32, 32)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    copy = pickle.loads(pickle.dumps(first))
    assert torch.equal(copy(x), first(x))
    before = {name: value.clone() for name, value in first.state_dict().items()}
    first.eval()(x)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    torch.testing.assert_close(first(x)[:1], first(x[:1]), rtol=1e-12, atol=1e-14)
