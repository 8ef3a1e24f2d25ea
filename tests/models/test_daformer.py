"""DAFormer's decoder written out, its sizes, its degenerate cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlabel.models.daformer import DAFormerDecoder
from leanlabel.models.decoders import Level

LEVELS = [Level(6, 4), Level(5, 8), Level(8, 16)]
SIZES = ((9, 12), (5, 6), (3, 3))


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(batch: int = 2) -> list[Tensor]:
    return [values(batch, level.width, *size, seed=i) for i, (level, size) in enumerate(zip(LEVELS, SIZES))]


def built(**options: Any) -> DAFormerDecoder:
    torch.manual_seed(0)
    return DAFormerDecoder(LEVELS, 4, **{"width": 7, "dilations": (1, 2, 3), **options})


def lively(decoder: DAFormerDecoder) -> DAFormerDecoder:
    """Evaluation mode in double precision, with estimates and weights of batch norms that are not the identity."""
    for part in decoder.double().modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (part.bias, part.running_mean):
                tensor.data.uniform_(-0.2, 0.2)
    return decoder.eval()


def test_values() -> None:
    """Published sizes: four maps of MiT-B5 to 256 channels, one branch per dilation, 3.7 million weights."""
    with torch.device("meta"):
        decoder = DAFormerDecoder([Level(w, 4 * 2**i) for i, w in enumerate((64, 128, 320, 512))], 19)
    assert (decoder.width, decoder.stride) == (256, 4)
    dilations = [
        part.dilation[0]
        for part in decoder.modules()
        if isinstance(part, nn.Conv2d) and part.groups == 1024 and part.kernel_size == (3, 3)
    ]
    assert dilations == [6, 12, 18]
    projections = (64 + 128 + 320 + 512) * 256 + 4 * 256
    first = 1024 * 256 + 2 * 256
    others = 3 * (1024 * 9 + 2 * 1024 + 1024 * 256 + 2 * 256)
    last = 4 * 256 * 256 * 9 + 2 * 256
    expected = projections + first + others + last + 256 * 19 + 19
    assert sum(p.numel() for p in decoder.parameters()) == expected == 3_712_275
    assert isinstance(decoder.dropout, nn.Dropout2d)
    assert decoder.dropout.p == 0.1
    assert built(norm=None, depthwise=False).branches[1][0].groups == 1


@pytest.mark.parametrize("depthwise", [True, False])
def test_reference(depthwise: bool) -> None:
    decoder = lively(built(depthwise=depthwise))
    state = decoder.state_dict()

    def step(x: Tensor, at: str, dilation: int = 1) -> Tensor:
        weight = state[f"{at}.0.weight"]
        padding, groups = dilation * (weight.shape[2] // 2), x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, None, 1, padding, dilation, groups)
        mean, variance, scale, shift = (
            state[f"{at}.1.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)

    parts = []
    for i, one in enumerate(maps()):
        weight, bias = (state[f"projections.{i}.{name}"] for name in ("weight", "bias"))
        linear = torch.einsum("kc,bchw->bkhw", weight[:, :, 0, 0], one) + bias[:, None, None]
        parts.append(F.interpolate(linear, SIZES[0], mode="bilinear", align_corners=False))
    mixed = torch.cat(parts, 1)
    branches = [step(mixed, "branches.0")]
    for i, dilation in ((1, 2), (2, 3)):
        if depthwise:
            branches.append(step(step(mixed, f"branches.{i}.0", dilation=dilation), f"branches.{i}.1"))
        else:
            branches.append(step(mixed, f"branches.{i}", dilation=dilation))
    expected = step(torch.cat(branches, 1), "bottleneck")
    features = decoder.fuse(maps())
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    logits = F.conv2d(expected, state["classifier.weight"], state["classifier.bias"])
    torch.testing.assert_close(decoder.classify(features), logits, rtol=1e-10, atol=1e-12)


def test_gradient() -> None:
    decoder = lively(built(dilations=(1, 2), width=3))
    small = [one[:1, :, :3, :3].clone().requires_grad_() for one in maps()]
    # Away from the kinks of ReLU, which differences of values would straddle.
    assert torch.autograd.gradcheck(lambda *given: decoder.classify(decoder.fuse(given)), small, atol=1e-4)
    assert all(p.grad is None for p in decoder.parameters())
    decoder.classify(decoder.fuse(maps())).square().sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


def test_dtypes() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        decoder = built().to(dtype)
        found = decoder.classify(decoder.fuse([one.to(dtype) for one in maps()]))
        assert found.dtype == dtype
        assert bool(found.isfinite().all())


def test_degenerate() -> None:
    """One map, one dilation, dilations beyond the map, one position."""
    one = DAFormerDecoder([Level(6, 4)], 1, width=2, dilations=(18,)).double().eval()
    assert one.classify(one.fuse([values(1, 6, 1, 1)])).shape == (1, 1, 1, 1)
    dropped = built(dropout=0.5).train()
    features = torch.ones(64, 7, 1, 1)
    torch.manual_seed(1)
    assert not torch.equal(dropped.classify(features), dropped.eval().classify(features))


@pytest.mark.parametrize("dilations", [(), (1, 0)])
def test_errors(dilations: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="dilations must be at least one number of at least 1"):
        built(dilations=dilations)


def test_state() -> None:
    first, second = lively(built()), built(width=7).double().eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.fuse(maps()), second.fuse(maps()))
