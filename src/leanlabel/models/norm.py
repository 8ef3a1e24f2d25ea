"""Batch normalisation over all ranks together, or over parts of one rank's batch, on any device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanlabel import dist

# torch's own classes: a subclass elsewhere may do more, for example apply an activation.
CONVERTED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel by the statistics of all ranks' rows and positions; update running estimates.

    y = weight (x - mean) / sqrt(var + eps) + bias    [Ioffe and Szegedy 2015, algorithm 1]
    mean = sum x / n, var = sum (x - mean)^2 / n, in two passes; n counts a channel's values on all ranks.
    Gradients run through the sums of all ranks.

    Args:
        x: (N, C, ...), N may differ between ranks and be 0; carries gradient.
        weight: (C,), carries gradient; None is 1.
        bias: (C,), carries gradient; None is 0.
        running_mean: (C,), changed in place: (1 - momentum) old + momentum mean. None: not kept.
        running_var: (C,), changed in place in the same way with the unbiased variance, n - 1 in place of n.
        momentum: weight of this batch in the running estimates, 0..1.
        eps: added to the variance, > 0.

    Returns:
        Tensor of the shape and dtype of x; float16 and bfloat16 are computed in float32.

    Raises:
        ValueError: fewer than two values per channel on all ranks together.
    """
    centred, mean, variance, n = _moments(x.to(torch.promote_types(x.dtype, torch.float32)))
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean), momentum)
        if running_var is not None:
            running_var.lerp_((variance * (n / (n - 1))).to(running_var), momentum)
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    y = centred * _spread(scale, centred)
    return (y if bias is None else y + _spread(bias, centred)).to(x.dtype)


