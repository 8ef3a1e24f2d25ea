"""What all methods on images share: settings, data, backbone, views, embeddings, readouts, what is watched meanwhile.

A method of this family names its settings, says in :meth:`ImageMethod.step` what its loss is, and inherits the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leanlabel import dist
from leanlabel.augment.image import ViewSettings, plain_view, random_view
from leanlabel.banks.teacher import plain
from leanlabel.config import RunConfig
from leanlabel.data.image_source import ImageFiles, open_images
from leanlabel.data.images import Images, fingerprint
from leanlabel.engine import loaders, optim
from leanlabel.engine.checkpoint import state_of
from leanlabel.engine.method import Exported, Method
from leanlabel.engine.progress import Bar
from leanlabel.errors import InputError, RunError
from leanlabel.evaluation.collapse import alignment, effective_rank, same_class_alignment, uniformity
from leanlabel.evaluation.image_recipes import RECIPES
from leanlabel.evaluation.label_free import DIRECTION, label_free_scores
from leanlabel.evaluation.neighbours import neighbour_figure
from leanlabel.evaluation.protocols import PROTOCOLS
from leanlabel.evaluation.readouts import planned_splits, validation_score
from leanlabel.methods.image_readouts import LONG, online_knn, probed, scores_by_domain, spread
from leanlabel.methods.image_settings import ImageConfig, check_batch
from leanlabel.models.backbones import build_backbone
from leanlabel.models.heads import projector
from leanlabel.models.norm import synchronised

SCORED_ROWS = 4096
"""Rows, evenly spread, from which scores without labels are computed."""
PROBED = ("predictions", "details")
"""What a protocol on the images gives for each network."""
VIEWED_ROWS = 1024
"""Rows, evenly spread, of which random views are compared."""
HELD = 16
"""Images held at full size at a time, where they are much larger than the views."""


Batch = tuple[Tensor, Any]
"""Ids (B,) within the pool, and the images: (B, 3, H, W) uint8, or a list where sizes differ."""


class ImageMethod(Method):
    """A method on images: backbone, views, embeddings, readouts. Subclasses say what they train for."""

    Config: ClassVar[type[RunConfig]] = ImageConfig
    parts: ClassVar[dict[str, tuple[str, ...]]] = {"backbone": ("backbone",)}
    scores: ClassVar[tuple[str, ...]] = ("effective_rank", "neighbourhood_density")
    baselines: ClassVar[dict[str, dict[str, Any]]] = {
        "untrained": {"steps": 0, "evaluation": {"readout": "untrained"}}
    }
    views_per_image: ClassVar[int] = 2
    """Random views of an image in one iteration."""

    least_rows: ClassVar[int] = 1
    """Images that each process needs in an iteration."""

    def __init__(self, cfg: Any, images: Images) -> None:
        super().__init__(cfg)
        self.images = images
        self.pool = training_rows(images)
        self._known: tuple[Images, Any, Tensor] | None = None  # embeddings of the last images asked for
        self.build(images)

    def build(self, images: Images) -> None:
        """Make the networks; the backbone first, so that all methods of a seed start from the same one."""
        self.backbone = build_backbone(self.cfg.model)
        size, least = self.cfg.augment.size, self.backbone.min_size
        if size < least:
            raise InputError(
                f"augment.size: views of {size} pixels, {self.cfg.model.name} needs {least} or more.",
                "Use larger views, or model.stem=cifar or model.first_stride=1 where the network has them.",
            )

    def make_head(self, inputs: int, hidden: int, outputs: int, **how: Any) -> nn.Module:
        """A projector or predictor (see `models.heads`), normalised over all ranks where the backbone is."""
        made = projector(inputs, hidden, outputs, **how)
        return synchronised(made) if self.cfg.model.norm == "sync" else made

    @classmethod
    def read(cls, cfg: Any) -> Images:
        """The images, with everything refused that can be known before training starts."""
        images = open_images(cfg.data)
        splits = planned_splits(images, cfg.evaluation, cfg.seed)
        for name in cfg.evaluation.also if cfg.evaluation.protocol != "none" else ():
            planned_splits(images, cfg.evaluation.model_copy(update={"protocol": name}), cfg.seed)
        cls.check_selection(cfg, splits)
        if cfg.steps > 0:
            check_batch(cfg, images, len(training_rows(images)), cls.least_rows)
        return images

    @classmethod
    def open(cls, cfg: Any, path: str) -> Images:
        """Other images to embed with a trained model; of any size, labels optional."""
        return open_images(elsewhere(cfg.data, path))

    @classmethod
    def describe(cls, cfg: Any, images: Images) -> dict[str, Any]:
        """What ``data.json`` says."""
        shape = images.shape
        return {
            **super().describe(cfg, images),
            "kind": "images",
            "fingerprint": fingerprint(images),
            "counts": {"images": len(images), "trained on": len(training_rows(images))},
            "facts": {**images.facts, "size": list(shape) if shape else "various"},
        }

    def notes(self) -> list[str]:
        """What its user should know about batch normalisation and the data."""
        found = []
        model, batch = self.cfg.model, self.cfg.data.batch_size
        per_rank = batch // dist.world()
        if model.norm == "split" and per_rank % model.norm_groups:
            found.append(
                f"batches of {per_rank} do not divide into {model.norm_groups} groups of batch normalisation: some "
                f"groups are smaller"
            )
        seen = self._seen_test_rows()
        if seen:
            found.append(
                f"{seen} images of the test parts were among those trained on, without their labels: scores are of "
                f"images that the backbone has seen (data with a published test part is kept apart)"
            )
        return found

    def _seen_test_rows(self) -> int:
        """Test images that are trained on: with random splits there is no part that is kept apart."""
        splits = planned_splits(self.images, self.cfg.evaluation, self.cfg.seed)
        seen = torch.zeros(len(self.images), dtype=torch.bool)
        for split in splits:
            seen[split.test] = True
        return int(seen[self.pool].sum())

    def batches(self, start: int) -> Iterator[Batch]:
        """Images of iterations ``start``, ``start + 1``, …, of the training part."""
        return loaders.batches(
            self.images.take(self.pool),
            self.cfg.data.batch_size,
            self.cfg.seed,
            start,
            workers=self.cfg.engine.workers,
            collate=stacked,
            pin_memory=torch.device(self.device).type == "cuda",
        )

    def optimisers(self) -> dict[str, Optimizer]:
        """One, over everything that learns."""
        return {"main": optim.build(self.cfg.optim, optim.groups(self.cfg.optim, self))}

    def view(self, k: int, t: int, batch: Batch, stream: str = "view") -> Tensor:
        """Random view ``k`` of the images of a batch: (B, 3, size, size), normalised."""
        ids, images = batch
        return random_view(images, self.view_settings(k), self.draw(f"{stream} {k}", t, ids)).to(self._dtype)

    def view_settings(self, k: int) -> ViewSettings:
        """How view ``k`` is drawn."""
        augment = self.cfg.augment
        return augment.second if k == 1 and augment.second is not None else augment

    def labels(self, ids: Tensor) -> Tensor | None:
        """Classes (B,) of the batch's images, -100 where unknown; None for data without labels."""
        return None if self.images.y is None else self.images.y[self.pool[ids.cpu()]].to(ids.device)

    def embed(self, images: Images | None = None) -> Tensor:
        """Embeddings (N, d) of images as they are at test time; the projection where evaluation.feature says so."""
        images = self.images if images is None else images
        weights = tuple((p.data_ptr(), p._version) for p in self.state_dict(keep_vars=True).values())
        if self._known is None or self._known[0] is not images or self._known[1] != weights:
            self._known = (images, weights, self.embed_rows(images))
        return self._known[2]

    def embed_rows(self, images: Images, rows: Tensor | None = None) -> Tensor:
        """Embeddings (n, d) of some rows, or of all; few images at a time are held at full size."""
        ids = torch.arange(len(images)) if rows is None else rows
        if len(ids) == 0:
            return torch.zeros(0, plain(self.backbone).width)  # type: ignore[arg-type]
        shape, parts, done = images.shape, [], 0
        small = shape is not None and shape[1] * shape[2] <= (2 * self.cfg.augment.size) ** 2
        held = self.cfg.evaluation.batch if small else HELD
        with Bar(len(ids), label="embed", show=len(ids) >= LONG) as bar:
            for part in ids.split(self.cfg.evaluation.batch):
                x = torch.cat([self.plain(images.read(few)) for few in part.split(held)])
                parts.append(self.represent(x))
                done += len(part)
                bar.advance(done)
        return torch.cat(parts)

    def plain(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Images as the network sees them at test time: (B, 3, size, size), normalised, on the device."""
        augment = self.cfg.augment
        view = plain_view(
            self._here(images),
            augment.size,
            resize=self.cfg.evaluation.resize,
            mean=augment.mean,
            std=augment.std,
        )
        return view.to(self._dtype)

    @torch.no_grad()
    def represent(self, x: Tensor, feature: str | None = None) -> Tensor:
        """Embeddings (B, d), float32, on the CPU, of images as :meth:`plain` gives them; in evaluation mode.

        Args:
            x: (B, 3, size, size), normalised, on the device.
            feature: "backbone" or "projection"; None for what evaluation.feature says.
        """
        networks = [plain(self.embedder)]
        head = getattr(self, "projector", None)
        if (feature or self.cfg.evaluation.feature) == "projection" and isinstance(head, nn.Module):
            networks.append(plain(head))
        before = [network.training for network in networks]
        for network in networks:
            network.eval()
            x = network(x)
        for network, mode in zip(networks, before, strict=True):
            network.train(mode)
        return x.float().cpu()

    @property
    def embedder(self) -> nn.Module:
        """The backbone whose output is the embedding."""
        return self.backbone

    def exported(self) -> Exported:
        """The backbone, with what is done to an image before it."""
        augment = self.cfg.augment
        config: dict[str, Any] = {
            "backbone": self.cfg.model.model_dump(mode="json"),
            "preprocessing": {
                "size": augment.size,
                "resize": self.cfg.evaluation.resize,
                "mean": list(augment.mean),
                "std": list(augment.std),
            },
        }
        if isinstance(self.cfg.data, ImageFiles):
            keys = ("resize", "square", "load")
            config["preprocessing"]["reading"] = {key: getattr(self.cfg.data, key) for key in keys}
        tensors = {f"backbone.{name}": value for name, value in state_of(plain(self.embedder)).items()}
        head = getattr(self, "projector", None)
        if self.cfg.evaluation.feature == "projection" and isinstance(head, nn.Module):
            tensors |= {f"projector.{name}": value for name, value in state_of(plain(head)).items()}
        return Exported("images", config, tensors, "backbone.")

    def validate(self, t: int) -> float:
        """Validation accuracy of a logistic readout on the first split, or the label-free score that selects.

        That score is of images that are trained on, so that test images select nothing.
        """
        select = self.cfg.evaluation.select
        z = self.embed()
        if not bool(torch.isfinite(z).all()):
            raise RunError(
                f"The embeddings after iteration {t} are not finite.", "Lower optim.lr, or set optim.clip."
            )
        if select in self.scores:
            own = z[self.pool]
            found = label_free_scores(own[spread(len(own), SCORED_ROWS)])[select]
            return found if DIRECTION[select] == "higher" else -found
        return validation_score(self.images, self.embed(), self.cfg.evaluation, self.cfg.seed)

    def label_free(self, images: Images) -> dict[str, float]:
        """Scores of the present weights: those that need no labels; alignment within classes where there are any.

        effective_rank, neighbourhood_density and uniformity are of (at most 4,096 of) the embeddings, view_alignment is
        of two random views of at most 1,024 images; projection_… are the same of the projector's output, where there is
        one.
        """
        z = self.embed(images)
        found = label_free_scores(z[spread(len(z), SCORED_ROWS)])
        if len(z) > 1:
            found["uniformity"] = uniformity(z[spread(len(z), SCORED_ROWS)])
        if images.y is not None and bool((images.y >= 0).any()):
            found["same_class_alignment"] = same_class_alignment(z, images.y)
        levels = ["backbone"]
        if isinstance(getattr(self, "projector", None), nn.Module):
            levels.append("projection")
        seen = self._two_views(images, spread(len(z), VIEWED_ROWS), levels)
        found["view_alignment"] = alignment(*seen["backbone"])
        if "projection" in seen:
            found["projection_view_alignment"] = alignment(*seen["projection"])
            if len(z) > 1:
                found["projection_uniformity"] = uniformity(seen["projection"][0])
        return found

    def _two_views(
        self, images: Images, rows: Tensor, levels: Sequence[str]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Embeddings of two random views of some images at each level, a part of them at a time."""
        found: dict[str, list[list[Tensor]]] = {level: [[], []] for level in levels}
        for part in rows.split(self.cfg.evaluation.batch):
            batch = (part.to(self.device), self._here(images.read(part)))
            for k in (0, 1):
                x = self.view(k, 0, batch, "scored view")
                for level in levels:
                    found[level][k].append(self.represent(x, level))
        return {level: (torch.cat(pair[0]), torch.cat(pair[1])) for level, pair in found.items()}

    def _here(self, images: Tensor | Sequence[Tensor]) -> Any:
        """Images on the device."""
        return (
            images.to(self.device) if isinstance(images, Tensor) else [one.to(self.device) for one in images]
        )

    def figures(self, images: Images) -> dict[str, Any]:
        """Some images with their nearest neighbours."""
        return {"neighbours": neighbour_figure(images, self.embed(images), self.cfg.seed)}

    def evaluate(
        self,
        data: Images,
        untrained: Method,
        protocol: str | None = None,
        splits_file: Path | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Measure the readouts; protocols that train on the images themselves do it here, one network at a time."""
        name = protocol or self.cfg.evaluation.protocol
        if name in RECIPES and data.y is not None:
            networks = {"untrained": untrained} | ({"trained": self} if self.cfg.steps > 0 else {})
            scored = {key: probed(name, key, one, data) for key, one in networks.items()}
            more |= {
                key: {one: pair[place] for one, pair in scored.items()} for place, key in enumerate(PROBED)
            }
            more["selection"] = PROTOCOLS[name].selection
        found = super().evaluate(data, untrained, protocol, splits_file, **more)
        wanted = self.cfg.evaluation.by_domain and name not in RECIPES
        if wanted and found["protocol"] is not None and data.domain is not None:
            found["protocol"]["domains"] = scores_by_domain(self, data, untrained, name)
        return found

    def due(self, t: int) -> bool:
        """Whether the batch of iteration ``t`` is looked at."""
        return self.cfg.watch.every > 0 and (t + 1) % self.cfg.watch.every == 0

    def watch(self, t: int, projections: Tensor) -> None:
        """Report what a batch's projections look like, and the kNN readout, when they are due.

        effective_rank and uniformity, and zero_rows: how many projections are zero (their logits are, too). Nothing is
        reported of projections that are not finite: the update says where they come from.

        Args:
            t: iteration.
            projections: (B, d), this rank's; no gradient flows.
        """
        rows = dist.all_rows(projections.detach()).float() if self.due(t) else projections.detach()
        if dist.any_true(not bool(torch.isfinite(rows).all())):
            return
        if self.due(t):
            self.report(effective_rank=effective_rank(rows), zero_rows=float((rows == 0).all(1).sum()))
            if len(rows) > 1:
                self.report(uniformity=uniformity(rows))
        every = self.cfg.watch.knn_every
        if every > 0 and (t + 1) % every == 0 and (score := online_knn(self)) is not None:
            self.report(knn=score)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def training_rows(images: Images) -> Tensor:
    """Rows that are trained on without their labels: all of them, but for a published test part."""
    if "test" not in images.splits:
        return torch.arange(len(images))
    kept = torch.ones(len(images), dtype=torch.bool)
    for name, rows in images.splits.items():
        if name.partition("_")[0] == "test":
            kept[rows] = False
    return kept.nonzero()[:, 0]


def elsewhere(source: Any, path: str) -> ImageFiles:
    """The settings of other images on disk, read like those of a recipe as far as that makes sense."""
    kept = {"square", "resize", "skip_unreadable", "load"}
    known = source.model_dump(include=kept) if isinstance(source, ImageFiles) else {}
    return ImageFiles(path=path, **known)


def stacked(samples: Sequence[Tensor]) -> Any:
    """A batch (B, 3, H, W) where all images are of one size; else their list."""
    if all(one.shape == samples[0].shape for one in samples):
        return torch.stack(list(samples))
    return list(samples)
