"""The grid: same for all, chosen by validation, and honest about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakeruns import SMALL, Fake

from leanlabel import compare
from leanlabel.compare.queue import Queue
from leanlabel.engine.runfolder import read_lines
from leanlabel.errors import InputError, RunError

ARMS = ["gca-generated", "grace", "raw", "untrained"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Validation likes lr=0.2 (grace: lr=0.1); the test scores like lr=0.3, and must not be heard."""
    made = Fake(monkeypatch)
    made.score = lambda job: 0.5 + job.config.optim.lr if job.trains else 0.4

    def more(job: Any) -> dict[str, Any]:
        lr = job.config.optim.lr
        best = 0.1 if job.arm == "grace" else 0.2
        return {"validation": 0.9 - abs(lr - best)}

    made.more = more
    return made


def go(fake: Fake, out: Path, **settings: Any) -> dict[str, Any]:
    return fake.compare(out, **{"grid": ["optim.lr=0.1,0.2,0.3"], "seeds": 3, "only": ARMS, **settings})


def test_values(fake: Fake, tmp_path: Path) -> None:
    """Every arm that trains gets every point with one seed, then all seeds at its choice; nothing runs twice."""
    found = go(fake, tmp_path)
    assert fake.titles == [
        f"{arm}, lr={lr}, seed 0" for lr in ("0.1", "0.2", "0.3") for arm in ("gca-generated", "grace")
    ] + [
        "raw, seed 0",
        "untrained, seed 0",
        *(
            title
            for seed in (1, 2)
            for title in (
                f"gca-generated, lr=0.2, seed {seed}",
                f"raw, seed {seed}",
                f"untrained, seed {seed}",
                f"grace, lr=0.1, seed {seed}",
            )
        ),
    ]
    assert [(arm["name"], arm["n"], round(arm["mean"], 6)) for arm in found["arms"]] == [
        ("gca-generated", 3, 0.7),
        ("raw", 3, 0.4),
        ("untrained", 3, 0.4),
        ("grace", 3, 0.6),
    ]
    tuning = found["tuning"]
    assert (tuning["keys"], tuning["seeds"], tuning["finished"]) == (["optim.lr"], [0], True)
    mine, raw = tuning["arms"][0], tuning["arms"][1]
    assert (mine["runs"], mine["chosen"], mine["settings"]) == (3, "lr=0.2", {"optim.lr": 0.2})
    assert [round(one["score"], 6) for one in mine["points"]] == [0.8, 0.9, 0.8]
    assert (raw["why"], raw["runs"], raw["chosen"], raw["points"]) == ("does not train", 0, None, [])
    against = {pair["against"]: pair["sentence"] for pair in found["pairs"]}
    assert against["grace"].endswith("; tuned: 3 runs per arm.")
    assert against["raw"].endswith("; tuned: 3 and 0 runs.")
    assert found["pending"] == []


def test_values_more_seeds_choose(fake: Fake, tmp_path: Path) -> None:
    """With several seeds the mean decides."""
    fake.more = lambda job: {
        "validation": {0.1: (0.9, 0.1), 0.2: (0.6, 0.6), 0.3: (0.5, 0.5)}[job.config.optim.lr][job.seed]
        if job.trains
        else 0.1
    }
    one = go(fake, tmp_path / "one", seeds=2, only=["gca-generated"])
    two = go(fake, tmp_path / "two", seeds=2, only=["gca-generated"], grid_seeds=2)
    assert one["tuning"]["arms"][0]["chosen"] == "lr=0.1"
    assert two["tuning"]["arms"][0]["chosen"] == "lr=0.2"
    assert two["tuning"]["arms"][0]["runs"] == 6
    assert len(fake.ran) == 3 + 1 + 6


def test_values_first_of_equal_points(fake: Fake, tmp_path: Path) -> None:
    fake.more = lambda job: {"validation": 0.5}
    assert go(fake, tmp_path, only=["grace"])["tuning"]["arms"][0]["chosen"] == "lr=0.1"


def test_values_arms_without_the_key(fake: Fake, tmp_path: Path) -> None:
    """An arm that lacks the key, or fixes it, is left as it is and says so."""
    found = fake.compare(
        tmp_path,
        ("gca/generated", "bgrl/generated"),
        grid=["augment.scheme=degree,uniform"],
        only=["gca-generated", "grace", "bgrl-generated"],
        seeds=1,
    )
    why = {arm["arm"]: arm["why"] for arm in found["tuning"]["arms"]}
    assert why["gca-generated"] is None
    assert why["grace"] == "fixes these settings itself"
    assert why["bgrl-generated"] in ("has none of these settings", None)


def test_values_product(fake: Fake, tmp_path: Path) -> None:
    found = go(fake, tmp_path, grid=["optim.lr=0.1,0.2", "method.tau=0.3,0.4"], only=["grace"], seeds=1)
    assert [one["label"] for one in found["tuning"]["arms"][0]["points"]] == [
        "lr=0.1, tau=0.3",
        "lr=0.1, tau=0.4",
        "lr=0.2, tau=0.3",
        "lr=0.2, tau=0.4",
    ]
    assert found["tuning"]["arms"][0]["runs"] == 4


