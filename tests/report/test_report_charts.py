from __future__ import annotations

import math
import re
import statistics
from xml.etree import ElementTree

import hypothesis
import pytest
from hypothesis import strategies as st

from leanlabel.report.charts import Curve, Row, bar_chart, interval_chart, line_chart
from leanlabel.report.markup import Markup, join, tag, text
from leanlabel.report.numbers import compact, difference, duration, fixed, signed, size
from leanlabel.report.scales import Scale, linear_ticks, log_ticks, padded, thinned, tick_label
from leanlabel.report.scatter import COLOURS, SHAPES, marker, scatter_chart


def parsed(picture: Markup | None) -> ElementTree.Element:
    assert picture is not None
    return ElementTree.fromstring(picture)


def texts(picture: Markup | None) -> list[str]:
    return [node.text or "" for node in parsed(picture).iter("text")]


def test_values_markup() -> None:
    assert text("<b> & \"'") == "&lt;b&gt; &amp; &quot;&#x27;"
    assert text(Markup("<b>")) == "<b>"
    assert (
        tag("td", "<", None, tag("br"), class_="a", stroke_width="1")
        == '<td class="a" stroke-width="1">&lt;<br/></td>'
    )
    assert join(["<", None, tag("b", 1)]) == "&lt;<b>1</b>"
    assert tag("p", "a\x00b\ud800") == "<p>a\ufffdb\ufffd</p>"


def test_values_numbers() -> None:
    assert fixed(0.9124) == "0.912"
    assert fixed(float("nan")) == "–"
    assert fixed(-0.0001) == "0.000"
    assert signed(-0.4) == "−0.4"
    assert compact(-1.41) == "−1.41"
    assert compact(float("inf")) == "not finite"
    assert size(1536) == "1.50 KiB"
    assert size(612 * 2**20) == "612 MiB"
    assert duration(12.34) == "12.3 s"
    assert difference(0.0003, True) == "0.0 points"
    assert difference(12.5, False) == "+12.5"


def test_values_ticks() -> None:
    assert linear_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert linear_ticks(0.868, 0.921, 5) == [0.87, 0.88, 0.89, 0.90, 0.91, 0.92]
    assert log_ticks(0.4, 250) == [1, 10, 100]
    assert log_ticks(2, 9) == [2, 5]
    assert tick_label(-0.25, 0.05) == "−0.25"
    assert tick_label(15000, 5000) == "15k"
    assert tick_label(12500, 2500) == "12.5k"


@hypothesis.given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.sampled_from([3, 5, 8]))
def test_values_ticks_in_range(low: float, width: float, count: int) -> None:
    hypothesis.assume(low + width > low + width / 2 > low and width > abs(low) * 1e-8)
    ticks = linear_ticks(low, low + width, count)
    assert 1 <= len(ticks) <= 3 * count
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in ticks)
    assert (
        len({tick_label(tick, ticks[1] - ticks[0]) for tick in ticks}) == len(ticks)
        if len(ticks) > 1
        else True
    )


def test_values_scale() -> None:
    linear = Scale(0, 10, 100, 0)
    assert [linear(v) for v in (0, 2.5, 10, 99)] == [100, 75, 0, 0]
    log = Scale(1, 100, 0, 10, log=True)
    assert log(10) == pytest.approx(5)


def test_values_thinned_keeps_spikes() -> None:
    values = [0.0] * 10_000
    values[7777], values[123] = 9.0, -9.0
    kept = thinned(range(10_000), values)
    assert len(kept) <= 600
    assert (7777, 9.0) in kept
    assert (123, -9.0) in kept
    assert [t for t, _ in kept] == sorted(t for t, _ in kept)
    assert kept[0][0] < 40
    assert kept[-1][0] > 9_960


def test_values_line_chart_scale() -> None:
    narrow = line_chart("loss", [Curve([0, 1, 2], [2.0, 30.0, 199.0])])
    wide = line_chart("loss", [Curve([0, 1, 2], [2.0, 30.0, 200.0])])
    crossing = line_chart("loss", [Curve([0, 1, 2], [-2.0, 30.0, 900.0])])
    assert "log scale" not in str(narrow)
    assert "log scale" in str(wide)
    assert "log scale" not in str(crossing)
    (path,) = (node for node in parsed(wide).iter("path"))
    ys = [float(pair.split()[1]) for pair in path.attrib["d"][1:].split("L")]
    assert ys[0] == 162
    assert ys[2] == 10
    assert ys[1] == pytest.approx(162 - 152 * math.log(15) / math.log(100), abs=0.06)


