from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from leanlabel.data.class_map import class_map
from leanlabel.data.dense import DenseImages
from leanlabel.data.generated.scene_layout import plan_street
from leanlabel.data.generated.scene_things import (
    BICYCLIST,
    CAMVID_SHARES,
    CAR,
    FENCE,
    NUMBERS,
    PAVEMENT,
    PEDESTRIAN,
    POLE,
    ROAD,
    SIGN,
    TREE,
    tail_factor,
)
from leanlabel.data.generated.scenes import Rendering, Scene, render_scene, scene_images
from leanlabel.rng import draw

OBJECTS = (POLE, SIGN, CAR, PEDESTRIAN, BICYCLIST)


def _same(a: Scene, b: Scene) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b))


def _masks(data: DenseImages) -> np.ndarray:
    assert data.masks is not None
    return data.masks.read(range(len(data))).numpy()


@functools.cache
def _shares(
    count: int, height: int, rendering: Rendering = "source", content: float = 0.0, tail: float = 1.0
) -> Any:
    """(11,) percent of the pixels of some scenes."""
    data = scene_images(
        train=count,
        val=0,
        test=0,
        height=height,
        width=height * 4 // 3,
        rendering=rendering,
        content=content,
        tail=tail,
        seed=3,
    )
    pixels = np.array(data.facts["class_pixels"], dtype=float)
    return 100 * pixels / pixels.sum()


def test_values() -> None:
    data = scene_images(train=3, val=2, test=1, height=48, width=64, seed=5)
    assert data.shape == (3, 48, 64)
    assert data.classes == class_map("camvid-11")
    assert {part: rows.tolist() for part, rows in data.splits.items()} == {
        "train": [0, 1, 2],
        "val": [3, 4],
        "test": [5],
    }
    assert data.ids == [
        "train/000000",
        "train/000001",
        "train/000002",
        "val/000000",
        "val/000001",
        "test/000000",
    ]
    images, masks = data.read(range(6))
    assert images.dtype == torch.uint8
    assert masks.dtype == torch.uint8
    assert int(masks.max()) <= 10
    assert data.instances is not None
    assert data.instances.read([0]).dtype == torch.int32
    counts = np.bincount(_masks(data).ravel(), minlength=11)
    assert data.facts["class_pixels"] == counts.tolist()
    assert data.facts["train_class_pixels"] == np.bincount(_masks(data)[:3].ravel(), minlength=11).tolist()
    # All pictures are different streets, also across parts.
    assert len({bytes(mask) for mask in _masks(data)}) == 6


def test_values_class_order() -> None:
    names = class_map("camvid-11").names
    assert [names[kind] for kind in (ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST)] == [
        "road",
        "pavement",
        "tree",
        "sign_symbol",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ]
    assert sum(CAMVID_SHARES) == pytest.approx(96.3)


def test_values_repeat() -> None:
    """A scene belongs to (seed, number): it does not depend on its neighbours nor on how many there are."""
    assert _same(render_scene(4, 9, rendering="target"), render_scene(4, 9, rendering="target"))
    assert not np.array_equal(render_scene(4, 9).mask, render_scene(4, 10).mask)
    assert not np.array_equal(render_scene(4, 9).mask, render_scene(5, 9).mask)
    few = scene_images(train=2, val=1, test=1, height=32, width=48, rendering="target")
    many = scene_images(train=4, val=2, test=1, height=32, width=48, rendering="target")
    rows = [0, 1, 4, 6]
    assert torch.equal(few.pixels.read(range(4)), many.pixels.read(rows))  # pyright: ignore[reportArgumentType]
    assert np.array_equal(_masks(few), _masks(many)[rows])
    assert np.array_equal(_masks(few)[1], render_scene(0, 1, 32, 48).mask)


def test_values_resolution() -> None:
    """The pixel in the middle of three by three shows the same as the pixel of a picture a third as large."""
    agree, objects = [], []
    for number in range(8):
        small, large = render_scene(2, number, 64, 96), render_scene(2, number, 192, 288)
        same = small.mask == large.mask[1::3, 1::3]
        agree.append(same.mean())
        objects.append(set(np.unique(small.instances[small.mask == CAR])) <= set(np.unique(large.instances)))
    assert min(agree) > 0.9
    assert np.mean(agree) > 0.95
    assert all(objects)


def test_values_gap() -> None:
    """Gap 0 is the source; the farther the look, the more pixels differ; the street stays."""
    far = dict.fromkeys((0.5, 1.0, 2.0), 0.0)
    for number in range(6):
        source = render_scene(0, number)
        assert _same(source, render_scene(0, number, rendering="target", gap=0.0))
        assert _same(source, render_scene(0, number, gap=2.0, content=1.0))
        for gap in far:
            target = render_scene(0, number, rendering="target", gap=gap)
            assert np.array_equal(target.mask, source.mask)
            assert np.array_equal(target.instances, source.instances)
            far[gap] += np.abs(target.image.astype(float) - source.image).mean() / 6
    assert 10 < far[0.5] < far[1.0] < far[2.0]


def test_values_content() -> None:
    before, after = _shares(60, 48), _shares(60, 48, "target", 1.0)
    assert after[CAR] > 1.2 * before[CAR]
    assert after[PEDESTRIAN] > 1.5 * before[PEDESTRIAN]
    assert after[ROAD] < before[ROAD]


