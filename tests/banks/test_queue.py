"""The first-in-first-out store: what stands where, what is real, and that it is one store on all ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.banks.queue import FeatureQueue
from leanlabel.rng import draw
from pool import Pool


def numbered(start: int, count: int, dim: int = 2) -> Tensor:
    """Rows start, start + 1, ... whose entries are their numbers."""
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, dim)


def fill(queue: FeatureQueue, batches: list[int]) -> None:
    start = 0
    for count in batches:
        queue.push(numbered(start, count, queue.rows.shape[1]), torch.arange(start, start + count))
        start += count


def test_values() -> None:
    """Specification, case 3: five slots, batches of 2, 2, 2 and 4."""
    queue = FeatureQueue(5, 1)
    slots, pointers, filled, start = [], [], [], 0
    for count in (2, 2, 2, 4):
        queue.push(numbered(start, count, 1), torch.arange(start, start + count))
        start += count
        slots.append(queue.ids_read().tolist())
        pointers.append(int(queue.pointer))
        filled.append(queue.real())
        real = queue.real()
        assert queue.read()[:real, 0].tolist() == queue.ids_read()[:real].tolist()
    assert slots == [[0, 1, -1, -1, -1], [0, 1, 2, 3, -1], [5, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert pointers == [2, 4, 1, 0]
    assert filled == [2, 4, 5, 5]


def test_values_noise() -> None:
    """Every row of the noise has norm 1, not every column, and none is real."""
    queue = FeatureQueue(400, 3)
    torch.testing.assert_close(queue.read().norm(dim=1), torch.ones(400))
    assert queue.read().mean(0).abs().max() < 0.2
    assert queue.ids_read().tolist() == [-1] * 400
    assert queue.real() == 0
    assert queue.real_rows().shape == (0, 3)
    assert len(queue) == 400


def test_values_source_of_noise() -> None:
    one, same, other = (FeatureQueue(4, 3, draw=draw(seed, "queue", 0)).read() for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(FeatureQueue(4, 3).read())
    assert torch.equal(*drawn)


@pytest.mark.parametrize("count", [5, 6, 7, 12, 23])
def test_values_larger_than_the_queue(count: int) -> None:
    """The newest K stay, in the slots where they would stand had the rows come one at a time."""
    at_once, one_by_one = FeatureQueue(5, 2), FeatureQueue(5, 2)
    fill(at_once, [3, count])
    fill(one_by_one, [1] * (3 + count))
    assert torch.equal(at_once.read(), one_by_one.read())
    assert sorted(at_once.ids_read().tolist()) == list(range(count - 2, count + 3))
    assert int(at_once.pointer) == int(one_by_one.pointer) == (3 + count) % 5
    assert at_once.real() == 5


def test_values_real_rows() -> None:
    queue = FeatureQueue(4, 2)
    fill(queue, [3])
    assert queue.real_rows().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert queue.real_ids().tolist() == [0, 1, 2]
    fill(queue, [2])
    assert queue.real_ids().tolist() == [1, 1, 2, 0]


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 7))
def test_reference(batches: list[int], size: int) -> None:
    """Against a list that is written to one row at a time."""
    queue = FeatureQueue(size, 1)
    fill(queue, batches)
    slots = [-1] * size
    for number in range(sum(batches)):
        slots[number % size] = number
    assert queue.ids_read().tolist() == slots
    assert int(queue.pointer) == sum(batches) % size
    assert queue.real() == min(sum(batches), size)
    assert queue.real_rows()[:, 0].tolist() == [float(slot) for slot in slots if slot >= 0]


def test_gradient() -> None:
    """What is pushed is cut off from its graph, and what is read does not change with the queue."""
    queue = FeatureQueue(3, 2)
    rows = torch.ones(2, 2, requires_grad=True)
    queue.push(rows * 2)
    before = queue.read()
    assert not before.requires_grad
    weights = torch.ones(2, requires_grad=True)
    product = before @ weights
    queue.push(torch.zeros(3, 2))
    product.sum().backward()
    assert before[:2].tolist() == [[2, 2], [2, 2]]
    assert not list(queue.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    """Rows of any type are stored in the type of the queue."""
    queue = FeatureQueue(3, 2)
    queue.push(torch.tensor([[0.5, 0.25]], dtype=dtype))
    assert queue.read().dtype == torch.float32
    assert queue.read()[0].tolist() == [0.5, 0.25]
    wide = FeatureQueue(3, 2).double()
    wide.push(torch.full((1, 2), 0.1, dtype=torch.float64))
    assert wide.read()[0].tolist() == [0.1, 0.1]
    assert wide.ids.dtype == wide.pointer.dtype == torch.int64


def test_degenerate() -> None:
    queue = FeatureQueue(1, 2)
    queue.push(torch.empty(0, 2))
    assert queue.real() == int(queue.pointer) == 0
    queue.push(torch.zeros(1, 2))
    assert queue.read().tolist() == [[0, 0]]
    assert queue.ids_read().tolist() == [-1]
    assert queue.real() == 1
    queue.push(torch.ones(3, 2), torch.tensor([4, 5, 6]))
    assert queue.ids_read().tolist() == [6]


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 and 4"):
        FeatureQueue(0, 4)
    queue = FeatureQueue(3, 2)
    with pytest.raises(ValueError, match=r"must be \(n, 2\), got \(4, 3\)"):
        queue.push(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"int64 \(4,\), got torch.int64 \(3,\)"):
        queue.push(torch.zeros(4, 2), torch.arange(3))
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        queue.push(torch.zeros(4, 2), torch.zeros(4))


def test_state() -> None:
    """Saved and loaded into a fresh object it goes on alike, pointer and count included."""
    queue, fresh = FeatureQueue(5, 2), FeatureQueue(5, 2)
    fill(queue, [3, 4])
    assert set(queue.state_dict()) == {"rows", "ids", "pointer", "filled"}
    fresh.load_state_dict(queue.state_dict())
    for one in (queue, fresh):
        one.push(numbered(50, 3), torch.arange(50, 53))
    for name, value in queue.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def _push_part(batches: list[int], uneven: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    queue = FeatureQueue(7, 2)
    start = 0
    for count in batches:
        cut = count // 3 if uneven else count // 2
        part = slice(0, cut) if dist.rank() == 0 else slice(cut, count)
        part = slice(None) if dist.world() == 1 else part
        queue.push(numbered(start, count)[part], torch.arange(start, start + count)[part])
        start += count
    return queue.state_dict()


@pytest.mark.parametrize("uneven", [False, True])
def test_ranks(pool: Pool, uneven: bool) -> None:
    """Two ranks with half (or unequal parts) of each batch hold what one rank holds."""
    batches = [2, 4, 6, 0, 5, 20, 1]
    expected = _push_part(batches, uneven)
    for state in pool.run(_push_part, batches, uneven):
        for name, value in expected.items():
            assert torch.equal(state[name], value), name