def test_values_bars_are_proportional() -> None:
    picture = parsed(bar_chart("rows", [("a", 10, "10"), ("b", 5, "5"), ("c", None, "–")], name="rows"))
    widths = [float(node.attrib["width"]) for node in picture.iter("rect")]
    assert widths[1] == pytest.approx(widths[0] / 2, abs=0.1)
    assert widths[2] < 1


def test_values_interval_chart_positions() -> None:
    values = [0.90, 0.92]
    row = Row("arm", values, statistics.fmean(values), (0.88, 0.94), "0.910")
    picture = parsed(interval_chart("t", [row], name="n", x_label="accuracy"))
    dots = [float(node.attrib["cx"]) for node in picture.iter("circle")]
    mean = next(float(n.attrib["x1"]) for n in picture.iter("line") if n.attrib["class"] == "mean")
    span = next(n for n in picture.iter("line") if n.attrib["class"] == "span")
    assert mean == pytest.approx(sum(dots) / 2, abs=0.2)
    assert float(span.attrib["x1"]) < dots[0] < dots[1] < float(span.attrib["x2"])


def test_values_wide_interval_ends_in_an_arrow() -> None:
    row = Row("arm", [0.90, 0.91], 0.905, (0.5, 0.91))
    picture = parsed(interval_chart("t", [row], name="n", x_label="accuracy"))
    caps = [n.attrib["d"] for n in picture.iter("path")]
    assert caps == ["M6 -5L0 0L6 5", "M0 -5V5"]


def test_values_markers_tell_64_classes_apart() -> None:
    looks = {(index % COLOURS, marker(index, 3)) for index in range(64)}
    assert len(looks) == 64
    assert len({marker(index, 3) for index in range(8)}) == len(SHAPES) == 8


def test_values_scatter_keeps_shape_and_counts() -> None:
    points = [[0, 0], [4, 0], [4, 2], [float("nan"), 1]]
    picture = parsed(scatter_chart("t", points, [0, 1, -1, 0], ["one", "two"], name="n", axis="t-SNE"))
    places = {
        n.attrib["class"]: n.attrib["d"]
        for n in picture.iter("path")
        if re.match(r"M\d+\.\d ", n.attrib["d"])
    }
    x = {kind: [float(number) for number in d[1:].partition("m")[0].split()] for kind, d in places.items()}
    a, b, c = x["point p0"], x["point p1"], x["point none"]
    assert b[0] - a[0] == pytest.approx(2 * (b[1] - c[1]))
    assert [node.text for node in picture.iter("span")] == ["one", "1", "two", "1", "unlabelled", "1"]
    assert "1 point without finite coordinates left out." in "".join(picture.itertext())


def test_degenerate() -> None:
    assert line_chart("loss", []) is None
    assert line_chart("loss", [Curve([0, 1], [float("nan"), float("inf")])]) is None
    assert line_chart("loss", [Curve([0], [2.0])]) is not None
    assert "1 value not finite" in str(line_chart("loss", [Curve([0, 1, 2], [1.0, float("nan"), 2.0])]))
    assert interval_chart("t", [], name="n", x_label="x") is None
    assert interval_chart("t", [Row("a")], name="n", x_label="x") is None
    assert interval_chart("t", [Row("a", [0.5, 0.5], 0.5)], name="n", x_label="x") is not None
    assert scatter_chart("t", [], [], None, name="n", axis="a") is None
    assert scatter_chart("t", [[1, 1], [1, 1]], None, None, name="n", axis="a") is not None
    parsed(bar_chart("t", [("none", 0, "0")], name="n"))
    constant = parsed(line_chart("loss", [Curve([0, 1], [0.0, 0.0])]))
    assert "nan" not in ElementTree.tostring(constant, encoding="unicode").lower()
    assert padded([0.0]) == (-1e-3, 1e-3)


def test_degenerate_long_labels_are_cut_with_tooltip() -> None:
    label = "a class with a very long and winding name"
    picture = parsed(bar_chart("t", [(label, 1, "1")], name="n"))
    node = next(picture.iter("text"))
    assert node.findtext("title") == label
    assert "".join(node.itertext()).endswith("…")
