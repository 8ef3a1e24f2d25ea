"""Small fully convolutional networks for training dense prediction on a few processor cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from leanlabel.models.decoders import Decoder, Level, classifier, layer, separable, upsample
from leanlabel.models.image import Backbone, NormLayer, check_images, initialise, norm_or_identity


class Shape(NamedTuple):
    """Sizes of one of these networks; see :class:`SmallFCNEncoder` and :class:`SmallFCNDecoder`."""

    widths: tuple[int, int, int]
    fine: int
    dilations: tuple[int, ...]
    width: int
    depthwise: bool


SHAPES = {
    "tiny-fcn": Shape((16, 32, 48), fine=0, dilations=(1, 2, 4), width=48, depthwise=True),
    "small-fcn": Shape((32, 64, 128), fine=1, dilations=(1, 2, 4, 8), width=64, depthwise=False),
}
"""Name -> sizes; 45 and 336 thousand parameters with 11 classes."""


def encoder(name: str, norm: NormLayer | None, channels: int = 3) -> SmallFCNEncoder:
    """Encoder of "tiny-fcn" or "small-fcn", newly initialised."""
    shape = SHAPES[name]
    return SmallFCNEncoder(shape.widths, shape.fine, shape.dilations, norm=norm, channels=channels)


def decoder(
    name: str,
    levels: Sequence[Level],
    classes: int,
    norm: NormLayer | None,
    width: int | None = None,
    dropout: float = 0.0,
) -> SmallFCNDecoder:
    """Decoder of "tiny-fcn" or "small-fcn", newly initialised; width None is the network's own."""
    shape = SHAPES[name]
    return SmallFCNDecoder(levels, classes, width or shape.width, norm, dropout, depthwise=shape.depthwise)


class ContextBlock(nn.Module):
    """Read a dilated neighbourhood of each channel, mix the channels, add the result: y = relu(x + F(x)).

    Args:
        width: channels of x and y.
        dilation: of the first convolution 3x3.
        norm: makes the normalisation of a number of channels; None leaves it out.
    """

    def __init__(self, width: int, dilation: int, norm: NormLayer | None) -> None:
        super().__init__()
        self.first = separable(width, width, norm, dilation=dilation)
        self.second = _mixed(width, width, norm)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.second(self.first(x)))


class SmallFCNEncoder(Backbone):
    """Shrink images by 8 in three steps, then look around by dilation and at the mean of the whole image.

    Args:
        widths: channels at strides 2, 4 and 8.
        fine: plain convolutions 3x3 at stride 4 after the one that shrinks.
        dilations: one block at stride 8 each.
        norm: makes the normalisation of a number of channels; None leaves it out.
        channels: channels of the images.
    """

    def __init__(
        self,
        widths: tuple[int, int, int],
        fine: int,
        dilations: Sequence[int],
        *,
        norm: NormLayer | None = nn.BatchNorm2d,
        channels: int = 3,
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = layer(channels, first, 3, norm, stride=2)
        self.fine = nn.Sequential(
            layer(first, second, 3, norm, stride=2), *[layer(second, second, 3, norm) for _ in range(fine)]
        )
        self.coarse = nn.Sequential(
            layer(second, third, 3, norm, stride=2),
            *[ContextBlock(third, dilation, norm) for dilation in dilations],
        )
        self.whole = nn.Conv2d(third, third, 1)
        self.width = third
        self.min_size = 8
        initialise(self)
        nn.init.zeros_(self.whole.weight)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C_k, h_k, w_k) at strides 4 and 8 of images (B, C, H, W)."""
        check_images(x, self.min_size, "Give larger images.")
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        return [fine, coarse + self.whole(coarse.mean((2, 3), keepdim=True))]


class SmallFCNDecoder(Decoder):
    """Add the enlarged coarse map to the fine one and filter the sum.

    Args:
        levels: the encoder's maps of strides 4 and 8.
        classes: number of classes K.
        width: channels of the features.
        norm: makes the normalisation of a number of channels; None leaves it out.
        dropout: share of the features' channels left out in training before the classifier, 0..1.
        depthwise: filter channels apart in the convolution 3x3.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        classes: int,
        width: int,
        norm: NormLayer | None,
        dropout: float = 0.0,
        *,
        depthwise: bool = True,
    ) -> None:
        super().__init__()
        fine, coarse = levels
        self.width, self.stride = width, fine.stride
        self.from_fine = _mixed(fine.width, width, norm)
        self.from_coarse = _mixed(coarse.width, width, norm)
        self.filter = separable(width, width, norm) if depthwise else layer(width, width, 3, norm)
        initialise(self)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        fine, coarse = maps
        enlarged = upsample(self.from_coarse(coarse), fine.shape[2:])
        return self.filter((self.from_fine(fine) + enlarged).relu())

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(features))


def _mixed(inputs: int, outputs: int, norm: NormLayer | None) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=norm is None), norm_or_identity(norm, outputs))
