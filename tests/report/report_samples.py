"""What the tests of pages share: a realistic run folder, a realistic comparison, and ways to read a page."""

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

from leanlabel.engine.runfolder import RunFolder
from leanlabel.evaluation.neighbours import png

ATTACK = "<script>alert(1)</script>\" onload='alert(1)' ]]> &amp; \x00"
RANKS = (1, 4, 16, 64, 256)
CLASSES = (
    "Film",
    "Digital cameras",
    "Binoculars",
    "Lenses",
    "Tripods",
    "Lighting",
    "Bags & cases",
    "Flashes",
)
COUNTS = (369, 1686, 703, 915, 882, 823, 1941, 331)
CONFIG = """\
base: null
about: Node embeddings without labels on a co-purchase graph, edges and features dropped by centrality.
task: graph
fidelity: corrected
cost: about 3 min on two cores, 0.6 GiB
seed: 0
steps: 200
method:
  name: gca
  tau: 0.1
  centrality: degree
  drop_edge: [0.3, 0.4]
  drop_feature: [0.1, 0.1]
model:
  kind: gcn
  width: 256
  projector: 64
data:
  kind: npz
  path: amazon-photo.npz
optim:
  name: adam
  lr: 0.01
  weight_decay: 1.0e-05
evaluation:
  protocol: [logistic-l2, gca-probe]
  select: last
"""


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def protocol(name: str, means: dict[str, float], splits: int = 20, spread: float = 0.006) -> dict[str, Any]:
    """Results of one protocol with a shared offset per split, as shared splits give it."""
    rng = np.random.default_rng(len(name))
    shared = rng.normal(size=splits)
    readouts = {}
    for key, mean in means.items():
        values = mean + spread * (0.8 * (shared - shared.mean()) + 0.4 * rng.normal(size=splits))
        values = values - values.mean() + mean
        std = float(values.std(ddof=1)) if splits > 1 else None
        readouts[key] = {"mean": float(values.mean()), "std": std, "per_split": values.tolist()}
    recall = [0.861, 0.934, 0.952, 0.907, 0.889, 0.921, 0.958, None]
    return {
        "protocol": name,
        "metric": "accuracy",
        "selection": "strength with the best validation accuracy, first maximum",
        "split": {
            "name": "random",
            "shares": {"train": 0.1, "val": 0.1, "test": 0.8},
            "seed": 0,
            "sha256": "3fa9c1" * 10,
            "count": splits,
        },
        "readouts": readouts,
        "per_class": [{"name": n, "count": c, "recall": r} for n, c, r in zip(CLASSES, COUNTS, recall)],
    }


