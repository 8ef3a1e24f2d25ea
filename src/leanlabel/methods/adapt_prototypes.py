"""How near features of the target are to prototypes of the source's classes, before an adaptation and after it.

Prototypes are those of the network that is measured: means over source images of the mean unit feature of a class. So
they need no term of the recipe, and networks that were trained in different ways can be held against each other. Labels
of the target are read to measure, nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.banks.prototypes import nearest_labels
from leanlabel.data.class_map import IGNORE
from leanlabel.data.dense import DenseImages
from leanlabel.engine.progress import Bar
from leanlabel.evaluation.prototype_space import (
    PixelSample,
    PrototypeMeter,
    PrototypeScores,
    completed,
    embedding,
    few_shot_prototypes,
)
from leanlabel.losses.prototype import unit
from leanlabel.methods.adapt_watch import evenly
from leanlabel.methods.dense_measuring import device_labels
from leanlabel.methods.dense_readouts import LONG, by_size, labelled_parts, name_of
from leanlabel.methods.segmentation import channels_of, channels_read
from leanlabel.methods.terms.prototypes import source_prototypes
from leanlabel.models.segmenters import Segmenter

if TYPE_CHECKING:
    from leanlabel.methods.adapt import Adapt
    from leanlabel.methods.domains import Domains

SOURCES, TARGETS = 200, 100
"""Images of each domain that are looked at, evenly spread."""
DOMAINS = ("source", "target")
WHEN = {"initial": "before", "trained": "after"}
DIGITS = 5
Read = tuple[list[int], Tensor, Tensor]
"""Rows of some images, the images and their labels."""


@dataclass(frozen=True, eq=False)
class Shot:
    """The one labelled image of the target that prototypes are made from."""

    row: int
    name: str
    part: str
    classes: int


@dataclass(frozen=True, eq=False)
class Found:
    """What a network's features say.

    Attributes:
        values: (K, D) prototypes of the source, zeros for a class without one.
        images: (K,) source images behind each.
        pixels: (K,) labelled positions of the source that were looked at.
        looked: numbers of images of source and target.
        scores: of these prototypes on the target.
        shot: the image of the one-shot prototypes; None where no image has a label.
        one_shot, alone: scores of its prototypes on the other images, with the source's for classes that it lacks, and
            without.
        sampled: features and classes of some pixels of each domain.
    """

    values: Tensor
    images: Tensor
    pixels: Tensor
    looked: tuple[int, int]
    scores: PrototypeScores
    shot: Shot | None
    one_shot: PrototypeScores | None
    alone: PrototypeScores | None
    sampled: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


_FOUND: WeakKeyDictionary[nn.Module, Found] = WeakKeyDictionary()
"""What was measured and not yet drawn: a report wants both, and images are read once."""


def prototype_numbers(method: Adapt, data: Domains) -> dict[str, dict[str, float]]:
    """Numbers of the network that is handed out, and of the one that training started from, where there is one.

    Args:
        method: trained.
        data: both domains.

    Returns:
        "initial" and "trained" -> what :func:`numbers_of` says.
    """
    return {readout: numbers_of(network, method, data) for readout, network in _networks(method).items()}


def _networks(method: Adapt) -> dict[str, Segmenter]:
    start = {} if method._start is None else {"initial": method._start.deployed}
    return {**start, "trained": method.deployed}


def numbers_of(network: Segmenter, method: Adapt, data: Domains) -> dict[str, float]:
    """Measure features of a network on the part of the target that is measured, at the network's stride.

    Args:
        network: the method's, or one of the same form.
        method: says how images are read.
        data: both domains.

    Returns:
        "own similarity" z·P_y, "other similarity" (mean over the other classes), "prototype gap" (own - other; means
        over pixels), "prototype class gap" (mean over classes), "nearest-prototype accuracy" (mean over classes),
        "nearest-prototype mIoU"; "one-shot mIoU": nearest prototype with those of one labelled image of the target,
        and of the source for classes that it lacks; "one-shot mIoU alone": without the latter. That image is the first
        labelled one of the target's val part, else of the part that is measured; it is left out of these two scores.
        What is no finite number is left out. Empty where the target has no labels to measure with, or the network does
        not read images of the source.
    """
    found = measured(network, method, data)
    if found is None:
        return {}
    _FOUND[network] = found
    return _named(found)


def prototype_figure(method: Adapt, data: Domains) -> dict[str, Any]:
    """What the report draws of prototypes; empty where the recipe does not ask, or nothing can be measured.

    What :func:`numbers_of` found last of a network is used, once, in place of reading the images again.

    Args:
        method: trained.
        data: both domains.

    Returns:
        "part" (of the target), "before" (a sentence), "images" (of source and target), "shot" (name and part of the
        one-shot image, and its number of classes; or None), "numbers" and "embedding" ("before", "after"), "classes"
        (name, colour, gap_before, gap_after, own_after, other_after, and norm, images and pixels of the source's
        prototype), and "bank", None without the term prototype-contrast: norm and pixels of what it remembers, its
        cosine to the source's prototype where that is of the same width, by class, and cosines "between" classes.
        Values that are not known are None.
    """
    if not method.cfg.evaluation.prototypes:
        return {}
    found: dict[str, Found] = {}
    for readout, network in _networks(method).items():
        one = _FOUND.pop(network, None) or measured(network, method, data)
        if one is not None:
            found[WHEN[readout]] = one
    if "after" not in found:
        return {}
    after, before = found["after"], found.get("before")
    columns = {
        "gap_before": None if before is None else before.scores.similarity.gap_by_class,
        "gap_after": after.scores.similarity.gap_by_class,
        "own_after": after.scores.similarity.own_by_class,
        "other_after": after.scores.similarity.other_by_class,
        "norm": after.values.double().norm(dim=1).where(after.images.to(after.values.device) > 0, math.nan),
    }
    table = {key: _listed(values, len(method.classes)) for key, values in columns.items()}
    table |= {"images": after.images.tolist(), "pixels": after.pixels.tolist()}
    stages = list(method.cfg.stages)
    return {
        "part": method.to_measure(data)[0][2],
        "before": f"weights after stage {stages[-1]}" if stages else "weights that training started from",
        "images": dict(zip(DOMAINS, after.looked, strict=True)),
        "shot": None
        if after.shot is None
        else {"image": after.shot.name, "part": after.shot.part, "classes": after.shot.classes},
        "numbers": {when: _named(one) for when, one in found.items()},
        "classes": [
            {"name": name, "colour": [int(one) for one in colour], **{key: table[key][k] for key in table}}
            for k, (name, colour) in enumerate(zip(method.classes.names, method.classes.colours, strict=True))
        ],
        "embedding": {when: _embedded(one, method.cfg.seed) for when, one in found.items()},
        "bank": _bank(method, after),
    }


@torch.no_grad()
def measured(network: Segmenter, method: Adapt, data: Domains) -> Found | None:
    """Look at labelled images of both domains; None where that cannot be done (see :func:`numbers_of`)."""
    if method.cfg.evaluation.protocol == "none" or channels_of(data.source) != channels_read(network):
        return None
    _, images, part = method.to_measure(data)[0]
    if images is not data.target or not len(method.pool):
        return None
    k, seed, device = len(method.classes), method.cfg.seed, method.device
    source, rows = evenly(method.pool, SOURCES), evenly(data.target.splits[part], TARGETS)
    samples = [PixelSample(k, seed=seed, stream=name) for name in DOMAINS]
    was = network.training
    network.eval()
    try:
        count = len(source) + len(rows)
        with dist.alone(), Bar(count, label="prototypes", show=count >= LONG) as bar:
            values, behind, pixels = _source(network, method, data.source, source, samples[0], bar)
            shot, shown = _shot(network, method, data.target, part)
            meters = [PrototypeMeter(values, behind)]
            if shot is not None and shown is not None:
                own = few_shot_prototypes([shown], k)
                meters += [
                    PrototypeMeter(*completed(*own, values.cpu(), behind.cpu())),
                    PrototypeMeter(*own),
                ]
            for done, (numbers, x, labels) in _counted(_images(method, data.target, rows), len(source)):
                features = network(x).features
                thin = nearest_labels(labels.to(device), features.shape[-2:])
                samples[1].add(features, thin, torch.tensor(numbers))
                others = torch.tensor([shot is None or row != shot.row for row in numbers], device=device)
                meters[0].add(features, thin)
                for meter in meters[1:]:
                    meter.add(features[others], thin[others])
                bar.advance(done)
            scores = [meter.result() for meter in meters]
    finally:
        network.train(was)
    return Found(
        *(values.cpu(), behind.cpu(), pixels, (len(source), len(rows))),
        *(scores[0], shot),
        *(scores[1:] if shot is not None else (None, None)),
        sampled=(samples[0].result(), samples[1].result()),
    )


def _source(
    network: Segmenter, method: Adapt, data: DenseImages, rows: Tensor, sample: PixelSample, bar: Bar
) -> tuple[Tensor, Tensor, Tensor]:
    """Prototypes (K, D) of labelled images, images and labelled positions (K,) behind them; fills the sample, too."""
    pixels = torch.zeros(len(method.classes), dtype=torch.int64)
    present: list[tuple[list[int], Tensor]] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for done, (numbers, x, labels) in _counted(_images(method, data, rows)):
            present[:] = [(numbers, labels)]
            yield x, labels
            bar.advance(done)

    def look(_: nn.Module, __: Any, output: Any) -> None:
        numbers, labels = present[0]
        thin = nearest_labels(labels, output.features.shape[-2:]).cpu()
        sample.add(output.features, thin, torch.tensor(numbers))
        pixels.add_(torch.bincount(thin[thin >= 0], minlength=len(pixels)))

    with method.reading(data), network.register_forward_hook(look):
        values, images = source_prototypes(network, batches(), len(method.classes), agree="fallback")
    return values, images, pixels


def _counted(batches: Iterator[Read], before: int = 0) -> Iterator[tuple[int, Read]]:
    """Batches, each with the number of images that were looked at once it is done."""
    for batch in batches:
        before += len(batch[0])
        yield before, batch


def _images(method: Adapt, data: DenseImages, rows: Tensor) -> Iterator[Read]:
    """Rows, images as the network reads them and labels of the same size; the middle window where it reads windows."""
    window = method.cfg.evaluation.window
    for numbers, images, masks in by_size(data, rows, method.cfg.evaluation.batch):
        x = method.normalised(images)
        labels = nearest_labels(device_labels(masks), x.shape[-2:])
        if window is not None:
            top, left = (max(0, (side - own) // 2) for side, own in zip(x.shape[-2:], window, strict=True))
            place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            x, labels = x[place], labels[place]
        yield numbers, x, labels.to(x.device)


def _shot(
    network: Segmenter, method: Adapt, data: DenseImages, part: str
) -> tuple[Shot | None, tuple[Tensor, Tensor] | None]:
    """The image of the one-shot prototypes, with its features and their labels."""
    part = "val" if "val" in labelled_parts(data) else part
    assert data.masks is not None
    for row in data.splits[part].tolist():
        if not bool((data.masks[row] != IGNORE).any()):
            continue
        _, x, labels = next(_images(method, data, torch.tensor([row])))
        features = network(x).features
        thin = nearest_labels(labels, features.shape[-2:])
        if bool((thin >= 0).any()):
            there = len(thin[thin >= 0].unique())
            return Shot(row, name_of(data, row), part, there), (features, thin)
    return None, None


def _named(found: Found) -> dict[str, float]:
    scores = found.scores
    named = {
        "own similarity": scores.similarity.own,
        "other similarity": scores.similarity.other,
        "prototype gap": scores.similarity.gap,
        "prototype class gap": scores.similarity.class_gap,
        "nearest-prototype accuracy": scores.accuracy,
        "nearest-prototype mIoU": scores.miou,
    }
    if found.one_shot is not None and found.alone is not None:
        named |= {"one-shot mIoU": found.one_shot.miou, "one-shot mIoU alone": found.alone.miou}
    return {name: value for name, value in named.items() if math.isfinite(value)}


def _embedded(found: Found, seed: int) -> dict[str, Any]:
    features, classes = (torch.cat(pair) for pair in zip(*found.sampled, strict=True))
    domains = torch.arange(2).repeat_interleave(torch.tensor([len(own) for own, _ in found.sampled]))
    return embedding(features, classes, domains, found.values, found.images, names=DOMAINS, seed=seed)


def _bank(method: Adapt, found: Found) -> dict[str, Any] | None:
    """What the term prototype-contrast remembers."""
    bank = method.prototypes
    if bank is None:
        return None
    values, known = bank.values.detach().double().cpu(), bank.known.cpu()
    directions, own = unit(values, dim=1), found.values.double()
    cosine = torch.full((len(values),), math.nan, dtype=torch.float64)
    if own.shape == values.shape:
        both = known & (found.images > 0)
        cosine[both] = (directions * unit(own, dim=1)).sum(1)[both]
    between = (directions @ directions.T).masked_fill(~(known & known[:, None]), math.nan)
    return {
        "norm": _listed(values.norm(dim=1).where(known, math.nan), len(values)),
        "pixels": _listed(bank.counts, len(values)),
        "cosine": _listed(cosine, len(values)),
        "between": [_listed(row, len(values)) for row in between],
    }


def _listed(values: Tensor | None, count: int) -> list[float | None]:
    """Plain numbers; None for what is not known."""
    if values is None:
        return [None] * count
    return [round(one, DIGITS) if math.isfinite(one) else None for one in values.double().cpu().tolist()]
