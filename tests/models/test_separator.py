"""Content and style: layers by hand, a style of 0 that changes no bit, gradients, sizes, maps computed again."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from leanlabel.errors import InputError
from leanlabel.models import separator
from leanlabel.models.separator import ContentDecoder, Modulation, StyleEncoder, check_bias_free


def convolutions(net: StyleEncoder | ContentDecoder) -> list[nn.Conv2d]:
    return [layer for layer in net.layers if isinstance(layer, nn.Conv2d)]


def modulations(net: ContentDecoder) -> list[Modulation]:
    return [one for one in net.modulations if isinstance(one, Modulation)]


def decoder(
    stride: int = 4, widths: tuple[int, ...] = (6, 5, 4), seed: int = 0, **more: bool
) -> ContentDecoder:
    """D = 7, styles of 3 numbers, 2 channels; biases that are not 0."""
    torch.manual_seed(seed)
    net = ContentDecoder(7, 3, 2, stride, widths, **more).double()
    for layer in convolutions(net):
        assert layer.bias is not None
        nn.init.normal_(layer.bias)
    return net


def encoder(seed: int = 0) -> StyleEncoder:
    torch.manual_seed(seed)
    net = StyleEncoder(2, width=3, widths=(4, 5)).double()
    for layer in convolutions(net):
        assert layer.bias is not None
        nn.init.normal_(layer.bias)
    return net


def content(batch: int = 2, height: int = 3, width: int = 4, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 7, height, width, generator=generator, dtype=torch.float64).relu()


def test_values() -> None:
    """Layers and sizes of the specification, at stride 8."""
    style = StyleEncoder(3)
    assert [tuple(layer.weight.shape) for layer in convolutions(style)] == [
        *((32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3))
    ]
    assert style.last.weight.shape == (64, 256)
    assert style.last.bias is None
    net = ContentDecoder(2048, 64, 3, 8)
    assert [tuple(layer.weight.shape[:3]) for layer in convolutions(net)] == [
        *((256, 2048, 1), (128, 256, 3), (64, 128, 3), (32, 64, 3), (3, 32, 3))
    ]
    assert [one.scale.weight.shape[0] for one in modulations(net)] == [256, 128, 64, 32, 3]
    assert [name for name, _ in net.named_parameters() if "modulations" in name and "bias" in name] == []
    assert net.steps == 3


def test_values_style() -> None:
    """Mean and deviation of a map by hand: an identity of one pixel in four, ReLU, then both numbers."""
    net = StyleEncoder(1, width=2, widths=(1,)).double()
    with torch.no_grad():
        convolutions(net)[0].weight.zero_()[0, 0, 1, 1] = 1
        net.last.weight.copy_(torch.eye(2))
    image = torch.tensor([[1.0, 9, 3, 9], [9] * 4, [-7, 9, 4, 9], [9] * 4], dtype=torch.float64)
    torch.testing.assert_close(net(image[None, None]), torch.tensor([[2.0, 2.5**0.5]], dtype=torch.float64))


def test_values_zero_style() -> None:
    """C0: G(c, 0) is no modulation to the last bit, whatever the maps of styles and whoever shares the batch."""
    for stride, widths in ((8, (6, 5, 4, 3)), (4, (6, 5, 4)), (1, (3,))):
        net, maps = decoder(stride, widths), content()
        for one in modulations(net):
            nn.init.normal_(one.scale.weight, std=30)
            nn.init.normal_(one.shift.weight, std=30)
        zero = net(maps, None)
        style = encoder()(torch.randn(2, 2, 9, 9, dtype=torch.float64))
        assert torch.equal(zero, net(maps, style * 0))
        assert torch.equal(zero, net(maps, style.new_zeros(2, 3)))
        assert not torch.equal(zero, net(maps, style))
        plain = maps
        for number, layer in enumerate(convolutions(net)):
            enlarged = number > len(net.layers) - 1 - net.steps
            plain = plain.repeat_interleave(2, 2).repeat_interleave(2, 3) if enlarged else plain
            plain = layer(plain)
            plain = plain if number in (0, len(net.layers) - 1) else plain.relu()
        assert torch.equal(zero, plain)
    twice = maps[:1].expand(2, -1, -1, -1)
    both = net(twice, None)
    assert torch.equal(both[0], both[1]), "equal content, equal image"
    modulation = Modulation(3, 7).double()
    assert torch.equal(modulation(maps, torch.zeros(2, 3, dtype=torch.float64)), maps)


def test_values_no_style() -> None:
    """Maps that are 0 have no style: nothing is added on the way."""
    net = StyleEncoder(2, width=3, widths=(4, 5))
    assert torch.equal(net(torch.zeros(2, 2, 8, 8)), torch.zeros(2, 3))


def test_reference_style() -> None:
    net, images = encoder(), torch.randn(3, 2, 11, 7, dtype=torch.float64)
    rows = []
    for image in images:
        maps = image[None]
        for layer in convolutions(net):
            maps = F.conv2d(maps, layer.weight, layer.bias, stride=2, padding=1)
            maps = maps.where(maps > 0, 0)
        found = [channel.mean() for channel in maps[0]]
        found += [((channel - channel.mean()) ** 2).mean().sqrt() for channel in maps[0]]
        rows.append(net.last.weight @ torch.stack(found))
    torch.testing.assert_close(net(images), torch.stack(rows), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("stride", "widths", "channels", "steps"),
    [
        (1, (5,), [5], 0),
        (1, (6, 5), [6, 5], 0),
        (2, (6, 5, 4), [6, 5, 4], 1),
        (4, (6, 5, 4), [6, 5, 4], 2),
        (8, (6, 5), [6, 6, 6, 5], 3),
        (14, (6, 5, 4, 4), [6, 5, 4, 4], 3),
    ],
    ids=str,
)
def test_reference_decoder(stride: int, widths: tuple[int, ...], channels: list[int], steps: int) -> None:
    """Sample by sample and channel by channel, with steps at the end, a first width that repeats, and a rest."""
    net, maps = decoder(stride, widths), content()
    style = torch.randn(2, 3, dtype=torch.float64)
    size = (3 * stride - 1, 4 * stride)
    assert [layer.weight.shape[0] for layer in convolutions(net)] == [*channels, 2]
    assert net.steps == steps
    images = []
    for sample, own in zip(maps, style, strict=True):
        x = sample[None]
        for number, (layer, modulation) in enumerate(zip(convolutions(net), modulations(net), strict=True)):
            last = number == len(channels)
            if number > len(channels) - steps:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            if last and x.shape[2:] != size:
                x = F.interpolate(x, size, mode="bilinear", align_corners=False)
            x = F.conv2d(x, layer.weight, layer.bias, padding=0 if number == 0 else 1)
            scale, shift = (weight @ own for weight in (modulation.scale.weight, modulation.shift.weight))
            x = torch.stack([one * (1 + a) + b for one, a, b in zip(x[0], scale, shift, strict=True)])[None]
            x = x if last or number == 0 else x.where(x > 0, 0)
        images.append(x[0])
    found = net(maps, style, size)
    assert found.shape == (2, 2, *size)
    torch.testing.assert_close(found, torch.stack(images), rtol=1e-11, atol=1e-12)


def test_gradient() -> None:
    """Right by finite differences, to content, style and images."""
    net, maps = decoder(2, (4, 3)), (content(1, 2, 2) + 0.1).requires_grad_()
    style = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, s: net(c, s, (3, 5)), (maps, style))
    assert torch.autograd.gradcheck(lambda c: net(c, None), (maps,))
    images = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(encoder(), (images,))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradient_no_style(checkpoint: bool) -> None:
    """Without a style every weight has a gradient, which data-parallel training waits for; of modulations it is 0."""
    net = decoder(checkpoint=checkpoint)
    with torch.no_grad():
        next(net.modulations.parameters()).fill_(torch.inf)
    net(content(), None).square().sum().backward()
    for name, value in net.named_parameters():
        assert value.grad is not None, name
        assert bool(value.grad.any()) == ("modulations" not in name), name


def test_gradient_constant() -> None:
    """Channels without any deviation: units that are dead, and images of one colour."""
    net = encoder()
    images = torch.ones(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    for bias in (-1.0, 1.0):
        with torch.no_grad():
            convolutions(net)[0].weight.zero_()
            net.state_dict()["layers.0.bias"].fill_(bias)
        net.zero_grad()
        net(images).sum().backward()
        for value in (images, *net.parameters()):
            assert value.grad is not None
            assert bool(value.grad.isfinite().all())


@pytest.mark.parametrize("styled", [True, False])
def test_checkpoint(styled: bool) -> None:
    """Maps that are computed again give the same bits, values and gradients."""
    results = []
    for checkpoint in (False, True):
        net = decoder(8, (6, 5, 4, 3), checkpoint=checkpoint)
        maps = content().requires_grad_()
        style = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_() if styled else None
        image = net(maps, style, (21, 30))
        image.square().sum().backward()
        slopes = [value.grad for value in (maps, style, *net.parameters()) if value is not None]
        results.append([image.detach(), *slopes])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    """Statistics of maps whose squares half precision does not hold."""
    net = StyleEncoder(1, width=2, widths=(1,)).to(dtype)
    with torch.no_grad():
        convolutions(net)[0].weight.zero_()[0, 0, 1, 1] = 1
        net.last.weight.copy_(torch.eye(2))
    image = torch.tensor([[0.0, 0, 1000, 0]] * 2, dtype=dtype)[None, None]
    found = net(image)
    assert found.dtype == dtype
    assert found.tolist() == [[500, 500]]
    image = decoder().to(dtype)(content().to(dtype), torch.randn(2, 3).to(dtype), (11, 14))
    assert image.dtype == dtype
    assert bool(image.isfinite().all())


def test_dtypes_autocast() -> None:
    net, maps = decoder().float(), content().float()
    style = torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(maps, style, (11, 14))
        zero = net(maps, style * 0)
        assert torch.equal(zero, net(maps, None))
        assert zero.dtype == net(maps, None).dtype
        numbers = encoder().float()(torch.randn(2, 2, 8, 8))
    expected = net(maps, style, (11, 14))
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1 * float(expected.detach().std()))
    assert bool(numbers.isfinite().all())


def test_degenerate() -> None:
    """No image, images of one pixel, content that is 0 everywhere, one position."""
    style, net = encoder(), decoder()
    assert style(torch.zeros(0, 2, 8, 8, dtype=torch.float64)).shape == (0, 3)
    for size in ((1, 1), (1, 9), (3, 2)):
        assert bool(style(torch.ones(2, 2, *size, dtype=torch.float64)).isfinite().all())
    assert net(content(0), style.last.weight.new_zeros(0, 3)).shape == (0, 2, 12, 16)
    assert net(content(0), None, (10, 10)).shape == (0, 2, 10, 10)
    dead = net(content() * 0, None, (12, 16))
    assert bool(dead.isfinite().all())
    assert net(content(1, 1, 1), None).shape == (1, 2, 4, 4)


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (
        {"content": 0},
        {"stride": 0},
        {"style": 0},
        {"channels": 0},
        {"widths": ()},
        {"widths": (4, 0)},
    ):
        with pytest.raises(ValueError, match="at least 1"):
            ContentDecoder(**{"content": 7, "style": 3, "channels": 2, "stride": 4, **wrong})
    for wrong in ({"channels": 0}, {"width": 0}, {"widths": ()}):
        with pytest.raises(ValueError, match="at least 1"):
            StyleEncoder(**{"channels": 3, **wrong})
    with pytest.raises(InputError, match=r"expected images \(B, C, H, W\)"):
        encoder()(torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match=r"content must be \(B, D, h, w\), got \(7, 3, 4\)"):
        decoder()(content()[0], None)
    with pytest.raises(ValueError, match=r"style must be \(2, 3\) .* got \(1, 3\)"):
        decoder()(content(), torch.zeros(1, 3))

    class Biased(nn.Linear):
        def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
            super().__init__(inputs, outputs)

    with pytest.raises(ValueError, match="linear map 0 must not have a bias"):
        check_bias_free(nn.Sequential(nn.Linear(2, 2)))
    monkeypatch.setattr(nn, "Linear", Biased)
    with pytest.raises(ValueError, match="linear map of styles must not have a bias"):
        encoder()
    with pytest.raises(ValueError, match=r"linear map 0\.scale must not have a bias"):
        decoder()


def test_state() -> None:
    """Saved and loaded, both networks say the same; a bias from elsewhere is refused."""
    for net, fresh, given_ in (
        (decoder(), decoder(seed=5), (content(), torch.ones(2, 3, dtype=torch.float64))),
        (encoder(), encoder(seed=5), (torch.ones(1, 2, 9, 9, dtype=torch.float64),)),
    ):
        state = copy.deepcopy(net.state_dict())
        assert not torch.equal(fresh(*given_), net(*given_))
        fresh.load_state_dict(state)
        assert torch.equal(fresh(*given_), net(*given_))
        name = "modulations.0.scale.bias" if isinstance(net, ContentDecoder) else "last.bias"
        with pytest.raises(RuntimeError, match="Unexpected"):
            fresh.load_state_dict({**state, name: torch.zeros(6)})


@given(st.integers(1, 17), st.integers(1, 40), st.integers(1, 40))
def test_sizes(stride: int, height: int, width: int) -> None:
    """Every stride gives every size."""
    net = ContentDecoder(2, 2, 1, stride, (3, 2))
    maps = torch.zeros(1, 2, -(-height // stride), -(-width // stride))
    assert net(maps, None, (height, width)).shape == (1, 1, height, width)


@given(st.permutations(range(4)), st.integers(0, 100))
def test_rows(order: list[int], seed: int) -> None:
    """Samples do not see each other."""
    torch.manual_seed(seed)
    style, images = encoder(), torch.randn(4, 2, 6, 5, dtype=torch.float64)
    numbers = style(images)
    torch.testing.assert_close(style(images[order]), numbers[order])
    net, maps = decoder(), content(4)
    torch.testing.assert_close(net(maps[order], numbers[order]), net(maps, numbers)[order])


def test_doctests() -> None:
    assert doctest.testmod(separator).failed == 0
