"""Projectors: which layers each published head has, values, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanlabel.models.heads import projector
from leanlabel.models.norm import SplitBatchNorm, split

# Layers as letters: L linear with bias, l without; B batch norm, b without weight; R ReLU.
HEADS = {
    "moco-v1": ({"layers": 1}, "L"),
    "moco-v2": ({}, "LRL"),
    "simclr": ({"norm": "batch", "last_norm": True}, "lBRlB"),
    "byol": ({"norm": "batch", "last_bias": False}, "lBRl"),
    "simsiam": ({"layers": 3, "norm": "batch", "last_norm": True, "last_affine": False}, "lBRlBRlb"),
    "simsiam predictor": ({"norm": "batch"}, "lBRL"),
    "vicreg": ({"layers": 3, "norm": "batch", "last_bias": False}, "lBRlBRl"),
}


def letters(head: nn.Module) -> str:
    found = ""
    for part in head.children():
        if isinstance(part, nn.Linear):
            found += "l" if part.bias is None else "L"
        elif isinstance(part, nn.BatchNorm1d):
            found += "B" if part.affine else "b"
        else:
            assert isinstance(part, nn.ReLU)
            found += "R"
    return found


@pytest.mark.parametrize("name", HEADS)
def test_values(name: str) -> None:
    options, expected = HEADS[name]
    head = projector(6, 5, 4, **options)
    assert letters(head) == expected
    widths = [(part.in_features, part.out_features) for part in head if isinstance(part, nn.Linear)]
    assert widths == {1: [(6, 4)], 2: [(6, 5), (5, 4)], 3: [(6, 5), (5, 5), (5, 4)]}[len(widths)]
    assert head(torch.randn(8, 6)).shape == (8, 4)


def test_values_size() -> None:
    """MoCo-v2 at paper scale: 2048 x 2048 + 2048 + 2048 x 128 + 128."""
    head = projector(2048, 2048, 128)
    assert sum(p.numel() for p in head.parameters()) == 4_458_624


def test_reference() -> None:
    torch.manual_seed(0)
    head = projector(6, 5, 4, layers=3, norm="batch", last_norm=True, last_affine=False).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    y = x
    for position in (0, 3, 6):
        y = y @ head[position].weight.T
        y = (y - y.mean(0)) / (y.var(0, correction=0) + 1e-5).sqrt()
        y = y if position == 6 else F.relu(y)
    torch.testing.assert_close(head(x), y, rtol=1e-10, atol=1e-12)


def test_gradient() -> None:
    torch.manual_seed(0)
    head = projector(3, 4, 2).double()
    assert torch.autograd.gradcheck(head, torch.randn(5, 3, dtype=torch.float64, requires_grad=True))


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least one layer, got 0"):
        projector(2, 2, 2, layers=0)
    with pytest.raises(ValueError, match="widths must be at least 1, got 2, 0, 2"):
        projector(2, 0, 2)
    with pytest.raises(ValueError, match="norm must be none or batch, got 'layer'"):
        projector(2, 2, 2, norm="layer")  # pyright: ignore[reportArgumentType]


def test_state() -> None:
    torch.manual_seed(0)
    first, second = projector(3, 4, 2, norm="batch"), projector(3, 4, 2, norm="batch")
    x = torch.randn(6, 3)
    first(x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(x), first.eval()(x))
    assert isinstance(split(first, 2)[1], SplitBatchNorm)
