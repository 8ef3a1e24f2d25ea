"""GCA: graph contrastive learning with adaptive augmentation [Zhu et al., WWW 2021], and GRACE as its uniform case.

In the paper's order: centrality of nodes → drop probabilities of edges and features (`augment.graph`) → two views →
encoder and projector (`models.graph`) → contrast of the two views of every node (`losses.contrastive`) → one update.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar, Literal

from pydantic import Field

from leanlabel import dist
from leanlabel.config import RunConfig, Settings
from leanlabel.data.graphs import Graph
from leanlabel.losses.contrastive import bf16_products, two_view_contrast
from leanlabel.methods.graph import Batch
from leanlabel.methods.graph_views import TwoViewConfig, TwoViewMethod, ViewSettings
from leanlabel.models.graph import Projector


class GCASettings(Settings):
    """The objective."""

    name: Literal["gca"] = "gca"
    """Method."""
    tau: float = Field(default=0.4, gt=0)
    """Temperature (tau) of the contrast."""
    chunk: int | None = Field(default=None, ge=1)
    """Rows of the similarity matrix computed at a time; null chooses. Does not change the result."""


class GCAConfig(TwoViewConfig):
    """All keys of a GCA recipe."""

    method: GCASettings = GCASettings()
    """Objective."""
    augment: ViewSettings = ViewSettings()
    """Views."""


class GCA(TwoViewMethod):
    """Two views of one graph, contrasted node by node."""

    Config: ClassVar[type[RunConfig]] = GCAConfig
    baselines: ClassVar[dict[str, dict[str, Any]]] = {
        **TwoViewMethod.baselines,
        "grace": {"augment": {"scheme": "uniform"}},
    }

    def build(self, graph: Graph) -> None:
        """Encoder, projector."""
        super().build(graph)
        self.projector = Projector(self.cfg.model.width, self.cfg.model.projection)

    def step(self, t: int, batch: Batch) -> None:
        """Draw two views, embed and project them, contrast every node with its other self, update."""
        products = bf16_products() if self.cfg.engine.bf16_products else nullcontext()
        with products:
            first, second = (self.projector(rows) for rows in self.two_views(t, batch))
            total, count = two_view_contrast(
                first,
                second,
                tau=self.cfg.method.tau,
                rows=self.own_rows(len(first)),
                chunk=self.cfg.method.chunk,
                reduction="parts",
            )
            loss = dist.global_mean(total, count)
            self.report(loss=loss)
            self.update(loss)
