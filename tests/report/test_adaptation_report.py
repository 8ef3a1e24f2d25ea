"""What the page of an adaptation shows, and what it believes of its files and of those of earlier stages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from report_samples import ATTACK, anchors, fill, parsed, said, self_contained, write

from leanlabel.data.class_map import plain_map
from leanlabel.engine.runfolder import RunFolder
from leanlabel.evaluation.adaptation_pictures import Shown2, adaptation_figure
from leanlabel.report import adaptation as module
from leanlabel.report.adaptation import adaptation
from leanlabel.report.answer import judge
from leanlabel.report.charts import Curve, line_chart
from leanlabel.report.domains import placed, readout_names
from leanlabel.report.gap import gap, stage_metrics
from leanlabel.report.run import run_page

NAMES = ("road", "building", "pole", "ghost")
CONFIG: dict[str, Any] = {
    "method": {"name": "adapt"},
    "steps": 30,
    "data": {"source": {"kind": "scenes"}, "target": {"kind": "scenes"}},
    "stages": {"source": {"steps": 5}, "warm": {"steps": 20}},
    "evaluation": {"protocol": "miou", "select": "last"},
}
BEFORE = np.array([[6, 4, 0, 0], [0, 10, 0, 0], [1, 3, 4, 0], [0, 0, 0, 0]])
AFTER = np.array([[10, 0, 0, 0], [0, 10, 0, 0], [4, 4, 0, 0], [0, 0, 0, 0]])


def figure(**more: Any) -> dict[str, Any]:
    """What a run leaves: road gained, pole lost, ghost is nowhere."""
    draw = np.random.default_rng(0)
    masks = draw.integers(0, 3, (3, 30, 40)).astype(np.uint8)
    image = draw.integers(0, 255, (3, 30, 40)).astype(np.uint8)
    given: dict[str, Any] = {
        "started": "weights after stage warm",
        "before": BEFORE,
        "after": AFTER,
        "names": [f"{k}.png" for k in range(8)],
        "scores": [(0.5, 0.4 + k / 20) for k in range(8)],
        "show": lambda _: Shown2(image, *masks),
        "kept": [0.5, 0.75, None, 1.0],
        "thresholds": [0.9, 0.5, 0.0, 0.25],
        "source_share": [0.5, 0.3, 0.2, 0.0],
    }
    return adaptation_figure("test", plain_map(NAMES), **(given | more))


def record(name: str, part: str, **means: float) -> dict[str, Any]:
    return {
        "protocol": name,
        "metric": "mIoU",
        "unit": "part",
        "split": {"name": part, "count": 1},
        "readouts": {key: {"mean": mean, "std": None, "per_split": [mean]} for key, mean in means.items()},
    }


def filled(folder: Path, values: Any = None, config: dict[str, Any] = CONFIG) -> RunFolder:
    """A finished adaptation with an earlier stage that looked at the gap and one that did not."""
    run = fill(folder / "run", steps=30)
    run.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    write(run.figures / "adaptation.json", figure() if values is None else values)
    protocols = [
        record("miou", "test", initial=0.4, trained=0.5),
        record("miou:source", "val", initial=0.6, trained=0.55),
    ]
    write(
        run.results,
        {
            "protocols": {one["protocol"]: one for one in protocols},
            "training_seconds": 60.0,
            "stage_seconds": {"source": 30.0, "warm": 90.0},
            "label_free": {"entropy": 0.25},
        },
    )
    lines(run.metrics, 30, {9: 0.3, 29: 0.2})
    lines(folder / "stages" / "aa" / "metrics.jsonl", 5, {})
    lines(folder / "stages" / "bb" / "metrics.jsonl", 20, {0: 0.8, 19: 0.6})
    for name, key in (("source", "aa"), ("warm", "bb")):
        write(run.stages / f"{name}.json", {"key": key, "folder": f"../stages/{key}"})
    return run


def lines(path: Path, steps: int, gaps: dict[int, float]) -> None:
    """Metrics with the loss in each row and the gap in few."""
    rows = [
        {"t": t, "loss": 1.0} | ({"domain_gap": gaps[t], "target_entropy": gaps[t] / 2} if t in gaps else {})
        for t in range(steps)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def part(html: str, anchor: str) -> Any:
    found = parsed(html).find(f".//section[@id='{anchor}']")
    assert found is not None
    return found


def test_values_sections(tmp_path: Path) -> None:
    html = run_page(filled(tmp_path))
    assert [one for one in anchors(html) if one in ("results", "before-after", "gain", "gap", "loss")] == [
        "results",
        "before-after",
        "gain",
        "gap",
        "loss",
    ]
    self_contained(re.sub(r"<img [^>]*/>", "", html))


def test_values_results_box(tmp_path: Path) -> None:
    """The readout is named by when it was; each record by its domain; other images do not contradict."""
    text = said(run_page(filled(tmp_path)))
    assert "+10.0 points over the network before the last stage" in text
    assert "Trained 0.500 against 0.400 before the last stage (mIoU)." in text
    assert "Measured on target images, part test." in text
    assert "On held-out source images, part val (miou:source): −5.0 points against" in text
    assert "disagree" not in text
    assert "initial" not in text
    assert "Labels of the target chose" not in text
    table = part(run_page(filled(tmp_path)), "results").find(".//table")
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert rows[0][2] == "gain"
    assert rows[1][0].startswith("before the last stage ")
    assert rows[2][2] == "+10.0 points"


def test_values_domain_of_a_record() -> None:
    """Said by the record itself, or by its neighbours; where neither tells, nothing is claimed."""

    def on(*records: dict[str, Any]) -> list[Any]:
        results = {"protocols": {one["protocol"]: one for one in records}}
        return [one["on"] for one in placed(results, CONFIG)["protocols"].values()]

    main = record("miou", "val", trained=0.5)
    assert on(main) == [None]
    assert on(main | {"domain": "source"}) == ["held-out source images, part val"]
    assert on(main | {"domain": "target"}) == ["target images, part val"]
    assert on(main, record("miou:source", "val")) == [
        "target images, part val",
        "held-out source images, part val",
    ]
    assert (
        "on" not in placed({"protocols": {"miou": main}}, {"data": {"kind": "scenes"}})["protocols"]["miou"]
    )


def test_values_without_stages(tmp_path: Path) -> None:
    """Weights from elsewhere are not "before the last stage"."""
    config = CONFIG | {"stages": {}}
    assert readout_names(config) == {}
    assert "over the weights it started from" in said(run_page(filled(tmp_path, config=config)))
    one = record("miou", "test", initial=0.4, trained=0.3)
    assert judge(one).reasons == ("Trained is 10.0 points below the weights it started from.",)
    assert judge(one, {"initial": "before the last stage"}).reasons == (
        "Trained is 10.0 points below the network before the last stage.",
    )


def test_values_selected_by_target(tmp_path: Path) -> None:
    config = CONFIG | {"evaluation": {"protocol": "miou", "select": "best_target_val"}}
    text = said(run_page(filled(tmp_path, config=config)))
    assert "Labels of the target chose the weights." in text


def test_values_pictures(tmp_path: Path) -> None:
    section = part(run_page(filled(tmp_path)), "before-after")
    heads = ["".join(node.itertext()) for node in section.iter("figcaption")]
    assert heads[0] == "Gained most 7.png mIoU 0.500 → 0.750, +25.0 points"
    assert heads[1] == "Lost most 0.png mIoU 0.500 → 0.400, −10.0 points"
    assert [head.split(" ")[0:2] for head in heads[2:]] == [
        ["Typical", heads[2].split(" ")[1]],
        ["Gained", "most,"],
        ["Lost", "most,"],
        ["Typical", heads[5].split(" ")[1]],
    ]
    described = [node.attrib["alt"] for node in section.iter("img")]
    assert described[:4] == [f"{what} of 7.png" for what in ("image", "label", "before", "after")]
    assert ["".join(node.itertext()) for node in section.iter("li")] == list(NAMES)
    assert "Before: weights after stage warm." in "".join(section.itertext())


def test_values_gains(tmp_path: Path) -> None:
    """Sorted by gain; a gain is filled, a loss hollow and dashed; numbers stand beside both."""
    section = part(run_page(filled(tmp_path)), "gain")
    described = next(node.text for node in section.iter("desc")) or ""
    assert described.startswith("road: IoU 0.545 before, 0.714 after, +16.9 points; ")
    assert [one.split(":")[0] for one in described.split("; ")] == ["road", "building", "pole", "ghost"]
    chart = section.findall(".//svg[@role='img']")[0]
    rects = [(node.get("class"), node.get("stroke-dasharray")) for node in chart.iter("rect")]
    assert rects == [("bar", None), ("bar", None), ("found", "4 2.5")]
    text = "".join(section.itertext())
    assert "classes that gained2" in text
    assert "that lost1" in text
    rows = [["".join(cell.itertext()).strip() for cell in row] for row in section.iter("tr")]
    assert rows[3] == ["pole", "0.500", "0.000", "−50.0", "–", "0.000", "20.0 %", "–"]
    assert rows[4][:4] == ["ghost", "–", "–", "–"]


def test_values_kept(tmp_path: Path) -> None:
    """Shares of the figure; else those that the manifest of the stage holds, if it is of these classes."""
    drawn = part(run_page(filled(tmp_path)), "gain").findall(".//svg[@role='img']")[1]
    assert (
        drawn.find("desc").text
        == "road: 50.0 %, ≥ 0.90; building: 75.0 %, ≥ 0.50; pole: –; ghost: 100 %, ≥ 0.25"
    )
    run = filled(tmp_path / "b", figure(kept=None, thresholds=None))
    assert "Pseudo labels kept" not in run_page(run)
    write(run.stages / "pseudo-labels.json", {"key": "cc", "folder": "../stages/cc"})
    manifest = {
        "classes": {"names": list(NAMES)},
        "kept_share": [0.25, None, 0.5, 7],
        "thresholds": [0.9, 0, 0.3, None],
    }
    write(tmp_path / "b" / "stages" / "cc" / "manifest.json", manifest)
    drawn = part(run_page(run), "gain").findall(".//svg[@role='img']")[1]
    assert drawn.find("desc").text == "road: 25.0 %, ≥ 0.90; building: –; pole: 50.0 %, ≥ 0.30; ghost: –"
    write(
        tmp_path / "b" / "stages" / "cc" / "manifest.json",
        manifest | {"classes": {"names": ["a", "b", "c", "d"]}},
    )
    assert "Pseudo labels kept" not in run_page(run)


def test_values_gap(tmp_path: Path) -> None:
    """Rows are sparse; stages stand one after the other from the first that looked, with a line between."""
    run = filled(tmp_path)
    html = run_page(run)
    section = part(html, "gap")
    charts = section.findall(".//svg[@role='img']")
    assert [chart.find("title").text for chart in charts] == [
        "gap between the domains",
        "entropy on the target",
    ]
    assert charts[0].find("desc").text == (
        "gap between the domains over iteration 0 to 49, from 0.2 to 0.8. last stage begins at 20."
    )
    zero = [node for node in charts[0].iter("line") if node.get("class") == "zero"]
    assert len(zero) == 1
    text = "".join(section.itertext())
    assert "Stages in order: warm, last stage" in text
    assert "entropy0.25" in text
    assert "domain gap" not in said(html)  # no second chart under Training
    assert [name for name, _ in stage_metrics(run, CONFIG)] == ["source", "warm", "last stage"]


def test_values_cost(tmp_path: Path) -> None:
    text = said(run_page(filled(tmp_path)))
    for told in (
        "training time, stage source 30.0 s",
        "training time, stage warm 1 min 30 s",
        "training time, last stage 1 min 0 s",
        "training time, all stages 3 min 0 s",
    ):
        assert told in text


def test_values_marks() -> None:
    """Names are cut or left out where there is no room; marks outside of the values are not drawn."""
    curve = [Curve([0, 100], [1.0, 2.0])]
    html = str(
        line_chart("x", curve, marks=[(50, "a stage of a long name " * 3), (99, "late"), (200, "never")])
    )
    assert html.count('class="zero"') == 2
    assert "…</text>" in html
    assert ">late</text>" not in html
    assert "late begins at 99." in html
    assert "never" not in html
    assert str(line_chart("x", curve)) == str(line_chart("x", curve, marks=[(-1, "early")]))


def test_degenerate_without_labels(tmp_path: Path) -> None:
    """No scores, no gains: pictures alone, and the page says that nobody knows which is right."""
    image, mask = np.zeros((3, 6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    values = figure(
        before=None, after=None, scores=None, kept=None, thresholds=None,
        show=lambda _: Shown2(image, None, mask, mask),
    )  # fmt: skip
    html = run_page(filled(tmp_path, values))
    assert "gain" not in anchors(html)
    text = "".join(part(html, "before-after").itertext())
    assert "The target has no labels" in text
    assert "mIoU" not in text
    assert 'alt="label of' not in html


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "[]",
        "{broken",
        '{"classes": 3, "examples": 4, "part": 5, "before": 6}',
        '{"classes": [null, {"before": "x", "after": 1e999, "kept": -1}], "examples": [null, {}, {"image": 3}]}',
    ],
)
def test_degenerate(tmp_path: Path, content: str) -> None:
    """Strange files give a page without the sections, and with what it would have had without them."""
    run = filled(tmp_path)
    (run.figures / "adaptation.json").write_text(content)
    html = run_page(run)
    assert not {"before-after", "gain"} & set(anchors(html))
    assert {"gap", "results", "loss"} <= set(anchors(html))


@pytest.mark.parametrize(
    "entry", ["{broken", "[]", '{"folder": 3}', '{"folder": "../nowhere"}', '{"folder": "\\u0000"}']
)
def test_degenerate_pointers(tmp_path: Path, entry: str) -> None:
    """Stages that cannot be found are left out; the run's own curve stays."""
    run = filled(tmp_path)
    for name in ("warm", "pseudo-labels"):
        (run.stages / f"{name}.json").write_text(entry)
    assert [name for name, _ in stage_metrics(run, CONFIG)] == ["source", "last stage"]
    assert "iteration 9 to 29" in run_page(run)
    odd = CONFIG | {"stages": {"../../x": {}, 3: {}, "": {}}}
    assert [name for name, _ in stage_metrics(run, odd)] == ["last stage"]


