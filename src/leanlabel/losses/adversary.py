"""The losses of an adversary that tells two domains apart by what a network says of them."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel import dist
from leanlabel.losses.pixel import wide

SOURCE, TARGET = 0, 1
"""Labels of the domains: scores below 0 take a place for source."""


def domain_cross_entropy(scores: Tensor, domain: Literal[0, 1]) -> Tensor:
    """Average the binary cross-entropy of a discriminator's scores to the label of one domain.

    l = log(1 + e^s) - y s    [Goodfellow et al. 2014, eq. 1, as a loss; Tsai et al. 2018]

    With the true domain of the maps this trains the discriminator. With the other one, through a discriminator that is
    held fixed, it trains the network behind the maps to be taken for that domain [Tsai et al. 2018].

    Args:
        scores: any shape, of all places of all images, before a sigmoid; carries gradient.
        domain: y, 0 for source, 1 for target.

    Returns:
        Scalar in float32 or wider, this rank's share of the mean over the places of all ranks; 0 attached to the graph
        where there is none.

    Raises:
        ValueError: another domain, or scores that are not floating point.

    Example:
        >>> round(float(domain_cross_entropy(torch.tensor([0.3, -1.2, 2.0]), SOURCE)), 6)
        1.081522
    """
    if domain not in (SOURCE, TARGET):
        raise ValueError(f"domain must be 0 (source) or 1 (target), got {domain!r}")
    if not scores.is_floating_point():
        raise ValueError(f"scores must be floating point, got {scores.dtype}")
    # softplus(-s) for the label 1 is the same value without cancellation between softplus(s) and s.
    losses = F.softplus(wide(scores if domain == SOURCE else -scores))
    return dist.global_mean(losses.sum(), losses.numel())


def self_information(logits: Tensor) -> Tensor:
    """Turn scores of classes into maps of how much each class adds to the uncertainty of a place.

    I_k = -p_k log p_k / log K; their sum over the classes is the entropy relative to its largest value
    [Vu et al. 2019, section 3.2]

    Args:
        logits: (B, K, *space), carries gradient.

    Returns:
        (B, K, *space) in float32 or wider, in [0, 1 / (e log K)]; zeros for a single class.

    Raises:
        ValueError: no dimension of classes.

    Example:
        >>> self_information(torch.zeros(1, 2, 1)).flatten()
        tensor([0.5000, 0.5000])
    """
    if logits.ndim < 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be (B, K, *space) floating point, got {tuple(logits.shape)}")
    log_p = torch.log_softmax(wide(logits), 1)
    return -log_p.exp() * log_p / (math.log(logits.shape[1]) if logits.shape[1] > 1 else 1.0)
