"""The small convolutional network: sizes, a forward pass written out, errors."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlabel.errors import InputError
from leanlabel.models.small_cnn import SmallCNN


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def small(**options) -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN((4, 6), **options).double()


def test_values() -> None:
    net = SmallCNN()
    assert sum(p.numel() for p in net.parameters()) == 93_472
    assert (net.width, net.min_size) == (128, 8)
    x = images(2, 3, 32, 32).float()
    assert [tuple(m.shape) for m in net.maps(x)] == [(2, 32, 16, 16), (2, 64, 8, 8), (2, 128, 4, 4)]
    finer = SmallCNN(first_stride=1)
    assert [tuple(m.shape) for m in finer.maps(x)] == [(2, 32, 32, 32), (2, 64, 16, 16), (2, 128, 8, 8)]
    assert finer.min_size == 4


def test_reference() -> None:
    """A plain loop over the tensors, in training mode, with the statistics of the batch."""
    net, x = small(), images(3, 3, 13, 10)
    result, maps = x, net.maps(x)
    for k, (convolution, norm, _) in enumerate(net.stages):
        assert convolution.bias is None
        result = F.conv2d(result, convolution.weight, stride=2, padding=1)
        mean = result.mean((0, 2, 3), keepdim=True)
        var = result.var((0, 2, 3), keepdim=True, correction=0)
        result = ((result - mean) / (var + norm.eps).sqrt()).clamp(min=0)
        torch.testing.assert_close(maps[k], result, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net(x), result.mean((2, 3)), rtol=1e-10, atol=1e-12)


def test_gradient() -> None:
    net, x = small(norm=None), images(1, 3, 4, 5)
    assert torch.autograd.gradcheck(net, x.requires_grad_())


def test_degenerate() -> None:
    net = small().eval()
    assert net(images(0, 3, 4, 4)).shape == (0, 6)
    assert net(images(2, 3, 4, 7)).shape == (2, 6)
    assert small(channels=1).eval()(images(2, 1, 9, 9)).shape == (2, 6)
    assert all(
        isinstance(stage[1], nn.Identity) and stage[0].bias is not None for stage in small(norm=None).stages
    )


def test_errors() -> None:
    with pytest.raises(InputError, match="3x9 pixels are too small for a network that shrinks them by 4"):
        small()(images(2, 3, 3, 9))
    for widths in ((), (4, 0)):
        with pytest.raises(ValueError, match="widths of at least one channel"):
            SmallCNN(widths)


def test_state() -> None:
    first, x = small(), images(4, 3, 8, 8)
    first(x)
    torch.manual_seed(9)
    second = SmallCNN((4, 6)).double()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(x), first.eval()(x))
    assert torch.equal(pickle.loads(pickle.dumps(first))(x), first(x))
    assert torch.equal(first(x), first(x))
