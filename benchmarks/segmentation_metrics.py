"""Time and memory of scoring and of reading large images, each against the naive or public form in the same run.

    python benchmarks/segmentation_metrics.py                       all parts
    python benchmarks/segmentation_metrics.py --part confusion --json

confusion: counts of one 512 x 1024 image with 19 classes, against torchmetrics (with and without its checks of values;
    where torchmetrics is not installed, against its documented form, written here) and against a mask with bincount.
boundary: boundary IoU of the same image, against one erosion per class with max pooling.
windows: one large image in overlapping windows, against one map of scores of the whole image; the network is nearly
    free, so that what is measured is the reading itself.

Times are medians over rounds in which the arms take turns; only ratios within one run mean something. Memory is the
growth of the peak resident size, each arm in a fresh process.
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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlabel.evaluation.boundary import BoundaryIoU, thickness
from leanlabel.evaluation.segmentation import Confusion
from leanlabel.evaluation.sliding import segment_image

CLASSES = 19
IGNORE = 255
WINDOW_ARMS = ("one map of scores", "library")
Arm = Callable[[], Tensor]


def maps(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Labels in rectangles, a tenth of the pixels ignored, and predictions of which a tenth is wrong; int64."""
    g = torch.Generator().manual_seed(0)
    small = torch.randint(0, CLASSES, (-(-height // 32), -(-width // 32)), generator=g)
    label = small.repeat_interleave(32, 0).repeat_interleave(32, 1)[:height, :width]
    other = torch.randint(0, CLASSES, (height, width), generator=g)
    guess = torch.where(torch.rand(height, width, generator=g) < 0.1, other, label)
    return label.masked_fill(torch.rand(height, width, generator=g) < 0.1, IGNORE), guess


def masked_count(label: Tensor, guess: Tensor) -> Tensor:
    """The usual form: select by a mask, number the pairs in int64, count."""
    kept = label != IGNORE
    pairs = label[kept] * CLASSES + guess[kept]
    return torch.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def checked_count(label: Tensor, guess: Tensor) -> Tensor:
    """What torchmetrics documents: look for unexpected values in both tensors, then count."""
    for ids in (label, guess):
        if len(torch.unique(ids)) > CLASSES + 1:
            raise RuntimeError("more values than classes")
    return masked_count(label.flatten(), guess.flatten())


def public_count(label: Tensor, guess: Tensor) -> dict[str, Arm]:
    """torchmetrics with its defaults and without its checks, or its form where it is not installed."""
    try:
        from torchmetrics.classification import MulticlassConfusionMatrix
    except ImportError:
        return {"checked, as torchmetrics documents": lambda: checked_count(label, guess)}

    def arm(checked: bool) -> Arm:
        def count() -> Tensor:
            metric.reset()
            metric.update(guess, label)
            return metric.confmat

        metric = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE, validate_args=checked)
        return count

    return {"torchmetrics": arm(True), "torchmetrics, unchecked": arm(False)}


def counting_arms(height: int, width: int) -> dict[str, Arm]:
    label, guess = maps(height, width)
    narrow = label.to(torch.uint8), guess.to(torch.uint8)

    def library(label: Tensor, guess: Tensor) -> Arm:
        def count() -> Tensor:
            counts.reset()
            counts.add(label, guess, IGNORE)
            return counts.table

        counts = Confusion(CLASSES)
        return count

    return public_count(label, guess) | {
        "mask and bincount": lambda: masked_count(label, guess),
        "library, int64": library(label, guess),
        "library, uint8": library(*narrow),
    }


def eroded_masks(label: Tensor, guess: Tensor) -> Tensor:
    """Intersections and unions (2, K) from the masks of every class, eroded one by one."""
    d, found = thickness(*label.shape), torch.zeros(2, CLASSES, dtype=torch.int64)
    for k in range(CLASSES):
        regions = []
        for ids in (label, guess):
            mask = (ids == k).float()[None, None]
            outside = F.pad(1 - mask, (d, d, d, d), value=1.0)
            near = F.max_pool2d(F.max_pool2d(outside, (2 * d + 1, 1), 1), (1, 2 * d + 1), 1)
            regions.append((ids == k) & (near[0, 0] > 0))
        found[0, k], found[1, k] = (regions[0] & regions[1]).sum(), (regions[0] | regions[1]).sum()
    return found


def boundary_arms(height: int, width: int) -> dict[str, Arm]:
    label, guess = maps(height, width)
    label = label.masked_fill(label == IGNORE, 0)  # the naive form has no place for ignored pixels
    narrow = label.to(torch.uint8), guess.to(torch.uint8)

    def library() -> Tensor:
        counts = BoundaryIoU(CLASSES)
        counts.add(*narrow)
        return torch.stack(counts.total())

    return {"an erosion per class": lambda: eroded_masks(label, guess), "library": library}


class Scores(NamedTuple):
    logits: Tensor


class Cheap(nn.Module):
    """Logits at stride 8 for next to nothing."""

    stride = 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, CLASSES, 1)

    def forward(self, x: Tensor) -> Scores:
        return Scores(self.head(F.avg_pool2d(x, 8)))


@torch.no_grad()
def whole_map(network: nn.Module, image: Tensor, window: int) -> Tensor:
    """The usual form: scores of the whole image are added up, and divided by how often each pixel was read."""
    step, (height, width) = window // 2, image.shape[1:]
    total, times = torch.zeros(1, CLASSES, height, width), torch.zeros(1, 1, height, width)
    for top in range(0, max(height - window, 0) + step, step):
        for left in range(0, max(width - window, 0) + step, step):
            y, x = min(top, height - window), min(left, width - window)
            part = (slice(None), slice(None), slice(y, y + window), slice(x, x + window))
            logits = network(image[None][part]).logits
            total[part] += F.interpolate(
                logits, (window, window), mode="bilinear", align_corners=False
            ).softmax(1)
            times[part] += 1
    return (total / times).argmax(1)[0]


def window_arms(side: int, window: int) -> dict[str, Arm]:
    network = Cheap().eval()
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))

    def library() -> Tensor:
        found = segment_image(network, image, window=(window, window), weighting="flat")
        return found.classes.long()

    return dict(zip(WINDOW_ARMS, (lambda: whole_map(network, image, window), library), strict=True))


