"""Evaluation of embeddings of labelled rows: splits, readouts side by side, monitors, a picture."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanlabel.config import EvaluationSettings
from leanlabel.data.splits import Labelled, Split, make_splits, save_splits
from leanlabel.errors import InputError
from leanlabel.evaluation.collapse import monitors
from leanlabel.evaluation.probe import PARTS, logistic_l2
from leanlabel.evaluation.projection import project_2d
from leanlabel.evaluation.protocols import PROTOCOLS, compare_readouts
from leanlabel.sparse import Csr

DEAD_UNITS = 0.5
"""Share of embedding units that are constant over all rows from which on a warning is given."""


def planned_splits(data: Labelled, settings: EvaluationSettings, seed: int) -> list[Split]:
    """The splits that a configuration means; none where nothing is to be read out.

    Raises:
        InputError: unknown protocol, fewer than two classes, no such split, or parts that would be empty.
    """
    if settings.protocol != "none" and settings.protocol not in PROTOCOLS:
        near = difflib.get_close_matches(settings.protocol, ["none", *PROTOCOLS], n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known protocols: {', '.join(PROTOCOLS)}, none."
        raise InputError(f"evaluation.protocol: there is no protocol {settings.protocol!r}.", hint)
    if data.y is None or settings.protocol == "none":
        return []
    classes = torch.unique(data.y[data.y >= 0])
    if len(classes) < 2:
        raise InputError(
            f"{data.name}: the labels hold {len(classes)} class, a readout needs at least two.",
            "Correct the labels, or train without a readout: --set evaluation.protocol=none.",
        )
    kind = settings.split
    if kind == "auto":
        kind = "public" if {"train", "test"} <= data.splits.keys() else "random"
    found = make_splits(data, kind, shares=settings.shares, seed=seed, count=settings.splits)
    for split in found:
        for part in PARTS:
            if len(getattr(split, part)) == 0:
                raise InputError(
                    f"{data.name}: split {split.name} has no {part} rows.",
                    "Use evaluation.split=random, or other evaluation.shares.",
                )
    return found


def evaluate_readouts(
    data: Labelled,
    readouts: Mapping[str, Csr | Tensor],
    settings: EvaluationSettings,
    seed: int,
    protocol: str | None = None,
    splits_file: Path | None = None,
) -> dict[str, Any]:
    """Measure several embeddings of the same rows side by side.

    Args:
        data: labels and published splits; without labels only the monitors are measured.
        readouts: name -> (N, d): "untrained", after training "trained", and "raw" where there are features.
        settings: protocol, splits.
        seed: of splits and readout.
        protocol: name of the protocol; None takes the settings'.
        splits_file: where the splits are recorded (.npz).

    Returns:
        Plain data: "protocol" (None without labels), "monitors", "warnings", "figure".

    Raises:
        InputError: unknown protocol, or what :func:`planned_splits` raises.
    """
    if protocol is not None:
        settings = settings.model_copy(update={"protocol": protocol})
    splits = planned_splits(data, settings, seed)
    warnings: list[str] = []
    measured = None
    if splits and data.y is not None:
        measured, warnings = _measure(data, data.y, readouts, splits, settings, seed)
        if splits_file is not None:
            save_splits(splits_file, splits)
    elif settings.protocol != "none":
        warnings = ["the data has no labels: embeddings were trained, but nothing could be read out"]
    own = {key: z for key, z in readouts.items() if isinstance(z, Tensor) and key != "raw"}
    signs = {key: monitors(z) for key, z in own.items() if len(z) > 1}
    last = "trained" if "trained" in readouts else "untrained"
    dead = signs.get(last, {}).get("dead_units", 0.0)
    before = signs.get("untrained", {}).get("dead_units", 0.0)
    if last == "trained" and dead >= DEAD_UNITS > before:
        warnings.append(
            f"{dead:.0%} of the embedding units are the same for every row, {before:.0%} before training: "
            f"a lower optim.lr or another activation (prelu) keeps them alive"
        )
    return {
        "protocol": measured,
        "monitors": signs,
        "warnings": warnings,
        "figure": _figure(data, readouts[last], seed),
    }


def _measure(
    data: Labelled,
    y: Tensor,
    readouts: Mapping[str, Csr | Tensor],
    splits: list[Split],
    settings: EvaluationSettings,
    seed: int,
) -> tuple[dict[str, Any], list[str]]:
    options: dict[str, Any] = {"epochs": settings.probe_epochs} if settings.protocol == "gca-probe" else {}
    found = compare_readouts(
        readouts,
        y,
        [{part: getattr(split, part) for part in PARTS} for split in splits],
        protocol=settings.protocol,
        seed=seed,
        split_name="public" if splits[0].seed is None else "random",
        split_seed=splits[0].seed,
        **options,
    )
    last = found.results["trained" if "trained" in found.results else "untrained"]
    names = class_names(data)
    sizes = torch.bincount(y[y >= 0], minlength=len(names)).tolist()
    kept = ("mean", "std", "per_split", "macro_f1", "details")
    measured = {
        "protocol": settings.protocol,
        "metric": last.metric,
        "selection": last.selection,
        "settings": last.settings,
        "split": {**last.splits, "count": len(splits)},
        "readouts": {
            name: {key: value for key, value in result.as_dict().items() if key in kept}
            for name, result in found.results.items()
        },
        "per_class": _per_class(last.details, names, sizes),
    }
    notes = sorted({f"split {split.name}: {text}" for split in splits for text in split.warnings})
    return measured, [*found.warnings, *notes]


def class_names(data: Labelled) -> list[str]:
    """Names of the classes: the data's own, else their numbers; empty without labels."""
    if data.class_names is not None:
        return list(data.class_names)
    if data.y is None or len(data.y) == 0:
        return []
    return [str(c) for c in range(max(int(data.y.max()) + 1, 0))]


def _per_class(details: list[dict[str, Any]], names: list[str], sizes: list[int]) -> list[dict[str, Any]]:
    """Recall of each class, averaged over the splits that have it."""
    rows = []
    for c, (name, size) in enumerate(zip(names, sizes, strict=True)):
        seen = [
            row["recall"][c] for row in details if c < len(row["recall"]) and row["recall"][c] is not None
        ]
        rows.append({"name": name, "count": size, "recall": sum(seen) / len(seen) if seen else None})
    return rows


def _figure(data: Labelled, z: Csr | Tensor, seed: int) -> dict[str, Any]:
    """Two coordinates per row for the report, thinned evenly by class."""
    found = project_2d(z, seed=seed, y=data.y)
    labels = torch.full((z.shape[0],), -1) if data.y is None else data.y
    return {
        "method": {"tsne": "t-SNE", "pca": "principal components"}[found.method],
        "points": [[round(value, 3) for value in row] for row in found.points.tolist()],
        "labels": labels[found.rows].tolist(),
        "class_names": class_names(data),
        "shown": len(found.rows),
        "of": z.shape[0],
    }


def validation_score(data: Labelled, z: Tensor, settings: EvaluationSettings, seed: int) -> float:
    """Validation accuracy of an L2-regularised readout on the first split.

    Raises:
        InputError: the data has no labels to validate on.
    """
    splits = planned_splits(data, settings, seed)
    if not splits or data.y is None:
        raise InputError("evaluation.select=best_val needs labels.", "Use evaluation.select=last.")
    parts = {part: getattr(splits[0], part) for part in PARTS}
    return logistic_l2(z, data.y, parts, grid=(1.0,)).val_accuracy
