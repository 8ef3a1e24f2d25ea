"""Images from folders, zips, lists, arrays and published batches, and what is said when they are not sound."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from leanlabel.data import image_files
from leanlabel.data.image_files import read_images
from leanlabel.data.image_source import Glyphs, ImageFiles, open_images
from leanlabel.data.images import PixelArray, PixelFiles, fingerprint
from leanlabel.errors import InputError


def png(number: int, size: tuple[int, int] = (4, 4), kind: str = "PNG") -> bytes:
    """A picture of one colour that tells its number."""
    file = io.BytesIO()
    Image.new("RGB", size, (number, 100, 200)).save(file, kind)
    return file.getvalue()


def fill(root: Path, names: list[str], size: tuple[int, int] = (4, 4)) -> Path:
    """Pictures 0, 1, 2, ... under these names."""
    for number, name in enumerate(names):
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(number, size))
    return root


def packed(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, png(number))
    return path


def parts(images: object) -> dict[str, list[int]]:
    return {part: rows.tolist() for part, rows in images.splits.items()}  # type: ignore[attr-defined]


CLASSES = ["cat/1.png", "cat/2.PNG", "dog/deep/er/1.png", "dog/3.png"]
SPLITS = [
    f"{part}/{label}/{k}.png" for part in ("train", "valid", "Test") for label in "ab" for k in range(2)
]
DOMAINS = [f"{domain}/{label}/x.png" for domain in ("photo", "sketch") for label in ("cat", "dog")]
# name -> files, class names, labels, splits, domains
LAYOUTS: dict[
    str, tuple[list[str], list[str] | None, list[int] | None, dict[str, list[int]], list[int] | None]
] = {
    "flat": (["b.png", "a.png"], None, None, {}, None),
    "classes": (CLASSES, ["cat", "dog"], [0, 0, 1, 1], {}, None),
    "classes and one beside": ([*CLASSES, "z.png"], ["cat", "dog"], [0, 0, 1, 1, -100], {}, None),
    "classes in a folder": ([f"set/{one}" for one in CLASSES], ["cat", "dog"], [0, 0, 1, 1], {}, None),
    "one class": (["cat/1.png", "cat/2.png"], ["cat"], [0, 0], {}, None),
    # Sorted: Test, train, valid.
    "splits": (
        SPLITS,
        ["a", "b"],
        [0, 0, 1, 1] * 3,
        {"train": [4, 5, 6, 7], "val": [8, 9, 10, 11], "test": [0, 1, 2, 3]},
        None,
    ),
    "splits without labels": (
        ["train/1.png", "val/1.png", "other/1.png"],
        None,
        None,
        {"train": [1], "test": [2]},
        None,
    ),
    "only a training part": (["train/a/1.png", "train/b/1.png"], ["a", "b"], [0, 1], {}, None),
    "only a test part": (["test/a/1.png", "test/b/1.png"], ["a", "b"], [0, 1], {}, None),
    "no training part": (["test/a/1.png", "val/b/1.png"], ["a", "b"], [0, 1], {}, None),
    "a training part without labels": (["train/1.png"], None, None, {}, None),
    "splits with an unlabelled part": (
        ["train/a/1.png", "train/b/1.png", "test/1.png"],
        ["a", "b"],
        [-100, 0, 1],
        {"train": [1, 2], "test": [0]},
        None,
    ),
    "domains": (DOMAINS, ["cat", "dog"], [0, 1, 0, 1], {}, [0, 0, 1, 1]),
    "unicode": (["katze/ä.png", "犬/猫.png", "\u00a0/é.png"], ["katze", "\u00a0", "犬"], [0, 1, 2], {}, None),
}


@pytest.mark.parametrize("packing", ["folder", "zip"])
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_values_layouts(name: str, packing: str, tmp_path: Path) -> None:
    names, classes, labels, splits, domains = LAYOUTS[name]
    place = fill(tmp_path / "set", names) if packing == "folder" else packed(tmp_path / "set.zip", names)
    images = read_images(place, val_share=0)
    assert images.name == "set"
    assert images.class_names == classes
    assert (None if images.y is None else images.y.tolist()) == labels
    assert parts(images) == splits
    assert (None if images.domain is None else images.domain.tolist()) == domains
    assert images.ids == sorted(names)
    for row, own in enumerate(images.ids):
        assert images[row][:, 0, 0].tolist() == [names.index(own), 100, 200]


def test_values_layout_named(tmp_path: Path) -> None:
    """What folders mean can be said, and labels can be forgotten."""
    root = fill(tmp_path / "set", DOMAINS)
    assert read_images(root, layout="class").class_names == ["photo", "sketch"]
    assert read_images(root, layout="flat").y is None
    forgotten = read_images(root, labels="none")
    assert forgotten.y is None
    assert forgotten.class_names is None
    assert forgotten.domain_names == ["photo", "sketch"]
    assert forgotten.facts["layout"] == "domain/class"


def test_values_junk(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "set", ["cat/1.png", "dog/1.png", ".hidden/1.png", "cat/._1.png", "__MACOSX/cat/1.png"]
    )
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "readme.txt").write_text("x")
    (root / "bird").mkdir()
    images = read_images(root)
    assert images.ids == ["cat/1.png", "dog/1.png"]
    assert images.class_names == ["cat", "dog"]
    assert images.facts["other_files"] == 1
    assert images.facts["empty_folders"] == 1
    assert images.facts["modes"] == {"RGB": 2}


LISTS: dict[str, tuple[str, str, list[str] | None, list[int] | None]] = {
    "names": ("l.txt", "a.png cat\nb c.png dog\n\n# end\nd.png cat\n", ["cat", "dog"], [0, 1, 0]),
    "numbers": ("l.txt", "a.png 1\rb c.png 0\r\nd.png 2", None, [1, 0, 2]),
    "odd numbers": ("l.txt", "a.png 7\nb c.png -1\nd.png 10\n", ["7", "10"], [0, -100, 1]),
    "none": ("l.lst", "a.png\nb c.png\nd.png\n", None, None),
    "some": ("l.txt", "a.png\nb c.png\td e\nd.png f\n", ["d e", "f"], [-100, 0, 1]),
    "table": ("l.csv", "Path,label\na.png,x\nb c.png,\nd.png,y\n", ["x", "y"], [0, -100, 1]),
    "tabs": ("l.tsv", "label\tfile\nx\ta.png\ny\tb c.png\nx\td.png\n", ["x", "y"], [0, 1, 0]),
}


@pytest.mark.parametrize("name", list(LISTS))
def test_values_lists(name: str, tmp_path: Path) -> None:
    file, text, classes, labels = LISTS[name]
    fill(tmp_path, ["a.png", "b c.png", "d.png", "not listed.png"])
    (tmp_path / file).write_bytes(text.encode("utf-8-sig" if name == "none" else "utf-8"))
    images = read_images(tmp_path / file)
    assert images.ids == ["a.png", "b c.png", "d.png"]
    assert images.class_names == classes
    assert (None if images.y is None else images.y.tolist()) == labels
    assert images[2][0, 0, 0] == 2


def test_values_list_split(tmp_path: Path) -> None:
    fill(tmp_path, ["in/a.png", "in/b.png", "in/c.png", "in/d.png"])
    rows = "in/a.png,train,day\nin/b.png,validation,day\nin/c.png,test,night\nin/d.png,,day\n"
    (tmp_path / "l.csv").write_text("path,split,domain\n" + rows)
    images = read_images(tmp_path / "l.csv")
    assert parts(images) == {"train": [0], "val": [1], "test": [2]}
    assert images.domain_names == ["day", "night"]
    assert images.y is None


# ----------------------------------------------------------------------------------------------- packed arrays

GREY = np.arange(5 * 4 * 6, dtype=np.uint8).reshape(5, 4, 6)
COLOUR = np.arange(5 * 4 * 6 * 3, dtype=np.int64).astype(np.uint8).reshape(5, 4, 6, 3)


@pytest.mark.parametrize("key", ["image", "images", "x"])
def test_values_arrays(key: str, tmp_path: Path) -> None:
    wanted = {"grey": (GREY, np.stack([GREY] * 3, 1)), "last": (COLOUR, COLOUR.transpose(0, 3, 1, 2))}
    wanted["first"] = (wanted["last"][1], wanted["last"][1])
    wanted["one last"] = (GREY[..., None], wanted["grey"][1])
    wanted["one first"] = (GREY[:, None], wanted["grey"][1])
    for stored, pixels in wanted.values():
        np.savez(tmp_path / "a.npz", **{key: stored, "label": np.array([[3], [1], [1], [3], [-1]])})  # type: ignore[arg-type]
        images = read_images(tmp_path / "a.npz")
        assert torch.equal(images.read(range(5)), torch.from_numpy(pixels.copy()))  # type: ignore[arg-type]
        assert images.class_names == ["1", "3"]
        assert images.y is not None
        assert images.y.tolist() == [1, 0, 0, 1, -100]


@pytest.mark.parametrize("spelling", ["{part}_{key}", "{key}_{part}"])
def test_values_array_parts(spelling: str, tmp_path: Path) -> None:
    arrays = {
        spelling.format(part=part, key=key): array
        for part, rows in (("train", slice(0, 3)), ("test", slice(3, 5)))
        for key, array in (("x", GREY[rows]), ("y", np.array([0, 1, 0, 1, 1], np.uint8)[rows]))
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    images = read_images(tmp_path / "a.npz", val_share=0)
    assert parts(images) == {"train": [0, 1, 2], "test": [3, 4]}
    assert images.y is not None
    assert images.y.tolist() == [0, 1, 0, 1, 1]
    assert images.class_names is None
    assert images.num_classes == 2


def packed_npz(path: Path, numbers: list[int], labels: list[int]) -> None:
    files = [png(number, kind="JPEG") for number in numbers]
    offsets = np.cumsum([0, *map(len, files)])
    jpeg = np.frombuffer(b"".join(files), np.uint8)
    names = np.array(["cat", "dog"])
    np.savez(path, jpeg=jpeg, offsets=offsets, label=np.array(labels, np.uint8), class_names=names)


def test_values_packed_files(tmp_path: Path) -> None:
    """NAME_train.npz and NAME_test.npz of image files, kept in memory or decoded on demand."""
    packed_npz(tmp_path / "set_train.npz", [10, 20, 30], [0, 1, 0])
    packed_npz(tmp_path / "set_test.npz", [40, 50], [1, 1])
    images = read_images(tmp_path, val_share=0)
    lazy = read_images(tmp_path, val_share=0, load="disk")
    assert isinstance(images.pixels, PixelArray)
    assert isinstance(lazy.pixels, PixelFiles)
    assert images.shape == lazy.shape == (3, 4, 4)
    assert torch.equal(images.read(range(5)), lazy.read(range(5)))  # type: ignore[arg-type]
    assert [round(float(images[row][0].float().mean()), -1) for row in range(5)] == [10, 20, 30, 40, 50]
    assert parts(images) == {"train": [0, 1, 2], "test": [3, 4]}
    assert images.class_names == ["cat", "dog"]
    single = read_images(tmp_path / "set_train.npz")
    assert len(single) == 3
    assert single.splits == {}


def batches(folder: Path, each: int = 2) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        data = generator.integers(0, 256, (each, 3072), dtype=np.uint8)
        labels = generator.integers(0, 3, each).tolist()
        batch = {"data": data, "labels": labels, "filenames": ["x"] * each, "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"label_names": ["airplane", "automobile", "bird"], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


@pytest.mark.parametrize("packing", ["folder", "parent", "tar", "folder of the tar"])
def test_values_batches(packing: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    batches(folder)
    place = tmp_path if packing == "parent" else folder
    if "tar" in packing:
        inside = tmp_path / "published"
        inside.mkdir()
        place = inside / "cifar-10-python.tar.gz"
        with tarfile.open(place, "w:gz") as archive:
            archive.add(folder, folder.name)
        place = inside if packing == "folder of the tar" else place
    images = read_images(place, val_share=0)
    assert images.name == "cifar-10"
    assert len(images) == 12
    assert parts(images) == {"train": list(range(10)), "test": [10, 11]}
    assert images.class_names == ["airplane", "automobile", "bird"]
    second = pickle.loads((folder / "data_batch_2").read_bytes())
    assert torch.equal(images[3], torch.from_numpy(second["data"][1].reshape(3, 32, 32)))
    assert images.y is not None
    assert images.y[2:4].tolist() == second["labels"]


def test_values_hundred(tmp_path: Path) -> None:
    for name in ("train", "test"):
        data = np.zeros((2, 3072), np.uint8)
        batch = {b"data": data, b"fine_labels": [0, 1], b"coarse_labels": [0, 0]}
        (tmp_path / name).write_bytes(pickle.dumps({k.decode(): v for k, v in batch.items()}, protocol=2))
    (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bee"]}, protocol=2))
    images = read_images(tmp_path)
    assert images.class_names == ["apple", "bee"]
    assert images.y is not None
    assert images.y.tolist() == [0, 1, 0, 1]


# ------------------------------------------------------------------------------------------ options of reading


def test_values_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One size goes to memory while there is room, several sizes stay on disk unless they are cut to one."""
    root = fill(tmp_path / "set", ["a/1.png", "a/2.png", "b/1.png"], (8, 6))
    assert isinstance(read_images(root).pixels, PixelArray)
    lazy = read_images(root, load="disk")
    assert isinstance(lazy.pixels, PixelFiles)
    assert lazy.shape == (3, 6, 8)
    assert read_images(root, load="disk", verify=False).shape == (3, 6, 8)
    monkeypatch.setattr(image_files, "IN_MEMORY", 3 * 3 * 6 * 8)
    assert isinstance(read_images(root).pixels, PixelFiles)
    assert isinstance(read_images(root, load="memory").pixels, PixelArray)
    monkeypatch.undo()
    (root / "b" / "2.png").write_bytes(png(3, (20, 10)))
    several = read_images(root)
    assert isinstance(several.pixels, PixelFiles)
    assert several.shape is None
    assert several.facts["modes"] == {"RGB": 4}
    with pytest.raises(InputError, match=r"different sizes \(8 x 6 and 20 x 10\).*data\.square"):
        read_images(root, load="memory")
    square = read_images(root, resize=5, square=True)
    assert isinstance(square.pixels, PixelArray)
    assert square.shape == (3, 5, 5)
    assert read_images(root, resize=5, load="disk")[3].shape == (3, 5, 10)
    seen: list[tuple[int, int]] = []
    read_images(root, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)


