"""ONNX models of segmentation networks: every network and normalisation at any size, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segmentationsamples import CLASSES, MEAN, STD, dense, held, images, model, network
from torch import Tensor, nn

from leanlabel.data.dense import DenseImages
from leanlabel.errors import InputError
from leanlabel.export.segmentation import SegmentationModel
from leanlabel.export.writing import write
from leanlabel.models.frozen_norm import FrozenBatchNorm
from leanlabel.models.image import Backbone
from leanlabel.models.segmenters import upsample

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from leanlabel.export.onnx_segmentation import segmentation_model  # noqa: E402  needs onnx

SMALL: dict[str, Any] = {"encoder": "small-cnn", "widths": (4, 6, 8)}
GROUP: dict[str, Any] = {"norm": "group", "norm_groups": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {"name": "tiny-fcn"},
    "tiny, group": {"name": "tiny-fcn", **GROUP},
    "small": {"name": "small-fcn", "norm": "frozen", "width": 8},
    "small, none": {"name": "small-fcn", "norm": "none"},
    "unet": {"name": "unet", "width": 4, "levels": 3},
    "unet, sync": {"name": "unet", "width": 4, "levels": 2, "norm": "sync"},
    "fcn": {"name": "fcn", **SMALL, "norm": "split"},
    "linear, corners": {"name": "linear", **SMALL, "align_corners": True},
    "mlp": {"name": "segformer", **SMALL, "width": 6},
    "mlp, group": {"name": "segformer", **SMALL, "width": 6, **GROUP},
    "mlp, none": {"name": "segformer", **SMALL, "width": 6, "norm": "none"},
    "daformer": {"name": "daformer", **SMALL, "width": 6, "dilations": (1, 2, 5)},
    "daformer, whole filters": {"name": "daformer", **SMALL, "width": 6, "depthwise": False, **GROUP},
    "deeplab-v2": {"name": "deeplab-v2", **SMALL, "dilations": (1, 3), "align_corners": True},
    "deeplab-v3+": {"name": "deeplab-v3+", "encoder": "resnet18", "width": 8, "norm": "frozen"},
    "deeplab-v3+, whole filters": {"name": "deeplab-v3+", **SMALL, "width": 8, "depthwise": False},
    "deeplab-v3+, group": {"name": "deeplab-v3+", **SMALL, "width": 8, **GROUP},
    "mobile": {"name": "deeplab-v3+", "encoder": "mobilenet-v2", "width": 8, "output_stride": 8},
}
SIZES = ((64, 48), (41, 53), (37, 70))


def session(proto: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


def answers(runs: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [one.name for one in runs.get_outputs()]
    return dict(zip(names, runs.run(names, inputs), strict=True))


def plain(pixels: Tensor) -> np.ndarray:
    return pixels.numpy().astype(np.float32) / 255


def compare(
    exported: SegmentationModel, runs: Any, pixels: Tensor, size: tuple[int, int] | None = None
) -> None:
    """Logits, classes and confidence against the torch network and against the masks of the export."""
    given = {"image": plain(pixels)} | ({} if size is None else {"size": np.array(size)})
    found = answers(runs, given)
    size = size or (pixels.shape[2], pixels.shape[3])
    with torch.no_grad():
        small = exported.segmenter()(exported.prepared(pixels)).logits.float()
    logits = upsample(small, size, exported.settings.align_corners).numpy()
    scale = np.abs(logits).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=3e-5 * scale)
    assert (found["classes"].dtype, found["classes"].shape) == (np.uint8, (len(pixels), *size))
    np.testing.assert_array_equal(found["classes"], found["logits"].argmax(1))
    p = torch.from_numpy(logits).softmax(1)
    np.testing.assert_allclose(found["confidence"], p.amax(1).numpy(), atol=1e-4)
    clear = (p.topk(2, 1).values.diff(dim=1).abs()[:, 0] > 1e-3).numpy()
    assert clear.mean() > 0.9
    if size == tuple(pixels.shape[2:]):
        masks = np.stack([exported.segment(one).classes.numpy() for one in pixels])
        assert len(np.unique(masks)) > 1
        np.testing.assert_array_equal(found["classes"][clear], masks[clear])


@pytest.mark.parametrize("which", NETWORKS)
def test_reference(which: str) -> None:
    """Equal to the network and to its masks at sizes that nothing divides, for batches of several sizes."""
    exported = held(**NETWORKS[which])
    runs = session(exported.onnx_model())
    for count, (height, width) in enumerate(SIZES, start=1):
        compare(exported, runs, images(1 + count % 2, height, width))


@pytest.mark.parametrize("base", [25, 50, 96])
def test_reference_of_a_base(base: int) -> None:
    """Scaling to a shorter side happens inside, downwards and upwards, with the rounding of the run."""
    exported = held(base=base)
    runs = session(exported.onnx_model())
    for height, width in ((50, 75), (41, 53), (90, 37), (51, 50)):
        compare(exported, runs, images(1, height, width))


def test_reference_of_a_size() -> None:
    """Where files are scaled first, outputs have the size that is asked for: masks are those of the export."""
    exported = held(reading={"resize": 32})
    runs = session(exported.onnx_model())
    compare(exported, runs, images(2, 32, 41), (77, 99))
    compare(exported, runs, images(1, 32, 41), (32, 41))
    assert [one.name for one in runs.get_inputs()] == ["image", "size"]
    file = images(1, 64, 82)[0]
    image_module = pytest.importorskip("PIL.Image")
    small = image_module.fromarray(file.permute(1, 2, 0).numpy()).resize((41, 32), 3, reducing_gap=3.0)
    x = np.moveaxis(np.asarray(small, np.float32), 2, 0)[None] / 255
    found, one = answers(runs, {"image": x, "size": np.array([64, 82])}), exported.segment(file)
    np.testing.assert_allclose(found["confidence"][0], one.confidence.numpy(), atol=1e-4)
    assert (found["classes"][0] == one.classes.numpy()).mean() > 0.999


def test_reference_without_eps() -> None:
    """Frozen normalisation without eps, with a constant channel, which gives its bias."""
    exported = held(name="tiny-fcn", norm="frozen", frozen_eps=False)
    norm = next(part for part in exported.segmenter().modules() if isinstance(part, FrozenBatchNorm))
    norm.running_var[1] = 0
    before = copy.deepcopy(exported.segmenter().state_dict())
    compare(exported, session(exported.onnx_model()), images(1, 41, 53))
    assert all(torch.equal(value, before[name]) for name, value in exported.segmenter().state_dict().items())
    assert isinstance(norm, FrozenBatchNorm)


def test_dtypes() -> None:
    """Weights in float64 become float32 in the model; bands of 16 bits come as floats."""
    made = model(channels=5, name="unet", width=4, levels=2)
    double = {name: t.double() if t.is_floating_point() else t for name, t in made.exported.tensors.items()}
    exported = SegmentationModel(made.exported.config, double)
    compare(exported, session(exported.onnx_model()), images(1, 41, 53, 5))


def test_degenerate() -> None:
    """The smallest image: a single position of the last map."""
    for which in ("tiny", "unet", "deeplab-v3+, group", "mlp"):
        exported = held(**NETWORKS[which])
        side = exported.encoder.min_size
        pixels = images(1, side, side)
        found = answers(session(exported.onnx_model()), {"image": plain(pixels)})
        one = exported.segment(pixels[0])
        np.testing.assert_allclose(found["confidence"][0], one.confidence.numpy(), atol=1e-4)


def test_values_of_the_files(tmp_path: Path) -> None:
    """Model and description, checked on a cut with odd sides; equal models are equal files; any size is declared."""
    pixels = images(3, 64, 80)
    found = write(model(), "onnx", tmp_path / "out", data=dense(pixels))
    assert sorted(found["files"]) == ["model.onnx", "pipeline.json"]
    assert found["check"]["max_relative_difference"]["logits"] < 1e-5
    told = json.loads((tmp_path / "out" / "pipeline.json").read_text())
    assert (told["kind"], told["classes"]) == ("segmentation", list(CLASSES.names))
    assert told["class_map"] == CLASSES.as_dict()
    assert told["inputs"] == {
        "image": {
            "shape": ["B", 3, "H", "W"],
            "type": "float32",
            "what": "RGB from 0 to 1, channels first; sides of any size from 8 pixels on",
        }
    }
    assert told["by_the_caller"][-1] == "divide by 255"
    runs = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [(one.name, one.shape) for one in runs.get_inputs()] == [("image", ["B", 3, "H", "W"])]
    declared = {one.name: one.shape for one in runs.get_outputs()}
    assert declared == {name: one["shape"] for name, one in told["outputs"].items()}
    write(model(), "onnx", tmp_path / "again", data=dense(pixels))
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (tmp_path / "again" / "model.onnx").read_bytes()
    assert held().onnx_inputs(dense(pixels))["image"].shape == (2, 3, 63, 79)


class Mixed:
    """Images of two sizes."""

    shape = None

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return images(1, 40 + 9 * index, 52 - 20 * index)[0]

    def read(self, rows: Any) -> list[Tensor]:
        return [self[row] for row in rows]

    def take(self, rows: Any) -> Any:
        raise NotImplementedError


def test_values_of_the_check(tmp_path: Path) -> None:
    """Images of several sizes, and scaled files: outputs of another size than the images are compared, too."""
    data = DenseImages("mixed", Mixed(), None, CLASSES)  # type: ignore[arg-type]
    write(model(), "onnx", tmp_path / "out", data=data)
    assert held().onnx_inputs(data)["image"].shape == (2, 3, 39, 31)
    exported = held(reading={"resize": 40})
    given = exported.onnx_inputs(data)
    assert given["size"].tolist() == [58, 46]
    assert exported.onnx_outputs(data)["logits"].shape == (2, 3, 58, 46)
    told = write(model(reading={"resize": 40}), "onnx", tmp_path / "sized", data=data)
    assert told["check"]["max_relative_difference"]["confidence"] < 1e-5
    told = json.loads((tmp_path / "sized" / "pipeline.json").read_text())
    assert told["outputs"]["classes"]["shape"] == ["B", "height", "width"]
    assert "bicubic" in told["by_the_caller"][1]


def test_values_of_bands() -> None:
    told = held(channels=4, reading={"bands": [3, 0, 1, 2], "white": 4000.0}).onnx_pipeline()
    assert told["by_the_caller"][0] == "decode as it is and take the bands [3, 0, 1, 2], counted from 0"
    assert "else by 4000" in told["by_the_caller"][1]
    assert told["inputs"]["image"]["shape"][1] == 4


SETTINGS = {
    "window": ({"window": [32, 32]}, r"evaluation\.window is \[32, 32\].*--set evaluation\.window=null"),
    "scales": ({"scales": [0.5, 1.0]}, r"evaluation\.scales is \[0\.5, 1\.0\].*evaluation\.scales=\[1\.0\]"),
    "flip": ({"flip": True}, r"evaluation\.flip is true.*evaluation\.flip=false"),
}


@pytest.mark.parametrize("which", SETTINGS)
def test_errors_of_settings(which: str, tmp_path: Path) -> None:
    """What an ONNX model would not do is refused, and nothing is left."""
    inference, message = SETTINGS[which]
    with pytest.raises(InputError, match=message):
        write(model(inference=inference), "onnx", tmp_path / "out", data=dense(images()))
    assert list(tmp_path.iterdir()) == []


class Foreign(Backbone):
    width, min_size = 3, 1


def test_errors_of_unknown_parts() -> None:
    net = network()
    net.encoder = Foreign()
    with pytest.raises(InputError, match=r"The encoder Foreign has no form in ONNX yet\. Use --format safe"):
        segmentation_model(net, MEAN, STD)
    net = network()
    net.decoder.filter[0][1] = nn.LayerNorm(3)
    with pytest.raises(InputError, match="LayerNorm has no form in ONNX"):
        segmentation_model(net, MEAN, STD)
    net = network()
    net.decoder = nn.Identity()
    with pytest.raises(InputError, match="The decoder Identity has no form"):
        segmentation_model(net, MEAN, STD)
    net = network(name="segformer", **SMALL, width=6)
    net.decoder.norm = nn.LayerNorm(6)
    with pytest.raises(InputError, match="LayerNorm has no form in ONNX"):
        segmentation_model(net, MEAN, STD)
    made = model()
    state = {k.removeprefix("encoder."): v for k, v in made.exported.tensors.items() if k.startswith("enc")}
    alone = SegmentationModel({**made.exported.config, "format": "backbone"}, state)
    with pytest.raises(InputError, match="encoder of a segmentation network"):
        alone.onnx_model()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segformer", "linear"])
def test_errors_of_transformers(name: str, tmp_path: Path) -> None:
    """Refused in a sentence, nothing is left."""
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"The encoder \w+Model has no form in ONNX yet"):
        write(model(name=name), "onnx", tmp_path / "out", data=dense(images(2, 70, 70)))
    assert list(tmp_path.iterdir()) == []
