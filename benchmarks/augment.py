"""Time to make random views of a batch of images on the CPU, against the same chain in kornia.

    python benchmarks/augment.py                        CIFAR chain at 32, MoCo-v2 chain at 32, 96 and 224 pixels
    python benchmarks/augment.py --chains cifar-32 --rounds 15 --json

Both start from a uint8 batch and end with normalised float32; kornia's time includes the conversion. kornia draws from
torch's global generator and resizes without antialiasing, which is less work. Times are medians over rounds in which
the arms take turns; only ratios within one run mean something.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leanlabel.augment.image import CIFAR, MOCO_V2, ViewSettings, random_view
from leanlabel.rng import draw

# Batch of uint8 images, iteration -> views.
Arm = Callable[[Tensor, int], Tensor]

# Name -> recipe, images in a batch, their side in pixels.
CHAINS: dict[str, tuple[ViewSettings, int, int]] = {
    "cifar-32": (CIFAR, 256, 32),
    "cifar-32-large": (CIFAR, 512, 32),
    "cifar-32-fast-hue": (CIFAR.model_copy(update={"hue": "fast"}), 256, 32),
    "moco-v2-32": (MOCO_V2.model_copy(update={"size": 32}), 256, 32),
    "moco-v2-96": (MOCO_V2.model_copy(update={"size": 96}), 128, 96),
    "moco-v2-224": (MOCO_V2, 64, 256),
}


def library(settings: ViewSettings) -> Arm:
    def run(images: Tensor, t: int) -> Tensor:
        return random_view(images, settings, draw(0, "view", t, torch.arange(len(images))))

    return run


def kornia(settings: ViewSettings) -> Arm:
    """The same operations in the same order; a mirror directly after the window, as here.

    Raises:
        ImportError: kornia is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kornia.augmentation as parts

    size, reach = settings.size, math.ceil(3 * settings.blur_sigma[1])
    steps: list[Any] = [
        parts.RandomResizedCrop((size, size), scale=settings.scale, ratio=settings.ratio),
        parts.RandomHorizontalFlip(p=settings.flip),
        parts.ColorJitter(*settings.jitter, p=settings.jitter_probability),
        parts.RandomGrayscale(p=settings.grey),
    ]
    if settings.blur:
        kernel = (2 * reach + 1, 2 * reach + 1)
        steps.append(
            parts.RandomGaussianBlur(kernel, settings.blur_sigma, border_type="replicate", p=settings.blur)
        )
    steps.append(parts.Normalize(torch.tensor(settings.mean), torch.tensor(settings.std)))
    chain = parts.AugmentationSequential(*steps, same_on_batch=False)

    def run(images: Tensor, t: int) -> Tensor:
        return chain(images.float() / 255)

    return run


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of both arms for one chain, and their ratio."""
    settings, count, side = CHAINS[name]
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    arms = {"library": library(settings), "kornia": kornia(settings)}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for t in range(rounds + 1):
        for arm, run in arms.items():
            start = time.perf_counter()
            run(images, t)
            if t:  # the first round warms up
                times[arm].append(time.perf_counter() - start)
    seconds = {arm: statistics.median(row) for arm, row in times.items()}
    return {
        "images": count,
        "side": side,
        "size": settings.size,
        "seconds": seconds,
        "kornia_times_library": seconds["kornia"] / seconds["library"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chains", nargs="+", choices=list(CHAINS), default=list(CHAINS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    try:
        rows = {name: measure(name, args.rounds) for name in args.chains}
    except ImportError as missing:
        skipped = f"skipped, as the comparison is missing: {missing}"
        print(json.dumps({"skipped": skipped}) if args.json else skipped)
        return
    if args.json:
        print(json.dumps({"threads": args.threads, "chains": rows}))
        return
    print(f"{args.threads} threads, medians of {args.rounds} rounds")
    for name, row in rows.items():
        ours, theirs = row["seconds"]["library"], row["seconds"]["kornia"]
        print(
            f"  {name:<20}{row['images']:4d} images {ours * 1e3:9.1f} ms, {ours / row['images'] * 1e6:7.0f} us each"
            f"   kornia {theirs * 1e3:9.1f} ms  {row['kornia_times_library']:6.2f} x the library"
        )


if __name__ == "__main__":
    main()