def test_state_zip(tmp_path: Path) -> None:
    """An opened archive can be sent to another process, which opens it again."""
    images = read_images(packed(tmp_path / "set.zip", CLASSES), load="disk")
    again = pickle.loads(pickle.dumps(images))
    assert torch.equal(again[3], images[3])
    assert isinstance(again.pixels, PixelFiles)
    (tmp_path / "set.zip").unlink()
    with pytest.raises(InputError, match=r"set\.zip: cat/1\.png: damaged in the archive \(No such file"):
        pickle.loads(pickle.dumps(images)).read([0])


def test_values_arrays_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=COLOUR)
    images = read_images(tmp_path / "a.npz", resize=2, square=True)
    assert images.shape == (3, 2, 2)
    same = read_images(tmp_path / "a.npz", resize=4)
    assert torch.equal(same[0], torch.from_numpy(COLOUR[0].copy()).permute(2, 0, 1))


def test_values_validation(tmp_path: Path) -> None:
    """A tenth of every class of the training part, the same in every call; none where there is one already."""
    y = np.array([0] * 40 + [1] * 20 + [0] * 5 + [1] * 5)
    np.savez(tmp_path / "a.npz", train_x=np.zeros((60, 2, 2), np.uint8), train_y=y[:60],
             test_x=np.zeros((10, 2, 2), np.uint8), test_y=y[60:])  # fmt: skip
    images = read_images(tmp_path / "a.npz")
    assert {part: len(rows) for part, rows in images.splits.items()} == {"train": 54, "val": 6, "test": 10}
    assert y[images.splits["val"].numpy()].tolist().count(0) == 4
    assert sorted(sum((parts(images)[part] for part in ("train", "val")), [])) == list(range(60))  # noqa: RUF017
    assert images.facts["val_cut_from_train"] == 6
    assert (images.facts["val_share"], images.facts["val_seed"]) == (0.1, 0)
    assert parts(images) == parts(read_images(tmp_path / "a.npz"))
    assert "val" not in read_images(tmp_path / "a.npz", val_share=0).splits
    np.savez(tmp_path / "b.npz", train_x=np.zeros((9, 2, 2), np.uint8), val_x=np.zeros((2, 2, 2), np.uint8))
    reported = read_images(tmp_path / "b.npz")
    assert parts(reported)["test"] == [9, 10]
    assert reported.facts["val_used_as_test"] == 2
    assert len(reported.splits["val"]) == 1
    root = fill(tmp_path / "set", SPLITS)
    assert "val_cut_from_train" not in read_images(root, val_share=0.5).facts


