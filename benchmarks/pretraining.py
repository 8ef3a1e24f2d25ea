"""What mixing and reading cost in a whole training: MoCHi against MoCo-v2, and the share of time spent on data.

    python benchmarks/pretraining.py                       one step of a ResNet-18 at 32 x 32, both arms interleaved
    python benchmarks/pretraining.py --part data           a short training from JPEG files and one from memory
    python benchmarks/pretraining.py --part masks          the same for images with masks and a segmentation network

Times are medians over rounds in which the arms take turns; only ratios within one run mean something. The images are
random: what they show does not change the cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from leanlabel import api
from leanlabel.banks.queue import FeatureQueue
from leanlabel.banks.teacher import Teacher
from leanlabel.engine.runfolder import read_lines
from leanlabel.losses.contrastive import contrast, unit
from leanlabel.losses.mixing import Mixing, mixed_logits
from leanlabel.models.backbones import BackboneSettings, build_backbone
from leanlabel.models.heads import projector
from leanlabel.rng import draw


def stepper(batch: int, queue: int) -> tuple[Callable[[int, Mixing | None], float], int]:
    """A step of MoCo-v2 on given views, with mixing if asked; returns seconds."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSettings(name="resnet18", stem="cifar", norm="split", norm_groups=8))
    student = torch.nn.Sequential(backbone, projector(backbone.width, backbone.width, 128))
    teacher, keys = Teacher(student), FeatureQueue(queue, 128)
    keys.filled.fill_(queue)
    optimiser = torch.optim.SGD(student.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    ids = torch.arange(batch)

    def step(t: int, mixing: Mixing | None) -> float:
        views = torch.randn(2, batch, 3, 32, 32)
        began = time.perf_counter()
        query = unit(student(views[0]))
        teacher.follow(student, 0.99, buffers=False)
        key = unit(teacher(views[1]))
        rows = keys.read()
        extra = None
        if mixing is not None:
            extra = mixed_logits(query, rows, mixing, draw(0, "mix", t, ids), tau=0.2)
        loss = contrast(query, rows, own=key, tau=0.2, extra=extra)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        keys.push(key)
        return time.perf_counter() - began

    return step, sum(p.numel() for p in student.parameters())


def mixing_cost(batch: int, queue: int, rounds: int) -> dict[str, object]:
    """Median step of both arms and what mixing adds."""
    step, parameters = stepper(batch, queue)
    arms = {"moco-v2": None, "mochi (1024, 1024, 128)": Mixing(1024, 1024, 128)}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for t in range(rounds + 1):  # the first round warms up
        for name, mixing in arms.items():
            spent = step(t, mixing)
            if t:
                seconds[name].append(spent)
    pairs = [b / a - 1 for a, b in zip(*seconds.values(), strict=True)]
    return {
        "network": f"resnet18, cifar stem, {parameters:,} parameters",
        "batch": batch,
        "queue": queue,
        "arms": {name: {"seconds": statistics.median(values)} for name, values in seconds.items()},
        "mixing_adds": statistics.median(pairs),
    }


def waiting_share(steps: int) -> dict[str, object]:
    """Share of a training's time spent waiting for data, from files with a worker and from memory."""
    from PIL import Image

    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as place:
        for number in range(600):
            image = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(number))
            picture = Image.fromarray(image.byte().numpy()).resize((160 + number % 7, 160))
            picture.save(Path(place) / f"{number:04}.jpg", quality=90)
        for load, workers in (("disk", 1), ("disk", 0), ("memory", 0)):
            run = api.fit(
                "moco-v2/pacs",
                data=place,
                run=Path(place) / f"{load}-{workers}",
                overrides=[
                    f"steps={steps}",
                    "data.resize=64",
                    "data.square=true",
                    f"data.load={load}",
                    "data.batch_size=64",
                    "method.queue=128",
                    "model.name=resnet18",
                    "model.stem=cifar",
                    "evaluation.protocol=none",
                    "evaluation.also=[]",
                    f"engine.workers={workers}",
                    "engine.loggers=[]",
                    "watch.every=0",
                ],
                quiet=True,
            )
            found[f"{load}, {workers} workers"] = waited(run.path)
    return {"network": "resnet18, cifar stem, 64 x 64", "arms": found}


def waited(run: Path) -> dict[str, float]:
    """Share of a run's time in which the loop waited for its next batch."""
    rows = read_lines(run / "timing.jsonl")[1:]  # the first line has the start of the workers in it
    total = sum(row["seconds"] * row["iterations"] for row in rows)
    return {"waiting": sum(row["waiting"] * row["iterations"] for row in rows) / total, "seconds": total}


def waiting_for_masks(steps: int) -> dict[str, object]:
    """The same for images with masks: a small network, from JPEG and PNG files of 480 x 360 and from memory."""
    from PIL import Image

    from leanlabel.data.generated.scenes import render_scene

    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "streets"
        for name in ("images", "masks"):
            (root / name).mkdir(parents=True)
        for number in range(48):
            scene = render_scene(0, number, 360, 480)
            picture = Image.fromarray(scene.image.transpose(1, 2, 0).copy())
            picture.save(root / "images" / f"{number:04}.jpg", quality=90)
            Image.fromarray(scene.mask).save(root / "masks" / f"{number:04}.png")
        for load, workers in (("disk", 1), ("disk", 0), ("memory", 0)):
            run = api.fit(
                "segmentation/scenes-small",
                data=root,
                run=Path(place) / f"{load}-{workers}",
                overrides=[
                    f"steps={steps}",
                    f"data.load={load}",
                    "data.classes=camvid-11",
                    "augment.crop=[256,320]",
                    "evaluation.protocol=none",
                    f"engine.workers={workers}",
                    "engine.loggers=[]",
                    "engine.log_every=4",
                ],
                quiet=True,
            )
            found[f"{load}, {workers} workers"] = waited(run.path)
    return {"network": "tiny-fcn, crops of 256 x 320, batch 8", "arms": found}


def main() -> None:
    """Run one part and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("mixing", "data", "masks"), default="mixing")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--queue", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.part == "mixing":
        found = mixing_cost(options.batch, options.queue, options.rounds)
    else:
        found = waiting_share(12) if options.part == "data" else waiting_for_masks(24)
    found["threads"] = options.threads
    print(json.dumps(found) if options.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
