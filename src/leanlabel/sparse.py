"""Sparse matrices in compressed rows, and their differentiable product with a dense matrix.

Centralities, graph views, graph convolutions and bag-of-words features share this one structure. Entries are
stored once per (row, column), rows ascending and columns ascending within a row.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

Loops = Literal["drop", "keep", "add"]
Weighting = Literal["gcn", "mean", "sum"]

# Entries x columns that the gradient of the stored values gathers at once: 64 MiB in float32.
_GATHER_LIMIT = 1 << 24


class Csr:
    """Hold a sparse matrix: row r owns the entries crow[r] to crow[r + 1]. Not changed once made.

    A plain class: Lightning walks into dataclasses that a network is called with, and refuses frozen ones.

    Args:
        crow: (rows + 1,) int64, first entry of each row, ends with the number of entries.
        col: (nnz,) int64, column of each entry, strictly ascending within a row.
        values: (nnz,) floating point, or None when every stored entry is one.
        shape: rows and columns.
        symmetric: the matrix, values included, equals its transpose. A promise of whoever builds it
            (``from_edges`` finds out); the backward pass then needs no transpose.
        mirror: the transpose where it is already known.
    """

    def __init__(
        self,
        crow: Tensor,
        col: Tensor,
        values: Tensor | None,
        shape: tuple[int, int],
        symmetric: bool = False,
        mirror: Csr | None = None,
    ) -> None:
        self.crow, self.col, self.values = crow, col, values
        self.shape, self.symmetric, self.mirror = shape, symmetric, mirror

    def __repr__(self) -> str:
        kind = "ones" if self.values is None else self.values.dtype
        return f"Csr({self.shape[0]} x {self.shape[1]}, {self.nnz} entries, {kind})"

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return len(self.col)

    @property
    def density(self) -> float:
        """Share of the rows x columns positions that are stored; 0 for an empty shape."""
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.col.device

    @cached_property
    def rows(self) -> Tensor:
        """(nnz,) int64, row of each entry."""
        ids = torch.arange(self.shape[0], device=self.device)
        return torch.repeat_interleave(ids, self.counts, output_size=self.nnz)

    @property
    def counts(self) -> Tensor:
        """(rows,) int64, stored entries of each row."""
        return self.crow[1:] - self.crow[:-1]

    @cached_property
    def transpose_order(self) -> Tensor:
        """(nnz,) int64: entry k of the transpose is entry ``transpose_order[k]`` here.

        For a symmetric structure this is also the position of each entry's opposite direction.
        """
        return torch.argsort(self.col, stable=True)

    @cached_property
    def _indices(self) -> tuple[Tensor, Tensor]:
        # The product is about a fifth faster with 32-bit indices (measured with MKL).
        if max(self.nnz, *self.shape) < 2**31:
            return self.crow.int(), self.col.int()
        return self.crow, self.col

    def _flip(self) -> Csr:
        order = self.transpose_order
        columns = torch.arange(self.shape[1] + 1, device=self.device)
        values = None if self.values is None else self.values[order]
        crow = torch.searchsorted(self.col[order], columns)
        return Csr(crow, self.rows[order], values, (self.shape[1], self.shape[0]))

    def transpose(self) -> Csr:
        """Return the transpose: itself when symmetric, the known one, else sorted once and kept."""
        if self.symmetric:
            return self
        if self.mirror is not None:
            return self.mirror
        if self.values is not None and self.values.requires_grad:
            return self._flip()  # keeping it would keep a graph that the next backward pass frees
        if "_transposed" not in self.__dict__:
            self.__dict__["_transposed"] = self._flip()
        return self.__dict__["_transposed"]

    def map(self, function: Callable[[Tensor], Tensor]) -> Csr:
        """Apply a move or cast to every tensor; ``function`` must leave integers integers."""
        values = None if self.values is None else function(self.values)
        mirror = None if self.mirror is None else self.mirror.map(function)
        return Csr(function(self.crow), function(self.col), values, self.shape, self.symmetric, mirror)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Csr:
        """Return the matrix on another device, its values in another type; itself when nothing changes."""
        wanted = self.device if device is None else torch.device(device)
        same_device = wanted.type == self.device.type and wanted.index in (None, self.device.index)
        same_dtype = dtype is None or self.values is None or self.values.dtype == dtype
        if same_device and same_dtype:
            return self
        return self.map(lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))

    def with_values(self, values: Tensor | None) -> Csr:
        """Return the same structure with other values (nnz,); nothing is promised about symmetry."""
        if values is not None and values.shape != self.col.shape:
            raise ValueError(f"values {tuple(values.shape)} do not fit {self.nnz} stored entries")
        plain = Csr(self.crow, self.col, values, self.shape)
        return _carry(self, plain, "rows", "_indices", "transpose_order")

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return (rows, columns) in ``dtype`` (default: that of the values, else float32)."""
        dtype = dtype or (torch.float32 if self.values is None else self.values.dtype)
        dense = torch.zeros(self.shape, dtype=dtype, device=self.device)
        values = dense.new_ones(self.nnz) if self.values is None else self.values.to(dtype)
        return dense.index_put((self.rows, self.col), values)


