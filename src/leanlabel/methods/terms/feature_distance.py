"""Features of labelled images stay near those of the pre-trained encoder, where its classes are at home."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from leanlabel import dist
from leanlabel.config import Settings
from leanlabel.losses.feature_distance import cell_classes, feature_distance
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms import Setting, Term
from leanlabel.models.decoders import upsample


class FeatureDistanceSettings(Settings):
    """Where features are compared. The weight of DAFormer is 0.005."""

    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the classes at whose places features are compared; null: all. DAFormer takes the things of Cityscapes:
    traffic light and sign, and from person to bicycle."""
    purity: float = Field(default=0.75, gt=0, le=1)
    """Smallest share of a place's pixels that its class covers."""


class FeatureDistance(Term):
    """Distance between the last map of the encoder and that of the encoder as the run found it.

    Labelled images of a simulator have few looks of each thing, and training on them unlearns what pre-training knew of
    it; this term holds on to that. It needs pre-trained weights: beside a newly drawn encoder it says nothing.
    """

    Settings: ClassVar[type[Settings]] = FeatureDistanceSettings
    frozen: ClassVar[Literal["", "reference", "initial"]] = "initial"
    chosen: Tensor

    def __init__(self, settings: Any, known: Setting) -> None:
        super().__init__(settings, known)
        wanted = known.classes if settings.classes is None else settings.classes
        for name in wanted:
            if name not in known.classes:
                near = difflib.get_close_matches(name, known.classes, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}" if near else f"known: {', '.join(known.classes)}"
                raise ValueError(f"classes: no class {name!r}; {hint}")
        chosen = torch.tensor([name in wanted for name in known.classes])
        self.register_buffer("chosen", chosen, persistent=False)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean distance over the places of these classes on all ranks."""
        own = step.output.maps[-1]
        fixed = self._fixed(step, (own.shape[2], own.shape[3]))
        classes = len(self.chosen)
        found = cell_classes(step.labels, own.shape[-2:], classes, purity=self.settings.purity)
        keep = (found >= 0) & self.chosen[found.clamp(min=0)]
        step.report(feature_places=dist.global_mean(keep.sum().to(own.dtype), keep.numel()))
        return {"feature_distance": feature_distance(own, fixed, keep)}

    def _fixed(self, step: Step, size: tuple[int, int]) -> Tensor:
        """The fixed encoder's last map (B, D, *size), read at the scale at which the network reads the images."""
        fixed = step.initial(step.images)
        if tuple(fixed.shape[2:]) == size:
            return fixed
        # A network of several resolutions reads them smaller, and features of another scale are other features.
        sides = [
            max(1, round(side * wanted / given))
            for side, wanted, given in zip(step.images.shape[2:], size, fixed.shape[2:], strict=True)
        ]
        return upsample(step.initial(upsample(step.images, sides)), size)
