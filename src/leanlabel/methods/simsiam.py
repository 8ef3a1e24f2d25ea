"""SimSiam: two views, one network, a predictor and a stopped gradient [Chen and He, CVPR 2021, algorithm 1]."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from leanlabel import dist
from leanlabel.config import RunConfig, Settings
from leanlabel.data.images import Images
from leanlabel.losses.bootstrap import bootstrap_cosine
from leanlabel.methods.image import Batch, ImageMethod
from leanlabel.methods.image_settings import ImageConfig


class SimSiamSettings(Settings):
    """The objective."""

    name: Literal["simsiam"] = "simsiam"
    """Method."""
    hidden: int = Field(default=2048, ge=1)
    """Hidden width of the projector."""
    width: int = Field(default=2048, ge=1)
    """Width of the projection."""
    layers: int = Field(default=3, ge=2)
    """Layers of the projector; 2 in the paper's setting for CIFAR."""
    bottleneck: int = Field(default=512, ge=1)
    """Hidden width of the predictor."""


class SimSiamConfig(ImageConfig):
    """All keys of a SimSiam recipe."""

    method: SimSiamSettings = SimSiamSettings()
    """Objective."""


class SimSiam(ImageMethod):
    """Each view's prediction meets the other view's projection, through which no gradient flows."""

    Config: ClassVar[type[RunConfig]] = SimSiamConfig
    least_rows: ClassVar[int] = 2

    def build(self, images: Images) -> None:
        """Backbone, projector with normalised output, predictor."""
        super().build(images)
        method = self.cfg.method
        self.projector = self.make_head(
            self.backbone.width,
            method.hidden,
            method.width,
            layers=method.layers,
            norm="batch",
            last_norm=True,
            last_affine=False,
        )
        self.predictor = self.make_head(method.width, method.bottleneck, method.width, norm="batch")

    def step(self, t: int, batch: Batch) -> None:
        """Minus the cosine of prediction and projection, the mean of both directions; update."""
        z = [self.projector(self.backbone(self.view(k, t, batch))) for k in (0, 1)]
        loss: Tensor = z[0].new_zeros(())
        for one, other in ((0, 1), (1, 0)):
            losses = bootstrap_cosine(self.predictor(z[one]), z[other], reduction="none")
            # 2 - 2 cos -> -cos / 2 for each direction, the scale on which the paper reports it.
            loss = loss + dist.global_mean((losses / 4 - 0.5).sum(), len(losses))
        self.report(loss=loss)
        self.watch(t, z[0])
        self.update(loss)
