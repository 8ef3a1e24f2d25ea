"""SPCL: what contrast with prototypes does to scores and to features, with wrong pseudo labels, and over the gap."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks.adaptation import _not_run, _order, _told
from blocks.adaptation_records import HEAD, MAIN, RECIPE, SOURCE, TAIL_MEAN, Arms, by_arm, read, values
from blocks.charts import Lines, chart
from blocks.dense import _pair
from blocks.image_records import Measure
from blocks.premise_records import CONTRAST, PLAIN, PREMISE, Premise, premises
from blocks.settings import names
from blocks.tables import ROOT, table

RESULTS = ROOT / "proofs" / "spcl" / "results.jsonl"

GAP = Measure("prototype gap", "others", "prototype gap", digits=4)
CLASS_GAP = Measure("prototype class gap", "others", "prototype class gap", digits=4)
OWN = Measure("own similarity", "others", "own similarity", digits=4)
OTHER = Measure("other similarity", "others", "other similarity", digits=4)
NEAREST = Measure("nearest-prototype mIoU", "others", "nearest-prototype mIoU")
ONE_SHOT = Measure("one-shot mIoU", "others", "one-shot mIoU")
SCORES = (MAIN, HEAD, TAIL_MEAN, SOURCE, NEAREST, ONE_SHOT)

AS_PUBLISHED = "target-ce+contrast, tau 100"
MAIN_ARMS = {
    "source-only": "source-only",
    "adabn": "source-only and AdaBN",
    PLAIN: "labels of the source and pseudo labels of the target",
    CONTRAST: "the same, and contrast",
    AS_PUBLISHED: "the same, and contrast at the published temperature",
    "modern": "today's recipe (mixing, masks, rare classes)",
    "modern+contrast": "the same, and contrast (labels of the teacher)",
}
"""Arms of `proofs/spcl/premise.py main` -> title."""
WITHOUT = {
    CONTRAST: PLAIN,
    AS_PUBLISHED: PLAIN,
    "modern+contrast": "modern",
}
"""Arm with the contrast -> the same without it."""
RIVALS = ((PLAIN, "adabn"), (CONTRAST, "adabn"), ("modern", PLAIN))
"""Further pairs worth a line: what the pseudo labels buy by themselves, and today's recipe."""
SHORT = {PLAIN: "pseudo labels", CONTRAST: "and contrast"}
NOISES = (0.0, 0.1, 0.2, 0.3)
GAPS = (0.0, 0.5, 1.0, 1.5, 2.0)
LOOKS = {SHORT[PLAIN]: ("#555555", "6 4", "circle"), SHORT[CONTRAST]: ("#0072B2", "", "square")}

DATA = {
    "scenes-2021": "The five stages of 2021, generated scenes, test",
    "scenes-small": "Today's recipe, generated scenes, test",
}
"""Recipe -> title, of those that are compared on a network trained from the seed."""
ARMS = {
    RECIPE: "the recipe",
    "minus-prototypes": "without the contrast",
    "minus-stage": "without the stage of the contrast",
    "source-only": "source-only",
}
WANTED = {
    "scenes-2021": tuple(ARMS),
    "scenes-small": tuple(arm for arm in ARMS if arm != "minus-stage"),
}


def spcl_premise() -> str:
    """Scores and differences where the premise holds."""
    return premise_tables(PREMISE)


def spcl_mechanism() -> str:
    """What the contrast does to features."""
    return mechanism(PREMISE, RESULTS)


def spcl_choice() -> str:
    """How its settings were chosen."""
    return choice_table(PREMISE)


def spcl_noise() -> str:
    """With mistakes in the pseudo labels."""
    return dial_table(PREMISE, "noise", "Mistakes", NOISES)


def spcl_noise_figure() -> str:
    """That as a picture."""
    title = "mIoU on the target against the share of systematic mistakes in pseudo labels"
    return dial_picture(PREMISE, "noise", title, "share of mistakes")


def spcl_gap() -> str:
    """Over the gap between the domains."""
    return dial_table(PREMISE, "gap", "Gap", GAPS)


def spcl_gap_figure() -> str:
    """That as a picture."""
    return dial_picture(PREMISE, "gap", "mIoU on the target against the gap between the renderings", "gap")


def spcl_stages() -> str:
    """The stages of the paper and today's recipe, on a network trained from the seed."""
    return stages_tables(RESULTS)


