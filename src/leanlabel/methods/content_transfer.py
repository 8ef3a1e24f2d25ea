"""Content transfer: rare classes of labelled images pasted into unlabelled ones, and a loss that keeps style apart.

An implementation of the idea of Lee, Hyun, Seong and Kim, "Unsupervised Domain Adaptation for Semantic Segmentation by
Content Transfer" (AAAI 2021, arXiv 2012.12545). Their method section and code were not at hand: equations, settings and
order below are a reconstruction, and every reading of it is a switch (see docs/methods/content-transfer.md).

1  stage 1: cross-entropy of source images, an adversary on the output, and the zero-style loss: a decoder G rebuilds
   images from content c (the features) and style s; what it makes without style, G(c, 0), must have the same content,
   an empty style, and the same classes (terms cross-entropy, adversary, zero-style);
P  pseudo labels; the tail: rarest classes that together have at most a share rho of these;
2  stage 2: cross-entropy of source and target images, zero-style, and tail classes of drawn source images pasted into
   target images (terms cross-entropy, self-training, content-transfer, zero-style). P and 2 are repeated.

Class mixing (``class-mix``) and content transfer are one component with other defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from leanlabel.config import RunConfig
from leanlabel.methods.adapt import Adapt
from leanlabel.methods.adapt_arms import asked_for, source_only, without
from leanlabel.methods.adapt_settings import AdaptConfig, AdaptMethodSettings

TRANSFER, ZERO = "content-transfer", "zero-style"


class TransferMethodSettings(AdaptMethodSettings):
    """What the last training minimises; those before it stand under stages."""

    name: Literal["content-transfer"] = "content-transfer"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method."""


class TransferConfig(AdaptConfig):
    """The keys of every recipe of content transfer."""

    method: TransferMethodSettings = TransferMethodSettings()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Terms, running average, sampling, pseudo labels."""


class ContentTransferMethod(Adapt):
    """Adaptation with pasted tail classes, measured on the target."""

    Config: ClassVar[type[RunConfig]] = TransferConfig

    @classmethod
    def baselines_of(cls, values: Mapping[str, Any], /) -> dict[str, dict[str, Any]]:
        """Source-only, self-training, and the same without one of the two ideas, where the other can stand alone."""
        found = {
            "source-only": source_only(values),
            "self-training": without(values, [TRANSFER, ZERO]),
            "minus-transfer": without(values, [TRANSFER]),
            "minus-zero-style": without(values, [ZERO]),
        }
        both = found["minus-transfer"] and found["minus-zero-style"]
        if asked_for(values, ZERO):  # by a decoder that draws what is pasted
            found["minus-zero-style"] = {}
        kept = ("source-only", "self-training", *(("minus-transfer", "minus-zero-style") if both else ()))
        return {name: found[name] for name in kept if found[name]}
