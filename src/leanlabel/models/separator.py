"""Networks that part an image into what it shows and how it looks: an encoder of styles, and a decoder back to images.

They exist in training alone. What an image shows, its content, is the map of features of a segmentation network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from leanlabel.models.decoders import upsample
from leanlabel.models.image import check_images


class StyleEncoder(nn.Module):
    """Describe how an image looks by a few numbers: convolutions 3x3 with stride 2, then statistics of their maps.

    s = A [mean of h, standard deviation of h over space], h the last map, A without a bias. An image whose maps are all
    0 has the style 0. The deviation is that of the population; where it is 0, so is its gradient.

    Args:
        channels: of the images.
        width: numbers of a style.
        widths: channels after each convolution.

    Raises:
        ValueError: a number below 1, no convolution, or a bias in the last map.

    Example:
        >>> tuple(StyleEncoder(3)(torch.zeros(2, 3, 30, 41)).shape)
        (2, 64)
    """

    def __init__(self, channels: int, width: int = 64, widths: Sequence[int] = (32, 64, 128, 128)) -> None:
        super().__init__()
        if not widths or min(channels, width, *widths) < 1:
            raise ValueError(f"channels and widths must be at least 1, got {channels}, {width}, {widths}")
        self.layers = nn.ModuleList(
            nn.Conv2d(below, above, 3, 2, 1) for below, above in itertools.pairwise((channels, *widths))
        )
        self.last = nn.Linear(2 * widths[-1], width, bias=False)
        _initialise(self.layers)
        check_bias_free(self.last)

    def forward(self, images: Tensor) -> Tensor:
        """Styles (B, width) of images (B, C, H, W) of any size; carries gradient.

        Raises:
            InputError: not a batch of images.
        """
        check_images(images, 1, "Give larger images.")
        maps = images
        for layer in self.layers:
            maps = F.relu(layer(maps), inplace=True)
        # In float32 at least: squares of half precision overflow at 256.
        wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
        if len(wide):
            spread, middle = torch.std_mean(wide, (2, 3), correction=0)
        else:  # torch warns of a deviation of nothing
            spread = middle = wide.sum((2, 3))
        return self.last(torch.cat([middle, spread], 1).to(maps.dtype))


class Modulation(nn.Module):
    """Scale and shift channels as a style says: h * (1 + Gamma s) + Beta s, where s = 0 changes nothing.

    Args:
        style: numbers of a style.
        channels: of the maps h.
    """

    def __init__(self, style: int, channels: int) -> None:
        super().__init__()
        self.scale = nn.Linear(style, channels, bias=False)
        self.shift = nn.Linear(style, channels, bias=False)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Maps (B, channels, h, w) under styles (B, style); carries gradient to both."""
        scale, shift = (one(style)[:, :, None, None] for one in (self.scale, self.shift))
        return torch.addcmul(shift, maps, 1 + scale)


