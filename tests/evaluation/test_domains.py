"""Scores within each domain."""

from __future__ import annotations

import torch

from leanlabel.evaluation.domains import by_domain
from leanlabel.evaluation.protocols import readout


def test_reference() -> None:
    """A domain's score is that of a readout which never saw the other domains."""
    numbers = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    domain = torch.arange(120) // 60
    z = torch.nn.functional.one_hot(y, 3).float() + 0.8 * torch.randn(120, 3, generator=numbers)
    z[domain == 1] = z[domain == 1].roll(1, 1)
    order = torch.randperm(120, generator=numbers)
    split = {"train": order[:60], "val": order[60:80], "test": order[80:]}
    found = by_domain({"z": z}, y, [split], domain, ["left", "right"], protocol="logistic-l2")
    for number, row in enumerate(found):
        own = (domain == number).nonzero()[:, 0]
        place = {int(old): new for new, old in enumerate(own)}
        inside = {
            part: torch.tensor([place[int(i)] for i in rows if int(i) in place])
            for part, rows in split.items()
        }
        alone = readout("logistic-l2", z[own], y[own], inside)
        assert row["readouts"] == {"z": alone.mean}
        assert row["test_rows"] == len(inside["test"])
    assert [row["name"] for row in found] == ["left", "right"]


def test_degenerate() -> None:
    """A domain without test rows, and one with a single class to learn, are told without a score."""
    y, domain = torch.tensor([0, 1, 0, 1, 0, 0, 0, 0]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
    split = {
        "train": torch.tensor([0, 1, 4, 7]),
        "val": torch.tensor([2, 5]),
        "test": torch.tensor([3, 6]),
    }
    found = by_domain({"z": torch.eye(8)}, y, [split], domain, ["a", "b", "c"], protocol="logistic-l2")
    assert [bool(row["readouts"]) for row in found] == [True, False, False]
    assert [row["test_rows"] for row in found] == [1, 1, 0]
