"""What the page of a run on images shows: nearest neighbours, and how hard the hardest negatives are."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from report_samples import (
    ATTACK,
    anchors,
    fill,
    near_figure,
    parsed,
    said,
    self_contained,
    small_picture,
    with_pictures,
)

from leanlabel.engine.runfolder import RunFolder
from leanlabel.evaluation.neighbours import MOST
from leanlabel.report import neighbours
from leanlabel.report.charts import Curve, line_chart
from leanlabel.report.hardness import hardness, without
from leanlabel.report.run import run_page
from leanlabel.report.scales import tick_label


def without_pictures(html: str) -> str:
    """The page with its pictures taken out, which must be small PNGs that stand in the page."""
    pictures = list(parsed(html).iter("img"))
    assert pictures
    for node in pictures:
        assert set(node.attrib) <= {"src", "alt", "title"}
        assert base64.b64decode(node.attrib["src"].removeprefix("data:image/png;base64,")).startswith(
            b"\x89PNG"
        )
    return re.sub(r"<img [^>]*/>", "", html)


def test_values_neighbours(tmp_path: Path) -> None:
    html = run_page(with_pictures(tmp_path / "run", near_figure()))
    assert {"neighbours", "hardness"} <= set(anchors(html))
    self_contained(without_pictures(html))
    assert "img-src data:" in list(parsed(html).iter("meta"))[3].attrib["content"]
    text = said(html)
    assert "beside them the closest of 1,200 training images, by cosine" in text
    assert "4 of 6 neighbours have the class of their query" in text
    assert "✗ 0.90 kind 9 ✓ 0.80 kind 0 ✓ 0.70 kind 0" in text


def test_values_neighbours_are_told_without_colour(tmp_path: Path) -> None:
    """Every picture has words, every mark a name, and right and wrong differ in sign and in the line around."""
    section = parsed(run_page(with_pictures(tmp_path / "run", near_figure()))).find(
        ".//section[@id='neighbours']"
    )
    assert section is not None
    described = [node.attrib["alt"] for node in section.iter("img")]
    assert described[:2] == ["Query: test/0.png", "Neighbour 1: train/0-0.png"]
    marks = [
        (node.text, node.attrib["aria-label"]) for node in section.iter("span") if node.get("role") == "img"
    ]
    assert marks[:2] == [("✗", "another class"), ("✓", "same class")]
    assert [node.get("class") for node in section.iter("li")][:3] == ["unlike", "alike", "alike"]
    style = next(parsed(run_page(RunFolder(tmp_path))).iter("style")).text or ""
    assert re.search(r"\.unlike img \{[^}]*dashed", style)
    assert re.search(r"print \{.*\.near.*break-inside: avoid", style, re.DOTALL)


def test_values_hardness(tmp_path: Path) -> None:
    run = with_pictures(tmp_path / "run", near_figure())
    html = run_page(run)
    section = parsed(html).find(".//section[@id='hardness']")
    assert section is not None
    assert [node.attrib["class"] for node in section.iter("path")].count("curve s1") == 2  # line and its key
    legend = [node.text for node in section.iter("span") if (node.text or "").startswith("iteration")]
    assert legend == ["iteration 0", "iteration 30"]
    cells = [["".join(cell.itertext()) for cell in row] for row in section.iter("tr")]
    assert cells[0] == ["rank", "iteration 0", "iteration 30"]
    assert cells[2] == ["4", "0.0025", "0.0775"]
    assert "At iteration 0 they are noise." in said(html)
    curves = parsed(html).find(".//section[@id='loss']")
    assert curves is not None
    assert "hardness" not in "".join(curves.itertext())
    assert without([{"t": 1, "hardness_4": 1, "hardness": 2}]) == [{"t": 1, "hardness": 2}]


def test_values_log_axis() -> None:
    """Equal ratios get equal distances, and only where all places are positive."""
    curve = Curve([1, 10, 100], [0.3, 0.2, 0.1])
    chart = line_chart("share", [curve], x_label="rank", log_x=True)
    assert chart is not None
    path = re.search(r'<path d="M([\d.]+) \S+L([\d.]+) \S+L([\d.]+) ', chart)
    assert path is not None
    first, second, third = map(float, path.groups())
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert "log x axis" in chart
    assert "log x axis" not in str(line_chart("share", [Curve([0, 10], [0.3, 0.2])], log_x=True))
    assert tick_label(1000, 0, log=True) == "1000"


@pytest.mark.parametrize("content", ["null", "[]", '{"queries": 3}', '{"queries": [null, {}]}', "{broken"])
def test_degenerate(tmp_path: Path, content: str) -> None:
    """Strange files give a page without the section."""
    run = fill(tmp_path, steps=20)
    (run.figures / "neighbours.json").write_text(content)
    html = run_page(run)
    assert not {"neighbours", "hardness"} & set(anchors(html))
    self_contained(html)


def test_degenerate_without_classes(tmp_path: Path) -> None:
    values = near_figure(1, 2)
    for one in (values["queries"][0], *values["queries"][0]["neighbours"]):
        one |= {"class": None, "same": None}
    text = said(run_page(with_pictures(tmp_path, values)))
    assert "closest of 1,200 training images, by cosine, closest first." in text
    assert "have the class" not in text
    assert "test/0.png" in text


def test_degenerate_many_pictures() -> None:
    html = str(neighbours.neighbours(near_figure(20, 6)))
    assert html.count("<img ") == 63 <= MOST
    assert neighbours.neighbours(near_figure(3, 70)) is None


def test_degenerate_hardness() -> None:
    """One look gives one line; values that are not numbers are left out."""
    rows = [{"t": 5, "hardness_1": 0.5, "hardness_4": None, "hardness_16": 0.1}, {"t": 6, "loss": 1.0}]
    assert "iteration 5" in str(hardness(rows))
    assert "noise" not in str(hardness(rows))
    assert hardness([{"t": 1, "hardness_x": 1, "hardness_0": 1, "hardness_2": float("nan")}]) is None
    assert hardness([]) is None


def test_errors_only_small_pngs(tmp_path: Path) -> None:
    """A run folder from elsewhere cannot bring another kind of picture, an address or markup."""
    for bad in (
        "https://host.invalid/x.png",
        base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>" * 3).decode(),
        small_picture(1) + '" onerror="alert(1)',
        small_picture(1)[:12] + "A" * 100_000,
        12,
        None,
    ):
        values = near_figure(1, 2)
        values["queries"][0]["neighbours"][0]["image"] = bad
        assert len(re.findall("<img ", str(neighbours.neighbours(values)))) == 2
        values["queries"][0]["image"] = bad
        assert neighbours.neighbours(values) is None

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: value[key] if key == "image" else poisoned(value[key]) for key in value}
        if isinstance(value, list):
            return [poisoned(one) for one in value]
        return value + ATTACK if isinstance(value, str) else value

    html = run_page(with_pictures(tmp_path, poisoned(near_figure())))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 20
    self_contained(without_pictures(html))


def test_domains_have_a_table_of_their_own() -> None:
    from leanlabel.report.sections import results

    rows = [
        {"name": "photo <1>", "test_rows": 10.0, "metric": "accuracy", "readouts": {"trained": 0.75}},
        {"name": "sketch", "test_rows": 0.0, "metric": "", "readouts": {}},
    ]
    found = str(results({"protocols": {"knn": {"domains": rows, "readouts": {}}}}, "knn"))
    assert "photo &lt;1&gt;" in found
    assert "0.750" in found or "75" in found
    assert "sketch" in found
    assert "Within each domain" not in str(results({"protocols": {"knn": {"readouts": {}}}}, "knn"))
