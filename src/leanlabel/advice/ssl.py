"""Advice for images without labels: read them, measure them, apply the rules, in the order of the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from leanlabel.advice import ssl_rules as rules
from leanlabel.advice.graph_cost import duration
from leanlabel.advice.place import written_place
from leanlabel.advice.recipe import Advice, Choice
from leanlabel.advice.ssl_cost import estimate
from leanlabel.advice.ssl_facts import ImageFacts, measure
from leanlabel.data.image_check import check_images
from leanlabel.data.image_files import list_images, read_images
from leanlabel.data.images import Images
from leanlabel.errors import InputError
from leanlabel.models.backbones import BackboneSettings

DECODED = 20_000
"""Images up to which all are decoded and checked; of more only the heads of files are read."""
_SETTLED = {"unreadable_skipped", "small_images"}
"""Warnings of the data check that the recipe answers, or that stand among its own."""


def advise(places: list[str]) -> Advice:
    """Choose the settings of a MoCHi recipe, or of MoCo-v2 as its case without mixing, for a set of images.

    Args:
        places: one path of a folder, a .zip, an .npz or a list of files, also below LEANLABEL_DATA.

    Raises:
        InputError: no such place, no images, one that no recipe can name, or what else the reader says.
    """
    (place,) = places
    path, written = written_place(place)
    images = _read(path)
    facts = measure(images, gpu=torch.cuda.is_available())
    if facts.trained < 2:
        raise InputError(
            f"{written}: {facts.trained} image to train on; telling images apart needs at least two."
        )
    choices = _choices(images.name, written, facts)
    size = next(choice.value for choice in choices if choice.key == "augment.size")
    return Advice(
        task="ssl",
        facts=(f"Looked at {written}: {_counts(facts)}.",),
        choices=tuple(choices),
        warnings=(*_found(images), *(f"warning: {text}" for text in rules.cautions(facts, size))),
    )


def _choices(name: str, path: str, facts: ImageFacts) -> list[Choice]:
    """All choices in the order of the file."""
    size = rules.view_size(facts)
    batch, keys = rules.epoch_batch(facts.trained), rules.queue(facts.trained)
    steps = rules.steps(facts, batch.value)
    mixing = rules.mixing(facts, keys.value, steps.value)
    model = [*rules.backbone(facts, size.value), *rules.normalisation(batch.value)]
    method = "MoCo-v2" if mixing[0].value is None else "MoCHi"
    skipped = facts.unreadable > 0
    return [
        Choice("about", f"{method} on {name}", "title of the reports"),
        Choice("task", "ssl", "kind of job"),
        Choice(
            "fidelity", "corrected" if facts.gpu else "small", "a GPU here" if facts.gpu else "no GPU here"
        ),
        _cost(facts, model, size.value, batch.value, keys.value, steps.value),
        Choice("seed", 0, "of every random number; `compare` counts up from it"),
        steps,
        Choice("method.name", "mochi", "contrast with a queue; with mixing null it is MoCo-v2"),
        rules.temperature(size.value),
        keys,
        rules.momentum(steps.value),
        Choice("method.width", rules.WIDTH, "of the projection; published"),
        *mixing,
        *model,
        Choice("data.kind", "file", "files of one's own or of a public set"),
        Choice("data.path", path, "relative paths are also looked for below LEANLABEL_DATA"),
        batch,
        *rules.reading(facts, size.value),
        *(
            [Choice("data.skip_unreadable", True, f"{facts.unreadable:,} files cannot be read")]
            if skipped
            else []
        ),
        size,
        *rules.augmentation(facts, size.value),
        *rules.optimiser(facts, size.value, batch.value),
        *rules.evaluation(facts, size.value),
        *rules.watching(facts, steps.value, facts.trained // batch.value),
        *rules.engine(facts, steps.value),
    ]


def _cost(facts: ImageFacts, model: list[Choice], size: int, batch: int, queue: int, steps: int) -> Choice:
    values = {choice.key.removeprefix("model."): choice.value for choice in model}
    settings = BackboneSettings.model_validate_json(json.dumps(values))
    stored = 3 * facts.images * (facts.side if facts.in_memory else 0) ** 2
    cost = estimate(settings, size, batch, queue, rules.WIDTH, gpu=facts.gpu, stored=stored)
    where = "a GPU" if facts.gpu else "2 cores"
    text = (
        f"estimate: about {duration(cost.seconds * steps)} on {where} ({duration(cost.seconds)} an iteration), "
        f"{cost.memory:.2g} GiB"
    )
    return Choice(
        "cost",
        text,
        "of training, not measured: four forward passes' operations for each of "
        f"{batch} images, at {'5.5 trillion' if facts.gpu else '100 billion'} a second; may be off by a factor of two",
    )


def _read(path: Path) -> Images:
    """The images, as training will read them; of many only the heads are looked at."""
    few = len(list_images(path)) <= DECODED
    return read_images(path, load="auto" if few else "disk", verify=few, skip_unreadable=True)


def _found(images: Images) -> list[str]:
    """What a check of the data warns of; a large set is left to `leanlabel data check`."""
    findings = check_images(images) if len(images) <= DECODED else []
    return [
        f"{one.severity}: {one.message}"
        for one in findings
        if one.severity != "info" and one.code not in _SETTLED
    ]


def _counts(facts: ImageFacts) -> str:
    trained = "" if facts.trained == facts.images else f" ({facts.trained:,} without the test part)"
    size = f"{facts.side} pixels on their shorter side"
    if not facts.one_size:
        size = f"{facts.smallest} to {facts.largest} pixels on a side (median shorter side {facts.side})"
    classes = f"{facts.labelled:,} labels in {len(facts.classes)} classes" if facts.classes else "no labels"
    domains = f", {facts.domains} domains" if facts.domains > 1 else ""
    return f"{facts.images:,} images{trained}, {size}, {100 * facts.grey:.3g} % grey, {classes}{domains}"
