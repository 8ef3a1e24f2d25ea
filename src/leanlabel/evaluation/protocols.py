"""Named ways to turn frozen embeddings and labels into one recorded number."""

from __future__ import annotations

import difflib
import math
import statistics as plain
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from leanlabel.errors import InputError
from leanlabel.evaluation.clustering import Clustering, kmeans_scores
from leanlabel.evaluation.confusion import accuracy, confusion_matrix
from leanlabel.evaluation.image_recipes import RECIPES, SELECTION
from leanlabel.evaluation.knn import Neighbours, knn_scores
from leanlabel.evaluation.probe import (
    GRID,
    Logistic,
    Probe,
    Scores,
    Split,
    linear_probes,
    logistic_l2,
    score_fields,
    split_parts,
)
from leanlabel.evaluation.scored_rows import describe_labelled, describe_splits
from leanlabel.evaluation.statistics import paired_difference
from leanlabel.sparse import Csr

Run = Callable[..., Sequence[Scores] | Sequence[Clustering]]


@dataclass(frozen=True)
class Protocol:
    """One named readout: what it runs, how it selects, and the settings it may be given."""

    run: Run
    """(z, y, splits, seed, **settings) -> scores per split (or seed of its own)."""
    selection: str
    """How the scored model is chosen, for people."""
    settings: Mapping[str, Any]
    """Allowed settings with their defaults."""
    metric: str = "accuracy"
    """Attribute of the scores that is reported."""
    images: bool = False
    """Whether it trains on the images themselves, which embeddings cannot stand in for."""
    unit: str = "split"
    """What one score stands for. Without splits a protocol reads all labelled rows."""

    @property
    def needs_splits(self) -> bool:
        """Whether rows are divided into training, validation and test."""
        return self.unit == "split"


