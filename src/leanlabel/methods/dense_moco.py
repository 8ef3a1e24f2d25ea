"""MoCo-v2 with a second contrast of places: features of one spot in two views are to agree [DenseCL; PixPro, VADeR].

For encoders that are to label pixels afterwards. Words used here: a *query* and its *key* are two views of one image,
as in :mod:`leanlabel.methods.mochi`; a *position* is one cell of the last map of the backbone; its *counterpart* is the
place of the other view that shows the same spot of the image, known from the windows that the views were cut out of;
*overlap* is the share of positions that have one; *dense keys* are features of the key network's map.

In the papers' order: two views → map of the backbone → its mean through the projector, its positions through the dense
projector → the key networks follow by a moving average → key and key map from the other view, its batch shuffled →
contrast of the key against the queue (`losses.contrastive`) → the key map read at the counterparts
(`augment.correspondence`), contrast of what is read against the dense queue → (1 - lambda) global + lambda dense, one
update → keys and dense keys enter their queues (`banks.queue`).

DenseCL takes as counterpart the most similar position of the other view's backbone map; here geometry says it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.augment.correspondence import counterparts, read_at
from leanlabel.augment.image import Places, view_places
from leanlabel.banks.queue import FeatureQueue
from leanlabel.banks.teacher import Teacher
from leanlabel.config import RunConfig
from leanlabel.data.images import Images
from leanlabel.errors import InputError
from leanlabel.losses.contrastive import contrast, unit
from leanlabel.methods.contrast_settings import MixingSettings
from leanlabel.methods.image import Batch, ImageMethod
from leanlabel.methods.image_settings import ImageConfig
from leanlabel.methods.mochi import MoCHi, MoCHiSettings
from leanlabel.models.image import Backbone


class DenseMoCoSettings(MoCHiSettings):
    """The objective."""

    name: Literal["dense-moco"] = "dense-moco"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method; width, tau, momentum, symmetric, shuffle and the masks hold for both contrasts, the rest for the global
    one."""
    mixing: MixingSettings | None = None
    """Mixed hard negatives of the global contrast; null for none."""
    dense_weight: float = Field(default=0.5, ge=0, le=1)
    """Share (lambda) of the dense contrast in the loss; 0 leaves MoCo-v2."""
    dense_queue: int = Field(default=65536, ge=1)
    """Dense keys remembered."""
    dense_keys: int = Field(default=0, ge=0)
    """Positions of each key map, drawn at random, that enter the dense queue; 0: one row, the mean of the map."""


class DenseMoCoConfig(ImageConfig):
    """All keys of a dense MoCo recipe."""

    method: DenseMoCoSettings = DenseMoCoSettings()
    """Objective."""


