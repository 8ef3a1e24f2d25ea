"""Batches as a function of (seed, t): shuffled without replacement, sliced by rank, started at any iteration."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from leanlabel import dist, rng
from leanlabel.errors import InputError


class Samples(Protocol):
    """Anything with a length and integer access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def batch_ids(size: int, batch_size: int, seed: int, t: int) -> Tensor:
    """Global sample ids of iteration ``t``: (batch_size,), int64.

    Every epoch has ``size // batch_size`` batches of its own permutation; the ragged rest of an epoch is left out.
    """
    per_epoch = size // batch_size
    epoch, position = divmod(t, per_epoch)
    return _epoch_order(size, seed, epoch)[position * batch_size : (position + 1) * batch_size].clone()


@functools.lru_cache(maxsize=2)
def _epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    return rng.permutation(seed, "shuffle", epoch, size)


class _Iterations(Sampler[list[int]]):
    """Ids of this rank's slice for iterations start, start + 1, …, without end."""

    def __init__(self, size: int, batch_size: int, seed: int, start: int, part: slice) -> None:
        self.size, self.batch_size, self.seed, self.start, self.part = size, batch_size, seed, start, part

    def __iter__(self) -> Iterator[list[int]]:
        for t in itertools.count(self.start):
            yield batch_ids(self.size, self.batch_size, self.seed, t)[self.part].tolist()


class _Numbered:
    """Samples together with their ids."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.samples[index]


class _Collate:
    """Ids as a tensor, samples by the collate function in use."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: list[tuple[int, Any]]) -> tuple[Tensor, Any]:
        return torch.tensor([index for index, _ in rows], dtype=torch.long), self.collate(
            [s for _, s in rows]
        )


def batches(
    samples: Samples | Sequence[Any],
    batch_size: int,
    seed: int,
    start: int = 0,
    *,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] = torch.utils.data.default_collate,
    pin_memory: bool = False,
) -> Iterator[tuple[Tensor, Any]]:
    """Yield (ids, batch) of iterations ``start``, ``start + 1``, … without end.

    Args:
        samples: map-style data set; reading must not draw random numbers (augment the batch, with ``draw``). One with
            ``read(ids)`` gives whole batches in this process, in place of samples to collate.
        batch_size: global size; rank r of R gets the r-th contiguous slice, R must divide it.
        seed: the run's seed.
        start: first iteration; nothing before it is read.
        workers: loading processes, started by spawn; 0 reads in this process. The result does not depend on it.
        collate: how a list of samples becomes a batch.
        pin_memory: page-locked tensors for faster copies to a GPU.

    Raises:
        InputError: the data set is smaller than a batch, or the ranks do not divide the batch.
    """
    if batch_size < 1:
        raise InputError(f"data.batch_size: expected 1 or more, got {batch_size}.")
    if len(samples) < batch_size:
        raise InputError(
            f"data.batch_size: {batch_size} is more than the {len(samples)} samples there are.",
            f"Set it to {max(1, len(samples))} or less.",
        )
    if batch_size % dist.world():
        raise InputError(
            f"data.batch_size: {batch_size} is global and must be divisible by the {dist.world()} processes."
        )
    iterations = _Iterations(len(samples), batch_size, seed, start, _slice(batch_size))
    read = getattr(samples, "read", None)
    if callable(read) and workers == 0:
        return _ahead(iterations, read)
    loader = DataLoader(
        _Numbered(copy.copy(samples)),  # type: ignore[arg-type]
        batch_sampler=iterations,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_Collate(collate),
        pin_memory=pin_memory,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=False,
    )
    return iter(loader)


def _ahead(iterations: _Iterations, read: Callable[[list[int]], Any]) -> Iterator[tuple[Tensor, Any]]:
    """Batches read in this process, each by a thread while the one before is worked on: files do not keep it waiting.

    What is read is a function of the iteration alone, so reading ahead changes nothing.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as thread:
        coming: tuple[list[int], Future[Any]] | None = None
        for ids in iterations:
            if coming is not None:
                ready, coming = coming, (ids, thread.submit(read, ids))
                yield torch.tensor(ready[0], dtype=torch.long), ready[1].result()
            else:
                coming = ids, thread.submit(read, ids)


def _slice(batch_size: int) -> slice:
    part = batch_size // dist.world()
    return slice(dist.rank() * part, (dist.rank() + 1) * part)
