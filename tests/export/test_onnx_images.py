"""ONNX models of image backbones: every architecture and normalisation, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imagesamples import MEAN, NAMES, STD, drawn, images, model, network
from torch import nn

from leanlabel.augment.image import plain_view
from leanlabel.errors import InputError
from leanlabel.export.images import ImageModel
from leanlabel.export.writing import write
from leanlabel.models.backbones import norm_layer
from leanlabel.models.heads import projector
from leanlabel.models.image import Backbone
from leanlabel.models.mobilenet import MobileNetV2
from leanlabel.models.resnet import ResNet
from leanlabel.models.small_cnn import SmallCNN

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from leanlabel.export.onnx_images import image_model  # noqa: E402  needs onnx

NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    **{
        f"small {kind}": (13, lambda k=kind: small(k)) for kind in ("batch", "sync", "split", "group", "none")
    },
    "small, stride 1": (13, lambda: SmallCNN((4, 6), 1)),
    "basic": (16, lambda: ResNet((1, 2, 1, 1), False, width=4, stem="cifar")),
    "basic group": (64, lambda: ResNet((1, 1, 1, 1), False, width=4, norm=norm_layer("group", 2))),
    "basic none": (16, lambda: ResNet((1, 1, 1, 1), False, width=4, stem="cifar", norm=None)),
    "bottleneck": (64, lambda: ResNet((1, 1, 2, 1), True, width=4)),
    "bottleneck dilated": (33, lambda: ResNet((1, 1, 1, 2), True, width=4, output_stride=8)),
    "mobile": (16, lambda: MobileNetV2(stem="cifar")),
    "mobile group": (32, lambda: MobileNetV2(norm=norm_layer("group", 8))),
}


def small(kind: Any) -> SmallCNN:
    return SmallCNN((4, 6), norm=norm_layer(kind, 2))


def made(**changes: Any) -> ImageModel:
    found = model(**changes)
    return ImageModel(found.exported.config, found.exported.tensors, found.classifier)


def session(proto: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


def answers(runs: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [one.name for one in runs.get_outputs()]
    return dict(zip(names, runs.run(names, inputs), strict=True))


@pytest.mark.parametrize("which", NETWORKS)
def test_reference(which: str) -> None:
    """Equal to the network itself on normalised images, for batches of several sizes."""
    size, make = NETWORKS[which]
    net = drawn(make)
    runs = session(image_model(net, size, MEAN, STD))
    for count in (1, 3):
        pixels = images(count, size, size, seed=count).read(range(count))
        with torch.no_grad():
            expected = net(plain_view(pixels, size, mean=MEAN, std=STD)).numpy()
        assert isinstance(pixels, torch.Tensor)
        found = answers(runs, {"image": pixels.numpy().astype(np.float32) / 255})["embedding"]
        scale = np.abs(expected).max()
        assert scale > 1e-3
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def test_reference_of_the_readout() -> None:
    """Probabilities, and a class that no training row has."""
    exported, data = made(), images(5, 16, 16)
    found = answers(session(exported.onnx_model()), exported.onnx_inputs(data))
    np.testing.assert_allclose(
        found["probabilities"], exported.predict(data)[:4].numpy(), rtol=1e-4, atol=1e-6
    )
    assert (found["probabilities"][:, 2] == 0).all()


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_reference_of_a_projector(norm: Any) -> None:
    """The embedding is what the projector gives, its batch norms in evaluation mode."""
    last = {"last_norm": norm == "batch", "last_affine": False}
    head = drawn(lambda: projector(6, 8, 5, layers=3, norm=norm, **last))
    exported, data = made(projector=head), images(3, 16, 16)
    with torch.no_grad():
        x = plain_view(data.read(range(3)), 16, mean=MEAN, std=STD)
        expected = head(network()(x))
    assert exported.width == 5
    torch.testing.assert_close(exported.embed(data), expected)
    found = answers(session(exported.onnx_model()), exported.onnx_inputs(data))
    np.testing.assert_allclose(found["embedding"], expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], exported.predict(data).numpy(), rtol=1e-4, atol=1e-5)


def test_degenerate_without_a_readout() -> None:
    """Embeddings alone; no images at all."""
    exported = made(readout=False)
    found = answers(session(exported.onnx_model()), {"image": np.zeros((0, 3, 16, 16), np.float32)})
    assert {name: value.shape for name, value in found.items()} == {"embedding": (0, 6)}


def test_dtypes() -> None:
    """Weights in float64 become float32 in the model."""
    found = model()
    double = {name: value.double() for name, value in found.exported.tensors.items()}
    exported, data = ImageModel(found.exported.config, double, found.classifier), images(4)
    values = answers(session(exported.onnx_model()), exported.onnx_inputs(data))
    np.testing.assert_allclose(values["embedding"], exported.embed(data).numpy(), rtol=1e-4, atol=1e-6)


def test_values_of_the_files(tmp_path: Path) -> None:
    """Model and description; checked on images of other sizes than the model's; equal models are equal files."""
    data = images(9, 40, 30)
    found = write(model(resize=20), "onnx", tmp_path / "out", data=data)
    assert sorted(found["files"]) == ["model.onnx", "pipeline.json"]
    assert found["check"]["max_relative_difference"]["embedding"] < 1e-5
    told = json.loads((tmp_path / "out" / "pipeline.json").read_text())
    assert (told["kind"], told["classes"]) == ("images", list(NAMES))
    assert told["inputs"]["image"]["shape"] == ["B", 3, 16, 16]
    assert told["preprocessing"] == {"size": 16, "resize": 20, "mean": list(MEAN), "std": list(STD)}
    runs = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [(one.name, one.shape) for one in runs.get_inputs()] == [("image", ["B", 3, 16, 16])]
    assert [(one.name, one.shape) for one in runs.get_outputs()] == [
        ("embedding", ["B", 6]),
        ("probabilities", ["B", 3]),
    ]
    write(model(resize=20), "onnx", tmp_path / "again", data=data)
    first, second = ((tmp_path / name / "model.onnx").read_bytes() for name in ("out", "again"))
    assert first == second


