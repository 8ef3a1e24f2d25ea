"""The tables and figures of the documentation: what they make of recorded runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from leanlabel import api
from leanlabel.recipe import packaged_recipes

ROOT = Path(__file__).resolve().parent.parent


def recorded(
    arm: str, seed: int, accuracy: float, recipe: str = "gca/generated", **changes: Any
) -> dict[str, Any]:
    values = api.resolve(recipe).model_dump(mode="json", exclude={"engine"})
    for key, value in {"seed": seed, **changes.pop("config", {})}.items():
        *way, last = key.split(".")
        section = values
        for part in way:
            section = section[part]
        section[last] = value
    readouts = {
        name: {"mean": mean, "details": [{"val_accuracy": changes.get("validation", mean)}]}
        for name, mean in {"trained": accuracy, "untrained": 0.5, "raw": 0.25}.items()
    }
    still = arm in ("raw", "untrained")
    return {
        "key": f"{recipe}{arm}{seed}{changes}",
        "arm": arm,
        "seed": seed,
        "recipe": f"{recipe} ({arm})",
        "role": changes.get("role", "recipe"),
        "readout": arm if still else "trained",
        "steps": 0 if still else values["steps"],
        "results": {"protocols": {"logistic-l2": {"readouts": readouts}}, "training_seconds": 10.0 + seed},
        "config": values,
    }


GRACE = {"augment.scheme": "uniform"}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: dict[str, Any], tail: str = "") -> Path:
        file = tmp_path / "results.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
        return file

    return write


def test_evidence_without_a_file_says_not_run(generate: ModuleType, tmp_path: Path) -> None:
    text = generate.evidence.evidence(tmp_path / "results.jsonl", "gca")
    assert "none yet" in text
    assert all(f"`{name}`" in text for name in packaged_recipes() if name.startswith("gca/"))


def test_evidence_values(generate: ModuleType, written: Callable[..., Path]) -> None:
    file = written(
        recorded("gca-generated", 0, 0.90),
        recorded("gca-generated", 1, 0.92),
        recorded("gca-generated", 0, 0.80, config={"steps": 40}),
        recorded("raw", 0, 0.9),
        recorded("bgrl-generated", 0, 0.99, recipe="bgrl/generated"),
        recorded("gca-generated", 0, 0.10, config={"augment.edge_rates": [0.8, 0.8]}),
        tail='{"arm": "cut off',
    )
    text = generate.evidence.evidence(file, "gca")
    lines = text.splitlines()
    assert "| `gca/generated` | gca-generated |  | logistic-l2 | 2 | 91.00 ± 1.41 | 10 |" in lines
    assert "| `gca/generated` | gca-generated | `steps=40` | logistic-l2 | 1 | 80.00 | 10 |" in lines
    assert "| `gca/generated` | raw |  | logistic-l2 | 1 | 25.00 | 10 |" in lines
    assert "99.00" not in text  # another method
    assert "10.00" not in text  # a setting of the dial
    assert "`gca/generated`" not in lines[-1]
    assert "`gca/cora`" in lines[-1]


def tuned(*rates: tuple[float, float], seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Runs of one arm with (learning rate, validation accuracy); the test accuracy is the other way round."""
    return [
        recorded("gca-generated", seed, 1 - score, validation=score, config={"optim.lr": rate}, **more)
        for rate, score in rates
    ]


