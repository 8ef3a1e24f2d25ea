"""Graph encoders on sparse adjacencies, and the projector that a contrastive loss reads.

Every convolution first lifts the features, X W, and then aggregates the narrow result; a feature mask m
enters as X (m o W), so that no masked copy of X is made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from leanlabel.sparse import Csr, Loops, Weighting, from_dense, from_edges, normalised, spmm

Norm = Literal["none", "batch"]
Activation = Literal["relu", "prelu", "rrelu", "elu", "leaky_relu", "identity"]
Convolution = Literal["gcn", "sgc", "sage", "gat", "graphconv", "gin"]
Features = Csr | Tensor
HEADS = 4

# Share of non-zero features below which the sparse product is the quicker one (benchmarks/encoder.py).
SPARSE_BELOW = 0.1

# "rrelu" stands for the randomised leaky ReLU outside training mode, the only way the official code calls it:
# a fixed slope, the mean of 1/8 and 1/3.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "prelu": nn.PReLU,
    "rrelu": lambda: nn.LeakyReLU(11 / 48),
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "identity": nn.Identity,
}

# Which adjacency each convolution reads: self-loops, and the weighting of leanlabel.sparse.normalised.
ADJACENCY: dict[str, tuple[Loops, Weighting]] = {
    "gcn": ("add", "gcn"),
    "sgc": ("add", "gcn"),
    "gat": ("add", "sum"),
    "sage": ("drop", "mean"),
    "graphconv": ("drop", "sum"),
    "gin": ("drop", "sum"),
}


def pack_features(x: Features, sparse_below: float = SPARSE_BELOW) -> Features:
    """Store features the quicker way: sparse when few of them are non-zero, else dense.

    Args:
        x: (N, F) features, sparse or dense, floating point.
        sparse_below: density below which they are stored sparse; 0 always gives a dense tensor.
    """
    if isinstance(x, Csr):
        return x if x.density < sparse_below else x.to_dense()
    filled = int(x.count_nonzero()) / max(1, x.numel())
    return from_dense(x) if filled < sparse_below else x


def lift(x: Features, weight: Tensor, feature_mask: Tensor | None = None) -> Tensor:
    """Multiply features with a weight: (x o m) W, computed as x (m o W).

    Args:
        x: (N, F), sparse or dense; a dense one carries gradient.
        weight: (F, D), carries gradient.
        feature_mask: (F,) factors of the features, no gradient needed.

    Returns:
        (N, D).
    """
    if feature_mask is not None:
        weight = feature_mask.to(weight)[:, None] * weight
    return spmm(x, weight) if isinstance(x, Csr) else x @ weight


class GraphConvolution(nn.Module):
    """Aggregate lifted neighbours: one layer of "gcn", "sgc", "sage" or "graphconv".

    gcn, sgc (one hop): A X W + b, A = D^-1/2 (A + I) D^-1/2 [Kipf and Welling 2017, eq. 2; Wu et al. 2019].
    sage: mean over in-neighbours of X W, + b + X W_root [Hamilton et al. 2017]. graphconv: the same with the
    sum [Morris et al. 2019]. Row v of the adjacency holds the in-neighbours of v.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        kind: the convolution; it decides the initialisation and whether the node itself is added.
    """

    def __init__(self, in_features: int, out_features: int, kind: Convolution = "gcn") -> None:
        super().__init__()
        self.kind: Convolution = kind
        self.own = kind in ("sage", "graphconv")
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.root = nn.Parameter(torch.empty(in_features, out_features)) if self.own else None
        self.bias = nn.Parameter(torch.zeros(out_features))
        if kind == "gcn":
            glorot_(self.weight)
        else:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -(in_features**-0.5), in_features**-0.5)

    def forward(self, x: Features, adjacency: Csr, feature_mask: Tensor | None = None) -> Tensor:
        if self.root is None:
            return spmm(adjacency, lift(x, self.weight, feature_mask)) + self.bias
        both = lift(x, torch.cat([self.weight, self.root], 1), feature_mask)
        neighbours, own = both.chunk(2, 1)
        return spmm(adjacency, neighbours) + own + self.bias


class GraphIsomorphism(nn.Module):
    """Sum a node and its in-neighbours, then a two-layer perceptron [Xu et al. 2019, eq. 4.1, epsilon = 0].

    MLP((A + I) X) = ELU((A + I) X W_1 + b_1) W_2 + b_2 with an inner width of twice the output.

    Args:
        in_features: width of the input.
        out_features: width of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        inner = 2 * out_features
        self.weight = nn.Parameter(torch.empty(in_features, inner).uniform_(-1, 1) * in_features**-0.5)
        self.bias = nn.Parameter(torch.empty(inner).uniform_(-1, 1) * in_features**-0.5)
        self.out = nn.Linear(inner, out_features)

    def forward(self, x: Features, adjacency: Csr, feature_mask: Tensor | None = None) -> Tensor:
        lifted = lift(x, self.weight, feature_mask)
        return self.out(nn.functional.elu(spmm(adjacency, lifted) + lifted + self.bias))


