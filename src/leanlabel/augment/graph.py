"""Graph views that keep what matters: drop probabilities from centralities, edge dropping, feature masking.

Nodes carry a centrality, computed once on the whole graph. Edges between unimportant nodes and features of
unimportant nodes are dropped more often than others [Zhu et al., "Graph contrastive learning with adaptive
augmentation", WWW 2021].
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from leanlabel.augment.centrality import degree, eigenvector, pagerank, reference_walk
from leanlabel.rng import Draw
from leanlabel.sparse import Csr, Weighting, from_edges, normalised, pair_ids, select, spmm

Scheme = Literal["uniform", "degree", "pagerank", "eigenvector"]
Level = Literal["both", "topology", "attribute"]
EdgeScore = Literal["auto", "mean", "sink"]
FeatureRule = Literal["auto", "sparse", "dense"]

# Log importances closer than this are one and the same: centralities are iterated to a finite tolerance, and
# the normalisation would blow its rest up into a random choice.
_EQUAL = 1e-9
# Smallest centrality of an edge's end as a share of the largest, so that no logarithm of zero meets the mean.
_FLOOR = 1e-8

log = logging.getLogger(__name__)


def edge_importance(adjacency: Csr, centrality: Tensor, how: Literal["mean", "sink"]) -> Tensor:
    """Score every stored edge by the centrality of its ends.

    "mean": (phi_u + phi_v) / 2, for undirected graphs; "sink": phi_v of the edge u -> v, for directed ones
    [WWW 2021, section 3.2]. Centralities below 1e-8 of the largest are raised to that.

    Args:
        adjacency: (N, N) structure without self-loops, row = target.
        centrality: (N,), >= 0.
        how: which ends count.

    Returns:
        (nnz,) in the order of the stored entries.
    """
    if len(centrality):
        centrality = centrality.clamp(min=float(centrality.max()) * _FLOOR)
    sink, source = centrality[adjacency.rows], centrality[adjacency.col]
    return sink if how == "sink" else (sink + source) / 2


def feature_importance(x: Csr | Tensor, centrality: Tensor, rule: FeatureRule = "auto") -> Tensor:
    """Score every feature by the centrality of the nodes that have it.

    "sparse": w_i = sum_u 1[x_ui != 0] phi_u; "dense": w_i = sum_u |x_ui| phi_u [WWW 2021, section 3.3].

    Args:
        x: (N, F) features.
        centrality: (N,), >= 0.
        rule: "auto" takes the dense rule when more than half of the entries of ``x`` are not zero.

    Returns:
        (F,) in the type of ``centrality``, 0 for a feature that no node has.
    """
    if isinstance(x, Csr):
        values = torch.ones(x.nnz) if x.values is None else x.values.cpu()
    else:
        values = x.cpu()
    if rule == "auto":
        filled = int(values.count_nonzero()) / max(1, x.shape[0] * x.shape[1])
        rule = "dense" if filled > 0.5 else "sparse"
    weight = (values.abs() if rule == "dense" else (values != 0)).to(centrality)
    if isinstance(x, Csr):
        return spmm(x.to("cpu").with_values(weight).transpose(), centrality)
    return weight.T @ centrality


def drop_probabilities(importance: Tensor, rate: float, cutoff: float = 0.7) -> Tensor:
    """Turn importances into drop probabilities around an overall rate.

    p = min((s_max - s) / (s_max - mean(s)) * rate, cutoff), s = log(importance) [WWW 2021, eq. 3 and 5]. The
    cut-off makes the mean probability at most ``rate``. An importance of zero (a feature that no node has)
    counts neither for the maximum nor for the mean and is never dropped. Equal importances give
    min(rate, cutoff) to all.

    Args:
        importance: (K,), >= 0.
        rate: overall drop rate, in [0, 1].
        cutoff: largest probability, in [0, 1].

    Returns:
        (K,) in [0, cutoff].

    Raises:
        ValueError: rate or cut-off out of range, or a negative or non-finite importance.

    Example:
        >>> drop_probabilities(torch.tensor([1.0, 10.0, 100.0, 0.0]), 0.25).tolist()
        [0.5, 0.25, 0.0, 0.0]
    """
    _check_shares(rate=rate, cutoff=cutoff)
    if len(importance) and not bool(((importance >= 0) & importance.isfinite()).all()):
        raise ValueError("importances must be finite and not negative")
    live = importance > 0
    result = torch.zeros_like(importance)
    if not bool(live.any()):
        return result
    score = importance[live].log()
    top = score.max()
    if _all_equal(importance):
        result[live] = min(rate, cutoff)
    else:
        result[live] = ((top - score) / (top - score.mean()) * rate).clamp(max=cutoff)
    return result


class View(NamedTuple):
    """One augmented view of a graph."""

    adjacency: Csr
    """(N, N), weighted for the encoder's convolution."""
    feature_mask: Tensor
    """(F,), 1 for a kept feature and 0 for a masked one; kept features are not rescaled."""


