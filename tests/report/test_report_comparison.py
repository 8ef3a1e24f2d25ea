from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_samples import ATTACK, FINDINGS, anchors, compared, parsed, said, self_contained
from scipy import stats

from leanlabel.report.comparison import comparison_page, write_comparison
from leanlabel.report.findings import findings_page, write_findings
from leanlabel.report.intervals import interval, t_quantile


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


# --------------------------------------------------------------------------- alarms, dial, tuning, label-free


def point(text: str, x: float | None, gain: float, verdict: str) -> dict[str, Any]:
    """One setting of a dial: two arms with three seeds, and their difference."""
    arms = [
        {
            "name": name,
            "label": name.upper(),
            "runs": [{"seed": seed, "value": mean + 0.01 * seed, "seconds": 1.0} for seed in range(3)],
            "mean": mean + 0.01,
            "n": 3,
        }
        for name, mean in (("gca", 0.8 + gain), ("raw", 0.8))
    ]
    pair = {
        "arm": "gca",
        "against": "raw",
        "difference": gain,
        "low": gain - 0.02,
        "high": gain + 0.02,
        "n": 3,
        "verdict": verdict,
    }
    return {"label": f"rate={text}", "text": text, "value": x, "x": x, "arms": arms, "pairs": [pair]}


@pytest.fixture
def dialled(comparison: dict[str, Any]) -> dict[str, Any]:
    """A comparison over three settings."""
    points = [
        point("0.1", 0.1, -0.03, "hurts"),
        point("0.5", 0.5, 0.001, "cannot tell"),
        point("0.9", 0.9, 0.05, "helps"),
    ]
    told = ["gca over raw: helps at rate 0.9; hurts at 0.1; cannot tell at 0.5."]
    dial = {"keys": ["a.rate"], "name": "rate", "points": points, "sentences": told}
    return {**comparison, "arms": [], "pairs": [], "dial": dial}


def test_values_alarms(comparison: dict[str, Any]) -> None:
    """Harm stands above the verdict and says its name; noise is milder; neither is there without a reason."""
    assert "ALARM" not in comparison_page(comparison)
    comparison["alarms"] = [
        {"level": "below", "sentence": "grace is 0.2 points below raw, within noise ([-1.0, 0.6], 5 seeds)."},
        {"level": "harm", "sentence": "gca is 3.0 points below raw, [-4.0, -2.0], 5 seeds: worse."},
    ]
    html = comparison_page(comparison)
    text = said(html)
    assert "ALARM: a trained arm is below a baseline. gca is 3.0 points below raw, [−4.0, −2.0]" in text
    assert "Below a baseline, by little or within noise. grace is 0.2 points below raw" in text
    kinds = [
        n.attrib["class"] for n in parsed(html).iter("div") if n.attrib.get("class", "").startswith("notice")
    ]
    assert kinds[:2] == ["notice bad", "notice warn"]
    assert html.index("ALARM") < html.index('class="answer')


def test_values_sentences(comparison: dict[str, Any]) -> None:
    comparison["pairs"][0]["sentence"] = "cannot tell gca from grace: -0.3 points [-0.2, +0.8]."
    assert "cannot tell gca from grace: −0.3 points [−0.2, +0.8]." in said(comparison_page(comparison))


def test_values_dial(dialled: dict[str, Any]) -> None:
    """The headline counts settings; two charts, two tables, no table of arms."""
    html = comparison_page(dialled)
    assert anchors(html)[0] == "dial"
    assert not {"arms", "differences"} & set(anchors(html))
    text = said(html)
    assert "1 of 3 settings at which GCA helps over RAW over RAW: 1 helps, 1 hurts, 1 cannot tell" in text
    assert "gca over raw: helps at rate 0.9; hurts at 0.1; cannot tell at 0.5." in text
    means, verdicts = rows(html, 0), rows(html, 1)
    assert means[1] == ["0.1", "3", "0.780", "0.810"]
    assert [row[1] for row in verdicts[1:]] == ["−3.0 ▼ hurts", "+0.1 ◆ cannot tell", "+5.0 ▲ helps"]
    pictures = [node for node in parsed(html).iter("svg") if "plot" in node.attrib.get("class", "")]
    assert "Difference in accuracy, points over rate" in (pictures[0].findtext("desc") or "")
    self_contained(html)


def drawn(html: str) -> list[float]:
    """Places of the marks of the first line of the first chart, from left to right."""
    picture = next(n for n in parsed(html).iter("svg") if "plot" in n.attrib.get("class", ""))
    marks = [n.attrib["d"] for n in picture.iter("path") if n.attrib.get("class") == "point p0"]
    return [float(re.match(r"M([\d.]+) ", mark)[1]) for mark in marks]  # type: ignore[index]


