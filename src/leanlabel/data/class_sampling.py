"""Which labelled images make a batch: evenly, by rare classes, or so that each class is in as many images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from leanlabel import rng
from leanlabel.config import Settings
from leanlabel.data.class_map import IGNORE
from leanlabel.data.dense import DenseImages
from leanlabel.errors import InputError

SUB_EPOCH = 3000
"""Picks after which balanced sampling counts from zero again."""
_READ = 16  # masks read at a time, by threads
_KEPT = 4  # orders of epochs that are remembered: those that a batch may reach into


class SamplingSettings(Settings):
    """How labelled images are chosen for a batch."""

    name: Literal["uniform", "rare", "balanced"] = "uniform"
    """uniform: every image once per epoch; rare: a class is drawn, the rarer the likelier, then an image with enough of
    it (DAFormer); balanced: classes that fewer of the images chosen so far hold are likelier (SPCL)."""
    temperature: float = Field(default=0.01, gt=0)
    """Used by rare: P(c) is proportional to exp((1 - f_c) / temperature) with f_c the share of pixels of class c. Small
    values draw the rarest classes nearly alone, large ones all classes alike."""
    min_pixels: int = Field(default=3000, ge=1)
    """Used by rare: pixels of the drawn class that an image must have, at the size at which it is read. Where no image
    has as many, those with at least half as many as the image with most. The default is for images of 1280 x 720;
    smaller ones need less."""


def class_table(
    data: DenseImages,
    rows: Tensor | Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Count the labelled pixels of each class in each image; masks are read once, a few at a time.

    Args:
        data: images with masks; an image without a mask among them has no labelled pixel.
        rows: n images.
        progress: called now and then with the number of images counted, and of all.

    Returns:
        (n, K) int64.

    Raises:
        InputError: there are no masks, or one holds a value that is no class; names it.

    Example:
        >>> from leanlabel.data.class_map import plain_map
        >>> from leanlabel.data.dense import MaskArray
        >>> from leanlabel.data.images import PixelArray
        >>> masks = torch.tensor([[[0, 0], [1, 255]], [[1, 1], [1, 1]]], dtype=torch.uint8)
        >>> pixels = PixelArray(torch.zeros(2, 3, 2, 2, dtype=torch.uint8))
        >>> class_table(DenseImages("two", pixels, MaskArray(masks), plain_map(["field", "road"])), [1, 0]).tolist()
        [[0, 4], [2, 1]]
    """
    if data.masks is None:
        raise InputError(
            f"{data.name}: there are no masks, so that the pixels of classes cannot be counted.",
            "Give masks, or choose images evenly (sampling.name: uniform).",
        )
    chosen = torch.as_tensor(rows, dtype=torch.int64).flatten().tolist()
    k = data.num_classes
    table = torch.zeros(len(chosen), k, dtype=torch.int64)
    for start in range(0, len(chosen), _READ):
        part = chosen[start : start + _READ]
        for place, (row, mask) in enumerate(zip(part, data.masks.read(part), strict=True)):
            every = np.bincount(np.asarray(mask, dtype=np.uint8).reshape(-1), minlength=IGNORE + 1)
            if every[k:IGNORE].any():
                name = f"row {row}" if data.ids is None else data.ids[row]
                raise InputError(
                    f"{data.name}: the mask of {name} holds {int(k + every[k:IGNORE].argmax())}, "
                    f"but classes are 0..{k - 1}, and {IGNORE} for none.",
                    "See leanlabel data check.",
                )
            table[start + place] = torch.from_numpy(every[:k])
        if progress is not None:
            progress(start + len(part), len(chosen))
    return table