def fill(folder: Path, means: dict[str, float] | None = None, steps: int = 200) -> RunFolder:
    """Write every file that a finished run leaves."""
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    run.config.write_text(CONFIG, encoding="utf-8")
    packages = {
        "leanlabel": "0.1.0",
        "torch": "2.13.0",
        "numpy": "2.4.1",
        "scikit-learn": "1.8.0",
        "torch_geometric": None,
    }
    write(
        run.environment,
        {
            "python": "3.11.2",
            "system": "Linux x86_64",
            "packages": packages,
            "cpu_count": 2,
            "threads": 2,
            "gpus": [],
        },
    )
    write(
        run.data,
        {
            "name": "amazon-photo",
            "kind": "graph",
            "fingerprint": "9b1d4c7e02aa",
            "counts": {"nodes": 7650, "edges": 119081, "features": 745},
            "classes": [{"name": n, "count": c} for n, c in zip(CLASSES, COUNTS)],
            "facts": {"self_loops_removed": 0, "duplicate_edges_removed": 12, "isolated_nodes": 115},
        },
    )
    t = np.arange(steps)
    rows = {
        "loss": 6.2 + 3.1 * np.exp(-t / 30) + 0.05 * rng.normal(size=steps),
        "between_views": 200 * np.exp(-t / 24) + 0.4 + 0.02 * np.abs(rng.normal(size=steps)),
        "drop_rate_1": 0.283 + 0.004 * rng.normal(size=steps),
    }
    lines = [{"t": int(i), **{k: float(v[i]) for k, v in rows.items()}} for i in t]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    seconds = 0.82 + 0.05 * np.abs(rng.normal(size=steps))
    times = [
        {"t": int(i), "seconds": float(seconds[i]), "waiting": 0.004, "peak_bytes": 612 * 2**20} for i in t
    ]
    run.timing.write_text("".join(json.dumps(line) + "\n" for line in times), encoding="utf-8")
    means = means or {"raw": 0.790, "untrained": 0.880, "trained": 0.912}
    write(
        run.results,
        {
            "protocols": {
                "logistic-l2": protocol("logistic-l2", means),
                "gca-probe": protocol("gca-probe", {k: v - 0.006 for k, v in means.items()}),
            },
            "monitors": {
                "untrained": {
                    "effective_rank": 41.27,
                    "dead_units": 0.0,
                    "alignment": 0.182,
                    "uniformity": -1.41,
                },
                "trained": {
                    "effective_rank": 97.83,
                    "dead_units": 0.0117,
                    "alignment": 0.064,
                    "uniformity": -3.02,
                },
            },
            "weights": "last",
            "t": steps,
            "training_seconds": 171.3,
            "parameters": 322368,
        },
    )
    write(run.warnings, ["115 nodes have no edge: their embedding comes from their own features alone."])
    labels = np.repeat(np.arange(8), 188)[:1500]
    angle = 2 * math.pi * labels / 8
    centre = np.stack([np.cos(angle), np.sin(angle)], 1) * (22 + 10 * (labels % 2))[:, None]
    points = centre + rng.normal(size=(1500, 2)) * (4 + labels % 3)[:, None]
    embedding = {"method": "t-SNE", "points": np.round(points, 3).tolist(), "labels": labels.tolist()}
    write(
        run.figures / "embedding.json", {**embedding, "class_names": list(CLASSES), "shown": 1500, "of": 7650}
    )
    run.weights.write_bytes(b"0" * 1_289_000)
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / "t000200.pt").write_bytes(b"0" * 2_578_000)
    return run


def small_picture(shade: int) -> str:
    """A picture of one colour, in base64."""
    pixels = torch.full((3, 4, 5), shade, dtype=torch.uint8)
    pixels[0, 1] = 200
    return base64.b64encode(png(pixels)).decode("ascii")


def near_figure(queries: int = 2, near: int = 3) -> dict[str, Any]:
    """Queries with their neighbours, the first of which is of another class."""
    return {
        "asked": "test images",
        "bank": "training images",
        "bank_size": 1200,
        "queries": [
            {
                "row": q,
                "name": f"test/{q}.png",
                "class": f"kind {q}",
                "image": small_picture(q),
                "neighbours": [
                    {
                        "row": 10 * q + n,
                        "name": f"train/{q}-{n}.png",
                        "class": f"kind {q if n else 9}",
                        "image": small_picture(50 + n),
                        "similarity": 0.9 - n / 10,
                        "same": bool(n),
                    }
                    for n in range(near)
                ],
            }
            for q in range(queries)
        ],
    }


def with_pictures(folder: Path, values: Any, steps: int = 40) -> RunFolder:
    """A finished run on images: neighbours, and shares of the hardest negatives."""
    run = fill(folder, steps=steps)
    write(run.figures / "neighbours.json", values)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for line in lines[::10]:
        line |= {f"hardness_{rank}": (1 + line["t"]) / 100 / rank for rank in RANKS}
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run


