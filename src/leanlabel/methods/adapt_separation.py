"""How well an adaptation with the term zero-style keeps content and style apart, on held-out images of both domains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.banks.teacher import plain
from leanlabel.data.dense import DenseImages
from leanlabel.engine.progress import Bar
from leanlabel.evaluation.domain_gap import blocks
from leanlabel.evaluation.separation import SeparationMeter
from leanlabel.methods.adapt_watch import evenly, windowed
from leanlabel.methods.dense_readouts import LONG
from leanlabel.methods.segmentation import channels_of, channels_read

if TYPE_CHECKING:
    from leanlabel.methods.adapt import Adapt
    from leanlabel.methods.domains import Domains

TERM = "zero-style"
MOST = 64
"""Images of each domain that are looked at."""
FOLDS = 5
"""Sequences, or blocks of neighbouring images, from which on each is held out as a whole."""


@torch.no_grad()
def separation_numbers(method: Adapt, data: Domains) -> dict[str, float]:
    """Measure content and style of held-out images of both domains; no label is read.

    Content is that of the network that is handed out. Images are the target's that are measured and the source's val
    part, or images to train on where there are none, at most :data:`MOST` of each, evenly spread. Frames of one
    sequence are held out together from the classifiers; where sequences are not known, blocks of neighbours are.

    Args:
        method: trained; the networks of its term are read as they are.
        data: both domains.

    Returns:
        "domain accuracy content", "domain accuracy style", "content drift", "style emptiness" and "reconstruction
        error", see :class:`leanlabel.evaluation.separation.Separation`; those that are no finite number are left out.
        Empty without the term, and for networks that do not read both domains.
    """
    if not any(entry.name == TERM for _, entry in method.terms()):
        return {}
    encoder, decoder = (method.network_of(TERM, key) for key in ("style", "decoder"))
    network = method.deployed
    sources = channels_of(data.source), channels_of(data.target)
    if encoder is None or decoder is None or {*sources} != {channels_read(network)}:
        return {}
    encoder, decoder, meter = plain(encoder), plain(decoder), SeparationMeter()
    modules = (network, encoder, decoder)
    were = [one.training for one in modules]
    groups: list[Tensor] = []
    try:
        for one in modules:
            one.eval()
        both = [(images, evenly(rows, MOST)) for images, rows in held_out(method, data)]
        count, done = sum(len(chosen) for _, chosen in both), 0
        with dist.alone(), Bar(count, label="content and style", show=count >= LONG) as bar:
            for domain, (images, chosen) in enumerate(both):
                together = _together(images, chosen)
                order: list[Tensor] = []
                with method.reading(images):
                    for batch, places in _batches(images, chosen, method.cfg.evaluation.batch):
                        x = windowed(method, batch)
                        size = (int(x.shape[-2]), int(x.shape[-1]))
                        content, style = network(x).features, encoder(x)
                        zero = decoder(content, None, size)
                        meter.add(
                            *(domain, x, content, style),
                            rebuilt=decoder(content, style, size),
                            content_again=network(zero).features,
                            style_again=encoder(zero),
                        )
                        order.append(places)
                        done += len(places)
                        bar.advance(done)
                groups.append(together[torch.cat(order)] if order else together)
            found = meter.result(method.cfg.seed, (groups[0], groups[1]))
    finally:
        for one, mode in zip(modules, were, strict=True):
            one.train(mode)
    named = {
        "domain accuracy content": found.content_accuracy,
        "domain accuracy style": found.style_accuracy,
        "content drift": found.drift,
        "style emptiness": found.emptiness,
        "reconstruction error": found.reconstruction,
    }
    return {name: value for name, value in named.items() if math.isfinite(value)}


def held_out(method: Adapt, data: Domains) -> list[tuple[DenseImages, Tensor]]:
    """Images that were not trained on, of the source and of the target, with their rows; else those to train on.

    Of the target the part that is measured, of the source val.
    """
    source, target = data.source.splits.get("val", ()), ()
    if method.cfg.evaluation.protocol != "none":
        _, images, part = method.to_measure(data)[0]
        target = data.target.splits[part] if images is data.target else ()
    if not len(target):
        target = next(
            (rows for name, rows in data.target.splits.items() if name != "train" and len(rows)), ()
        )
    return [
        (data.source, torch.as_tensor(source) if len(source) else method.pool),
        (data.target, torch.as_tensor(target) if len(target) else method.target_rows),
    ]


def _batches(data: DenseImages, rows: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in batches of one size with their places in the rows; masks are not read."""
    for places in torch.arange(len(rows)).split(batch):
        images = data.pixels.read(rows[places].tolist())
        sizes: dict[tuple[int, ...], list[int]] = {}
        for place, one in enumerate(images):
            sizes.setdefault(tuple(one.shape), []).append(place)
        for own in sizes.values():
            yield torch.stack([images[place] for place in own]), places[own]


def _together(data: DenseImages, rows: Tensor) -> Tensor:
    """Groups of images that may be near copies: sequences, or neighbours in the order of the set."""
    if data.groups is not None and len(data.groups[rows].unique()) >= FOLDS:
        return data.groups[rows]
    return blocks(len(rows), FOLDS)
