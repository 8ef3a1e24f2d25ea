"""Prototypes against labelled features: values by hand, naive loops, few shots, and the picture's plain data."""

from __future__ import annotations

import doctest
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor

from leanlabel import dist
from leanlabel.evaluation import prototype_space
from leanlabel.evaluation.prototype_space import (
    PixelSample,
    PrototypeMeter,
    completed,
    embedding,
    few_shot_prototypes,
    score_prototypes,
    smallest,
)
from leanlabel.losses.prototype import unit

K, D = 4, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and labels of some images; a quarter of the positions has no label."""
    numbers = torch.Generator().manual_seed(seed + 100)
    labels = torch.randint(0, K, (count, 4, 6), generator=numbers)
    labels[torch.rand(labels.shape, generator=numbers) < 0.25] = -100
    return normal(count, D, 4, 6, seed=seed), labels


def positions(features: Tensor, labels: Tensor) -> list[tuple[Tensor, int]]:
    """Unit features and their classes, one by one."""
    found = []
    for image, own in zip(features, labels, strict=True):
        for i in range(own.shape[0]):
            for j in range(own.shape[1]):
                if own[i, j] >= 0:
                    z = image[:, i, j]
                    found.append((z / z.norm(), int(own[i, j])))
    return found


def test_values() -> None:
    """Four pixels by hand: similarities 0.6, 1, 0.8 and 0.6 to their own; one is nearer to another."""
    features = torch.tensor([[3.0, 4.0], [0.0, 2.0], [4.0, 3.0], [4.0, 3.0]]).T.reshape(1, 2, 1, 4)
    labels = torch.tensor([[[0, 1, 0, 1]]])
    found = score_prototypes([(features, labels)], torch.eye(2), torch.ones(2))
    assert found.similarity.own == pytest.approx((0.6 + 1 + 0.8 + 0.6) / 4)
    assert found.similarity.other == pytest.approx((0.8 + 0 + 0.6 + 0.8) / 4)
    assert found.similarity.gap_by_class.tolist() == pytest.approx([0.0, 0.4], abs=1e-6)
    assert found.table.tolist() == [[1, 1], [1, 1]]
    assert found.accuracy == 0.5
    assert found.miou == pytest.approx(1 / 3)
    half = score_prototypes([(features, labels)], torch.diag(torch.tensor([1.0, 0.1])), torch.ones(2))
    assert half.table.equal(found.table), (
        "the nearest is the one of the nearest direction, whatever its length"
    )
    assert half.similarity.own == pytest.approx((0.6 + 0.1 + 0.8 + 0.06) / 4), "similarities are z.P as it is"


def test_values_few_shot() -> None:
    """The mean of unit features over all pixels of a class in all shots; other classes come from elsewhere."""
    first = torch.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, 1.0]]).T.reshape(1, 2, 1, 3)
    second = torch.tensor([[5.0, 0.0]]).T.reshape(1, 2, 1, 1)
    shots = [(first, torch.tensor([[[0, 0, -100]]])), (second, torch.tensor([[[0]]]))]
    values, counts = few_shot_prototypes(shots, 3)
    assert values[0].tolist() == pytest.approx([(0.6 + 0.8 + 1) / 3, (0.8 + 0.6) / 3])
    assert values[1:].abs().sum() == 0
    assert counts.tolist() == [3, 0, 0]
    source = torch.tensor([[0.0, 9.0], [0.5, 0.5], [9.0, 9.0]])
    filled, known = completed(values, counts, source, torch.tensor([4, 7, 0]))
    assert filled[0].tolist() == values[0].tolist()
    assert filled[1].tolist() == [0.5, 0.5]
    assert known.tolist() == [3, 7, 0]


@given(st.integers(0, 99), st.integers(0, K))
def test_reference(seed: int, lacking: int) -> None:
    """Own, other, nearest and its scores by a loop over pixels, with and without a class that has no prototype."""
    features, labels = labelled(seed=seed)
    values, counts = normal(K, D, seed=seed + 1), torch.ones(K)
    if lacking < K:
        counts[lacking] = 0
    known = [k for k in range(K) if counts[k]]
    own, other, table = [], [], torch.zeros(K, K, dtype=torch.int64)
    for z, y in positions(features, labels):
        near = max(known, key=lambda k: float(z @ values[k] / values[k].norm()))
        table[y, near] += 1
        if y in known:
            own.append(float(z @ values[y]))
            other.append(sum(float(z @ values[k]) for k in known if k != y) / (len(known) - 1))
    found = score_prototypes([(features[:1], labels[:1]), (features[1:], labels[1:])], values, counts)
    assert found.table.equal(table)
    assert found.similarity.own == pytest.approx(sum(own) / len(own), rel=1e-10)
    assert found.similarity.other == pytest.approx(sum(other) / len(other), rel=1e-10)
    recalls = [float(table[k, k] / table[k].sum()) for k in range(K) if table[k].sum()]
    assert found.accuracy == pytest.approx(sum(recalls) / len(recalls))
    unions = [(table[k, k], table[k].sum() + table[:, k].sum() - table[k, k]) for k in range(K)]
    ious = [float(hits / union) for hits, union in unions if union]
    assert found.miou == pytest.approx(sum(ious) / len(ious))


def test_reference_own_class_means() -> None:
    """Prototypes of an image classify that image's features as a naive mean of unit features does."""
    features, labels = labelled()
    values, counts = few_shot_prototypes([(features, labels)], K)
    for k in range(K):
        own = [z for z, y in positions(features, labels) if y == k]
        assert counts[k] == len(own)
        torch.testing.assert_close(values[k], torch.stack(own).mean(0))