def test_values_limit(tmp_path: Path) -> None:
    """Shares of the parts stay, classes are even, more contains less; only what is kept is decoded."""
    names = [f"{part}/{label}/{k:02}.png" for part, count in (("train", 20), ("test", 10)) for label, share in
             (("a", 0.8), ("b", 0.2)) for k in range(int(count * share))]  # fmt: skip
    root = fill(tmp_path / "set", names)
    images = read_images(root, limit=9, val_share=0)
    assert len(images) == 9
    assert {part: len(rows) for part, rows in images.splits.items()} == {"train": 6, "test": 3}
    assert images.y is not None
    assert images.y[images.splits["train"]].tolist() == [0, 0, 0, 1, 1, 1]
    assert images.facts["limited_from"] == 30
    assert images.ids is not None
    assert images.ids == sorted(images.ids)
    more = read_images(root, limit=12, val_share=0)
    assert set(images.ids) <= set(more.ids or [])
    assert fingerprint(images) == fingerprint(read_images(root, limit=9, val_share=0))
    assert images.facts["modes"] == {"RGB": 9}
    assert len(read_images(root, limit=99)) == 30
    assert len(read_images(root, limit=4, labels="none")) == 4


def test_values_unreadable(tmp_path: Path) -> None:
    """Broken files are found before anything starts: all named at once, or left out."""
    root = fill(tmp_path / "set", [f"{label}/{k}.png" for label in "ab" for k in range(5)])
    for name in ("a/1.png", "a/2.png", "b/0.png"):
        (root / name).write_bytes((root / name).read_bytes()[:50])
    (root / "b" / "1.png").write_bytes(b"")
    for load in ("memory", "disk"):
        with pytest.raises(InputError, match=r"4 of 10 images cannot be read") as caught:
            read_images(root, load=load)  # type: ignore[arg-type]
        assert "skip_unreadable: true" in str(caught.value)
        assert all(
            str(Path(name)) in str(caught.value) for name in ("a/1.png", "a/2.png", "b/0.png", "b/1.png")
        )
        images = read_images(root, load=load, skip_unreadable=True)  # type: ignore[arg-type]
        assert len(images) == 6
        assert images.facts["unreadable_skipped"] == 4
        assert images.ids == ["a/0.png", "a/3.png", "a/4.png", "b/2.png", "b/3.png", "b/4.png"]
        assert images[1][0, 0, 0] == 3
        assert images.y is not None
        assert images.y.tolist() == [0] * 3 + [1] * 3
    for file in root.rglob("*.png"):
        file.write_bytes(b"x")
    with pytest.raises(InputError, match="10 of 10 images") as caught:
        read_images(root, skip_unreadable=True)
    assert "and 5 more" in str(caught.value)


