"""Copies of a data set by another sensor: the same every time, moved with their masks, told apart by fingerprints."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from leanlabel.augment.sensor import SENSORS, SensorName, SensorSettings, ShiftSettings, change
from leanlabel.data import transformed as module
from leanlabel.data.class_map import plain_map
from leanlabel.data.dense import DenseImages, MaskArray, fingerprint_dense
from leanlabel.data.dense_files import read_dense
from leanlabel.data.dense_source import DenseSource, Transformed, open_dense
from leanlabel.data.images import PixelArray
from leanlabel.data.transformed import TransformedPixels, transformed
from leanlabel.errors import InputError
from leanlabel.methods.segmentation import training_rows
from leanlabel.rng import draw

SOURCE: TypeAdapter[Any] = TypeAdapter(DenseSource)
CLASSES = plain_map(["sky", "road", "car"])
MOVES = ShiftSettings(random=3)
BENDS = ShiftSettings(random=2, rotate=5.0, elastic=1.0)


def settings(**keys: object) -> Any:
    """As a recipe gives them: plain data."""
    return SOURCE.validate_json(json.dumps(keys))


def original(count: int = 12) -> DenseImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 10, 14), dtype=torch.uint8, generator=generator)
    masks = torch.randint(3, (count, 10, 14), dtype=torch.uint8, generator=generator)
    rows = torch.arange(count)
    return DenseImages(
        "shapes",
        PixelArray(pixels),
        MaskArray(masks),
        CLASSES,
        splits={"train": rows[:-4], "val": rows[-4:-2], "test": rows[-2:]},
        ids=[f"{row:03d}.png" for row in range(count)],
        groups=rows % 2,
        group_names=["a", "b"],
        instances=MaskArray(masks.int() + 1),
        facts={"train_class_pixels": [1, 2, 3], "seed": 5},
    )


def fill(root: Path, parts: dict[str, int], broken: str = "") -> Path:
    """Images and masks on disk; masks of the part `broken` are no pictures."""
    for part, count in parts.items():
        for k in range(count):
            image, mask = np.full((6, 8, 3), 20 * k, np.uint8), np.full((6, 8), k % 3, np.uint8)
            for folder, content in (("images", image), ("masks", mask)):
                place = root / folder / part / f"{k}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                if folder == "masks" and part == broken:
                    place.write_bytes(b"nobody may open this")
                else:
                    Image.fromarray(content).save(place)
    return root


def test_values() -> None:
    """Values as the sensor makes them; names, sequences and parts stay."""
    data = original()
    copy = transformed(data, "camera", seed=3)
    for row in (0, 7, 11):
        image = data.pixels[row][None] / 255
        expected = change(image, SENSORS["camera"], draw(3, "copy noise", 0, torch.tensor([row])))[0]
        assert torch.equal(copy.pixels[row], (expected * 255).round().byte())
    assert (copy.ids, copy.group_names, copy.shape) == (data.ids, data.group_names, data.shape)
    assert copy.splits is data.splits
    assert copy.masks is data.masks
    assert copy.facts["train_class_pixels"] == [1, 2, 3]
    assert copy.facts["copied_sensor"] == "camera"
    assert json.loads(json.dumps(dict(copy.facts))) == dict(copy.facts)
    infrared = transformed(data, "infrared")
    assert infrared.shape == (1, 10, 14)
    assert infrared.read([0, 5])[0].shape == (2, 1, 10, 14)
    same = transformed(data, "identity")
    assert torch.equal(same.read(range(12))[0], data.read(range(12))[0])
    own = transformed(data, SensorSettings(gamma=2.0))
    assert own.facts["copied_sensor"] == {"gamma": 2.0}


@pytest.mark.parametrize("shift", [MOVES, BENDS])
def test_values_shift(shift: ShiftSettings) -> None:
    """Images, masks and instances of the training part move together; those of the others stay, unless asked."""
    data = original()
    shade = data.masks.read(range(12)) * 100  # type: ignore[union-attr]
    data = DenseImages(
        **{**data.__dict__, "pixels": PixelArray(shade[:, None].expand(-1, 3, -1, -1).clone())}
    )
    copy = transformed(data, "identity", shift)
    images, masks = copy.read(range(12))
    moved = 0
    for row in range(12):
        assert copy.instances is not None
        inside = masks[row] != 255
        assert torch.equal(copy.instances[row][inside], masks[row][inside].int() + 1)
        assert not copy.instances[row][~inside].any()
        if not shift.bends:
            assert torch.equal(images[row, 0][inside], masks[row][inside] * 100)
        if row >= 8:
            assert torch.equal(masks[row], data.masks[row])  # type: ignore[index]
        moved += not torch.equal(masks[row], data.masks[row])  # type: ignore[index]
    assert moved > 4
    assert "train_class_pixels" not in copy.facts
    assert copy.facts["copied_shift_images"] == 8
    every = transformed(data, "identity", ShiftSettings(constant=(0, 2)), shift_all=True)
    assert bool((every.read(range(12))[1][:, :, :2] == 255).all())


def test_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, alone or with others, kept or not, sent to another process or not: the same bytes."""
    data = original()
    copy = transformed(data, "published-toy", BENDS, seed=1)
    assert isinstance(copy.pixels, TransformedPixels)
    assert copy.pixels.kept == {}
    whole, masks = copy.read(range(12))
    assert len(copy.pixels.kept or ()) == 12
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    fresh = transformed(data, "published-toy", BENDS, seed=1)
    assert isinstance(fresh.pixels, TransformedPixels)
    assert fresh.pixels.kept is None
    sent = pickle.loads(pickle.dumps(copy))
    assert sent.pixels.kept == {}
    for one in (fresh, sent, copy):
        for rows in ([3, 0, 3], [11], list(range(9, -1, -1))):
            images, own = one.read(rows)
            assert torch.equal(images, whole[rows])
            assert torch.equal(own, masks[rows])
    taken = copy.take([5, 9, 1]).take([2, 0])
    assert torch.equal(taken.read([0, 1])[0], whole[[1, 5]])
    assert torch.equal(taken.read([0, 1])[1], masks[[1, 5]])
    assert not torch.equal(transformed(data, "published-toy", BENDS, seed=2).read(range(12))[0], whole)


