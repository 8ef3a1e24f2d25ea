"""Evaluation of embeddings of labelled rows: splits, readouts side by side, monitors, a picture."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from leanlabel.config import EvaluationSettings
from leanlabel.data.splits import Labelled, Split, make_splits, save_splits
from leanlabel.errors import InputError
from leanlabel.evaluation.collapse import monitors
from leanlabel.evaluation.probe import PARTS, logistic_l2
from leanlabel.evaluation.projection import project_2d
from leanlabel.evaluation.protocols import PROTOCOLS, Result, compare_readouts, predicted
from leanlabel.sparse import Csr

KEPT = 2
"""Version of what a cache keeps of a readout; another one is not looked at."""
DEAD_UNITS = 0.5
"""Share of embedding units that are constant over all rows from which on a warning is given."""


class Cache(Protocol):
    """Where finished measurements are kept: plain data by name."""

    def get(self, name: str, /) -> dict[str, Any] | None: ...

    def put(self, name: str, value: dict[str, Any], /) -> None: ...


def planned_splits(data: Labelled, settings: EvaluationSettings, seed: int) -> list[Split]:
    """The splits that a configuration means; none where nothing is read out, or without dividing the rows.

    Raises:
        InputError: unknown protocol, one that needs images of data without, fewer than two classes, no such split, or
            parts that would be empty.
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
    if not PROTOCOLS[settings.protocol].needs_splits and settings.select != "best_val":
        return []
    if PROTOCOLS[settings.protocol].images and not hasattr(data, "pixels"):
        raise InputError(
            f"evaluation.protocol={settings.protocol}: this protocol trains on images, and {data.name} has none.",
            "Use knn or logistic-l2, which read any embeddings.",
        )
    kind = settings.split
    if kind == "auto":
        kind = "public" if {"train", "test"} <= data.splits.keys() else "random"
    made = make_splits(data, kind, shares=settings.shares, seed=seed, count=settings.splits)
    found = [_labelled_rows(split, data.y) for split in made]
    for split in found:
        for part in PARTS:
            if len(getattr(split, part)) == 0:
                raise InputError(
                    f"{data.name}: split {split.name} has no {part} rows.",
                    "Use evaluation.split=random, or other evaluation.shares.",
                )
    return found


def _labelled_rows(split: Split, y: Tensor) -> Split:
    """The split without rows whose label is unknown, which published parts may have."""
    kept = {part: rows[y[rows] >= 0] for part in PARTS if len(rows := getattr(split, part))}
    return replace(split, **kept)