def test_values_dial_places(dialled: dict[str, Any]) -> None:
    """Numbers stand where they are, on a logarithmic axis over two decades, other settings one after another."""
    a, b, c = drawn(comparison_page(dialled))
    assert b - a == pytest.approx(c - b, abs=0.2)
    points = dialled["dial"]["points"]
    points[1]["x"] = 0.8
    a, b, c = drawn(comparison_page(dialled))
    assert b - a > 5 * (c - b)
    for one, x in zip(points, (0.001, 0.01, 0.1)):
        one["x"] = x
    a, b, c = drawn(comparison_page(dialled))
    assert b - a == pytest.approx(c - b, abs=0.2)
    points[1]["x"] = None
    a, b, c = drawn(comparison_page(dialled))
    assert b - a == pytest.approx(c - b, abs=0.2)


def test_degenerate_dial(dialled: dict[str, Any]) -> None:
    """Nothing measured, one setting, one seed, no pair, junk: still a page."""
    points = dialled["dial"]["points"]
    for broken in (
        [],
        points[:1],
        [{**points[0], "pairs": []}],
        [{**points[0], "arms": []}, points[1]],
        [{"text": "a"}, {}],
        [None, 3, points[0]],
    ):
        self_contained(comparison_page({**dialled, "dial": {**dialled["dial"], "points": broken}}))
    points[0]["pairs"][0].update(low=None, high=None)
    points[1]["arms"][0]["runs"] = points[1]["arms"][0]["runs"][:1]
    self_contained(comparison_page(dialled))
    self_contained(comparison_page({**dialled, "dial": {}}))


def test_values_tuning(comparison: dict[str, Any]) -> None:
    """Every point, the chosen one marked, what stopped and what was not tuned; the caveat on seeds."""
    scored = [
        {"label": "lr=0.1", "score": 0.81, "stopped": None},
        {"label": "lr=9", "score": None, "stopped": "Iteration 1: not finite."},
    ]
    arms = [
        {"arm": "gca", "runs": 2, "chosen": "lr=0.1", "why": None, "points": scored},
        {"arm": "raw", "runs": 0, "chosen": None, "why": "does not train", "points": []},
        {"arm": "grace", "runs": 2, "chosen": None, "why": None, "points": [{**scored[0], "score": None}]},
    ]
    comparison["tuning"] = {
        "criterion": "validation accuracy",
        "keys": ["optim.lr"],
        "seeds": [0],
        "arms": arms,
    }
    html = comparison_page(comparison)
    assert "tuning" in anchors(html)
    assert rows(html, 2) == [
        ["arm", "runs", "chosen", "lr=0.1", "lr=9"],
        ["GCA, degree", "2", "lr=0.1", "✓ 0.810", "stopped"],
        ["Raw features", "0", "not tuned: does not train", "–", "–"],
        ["Uniform dropping (GRACE)", "2", "not finished", "–", "–"],
    ]
    assert "The seeds used for choosing (1) also count in the final numbers" in said(html)
    text = said(html)
    assert "Chosen by validation accuracy; it reads nothing else." in text
    assert "The same grid for every arm that trains." in text
    assert "random splits" not in text


def tried(name: str, runs: int = 2, **more: Any) -> dict[str, Any]:
    """An arm in the table of the tuning."""
    points = [{"label": "lr=0.1", "score": 0.8, "stopped": None}]
    return {"arm": name, "runs": runs, "chosen": "lr=0.1", "why": None, "points": points, **more}


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (
            [tried("gca"), tried("grace", 0, chosen=None, why="fixes these settings itself", points=[])],
            "The same grid for GCA, degree. Uniform dropping (GRACE) fixes these settings itself.",
        ),
        (
            [tried("gca", 4), tried("grace", 2)],
            "as some lack some of these settings (GCA, degree: 4; Uniform dropping (GRACE): 2).",
        ),
        (
            [tried("gca"), tried("grace", chosen=None, stopped="x")],
            "The same grid for every arm that trains.",
        ),
    ],
)
def test_values_tuning_says_who_got_what(
    comparison: dict[str, Any], arms: list[dict[str, Any]], words: str
) -> None:
    comparison["tuning"] = {"criterion": "validation", "arms": arms}
    assert words in said(comparison_page(comparison))


def test_values_tuning_with_overlapping_splits(comparison: dict[str, Any]) -> None:
    """The choice reads validation only, but the splits of a run share samples; an arm can be left without a choice."""
    arms = [tried("gca"), tried("grace", chosen=None, stopped="not finite")]
    comparison |= {"tuning": {"arms": arms}, "splits": {"name": "random", "count": 4}}
    html = comparison_page(comparison)
    assert "With 4 random splits in a run, what is a validation sample in one can be a test sample" in said(
        html
    )
    assert rows(html, 2)[2][2] == "none: every setting stopped"
    for splits in ({"name": "random", "count": 1}, {"name": "public", "count": 4}, None):
        assert "random splits" not in said(comparison_page({**comparison, "splits": splits}))


