"""The detail crop's cross-entropy as a term: its box, its size, and a network without one."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel import rng
from leanlabel.errors import InputError
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.terms import Setting
from leanlabel.methods.terms.detail import Detail, DetailSettings
from leanlabel.models.multi_resolution import MultiResolution
from leanlabel.models.segmenters import DenseOutput, SegmenterSettings, build_segmenter

KNOWN = Setting(("road", "sky", "car"), (10, 5, 1), width=4, steps=10, seed=0)
BOX = (4, 8, 8, 12)
"""Top, left, height and width of the crop, in pixels."""


class Owner:
    """A method whose network gives fixed numbers."""

    def __init__(self, count: int = 2, crop: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randn(count, 3, 4 + 2, 6 + 3, generator=generator, dtype=torch.float64)
        self.logits = numbers[:, :, :4, :6].clone().requires_grad_()
        self.crop = numbers[:, :, 4:6, 6:9].clone().requires_grad_() if crop else None

    def student(self, images: Tensor) -> DenseOutput:
        detail = None if self.crop is None else (self.crop, BOX)
        return DenseOutput(self.logits, self.logits, (), detail)


def labelled(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(-1, 3, (count, 16, 24), generator=generator)
    return labels.where(labels >= 0, -100)


def stepped(owner: Owner, labels: Tensor, weights: Tensor | None = None) -> Step:
    images = torch.zeros(len(labels), 3, *labels.shape[1:], dtype=torch.float64)
    whole = DenseBatch(torch.arange(len(labels)), images, labels, weights)
    return Step(cast(Any, owner), 0, whole, lambda name: rng.draw(0, name, 0, None))


def made(**settings: Any) -> Detail:
    return Detail(DetailSettings(**settings), KNOWN)


@pytest.mark.parametrize("weighted", [False, True])
def test_reference(weighted: bool) -> None:
    """Cross-entropy of the crop's scores, brought to the size of its box, with the labels cut out here."""
    owner, labels = Owner(), labelled()
    weights = torch.rand(labels.shape, dtype=torch.float64) if weighted else None
    found = made().loss(stepped(owner, labels, weights))
    assert owner.crop is not None
    scores = F.interpolate(owner.crop, size=(8, 12), mode="bilinear", align_corners=False)
    inside = labels[:, 4:12, 8:20]
    each = F.cross_entropy(scores, inside, ignore_index=-100, reduction="none")
    if weights is not None:
        each = each * weights[:, 4:12, 8:20]
    assert list(found) == ["detail"]
    torch.testing.assert_close(found["detail"], each.sum() / (inside != -100).sum())


def test_reference_at_features() -> None:
    """Labels of the box thinned out to the crop's scores, and class weights."""
    owner, labels = Owner(), labelled()
    weights = torch.rand(labels.shape, dtype=torch.float64)
    found = made(at="feature", class_weights=(1.0, 2.0, 0.5)).loss(stepped(owner, labels, weights))
    assert owner.crop is not None
    classes = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    inside = labels[:, 4:12:4, 8:20:4]
    each = F.cross_entropy(owner.crop, inside, weight=classes, ignore_index=-100, reduction="none")
    counted = classes[inside.clamp(min=0)].where(inside >= 0, 0).sum()
    torch.testing.assert_close(found["detail"], (each * weights[:, 4:12:4, 8:20:4]).sum() / counted)


def test_reference_of_a_network() -> None:
    """The crop of a real network at two scales: its box is where the labels are read, also at the image's border."""
    torch.manual_seed(0)
    settings = SegmenterSettings(name="tiny-fcn", multi_resolution=True, norm="none")
    network = build_segmenter(settings, 3).double().train()
    assert isinstance(network, MultiResolution)
    images = torch.randn(2, 3, 45, 61, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 45, 61))
    for numbers in ((0.0, 0.0), (0.5, 0.3), (1.0, 1.0)):
        network.numbers = numbers
        output = network(images)
        owner = Owner()
        owner.student = lambda images, output=output: output  # type: ignore[method-assign]
        found = made().loss(stepped(owner, labels))["detail"]
        assert output.detail is not None
        scores, (top, left, height, width) = output.detail
        assert 0 <= top <= 45 - height
        assert 0 <= left <= 61 - width
        assert min(height, width) > 16
        scores = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)
        expected = F.cross_entropy(scores, labels[:, top : top + height, left : left + width])
        torch.testing.assert_close(found, expected)


def test_gradient() -> None:
    """Through the crop's own scores only; labels outside of the box do not matter."""
    owner, labels = Owner(), labelled()
    loss = made().loss(stepped(owner, labels))["detail"]
    loss.backward()
    assert owner.crop is not None
    assert owner.crop.grad is not None
    assert bool(owner.crop.grad.any())
    assert owner.logits.grad is None
    other = torch.full_like(labels, -100)
    other[:, 4:12, 8:20] = labels[:, 4:12, 8:20]
    torch.testing.assert_close(made().loss(stepped(owner, other))["detail"], loss)


def test_degenerate() -> None:
    """Nothing labelled inside the box: a zero with a gradient."""
    owner, labels = Owner(), labelled()
    labels[:, 4:12, 8:20] = -100
    loss = made().loss(stepped(owner, labels))["detail"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert owner.crop is not None
    assert owner.crop.grad is not None
    assert not bool(owner.crop.grad.any())


def test_errors() -> None:
    with pytest.raises(InputError, match=r"no crop at full scale\. Set model\.multi_resolution"):
        made().loss(stepped(Owner(crop=False), labelled()))
