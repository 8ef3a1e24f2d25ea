"""VICReg: variance, invariance and covariance of two views, no negatives [Bardes et al., ICLR 2022]."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from leanlabel import dist
from leanlabel.config import RunConfig, Settings
from leanlabel.data.images import Images
from leanlabel.losses.decorrelation import vicreg
from leanlabel.methods.image import Batch, ImageMethod
from leanlabel.methods.image_settings import ImageConfig


class VICRegSettings(Settings):
    """The objective."""

    name: Literal["vicreg"] = "vicreg"
    """Method."""
    invariance: float = Field(default=25.0, ge=0)
    """Weight (lambda) of the distance of the two views."""
    variance: float = Field(default=25.0, ge=0)
    """Weight (mu) of the hinge on the standard deviations."""
    covariance: float = Field(default=1.0, ge=0)
    """Weight (nu) of the covariances of different columns."""
    hidden: int = Field(default=8192, ge=1)
    """Hidden width of the projector ("expander")."""
    width: int = Field(default=8192, ge=1)
    """Width of the projection."""


class VICRegConfig(ImageConfig):
    """All keys of a VICReg recipe."""

    method: VICRegSettings = VICRegSettings()
    """Objective."""


class VICReg(ImageMethod):
    """Two views agree, every column varies, no two columns say the same."""

    Config: ClassVar[type[RunConfig]] = VICRegConfig
    least_rows: ClassVar[int] = 2

    def build(self, images: Images) -> None:
        """Backbone and projector of three layers."""
        super().build(images)
        method = self.cfg.method
        self.projector = self.make_head(
            self.backbone.width, method.hidden, method.width, layers=3, norm="batch", last_bias=False
        )

    def step(self, t: int, batch: Batch) -> None:
        """Project two views, sum the three terms over the rows of all processes, update."""
        method = self.cfg.method
        z = [self.projector(self.backbone(self.view(k, t, batch))) for k in (0, 1)]
        found = vicreg(
            dist.all_rows(z[0]),
            dist.all_rows(z[1]),
            invariance=method.invariance,
            variance=method.variance,
            covariance=method.covariance,
        )
        self.report(**found)
        self.watch(t, z[0])
        self.update(found["loss"])
