"""Adaptation and feature regression: scores of every arm on both domains, differences, and what turning a dial does."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks.adaptation_records import (
    ADAPTED,
    GAP,
    MAIN,
    MEASURES,
    RECIPE,
    REGRESSED,
    SENSOR,
    SHIFT,
    Adapted,
    Arms,
    Measured,
    by_arm,
    read,
    values,
)
from blocks.charts import chart
from blocks.dense import _pair
from blocks.settings import COLUMNS, names, rows, schema
from blocks.tables import table

BASE, ADABN = "source-only", "adabn"
DATA = {
    "scenes-small": "Generated scenes, one rendering to another, test",
    "camvid-dusk-small": "CamVid by day to CamVid at dusk, test_dusk",
    "scenes-camvid-small": "Generated scenes to CamVid, test_dusk",
}
"""Recipe -> title of a pair of domains with the part of the target that scores are of."""
ARMS = {
    RECIPE: "the recipe (mixing, masks, rare classes, AdaBN)",
    BASE: "source-only",
    ADABN: "source-only and AdaBN",
    "self-training": "stored pseudo labels, by the network after AdaBN",
    "warm-up": "adversary",
    "minus-mix": "the recipe without class-mix",
    "minus-masked": "the recipe without masked-consistency",
    "minus-rare": "the recipe, images drawn evenly",
    "minus-teacher-norm": "the recipe, running statistics in the teacher",
    "minus-adabn": "the recipe without AdaBN",
    "target-supervised": "labels of the target (upper bound)",
}
"""Arms of `proofs/adapt/run.sh` -> title."""
FEW = (RECIPE, BASE, ADABN, "self-training", "target-supervised")
WANTED = {"scenes-small": tuple(ARMS), "camvid-dusk-small": FEW, "scenes-camvid-small": FEW}
GAPS = (0.0, 0.5, 1.0, 1.5, 2.0)
GAP_LOOKS = {
    ARMS[BASE]: ("#555555", "6 4", "circle"),
    ARMS[ADABN]: ("#D55E00", "2 3", "diamond"),
    ARMS[RECIPE]: ("#0072B2", "", "square"),
}

REGRESSION = {
    "unadapted": "unadapted",
    "adabn": "AdaBN",
    RECIPE: "feature regression",
    "logit-distillation": "distilled scores",
    "self-training": "pseudo labels",
    "mask-reuse": "mask re-use",
    "labelled": "labels of the new sensor (upper bound)",
}
"""Arms of `proofs/feature-regression/run.sh` -> title."""
SENSORS = ("camera", "inversion", "grey-blur")
SHIFTS = ("up to 5", "none", "always 4 right")
TOLERANT = {
    "mask-reuse": "mask re-use",
    RECIPE: "place by place",
    "pooled": "pooled 2 x 2",
    "global": "one shift",
}
FAR = (0, 2, 5, 8, 12)
"""Largest random shift, in pixels, at which how far images may be off is looked at."""


# ------------------------------------------------------------------------------------------------- adaptation


def adapt_evidence() -> str:
    """Scores of every arm on every pair of domains."""
    return evidence(ADAPTED)


def adapt_gap() -> str:
    """What is gained over the size of the gap."""
    return gap_table(ADAPTED)


def adapt_gap_figure() -> str:
    """That as a picture."""
    return gap_picture(ADAPTED)


def evidence(file: Path) -> str:
    """One table per pair of domains, and what has not run."""
    runs, parts, missing = _adapted(file), [], []
    for data, title in DATA.items():
        mine = [one for one in runs if one.data == data and _at_home(one)]
        for changes in sorted({one.changes for one in mine}):
            same = [one for one in mine if one.changes == changes]
            arms = by_arm(same)
            told = f" ({changes})" if changes else ""
            parts.append(f"**{title}**{told}\n\n{_protocol(same)}")
            columns = ["Arm", "Seeds", *(f"{one.title} %" for one in MEASURES), "Minus source-only [95 %]"]
            lines = [_line(arms, arm) for arm in _order(arms, ARMS)]
            parts.append(table([*columns, "Detectable", "Verdict", "Minus AdaBN", "Seconds"], lines))
        there = {one.arm for one in mine}
        lacking = [ARMS[arm] for arm in WANTED[data] if arm not in there]
        if lacking:
            every = "none of the arms" if len(lacking) == len(WANTED[data]) else "; ".join(lacking)
            missing.append(f"- {title}: {every}")
    return "\n\n".join([*parts, _not_run(missing, "adapt", DATA)])


def _adapted(file: Path) -> list[Adapted]:
    # Scenes of the proof are others than those that its settings were chosen on.
    return read(file, "adapt", (GAP, "data.source.seed", "data.target.seed"))


def _at_home(one: Adapted) -> bool:
    """Whether a run has the gap of its recipe."""
    return one.target.get("gap", 1.0) == 1.0


def _protocol(runs: Sequence[Adapted]) -> str:
    """Seeds, iterations and choice of weights, as recorded."""
    seeds = ", ".join(map(str, sorted({one.seed for one in runs})))
    steps = sorted({one.steps for one in runs if one.steps})
    stages = [
        f"{section.get('steps', 0):,}"
        for name, section in runs[0].config.get("stages", {}).items()
        if name == "source"
    ]
    first = f" after {stages[0]} on the source" if stages else ""
    chosen = "; ".join(sorted({one.selection for one in runs}))
    return f"Seeds {seeds}; {' or '.join(f'{one:,}' for one in steps) or 'no'} iterations{first}; {chosen}."


def _order(arms: Iterable[str], known: Mapping[str, str]) -> list[str]:
    order = {name: place for place, name in enumerate(known)}
    return sorted(arms, key=lambda arm: (order.get(arm, len(order)), arm))


def _line(arms: Arms, arm: str) -> list[str]:
    runs = arms[arm]
    cells = []
    for measure in MEASURES:
        mine = list(values(runs, measure).values())
        cells.append(measure.spread(mine) if mine else "–")
    told = ["–", "–", "–", "–"]
    if arm != BASE:
        base, norms = (values(arms.get(one, {}), MAIN) for one in (BASE, ADABN))
        told = [*_pair(values(runs, MAIN), base, MAIN)]
        told.append("–" if arm == ADABN else _pair(values(runs, MAIN), norms, MAIN)[0])
    seconds = statistics.fmean(one.seconds for one in runs.values())
    return [ARMS.get(arm, arm), str(len(runs)), *cells, *told, f"{seconds:,.0f}"]


def _not_run(missing: Sequence[str], folder: str, done: Iterable[str]) -> str:
    """What the proof wants and the file has not, and the packaged recipes that no proof runs."""
    from leanlabel.recipe import packaged_recipes

    rest = [
        name
        for name in packaged_recipes()
        if name.partition("/")[0] == folder and name.partition("/")[2] not in set(done)
    ]
    lines = [*missing, *([f"- the recipes {names(rest)}"] if rest else [])]
    return "\n".join(["Not run:", "", *lines]) if lines else ""


def gap_table(file: Path) -> str:
    """One line per size of the gap: both plain arms, the recipe, and what it adds to each."""
    lines = []
    for gap, arms in _by_gap(file).items():
        cells = [_told(arms.get(arm, {})) for arm in (BASE, ADABN, RECIPE)]
        mine = values(arms.get(RECIPE, {}), MAIN)
        pairs = [_pair(mine, values(arms.get(arm, {}), MAIN), MAIN)[0] for arm in (BASE, ADABN)]
        seeds = max((len(runs) for runs in arms.values()), default=0)
        lines.append([f"{gap:g}", str(seeds or "–"), *cells, *pairs])
    columns = ["Gap", "Seeds", *(f"{name}, mIoU %" for name in ("source-only", "and AdaBN", "the recipe"))]
    return table([*columns, "recipe − source-only", "recipe − AdaBN"], lines)


def gap_picture(file: Path) -> str:
    """mIoU on the target over the size of the gap."""
    lines: dict[str, dict[float, list[float]]] = {ARMS[arm]: {} for arm in (BASE, ADABN, RECIPE)}
    for gap, arms in _by_gap(file).items():
        for arm in (BASE, ADABN, RECIPE):
            mine = list(values(arms.get(arm, {}), MAIN).values())
            if mine:
                lines[ARMS[arm]][gap] = mine
    title = "mIoU on the target against the gap between the renderings"
    drawn = lines if any(lines.values()) else None
    return chart(title, [("Generated scenes", drawn)], "gap", GAP_LOOKS, "mIoU %")


def _by_gap(file: Path) -> dict[float, Arms]:
    """Gap -> arms on generated scenes with no other change; all that are wanted or there."""
    runs = [one for one in _adapted(file) if one.data == "scenes-small" and not one.changes]
    gaps = sorted({*GAPS, *(one.target["gap"] for one in runs)})
    return {gap: by_arm(one for one in runs if one.target["gap"] == gap) for gap in gaps}


# ------------------------------------------------------------------------------------------ feature regression


def regression_evidence() -> str:
    """Scores and differences of every arm, by sensor and shift."""
    return sensors(REGRESSED)


def regression_shift() -> str:
    """How far off images may be."""
    return shift_table(REGRESSED)


def sensors(file: Path) -> str:
    """Scores by sensor, shift and arm; what regression adds to each rival; what has not run."""
    found = _by_sensor(file)
    scores, pairs, missing = [], [], []
    wanted = [(sensor, shift) for sensor in SENSORS for shift in SHIFTS]
    for key in sorted({*found, *wanted}, key=lambda one: _place(one, wanted)):
        arms = found.get(key, {})
        lacking = [title for arm, title in REGRESSION.items() if arm not in arms]
        if key in wanted and lacking:
            every = "none of the arms" if len(lacking) == len(REGRESSION) else "; ".join(lacking)
            missing.append(f"- {key[0]}, shift {key[1]}: {every}")
        if not arms:
            continue
        seeds = str(max(len(runs) for runs in arms.values()))
        scores.append([*key, seeds, *(_told(arms.get(arm, {})) for arm in REGRESSION)])
        mine = values(arms.get(RECIPE, {}), MAIN)
        rivals = [arm for arm in REGRESSION if arm != RECIPE]
        pairs.append([*key, *(_pair(mine, values(arms.get(arm, {}), MAIN), MAIN)[0] for arm in rivals)])
    parts = []
    if scores:
        chosen = sorted(
            {one.selection for arms in found.values() for runs in arms.values() for one in runs.values()}
        )
        columns = ["Sensor", "Shift, pixels", "Seeds", *(f"{title}, mIoU %" for title in REGRESSION.values())]
        parts += [
            f"CamVid at 160 x 120 as another sensor shows it, val; {'; '.join(chosen)}.",
            table(columns, scores),
        ]
        rivals = [title for arm, title in REGRESSION.items() if arm != RECIPE]
        columns = ["Sensor", "Shift, pixels", *(f"− {title}" for title in rivals)]
        parts += ["Feature regression minus, in points of mIoU [95 %]:", table(columns, pairs)]
    return "\n\n".join([*parts, _not_run(missing, "feature-regression", ["camvid-small"])])


def _regressed(file: Path) -> list[Adapted]:
    # Another number of channels has another mean and standard deviation.
    return read(file, "feature-regression", (SENSOR, SHIFT, "target_augment", "data.target.seed"))


def _by_sensor(file: Path) -> dict[tuple[str, str], Arms]:
    found: dict[tuple[str, str], list[Adapted]] = {}
    for one in _regressed(file):
        if one.data == "camvid-small" and not one.changes and one.arm in REGRESSION:
            found.setdefault((sensor_name(one.target["sensor"]), shift_name(one.target["shift"])), []).append(
                one
            )
    arms = {key: by_arm(runs) for key, runs in found.items()}
    return {
        key: one for key, one in arms.items() if key[1] in SHIFTS
    }  # the others stand in the table of shifts


def _place(key: tuple[str, str], wanted: Sequence[tuple[str, str]]) -> tuple[int, str, str]:
    return (wanted.index(key) if key in wanted else len(wanted), *key)


def sensor_name(sensor: Any) -> str:
    """A sensor by its name; settings of one's own are told as such."""
    return sensor if isinstance(sensor, str) else "own settings"


