"""Two scales of one image: places of the crop, the weighed sum, windows, images of any size, ranks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.errors import InputError
from leanlabel.models.encoder_decoder import Segmenter
from leanlabel.models.multi_resolution import MultiResolution, whole_ratio
from leanlabel.models.segmenters import (
    SegmenterSettings,
    build_segmenter,
    encoder_parameters,
    head_parameters,
)

SMALL = {
    "name": "segformer",
    "encoder": "small-cnn",
    "widths": (4, 6),
    "width": 8,
    "attention_width": 6,
    "dropout": 0.0,
}
"""Stride 2, smallest side 4."""


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double()


def built(classes: int = 3, seed: int = 0, **options: Any) -> MultiResolution:
    """With an attention that is not flat."""
    torch.manual_seed(seed)
    chosen = {**SMALL, "multi_resolution": True, "norm": "none", **options}
    net = build_segmenter(SegmenterSettings.model_validate(chosen), classes).double()
    assert isinstance(net, MultiResolution)
    for part in (net.attention, net.decoder):
        assert isinstance(part.classifier, nn.Conv2d)
        nn.init.normal_(part.classifier.weight)
    return net


def plain(net: MultiResolution, x: Tensor) -> Tensor:
    """Logits of the encoder and decoder alone."""
    return net.decoder.classify(net.decoder.fuse(net.encoder.maps(x)))


def context(net: MultiResolution, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and attention of the image at half the scale."""
    small = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    scores = net.attention.classify(net.attention.fuse(net.encoder.maps(small)))
    return plain(net, small), scores.sigmoid()


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def test_values() -> None:
    """Sizes, the middle, both ends; features and maps are those of the context; weights of old names stay."""
    net, x = built(detail_crop=(16, 8)).train(), images(2, 3, 32, 40)
    assert (net.stride, net.ratio, net.min_size, net.width) == (2, 2, 4, 8)
    found = net(x)
    assert found.logits.shape == (2, 3, 16, 20)
    assert found.features.shape == (2, 8, 8, 10)
    assert [tuple(one.shape) for one in found.maps] == [(2, 4, 8, 10), (2, 6, 4, 5)]
    assert torch.equal(found.features, net.features(x))
    boxes = {}
    for numbers in (None, (0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (0.99, 0.0)):
        net.numbers = numbers
        detail = net(x).detail
        assert detail is not None
        assert detail[0].shape == (2, 3, 8, 4)
        boxes[numbers] = detail[1]
    assert boxes == {
        None: (8, 16, 16, 8),
        (0.5, 0.5): (8, 16, 16, 8),
        (0.0, 0.0): (0, 0, 16, 8),
        (1.0, 1.0): (16, 32, 16, 8),
        (0.99, 0.0): (16, 0, 16, 8),
    }
    assert built().box(32, 40) == (4, 6, 8, 10)
    names = {name.split(".")[0] for name in net.state_dict()}
    assert names == {"encoder", "decoder", "attention"}


def test_values_start() -> None:
    """Encoder and decoder start as those of the plain network of the seed."""
    nets = []
    for several in (False, True):
        torch.manual_seed(0)
        chosen = SegmenterSettings.model_validate({**SMALL, "multi_resolution": several})
        nets.append(build_segmenter(chosen, 3).state_dict())
    assert all(torch.equal(nets[1][name], value) for name, value in nets[0].items())
    assert nets[1].keys() > nets[0].keys()


def test_reference() -> None:
    """One crop: inside the weighed sum of both, outside the context alone."""
    net, x = built(detail_crop=(16, 12)).train(), images(2, 3, 32, 40)
    net.numbers = (0.3, 0.8)
    found = net(x)
    assert found.detail is not None
    detail, (top, left, height, width) = found.detail
    assert (top, left, height, width) == (4, 24, 16, 12)
    torch.testing.assert_close(detail, plain(net, x[..., 4:20, 24:36]), rtol=1e-12, atol=1e-12)
    low, weight = context(net, x)
    expected = doubled(low)
    inside = (..., slice(2, 10), slice(12, 18))
    expected[inside] = doubled((1 - weight) * low)[inside] + doubled(weight)[inside] * detail
    torch.testing.assert_close(found.logits, expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(expected, doubled(low), atol=1e-3)


def test_reference_windows() -> None:
    """Windows with half overlap, averaged; nothing of the training crop."""
    net, x = built(detail_crop=(16, 12)).eval(), images(2, 3, 32, 40)
    net.numbers = (0.0, 0.0)
    total, count = torch.zeros(2, 3, 16, 20).double(), torch.zeros(16, 20).double()
    for top, left in itertools.product((0, 8, 16), (0, 6, 12, 18, 24, 28)):
        place = (..., slice(top // 2, top // 2 + 8), slice(left // 2, left // 2 + 6))
        total[place] += plain(net, x[..., top : top + 16, left : left + 12])
        count[place] += 1
    low, weight = context(net, x)
    expected = doubled((1 - weight) * low) + doubled(weight) * total / count
    found = net(x)
    torch.testing.assert_close(found.logits, expected, rtol=1e-10, atol=1e-12)
    assert found.detail is None


def test_reference_agree() -> None:
    """A crop of the whole image is what prediction computes; attentions of 0 and 1 leave one scale alone."""
    net, x = built(detail_crop=(64, 64)), images(1, 3, 16, 20)
    trained = net.train()(x)
    assert trained.detail is not None
    assert trained.detail[1] == (0, 0, 16, 20)
    torch.testing.assert_close(net.eval()(x).logits, trained.logits, rtol=1e-12, atol=1e-12)
    for bias, expected in ((-100.0, doubled(context(net, x)[0])), (100.0, plain(net, x))):
        nn.init.zeros_(net.attention.classifier.weight)
        nn.init.constant_(net.attention.classifier.bias, bias)
        torch.testing.assert_close(net(x).logits, expected, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(4, 70),
    width=st.integers(4, 70),
    crop=st.none() | st.tuples(st.sampled_from((4, 12, 32)), st.sampled_from((4, 20, 64))),
    numbers=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_values_sides(height: int, width: int, crop: Any, numbers: Any) -> None:
    """Any side: logits of ceil(side / stride), a crop inside the image at multiples of the coarser stride."""
    net, x = built(detail_crop=crop), images(1, 3, height, width)
    net.numbers = numbers
    size = (-(-height // 2), -(-width // 2))
    with torch.no_grad():
        found = net.train()(x)
        assert found.detail is not None
        top, left, tall, wide = found.detail[1]
        assert top % 4 == left % 4 == 0
        assert top >= 0
        assert left >= 0
        assert top + tall <= height
        assert left + wide <= width
        assert min(tall, wide) >= net.min_size
        assert found.detail[0].shape[2:] == (-(-tall // 2), -(-wide // 2))
        assert found.logits.shape[2:] == net.eval()(x).logits.shape[2:] == size
        assert bool(found.logits.isfinite().all())


def test_gradient() -> None:
    """Every parameter gets one, from the joint logits alone; encoder and head part them."""
    net = built(norm="batch").train()
    net(images(2, 3, 24, 32)).logits.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    own, head = encoder_parameters(net), head_parameters(net)
    assert {id(p) for p in own} == {id(p) for p in net.encoder.parameters()}
    assert {id(p) for p in head} == {id(p) for p in (*net.decoder.parameters(), *net.attention.parameters())}
    fixed = built(train_encoder=False, norm="batch").train()
    before = {name: value.clone() for name, value in fixed.encoder.state_dict().items()}
    fixed(images(2, 3, 24, 32)).logits.square().sum().backward()
    assert all(p.grad is None for p in fixed.encoder.parameters())
    assert all(p.grad is not None for p in head_parameters(fixed))
    assert all(torch.equal(value, before[name]) for name, value in fixed.encoder.state_dict().items())
    tiny = built(1, widths=(2, 2), width=2, attention_width=2)
    x = images(1, 3, 8, 8).requires_grad_()
    for mode in (True, False):
        tiny.train(mode)
        assert torch.autograd.gradcheck(lambda given: tiny(given).logits, x, fast_mode=True)


def test_dtypes() -> None:
    x = images(2, 3, 17, 24)
    for norm in ("batch", "frozen", "group"):
        net = built(norm=norm, norm_groups=2)
        for mode in (True, False):
            found = net.train(mode).to(torch.bfloat16)(x.to(torch.bfloat16))
            assert found.logits.dtype == torch.bfloat16
            assert bool(found.logits.isfinite().all())
            with torch.autocast("cpu", torch.bfloat16):
                assert bool(net.float()(x.float()).logits.isfinite().all())


def test_degenerate() -> None:
    """The smallest images, one class, one channel."""
    net = built(1)
    for mode in (True, False):
        assert net.train(mode)(images(1, 3, 4, 4)).logits.shape == (1, 1, 2, 2)
        with pytest.raises(InputError, match="3x4 pixels are too small"):
            net(images(1, 3, 3, 4))
    with pytest.raises(InputError, match="expected images"):
        net(images(3, 8, 8))


def test_errors() -> None:
    for crop in ((6, 8), (8, 2)):
        with pytest.raises(ValueError, match=r"must be multiples of 4 .* at least 4, got"):
            built(detail_crop=crop)
    for numbers in ((0.5, 1.01), (-0.1, 0.5), (0.5,)):
        net = built().train()
        net.numbers = numbers
        with pytest.raises(ValueError, match=r"two numbers in \[0, 1\]"):
            net(images(1, 3, 16, 16))
    for scale in (0.4, 1.0, 0.0, -0.5):
        with pytest.raises(ValueError, match="1 divided by a whole number"):
            whole_ratio(scale)
    assert [whole_ratio(scale) for scale in (0.5, 1 / 3, 0.25)] == [2, 3, 4]


def test_values_scale() -> None:
    """A quarter of the scale; encoders of patches."""
    net, x = built(context_scale=0.25), images(1, 3, 32, 40)
    found = net.train()(x)
    assert (found.logits.shape[2:], found.features.shape[2:]) == ((16, 20), (4, 5))
    assert found.detail is not None
    assert found.detail[1] == (8, 8, 16, 24)


def test_state() -> None:
    """A state that is loaded gives the same; the place of the crop is no part of it."""
    first, second, x = built(norm="batch"), built(norm="batch", seed=1), images(2, 3, 24, 32)
    first.numbers = (0.0, 1.0)
    first.train()(x)
    second.load_state_dict(first.state_dict())
    assert second.numbers is None
    assert torch.equal(first.eval()(x).logits, second.eval()(x).logits)
    single = build_segmenter(SegmenterSettings.model_validate({**SMALL, "norm": "batch"}), 3)
    missing, unexpected = single.double().load_state_dict(first.state_dict(), strict=False)
    assert missing == []
    assert {name.split(".")[0] for name in unexpected} == {"attention"}
    assert type(single) is Segmenter


def on_rank() -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of this rank's image, and gradients as data-parallel training averages them."""
    net = built(norm="sync").train()
    net.numbers = (0.1, 0.9)
    x = images(2, 3, 24, 31)[dist.shard(2)]
    logits = net(x).logits
    dist.global_mean(logits.square().sum(), len(x)).backward()
    averaged = {
        name: dist.all_sum(p.grad) / dist.world() for name, p in net.named_parameters() if p.grad is not None
    }
    return logits.detach(), averaged


def test_ranks(pool) -> None:
    logits, gradients = on_rank()
    results = pool.run(on_rank)
    torch.testing.assert_close(torch.cat([one for one, _ in results]), logits, rtol=1e-9, atol=1e-12)
    assert len(gradients) > 10
    for _, found in results:
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-10)
