"""Time and memory of contrast with prototypes: against the usual forms, and as a share of a step of DeepLab-v2.

    python benchmarks/prototypes.py                  all parts
    python benchmarks/prototypes.py --part forms     without the step of DeepLab-v2, which takes minutes
    python benchmarks/prototypes.py --crop 256 512 --json

Times of the contrast are forward and backward passes down to the features. *loop over classes* takes the pixels of a
class by a mask, one class after another; *normalise, then cross-entropy* lays out unit rows of all pixels; *mask of
every class, spread* multiplies a copy of the features by every class's mask. Times are medians over rounds in which the
arms take turns; only ratios within one run mean something. The step is one forward and backward pass of one image with
cross-entropy; update and loss are those of its features. Memory is the growth of the peak resident size over one pass,
each arm in a fresh process, beside the sizes of the features and of a map of them for every class.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel.banks.prototypes import Prototypes, class_sums, nearest_labels
from leanlabel.losses.prototype import prototype_contrast
from leanlabel.models.segmenters import SegmenterSettings, build_segmenter

CLASSES = 19
TAU = 100.0
SMALL = (256, 65, 129)
LARGE = (2048, 64, 128)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Means = Callable[[Tensor, Tensor], Tensor]


def loop_over_classes(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    """The pixels of each class by a boolean mask."""
    rows = F.normalize(features, dim=1).permute(0, 2, 3, 1)
    total, count = features.new_zeros(()), 0
    for k in range(CLASSES):
        mask = labels == k
        if mask.any():
            logits = rows[mask] @ prototypes.t() / TAU
            total = total - logits.log_softmax(1)[:, k].sum()
            count += len(logits)
    return total / max(count, 1)


def normalise_rows(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    """Unit rows of all pixels, and cross-entropy of their products, as published."""
    rows = F.normalize(features, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    return F.cross_entropy(rows @ prototypes.t() / TAU, labels.flatten(), ignore_index=-100)


def normalise_maps(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    """The same without moving channels."""
    maps = F.conv2d(F.normalize(features, dim=1), prototypes[:, :, None, None]) / TAU
    return F.cross_entropy(maps, labels, ignore_index=-100)


def library(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    return prototype_contrast(features, labels, prototypes, tau=TAU)


def library_by_class(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    return prototype_contrast(features, labels, prototypes, tau=TAU, balance="class")


LOSSES: dict[str, Loss] = {
    "loop over classes": loop_over_classes,
    "normalise, then cross-entropy of rows": normalise_rows,
    "normalise, then cross-entropy of maps": normalise_maps,
    "library": library,
    "library, every class alike": library_by_class,
}


def indexed(features: Tensor, labels: Tensor) -> Tensor:
    """Means of each class by boolean indexing."""
    rows = F.normalize(features, dim=1).permute(0, 2, 3, 1)
    found = features.new_zeros(CLASSES, features.shape[1])
    for k in range(CLASSES):
        mask = labels == k
        if mask.any():
            found[k] = rows[mask].mean(0)
    return found


def spread(features: Tensor, labels: Tensor) -> Tensor:
    """Means of each class by masks that are as large as the features."""
    maps = F.normalize(features, dim=1)
    found = features.new_zeros(CLASSES, features.shape[1])
    for k in range(CLASSES):
        mask = (labels == k)[:, None].expand_as(maps)
        found[k] = (maps * mask).sum((0, 2, 3)) / mask[:, 0].sum().clamp(min=1)
    return found


def added(features: Tensor, labels: Tensor) -> Tensor:
    """Means of each class by index_add."""
    rows = F.normalize(features, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    slots = labels.flatten().where(labels.flatten() >= 0, CLASSES)
    found = features.new_zeros(CLASSES + 1, features.shape[1]).index_add_(0, slots, rows)
    return found[:CLASSES] / slots.bincount(minlength=CLASSES + 1)[:CLASSES, None].clamp(min=1)


def product(features: Tensor, labels: Tensor) -> Tensor:
    sums, counts = class_sums(features, labels, CLASSES)
    return sums / counts.clamp(min=1)[:, None]


MEANS: dict[str, Means] = {
    "boolean indexing": indexed,
    "mask of every class, spread": spread,
    "index_add of unit rows": added,
    "library": product,
}
MEMORY = ["loop over classes", "normalise, then cross-entropy of rows", "library"]


def inputs(shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Features as behind a ReLU, labels that come in patches with an ignored border, and prototypes."""
    generator = torch.Generator().manual_seed(0)
    width, *size = shape
    features = torch.randn(1, width, *size, generator=generator, dtype=dtype).relu_()
    patches = torch.randint(0, CLASSES, (1, 1, 12, 12), generator=generator).float()
    labels = F.interpolate(patches, size).long()[:, 0]
    labels[:, : size[0] // 16] = -100
    prototypes = 0.7 * F.normalize(torch.randn(CLASSES, width, generator=generator, dtype=dtype))
    return features.requires_grad_(), labels, prototypes


def step(loss: Loss, features: Tensor, labels: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of the features."""
    value = loss(features, labels, prototypes)
    return value.detach(), torch.autograd.grad(value, features)[0]


def medians(arms: dict[str, Callable[[], Any]], rounds: int, ahead: int = 2) -> dict[str, float]:
    """Median seconds of each arm over rounds in which they take turns; the first ones do not count."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + ahead):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            if turn >= ahead:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def forms(shape: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    """Seconds of every form of the loss and of the means of classes."""
    features, labels, prototypes = inputs(shape)
    width, height, across = shape
    where = f"{width} channels, {height} x {across} positions"
    losses = {
        name: lambda loss=loss: step(loss, features, labels, prototypes) for name, loss in LOSSES.items()
    }
    with torch.no_grad():
        fixed = features.detach()
        means = {name: lambda form=form: form(fixed, labels) for name, form in MEANS.items()}
        seconds = medians(means, rounds)
    return [
        {"title": f"contrast, {where}", "seconds": medians(losses, rounds)},
        {"title": f"means of classes, {where}", "seconds": seconds},
    ]


def agreement() -> dict[str, float]:
    """Largest relative differences of the library's forms from the others, in float64."""
    given = inputs((64, 33, 65), torch.float64)
    worst = {"value": 0.0, "gradient": 0.0, "means": 0.0}
    value, gradient = step(library, *given)
    for name in list(LOSSES)[:3]:
        other, slope = step(LOSSES[name], *given)
        worst["value"] = max(worst["value"], float((value - other).abs() / other))
        worst["gradient"] = max(worst["gradient"], float((gradient - slope).norm() / slope.norm()))
    found = product(*given[:2])
    for name in list(MEANS)[:3]:
        other = MEANS[name](given[0].detach(), given[1])
        worst["means"] = max(worst["means"], float((found - other).norm() / other.norm()))
    return worst


def whole_step(crop: list[int], rounds: int) -> dict[str, Any]:
    """Seconds of a step of DeepLab-v2 with ResNet-101, and of update and loss for its features."""
    settings = {"name": "deeplab-v2", "encoder": "resnet101", "output_stride": 8}
    network = build_segmenter(SegmenterSettings.model_validate(settings), CLASSES)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, *crop, generator=generator)
    patches = torch.randint(0, CLASSES, (1, 1, 12, 12), generator=generator).float()
    labels = F.interpolate(patches, crop).long()[:, 0]

    def plain() -> Tensor:
        network.zero_grad(set_to_none=True)
        output = network(images)
        logits = F.interpolate(output.logits, crop, mode="bilinear", align_corners=True)
        F.cross_entropy(logits, labels).backward()
        return output.features.detach()

    features = plain().requires_grad_()
    bank = Prototypes(CLASSES, features.shape[1])

    def update() -> None:
        bank.update(features, nearest_labels(labels, features.shape[2:]))

    def loss() -> None:
        step(
            lambda *given: prototype_contrast(*given, known=bank.known),
            features,
            nearest_labels(labels, features.shape[2:]),
            bank.values,
        )

    small = medians({"update of the prototypes": update, "contrast": loss}, 11)
    seconds = {"forward and backward pass": medians({"": plain}, rounds, ahead=0)[""], **small}
    return {
        "crop": crop,
        "features": list(features.shape),
        "seconds": seconds,
        "share": sum(small.values()) / (sum(small.values()) + seconds["forward and backward pass"]),
    }


def measure_memory(name: str) -> float:
    """Growth of the peak resident size in MiB over one pass, in this (fresh) process."""
    step(LOSSES[name], *inputs((8, 9, 9)))
    given = inputs(LARGE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(LOSSES[name], *given)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("all", "forms", "step"), default="all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1, help="rounds of the step of DeepLab-v2")
    parser.add_argument("--crop", type=int, nargs=2, default=[512, 1024])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=MEMORY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(measure_memory(options.memory_of))
        return

    found: dict[str, Any] = {"threads": options.threads, "classes": CLASSES, "cases": []}
    if options.part in ("all", "forms"):
        # First: a process starts with the peak of the one that started it.
        found["memory"] = {}
        for name in MEMORY:
            command = [sys.executable, __file__, "--memory-of", name, "--threads", str(options.threads)]
            done = subprocess.run(command, check=True, capture_output=True)
            found["memory"][name] = {"mib": float(done.stdout)}
        width, height, across = LARGE
        found["features_mib"] = width * height * across * 4 / 2**20
        found["features_of_every_class_mib"] = CLASSES * found["features_mib"]
        for shape in (SMALL, LARGE):
            found["cases"] += forms(shape, options.rounds)
        found["difference"] = agreement()
    if options.part in ("all", "step"):
        whole = whole_step(options.crop, options.steps)
        title = f"a step of DeepLab-v2, ResNet-101, one image of {options.crop[0]} x {options.crop[1]}"
        found["cases"].append({"title": title, "seconds": whole.pop("seconds")})
        found["step_of_a_network"] = whole
    print(json.dumps(found) if options.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
