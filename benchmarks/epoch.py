"""One whole iteration of GCA on a real graph: this library against the usual form, same encoder and views' rates.

    LEANLABEL_DATA=... python benchmarks/epoch.py                      Amazon-Photo, both forms, interleaved
    LEANLABEL_DATA=... python benchmarks/epoch.py --memory             peak resident size of one process per form
    LEANLABEL_DATA=... python benchmarks/epoch.py --graph coauthor_physics --arms library --memory

The usual form draws edges and columns, copies the features, normalises and convolves over the edge list with one
gathered row per edge, and keeps four N x N matrices for the backward pass. Times are medians over rounds in which the
arms take turns; only ratios within one run mean something. Without LEANLABEL_DATA a random graph of the size of
Amazon-Photo is used.
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
from contrast import four_matrices
from encoder import graph
from torch import Tensor

from leanlabel.augment.graph import AdaptiveAugmentor
from leanlabel.losses.contrastive import bf16_products, two_view_contrast
from leanlabel.models.graph import GraphEncoder, Projector, pack_features
from leanlabel.rng import draw
from leanlabel.sparse import Csr

TAU, EDGE_RATES, FEATURE_RATES = 0.3, (0.3, 0.5), (0.1, 0.1)
Step = Callable[[int], float]


def networks(
    features: int, width: int, projection: int
) -> tuple[GraphEncoder, Projector, torch.optim.Optimizer]:
    torch.manual_seed(0)
    encoder, projector = GraphEncoder(features, width, activation="relu"), Projector(width, projection)
    parameters = [*encoder.parameters(), *projector.parameters()]
    return encoder, projector, torch.optim.Adam(parameters, lr=0.001, weight_decay=1e-5)


def library(structure: Csr, x: Csr, width: int, projection: int) -> Step:
    augmentor = AdaptiveAugmentor(structure, x, edge_rates=EDGE_RATES, feature_rates=FEATURE_RATES)
    encoder, projector, optimiser = networks(x.shape[1], width, projection)
    packed = pack_features(x)

    def step(t: int) -> float:
        views = [augmentor.view(k, draw(0, f"view {k}", t)) for k in (0, 1)]
        first, second = (projector(encoder(packed, view.adjacency, view.feature_mask)) for view in views)
        loss = two_view_contrast(first, second, tau=TAU)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return step


def library_bf16(structure: Csr, x: Csr, width: int, projection: int) -> Step:
    step = library(structure, x, width, projection)

    def quick(t: int) -> float:
        with bf16_products():
            return step(t)

    return quick


def usual(structure: Csr, x: Csr, width: int, projection: int) -> Step:
    encoder, projector, optimiser = networks(x.shape[1], width, projection)
    dense, nodes = x.to_dense(), x.shape[0]
    edges = torch.stack([structure.col, structure.rows])
    augmentor = AdaptiveAugmentor(structure, x, edge_rates=EDGE_RATES, feature_rates=FEATURE_RATES)
    edge_keep = 1 - augmentor.edge_probability[:, augmentor.base.rows != augmentor.base.col]
    feature_drop = augmentor.feature_probability
    loops = torch.arange(nodes).expand(2, nodes)

    def embed(k: int) -> Tensor:
        kept = torch.cat([edges[:, torch.bernoulli(edge_keep[k]).bool()], loops], 1)
        source, target = kept
        degree = torch.zeros(nodes).index_add(0, target, torch.ones(len(target)))
        root = degree.pow(-0.5)
        weight = root[source] * root[target]
        h = dense.clone()
        h[:, torch.bernoulli(feature_drop[k]).bool()] = 0
        for layer in encoder.layers:
            lifted = h @ layer.weight
            messages = lifted[source] * weight[:, None]
            h = encoder.activation(torch.zeros_like(lifted).index_add(0, target, messages) + layer.bias)
        return projector(h)

    def step(t: int) -> float:
        torch.manual_seed(t)
        loss = four_matrices(embed(0), embed(1), TAU)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return step


ARMS: dict[str, Callable[[Csr, Csr, int, int], Step]] = {
    "usual form": usual,
    "library": library,
    "library, bf16 products": library_bf16,
}


def build(arm: str, name: str, width: int) -> Step:
    structure, x, _ = graph(name)
    sums = torch.zeros(x.shape[0]).index_add(
        0, x.rows, x.values if x.values is not None else torch.ones(x.nnz)
    )
    values = (x.values if x.values is not None else torch.ones(x.nnz)) / sums[x.rows]
    return ARMS[arm](structure, x.with_values(values), width, 64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--graph", default="amazon_photo", choices=["amazon_photo", "coauthor_physics"])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--memory", action="store_true", help="peak resident size instead of times")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=list(ARMS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        step = build(args.memory_of, args.graph, args.width)
        step(0), step(1)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    rows: dict[str, dict[str, float]] = {arm: {} for arm in args.arms}
    if args.memory:
        for arm in args.arms:
            command = [sys.executable, __file__, "--memory-of", arm, "--threads", str(args.threads)]
            command += ["--graph", args.graph, "--width", str(args.width)]
            rows[arm]["peak_mib"] = float(subprocess.run(command, check=True, capture_output=True).stdout)
    else:
        steps = {arm: build(arm, args.graph, args.width) for arm in args.arms}
        times: dict[str, list[float]] = {arm: [] for arm in args.arms}
        for step in steps.values():
            step(0)
        for t in range(1, args.rounds + 1):
            for arm, step in steps.items():
                start = time.perf_counter()
                step(t)
                times[arm].append(time.perf_counter() - start)
        for arm, values in times.items():
            rows[arm]["seconds"] = statistics.median(values)
        base = rows[args.arms[0]]["seconds"]
        for row in rows.values():
            row["speed_ratio"] = base / row["seconds"]
    if args.json:
        print(json.dumps({"graph": args.graph, "width": args.width, "threads": args.threads, "arms": rows}))
        return
    print(f"one iteration of GCA on {args.graph}, width {args.width}, {args.threads} threads")
    for arm, row in rows.items():
        print(f"  {arm:<26}" + "".join(f"{name} {value:8.3f}  " for name, value in row.items()))


if __name__ == "__main__":
    main()
