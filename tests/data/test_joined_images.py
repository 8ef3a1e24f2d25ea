"""Images of several sources as one, and the images of dense data of two domains."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from leanlabel.data.checks import check_source, check_source_masks
from leanlabel.data.dense_source import Scenes, Transformed, open_dense
from leanlabel.data.image_source import Domains, ImageSource, open_images
from leanlabel.data.images import Images, JoinedPixels, PixelArray, fingerprint
from leanlabel.data.transformed import TransformedPixels
from leanlabel.errors import InputError


def numbered(count: int, start: int, height: int = 4, width: int = 4) -> PixelArray:
    values = torch.arange(start, start + count, dtype=torch.uint8)
    return PixelArray(values[:, None, None, None].repeat(1, 3, height, width))


def numbers(images: torch.Tensor | list[torch.Tensor]) -> list[int]:
    return [int(one[0, 0, 0]) for one in images]


def scenes(**changes: object) -> dict[str, object]:
    return {"kind": "scenes", "train": 3, "val": 1, "test": 2, "height": 32, "width": 32, **changes}


def source(**changes: object) -> Domains:
    return Domains.model_validate({"source": scenes(), "target": scenes(rendering="target"), **changes})


def folder(place: Path, count: int, side: int = 24, colour: int = 0) -> Path:
    (place / "images").mkdir(parents=True)
    for k in range(count):
        pixels = np.full((side, side, 3), colour + k, dtype=np.uint8)
        Image.fromarray(pixels).save(place / "images" / f"{k}.png")
    return place


def test_values() -> None:
    joined = JoinedPixels((numbered(3, 0), numbered(2, 10)))
    assert (len(joined), joined.shape) == (5, (3, 4, 4))
    assert numbers(joined.read([4, 0, 3, 4])) == [11, 0, 10, 11]
    assert int(joined[-1][0, 0, 0]) == 11
    taken = joined.take([3, 1]).take([1, 0])
    assert numbers(taken.read([0, 1])) == [1, 10]
    assert numbers(pickle.loads(pickle.dumps(taken)).read([1])) == [10]
    assert joined.read([]).shape == (0, 3, 4, 4)  # type: ignore[union-attr]


def test_values_of_several_sizes() -> None:
    joined = JoinedPixels((numbered(2, 0), numbered(2, 10, 6, 5)))
    assert joined.shape is None
    mixed = joined.read([2, 0])
    assert isinstance(mixed, list)
    assert [tuple(one.shape) for one in mixed] == [(3, 6, 5), (3, 4, 4)]
    assert joined.read([3, 2]).shape == (2, 3, 6, 5)  # type: ignore[union-attr]


def test_fingerprint() -> None:
    """Pixels, order and parts count."""

    def of(*parts: PixelArray, rows: list[int] | None = None) -> str:
        joined = JoinedPixels(parts)
        return fingerprint(Images("", joined if rows is None else joined.take(rows)))

    plain = of(numbered(2, 0), numbered(2, 10))
    assert plain == of(numbered(2, 0), numbered(2, 10))
    others = [of(numbered(2, 0), numbered(2, 11)), of(numbered(2, 10), numbered(2, 0))]
    others.append(of(numbered(2, 0), numbered(2, 10), rows=[1, 0, 2, 3]))
    assert len({plain, *others}) == 4


def test_fingerprint_of_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of copies, the originals and what is done to them count; none is computed."""

    def of(sensor: str) -> str:
        keys = {"kind": "transformed", "of": scenes(), "sensor": sensor}
        return fingerprint(open_images(Domains.model_validate({"source": scenes(), "target": keys})))

    plain = of("camera")
    monkeypatch.setattr(TransformedPixels, "read", None)
    opened = open_dense(Transformed.model_validate({"of": scenes(), "sensor": "inversion"}))
    other = fingerprint(Images("", JoinedPixels((opened.pixels,))))
    monkeypatch.setattr(TransformedPixels, "__getitem__", None)
    assert fingerprint(Images("", JoinedPixels((opened.pixels,)))) == other
    monkeypatch.undo()
    assert plain == of("camera")
    assert plain != of("inversion")


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        JoinedPixels(())
    for place in ([0, 3], [1, 0], [-1, 0], [0, -1]):
        with pytest.raises(ValueError, match="names an image that does not exist"):
            JoinedPixels((numbered(3, 0),), torch.tensor([place]))
    with pytest.raises(IndexError):
        JoinedPixels((numbered(3, 0),))[3]


