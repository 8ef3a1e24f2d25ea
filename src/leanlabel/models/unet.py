"""U-Net: a contracting path that is pooled, an expanding path that reads the contracting one's maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leanlabel.models.decoders import Decoder, Level, classifier, layer, upsample
from leanlabel.models.image import Backbone, NormLayer, check_images, initialise


class UNetEncoder(Backbone):
    """Two convolutions 3x3 per level, a maximum over 2x2 between levels [Ronneberger et al. 2015].

    Level i has width * 2^i channels; the coarsest as many as the one before, as is usual where maps are enlarged
    without weights. Images of any size from 2^levels pixels on: pools at a border read what is there, as if
    images were padded.

    Args:
        width: channels of the finest level.
        levels: number of poolings, >= 1.
        norm: makes the normalisation of a number of channels; None leaves it out.
        channels: channels of the images.
    """

    def __init__(
        self,
        width: int = 64,
        levels: int = 4,
        norm: NormLayer | None = nn.BatchNorm2d,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if width < 1 or levels < 1:
            raise ValueError(
                f"a U-Net needs a width and a number of poolings of at least 1, got {width}, {levels}"
            )
        self.widths = [width * 2 ** min(level, levels - 1) for level in range(levels + 1)]
        below = (channels, *self.widths[:-1])
        self.levels = nn.ModuleList(
            _double(inputs, outputs, norm) for inputs, outputs in zip(below, self.widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.width = self.widths[-1]
        self.min_size = 2**levels
        initialise(self)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C_k, h_k, w_k) of all levels, finest first, of images (B, C, H, W)."""
        check_images(x, self.min_size, "Give larger images, or fewer levels.")
        maps: list[Tensor] = []
        for level in self.levels:
            x = level(self.pool(maps[-1]) if maps else x)
            maps.append(x)
        return maps


class UNetDecoder(Decoder):
    """Enlarge the coarsest map step by step, each time together with the encoder's map of that size.

    Maps are doubled bilinearly and cut to the finer map, so that positions stay where they are for images of any
    size. Logits have the size of the image.

    Args:
        levels: the encoder's maps, finest first; each stride twice the one before.
        classes: number of classes K.
        norm: makes the normalisation of a number of channels; None leaves it out.
        dropout: share of the features' channels left out in training before the classifier, 0..1.
    """

    def __init__(
        self, levels: Sequence[Level], classes: int, norm: NormLayer | None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [level.width for level in levels]
        self.steps = nn.ModuleList()
        inputs = widths[-1]
        for level in reversed(range(len(widths) - 1)):
            outputs = widths[max(level - 1, 0)]
            self.steps.append(_double(inputs + widths[level], outputs, norm))
            inputs = outputs
        self.width, self.stride = inputs, levels[0].stride
        initialise(self)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(self.width, classes)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[-1]
        for step, finer in zip(self.steps, reversed(maps[:-1]), strict=True):
            height, width = finer.shape[2:]
            larger = upsample(x, (2 * x.shape[2], 2 * x.shape[3]))[:, :, :height, :width]
            x = step(torch.cat([larger, finer], 1))
        return x

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(features))


def _double(inputs: int, outputs: int, norm: NormLayer | None) -> nn.Sequential:
    return nn.Sequential(layer(inputs, outputs, 3, norm), layer(outputs, outputs, 3, norm))