def spcl_not_run() -> str:
    """What the proof wants and the files have not."""
    return not_run(PREMISE, RESULTS)


# ---------------------------------------------------------------------------------------- where the premise holds


def premise_tables(file: Path) -> str:
    """Scores of all arms, then paired differences; "not run yet" without a row."""
    arms = of_part(premises(file), "main")
    if not arms:
        return "Not run yet."
    lines = [
        [
            _title(arm, arms[arm]),
            str(len(arms[arm])),
            *(_spread(arms[arm], measure) for measure in SCORES),
            f"{statistics.fmean(one.seconds for one in arms[arm].values()):,.0f}",
        ]
        for arm in _order(arms, MAIN_ARMS)
    ]
    scores = table(["Arm", "Seeds", *(f"{one.title} %" for one in SCORES), "Seconds"], lines)
    pairs = [(mine, other) for mine, other in (*WITHOUT.items(), *RIVALS) if mine in arms and other in arms]
    if not pairs:
        return scores
    lines = [
        [_title(mine, arms[mine]), MAIN_ARMS[other], *differences(arms[mine], arms[other])]
        for mine, other in pairs
    ]
    told = "Paired differences, in points [95 %]:"
    return f"{scores}\n\n{told}\n\n{table(['Arm', 'Minus', *DIFFERENCES], lines)}"


def _title(arm: str, runs: Mapping[int, Premise], called: str = "") -> str:
    """An arm in words, or as it is called, with the settings of its contrast as recorded."""
    used = sorted({one.contrast for one in runs.values() if one.contrast})
    told = f" ({'; '.join(used)})" if used else ""
    return f"{called or MAIN_ARMS.get(arm, arm)}{told}"


DIFFERENCES = ("Seeds", "mIoU", "Detectable", "Verdict", "tail mIoU", "head mIoU")


def differences(mine: Mapping[int, Any], other: Mapping[int, Any]) -> list[str]:
    """Cells of `DIFFERENCES` for two arms."""
    told, smallest, verdict = _pair(values(mine, MAIN), values(other, MAIN), MAIN)
    parts = [_pair(values(mine, one), values(other, one), one)[0] for one in (TAIL_MEAN, HEAD)]
    return [str(len(mine.keys() & other.keys())), told, smallest, verdict, *parts]


def choice_table(file: Path) -> str:
    """What the settings were chosen by; the best line is marked."""
    arms = of_part(premises(file), "choose")
    if not arms:
        return "Not run yet."
    by = {arm: values(runs, SOURCE) for arm, runs in arms.items()}
    known = {arm: statistics.fmean(found.values()) for arm, found in by.items() if found and arm != PLAIN}
    best = max(known, key=lambda arm: known[arm], default=None)
    lines = []
    for arm, runs in arms.items():
        title = "no contrast" if arm == PLAIN else arm
        title = f"**{title}**" if arm == best else title
        lines.append([title, str(len(runs)), *(_spread(runs, one) for one in (SOURCE, MAIN, GAP))])
    return table(["Contrast", "Seeds", "source mIoU %", "target mIoU %", "prototype gap"], lines)


def of_part(runs: Iterable[Premise], part: str) -> dict[str, dict[int, Premise]]:
    """Arm -> seed -> run of a part without a dial; of several of a seed the newest."""
    found: dict[str, dict[int, Premise]] = {}
    for one in runs:
        if one.part == part:
            found.setdefault(one.arm, {})[one.seed] = one
    return {arm: dict(sorted(seeds.items())) for arm, seeds in found.items()}


def _spread(runs: Mapping[int, Any], measure: Measure) -> str:
    mine = list(values(runs, measure).values())
    return measure.spread(mine) if mine else "–"


# ------------------------------------------------------------------------------------------------- the mechanism


