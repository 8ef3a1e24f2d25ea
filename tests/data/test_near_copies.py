"""Difference hashes and nearest copies, against loops that compare everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanlabel.data.near_copies import difference_hash, nearest_copies


def loop_hash(image: np.ndarray) -> int:
    """(h, w) whose sides are multiples of 8 and 9."""
    height, width = image.shape[0] // 8, image.shape[1] // 9
    code = 0
    for row in range(8):
        means = [
            image[row * height : (row + 1) * height, c * width : (c + 1) * width].mean() for c in range(9)
        ]
        for c in range(8):
            code |= int(means[c + 1] > means[c]) << (8 * row + c)
    return code


def loop_nearest(hashes: list[int], among: list[int] | None, most: int) -> list[int]:
    found = []
    for row, code in enumerate(hashes):
        others = hashes[:row] if among is None else among
        near = [((code ^ other).bit_count(), k) for k, other in enumerate(others)]
        found.append(min((pair for pair in near if pair[0] <= most), default=(0, -1))[1])
    return found


def test_values() -> None:
    assert nearest_copies([]).tolist() == []
    assert nearest_copies([5], []).tolist() == [-1]
    assert nearest_copies([7, 7, 7], most=0).tolist() == [-1, 0, 0]
    assert nearest_copies([0b1111, 0b11111], [0], most=4).tolist() == [0, -1]
    assert nearest_copies([2**64 - 1], [0, 2**63 - 1], most=1).tolist() == [1]
    assert nearest_copies([3], [1, 2, 0], most=2).tolist() == [0]


def test_reference() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        image = rng.integers(0, 256, (40, 63)).astype(np.uint8)
        assert difference_hash(torch.from_numpy(image).expand(3, -1, -1)) == loop_hash(image)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=10), st.integers(0, 8), st.data())
def test_reference_nearest(seeds: list[int], most: int, data: st.DataObject) -> None:
    """Against all pairs, on hashes that lie close to each other."""
    flips = st.lists(st.integers(0, 63), max_size=8)
    hashes = list(seeds)
    for seed in seeds:
        code = seed
        for bit in data.draw(flips):
            code ^= 1 << bit
        hashes.append(code)
    assert nearest_copies(hashes, most=most).tolist() == loop_nearest(hashes, None, most)
    assert nearest_copies(seeds, hashes[::-1], most).tolist() == loop_nearest(seeds, hashes[::-1], most)


def test_degenerate() -> None:
    assert difference_hash(torch.full((3, 5, 5), 200, dtype=torch.uint8)) is None
    assert difference_hash(torch.zeros(1, 1, 1)) is None
    assert isinstance(difference_hash(torch.rand(4, 3, 2)), int)  # smaller than the grid
    assert nearest_copies(np.zeros(5000, dtype=np.uint64)).tolist() == [-1] + [0] * 4999


def test_invariance() -> None:
    """The same picture smaller, darker, or as floats keeps its hash."""
    rows, columns = torch.meshgrid(torch.arange(80), torch.arange(90), indexing="ij")
    image = (120 + 60 * torch.sin(rows / 11) + 50 * torch.cos(columns / 7)).to(torch.uint8).expand(3, -1, -1)
    whole = difference_hash(image)
    assert whole is not None
    for changed in (image[:, ::2, ::2], image // 2 + 20, image.float() / 255):
        code = difference_hash(changed)
        assert code is not None
        assert (code ^ whole).bit_count() <= 2


def test_errors() -> None:
    with pytest.raises(ValueError, match="0 to 31"):
        nearest_copies([1], most=32)
