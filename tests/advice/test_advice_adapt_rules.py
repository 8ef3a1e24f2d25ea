"""Advice for two domains: each rule at its thresholds, on made-up facts."""

from __future__ import annotations

import dataclasses
import doctest
from typing import Any

import pytest

from leanlabel.advice import adapt_cost, adapt_facts, segmentation_cost, ssl_cost
from leanlabel.advice import adapt_rules as rules
from leanlabel.advice.adapt_facts import AdaptFacts, Looks, Partners
from leanlabel.advice.recipe import Choice
from leanlabel.advice.segmentation_facts import DenseFacts, Objects

SOURCE = DenseFacts(
    images=600,
    trained=400,
    parts={"train": 400, "val": 200},
    height=512,
    width=1024,
    smallest=512,
    largest=1024,
    one_size=True,
    channels=3,
    value_bytes=1,
    names=("road", "car", "bicycle"),
    shares=(0.6, 0.395, 0.005),
    image_shares=(1.0, 0.9, 0.5),
    unlabelled=0.05,
    lacking={"train": (), "val": ()},
    looked_at={"train": 320, "val": 64},
    objects=(Objects("bicycle", 100, 60.0, 40.0),),
    sequences=0,
    cut=None,
    grey=0.0,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    unreadable=0,
    gpu=True,
    memory=80.0,
)
TARGET = dataclasses.replace(
    SOURCE, parts={"train": 300, "test": 40}, trained=300, lacking={"test": ()}, objects=()
)
EQUAL = {
    "mean 0": 0.0, "mean 1": 0.0, "mean 2": 0.0, "contrast": 0.0, "saturation": 0.0, "sharpness": 0.0, "noise": 0.0,
}  # fmt: skip
MEANS = {**dict.fromkeys(EQUAL, 0.5), "noise": 0.01}
LOOKS = Looks(1.0, (200, 200), EQUAL, MEANS, MEANS)
FACTS = AdaptFacts(SOURCE, TARGET, LOOKS, Partners(0.0, 0.0, False))
PAIRS = Partners(0.8, 0.9, True)


def facts(*, source: Any = None, target: Any = None, looks: Any = None, **changes: Any) -> AdaptFacts:
    return dataclasses.replace(
        FACTS,
        source=dataclasses.replace(SOURCE, **(source or {})),
        target=dataclasses.replace(TARGET, **(target or {})),
        looks=dataclasses.replace(LOOKS, **(looks or {})),
        **changes,
    )


def apart(target: dict[str, float] | None = None, /, **distances: float) -> dict[str, Any]:
    """Looks whose target is so many spreads away, and has these means."""
    named = {key.replace("_", " "): value for key, value in distances.items()}
    return {"distances": EQUAL | named, "target": MEANS | (target or {})}


def chosen(found: list[Choice]) -> dict[str, Any]:
    return {one.key: one.value for one in found}


@pytest.mark.parametrize(
    ("source", "target", "gpu", "expected"),
    [
        ((512, 1024), (512, 1024), True, (None, None)),
        ((1000, 2000), (800, 1600), True, (None, None)),  # 1.25 times, not more
        ((1001, 2000), (800, 1600), True, (800, None)),
        ((500, 900), (1000, 2000), True, (None, 500)),
        ((512, 1024), (512, 1024), False, (128, 128)),
        ((512, 1024), (100, 200), False, (100, None)),
        ((96, 128), (720, 960), False, (None, 96)),
        ((120, 160), (128, 160), False, (None, None)),
    ],
)
def test_values_sizes(source: Any, target: Any, gpu: bool, expected: tuple[int | None, int | None]) -> None:
    own, other = (
        dataclasses.replace(one, height=size[0], width=size[1], gpu=gpu, objects=())
        for one, size in ((SOURCE, source), (TARGET, target))
    )
    found = rules.sizes(own, other)
    assert [one.key for one in found] == ["data.source.resize", "data.target.resize"]
    assert (found[0].value, found[1].value) == expected
    ratio = max(source[0], target[0]) / min(source[0], target[0])
    assert ("brought to one size" in found[0].reason) is (ratio > 1.25)


def test_values_paired() -> None:
    assert rules.paired(facts(partners=PAIRS))
    for changes in ({"share": 0.79}, {"alike": 0.89}, {"one_size": False}):
        assert not rules.paired(facts(partners=dataclasses.replace(PAIRS, **changes)))
    assert rules.way(facts(partners=PAIRS)) == "pairs"
    assert rules.way(FACTS) == "mixes"