def test_degenerate(tmp_path: Path) -> None:
    """Images of several sizes on disk; nothing asked for; no masks; no parts."""
    for k, size in enumerate(((6, 8), (7, 5))):
        for folder, shape in (("images", (*size, 3)), ("masks", size)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.full(shape, k, np.uint8)).save(tmp_path / folder / f"{k}.png")
    data = read_dense(tmp_path, classes=CLASSES, val_share=0)
    copy = transformed(data, "inversion", MOVES)
    assert copy.shape is None
    assert copy.facts["copied_shift_images"] == 2
    images, masks = copy.read([1, 0])
    assert [tuple(one.shape) for one in images] == [(3, 7, 5), (3, 6, 8)]
    assert [tuple(one.shape) for one in masks] == [(7, 5), (6, 8)]
    assert len(copy.pixels.read([])) == 0
    assert fingerprint_dense(copy) != fingerprint_dense(data)
    bare = DenseImages("bare", PixelArray(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)), None, CLASSES)
    assert transformed(bare, "camera", MOVES).masks is None


def test_errors() -> None:
    with pytest.raises(InputError, match=r"none of the name 'foto'.*Known: identity, camera"):
        transformed(original(), "foto")  # type: ignore[arg-type]
    bands = DenseImages("b", PixelArray(torch.zeros(2, 4, 4, 4, dtype=torch.uint8), True), None, CLASSES)
    with pytest.raises(InputError, match="infrared is for RGB images, but these have 4"):
        transformed(bands, "infrared")
    for keys, message in (
        ({"sensor": "foto"}, "the name of a sensor: identity, camera"),
        ({"sensor": 3}, "the name of a sensor, or a section"),
        ({"sensor": {"gama": 1.0}}, "changes that fit together .gama: Extra"),
        ({"sensor": {"infrared": True, "grey": True}}, "leaves one channel"),
        ({"shift": {"random": -1}}, "greater than or equal to 0"),
        ({"of": {"kind": "transformed"}}, "'file', 'scenes'"),
    ):
        with pytest.raises(ValidationError, match=message) as told:
            settings(kind="transformed", **{"of": {"kind": "scenes"}, **keys})
        assert len(told.value.errors()) == 1