def test_only_the_chosen_rate_counts(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [*tuned((0.001, 0.7), (0.01, 0.8)), *tuned((0.001, 0.9), (0.01, 0.1), seed=1)]
    text = generate.evidence.evidence(written(*rows), "gca")
    assert (
        "`optim.lr=0.01` | logistic-l2 | 2 | 55.00" in text
    )  # by the first seed's validation: 20 and 90 in the test
    assert "`optim.lr=0.001`" not in text
    table = generate.field.tuning(written(*rows))
    assert "| Generated | GCA, degree | 0.001: 70.00, 0.01: 80.00 | 0.01 |" in table


def test_pairs_are_told_by_arm(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [recorded("gca-generated", seed, 0.90 + seed / 100) for seed in range(3)]
    rows += [recorded("grace", seed, 0.80 + seed / 100, config=GRACE) for seed in range(3)]
    rows += [
        recorded("pagerank", 0, 0.90, role="variant", config={"augment.scheme": "pagerank"}),
        recorded("bgrl-generated", 0, 0.99, recipe="bgrl/generated"),
    ]
    text = generate.evidence.pairs(written(*rows), "gca")
    assert "| `gca/generated` |  | grace | 3 | +10.00 | +10.00 … +10.00 |" in text
    assert "| `gca/generated` |  | pagerank | 1 | +0.00 | – |" in text
    assert "bgrl" not in text


def test_matrix_values(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [recorded("gca-generated", seed, 0.90) for seed in range(3)]
    rows += [recorded("grace", seed, 0.80 + seed / 1000, config=GRACE) for seed in range(3)]
    rows += [
        recorded("raw", 0, 0.9),
        recorded("dgi-generated", 0, 0.85, recipe="dgi/generated"),
        recorded("dgi-generated", 0, 0.30, recipe="dgi/generated", config={"steps": 1}),
        recorded("eigenvector", 0, 0.7, role="variant", config={"augment.scheme": "eigenvector"}),
        recorded("gca-generated", 0, 0.10, config={"augment.edge_rates": [0.8, 0.8]}),
    ]
    lines = generate.field.matrix(written(*rows)).splitlines()
    empty = " | not run" * 5 + " |"
    assert f"| raw features | 25.00 (1){empty}" in lines
    assert f"| GRACE | 80.10 ± 0.10 (3){empty}" in lines
    assert f"| GCA, degree | 90.00 ± 0.00 (3) ▲{empty}" in lines
    assert f"| GCA, eigenvector | 70.00 (1){empty}" in lines
    assert f"| DGI | 85.00 (1){empty}" in lines
    assert f"| BGRL | not run{empty}" in lines
    assert len(lines) == 2 + 10
    costs = generate.field.costs(written(*rows))
    assert "| GCA, degree | 11 s (80) |" in costs
    assert "raw" not in costs


def dialled(arm: str, seed: int, accuracy: float, rate: float, **config: Any) -> dict[str, Any]:
    rates = {"augment.edge_rates": [rate, rate], "augment.feature_rates": [rate, rate]}
    return recorded(arm, seed, accuracy, config={**rates, **config})


def test_robustness_values(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [dialled("gca-generated", seed, 0.9, rate) for seed in (0, 1) for rate in (0.1, 0.8)]
    rows += [dialled("grace", seed, 0.8, 0.1, **GRACE) for seed in (0, 1)]
    file = written(*rows)
    lines = generate.dials.curve_table(
        generate.dials.drop_curves(file), ("Generated", "Photo"), ("Dropped", "Rate")
    ).splitlines()
    both = "| Generated | edges and features |"
    assert (
        f"{both} 0.1 | 2 | 80.00 ± 0.00 | 90.00 ± 0.00 | +10.00 [+10.00, +10.00] | cannot tell |  |" in lines
    )
    assert f"{both} 0.8 | 2 | not run | 90.00 ± 0.00 | – | – |  |" in lines
    assert lines[-1].startswith("| Photo | not run |")
    picture = ElementTree.fromstring(
        generate.dials.picture(generate.dials.drop_curves(file), ("Generated", "Photo"), "t", "rate")
    )
    name = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in picture.iter(f"{name}text")]
    assert words.count("not run") == 1
    assert "Generated: edges and features dropped" in words
    assert "GRACE 80.0 at 0.1" in (picture.findtext(f"{name}desc") or "")
    assert "stroke-dasharray" in {key for one in picture.iter(f"{name}path") for key in one.attrib}


def test_robustness_of_edges_alone(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [
        recorded("grace", 0, 0.8, config={"augment.edge_rates": [rate, rate], **GRACE})
        for rate in (0.1, 0.3, 0.5)
    ]
    (curve,) = generate.dials.drop_curves(written(*rows))  # 0.3 is the recipe's rate of features as well
    assert (curve.turned, list(curve.points)) == ("edges", [0.1, 0.3, 0.5])


def test_attachment_values(generate: ModuleType, written: Callable[..., Path]) -> None:
    rows = [recorded("gca-generated", 0, 0.9), recorded("grace", 0, 0.8, config=GRACE)]
    turned = {"data.crossing_attachment": 1.0}
    rows += [recorded("gca-generated", 0, 0.95, config=turned)]
    rows += [
        recorded("grace", 0, 0.94, config={**turned, **GRACE}),
        recorded("grace", 0, 0.1, config={"steps": 3}),
    ]
    file = written(*rows)
    text = generate.dials.curve_table(
        generate.dials.attachment_curves(file), ("Generated",), ("Turned", "Value")
    )
    (first, second) = text.splitlines()[2:]
    assert first.startswith(
        "| Generated | `crossing_attachment` | 0 | 1 | 80.00 | 90.00 | +10.00 | cannot tell |"
    )
    assert second.startswith(
        "| Generated | `crossing_attachment` | 1 | 1 | 94.00 | 95.00 | +1.00 | cannot tell |"
    )
    assert "crossing" not in generate.evidence.evidence(file, "gca")


def test_benchmarks_show_the_newest(generate: ModuleType, written: Callable[..., Path]) -> None:
    def line(seconds: float, **more: Any) -> dict[str, Any]:
        place = {"gpus": [], "cpu_count": 2, "cpu_capability": "X", "threads": 1, "system": "S"}
        arms = {
            "plain": {"seconds": 4.0, "memory_mib": 100.0},
            "new_form": {"seconds": seconds, "memory_mib": 25.0},
        }
        found = {"benchmark": "loss", "date": "2026-01-01", "result": {"arms": arms}}
        return {**found, "environment": {**place, "packages": {"torch": "1"}, **more}}

    text = generate.speed.measured(written(line(1.0), line(2.0), line(0.05, gpus=["G"])))
    assert text.count("### Loss") == 2
    assert "| plain | 4 s | 1 × | 100 MiB | 1 × |" in text
    assert "| new form | 2 s | 2 × | 25 MiB | 0.25 × |" in text
    assert "| new form | 1 s |" not in text
    assert "2026-01-01, G, 1 thread, torch 1, S." in text
