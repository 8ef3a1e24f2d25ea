"""Segmenting images of any size, whole and in windows."""

from __future__ import annotations

import doctest
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from leanlabel.errors import RunError
from leanlabel.evaluation import sliding, windows
from leanlabel.evaluation.sliding import Segmented, segment, segment_image, segment_tiles
from leanlabel.evaluation.windows import axis_spans

float64 = torch.float64


class Net(nn.Module):
    """Two 3 x 3 convolutions after one that thins out by `stride`; sees 2 positions to each side."""

    def __init__(self, stride: int = 1, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stride = stride
        self.patch = nn.Conv2d(3, 5, stride, stride, dtype=float64)
        self.mix = nn.Conv2d(5, 5, 3, padding=1, dtype=float64)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Conv2d(5, classes, 3, padding=1, dtype=float64)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> SimpleNamespace:
        self.seen.append(tuple(x.shape))
        return SimpleNamespace(logits=4 * self.head(self.drop(torch.tanh(self.mix(self.patch(x))))))


class Fixed(nn.Module):
    """Whatever function gives the logits."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.function(x))


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed), dtype=float64)


def probabilities(network: Any, image: Tensor, **settings: Any) -> Tensor:
    """All rectangles put together; every pixel is written exactly once."""
    found, written = None, torch.zeros(image.shape[1:], dtype=torch.int64)
    for tile in segment_tiles(network, image, **settings):
        if found is None:
            found = tile.probabilities.new_full((len(tile.probabilities), *image.shape[1:]), math.nan)
        found[:, tile.rows, tile.columns] = tile.probabilities
        written[tile.rows, tile.columns] += 1
    assert found is not None
    assert bool((written == 1).all())
    assert torch.allclose(found.sum(0), torch.ones_like(found[0]))
    return found


@torch.no_grad()
def plain(network: Net, image: Tensor, scales=(1.0,), flip=False, align_corners=False) -> Tensor:
    """Everything at once with the whole map of scores."""
    size, parts = image.shape[1:], []
    for scale in scales:
        scaled = [max(1, round(side * scale)) for side in size]
        x = F.interpolate(image[None], scaled, mode="bilinear", antialias=scale < 1)
        for turned in (False, True)[: 1 + flip]:
            logits = network.eval()(x.flip(-1) if turned else x).logits
            logits = logits.flip(-1) if turned else logits
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
            parts.append(logits.softmax(1)[0])
    return torch.stack(parts).mean(0)


def test_values():
    """Two windows of two over three pixels: the middle one is the mean of both."""
    # Logits are log(place in the window + 1) for class 0 and 0 for class 1: probabilities 1/2 and 2/3.
    network = Fixed(
        lambda x: torch.stack([torch.tensor([1.0, 2.0]).log().expand(len(x), 1, 2), 0 * x[:, 0]], 1)
    )
    image = torch.zeros(1, 1, 3)
    found = probabilities(network, image, window=(1, 2), overlap=0.5)
    assert found[0, 0].tolist() == pytest.approx([1 / 2, (2 / 3 + 1 / 2) / 2, 2 / 3], rel=1e-6)
    logits = probabilities(network, image, window=(1, 2), overlap=0.5, average="logits")
    assert logits[0, 0, 1] == pytest.approx(2**0.5 / (2**0.5 + 1), rel=1e-6)
    best = segment_image(network, image, window=(1, 2))
    assert isinstance(best, Segmented)
    assert best.classes.dtype == torch.uint8
    assert best.confidence.dtype == torch.float32
    assert best.classes.tolist() == [[0, 0, 0]]
    assert best.confidence.tolist()[0] == pytest.approx([1 / 2, 7 / 12, 2 / 3], rel=1e-6)


def test_values_weights():
    """Tapered weights fall to the inner edges only; flat ones count windows; none lie in a halo."""
    spans = axis_spans(6, 6, 4, 0.5, 0, 1, "tapered")
    assert [(one.begin, one.start, one.stop) for one in spans] == [(0, 0, 4), (2, 2, 6)]
    assert spans[0].weights.tolist() == [1, 1, 0.75, 0.25]
    assert spans[1].weights.tolist() == [0.25, 0.75, 1, 1]
    spans = axis_spans(8, 8, 6, 0.5, 2, 1, "flat")
    assert [(one.begin, one.start, one.stop) for one in spans] == [(0, 0, 4), (2, 4, 8)]
    # Windows begin at multiples of the stride, but for the last.
    assert [one.begin for one in axis_spans(31, 31, 12, 0.5, 0, 4, "flat")] == [0, 4, 8, 12, 16, 19]


@pytest.mark.parametrize("memory", [1, 1 << 28])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flip": True},
        {"align_corners": True},
        {"scales": (0.5, 1.0, 1.5)},
        {"scales": (0.75,), "flip": True},
    ],
)
def test_reference_whole(settings: dict[str, Any], stride: int, memory: int):
    network, image = Net(stride), picture(38, 45)
    expected = plain(network, image, **settings)
    assert torch.allclose(probabilities(network, image, memory=memory, **settings), expected, atol=1e-10)
    found = segment_image(network, image, memory=memory, **settings)
    assert torch.equal(found.classes.long(), expected.argmax(0))
    assert torch.allclose(found.confidence.double(), expected.amax(0), atol=1e-6)


@torch.no_grad()
def naive_windows(network: Net, image: Tensor, window: int, step: int, scale: float, tapered: bool) -> Tensor:
    """One pixel at a time: every window of the scaled image that holds the pixel's centre has a say."""
    height, width = image.shape[1:]
    tall, wide = round(height * scale), round(width * scale)
    x = F.interpolate(image[None], (tall, wide), mode="bilinear", antialias=scale < 1)
    x = F.pad(x, (0, max(0, window - wide), 0, max(0, window - tall)))

    def begins(side: int) -> list[int]:
        return [0] if side <= window else [*range(0, side - window, step), side - window]

    def say(begin: int, side: int, centre: float) -> float:
        """Weight of a window along one axis, 0 if it does not hold the pixel."""
        left = centre - (begin - 0.5) if begin > 0 else math.inf
        right = begin + window - 0.5 - centre if begin + window < side else math.inf
        return 0.0 if left < 0 or right <= 0 else (min(left, right, window / 2) if tapered else 1.0)

    total = torch.zeros(3, height, width, dtype=float64)
    weights = torch.zeros(height, width, dtype=float64)
    for top in begins(tall):
        for left in begins(wide):
            logits = network.eval()(x[:, :, top : top + window, left : left + window]).logits[0]
            h, w = logits.shape[1:]
            for i in range(height):
                for j in range(width):
                    y, z = (i + 0.5) * tall / height - 0.5, (j + 0.5) * wide / width - 0.5
                    weight = say(top, tall, y) * say(left, wide, z)
                    if weight == 0:
                        continue
                    v = min(max((y - top + 0.5) * h / window - 0.5, 0), h - 1)
                    u = min(max((z - left + 0.5) * w / window - 0.5, 0), w - 1)
                    a, b = int(v), int(u)
                    c, d = min(a + 1, h - 1), min(b + 1, w - 1)
                    upper = logits[:, a, b] * (1 - u + b) + logits[:, a, d] * (u - b)
                    lower = logits[:, c, b] * (1 - u + b) + logits[:, c, d] * (u - b)
                    total[:, i, j] += weight * (upper * (1 - v + a) + lower * (v - a)).softmax(0)
                    weights[i, j] += weight
    return total / weights


@pytest.mark.parametrize("weighting", ["flat", "tapered"])
@pytest.mark.parametrize("scale", [1.0, 1.4, 0.6, 0.4])
def test_reference_windows(scale: float, weighting: Any):
    network, image = Net(2), picture(15, 18)
    expected = naive_windows(network, image, 8, 4, scale, weighting == "tapered")
    found = probabilities(network, image, window=(8, 8), scales=(scale,), weighting=weighting)
    assert torch.allclose(found, expected, atol=1e-10)


def test_reference_together():
    """Several scales and mirroring are the mean of each alone; logits are averaged before the softmax."""
    network, image = Net(2), picture(20, 24)
    settings: dict[str, Any] = {"window": (10, 12), "overlap": 0.5}
    apart = [probabilities(network, image, scales=(scale,), **settings) for scale in (0.7, 1.0, 1.3)]
    together = probabilities(network, image, scales=(0.7, 1.0, 1.3), **settings)
    assert torch.allclose(together, torch.stack(apart).mean(0), atol=1e-10)
    # Here windows lie alike from both sides, so that mirroring each is mirroring the image.
    turned = probabilities(network, image.flip(-1), **settings).flip(-1)
    both = probabilities(network, image, flip=True, **settings)
    assert torch.allclose(both, (apart[1] + turned) / 2, atol=1e-10)
    whole = [plain(network, image, (scale,)) for scale in (0.7, 1.3)]
    logits = probabilities(network, image, scales=(0.7, 1.3), average="logits")
    expected = torch.stack([one.log() for one in whole]).mean(0).softmax(0)
    assert torch.allclose(logits, expected, atol=1e-10)


@pytest.mark.parametrize("memory", [1, 40_000, 1 << 28])
@pytest.mark.parametrize("weighting", ["flat", "tapered"])
@pytest.mark.parametrize(("stride", "halo", "size"), [(1, 2, (41, 53)), (4, 12, (80, 104))])
def test_chunked(stride: int, halo: int, size: tuple[int, int], weighting: Any, memory: int):
    """With a halo as wide as the network sees, windows and bands give what the whole image gives."""
    network, image = Net(stride), picture(*size)
    window = (12 * stride - 4, 11 * stride) if stride == 1 else (40, 48)
    found = probabilities(
        network, image, window=window, overlap=0.3, halo=halo, weighting=weighting, memory=memory, batch=3
    )
    assert torch.allclose(found, plain(network, image), atol=1e-10)
    assert max(shape[0] for shape in network.seen) == 3
    assert {shape[2:] for shape in network.seen[:-1]} == {window}
    # Without it, they do not: the test above can fail.
    if stride == 1:
        other = probabilities(network, image, window=window, overlap=0.3, weighting=weighting)
        assert not torch.allclose(other, plain(network, image), atol=1e-4)


def test_chunked_memory():
    """No rectangle grows with the image, and windows are read once, but for those across a cut."""
    network, image = Net(4), picture(200, 60)
    tiles = list(segment_tiles(network, image, window=(16, 16), memory=1))
    assert max(tile.probabilities.shape[1] for tile in tiles) <= 16
    assert max(tile.probabilities.shape[2] for tile in tiles) <= 16
    network.seen.clear()
    list(segment_tiles(network, image, window=(16, 16), batch=1))
    assert len(network.seen) == 24 * 7
    network.seen.clear()
    list(segment_tiles(network, image, window=(16, 16), memory=2 * 3 * 16 * 8 * 30, batch=1))
    assert 24 * 7 < len(network.seen) <= 24 * 9


def test_batches():
    network, images = Net(2), torch.stack([picture(16, 20), picture(16, 20, 1)])
    for settings in ({}, {"window": (8, 8), "flip": True, "batch": 3}):
        found = segment(network, images, **settings)
        for number, image in enumerate(images):
            one = segment_image(network, image, **settings)
            assert torch.equal(found.classes[number], one.classes)
            assert torch.equal(found.confidence[number], one.confidence)
    first = probabilities(network, images[0], window=(8, 8), batch=1, flip=True)
    assert torch.allclose(
        first, probabilities(network, images[0], window=(8, 8), batch=7, flip=True), atol=1e-12
    )


def test_modes():
    """Dropout is off while the network reads; every part has its own mode afterwards, and gradients are on."""
    network, image = Net(2).train(), picture(10, 10)
    network.mix.eval()
    for _ in segment_tiles(network, image, window=(6, 6)):
        assert torch.is_grad_enabled()
        assert not network.drop.training
    assert network.training
    assert network.drop.training
    assert not network.mix.training
    tiles = segment_tiles(network, image, window=(6, 6))
    next(tiles)
    tiles.close()
    assert network.drop.training
    assert torch.equal(segment_image(network, image).confidence, segment_image(network, image).confidence)


def test_dtypes():
    image = picture(9, 11).float()
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        network = Fixed(lambda x, kind=kind: (30 * x).to(kind))
        found = segment_image(network, image, window=(4, 4))
        assert found.confidence.dtype == torch.float32
        assert bool(found.confidence.isfinite().all())
    half = Net(2).bfloat16()
    assert segment_image(half, image).classes.shape == (9, 11)


def test_degenerate():
    """Images smaller than the window, along one axis or both, than the network's least side; one pixel; one class."""
    network = Net(2)
    network.min_size = 6  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    for size in ((1, 1), (3, 40), (40, 3), (5, 5), (8, 8)):
        image = picture(*size)
        for settings in ({}, {"window": (8, 8)}, {"window": (8, 8), "scales": (0.1, 2.0), "flip": True}):
            assert probabilities(network, image, **settings).shape == (3, *size)
    assert all(min(shape[2:]) >= 6 for shape in network.seen)
    # What is padded is zero, below and to the right.
    image = picture(4, 5)
    padded = F.pad(image, (0, 3, 0, 4))
    expected = plain(network, padded)[:, :4, :5]
    assert torch.allclose(probabilities(network, image, window=(8, 8)), expected, atol=1e-10)
    one = segment_image(Net(2, classes=1), picture(7, 7), window=(4, 4))
    assert int(one.classes.max()) == 0
    assert one.confidence.min() == pytest.approx(1.0)
    # One row of logits for a whole window.
    pooled = Fixed(lambda x: x.mean((2, 3), keepdim=True))
    for align_corners in (False, True):
        found = probabilities(pooled, picture(6, 6), window=(4, 4), align_corners=align_corners)
        assert bool(found.isfinite().all())


def test_errors():
    network, image = Net(), picture(8, 8)
    for settings, words in (
        ({"overlap": 1.0}, "0 <= overlap < 1"),
        ({"batch": 0}, "batch >= 1"),
        ({"scales": ()}, "at least one"),
        ({"scales": (1.0, 0.0)}, "positive"),
        ({"window": (8, 4), "halo": 2}, "larger than 2"),
        ({"weighting": "round"}, "no weighting"),
        ({"average": "median"}, "no weighting"),
        ({"classes": 4}, r"\(1, 4, h, w\), got \(1, 3, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=words):
            segment_image(network, image, **settings)
    for wrong in (image[0], image.to(torch.uint8), image[:, :0]):
        with pytest.raises(ValueError, match=r"must be \(C, H, W\) floating point"):
            segment_image(network, wrong)
    network.min_size = 5  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    with pytest.raises(ValueError, match="smaller than the network can read, 5"):
        segment_image(network, image, window=(4, 8))
    with pytest.raises(RunError, match="not finite"):
        segment_image(Fixed(lambda x: x * math.nan), image)
    with pytest.raises(ValueError, match="do not fit uint8"):
        segment_image(Fixed(lambda x: x[:, :1].expand(-1, 256, -1, -1)), image)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        segment(network, image)


@given(
    size=st.integers(1, 60),
    scale=st.floats(0.2, 2.5),
    window=st.integers(1, 30),
    overlap=st.floats(0, 0.95),
    halo=st.integers(0, 9),
    stride=st.sampled_from([1, 4, 8]),
    weighting=st.sampled_from(["flat", "tapered"]),
)
def test_weights(
    size: int, scale: float, window: int, overlap: float, halo: int, stride: int, weighting: Any
):
    """However windows lie, the weights of those that cover a pixel sum to 1, and windows stay inside."""
    halo = min(halo, (window - 1) // 2)
    scaled = max(1, round(size * scale))
    total = torch.zeros(size, dtype=float64)
    for one in axis_spans(size, scaled, window, overlap, halo, stride, weighting):
        assert one.begin == 0 or one.begin + one.length <= scaled
        assert bool((one.weights > 0).all())
        assert bool(((one.centres >= -0.5) & (one.centres <= window - 0.5)).all())
        total[one.start : one.stop] += one.weights
    assert torch.allclose(total, torch.ones_like(total))


@effort(max_examples=10)
@given(seed=st.integers(0, 1000), height=st.integers(1, 14), width=st.integers(1, 14))
def test_mirrored(seed: int, height: int, width: int):
    """With mirroring, a mirrored image of one window has the mirrored result."""
    network, image = Net(2), picture(max(2, height), max(2, width), seed)
    found = probabilities(network, image, flip=True)
    assert torch.allclose(probabilities(network, image.flip(-1), flip=True).flip(-1), found, atol=1e-10)


def test_doctests():
    for module in (sliding, windows):
        result = doctest.testmod(module)
        assert result.attempted
        assert not result.failed
