"""Time and memory of mixed hard negatives, forward and backward, in closed form and with the vectors built.

    python benchmarks/mixing.py                        a queue of 16,384 keys, (N, s, s') = (1024, 1024, 128)
    python benchmarks/mixing.py --keys 65536 --json    another queue, machine-readable

Both arms start from unit rows. The usual form is given the similarities with all keys, which its loss has computed
anyway; the closed form computes them itself. Times are medians over rounds in which the arms take turns; only ratios
within one run mean something. Memory is the growth of the peak resident size over one step, each arm in a fresh
process. Gradients are compared in float64, where no two similarities are so close that arms rank them differently.
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

from leanlabel.losses.contrastive import unit
from leanlabel.losses.mixing import Mixing, MixingDraws, draw_mixing, mixed_logits
from leanlabel.rng import draw

TAU = 0.2
# Query, keys, their similarities, settings, draws or None -> logits.
Arm = Callable[[Tensor, Tensor, Tensor, Mixing, "MixingDraws | None"], Tensor]


def gather_and_mix(
    query: Tensor, keys: Tensor, similarity: Tensor, mixing: Mixing, draws: MixingDraws | None
) -> Tensor:
    """The usual form: gather the keys of every mixture, mix, normalise, multiply with the query."""
    index = similarity.topk(mixing.n, 1).indices
    if draws is None:
        shape, shape2 = (len(query), mixing.s), (len(query), mixing.s2)
        one, two, other = (torch.randint(mixing.n, size) for size in (shape, shape, shape2))
        draws = MixingDraws(one, two, torch.rand(shape), other, torch.rand(shape2) / 2)
    alpha, beta = draws.alpha[..., None], draws.beta[..., None]
    first, second = (keys[index.gather(1, place)] for place in (draws.first, draws.second))
    pairs = F.normalize(alpha * first + (1 - alpha) * second, dim=2)
    partner = keys[index.gather(1, draws.partner)]
    mixed = F.normalize(beta * query.detach()[:, None] + (1 - beta) * partner, dim=2)
    return torch.einsum("nd,nsd->ns", query, torch.cat([pairs, mixed], 1)) / TAU


def closed_form(
    query: Tensor, keys: Tensor, similarity: Tensor, mixing: Mixing, draws: MixingDraws | None
) -> Tensor:
    source = draw(0, "mix", 0, ids=torch.arange(len(query))) if draws is None else draws
    return mixed_logits(query, keys, mixing, source, tau=TAU)


ARMS: dict[str, Arm] = {"gather_and_mix": gather_and_mix, "closed_form": closed_form}


def inputs(queries: int, keys: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit queries, unit keys, their similarities, and a gradient that arrives at the logits."""
    generator = torch.Generator().manual_seed(0)
    query, queue = (unit(torch.randn(size, width, generator=generator)) for size in (queries, keys))
    return query.requires_grad_(), queue, query.detach() @ queue.mT, torch.rand(queries, generator=generator)


def step(
    arm: str,
    given: tuple[Tensor, Tensor, Tensor, Tensor],
    mixing: Mixing,
    draws: MixingDraws | None = None,
) -> tuple[float, Tensor]:
    """Seconds of one forward and backward pass, and the gradient of the queries."""
    query, queue, similarity, arriving = given
    start = time.perf_counter()
    logits = ARMS[arm](query, queue, similarity, mixing, draws)
    (gradient,) = torch.autograd.grad(logits, query, arriving[:, None].expand_as(logits))
    return time.perf_counter() - start, gradient


def measure_memory(arm: str, sizes: tuple[int, int, int], mixing: Mixing) -> float:
    """Growth of the peak resident size in MiB over one step, in this (fresh) process."""
    step(arm, inputs(8, 64, sizes[2]), Mixing(16, 8, 4))
    given = inputs(*sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(arm, given, mixing)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--keys", type=int, default=16384)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--mixing", type=int, nargs=3, default=[1024, 1024, 128], metavar=("N", "S", "S2"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=list(ARMS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    mixing, sizes = Mixing(*args.mixing), (args.queries, args.keys, args.width)
    if args.memory_of:
        print(measure_memory(args.memory_of, sizes, mixing))
        return

    rows: dict[str, dict[str, float]] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        command = [sys.executable, __file__, "--memory-of", arm, "--threads", str(args.threads)]
        command += ["--queries", str(args.queries), "--keys", str(args.keys), "--width", str(args.width)]
        command += ["--mixing", *map(str, args.mixing)]
        rows[arm]["memory_mib"] = float(subprocess.run(command, check=True, capture_output=True).stdout)
    given = inputs(*sizes)
    source = draw(0, "same", 0, ids=torch.arange(args.queries))
    draws = draw_mixing(source, mixing, torch.full((args.queries,), min(mixing.n, args.keys)))
    few = [part[:16].double() for part in given]
    exact = (
        few[0].detach().requires_grad_(),
        given[1].double(),
        few[0].detach() @ given[1].double().mT,
        few[3],
    )
    same = MixingDraws._make(part[:16] for part in draws)
    gradients = {arm: step(arm, exact, mixing, same)[1] for arm in ARMS}
    for arm in ARMS:  # warm up
        step(arm, given, mixing)
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(args.rounds):
        for arm in ARMS:
            times[arm].append(step(arm, given, mixing)[0])
    base, reference = rows["gather_and_mix"], gradients["gather_and_mix"]
    for arm, row in rows.items():
        row["seconds"] = statistics.median(times[arm])
        row["time_ratio"] = row["seconds"] / base["seconds"]
        row["memory_ratio"] = row["memory_mib"] / base["memory_mib"] if base["memory_mib"] else float("nan")
        row["gradient_error"] = float((gradients[arm] - reference).norm() / reference.norm())
    result = {
        "queries": args.queries,
        "keys": args.keys,
        "width": args.width,
        "mixing": args.mixing,
        "threads": args.threads,
        "arms": rows,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"{args.queries} queries, {args.keys} keys, D = {args.width}, (N, s, s') = {tuple(args.mixing)}, "
        f"{args.threads} threads, ratios to gather_and_mix"
    )
    print(f"{'arm':<16}{'seconds':>10}{'time':>8}{'MiB':>9}{'memory':>8}{'gradient error':>16}")
    for arm, row in rows.items():
        print(
            f"{arm:<16}{row['seconds']:>10.4f}{row['time_ratio']:>8.3f}{row['memory_mib']:>9.0f}"
            f"{row['memory_ratio']:>8.3f}{row['gradient_error']:>16.1e}"
        )


if __name__ == "__main__":
    main()
