"""Time and memory of a training on one graph, from plain formulas."""

from __future__ import annotations

from dataclasses import dataclass

from leanlabel.advice.graph_facts import GraphFacts
from leanlabel.models.graph import SPARSE_BELOW

SPEED = 60e9
"""Floating point operations a second that two processor cores are taken to do."""
OVERHEAD = 0.02
"""Seconds of an iteration whatever the size."""
FRAMEWORK = 0.45
"""GiB that torch takes before any data."""
FANOUTS = (10, 10)
"""Neighbours drawn per node and hop by the sampler."""


@dataclass(frozen=True)
class Cost:
    """What a training is expected to take.

    Args:
        seconds: of one iteration, on two cores.
        memory: peak, in GiB.
    """

    seconds: float
    memory: float


def estimate(
    facts: GraphFacts, width: int, projection: int, batch: int | None = None, share: float = 1
) -> Cost:
    """Estimate one iteration of a two-view contrast.

    With B anchors (N without a batch), width d, projection p, E edges, K stored feature values: contrast
    16 B² d operations (the two symmetric products by half and one whole, forward, again in the backward pass, and
    twice that for the gradients); encoder 6 (4 K d + 6 E d + 4 N d² + 4 B d p), two views, forward and backward.
    Memory: features, ten rows of width d per node and view with their gradients, edges, weights.

    Held against recorded runs: Amazon-Photo 4.9 s (2.4 measured on idle cores) and 0.66 GiB (0.71); Cora at width
    128 0.3 s (0.4 to 1.0 on busy ones); Coauthor-Physics 0.89 GiB (0.93). Expect a factor of two in time.

    Args:
        facts: of the graph.
        width: d >= 1.
        projection: p >= 1.
        batch: B.
        share: share of the nodes that is encoded at a time, in (0, 1].
    """
    n, e, d = facts.nodes, facts.edges, width
    anchors = n if batch is None else min(batch, n)
    sparse = facts.density < SPARSE_BELOW
    stored = n * facts.features * (facts.density if sparse else 1)
    encoder = share * (4 * stored * d + 6 * e * d + 4 * n * d**2) + 4 * anchors * d * projection
    operations = 16 * anchors**2 * d + 6 * encoder
    held = stored * (36 if sparse else 8) + share * 2 * n * 10 * d * 4 + e * 80 + facts.features * 2 * d * 16
    return Cost(OVERHEAD + operations / SPEED, FRAMEWORK + held / 2**30)


def sampled_share(nodes: int, batch: int) -> float:
    """Share of the nodes that neighbour sampling encodes at a time: at most B (1 + 10 + 100) of N.

    >>> sampled_share(1_000_000, 1_000), sampled_share(500, 100)
    (0.111, 1.0)
    """
    reached, hop = batch, batch
    for fanout in FANOUTS:
        hop *= fanout
        reached += hop
    return min(1.0, reached / nodes)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(0.234), duration(47), duration(400), duration(20_000)
    ('0.23 s', '47 s', '7 min', '5.6 h')
    """
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"
