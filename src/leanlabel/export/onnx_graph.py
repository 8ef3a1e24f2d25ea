"""A graph encoder as an ONNX graph, written out operator by operator.

Inputs are the features and edges of any graph; all that a user could get wrong (feature normalisation, repeated edges,
self-loops, weighting) happens inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import TensorProto
from torch import nn

from leanlabel.data.graphs import Normalisation
from leanlabel.evaluation.classifier import Classifier
from leanlabel.export.onnx_builder import Builder, finished, no_form, norm_factors, readout, value
from leanlabel.models.graph import GraphAttention, GraphConvolution, GraphEncoder, GraphIsomorphism
from leanlabel.sparse import Weighting

COLUMNS = 64
"""Columns that are aggregated at a time: running totals take 16 bytes per edge and column."""


class Edges:
    """The stored entries (row, col) of the adjacency inside the graph, and sums over the entries of each row.

    Entries are those of :func:`leanlabel.sparse.from_edges`: each once, without self-loops, with one per node where
    the convolution asks for it.
    """

    def __init__(self, b: Builder, loops: bool, weighting: Weighting) -> None:
        self.b = b
        self.nodes = b("Gather", b("Shape", "x"), b.number([0]))  # (1,)
        count = b("Squeeze", self.nodes)
        every = b("Range", b.number(0), count, b.number(1))
        # Taken from the list of nodes: an id outside of it is an error, and not another edge.
        source = b("Gather", every, b("Gather", "edge_index", b.number(0)))
        target = b("Gather", every, b("Gather", "edge_index", b.number(1)))
        other = b("Not", b("Equal", source, target))
        key = b("Add", b("Mul", target, count), source)
        key = b("Compress", key, other, axis=0)
        if loops:
            key = b("Concat", key, b("Mul", every, b("Add", count, b.number(1))), axis=0)
        key = b("Unique", key, sorted=1)
        self.row = b("Div", key, count)
        self.col = b("Sub", key, b("Mul", self.row, count))
        ones = b("Expand", b.number(1), b("Shape", self.row))
        blank = b("Expand", b.number(0), self.nodes)
        self.count = b("ScatterElements", blank, self.row, ones, axis=0, reduction="add")
        self.end = b("CumSum", self.count, b.number(0))
        self.start = b("Sub", self.end, self.count)
        self.weight = self._weights(weighting)

    def _weights(self, weighting: Weighting) -> str | None:
        """(nnz, 1) weights of the entries; None where all are one."""
        if weighting == "sum":
            return None
        b = self.b
        count = b("Max", b("Cast", self.count, to=TensorProto.FLOAT), b.number(1.0))
        if weighting == "mean":
            weight = b("Reciprocal", b("Gather", count, self.row))
        else:
            root = b("Reciprocal", b("Sqrt", count))
            weight = b("Mul", b("Gather", root, self.row), b("Gather", root, self.col))
        return b("Unsqueeze", weight, b.number([1]))

    def sums(self, values: str) -> str:
        """(N, width) from (nnz, width): the sum over the entries of each row.

        Entries are sorted by row, so each sum is a difference of running totals, in float64. Scattered additions
        would be the obvious form, but onnxruntime 1.32 adds rows that meet in one place from several threads at once
        (ScatterND: results off by up to 47 %, measured) or one number after the other (ScatterElements: a whole
        encoder took four times as long, measured).
        """
        b = self.b
        totals = b("CumSum", b("Cast", values, to=TensorProto.DOUBLE), b.number(0))
        totals = b("Pad", totals, b.number([1, 0, 0, 0]))
        ends, starts = (b("Gather", totals, index, axis=0) for index in (self.end, self.start))
        return b("Cast", b("Sub", ends, starts), to=TensorProto.FLOAT)

    def maxima(self, values: str) -> str:
        """(N, 1) from (nnz, 1): the largest entry of each row."""
        b = self.b
        shape = b("Concat", self.nodes, b.number([1]), axis=0)
        blank = b("Expand", b.number(float(np.finfo(np.float32).min)), shape)
        index = b("Unsqueeze", self.row, b.number([1]))
        return b("ScatterElements", blank, index, values, axis=0, reduction="max")

    def aggregate(self, h: str, width: int) -> str:
        """(N, width) from (N, width): the weighted sum over in-neighbours."""
        b, parts = self.b, []
        for start in range(0, width, COLUMNS):
            end = min(width, start + COLUMNS)
            block = b("Slice", h, b.number([start]), b.number([end]), b.number([1])) if width > COLUMNS else h
            entries = b("Gather", block, self.col, axis=0)
            if self.weight is not None:
                entries = b("Mul", self.weight, entries)
            parts.append(self.sums(entries))
        return parts[0] if len(parts) == 1 else b("Concat", *parts, axis=1)


def graph_model(
    encoder: GraphEncoder, features: int, normalise: Normalisation, classifier: Classifier | None
) -> Any:
    """The ONNX model of an encoder and its readout.

    Inputs: "x" (N, F) float32, features as they are on disk; "edge_index" (2, E) int64, source above target. Outputs:
    "embedding" (N, d) and, with a readout, "probabilities" (N, C), both float32. N and E are free.

    Args:
        encoder: trained encoder, any convolution.
        features: F.
        normalise: what is done to the rows of the features first.
        classifier: readout of the classes.

    Raises:
        InputError: a part that has no form here.
    """
    b = Builder()
    h = _normalised(b, normalise)
    edges = Edges(b, encoder.loops == "add", encoder.weighting)
    norms: list[nn.Module | None] = [*encoder.norms] or [None] * len(encoder.layers)
    for k, (layer, norm) in enumerate(zip(encoder.layers, norms, strict=True)):
        h = _convolution(b, edges, f"layers.{k}", layer, h)
        h = h if norm is None else _batch_norm(b, f"norms.{k}", norm, h)
        last = k + 1 == len(encoder.layers)
        h = _activation(b, encoder.activation, h, "embedding" if last else None)
    outputs = [value("embedding", ["N", encoder.width])]
    if classifier is not None:
        readout(b, classifier, h)
        outputs.append(value("probabilities", ["N", len(classifier.classes)]))
    inputs = [value("x", ["N", features]), value("edge_index", [2, "E"], TensorProto.INT64)]
    return finished(b, "leanlabel graph-nodes", inputs, outputs)


def _normalised(b: Builder, mode: Normalisation) -> str:
    """Rows of the features, scaled as :func:`leanlabel.data.graphs.normalise` does."""
    if mode == "none":
        return "x"
    x = b("Sub", "x", b("ReduceMin", "x", keepdims=1)) if mode == "shifted" else "x"
    total = b("ReduceSum", x, b.number([1]), keepdims=1)
    if mode == "row_sum":
        total = b("Where", b("Equal", total, b.number(0.0)), b.number(1.0), total)
    else:
        total = b("Max", total, b.number(1.0))
    return b("Div", x, total)


def _convolution(b: Builder, edges: Edges, name: str, layer: nn.Module, h: str) -> str:
    if isinstance(layer, GraphConvolution):
        width = layer.weight.shape[1]
        found = edges.aggregate(b("MatMul", h, b.weight(f"{name}.weight", layer.weight)), width)
        if layer.root is not None:
            found = b("Add", found, b("MatMul", h, b.weight(f"{name}.root", layer.root)))
        return b("Add", found, b.weight(f"{name}.bias", layer.bias))
    if isinstance(layer, GraphIsomorphism):
        lifted = b("MatMul", h, b.weight(f"{name}.weight", layer.weight))
        total = b("Add", edges.aggregate(lifted, layer.weight.shape[1]), lifted)
        inner = b("Elu", b("Add", total, b.weight(f"{name}.bias", layer.bias)))
        weight, bias = (
            b.weight(f"{name}.out.{part}", getattr(layer.out, part)) for part in ("weight", "bias")
        )
        return b("Gemm", inner, weight, bias, transB=1)
    if isinstance(layer, GraphAttention):
        return _attention(b, edges, name, layer, h)
    raise no_form(layer)


def _attention(b: Builder, edges: Edges, name: str, layer: GraphAttention, h: str) -> str:
    """Attention over the entries of each row, one head after the other."""
    lifted = b("MatMul", h, b.weight(f"{name}.weight", layer.weight))
    heads, width = layer.source.shape
    found = []
    for k, (start, end) in enumerate(_blocks(heads, width)):
        own = b("Slice", lifted, b.number([start]), b.number([end]), b.number([1]))
        source, target = (
            b("MatMul", own, b.weight(f"{name}.{part}.{k}", getattr(layer, part)[k, :, None]))
            for part in ("source", "target")
        )
        score = b("Add", b("Gather", target, edges.row, axis=0), b("Gather", source, edges.col, axis=0))
        score = b("LeakyRelu", score, alpha=0.2)
        top = edges.maxima(score)
        weight = b("Exp", b("Sub", score, b("Gather", top, edges.row, axis=0)))
        total = edges.sums(weight)
        attention = b("Div", weight, b("Gather", total, edges.row, axis=0))
        found.append(edges.sums(b("Mul", attention, b("Gather", own, edges.col, axis=0))))
    return b("Add", b("Concat", *found, axis=1), b.weight(f"{name}.bias", layer.bias))


def _blocks(count: int, width: int) -> Iterator[tuple[int, int]]:
    return ((k * width, (k + 1) * width) for k in range(count))


def _batch_norm(b: Builder, name: str, norm: nn.Module, h: str) -> str:
    """(x - mean) / sqrt(var + eps) · scale + shift with the running estimates, as one factor and one shift."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        raise no_form(norm)
    factor, shift = norm_factors(norm)
    return b("Add", b("Mul", h, b.weight(f"{name}.factor", factor)), b.weight(f"{name}.shift", shift))


def _activation(b: Builder, activation: nn.Module, h: str, out: str | None) -> str:
    if isinstance(activation, nn.PReLU):
        return b("PRelu", h, b.weight("activation.weight", activation.weight), out=out)
    if isinstance(activation, nn.LeakyReLU):
        return b("LeakyRelu", h, alpha=float(activation.negative_slope), out=out)
    kinds = {nn.ReLU: "Relu", nn.ELU: "Elu", nn.Identity: "Identity"}
    if type(activation) not in kinds:
        raise no_form(f"The activation {type(activation).__name__}")
    return b(kinds[type(activation)], h, out=out)
