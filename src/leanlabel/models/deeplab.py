"""DeepLab's decoders: a sum of dilated convolutions (v2), and dilated pooling with a finer map beside it (v3+)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanlabel import dist
from leanlabel.errors import InputError
from leanlabel.models.decoders import Decoder, Level, classifier, layer, separable, upsample
from leanlabel.models.image import NormLayer, initialise
from leanlabel.models.norm import SyncBatchNorm

FINE_STRIDE = 4
"""Stride of the finer map that v3+ reads, where the encoder has one [Chen et al. 2018, section 3.1]."""


class DeepLabV2Decoder(Decoder):
    """Sum dilated convolutions 3x3 straight to logits; no normalisation, no pooling over the image.

    logits = sum_d (W_d *_d f + b_d), W_d ~ N(0, 0.01^2), b_d = 0    [Chen et al. 2017, section 3.2; official code]
    f are the encoder's last map, after its last activation; they are the features.

    Args:
        levels: the encoder's maps, finest first.
        classes: number of classes K.
        dilations: one convolution each; padding equals dilation. On a map that is smaller than a dilation only the
            middle of its filter reads anything.

    Example:
        >>> decoder = DeepLabV2Decoder([Level(16, 8)], classes=5, dilations=(1, 2))
        >>> decoder.classify(torch.zeros(1, 16, 6, 7)).shape
        torch.Size([1, 5, 6, 7])
    """

    def __init__(
        self, levels: Sequence[Level], classes: int, dilations: Sequence[int] = (6, 12, 18, 24)
    ) -> None:
        super().__init__()
        _check_dilations(dilations)
        self.width, self.stride = levels[-1]
        self.branches = nn.ModuleList(
            nn.Conv2d(self.width, classes, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d)
            assert branch.bias is not None
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        return maps[-1]

    def classify(self, features: Tensor) -> Tensor:
        first, *others = self.branches
        logits = first(features)
        for branch in others:
            logits = logits + branch(features)
        return logits


class DilatedPooling(nn.Module):
    """Read a map at several distances and as a whole: atrous spatial pyramid pooling [Chen et al. 2017, v3].

    One convolution 1x1, one 3x3 per dilation, and the mean over all positions, each to ``width`` channels with
    normalisation and ReLU; together through a convolution 1x1 to ``width`` channels.

    Args:
        inputs: channels of the map.
        width: channels of the result.
        dilations: of the convolutions 3x3.
        norm: makes the normalisation of a number of channels; None leaves it out.
        depthwise: filter channels apart in the dilated convolutions, as v3+ does.
    """

    def __init__(
        self, inputs: int, width: int, dilations: Sequence[int], norm: NormLayer | None, *, depthwise: bool
    ) -> None:
        super().__init__()
        _check_dilations(dilations)
        dilated = [
            separable(inputs, width, norm, dilation=dilation)
            if depthwise
            else layer(inputs, width, 3, norm, dilation=dilation)
            for dilation in dilations
        ]
        self.branches = nn.ModuleList([layer(inputs, width, 1, norm), *dilated])
        self.whole = layer(inputs, width, 1, norm)
        self.project = layer((len(dilations) + 2) * width, width, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) of a map (B, inputs, h, w).

        Raises:
            InputError: a training batch of one image, whose mean has no batch statistics.
        """
        norm = self.whole[1]
        alone = len(x) == 1 and not (isinstance(norm, SyncBatchNorm) and dist.world() > 1)
        if alone and isinstance(norm, _BatchNorm) and norm.training:
            raise InputError(
                "deeplab-v3+ normalises one value per image and channel, which a batch of one image does not allow.",
                "Train on two or more images per device, or set model.norm to group or frozen (sync: several devices).",
            )
        whole = self.whole(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([*[branch(x) for branch in self.branches], whole], 1))


class DeepLabV3PlusDecoder(Decoder):
    """Dilated pooling of the last map, refined by a finer map of the encoder [Chen et al. 2018, figure 2].

    Args:
        levels: the encoder's maps, finest first; the map of stride 4, or the nearest to it that is finer than the
            last map, is the finer one.
        classes: number of classes K.
        width: channels of the features.
        fine_width: channels that the finer map is reduced to.
        dilations: of the pooling: (6, 12, 18) for an output stride of 16, twice as much for 8.
        norm: makes the normalisation of a number of channels; None leaves it out.
        depthwise: filter channels apart in all convolutions 3x3, as published.
        dropout: share of the features' channels left out in training before the classifier, 0..1.

    Raises:
        InputError: the encoder has no finer map.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        classes: int,
        *,
        width: int = 256,
        fine_width: int = 48,
        dilations: Sequence[int] = (6, 12, 18),
        norm: NormLayer | None = nn.BatchNorm2d,
        depthwise: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        finer = [index for index, level in enumerate(levels) if level.stride < levels[-1].stride]
        if not finer:
            raise InputError(
                f"deeplab-v3+ refines by a finer map, and this encoder has maps of stride {levels[-1].stride} only.",
                "Take deeplab-v2, fcn or linear for it.",
            )
        self.fine = min(finer, key=lambda index: abs(levels[index].stride - FINE_STRIDE))
        self.width, self.stride = width, levels[self.fine].stride
        self.pooling = DilatedPooling(levels[-1].width, width, dilations, norm, depthwise=depthwise)
        self.reduce = layer(levels[self.fine].width, fine_width, 1, norm)
        mix = separable if depthwise else _plain
        self.refine = nn.Sequential(mix(width + fine_width, width, norm), mix(width, width, norm))
        initialise(self)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        fine = self.reduce(maps[self.fine])
        coarse = upsample(self.pooling(maps[-1]), fine.shape[2:])
        return self.refine(torch.cat([coarse, fine], 1))

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(features))


def _plain(inputs: int, outputs: int, norm: NormLayer | None) -> nn.Sequential:
    return layer(inputs, outputs, 3, norm)


def _check_dilations(dilations: Sequence[int]) -> None:
    if not dilations or min(dilations) < 1:
        raise ValueError(f"dilations must be at least one number of at least 1, got {tuple(dilations)}")
