"""DeepLab's decoders written out, their sizes, their degenerate cases, and the dilated MobileNet-V2 they read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlabel.errors import InputError
from leanlabel.models.decoders import ConvDecoder, Level, LinearDecoder, upsample
from leanlabel.models.deeplab import DeepLabV2Decoder, DeepLabV3PlusDecoder, DilatedPooling
from leanlabel.models.mobilenet import MobileNetV2

LEVELS = [Level(6, 4), Level(5, 8), Level(8, 16)]


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(batch: int = 2) -> list[Tensor]:
    sizes = ((9, 12), (5, 6), (3, 3))
    return [values(batch, level.width, *size, seed=i) for i, (level, size) in enumerate(zip(LEVELS, sizes))]


def lively(module: nn.Module) -> nn.Module:
    """Evaluation mode in double precision, with estimates and weights of batch norms that are not the identity."""
    torch.manual_seed(3)
    for part in module.double().modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (part.bias, part.running_mean):
                tensor.data.uniform_(-0.2, 0.2)
    return module.eval()


def test_values() -> None:
    torch.manual_seed(0)
    decoder = DeepLabV2Decoder([Level(2048, 8)], 19)
    assert sum(p.numel() for p in decoder.parameters()) == 4 * (2048 * 9 + 1) * 19
    weights = torch.cat([p.detach().flatten() for p in decoder.parameters() if p.ndim == 4])
    assert abs(float(weights.std()) - 0.01) < 1e-4
    assert abs(float(weights.mean())) < 1e-4
    assert all(bool((p == 0).all()) for p in decoder.parameters() if p.ndim == 1)
    assert (decoder.width, decoder.stride) == (2048, 8)
    branches = [part for part in decoder.modules() if isinstance(part, nn.Conv2d)]
    assert [(part.dilation[0], part.padding[0]) for part in branches] == [(d, d) for d in (6, 12, 18, 24)]


def test_values_point() -> None:
    """One positive position: what each dilation sends where."""
    decoder = DeepLabV2Decoder([Level(1, 8)], 1, (1, 3)).double()
    for branch, factor in zip(decoder.branches, (1.0, 10.0), strict=True):
        branch.weight.data.fill_(factor)
        branch.bias.data.fill_(0.25)
    x = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    x[0, 0, 3, 3] = 1
    logits = decoder.classify(x)[0, 0].detach()
    assert float(logits[3, 3]) == 11.5
    assert float(logits[2, 3]) == 1.5
    assert float(logits[0, 6]) == 10.5
    assert float(logits[1, 3]) == 0.5


def test_reference() -> None:
    """deeplab-v2 as a sum over shifted maps, one position of a filter at a time."""
    decoder = DeepLabV2Decoder(LEVELS, 4, (1, 2)).double()
    x = values(2, 8, 5, 6)
    expected = torch.zeros(2, 4, 5, 6, dtype=torch.float64)
    for branch, dilation in zip(decoder.branches, (1, 2), strict=True):
        padded = F.pad(x, [dilation] * 4)
        for i in range(3):
            for j in range(3):
                shifted = padded[:, :, i * dilation : i * dilation + 5, j * dilation : j * dilation + 6]
                expected += torch.einsum("kc,bchw->bkhw", branch.weight[:, :, i, j], shifted)
        expected += branch.bias[:, None, None]
    features = decoder.fuse([*maps()[:2], x])
    assert features is x
    torch.testing.assert_close(decoder.classify(features), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("depthwise", [True, False])
def test_reference_refined(depthwise: bool) -> None:
    """deeplab-v3+ from the names of its tensors."""
    torch.manual_seed(0)
    net = lively(
        DeepLabV3PlusDecoder(LEVELS, 4, width=7, fine_width=3, dilations=(1, 2), depthwise=depthwise)
    )
    state = net.state_dict()

    def step(x: Tensor, at: str, dilation: int = 1) -> Tensor:
        weight = state[f"{at}.0.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, padding=dilation * (weight.shape[2] // 2), dilation=dilation, groups=groups)
        mean, var, scale, shift = (
            state[f"{at}.1.{kind}"][:, None, None]
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)

    def wide(x: Tensor, at: str, dilation: int = 1) -> Tensor:
        return step(step(x, f"{at}.0", dilation), f"{at}.1") if depthwise else step(x, at, dilation)

    fine, _, coarse = maps()
    branches = [step(coarse, "pooling.branches.0")]
    branches += [wide(coarse, f"pooling.branches.{i}", i) for i in (1, 2)]
    whole = step(coarse.mean((2, 3), keepdim=True), "pooling.whole")
    pooled = step(torch.cat([*branches, whole.expand_as(branches[0])], 1), "pooling.project")
    enlarged = F.interpolate(pooled, (9, 12), mode="bilinear", align_corners=False)
    expected = torch.cat([enlarged, step(fine, "reduce")], 1)
    for i in (0, 1):
        expected = wide(expected, f"refine.{i}")
    features = net.fuse(maps())
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    logits = F.conv2d(expected, state["classifier.weight"], state["classifier.bias"])
    torch.testing.assert_close(net.classify(features), logits, rtol=1e-10, atol=1e-12)
    assert (net.width, net.stride) == (7, 4)


def test_reference_upsample() -> None:
    """Bilinear weights, one output position at a time, with both ways to lay the corners."""
    x = values(2, 3, 4, 5)
    for align in (False, True):
        result = upsample(x, (7, 11), align)
        for row in range(7):
            for column in range(11):
                if align:
                    at = (row * 3 / 6, column * 4 / 10)
                else:
                    at = ((row + 0.5) * 4 / 7 - 0.5, (column + 0.5) * 5 / 11 - 0.5)
                (i, u), (j, v) = [(int(p), p - int(p)) for p in (max(0.0, p) for p in at)]
                i2, j2 = min(i + 1, 3), min(j + 1, 4)
                above = x[:, :, i, j] * (1 - v) + x[:, :, i, j2] * v
                below = x[:, :, i2, j] * (1 - v) + x[:, :, i2, j2] * v
                torch.testing.assert_close(result[:, :, row, column], above * (1 - u) + below * u)
    assert upsample(x, (4, 5)) is x


def test_reference_plain() -> None:
    """The plain decoders read the last map, position by position and 3x3."""
    linear = LinearDecoder(LEVELS, 4).double()
    assert linear.fuse(maps()).shape == (2, 8, 3, 3)
    x = maps()[2]
    expected = torch.einsum("kc,bchw->bkhw", linear.classifier.weight[:, :, 0, 0], x)
    torch.testing.assert_close(linear.classify(linear.fuse(maps())), expected)
    fcn = lively(ConvDecoder(LEVELS, 4, 5, None))
    (conv,) = [part for part in fcn.filter.modules() if isinstance(part, nn.Conv2d)]
    expected = F.conv2d(x, conv.weight, conv.bias, padding=1).clamp(min=0)
    torch.testing.assert_close(fcn.fuse(maps()), expected)
    assert (fcn.width, fcn.stride, linear.width, linear.stride) == (5, 16, 8, 16)


def test_gradient() -> None:
    decoder = DeepLabV2Decoder([Level(2, 8)], 2, (1, 2)).double()
    assert torch.autograd.gradcheck(decoder.classify, values(1, 2, 3, 3).requires_grad_())
    refined = lively(DeepLabV3PlusDecoder(LEVELS, 3, width=4, fine_width=2, dilations=(1,)))
    given = [one.requires_grad_() for one in maps(1)]
    refined.classify(refined.fuse(given)).square().sum().backward()
    assert [one.grad is not None for one in given] == [True, False, True]


def test_degenerate() -> None:
    """Dilations beyond the map read their middle alone; a map of one position works."""
    decoder = DeepLabV2Decoder([Level(3, 8)], 2, (6, 12)).double()
    x = values(2, 3, 1, 1)
    middle = sum(branch.weight[:, :, 1, 1] for branch in decoder.branches)
    expected = torch.einsum("kc,bchw->bkhw", middle, x)
    torch.testing.assert_close(decoder.classify(x), expected)
    refined = lively(DeepLabV3PlusDecoder(LEVELS, 3, width=4, fine_width=2))
    tiny = [values(1, level.width, 1, 1) for level in LEVELS]
    assert bool(refined.classify(refined.fuse(tiny)).isfinite().all())


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"at least one number of at least 1, got \(\)"):
        DeepLabV2Decoder(LEVELS, 2, ())
    with pytest.raises(ValueError, match=r"got \(3, 0\)"):
        DilatedPooling(4, 4, (3, 0), None, depthwise=True)
    with pytest.raises(InputError, match="maps of stride 14 only"):
        DeepLabV3PlusDecoder([Level(8, 14)], 2)
    pooling = DilatedPooling(4, 4, (1,), nn.BatchNorm2d, depthwise=True)
    with pytest.raises(InputError, match="a batch of one image does not allow"):
        pooling(torch.zeros(1, 4, 3, 3))
    assert pooling(torch.zeros(2, 4, 3, 3)).shape == (2, 4, 3, 3)
    assert pooling.eval()(torch.zeros(1, 4, 3, 3)).shape == (1, 4, 3, 3)
    assert DilatedPooling(4, 4, (1,), None, depthwise=True)(torch.zeros(1, 4, 3, 3)).shape == (1, 4, 3, 3)


@pytest.mark.parametrize(
    ("stem", "stride", "finer"), [("imagenet", 16, 2), ("imagenet", 8, 4), ("cifar", 4, 2), ("cifar", 2, 4)]
)
def test_reference_mobilenet(stem, stride: int, finer: int) -> None:
    """The dilated network gives, at every position that the plain one has, what the plain one gives."""
    torch.manual_seed(0)
    plain = lively(MobileNetV2(stem=stem))
    dilated = lively(MobileNetV2(stem=stem, output_stride=stride))
    dilated.load_state_dict(plain.state_dict())
    x = values(1, 3, 64, 64)
    with torch.no_grad():
        expected, ours = plain.maps(x), dilated.maps(x)
    for theirs, mine in zip(expected, ours, strict=True):
        step = mine.shape[2] // theirs.shape[2]
        torch.testing.assert_close(mine[:, :, ::step, ::step], theirs, rtol=1e-9, atol=1e-12)
    assert ours[-1].shape[2] == finer * expected[-1].shape[2] == 64 // stride


def test_values_mobilenet_top() -> None:
    net = MobileNetV2(top=False, output_stride=8).eval()
    assert net.width == 320
    assert set(net.state_dict()) == {
        k for k in MobileNetV2().state_dict() if not k.startswith("features.18.")
    }
    with torch.no_grad():
        sizes = [tuple(m.shape[1:]) for m in net.maps(torch.zeros(1, 3, 65, 90))]
    assert sizes == [(24, 17, 23), (32, 9, 12), (96, 9, 12), (320, 9, 12)]
    with pytest.raises(ValueError, match="the output stride is 32, 16 or 8, got 4"):
        MobileNetV2(output_stride=4)