def test_reference_embedding() -> None:
    """Distances in the plane are those along the first two components of points and prototypes together."""
    points, values = normal(40, D), normal(K, D, seed=1)
    found = embedding(points, torch.arange(40) % K, torch.arange(40) % 2, values, torch.tensor([1, 1, 0, 1]))
    every = torch.cat([unit(points, dim=1), values[[0, 1, 3]]])
    model = PCA(2).fit(every.numpy())
    flat = torch.from_numpy(model.transform(every.numpy()))
    shown = torch.tensor(found["points"] + [found["prototypes"][k] for k in (0, 1, 3)])
    torch.testing.assert_close(shown.abs(), flat.abs().float(), atol=1e-4, rtol=0)
    assert found["explained"] == pytest.approx(model.explained_variance_ratio_.tolist(), abs=1e-4)
    assert found["prototypes"][2] is None
    assert (found["classes"], found["domains"]) == ([k % K for k in range(40)], [k % 2 for k in range(40)])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_values_sampling() -> None:
    """At most so many of each class and domain, small ones whole, the same ones for a seed; others for another."""
    classes = torch.tensor([0] * 50 + [1] * 3 + [0] * 20)
    domains = torch.tensor([0] * 40 + [1] * 33)
    points, values = normal(73, D), normal(2, D)
    found = [
        embedding(points, classes, domains, values, torch.ones(2), most=8, seed=seed) for seed in (0, 0, 1)
    ]
    counted = [list(zip(one["classes"], one["domains"], strict=True)) for one in found]
    assert {key: counted[0].count(key) for key in set(counted[0])} == {(0, 0): 8, (0, 1): 8, (1, 1): 3}
    assert found[0] == found[1]
    assert found[0]["points"] != found[2]["points"]


