"""The network that tells domains apart: its layers, its sizes, its error."""

from __future__ import annotations

import doctest

import pytest
import torch
import torch.nn.functional as F

from leanlabel.errors import InputError
from leanlabel.models import discriminator
from leanlabel.models.discriminator import Discriminator


def test_values() -> None:
    """The layers of the published one for 19 classes: 2,781,121 weights."""
    net = Discriminator(19)
    shapes = [tuple(value.shape) for name, value in net.named_parameters() if name.endswith("weight")]
    assert shapes == [(64, 19, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)]
    biases = 64 + 128 + 256 + 512 + 1
    weights = 16 * (19 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert sum(value.numel() for value in net.parameters()) == weights + biases == 2_781_121
    assert net.min_size == 32


def test_reference() -> None:
    """Layer by layer; sizes are halved and rounded down."""
    torch.manual_seed(0)
    net = Discriminator(3, width=4, layers=3).double()
    maps = torch.randn(2, 3, 21, 40, dtype=torch.float64)
    values = list(net.parameters())
    x = maps
    for place in range(0, 6, 2):
        x = F.conv2d(x, values[place], values[place + 1], stride=2, padding=1)
        x = x.where(x > 0, 0.2 * x) if place < 4 else x
    assert x.shape == (2, 1, 2, 5)
    torch.testing.assert_close(net(maps), x, rtol=1e-12, atol=1e-14)


def test_gradient() -> None:
    """Through to the maps, right by finite differences; one image does not see the other."""
    torch.manual_seed(0)
    net = Discriminator(2, width=2, layers=2).double()
    maps = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (maps,))
    (found,) = torch.autograd.grad(net(maps)[0].sum(), maps)
    assert bool((found[0] != 0).any())
    assert bool((found[1] == 0).all())


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_degenerate(layers: int) -> None:
    """The smallest map gives one score."""
    net = Discriminator(3, width=2, layers=layers)
    side = net.min_size
    assert net(torch.zeros(1, 3, side, 2 * side)).shape == (1, 1, 1, 2)
    assert net(torch.zeros(0, 3, side, side)).shape == (0, 1, 1, 1)


def test_errors() -> None:
    with pytest.raises(InputError, match=r"31x40 .* 32\. Use larger crops or images, or .* fewer layers"):
        Discriminator(3, width=2)(torch.zeros(1, 3, 31, 40))
    for wrong in ({"inputs": 0}, {"width": 0}, {"layers": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Discriminator(**{"inputs": 3, **wrong})


def test_doctests() -> None:
    assert doctest.testmod(discriminator).failed == 0
