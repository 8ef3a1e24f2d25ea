"""Images and masks read from disk: what is counted, cut and kept, and what is refused before training."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanlabel.data import dense_look
from leanlabel.data.class_map import class_map, plain_map
from leanlabel.data.dense import DenseImages, MaskArray, MaskFiles
from leanlabel.data.dense_files import list_dense, read_dense
from leanlabel.data.dense_parts import keep_groups
from leanlabel.data.images import PixelArray, PixelFiles
from leanlabel.errors import InputError

CLASSES = plain_map(["sky", "road", "car"])


def picture(seed: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)


def labels(seed: int, size: tuple[int, int] = (6, 8), values: tuple[int, ...] = (0, 1, 2, 255)) -> np.ndarray:
    return np.random.default_rng(seed + 100).choice(np.array(values, np.uint8), size)


def fill(root: Path, names: list[str], sizes: list[tuple[int, int]] | None = None) -> Path:
    """Pairs of images and masks under images/ and masks/."""
    for row, name in enumerate(names):
        size = sizes[row] if sizes else (6, 8)
        for folder, content in (("images", picture(row, size)), ("masks", labels(row, size))):
            place = root / folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(place)
    return root


def parts(data: DenseImages) -> dict[str, list[str]]:
    assert data.ids is not None
    return {part: [data.ids[row] for row in rows.tolist()] for part, rows in data.splits.items()}


@pytest.mark.parametrize("load", ["auto", "memory", "disk"])
def test_values(load: str, tmp_path: Path) -> None:
    names = ["train/a.png", "train/b.png", "val/c.png"]
    data = read_dense(fill(tmp_path, names), classes=CLASSES, load=load)  # type: ignore[arg-type]
    assert isinstance(data.pixels, PixelFiles if load == "disk" else PixelArray)
    assert isinstance(data.masks, MaskFiles if load == "disk" else MaskArray)
    assert (data.shape, data.ids, data.num_classes) == ((3, 6, 8), names, 3)
    images, masks = data.read([2, 0])
    assert (images.dtype, masks.dtype) == (torch.uint8, torch.uint8)
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), picture(2))
    assert np.array_equal(masks.numpy(), np.stack([labels(2), labels(0)]))
    every = np.stack([labels(k) for k in range(3)])
    facts = data.facts
    assert facts["class_pixels"] == [int((every == k).sum()) for k in range(3)]
    assert facts["train_class_pixels"] == [int((every[:2] == k).sum()) for k in range(3)]
    assert facts["class_images"] == [3, 3, 3]
    assert facts["ignore_share"] == pytest.approx(float((every == 255).mean()))
    assert (facts["all_ignore"], facts["unlabelled"], facts["layout"]) == (0, 0, "folders")
    assert parts(data) == {"train": names[:2], "val": names[2:]}


@pytest.mark.parametrize("load", ["memory", "disk"])
def test_reference_resize(load: str, tmp_path: Path) -> None:
    """Images are scaled antialiased, masks take the value under each new pixel's centre."""
    root = tmp_path
    ids = np.arange(24 * 36, dtype=np.uint8).reshape(24, 36) % 3
    shade = (ids * 100).astype(np.uint8)
    for folder, content in (("images", np.stack([shade] * 3, -1)), ("masks", ids)):
        (root / folder).mkdir()
        Image.fromarray(content).save(root / folder / "a.png")
    data = read_dense(root, classes=CLASSES, resize=10, load=load)  # type: ignore[arg-type]
    images, masks = data.read([0])
    assert data.shape == (3, 10, 15)
    expected = [[ids[int((y + 0.5) * 2.4), int((x + 0.5) * 2.4)] for x in range(15)] for y in range(10)]
    assert masks[0].tolist() == expected
    smooth = Image.fromarray(np.stack([shade] * 3, -1)).resize(
        (15, 10), Image.Resampling.BICUBIC, reducing_gap=3
    )
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), np.asarray(smooth))
    assert sum(data.facts["class_pixels"]) == 24 * 36