def from_edges(edge_index: Tensor, num_nodes: int, *, loops: Loops = "drop") -> Csr:
    """Build the adjacency of a graph whose row v holds the in-neighbours of v.

    (A h)_v = sum over edges u -> v of h_u: row = target = edge_index[1], column = source = edge_index[0].
    Repeated edges count once.

    Args:
        edge_index: (2, E) integers in [0, num_nodes), source above target; an undirected edge is given twice.
        num_nodes: number of nodes, so that isolated last nodes are kept.
        loops: "drop" removes self-loops, "keep" leaves them, "add" gives every node exactly one.

    Returns:
        (num_nodes, num_nodes) without values; ``symmetric`` says whether every edge has its opposite.

    Raises:
        ValueError: wrong shape or type, or a node id out of range.

    Example:
        >>> from_edges(torch.tensor([[0, 1, 1], [1, 0, 2]]), 3).to_dense().tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    if edge_index.ndim != 2 or edge_index.shape[0] != 2 or edge_index.is_floating_point():
        raise ValueError(f"edge_index must be integers of shape (2, E), got {tuple(edge_index.shape)}")
    source, target = edge_index.long()
    if len(source) and (int(edge_index.min()) < 0 or int(edge_index.max()) >= num_nodes):
        raise ValueError(f"node ids must be in [0, {num_nodes}), got {_extent(edge_index)}")
    if loops != "keep":
        other = source != target
        source, target = source[other], target[other]
    if loops == "add":
        nodes = torch.arange(num_nodes, device=edge_index.device)
        source, target = torch.cat([source, nodes]), torch.cat([target, nodes])
    key = torch.unique(target * max(num_nodes, 1) + source)
    rows, col = key // max(num_nodes, 1), key % max(num_nodes, 1)
    crow = torch.searchsorted(rows, torch.arange(num_nodes + 1, device=edge_index.device))
    matrix = Csr(crow, col, None, (num_nodes, num_nodes))
    flipped = matrix.transpose()
    alike = torch.equal(flipped.crow, matrix.crow) and torch.equal(flipped.col, matrix.col)
    return _carry(matrix, Csr(crow, col, None, matrix.shape, symmetric=alike), "rows", "transpose_order")


def from_dense(dense: Tensor) -> Csr:
    """Store the non-zero entries of a dense (rows, columns) matrix, with their values."""
    if dense.ndim != 2:
        raise ValueError(f"a dense matrix must have two dimensions, got {tuple(dense.shape)}")
    rows, col = dense.nonzero(as_tuple=True)
    crow = torch.searchsorted(rows.contiguous(), torch.arange(len(dense) + 1, device=dense.device))
    return Csr(crow, col, dense[rows, col], (dense.shape[0], dense.shape[1]))


def from_parts(crow: Any, col: Any, values: Any, shape: tuple[int, int]) -> Csr:
    """Take over the three arrays of a stored CSR matrix; sorts the columns and adds up repeated entries.

    Args:
        crow: (rows + 1,) integers, tensor or array, starts at 0, never falls.
        col: (nnz,) integers in [0, columns).
        values: (nnz,) numbers, or None for ones.
        shape: rows and columns; arrays that do not describe such a matrix raise ValueError.
    """
    start, column = torch.as_tensor(crow).long(), torch.as_tensor(col).long()
    weight = None if values is None else torch.as_tensor(values)
    rows, columns = int(shape[0]), int(shape[1])
    if start.shape != (rows + 1,) or column.ndim != 1:
        raise ValueError(f"crow {tuple(start.shape)} and col {tuple(column.shape)} do not fit {rows} rows")
    if int(start[0]) != 0 or int(start[-1]) != len(column) or bool((start[1:] < start[:-1]).any()):
        raise ValueError(f"crow must rise from 0 to the {len(column)} entries of col")
    if len(column) and (int(column.min()) < 0 or int(column.max()) >= columns):
        raise ValueError(f"columns must be in [0, {columns}), got {_extent(column)}")
    if weight is not None and weight.shape != column.shape:
        raise ValueError(f"values {tuple(weight.shape)} do not fit col {tuple(column.shape)}")
    matrix = Csr(start, column, weight, (rows, columns))
    key = matrix.rows * max(columns, 1) + column
    if bool((key[1:] > key[:-1]).all()):
        return matrix
    unique, place = torch.unique(key, return_inverse=True)
    if weight is None:
        weight = torch.ones(len(column), device=column.device)
    total = torch.zeros(len(unique), dtype=weight.dtype, device=column.device).index_add(0, place, weight)
    start = torch.searchsorted(unique // max(columns, 1), torch.arange(rows + 1, device=column.device))
    return Csr(start, unique % max(columns, 1), total, (rows, columns))


def select(csr: Csr, keep: Tensor) -> Csr:
    """Keep some of the stored entries. The transpose of the result is made alongside, without a sort.

    Args:
        csr: the whole matrix; its own transpose order is computed at the first call and reused.
        keep: (nnz,) bool, which entries stay. With both directions treated alike, symmetry is kept.
    """
    if keep.shape != csr.col.shape or keep.dtype != torch.bool:
        raise ValueError(f"keep must be bool of shape ({csr.nnz},), got {keep.dtype} {tuple(keep.shape)}")
    part = _masked(csr, keep)
    flipped = keep[csr.transpose_order]
    if csr.symmetric and torch.equal(flipped, keep):
        return Csr(part.crow, part.col, part.values, part.shape, symmetric=True)
    mirror = _masked(csr.transpose(), flipped)
    return Csr(part.crow, part.col, part.values, part.shape, mirror=mirror)


def take_rows(x: Csr | Tensor, ids: Tensor) -> Csr | Tensor:
    """Read some rows of a matrix, such as the features of some nodes.

    Args:
        x: (N, F), sparse or dense; carries gradient.
        ids: (n,) int64 in [0, N), in any order, repeats allowed.

    Returns:
        (n, F), sparse or dense like ``x``.

    Example:
        >>> take_rows(torch.eye(3), torch.tensor([2, 0])).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    ids = ids.to(x.device)
    if isinstance(x, Tensor):
        return x[ids]
    counts = x.counts[ids]
    crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    # Position of every entry: start of its old row plus its place within the row.
    entries = torch.arange(int(crow[-1]), device=x.device) + (x.crow[ids] - crow[:-1]).repeat_interleave(
        counts
    )
    return Csr(crow, x.col[entries], None if x.values is None else x.values[entries], (len(ids), x.shape[1]))


