"""Planted graphs: known classes, heavy-tailed activity, and dials for what edges and words tell."""

from __future__ import annotations

import numpy as np
import torch

from leanlabel.data.graphs import Graph, tidy_edges
from leanlabel.sparse import Csr


def planted_graph(
    nodes: int = 600,
    classes: int = 6,
    draws: int = 3000,
    crossing: float = 0.35,
    crossing_attachment: float = 0.0,
    topic_words: int = 15,
    noise_words: int = 600,
    topic_draws: int = 6,
    noise_draws: int = 14,
    activity_exponent: float = 1.5,
    activity_cap: float = 15.0,
    seed: int = 0,
) -> Graph:
    """Draw an undirected graph with planted classes in which active nodes are the informative ones.

    Node i has class i mod `classes` and an activity a_i = min(u^(-1/activity_exponent), activity_cap), u
    uniform: a Pareto tail, cut. rank_i in [0, 1] is its place among all activities. A draw joins, with
        probability 1 - crossing,
    two nodes of one class, both picked in proportion to activity; with probability crossing, two nodes of any
    class, both picked in proportion to a_i^crossing_attachment. Pairs of one node with itself and repeated
    pairs count once or not at all, so there are fewer edges than draws.
    Words: Binomial(topic_draws, 0.25 + 0.55 rank) words from the list of the node's class and
    Binomial(noise_draws, 0.95 - 0.6 rank) words from one list that all classes share; the row of counts is
    divided by its sum. A node that drew no word has a zero row.

    The dials:
        crossing: share of draws that ignore the classes; 0 = the classes are separate components, 1 = edges
            say nothing about the classes.
        crossing_attachment: which nodes the crossing edges prefer. 0: any node alike, so that they hit
            inactive nodes more than within-class edges do, and a scheme that spares edges of central nodes
            spares within-class edges. 1: active nodes, like the within-class edges: centrality says nothing
            about an edge. -1: inactive nodes, which tells the two kinds apart best while crossing edges are
            few; many of them raise the degree of the very nodes they prefer and undo it.
        topic_words: length of each class's own list; fewer words mean more overlap within a class.
        noise_words, noise_draws: a short shared list with many draws gives every node private words, a
            shortcut with which contrast can tell nodes apart without learning the classes.

    Only uniform doubles of a PCG64 generator are used, so that a seed means the same graph with every numpy
    version.

    Args:
        nodes: N >= classes.
        classes: C >= 1.
        draws: number of edge draws, >= 0.
        crossing: in [0, 1].
        crossing_attachment: in [-1, 1].
        topic_words: >= 1, per class.
        noise_words: >= 1, in all.
        topic_draws: >= 0, trials per node.
        noise_draws: >= 0, trials per node.
        activity_exponent: > 0; smaller means a heavier tail.
        activity_cap: >= 1, in multiples of the smallest activity.
        seed: >= 0.

    Returns:
        A Graph; columns [c * topic_words, (c + 1) * topic_words) of x are the topic words of class c, the
        last `noise_words` columns are the shared ones.

    Raises:
        ValueError: an argument is out of its range; the message names it.

    >>> graph = planted_graph(nodes=12, classes=3, draws=40, seed=1)
    >>> graph.num_nodes, graph.num_features, graph.undirected
    (12, 645, True)
    """
    _check(
        nodes=(nodes, classes, None),
        classes=(classes, 1, None),
        draws=(draws, 0, None),
        crossing=(crossing, 0, 1),
        crossing_attachment=(crossing_attachment, -1, 1),
        topic_words=(topic_words, 1, None),
        noise_words=(noise_words, 1, None),
        topic_draws=(topic_draws, 0, None),
        noise_draws=(noise_draws, 0, None),
        activity_cap=(activity_cap, 1, None),
        seed=(seed, 0, None),
    )
    if not activity_exponent > 0:
        raise ValueError(f"activity_exponent must be > 0, got {activity_exponent}")
    numbers = np.random.Generator(np.random.PCG64(seed))
    label = np.arange(nodes) % classes
    activity = np.minimum((1 - numbers.random(nodes)) ** (-1 / activity_exponent), activity_cap)
    edges = _edges(numbers, label, activity, draws, crossing, crossing_attachment)
    edge_index, undirected, _ = tidy_edges(torch.from_numpy(edges), nodes, undirected=True)

    # Capped activities tie; a stable sort ranks them by node number, which carries no class order beyond mod
    # C.
    rank = np.empty(nodes)
    rank[np.argsort(activity, kind="stable")] = np.arange(nodes) / max(nodes - 1, 1)
    topic = numbers.random((nodes, topic_draws)) < (0.25 + 0.55 * rank)[:, None]
    topic_word = label[:, None] * topic_words + _floor(numbers, (nodes, topic_draws), topic_words)
    noise = numbers.random((nodes, noise_draws)) < (0.95 - 0.6 * rank)[:, None]
    noise_word = classes * topic_words + _floor(numbers, (nodes, noise_draws), noise_words)
    x = _counts(
        np.concatenate([topic, noise], 1),
        np.concatenate([topic_word, noise_word], 1),
        classes * topic_words + noise_words,
    )
    return Graph(
        x=x,
        edge_index=edge_index,
        y=torch.from_numpy(label.astype(np.int64)),
        num_nodes=nodes,
        name=f"planted-{seed}",
        undirected=undirected,
        class_names=[f"topic {c}" for c in range(classes)],
    )


