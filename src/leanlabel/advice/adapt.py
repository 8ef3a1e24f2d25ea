"""Advice for two domains: read both, measure how far they are apart, apply the rules, in the order of the recipe."""

from __future__ import annotations

import dataclasses

import torch

from leanlabel.advice import adapt_rules as rules
from leanlabel.advice import segmentation_rules as plain
from leanlabel.advice.adapt_cost import adaptation_cost
from leanlabel.advice.adapt_facts import AdaptFacts, Looks, compare_looks, compare_names, target_facts
from leanlabel.advice.adapt_places import Place, find_places
from leanlabel.advice.graph_cost import duration
from leanlabel.advice.recipe import Advice, Choice
from leanlabel.advice.segmentation import _counts, _gpu_memory, _held
from leanlabel.advice.segmentation_cost import expected_cost
from leanlabel.advice.segmentation_facts import DenseFacts, measure
from leanlabel.errors import InputError
from leanlabel.evaluation.domain_gap import share_distance
from leanlabel.methods.dense_readouts import labelled_parts
from leanlabel.methods.segmentation import training_rows

OTHER_SHARES = 0.2
"""Share of the pixels that would have to change class, from which on it is said that domains differ in classes."""


def advise(places: list[str]) -> Advice:
    """Choose the settings of an adaptation from images with masks to images of another domain.

    Args:
        places: paths of the source and of the target, also below LEANLABEL_DATA. The source has masks. Those of the
            target's training part are not read; those of its other parts say how good the network is there.

    Raises:
        InputError: no such place, the same place twice, no masks in the source, classes that differ, images of other
            channels that do not belong together, or what else the readers say.
    """
    source, target, hidden, said = find_places(places)
    images, others = source.read(), target.read()
    gpu = torch.cuda.is_available()
    native = measure(images, gpu=gpu, memory=_gpu_memory() if gpu else 0.0)
    if not native.present:
        raise InputError(
            f"{source.written}: no pixel of the {native.trained} training images has a class.",
            "Give the training part of the source masks; `leanlabel data check` tells what the others hold.",
        )
    if not len(training_rows(others)):
        raise InputError(
            f"{target.written}: no image to train on; all of the {len(others)} belong to other parts.",
            "Put images without labels into a part called train.",
        )
    theirs = target_facts(others, native)
    for where, one in ((source.written, native), (target.written, theirs)):
        if one.smallest < plain.SMALLEST:
            raise InputError(
                f"{where}: an image has a side of {one.smallest} pixels; the smallest network needs {plain.SMALLEST}.",
                "Leave such images out.",
            )
    shrunk = rules.sizes(native, theirs)
    facts = AdaptFacts(
        source=plain.as_read(native, shrunk[0].value),
        target=plain.as_read(theirs, shrunk[1].value),
        looks=compare_looks(images, others, (shrunk[0].value, shrunk[1].value)),
        partners=compare_names(images, others),
        hidden=int(others.facts.get("training_masks_hidden", hidden)),
    )
    if not facts.same_channels and not rules.paired(facts):
        raise InputError(
            f"images of {native.channels} channels in {source.written} and of {theirs.channels} in {target.written} "
            "cannot be trained on together.",
            "Only pairs of images under the same names, aligned and of one size, could be learned from; or read the "
            "same number of bands of both.",
        )
    parts = [part for part in labelled_parts(images) if part != "train"]
    cautions = (f"warning: {text}" for text in (*said, *_cautions(facts)))
    return Advice(
        task="adapt",
        facts=(
            f"Looked at the source {source.written}: {_counts(native)}.",
            f"Looked at the target {target.written}: {_target_counts(facts)}.",
            *_held(native)[:1],
            *_apart(facts),
        ),
        choices=(
            Choice("about", f"Adaptation from {images.name} to {others.name}", "title of the reports"),
            *_choices(facts, native, shrunk, (source, target), parts),
        ),
        warnings=(*source.findings(), *target.findings(), *cautions),
    )