def test_state() -> None:
    """Fingerprints: equal for equal copies, different for every setting; settings read back."""
    data = original()
    sensors: list[SensorName | SensorSettings] = [
        "camera",
        "inversion",
        "identity",
        SensorSettings(gamma=1.1),
    ]
    prints = [fingerprint_dense(transformed(data, one, seed=0)) for one in sensors]
    prints += [fingerprint_dense(transformed(data, "camera", one, seed=0)) for one in (MOVES, BENDS)]
    prints += [fingerprint_dense(transformed(data, "camera", MOVES, seed=1))]
    prints += [fingerprint_dense(transformed(data, "camera", MOVES, seed=0, shift_all=True))]
    prints += [fingerprint_dense(data)]
    assert len(set(prints)) == len(prints)
    copy = transformed(data, "camera", MOVES)
    copy.read([0, 1])
    assert fingerprint_dense(copy) == prints[4]
    part = fingerprint_dense(copy.take([2, 3]))
    assert part == fingerprint_dense(transformed(data, "camera", MOVES).take([2, 3]))
    assert part != fingerprint_dense(copy.take([3, 2]))
    for own in (
        settings(kind="transformed", of={"kind": "scenes"}, sensor="published-toy", shift={"random": 5}),
        settings(kind="transformed", of={"path": "x"}, sensor={"gain": [0.5, 1, 1]}, labels="held-out"),
    ):
        assert isinstance(own, Transformed)
        assert settings(**own.model_dump(mode="json")) == own


@pytest.mark.parametrize("shift", [MOVES, BENDS])
@pytest.mark.parametrize("known", [True, False])
def test_values_valid(shift: ShiftSettings, known: bool) -> None:
    """Where a copy shows nothing of its original is known, and is where its mask says nothing."""
    data = original()
    copy = transformed(data, "camera", shift)
    pixels = copy.pixels.take([2, 11, 0])
    assert isinstance(pixels, TransformedPixels)
    sizes = [(10, 14)] * 3 if known else None
    valid = pixels.valid([0, 1, 2], sizes)
    assert isinstance(valid, torch.Tensor)
    assert copy.masks is not None
    expected = torch.stack([copy.masks[row] for row in (2, 11, 0)]) != 255
    assert torch.equal(valid, expected)
    assert bool(valid[1].all())  # not shifted: of the test part
    assert not bool(valid[0].all())
    assert pixels.valid([]).shape == (0, 10, 14)  # type: ignore[union-attr]


def test_values_source() -> None:
    """From a recipe's keys: a copy of scenes, row for row."""
    scenes = {"kind": "scenes", "train": 3, "val": 1, "test": 1, "height": 32, "width": 48}
    data, copy = (
        open_dense(settings(**scenes)),
        open_dense(settings(kind="transformed", of=scenes, sensor="grey-blur")),
    )
    assert copy.ids == data.ids
    assert copy.name == "scenes-source-0-grey-blur"
    images = copy.read([0, 4])[0]
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize("load", ["auto", "memory", "disk"])
def test_held_out_files(load: str, tmp_path: Path) -> None:
    """Masks of the training part are no pictures, and nobody notices; those of other parts are there."""
    fill(tmp_path, {"train": 4, "val": 2, "test": 3}, broken="train")
    keys = {"path": str(tmp_path), "classes": {"names": ["a", "b", "c"]}, "load": load}
    with pytest.raises(InputError, match="masks that cannot be read"):
        open_dense(settings(**keys))
    data = open_dense(settings(**keys, labels="held-out"))
    assert data.masks is not None
    masks = data.read(range(len(data)))[1]
    train = data.splits["train"]
    assert bool((masks[train] == 255).all())
    for part, count in (("val", 2), ("test", 3)):
        assert masks[data.splits[part]][:, 0, 0].tolist() == [k % 3 for k in range(count)]
    assert data.facts["train_class_pixels"] == [0, 0, 0]
    assert data.facts["class_pixels"] == [96, 96, 48]
    assert data.facts["training_masks_hidden"] == 4
    fingerprint_dense(data)
    copy = open_dense(settings(kind="transformed", of=keys, labels="held-out", shift={"random": 1}))
    assert copy.masks is not None
    assert bool((torch.stack([copy.masks[row] for row in train.tolist()]) == 255).all())
    assert (
        open_dense(settings(kind="transformed", of={**keys, "labels": "none"}, labels="held-out")).masks
        is None
    )


def test_held_out_cut(tmp_path: Path) -> None:
    """Where no part is named, a validation part is cut first and keeps its masks; the rest may be missing."""
    for k in range(8):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images" / f"{k}.png")
        Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "masks" / f"{k}.png")
    keys: dict[str, Any] = {"classes": CLASSES, "val_share": 0.25}
    seen = read_dense(tmp_path, **keys)
    for row in seen.splits["train"].tolist()[:3]:
        assert seen.ids is not None
        (tmp_path / "masks" / seen.ids[row]).unlink()
    with pytest.raises(InputError, match="images without a mask"):
        read_dense(tmp_path, **keys)
    data = read_dense(tmp_path, **keys, labels="held-out")
    assert torch.equal(data.splits["val"], seen.splits["val"])
    masks = data.read(range(8))[1]
    assert bool((masks[data.splits["val"]] == 1).all())
    assert bool((masks[data.splits["train"]] == 255).all())
    assert read_dense(tmp_path, classes=CLASSES, val_share=0, labels="held-out").masks is None


