"""DAFormer's decoder: all maps at one size, filtered by dilated convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leanlabel.models.decoders import Decoder, Level, classifier, layer, separable, upsample
from leanlabel.models.image import NormLayer, initialise

DILATIONS = (1, 6, 12, 18)
"""As published; 1 stands for a convolution 1x1."""


class DAFormerDecoder(Decoder):
    """Bring all maps to one width and size, then read them at several distances [Hoyer et al. 2022a, section 3.2].

    F = [up(P_1 m_1), ..., up(P_n m_n)],  f = bottleneck([D_1(F), ..., D_k(F)])

    Each P is linear (a convolution 1x1), each D a convolution at one dilation with normalisation and ReLU, the
    bottleneck a convolution 3x3 with both. Mixing all maps before the dilated convolutions, and not the coarsest one
    alone as DeepLab does, is the point of the design.

    Args:
        levels: the encoder's maps, finest first; features have the stride of the finest.
        classes: number of classes K.
        width: channels of each map, of each branch and of the features.
        dilations: one branch each; a dilation of 1 is a convolution 1x1.
        norm: makes the normalisation of a number of channels; None leaves it out.
        depthwise: filter channels apart in the dilated convolutions, as published.
        dropout: share of the features' channels left out in training before the classifier, 0..1.

    Raises:
        ValueError: no dilation, or one below 1.

    Example:
        >>> decoder = DAFormerDecoder([Level(8, 4), Level(16, 8)], classes=5, width=4, dilations=(1, 2))
        >>> features = decoder.fuse([torch.zeros(2, 8, 6, 7), torch.zeros(2, 16, 3, 4)])
        >>> tuple(features.shape), tuple(decoder.classify(features).shape)
        ((2, 4, 6, 7), (2, 5, 6, 7))
    """

    def __init__(
        self,
        levels: Sequence[Level],
        classes: int,
        *,
        width: int = 256,
        dilations: Sequence[int] = DILATIONS,
        norm: NormLayer | None = nn.BatchNorm2d,
        depthwise: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations must be at least one number of at least 1, got {tuple(dilations)}")
        self.width, self.stride = width, levels[0].stride
        self.projections = nn.ModuleList(nn.Conv2d(level.width, width, 1) for level in levels)
        inputs = len(levels) * width
        self.branches = nn.ModuleList(_branch(inputs, width, one, norm, depthwise) for one in dilations)
        self.bottleneck = layer(len(dilations) * width, width, 3, norm)
        initialise(self)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        same = [upsample(project(one), size) for one, project in zip(maps, self.projections, strict=True)]
        mixed = torch.cat(same, 1)
        return self.bottleneck(torch.cat([branch(mixed) for branch in self.branches], 1))

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(features))


def _branch(inputs: int, width: int, dilation: int, norm: NormLayer | None, depthwise: bool) -> nn.Sequential:
    if dilation == 1:
        return layer(inputs, width, 1, norm)
    if depthwise:
        return separable(inputs, width, norm, dilation=dilation)
    return layer(inputs, width, 3, norm, dilation=dilation)
