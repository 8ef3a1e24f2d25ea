"""Find images that look alike: a 64-bit difference hash, and hashes that differ in few bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

NEAR = 6
"""Two images whose hashes differ in at most this many of 64 bits count as near copies."""
FLAT = 6.0
"""An image whose 9 x 8 means span fewer grey levels (of 255) has no hash: there is nothing to compare."""
_BLOCK = 1 << 20
_ODD = np.uint64(0x5555555555555555)
_PAIRS = np.uint64(0x3333333333333333)
_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_BYTES = np.uint64(0x0101010101010101)


def difference_hash(image: Tensor) -> int | None:
    """Hash how brightness changes from left to right on a grid of 9 x 8 means.

    Bit 8 r + c (from the lowest) says whether the mean of cell (r, c + 1) is larger than that of (r, c). Scaling,
    mild compression and a change of brightness or contrast leave most bits alone. [Krawetz, "Kind of like that", 2013]

    Args:
        image: (C, h, w) uint8, or float in [0, 1].

    Returns:
        64 bits, or None for an image that is nearly of one colour.

    >>> ramp = torch.arange(18).expand(3, 16, 18).to(torch.uint8)
    >>> difference_hash(ramp * 10) == 2**64 - 1, difference_hash(ramp.flip(2) * 10), difference_hash(ramp * 0)
    (True, 0, None)
    """
    values = image.to(torch.float32).mean(0)
    if image.dtype.is_floating_point:
        values = values * 255
    cells = adaptive_avg_pool2d(values[None], (8, 9))[0].numpy()
    if cells.max() - cells.min() < FLAT:
        return None
    bits = (cells[:, 1:] > cells[:, :-1]).reshape(-1)
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


def nearest_copies(
    hashes: Sequence[int] | np.ndarray,
    among: Sequence[int] | np.ndarray | None = None,
    most: int = NEAR,
) -> np.ndarray:
    """Find for each hash the most alike of other hashes, where few bits differ.

    The 64 bits are cut into most + 1 pieces; two hashes that differ in at most `most` bits agree in one of the pieces
    at least, so that only hashes with a common piece are compared.

    Args:
        hashes: (N,) 64-bit numbers.
        among: (M,) 64-bit numbers to look in; None looks among the earlier rows of `hashes` themselves.
        most: bits, 0 to 31.

    Returns:
        (N,) int64 row of `among`, the first of equally near ones; -1 where none is near enough.

    Raises:
        ValueError: `most` is outside its range.

    >>> nearest_copies([0, 7, 2**63], [15, 255, 1], most=1).tolist()
    [2, 0, -1]
    >>> nearest_copies([5, 9, 4, 9], most=1).tolist()
    [-1, -1, 0, 1]
    """
    if not 0 <= most < 32:
        raise ValueError(f"most must be from 0 to 31, got {most}")
    own, own_first, which = _distinct(hashes)
    others, first, _ = (own, own_first, which) if among is None else _distinct(among)
    best = _Best(np.full(len(own), 64, dtype=np.uint64), np.full(len(own), -1, dtype=np.int64))
    edges = np.linspace(0, 64, most + 2).astype(int)
    for low, high in pairwise(edges.tolist()):
        shift, ones = np.uint64(low), np.uint64((1 << (high - low)) - 1)
        for rows, columns in _same((own >> shift) & ones, (others >> shift) & ones):
            apart = _ones(own[rows, None] ^ others[None, columns])
            if among is None:
                apart[first[columns][None] >= own_first[rows][:, None]] = 64
            best.take(rows, apart, first[columns], most)
    found = best.row[which]
    if among is None:  # equal hashes were taken together
        copies = own_first[which] != np.arange(len(which))
        found[copies] = own_first[which][copies]
    return found


@dataclass
class _Best:
    """The nearest so far: bits that differ, and row."""

    apart: np.ndarray
    row: np.ndarray

    def take(self, rows: np.ndarray, apart: np.ndarray, names: np.ndarray, most: int) -> None:
        """Look at a table of differing bits; `names` are the rows that its columns stand for."""
        at = apart.min(axis=1)
        row = np.where(apart == at[:, None], names[None], np.iinfo(np.int64).max).min(axis=1)
        nearer = (at < self.apart[rows]) | ((at == self.apart[rows]) & (row < self.row[rows]))
        nearer &= at <= most
        self.apart[rows[nearer]], self.row[rows[nearer]] = at[nearer], row[nearer]


def _distinct(hashes: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct values, the first row of each, and the value of each row."""
    values, first, which = np.unique(
        np.asarray(hashes, dtype=np.uint64), return_index=True, return_inverse=True
    )
    return values, first, which.reshape(-1)


def _same(one: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of two arrays whose value is the same, in blocks of limited size."""
    rows, columns = np.argsort(one, kind="stable"), np.argsort(other, kind="stable")
    shared = np.intersect1d(one, other)
    low, high = (np.searchsorted(one[rows], shared, side).tolist() for side in ("left", "right"))
    left, right = (np.searchsorted(other[columns], shared, side).tolist() for side in ("left", "right"))
    for bounds in zip(low, high, left, right):
        step = max(1, _BLOCK // (bounds[3] - bounds[2]))
        for start in range(bounds[0], bounds[1], step):
            yield rows[start : min(start + step, bounds[1])], columns[bounds[2] : bounds[3]]


def _ones(words: np.ndarray) -> np.ndarray:
    """Number of ones in each 64-bit word."""
    words = words - ((words >> np.uint64(1)) & _ODD)
    words = (words & _PAIRS) + ((words >> np.uint64(2)) & _PAIRS)
    words = (words + (words >> np.uint64(4))) & _NIBBLES
    return (words * _BYTES) >> np.uint64(56)
