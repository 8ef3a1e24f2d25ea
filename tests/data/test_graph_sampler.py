"""Sampled neighbourhoods: naive walks, all subsets alike, independence of the batch, exact and unbiased encoders."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel.data.graph_sampler import Sampled, Source, sample_neighbours, weighted
from leanlabel.models.graph import GraphEncoder
from leanlabel.rng import draw
from leanlabel.sparse import Csr, from_dense, from_edges, normalised, spmm, take_rows


def source(t: int = 0, seed: int = 0) -> Source:
    return lambda ids: draw(seed, "neighbours", t, ids)


def random_edges(nodes: int, edges: int, seed: int, undirected: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(0, nodes, (2, edges), generator=generator)
    return torch.cat([pairs, pairs.flip(0)], 1) if undirected else pairs


def named(piece: Sampled) -> set[tuple[int, int]]:
    """Entries as (target, source) in global ids."""
    rows, col = piece.nodes[piece.structure.rows], piece.nodes[piece.structure.col]
    return set(zip(rows.tolist(), col.tolist(), strict=True))


def check(piece: Sampled, whole: Csr, seeds: Tensor) -> None:
    """What holds for every piece: seeds first, ids unique, a proper matrix, entries that name the whole's."""
    local = piece.structure
    assert torch.equal(piece.nodes[: len(seeds)], seeds.long())
    assert len(piece.nodes.unique()) == len(piece.nodes)
    assert local.shape == (len(piece.nodes),) * 2
    assert local.crow[0] == 0
    assert int(local.crow[-1]) == local.nnz == len(piece.edge) == len(piece.edge.unique())
    key = local.rows * len(piece.nodes) + local.col
    assert bool((key[1:] > key[:-1]).all())
    assert torch.equal(whole.col[piece.edge], piece.nodes[local.col])
    assert torch.equal(whole.rows[piece.edge], piece.nodes[local.rows])


def drawn_by(node: int, whole: Csr, fanout: int, t: int) -> set[int]:
    """The neighbours that one node draws, by Floyd's algorithm with sets."""
    row = whole.col[whole.crow[node] : whole.crow[node + 1]].tolist()
    if fanout < 0 or len(row) <= fanout:
        return set(row)
    number = source(t)(torch.tensor([node])).uniform((fanout,), torch.float64)[0].tolist()
    chosen: set[int] = set()
    for step in range(fanout):
        last = len(row) - fanout + step
        pick = int(number[step] * (last + 1))
        chosen.add(last if pick in chosen else pick)
    return {row[k] for k in chosen}


def test_values_path() -> None:
    whole = from_edges(
        torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]), 5
    )  # 0 - 1 - 2 - 3, and 4 alone
    piece = sample_neighbours(whole, torch.tensor([3, 0]), [-1], source())
    assert piece.nodes.tolist() == [3, 0, 1, 2]
    assert piece.structure.to_dense().tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert piece.edge.tolist() == [5, 0]
    assert not piece.structure.symmetric
    piece = sample_neighbours(whole, torch.tensor([3, 0]), [-1], source(), induced=True)
    assert piece.structure.to_dense().tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    assert piece.structure.symmetric


def test_values_weighted() -> None:
    """A hub with four in-neighbours that draws two: entries of the whole graph, times two."""
    whole = from_edges(torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]]), 5)
    piece = sample_neighbours(whole, torch.tensor([0]), [2], source())
    rows: dict[Any, list[float]] = {
        ("sum", False, True): [0, 2, 2],
        ("sum", False, False): [0, 1, 1],
        ("sum", True, True): [1, 2, 2],
        ("mean", False, True): [0, 1 / 2, 1 / 2],
        ("mean", False, False): [0, 1 / 4, 1 / 4],
        ("mean", True, True): [1 / 5, 2 / 5, 2 / 5],
        ("gcn", True, True): [1 / 5, 2 / 5**0.5, 2 / 5**0.5],
        ("gcn", True, False): [1 / 5, 1 / 5**0.5, 1 / 5**0.5],
    }
    for (how, loops, rescale), row in rows.items():
        found = weighted(piece, whole, how, loops=loops, rescale=rescale, dtype=torch.float64).to_dense(
            torch.float64
        )
        expected = torch.zeros(3, 3, dtype=torch.float64)
        expected[0] = torch.tensor(row, dtype=torch.float64)
        if loops:
            expected[1, 1] = expected[2, 2] = 1
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_values_subsets_are_alike() -> None:
    """3 of 7 neighbours: all 35 subsets equally often, hence each neighbour with probability 3/7."""
    centres, size, fanout = 7000, 7, 3
    target = torch.arange(centres).repeat_interleave(size)
    neighbour = centres + torch.arange(size).repeat(centres)
    whole = from_edges(torch.stack([neighbour, target]), centres + size)
    piece = sample_neighbours(whole, torch.arange(centres), [fanout], source())
    assert bool((piece.structure.counts[:centres] == fanout).all())
    rows = piece.structure.col.view(centres, fanout)
    times = Counter(map(tuple, rows.tolist()))
    assert len(times) == 35
    mean = centres / 35
    chi_square = sum((n - mean) ** 2 / mean for n in times.values())
    assert chi_square < 65.2  # 34 degrees of freedom: exceeded once in a thousand
    single = torch.bincount(piece.nodes[piece.structure.col] - centres) / centres
    torch.testing.assert_close(single, torch.full((7,), 3 / 7), rtol=0, atol=0.03)


