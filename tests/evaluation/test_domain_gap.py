"""Measures of the gap between two domains: numbers by hand, naive loops, and that they grow with the gap."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import rng
from leanlabel.data.dense_files import read_dense
from leanlabel.data.generated.scenes import scene_images
from leanlabel.evaluation import domain_gap
from leanlabel.evaluation.domain_gap import (
    Style,
    blocks,
    proxy_a_distance,
    share_distance,
    simple_features,
    style_distance,
    style_statistics,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def looks(rendering: str, gap: float, seed: int) -> Tensor:
    data = scene_images(train=40, val=0, test=0, height=32, width=48, rendering=rendering, gap=gap, seed=seed)  # type: ignore[arg-type]
    return data.read(range(40))[0]


def test_values_proxy() -> None:
    """Twins give nothing, what a line parts gives 2, whatever the number of rows of each."""
    rows = normal(40, 3)
    assert proxy_a_distance(rows, rows.clone(), seed=0) == 0
    assert proxy_a_distance(rows, rows[:7] + 100, seed=0) == 2
    assert proxy_a_distance(rows[:6] + 1e6, rows * 1e-3, seed=0) == 2
    assert 0.5 < proxy_a_distance(normal(200, 4), normal(200, 4, seed=1) + 0.5, seed=0) < 1.5
    assert proxy_a_distance(normal(300, 4), normal(300, 4, seed=1), seed=0) < 0.25


def test_values_imbalance() -> None:
    """A classifier that always says the larger domain is no better than chance."""
    found = [proxy_a_distance(normal(300, 4, seed=2 * s), normal(30, 4, seed=2 * s + 1), s) for s in range(6)]
    assert sum(found) / 6 < 0.5


def test_values_groups() -> None:
    """Near copies give a domain away where some of them are seen; left out together they do not."""
    first, second = (
        normal(40, 20, seed=s).repeat_interleave(10, 0) + 0.01 * normal(400, 20, seed=s + 9) for s in (0, 1)
    )
    groups = torch.arange(400) // 10
    loose = proxy_a_distance(first, second, seed=0)
    whole = proxy_a_distance(first, second, seed=0, groups=(groups * 3 - 7, groups))
    assert loose > 0.6
    assert whole < 0.3
    assert proxy_a_distance(first, second, seed=0, groups=(blocks(400, 40), blocks(400, 40))) == whole
    assert proxy_a_distance(first, second + 100, seed=0, groups=(groups // 20, None)) == 2  # two groups
    rows = torch.arange(400)
    assert proxy_a_distance(first, second, seed=3, groups=(rows, rows)) == proxy_a_distance(
        first, second, seed=3
    )
    assert blocks(3).tolist() == [0, 1, 2]
    assert blocks(0).tolist() == []
    with pytest.raises(ValueError, match="target has one group only"):
        proxy_a_distance(first, second, seed=0, groups=(None, groups * 0))
    with pytest.raises(ValueError, match=r"groups of source must be \(400,\) integers, got \(3,\)"):
        proxy_a_distance(first, second, seed=0, groups=(groups[:3], None))


def test_values_style() -> None:
    ramp = (torch.arange(5.0) / 4).expand(3, 4, 5) * torch.tensor([1.0, 0.5, 0.0])[:, None, None]
    style = style_statistics([ramp])
    assert style.images == 1
    assert style.mean.tolist() == pytest.approx([0.5, 0.25, 0.0], abs=1e-7)
    spread = math.sqrt(1 / 8)  # of 0, 1/4, 1/2, 3/4, 1
    assert style.std.tolist() == pytest.approx([spread, spread / 2, 0.0], abs=1e-7)
    assert style.contrast == pytest.approx(0.5, abs=0.06)
    assert (style.sharpness, style.noise) == pytest.approx((0, 0), abs=1e-6)
    assert style.saturation == pytest.approx(0.8, abs=1e-6)  # black counts 0
    peak = torch.zeros(1, 3, 3)
    peak[0, 1, 1] = 1
    assert style_statistics([peak]).sharpness == 4
    assert style_statistics([peak]).noise == pytest.approx(4 / (6 * 0.6744897501960817), rel=1e-6)


def test_values_noise() -> None:
    """White noise is found at its size, over a slope and edges too, and is another thing than sharpness."""
    slope = (torch.arange(64.0)[:, None] + torch.arange(96.0)) / 400 + 0.2
    slope[:, 40:] += 0.2
    noisy = slope + 0.03 * normal(3, 64, 96).float()
    found = style_statistics([noisy.clamp(0, 1), slope.expand(3, -1, -1)])
    assert style_statistics([noisy.clamp(0, 1)]).noise == pytest.approx(0.03, rel=0.05)
    assert style_statistics([slope.expand(3, -1, -1)]).noise < 1e-6
    assert found.noise == pytest.approx(0.015, rel=0.05)


def test_values_distance() -> None:
    """Means 0.2 and 0.5, squares (0.02, 0.02) over two degrees of freedom each: 0.3 / 0.1."""
    first = style_statistics([torch.full((2, 3, 3), level) for level in (0.1, 0.2, 0.3)])
    second = style_statistics([torch.full((2, 3, 3), level) for level in (0.4, 0.5, 0.6)])
    found = style_distance(first, second)
    assert found["mean 0"] == pytest.approx(3.0, rel=1e-5)
    assert style_distance(second, first)["mean 1"] == pytest.approx(-3.0, rel=1e-5)
    assert found["std 0"] == pytest.approx(0, abs=1e-6)
    assert list(found) == [
        "mean 0",
        "mean 1",
        "std 0",
        "std 1",
        "contrast",
        "sharpness",
        "noise",
        "saturation",
    ]


def test_values_share() -> None:
    assert share_distance(torch.tensor([2, 2]), torch.tensor([1, 3])) == 0.25
    assert share_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.2])) == 1
    assert share_distance(torch.tensor([5, 10]), torch.tensor([0.5, 1.0])) == 0


def test_reference_proxy() -> None:
    """The definition by scikit-learn's own parts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    first, second = normal(23, 6), normal(14, 6, seed=1) + 0.4
    every: list[tuple[int, list[float], int]] = []
    for which, rows in enumerate((first, second)):
        order = rng.permutation(9, "domain folds", which, len(rows)).tolist()
        every += [(which, rows[row].tolist(), place % 4) for place, row in enumerate(order)]
    wrong = [0, 0]
    for fold in range(4):
        scaler = StandardScaler().fit([row for _, row, own in every if own != fold])
        x = scaler.transform([row for _, row, _ in every]) / 6**0.5  # type: ignore[operator]
        inside = [k for k, (_, _, own) in enumerate(every) if own != fold]
        model = LogisticRegression(class_weight="balanced").fit(x[inside], [every[k][0] for k in inside])
        for (which, _, own), said in zip(every, model.predict(x), strict=True):
            wrong[which] += int(own == fold and said != which)
    expected = max(0.0, 2 * (1 - (wrong[0] / 23 + wrong[1] / 14)))
    assert 0 < expected < 2
    assert proxy_a_distance(first, second, 9, folds=4) == pytest.approx(expected, rel=1e-12)