class SyncBatchNorm(_BatchNorm):
    """Module form of :func:`batch_norm`, for (N, C), (N, C, L), (N, C, H, W) and (N, C, D, H, W).

    R ranks with b rows each give the values, gradients and buffers of one rank with R b rows. On one process,
    and in evaluation mode with running estimates, this is torch's batch norm. Weights interchange with it.

    Args:
        num_features: number of channels C.
        eps: added to the variance, > 0.
        momentum: weight of the newest batch in the running estimates, 0..1; None: all batches count equally.
        affine: learn weight and bias.
        track_running_stats: keep running estimates and use them in evaluation mode.

    Raises:
        ValueError: (on call) other number of channels or axes, or fewer than two values per channel over all
            ranks.

    Example:
        >>> SyncBatchNorm(4)(torch.randn(8, 4, 5, 5)).shape
        torch.Size([8, 4, 5, 5])
    """

    def forward(self, input: Tensor) -> Tensor:
        estimated = not self.training and self.running_mean is not None
        if estimated or dist.world() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        if not self.training or not self.track_running_stats:
            return batch_norm(input, self.weight, self.bias, eps=self.eps)
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if momentum is None else momentum
        return batch_norm(
            input,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            momentum=momentum or 0.0,
            eps=self.eps,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.ndim <= 5 or input.shape[1] != self.num_features:
            raise ValueError(
                f"expected (N, {self.num_features}, ...) with 2 to 5 axes, got {tuple(input.shape)}"
            )
        if dist.world() == 1 and (self.training or self.running_mean is None):
            _check_count(input.numel() // self.num_features, input)


def synchronised(module: nn.Module) -> nn.Module:
    """Replace every torch batch norm in a module by :class:`SyncBatchNorm`, in place, keeping its tensors.

    Parameters and buffers are the same objects as before, so an optimiser that holds them stays valid. A
    batch norm used in several places stays one.

    Args:
        module: any module; itself a batch norm is allowed.

    Returns:
        The module, or its replacement if it is itself a batch norm.

    Raises:
        ValueError: a batch norm is of a class other than torch's own and would lose what that class adds.

    Example:
        >>> net = synchronised(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        >>> [type(part).__name__ for part in net.children()]
        ['Linear', 'SyncBatchNorm']
    """
    return _converted(module, (SyncBatchNorm,), "synchronise", partial(_empty, SyncBatchNorm))


class SplitBatchNorm(_BatchNorm):
    """Normalise a training batch in groups of samples, each by its own statistics.

    One process with G groups gives what G processes with a plain batch norm give: MoCo's demonstration for a
    single device. Group g holds the g-th contiguous part of the batch, as rank g would. The running estimates
    move towards the average of the groups' means and unbiased variances; weight and bias are shared. In
    evaluation mode this is torch's batch norm. Groups belong to a rank and are never gathered.

    A batch that the groups do not divide is cut as evenly as possible, larger groups first; a batch of fewer
    samples than groups is cut into single samples.

    Args:
        num_features: number of channels C.
        groups: number of groups G, >= 1.
        eps: added to the variance, > 0.
        momentum: weight of the newest batch in the running estimates, 0..1; None: all batches count equally.
        affine: learn weight and bias.
        track_running_stats: keep running estimates and use them in evaluation mode.

    Raises:
        ValueError: groups < 1; on call: other number of channels or axes, or, in training, a group with fewer
            than two values per channel.

    Example:
        >>> SplitBatchNorm(4, groups=2)(torch.randn(8, 4, 5, 5)).shape
        torch.Size([8, 4, 5, 5])
    """

    def __init__(
        self,
        num_features: int,
        groups: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if groups < 1:
            raise ValueError(f"a batch needs at least one group, got {groups}")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        least, more = divmod(len(input), self.groups)
        sizes = [least + (group < more) for group in range(self.groups if least else more)]
        weight, bias = self.weight, self.bias
        # The dtype in which torch's kernel hands out statistics; with momentum 1 they replace these zeros.
        like = next((v for v in (self.running_mean, weight) if v is not None), input)
        moments = like.new_zeros(2, len(sizes), self.num_features)
        # A call per group reads the batch where it lies. Groups as channels of one call need four copies more
        # of the batch, and are slower with 2 and with 8 groups.
        y = [
            F.batch_norm(part, mean, var, weight, bias, training=True, momentum=1.0, eps=self.eps)
            for part, mean, var in zip(input.split(sizes), *moments, strict=True)
        ]
        self._remember(*moments.mean(1))
        return torch.cat(y)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if momentum is None else momentum
        self.running_mean.lerp_(mean, momentum or 0.0)
        self.running_var.lerp_(var, momentum or 0.0)

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.ndim <= 5 or input.shape[1] != self.num_features:
            raise ValueError(
                f"expected (N, {self.num_features}, ...) with 2 to 5 axes, got {tuple(input.shape)}"
            )
        samples = max(1, len(input) // self.groups)
        if self.training and (not len(input) or samples * input[0, 0].numel() < 2):
            raise ValueError(
                f"batch statistics need more than 1 value per channel in every group, got a batch of "
                f"{len(input)} in {self.groups} groups (input {tuple(input.shape)})"
            )

    def extra_repr(self) -> str:
        return f"groups={self.groups}, {super().extra_repr()}"


def split(module: nn.Module, groups: int) -> nn.Module:
    """Replace every torch batch norm in a module by :class:`SplitBatchNorm`, in place, keeping its tensors.

    The counterpart of :func:`synchronised`; batch norms that are split already get the new number of groups.

    Args:
        module: any module; itself a batch norm is allowed.
        groups: number of groups G of a training batch, >= 1.

    Returns:
        The module, or its replacement if it is itself a batch norm.

    Raises:
        ValueError: groups < 1, or a batch norm is of a class other than torch's own, which is lost in a split.

    Example:
        >>> split(nn.Sequential(nn.BatchNorm1d(3)), groups=4)[0].groups
        4
    """
    if groups < 1:
        raise ValueError(f"a batch needs at least one group, got {groups}")
    for part in module.modules():
        if type(part) is SplitBatchNorm:
            part.groups = groups
    return _converted(module, (SplitBatchNorm,), "split", partial(_empty, SplitBatchNorm, groups=groups))


def _converted(
    module: nn.Module, done: tuple[type, ...], verb: str, make: Callable[[_BatchNorm], _BatchNorm]
) -> nn.Module:
    """Replace the batch norms of torch in a module by new ones with the same tensors."""
    foreign = [
        f"{name or '(itself)'}: {type(part).__name__}"
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and type(part) not in (*CONVERTED, *done)
    ]
    if foreign:
        raise ValueError(f"cannot {verb} batch norms of other classes: {', '.join(foreign)}")

    def replacement(norm: nn.Module) -> _BatchNorm:
        assert isinstance(norm, _BatchNorm)
        new = make(norm)
        new._parameters.update(norm._parameters)
        new._buffers.update(norm._buffers)
        return new.train(norm.training)

    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(module.modules()):
        # `_modules` and not named_children(): the latter lists a shared child once.
        for name, child in parent._modules.items():
            if child is not None and type(child) in CONVERTED:
                if child not in replaced:
                    replaced[child] = replacement(child)
                setattr(parent, name, replaced[child])
    return replacement(module) if type(module) in CONVERTED else module


def _empty(kind: Callable[..., _BatchNorm], norm: _BatchNorm, **more: int) -> _BatchNorm:
    """A batch norm of another class with the settings of a given one and no storage."""
    return kind(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
        device="meta",
        **more,
    )


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x - mean, mean (C,), biased variance (C,) and the count per channel (), over all ranks."""
    axes = [0, *range(2, x.ndim)]
    size = x.numel() // x.shape[1]
    # One message for sum and count; in float64, where counts are exact.
    sums = torch.cat([x.sum(axes).double(), x.new_tensor([size], dtype=torch.float64)])
    sums = dist.all_sum(sums)
    if size <= 1:
        # Reading the count waits for the device, so only a rank that cannot know the answer does.
        _check_count(int(sums[-1]), x)
    n = sums[-1].detach()
    mean = (sums[:-1] / n).to(x.dtype)
    centred = x - _spread(mean, x)
    variance = (dist.all_sum(centred.square().sum(axes).double()) / n).to(x.dtype)
    return centred, mean, variance, n


def _check_count(count: int, x: Tensor) -> None:
    if count <= 1:
        raise ValueError(
            f"batch statistics need more than 1 value per channel over all ranks, got {count} "
            f"(this rank's input is {tuple(x.shape)})"
        )


def _spread(channels: Tensor, x: Tensor) -> Tensor:
    """View (C,) so that it broadcasts along the channel axis of x."""
    return channels.view(-1, *[1] * (x.ndim - 2))
