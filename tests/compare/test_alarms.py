"""Verdicts and alarms of whole comparisons, and how they are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakeruns import Fake, deviating

from leanlabel import methods
from leanlabel.engine.runfolder import read_json
from smallrun import RECIPE, cli, options

SCORES = {"gca-generated": 0.80, "raw": 0.60, "untrained": 0.85, "grace": 0.70}


SUPERVISED = "supervised-graph-generated"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(monkeypatch)
    made.score = lambda job: (
        SCORES.get(job.arm, 0.9) + deviating(job.seed) + 0.001 * (len(job.arm) * job.seed % 3)
    )
    return made


def told(found: dict[str, Any], level: str) -> list[tuple[str, str, str]]:
    return [(one["arm"], one["against"], one["kind"]) for one in found["alarms"] if one["level"] == level]


def test_values_harm(fake: Fake, tmp_path: Path) -> None:
    """Trained arms below the untrained network; arms that do not train raise no alarm. Where a run has not read out
    its own, the arm of the baseline is the reference."""
    fake.more = lambda job: {"own": {}}
    found = fake.compare(tmp_path, seeds=4)
    assert told(found, "harm") == [
        ("grace", "untrained", "untrained"),
        ("gca-generated", "untrained", "untrained"),
    ]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("ALARM: a trained arm is below a baseline.") < page.index('class="answer')


def test_values_the_own_readout_is_the_reference(fake: Fake, tmp_path: Path) -> None:
    """What the same runs have read out raw and untrained, with the baselines, without them, and while they wait."""
    fake.score = lambda job: 0.9 if job.baseline and not job.trains else 0.55 + 0.01 * job.seed
    own = [("gca-generated", "its own untrained readout", "untrained")]
    settings: dict[str, Any] = {"seeds": 4, "only": ["gca-generated", "raw", "untrained"]}
    assert told(fake.compare(tmp_path / "a", **settings), "harm") == own
    alone = fake.compare(tmp_path / "b", seeds=4, baselines=False)
    assert told(alone, "harm") == own
    assert alone["pairs"] == []
    fake.compare(tmp_path / "c", seeds=4, only=["gca-generated"])
    waiting = fake.compare(tmp_path / "c", minutes=0, **settings)
    assert "untrained, seed 0" in waiting["pending"]
    assert told(waiting, "harm") == own


def test_values_supervised_only(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What falls behind training on labels alone says so; the supervised arm itself is only held to its input."""
    monkeypatch.setattr(methods.find("bgrl"), "supervised_only", True, raising=False)
    found = fake.compare(
        tmp_path, (RECIPE, "bgrl/generated"), seeds=4, only=["gca-generated", "bgrl-generated"]
    )
    assert ("gca-generated", "bgrl-generated", "supervised") in told(found, "harm")
    assert all(one["arm"] != "bgrl-generated" for one in found["alarms"])


def test_values_one_seed(fake: Fake, tmp_path: Path) -> None:
    """With one seed a point decides."""
    fake.more = lambda job: {"own": {}}
    fake.score = lambda job: {"untrained": 0.605, "raw": 0.5}.get(job.arm, 0.6)
    found = fake.compare(tmp_path, seeds=1)
    assert told(found, "harm") == []
    assert len(told(found, "below")) == 2
    fake.score = lambda job: {"untrained": 0.62, "raw": 0.5}.get(job.arm, 0.6)
    assert len(told(fake.compare(tmp_path / "b", seeds=1), "harm")) == 2


def test_values_cost_of_supervised_training(fake: Fake, tmp_path: Path) -> None:
    """It fits one network to every split, which the cost factor does not show."""
    found = fake.compare(
        tmp_path, (RECIPE, "supervised-graph/generated"), seeds=1, only=["gca-generated", "grace", SUPERVISED]
    )
    notes = {(one["arm"], one["against"]): one["sentence"] for one in found["pairs"]}
    assert f"cost ({SUPERVISED} trains one network per split)" in notes["gca-generated", SUPERVISED]
    assert "per split" not in notes["gca-generated", "grace"]


def test_values_against(fake: Fake, tmp_path: Path) -> None:
    found = fake.compare(tmp_path, seeds=2, against="grace")
    assert [(pair["arm"], pair["against"]) for pair in found["pairs"]] == [
        ("gca-generated", "grace"),
        ("raw", "grace"),
        ("untrained", "grace"),
    ]
    assert found["question"] == "What is better than grace?"


