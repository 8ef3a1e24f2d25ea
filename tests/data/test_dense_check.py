"""The check of images and masks calls by name whatever is wrong with them, and describes data that training refuses."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leanlabel.data import dense_pass
from leanlabel.data.checks import check_masks, check_place, check_source, check_source_masks, kind_of
from leanlabel.data.class_map import ClassMap, class_map, plain_map
from leanlabel.data.dense import DenseImages, MaskArray
from leanlabel.data.dense_check import DenseFindings, check_dense
from leanlabel.data.dense_listing import DenseListing, Fault
from leanlabel.data.dense_pass import Look, cache_folder, look_at
from leanlabel.data.dense_source import ClassSection, DenseFiles
from leanlabel.data.image_source import ImageFiles
from leanlabel.data.image_stores import FolderStore
from leanlabel.data.images import PixelArray
from smallrun import cli

Image = pytest.importorskip("PIL.Image")
TWO = plain_map(["field", "road"], name="two")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANLABEL_CACHE", str(tmp_path / "cache"))


def picture(row: int, height: int = 24, width: int = 36) -> np.ndarray:
    """Noise of large grains; no two rows look alike."""
    grains = np.random.default_rng(row).integers(0, 256, (height // 4, width // 4, 3))
    return grains.repeat(4, 0).repeat(4, 1).astype(np.uint8)


def halves(left: int = 0, right: int = 1, height: int = 24, width: int = 36) -> np.ndarray:
    mask = np.full((height, width), left, np.uint8)
    mask[:, width // 2 :] = right
    return mask


def listing(
    folder: Path, masks: list[np.ndarray], images: list[np.ndarray] | None = None, **more: Any
) -> DenseListing:
    """Write images and masks as PNG; row k has mask k."""
    images = [picture(row) for row in range(len(masks))] if images is None else images
    names = [f"{row}.png" for row in range(len(masks))]
    for kind, arrays in (("images", images), ("masks", masks)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, array in zip(names, arrays, strict=True):
            Image.fromarray(array).save(folder / kind / name)
    stores = (FolderStore(str(folder / kind), names) for kind in ("images", "masks"))
    return DenseListing("set", *stores, **{"ids": names, "classes": TWO, **more})


def codes(found: DenseFindings) -> dict[str, tuple[str, int]]:
    return {one.code: (one.severity, one.count) for one in found.findings}


def message(found: DenseFindings, code: str) -> str:
    return next(one.message for one in found.findings if one.code == code)


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def test_values(tmp_path: Path) -> None:
    masks = [halves(), halves(0, 0), halves(1, 255), halves()]
    parts = {"train": rows(0, 1), "val": rows(2, 3)}
    found = check_dense(listing(tmp_path, masks, splits=parts))
    assert not {one.code for one in found.findings if one.severity != "info"}
    assert codes(found)["images"] == ("info", 4)
    assert message(found, "images") == "4 images, all with masks"
    assert message(found, "sizes") == "all images are 36 x 24 pixels"
    assert message(found, "label_values_found") == "3 label values: 0, 1, 255"
    assert message(found, "ignored_pixels") == "12.5 % of labelled pixels are ignored"
    assert message(found, "classes") == "2 classes by pixels: field 57.1 %, road 42.9 %"
    assert codes(found)["split_val"] == ("info", 2)
    figures = json.loads(json.dumps(found.figures))
    assert [one["name"] for one in figures["classes"]] == ["field", "road"]
    road = figures["classes"][1]
    assert road["shares"]["all"] == {"pixels": pytest.approx(3 / 7), "images": 0.75, "count": 3}
    assert road["shares"]["train"] == {"pixels": 0.25, "images": 0.5, "count": 1}
    assert road["raw"] == [1]
    assert figures["ignored"] == {"all": 0.125, "train": 0, "val": 0.25}
    assert figures["values"] == [[0, 4 * 432], [1, 3 * 432], [255, 432]]
    assert figures["parts"][0] == {"name": "train", "images": 2, "labelled": 2}
    assert sorted(figures["examples"]) == [0, 1, 2, 3]


def test_reference(tmp_path: Path) -> None:
    """Shares against a loop over all pixels, with a map that merges, ignores and does not list ids."""
    rng = np.random.default_rng(3)
    classes = ClassMap(
        "own", ("a", "b"), ((0, 0, 0), (9, 9, 9)), {4: 0, 7: 1, 9: 1}, frozenset({2}), "ignore"
    )
    masks = [
        rng.choice([2, 4, 5, 7, 9], (24, 36), p=[0.1, 0.4, 0.1, 0.2, 0.2]).astype(np.uint8) for _ in range(5)
    ]
    found = check_dense(listing(tmp_path, masks, classes=classes))
    counts = {0: 0, 1: 0, 255: 0}
    for mask in masks:
        for value in mask.ravel().tolist():
            counts[{4: 0, 7: 1, 9: 1}.get(value, 255)] += 1
    known = counts[0] + counts[1]
    shares = [one["shares"]["all"]["pixels"] for one in found.figures["classes"]]
    assert shares == pytest.approx([counts[0] / known, counts[1] / known])
    assert codes(found)["ignored_pixels"][1] == counts[255]
    assert found.figures["classes"][1]["raw"] == [7, 9]


def test_values_labels(tmp_path: Path) -> None:
    """0/255 masks and numbers that are one too large are called by name, others by value and file."""
    binary = check_dense(listing(tmp_path / "a", [halves(0, 255)] * 2))
    assert codes(binary)["binary_mask"] == ("error", 864)
    assert "ids: {0: 0, 255: 1}" in message(binary, "binary_mask")
    own = plain_map(["no", "yes"], ids={0: 0, 255: 1})
    assert "binary_mask" not in codes(check_dense(listing(tmp_path / "a", [halves(0, 255)] * 2, classes=own)))
    off = check_dense(listing(tmp_path / "b", [halves(1, 2)]))
    assert codes(off)["off_by_one"] == ("error", 432)
    assert "off by one" in message(off, "off_by_one")
    other = check_dense(listing(tmp_path / "c", [halves(), halves(0, 7)]))
    assert codes(other)["label_values"] == ("error", 432)
    assert "7 (432 pixels)" in message(other, "label_values")
    assert "1.png" in message(other, "label_values")


def test_values_no_map(tmp_path: Path) -> None:
    """Without a class map each value is a class, and the figures say so."""
    found = check_dense(listing(tmp_path, [halves(3, 9), halves(3, 255)], classes=None))
    assert codes(found)["no_class_map"] == ("warning", 3)
    assert [one["name"] for one in found.figures["classes"]] == ["value 3", "value 9"]
    binary = check_dense(listing(tmp_path, [halves(0, 255)], classes=None))
    assert codes(binary)["binary_mask"][0] == "warning"
    assert [one["name"] for one in binary.figures["classes"]] == ["value 0", "value 255"]
    given = check_dense(listing(tmp_path, [halves()], classes=None), classes=TWO)
    assert "no_class_map" not in codes(given)


def test_values_classes(tmp_path: Path) -> None:
    three = plain_map(["field", "road", "car"])
    masks = [halves(0, 0), halves(0, 1), np.full((24, 36), 255, np.uint8)]
    parts = {"train": rows(0, 2), "val": rows(1), "test": rows(0)}
    found = check_dense(listing(tmp_path, masks, classes=three, splits=parts))
    assert codes(found)["absent_classes"] == ("warning", 1)
    assert message(found, "absent_classes").endswith(": car")
    assert message(found, "split_missing_classes").endswith(": road")
    assert codes(found)["absent_in_part"] == ("info", 1)
    assert codes(found)["all_ignore"] == ("warning", 1)
    assert codes(found)["split_leak"] == ("error", 1)
    alone = check_dense(listing(tmp_path, [halves(0, 0)]))
    assert codes(alone)["one_class"][0] == "warning"
    nothing = check_dense(listing(tmp_path, [halves(255, 255)]))
    assert codes(nothing)["no_class"][0] == "error"


def test_values_broken(tmp_path: Path) -> None:
    """Everything that would stop training is found, and the rest is still described."""
    masks = [halves(), halves(height=12), halves(), np.zeros((24, 36, 3), np.uint8), halves()]
    masks[3][:, :, 1] = 9
    data = listing(tmp_path, masks, faults=[Fault("missing_image", "x.png: a mask without an image")])
    file = tmp_path / "images" / "2.png"
    file.write_bytes(file.read_bytes()[:60])
    (tmp_path / "masks" / "4.png").write_bytes(b"")
    found = check_dense(data)
    assert {code: count for code, (severity, count) in codes(found).items() if severity == "error"} == {
        "missing_image": 1,
        "size_mismatch": 1,
        "unreadable": 1,
        "unreadable_mask": 2,
    }
    assert "1.png: 36 x 24, its mask 36 x 12" in message(found, "size_mismatch")
    assert "2.png" in message(found, "unreadable")
    assert "4.png: the file is empty" in message(found, "unreadable_mask")
    assert "a colour picture" in message(found, "unreadable_mask")
    assert found.figures["examples"] == [0]
    assert codes(found)["classes"][1] == 2


def test_values_faults_once(tmp_path: Path) -> None:
    """A file that the listing already misses is not told a second time."""
    data = listing(tmp_path, [halves(), halves()])
    (tmp_path / "images" / "1.png").unlink()
    data.faults.append(Fault("missing_file", "list.txt, line 2: 1.png does not exist", 1))
    found = check_dense(data)
    assert codes(found)["missing_file"] == ("error", 1)
    assert "unreadable" not in codes(found)


def test_values_parts(tmp_path: Path) -> None:
    """Frames of one sequence, copies and near copies in two parts."""
    images = [picture(row) for row in range(4)]
    images[2] = images[0]
    images[3] = (images[1] * 0.9 + 5).astype(np.uint8)
    data = listing(
        tmp_path,
        [halves()] * 4,
        images,
        splits={"val": rows(2, 3), "train": rows(0, 1)},
        groups=rows(0, 1, 2, 1),
        group_names=["a", "b", "c"],
    )
    found = check_dense(data)
    assert codes(found)["sequence_leak"] == ("warning", 1)
    assert message(found, "sequence_leak").startswith(
        "1 of 2 images of val come from sequences that train has"
    )
    assert "(b)" in message(found, "sequence_leak")
    assert [part["name"] for part in found.figures["parts"]] == ["train", "val"]
    assert codes(found)["duplicates"] == ("warning", 1)
    assert codes(found)["near_copies"] == ("warning", 2)
    assert "2.png and 0.png" in message(found, "near_copies")
    other = check_dense(listing(tmp_path / "b", [halves()] * 4, splits=data.splits))
    assert not {"near_copies", "duplicates", "sequence_leak"} & set(codes(other))


def test_values_unlabelled(tmp_path: Path) -> None:
    data = listing(tmp_path, [halves(), halves()])
    data.mask_of = rows(0, -1)
    assert codes(check_dense(data))["unlabelled"] == ("info", 1)
    data.masks = data.mask_of = None
    found = check_dense(data)
    assert "no_labels" in codes(found)
    assert found.figures["labelled"] == 0
    assert found.figures["examples"] == []


def test_values_colours(tmp_path: Path) -> None:
    """Masks told by colour, one of which no class has."""
    classes = plain_map(["a", "b"], [(255, 0, 0), (0, 0, 255)], by_colour=True)
    mask = np.zeros((24, 36, 3), np.uint8)
    mask[..., 0] = 255
    mask[:, 20:] = (0, 0, 255)
    wrong = mask.copy()
    wrong[0, :5] = (1, 2, 3)
    found = check_dense(listing(tmp_path, [mask, wrong], classes=classes))
    assert "(1, 2, 3) (5 pixels)" in message(found, "label_values")
    assert found.figures["classes"][0]["shares"]["all"]["images"] == 1


def test_values_in_memory() -> None:
    pixels = torch.from_numpy(np.stack([picture(row).transpose(2, 0, 1) for row in range(2)]))
    masks = torch.from_numpy(np.stack([halves(), halves(0, 255)]))
    parts = {"train": rows(0), "val": rows(1)}
    found = check_dense(DenseImages("made", PixelArray(pixels), MaskArray(masks), TWO, parts))
    assert message(found, "classes") == "2 classes by pixels: field 66.7 %, road 33.3 %"
    assert message(found, "sizes") == "all images are 36 x 24 pixels"


def test_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look reads no file that is as it was; a changed or broken one is read again."""
    data, cache = listing(tmp_path, [halves()] * 6), tmp_path / "kept"
    (tmp_path / "masks" / "5.png").write_bytes(b"")
    seen: list[int] = []
    real = dense_pass.FolderStore.read
    monkeypatch.setattr(
        dense_pass.FolderStore, "read", lambda store, row: seen.append(row) or real(store, row)
    )
    first = check_dense(data, cache=cache)
    assert len(seen) == 12
    seen.clear()
    second = check_dense(data, cache=cache)
    assert sorted(seen) == [5, 5]
    assert second.findings == first.findings
    assert second.figures == first.figures
    Image.fromarray(halves(1, 1)).save(tmp_path / "masks" / "2.png")
    os.utime(tmp_path / "masks" / "2.png", ns=(1, 1))
    seen.clear()
    changed = check_dense(data, cache=cache)
    assert sorted(set(seen)) == [2, 5]
    assert changed.figures["classes"][1]["shares"]["all"]["pixels"] == pytest.approx(0.6)
    (kept,) = cache.iterdir()
    for damage in ("", "[]", '{"version": 1}', '{"version": 0, "rows": {}}', kept.read_text()[:99]):
        kept.write_text(damage)
        assert check_dense(data, cache=cache).findings == changed.findings