@pytest.mark.parametrize("reading", [None, {"resize": 18, "square": True}, {"resize": 18, "square": False}])
def test_values_by_the_description(reading: Any, tmp_path: Path) -> None:
    """Somebody who follows the description with Pillow and NumPy alone gets the run's embeddings."""
    image_module = pytest.importorskip("PIL.Image")
    numbers = np.random.default_rng(0)
    pixels = numbers.integers(0, 255, (31, 25, 3)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    image_module.fromarray(pixels).save(tmp_path / "in" / "one.png")
    exported = made(size=16, resize=17, reading=reading)
    told = exported.onnx_pipeline()["by_the_caller"]
    assert len(told) == (4 if reading is None else 5)
    opened = image_module.open(tmp_path / "in" / "one.png").convert("RGB")
    if reading:
        assert "bicubic" in told[1]
        opened = opened.resize((18, round(31 * 18 / 25)), image_module.Resampling.BICUBIC)
        if reading["square"]:
            assert "cut the middle 18 x 18" in told[1]
            top = (opened.height - 18) // 2
            opened = opened.crop((0, top, 18, top + 18))
    planes = np.moveaxis(np.asarray(opened, np.float32), 2, 0) / 255
    height, width = int(17 * planes.shape[1] / planes.shape[2]), 17
    scaled = np.stack(
        [
            image_module.fromarray(one).resize((width, height), image_module.Resampling.BILINEAR)
            for one in planes
        ]
    )
    top, left = round((height - 16) / 2), round((width - 16) / 2)
    cut = scaled[:, top : top + 16, left : left + 16]
    found = answers(session(exported.onnx_model()), {"image": cut[None]})
    expected = exported.embed(exported.open(str(tmp_path / "in")))
    np.testing.assert_allclose(found["embedding"], expected.numpy(), rtol=1e-3, atol=1e-5)


class Foreign(Backbone):
    width, min_size = 3, 1


def test_errors_of_a_backbone_without_a_form() -> None:
    with pytest.raises(InputError, match=r"The backbone Foreign has no form in ONNX yet\. Use --format safe"):
        image_model(Foreign(), 16, MEAN, STD)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit-small", "convnext-tiny"])
def test_errors_of_transformers(name: str, tmp_path: Path) -> None:
    """Refused in a sentence, nothing is left."""
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"The backbone \w+Model has no form in ONNX yet"):
        write(model(name=name, size=32, image_size=32), "onnx", tmp_path / "out", data=images(2, 32, 32))
    assert list(tmp_path.iterdir()) == []


def test_errors_of_unknown_parts() -> None:
    exported = made()
    exported.backbone.stages[0][2] = nn.GELU()  # type: ignore[index,operator]
    with pytest.raises(InputError, match="GELU has no form in ONNX"):
        exported.onnx_model()
    exported.backbone.stages[0][1] = nn.BatchNorm2d(4, track_running_stats=False)  # type: ignore[index,operator]
    with pytest.raises(InputError, match="without running estimates"):
        exported.onnx_model()
    net = ResNet((1, 1, 1, 1), False, width=4)
    net.layer1[0] = nn.Conv2d(4, 4, 1)
    with pytest.raises(InputError, match="Conv2d has no form in ONNX"):
        image_model(net, 32, MEAN, STD)
    net.conv1 = nn.Conv2d(3, 4, 3, padding="same")
    with pytest.raises(InputError, match="Conv2d has no form in ONNX"):
        image_model(net, 32, MEAN, STD)
