"""What class mixing and content transfer paste: labelled images at the right size, mixed contents, what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.augment.class_mix import paste
from leanlabel.errors import InputError
from leanlabel.losses.pixel import align
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.terms.zero_style import REBUILT, restyle
from leanlabel.models.decoders import upsample


class Given(NamedTuple):
    """Labelled images, one for each unlabelled one, and what of them is pasted."""

    images: Tensor
    """(B, C, h, w), normalised."""
    labels: Tensor
    """(B, h, w) int64, -100 ignored."""
    weights: Tensor | float
    """(B, h, w) weight of their labels, or one for all."""
    region: Tensor
    """(B, h, w) bool."""


class Drawn(NamedTuple):
    """Images that a decoder drew, or why there are none."""

    images: Tensor | None
    """(B, C, h, w), normalised, without gradient; None: do without."""
    broken: bool
    """Whether a number of them was not finite, on any rank."""


def resized(batch: DenseBatch, size: Sequence[int]) -> DenseBatch:
    """Labelled images at another size: images bilinear, labels and weights of the nearest pixel. Nothing is cut off.

    Args:
        batch: labelled images.
        size: height and width wanted.

    Example:
        >>> batch = DenseBatch(torch.tensor([1]), torch.zeros(1, 3, 1, 4), torch.tensor([[[0, 1, 2, 3]]]))
        >>> resized(batch, (1, 2)).labels.tolist()
        [[[1, 3]]]
    """
    if tuple(batch.labels.shape[-2:]) == tuple(size):
        return batch

    def nearest(maps: Tensor) -> Tensor:
        # The pixel that the middle of the new one lies in, as bilinear resizing has it.
        rows, columns = (
            (2 * torch.arange(new, device=maps.device) + 1) * old // (2 * new)
            for new, old in zip(size, maps.shape[-2:], strict=True)
        )
        return maps[:, rows][:, :, columns]

    weights = None if batch.weights is None else nearest(batch.weights)
    return batch._replace(images=upsample(batch.images, size), labels=nearest(batch.labels), weights=weights)


def mixed_content(given: Tensor, own: Tensor, region: Tensor) -> Tensor:
    """Paste content of labelled images into that of others: c_m = M c_s + (1 - M) c_t with M thinned out.

    Place i of h takes pixel floor(i H / h) of the region.

    Args:
        given: c_s, (B, D, h, w), carries gradient.
        own: c_t, (B, D, h, w), carries gradient.
        region: M, (B, H, W) bool.

    Returns:
        (B, D, h, w).

    Example:
        >>> region = torch.tensor([[[True, True, False, True]]])
        >>> mixed_content(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), region).tolist()
        [[[[1.0, 0.0]]]]
    """
    return paste(given, own, align(own, region, at="feature")[1])


def drawn_again(step: Step, given: Given, reliable: float, *, mix: bool, own: bool) -> Drawn:
    """Let the decoder of the term zero-style draw content in the style of the unlabelled images.

    Nothing of it carries gradient: what is drawn is an image like any other.

    Args:
        step: the iteration.
        given: labelled images.
        reliable: error of images that are drawn again below which the decoder is used.
        mix: draw the mixed content; else that of the labelled images.
        own: whether the labelled images are those of the batch, whose content is known.

    Returns:
        The images. Collective on several ranks where the decoder is used.

    Raises:
        InputError: the recipe has no such term.
    """
    encoder, decoder = (step.network_of("zero-style", key) for key in ("style", "decoder"))
    if encoder is None or decoder is None:
        raise InputError(
            "method.terms: a decoder is to draw images, and no term of the recipe trains one.",
            "Add the term zero-style, or set mode to image or feature and style to none or moments.",
        )
    rebuilt = step.shared.get(REBUILT)
    if rebuilt is None or not float(rebuilt) < reliable:
        return Drawn(None, False)
    target = step.target
    # These passes are kept for other terms: not under no_grad, where they would lose their gradient.
    content = step.features.detach() if own else None
    around = target.features.detach() if mix else None
    with torch.no_grad():
        content = step.forward(given.images).features if content is None else content
        if around is not None:
            content = mixed_content(content, around, given.region)
        images = restyle(decoder, content, encoder(target.images), target.images.shape[-2:])
    broken = dist.any_true(not bool(images.isfinite().all()))
    return Drawn(None if broken else images.to(target.images), broken)