def test_values_sizes(tmp_path: Path) -> None:
    """Images of different sizes stay on disk, also odd ones."""
    root = fill(tmp_path, ["a.png", "b.png", "c.png"], [(6, 8), (5, 7), (1, 1)])
    data = read_dense(root, classes=CLASSES, val_share=0)
    assert data.shape is None
    assert isinstance(data.pixels, PixelFiles)
    images, masks = data.read([0, 1, 2])
    assert [tuple(one.shape) for one in masks] == [(6, 8), (5, 7), (1, 1)]
    assert [tuple(one.shape[1:]) for one in images] == [(6, 8), (5, 7), (1, 1)]
    with pytest.raises(InputError, match="different sizes"):
        read_dense(root, classes=CLASSES, load="memory")


def test_values_memory_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_look, "IN_MEMORY", 100)
    assert isinstance(read_dense(fill(tmp_path, ["a.png"]), classes=CLASSES).pixels, PixelFiles)


def test_values_unlabelled(tmp_path: Path) -> None:
    root = fill(tmp_path, ["train/a.png", "test/b.png"])
    (root / "masks/test/b.png").unlink()
    for load in ("memory", "disk"):
        data = read_dense(root, classes=CLASSES, load=load, val_share=0)  # type: ignore[arg-type]
        assert data.ids == ["test/b.png", "train/a.png"]
        assert data.facts["unlabelled"] == 1
        _, masks = data.read([0, 1])
        assert masks[0].unique().tolist() == [255]
        assert np.array_equal(masks[1].numpy(), labels(0))
    alone = read_dense(root, labels="none")
    assert alone.masks is None
    assert "class_pixels" not in alone.facts
    assert "val_seed" not in alone.facts
    assert alone.read([0])[1] is None


def test_values_validation(tmp_path: Path) -> None:
    """A validation part is cut by images, by groups or in blocks, with a fixed seed, and never silently."""
    plain = fill(tmp_path / "a", [f"{k:02}.png" for k in range(20)])
    data = read_dense(plain, classes=CLASSES, val_share=0.2)
    assert (len(data.splits["train"]), len(data.splits["val"])) == (16, 4)
    assert {
        "val_cut_from_train": 4,
        "val_seed": 0,
        "val_share": 0.2,
        "val_by": "images",
    }.items() <= data.facts.items()
    assert parts(data) == parts(read_dense(plain, classes=CLASSES, val_share=0.2))
    assert sorted(torch.cat(list(data.splits.values())).tolist()) == list(range(20))
    tail = read_dense(plain, classes=CLASSES, val_share=0.2, split_by="sequence")
    assert parts(tail)["val"] == ["16.png", "17.png", "18.png", "19.png"]
    none = read_dense(plain, classes=CLASSES, val_share=0)
    assert list(none.splits) == ["train"]

    grouped = fill(tmp_path / "b", [f"{group}/{k}.png" for group in "stuvw" for k in range(4)])
    data = read_dense(grouped, classes=CLASSES, val_share=0.2)
    assert data.facts["val_by"] == "groups"
    assert len(data.facts["val_groups"]) == 1
    assert data.groups is not None
    shared = set(data.groups[data.splits["train"]].tolist()) & set(data.groups[data.splits["val"]].tolist())
    assert shared == set()
    few = fill(tmp_path / "c", [f"{group}/{k:02}.png" for group in "st" for k in range(10)])
    data = read_dense(few, classes=CLASSES, val_share=0.2)
    assert data.facts["val_by"] == "blocks"
    assert parts(data)["val"] == ["s/08.png", "s/09.png", "t/08.png", "t/09.png"]
    assert read_dense(few, classes=CLASSES, val_share=0.2, split_by="image").facts["val_by"] == "images"

    given = fill(tmp_path / "d", ["train/a.png", "val/b.png"])
    assert "val_seed" not in read_dense(given, classes=CLASSES, val_share=0.5).facts