class GraphAttention(nn.Module):
    """Average in-neighbours by learned attention [Velickovic et al. 2018, eq. 1-5].

    e_vu = LeakyReLU_0.2(a_target . h_v + a_source . h_u), alpha = softmax of e over the stored entries of
    row v, out_v = concatenation over heads of sum_u alpha_vu h_u, plus b; h = X W.

    Args:
        in_features: width of the input.
        out_features: width of the output, a multiple of ``heads``.
        heads: attention heads of out_features / heads each.
    """

    def __init__(self, in_features: int, out_features: int, heads: int = HEADS) -> None:
        super().__init__()
        if out_features % heads:
            raise ValueError(f"width {out_features} is not a multiple of {heads} heads")
        self.heads = heads
        self.weight = glorot_(nn.Parameter(torch.empty(in_features, out_features)))
        self.source = glorot_(nn.Parameter(torch.empty(heads, out_features // heads)))
        self.target = glorot_(nn.Parameter(torch.empty(heads, out_features // heads)))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Features, adjacency: Csr, feature_mask: Tensor | None = None) -> Tensor:
        lifted = lift(x, self.weight, feature_mask).unflatten(1, (self.heads, -1))
        of_target, of_source = (lifted * self.target).sum(2), (lifted * self.source).sum(2)
        score = nn.functional.leaky_relu(of_target[adjacency.rows] + of_source[adjacency.col], 0.2)
        attention = row_softmax(adjacency, score)
        _ = adjacency.transpose_order  # sorted once, for the backward pass of all heads
        heads = zip(attention.unbind(1), lifted.unbind(1), strict=True)
        return torch.cat([spmm(adjacency.with_values(a), h) for a, h in heads], 1) + self.bias


def row_softmax(csr: Csr, score: Tensor) -> Tensor:
    """Normalise scores of the stored entries so that each row of the matrix sums to one.

    Args:
        csr: (R, C) structure.
        score: (nnz, H), carries gradient.

    Returns:
        (nnz, H) in [0, 1].
    """
    index = csr.rows[:, None].expand_as(score)
    blank = score.new_full((csr.shape[0], score.shape[1]), -math.inf)
    top = blank.scatter_reduce(0, index, score.detach(), "amax")
    weight = (score - top[csr.rows]).exp()
    total = weight.new_zeros(blank.shape).index_add(0, csr.rows, weight)
    return weight / total[csr.rows]


class GraphEncoder(nn.Module):
    """Stack graph convolutions, each followed by one shared activation.

    H = a(conv_1(X, A)), Z = a(conv_2(H, A)) [GCA, WWW 2021; official code]. The activation follows the last
    layer too, and a PReLU has a single slope for all layers.

    Args:
        in_features: number of features F.
        width: width of the embedding d.
        hidden: width of the layers before the last; default 2 d.
        layers: number of convolutions, >= 1.
        activation: "rrelu" is a leaky ReLU with slope 11/48.
        convolution: kind of every layer; :meth:`prepare` builds the adjacency that it reads.
        norm: "batch" normalises every layer's output over the nodes before the activation, as BGRL does.

    Example:
        >>> encoder = GraphEncoder(5, 2, activation="relu")
        >>> adjacency = encoder.prepare(torch.tensor([[0, 1], [1, 0]]), num_nodes=3)
        >>> encoder(torch.eye(3, 5), adjacency, feature_mask=torch.ones(5)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        hidden: int | None = None,
        layers: int = 2,
        activation: Activation = "prelu",
        convolution: Convolution = "gcn",
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"an encoder needs at least one layer, got {layers}")
        if convolution not in ADJACENCY:
            raise ValueError(f"convolution must be one of {', '.join(ADJACENCY)}, got {convolution!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        widths = [in_features, *[hidden or 2 * width] * (layers - 1), width]
        self.convolution: Convolution = convolution
        self.layers = nn.ModuleList(
            _convolution(convolution, below, above) for below, above in itertools.pairwise(widths)
        )
        # Every rank encodes the same nodes, so their statistics need no synchronising.
        self.norms = nn.ModuleList(nn.BatchNorm1d(above) for above in widths[1:] if norm == "batch")
        self.activation = ACTIVATIONS[activation]()
        self.width = width

    @property
    def loops(self) -> Loops:
        """What the convolution needs done with self-loops, for :func:`leanlabel.sparse.from_edges`."""
        return ADJACENCY[self.convolution][0]

    @property
    def weighting(self) -> Weighting:
        """How the convolution needs its adjacency weighted, for :func:`leanlabel.sparse.normalised`."""
        return ADJACENCY[self.convolution][1]

    def prepare(self, edge_index: Tensor, num_nodes: int, dtype: torch.dtype = torch.float32) -> Csr:
        """Build the adjacency (N, N) that the convolution reads, from (2, E) edges, source above target."""
        return normalised(from_edges(edge_index, num_nodes, loops=self.loops), self.weighting, dtype)

    def forward(self, x: Features, adjacency: Csr, feature_mask: Tensor | None = None) -> Tensor:
        """Embed every node.

        Args:
            x: (N, F) features, sparse or dense.
            adjacency: (N, N), from :meth:`prepare` or a view drawn with the same loops and weighting.
            feature_mask: (F,) factors of the features.

        Returns:
            (N, width).
        """
        for position, layer in enumerate(self.layers):
            x = layer(x, adjacency, feature_mask)
            x = self.activation(self.norms[position](x) if len(self.norms) else x)
            feature_mask = None
        return x  # pyright: ignore[reportReturnType]  at least one layer has made it dense


class Projector(nn.Module):
    """Map embeddings to the space of the contrastive loss: Linear, ELU, Linear. Dropped after training.

    Args:
        width: width d of the embedding, and of the output.
        hidden: width d_p between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, hidden)
        self.leave = nn.Linear(hidden, width)

    def forward(self, z: Tensor) -> Tensor:
        return self.leave(nn.functional.elu(self.enter(z)))


def glorot_(weight: Tensor) -> Tensor:
    """Fill a matrix from U(-b, b), b = sqrt(6 / (rows + columns)) [Glorot and Bengio 2010]; in place."""
    bound = math.sqrt(6 / max(1, weight.shape[0] + weight.shape[1]))
    return nn.init.uniform_(weight, -bound, bound)


def _convolution(kind: Convolution, in_features: int, out_features: int) -> nn.Module:
    if kind == "gat":
        return GraphAttention(in_features, out_features)
    if kind == "gin":
        return GraphIsomorphism(in_features, out_features)
    return GraphConvolution(in_features, out_features, kind)
