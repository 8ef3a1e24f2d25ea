"""Adaptation recipes of published size, on made-up files of a quarter of the size in the layouts of the public sets."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from leanlabel import api
from leanlabel.data.class_map import class_map
from leanlabel.engine.runfolder import read_json, read_lines
from leanlabel.models.segmenters import SegmenterSettings, build_segmenter
from leanlabel.recipe import packaged_recipes
from smallrun import cli

SYSTEMS = ("adapt/", "feature-regression/", "spcl/", "content-transfer/")
RECIPES = [name for name in packaged_recipes() if name.startswith(SYSTEMS)]
WHOLE = pytest.mark.skipif("LEANLABEL_FULL_SCALE" not in os.environ, reason="LEANLABEL_FULL_SCALE is not set")
STAGED = [
    "spcl/gta5-cityscapes",
    pytest.param("spcl/synthia-cityscapes", marks=WHOLE),
    "content-transfer/gta5-cityscapes",
    pytest.param("content-transfer/synthia-cityscapes", marks=WHOLE),
]
GARBAGE = b"nobody may look in here"
TILE = 12
"""Side of the squares of one class that pictures are made of."""
CHEAP = [
    "steps=1",
    "engine.accelerator=cpu",
    "engine.threads=1",
    "engine.loggers=[]",
    "engine.log_every=1",
    "evaluation.batch=1",
    "evaluation.boundary=false",
    "evaluation.spread=false",
    "method.watch_every=0",
    "data.source.batch_size=1",
    "data.target.batch_size=1",
]


def picture(seed: int, height: int, width: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """An image (h, w, 3), and the raw ids (h, w) of a class map: squares of all classes in their colours."""
    classes, numbers = class_map(name), np.random.default_rng(seed)
    raw_of = {label: raw for raw, label in classes.ids.items()}
    down, across = (-(-side // TILE) for side in (height, width))
    tiles = numbers.permutation(down * across).reshape(down, across) % len(classes)
    labels = tiles.repeat(TILE, 0).repeat(TILE, 1)[:height, :width]
    image = np.array(classes.colours)[labels] + numbers.normal(0, 12, (height, width, 3))
    raw = np.array([raw_of[label] for label in range(len(classes))])[labels]
    return image.clip(0, 255).astype(np.uint8), raw.astype(np.uint8)


def save(place: Path, pixels: np.ndarray, palette: list[int] | None = None) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(place)


def sixteen_bits(ids: np.ndarray) -> bytes:
    """A PNG with 16-bit colour: the id in the red channel and an instance in the green one, as SYNTHIA has it."""
    values = np.stack([ids, ids * 0 + 200, ids * 0], -1).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], 16, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in parts)


def gta5(root: Path, scale: int = 4) -> Path:
    """Images of 1914 x 1052 and masks with a palette."""
    for k in range(2):
        image, raw = picture(k, 1052 // scale, 1914 // scale, "gta5-19")
        save(root / "images" / f"{k:05}.png", image)
        save(root / "labels" / f"{k:05}.png", raw, [value % 256 for value in range(768)])
    return root


def synthia(root: Path) -> Path:
    """Images of 1280 x 760, masks of 16 bits."""
    for k in range(2):
        image, raw = picture(k, 190, 320, "synthia-16")
        save(root / "RGB" / f"{k:07}.png", image)
        place = root / "GT" / "LABELS" / f"{k:07}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(sixteen_bits(raw))
    return root


def synscapes(root: Path) -> Path:
    """Images of 1440 x 720."""
    for k in range(1, 3):
        image, raw = picture(k, 180, 360, "synscapes-19")
        save(root / "img" / "rgb" / f"{k}.png", image)
        save(root / "img" / "class" / f"{k}.png", raw)
    return root


def cityscapes(root: Path, scale: int = 4) -> Path:
    """Images of 2048 x 1024; masks of the training part are no pictures."""
    for part, city in (("train", "aachen"), ("val", "frankfurt")):
        image, raw = picture(10, 1024 // scale, 2048 // scale, "cityscapes-19")
        name = f"{part}/{city}/{city}_000000_000019"
        save(root / "leftImg8bit" / f"{name}_leftImg8bit.png", image)
        mask = root / "gtFine" / f"{name}_gtFine_labelIds.png"
        save(mask, raw)
        if part == "train":
            mask.write_bytes(GARBAGE)
    return root


def voc(root: Path) -> Path:
    """Images of about 500 x 375, masks with a palette, a list of each part."""
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for k, (height, width) in enumerate([(94, 125), (125, 83), (94, 125)]):
        image, raw = picture(k, height, width, "voc-21")
        save(root / "JPEGImages" / f"2007_{k:06}.jpg", image)
        save(root / "SegmentationClass" / f"2007_{k:06}.png", raw, [value % 256 for value in range(768)])
    for part, rows in (("train", (0, 1)), ("val", (2,)), ("trainval", (0, 1, 2))):
        (lists / f"{part}.txt").write_text("".join(f"2007_{k:06}\n" for k in rows))
    return root


MADE: dict[str, tuple[Callable[[Path], Path], int, int]] = {
    "gta5": (gta5, 180, 320),
    "synthia": (synthia, 190, 320),
}
"""Of each source: who makes it, height and width of its training images at a quarter of the size."""


def residual_network(place: Path) -> Path:
    """Weights of a ResNet-101 whose signal does not grow from block to block, as trained ones have it."""
    made = build_segmenter(SegmenterSettings(name="deeplab-v2", zero_init=True), 2, 3).encoder
    state = {
        name: value + 0.2 if name.endswith("weight") and not value.any() else value
        for name, value in made.state_dict().items()
    }
    save_file(state, place)
    return place


def trained(tmp_path: Path, recipe: str, *places: Path, changes: list[str], **more: Any) -> api.Run:
    """One iteration of a recipe; the large files that it leaves are dropped."""
    found = api.fit(
        recipe, data=places or None, run=tmp_path / "run", overrides=[*CHEAP, *changes], quiet=True, **more
    )
    shutil.rmtree(found.folder.checkpoints)
    for place in tmp_path.rglob("*.safetensors"):
        place.unlink()
    return found


def check(found: api.Run, logged: set[str], rows: int = 1) -> dict[str, Any]:
    """Every term is logged and finite, and the target was measured; what the results say of it."""
    assert len(found.metrics) == rows
    for row in found.metrics:
        assert logged <= set(row), sorted(row)
        assert all(math.isfinite(value) for value in row.values())
        assert row["loss"] > 0
    record = found.results["protocols"]["miou"]
    assert (record["domain"], record["split"]["name"]) == ("target", "val")
    assert math.isfinite(record["readouts"]["trained"]["mean"])
    assert (found.path / "report.html").exists()
    return record


@pytest.mark.parametrize("name", RECIPES)
def test_show(name: str) -> None:
    answer = cli("show", name)
    assert answer.code == 0, answer.err
    shown = yaml.safe_load(answer.out)
    assert {"source", "target"} <= shown["data"].keys()
    assert [entry["name"] for entry in shown["method"]["terms"]]


SAMPLED = ["method.sampling.min_pixels=188", "augment.wanted_pixels=94"]
MIXED = {"cross_entropy", "mix", "masked", "feature_distance"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "make", "short"),
    [
        ("adapt/gta5-cityscapes", gta5, 180),
        ("adapt/synthia-cityscapes", synthia, 190),
        ("adapt/synscapes-cityscapes", synscapes, 180),
    ],
)
def test_daformer(tmp_path: Path, recipe: str, make: Callable[[Path], Path], short: int) -> None:
    """An iteration of DAFormer with masked consistency from each of the three sources, at a quarter of the size."""
    places = make(tmp_path / "a source"), cityscapes(tmp_path / "a target")
    wanted = api.resolve(recipe)
    assert wanted.data.source.resize == 4 * short  # type: ignore[attr-defined]
    sizes = [f"data.source.resize={short}", "data.target.resize=128", "augment.crop=[128, 128]", *SAMPLED]
    found = trained(tmp_path, recipe, *places, changes=sizes)
    record = check(found, MIXED)
    data: Any = found.data
    assert data.source.shape[1] == short
    assert data.target.shape == (3, 128, 256)
    assert len(record["per_class"]) == (16 if "synthia" in recipe else 19)
    subsets = record["readouts"]["trained"]["others"]
    assert any("13" in key for key in subsets) == ("synthia" in recipe), subsets


@pytest.mark.slow
def test_two_scales(tmp_path: Path) -> None:
    """HRDA: source images are enlarged, the target's are not; windows of the size of the crop."""
    recipe = "adapt/gta5-cityscapes-hrda"
    places = gta5(tmp_path / "gta5"), cityscapes(tmp_path / "cityscapes")
    config: Any = api.resolve(recipe)
    assert (config.augment.base, config.plain_target().base) == (1440, None)
    sizes = ["augment.crop=[256, 256]", "augment.base=360", "target_augment.crop=[256, 256]"]
    sizes += ["evaluation.window=[256, 256]", "method.sampling.min_pixels=188", "augment.wanted_pixels=375"]
    found = trained(tmp_path, recipe, *places, changes=sizes)
    check(found, {*MIXED, "detail"})
    assert found.data.target.shape == (3, 256, 512)


@pytest.mark.slow
def test_warm_up(tmp_path: Path) -> None:
    """DeepLab-v2 with an adversary: source crops and whole target images differ in size."""
    places = gta5(tmp_path / "gta5"), cityscapes(tmp_path / "cityscapes")
    sizes = ["data.source.resize=180", "data.target.resize=128", "augment.crop=[180, 320]"]
    start = {"source": residual_network(tmp_path / "resnet101.safetensors"), "part": "backbone"}
    found = trained(tmp_path, "adapt/gta5-cityscapes-warm-up", *places, changes=sizes, **start)
    check(found, {"cross_entropy", "adversary"})
    assert any(name.startswith("discriminator") for name in found.metrics[0]), found.metrics[0]


@pytest.mark.slow
def test_feature_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PASCAL VOC and its copy by another camera, found below the folder of data."""
    voc(tmp_path / "data" / "VOCdevkit" / "VOC2012")
    monkeypatch.setenv("LEANLABEL_DATA", str(tmp_path / "data"))
    changes = ["augment.crop=[81, 81]", "stages.source.steps=1"]
    start = {"source": residual_network(tmp_path / "resnet101.safetensors"), "part": "backbone"}
    found = trained(tmp_path, "feature-regression/voc2012", changes=changes, **start)
    record = check(found, {"regression"})
    assert len(record["per_class"]) == 21
    assert {"pair agreement", "pair agreement before"} <= set(found.results["label_free"])


def stages_once(recipe: str) -> list[str]:
    """One iteration of every stage on one image of each domain, and no measuring of the gap meanwhile."""
    once = {"steps": 1, "method.watch_every": 0, "data.target.batch_size": 1}
    config: Any = api.resolve(recipe)
    return [f"stages.{name}.{key}={value}" for name in config.stages for key, value in once.items()]


def logged_by_stage(root: Path) -> dict[str, dict[str, float]]:
    """What the only iteration of every stage that trains logged."""
    found = {}
    for place in root.glob("*/stage.json"):
        lines = place.with_name("metrics.jsonl")
        if lines.exists():
            (row,) = read_lines(lines)
            found[read_json(place)["name"]] = row
    return found


@pytest.mark.slow
@pytest.mark.parametrize("recipe", STAGED)
def test_stages(tmp_path: Path, recipe: str) -> None:
    """SPCL of 2021 and content transfer: an iteration of every stage, pseudo labels and first looks between them."""
    make, height, width = MADE[recipe.partition("/")[2].partition("-")[0]]
    places = make(tmp_path / "a source"), cityscapes(tmp_path / "a target")
    config: Any = api.resolve(recipe)
    assert config.augment.crop == (4 * height, 4 * width)
    down, across = height // 2, width // 2  # an eighth: three stages with several passes each
    sizes = [f"data.source.resize={down}", "data.target.resize=64", f"augment.crop=[{down}, {across}]"]
    if config.target_augment.crop is not None:
        assert config.target_augment.crop == (512, 1024)
        sizes.append("target_augment.crop=[64, 128]")
    start = {"source": residual_network(tmp_path / "resnet101.safetensors"), "part": "backbone"}
    found = trained(tmp_path, recipe, *places, changes=[*stages_once(recipe), *sizes], **start)
    spcl = recipe.startswith("spcl")
    pasted = {"cross_entropy", "self_training", "content_transfer", "zero_style", "pasted_share"}
    record = check(found, {"self_training"} if spcl else pasted)
    assert len(record["per_class"]) == (16 if "synthia" in recipe else 19)
    stages = logged_by_stage(tmp_path / "stages")
    wanted = {
        True: {
            "warm-up": {"cross_entropy", "adversary"},
            "contrast": {"cross_entropy", "prototype", "own_similarity", "other_similarity"},
        },
        False: {
            "separate": {"cross_entropy", "adversary", "reconstruction", "zero_content", "zero_semantics"},
            "round-1": pasted,
        },
    }[spcl]
    assert list(config.stages) == list(wanted)
    for name, logged in wanted.items():
        assert logged <= stages[name].keys(), (name, sorted(stages[name]))
        assert all(math.isfinite(value) for value in stages[name].values())
    if spcl:  # a share of log 19 of each domain, whatever is learned
        classes = len(record["per_class"])
        assert 0 < stages["contrast"]["prototype"] < 2 * math.log(classes) + 0.05
    assert {"head mIoU", "tail mIoU"} & record["readouts"]["trained"]["others"].keys()


@pytest.mark.slow
def test_modern_prototypes(tmp_path: Path) -> None:
    """DAFormer with prototypes of the teacher's features behind a head, without its 3,000 iterations of waiting."""
    recipe = "spcl/gta5-cityscapes-modern"
    places = gta5(tmp_path / "gta5"), cityscapes(tmp_path / "cityscapes")
    config: Any = api.resolve(recipe)
    terms = [entry.model_dump(mode="json") for entry in config.method.terms]
    contrast = terms[-1]["settings"]
    assert (contrast["wait"], contrast["head"], contrast["features"]) == (3000, 512, "teacher")
    contrast |= {"wait": 0, "threshold": 0.0}
    sizes = ["data.source.resize=180", "data.target.resize=128", "augment.crop=[128, 128]", *SAMPLED]
    found = trained(tmp_path, recipe, *places, changes=[*sizes, "method.terms=" + json.dumps(terms)])
    check(found, {*MIXED, "prototype", "prototype_source", "prototype_target", "target_gap", "agreed"})
    assert found.metrics[0]["prototype_target"] > 0


