"""Images with masks, in memory and on disk: the same thing read in the same way."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanlabel.data.class_map import class_map, plain_map
from leanlabel.data.dense import DenseImages, MaskArray, MaskFiles, fingerprint_dense
from leanlabel.data.dense_listing import DenseListing, Fault
from leanlabel.data.image_stores import FolderStore
from leanlabel.data.images import PixelArray, PixelFiles

CLASSES = plain_map(["a", "b", "c"])
PIXELS = torch.arange(5 * 3 * 4 * 6).reshape(5, 3, 4, 6).to(torch.uint8)
LABELS = (torch.arange(5 * 4 * 6).reshape(5, 4, 6) % 3).to(torch.uint8)


def dense(**changes: object) -> DenseImages:
    given = {
        "name": "x",
        "pixels": PixelArray(PIXELS),
        "masks": MaskArray(LABELS),
        "classes": CLASSES,
        **changes,
    }
    return DenseImages(**given)  # type: ignore[arg-type]


def on_disk(folder: Path, shapes: list[tuple[int, int]]) -> tuple[FolderStore, FolderStore]:
    """Images and masks of some heights and widths."""
    rng = np.random.default_rng(0)
    for row, (h, w) in enumerate(shapes):
        Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)).save(folder / f"i{row}.png")
        Image.fromarray(rng.integers(0, 3, (h, w), np.uint8)).save(folder / f"m{row}.png")
    names = range(len(shapes))
    root = str(folder)
    return FolderStore(root, [f"i{k}.png" for k in names]), FolderStore(root, [f"m{k}.png" for k in names])


def test_values() -> None:
    data = dense(
        ids=list("vwxyz"),
        groups=torch.tensor([0, 0, 1, 1, 1]),
        group_names=["p", "q"],
        splits={"train": torch.tensor([0, 3]), "test_dusk": torch.tensor([4])},
        facts={"class_pixels": [1], "layout": "x"},
    )
    assert (len(data), data.shape, data.num_classes) == (5, (3, 4, 6), 3)
    images, masks = data.read(torch.tensor([4, 1, 1]))
    assert torch.equal(images, PIXELS[[4, 1, 1]])
    assert torch.equal(masks, LABELS[[4, 1, 1]])
    some = data.take([3, 0])
    assert some.ids == ["y", "v"]
    assert some.groups is not None
    assert some.groups.tolist() == [1, 0]
    assert dict(some.splits) == {}
    assert dict(some.facts) == {"layout": "x"}
    assert torch.equal(some.read([0])[1], LABELS[3:4])
    assert dense(masks=None).read([0])[1] is None
    images[0] = 0  # a copy
    assert torch.equal(data.read([4])[0], PIXELS[4:])


def test_values_bands() -> None:
    four = torch.rand(2, 4, 3, 3)
    array = PixelArray(four, bands=True)
    assert array.shape == (4, 3, 3)
    assert torch.equal(array.take([1]).array, four[1:])
    assert PixelArray((four[:, :1] * 255).to(torch.uint8), bands=True).shape == (1, 3, 3)


def test_values_files(tmp_path: Path) -> None:
    images, masks = on_disk(tmp_path, [(4, 6), (5, 5), (4, 6)])
    sizes = torch.tensor([[4, 6], [5, 5], [4, 6]])
    files = MaskFiles(masks, CLASSES, sizes, torch.tensor([0, -1, 2]))
    data = DenseImages("x", PixelFiles(images), files, CLASSES)
    assert data.shape is None
    assert files.shape is None
    found, labels = data.read([0, 1])
    assert [tuple(one.shape) for one in labels] == [(4, 6), (5, 5)]
    assert labels[1].unique().tolist() == [255]
    assert np.array_equal(labels[0].numpy(), np.asarray(Image.open(tmp_path / "m0.png")))
    _, both = data.read([0, 2])
    assert both.shape == (2, 4, 6)
    assert len(found) == 2
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again.read([2])[1], data.read([2])[1])
    assert files.take([2, 1]).rows.tolist() == [2, -1]
    assert torch.equal(files.take([2])[0], files[2])
    many = data.read([0, 2] * 6)  # threads
    assert torch.equal(many[1][10], labels[0])


def test_values_made_masks(tmp_path: Path) -> None:
    """Masks that something else makes are brought to their size and need no translation."""
    made = MaskArray(LABELS)
    files = MaskFiles(made, CLASSES, torch.tensor([[2, 3]] * 5), torch.arange(5))
    assert files[1].tolist() == LABELS[1][1::2][:, 1::2].tolist()
    assert files.shape == (2, 3)


def test_degenerate() -> None:
    data = dense()
    assert data.read([])[0].shape == (0, 3, 4, 6)
    assert data.read([])[1].shape == (0, 4, 6)
    assert len(data.take([])) == 0
    empty = MaskFiles(
        FolderStore("", []), CLASSES, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0).long()
    )
    none = empty.read([])
    assert isinstance(none, torch.Tensor)
    assert none.shape == (0, 0, 0)


def test_values_listing(tmp_path: Path) -> None:
    images, masks = on_disk(tmp_path, [(2, 2)] * 4)
    listing = DenseListing(
        "x",
        images,
        masks.take([1, 3]),
        torch.tensor([-1, 0, -1, 1]),
        list("abcd"),
        {"train": torch.tensor([0, 1, 3]), "val": torch.tensor([2])},
        faults=[Fault("unreadable", "all"), Fault("unreadable", "three", 3), Fault("unreadable", "zero", 0)],
    )
    assert listing.labelled.tolist() == [False, True, False, True]
    some = listing.take([3, 1])
    assert some.ids == ["d", "b"]
    assert [some.mask_row(row) for row in (0, 1)] == [1, 0]
    assert {part: rows.tolist() for part, rows in some.splits.items()} == {"train": [1, 0]}
    assert [(one.message, one.row) for one in some.faults] == [("all", -1), ("three", 0)]
    plain = DenseListing("x", images, masks, ids=list("abcd"))
    assert plain.take([2]).mask_row(0) == 2
    assert DenseListing("x", images, ids=list("abcd")).labelled.tolist() == [False] * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dense(masks=MaskArray(LABELS[:4])), "4 masks for 5 images"),
        (lambda: dense(masks=MaskArray(LABELS[:, :2])), r"masks are \(2, 6\), images \(4, 6\)"),
        (lambda: dense(ids=["a"]), "1 ids for 5"),
        (lambda: dense(groups=torch.zeros(5)), r"groups must be \(5,\) int64"),
        (lambda: dense(splits={"train": torch.tensor([5])}), "outside"),
        (lambda: dense(splits={"train": torch.zeros(2)}), "split train must be"),
        (lambda: MaskArray(LABELS.long()), "uint8"),
        (lambda: MaskArray(LABELS[0]), r"\(N, H, W\)"),
        (lambda: PixelArray(torch.full((1, 2, 2, 2), 1.5), bands=True), r"in \[0, 1\], got 1.5"),
        (lambda: PixelArray(torch.full((1, 2, 2, 2), float("nan")), bands=True), "nan"),
        (lambda: PixelArray(torch.zeros(1, 2, 2, 2, dtype=torch.float64), bands=True), "float64"),
    ],
)
def test_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_state(tmp_path: Path) -> None:
    """The fingerprint tells data apart by what is in them, and by nothing else."""
    first = fingerprint_dense(dense())
    assert first == fingerprint_dense(dense(name="y", facts={"a": 1}))
    assert len(first) == 64
    other = LABELS.clone()
    other[0, 0, 0] = 255
    changed = [
        dense(masks=MaskArray(other)),
        dense(masks=None),
        dense(classes=plain_map(["a", "b", "d"])),
        dense(groups=torch.zeros(5, dtype=torch.int64), group_names=["g"]),
        dense(splits={"val": torch.tensor([1])}),
        dense(ids=list("abcde")),
        dense(instances=MaskArray(LABELS.int())),
        dense(classes=class_map("voc-21")),
    ]
    assert len({first, *(fingerprint_dense(one) for one in changed)}) == len(changed) + 1
    images, masks = on_disk(tmp_path, [(4, 6)] * 2)
    sizes, rows = torch.tensor([[4, 6]] * 2), torch.arange(2)
    files = DenseImages("x", PixelFiles(images), MaskFiles(masks, CLASSES, sizes, rows), CLASSES)
    one = fingerprint_dense(files)
    assert one == fingerprint_dense(pickle.loads(pickle.dumps(files)))
    half = DenseImages("x", PixelFiles(images), MaskFiles(masks, CLASSES, sizes, rows - 1), CLASSES)
    assert one != fingerprint_dense(half)
