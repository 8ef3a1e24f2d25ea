"""What an iteration of an adaptation reads: batches of both domains, drawn source images, and their views."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.augment.geometry import apply_image, apply_mask, outside
from leanlabel.augment.pairs import random_pair, standardised
from leanlabel.banks.teacher import Teacher, plain
from leanlabel.data.class_map import IGNORE
from leanlabel.data.class_sampling import ClassSampler, SamplingSettings
from leanlabel.data.pseudo_labels import PseudoLabels
from leanlabel.engine import loaders
from leanlabel.methods.adapt_settings import without_colours
from leanlabel.methods.adapt_stages import digest
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.domains import Domains, TargetRows, collate_target, mistaken_labels, shown, target_ids
from leanlabel.methods.segmentation import Pairs, Segmentation, collate_pairs, device_labels
from leanlabel.methods.terms import Needs
from leanlabel.models.segmenters import DenseOutput


class Iterations(Segmentation):
    """Batches and views of two domains.

    Attributes:
        data: both domains.
        needs: what all terms read.
        pool: labelled rows that are trained on.
        target_rows: rows of the target that are trained on.
        stored: pseudo labels of these; None where there are none yet.
        table: (n, K) pixels of each class in each labelled image, where classes choose images.
        sampler: chooses labelled images; None: all alike.
        donor_sampler: chooses labelled images for their rare classes.
        reference, anchor: frozen networks that terms ask.
    """

    data: Domains
    needs: Needs
    pool: Tensor
    target_rows: Tensor
    stored: PseudoLabels | None
    table: Tensor | None
    sampler: ClassSampler | None
    donor_sampler: ClassSampler | None
    reference: Teacher | None
    anchor: Teacher | None

    def use_labels(self, folder: Path, model: str | None = None) -> None:
        """Read stored pseudo labels."""
        raise NotImplementedError

    def batches(self, start: int) -> Iterator[Any]:
        """Labelled images and target images of iterations ``start``, ``start + 1``, …; None of what no term reads."""
        cfg, pinned = self.cfg, torch.device(self.device).type == "cuda"
        given = cfg.method.pseudo_labels
        if self.needs.stored and given.folder is not None:  # and not those of an earlier stage
            checked = start == 0 and not given.any_model
            self.use_labels(Path(given.folder), digest(self.deployed) if checked else None)
        source: Iterator[Any] = itertools.repeat(None)
        target: Iterator[Any] = itertools.repeat(None)
        if self.needs.source:
            source = loaders.batches(
                Pairs(self.data.source.take(self.pool)),
                cfg.data.source.batch_size,
                cfg.seed,
                start,
                workers=cfg.engine.workers,
                collate=collate_pairs,
                pin_memory=pinned,
                order=None if self.sampler is None else self.sampler.ids,
            )
        if self.needs.target:
            masks = None if self.stored is None else self.stored.masks(self.target_rows.tolist())
            rows = TargetRows(self.data, self.target_rows, masks, paired=self.needs.pairs, seed=cfg.seed)
            size, n = cfg.data.target.batch_size, len(self.target_rows)
            target = loaders.batches(
                rows,
                size,
                cfg.seed,
                start,
                workers=cfg.engine.workers,
                collate=collate_target,
                pin_memory=pinned,
                order=partial(target_ids, n, rows.turns, size, cfg.seed),
            )
        donors: Iterator[Any] = itertools.repeat(None)
        if self.needs.donors:
            donors = self._donors(start)
        return zip(source, target, donors, strict=False)

    def _donors(self, start: int) -> Iterator[Any]:
        """Labelled images drawn for their rare classes, as many as target images; None where no class is rare."""
        cfg, size = self.cfg, self.cfg.data.target.batch_size
        order = None
        if self.table is not None:
            rule = next(term for term, entry in self.terms() if term.needs(entry.typed()).donors).donor_rule()
            classes, temperature, least = rule
            if not bool((classes.cpu() & (self.table > 0).any(0)).any()):
                return itertools.repeat(None)
            settings = SamplingSettings(name="rare", temperature=temperature, min_pixels=least)
            self.donor_sampler = ClassSampler(
                settings, self.table, size, cfg.seed, classes=classes.cpu(), stream="donor "
            )
            order = self.donor_sampler.ids
        return loaders.batches(
            Pairs(self.data.source.take(self.pool)),
            size,
            cfg.seed,
            start,
            workers=cfg.engine.workers,
            collate=collate_pairs,
            pin_memory=torch.device(self.device).type == "cuda",
            order=order or partial(target_ids, len(self.pool), 1, size, cfg.seed),
        )

    def _donor_view(self, t: int, raw: Any) -> DenseBatch | None:
        if raw is None:
            return None
        ids, (images, masks) = raw
        if self.cfg.method.label_noise > 0:
            masks = self._noisy(ids % len(self.pool), masks)
        wanted = None
        if self.donor_sampler is not None:
            every = self.donor_sampler.wanted(t)
            wanted = every[dist.shard(len(every))]
        look = without_colours(self.cfg.augment)
        pair = random_pair(images, masks, look, self.draw("donor view", t, ids), wanted=wanted)
        assert pair.masks is not None
        return DenseBatch(ids, pair.images.to(self._dtype), device_labels(pair.masks.to(self.device)))

    def begin(self, t: int, batch: tuple[Any, Any, Any]) -> Step:
        """The iteration with views of both domains; of the target alone where no term reads labelled images."""
        source, target, donors = batch
        there = None if target is None else self._target_step(t, target)
        if source is None:
            assert there is not None
            return Step(self, t, there.batch, there.draw, there, there.partner)
        own = DenseBatch(*self._source_view(t, source))
        partner = None if there is None else there.partner
        draw = partial(self.stream, t, own.ids)
        return Step(self, t, own, draw, there, partner, self._donor_view(t, donors))

    def _source_view(self, t: int, raw: Any) -> tuple[Tensor, Tensor, Tensor]:
        ids, (images, masks) = raw
        if self.cfg.method.label_noise > 0:
            masks = self._noisy(ids % len(self.pool), masks)
        wanted = None
        if self.sampler is not None:
            every = self.sampler.wanted(t)
            wanted = every[dist.shard(len(every))]
        pair = random_pair(images, masks, self.cfg.augment, self.draw("view", t, ids), wanted=wanted)
        assert pair.masks is not None
        return ids, pair.images.to(self._dtype), device_labels(pair.masks.to(self.device))

    def _target_step(self, t: int, raw: Any) -> Step:
        ids, (images, masks, valid, partner) = raw
        look = self.cfg.plain_target()
        reads = self.needs.stored or self.needs.target_labels
        noise = self.cfg.method.pseudo_labels.noise
        if self.needs.stored and noise > 0 and masks is not None:
            masks = mistaken_labels(
                ids % len(self.target_rows), masks, noise, len(self.classes), self.cfg.seed
            )
        pair = random_pair(images, masks if reads else None, look, self.draw("target view", t, ids))
        size = (len(ids), *pair.images.shape[-2:])
        labels = (
            torch.full(size, -100, dtype=torch.int64, device=self.device)
            if pair.masks is None
            else device_labels(pair.masks.to(self.device))
        )
        there_is = None
        if valid is not None or bool(outside(pair.geometry).any()):
            there_is = shown(pair.geometry, valid, self.device)  # padding is no pixel
        batch = DenseBatch(ids, pair.images.to(self._dtype), labels, there_is)
        beside = None
        if partner is not None:
            there, marks, sound = partner
            source_look = self.cfg.augment
            centre = source_look.mean if source_look.fill == "mean" else (0.0,)
            moved = apply_image(pair.geometry, [one.to(self.device) for one in there], centre)
            beside = DenseBatch(
                ids,
                standardised(moved, source_look.mean, source_look.std).to(self._dtype),
                device_labels(apply_mask(pair.geometry, [one.to(self.device) for one in marks], IGNORE)),
                shown(pair.geometry, valid, self.device) * shown(pair.geometry, sound, self.device),
            )
        return Step(self, t, batch, partial(self.stream, t, ids), None, beside)

    def reference_output(self, images: Tensor) -> DenseOutput:
        """A pass of the network as it was when this training began."""
        assert self.reference is not None
        with torch.no_grad(), self.autocast():
            return self.reference(images)

    def initial_map(self, images: Tensor) -> Tensor:
        """The last map of the encoder as the run found it."""
        assert self.anchor is not None
        with torch.no_grad(), self.autocast():
            encoder: Any = plain(self.anchor.network)
            return encoder.maps(images)[-1]
