"""Published layouts of weights: recognition, round trips, parity with another implementation, configs."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import Tensor

from leanlabel.errors import InputError
from leanlabel.models.mobilenet import MobileNetV2
from leanlabel.models.public_keys import (
    Renamed,
    detectron2_config,
    fill,
    fit,
    from_detectron2,
    from_transformers,
    to_detectron2,
    to_own,
    to_transformers,
)
from leanlabel.models.resnet import ResNet, resnet


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """A bottleneck network with all kinds of names."""
    torch.manual_seed(0)
    return small().state_dict()


def small(*, bottleneck: bool = True, **options) -> ResNet:
    return ResNet((1, 2, 1, 2), bottleneck, width=4, **options)


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def same(result: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(result) == list(expected) and all(result[name] is expected[name] for name in expected)


PAIRS = [
    ("conv1.weight", "stem.conv1.weight", "embedder.embedder.convolution.weight"),
    ("bn1.running_var", "stem.conv1.norm.running_var", "embedder.embedder.normalization.running_var"),
    ("layer1.0.conv3.weight", "res2.0.conv3.weight", "encoder.stages.0.layers.0.layer.2.convolution.weight"),
    (
        "layer2.11.bn2.bias",
        "res3.11.conv2.norm.bias",
        "encoder.stages.1.layers.11.layer.1.normalization.bias",
    ),
    (
        "layer4.0.downsample.0.weight",
        "res5.0.shortcut.weight",
        "encoder.stages.3.layers.0.shortcut.convolution.weight",
    ),
    (
        "layer3.0.downsample.1.running_mean",
        "res4.0.shortcut.norm.running_mean",
        "encoder.stages.2.layers.0.shortcut.normalization.running_mean",
    ),
]


@pytest.mark.parametrize(("own", "detectron2", "transformers"), PAIRS)
def test_values(own: str, detectron2: str, transformers: str) -> None:
    tensor = torch.zeros(1)
    assert to_detectron2({own: tensor}) == {detectron2: tensor}
    assert to_transformers({own: tensor}) == {transformers: tensor}


def test_values_round_trip() -> None:
    own = resnet(50).state_dict()
    assert len(own) == 318
    for there, back in ((to_detectron2, from_detectron2), (to_transformers, from_transformers)):
        foreign = there(own)
        assert len(foreign) == 318
        assert not set(foreign) & set(own)
        assert same(back(foreign), own)
        assert same(back(prefixed(foreign, "backbone.")), own)


@pytest.mark.parametrize("bottleneck", [True, False])
def test_reference(bottleneck: bool) -> None:
    """Another implementation with the same weights gives the same features."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    widths = [16, 32, 64, 128] if bottleneck else [4, 8, 16, 32]
    config = transformers.ResNetConfig(
        embedding_size=4,
        hidden_sizes=widths,
        depths=[1, 2, 1, 2],
        layer_type="bottleneck" if bottleneck else "basic",
    )
    theirs = transformers.ResNetModel(config).double()
    theirs.train()(torch.rand(4, 3, 64, 64, dtype=torch.float64))  # running estimates that are not the start
    ours = small(bottleneck=bottleneck).double()
    report = fill(ours, theirs.state_dict())
    assert (report.missing, report.shape, report.dropped) == ((), (), ())
    x = torch.rand(2, 3, 45, 64, dtype=torch.float64)
    expected = theirs.eval()(x, output_hidden_states=True)
    for mine, other in zip(ours.eval().maps(x), expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours(x), expected.pooler_output.flatten(1), rtol=1e-10, atol=1e-12)
    fresh = transformers.ResNetModel(config).double()
    fresh.load_state_dict(to_transformers(ours.state_dict()))
    assert torch.equal(fresh.eval()(x).pooler_output, expected.pooler_output)


def test_values_torchvision(weights: dict[str, Tensor]) -> None:
    whole = weights | {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}
    for prefix in ("", "module.", "backbone.", "model.", "encoder.", "net.body."):
        found = to_own(prefixed(whole, prefix))
        assert (found.layout, found.prefix) == ("torchvision", prefix)
        assert same(found.tensors, weights)
        assert found.dropped == (f"{prefix}fc.weight", f"{prefix}fc.bias")


def test_values_moco(weights: dict[str, Tensor]) -> None:
    """The query encoder of an official checkpoint; its key encoder, queue and head are left."""
    for start in ("", "module."):
        copies = {name: value.clone() for name, value in weights.items()}
        source = {
            **prefixed(copies, f"{start}encoder_k."),
            **prefixed(weights, f"{start}encoder_q."),
            f"{start}encoder_q.fc.0.weight": torch.zeros(1),
            f"{start}queue": torch.zeros(1),
        }
        found = to_own(source)
        assert (found.layout, found.prefix) == ("moco", f"{start}encoder_q.")
        assert same(found.tensors, weights)
        assert len(found.dropped) == len(weights) + 2
    alone = to_own(prefixed(weights, "teacher."))
    assert alone.prefix == "teacher."
    both = to_own({**prefixed(weights, "ema.net."), **prefixed(weights, "schema.network.")})
    assert both.prefix == "schema.network."


def test_values_transformers(weights: dict[str, Tensor]) -> None:
    head = {"classifier.1.weight": torch.zeros(1)}
    found = to_own({**prefixed(to_transformers(weights), "resnet."), **head})
    assert (found.layout, found.prefix, found.dropped) == (
        "transformers",
        "resnet.",
        ("classifier.1.weight",),
    )
    assert same(found.tensors, weights)


