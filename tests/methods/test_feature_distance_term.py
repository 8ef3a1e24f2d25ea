"""The distance to pre-trained features as a term: which places, which classes, which maps."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from leanlabel import rng
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.terms import Setting
from leanlabel.methods.terms.feature_distance import FeatureDistance, FeatureDistanceSettings
from leanlabel.models.segmenters import DenseOutput, SegmenterSettings, build_segmenter

KNOWN = Setting(("road", "traffic light", "car"), (10, 5, 1), width=4, steps=10, seed=0)


class Owner:
    """A method whose encoder gives a fine and a coarse map, beside a fixed encoder."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.fine, self.coarse, self.fixed = (
            nn.Conv2d(3, 5, side, stride=side).double() for side in (2, 4, 4)
        )
        self.reports: dict[str, float] = {}

    def student(self, images: Tensor) -> DenseOutput:
        maps = self.fine(images), self.coarse(images)
        return DenseOutput(maps[0][:, :3], maps[0], maps)

    def initial_map(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.fixed(images)

    def report(self, **terms: Tensor | float) -> None:
        self.reports.update({name: float(value) for name, value in terms.items()})


def made(**settings: Any) -> FeatureDistance:
    return FeatureDistance(FeatureDistanceSettings(**settings), KNOWN)


def stepped(owner: Owner, labels: Tensor) -> Step:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(len(labels), 3, *labels.shape[1:], generator=generator, dtype=torch.float64)
    step_batch = DenseBatch(torch.arange(len(labels)), images, labels)
    return Step(cast(Any, owner), 0, step_batch, lambda name: rng.draw(0, name, 0, None))


def street() -> Tensor:
    """2 x 3 cells of 4 x 4 pixels: road, car with 4 and with 5 foreign pixels; light, nothing, car."""
    cells = torch.tensor([[[0, 2, 2], [1, -100, 2]]])
    labels = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[0, 0, 4:8] = 0
    labels[0, 0, 8:12] = -100
    labels[0, 1, 8] = 1
    return labels


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ({}, [(0, 0), (0, 1), (1, 0), (1, 2)]),
        ({"classes": ("car",)}, [(0, 1), (1, 2)]),
        ({"classes": ("car", "traffic light"), "purity": 1.0}, [(1, 0), (1, 2)]),
        ({"classes": ("car",), "purity": 0.6}, [(0, 1), (0, 2), (1, 2)]),
    ],
)
def test_reference(settings: dict[str, Any], places: list[tuple[int, int]]) -> None:
    """The mean of the norms at the places that are listed here."""
    owner, term = Owner(), made(**settings)
    step = stepped(owner, street())
    found = term.loss(step)
    apart = (owner.coarse(step.images) - owner.fixed(step.images))[0]
    expected = torch.stack([apart[:, i, j].norm() for i, j in places]).mean()
    assert list(found) == ["feature_distance"]
    torch.testing.assert_close(found["feature_distance"], expected)
    assert owner.reports["feature_places"] == pytest.approx(len(places) / 6)


def test_reference_of_two_scales() -> None:
    """A network that reads images at half their size is held against the fixed encoder on images of that size."""
    torch.manual_seed(0)
    settings = SegmenterSettings(name="tiny-fcn", multi_resolution=True, norm="none")
    network = build_segmenter(settings, len(KNOWN.classes)).double()
    owner = Owner()
    owner.student = network.forward  # type: ignore[method-assign]
    owner.initial_map = lambda images: network.encoder.maps(images)[-1].detach()  # type: ignore[method-assign]
    step = stepped(owner, torch.zeros(2, 32, 48, dtype=torch.int64))
    same = made().loss(step)["feature_distance"]
    assert float(same.detach()) == pytest.approx(0, abs=1e-12)
    owner.initial_map = lambda images: network.encoder.maps(images)[-1].detach() + 1  # type: ignore[method-assign]
    other = made().loss(stepped(owner, torch.zeros(2, 32, 48, dtype=torch.int64)))["feature_distance"]
    assert float(other.detach()) == pytest.approx(step.output.maps[-1].shape[1] ** 0.5)


def test_gradient() -> None:
    """It reaches the encoder, up to its last map only, and not the fixed one."""
    owner, term = Owner(), made()
    term.loss(stepped(owner, street()))["feature_distance"].backward()
    assert owner.coarse.weight.grad is not None
    assert bool(owner.coarse.weight.grad.any())
    assert owner.fixed.weight.grad is None
    assert owner.fine.weight.grad is None


def test_degenerate() -> None:
    """No place of a chosen class, or nothing labelled: a zero with a gradient."""
    for labels in (torch.zeros(2, 8, 8, dtype=torch.int64), torch.full((2, 8, 8), -100)):
        owner, term = Owner(), made(classes=("car",))
        loss = term.loss(stepped(owner, labels))["feature_distance"]
        loss.backward()
        assert float(loss.detach()) == 0
        assert owner.reports["feature_places"] == 0
        assert owner.coarse.weight.grad is not None
        assert not bool(owner.coarse.weight.grad.any())


def test_errors() -> None:
    with pytest.raises(ValueError, match="classes: no class 'trafic light'; did you mean 'traffic light'"):
        made(classes=("trafic light",))
    with pytest.raises(ValueError, match="known: road, traffic light, car"):
        made(classes=("xyz",))


def test_state() -> None:
    """It remembers nothing, and asks for the encoder as the run found it."""
    assert dict(made().state_dict()) == {}
    needs = FeatureDistance.needs(FeatureDistanceSettings())
    assert (needs.source, needs.target, needs.frozen) == (True, False, "initial")
