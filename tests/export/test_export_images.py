"""Exports of image models: read back, under the names of other libraries, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from imagesamples import MEAN, NAMES, STD, drawn, images, model, network
from safetensors.torch import load_file
from torch import Tensor

from leanlabel import export
from leanlabel.augment.image import plain_view
from leanlabel.data.images import PixelArray
from leanlabel.engine.method import Exported
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import rows_of
from leanlabel.export import images as kind
from leanlabel.export.images import ImageModel, perceptron
from leanlabel.export.writing import Model, write
from leanlabel.models.backbones import BackboneSettings, build_backbone
from leanlabel.models.heads import projector

CIFAR: dict[str, Any] = {"name": "resnet18", "stem": "cifar"}


def own(made: Model) -> dict[str, Tensor]:
    return {name.removeprefix("backbone."): value for name, value in made.exported.tensors.items()}


def test_values(tmp_path: Path) -> None:
    """Read back it computes what the network itself does on prepared images, and knows where it comes from."""
    made, data = model(), images(20)
    write(made, "safetensors", tmp_path / "model")
    found = export.load(tmp_path / "model")
    assert isinstance(found, ImageModel)
    pixels = data.read(range(20))
    expected = network()(plain_view(pixels, 16, mean=MEAN, std=STD))
    torch.testing.assert_close(found.embed(data), expected)
    assert made.classifier is not None
    assert torch.equal(found.predict(data), made.classifier.probabilities(found.embed(data)))
    assert (found.classes, found.provenance) == (list(NAMES), {"recipe": "sample", "method": "none"})
    told = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert (told["kind"], told["format"], told["backbone"]["name"]) == ("images", "safetensors", "small-cnn")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_chunked(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any batch size, and few images held at full size, give the same; so do images of several sizes."""
    made = model(resize=18)
    found, data = ImageModel(made.exported.config, made.exported.tensors), images(40)
    expected = torch.cat([found.embed(data.take([k])) for k in range(40)])
    monkeypatch.setattr(kind, "DECODED", 3)
    found.batch, Several.largest = batch, 0
    torch.testing.assert_close(found.embed(data), expected)
    several = images(40, pixels=Several(data.pixels))
    torch.testing.assert_close(found.embed(several)[::2], expected[::2])
    assert Several.largest == min(batch, 3)


class Several:
    """Images of which every second one is cut; counts how many are read at a time."""

    shape = None
    largest = 0

    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index][:, : 20 - index % 2 * 3]

    def read(self, rows: Any) -> list[Tensor]:
        Several.largest = max(Several.largest, len(rows))
        return [self[row] for row in rows]

    def take(self, rows: Any) -> Any:
        raise NotImplementedError


def test_values_of_a_projector(tmp_path: Path) -> None:
    """Where embeddings are the projector's, so are the export's; a plain backbone leaves it out."""
    head = drawn(lambda: projector(6, 7, 5, layers=3, norm="batch", last_norm=True, last_affine=False))
    made, data = model(projector=head), images(4, 16, 16)
    write(made, "safetensors", tmp_path / "model")
    write(made, "backbone", tmp_path / "backbone")
    whole, plain = export.load(tmp_path / "model"), export.load(tmp_path / "backbone")
    features = plain.embed(data)
    assert features.shape == (4, 6)
    torch.testing.assert_close(whole.embed(data), head(features))
    assert whole.predict(data).shape == (4, 3)


