"""Batch normalisation that no longer changes: running estimates and affine parameters as constants."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenBatchNorm(nn.Module):
    """Scale and shift each channel by constants, in training and in evaluation mode alike.

    y = weight (x - running_mean) / sqrt(running_var + eps) + bias

    Nothing here is a parameter, and no call changes a buffer, so that a batch of one image is as good as any.
    Names of tensors are those of torch's batch norm: weights interchange with it in both directions.

    Args:
        num_features: number of channels C.
        eps: added to the variance, >= 0. 0 is what published segmentation code computes; a channel whose variance
            is 0 gives its bias then.

    Example:
        >>> FrozenBatchNorm(4)(torch.ones(1, 4, 1, 1)).shape
        torch.Size([1, 4, 1, 1])
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        if eps < 0:
            raise ValueError(f"eps must be at least 0, got {eps}")
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        # Kept for the names alone: what is frozen here may go on learning elsewhere.
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, ...); carries gradient to x."""
        weight, variance = self.weight, self.running_var
        if self.eps == 0:
            constant = variance == 0
            weight, variance = weight.masked_fill(constant, 0), variance.masked_fill(constant, 1)
        return F.batch_norm(x, self.running_mean, variance, weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


def freeze_norm(module: nn.Module, *, eps: bool = True) -> nn.Module:
    """Replace every batch norm in a module by a :class:`FrozenBatchNorm` with its present values, in place.

    Group and layer norms stay. Weights and biases of the batch norms stop being parameters: build the optimiser
    afterwards. A batch norm used in several places stays one.

    Args:
        module: any module; itself a batch norm is allowed.
        eps: keep each batch norm's eps under the root; False leaves it out, as published segmentation code does.

    Returns:
        The module, or its replacement if it is itself a batch norm.

    Raises:
        ValueError: a batch norm without running estimates, which has nothing to be frozen at.

    Example:
        >>> [type(part).__name__ for part in freeze_norm(nn.Sequential(nn.BatchNorm2d(3))).children()]
        ['FrozenBatchNorm']
    """
    replaced: dict[nn.Module, FrozenBatchNorm] = {}
    for parent in list(module.modules()):
        # `_modules` and not named_children(): the latter lists a shared child once.
        for name, child in parent._modules.items():
            if isinstance(child, _BatchNorm):
                if child not in replaced:
                    replaced[child] = _frozen(child, eps)
                setattr(parent, name, replaced[child])
    return _frozen(module, eps) if isinstance(module, _BatchNorm) else module


def _frozen(norm: _BatchNorm, eps: bool) -> FrozenBatchNorm:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError(
            f"a batch norm of {norm.num_features} channels keeps no running estimates to be frozen at"
        )
    new = FrozenBatchNorm(norm.num_features, norm.eps if eps else 0.0).to(mean.device, mean.dtype)
    with torch.no_grad():
        new.running_mean.copy_(mean)
        new.running_var.copy_(variance)
        if norm.affine:
            new.weight.copy_(norm.weight)
            new.bias.copy_(norm.bias)
        if norm.num_batches_tracked is not None:
            new.num_batches_tracked.copy_(norm.num_batches_tracked)
    return new.train(norm.training)
