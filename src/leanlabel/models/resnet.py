"""Residual networks with torchvision's names of parameters."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from leanlabel.models.image import Backbone, NormLayer, check_images, initialise, norm_or_identity

Stem = Literal["imagenet", "cifar"]

BLOCKS: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}
"""Depth -> whether its blocks are bottlenecks, and how many blocks its stages have [He et al. 2016, table 1]."""
EXPANSION = 4


class BasicBlock(nn.Module):
    """Two convolutions 3x3 and the identity: y = relu(F(x) + S(x)) [He et al. 2016, eq. 1 and 2].

    S is the identity, or a convolution 1x1 with normalisation where the shape changes.

    Args:
        inputs: channels of x.
        outputs: channels of y.
        stride: of the first convolution.
        dilation: of the first and of the second convolution.
        norm: see :class:`ResNet`.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, dilation: tuple[int, int], norm: NormLayer | None
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, 3, stride, dilation[0], norm)
        self.bn1 = norm_or_identity(norm, outputs)
        self.conv2 = _convolution(outputs, outputs, 3, 1, dilation[1], norm)
        self.bn2 = norm_or_identity(norm, outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3, 1x1 and the identity, with a quarter of the channels between.

    The stride is in the 3x3 convolution, as in torchvision; the original has it in the first 1x1.

    Args:
        inputs: channels of x.
        outputs: channels of y, a multiple of 4.
        stride: of the 3x3 convolution.
        dilation: of the 3x3 convolution; the second number is for :class:`BasicBlock`.
        norm: see :class:`ResNet`.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, dilation: tuple[int, int], norm: NormLayer | None
    ) -> None:
        super().__init__()
        inner = outputs // EXPANSION
        self.conv1 = _convolution(inputs, inner, 1, 1, 1, norm)
        self.bn1 = norm_or_identity(norm, inner)
        self.conv2 = _convolution(inner, inner, 3, stride, dilation[0], norm)
        self.bn2 = norm_or_identity(norm, inner)
        self.conv3 = _convolution(inner, outputs, 1, 1, 1, norm)
        self.bn3 = norm_or_identity(norm, outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(Backbone):
    """Residual network without its classifier [He et al. 2016]; names of parameters as in torchvision.

    Args:
        blocks: residual blocks of the four stages.
        bottleneck: :class:`Bottleneck` blocks, else :class:`BasicBlock`.
        stem: "imagenet": convolution 7x7 with stride 2 and a maximum over 3x3 with stride 2; "cifar":
            convolution 3x3 and no pooling, for images of 32 to 64 pixels.
        output_stride: pixels of the image per position of the last map: 32, 16 or 8 (8, 4 or 2 with the
            "cifar" stem). Below the largest, strides are replaced by dilation, and maps become finer while all
            weights keep their meaning. None: the largest.
        norm: makes the normalisation of a number of channels; None leaves it out and gives the convolutions a
            bias.
        zero_init: let every block start as the identity, by a weight of zero in its last normalisation
            [Goyal et al. 2017]; has no effect on a normalisation without weight.
        width: channels of the stem; the four stages have 1, 2, 4 and 8 times as many, or four times that with
            bottlenecks.
        channels: channels of the images.

    Example:
        >>> import torch
        >>> net = resnet(18, stem="cifar")
        >>> net.width, [tuple(m.shape[1:]) for m in net.maps(torch.zeros(1, 3, 32, 32))]
        (512, [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)])
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        bottleneck: bool,
        *,
        stem: Stem = "imagenet",
        output_stride: int | None = None,
        norm: NormLayer | None = nn.BatchNorm2d,
        zero_init: bool = False,
        width: int = 64,
        channels: int = 3,
    ) -> None:
        super().__init__()
        largest = 32 if stem == "imagenet" else 8
        output_stride = output_stride or largest
        if largest % output_stride or largest // output_stride not in (1, 2, 4):
            raise ValueError(
                f"with stem {stem!r} the output stride is {largest}, {largest // 2} or {largest // 4}, "
                f"got {output_stride}"
            )
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=norm is None)
        self.bn1 = norm_or_identity(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        kind = Bottleneck if bottleneck else BasicBlock
        inputs, reached, dilation = width, largest // 8, 1
        for stage, count in enumerate(blocks, start=1):
            outputs = width * 2 ** (stage - 1) * (EXPANSION if bottleneck else 1)
            stride, before = 1 if stage == 1 else 2, dilation
            if stride == 2 and reached == output_stride:
                # The first 3x3 convolution still reads the finer map; what follows it skips every second one.
                stride, dilation = 1, 2 * dilation
            reached *= stride
            layers = [kind(inputs, outputs, stride, (before, dilation), norm)]
            layers += [kind(outputs, outputs, 1, (dilation, dilation), norm) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            inputs = outputs
        self.width = inputs
        self.stem: Stem = stem
        self.output_stride = output_stride
        self.min_size = largest
        initialise(self)
        if zero_init:
            for block in self.modules():
                if isinstance(block, BasicBlock | Bottleneck):
                    last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
                    if isinstance(last.weight, nn.Parameter):
                        nn.init.zeros_(last.weight)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C_k, h_k, w_k) of the four stages, finest first, of images (B, C, H, W)."""
        check_images(x, self.min_size, "Give larger images, or set stem to cifar for small ones.")
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def resnet(
    depth: int,
    *,
    stem: Stem = "imagenet",
    output_stride: int | None = None,
    norm: NormLayer | None = nn.BatchNorm2d,
    zero_init: bool = False,
    channels: int = 3,
) -> ResNet:
    """Build the residual network of a published depth: 18, 34, 50 or 101. Arguments as in :class:`ResNet`.

    Raises:
        ValueError: another depth.
    """
    if depth not in BLOCKS:
        raise ValueError(f"a residual network has {', '.join(map(str, BLOCKS))} layers here, got {depth}")
    bottleneck, blocks = BLOCKS[depth]
    return ResNet(
        blocks,
        bottleneck,
        stem=stem,
        output_stride=output_stride,
        norm=norm,
        zero_init=zero_init,
        channels=channels,
    )


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int, dilation: int, norm: NormLayer | None
) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=norm is None)


def _shortcut(inputs: int, outputs: int, stride: int, norm: NormLayer | None) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    convolution = _convolution(inputs, outputs, 1, stride, 1, norm)
    return nn.Sequential(convolution, norm_or_identity(norm, outputs))
