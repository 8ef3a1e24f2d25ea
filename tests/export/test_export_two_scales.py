"""Networks of the modern recipe as files: those of two scales and DAFormer's come back whole, and as encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from segmentationsamples import dense, images, model

from leanlabel import export
from leanlabel.errors import InputError
from leanlabel.export.segmentation import SegmentationModel
from leanlabel.export.writing import write
from leanlabel.models.multi_resolution import MultiResolution
from leanlabel.models.segmenters import SegmenterSettings, build_segmenter

SMALL: dict[str, Any] = {"name": "daformer", "encoder": "small-cnn", "widths": (4, 6), "width": 6}
TWO: dict[str, Any] = {**SMALL, "multi_resolution": True, "attention_width": 4, "detail_crop": (24, 16)}


@pytest.mark.parametrize("chosen", [SMALL, TWO], ids=["daformer", "two scales"])
def test_reference(chosen: dict[str, Any], tmp_path: Path) -> None:
    """What is read back gives the same masks as the network that was written."""
    made = model(**chosen)
    write(made, "safetensors", tmp_path / "out")
    read = export.load(tmp_path / "out")
    assert isinstance(read, SegmentationModel)
    net = read.segmenter()
    assert isinstance(net, MultiResolution) == ("multi_resolution" in chosen)
    assert net.state_dict().keys() == dict(made.exported.tensors).keys()
    written = SegmentationModel(made.exported.config, made.exported.tensors)
    for one in images(2, 41, 53):
        assert torch.equal(read.segment(one).classes, written.segment(one).classes)
        assert torch.equal(read.segment(one).confidence, written.segment(one).confidence)


def test_reference_of_the_encoder(tmp_path: Path) -> None:
    """The encoder alone has the names of a backbone, and goes into the plain network."""
    made = model(**TWO)
    write(made, "backbone", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "backbone.safetensors")
    plain = build_segmenter(SegmenterSettings(**SMALL), 3)
    plain.encoder.load_state_dict(tensors)
    read = export.load(tmp_path / "out")
    assert isinstance(read, SegmentationModel)
    assert read.width == plain.encoder.width


def test_errors(tmp_path: Path) -> None:
    """Windows at a second scale have no form in ONNX: said before anything is written."""
    pytest.importorskip("onnx")
    with pytest.raises(InputError, match=r"reads images at two scales .* has no form in ONNX yet"):
        write(model(**TWO), "onnx", tmp_path / "out", data=dense(images()))
    assert list(tmp_path.iterdir()) == []
