"""What can be seen of an adaptation without a single label of the target: gap, confidence, agreement."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.data.dense import DenseImages
from leanlabel.methods.dense_measuring import plain_segmenter
from leanlabel.methods.segmentation import channels_of

if TYPE_CHECKING:
    from leanlabel.methods.adapt import Adapt
    from leanlabel.methods.domains import Domains

FEW = 16
"""Images of each domain that the gap is measured on while training goes on."""
MORE = 64
"""Target images that scores without labels are measured on."""


class Watch:
    """Measurements on fixed training images, the same whenever they are asked."""

    def __init__(self, data: Domains, source: Tensor, target: Tensor) -> None:
        self.data = data
        self.source, self.target = evenly(source, FEW), evenly(target, FEW)
        self.more = evenly(target, MORE)

    @torch.no_grad()
    def measured(self, method: Adapt) -> dict[str, float]:
        """Gap between features of the domains, and entropy on the target; in evaluation mode, put back after.

        The gap is the mean over channels of |mean_s - mean_t| / sqrt((var_s + var_t) / 2), over all positions of the
        features of the network that would be handed out: 0 where both domains look alike to it.
        """
        was = method.training
        method.eval()
        found = {}
        try:
            moments = []
            for data, rows in ((self.data.source, self.source), (self.data.target, self.target)):
                if channels_of(data) != channels_of(self.data.target):
                    continue  # the network reads the target only
                one = Moments()
                with method.reading(data):
                    for images in some(data, rows, method.cfg.evaluation.batch):
                        output = method.deployed(windowed(method, images))
                        one.add(output.features.float(), entropies(output.logits))
                moments.append(one)
                if data is self.data.target:
                    found["target_entropy"] = one.entropy
            if len(moments) == 2:
                (a, u), (b, v) = (one.mean_and_variance() for one in moments)
                found["domain_gap"] = float(((a - b).abs() / ((u + v) / 2).sqrt().clamp_min(1e-8)).mean())
        finally:
            method.train(was)
        return found

    @torch.no_grad()
    def label_free(self, method: Adapt, *, agreement: bool = False) -> dict[str, float]:
        """Mean entropy, relative to its largest value; while training, agreement with the running average, too."""
        was = method.training
        method.eval()
        total, agreed, pixels = 0.0, 0, 0
        try:
            for images in some(self.data.target, self.more, method.cfg.evaluation.batch):
                x = windowed(method, images)
                each = entropies(method.deployed(x).logits)
                total += float(each.sum())
                pixels += each.numel()
                if agreement and method.average is not None:
                    own, other = (plain_segmenter(one)(x) for one in (method.network, method.average.network))
                    agreed += int((own.logits.argmax(1) == other.logits.argmax(1)).sum())
        finally:
            method.train(was)
        found = {"entropy": total / max(1, pixels)}
        return found | ({"teacher agreement": agreed / max(1, pixels)} if agreement else {})


class Moments:
    """Mean and variance of features over all positions, and mean entropy, without keeping any map."""

    def __init__(self) -> None:
        self.count, self.certainty = 0, 0.0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, features: Tensor, entropy: Tensor) -> None:
        """Features (B, D, h, w) and entropy (B, h, w)."""
        wide = features.transpose(0, 1).flatten(1).double()
        self.total = self.total + wide.sum(1)
        self.squares = self.squares + wide.square().sum(1)
        self.count += wide.shape[1]
        self.certainty += float(entropy.double().sum())

    @property
    def entropy(self) -> float:
        """Mean entropy."""
        return self.certainty / max(1, self.count)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Of each channel."""
        mean = torch.as_tensor(self.total) / max(1, self.count)
        return mean, (torch.as_tensor(self.squares) / max(1, self.count) - mean.square()).clamp_min(0)


def entropies(logits: Tensor) -> Tensor:
    """Entropy (B, h, w) of the softmax as a share of its largest value, which is log K."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1) / math.log(max(2, logits.shape[1]))


def windowed(method: Any, images: Tensor) -> Tensor:
    """Images (B, C, h, w) as the network reads them: the middle window, where it reads windows."""
    x = method.normalised(images)
    size = method.cfg.evaluation.window
    if size is None:
        return x
    top, left = (max(0, (side - own) // 2) for side, own in zip(x.shape[-2:], size, strict=True))
    return x[..., top : top + size[0], left : left + size[1]]


def evenly(rows: Tensor, count: int) -> Tensor:
    """Up to so many rows, evenly spread."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()] if len(rows) else rows


def some(data: DenseImages, rows: Tensor, batch: int) -> Any:
    """Images in batches of one size; masks are not read."""
    for part in rows.split(batch):
        images = data.pixels.read(part.tolist())
        groups: dict[tuple[int, ...], list[Tensor]] = {}
        for one in images:
            groups.setdefault(tuple(one.shape), []).append(one)
        for same in groups.values():
            yield torch.stack(same)


@torch.no_grad()
def renew_statistics(method: Any, data: DenseImages, rows: Tensor) -> None:
    """Estimate running means and variances of the network that is handed out anew from images (AdaBN).

    Every batch counts alike [Li et al. 2018]; means over batches of the batch mean and of the batch variance.
    """
    network = method.deployed
    norms = [one for one in network.modules() if isinstance(getattr(one, "running_mean", None), Tensor)]
    before: list[Any] = [one.momentum for one in norms]
    network.eval()
    with dist.alone():
        for one in norms:
            one.reset_running_stats()
            one.momentum = None
            one.train()
        try:
            for images in some(data, rows, max(2, method.cfg.evaluation.batch)):
                network(windowed(method, images))
        finally:
            for one, momentum in zip(norms, before, strict=True):
                one.momentum = momentum
            network.eval()