def test_values_of_domains() -> None:
    """The training parts, source first, without labels; the pixels are those that segmentation trains on."""
    images = open_images(source())
    assert (len(images), images.y, images.splits) == (6, None, {})
    assert images.domain is not None
    assert images.domain.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.domain_names == ["source", "target"]
    target = open_dense(Scenes.model_validate(scenes(rendering="target")))
    expected = target.read(target.splits["train"])[0]
    assert torch.equal(torch.as_tensor(images.read([3, 4, 5])), expected)
    assert images.ids is not None
    assert target.ids is not None
    assert images.ids[3] == f"target/{target.ids[int(target.splits['train'][0])]}"
    assert len(set(images.ids)) == 6
    assert set(images.facts) == {"source", "target"}
    assert fingerprint(images) != fingerprint(open_images(source(target=None)))


def test_values_of_one_domain() -> None:
    images = open_images(source(target=None))
    assert (len(images), images.domain_names) == (3, ["source"])


def test_values_of_folders(tmp_path: Path) -> None:
    """Images without masks, also of another size than those of the other domain; masks are not read."""
    first, second = folder(tmp_path / "a", 3), folder(tmp_path / "b", 2, side=30, colour=100)
    (first / "masks").mkdir()
    (first / "masks" / "0.png").write_bytes(b"no image at all")
    images = open_images(
        Domains.model_validate(
            {
                "source": {"kind": "file", "path": str(first)},
                "target": {"kind": "file", "path": str(second)},
            }
        )
    )
    assert (len(images), images.shape) == (5, None)
    assert numbers(images.read([0, 4])) == [0, 101]


@pytest.mark.parametrize("limit", [None, 12])
def test_values_held_out(limit: int | None, tmp_path: Path) -> None:
    """Images that segmentation measures with are not among these, and those that it leaves out are not, either."""
    place = folder(tmp_path / "a", 20)
    (place / "masks").mkdir()
    for k in range(20):
        Image.fromarray(np.full((24, 24), k % 2, np.uint8)).save(place / "masks" / f"{k}.png")
    keys = {
        "kind": "file",
        "path": str(place),
        "classes": {"names": ["a", "b"]},
        "val_share": 0.25,
        "limit": limit,
    }
    for section in (keys, {"kind": "transformed", "of": keys, "shift": {"constant": (2, 0)}}):
        domains = Domains.model_validate({"source": section})
        data = open_dense(domains.source)
        trained = data.splits["train"].tolist()
        assert len(data.splits["val"]) == (5 if limit is None else 3)
        for mask in (place / "masks").iterdir():
            mask.write_bytes(b"nobody may open this")
        images = open_images(domains)
        assert data.ids is not None
        assert images.ids == [f"source/{data.ids[row]}" for row in trained]
        for k, row in enumerate(trained[:3]):
            assert torch.equal(images[k], data.pixels[row])
        for k in range(20):
            Image.fromarray(np.full((24, 24), k % 2, np.uint8)).save(place / "masks" / f"{k}.png")
    bare = Domains.model_validate({"source": {**keys, "labels": "none", "limit": None}})
    assert len(open_images(bare)) == 20  # no mask is known, and none is measured with


def test_kind() -> None:
    """A section says that it is of this kind, as others do."""
    section = TypeAdapter(ImageSource).validate_python({"kind": "domains", "source": scenes()})
    assert isinstance(section, Domains)
    assert TypeAdapter(ImageSource).validate_python(section.model_dump(mode="json")) == section


def test_errors_of_domains(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.target: .*nowhere"):
        open_images(source(target={"kind": "file", "path": str(tmp_path / "nowhere")}))
    with pytest.raises(InputError, match=r"data\.source: .* has no images to train on"):
        open_images(source(source=scenes(train=0)))
    place = str(folder(tmp_path / "a", 2))
    with pytest.raises(InputError, match=r"data\.target: .* has images of 1 bands"):
        open_images(source(target={"kind": "file", "path": place, "bands": (0,)}))
    with pytest.raises(ValidationError, match="source"):
        Domains.model_validate({"target": scenes()})


def test_check() -> None:
    """`data check` looks at both domains; their labels are none of its business."""
    found = {one.code: one for one in check_source(source())}
    assert found["images"].count == 6
    assert check_source_masks(source()) is None


@pytest.mark.real
def test_camvid(data_root: Path) -> None:
    """Day and dusk: the training parts of the published split."""
    path = data_root / "camvid" / "camvid.zip"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    common = {"kind": "file", "path": str(path), "resize": 120}
    images = open_images(
        Domains.model_validate(
            {
                "source": {**common, "without_groups": ("0001TP",)},
                "target": {**common, "only_groups": ("0001TP",)},
            }
        )
    )
    assert images.domain is not None
    assert images.domain.bincount().tolist() == [305, 56]  # six frames at dusk are held out
    assert images.shape == (3, 120, 160)
    assert images.ids is not None
    assert all(("0001TP" in one) == one.startswith("target/") for one in images.ids)
