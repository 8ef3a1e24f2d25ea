"""Supervised training of the same backbone on the same views: what labels alone reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leanlabel import dist
from leanlabel.banks.teacher import plain
from leanlabel.config import RunConfig, Settings
from leanlabel.data.images import Images
from leanlabel.engine.method import Method
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import Classifier
from leanlabel.evaluation.protocols import PROTOCOLS
from leanlabel.evaluation.readouts import class_names, planned_splits
from leanlabel.methods.image import Batch, ImageMethod
from leanlabel.methods.image_settings import ImageConfig

LAST = "weights of the last iteration; no validation images were looked at"


class SupervisedSettings(Settings):
    """The objective."""

    name: Literal["supervised-image"] = "supervised-image"
    """Method."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing: share of every target that is spread evenly over the classes."""


class SupervisedImageConfig(ImageConfig):
    """All keys of a supervised recipe on images."""

    method: SupervisedSettings = SupervisedSettings()
    """Objective."""


class SupervisedImage(ImageMethod):
    """Cross-entropy on one view of each labelled training image."""

    Config: ClassVar[type[RunConfig]] = SupervisedImageConfig
    fixed: ClassVar[tuple[str, ...]] = ("evaluation.split", "evaluation.splits", "evaluation.shares")
    supervised_only: ClassVar[bool] = True

    @classmethod
    def read(cls, cfg: Any) -> Images:
        """The images; labels and exactly one split are needed."""
        if cfg.evaluation.feature == "projection":
            raise InputError(
                "evaluation.feature=projection: supervised training has no projector.", "Use backbone."
            )
        images = super().read(cfg)
        splits = planned_splits(images, cfg.evaluation, cfg.seed)
        if not splits:
            names = ", ".join(name for name, one in PROTOCOLS.items() if one.needs_splits and not one.images)
            raise InputError(
                f"{images.name}: supervised training needs labels and a protocol with splits ({names}).",
                "Train without labels with mochi, simclr, byol, simsiam or vicreg.",
            )
        if len(splits) > 1:
            raise InputError(
                f"evaluation.splits: {len(splits)}; a supervised network learns from the training part of one split.",
                "Set evaluation.splits=1.",
            )
        labelled = len(splits[0].train)
        if cfg.steps > 0 and cfg.data.batch_size > labelled:
            raise InputError(
                f"data.batch_size: {cfg.data.batch_size} is more than the {labelled} labelled training images.",
                f"Set it to {labelled} or less.",
            )
        return images

    @classmethod
    def describe(cls, cfg: Any, images: Images) -> dict[str, Any]:
        """What ``data.json`` says; trained on are the rows of the training part alone."""
        found = super().describe(cfg, images)
        split = planned_splits(images, cfg.evaluation, cfg.seed)[0]
        return {**found, "counts": {**found["counts"], "trained on": len(split.train)}}

    def build(self, images: Images) -> None:
        """Backbone and linear head; trained on the training part of the split only."""
        super().build(images)
        self.split = planned_splits(images, self.cfg.evaluation, self.cfg.seed)[0]
        self.pool = self.split.train
        self.head = nn.Linear(self.backbone.width, len(class_names(images)))

    def step(self, t: int, batch: Batch) -> None:
        """Cross-entropy of one random view per image; update."""
        y = self.labels(batch[0])
        assert y is not None
        features = self.backbone(self.view(0, t, batch))
        logits = self.head(features).float()
        losses = cross_entropy(logits, y, reduction="none", label_smoothing=self.cfg.method.smoothing)
        right = (logits.detach().argmax(1) == y).double().mean()
        loss = dist.global_mean(losses.sum(), len(losses))
        self.report(loss=loss, accuracy=right)
        self.watch(t, features)
        self.update(loss)

    @torch.no_grad()
    def logits(self, images: Images) -> Tensor:
        """Class scores (N, C) of images as they are at test time."""
        weight, bias = self._linear()
        return self.embed(images) @ weight.T + bias

    def _selection(self) -> str:
        select = self.cfg.evaluation.select
        return (
            LAST
            if select == "last"
            else f"weights of the best {select.replace('best_val', 'validation accuracy')}"
        )

    def _linear(self) -> tuple[Tensor, Tensor]:
        head = plain(self.head)
        assert isinstance(head, nn.Linear)
        return head.weight.detach().cpu().float(), head.bias.detach().cpu().float()

    def classifier(self) -> Classifier | None:
        """The trained head; it has seen the training part of the split."""
        if self.cfg.steps == 0:
            return None
        rows = self.split.train
        about = {"kind": "head", "rows": len(rows), "part": f"training part of split {self.split.name}"}
        return Classifier(*self._linear(), False, tuple(class_names(self.images)), rows, about)

    def evaluate(
        self,
        data: Images,
        untrained: Method,
        protocol: str | None = None,
        splits_file: Path | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Accuracy of the network's own head beside a readout of the untrained backbone; kNN reads the embeddings."""
        name = protocol or self.cfg.evaluation.protocol
        if self.cfg.steps > 0 and name == "logistic-l2":
            more |= {"predictions": {"trained": [self.logits(data)]}, "selection": self._selection()}
        return super().evaluate(data, untrained, protocol, splits_file, **more)
