"""What every ONNX model here is built with: operators one by one, the readout, the finished file.

Written by hand rather than traced: the tracing exporter of torch changes from version to version, needs another
package, and fails on sizes that depend on the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import Classifier

OPSET, IR = 18, 9
"""Operator set, and file version: what onnxruntime 1.18 reads."""


class Builder:
    """Nodes and constants of a graph under construction; every call gives the name of a new value."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def __call__(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Add one operator."""
        name = out or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def number(self, value: float | int | list[int]) -> str:
        """A constant: int64 for integers, float32 for the others."""
        kind = np.float32 if isinstance(value, float) else np.int64
        return self._constant(f"c {value}", np.asarray(value, dtype=kind))

    def weight(self, name: str, value: Tensor | None) -> str:
        """A parameter of the network, float32."""
        assert value is not None
        return self._constant(name, value.detach().float().contiguous().numpy())

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name


def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    """An input or output of a model; text in its shape names a free size."""
    return helper.make_tensor_value_info(name, kind, shape)


def finished(b: Builder, name: str, inputs: list[Any], outputs: list[Any]) -> Any:
    """The checked model of what was built."""
    graph = helper.make_graph(b.nodes, name, inputs, outputs, [*b.constants.values()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    model.producer_name = "leanlabel"
    onnx.checker.check_model(model, full_check=True)
    return model


def no_form(part: nn.Module | str) -> InputError:
    """What is said of a part that cannot be written."""
    name = part if isinstance(part, str) else f"The layer {type(part).__name__}"
    return InputError(f"{name} has no form in ONNX yet.", "Use --format safetensors.")


def norm_factors(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """Batch normalisation with its running estimates as x * factor + shift, both (C,) float64.

    factor = scale / sqrt(var + eps), shift = bias - mean * factor.

    Raises:
        InputError: it keeps no running estimates.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise InputError("Batch normalisation without running estimates has no form in ONNX.")
    factor = (variance.double() + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.double()
    shift = -mean.double() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.double()


def readout(b: Builder, classifier: Classifier, z: str) -> None:
    """Add "probabilities": softmax(u W^T + b), u = z / ||z|| where the readout says so; a row of norm 0 stays."""
    if classifier.normalise:
        norm = b("ReduceL2", z, b.number([1]), keepdims=1)
        z = b("Div", z, b("Where", b("Equal", norm, b.number(0.0)), b.number(1.0), norm))
    weight = b.weight("readout.weight", classifier.weight)
    logits = b("Gemm", z, weight, b.weight("readout.bias", classifier.bias), transB=1)
    b("Softmax", logits, axis=1, out="probabilities")