def rare_class_shares(pixels: Tensor, temperature: float, classes: Tensor | None = None) -> Tensor:
    """Compute how often each class is drawn by rare class sampling.

    P(c) = exp((1 - f_c) / T) / sum over c' of exp((1 - f_c') / T), f_c = pixels_c / sum of pixels, over the classes
    that have pixels   [Hoyer et al., DAFormer, CVPR 2022, eq. 9 and 10]

    f is a share of the pixels of all classes, also where only some may be drawn.

    Args:
        pixels: (K,) labelled pixels of each class, >= 0.
        temperature: T > 0, dimensionless.
        classes: (K,) bool, which may be drawn; None: all.

    Returns:
        (K,) float64, sum 1; 0 for classes without pixels and those that may not be drawn, and all 0 where none is left.

    Raises:
        ValueError: not (K,), a negative count, classes not (K,) bool, or temperature not above 0.

    Example:
        >>> [round(p, 4) for p in rare_class_shares(torch.tensor([5000, 3000, 1500, 400, 100]), 0.1).tolist()]
        [0.0036, 0.0268, 0.1203, 0.3614, 0.4878]
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    counts = _counts(pixels, "pixels")
    present = counts > 0
    if classes is not None:
        present &= _chosen(classes, len(counts))
    if not bool(present.any()):
        return torch.zeros_like(counts)
    share = counts / counts.sum()
    # Relative to the rarest class, so that no temperature is too small.
    scores = (share[present].min() - share) / temperature
    return scores.masked_fill(~present, -torch.inf).softmax(0)


def balanced_weights(counts: Tensor) -> Tensor:
    """Compute how likely each class is picked next, given how many of the images picked so far hold it.

    w_k = 1 / log(1.01 + d_k), d_k = n_k / sum of n (0 where nothing was picked), p = w / sum of w

    Args:
        counts: (K,) picked images that hold class k, >= 0.

    Returns:
        (K,) float64, sum 1.

    Raises:
        ValueError: not (K,), or a negative count.

    Example:
        >>> [round(p, 4) for p in balanced_weights(torch.tensor([10, 10, 1])).tolist()]
        [0.1102, 0.1102, 0.7796]
    """
    return torch.from_numpy(_weights(_counts(counts, "counts").numpy()))


class ClassSampler:
    """Sample ids of every iteration, chosen by the classes that images hold.

    A pure function of (seed, t), the same on all ranks: nothing has to be resumed. An image may stand several times in
    a batch, and each of its samples has random numbers of its own: the id of the k-th is row + n * k (k from 0), so
    that ``id % n`` is the row that is read. uniform is what :func:`leanlabel.engine.loaders.batch_ids` gives, and goes
    through all images again within a batch that is larger than the data.

    Args:
        settings: which rule.
        table: (n, K) int64 labelled pixels of each class in each image (:func:`class_table`).
        batch_size: samples of an iteration over all ranks, >= 1.
        seed: the run's seed.
        classes: (K,) bool, which classes rare may draw; None: all.
        stream: put before the names of the random streams, so that two samplers of a run draw apart.

    Attributes:
        shares: (K,) float64, how often each class is drawn under rare; 0 for classes without pixels and those that may
            not be drawn. Of the other rules, all 0.

    Raises:
        InputError: there is no image, or under rare and balanced no labelled pixel of a class that may be drawn.
        ValueError: table is not (n, K) of counts, batch_size < 1, or classes are not (K,) bool or given to another rule
            than rare.

    Example:
        >>> table = torch.tensor([[90, 0], [80, 10], [100, 0]])
        >>> sampler = ClassSampler(SamplingSettings(name="rare", min_pixels=5), table, batch_size=3, seed=0)
        >>> sampler.ids(0).tolist(), sampler.wanted(0).tolist()  # the second image three times, for its rare class
        ([1, 4, 7], [1, 1, 1])
    """

    def __init__(
        self,
        settings: SamplingSettings,
        table: Tensor,
        batch_size: int,
        seed: int,
        classes: Tensor | None = None,
        stream: str = "",
    ) -> None:
        if table.ndim != 2 or table.is_floating_point() or (table.numel() and int(table.min()) < 0):
            raise ValueError(f"table must be (n, K) integers >= 0, got {tuple(table.shape)} of {table.dtype}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if classes is not None and settings.name != "rare":
            raise ValueError(f"classes are chosen under rare only, got them with {settings.name}")
        if not len(table):
            raise InputError("There is no labelled image to choose from.")
        self.settings, self.batch_size, self.seed = settings, batch_size, seed
        self._stream = stream
        self._n, k = table.shape
        self.shares = torch.zeros(k, dtype=torch.float64)
        self._edges = np.zeros(0)
        self._holds = np.zeros((0, 0), dtype=bool)
        self._lists: list[Tensor] = []
        self._orders: dict[int, Tensor] = {}
        if settings.name == "uniform":
            return
        if not bool((table > 0).any()):
            raise InputError(
                f"sampling.name: {settings.name} chooses by class, but none of the {self._n} images has a labelled "
                "pixel.",
                "Set it to uniform.",
            )
        if settings.name == "rare":
            table = table.cpu()
            self.shares = rare_class_shares(table.sum(0), settings.temperature, classes)
            if not bool(self.shares.any()):
                raise InputError(
                    f"None of the {self._n} images has a pixel of the classes that images are to be drawn for.",
                    "Name classes that the masks hold.",
                )
            self._edges = _edges(self.shares.numpy())
            self._lists = [_with_enough(column, settings.min_pixels) for column in table.unbind(1)]
        else:
            self._holds = (table > 0).cpu().numpy()
            self._lists = [torch.from_numpy(np.flatnonzero(column)) for column in self._holds.T]

    def ids(self, t: int) -> Tensor:
        """Give the sample ids (batch_size,) int64 of iteration t; no id stands twice."""
        rows = self._rare(t)[0] if self.settings.name == "rare" else self._consecutive(t)
        order = rows.argsort(stable=True)
        counts = rows.bincount(minlength=self._n)
        earlier = torch.empty_like(rows)
        earlier[order] = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows[order]]
        return rows + self._n * earlier

    def wanted(self, t: int) -> Tensor:
        """Give the class (batch_size,) int64 that each sample's crop should hold in iteration t; -1: any will do."""
        if self.settings.name == "rare":
            return self._rare(t)[1]
        return torch.full((self.batch_size,), -1, dtype=torch.int64)

    def _rare(self, t: int) -> tuple[Tensor, Tensor]:
        """Rows and classes of an iteration: a class by its share, then one of its images, all alike."""
        source = self._draw("rare class", t)
        points = source.uniform(self.batch_size, torch.float64).numpy()
        classes = np.searchsorted(self._edges, points, side="right").tolist()
        which = source.uniform(self.batch_size, torch.float64).tolist()
        lists = [self._lists[c] for c in classes]
        rows = torch.stack([own[int(u * len(own))] for own, u in zip(lists, which, strict=True)])
        return rows, torch.tensor(classes, dtype=torch.int64)

    def _consecutive(self, t: int) -> Tensor:
        """Rows of an iteration, out of a sequence that consists of epochs."""
        size, length = self.batch_size, SUB_EPOCH
        if self.settings.name == "uniform":  # the ragged rest of an epoch is left out, as in the loaders
            length = self._n if self._n < size else self._n - self._n % size
        begin, end = t * size, (t + 1) * size
        rows: list[Tensor] = []
        while begin < end:
            epoch, place = divmod(begin, length)
            rows.append(self._order(epoch)[place : min(length, place + end - begin)])
            begin += len(rows[-1])
        return torch.cat(rows)

    def _order(self, epoch: int) -> Tensor:
        """Rows of a whole epoch; the last ones are remembered."""
        if epoch not in self._orders:
            while len(self._orders) >= _KEPT:
                del self._orders[next(iter(self._orders))]
            uniform = self.settings.name == "uniform"
            # The stream is that of the loaders, so that uniform sampling is what they do by themselves.
            self._orders[epoch] = (
                self._draw("shuffle", epoch).permutation(self._n) if uniform else self._sub_epoch(epoch)
            )
        return self._orders[epoch]

    def _sub_epoch(self, number: int) -> Tensor:
        """Rows of a sub-epoch of balanced sampling, in random order."""
        points = self._draw("balanced class", number).uniform(SUB_EPOCH, torch.float64).tolist()
        sources = [self._draw(f"balanced list {c}", number) for c in range(len(self._lists))]
        queues: list[list[int]] = [[] for _ in self._lists]
        empty = np.array([not len(own) for own in self._lists])
        counts, rows = np.zeros(len(self._lists)), []
        for point in points:
            weights = _weights(counts)
            weights[empty] = 0
            c = int(np.searchsorted(_edges(weights), point, side="right"))
            if not queues[c]:
                own = self._lists[c]
                queues[c] = own[sources[c].permutation(len(own))].tolist()
            row = queues[c].pop()
            rows.append(row)
            counts += self._holds[row]
        return torch.tensor(rows)[self._draw("balanced order", number).permutation(SUB_EPOCH)]

    def _draw(self, name: str, t: int) -> rng.Draw:
        """Random numbers of a whole batch or epoch."""
        return rng.draw(self.seed, self._stream + name, t)


