"""Centralities, drop probabilities and views: literals, naive loops, relabelling, degenerate graphs."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanlabel.augment.graph import (
    AdaptiveAugmentor,
    centralities,
    degree,
    drop_probabilities,
    edge_importance,
    eigenvector,
    feature_importance,
    pagerank,
    reference_walk,
)
from leanlabel.data.graph_sampler import sample_neighbours
from leanlabel.rng import Draw, draw
from leanlabel.sparse import Csr, from_dense, from_edges, from_parts, normalised

# Edges 0-1, 0-2, 0-3, 1-2, 3-4, then the reverses in the same order.
FORWARD = [[0, 0, 0, 1, 3], [1, 2, 3, 2, 4]]
EDGES = torch.tensor([FORWARD[0] + FORWARD[1], FORWARD[1] + FORWARD[0]])
GRAPH = from_edges(EDGES, 5)
SPARSE_X = torch.tensor(
    [[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1]], dtype=torch.float64
)
DENSE_X = torch.tensor(
    [[0.5, -1, 0.2], [-0.3, 0.4, 0], [1.2, 0.1, -0.7], [0, -0.6, 0.9], [0.8, 0.3, 0.1]], dtype=torch.float64
)


def close(actual: Tensor, expected: list[float]) -> None:
    """Ten printed decimals: half a unit of the last one, or 1e-10 relative."""
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=6e-11)


def in_list_order(adjacency: Csr, per_entry: Tensor, edges: Tensor = EDGES) -> Tensor:
    place = {(int(u), int(v)): k for k, (u, v) in enumerate(zip(adjacency.col, adjacency.rows, strict=True))}
    return per_entry[[place[int(u), int(v)] for u, v in edges.T]]


def weights(importance: Tensor) -> Tensor:
    """The bare normalised score (s_max - s) / (s_max - mean)."""
    return drop_probabilities(importance, 1e-3, 1.0) / 1e-3


def star(leaves: int) -> Csr:
    hub, leaf = torch.zeros(leaves, dtype=torch.int64), torch.arange(1, leaves + 1)
    return from_edges(torch.stack([torch.cat([hub, leaf]), torch.cat([leaf, hub])]), leaves + 1)


def ring(nodes: int) -> Csr:
    ids = torch.arange(nodes)
    step = (ids + 1) % nodes
    return from_edges(torch.stack([torch.cat([ids, step]), torch.cat([step, ids])]), nodes)


def random_graph(nodes: int, edges: int, seed: int, undirected: bool = True) -> Csr:
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(0, nodes, (2, edges), generator=generator)
    return from_edges(torch.cat([pairs, pairs.flip(0)], 1) if undirected else pairs, nodes)


def as_networkx(graph: Csr) -> networkx.DiGraph:
    result = networkx.DiGraph()
    result.add_nodes_from(range(graph.shape[0]))
    result.add_edges_from(zip(graph.col.tolist(), graph.rows.tolist(), strict=True))
    return result


def test_values_degree() -> None:
    assert degree(GRAPH).tolist() == [3, 2, 2, 2, 1]
    sink = in_list_order(GRAPH, edge_importance(GRAPH, degree(GRAPH), "sink"))
    w, z = 1.1481700483, 0.5740850241
    close(weights(sink), [w, w, w, w, 3.1109797102, 0, 0, 0, w, w])
    close(drop_probabilities(sink, 0.5), [z, z, z, z, 0.7, 0, 0, 0, z, z])
    mean = in_list_order(GRAPH, edge_importance(GRAPH, degree(GRAPH), "mean"))
    close(weights(mean), [0, 0, 0, 1.5201152779, 3.4798847221] * 2)
    close(drop_probabilities(mean, 0.5), [0, 0, 0, 0.7, 0.7] * 2)


def test_values_eigenvector() -> None:
    phi = eigenvector(GRAPH)
    close(phi, [0.6037035302, 0.4971536809, 0.4971536809, 0.3424852843, 0.1546683966])
    close(phi.norm(), 1.0)  # pyright: ignore[reportArgumentType]
    close(GRAPH.to_dense(torch.float64)[0] @ phi / phi[0], 2.2143197433775)  # pyright: ignore[reportArgumentType]
    sink = in_list_order(GRAPH, edge_importance(GRAPH, phi, "sink"))
    w, v, z = 0.5934275604, 1.7323108096, 0.2967137802
    close(weights(sink), [w, w, v, w, 4.1616681393, 0, 0, 0, w, v])
    close(drop_probabilities(sink, 0.5), [z, z, 0.7, z, 0.7, 0, 0, 0, z, 0.7])


def test_values_pagerank() -> None:
    sigma = pagerank(GRAPH)
    close(sigma, [9.4467679372, 6.3940595633, 6.3940595633, 7.0866289611, 4.0118173085])
    close(sigma / sigma.sum(), [0.2834030381, 0.1918217869, 0.1918217869, 0.2125988688, 0.1203545193])
    sink = in_list_order(GRAPH, edge_importance(GRAPH, sigma, "sink"))
    z, y = 0.6521211653, 0.4802947936
    close(drop_probabilities(sink, 0.5), [z, z, y, z, 0.7, 0, 0, 0, z, y])


def test_values_reference_walk() -> None:
    close(reference_walk(GRAPH, 10), [1.4977552146, 0.9939862126, 0.9939862126, 1.0076406444, 0.5066317158])
    close(reference_walk(GRAPH, 200), [1.5, 1, 1, 1, 0.5])
    assert reference_walk(GRAPH, 0).tolist() == [1] * 5


def test_values_features() -> None:
    phi = degree(GRAPH)
    for x in (SPARSE_X, from_dense(SPARSE_X)):
        score = feature_importance(x, phi, "sparse")
        assert score.tolist() == [7, 5, 5, 1]
        close(weights(score), [0, 0.5139227413, 0.5139227413, 2.9721545175])
        close(drop_probabilities(score, 0.4), [0, 0.2055690965, 0.2055690965, 0.7])
    for x in (DENSE_X, from_dense(DENSE_X)):
        score = feature_importance(x, phi, "dense")
        close(score, [5.3, 5.5, 3.9])
        close(weights(score), [0.2918069243, 0, 2.7081930757])
        close(drop_probabilities(score, 0.4), [0.1167227697, 0, 0.7])
        assert torch.equal(feature_importance(x, phi), score)  # 13 of 15 entries: dense by itself
    assert torch.equal(feature_importance(SPARSE_X * -3, phi), feature_importance(SPARSE_X, phi, "sparse"))


@pytest.mark.parametrize("undirected", [True, False])
def test_reference_pagerank(undirected: bool) -> None:
    for seed in range(3):
        graph = random_graph(20, 25, seed, undirected)  # with isolated and dangling nodes
        expected = networkx.pagerank(as_networkx(graph), alpha=0.85, tol=1e-14, max_iter=1000)
        sigma = pagerank(graph)
        torch.testing.assert_close(
            sigma * 0.15 / 20,
            torch.tensor([expected[k] for k in range(20)], dtype=torch.float64),
            rtol=1e-9,
            atol=0,
        )


def test_reference_eigenvector_per_component() -> None:
    """Two components, one of them bipartite, against dense eigenvectors."""
    ring_edges = torch.stack([ring(6).col, ring(6).rows])
    star_edges = torch.stack([star(3).col, star(3).rows]) + 6
    graph = from_edges(torch.cat([ring_edges, star_edges], 1), 11)  # node 10 is isolated
    expected = torch.zeros(11, dtype=torch.float64)
    for part in (slice(0, 6), slice(6, 10)):
        vector = torch.linalg.eigh(graph.to_dense(torch.float64)[part, part])[1][:, -1].abs()
        expected[part] = vector * math.sqrt(len(vector) / 11)
    torch.testing.assert_close(eigenvector(graph), expected, rtol=1e-9, atol=1e-12)


def test_reference_eigenvector_directed() -> None:
    edges = torch.tensor([[0, 1, 2, 2, 3], [1, 2, 0, 3, 0]])
    values, vectors = torch.linalg.eig(from_edges(edges, 4).to_dense(torch.float64))
    expected = vectors[:, values.real.argmax()].real.abs()
    torch.testing.assert_close(eigenvector(from_edges(edges, 4)), expected, rtol=1e-9, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 30), st.booleans(), st.integers(0, 10**6))
def test_reference_relabelling(nodes: int, edges: int, undirected: bool, seed: int) -> None:
    graph = random_graph(nodes, edges, seed, undirected)
    generator = torch.Generator().manual_seed(seed + 1)
    order = torch.randperm(nodes, generator=generator)  # new id of each node
    moved = from_edges(order[torch.stack([graph.col, graph.rows])], nodes)
    x = torch.randn(nodes, 3, dtype=torch.float64, generator=generator)
    moved_x = torch.empty_like(x)
    moved_x[order] = x
    schemes = [degree, pagerank, lambda g: reference_walk(g, 10)]
    if undirected:
        schemes.append(lambda g: eigenvector(g, tolerance=1e-10, max_iterations=100_000))
    for centrality in schemes:
        here, there = centrality(graph), centrality(moved)
        torch.testing.assert_close(there[order], here, rtol=1e-6, atol=1e-9)
        original = torch.stack([graph.col, graph.rows])
        for how in ("mean", "sink"):
            p = drop_probabilities(edge_importance(graph, here, how), 0.4)
            # The same centrality values, moved: rounding differs otherwise, and equality has a threshold.
            carried = torch.empty_like(here)
            carried[order] = here
            q = drop_probabilities(edge_importance(moved, carried, how), 0.4)
            torch.testing.assert_close(in_list_order(moved, q, order[original]), p, rtol=1e-6, atol=1e-9)
            assert float(p.mean() if len(p) else 0) <= 0.4 + 1e-12
        score = feature_importance(x, here, "dense")
        torch.testing.assert_close(feature_importance(moved_x, there, "dense"), score, rtol=1e-6, atol=1e-9)


def augmentor(**settings: Any) -> AdaptiveAugmentor:
    graph = random_graph(60, 400, 5)
    x = (torch.rand(60, 30, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    return AdaptiveAugmentor(graph, x, **{"edge_rates": (0.3, 0.5), "feature_rates": (0.2, 0.4), **settings})


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("score", ["mean", "sink"])
def test_reference_view(independent: bool, score: Any) -> None:
    """A view equals the naive construction from its own draws, edge by edge."""
    views = augmentor(edge_score=score, independent_directions=independent)
    graph = random_graph(60, 400, 5)
    seen = views.view(1, draw(3, "views", 7))
    source = draw(3, "views", 7)
    number = source.uniform((graph.nnz if independent else graph.nnz // 2,))
    mask = source.uniform((30,))
    p = drop_probabilities(edge_importance(graph, degree(graph), score), 0.5).float()
    kept, pairs = [], {}
    ends = list(zip(graph.col.tolist(), graph.rows.tolist(), strict=True))
    for pair in sorted({(min(e), max(e)) for e in ends}):
        pairs[pair] = len(pairs)
    for k, (u, v) in enumerate(ends):
        chance = number[k if independent else pairs[min(u, v), max(u, v)]]
        if chance >= p[k]:
            kept.append((u, v))
    expected = normalised(from_edges(torch.tensor(kept).T, 60, loops="add"), "gcn")
    assert torch.equal(seen.adjacency.to_dense(), expected.to_dense())
    assert torch.equal(seen.adjacency.transpose().to_dense(), expected.to_dense().T)
    assert seen.adjacency.symmetric is (not independent and score == "mean")
    facts = views.facts
    assert facts["realised_edge_drop"][1] == pytest.approx(1 - len(kept) / graph.nnz)
    x = (torch.rand(60, 30, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    chance = drop_probabilities(feature_importance(x, degree(graph)), 0.4)
    assert torch.equal(seen.feature_mask, (mask >= chance).float())
    assert facts["realised_feature_drop"][1] == pytest.approx(1 - float(seen.feature_mask.mean()))


def keyed(ids: Tensor, t: int = 7) -> Draw:
    return draw(3, "views", t, ids)


class Counted(Draw):
    """A whole-batch draw whose n-th number is the first that belongs to the id n."""

    taken = 0

    def uniform(self, shape: Any = (), dtype: torch.dtype = torch.float32) -> Tensor:
        ids = torch.arange(self.taken, self.taken + shape[0])
        self.taken += len(ids)
        return keyed(ids).uniform(dtype=dtype)


def renumbered(whole: Csr, nodes: Tensor) -> tuple[Tensor, Csr]:
    """All of a graph with its nodes in another order: the place of each entry, and the structure."""
    local = torch.empty_like(nodes)
    local[nodes] = torch.arange(len(nodes))
    structure = from_edges(torch.stack([local[whole.col], local[whole.rows]]), len(nodes))
    return (local[whole.rows] * len(nodes) + local[whole.col]).argsort(), structure


@pytest.mark.parametrize("weighting", ["gcn", "mean", "sum"])
@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize("independent", [False, True])
def test_reference_view_of_everything(independent: bool, undirected: bool, weighting: Any) -> None:
    """All nodes in another order and all edges: the very view that the same numbers give of the whole graph."""
    graph, x = random_graph(60, 400, 5, undirected), torch.eye(60)[:, :30]
    nodes = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    edge, structure = renumbered(graph, nodes)
    views = AdaptiveAugmentor(
        graph,
        x,
        edge_rates=(0.3, 0.5),
        feature_rates=(0.2, 0.4),
        independent_directions=independent,
        loops=weighting == "gcn",
        weighting=weighting,
    )
    for k in (0, 1):
        expected = views.view(k, Counted(0, "", 0))
        found = views.view_of(k, nodes, edge, structure, keyed)
        assert torch.equal(found.adjacency.to_dense(), expected.adjacency.to_dense()[nodes][:, nodes])
        assert torch.equal(found.feature_mask, expected.feature_mask)
        assert found.adjacency.symmetric is expected.adjacency.symmetric


@pytest.mark.parametrize("induced", [False, True])
def test_reference_view_of_a_piece(induced: bool) -> None:
    """Edge by edge from the fate of each pair in the whole graph; degrees counted in what is left of the piece."""
    graph, views = random_graph(60, 400, 5), augmentor()
    edge, structure = renumbered(graph, torch.arange(60))
    everything = views.view_of(0, torch.arange(60), edge, structure, keyed)
    alive = everything.adjacency.to_dense() > 0
    for seeds in ([3, 50, 21], [50, 8]):
        piece = sample_neighbours(
            graph, torch.tensor(seeds), (3, 2), lambda ids: draw(0, "neighbours", 7, ids), induced=induced
        )
        view = views.view_of(0, piece.nodes, piece.edge, piece.structure, keyed)
        rows, col = piece.structure.rows, piece.structure.col
        stays = alive[piece.nodes[rows], piece.nodes[col]]
        assert 0 < int(stays.sum()) < len(stays)
        left = from_edges(torch.stack([col[stays], rows[stays]]), len(piece.nodes), loops="add")
        assert torch.equal(view.adjacency.to_dense(), normalised(left, "gcn").to_dense())
        assert torch.equal(view.adjacency.transpose().to_dense(), view.adjacency.to_dense().T)
        assert torch.equal(view.feature_mask, everything.feature_mask)
    other = views.view_of(0, torch.arange(60), edge, structure, lambda ids: keyed(ids, t=8))
    assert not torch.equal(other.adjacency.to_dense() > 0, alive)
    assert not torch.equal(other.feature_mask, everything.feature_mask)


def test_reference_view_of_rates() -> None:
    """Over many iterations every edge and feature is dropped with its own probability."""
    graph, views = random_graph(60, 400, 5), augmentor()
    edge, structure = renumbered(graph, torch.arange(60))
    times, kept, masks = 300, torch.zeros(60, 60), torch.zeros(30)
    for t in range(times):
        view = views.view_of(1, torch.arange(60), edge, structure, lambda ids, t=t: keyed(ids, t))
        kept += view.adjacency.to_dense() > 0
        masks += view.feature_mask
    proper = views.base.rows != views.base.col
    seen = (kept[graph.rows, graph.col], masks)
    for stayed, p in zip(
        seen, (views.edge_probability[1, proper], views.feature_probability[1]), strict=True
    ):
        deviation = (p * (1 - p) / times).sqrt()
        assert bool(((1 - stayed / times - p).abs() <= 5 * deviation + 1e-6).all())


@pytest.mark.parametrize("scheme", ["uniform", "degree", "pagerank", "eigenvector"])
def test_reference_rates(scheme: Any) -> None:
    """The realised mean rates over many views are the expected ones."""
    views = augmentor(scheme=scheme)
    realised = []
    for t in range(60):
        views.view(0, draw(0, "views", t))
        views.view(1, draw(0, "views", t))
        facts = views.facts
        rows = (facts["realised_edge_drop"], facts["realised_feature_drop"])
        realised.append([row[k] for row in rows for k in (0, 1)])
    facts = views.facts
    expected = torch.tensor([*facts["expected_edge_drop"], *facts["expected_feature_drop"]])
    torch.testing.assert_close(torch.tensor(realised).mean(0), expected, rtol=0, atol=0.03)
    assert facts["expected_edge_drop"][0] <= 0.3 + 1e-6
    assert facts["expected_edge_drop"][0] > 0.27


def test_values_uniform_is_constant() -> None:
    views = augmentor(scheme="uniform", edge_rates=(0.9, 0.1), feature_rates=(0.8, 0.0))
    proper = views.base.rows != views.base.col
    assert views.edge_probability[:, proper].unique(dim=1).flatten().tolist() == pytest.approx([0.9, 0.1])
    assert not views.edge_probability[:, ~proper].any()
    assert views.feature_probability.unique(dim=1).flatten().tolist() == pytest.approx([0.8, 0.0])


@pytest.mark.parametrize(
    ("level", "edges", "features"), [("topology", True, False), ("attribute", False, True)]
)
def test_values_level(level: Any, edges: bool, features: bool) -> None:
    views, whole = augmentor(level=level), augmentor()
    proper = views.base.rows != views.base.col
    assert (len(views.edge_probability[0, proper].unique()) > 1) is edges
    assert (len(views.feature_probability[0].unique()) > 1) is features
    part = "edge_probability" if edges else "feature_probability"
    assert torch.equal(getattr(views, part), getattr(whole, part))


def test_values_official_centralities() -> None:
    x = SPARSE_X
    kwargs: Any = {"edge_rates": (0.5,), "feature_rates": (0.4,), "edge_score": "sink", "loops": False}
    walk = AdaptiveAugmentor(GRAPH, x, scheme="pagerank", official=True, **kwargs)
    by_degree = AdaptiveAugmentor(GRAPH, x, scheme="degree", **kwargs)
    torch.testing.assert_close(walk.edge_probability, by_degree.edge_probability)
    expected = drop_probabilities(feature_importance(x, reference_walk(GRAPH, 10)), 0.4).float()
    assert torch.equal(walk.feature_probability[0], expected)
    eigen = AdaptiveAugmentor(GRAPH, x, scheme="eigenvector", official=True, **kwargs)
    sink = edge_importance(GRAPH, eigenvector(GRAPH) + 1e-8, "sink")
    assert torch.equal(eigen.edge_probability[0], drop_probabilities(sink, 0.5).float())
    directed = from_edges(torch.tensor(FORWARD), 5)
    symmetrised = AdaptiveAugmentor(directed, x, scheme="degree", official=True, **kwargs)
    sink = edge_importance(directed, degree(GRAPH), "sink")
    assert torch.equal(symmetrised.edge_probability[0], drop_probabilities(sink, 0.5).float())


def test_values_known_centralities() -> None:
    for scheme in ("degree", "pagerank", "eigenvector"):
        stored = centralities(random_graph(60, 400, 5), scheme)
        views, again = augmentor(scheme=scheme), augmentor(scheme=scheme, known=stored)
        assert torch.equal(views.edge_probability, again.edge_probability)
        assert torch.equal(views.feature_probability, again.feature_probability)
    first, second = (values * torch.linspace(1, 2, 60) for values in stored)
    other = augmentor(scheme="eigenvector", known=(first, second))
    assert not torch.equal(other.edge_probability, again.edge_probability)


def test_values_draws_are_shared_between_schemes() -> None:
    """A higher probability drops a superset: the numbers behind the masks are the same."""
    low = augmentor(scheme="uniform", edge_rates=(0.2, 0.2)).view(0, draw(0, "views", 0))
    high = augmentor(scheme="uniform", edge_rates=(0.5, 0.5)).view(0, draw(0, "views", 0))
    assert bool((low.adjacency.to_dense()[high.adjacency.to_dense() > 0] > 0).all())
    assert torch.equal(low.feature_mask, high.feature_mask)


def test_values_loops_and_weighting() -> None:
    views = augmentor(loops=False, weighting="mean")
    seen = views.view(0, draw(0, "views", 0)).adjacency
    assert not seen.to_dense().diagonal().any()
    rows = seen.to_dense().sum(1)
    torch.testing.assert_close(rows, (seen.counts > 0).float())
    assert torch.equal(views.whole().to_dense(), normalised(random_graph(60, 400, 5), "mean").to_dense())


def test_dtypes() -> None:
    for dtype in (torch.float32, torch.float64):
        p = drop_probabilities(torch.tensor([1, 2, 4], dtype=dtype), 0.5)
        assert p.dtype == dtype
    moved = augmentor().to(torch.float64)
    assert moved.base.crow.dtype == torch.int64
    seen, narrow = (a.view(0, draw(0, "views", 0)).adjacency for a in (moved, augmentor()))
    assert torch.equal(seen.col, narrow.col)
    assert seen.to_dense().dtype == torch.float64
    torch.testing.assert_close(seen.to_dense().float(), narrow.to_dense())


def test_degenerate_dead_feature() -> None:
    x = SPARSE_X.clone()
    x[:, 3] = 0
    score = feature_importance(x, degree(GRAPH))
    p = drop_probabilities(score, 0.4)
    assert p[3] == 0
    assert torch.equal(p[:3], drop_probabilities(score[:3], 0.4))  # the others as if it were not there
    views = AdaptiveAugmentor(GRAPH, x, edge_rates=(0.5,), feature_rates=(0.4,))
    assert views.facts["dead_features"] == 1


def test_degenerate_equal_centralities(caplog: pytest.LogCaptureFixture) -> None:
    graph = ring(8)
    for centrality in (degree(graph), pagerank(graph), eigenvector(graph), torch.ones(8)):
        noisy = centrality.double() * (1 + 1e-12 * torch.randn(8, dtype=torch.float64))
        for values in (centrality, noisy):
            p = drop_probabilities(edge_importance(graph, values, "mean"), 0.3)
            assert p.unique().tolist() == pytest.approx([0.3])
    views = AdaptiveAugmentor(graph, torch.eye(8), scheme="pagerank", edge_rates=(0.3,), feature_rates=(0.2,))
    assert views.facts["equal_edge_scores"]
    assert views.facts["equal_feature_scores"]
    assert "all edge scores are equal" in caplog.text
    assert drop_probabilities(torch.ones(3), 0.9).tolist() == pytest.approx(
        [0.7] * 3
    )  # the cut-off still holds


def test_degenerate_isolated_and_empty() -> None:
    graph = from_edges(EDGES, 8)  # the last three ids have no edges
    for centrality in (degree(graph), pagerank(graph), eigenvector(graph), reference_walk(graph, 10)):
        assert centrality.shape == (8,)
        assert bool(centrality.isfinite().all())
        assert bool((centrality >= 0).all())
    assert degree(graph)[5:].tolist() == [0, 0, 0]
    assert eigenvector(graph)[5:].tolist() == [0, 0, 0]
    x = torch.eye(8)
    assert feature_importance(x, degree(graph)).tolist() == [3, 2, 2, 2, 1, 0, 0, 0]
    assert drop_probabilities(feature_importance(x, degree(graph)), 0.3)[5:].tolist() == [0, 0, 0]
    empty = from_edges(torch.zeros(2, 0, dtype=torch.int64), 4)
    for scheme in ("uniform", "degree", "pagerank", "eigenvector"):
        views = AdaptiveAugmentor(empty, torch.eye(4), scheme=scheme, edge_rates=(0.5,), feature_rates=(0.5,))
        seen = views.view(0, draw(0, "views", 0))
        assert torch.equal(seen.adjacency.to_dense(), torch.eye(4))
        assert views.facts["isolated_nodes"] == 4
        assert views.facts["realised_edge_drop"] == {0: 0.0}
    nothing = AdaptiveAugmentor(from_edges(torch.zeros(2, 0, dtype=torch.int64), 0), torch.zeros(0, 3))
    assert nothing.view(0, draw(0, "views", 0)).adjacency.shape == (0, 0)


def test_degenerate_everything_dropped() -> None:
    views = augmentor(scheme="uniform", edge_rates=(1.0,), feature_rates=(1.0,))
    seen = views.view(0, draw(0, "views", 0))
    assert torch.equal(seen.adjacency.to_dense(), torch.eye(60))
    assert not seen.feature_mask.any()
    assert views.facts["realised_edge_drop"] == {0: 1.0}
    views = augmentor(edge_rates=(0.0,), feature_rates=(0.0,))
    seen = views.view(0, draw(0, "views", 0))
    assert torch.equal(seen.adjacency.to_dense(), views.whole().to_dense())
    assert bool(seen.feature_mask.all())


def test_degenerate_view_of() -> None:
    """No nodes, one node, no edges, no features, everything dropped."""
    views = augmentor(edge_rates=(1.0,), feature_rates=(0.5,), scheme="uniform")
    none, empty = torch.arange(0), torch.zeros(2, 0, dtype=torch.int64)
    assert views.view_of(0, none, none, from_edges(empty, 0), keyed).adjacency.shape == (0, 0)
    alone = views.view_of(0, torch.tensor([59]), none, from_edges(empty, 1), keyed)
    assert alone.adjacency.to_dense().tolist() == [[1.0]]
    edge, structure = renumbered(random_graph(60, 400, 5), torch.arange(60))
    dropped = views.view_of(0, torch.arange(60), edge, structure, keyed)
    assert torch.equal(dropped.adjacency.to_dense(), torch.eye(60))
    bare = AdaptiveAugmentor(GRAPH, torch.zeros(5, 0), edge_rates=(0.0,), feature_rates=(0.5,))
    pair = from_edges(torch.tensor([[1], [0]]), 2)
    seen = bare.view_of(0, torch.tensor([4, 3]), torch.tensor([9]), pair, keyed)
    assert seen.feature_mask.shape == (0,)
    torch.testing.assert_close(seen.adjacency.to_dense(), torch.tensor([[0.5, 0.5**0.5], [0.0, 1.0]]))


def test_degenerate_bipartite_converges() -> None:
    phi = eigenvector(star(4))
    close(phi, [math.sqrt(0.5)] + [math.sqrt(0.125)] * 4)


def test_degenerate_directed() -> None:
    """No in-edges at a node, no cycle anywhere: zeros stay out of the logarithm."""
    chain = from_edges(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4)
    assert degree(chain).tolist() == [0, 1, 1, 1]
    assert float(pagerank(chain).sum()) == pytest.approx(4 / 0.15)
    with pytest.warns(UserWarning, match="eigenvector centrality still moved by"):
        phi = eigenvector(chain, max_iterations=50)
    assert bool((phi >= 0).all())
    p = drop_probabilities(edge_importance(chain, torch.tensor([0.0, 0.0, 0.0, 1.0]), "sink"), 0.5)
    assert bool(p.isfinite().all())
    assert p[-1] == 0
    assert p[:-1].tolist() == pytest.approx([0.7, 0.7])
    views = AdaptiveAugmentor(chain, torch.eye(4), scheme="pagerank", edge_rates=(0.4,), feature_rates=(0.1,))
    assert views.draws == 3
    assert not views.facts["undirected"]
    assert views.facts["isolated_nodes"] == 0


def test_degenerate_all_zero_importance() -> None:
    assert drop_probabilities(torch.zeros(3), 0.5).tolist() == [0, 0, 0]
    assert drop_probabilities(torch.zeros(0), 0.5).tolist() == []
    assert drop_probabilities(torch.tensor([5.0]), 0.5).tolist() == [0.5]
    assert drop_probabilities(torch.tensor([0.0, 5.0, 1.0]), 0.0).tolist() == [0, 0, 0]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 1.5"):
        drop_probabilities(torch.ones(2), 1.5)
    with pytest.raises(ValueError, match=r"cutoff must be in \[0, 1\], got -1"):
        drop_probabilities(torch.ones(2), 0.5, -1)
    with pytest.raises(ValueError, match="finite and not negative"):
        drop_probabilities(torch.tensor([1.0, -1.0]), 0.5)
    with pytest.raises(ValueError, match="finite and not negative"):
        drop_probabilities(torch.tensor([1.0, math.nan]), 0.5)
    with pytest.raises(ValueError, match=r"damping must be in \[0, 1\), got 1"):
        pagerank(GRAPH, damping=1)
    with pytest.raises(ValueError, match=r"x \(4, 2\) does not have one row per node of 5"):
        AdaptiveAugmentor(GRAPH, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="one rate per view: 2 edge and 1 feature rates"):
        AdaptiveAugmentor(GRAPH, SPARSE_X, edge_rates=(0.1, 0.2), feature_rates=(0.1,))
    with pytest.raises(ValueError, match="scheme must be uniform, degree"):
        AdaptiveAugmentor(GRAPH, SPARSE_X, scheme="closeness")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 1.2"):
        AdaptiveAugmentor(GRAPH, SPARSE_X, scheme="uniform", edge_rates=(1.2,), feature_rates=(0.1,))
    with pytest.raises(ValueError, match="'edges' is none of both, topology, attribute"):
        AdaptiveAugmentor(GRAPH, SPARSE_X, level="edges")  # pyright: ignore[reportArgumentType]


def test_errors_view_of() -> None:
    pair, loop = (
        from_edges(torch.tensor([[1], [0]]), 2),
        from_edges(torch.zeros(2, 1).long(), 1, loops="keep"),
    )
    ends = torch.tensor([4, 3])  # the edge 3 -> 4 is the last of the ten stored entries
    wrong: list[tuple[Tensor, list[int], Csr]] = [
        (ends, [8], pair),
        (ends, [10], pair),
        (ends, [-1], pair),
        (ends, [9, 9], pair),
        (ends.flip(0), [9], pair),
        (torch.tensor([4]), [9], loop),
        (torch.tensor([4]), [10], loop),
    ]
    for loops in (True, False):
        views = AdaptiveAugmentor(GRAPH, SPARSE_X, loops=loops)
        views.view_of(0, ends, torch.tensor([9]), pair, keyed)
        for nodes, edge, structure in wrong:
            with pytest.raises(ValueError, match=rf"edge \({len(edge)},\) does not name the 1 entries"):
                views.view_of(0, nodes, torch.tensor(edge), structure, keyed)


def test_state() -> None:
    """Nothing to store: a rebuilt augmentor draws the same views, a copied one too."""
    views, again = augmentor(), augmentor()
    assert views.state_dict() == {}
    for k in (0, 1):
        for other in (again, pickle.loads(pickle.dumps(views))):
            first, second = views.view(k, draw(1, "views", 2)), other.view(k, draw(1, "views", 2))
            assert torch.equal(first.adjacency.col, second.adjacency.col)
            assert torch.equal(first.feature_mask, second.feature_mask)


@pytest.mark.real
def test_reference_on_real_graphs() -> None:
    root = os.environ.get("LEANLABEL_DATA")
    if not root:
        pytest.skip("LEANLABEL_DATA is not set")
    parts = np.load(Path(root) / "graphs" / "coauthor_physics.npz")
    x = from_parts(parts["x_indptr"], parts["x_indices"], parts["x_data"], tuple(parts["x_shape"]))
    graph = from_edges(torch.from_numpy(parts["edge_index"].astype("int64")), x.shape[0])
    phi = eigenvector(graph)
    quotient = float(phi @ _times(graph, phi))
    residual = (_times(graph, phi) - quotient * phi).norm()
    assert float(residual) < 1e-9 * quotient
    sigma = pagerank(graph)
    assert float(sigma.sum()) == pytest.approx(graph.shape[0] / 0.15, rel=1e-9)
    views = AdaptiveAugmentor(graph, x, scheme="eigenvector", edge_rates=(0.4, 0.1), feature_rates=(0.1, 0.4))
    seen = views.view(0, draw(0, "views", 0))
    assert seen.adjacency.symmetric
    facts = views.facts
    assert facts["realised_edge_drop"][0] == pytest.approx(facts["expected_edge_drop"][0], abs=0.01)
    assert facts["dead_features"] == 235


def _times(graph: Csr, vector: Tensor) -> Tensor:
    total = torch.zeros_like(vector)
    return total.index_add(0, graph.rows, vector[graph.col])