def shift_name(shift: Mapping[str, Any]) -> str:
    """A shift in words."""
    down, right = shift.get("constant", (0, 0))
    rest = [key for key in ("rotate", "shear", "zoom", "elastic") if shift.get(key)]
    parts = [f"up to {shift['random']}"] if shift.get("random") else []
    parts += (
        [f"always {right} right" if not down else f"always {down} down, {right} right"]
        if down or right
        else []
    )
    return ", ".join([*parts, *rest]) or "none"


def shift_table(file: Path) -> str:
    """One line per size of the shift: mask re-use, and regression with each tolerance."""
    runs = [
        one
        for one in _regressed(file)
        if one.data == "camvid-small" and one.arm in TOLERANT and sensor_name(one.target["sensor"]) == "camera"
        and not one.changes
    ]  # fmt: skip
    lines = []
    for far in FAR:
        name = f"up to {far}" if far else "none"
        arms = by_arm(one for one in runs if shift_name(one.target["shift"]) == name)
        cells = [_told(arms.get(arm, {})) for arm in TOLERANT]
        other = values(arms.get("mask-reuse", {}), MAIN)
        pairs = [
            _pair(values(arms.get(arm, {}), MAIN), other, MAIN)[0] for arm in TOLERANT if arm != "mask-reuse"
        ]
        seeds = max((len(found) for found in arms.values()), default=0)
        lines.append([name, str(seeds or "–"), *cells, *pairs])
    columns = ["Shift, pixels", "Seeds", *(f"{title}, mIoU %" for title in TOLERANT.values())]
    rest = [f"{title} − mask re-use" for arm, title in TOLERANT.items() if arm != "mask-reuse"]
    return table([*columns, *rest], lines)


def _told(runs: Mapping[int, Measured]) -> str:
    mine = list(values(runs, MAIN).values())
    return MAIN.spread(mine) if mine else "not run"


# -------------------------------------------------------------------------------------------------- settings


def adapt_settings() -> str:
    """Keys of adaptation that segmentation has not, under the section of either domain or of the target's views."""
    known = {line[0] for lines in rows(schema("segmentation")).values() for line in lines}
    plain = {tuple(line) for lines in rows(schema("segmentation")).values() for line in lines}
    found = []
    for lines in rows(schema("adapt")).values():
        for line in lines:
            twin = re.sub(r"^`data\.(source|target)\.", "`data.", line[0]).replace(
                "`target_augment.", "`augment."
            )
            own = twin == line[0] or twin not in known
            if tuple(line) not in plain and own and line not in found:
                found.append(line)
    return table(COLUMNS, found)