def mechanism(premise: Path, results: Path) -> str:
    """Gap with and without the contrast, seed by seed; a sentence that counts."""
    pairs: list[tuple[str, Mapping[int, Any], Mapping[int, Any]]] = [
        (_title(mine, arms[mine], MAIN_ARMS[other]), arms[mine], arms[other])
        for arms in [of_part(premises(premise), "main")]
        for mine, other in WITHOUT.items()
        if mine in arms and other in arms
    ]
    for data, found in _compared(results).items():
        if RECIPE in found and "minus-prototypes" in found:
            pairs.append((DATA[data], found[RECIPE], found["minus-prototypes"]))
    lines, rose = [], {GAP.title: [0, 0], CLASS_GAP.title: [0, 0]}
    for title, mine, other in pairs:
        for measure, over in ((GAP, "pixels"), (CLASS_GAP, "classes")):
            with_it, without = values(mine, measure), values(other, measure)
            seeds = sorted(with_it.keys() & without.keys())
            if not seeds:
                continue
            changes = [with_it[seed] - without[seed] for seed in seeds]
            rose[measure.title][0] += sum(change > 0 for change in changes)
            rose[measure.title][1] += len(changes)
            own, others = (
                _pair(values(mine, one), values(other, one), one)[0] if measure is GAP else ""
                for one in (OWN, OTHER)
            )
            each = ", ".join(f"{seed}: {change:+.3f}" for seed, change in zip(seeds, changes, strict=True))
            without_it = measure.spread([without[seed] for seed in seeds])
            lines.append([title, over, without_it, each, _pair(with_it, without, measure)[0], own, others])
    if not lines:
        return "Not run yet."
    columns = ("Contrast in", "Gap, mean over", "Without", "Change, seed by seed", "Mean change [95 %]")
    told = " and ".join(
        f"that over {over} in {rose[measure.title][0]} of {rose[measure.title][1]}"
        for measure, over in ((GAP, "pixels"), (CLASS_GAP, "classes"))
        if rose[measure.title][1]
    )
    said = f"The gap rose with the contrast: {told} runs."
    return f"{said}\n\n{table([*columns, 'Own similarity', 'Other similarity'], lines)}"


# ---------------------------------------------------------------------------------------------------------- dials


def dial_table(file: Path, part: str, heading: str, wanted: Sequence[float]) -> str:
    """One line per setting of a dial: both arms, and what the contrast adds to the score and to the gap."""
    found = by_setting(file, part)
    if not found:
        return "Not run yet."
    lines = []
    for setting in sorted({*wanted, *found}):
        arms = found.get(setting, {})
        plain, own = arms.get(PLAIN, {}), arms.get(CONTRAST, {})
        lines.append(
            [
                f"{setting:g}",
                str(max(len(plain), len(own)) or "–"),
                *(_told(runs) for runs in (plain, own)),
                *_pair(values(own, MAIN), values(plain, MAIN), MAIN),
                _pair(values(own, TAIL_MEAN), values(plain, TAIL_MEAN), TAIL_MEAN)[0],
                _pair(values(own, GAP), values(plain, GAP), GAP)[0],
            ]
        )
    used = sorted({run.contrast for arms in found.values() for run in arms.get(CONTRAST, {}).values()} - {""})
    said = f"Contrast: {'; '.join(used)}.\n\n" if used else ""
    titles = [f"{SHORT[arm]}, mIoU %" for arm in (PLAIN, CONTRAST)]
    more = ("Difference [95 %]", "Detectable", "Verdict", "tail mIoU", "prototype gap")
    return said + table([heading, "Seeds", *titles, *more], lines)


def dial_picture(file: Path, part: str, title: str, label: str) -> str:
    """mIoU on the target over a dial, with the contrast and without."""
    lines: dict[str, dict[float, list[float]]] = {name: {} for name in LOOKS}
    for setting, arms in sorted(by_setting(file, part).items()):
        for arm, runs in arms.items():
            mine = list(values(runs, MAIN).values())
            if mine and arm in SHORT:
                lines[SHORT[arm]][setting] = mine
    drawn: Lines | None = lines if any(lines.values()) else None
    return chart(title, [("Generated scenes, 256 features", drawn)], label, LOOKS, "mIoU %")


def by_setting(file: Path, part: str) -> dict[float, dict[str, dict[int, Premise]]]:
    """Setting of a dial -> arm -> seed -> run."""
    runs = [one for one in premises(file) if one.part == part and one.setting is not None]
    settings = sorted({one.setting for one in runs if one.setting is not None})
    return {setting: of_part((one for one in runs if one.setting == setting), part) for setting in settings}


# ------------------------------------------------------------------------------------------- from the seed, staged


