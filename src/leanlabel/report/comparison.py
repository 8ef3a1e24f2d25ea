"""The page of a comparison: arms over seeds, paired differences, verdicts."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leanlabel.engine.runfolder import write_text
from leanlabel.report import sections
from leanlabel.report.answer import mapping
from leanlabel.report.charts import Curve, Row, interval_chart, line_chart
from leanlabel.report.choices import (
    alike,
    label_free_section,
    pending_section,
    stopped_section,
    tuning_section,
)
from leanlabel.report.dial import dial_answer, dial_section
from leanlabel.report.intervals import interval
from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import (
    MINUS,
    MISSING,
    are_shares,
    compact,
    difference,
    duration,
    finite,
    fixed,
    plural,
    signed,
)
from leanlabel.report.page import contents, header, notice, page, section, table

VERDICTS = {"helps": ("▲", "good"), "hurts": ("▼", "bad"), "cannot tell": ("◆", "warn")}
EQUAL = "equal differences"
MOST = 12
"""Differences that are drawn at the top."""
KINDS = {"helps": "gain", "hurts": "none", "cannot tell": "unclear"}


def write_comparison(path: str | Path, comparison: Mapping[str, Any]) -> Path:
    """Write one self-contained page for a comparison, finished or not.

    Args:
        path: where the page goes.
        comparison: "title", "question", "recipe", "metric", "protocol", "split", "selection"; "arms", each
            with "name", "label", "runs" (of "seed", "value", "seconds"), "mean", "std", "n"; "pairs", the
            most important first, each with "arm", "against", "difference", "low", "high", "n", "verdict",
            "minimal_detectable", "sentence"; "alarms" ("level", "sentence"); "dial", "tuning" and "label_free" as
            their sections want them; "pending" (what has not run); "stopped" ("run", "reason"); "curves" (arm -> list
            of "seed", "t", "loss"); "environment". Any of them may be missing.

    Returns:
        Path of the page.

    Raises:
        RunError: the page cannot be written; an earlier page is untouched.
    """
    write_text(Path(path), comparison_page(comparison))
    return Path(path)


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """The HTML of :func:`write_comparison`."""
    arms, pairs = _mappings(comparison.get("arms")), _mappings(comparison.get("pairs"))
    dial, pending = mapping(comparison.get("dial")), comparison.get("pending")
    turned = [arm for point in _mappings(dial.get("points")) for arm in _mappings(point.get("arms"))]
    labels = {str(arm.get("name")): _label(arm) for arm in [*arms, *turned]}
    metric = str(comparison.get("metric") or "score")
    values = [value for arm in [*arms, *turned] for value in _values(arm)]
    shares = are_shares(values)
    tuning, scores = mapping(comparison.get("tuning")), mapping(comparison.get("label_free"))
    splits, stopped = mapping(comparison.get("splits")), _mappings(comparison.get("stopped"))
    parts = [
        ("dial", "When does it help?", dial_section(dial, labels, metric, shares, _about(comparison))),
        ("arms", "Arms", _arms(comparison, arms, labels, metric)),
        ("differences", "Differences", _pairs(pairs, labels, shares, metric)),
        ("tuning", "Tuning", tuning_section(tuning, labels, splits)),
        ("label-free", "Without labels", label_free_section(scores, labels, metric)),
        ("stopped", "Stopped", stopped_section(stopped)),
        ("pending", "Not run", pending_section(pending if isinstance(pending, list) else [])),
        ("loss", "Training", _curves(mapping(comparison.get("curves")), labels)),
        ("environment", "Environment", sections.environment(mapping(comparison.get("environment")))),
    ]
    title = str(comparison.get("title") or comparison.get("recipe") or "Comparison")
    question, recipe = comparison.get("question"), comparison.get("recipe")
    named = comparison.get("recipes")
    count = len(named) if isinstance(named, list) else 1
    told = [
        plural(count, "recipe") if count > 1 else f"recipe {recipe}" if recipe else "",
        plural(len(labels), "arm"),
        plural(len(values), "finished run"),
    ]
    top = header(
        "leanlabel comparison",
        title,
        tag("p", question, class_="about") if question else None,
        tag("p", ", ".join(part for part in told if part), ".", class_="ran"),
        _alarms(_mappings(comparison.get("alarms"))),
        dial_answer(dial, labels, metric, shares)
        if dial and values
        else _answer(pairs, labels, shares, metric, bool(values)),
        contents(parts),
    )
    return page(
        f"{title} – leanlabel", top, [part for *_, part in parts], "Written by leanlabel from recorded runs."
    )


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _runs(arm: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _mappings(arm.get("runs"))


def _values(arm: Mapping[str, Any]) -> list[float]:
    return [run["value"] for run in _runs(arm) if finite(run.get("value"))]


def _label(arm: Mapping[str, Any]) -> str:
    return str(arm.get("label") or arm.get("name"))


def _alarms(alarms: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Arms that are below a baseline, above everything else; what is less certain, milder."""
    told = {
        level: [tag("li", _minus(one.get("sentence"))) for one in alarms if one.get("level") == level]
        for level in ("harm", "below")
    }
    boxes = [
        notice("bad", "ALARM: a trained arm is below a baseline.", tag("ul", *told["harm"]))
        if told["harm"]
        else None,
        notice("warn", "Below a baseline, by little or within noise.", tag("ul", *told["below"]))
        if told["below"]
        else None,
    ]
    return join(box for box in boxes if box) if any(boxes) else None


