"""What a look at images finds: each finding where it belongs, and nowhere else."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanlabel.data.findings import Finding
from leanlabel.data.graph_check import Finding as GraphFinding
from leanlabel.data.image_check import check_images
from leanlabel.data.image_files import read_images
from leanlabel.data.images import Images, PixelArray
from leanlabel.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)


def noise(n: int, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=GENERATOR, dtype=torch.uint8)


def found(images: Images | Path) -> dict[str, Finding]:
    findings = check_images(images)
    codes = [one.code for one in findings]
    assert len(set(codes) - {"leak_copies"}) == len([code for code in codes if code != "leak_copies"])
    return {one.code: one for one in findings}


def balanced(n: int = 40, **more: object) -> Images:
    """Nothing to say about it but facts."""
    return Images("x", PixelArray(noise(n)), torch.arange(n) % 2, **more)  # type: ignore[arg-type]


def save(pixels: torch.Tensor, place: Path, mode: str = "RGB") -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert(mode).save(place)


def test_values_plain() -> None:
    """A sound set: facts only."""
    split = {"train": torch.arange(30), "test": torch.arange(30, 40)}
    look = check_images(balanced(splits=split))
    assert [(one.severity, one.code, one.count) for one in look] == [
        ("info", "images", 40),
        ("info", "few_images", 30),
        ("info", "sizes", 1),
        ("info", "classes", 2),
        ("info", "split_train", 30),
        ("info", "split_test", 10),
    ]
    assert look[2].message == "all images are 16 x 16 pixels"
    assert look[3].message == "2 classes: 0 20 (50 %), 1 20 (50 %)"
    assert isinstance(look[0], GraphFinding)


def test_values_enough_images() -> None:
    assert "few_images" not in found(Images("x", PixelArray(noise(4096, 1))))


def test_values_colours() -> None:
    pixels = noise(40)
    pixels[:3] = pixels[:3, :1]  # grey
    pixels[3:5] = torch.tensor([9, 90, 200], dtype=torch.uint8)[:, None, None]
    pixels[5] = 7  # grey and of one colour
    look = found(Images("x", PixelArray(pixels), torch.arange(40) % 2))
    assert look["near_grey"].count == 4
    assert look["near_grey"].severity == "info"
    assert "hue" not in look["near_grey"].message
    assert look["one_colour"].count == 3
    assert look["one_colour"].severity == "warning"
    look = found(Images("x", PixelArray(noise(9)[:, :1].expand(9, 3, 16, 16))))
    assert "hue and saturation does nothing" in look["near_grey"].message


def test_values_labels() -> None:
    y = torch.tensor([0] * 50 + [2] * 5 + [-100] * 3)
    look = found(Images("x", PixelArray(noise(58)), y, ["a", "b", "c"]))
    assert look["unlabelled"].count == 3
    assert look["classes"].message == "2 classes: a 50 (90.9 %), c 5 (9.09 %)"
    assert look["long_tail"].count == 10
    assert look["small_classes"].message.endswith(": c")
    assert look["absent_classes"].count == 1
    assert found(Images("x", PixelArray(noise(4))))["no_labels"].severity == "info"
    one = found(Images("x", PixelArray(noise(4)), torch.zeros(4, dtype=torch.int64)))["one_class"]
    assert one.severity == "warning"
    assert "data.labels: none" in one.message


def test_values_domains() -> None:
    look = found(balanced(domain=torch.arange(40) // 30, domain_names=["day", "night"]))
    assert look["domains"].message == "2 domains: day 30, night 10"


def test_values_copies() -> None:
    """Copies within a part, across parts, and of another class."""
    images = balanced(ids=[f"{k}.png" for k in range(40)])
    pixels = images.read(range(40))
    assert isinstance(pixels, torch.Tensor)
    pixels[30] = pixels[31] = pixels[0]  # test 30, 31 = train 0; 31 has the other class
    pixels[5] = pixels[3]  # within train, same class
    splits = {"train": torch.arange(30), "val": torch.arange(35, 40), "test": torch.arange(30, 35)}
    look = found(Images("x", PixelArray(pixels), images.y, splits=splits, ids=images.ids))
    assert look["duplicates"].count == 3
    assert look["duplicates"].severity == "warning"
    assert look["duplicates"].message.startswith(
        "3 images (7.5 %) are exact copies of another one, such as 0.png"
    )
    assert look["conflicting_labels"].count == 1
    assert look["leak_copies"].count == 2
    assert look["leak_copies"].severity == "warning"
    assert "2 of 5 images of test (40 %) are exact copies of images of train" in look["leak_copies"].message
    # A flipped size is another picture, also if the bytes are the same.
    flat = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert "duplicates" in found(Images("x", PixelArray(flat)))


def test_values_splits() -> None:
    splits = {"train": torch.tensor([0, 2, 4, 4]), "test": torch.tensor([1, 3, 4])}
    look = found(balanced(splits=splits))
    assert look["split_repeats"].severity == look["split_leak"].severity == "error"
    assert look["split_repeats"].count == look["split_leak"].count == 1
    assert look["split_missing_classes"].message == "1 of 2 classes have no training image"
    assert "leak_copies" not in look


def test_values_folder(tmp_path: Path) -> None:
    """Everything that only files have: unreadable ones, sizes, pixel formats, other files, empty folders."""
    for row, pixels in enumerate(noise(12)):
        save(pixels, tmp_path / "ab"[row % 2] / f"{row}.png", "L" if row == 0 else "RGB")
    save(noise(1, 8)[0], tmp_path / "a" / "small.png")
    (tmp_path / "b" / "wide.png").write_bytes(_png(Image.new("L", (2500, 1700), 3)))
    (tmp_path / "b" / "broken.jpg").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "c").mkdir()
    look = found(tmp_path)
    assert look["images"].count == 15
    assert look["unreadable"].severity == "error"
    assert str(tmp_path / "b" / "broken.jpg") in look["unreadable"].message
    assert look["sizes"].count == 3
    assert "from 8 x 8 to 2500 x 1700, median 16 x 16, most often 16 x 16 (85.7 %)" in look["sizes"].message
    assert look["small_images"].count == 1
    assert look["large_images"].count == 1
    assert look["mixed_modes"].message == "2 pixel formats (RGB 12, L 2), all read as RGB"
    assert look["one_colour"].count == 1
    assert look["other_files"].count == 1
    assert look["empty_folders"].count == 1
    seen: list[tuple[int, int]] = []
    check_images(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (15, 15)
    images = read_images(tmp_path, skip_unreadable=True)
    assert found(images)["unreadable_skipped"].count == 1


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_values_zip(tmp_path: Path) -> None:
    """A place with a published split is looked at as it is: nothing is cut from its training part."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for row, pixels in enumerate(noise(8)):
            part = "train" if row < 6 else "test"
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            archive.writestr(f"{part}/{'ab'[row % 2]}/{row}.png", _png(image))
        archive.writestr("other/9.png", _png(Image.fromarray(np.zeros((16, 16), np.uint8))))
    look = found(tmp_path / "set.zip")
    assert look["split_train"].count == 6
    assert "split_val" not in look
    assert look["outside_splits"].count == 1
    assert look["unlabelled"].count == 1
    cut = read_images(tmp_path / "set.zip", val_share=0.4)
    assert found(cut)["val_cut_from_train"].count == 2


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image files"):
        check_images(tmp_path)
    (tmp_path / "list.txt").write_text("gone.png 1\n")
    with pytest.raises(InputError, match="1 of 1 images that do not exist"):
        check_images(tmp_path / "list.txt")


@pytest.mark.real
def test_values_real(data_root: Path) -> None:
    if not (data_root / "digits/usps.npz").is_file():
        pytest.skip(f"{data_root / 'digits/usps.npz'} is not there")
    look = found(data_root / "digits/usps.npz")
    assert look["near_grey"].count == 9298
    assert look["classes"].count == 10
    assert look["split_test"].count == 2007
