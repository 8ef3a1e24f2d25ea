"""Pseudo labels on disk: which pixels get one, what the manifest says, what is refused, two ranks as one."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from leanlabel import dist
from leanlabel.banks.class_thresholds import ClassThresholds
from leanlabel.data.class_map import plain_map
from leanlabel.data.dense import DenseImages, MaskArray, Masks, fingerprint_dense
from leanlabel.data.image_stores import FolderStore
from leanlabel.data.images import PixelArray, PixelFiles, Pixels
from leanlabel.data.pseudo_labels import MANIFEST, LabelFiles, PseudoLabels, images_fingerprint, write_labels
from leanlabel.errors import InputError
from pool import Pool

CLASSES = plain_map(["road", "car", "sky"])


def images(n: int = 6, height: int = 4, width: int = 5) -> DenseImages:
    """Images whose first channel says the class (modulo 3) and whose second one the confidence."""
    numbers = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 3, height, width), generator=numbers).to(torch.uint8)
    pixels[:, 0] %= 2  # the third class is never predicted
    return DenseImages("six", PixelArray(pixels), None, CLASSES, ids=[f"a/{row}.png" for row in range(n)])


def predict(batch: Any) -> list[tuple[Tensor, Tensor]]:
    return [(image[0] % 3, image[1].float() / 255) for image in batch]


def written(folder: Path, data: DenseImages, rows: Any = None, **options: Any) -> dict[str, Any]:
    options = {"counter": ClassThresholds(3, exact=True), **options}
    rows = range(len(data)) if rows is None else rows
    return write_labels(folder, data, list(rows), predict, CLASSES, "w0", **options)


def expected_labels(data: DenseImages, rows: list[int], quantile: float, cap: float) -> list[list[list[int]]]:
    """Thresholds from sorted lists, then pixel by pixel."""
    found = {row: predict(data.read([row])[0])[0] for row in rows}
    own: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for known, sure in found.values():
        for k, p in zip(known.flatten().tolist(), sure.flatten().tolist(), strict=True):
            own[k].append(p)
    least = {
        k: min(cap, sorted(values)[min(round(quantile * len(values)), len(values) - 1)]) if values else 0.0
        for k, values in own.items()
    }
    return [
        [
            [k if p >= least[k] else 255 for k, p in zip(line, ps, strict=True)]
            for line, ps in zip(known.tolist(), sure.tolist(), strict=True)
        ]
        for known, sure in found.values()
    ]


class Sized(Pixels):
    """Images of different sizes."""

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int, /) -> Tensor:
        return self.parts[index]

    @property
    def shape(self) -> None:
        return None

    def read(self, rows: Any) -> list[Tensor]:
        return [self.parts[row] for row in rows]

    def take(self, rows: Any) -> Sized:
        return Sized(self.read(rows))


# -------------------------------------------------------------------------------------------------------- writing


def test_values(tmp_path: Path) -> None:
    """Specification, case 5: five images, one class each but the fourth's; the median, capped, is kept."""
    groups = [[0.95, 0.97, 0.99, 0.93, 0.91], [0.5, 0.6, 0.7, 0.8], [0.4, 0.45, 0.55], [], [0.3]]
    classes = plain_map(list("abcde"))
    data = DenseImages("case", PixelArray(torch.zeros(1, 3, 1, 13, dtype=torch.uint8)), None, classes)
    known = torch.tensor([[k for k, group in enumerate(groups) for _ in group]], dtype=torch.uint8)
    sure = torch.tensor([[p for group in groups for p in group]], dtype=torch.float64)
    for exact in (True, False):
        counter = ClassThresholds(5, exact=exact)
        found = write_labels(
            tmp_path, data, [0], lambda _: [(known, sure)], classes, "w", counter=counter, about={"t": 3}
        )
        assert found == json.loads((tmp_path / MANIFEST).read_text())
        assert found["thresholds"] == pytest.approx([0.9, 0.7, 0.55, 0.0, 0.3], abs=1 / 65536)
        assert found["seen"] == [5, 4, 3, 0, 1]
        assert found["kept"] == [5, 2, 1, 0, 1]
        assert found["kept_share"] == [1.0, 0.5, pytest.approx(1 / 3), None, 1.0]
        assert found["share"] == pytest.approx(9 / 13)
        assert (found["exact"], found["bins"]) == ((True, None) if exact else (False, 65536))
        assert found["about"] == {"t": 3}
        labels = PseudoLabels.open(tmp_path, classes=classes)
        assert labels.read([0]).tolist() == [[[0] * 5 + [255, 255, 1, 1] + [255, 255, 2] + [4]]]  # type: ignore[union-attr]
        assert labels.thresholds == found["thresholds"]
        assert labels.kept_share == found["kept_share"]


