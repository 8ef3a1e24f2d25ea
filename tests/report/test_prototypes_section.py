"""The section on prototypes: points, gaps and curves of all stages; no file can break the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from report_samples import ATTACK, fill, parsed, self_contained, write

from leanlabel.engine.runfolder import RunFolder
from leanlabel.report.prototypes import prototypes
from leanlabel.report.run import run_page

TERMS = [
    {"name": "cross-entropy"},
    {"name": "prototype-contrast", "settings": {"tau": 100.0, "target": "stored"}},
]
CONFIG: dict[str, Any] = {
    "method": {"name": "adapt", "terms": [{"name": "self-training"}]},
    "data": {"source": {}, "target": {}},
    "stages": {"warm": {"steps": 4}, "contrast": {"steps": 6, "method": {"terms": TERMS}}},
}


def cloud(shift: float) -> dict[str, Any]:
    return {
        "points": [[0.1, 0.2], [0.9 + shift, 0.1], [0.5, shift], [0.2, 0.3]],
        "classes": [0, 1, 1, 9],
        "domains": [0, 1, "target", "source"],
        "prototypes": [[0.0, 0.0], [1.0, 0.0], None],
    }


def values() -> dict[str, Any]:
    return {
        "part": "val",
        "numbers": {"before": {"gap": 0.1}, "after": {"gap": 0.25, "one-shot mIoU": 0.5}},
        "bank": {"cosine": [0.75, None]},
        "before": "weights after stage warm",
        "classes": [
            {
                "name": "road",
                "colour": [1, 2, 3],
                "gap_before": 0.3,
                "gap_after": 0.4,
                "norm": 0.9,
                "pixels": 1234,
            },
            {"name": "car", "gap_before": -0.1, "gap_after": 0.1, "norm": 0.5, "pixels": 12},
            {"name": "ghost", "gap_before": None, "gap_after": None, "norm": None, "pixels": 0},
        ],
        "embedding": {"before": cloud(0.0), "after": cloud(0.5)},
    }


def filled(folder: Path) -> RunFolder:
    """A run whose stage contrast looked at similarities; the first stage and the last did not."""
    run = RunFolder(folder / "run")
    run.path.mkdir()
    rows = [
        {"t": t, "similarity_gap": 0.1 + t / 100, "target_gap": 0.05, "own_similarity": 0.5} for t in range(6)
    ]
    for name, lines in (("warm", [{"t": 3, "loss": 1.0}]), ("contrast", rows)):
        place = folder / "stages" / name
        place.mkdir(parents=True)
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write(run.stages / f"{name}.json", {"folder": f"../stages/{name}"})
    run.metrics.write_text(json.dumps({"t": 9, "loss": 2.0}) + "\n")
    return run


def made(folder: Path, given: Any = None, config: dict[str, Any] = CONFIG) -> ElementTree.Element:
    found = prototypes(filled(folder), values() if given is None else given, config)
    assert found is not None
    return ElementTree.fromstring(found)


def words(node: ElementTree.Element) -> str:
    return re.sub(r"\s+", " ", " ".join(node.itertext()))


def test_values_points(tmp_path: Path) -> None:
    """Circles of the source, triangles of the target; colours by class; prototypes bear its number."""
    section = made(tmp_path)
    before, after = section.findall(".//svg[@role='img']")[:2]
    assert [one.find("title").text for one in (before, after)] == [  # type: ignore[union-attr]
        "Pixels around their prototypes, before",
        "Pixels around their prototypes, after",
    ]
    described = before.find("desc")
    assert described is not None
    assert described.text == "2 pixels of the source, 2 pixels of the target; prototypes: 0 road, 1 car."
    points = [node for node in before.iter("path") if "point" in (node.get("class") or "")]
    assert [node.get("class") for node in points] == ["point p0", "point p1", "point", "point p1"]
    assert "var(--c1)" in (points[2].get("style") or ""), "class 9 has the colour of class 1, and is hollow"
    assert ["a3.2" in (node.get("d") or "") for node in points] == [True, False, True, False]
    assert len([node for node in before.iter("path") if node.get("class") == "found"]) == 2
    assert [node.text for node in before.iter("text")] == ["0", "1"]
    legend = section.find(".//ul[@aria-label='Numbers and colours of the classes']")
    assert legend is not None
    assert ["".join(item.itertext()) for item in legend] == ["0 road", "1 car", "9"]


def test_values_gaps(tmp_path: Path) -> None:
    section = made(tmp_path)
    chart = next(one for one in section.iter("svg") if "Gap by class" in (one.findtext("title") or ""))
    assert chart.findtext("desc") == (
        "car: gap −0.100 before, 0.100 after; road: gap 0.300 before, 0.400 after; ghost: gap – before, – after"
    )
    bars = [node for node in chart.iter("rect") if (node.get("class") or "").startswith("bar")]
    assert [node.get("class") for node in bars] == ["bar second", "bar"] * 2
    ends = [(float(node.attrib["x"]), float(node.attrib["width"])) for node in bars]
    zero = ends[1][0]
    assert abs(ends[0][0] + ends[0][1] - zero) < 0.2, "a gap below zero is drawn to the left"
    assert ends[3][1] > ends[2][1] > ends[1][1]
    text = words(section)
    assert "target images, val; before: weights after stage warm" in text
    rows = [[words(cell).strip() for cell in row] for row in section.iter("tr")]
    assert rows[1:3] == [
        ["gap", "0.100", "0.250", "+0.150"],
        ["one-shot mIoU", "–", "0.500", "–"],
    ]
    assert rows[4] == ["road", "0.300", "0.400", "+0.100", "0.900", "1,234", "0.750"]
    assert rows[6] == ["ghost", "–", "–", "–", "–", "0", "–"]


def test_values_curves(tmp_path: Path) -> None:
    """Of the stage that has them on, over all stages after it; a flat loss is explained."""
    section = made(tmp_path)
    charts = [
        one.findtext("desc") or ""
        for one in section.iter("svg")
        if " over iteration " in (one.findtext("desc") or "")
    ]
    assert charts == [
        "own minus other similarity over iteration 0 to 5, from 0.05 to 0.15. Lines: source, by label, target, by "
        "pseudo label.",
        "cosine similarity over iteration 0 to 5, from 0.5 to 0.5.",
    ]
    assert "The loss itself stays near 2 log K = 2.20 at a temperature of 100" in words(section)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tau": 100.0, "target": "none"}, "near log K = 1.10"),
        ({}, "near 2 log K = 2.20"),
        ({"tau": 0.1}, ""),
        ({"tau": "x"}, ""),
    ],
)
def test_values_flat(tmp_path: Path, settings: Any, told: str) -> None:
    """Expected at a large temperature alone."""
    config = {**CONFIG, "method": {"terms": [{"name": "prototype-contrast", "settings": settings}]}}
    text = words(made(tmp_path, config=config))
    assert ("The loss itself" in text) == bool(told)
    assert told in text


def test_values_page(tmp_path: Path) -> None:
    """On the page of a run; its terms are not drawn twice."""
    run = fill(tmp_path / "run", steps=5)
    rows = [{"t": t, "loss": 1.0, "target_gap": t / 10} for t in range(5)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run.config.write_text(yaml.safe_dump({"method": {"name": "adapt", "terms": TERMS}}), encoding="utf-8")
    html = run_page(run)
    drawn = [node.text for node in parsed(html).iter("title") if "similarity" in str(node.text)]
    assert drawn == ["own minus other similarity"]
    assert "<title>target gap</title>" not in html
    write(run.figures / "prototypes.json", values())
    html = run_page(run)
    assert "Gap by class" in html
    self_contained(html)


def test_degenerate(tmp_path: Path) -> None:
    """Nothing there; curves alone; points of one place; one class."""
    (tmp_path / "empty").mkdir()
    empty = RunFolder(tmp_path / "empty")
    assert prototypes(empty, {}, {}) is None
    assert prototypes(empty, {"classes": [{"name": "a"}]}, {}) is None
    assert "log K at" in words(made(tmp_path, {}))
    one = {"points": [[0.0, 0.0]] * 3, "classes": [0] * 3, "domains": [1] * 3}
    found = prototypes(empty, {"embedding": {"after": one}}, {})
    assert found is not None
    assert "3 pixels of the target; prototypes: none." in found
    assert "nan" not in found


@pytest.mark.parametrize(
    "damage", [3, None, "x", [], {}, [3, None], {"a": 1}, 10**400, float("nan"), True, [[1e308, 0]]]
)
def test_errors_damage(tmp_path: Path, damage: Any) -> None:
    """Any value may stand anywhere."""
    run, good = filled(tmp_path), values()
    made_ = [good | {key: damage} for key in good]
    made_ += [good | {"classes": [{**good["classes"][0], key: damage}]} for key in good["classes"][0]]
    made_ += [good | {"numbers": {"before": damage, "after": {"gap": damage}}, "bank": {"cosine": [damage]}}]
    for key in cloud(0):
        made_.append(good | {"embedding": {"before": cloud(0) | {key: damage}, "after": damage}})
        made_.append(good | {"embedding": {"before": cloud(0) | {key: [damage] * 4}}})
    for given in made_:
        ElementTree.fromstring(prototypes(run, given, CONFIG) or "<p/>")
    for config in (
        {"method": damage},
        {"method": {"terms": damage}},
        {"method": {"terms": [damage]}},
        {"stages": damage},
    ):
        prototypes(run, good, config)
    terms = [{"name": "prototype-contrast", "settings": {"tau": damage}}]
    prototypes(run, good, {"method": {"terms": terms}})


def test_errors_text_is_escaped(tmp_path: Path) -> None:
    given = values()
    given["part"] = given["before"] = given["classes"][0]["name"] = ATTACK
    found = prototypes(filled(tmp_path), given, CONFIG)
    assert found is not None
    assert "<script" not in found
    assert "onload=&#x27;" in found
