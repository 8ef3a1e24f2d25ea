"""Sampling by classes: shares, lists, sub-epochs, and that a batch is a function of (seed, t)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanlabel.config import validate
from leanlabel.data import class_sampling
from leanlabel.data.class_map import plain_map
from leanlabel.data.class_sampling import (
    SUB_EPOCH,
    ClassSampler,
    SamplingSettings,
    balanced_weights,
    class_table,
    rare_class_shares,
)
from leanlabel.data.dense import DenseImages, MaskArray
from leanlabel.data.images import PixelArray
from leanlabel.engine import loaders
from leanlabel.errors import InputError
from leanlabel.recipe import Recipe

CLASSES = plain_map(["a", "b", "c"])
# Six images, four classes: 0 everywhere, 1 in two, 2 in one, 3 nowhere.
TABLE = torch.tensor(
    [[90, 0, 0, 0], [80, 0, 0, 0], [70, 20, 0, 0], [60, 12, 0, 0], [50, 0, 6, 0], [10] + [0] * 3]
)


def images(masks: Tensor, **changes: object) -> DenseImages:
    pixels = PixelArray(torch.zeros(len(masks), 3, *masks.shape[1:], dtype=torch.uint8))
    return DenseImages("x", pixels, MaskArray(masks), CLASSES, **changes)  # type: ignore[arg-type]


def sampler(
    name: str = "rare", table: Tensor = TABLE, batch_size: int = 4, seed: int = 3, **more: object
) -> ClassSampler:
    chosen = SamplingSettings.model_validate({"name": name, "min_pixels": 5, **more})
    return ClassSampler(chosen, table, batch_size, seed)


def test_values() -> None:
    """Oracle cases O6 and O11."""
    pixels = torch.tensor([5000, 3000, 1500, 400, 100])
    expected = {
        0.01: [
            *(4.994233276911156e-22, 2.4230281637146785e-13, 7.920921161172481e-07),
            *(0.04742583561189504, 0.9525733722957465),
        ],
        0.1: [
            *(0.0036326833531746105, 0.026842101086258674, 0.1202979510631951),
            *(0.3613950173344213, 0.4878322471629504),
        ],
    }
    for temperature, shares in expected.items():
        assert rare_class_shares(pixels, temperature).tolist() == pytest.approx(shares, rel=1e-10)
    for counts, weights in (
        ((0, 0, 0), [1 / 3] * 3),
        ((3, 1, 0), [0.0165948574088689, 0.04059206522864544, 0.9428130773624857]),
        ((10, 10, 1), [0.11022032791903964, 0.11022032791903964, 0.7795593441619206]),
    ):
        assert balanced_weights(torch.tensor(counts)).tolist() == pytest.approx(weights, rel=1e-10)


def test_values_chosen_classes() -> None:
    """Oracle C5 of content transfer: only some classes are drawn, by their shares of the pixels of all."""
    pixels, tail = torch.tensor([900, 60, 30, 10]), torch.tensor([False, True, True, True])
    for temperature, shares in (
        (0.1, [0, 0.2500887766217052, 0.33758453779871656, 0.41232668557957824]),
        (0.01, [0, 0.005899750401902698, 0.11849965453500962, 0.8756005950630877]),
    ):
        assert rare_class_shares(pixels, temperature, tail).tolist() == pytest.approx(shares, rel=1e-10)
    every = torch.ones(4, dtype=torch.bool)
    assert torch.equal(rare_class_shares(pixels, 0.1, every), rare_class_shares(pixels, 0.1))


@pytest.mark.parametrize(
    ("name", "ids", "wanted"),
    [
        ("uniform", [[3, 1, 0, 2], [1, 0, 2, 5], [5, 4, 1, 2]], [-1, -1, -1, -1]),
        ("rare", [[4, 2, 10, 16], [3, 0, 9, 15], [2, 8, 14, 1]], [1, 0, 1, 1]),
        ("balanced", [[3, 9, 2, 4], [4, 10, 3, 2], [2, 4, 3, 10]], [-1, -1, -1, -1]),
    ],
)
def test_values_streams(name: str, ids: list[list[int]], wanted: list[int]) -> None:
    """What a seed gave in recorded runs it gives for good."""
    found = sampler(name, temperature=1.0)
    assert [found.ids(t).tolist() for t in (0, 1, 900)] == ids
    assert found.wanted(1).tolist() == wanted


def test_values_table() -> None:
    masks = torch.full((40, 3, 5), 255, dtype=torch.uint8)
    masks[7, 0] = 2
    masks[39, :, 0] = torch.tensor([0, 1, 1], dtype=torch.uint8)
    seen: list[tuple[int, int]] = []
    rows = torch.tensor([39, 7, *range(30), 39])
    table = class_table(images(masks), rows, lambda done, count: seen.append((done, count)))
    assert table.dtype == torch.int64
    assert table.shape == (33, 3)
    assert table[[0, 1, 9, 32]].tolist() == [[1, 2, 0], [0, 0, 5], [0, 0, 5], [1, 2, 0]]
    assert int(table.sum()) == 3 + 5 + 5 + 3
    assert seen[-1] == (33, 33)
    assert all(a[0] < b[0] for a, b in pairwise(seen))
    assert class_table(images(masks), []).shape == (0, 3)


def test_values_rare() -> None:
    """A wanted class comes with an image that has enough of it; the shares of classes and images fit."""
    table = torch.tensor([[900, 40], [850, 50], [900, 4], [950, 0]])
    found = sampler(table=table, temperature=2.0, batch_size=1000, min_pixels=30)
    ids, wanted = found.ids(5), found.wanted(5)
    rows = ids % 4
    assert set(rows[wanted == 1].tolist()) == {0, 1}
    assert set(rows[wanted == 0].tolist()) == {0, 1, 2, 3}
    assert int((wanted == 1).sum()) / 1000 == pytest.approx(float(found.shares[1]), abs=0.06)
    assert int((rows[wanted == 1] == 0).sum()) / int((wanted == 1).sum()) == pytest.approx(0.5, abs=0.08)


def test_values_fall_back() -> None:
    """Where no image has enough of a class, those with at least half of the most are taken."""
    table = torch.tensor([[99, 3], [99, 6], [99, 2], [99, 7], [99, 0]])
    found = sampler(table=table, temperature=1e-3, batch_size=300, min_pixels=3000)
    assert found.wanted(0).unique().tolist() == [1]
    assert (found.ids(0) % 5).unique().tolist() == [1, 3]
    assert sampler(table=torch.tensor([[9, 0], [9, 1]]), temperature=1e-3, min_pixels=9).ids(0).tolist() == [
        1,
        3,
        5,
        7,
    ]


def test_values_rare_chosen() -> None:
    """Images are drawn for chosen classes alone, each as often as its share says."""
    tail = torch.tensor([False, True, True, False])
    found = ClassSampler(
        SamplingSettings(name="rare", min_pixels=5, temperature=0.1), TABLE, 1000, seed=3, classes=tail
    )
    rows, wanted = found.ids(0) % 6, found.wanted(0)
    assert wanted.unique().tolist() == [1, 2]
    assert rows[wanted == 1].unique().tolist() == [2, 3]
    assert rows[wanted == 2].unique().tolist() == [4]
    expected = rare_class_shares(TABLE.sum(0), 0.1, tail)
    assert torch.equal(found.shares, expected)
    assert int((wanted == 1).sum()) / 1000 == pytest.approx(float(expected[1]), abs=0.06)
    absent = torch.tensor([False, False, True, True])  # one of them is in no image
    one = ClassSampler(SamplingSettings(name="rare", min_pixels=5), TABLE, 50, seed=3, classes=absent)
    assert one.wanted(0).unique().tolist() == [2]


@pytest.mark.parametrize("name", ["uniform", "rare", "balanced"])
def test_values_stream_prefix(name: str) -> None:
    """Two samplers of a run draw apart; a prefix is not part of the rule."""
    chosen = SamplingSettings(name=name, min_pixels=5, temperature=1.0)  # type: ignore[arg-type]
    plain, same, other = (
        ClassSampler(chosen, TABLE, 40, seed=3, stream=stream) for stream in ("", "", "donor ")
    )
    assert [plain.ids(t).tolist() for t in range(5)] == [same.ids(t).tolist() for t in range(5)]
    for t in range(5):
        assert plain.ids(t).tolist() != other.ids(t).tolist()
    assert torch.equal(plain.shares, other.shares)
    if name == "rare":
        assert plain.wanted(0).tolist() != other.wanted(0).tolist()


def test_values_occurrence() -> None:
    """The k-th sample of an image in a batch has the id row + n k; two batches are counted apart."""
    found = sampler(batch_size=50, temperature=1.0)
    for t in range(3):
        ids = found.ids(t).tolist()
        seen: dict[int, int] = {}
        for index in ids:
            assert index // 6 == seen.get(index % 6, 0)
            seen[index % 6] = seen.get(index % 6, 0) + 1
        assert max(seen.values()) > 1


def test_reference_uniform() -> None:
    """Without a rule a batch is what the loaders make of it by themselves."""
    table = torch.ones(23, 2, dtype=torch.int64)
    found = sampler("uniform", table, batch_size=5, seed=7)
    for t in (0, 1, 3, 4, 5, 1000):
        assert torch.equal(found.ids(t), loaders.batch_ids(23, 5, 7, t))
    assert found.wanted(3).tolist() == [-1] * 5


def test_reference_balanced() -> None:
    """A sub-epoch is what the procedure gives, one pick after the other, up to the order inside."""
    from leanlabel import rng

    found, n = sampler("balanced", batch_size=SUB_EPOCH), len(TABLE)
    holds = TABLE > 0
    for number in (0, 2):
        points = rng.draw(3, "balanced class", number).uniform(SUB_EPOCH, torch.float64).tolist()
        sources = [rng.draw(3, f"balanced list {c}", number) for c in range(4)]
        queues: list[list[int]] = [[] for _ in range(4)]
        counts, picked = [0] * 4, []
        for point in points:
            total = sum(counts) or 1
            w = [
                1 / math.log(1.01 + k / total) if bool(holds[:, c].any()) else 0.0
                for c, k in enumerate(counts)
            ]
            c, passed = 0, w[0]
            while point * sum(w) >= passed:
                c += 1
                passed += w[c]
            if not queues[c]:
                own = holds[:, c].nonzero()[:, 0]
                queues[c] = own[sources[c].permutation(len(own))].tolist()
            picked.append(queues[c].pop())
            counts = [k + int(h) for k, h in zip(counts, holds[picked[-1]].tolist(), strict=True)]
        ids = found.ids(number)
        assert sorted((ids % n).tolist()) == sorted(picked)
        assert (ids % n).tolist() != picked


def test_reference_balanced_shares() -> None:
    """Rare classes are in many more of the picked images than evenly, and an image with none of them in fewer."""
    picked = sampler("balanced", batch_size=SUB_EPOCH).ids(0) % 6
    share = torch.bincount(picked, minlength=6) / SUB_EPOCH
    assert float(share[4]) > 1.5 / 6  # the only one with class 2
    assert float(share[2] + share[3]) > 2.0 / 6
    assert float(share[[0, 1, 5]].max()) < 1 / 6
    assert torch.allclose(share[2], share[3], atol=0.02)


def test_reference_balanced_order() -> None:
    """Batches cut the sequence of sub-epochs, across their borders too, from any iteration."""
    small, whole = sampler("balanced", batch_size=7), sampler("balanced", batch_size=SUB_EPOCH)
    rows = torch.cat([whole.ids(number) for number in range(2)]) % 6
    for t in (0, 427, 428, 429, 850):
        assert torch.equal(sampler("balanced", batch_size=7).ids(t) % 6, rows[7 * t : 7 * t + 7])
        assert torch.equal(small.ids(t) % 6, rows[7 * t : 7 * t + 7])


@pytest.mark.parametrize("name", ["uniform", "rare", "balanced"])
def test_degenerate(name: str) -> None:
    """One image, one class, classes that nobody has, a batch beyond the data, images without a label."""
    one = sampler(name, torch.tensor([[3]]), batch_size=3)
    assert one.ids(4).tolist() == [0, 1, 2]
    assert one.wanted(4).tolist() == ([0] * 3 if name == "rare" else [-1] * 3)
    for seed in range(3):
        ids = sampler(name, TABLE[[4, 5]], batch_size=9, seed=seed).ids(1)
        assert len(ids.unique()) == 9
    blank = sampler(name, torch.cat([torch.zeros(3, 4, dtype=torch.int64), TABLE]), batch_size=60)
    rows = torch.cat([blank.ids(t) for t in range(5)]) % 9
    assert bool((rows < 3).any()) == (name == "uniform")
    assert sampler("uniform", torch.zeros(2, 3, dtype=torch.int64), batch_size=4).ids(0).sort()[
        0
    ].tolist() == [0, 1, 2, 3]


def test_degenerate_shares() -> None:
    assert rare_class_shares(torch.tensor([0, 0]), 0.1).tolist() == [0, 0]
    assert rare_class_shares(torch.tensor([0, 7, 0]), 0.1).tolist() == [0, 1, 0]
    assert rare_class_shares(torch.tensor([5, 5, 4, 0]), 1e-300).tolist() == [0, 0, 1, 0]
    assert rare_class_shares(torch.tensor([1, 99]), 1e300).tolist() == pytest.approx([0.5, 0.5])
    assert rare_class_shares(torch.zeros(0), 0.1).shape == (0,)
    assert balanced_weights(torch.tensor([4])).tolist() == [1.0]
    one = torch.tensor([False, False, True])
    assert rare_class_shares(torch.tensor([9, 1, 0]), 0.1, one).tolist() == [0, 0, 0]
    assert rare_class_shares(torch.tensor([9, 1, 2]), 1e-300, one).tolist() == [0, 0, 1]
    assert rare_class_shares(torch.tensor([9, 1, 2]), 0.1, ~one | one).sum() == pytest.approx(1)
    assert rare_class_shares(torch.tensor([9, 1, 2]), 0.1, one & ~one).tolist() == [0, 0, 0]


def test_errors() -> None:
    masks = torch.zeros(2, 2, 2, dtype=torch.uint8)
    masks[1, 1, 0] = 3
    with pytest.raises(
        InputError, match=r"x: the mask of row 1 holds 3, but classes are 0\.\.2, and 255 for none"
    ):
        class_table(images(masks), [0, 1])
    with pytest.raises(InputError, match=r"the mask of d/two\.png holds 3"):
        class_table(images(masks, ids=["d/one.png", "d/two.png"]), [1])
    bare = DenseImages("photos", PixelArray(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)), None, CLASSES)
    with pytest.raises(InputError, match="photos: there are no masks"):
        class_table(bare, [0])
    for name in ("rare", "balanced"):
        with pytest.raises(
            InputError, match=f"sampling.name: {name} .* none of the 2 images has a labelled pixel"
        ):
            sampler(name, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="no labelled image"):
        sampler("uniform", torch.zeros(0, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"table must be \(n, K\) integers"):
        sampler("uniform", torch.zeros(2, 3))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        sampler("uniform", batch_size=0)
    rare, tail = SamplingSettings(name="rare"), torch.tensor([False, False, False, True])
    with pytest.raises(
        InputError, match="None of the 6 images has a pixel of the classes that images are to"
    ):
        ClassSampler(rare, TABLE, 4, 0, classes=tail)
    with pytest.raises(ValueError, match="classes are chosen under rare only, got them with uniform"):
        ClassSampler(SamplingSettings(), TABLE, 4, 0, classes=tail)
    for wrong in (tail[:3], tail.long()):
        with pytest.raises(ValueError, match=r"classes must be bool \(4,\)"):
            ClassSampler(rare, TABLE, 4, 0, classes=wrong)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        rare_class_shares(torch.ones(2), 0)
    with pytest.raises(ValueError, match=r"counts must be \(K,\) and not negative"):
        balanced_weights(torch.tensor([-1, 2]))
    with pytest.raises(InputError, match="temperature"):
        validate(Recipe("r", {"temperature": 0}), SamplingSettings)  # type: ignore[type-var]


@pytest.mark.parametrize("name", ["uniform", "rare", "balanced"])
def test_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none: iterations in any order, from fresh objects, with sub-epochs forgotten, are the same."""
    through = sampler(name, temperature=1.0)
    expected = [(through.ids(t).tolist(), through.wanted(t).tolist()) for t in range(20)]
    fresh = sampler(name, temperature=1.0)
    for t in (19, 0, 7, 7):
        assert (fresh.ids(t).tolist(), fresh.wanted(t).tolist()) == expected[t]
    monkeypatch.setattr(class_sampling, "_KEPT", 1)
    size = 4000 if name == "balanced" else 40
    small = sampler(name, batch_size=size, temperature=1.0)
    assert torch.equal(small.ids(3), sampler(name, batch_size=size, temperature=1.0).ids(3))
    assert small.ids(3).tolist() != small.ids(4).tolist()
    other = sampler(name, seed=4, temperature=1.0)
    assert [other.ids(t).tolist() for t in range(20)] != [ids for ids, _ in expected]


