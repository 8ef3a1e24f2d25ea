"""A convolutional image backbone as an ONNX graph, with the normalisation of its images inside.

Batch normalisations are in evaluation mode and multiplied into the convolutions before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanlabel.evaluation.classifier import Classifier
from leanlabel.export.onnx_builder import Builder, finished, no_form, norm_factors, readout, value
from leanlabel.models.mobilenet import InvertedResidual, MobileNetV2
from leanlabel.models.resnet import BasicBlock, Bottleneck, ResNet
from leanlabel.models.small_cnn import SmallCNN

INPUT = "image"
"""Name of the input."""


def image_model(
    backbone: nn.Module,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    head: nn.Sequential | None = None,
    classifier: Classifier | None = None,
) -> Any:
    """The ONNX model of a backbone, of what follows it, and of its readout.

    Input: "image" (B, 3, size, size) float32, RGB from 0 to 1. Outputs: "embedding" (B, d) and, with a readout,
    "probabilities" (B, C), both float32. B is free.

    Args:
        backbone: trained small-cnn, resnet or mobilenet-v2.
        size: height and width of the images.
        mean: per channel, subtracted inside.
        std: per channel, divided by inside.
        head: linear layers, batch norms and ReLUs between the pooled features and the embedding.
        classifier: readout of the classes.

    Raises:
        InputError: a part that has no form here, such as a transformer.
    """
    b = Builder()
    centre, width = (
        b.weight(name, _column(torch.tensor(row))) for name, row in (("mean", mean), ("std", std))
    )
    x = _last_map(b, backbone, b("Div", b("Sub", INPUT, centre), width))
    pooled = b("GlobalAveragePool", x)
    z = b("Flatten", pooled, axis=1, out=None if head else "embedding")
    columns = int(backbone.width)  # type: ignore[arg-type]
    if head:
        z, columns = _head(b, head, z, columns)
    outputs = [value("embedding", ["B", columns])]
    if classifier is not None:
        readout(b, classifier, z)
        outputs.append(value("probabilities", ["B", len(classifier.classes)]))
    return finished(b, "leanlabel images", [value(INPUT, ["B", 3, size, size])], outputs)


def _last_map(b: Builder, net: nn.Module, x: str) -> str:
    """The last map (B, C, h, w) of a backbone."""
    if isinstance(net, SmallCNN):
        for k, stage in enumerate(net.stages):
            x = _sequence(b, f"stages.{k}", stage, x)
        return x
    if isinstance(net, MobileNetV2):
        for k, layer in enumerate(net.features):
            name = f"features.{k}"
            x = (
                _inverted(b, name, layer, x)
                if isinstance(layer, InvertedResidual)
                else _sequence(b, name, layer, x)
            )
        return x
    if isinstance(net, ResNet):
        x = b("Relu", _filtered(b, "conv1", net.conv1, net.bn1, x))
        if isinstance(net.maxpool, nn.MaxPool2d):
            x = b("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for k, block in enumerate(getattr(net, stage)):
                x = _residual(b, f"{stage}.{k}", block, x)
        return x
    raise no_form(f"The backbone {type(getattr(net, 'net', net)).__name__}")


def _residual(b: Builder, name: str, block: nn.Module, x: str) -> str:
    """relu(F(x) + S(x)); an activation between the convolutions of F, none behind the last."""
    if not isinstance(block, BasicBlock | Bottleneck):
        raise no_form(block)
    y, count = x, 3 if isinstance(block, Bottleneck) else 2
    for k in range(1, count + 1):
        y = _filtered(b, f"{name}.conv{k}", getattr(block, f"conv{k}"), getattr(block, f"bn{k}"), y)
        y = y if k == count else b("Relu", y)
    shortcut = x if block.downsample is None else _sequence(b, f"{name}.downsample", block.downsample, x)
    return b("Relu", b("Add", y, shortcut))


def _inverted(b: Builder, name: str, block: InvertedResidual, x: str) -> str:
    y = _sequence(b, f"{name}.conv", block.conv, x)
    return b("Add", x, y) if block.residual else y


def _sequence(b: Builder, name: str, layers: nn.Module, x: str) -> str:
    """Convolutions, each with the normalisation behind it, activations, and sequences of these."""
    parts = list(layers.children())
    for k, part in enumerate(parts):
        if isinstance(part, nn.Conv2d):
            after = parts[k + 1] if k + 1 < len(parts) else nn.Identity()
            x = _filtered(b, f"{name}.{k}", part, after if _is_norm(after) else nn.Identity(), x)
        elif isinstance(part, nn.ReLU6):
            x = b("Clip", x, b.number(0.0), b.number(6.0))
        elif isinstance(part, nn.ReLU):
            x = b("Relu", x)
        elif isinstance(part, nn.Sequential):
            x = _sequence(b, f"{name}.{k}", part, x)
        elif not (_is_norm(part) and k and isinstance(parts[k - 1], nn.Conv2d)):
            raise no_form(part)
    return x


def _is_norm(part: nn.Module) -> bool:
    return isinstance(part, _BatchNorm | nn.GroupNorm | nn.Identity)


def _filtered(b: Builder, name: str, conv: nn.Module, norm: nn.Module, x: str) -> str:
    """A convolution and its normalisation."""
    if not isinstance(conv, nn.Conv2d) or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise no_form(conv)
    weight = conv.weight.double()
    bias = None if conv.bias is None else conv.bias.double()
    if isinstance(norm, _BatchNorm):
        factor, shift = norm_factors(norm)
        weight = weight * factor[:, None, None, None]
        bias = shift if bias is None else shift + bias * factor
    inputs = [b.weight(f"{name}.weight", weight)]
    inputs += [] if bias is None else [b.weight(f"{name}.bias", bias)]
    y = b(
        "Conv",
        x,
        *inputs,
        kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride),
        pads=[*conv.padding, *conv.padding],
        dilations=list(conv.dilation),
        group=conv.groups,
    )
    if isinstance(norm, nn.GroupNorm):
        return _group_norm(b, name, norm, y)
    if not isinstance(norm, _BatchNorm | nn.Identity):
        raise no_form(norm)
    return y


def _group_norm(b: Builder, name: str, norm: nn.GroupNorm, x: str) -> str:
    """Each group of channels of each image by its own mean and variance, then scale and shift.

    As an instance normalisation of (B, groups, rest): the operator of this name takes one scale per group in this
    version of the operator set.
    """
    groups = norm.num_groups
    flat = b("Reshape", x, b.number([0, groups, -1]))
    ones = b.weight(f"ones {groups}", torch.ones(groups))
    zeros = b.weight(f"zeros {groups}", torch.zeros(groups))
    flat = b("InstanceNormalization", flat, ones, zeros, epsilon=norm.eps)
    y = b("Reshape", flat, b("Shape", x))
    if norm.weight is None:
        return y
    y = b("Mul", y, b.weight(f"{name}.scale", _column(norm.weight)))
    return b("Add", y, b.weight(f"{name}.shift", _column(norm.bias)))


def _head(b: Builder, head: nn.Sequential, z: str, width: int) -> tuple[str, int]:
    """Linear layers with the batch norms behind them, and ReLUs; the last value is "embedding"."""
    parts = list(head)
    for k, part in enumerate(parts):
        out = "embedding" if k + 1 == len(parts) else None
        if isinstance(part, nn.Linear):
            bias = torch.zeros(part.out_features) if part.bias is None else part.bias
            weight = b.weight(f"projector.{k}.weight", part.weight)
            z = b("Gemm", z, weight, b.weight(f"projector.{k}.bias", bias), transB=1, out=out)
            width = part.out_features
        elif isinstance(part, _BatchNorm):
            factor, shift = (
                b.weight(f"projector.{k}.{n}", v) for n, v in zip(("f", "s"), norm_factors(part), strict=True)
            )
            z = b("Add", b("Mul", z, factor), shift, out=out)
        elif isinstance(part, nn.ReLU):
            z = b("Relu", z, out=out)
        else:
            raise no_form(part)
    return z, width


def _column(values: Tensor) -> Tensor:
    """(C,) as (C, 1, 1), which is added to and multiplied with maps (B, C, h, w)."""
    return values[:, None, None]