def test_reference_of_a_projector() -> None:
    """The layers are told from the names of their tensors."""
    for options in ({"layers": 1}, {"layers": 2}, {"layers": 3, "norm": "batch", "last_norm": True}):
        head = projector(4, 5, 3, **options)  # type: ignore[arg-type]
        assert str(perceptron(head.state_dict())).replace("ReLU()", "ReLU(inplace=True)") == str(head)
    assert perceptron({"0.weight": torch.zeros(2, 3, dtype=torch.float64)})[0].weight.dtype == torch.float64


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "small-cnn", "norm": "group", "norm_groups": 2},
        {"name": "small-cnn", "norm": "none"},
        {"name": "small-cnn", "norm": "split"},
        {"name": "mobilenet-v2", "stem": "cifar", "norm": "sync"},
        CIFAR,
    ],
    ids=str,
)
def test_values_of_a_backbone(changes: dict[str, Any], tmp_path: Path) -> None:
    """Plain names, every one of them explained, and loadable by plain torch."""
    made = model(**changes)
    write(made, "backbone", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = load_file(tmp_path / "out" / "backbone.safetensors")
    assert told["keys"].keys() == tensors.keys() == own(made).keys()
    for name, one in told["keys"].items():
        assert one["shape"] == list(tensors[name].shape)
        assert one["what"].strip()
        assert "transformers" not in one["what"]
        assert name not in one["what"]
    net = build_backbone(BackboneSettings(**changes)).eval()
    net.load_state_dict(tensors)
    data = images(2, 16, 16)
    found = export.load(tmp_path / "out")
    torch.testing.assert_close(
        found.embed(data),
        net(plain_view(data.read(range(2)), 16, mean=MEAN, std=STD)).detach(),
    )
    with pytest.raises(InputError, match="no readout, it can only embed"):
        found.predict(data)


def test_values_of_the_rows() -> None:
    """Rows are known by their pixels: not by labels, names or splits."""
    data = images(6)
    first = rows_of(data)
    assert first is not None
    changed = images(6, y=None, name="other", ids=[f"{k}.png" for k in range(6)])
    assert rows_of(changed) == first
    assert (
        rows_of(images(6, splits={"train": torch.arange(3)}, domain=torch.zeros(6, dtype=torch.int64)))
        == first
    )
    assert isinstance(data.pixels, PixelArray)
    spoiled = data.pixels.array.clone()
    spoiled[5, 2, 19, 23] ^= 1
    assert rows_of(images(6, pixels=PixelArray(spoiled))) != first
    made = model(data=data)
    assert made.classifier is not None
    assert made.classifier.saw(changed, 6).nonzero()[:, 0].tolist() == [2, 3]
    assert not made.classifier.saw(images(6, seed=1), 6).any()


def pictures(folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    image = pytest.importorskip("PIL.Image")
    for k, (name, size) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", size, (40 * k, 100, 200)).save(folder / name)
    return folder


def test_values_of_opened_images(tmp_path: Path) -> None:
    """Files of any size in any folders, sorted by path, read as the training images were."""
    names = {"b.png": (30, 20), "a/z.png": (18, 40), "a/b/c.png": (5, 4), "B.png": (16, 16)}
    folder = pictures(tmp_path / "in", names)
    made = model(reading={"resize": 12, "square": True})
    data = ImageModel(made.exported.config, made.exported.tensors).open(str(folder))
    assert data.ids == sorted(names)
    assert data.shape == (3, 12, 12)
    assert (data.y, data.class_names) == (None, None)
    found = ImageModel(model().exported.config, made.exported.tensors, made.classifier)
    data = found.open(str(folder))
    assert data.shape is None
    assert found.predict(data).shape == (4, 3)


def test_errors_of_opened_images(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", {"a.png": (9, 9), "b.png": (9, 9), "c.png": (9, 9)})
    (folder / "b.png").write_bytes(b"not an image")
    found = ImageModel(model().exported.config, model().exported.tensors)
    with pytest.raises(InputError, match=r"1 of 3 images cannot be read:\n.*b\.png"):
        found.open(str(folder))
    with pytest.raises(InputError, match="nowhere does not exist"):
        found.open(str(tmp_path / "nowhere"))


def test_loading_is_light(tmp_path: Path) -> None:
    """Neither the training engine nor a method nor scikit-learn nor transformers is loaded to embed and predict."""
    write(model(), "safetensors", tmp_path / "model")
    code = (
        "import sys, torch\n"
        "from leanlabel import export\n"
        "from leanlabel.data.images import Images, PixelArray\n"
        f"model = export.load({str(tmp_path / 'model')!r})\n"
        "pixels = torch.zeros(2, 3, 20, 30, dtype=torch.uint8)\n"
        "print(model.predict(Images('i', PixelArray(pixels))).shape)\n"
        "heavy = ('lightning_fabric', 'sklearn', 'transformers', 'onnx', 'leanlabel.methods', 'leanlabel.engine.fit',\n"
        "         'leanlabel.api')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["torch.Size([2, 3])", "[]"]


def test_dtypes() -> None:
    """Weights keep their type; embeddings are float32 whatever it is."""
    made, data = model(), images(3)
    double = {name: t.double() if t.is_floating_point() else t for name, t in made.exported.tensors.items()}
    found = ImageModel(made.exported.config, double, made.classifier)
    assert next(found.backbone.parameters()).dtype == torch.float64
    assert found.embed(data).dtype == torch.float32
    torch.testing.assert_close(
        found.embed(data), ImageModel(made.exported.config, made.exported.tensors).embed(data)
    )


def test_degenerate() -> None:
    """No images; and building a model changes no random number drawn afterwards."""
    made = model()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    found = ImageModel(made.exported.config, made.exported.tensors, made.classifier).to("cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    empty = images(0)
    assert found.embed(empty).shape == (0, 6)
    assert found.predict(empty).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": {"name": "small-cnn", "widths": [4, 7]}}, "do not fit"),
        ({"backbone": {"name": "other"}}, "do not fit"),
        ({"backbone": None}, "do not fit"),
        ({"preprocessing": {"size": 16}}, "do not fit"),
        ({"preprocessing": None}, "do not fit"),
        ({"preprocessing": {"size": 16, "resize": 8, "mean": MEAN, "std": STD}}, "No such preparation"),
        ({"preprocessing": {"size": 16, "mean": MEAN, "std": (0, 1, 1)}}, "No such preparation"),
        ({"names": "detectron2"}, "no published layout"),
    ],
    ids=str,
)
def test_errors_of_settings(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(model(), "safetensors", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as caught:
        export.load(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)


def test_errors_of_the_readout(tmp_path: Path) -> None:
    """A readout of other embeddings, such as a projector's where the projector is missing."""
    made = model(projector=projector(6, 6, 5))
    alone = {name: t for name, t in made.exported.tensors.items() if name.startswith("backbone.")}
    with pytest.raises(InputError, match="for embeddings of width 5, the network's are 6"):
        ImageModel(made.exported.config, alone, made.classifier)
    lone = Exported("images", made.exported.config, alone, "backbone.")
    with pytest.raises(InputError, match="for embeddings of width 5"):
        write(Model(lone, made.classifier, {}), "safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="not the state of a projector"):
        ImageModel(made.exported.config, alone | {"projector.net.weight": torch.zeros(2, 2)})
