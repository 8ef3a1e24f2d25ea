"""A small convolutional network for processors without an accelerator, and for tests."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from leanlabel.models.image import Backbone, NormLayer, check_images, initialise, norm_or_identity


class SmallCNN(Backbone):
    """Stack stages of convolution 3x3 with stride 2, normalisation and ReLU; average over positions.

    Args:
        widths: channels of the stages, at least one stage.
        first_stride: stride of the first stage; 1 keeps one more octave of detail at about four times the
            cost.
        norm: makes the normalisation of a number of channels; None leaves it out and gives the convolutions a
            bias.
        channels: channels of the images.

    Example:
        >>> import torch
        >>> net = SmallCNN((8, 16))
        >>> net(torch.zeros(2, 3, 32, 32)).shape, [tuple(m.shape) for m in net.maps(torch.zeros(2, 3, 32, 32))]
        (torch.Size([2, 16]), [(2, 8, 16, 16), (2, 16, 8, 8)])
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 128),
        first_stride: Literal[1, 2] = 2,
        norm: NormLayer | None = nn.BatchNorm2d,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"a network needs widths of at least one channel, got {widths}")
        below = (channels, *widths[:-1])
        strides = (first_stride, *[2] * (len(widths) - 1))
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=norm is None),
                norm_or_identity(norm, outputs),
                nn.ReLU(inplace=True),
            )
            for inputs, outputs, stride in zip(below, widths, strides, strict=True)
        )
        self.width = widths[-1]
        self.min_size = first_stride * 2 ** (len(widths) - 1)
        initialise(self)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C_k, h_k, w_k) of all stages, finest first, of images (B, C, H, W)."""
        check_images(x, self.min_size, "Give larger images, or fewer widths.")
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
