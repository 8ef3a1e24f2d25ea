"""A classifier to deploy: class probabilities from embeddings, by a linear map fitted on labelled rows.

Evaluation asks how good embeddings are and throws its readouts away; this one is kept, for rows without labels.
"""

from __future__ import annotations

import hashlib
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from leanlabel.config import EvaluationSettings
from leanlabel.data import images
from leanlabel.data.graphs import Graph, fingerprint
from leanlabel.data.splits import Labelled
from leanlabel.evaluation.probe import PARTS, TOLERANCE, logistic_l2
from leanlabel.evaluation.readouts import class_names, planned_splits

PROTOCOL = "logistic-l2"
MOST_SPLITS = 4
"""Splits on which the strength is chosen where the run was measured by another protocol."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A linear layer over embeddings, and what is known about it.

    Attributes:
        weight: (C, d) floating point.
        bias: (C,); minus infinity for a class that no training row has.
        normalise: divide each embedding by its L2 norm first; a row of norm 0 stays 0.
        classes: C names.
        seen: (n,) int64, rows of the data whose labels were used to fit it.
        about: plain data for people: what it was fitted on, which accuracy to expect by which protocol.
    """

    weight: Tensor
    bias: Tensor
    normalise: bool
    classes: tuple[str, ...]
    seen: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"weight must be (C, d) and bias (C,), got {tuple(self.weight.shape)} "
                f"and {tuple(self.bias.shape)}"
            )
        if len(self.classes) != len(self.bias):
            raise ValueError(f"{len(self.classes)} class names for {len(self.bias)} classes")

    def probabilities(self, z: Tensor) -> Tensor:
        """Class probabilities of embeddings.

        p = softmax(u W^T + b), u = z / ||z|| where `normalise` is set, else z.

        Args:
            z: (N, d), any scale.

        Returns:
            (N, C) on the device of z, in the wider of both types; rows sum to 1.

        Raises:
            ValueError: another width.

        Example:
            >>> rule = Classifier(torch.eye(2), torch.zeros(2), True, ("left", "right"))
            >>> rule.probabilities(torch.tensor([[0.0, 0.0], [-3.0, -3.0]])).tolist()
            [[0.5, 0.5], [0.5, 0.5]]
        """
        if z.ndim != 2 or z.shape[1] != self.weight.shape[1]:
            raise ValueError(f"embeddings must be (N, {self.weight.shape[1]}), got {tuple(z.shape)}")
        wide = torch.promote_types(z.dtype, self.weight.dtype)
        z = z.to(wide)
        if self.normalise:
            norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
            z = z / torch.where(norm == 0, 1, norm)
        weight, bias = self.weight.to(z.device, wide), self.bias.to(z.device, wide)
        return torch.softmax(z @ weight.mT + bias, dim=1)

    def saw(self, data: Any, rows: int) -> Tensor:
        """Which rows of data it was fitted on, bool (rows,).

        None of other data's; rows are known by their content, so labels may have been added or taken away since.
        """
        mask = torch.zeros(rows, dtype=torch.bool)
        if len(self.seen) and self.about.get("rows_of") == rows_of(data):
            mask[self.seen] = True
        return mask

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, to be written to a file."""
        return {"weight": self.weight, "bias": self.bias, "seen": self.seen}

    def described(self) -> dict[str, Any]:
        """Everything that is no tensor, as plain data; see :func:`from_parts`."""
        return {"classes": list(self.classes), "normalise": self.normalise, "about": dict(self.about)}


def rows_of(data: Any) -> str | None:
    """Hash of the rows of data without their labels and splits; None for data that has no such hash."""
    if isinstance(data, Graph):
        return fingerprint(replace(data, y=None, splits={}, class_names=None))
    if isinstance(data, images.Images):
        # Of files the names and sizes count, of pixels in memory the pixels.
        known = data.ids if isinstance(data.pixels, images.PixelFiles) else None
        return images.fingerprint(images.Images(data.name, data.pixels, ids=known))
    rows = data[0] if isinstance(data, tuple) and data else data
    if not isinstance(rows, Tensor):
        return None
    array = rows.detach().cpu().contiguous().numpy()
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()


def from_parts(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Classifier:
    """The classifier whose `tensors()` and `described()` these are.

    Raises:
        KeyError, TypeError, ValueError: something is missing or does not fit.
    """
    return Classifier(
        tensors["weight"],
        tensors["bias"],
        bool(described["normalise"]),
        tuple(str(name) for name in described["classes"]),
        tensors["seen"],
        dict(described["about"]),
    )


def fit_classifier(
    z: Tensor,
    y: Tensor,
    rows: Tensor,
    classes: Sequence[str],
    *,
    strength: float = 1.0,
    normalise: bool = True,
    max_iter: int = 2000,
) -> Classifier:
    """Fit L2-regularised multinomial logistic regression on some rows, for use on others.

    min over W, b of ||W||^2 / 2 + C sum over rows of cross-entropy(u W^T + b), the problem of
    :func:`leanlabel.evaluation.probe.logistic_l2` with one strength C.

    Args:
        z: (N, d) embeddings, finite; no gradient.
        y: (N,) int64; classes in [0, len(classes)) where `rows` point.
        rows: (n,) int64, n >= 1, the rows to fit on.
        classes: names; a class without a row among them is never predicted.
        strength: C, inverse weight of the penalty, > 0.
        normalise: divide each embedding by its L2 norm.
        max_iter: limit of the solver (L-BFGS).

    Returns:
        The classifier in float32; its `about` says strength, rows, convergence and classes without a row.

    Raises:
        ValueError: no rows, a label outside the classes, shapes that do not fit, embeddings that are not finite.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
        >>> rule = fit_classifier(z, torch.tensor([0, 1, -100]), torch.tensor([0, 1]), ("left", "right"))
        >>> rule.probabilities(z).argmax(1).tolist()
        [0, 1, 0]
    """
    rows = rows.cpu()
    if z.ndim != 2 or y.shape != z.shape[:1] or rows.ndim != 1 or len(rows) == 0:
        raise ValueError(
            f"z must be (N, d), y (N,) and rows (n >= 1,), got {tuple(z.shape)}, {tuple(y.shape)}, "
            f"{tuple(rows.shape)}"
        )
    if strength <= 0:
        raise ValueError(f"strength must be positive, got {strength}")
    labels = y.cpu()[rows]
    if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise ValueError(
            f"labels must be in [0, {len(classes)}), got {int(labels.min())} to {int(labels.max())}"
        )
    points = z.detach().cpu()[rows].double()
    if not bool(torch.isfinite(points).all()):
        raise ValueError("the embeddings of the rows to fit on are not all finite")
    if normalise:
        norm = torch.linalg.vector_norm(points, dim=1, keepdim=True)
        points = points / torch.where(norm == 0, 1, norm)
    present = torch.unique(labels)
    weight = torch.zeros(len(classes), z.shape[1], dtype=torch.float64)
    bias = torch.full((len(classes),), -torch.inf, dtype=torch.float64)
    bias[present] = 0
    converged = True
    if len(present) > 1:
        weight[present], bias[present], converged = _solve(points, labels, strength, max_iter)
    about = {
        "kind": PROTOCOL,
        "strength": strength,
        "converged": converged,
        "rows": len(rows),
        "classes_without_rows": [name for c, name in enumerate(classes) if c not in set(present.tolist())],
    }
    return Classifier(weight.float(), bias.float(), normalise, tuple(classes), rows, about)


def _solve(points: Tensor, labels: Tensor, strength: float, max_iter: int) -> tuple[Tensor, Tensor, bool]:
    """Weights and biases of the classes that occur, ascending, and whether the solver reached its tolerance."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    model = LogisticRegression(solver="lbfgs", C=strength, max_iter=max_iter, tol=TOLERANCE)
    # One thread: many small products, and the same bits whatever the machine has.
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(points.numpy(), labels.numpy())
    converged = not any(issubclass(one.category, ConvergenceWarning) for one in caught)
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(weight) == 1:  # two classes share one logit: that of the second against a first at zero
        weight = torch.cat([torch.zeros_like(weight), weight])
        bias = torch.cat([torch.zeros_like(bias), bias])
    return weight, bias, converged


