"""SimCLR: two views of every image against all others of the batch [Chen et al., ICML 2020], with or without mixing.

In the paper's order: two views → backbone and projector on both at once → every view finds its partner among all
other views of the batch (`losses.contrastive`); hard negatives may be mixed from them (`losses.mixing`) → one update.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from leanlabel import dist
from leanlabel.config import RunConfig, Settings
from leanlabel.data.images import Images
from leanlabel.losses.contrastive import two_view_contrast
from leanlabel.losses.mixing import two_view_mixed
from leanlabel.methods.contrast_settings import MixingSettings, few_classes
from leanlabel.methods.image import Batch, ImageMethod
from leanlabel.methods.image_settings import ImageConfig


class SimCLRSettings(Settings):
    """The objective."""

    name: Literal["simclr"] = "simclr"
    """Method."""
    tau: float = Field(default=0.5, gt=0)
    """Temperature (tau); the paper's for CIFAR-10, 0.1 for ImageNet."""
    hidden: int = Field(default=2048, ge=1)
    """Hidden width of the projector."""
    width: int = Field(default=128, ge=1)
    """Width of the projection."""
    mixing: MixingSettings | None = None
    """Hard negatives mixed from the other images of the batch; null for none."""


class SimCLRConfig(ImageConfig):
    """All keys of a SimCLR recipe."""

    method: SimCLRSettings = SimCLRSettings()
    """Objective."""


class SimCLR(ImageMethod):
    """Every view finds its partner among the views of all other images of the batch."""

    Config: ClassVar[type[RunConfig]] = SimCLRConfig
    least_rows: ClassVar[int] = 2

    def build(self, images: Images) -> None:
        """Backbone, projector."""
        super().build(images)
        method = self.cfg.method
        self.projector = self.make_head(
            self.backbone.width, method.hidden, method.width, norm="batch", last_norm=True
        )

    def notes(self) -> list[str]:
        """What the number of classes means for mixing."""
        keys = 2 * self.cfg.data.batch_size - 2
        return [*super().notes(), *few_classes(self.cfg.method.mixing, self.images.y, keys, "more classes")]

    def step(self, t: int, batch: Batch) -> None:
        """Embed and project both views in one pass, contrast every view with all others, update."""
        both = torch.cat([self.view(k, t, batch) for k in (0, 1)])
        z: Tensor = self.projector(self.backbone(both))
        first, second = (dist.all_rows(part) for part in z.chunk(2))
        rows = dist.shard(len(first))
        tau, settings = self.cfg.method.tau, self.cfg.method.mixing
        mixing = None if settings is None else settings.at(t)
        extra = None
        if mixing is not None:
            extra = two_view_mixed(first, second, mixing, self.draw("mix", t, batch[0]), tau=tau, rows=rows)
        options: dict[str, Any] = {"tau": tau, "rows": rows, "extra": extra, "reduction": "parts"}
        loss = dist.global_mean(*two_view_contrast(first, second, **options))
        self.report(loss=loss)
        self.watch(t, z[: len(batch[0])])
        self.update(loss)
