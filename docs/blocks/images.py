"""MoCHi and what it is held against: scores on every data set, differences to MoCo-v2, the dial of classes."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from blocks.image_records import (
    DATA,
    KNN,
    LOGISTIC,
    MEASURES,
    METHODS,
    MIXED,
    PLAIN,
    RESULTS,
    UNIFORM,
    UNTRAINED,
    Arms,
    Measure,
    Run,
    mixed_arm,
    read,
    values,
)
from blocks.records import spread
from blocks.settings import names
from blocks.tables import table

DIALLED = {25: 320, 50: 160, 100: 80, 200: 40, 400: 20}
"""Classes -> images per class, at which the proof turns the number of classes; 200 is the recipe's."""


def mochi_field() -> str:
    """Every method on every data set."""
    return field(RESULTS)


def mochi_pairs() -> str:
    """MoCHi and its variants against MoCo-v2, seed by seed."""
    return pairs(RESULTS)


def mochi_dial() -> str:
    """The same difference over the number of classes."""
    return dial(RESULTS)


def field(file: Path) -> str:
    """One table per data set, a line per method; then the packaged recipes that have not run."""
    runs = [one for one in read(file) if not one.changed]
    columns = ["Arm", "Seeds", *(one.title for one in MEASURES), "Seconds (iterations)", "Learning rate"]
    parts: list[str] = []
    done: set[str] = set()
    for data, title in DATA.items():
        arms = Arms(one for one in runs if one.data == data)
        rows = {method: mixed_arm(data) if method == "mochi" else arm for method, arm in METHODS.items()}
        rows = {method: arm for method, arm in rows.items() if arm in arms.by}
        done |= {f"{method}/{data}" for method in rows}
        shown = [arm for arm in (UNTRAINED, *rows.values()) if arm in arms.by]
        if shown:
            parts += [
                f"**{title}**",
                table(columns, [_line(arms, arm) for arm in shown]),
                *_domains(arms, shown),
            ]
    return "\n\n".join([*parts, _not_run(done)])


def _line(arms: Arms, arm: str) -> list[str]:
    runs = arms.chosen(arm)
    cells = []
    for measure in MEASURES:
        mine = values(runs, measure)
        mark = "" if arm == PLAIN else _mark(mine, values(arms.chosen(PLAIN), measure), measure)
        cells.append(f"{measure.spread(list(mine.values()))}{mark}" if mine else "–")
    steps = {one.steps for one in runs.values()}
    seconds = statistics.fmean(one.seconds for one in runs.values())
    cost = "" if steps == {0} else f"{seconds:,.0f} ({', '.join(f'{one:,}' for one in sorted(steps))})"
    return [arm, str(len(runs)), *cells, cost, arms.told(arm)]


def _mark(mine: Mapping[int, float], others: Mapping[int, float], measure: Measure) -> str:
    """▲ or ▼, better or worse, where the 95 % paired interval of the difference to MoCo-v2 leaves out zero."""
    from leanlabel.evaluation.statistics import paired_difference

    if measure.higher is None or not mine.keys() & others.keys():
        return ""
    verdict = paired_difference(mine, others, higher_is_better=measure.higher).verdict
    return {"helps": " ▲", "hurts": " ▼"}.get(verdict, "")


def _domains(arms: Arms, shown: Iterable[str]) -> list[str]:
    """Scores within each domain, where they were measured."""
    found = {arm: [one.domains for one in arms.chosen(arm).values() if one.domains] for arm in shown}
    domains = list(dict.fromkeys(name for told in found.values() for one in told for name in one))
    lines = []
    for arm, told in found.items():
        scores = [[one[name] for one in told if name in one] for name in domains]
        if told:
            lines.append([arm, *(spread(own) if own else "–" for own in scores)])
    if not lines:
        return []
    return ["Fitted and scored within each domain, accuracy in percent:", table(["Arm", *domains], lines)]


def _not_run(done: set[str]) -> str:
    from leanlabel.recipe import packaged_recipes

    open_ones = [n for n in packaged_recipes() if n.partition("/")[0] in METHODS and n not in done]
    return f"Not run: {names(open_ones)}."


