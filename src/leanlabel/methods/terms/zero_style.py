"""Content and style of images apart: what a network reads to tell classes is to be all that an image shows.

An implementation of the published idea [Lee, Hyun, Seong, Kim: Unsupervised Domain Adaptation for Semantic Segmentation
by Content Transfer, AAAI 2021]; its text and code were not at hand, so that the formulas are a reconstruction. Content
is the network's features c = E_c(x). A style encoder and a decoder beside it, s = E_s(x) and G(c, s), exist in training
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.config import Decay, OptimSettings, Settings
from leanlabel.losses.pixel import pixel_cross_entropy, wide
from leanlabel.losses.zero_style import content_drift, emptiness, reconstruction
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms import Setting, Term
from leanlabel.models.decoders import upsample
from leanlabel.models.segmenters import DenseOutput
from leanlabel.models.separator import ContentDecoder, StyleEncoder

REBUILT = "zero-style: reconstruction"
"""Under this name a step's `shared` has the reconstruction error of the iteration before, a scalar tensor."""
Width = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


class ZeroStyleSettings(Settings):
    """What keeps content and style apart. None of the numbers is published."""

    style_width: Width = 64
    """Numbers that a style consists of."""
    widths: tuple[Width, ...] = Field(default=(256, 128, 64, 32), min_length=1)
    """Channels of the decoder, the coarsest map first."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of the Adam of style encoder and decoder at its highest; its course is that of optim.schedule."""
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Decay rates of the moment averages of their Adam."""
    reconstruction: Weight = 0.1
    """Weight of the error of images that are drawn again from their content and style, mean |G(c, s) - x|."""
    zero: Weight = 0.1
    """Weight of the zero-style loss as a whole: of the images G(c, 0) that are drawn from content alone."""
    content: Weight = 1.0
    """Weight in it of the content that such an image has, which is to be c, relative to the mean size of c."""
    empty: Weight = 1.0
    """Weight in it of the size of the style that such an image has, which is to be 0."""
    semantics: Weight = 1.0
    """Weight in it of the cross-entropy of classes in such images, on labels of labelled images and on stored pseudo
    labels of the others."""
    divisor: float = Field(default=1.8, gt=0)
    """What scores of labelled images are divided by in that cross-entropy, as in the published warm-up of SPCL; 1
    leaves them as they are."""
    every: int = Field(default=1, ge=1)
    """The zero-style loss takes part in every so many iterations, which saves its passes in the others."""
    half: bool = False
    """Draw images without style at half height and width, from content that is averaged to half its size."""
    checkpoint: bool = False
    """Compute the decoder's maps anew in the backward pass in place of keeping them: less memory, more time."""