def measure(arms: dict[str, Arm], rounds: int, base: str) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    found: dict[str, Tensor] = {arm: run() for arm, run in arms.items()}
    for _ in range(rounds):
        for arm, run in arms.items():
            start = time.perf_counter()
            run()
            times[arm].append(time.perf_counter() - start)
    seconds = {arm: statistics.median(own) for arm, own in times.items()}
    last = list(arms)[-1]
    return {
        arm: {
            "seconds": seconds[arm],
            "speed_ratio": seconds[base] / seconds[arm],
            "share_that_differs": float((found[arm] != found[last]).double().mean()),
        }
        for arm in arms
    }


def made(part: str, args: argparse.Namespace) -> dict[str, Arm]:
    if part == "windows":
        return window_arms(args.side, args.window)
    return (counting_arms if part == "confusion" else boundary_arms)(args.height, args.width)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["confusion", "boundary", "windows"], action="append")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--side", type=int, default=3000, help="of the image read in windows")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        window_arms(600, args.window)[args.memory_of]()
        run = window_arms(args.side, args.window)[args.memory_of]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        return

    names = ("height", "width", "side", "window", "threads")
    result: dict[str, Any] = {name: getattr(args, name) for name in names} | {"classes": CLASSES, "parts": {}}
    parts = args.part or ["confusion", "boundary", "windows"]
    memory: dict[str, float] = {}
    for arm in WINDOW_ARMS if "windows" in parts else ():
        # First of all: a process starts with the peak of the one that started it.
        command = [sys.executable, __file__, "--memory-of", arm]
        command += [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
        done = subprocess.run(command, check=True, capture_output=True)
        memory[arm] = float(done.stdout)
    for part in parts:
        arms = made(part, args)
        rounds = {"confusion": args.rounds, "boundary": max(1, args.rounds // 5), "windows": 1}[part]
        rows = measure(arms, rounds, next(iter(arms)))
        if part == "windows":
            for arm, row in rows.items():
                row["memory_mib"] = memory[arm]
                row["memory_ratio"] = memory[arm] / memory[WINDOW_ARMS[0]]
        result["parts"][part] = rows
    if args.json:
        print(json.dumps(result))
        return
    print(", ".join(f"{name} {result[name]}" for name in names), "; ratios to the first arm of each part")
    for part, rows in result["parts"].items():
        print(f"{part:<38}{'ms':>10}{'speed':>9}{'MiB':>8}{'memory':>8}{'differs':>10}")
        for arm, row in rows.items():
            memory = (
                f"{row['memory_mib']:>8.0f}{row['memory_ratio']:>8.3f}" if "memory_mib" in row else " " * 16
            )
            print(
                f"  {arm:<36}{row['seconds'] * 1e3:>10.2f}{row['speed_ratio']:>9.2f}{memory}"
                f"{row['share_that_differs']:>10.1e}"
            )


if __name__ == "__main__":
    main()
