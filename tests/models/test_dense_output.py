"""What a segmentation network says survives the engine's wrappers: precision, data-parallel training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from leanlabel import dist
from leanlabel.banks.teacher import Teacher
from leanlabel.models.segmenters import DenseOutput, Segmenter, SegmenterSettings, build_segmenter

SMALL = {"name": "segformer", "encoder": "small-cnn", "widths": (4, 6, 8), "width": 8, "norm": "group"}


def built(**options: Any) -> Segmenter:
    torch.manual_seed(0)
    more = {"norm_groups": 2, "dropout": 0.0, "attention_width": 8}
    return build_segmenter(SegmenterSettings.model_validate({**SMALL, **more, **options}), 5)


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_values() -> None:
    """Both older fields alone still make an output."""
    logits, features = torch.zeros(1), torch.ones(1)
    found = DenseOutput(logits, features)
    assert (found.logits, found.features, found.maps, found.detail) == (logits, features, (), None)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("several", [False, True])
def test_values_wrapped(precision: Any, several: bool) -> None:
    """A wrapped network gives the same output with all of its fields, in float32, with gradient."""
    net = built(multi_resolution=several).train()
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    wrapped, x = fabric.setup_module(net), images(2, 3, 33, 40)
    found, plain = wrapped(x), net(x)
    assert type(found) is DenseOutput
    assert len(found.maps) == len(plain.maps) == 3
    pairs = [(found.logits, plain.logits), (found.features, plain.features), *zip(found.maps, plain.maps)]
    if several:
        assert found.detail is not None
        assert found.detail[1] == plain.detail[1]
        pairs.append((found.detail[0], plain.detail[0]))
    else:
        assert found.detail is None
    for one, other in pairs:
        assert one.dtype == torch.float32
        assert one.requires_grad
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)
    fabric.backward(found.maps[-1].square().sum())
    assert all(p.grad is not None for p in net.encoder.parameters())
    assert all(p.grad is None for p in net.decoder.parameters())


def test_values_teacher() -> None:
    """A running average gives all fields, too, without gradient."""
    net = built(multi_resolution=True)
    found = Teacher(net).eval()(images(2, 3, 33, 40))
    assert found.detail is None
    assert not any(one.requires_grad for one in (found.logits, found.features, *found.maps))


def on_rank(several: bool) -> tuple[bool, dict[str, Tensor]]:
    """Gradients of this rank after a step of data-parallel training with torch's wrapper."""
    net = built(multi_resolution=several).double().train()
    wrapped = DistributedDataParallel(net) if dist.world() > 1 else net
    x = images(2, 3, 33, 40).double()[dist.shard(2)]
    found = wrapped(x)
    total = found.logits.square().sum() + found.maps[0].square().sum()
    if found.detail is not None:
        total = total + found.detail[0].square().sum()
    dist.global_mean(total, len(x)).backward()
    complete = type(found) is DenseOutput and len(found.maps) == 3 and (found.detail is not None) == several
    return complete, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("several", [False, True])
def test_ranks(pool, several: bool) -> None:
    complete, gradients = on_rank(several)
    assert complete
    assert len(gradients) > 10
    for whole, found in pool.run(on_rank, several):
        assert whole
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-10)
