"""Loaders: batch = f(seed, t), whatever the start, the number of workers and the number of ranks."""

from __future__ import annotations

import threading
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.engine import loaders
from leanlabel.errors import InputError


class Squares:
    """Sample i is i²; counts what is read."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        self.read.append(index)
        return torch.tensor([index**2, index])


def take(count: int, start: int = 0, **options: Any) -> list[tuple[list[int], list[list[int]]]]:
    found = loaders.batches(
        Squares(23), 5 if "size" not in options else options.pop("size"), 7, start, **options
    )
    return [(ids.tolist(), batch.tolist()) for ids, batch in islice(found, count)]


def test_values() -> None:
    """Samples belong to their ids; an epoch is a permutation without repeats, its ragged rest left out."""
    found = take(8)
    for ids, batch in found:
        assert batch == [[i**2, i] for i in ids]
    first, second = ([i for ids, _ in found[k : k + 4] for i in ids] for k in (0, 4))
    assert len(set(first)) == len(set(second)) == 20
    assert first != second
    assert set(first + second) <= set(range(23))


def test_reference() -> None:
    """The stream equals batch_ids of every iteration, over the border of epochs."""
    assert [ids for ids, _ in take(9)] == [loaders.batch_ids(23, 5, 7, t).tolist() for t in range(9)]
    assert loaders.batch_ids(23, 5, 8, 0).tolist() != loaders.batch_ids(23, 5, 7, 0).tolist()


@pytest.mark.parametrize("start", [1, 3, 4, 5, 1_000_003])
def test_reference_offset(start: int) -> None:
    """A start at an offset is a cut: the same batches, and nothing before them is read."""
    samples = Squares(23)
    stream = loaders.batches(samples, 5, 7, start)
    ids, _ = next(stream)
    assert ids.tolist() == loaders.batch_ids(23, 5, 7, start).tolist()
    assert len(samples.read) <= 5
    if start < 9:
        assert take(9)[start:] == take(9 - start, start)


def test_reference_workers() -> None:
    """Two processes started by spawn give the batches of none, from an offset too."""
    assert take(6, 3, workers=2) == take(6, 3)


class Readable:
    """The same samples as whole batches; remembers the threads that read, and can fail."""

    def __init__(self, size: int, bad: int | None = None) -> None:
        self.size, self.bad = size, bad
        self.threads: set[int] = set()
        self.batches = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        raise AssertionError("read sample by sample")

    def read(self, ids: list[int]) -> Tensor:
        self.batches += 1
        self.threads.add(threading.get_ident())
        if self.bad in ids:
            raise InputError(f"sample {self.bad} cannot be read")
        return torch.stack([torch.tensor([index**2, index]) for index in ids])


def test_read_ahead() -> None:
    """Whole batches are read by another thread, one ahead of the work, and are what collated samples are."""
    samples = Readable(23)
    found = loaders.batches(samples, 5, 7, 2)
    got = [(ids.tolist(), batch.tolist()) for ids, batch in islice(found, 6)]
    assert got == take(6, start=2)
    assert samples.threads
    assert threading.get_ident() not in samples.threads
    found.close()  # type: ignore[attr-defined]
    assert samples.batches <= 8


def test_read_ahead_errors() -> None:
    """A batch that cannot be read fails when it is asked for, not the one before."""
    order = [loaders.batch_ids(23, 5, 7, t).tolist() for t in range(4)]
    found = loaders.batches(Readable(23, bad=order[2][0]), 5, 7)
    assert [next(found)[0].tolist() for _ in range(2)] == order[:2]
    with pytest.raises(InputError, match="cannot be read"):
        next(found)


def test_degenerate() -> None:
    """A batch as large as the data: every iteration is an epoch."""
    found = take(3, size=23)
    assert all(sorted(ids) == list(range(23)) for ids, _ in found)
    assert found[0] != found[1]
    pairs = loaders.batches([("a", 1), ("b", 2)], 2, 0, collate=lambda rows: rows)
    ids, rows = next(pairs)
    assert rows == [[("a", 1), ("b", 2)][i] for i in ids.tolist()]


def test_errors() -> None:
    with pytest.raises(
        InputError, match=r"data.batch_size: 24 is more than the 23 samples.*Set it to 23 or less"
    ):
        take(1, size=24)
    for size in (0, -2):
        with pytest.raises(InputError, match=f"data.batch_size: expected 1 or more, got {size}"):
            take(1, size=size)
    with pytest.raises(InputError, match="more than the 0 samples"):
        loaders.batches(Squares(0), 1, 0)


def slices(start: int) -> list[list[int]]:
    return [ids for ids, _ in take(6, start, size=6)]


def odd() -> str:
    with pytest.raises(InputError) as caught:
        take(1, size=5)
    return str(caught.value)


def test_ranks(pool) -> None:
    """Rank r gets the r-th contiguous part of the same global batch; a batch that cannot be shared is refused."""
    left, right = pool.run(slices, 2)
    assert [a + b for a, b in zip(left, right, strict=True)] == [
        loaders.batch_ids(23, 6, 7, t).tolist() for t in range(2, 8)
    ]
    assert dist.world() == 1
    assert all("divisible by the 2 processes" in text for text in pool.run(odd))


def repeated(t: int) -> Tensor:
    """Ids of samples of which some stand several times in a batch."""
    return torch.tensor([t % 23, t % 23 + 23, (t + 1) % 23, 7 * 23, 5, 28])


def test_order() -> None:
    """A given order stands in place of the shuffle; ids beyond the data are read again, and keep their number."""
    expected = [
        (repeated(t).tolist(), [[(i % 23) ** 2, i % 23] for i in repeated(t).tolist()]) for t in range(2, 8)
    ]
    assert take(6, 2, size=6, order=repeated) == expected
    assert take(6, 2, size=6, order=repeated, workers=1) == expected
    samples = Readable(23)
    found = loaders.batches(samples, 6, 7, 2, order=repeated)
    assert [(ids.tolist(), batch.tolist()) for ids, batch in islice(found, 6)] == expected
    assert threading.get_ident() not in samples.threads
    none = take(4, order=lambda t: loaders.batch_ids(23, 5, 7, t))
    assert none == take(4)


def test_order_degenerate() -> None:
    """A batch may be larger than the data; of no data there is none."""
    few = loaders.batches(["a", "b"], 5, 0, order=lambda t: torch.arange(5) + t, collate=list)
    assert [(ids.tolist(), rows) for ids, rows in islice(few, 2)] == [
        ([0, 1, 2, 3, 4], ["a", "b", "a", "b", "a"]),
        ([1, 2, 3, 4, 5], ["b", "a", "b", "a", "b"]),
    ]
    with pytest.raises(InputError, match="more than the 0 samples"):
        loaders.batches(Squares(0), 6, 0, order=repeated)


@pytest.mark.parametrize("bad", [torch.arange(5), torch.arange(6.0), torch.arange(6) - 1])
def test_order_errors(bad: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"the order must give \(6,\) int64 ids >= 0 in every iteration, in 3"
    ):
        take(1, 3, size=6, order=lambda t: bad)


def ordered_slices() -> list[list[int]]:
    return [ids for ids, _ in take(6, 2, size=6, order=repeated)]


def test_order_ranks(pool) -> None:
    left, right = pool.run(ordered_slices)
    assert [a + b for a, b in zip(left, right, strict=True)] == [repeated(t).tolist() for t in range(2, 8)]