def test_values_groups(tmp_path: Path) -> None:
    root = fill(tmp_path, ["train/day/1.png", "train/day/2.png", "train/dusk/3.png", "val/day/4.png"])
    day = read_dense(root, classes=CLASSES, without_groups=["dusk"])
    assert day.ids == ["train/day/1.png", "train/day/2.png", "val/day/4.png"]
    assert parts(day) == {"train": ["train/day/1.png", "train/day/2.png"], "val": ["val/day/4.png"]}
    dusk = read_dense(root, classes=CLASSES, only_groups=["dusk"], val_share=0)
    assert parts(dusk) == {"train": ["train/dusk/3.png"]}
    assert dusk.facts["groups_kept"] == ["dusk"]
    assert sum(dusk.facts["class_pixels"]) < 48
    with pytest.raises(InputError, match=r"data.only_groups: there is no group 'dask'. Nearest: dusk"):
        read_dense(root, classes=CLASSES, only_groups=["dask"])
    with pytest.raises(InputError, match="leave no image"):
        read_dense(root, classes=CLASSES, only_groups=["dusk"], without_groups=["dusk"])
    with pytest.raises(InputError, match="need groups"):
        read_dense(fill(tmp_path / "x", ["a.png"]), classes=CLASSES, only_groups=["dusk"])


def test_values_limit(tmp_path: Path) -> None:
    root = fill(tmp_path, [f"train/{k}.png" for k in range(9)] + [f"val/{k}.png" for k in range(3)])
    data = read_dense(root, classes=CLASSES, limit=4)
    assert (len(data), len(data.splits["train"]), len(data.splits["val"])) == (4, 3, 1)
    assert data.facts["limited_from"] == 12
    assert data.ids == read_dense(root, classes=CLASSES, limit=4).ids
    assert len(read_dense(root, classes=CLASSES, limit=99)) == 12
    with pytest.raises(InputError, match="at least 1"):
        read_dense(root, classes=CLASSES, limit=0)


def test_values_bands(tmp_path: Path) -> None:
    """Grey images of 16 bits, read as one band."""
    values = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    root = fill(tmp_path, ["a.png"])
    Image.fromarray(values).save(root / "images/a.png")
    for load in ("memory", "disk"):
        data = read_dense(root, classes=CLASSES, bands=[], white=50_000, val_share=0, load=load)  # type: ignore[arg-type]
        images, _ = data.read([0])
        assert data.shape == (1, 6, 8)
        assert images.dtype == torch.float32
        assert torch.allclose(images[0, 0], torch.from_numpy(values.astype(np.float32) / 50_000))


def test_values_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    read_dense(
        fill(tmp_path, [f"{k}.png" for k in range(40)]),
        classes=CLASSES,
        progress=lambda a, b: seen.append((a, b)),
    )
    assert seen == [(16, 40), (32, 40), (40, 40)]


def test_degenerate(tmp_path: Path) -> None:
    """Masks without any class are allowed and counted, classes that never occur have zero pixels."""
    root = fill(tmp_path, ["a.png", "b.png"])
    Image.fromarray(np.full((6, 8), 255, np.uint8)).save(root / "masks/a.png")
    Image.fromarray(np.ones((6, 8), np.uint8)).save(root / "masks/b.png")
    data = read_dense(root, classes=CLASSES, val_share=0)
    assert data.facts["all_ignore"] == 1
    assert data.facts["class_pixels"] == [0, 48, 0]
    assert data.facts["class_images"] == [0, 1, 0]
    assert data.facts["ignore_share"] == 0.5


def broken(root: Path, fault: str) -> Path:
    """A set of four pairs with one thing wrong."""
    fill(root, [f"{name}.png" for name in "abcd"])
    image, mask = root / "images/b.png", root / "masks/b.png"
    good = mask.read_bytes()
    if fault == "size":
        Image.fromarray(labels(0, (5, 8))).save(mask)
    elif fault == "colour":
        Image.fromarray(picture(0)).save(mask)
    elif fault == "zero":
        mask.write_bytes(b"")
    elif fault == "cut":
        mask.write_bytes(good[:45])
    elif fault == "image":
        image.write_bytes(image.read_bytes()[:60])
    elif fault == "missing":
        mask.unlink()
    elif fault == "value":
        Image.fromarray(labels(0, values=(0, 7))).save(mask)
    elif fault == "deep":
        Image.fromarray(labels(0).astype(np.uint16) + 300).save(mask)
    return root


