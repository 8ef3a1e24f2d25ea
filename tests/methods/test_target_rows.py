"""Batches of a target domain: what the shift of a copy filled in counts nowhere; and --data of two domains."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leanlabel import api
from leanlabel.augment.geometry import placed
from leanlabel.data.dense_source import Scenes, Transformed, open_dense
from leanlabel.data.pairs import PairSection, find_pairs
from leanlabel.errors import InputError
from leanlabel.methods.domains import Domains, TargetRows, collate_target, shown, valid_places
from leanlabel.methods.feature_regression import FeatureRegression
from leanlabel.recipe import Recipe

SCENES: dict[str, Any] = {"kind": "scenes", "train": 4, "val": 0, "test": 1, "height": 32, "width": 48}
COPY = {"kind": "transformed", "of": SCENES, "sensor": "camera", "shift": {"constant": [0, 5]}}
RECIPE: dict[str, Any] = {
    "about": "pairs of generated scenes",
    "task": "adapt",
    "fidelity": "small",
    "cost": "a second",
    "seed": 0,
    "steps": 1,
    "method": {"name": "feature-regression", "watch_every": 0},
    "model": {"name": "tiny-fcn"},
    "data": {
        "source": {**SCENES, "batch_size": 2},
        "target": {**COPY, "batch_size": 2},
        "pairs": {"by": "same"},
    },
    "augment": {"crop": [32, 32], "flip": 0},
    "optim": {"name": "sgd", "lr": 0.01, "warmup": 0},
    "engine": {"loggers": [], "accelerator": "cpu", "threads": 1},
}


def domains(shift: tuple[int, int]) -> Domains:
    own = open_dense(Scenes.model_validate(SCENES))
    copy = open_dense(Transformed.model_validate({**COPY, "shift": {"constant": shift}}))
    return Domains(own, copy, find_pairs(own, copy, PairSection(by="same"), [0, 1, 2, 3]))


def test_values() -> None:
    """One by one and as a batch: the columns that a shift filled in are not valid, in the target alone."""
    rows = TargetRows(domains((0, 5)), torch.arange(4), None, paired=True, seed=0)
    batch = collate_target([rows[k] for k in (3, 1)])
    _, _, valid, (_, _, there) = batch
    assert valid.shape == (2, 32, 48)
    assert bool(valid[:, :, 5:].all())
    assert not bool(valid[:, :, :5].any())
    assert there is None
    assert torch.equal(rows.read([3, 1])[2], valid)
    plain = TargetRows(domains((0, 0)), torch.arange(4), None, paired=False, seed=0)
    assert collate_target([plain[0]])[2:] == (None, None)
    assert valid_places(domains((0, 5)).source, [0], torch.zeros(1, 3, 32, 48)) is None


def test_values_moved() -> None:
    """Padding and filled places count as nothing, wherever a crop brings them."""
    geometry = placed(torch.tensor([[4, 6]]), torch.ones(1), torch.tensor([[1, 2]]), (4, 6))
    valid = torch.ones(1, 4, 6, dtype=torch.bool)
    valid[:, :, 0] = False
    found = shown(geometry, valid, torch.device("cpu"))
    assert found[0].tolist() == [[0, 0, 0, 0, 0, 0], *[[0, 0, 0, 1, 1, 1]] * 3]
    assert shown(geometry, None, torch.device("cpu")).sum() == 12
    assert shown(geometry, [valid[0]], torch.device("cpu")).equal(found)


def test_values_step() -> None:
    """A term that compares pairs sees where both show something; the agreement is measured there, too."""
    cfg = api.resolve(Recipe("pairs", RECIPE))
    data = FeatureRegression.read(cfg)
    method = api.build(cfg, data)
    assert isinstance(method, FeatureRegression)
    rows = TargetRows(data, torch.arange(4), None, paired=True, seed=0)
    step = method.begin(0, (None, (torch.arange(4), collate_target([rows[k] for k in range(4)])), None))
    assert step.partner is not None
    weights = step.partner.weights
    assert weights is not None
    assert step.target.weights is not None
    assert torch.equal(step.target.weights, weights)
    # Crops of 32 of 48 columns: those that hold some of the first 5 have as many without weight.
    crops = weights[:, 0].sum(1)
    assert bool((weights == weights[:, :1]).all())
    assert int(crops.min()) in range(27, 32)
    counted = rows.read([0, 1, 2, 3])
    for number, gone in enumerate((32 - crops).int().tolist()):
        image = step.partner.images[number]
        assert not bool(weights[number, :, :gone].any())
        assert image.shape == (3, 32, 32)
    assert counted[3][2] is None


def test_errors() -> None:
    """One place of data where two are needed: said so, and not as a key that nobody wrote."""
    with pytest.raises(InputError, match=r"needs two places of data, a source and a target.*twice"):
        api.resolve(Recipe("pairs", RECIPE), data=["here"])
