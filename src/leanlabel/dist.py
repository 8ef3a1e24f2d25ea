"""What the processes of one run say to each other. The only file that touches torch.distributed.

Without a process group every function is the one-process case and costs nothing. With one, every function is
collective: all ranks call it in the same order, and all ranks run the backward pass of its result.

The convention for gradients: each rank's loss is `global_mean` of its own rows, and the training loop
averages gradients over ranks. Then values and gradients equal those of one process that sees all rows.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as group
from torch import Tensor
from torch.autograd.function import FunctionCtx

Anything = TypeVar("Anything")
_alone = False


def rank() -> int:
    """Return this process's number, 0 <= rank < world."""
    return group.get_rank() if _grouped() else 0


def world() -> int:
    """Return the number of processes."""
    return group.get_world_size() if _grouped() else 1


def is_main() -> bool:
    """Tell whether this is rank 0, the one that writes files."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Let this process act as if it were the only one: for work that one rank does while the others wait.

    Example:
        >>> with alone():
        ...     world()
        1
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        group.barrier()


def shard(n: int) -> slice:
    """Return this rank's contiguous part of n rows; parts are in rank order and differ by at most one row.

    Example:
        >>> shard(5)
        slice(0, 5, None)
    """
    r, w = rank(), world()
    return slice(n * r // w, n * (r + 1) // w)


def all_rows(x: Tensor) -> Tensor:
    """Concatenate the rows of all ranks in rank order.

    The gradient of a row is the sum of what all ranks' losses say about it.

    Args:
        x: (n_r, ...), any dtype, n_r >= 0 may differ between ranks; the rest of the shape may not. Carries
            gradient where it requires one on any rank.

    Returns:
        (sum n_r, ...), the same on every rank.

    Raises:
        ValueError: x has no rows dimension, or dtype or row shape differ between ranks.
    """
    if x.ndim == 0:
        raise ValueError("all_rows needs a tensor with a first dimension, got a scalar")
    if world() == 1:
        return x
    wants_gradient = torch.is_grad_enabled() and x.requires_grad
    form = zlib.crc32(f"{x.dtype} {tuple(x.shape[1:])}".encode())
    headers = torch.stack(_gather(torch.tensor([len(x), form, wants_gradient]))).tolist()
    if any(header[1] != form for header in headers):
        raise ValueError(
            f"all_rows: ranks differ in dtype or row shape; rank {rank()} has {tuple(x.shape)} of {x.dtype}"
        )
    sizes = [header[0] for header in headers]
    if not any(header[2] for header in headers):
        return _rows(x.detach(), sizes)
    if not wants_gradient:
        # The backward pass is collective: a rank whose rows need no gradient must take part in it.
        x = x.detach().requires_grad_()
    return _AllRows.apply(x, sizes)  # pyright: ignore[reportReturnType]


def all_sum(x: Tensor) -> Tensor:
    """Sum a tensor over ranks; the gradient is summed over ranks too.

    Args:
        x: any shape, equal on all ranks. bool counts as int64; integers carry no gradient.

    Returns:
        Tensor of the same shape, the same on every rank.
    """
    x = x.long() if x.dtype == torch.bool else x
    if world() == 1:
        return x
    return _AllSum.apply(x)  # pyright: ignore[reportReturnType]


def global_mean(total: Tensor, count: Tensor | float) -> Tensor:
    """Turn a local sum into this rank's share of the mean over all ranks.

    result = world * total / (sum of count over ranks), so that the average of the results over ranks is the
    mean over all elements, and the average of their gradients its gradient. A global count of 0 gives
    total * 0, which is attached to the graph.

    Args:
        total: local sum, any shape, carries gradient.
        count: local number (or weight) of elements, >= 0, a number or broadcastable to total; no gradient.

    Returns:
        Tensor in float32 or wider.

    Example:
        >>> global_mean(torch.tensor(6.0), 4)
        tensor(1.5000)
        >>> global_mean(torch.tensor(0.0), 0)
        tensor(0.)
    """
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    if world() > 1:
        count = torch.as_tensor(count, device=total.device).detach()
        count = _sum(count.to(_wide(count.device))).to(total)
    if not isinstance(count, Tensor):
        return total * (world() / count) if count else total * 0
    count = count.detach().to(total)
    some = count > 0
    return torch.where(some, total * world() / torch.where(some, count, 1), total * 0)


def sums(numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """Sum a pair of statistics over ranks in one message, without gradient.

    Args:
        numerator: any shape, equal on all ranks.
        denominator: any shape, equal on all ranks.

    Returns:
        The two sums in the dtypes given, accumulated in float64.
    """
    numerator, denominator = numerator.detach(), denominator.detach()
    if world() == 1:
        return numerator, denominator
    wide = _wide(numerator.device)
    both = _sum(torch.cat([numerator.to(wide).flatten(), denominator.to(numerator.device, wide).flatten()]))
    first, second = both.split([numerator.numel(), denominator.numel()])
    return first.view_as(numerator).to(numerator), second.view_as(denominator).to(denominator)


def any_true(flag: bool | Tensor) -> bool:
    """Tell whether the flag is true on any rank."""
    return bool(flag) if world() == 1 else bool(_sum(torch.tensor(int(bool(flag)))))


def gather_objects(obj: Anything) -> list[Anything]:
    """Return every rank's object in rank order, on every rank. Objects travel pickled."""
    if world() == 1:
        return [obj]
    objects: list[Any] = [None] * world()
    group.all_gather_object(objects, obj)
    return objects


