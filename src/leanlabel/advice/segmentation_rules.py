"""Rules for segmentation: from measured facts to settings of a supervised training, each with its reason.

"Published" means the settings of DeepLab's authors and of the packaged recipes. Where a rule draws a line between such
values, the line is a judgement and not a result.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from leanlabel.advice.recipe import Choice
from leanlabel.advice.segmentation_cost import expected_cost
from leanlabel.advice.segmentation_facts import DenseFacts
from leanlabel.advice.ssl_rules import power_of_two
from leanlabel.augment.image import IMAGENET_MEAN, IMAGENET_STD

FEW = 20
"""Training images below which a network learns little that holds elsewhere."""
SMALLEST = 8
"""Smallest side of an image, in pixels, that any network here reads."""
CPU_SIDES = 128, 192
"""Shorter side of images without a GPU: usual, and where objects would vanish otherwise."""
LEAST_OBJECT = 4
"""Side of a square as large as an object, in pixels, below which it is hardly seen."""
CPU_CROP = 128, 192
CPU_SECONDS = 360.0
"""Longest training without a GPU."""
GPU_CROP = 512, 768
"""Longest side of a crop: usual, and where objects are large."""
AROUND = 4
"""Times that a crop is as long as a usual object of the rarest classes, at least."""
TAIL = 20.0
"""Times that the largest class has the pixels of the smallest, from which on classes are weighted."""
BACKGROUND = 0.9
"""Share of the pixels from which on a class is background."""
EPOCHS = 100
MOST_STEPS = 80_000
ROOM = 0.8
"""Share of the memory that a training may take."""
CPU_ROOM = 4.0
"""GiB that a training without a GPU may take."""
WHOLE_PIXELS = 1 << 22
"""Pixels that are read at a time in evaluation."""


def resize(facts: DenseFacts) -> Choice:
    """Shrink images on reading, where a run without a GPU would take hours, or objects would not fit into a crop."""
    key, short, small = "data.resize", facts.short, facts.smallest_object
    if facts.gpu:
        wanted = _around(facts)
        if wanted <= GPU_CROP[1]:
            return Choice(key, None, "images are read at their own size; scores are of that size, too")
        found = max(64, short * GPU_CROP[1] // wanted)
        return Choice(
            key,
            found,
            f"objects of the rarest classes are about {facts.usual_object:.0f} pixels long: a crop of "
            f"{GPU_CROP[1]} holds their surroundings only in smaller images; scores are of that size, too",
        )
    usual, most = CPU_SIDES
    if short <= usual:
        return Choice(key, None, f"shorter side of {short} pixels, at most {usual}: read as they are")
    kept = usual if small is None else math.ceil(short * LEAST_OBJECT / small.side)
    found = min(short, most, max(usual, kept))
    if found == short:
        return Choice(key, None, f"shorter side of {short} pixels: read as they are, small objects need them")
    about = f"shorter side of {short} pixels, but no GPU here: shrunk so that a run takes minutes"
    if found > usual and small is not None:
        about += f", and not to {usual}, as objects of {small.name} have about {small.height:.0f} x {small.width:.0f}"
    return Choice(key, found, f"{about}; scores are of that size, too; with a GPU: null")


def as_read(facts: DenseFacts, shorter: int | None) -> DenseFacts:
    """The facts of images whose shorter side is scaled down to so many pixels."""
    if shorter is None or shorter >= facts.short:
        return facts
    by = shorter / facts.short
    return dataclasses.replace(
        facts,
        height=round(facts.height * by),
        width=round(facts.width * by),
        smallest=min(facts.smallest, shorter),
        largest=round(facts.largest * by),
        objects=tuple(
            dataclasses.replace(one, height=one.height * by, width=one.width * by) for one in facts.objects
        ),
    )


def crop(facts: DenseFacts) -> Choice:
    """Whole images where they are small; else windows that hold a usual object of the rarest classes several times.

    Sides are multiples of the coarsest map's stride: 8 without a GPU, 16 with one.
    """
    stride = 16 if facts.gpu else 8
    wanted = _around(facts)
    usual, large = GPU_CROP
    limit = (CPU_CROP if facts.height <= facts.width else CPU_CROP[::-1]) if not facts.gpu else (usual, usual)
    if facts.gpu and wanted > usual:
        limit = large, large
    size = [
        max(stride, min(side, most) // stride * stride)
        for side, most in zip((facts.height, facts.width), limit, strict=True)
    ]
    told = f"{facts.width} x {facts.height} pixels" + ("" if facts.one_size else " in the middle")
    whole = size[0] > facts.height - stride and size[1] > facts.width - stride
    if whole:
        about = f"height and width; images of {told} are taken whole, to a multiple of the stride {stride}"
    else:
        about = f"height and width, multiples of the stride {stride}, of images of {told}"
        if not facts.gpu:
            about += "; no more, for want of a GPU"
    if facts.usual_object is not None:
        times = min(size) / facts.usual_object
        about += (
            f"; objects of the rarest classes ({', '.join(one.name for one in facts.objects)}) are about "
            f"{facts.usual_object:.0f} pixels long, {times:.2g} times that fits"
        )
    return Choice("augment.crop", size, about)


def _around(facts: DenseFacts) -> int:
    """Side of a window that holds a usual object of the rarest classes several times, at most the image's."""
    usual = facts.usual_object
    return min(facts.short, GPU_CROP[0] if usual is None else round(AROUND * usual))


