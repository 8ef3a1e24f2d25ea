"""Agreement of two networks on pairs: numbers by hand, a loop, what does not count, and several ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from leanlabel import dist
from leanlabel.errors import InputError, RunError
from leanlabel.evaluation.pair_agreement import PairImages, pair_agreement
from leanlabel.models.segmenters import DenseOutput


def output(logits: Tensor) -> DenseOutput:
    """Images are the logits, and twice these the features."""
    return DenseOutput(logits, 2 * logits)


def of_classes(rows: list[list[int]], classes: int = 3) -> Tensor:
    """Scores (1, K, h, w) whose largest is at the classes given."""
    return 4 * torch.nn.functional.one_hot(torch.tensor([rows]), classes).permute(0, 3, 1, 2).double()


def random_pairs(*sizes: int, seed: int = 0) -> list[PairImages]:
    generator = torch.Generator().manual_seed(seed)
    found: list[PairImages] = []
    for size in sizes:
        first, second = (
            torch.randn(size, 3, 7, 8, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        found.append((first, (first + second) / 2, torch.rand(size, 7, 8, generator=generator) < 0.8))
    return found


def flat(found: Any) -> list[float]:
    """All numbers of nested results."""
    if isinstance(found, dict):
        found = list(found.values())
    return [one for each in found for one in flat(each)] if isinstance(found, list) else [found]


def test_values() -> None:
    """Six positions, of which four agree; the last column does not count."""
    first, second = of_classes([[0, 0, 1], [1, 2, 2]]), of_classes([[0, 1, 1], [1, 2, 0]])
    valid = torch.tensor([[[True, True, False], [True, True, False]]])
    found = pair_agreement(output, output, [(first, second, None)], 3)
    assert (found["pairs"], found["positions"]) == (1, 6)
    assert found["agreement"] == pytest.approx(4 / 6)
    assert found["classes"] == {
        "agreement": [0.5, 1.0, 0.5],
        "iou": [1 / 3, 2 / 3, 0.5],
        "positions": [2, 2, 2],
    }
    assert found["mean_iou"] == pytest.approx(0.5)
    # Two of three features differ by 8 where the classes differ.
    assert found["feature_error"] == pytest.approx(2 * 64 / 3 * 2 / 6)
    assert found["relative_feature_error"] == pytest.approx(2 * 2 / 6)
    assert found["regions"]["agreement"] == [[1, 0, 1], [1, 1, 0], [None, None, None]]
    part = pair_agreement(output, output, [(first, second, valid)], 3, regions=1)
    assert part["regions"]["agreement"] == [[pytest.approx(0.75)]]
    assert part["positions"] == 4


def test_values_entropy() -> None:
    """Even scores say nothing, high ones everything."""
    images = torch.zeros(1, 4, 2, 2)
    sure = images.clone()
    sure[:, 0] = 100.0
    found = pair_agreement(output, output, [(images, sure, None)], 4)
    assert found["entropy"] == {"reference": pytest.approx(1.0), "student": pytest.approx(0.0)}


def test_reference() -> None:
    """A loop over images and positions."""
    pairs = random_pairs(2, 3)
    found = pair_agreement(output, output, pairs, 3)
    same: dict[tuple[int, int], list[bool]] = {}
    errors: dict[tuple[int, int], list[float]] = {}
    entropies = []
    for first, second, valid in pairs:
        assert valid is not None
        for image, y, x in valid.nonzero().tolist():
            a, b = first[image, :, y, x], second[image, :, y, x]
            place = (y * 3 // 7, x * 3 // 8)
            same.setdefault(place, []).append(int(a.argmax()) == int(b.argmax()))
            errors.setdefault(place, []).append(float(((2 * a - 2 * b) ** 2).mean()))
            p = b.softmax(0)
            entropies.append(-float((p * p.log()).sum()) / math.log(3))
    for row in range(3):
        for column in range(3):
            place = (row, column)
            mean = sum(same[place]) / len(same[place])
            assert found["regions"]["agreement"][row][column] == pytest.approx(mean)
            mean = sum(errors[place]) / len(errors[place])
            assert found["regions"]["feature_error"][row][column] == pytest.approx(mean)
    everywhere = [one for each in same.values() for one in each]
    assert found["agreement"] == pytest.approx(sum(everywhere) / len(everywhere))
    assert found["entropy"]["student"] == pytest.approx(sum(entropies) / len(entropies))
    assert (found["pairs"], found["positions"]) == (5, len(everywhere))


def test_reference_batches() -> None:
    """However pairs are put into batches, the result is the same."""
    pairs = random_pairs(4)
    (first, second, valid) = pairs[0]
    assert valid is not None
    singles: list[PairImages] = [(first[k, None], second[k, None], valid[k, None]) for k in range(4)]
    one_by_one, at_once = (pair_agreement(output, output, given, 3) for given in (singles, pairs))
    assert flat(one_by_one) == pytest.approx(flat(at_once), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    """Features whose squares overflow in float16."""
    images = 2e4 * of_classes([[0, 1], [2, 2]]).to(dtype).sign()
    found = pair_agreement(output, output, [(images, images.flip(1), None)], 3)
    assert found["agreement"] == pytest.approx(0.25)
    assert found["feature_error"] == pytest.approx(2 / 3 * 0.75 * 1.6e9, rel=1e-2)
    assert found["relative_feature_error"] == pytest.approx(2 * 0.75, rel=1e-6)


def test_degenerate() -> None:
    """Nothing valid, other sizes, other widths of features, one class."""
    images = of_classes([[0, 1], [2, 2]])
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    found = pair_agreement(output, output, [(images, images, nothing)], 3)
    assert (found["agreement"], found["feature_error"], found["mean_iou"], found["positions"]) == (
        None,
        None,
        None,
        0,
    )
    large = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    found = pair_agreement(output, output, [(large, images, torch.ones(1, 8, 8, dtype=torch.bool))], 3)
    assert (found["agreement"], found["positions"]) == (1.0, 4)
    found = pair_agreement(output, lambda x: DenseOutput(x, x[:, :1]), [(images, images, None)], 3)
    assert (found["agreement"], found["feature_error"], found["relative_feature_error"]) == (1.0, None, None)
    found = pair_agreement(output, output, [(images[:, :1], images[:, :1], None)], 1)
    assert (found["agreement"], found["entropy"]["student"]) == (1.0, 0.0)


def test_degenerate_one_by_one() -> None:
    """Batches are read one after the other, and no gradient waits for anything."""
    order = []

    def pairs() -> Iterator[PairImages]:
        for number in range(3):
            order.append(f"read {number}")
            yield torch.zeros(1, 3, 2, 2, requires_grad=True), torch.zeros(1, 3, 2, 2), None

    def watched(images: Tensor) -> DenseOutput:
        order.append("used")
        found = output(images)
        assert not found.features.requires_grad
        return found

    pair_agreement(watched, output, pairs(), 3)
    assert order == ["read 0", "used", "read 1", "used", "read 2", "used"]


def test_errors() -> None:
    with pytest.raises(InputError, match=r"No pair of images to compare\. Check data\.pairs"):
        pair_agreement(output, output, [], 3)
    images = of_classes([[0, 1], [2, 2]])
    with pytest.raises(ValueError, match=r"reference must give logits \(1, 4, h, w\), got \(1, 3, 2, 2\)"):
        pair_agreement(output, output, [(images, images, None)], 4)
    with pytest.raises(ValueError, match="classes and regions must be at least 1, got 3 and 0"):
        pair_agreement(output, output, [], 3, regions=0)
    with pytest.raises(
        RunError, match="trained network gives scores or features that are not finite, on 1 images"
    ):
        pair_agreement(output, lambda x: output(x * torch.nan), [(images, images, None)], 3)
    with pytest.raises(RunError, match="reference gives scores or features that are not finite, on 1 images"):
        pair_agreement(lambda x: DenseOutput(x, x / 0), output, [(images, images, None)], 3)


def ranked(share: list[int]) -> dict[str, Any]:
    start = sum(share[: dist.rank()])
    return pair_agreement(output, output, random_pairs(2, 3, 1)[start : start + share[dist.rank()]], 3)


@pytest.mark.parametrize("share", [[1, 2], [0, 3]])
def test_ranks(pool, share: list[int]) -> None:
    """Two ranks say what one says, also where one has no pair."""
    alone = ranked([3])
    for found in pool.run(ranked, share):
        assert flat(found) == pytest.approx(flat(alone), rel=1e-12)
