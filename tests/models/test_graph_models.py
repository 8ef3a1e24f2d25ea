"""Graph convolutions and encoders: literals, dense references, torch_geometric, masks, relabelling."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from leanlabel.models.graph import (
    ACTIVATIONS,
    ADJACENCY,
    GraphAttention,
    GraphConvolution,
    GraphEncoder,
    GraphIsomorphism,
    Projector,
    lift,
    pack_features,
    row_softmax,
)
from leanlabel.sparse import Csr, from_dense, from_edges, normalised

FORWARD = [[0, 0, 0, 1, 3], [1, 2, 3, 2, 4]]
EDGES = torch.tensor([FORWARD[0] + FORWARD[1], FORWARD[1] + FORWARD[0]])
X = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1]], dtype=torch.float64)
KINDS: list[Any] = list(ADJACENCY)


def random_edges(nodes: int = 15, edges: int = 40, seed: int = 0, undirected: bool = False) -> Tensor:
    """Without repeated edges and self-loops, in random order, node ``nodes - 1`` isolated."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(0, nodes - 1, (2, edges), generator=generator)
    if undirected:
        pairs = torch.cat([pairs, pairs.flip(0)], 1)
    pairs = torch.unique(pairs[:, pairs[0] != pairs[1]], dim=1)
    return pairs[:, torch.randperm(pairs.shape[1], generator=generator)]


def encoder(convolution: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    return GraphEncoder(6, 8, convolution=convolution, **settings).double()


def test_values() -> None:
    """Two layers on the five-node graph, slope 11/48 after both."""
    model: Any = GraphEncoder(4, 1, hidden=2, activation="rrelu").double()
    first, second = model.layers
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[0.1, -0.2], [0.3, 0.4], [-0.5, 0.6], [0.2, 0.1]]))
        first.bias.copy_(torch.tensor([0.05, -0.05]))
        second.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        second.bias.fill_(0.1)
        for parameter in model.parameters():  # the decimals of the case, not their float32 rounding
            parameter.copy_((parameter * 100).round() / 100)
    expected = [-0.0578641673, -0.0679975253, -0.0679975253, 0.0933106130, 0.1986059975]
    for x in (X, from_dense(X)):
        z = model(x, model.prepare(EDGES, 5, torch.float64))
        literal = torch.tensor(expected, dtype=torch.float64)[:, None]
        torch.testing.assert_close(z, literal, rtol=1e-10, atol=6e-11)


def test_values_structure() -> None:
    model: Any = GraphEncoder(6, 8, layers=3, activation="prelu")
    assert [tuple(layer.weight.shape) for layer in model.layers] == [(6, 16), (16, 16), (16, 8)]
    slopes = [name for name, value in model.named_parameters() if value.numel() == 1]
    assert slopes == ["activation.weight"]  # one scalar for all layers
    bound = math.sqrt(6 / (6 + 16))
    weight = model.layers[0].weight
    assert 0.9 * bound < float(weight.detach().abs().max()) <= bound
    assert not model.layers[0].bias.any()
    single: Any = GraphEncoder(6, 8, hidden=5, layers=1)
    assert [tuple(layer.weight.shape) for layer in single.layers] == [(6, 8)]
    rrelu = ACTIVATIONS["rrelu"]()
    assert float(rrelu(torch.tensor(-1.0))) == pytest.approx(-0.2291667)
    projector = Projector(8, 3)
    z = torch.randn(4, 8)
    expected = projector.leave(nn.functional.elu(projector.enter(z)))
    assert torch.equal(projector(z), expected)
    assert projector.enter.weight.shape == (3, 8)


