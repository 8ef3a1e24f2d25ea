"""Linear readouts of frozen embeddings: how much of the labels a linear map finds in them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from leanlabel import rng
from leanlabel.evaluation.confusion import accuracy, class_recall, confusion_matrix, macro_f1
from leanlabel.sparse import Csr, spmm, take_rows

Split = Mapping[str, Tensor]
"""Row ids of the parts "train", "val" and "test": int64 (n,), or boolean (N,)."""

Parts = tuple[Tensor, Tensor, Tensor]
PARTS = ("train", "val", "test")
GRID = tuple(2.0**k for k in range(-10, 11, 2))
# Splits share one batched product while a block of training rows fits the processor's cache; beyond that
# one split after the other was as fast or faster. A GPU gains until the block is large.
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
# scikit-learn's default 1e-4 stops a warm-started fit with a weak penalty at once (0 iterations, measured).
TOLERANCE = 1e-6


# Share of stored entries from which on dense arithmetic is the quicker one for the logistic readout.
DENSE_FROM = 0.1


@dataclass(frozen=True)
class Scores:
    """What one readout scored on the test rows of one split; all shares lie in [0, 1]."""

    accuracy: float
    val_accuracy: float
    """Validation accuracy of the chosen epoch or strength."""
    macro_f1: float
    recall: tuple[float | None, ...]
    """Per class; None for a class without test rows."""
    confusion: Tensor = field(compare=False, repr=False)
    """(C, C) int64, rows are true classes."""


@dataclass(frozen=True)
class Probe(Scores):
    """Result of :func:`linear_probe`."""

    epoch: int
    """Epochs trained when validation accuracy was highest for the first time."""


@dataclass(frozen=True)
class Logistic(Scores):
    """Result of :func:`logistic_l2`."""

    strength: float
    """Chosen C, the inverse weight of the L2 penalty."""
    converged: bool
    """Whether the solver reached its tolerance for the chosen C."""


def split_parts(split: Split, y: Tensor) -> Parts:
    """Give the training, validation and test row ids of a split of labelled rows, checked.

    Returns:
        Three int64 tensors on the CPU, ids in [0, N).

    Raises:
        ValueError: a part is missing or empty, an id is out of range or listed twice, a row has no label.
    """
    missing = [part for part in PARTS if part not in split]
    if missing:
        raise ValueError(f"split has no part {', '.join(missing)}; it needs train, val and test")
    y, taken = y.cpu(), torch.zeros(len(y), dtype=torch.long)
    found = []
    for part in PARTS:
        ids = torch.as_tensor(split[part]).cpu()
        if ids.dtype == torch.bool:
            if ids.shape != y.shape:
                raise ValueError(f"mask {part} has shape {tuple(ids.shape)}, the data has {len(y)} rows")
            ids = ids.nonzero()[:, 0]
        if ids.ndim != 1 or len(ids) == 0 or ids.is_floating_point():
            raise ValueError(
                f"part {part} of the split must hold row ids, got {tuple(ids.shape)} {ids.dtype}"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= len(y):
            raise ValueError(f"part {part} has ids {int(ids.min())}..{int(ids.max())} outside [0, {len(y)})")
        found.append(ids.long())
        taken.index_add_(0, found[-1], torch.ones_like(found[-1]))
        unlabelled = int((y[found[-1]] < 0).sum())
        if unlabelled:
            raise ValueError(f"part {part} of the split has {unlabelled} rows without a label")
    if int(taken.max()) > 1:
        raise ValueError(f"{int((taken > 1).sum())} rows are listed more than once in the split")
    return found[0], found[1], found[2]


def linear_probe(
    z: Tensor | Csr,
    y: Tensor,
    split: Split,
    *,
    epochs: int = 3000,
    lr: float = 0.01,
    every: int = 20,
    seed: int = 0,
) -> Probe:
    """Train one linear layer on frozen embeddings and report the test accuracy at the best validation epoch.

    logits = z W^T + b; loss = mean cross-entropy over all training rows at once; Adam (0.9, 0.999, 1e-8)
    without weight decay; W Xavier-uniform, b zero; embeddings as they are, not normalised   [Zhu et al. 2021,
    evaluation protocol of the official code]. Validation accuracy is measured every `every` epochs and after
    the last one; the first maximum wins.

    Args:
        z: (N, d) embeddings or stored features, finite, any scale; no gradient.
        y: (N,) int64 classes in [0, C); rows outside the split may carry a negative label.
        split: row ids under "train", "val", "test".
        epochs: full-batch steps, >= 1.
        lr: Adam's step size, > 0.
        every: epochs between two measurements, >= 1.
        seed: of the initial weights. They do not depend on the split, so that a split scores the same
            alone and among others.

    Returns:
        Scores on the test rows, and the chosen epoch.

    Raises:
        ValueError: shapes, labels, split or settings do not fit; z is not finite.

    Example:
        >>> rows = torch.arange(12)
        >>> z = torch.nn.functional.one_hot(rows % 2).float()
        >>> linear_probe(z, rows % 2, {"train": rows[:4], "val": rows[4:8], "test": rows[8:]}).accuracy
        1.0
    """
    return linear_probes(z, y, [split], epochs=epochs, lr=lr, every=every, seed=seed)[0]


@torch.no_grad()
def linear_probes(
    z: Tensor | Csr,
    y: Tensor,
    splits: Sequence[Split],
    *,
    epochs: int = 3000,
    lr: float = 0.01,
    every: int = 20,
    seed: int = 0,
) -> list[Probe]:
    """Several :func:`linear_probe` at once, one per split; small ones share batched products."""
    if epochs < 1 or every < 1 or lr <= 0:
        raise ValueError(f"epochs, every and lr must be positive, got {epochs}, {every}, {lr}")
    y, classes = _labels(z, y)
    parts = [split_parts(split, y) for split in splits]
    if isinstance(z, Csr):
        together = 1
    else:
        largest = max((len(train) for train, _, _ in parts), default=1)
        budget = BLOCK_ELEMENTS["cuda" if z.is_cuda else "cpu"]
        together = max(1, budget // max(1, largest * z.shape[1]))
    probes = []
    for start in range(0, len(parts), together):
        block = parts[start : start + together]
        layer = _Layers(len(block), classes, z, lr, seed)
        probes += _train_probes(z, y, block, layer, epochs, every)
    return probes


def _train_probes(
    z: Tensor | Csr, y: Tensor, parts: list[Parts], layers: _Layers, epochs: int, every: int
) -> list[Probe]:
    train, val = (_Rows(z, y, [part[i] for part in parts], layers) for i in (0, 1))
    best_hits = torch.full((len(parts),), -1, device=y.device)
    best_epoch = torch.zeros(len(parts), dtype=torch.long, device=y.device)
    best = (layers.weight.clone(), layers.bias.clone())
    for epoch in range(1, epochs + 1):
        error = train.logits(layers.weight, layers.bias).softmax(-1).mul_(train.shares).sub_(train.targets)
        layers.step(epoch, train.weight_gradient(error), error.sum(1, keepdim=True))
        if epoch % every == 0 or epoch == epochs:
            hits = (val.logits(layers.weight, layers.bias).argmax(-1) == val.labels).sum(1)
            better = hits > best_hits
            best_hits = torch.where(better, hits, best_hits)
            best_epoch = best_epoch.masked_fill(better, epoch)
            for kept, now in zip(best, (layers.weight, layers.bias)):
                kept.copy_(torch.where(better[:, None, None], now, kept))
    # The test part is read once, with the weights that validation has chosen.
    probes = []
    for i, (_, validation, test) in enumerate(parts):
        predicted = _Rows(z, y, [test], layers).logits(best[0][i, None], best[1][i, None])[0].argmax(1)
        confusion = confusion_matrix(y[test.to(y.device)], predicted, layers.classes)
        scores = score_fields(confusion, int(best_hits[i]) / len(validation))
        probes.append(Probe(**scores, epoch=int(best_epoch[i])))
    return probes


class _Layers:
    """S independent linear layers with their Adam state; the gradient is given, so autograd is not needed."""

    def __init__(self, count: int, classes: int, z: Tensor | Csr, lr: float, seed: int) -> None:
        self.classes, self.lr = classes, lr
        values = z.values if isinstance(z, Csr) else z
        dtype = torch.float64 if values is not None and values.dtype == torch.float64 else torch.float32
        dim, bound = z.shape[1], math.sqrt(6 / (z.shape[1] + classes))
        start = rng.draw(seed, "probe weights", 0, device=z.device).uniform((classes, dim), torch.float64)
        # (S, C, d): the gradient is then (C, n) x (n, d), about twice as fast as its transpose.
        self.weight = ((2 * start - 1) * bound).to(dtype).repeat(count, 1, 1)
        self.bias = self.weight.new_zeros(count, 1, classes)
        self._moments = [torch.zeros_like(p) for p in (self.weight, self.weight, self.bias, self.bias)]

    def step(self, epoch: int, weight_gradient: Tensor, bias_gradient: Tensor) -> None:
        """Adam: p -= lr m / (1 - 0.9^t) / (sqrt(v / (1 - 0.999^t)) + 1e-8), m and v running moments."""
        size, root = self.lr / (1 - 0.9**epoch), math.sqrt(1 - 0.999**epoch)
        for parameter, gradient, k in ((self.weight, weight_gradient, 0), (self.bias, bias_gradient, 2)):
            first, second = self._moments[k], self._moments[k + 1]
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            parameter.addcdiv_(first, (second.sqrt() / root).add_(1e-8), value=-size)


class _Rows:
    """The rows of one part of S splits: dense ones padded to one block (S, n, d), stored ones for S = 1."""

    def __init__(self, z: Tensor | Csr, y: Tensor, ids: list[Tensor], layers: _Layers) -> None:
        device, dtype = z.device, layers.weight.dtype
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
        lengths = torch.tensor([len(part) for part in ids], device=device)
        real = torch.arange(padded.shape[1], device=device) < lengths[:, None]
        self.rows = z[padded].to(dtype) if isinstance(z, Tensor) else take_rows(z, ids[0])
        self.labels = torch.where(real, y[padded], -1)
        # Each real row weighs 1/n of its split, padding nothing.
        self.shares = (real.to(dtype) / lengths[:, None])[..., None]
        one_hot = torch.nn.functional.one_hot(self.labels.clamp(min=0), layers.classes)
        self.targets = one_hot.to(dtype) * self.shares

    def logits(self, weight: Tensor, bias: Tensor) -> Tensor:
        if isinstance(self.rows, Csr):
            return spmm(self.rows, weight[0].mT)[None] + bias
        return torch.baddbmm(bias, self.rows, weight.mT)

    def weight_gradient(self, error: Tensor) -> Tensor:
        if isinstance(self.rows, Csr):
            return spmm(self.rows.transpose(), error[0]).mT[None]
        return torch.bmm(error.mT, self.rows)


def logistic_l2(
    z: Tensor | Csr,
    y: Tensor,
    split: Split,
    *,
    grid: Sequence[float] = GRID,
    normalise: bool = True,
    max_iter: int = 2000,
) -> Logistic:
    """Fit L2-regularised logistic regression on frozen embeddings, strength chosen by validation accuracy.

    min over W, b of ||W||^2 / 2 + C sum over training rows of cross-entropy(z W^T + b); the intercept is free
    of penalty. Every C of the grid is fitted on the training part only; the first C with the highest
    validation accuracy is scored on the test part, without a refit on training and validation together.

    Args:
        z, y, split: as in :func:`linear_probe`.
        grid: values of C, tried in ascending order, each > 0; default 2^-10, 2^-8, ..., 2^10.
        normalise: divide each row by its L2 norm first; rows of norm 0 stay 0.
        max_iter: limit of the solver (L-BFGS) per C, each started at the solution before.

    Returns:
        Scores on the test rows, the chosen C, and whether the solver converged there.

    Raises:
        ValueError: shapes, labels, split or grid do not fit; z is not finite.
    """
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    if len(grid) == 0 or min(grid) <= 0:
        raise ValueError(f"grid must hold positive values, got {list(grid)}")
    y, classes = _labels(z, y)
    y = y.cpu()
    parts = split_parts(split, y)
    rows = [_for_sklearn(take_rows(z, ids), normalise) for ids in parts]
    labels = [y[ids].numpy() for ids in parts]
    best_hits, best = -1, None
    # The solver calls many small products: with two threads that wait for each other it was ten times slower.
    with threadpool_limits(1):
        for strength, model, converged in _fits(rows[0], labels[0], sorted(grid), max_iter):
            hits = int((model(rows[1]) == labels[1]).sum())
            if hits > best_hits:
                predicted = torch.from_numpy(model(rows[2]))
                best_hits, best = hits, (predicted, strength, converged)
    assert best is not None
    confusion = confusion_matrix(y[parts[2]], best[0], classes)
    return Logistic(**score_fields(confusion, best_hits / len(parts[1])), strength=best[1], converged=best[2])


def _fits(
    rows: Any, labels: Any, grid: Sequence[float], max_iter: int
) -> Iterator[tuple[float, Callable[[Any], Any], bool]]:
    """Fit one model per strength, warm-started; yields (strength, predict, converged)."""
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) == 1:
        # With one class in training there is nothing to fit: every row gets that class.
        yield grid[0], lambda z: np.full(z.shape[0], labels[0]), True
        return
    model = LogisticRegression(solver="lbfgs", max_iter=max_iter, tol=TOLERANCE, warm_start=True)
    for strength in grid:
        model.set_params(C=strength)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(rows, labels)
        slow = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
        for other in caught:
            if other not in slow:
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        yield strength, model.predict, not slow


def _for_sklearn(rows: Tensor | Csr, normalise: bool) -> Any:
    """Rows as a float64 array, or as a SciPy matrix where they are stored sparse and mostly empty."""
    if isinstance(rows, Csr) and rows.density > DENSE_FROM:
        rows = rows.to_dense()
    if isinstance(rows, Csr):
        from scipy import sparse

        values = torch.ones(rows.nnz) if rows.values is None else rows.values.detach()
        data = (values.double().cpu().numpy(), rows.col.cpu().numpy(), rows.crow.cpu().numpy())
        array: Any = sparse.csr_matrix(data, shape=rows.shape)
    else:
        array = rows.detach().double().cpu().numpy()
    if normalise:
        from sklearn.preprocessing import normalize

        array = normalize(array)
    return array


def score_fields(confusion: Tensor, val_accuracy: float) -> dict[str, Any]:
    """Fields of :class:`Scores` from the confusion matrix (C, C) of the test rows."""
    return {
        "accuracy": accuracy(confusion),
        "val_accuracy": val_accuracy,
        "macro_f1": macro_f1(confusion),
        "recall": class_recall(confusion),
        "confusion": confusion.cpu(),
    }


def _labels(z: Tensor | Csr, y: Tensor) -> tuple[Tensor, int]:
    """Check embeddings against labels; give the labels on the same device, and the number of classes."""
    if len(z.shape) != 2 or y.shape != (z.shape[0],):
        raise ValueError(f"z must be (N, d) and y (N,), got {tuple(z.shape)} and {tuple(y.shape)}")
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"y must hold integer classes, got {y.dtype}")
    values = z.values if isinstance(z, Csr) else z
    if values is not None and not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"z holds {bad} values that are not finite")
    if len(y) == 0 or int(y.max()) < 0:
        raise ValueError(f"y holds no label among {len(y)} rows")
    return y.to(z.device).long(), int(y.max()) + 1
