"""Gathering, sums and means, alone and with two processes, and the pool that the suite runs them in."""

from __future__ import annotations

import os
import time

import pytest
import torch
from torch import Tensor

from leanlabel import dist
from pool import RemoteError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def table(rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    numbers = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers > 0 if dtype == torch.bool else (numbers * 10).abs().to(dtype)


def identity() -> tuple[int, int, bool, slice]:
    dist.barrier()
    return dist.rank(), dist.world(), dist.is_main(), dist.shard(5)


def gathered(sizes: list[int], dtype: torch.dtype) -> Tensor:
    start = sum(sizes[: dist.rank()])
    return dist.all_rows(table(sum(sizes), dtype=dtype)[start : start + sizes[dist.rank()]])


def gathered_shapes() -> list[tuple[int, ...]]:
    r = dist.rank()
    shapes = [(2 + r,), (r, 2, 2), (0, 4), (3, 0)]
    strided = dist.all_rows(torch.arange(12.0).view(3, 4).t()[:, : 2 + 0 * r])
    assert torch.equal(strided[4:], strided[:4])
    return [tuple(dist.all_rows(torch.ones(shape)).shape) for shape in shapes]


def loss_of_rows(mine: Tensor, everyone: Tensor, power: float) -> Tensor:
    """A local sum in which every row meets every row, as in a contrastive loss."""
    return (mine @ everyone.mT).sigmoid().pow(power).sum()


def gathered_gradient(sizes: list[int]) -> tuple[Tensor, Tensor]:
    r = dist.rank()
    start = sum(sizes[:r])
    mine = table(sum(sizes))[start : start + sizes[r]].requires_grad_()
    total = loss_of_rows(mine, dist.all_rows(mine), 2.0)
    loss = dist.global_mean(total, len(mine))
    return loss.detach(), torch.autograd.grad(loss, mine)[0]


def gradient_on_one_rank() -> Tensor | None:
    mine = table(2, seed=dist.rank()).requires_grad_(dist.rank() == 1)
    dist.all_rows(mine).pow(2).sum().backward()
    return mine.grad


def second_derivative() -> Tensor:
    x = torch.tensor([1.0 + dist.rank()], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(dist.all_sum(x).pow(3).sum(), x, create_graph=True)
    return torch.autograd.grad(first.sum(), x)[0]


def mismatch() -> str:
    with pytest.raises(ValueError, match="ranks differ in dtype or row shape") as caught:
        dist.all_rows(torch.ones(2, 3 + dist.rank()))
    return str(caught.value)


def summed() -> dict[str, Tensor]:
    r = dist.rank()
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    out = dist.all_sum(x * (1 + r))
    (out * torch.tensor([1.0 + r, 10.0])).sum().backward()
    assert x.grad is not None
    return {"sum": out.detach(), "grad": x.grad, "bool": dist.all_sum(torch.tensor([True, r == 0]))}


def means() -> list[tuple[float, float]]:
    r = dist.rank()
    cases = [(4.0 + r, 1 + r), (3.0, torch.tensor(1.5)), (0.0, 0), (2.0 * r, r)]
    results = []
    for value, count in cases:
        total = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        out = dist.global_mean(total, count)
        out.backward()
        assert total.grad is not None
        results.append((out.item(), total.grad.item()))
    return results


def statistics() -> tuple[Tensor, Tensor]:
    r = dist.rank()
    return dist.sums(torch.full((2, 2), 1.0 + r, requires_grad=True), torch.tensor([2**40 + r]))


def flags_and_objects() -> tuple[object, ...]:
    r = dist.rank()
    return (
        dist.any_true(r == 1),
        dist.any_true(torch.tensor(False)),
        dist.gather_objects({"rank": r}),
        dist.broadcast_object(f"from {r}"),
    )


def fail_on(failing: list[int]) -> int:
    if dist.rank() in failing:
        raise KeyError("planted")
    return dist.rank()


def fail_before_collective() -> None:
    if dist.rank() == 1:
        raise ValueError("planted before the barrier")
    dist.barrier()


def sleep_on_one() -> None:
    time.sleep(30.0 * dist.rank())


def die_on_one() -> None:
    if dist.rank() == 0:
        os._exit(3)


def process_id() -> int:
    return os.getpid()


def test_values() -> None:
    assert (dist.rank(), dist.world(), dist.is_main()) == (0, 1, True)
    x = table(3).requires_grad_()
    assert dist.all_rows(x) is x
    assert dist.all_sum(x) is x
    assert dist.all_sum(torch.tensor([True])).dtype == torch.int64
    assert dist.shard(7) == slice(0, 7)
    assert dist.global_mean(torch.tensor(6.0), 4).item() == 1.5
    assert dist.global_mean(torch.tensor([6.0, 1.0]), torch.tensor([4, 0])).tolist() == [1.5, 0.0]
    top, bottom = dist.sums(x, torch.tensor(3))
    assert not top.requires_grad
    assert bottom.item() == 3
    assert dist.any_true(True)
    assert not dist.any_true(torch.tensor(False))
    assert dist.gather_objects("a") == ["a"]
    assert dist.broadcast_object("a") == "a"
    dist.barrier()


def test_gradient() -> None:
    total = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    count = torch.tensor([4.0, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: dist.global_mean(x, count), total)
    assert torch.autograd.gradcheck(lambda x: dist.global_mean(x, 0), total)


@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_dtypes(dtype: torch.dtype) -> None:
    # 70000 overflows float16, 257 is not a bfloat16.
    assert dist.global_mean(torch.tensor(1.0, dtype=dtype), 70000).item() == pytest.approx(1 / 70000)
    assert dist.global_mean(torch.tensor(257.0).to(dtype), torch.tensor(257)).item() == pytest.approx(
        1, rel=1e-2
    )
    assert dist.global_mean(torch.tensor(1.0, dtype=dtype), 1).dtype == torch.promote_types(
        dtype, torch.float32
    )


@pytest.mark.parametrize("count", [0, 0.0, torch.tensor(0)])
def test_degenerate_no_elements(count: Tensor | float) -> None:
    parameter = torch.ones(2, requires_grad=True)
    mean = dist.global_mean((parameter * 0).sum(), count)
    mean.backward()
    assert mean.item() == 0
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [0, 0]


def test_errors() -> None:
    with pytest.raises(ValueError, match="first dimension, got a scalar"):
        dist.all_rows(torch.tensor(1.0))


def test_ranks_identity(pool) -> None:
    assert pool.run(identity) == [(0, 2, True, slice(0, 2)), (1, 2, False, slice(2, 5))]


@pytest.mark.parametrize("sizes", [[3, 3], [1, 4], [0, 2], [2, 0], [0, 0]])
def test_ranks_all_rows(pool, sizes: list[int]) -> None:
    for dtype in DTYPES if sizes == [1, 4] else DTYPES[:1]:
        for result in pool.run(gathered, sizes, dtype):
            assert result.dtype == dtype
            assert torch.equal(result, table(sum(sizes), dtype=dtype))


def test_ranks_all_rows_shapes(pool) -> None:
    assert pool.run(gathered_shapes) == [[(5,), (1, 2, 2), (0, 4), (6, 0)]] * 2


@pytest.mark.parametrize("sizes", [[3, 3], [1, 4], [0, 5]])
def test_ranks_gradient(pool, sizes: list[int]) -> None:
    """The mean over ranks of the loss and of its gradient is the one-process value and gradient."""
    x = table(sum(sizes)).requires_grad_()
    expected = loss_of_rows(x, x, 2.0) / len(x)
    (gradient,) = torch.autograd.grad(expected, x)
    results = pool.run(gathered_gradient, sizes)
    torch.testing.assert_close((results[0][0] + results[1][0]) / 2, expected.detach(), rtol=1e-12, atol=1e-14)
    assembled = torch.cat([results[0][1], results[1][1]]) / 2
    torch.testing.assert_close(assembled, gradient, rtol=1e-12, atol=1e-14)


def test_ranks_gradient_on_one_rank(pool) -> None:
    nothing, gradient = pool.run(gradient_on_one_rank)
    assert nothing is None
    torch.testing.assert_close(gradient, 2 * 2 * table(2, seed=1), rtol=1e-12, atol=0)


def test_ranks_second_derivative(pool) -> None:
    # d2/dx2 of two copies of (x0 + x1)^3 at 3, summed over ranks at each of the two steps back.
    assert [x.item() for x in pool.run(second_derivative)] == [72.0, 72.0]


def test_ranks_errors(pool) -> None:
    first, second = pool.run(mismatch)
    assert "rank 0 has (2, 3)" in first
    assert "rank 1 has (2, 4)" in second


def test_ranks_sums(pool) -> None:
    for r, result in enumerate(pool.run(summed)):
        assert result["sum"].tolist() == [3.0, 6.0]
        assert result["grad"].tolist() == [3.0 * (1 + r), 20.0 * (1 + r)]
        assert result["bool"].tolist() == [2, 1]
    for top, bottom in pool.run(statistics):
        assert top.tolist() == [[3.0, 3.0], [3.0, 3.0]]
        assert bottom.tolist() == [2**41 + 1]


def test_ranks_global_mean(pool) -> None:
    expected = [
        [(2 * 4 / 3, 2 / 3), (2.0, 2 / 3), (0.0, 0.0), (0.0, 2.0)],
        [(2 * 5 / 3, 2 / 3), (2.0, 2 / 3), (0.0, 0.0), (4.0, 2.0)],
    ]
    torch.testing.assert_close(torch.tensor(pool.run(means)), torch.tensor(expected))


def test_ranks_flags_and_objects(pool) -> None:
    expected = (True, False, [{"rank": 0}, {"rank": 1}], "from 0")
    assert pool.run(flags_and_objects) == [expected] * 2


def test_pool_errors(pool) -> None:
    before = pool.run(process_id)
    for failing in ([0, 1], [1]):
        with pytest.raises(KeyError, match="planted") as caught:
            pool.run(fail_on, failing)
        assert isinstance(caught.value.__cause__, RemoteError)
        assert "in fail_on" in str(caught.value.__cause__)
    assert pool.run(process_id) == before


@pytest.mark.slow
def test_pool_restarts() -> None:
    from pool import Pool

    own = Pool()
    try:
        with pytest.raises(ValueError, match="before the barrier"):
            own.run(fail_before_collective)
        assert [result[0] for result in own.run(identity)] == [0, 1]
        with pytest.raises(TimeoutError, match=r"ranks \[1\] did not answer within 2 s"):
            own.run(sleep_on_one, timeout=2.0)
        with pytest.raises(RemoteError, match="rank 0 ended with exit code 3"):
            own.run(die_on_one)
        assert [result[0] for result in own.run(identity)] == [0, 1]
    finally:
        own.close()