@pytest.mark.parametrize("undirected", [False, True])
def test_reference_dense(undirected: bool) -> None:
    """Each convolution against a dense formula on a graph with an isolated node."""
    edges = random_edges(undirected=undirected)
    a = torch.zeros(15, 15, dtype=torch.float64)
    a[edges[1], edges[0]] = 1
    x = torch.randn(15, 6, dtype=torch.float64)
    loops = a + torch.eye(15, dtype=torch.float64)
    scale = loops.sum(1).rsqrt()
    gcn = scale[:, None] * loops * scale
    mean = a / a.sum(1, keepdim=True).clamp(min=1)
    for kind, matrix in (("gcn", gcn), ("sgc", gcn), ("sage", mean), ("graphconv", a), ("gin", a)):
        model = encoder(kind, layers=1, activation="identity")
        (layer,) = model.layers
        result = model(x, model.prepare(edges, 15, torch.float64))
        if isinstance(layer, GraphIsomorphism):
            inner = nn.functional.elu((x + matrix @ x) @ layer.weight + layer.bias)
            expected = layer.out(inner)
        else:
            assert isinstance(layer, GraphConvolution)
            own = 0 if layer.root is None else x @ layer.root
            expected = matrix @ x @ layer.weight + own + layer.bias
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)
    model = encoder("gat", layers=1, activation="identity")
    (layer,) = model.layers
    assert isinstance(layer, GraphAttention)
    parts = []
    for head, h in enumerate((x @ layer.weight).split(2, 1)):
        e = nn.functional.leaky_relu((h @ layer.target[head])[:, None] + h @ layer.source[head], 0.2)
        parts.append(e.masked_fill(loops == 0, -math.inf).softmax(1) @ h)
    expected = torch.cat(parts, 1) + layer.bias
    result = model(x, model.prepare(edges, 15, torch.float64))
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_reference_torch_geometric(kind: Any, undirected: bool) -> None:
    geometric = pytest.importorskip("torch_geometric.nn")
    edges = random_edges(seed=3, undirected=undirected)
    x = torch.randn(15, 6, dtype=torch.float64, requires_grad=True)
    model = encoder(kind, layers=1, activation="identity")
    (layer,) = model.layers
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    targets: list[Any]
    if kind == "gin":
        inner = nn.Sequential(nn.Linear(6, 16), nn.ELU(), nn.Linear(16, 8))
        other = geometric.GINConv(inner).double()
        targets = [(inner[0].weight, layer.weight.T), (inner[0].bias, layer.bias)]
        targets += [(inner[2].weight, layer.out.weight), (inner[2].bias, layer.out.bias)]
    elif kind == "gat":
        other = geometric.GATConv(6, 2, heads=4).double()
        targets = [(other.lin.weight, layer.weight.T), (other.bias, layer.bias)]
        targets += [(other.att_src, layer.source[None]), (other.att_dst, layer.target[None])]
    elif kind in ("gcn", "sgc"):
        other = (geometric.GCNConv if kind == "gcn" else geometric.SGConv)(6, 8).double()
        bias = other.bias if kind == "gcn" else other.lin.bias
        targets = [(other.lin.weight, layer.weight.T), (bias, layer.bias)]
    elif kind == "sage":
        other = geometric.SAGEConv(6, 8).double()
        targets = [(other.lin_l.weight, layer.weight.T), (other.lin_l.bias, layer.bias)]
        targets += [(other.lin_r.weight, layer.root.T)]
    else:
        other = geometric.GraphConv(6, 8).double()
        targets = [(other.lin_rel.weight, layer.weight.T), (other.lin_rel.bias, layer.bias)]
        targets += [(other.lin_root.weight, layer.root.T)]
    with torch.no_grad():
        for target, source in targets:
            target.copy_(source)
    assert sum(p.numel() for p in other.parameters()) == sum(p.numel() for p in layer.parameters())
    ours, theirs = model(x, model.prepare(edges, 15, torch.float64)), other(x, edges)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    direction = torch.randn_like(ours)
    (gradient,) = torch.autograd.grad(ours, x, direction, retain_graph=True)
    (expected,) = torch.autograd.grad(theirs, x, direction)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_reference_mask(kind: Any) -> None:
    """Folding the mask into the weight equals masking the columns, sparse or dense, gradients included."""
    model = encoder(kind)
    adjacency = model.prepare(random_edges(), 15, torch.float64)
    x = torch.randn(15, 6, dtype=torch.float64) * (torch.rand(15, 6) < 0.5)
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1])
    expected = model(x * mask, adjacency)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    for features in (x, from_dense(x)):
        result = model(features, adjacency, mask)
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)
        gradients = torch.autograd.grad(result.square().sum(), list(model.parameters()))
        for gradient, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, want, rtol=1e-9, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(KINDS), st.integers(2, 10), st.integers(0, 20), st.integers(0, 10**6))
def test_reference_relabelling(kind: Any, nodes: int, edges: int, seed: int) -> None:
    model = encoder(kind)
    edge_index = random_edges(nodes, edges, seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(nodes, generator=generator)
    x = torch.randn(nodes, 6, dtype=torch.float64, generator=generator)
    moved_x = torch.empty_like(x)
    moved_x[order] = x
    here = model(x, model.prepare(edge_index, nodes, torch.float64))
    there = model(moved_x, model.prepare(order[edge_index], nodes, torch.float64))
    torch.testing.assert_close(there[order], here, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient(kind: Any) -> None:
    model = encoder(kind, activation="elu")
    adjacency = model.prepare(random_edges(7, 12), 7, torch.float64)
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        result = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x, adjacency))
        return (result * torch.arange(8.0)).sum(1)

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