class ContentDecoder(nn.Module):
    """Draw an image with a given content in a given style.

    A convolution 1x1, then convolutions 3x3 with ReLU, of which the last log2(stride) are followed by an enlargement
    to twice the size (nearest), then a convolution 3x3 to the channels of an image. Every convolution's result h
    becomes h * (1 + Gamma s) + Beta s before the ReLU, with Gamma and Beta of its own, both without biases. So s = 0
    is no modulation at all, to the last bit, and G(c, 0) is a function of the content c alone.

    Args:
        content: channels D of the content.
        style: numbers of a style.
        channels: of the images.
        stride: pixels of an image per position of the content. Of a stride that is no power of 2 the part that is left
            is enlarged bilinearly.
        widths: channels after the convolution 1x1 and after each 3x3. Where the stride needs more steps, the first one
            is repeated.
        checkpoint: compute the maps again in the backward pass rather than keep them; same numbers, less memory.

    Raises:
        ValueError: a number below 1, no width, or a bias in a modulation.

    Example:
        >>> net = ContentDecoder(48, 64, 3, stride=4, widths=(16, 16, 8))
        >>> tuple(net(torch.zeros(2, 48, 12, 15), None, size=(45, 60)).shape)
        (2, 3, 45, 60)
    """

    def __init__(
        self,
        content: int,
        style: int,
        channels: int,
        stride: int,
        widths: Sequence[int] = (256, 128, 64, 32),
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if not widths or min(content, style, channels, stride, *widths) < 1:
            raise ValueError(
                "content, style, channels, stride and widths must be at least 1, got "
                f"{content}, {style}, {channels}, {stride}, {widths}"
            )
        self.style, self.channels, self.checkpoint = style, channels, checkpoint
        self.steps = stride.bit_length() - 1
        widths = [widths[0]] * (self.steps + 1 - len(widths)) + list(widths)
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(content, widths[0], 1),
                *(nn.Conv2d(below, above, 3, padding=1) for below, above in itertools.pairwise(widths)),
                nn.Conv2d(widths[-1], channels, 3, padding=1),
            ]
        )
        self.modulations = nn.ModuleList(Modulation(style, width) for width in (*widths, channels))
        _initialise(self.layers)
        check_bias_free(self.modulations)

    def forward(self, content: Tensor, style: Tensor | None, size: Sequence[int] | None = None) -> Tensor:
        """Images (B, channels, H, W); carries gradient to content and style.

        Args:
            content: (B, D, h, w).
            style: (B, style), or None for 0.
            size: H and W; None: h and w times the largest power of 2 in the stride.

        Raises:
            ValueError: content is not a batch of maps, or the style does not fit it.
        """
        if content.ndim != 4:
            raise ValueError(f"content must be (B, D, h, w), got {tuple(content.shape)}")
        if style is not None and style.shape != (len(content), self.style):
            raise ValueError(
                f"style must be ({len(content)}, {self.style}) for content {tuple(content.shape)}, "
                f"got {tuple(style.shape)}"
            )
        maps = content
        for number in range(len(self.layers)):
            if self.checkpoint and torch.is_grad_enabled():
                maps = recomputed(
                    self._layer, number, maps, style, size, use_reentrant=False, preserve_rng_state=False
                )
            else:
                maps = self._layer(number, maps, style, size)
        # Without a style the modulations have no part in the image. They keep one in its graph, with gradient 0: the
        # data-parallel wrapper waits for the gradient of every weight.
        return maps if style is not None else maps + _nothing(self.modulations.parameters())

    def _layer(self, number: int, maps: Tensor, style: Tensor | None, size: Sequence[int] | None) -> Tensor:
        """One convolution with its modulation; the enlargement comes first, so that small maps are what is kept."""
        last = len(self.layers) - 1
        if number > last - self.steps:
            maps = F.interpolate(maps, scale_factor=2, mode="nearest")
        if number == last and size is not None:
            maps = upsample(maps, size)
        maps = self.layers[number](maps)
        if style is not None:
            maps = self.modulations[number](maps, style)
        return maps if number in (0, last) else F.relu(maps, inplace=True)


def check_bias_free(module: nn.Module) -> None:
    """Raise ValueError when a linear map has a bias: then a style of 0 would not be the absence of style.

    Args:
        module: a linear map, or something that holds some.

    Example:
        >>> check_bias_free(nn.Linear(2, 3, bias=False))
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and part.bias is not None:
            raise ValueError(f"the linear map {name or 'of styles'} must not have a bias")


def _initialise(layers: nn.ModuleList) -> None:
    """Draw convolutions so that they keep the size of numbers [He et al. 2015, by inputs]; biases 0.

    By inputs, because channels grow or shrink by much from one layer to the next.
    """
    for layer in layers:
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


def _nothing(parameters: Iterable[Tensor]) -> Tensor | float:
    """0 that depends on all parameters; on none of their values, so that it is 0 whatever they are."""
    return sum(one.flatten()[:0].sum() for one in parameters)
