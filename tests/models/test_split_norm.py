"""Split batch norm against separate batch norms, one per group."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.models.norm import SplitBatchNorm, SyncBatchNorm, split, synchronised

SHAPES = [(8, 3), (8, 3, 5), (8, 3, 2, 3), (8, 3, 2, 2, 2)]
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


def filled(norm: nn.Module) -> nn.Module:
    norm.double()
    for seed, parameter in enumerate(norm.parameters()):
        parameter.data.copy_(values(tuple(parameter.shape), seed=seed + 10))
    return norm


def plain(shape: tuple[int, ...], **options) -> nn.Module:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    return filled(kind(shape[1], **options))


def objective(y: Tensor) -> Tensor:
    """A sum over rows with weights that differ from row to row, so that a wrong gradient cannot cancel."""
    weights = torch.arange(1.0, len(y) + 1, dtype=y.dtype).view(-1, *[1] * (y.ndim - 1))
    return (y.sigmoid() * weights).sum()


def separate(
    shape: tuple[int, ...], batches: list[Tensor], cuts: list[int], options: dict
) -> dict[str, Tensor]:
    """What one batch norm per group gives, as on ranks: gradients summed, running estimates averaged."""
    norms = [plain(shape, **options) for _ in cuts]
    record: dict[str, Tensor] = {}
    for step, batch in enumerate(batches):
        parts = [part.clone().requires_grad_() for part in batch.split(cuts)]
        y = torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)])
        objective(y).backward()
        grads = [part.grad for part in parts if part.grad is not None]
        record |= {f"y{step}": y.detach(), f"x.grad{step}": torch.cat(grads)}
    for name, _ in norms[0].named_parameters():
        grads = [dict(norm.named_parameters())[name].grad for norm in norms]
        record[f"{name}.grad"] = sum(grad for grad in grads if grad is not None)  # pyright: ignore[reportArgumentType]
    for name, buffer in norms[0].named_buffers():
        whole = torch.stack([dict(norm.named_buffers())[name].double() for norm in norms])
        record[f"buffer {name}"] = whole.mean(0).to(buffer.dtype)
    return record


def together(norm: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    record: dict[str, Tensor] = {}
    for step, batch in enumerate(batches):
        x = batch.clone().requires_grad_()
        y = norm(x)
        objective(y).backward()
        assert x.grad is not None
        record |= {f"y{step}": y.detach(), f"x.grad{step}": x.grad}
    record |= {f"{name}.grad": p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return record | {f"buffer {name}": b.clone() for name, b in norm.named_buffers()}


def compare(result: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            result[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_values() -> None:
    # Group 0: mean 2, variance 4, unbiased 8; group 1: mean 8, variance 1, unbiased 2.
    x = torch.tensor([[0.0], [4], [7], [9]], dtype=torch.float64)
    norm = SplitBatchNorm(1, groups=2, eps=5.0, momentum=0.25).double()
    norm.weight.data.fill_(3.0)
    norm.bias.data.fill_(1.0)
    near = 3 / 6**0.5
    expected = torch.tensor([[-1.0], [3], [1 - near], [1 + near]], dtype=torch.float64)
    torch.testing.assert_close(norm(x), expected, rtol=1e-10, atol=1e-12)
    assert float(norm.running_mean) == pytest.approx(1.25, rel=1e-10)
    assert float(norm.running_var) == pytest.approx(0.75 + 0.25 * 5, rel=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference(shape: tuple[int, ...], options: dict) -> None:
    batches = [values(shape, seed=seed) for seed in (1, 2)]
    for groups in (1, 2, 4):
        norm = filled(SplitBatchNorm(shape[1], groups, **options))
        compare(together(norm, batches), separate(shape, batches, [8 // groups] * groups, options))


@pytest.mark.parametrize(
    ("rows", "groups", "cuts"),
    [(7, 3, [3, 2, 2]), (5, 2, [3, 2]), (3, 8, [1, 1, 1]), (1, 4, [1]), (9, 8, [2] + [1] * 7)],
)
def test_reference_uneven(rows: int, groups: int, cuts: list[int]) -> None:
    shape = (rows, 3, 2, 3)
    batches = [values(shape, seed=seed) for seed in (1, 2)]
    compare(together(filled(SplitBatchNorm(3, groups)), batches), separate(shape, batches, cuts, {}))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_evaluation(shape: tuple[int, ...], options: dict) -> None:
    """Outside training it is torch's batch norm, for one sample too."""
    norm, theirs = filled(SplitBatchNorm(3, 4, **options)), plain(shape, **options)
    norm(values(shape))
    theirs.load_state_dict(norm.state_dict())
    x = values(shape, seed=3)
    torch.testing.assert_close(norm.eval()(x), theirs.eval()(x), rtol=1e-12, atol=0)
    if norm.running_mean is not None:
        torch.testing.assert_close(norm(x[:1]), theirs(x[:1]), rtol=1e-12, atol=0)


def test_gradient() -> None:
    norm = filled(SplitBatchNorm(2, 2, track_running_stats=False))
    assert torch.autograd.gradcheck(norm, values((5, 2, 2), seed=1).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("affine", [True, False])
def test_dtypes(dtype: torch.dtype, affine: bool) -> None:
    x = (values((64, 3)) * 60).to(dtype)
    norm = SplitBatchNorm(3, 2, momentum=1.0, affine=affine)
    y = norm(x)
    assert y.dtype == dtype
    groups = x.float().unflatten(0, (2, 32))
    torch.testing.assert_close(norm.running_var, groups.var(1).mean(0))
    exact = groups.double()
    exact = ((exact - exact.mean(1, keepdim=True)) / exact.std(1, correction=0, keepdim=True)).flatten(0, 1)
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps * 2, atol=1e-4)


