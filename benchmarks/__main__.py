"""Run every benchmark and record it: ``python -m benchmarks [--quick]``.

Each script runs in its own process; one line per script goes to ``benchmarks/results.jsonl`` with the environment and
the date. Times depend on the machine and on what else it does: only ratios within one line mean something.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from leanlabel.engine.runfolder import JsonLines, environment

HERE = Path(__file__).parent
RUNS: dict[str, list[str]] = {
    "contrast, N = 7650": ["contrast.py", "--size", "7650"],
    "contrast, N = 256": ["contrast.py", "--size", "256", "--rounds", "51", "--skip", "memory"],
    "contrast, N = 34493": [
        "contrast.py",
        "--size",
        "34493",
        "--width",
        "128",
        "--arms",
        "stream",
        "--skip",
        "time",
    ],
    "encoder": ["encoder.py"],
    "epoch, Amazon-Photo": ["epoch.py"],
    "epoch, Amazon-Photo, memory": ["epoch.py", "--memory"],
    "epoch, Coauthor-Physics, memory": [
        *("epoch.py", "--graph", "coauthor_physics", "--width", "128", "--memory", "--arms", "library")
    ],
    "neighbour sampler": ["sampler.py"],
    "nearest neighbours, 50,000 x 10,000": ["knn.py"],
    "mixed negatives, K = 16384": ["mixing.py", "--keys", "16384"],
    "mixed negatives, K = 65536": ["mixing.py", "--keys", "65536"],
    "image views": ["augment.py"],
    "images with masks": ["pairs.py"],
    "a step of MoCHi": ["pretraining.py", "--batch", "64", "--rounds", "3"],
    "waiting for images": ["pretraining.py", "--part", "data"],
    "waiting for images with masks": ["pretraining.py", "--part", "masks"],
    "segmentation losses": ["segmentation_losses.py"],
    "segmentation metrics": ["segmentation_metrics.py"],
    "a step of adaptation": ["adaptation.py"],
    "prototype contrast": ["prototypes.py"],
}


def main() -> None:
    """Run the chosen benchmarks one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("only", nargs="*", help="words that must occur in a benchmark's name")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    lines = JsonLines(HERE / "results.jsonl")
    for name, (script, *arguments) in RUNS.items():
        if not all(word in name for word in options.only):
            continue
        command = [
            sys.executable,
            str(HERE / script),
            *arguments,
            "--threads",
            str(options.threads),
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines.append(
            {
                "benchmark": name,
                "result": json.loads(done.stdout),
                "environment": environment(),
                "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            }
        )
        print(name, json.dumps(json.loads(done.stdout)), flush=True)
    lines.close()


if __name__ == "__main__":
    main()