def test_state_epochs() -> None:
    """Later sub-epochs are other ones."""
    whole = sampler("balanced", batch_size=SUB_EPOCH)
    assert whole.ids(0).tolist() != whole.ids(1).tolist()


def both(name: str) -> list[list[int]]:
    found = sampler(name, temperature=1.0)
    return [found.ids(t).tolist() for t in range(5)] + [found.wanted(t).tolist() for t in range(5)]


@pytest.mark.parametrize("name", ["rare", "balanced"])
def test_ranks(pool, name: str) -> None:
    """All ranks choose the same batch."""
    left, right = pool.run(both, name)
    assert left == right == both(name)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8), st.floats(1e-3, 10), st.randoms())
def test_invariance_shares(pixels: list[int], temperature: float, random) -> None:
    """Shares sum to 1, follow rarity, and belong to the class, wherever it stands."""
    counts = torch.tensor(pixels)
    shares = rare_class_shares(counts, temperature)
    assert float(shares.sum()) == pytest.approx(1 if any(pixels) else 0)
    order = list(range(len(pixels)))
    random.shuffle(order)
    assert torch.allclose(rare_class_shares(counts[order], temperature), shares[order])
    present = sorted((p, -s) for p, s in zip(pixels, shares.tolist(), strict=True) if p)
    assert all(a[1] <= b[1] + 1e-12 for a, b in pairwise(present))
    weights = balanced_weights(counts)
    assert float(weights.sum()) == pytest.approx(1)
    assert torch.allclose(balanced_weights(counts[order]), weights[order])


