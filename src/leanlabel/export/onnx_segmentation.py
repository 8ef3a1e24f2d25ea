"""A convolutional segmentation network as an ONNX graph, for images of any size.

Nothing in the graph holds a size of an image: maps are brought to the sizes of others while it runs. Batch
normalisations are in evaluation mode and multiplied into the convolutions before them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from onnx import TensorProto
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanlabel.export.onnx_builder import Builder, finished, no_form, norm_factors, value
from leanlabel.export.onnx_images import (
    INPUT,
    _column,
    _filtered,
    _group_norm,
    _inverted,
    _residual,
    _sequence,
)
from leanlabel.models.daformer import DAFormerDecoder
from leanlabel.models.decoders import ConvDecoder, LinearDecoder
from leanlabel.models.deeplab import DeepLabV2Decoder, DeepLabV3PlusDecoder, DilatedPooling
from leanlabel.models.frozen_norm import FrozenBatchNorm
from leanlabel.models.mobilenet import MAPS, InvertedResidual, MobileNetV2
from leanlabel.models.multi_resolution import MultiResolution
from leanlabel.models.resnet import ResNet
from leanlabel.models.segformer import MlpDecoder
from leanlabel.models.segmenters import Segmenter
from leanlabel.models.small_cnn import SmallCNN
from leanlabel.models.tiny_fcn import ContextBlock, SmallFCNDecoder, SmallFCNEncoder
from leanlabel.models.unet import UNetDecoder, UNetEncoder

SIZE = "size"
"""Name of the input that says how large the outputs are."""


def segmentation_model(
    network: Segmenter,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    base: int | None = None,
    sized: bool = False,
) -> Any:
    """The ONNX model of a segmentation network, from pixels to classes.

    Input: "image" (B, C, H, W) float32 from 0 to 1. Outputs of the size of the image: "logits" (B, K, H, W) float32,
    "classes" (B, H, W) uint8 and "confidence" (B, H, W) float32, the probability of that class. B, H and W are free.

    Args:
        network: trained; a fully convolutional encoder of this library with any of its decoders.
        mean: one per channel, subtracted inside.
        std: one per channel, divided by inside.
        base: shorter side in pixels to which images are scaled inside, bilinear, antialiased; None: as they are.
        sized: add an input "size" (2,) int64: height and width of the outputs in place of those of the image.

    Raises:
        InputError: a part that has no form here, such as a transformer or windows at a second scale.
    """
    if isinstance(network, MultiResolution):
        raise no_form("A network that reads images at two scales (model.multi_resolution)")
    net, align = _thawed(network), network.align_corners
    b = Builder()
    centre, width = (
        b.weight(name, _column(torch.tensor(tuple(row)))) for name, row in (("mean", mean), ("std", std))
    )
    x = b("Div", b("Sub", INPUT, centre), width)
    x = x if base is None else _based(b, x, base)
    maps = _maps(b, net.encoder, x)
    small, classes = _logits(b, net.decoder, maps)
    wanted = SIZE if sized else _size(b, INPUT)
    logits = _resized(b, small, wanted, align=align, out="logits")
    chosen = b("ArgMax", logits, axis=1, keepdims=0)
    b("Cast", chosen, to=TensorProto.UINT8, out="classes")
    b("ReduceMax", b("Softmax", logits, axis=1), b.number([1]), keepdims=0, out="confidence")
    sides = ["height", "width"] if sized else ["H", "W"]
    inputs = [value(INPUT, ["B", len(mean), "H", "W"])]
    inputs += [value(SIZE, [2], TensorProto.INT64)] if sized else []
    outputs = [
        value("logits", ["B", classes, *sides]),
        value("classes", ["B", *sides], TensorProto.UINT8),
        value("confidence", ["B", *sides]),
    ]
    return finished(b, "leanlabel segmentation", inputs, outputs)


def _thawed(network: Segmenter) -> Segmenter:
    """A copy whose frozen normalisations are batch norms with the same values."""
    made = copy.deepcopy(network).cpu().eval()
    for parent in list(made.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, FrozenBatchNorm):
                setattr(parent, name, _plain_norm(child))
    return made


def _plain_norm(frozen: FrozenBatchNorm) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(frozen.num_features, eps=frozen.eps).to(frozen.weight.dtype).eval()
    weight, variance = frozen.weight, frozen.running_var
    if frozen.eps == 0:  # as FrozenBatchNorm does it: a constant channel gives its bias
        constant = variance == 0
        weight, variance = weight.masked_fill(constant, 0), variance.masked_fill(constant, 1)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(frozen.bias)
        norm.running_mean.copy_(frozen.running_mean)
        norm.running_var.copy_(variance)
    return norm


def _size(b: Builder, x: str) -> str:
    """(2,) int64: height and width of maps (B, C, h, w)."""
    return b("Slice", b("Shape", x), b.number([2]), b.number([4]))


def _resized(b: Builder, x: str, size: str, *, align: bool = False, out: str | None = None) -> str:
    """Maps brought to a height and width, bilinear."""
    how = "align_corners" if align else "half_pixel"
    return b(
        "Resize", x, "", "", size, mode="linear", axes=[2, 3], coordinate_transformation_mode=how, out=out
    )


def _based(b: Builder, x: str, base: int) -> str:
    """Images scaled so that their shorter side has ``base`` pixels; antialiased, which changes nothing in larger ones.

    The longer side is rounded in float64, halves to the even number, as Python does. What lies outside of the image is
    left out of its means, as torch does; the operator would repeat the border.
    """
    size = _size(b, x)
    short = b("ReduceMin", size, b.number([0]), keepdims=1)
    double = TensorProto.DOUBLE
    sides = b("Div", b("Cast", b("Mul", size, b.number(base)), to=double), b("Cast", short, to=double))
    size = b("Max", b("Cast", b("Round", sides), to=TensorProto.INT64), b.number([1]))
    how = {"mode": "linear", "axes": [2, 3], "coordinate_transformation_mode": "half_pixel"}
    return b("Resize", x, "", "", size, antialias=1, exclude_outside=1, **how)


def _maps(b: Builder, net: nn.Module, x: str) -> list[str]:
    """The maps (B, C_k, h_k, w_k) of an encoder, finest first."""
    maps: list[str] = []
    if isinstance(net, SmallCNN):
        for k, stage in enumerate(net.stages):
            x = _sequence(b, f"stages.{k}", stage, x)
            maps.append(x)
    elif isinstance(net, MobileNetV2):
        wanted = (*MAPS, len(net.features) - 1)
        for k, layer in enumerate(net.features):
            write = _inverted if isinstance(layer, InvertedResidual) else _sequence
            x = write(b, f"features.{k}", layer, x)  # type: ignore[arg-type]
            maps += [x] if k in wanted else []
    elif isinstance(net, ResNet):
        x = b("Relu", _filtered(b, "conv1", net.conv1, net.bn1, x))
        if isinstance(net.maxpool, nn.MaxPool2d):
            x = b("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for k, block in enumerate(getattr(net, stage)):
                x = _residual(b, f"{stage}.{k}", block, x)
            maps.append(x)
    elif isinstance(net, UNetEncoder):
        for k, level in enumerate(net.levels):
            x = b("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1) if k else x
            x = _sequence(b, f"levels.{k}", level, x)
            maps.append(x)
    elif isinstance(net, SmallFCNEncoder):
        fine = _sequence(b, "fine", net.fine, _sequence(b, "stem", net.stem, x))
        maps = [fine, _coarse(b, net, fine)]
    else:
        raise no_form(f"The encoder {type(getattr(net, 'net', net)).__name__}")
    return maps


def _coarse(b: Builder, net: SmallFCNEncoder, x: str) -> str:
    """The map at stride 8 of a small fully convolutional network: blocks, and the mean of the whole image."""
    for k, part in enumerate(net.coarse):
        name = f"coarse.{k}"
        if isinstance(part, ContextBlock):
            y = _sequence(b, f"{name}.first", part.first, x)
            x = b("Relu", b("Add", x, _sequence(b, f"{name}.second", part.second, y)))
        else:
            x = _sequence(b, name, part, x)
    whole = _filtered(b, "whole", net.whole, nn.Identity(), b("GlobalAveragePool", x))
    return b("Add", x, whole)


def _logits(b: Builder, net: nn.Module, maps: Sequence[str]) -> tuple[str, int]:
    """Logits (B, K, h, w) of an encoder's maps, at the stride of the network, and K."""
    if isinstance(net, DeepLabV2Decoder):
        logits = ""
        for k, branch in enumerate(net.branches):
            one = _filtered(b, f"branches.{k}", branch, nn.Identity(), maps[-1])
            logits = b("Add", logits, one) if k else one
        return logits, net.branches[0].out_channels  # type: ignore[return-value]
    features = _features(b, net, maps)
    last = net.classifier
    assert isinstance(last, nn.Conv2d)
    return _filtered(b, "classifier", last, nn.Identity(), features), last.out_channels