def test_values_layout(fake: Fake, tmp_path: Path) -> None:
    """What other programs read."""
    fake.compare(tmp_path, seeds=2, variants=["cold:method.tau=0.1", "same:steps=4"])
    found = read_json(tmp_path / "comparison.json")
    assert found.keys() >= {
        *("title", "question", "recipe", "recipes", "seeds", "against", "same", "metric", "protocol"),
        *("selection", "split", "arms", "pairs", "alarms", "tuning", "dial", "label_free", "pending"),
        *("curves", "environment"),
    }
    assert found["same"] == {"same": "gca-generated"}
    assert (found["arms"][0]["also"], found["arms"][0]["role"]) == (["same"], "recipe")
    assert [arm["role"] for arm in found["arms"]][1:3] == ["variant", "baseline"]
    assert found["arms"][0]["runs"][0].keys() == {
        *("seed", "value", "seconds", "whole_seconds", "steps", "key"),
    }
    pair = found["pairs"][0]
    assert (pair["arm"], pair["against"], pair["cost_factor"]) == ("gca-generated", "cold", 1.0)
    assert pair.keys() == {
        *("arm", "against", "difference", "low", "high", "n", "p_value", "minimal_detectable"),
        *("seeds_needed", "cost_factor", "verdict", "sentence"),
    }


def test_values_label_free(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that runs have recorded stand in the comparison, with their rank correlation to accuracy."""
    ranks = {"gca-generated": 9.0, "untrained": 10.0, "grace": 3.0, "cold": 12.0, "raw": 1.0}
    plain = fake.run

    def run(queue: Any, job: Any) -> None:
        plain(queue, job)
        lines = queue.ledger.file.read_text(encoding="utf-8").splitlines()
        row = json.loads(lines[-1])
        row["results"]["label_free"] = {"effective_rank": ranks[job.arm]}
        queue.ledger.file.write_text("\n".join([*lines[:-1], json.dumps(row)]) + "\n", encoding="utf-8")

    monkeypatch.setattr(fake, "run", run)
    found = fake.compare(tmp_path, seeds=1, variants=["cold:method.tau=0.1"])["label_free"]
    assert [one["arm"] for one in found["arms"]] == ["gca-generated", "cold", "untrained", "grace"]
    assert found["correlation"] == [{"score": "effective_rank", "rank": pytest.approx(1.0), "arms": 4}]
    assert "effective rank" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_command_line(fake: Fake, tmp_path: Path) -> None:
    """The sentence of every verdict, alarms, and what is the same."""
    fake.more = lambda job: {"own": {}}
    answer = cli(
        *("compare", RECIPE, "--seeds", "3", "--out", tmp_path, "--variant", "same:steps=6"),
        *("--against", "untrained", *options()),
    )
    assert answer.code == 0, answer.err
    assert "same is the same as gca-generated and runs once." in answer.out
    assert "gca-generated (also same)" in answer.out
    assert "gca-generated hurts against untrained by " in answer.out
    assert "ALARM: gca-generated is " in answer.out
    assert " points below untrained, [-" in answer.out


def test_command_line_dial_and_grid(fake: Fake, tmp_path: Path) -> None:
    """A table over the settings; what was tuned and what was not."""
    base = ("compare", RECIPE, "--seeds", "2", "--arm", "grace", "--arm", "raw", *options())
    dial = cli(*base, "--out", tmp_path / "d", "--dial", "method.tau=0.1,0.2")
    assert dial.code == 0, dial.err
    assert "grace over raw: helps at tau 0.1, 0.2." in dial.out
    grid = cli(*base, "--out", tmp_path / "g", "--grid", "method.tau=0.1,0.2", "--grid-seeds", "2")
    assert grid.code == 0, grid.err
    assert "tuned: grace takes tau=0.1 (validation 0.711, 4 runs tried)." in grid.out
    assert "not tuned: raw does not train." in grid.out
    waiting = cli(*base, "--out", tmp_path / "w", "--grid", "method.tau=0.1,0.2", "--minutes", "0")
    assert "tuning of grace is not finished." in waiting.out
    assert "not run: tuning grace, tau=0.1, seed 0" in waiting.out
    data = json.loads(cli(*base, "--out", tmp_path / "d", "--dial", "method.tau=0.1,0.2", "--json").out)
    assert [point["text"] for point in data["dial"]["points"]] == ["0.1", "0.2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--dial", "method.tau=1,2", "--grid", "method.tau=1,2"], "cannot stand together"),
        (["--grid-seeds", "4", "--grid", "method.tau=1,2"], "--grid-seeds 4"),
        (["--variant", "x"], "write it as NAME:key=value"),
        (["--against", "nobody"], "This comparison has: gca-generated, raw, untrained, grace."),
        (["--dial", "method.tau=0.1,hot"], "value method.tau=hot: method.tau: expected"),
    ],
)
def test_errors_command_line(given: list[str], message: str, fake: Fake, tmp_path: Path) -> None:
    answer = cli("compare", RECIPE, "--out", tmp_path / "o", *given, *options())
    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "o").exists()