@pytest.mark.parametrize("memory", [0, 100, 1 << 28])
@pytest.mark.parametrize("batch", [1, 4])
def test_reference(tmp_path: Path, batch: int, memory: int) -> None:
    """Against lists, for some of the images in another order, whether predictions are held or made again."""
    data, rows = images(), [4, 0, 3, 5, 1]
    calls, steps = [], []

    def counted(batch_: Any) -> list[tuple[Tensor, Tensor]]:
        calls.append(len(batch_))
        return predict(batch_)

    found = write_labels(
        tmp_path,
        data,
        torch.tensor(rows),
        counted,
        CLASSES,
        "w0",
        counter=ClassThresholds(3, exact=True),
        quantile=0.3,
        cap=0.8,
        batch=batch,
        memory=memory,
        progress=lambda done, of: steps.append((done, of)),
    )
    labels = PseudoLabels.open(tmp_path, classes=CLASSES, data=images_fingerprint(data), model="w0")
    expected = expected_labels(data, rows, 0.3, 0.8)
    read = labels.read(rows)
    assert isinstance(read, Tensor)
    assert read.dtype == torch.uint8
    assert read.tolist() == expected
    assert labels.read(torch.tensor([3, 4])).tolist() == [expected[2], expected[0]]  # type: ignore[union-attr]
    flat = read.flatten().tolist()
    assert found["kept"] == [flat.count(k) for k in range(3)]
    assert sum(found["seen"]) == 5 * 20
    assert found["kept_share"][2] is None
    assert (found["rows"], found["images"]) == (rows, [f"a/{row}.png" for row in rows])
    assert steps == [(k + 1, 10) for k in range(10)]
    assert sum(calls) == (5 if memory > 1000 else 10)
    assert max(calls) == batch


def test_values_files(tmp_path: Path) -> None:
    """8-bit palette PNGs named by the row, with the colours of the classes, and nothing else but the manifest."""
    written(tmp_path, images(), [3, 5])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000003.png", "000005.png", MANIFEST]
    with Image.open(tmp_path / "000003.png") as picture:
        assert (picture.mode, picture.size) == ("P", (5, 4))
        colours = picture.getpalette()
        assert colours is not None
        assert [tuple(colours[3 * k : 3 * k + 3]) for k in (0, 1, 2, 255)] == [*CLASSES.colours, (0, 0, 0)]
    assert (tmp_path / "000003.png").read_bytes()[24] == 8  # bits


def test_values_histogram(tmp_path: Path) -> None:
    """Bins keep what sorting keeps, or more."""
    exact, binned = images(), images()
    one = written(tmp_path / "exact", exact)
    other = written(tmp_path / "bins", binned, counter=ClassThresholds(3, bins=8))
    assert all(b >= a for a, b in zip(one["kept"], other["kept"], strict=True))
    assert all(a - 1 / 8 < b <= a for a, b in zip(one["thresholds"], other["thresholds"], strict=True))
    first, second = (
        PseudoLabels.open(tmp_path / name, classes=CLASSES).read(range(6)) for name in ("exact", "bins")
    )
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert bool(((first == 255) | (first == second)).all())


# ----------------------------------------------------------------------------------------------- labels as masks


def test_masks(tmp_path: Path) -> None:
    """Labels are masks of the images that they belong to: read with them, taken, sent to other processes."""
    data = images()
    written(tmp_path, data)
    labels = PseudoLabels.open(tmp_path, classes=CLASSES)
    rows = [5, 2, 0]
    masks = labels.masks(rows)
    assert isinstance(masks, LabelFiles)
    assert (len(masks), masks.shape, len(labels)) == (3, (4, 5), 6)
    both = replace(data.take(rows), masks=masks)
    pixels, read = both.read([2, 0])
    assert torch.equal(pixels, data.pixels.read([0, 5]))  # type: ignore[arg-type]
    assert torch.equal(read, labels.read([0, 5]))  # type: ignore[arg-type]
    assert torch.equal(both.take([1]).read([0])[1], labels.read([2]))  # type: ignore[arg-type]
    other: Masks = pickle.loads(pickle.dumps(masks))
    assert torch.equal(other.read(range(3)), labels.read(rows))  # type: ignore[arg-type]
    assert len(fingerprint_dense(both)) == 64


def test_masks_of_different_sizes(tmp_path: Path) -> None:
    parts = [torch.randint(256, (3, 2 + k, 7), dtype=torch.uint8) for k in range(3)]
    data = DenseImages("sizes", Sized(parts), None, CLASSES)
    found = written(tmp_path, data, batch=2)
    assert found["sizes"] == [[2, 7], [3, 7], [4, 7]]
    labels = PseudoLabels.open(tmp_path, classes=CLASSES)
    assert labels.masks(range(3)).shape is None
    assert [one.shape for one in labels.read([2, 0])] == [(4, 7), (2, 7)]
    assert found["images"] is None


