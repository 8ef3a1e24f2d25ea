"""How many units of the embedding die on Amazon-Photo, by learning rate and activation.

    LEANLABEL_DATA=... python proofs/gca/dead_units.py [--steps 25]

Appends one line per setting to ``dead_units.jsonl``: share of embedding units that are zero for every node after each
iteration (view 1, training), loss, and the readout of raw, untrained and trained embeddings (protocol logistic-l2, one
random 10/10/80 split, weights of the last iteration). Settings already recorded are not run again.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from leanlabel import api
from leanlabel.engine.runfolder import JsonLines, environment, read_lines

HERE = Path(__file__).parent
SETTINGS = [
    ("gca/amazon-photo-corrected", "relu", 0.1),
    ("gca/amazon-photo-corrected", "relu", 0.01),
    ("gca/amazon-photo-corrected", "relu", 0.001),
    ("gca/amazon-photo-corrected", "prelu", 0.1),
]


def main() -> None:
    """Run what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25)
    steps = parser.parse_args().steps
    file = HERE / "dead_units.jsonl"
    done = {(row["recipe"], row["activation"], row["lr"], row["steps"]) for row in read_lines(file)}
    for recipe, activation, lr in SETTINGS:
        if (recipe, activation, lr, steps) in done:
            continue
        overrides = [
            f"steps={steps}",
            f"optim.lr={lr}",
            f"model.activation={activation}",
            "evaluation.splits=1",
            "engine.loggers=[]",
        ]
        with tempfile.TemporaryDirectory() as folder:
            run = api.fit(recipe, run=Path(folder) / "run", overrides=overrides, quiet=True)
            lines = JsonLines(file)
            readouts = run.results["protocols"]["logistic-l2"]["readouts"]
            lines.append(
                {
                    "recipe": recipe,
                    "activation": activation,
                    "lr": lr,
                    "steps": steps,
                    "seed": run.config.seed,
                    "dead_units": [round(row["dead_units"], 4) for row in run.metrics],
                    "loss": [round(row["loss"], 4) for row in run.metrics],
                    "accuracy": {name: one["mean"] for name, one in readouts.items()},
                    "val_accuracy": {
                        name: one["details"][0]["val_accuracy"] for name, one in readouts.items()
                    },
                    "environment": environment(),
                    "date": datetime.now(UTC).strftime("%Y-%m-%d"),
                }
            )
            lines.close()


if __name__ == "__main__":
    main()