def _edges(
    numbers: np.random.Generator,
    label: np.ndarray,
    activity: np.ndarray,
    draws: int,
    crossing: float,
    attachment: float,
) -> np.ndarray:
    """(2, draws) int64: within-class pairs by activity, crossing pairs by activity ** attachment."""
    first, second = numbers.random(draws), numbers.random(draws)
    crosses = numbers.random(draws) < crossing
    order = np.argsort(
        label, kind="stable"
    )  # classes become runs, so that one cumulative sum serves all of them
    ends = np.cumsum(activity[order])
    left = _pick(ends, first)
    runs = np.searchsorted(label[order], np.arange(label.max() + 2))
    low, high = runs[label[order][left]], runs[label[order][left] + 1]
    before = np.where(low > 0, ends[low - 1], 0.0)
    right = np.searchsorted(ends, before + second * (ends[high - 1] - before), side="right")
    within = np.stack([order[left], order[np.clip(right, low, high - 1)]])
    preference = np.cumsum(activity**attachment)
    between = np.stack([_pick(preference, first), _pick(preference, second)])
    return np.where(crosses, between, within).astype(np.int64)


def _pick(ends: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    return np.minimum(np.searchsorted(ends, uniform * ends[-1], side="right"), len(ends) - 1)


def _floor(numbers: np.random.Generator, shape: tuple[int, int], high: int) -> np.ndarray:
    return np.minimum((numbers.random(shape) * high).astype(np.int64), high - 1)


def _counts(used: np.ndarray, word: np.ndarray, width: int) -> Csr:
    """Count each row's used words and divide by the row's sum."""
    nodes = len(used)
    row = np.broadcast_to(np.arange(nodes)[:, None], used.shape)[used]
    key, count = np.unique(row * width + word[used], return_counts=True)
    total = np.bincount(key // width, weights=count, minlength=nodes)
    crow = np.zeros(nodes + 1, dtype=np.int64)
    np.cumsum(np.bincount(key // width, minlength=nodes), out=crow[1:])
    return Csr(
        crow=torch.from_numpy(crow),
        col=torch.from_numpy(key % width),
        values=torch.from_numpy((count / total[key // width]).astype(np.float32)),
        shape=(nodes, width),
    )


def _check(**limits: tuple[float, float, float | None]) -> None:
    for name, (value, low, high) in limits.items():
        if not value >= low or (high is not None and value > high):
            upper = "" if high is None else f" and <= {high}"
            raise ValueError(f"{name} must be >= {low}{upper}, got {value}")