def test_values_batch_does_not_matter() -> None:
    """A node draws the same neighbours whoever is in the batch; another iteration or seed draws others."""
    whole = from_edges(random_edges(80, 800, 3), 80)
    shared, others = torch.tensor([5]), torch.tensor([40, 7, 5, 61])
    few, many = (sample_neighbours(whole, seeds, [4], source()) for seeds in (shared, others))
    assert {e for e in named(few) if e[0] == 5} == {e for e in named(many) if e[0] == 5}
    assert named(few) != named(sample_neighbours(whole, shared, [4], source(t=1)))
    assert named(few) != named(sample_neighbours(whole, shared, [4], source(seed=1)))


@given(
    st.integers(1, 15),
    st.integers(0, 60),
    st.booleans(),
    st.lists(st.integers(-1, 4), max_size=3),
    st.integers(0, 10**6),
)
def test_reference(nodes: int, edges: int, undirected: bool, fanouts: list[int], seed: int) -> None:
    """Against a walk with sets, self-loops included; the induced piece against the dense submatrix."""
    whole = from_edges(random_edges(nodes, edges, seed, undirected), nodes, loops="keep")
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randperm(nodes, generator=generator)[: max(1, nodes // 3)]
    expected: set[tuple[int, int]] = set()
    order = seeds.tolist()
    frontier = order
    for fanout in fanouts:
        found = {v: drawn_by(v, whole, fanout, t=2) for v in frontier}
        expected |= {(v, u) for v, row in found.items() for u in row}
        frontier = sorted(set(itertools.chain(*found.values())) - set(order))
        order = order + frontier
    piece = sample_neighbours(whole, seeds, fanouts, source(t=2))
    check(piece, whole, seeds)
    assert piece.nodes.tolist() == order
    assert named(piece) == expected
    induced = sample_neighbours(whole, seeds, fanouts, source(t=2), induced=True)
    check(induced, whole, seeds)
    assert induced.nodes.tolist() == order
    assert torch.equal(induced.structure.to_dense(), whole.to_dense()[order][:, order])
    assert induced.structure.symmetric is whole.symmetric


@pytest.mark.parametrize("convolution", ["gcn", "sage", "graphconv", "gin", "gat"])
@pytest.mark.parametrize("induced", [False, True])
@pytest.mark.parametrize("undirected", [False, True])
def test_reference_encoder(convolution: Any, induced: bool, undirected: bool) -> None:
    """With all neighbours, one hop per layer, the seeds' output and the gradient are those of the whole graph."""
    edges = random_edges(60, 90, 5, undirected)
    whole = from_edges(edges, 60)
    torch.manual_seed(0)
    encoder = GraphEncoder(7, 4, convolution=convolution).double()
    dense = torch.randn(60, 7, dtype=torch.float64) * (torch.rand(60, 7) < 0.4)
    seeds = torch.tensor([31, 4, 59, 8])
    piece = sample_neighbours(whole, seeds, (-1, -1), source(), induced=induced)
    assert len(piece.nodes) < 60
    loops = encoder.loops == "add"
    adjacency = weighted(
        piece, whole, encoder.weighting, loops=loops, rescale=not induced, dtype=torch.float64
    )
    expected = encoder(dense, encoder.prepare(edges, 60, torch.float64))[seeds]
    gradients = torch.autograd.grad(expected.square().sum(), list(encoder.parameters()))
    for x in (dense, from_dense(dense)):
        found = encoder(take_rows(x, piece.nodes), adjacency)[:4]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        seen = torch.autograd.grad(found.square().sum(), list(encoder.parameters()))
        torch.testing.assert_close(seen, gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("how", "loops"), [("gcn", True), ("mean", False), ("sum", False)])
def test_reference_unbiased(how: Any, loops: bool) -> None:
    """Averaged over iterations, a rescaled aggregate is that of the whole graph; without rescaling it is less."""
    edges = random_edges(40, 300, 6)
    whole = from_edges(edges, 40)
    x = torch.rand(40, dtype=torch.float64)
    full = normalised(from_edges(edges, 40, loops="add" if loops else "drop"), how, torch.float64)
    expected = spmm(full, x)
    seeds = torch.arange(40)
    pieces = [sample_neighbours(whole, seeds, [4], source(t)) for t in range(400)]
    found = torch.stack(
        [spmm(weighted(p, whole, how, loops=loops, dtype=torch.float64), x[p.nodes]) for p in pieces]
    )
    error = found.std(0) / len(pieces) ** 0.5
    assert bool(((found.mean(0) - expected).abs() < 4 * error + 1e-12).all())
    plain = [weighted(p, whole, how, loops=loops, rescale=False, dtype=torch.float64) for p in pieces[:20]]
    assert float(torch.stack([spmm(a, x) for a in plain]).mean()) < 0.6 * float(expected.mean())


def test_reference_take_rows() -> None:
    dense = torch.randn(9, 4) * (torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) < 0.5)
    for ids in (torch.tensor([8, 0, 3, 3]), torch.arange(0)):
        for x in (dense, from_dense(dense)):
            rows = take_rows(x, ids)
            assert torch.equal(rows.to_dense() if isinstance(rows, Csr) else rows, dense[ids])
    pattern = take_rows(from_edges(torch.tensor([[0, 2], [1, 1]]), 3), torch.tensor([1, 0]))
    assert isinstance(pattern, Csr)
    assert pattern.values is None
    assert pattern.to_dense().tolist() == [[1, 0, 1], [0, 0, 0]]


def test_gradient_take_rows() -> None:
    matrix = from_dense(torch.tensor([[1.0, 0.0], [2.0, 3.0]], dtype=torch.float64))
    assert matrix.values is not None
    values = matrix.values.clone().requires_grad_()
    rows = take_rows(matrix.with_values(values), torch.tensor([1, 1]))
    assert isinstance(rows, Csr)
    spmm(rows, torch.tensor([1.0, 10.0], dtype=torch.float64)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 2, 20]


def test_dtypes() -> None:
    whole = from_edges(random_edges(30, 100, 0), 30)
    wide, narrow = (
        sample_neighbours(whole, torch.tensor([3, 9], dtype=dtype), [2, 2], source())
        for dtype in (torch.int64, torch.int32)
    )
    assert torch.equal(wide.nodes, narrow.nodes)
    assert narrow.nodes.dtype == narrow.edge.dtype == torch.int64
    for dtype in (torch.float32, torch.float64):
        values = weighted(wide, whole, "gcn", loops=True, dtype=dtype).values
        assert values is not None
        assert values.dtype == dtype
    moved = narrow.to("meta")
    assert moved.nodes.device.type == moved.structure.device.type == moved.edge.device.type == "meta"


@pytest.mark.parametrize("induced", [False, True])
def test_degenerate(induced: bool) -> None:
    whole = from_edges(torch.tensor([[0, 1], [1, 0]]), 4)  # 2 and 3 are isolated
    for seeds, fanouts, nodes, entries in (
        ([3, 2], [2, -1], [3, 2], 0),
        ([1], [], [1], 0),
        ([0, 1], [], [0, 1], 2 * induced),
        ([1], [0, 5], [1], 0),
        ([], [2, 2], [], 0),
        ([2, 0], [3], [2, 0, 1], 1 + induced),
    ):
        piece = sample_neighbours(
            whole, torch.tensor(seeds, dtype=torch.int64), fanouts, source(), induced=induced
        )
        assert piece.nodes.tolist() == nodes
        assert piece.structure.nnz == entries
        check(piece, whole, piece.nodes[: len(seeds)])
        adjacency = weighted(piece, whole, "gcn", loops=True, rescale=not induced)
        assert adjacency.nnz == entries + len(nodes)
        assert bool(torch.isfinite(adjacency.to_dense()).all())
    for edges in (torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)):
        alone = from_edges(edges, 1, loops="keep")
        piece = sample_neighbours(alone, torch.tensor([0]), [1, -1], source(), induced=induced)
        assert piece.nodes.tolist() == [0]
        assert piece.structure.nnz == edges.shape[1]
    nothing = from_edges(torch.zeros(2, 0, dtype=torch.int64), 0)
    piece = sample_neighbours(nothing, torch.arange(0), [3], source(), induced=induced)
    assert piece.structure.shape == (0, 0)


