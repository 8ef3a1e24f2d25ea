"""Whatever an image, a zip, a list, an array or a batch holds: sound images, or one error that names the place."""

from __future__ import annotations

import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corrupt import CHANGES, QUICK, Reader, attempt, damaged, hold, sweep
from hypothesis import strategies as st
from lying import METHODS, Member, Payload, archive, archives, npy
from PIL import Image

from leanlabel.data.graphs import UNLABELLED
from leanlabel.data.image_check import check_images
from leanlabel.data.image_files import read_images
from leanlabel.data.images import Images, PixelArray, fingerprint
from leanlabel.data.splits import PARTS

pytestmark = pytest.mark.slow

MANY = 1_800
"""Inputs of the slow test."""


def encoded(
    number: int, kind: str, size: tuple[int, int] = (9, 7), mode: str = "RGB", **options: Any
) -> bytes:
    generator = np.random.default_rng(number)
    pixels = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    file = io.BytesIO()
    pixels.convert(mode).save(file, kind, **options)
    return file.getvalue()


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


FILES = {
    "a.jpg": encoded(0, "JPEG", exif=orientation(6)),
    "b.png": encoded(1, "PNG"),
    "c.gif": encoded(2, "GIF"),
    "d.bmp": encoded(3, "BMP"),
    "e.tif": encoded(4, "TIFF", compression="tiff_lzw"),
    "f.webp": encoded(5, "WEBP"),
    "g.png": encoded(6, "PNG", mode="P", transparency=3),
    "h.jpeg": encoded(7, "JPEG", mode="CMYK", progressive=True),
    "i.png": encoded(8, "PNG", mode="LA", exif=orientation(5)),
    "j.tiff": encoded(9, "TIFF", mode="1", compression="group4"),
    "k.png": encoded(10, "PNG", mode="I;16"),
}


def sound(images: Images) -> None:
    """What the type promises."""
    n = len(images)
    assert n > 0
    shape = images.shape
    for row in range(n):
        pixels = images[row]
        assert pixels.dtype == torch.uint8
        assert pixels.ndim == 3
        assert pixels.shape[0] == 3
        assert min(pixels.shape) > 0
        assert shape is None or pixels.shape == shape
    if isinstance(images.pixels, PixelArray):
        assert images.pixels.array.is_contiguous()
    if images.y is not None:
        assert images.y.shape == (n,)
        known = images.y[images.y != UNLABELLED]
        assert bool(((known >= 0) & (known < images.num_classes)).all())
    assert images.ids is None or len(set(images.ids)) == len(images.ids) == n
    seen: list[int] = []
    for part, rows in images.splits.items():
        assert part in PARTS
        assert bool(((rows >= 0) & (rows < n)).all())
        seen += rows.tolist()
    assert len(set(seen)) == len(seen)
    assert len(fingerprint(images)) == 64


def read(path: Path, **options: Any) -> Images | None:
    images = attempt(lambda: read_images(path, **options), path)
    if images is not None:
        sound(images)
    return images


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "load": st.sampled_from(["memory", "disk"]),
        "resize": st.sampled_from([3, 20]),
        "limit": st.integers(1, 4),
        "labels": st.just("none"),
        "skip_unreadable": st.just(True),
        "val_share": st.sampled_from([0.0, 0.5, 0.99]),
        "layout": st.sampled_from(["flat", "class", "split/class", "domain/class"]),
    },
)


def emptied(folder: Path) -> Path:
    for old in folder.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    return folder