def evaluate_readouts(
    data: Labelled,
    readouts: Mapping[str, Csr | Tensor],
    settings: EvaluationSettings,
    seed: int,
    protocol: str | None = None,
    splits_file: Path | None = None,
    *,
    predictions: Mapping[str, Sequence[Tensor]] | None = None,
    selection: str = "",
    details: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """Measure several embeddings of the same rows side by side.

    Args:
        data: labels and published splits; without labels only the monitors are measured.
        readouts: name -> (N, d): "untrained", after training "trained", and "raw" where there are features.
        settings: protocol, splits.
        seed: of splits and readout.
        protocol: name of the protocol; None takes the settings'.
        splits_file: where the splits are recorded (.npz).
        predictions: name -> one (N, C) of class scores per split, for a method with a classifier of its own; they
            stand in place of a readout of the embeddings of that name. A protocol that needs the images measures
            only these (see :func:`leanlabel.evaluation.image_probe.run_probe`).
        selection: how those classifiers were chosen, for people; not read for a protocol that needs the images.
        details: name -> one mapping per split of plain data to record beside the scores of those predictions.
        cache: finished measurements by a hash of all that they depend on; arms of a comparison share those of raw
            features and of untrained encoders there. None for none.

    Returns:
        Plain data: "protocol" (None without labels), "monitors", "warnings", "figure".

    Raises:
        InputError: unknown protocol, one that needs the images without predictions, or what :func:`planned_splits`
            raises.
    """
    if protocol is not None:
        settings = settings.model_copy(update={"protocol": protocol})
    splits = planned_splits(data, settings, seed)
    warnings: list[str] = []
    measured = None
    if data.y is not None and settings.protocol != "none":
        if not PROTOCOLS[settings.protocol].needs_splits:
            splits, predictions = [], None  # whatever was drawn or predicted for splits is not read here
        if PROTOCOLS[settings.protocol].images:
            selection = PROTOCOLS[settings.protocol].selection
        own = {
            key: (scores, selection, (details or {}).get(key)) for key, scores in (predictions or {}).items()
        }
        measured, warnings = _measure(data, data.y, readouts, splits, settings, seed, own, cache)
        if splits and splits_file is not None:
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
    own: Mapping[str, tuple[Sequence[Tensor], str, Sequence[Mapping[str, Any]] | None]],
    cache: Cache | None,
) -> tuple[dict[str, Any], list[str]]:
    options = protocol_options(settings)
    parts = [{part: getattr(split, part) for part in PARTS} for split in splits]
    named: dict[str, Any] = {
        "split_name": "public" if splits and splits[0].seed is None else "random",
        "split_seed": splits[0].seed if splits else None,
    }
    ready = {
        key: predicted(settings.protocol, scores, y, parts, how, details=told, **named)
        for key, (scores, how, told) in own.items()
    }
    if ready and PROTOCOLS[settings.protocol].images:
        readouts = {key: z for key, z in readouts.items() if key in ready}
    keys: dict[str, str] = {}
    if cache is not None:
        told = [
            settings.protocol,
            seed,
            named,
            options,
            *(value for part in parts for value in part.values()),
        ]
        keys = {
            key: f"readout-{_digest(z, y, *told)}"
            for key, z in readouts.items()
            if key not in ready and key != "trained"
        }
        known = {key: cache.get(name) for key, name in keys.items()}
        fitting = {key: _fitting(found, settings.protocol) for key, found in known.items()}
        ready |= {key: one for key, one in fitting.items() if one is not None}
    found = compare_readouts(
        readouts, y, parts, protocol=settings.protocol, seed=seed, ready=ready, **named, **options
    )
    for key, name in keys.items():
        if cache is not None and key not in ready:
            cache.put(name, found.results[key].as_dict())
    last = found.results["trained" if "trained" in found.results else "untrained"]
    names = class_names(data)
    sizes = torch.bincount(y[y >= 0], minlength=len(names)).tolist()
    kept = {"mean", "std", "per_split", "macro_f1", "details"} | ({"others"} if last.others else set())
    measured = {
        "protocol": settings.protocol,
        "metric": last.metric,
        "selection": last.selection,
        "settings": last.settings,
        "split": {**last.splits, "count": max(1, len(splits))},
        "unit": last.unit,
        "readouts": {
            name: {key: value for key, value in result.as_dict().items() if key in kept}
            for name, result in found.results.items()
        },
        "per_class": _per_class(last.details, names, sizes) if splits else [],
    }
    notes = sorted({f"split {split.name}: {text}" for split in splits for text in split.warnings})
    return measured, [*found.warnings, *notes]


def protocol_options(settings: EvaluationSettings) -> dict[str, Any]:
    """What the settings say about the protocol that they name."""
    if settings.protocol == "gca-probe":
        return {"epochs": settings.probe_epochs}
    if settings.protocol == "knn":
        return {"k": settings.knn_k, "temperature": settings.knn_temperature}
    return {}


def _fitting(found: dict[str, Any] | None, protocol: str) -> Result | None:
    """What a cache gave as a result; None for anything else, such as a damaged file, which is then replaced."""
    try:
        result = TypeAdapter(Result).validate_json(json.dumps(found), strict=True)
    except ValidationError:
        return None
    values = [result.mean, *result.per_split]
    needed = {"recall", "test_rows"} if PROTOCOLS[protocol].needs_splits else set()
    sound = (
        result.protocol == protocol
        and 0 < result.n_splits == len(result.per_split) == len(result.details)
        and all(math.isfinite(value) for value in values)
        and all(needed <= row.keys() for row in result.details)
    )
    return result if sound else None


def _digest(*parts: Any) -> str:
    """Hash of tensors and plain values, by content."""
    digest = hashlib.sha256(f"readout {KEPT}".encode())
    for part in parts:
        tensors = (part.crow, part.col, part.values) if isinstance(part, Csr) else (part,)
        for one in tensors:
            if isinstance(one, Tensor):
                array = one.detach().cpu().contiguous()
                digest.update(f"|{array.dtype} {tuple(array.shape)} ".encode())
                digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
            else:
                digest.update(f"|{json.dumps(one, sort_keys=True)}".encode())
    return digest.hexdigest()[:20]


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