def scale(facts: DenseFacts) -> Choice:
    """0.5 to 2 [DeepLab]; less down to where objects vanish, and less without a GPU, whose training is short."""
    small = facts.smallest_object
    if facts.gpu and (small is None or small.side >= 2 * LEAST_OBJECT):
        return Choice("augment.scale", [0.5, 2.0], "smallest and largest factor before the crop; published")
    high = 2.0 if facts.gpu else 1.5
    if small is not None and small.side < LEAST_OBJECT:
        about = (
            f"objects of {small.name} have about {small.height:.0f} x {small.width:.0f} pixels: never smaller"
        )
        return Choice("augment.scale", [1.0, high], about)
    why = (
        "a short training" if not facts.gpu else f"objects of {small.name if small else 'a class'} are small"
    )
    return Choice(
        "augment.scale", [0.75, high], f"smallest and largest factor; published 0.5 to 2, but {why}"
    )


def network(facts: DenseFacts, native: DenseFacts, size: list[int], batch: int) -> list[Choice]:
    """DeepLab-v3+ on a ResNet-50 with a GPU [published], U-Net for small images or objects; two small nets without.

    Args:
        facts: of the images as they are read.
        native: of the images at their own size.
        size: height and width of the crop.
        batch: images per iteration.
    """
    if facts.gpu:
        return _of_gpu(facts, size)
    wanted = wanted_steps(facts, batch)[0]
    seconds = expected_cost(facts, {"name": "small-fcn"}, size, batch).seconds
    name, why = "small-fcn", f"{wanted:,} iterations of {seconds:.2g} s with it take minutes"
    if seconds * wanted > CPU_SECONDS:
        name, why = "tiny-fcn", f"{seconds:.2g} s an iteration with small-fcn would take too long"
    other = _of_gpu(native, [native.short] * 2)[0].value
    more = "" if other == name else f"; with a GPU: {other}"
    return [Choice("model.name", name, f"no GPU here, and {why}{more}")]


