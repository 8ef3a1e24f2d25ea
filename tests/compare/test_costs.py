"""What a comparison will take, from what was measured before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakeruns import SMALL, Fake, row

from leanlabel import compare
from leanlabel.compare.costs import estimate
from leanlabel.compare.jobs import plan
from smallrun import RECIPE, cli, options


def job(**changes: Any) -> Any:
    assignments = [*SMALL, *(f"{key.replace('__', '.')}={value}" for key, value in changes.items())]
    return plan([RECIPE], seeds=1, overrides=assignments, only=["gca-generated"])[0]


def test_values_measured() -> None:
    """The mean of the same runs: training and what a run takes beside it."""
    one = job()
    rows = [row(one, 0.7), row(one, 0.7, seconds=17.0), row(one, 0.7, resumed=True, seconds=1.0)]
    found = estimate(one, rows)
    assert found.minutes == pytest.approx((8 + (3 + 9) / 2) / 60, rel=1e-10)
    assert found.basis == "3 runs"


def test_values_scaled_by_iterations() -> None:
    """Training grows with the iterations, the rest does not."""
    found = estimate(job(steps=400), [row(job(), 0.7)])
    assert found.minutes == pytest.approx((800 + 3) / 60, rel=1e-10)
    assert found.basis == "1 run of 4 iterations"


def test_values_rows_from_before_whole_runs_were_timed() -> None:
    old = row(job(), 0.7)
    del old["seconds"], old["resumed"]
    found = estimate(job(), [old])
    assert (found.minutes, found.basis) == (pytest.approx(8 / 60), "1 run, training only")


@pytest.mark.parametrize(
    "change",
    [
        {"data__nodes": 61},
        {"model__width": 17},
        {"engine__precision": "64-true"},
    ],
)
def test_values_other_work_is_no_measure(change: dict[str, Any]) -> None:
    """Other data, another network or number format cost something else; other settings do not."""
    assert estimate(job(**change), [row(job(), 0.7)]).minutes is None
    assert estimate(job(method__tau=0.9, optim__lr=0.1), [row(job(), 0.7)]).minutes is not None
    assert estimate(job(), []).basis == "not measured"


def test_values_other_arms_are_no_measure() -> None:
    grace = plan([RECIPE], seeds=1, overrides=SMALL, only=["grace"])[0]
    assert estimate(job(), [row(grace, 0.7)]).minutes is None
    longer = plan([RECIPE], seeds=1, overrides=SMALL, only=["raw"])[0]
    assert estimate(longer, [row(longer, 0.5)]).minutes == pytest.approx(3 / 60)


def test_values_preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Done and to do by arm, minutes from the done ones, and what would be left."""
    fake = Fake(monkeypatch)
    arms = ["gca-generated", "raw", "grace"]
    fake.compare(tmp_path, seeds=1, only=arms[:2])
    found = compare.preview([RECIPE], overrides=SMALL, seeds=3, only=arms, out=tmp_path, minutes=0.2)
    by = {arm["arm"]: arm for arm in found["arms"]}
    assert [by[arm]["done"] for arm in arms] == [1, 1, 0]
    assert [by[arm]["to_do"] for arm in arms] == [2, 2, 3]
    assert by["gca-generated"]["minutes_per_run"] == pytest.approx(11 / 60)
    assert by["gca-generated"]["minutes"] == pytest.approx(22 / 60)
    assert (by["grace"]["minutes"], by["grace"]["basis"]) == (None, "not measured")
    assert "2 cores" in by["grace"]["cost"]
    assert (found["runs"], found["done"], found["to_do"], found["measured"]) == (9, 2, 7, False)
    assert found["minutes"] == pytest.approx((22 + 6) / 60)
    # grace, then 11 s of gca-generated and 3 s of raw: 12 s are over, and four runs are left
    assert found["left"] == 4
    assert compare.preview([RECIPE], overrides=SMALL, seeds=1, only=arms[:2], out=tmp_path)["left"] is None


def test_values_equal_runs_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fake(monkeypatch)
    dial = "augment.scheme=uniform,degree"
    found = compare.preview(
        [RECIPE], overrides=SMALL, seeds=1, only=["gca-generated", "grace"], dial=dial, out=tmp_path
    )
    assert {arm["arm"]: arm["runs"] for arm in found["arms"]} == {"gca-generated": 2}


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--plan prints the queue and writes nothing; --json the same as data."""
    Fake(monkeypatch)
    arguments = ["compare", RECIPE, "--plan", "--out", tmp_path / "o", "--seeds", "2", *options()]
    answer = cli(*arguments, "--minutes", "1")
    assert answer.code == 0, answer.err
    assert "8 runs to do, at least 0.0 minutes." in answer.out
    assert "Not measured: gca-generated, raw, untrained, grace; the recipe says about 5 s" in answer.out
    assert "--minutes 1 would leave 0 runs for the next call." in answer.out
    assert '"to_do": 8' in cli(*arguments, "--json").out
    assert not (tmp_path / "o").exists()
