"""The classifier of a run: made when the run is evaluated, kept in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanlabel.engine.checkpoint import load_tensors, save_tensors
from leanlabel.engine.method import Method
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import (
    PROTOCOL,
    Classifier,
    deployed_classifier,
    expectation,
    from_parts,
    rows_of,
)

OWN = "own classifier"
"""Where other runs name the protocol of their readout."""


def classifier_of(method: Method, data: Any, measured: Mapping[str, Any] | None = None) -> Classifier | None:
    """The classifier that a trained model hands out: its own, or one fitted to its embeddings.

    Args:
        method: the trained model.
        data: what it was trained on.
        measured: what the run's protocol measured (plain data); None where nothing is known.

    Returns:
        The classifier, with the accuracy to expect where it is known; None where there are no labels to fit on.
    """
    if not method.reads_out:
        return None
    own = method.classifier()
    known = {} if measured is None else measured["readouts"]
    if own is None:
        same = measured is not None and measured["protocol"] == PROTOCOL
        name = next((one for one in ("trained", "initial", "untrained") if one in known), "trained")
        settings, seed = method.cfg.evaluation, method.cfg.seed
        found = deployed_classifier(
            method.labelled(data), method.embed(data), settings, seed, measured if same else None, name
        )
    else:
        about = dict(own.about)
        if measured is not None and "trained" in known:
            about["expected"] = expectation(
                known["trained"]["per_split"], OWN, measured["split"]["name"], len(own.seen)
            )
        found = replace(own, about=about)
    return None if found is None else replace(found, about={**found.about, "rows_of": rows_of(data)})


def save(path: Path, classifier: Classifier) -> None:
    """Write a classifier as safetensors, whole or not at all."""
    save_tensors(path, classifier.tensors(), classifier.described())


def read(path: Path) -> Classifier | None:
    """The classifier at a path; None where there is no file.

    Raises:
        InputError: a damaged file.
    """
    if not path.exists():
        return None
    tensors, described = load_tensors(path)
    try:
        return from_parts(tensors, described)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not a readout ({error}).", "Delete it; `leanlabel evaluate` makes it again."
        ) from error