@dataclass(frozen=True)
class Result:
    """What a protocol measured; scores are shares in [0, 1]."""

    protocol: str
    metric: str
    mean: float
    std: float | None
    """Over splits, n - 1 in the denominator; None for one split."""
    per_split: list[float]
    """One value per split, or per `unit` where that is another."""
    n_splits: int
    """Number of those values."""
    splits: dict[str, Any]
    """name, shares of the parts in all rows, seed, sha256 of the row ids."""
    selection: str
    macro_f1: float | None
    """Mean over splits; None where classes are not predicted."""
    seed: int
    """Of the readout's own random numbers."""
    settings: dict[str, Any]
    details: list[dict[str, Any]] = field(repr=False)
    """Per split: validation accuracy, macro F1, recall per class, test rows, and what was selected. For clusters, per
    seed of k-means: all scores and counts."""
    unit: str = "split"
    """What one value stands for: a split, or a seed of the readout."""
    others: dict[str, float] = field(default_factory=dict)
    """Means of further scores by name."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Readouts of several embeddings of the same rows, on the same splits."""

    results: dict[str, Result]
    warnings: list[str]
    """Sentences for people, one per baseline that the trained embeddings fall behind."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "results": {name: result.as_dict() for name, result in self.results.items()},
            "warnings": list(self.warnings),
        }


def readout(
    name: str,
    z: Tensor | Csr,
    y: Tensor,
    splits: Split | Sequence[Split],
    seed: int = 0,
    *,
    split_name: str | None = None,
    split_seed: int | None = None,
    **settings: Any,
) -> Result:
    """Score embeddings with a named protocol on one or several splits.

    Args:
        name: "gca-probe" (:func:`linear_probe`), "logistic-l2" (:func:`logistic_l2`), "knn" (:func:`knn_scores`) or
            "clustering" (:func:`kmeans_scores`). Those of `leanlabel.evaluation.image_probe` need the images.
        z: (N, d) embeddings or stored features; no gradient.
        y: (N,) int64 classes; rows outside the splits may carry a negative label.
        splits: row ids under "train", "val", "test"; one such split or a list. Clustering reads none of them.
        seed: of the readout's own random numbers.
        split_name, split_seed: recorded in the result; default what the splits say under "name" and "seed".
        **settings: settings of the protocol that differ from its defaults, e.g. epochs=800.

    Returns:
        Mean, spread and details, with protocol, splits and selection named.

    Raises:
        InputError: unknown protocol or setting, or one that needs the images.
        ValueError: no split where one is needed, or z, y and splits do not fit; see :func:`linear_probe`.

    Example:
        >>> import torch
        >>> rows = torch.arange(12)
        >>> split = {"train": rows[:4], "val": rows[4:8], "test": rows[8:]}
        >>> z = torch.nn.functional.one_hot(rows % 2).float()
        >>> readout("gca-probe", z, rows % 2, split, epochs=40).mean
        1.0
    """
    protocol = _protocol(name)
    unknown = sorted(settings.keys() - protocol.settings.keys())
    if unknown:
        known = ", ".join(protocol.settings)
        raise InputError(f"Protocol {name} has no setting {unknown[0]!r}.", f"It has {known}.")
    listed = [splits] if isinstance(splits, Mapping) else list(splits)
    if not listed and protocol.needs_splits:
        raise ValueError("a readout needs at least one split")
    chosen = {**protocol.settings, **settings}
    scores = protocol.run(z, y, listed, seed, **chosen)
    return _result(name, scores, y, listed, protocol.selection, seed, chosen, split_name, split_seed)


def predicted(
    name: str,
    scores: Sequence[Tensor],
    y: Tensor,
    splits: Sequence[Split],
    selection: str,
    *,
    split_name: str | None = None,
    split_seed: int | None = None,
    details: Sequence[Mapping[str, Any]] | None = None,
) -> Result:
    """Score a classifier's own predictions on the splits of a protocol; nothing is fitted.

    So are those of a readout that needs the images (:func:`leanlabel.evaluation.image_probe.run_probe`): the result
    then carries the protocol's settings.

    Args:
        name: protocol under which the result is filed, so that it stands beside readouts of the same splits.
        scores: one (N, C) per split, any monotone class scores; no gradient.
        y: (N,) int64 classes.
        splits: as many as scores.
        selection: how the classifier was chosen, for people.
        details: one mapping per split of plain data to record beside the scores, such as those of the best epoch.

    Raises:
        ValueError: scores, details and splits do not fit.
    """
    if len(scores) != len(splits) or (details is not None and len(details) != len(splits)):
        told = "" if details is None else f" and {len(details)} details"
        raise ValueError(f"{len(scores)} sets of predictions{told} for {len(splits)} splits")
    protocol = PROTOCOLS[name]
    found = []
    for logits, split in zip(scores, splits, strict=True):
        _, val, test = split_parts(split, y)
        guess, classes = logits.argmax(1).cpu(), max(logits.shape[1], int(y.max()) + 1)
        tables = [confusion_matrix(y.cpu()[rows], guess[rows], classes) for rows in (val, test)]
        found.append(Scores(**score_fields(tables[1], accuracy(tables[0]))))
    settings = protocol.settings if protocol.images else {"own_classifier": True}
    result = _result(name, found, y, splits, selection, 0, settings, split_name, split_seed)
    if details is None:
        return result
    return replace(
        result, details=[{**more, **row} for more, row in zip(details, result.details, strict=True)]
    )


def compare_readouts(
    embeddings: Mapping[str, Tensor | Csr],
    y: Tensor,
    splits: Split | Sequence[Split],
    *,
    protocol: str = "logistic-l2",
    seed: int = 0,
    trained: str = "trained",
    split_name: str | None = None,
    split_seed: int | None = None,
    ready: Mapping[str, Result] | None = None,
    **settings: Any,
) -> Comparison:
    """Score several embeddings of the same rows side by side, and warn where training has cost accuracy.

    A warning is given for each other entry whose mean score exceeds that of `trained` by more than one
    standard error of the difference: sd of the paired differences / sqrt(splits), or for the accuracy on one
    split the binomial sqrt((p (1 - p) + q (1 - q)) / test rows). One clustering gives no warning.

    Args:
        embeddings: name -> (N, d), e.g. "raw" features, "untrained" encoder, "trained" encoder.
        y, splits, seed, split_name, split_seed, **settings: as in :func:`readout`.
        protocol: name of the protocol.
        trained: the entry that is held against all others; without it nothing is warned about.
        ready: results that are known already, by name; they are not measured again.

    Returns:
        One result per entry, in the given order, and the warnings.

    Raises:
        InputError, ValueError: as in :func:`readout`.
    """
    known = dict(ready or {})
    results = {
        name: known.pop(name)
        if name in known
        else readout(protocol, z, y, splits, seed, split_name=split_name, split_seed=split_seed, **settings)
        for name, z in embeddings.items()
    } | known
    warnings = []
    if trained in results:
        for name, result in results.items():
            text = _fallen_behind(trained, results[trained], name, result) if name != trained else None
            warnings += [text] if text else []
    return Comparison(results, warnings)


def _fallen_behind(trained: str, result: Result, name: str, other: Result) -> str | None:
    pair = paired_difference(result.per_split, other.per_split)
    if pair.sd is not None:
        error = pair.sd / math.sqrt(pair.n)
    elif result.metric == "accuracy":
        variance = sum(r.mean * (1 - r.mean) for r in (result, other))
        error = math.sqrt(variance / result.details[0]["test_rows"])
    else:  # one value says nothing about its spread
        return None
    if pair.mean >= -error:
        return None
    over = f"over {pair.n} {result.unit}s" if pair.n > 1 else "of one test part"
    return (
        f"{trained} worse than {name}: {result.metric} {result.mean:.3f} against {other.mean:.3f} "
        f"(difference {pair.mean:+.3f}, standard error {error:.3f} {over})"
    )


def _gca_probe(
    z: Tensor | Csr, y: Tensor, splits: Sequence[Split], seed: int, **settings: Any
) -> Sequence[Scores]:
    return linear_probes(z, y, splits, seed=seed, **settings)


def _logistic_l2(
    z: Tensor | Csr, y: Tensor, splits: Sequence[Split], seed: int, **settings: Any
) -> Sequence[Scores]:
    # The problem is convex and starts at zero: the seed plays no part.
    return [logistic_l2(z, y, split, **settings) for split in splits]


def _knn(z: Tensor | Csr, y: Tensor, splits: Sequence[Split], seed: int, **settings: Any) -> Sequence[Scores]:
    # Nothing is drawn and nothing is fitted.
    return [knn_scores(z, y, split, **settings) for split in splits]


def _clustering(
    z: Tensor | Csr, y: Tensor, splits: Sequence[Split], seed: int, **settings: Any
) -> Sequence[Clustering]:
    return kmeans_scores(z, y, seed=seed, **settings)


def _needs_images(
    z: Tensor | Csr, y: Tensor, splits: Sequence[Split], seed: int, **settings: Any
) -> Sequence[Scores]:
    raise InputError(
        "This protocol trains on views of the images, and was given embeddings.",
        "Use it with a method that trains on images; knn and logistic-l2 read any embeddings.",
    )


PROTOCOLS: dict[str, Protocol] = {
    "gca-probe": Protocol(
        _gca_probe,
        "probe epoch with best validation accuracy, first maximum",
        {"epochs": 3000, "lr": 0.01, "every": 20},
    ),
    "logistic-l2": Protocol(
        _logistic_l2,
        "L2 strength with best validation accuracy, first maximum; fitted on the training part only",
        {"grid": GRID, "normalise": True, "max_iter": 2000},
    ),
    "knn": Protocol(
        _knn,
        "none: k and temperature are fixed",
        {"k": 200, "temperature": 0.1},
    ),
    "clustering": Protocol(
        _clustering,
        "none: labels are used only to score, and to count the clusters",
        {"normalise": True, "n_init": 10, "repeats": 5},
        metric="nmi",
        unit="k-means seed",
    ),
} | {
    name: Protocol(_needs_images, SELECTION, recipe.settings, images=True) for name, recipe in RECIPES.items()
}


def _result(
    name: str,
    scores: Sequence[Scores] | Sequence[Clustering],
    y: Tensor,
    splits: Sequence[Split],
    selection: str,
    seed: int,
    settings: Mapping[str, Any],
    split_name: str | None,
    split_seed: int | None,
) -> Result:
    protocol = PROTOCOLS[name]
    values = [getattr(score, protocol.metric) for score in scores]
    return Result(
        protocol=name,
        metric=protocol.metric,
        mean=math.fsum(values) / len(values),
        std=plain.stdev(values) if len(values) > 1 else None,
        per_split=values,
        n_splits=len(values),
        splits=describe_splits(splits, y, split_name, split_seed)
        if protocol.needs_splits
        else describe_labelled(y),
        selection=selection,
        macro_f1=_mean("macro_f1", scores),
        seed=seed,
        settings={key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()},
        details=[_detail(score) for score in scores],
        unit=protocol.unit,
        others={} if (ari := _mean("ari", scores)) is None else {"ari": ari},
    )


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known protocols: {', '.join(PROTOCOLS)}."
        raise InputError(f"There is no evaluation protocol {name!r}.", hint)
    return PROTOCOLS[name]


def _mean(name: str, scores: Sequence[Any]) -> float | None:
    """Mean of a score over all, None where they have no such score."""
    values = [getattr(score, name) for score in scores if hasattr(score, name)]
    return math.fsum(values) / len(values) if values else None


def _detail(score: Scores | Clustering) -> dict[str, Any]:
    if isinstance(score, Clustering):
        return asdict(score)
    selected: dict[str, Any] = {}
    if isinstance(score, Probe):
        selected = {"epoch": score.epoch}
    elif isinstance(score, Logistic):
        selected = {"strength": score.strength, "converged": score.converged}
    elif isinstance(score, Neighbours):
        selected = {"k": score.k}
    return {
        "val_accuracy": score.val_accuracy,
        "macro_f1": score.macro_f1,
        "recall": list(score.recall),
        "test_rows": int(score.confusion.sum()),
        **selected,
    }