@pytest.mark.slow
@pytest.mark.skipif("LEANLABEL_FULL_SCALE" not in os.environ, reason="LEANLABEL_FULL_SCALE is not set")
@pytest.mark.parametrize("recipe", ["spcl/gta5-cityscapes", "content-transfer/gta5-cityscapes"])
def test_full_scale_stages(tmp_path: Path, recipe: str) -> None:
    """An iteration of every stage on images of 1280 x 720 and 1024 x 512, and the memory that it takes."""
    places = gta5(tmp_path / "gta5", 1), cityscapes(tmp_path / "cityscapes", 1)
    start = {"source": residual_network(tmp_path / "resnet101.safetensors"), "part": "backbone"}
    found = trained(tmp_path, recipe, *places, changes=stages_once(recipe), **start)
    check(found, {"self_training"})
    timings = [found.path / "timing.jsonl", *(tmp_path / "stages").glob("*/timing.jsonl")]
    peaks = [row["peak_bytes"] / 2**30 for place in timings for row in read_lines(place)]
    print(f"{recipe}: at most {max(peaks):.1f} GiB for one image of each domain")
    assert len(peaks) == 3


@pytest.mark.slow
@pytest.mark.skipif("LEANLABEL_FULL_SCALE" not in os.environ, reason="LEANLABEL_FULL_SCALE is not set")
def test_full_scale(tmp_path: Path) -> None:
    """The published crop and files of the published sizes; only the batch is of one image."""
    places = gta5(tmp_path / "gta5", 1), cityscapes(tmp_path / "cityscapes", 1)
    found = trained(tmp_path, "adapt/gta5-cityscapes", *places, changes=[])
    check(found, MIXED)
    assert found.data.target.shape == (3, 512, 1024)
