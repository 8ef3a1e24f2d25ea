"""Hidden blocks: whole ones, cut at the border, each by its own number, drawn per sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanlabel.augment.block_masks import apply_block_mask, block_mask
from leanlabel.rng import Draw, draw

IDS = torch.tensor([5, 900, 12, 2**40])


def mask_draw(ids: torch.Tensor = IDS, t: int = 0) -> Draw:
    return draw(0, "block mask", t, ids)


@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 15), st.floats(0, 1))
def test_reference(height: int, width: int, block: int, ratio: float) -> None:
    """Pixel (i, j) has the number of block (i // b, j // b); blocks are drawn row by row."""
    kept = block_mask((4, height, width), block, ratio, mask_draw())
    rows, columns = -(-height // block), -(-width // block)
    numbers = mask_draw().uniform((rows, columns))
    assert kept.shape == (4, 1, height, width)
    for b in range(4):
        for i in range(height):
            for j in range(width):
                assert bool(kept[b, 0, i, j]) == (float(numbers[b, i // block, j // block]) >= ratio)


def test_values_shares() -> None:
    """70 % of blocks are dropped, independently of each other (4,000 pairs: standard error 0.008)."""
    kept = block_mask((4000, 8, 16), 8, 0.7, mask_draw(torch.arange(4000)))[:, 0, 0]
    dropped = (~kept).double()
    assert torch.equal(dropped[:, :8], dropped[:, :1].expand(-1, 8))
    left, right = dropped[:, 0], dropped[:, 8]
    assert float(left.mean()) == pytest.approx(0.7, abs=0.03)
    assert float((left * right).mean()) == pytest.approx(0.49, abs=0.035)


def test_values_of_samples() -> None:
    """A sample's blocks do not depend on who else is in the batch, and change with the iteration."""
    whole = block_mask((4, 12, 12), 2, 0.5, mask_draw())
    assert torch.equal(block_mask((1, 12, 12), 2, 0.5, mask_draw(IDS[2:3]))[0], whole[2])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(block_mask((4, 12, 12), 2, 0.5, mask_draw(t=1)), whole)


def test_values_applied() -> None:
    """Kept pixels stay bit for bit, the others are 0 in all channels, also where they are not numbers."""
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    kept[0, :, :2] = True
    images[1] = float("nan")
    found = apply_block_mask(images, kept)
    assert torch.equal(found[0, :, :2], images[0, :, :2])
    assert not bool(found[0, :, 2:].any())
    assert not bool(found[1].any())


def test_gradient() -> None:
    """It flows through kept pixels only."""
    images = torch.ones(1, 2, 2, 2, requires_grad=True)
    kept = torch.tensor([[[[True, False], [False, True]]]])
    (apply_block_mask(images, kept) * 3).sum().backward()
    assert images.grad is not None
    assert images.grad[0, 0].tolist() == [[3.0, 0.0], [0.0, 3.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    kept = block_mask((4, 4, 4), 2, 0.5, mask_draw())
    found = apply_block_mask(torch.ones(4, 3, 4, 4, dtype=dtype), kept)
    assert found.dtype == dtype
    assert torch.equal(found, kept.expand(4, 3, 4, 4).to(dtype))


def test_degenerate() -> None:
    """Ratio 0 keeps everything, ratio 1 nothing; a block beyond the image is all or nothing; no sample."""
    assert bool(block_mask((4, 9, 9), 2, 0.0, mask_draw()).all())
    assert not bool(block_mask((4, 9, 9), 2, 1.0, mask_draw()).any())
    for kept in block_mask((4, 9, 9), 64, 0.5, mask_draw()):
        assert bool(kept.all()) or not bool(kept.any())
    assert block_mask((0, 9, 9), 2, 0.5, mask_draw(IDS[:0])).shape == (0, 1, 9, 9)


def test_errors() -> None:
    with pytest.raises(ValueError, match="block must be at least 1 pixel, got 0"):
        block_mask((4, 8, 8), 0, 0.5, mask_draw())
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\], got 1.2"):
        block_mask((4, 8, 8), 2, 1.2, mask_draw())
    for wrong in (draw(0, "block mask", 0), mask_draw(IDS[:3])):
        with pytest.raises(ValueError, match="4 samples need a draw with as many ids"):
            block_mask((4, 8, 8), 2, 0.5, wrong)
    with pytest.raises(ValueError, match="need a bool mask"):
        apply_block_mask(torch.ones(1, 3, 4, 4), torch.ones(1, 1, 4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="need a bool mask"):
        apply_block_mask(torch.ones(1, 3, 4, 4), torch.ones(1, 1, 4, 4))
