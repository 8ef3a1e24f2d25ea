"""Prototype contrast where more of its premise holds: 256 features, an encoder pre-trained on images of both domains.

    python proofs/spcl/premise.py PART [SEEDS]

PART is one of
    choose   weight, mean and temperature of the contrast, on the val part of the SOURCE of other scenes (one seed)
    main     target cross-entropy, today's recipe, each with and without the contrast, and their baselines
    noise    systematic mistakes in the pseudo labels, 0 to 30 %: target cross-entropy with and without it
    gap      five sizes of the gap between the domains, likewise

For each seed: a dense contrast on the training images of both domains (no label), then the recipe spcl/scenes-target
from its encoder. One line a run goes into premise.jsonl; what stands there is not run again, and a run that was
stopped goes on. Numbers: mean IoU on the target's test part, last weights; and how near features of the target are to
the source's prototypes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from leanlabel import api
from leanlabel.engine.runfolder import RunFolder, read_lines

HERE = Path(__file__).parent
RESULTS = HERE / "premise.jsonl"
RUNS = HERE / "runs" / "premise"
COMMON = ["engine.threads=1", "engine.loggers=[]"]
QUICK = [
    "evaluation.boundary=false",
    "evaluation.spread=false",
    "evaluation.further=[]",
    "method.watch_every=0",
]
CE, SELF = "{name: cross-entropy}", "{name: self-training}"
MODERN = (
    "{name: class-mix, settings: {per_image: true}}, "
    "{name: masked-consistency, weight: 0.5, settings: {block: 16, per_image: true}}"
)
NOT_RENEWED = "stages.renewed=null"
TEACHER = [
    "method.ema=0.98",
    "method.teacher_norm=batch",
    "method.sampling={name: rare, temperature: 0.1, min_pixels: 60}",
]
GRID = (
    ("class", 1.0, 100.0),
    ("class", 20.0, 100.0),
    ("class", 0.05, 0.1),
    ("class", 0.2, 0.1),
    ("pixel", 0.05, 0.1),
)
"""Mean, weight and temperature that are tried."""
CHOSEN = {"weight": 0.05, "tau": 0.1, "balance": "class"}
"""What `choose` found best by the mean IoU on the source's val part."""


def contrast(target: str = "stored", **own: Any) -> str:
    """The term with its settings."""
    s = {**CHOSEN, **own}
    settings = f"tau: {s['tau']}, balance: {s['balance']}, agree: fallback, target: {target}, threshold: 0.9"
    return f"{{name: prototype-contrast, weight: {s['weight']}, settings: {{{settings}}}}}"


def terms(*parts: str) -> str:
    """The list of terms of the last training."""
    return f"method.terms=[{', '.join(parts)}]"


ARMS = {
    "source-only": [terms(CE), NOT_RENEWED, "method.adabn=false"],
    "adabn": [terms(CE), "steps=0"],
    "target-ce": [terms(CE, SELF)],
    "target-ce+contrast": [terms(CE, SELF, contrast())],
    "target-ce+contrast, tau 100": [terms(CE, SELF, contrast(weight=20.0, tau=100.0))],
    "modern": [terms(CE, MODERN), NOT_RENEWED, *TEACHER],
    "modern+contrast": [terms(CE, MODERN, contrast("online")), NOT_RENEWED, *TEACHER],
}
PAIR = ("target-ce", "target-ce+contrast")


def trained(recipe: str, folder: Path, overrides: list[str], **options: Any) -> api.Run:
    """A finished run: made, gone on with, or as it is."""
    if not RunFolder(folder).exists():
        return api.fit(recipe, run=folder, overrides=overrides, quiet=True, **options)
    run = api.load(folder)
    return run if run.results else api.resume(folder, quiet=True)


def known() -> set[tuple[str, str, int]]:
    """Part, arm and seed of what is recorded."""
    rows = read_lines(RESULTS) if RESULTS.exists() else []
    return {(row["part"], row["arm"], row["seed"]) for row in rows}


def encoder(seed: int) -> api.Run:
    """An encoder pre-trained on training images of both domains, at the middle gap."""
    data = ["data.source.seed=10", "data.target.seed=11", "data.source.train=200", "data.target.train=200"]
    return trained("dense-moco/scenes", RUNS / f"encoder-{seed}", [*COMMON, *data, f"seed={seed}"])


def record(part: str, arm: str, seed: int, changes: list[str], *, scenes: int = 10, gap: float = 1.0) -> None:
    """One run, unless it is recorded already."""
    if (part, arm, seed) in known():
        return
    start = encoder(seed)
    data = [f"data.source.seed={scenes}", f"data.target.seed={scenes + 1}", f"data.target.gap={gap}"]
    name = "".join(c if c.isalnum() else "-" for c in arm)
    run = trained(
        "spcl/scenes-target",
        RUNS / part / f"{name}-{seed}",
        [*COMMON, *QUICK, *data, f"seed={seed}", *changes],
        source=start.path,
        part="backbone",
        stages=RUNS / "stages",
    )
    records = run.results["protocols"]
    main = records["miou"]["readouts"]
    row = {
        "part": part,
        "arm": arm,
        "seed": seed,
        "scenes": scenes,
        "gap": gap,
        "changes": changes,
        "pre-training": "dense-moco/scenes",
        **{
            name: {key: one["mean"] for key, one in each["readouts"].items()}
            for name, each in records.items()
        },
        "others": {key: one["others"] for key, one in main.items()},
        "per_class": {one["name"]: one["iou"] for one in records["miou"]["per_class"]},
        "training_seconds": run.results["training_seconds"],
        "stage_seconds": run.results.get("stage_seconds"),
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def choose() -> None:
    """Settings of the contrast on other scenes; what decides is the source's val part, labelled images alone."""
    record("choose", "target-ce", 0, ARMS["target-ce"], scenes=0)
    for balance, weight, tau in GRID:
        changes = [terms(CE, SELF, contrast(weight=weight, tau=tau, balance=balance))]
        record("choose", f"{balance}, weight {weight}, tau {tau}", 0, changes, scenes=0)


def main(part: str, seeds: int) -> None:
    """One part of the proof."""
    if part == "choose":
        choose()
    for seed in range(seeds if part != "choose" else 0):
        if part == "main":
            for arm, changes in ARMS.items():
                record(part, arm, seed, changes)
        if part == "noise":
            for share in (0.0, 0.1, 0.2, 0.3):
                for arm in PAIR:
                    record(
                        part,
                        f"{arm}, noise {share}",
                        seed,
                        [*ARMS[arm], f"method.pseudo_labels.noise={share}"],
                    )
        if part == "gap":
            for gap in (0.0, 0.5, 1.0, 1.5, 2.0):
                for arm in PAIR:
                    record(part, f"{arm}, gap {gap}", seed, ARMS[arm], gap=gap)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
