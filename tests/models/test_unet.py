"""U-Net: sizes, a forward pass written out, images of any size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlabel.errors import InputError
from leanlabel.models.decoders import Level
from leanlabel.models.segmenters import Segmenter
from leanlabel.models.unet import UNetDecoder, UNetEncoder


def unet(width: int = 4, levels: int = 2, classes: int = 3, norm=nn.BatchNorm2d, seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    encoder = UNetEncoder(width, levels, norm)
    strides = [Level(channels, 2**level) for level, channels in enumerate(encoder.widths)]
    return Segmenter(encoder, UNetDecoder(strides, classes, norm))


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_values() -> None:
    """Width 12 and three poolings: 118,260 weights of convolutions, 720 of norms, and the classifier."""
    net = unet(12, 3, 6)
    shapes = [tuple(p.shape) for p in net.parameters()]
    assert sum(p.numel() for p in net.parameters()) == 118_260 + 720 + 13 * 6
    assert UNetEncoder(12, 3).widths == [12, 24, 48, 48]
    assert (6, 12, 1, 1) in shapes
    assert (net.width, net.stride, net.min_size) == (12, 1, 8)
    large = unet(64, 4, 2)
    assert large.encoder.width == 512


def test_reference() -> None:
    """The whole network from the names of its tensors, for sides that no power of two divides."""
    net = unet().double().eval()
    state = net.state_dict()
    x = images(2, 3, 11, 13)

    def double(x: Tensor, at: str) -> Tensor:
        for i in (0, 1):
            x = (F.conv2d(x, state[f"{at}.{i}.0.weight"], padding=1) / (1 + 1e-5) ** 0.5).clamp(min=0)
        return x

    def halved(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-1.0)  # maps are not negative
        return F.max_pool2d(padded, 2)

    def doubled(x: Tensor, like: Tensor) -> Tensor:
        larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return larger[:, :, : like.shape[2], : like.shape[3]]

    first = double(x, "encoder.levels.0")
    second = double(halved(first), "encoder.levels.1")
    third = double(halved(second), "encoder.levels.2")
    assert [m.shape[2:] for m in (first, second, third)] == [(11, 13), (6, 7), (3, 4)]
    up = double(torch.cat([doubled(third, second), second], 1), "decoder.steps.0")
    up = double(torch.cat([doubled(up, first), first], 1), "decoder.steps.1")
    logits = F.conv2d(up, state["decoder.classifier.weight"], state["decoder.classifier.bias"])
    found = net(x)
    torch.testing.assert_close(found.features, up, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.logits, logits, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 8), (15, 17), (16, 23)])
def test_values_sizes(height: int, width: int) -> None:
    """Logits have the size of the image, and padding it by hand changes nothing near its upper left corner."""
    net = unet(levels=3, norm=None).double().eval()
    x = images(1, 3, height, width)
    assert net(x).logits.shape == (1, 3, height, width)
    assert [m.shape[2] for m in net.encoder.maps(x)] == [-(-height // 2**level) for level in range(4)]


def test_gradient() -> None:
    net = unet(levels=3)
    net(images(2, 3, 19, 16).float()).logits.square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.decoder.parameters())
    assert all(p.grad is not None for p in net.parameters())


def test_dtypes() -> None:
    found = unet().to(torch.bfloat16)(images(2, 3, 9, 9).to(torch.bfloat16))
    assert found.logits.dtype == torch.bfloat16
    assert bool(found.logits.isfinite().all())


def test_errors() -> None:
    with pytest.raises(InputError, match="7x9 pixels are too small"):
        unet(levels=3)(torch.zeros(2, 3, 7, 9))
    with pytest.raises(ValueError, match="of at least 1, got 4, 0"):
        UNetEncoder(4, 0)


def test_state() -> None:
    first, second = unet(seed=0), unet(seed=1)
    x = images(2, 3, 9, 10).float()
    first(x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(x).logits, first.eval()(x).logits)