def broadcast_object(obj: Anything) -> Anything:
    """Return rank 0's object on every rank. It travels pickled; what other ranks pass is ignored."""
    if world() == 1:
        return obj
    box = [obj]
    group.broadcast_object_list(box, src=0)
    return box[0]


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.start, ctx.length = sum(sizes[: rank()]), len(x)
        return _rows(x, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return all_sum(gradients[0])[ctx.start : ctx.start + ctx.length], None


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_sum(gradients[0])


def _grouped() -> bool:
    return not _alone and group.is_available() and group.is_initialized()


def _wide(device: torch.device) -> torch.dtype:
    """Return the widest float type of a device, in which counts are exact (up to 2^53)."""
    return torch.float32 if device.type == "mps" else torch.float64


def _carrier(x: Tensor) -> torch.device:
    """Return the device whose memory the backend can send, given where x lives."""
    backend = group.get_backend()
    if backend == "nccl":
        return x.device if x.is_cuda else torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if backend == "gloo" else x.device


def _sum(x: Tensor) -> Tensor:
    """Return the sum over ranks as a new tensor on the device of x."""
    sent = x.detach().to(_carrier(x), copy=True, memory_format=torch.contiguous_format)
    group.all_reduce(sent)
    return sent.to(x.device)


def _gather(x: Tensor) -> list[Tensor]:
    """Return the equally shaped tensors of all ranks on the device of x."""
    sent = x.detach().to(_carrier(x)).contiguous()
    received = [torch.empty_like(sent) for _ in range(world())]
    group.all_gather(received, sent)
    return [part.to(x.device) for part in received]


def _rows(x: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate rows of known sizes. They travel as padded bytes: no backend knows all dtypes."""
    width = math.prod(x.shape[1:]) * x.element_size()
    longest = max(sizes)
    if width * longest == 0:
        return x.new_zeros(sum(sizes), *x.shape[1:])
    sent = torch.zeros(longest, width, dtype=torch.uint8, device=x.device)
    if len(x):
        sent[: len(x)] = x.contiguous().view(torch.uint8).view(len(x), width)
    parts = [part[:size] for part, size in zip(_gather(sent), sizes)]
    return torch.cat(parts).view(-1).view(x.dtype).view(-1, *x.shape[1:])
