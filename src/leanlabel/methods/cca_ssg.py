"""CCA-SSG: canonical correlation for graphs, no negatives [Zhang et al., NeurIPS 2021].

In the paper's order: two views → one encoder on both → columns standardised over the nodes → the views agree column by
column, the columns of each stay uncorrelated (`losses.decorrelation`) → one update. No projector, no target.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from leanlabel.config import RunConfig, Settings
from leanlabel.losses.decorrelation import cca_ssg
from leanlabel.methods.graph import Batch
from leanlabel.methods.graph_views import TwoViewConfig, TwoViewMethod, UniformViews


class CCASettings(Settings):
    """The objective."""

    name: Literal["cca-ssg"] = "cca-ssg"
    """Method."""
    decorrelation: float = Field(default=1e-3, ge=0)
    """Weight (lambda) of the term that keeps columns uncorrelated."""


class CCAConfig(TwoViewConfig):
    """All keys of a CCA-SSG recipe."""

    method: CCASettings = CCASettings()
    """Objective."""
    augment: UniformViews = UniformViews()
    """Views; the paper's are uniform."""


class CCASSG(TwoViewMethod):
    """Two views agree in every column, and no two columns say the same."""

    Config: ClassVar[type[RunConfig]] = CCAConfig

    def step(self, t: int, batch: Batch) -> None:
        """Embed two views, correlate their columns, update. Every rank computes the whole loss: it is O(N d^2)."""
        first, second = self.two_views(t, batch)
        terms = cca_ssg(first, second, weight=self.cfg.method.decorrelation)
        self.report(**terms)
        self.update(terms["loss"])