def test_degenerate_metrics(tmp_path: Path) -> None:
    """Values that are no numbers are left out; a run of another kind has no such section."""
    run = filled(tmp_path)
    rows = [{"t": t, "domain_gap": v} for t, v in enumerate(["x", None, True, 10**400, [], 0.5])]
    rows += [{"t": "3", "domain_gap": 0.1}, {"domain_gap": 0.1}, {"t": -1, "domain_gap": 0.1}]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "from 0.5 to 0.8." in str(gap(run, {}, CONFIG))
    assert gap(run, {}, {"data": {"kind": "scenes"}}) is None
    (tmp_path / "empty").mkdir()
    assert gap(RunFolder(tmp_path / "empty"), {"label_free": {"entropy": "x"}}, CONFIG) is None


def test_errors_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures stop before the page is too large."""
    run = filled(tmp_path)
    monkeypatch.setattr(module, "ROOM", 100)
    assert adaptation(run, figure())[0][2] is None


def test_errors_text_is_escaped(tmp_path: Path) -> None:
    values = json.loads(json.dumps(figure()))
    values["part"] = values["before"] = ATTACK
    for one in values["classes"]:
        one["name"] = ATTACK
    for one in values["examples"]:
        one["id"] = one["kind"] = ATTACK
    bad = values["examples"][0] | {"after": values["examples"][0]["after"] + '" onerror="alert(1)'}
    values["examples"].append(bad)
    run = filled(tmp_path, values)
    html = run_page(run)
    self_contained(re.sub(r"<img [^>]*/>", "", html))
    assert "<script" not in html
    assert "onerror" not in html
    assert len(re.findall("<img ", html)) == 4 * 6
