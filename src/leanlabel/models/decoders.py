"""What all decoders of dense prediction share, and the two plainest of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from leanlabel.models.image import NormLayer, initialise, norm_or_identity


class Level(NamedTuple):
    """One map of an encoder: its channels, and the pixels of the image per position."""

    width: int
    stride: int


class Decoder(nn.Module):
    """From an encoder's maps to features, and from features to logits.

    Attributes:
        width: channels of the features.
        stride: pixels of the image per position of features and logits.
    """

    width: int
    stride: int

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Features (B, width, h, w) from the encoder's maps, finest first."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, K, h, w) from features (B, width, h, w)."""
        raise NotImplementedError


class LinearDecoder(Decoder):
    """Classify each position of the encoder's last map by itself.

    Args:
        levels: the encoder's maps, finest first.
        classes: number of classes K.
        dropout: share of the map's channels left out in training, 0..1.
    """

    def __init__(self, levels: Sequence[Level], classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.stride = levels[-1]
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(self.width, classes)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        return maps[-1]

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(features))


class ConvDecoder(Decoder):
    """Filter the encoder's last map 3x3, then classify each position [Long et al. 2015, without skips].

    Args:
        levels: the encoder's maps, finest first.
        classes: number of classes K.
        width: channels of the features.
        norm: makes the normalisation of a number of channels; None leaves it out.
        dropout: share of the features' channels left out in training, 0..1.
    """

    def __init__(
        self, levels: Sequence[Level], classes: int, width: int, norm: NormLayer | None, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.width, self.stride = width, levels[-1].stride
        self.filter = layer(levels[-1].width, width, 3, norm)
        initialise(self)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        return self.filter(maps[-1])

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(features))


def layer(
    inputs: int,
    outputs: int,
    kernel: int,
    norm: NormLayer | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Convolution that keeps the size (but for its stride), normalisation, ReLU; a bias only without norm."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=norm is None),
        norm_or_identity(norm, outputs),
        nn.ReLU(inplace=True),
    )


def separable(
    inputs: int, outputs: int, norm: NormLayer | None, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Filter each channel 3x3, then mix channels 1x1; both with normalisation and ReLU."""
    return nn.Sequential(
        layer(inputs, inputs, 3, norm, stride=stride, dilation=dilation, groups=inputs),
        layer(inputs, outputs, 1, norm),
    )


def classifier(width: int, classes: int) -> nn.Conv2d:
    """Convolution 1x1 to logits, newly drawn from N(0, 0.01^2) with biases 0."""
    new = nn.Conv2d(width, classes, 1)
    nn.init.normal_(new.weight, std=0.01)
    nn.init.zeros_(_bias(new))
    return new


def upsample(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Resize maps bilinearly; a map that has the size already is returned as it is.

    Args:
        x: (B, C, h, w), carries gradient.
        size: height and width wanted.
        align_corners: lay the centres of the corner positions of both sizes onto each other, as DeepLab's code
            does; otherwise the outer edges.

    Returns:
        (B, C, *size), in the dtype of x.

    Example:
        >>> import torch
        >>> upsample(torch.tensor([[[[0.0, 1.0]]]]), (1, 3), align_corners=True).flatten().tolist()
        [0.0, 0.5, 1.0]
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, list(size), mode="bilinear", align_corners=align_corners)


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias
