"""Advice for images with masks: what is measured, each rule at its thresholds, and recipes that load and train."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leanlabel import methods
from leanlabel.advice import (
    advise,
    segmentation,
    segmentation_cost,
    segmentation_facts,
    ssl_cost,
)
from leanlabel.advice import segmentation_rules as rules
from leanlabel.advice.recipe import Advice, Choice, to_text
from leanlabel.advice.segmentation_facts import DenseFacts, Objects, component_sides, measure
from leanlabel.api import resolve
from leanlabel.data.class_map import plain_map
from leanlabel.data.dense import DenseImages, MaskArray
from leanlabel.data.generated.scenes import scene_images
from leanlabel.data.images import PixelArray
from leanlabel.errors import InputError
from leanlabel.models.segmenters import SegmenterSettings
from smallrun import cli, train

FACTS = DenseFacts(
    images=600,
    trained=400,
    parts={"train": 400, "val": 100, "test": 100},
    height=1024,
    width=2048,
    smallest=1024,
    largest=2048,
    one_size=True,
    channels=3,
    value_bytes=1,
    names=("road", "car", "bicycle"),
    shares=(0.6, 0.3, 0.1),
    image_shares=(1.0, 0.9, 0.5),
    unlabelled=0.05,
    lacking={"train": (), "val": (), "test": ()},
    looked_at={"train": 320, "val": 64, "test": 64},
    objects=(Objects("bicycle", 100, 60.0, 40.0),),
    sequences=0,
    cut=None,
    grey=0.0,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    unreadable=0,
    gpu=True,
    memory=80.0,
)
TRAINABLE = {
    "steps": "2",
    "engine.loggers": "[]",
    "engine.threads": "1",
    "engine.accelerator": "cpu",
    "evaluation.untrained": "false",
}


def _facts(**changes: Any) -> DenseFacts:
    return dataclasses.replace(FACTS, **changes)


def _objects(height: float, width: float) -> tuple[Objects, ...]:
    return (Objects("bicycle", 9, height, width),)


def _chosen(found: list[Choice] | Advice) -> dict[str, Any]:
    return {choice.key: choice.value for choice in (found if isinstance(found, list) else found.choices)}


def _written(advice: Advice, folder: Path) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(to_text(advice, "recipe.yaml"), encoding="utf-8")
    return recipe


def write_pairs(
    folder: Path,
    count: int = 12,
    size: tuple[int, int] = (40, 56),
    *,
    values: Sequence[int] = (0, 1, 2),
    names: tuple[str, ...] | None = ("field", "road", "post"),
    parts: Sequence[str] = ("train",) * 8 + ("val", "val", "test", "test"),
    ending: str = "png",
    bands: int | None = None,
    various: int = 0,
) -> Path:
    """Folders of images and masks: a large field, a band of road, three posts of 6 x 3 pixels."""
    numbers = np.random.default_rng(0)
    for row in range(count):
        height, width = size[0] + various * (row % 3), size[1] + various * (row % 2)
        mask = np.full((height, width), values[0], np.uint8)
        if len(values) > 1:
            mask[height // 2 : height // 2 + 8] = values[1]
        if len(values) > 2:
            for left in (4, 20, 36):
                mask[2:8, left : left + 3] = values[2]
        image = numbers.integers(0, 60, (height, width, 3)) + 2 * (mask % 97)[..., None]
        part = parts[row % len(parts)] if len(parts) else ""
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / "masks" / part / f"{row:03}.png")
        target = folder / "images" / part / f"{row:03}.{ending}"
        if bands is None:
            Image.fromarray(image.astype(np.uint8)).save(target)
        else:
            deep = numbers.integers(0, 3000, (height, width)).astype(np.uint16)
            Image.fromarray(deep).save(target)
    if names is not None:
        (folder / "classes.json").write_text(json.dumps({"names": names}), encoding="utf-8")
    return folder


# ------------------------------------------------------------------------------------------------- facts


def hand_made(**changes: Any) -> DenseImages:
    """Four masks of 10 x 10: class 0 everywhere, class 1 a block of 2 x 5, class 2 never, an ignored row in mask 0."""
    masks = torch.zeros(4, 10, 10, dtype=torch.uint8)
    masks[0, 9] = 255
    masks[1, 2:4, 1:6] = 1
    masks[1, 6:8, 1:6] = 1
    masks[3, 0, 0] = 1  # a speck, and no object
    pixels = torch.zeros(4, 3, 10, 10, dtype=torch.uint8)
    pixels[0] = 51
    pixels[1, 0] = 255
    splits = {"train": torch.tensor([0, 1]), "val": torch.tensor([2]), "test": torch.tensor([3])}
    known = plain_map(["field", "block", "ghost"])
    return DenseImages("four", PixelArray(pixels), MaskArray(masks), known, splits, **changes)


def test_values_facts() -> None:
    facts = measure(hand_made(), gpu=False)
    assert (facts.images, facts.trained, facts.height, facts.width, facts.short) == (4, 2, 10, 10, 10)
    assert facts.parts == {"train": 2, "val": 1, "test": 1}
    assert facts.shares == pytest.approx((170 / 190, 20 / 190, 0))
    assert facts.image_shares == (1.0, 0.5, 0.0)
    assert facts.unlabelled == pytest.approx(10 / 200)
    assert facts.lacking == {"train": ("ghost",), "val": ("block", "ghost"), "test": ("ghost",)}
    assert facts.objects == (Objects("block", 2, 2.0, 5.0),)
    assert (facts.usual_object, facts.imbalance) == (5.0, pytest.approx(8.5))
    assert (facts.grey, facts.channels, facts.value_bytes) == (0.5, 3, 1)
    assert facts.mean == pytest.approx((0.6, 0.1, 0.1))
    assert (facts.sequences, facts.cut, facts.stored) == (0, None, 4 * 400)
    grouped = hand_made(groups=torch.tensor([0, 0, 1, 2]), group_names=["a", "b", "c"])
    assert measure(grouped, gpu=False).sequences == 3


def test_values_facts_of_the_reader() -> None:
    """What was counted over all masks goes before what some of them hold; a part without labels has no classes."""
    facts = measure(hand_made(facts={"train_class_pixels": [60, 30, 10]}), gpu=False)
    assert facts.shares == (0.6, 0.3, 0.1)
    assert facts.lacking["train"] == ()
    data = hand_made()
    assert isinstance(data.masks, MaskArray)
    data.masks.array[3] = 255
    assert "test" not in measure(data, gpu=False).lacking
    with pytest.raises(ValueError, match="need masks"):
        measure(dataclasses.replace(data, masks=None), gpu=False)


def test_reference_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against loops over pixels, and over some of the images where there are many."""
    data = scene_images(
        train=12,
        val=3,
        test=4,
        height=40,
        width=56,
        rendering="source",
        gap=1.0,
        content=0.0,
        tail=1.0,
        seed=3,
    )
    data = dataclasses.replace(data, facts={})
    assert isinstance(data.masks, MaskArray)
    for every in (True, False):
        if not every:
            monkeypatch.setattr(segmentation_facts, "TRAINED", 4)
        facts = measure(data, gpu=False)
        rows = data.splits["train"][:: 1 if every else 3].tolist()
        masks = data.masks.array[rows]
        labelled = [int((masks == label).sum()) for label in range(11)]
        assert facts.shares == pytest.approx([count / sum(labelled) for count in labelled])
        holding = [sum(bool((one == label).any()) for one in masks) for label in range(11)]
        assert facts.image_shares == pytest.approx([count / len(rows) for count in holding])
        assert facts.looked_at["train"] == len(rows)
        rarest = sorted((label for label in range(11) if labelled[label]), key=lambda label: labelled[label])
        assert [one.name for one in facts.objects] == [data.classes.names[label] for label in rarest[:3]]


def test_reference_components() -> None:
    """Against a flood fill; specks are left out."""
    inside = np.random.default_rng(0).random((24, 30)) < 0.35
    left, expected = set(zip(*np.nonzero(inside))), []
    while left:
        waiting, part = [left.pop()], []
        while waiting:
            y, x = waiting.pop()
            part.append((y, x))
            for step in itertools.product((-1, 0, 1), repeat=2):
                near = (y + step[0], x + step[1])
                if near in left:
                    left.remove(near)
                    waiting.append(near)
        if len(part) >= 4:
            down, across = zip(*part)
            expected.append((max(down) - min(down) + 1, max(across) - min(across) + 1))
    assert sorted(component_sides(inside)) == sorted(expected)
    assert len(expected) > 3
    assert component_sides(np.zeros((3, 3), dtype=bool)) == []


# ------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"gpu": True}, None),
        # Four times 500 is more than the image has: all of it must fit.
        ({"gpu": True, "objects": _objects(500, 400)}, 768),
        ({"gpu": True, "objects": _objects(250, 250)}, 786),
        ({"gpu": True, "objects": _objects(190, 100)}, None),
        ({"gpu": True, "objects": ()}, None),
        ({"gpu": False}, 128),
        ({"gpu": False, "objects": ()}, 128),
        ({"gpu": False, "height": 128, "width": 500}, None),
        ({"gpu": False, "height": 129, "width": 500}, 128),
        ({"gpu": False, "objects": _objects(25, 25)}, 164),
        ({"gpu": False, "objects": _objects(5, 5)}, 192),
        ({"gpu": False, "height": 150, "width": 150, "objects": _objects(3, 3)}, None),
    ],
)
def test_values_resize(changes: dict[str, Any], value: int | None) -> None:
    facts = _facts(**changes)
    found = rules.resize(facts)
    assert found.value == value
    shown = rules.as_read(facts, value)
    assert shown.short == (value or facts.short)
    for before, after in zip(facts.objects, shown.objects, strict=True):
        assert after.height / before.height == pytest.approx(shown.short / facts.short)
    if value is not None and not facts.gpu:
        assert "no GPU here" in found.reason


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, [512, 512]),
        ({"objects": _objects(150, 40)}, [768, 768]),
        ({"objects": _objects(100, 100)}, [512, 512]),
        ({"height": 360, "width": 480}, [352, 480]),
        ({"height": 528, "width": 527}, [512, 512]),
        ({"height": 12, "width": 30}, [16, 16]),
        ({"gpu": False, "height": 128, "width": 256}, [128, 192]),
        ({"gpu": False, "height": 256, "width": 128}, [192, 128]),
        ({"gpu": False, "height": 90, "width": 100}, [88, 96]),
        ({"gpu": False, "height": 5, "width": 100}, [8, 96]),
    ],
)
def test_values_crop(changes: dict[str, Any], size: list[int]) -> None:
    facts = _facts(**changes)
    choice = rules.crop(facts)
    assert choice.value == size
    stride = 16 if facts.gpu else 8
    assert all(side % stride == 0 for side in size)
    assert ("taken whole" in choice.reason) is (
        facts.height - size[0] < stride and facts.width - size[1] < stride
    )
    usual = facts.usual_object
    assert usual is not None
    assert not facts.gpu or min(size) >= min(4 * usual, facts.short - stride)


def test_values_scale() -> None:
    assert rules.scale(_facts()).value == [0.5, 2.0]
    assert rules.scale(_facts(objects=())).value == [0.5, 2.0]
    assert rules.scale(_facts(objects=_objects(8, 8))).value == [0.5, 2.0]
    assert rules.scale(_facts(objects=_objects(7.9, 8))).value == [0.75, 2.0]
    assert rules.scale(_facts(objects=_objects(4, 4))).value == [0.75, 2.0]
    assert rules.scale(_facts(objects=_objects(4, 3.9))).value == [1.0, 2.0]
    assert rules.scale(_facts(gpu=False)).value == [0.75, 1.5]
    assert rules.scale(_facts(gpu=False, objects=_objects(3, 3))).value == [1.0, 1.5]


def test_values_network() -> None:
    def found(size: tuple[int, int] = (512, 512), /, **changes: Any) -> dict[str, Any]:
        facts = _facts(**changes)
        return rules.settings_of(rules.network(facts, facts, list(size), 8))

    assert found() == {"name": "deeplab-v3+", "encoder": "resnet50"}
    assert found(trained=199) == {"name": "deeplab-v3+", "encoder": "resnet18"}
    assert found((304, 512)) == {"name": "deeplab-v3+", "encoder": "resnet50"}
    assert found((288, 512))["dilations"] == [3, 6, 9]
    assert found(objects=_objects(7.9, 7.9)) == {"name": "unet", "width": 32}
    assert found(objects=_objects(7.9, 7.9), trained=1000) == {"name": "unet", "width": 64}
    assert found((112, 112), height=127, smallest=127)["name"] == "unet"
    assert found(height=200, smallest=63) == {"name": "small-fcn"}
    assert found((128, 192), gpu=False) == {"name": "tiny-fcn"}
    assert found((32, 48), gpu=False, trained=8) == {"name": "small-fcn"}
    native = _facts(gpu=False)
    shrunk = rules.as_read(native, 128)
    (choice,) = rules.network(shrunk, native, [128, 192], 8)
    assert "with a GPU: deeplab-v3+" in choice.reason  # of the images at their own size
    every: list[dict[str, Any]] = [{}, {"trained": 50}, {"height": 100}, {"smallest": 40}, {"gpu": False}]
    for changes in every:
        SegmenterSettings.model_validate_json(json.dumps(found(**changes)), strict=True)


@pytest.mark.parametrize(("batch", "norm"), [(1, "group"), (7, "group"), (8, "batch"), (16, "batch")])
def test_values_normalisation(batch: int, norm: str) -> None:
    choice = rules.normalisation(FACTS, batch)
    assert choice.value == norm
    assert "frozen" in choice.reason
    assert "frozen" not in rules.normalisation(_facts(gpu=False), batch).reason


def test_values_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A power of two, at most a quarter of the images; memory takes from the batch, then from the crop."""
    assert [rules.wanted_batch(_facts(trained=n)) for n in (1, 2, 11, 31, 32, 64, 9999)] == [
        1,
        2,
        2,
        4,
        8,
        16,
        16,
    ]
    assert rules.wanted_batch(_facts(gpu=False)) == 8

    def cost(facts: DenseFacts, model: Any, size: list[int], batch: int) -> ssl_cost.Cost:
        return ssl_cost.Cost(1.0, batch * size[0] * size[1] / 2**18)

    monkeypatch.setattr(rules, "expected_cost", cost)

    def fitted(memory: float, **changes: Any) -> tuple[int, list[int]]:
        return rules.fitted_batch(_facts(memory=memory, **changes), {}, [512, 512])

    assert fitted(20.0) == (16, [512, 512])  # 80 % of 20 GiB are 16
    assert fitted(19.9) == (8, [512, 512])
    assert fitted(5.0) == (4, [512, 512])
    assert fitted(4.9) == (4, [384, 384])
    assert fitted(4.9, trained=8) == (2, [512, 512])
    assert fitted(1e-3) == (1, [64, 64])  # told by the cost, and not hidden
    assert fitted(0.0, gpu=False, trained=16) == (4, [512, 512])  # a fixed room without a GPU
    assert "16 crops of 512 x 512 would not fit into 80 % of 16 GiB" in (
        rules.batch(_facts(memory=16.0), 8, [512, 512], 12.0).reason
    )
    assert rules.batch(_facts(trained=9), 2, [512, 512], 1.0).reason.startswith("9 training images")


def test_values_steps() -> None:
    assert rules.steps(_facts(trained=400), 16, 0.3).value == 2500
    assert rules.steps(_facts(trained=20), 4, 0.3).value == 2000
    assert rules.steps(_facts(trained=10**6), 16, 0.3).value == rules.MOST_STEPS
    assert rules.steps(_facts(trained=40, gpu=False), 8, 0.01).value == 500
    assert rules.steps(_facts(trained=8, gpu=False), 8, 0.01).value == 400
    slow = rules.steps(_facts(trained=400, gpu=False), 8, 0.1)
    assert slow.value == 3600
    assert "with one: 5,000" in slow.reason
    assert rules.steps(_facts(trained=400, gpu=False), 8, 100.0).value == 100


@pytest.mark.parametrize(
    ("names", "shares", "expected"),
    [
        (("a", "b", "c"), (0.62, 0.35, 0.0311), [{"name": "cross-entropy"}]),
        (
            ("a", "b", "c"),
            (0.62, 0.35, 0.031),
            [{"name": "cross-entropy", "settings": {"class_weights": "inverse-log"}}],
        ),
        (("a", "b"), (0.5, 0.5), [{"name": "cross-entropy"}, {"name": "dice"}]),
        (("a", "b", "c"), (0.9, 0.06, 0.04), [{"name": "cross-entropy"}, {"name": "dice"}]),
        (("a", "b", "c"), (0.8, 0.2, 0.0), [{"name": "cross-entropy"}]),
        (("a", "b"), (1.0, 0.0), [{"name": "cross-entropy"}]),
    ],
)
def test_values_terms(names: tuple[str, ...], shares: tuple[float, ...], expected: list[Any]) -> None:
    choice = rules.terms(_facts(names=names, shares=shares))
    assert choice.value == expected
    assert ("locally-adaptive" in choice.reason) is ("settings" in expected[0])


def test_values_augmentation() -> None:
    colour = _chosen(rules.augmentation(FACTS))
    assert (colour["augment.flip"], colour["augment.jitter"][3], colour["augment.mean"][0]) == (
        0.5,
        0.05,
        0.485,
    )
    assert _chosen(rules.augmentation(_facts(grey=0.5)))["augment.jitter"] == [0.3, 0.3, 0.0, 0.0]
    bands = _chosen(rules.augmentation(_facts(channels=4, mean=(0.1,) * 4, std=(0.2,) * 4)))
    assert bands["augment.jitter"] == [0.0] * 4
    assert bands["augment.mean"] == [0.1] * 4
    assert "text" in rules.augmentation(FACTS)[0].reason


def test_values_optimiser() -> None:
    """Rates in proportion to small batches, and ten times the rate behind the encoder [DeepLab]."""
    deeplab = _chosen(rules.optimiser("deeplab-v3+", 8))
    assert (deeplab["optim.name"], deeplab["optim.lr"], deeplab["optim.head_factor"]) == ("sgd", 0.01, 10.0)
    assert [_chosen(rules.optimiser("deeplab-v3+", b))["optim.lr"] for b in (4, 16)] == [0.005, 0.01]
    assert _chosen(rules.optimiser("tiny-fcn", 8))["optim.lr"] == 0.005
    assert _chosen(rules.optimiser("unet", 8)) == {
        "optim.name": "adamw",
        "optim.lr": 0.001,
        "optim.weight_decay": 0.01,
        "optim.decay_all": False,
        "optim.schedule": "poly",
    }


@pytest.mark.parametrize(
    ("labelled", "part", "further"),
    [
        (("val", "test"), "test", ["val"]),
        (("val",), "val", []),
        (("val", "test_day", "test_dusk"), "test_day", ["val", "test_dusk"]),
        ((), None, None),
    ],
)
def test_values_evaluation(labelled: tuple[str, ...], part: str | None, further: list[str] | None) -> None:
    parts = {"train": 400, **dict.fromkeys(labelled, 9), "test_blank": 5}
    facts = _facts(parts=parts, lacking={"train": (), **dict.fromkeys(labelled, ())}, height=360, width=480)
    found = _chosen(rules.evaluation(facts))
    assert found.get("evaluation.part") == part
    assert found.get("evaluation.further") == further
    assert found["evaluation.protocol"] == ("none" if part is None else "miou")


def test_values_evaluation_size() -> None:
    def found(height: int, width: int) -> tuple[Any, Any]:
        values = _chosen(rules.evaluation(_facts(height=height, width=width)))
        return values.get("evaluation.window"), values.get("evaluation.batch")

    assert found(512, 1024) == (None, None)
    assert found(512, 1025) == (None, 7)
    assert found(1024, 2048) == (None, 2)
    assert found(2048, 2048) == (None, 1)
    assert found(2048, 2049) == ([1024, 1024], 1)
    assert found(600, 9000) == ([600, 1024], 1)


def test_values_engine() -> None:
    assert "engine.workers" not in _chosen(rules.engine(_facts(images=100, height=10, width=10), 100))
    assert _chosen(rules.engine(FACTS, 2500)) == {
        "engine.accelerator": "auto",
        "engine.workers": 8,  # 5 GB of pixels stay on disk
        "engine.checkpoint_every": 125,
        "engine.log_every": 2,
    }


def test_reference_cost() -> None:
    """Operations, time and memory, put together by hand."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.nn.ReLU())
    assert ssl_cost.one_pass(net.eval(), torch.zeros(1, 3, 5, 6)) == (2 * 3 * 9 * 4 * 30, 2 * 4 * 30, 108)
    model = SegmenterSettings(name="tiny-fcn")
    f, v, w = segmentation_cost.per_image(model.model_dump_json(), 5, 3, (32, 48))
    assert w == sum(p.numel() for p in segmentation_cost.build_segmenter(model, 5).parameters())
    cost = segmentation_cost.estimate(model, 5, (32, 48), 4, gpu=False, stored=2**30)
    pixels = 32 * 48
    seconds = 0.01 + 12 * f / 100e9 + 7e-9 * (4 * v + 4 * 5 * pixels) + 40e-9 * 4 * pixels
    assert cost.seconds == pytest.approx(seconds)
    held = 4 * (8 * v + 16 * 5 * pixels + 4 * w + 24 * pixels)
    assert cost.memory == pytest.approx(1.45 + held / 2**30)
    assert segmentation_cost.estimate(model, 5, (32, 48), 4, gpu=True).seconds < 0.03


def test_values_docstring() -> None:
    for module in (segmentation_facts, segmentation_cost, rules):
        assert doctest.testmod(module).failed == 0


# ------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            {
                "data.classes": None,
                "data.batch_size": 2,
                "model.norm": "group",
                "augment.crop": [40, 56],
                "evaluation.part": "test",
                "evaluation.further": ["val"],
                "model.name": "small-fcn",
            },
        ),
        ({"parts": ()}, {"data.val_share": 0.2, "data.split_by": "image", "evaluation.part": "val"}),
        (
            {"parts": ("a", "b", "c", "d")},
            {"data.split_by": "sequence", "evaluation.part": "val", "evaluation.further": []},
        ),
        (
            {"values": (0, 255), "names": None},
            {"data.classes": {"names": ["background", "foreground"], "ids": {0: 0, 255: 1}, "ignored": []}},
        ),
        (
            {"values": (0, 7, 9), "names": None},
            {
                "data.classes": {
                    "names": ["value 0", "value 7", "value 9"],
                    "ids": {0: 0, 7: 1, 9: 2},
                    "ignored": [255],
                }
            },
        ),
        ({"various": 9}, {"augment.crop": [48, 56]}),
        ({"size": (300, 400), "count": 4, "parts": ()}, {"data.val_share": 0.25, "data.batch_size": 2}),
    ],
    ids=[
        "sound",
        "no parts",
        "sequences",
        "0 and 255",
        "other values",
        "various sizes",
        "large, four images",
    ],
)
def test_values(
    changes: dict[str, Any],
    expected: dict[str, Any],
    gpu: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe says what fits, loads, and its method accepts the data, on machines of both kinds."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    advice = advise("segmentation", [str(write_pairs(tmp_path / "data", **changes))])
    chosen = _chosen(advice)
    if gpu:
        expected = {key: value for key, value in expected.items() if key != "augment.crop"}
    assert {key: chosen[key] for key in expected} == expected
    config = resolve(_written(advice, tmp_path))
    values = json.loads(config.model_dump_json())
    key: str
    value: Any
    for key, value in chosen.items():
        found: Any = values
        for part in key.split("."):
            found = found[part]
        if key == "method.terms":
            found = [one["name"] for one in found]
            value = [one["name"] for one in value]
        if key == "data.classes" and value is not None:
            value = {**value, "ids": {str(raw): label for raw, label in value["ids"].items()}}
            found = {name: found[name] for name in value}
        assert found == value, key
    monkeypatch.undo()
    data = methods.find("segmentation").read(config)
    assert len(data) == changes.get("count", 12)
    assert chosen["fidelity"] == ("corrected" if gpu else "small")
    assert chosen["data.resize"] == (192 if changes.get("size") and not gpu else None)  # for the posts


@pytest.mark.parametrize(
    "changes",
    [{"various": 9}, {"values": (0, 255), "names": None, "count": 3, "parts": ()}],
    ids=["various sizes", "0 and 255, three images"],
)
def test_values_trains(changes: dict[str, Any], tmp_path: Path) -> None:
    advice = advise("segmentation", [str(write_pairs(tmp_path / "data", **changes))])
    sets = [f"{key}={value}" for key, value in TRAINABLE.items()]
    method = train(tmp_path / "run", resolve(_written(advice, tmp_path), sets))
    classes, confidence = method.segment(torch.zeros(3, 40, 50, dtype=torch.uint8))
    assert classes.shape == confidence.shape == (40, 50)
    assert all(bool(torch.isfinite(p).all()) for p in method.parameters())


def test_values_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The written recipe goes through init and fit, which measures the part that it names."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "data", 30)
    answer = cli("init", "segmentation", "data", "--out", "mine.yaml")
    assert answer.code == 0, answer.err
    text = Path("mine.yaml").read_text(encoding="utf-8")
    assert "30 images with masks (22 train, 4 test, 4 val), 56 x 40 pixels" in " ".join(
        text.replace("#", "").split()
    )
    sets = [part for key, value in TRAINABLE.items() for part in ("--set", f"{key}={value}")]
    answer = cli("fit", "mine.yaml", "--run", "runs/one", "--json", *sets)
    assert answer.code == 0, answer.err
    protocols = json.loads(answer.out)["protocols"]
    assert set(protocols) == {"miou", "miou:val"}
    assert 0 <= protocols["miou"]["readouts"]["trained"]["mean"] <= 1


def test_values_colours(tmp_path: Path) -> None:
    """Colours that nobody named become classes."""
    folder = write_pairs(tmp_path / "data", names=None, parts=())
    colours = np.array([[0, 0, 200], [0, 200, 0], [200, 0, 0]], np.uint8)
    for file in (folder / "masks").iterdir():
        Image.fromarray(colours[np.array(Image.open(file))]).save(file)
    advice = advise("segmentation", [str(folder)])
    chosen = _chosen(advice)
    assert chosen["data.classes"]["by_colour"] is True
    assert chosen["data.classes"]["colours"] == colours.tolist()
    data = methods.find("segmentation").read(resolve(_written(advice, tmp_path)))
    assert data.classes.names[2] == "colour 200 0 0"
    assert len(torch.unique(data.read([0])[1])) == 3


def test_values_bands(tmp_path: Path) -> None:
    """Files of 16 bits are read as they are, with the white that they use and statistics of their own."""
    pytest.importorskip("PIL.Image")
    advice = advise("segmentation", [str(write_pairs(tmp_path / "data", bands=1, ending="tif"))])
    chosen = _chosen(advice)
    assert (chosen["data.bands"], chosen["data.white"]) == ([], 4095.0)
    assert len(chosen["augment.mean"]) == 1
    assert chosen["augment.mean"][0] == pytest.approx(1500 / 4095, abs=0.02)
    data = methods.find("segmentation").read(resolve(_written(advice, tmp_path)))
    assert data.shape == (1, 40, 56)


def test_values_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large set only heads and some masks are read."""
    monkeypatch.setattr(segmentation, "DECODED", 5)
    monkeypatch.setattr(segmentation, "LOOKED_AT", 4)
    monkeypatch.setattr(segmentation, "check_dense", _fewer(segmentation.check_dense, 4))
    advice = advise("segmentation", [str(write_pairs(tmp_path / "data", names=None))])
    assert _chosen(advice)["data.classes"]["ids"] == {0: 0, 1: 1, 2: 2}
    assert methods.find("segmentation").read(resolve(_written(advice, tmp_path))).num_classes == 3


def _fewer(check: Any, most: int) -> Any:
    def checked(data: Any, **more: Any) -> Any:
        assert len(data) <= most
        return check(data, **more)

    return checked


# ------------------------------------------------------------------------------------------------- warnings


def _warned(folder: Path, **changes: Any) -> str:
    return "\n".join(advise("segmentation", [str(write_pairs(folder, **changes))]).warnings)


def test_values_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _warned(tmp_path / "few")
    assert "8 training images, fewer than 20, are few" in said
    assert "no pixel of" not in said
    assert "nothing says what" not in said
    said = _warned(tmp_path / "absent", names=("field", "road", "post", "ghost"), count=30)
    assert "no pixel of ghost in train: cannot be learned" in said
    assert "no pixel of ghost in val: scores say nothing about them" in said
    assert "are few" not in said
    said = _warned(tmp_path / "unnamed", names=None, count=30)
    assert "nothing says what values in masks mean" in said
    monkeypatch.setattr(segmentation, "MANY", 2)
    assert "masks hold 3 values or colours, more than 2" in _warned(tmp_path / "many", names=None)
    said = _warned(tmp_path / "one", values=(0,))
    assert "only field has training pixels" in said


def test_values_warnings_val(tmp_path: Path) -> None:
    """A class that only the training part has; a test part without masks is not measured; a broken image."""
    folder = write_pairs(tmp_path / "data")
    for row in (8, 9):
        name = folder / "masks" / "val" / f"{row:03}.png"
        Image.fromarray(np.minimum(np.array(Image.open(name)), 1)).save(name)
    for row in (10, 11):
        (folder / "masks" / "test" / f"{row:03}.png").unlink()
    (folder / "images" / "train" / "000.png").write_bytes(b"nothing")
    advice = advise("segmentation", [str(folder)])
    said, chosen = "\n".join(advice.warnings), _chosen(advice)
    assert "no pixel of post in val: scores say nothing about them" in said
    assert "2 images have no mask" in said
    assert "test have no labels" in said
    assert "1 files cannot be read and are left out" in said
    assert (chosen["evaluation.part"], chosen["data.skip_unreadable"]) == ("val", True)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        advise("segmentation", ["nowhere"])
    binary = write_pairs(tmp_path / "binary", values=(0, 255), names=("background", "cell"))
    with pytest.raises(InputError) as caught:
        advise("segmentation", [str(binary)])
    assert "binary mask written as 0/255" in str(caught.value)
    wrong = write_pairs(tmp_path / "wrong", values=(0, 1, 77))
    with pytest.raises(InputError, match="label value 77"):
        advise("segmentation", [str(wrong)])
    bare = write_pairs(tmp_path / "bare")
    (bare / "masks" / "train" / "003.png").unlink()
    with pytest.raises(InputError, match="no mask belongs to this image"):
        advise("segmentation", [str(bare)])
    blank = write_pairs(tmp_path / "blank", values=(255,))
    with pytest.raises(InputError, match="no pixel of the 8 training images has a class"):
        advise("segmentation", [str(blank)])
    tiny = write_pairs(tmp_path / "tiny", size=(7, 30), values=(0, 1))
    with pytest.raises(InputError, match="a side of 7 pixels; the smallest network needs 8"):
        advise("segmentation", [str(tiny)])
    (tmp_path / "list.txt").write_text("binary/images/train/000.png\n", encoding="utf-8")
    with pytest.raises(InputError, match="1 images and no masks"):
        advise("segmentation", [str(tmp_path / "list.txt")])


@pytest.mark.real
@pytest.mark.slow
def test_reference_public_set(data_root: Path) -> None:
    """Driving scenes with a long tail: weighted classes, smaller images without a GPU, the published parts."""
    advice = advise("segmentation", ["camvid/camvid.zip"])
    chosen = _chosen(advice)
    assert chosen["method.terms"][0]["settings"] == {"class_weights": "inverse-log"}
    assert (chosen["evaluation.part"], chosen["evaluation.further"]) == ("test_dusk", ["val"])
    assert "bicyclist" in advice.facts[1]
