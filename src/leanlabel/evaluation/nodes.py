"""Evaluation of node embeddings: splits, readouts side by side, monitors, a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from leanlabel.config import Settings
from leanlabel.data.graphs import Graph
from leanlabel.data.splits import Split, save_splits
from leanlabel.data.splits import node_splits as draw_splits
from leanlabel.errors import InputError
from leanlabel.evaluation.collapse import monitors
from leanlabel.evaluation.probe import PARTS, logistic_l2
from leanlabel.evaluation.projection import project_2d
from leanlabel.evaluation.protocols import compare_readouts
from leanlabel.sparse import Csr

DEAD_UNITS = 0.5
"""Share of embedding units that are zero for every node from which on a warning is given."""


class NodeEvaluation(Settings):
    """How node embeddings are measured."""

    protocol: Literal["logistic-l2", "gca-probe", "none"] = "logistic-l2"
    """logistic-l2: L2-regularised logistic regression on normalised rows; gca-probe: the paper's linear probe on rows
    as they are; none: no labels are read."""
    split: Literal["auto", "public", "random"] = "auto"
    """The file's own split, random ones, or the file's where it has one."""
    splits: int = Field(default=4, ge=1)
    """Number of random splits."""
    shares: tuple[float, float, float] = (0.1, 0.1, 0.8)
    """Shares of labelled nodes for training, validation and test in random splits."""
    probe_epochs: int = Field(default=3000, ge=1)
    """Epochs of the paper's probe."""
    readout: Literal["trained", "untrained", "raw"] = "trained"
    """Which readout stands for this run in a comparison."""
    select: Literal["last", "best_val"] = "last"
    """Which weights are kept: the last ones, as published, or those of the best validation accuracy."""
    every: int = Field(default=20, ge=1)
    """Iterations between validations, where select is best_val."""


def node_splits(graph: Graph, settings: NodeEvaluation, seed: int) -> list[Split]:
    """The splits that a configuration means; none where nothing is to be read out.

    Raises:
        InputError: fewer than two classes, no such split, or parts that would be empty.
    """
    if graph.y is None or settings.protocol == "none":
        return []
    classes = torch.unique(graph.y[graph.y >= 0])
    if len(classes) < 2:
        raise InputError(
            f"{graph.name}: the labels hold {len(classes)} class, a readout needs at least two.",
            "Correct the labels, or train without a readout: --set evaluation.protocol=none.",
        )
    kind = settings.split
    if kind == "auto":
        kind = "public" if {"train", "test"} <= graph.splits.keys() else "random"
    found = draw_splits(graph, kind, shares=settings.shares, seed=seed, count=settings.splits)
    for split in found:
        for part in PARTS:
            if len(getattr(split, part)) == 0:
                raise InputError(
                    f"{graph.name}: split {split.name} has no {part} nodes.",
                    "Use evaluation.split=random or other shares.",
                )
    return found


def evaluate_nodes(
    graph: Graph,
    readouts: Mapping[str, Csr | Tensor],
    settings: NodeEvaluation,
    seed: int,
    protocol: str | None = None,
    splits_file: Path | None = None,
) -> dict[str, Any]:
    """Measure several embeddings of one graph side by side.

    Args:
        graph: with labels, or without: then only the monitors are measured.
        readouts: name -> (N, d): "raw", "untrained" and, after training, "trained".
        settings: protocol, splits.
        seed: of splits and readout.
        protocol: name of the protocol; None takes the settings'.
        splits_file: where the splits are recorded (.npz).

    Returns:
        Plain data: "protocol" (or None), "monitors", "warnings", "figure".
    """
    name = protocol or settings.protocol
    if protocol is not None:
        settings = settings.model_copy(update={"protocol": protocol})
    splits = node_splits(graph, settings, seed)
    warnings: list[str] = []
    measured = None
    if splits and graph.y is not None:
        if splits_file is not None:
            save_splits(splits_file, splits)
        measured, warnings = _measure(graph, graph.y, readouts, splits, settings, seed, name)
    elif name != "none":
        warnings = ["the graph has no labels: embeddings were trained, but nothing could be read out"]
    signs = {key: monitors(z) for key, z in readouts.items() if isinstance(z, Tensor) and key != "raw"}
    last = "trained" if "trained" in readouts else "untrained"
    dead = signs[last]["dead_units"]
    if last == "trained" and dead >= DEAD_UNITS:
        warnings.append(
            f"{dead:.0%} of the embedding units are zero for every node: a lower optim.lr or another activation "
            f"(prelu) keeps them alive"
        )
    return {
        "protocol": measured,
        "monitors": signs,
        "warnings": warnings,
        "figure": _figure(graph, readouts[last], seed),
    }