def test_gradient_row_softmax() -> None:
    matrix = from_edges(random_edges(6, 10), 6)
    score = (torch.randn(matrix.nnz, 2, dtype=torch.float64) * 300).requires_grad_()
    weight = row_softmax(matrix, score)
    total = torch.zeros(6, 2, dtype=torch.float64).index_add(0, matrix.rows, weight)
    torch.testing.assert_close(total, (matrix.counts > 0).double()[:, None].expand(6, 2))
    small = (score.detach() / 300).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: row_softmax(matrix, s), (small,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind: Any, dtype: torch.dtype) -> None:
    model = encoder(kind).float()
    adjacency = model.prepare(random_edges(), 15)
    x = torch.randn(15, 6)
    expected = model(x, adjacency)
    for features in (x, from_dense(x)):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            result = model(features, adjacency, torch.ones(6))
        torch.testing.assert_close(result.float(), expected, rtol=0.1, atol=0.1)
        result.float().sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate(kind: Any) -> None:
    """No edges, no features left, one node: finite, and the rows that must agree do."""
    model = encoder(kind)
    x = torch.randn(5, 6, dtype=torch.float64)
    bare = model.prepare(torch.zeros(2, 0, dtype=torch.int64), 5, torch.float64)
    result = model(x, bare)
    assert bool(result.isfinite().all())
    if kind in ("gcn", "sgc", "gat"):  # only self-loops: a plain two-layer network
        first, second = model.layers
        alone = model.activation(
            model.activation(x @ first.weight + first.bias) @ second.weight + second.bias
        )
        torch.testing.assert_close(result, alone, rtol=1e-10, atol=1e-12)
    masked = model(x, bare, torch.zeros(6))
    torch.testing.assert_close(masked, masked[:1].expand(5, 8))
    masked.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    none = model.prepare(torch.zeros(2, 0, dtype=torch.int64), 0, torch.float64)
    assert model(x[:0], none).shape == (0, 8)
    one = model.prepare(torch.zeros(2, 0, dtype=torch.int64), 1, torch.float64)
    assert bool(model(x[:1], one).isfinite().all())


def test_degenerate_pack() -> None:
    thin = torch.eye(50)
    packed = pack_features(thin)
    assert isinstance(packed, Csr)
    assert torch.equal(packed.to_dense(), thin)
    assert pack_features(packed) is packed
    assert torch.equal(pack_features(packed, sparse_below=0), thin)  # pyright: ignore[reportArgumentType]
    full = torch.ones(5, 5)
    assert pack_features(full) is full
    assert isinstance(pack_features(torch.zeros(0, 3)), Csr)
    weight = torch.randn(50, 2)
    torch.testing.assert_close(lift(packed, weight), weight)


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least one layer, got 0"):
        GraphEncoder(4, 2, layers=0)
    with pytest.raises(ValueError, match="convolution must be one of gcn, sgc"):
        GraphEncoder(4, 2, convolution="cheb")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="activation must be one of relu"):
        GraphEncoder(4, 2, activation="tanh")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="width 6 is not a multiple of 4 heads"):
        GraphEncoder(4, 6, convolution="gat")
    model = GraphEncoder(4, 2)
    with pytest.raises(ValueError, match=r"cannot multiply \(5, 5\) with \(3, 4\)"):
        model(torch.zeros(3, 4), model.prepare(EDGES, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_state(kind: Any) -> None:
    """Save, load, continue: the same bits."""

    def train(model: GraphEncoder, optimiser: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimiser.zero_grad()
            model(x, adjacency).square().mean().backward()
            optimiser.step()

    x = torch.randn(15, 6, dtype=torch.float64)
    model = encoder(kind)
    adjacency = model.prepare(random_edges(), 15, torch.float64)
    optimiser = torch.optim.Adam(model.parameters())
    train(model, optimiser, 2)
    other = encoder(kind)
    other.load_state_dict(model.state_dict())
    second = torch.optim.Adam(other.parameters())
    second.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    train(model, optimiser, 2)
    train(other, second, 2)
    for here, there in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(here, there)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_reference_on_gpu(kind: Any) -> None:
    model = encoder(kind)
    adjacency = model.prepare(random_edges(), 15, torch.float64)
    x = torch.randn(15, 6, dtype=torch.float64)
    expected = model(x, adjacency)
    model = model.cuda()
    for features in (x.cuda(), from_dense(x.cuda())):
        result = model(features, adjacency.to("cuda"))
        torch.testing.assert_close(result.cpu(), expected)
        result.sum().backward()


def test_reference_prepare_matches_normalised() -> None:
    for kind, (loops, weighting) in ADJACENCY.items():
        model = encoder(kind)
        assert (model.loops, model.weighting) == (loops, weighting)
        expected = normalised(from_edges(EDGES, 5, loops=loops), weighting)
        assert torch.equal(model.prepare(EDGES, 5).to_dense(), expected.to_dense())