class DenseMoCo(MoCHi):
    """Queries find their keys, and positions their counterparts in the other view, among queues of others."""

    Config: ClassVar[type[RunConfig]] = DenseMoCoConfig
    baselines: ClassVar[dict[str, dict[str, Any]]] = {
        **ImageMethod.baselines,
        "global contrast only": {"method": {"dense_weight": 0.0}},
    }

    def build(self, images: Images) -> None:
        """What MoCo-v2 has, then the dense projector, its slow copy and the dense queue.

        Raises:
            InputError: a backbone whose features are not the mean of its last map.
        """
        super().build(images)
        method, inputs = self.cfg.method, self.backbone.width
        if type(self.backbone).forward is not Backbone.forward:
            raise InputError(
                f"model.name: the features of {self.cfg.model.name} are not the mean of its last map, whose positions "
                f"dense-moco trains.",
                "Use small-cnn, a resnet, mobilenet-v2, small-fcn or tiny-fcn.",
            )
        self.dense_projector = nn.Sequential(
            nn.Conv2d(inputs, inputs, 1), nn.ReLU(inplace=True), nn.Conv2d(inputs, method.width, 1)
        )
        self.key_dense = Teacher(self.dense_projector)
        self.dense_queue = FeatureQueue(method.dense_queue, method.width)

    def took(self, names: Collection[str]) -> None:
        """Start the dense key network where the dense projector starts, too, and forget both queues."""
        super().took(names)
        if not all(name in names for name in self.state_dict() if name.startswith("key_")):
            self.key_dense.follow(self.dense_projector, 0.0)
        self.dense_queue.forget()

    def step(self, t: int, batch: Batch) -> None:
        """Contrast queries and positions with their keys and queues; update; enqueue the keys."""
        method, ids = self.cfg.method, batch[0]
        both = (0, 1) if method.symmetric else (0,)
        views = [self.view(k, t, batch) for k in (0, 1)]
        places = [self.places(k, t, batch) for k in (0, 1)]
        maps = [self.backbone(views[k], pooled=False) for k in both]
        query = [unit(self.projector(one.mean((2, 3)))) for one in maps]
        positions = [self.dense_projector(one) for one in maps]
        self.key_backbone.follow(self.backbone, method.momentum, buffers=False)
        self.key_projector.follow(self.projector, method.momentum, buffers=False)
        self.key_dense.follow(self.dense_projector, method.momentum, buffers=False)
        keys = [self.keys_and_map(t, views[1 - k], k) for k in both]
        whole, dense, overlap = query[0].new_zeros(()), query[0].new_zeros(()), 0.0
        for k, (key, key_map) in zip(both, keys, strict=True):
            whole = whole + dist.global_mean(*self.contrasted(t, query[k], key, ids, k))
            grid, inside = counterparts(places[k], places[1 - k], *positions[k].shape[2:])
            dense = dense + dist.global_mean(*self.located(positions[k], key_map, grid, inside, ids))
            overlap += float(inside.double().mean()) / len(both)
        loss = (1 - method.dense_weight) * whole + method.dense_weight * dense
        self.report(loss=loss, global_loss=whole, dense_loss=dense, overlap=overlap)
        self.report(queue_filled=float(self.queue.real()))
        self.watch(t, query[0])
        self.update(loss)
        for k, (key, key_map) in zip(both, keys, strict=True):
            self.queue.push(key, ids)
            self.remember(t, key_map, ids, k)

    def places(self, k: int, t: int, batch: Batch) -> Places:
        """Where view ``k`` was cut out of the images of a batch."""
        ids, images = batch
        return view_places(images, self.view_settings(k), self.draw(f"view {k}", t, ids))

    def keys_and_map(self, t: int, views: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Keys (B, d), unit rows, and maps of dense keys (B, d, h, w), as they come out, of this rank's views."""
        found = self.keys(t, views, k)
        side = math.isqrt(found.shape[2] - 1)  # views are squares, and so are their maps
        return found[..., 0], found[..., 1:].unflatten(2, (side, side))

    def _keys(self, views: Tensor) -> Tensor:
        """(B, d, 1 + h w): the key and the dense keys of each view in one tensor, which travels between ranks."""
        with self.autocast():
            maps = self.key_backbone(views, pooled=False)
            key = unit(self.key_projector(maps.mean((2, 3))))
            return torch.cat([key[..., None], self.key_dense(maps).flatten(2).to(key)], 2)

    def located(
        self, positions: Tensor, key_map: Tensor, grid: Tensor, inside: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum of the dense losses of this rank's positions that have a counterpart, and their number.

        L_p = -log( e^{q_p.k_p/tau} / (e^{q_p.k_p/tau} + sum_j e^{q_p.n_j/tau}) )    [DenseCL eq. 2]

        q_p is the feature of position p, k_p the key map at its counterpart, n_j the dense queue; all of norm 1.

        Args:
            positions: (B, d, h, w) features of the query's positions, gradient.
            key_map: (B, d, h', w') dense keys, no gradient.
            grid: (B, h, w, 2) counterparts, see :func:`leanlabel.augment.correspondence.counterparts`.
            inside: (B, h, w) bool, which positions have one.
            ids: (B,) of the images.
        """
        method, inside = self.cfg.method, inside.to(positions.device)
        query = unit(positions.movedim(1, 3)[inside])
        own = unit(read_at(key_map, grid).movedim(1, 3)[inside]).to(query)
        rows, owners = self.dense_queue.read().to(query), self.dense_queue.ids_read()
        if method.mask_noise:
            real = self.dense_queue.real()
            rows, owners = rows[:real], owners[:real]
        keep = self._rule(ids[inside.nonzero()[:, 0]], owners)
        return contrast(query, rows, own=own, tau=method.tau, keep=keep, reduction="parts")

    def remember(self, t: int, key_map: Tensor, ids: Tensor, k: int) -> None:
        """Put dense keys into their queue: the mean of each map, or some of its positions."""
        count = self.cfg.method.dense_keys
        if count == 0:
            self.dense_queue.push(unit(key_map.mean((2, 3))), ids)
            return
        rows = key_map.flatten(2).mT
        chosen = self.draw(f"dense keys {k}", t, ids).integers(0, rows.shape[1], (count,))
        rows = rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[2]))
        self.dense_queue.push(unit(rows.flatten(0, 1)), ids.repeat_interleave(count))

    def notes(self) -> list[str]:
        """What MoCo-v2 has to say, and whether the dense queue holds several keys of each image."""
        method, found = self.cfg.method, super().notes()
        rows = len(self.pool) * max(1, method.dense_keys)
        if method.dense_queue > rows and not method.mask_same_image:
            found.append(
                f"the dense queue holds {method.dense_queue} keys of {len(self.pool)} images, so it still has keys of "
                f"the query's own image: method.dense_queue={max(1, rows // 4)} or method.mask_same_image=true"
            )
        return found