def _minus(value: Any) -> str:
    """A sentence with minus signs instead of hyphens before numbers."""
    return re.sub(r"(?<=[\s\[])-(?=\d)", MINUS, str(value))


def _answer(
    pairs: Sequence[Mapping[str, Any]], labels: Mapping[str, str], shares: bool, metric: str, any_run: bool
) -> Markup:
    if not any_run:
        return notice("info", "No run has finished yet.", tag("p", "This page is renewed as runs finish."))
    if not pairs:
        return notice(
            "info", "There is no pair of arms to compare.", tag("p", "One arm alone gives no verdict.")
        )
    first, *others = pairs
    chart = _pair_chart(pairs[:MOST], labels, shares, metric, len(pairs) - MOST)
    verdict = str(first.get("verdict"))
    way = "over" if finite(first.get("difference")) and first["difference"] > 0 else "against"
    said = [
        tag("p", difference(first.get("difference"), shares), class_="big"),
        tag("p", f"{_name(first, 'arm', labels)} {way} {_name(first, 'against', labels)}", class_="over"),
        tag("p", _verdict_sentence(first, labels, shares), class_="sentence"),
    ]
    if verdict == "hurts":
        said.append(notice("bad", "The first arm is worse than what it is compared with."))
    elif verdict != "helps":
        lines = [tag("p", _needed(first, shares))] if finite(first.get("minimal_detectable")) else []
        said.append(notice("warn", "These runs cannot tell the two apart.", *lines))
    if others:
        counted = [f"{sum(str(p.get('verdict')) == word for p in pairs)} {word}" for word in VERDICTS]
        said.append(tag("p", f"All {len(pairs)} differences: {', '.join(counted)}.", class_="other"))
    return tag(
        "div", tag("div", *said, class_="said"), chart, class_=f"answer {KINDS.get(verdict, 'unclear')}"
    )


def _interval(pair: Mapping[str, Any], shares: bool) -> str:
    if not finite(pair.get("low")):
        return "no interval from one seed"
    return EQUAL if pair.get("low") == pair.get("high") else f"95 % interval {_span(pair, shares)}"


def _verdict_sentence(pair: Mapping[str, Any], labels: Mapping[str, str], shares: bool) -> Markup:
    arm, verdict = _name(pair, "arm", labels), str(pair.get("verdict"))
    word = {"helps": f"{arm} helps", "hurts": f"{arm} hurts"}.get(verdict, "Cannot tell")
    seeds = plural(pair["n"], "paired seed") if isinstance(pair.get("n"), int) else ""
    told = [_interval(pair, shares), seeds]
    return join([tag("strong", word), f": {', '.join(part for part in told if part)}."])


