"""Which arms a comparison has: recipes of several methods, variants, baselines, equal ones once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leanlabel import methods
from leanlabel.compare.arms import Arm, arms_of, takes
from leanlabel.compare.jobs import Layout, lay_out, plan
from leanlabel.compare.request import Request, dial_points
from leanlabel.errors import InputError
from leanlabel.methods.gca import GCAConfig
from smallrun import RECIPE

BOTH = ("gca/generated", "bgrl/generated")
SHARED = ["steps=3", "data.nodes=60", "data.draws=300"]


def layout(*recipes: str, **settings: Any) -> Layout:
    return lay_out(Request(recipes or (RECIPE,), **{"seeds": 1, **settings}))


def config(found: Layout, arm: str) -> Any:
    return next(job.config for job in found.jobs if job.arm == arm)


def test_values_variants() -> None:
    """A variant is its recipe with the keys of one name changed, and leads like a recipe."""
    found = layout(
        variants=["cold:method.tau=0.1", "wide:model.width=32", "cold:augment.edge_rates=[0.1, 0.2]"]
    )
    assert list(found.arms) == ["gca-generated", "cold", "wide", "raw", "untrained", "grace"]
    cold, plain = config(found, "cold"), config(found, "gca-generated")
    assert (cold.method.tau, cold.augment.edge_rates) == (0.1, (0.1, 0.2))
    assert cold.model == plain.model
    assert config(found, "wide").model.width == 32
    assert [arm.baseline for arm in found.arms.values()] == [False, False, False, True, True, True]
    assert {arm.source for arm in found.arms.values()} == {"gca-generated"}


def test_values_variants_of_entries() -> None:
    """An entry of a list is named by its name or number; recipes without that entry have no such variant."""
    key = "method.terms.locally-adaptive"
    both = ("locally-adaptive/scenes-small", "segmentation/scenes-small")
    small = ["data.train=8", "data.val=2", "data.test=2", "data.height=32", "data.width=48"]
    options: dict[str, Any] = {
        "overrides": [*small, "method.terms.0.settings.at=feature"],
        "baselines": False,
    }
    found = layout(
        *both, variants=[f"mean:{key}.settings.k=1.0", "half:method.terms.0.weight=0.5"], **options
    )
    arms = [name for name, arm in found.arms.items() if arm.role == "variant"]
    assert arms == [
        *("locally-adaptive-scenes-small-mean", "locally-adaptive-scenes-small-half"),
        "segmentation-scenes-small-half",
    ]
    entry = config(found, arms[0]).method.terms[0]
    assert (entry.settings["k"], entry.settings["at"], entry.weight) == (1.0, "feature", 1.0)
    assert config(found, arms[2]).method.terms[0].weight == 0.5
    for text in ("method.terms.dice.weight=1", "method.terms.1.weight=1", f"{key}.wait=1"):
        with pytest.raises(InputError, match="no recipe here has this key"):
            layout(*both, variants=[f"x:{text}"], **options)


def test_values_variants_of_several_recipes() -> None:
    """Of every recipe that has all its keys, named after both."""
    found = layout(*BOTH, overrides=SHARED, variants=["cold:method.tau=0.1", "fast:optim.lr=0.5"])
    names = [name for name, arm in found.arms.items() if arm.role == "variant"]
    assert names == ["gca-generated-cold", "gca-generated-fast", "bgrl-generated-fast"]
    assert found.arms["bgrl-generated-fast"].source == "bgrl-generated"


def test_values_overrides_go_below_variants() -> None:
    found = layout(overrides=["method.tau=0.2"], variants=["cold:method.tau=0.1"])
    assert (config(found, "gca-generated").method.tau, config(found, "cold").method.tau) == (0.2, 0.1)
    assert config(found, "grace").method.tau == 0.2


def test_values_several_methods() -> None:
    """Raw features of the same data are one arm, whatever the method; baselines say whose they are."""
    found = layout(*BOTH, overrides=SHARED)
    assert list(found.arms) == [
        "gca-generated",
        "raw",
        "untrained",
        "grace",
        "bgrl-generated",
        "bgrl-generated-untrained",
    ]
    assert found.same == {"bgrl-generated-raw": "raw"}
    assert found.baselines["bgrl-generated", "raw"] == "raw"
    assert found.baselines["bgrl-generated", "untrained"] == "bgrl-generated-untrained"
    assert list(layout(*BOTH, overrides=SHARED, only=["bgrl-generated-raw"]).arms) == ["raw"]


def test_values_raw_of_other_features_is_another_arm() -> None:
    found = layout(variants=["plain:data.normalise=row_sum"])
    assert "plain" in found.arms
    two = [job.identity for job in plan([RECIPE], seeds=1, only=["raw"])]
    other = [
        job.identity for job in plan([RECIPE], seeds=1, only=["raw"], overrides=["data.normalise=row_sum"])
    ]
    tau = [job.identity for job in plan([RECIPE], seeds=1, only=["raw"], overrides=["method.tau=0.9"])]
    assert two == tau != other


def test_values_seeds_are_those_of_the_first_recipe(tmp_path: Path) -> None:
    """Other seeds could not be paired."""
    for name, seed in (("one", 7), ("two", 100)):
        (tmp_path / f"{name}.yaml").write_text(f"base: {RECIPE}\nseed: {seed}\nmethod: {{tau: 0.{seed}}}\n")
    found = lay_out(Request([str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")], seeds=2))
    assert found.seeds == (7, 8)
    assert {job.seed for job in found.jobs} == {job.config.seed for job in found.jobs} == {7, 8}


def test_values_equal_arms_once() -> None:
    found = layout(overrides=["augment.scheme=uniform"], variants=["same:steps=80", "warm:method.tau=0.8"])
    assert list(found.arms) == ["gca-generated", "warm", "raw", "untrained"]
    assert found.same == {"same": "gca-generated", "grace": "gca-generated"}


def test_values_equal_somewhere_is_not_equal() -> None:
    """On a dial, arms stay that differ at any setting."""
    points = dial_points("augment.scheme=uniform,degree")
    found = lay_out(Request([RECIPE], seeds=1), points)
    assert "grace" in found.arms
    keys = {(job.arm, job.point.text): job.key for job in found.jobs}
    assert keys["gca-generated", "uniform"] == keys["grace", "uniform"] == keys["grace", "degree"]
    assert keys["gca-generated", "degree"] != keys["grace", "degree"]


def test_values_supervised_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(arm.supervised for arm in layout().arms.values())
    monkeypatch.setattr(methods.find("gca"), "supervised_only", True, raising=False)
    assert all(arm.supervised for arm in layout().arms.values())


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("optim.lr", True),
        ("data.nodes", True),
        ("data.path", True),
        ("data", True),
        ("data.nods", False),
        ("optim.lr.x", False),
        ("nothing.at.all", False),
        ("stages.any.key", True),
        ("", False),
    ],
)
def test_values_takes(key: str, expected: bool) -> None:
    """Of sections with several variants, any will do."""
    assert takes(GCAConfig, key) is expected


def test_errors() -> None:
    with pytest.raises(InputError) as caught:
        layout(variants=["cold:method.taw=0.1"])
    assert "--variant cold:method.taw=0.1: no recipe here has this key" in caught.value.message
    assert caught.value.suggestion == "Nearest valid key: method.tau."
    with pytest.raises(InputError, match="--variant grace: there is an arm of this name already"):
        layout(variants=["grace:method.tau=0.1"])
    with pytest.raises(InputError, match="--variant gca-generated: there is an arm of this name"):
        layout(variants=["gca-generated:method.tau=0.1"])
    with pytest.raises(InputError, match=r"--variant cold:method\.tau=x: method\.tau: expected"):
        layout(variants=["cold:method.tau=x"])
    with pytest.raises(InputError, match="--against nope: no such arm"):
        layout(against="nope")
    with pytest.raises(InputError, match="--against raw: this arm is left out by --arm"):
        layout(against="raw", only=["grace"])


def test_errors_a_key_that_one_method_lacks() -> None:
    with pytest.raises(InputError) as caught:
        layout(*BOTH, overrides=["method.tau=0.1"])
    assert caught.value.message == "--set method.tau=0.1: bgrl/generated (method bgrl) has no key method.tau."
    assert "--variant NAME:method.tau=0.1" in (caught.value.suggestion or "")
    with pytest.raises(InputError, match=r"optim\.lrr: unknown key"):
        layout(*BOTH, overrides=["optim.lrr=0.1"])


def test_errors_a_dial_that_nobody_has() -> None:
    wrong, below = "augment.sceme=a,b", "method.tau=0.1,-1"
    request, points = Request([RECIPE], dial=wrong), dial_points(wrong)
    with pytest.raises(InputError, match=r"--dial augment\.sceme: no recipe here has this key") as caught:
        lay_out(request, points)
    assert caught.value.suggestion == "Nearest valid key: augment.scheme."
    request, points = Request([RECIPE], dial=below), dial_points(below)
    with pytest.raises(InputError, match=r"value method\.tau=-1: method\.tau: expected"):
        lay_out(request, points)


def test_values_arm_is_plain() -> None:
    arms = arms_of(Request([RECIPE]))
    assert isinstance(arms["grace"], Arm)
    assert (arms["grace"].role, arms["gca-generated"].role) == ("grace", "recipe")
