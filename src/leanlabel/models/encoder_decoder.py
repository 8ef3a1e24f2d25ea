"""What every segmentation network of an encoder and a decoder is, and what it says of images."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from leanlabel.models import hub
from leanlabel.models.decoders import Decoder, upsample
from leanlabel.models.image import Backbone, check_images
from leanlabel.models.map_probe import blank_image, leaves_border, parameters_behind


class DenseOutput(NamedTuple):
    """What a segmentation network says of a batch of images.

    Attributes:
        logits: (B, K, h, w), at the network's own stride; carries gradient.
        features: (B, D, h, w), what the last layers before the logits read; carries gradient.
        maps: the encoder's maps (B, C_k, h_k, w_k), finest first; carry gradient.
        detail: logits (B, K, h', w') of a crop of the images that was read at full scale, with gradient, and its top,
            left, height and width in pixels of the images; None outside of training and for most networks.
    """

    logits: Tensor
    features: Tensor
    maps: tuple[Tensor, ...] = ()
    detail: tuple[Tensor, tuple[int, int, int, int]] | None = None


class Segmenter(nn.Module):
    """An encoder and a decoder: from images (B, C, H, W) to logits (B, K, h, w) with h = ceil(H / stride).

    Sides need not be multiples of anything. Encoders of patches (vit-small, dinov2, convnext), which would leave a
    border unread, get images that are resized to the next multiple of ``min_size``; H is the side of these then.

    Args:
        encoder: gives maps, finest first.
        decoder: reads them.
        train_encoder: let the encoder learn; else it computes no gradient and stays in evaluation mode.
        align_corners: how logits are to be enlarged, see :func:`leanlabel.models.decoders.upsample`.

    Attributes:
        width: channels of the features.
        stride: pixels of the image per position of the logits, and of the features where the image is read at one
            scale.
        min_size: smallest side of an image, in pixels.
    """

    def __init__(
        self, encoder: Backbone, decoder: Decoder, *, train_encoder: bool = True, align_corners: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.width = decoder.width
        self.stride = decoder.stride
        self.min_size = encoder.min_size
        self.align_corners = align_corners
        self.train_encoder = train_encoder
        self.whole_patches = isinstance(encoder, hub.HubBackbone) and leaves_border(encoder)
        if isinstance(encoder, hub.HubBackbone):
            self._freeze_unread()
        if not train_encoder:
            encoder.requires_grad_(False)
            encoder.eval()

    def forward(self, x: Tensor) -> DenseOutput:
        """Logits and features of images (B, C, H, W), already normalised.

        Raises:
            InputError: images smaller than ``min_size``.
        """
        maps = self.maps(x)
        features = self.decoder.fuse(maps)
        return DenseOutput(self.decoder.classify(features), features, tuple(maps))

    def features(self, x: Tensor) -> Tensor:
        """Features (B, width, h, w) of images (B, C, H, W)."""
        return self.decoder.fuse(self.maps(x))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The encoder's maps (B, C_k, h_k, w_k), finest first, of images (B, C, H, W); no gradient where it is fixed.

        Raises:
            InputError: images smaller than ``min_size``.
        """
        check_images(x, self.min_size, "Give larger images, or a network that shrinks them less.")
        if self.whole_patches:
            x = upsample(x, [-(-side // self.min_size) * self.min_size for side in x.shape[2:]])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_encoder):
            return list(self.encoder.maps(x))

    def head(self, features: Tensor) -> Tensor:
        """Logits (B, K, h, w) of features (B, width, h, w), those of :meth:`forward` or changed ones."""
        return self.decoder.classify(features)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if not self.train_encoder:
            self.encoder.eval()
        return self

    def _freeze_unread(self) -> None:
        """Freeze what no logit depends on, such as a last norm of pooled features: a parameter that is to learn and
        gets no gradient stops data-parallel training."""
        was = self.training
        self.eval()
        with torch.enable_grad():
            maps = Segmenter.maps(self, blank_image(self.encoder, 2 * self.min_size))
            read = parameters_behind([self.decoder.classify(self.decoder.fuse(maps))])
        self.train(was)
        for parameter in self.encoder.parameters():
            if id(parameter) not in read:
                parameter.requires_grad_(False)


def head_parameters(segmenter: Segmenter) -> list[nn.Parameter]:
    """What learns behind the encoder: new weights, for which published code takes ten times the learning rate."""
    encoder = {id(parameter) for parameter in segmenter.encoder.parameters()}
    return [one for one in segmenter.parameters() if one.requires_grad and id(one) not in encoder]


def encoder_parameters(segmenter: Segmenter) -> list[nn.Parameter]:
    """What learns in the encoder; empty where it is kept as it is."""
    return [parameter for parameter in segmenter.encoder.parameters() if parameter.requires_grad]
