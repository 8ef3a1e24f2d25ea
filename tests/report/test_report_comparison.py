from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_samples import ATTACK, FINDINGS, anchors, compared, parsed, said, self_contained
from scipy import stats

from leanlabel.report.comparison import comparison_page, interval, t_quantile, write_comparison
from leanlabel.report.findings import findings_page, write_findings


@pytest.fixture
def comparison() -> dict[str, Any]:
    """A comparison with a pending remainder."""
    return compared()


def rows(html: str, index: int) -> list[list[str]]:
    table = list(parsed(html).iter("table"))[index]
    return [[re.sub(r"\s+", " ", "".join(cell.itertext())) for cell in row] for row in table.iter("tr")]


def test_values_comparison(tmp_path: Path, comparison: dict[str, Any]) -> None:
    path = write_comparison(tmp_path / "report.html", comparison)
    html = path.read_text(encoding="utf-8")
    assert anchors(html) == ["arms", "differences", "pending", "loss", "environment"]
    text = said(html)
    assert "Cannot tell : 95 % interval −0.2 to +0.8, 5 paired seeds." in text
    assert "These runs cannot tell the two apart. With 5 seeds, a difference below 0.7 points" in text
    assert "All 4 differences: 2 helps, 1 hurts, 1 cannot tell." in text
    assert "2 runs not run raw, seed 3 raw, seed 4" in text
    assert "4 arms, 18 finished runs" in text
    arms, pairs = rows(html, 0), rows(html, 1)
    assert len(arms) == 5
    assert arms[4][0] == "Raw features"
    assert arms[4][2] == "3"
    assert arms[4][4].startswith("0: 0.7")
    assert pairs[1][1:] == ["+0.3 points", "−0.2 to +0.8", "5", "0.7 points", "◆ cannot tell"]
    assert [row[-1] for row in pairs[2:]] == ["▲ helps", "▲ helps", "▼ hurts"]


def test_values_one_dot_per_seed(comparison: dict[str, Any]) -> None:
    arms = next(
        node for node in parsed(comparison_page(comparison)).iter("section") if node.attrib["id"] == "arms"
    )
    assert len(list(arms.iter("circle"))) == 18
    assert len([n for n in arms.iter("line") if n.attrib.get("class") == "mean"]) == 4


@pytest.mark.parametrize(
    ("verdict", "kind", "words"), [("helps", "gain", "helps"), ("hurts", "none", "hurts")]
)
def test_values_headline(comparison: dict[str, Any], verdict: str, kind: str, words: str) -> None:
    comparison["pairs"][0].update(verdict=verdict, difference=0.0027 if verdict == "helps" else -0.0027)
    html = comparison_page(comparison)
    assert f"GCA, degree {words} : 95 % interval" in said(html)
    way = "over" if verdict == "helps" else "against"
    assert f"GCA, degree {way} Uniform dropping (GRACE)" in said(html)
    assert any(node.attrib.get("class") == f"answer {kind}" for node in parsed(html).iter("div"))


def test_reference_t_quantile() -> None:
    for degrees in (*range(1, 60), 100, 1000):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=2e-4)


def test_reference_interval() -> None:
    values = [0.91, 0.93, 0.92, 0.95, 0.90]
    expected = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    assert interval(values) == pytest.approx(expected, rel=1e-4)
    assert interval([0.9]) is None


def test_values_findings(tmp_path: Path) -> None:
    html = write_findings(tmp_path / "f.html", "Data check of x.npz", FINDINGS).read_text(encoding="utf-8")
    assert anchors(html) == ["error", "warning", "info"]
    assert "This data has errors. 1 error, 1 warning, 1 fact." in said(html)
    assert rows(html, 0)[1] == ["train and test share 3 rows.", "split-leak", "3"]
    assert "can be used" in said(findings_page("x", [FINDINGS[1]]))
    assert "Nothing found that would spoil a training." in said(findings_page("x", []))


def test_degenerate_comparison(comparison: dict[str, Any]) -> None:
    assert "No run has finished yet." in said(comparison_page({}))
    waiting = {
        **comparison,
        "arms": [{"name": "a", "runs": [], "mean": None, "std": None, "n": 0}],
        "pairs": [],
    }
    assert "not run" in said(comparison_page(waiting))
    run = {"seed": 0, "value": 0.9, "seconds": None}
    one = {"name": "a", "label": "A", "runs": [run], "mean": 0.9, "std": None, "n": 1}
    pair = {
        "arm": "a",
        "against": "b",
        "difference": 0.01,
        "low": None,
        "high": None,
        "n": 1,
        "verdict": "cannot tell",
    }
    text = said(comparison_page({"arms": [one, {**one, "name": "b"}], "pairs": [pair, {}]}))
    assert "no interval from one seed, 1 paired seed" in text
    for key in comparison:
        self_contained(comparison_page({k: v for k, v in comparison.items() if k != key}))
        self_contained(comparison_page({**comparison, key: None}))


def test_degenerate_findings_of_unknown_severity() -> None:
    html = findings_page("x", [{"severity": ATTACK, "message": ATTACK, "code": ATTACK, "count": None}, {}])
    self_contained(html)
    assert "alert(1)" in said(html)


def test_errors_everything_is_escaped(comparison: dict[str, Any]) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return f"{value}{ATTACK}" if isinstance(value, str) else value

    html = comparison_page(poison(comparison))
    self_contained(html)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 30
    assert isinstance(parsed(html), ElementTree.Element)