def test_degenerate() -> None:
    """Groups of equal samples give the bias, whatever lies between the groups."""
    norm = filled(SplitBatchNorm(2, 2))
    y = norm(torch.tensor([[1.0, 2], [1, 2], [5, -3], [5, -3]]).double())
    torch.testing.assert_close(y, norm.bias.expand(4, 2), rtol=1e-10, atol=0)


def test_errors() -> None:
    for groups in (0, -1):
        with pytest.raises(ValueError, match=f"at least one group, got {groups}"):
            SplitBatchNorm(3, groups)
        with pytest.raises(ValueError, match=f"at least one group, got {groups}"):
            split(nn.Linear(2, 2), groups)
    for shape in [(2, 4), (3,), (2, 3, 1, 1, 1, 1)]:
        with pytest.raises(ValueError, match=r"expected \(N, 3, ...\) with 2 to 5 axes, got"):
            SplitBatchNorm(3, 1)(torch.ones(shape))
    for rows, groups in ((5, 3), (4, 4), (2, 8), (0, 2), (1, 1)):
        with pytest.raises(ValueError, match=f"got a batch of {rows} in {groups} groups"):
            SplitBatchNorm(3, groups)(torch.ones(rows, 3))
    # One sample per group is enough where it has several positions.
    assert SplitBatchNorm(3, 4)(torch.ones(4, 3, 2)).shape == (4, 3, 2)


def test_errors_foreign_class() -> None:
    class Activated(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="cannot split batch norms of other classes: 1: Activated"):
        split(nn.Sequential(nn.BatchNorm2d(3), Activated(3)), 2)
    with pytest.raises(ValueError, match="SyncBatchNorm"):
        split(SyncBatchNorm(3), 2)
    with pytest.raises(ValueError, match="SplitBatchNorm"):
        synchronised(SplitBatchNorm(3, 2))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_state(options: dict) -> None:
    """The state interchanges with torch's; a copy goes on bit for bit."""
    first, second = filled(SplitBatchNorm(3, 2, **options)), SplitBatchNorm(3, 2, **options).double()
    first(values((6, 3)))
    assert first.state_dict().keys() == plain((6, 3), **options).state_dict().keys()
    second.load_state_dict(first.state_dict())
    third = pickle.loads(pickle.dumps(first))
    x = values((6, 3), seed=4)
    y = first(x)
    for other in (second, third):
        assert torch.equal(other(x), y)
        for name, buffer in other.named_buffers():
            assert torch.equal(buffer, first.get_buffer(name))


def test_state_split() -> None:
    shared = nn.BatchNorm1d(3)
    inner = nn.Sequential(nn.BatchNorm2d(2, eps=0.5, momentum=None, affine=False), shared)
    net = nn.Sequential(inner, shared, nn.Linear(3, 3), nn.BatchNorm3d(4, track_running_stats=False).eval())
    before = {name: id(value) for name, value in net.state_dict(keep_vars=True).items()}
    assert split(net, 4) is net
    assert {name: id(value) for name, value in net.state_dict(keep_vars=True).items()} == before
    first, second, last = inner[0], inner[1], net[3]
    assert isinstance(first, SplitBatchNorm)
    assert (first.groups, first.eps, first.momentum, first.affine, first.training) == (
        4,
        0.5,
        None,
        False,
        True,
    )
    assert isinstance(second, SplitBatchNorm)
    assert second is net[1]
    assert isinstance(last, SplitBatchNorm)
    assert not last.training
    assert last.running_mean is None
    split(net, 2)
    assert net[1] is second
    assert second.groups == 2
    assert isinstance(split(nn.BatchNorm1d(3), 2), SplitBatchNorm)


def on_rank(options: dict) -> dict[str, Tensor]:
    """A plain batch norm on this rank's half of the batch."""
    batches = [values((8, 3), seed=seed)[4 * dist.rank() : 4 * dist.rank() + 4] for seed in (1, 2)]
    norm, record = plain((8, 3), **options), {}
    for step, batch in enumerate(batches):
        record[f"y{step}"] = norm(batch).detach()
    return record | {f"buffer {name}": b.clone() for name, b in norm.named_buffers()}


def split_on_rank() -> tuple[Tensor, Tensor]:
    norm = SplitBatchNorm(3, 2)
    x = values((8, 3), seed=dist.rank(), dtype=torch.float32)
    return norm(x).detach(), norm.running_mean


def test_ranks(pool) -> None:
    """R groups on one process are R ranks with a plain batch norm."""
    for options in OPTIONS:
        results = pool.run(on_rank, options)
        norm = filled(SplitBatchNorm(3, 2, **options))
        for step, seed in enumerate((1, 2)):
            y = norm(values((8, 3), seed=seed))
            joined = torch.cat([result[f"y{step}"] for result in results])
            torch.testing.assert_close(y, joined, rtol=1e-12, atol=1e-12)
        for name, buffer in norm.named_buffers():
            mean = torch.stack([result[f"buffer {name}"].double() for result in results]).mean(0)
            torch.testing.assert_close(buffer.double(), mean, rtol=1e-12, atol=0)


def test_ranks_own_groups(pool) -> None:
    """Groups belong to a rank: nothing is gathered."""
    for rank, (y, mean) in enumerate(pool.run(split_on_rank)):
        norm = SplitBatchNorm(3, 2)
        x = values((8, 3), seed=rank, dtype=torch.float32)
        torch.testing.assert_close(y, norm(x).detach())
        torch.testing.assert_close(mean, norm.running_mean)