def damaged_files(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Image files of all formats with bytes flipped, dropped, repeated, put in, next to a sound one."""

    def check(one: tuple[str, list[Any], dict[str, Any]]) -> None:
        name, changes, options = one
        (emptied(folder) / "sound.png").write_bytes(FILES["b.png"])
        (folder / name).write_bytes(damaged(FILES[name], changes))
        if read(folder, **options) is None and "layout" not in options:
            # Looked at without stopping, the broken file is one finding, and reading can go on without it.
            findings = attempt(lambda: check_images(folder), folder) or []
            assert "unreadable" in {finding.code for finding in findings} or options.get("load") == "memory"
            rest = attempt(lambda: read_images(folder, skip_unreadable=True), folder)
            assert rest is not None

    return check, st.tuples(st.sampled_from(list(FILES)), CHANGES, OPTIONS)


PIXELS = np.arange(4 * 5 * 6 * 3, dtype=np.int64).astype(np.uint8).reshape(4, 5, 6, 3)
LABEL = np.array([0, 1, 1, 0], np.uint8)
JPEGS = [encoded(k, "JPEG") for k in range(4)]
ARRAYS = {"image": PIXELS, "label": LABEL, "class_names": np.array(["a", "b"])}
HALVES = {"train_image": PIXELS[:2, ..., 0], "train_label": LABEL[:2], "x_test": PIXELS[2:, ..., 0]}
PACKED = {
    "jpeg": np.frombuffer(b"".join(JPEGS), np.uint8),
    "offsets": np.cumsum([0, *map(len, JPEGS)]),
    "label": LABEL,
}
EXTRA = ("y", "x", "train_image", "test_label", "jpeg", "offsets", "class_names", "val_images", "stray")


def arrays(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Arrays of any type in the place of others, headers that lie, code, names that lead elsewhere."""
    marker, path = folder / "escaped", folder / "images.npz"

    def check(one: tuple[bytes, dict[str, Any]]) -> None:
        path.write_bytes(one[0])
        read(path, **one[1])

    sets = (archives(sound, marker, EXTRA) for sound in (ARRAYS, HALVES, PACKED))
    return check, st.tuples(st.one_of(*sets), OPTIONS)


def damaged_arrays(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Sound arrays with damage to the file, or to one array behind a checksum that is right."""
    path = folder / "images.npz"
    sets = [
        [Member(f"{name}.npy", npy(array)) for name, array in one.items()] for one in (ARRAYS, HALVES, PACKED)
    ]

    def check(one: tuple[int, int | None, list[Any], dict[str, Any]]) -> None:
        which, place, changes, options = one
        members = list(sets[which])
        if place is None:
            path.write_bytes(damaged(archive(members), changes))
        else:
            at = place % len(members)
            members[at] = Member(members[at].name, damaged(members[at].content, changes))
            path.write_bytes(archive(members))
        read(path, **options)

    place = st.one_of(st.none(), st.integers(0, 5))
    return check, st.tuples(st.integers(0, 2), place, CHANGES, OPTIONS)


NAMES = (
    "x/a.png", "x/b.jpg", "y/a.png", "train/x/a.png", "test/y/b.png", "val/c.png", "a.png", "x", "x/", "",
    "/etc/a.png", "../../escaped.png", "..\\escaped.png", "x/../a.png", "C:/a.png", "con.png", "X/A.png", "é/a.png",
    "e\u0301/a.png", "a" * 300 + ".png", "x/a.txt", "a\n.png", ".hidden.png", "__MACOSX/a.png", "x//a.png",
    "\udcff.png",
)  # fmt: skip


def zips(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Archives with odd names, lies about sizes, damaged members, and damage to the archive."""
    path = folder / "images.zip"
    content = st.one_of(
        st.sampled_from(list(FILES.values())),
        st.builds(damaged, st.sampled_from(list(FILES.values())), CHANGES),
        st.just(b""),
    )
    odd_names = [name for name in NAMES if "\udcff" not in name]
    names = st.one_of(st.sampled_from(["z/c.png", "test/d.jpg", "e.GIF"]), st.sampled_from(odd_names))
    odd = st.builds(
        Member, names, content, METHODS, st.booleans(), st.sampled_from([None, None, 0, 200, 2**31])
    )
    plain = [Member(name, FILES["b.png"]) for name in NAMES[:3]]

    def check(one: tuple[list[Member], list[Any], dict[str, Any]]) -> None:
        members, changes, options = one
        path.write_bytes(damaged(archive([*plain, *members]), changes))
        read(path, **options)

    return check, st.tuples(st.lists(odd, max_size=3), st.one_of(st.just([]), st.just([]), CHANGES), OPTIONS)


TOKENS = (
    "a.png", "b.png", "x/a.png", "gone.png", "a.png 1", "b.png 2", "b.png cat dog", "a.png\t1", "\ta.png", "# a.png",
    "", " ", "1", "-1", "a.png -1", "a.png " + "9" * 5000, "a.png 1e5", "a.png \u0661", "\0", "a.png\0", "../a.png",
    "/dev/null", "path,label", "path,label,split", "a.png,1,train", "b.png,,test", "x/a.png,2,val", "a.png,1,dev",
    '"a.png",1', '"', "x" * 5000 + ".png 1", "é.png 1", "path", "label,path", "\ufeffpath", ".png", "a.png/.png", ".",
)  # fmt: skip


def lists(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Lists of odd lines in odd encodings, with damage."""
    (folder / "x").mkdir()
    for number, name in enumerate(("a.png", "b.png", "x/a.png")):
        (folder / name).write_bytes(encoded(number, "PNG"))

    def check(one: tuple[tuple[list[str], str], list[str], str, str, list[Any], dict[str, Any]]) -> None:
        (base, suffix), more, ending, code, changes, options = one
        path = folder / f"list{suffix}"
        path.write_bytes(damaged(ending.join([*base, *more]).encode(code, "replace"), changes))
        read(path, **options)

    plain, table = ["a.png 1", "x/a.png 2"], ["path,label,split", "a.png,1,train", "b.png,2,test"]
    tabs = [line.replace(",", "\t") for line in table]
    return check, st.tuples(
        st.sampled_from([(plain, ".txt"), (table, ".csv"), (tabs, ".tsv"), ([], ".txt"), ([], ".csv")]),
        st.one_of(*(st.lists(st.sampled_from(TOKENS), max_size=most) for most in (1, 1, 3))),
        st.sampled_from(["\n", "\r\n", "\r"]),
        st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]),
        st.one_of(st.just([]), st.just([]), CHANGES),
        OPTIONS,
    )


def batches(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """CIFAR's batches with other values in them, with code in them, and with damage."""
    marker = folder / "escaped"
    fill = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    whole: dict[str, Any] = {f"data_batch_{k}": {"data": fill, "labels": [0, 1]} for k in range(1, 6)}
    whole |= {"test_batch": {"data": fill, "labels": [1, 0]}, "batches.meta": {"label_names": ["a", "b"]}}
    odd = st.sampled_from(
        [
            None, [], {}, [0, 2], [0, -1], [0, 1.5], [True, False], ["a", "b"], "ab", [[0, 1]], [0, 10**30], [0],
            fill[:1], fill.astype(np.float32), fill.T, fill[:0], np.array(["a", None], dtype=object),
            Payload(marker), [Payload(marker)] * 2, Path("x"),
        ]
    )  # fmt: skip

    def check(one: tuple[str, str, Any, int, bool, list[Any], dict[str, Any]]) -> None:
        name, key, value, protocol, replace, changes, options = one
        for member, batch in whole.items():
            changed = batch | {key: value} if member == name and replace else batch
            content = pickle.dumps(changed, protocol)
            (folder / member).write_bytes(damaged(content, changes) if member == name else content)
        read(folder, **options)

    return check, st.tuples(
        st.sampled_from(["data_batch_2", "test_batch", "batches.meta"]),
        st.sampled_from(["data", "labels", "label_names", "fine_labels"]),
        odd,
        st.sampled_from([0, 2, 4]),
        st.booleans(),
        st.one_of(st.just([]), CHANGES),
        OPTIONS,
    )


READERS = (damaged_files, arrays, damaged_arrays, zips, lists, batches)


@pytest.mark.parametrize("reader", READERS)
def test_errors_any_input(reader: Reader, tmp_path: Path) -> None:
    assert hold(reader, tmp_path, QUICK // 2) >= QUICK // 2


@pytest.mark.real
def test_errors_real(data_root: Path, tmp_path: Path) -> None:
    """Pictures of a published set with damage."""
    source = data_root / "pacs" / "pacs128.zip"
    if not source.is_file():
        pytest.skip(f"{source} is not there")
    with zipfile.ZipFile(source) as file:
        whole = [file.read(name) for name in file.namelist()[::600]]

    def check(one: tuple[int, list[Any]]) -> None:
        (tmp_path / "a.jpg").write_bytes(damaged(whole[one[0] % len(whole)], one[1]))
        read(tmp_path)

    assert sweep(check, st.tuples(st.integers(0, 20), CHANGES), 60) == 60


@pytest.mark.slow
def test_errors_many_inputs(tmp_path: Path) -> None:
    share = -(-MANY // len(READERS))
    seen = sum(hold(reader, tmp_path / reader.__name__, share) for reader in READERS)
    assert seen >= MANY