# ----------------------------------------------------------------------------------------------------- mistakes


def _list(text: str, name: str = "l.txt") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        fill(folder, ["a.png", "b.png"])
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return make


def _arrays(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "a.npz", **arrays)  # type: ignore[arg-type]
        return folder / "a.npz"

    return make


def _member(name: str, **attributes: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            info = zipfile.ZipInfo(name)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, png(0))
        return folder / "a.zip"

    return make


def _batch(**changes: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        batches(folder / "b")
        batch = pickle.loads((folder / "b" / "data_batch_3").read_bytes()) | changes
        (folder / "b" / "data_batch_3").write_bytes(pickle.dumps(batch))
        return folder / "b"

    return make


def _without(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        batches(folder / "b")
        (folder / "b" / name).unlink()
        return folder / "b"

    return make


ZERO = np.zeros((2, 3, 3), np.uint8)
MISTAKES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda f: f / "no", "does not exist"),
    "an empty folder": (lambda f: f, r"no image files \(0 other files\)"),
    "one image": (lambda f: fill(f, ["a.png"]) / "a.png", "single image; give its folder"),
    "a program": (_list("x", "l.py"), "not a set of images"),
    "a missing image": (_list("a.png 1\nc.png 2\n"), "names 1 of 2 images that do not exist: line 2: c.png"),
    "an image twice": (_list("a.png 1\n\na.png 2\n"), "lines 1 and 3 both name 'a.png'"),
    "no image in a line": (_list("a.png 1\nnothing\n"), "line 2: 'nothing' does not start with"),
    "an empty list": (_list("# nothing\n"), "names no image"),
    "no path column": (_list("picture,label\na.png,1\n", "l.csv"), "columns picture, label, none of them a path"),
    "an unknown part": (_list("path,split\na.png,train\nb.png,dev\n", "l.csv"), "line 3: 'dev' is none of train"),
    "a ragged table": (_list("path,split\na.png\n", "l.csv"), "line 2 has 1 cells"),
    "floats": (_arrays(image=ZERO.astype(np.float32)), "array 'image' has type float32, expected uint8"),
    "two dimensions": (_arrays(image=ZERO[0]), r"shape \(3, 3\), expected images"),
    "no pixels": (_arrays(image=ZERO[:, :, :0]), "no pixels"),
    "no images": (_arrays(image=ZERO[:0]), "holds no images"),
    "other arrays": (_arrays(edge_index=ZERO), "holds no images"),
    "too few labels": (_arrays(image=ZERO, label=np.zeros(3, int)), r"'label' is \(3,\) int64, expected one"),
    "labels of another kind": (_arrays(image=ZERO, label=np.zeros(2)), "float64, expected one integer or name"),
    "a label without a name": (
        _arrays(image=ZERO, label=np.array([0, 2]), class_names=np.array(["a", "b"])),
        "label 2 has no name",
    ),
    "whole and in parts": (_arrays(image=ZERO, train_image=ZERO), "both as one array and as train"),
    "parts of two sizes": (
        _arrays(train_image=ZERO, test_image=np.zeros((2, 4, 4), np.uint8)),
        "different sizes",
    ),
    "files without offsets": (_arrays(jpeg=ZERO.ravel()), "needs 'offsets'"),
    "offsets that fall": (_arrays(jpeg=ZERO.ravel(), offsets=np.array([0, 5, 3])), "must rise"),
    "offsets too far": (_arrays(jpeg=ZERO.ravel(), offsets=np.array([0, 99])), "must rise"),
    "a climbing member": (_member("../a.png"), r"leave the folder \(..\)"),
    "a link": (_member("a.png", external_attr=0o120777 << 16), "link or a device"),
    "a zip without images": (_member("a.txt"), r"no image files \(1 other files\)"),
    "no zip": (_list("PK", "a.zip"), "not a complete .zip"),
    "no tar": (_list("x", "a.tar.gz"), "not a complete .zip or .tar"),
    "labels of a batch": (_batch(labels=[0]), "labels are not one small integer for each of 2 images"),
    "pixels of a batch": (_batch(data=np.zeros((2, 3))), r"data is not \(N, 3072\) uint8"),
    "code in a batch": (_batch(labels=Path("x")), "could run code"),
    "a missing batch": (_without("data_batch_4"), "has no data_batch_4"),
    "a missing test batch": (_without("test_batch"), "has no test_batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MISTAKES))
def test_errors(name: str, tmp_path: Path) -> None:
    make, message = MISTAKES[name]
    place = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_images(place)
    assert str(tmp_path) in str(caught.value)


def test_errors_layout(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", ["a.png"])
    for layout, message in (
        ("class", "one folder per class"),
        ("split/class", "a folder named train"),
        ("domain/class", "two folders above"),
    ):
        with pytest.raises(InputError, match=message):
            read_images(root, layout=layout)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1"):
        read_images(root, limit=0)
    with pytest.raises(InputError, match="square needs resize"):
        read_images(root, square=True)


# ----------------------------------------------------------------------------------------------------- settings


def test_values_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "set", CLASSES)
    monkeypatch.setenv("LEANLABEL_DATA", str(tmp_path))
    images = open_images(ImageFiles(path="set", resize=2, square=True))
    assert images.shape == (3, 2, 2)
    with pytest.raises(InputError, match=r"cifar10: no such file or folder.*data get cifar-10"):
        open_images(ImageFiles(path="cifar10"))
    with pytest.raises(ValidationError, match="resize, the side of the square"):
        ImageFiles(path="set", square=True)


def test_values_glyphs() -> None:
    images = open_images(Glyphs(classes=2, per_class=8, size=16))
    assert len(images) == 16
    assert images.shape == (3, 16, 16)
    assert set(images.splits) == {"train", "val", "test"}
    with pytest.raises(InputError, match=r"data: .*styles"):
        open_images(Glyphs(classes=2, per_class=2, styles=(99,)))


def test_reference_glyphs() -> None:
    """Every argument of the generator is a setting of the same default."""
    import inspect

    from leanlabel.data.generated.glyphs import glyph_images

    arguments = {name: one.default for name, one in inspect.signature(glyph_images).parameters.items()}
    assert Glyphs().model_dump(exclude={"kind", "batch_size"}) == arguments


# ---------------------------------------------------------------------------------------------------- real sets


@pytest.mark.real
def test_values_real(data_root: Path) -> None:
    """Published sets in the forms that they lie here."""
    for name, size, classes, splits in (
        ("cifar10", (32, 32), 10, ["test", "train", "val"]),
        ("digits/mnist_10k.npz", (28, 28), 10, []),
        ("digits/usps.npz", (16, 16), 10, ["test", "train", "val"]),
        ("pacs/pacs128.zip", (128, 128), 7, []),
    ):
        if not (data_root / name).exists():
            pytest.skip(f"{data_root / name} is not there")
        images = read_images(data_root / name, limit=210)
        assert len(images) == 210
        assert images.shape == (3, *size)
        assert images.num_classes == classes
        assert sorted(images.splits) == splits
        assert images.y is not None
        assert len(torch.unique(images.y)) == classes
        pixels = images.read(range(210))
        assert isinstance(pixels, torch.Tensor)
        assert 20 < float(pixels.float().mean()) < 220
    assert images.domain_names == ["art_painting", "cartoon", "photo"]
    assert images.facts["limited_from"] == 6062