def _features(b: Builder, net: nn.Module, maps: Sequence[str]) -> str:
    """Features (B, D, h, w) of an encoder's maps."""
    if isinstance(net, LinearDecoder):
        return maps[-1]
    if isinstance(net, ConvDecoder):
        return _sequence(b, "filter", net.filter, maps[-1])
    if isinstance(net, DeepLabV3PlusDecoder):
        fine = _sequence(b, "reduce", net.reduce, maps[net.fine])
        coarse = _resized(b, _pooled(b, net.pooling, maps[-1]), _size(b, fine))
        return _sequence(b, "refine", net.refine, b("Concat", coarse, fine, axis=1))
    if isinstance(net, UNetDecoder):
        return _expanded(b, net, maps)
    if isinstance(net, SmallFCNDecoder):
        fine, coarse = maps
        fine = _sequence(b, "from_fine", net.from_fine, fine)
        enlarged = _resized(b, _sequence(b, "from_coarse", net.from_coarse, coarse), _size(b, fine))
        return _sequence(b, "filter", net.filter, b("Relu", b("Add", fine, enlarged)))
    if isinstance(net, MlpDecoder):
        return _mixed(b, net, maps)
    if isinstance(net, DAFormerDecoder):
        return _joined(b, net, maps)
    raise no_form(f"The decoder {type(net).__name__}")