def test_degenerate_loops() -> None:
    """A stored self-loop is a neighbour like any other; it may be missed, and brings no new node."""
    whole = from_edges(torch.tensor([[0, 1, 2], [0, 0, 0]]), 3, loops="keep")
    loops = 0
    for t in range(300):
        piece = sample_neighbours(whole, torch.tensor([0]), [1], source(t))
        assert piece.structure.nnz == 1
        loops += (0, 0) in named(piece)
        assert len(piece.nodes) == 1 + ((0, 0) not in named(piece))
    assert 60 < loops < 140
    whole = from_edges(torch.tensor([[0], [1]]), 2, loops="add")
    full = sample_neighbours(whole, torch.tensor([1]), [-1], source())
    assert torch.equal(
        weighted(full, whole, "gcn").to_dense()[0], normalised(whole, "gcn").to_dense()[1].flip(0)
    )


def test_errors() -> None:
    whole = from_edges(torch.tensor([[0, 1, 2], [1, 0, 2]]), 3, loops="keep")
    wrong: list[tuple[Any, Any, str]] = [
        ([0, 1, 0, 0], [2], "seeds must be different nodes, 2 of 4 are repeats"),
        ([0, 3], [2], r"seeds must be in \[0, 3\), got 0 to 3"),
        ([-1], [2], r"seeds must be in \[0, 3\), got -1 to -1"),
        ([0.0], [2], r"seeds must be \(B,\) integers, got \(1,\) of torch.float32"),
        ([[0]], [2], r"seeds must be \(B,\) integers, got \(1, 1\)"),
        ([True], [2], "torch.bool"),
        ([0], [2, -2], r"fanouts must be >= 0, or -1 for all neighbours, got \[2, -2\]"),
    ]
    for seeds, fanouts, message in wrong:
        with pytest.raises(ValueError, match=message):
            sample_neighbours(whole, torch.tensor(seeds), fanouts, source())
    with pytest.raises(ValueError, match=r"a square structure, got \(2, 3\)"):
        sample_neighbours(from_dense(torch.ones(2, 3)), torch.tensor([0]), [1], source())
    induced = sample_neighbours(whole, torch.tensor([0]), [1], source(), induced=True)
    with pytest.raises(ValueError, match="rescale must be False"):
        weighted(induced, whole, "gcn")
    looped = sample_neighbours(whole, torch.tensor([2]), [1], source())
    with pytest.raises(ValueError, match="stores self-loops already"):
        weighted(looped, whole, "gcn", loops=True)


