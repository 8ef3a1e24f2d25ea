"""Where the power mean looks: share of the gradient's weight near borders, by class size, of finished runs.

    python proofs/locally-adaptive/emphasis.py RUN... >> proofs/locally-adaptive/emphasis.jsonl

For the images of the main part: pixels within two pixels of a border of two classes, and pixels of classes with less
than 2 % of the training pixels; their share of all labelled pixels, and of the weight eps^(k - 1) for k = 2 and 5.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.nn.functional import max_pool2d

from leanlabel import api
from leanlabel.losses.locally_adaptive import window_weights
from leanlabel.losses.pixel import align
from leanlabel.methods.dense_measuring import device_labels
from leanlabel.methods.dense_readouts import by_size, main_part

NEAR = 2
TAIL = 0.02


def near_border(labels: torch.Tensor) -> torch.Tensor:
    """(B, H, W) bool: a pixel of another class lies within NEAR pixels."""
    x = labels[:, None].float()
    side = 2 * NEAR + 1
    high, low = max_pool2d(x, side, 1, NEAR), -max_pool2d(-x, side, 1, NEAR)
    return (high != low)[:, 0]


@torch.no_grad()
def shares(place: Path) -> dict[str, object]:
    """Numbers of one run."""
    run = api.load(place)
    method, data = run.method, run.data
    part = main_part(data, run.config.evaluation.part)  # type: ignore[attr-defined]
    counts = torch.tensor(method.class_pixels(data)).double()  # type: ignore[operator]
    tail = (counts / counts.sum()) < TAIL
    total: dict[str, float] = {}
    for _, images, masks in by_size(data, data.splits[part], 8):
        labels = device_labels(masks)
        known = labels >= 0
        there = {"border": near_border(labels) & known, "tail": tail[labels.clamp_min(0)] & known}
        logits, _ = align(method.deployed.eval()(method.normalised(images)).logits, labels)  # type: ignore[operator]
        weights = {"pixels": known.double()}
        for k in (2.0, 5.0):
            # Images one by one, then scaled to their numbers of pixels, so that none outweighs the others.
            found = [
                window_weights(x[None], y[None], k=k, n=1)[0] for x, y in zip(logits, labels, strict=True)
            ]
            weights[f"k={k:g}"] = torch.stack(
                [w * (y >= 0).sum() / w.sum() for w, y in zip(found, labels, strict=True)]
            )
        for name, weight in weights.items():
            total[name] = total.get(name, 0.0) + float(weight.sum())
            for where, inside in there.items():
                total[f"{where} {name}"] = total.get(f"{where} {name}", 0.0) + float(weight[inside].sum())
    found_shares = {
        f"{where} {name}": round(total[f"{where} {name}"] / total[name], 4)
        for name in ("pixels", "k=2", "k=5")
        for where in ("border", "tail")
    }
    return {"recipe": run.provenance["recipe"], "seed": run.config.seed, "part": part, "shares": found_shares}


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        sys.stdout.write(json.dumps(shares(Path(argument))) + "\n")
