from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_samples import (
    ATTACK,
    CONFIG,
    FINDINGS,
    anchors,
    compared,
    fill,
    parsed,
    protocol,
    said,
    self_contained,
    write,
)

from leanlabel.engine.runfolder import RunFolder
from leanlabel.errors import RunError
from leanlabel.report.answer import judge, main_protocol
from leanlabel.report.comparison import comparison_page
from leanlabel.report.findings import findings_page
from leanlabel.report.run import run_page, write_report

SECTIONS = ["warnings", "results", "loss", "embedding", "data", "monitors", "cost"]
SECTIONS += ["configuration", "environment", "files"]


@pytest.fixture
def sample_run(tmp_path: Path) -> RunFolder:
    """A finished run."""
    return fill(tmp_path / "run")


def test_values_sections_and_numbers(sample_run: RunFolder) -> None:
    path = write_report(sample_run)
    html = path.read_text(encoding="utf-8")
    assert path == sample_run.report
    assert anchors(html) == SECTIONS
    text = said(html)
    assert "Trained 0.912 against untrained 0.880 and raw 0.790 (accuracy)." in text
    assert "+3.2 points over the untrained model" in text
    assert "gca, 200 iterations, seed 0, on amazon-photo (7,650 nodes, 119,081 edges" in text
    assert "train/val/test 10 %/10 %/80 %, 20 splits, split seed 0" in text
    assert "Selection: strength with the best validation accuracy, first maximum" in text
    assert "115 nodes have no edge" in text
    assert "Training is not better here" not in text
    for piece in (
        "1,500 of 7,650 rows",
        "612 MiB",
        "322,368",
        "0.5 %",
        "97.83",
        "torch 2.13.0",
        "2 min 51 s",
        "lr: 0.01",
    ):
        assert piece in text


def test_values_table_rows(sample_run: RunFolder) -> None:
    table = next(parsed(run_page(sample_run)).iter("table"))
    rows = [[re.sub(r"\s+", " ", "".join(c.itertext())) for c in row] for row in table.iter("tr")]
    assert rows[0] == ["readout", "accuracy, mean ± std", "over untrained", "range", "splits"]
    assert rows[1][:3] == ["raw input features", "0.790 ± 0.004", "−9.0 points"]
    assert rows[2][2] == "–"
    assert rows[3][:3] == ["trained model after training", "0.912 ± 0.005", "+3.2 points"]
    assert [row.attrib.get("class") for row in table.iter("tr")] == [None, None, None, "best"]


@pytest.mark.parametrize(
    ("means", "kind", "words"),
    [
        ({"raw": 0.79, "untrained": 0.88, "trained": 0.912}, "gain", "+3.2 points over the untrained model"),
        (
            {"raw": 0.79, "untrained": 0.884, "trained": 0.880},
            "none",
            "Trained is 0.4 points below the untrained model.",
        ),
        (
            {"raw": 0.905, "untrained": 0.88, "trained": 0.90},
            "none",
            "Trained is 0.5 points below the raw features.",
        ),
        (
            {"raw": 0.79, "untrained": 0.88, "trained": 0.88},
            "none",
            "Trained and untrained model score the same.",
        ),
        (
            {"raw": 0.79, "untrained": 0.88, "trained": 0.8815},
            "unclear",
            "within its standard deviation over splits",
        ),
        ({"raw": 0.79, "trained": 0.88}, "gain", "+9.0 points over the raw features"),
        ({"trained": 0.88}, "open", "Trained 0.880 (accuracy)."),
        (
            {"raw": 0.79, "untrained": 0.88},
            "open",
            "No trained readout; accuracy: untrained 0.880, raw 0.790.",
        ),
    ],
)
def test_values_honest_answer(tmp_path: Path, means: dict[str, float], kind: str, words: str) -> None:
    run = fill(tmp_path, means)
    html = run_page(run)
    assert judge(protocol("logistic-l2", means)).kind == kind
    assert words in said(html)
    boxes = [
        node for node in parsed(html).iter("div") if node.attrib.get("class") in ("notice bad", "notice warn")
    ]
    titles = [next(box.iter("strong")).text or "" for box in boxes]
    expected = {
        "none": "Training is not better here.",
        "unclear": "One run cannot tell whether training helped.",
    }
    assert [title for title in titles if "run" not in title or "cannot" in title] == (
        [expected[kind]] if kind in expected else []
    )


