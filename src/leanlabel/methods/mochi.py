"""MoCHi: mixing of contrastive hard negatives [Kalantidis et al., NeurIPS 2020], and MoCo-v2 as its case without.

In the papers' order: two views → query from the backbone and projector → the key network follows by a moving average →
key from the other view, its batch shuffled → hard negatives mixed from the queue (`losses.mixing`) → contrast of the
key against queue and mixtures (`losses.contrastive`) → one update → the keys enter the queue (`banks.queue`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from leanlabel import dist
from leanlabel.banks.queue import FeatureQueue
from leanlabel.banks.teacher import Teacher
from leanlabel.config import RunConfig, Settings
from leanlabel.data.images import Images
from leanlabel.errors import InputError
from leanlabel.evaluation.negatives import (
    false_negative_share,
    hardness_curve,
    proxy_accuracy,
    synthetic_false_negatives,
)
from leanlabel.losses.contrastive import Distinct, KeepRule, contrast, unit
from leanlabel.losses.mixing import draw_mixing, hardest, mixed_logits
from leanlabel.methods.contrast_settings import MixingSettings, few_classes
from leanlabel.methods.image import Batch, ImageMethod
from leanlabel.methods.image_settings import ImageConfig, standing_alone
from leanlabel.models.backbones import has_batch_statistics

HARDEST = 64
"""Hardest keys among which false negatives are counted where nothing is mixed."""
RANKS = (1, 4, 16, 64, 256, 1024)
"""Ranks of the hardest negatives whose share of the softmax is logged."""


class MoCHiSettings(Settings):
    """The objective."""

    name: Literal["mochi"] = "mochi"
    """Method; with mixing null it is MoCo-v2."""
    tau: float = Field(default=0.2, gt=0)
    """Temperature (tau) of the contrast."""
    queue: int = Field(default=65536, ge=1)
    """Keys remembered (K)."""
    momentum: float = Field(default=0.999, ge=0, le=1)
    """Momentum (m) of the key network; 0.99 for trainings of few iterations."""
    width: int = Field(default=128, ge=1)
    """Width d of the projection."""
    head: Literal["linear", "mlp"] = "mlp"
    """Projector: one layer (MoCo-v1), or two with the backbone's width between them (v2)."""
    mixing: MixingSettings | None = MixingSettings()
    """Mixed hard negatives; null for none."""
    symmetric: bool = False
    """Contrast both ways round and add both losses; costs as much as twice the iterations."""
    shuffle: bool = True
    """Permute the batch of the key network, so that it and the query are not normalised with the same neighbours."""
    in_batch: bool = False
    """Let the keys of the other images of the batch be negatives, too."""
    mask_noise: bool = False
    """Leave queue slots that were never written out of the loss; in the papers they are noise that takes part."""
    mask_same_image: bool = False
    """Leave earlier keys of the query's own image out; for data smaller than the queue."""
    class_oracle: bool = False
    """Leave keys of the query's own class out: needs labels, and shows the most that better negatives could give."""


class MoCHiConfig(ImageConfig):
    """All keys of a MoCHi or MoCo-v2 recipe."""

    method: MoCHiSettings = MoCHiSettings()
    """Objective."""


