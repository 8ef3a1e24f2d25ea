"""Rules for images: from measured facts to settings of MoCHi, each with its reason.

"Published" means the official code of MoCo (ImageNet and the CIFAR demonstration) and the tables of the MoCHi paper;
the packaged recipes hold them. Where a rule draws a line between such values, the line is a judgement and not a result.
"""

from __future__ import annotations

import math

from leanlabel.advice.recipe import Choice
from leanlabel.advice.ssl_facts import ImageFacts
from leanlabel.augment.image import IMAGENET_MEAN, IMAGENET_STD
from leanlabel.evaluation.negatives import ENOUGH

FEW, LARGE, VERY_LARGE = 500, 50_000, 100_000
TINY, SMALL = 16, 64
"""Sides of images in pixels."""
WHOLE = 224
"""Largest view."""
CPU_SIDE = 64
"""Largest view without a GPU."""
CPU_STEPS = 20_000
"""Longest training without a GPU."""
WIDTH = 128
"""Width of the projection."""
QUEUE = 65_536
GROUP = 16
"""Images in a group of batch normalisation, at least."""
GREY = 0.5
"""Share of grey images from which on colours say nothing."""
READ_OUT = 20_000
"""Labelled images up to which a readout is fitted."""


def power_of_two(value: float) -> int:
    """The largest power of two that is not above a value, at least 1.

    >>> power_of_two(12_500), power_of_two(0.5)
    (8192, 1)
    """
    return 1 if value < 1 else 1 << (math.floor(value).bit_length() - 1)


def view_size(facts: ImageFacts) -> Choice:
    """As large as the images are, in steps of 32 pixels from 96 on, at most 224 [published]; smaller without a GPU."""
    key, side = "augment.size", facts.side
    fitting = WHOLE if side >= WHOLE else side // 32 * 32 if side >= 96 else max(8, side)
    told = f"shorter side of {side} pixels" if facts.one_size else f"median shorter side of {side} pixels"
    if not facts.gpu and fitting > CPU_SIDE:
        return Choice(key, CPU_SIDE, f"{told}, but no GPU here; with one: {fitting}")
    if fitting < side:
        return Choice(key, fitting, f"{told}: {'published' if fitting == WHOLE else 'a multiple of 32'}")
    return Choice(key, fitting, f"{told}: views as large as the images")


def reading(facts: ImageFacts, size: int) -> list[Choice]:
    """Scale on reading what is more than twice as large as a view; without a GPU also cut it to one size."""
    kept = round(size * 8 / 7)
    if not facts.gpu and (facts.side > kept or not facts.one_size):
        return [
            Choice("data.resize", kept, f"8/7 of a view of {size}, so that decoding is done once"),
            Choice("data.square", True, "one size for all, so that pixels can stay in memory"),
        ]
    if facts.side > 2 * size:
        return [Choice("data.resize", kept, f"8/7 of a view of {size}: more pixels only cost time")]
    return [Choice("data.resize", None, "sizes are left alone")]


def epoch_batch(trained: int) -> Choice:
    """Images per iteration [published: 256 ImageNet-1K, 128 ImageNet-100, 512 CIFAR]; at most an eighth of them."""
    wanted = 256 if trained >= LARGE else 128
    found = max(2, min(wanted, power_of_two(trained / 8)))
    if found < wanted:
        return Choice(
            "data.batch_size", found, f"{trained:,} images trained on: a power of two, at most an eighth"
        )
    line = f"{LARGE:,} or more" if wanted == 256 else f"fewer than {LARGE:,}"
    return Choice("data.batch_size", found, f"{trained:,} images trained on, {line}; published 128 to 512")


def steps(facts: ImageFacts, batch: int) -> Choice:
    """200 epochs, 100 of large sets [published: 100 to 800]."""
    epoch = facts.trained // batch
    epochs = 200 if facts.trained < LARGE else 100
    found = epochs * epoch
    reason = f"{epochs} epochs of {epoch:,} iterations; published 100 to 800"
    if not facts.gpu and found > CPU_STEPS:
        return Choice(
            "steps", CPU_STEPS, f"{CPU_STEPS / epoch:.3g} epochs; no GPU here, with one: {found:,}, {reason}"
        )
    return Choice("steps", found, reason)


