"""Clusters of frozen embeddings against classes: how far k-means finds the classes without being told them."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanlabel import rng
from leanlabel.evaluation.confusion import confusion_matrix
from leanlabel.evaluation.probe import _for_sklearn, _labels
from leanlabel.sparse import Csr


@dataclass(frozen=True)
class Clustering:
    """How well the clusters of one k-means seed fit the classes."""

    nmi: float
    """Normalised mutual information, in [0, 1]."""
    ari: float
    """Adjusted Rand index, at most 1, 0 by chance."""
    seed: int
    """Of k-means."""
    clusters: int
    """Clusters asked for: the classes that have labels."""
    found: int
    """Clusters that hold rows; fewer where rows coincide."""
    inertia: float
    """Sum of squared distances to the nearest centre, in squared units of the rows."""
    scored_rows: int
    """Rows with a label."""


def kmeans_scores(
    z: Tensor | Csr,
    y: Tensor,
    *,
    seed: int = 0,
    repeats: int = 5,
    n_init: int = 10,
    normalise: bool = True,
) -> list[Clustering]:
    """Cluster all rows by k-means with as many clusters as there are classes, and score them on the labelled rows.

    min over centres c of sum_i min_k ||u_i - c_k||^2, u_i = z_i / ||z_i||, by Lloyd's iterations from `n_init`
    k-means++ starts, the best of which counts   [Lloyd 1982; Arthur and Vassilvitskii 2007]

    No label is read before the scoring; rows without one are clustered with the others.

    Args:
        z: (N, d) embeddings or stored features, finite; no gradient.
        y: (N,) int64 classes, negative for rows without a label. K = number of classes that occur.
        seed: of the seeds of k-means, which belong to it and the number of the repeat.
        repeats: k-means seeds, >= 1.
        n_init: starts per seed, >= 1.
        normalise: divide each row by its L2 norm first; rows of norm 0 stay 0.

    Returns:
        One result per seed.

    Raises:
        ValueError: shapes or labels do not fit, fewer rows than classes, z is not finite, or repeats or n_init < 1.

    Example:
        >>> rows = torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
        >>> kmeans_scores(rows, torch.tensor([0, 0, 1, -100]), repeats=1)[0].nmi
        1.0
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    if repeats < 1 or n_init < 1:
        raise ValueError(f"repeats and n_init must be positive, got {repeats} and {n_init}")
    y = _labels(z, y)[0].cpu()
    labelled = y >= 0
    classes, truth = torch.unique(y[labelled], return_inverse=True)
    count = len(classes)
    if len(y) < count:
        raise ValueError(f"{len(y)} rows cannot form {count} clusters")
    rows = _for_sklearn(z, normalise)
    values = z.values if isinstance(z, Csr) else z
    if values is None or values.dtype != torch.float64:
        rows = rows.astype("float32")  # as precise as what came in, in half the time (measured)
    draw = rng.draw(seed, "k-means seeds", 0)
    results = []
    # One thread: sums in the same order on every machine, and small products do not wait for each other.
    with threadpool_limits(1), warnings.catch_warnings():
        # Fewer distinct rows than clusters: told by `found`.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for start in draw.integers(0, 2**31, (repeats,)).tolist():
            model: Any = KMeans(n_clusters=count, n_init=n_init, random_state=start)  # type: ignore[arg-type]
            model.fit(rows)
            cluster = torch.from_numpy(model.labels_).long()
            table = confusion_matrix(truth, cluster[labelled], count)
            results.append(
                Clustering(
                    nmi=normalised_mutual_information(table),
                    ari=adjusted_rand_index(table),
                    seed=start,
                    clusters=count,
                    found=len(torch.unique(cluster)),
                    inertia=float(model.inertia_),
                    scored_rows=len(truth),
                )
            )
    return results


def normalised_mutual_information(table: Tensor) -> float:
    """Measure what two labellings say about each other, as a share of what they say.

    NMI = I(U; V) / ((H(U) + H(V)) / 2)   [Vinh, Epps and Bailey 2010, table 2, NMI_sum: arithmetic mean]

    Args:
        table: (R, C) integers, how often each id of one labelling meets each id of the other.

    Returns:
        In [0, 1]; 1 where the labellings are the same but for names, also when both hold a single id; 0 when
        they are independent.

    Raises:
        ValueError: not (R, C), a negative count, or no counts.

    Example:
        >>> round(normalised_mutual_information(torch.tensor([[2, 0], [1, 1]])), 4)
        0.3437
    """
    share = _counts(table).double()
    share = share / share.sum()
    first, second, both = (_entropy(part) for part in (share.sum(1), share.sum(0), share))
    if first + second == 0:
        return 1.0
    return min(1.0, max(0.0, 2 * (first + second - both) / (first + second)))


def adjusted_rand_index(table: Tensor) -> float:
    """Measure how many pairs two labellings treat alike, beyond what chance would give.

    ARI = (sum_ij C(n_ij, 2) - E) / ((A + B) / 2 - E), A = sum_i C(a_i, 2), B = sum_j C(b_j, 2), E = A B / C(n, 2),
    with the row sums a and the column sums b   [Hubert and Arabie 1985, eq. 5]

    Args:
        table: (R, C) integers, how often each id of one labelling meets each id of the other.

    Returns:
        At most 1; 1 where the labellings are the same but for names, 0 by chance, negative below it.

    Raises:
        ValueError: not (R, C), a negative count, or no counts.

    Example:
        >>> adjusted_rand_index(torch.tensor([[2, 0], [0, 2]]))
        1.0
        >>> adjusted_rand_index(torch.tensor([[1, 1], [1, 1]]))
        -0.5
    """
    counts = _counts(table)
    # Python integers: pairs of pairs of many rows leave the range of int64.
    rows, columns = (sum(math.comb(n, 2) for n in counts.sum(axis).tolist()) for axis in (1, 0))
    together = sum(math.comb(n, 2) for n in counts.flatten().tolist())
    pairs = math.comb(int(counts.sum()), 2)
    # Both sides times 2 C(n, 2), so that nothing is rounded before the one division.
    above = 2 * (together * pairs - rows * columns)
    below = (rows + columns) * pairs - 2 * rows * columns
    return above / below if below else 1.0


def _counts(table: Tensor) -> Tensor:
    if table.ndim != 2 or table.is_floating_point():
        raise ValueError(f"counts must be integers (R, C), got {table.dtype} {tuple(table.shape)}")
    if not table.numel() or int(table.min()) < 0 or not int(table.sum()):
        raise ValueError(f"counts {tuple(table.shape)} must be >= 0 and not all zero")
    return table.cpu()


def _entropy(share: Tensor) -> float:
    return float(torch.special.entr(share).sum())