def compared() -> dict[str, Any]:
    """A comparison of four arms, five seeds, one arm unfinished."""
    rng = np.random.default_rng(1)
    means = {"gca": 0.9231, "grace": 0.9204, "untrained": 0.8803, "raw": 0.790}
    labels = {
        "gca": "GCA, degree",
        "grace": "Uniform dropping (GRACE)",
        "untrained": "Untrained encoder",
        "raw": "Raw features",
    }
    arms, curves = [], {}
    for name, mean in means.items():
        count = 3 if name == "raw" else 5
        values = mean + 0.004 * rng.normal(size=count)
        runs = [{"seed": s, "value": float(v), "seconds": 171.0 + 3 * s} for s, v in enumerate(values)]
        std = float(values.std(ddof=1))
        arms.append(
            {
                "name": name,
                "label": labels[name],
                "runs": runs,
                "mean": float(values.mean()),
                "std": std,
                "n": count,
            }
        )
        if name in ("gca", "grace"):
            t = list(range(0, 200, 2))
            curves[name] = [
                {
                    "seed": s,
                    "t": t,
                    "loss": [6 + 3 * math.exp(-i / 30) + 0.04 * float(rng.normal()) for i in t],
                }
                for s in range(3)
            ]
    pairs = [
        {"arm": "gca", "against": "grace", "difference": 0.0027, "low": -0.0021, "high": 0.0075, "n": 5,
         "verdict": "cannot tell", "minimal_detectable": 0.0066},
        {"arm": "gca", "against": "untrained", "difference": 0.0428, "low": 0.0371, "high": 0.0485, "n": 5,
         "verdict": "helps", "minimal_detectable": 0.0078},
        {"arm": "grace", "against": "untrained", "difference": 0.0401, "low": 0.0333, "high": 0.0469, "n": 5,
         "verdict": "helps", "minimal_detectable": 0.0093},
        {"arm": "raw", "against": "untrained", "difference": -0.0903, "low": -0.0999, "high": -0.0807, "n": 3,
         "verdict": "hurts", "minimal_detectable": 0.0101},
    ]  # fmt: skip
    return {
        "title": "GCA against its baselines on Amazon Photo",
        "question": "Does dropping by centrality beat uniform dropping, and does either beat no training?",
        "recipe": "gca/amazon-photo",
        "arms": arms,
        "metric": "accuracy",
        "protocol": "logistic-l2",
        "split": "random 10/10/80, seed 0, 20 splits",
        "selection": "strength with the best validation accuracy",
        "pairs": pairs,
        "pending": ["raw, seed 3", "raw, seed 4"],
        "curves": curves,
        "environment": {
            "python": "3.11.2",
            "packages": {"leanlabel": "0.1.0", "torch": "2.13.0"},
            "gpus": [],
        },
    }


FINDINGS = [
    {"severity": "info", "code": "nodes", "message": "7,650 nodes, 119,081 undirected edges.", "count": 7650},
    {"severity": "warning", "code": "isolated", "message": "115 nodes have no edge.", "count": 115},
    {"severity": "error", "code": "split-leak", "message": "train and test share 3 rows.", "count": 3},
]


def parsed(html: str) -> ElementTree.Element:
    """The page as XML: stricter than any browser."""
    head, _, rest = html.partition("\n")
    assert head == "<!DOCTYPE html>"
    return ElementTree.fromstring(rest)


def said(html: str) -> str:
    """What a reader sees, in one line."""
    body = next(parsed(html).iter("body"))
    return re.sub(r"\s+", " ", " ".join(body.itertext()))


def anchors(html: str) -> list[str]:
    return [node.attrib["id"] for node in parsed(html).iter("section")]


def self_contained(html: str) -> None:
    page = parsed(html)
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r"/\*.*?\*/", "", html.replace("</", "<")))
    assert not {node.tag for node in page.iter()} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "use",
    }
    for node in page.iter():
        for name, value in node.attrib.items():
            assert not name.lower().startswith("on")
            assert name not in ("src", "srcset", "action", "data", "xlink:href")
            assert name != "href" or value.startswith("#")
