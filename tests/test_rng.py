"""Random streams: the generator against published vectors, the draws against plain integer arithmetic."""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import rng
from leanlabel.rng import Draw, box_muller, draw, permutation, philox, reseed

# Known-answer vectors that Random123 publishes for philox4x32, 10 rounds: counter, key, result.
KNOWN = [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TOP = torch.full((1, 64), 0xFFFFFFFF)


def words(seed: int, stream: str, t: int, sample: int | None, count: int) -> list[int]:
    """The output words of one row in Python integers."""
    key = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8, person=b"leanlabel-stream").digest()
    sample = 2**64 - 1 if sample is None else sample
    out: list[int] = []
    for block in range(-(-count // 4)):
        c = [block, sample % 2**32, sample >> 32, t]
        k = [int.from_bytes(key[:4], "little"), int.from_bytes(key[4:], "little")]
        for _ in range(10):
            low, high = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [high >> 32 ^ c[1] ^ k[0], high % 2**32, low >> 32 ^ c[3] ^ k[1], low % 2**32]
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        out += c
    return out[:count]


def every_kind(source: Draw) -> list[Tensor]:
    return [
        source.uniform(3),
        source.normal((2, 2)),
        source.integers(-5, 1000, 5),
        source.uniform((), torch.float64),
        source.normal(3, torch.float64),
        source.uniform(90),
    ]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_values(counter: list[int], key: list[int], expected: str) -> None:
    tensors = [torch.tensor([[c]]) for c in counter[:3]]
    arrays = [c.numpy() for c in tensors]
    for lanes in (tensors, arrays):
        out = philox((lanes[0], lanes[1], lanes[2], counter[3]), (key[0], key[1]))
        assert " ".join(f"{int(word[0, 0]):08x}" for word in out) == expected


def test_values_literal() -> None:
    """Numbers of recorded runs: a change here makes every earlier run irreproducible."""
    assert draw(0, "demo", 0).integers(0, 1000, 4).tolist() == [963, 901, 972, 140]
    assert draw(1, "demo", 2, torch.tensor([3])).uniform(2).tolist() == [
        [0.1001315712928772, 0.008336961269378662]
    ]


@pytest.mark.parametrize("sample", [None, 0, 5, 2**32 + 7, 2**63 - 1])
def test_reference(sample: int | None) -> None:
    seed, stream, t = 2**70 + 3, "näme/1", 2**32 - 1
    ids = None if sample is None else torch.tensor([sample])
    w = words(seed, stream, t, sample, 200)
    source = draw(seed, stream, t, ids)
    assert source.uniform(5).flatten().tolist() == [(x >> 8) / 2**24 for x in w[:5]]
    pairs = list(zip(w[5::2], w[6::2]))
    expected = [((a << 32 | b) >> 11) / 2**53 for a, b in pairs[:3]]
    assert source.uniform(3, torch.float64).flatten().tolist() == expected
    expected = [-7 + ((a << 32 | b) * (2**31 - 1) >> 64) for a, b in pairs[3:9]]
    assert source.integers(-7, 2**31 - 8, (2, 3)).flatten().tolist() == expected
    expected = []
    for a, b in pairs[9:12]:
        radius, angle = math.sqrt(-2 * math.log((a + 1) / 2**32)), 2 * math.pi * b / 2**32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    assert source.normal(5, torch.float64).flatten().tolist() == pytest.approx(
        expected[:5], rel=1e-12, abs=1e-13
    )
    assert source.uniform(100).flatten().tolist() == [(x >> 8) / 2**24 for x in w[29:129]]


def test_reference_permutation() -> None:
    w = words(3, "order", 4, None, 40)
    keys = [(a << 32 | b) >> 1 for a, b in zip(w[::2], w[1::2])]
    assert permutation(3, "order", 4, 20).tolist() == sorted(range(20), key=keys.__getitem__)


@pytest.mark.parametrize("ids", [None, torch.tensor([4, 2**40, 0])], ids=["batch", "rows"])
def test_reference_native(monkeypatch: pytest.MonkeyPatch, ids: Tensor | None) -> None:
    """The torch arithmetic of accelerators gives the bits of the numpy arithmetic of the CPU."""
    plain = every_kind(draw(1, "a", 2, ids))
    monkeypatch.setattr(rng, "NATIVE", ("cpu",))
    for ours, theirs in zip(every_kind(draw(1, "a", 2, ids)), plain):
        assert torch.equal(ours, theirs)


def test_reference_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(9)
    whole, wide = draw(1, "a", 2, ids).uniform(50), draw(1, "a", 2).uniform(400)
    monkeypatch.setattr(rng, "TILE", 28)
    assert torch.equal(draw(1, "a", 2, ids).uniform(50), whole)
    assert torch.equal(draw(1, "a", 2).uniform(400), wide)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_reference_gpu() -> None:
    ids = torch.arange(1000) * 2**33
    for place in (ids, ids.cuda()):
        for ours, theirs in zip(every_kind(draw(1, "a", 2, place, "cuda")), every_kind(draw(1, "a", 2, ids))):
            assert ours.device.type == "cuda"
            assert torch.equal(ours.cpu(), theirs)
    big = draw(1, "a", 2, device="cuda").normal(10**6, torch.float64)
    assert torch.equal(big.cpu(), draw(1, "a", 2).normal(10**6, torch.float64))
    assert torch.equal(draw(1, "a", 2, device="cuda").permutation(999).cpu(), permutation(1, "a", 2, 999))


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_reference_rows(ids: list[int], chance: random.Random) -> None:
    """The row of a sample does not depend on the other samples of the batch, nor on its place among them."""
    chosen = chance.sample(range(len(ids)), chance.randint(1, len(ids)))
    whole = every_kind(draw(3, "crop", 9, torch.tensor(ids)))
    part = every_kind(draw(3, "crop", 9, torch.tensor([ids[i] for i in chosen])))
    for all_rows, rows in zip(whole, part):
        assert torch.equal(all_rows[chosen], rows)


def test_reference_streams() -> None:
    """Seed, stream, iteration, sample and call each change the numbers; a batch differs from its samples."""
    ids = torch.tensor([0, 1, 2**32])
    first = draw(1, "a", 2, ids)
    draws = [first.uniform(8), first.uniform(8)]
    draws += [draw(*case, ids).uniform(8) for case in ((0, "a", 2), (1, "b", 2), (1, "a", 3), (11, "", 2))]
    rows = torch.cat([*draws, draw(1, "a", 2).uniform(8)[None]])
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    # A digit that moves from the seed to the stream makes another stream.
    assert len({rng.stream_key(*pair) for pair in ((1, "1/a"), (11, "a"), (1, "1a"), (111, ""))}) == 4


@given(st.lists(st.integers(0, 70), max_size=6))
def test_reference_cut(sizes: list[int]) -> None:
    """Numbers follow each other without gap or repetition however the calls are cut."""
    source = draw(5, "cut", 1, torch.tensor([8, 9]))
    pieces = [source.uniform(size) for size in sizes]
    whole = draw(5, "cut", 1, torch.tensor([8, 9])).uniform(sum(sizes))
    assert torch.equal(torch.cat([torch.empty(2, 0), *pieces], 1), whole)


def test_reference_statistics() -> None:
    """Moments and frequencies at a fixed seed, over calls and over samples; bounds are five deviations."""
    n = 200_000
    for uniform, normal in (
        (draw(0, "s", 0).uniform(n), draw(0, "s", 1).normal(n, torch.float64)),
        (
            draw(0, "s", 0, torch.arange(n)).uniform(),
            draw(0, "s", 1, torch.arange(n)).normal((), torch.float64),
        ),
    ):
        assert abs(uniform.double().mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
        assert abs(uniform.double().var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
        for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs(normal.pow(power).mean() - moment) < 5 * math.sqrt(variance / n)
        assert abs((normal[1:] * normal[:-1]).mean()) < 5 / math.sqrt(n)
        assert abs((normal < 1).double().mean() - 0.8413447) < 5 * math.sqrt(0.1335 / n)
    counts = draw(0, "s", 2).integers(0, 100, n).bincount(minlength=100).double()
    chi_square = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert abs(chi_square - 99) < 5 * math.sqrt(2 * 99)
    places = torch.stack([permutation(0, "s", t, 5) for t in range(2000)])
    for column in places.T:
        assert (column.bincount(minlength=5) - 400).abs().max() < 5 * math.sqrt(2000 * 0.16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    source = draw(0, "d", 0)
    uniform, normal = source.uniform(1000, dtype), source.normal(1000, dtype)
    assert uniform.dtype == normal.dtype == dtype
    exact = draw(0, "d", 0)
    exact.uniform(1000, dtype)
    assert torch.equal(exact.normal(1000, torch.float64).to(dtype), normal)
    # The largest word must not round up to 1.
    monkeypatch.setattr(Draw, "_words", lambda self, count: TOP[:, :count])
    top = source.uniform(1, dtype)
    assert top < 1
    assert torch.nextafter(top, torch.ones_like(top)) == 1
    assert source.integers(-3, 2**31 - 3).item() == 2**31 - 4


def test_degenerate() -> None:
    for ids in (None, torch.arange(0), torch.arange(3)):
        lead = () if ids is None else (len(ids),)
        source = draw(0, "a", 0, ids)
        for shape in ((), (0,), (2, 0), (1, 3)):
            for values in (source.uniform(shape), source.normal(shape), source.integers(4, 5, shape)):
                assert values.shape == (*lead, *shape)
    assert draw(0, "a", 0).integers(4, 5, 9).tolist() == [4] * 9
    assert permutation(0, "a", 0, 0).tolist() == []
    assert permutation(0, "a", 0, 1).tolist() == [0]
    assert torch.equal(
        draw(0, "a", 0, torch.tensor([3], dtype=torch.int32)).uniform(4),
        draw(0, "a", 0, torch.tensor([3])).uniform(4),
    )
    edges = torch.tensor([[w, v] for w in (0, 2**32 - 1) for v in (0, 2**29, 2**30, 2**31, 2**32 - 1)])
    values = box_muller(edges)
    assert values.isfinite().all()
    assert values.abs().max().item() == pytest.approx(math.sqrt(64 * math.log(2)), rel=1e-15)
    assert values[5:].abs().max() == 0


def test_errors() -> None:
    for arguments, message in (
        ((-1, "a", 0), "seed must be >= 0, got -1"),
        ((0, "a", -1), r"t must be in \[0, 2\^32\), got -1"),
        ((0, "a", 2**32), "t must be in"),
        ((0, "a", 0, torch.tensor([1, -2])), "ids must be >= 0, got -2"),
        ((0, "a", 0, torch.tensor([[1]])), r"ids must be \(B,\) integers, got \(1, 1\) of torch.int64"),
        ((0, "a", 0, torch.tensor([1.0])), "of torch.float32"),
        ((0, "a", 0, torch.tensor([True])), "of torch.bool"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(*arguments)
    source = draw(0, "a", 0)
    for low, high in ((3, 3), (4, 3), (0, 2**31 + 1)):
        with pytest.raises(ValueError, match=f"got low {low}, high {high}"):
            source.integers(low, high)
    for call in (source.uniform, source.normal):
        with pytest.raises(ValueError, match=r"dtype must be one of .*float32.*, got torch.int64"):
            call(3, torch.int64)
    with pytest.raises(ValueError, match=r"shape must not be negative, got \(2, -1\)"):
        source.uniform((2, -1))
    with pytest.raises(ValueError, match="n must be >= 0, got -1"):
        source.permutation(-1)
    with pytest.raises(ValueError, match="this draw has 2 ids"):
        draw(0, "a", 0, torch.arange(2)).permutation(3)


def test_state_reseed() -> None:
    """The global generators continue from (seed, t, rank) alone."""

    def after(*where: int) -> tuple[float, float, float]:
        reseed(*where)
        return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        first = after(1, 2, 3)
        others = [after(*where) for where in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (2**80, 2, 3), (12, 3, 0))]
        assert after(1, 2, 3) == first
        for column in zip(first, *others):
            assert len(set(column)) == 6
        assert after(1, 2) == others[2]
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