def deployed_classifier(
    data: Labelled,
    z: Tensor,
    settings: EvaluationSettings,
    seed: int,
    measured: Mapping[str, Any] | None = None,
    readout: str = "trained",
) -> Classifier | None:
    """Fit the classifier that a run hands out, with the strength that validation chose.

    A published split leaves its validation and test rows out of the fit, so that they stay good for a test; with
    random splits every labelled row is used. The strength is the (lower) median of those that validation chose,
    one per split.

    Args:
        data: labels, class names and published splits.
        z: (N, d) embeddings of its rows.
        settings: splits; the protocol "none" means that no label is to be read.
        seed: of the splits.
        measured: what the protocol "logistic-l2" measured on these embeddings and splits (plain data, see
            `leanlabel.evaluation.readouts.evaluate_readouts`); None measures the first few splits here.
        readout: name of these embeddings in `measured`.

    Returns:
        The classifier with the accuracy to expect in `about`, or None where there is nothing to fit on.
    """
    if settings.protocol == "none" or data.y is None:
        return None
    splits = planned_splits(data, settings.model_copy(update={"protocol": PROTOCOL}), seed)
    found = None if measured is None else measured["readouts"].get(readout)
    if found is not None and all("strength" in row for row in found["details"]):
        strengths = [row["strength"] for row in found["details"]]
        values = list(found["per_split"])
    else:
        scores = [
            logistic_l2(z, data.y, {part: getattr(split, part) for part in PARTS})
            for split in splits[:MOST_SPLITS]
        ]
        strengths, values = [one.strength for one in scores], [one.accuracy for one in scores]
    public = splits[0].seed is None
    rows = splits[0].train if public else (data.y >= 0).nonzero()[:, 0]
    fitted = fit_classifier(z, data.y, rows, class_names(data), strength=statistics.median_low(strengths))
    part = "training part of the published split" if public else "all labelled rows"
    expected = expectation(values, PROTOCOL, "public" if public else "random", len(splits[0].train))
    about = {**fitted.about, "part": part, "expected": expected}
    return replace(fitted, about=about)


def expectation(values: Sequence[float], protocol: str, split: str, training_rows: int) -> dict[str, Any]:
    """The accuracy to expect on rows that a classifier has not seen, with how it was measured.

    Args:
        values: accuracy on the test part of each split, by a classifier fitted on its training part.
        protocol: how those were fitted.
        split: "public" or "random".
        training_rows: rows that each of them was fitted on.
    """
    return {
        "accuracy": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "protocol": protocol,
        "split": split,
        "splits": len(values),
        "training_rows": training_rows,
    }