class ZeroStyle(Term):
    """Images are drawn again from content and style; drawn without style, they keep their classes and have no style.

    L = reconstruction L_rec + zero (content L_a + empty L_b + semantics L_c), each summed over both domains:
    L_rec = mean |G(c, s) - x|; with x0 = G(c, 0) and c0 = E_c(x0), L_a = mean |c0 - c| / mean |c| with c fixed,
    L_b = mean |E_s(x0)|, and L_c the cross-entropy of the classifier's scores of c0. L_a and L_c force what tells
    classes into the content, L_b what can be seen of style into the style; that images can be drawn again stops both
    from forgetting.

    Every image is read once more, without style: batch norms see these images, too, so that a norm that is frozen, of
    groups or absent suits this term best.
    """

    Settings: ClassVar[type[Settings]] = ZeroStyleSettings
    target: ClassVar[bool] = True
    joint: ClassVar[tuple[str, ...]] = ("style", "decoder")
    carried: ClassVar[bool] = True
    rebuilt: Tensor

    def __init__(self, settings: Any, known: Setting) -> None:
        super().__init__(settings, known)
        # In a plain dictionary: the method keeps and wraps them, and this term must not hold their weights once more.
        self._made: dict[str, nn.Module] = {
            "style": StyleEncoder(known.channels, settings.style_width),
            "decoder": ContentDecoder(
                *(known.width, settings.style_width, known.channels, known.stride, settings.widths),
                checkpoint=settings.checkpoint,
            ),
        }
        self.register_buffer("rebuilt", torch.tensor(float("inf")))

    def networks(self) -> dict[str, nn.Module]:
        """Style encoder and decoder."""
        return dict(self._made)

    def optimiser(self, key: str) -> OptimSettings:
        """Adam."""
        return OptimSettings(name="adam", lr=self.settings.lr, betas=self.settings.betas)

    def trained(self, output: DenseOutput) -> Sequence[Tensor]:
        """The features, and the scores where classes are compared."""
        reads = self.settings.zero * self.settings.semantics > 0
        return [output.features, output.logits] if reads else [output.features]

    def before(self, step: Step) -> None:
        """Tell other terms how well images were drawn again last time."""
        step.shared[REBUILT] = self.rebuilt.clone()

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The weighted sum; reports its parts without their weights."""
        s = self.settings
        found: list[Tensor] = []
        if s.reconstruction > 0:
            value = self._rebuild(step) + self._rebuild(step.target)
            self.rebuilt.copy_(dist.all_sum(value.detach()) / dist.world())
            step.report(reconstruction=value)
            found.append(s.reconstruction * value)
        if s.zero > 0 and step.t % s.every == 0:
            own, other = self._zero(step, s.divisor), self._zero(step.target, 1.0)
            for part, weight in (("content", s.content), ("emptiness", s.empty), ("semantics", s.semantics)):
                if weight > 0:
                    value = own[part] + other[part]
                    step.report(**{f"zero_{part}": value})
                    found.append(s.zero * weight * value)
        return {"zero_style": torch.stack(found).sum()} if found else {}

    def _rebuild(self, step: Step) -> Tensor:
        """Error of one domain's images that are drawn again from content and style."""
        images = step.images
        style = step.part(self.names["style"])(images)
        drawn = restyle(step.part(self.names["decoder"]), step.features, style, images.shape[-2:])
        return reconstruction(images, drawn)

    def _zero(self, step: Step, divisor: float) -> dict[str, Tensor]:
        """Parts of the zero-style loss for one domain, those whose weight is not 0."""
        s = self.settings
        found: dict[str, Tensor] = {}
        if not s.content + s.empty + s.semantics:
            return found
        content, size = step.features, list(step.images.shape[-2:])
        if s.half:
            height, width = (-(-side // 2) for side in content.shape[-2:])
            content, size = F.adaptive_avg_pool2d(content, (height, width)), [-(-side // 2) for side in size]
        images = zero_image(step.part(self.names["decoder"]), content, size)
        if s.empty > 0:
            found["emptiness"] = emptiness(step.part(self.names["style"])(images))
        if s.content + s.semantics > 0:
            again = step.forward(images)
            if s.content > 0:
                found["content"] = content_drift(again.features, upsample(content, again.features.shape[-2:]))
            if s.semantics > 0:
                height, width = step.labels.shape[-2:]
                logits = wide(step.enlarge(again.logits, (height, width))) / divisor
                found["semantics"] = pixel_cross_entropy(
                    logits, step.labels, weight=step.weights, divide="count"
                )
        return found


def restyle(decoder: nn.Module, content: Tensor, style: Tensor, size: Sequence[int]) -> Tensor:
    """Draw images with a given content in given styles.

    Args:
        decoder: G.
        content: (B, D, h, w), carries gradient.
        style: (B, N), carries gradient.
        size: height and width of the images.

    Returns:
        (B, C, *size), normalised as the images that the decoder learned from.

    Example:
        >>> net = ContentDecoder(4, 2, 3, stride=4, widths=(4, 4, 4))
        >>> tuple(restyle(net, torch.zeros(2, 4, 3, 3), torch.ones(2, 2), (11, 12)).shape)
        (2, 3, 11, 12)
    """
    return decoder(content, style, list(size))


def zero_image(decoder: nn.Module, content: Tensor, size: Sequence[int]) -> Tensor:
    """Draw images of a given content without style: equal for equal content, whatever the domain.

    Args:
        decoder: G.
        content: (B, D, h, w), carries gradient.
        size: height and width of the images.

    Returns:
        (B, C, *size), normalised as the images that the decoder learned from.

    Example:
        >>> net = ContentDecoder(4, 2, 3, stride=4, widths=(4, 4, 4))
        >>> content = torch.rand(1, 4, 3, 3)
        >>> bool((zero_image(net, content, (12, 12)) == restyle(net, content, torch.zeros(1, 2), (12, 12))).all())
        True
    """
    return decoder(content, None, list(size))