def test_values_what_is_alike(comparison: dict[str, Any]) -> None:
    """Iterations and readouts are called the same only where they are."""
    assert "Same data and splits for all. " in said(comparison_page(comparison))
    assert "budget" not in said(comparison_page(comparison))
    first, second = comparison["arms"][:2]
    for arm in comparison["arms"]:
        arm["readout"] = "trained"
        for run in arm["runs"]:
            run["steps"] = 0
    for run in first["runs"] + second["runs"]:
        run["steps"] = 50
    comparison["protocol"] = "logistic-l2"
    text = said(comparison_page(comparison))
    assert "Every arm that trains has 50 iterations. All are read out by logistic-l2." in text
    second["supervised"] = True
    for run in second["runs"]:
        run["steps"] = 9
    text = said(comparison_page(comparison))
    assert f"Iterations differ: {first['label']} 50, {second['label']} 9." in text
    assert f"{second['label']} is measured with its own classifier, the other arms by logistic-l2." in text


def test_values_stopped(comparison: dict[str, Any]) -> None:
    comparison["stopped"] = [{"arm": "gca", "run": "gca, seed 1", "reason": "Iteration 3: not finite."}]
    html = comparison_page(comparison)
    assert "stopped" in anchors(html)
    assert "stopped: gca, seed 1: Iteration 3: not finite." in said(html)
    comparison["arms"][0].update(name="gca", runs=[])
    assert rows(comparison_page(comparison), 0)[1][1] == "stopped"


def test_values_what_cannot_be_seen(comparison: dict[str, Any]) -> None:
    """Equal differences are no interval, and beyond the range of shares nothing can be seen."""
    comparison["pairs"][0].update(low=0.003, high=0.003, minimal_detectable=1.2, n=2)
    html = comparison_page(comparison)
    assert "Cannot tell : equal differences, 2 paired seeds." in said(html)
    assert "With 2 seeds, any difference would mostly go unseen." in said(html)
    assert rows(html, 1)[1][2:5] == ["equal differences", "2", "above any difference"]


def test_values_label_free(comparison: dict[str, Any]) -> None:
    """Arms by scores, the rank correlation below, said to be descriptive."""
    comparison["label_free"] = {
        "scores": ["effective_rank", "my_score"],
        "arms": [
            {"arm": "gca", "values": {"effective_rank": 41.25, "my_score": 0.5}},
            {"arm": "raw", "values": {"effective_rank": 3.0}},
        ],
        "correlation": [{"score": "effective_rank", "rank": -0.8, "arms": 4}],
    }
    html = comparison_page(comparison)
    assert rows(html, 2) == [
        ["arm", "effective rank", "my score"],
        ["GCA, degree", "41.25", "0.5"],
        ["Raw features", "3", "–"],
        ["rank correlation with accuracy", "−0.80", "–"],
    ]
    assert "over 4 arms: it describes these arms and proves nothing." in said(html)
    comparison["label_free"]["correlation"] = []
    assert "Rank correlation" not in said(comparison_page(comparison))


def test_values_equal_arms_are_named(comparison: dict[str, Any]) -> None:
    comparison["arms"][0]["also"] = ["cold", "warm"]
    assert rows(comparison_page(comparison), 0)[1][0] == "GCA, degree also cold, warm"


def test_values_many_pairs(comparison: dict[str, Any]) -> None:
    """The picture at the top shows the first dozen, the table all."""
    comparison["pairs"] = comparison["pairs"] * 5
    html = comparison_page(comparison)
    assert "8 more differences in the table below." in said(html)
    assert len(rows(html, 1)) == 21


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

    comparison["alarms"] = [{"level": level, "sentence": "a"} for level in ("harm", "below")]
    comparison["dial"] = {"name": "a", "sentences": ["b"], "points": [point("c", None, 0.1, "helps")] * 2}
    scored = [{"label": "d", "score": 0.5, "stopped": None}, {"label": "e", "stopped": "f"}]
    comparison["tuning"] = {"criterion": "g", "arms": [{"arm": "h", "chosen": "i", "points": scored}]}
    arm = {"arm": "j", "values": {"k": 1.0}}
    comparison["label_free"] = {"scores": ["k"], "arms": [arm], "correlation": []}
    html = comparison_page(poison(comparison))
    self_contained(html)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 30
    assert isinstance(parsed(html), ElementTree.Element)