def test_values_protocols_disagree(tmp_path: Path) -> None:
    run = fill(tmp_path)
    results = json.loads(run.results.read_text())
    results["protocols"]["gca-probe"] = protocol(
        "gca-probe", {"raw": 0.79, "untrained": 0.90, "trained": 0.88}
    )
    write(run.results, results)
    text = said(run_page(run))
    assert "Under gca-probe: −2.0 points against the untrained model." in text
    assert "The protocols disagree." in text
    assert main_protocol(results, {"evaluation": {"protocol": "gca-probe"}}) == "gca-probe"
    assert main_protocol(results, {"evaluation": {"protocol": "other"}}) == "logistic-l2"


def test_values_scores_that_are_not_shares() -> None:
    answer = judge(protocol("distance", {"untrained": 10.0, "trained": 12.5}, splits=1))
    assert (answer.kind, answer.big) == ("gain", "+2.5")


def test_values_deterministic(tmp_path: Path) -> None:
    first, second = fill(tmp_path / "a"), fill(tmp_path / "elsewhere" / "b")
    page = run_page(first)
    assert page == run_page(second)
    write_report(first)
    assert run_page(first) == page
    assert str(tmp_path) not in page


def test_values_self_contained(sample_run: RunFolder) -> None:
    for html in (run_page(sample_run), comparison_page(compared()), findings_page("Data", FINDINGS)):
        self_contained(html)
        assert "default-src 'none'" in list(parsed(html).iter("meta"))[3].attrib["content"]


def test_values_pictures_are_described(sample_run: RunFolder) -> None:
    for html in (run_page(sample_run), comparison_page(compared())):
        pictures = [node for node in parsed(html).iter("svg") if node.attrib.get("role") == "img"]
        assert len(pictures) >= 4
        for picture in pictures:
            assert [child.tag for child in list(picture)[:2]] == ["title", "desc"]
            assert all(child.text for child in list(picture)[:2])
            assert "nan" not in ElementTree.tostring(picture, encoding="unicode").lower()


def test_values_contrast() -> None:
    """Text on its ground has a contrast of at least 4.5 (WCAG AA), in light and in dark."""
    style = next(parsed(comparison_page({})).iter("style")).text or ""
    light = dict(re.findall(r"--([\w-]+): (#\w{6})", style.split("@media")[0]))
    dark = {**light, **dict(re.findall(r"--([\w-]+): (#\w{6})", style.split("dark) {")[1].split("* {")[0]))}
    pairs = [(ink, ground) for ink in ("ink", "soft", "accent") for ground in ("paper", "panel")]
    pairs += [
        (kind, ground) for kind in ("good", "bad", "warn", "info") for ground in (f"{kind}-bg", "panel")
    ]
    pairs += [("ink", f"{kind}-bg") for kind in ("good", "bad", "warn", "info")]
    for colours in (light, dark):
        for ink, ground in pairs:
            assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def _contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("missing", "section"),
    [
        ("config.yaml", "configuration"),
        ("environment.json", "environment"),
        ("data.json", "data"),
        ("metrics.jsonl", "loss"),
        ("results.json", "results"),
        ("warnings.json", "warnings"),
        ("figures/embedding.json", "embedding"),
    ],
)
def test_degenerate_missing_part(tmp_path: Path, missing: str, section: str) -> None:
    run = fill(tmp_path)
    (run.path / missing).unlink()
    html = run_page(run)
    left = set(SECTIONS) - set(anchors(html))
    assert section in left
    assert left <= {section, "monitors"}
    self_contained(html)


