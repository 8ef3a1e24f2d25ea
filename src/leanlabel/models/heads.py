"""Projectors and predictors: the small networks between a backbone and a loss, dropped after training."""

from __future__ import annotations

import itertools
from typing import Literal

from torch import nn


def projector(
    inputs: int,
    hidden: int,
    outputs: int,
    *,
    layers: int = 2,
    norm: Literal["none", "batch"] = "none",
    last_norm: bool = False,
    last_affine: bool = True,
    last_bias: bool | None = None,
) -> nn.Sequential:
    """Build a perceptron: Linear, normalisation, ReLU, ..., Linear, and a last normalisation if asked.

    A linear layer before a batch norm has no bias, which the norm would take away again.

    =====================  ======  =======  =========  ===========  =========
    head                   layers  norm     last_norm  last_affine  last_bias
    =====================  ======  =======  =========  ===========  =========
    MoCo-v1                1
    MoCo-v2, MoCHi         2       none
    SimCLR                 2       batch    True
    BYOL (both heads)      2       batch                            False
    SimSiam, projector     3       batch    True       False
    SimSiam, predictor     2       batch
    VICReg, Barlow Twins   3       batch                            False
    =====================  ======  =======  =========  ===========  =========

    MoCo-v2 has hidden = inputs and 128 outputs; BYOL 4096 and 256; SimSiam 2048 and 2048, its predictor 512
    and 2048; VICReg and Barlow Twins 8192 and 8192. An empty cell is the default.

    Args:
        inputs: width of the features.
        hidden: width between; of no effect with one layer.
        outputs: width of what the loss reads.
        layers: linear layers, >= 1.
        norm: normalisation after every layer but the last. Batch norm is plain: convert it with
            :func:`leanlabel.models.norm.synchronised` or :func:`leanlabel.models.norm.split`.
        last_norm: batch norm after the last layer.
        last_affine: that batch norm learns weight and bias.
        last_bias: bias of the last layer; None: unless a batch norm follows.

    Returns:
        Module (N, inputs) -> (N, outputs).

    Raises:
        ValueError: layers or a width below 1, or an unknown norm.

    Example:
        >>> projector(8, 8, 4)
        Sequential(
          (0): Linear(in_features=8, out_features=8, bias=True)
          (1): ReLU(inplace=True)
          (2): Linear(in_features=8, out_features=4, bias=True)
        )
    """
    if layers < 1:
        raise ValueError(f"a head needs at least one layer, got {layers}")
    if min(inputs, hidden, outputs) < 1:
        raise ValueError(f"widths must be at least 1, got {inputs}, {hidden}, {outputs}")
    if norm not in ("none", "batch"):
        raise ValueError(f"norm must be none or batch, got {norm!r}")
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    parts: list[nn.Module] = []
    for below, above in itertools.pairwise(widths[:-1]):
        parts.append(nn.Linear(below, above, bias=norm == "none"))
        if norm == "batch":
            parts.append(nn.BatchNorm1d(above))
        parts.append(nn.ReLU(inplace=True))
    parts.append(nn.Linear(widths[-2], outputs, bias=not last_norm if last_bias is None else last_bias))
    if last_norm:
        parts.append(nn.BatchNorm1d(outputs, affine=last_affine))
    return nn.Sequential(*parts)
