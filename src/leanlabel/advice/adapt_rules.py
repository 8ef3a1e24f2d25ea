"""Rules for adaptation: from what two domains show to settings of a training, each with its reason.

"Published" means the settings of DAFormer, of MIC and of SPCL's warm-up. Where a rule draws a line between such values,
the line is a judgement and not a result. Nothing here reads a label of the target.
"""

from __future__ import annotations

import math
from typing import Any

from leanlabel.advice import segmentation_rules as plain
from leanlabel.advice.adapt_cost import Way, adaptation_cost
from leanlabel.advice.adapt_facts import AdaptFacts
from leanlabel.advice.recipe import Choice
from leanlabel.advice.segmentation_facts import DenseFacts
from leanlabel.advice.ssl_rules import power_of_two
from leanlabel.augment.image import IMAGENET_MEAN, IMAGENET_STD

OTHER_SIZE = 1.25
"""Times that the images of one domain are as large as those of the other, from which on they are shrunk to these."""
LARGE = 0.8
"""Difference, in spreads from image to image, from which on it is called large [Cohen 1969]."""
NEAR, FAR = 0.3, 1.8
"""Proxy A-distances below which domains look alike, and from which on they are told apart almost without a mistake."""
FEWEST = 4
"""Images of a batch whose statistics a batch norm can be trained with."""
VERY_LARGE, LONG = 2.0, 10_000
"""Difference of looks, in spreads, and iterations from which on an adversary aligns the domains first."""
RARE = 0.01
"""Share of the pixels below which a class is rare."""
RARE_PIXELS, RARE_IMAGE = 3000, 1024 * 512
"""Pixels of the drawn class that an image must have, and the size of the image that this is published for."""
WANTED, CROP = 1500, 512
"""Pixels of that class that a crop should have, and the side of the crop that this is published for."""
MANY = 1000
"""Labelled images from which on the published temperature of rare class sampling is taken."""
PAIRED, ALIKE = 0.8, 0.9
"""Shares of target images with a namesake, and of comparisons that a namesake wins, from which on images are pairs."""
BLOCKS = 8
"""Hidden blocks along the shorter side of a crop: 64 pixels of 512, published."""
ALIGN = "align"
MOST_STEPS = 40_000
STAGE_SECONDS, LAST_SECONDS = 120.0, 240.0
"""Longest first and last training without a GPU."""


def sizes(source: DenseFacts, target: DenseFacts) -> tuple[Choice, Choice]:
    """Shrink what costs hours without a GPU, and the larger domain where things would be of different sizes."""
    own = plain.resize(source)
    short, other = source.short, target.short
    ratio = max(short, other) / min(short, other)
    limit = own.value or short
    common = min(limit, other) if ratio > OTHER_SIZE else own.value
    told = f"shorter sides of {short} pixels in the source and {other} in the target"
    if common is None:
        why = f"{told}, at most {OTHER_SIZE:g} times apart; {own.reason}"
        return Choice("data.source.resize", None, why), Choice("data.target.resize", None, "as of the source")
    why = (
        own.reason if ratio <= OTHER_SIZE else f"{told}: brought to one size, so that things are of one size"
    )
    if ratio > OTHER_SIZE and own.value is not None:
        why += f"; {own.reason}"
    found = [common if common < side else None for side in (short, other)]
    rest = "as of the source" if found[1] else "these are as small already"
    return Choice("data.source.resize", found[0], why), Choice("data.target.resize", found[1], rest)


def paired(facts: AdaptFacts) -> bool:
    """Whether images of the target show the same scenes as their namesakes in the source."""
    own = facts.partners
    return own.share >= PAIRED and own.alike >= ALIKE and own.one_size


def way(facts: AdaptFacts) -> Way:
    """What the last training learns from."""
    return "pairs" if paired(facts) else "mixes"