def test_values_crop() -> None:
    assert rules.crop(FACTS).value == [512, 512]
    small = rules.crop(facts(target={"height": 200, "width": 300}))
    assert small.value == [192, 288]
    assert "the target have 300 x 200" in small.reason
    assert rules.crop(facts(source={"gpu": False, "height": 128}, target={"height": 90})).value == [88, 192]
    assert rules.crop(facts(target={"height": 9, "width": 900})).value == [16, 512]


def test_values_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A power of two, at most a quarter of the smaller domain; memory takes from the batch, then from the crop."""
    assert [rules.wanted_batch(facts(target={"trained": n})) for n in (1, 3, 15, 31, 32, 999)] == [
        1,
        2,
        2,
        4,
        8,
        8,
    ]
    assert rules.wanted_batch(facts(source={"gpu": False})) == 4

    def cost(_: Any, model: Any, size: list[int], batch: int, way: str) -> ssl_cost.Cost:
        return ssl_cost.Cost(1.0, batch * size[0] * size[1] / 2**18)

    monkeypatch.setattr(rules, "adaptation_cost", cost)

    def fitted(memory: float, **more: Any) -> tuple[int, list[int]]:
        return rules.fitted(facts(source={"memory": memory, **more}), {}, [512, 512])

    assert fitted(10.0) == (8, [512, 512])
    assert fitted(9.9) == (4, [512, 512])
    assert fitted(2.5) == (2, [512, 512])
    assert fitted(2.4) == (2, [384, 384])
    assert fitted(1e-3) == (1, [64, 64])
    assert fitted(0.0, gpu=False) == (4, [512, 512])  # a fixed room without a GPU
    own, other = rules.batch(FACTS, 8, 1.0)
    assert (own.key, own.value, other.key, other.value) == (
        "data.source.batch_size",
        8,
        "data.target.batch_size",
        8,
    )
    assert "pasted" in other.reason
    assert "pasted" not in rules.batch(facts(partners=PAIRS), 8, 1.0)[1].reason
    assert "8 would not fit into memory" in rules.batch(FACTS, 4, 1.0)[0].reason
    assert "4 training images" in rules.batch(facts(target={"trained": 4}), 2, 1.0)[0].reason


def test_values_network(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(rules.network(FACTS, SOURCE, [512, 512]))["model.name"] == "deeplab-v3+"
    cpu = facts(source={"gpu": False, "trained": 8}, target={"trained": 8})
    for seconds, name in ((rules.LAST_SECONDS / 400, "small-fcn"), (rules.LAST_SECONDS / 399, "tiny-fcn")):
        monkeypatch.setattr(rules, "adaptation_cost", lambda *_, s=seconds: ssl_cost.Cost(s, 1.0))
        assert chosen(rules.network(cpu, SOURCE, [96, 128]))["model.name"] == name


def test_values_steps() -> None:
    assert rules.steps(FACTS, 8, 0.1, 0.3)[1].value == 5000
    assert rules.steps(facts(target={"trained": 640}), 8, 0.1, 0.3)[1].value == 8000  # the larger domain
    assert rules.steps(facts(source={"trained": 20}, target={"trained": 9}), 8, 0.1, 0.3)[1].value == 4000
    first, count = rules.steps(facts(source={"trained": 10**6}), 8, 0.1, 0.3)
    assert (first, count.value) == (40_000, 40_000)
    cpu = facts(source={"gpu": False})
    first, count = rules.steps(cpu, 4, 0.1, 0.3)
    assert (first, count.value) == (1200, 800)  # two and four minutes
    assert "with one: 10,000" in count.reason
    assert rules.steps(cpu, 4, 99.0, 99.0)[0] == 100
    assert rules.steps(cpu, 4, 99.0, 99.0)[1].value == 100
    assert rules.steps(cpu, 4, 1e-3, 1e-3)[1].value == 10_000


OPTIM = [Choice("optim.name", "adamw", "a"), Choice("optim.lr", 0.005, "b")]


def test_values_stages() -> None:
    """A first stage always; an adversary only where domains are very far apart and there is time."""

    def keys(given: AdaptFacts, count: int = rules.LONG, size: tuple[int, int] = (512, 512)) -> set[str]:
        return set(chosen(rules.stages(given, 700, count, list(size), OPTIM)))

    plain = {f"stages.source.{key}" for key in ("steps", "method.terms", "optim.lr", "optim.warmup")}
    found = chosen(rules.stages(FACTS, 700, 5000, [512, 512], OPTIM))
    assert (found["stages.source.steps"], found["stages.source.optim.lr"]) == (700, 0.005)
    assert found["stages.source.method.terms"][0]["name"] == "cross-entropy"
    assert set(found) == plain
    far = {"gap": 1.8, **apart(contrast=-2.0)}
    assert keys(facts(looks=far)) == plain | {"stages.align.steps", "stages.align.method.terms"}
    assert keys(facts(looks=far), rules.LONG - 1) == plain
    assert keys(facts(looks=far), size=(31, 512)) == plain
    assert keys(facts(looks=far | {"gap": 1.79})) == plain
    assert keys(facts(looks={"gap": 2.0, **apart(contrast=-1.9)})) == plain
    assert keys(facts(looks={"gap": None, **apart(contrast=-3.0)})) == plain
    assert keys(facts(looks=far, partners=PAIRS)) == plain
    adversary = chosen(rules.stages(facts(looks=far), 700, 10_000, [512, 512], OPTIM))
    assert adversary["stages.align.steps"] == 5000
    assert adversary["stages.align.method.terms"][1] == {"name": "adversary", "weight": 0.001}


def test_values_terms() -> None:
    def found(given: AdaptFacts, size: tuple[int, int] = (512, 1024)) -> list[dict[str, Any]]:
        return rules.terms(given, list(size)).value

    assert [one["name"] for one in found(FACTS)] == ["cross-entropy", "class-mix", "masked-consistency"]
    assert [found(FACTS, (side, 512))[2]["settings"]["block"] for side in (512, 128, 96, 16)] == [
        64,
        16,
        12,
        4,
    ]
    bands = found(facts(source={"channels": 4}, target={"channels": 4}))
    assert bands[1]["settings"]["strong"]["jitter"] == [0.0] * 4
    assert bands[2]["settings"]["strong"]["jitter"] == [0.0] * 4
    assert found(facts(partners=PAIRS)) == [{"name": "feature-regression"}]
    assert "mask-reuse" in rules.terms(facts(partners=PAIRS), [512, 512]).reason


def test_values_average() -> None:
    assert chosen(rules.average(FACTS, rules.LONG)) == {"method.ema": 0.999}
    assert chosen(rules.average(FACTS, rules.LONG - 1)) == {"method.ema": 0.99}
    assert rules.average(facts(partners=PAIRS), 10**5) == []


def test_values_norms() -> None:
    """Batch norms of the target's statistics for networks from their seed; else those of a single domain."""
    assert chosen(rules.norms(facts(source={"gpu": False}), rules.FEWEST)) == {
        "model.norm": "batch",
        "method.teacher_norm": "batch",
        "method.adabn": True,
    }
    for other, images in (
        (facts(source={"gpu": False}), 3),
        (facts(source={"gpu": False}, partners=PAIRS), 4),
        (FACTS, 4),
    ):
        assert chosen(rules.norms(other, images)) == {"model.norm": "group"}