def stages_tables(file: Path) -> str:
    """One table per recipe: scores, and differences to the same without the contrast."""
    compared, parts = _compared(file), []
    for data, arms in compared.items():
        runs = [one for seeds in arms.values() for one in seeds.values()]
        lines = []
        for arm in _order(arms, ARMS):
            mine, other = arms[arm], arms.get("minus-prototypes", {})
            told = (
                ["–"] * 3
                if arm == "minus-prototypes"
                else list(_pair(values(mine, MAIN), values(other, MAIN), MAIN))
            )
            scores = [_spread(mine, one) for one in (MAIN, HEAD, TAIL_MEAN, SOURCE, GAP)]
            seconds = statistics.fmean(one.seconds + one.before for one in mine.values())
            lines.append([ARMS.get(arm, arm), str(len(mine)), *scores, *told, f"{seconds:,.0f}"])
        columns = ["Arm", "Seeds", *(f"{one.title} %" for one in (MAIN, HEAD, TAIL_MEAN, SOURCE)), GAP.title]
        columns += ["Minus without the contrast [95 %]", "Detectable", "Verdict", "Seconds, all stages"]
        parts.append(f"**{DATA[data]}**\n\n{protocol(runs)}\n\n{table(columns, lines)}")
    return "\n\n".join(parts) or "Not run yet."


def _compared(file: Path) -> dict[str, Arms]:
    """Recipe -> its arms, where nothing but the scenes' seeds departs from the recipe."""
    runs = [
        one
        for one in read(file, "spcl", ("data.source.seed", "data.target.seed"))
        if not one.changes and one.data in DATA
    ]
    found = {data: by_arm(one for one in runs if one.data == data) for data in DATA}
    return {data: arms for data, arms in found.items() if arms}


def protocol(runs: Sequence[Any]) -> str:
    """Seeds, iterations of every training and choice of weights, as recorded."""
    seeds = ", ".join(map(str, sorted({one.seed for one in runs})))
    config = next((one for one in runs if one.arm == RECIPE), runs[0]).config
    trained = [
        f"{section.get('steps', config['steps']):,} ({name})"
        for name, section in (config.get("stages") or {}).items()
        if section is not None and section.get("steps", config["steps"])
    ]
    first = f" after {' and '.join(trained)}" if trained else ""
    chosen = "; ".join(sorted({one.selection for one in runs}))
    return f"Seeds {seeds}; {config['steps']:,} iterations{first}; {chosen}."


# ------------------------------------------------------------------------------------------------------- not run


def not_run(premise: Path, results: Path) -> str:
    """Arms, settings and packaged recipes that the files have not."""
    runs, missing = premises(premise), []
    there = of_part(runs, "main")
    if not of_part(runs, "choose"):
        missing.append("- the choice of weight, mean and temperature")
    lacking = [title for arm, title in MAIN_ARMS.items() if arm not in there]
    if lacking:
        missing.append(
            f"- wide features behind a pre-trained encoder: {_every(lacking, len(MAIN_ARMS), '; ', 'none of the arms')}"
        )
    for part, title, wanted in (("noise", "mistakes in pseudo labels", NOISES), ("gap", "the gap", GAPS)):
        found = by_setting(premise, part)
        left = [f"{one:g}" for one in wanted if not {PLAIN, CONTRAST} <= found.get(one, {}).keys()]
        if left:
            missing.append(f"- {title}: {_every(left, len(wanted), ', ', 'none of the settings')}")
    compared = _compared(results)
    for data, arms in WANTED.items():
        left = [ARMS[arm] for arm in arms if arm not in compared.get(data, {})]
        if left:
            missing.append(
                f"- {names([f'spcl/{data}'])}: {_every(left, len(arms), '; ', 'none of the arms')}"
            )
    return _not_run(missing, "spcl", [*DATA, "scenes-target"]) or "All that the proof asks for has run."


def _every(lacking: Sequence[str], of: int, between: str, none: str) -> str:
    return none if len(lacking) == of else between.join(lacking)


BLOCKS: dict[str, Callable[[], str]] = {
    "spcl-premise": spcl_premise,
    "spcl-mechanism": spcl_mechanism,
    "spcl-choice": spcl_choice,
    "spcl-noise": spcl_noise,
    "spcl-gap": spcl_gap,
    "spcl-stages": spcl_stages,
    "spcl-not-run": spcl_not_run,
}
FIGURES = {"spcl-noise.svg": spcl_noise_figure, "spcl-gap.svg": spcl_gap_figure}
