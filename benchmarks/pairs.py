"""Time to crop images with their masks at random on the CPU: against kornia, and against resizing before cropping.

    python benchmarks/pairs.py                                 all chains
    python benchmarks/pairs.py --chains camvid-321 --rounds 15 --json

The chain is a random resize by 0.5 to 2, a crop, a mirror, colour jitter, normalisation; all arms start from a uint8
batch and end with normalised float32 images and their masks, kornia's time includes the conversion. kornia is measured
in two forms: *affine*, a random scale and then a crop with padding, which is the same chain, and *resized crop*, which
can neither pad nor leave the image's edges and hence does less. Both resize without antialiasing, which is less work.
*resize first* is the usual loader: the whole image and the whole mask are resized, then the window is cut; the colours
are left out of that comparison, on both sides. Times are medians over rounds in which the arms take turns; only ratios
within one run mean something.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leanlabel.augment.pairs import PairSettings, random_pair, standardised
from leanlabel.rng import draw

# Batch of uint8 images and masks, iteration -> crops of both.
Arm = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

JITTER = (0.5, 0.5, 0.5, 0.2)
SCALE = (0.5, 2.0)
CLASSES = 11
# Name -> images in a batch, their height and width, height and width of the crop.
CHAINS: dict[str, tuple[int, tuple[int, int], tuple[int, int]]] = {
    "scenes-96": (32, (96, 128), (96, 128)),
    "camvid-96": (16, (360, 480), (96, 128)),
    "camvid-321": (8, (360, 480), (321, 321)),
    "streets-512": (4, (512, 1024), (321, 321)),
}


def library(settings: PairSettings) -> Arm:
    def run(images: Tensor, masks: Tensor, t: int) -> tuple[Tensor, Tensor]:
        pair = random_pair(images, masks, settings, draw(0, "pair", t, torch.arange(len(images))))
        assert pair.masks is not None
        return pair.images, pair.masks

    return run


def kornia(settings: PairSettings, form: str, native: tuple[int, int]) -> Arm:
    """The same operations in the same order, with masks.

    Raises:
        ImportError: kornia is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kornia.augmentation as parts
        from kornia.constants import DataKey, Resample

    crop = settings.crop or native
    if form == "affine":
        window: list[Any] = [
            parts.RandomAffine(0.0, scale=settings.scale, p=1.0),
            parts.RandomCrop(crop, pad_if_needed=True, p=1.0),
        ]
    else:
        area, whole = crop[0] * crop[1], native[0] * native[1]
        low, high = (min(1.0, area / whole / scale**2) for scale in reversed(settings.scale))
        ratio = crop[1] / crop[0]
        window = [parts.RandomResizedCrop(crop, scale=(low, high), ratio=(ratio, ratio), p=1.0)]
    chain = parts.AugmentationSequential(
        *window,
        parts.RandomHorizontalFlip(p=settings.flip),
        parts.ColorJitter(*settings.jitter, p=settings.jitter_probability),
        parts.Normalize(torch.tensor(settings.mean), torch.tensor(settings.std)),
        data_keys=["input", "mask"],
        same_on_batch=False,
        extra_args={DataKey.MASK: {"resample": Resample.NEAREST, "align_corners": None}},
    )

    def run(images: Tensor, masks: Tensor, t: int) -> tuple[Tensor, Tensor]:
        crops, labels = chain(images.float() / 255, masks.float()[:, None])
        return crops, labels[:, 0].byte()

    return run


def resize_first(settings: PairSettings) -> Arm:
    """Resize image and mask by the sample's factor, pad, cut the window, mirror."""
    height, width = settings.crop or (1, 1)
    low, high = settings.scale

    def run(images: Tensor, masks: Tensor, t: int) -> tuple[Tensor, Tensor]:
        numbers = draw(0, "pair", t, torch.arange(len(images))).uniform(4).tolist()
        crops = torch.empty(len(images), images.shape[1], height, width)
        labels = torch.full((len(images), height, width), 255, dtype=torch.uint8)
        for row, (factor, down, across, mirror) in enumerate(numbers):
            new = [round(side * (low + (high - low) * factor)) for side in images.shape[2:]]
            image = F.interpolate(images[row, None].float() / 255, new, mode="bilinear", antialias=True)
            mask = F.interpolate(masks[row, None, None], new, mode="nearest-exact")
            border = (0, max(0, width - new[1]), 0, max(0, height - new[0]))
            image, mask = F.pad(image, border), F.pad(mask, border, value=255)
            top = int(down * (image.shape[2] - height + 1))
            left = int(across * (image.shape[3] - width + 1))
            window = (slice(top, top + height), slice(left, left + width))
            image, mask = image[0, :, *window], mask[0, 0, *window]
            crops[row] = image.flip(2) if mirror < settings.flip else image
            labels[row] = mask.flip(1) if mirror < settings.flip else mask
        return standardised(crops, settings.mean, settings.std, out=crops), labels

    return run


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of all arms for one chain, and their ratios."""
    count, native, crop = CHAINS[name]
    settings = PairSettings(crop=crop, scale=SCALE, jitter=JITTER)
    geometry = PairSettings(crop=crop, scale=SCALE)
    images = torch.randint(256, (count, 3, *native), dtype=torch.uint8)
    masks = torch.randint(CLASSES, (count, *native), dtype=torch.uint8)
    arms = {
        "library": library(settings),
        "kornia, affine": kornia(settings, "affine", native),
        "kornia, resized crop": kornia(settings, "resized crop", native),
        "window first, no colours": library(geometry),
        "resize first, no colours": resize_first(geometry),
    }
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for t in range(rounds + 1):
        for arm, run in arms.items():
            start = time.perf_counter()
            run(images, masks, t)
            if t:  # the first round warms up
                times[arm].append(time.perf_counter() - start)
    seconds = {arm: statistics.median(row) for arm, row in times.items()}
    return {
        "images": count,
        "native": native,
        "crop": crop,
        "seconds": seconds,
        "kornia_affine_times_library": seconds["kornia, affine"] / seconds["library"],
        "kornia_resized_crop_times_library": seconds["kornia, resized crop"] / seconds["library"],
        "resize_first_times_window_first": seconds["resize first, no colours"]
        / seconds["window first, no colours"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chains", nargs="+", choices=list(CHAINS), default=list(CHAINS))
    parser.add_argument("--rounds", type=int, default=9)
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
        ours = row["seconds"]["library"]
        print(
            f"  {name:<14}{row['images']:3d} images {ours * 1e3:8.1f} ms, {ours / row['images'] * 1e3:6.2f} ms each"
            f"   kornia {row['kornia_affine_times_library']:6.2f} x, its resized crop"
            f" {row['kornia_resized_crop_times_library']:6.2f} x;  without colours"
            f" {row['seconds']['window first, no colours'] * 1e3:7.1f} ms, resizing first"
            f" {row['resize_first_times_window_first']:6.2f} x"
        )


if __name__ == "__main__":
    main()
