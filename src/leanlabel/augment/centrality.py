"""Node centralities by sparse products, in float64 on the CPU, so the same wherever the graph lives."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from leanlabel.sparse import Csr, components, scaled, spmm


def degree(adjacency: Csr) -> Tensor:
    """Count each node's in-edges; the degree of an undirected graph.

    Args:
        adjacency: (N, N) structure of :func:`leanlabel.sparse.from_edges`, row = target.

    Returns:
        (N,) float64 on the CPU, 0 for a node without in-edges.
    """
    return adjacency.counts.cpu().double()


def pagerank(
    adjacency: Csr, *, damping: float = 0.85, tolerance: float = 1e-12, max_iterations: int = 10_000
) -> Tensor:
    """Rank nodes by a random surfer that follows out-edges and sometimes restarts anywhere.

    sigma = damping * P sigma + 1, P_vu = 1 / outdegree(u) for every edge u -> v [Zhu et al., WWW 2021,
    section 3.2]. A node without out-edges hands its rank to all nodes in equal parts, as a surfer who
    restarts; hence sum(sigma) = N / (1 - damping) on every graph.

    Args:
        adjacency: (N, N) structure, row = target.
        damping: share of followed edges, in [0, 1).
        tolerance: largest relative change (L1) of the last iteration.
        max_iterations: bound on the iterations; a warning is given when it is reached.

    Returns:
        (N,) float64 on the CPU, at least 1.

    Raises:
        ValueError: damping out of range.

    Example:
        >>> from leanlabel.sparse import from_edges
        >>> path = from_edges(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)
        >>> [round(value, 4) for value in pagerank(path).tolist()]
        [5.1351, 9.7297, 5.1351]
    """
    if not 0 <= damping < 1:
        raise ValueError(f"damping must be in [0, 1), got {damping}")
    walk, dangling = _walk(adjacency)
    nodes = adjacency.shape[0]

    def step(sigma: Tensor) -> Tensor:
        return damping * (spmm(walk, sigma) + sigma[dangling].sum() / max(1, nodes)) + 1

    start = torch.full((nodes,), 1 / (1 - damping), dtype=torch.float64)
    return _iterate(step, start, tolerance, max_iterations, "PageRank")


def eigenvector(adjacency: Csr, *, tolerance: float = 1e-12, max_iterations: int = 10_000) -> Tensor:
    """Rank nodes by the rank of those that point to them: the principal eigenvector of the adjacency.

    lambda phi_v = sum of phi_u over edges u -> v. Each weakly connected component is iterated on its own,
    with A + I (the shift stops the oscillation of bipartite components), and its squared L2 norm is its share
    of all nodes. So a connected graph has unit L2 norm, and no component is blotted out by a denser one.

    Args:
        adjacency: (N, N) structure, row = target.
        tolerance: largest change of a component's unit vector (L2) in the last iteration.
        max_iterations: bound on the iterations; a warning is given when it is reached (long chains and
            directed graphs without cycles converge slowly).

    Returns:
        (N,) float64 on the CPU, never negative; 0 for nodes without edges.
    """
    adjacency = adjacency.to("cpu")
    label, count = components(adjacency)
    size = torch.bincount(label, minlength=count).double()
    with_edges = (adjacency.counts + torch.bincount(adjacency.col, minlength=adjacency.shape[0])) > 0

    def unit(vector: Tensor) -> Tensor:
        square = torch.zeros(count, dtype=torch.float64).index_add_(0, label, vector.square())
        return vector / square.sqrt().clamp(min=1e-300)[label]

    def step(vector: Tensor) -> Tensor:
        return unit(spmm(adjacency, vector) + vector)

    def change(new: Tensor, old: Tensor) -> float:
        square = torch.zeros(count, dtype=torch.float64).index_add_(0, label, (new - old).square())
        return float(square.max().sqrt())

    start = unit(with_edges.double())
    vector = _iterate(step, start, tolerance, max_iterations, "eigenvector centrality", change)
    return vector * (size / size.sum()).sqrt()[label]


def reference_walk(adjacency: Csr, iterations: int, *, damping: float = 0.85) -> Tensor:
    """Run the recursion that the published code calls PageRank: a lazy random walk without restarts.

    x <- (1 - damping) x + damping P x from ones [official code]. On a connected undirected graph it converges
    to N degree / 2m, that is, to the degree.

    Args:
        adjacency: (N, N) structure, row = target.
        iterations: number of steps, >= 0; the published code takes 200 for edges and 10 for features.
        damping: share of the moving walkers.

    Returns:
        (N,) float64 on the CPU.
    """
    walk, _ = _walk(adjacency)
    x = torch.ones(adjacency.shape[0], dtype=torch.float64)
    for _ in range(iterations):
        x = (1 - damping) * x + damping * spmm(walk, x)
    return x


def _walk(adjacency: Csr) -> tuple[Csr, Tensor]:
    """Return the column-stochastic P (float64, CPU) and the mask (N,) of nodes without out-edges."""
    adjacency = adjacency.to("cpu").with_values(None)
    out = torch.bincount(adjacency.col, minlength=adjacency.shape[0]).double()
    return scaled(adjacency, None, out.clamp(min=1).reciprocal()), out == 0


def _iterate(
    step: Callable[[Tensor], Tensor],
    vector: Tensor,
    tolerance: float,
    max_iterations: int,
    name: str,
    change: Callable[[Tensor, Tensor], float] | None = None,
) -> Tensor:
    """Repeat ``step`` until ``change(new, old)``, by default the relative L1 change, is small enough."""
    moved = 0.0
    for _ in range(max_iterations if len(vector) else 0):
        previous, vector = vector, step(vector)
        if change is None:
            moved = float((vector - previous).abs().sum() / vector.abs().sum())
        else:
            moved = change(vector, previous)
        if moved <= tolerance:
            return vector
    if moved > tolerance:
        text = (
            f"{name} still moved by {moved:.1e} after {max_iterations} iterations (tolerance {tolerance:.0e})"
        )
        warnings.warn(text, stacklevel=3)
    return vector