def test_values_sampling() -> None:
    """Rare classes below a hundredth of the pixels; published numbers at the published size."""
    full = chosen(rules.sampling(FACTS, [512, 512]))
    assert full == {
        "method.sampling.name": "rare",
        "method.sampling.temperature": 0.1,
        "method.sampling.min_pixels": 3000,
        "augment.wanted_pixels": 1500,
    }
    assert (
        chosen(rules.sampling(facts(source={"trained": 1000}), [512, 512]))["method.sampling.temperature"]
        == 0.01
    )
    small = chosen(rules.sampling(facts(source={"height": 96, "width": 128}), [80, 96]))
    assert (small["method.sampling.min_pixels"], small["augment.wanted_pixels"]) == (70, 44)
    tiny = chosen(rules.sampling(facts(source={"height": 8, "width": 8}), [8, 8]))
    assert (tiny["method.sampling.min_pixels"], tiny["augment.wanted_pixels"]) == (1, 1)
    even = facts(source={"shares": (0.6, 0.39, 0.01)})
    assert chosen(rules.sampling(even, [512, 512])) == {"method.sampling.name": "uniform"}
    absent = facts(source={"shares": (0.6, 0.4, 0.0)})  # a class that is not there is not rare
    assert chosen(rules.sampling(absent, [512, 512])) == {"method.sampling.name": "uniform"}
    assert rules.sampling(facts(source={"shares": (1.0, 0.0, 0.0)}), [512, 512]) == []
    assert rules.sampling(facts(partners=PAIRS), [512, 512]) == []