def pairs(file: Path) -> str:
    """One line per data set, arm, learning rate and measure: both scores, paired difference, verdict."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for one in read(file):
        if one.arm.startswith((PLAIN, MIXED)) and not one.dialled:
            groups.setdefault((one.data, one.changes), []).append(one)
    lines = [
        line
        for data in DATA
        for (place, changes), runs in groups.items()
        if place == data
        for line in _pairs_of(data, changes, Arms(runs))
    ]
    columns = ["Data", "Arm", "Learning rate", "Measure", "Seeds", PLAIN, "This arm", "Difference [95 %]"]
    text = table([*columns, "Detectable", "Verdict", "Changed settings"], lines or [["none yet", *[""] * 10]])
    there = {(line[0], line[1]) for line in lines}
    wanted = {"glyphs": [mixed_arm("glyphs"), *_ablation()], "cifar10": [mixed_arm("cifar10")]}
    missing = [
        f"{arm} on {DATA[data]}"
        for data, arms in wanted.items()
        for arm in arms
        if (DATA[data], arm) not in there
    ]
    return f"{text}\n\nNot run, or not yet with a partner: {'; '.join(missing)}." if missing else text


def _ablation() -> list[str]:
    """Arms of the ablation: pairs only, and the class oracle with and without mixing."""
    whole = mixed_arm("glyphs")
    pairs_only = f"{whole.rpartition(',')[0]}, 0)"
    return [pairs_only, f"{whole}, class oracle", f"{PLAIN}, class oracle"]


def _pairs_of(data: str, changes: str, arms: Arms) -> list[list[str]]:
    lines = []
    for arm in sorted(arms.by.keys() - {PLAIN}, key=lambda name: (name != mixed_arm(data), name)):
        for rate, mine, other in _met(arms, arm):
            for measure in (KNN, LOGISTIC, UNIFORM):
                one, two = values(mine, measure), values(other, measure)
                if one.keys() & two.keys():
                    lines.append([DATA[data], arm, rate, measure.title, *_pair(one, two, measure), changes])
    return lines


def _met(arms: Arms, arm: str) -> Iterable[tuple[str, dict[int, Run], dict[int, Run]]]:
    """An arm and MoCo-v2, each at its tuned rate where both were tuned over the same ones; and both at equal rates.

    A rate that only the tuning tried, with one seed, is left out where there is a tuned pair.
    """
    rates = [rate for rate in sorted(arms.tried(arm)) if rate in arms.tried(PLAIN)]
    tuned = len(rates) > 1 and set(arms.tried(arm)) == set(arms.tried(PLAIN))
    if tuned:
        one, two = arms.rate(arm), arms.rate(PLAIN)
        yield (
            f"{arms.told(arm)}{'' if one == two else f'; {PLAIN}: {two:g}'}",
            arms.chosen(arm),
            arms.chosen(PLAIN),
        )
        if one == two:
            rates.remove(one)
    for rate in rates:
        mine, other = arms.by[arm][rate], arms.by[PLAIN][rate]
        if not tuned or len(mine.keys() & other.keys()) > 1:
            yield f"{rate:g}", mine, other


def _pair(mine: Mapping[int, float], others: Mapping[int, float], measure: Measure) -> list[str]:
    """Seeds, both means, difference with its interval, detectable difference, verdict."""
    from leanlabel.evaluation.statistics import paired_difference

    common = sorted(mine.keys() & others.keys())
    found = paired_difference(mine, others, higher_is_better=measure.higher is not False)
    places = measure.digits
    low, high = (f"{end:+.{places}f}" for end in found.interval or (0.0, 0.0))
    interval = f" [{low}, {high}]" if found.interval else ""
    smallest = "–" if found.detectable is None else f"{found.detectable:.{places}f}"
    scores = [measure.spread([of[seed] for seed in common]) for of in (others, mine)]
    return [str(found.n), *scores, f"{found.mean:+.{places}f}{interval}", smallest, found.verdict]


def dial(file: Path) -> str:
    """One line per learning rate, measure and number of classes; those that were not run say so."""
    runs = [one for one in read(file) if one.data == "glyphs" and one.steps and not one.changes]
    turned = [one for one in runs if one.dialled]
    sizes = DIALLED | {one.config["data"]["classes"]: one.config["data"]["per_class"] for one in turned}
    lines = []
    for rate in sorted({one.lr for one in turned}) or [None]:
        for measure in (KNN, LOGISTIC):
            for classes, per_class in sorted(sizes.items()):
                same = [one for one in runs if one.config["data"]["classes"] == classes]
                found = _dial_line(Arms(same), rate, measure)
                last = "" if rate is None else f"{rate:g}"
                lines.append([measure.title, str(classes), str(per_class), _crowding(classes), *found, last])
    columns = [
        "Measure",
        "Classes",
        "Images per class",
        "N C / K",
        "Seeds",
        PLAIN,
        MIXED,
        "Difference [95 %]",
    ]
    return table([*columns, "Detectable", "Verdict", "Learning rate"], lines)


def _dial_line(arms: Arms, rate: float | None, measure: Measure) -> list[str]:
    mine, others = (
        {} if rate is None else values(arms.by.get(arm, {}).get(rate, {}), measure)
        for arm in (mixed_arm("glyphs"), PLAIN)
    )
    if mine.keys() & others.keys():
        return _pair(mine, others, measure)
    return [
        "–",
        *(measure.spread(list(one.values())) if one else "not run" for one in (others, mine)),
        *"–––",
    ]


@functools.cache
def _crowding(classes: int) -> str:
    """N C / K of the recipe's mixing with another number of classes."""
    from leanlabel import api

    method = api.resolve("mochi/glyphs").model_dump(mode="json")["method"]
    return f"{method['mixing']['hardest'] * classes / method['queue']:.3g}"
