"""Labels that a network gives itself, and their weight: the share of sure pixels, margins, two ranks as one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.losses.confident import confident_labels


def scores(*size: int, classes: int = 4, batch: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64) * 4


def of_chances(values: list[float], classes: int = 6) -> Tensor:
    """Scores (1, K, 1, n) whose first class has these probabilities, the others equal ones."""
    first = torch.tensor(values, dtype=torch.float64)
    rest = ((1 - first) / (classes - 1)).expand(classes - 1, -1)
    return torch.cat([first[None], rest]).log()[None, :, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values(dtype: torch.dtype) -> None:
    """Three of six pixels reach 0.968, one of them exactly."""
    found = confident_labels(of_chances([0.99, 0.97, 0.968, 0.5, 0.9679, 0.2]).to(dtype), 0.968)
    assert float(found.share) == 0.5
    assert found.labels.tolist() == [[[0] * 6]]
    assert torch.equal(found.weights, torch.full((1, 1, 6), 0.5))
    assert float(confident_labels(of_chances([0.9, 0.6]), 0.0).share) == 1
    assert float(confident_labels(of_chances([0.9, 0.6]), 1.0).share) == 0


def test_values_margins() -> None:
    """Margins have weight 0 and labels; the share counts their pixels."""
    logits = torch.zeros(1, 2, 5, 6, dtype=torch.float64)
    logits[:, 1, :2] = 9.0  # 12 of 30 pixels are sure, half of them in the upper margin
    found = confident_labels(logits, 0.9, top=1, bottom=2, left=1, right=3)
    assert float(found.share) == pytest.approx(0.4)
    expected = torch.zeros(5, 6)
    expected[1:3, 1:3] = 0.4
    torch.testing.assert_close(found.weights[0], expected, rtol=1e-6, atol=0)
    assert bool((found.labels[0, :2] == 1).all())


def test_values_invalid_pixels() -> None:
    """Padding has no label, no weight, and no part in the share."""
    logits = of_chances([0.99, 0.99, 0.5, 0.99])
    valid = torch.tensor([[[True, False, True, False]]])
    found = confident_labels(logits, 0.9, valid=valid, ignore=255)
    assert found.labels.tolist() == [[[0, 255, 0, 255]]]
    assert float(found.share) == 0.5
    assert found.weights.tolist() == [[[0.5, 0.0, 0.5, 0.0]]]


@pytest.mark.parametrize("per_image", [False, True])
def test_reference(per_image: bool) -> None:
    """Pixel by pixel, over the batch or over each image."""
    logits = scores(5, 7)
    found = confident_labels(logits, 0.8, top=2, right=1, per_image=per_image)
    sure = torch.zeros(3, 5, 7)
    for b in range(3):
        for i in range(5):
            for j in range(7):
                chances = logits[b, :, i, j].softmax(0)
                sure[b, i, j] = float(chances.max() >= 0.8)
                assert int(found.labels[b, i, j]) == int(chances.argmax())
    assert 0.1 < float(sure.mean()) < 0.9
    for b in range(3):
        share = float((sure[b] if per_image else sure).mean())
        assert float(found.share[b] if per_image else found.share) == pytest.approx(share, rel=1e-6)
        expected = torch.full((5, 7), share)
        expected[:2] = 0
        expected[:, 6] = 0
        torch.testing.assert_close(found.weights[b], expected)
    assert found.share.shape == ((3,) if per_image else ())


def test_gradient() -> None:
    """None of it carries gradient."""
    found = confident_labels(scores(4, 4).requires_grad_(), 0.5)
    assert not any(part.requires_grad for part in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """Probabilities are computed in float32: half precision would round 0.9679 up to the threshold."""
    logits = torch.zeros(1, 2, 1, 2, dtype=dtype)
    logits[0, 0, 0] = torch.tensor([3.40625, 3.421875]).to(dtype)
    expected = (logits.float().softmax(1)[0, 0, 0] >= 0.968).float().mean()
    found = confident_labels(logits, 0.968)
    assert found.labels.dtype == torch.int64
    assert found.weights.dtype == torch.float32
    assert found.share.dtype == torch.float32
    assert float(found.share) == float(expected)
    assert float(expected) == 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(confident_labels(logits, 0.968).share) == float(expected)


def test_degenerate() -> None:
    """No image, one class, no pixel that counts, margins of the whole image, scores that are large or not numbers."""
    none = confident_labels(torch.zeros(0, 3, 2, 2), 0.5)
    assert float(none.share) == 0
    assert none.weights.shape == (0, 2, 2)
    assert confident_labels(torch.zeros(0, 3, 2, 2), 0.5, per_image=True).share.shape == (0,)
    assert float(confident_labels(torch.zeros(1, 1, 2, 2), 1.0).share) == 1
    nowhere = torch.zeros(2, 2, 2, dtype=torch.bool)
    for per_image in (False, True):
        hidden = confident_labels(torch.ones(2, 3, 2, 2), 0.0, valid=nowhere, per_image=per_image)
        assert not bool(hidden.share.any())
        assert bool((hidden.labels == -100).all())
        assert not bool(hidden.weights.any())
    assert not bool(confident_labels(torch.ones(1, 2, 4, 4), 0.0, top=3, bottom=1).weights.any())
    large = confident_labels(torch.tensor([[[[1e4]], [[-1e4]]]], dtype=torch.float16), 0.99)
    assert float(large.share) == 1
    assert float(confident_labels(torch.full((1, 2, 1, 1), float("nan")), 0.5).share) == 0


def test_errors() -> None:
    logits = torch.zeros(1, 2, 3, 4)
    for wrong in (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, 4).long(), torch.zeros(1, 0, 3, 4)):
        with pytest.raises(ValueError, match=r"scores must be floating point \(B, K, H, W\)"):
            confident_labels(wrong, 0.5)
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 1.5"):
        confident_labels(logits, 1.5)
    for top, bottom, left, right in ((2, 2, 0, 0), (0, 0, 5, 0), (0, 0, 0, -1)):
        with pytest.raises(ValueError, match="must fit into 3 x 4"):
            confident_labels(logits, 0.5, top=top, bottom=bottom, left=left, right=right)
    with pytest.raises(ValueError, match=r"valid must be bool \(1, 3, 4\)"):
        confident_labels(logits, 0.5, valid=torch.ones(1, 3, 4))


@given(st.integers(0, 1000), st.floats(0.3, 0.99))
def test_invariance(seed: int, threshold: float) -> None:
    """Constants added to all scores of a pixel change nothing; renumbered classes are renumbered labels."""
    logits = scores(3, 4, seed=seed)
    found = confident_labels(logits, threshold)
    shifted = confident_labels(logits + scores(3, 4, classes=1, seed=seed + 1), threshold)
    assert torch.equal(found.labels, shifted.labels)
    assert torch.equal(found.share, shifted.share)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    renumbered = confident_labels(logits[:, order], threshold)
    assert torch.equal(order[renumbered.labels], found.labels)
    assert torch.equal(renumbered.weights, found.weights)


def ranked(per_image: bool) -> list[Tensor]:
    rows = slice(0, 1) if dist.rank() == 0 else slice(1, 3)
    return list(confident_labels(scores(4, 4)[rows], 0.8, bottom=1, per_image=per_image))


@pytest.mark.parametrize("per_image", [False, True])
def test_ranks(pool: Any, per_image: bool) -> None:
    """One rank with one image and one with two: the share of all three."""
    whole = confident_labels(scores(4, 4), 0.8, bottom=1, per_image=per_image)
    parts = pool.run(ranked, per_image)
    if not per_image:
        assert float(confident_labels(scores(4, 4)[:1], 0.8).share) != float(whole.share)
    for field in (0, 2):
        assert torch.equal(torch.cat([part[field] for part in parts]), whole[field])
    if per_image:
        assert torch.equal(torch.cat([part[1] for part in parts]), whole.share)
    else:
        assert all(torch.equal(part[1], whole.share) for part in parts)