def scaled(csr: Csr, left: Tensor | None, right: Tensor | None) -> Csr:
    """Multiply rows and columns by vectors: diag(left) M diag(right); None stands for ones (not for both).

    Args:
        csr: (R, C); its known transpose and its symmetry are carried over where they still hold.
        left: (R,) factors of the rows.
        right: (C,) factors of the columns.
    """
    symmetric = csr.symmetric and left is right
    known = csr if csr.symmetric else csr.mirror  # a symmetric structure is its own transpose
    mirror = None
    if known is not None and not symmetric:
        flipped = Csr(known.crow, known.col, _scaled_values(known, right, left), known.shape)
        mirror = _carry(known, flipped, "rows", "_indices")
    values = _scaled_values(csr, left, right)
    result = Csr(csr.crow, csr.col, values, csr.shape, symmetric, mirror)
    return _carry(csr, result, "rows", "_indices")


def normalised(csr: Csr, how: Weighting, dtype: torch.dtype = torch.float32) -> Csr:
    """Weight an adjacency for a graph convolution from the degrees of this very structure.

    "gcn": D^-1/2 A D^-1/2 [Kipf and Welling 2017, eq. 2], where A holds the self-loops and D the row counts
    (in-degrees, also of a directed graph); "mean": D^-1 A; "sum": A as it is. Empty rows stay zero.

    Args:
        csr: (N, N) without values, made by :func:`from_edges` (``loops="add"`` for "gcn") or :func:`select`.
        how: the weighting.
        dtype: type of the values.
    """
    if how == "sum":
        return csr
    count = csr.counts.to(dtype)
    if how == "mean":
        return scaled(csr, count.clamp(min=1).reciprocal(), None)
    root = count.clamp(min=1).rsqrt()
    return scaled(csr, root, root)


def pair_ids(csr: Csr) -> tuple[Tensor, int]:
    """Number the undirected pairs of a square structure, so that both directions can share one draw.

    Returns:
        (nnz,) int64 in [0, pairs): the pair {row, column} of each entry, and the number of pairs.
    """
    low, high = torch.minimum(csr.rows, csr.col), torch.maximum(csr.rows, csr.col)
    pairs, place = torch.unique(low * max(csr.shape[0], 1) + high, return_inverse=True)
    return place, len(pairs)


