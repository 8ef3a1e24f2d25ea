"""Time and memory of the weighted nearest-neighbour vote against the form with the whole matrix and one-hot labels.

    python benchmarks/knn.py                              50,000 training rows, 10,000 queries, 128 columns
    python benchmarks/knn.py --bank 5000 --queries 1000 --json

Times are medians over rounds in which the arms take turns; only ratios within one run mean something.
Memory is the growth of the peak resident size over one vote, each arm in a fresh process.
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

from leanlabel.evaluation.knn import weighted_knn

Vote = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]
TEMPERATURE = 0.1


def whole_matrix(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int) -> Tensor:
    """The usual form: all similarities at once, and a one-hot row for every neighbour."""
    alike = F.normalize(queries) @ F.normalize(bank).T
    near, found = alike.topk(k)
    votes = F.one_hot(labels[found], classes).float() * (near / TEMPERATURE).exp()[..., None]
    shares = votes.sum(1)
    return shares / shares.sum(1, keepdim=True)


def whole_rows(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int) -> Tensor:
    """The same for 256 queries at a time, as published loops over a test set do."""
    parts = [whole_matrix(bank, labels, block, classes, k) for block in queries.split(256)]
    return torch.cat(parts)


def library(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int) -> Tensor:
    return weighted_knn(bank, labels, queries, k=k, temperature=TEMPERATURE, classes=classes)


ARMS: dict[str, Vote] = {"whole_matrix": whole_matrix, "whole_rows": whole_rows, "library": library}


def rows(bank: int, queries: int, width: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy rows around the centres of their classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(bank) % classes
    centres = torch.randn(classes, width, generator=generator)
    first = centres[labels] + torch.randn(bank, width, generator=generator)
    asked = centres[torch.arange(queries) % classes] + torch.randn(queries, width, generator=generator)
    return first, labels, asked


def measure_memory(arm: str, sizes: tuple[int, int, int, int], k: int) -> float:
    """Growth of the peak resident size in MiB over one vote, in this (fresh) process."""
    bank, labels, queries = rows(1000, 100, sizes[2], 10)
    ARMS[arm](bank, labels, queries, 10, min(k, 100))
    bank, labels, queries = rows(*sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ARMS[arm](bank, labels, queries, sizes[3], k)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bank", type=int, default=50_000, help="training rows")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=128, help="features")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--k", type=int, default=200, help="neighbours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=list(ARMS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = ("bank", "queries", "width", "classes", "k", "threads")
    sizes = (args.bank, args.queries, args.width, args.classes)
    if args.memory_of:
        print(measure_memory(args.memory_of, sizes, args.k))
        return

    result: dict[str, object] = {name: getattr(args, name) for name in names}
    found: dict[str, dict[str, float]] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        command = [sys.executable, __file__, "--memory-of", arm]
        command += [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
        done = subprocess.run(command, check=True, capture_output=True)
        found[arm]["memory_mib"] = float(done.stdout)
    bank, labels, queries = rows(*sizes)
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    shares: dict[str, Tensor] = {}
    for _ in range(args.rounds):
        for arm, vote in ARMS.items():
            start = time.perf_counter()
            shares[arm] = vote(bank, labels, queries, args.classes, args.k)
            times[arm].append(time.perf_counter() - start)
    for arm, row in found.items():
        row["seconds"] = statistics.median(times[arm])
        row["speed_ratio"] = statistics.median(times["whole_matrix"]) / row["seconds"]
        row["memory_ratio"] = row["memory_mib"] / found["whole_matrix"]["memory_mib"]
        row["largest_difference"] = float((shares[arm] - shares["library"]).abs().max())
    result["arms"] = found
    if args.json:
        print(json.dumps(result))
        return
    print(", ".join(f"{name} {getattr(args, name)}" for name in names), "; ratios to whole_matrix")
    print(f"{'arm':<14}{'seconds':>10}{'speed':>8}{'MiB':>9}{'memory':>8}{'difference':>12}")
    for arm, row in found.items():
        print(
            f"{arm:<14}{row['seconds']:>10.2f}{row['speed_ratio']:>8.2f}{row['memory_mib']:>9.0f}"
            f"{row['memory_ratio']:>8.3f}{row['largest_difference']:>12.1e}"
        )


if __name__ == "__main__":
    main()