def test_fingerprint(tmp_path: Path) -> None:
    """Of images and names alone; of files, too."""
    data = images()
    own = images_fingerprint(data)
    masks = MaskArray(torch.zeros(6, 4, 5, dtype=torch.uint8))
    parts = {"train": torch.arange(3)}
    assert (
        images_fingerprint(replace(data, masks=masks, splits=parts, classes=plain_map(["x"]), name="y"))
        == own
    )
    assert images_fingerprint(replace(data, ids=[f"b{row}" for row in range(6)])) != own
    changed = data.read(range(6))[0]
    changed[0, 0, 0, 0] += 1
    assert images_fingerprint(replace(data, pixels=PixelArray(changed))) != own
    Image.new("RGB", (5, 4)).save(tmp_path / "one.png")
    files = DenseImages(
        "f", PixelFiles(FolderStore(str(tmp_path), ["one.png"])), None, CLASSES, ids=["one.png"]
    )
    assert len(images_fingerprint(files)) == 64


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "sure",
    [
        torch.full((4, 5), 1 + 2**-10, dtype=torch.float16),
        torch.full((4, 5), 0.75, dtype=torch.bfloat16),
        torch.full((4, 5), 0.75, dtype=torch.float64).numpy(),
    ],
    ids=["float16", "bfloat16", "numpy"],
)
def test_dtypes(tmp_path: Path, sure: Any) -> None:
    """Confidence in half precision, which may be a little above 1; arrays of numpy."""
    known = torch.ones(4, 5, dtype=torch.uint8)
    pair = (known if isinstance(sure, Tensor) else known.numpy(), sure)
    found = write_labels(tmp_path, images(1), [0], lambda _: [pair], CLASSES, "w", counter=ClassThresholds(3))
    assert found["kept"] == [0, 20, 0]
    assert bool((PseudoLabels.open(tmp_path, classes=CLASSES).masks([0])[0] == 1).all())


def test_errors_writing(tmp_path: Path) -> None:
    data = images()
    for rows in ([], [0, 0], [6], [-1]):
        with pytest.raises(ValueError, match="each once"):
            written(tmp_path, data, rows)
    used = ClassThresholds(3)
    used.add(torch.ones(1), torch.zeros(1, dtype=torch.int64))
    for counter in (used, ClassThresholds(4)):
        with pytest.raises(ValueError, match="fresh one of 3 classes"):
            written(tmp_path, data, counter=counter)
    assert not list(tmp_path.iterdir())
    known, sure = torch.zeros(4, 5, dtype=torch.uint8), torch.ones(4, 5)
    wrong: dict[str, Callable[[Any], Any]] = {
        "0 predictions for 1": lambda _: [],
        "do not fit": lambda _: [(known[:3], sure[:3])],
        "int64": lambda _: [(known.long(), sure)],
        "class 3, there are 3": lambda _: [(known + 3, sure)],
        r"in \[0, 1\]": lambda _: [(known, sure + 1)],
    }
    for text, one in wrong.items():
        with pytest.raises(ValueError, match=text):
            write_labels(tmp_path, data, [2], one, CLASSES, "w", counter=ClassThresholds(3))
    with pytest.raises(InputError, match="no pseudo labels, or unfinished"):
        PseudoLabels.open(tmp_path, classes=CLASSES)


def test_errors_interrupted(tmp_path: Path) -> None:
    """A later call that ends half-way leaves nothing that counts as whole."""
    data = images()
    written(tmp_path, data)
    PseudoLabels.open(tmp_path, classes=CLASSES)

    def stop(done: int, of: int) -> None:
        if done == of - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, data, progress=stop)
    with pytest.raises(InputError, match="unfinished"):
        PseudoLabels.open(tmp_path, classes=CLASSES)


def test_errors_other_origin(tmp_path: Path) -> None:
    """Other classes, images, weights: refused, with the place and what to do; another colour or name is none."""
    data = images()
    written(tmp_path, data)
    where = str(tmp_path)

    def told(**changes: Any) -> str:
        options = {"classes": CLASSES, "data": images_fingerprint(data), "model": "w0", **changes}
        with pytest.raises(InputError) as caught:
            PseudoLabels.open(tmp_path, **options)
        assert where in caught.value.message
        assert caught.value.suggestion is not None
        assert caught.value.suggestion.startswith("Compute them again")
        return caught.value.message

    assert "other classes: road, car, sky; now there are 3: road, sky, car" in told(
        classes=plain_map(["road", "sky", "car"])
    )
    assert "other images" in told(data=images_fingerprint(images(5)))
    assert "weights w0, not w1" in told(model="w1")
    recoloured = plain_map(
        CLASSES.names, [(1, 2, 3), (4, 5, 6), (7, 8, 9)], name="other", ids={7: 0, 8: 1, 9: 2}
    )
    assert len(PseudoLabels.open(tmp_path, classes=recoloured)) == 6


