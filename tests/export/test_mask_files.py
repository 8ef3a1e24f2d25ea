"""Masks as files: what is in them, which images they come from, what is refused."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from leanlabel.data.class_map import ClassMap, class_map, plain_map
from leanlabel.data.images import PixelArray
from leanlabel.errors import InputError, RunError
from leanlabel.export.masks import Found, predict_masks, write_masks

Image = pytest.importorskip("PIL.Image")

COLOURS = ((128, 64, 128), (0, 0, 142), (70, 70, 70))
CLASSES = ClassMap("own", ("road", "car", "wall"), COLOURS, {7: 0, 8: 0, 26: 1, 12: 2}, frozenset({0}))


@dataclass
class Segmented:
    classes: Any
    confidence: Any


class Thresholds:
    """Classes by brightness: dark, middle, light; surer the lighter."""

    def __init__(self, classes: ClassMap = CLASSES) -> None:
        self.classes = classes
        self.seen: list[tuple[int, ...]] = []

    def segment(self, image: Tensor) -> Segmented:
        assert image.dtype == torch.uint8
        self.seen.append(tuple(image.shape))
        level = image.float().mean(0)
        return Segmented((level // 86).to(torch.uint8), (level / 255).clamp(0.25, 1))


class Run:
    """A run as the command sees it."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.provenance = {"recipe": "tiny"}
        self.results = {
            "protocols": {
                "miou": {"readouts": {"trained": {"mean": 0.61}}, "split": {"name": "val", "count": 1}}
            }
        }


def pixels(height: int = 9, width: int = 13, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def picture(path: Path, height: int = 9, width: int = 13, mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(height, width, seed)).convert(mode).save(path)
    return path


def photos(root: Path) -> Path:
    """A folder of images of several sizes and kinds."""
    picture(root / "a.png")
    picture(root / "street" / "b.PNG", 7, 5, seed=1)
    picture(root / "street" / "deep" / "c.tif", 1, 3, seed=2)
    picture(root / "grey.bmp", mode="L")
    picture(root / "ink.jpg", mode="CMYK")
    picture(root / "clear.webp", mode="RGBA")
    deep = np.linspace(0, 65535, 6 * 4).reshape(6, 4).astype(np.uint16)
    Image.fromarray(deep).save(root / "sixteen.png")
    (root / "notes.txt").write_text("not an image")
    return root


def tree(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "predictions.json").read_text(encoding="utf-8"))


