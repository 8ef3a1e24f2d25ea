"""Time of a step of the modern recipe against its forward and backward passes; memory of writing pseudo labels.

    python benchmarks/adaptation.py                            both parts
    python benchmarks/adaptation.py --part labels --json

*step*: the passes that the recipe cannot do without are one of the teacher on target images and three of the student
with gradient (source images, mixed ones, masked ones), each with its backward pass, and the update; the step adds
augmentation, pseudo labels, mixing, colours, losses and the running average. Batches are read before. *labels*: peak
memory of labelling N and 4 N images on disk, over that of the process before. Times are medians over rounds in which
the arms take turns; only ratios within one run mean something.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from leanlabel import api
from leanlabel.banks.class_thresholds import ClassThresholds
from leanlabel.data.class_map import class_map
from leanlabel.data.dense_files import read_dense
from leanlabel.data.pseudo_labels import write_labels
from leanlabel.engine.fabric import make_fabric
from leanlabel.engine.fit import Plan, _Loop
from leanlabel.engine.progress import peak_memory
from leanlabel.engine.runfolder import RunFolder
from leanlabel.methods import find

# Network -> settings: the small one of the recipe, and one whose passes cost what passes cost elsewhere.
SIZES = {
    "tiny-fcn, 4 + 4 crops of 80 x 96": [],
    "deeplab-v2 with resnet18, 2 + 2 crops of 160 x 192": [
        "model={name: deeplab-v2, encoder: resnet18}",
        "data.source.height=192",
        "data.source.width=256",
        "data.target.height=192",
        "data.target.width=256",
        "data.source.batch_size=2",
        "data.target.batch_size=2",
        "augment.crop=[160,192]",
    ],
}


def steps(overrides: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of a step, of its passes alone, and of both without waiting for data."""
    small = ["data.source.train=16", "data.target.train=16", "data.target.test=2", "method.watch_every=0"]
    chosen = [*small, *overrides, f"engine.threads={threads}", "engine.accelerator=cpu", "stages.source=null"]
    cfg = api.resolve("adapt/scenes-small", chosen)
    method = api.build(cfg, find(cfg.method.name).read(cfg))
    with tempfile.TemporaryDirectory() as folder:
        loop = _Loop(
            method, RunFolder(folder), Plan(rounds, 0, cfg.optim, cfg.engine), make_fabric(cfg.engine)
        )
        try:
            ready = [batch for batch, _ in zip(method.batches(0), range(4), strict=False)]
            crop = torch.randn(cfg.data.source.batch_size, 3, *cfg.augment.crop)

            def whole(t: int) -> None:
                loop.t, loop.terms = t, {}
                method.train()
                method.step(t, ready[t % len(ready)])

            def passes(t: int) -> None:
                method.train()
                method.teacher_output(crop)
                total = sum(method.network(crop).logits.square().mean() for _ in range(3))
                method.update(total)

            arms: dict[str, Callable[[int], None]] = {"step": whole, "passes": passes}
            seconds: dict[str, list[float]] = {name: [] for name in arms}
            for t in range(rounds + 2):
                for name, arm in arms.items():
                    began = time.perf_counter()
                    arm(t)
                    if t >= 2:
                        seconds[name].append(time.perf_counter() - began)
        finally:
            loop.release()
    found = {name: statistics.median(each) for name, each in seconds.items()}
    return {"seconds": found, "step_times_passes": found["step"] / found["passes"]}


def labels(count: int) -> dict[str, Any]:
    """Bytes that labelling so many images on disk adds to the peak memory of this process."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "images").mkdir()
        numbers = np.random.default_rng(0)
        for row in range(count):
            Image.fromarray(numbers.integers(0, 255, (128, 256, 3), dtype=np.uint8)).save(
                place / "images" / f"{row:04}.png"
            )
        data = read_dense(
            place, layout="folders", labels="none", load="disk", verify=False, classes=class_map("camvid-11")
        )

        def predict(images: Any) -> list[Any]:
            return [(one[0].remainder(11), (one[1].float() / 255)) for one in images]

        before = peak_memory(torch.device("cpu")) or 0
        write_labels(
            place / "labels",
            data,
            range(count),
            predict,
            data.classes,
            "",
            counter=ClassThresholds(11),
            memory=0,
        )
        return {"images": count, "added_peak_bytes": (peak_memory(torch.device("cpu")) or 0) - before}


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("all", "step", "labels"), default="all")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"threads": options.threads}
    if options.part in ("all", "labels"):
        labels(20)  # what importing and the first call cost
        found["labels"] = [labels(100), labels(400)]
    if options.part in ("all", "step"):
        found["steps"] = {name: steps(more, options.rounds, options.threads) for name, more in SIZES.items()}
    print(json.dumps(found) if options.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