def _of_gpu(facts: DenseFacts, size: list[int]) -> list[Choice]:
    small = facts.smallest_object
    if facts.smallest < 64:
        return [Choice("model.name", "small-fcn", f"images of {facts.smallest} pixels a side, below 64")]
    if facts.short < 128 or (small is not None and small.side < 2 * LEAST_OBJECT):
        about = f"images of {facts.short} pixels, below 128: each counts"
        if facts.short >= 128 and small is not None:
            about = f"objects of {small.name} have about {small.height:.0f} x {small.width:.0f} pixels: each counts"
        return [
            Choice("model.name", "unet", about),
            Choice(
                "model.width",
                32,
                f"{facts.trained:,} training images, fewer than 1,000: half of the published",
            )
            if facts.trained < 1000
            else Choice("model.width", 64, f"{facts.trained:,} training images, 1,000 or more; published"),
        ]
    encoder, why = "resnet50", f"{facts.trained:,} training images, 200 or more; published"
    if facts.trained < 200:
        encoder, why = "resnet18", f"{facts.trained:,} training images, fewer than 200"
    found = [
        Choice(
            "model.name",
            "deeplab-v3+",
            f"a GPU, and images of {facts.short} pixels, 128 or more; with a trained SegFormer of the transformers "
            "library at hand: segformer, encoder: folder",
        ),
        Choice(
            "model.encoder", encoder, f"{why}; start from a trained one with fit --from FILE --part backbone"
        ),
    ]
    positions = min(size) // 16
    if positions < 19:
        shrunk = [max(1, positions // 6), max(2, positions // 3), max(3, positions // 2)]
        about = f"published 6, 12, 18, but the last map has {positions} positions a side"
        found.append(Choice("model.dilations", shrunk, about))
    return found


def normalisation(facts: DenseFacts, batch: int) -> Choice:
    """Batch norm from eight images per device on, else within each image."""
    frozen = "; frozen suits a trained backbone (fit --from)" if facts.gpu else ""
    if batch < 8:
        about = f"batches of {batch} on one device, below 8: their statistics would be noise{frozen}"
        return Choice("model.norm", "group", about)
    return Choice("model.norm", "batch", f"batches of {batch} on one device, 8 or more{frozen}")


def wanted_batch(facts: DenseFacts) -> int:
    """Images per iteration where memory allows: a power of two, at most a quarter of the training images, or two."""
    return min(16 if facts.gpu else 8, max(power_of_two(facts.trained / 4), min(2, facts.trained)))


def fitted_batch(facts: DenseFacts, model: dict[str, Any], size: list[int]) -> tuple[int, list[int]]:
    """Largest batch that fits into memory, and the crop, which gives way below four images."""
    batch, room = wanted_batch(facts), ROOM * facts.memory if facts.gpu else CPU_ROOM
    least, size = min(4, batch), list(size)
    while expected_cost(facts, model, size, batch).memory > room:
        if batch > least:
            batch //= 2
        elif max(size) > 64:
            size = [max(16, side * 3 // 4 // 16 * 16) if side == max(size) else side for side in size]
        elif batch > 1:
            batch, least = batch // 2, 1
        else:
            break
    return batch, size


def batch(facts: DenseFacts, found: int, size: list[int], memory: float) -> Choice:
    """Say why a batch has its size."""
    wanted = wanted_batch(facts)
    if found < wanted:
        room = f"{100 * ROOM:.0f} % of {facts.memory:.2g} GiB" if facts.gpu else f"{CPU_ROOM:g} GiB"
        why = f"{2 * found} crops of {size[0]} x {size[1]} would not fit into {room}"
    elif wanted < (16 if facts.gpu else 8):
        why = f"{facts.trained:,} training images: a power of two, at most a quarter, or two"
    else:
        why = f"usual {'with' if facts.gpu else 'without'} a GPU"
    return Choice("data.batch_size", found, f"{why}; about {memory:.2g} GiB")


def wanted_steps(facts: DenseFacts, batch: int) -> tuple[int, str]:
    """A hundred epochs [published: 100 to 400 for hundreds of images, 30 to 60 for ten thousand], within limits."""
    epoch = facts.trained / batch
    least = 2000 if facts.gpu else 400
    found = round(min(MOST_STEPS, max(least, EPOCHS * epoch)))
    return found, f"{found / epoch:.3g} epochs of {facts.trained:,} images; published 30 to 400"


def steps(facts: DenseFacts, batch: int, seconds: float) -> Choice:
    """As many iterations as the number of images asks for; without a GPU as many as minutes allow."""
    found, about = wanted_steps(facts, batch)
    if not facts.gpu and found * seconds > CPU_SECONDS:
        most = max(100, math.floor(CPU_SECONDS / seconds / 100) * 100)
        if most < found:
            epochs = most * batch / facts.trained
            text = f"{epochs:.3g} epochs in about {CPU_SECONDS / 60:.0f} minutes; no GPU here, with one: {found:,}"
            return Choice("steps", most, text)
    return Choice("steps", found, about)


def terms(facts: DenseFacts) -> Choice:
    """Cross-entropy; with Dice for a foreground before a background, with weights of the classes for a long tail."""
    key, plain = "method.terms", {"name": "cross-entropy"}
    if len(facts.present) < 2:
        return Choice(key, [plain], "pixel-wise cross-entropy, one class is there only")
    largest, rarest = facts.present[-1], facts.present[0]
    told = f"{facts.names[largest]} has {_percent(facts.shares[largest])} of the pixels"
    if len(facts.names) == 2 or facts.shares[largest] >= BACKGROUND:
        what = "two classes" if len(facts.names) == 2 else "a background"
        about = f"{what}, {told}: Dice compares overlaps, in which a small foreground counts as much as a large one"
        return Choice(key, [plain, {"name": "dice"}], about)
    tail = (
        f"{told}, {facts.imbalance:.3g} times as many as {facts.names[rarest]} "
        f"({_percent(facts.shares[rarest])})"
    )
    if facts.imbalance < TAIL:
        return Choice(key, [plain], f"{tail}, below {TAIL:g} times: classes are not weighted")
    weighted = {"name": "cross-entropy", "settings": {"class_weights": "inverse-log"}}
    about = (
        f"{tail}, {TAIL:g} times or more: rare classes weigh more; what else helps is a "
        "question for leanlabel compare, such as against the terms dice, ohem or locally-adaptive with k: 2"
    )
    return Choice(key, [weighted], about)


def augmentation(facts: DenseFacts) -> list[Choice]:
    """Mirror and colours; colours only where there are any."""
    flip = Choice("augment.flip", 0.5, "mirrored; set 0 where left and right matter: text, signs, organs")
    if facts.channels != 3:
        return [
            flip,
            Choice(
                "augment.jitter",
                [0.0, 0.0, 0.0, 0.0],
                f"{facts.channels} bands: there is no colour to change",
            ),
            *_statistics(facts, f"per band, measured; {facts.channels} bands"),
        ]
    if facts.grey >= 0.5:
        about = f"{_percent(facts.grey)} of the images are grey: no saturation, no hue"
        jitter = Choice("augment.jitter", [0.3, 0.3, 0.0, 0.0], about)
    else:
        jitter = Choice("augment.jitter", [0.3, 0.3, 0.3, 0.05], "brightness, contrast, saturation, hue")
    return [
        flip,
        jitter,
        Choice("augment.jitter_probability", 0.5, "the other half keeps the colours that will be met"),
        Choice("augment.hue", "fast", "cheaper, nearly the same colours"),
        Choice("augment.mean", list(IMAGENET_MEAN), "of ImageNet, as public backbones expect it"),
        Choice("augment.std", list(IMAGENET_STD), "of ImageNet"),
    ]


def _statistics(facts: DenseFacts, why: str) -> list[Choice]:
    return [Choice("augment.mean", list(facts.mean), why), Choice("augment.std", list(facts.std), why)]


def optimiser(name: str, batch: int) -> list[Choice]:
    """AdamW for small networks; SGD with ten times the rate behind the encoder for DeepLab [published]."""
    poly = Choice("optim.schedule", "poly", "falls to 0 with power 0.9; published")
    if name.startswith("deeplab"):
        rate = 0.01 * min(1.0, batch / 8)
        why = "published" if batch >= 8 else f"0.01 for batches of 8, in proportion for {batch}"
        return [
            Choice("optim.name", "sgd", "published for DeepLab"),
            Choice("optim.lr", float(f"{rate:.4g}"), why),
            Choice("optim.momentum", 0.9, "published"),
            Choice("optim.weight_decay", 5e-4, "published"),
            Choice("optim.head_factor", 10.0, "behind the encoder, which has the rate itself; published"),
            poly,
        ]
    rate = 1e-3 if name == "unet" else 5e-3
    return [
        Choice("optim.name", "adamw", f"{name} learns from the beginning, in few iterations"),
        Choice("optim.lr", rate, "as in the packaged recipes" if rate == 5e-3 else "usual for a U-Net"),
        Choice("optim.weight_decay", 0.01, "of AdamW"),
        Choice("optim.decay_all", False, "biases and normalisation are not pulled to 0"),
        poly,
    ]


def evaluation(facts: DenseFacts) -> list[Choice]:
    """The test part where it has labels, else the validation part; large images in few at a time, or in windows."""
    known = [part for part in facts.parts if part != "train" and part in facts.lacking]
    tests = sorted(part for part in known if part.startswith("test"))
    part = (
        "test" if "test" in known else next(iter(tests), "val" if "val" in known else next(iter(known), None))
    )
    if part is None:
        return [Choice("evaluation.protocol", "none", "no part but the training part has labels")]
    of = f"{facts.parts[part]:,} images"
    why = {"val": f"{of}; there is no labelled test part"}.get(part, f"{of}, never trained on")
    found = [
        Choice("evaluation.protocol", "miou", "one confusion matrix over all labelled pixels of a part"),
        Choice("evaluation.part", part, why),
        Choice("evaluation.further", [one for one in known if one != part], "other labelled parts, if any"),
    ]
    pixels = facts.height * facts.width
    if pixels > WHOLE_PIXELS:
        window = [min(side, 1024) for side in (facts.height, facts.width)]
        about = f"images of {facts.width} x {facts.height} pixels are read in sliding windows, for memory"
        found.append(Choice("evaluation.window", window, about))
    if 8 * pixels > WHOLE_PIXELS:
        at_once = max(1, WHOLE_PIXELS // pixels)
        about = f"images of {facts.width} x {facts.height} pixels read at a time, for memory"
        found.append(Choice("evaluation.batch", at_once, about))
    return found


def engine(facts: DenseFacts, count: int) -> list[Choice]:
    """Where it runs."""
    found = [Choice("engine.accelerator", "auto", "a GPU where there is one")]
    if facts.gpu and not facts.stored:
        found.append(Choice("engine.workers", 8, "processes that decode files while the GPU computes"))
    return [
        *found,
        Choice("engine.checkpoint_every", max(1, count // 20), "iterations; two are kept"),
        Choice("engine.log_every", max(1, count // 1000), "iterations between lines of the log"),
    ]


def settings_of(choices: list[Choice]) -> dict[str, Any]:
    """The section ``model`` that some choices say."""
    return {one.key.removeprefix("model."): one.value for one in choices if one.key.startswith("model.")}


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
