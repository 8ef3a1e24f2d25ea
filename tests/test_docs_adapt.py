"""The tables and the figure of adaptation and feature regression: what they make of recorded runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from leanlabel import api

SCENES, CAMVID = "adapt/scenes-small", "feature-regression/camvid-small"
BASE = ("method.terms=[{name: cross-entropy}]", "method.ema=null", "method.adabn=false")


def recorded(recipe: str, arm: str, seed: int, miou: float, *overrides: str, **more: Any) -> dict[str, Any]:
    """A recorded run: mIoU on the target as given, 20 points more on the source; poles at a tenth of it."""
    values = api.resolve(recipe, [*overrides, f"seed={seed}"]).model_dump(mode="json", exclude={"engine"})
    names = ("sky", "pole", "road")
    main = {"mean": miou, "details": [{"iou": [2 * miou, miou / 10, None]}]}
    protocols = {
        "miou": {
            "readouts": {"initial": {"mean": 0.1}, "trained": main},
            "per_class": [{"name": name} for name in names],
            "selection": "weights of the last iteration",
        },
        "miou:source": {"readouts": {"trained": {"mean": miou + 0.2}}, "per_class": []},
    }
    return {
        "arm": arm,
        "seed": seed,
        "recipe": f"{recipe} ({arm})",
        "role": more.get("role", "variant"),
        "readout": "trained",
        "steps": values["steps"],
        "results": {"protocols": protocols, "training_seconds": more.get("seconds", 12.0)},
        "config": values,
    }


def whole(recipe: str, seed: int, miou: float, *overrides: str, **more: Any) -> dict[str, Any]:
    """A run of the recipe itself, which comparisons name after it."""
    return recorded(recipe, recipe.replace("/", "-"), seed, miou, *overrides, role="recipe", **more)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: dict[str, Any], tail: str = "") -> Path:
        file = tmp_path / "results.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
        return file

    return write


def test_without_a_file_nothing_is_claimed(generate: ModuleType, tmp_path: Path) -> None:
    nothing, blocks = tmp_path / "results.jsonl", generate.adaptation
    text = blocks.evidence(nothing)
    assert text.startswith("Not run:")
    assert text.count("none of the arms") == 3
    assert "`adapt/gta5-cityscapes`" in text
    assert blocks.gap_table(nothing).count("| not run | not run | not run |") == 5
    assert blocks.sensors(nothing).count("none of the arms") == 9
    assert "`feature-regression/voc2012`" in blocks.sensors(nothing)
    assert blocks.shift_table(nothing).count("not run") == 5 * 4
    words = ElementTree.fromstring(blocks.gap_picture(nothing)).iter("{http://www.w3.org/2000/svg}text")
    assert [one.text for one in words].count("not run") == 1


def test_scores_and_differences(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [recorded(SCENES, "source-only", seed, 0.30, *BASE, role="source-only") for seed in range(3)]
    rows += [whole(SCENES, seed, 0.34 + seed / 1000, seconds=50.0) for seed in range(3)]
    rows += [
        recorded(SCENES, "adabn", 0, 0.33, "steps=0", *BASE),
        recorded(SCENES, "odd", 0, 0.31, *BASE),
        whole(SCENES, 0, 0.99, "optim.lr=0.5"),
        whole(SCENES, 0, 0.88, "data.target.gap=2.0"),
        whole(CAMVID, 0, 0.77),
    ]
    text = generate.adaptation.evidence(written(*rows, tail='{"arm": "cut off'))
    lines = text.splitlines()
    own = generate.adaptation.ARMS["recipe"]
    told = f"| {own} | 3 | 34.10 ± 0.10 | 3.41 ± 0.01 | 54.10 ± 0.10 | +4.10 [+3.85, +4.35] ▲ |"
    (line,) = [one for one in lines if one.startswith(told)]
    assert line.endswith("| helps | +1.00 | 50 |")
    assert "| source-only | 3 | 30.00 ± 0.00 | 3.00 ± 0.00 | 50.00 ± 0.00 | – | – | – | – | 12 |" in lines
    assert any(
        one.startswith("| source-only and AdaBN | 1 | 33.00 | 3.30 | 53.00 | +3.00 |") for one in lines
    )
    assert any(one.startswith("| odd | 1 | 31.00 |") for one in lines)
    assert "Seeds 0, 1, 2; 400 iterations after 1,200 on the source; weights of the last iteration." in lines
    (apart,) = [place for place, one in enumerate(lines) if "(`optim.lr=0.5`)" in one]
    assert "99.00" in lines[apart + 6]  # another setting has a table of its own
    assert "88.00" not in text  # the dial stands elsewhere
    assert "77.00" not in text  # another method
    assert "labels of the target (upper bound)" in lines[-4]


def test_gap(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = []
    for seed in range(2):
        for gap, plain, own in ((1.0, 0.2, 0.3), (2.0, 0.1, 0.15)):
            turned = f"data.target.gap={gap}"
            rows.append(recorded(SCENES, "source-only", seed, plain, turned, *BASE, role="source-only"))
            rows.append(whole(SCENES, seed, own, turned))
    file = written(*rows)
    lines = generate.adaptation.gap_table(file).splitlines()
    assert "| 2 | 2 | 10.00 ± 0.00 | not run | 15.00 ± 0.00 | +5.00 [+5.00, +5.00] | – |" in lines
    assert "| 0 | – | not run | not run | not run | – | – |" in lines
    assert "source-only 20.0 at 1, 10.0 at 2" in generate.adaptation.gap_picture(file)


def test_sensors_and_shifts(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = []
    for seed in range(2):
        rows.append(whole(CAMVID, seed, 0.40))
        rows.append(recorded(CAMVID, "mask-reuse", seed, 0.42, "method.terms=[{name: mask-reuse}]"))
        inverted = ["data.target.sensor=inversion", "data.target.shift={random: 0, constant: [0, 4]}"]
        rows.append(whole(CAMVID, seed, 0.35, *inverted))
        far = "data.target.shift={random: 12}"
        rows.append(recorded(CAMVID, "pooled", seed, 0.25, far))
        rows.append(recorded(CAMVID, "mask-reuse", seed, 0.20, far, "method.terms=[{name: mask-reuse}]"))
    rows.append(whole(CAMVID, 0, 0.99, "steps=7"))
    file = written(*rows)
    lines = generate.adaptation.sensors(file).splitlines()
    start = "| camera | up to 5 | 2 | not run | not run | 40.00 ± 0.00 | not run | not run | 42.00 ± 0.00 |"
    assert any(one.startswith(start) for one in lines)
    assert "| camera | up to 5 | – | – | – | – | -2.00 [-2.00, -2.00] | – |" in lines
    assert any(
        one.startswith("| inversion | always 4 right | 2 | not run | not run | 35.00") for one in lines
    )
    assert "- camera, shift none: none of the arms" in lines
    assert not any("99.00" in one or "20.00" in one for one in lines)
    shifts = generate.adaptation.shift_table(file).splitlines()
    (last,) = [one for one in shifts if one.startswith("| up to 12 |")]
    assert last.startswith("| up to 12 | 2 | 20.00 ± 0.00 | not run | 25.00 ± 0.00 | not run | – | +5.00 [")
    assert any(one.startswith("| up to 5 | 2 | 42.00 ± 0.00 | 40.00 ± 0.00 |") for one in shifts)


def test_shift_in_words(generate: ModuleType) -> None:
    name = generate.adaptation.shift_name
    assert name({"random": 0, "constant": [0, 0]}) == "none"
    assert name({"random": 2, "constant": [1, 3], "rotate": 2.0}) == "up to 2, always 1 down, 3 right, rotate"


def test_settings_name_what_segmentation_lacks(generate: ModuleType) -> None:
    text = generate.adaptation.adapt_settings()
    for key in ("method.sampling.name", "method.adabn", "data.pairs.rule", "evaluation.select"):
        assert f"| `{key}` |" in text
    assert "`data.source.path`" not in text
    assert "`optim.lr`" not in text
    keys = [line.split(" | ")[0] for line in text.splitlines()]
    assert len(keys) == len(set(keys))