def test_state() -> None:
    """Nothing to store: the same arguments give the same bits."""
    whole = from_edges(random_edges(80, 800, 3), 80)
    first, again = (
        sample_neighbours(whole, torch.tensor([5, 70]), [4, 2], source(t=9), induced=True) for _ in range(2)
    )
    assert torch.equal(first.nodes, again.nodes)
    assert torch.equal(first.edge, again.edge)
    assert torch.equal(first.structure.col, again.structure.col)


def test_ranks() -> None:
    """With equal fanouts a seed's output from the slice of a rank is that from the whole batch."""
    edges = random_edges(80, 600, 4)
    whole = from_edges(edges, 80)
    torch.manual_seed(0)
    encoder = GraphEncoder(6, 4, convolution="gcn").double()
    x = torch.randn(80, 6, dtype=torch.float64)

    def outputs(seeds: Tensor) -> Tensor:
        piece = sample_neighbours(whole, seeds, (3, 3), source())
        adjacency = weighted(piece, whole, "gcn", loops=True, dtype=torch.float64)
        return encoder(x[piece.nodes], adjacency)[: len(seeds)]

    seeds = torch.randperm(80)[:20]
    parts = torch.cat([outputs(part) for part in seeds.chunk(2)])
    torch.testing.assert_close(parts, outputs(seeds), rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
def test_reference_on_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    whole = from_edges(random_edges(500, 8000, 3), 500)
    here = sample_neighbours(whole, torch.tensor([5, 70]), [4, 2], source())
    there = sample_neighbours(whole.to("cuda"), torch.tensor([5, 70], device="cuda"), [4, 2], source())
    assert torch.equal(there.nodes.cpu(), here.nodes)
    assert torch.equal(there.edge.cpu(), here.edge)
    pairs = ((here, whole), (there, whole.to("cuda")))
    values = [weighted(piece, graph, "gcn", loops=True).to("cpu").to_dense() for piece, graph in pairs]
    torch.testing.assert_close(*values)


@pytest.mark.real
def test_reference_on_real_graph(data_root: Path) -> None:
    parts = np.load(data_root / "graphs" / "coauthor_physics.npz")
    edges = torch.from_numpy(parts["edge_index"].astype("int64"))
    nodes = int(parts["x_shape"][0])
    whole = from_edges(edges, nodes)
    seeds = torch.arange(0, nodes, 400)
    x = torch.randn(nodes, 8)
    encoder = GraphEncoder(8, 4)
    piece = sample_neighbours(whole, seeds, (-1, -1), source())
    check(piece, whole, seeds)
    found = encoder(x[piece.nodes], weighted(piece, whole, "gcn", loops=True))[: len(seeds)]
    expected = encoder(x, encoder.prepare(edges, nodes))[seeds]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
