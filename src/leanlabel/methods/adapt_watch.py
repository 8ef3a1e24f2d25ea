"""What can be seen of an adaptation without a single label of the target: gap, confidence, agreement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.data.dense import DenseImages
from leanlabel.methods.segmentation import plain_segmenter

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
                entropy, features = [], []
                if channels(data) != channels(self.data.target):
                    continue  # the network reads the target only
                with method.reading(data):
                    for images in some(data, rows, method.cfg.evaluation.batch):
                        output = method.deployed(method.normalised(images))
                        probabilities = output.logits.float().softmax(1)
                        own = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1)
                        entropy.append(own.flatten())
                        features.append(output.features.float().transpose(0, 1).flatten(1))
                wide = torch.cat(features, 1).double()
                moments.append((wide.mean(1), wide.var(1)))
                if data is self.data.target:
                    k = torch.tensor(float(len(method.classes))).log().clamp_min(1e-12)
                    found["target_entropy"] = float(torch.cat(entropy).mean() / k)
            if len(moments) == 2:
                (a, u), (b, v) = moments
                found["domain_gap"] = float(((a - b).abs() / ((u + v) / 2).sqrt().clamp_min(1e-8)).mean())
        finally:
            method.train(was)
        return found

    @torch.no_grad()
    def label_free(self, method: Adapt) -> dict[str, float]:
        """Entropy (relative to its largest value) and, with a running average, agreement of the network with it."""
        was = method.training
        method.eval()
        total, agreed, pixels = 0.0, 0, 0
        k = torch.tensor(float(max(2, len(method.classes)))).log()
        try:
            for images in some(self.data.target, self.more, method.cfg.evaluation.batch):
                x = method.normalised(images)
                probabilities = method.deployed(x).logits.float().softmax(1)
                total += float((-(probabilities * probabilities.clamp_min(1e-12).log()).sum(1) / k).sum())
                pixels += probabilities[:, 0].numel()
                if method.average is not None:
                    own, other = (plain_segmenter(one)(x) for one in (method.network, method.average.network))
                    agreed += int((own.logits.argmax(1) == other.logits.argmax(1)).sum())
        finally:
            method.train(was)
        found = {"entropy": total / max(1, pixels)}
        return found | ({"teacher agreement": agreed / max(1, pixels)} if method.average is not None else {})


def channels(data: DenseImages) -> int:
    """Channels of the images."""
    return data.shape[0] if data.shape is not None else int(data.read([0])[0][0].shape[0])


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
                network(method.normalised(images))
        finally:
            for one, momentum in zip(norms, before, strict=True):
                one.momentum = momentum
            network.eval()