def components(csr: Csr) -> tuple[Tensor, int]:
    """Label the weakly connected components of a square structure.

    Returns:
        (N,) int64 component of each node, on the matrix's device, and the number of components.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    crow, col = csr.crow.cpu().numpy(), csr.col.cpu().numpy()
    structure = csr_matrix((np.ones(len(col), dtype=np.int8), col, crow), shape=csr.shape)
    count, label = connected_components(structure, directed=False)
    return torch.from_numpy(label.astype("int64")).to(csr.device), int(count)


def spmm(csr: Csr, dense: Tensor) -> Tensor:
    """Multiply a sparse matrix with a dense one.

    out = M H; the gradient is M^T G for H, and for the stored values (if they ask for one) G_r . H_c at each
    stored (r, c).

    Args:
        csr: (R, C). Values and ``dense`` are brought to their common type, half precision to float32.
        dense: (C, D) or (C,), carries gradient.

    Returns:
        (R, D) or (R,), in float32 or wider; zero where a row has no entries.

    Example:
        >>> spmm(from_dense(torch.tensor([[0.0, 2.0], [0.0, 0.0]])), torch.tensor([[1.0], [3.0]])).tolist()
        [[6.0], [0.0]]
    """
    if dense.ndim not in (1, 2) or dense.shape[0] != csr.shape[1]:
        raise ValueError(f"cannot multiply {csr.shape} with {tuple(dense.shape)}")
    if dense.ndim == 1:
        return spmm(csr, dense[:, None])[:, 0]
    wide = torch.promote_types(dense.dtype, torch.float32)
    if csr.values is not None:
        wide = torch.promote_types(wide, csr.values.dtype)
    # Half precision is left here, outside the function, so that autograd casts the gradient back.
    return cast(Tensor, _Product.apply(dense.to(wide), csr.values, csr))


class _Product(torch.autograd.Function):
    """Sparse times dense with the gradient through a transpose that is known beforehand."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, values: Tensor | None, csr: Csr) -> Tensor:
        ctx.csr = csr
        ctx.save_for_backward(dense if values is not None and values.requires_grad else None)
        return _multiply(csr, dense)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        (dense,) = ctx.saved_tensors
        csr: Csr = ctx.csr
        for_dense = spmm(csr.transpose(), gradient) if ctx.needs_input_grad[0] else None
        for_values = None
        if ctx.needs_input_grad[1] and csr.values is not None:
            for_values = _entry_products(csr, gradient, dense).to(csr.values.dtype)
        return for_dense, for_values, None


def _multiply(csr: Csr, dense: Tensor) -> Tensor:
    if csr.nnz == 0 or dense.shape[1] == 0:
        return dense.new_zeros((csr.shape[0], dense.shape[1]))
    _announce_once()
    values = dense.new_ones(csr.nnz) if csr.values is None else csr.values.to(dense.dtype)
    # Autocast would take the product back to half precision.
    with torch.autocast(dense.device.type, enabled=False):
        matrix = torch.sparse_csr_tensor(*csr._indices, values, csr.shape, check_invariants=False)
        return matrix @ dense.contiguous()


def _entry_products(csr: Csr, gradient: Tensor, dense: Tensor) -> Tensor:
    step = max(1, _GATHER_LIMIT // max(1, dense.shape[1]))
    blocks = zip(csr.rows.split(step), csr.col.split(step), strict=True)
    return torch.cat([(gradient[rows] * dense[col]).sum(1) for rows, col in blocks])


@functools.cache
def _announce_once() -> None:
    # torch warns once per process that its CSR support is in beta; users can do nothing about it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = torch.zeros(2, dtype=torch.int64)
        torch.sparse_csr_tensor(empty, empty[:0], torch.zeros(0), (1, 1), check_invariants=False)


def _masked(csr: Csr, keep: Tensor) -> Csr:
    kept = keep.nonzero()[:, 0]
    before = torch.zeros(csr.nnz + 1, dtype=torch.int64, device=csr.device)
    torch.cumsum(keep, 0, out=before[1:])
    values = None if csr.values is None else csr.values[kept]
    return Csr(before[csr.crow], csr.col[kept], values, csr.shape)


def _extent(ids: Tensor) -> str:
    return f"{int(ids.min())} to {int(ids.max())}"


def _carry(source: Csr, target: Csr, *names: str) -> Csr:
    """Hand on what was already computed for the same structure."""
    target.__dict__.update({name: source.__dict__[name] for name in names if name in source.__dict__})
    return target


def _scaled_values(csr: Csr, left: Tensor | None, right: Tensor | None) -> Tensor:
    pairs = ((left, csr.rows), (right, csr.col))
    factors = [vector[index] for vector, index in pairs if vector is not None]
    # The stored values come last: left x right is the same product for (r, c) and (c, r).
    return functools.reduce(torch.mul, factors if csr.values is None else [*factors, csr.values])
