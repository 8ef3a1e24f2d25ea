"""The tables and figures of prototype contrast: what they make of recorded runs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from leanlabel import api, methods
from leanlabel.recipe import read_recipe

ROOT = Path(__file__).resolve().parent.parent
STAGED = "spcl/scenes-2021"
TERM = "{name: prototype-contrast, weight: 0.2, settings: {tau: 100.0, balance: class, agree: fallback}}"


def premise(part: str, arm: str, seed: int, miou: float, gap: float = 0.2, **more: Any) -> dict[str, Any]:
    """A line of proofs/spcl/premise.jsonl: tail at a tenth of mIoU, source as given or 20 points more."""
    others = {
        "head mIoU": 2 * miou,
        "tail mIoU": miou / 10,
        "own similarity": 0.5 + gap,
        "other similarity": 0.5,
        "prototype gap": gap,
        "prototype class gap": gap / 2,
        "one-shot mIoU": 0.123,
    }
    return {
        "part": part,
        "arm": arm,
        "seed": seed,
        "changes": [f"method.terms=[{{name: cross-entropy}}, {TERM}]"] if "contrast" in arm else [],
        "miou": {"initial": 0.01, "trained": miou},
        "miou:source": {"trained": more.get("source", miou + 0.2)},
        "others": {"initial": {}, "trained": others},
        "per_class": {"sky": miou, "pole": None},
        "training_seconds": 12.0,
    }


def recorded(arm: str, seed: int, miou: float, gap: float, *overrides: str, role: str = "") -> dict[str, Any]:
    """A line of proofs/spcl/results.jsonl."""
    values = api.resolve(STAGED, [*overrides, f"seed={seed}"]).model_dump(mode="json", exclude={"engine"})
    main = {"mean": miou, "others": {"head mIoU": 2 * miou, "tail mIoU": 0.05, "prototype gap": gap}}
    protocols = {
        "miou": {
            "readouts": {"trained": main},
            "per_class": [],
            "selection": "weights of the last iteration",
        },
        "miou:source": {"readouts": {"trained": {"mean": miou + 0.2}}},
    }
    return {
        "arm": arm,
        "seed": seed,
        "recipe": f"{STAGED} ({arm})",
        "role": role or arm,
        "readout": "trained",
        "steps": values["steps"],
        "results": {
            "protocols": protocols,
            "training_seconds": 10.0,
            "stage_seconds": {"warm-up": 30.0, "contrast": 20.0},
        },
        "config": values,
    }


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: dict[str, Any], tail: str = "", name: str = "rows.jsonl") -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
        return file

    return write


def test_without_files_nothing_is_claimed(generate: ModuleType, tmp_path: Path) -> None:
    nothing, blocks = tmp_path / "rows.jsonl", generate.prototypes
    tables = (
        blocks.premise_tables(nothing),
        blocks.choice_table(nothing),
        blocks.mechanism(nothing, nothing),
        blocks.dial_table(nothing, "gap", "Gap", blocks.GAPS),
        blocks.stages_tables(nothing),
    )
    assert set(tables) == {"Not run yet."}
    assert "not run" in blocks.dial_picture(nothing, "gap", "title", "gap")
    text = blocks.not_run(nothing, nothing)
    assert text.count("none of the arms") == 3
    assert text.count("none of the settings") == 2
    assert "`spcl/gta5-cityscapes`" in text
    assert "scenes-target" not in text


def test_premise_values(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [premise("main", "target-ce", seed, 0.30) for seed in range(3)]
    rows += [premise("main", "target-ce+contrast", seed, 0.31 + seed / 1000) for seed in range(3)]
    rows += [premise("main", "odd", 0, 0.5), premise("choose", "target-ce", 0, 0.99)]
    text = generate.prototypes.premise_tables(written(*rows, tail='{"part": "cut off'))
    lines = text.splitlines()
    names = generate.prototypes.MAIN_ARMS
    title = f"{names['target-ce+contrast']} (weight 0.2, τ = 100, mean over classes)"
    own = f"| {title} | 3 | 31.10 ± 0.10 | 62.20 ± 0.20 | 3.11 ± 0.01 | 51.10 ± 0.10 | – |"
    assert f"{own} 12.30 ± 0.00 | 12 |" in lines
    assert any(one.startswith("| odd | 1 | 50.00 |") for one in lines)
    pair = f"| {title} | {names['target-ce']} | 3 | +1.10 [+0.85, +1.35] ▲ | 0.33 | helps |"
    assert any(one.startswith(pair) for one in lines)
    assert "99.00" not in text


def test_choice_is_that_of_the_source(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [
        premise("choose", "target-ce", 0, 0.2, source=0.9),
        premise("choose", "class, weight 0.2, tau 0.1", 0, 0.2, source=0.6),
        premise("choose", "pixel, weight 1.0, tau 100.0", 0, 0.4, source=0.5),
    ]
    lines = generate.prototypes.choice_table(written(*rows)).splitlines()
    assert "| **class, weight 0.2, tau 0.1** | 1 | 60.00 | 20.00 | 0.2000 |" in lines
    assert "| pixel, weight 1.0, tau 100.0 | 1 | 50.00 | 40.00 | 0.2000 |" in lines
    assert lines[2].startswith("| no contrast | 1 | 90.00 |")


def test_mechanism_counts_runs(generate: ModuleType, written: Callable[..., Path]) -> None:
    gaps = (0.23, 0.25, 0.19)
    rows = [premise("main", "target-ce", seed, 0.3, 0.2) for seed in range(4)]
    rows += [premise("main", "target-ce+contrast", seed, 0.3, gap) for seed, gap in enumerate(gaps)]
    staged = written(
        recorded("spcl-scenes-2021", 0, 0.3, 0.4, role="recipe"),
        recorded("minus-prototypes", 0, 0.3, 0.3),
        name="staged.jsonl",
    )
    lines = generate.prototypes.mechanism(written(*rows), staged).splitlines()
    assert (
        lines[0]
        == "The gap rose with the contrast: that over pixels in 3 of 4 and that over classes in 2 of 3 runs."
    )
    (over,) = [one for one in lines if "| pixels | 0.2000 ± 0.0000 |" in one]
    assert "| 0: +0.030, 1: +0.050, 2: -0.010 | +0.0233 [" in over
    (classes,) = [one for one in lines if "| classes |" in one]
    assert "| 0.1000 ± 0.0000 | 0: +0.015, 1: +0.025, 2: -0.005 |" in classes
    assert any("| pixels | 0.3000 | 0: +0.100 | +0.1000 |" in one for one in lines)


def test_dials(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = []
    for seed in range(2):
        for arm, less in (("target-ce", 0.0), ("target-ce+contrast", 0.1)):
            rows.append(premise("noise", f"{arm}, noise 0.2", seed, 0.4 - less))
            rows.append(premise("gap", f"{arm}, gap 1.5", seed, 0.6 - less))
    file, blocks = written(*rows), generate.prototypes
    lines = blocks.dial_table(file, "noise", "Mistakes", blocks.NOISES).splitlines()
    assert lines[0].startswith("Contrast: weight 0.2")
    (turned,) = [one for one in lines if one.startswith("| 0.2 |")]
    assert turned.startswith("| 0.2 | 2 | 40.00 ± 0.00 | 30.00 ± 0.00 | -10.00 [-10.00, -10.00] |")
    assert "| 0.1 | – | not run | not run | – | – | – | – | – |" in lines
    picture = blocks.dial_picture(file, "gap", "title", "gap")
    ElementTree.fromstring(picture)
    assert "pseudo labels 60.0 at 1.5; and contrast 50.0 at 1.5" in picture
    missing = blocks.not_run(file, file.parent / "none.jsonl")
    assert "- mistakes in pseudo labels: 0, 0.1, 0.3\n" in missing
    assert "- the gap: 0, 0.5, 1, 2\n" in missing


def test_stages(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [recorded("minus-prototypes", seed, 0.30, 0.2) for seed in range(3)]
    rows += [recorded("spcl-scenes-2021", seed, 0.29, 0.25, role="recipe") for seed in range(3)]
    rows += [
        recorded("minus-stage", 0, 0.31, 0.2, "stages.contrast=null"),
        recorded("spcl-scenes-2021", 0, 0.99, 0.2, "optim.lr=0.5", role="recipe"),
    ]
    lines = generate.prototypes.stages_tables(written(*rows)).splitlines()
    assert (
        "Seeds 0, 1, 2; 400 iterations after 1,200 (warm-up) and 400 (contrast); weights of the last iteration."
        in lines
    )
    own = "| the recipe | 3 | 29.00 ± 0.00 | 58.00 ± 0.00 | 5.00 ± 0.00 | 49.00 ± 0.00 | 0.2500 ± 0.0000 | -1.00 ["
    (found,) = [one for one in lines if one.startswith(own)]
    assert found.endswith("| hurts | 60 |")
    assert any(one.startswith("| without the stage of the contrast | 1 | 31.00 |") for one in lines)
    assert not any("99.00" in one for one in lines)


def test_arms_are_those_of_the_proof(generate: ModuleType) -> None:
    spec = importlib.util.spec_from_file_location("premise", ROOT / "proofs" / "spcl" / "premise.py")
    assert spec is not None
    assert spec.loader is not None
    proof = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(proof)
    blocks = generate.prototypes
    assert set(blocks.MAIN_ARMS) == set(proof.ARMS)
    assert proof.PAIR == (blocks.PLAIN, blocks.CONTRAST)
    for recipe, wanted in blocks.WANTED.items():
        known = methods.find("spcl").baselines_of(read_recipe(f"spcl/{recipe}").values)
        assert set(wanted) == {"recipe", *known}
