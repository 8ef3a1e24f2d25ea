"""The keys of every recipe on images, and what can be said about them before training."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from leanlabel import dist
from leanlabel.augment.image import ViewSettings
from leanlabel.config import EvaluationSettings, OptimSettings, RunConfig, Settings
from leanlabel.data.image_source import ImageSource
from leanlabel.data.images import Images
from leanlabel.errors import InputError
from leanlabel.models.backbones import BackboneSettings, has_batch_statistics


class Views(ViewSettings):
    """How the random views of an image are drawn."""

    second: ViewSettings | None = None
    """The second view, where it is drawn differently; null: like the first."""


class ImageEvaluation(EvaluationSettings):
    """How a run is measured: protocol, splits, selection."""

    feature: Literal["backbone", "projection"] = "backbone"
    """What the embedding of an image is: the pooled output of the backbone, or that of the projector behind it."""
    resize: int | None = Field(default=None, ge=1)
    """Shorter side in pixels before the centre crop of test-time images; null: the size of the views."""
    batch: int = Field(default=256, ge=1)
    """Images embedded at a time."""
    by_domain: bool = False
    """Score readouts within each domain, too, where the images come from several."""


class WatchSettings(Settings):
    """What is looked at while training; nothing here changes the weights."""

    every: int = Field(default=50, ge=0)
    """Iterations between looks at the batch: effective rank, uniformity, and what the method adds; 0 for never."""
    knn_every: int = Field(default=0, ge=0)
    """Iterations between weighted kNN readouts of some labelled images; 0 for never."""
    knn_rows: int = Field(default=1000, ge=2)
    """Training images in that readout, and validation images at most (of data without a validation part, other training
    images)."""


class ImageConfig(RunConfig):
    """The keys of every recipe on images."""

    task: str = "ssl"
    """Kind of job."""
    steps: int = Field(default=1000, ge=0)
    """Iterations."""
    model: BackboneSettings = BackboneSettings()
    """Backbone."""
    data: ImageSource
    """The images."""
    augment: Views = Views()
    """Random views."""
    optim: OptimSettings = OptimSettings(
        name="sgd", lr=0.03, momentum=0.9, weight_decay=1e-4, schedule="cosine"
    )
    """Optimiser."""
    evaluation: ImageEvaluation = ImageEvaluation()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Protocol, splits, selection of weights."""
    watch: WatchSettings = WatchSettings()
    """What is looked at while training."""

    @model_validator(mode="after")
    def _cut(self) -> Self:
        resize = self.evaluation.resize
        if resize is not None and resize < self.augment.size:
            raise ValueError(
                f"evaluation.resize of at least augment.size ({self.augment.size}), which is cut from it; got {resize}"
            )
        return self

    @model_validator(mode="after")
    def _logged(self) -> Self:
        for key in ("every", "knn_every"):
            interval = getattr(self.watch, key)
            if interval % self.engine.log_every:
                raise ValueError(
                    f"watch.{key} ({interval}) a multiple of engine.log_every ({self.engine.log_every}), or nothing of "
                    f"it is logged"
                )
        return self


def standing_alone(cfg: Any, method: nn.Module) -> bool:
    """Whether batch normalisation sees the whole batch at once, so that it can tell which rows belong together."""
    if not has_batch_statistics(method):
        return False
    norm, alone = cfg.model.norm, dist.world() == 1
    return norm == "sync" or (alone and (norm == "batch" or (norm == "split" and cfg.model.norm_groups == 1)))


def check_batch(cfg: Any, images: Images, rows: int, least: int = 1) -> None:
    """Refuse a batch that the images, the processes or the normalisation cannot have.

    Args:
        cfg: of a method on images.
        images: for their name.
        rows: how many of them are trained on.
        least: images that the method itself needs in each process.

    Raises:
        InputError: names the setting.
    """
    size, norm = cfg.data.batch_size, cfg.model.norm
    if rows < 2:
        raise InputError(f"{images.name}: {rows} image to train on; telling images apart needs at least two.")
    if size > rows:
        raise InputError(
            f"data.batch_size: {size} is more than the {rows} images to train on.",
            f"Set it to {rows} or less.",
        )
    ranks = cfg.engine.devices * cfg.engine.nodes
    if size % ranks:
        raise InputError(f"data.batch_size: {size} is global and must be divisible by the {ranks} processes.")
    if size // ranks < least:
        raise InputError(
            f"data.batch_size: {size} over {ranks} processes; {cfg.method.name} compares or normalises images within a "
            f"process and needs at least {least} in each.",
            "Use a larger data.batch_size.",
        )
    groups = cfg.model.norm_groups if norm == "split" else 1
    if norm in ("batch", "split") and size // ranks < 2 * groups:
        each = "a batch" if groups == 1 else f"each of {groups} groups"
        raise InputError(
            f"data.batch_size: {size} over {ranks} processes leaves batch normalisation {size // ranks // groups} "
            f"images in {each}; it needs two.",
            "Use a larger data.batch_size, or model.norm=group.",
        )
