"""What all image backbones share: the interface, the check of sizes, the initialisation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from leanlabel.errors import InputError

NormLayer = Callable[[int], nn.Module]
"""Makes the normalisation of a number of channels."""


class Backbone(nn.Module):
    """A network from images to pooled features, with access to the maps of its stages.

    Attributes:
        width: width of the features.
        min_size: smallest side of an image, in pixels.
    """

    width: int
    min_size: int

    def maps(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C_k, h_k, w_k) of all stages, finest first, of images (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor, *, pooled: bool = True) -> Tensor:
        """Features (B, width) of images (B, C, H, W): the mean of the last map; without ``pooled`` that map itself,
        (B, width, h, w), for what trains both and has to go through the data-parallel wrapper."""
        last = self.maps(x)[-1]
        return last.mean((2, 3)) if pooled else last


def norm_or_identity(norm: NormLayer | None, channels: int) -> nn.Module:
    """The normalisation of a number of channels, or the identity where there is none."""
    return nn.Identity() if norm is None else norm(channels)


def initialise(module: nn.Module) -> None:
    """Draw new convolutions from N(0, 2 / fan_out) [He et al. 2015]; biases 0, normalisations the identity.

    In place, from torch's global generator. fan_out = output channels x kernel area.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, _NormBase | nn.GroupNorm) and part.affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def check_images(x: Tensor, min_size: int, suggestion: str) -> None:
    """Refuse what is not a batch of images (B, C, H, W) with sides of at least ``min_size`` pixels.

    Raises:
        InputError: naming the shape, with the suggestion where images are too small.
    """
    if x.ndim != 4:
        raise InputError(f"expected images (B, C, H, W), got a tensor of shape {tuple(x.shape)}.")
    if min(x.shape[2:]) < min_size:
        raise InputError(
            f"images of {x.shape[2]}x{x.shape[3]} pixels are too small for a network that shrinks them by "
            f"{min_size}.",
            suggestion,
        )