def test_values(tmp_path: Path) -> None:
    """Palette PNGs of classes at the images' own sizes, under their own names; the summary by hand."""
    method = Thresholds()
    source, out = photos(tmp_path / "photos"), tmp_path / "out"
    found = predict_masks(Run(method), [str(source)], out, overlay="png", confidence=True, quiet=True)
    assert found == told(out)
    assert [path for path in tree(out) if path.startswith("masks/")] == [
        "masks/a.png",
        "masks/clear.png",
        "masks/grey.png",
        "masks/ink.png",
        "masks/sixteen.png",
        "masks/street/b.png",
        "masks/street/deep/c.png",
    ]
    assert len(tree(out)) == 3 * 7 + 3
    image = pixels()
    expected = (image.astype(np.float32).mean(2) // 86).astype(np.uint8)
    mask = Image.open(out / "masks" / "a.png")
    assert mask.mode == "P"
    assert np.array_equal(np.array(mask), expected)
    assert np.array_equal(np.array(mask.convert("RGB")), np.array(COLOURS, np.uint8)[expected])
    assert read(out / "masks" / "street" / "deep" / "c.png").shape == (1, 3)
    p = np.clip(image.mean(2) / 255, 0.25, 1)
    assert np.abs(read(out / "confidence" / "a.png") - np.rint(255 * p)).max() <= 1
    mixed = read(out / "overlays" / "a.png").astype(int)
    assert np.abs(mixed - (image + np.array(COLOURS)[expected]) / 2).max() <= 1
    one = next(one for one in found["images"] if one["name"] == "a.png")
    assert (one["height"], one["width"], one["mask"]) == (9, 13, "masks/a.png")
    assert one["shares"] == [pytest.approx((expected == c).mean(), abs=1e-6) for c in range(3)]
    assert one["mean_confidence"] == pytest.approx(p.mean(), abs=1e-6)
    totals = [sum(int((read(path) == c).sum()) for path in (out / "masks").rglob("*.png")) for c in range(3)]
    assert [entry["pixels"] for entry in found["classes"]] == totals
    assert found["pixels"] == sum(totals)
    assert found["classes"][0]["share"] == pytest.approx(totals[0] / sum(totals))
    assert (found["expected"], found["model"]) == ({"miou": 0.61, "part": "val"}, {"recipe": "tiny"})
    assert Image.open(out / "legend.png").size[1] == 3 * 28 + 16


def test_values_of_raw_ids(tmp_path: Path) -> None:
    """The first listed id of each class, so that the user's own map reads the masks; and both maps do."""
    source = picture(tmp_path / "a.png").parent
    plain = predict_masks(Run(Thresholds()), [str(source)], tmp_path / "plain", quiet=True)
    raw = predict_masks(Run(Thresholds()), [str(source)], tmp_path / "raw", raw_ids=True, quiet=True)
    assert ([one["value"] for one in plain["classes"]], plain["pixel_values"]) == ([0, 1, 2], "classes")
    assert ([one["value"] for one in raw["classes"]], raw["pixel_values"]) == ([7, 26, 12], "raw ids")
    classes = read(tmp_path / "plain" / "masks" / "a.png")
    ids = read(tmp_path / "raw" / "masks" / "a.png")
    assert np.array_equal(ids, np.array([7, 26, 12])[classes])
    shown = Image.open(tmp_path / "raw" / "masks" / "a.png").convert("RGB")
    assert np.array_equal(np.array(shown), np.array(COLOURS, np.uint8)[classes])
    for folder, values in (("plain", classes), ("raw", ids)):
        stored = json.loads((tmp_path / folder / "classes.json").read_text(encoding="utf-8"))
        assert np.array_equal(ClassMap.from_dict(stored).translate(values, "a"), classes)


def test_values_of_large_ids_and_colours(tmp_path: Path) -> None:
    """Ids above 255 become 16-bit grey; where colours tell the classes, a colour picture is written."""
    source = str(picture(tmp_path / "a.png"))
    classes = (pixels().astype(np.float32).mean(2) // 86).astype(np.uint8)
    large = plain_map(["a", "b", "c"], COLOURS, ids={1000: 0, 2: 1, 65535: 2})
    predict_masks(Run(Thresholds(large)), [source], tmp_path / "large", raw_ids=True, quiet=True)
    assert np.array_equal(read(tmp_path / "large" / "masks" / "a.png"), np.array([1000, 2, 65535])[classes])
    painted = plain_map(["a", "b", "c"], COLOURS, by_colour=True)
    found = predict_masks(Run(Thresholds(painted)), [source], tmp_path / "painted", raw_ids=True, quiet=True)
    assert (found["pixel_values"], found["classes"][0]["value"]) == ("colours", None)
    assert np.array_equal(read(tmp_path / "painted" / "masks" / "a.png"), np.array(COLOURS)[classes])


def test_values_of_inputs(tmp_path: Path) -> None:
    """One image, a list with a place elsewhere, an archive, several at once, and a run's own images."""
    run, source = Run(Thresholds()), photos(tmp_path / "photos")
    predict_masks(run, [str(source / "a.png")], tmp_path / "one", overlay=None, quiet=True)
    assert tree(tmp_path / "one") == ["classes.json", "legend.png", "masks/a.png", "predictions.json"]
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "own.txt").write_text("../photos/a.png\n../photos/street/b.PNG\n")
    predict_masks(run, [str(lists / "own.txt")], tmp_path / "listed", overlay=None, quiet=True)
    assert tree(tmp_path / "listed" / "masks") == ["a.png", "street/b.png"]
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.write(source / "a.png", "images/a.png")
    inputs = [
        str(source),
        str(tmp_path / "packed.zip"),
        str(picture(tmp_path / "x.png")),
        str(picture(tmp_path / "y.png")),
    ]
    found = predict_masks(run, inputs, tmp_path / "several", overlay=None, quiet=True)
    assert {one["name"] for one in found["images"]} >= {
        "photos/street/b.PNG",
        "packed/images/a.png",
        "x.png",
        "y.png",
    }
    assert np.array_equal(
        read(tmp_path / "several" / "masks" / "packed" / "images" / "a.png"),
        read(tmp_path / "one" / "masks" / "a.png"),
    )

    class Own:
        pixels = PixelArray(torch.from_numpy(pixels()).permute(2, 0, 1)[None].repeat(12, 1, 1, 1))
        ids = None

    predict_masks(run, [], tmp_path / "own", own=Own, quiet=True)
    assert tree(tmp_path / "own" / "masks")[:2] == ["00.png", "01.png"]

    class Bands(Thresholds):
        band_reading = ((2,), None)

        def segment(self, image: torch.Tensor) -> Segmented:
            assert image.shape[0] == 1
            return super().segment(image.repeat(3, 1, 1))

    predict_masks(Run(Bands()), [str(source / "a.png")], tmp_path / "bands", quiet=True)
    assert tree(tmp_path / "bands" / "masks") == ["a.png"]


def test_values_of_a_second_call(tmp_path: Path) -> None:
    """What lies below an input is no input; with force, files of an earlier call that are not written again go."""
    run, source = Run(Thresholds()), photos(tmp_path / "photos")
    out = source / "out"
    first = predict_masks(run, [str(source)], out, confidence=True, quiet=True)
    (out / "masks" / "mine.png").write_bytes(b"keep")
    (source / "a.png").unlink()
    second = predict_masks(run, [str(source)], out, overlay=None, force=True, quiet=True)
    assert len(second["images"]) == len(first["images"]) - 1
    assert tree(out / "masks") == sorted(
        ["mine.png", *(one["mask"].removeprefix("masks/") for one in second["images"])]
    )
    assert tree(out / "overlays") == tree(out / "confidence") == []
    summary = told(out)
    summary["images"] = [
        {"mask": "masks/../../ink.jpg"},
        {"mask": "/etc/x"},
        {"mask": "legend.png"},
        3,
        {"mask": 4},
    ]
    (out / "predictions.json").write_text(json.dumps(summary))
    predict_masks(run, [str(source)], out, force=True, quiet=True)
    assert (source / "ink.jpg").exists()


def test_values_of_own_loops(tmp_path: Path) -> None:
    """`write_masks` alone: arrays, half precision, no image at a time more than needed."""
    alive: list[int] = []

    def found() -> Any:
        for number in range(3):
            alive.append(number)
            classes = torch.full((4, 5), number, dtype=torch.uint8)
            assert len(list((tmp_path).glob(".out.*/masks/*"))) == number  # the one before is on disk already
            yield Found(f"{number}.png", Segmented(classes, torch.full((4, 5), 0.5, dtype=torch.bfloat16)))

    summary = write_masks(found(), tmp_path / "out", CLASSES, overlay=None)
    assert alive == [0, 1, 2]
    assert [one["share"] for one in summary["classes"]] == [pytest.approx(1 / 3)] * 3
    assert summary["mean_confidence"] == 0.5
    none = write_masks(iter(()), tmp_path / "none", CLASSES)
    assert (none["pixels"], none["mean_confidence"], none["images"]) == (0, None, [])


def test_values_of_long_images(tmp_path: Path) -> None:
    """A side that does not fit into a JPEG gives a PNG."""
    image = np.zeros((3, 1, 65_600), np.uint8)
    segmented = Segmented(np.zeros((1, 65_600), np.uint8), np.ones((1, 65_600), np.float32))
    found = write_masks([Found("long.png", segmented, image)], tmp_path / "out", CLASSES)
    assert found["images"][0]["overlay"] == "overlays/long.png"


def test_values_of_legend_with_any_name(tmp_path: Path) -> None:
    strange = plain_map(["straße", "дорога", "a\nb", "x" * 200])
    write_masks(iter(()), tmp_path / "out", strange)
    width, height = Image.open(tmp_path / "out" / "legend.png").size
    assert height == 4 * 28 + 16
    assert width < 1200
    write_masks(iter(()), tmp_path / "city", class_map("cityscapes-19"), raw_ids=True)


def test_degenerate_unreadable(tmp_path: Path) -> None:
    """All that cannot be read are named, and nothing is written; or they are left out and listed."""
    run, source, out = Run(Thresholds()), photos(tmp_path / "photos"), tmp_path / "out"
    (source / "empty.png").write_bytes(b"")
    whole = (source / "a.png").read_bytes()
    (source / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        InputError, match=r"(?s)2 of 9 images.*cut\.png: damaged.*empty\.png: the file is empty.*--skip-unr"
    ):
        predict_masks(run, [str(source)], out, quiet=True)
    assert run.method.seen == []
    assert not out.exists()
    found = predict_masks(run, [str(source)], out, skip_unreadable=True, quiet=True)
    assert [one["name"] for one in found["skipped"]] == ["cut.png", "empty.png"]
    assert "the file is empty" in found["skipped"][1]["reason"]
    assert len(found["images"]) == 7
    for path in source.rglob("*.*"):
        if path.is_file():
            path.write_bytes(b"") if path.suffix != ".txt" else None
    with pytest.raises(InputError, match="9 of 9 images cannot be read"):
        predict_masks(run, [str(source)], tmp_path / "none", skip_unreadable=True, quiet=True)


def test_errors_of_names(tmp_path: Path) -> None:
    """Two images with one mask, and names that leave the folder; nothing is left behind."""
    run = Run(Thresholds())
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "A.jpg")
    with pytest.raises(InputError, match=r"A\.jpg and a\.png would have the same mask, a\.png"):
        predict_masks(run, [str(tmp_path / "in")], tmp_path / "out", quiet=True)
    one = Segmented(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.float32))
    for name in ("../a.png", "/a.png", "a//b.png", "b/../../a.png", "./a.png", "", "a\0.png"):
        with pytest.raises(InputError, match="would lie outside of its folder"):
            write_masks([Found(name, one)], tmp_path / "out", CLASSES, overlay=None)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_errors_names_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    os.rename(picture(tmp_path / "x.png"), os.path.join(os.fsencode(tmp_path / "in"), b"x\xff.png"))
    found = predict_masks(Run(Thresholds()), [str(tmp_path / "in")], tmp_path / "out", quiet=True)
    assert found["images"][0]["name"] == "x\\udcff.png"
    assert os.listdir(os.fsencode(tmp_path / "out" / "masks")) == [b"x\xff.png"]


