"""Synchronised batch norm against torch's, alone and with two processes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.models.norm import SyncBatchNorm, batch_norm, synchronised

SHAPES = [(6, 3), (4, 3, 5), (4, 3, 2, 3), (3, 3, 2, 2, 2)]
OPTIONS = [
    {},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"momentum": 0.0, "eps": 0.1},
]


def values(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (numbers * 2 + 5).to(dtype)


def plain(shape: tuple[int, ...], **options) -> nn.Module:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    return filled(kind(shape[1], **options))


def filled(norm: nn.Module) -> nn.Module:
    norm.double()
    for seed, parameter in enumerate(norm.parameters()):
        parameter.data.copy_(values(tuple(parameter.shape), seed=seed + 10))
    return norm


def objective(y: Tensor, share: slice, total: int) -> Tensor:
    """A sum over rows with weights that differ from row to row, so that a wrong gradient cannot cancel."""
    weights = torch.arange(1.0, total + 1, dtype=y.dtype)[share].view(-1, *[1] * (y.ndim - 1))
    return (y.sigmoid() * weights).sum()


def trained(norm: nn.Module, batches: list[Tensor], sizes: list[int] | None = None) -> dict[str, Tensor]:
    """Two training steps and one evaluation; with sizes, this rank's rows and its share of the mean."""
    start = sum(sizes[: dist.rank()]) if sizes else 0
    record: dict[str, Tensor] = {}
    for step, batch in enumerate(batches):
        share = slice(start, start + sizes[dist.rank()]) if sizes else slice(None)
        x = batch[share].clone().requires_grad_()
        y = norm.train()(x)
        dist.global_mean(objective(y, share, len(batch)), len(x)).backward()
        assert x.grad is not None
        record |= {f"y{step}": y.detach(), f"x.grad{step}": x.grad}
        with torch.no_grad():
            record[f"eval{step}"] = norm.eval()(batch)
    record |= {f"{name}.grad": p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return record | {f"buffer {name}": b.clone() for name, b in norm.named_buffers()}


def on_rank(shape: tuple[int, ...], sizes: list[int], options: dict) -> dict[str, Tensor]:
    batches = [values((sum(sizes), *shape[1:]), seed=seed) for seed in (1, 2)]
    return trained(filled(SyncBatchNorm(shape[1], **options)), batches, sizes)


def too_few(sizes: list[int]) -> str:
    with pytest.raises(ValueError, match="more than 1 value per channel over all ranks") as caught:
        SyncBatchNorm(3)(torch.ones(sizes[dist.rank()], 3))
    return str(caught.value)


def half_on_rank(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    norm = SyncBatchNorm(3)
    x = values((4, 3), seed=dist.rank(), dtype=dtype)
    return norm(x), norm.running_var


def compare(result: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            result[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_values() -> None:
    # Channel 0: mean 3, variance 5, unbiased 20/3; channel 1 is constant.
    x = torch.tensor([[0.0, 7], [2, 7], [4, 7], [6, 7]], dtype=torch.float64)
    mean, var = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    weight, bias = torch.tensor([[3.0, 1.0], [0.5, 2.0]], dtype=torch.float64)
    y = batch_norm(x, weight, bias, mean, var, momentum=0.25, eps=4.0)
    expected = torch.tensor([[-2.5, 2], [-0.5, 2], [1.5, 2], [3.5, 2]], dtype=torch.float64)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mean, torch.tensor([0.75, 1.75], dtype=torch.float64), rtol=1e-10, atol=0)
    torch.testing.assert_close(var, torch.tensor([29 / 12, 0.75], dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference(shape: tuple[int, ...], options: dict) -> None:
    batches = [values(shape, seed=seed) for seed in (1, 2)]
    expected = trained(plain(shape, **options), batches)
    compare(trained(filled(SyncBatchNorm(shape[1], **options)), batches), expected, 1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_function(shape: tuple[int, ...]) -> None:
    """The form that several processes use, on one."""
    results = []
    for function in (batch_norm, F.batch_norm):
        x, weight, bias = (values(s, seed=i).requires_grad_() for i, s in enumerate([shape, (3,), (3,)]))
        mean, var = values((3,), 3), values((3,), 4)
        named = {"running_mean": mean, "running_var": var, "weight": weight, "bias": bias, "momentum": 0.3}
        y = function(x, **named, **({"training": True} if function is F.batch_norm else {}))
        gradients = torch.autograd.grad(objective(y, slice(None), len(x)), (x, weight, bias))
        results.append(dict(enumerate([y, mean, var, *gradients])))
    compare(results[0], results[1], 1e-12)


def test_gradient() -> None:
    x, weight, bias = (values(s, seed=i).requires_grad_() for i, s in enumerate([(3, 2, 2), (2,), (2,)]))
    assert torch.autograd.gradcheck(batch_norm, (x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    # Around 300 the square of a float16 overflows, and bfloat16 numbers are 2 apart.
    x = (values((64, 3)) * 60).to(dtype)
    mean, var = torch.zeros(3), torch.zeros(3)
    y = batch_norm(x, torch.ones(3), torch.zeros(3), mean, var, momentum=1.0)
    assert y.dtype == dtype
    torch.testing.assert_close(var, x.float().var(0))
    torch.testing.assert_close(mean, x.float().mean(0))
    exact = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps * 2, atol=1e-5)


def test_errors() -> None:
    for shape in [(2, 4), (3,), (2, 3, 1, 1, 1, 1)]:
        with pytest.raises(ValueError, match=r"expected \(N, 3, ...\) with 2 to 5 axes, got"):
            SyncBatchNorm(3)(torch.ones(shape))
    for rows in (0, 1):
        with pytest.raises(ValueError, match=f"more than 1 value per channel over all ranks, got {rows}"):
            SyncBatchNorm(3)(torch.ones(rows, 3))
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            batch_norm(torch.ones(rows, 3))
        assert SyncBatchNorm(3).eval()(torch.ones(rows, 3)).shape == (rows, 3)


def test_errors_foreign_class() -> None:
    class Activated(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="1: Activated"):
        synchronised(nn.Sequential(nn.BatchNorm2d(3), Activated(3)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_state(options: dict) -> None:
    """The state interchanges with torch's in both directions."""
    shape = (6, 3)
    theirs, ours = plain(shape, **options), SyncBatchNorm(3, **options).double()
    trained(theirs, [values(shape)])
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(values(shape, 7)), theirs.train()(values(shape, 7)), rtol=1e-12, atol=0)
    theirs.load_state_dict(ours.state_dict())


def test_state_synchronised() -> None:
    shared = nn.BatchNorm1d(3)
    inner = nn.Sequential(nn.BatchNorm2d(2, eps=0.5, momentum=None, affine=False), shared)
    net = nn.Sequential(inner, shared, nn.Linear(3, 3), nn.BatchNorm3d(4, track_running_stats=False).eval())
    before = {name: id(value) for name, value in net.state_dict(keep_vars=True).items()}
    assert synchronised(net) is net
    assert {name: id(value) for name, value in net.state_dict(keep_vars=True).items()} == before
    first, second, last = inner[0], inner[1], net[3]
    assert isinstance(first, SyncBatchNorm)
    assert (first.eps, first.momentum, first.affine, first.training) == (0.5, None, False, True)
    assert isinstance(second, SyncBatchNorm)
    assert second is net[1]
    assert isinstance(last, SyncBatchNorm)
    assert not last.training
    assert last.running_mean is None
    assert isinstance(synchronised(nn.BatchNorm1d(3)), SyncBatchNorm)
    assert synchronised(last) is last


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("sizes", [[3, 3], [1, 4], [0, 5]], ids=str)
def test_ranks(pool, sizes: list[int], options: dict) -> None:
    """Two ranks give the values, gradients and buffers of one rank with all rows."""
    for shape in SHAPES if sizes == [3, 3] else SHAPES[:1]:
        batches = [values((sum(sizes), *shape[1:]), seed=seed) for seed in (1, 2)]
        expected = trained(plain(shape, **options), batches)
        results = pool.run(on_rank, shape, sizes, options)
        for result in results:
            for name in result:
                if name.startswith(("eval", "buffer")):
                    torch.testing.assert_close(result[name], expected[name], rtol=1e-10, atol=1e-10)
        joined = dict(expected)
        for name in expected:
            first, second = results[0][name], results[1][name]
            if name.startswith("y"):
                joined[name] = torch.cat([first, second])
            elif name.startswith("x.grad"):
                joined[name] = torch.cat([first, second]) / 2
            elif name.endswith(".grad"):
                joined[name] = (first + second) / 2
        compare(joined, expected, 1e-10)


def test_ranks_dtypes(pool) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        both = torch.cat([values((4, 3), seed=r, dtype=dtype) for r in (0, 1)]).float()
        for y, running in pool.run(half_on_rank, dtype):
            assert y.dtype == dtype
            torch.testing.assert_close(running, 0.9 + 0.1 * both.var(0))


def test_ranks_errors(pool) -> None:
    assert "got 1 (this rank's input is (0, 3))" in pool.run(too_few, [1, 0])[1]
    assert "got 0" in pool.run(too_few, [0, 0])[0]
