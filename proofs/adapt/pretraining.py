"""With and without pre-training on the images of both domains, from scenes of one rendering to the other.

    python proofs/adapt/pretraining.py [SEEDS]

For each seed: a dense contrast on the training images of both domains (no label), then today's recipe and source-only
training from its encoder. Arms without pre-training are those of run.sh. One line a run goes into pretraining.jsonl;
what stands there is not run again, and a run that was stopped goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from leanlabel import api
from leanlabel.engine.runfolder import RunFolder, read_lines

HERE = Path(__file__).parent
RESULTS = HERE / "pretraining.jsonl"
RUNS = HERE / "runs" / "pretraining"
COMMON = ["engine.threads=1", "engine.loggers=[]"]
SCENES = ["data.source.seed=10", "data.target.seed=11"]
QUICK = [
    "evaluation.boundary=false",
    "evaluation.spread=false",
    "evaluation.further=[]",
    "method.watch_every=0",
]
SOURCE_ONLY = ["method.terms=[{name: cross-entropy}]", "method.ema=null", "method.adabn=false"]
ARMS = {"modern": [], "source-only": [*SOURCE_ONLY, "method.sampling={name: uniform}"]}


def trained(recipe: str, folder: Path, overrides: list[str], **options: Any) -> api.Run:
    """A finished run: made, gone on with, or as it is."""
    if not RunFolder(folder).exists():
        return api.fit(recipe, run=folder, overrides=overrides, quiet=True, **options)
    run = api.load(folder)
    return run if run.results else api.resume(folder, quiet=True)


def main(seeds: int) -> None:
    """All arms of all seeds."""
    known = {(row["arm"], row["seed"]) for row in read_lines(RESULTS)} if RESULTS.exists() else set()
    for seed in range(seeds):
        common = [*COMMON, *SCENES, f"seed={seed}"]
        start = trained(
            "dense-moco/scenes",
            RUNS / f"encoder-{seed}",
            [*common, "data.source.train=200", "data.target.train=200"],
        )
        for arm, changes in ARMS.items():
            if (arm, seed) in known:
                continue
            run = trained(
                "adapt/scenes-small",
                RUNS / f"{arm}-{seed}",
                [*common, *QUICK, *changes],
                source=start.path,
                part="backbone",
            )
            records = run.results["protocols"]
            row = {
                "arm": arm,
                "seed": seed,
                "pre-training": "dense-moco/scenes",
                **{name: {k: v["mean"] for k, v in one["readouts"].items()} for name, one in records.items()},
                "training_seconds": run.results["training_seconds"],
                "pretraining_seconds": start.results["training_seconds"],
            }
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