def _choices(
    facts: AdaptFacts,
    native: DenseFacts,
    shrunk: tuple[Choice, Choice],
    places: tuple[Place, Place],
    parts: list[str],
) -> list[Choice]:
    """All choices but the title, in the order of the file.

    Args:
        facts: of the images as they will be read.
        native: of the source's images at their own size.
        shrunk: sizes of both.
        places: both.
        parts: held-out parts of the source that have labels.
    """
    window = rules.crop(facts)
    model = rules.network(facts, native, window.value)
    images, size = rules.fitted(facts, plain.settings_of(model), window.value)
    if size != window.value:
        about = (
            f"height and width; {window.value} would not fit into "
            + f"{facts.source.memory if facts.gpu else plain.CPU_ROOM:.2g} GiB"
        )
        window = Choice(window.key, size, about)
        model = rules.network(facts, native, size)
    norm, *statistics = rules.norms(facts, images)
    model = [*model, norm]
    found = plain.settings_of(model)
    stage = expected_cost(facts.source, found, size, images).seconds
    last, memory = dataclasses.astuple(adaptation_cost(facts.source, found, size, images, rules.way(facts)))
    first, count = rules.steps(facts, images, stage, last)
    own = plain.optimiser(model[0].value, images)
    stages = rules.stages(facts, first, count.value, size, own)
    total = first * stage + count.value * last * (1.5 if len(stages) > 4 else 1)
    gpu = facts.gpu
    spent = Choice(
        "cost",
        f"estimate: about {duration(total)} of training on {'a GPU' if gpu else '2 cores'} "
        f"({duration(stage)} an iteration of the first stage, {duration(last)} of the last), {memory:.2g} GiB",
        "not measured: operations of all passes over images of both domains; may be off by a factor of two",
    )
    pairs = Choice("data.pairs.by", "name", "namesakes show the same scene: compared by where edges are")
    drawn = rules.sampling(facts, size)
    batch = rules.batch(facts, images, memory)
    return [
        Choice("task", "adapt", "kind of job"),
        Choice("fidelity", "corrected" if gpu else "small", "a GPU here" if gpu else "no GPU here"),
        spent,
        Choice("seed", 0, "of every random number; `compare` counts up from it"),
        count,
        *stages,
        Choice("method.name", "adapt", "labels of the source, images of both"),
        rules.terms(facts, size),
        *rules.average(facts, count.value),
        *statistics,
        *(one for one in drawn if one.key.startswith("method.")),
        *model,
        *_domain(places[0], facts.source, shrunk[0], batch[0]),
        *_domain(places[1], facts.target, shrunk[1], batch[1]),
        *([pairs] if rules.paired(facts) else []),
        window,
        plain.scale(facts.source),
        *(one for one in drawn if one.key.startswith("augment.")),
        *rules.augmentation(facts),
        *rules.optimiser(own, count.value),
        *rules.evaluation(facts, parts),
        *plain.engine(facts.source, count.value),
    ]


def _domain(place: Place, facts: DenseFacts, shrunk: Choice, batch: Choice) -> list[Choice]:
    key = f"data.{place.role}.skip_unreadable"
    skipped = [Choice(key, True, f"{facts.unreadable:,} files cannot be read")] if facts.unreadable else []
    return [*place.choices(), *skipped, shrunk, batch]


# ------------------------------------------------------------------------------------------------- telling


def _target_counts(facts: AdaptFacts) -> str:
    target = facts.target
    parts = ", ".join(f"{count:,} {part}" for part, count in target.parts.items())
    size = f"{target.width} x {target.height} pixels"
    if not target.one_size:
        size = f"{target.smallest} to {target.largest} pixels on a side (median {size})"
    told = f"labels of {', '.join(facts.measured)} to measure" if facts.measured else "no held-out labels"
    bands = "" if target.channels == 3 else f", {target.channels} bands"
    groups = f", {target.sequences} sequences" if target.sequences else ""
    return f"{target.images:,} images ({parts}), {size}{bands}{groups}; {told}"


