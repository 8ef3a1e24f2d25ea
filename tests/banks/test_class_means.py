"""Means of classes over pixels and images, and the labels that speak for them: given cases, and loops."""

from __future__ import annotations

import torch
from torch import Tensor

from leanlabel.banks.prototypes import (
    ImageMeans,
    Prototypes,
    agreeing_labels,
    class_sums,
    nearest_labels,
)


def pixels(rows: list[list[int]]) -> Tensor:
    """Features (1, D, 1, N)."""
    return torch.tensor(rows, dtype=torch.float64).t()[None, :, None]


def line(labels: list[int]) -> Tensor:
    return torch.tensor(labels).view(1, 1, -1)


def random_batch(
    seed: int, batch: int = 3, width: int = 5, classes: int = 4, size: tuple[int, int] = (4, 3)
) -> tuple[Tensor, Tensor]:
    """Features with a zero among them, and labels with ignored ones."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, width, *size, generator=generator, dtype=torch.float64)
    features[0, :, 1, 1] = 0
    labels = torch.randint(-1, classes, (batch, *size), generator=generator)
    return features, labels.where(labels >= 0, -100)


def rows_of(features: Tensor, labels: Tensor, k: int) -> list[Tensor]:
    """Directions of the pixels of a class, one after another."""
    found = []
    for b, i, j in (labels == k).nonzero().tolist():
        feature = features[b, :, i, j]
        found.append(feature / feature.norm() if feature.norm() > 0 else feature)
    return found


def test_values_images() -> None:
    """Specification, case 3: means over images, not over pixels."""
    means = ImageMeans(3, 3)
    means.add(pixels([[3, 4, 0], [4, 3, 0], [0, 0, 1]]), line([0, 0, 1]), ignore=255)
    means.add(pixels([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 3, 4]]), line([0, 255, 1, 1]), ignore=255)
    values, images = means.result()
    expected = torch.tensor([[0.85, 0.35, 0], [0, 0.15, 0.95], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-16)
    assert images.tolist() == [2, 2, 0]
    found = Prototypes(3, 3).double()
    found.begin(values, images)
    assert found.known.tolist() == [True, True, False]


def test_values_resize() -> None:
    """Specification, case 4: source indices of nearest labels, for any batch and type; and agreement."""
    expected = {(5, 2): [0, 2], (8, 3): [0, 2, 5], (720, 90): list(range(0, 713, 8))}
    expected[1024, 128] = list(range(0, 1017, 8))
    for (large, small), source in expected.items():
        labels = torch.arange(large).expand(2, 3, large)
        assert nearest_labels(labels, (3, small)).tolist() == [[source] * 3] * 2
        assert nearest_labels(labels.transpose(1, 2), (small, 3))[1, :, 0].tolist() == source
    masks = torch.tensor([[[0, 255], [7, 1]]], dtype=torch.uint8)
    assert nearest_labels(masks, (1, 2)).dtype == torch.uint8
    assert nearest_labels(masks, (2, 2)).equal(masks)
    logits = torch.nn.functional.one_hot(line([0, 2, 2, 1]), 3).movedim(-1, 1).float()
    assert agreeing_labels(line([0, 1, 2, 255]), logits, ignore=255).flatten().tolist() == [0, 255, 2, 255]
    found = agreeing_labels(line([0, 1, 2, 255]), logits, fallback=True, ignore=255)
    assert found.flatten().tolist() == [0, 1, 2, 255]
    # One pixel of class 1 agrees: the other is no longer wanted.
    found = agreeing_labels(line([0, 1, 2, 1]), logits, fallback=True)
    assert found.flatten().tolist() == [0, -100, 2, 1]


def test_reference_sums() -> None:
    """Class sums and means over images, by loops; other layouts of memory."""
    features, labels = random_batch(7)
    sums, counts = class_sums(features, labels, 4)
    for k in range(4):
        rows = rows_of(features, labels, k)
        torch.testing.assert_close(sums[k], torch.stack(rows).sum(0))
        assert int(counts[k]) == len(rows)
    last = features.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(class_sums(last, labels, 4)[0], sums)
    torch.testing.assert_close(
        class_sums(features[..., :2], labels[..., :2], 4)[0]
        + class_sums(features[..., 2:], labels[..., 2:], 4)[0],
        sums,
    )
    means = ImageMeans(4, 5)
    means.add(features[:1], labels[:1])
    means.add(features[1:], labels[1:])
    values, images = means.result()
    for k in range(4):
        each = [rows_of(features[b : b + 1], labels[b : b + 1], k) for b in range(3)]
        found = [torch.stack(rows).mean(0) for rows in each if rows]
        assert int(images[k]) == len(found)
        torch.testing.assert_close(values[k], torch.stack(found).mean(0))