def test_reference_pixel_sample() -> None:
    """Batches and their order do not change what is kept; each class keeps so many, and they are its own features."""
    features, labels = labelled(6)
    ids = torch.tensor([4, 9, 1, 30, 2, 7])
    results = []
    for parts in ([[0, 1, 2, 3, 4, 5]], [[5], [2, 0], [1, 3, 4]], [[3, 4, 5], [0, 1, 2]]):
        sample = PixelSample(K, most=7, seed=3, stream="source")
        for part in parts:
            sample.add(features[part], labels[part], ids[part])
        results.append(sample.result())
    for values, classes in results[1:]:
        assert values.equal(results[0][0])
        assert classes.equal(results[0][1])
    values, classes = results[0]
    assert classes.bincount().tolist() == [7] * K
    every = positions(features, labels)
    for z, y in zip(values, classes, strict=True):
        assert any(int(y) == k and torch.allclose(z, one.float(), atol=1e-6) for one, k in every)
    other = PixelSample(K, most=7, seed=3, stream="target")
    other.add(features, labels, ids)
    assert not other.result()[0].equal(values)


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 6), st.integers(0, 9))
def test_reference_smallest(groups: list[int], most: int, seed: int) -> None:
    numbers = torch.rand(len(groups), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wanted = []
    for group in set(groups):
        rows = [row for row, own in enumerate(groups) if own == group]
        wanted += sorted(rows, key=lambda row: float(numbers[row]))[:most]
    assert smallest(torch.tensor(groups, dtype=torch.int64), numbers, most).tolist() == sorted(wanted)


def test_dtypes() -> None:
    features, labels = labelled()
    values = normal(K, D, seed=1)
    wanted = score_prototypes([(features, labels)], values, torch.ones(K))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = score_prototypes([(features.to(dtype), labels)], values.float(), torch.ones(K))
        assert found.similarity.gap == pytest.approx(wanted.similarity.gap, abs=0.01)
        assert math.isfinite(found.miou)
        few, _ = few_shot_prototypes([((features * 1e3).to(dtype), labels)], K)
        assert few.dtype == torch.float32
        assert few.isfinite().all()
        sample = PixelSample(K, most=2)
        sample.add(features.to(dtype), labels, torch.arange(3))
        assert sample.result()[0].dtype == torch.float32
    bytes_ = labels.where(labels >= 0, 255).to(torch.uint8)
    again = score_prototypes([(features, bytes_)], values, torch.ones(K), ignore=255)
    assert again.table.equal(wanted.table)
    assert again.similarity.gap == wanted.similarity.gap


def test_degenerate() -> None:
    """No label, no prototype, one prototype, a zero feature, an empty batch, nothing at all."""
    features, labels = labelled()
    values = normal(K, D, seed=1)
    for batches, counts in (
        ([(features, torch.full_like(labels, -100))], torch.ones(K)),
        ([labelled()], torch.zeros(K)),
        ([], torch.ones(K)),
        ([(features[:0], labels[:0])], torch.ones(K)),
    ):
        found = score_prototypes(batches, values, counts)
        assert math.isnan(found.miou)
        assert math.isnan(found.accuracy)
        assert math.isnan(found.similarity.gap)
        assert not found.table.any()
    single = score_prototypes([labelled()], values, torch.tensor([0, 1, 0, 0]))
    assert single.accuracy == 0.25, "everything is the one class that has a prototype"
    assert math.isnan(single.similarity.gap), "there is no other class"
    zero = torch.zeros(1, D, 4, 6, dtype=torch.float64)
    assert score_prototypes([(zero, labelled()[1][:1])], values, torch.ones(K)).similarity.own == 0
    few, counts = few_shot_prototypes([(zero, labelled()[1][:1])], K)
    assert not few.any()
    empty = PixelSample(K)
    assert [tuple(one.shape) for one in empty.result()] == [(0, 0), (0,)]
    empty.add(features, torch.full((3, 4, 6), 255, dtype=torch.uint8), torch.arange(3))
    assert tuple(empty.result()[0].shape) == (0, D)
    none = torch.zeros(0, dtype=torch.int64)
    nothing = embedding(torch.zeros(0, D), none, none, values, torch.zeros(K))
    assert (nothing["points"], nothing["prototypes"], nothing["explained"]) == ([], [None] * K, [0.0, 0.0])
    marks = embedding(torch.zeros(0, 0), none, none, values[:0], torch.zeros(0))
    assert marks["prototypes"] == []
    alone = embedding(torch.zeros(0, D), none, none, values, torch.ones(K))
    assert sum(one is not None for one in alone["prototypes"]) == K
    same = embedding(torch.ones(3, D), torch.zeros(3).long(), torch.zeros(3).long(), values, torch.zeros(K))
    assert same["explained"] == [0.0, 0.0]
    assert same["points"] == [[0.0, 0.0]] * 3


def test_errors() -> None:
    features, labels = labelled()
    with pytest.raises(
        ValueError, match=r"prototypes must be \(K, D\) with K counts, got \(4, 5\) and \(3,\)"
    ):
        PrototypeMeter(normal(K, D), torch.ones(3))
    with pytest.raises(ValueError, match="differ in size"):
        PrototypeMeter(normal(K, D), torch.ones(K)).add(features, labels[:, :2])
    with pytest.raises(ValueError, match="there is no image"):
        few_shot_prototypes([], K)
    with pytest.raises(ValueError, match=r"points must be \(N, D\).*got \(2, 3\) and \(4, 5\)"):
        embedding(
            torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(2).long(), normal(K, D), torch.ones(K)
        )
    with pytest.raises(ValueError, match="2 points need classes and domains"):
        embedding(
            torch.zeros(2, D), torch.zeros(1).long(), torch.zeros(2).long(), normal(K, D), torch.ones(K)
        )
    wrong = torch.full((1, D), torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        embedding(wrong, torch.zeros(1).long(), torch.zeros(1).long(), normal(K, D), torch.ones(K))


def test_state() -> None:
    """What is given is not changed, and the meter does not follow later changes of the prototypes."""
    features, labels = labelled()
    values = normal(K, D, seed=1)
    copies = features.clone(), labels.clone(), values.clone()
    meter = PrototypeMeter(values, torch.ones(K))
    values.zero_()
    meter.add(features, labels)
    assert features.equal(copies[0])
    assert labels.equal(copies[1])
    assert (
        meter.result().similarity.own
        == score_prototypes([(features, labels)], copies[2], torch.ones(K)).similarity.own
    )


def on_rank() -> tuple[list[list[int]], float, float]:
    features, labels = labelled(5)
    own = slice(0, 2) if dist.rank() == 0 else slice(2, 5)
    found = score_prototypes([(features[own], labels[own])], normal(K, D, seed=1), torch.ones(K))
    return found.table.tolist(), found.similarity.gap, found.miou


def test_ranks(pool) -> None:
    """Two processes with some of the images each say what one with all says."""
    whole = score_prototypes([labelled(5)], normal(K, D, seed=1), torch.ones(K))
    for table, gap, miou in pool.run(on_rank):
        assert table == whole.table.tolist()
        assert gap == pytest.approx(whole.similarity.gap, rel=1e-12)
        assert miou == whole.miou


def test_doctests() -> None:
    assert doctest.testmod(prototype_space).failed == 0
