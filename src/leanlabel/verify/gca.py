"""Cases of GCA: five nodes whose centralities, probabilities, loss, gradient and embeddings were computed by hand or by
independent scripts.

The graph has the undirected edges 0-1, 0-2, 0-3, 1-2 and 3-4, given as these five directions, then the reverse ones in
the same order; answers per edge stand in that order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from leanlabel.augment.graph import (
    degree,
    drop_probabilities,
    edge_importance,
    eigenvector,
    feature_importance,
    pagerank,
    reference_walk,
)
from leanlabel.losses.contrastive import two_view_contrast
from leanlabel.models.graph import GraphConvolution, GraphEncoder
from leanlabel.sparse import Csr, from_dense, from_edges
from leanlabel.verify.case import Case, computing_in, wide

WEB = "Zhu et al., WWW 2021, {}; in float64 by an independent script"
CODE = "{} of the official code; in float64 by an independent script"
RATE, FEATURE_RATE = 0.5, 0.4
# So low that no probability reaches the cut-off: what remains is the normalised score itself.
LOW = 0.125

FORWARD = torch.tensor([[0, 0, 0, 1, 3], [1, 2, 3, 2, 4]])
EDGES = torch.cat([FORWARD, FORWARD.flip(0)], 1)
NODES = 5
WORDS = [[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1]]
DENSE = [[0.5, -1, 0.2], [-0.3, 0.4, 0], [1.2, 0.1, -0.7], [0, -0.6, 0.9], [0.8, 0.3, 0.1]]
FIRST = [[1, 0], [0.6, 0.8], [0, 2]]
SECOND = [[2, 0.5], [0.5, 0.5], [-1, 1]]
TAU = 0.5
SHARP = 0.003
"""A temperature at which sums of exponentials leave the range of every type but float64."""


def cases() -> list[Case]:
    """All cases of GCA."""
    return [
        *_edge_cases(),
        *_centrality_cases(),
        *_feature_cases(),
        *_loss_cases(),
        *_equal_cases(),
        *_chunk_cases(),
        *_encoder_cases(),
    ]


def _answer(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _case(name: str, run: Callable[[torch.device, torch.dtype], Tensor], values: list, source: str) -> Case:
    return Case("gca", name, run, _answer(values), source)


def _graph() -> Csr:
    return from_edges(EDGES, NODES)


def _in_list_order(per_entry: Tensor) -> Tensor:
    """Values of stored entries in the order in which the edges are listed above."""
    key = EDGES[1] * NODES + EDGES[0]  # a stored entry is (row = target, column = source)
    return per_entry[torch.argsort(torch.argsort(key)).to(per_entry.device)]


def _edge_run(
    centrality: Callable[[Csr], Tensor], how: Literal["mean", "sink"], rate: float, cutoff: float
) -> Callable[[torch.device, torch.dtype], Tensor]:
    """Probabilities on the device; centralities are float64 on the CPU wherever the graph lives."""

    def run(device: torch.device, dtype: torch.dtype) -> Tensor:
        graph = _graph()
        importance = edge_importance(graph, centrality(graph), how).to(device, wide(dtype))
        return _in_list_order(drop_probabilities(importance, rate, cutoff)) / (rate if cutoff == 1 else 1)

    return run


def _edge_cases() -> list[Case]:
    w, z = 1.1481700483, 0.5740850241
    e, v, p = 0.5934275604, 1.7323108096, 0.2967137802
    r, s = 0.6521211653, 0.4802947936
    table: list[tuple[str, Callable[[Csr], Tensor], Literal["mean", "sink"], list, list | None]] = [
        (
            "degree, sink",
            degree,
            "sink",
            [z, z, z, z, 0.7, 0, 0, 0, z, z],
            [w, w, w, w, 3.1109797102, 0, 0, 0, w, w],
        ),
        (
            "degree, mean of both ends",
            degree,
            "mean",
            [0, 0, 0, 0.7, 0.7] * 2,
            [0, 0, 0, 1.5201152779, 3.4798847221] * 2,
        ),
        (
            "eigenvector, sink",
            eigenvector,
            "sink",
            [p, p, 0.7, p, 0.7, 0, 0, 0, p, 0.7],
            [e, e, v, e, 4.1616681393, 0, 0, 0, e, v],
        ),
        ("PageRank, sink", pagerank, "sink", [r, r, s, r, 0.7, 0, 0, 0, r, s], None),
    ]
    found = []
    for name, centrality, how, probabilities, scores in table:
        run = _edge_run(centrality, how, RATE, 0.7)
        source = WEB.format("section 3.2, eq. 3")
        found.append(_case(f"edge drop probabilities: {name}", run, probabilities, source))
        if scores is not None:
            run = _edge_run(centrality, how, LOW, 1.0)
            found.append(_case(f"normalised edge scores: {name}", run, scores, source))
    return found


def _centrality_cases() -> list[Case]:
    def moved(compute: Callable[[Csr], Tensor]) -> Callable[[torch.device, torch.dtype], Tensor]:
        return lambda device, dtype: compute(_graph()).to(device, wide(dtype))

    def eigenvalue(graph: Csr) -> Tensor:
        phi = eigenvector(graph)
        return (graph.to_dense(torch.float64) @ phi).norm()[None]

    sigma = [9.4467679372, 6.3940595633, 6.3940595633, 7.0866289611, 4.0118173085]
    shares = [0.2834030381, 0.1918217869, 0.1918217869, 0.2125988688, 0.1203545193]
    phi = [0.6037035302, 0.4971536809, 0.4971536809, 0.3424852843, 0.1546683966]
    ten = [1.4977552146, 0.9939862126, 0.9939862126, 1.0076406444, 0.5066317158]
    table: list[tuple[str, Callable[[Csr], Tensor], list, str]] = [
        ("degree", degree, [3, 2, 2, 2, 1], "counted by hand"),
        ("eigenvector centrality", eigenvector, phi, WEB.format("section 3.2")),
        ("eigenvalue", eigenvalue, [2.2143197433775], WEB.format("section 3.2")),
        ("PageRank", pagerank, sigma, WEB.format("section 3.2")),
        ("PageRank as shares", lambda g: pagerank(g) / pagerank(g).sum(), shares, WEB.format("section 3.2")),
        ("walk of 10 steps", lambda g: reference_walk(g, 10), ten, CODE.format("PageRank")),
        ("walk of 200 steps", lambda g: reference_walk(g, 200), [1.5, 1, 1, 1, 0.5], CODE.format("PageRank")),
    ]
    return [_case(name, moved(compute), values, source) for name, compute, values, source in table]


def _feature_cases() -> list[Case]:
    def run(
        x: list, rule: Literal["sparse", "dense"], stored: bool, rate: float, cutoff: float
    ) -> Callable[[torch.device, torch.dtype], Tensor]:
        def compute(device: torch.device, dtype: torch.dtype) -> Tensor:
            features = torch.tensor(x, dtype=torch.float64)
            importance = feature_importance(
                from_dense(features) if stored else features, degree(_graph()), rule
            )
            found = drop_probabilities(importance.to(device, wide(dtype)), rate, cutoff)
            return found / (rate if cutoff == 1 else 1)

        return compute

    table: list[tuple[list, Literal["sparse", "dense"], list, list]] = [
        (
            WORDS,
            "sparse",
            [0, 0.2055690965, 0.2055690965, 0.7],
            [0, 0.5139227413, 0.5139227413, 2.9721545175],
        ),
        (DENSE, "dense", [0.1167227697, 0, 0.7], [0.2918069243, 0, 2.7081930757]),
    ]
    found = []
    for x, rule, probabilities, scores in table:
        source = WEB.format("section 3.3, eq. 5")
        for stored, how in ((False, "dense storage"), (True, "sparse storage")):
            found += [
                _case(
                    f"feature mask probabilities: {rule} rule, {how}",
                    run(x, rule, stored, FEATURE_RATE, 0.7),
                    probabilities,
                    source,
                ),
                _case(
                    f"normalised feature scores: {rule} rule, {how}",
                    run(x, rule, stored, LOW, 1.0),
                    scores,
                    source,
                ),
            ]
    return found


def _views(device: torch.device, dtype: torch.dtype, *views: list) -> list[Tensor]:
    return [torch.tensor(view, device=device, dtype=dtype, requires_grad=True) for view in views]


def _loss_cases() -> list[Case]:
    def rows(device: torch.device, dtype: torch.dtype) -> Tensor:
        first, second = _views(device, dtype, FIRST, SECOND)
        return two_view_contrast(first, second, tau=TAU, reduction="none")

    def mean(device: torch.device, dtype: torch.dtype) -> Tensor:
        first, second = _views(device, dtype, FIRST, SECOND)
        return two_view_contrast(first, second, tau=TAU)[None]

    def gradient(device: torch.device, dtype: torch.dtype) -> Tensor:
        first, second = _views(device, dtype, FIRST, SECOND)
        return torch.autograd.grad(two_view_contrast(first, second, tau=TAU), first)[0]

    ab, ba = [0.809368876, 1.091127951, 1.3460383685], [1.0157167844, 1.1122841363, 0.5374841967]
    slope = [[0, 0.1614807415], [-0.0469757064, 0.0352317799], [0.2946568355, 0]]
    source = WEB.format("objective J")
    return [
        _case("contrast of every row", rows, [*ab, *ba], source),
        _case("contrast", mean, [0.985336718823], source),
        _case("gradient of the contrast", gradient, slope, source),
    ]


def _equal_cases() -> list[Case]:
    """All rows alike: every row has the same similarity with all 2N - 1 others."""

    def run(count: int) -> Callable[[torch.device, torch.dtype], Tensor]:
        def compute(device: torch.device, dtype: torch.dtype) -> Tensor:
            same = torch.ones(count, 3, device=device, dtype=dtype)
            return two_view_contrast(same, same, tau=0.1)[None]

        return compute

    return [
        _case(f"equal similarities, {n} nodes", run(n), [math.log(2 * n - 1)], "objective J: log(2N - 1)")
        for n in (2, 40)
    ]


def _chunk_cases(count: int = 12, width: int = 4) -> list[Case]:
    """The streamed contrast against all similarities at once."""
    # Eighths are exact in every precision, so that what is compared is the arithmetic and not the input.
    ids = torch.arange(2 * count * width).reshape(2, count, width)
    numbers = ((ids * 37 % 29 - 14).double() / 8).tolist()

    def value(tau: float, chunk: int | None) -> Callable[[torch.device, torch.dtype], Tensor]:
        return lambda device, dtype: two_view_contrast(
            *_views(device, dtype, *numbers), tau=tau, chunk=chunk
        )[None]

    def slopes(chunk: int) -> Callable[[torch.device, torch.dtype], Tensor]:
        def compute(device: torch.device, dtype: torch.dtype) -> Tensor:
            views = _views(device, dtype, *numbers)
            return torch.stack(torch.autograd.grad(two_view_contrast(*views, tau=TAU, chunk=chunk), views))

        return compute

    first, second = _views(torch.device("cpu"), torch.float64, *numbers)
    answer = _naive(first, second, TAU)
    slope = torch.stack(torch.autograd.grad(answer, (first, second)))
    sharp = _naive(first, second, SHARP).detach()[None]
    source = "objective J, all 2N x 2N similarities in float64"
    found = [Case("gca", f"contrast at temperature {SHARP}", value(SHARP, None), sharp, source)]
    for chunk in (1, 3, count, count + 5):
        place = f"{chunk} rows at a time"
        found += [
            Case("gca", f"contrast, {place}", value(TAU, chunk), answer.detach()[None], source),
            Case("gca", f"gradient of the contrast, {place}", slopes(chunk), slope, source),
        ]
    return found


def _naive(first: Tensor, second: Tensor, tau: float) -> Tensor:
    """The loss as it is written, without a thought for memory or range."""
    a, b = (view / view.norm(dim=1, keepdim=True) for view in (first, second))
    count = len(a)

    def one_way(anchor: Tensor, other: Tensor) -> Tensor:
        between, within = anchor @ other.T / tau, anchor @ anchor.T / tau
        apart = ~torch.eye(count, dtype=torch.bool)
        total = between.exp().sum(1) + (within.exp() * apart).sum(1)
        return total.log() - between.diagonal()

    return (one_way(a, b) + one_way(b, a)).sum() / (2 * count)


def _encoder_cases() -> list[Case]:
    def run(stored: bool) -> Callable[[torch.device, torch.dtype], Tensor]:
        def compute(device: torch.device, dtype: torch.dtype) -> Tensor:
            encoder = _encoder().to(device, wide(dtype))
            words = torch.tensor(WORDS, dtype=wide(dtype), device=device)
            adjacency = encoder.prepare(EDGES, NODES, wide(dtype)).to(device)
            with computing_in(device, dtype), torch.no_grad():
                return encoder(from_dense(words) if stored else words, adjacency)[:, 0]

        return compute

    z = [-0.0578641673, -0.0679975253, -0.0679975253, 0.0933106130, 0.1986059975]
    source = CODE.format("encoder: Kipf and Welling 2017, eq. 2, slope 11/48 after both layers")
    return [
        _case("embeddings, dense features", run(False), z, source),
        _case("embeddings, sparse features", run(True), z, source),
    ]


def _encoder() -> GraphEncoder:
    encoder = GraphEncoder(4, 1, hidden=2, activation="rrelu").double()
    weights = (
        ([[0.1, -0.2], [0.3, 0.4], [-0.5, 0.6], [0.2, 0.1]], [0.05, -0.05]),
        ([[1.0], [-1.0]], [0.1]),
    )
    with torch.no_grad():
        for layer, (weight, bias) in zip(encoder.layers, weights, strict=True):
            if not isinstance(layer, GraphConvolution):
                raise TypeError(f"a graph convolution was expected, found {type(layer).__name__}")
            layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
            layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return encoder.eval()
