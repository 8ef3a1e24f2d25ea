"""Adversarial adaptation: a discriminator learns to tell the domains apart, the network to be taken for source."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from leanlabel import dist
from leanlabel.banks.teacher import plain
from leanlabel.config import Decay, OptimSettings, Settings
from leanlabel.errors import InputError
from leanlabel.losses.adversary import SOURCE, TARGET, domain_cross_entropy, self_information
from leanlabel.losses.pixel import wide
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms import Setting, Term
from leanlabel.models.discriminator import Discriminator


class AdversarySettings(Settings):
    """The discriminator and what it reads. Defaults are those of SPCL's warm-up."""

    maps: Literal["probabilities", "self-information"] = "probabilities"
    """What it reads of every pixel: probabilities p of the classes [AdaptSegNet], or -p log p / log K [AdvEnt]."""
    divisor: float = Field(default=1.8, gt=0)
    """What scores of labelled images are divided by before the softmax that it reads, as their cross-entropy does in
    the published code; 1 leaves them as they are."""
    width: int = Field(default=64, ge=1)
    """Channels after its first convolution; every further one doubles them."""
    layers: int = Field(default=5, ge=1, le=8)
    """Convolutions of stride 2; images must have sides of at least 2 to this power."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of its Adam at its highest; its course is that of optim.schedule."""
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Decay rates of the moment averages of its Adam."""


class Adversary(Term):
    """Make predictions on both domains alike, judged by a discriminator of their maps at the size of the images.

    The network is trained to have maps of unlabelled images taken for source, L = BCE(D(P_t), source), through a
    discriminator that is held fixed. Then the discriminator takes a step of its own on the same maps,
    1/2 BCE(D(P_s), source) + 1/2 BCE(D(P_t), target). Only one pass of the network for each domain is needed.
    """

    Settings: ClassVar[type[Settings]] = AdversarySettings
    target: ClassVar[bool] = True

    def __init__(self, settings: Any, known: Setting) -> None:
        super().__init__(settings, known)
        # In a plain dictionary: the method keeps and wraps it, and this term must not hold its weights once more.
        self._made = {"discriminator": Discriminator(len(known.classes), settings.width, settings.layers)}

    def networks(self) -> dict[str, nn.Module]:
        """The discriminator."""
        return dict(self._made)

    def optimiser(self, key: str) -> OptimSettings:
        """Adam."""
        return OptimSettings(name="adam", lr=self.settings.lr, betas=self.settings.betas)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """Cross-entropy of the discriminator's scores of unlabelled images to the source label."""
        network = plain(step.part(self.names["discriminator"]))
        # A gradient of its weights would be thrown away, and on several ranks its wrapper would wait for it.
        weights = {name: value.detach() for name, value in network.named_parameters()}
        maps = self._maps(step.target.full_logits)
        scores = functional_call(network, weights, (maps.to(next(iter(weights.values())).dtype),))
        taken = (scores.detach() < 0).to(scores.dtype)
        step.report(fooled=dist.global_mean(taken.sum(), taken.numel()))
        return {"adversary": domain_cross_entropy(scores, SOURCE)}

    def after(self, step: Step) -> None:
        """A step of the discriminator on the maps of both domains."""
        name = self.names["discriminator"]
        network = step.part(name)
        kind = next(network.parameters()).dtype
        own = self._maps(step.full_logits.detach(), self.settings.divisor)
        other = self._maps(step.target.full_logits.detach())
        told = domain_cross_entropy(network(own.to(kind)), SOURCE)
        loss = (told + domain_cross_entropy(network(other.to(kind)), TARGET)) / 2
        step.report(discriminator=loss)
        step.update(loss, name)

    def _maps(self, logits: Tensor, divisor: float = 1.0) -> Tensor:
        """What the discriminator reads, (B, K, H, W) in float32 or wider.

        Raises:
            InputError: images too small for it.
        """
        (height, width), least = logits.shape[-2:], 2**self.settings.layers
        if min(height, width) < least:
            raise InputError(
                f"method.terms, adversary: images of {height} x {width} pixels; its {self.settings.layers} layers need "
                f"{least}.",
                f"Set its settings.layers to {min(height, width).bit_length() - 1} or less, or use larger images or "
                f"crops (augment.crop, target_augment.crop).",
            )
        logits = wide(logits) / divisor
        return (
            self_information(logits) if self.settings.maps == "self-information" else torch.softmax(logits, 1)
        )
