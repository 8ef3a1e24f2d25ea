"""The dial: the comparison at every setting, seed by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakeruns import Fake, deviating

from leanlabel import compare
from leanlabel.compare.dial import sentences
from leanlabel.compare.request import dial_points
from leanlabel.errors import InputError

ARMS = ["gca-generated", "grace", "raw"]
RATES = "augment.edge_rates+augment.feature_rates=[0.1,0.1],[0.5,0.5],[0.9,0.9]"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """The adaptive arm gains on the uniform one as the rate grows; raw is flat."""
    made = Fake(monkeypatch)

    def score(job: Any) -> float:
        rate = job.config.augment.edge_rates[0]
        gain = {"gca-generated": 0.1 * rate - 0.04, "grace": 0.0, "raw": -0.2}[job.arm]
        return 0.8 + gain + deviating(job.seed) + (0.001 * job.seed if job.arm == "grace" else 0)

    made.score = score
    return made


def test_values(fake: Fake, tmp_path: Path) -> None:
    """All settings for the first seed, then for the second; a table and pairs at each."""
    found = fake.compare(tmp_path, dial=RATES, only=ARMS, seeds=3)
    order = [(job.seed, job.point.text, job.arm) for job in fake.ran]
    assert order == [
        (seed, rate, arm)
        for seed in (0, 1, 2)
        for rate in ("0.1", "0.5", "0.9")
        for arm in ("gca-generated", "raw", "grace")
        if arm != "raw" or rate == "0.1"  # the rates do not touch it
    ]
    assert found["arms"] == found["pairs"] == []
    dial = found["dial"]
    assert dial["keys"] == ["augment.edge_rates", "augment.feature_rates"]
    assert dial["name"] == "edge_rates + feature_rates"
    assert [(one["text"], one["x"], one["value"]) for one in dial["points"]] == [
        ("0.1", 0.1, [0.1, 0.1]),
        ("0.5", 0.5, [0.5, 0.5]),
        ("0.9", 0.9, [0.9, 0.9]),
    ]
    first = dial["points"][0]
    assert [(arm["name"], arm["n"]) for arm in first["arms"]] == [
        ("gca-generated", 3),
        ("raw", 3),
        ("grace", 3),
    ]
    pairs = [{pair["against"]: pair["verdict"] for pair in one["pairs"]} for one in dial["points"]]
    assert [pair["raw"] for pair in pairs] == ["helps"] * 3
    assert [pair["grace"] for pair in pairs] == ["hurts", "helps", "helps"]
    assert dial["sentences"] == [
        "gca-generated over raw: helps at edge_rates + feature_rates 0.1, 0.5, 0.9.",
        "gca-generated over grace: helps at edge_rates + feature_rates 0.5, 0.9; hurts at 0.1.",
    ]
    assert found["question"].startswith("When does gca-generated help over raw, grace")
    configs = {job.point.text: job.config.augment.feature_rates for job in fake.ran if job.arm == "grace"}  # type: ignore[attr-defined]
    assert configs["0.9"] == (0.9, 0.9)


def test_values_alarms_say_where(fake: Fake, tmp_path: Path) -> None:
    """What training has spoilt at one setting stands at the top, with the setting."""
    fake.score = lambda job: 0.9 if job.arm == "raw" else 0.7 + deviating(job.seed)
    fake.more = lambda job: {"own": {}}
    found = fake.compare(tmp_path, dial="method.tau=0.1,0.2", only=["gca-generated", "raw"], seeds=3)
    harm = [one for one in found["alarms"] if one["level"] == "harm" and one["kind"] == "raw"]
    assert [one["at"] for one in harm] == ["tau=0.1", "tau=0.2"]
    assert " below raw at tau=0.1, [" in harm[0]["sentence"]


def test_values_data_may_differ_between_settings(fake: Fake, tmp_path: Path) -> None:
    """Within a setting all have the same data; folders are named after it."""
    found = fake.compare(tmp_path, dial="data.nodes=60,70", only=["grace", "raw"], seeds=1)
    assert [one["text"] for one in found["dial"]["points"]] == ["60", "70"]
    assert fake.ran[0].folder(tmp_path) == tmp_path / "raw" / "nodes=60" / "seed-0"


def test_values_folders_are_safe(fake: Fake, tmp_path: Path) -> None:
    dial = "augment.edge_rates=[0.1, 0.2],[0.3,0.4]"
    fake.compare(tmp_path, dial=dial, only=["grace"], seeds=1)
    assert [job.folder(tmp_path).parent.name for job in fake.ran] == [
        "edge_rates=0.1-0.2",
        "edge_rates=0.3-0.4",
    ]


def test_values_against(fake: Fake, tmp_path: Path) -> None:
    """With --against every arm is compared with that one only."""
    found = fake.compare(tmp_path, dial="method.tau=0.1,0.2", only=ARMS, seeds=2, against="raw")
    for one in found["dial"]["points"]:
        assert [(p["arm"], p["against"]) for p in one["pairs"]] == [
            ("gca-generated", "raw"),
            ("grace", "raw"),
        ]
    assert found["against"] == "raw"


def test_state_goes_on(fake: Fake, tmp_path: Path) -> None:
    """A stopped dial says what is missing, and goes on."""
    found = fake.compare(tmp_path, dial="method.tau=0.1,0.2", only=["grace"], seeds=2, minutes=0)
    assert found["pending"] == [f"grace, tau={tau}, seed {seed}" for seed in (0, 1) for tau in ("0.1", "0.2")]
    assert found["dial"]["points"][0]["arms"][0]["mean"] is None
    fake.compare(tmp_path, dial="method.tau=0.1", only=["grace"], seeds=2)
    count = len(fake.ran)
    whole = fake.compare(tmp_path, dial="method.tau=0.1,0.2", only=["grace"], seeds=2)
    assert (count, len(fake.ran), whole["pending"]) == (2, 4, [])


def test_values_runs_are_shared_with_a_plain_comparison(fake: Fake, tmp_path: Path) -> None:
    """The key decides, not the option that asked for a run."""
    fake.compare(tmp_path, only=["grace"], seeds=1, variants=[])
    fake.compare(tmp_path, only=["grace"], seeds=1, dial="method.tau=0.4,0.5")
    assert fake.titles == ["grace, seed 0", "grace, tau=0.5, seed 0"]


def test_values_what_the_dial_does_not_touch_runs_once(fake: Fake, tmp_path: Path) -> None:
    """Raw input at every rate, an untrained network at every learning rate; recorded plain runs serve, too."""
    fake.score = lambda job: 0.5
    fake.compare(tmp_path, only=["raw"], seeds=1)
    found = fake.compare(tmp_path, dial="optim.lr=0.1,0.2", only=["raw", "untrained", "grace"], seeds=1)
    assert fake.titles == [
        "raw, seed 0",
        "untrained, lr=0.1, seed 0",
        "grace, lr=0.1, seed 0",
        "grace, lr=0.2, seed 0",
    ]
    assert [[arm["n"] for arm in one["arms"]] for one in found["dial"]["points"]] == [[1, 1, 1]] * 2
    fake.ran.clear()
    fake.compare(tmp_path, dial="augment.edge_rates=[0,0],[1,1]", only=["raw", "untrained"], seeds=1)
    assert fake.titles == ["untrained, edge_rates=0, seed 0", "untrained, edge_rates=1, seed 0"]


def test_values_preview(fake: Fake, tmp_path: Path) -> None:
    found = compare.preview(["gca/generated"], dial="method.tau=0.1,0.2", only=["grace", "raw"], out=tmp_path)
    assert {arm["arm"]: arm["runs"] for arm in found["arms"]} == {"grace": 6, "raw": 3}


def test_values_sentences_of_what_is_missing() -> None:
    pair = {"arm": "a", "against": "b"}
    points = [
        {"text": "1", "pairs": [{**pair, "verdict": "hurts"}]},
        {"text": "2", "pairs": [{**pair, "verdict": "cannot tell"}]},
        {"text": "3", "pairs": []},
    ]
    assert sentences("n", points) == ["a over b: hurts at n 1; cannot tell at 2; not measured at 3."]
    assert sentences("n", [{"text": "1", "pairs": []}]) == []


def test_errors(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot stand together"):
        fake.compare(tmp_path, dial="method.tau=1,2", grid=["method.tau=1,2"])
    with pytest.raises(InputError, match="a value stands there twice"):
        fake.compare(tmp_path, dial="method.tau=1,1")
    with pytest.raises(InputError, match="no recipe here has this key"):
        fake.compare(tmp_path, dial="method.nothing=1,2")
    assert not (tmp_path / "comparison.json").exists()


def test_two_keys_with_values_of_their_own() -> None:
    points = dial_points("data.nodes+data.draws=50:200,80:400")
    assert [point.values for point in points] == [
        {"data.nodes": 50, "data.draws": 200},
        {"data.nodes": 80, "data.draws": 400},
    ]
    assert [(point.text, point.x) for point in points] == [("50:200", 50.0), ("80:400", 80.0)]
    assert dial_points("model.name+data.name=a:b:c")[0].values == {
        "model.name": "a:b:c",
        "data.name": "a:b:c",
    }