def _apart(facts: AdaptFacts) -> list[str]:
    """Sentences on how far the domains are apart."""
    looks, found = facts.looks, []
    if looks.gap is not None:
        found.append(
            f"Proxy A-distance {looks.gap:.2f} (0: same look, 2: told apart without a mistake), from colours and "
            f"gradients of {looks.images[0]} and {looks.images[1]} images."
        )
    if looks.distances:
        found.append(
            "Target less source, in spreads from image to image: "
            f"brightness {looks.brightness:+.2g}, contrast {looks.contrast:+.2g}, saturation {looks.saturation:+.2g}, "
            f"sharpness {looks.sharpness:+.2g}, noise {looks.noise:+.2g}."
        )
    if facts.measured:
        shares = (torch.tensor(one.shares) for one in (facts.source, facts.target))
        found.append(
            f"Between the source and {', '.join(facts.measured)} of the target, {100 * share_distance(*shares):.2g} % "
            "of the pixels would have to change class for equal shares."
        )
    if facts.partners.share > 0:
        found.append(
            f"{100 * facts.partners.share:.3g} % of the target's training images have a namesake in the source, and "
            f"are more like it than like another's in {100 * facts.partners.alike:.3g} % of comparisons (50: chance)."
        )
    return found


def _cautions(facts: AdaptFacts) -> list[str]:
    """What no setting mends."""
    source, target, looks, found = facts.source, facts.target, facts.looks, []
    for role, one in (("source", source), ("target", target)):
        if one.trained < plain.FEW:
            found.append(
                f"{role}: {one.trained} training images, fewer than {plain.FEW}, are few: trust no single score"
            )
    if facts.hidden and facts.measured:
        found.append(
            f"{facts.hidden:,} masks of target training images are there and not read; the term labelled-target, with "
            "method.target_labels: true, trains on them: an upper bound, no adaptation"
        )
    if not facts.measured:
        found.append(
            "no held-out image of the target has labels: nothing says how good the network is there; label 20 to 50 "
            "images and put them into a part called val"
        )
    if len(source.present) == 1:
        found.append(
            f"only {source.names[source.present[0]]} has training pixels: a segmentation needs two classes"
        )
    lacking = set(source.lacking.get("train", ()))
    if lacking:
        met = [
            name for number, name in enumerate(target.names) if name in lacking and target.shares[number] > 0
        ]
        also = f"; the target has {', '.join(met)}" if met else ""
        names = ", ".join(name for name in source.names if name in lacking)
        found.append(f"no pixel of {names} in the source's training part: cannot be learned{also}")
    if facts.measured:
        shares = [torch.tensor(one.shares) for one in (source, target)]
        if share_distance(*shares) >= OTHER_SHARES:
            found.append("classes have other shares in the target, which no change of looks bridges")
    found += _of_gap(looks)
    own = facts.partners
    if own.share >= rules.PAIRED and own.alike >= rules.ALIKE and not own.one_size:
        found.append(
            "images of both domains show the same scenes under the same names, but differ in size: brought to one "
            "size, they could be learned from as pairs (feature-regression)"
        )
    return found


def _of_gap(looks: Looks) -> list[str]:
    if looks.gap is None:
        return []
    if looks.gap < rules.NEAR:
        return [
            f"A-distance {looks.gap:.2f}, below {rules.NEAR:g}: the domains look alike, and adaptation may buy little; "
            "leanlabel compare holds it against training on the source alone"
        ]
    if looks.gap >= rules.FAR:
        return [
            f"A-distance {looks.gap:.2f} of 2: told apart almost without a mistake (by looks that may not matter, "
            "too); the network of the first stage may be too poor on the target to teach itself: look at its pictures "
            "there"
        ]
    return []