def crop(facts: AdaptFacts) -> Choice:
    """As for the source alone, but no larger than the target's images."""
    found = plain.crop(facts.source)
    stride = 16 if facts.gpu else 8
    most = [max(stride, side // stride * stride) for side in (facts.target.height, facts.target.width)]
    size = [min(own, other) for own, other in zip(found.value, most, strict=True)]
    if size == found.value:
        return found
    about = f"images of the target have {facts.target.width} x {facts.target.height} pixels"
    return Choice(found.key, size, f"height and width, multiples of the stride {stride}; {about}")


def wanted_batch(facts: AdaptFacts) -> int:
    """Images of each domain: a power of two, at most a quarter of the smaller one, or two."""
    few = min(facts.source.trained, facts.target.trained)
    return min(8 if facts.gpu else 4, max(power_of_two(few / 4), min(2, few)))


def fitted(facts: AdaptFacts, model: dict[str, Any], size: list[int]) -> tuple[int, list[int]]:
    """Largest batch that fits into memory, and the crop, which gives way below two images."""
    found, size = wanted_batch(facts), list(size)
    room = plain.ROOM * facts.source.memory if facts.gpu else plain.CPU_ROOM
    least = min(2, found)
    while adaptation_cost(facts.source, model, size, found, way(facts)).memory > room:
        if found > least:
            found //= 2
        elif max(size) > 64:
            size = [max(16, side * 3 // 4 // 16 * 16) if side == max(size) else side for side in size]
        elif found > 1:
            found, least = found // 2, 1
        else:
            break
    return found, size


def batch(facts: AdaptFacts, found: int, memory: float) -> list[Choice]:
    """The same number of images of both."""
    few = min(facts.source.trained, facts.target.trained)
    wanted = wanted_batch(facts)
    why = f"of each domain, usual {'with' if facts.gpu else 'without'} a GPU; published 2"
    if found < wanted:
        why = f"of each domain; {2 * found} would not fit into memory"
    elif wanted < (8 if facts.gpu else 4):
        why = f"of each domain; {few:,} training images in the smaller one: a power of two, at most a quarter, or two"
    alike = "as of the source" if paired(facts) else "as of the source: one image is pasted into one"
    return [
        Choice("data.source.batch_size", found, f"{why}; about {memory:.2g} GiB"),
        Choice("data.target.batch_size", found, alike),
    ]


def network(facts: AdaptFacts, native: DenseFacts, size: list[int]) -> list[Choice]:
    """As for the source alone with a GPU; else the larger of two small networks that takes minutes."""
    if facts.gpu:
        return plain.network(facts.source, native, size, wanted_batch(facts))
    wanted, images = wanted_steps(facts, wanted_batch(facts)), wanted_batch(facts)
    seconds = adaptation_cost(facts.source, {"name": "small-fcn"}, size, images, way(facts)).seconds
    told = f"no GPU here, and {wanted:,} iterations of {seconds:.2g} s with small-fcn take"
    if seconds * wanted <= LAST_SECONDS:
        return [Choice("model.name", "small-fcn", f"{told} minutes")]
    return [Choice("model.name", "tiny-fcn", f"{told} too long")]


def wanted_steps(facts: AdaptFacts, images: int) -> int:
    """A hundred epochs of the larger domain within limits; published 40,000 iterations."""
    least = 4000 if facts.gpu else 400
    return round(min(MOST_STEPS, max(least, plain.EPOCHS * facts.trained / images)))


def steps(facts: AdaptFacts, images: int, stage: float, last: float) -> tuple[int, Choice]:
    """Iterations of the first stage, and of the last training.

    Args:
        facts: both domains.
        images: of each domain per iteration.
        stage: seconds of an iteration on labelled images alone.
        last: seconds of an iteration of the last training.
    """
    wanted = wanted_steps(facts, images)
    epochs = wanted * images / facts.trained
    text = f"{epochs:.3g} epochs of the larger domain's {facts.trained:,} images; published 40,000 iterations"
    first = min(MOST_STEPS, plain.wanted_steps(facts.source, images)[0])
    if facts.gpu:
        return first, Choice("steps", wanted, text)
    first = min(first, _affordable(STAGE_SECONDS, stage))
    most = _affordable(LAST_SECONDS, last)
    if most >= wanted:
        return first, Choice("steps", wanted, text)
    text = f"about {LAST_SECONDS / 60:.0f} minutes; no GPU here, with one: {wanted:,}"
    return first, Choice("steps", most, text)


def _affordable(seconds: float, each: float) -> int:
    return max(100, math.floor(seconds / each / 100) * 100)


def stages(facts: AdaptFacts, first: int, count: int, size: list[int], own: list[Choice]) -> list[Choice]:
    """Labelled images alone; where domains are very far apart and there is time, an adversary.

    Args:
        facts: both domains.
        first: iterations of the first stage.
        count: iterations of the last training.
        size: of the crop.
        own: optimiser of the first stage.
    """
    rate = next(one.value for one in own if one.key == "optim.lr")
    why = (
        "the reference must know the classes"
        if paired(facts)
        else "a teacher that knows nothing teaches nothing"
    )
    terms = plain.terms(facts.source).value
    key = "stages.source"
    found = [
        Choice(f"{key}.steps", first, "labelled images alone, as many iterations as they would get"),
        Choice(f"{key}.method.terms", terms, f"trained before: {why}"),
        Choice(f"{key}.optim.lr", rate, "as for the source alone"),
        Choice(f"{key}.optim.warmup", 0, "from the beginning"),
    ]
    gap = facts.looks.gap or 0.0
    far = gap >= FAR and facts.looks.largest >= VERY_LARGE
    if paired(facts) or not far or count < LONG or min(size) < 32:
        return found
    adversary = [
        {"name": "cross-entropy", "settings": {"divisor": 1.8}},
        {"name": "adversary", "weight": 0.001},
    ]
    about = (
        f"A-distance {gap:.2f} and a measure {facts.looks.largest:.2g} spreads apart: an adversary makes predictions "
        "alike before a teacher is believed; published warm-up of SPCL"
    )
    return [
        *found,
        Choice(f"stages.{ALIGN}.steps", count // 2, f"{count:,} iterations follow, {LONG:,} or more"),
        Choice(f"stages.{ALIGN}.method.terms", adversary, about),
    ]


def terms(facts: AdaptFacts, size: list[int]) -> Choice:
    """Regression of maps for pairs; else mixes and masked images with a slow teacher."""
    key = "method.terms"
    if paired(facts):
        own = facts.partners
        about = (
            f"{100 * own.share:.3g} % of the target's images have a namesake in the source that shows the same scene: "
            "the network learns to say of one what it said of the other; hold it against the term mask-reuse, which "
            "wins where images lie exactly on one another"
        )
        return Choice(key, [{"name": "feature-regression"}], about)
    block = max(4, round(min(size) / BLOCKS))
    mix: dict[str, Any] = {"name": "class-mix"}
    masked: dict[str, Any] = {"name": "masked-consistency", "settings": {"block": block}}
    about = (
        "labels of the source; half of the classes of a source image pasted onto a target image; target images with "
        f"blocks of {block} pixels hidden, of {size[0]} x {size[1]} (published 64 of 512)"
    )
    if facts.source.channels != 3:
        strong = {"jitter": [0.0, 0.0, 0.0, 0.0], "gamma": 0.5, "blur": 0.5}
        mix["settings"] = {"strong": strong}
        masked["settings"]["strong"] = strong
        about += f"; {facts.source.channels} bands have no colours to change"
    return Choice(key, [{"name": "cross-entropy"}, mix, masked], about)


def average(facts: AdaptFacts, count: int) -> list[Choice]:
    """Momentum of the teacher: published for long trainings, quicker for short ones."""
    if paired(facts):
        return []
    long = count >= LONG
    value, about = (
        (0.999, "published") if long else (0.99, f"{count:,} iterations; published 0.999 for 40,000")
    )
    return [Choice("method.ema", value, f"the teacher is a running average; {about}")]


def norms(facts: AdaptFacts, images: int) -> list[Choice]:
    """Batch norms that learn the target's statistics, where a network is trained from its seed; else as for one domain.

    In the recorded proofs half of what adaptation gained on small networks came from these.
    """
    if facts.gpu or paired(facts) or images < FEWEST:
        return [plain.normalisation(facts.source, images)]
    return [
        Choice(
            "model.norm", "batch", "its statistics can be those of either domain, which group norm has not"
        ),
        Choice("method.teacher_norm", "batch", "the teacher reads target images by their own statistics"),
        Choice("method.adabn", True, "what is handed out has the statistics of target images"),
    ]


def sampling(facts: AdaptFacts, size: list[int]) -> list[Choice]:
    """Draw images of rare classes where the smallest present one has less than a hundredth of the pixels."""
    source = facts.source
    if paired(facts) or len(source.present) < 2:
        return []
    rarest = source.present[0]
    told = f"{source.names[rarest]} has {100 * source.shares[rarest]:.2g} % of the source's pixels"
    if source.shares[rarest] >= RARE:
        return [Choice("method.sampling.name", "uniform", f"{told}, 1 % or more")]
    least = max(1, round(RARE_PIXELS * source.height * source.width / RARE_IMAGE))
    wanted = max(1, round(WANTED * size[0] * size[1] / CROP**2))
    many = source.trained >= MANY
    often = f"{source.trained:,} labelled images, {MANY:,} or more; published"
    seldom = f"{source.trained:,} labelled images: 0.01, as published, would draw the few with the rarest class alone"
    images = f"of {source.width} x {source.height} pixels; published 3,000 for 1024 x 512"
    return [
        Choice("method.sampling.name", "rare", f"{told}, less than 1 %: its images are drawn more often"),
        Choice("method.sampling.temperature", 0.01 if many else 0.1, often if many else seldom),
        Choice("method.sampling.min_pixels", least, f"pixels of the class that an image must have, {images}"),
        Choice(
            "augment.wanted_pixels", wanted, "pixels of the class in a crop; published 1,500 of 512 x 512"
        ),
    ]


def augmentation(facts: AdaptFacts) -> list[Choice]:
    """Changes of source images that reach towards the target; those of target images are left out of it."""
    source, target, looks = facts.source, facts.target, facts.looks
    flip = Choice(
        "augment.flip", 0.5, "mirrored, both domains; 0 where left and right matter: text, signs, organs"
    )
    found = [flip]
    if source.channels == 3:
        found += _jitter(facts)
        if target.channels == 3 and target.grey >= 0.5 and source.grey < 0.5:
            found.append(
                Choice("augment.grey", 1.0, f"{100 * target.grey:.3g} % of the target's images are grey")
            )
    if abs(looks.brightness) >= LARGE:
        found.append(
            Choice("augment.gamma", 0.5, f"brightness is {looks.brightness:+.2g} spreads away, {_large()}")
        )
    if looks.sharpness <= -LARGE:
        about = f"the target is less sharp by {-looks.sharpness:.2g} spreads, {_large()}"
        found.append(Choice("augment.blur", 0.5, about))
    added = math.sqrt(max(0.0, looks.target.get("noise", 0.0) ** 2 - looks.source.get("noise", 0.0) ** 2))
    if looks.noise >= LARGE and added > 0:
        about = f"the target has {looks.noise:.2g} spreads more noise, {_large()}"
        found.append(Choice("augment.noise", 0.5, about))
        limits = [float(f"{min(1.0, factor * added):.2g}") for factor in (0.5, 1.5)]
        found.append(
            Choice("augment.noise_sigma", limits, f"half to one and a half of the missing {added:.2g}")
        )
    return [*found, *_normalisation(facts)]


def _jitter(facts: AdaptFacts) -> list[Choice]:
    looks, key = facts.looks, "augment.jitter"
    told = (
        f"target against source, in spreads from image to image: brightness {looks.brightness:+.2g}, contrast "
        f"{looks.contrast:+.2g}, saturation {looks.saturation:+.2g}, cast {looks.balance:.2g}"
    )
    if looks.colours < LARGE:
        return [Choice(key, [0.0] * 4, f"{told}; none is large ({LARGE:g}): colours of the source stay")]
    reach = [
        _reach(looks.ratio(name), distance)
        for name, distance in (
            ("mean", looks.brightness),
            ("contrast", looks.contrast),
            ("saturation", looks.saturation),
        )
    ]
    hue = 0.1 if looks.balance >= LARGE else 0.05
    if facts.source.grey >= 0.5:
        reach[2], hue = 0.0, 0.0
    about = f"{told}; {_large()}: brightness, contrast, saturation and hue of the source vary as far as they differ"
    return [
        Choice(key, [*reach, hue], about),
        Choice("augment.jitter_probability", 0.8, "published for changes of colour"),
        Choice("augment.hue", "fast", "cheaper, nearly the same colours"),
    ]


def _reach(ratio: float, distance: float) -> float:
    """Strength of a change: as far as the means differ, where the difference is large."""
    if abs(distance) < LARGE:
        return 0.2
    return round(min(0.5, max(0.2, abs(ratio - 1))), 2)


def _large() -> str:
    return f"{LARGE:g} or more is large"


def _normalisation(facts: AdaptFacts) -> list[Choice]:
    source = facts.source
    if source.channels == 3 and facts.same_channels:
        mean, std, why = list(IMAGENET_MEAN), list(IMAGENET_STD), "of ImageNet, as public backbones expect it"
    elif facts.same_channels:
        mean, std, why = (
            list(source.mean),
            list(source.std),
            f"per band of the source; {source.channels} bands",
        )
    else:
        mean, std = ([round(sum(own) / len(own), 4)] for own in (source.mean, source.std))
        why = f"one number for all: {source.channels} bands here and {facts.target.channels} there"
    return [Choice("augment.mean", mean, why), Choice("augment.std", std, "likewise")]


def optimiser(own: list[Choice], count: int) -> list[Choice]:
    """That of the first stage at a lower rate, from which on classes are refined and not found."""
    factor = 0.5 if any(one.value == "sgd" for one in own if one.key == "optim.name") else 0.6
    found = []
    for one in own:
        if one.key == "optim.lr":
            about = f"{factor:g} of the first stage's, which has found the classes"
            one = Choice(one.key, float(f"{factor * one.value:.3g}"), about)
        found.append(one)
    warm = min(1500, count // 20)
    return [
        *found,
        Choice("optim.warmup", warm, "a twentieth of the iterations, at most the published 1,500"),
    ]


def evaluation(facts: AdaptFacts, source_parts: list[str]) -> list[Choice]:
    """Held-out labelled images of the target where there are any; else of the source."""
    select = Choice(
        "evaluation.select", "last", "to choose weights by labels of the target would let these in"
    )
    if facts.measured:
        return [*plain.evaluation(facts.target), select]
    if not source_parts:
        return [Choice("evaluation.protocol", "none", "no held-out image of either domain has labels")]
    about = f"no held-out image of the target has labels: {source_parts[0]} of the source is measured"
    sizes_of = plain.evaluation(facts.source)
    rest = [one for one in sizes_of if one.key in ("evaluation.window", "evaluation.batch")]
    return [
        Choice("evaluation.protocol", "miou", "one confusion matrix over all labelled pixels of a part"),
        Choice("evaluation.part", "auto", about),
        *rest,
        select,
    ]