def test_reference_style() -> None:
    """Pixel by pixel, over several images."""
    images = [uniform(3, 7, 9, seed=k) for k in range(4)]
    style = style_statistics(images)
    rows: dict[str, list[float]] = {"sharpness": [], "noise": [], "saturation": []}
    mask = [[1, -2, 1], [-2, 4, -2], [1, -2, 1]]
    for image in images:
        grey = image.mean(0)
        edges, levels = [], []
        for i, j in itertools.product(range(1, 6), range(1, 8)):
            near = grey[i - 1, j] + grey[i + 1, j] + grey[i, j - 1] + grey[i, j + 1]
            edges.append(abs(float(4 * grey[i, j] - near)))
        for channel in image:
            found = [
                abs(
                    sum(mask[a][b] * float(channel[i - 1 + a, j - 1 + b]) for a in range(3) for b in range(3))
                )
                for i, j in itertools.product(range(1, 6), range(1, 8))
            ]
            levels.append(sorted(found)[len(found) // 2] / (6 * 0.6744897501960817))
        rows["sharpness"].append(sum(edges) / len(edges))
        rows["noise"].append(sum(levels) / 3)
        pixels = image.flatten(1).T.tolist()
        rows["saturation"].append(sum((max(p) - min(p)) / max(p) for p in pixels) / len(pixels))
    for name, values in rows.items():
        mean = sum(values) / 4
        assert getattr(style, name) == pytest.approx(mean, rel=1e-5)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / 3)
        assert style.spread[name] == pytest.approx(spread, rel=1e-4)
    assert style.mean.tolist() == pytest.approx(torch.stack(images).mean((0, 2, 3)).tolist(), rel=1e-5)
    assert style.measures()["std 2"] == float(style.std[2])


def test_reference_features() -> None:
    """Histograms, gradients at full size, and correlations, by numpy-like loops."""
    image = uniform(2, 6, 8)
    found = simple_features([image])[0]
    assert len(found) == 2 * 8 + 2 * 3 * 4 + 1
    for channel in range(2):
        values = image[channel].flatten().tolist()
        counts = [sum(k / 8 <= v < (k + 1) / 8 for v in values) / 48 for k in range(8)]
        assert found[8 * channel : 8 * channel + 8].tolist() == pytest.approx(counts, abs=1e-6)
        across = [
            abs(float(image[channel, i, j + 1] - image[channel, i, j])) for i in range(6) for j in range(7)
        ]
        assert float(found[16 + 4 * channel]) == pytest.approx(math.log(1e-3 + sum(across) / 42), rel=1e-5)
    assert float(found[-1]) == pytest.approx(float(torch.corrcoef(image.flatten(1))[0, 1]), abs=1e-6)


@pytest.mark.slow
def test_reference_scenes() -> None:
    """One look of other streets is near, and the stronger the rendering the farther."""
    source = looks("source", 1.0, 0)
    features, style = simple_features(source), style_statistics(source)
    distances, noise = [], []
    for rendering, gap in (("source", 1.0), ("target", 0.2), ("target", 1.0)):
        target = looks(rendering, gap, 1)
        distances.append(proxy_a_distance(features, simple_features(target), seed=0))
        noise.append(style_distance(style, style_statistics(target))["noise"])
    assert distances[0] < 0.6 < distances[1] < distances[2]
    assert distances[2] > 1.8
    assert abs(noise[0]) < 0.5 < noise[1] < noise[2]


def test_dtypes() -> None:
    """Bytes and fractions of the same image, batches and single images say the same; any number of channels."""
    batch = (uniform(4, 3, 12, 16) * 255).to(torch.uint8)
    for function in (
        simple_features,
        lambda images: torch.tensor(list(style_statistics(images).measures().values())),
    ):
        expected = function(batch)
        for some in ([batch], list(batch), [batch[:1], batch[1], batch[2:]], iter(batch)):
            assert torch.equal(function(some), expected)
        assert torch.allclose(function(batch / 255), expected)
        assert torch.allclose(function(batch.double() / 255), expected)
    for channels in (1, 2, 7):
        images = uniform(3, channels, 9, 5)
        assert simple_features(images).shape == (3, channels * 20 + channels - 1)
        style = style_statistics(images)
        assert len(style.mean) == len(style.std) == channels
        assert (style.saturation == 0) == (channels == 1)
    half = proxy_a_distance(normal(20, 3).half(), (normal(20, 3) + 9).bfloat16(), seed=0)
    assert half == 2
    mixed = simple_features([uniform(3, 30, 40), uniform(3, 5, 9)])  # of any sizes
    assert mixed.dtype == torch.float32
    assert bool(torch.isfinite(mixed).all())


def test_degenerate() -> None:
    """Constant images and features, tiny images, one image, two rows: finite numbers, or not a number where unknown."""
    for size in ((1, 1), (1, 4), (2, 2), (3, 1)):
        flat = torch.full((3, *size), 0.5)
        features = simple_features([flat, torch.zeros(3, *size)])
        assert bool(torch.isfinite(features).all())
        style = style_statistics([flat])
        assert (style.sharpness, style.noise, style.contrast) == (0, 0, 0)
        assert math.isnan(style.spread["noise"])
    flat = torch.full((3, 8, 8), 0.5)
    one, two = style_statistics([flat]), style_statistics([flat + 0.1])
    assert all(math.isnan(value) for value in style_distance(one, two).values())
    several = style_statistics([flat] * 3)
    assert style_distance(several, two)["mean 0"] == pytest.approx(
        1000, rel=1e-4
    )  # 0.1 / the smallest spread
    assert style_distance(several, several) == dict.fromkeys(several.spread, 0.0)
    assert json.loads(json.dumps(one.as_dict()))["spread"]["mean 0"] is None
    assert json.loads(json.dumps(several.as_dict(), allow_nan=False))["images"] == 3
    constant = torch.ones(5, 2)
    assert proxy_a_distance(constant, constant, seed=0) == 0
    assert proxy_a_distance(constant[:2], constant[:2] + 1, seed=0, folds=9) == 2
    assert simple_features([]).shape == (0, 0)
    large = uniform(1, 300, 400)  # more pixels than are sorted
    assert style_statistics([large]).contrast == pytest.approx(0.9, abs=0.02)


def test_errors() -> None:
    rows = normal(4, 3)
    with pytest.raises(ValueError, match=r"target must be \(N, D\) with N >= 2 and D >= 1, got \(1, 3\)"):
        proxy_a_distance(rows, rows[:1], 0)
    with pytest.raises(ValueError, match=r"equally wide, got \(4, 3\) and \(4, 2\)"):
        proxy_a_distance(rows, rows[:, :2], 0)
    with pytest.raises(ValueError, match="source holds 1 values that are not finite"):
        proxy_a_distance(
            rows.index_fill(0, torch.tensor([0]), 1).where(rows != rows[0, 0], torch.nan), rows, 0
        )
    with pytest.raises(ValueError, match="folds must be at least 2, got 1"):
        proxy_a_distance(rows, rows, 0, folds=1)
    for function in (style_statistics, lambda images: simple_features(images)):
        with pytest.raises(ValueError, match=r"images must be \(C, h, w\).*got \(4, 5\)"):
            function([torch.zeros(4, 5)])
        with pytest.raises(ValueError, match=r"with pixels, got \(3, 0, 5\)"):
            function([torch.zeros(3, 0, 5)])
        with pytest.raises(ValueError, match="all images must have 3 channels, one has 1"):
            function([torch.zeros(3, 4, 5), torch.zeros(1, 4, 5)])
        with pytest.raises(ValueError, match=r"got torch\.int64"):
            function([torch.zeros(3, 4, 5, dtype=torch.int64)])
        with pytest.raises(ValueError, match="not finite"):
            function([torch.full((3, 4, 5), torch.inf)])
    with pytest.raises(ValueError, match="there is no image"):
        style_statistics([])
    grey, colour = style_statistics([torch.zeros(1, 4, 4)]), style_statistics([torch.zeros(3, 4, 4)])
    with pytest.raises(ValueError, match="1 channels cannot be held against 3"):
        style_distance(grey, colour)
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        share_distance(torch.ones(2), torch.ones(3))
    for bad in ([0.0, 0.0], [-1.0, 2.0], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="q must be finite, not negative and not all 0"):
            share_distance(torch.ones(2), torch.tensor(bad))


def test_state() -> None:
    """The same seed gives the same distance; what is given is not changed."""
    first, second = normal(30, 4), normal(30, 4, seed=1) + 0.3
    copies = first.clone(), second.clone()
    found = [proxy_a_distance(first, second, seed) for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1]
    assert len(set(found)) > 1
    assert torch.equal(first, copies[0])
    assert torch.equal(second, copies[1])
    image = uniform(3, 8, 8)
    kept = image.clone()
    style_statistics([image])
    simple_features([image])
    assert torch.equal(image, kept)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 50), st.floats(-20, 20))