class AdaptiveAugmentor(nn.Module):
    """Draw views of one graph by dropping edges and masking features, rarely where nodes are central.

    Probabilities are computed once, on the CPU in float64, and follow the module to its device.

    Args:
        adjacency: (N, N) structure of :func:`leanlabel.sparse.from_edges`, row = target, self-loops ignored.
        x: (N, F) features.
        scheme: centrality; "uniform" uses the rates as they are, without cut-off (GRACE).
        level: what is adaptive: edges ("topology"), features ("attribute") or both. The rest is dropped
            uniformly, at its rate, without cut-off.
        edge_rates: overall edge drop rate of each view, in [0, 1].
        feature_rates: overall feature mask rate of each view, in [0, 1].
        cutoff: largest adaptive probability [0.7 in the official code].
        edge_score: "mean" of both ends, "sink", or "auto": mean for undirected graphs, else sink.
        independent_directions: drop the two directions of an undirected edge on their own, which makes the
            views directed, as the official code does. Else both share one draw.
        feature_rule: see :func:`feature_importance`.
        official: take the centralities of the official code: for "pagerank" 200 (edges) and 10 (features)
            steps of ``reference_walk``, for "eigenvector" an absolute 1e-8 added for edges, for "degree" the
            degree of the undirected version of the graph.
        loops: give every node a self-loop, never dropped.
        weighting: how the adjacency of a view is weighted, see :func:`leanlabel.sparse.normalised`.
        known: result of :func:`centralities` for the same graph, scheme and `official`; None computes it.
    """

    edge_probability: Tensor
    feature_probability: Tensor
    present: Tensor
    slot: Tensor

    def __init__(
        self,
        adjacency: Csr,
        x: Csr | Tensor,
        *,
        scheme: Scheme = "degree",
        level: Level = "both",
        edge_rates: Sequence[float] = (0.3, 0.4),
        feature_rates: Sequence[float] = (0.1, 0.0),
        cutoff: float = 0.7,
        edge_score: EdgeScore = "auto",
        independent_directions: bool = False,
        feature_rule: FeatureRule = "auto",
        official: bool = False,
        loops: bool = True,
        weighting: Weighting = "gcn",
        known: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        nodes, features = x.shape
        if nodes != adjacency.shape[0]:
            raise ValueError(f"x {tuple(x.shape)} does not have one row per node of {adjacency.shape[0]}")
        if len(edge_rates) != len(feature_rates):
            raise ValueError(
                f"one rate per view: {len(edge_rates)} edge and {len(feature_rates)} feature rates"
            )
        for rate in (*edge_rates, *feature_rates):
            _check_shares(rate=rate, cutoff=cutoff)
        for choice, legal in ((level, Level), (edge_score, EdgeScore), (feature_rule, FeatureRule)):
            if choice not in get_args(legal):
                raise ValueError(f"{choice!r} is none of {', '.join(get_args(legal))}")
        edges = torch.stack([adjacency.col, adjacency.rows]).cpu()
        plain = from_edges(edges, nodes)
        self.base = from_edges(edges, nodes, loops="add" if loops else "drop")
        self.weighting: Weighting = weighting
        self.loops = loops
        if edge_score == "auto":
            edge_score = "mean" if plain.symmetric else "sink"
        by_edge = scheme != "uniform" and level in ("both", "topology")
        by_feature = scheme != "uniform" and level in ("both", "attribute")

        for_edges, for_features = known or centralities(plain, scheme, official=official)
        edge_weight = edge_importance(plain, for_edges, edge_score)
        feature_weight = feature_importance(x, for_features, feature_rule)
        present = feature_importance(x, torch.ones(nodes), "sparse") > 0
        edge_p = _probabilities(edge_weight, edge_rates, cutoff, by_edge)
        feature_p = _probabilities(feature_weight, feature_rates, cutoff, by_feature)

        together = plain.symmetric and not independent_directions
        if together and edge_score == "mean":
            # Equal in exact arithmetic; vectorised logarithms may differ in the last bit between positions.
            edge_p = torch.maximum(edge_p, edge_p[:, plain.transpose_order])
        own_slot, self.draws = pair_ids(plain) if together else (torch.arange(plain.nnz), plain.nnz)
        # A self-loop reads the number behind the draws, which is 1: no probability reaches it.
        proper = self.base.rows != self.base.col
        slot = torch.full((self.base.nnz,), self.draws).masked_scatter_(proper, own_slot)
        chance = torch.zeros(len(edge_rates), self.base.nnz)
        chance[:, proper] = edge_p
        # Derived from the graph and constant, so not part of a checkpoint.
        self.register_buffer("slot", slot, persistent=False)
        self.register_buffer("edge_probability", chance, persistent=False)
        self.register_buffer("feature_probability", feature_p, persistent=False)
        self.register_buffer("present", present, persistent=False)

        linked = torch.bincount(plain.col, minlength=nodes) + plain.counts > 0
        self._known: dict[str, Any] = {
            "nodes": nodes,
            "edges": plain.nnz,
            "undirected": plain.symmetric,
            "isolated_nodes": nodes - int(linked.sum()),
            "dead_features": features - int(present.sum()),
            "equal_edge_scores": by_edge and _all_equal(edge_weight),
            "equal_feature_scores": by_feature and _all_equal(feature_weight),
            "expected_edge_drop": _means(edge_p),
            "expected_feature_drop": _means(feature_p[:, present]),
        }
        self._realised: dict[int, tuple[Tensor, Tensor]] = {}
        for part in ("edge", "feature"):
            if self._known[f"equal_{part}_scores"]:
                log.warning("all %s scores are equal: %ss are dropped uniformly", part, part)
        log.info("graph views: %s", self._known)

    def view(self, k: int, draw: Draw) -> View:
        """Draw the k-th view.

        The same numbers are consumed whatever the scheme: first one per edge or undirected pair, then one per
        feature, so that runs that differ in their scheme alone share their draws.

        Args:
            k: which pair of rates, 0 for the first view.
            draw: source of random numbers of this iteration, without ids.

        Returns:
            The weighted adjacency, with its transpose known, and the feature mask.
        """
        uniform = draw.uniform((self.draws,)).to(self.slot.device)
        keep = torch.cat([uniform, uniform.new_ones(1)])[self.slot] >= self.edge_probability[k]
        mask = draw.uniform((self.feature_probability.shape[1],)).to(self.slot.device)
        mask = (mask >= self.feature_probability[k]).float()
        part = select(self.base, keep)
        self._realised[k] = keep.sum(), mask[self.present].sum()
        return View(self._weighted(part), mask)

    def view_of(
        self, k: int, nodes: Tensor, edge: Tensor, structure: Csr, source: Callable[[Tensor], Draw]
    ) -> View:
        """Draw the k-th view of a piece of the graph, such as a sampled neighbourhood.

        Edges and undirected pairs have the drop probabilities and the numbers of the whole graph, and the features
        one mask, so that pieces of one iteration agree about every edge and feature that they share. Degrees are
        counted in the dropped piece: its weights estimate those of the whole dropped graph, closely where most
        neighbours are in the piece. A piece that is all of the graph gives a view of the graph.

        Args:
            k: which pair of rates, 0 for the first view.
            nodes: (n,) int64, global id of each local node.
            edge: (nnz,) int64, place of each entry of ``structure`` among the stored entries of the whole graph
                without its self-loops.
            structure: (n, n) in local ids, without self-loops.
            source: opens the random numbers of some ids: those of the edges or pairs, below ``draws``, and behind
                them those of the features.

        Returns:
            The weighted adjacency (n, n), and the feature mask.

        Raises:
            ValueError: ``edge`` does not name the entries of ``structure``, or one is a self-loop.
        """
        target, origin = nodes[structure.rows], nodes[structure.col]
        # Where every row holds a self-loop, one per row before this one and perhaps its own come first.
        place = edge + target + (origin > target).long() if self.loops else edge
        crow = self.base.crow
        fits = edge.shape == origin.shape and not bool((target == origin).any())
        fits = fits and bool(((crow[target] <= place) & (place < crow[target + 1])).all())
        if not fits or not torch.equal(self.base.col[place], origin):
            raise ValueError(
                f"edge {tuple(edge.shape)} does not name the {structure.nnz} entries of structure"
            )
        uniform = source(self.slot[place]).uniform().to(self.slot.device)
        keep = uniform >= self.edge_probability[k, place]
        ids = torch.arange(self.feature_probability.shape[1], device=self.slot.device) + self.draws
        mask = source(ids).uniform().to(self.slot.device)
        kept = torch.stack([structure.col[keep], structure.rows[keep]])
        part = from_edges(kept, len(nodes), loops="add" if self.loops else "drop")
        return View(self._weighted(part), (mask >= self.feature_probability[k]).float())

    def whole(self) -> Csr:
        """Return the undropped adjacency, weighted like a view; embeddings are computed on it."""
        return self._weighted(self.base)

    def _weighted(self, structure: Csr) -> Csr:
        # The module's own type, so that ``.double()`` gives float64 weights; never below float32.
        dtype = torch.promote_types(self.edge_probability.dtype, torch.float32)
        return normalised(structure, self.weighting, dtype)

    @property
    def facts(self) -> dict[str, Any]:
        """Counts of the graph, mean drop probabilities and, per view drawn, the realised drop rates.

        Rates are shares of the edges without self-loops and of the features that some node has.
        """
        edges, loops = self._known["edges"], self.base.nnz - self._known["edges"]
        live = int(self.present.sum())
        realised = sorted(self._realised.items())
        return {
            **self._known,
            "realised_edge_drop": {k: (edges + loops - int(n)) / max(1, edges) for k, (n, _) in realised},
            "realised_feature_drop": {k: (live - int(n)) / max(1, live) for k, (_, n) in realised},
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptiveAugmentor:
        super()._apply(fn, recurse)
        self.base = self.base.map(fn)
        return self


def centralities(plain: Csr, scheme: Scheme, *, official: bool = False) -> tuple[Tensor, Tensor]:
    """Compute the node centralities of a scheme, once for a graph.

    Args:
        plain: (N, N) structure of :func:`leanlabel.sparse.from_edges`, row = target, without self-loops.
        scheme: which centrality.
        official: those of the official code, see :class:`AdaptiveAugmentor`.

    Returns:
        Two (N,) float64 tensors: what scores edges, and what scores features.
    """
    if scheme == "degree":
        if official and not plain.symmetric:
            edges = torch.stack([plain.col, plain.rows])
            plain = from_edges(torch.cat([edges, edges.flip(0)], 1), plain.shape[0])
        value = degree(plain)
    elif scheme == "pagerank":
        if official:
            return reference_walk(plain, 200), reference_walk(plain, 10)
        value = pagerank(plain)
    elif scheme == "eigenvector":
        value = eigenvector(plain)
        return (value + 1e-8 if official else value), value
    elif scheme == "uniform":
        value = torch.ones(plain.shape[0], dtype=torch.float64)
    else:
        raise ValueError(f"scheme must be uniform, degree, pagerank or eigenvector, got {scheme!r}")
    return value, value


def _probabilities(weight: Tensor, rates: Sequence[float], cutoff: float, adaptive: bool) -> Tensor:
    """Return (views, K) float32."""
    if adaptive:
        rows = [drop_probabilities(weight, rate, cutoff) for rate in rates]
    else:
        rows = [torch.full_like(weight, rate) for rate in rates]
    return torch.stack(rows).float()


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def _all_equal(importance: Tensor) -> bool:
    score = importance[importance > 0].log()
    return len(score) > 0 and float(score.max() - score.min()) <= _EQUAL


def _means(rows: Tensor) -> list[float]:
    return [float(row.double().mean()) if len(row) else 0.0 for row in rows]
