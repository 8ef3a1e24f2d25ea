"""Optimisers from settings, and the learning rate of an iteration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Adam, AdamW

from leanlabel.config import OptimSettings
from leanlabel.engine.optim import build, factor


@pytest.mark.parametrize(
    ("schedule", "warmup", "steps", "expected"),
    [
        ("constant", 0, 4, [1, 1, 1, 1]),
        ("constant", 3, 5, [1 / 3, 2 / 3, 1, 1, 1]),
        ("cosine", 0, 4, [1, 0.8535533905932737, 0.5, 0.1464466094067262]),
        ("cosine", 2, 6, [0.5, 1, 1, 0.8535533905932737, 0.5, 0.1464466094067262]),
        ("poly", 0, 4, [1, 0.7718895067, 0.5358867313, 0.2871745887]),
        ("poly", 1, 3, [1, 1, 0.5358867313]),
        ("linear", 0, 4, [1, 0.75, 0.5, 0.25]),
        ("linear", 2, 6, [0.5, 1, 1, 0.75, 0.5, 0.25]),
    ],
)
def test_values(schedule: str, warmup: int, steps: int, expected: list[float]) -> None:
    settings = OptimSettings.model_validate({"schedule": schedule, "warmup": warmup})
    found = [factor(settings, t, steps) for t in range(steps)]
    assert found == pytest.approx(expected, rel=1e-9)


def test_values_past_the_end() -> None:
    """t = steps and beyond: cosine, poly and linear end at zero and stay there."""
    assert factor(OptimSettings(schedule="cosine"), 10, 10) == pytest.approx(0, abs=1e-12)
    assert factor(OptimSettings(schedule="poly"), 15, 10) == 0
    assert (
        factor(OptimSettings(schedule="linear"), 10, 10)
        == factor(OptimSettings(schedule="linear"), 15, 10)
        == 0
    )
    assert factor(OptimSettings(), 15, 10) == 1
    assert factor(OptimSettings(schedule="poly", warmup=20), 19, 10) == 1


@pytest.mark.parametrize(
    ("lr", "horizon", "steps", "t", "expected"),
    [
        (2.5e-4, 62_500, 40_000, 1, 2.4999639999712e-4),
        (2.5e-4, 62_500, 40_000, 20_000, 1.7668432843088538e-4),
        (2.5e-4, 62_500, 40_000, 39_999, 9.968495812232141e-5),
        (5e-4, 31_250, 20_000, 19_999, 1.9937789066915305e-4),
    ],
)
def test_values_horizon(lr: float, horizon: int, steps: int, t: int, expected: float) -> None:
    """Training that stops before the end of its schedule, with published numbers of iterations."""
    settings = OptimSettings(name="sgd", lr=lr, schedule="poly", horizon=horizon)
    assert lr * factor(settings, t, steps) == pytest.approx(expected, rel=1e-10)
    half = OptimSettings(schedule="linear", horizon=horizon)
    assert factor(half, t, steps) == pytest.approx(1 - t / horizon, rel=1e-12)


@given(
    st.sampled_from(["constant", "cosine", "poly", "linear"]),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(0, 40),
)
def test_degenerate(schedule: str, warmup: int, steps: int, t: int) -> None:
    """In [0, 1] for every combination, a warm-up longer than the run included."""
    settings = OptimSettings.model_validate({"schedule": schedule, "warmup": warmup})
    value = factor(settings, t, steps)
    assert math.isfinite(value)
    assert 0 <= value <= 1


def test_reference() -> None:
    """Settings reach torch's optimisers."""
    weight = torch.nn.Parameter(torch.ones(2))
    sgd = build(OptimSettings(name="sgd", lr=0.2, momentum=0.5, weight_decay=0.1), [weight])
    assert type(sgd) is SGD
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.2, 0.5, 0.1)
    adam = build(OptimSettings(lr=0.3, betas=(0.8, 0.9)), [weight])
    assert type(adam) is Adam
    assert (adam.defaults["lr"], adam.defaults["betas"]) == (0.3, (0.8, 0.9))
    groups = [{"params": [weight], "lr": 0.05}]
    adamw = build(OptimSettings(name="adamw", weight_decay=0.2), groups)
    assert type(adamw) is AdamW
    assert (adamw.param_groups[0]["lr"], adamw.param_groups[0]["weight_decay"]) == (0.05, 0.2)
