"""Networks of published adaptation results at the sizes they are trained at: shapes and counts, without memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from leanlabel.models.multi_resolution import MultiResolution
from leanlabel.models.segmenters import DenseOutput, Segmenter, SegmenterSettings, build_segmenter

CLASSES = 19


class Scale(NamedTuple):
    """A network, the height and width of its images, and what is to be found."""

    settings: dict[str, Any]
    size: tuple[int, int]
    logits: tuple[int, int]
    features: tuple[int, int, int]
    maps: tuple[tuple[int, int, int], ...]
    counts: tuple[int, int]
    stride: int
    levels: tuple[int, ...]


DEEPLAB, DAFORMER = {"name": "deeplab-v2"}, {"name": "daformer"}
TWO_SCALES = {"name": "daformer", "multi_resolution": True, "detail_crop": (512, 512)}
MIT = ((64, 128, 128), (128, 64, 64), (320, 32, 32), (512, 16, 16))
SCALES = {
    "deeplab-v2, 1280 x 720": Scale(
        DEEPLAB,
        (720, 1280),
        (90, 160),
        (2048, 90, 160),
        ((256, 180, 320), (512, 90, 160), (1024, 90, 160), (2048, 90, 160)),
        (42_500_160, 43_901_068),
        8,
        (4, 8, 8, 8),
    ),
    "deeplab-v2, 1024 x 512": Scale(
        DEEPLAB,
        (512, 1024),
        (64, 128),
        (2048, 64, 128),
        ((256, 128, 256), (512, 64, 128), (1024, 64, 128), (2048, 64, 128)),
        (42_500_160, 43_901_068),
        8,
        (4, 8, 8, 8),
    ),
    "daformer, 512 x 512": Scale(
        DAFORMER,
        (512, 512),
        (128, 128),
        (256, 128, 128),
        MIT,
        (81_443_008, 85_155_283),
        4,
        (4, 8, 16, 32),
    ),
    "two scales, 1024 x 1024": Scale(
        TWO_SCALES,
        (1024, 1024),
        (256, 256),
        (256, 128, 128),
        MIT,
        (81_443_008, 85_685_990),
        4,
        (8, 16, 32, 64),
    ),
}


def built(settings: dict[str, Any]) -> Segmenter:
    if settings["name"] == "daformer":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    return build_segmenter(SegmenterSettings.model_validate(settings), CLASSES)


def sizes(maps: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(one.shape[1:]) for one in maps)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=[] if "deeplab" in key else [pytest.mark.slow]) for key in SCALES]
)
def test_values(key: str) -> None:
    """A batch of two on the device that computes nothing but shapes."""
    scale = SCALES[key]
    with torch.device("meta"):
        net = built(scale.settings).train()
        found = net(torch.zeros(2, 3, *scale.size))
    assert found.logits.device.type == "meta"
    assert found.logits.shape == (2, CLASSES, *scale.logits)
    assert found.features.shape == (2, *scale.features)
    assert sizes(found.maps) == scale.maps
    assert tuple(scale.size[0] // one.shape[2] for one in found.maps) == scale.levels
    assert (count(net.encoder), count(net)) == scale.counts
    assert (net.stride, net.width) == (scale.stride, scale.features[0])
    if isinstance(net, MultiResolution):
        assert found.detail is not None
        assert found.detail[0].shape == (2, CLASSES, 128, 128)
        assert found.detail[1] == (256, 256, 512, 512)
        with torch.device("meta"):
            whole = net.eval()(torch.zeros(1, 3, *scale.size))
        assert whole.logits.shape == (1, CLASSES, *scale.logits)
        assert whole.detail is None
    else:
        assert found.detail is None


@pytest.mark.slow
@pytest.mark.parametrize("key", ["deeplab-v2, 1280 x 720", "daformer, 512 x 512", "two scales, 1024 x 1024"])
def test_gradient(key: str) -> None:
    """A real pass of one image at a quarter of the size, there and back."""
    scale = SCALES[key]
    quarter = dict(scale.settings)
    if "detail_crop" in quarter:
        quarter["detail_crop"] = (128, 128)
    net = built(quarter).train()
    height, width = (side // 4 for side in scale.size)
    found: DenseOutput = net(torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)))
    shape = tuple(-(-side // net.stride) for side in (height, width))
    assert found.logits.shape == (1, CLASSES, *shape)
    found.logits.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
