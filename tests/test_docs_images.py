"""The tables of MoCHi and what it is held against: what they make of recorded runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from leanlabel import api

MIXED = "MoCHi (64, 64, 16)"


def recorded(recipe: str, seed: int, knn: float, *overrides: str, **more: Any) -> dict[str, Any]:
    """A recorded run: kNN accuracy as given, logistic 10 points more, validation equal to the test."""
    values = api.resolve(recipe, [*overrides, f"seed={seed}"]).model_dump(mode="json", exclude={"engine"})
    readout = values["evaluation"]["readout"]
    scores = {"knn": knn, "logistic-l2": knn + 0.1}
    protocols = {
        name: {
            "readouts": {readout: {"mean": score, "details": [{"val_accuracy": more.get("validation", knn)}]}}
        }
        for name, score in scores.items()
    }
    for one in protocols.values():
        one["domains"] = more.get("domains", [])
    label_free = {"uniformity": more.get("uniformity", -knn), "same_class_alignment": 0.25}
    return {
        "arm": more.get("arm", "some-arm"),
        "seed": seed,
        "recipe": f"{recipe} (some-arm)",
        "role": more.get("role", "recipe"),
        "readout": readout,
        "steps": values["steps"],
        "results": {"protocols": protocols, "label_free": label_free, "training_seconds": 10.0},
        "config": values,
    }


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: dict[str, Any], tail: str = "") -> Path:
        file = tmp_path / "results.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
        return file

    return write


def test_without_a_file_nothing_is_claimed(generate: ModuleType, tmp_path: Path) -> None:
    nothing = tmp_path / "results.jsonl"
    assert generate.images.field(nothing).startswith("Not run: ")
    assert "`mochi/glyphs`" in generate.images.field(nothing)
    assert "| none yet |" in generate.images.pairs(nothing)
    assert f"{MIXED} on Glyphs" in generate.images.pairs(nothing)
    assert generate.images.dial(nothing).count("| not run | not run |") == 2 * len(generate.images.DIALLED)


def test_field_values(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [recorded("mochi/glyphs", seed, 0.5 + seed / 100) for seed in range(3)]
    rows += [recorded("moco-v2/glyphs", seed, 0.4 + seed / 100) for seed in range(3)]
    rows += [
        recorded("mochi/glyphs", 0, 0.1, "steps=0", "evaluation.readout=untrained"),
        recorded("mochi/glyphs", 0, 0.9, "data.colour=1.0"),  # another data set
        recorded("mochi/glyphs", 0, 0.9, "method.mixing.hardest=32"),  # another arm
        recorded("simclr/glyphs", 0, 0.45),
        recorded("simclr/pacs", 0, 0.3),
    ]
    rate = rows[0]["config"]["optim"]["lr"]
    text = generate.images.field(written(*rows, tail='{"arm": "cut off'))
    cost = f"10 (1,800) | {rate:g} |"
    plain = f"| MoCo-v2 | 3 | 41.00 ± 1.00 | 51.00 ± 1.00 | -0.410 ± 0.010 | 0.250 ± 0.000 | {cost}"
    assert plain in text.splitlines()
    mixed = f"| {MIXED} | 3 | 51.00 ± 1.00 ▲ | 61.00 ± 1.00 ▲ | -0.510 ± 0.010 ▲ | 0.250 ± 0.000 | {cost}"
    assert mixed in text.splitlines()
    assert "| untrained backbone | 1 | 10.00 | 20.00 | -0.100 | 0.250 |  |  |" in text.splitlines()
    assert "| SimCLR | 1 | 45.00 |" in text
    assert "90.00" not in text
    last = text.splitlines()[-1]
    assert "`simclr/pacs`" not in last
    assert "`moco-v2/glyphs`" not in last
    assert "`moco-v2/pacs`" in last


def test_field_by_domain(generate: ModuleType, written: Callable[..., Path]) -> None:
    domains = [
        {"name": "photo", "readouts": {"trained": 0.5, "untrained": 0.2}},
        {"name": "cartoon", "readouts": {}},
    ]
    text = generate.images.field(written(recorded("moco-v2/pacs", 0, 0.4, domains=domains)))
    assert "| Arm | photo |" in text
    assert "| MoCo-v2 | 50.00 |" in text


def test_the_rate_is_chosen_by_the_first_seed_and_its_first_protocol(
    generate: ModuleType, written: Callable[..., Path]
) -> None:
    def tuned(seed: int, rate: float, knn: float, validation: float) -> dict[str, Any]:
        return recorded("mochi/glyphs", seed, knn, f"optim.lr={rate}", validation=validation)

    rows = [
        tuned(0, 0.05, 0.3, 0.7),
        tuned(0, 0.15, 0.6, 0.5),
        tuned(1, 0.05, 0.4, 0.1),
        tuned(1, 0.15, 0.9, 0.9),
    ]
    text = generate.images.field(written(*rows))
    assert f"| {MIXED} | 2 | 35.00 ± 7.07 | 45.00 ± 7.07 |" in text
    assert "| 0.05 of 0.05, 0.15 |" in text


def test_pairs_values(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [recorded("mochi/glyphs", seed, 0.5 + seed / 100, uniformity=-0.1) for seed in range(3)]
    # The baseline arm of a comparison: recorded under the recipe of MoCHi.
    rows += [
        recorded(
            "mochi/glyphs",
            seed,
            0.4 + seed / 100,
            "method.mixing=null",
            arm="moco-v2",
            role="moco-v2",
            uniformity=-0.2,
        )
        for seed in range(3)
    ]
    rows += [
        recorded("mochi/glyphs", 0, 0.45, "method.mixing.with_query=0", role="variant"),
        recorded("moco-v2/glyphs", 0, 0.7, "method.class_oracle=true", role="variant"),
        recorded("mochi/glyphs", 1, 0.9, "data.classes=50", "data.per_class=160"),  # of the dial
        recorded("simclr/glyphs", 0, 0.9),
    ]
    rate = f"{rows[0]['config']['optim']['lr']:g}"
    text = generate.images.pairs(written(*rows))
    lines = text.splitlines()
    head = "| Glyphs, 200 classes |"
    told = "+10.00 [+10.00, +10.00] | 0.00 | helps |  |"
    assert f"{head} {MIXED} | {rate} | kNN % | 3 | 41.00 ± 1.00 | 51.00 ± 1.00 | {told}" in lines
    less = "+0.100 [+0.100, +0.100] | 0.000 | hurts |  |"  # less is more even
    assert f"{head} {MIXED} | {rate} | uniformity | 3 | -0.200 ± 0.000 | -0.100 ± 0.000 | {less}" in lines
    assert (
        f"{head} MoCHi (64, 64, 0) | {rate} | kNN % | 1 | 40.00 | 45.00 | +5.00 | – | cannot tell |  |"
        in lines
    )
    assert f"{head} MoCo-v2, class oracle | {rate} | kNN % | 1 | 40.00 | 70.00 | +30.00 | – |" in text
    assert "90.00" not in text
    assert lines[-1].startswith(
        "Not run, or not yet with a partner: MoCHi (64, 64, 16), class oracle on Glyphs"
    )


def test_pairs_meet_at_tuned_rates_and_at_equal_ones(
    generate: ModuleType, written: Callable[..., Path]
) -> None:
    rows = []
    for rate, seeds, mixed, plain in ((0.05, 2, 0.5, 0.3), (0.15, 2, 0.4, 0.45)):
        for seed in range(seeds):
            rows.append(recorded("mochi/glyphs", seed, mixed, f"optim.lr={rate}"))
            rows.append(recorded("moco-v2/glyphs", seed, plain, f"optim.lr={rate}"))
    rows += [
        recorded("mochi/glyphs", 0, 0.2, "optim.lr=0.3"),
        recorded("moco-v2/glyphs", 0, 0.2, "optim.lr=0.3"),
    ]
    text = generate.images.pairs(written(*rows))
    found = [line for line in text.splitlines() if "kNN" in line]
    assert "| 0.05 of 0.05, 0.15, 0.3; MoCo-v2: 0.15 | kNN % | 2 | 45.00 ± 0.00 | 50.00 ± 0.00 |" in found[0]
    assert "| 0.05 | kNN % | 2 | 30.00 ± 0.00 | 50.00 ± 0.00 |" in found[1]
    assert "| 0.15 | kNN % | 2 | 45.00 ± 0.00 | 40.00 ± 0.00 |" in found[2]
    assert len(found) == 3  # one seed at 0.3 was for tuning only


def test_dial_values(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = []
    for seed in range(2):
        for recipe, knn in (("mochi/glyphs", 0.5), ("moco-v2/glyphs", 0.4)):
            turned = ["data.classes=50", "data.per_class=160", "optim.lr=0.05"]
            rows.append(recorded(recipe, seed, knn + 0.1 * seed, *turned))
            rows.append(
                recorded(recipe, seed, knn - 0.2, "optim.lr=0.05")
            )  # the recipe's own number of classes
            rows.append(recorded(recipe, seed, 0.9, "optim.lr=0.15"))  # another rate
    lines = generate.images.dial(written(*rows)).splitlines()
    told = "+10.00 [+10.00, +10.00] | – | cannot tell | 0.05 |"
    assert f"| kNN % | 50 | 160 | 1.56 | 2 | 45.00 ± 7.07 | 55.00 ± 7.07 | {told}" in lines
    assert any(
        line.startswith("| kNN % | 200 | 40 | 6.25 | 2 | 20.00 ± 0.00 | 30.00 ± 0.00 |") for line in lines
    )
    assert any(line.startswith("| logistic % | 400 | 20 | 12.5 | – | not run | not run |") for line in lines)
    assert not any("90.00" in line for line in lines)
