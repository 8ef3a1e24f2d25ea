"""Speed of the graph encoder: sparse products against edge lists, sparse against dense features, masks.

    python benchmarks/encoder.py                       all cases, with real graphs when LEANLABEL_DATA is set
    python benchmarks/encoder.py --case convolution    one case
    python benchmarks/encoder.py --json                machine-readable

Times are medians over rounds in which the arms of a case take turns; only ratios within one run mean
something. Every arm but the drawing of views is forward and backward, and the arms' gradients are compared
before they are timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from leanlabel.augment.graph import AdaptiveAugmentor
from leanlabel.models.graph import GraphEncoder, lift
from leanlabel.rng import draw
from leanlabel.sparse import Csr, from_dense, from_edges, from_parts

Arms = dict[str, Callable[[], Tensor]]

# Nodes, edges in both directions, features, share of non-zero features.
SHAPES = {"amazon_photo": (7650, 238_162, 745, 0.35), "coauthor_physics": (34_493, 495_924, 8415, 0.004)}
# Rows of the feature products: the cost per row is constant, and a whole large graph takes a gigabyte dense.
FEATURE_ROWS = 4096


def graph(name: str) -> tuple[Csr, Csr, str]:
    """Adjacency and features of a real graph, or of a random one of the same size."""
    root = os.environ.get("LEANLABEL_DATA")
    path = Path(root) / "graphs" / f"{name}.npz" if root else None
    if path is not None and path.exists():
        parts = np.load(path)
        rows, columns = parts["x_shape"].tolist()
        values = parts["x_data"].astype("f4")
        x = from_parts(parts["x_indptr"], parts["x_indices"], values, (rows, columns))
        return from_edges(torch.from_numpy(parts["edge_index"].astype("int64")), rows), x, "real"
    nodes, edges, features, density = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(0, nodes, (2, edges // 2), generator=generator)
    rows = min(nodes, FEATURE_ROWS) if features > 2000 else nodes
    x = (torch.rand(rows, features, generator=generator) < density).float()
    return from_edges(torch.cat([pairs, pairs.flip(0)], 1), nodes), from_dense(x), "generated"


def by_edges(model: GraphEncoder, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    """The same encoder with one gathered and one scattered row per edge."""
    source, target = edge_index
    for layer in model.layers:
        assert isinstance(layer.weight, Tensor)
        lifted = x @ layer.weight
        messages = lifted[source] * weight[:, None]
        x = model.activation(torch.zeros_like(lifted).index_add(0, target, messages) + layer.bias)
    return x


def gradients(run: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Callable[[], Tensor]:
    def both() -> Tensor:
        found = torch.autograd.grad(run().square().mean(), parameters)
        return torch.cat([gradient.flatten() for gradient in found])

    return both


def convolution() -> tuple[str, Arms]:
    structure, x, origin = graph("amazon_photo")
    dense = x.to_dense()
    dense = dense / dense.sum(1, keepdim=True).clamp(min=1)
    torch.manual_seed(0)
    model = GraphEncoder(dense.shape[1], 256, activation="relu")
    parameters = list(model.parameters())
    views = AdaptiveAugmentor(structure, x, scheme="degree", edge_rates=(0.3,), feature_rates=(0.1,))
    adjacency = views.view(0, draw(0, "views", 0)).adjacency
    edges = torch.stack([adjacency.col, adjacency.rows])
    weight = adjacency.values
    assert weight is not None
    title = f"encoder 745-512-256 on one view of amazon_photo ({origin}, {adjacency.nnz} entries)"
    return title, {
        "sparse product": gradients(lambda: model(dense, adjacency), parameters),
        "edge list": gradients(lambda: by_edges(model, dense, edges, weight), parameters),
    }


def view() -> tuple[str, Arms]:
    structure, x, origin = graph("amazon_photo")
    together = AdaptiveAugmentor(structure, x, edge_rates=(0.3,), feature_rates=(0.1,))
    apart = AdaptiveAugmentor(
        structure, x, edge_rates=(0.3,), feature_rates=(0.1,), independent_directions=True
    )
    arms = {
        "both directions together": lambda: together.view(0, draw(0, "views", 0)).feature_mask,
        "independent directions": lambda: apart.view(0, draw(0, "views", 0)).feature_mask,
    }
    return f"draw and normalise one view of amazon_photo ({origin})", arms


def features(name: str, width: int) -> tuple[str, Arms]:
    _, x, origin = graph(name)
    dense = x.to_dense()[:FEATURE_ROWS] if name == "amazon_photo" else first_rows(x, FEATURE_ROWS).to_dense()
    sparse = from_dense(dense)
    weight = nn.Parameter(torch.randn(dense.shape[1], width))
    arms = {
        "sparse features": gradients(lambda: lift(sparse, weight), [weight]),
        "dense features": gradients(lambda: lift(dense, weight), [weight]),
    }
    return f"X W, {name} ({origin}, {len(dense)} rows, density {sparse.density:.2%}, width {width})", arms


def density(share: float) -> tuple[str, Arms]:
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(FEATURE_ROWS, 1000, generator=generator)
    dense *= torch.rand(dense.shape, generator=generator) < share
    sparse = from_dense(dense)
    weight = nn.Parameter(torch.randn(1000, 512))
    arms = {
        "sparse features": gradients(lambda: lift(sparse, weight), [weight]),
        "dense features": gradients(lambda: lift(dense, weight), [weight]),
    }
    return f"X W, generated (density {share:.0%}, width 512)", arms


def masks() -> tuple[str, Arms]:
    _, x, origin = graph("amazon_photo")
    dense = x.to_dense()
    weight = nn.Parameter(torch.randn(dense.shape[1], 512))
    first, second = (torch.rand(2, dense.shape[1], generator=torch.Generator().manual_seed(0)) < 0.8).float()

    def one_product() -> Tensor:
        return dense @ torch.cat([first[:, None] * weight, second[:, None] * weight], 1)

    def folded() -> Tensor:
        return torch.cat([lift(dense, weight, first), lift(dense, weight, second)], 1)

    def copied() -> Tensor:
        return torch.cat([(dense * first) @ weight, (dense * second) @ weight], 1)

    arms = {"folded": folded, "copied": copied, "folded, both views in one product": one_product}
    timed = {name: gradients(arm, [weight]) for name, arm in arms.items()}
    return f"two masked X W, amazon_photo ({origin}, width 512)", timed


def first_rows(x: Csr, rows: int) -> Csr:
    rows = min(rows, x.shape[0])
    end = int(x.crow[rows])
    values = None if x.values is None else x.values[:end]
    return Csr(x.crow[: rows + 1], x.col[:end], values, (rows, x.shape[1]))


def cases(chosen: str | None) -> Iterator[tuple[str, Callable[[], tuple[str, Arms]]]]:
    table: dict[str, list[Callable[[], tuple[str, Arms]]]] = {
        "convolution": [convolution],
        "view": [view],
        "features": [lambda: features("amazon_photo", 512), lambda: features("coauthor_physics", 256)],
        "density": [lambda share=share: density(share) for share in (0.02, 0.05, 0.1, 0.2)],
        "masks": [masks],
    }
    if chosen is not None and chosen not in table:
        raise SystemExit(f"no case {chosen!r}; choose from {', '.join(table)}")
    for name, builders in table.items():
        if chosen in (None, name):
            yield from ((name, build) for build in builders)


def measure(arms: Arms, rounds: int, same: bool) -> dict[str, float]:
    """Median seconds of each arm, in rounds that take turns, after one round that may compare the results."""
    first, *others = [run() for run in arms.values()]
    for other in others if same else []:
        torch.testing.assert_close(other, first, rtol=1e-3, atol=1e-4 * float(first.abs().max()))
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", help="convolution, view, features, density or masks; default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, build in cases(options.case):
        title, arms = build()
        seconds = measure(arms, options.rounds, same=name != "view")
        fastest = min(seconds.values())
        rows.append({"case": name, "title": title, "seconds": seconds})
        if not options.json:
            print(title)
            for arm, value in seconds.items():
                print(f"  {arm:<36}{value * 1e3:9.1f} ms  {value / fastest:5.2f} x the fastest")
    if options.json:
        print(json.dumps({"threads": options.threads, "rounds": options.rounds, "cases": rows}, indent=2))


if __name__ == "__main__":
    main()
