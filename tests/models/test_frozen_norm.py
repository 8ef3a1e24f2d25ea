"""Frozen batch norms: values, that nothing moves, names of tensors, and what is converted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from leanlabel.models.backbones import has_batch_statistics
from leanlabel.models.frozen_norm import FrozenBatchNorm, freeze_norm
from leanlabel.models.norm import SplitBatchNorm, SyncBatchNorm


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def used(norm: nn.Module) -> nn.Module:
    """A batch norm with estimates and affine values that are not the identity."""
    norm.double()
    for seed, name in enumerate(("weight", "bias", "running_mean", "running_var")):
        tensor = getattr(norm, name, None)
        if isinstance(tensor, Tensor):
            tensor.data.copy_(values(len(tensor), seed=seed).abs() + 0.5)
    return norm


def test_values() -> None:
    frozen = FrozenBatchNorm(1, eps=0.0).double()
    for name, value in (("weight", 3.0), ("bias", 1.0), ("running_mean", 2.0), ("running_var", 4.0)):
        getattr(frozen, name).fill_(value)
    x = torch.tensor([[[0.0, 2.0, 6.0]]], dtype=torch.float64)
    expected = torch.tensor([[[-2.0, 1.0, 7.0]]], dtype=torch.float64)
    torch.testing.assert_close(frozen(x), expected, rtol=1e-10, atol=0)
    frozen.eps = 5.0
    expected = torch.tensor([[[-1.0, 1.0, 5.0]]], dtype=torch.float64)
    torch.testing.assert_close(frozen(x), expected, rtol=1e-10, atol=0)
    assert list(FrozenBatchNorm(2).parameters()) == []
    assert FrozenBatchNorm(2).state_dict().keys() == nn.BatchNorm2d(2).state_dict().keys()


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, SyncBatchNorm, SplitBatchNorm])
@pytest.mark.parametrize("eps", [True, False])
def test_reference(kind, eps: bool) -> None:
    norm = used(kind(3, 2) if kind is SplitBatchNorm else kind(3, eps=0.1)).eval()
    x = values(4, 3, 5, 6, seed=9)
    frozen = freeze_norm(norm, eps=eps)
    root = (norm.running_var + (norm.eps if eps else 0.0)).sqrt()
    weight, bias, mean, root = (t[:, None, None] for t in (norm.weight, norm.bias, norm.running_mean, root))
    torch.testing.assert_close(frozen(x), (x - mean) / root * weight + bias, rtol=1e-10, atol=1e-12)
    if eps:
        torch.testing.assert_close(frozen(x), norm(x), rtol=1e-10, atol=1e-12)


def test_gradient() -> None:
    frozen = freeze_norm(used(nn.BatchNorm2d(2)), eps=False)
    x = values(2, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(frozen, x)
    y = frozen(x)
    assert torch.autograd.grad(y.sum(), x)[0].std() > 0.01  # a factor per channel


def test_dtypes() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        frozen = FrozenBatchNorm(3, eps=0.0).to(dtype)
        y = frozen(values(2, 3, 4, 4, dtype=dtype))
        assert y.dtype == dtype
        assert bool(y.isfinite().all())
    with torch.autocast("cpu", torch.bfloat16):
        assert FrozenBatchNorm(3)(values(2, 3, 4, 4, dtype=torch.bfloat16)).isfinite().all()


def test_degenerate() -> None:
    """One value per channel, no image, and a channel that never varied."""
    frozen = FrozenBatchNorm(2, eps=0.0).double().train()
    frozen.running_var[0] = 0.0
    frozen.bias[0] = 7.0
    x = torch.full((1, 2, 1, 1), 3.0, dtype=torch.float64, requires_grad=True)
    y = frozen(x)
    assert y.flatten().tolist() == [7.0, 3.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.0, 1.0]
    assert frozen(torch.zeros(0, 2, 3, 3, dtype=torch.float64)).shape == (0, 2, 3, 3)


def test_values_module() -> None:
    """Every batch norm of a module once, shared ones stay shared; other norms stay."""
    shared = nn.BatchNorm1d(2)
    plain = nn.BatchNorm2d(2, affine=False)
    net = nn.Sequential(shared, nn.Sequential(plain, SplitBatchNorm(2, 2)), shared, nn.GroupNorm(1, 2))
    assert freeze_norm(net) is net
    kinds = [type(part).__name__ for part in net.modules() if not isinstance(part, nn.Sequential)]
    assert kinds == ["FrozenBatchNorm", "FrozenBatchNorm", "FrozenBatchNorm", "GroupNorm"]
    assert net[0] is net[2]
    assert [name for name, _ in net.named_parameters()] == ["3.weight", "3.bias"]
    assert not has_batch_statistics(net)


def test_errors() -> None:
    with pytest.raises(ValueError, match="3 channels keeps no running estimates"):
        freeze_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
    with pytest.raises(ValueError, match=r"eps must be at least 0, got -1\.0"):
        FrozenBatchNorm(2, eps=-1.0)


def test_state() -> None:
    """Training changes nothing; weights go over to a batch norm and back."""
    norm = used(nn.BatchNorm2d(3))
    norm(values(4, 3, 2, 2).double())
    frozen = freeze_norm(nn.Sequential(norm)).train()
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    for _ in range(2):
        frozen(values(4, 3, 2, 2, seed=5))
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(tensor, before[name])
    again = nn.Sequential(nn.BatchNorm2d(3)).double()
    again.load_state_dict(frozen.state_dict())
    other = nn.Sequential(FrozenBatchNorm(3)).double()
    other.load_state_dict(again.state_dict())
    x = values(2, 3, 2, 2, seed=6)
    assert torch.equal(other(x), frozen(x))
    torch.testing.assert_close(again.eval()(x), frozen(x))
    assert int(other[0].num_batches_tracked) == 1