def _needed(pair: Mapping[str, Any], shares: bool) -> str:
    seeds = plural(pair.get("n") or 0, "seed")
    if _beyond(pair, shares):
        return f"With {seeds}, any difference would mostly go unseen."
    return f"With {seeds}, a difference below {_smallest(pair, shares)} would mostly go unseen."


def _beyond(pair: Mapping[str, Any], shares: bool) -> bool:
    """Whether no difference of two shares is as large as what could be seen."""
    smallest = pair.get("minimal_detectable")
    return shares and finite(smallest) and abs(smallest) > 1  # type: ignore[arg-type]


def _smallest(pair: Mapping[str, Any], shares: bool) -> str:
    smallest = pair.get("minimal_detectable")
    if not finite(smallest):
        return MISSING
    return "above any difference" if _beyond(pair, shares) else difference(abs(smallest), shares).lstrip("+")  # type: ignore[arg-type]


def _span(pair: Mapping[str, Any], shares: bool) -> str:
    if not (finite(pair.get("low")) and finite(pair.get("high"))):
        return MISSING
    if pair["low"] == pair["high"]:
        return EQUAL
    if shares:
        return f"{signed(100 * pair['low'])} to {signed(100 * pair['high'])}"
    return f"{compact(float(pair['low']), 3)} to {compact(float(pair['high']), 3)}"


def _name(pair: Mapping[str, Any], key: str, labels: Mapping[str, str]) -> str:
    return labels.get(str(pair.get(key)), str(pair.get(key)))


def _pair_chart(
    pairs: Sequence[Mapping[str, Any]], labels: Mapping[str, str], shares: bool, metric: str, more: int
) -> Markup | None:
    scale = 100 if shares else 1
    rows = []
    for pair in pairs:
        if not finite(pair.get("difference")):
            continue
        ends = (pair.get("low"), pair.get("high"))
        span = (scale * ends[0], scale * ends[1]) if finite(ends[0]) and finite(ends[1]) else None  # type: ignore[operator]
        symbol, _ = VERDICTS.get(str(pair.get("verdict")), ("", ""))
        label = f"{_name(pair, 'arm', labels)} − {_name(pair, 'against', labels)}"
        rows.append(
            Row(
                label, (), scale * pair["difference"], span, symbol, "strong" if pair is pairs[0] else "plain"
            )
        )
    unit = f"difference in {metric}{', points' if shares else ''}"
    caption = join(
        [tag("b", "Paired differences"), " ", tag("span", "mean and 95 % interval over seeds", class_="soft")]
    )
    meaning = ", ".join(f"{symbol} {word}" for word, (symbol, _) in VERDICTS.items())
    note = f"Right of the dashed line the first arm is ahead. {meaning}."
    note += f" {plural(more, 'more difference')} in the table below." if more > 0 else ""
    return interval_chart(caption, rows, name="Paired differences", x_label=unit, zero=True, note=note)


def _arms(
    comparison: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], labels: Mapping[str, str], metric: str
) -> Markup | None:
    if not arms:
        return None
    rows, drawn = [], []
    stopped = {one.get("arm") for one in _mappings(comparison.get("stopped"))}
    for arm in arms:
        values = _values(arm)
        label = _label(arm)
        mean = arm.get("mean") if finite(arm.get("mean")) else statistics.fmean(values) if values else None
        seconds = [run["seconds"] for run in _runs(arm) if finite(run.get("seconds"))]
        spread = arm.get("std") if len(values) > 1 else None
        score = join([fixed(mean), tag("span", f" ± {fixed(spread)}", class_="soft")])
        cost = duration(statistics.fmean(seconds)) if seconds else MISSING
        each = [
            tag("span", f"{run.get('seed')}: {fixed(run.get('value'))}", class_="seed") for run in _runs(arm)
        ]
        listed = join(part for one in each for part in (", ", one)).removeprefix(", ")
        rows.append(
            [
                join([tag("b", label), _also(arm)]),
                score if values else "stopped" if arm.get("name") in stopped else "not run",
                len(values),
                cost,
                Markup(listed) or MISSING,
            ]
        )
        if values:
            kind = "strong" if arm is arms[0] else "plain"
            drawn.append(Row(label, values, mean, interval(values), fixed(mean), kind))
    caption = join(
        [tag("b", f"{metric.capitalize()}, mean ± standard deviation over seeds"), *_about(comparison)]
    )
    columns = ["arm", f"{metric}, mean ± std", "seeds", "time per run", "seed: value"]
    listed = table(columns, rows, caption=caption, words=(0, 4), label="Arms")
    dots = interval_chart(
        join(
            [
                tag("b", metric.capitalize()),
                " ",
                tag("span", "every seed a dot, mean, 95 % interval", class_="soft"),
            ]
        ),
        drawn,
        name=f"{metric} of each arm",
        x_label=metric,
        note="Few seeds give a wide interval; one that ends in an arrow goes on beyond the picture.",
    )
    return section("arms", "Arms", alike(arms, labels, comparison.get("protocol")), dots, listed)


