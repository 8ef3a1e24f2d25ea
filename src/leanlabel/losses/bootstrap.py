"""The loss of methods without negatives: a prediction from one view meets a target from the other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from leanlabel.losses.contrastive import unit


def bootstrap_cosine(
    prediction: Tensor, target: Tensor, *, reduction: Literal["mean", "sum", "none"] = "mean"
) -> Tensor:
    """Turn predictions towards their targets: squared distance of unit rows.

    L_i = || q_i/|q_i| - t_i/|t_i| ||^2 = 2 - 2 cos(q_i, t_i)    [BYOL, Grill et al. 2020, eq. 2]

    BGRL [Thakoor et al. 2022, eq. 1] is the same up to the constant 2, over both directions of two views.

    Args:
        prediction: (N, D), any norm, carries gradient; a zero row has cosine 0 and gradient 0.
        target: (N, D), any norm; detached here: a target carries no gradient.
        reduction: "mean", "sum" or "none" -> (N,).

    Returns:
        Scalar or (N,) in [0, 4], float32 or wider; 0 attached to the graph for N = 0.

    Raises:
        ValueError: not (N, D), or shapes differ.

    Example:
        >>> float(bootstrap_cosine(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])))
        2.0
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must be (N, D), got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    wide = torch.promote_types(prediction.dtype, torch.float32)
    cosine = (unit(prediction.to(wide)) * unit(target.detach().to(wide))).sum(1)
    loss = 2 - 2 * cosine
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / max(1, len(loss))