class MoCHi(ImageMethod):
    """Queries find their keys among a queue of others and among mixtures of the hardest of them."""

    Config: ClassVar[type[RunConfig]] = MoCHiConfig
    baselines: ClassVar[dict[str, dict[str, Any]]] = {
        **ImageMethod.baselines,
        "moco-v2": {"method": {"mixing": None}},
    }

    @classmethod
    def read(cls, cfg: Any) -> Images:
        """The images; the class oracle needs labels."""
        images = super().read(cfg)
        if cfg.method.class_oracle and images.y is None:
            raise InputError(f"method.class_oracle: {images.name} has no labels.", "Set it to false.")
        if cfg.method.class_oracle and "test" not in images.splits and cfg.evaluation.protocol != "none":
            raise InputError(
                f"method.class_oracle: {images.name} has no published test part, so labels of test images would train.",
                "Use data with one, or evaluation.protocol=none.",
            )
        return images

    def build(self, images: Images) -> None:
        """Backbone, projector, their slow copies for the keys, queue."""
        super().build(images)
        method, inputs = self.cfg.method, self.backbone.width
        layers = 2 if method.head == "mlp" else 1
        self.projector = self.make_head(inputs, inputs, method.width, layers=layers)
        self.key_backbone = Teacher(self.backbone)
        self.key_projector = Teacher(self.projector)
        self.queue = FeatureQueue(method.queue, method.width)

    @classmethod
    def sees_labels(cls, settings: Mapping[str, Any]) -> bool:
        """With the class oracle."""
        return bool(settings.get("method", {}).get("class_oracle", False))

    def took(self, names: Collection[str]) -> None:
        """Start the key network where the query network starts, as from a seed; the queue starts as noise.

        Keys of another run are of other images.
        """
        if not all(name in names for name in self.state_dict() if name.startswith("key_")):
            self.key_backbone.follow(self.backbone, 0.0)
            self.key_projector.follow(self.projector, 0.0)
        self.queue.forget()

    def step(self, t: int, batch: Batch) -> None:
        """Contrast the queries with their keys, the queue and what is mixed from it; update; enqueue the keys."""
        views = [self.view(k, t, batch) for k in (0, 1)]
        query = [unit(self.projector(self.backbone(x))) for x in views[: 1 + self.cfg.method.symmetric]]
        self.key_backbone.follow(self.backbone, self.cfg.method.momentum, buffers=False)
        self.key_projector.follow(self.projector, self.cfg.method.momentum, buffers=False)
        loss: Tensor = query[0].new_zeros(())
        keys = [self.keys(t, views[1 - k], k) for k in range(len(query))]
        for k, (rows, key) in enumerate(zip(query, keys, strict=True)):
            total, count = self.contrasted(t, rows, key, batch[0], k)
            loss = loss + dist.global_mean(total, count)
        self.report(loss=loss, queue_filled=float(self.queue.real()))
        self.watch(t, query[0])
        self.update(loss)
        for key in keys:
            self.queue.push(key, batch[0])

    @torch.no_grad()
    def keys(self, t: int, views: Tensor, k: int) -> Tensor:
        """Keys (B, d) of this rank's views: the rows of all ranks are permuted before the key network and put back."""
        if not self.cfg.method.shuffle:
            return self._keys(views)
        everyone = dist.all_rows(views)
        order = self.draw(f"shuffle {k}", t).permutation(len(everyone))
        mine = dist.shard(len(everyone))
        found = self._keys(everyone[order][mine])
        return dist.all_rows(found)[order.argsort()][mine]

    def _keys(self, views: Tensor) -> Tensor:
        with self.autocast():
            return unit(self.key_projector(self.key_backbone(views)))

    def contrasted(
        self, t: int, query: Tensor, key: Tensor, ids: Tensor, k: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Sum of the losses of this rank's queries and their number.

        L_i = -log( e^{q.k/tau} / (e^{q.k/tau} + sum_j e^{q.n_j/tau} + sum_h e^{q.h/tau}) )   [MoCo eq. 1; MoCHi eq. 2]

        Args:
            t: iteration.
            query: (B, d), unit rows, gradient.
            key: (B, d), unit rows, no gradient.
            ids: (B,) of their images.
            k: which of the two directions.
        """
        method = self.cfg.method
        rows, owners = self.queue.read().to(query), self.queue.ids_read()
        real = self.queue.real()
        mixed = self._mixed(t, query, rows[:real], self._rule(ids, owners[:real]), ids, k)
        if method.mask_noise:
            rows, owners = rows[:real], owners[:real]
        parts = [part for part in (self._in_batch(query, key, ids), mixed) if part is not None]
        extra = torch.cat(parts, 1) if parts else None
        if k == 0 and self.due(t):
            self._look(t, query.detach(), key, rows, ids, owners, extra)
        return contrast(
            query,
            rows,
            own=key,
            tau=method.tau,
            extra=extra,
            keep=self._rule(ids, owners),
            reduction="parts",
        )

    def _in_batch(self, query: Tensor, key: Tensor, ids: Tensor) -> Tensor | None:
        """Logits (B, batch) of the keys of the other images of this batch, where they are negatives, too."""
        if not self.cfg.method.in_batch:
            return None
        others, owners = dist.all_rows(key), dist.all_rows(ids)
        dropped = ids[:, None] == owners[None]
        if self.cfg.method.class_oracle:
            dropped |= self._classes(ids, -2)[:, None] == self._classes(owners, -1)[None]
        return (query @ others.mT / self.cfg.method.tau).masked_fill(dropped, -torch.inf)

    def _mixed(
        self, t: int, query: Tensor, rows: Tensor, keep: KeepRule | None, ids: Tensor, k: int
    ) -> Tensor | None:
        """Logits (B, s + s') of mixtures of the hardest real keys of the queue; None where nothing is mixed."""
        settings = self.cfg.method.mixing
        mixing = None if settings is None else settings.at(t)
        if mixing is None or len(rows) == 0:
            return None
        draw = self.draw(f"mix {k}", t, ids)
        return mixed_logits(query, rows, mixing, draw, tau=self.cfg.method.tau, keep=keep)

    def _rule(self, ids: Tensor, owners: Tensor) -> KeepRule | None:
        """Which queue entries a query may meet: not its own image, not its own class, where the settings say so."""
        method = self.cfg.method
        rule: KeepRule | None = Distinct(ids, owners) if method.mask_same_image else None
        if method.class_oracle:
            other = Distinct(self._classes(ids, -2), self._classes(owners, -1))
            rule = other if rule is None else rule & other
        return rule

    def _classes(self, ids: Tensor, unknown: int) -> Tensor:
        """Classes (n,) of images by id in the pool; ``unknown`` for noise and for images without a label."""
        y = self.labels(ids.clamp(min=0))
        if y is None:
            return torch.full_like(ids, unknown)
        return torch.where((ids >= 0) & (y >= 0), y, unknown)

    @torch.no_grad()
    def _look(
        self,
        t: int,
        query: Tensor,
        key: Tensor,
        rows: Tensor,
        ids: Tensor,
        owners: Tensor,
        extra: Tensor | None,
    ) -> None:
        """Report how hard the pretext task is, and how many of the hardest negatives are false.

        proxy_accuracy (proxy_accuracy_mixed): share of queries whose key is above all negatives (and all mixtures);
        hardness_r: mean softmax share of the r-th hardest negative; chance_loss: log(1 + negatives), the loss of a
        network that tells nothing apart (masks lower it). With labels, of the N hardest real keys: false_negatives,
        those of the query's class; mixed_false_negatives (doubly_false_negatives), mixtures of at least one (of two)
        such keys.
        """
        method, keep = self.cfg.method, self._rule(ids, owners)
        if dist.any_true(not bool(torch.isfinite(query).all() and torch.isfinite(key).all())):
            return  # the update says where they come from
        proxy = proxy_accuracy(query, rows, key, tau=method.tau, extra=extra, keep=keep)
        curve = hardness_curve(query, rows, key, tau=method.tau, top=RANKS[-1], keep=keep)
        others = 0 if extra is None else extra.shape[1]
        self.report(
            chance_loss=(1 + method.symmetric) * math.log(1 + len(rows) + others),
            proxy_accuracy=proxy.plain,
            **{f"hardness_{rank}": curve[rank - 1] for rank in RANKS if rank <= len(curve)},
        )
        mixing = method.mixing.at(t) if method.mixing is not None else None
        real = self.queue.real()
        if extra is not None:
            self.report(proxy_accuracy_mixed=proxy.mixed)
        if self.images.y is None or real == 0:
            return
        n = HARDEST if mixing is None else mixing.n
        top = hardest(query, rows[:real], n, keep=self._rule(ids, owners[:real]))
        mine, theirs = self._classes(ids, -1), self._classes(owners[:real], -1)
        false = false_negative_share(mine, theirs, top.index)
        if false is not None:
            self.report(false_negatives=false)
        if mixing is not None:
            draws = draw_mixing(self.draw("mix 0", t, ids), mixing, top.count)
            points = synthetic_false_negatives(draws, mine, theirs, top.index)
            if points is not None:
                self.report(mixed_false_negatives=points.one, doubly_false_negatives=points.two)

    def notes(self) -> list[str]:
        """What the queue, the momentum, the normalisation and the number of classes mean for this data."""
        method, found = self.cfg.method, super().notes()
        rows = len(self.pool)
        if method.queue > rows:
            found.append(
                f"the queue holds {method.queue} keys of {rows} images, so it has several of each, the query's own "
                f"among them: method.queue={max(1, rows // 4)} or method.mask_same_image=true"
            )
        if method.momentum == 0:
            found.append(
                "method.momentum=0: the key network is the query network, and training is known to fail"
            )
        if method.momentum == 1:
            found.append("method.momentum=1: the key network never moves from where it started")
        if has_batch_statistics(self.backbone) and not method.shuffle and self.cfg.model.norm != "sync":
            found.append(
                "method.shuffle=false: query and key are normalised with the same neighbours, and can cheat"
            )
        if standing_alone(self.cfg, self.backbone):
            found.append(
                "batch normalisation sees the whole batch at once, which lets the network cheat: model.norm=split "
                "behaves like several devices"
            )
        if not method.class_oracle:
            found += few_classes(method.mixing, self.images.y, method.queue, "a smaller method.queue")
        return found
