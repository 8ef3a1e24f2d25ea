"""Time and memory of the two-view contrast, forward and backward, against the form with four matrices.

    python benchmarks/contrast.py                       time and memory at N = 7650, D = 256
    python benchmarks/contrast.py --size 256 --json     another size, machine-readable
    python benchmarks/contrast.py --size 34493 --width 128 --arms stream

Times are medians over rounds in which the arms take turns; only ratios within one run mean something.
Memory is the growth of the peak resident size over one loss and gradient, each arm in a fresh process.
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

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel.losses.contrastive import bf16_products, two_view_contrast


def four_matrices(first: Tensor, second: Tensor, tau: float) -> Tensor:
    """The usual form: four N x N matrices of exponentials, all kept for the backward pass."""
    a, b = F.normalize(first), F.normalize(second)

    def half(x: Tensor, y: Tensor) -> Tensor:
        within, between = torch.exp(x @ x.t() / tau), torch.exp(x @ y.t() / tau)
        return -torch.log(between.diag() / (within.sum(1) + between.sum(1) - within.diag()))

    return (half(a, b) + half(b, a)).mean() / 2


def stream(first: Tensor, second: Tensor, tau: float) -> Tensor:
    return two_view_contrast(first, second, tau=tau)


def stream_bf16(first: Tensor, second: Tensor, tau: float) -> Tensor:
    with bf16_products():
        return two_view_contrast(first, second, tau=tau)


ARMS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "four_matrices": four_matrices,
    "stream": stream,
    "stream_bf16": stream_bf16,
}


def views(size: int, width: int) -> tuple[Tensor, Tensor]:
    """Two noisy views of the same rows, as an encoder gives them."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(size, width, generator=generator)
    first, second = (shared + 0.5 * torch.randn(size, width, generator=generator) for _ in range(2))
    return first.requires_grad_(), second.requires_grad_()


def step(arm: str, first: Tensor, second: Tensor, tau: float) -> tuple[float, Tensor]:
    """Seconds of one loss and gradient, and the gradient of the first view."""
    start = time.perf_counter()
    loss = ARMS[arm](first, second, tau)
    gradient, _ = torch.autograd.grad(loss, (first, second))
    return time.perf_counter() - start, gradient


def measure_memory(arm: str, size: int, width: int, tau: float) -> float:
    """Growth of the peak resident size in MiB over one step, in this (fresh) process."""
    step(arm, *views(64, width), tau)
    first, second = views(size, width)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(arm, first, second, tau)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=7650, help="samples N")
    parser.add_argument("--width", type=int, default=256, help="features D")
    parser.add_argument("--tau", type=float, default=0.4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--skip", nargs="*", choices=["time", "memory"], default=[])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=list(ARMS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(measure_memory(args.memory_of, args.size, args.width, args.tau))
        return

    result: dict[str, object] = {
        "size": args.size,
        "width": args.width,
        "tau": args.tau,
        "threads": args.threads,
    }
    rows = {arm: {} for arm in args.arms}
    if "memory" not in args.skip:
        for arm in args.arms:
            command = [sys.executable, __file__, "--memory-of", arm, "--threads", str(args.threads)]
            command += ["--size", str(args.size), "--width", str(args.width), "--tau", str(args.tau)]
            rows[arm]["memory_mib"] = float(subprocess.run(command, check=True, capture_output=True).stdout)
    if "time" not in args.skip:
        first, second = views(args.size, args.width)
        times: dict[str, list[float]] = {arm: [] for arm in args.arms}
        gradients = {arm: step(arm, first, second, args.tau)[1] for arm in args.arms}
        for _ in range(args.rounds):
            for arm in args.arms:
                times[arm].append(step(arm, first, second, args.tau)[0])
        reference = gradients["stream"] if "stream" in gradients else gradients[args.arms[0]]
        for arm in args.arms:
            rows[arm]["seconds"] = statistics.median(times[arm])
            rows[arm]["gradient_error"] = float((gradients[arm] - reference).norm() / reference.norm())
    base = rows[args.arms[0]]
    for arm in args.arms:
        for key, ratio in (("seconds", "speed_ratio"), ("memory_mib", "memory_ratio")):
            if key in rows[arm]:
                pair = (base[key], rows[arm][key]) if key == "seconds" else (rows[arm][key], base[key])
                rows[arm][ratio] = pair[0] / pair[1] if pair[1] else float("nan")
    result["arms"] = rows
    if args.json:
        print(json.dumps(result))
        return
    print(f"N = {args.size}, D = {args.width}, tau = {args.tau}, ratios to {args.arms[0]}")
    print(f"{'arm':<14}{'seconds':>10}{'speed':>8}{'MiB':>9}{'memory':>8}{'gradient error':>16}")
    for arm, row in rows.items():
        cells = [("seconds", 10, 4), ("speed_ratio", 8, 2), ("memory_mib", 9, 0), ("memory_ratio", 8, 3)]
        text = "".join(f"{row[key]:>{w}.{p}f}" if key in row else " " * w for key, w, p in cells)
        error = f"{row['gradient_error']:>16.1e}" if "gradient_error" in row else ""
        print(f"{arm:<14}{text}{error}")


if __name__ == "__main__":
    main()