@pytest.mark.parametrize("load", ["memory", "disk"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("size", r"masks of another size than their image \(1\):\n *\S*masks/b.png: 8 x 5 pixels, its image has 8 x 6"),
        ("colour", r"masks/b.png: a colour picture \(48 colours"),
        ("zero", r"masks/b.png: the file is empty"),
        ("cut", r"masks/b.png: damaged or cut short"),
        ("image", r"images that cannot be read \(1\):\n *\S*images/b.png: damaged or cut short"),
        ("missing", r"images without a mask \(1\):\n *\S*images/b.png: no mask belongs"),
        ("value", r"label value 7 \(\d+ pixels\) not in the class map .*; in 1 of 4 masks, first in \S*masks/b.png"),
        ("deep", r"label values 300 \(.*\), 301 .*first in \S*masks/b.png"),
    ],
)  # fmt: skip
def test_errors(fault: str, message: str, load: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_dense(broken(tmp_path, fault), classes=CLASSES, load=load)  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["csv", "txt"])
def test_errors_spellings(ending: str, tmp_path: Path) -> None:
    """A file that is named twice is one image, however its path is written; so is a mask."""
    fill(tmp_path, ["a.png", "b.png"])
    head, path = ("image,mask\n" if ending == "csv" else "# image,mask\n"), tmp_path / f"list.{ending}"
    path.write_text(f"{head}images/a.png,masks/a.png\n./images//a.png,masks/b.png\n")
    with pytest.raises(
        InputError, match=r"lines 2 and 3 both name 'images/a.png' and './images//a.png'; 1 such"
    ):
        list_dense(path)
    path.write_text(f"{head}images/a.png,masks/a.png\nimages/b.png,images/../masks/a.png\n")
    assert [one.code for one in list_dense(path).faults] == ["two_masks"]


def test_errors_all_at_once(tmp_path: Path) -> None:
    root = broken(tmp_path, "size")
    broken_mask = root / "masks/c.png"
    broken_mask.write_bytes(b"")
    (root / "masks/d.png").unlink()
    Image.fromarray(labels(0, values=(0, 9))).save(root / "masks/a.png")
    with pytest.raises(InputError) as told:
        read_dense(root, classes=CLASSES)
    for part in (
        "images without a mask (1)",
        "another size",
        "masks that cannot be read (1)",
        "label value 9",
    ):
        assert part in told.value.message


@pytest.mark.parametrize("fault", ["zero", "image"])
@pytest.mark.parametrize("load", ["memory", "disk"])
def test_values_skipped(fault: str, load: str, tmp_path: Path) -> None:
    root = broken(tmp_path, fault)
    data = read_dense(root, classes=CLASSES, skip_unreadable=True, val_share=0.5, load=load)  # type: ignore[arg-type]
    assert data.ids == ["a.png", "c.png", "d.png"]
    assert data.facts["unreadable_skipped"] == 1
    assert sorted(torch.cat(list(data.splits.values())).tolist()) == [0, 1, 2]
    assert np.array_equal(data.read([1])[1][0].numpy(), labels(2))
    assert len(data.masks or ()) == 3


def test_errors_values(tmp_path: Path) -> None:
    """0/255 masks and maps that are off by one are called by their name."""
    root = fill(tmp_path, ["a.png", "b.png"])
    for k, name in enumerate("ab"):
        Image.fromarray(labels(k, values=(0, 255))).save(root / f"masks/{name}.png")
    for own in (CLASSES, plain_map(["a", "b"], ignored=())):
        with pytest.raises(InputError, match="binary mask written as 0/255"):
            read_dense(root, classes=own)
    binary = read_dense(root, classes=plain_map(["back", "cell"], ids={0: 0, 255: 1}), val_share=0)
    assert binary.read([0])[1].unique().tolist() == [0, 1]
    for k, name in enumerate("ab"):
        Image.fromarray(labels(k, values=(1, 2, 3))).save(root / f"masks/{name}.png")
    with pytest.raises(InputError, match="off by one"):
        read_dense(root, classes=CLASSES)
    for k, name in enumerate("ab"):
        Image.fromarray(labels(k, values=(0, 1, 13))).save(root / f"masks/{name}.png")
    with pytest.raises(InputError, match="train ids"):
        read_dense(root, classes=class_map("cityscapes-19"))
    with pytest.raises(InputError, match="nothing says what the values in masks mean"):
        read_dense(root)


