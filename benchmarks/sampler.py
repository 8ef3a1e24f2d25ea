"""Time to sample the neighbourhood of a batch of nodes, against a loop over nodes in plain Python.

    python benchmarks/sampler.py                       1,024 seeds, fanouts 10 and 10, 100,000 nodes
    python benchmarks/sampler.py --seeds 256 --fanouts 5 5 5 --json

The generated graph has one end of each edge at a node of skewed popularity, so that there are hubs. Times are medians
over rounds in which the arms take turns; only ratios within one run mean something. The arms draw different neighbours,
equally many per node. (The loader of torch_geometric samples in a compiled extra, which is not installable everywhere.)
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from leanlabel.data.graph_sampler import sample_neighbours
from leanlabel.rng import draw, permutation
from leanlabel.sparse import Csr, from_edges

# Seeds, iteration -> nodes and edges of the sample.
Arm = Callable[[Tensor, int], tuple[int, int]]


def graph(nodes: int, edges: int) -> Csr:
    """A random undirected graph; node i is the second end of an edge with density proportional to i^-1/2."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, nodes, (edges,), generator=generator)
    second = (torch.rand(edges, generator=generator, dtype=torch.float64).square() * nodes).long()
    return from_edges(torch.stack([torch.cat([first, second]), torch.cat([second, first])]), nodes)


def library(structure: Csr, fanouts: list[int]) -> Arm:
    def run(seeds: Tensor, t: int) -> tuple[int, int]:
        piece = sample_neighbours(structure, seeds, fanouts, lambda ids: draw(0, "neighbours", t, ids))
        return len(piece.nodes), piece.structure.nnz

    return run


def python_loop(structure: Csr, fanouts: list[int]) -> Arm:
    crow, col = structure.crow.tolist(), structure.col.tolist()

    def run(seeds: Tensor, t: int) -> tuple[int, int]:
        generator = random.Random(t)
        local = {node: place for place, node in enumerate(seeds.tolist())}
        frontier, rows, columns = list(local), [], []
        for fanout in fanouts:
            found = []
            for node in frontier:
                entries = range(crow[node], crow[node + 1])
                if len(entries) > fanout:
                    entries = generator.sample(entries, fanout)
                for entry in entries:
                    neighbour = col[entry]
                    if neighbour not in local:
                        local[neighbour] = len(local)
                        found.append(neighbour)
                    rows.append(local[node])
                    columns.append(local[neighbour])
            frontier = found
        sample = from_edges(torch.tensor([columns, rows]), len(local))
        return len(local), sample.nnz

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--edges", type=int, default=1_000_000, help="undirected edges drawn")
    parser.add_argument("--seeds", type=int, default=1024)
    parser.add_argument("--fanouts", type=int, nargs="+", default=[10, 10])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    structure = graph(args.nodes, args.edges)
    arms: dict[str, Arm] = {
        "library": library(structure, args.fanouts),
        "python loop": python_loop(structure, args.fanouts),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    sizes: dict[str, tuple[int, int]] = {}
    for t in range(args.rounds + 1):
        seeds = permutation(0, "seeds", t, args.nodes)[: args.seeds]
        for name, run in arms.items():
            start = time.perf_counter()
            sizes[name] = run(seeds, t)
            if t:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    rows = {}
    for name, (nodes, edges) in sizes.items():
        seconds = statistics.median(times[name])
        ratio = seconds / statistics.median(times["library"])
        rows[name] = {"seconds": seconds, "times_library": ratio, "nodes": nodes, "edges": edges}
    result = {
        "nodes": args.nodes,
        "entries": structure.nnz,
        "largest_degree": int(structure.counts.max()),
        "seeds": args.seeds,
        "fanouts": args.fanouts,
        "threads": args.threads,
        "arms": rows,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"{args.seeds} seeds, fanouts {args.fanouts}, {args.nodes} nodes, {structure.nnz} entries, "
        f"largest degree {result['largest_degree']}, {args.threads} threads"
    )
    for name, row in rows.items():
        print(
            f"  {name:<32}{row['seconds'] * 1e3:9.1f} ms  {row['times_library']:6.2f} x the library"
            f"  {row['nodes']:7.0f} nodes {row['edges']:8.0f} edges"
        )


if __name__ == "__main__":
    main()