def test_errors_files(tmp_path: Path) -> None:
    """A file that is gone, damaged, of another size, or with a value that is no class: named, with what to do."""
    data = images()
    written(tmp_path, data)
    labels = PseudoLabels.open(tmp_path, classes=CLASSES)
    place = tmp_path / "000002.png"

    def told() -> str:
        with pytest.raises(InputError) as caught:
            labels.masks([0, 2]).read([1])
        assert str(place) in caught.value.message
        assert caught.value.suggestion == "Compute the pseudo labels again."
        with pytest.raises(InputError):
            labels.read([2])
        return caught.value.message

    content = place.read_bytes()
    place.write_bytes(content[:60])
    assert "damaged" in told()
    Image.new("L", (4, 5)).save(place)
    assert "labels of 5 x 4 pixels for an image of 4 x 5" in told()
    for value in (3, 254):
        Image.new("L", (5, 4), value).save(place)
        assert f"label {value} (20 pixels) is none of 3 classes (0 to 2)" in told()
    place.unlink()
    assert "cannot be read" in told()
    with pytest.raises(InputError, match=r"000002\.png: this file is missing"):
        PseudoLabels.open(tmp_path, classes=CLASSES)
    (tmp_path / "000004.png").unlink()
    with pytest.raises(InputError, match=r"000002\.png and 1 more of 6"):
        PseudoLabels.open(tmp_path, classes=CLASSES)
    with pytest.raises(InputError, match="image 7 has no pseudo labels"):
        labels.read([0, 7])
    with pytest.raises(InputError, match="image 9 has no pseudo labels"):
        labels.masks(torch.tensor([9]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("{", "cannot be read"),
        ("[]", "not a whole manifest"),
        ({"form": "soft"}, "not a whole manifest"),
        ({"version": 2}, "not a whole manifest"),
        ({"rows": ["../a", 1, 2, 3, 4, 5]}, "not a whole manifest"),
        ({"rows": [0]}, "not a whole manifest"),
        ({"classes": {}}, "not a whole manifest"),
        ({"thresholds": [0.5]}, "not a whole manifest"),
        ({"thresholds": [0.5, float("nan"), 0.5]}, "not a whole manifest"),
        ({"thresholds": [0.5, "x", 0.5]}, "not a whole manifest"),
        ({"kept_share": [None, "x", 0.5]}, "not a whole manifest"),
        ({"sizes": [[4, 5]] * 5 + [[4]]}, "not a whole manifest"),
        ({"sizes": [[4, 5]] * 4 + [[4], [4, 5, 6]]}, "not a whole manifest"),
        ({"sizes": [[4, 10**30]] * 6}, "not a whole manifest"),
        ({"sizes": [[4, 0]] * 6}, "not a whole manifest"),
        ({"sizes": [4] * 6}, "not a whole manifest"),
        ({"rows": [0, 0, 1, 2, 3, 4]}, "not a whole manifest"),
        ({"rows": [-1, 0, 1, 2, 3, 4]}, "not a whole manifest"),
        ({"rows": [], "sizes": []}, "not a whole manifest"),
        ({"classes": {"names": "abc"}}, "not a whole manifest"),
        ({"data": None}, "not a whole manifest"),
    ],
)
def test_errors_manifest(tmp_path: Path, change: Any, text: str) -> None:
    found = written(tmp_path, images())
    new = change if isinstance(change, str) else json.dumps({**found, **change})
    (tmp_path / MANIFEST).write_text(new)
    with pytest.raises(InputError, match=text):
        PseudoLabels.open(tmp_path, classes=CLASSES)


# -------------------------------------------------------------------------------------------------------- ranks


def _shared(folder: str, exact: bool, rows: list[int]) -> dict[str, Any]:
    found = written(Path(folder), images(), rows, counter=ClassThresholds(3, exact=exact))
    if dist.world() > 1:
        assert found == json.loads((Path(folder) / MANIFEST).read_text())
    return found


@pytest.mark.parametrize(("exact", "rows"), [(True, [3, 1, 0, 5, 4]), (False, [3, 1, 0, 5, 4]), (True, [2])])
def test_ranks(pool: Pool, tmp_path: Path, exact: bool, rows: list[int]) -> None:
    """Two ranks write the files and the manifest that one writes, also when one of them has no image."""
    expected = _shared(str(tmp_path / "one"), exact, rows)
    for found in pool.run(_shared, str(tmp_path / "two"), exact, rows):
        assert found == expected
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()} == files
    assert len(files) == len(rows) + 1