def _measure(
    graph: Graph,
    y: Tensor,
    readouts: Mapping[str, Csr | Tensor],
    splits: list[Split],
    settings: NodeEvaluation,
    seed: int,
    name: str,
) -> tuple[dict[str, Any], list[str]]:
    parts = [{part: getattr(split, part) for part in PARTS} for split in splits]
    split_name = "public" if splits[0].seed is None else "random"
    options: dict[str, Any] = {"epochs": settings.probe_epochs} if name == "gca-probe" else {}
    found = compare_readouts(
        readouts,
        y,
        parts,
        protocol=name,
        seed=seed,
        split_name=split_name,
        split_seed=splits[0].seed,
        **options,
    )
    last = found.results["trained" if "trained" in found.results else "untrained"]
    names = graph.class_names or [str(c) for c in range(graph.num_classes)]
    rows = {key: _readout(result.as_dict()) for key, result in found.results.items()}
    measured = {
        "protocol": name,
        "metric": last.metric,
        "selection": last.selection,
        "settings": last.settings,
        "split": {**last.splits, "count": len(splits)},
        "readouts": rows,
        "per_class": _per_class(
            last.details, names, torch.bincount(y[y >= 0], minlength=len(names)).tolist()
        ),
    }
    notes = sorted({f"split {split.name}: {text}" for split in splits for text in split.warnings})
    return measured, [*found.warnings, *notes]


def _readout(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("mean", "std", "per_split", "macro_f1", "details")}


def _per_class(details: list[dict[str, Any]], names: list[str], sizes: list[int]) -> list[dict[str, Any]]:
    """Recall of each class, averaged over the splits that have it."""
    rows = []
    for c, (name, size) in enumerate(zip(names, sizes, strict=True)):
        seen = [
            row["recall"][c] for row in details if c < len(row["recall"]) and row["recall"][c] is not None
        ]
        rows.append({"name": name, "count": size, "recall": sum(seen) / len(seen) if seen else None})
    return rows


def _figure(graph: Graph, z: Csr | Tensor, seed: int) -> dict[str, Any]:
    """Two coordinates per node for the report, thinned evenly by class."""
    found = project_2d(z, seed=seed, y=graph.y)
    labels = torch.full((graph.num_nodes,), -1) if graph.y is None else graph.y
    return {
        "method": {"tsne": "t-SNE", "pca": "principal components"}[found.method],
        "points": [[round(value, 3) for value in row] for row in found.points.tolist()],
        "labels": labels[found.rows].tolist(),
        "class_names": graph.class_names or [str(c) for c in range(graph.num_classes)],
        "shown": len(found.rows),
        "of": graph.num_nodes,
    }


def validation_score(graph: Graph, z: Tensor, settings: NodeEvaluation, seed: int) -> float:
    """Validation accuracy of an L2-regularised readout on the first split.

    Raises:
        InputError: the graph has no labels to validate on.
    """
    splits = node_splits(graph, settings, seed)
    if not splits or graph.y is None:
        raise InputError("evaluation.select=best_val needs labels.", "Use evaluation.select=last.")
    parts = {part: getattr(splits[0], part) for part in PARTS}
    return logistic_l2(z, graph.y, parts, grid=(1.0,)).val_accuracy
