"""A first-in-first-out store of rows: the negatives of MoCo and of every contrast that needs more than a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.rng import Draw


class FeatureQueue(nn.Module):
    """Keep the newest `size` rows of all ranks, with an id each; everything is part of the state dict.

    Starts as rows of Gaussian noise of norm 1 [He et al. 2020, official code], so that a loss over the whole
    queue has the same number of negatives from the first step on. Which rows are real is known all the same.

    Args:
        size: K, number of rows, >= 1.
        dim: D, width of a row, >= 1.
        draw: whole-batch source of the noise; None takes torch's global generator, which every rank must have
            seeded alike.

    Raises:
        ValueError: size or dim below 1.

    Example:
        >>> queue = FeatureQueue(3, 2)
        >>> queue.push(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), ids=torch.tensor([7, 8]))
        >>> queue.real(), queue.ids_read().tolist()
        (2, [7, 8, -1])
        >>> queue.real_rows().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    rows: Tensor
    """(K, D), the slots in the order in which they are written, not in the order of age."""
    ids: Tensor
    """(K,) int64, the id given with a row; -1 for noise and for rows pushed without ids."""
    pointer: Tensor
    """Scalar int64, the slot that is written next, in [0, K)."""
    filled: Tensor
    """Scalar int64, how many slots have been written, in [0, K]."""

    def __init__(self, size: int, dim: int, *, draw: Draw | None = None) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a queue needs size and dim of at least 1, got {size} and {dim}")
        noise = torch.randn(size, dim) if draw is None else draw.normal((size, dim)).cpu()
        self.register_buffer("rows", noise / noise.norm(dim=1, keepdim=True))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def read(self) -> Tensor:
        """(K, D) copy of all rows, noise included."""
        return self.rows.clone()

    def ids_read(self) -> Tensor:
        """(K,) copy of the ids, in the order of :meth:`read`."""
        return self.ids.clone()

    def real(self) -> int:
        """Number of rows that are not noise."""
        return int(self.filled)

    def real_rows(self) -> Tensor:
        """(real, D) copy of the rows that are not noise, in slot order: the first rows of :meth:`read`."""
        return self.rows[: self.real()].clone()

    def real_ids(self) -> Tensor:
        """(real,) copy of their ids."""
        return self.ids[: self.real()].clone()

    @torch.no_grad()
    def forget(self) -> None:
        """Take all rows for noise: what they are of means nothing any more, say to another data set."""
        self.ids.fill_(-1)
        self.pointer.zero_()
        self.filled.zero_()

    @torch.no_grad()
    def push(self, batch: Tensor, ids: Tensor | None = None) -> None:
        """Write rows over the oldest ones. On several ranks all must call it; rows are written in rank order.

        Args:
            batch: (n, D), n >= 0 may differ between ranks and may exceed K, whose newest K rows are kept; any
                floating type, no gradient. Rows are stored as they are: a zero row stays zero.
            ids: (n,) int64, e.g. which sample a row is of; None stores -1. Given on all ranks or on none.

        Raises:
            ValueError: shapes do not fit.
        """
        if batch.ndim != 2 or batch.shape[1] != self.rows.shape[1]:
            raise ValueError(f"rows must be (n, {self.rows.shape[1]}), got {tuple(batch.shape)}")
        if ids is not None and (ids.shape != batch.shape[:1] or ids.dtype != torch.int64):
            raise ValueError(f"ids must be int64 ({len(batch)},), got {ids.dtype} {tuple(ids.shape)}")
        batch = dist.all_rows(batch.detach())
        names = batch.new_full((len(batch),), -1, dtype=torch.int64) if ids is None else dist.all_rows(ids)
        size, total = len(self), len(batch)
        kept = min(total, size)
        # The slots that row after row would have been written to, had they come one at a time.
        slots = torch.arange(total - kept, total, device=self.rows.device)
        slots = (self.pointer + slots) % size
        self.rows[slots] = batch[total - kept :].to(self.rows)
        self.ids[slots] = names[total - kept :].to(self.ids)
        self.pointer.copy_((self.pointer + total) % size)
        self.filled.copy_((self.filled + total).clamp(max=size))
