"""A segmentation network that reads images at two scales and weighs what it reads by a learned attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel.models.decoders import Decoder, upsample
from leanlabel.models.encoder_decoder import DenseOutput, Segmenter
from leanlabel.models.image import Backbone, check_images

Box = tuple[int, int, int, int]
"""Top, left, height and width."""


class MultiResolution(Segmenter):
    """Read the whole image at a smaller scale (context) and parts of it at full scale (detail) [Hoyer et al. 2022b].

    c = f(shrunk image), d = f(crop),  a = sigmoid(A(maps of the shrunk image)) in [0, 1] per class and position
    logits = up((1 - a) c) + up(a) d   inside the crop, up(c) outside      [equations 4 to 8]

    Encoder and decoder f are the same for both. The paper sets a to zero outside of the crop before it is enlarged,
    so that in a band of one position around the crop the two weights do not sum to 1; here a is enlarged first and
    the crop cut out afterwards: inside, training computes what prediction does, and outside nothing but the context.

    In training mode the detail is one crop, at the same place in all images of a call. In evaluation mode it is read
    in windows of the size of the crop that cover the image and overlap by half, averaged where they overlap.

    Args:
        encoder: gives maps, finest first.
        decoder: reads them, of both scales.
        attention: from the maps of the context to one weight per class, before the sigmoid.
        context_scale: scale of the context, 1 divided by a whole number.
        detail_crop: height and width of crop and windows in pixels, multiples of ``stride / context_scale``; None:
            half of the sides of the images, rounded up to such a multiple. Images that are smaller are read as a whole.
        train_encoder: as for a :class:`Segmenter`.
        align_corners: as for a :class:`Segmenter`; inside, scales are laid onto each other by their edges.

    Attributes:
        numbers: where the crop of the next calls in training mode lies, each in [0, 1] from top and left; None: in
            the middle. Draw them anew for every batch; they are no part of the state.
        stride: pixels of the image per position of the logits; of the features and maps, which are those of the
            context, it is ``stride / context_scale``.

    Raises:
        ValueError: a scale that is not 1 divided by a whole number, or a crop that does not suit the strides.
    """

    def __init__(
        self,
        encoder: Backbone,
        decoder: Decoder,
        attention: Decoder,
        *,
        context_scale: float = 0.5,
        detail_crop: tuple[int, int] | None = None,
        train_encoder: bool = True,
        align_corners: bool = False,
    ) -> None:
        super().__init__(encoder, decoder, train_encoder=train_encoder, align_corners=align_corners)
        self.attention = attention
        self.ratio = whole_ratio(context_scale)
        self.detail_crop = detail_crop
        self.numbers: tuple[float, float] | None = None
        unit = self.stride * self.ratio
        for side in detail_crop or ():
            if side % unit or side < self.min_size:
                raise ValueError(
                    f"sides of detail_crop must be multiples of {unit} (the stride {self.stride} divided by "
                    f"context_scale) and at least {self.min_size}, got {side}"
                )

    def forward(self, x: Tensor) -> DenseOutput:
        """Logits of images (B, C, H, W), already normalised, of both scales; features and maps of the context.

        Raises:
            InputError: images smaller than ``min_size``.
            ValueError: ``numbers`` beyond [0, 1].
        """
        maps = self.maps(x)
        features = self.decoder.fuse(maps)
        low = self.decoder.classify(features)
        scores = upsample(self.attention.classify(self.attention.fuse(maps)), low.shape[2:])
        if self.training:
            box = self.box(x.shape[2], x.shape[3])
            found = self._read(x, box)
            logits, detail = self._fused(x, low, scores, found, box), (found, self._pixels(x, box))
        else:
            found, detail = self._read_windows(x), None
            logits = self._fused(x, low, scores, found, (0, 0, found.shape[2], found.shape[3]))
        return DenseOutput(logits, features, tuple(maps), detail)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The encoder's maps (B, C_k, h_k, w_k) of the context of images (B, C, H, W), finest first.

        Raises:
            InputError: images smaller than ``min_size``.
        """
        check_images(x, self.min_size, "Give larger images, or a network that shrinks them less.")
        # The mean over each position's pixels: for half the scale the same as bilinear interpolation.
        size = [max(self.min_size, -(-side // self.ratio)) for side in x.shape[2:]]
        return super().maps(F.interpolate(x, size, mode="area"))

    def box(self, height: int, width: int) -> Box:
        """The crop of images of a height and width in training, in positions of the logits.

        Raises:
            ValueError: ``numbers`` beyond [0, 1].
        """
        numbers = (0.5, 0.5) if self.numbers is None else self.numbers
        if len(numbers) != 2 or not all(0 <= number <= 1 for number in numbers):
            raise ValueError(f"the place of the crop is two numbers in [0, 1], got {numbers}")
        starts, lengths = [], []
        for dim, side in enumerate((height, width)):
            positions, length = self._sides(dim, side)
            places = (positions - length) // self.ratio + 1
            starts.append(self.ratio * min(int(numbers[dim] * places), places - 1))
            lengths.append(length)
        return starts[0], starts[1], lengths[0], lengths[1]

    def _sides(self, dim: int, side: int) -> tuple[int, int]:
        """Positions of the logits along a side of the images, and those of a crop or window."""
        positions, ratio = -(-side // self.stride), self.ratio
        if self.detail_crop is None:
            wanted = -(-side // (2 * self.stride * ratio)) * ratio
        else:
            wanted = self.detail_crop[dim] // self.stride
        # A last position may have fewer pixels than the stride: one more makes up for them.
        least = -(-self.min_size // self.stride) + (side % self.stride > 0)
        length = max(wanted, -(-least // ratio) * ratio)
        return positions, min(length, positions)

    def _pixels(self, x: Tensor, box: Box) -> Box:
        top, left, height, width = (self.stride * one for one in box)
        return top, left, min(height, x.shape[2] - top), min(width, x.shape[3] - left)

    def _read(self, x: Tensor, box: Box) -> Tensor:
        """Logits (B, K, h, w) of a crop of the images at full scale."""
        top, left, height, width = self._pixels(x, box)
        maps = super().maps(x[:, :, top : top + height, left : left + width])
        return upsample(self.decoder.classify(self.decoder.fuse(maps)), box[2:])

    def _read_windows(self, x: Tensor) -> Tensor:
        """Logits (B, K, h, w) of the images at full scale: the mean over windows that overlap by half."""
        (rows, height), (columns, width) = (self._sides(dim, x.shape[2 + dim]) for dim in (0, 1))
        total: Tensor | None = None
        count = x.new_zeros(rows, columns, dtype=torch.float32)
        for top in _starts(rows, height):
            for left in _starts(columns, width):
                one = _wide(self._read(x, (top, left, height, width)))
                if total is None:
                    total = one.new_zeros(*one.shape[:2], rows, columns)
                total[:, :, top : top + height, left : left + width] += one
                count[top : top + height, left : left + width] += 1
        assert total is not None
        return total / count.to(total.dtype)

    def _fused(self, x: Tensor, low: Tensor, scores: Tensor, found: Tensor, box: Box) -> Tensor:
        """Logits of both scales weighed by the attention, at the stride of the detail.

        Args:
            x: (B, C, H, W), the images.
            low: (B, K, h, w), logits of the context.
            scores: (B, K, h, w), attention before the sigmoid.
            found: (B, K, h', w'), logits of the detail.
            box: where it lies, in positions of the result.
        """
        rows, columns = (-(-side // self.stride) for side in x.shape[2:])
        context, weight = _wide(low), _wide(scores).sigmoid()
        top, left, height, width = box
        # up((1 - a) c) = up(c) - up(a c): what the crop changes is computed for the crop alone.
        weights, weighed = (
            upsample(one, (rows, columns))[:, :, top : top + height, left : left + width]
            for one in (weight, weight * context)
        )
        change = weights * _wide(found) - weighed
        edges = (left, columns - left - width, top, rows - top - height)
        return (upsample(context, (rows, columns)) + F.pad(change, edges)).to(low.dtype)


def whole_ratio(scale: float) -> int:
    """How many pixels become one at a scale.

    Raises:
        ValueError: not 1 divided by a whole number of at least 2.

    Example:
        >>> whole_ratio(0.5)
        2
    """
    ratio = round(1 / scale) if scale > 0 else 0
    if ratio < 2 or abs(ratio * scale - 1) > 1e-6:
        raise ValueError(f"context_scale must be 1 divided by a whole number, such as 0.5, got {scale}")
    return ratio


def _starts(positions: int, length: int) -> Sequence[int]:
    """Where windows begin that overlap by half; the last one ends where the positions do."""
    last = positions - length
    return sorted({*range(0, last, max(1, length // 2)), last})


def _wide(x: Tensor) -> Tensor:
    """At least float32: differences of scores lose too much in half the bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