def test_values_shares() -> None:
    """The classes are about as frequent as in CamVid, the rare ones within a factor of two."""
    shares = _shares(200, 96)
    for kind, (found, wanted) in enumerate(zip(shares, CAMVID_SHARES)):
        factor = 1.35 if wanted > 4 else 2.0
        assert wanted / factor < found < wanted * factor, (kind, found, wanted)


def test_values_tail() -> None:
    """Rare classes become rarer with the exponent, and what is left was there before."""
    even, natural, steep = (_shares(60, 48, tail=tail) for tail in (0.0, 1.0, 2.0))
    for kind in (POLE, SIGN, FENCE, PEDESTRIAN, BICYCLIST):
        assert even[kind] > 1.3 * natural[kind], kind
        assert natural[kind] > 1.3 * steep[kind], kind
    assert even[ROAD] == pytest.approx(steep[ROAD], rel=0.15)
    for tail in (0.0, 0.7, 1.6):
        assert tail_factor(PEDESTRIAN, tail) == pytest.approx((0.6 / 4.6) ** (tail - 1), rel=1e-12)
    for row in draw(0, "streets", 0, torch.arange(20)).uniform(NUMBERS).numpy():
        more, fewer = (plan_street(row, tail).things for tail in (0.5, 1.5))
        assert set(fewer) < set(more)


def test_values_instances() -> None:
    """Every object has one number and one class; the rest of the picture has none."""
    seen = set()
    for number in range(40):
        scene = render_scene(7, number, tail=0.5)
        counted = np.isin(scene.mask, OBJECTS)
        assert (scene.instances[counted] > 0).all()
        assert (scene.instances[~counted & (scene.mask != TREE)] == 0).all()
        for one in np.unique(scene.instances[scene.instances > 0]):
            kinds = np.unique(scene.mask[scene.instances == one])
            assert len(kinds) == 1
            seen.add(int(kinds[0]))
    assert seen == {*OBJECTS, TREE}


def test_values_visible() -> None:
    """Small things are large enough to be learned at the default size."""
    people, poles = [], 0
    for number in range(40):
        scene = render_scene(1, number)
        poles += int((scene.mask == POLE).sum() > 5)
        ids = scene.instances[scene.mask == PEDESTRIAN]
        people += np.bincount(ids)[1:].tolist()
    people = [pixels for pixels in people if pixels]
    assert poles > 35
    assert len(people) > 40
    assert np.median(people) >= 8


def test_reference() -> None:
    """Road and pavement lie where the camera's formula puts them."""
    height, width = 60, 80
    checked = 0
    for number in range(5):
        numbers = draw(0, "scenes", 0, torch.tensor([number])).uniform(NUMBERS)[0].numpy()
        street = plan_street(numbers)
        camera, mask = street.camera, render_scene(0, number, height, width).mask
        for i in range(height):
            down = (i + 0.5) / height - camera.horizon
            if down < 0.03:
                continue
            z = camera.focal * camera.height / down
            if street.junction and street.junction[0] - 2 < z < street.junction[1] + 2:
                continue
            for j in range(width):
                if mask[i, j] not in (ROAD, PAVEMENT):
                    continue
                across = (j + 0.5) / height - 0.5 * width / height - camera.shift
                x = across * z / camera.focal - camera.curve * z * z
                if min(abs(x - edge) for edge in street.road) < 0.02 * z:
                    continue
                assert (mask[i, j] == ROAD) == (street.road[0] < x < street.road[1])
                checked += 1
    assert checked > 3000


def test_degenerate() -> None:
    """The smallest picture, a strip, a tower, and every dial at its end."""
    for height, width in ((32, 32), (32, 160), (200, 32), (33, 47)):
        for settings in (
            {"gap": 2.0, "content": 1.0, "tail": 0.0},
            {"gap": 0.3, "content": 0.5, "tail": 3.0},
        ):
            scene = render_scene(0, 11, height, width, rendering="target", **settings)
            assert scene.image.shape == (3, height, width)
            assert scene.image.std() > 5
            assert len(np.unique(scene.mask)) > 2
    one = scene_images(train=0, val=0, test=1, height=32, width=32)
    assert list(one.splits) == ["test"]
    for numbers in (np.zeros(NUMBERS), np.full(NUMBERS, 1 - 2.0**-24)):
        assert np.isfinite(plan_street(numbers, tail=0.0, content=1.0).walls).all()


def test_errors() -> None:
    for settings, text in (
        ({"height": 31}, "height must be >= 32"),
        ({"width": 8}, "width must be >= 32"),
        ({"gap": 2.1}, "gap must be >= 0 and <= 2"),
        ({"content": -0.1}, "content must be >= 0 and <= 1"),
        ({"tail": float("nan")}, "tail must be >= 0 and <= 3"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"rendering": "photo"}, 'rendering must be "source" or "target"'),
        ({"train": -1}, "train must be >= 0"),
        ({"train": 0, "val": 0, "test": 0}, "must not all be 0"),
    ):
        with pytest.raises(ValueError, match=text):
            scene_images(**settings)
    with pytest.raises(ValueError, match="number must be >= 0"):
        render_scene(0, -1)
