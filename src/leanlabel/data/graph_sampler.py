"""Sample the neighbourhood of some nodes, so that a graph need not fit in memory with its activations.

Row v of a structure holds the in-neighbours of v. A node draws its neighbours itself, from numbers that belong to
its id: what it draws does not depend on the batch that it is in, nor on a rank or worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanlabel.rng import Draw
from leanlabel.sparse import Csr, Weighting, from_edges, scaled

Source = Callable[[Tensor], Draw]


@dataclass(frozen=True)
class Sampled:
    """A piece of a graph. Networks are called with its matrices, not with the piece itself.

    Args:
        nodes: (n,) int64, global id of each local node: the seeds in their order, then the nodes of each hop in
            ascending order.
        structure: (n, n) without values, row = target, in local ids.
        edge: (nnz,) int64, place of each stored entry among the stored entries of the whole structure.
        induced: every edge between the nodes is there, not only those that were drawn.
    """

    nodes: Tensor
    structure: Csr
    edge: Tensor
    induced: bool = False

    def to(self, device: torch.device | str) -> Sampled:
        """Return the piece on another device."""
        return Sampled(self.nodes.to(device), self.structure.to(device), self.edge.to(device), self.induced)


def sample_neighbours(
    structure: Csr, seeds: Tensor, fanouts: Sequence[int], source: Source, *, induced: bool = False
) -> Sampled:
    """Draw in-neighbours of the seeds, then of the nodes found, and so on.

    Hop h: every node that is new draws min(fanouts[h], D) of its D in-neighbours without replacement, all subsets
    equally likely [Hamilton et al. 2017, section 3.1; they repeat neighbours where D is smaller]. Nodes found in the
    last hop have no entries unless the piece is induced. A stored self-loop is an in-neighbour like any other.

    With as many hops as an encoder has layers, and equal fanouts, all the entries that the output of a seed is
    computed from are the same in every batch, unless the piece is induced. Memory and time grow with the entries
    drawn, not with the degrees; an induced piece, and a fanout of -1, read every entry of the rows concerned.

    Args:
        structure: (N, N); its values are not read.
        seeds: (B,) integers in [0, N), each node once, on the device of the structure.
        fanouts: neighbours drawn per node at each hop, >= 0, or -1 for all. Empty: the seeds alone.
        source: opens the random numbers of some node ids, e.g.
            ``lambda ids: rng.draw(seed, "neighbours", t, ids)``.
        induced: keep all entries between the nodes reached, instead of those drawn.

    Raises:
        ValueError: the structure is not square, seeds are not (B,) different node ids, or a fanout is below -1.

    Example:
        >>> from leanlabel.rng import draw
        >>> path = from_edges(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4)
        >>> piece = sample_neighbours(path, torch.tensor([3]), [2, 2], lambda ids: draw(0, "demo", 0, ids))
        >>> piece.nodes.tolist(), piece.structure.to_dense().tolist(), piece.edge.tolist()
        ([3, 2, 1], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], [2, 1])
    """
    _check(structure, seeds, fanouts)
    nodes = frontier = seeds.long()
    reached = nodes.sort().values
    targets, entries = [nodes[:0]], [nodes[:0]]
    for fanout in fanouts:
        place, entry = _drawn(structure, frontier, fanout, source)
        targets.append(place + (len(nodes) - len(frontier)))
        entries.append(entry)
        found = torch.unique(structure.col[entry])
        frontier = found[~_among(found, reached)]
        nodes = torch.cat([nodes, frontier])
        reached = nodes.sort().values
    if induced:
        target, entry = _spans(structure.crow, nodes)
        inside = _among(structure.col[entry], reached)
        target, entry = target[inside], entry[inside]
    else:
        target, entry = torch.cat(targets), torch.cat(entries)
    order = nodes.argsort()
    column = order[torch.searchsorted(reached, structure.col[entry])]
    sorting = (target * len(nodes) + column).argsort()
    crow = torch.searchsorted(target[sorting], torch.arange(len(nodes) + 1, device=nodes.device))
    shape = (len(nodes), len(nodes))
    local = Csr(crow, column[sorting], None, shape, symmetric=induced and structure.symmetric)
    return Sampled(nodes, local, entry[sorting], induced)


def weighted(
    sampled: Sampled,
    structure: Csr,
    how: Weighting,
    *,
    loops: bool = False,
    rescale: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Csr:
    """Weight a piece for a graph convolution by the degrees of the whole graph.

    The entries are those of :func:`leanlabel.sparse.normalised` for the whole graph, each times D / k where its row
    drew k of D neighbours [Horvitz and Thompson 1952]. Hence the aggregate (A H)_v of a row that drew is unbiased
    for given H ("mean": the plain mean over the drawn); the output of an encoder is not, because of what its
    activations do to the noise. With fanouts of -1, one per layer, the seeds' output is that of the whole graph.

    Args:
        sampled: drawn from ``structure``.
        structure: (N, N), the whole graph.
        how: the weighting.
        loops: give every node a self-loop, of its exact weight; a degree then counts it. For a structure that
            stores none.
        rescale: multiply by D / k. False keeps the entries as they are: sums over the drawn neighbours only. An
            induced piece is not drawn row by row, so it needs False.
        dtype: type of the values.

    Returns:
        (n, n) in the local ids of ``sampled``; without values where all of them would be one.

    Raises:
        ValueError: rescaling an induced piece, or self-loops on top of stored ones.

    Example:
        >>> from leanlabel.rng import draw
        >>> star = from_edges(torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]]), 5)
        >>> piece = sample_neighbours(star, torch.tensor([0]), [2], lambda ids: draw(0, "demo", 0, ids))
        >>> weighted(piece, star, "sum").to_dense()[0].tolist()
        [0.0, 2.0, 2.0]
    """
    local, nodes = sampled.structure, sampled.nodes
    if rescale and sampled.induced:
        raise ValueError("an induced piece is not drawn row by row: rescale must be False")
    if loops and bool((local.rows == local.col).any()):
        raise ValueError("the structure stores self-loops already: loops must be False")
    count = (structure.crow[nodes + 1] - structure.crow[nodes]).to(dtype)
    base = from_edges(torch.stack([local.col, local.rows]), len(nodes), loops="add") if loops else local
    if rescale:
        factor = count / local.counts.clamp(min=1)
        own = base.rows == base.col if loops else torch.zeros_like(base.rows, dtype=torch.bool)
        base = base.with_values(torch.where(own, 1, factor[base.rows]))
    if how == "sum":
        return base
    count = (count + int(loops)).clamp(min=1)
    return (
        scaled(base, count.reciprocal(), None) if how == "mean" else scaled(base, root := count.rsqrt(), root)
    )


def _check(structure: Csr, seeds: Tensor, fanouts: Sequence[int]) -> None:
    size = structure.shape[0]
    if structure.shape[1] != size:
        raise ValueError(f"neighbours need a square structure, got {structure.shape}")
    if seeds.ndim != 1 or seeds.is_floating_point() or seeds.is_complex() or seeds.dtype == torch.bool:
        raise ValueError(f"seeds must be (B,) integers, got {tuple(seeds.shape)} of {seeds.dtype}")
    if len(seeds) and (int(seeds.min()) < 0 or int(seeds.max()) >= size):
        raise ValueError(f"seeds must be in [0, {size}), got {int(seeds.min())} to {int(seeds.max())}")
    repeated = len(seeds) - len(torch.unique(seeds))
    if repeated:
        raise ValueError(f"seeds must be different nodes, {repeated} of {len(seeds)} are repeats")
    if any(fanout < -1 for fanout in fanouts):
        raise ValueError(f"fanouts must be >= 0, or -1 for all neighbours, got {list(fanouts)}")


def _drawn(structure: Csr, frontier: Tensor, fanout: int, source: Source) -> tuple[Tensor, Tensor]:
    """Return, per drawn entry, the place of its row in the frontier and its place among the stored entries."""
    start = structure.crow[frontier]
    count = structure.crow[frontier + 1] - start
    many = count > fanout if fanout >= 0 else torch.zeros_like(count, dtype=torch.bool)
    few = (~many).nonzero()[:, 0]
    place, entry = _spans(structure.crow, frontier[few])
    if fanout < 1 or not bool(many.any()):
        return few[place], entry
    some = many.nonzero()[:, 0]
    uniform = source(frontier[some]).uniform((fanout,), torch.float64).to(structure.device)
    chosen = start[some] + _subsets(count[some], uniform)
    return torch.cat([few[place], some.repeat(fanout)]), torch.cat([entry, chosen.flatten()])


def _subsets(count: Tensor, uniform: Tensor) -> Tensor:
    """Draw k different positions in [0, count) per row, every subset equally likely.

    Step j of k draws p from 0..count - k + j, and takes count - k + j instead where p is taken already [Floyd, in
    Bentley and Floyd, "A sample of brilliance", CACM 1987]. The work does not depend on ``count``.

    Args:
        count: (n,) int64, at least k.
        uniform: (n, k) float64 in [0, 1).

    Returns:
        (k, n) int64.
    """
    size = uniform.shape[1]
    chosen = count.new_empty(size, len(count))
    for step, number in enumerate(uniform.T.contiguous()):
        last = count - (size - step)
        pick = (number * (last + 1)).long()
        chosen[step] = torch.where((chosen[:step] == pick).any(0), last, pick)
    return chosen


def _spans(crow: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """List the entries of some rows: for each the place of its row in ``rows``, and its own place."""
    start = crow[rows]
    count = crow[rows + 1] - start
    place = torch.repeat_interleave(count)
    first = start - (count.cumsum(0) - count)
    return place, first[place] + torch.arange(len(place), device=crow.device)


def _among(ids: Tensor, reached: Tensor) -> Tensor:
    """Say which ids are in an ascending list."""
    place = torch.searchsorted(reached, ids).clamp(max=len(reached) - 1)
    return reached[place] == ids
