"""The tables of content transfer, and what the pages of both methods on terms of adaptation tell a reader to write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from leanlabel import api, methods
from leanlabel.methods.terms import find_term
from leanlabel.recipe import packaged_recipes, read_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "docs" / "methods" / name for name in ("spcl.md", "content-transfer.md")]
SCENES, OWN = "content-transfer/scenes-small", "content-transfer-scenes-small"
NUMBERS = {
    "domain accuracy content": 0.75,
    "domain accuracy style": 1.0,
    "content drift": 0.5,
    "style emptiness": 0.01,
    "reconstruction error": 0.2,
}


def recorded(arm: str, seed: int, miou: float, *overrides: str, **more: Any) -> dict[str, Any]:
    """A recorded run: head classes twice as good, tail ones as given or a tenth; two classes."""
    values = api.resolve(SCENES, [*overrides, f"seed={seed}"]).model_dump(mode="json", exclude={"engine"})
    tail = more.get("tail", miou / 10)
    main = {"mean": miou, "others": {"head mIoU": 2 * miou, "tail mIoU": tail}}
    classes = [{"name": "sky", "iou": 2 * miou, "share": 0.4}, {"name": "pole", "iou": tail, "share": 0.01}]
    protocols = {
        "miou": {
            "readouts": {"initial": {"mean": 0.1}, "trained": main},
            "per_class": classes,
            "selection": "weights of the last iteration",
        },
        "miou:source": {"readouts": {"trained": {"mean": 0.7}}},
    }
    return {
        "arm": arm,
        "seed": seed,
        "recipe": f"{SCENES} ({arm})",
        "role": more.get("role", "variant"),
        "readout": "trained",
        "steps": values["steps"],
        "results": {
            "protocols": protocols,
            "label_free": {"entropy": 0.3, **more.get("apart", {})},
            "training_seconds": 10.0,
            "stage_seconds": {"separate": 30.0},
        },
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
    nothing, blocks = tmp_path / "results.jsonl", generate.content_transfer
    assert {one(nothing) for one in (blocks.evidence, blocks.gains, blocks.separation, blocks.dial)} == {
        "Not run yet."
    }
    text = blocks.not_run(nothing)
    assert text.count("none of the arms") == 2
    assert "none of the places" in text
    assert "`content-transfer/gta5-cityscapes`" in text


def test_evidence_values(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [recorded("self-training", seed, 0.30, role="self-training") for seed in range(3)]
    rows += [
        recorded(OWN, seed, 0.32 + seed / 1000, tail=0.06, role="recipe", apart=NUMBERS) for seed in range(3)
    ]
    rows += [recorded("feature", 0, 0.31), recorded(OWN, 0, 0.99, "optim.lr=0.5", role="recipe")]
    blocks = generate.content_transfer
    file = written(*rows, tail='{"arm": "cut off')
    lines = blocks.evidence(file).splitlines()
    assert "Seeds 0, 1, 2; 400 iterations after 1,200 (separate); weights of the last iteration." in lines
    own = f"| {blocks.ARMS['recipe']} | 3 | 32.10 ± 0.10 | 64.20 ± 0.20 | 6.00 ± 0.00 | 70.00 ± 0.00 |"
    (found,) = [one for one in lines if one.startswith(f"{own} +2.10 [+1.85, +2.35] ▲ | 0.33 | helps |")]
    assert "| +3.00 [+3.00, +3.00] ▲ | +4.20 [" in found
    assert found.endswith("| 40 |")
    base = (
        f"| {blocks.ARMS['self-training']} | 3 | 30.00 ± 0.00 | 60.00 ± 0.00 | 3.00 ± 0.00 | 70.00 ± 0.00 |"
    )
    assert any(one.startswith(f"{base} – | – | – | – | – |") for one in lines)
    assert not any("99.00" in one for one in lines)

    gains = blocks.gains(file).splitlines()
    assert gains[2] == "| Class | Share % | self-training, IoU % | features | the recipe |"
    assert gains[4] == "| pole | 1.00 | 3.00 ± 0.00 | +0.10 | +3.00 ▲ |"
    assert gains[5].startswith("| sky | 40.00 | 60.00 ± 0.00 | +2.00 | +4.20 ▲ |")

    (apart,) = blocks.separation(file).splitlines()[2:]
    assert apart.endswith(
        "| 3 | 75.00 ± 0.00 | 100.00 ± 0.00 | 0.500 ± 0.000 | 0.0100 ± 0.0000 | 0.200 ± 0.000 |"
    )

    missing = blocks.not_run(file)
    assert f"- {blocks.DATA['scenes-small']}: " in missing
    assert f"{blocks.ARMS['feature']};" not in missing.splitlines()[2]
    assert blocks.ARMS["decoded"] in missing.splitlines()[2]
    assert blocks.ARMS["decoded"] not in missing.splitlines()[3]


def test_dials_of_gap_and_content(generate: ModuleType, written: Callable[..., Path]) -> None:
    far = ["data.target.gap=0.0", "data.target.content=0.5"]
    rows = [
        recorded("self-training", 0, 0.30, *far, role="self-training"),
        recorded("minus-transfer", 0, 0.28, *far, role="minus-transfer", apart=NUMBERS),
        recorded("self-training", 0, 0.20, "data.target.gap=2.0", role="self-training"),
    ]
    blocks, file = generate.content_transfer, written(*rows)
    lines = blocks.dial(file).splitlines()
    assert "| 0 | 0.5 | 1 | 30.00 | 28.00 | -2.00 | 75.00 | 100.00 | 0.500 | 0.0100 | 0.200 |" in lines
    assert "| 2 | 0 | 1 | 20.00 | not run | – | – | – | – | – | – |" in lines
    assert "| 0.5 | 0 | – | not run | not run | – | – | – | – | – | – |" in lines
    assert blocks.evidence(file) == "Not run yet."  # these stand in the dial
    assert "gap 2, content 0" in blocks.not_run(file)
    assert "gap 0, content 0.5" not in blocks.not_run(file)


def test_arms_are_those_of_the_proof(generate: ModuleType) -> None:
    script = (ROOT / "proofs" / "content-transfer" / "run.sh").read_text(encoding="utf-8")
    variants = set(re.findall(r'--variant "([\w-]+):', script))
    blocks = generate.content_transfer
    for recipe in blocks.DATA:
        own = methods.find("content-transfer").baselines_of(read_recipe(f"content-transfer/{recipe}").values)
        assert set(blocks.ARMS) == {"recipe", *own, *variants}


def test_later_settings_of_terms_are_no_change(generate: ModuleType) -> None:
    from blocks.records import changed  # type: ignore[import-not-found]

    recipe = "adapt/scenes-small"
    values = api.resolve(recipe).model_dump(mode="json", exclude={"engine"})
    row = {"config": values, "arm": "adapt-scenes-small", "role": "recipe"}
    assert changed(row, recipe) == {}
    (mix,) = [one for one in values["method"]["terms"] if one["name"] == "class-mix"]
    for key in find_term("class-mix").Settings.later:  # type: ignore[attr-defined]
        del mix["settings"][key]
    assert changed(row, recipe) == {}  # recorded before these were there
    mix["settings"]["least"] = 4
    assert list(changed(row, recipe)) == ["method.terms"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_recipes_of_the_page(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:adapt|spcl|content-transfer|dense-moco)/[\w-]+)`", text)
    assert set(named) <= set(packaged_recipes())
    assert {one for one in packaged_recipes() if one.startswith(f"{page.stem}/")} <= set(named)
    bodies = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert bodies
    for body in bodies:
        values = yaml.safe_load(body)
        assert values["base"] == "camera.yaml"  # as init adapt writes it: source, then target
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump({**values, "base": "adapt/scenes-small"}), encoding="utf-8")
        config: Any = api.resolve(str(file))
        assert config.method.name == page.stem
        assert methods.find(page.stem).baselines_of(read_recipe(str(file)).values).keys() >= {"source-only"}