def test_values_augmentation() -> None:
    def found(looks: dict[str, Any] | None = None, /, **changes: Any) -> dict[str, Any]:
        return chosen(rules.augmentation(facts(looks=looks, **changes)))

    plain = found()
    assert plain == {
        "augment.flip": 0.5,
        "augment.jitter": [0.0] * 4,
        "augment.mean": [0.485, 0.456, 0.406],
        "augment.std": [0.229, 0.224, 0.225],
    }
    assert found(apart(contrast=0.79))["augment.jitter"] == [0.0] * 4
    # Half as much contrast: 0.5; saturation 30 % more: 0.3; the brightness hardly differs: 0.2.
    far = found(apart({"contrast": 0.25, "saturation": 0.65}, contrast=-0.8, saturation=2.0))
    assert far["augment.jitter"] == [0.2, 0.5, 0.3, 0.05]
    assert "augment.gamma" not in far
    dark = found(apart({"mean 0": 0.3, "mean 1": 0.3, "mean 2": 0.3}, mean_0=-1, mean_1=-1, mean_2=-1))
    assert (dark["augment.jitter"], dark["augment.gamma"]) == ([0.4, 0.2, 0.2, 0.05], 0.5)
    assert found(apart(mean_0=1.5))["augment.jitter"][3] == 0.1  # a cast
    assert found(apart(contrast=2.0), source={"grey": 0.5})["augment.jitter"][2:] == [0.0, 0.0]
    assert found(target={"grey": 0.5})["augment.grey"] == 1.0
    assert "augment.grey" not in found(source={"grey": 0.5}, target={"grey": 0.5})
    assert found(apart(sharpness=-0.8))["augment.blur"] == 0.5
    assert "augment.blur" not in found(apart(sharpness=0.9))
    noisy = found(apart({"noise": 0.05}, noise=0.8))
    assert noisy["augment.noise"] == 0.5
    assert noisy["augment.noise_sigma"] == [0.024, 0.073]  # of sqrt(0.05^2 - 0.01^2)
    assert "augment.noise" not in found(apart({"noise": 0.05}, noise=0.79))
    assert "augment.noise" not in found(apart({"noise": 0.001}, noise=-3.0))
    bands = found(apart(contrast=9.0), source={"channels": 4, "mean": (0.1,) * 4}, target={"channels": 4})
    assert "augment.jitter" not in bands
    assert bands["augment.mean"] == [0.1] * 4
    other = found(target={"channels": 1})
    assert (other["augment.mean"], other["augment.std"]) == ([0.4], [0.2])  # serves both


def test_values_optimiser() -> None:
    found = chosen(rules.optimiser(OPTIM, 2000))
    assert found == {"optim.name": "adamw", "optim.lr": 0.003, "optim.warmup": 100}
    assert chosen(rules.optimiser(OPTIM, 10**6))["optim.warmup"] == 1500
    sgd = [Choice("optim.name", "sgd", "a"), Choice("optim.lr", 0.004, "b")]
    assert chosen(rules.optimiser(sgd, 10))["optim.lr"] == 0.002


def test_values_evaluation() -> None:
    """Weights are never chosen by labels of the target; without any, the source is measured."""
    found = chosen(rules.evaluation(FACTS, ["val"]))
    assert (found["evaluation.part"], found["evaluation.select"]) == ("test", "last")
    blank = facts(target={"lacking": {}})
    without = chosen(rules.evaluation(blank, ["val"]))
    assert (without["evaluation.part"], without["evaluation.select"]) == ("auto", "last")
    assert "val of the source is measured" in rules.evaluation(blank, ["val"])[1].reason
    assert chosen(rules.evaluation(blank, [])) == {"evaluation.protocol": "none"}


def test_values_looks() -> None:
    looks = Looks(
        1.0, (2, 2), EQUAL | {"mean 0": 3.0, "noise": -4.0}, {"mean 0": 0.2, "mean 1": 0.4}, {"mean 0": 0.9}
    )
    assert (looks.brightness, looks.balance, looks.colours, looks.largest) == (1.0, 2.0, 2.0, 4.0)
    assert looks.ratio("mean") == pytest.approx(1.5)
    unknown = Looks(None, (1, 1), {}, {}, {})
    assert (unknown.brightness, unknown.balance, unknown.largest) == (0.0, 0.0, 0.0)


def test_reference_cost() -> None:
    """Three passes forth and back, one forth; maps of all three are held; pixels in memory of both domains."""
    given = dataclasses.replace(SOURCE, gpu=False, height=64, width=96, images=50)
    model = {"name": "tiny-fcn"}
    one = segmentation_cost.expected_cost(given, model, [64, 96], 4)
    mixes, pairs = (adapt_cost.adaptation_cost(given, model, [64, 96], 4, way) for way in ("mixes", "pairs"))
    assert mixes.seconds - 0.01 == pytest.approx((one.seconds - 0.01) * 10 / 3)
    assert pairs.seconds - 0.01 == pytest.approx((one.seconds - 0.01) * 4 / 3)
    stored = 4 * 64 * 96 * 50 / 2**30
    assert given.stored == 4 * 64 * 96 * 50
    assert mixes.memory == pytest.approx(0.45 + 2 * stored + 3 * (one.memory - 0.45 - stored))
    assert pairs.memory == pytest.approx(one.memory + stored)


def test_values_docstring() -> None:
    assert doctest.testmod(adapt_facts).failed == 0