def test_invariance_proxy(seed: int, factor: float, shift: float) -> None:
    """Units of the features do not matter, and it is a distance: the same from either side."""
    first, second = normal(24, 3, seed=seed), normal(24, 3, seed=seed + 1) + 1.0
    found = proxy_a_distance(first, second, 0)
    assert 0 <= found <= 2
    assert proxy_a_distance(first * factor + shift, second * factor + shift, 0) == pytest.approx(
        found, abs=0.09
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)))
def test_invariance_style(seed: int, order: list[int]) -> None:
    """The order of images does not matter, nor which side an image is seen from."""
    images = uniform(4, 3, 8, 12, seed=seed)
    style, turned = style_statistics(images), style_statistics(images[list(order)].flip(3))
    assert list(turned.measures().values()) == pytest.approx(list(style.measures().values()), rel=1e-5)
    assert list(turned.spread.values()) == pytest.approx(list(style.spread.values()), rel=1e-4)
    assert torch.allclose(simple_features(images.flip(3)), simple_features(images), atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0.01, 9)] * 3), min_size=1, max_size=6))
def test_invariance_share(rows: list[tuple[float, float, float]]) -> None:
    """A metric: symmetric, 0 for multiples, and no way round is shorter."""
    p, q, r = torch.tensor(rows, dtype=torch.float64).T
    assert share_distance(p, q) == pytest.approx(share_distance(q, p))
    assert share_distance(p, 3 * p) == pytest.approx(0, abs=1e-12)
    assert share_distance(p, r) <= share_distance(p, q) + share_distance(q, r) + 1e-12


def test_values_names() -> None:
    """Every measure has a spread of its own, and a style is plain data."""
    style = style_statistics(uniform(3, 2, 8, 8))
    assert isinstance(style, Style)
    assert list(style.measures()) == list(style.spread)
    assert set(style.as_dict()) == {"images", "mean", "std", *domain_gap._PLAIN, "spread"}


@pytest.mark.real
@pytest.mark.slow
def test_reference_real_camvid(data_root: Path) -> None:
    """Dusk is farther from day than one half of the days' pictures from the other."""
    path = data_root / "camvid" / "camvid.zip"
    if not path.exists():
        pytest.skip("CamVid is not here")
    data = read_dense(path, resize=96)
    day, dusk = data.splits["train"], data.splits["test_dusk"]
    day = day[rng.permutation(0, "halves", 0, len(day))]
    features = simple_features(data.pixels.read(torch.cat([day, dusk]).tolist()))
    half = len(day) // 2
    near = proxy_a_distance(features[:half], features[half : len(day)], seed=0)
    far = proxy_a_distance(features[: len(day)], features[len(day) :], seed=0)
    assert near < 0.4
    assert far > 1.5