def test_state_form(tmp_path: Path) -> None:
    """The same files read by colour are not taken for those read by number."""
    data, cache = listing(tmp_path, [halves()]), tmp_path / "kept"
    plain = check_dense(data, cache=cache)
    by_colour = plain_map(["a", "b"], [(0, 0, 0), (1, 1, 1)], by_colour=True)
    coloured = check_dense(data, classes=by_colour, cache=cache)
    assert coloured.figures["values"] != plain.figures["values"]
    assert coloured.figures["classes"][1]["shares"] == plain.figures["classes"][1]["shares"]


def test_state_cannot_write(tmp_path: Path) -> None:
    """A cache that cannot be written is no fault; few images are not kept at all."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    check_dense(listing(tmp_path, [halves()]), cache=blocked / "below")
    check_dense(listing(tmp_path, [halves()]))
    assert not cache_folder().exists()
    assert cache_folder() == tmp_path / "cache"


def test_values_progress(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    look_at(listing(tmp_path, [halves()] * 20), "ids", lambda done, of: steps.append((done, of)))
    assert steps[-1] == (20, 20)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_values_look() -> None:
    look = Look((4, 3), "RGB", 2**64 - 1, "ab", None, (4, 3), None, {0: 5, 70000: 7}, True)
    assert Look.from_dict(json.loads(json.dumps(look.as_dict()))) == look


def test_values_kinds(tmp_path: Path) -> None:
    """A place that holds masks is told from one that holds images in folders per class."""
    listing(tmp_path / "set", [halves(), halves()])
    assert kind_of(tmp_path / "set") == "segmentation"
    assert kind_of(tmp_path / "set" / "images") == "images"
    for name in ("mask", "no_mask"):  # two classes, not masks
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.fromarray(picture(1)).save(tmp_path / "classes" / name / "1.jpg")
    assert kind_of(tmp_path / "classes") == "images"
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in (tmp_path / "set").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path / "set").as_posix())
    assert kind_of(tmp_path / "set.zip") == "segmentation"
    (tmp_path / "set" / "pairs.txt").write_text("images/0.png masks/0.png\n")
    (tmp_path / "set" / "list.txt").write_text("images/0.png 3\n")
    (tmp_path / "set" / "pairs.csv").write_text("image,label\nimages/0.png,masks/0.png\n")
    (tmp_path / "set" / "list.csv").write_text("image,label\nimages/0.png,cat\n")
    (tmp_path / "set" / "marks.json").write_text('{"images": [], "annotations": []}')
    (tmp_path / "set" / "other.json").write_text("[1]")
    kinds = {file.name: kind_of(file) for file in (tmp_path / "set").iterdir() if file.is_file()}
    assert kinds == {
        "pairs.txt": "segmentation",
        "list.txt": "images",
        "pairs.csv": "segmentation",
        "list.csv": "images",
        "marks.json": "segmentation",
        "other.json": None,
    }


def test_values_sources(tmp_path: Path) -> None:
    """A recipe's classes and groups count, and broken data is described."""
    listing(tmp_path, [halves(), halves(0, 7)])
    source = DenseFiles(path=str(tmp_path), classes=ClassSection(names=("field", "road")), val_share=0)
    found = {one.code: one for one in check_source(source)}
    assert found["label_values"].severity == "error"
    assert check_source_masks(ImageFiles(path=str(tmp_path))) is None
    assert check_masks(str(tmp_path / "images")) is None
    assert check_masks("pyg:Cora") is None
    assert {one.code for one in check_place(str(tmp_path))} >= {"images", "no_class_map"}


def test_values_command(tmp_path: Path) -> None:
    listing(tmp_path / "set", [halves(), halves(0, 0)])
    (tmp_path / "set" / "classes.json").write_text('{"names": ["field", "road"]}')
    answer = cli("data", "check", tmp_path / "set", "--page", tmp_path / "page.html", "--json")
    assert answer.code == 0, answer.err
    shown = {one["code"]: one["message"] for one in json.loads(answer.out)}
    assert shown["classes"] == "2 classes by pixels: field 75 %, road 25 %"
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<img") == 2
    (tmp_path / "set" / "masks" / "0.png").write_bytes(b"")
    broken = cli("data", "check", tmp_path / "set")
    assert broken.code == 2
    assert "unreadable_mask" in broken.out


@pytest.mark.real
def test_values_camvid(data_root: Path) -> None:
    path = data_root / "camvid" / "camvid.zip"
    if not path.exists():
        pytest.skip("CamVid is not here")
    found = check_dense(path)
    assert codes(found)["images"] == ("info", 530)
    assert codes(found)["classes"] == ("info", 11)
    assert codes(found)["sequence_leak"][0] == "warning"
    assert not {one.code for one in found.findings if one.severity == "error"}
    assert found.classes.names == class_map("camvid-11").names
