"""DGI: deep graph infomax [Velickovic et al., ICLR 2019].

In the paper's order: encode the graph → corrupt it by shuffling the rows of the features → summarise the graph by the
sigmoid of its mean embedding → a bilinear discriminator tells nodes of the graph from nodes of the corrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from leanlabel import dist
from leanlabel.config import RunConfig, Settings
from leanlabel.data.graphs import Graph
from leanlabel.methods.graph import Batch, GraphConfig, GraphMethod
from leanlabel.sparse import Csr, take_rows


class DGISettings(Settings):
    """The objective; it has no settings of its own."""

    name: Literal["dgi"] = "dgi"
    """Method."""


class DGIConfig(GraphConfig):
    """All keys of a DGI recipe."""

    method: DGISettings = DGISettings()
    """Objective."""


class Discriminator(nn.Module):
    """Score rows against a summary: D(z, s) = z^T W s  [ICLR 2019, section 3.4].

    Args:
        width: width d of rows and summary.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(width, width).uniform_(-bound, bound))

    def forward(self, z: Tensor, summary: Tensor) -> Tensor:
        """Logits (N,) of rows (N, d) against a summary (d,); all carry gradient."""
        return z @ (self.weight @ summary)


class DGI(GraphMethod):
    """Nodes of the graph against nodes of a corrupted one, told apart by the summary of the graph."""

    Config: ClassVar[type[RunConfig]] = DGIConfig

    whole: Csr

    def build(self, graph: Graph) -> None:
        """Encoder, discriminator."""
        super().build(graph)
        self.discriminator = Discriminator(self.cfg.model.width)

    def batches(self, start: int) -> Iterator[Batch]:
        """The whole graph, again and again."""
        self.whole = self.adjacency(self.graph)
        yield from super().batches(start)

    def step(self, t: int, batch: Batch) -> None:
        """Encode the graph and its corruption, tell their nodes apart, update."""
        order = self.draw("corrupt", t).permutation(self.num_nodes)
        true = self.encoder(batch.x, self.whole)
        false = self.encoder(take_rows(batch.x, order), self.whole)
        summary = torch.sigmoid(true.mean(0))
        rows = dist.shard(self.num_nodes)
        logits = torch.cat([self.discriminator(z[rows], summary) for z in (true, false)])
        target = torch.zeros_like(logits)
        target[: len(logits) // 2] = 1
        total = binary_cross_entropy_with_logits(logits, target, reduction="sum")
        loss = dist.global_mean(total, len(logits))
        self.report(loss=loss, accuracy=((logits.detach() > 0) == (target > 0)).double().mean())
        self.update(loss)