def test_errors(tmp_path: Path) -> None:
    run, source, out = Run(Thresholds()), str(photos(tmp_path / "photos")), tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        predict_masks(run, [source], tmp_path / "full", quiet=True)
    with pytest.raises(InputError, match="does not exist"):
        predict_masks(run, [str(tmp_path / "nowhere")], out, quiet=True)
    (tmp_path / "photos" / "none").mkdir()
    with pytest.raises(InputError, match="holds no image files"):
        predict_masks(run, [str(tmp_path / "photos" / "none")], out, quiet=True)
    with pytest.raises(InputError, match="nothing to predict"):
        predict_masks(run, [], out, quiet=True)

    class TooSmall(Thresholds):
        def segment(self, image: Tensor) -> Segmented:
            raise InputError("the image is smaller than the network's smallest input.", "Enlarge it.")

    with pytest.raises(InputError, match=r"a\.png: the image is smaller .* Enlarge it\."):
        predict_masks(Run(TooSmall()), [source], out, quiet=True)

    class Resized(Thresholds):
        def segment(self, image: Tensor) -> Segmented:
            return Segmented(np.zeros((2, 2), np.uint8), np.ones((2, 2)))

    with pytest.raises(
        RunError, match=r"a\.png: the model gave classes of \(2, 2\) pixels for an image of \(9, 13\)"
    ):
        predict_masks(Run(Resized()), [source], out, quiet=True)
    mask, sure = np.zeros((2, 2), np.uint8), np.ones((2, 2), np.float32)
    for classes, confidence, message in (
        (mask + 3, sure, "class 3, there are 3"),
        (mask, sure * 2, r"confidence from 2\.0"),
        (mask, sure * np.nan, "confidence from nan"),
        (mask, sure[:1], "do not fit"),
        (mask.astype(int), sure, "do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            write_masks([Found("a", Segmented(classes, confidence))], out, CLASSES, overlay=None)
    with pytest.raises(ValueError, match="an overlay needs the image"):
        write_masks([Found("a", Segmented(mask, sure))], out, CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "photos"]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The verb writes masks for a model that segments, and refuses options that mean nothing for it."""
    from leanlabel import api, export
    from leanlabel.cli import predict

    model: Any = Run(Thresholds())
    model.segment = model.method.segment
    source = photos(tmp_path / "photos")
    monkeypatch.setattr(api, "is_run", lambda path: True)
    monkeypatch.setattr(api, "load", lambda path: model)
    given: dict[str, Any] = {
        "form": "csv", "force": False, "overlay": None, "confidence": False, "raw_ids": False,
        "skip_unreadable": False, "as_json": False, "prototypes": False, "support": [], "support_mask": [],
        "support_only": False,
    }  # fmt: skip
    predict.command(Path("run"), [str(source)], tmp_path / "out", **given)
    shown = capsys.readouterr().out
    assert "7 images" in shown
    assert "mIoU 0.610 (measured on val)" in shown
    assert (tmp_path / "out" / "overlays" / "a.jpg").exists()
    predict.command(
        Path("run"),
        [str(source)],
        tmp_path / "raw",
        **{**given, "overlay": False, "raw_ids": True, "as_json": True},
    )
    printed = json.loads(capsys.readouterr().out)
    assert [one["value"] for one in printed["classes"]] == [7, 26, 12]
    assert "images" not in printed
    assert not (tmp_path / "raw" / "overlays").exists()
    with pytest.raises(InputError, match="--format npz: this model segments images"):
        predict.command(Path("run"), [str(source)], tmp_path / "x", **{**given, "form": "npz"})
    model = object()
    with pytest.raises(InputError, match="--confidence, --raw-ids: run does not segment images"):
        predict.command(
            Path("run"), [str(source)], tmp_path / "x", **{**given, "confidence": True, "raw_ids": True}
        )
    monkeypatch.setattr(api, "is_run", lambda path: False)
    monkeypatch.setattr(export, "is_export", lambda path: True)
    with pytest.raises(InputError, match="an export holds no data"):
        predict.command(Path("run"), [], tmp_path / "x", **given)


def test_masks_are_no_images(tmp_path: Path) -> None:
    """Of a folder or list of images and masks only the images are predicted."""
    for name in ("images", "masks"):
        picture(tmp_path / "set" / name / "a.png")
    (tmp_path / "set/pairs.txt").write_text("images/a.png masks/a.png\n")
    for number, place in enumerate(("set", "set/pairs.txt")):
        predict_masks(Run(Thresholds()), [str(tmp_path / place)], tmp_path / f"out{number}", quiet=True)
        assert [path.endswith("a.png") for path in tree(tmp_path / f"out{number}" / "masks")] == [True]
