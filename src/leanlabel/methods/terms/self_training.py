"""Terms that read the images of an unlabelled domain: stored pseudo labels, true labels as a bound, certainty."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.config import Settings
from leanlabel.losses.pixel import wide
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms import Term
from leanlabel.methods.terms.pixel import CrossEntropy, CrossEntropySettings


class SelfTrainingSettings(CrossEntropySettings):
    """Cross-entropy against stored pseudo labels of the target domain. Rules of class weights go by source pixels."""


class LabelledTargetSettings(CrossEntropySettings):
    """Cross-entropy against the true labels of the target domain. Rules of class weights go by source pixels."""


class EntropySettings(Settings):
    """Entropy of what the network says about target images."""


class SelfTraining(CrossEntropy):
    """Mean cross-entropy of target images against the pseudo labels that were stored for them."""

    Settings: ClassVar[type[Settings]] = SelfTrainingSettings
    source: ClassVar[bool] = False
    target: ClassVar[bool] = True
    stored: ClassVar[bool] = True

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean over all pixels with a pseudo label, on all ranks; reports their share of all pixels."""
        known = step.target.labels >= 0
        step.report(kept_share=dist.global_mean(known.sum().double(), known.numel()))
        return {"self_training": self.compare(step.target)}


class LabelledTarget(CrossEntropy):
    """Mean cross-entropy of target images against their true labels: a bound for adaptation without labels."""

    Settings: ClassVar[type[Settings]] = LabelledTargetSettings
    source: ClassVar[bool] = False
    target: ClassVar[bool] = True
    target_labels: ClassVar[bool] = True

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean over all labelled target pixels, on all ranks."""
        return {"labelled_target": self.compare(step.target)}


class Entropy(Term):
    """Mean entropy of the prediction over target pixels: pulls towards certainty, right or wrong."""

    Settings: ClassVar[type[Settings]] = EntropySettings
    source: ClassVar[bool] = False
    target: ClassVar[bool] = True

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean over all positions of the network's map, on all ranks."""
        return {"entropy": mean_entropy(step.target.logits)}


def mean_entropy(logits: Tensor) -> Tensor:
    """Average the entropy of the softmax over all positions of all ranks, as a share of its largest value.

    H = -mean_i sum_k p_ik log p_ik / log K    [Vu et al., CVPR 2019, eq. 2 and 3, with the mean over pixels]

    Args:
        logits: (B, K, *space), carries gradient.

    Returns:
        Scalar in [0, 1], float32 or wider; 0 attached to the graph where there is one class. On several ranks this
        rank's share.

    Raises:
        ValueError: another shape.

    Example:
        >>> float(mean_entropy(torch.zeros(1, 4, 2, 2)))
        1.0
    """
    if logits.ndim < 2:
        raise ValueError(f"logits must be (B, K, *space), got {tuple(logits.shape)}")
    classes = logits.shape[1]
    log_p = torch.log_softmax(wide(logits), 1)
    each = -(log_p.exp() * log_p).sum(1)
    return dist.global_mean(each.sum() / math.log(max(classes, 2)), each.numel())