def test_degenerate_unfinished_run(tmp_path: Path) -> None:
    run = fill(tmp_path, steps=120)
    run.results.unlink()
    text = said(run_page(run))
    assert (
        "This run has no results yet. 120 of 200 iterations are recorded; nothing has been evaluated." in text
    )
    assert "cost" in anchors(run_page(run))


def test_degenerate_only_a_config(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.config.write_text(CONFIG, encoding="utf-8")
    html = run_page(run)
    assert anchors(html) == ["configuration", "files"]
    assert "None of 200 iterations are recorded" in said(html)


def test_degenerate_empty_folder(tmp_path: Path) -> None:
    assert "A run without a configuration" in said(run_page(RunFolder(tmp_path)))


@pytest.mark.parametrize(
    "content", ["null", "[]", "{}", "3", '"text"', '{"protocols": {"x": null}}', "{broken", "\udcff"]
)
def test_degenerate_strange_files(tmp_path: Path, content: str) -> None:
    run = fill(tmp_path)
    names = (
        "environment.json",
        "data.json",
        "results.json",
        "warnings.json",
        "metrics.jsonl",
        "timing.jsonl",
    )
    for name in (*names, "figures/embedding.json", "config.yaml"):
        (run.path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    html = run_page(run)
    self_contained(html)
    if content == "{broken":
        assert "results.json could not be read as JSON and is left out." in said(html)


def test_degenerate_missing_numbers(tmp_path: Path) -> None:
    run = fill(tmp_path)
    nothing = {"mean": None, "std": None, "per_split": None}
    readouts = {"trained": nothing, "untrained": {"mean": float("nan"), "per_split": []}}
    write(run.results, {"protocols": {"p": {"readouts": readouts, "per_class": [None, {"name": "a"}]}}})
    write(run.figures / "embedding.json", {"points": [[None, 1], [1]], "labels": [0]})
    write(run.data, {"classes": [{"name": "a"}, None], "counts": {"nodes": None}})
    html = run_page(run)
    assert "No readout was recorded." in said(html)
    self_contained(html)


def test_degenerate_many_classes(tmp_path: Path) -> None:
    run = fill(tmp_path)
    write(run.data, {"name": "many", "classes": [{"name": f"class {i}", "count": 1 + i} for i in range(300)]})
    text = said(run_page(run))
    assert "All 300 classes (the first 40 are drawn)" in text
    assert "class 299" in text


def test_degenerate_long_run_is_thinned(tmp_path: Path) -> None:
    run = fill(tmp_path, steps=20_000)
    html = run_page(run)
    assert len(html) < 400_000
    for path in parsed(html).iter("path"):
        if path.attrib.get("class") == "curve":
            assert path.attrib["d"].count("L") < 600


def test_errors_everything_is_escaped(tmp_path: Path) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {f"{k}{ATTACK}" if k in free else k: poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return f"{value}{ATTACK}" if isinstance(value, str) else value

    free = {"nodes", "self_loops_removed", "torch", "logistic-l2", "raw", "effective_rank", "loss", "python"}
    run = fill(tmp_path)
    for path in (run.environment, run.data, run.results, run.warnings, run.figures / "embedding.json"):
        write(path, poison(json.loads(path.read_text())))
    lines = [poison(json.loads(line)) for line in run.metrics.read_text().splitlines()]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    quoted = json.dumps("x" + ATTACK)
    run.config.write_text(
        f"about: {quoted}\nfidelity: {quoted}\ntask: {quoted}\nmethod: {{name: {quoted}}}\n"
    )
    (run.path / "<script>alert(1)<!--").write_text("")
    html = run_page(run)
    self_contained(html)
    assert anchors(html) == SECTIONS
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 50


def test_errors_unwritable(tmp_path: Path) -> None:
    run = fill(tmp_path)
    run.report.mkdir()
    (run.report / "in the way").write_text("")
    with pytest.raises(RunError, match=r"report\.html: could not be written"):
        write_report(run)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_state_import_is_light() -> None:
    modules = "leanlabel.report.run, leanlabel.report.comparison, leanlabel.report.findings"
    program = f"import sys, {modules}; sys.exit(bool({{'torch', 'matplotlib', 'scipy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
