"""A network that tells two domains apart by maps of a segmentation."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from leanlabel.models.image import check_images


class Discriminator(nn.Module):
    """Score patches of a map: convolutions 4x4 with stride 2 and LeakyReLU 0.2 between them.

    Channels are K, width, 2 width, 4 width, 8 width, 1 with five layers [Tsai et al. 2018]. There is no normalisation:
    a score depends on one image alone. Weights are newly drawn as torch draws those of convolutions.

    Args:
        inputs: channels K of the maps: the number of classes.
        width: channels after the first layer; every further layer but the last doubles them.
        layers: how many convolutions.

    Attributes:
        min_size: smallest side of a map, in pixels: 2 to the power of the layers.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> import torch
        >>> net = Discriminator(19, width=8)
        >>> tuple(net(torch.zeros(2, 19, 64, 100)).shape), net.min_size
        ((2, 1, 2, 3), 32)
    """

    def __init__(self, inputs: int, width: int = 64, layers: int = 5) -> None:
        super().__init__()
        if min(inputs, width, layers) < 1:
            raise ValueError(
                f"channels, width and layers must be at least 1, got {inputs}, {width}, {layers}"
            )
        self.min_size = 2**layers
        channels = [inputs, *(width * 2**k for k in range(layers - 1))]
        parts: list[nn.Module] = []
        for below, above in itertools.pairwise(channels):
            parts += [nn.Conv2d(below, above, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*parts, nn.Conv2d(channels[-1], 1, 4, 2, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Scores (B, 1, H // min_size, W // min_size) of maps (B, K, H, W), before a sigmoid; carries gradient.

        Raises:
            InputError: maps smaller than ``min_size``.
        """
        check_images(maps, self.min_size, "Use larger crops or images, or a discriminator of fewer layers.")
        return self.layers(maps)
