"""Where images and masks lie: folders of one's own, public layouts, lists and tables; and what is missing in them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leanlabel.data.dense_files import list_dense
from leanlabel.data.dense_listing import DenseListing
from leanlabel.data.dense_lists import part_of, read_split, write_split
from leanlabel.errors import InputError


def fill(root: Path, names: list[str] | str) -> Path:
    """Small pictures under these names."""
    for name in names.split() if isinstance(names, str) else names:
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 3), np.uint8)).save(place)
    return root


def packed(root: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(root).as_posix())
    return path


def pairs(listing: DenseListing) -> dict[str, str | None]:
    """Id -> name of the mask, as far as it says."""
    names = {} if listing.masks is None else listing.masks.names  # type: ignore[union-attr]
    rows = [listing.mask_row(row) for row in range(len(listing))]
    return {name: names[at] if at >= 0 else None for name, at in zip(listing.ids, rows, strict=True)}


def parts(listing: DenseListing) -> dict[str, list[str]]:
    return {part: [listing.ids[row] for row in rows.tolist()] for part, rows in listing.splits.items()}


def groups(listing: DenseListing) -> list[str]:
    assert listing.groups is not None
    assert listing.group_names is not None
    return [listing.group_names[k] for k in listing.groups.tolist()]


# files -> id -> mask, parts, groups
FOLDERS: dict[str, tuple[str, dict[str, str | None], dict[str, list[str]], list[str] | None]] = {
    "stem": (
        "images/a.jpg images/b.png masks/a.png masks/b.png",
        {"a.jpg": "masks/a.png", "b.png": "masks/b.png"},
        {},
        None,
    ),
    "capitals": ("Images/a.jpg Annotations/a.png", {"a.jpg": "Annotations/a.png"}, {}, None),
    "suffix": ("img/a.png gt/a_mask.png", {"a.png": "gt/a_mask.png"}, {}, None),
    "both": ("img/a_img.png gt/a_gt.png", {"a_img.png": "gt/a_gt.png"}, {}, None),
    "beside": ("a.jpg a_mask.png b.jpg b_mask.png", {"a.jpg": "a_mask.png", "b.jpg": "b_mask.png"}, {}, None),
    "satellite": ("x/1_sat.jpg x/1_mask.png", {"1_sat.jpg": "x/1_mask.png"}, {}, None),
    "below": ("a.jpg masks/a.png", {"a.jpg": "masks/a.png"}, {}, None),
    "parts above": (
        "train/images/a.png train/masks/a.png valid/images/b.png valid/masks/b.png",
        {"train/a.png": "train/masks/a.png", "valid/b.png": "valid/masks/b.png"},
        {"train": ["train/a.png"], "val": ["valid/b.png"]},
        None,
    ),
    "parts below": (
        "images/train/a.png images/test_dusk/b.png labels/train/a.png labels/test_dusk/b.png",
        {"test_dusk/b.png": "labels/test_dusk/b.png", "train/a.png": "labels/train/a.png"},
        {"test_dusk": ["test_dusk/b.png"], "train": ["train/a.png"]},
        None,
    ),
    "same names": (
        "images/s/1.png images/t/1.png masks/s/1.png masks/t/1.png",
        {"s/1.png": "masks/s/1.png", "t/1.png": "masks/t/1.png"},
        {},
        ["s", "t"],
    ),
    "wrapped": ("data/set/images/a.png data/set/masks/a.png", {"a.png": "data/set/masks/a.png"}, {}, None),
    "flat masks": (
        "images/train/a.png images/val/b.png masks/a.png masks/b.png",
        {"train/a.png": "masks/a.png", "val/b.png": "masks/b.png"},
        {"train": ["train/a.png"], "val": ["val/b.png"]},
        None,
    ),
    "unlabelled part": (
        "images/train/a.png images/test/b.png masks/train/a.png",
        {"test/b.png": None, "train/a.png": "masks/train/a.png"},
        {"test": ["test/b.png"], "train": ["train/a.png"]},
        None,
    ),
    "further pictures": (
        "images/a.png gt/a_labelIds.png gt/a_labelTrainIds.png gt/a_color.png gt/a_instanceIds.png",
        {"a.png": "gt/a_labelIds.png"},
        {},
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_values(case: str, tmp_path: Path) -> None:
    """Folders, and the same in a .zip."""
    names, expected, expected_parts, expected_groups = FOLDERS[case]
    root = fill(tmp_path / "set", names)
    for place in (root, packed(root, tmp_path / "set.zip")):
        listing = list_dense(place)
        assert pairs(listing) == expected
        assert parts(listing) == expected_parts
        assert (None if listing.groups is None else groups(listing)) == expected_groups
        assert listing.faults == []
        assert listing.name == "set"


def test_values_named(tmp_path: Path) -> None:
    root = fill(tmp_path, "foto/a.png deep/er/a.png deep/other/a.png")
    listing = list_dense(root, images="foto", masks="deep/er")
    assert pairs(listing) == {"a.png": "deep/er/a.png"}
    with pytest.raises(InputError, match=r"data.masks: no folder 'deeper'.*deep/er, deep/other, foto"):
        list_dense(root, images="foto", masks="deeper")
    with pytest.raises(InputError, match="nothing that looks like masks"):
        list_dense(root)
    assert pairs(list_dense(root, images="foto", labels="none")) == {"a.png": None}
    three = fill(tmp_path / "three", "images/a.png masks/a.png labels/a.png")
    assert pairs(list_dense(three, masks="labels")) == {"a.png": "labels/a.png"}


def test_values_splits(tmp_path: Path) -> None:
    """Split files say what belongs where, by id, path or stem, with or without an ending."""
    root = fill(tmp_path, "images/s/a.png images/s/b.png images/t/c.png images/t/a.png "
                          "masks/s/a.png masks/s/b.png masks/t/c.png masks/t/a.png")  # fmt: skip
    (root / "splits").mkdir()
    (root / "splits/train.txt").write_bytes(b"# own\r\ns/a\r\n\r\nimages/s/b.png\r\n")
    (root / "splits/validation.txt").write_text("c\n")
    (root / "splits/test_rain.txt").write_text("t/a.png masks/t/a.png\n")
    found = list_dense(root)
    assert found.faults == []
    assert parts(found) == {"train": ["s/a.png", "s/b.png"], "val": ["t/c.png"], "test_rain": ["t/a.png"]}
    (root / "splits/test_rain.txt").write_text("a\nnope\nt/a\n")
    found = list_dense(root)
    assert [one.message.partition("line ")[2] for one in found.faults] == [
        "1: 'a' names several images",
        "2: 'nope' names no image that is here",
    ]
    own = fill(tmp_path / "own", "images/a.png images/b.png masks/a.png masks/b.png")
    (own / "train.txt").write_text("a")
    (own / "readme.txt").write_text("anything")
    assert parts(list_dense(own)) == {"train": ["a.png"]}


def test_state_splits(tmp_path: Path) -> None:
    names = ["train/a.jpg", "b c.png", "ü.png"]
    write_split(tmp_path / "train.txt", names)
    assert read_split(tmp_path / "train.txt") == names
    assert [file.name for file in tmp_path.iterdir()] == ["train.txt"]
    for wrong in ("", " a", "#a", "a\nb"):
        with pytest.raises(InputError, match="cannot be a line"):
            write_split(tmp_path / "x.txt", [wrong])
    with pytest.raises(InputError, match="cannot be written"):
        write_split(tmp_path / "no" / "x.txt", ["a"])
    with pytest.raises(InputError):
        read_split(tmp_path / "none.txt")
    assert [part_of(name) for name in ("VALID", "test-2", "trainer", "testannot")] == [
        "val",
        "test-2",
        None,
        None,
    ]


def test_values_cityscapes(tmp_path: Path) -> None:
    names = [
        f"{top}/{part}/{city}/{city}_0_{k}{end}.png"
        for part, city in (("train", "aachen"), ("train", "ulm"), ("val", "bonn"))
        for k in range(2)
        for top, end in (
            ("leftImg8bit", "_leftImg8bit"),
            ("gtFine", "_gtFine_labelIds"),
            ("gtFine", "_gtFine_color"),
        )
    ]
    names += ["leftImg8bit/test/berlin/berlin_0_0_leftImg8bit.png"]
    root = fill(tmp_path / "a", names)
    listing = list_dense(root)
    assert listing.faults == []
    assert listing.facts["layout"] == "cityscapes"
    assert listing.classes is not None
    assert listing.classes.name == "cityscapes-19"
    assert {part: len(rows) for part, rows in listing.splits.items()} == {"train": 4, "val": 2, "test": 1}
    assert groups(listing) == ["berlin", *["aachen"] * 2, *["ulm"] * 2, *["bonn"] * 2]
    assert (
        pairs(listing)["val/bonn/bonn_0_1_leftImg8bit.png"] == "gtFine/val/bonn/bonn_0_1_gtFine_labelIds.png"
    )
    assert pairs(listing)["test/berlin/berlin_0_0_leftImg8bit.png"] is None
    (root / names[1]).unlink()
    (root / "leftImg8bit/val/bonn/bonn_0_0_leftImg8bit.png").unlink()
    faults = list_dense(root).faults
    assert sorted(one.code for one in faults) == ["missing_image", "missing_mask"]
    trained = fill(tmp_path / "b", [name.replace("labelIds", "labelTrainIds") for name in names])
    found = list_dense(trained).classes
    assert found is not None
    assert found.name == "cityscapes-19-train-ids"


@pytest.mark.parametrize(
    ("files", "layout", "classes", "form", "mask"),
    [
        ("gta5/images/1.png gta5/labels/1.png", "gta5", "gta5-19", "either", "labels/1.png"),
        ("RAND/RGB/1.png RAND/GT/LABELS/1.png RAND/GT/COLOR/1.png", "synthia", "synthia-16", "red", "GT/LABELS/1.png"),
        ("s/img/rgb/1.png s/img/class/1.png", "synscapes", "synscapes-19", "ids", "img/class/1.png"),
    ],
)  # fmt: skip
def test_values_synthetic(
    tmp_path: Path, files: str, layout: str, classes: str, form: str, mask: str
) -> None:
    root = fill(tmp_path, files) / files.split("/")[0]
    for listing in (list_dense(root), list_dense(root, layout=layout)):  # type: ignore[arg-type]
        assert listing.facts["layout"] == layout
        assert listing.classes is not None
        assert (listing.classes.name, listing.form) == (classes, form)
        assert pairs(listing) == {"1.png": mask}


def test_values_voc(tmp_path: Path) -> None:
    top = tmp_path / "VOCdevkit" / "VOC2012"
    fill(top, [f"JPEGImages/{k}.jpg" for k in range(6)] + [f"SegmentationClass/{k}.png" for k in range(4)])
    lists = top / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, text in (("train", "0\n2\n"), ("val", "1\n3\n"), ("trainval", "0\n1\n2\n3\n"), ("test", "5\n")):
        (lists / f"{part}.txt").write_text(text)
    listing = list_dense(tmp_path)
    assert listing.classes is not None
    assert listing.classes.name == "voc-21"
    assert parts(listing) == {"train": ["0.jpg", "2.jpg"], "val": ["1.jpg", "3.jpg"], "test": ["5.jpg"]}
    assert listing.facts["outside_splits"] == 1
    assert listing.faults == []
    assert pairs(listing)["5.jpg"] is None
    (lists / "val.txt").write_text("1\n99\n")
    assert "line 2: '99' names no image" in list_dense(tmp_path).faults[0].message


def test_values_camvid(tmp_path: Path) -> None:
    folders = fill(
        tmp_path / "CamVid",
        "train/0001TP_1.png trainannot/0001TP_1.png test/Seq05VD_f1.png testannot/Seq05VD_f1.png",
    )
    listing = list_dense(folders)
    assert listing.facts["layout"] == "camvid"
    assert sorted(groups(listing)) == ["0001TP", "Seq05VD"]
    assert sorted(listing.splits) == ["test", "train"]
    packed_set = fill(
        tmp_path / "own",
        "images/train/0001TP_1.jpg labels/train/0001TP_1.png "
        "images/test_dusk/0001TP_2.jpg labels/test_dusk/0001TP_2.png",
    )
    (packed_set / "splits").mkdir()
    (packed_set / "splits/train.txt").write_text("0001TP_1\n")
    (packed_set / "splits/test_dusk.txt").write_text("0001TP_2\n")
    assert list_dense(packed_set).facts["layout"] == "folders"  # nothing says what it is
    names = "sky building pole road pavement tree sign_symbol fence car pedestrian bicyclist unlabelled"
    (packed_set / "classes.json").write_text(json.dumps({"names": names.split(), "ignore_index": 11}))
    for place in (packed_set, packed(packed_set, tmp_path / "camvid.zip")):
        listing = list_dense(place)
        assert listing.facts["layout"] == "camvid"
        assert listing.classes is not None
        assert listing.classes.name == "camvid-11"
        assert groups(listing) == ["0001TP"] * 2
        assert parts(listing) == {"test_dusk": ["test_dusk/0001TP_2.jpg"], "train": ["train/0001TP_1.jpg"]}


def test_values_lists(tmp_path: Path) -> None:
    root = fill(tmp_path, "i/a.png i/b.png m/x.png m/y.png")
    (root / "list.txt").write_text("# image mask\ni/a.png m/x.png\n\ni/b.png m/y.png\n")
    assert pairs(list_dense(root / "list.txt")) == {"i/a.png": "m/x.png", "i/b.png": "m/y.png"}
    (root / "list.txt").write_text("i/a.png\ni/b.png\n")
    assert pairs(list_dense(root / "list.txt")) == {"i/a.png": None, "i/b.png": None}
    (root / "list.csv").write_text("image,mask,split,group\ni/a.png,m/x.png,train,p1\ni/b.png,,test_b,p2\n")
    listing = list_dense(root / "list.csv")
    assert pairs(listing) == {"i/a.png": "m/x.png", "i/b.png": None}
    assert parts(listing) == {"train": ["i/a.png"], "test_b": ["i/b.png"]}
    assert groups(listing) == ["p1", "p2"]
    (root / "list.csv").write_text("Foto;Maske\ni/a.png;m/x.png\n")
    assert pairs(list_dense(root / "list.csv", images="Foto", masks="Maske")) == {"i/a.png": "m/x.png"}
    with pytest.raises(InputError, match=r"columns Foto, Maske, none of them 'image'"):
        list_dense(root / "list.csv")


def test_errors_lists(tmp_path: Path) -> None:
    root = fill(tmp_path, "a.png b.png")
    (root / "l.txt").write_text("a.png b.png\nc.png d.png\n")
    faults = list_dense(root / "l.txt").faults
    assert [one.message.partition("l.txt, ")[2] for one in faults] == [
        "line 2: the image 'c.png' does not exist",
        "line 2: the mask 'd.png' does not exist",
    ]
    (root / "l.txt").write_text("a.png b.png\na.png\n")
    with pytest.raises(InputError, match="line 2: 1 columns, expected 2"):
        list_dense(root / "l.txt")
    (root / "l.txt").write_text("a.png b.png\na.png b.png\n")
    with pytest.raises(InputError, match=r"lines 1 and 2 both name 'a\.png'"):
        list_dense(root / "l.txt")
    (root / "l.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match="names no image"):
        list_dense(root / "l.txt")
    (root / "l.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="not UTF-8"):
        list_dense(root / "l.txt")


def test_errors(tmp_path: Path) -> None:
    """Every pair that is not complete is a fault, and says which."""
    root = fill(tmp_path / "a", "images/a.png images/b.png masks/a.png masks/c.png")
    found = {one.code: one for one in list_dense(root).faults}
    assert found["missing_mask"].message == f"{root / 'images/b.png'}: no mask belongs to this image"
    assert found["missing_mask"].row == 1
    assert found["missing_image"].message == f"{root / 'masks/c.png'}: no image belongs to this mask"
    assert list_dense(root, labels="none").faults == []
    twice = fill(tmp_path / "b", "images/a.png masks/a.png masks/a.tif")
    assert {one.code for one in list_dense(twice).faults} == {"two_masks"}
    shared = fill(tmp_path / "c", "images/a.png images/a.jpg masks/a.png")
    assert [one.code for one in list_dense(shared).faults] == ["two_masks"]
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "no", "does not exist"),
        (tmp_path / "empty", r"holds no image files \(0 other files\)"),
        (root / "images/a.png", "not a set of images and masks.*single image"),
    ):
        with pytest.raises(InputError, match=message):
            list_dense(path)
    with pytest.raises(InputError, match="the layout coco is a file"):
        list_dense(root, layout="coco")
    with pytest.raises(InputError, match="the layout voc has its own"):
        list_dense(root, layout="voc", images="images")
    (root / "l.txt").write_text("images/a.png masks/a.png")
    with pytest.raises(InputError, match="read with the layout list, not csv"):
        list_dense(root / "l.txt", layout="csv")
    with pytest.raises(InputError, match="no images that its layout would show"):
        list_dense(root, layout="synthia")


def test_errors_zip(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/a.png", b"x")
        archive.writestr("../masks/a.png", b"x")
    with pytest.raises(InputError, match=r"'../masks/a.png' would leave the folder"):
        list_dense(path)
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match=r"not a complete \.zip"):
        list_dense(path)


@pytest.mark.parametrize(
    ("text", "names", "ids", "ignored"),
    [
        ('["a", "b"]', ("a", "b"), {0: 0, 1: 1}, {255}),
        ('{"names": ["void", "a", "b"], "ignore_index": 0}', ("a", "b"), {1: 0, 2: 1}, {0}),
        ('{"names": ["a", "b"], "ignore_index": 9}', ("a", "b"), {0: 0, 1: 1}, {9}),
        ('{"names": ["a"], "ids": {"0": 0, "255": 0}}', ("a",), {0: 0, 255: 0}, set()),
        ('{"names": ["a"], "colors": [[1, 2, 3]], "ignored": [4]}', ("a",), {0: 0}, {4}),
    ],
)
def test_values_classes(
    tmp_path: Path, text: str, names: tuple[str, ...], ids: dict[int, int], ignored: set[int]
) -> None:
    root = fill(tmp_path, "images/a.png masks/a.png")
    (root / "classes.json").write_text(text)
    found = list_dense(root).classes
    assert found is not None
    assert (found.names, dict(found.ids), set(found.ignored)) == (names, ids, ignored)


def test_errors_classes(tmp_path: Path) -> None:
    root = fill(tmp_path, "images/a.png masks/a.png")
    (root / "classes.txt").write_text("sky\n# comment\nroad\n")
    found = list_dense(root).classes
    assert found is not None
    assert found.names == ("sky", "road")
    for text, message in (
        ("{", "not complete JSON"),
        ('{"x": 1}', "no list `names`"),
        ('{"names": ["a", "a"]}', r"classes.json does not describe classes: .*'a' occurs twice"),
        ('{"names": ["a"], "ids": {"x": 0}}', "does not describe classes"),
        ('{"names": ["a"], "ignore_index": "x"}', "does not describe classes"),
    ):
        (root / "classes.json").write_text(text)
        with pytest.raises(InputError, match=message):
            list_dense(root)