@given(st.lists(st.tuples(st.integers(0, 10**9), st.booleans()), min_size=1, max_size=8), st.floats(1e-3, 10))
def test_invariance_chosen(classes: list[tuple[int, bool]], temperature: float) -> None:
    """Among chosen classes shares stand to each other as among all."""
    counts, chosen = torch.tensor([n for n, _ in classes]), torch.tensor([flag for _, flag in classes])
    few, every = rare_class_shares(counts, temperature, chosen), rare_class_shares(counts, temperature)
    assert not bool(few[~chosen].any())
    total = float(every[chosen].sum())
    if total > 1e-200:
        torch.testing.assert_close(few[chosen], every[chosen] / total, rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["uniform", "rare", "balanced"]),
    st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=9),
    st.integers(1, 12),
    st.integers(0, 2**31),
)
def test_invariance_ids(name: str, rows: list[list[int]], batch_size: int, t: int) -> None:
    """Ids are unique, and every wanted class is one that the image holds."""
    table = torch.tensor(rows)
    table[0, 0] += 1
    found = sampler(name, table, batch_size)
    ids, wanted = found.ids(t), found.wanted(t)
    assert ids.shape == wanted.shape == (batch_size,)
    assert ids.dtype == wanted.dtype == torch.int64
    assert len(ids.unique()) == batch_size
    if name == "rare":
        assert bool((table[ids % len(table), wanted] > 0).all())
    else:
        assert wanted.tolist() == [-1] * batch_size