def test_values_detector(weights: dict[str, Tensor]) -> None:
    """A trained detector of the C4 kind keeps its last stage, and more, in the head."""
    named = to_detectron2(weights)
    source = {
        f"{'roi_heads' if name.startswith('res5') else 'backbone'}.{name}": named[name] for name in named
    }
    more = (
        "roi_heads.res5.norm.weight",
        "roi_heads.box_predictor.bbox_pred.bias",
        "proposal_generator.conv.bias",
    )
    found = to_own(source | {name: torch.zeros(1) for name in more})
    assert (found.layout, found.prefix, found.dropped) == ("detectron2", "backbone.", more)
    assert same(found.tensors, weights)
    pyramid = to_own(prefixed(named, "backbone.bottom_up."))
    assert same(pyramid.tensors, weights)


def test_values_mobilenet() -> None:
    own = MobileNetV2().state_dict()
    found = to_own({**prefixed(own, "module."), "module.classifier.1.weight": torch.zeros(1)})
    assert (found.layout, found.dropped) == ("mobilenet", ("module.classifier.1.weight",))
    assert same(found.tensors, own)


def test_values_fit(weights: dict[str, Tensor]) -> None:
    given = dict(weights)
    del given["layer1.0.bn1.bias"], given["bn1.num_batches_tracked"]
    given["conv1.weight"] = torch.zeros(4, 3, 3, 3)
    given["layer2.7.conv1.weight"] = torch.zeros(1)
    found = Renamed("torchvision", "", given, ("fc.bias",))
    report = fit(found, weights)
    assert report.shape == ("conv1.weight",)
    assert report.missing == ("layer1.0.bn1.bias",)
    assert report.dropped == ("fc.bias", "layer2.7.conv1.weight")
    assert len(report.taken) == len(weights) - 3
    assert report.lines() == [
        f"{len(weights) - 3:>5} taken: bn1.weight, bn1.bias, bn1.running_mean, …",
        "    2 dropped from the source: fc.bias, layer2.7.conv1.weight",
        "    1 missing in the source: layer1.0.bn1.bias",
        "    1 of another shape: conv1.weight",
    ]


def test_errors(weights: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match=r"no published layout .* is recognised: a, b, c, …"):
        to_own(dict.fromkeys("abcd", torch.zeros(1)))
    with pytest.raises(InputError, match="no published layout"):
        to_own({})
    with pytest.raises(
        InputError, match=r"^layer1\.0\.se\.fc1\.weight has no place in a plain residual network"
    ):
        to_own(weights | {"layer1.0.se.fc1.weight": torch.zeros(1)})
    with pytest.raises(
        InputError, match="expected weights in the layout of detectron2, found that of torchvision"
    ):
        from_detectron2(weights)
    for rename in (to_detectron2, to_transformers):
        with pytest.raises(ValueError, match=r"not a name of a residual network: fc\.weight"):
            rename(weights | {"fc.weight": torch.zeros(1)})


def test_errors_fill(weights: dict[str, Tensor]) -> None:
    """A backbone that the weights do not fit stays as it was."""
    for net in (small(stem="cifar"), ResNet((2, 2, 1, 2), True, width=4)):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with pytest.raises(InputError, match="do not fit the backbone"):
            fill(net, weights)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(
        InputError, match=r"1 tensors .* conv1\.weight must be \(4, 3, 3, 3\), it is \(4, 3, 7, 7\)"
    ):
        fill(small(stem="cifar"), weights)
    with pytest.raises(InputError, match=r"layer1\.1\.conv1\.weight must be \(4, 16, 1, 1\), it is missing"):
        fill(ResNet((2, 2, 1, 2), True, width=4), weights)


@pytest.mark.parametrize("task", ["voc", "coco"])
def test_values_config(task) -> None:
    config = yaml.safe_load(detectron2_config(task, weights="own.pth"))
    model, solver = config["MODEL"], config["SOLVER"]
    assert model["WEIGHTS"] == "own.pth"
    assert model["RESNETS"] == {"DEPTH": 50, "STRIDE_IN_1X1": False, "NORM": "SyncBN"}
    assert model["BACKBONE"] == {"FREEZE_AT": 0}
    assert model["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert (config["INPUT"]["FORMAT"], config["INPUT"]["MIN_SIZE_TEST"]) == ("RGB", 800)
    assert (solver["IMS_PER_BATCH"], solver["BASE_LR"]) == (16, 0.02)
    voc = task == "voc"
    assert model["MASK_ON"] is not voc
    assert model["ROI_HEADS"]["NUM_CLASSES"] == (20 if voc else 80)
    assert (solver["STEPS"], solver["MAX_ITER"]) == (
        ([18000, 22000], 24000) if voc else ([60000, 80000], 90000)
    )
    sizes = config["INPUT"]["MIN_SIZE_TRAIN"]
    assert (sizes[0], sizes[1], sizes[-1], len(sizes)) == ((480, 512, 800, 11) if voc else (640, 672, 800, 6))
    assert config["DATASETS"]["TEST"] == (["voc_2007_test"] if voc else ["coco_2017_val"])
    longer = yaml.safe_load(detectron2_config(task, schedule="2x"))["SOLVER"]
    assert longer["MAX_ITER"] == (24000 if voc else 180000)
    with pytest.raises(ValueError, match="task is voc or coco"):
        detectron2_config("lvis")  # pyright: ignore[reportArgumentType]