def test_held_out_table(tmp_path: Path) -> None:
    """A table that names masks of the training part which are not there."""
    fill(tmp_path, {"a": 4})
    lines = ["image,mask,split"]
    for k in range(4):
        lines.append(
            f"images/a/{k}.png,masks/a/{k if k > 1 else 'gone'}{k}.png,{'train' if k < 2 else 'test'}"
        )
    text = "\n".join(lines).replace("22.png", "2.png").replace("33.png", "3.png")
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="does not exist"):
        read_dense(tmp_path / "pairs.csv", classes=CLASSES, val_share=0)
    data = read_dense(tmp_path / "pairs.csv", classes=CLASSES, val_share=0, labels="held-out")
    assert data.read(range(4))[1][:, 0, 0].tolist() == [255, 255, 2, 0]


def test_held_out_other_parts(tmp_path: Path) -> None:
    """Whatever is not called val or test may be trained on: its masks stay unread, and are counted."""
    fill(tmp_path, {"a": 8})
    parts = ["train_day", "train_night", "extra", "val", "test_dusk", "", "VAL_2", "valley"]
    lines = ["image,mask,split"]
    lines += [f"images/a/{k}.png,masks/a/{k}.png,{part}" for k, part in enumerate(parts)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    for k in (0, 1, 2, 5, 7):
        (tmp_path / "masks" / "a" / f"{k}.png").write_bytes(b"nobody may open this")
    data = read_dense(tmp_path / "pairs.csv", classes=CLASSES, labels="held-out")
    assert data.read(range(8))[1][:, 0, 0].tolist() == [255, 255, 255, 0, 1, 255, 0, 255]
    assert data.facts["training_masks_hidden"] == 5
    assert bool((data.read(training_rows(data))[1] == 255).all())


def test_held_out_coco(tmp_path: Path) -> None:
    """Annotations that stay unread may be of unknown categories; those that are read may not, and are counted."""
    fill(tmp_path, {"a": 8})
    content: dict[str, Any] = {
        "images": [{"id": k, "file_name": f"images/a/{k}.png", "height": 6, "width": 8} for k in range(8)],
        "categories": [{"id": 4, "name": "thing"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 4, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]}
            for k in range(8)
        ],
    }
    path = tmp_path / "marks.json"
    path.write_text(json.dumps(content))
    seen = read_dense(path, val_share=0.25)
    assert seen.facts["objects"] == 8
    for row in seen.splits["train"].tolist():
        content["annotations"][row]["category_id"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no category has the id 7"):
        read_dense(path, val_share=0.25)
    data = read_dense(path, val_share=0.25, labels="held-out")
    assert torch.equal(data.splits["val"], seen.splits["val"])
    assert data.facts["objects"] == 2
    assert data.facts["class_pixels"][1] == 18
    bare = read_dense(path, val_share=0.25, labels="none")
    assert (bare.masks, bare.facts["objects"]) == (None, 0)
    content["annotations"][int(seen.splits["val"][0])]["category_id"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no category has the id 7"):
        read_dense(path, val_share=0.25, labels="held-out")


def test_held_out_scenes() -> None:
    """Scenes know their masks, and do not tell those of the training part."""
    scenes = {"kind": "scenes", "train": 3, "val": 1, "test": 1, "height": 32, "width": 48}
    data, hidden = open_dense(settings(**scenes)), open_dense(settings(**scenes, labels="held-out"))
    masks, seen = data.read(range(5))[1], hidden.read(range(5))[1]
    assert bool((seen[:3] == 255).all())
    assert torch.equal(seen[3:], masks[3:])
    assert hidden.instances is not None
    assert not hidden.instances.read([0, 1, 2]).any()
    assert "class_pixels" not in hidden.facts
    for own in (hidden, transformed(hidden, "camera", MOVES)):
        assert own.facts["train_class_pixels"] == [0] * 11
    assert fingerprint_dense(hidden) != fingerprint_dense(data)
    none = open_dense(settings(**scenes, labels="none"))
    assert none.masks is None
    assert none.instances is None