def test_values_colours(tmp_path: Path) -> None:
    root = fill(tmp_path, ["a.png"])
    table = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
    ids = labels(0, values=(0, 1, 2))
    Image.fromarray(table[ids]).save(root / "masks/a.png")
    own = plain_map(["a", "b", "c"], [tuple(map(int, one)) for one in table], by_colour=True)  # type: ignore[misc]
    for load in ("memory", "disk"):
        data = read_dense(root, classes=own, val_share=0, load=load)  # type: ignore[arg-type]
        assert np.array_equal(data.read([0])[1][0].numpy(), ids)
        assert data.facts["class_pixels"] == [int((ids == k).sum()) for k in range(3)]
    two = plain_map(["a", "b"], [(255, 0, 0), (0, 255, 0)], by_colour=True)
    with pytest.raises(InputError, match=r"colour \(0, 0, 255\) .*first in \S*masks/a.png"):
        read_dense(root, classes=two)


def test_values_unverified(tmp_path: Path) -> None:
    """Heads alone show sizes, not values."""
    root = broken(tmp_path, "value")
    data = read_dense(root, classes=CLASSES, verify=False, load="disk")
    assert "class_pixels" not in data.facts
    with pytest.raises(InputError, match=r"masks/b.png: label value 7"):
        data.read([1])
    with pytest.raises(InputError, match="another size"):
        read_dense(broken(tmp_path / "x", "size"), classes=CLASSES, verify=False, load="disk")


def test_values_listing_missing(tmp_path: Path) -> None:
    root = fill(tmp_path, ["a.png"])
    (root / "l.txt").write_text("images/a.png masks/a.png\nimages/z.png masks/a2.png\n")
    assert len(list_dense(root / "l.txt").faults) == 2
    with pytest.raises(InputError, match=r"named files that do not exist \(2\)") as told:
        read_dense(root / "l.txt", classes=CLASSES)
    assert "line 2: the image 'images/z.png'" in told.value.message
    assert "cannot be read:\n    " not in told.value.message.replace(
        "do not fit together or cannot be read:\n", ""
    )


def test_values_coco(tmp_path: Path) -> None:
    """Masks that are painted from polygons are resized and counted as files are."""
    Image.fromarray(picture(0, (10, 20))).save(tmp_path / "a.png")
    square = [0, 0, 10, 0, 10, 10, 0, 10]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "segmentation": [square]}],
        "categories": [{"id": 5, "name": "car"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    for load in ("memory", "disk"):
        data = read_dense(tmp_path / "set.json", resize=5, load=load)  # type: ignore[arg-type]
        assert data.classes.names == ("background", "car")
        assert data.read([0])[1][0].tolist() == [[1] * 5 + [0] * 5] * 5
        assert data.facts["class_pixels"] == [100, 100]
    assert read_dense(tmp_path / "set.json", labels="none", classes=CLASSES).masks is None


def test_values_turned(tmp_path: Path) -> None:
    """A photograph that is to be turned is compared with its mask as it is seen."""
    root = fill(tmp_path, ["a.png"])
    (root / "images/a.png").unlink()
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0, (8, 6))).save(file, "JPEG", exif=exif)
    (root / "images/a.jpg").write_bytes(file.getvalue())
    assert read_dense(root, classes=CLASSES, val_share=0).shape == (3, 6, 8)


@pytest.mark.real
def test_values_real_camvid(data_root: Path) -> None:
    path = data_root / "camvid" / "camvid.zip"
    if not path.exists():
        pytest.skip("CamVid is not here")
    data = read_dense(path, resize=120, limit=53)
    assert (data.shape, data.masks is not None and data.masks.shape) == ((3, 120, 160), (120, 160))
    assert {part: len(rows) for part, rows in data.splits.items()} == {"train": 37, "val": 10, "test_dusk": 6}
    assert 0 < data.facts["ignore_share"] < 0.1
    assert min(data.facts["class_pixels"]) > 0
    listing = list_dense(path)
    assert {part: len(rows) for part, rows in listing.splits.items()} == {
        "train": 367,
        "val": 101,
        "test_dusk": 62,
    }
    day = keep_groups(listing, without=["0001TP"])
    assert {part: len(rows) for part, rows in day.splits.items()} == {"train": 305, "val": 101}
    dusk = keep_groups(listing, only=["0001TP"])
    assert {part: len(rows) for part, rows in dusk.splits.items()} == {"train": 62, "test_dusk": 62}
