"""Two coordinates per embedding, for a picture: principal components, or t-SNE on top of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from leanlabel import rng
from leanlabel.sparse import Csr, take_rows

Method = Literal["tsne", "pca"]

# Below this many rows neighbourhoods mean little, and t-SNE's perplexity would have to be tiny.
FEWEST_FOR_TSNE = 50
PERPLEXITY = 30.0
COMPONENTS = 50
# Of scikit-learn's default of 1000 steps the last 400 cost 2.5 s for 1,500 rows and change little.
STEPS = 600


@dataclass(frozen=True, eq=False)
class Projection:
    """A picture's points."""

    points: Tensor
    """(m, 2) float32 on the CPU."""
    rows: Tensor
    """(m,) int64, ascending: the rows of the embeddings that the points stand for."""
    method: Method
    """What was used: "pca" also where t-SNE was asked for and the input is too small or flat."""


@torch.no_grad()
def project_2d(
    z: Tensor | Csr,
    limit: int = 1500,
    seed: int = 0,
    *,
    y: Tensor | None = None,
    method: Method = "tsne",
) -> Projection:
    """Lay embeddings out in the plane.

    Rows are thinned to `limit`, evenly by class. "pca": the first two principal components. "tsne": t-SNE
    [van der Maaten and Hinton 2008; Barnes-Hut form] on the first 50 components, perplexity 30, started at
    the principal components; fewer than 50 rows fall back to "pca". Same seed, same picture.

    Args:
        z: (N, d) embeddings or stored features, N >= 1, d >= 1, finite; no gradient.
        limit: largest number of points, >= 1.
        seed: of the thinning and of t-SNE.
        y: (N,) integer classes for even thinning; None treats all rows as one class.
        method: "tsne" or "pca".

    Returns:
        Points, their rows, and the method used. Directions without variation get the coordinate 0.

    Raises:
        ValueError: shapes, limit or method do not fit, or a chosen row is not finite.

    Example:
        >>> project_2d(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).points.abs().tolist()
        [[2.5, 0.0], [2.5, 0.0]]
    """
    if len(z.shape) != 2 or z.shape[0] < 1 or z.shape[1] < 1:
        raise ValueError(f"z must be (N, d) with at least one row and column, got {tuple(z.shape)}")
    if y is not None and y.shape != (z.shape[0],):
        raise ValueError(f"y must be ({z.shape[0]},), got {tuple(y.shape)}")
    if limit < 1 or method not in ("tsne", "pca"):
        raise ValueError(f"need limit >= 1 and method tsne or pca, got {limit} and {method!r}")
    rows = thin(z.shape[0] if y is None else y, limit, seed)
    part = take_rows(z, rows)
    dense = (part.to_dense() if isinstance(part, Csr) else part).detach().cpu().double()
    if not bool(torch.isfinite(dense).all()):
        raise ValueError(f"z holds {int((~torch.isfinite(dense)).sum())} values that are not finite")
    components = principal_components(dense, COMPONENTS)
    varied = bool((components[:, :2] != 0).any())
    if method == "tsne" and len(rows) >= FEWEST_FOR_TSNE and varied:
        return Projection(_tsne(components, seed), rows, "tsne")
    return Projection(components[:, :2].float().clone(), rows, "pca")


def thin(classes: Tensor | int, limit: int, seed: int) -> Tensor:
    """Choose at most `limit` rows, as evenly over the classes as their sizes allow.

    Each class gives the same number of rows, small classes all of theirs; within a class the rows with the
    smallest random numbers win, and a row's number depends on the seed and the row only.

    Args:
        classes: (N,) integer classes, or N for one class. Every value counts as a class, negative ones too.
        limit: >= 1.
        seed: of the row numbers.

    Returns:
        (min(N, limit),) int64 row ids, ascending.
    """
    labels = torch.zeros(classes, dtype=torch.long) if isinstance(classes, int) else classes.cpu()
    if len(labels) <= limit:
        return torch.arange(len(labels))
    number = rng.draw(seed, "projection rows", 0, ids=torch.arange(len(labels))).uniform(dtype=torch.float64)
    order = number.argsort(stable=True)
    _, group, sizes = labels[order].unique(return_inverse=True, return_counts=True)
    # Place of each row within its class; the lowest places of all classes are taken first, so that a class
    # that runs out leaves its share to the others.
    by_group = group.argsort(stable=True)
    place = torch.empty_like(group)
    place[by_group] = torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group[by_group]]
    return order[place.argsort(stable=True)[:limit]].sort().values


def principal_components(z: Tensor, count: int) -> Tensor:
    """Coordinates of rows along the directions of largest variance.

    z - mean = U S V^T; coordinates U S, columns by falling S. The sign of a column makes its entry of largest
    magnitude positive; columns beyond the rank, or beyond d, are zero.

    Args:
        z: (m, d), finite.
        count: number of columns wanted, >= 2.

    Returns:
        (m, max(2, min(count, m, d))) float64.
    """
    centred = z.double() - z.double().mean(0)
    rows, dim = centred.shape
    kept = max(2, min(count, rows, dim))
    result = centred.new_zeros(rows, kept)
    scale = float(z.abs().max())
    # Differences as small as the rounding of the mean are no variation.
    if float(centred.abs().max()) <= 4 * torch.finfo(torch.float64).eps * scale:
        return result
    gram = centred @ centred.mT if rows <= dim else centred.mT @ centred
    power, vectors = torch.linalg.eigh(gram)
    power, vectors = power.flip(0)[:kept], vectors.flip(1)[:, :kept]
    real = power > power[0] * torch.finfo(torch.float64).eps * max(rows, dim)
    power, vectors = power[real], vectors[:, real]
    scores = vectors * power.sqrt() if rows <= dim else centred @ vectors
    largest = scores.gather(0, scores.abs().argmax(0, keepdim=True))
    result[:, : scores.shape[1]] = scores * largest.sign()
    return result


def _tsne(components: Tensor, seed: int) -> Tensor:
    from sklearn.manifold import TSNE

    start = components[:, :2]
    # The usual start: principal components with a standard deviation of 1e-4 along the first.
    start = (start / start[:, 0].std(correction=0) * 1e-4).float()
    settings: dict[str, Any] = {
        "init": start.numpy(),
        "perplexity": min(PERPLEXITY, (len(components) - 1) / 3),
        "random_state": seed % 2**32,
        "n_jobs": 1,
        # The name changed with scikit-learn 1.5.
        "max_iter" if "max_iter" in TSNE().get_params() else "n_iter": STEPS,
    }
    model = TSNE(**settings)
    return torch.from_numpy(model.fit_transform(components.float().numpy())).float()
