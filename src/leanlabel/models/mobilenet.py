"""MobileNet-V2 with torchvision's names of parameters."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from leanlabel.models.image import Backbone, NormLayer, check_images, initialise, norm_or_identity

# Expansion, channels, blocks, stride [Sandler et al. 2018, table 2].
ROWS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, WIDTH = 32, 1280
# Last layer before each change of resolution from 1/4 on; the last map is that of the last layer.
MAPS = (3, 6, 13)


class InvertedResidual(nn.Module):
    """Widen by a convolution 1x1, filter each channel 3x3, narrow by 1x1 without activation.

    y = F(x), plus x where the shape stays the same [Sandler et al. 2018, section 3.4].

    Args:
        inputs: channels of x.
        outputs: channels of y.
        stride: of the 3x3 convolution.
        expansion: factor of the channels between; 1 leaves the first convolution out.
        norm: see :class:`MobileNetV2`.
        dilation: of the 3x3 convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        expansion: int,
        norm: NormLayer | None,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        widen = [] if expansion == 1 else [_layer(inputs, inner, 1, 1, 1, norm)]
        self.conv = nn.Sequential(
            *widen,
            _layer(inner, inner, 3, stride, inner, norm, dilation),
            nn.Conv2d(inner, outputs, 1, bias=norm is None),
            norm_or_identity(norm, outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(Backbone):
    """MobileNet-V2 of width 1 without its classifier; names of parameters as in torchvision.

    Args:
        stem: "imagenet", or "cifar" for images of 32 to 64 pixels: the first convolution and the first stage
            with stride 2 keep the resolution.
        output_stride: pixels of the image per position of the last map: 32, 16 or 8 (8, 4 or 2 with the
            "cifar" stem). Below the largest, strides are replaced by dilation, and maps become finer while all
            weights keep their meaning. None: the largest.
        top: keep the last convolution 1x1 to 1280 channels; without it the last map has 320, which dense
            prediction reads.
        norm: makes the normalisation of a number of channels; None leaves it out and gives the convolutions a
            bias.
        channels: channels of the images.

    Example:
        >>> import torch
        >>> net = MobileNetV2(stem="cifar").eval()
        >>> net.width, [tuple(m.shape[1:]) for m in net.maps(torch.zeros(1, 3, 32, 32))]
        (1280, [(24, 32, 32), (32, 16, 16), (96, 8, 8), (1280, 4, 4)])
    """

    def __init__(
        self,
        *,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        output_stride: int | None = None,
        top: bool = True,
        norm: NormLayer | None = nn.BatchNorm2d,
        channels: int = 3,
    ) -> None:
        super().__init__()
        small = stem == "cifar"
        largest = 8 if small else 32
        output_stride = output_stride or largest
        if largest % output_stride or largest // output_stride not in (1, 2, 4):
            raise ValueError(
                f"with stem {stem!r} the output stride is {largest}, {largest // 2} or {largest // 4}, "
                f"got {output_stride}"
            )
        layers: list[nn.Module] = [_layer(channels, STEM, 3, 1 if small else 2, 1, norm)]
        inputs, reached, dilation = STEM, 1 if small else 2, 1
        for row, (expansion, outputs, count, stride) in enumerate(ROWS):
            for block in range(count):
                step = stride if block == 0 and not (small and row == 1) else 1
                before = dilation
                if step == 2 and reached == output_stride:
                    # This filter still reads the finer map; those behind it skip every second position.
                    step, dilation = 1, 2 * dilation
                reached *= step
                layers.append(InvertedResidual(inputs, outputs, step, expansion, norm, before))
                inputs = outputs
        if top:
            layers.append(_layer(inputs, WIDTH, 1, 1, 1, norm))
        self.features = nn.Sequential(*layers)
        self.width = WIDTH if top else inputs
        self.output_stride = output_stride
        self.min_size = largest
        initialise(self)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C_k, h_k, w_k) at four resolutions, finest first, of images (B, C, H, W)."""
        check_images(x, self.min_size, "Give larger images, or set stem to cifar for small ones.")
        maps = []
        wanted = (*MAPS, len(self.features) - 1)
        for position, layer in enumerate(self.features):
            x = layer(x)
            if position in wanted:
                maps.append(x)
        return maps


def _layer(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    groups: int,
    norm: NormLayer | None,
    dilation: int = 1,
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(
            inputs, outputs, kernel, stride, padding, dilation=dilation, groups=groups, bias=norm is None
        ),
        norm_or_identity(norm, outputs),
        nn.ReLU6(inplace=True),
    )