def test_state_stopped_while_tuning(fake: Fake, tmp_path: Path) -> None:
    """Without time the table says what is open; the same command goes on, and makes nothing twice."""
    found = go(fake, tmp_path, minutes=0)
    assert fake.ran == []
    assert found["tuning"]["finished"] is False
    assert found["tuning"]["arms"][0]["points"][0] == {"label": "lr=0.1", "score": None, "stopped": None}
    assert "tuning gca-generated, lr=0.1, seed 0" in found["pending"]
    assert "grace, 3 seeds, once its settings are chosen" in found["pending"]
    assert "raw, seed 2" in found["pending"]
    whole = go(fake, tmp_path)
    count = len(fake.ran)
    assert go(fake, tmp_path)["arms"] == whole["arms"]
    assert len(fake.ran) == count


def test_state_a_point_that_is_not_finite(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noted, not chosen, not tried again; an arm without any point left has no choice, the others go on."""
    tried = []

    def run(queue: Queue, job: Any) -> None:
        if job.config.optim.lr == 0.2:
            tried.append(job.title)
            raise RunError("Iteration 1: term loss is not finite, the run was stopped.", "Go on.")
        fake.run(queue, job)

    monkeypatch.setattr(Queue, "_run", run)
    found = go(fake, tmp_path, only=["gca-generated"], seeds=1)
    arm = found["tuning"]["arms"][0]
    assert arm["chosen"] == "lr=0.1"
    assert arm["points"][1]["stopped"].startswith("Iteration 1")
    go(fake, tmp_path, only=["gca-generated"], seeds=1)
    assert tried == ["gca-generated, lr=0.2, seed 0"]
    assert len(read_lines(tmp_path / "stopped.jsonl")) == 1
    found = go(fake, tmp_path, grid=["optim.lr=0.2", "steps=3,4"], only=["gca-generated", "raw"], seeds=2)
    arm = found["tuning"]["arms"][0]
    assert (arm["chosen"], arm["stopped"].startswith("Iteration 1")) == (None, True)
    assert found["tuning"]["finished"] is True
    assert [(one["name"], one["n"]) for one in found["arms"]] == [("raw", 2)]
    assert [one["run"] for one in found["stopped"]] == ["gca-generated, every setting of the grid"]
    assert found["pending"] == []
    assert "none: every setting stopped" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": ["steps=0,6"]}, "--grid steps=0: gca-generated would not train"),
        (
            {"overrides": [*SMALL, "evaluation.protocol=clustering"]},
            "protocol clustering of gca-generated records",
        ),
        ({"overrides": [*SMALL, "evaluation.protocol=none"]}, "protocol none of gca-generated records"),
    ],
)
def test_errors_no_choice_is_told_before_any_run(
    settings: dict[str, Any], message: str, fake: Fake, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        go(fake, tmp_path / "out", **settings)
    assert fake.ran == []
    assert not (tmp_path / "out").exists()


def test_state_other_faults_stop(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(queue: Queue, job: Any) -> None:
        raise RunError("x.ckpt: could not be written (no space left).")

    monkeypatch.setattr(Queue, "_run", full)
    with pytest.raises(RunError, match="no space left"):
        go(fake, tmp_path)
    assert (tmp_path / "report.html").exists()
    assert not (tmp_path / "stopped.jsonl").exists()


def test_errors(fake: Fake, tmp_path: Path) -> None:
    for key in ("data.nodes=50,60", "evaluation.splits=1,2"):
        with pytest.raises(InputError, match="cannot choose how it is measured"):
            go(fake, tmp_path, grid=[key])
    with pytest.raises(InputError, match="seeds are counted"):
        go(fake, tmp_path, grid=["seed=1,2"])
    fake.more = lambda job: {"readout": "missing"}
    with pytest.raises(InputError, match="records no validation accuracy"):
        go(fake, tmp_path, only=["gca-generated"])


def test_values_preview(fake: Fake, tmp_path: Path) -> None:
    """The plan counts what tuning will lead to before it is known what that is, and writes nothing."""
    settings = {"overrides": SMALL, "grid": ["optim.lr=0.1,0.2,0.3"], "only": ARMS, "out": tmp_path / "x"}
    before = compare.preview(["gca/generated"], **settings)
    assert {arm["arm"]: arm["runs"] for arm in before["arms"]} == {
        "gca-generated": 5,
        "grace": 5,
        "raw": 3,
        "untrained": 3,
    }
    assert (before["to_do"], before["done"], before["measured"]) == (16, 0, False)
    assert not (tmp_path / "x").exists()
    go(fake, tmp_path / "x")
    after = compare.preview(["gca/generated"], **settings)
    assert (after["to_do"], after["done"], after["runs"]) == (0, 16, 16)
