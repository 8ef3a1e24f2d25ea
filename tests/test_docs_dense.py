"""The tables and figures of the locally adaptive loss: what they make of recorded runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from leanlabel import api
from leanlabel.data.dense_source import open_dense
from leanlabel.methods import terms

ROOT = Path(__file__).resolve().parent.parent
OWN, PLAIN = "locally-adaptive/scenes-small", "segmentation/scenes-small"
SETTING = "method.terms.0.settings"
TAIL = ("pole", "sign_symbol", "fence", "pedestrian", "bicyclist")


def recorded(recipe: str, seed: int, miou: float, *overrides: str, **more: Any) -> dict[str, Any]:
    """A recorded run: mIoU as given, 10 points more on val; head classes twice as good, tail ones at a tenth."""
    values = api.resolve(recipe, [*overrides, f"seed={seed}"]).model_dump(mode="json", exclude={"engine"})
    names = ("sky", "pole", "road", "sign_symbol", "fence", "pedestrian", "bicyclist")
    iou = [None if name == "fence" else 0.1 * miou if name in TAIL else 2 * miou for name in names]
    main = {"mean": miou, "details": [{"iou": iou}], "others": {"boundary IoU": miou / 2}}
    protocols = {
        "miou": {"readouts": {"trained": main}, "per_class": [{"name": name} for name in names]},
        "miou:val": {"readouts": {"trained": {"mean": more.get("val", miou + 0.1)}}, "per_class": []},
    }
    return {
        "arm": more.get("arm", "some-arm"),
        "seed": seed,
        "recipe": f"{recipe} (some-arm)",
        "role": "recipe",
        "readout": "trained",
        "steps": values["steps"],
        "results": {"protocols": protocols, "training_seconds": more.get("seconds", 10.0)},
        "config": values,
    }


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: dict[str, Any], tail: str = "") -> Path:
        file = tmp_path / "results.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
        return file

    return write


def words(picture: str) -> list[str | None]:
    root = ElementTree.fromstring(picture)
    return [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_tail_is_the_one_of_the_tables(generate: ModuleType) -> None:
    assert generate.dense.TAIL == TAIL


def test_without_a_file_nothing_is_claimed(generate: ModuleType, tmp_path: Path) -> None:
    nothing = tmp_path / "results.jsonl"
    text = generate.dense.evidence(nothing)
    assert text.startswith("Not run:")
    assert text.count("none of the losses") == 4
    assert "`locally-adaptive/voc2012`" in text
    assert generate.dense.noise_table(nothing).count("| not run | not run | not run |") == 6
    for picture in (generate.dense.noise_picture(nothing), generate.dense.windows_picture(nothing)):
        assert words(picture).count("not run") == 2


def test_scores_and_differences(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [recorded(PLAIN, seed, 0.40) for seed in range(3)]
    rows += [recorded(OWN, seed, 0.44 + seed / 1000, seconds=15.0) for seed in range(3)]
    rows += [
        recorded(OWN, 0, 0.30, f"{SETTING}.n=1"),
        recorded(OWN, 0, 0.99, "method.label_noise=0.1"),
        recorded(OWN, 0, 0.20, "steps=7"),
        recorded(PLAIN, 0, 0.5, f"{SETTING}.at=feature"),
    ]
    text = generate.dense.evidence(written(*rows, tail='{"arm": "cut off'))
    lines = text.splitlines()
    rate = f"{rows[0]['config']['optim']['lr']:g}"
    plain = "| cross-entropy | 3 | 40.00 ± 0.00 | 50.00 ± 0.00 | 20.00 ± 0.00 | 80.00 ± 0.00 | 4.00 ± 0.00 |"
    assert f"{plain} 1.00 × | {rate} |" in lines
    own = (
        "| locally adaptive (n = 3, k = 5) | 3 | 44.10 ± 0.10 | 54.10 ± 0.10 | 22.05 ± 0.05 | 88.20 ± 0.20 |"
    )
    assert f"{own} 4.41 ± 0.01 | 1.50 × | {rate} |" in lines
    told = "| locally adaptive (n = 3, k = 5) | 3 | +4.10 [+3.85, +4.35] ▲ | +4.10 [+3.85, +4.35] ▲ |"
    (line,) = [one for one in lines if one.startswith(told)]
    assert line.endswith(f"| helps | {rate} |")
    assert any(one.startswith("| power mean alone (n = 1, k = 5) | 1 | -10.00 |") for one in lines)
    assert "99.00" not in text  # wrong labels stand elsewhere
    assert any("at the size of the labels** (`steps=7`)" in one for one in lines)
    assert any("at the stride of the scores**" in one for one in lines)
    assert "Generated scenes at 128 x 96, test, loss at the size of the labels: pooling alone" in text


def test_the_chosen_rate_counts(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = []
    for recipe, best in ((OWN, 0.005), (PLAIN, 0.015)):
        rows += [
            recorded(
                recipe, 0, 0.6 if rate != best else 0.4, f"optim.lr={rate}", val=0.7 if rate == best else 0.1
            )
            for rate in (0.005, 0.015)
        ]
    text = generate.dense.evidence(written(*rows))
    assert "| cross-entropy | 1 | 40.00 | 70.00 |" in text
    assert "| 0.015 of 0.005, 0.015 |" in text
    assert "| locally adaptive (n = 3, k = 5) | 1 | +0.00 |" in text
    assert "| cannot tell | 0.005; cross-entropy: 0.015 |" in text


def test_settings_of_a_loss_are_told(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [
        recorded(OWN, 0, 0.3, f"{SETTING}.sigma=2.0", f"{SETTING}.k=2.0"),
        recorded(PLAIN, 0, 0.3, f"{SETTING}.class_weights=median"),
        recorded(PLAIN, 0, 0.3, "method.terms=[{name: cross-entropy}, {name: dice, weight: 0.5}]"),
    ]
    text = generate.dense.evidence(written(*rows))
    assert "| locally adaptive (n = 3, k = 2), sigma=2.0 |" in text
    assert "| cross-entropy, class_weights=median |" in text
    assert "| cross-entropy + 0.5 × dice |" in text


def test_wrong_labels(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = []
    for seed in range(2):
        for noise, own, plain in ((0.0, 0.5, 0.4), (0.1, 0.2, 0.3)):
            more = [f"method.label_noise={noise}", "optim.lr=0.015"]
            rows += [recorded(OWN, seed, own, *more), recorded(PLAIN, seed, plain, *more)]
        rows.append(recorded(OWN, seed, 0.9, "optim.lr=0.005"))  # another rate
    file = written(*rows)
    lines = generate.dense.noise_table(file).splitlines()
    start = "| Generated scenes at 128 x 96, test | 10 % | 2 | 30.00 ± 0.00 | 20.00 ± 0.00 | not run |"
    assert any(line.startswith(f"{start} -10.00 [-10.00, -10.00] | -1.00 [") for line in lines)
    assert any("| 0 % | 2 | 40.00 ± 0.00 | 50.00 ± 0.00 |" in line for line in lines)
    assert "90.00" not in "".join(lines)
    picture = generate.dense.noise_picture(file)
    assert words(picture).count("not run") == 1
    assert "cross-entropy 40.0 at 0, 30.0 at 10" in picture


def test_windows(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [recorded(PLAIN, seed, 0.4, "optim.lr=0.015") for seed in range(2)]
    for n, miou in ((3, 0.41), (5, 0.42), (7, 0.45)):
        rows += [recorded(OWN, seed, miou, f"{SETTING}.n={n}", "optim.lr=0.015") for seed in range(2)]
    picture = generate.dense.windows_picture(written(*rows))
    assert "at the size of the labels 1.0 at 3, 2.0 at 5, 5.0 at 7" in picture
    assert words(picture).count("not run") == 1


def test_settings_name_every_key_of_every_term(generate: ModuleType) -> None:
    text = generate.dense.terms()
    for name in terms.TABLE:
        assert f"**`{name}`**: " in text
        page = generate.dense.PAGES.get(name)
        shown = (ROOT / "docs" / "methods" / page).read_text(encoding="utf-8") if page else text
        for key in terms.find_term(name).Settings.model_fields:
            assert f"| `{key}` |" in shown
    whole = generate.settings.settings("segmentation")
    assert '| `method.terms` | `[{"name": "cross-entropy"' in whole
    assert "| `data.classes.names` |" in whole
    assert "| `augment.crop` |" in whole


@pytest.mark.slow
def test_tail_of_generated_scenes() -> None:
    assert rare("scenes-small") == set(TAIL)


@pytest.mark.real
@pytest.mark.usefixtures("data_root")
def test_tail_of_camvid() -> None:
    assert rare("camvid-small") == set(TAIL)


def rare(name: str) -> set[str]:
    """Classes with less than 2 % of the labelled training pixels."""
    config: Any = api.resolve(f"segmentation/{name}")
    data = open_dense(config.data)
    pixels = data.facts["train_class_pixels"]
    return {label for label, count in zip(data.classes.names, pixels) if count < 0.02 * sum(pixels)}
