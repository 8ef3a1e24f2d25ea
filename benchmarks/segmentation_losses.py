"""Time and memory of the locally adaptive loss: against cross-entropy, an unfolded form, and a step of DeepLab.

    python benchmarks/segmentation_losses.py                          two crops of 321 x 321 with 21 classes
    python benchmarks/segmentation_losses.py --network resnet50 --json

Times of losses are forward and backward passes, medians over rounds in which the arms take turns; the step of DeepLab
is forward, cross-entropy at 1/8 resolution and backward, without the optimiser. Only ratios within one run mean
something. Memory is the growth of the peak resident size over one pass, each arm in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import math
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

from leanlabel.losses.locally_adaptive import locally_adaptive
from leanlabel.losses.overlap import lovasz_softmax, soft_dice
from leanlabel.losses.pixel import align, max_pooling_loss, ohem
from leanlabel.models.segmenters import SegmenterSettings, build_segmenter

CLASSES = 21
Loss = Callable[[Tensor, Tensor], Tensor]


def unfolded(scores: Tensor, labels: Tensor, n: int, sigma: float = 1.0, k: float = 5.0) -> Tensor:
    """The usual form: all windows are laid out side by side, n^2 times the scores."""
    batch, classes, height, width = scores.shape
    windows = F.unfold(scores, n, padding=n // 2).view(batch, classes, n * n, height, width)
    # Padding is 0: labels are shifted by one, so that nothing outside is of a class.
    around = F.unfold(labels[:, None].float() + 1, n, padding=n // 2).view(batch, 1, n * n, height, width)
    steps = (torch.arange(n) - n // 2).abs()
    distance = torch.maximum(steps[:, None], steps).flatten().to(scores.dtype)
    weights = torch.exp(-(distance**2) / (2 * sigma**2)).view(1, 1, -1, 1, 1)
    share = (around == labels[:, None, None] + 1) * weights
    pooled = (windows * share).sum(2) / share.sum(2).clamp(min=1e-20)
    eps = F.cross_entropy(pooled, labels, reduction="none")[labels >= 0]
    return (eps**k).mean() ** (1 / k)


def arm(name: str) -> Loss:
    """The loss of a name such as "windows of 3", "unfolded 7" or "cross-entropy"."""
    kind, _, rest = name.partition(" ")
    if kind == "unfolded":
        return lambda scores, labels: unfolded(scores, labels, int(rest))
    if kind == "windows":
        words = rest.removeprefix("of ").split(", ")
        settings: dict[str, Any] = {"n": int(words[0])}
        for word in words[1:]:
            settings |= {"probs": {"pool": "probs"}, "all": {"anchor": "all"}, "stride 2": {"stride": 2}}[
                word
            ]
        return lambda scores, labels: locally_adaptive(scores, labels, **settings)
    others: dict[str, Loss] = {
        "cross-entropy": F.cross_entropy,
        "ohem": lambda scores, labels: ohem(scores, labels, min_kept=0.25),
        "max-pooling": max_pooling_loss,
        "dice": soft_dice,
        "lovasz": lovasz_softmax,
    }
    return others[name]


WINDOWS = ["windows of 1", "windows of 3", "windows of 5", "windows of 7"]
VARIANTS = ["windows of 3, probs", "windows of 3, all", "windows of 3, stride 2"]
OTHERS = ["ohem", "max-pooling", "dice", "lovasz"]
MEMORY = ["cross-entropy", "windows of 3", "unfolded 3", "windows of 7", "unfolded 7"]


def inputs(side: int, batch: int) -> tuple[Tensor, Tensor]:
    """Random scores and labels that come in patches, as objects do; a border is ignored."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(batch, CLASSES, side, side, generator=generator)
    patches = torch.randint(0, CLASSES, (batch, 1, 12, 12), generator=generator).float()
    labels = F.interpolate(patches, (side, side)).long()[:, 0]
    labels[:, : side // 16] = -100
    return scores.requires_grad_(), labels


def step(loss: Loss, scores: Tensor, labels: Tensor) -> tuple[float, Tensor, Tensor]:
    """Seconds of one forward and backward pass, the loss, and the gradient of the scores."""
    start = time.perf_counter()
    value = loss(scores, labels)
    (gradient,) = torch.autograd.grad(value, scores)
    return time.perf_counter() - start, value.detach(), gradient


def measure_memory(name: str, side: int, batch: int) -> float:
    """Growth of the peak resident size in MiB over one pass, in this (fresh) process."""
    step(arm(name), *inputs(16, 1))
    given = inputs(side, batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(arm(name), *given)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def medians(arms: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median seconds of each arm over rounds in which they take turns; the first does not count."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, run in arms.items():
            seconds = run()
            if turn:
                times[name].append(seconds)
    return {name: statistics.median(found) for name, found in times.items()}


def compare_losses(names: list[str], side: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each loss at a size, and times cross-entropy."""
    given = inputs(side, batch)
    found = medians({name: (lambda name=name: step(arm(name), *given)[0]) for name in names}, rounds)
    return {
        name: {"seconds": seconds, "times_cross_entropy": seconds / found["cross-entropy"]}
        for name, seconds in found.items()
    }


def compare_step(network: str, side: int, batch: int, rounds: int) -> dict[str, float]:
    """Seconds of a step of DeepLab-v2, of cross-entropy and of the locally adaptive loss at its 1/8 resolution."""
    settings = {"name": "deeplab-v2", "encoder": network, "output_stride": 8}
    net = build_segmenter(SegmenterSettings.model_validate(settings), CLASSES)
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))
    _, labels = inputs(side, batch)
    thin = align(net(images).logits.detach(), labels, "feature")[1]

    def whole() -> float:
        start = time.perf_counter()
        net.zero_grad()
        F.cross_entropy(net(images).logits, thin).backward()
        return time.perf_counter() - start

    scores = net(images).logits.detach().requires_grad_()
    arms: dict[str, Callable[[], float]] = {"step": whole}
    for name in ["cross-entropy", *WINDOWS[1:]]:
        arms[name] = lambda name=name: step(arm(name), scores, thin)[0]
    found = medians(arms, rounds)
    plain = found["step"] - found["cross-entropy"]
    shares = {f"{name}, share of the step": found[name] / (plain + found[name]) for name in WINDOWS[1:]}
    return {**found, **shares}


def agreement(side: int, batch: int) -> dict[str, float]:
    """Largest relative differences of value and gradient from the unfolded form, in float64."""
    scores, labels = inputs(side, batch)
    scores = scores.detach().double().requires_grad_()
    worst = {"value": 0.0, "gradient": 0.0}
    for n in (3, 7):
        (_, one, first), (_, two, second) = (
            step(arm(name), scores, labels) for name in (f"windows of {n}", f"unfolded {n}")
        )
        worst["value"] = max(worst["value"], float((one - two).abs() / two))
        worst["gradient"] = max(worst["gradient"], float((first - second).norm() / second.norm()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=321, help="side of an image in pixels")
    parser.add_argument("--network", default="resnet18", choices=["resnet18", "resnet50", "resnet101"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=MEMORY, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(measure_memory(args.memory_of, args.side, args.batch))
        return

    memory: dict[str, dict[str, float]] = {}
    for name in MEMORY:
        command = [sys.executable, __file__, "--memory-of", name, "--side", str(args.side)]
        command += ["--batch", str(args.batch), "--threads", str(args.threads)]
        memory[name] = {"mib": float(subprocess.run(command, check=True, capture_output=True).stdout)}
    for n in (3, 7):
        whole = memory[f"unfolded {n}"]["mib"]
        memory[f"windows of {n}"]["times_unfolded"] = (
            memory[f"windows of {n}"]["mib"] / whole if whole else math.nan
        )
    small = -(-args.side // 8)
    names = ["cross-entropy", *WINDOWS, *VARIANTS, *OTHERS, "unfolded 3"]
    result = {
        "batch": args.batch,
        "classes": CLASSES,
        "threads": args.threads,
        "sizes": {
            str(args.side): compare_losses(names, args.side, args.batch, args.rounds),
            str(small): compare_losses(names, small, args.batch, 3 * args.rounds),
        },
        "memory": memory,
        "network": args.network,
        "step": compare_step(args.network, args.side, args.batch, max(3, args.rounds // 2)),
        "difference": agreement(64, args.batch),
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"batch {args.batch}, {CLASSES} classes, {args.threads} threads")
    for side, rows in result["sizes"].items():
        print(f"\n{side} x {side:<18}{'seconds':>10}{'times cross-entropy':>22}")
        for name, row in rows.items():
            print(f"{name:<24}{row['seconds']:>10.4f}{row['times_cross_entropy']:>22.2f}")
    print(f"\n{args.side} x {args.side:<18}{'MiB':>10}{'times unfolded':>22}")
    for name, row in memory.items():
        print(f"{name:<24}{row['mib']:>10.0f}{row.get('times_unfolded', math.nan):>22.3f}")
    print(f"\nDeepLab-v2, {args.network}, loss at 1/8")
    for name, value in result["step"].items():
        print(f"{name:<36}{value:>10.4f}")
    print(f"\nrelative difference from the unfolded form: {result['difference']}")


if __name__ == "__main__":
    main()