def _with_enough(pixels: Tensor, least: int) -> Tensor:
    """Rows (m,) with enough pixels (n,) of a class; else those with half as many as any has; none without pixels."""
    most = int(pixels.max())
    return (pixels >= (least if most >= least else max(1, (most + 1) // 2))).nonzero()[:, 0]


def _edges(shares: np.ndarray) -> np.ndarray:
    """Upper ends (K,) of the classes' parts of [0, 1); a class without a share has an empty one."""
    edges = np.cumsum(shares)
    # The last class with a share ends at 1 exactly, whatever rounding did, and so do those without one behind it.
    edges /= edges[-1]
    return edges


def _weights(counts: np.ndarray) -> np.ndarray:
    weights = 1 / np.log(1.01 + counts / max(1.0, float(counts.sum())))
    return weights / weights.sum()


def _chosen(classes: Tensor, count: int) -> Tensor:
    """Classes (K,) bool on the CPU, checked."""
    if classes.shape != (count,) or classes.dtype != torch.bool:
        raise ValueError(f"classes must be bool ({count},), got {classes.dtype} {tuple(classes.shape)}")
    return classes.cpu()


def _counts(values: Tensor, name: str) -> Tensor:
    """Counts (K,) in float64, checked."""
    if values.ndim != 1 or (values.numel() and float(values.min()) < 0):
        raise ValueError(f"{name} must be (K,) and not negative, got {tuple(values.shape)}")
    return values.detach().double().cpu()
