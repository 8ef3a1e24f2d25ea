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

    def __init__(self, order: Callable[[int], Tensor], batch_size: int, start: int) -> None:
        self.order, self.batch_size, self.start, self.part = order, batch_size, start, _slice(batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for t in itertools.count(self.start):
            ids = self.order(t)
            if ids.shape != (self.batch_size,) or ids.dtype != torch.int64 or int(ids.min()) < 0:
                raise ValueError(
                    f"the order must give ({self.batch_size},) int64 ids >= 0 in every iteration, in {t} it gave "
                    f"{tuple(ids.shape)} {ids.dtype}"
                )
            yield ids[self.part].tolist()


class _Numbered:
    """Samples together with their ids; several ids may stand for one sample."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.samples[index % len(self.samples)]


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
    order: Callable[[int], Tensor] | None = None,
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
        order: iteration -> its (batch_size,) int64 ids over all ranks, a pure function; None: :func:`batch_ids`. Ids
            of n, the number of samples, and more are further ones of the same samples: ``id % n`` is read, the id
            itself is yielded, so that a sample that stands twice in a batch gets random numbers of its own each time.
            A batch may then be larger than the data.

    Raises:
        InputError: the data set is empty or, without an order, smaller than a batch; or the ranks do not divide the
            batch.
        ValueError: on reading, where the order gives something else than that.
    """
    if batch_size < 1:
        raise InputError(f"data.batch_size: expected 1 or more, got {batch_size}.")
    if len(samples) < (batch_size if order is None else 1):
        raise InputError(
            f"data.batch_size: {batch_size} is more than the {len(samples)} samples there are.",
            f"Set it to {max(1, len(samples))} or less.",
        )
    if batch_size % dist.world():
        raise InputError(
            f"data.batch_size: {batch_size} is global and must be divisible by the {dist.world()} processes."
        )
    if order is None:
        order = functools.partial(batch_ids, len(samples), batch_size, seed)
    iterations = _Iterations(order, batch_size, start)
    read = getattr(samples, "read", None)
    if callable(read) and workers == 0:
        return _ahead(iterations, lambda ids: read([index % len(samples) for index in ids]))
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