def _pooled(b: Builder, net: DilatedPooling, x: str) -> str:
    """Dilated pooling of a map, with the mean over all positions as one more branch."""
    branches = [_sequence(b, f"pooling.branches.{k}", branch, x) for k, branch in enumerate(net.branches)]
    whole = _sequence(b, "pooling.whole", net.whole, b("GlobalAveragePool", x))
    whole = b("Expand", whole, b("Concat", b.number([1, 1]), _size(b, x), axis=0))
    return _sequence(b, "pooling.project", net.project, b("Concat", *branches, whole, axis=1))


def _expanded(b: Builder, net: UNetDecoder, maps: Sequence[str]) -> str:
    """The expanding path of a U-Net: doubled, cut to the finer map, filtered together with it."""
    x = maps[-1]
    for k, (step, finer) in enumerate(zip(net.steps, reversed(maps[:-1]), strict=True)):
        larger = _resized(b, x, b("Mul", _size(b, x), b.number([2])))
        larger = b("Slice", larger, b.number([0, 0]), _size(b, finer), b.number([2, 3]))
        x = _sequence(b, f"steps.{k}", step, b("Concat", larger, finer, axis=1))
    return x


def _mixed(b: Builder, net: MlpDecoder, maps: Sequence[str]) -> str:
    """All maps at one width and size, added up; each projection is multiplied into its part of what mixes them."""
    size, total = _size(b, maps[0]), ""
    for k, (one, projection, part) in enumerate(
        zip(maps, net.projections, net.mix.weight.double().split(net.width, 1), strict=True)
    ):
        assert isinstance(projection, nn.Conv2d)
        assert projection.bias is not None
        mix = part.flatten(1)
        joint = [mix @ projection.weight.double().flatten(1), mix @ projection.bias.double()]
        names = [
            b.weight(f"mixed.{k}.weight", joint[0][:, :, None, None]),
            b.weight(f"mixed.{k}.bias", joint[1]),
        ]
        mixed = _resized(b, b("Conv", one, *names, kernel_shape=[1, 1]), size)
        total = b("Add", total, mixed) if k else mixed
    if net.mix.bias is not None:
        total = b("Add", total, b.weight("mix.bias", _column(net.mix.bias)))
    return b("Relu", _normalised(b, "norm", net.norm, total))


def _joined(b: Builder, net: DAFormerDecoder, maps: Sequence[str]) -> str:
    """All maps at one width and size, side by side, read at several dilations."""
    size, same = _size(b, maps[0]), []
    for k, (one, projection) in enumerate(zip(maps, net.projections, strict=True)):
        one = _filtered(b, f"projections.{k}", projection, nn.Identity(), one)
        same.append(_resized(b, one, size) if k else one)
    mixed = b("Concat", *same, axis=1)
    branches = [_sequence(b, f"branches.{k}", branch, mixed) for k, branch in enumerate(net.branches)]
    return _sequence(b, "bottleneck", net.bottleneck, b("Concat", *branches, axis=1))


def _normalised(b: Builder, name: str, norm: nn.Module, x: str) -> str:
    """A normalisation that no convolution stands before."""
    if isinstance(norm, nn.Identity):
        return x
    if isinstance(norm, nn.GroupNorm):
        return _group_norm(b, name, norm, x)
    if not isinstance(norm, _BatchNorm):
        raise no_form(norm)
    factor, shift = (_column(one) for one in norm_factors(norm))
    return b("Add", b("Mul", x, b.weight(f"{name}.factor", factor)), b.weight(f"{name}.shift", shift))
