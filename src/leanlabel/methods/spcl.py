"""SPCL: adaptation of a segmentation network by contrast with one prototype of each class.

Xie, Li, Li, "SPCL: A New Framework for Domain Adaptive Semantic Segmentation via Semantic Prototype-based Contrastive
Learning" (arXiv 2111.12358, 2021). In the order of its published code, each a training of its own:

A  warm-up: cross-entropy of source images, an adversary on the output (terms cross-entropy, adversary);
B  prototypes P_k of the source's classes from one look at all of its images, and pseudo labels of the target;
C  contrast: cross-entropy of source images, and of every pixel z of both domains
   -log exp(z P_y / tau) / sum_k exp(z P_k / tau), y its label or pseudo label (term prototype-contrast);
D  new pseudo labels;
E  self-training on the target (term self-training).

Recipes list A, C and E as stages; B and D come by themselves before a training whose terms need them. In today's form
the contrast is one more term beside class mixing and a teacher (``spcl/scenes-small``). The paper's text was not at
hand; where it and the published code may differ, this follows the code (see docs/methods/spcl.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from leanlabel.config import RunConfig
from leanlabel.methods.adapt import Adapt
from leanlabel.methods.adapt_arms import source_only, without
from leanlabel.methods.adapt_settings import AdaptConfig, AdaptMethodSettings

TERM = "prototype-contrast"


class SPCLMethodSettings(AdaptMethodSettings):
    """What the last training minimises; those before it stand under stages."""

    name: Literal["spcl"] = "spcl"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method."""


class SPCLConfig(AdaptConfig):
    """The keys of every recipe of SPCL."""

    method: SPCLMethodSettings = SPCLMethodSettings()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Terms, running average, sampling, pseudo labels."""


class SPCL(Adapt):
    """Adaptation with prototypes, measured on the target."""

    Config: ClassVar[type[RunConfig]] = SPCLConfig

    @classmethod
    def baselines_of(cls, values: Mapping[str, Any], /) -> dict[str, dict[str, Any]]:
        """Source-only, the same without the contrast, and without its whole stage, so that E starts from A."""
        found = {"source-only": source_only(values), "minus-prototypes": without(values, [TERM])}
        for name, stage in (values.get("stages") or {}).items():
            terms = [] if stage is None else stage.get("method", {}).get("terms", [])
            if any(entry["name"] == TERM for entry in terms):
                found["minus-stage"] = {"stages": {name: None}}
        return {name: changes for name, changes in found.items() if changes}

    def notes(self) -> list[str]:
        """What is to be known of this training; classes without a prototype."""
        found = super().notes()
        bank = self.prototypes
        if bank is not None and self.cfg.steps > 0:
            lacking = [
                name for name, known in zip(self.classes.names, bank.known.tolist(), strict=True) if not known
            ]
            if lacking:
                found.append(
                    f"no prototype of {', '.join(lacking)}: no labelled position of these was used (see agree of "
                    f"{TERM}), so nothing is pulled to them"
                )
        return found