def _about(comparison: Mapping[str, Any]) -> list[Markup]:
    """How the scores were measured, one line each."""
    told = [(name.capitalize(), comparison.get(name)) for name in ("protocol", "split", "selection")]
    return [tag("span", f"{name}: {_text(value)}") for name, value in told if value]


def _also(arm: Mapping[str, Any]) -> Markup | None:
    """Names of arms that are equal to this one."""
    also = arm.get("also")
    return (
        tag("span", f" also {', '.join(map(str, also))}", class_="soft")
        if isinstance(also, list) and also
        else None
    )


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {compact(one)}" for key, one in value.items())
    return str(value)


def _pairs(
    pairs: Sequence[Mapping[str, Any]], labels: Mapping[str, str], shares: bool, metric: str
) -> Markup | None:
    if not pairs:
        return None
    rows = []
    for pair in pairs:
        symbol, kind = VERDICTS.get(str(pair.get("verdict")), ("", "info"))
        rows.append(
            [
                f"{_name(pair, 'arm', labels)} − {_name(pair, 'against', labels)}",
                difference(pair.get("difference"), shares),
                _span(pair, shares),
                compact(pair.get("n")),
                _smallest(pair, shares),
                tag("span", f"{symbol} {pair.get('verdict') or MISSING}".strip(), class_=f"verdict {kind}"),
            ]
        )
    columns = ["difference", "mean", "95 % interval", "seeds", "smallest to be seen", "verdict"]
    unit = "points are hundredths of it" if shares else "in its own unit"
    caption = join(
        [
            tag("b", f"Difference in {metric}, paired by seed"),
            tag(
                "span",
                f"In {metric}; {unit}. Smallest to be seen: with 80 % power at the 5 % level",
            ),
        ]
    )
    lead = "Helps and hurts only where the interval leaves zero out."
    told = [tag("li", _minus(pair["sentence"])) for pair in pairs if pair.get("sentence")]
    listed = table(columns, rows, caption=caption, words=(0, 5))
    return section("differences", "Differences", lead, listed, tag("ul", *told) if told else None)


def _curves(curves: Mapping[str, Any], labels: Mapping[str, str]) -> Markup | None:
    charts = []
    for arm in [name for name in labels if name in curves] + [name for name in curves if name not in labels]:
        runs = [
            one
            for one in _mappings(curves[arm])
            if isinstance(one.get("t"), list) and isinstance(one.get("loss"), list)
        ]
        lines = [Curve(one["t"], one["loss"], _run_name(one)) for one in runs]
        charts.append(line_chart(labels.get(str(arm), str(arm)), lines))
    charts = [chart for chart in charts if chart]
    turned = any("label" in one for name in curves for one in _mappings(curves[name]))
    by = "setting, of the first seed" if turned else "seed"
    lead = f"Loss by arm, one line per {by}. Losses of different arms need not be comparable."
    return section("loss", "Training", lead, tag("div", *charts, class_="charts") if charts else None)


def _run_name(curve: Mapping[str, Any]) -> str:
    return ", ".join(str(part) for part in (curve.get("label"), f"seed {curve.get('seed')}") if part)
