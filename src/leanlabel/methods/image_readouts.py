"""How methods on images are read out where embeddings alone do not do, or before training is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leanlabel import rng
from leanlabel.banks.teacher import plain
from leanlabel.data.images import Images
from leanlabel.data.splits import PARTS
from leanlabel.engine.method import Method
from leanlabel.engine.progress import Bar
from leanlabel.evaluation.domains import by_domain
from leanlabel.evaluation.image_probe import run_probe
from leanlabel.evaluation.image_recipes import RECIPES
from leanlabel.evaluation.knn import weighted_knn
from leanlabel.evaluation.protocols import PROTOCOLS
from leanlabel.evaluation.readouts import planned_splits, protocol_options

if TYPE_CHECKING:
    from leanlabel.methods.image import ImageMethod

LONG = 4000
"""From this many images on, a readout shows a progress line."""


def probed(name: str, readout: str, method: Any, data: Images) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Class scores (N, C) of every split by a protocol that sees the images, and what is told beside them.

    Args:
        name: of the protocol, a key of `leanlabel.evaluation.image_recipes.RECIPES`.
        readout: "trained" or "untrained", for the progress line.
        method: the method with the network.
        data: labelled images.
    """
    settings, augment = method.cfg.evaluation, method.cfg.augment
    splits = planned_splits(data, settings.model_copy(update={"protocol": name}), method.cfg.seed)
    assert data.y is not None
    scores, told = [], []
    epochs = RECIPES[name].epochs
    with Bar(len(splits) * epochs, label=f"{name}, {readout}", show=len(data) >= LONG) as bar:
        for number, split in enumerate(splits):
            found, details = run_probe(
                name,
                plain(method.embedder),
                data,
                data.y,
                {part: getattr(split, part) for part in PARTS},
                size=augment.size,
                mean=augment.mean,
                std=augment.std,
                seed=method.cfg.seed,
                device=method.device,
                flip=augment.flip > 0,
                progress=lambda done, _, number=number: bar.advance(number * epochs + done),
            )
            scores.append(found)
            told.append(details)
    return scores, told


def scores_by_domain(method: ImageMethod, data: Images, untrained: Method, name: str) -> list[dict[str, Any]]:
    """Scores of the readouts within each domain, by a protocol that reads embeddings; none for one without splits."""
    if not PROTOCOLS[name].needs_splits or data.y is None or data.domain is None:
        return []
    settings = method.cfg.evaluation.model_copy(update={"protocol": name})
    splits = [
        {part: getattr(split, part) for part in PARTS}
        for split in planned_splits(data, settings, method.cfg.seed)
    ]
    names = data.domain_names or [str(k) for k in range(int(data.domain.max()) + 1)]
    readouts = {key: z for key, z in method.readouts(data, untrained).items() if isinstance(z, Tensor)}
    options = protocol_options(settings)
    return by_domain(
        readouts, data.y, splits, data.domain, names, protocol=name, seed=method.cfg.seed, **options
    )


def online_knn(method: ImageMethod) -> float | None:
    """Accuracy of weighted kNN with some training images as its bank, on some validation images.

    Without a validation part other training images are asked. The rows are the same ones all along. None where there
    are too few labels.
    """
    y, most = method.images.y, method.cfg.watch.knn_rows
    if y is None:
        return None
    val = method.images.splits.get("val", torch.zeros(0, dtype=torch.int64))
    val = val[y[val] >= 0]
    bank = method.pool[y[method.pool] >= 0]
    bank = bank[~torch.isin(bank, val)]
    bank = bank[rng.permutation(method.cfg.seed, "watched rows", 0, len(bank))]
    if len(val) == 0:
        half = min(most, len(bank) // 2)
        val, bank = bank[:half], bank[half:]
    val, bank = val[spread(len(val), most)], bank[:most]
    if len(val) == 0 or len(bank) == 0:
        return None
    settings = method.cfg.evaluation
    votes = {"k": settings.knn_k, "temperature": settings.knn_temperature}
    z = method.embed_rows(method.images, bank), method.embed_rows(method.images, val)
    shares = weighted_knn(z[0], y[bank], z[1], classes=int(y.max()) + 1, **votes)
    return float((shares.argmax(1) == y[val]).double().mean())


def spread(count: int, most: int) -> Tensor:
    """At most ``most`` of ``count`` rows, evenly spread: (n,) int64.

    Example:
        >>> spread(10, 3).tolist()
        [0, 3, 6]
    """
    kept = min(count, most)
    return torch.arange(kept) * count // max(1, kept)