def queue(trained: int) -> Choice:
    """A power of two, at most a quarter of the images, so that few entries are of the query's own image."""
    found = min(QUEUE, power_of_two(trained / 4))
    reason = "published for ImageNet-1K" if found == QUEUE else f"largest power of two within {trained:,} / 4"
    return Choice(
        "method.queue", found, f"keys remembered (K): {reason}; beyond the data an image meets itself"
    )


def momentum(count: int) -> Choice:
    """0.99 for short trainings [CIFAR demonstration, users on ImageNet-100], 0.999 for long ones [ImageNet-1K]."""
    if count >= VERY_LARGE:
        return Choice("method.momentum", 0.999, f"{count:,} iterations, {VERY_LARGE:,} or more: published")
    return Choice(
        "method.momentum", 0.99, f"{count:,} iterations, fewer than {VERY_LARGE:,}: 0.999 is too slow for it"
    )


def temperature(size: int) -> Choice:
    """0.2 [MoCo v2], 0.1 for small images [CIFAR demonstration]."""
    if size <= SMALL:
        return Choice("method.tau", 0.1, f"views of {size} pixels, at most {SMALL}: as for CIFAR")
    return Choice("method.tau", 0.2, f"views of {size} pixels, above {SMALL}: as for ImageNet")


def mixing(facts: ImageFacts, keys: int, count: int) -> list[Choice]:
    """Mix hard negatives where they are mostly of other classes than the query: N C / K >= 4 [the papers' settings].

    Of K keys K sum_c p_c^2 are of the query's own class, so C is the number of classes of one size that would crowd
    the data as much. With ten classes and N C / K = 1.25 mixing gained nothing, and uniformity got worse.
    """
    hardest = min(1024, keys // 16)
    needed = math.ceil(ENOUGH * keys / hardest) if hardest else 0
    rule = f"N C / K >= {ENOUGH:g} needs C = {needed} classes at N = {hardest:,}, K = {keys:,}"
    if hardest < 2:
        return [Choice("method.mixing", None, f"MoCo-v2: {keys} keys are too few to mix the hardest of them")]
    if len(facts.classes) < 2:
        if facts.trained < VERY_LARGE or facts.grey >= GREY:
            what = f"{facts.trained:,} {'mostly grey ' if facts.grey >= GREY else ''}images without labels"
            reason = (
                f"MoCo-v2: {what} are taken to hold few kinds of things, so that the hardest negatives would be of "
                f"the query's own kind; {rule}. With as many kinds set N = pairs = {hardest}"
            )
            return [Choice("method.mixing", None, reason)]
        about = f"an assumption: {facts.trained:,} images without labels are taken to be diverse; {rule}"
    else:
        classes = facts.even_classes
        named = f"{len(facts.classes)} classes" + (
            "" if classes > 0.95 * len(facts.classes) else f", as crowded as {classes:.3g} of one size"
        )
        share = hardest * classes / keys
        if share < ENOUGH:
            return [
                Choice(
                    "method.mixing",
                    None,
                    f"MoCo-v2: {named} give N C / K = {share:.3g}, below {ENOUGH:g}: most of the hardest negatives "
                    f"would be of the query's own class; {rule}",
                )
            ]
        about = f"{named} give N C / K = {share:.3g}, at least {ENOUGH:g}"
    return [
        Choice("method.mixing.hardest", hardest, f"N = min(1024, K / 16); {about}"),
        Choice("method.mixing.pairs", hardest, "s = N mixtures of two"),
        Choice("method.mixing.with_query", max(1, hardest // 8), "s' = N / 8 mixtures with the query"),
        Choice(
            "method.mixing.warmup", count // 20, "5 % of the iterations before the first mixing, as published"
        ),
    ]


def backbone(facts: ImageFacts, size: int) -> list[Choice]:
    """ResNet-50 for large images [published], ResNet-18 without its coarse stem for small ones [CIFAR demonstration].

    A processor without accelerator gets three or four convolutions.
    """
    if not facts.gpu:
        widths = [32, 64, 128] if size < 48 else [32, 64, 128, 256]
        found = [
            Choice("model.name", "small-cnn", "no GPU here; with one: " + _network(facts, size)[0]),
            Choice("model.widths", widths, f"channels of {len(widths)} stages for views of {size} pixels"),
        ]
        if size <= TINY:
            reason = f"views of {size} pixels, at most {TINY}: the first stage keeps them all"
            found.append(Choice("model.first_stride", 1, reason))
        return found
    name, stem, reason = _network(facts, size)
    return [Choice("model.name", name, reason), Choice("model.stem", stem, f"for views of {size} pixels")]


def _network(facts: ImageFacts, size: int) -> tuple[str, str, str]:
    if size <= SMALL:
        return "resnet18", "cifar", f"views of {size} pixels, at most {SMALL}: as for CIFAR"
    if size < 128 or facts.trained < 10_000:
        why = (
            f"views of {size} pixels, below 128" if size < 128 else f"{facts.trained:,} images, below 10,000"
        )
        return "resnet18", "imagenet", f"{why}: smaller than the published resnet50"
    return "resnet50", "imagenet", "published"


def normalisation(batch: int) -> list[Choice]:
    """Split batch normalisation: on one device it stands for the published several; in its place groups of channels.

    Where normalisation sees the whole batch at once, the network finds the key by its statistics and learns little;
    removing the split cost the CIFAR demonstration about 4 points.
    """
    groups = min(8, batch // GROUP)
    if groups < 2:
        reason = (
            f"batches of {batch} do not divide into groups of {GROUP}: normalised within each image instead"
        )
        return [Choice("model.norm", "group", reason)]
    return [
        Choice("model.norm", "split", "one device: groups of the batch stand for the devices of the paper"),
        Choice(
            "model.norm_groups",
            groups,
            f"{batch // groups} images each; published 8 for 512, at least {GROUP}",
        ),
    ]


def augmentation(facts: ImageFacts, size: int) -> list[Choice]:
    """Views of MoCo v2; without colour where there is none, and without blur on small images [CIFAR demonstration]."""
    grey, share = facts.grey >= GREY, f"{100 * facts.grey:.3g} % of the images are grey"
    scale, why = [0.2, 1.0], "smallest and largest share of the image in a view; MoCo v2"
    if size <= TINY:
        scale, why = (
            [0.5, 1.0],
            f"views of {size} pixels, at most {TINY}: a fifth of them would hold too little",
        )
    flip = Choice(
        "augment.flip", 0.5, "mirrored photos look alike; set 0 where left and right matter: digits, letters"
    )
    if grey:
        flip = Choice(
            "augment.flip",
            0.0,
            f"{share}: digits, letters or scans, which a mirror may change; 0.5 where left and right do not matter",
        )
    return [
        Choice("augment.scale", scale, why),
        flip,
        Choice("augment.jitter", [0.4, 0.4, 0.0, 0.0], f"{share}: no saturation, no hue")
        if grey
        else Choice("augment.jitter", [0.4, 0.4, 0.4, 0.1], "brightness, contrast, saturation, hue; MoCo v2"),
        Choice("augment.hue", "hsv", "as published")
        if facts.gpu
        else Choice("augment.hue", "fast", "cheaper on a processor, nearly the same colours"),
        Choice("augment.grey", 0.0 if grey else 0.2, share if grey else "MoCo v2"),
        Choice("augment.blur", 0.5, f"views of {size} pixels, above {SMALL}; MoCo v2")
        if size > SMALL
        else Choice("augment.blur", 0.0, f"views of {size} pixels, at most {SMALL}: none, as for CIFAR"),
        *_channels(facts, size),
    ]


def _channels(facts: ImageFacts, size: int) -> list[Choice]:
    if size >= 96 and facts.grey < GREY:
        return [
            Choice("augment.mean", list(IMAGENET_MEAN), "of ImageNet, as public backbones expect it"),
            Choice("augment.std", list(IMAGENET_STD), "of ImageNet"),
        ]
    return [
        Choice("augment.mean", list(facts.mean), "per channel, measured"),
        Choice("augment.std", list(facts.std), "per channel, measured"),
    ]


def optimiser(facts: ImageFacts, size: int, batch: int) -> list[Choice]:
    """SGD with a cosine; 0.03 for 256 images, in proportion [MoCo, and the same for CIFAR]; more for a few layers.

    Three convolutions with 0.12 stayed where they began, with 0.3 for 128 images they learned.
    """
    if facts.gpu:
        rate, reason = 0.03 * batch / 256, "0.03 for batches of 256, in proportion; published"
    else:
        rate = 0.3 * min(1.0, batch / 128)
        reason = (
            "0.3 for batches of 128 and more, in proportion below: a few layers stay put at published rates"
        )
    decay = 5e-4 if facts.gpu and size <= SMALL else 1e-4
    return [
        Choice("optim.name", "sgd", "published"),
        Choice("optim.lr", float(f"{rate:.4g}"), reason),
        Choice("optim.momentum", 0.9, "published"),
        Choice("optim.weight_decay", decay, f"published for {'CIFAR' if decay == 5e-4 else 'ImageNet'}"),
        Choice("optim.schedule", "cosine", "published"),
    ]


def evaluation(facts: ImageFacts, size: int) -> list[Choice]:
    """A fitted readout up to 20,000 labels, nearest neighbours beyond; nothing without two classes to tell apart."""
    test = Choice("evaluation.resize", None, "test images are scaled to the view")
    if size >= 96:
        test = Choice(
            "evaluation.resize", round(size * 8 / 7), f"8/7 of the view, of which the middle {size} count"
        )
    if len(facts.classes) < 2 or facts.labelled < 10 or (facts.split != "sound" and max(facts.classes) < 2):
        told = f"{facts.labelled:,} labels in {len(facts.classes)} classes" if facts.classes else "no labels"
        return [Choice("evaluation.protocol", "none", f"{told}: nothing to measure a readout on"), test]
    if facts.labelled <= READ_OUT:
        what = f"{facts.labelled:,} labels, at most {READ_OUT:,}: a fitted readout takes seconds"
        found = [Choice("evaluation.protocol", "logistic-l2", what)]
    else:
        what = f"{facts.labelled:,} labels, more than {READ_OUT:,}: nothing is fitted, and published numbers exist"
        found = [Choice("evaluation.protocol", "knn", what)]
    neighbours = 200 if facts.labelled > READ_OUT else 20
    found.append(Choice("evaluation.knn_k", neighbours, "neighbours that vote; published 20 and 200"))
    if facts.split == "sound":
        return [*found, Choice("evaluation.split", "public", "the data brings train, val and test"), test]
    why = {
        "none": "the data brings no split",
        "incomplete": "the data's own split lacks labelled images in train, val or test",
        "unsound": "an image is in two parts of the data's own split, see `leanlabel data check`",
    }
    return [
        *found,
        Choice("evaluation.split", "random", why[facts.split]),
        Choice("evaluation.splits", 4, "the report shows their mean and spread"),
        Choice("evaluation.shares", [0.6, 0.1, 0.3], "train, val, test"),
        test,
    ]


def watching(facts: ImageFacts, count: int, epoch: int) -> list[Choice]:
    """How often training is looked at; only what is logged is seen."""
    log = _log_every(count)
    every = math.ceil(max(1, min(epoch, count // 20)) / log) * log
    found = [
        Choice("watch.every", every, "iterations: each epoch, at least 20 times; a multiple of log_every")
    ]
    if len(facts.classes) > 1:
        often = math.ceil(max(1, count // 10) / log) * log
        found.append(Choice("watch.knn_every", often, "ten readouts of 1,000 images on the way"))
    return found


def engine(facts: ImageFacts, count: int) -> list[Choice]:
    """Where it runs."""
    found = [Choice("engine.accelerator", "auto", "a GPU where there is one")]
    if facts.gpu and not facts.in_memory:
        found.append(Choice("engine.workers", 8, "processes that decode files while the GPU computes"))
    return [
        *found,
        Choice("engine.checkpoint_every", max(1, count // 50), "iterations; two are kept"),
        Choice("engine.log_every", _log_every(count), "iterations between lines of the log"),
    ]


def _log_every(count: int) -> int:
    return max(1, count // 2000)


def cautions(facts: ImageFacts, size: int) -> list[str]:
    """What no setting mends."""
    found = []
    if facts.trained < FEW:
        found.append(
            f"{facts.trained:,} images are few to learn from without labels: start from a trained backbone "
            "(fit --from FILE --part backbone), or add images, also of other things"
        )
    if facts.smallest < size / 2:
        found.append(
            f"the smallest image has a side of {facts.smallest} pixels and is enlarged to views of {size}: look "
            "whether such images belong to the data"
        )
    if facts.largest > 8 * facts.smallest:
        found.append(f"sides run from {facts.smallest} to {facts.largest} pixels: one view does not suit all")
    if facts.unreadable:
        found.append(f"{facts.unreadable:,} files cannot be read and are left out")
    if facts.split in ("unsound", "incomplete") and facts.classes:
        found.append("the data's own split is not used: it has errors or lacks train, val or test")
    return found
