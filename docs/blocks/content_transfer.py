"""Content transfer: what pasted rare classes and zero style bring, class by class, and what is kept apart."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from blocks.adaptation import _not_run, _order, _told
from blocks.adaptation_records import (
    GAP,
    HEAD,
    MAIN,
    RECIPE,
    SOURCE,
    TAIL_MEAN,
    Adapted,
    Arms,
    by_arm,
    read,
    values,
)
from blocks.dense import _pair
from blocks.image_records import Measure
from blocks.prototypes import _every, _spread, protocol
from blocks.tables import ROOT, table

RESULTS = ROOT / "proofs" / "content-transfer" / "results.jsonl"
CONTENT = "data.target.content"
"""What the second dial turns: how far what the target shows differs."""

SELF, STYLE_ONLY = "self-training", "minus-transfer"
DATA = {
    "scenes-small": "Generated scenes, one rendering to another, test",
    "camvid-dusk-small": "CamVid by day to CamVid at dusk, test_dusk",
}
"""Recipe -> title of a pair of domains with the part of the target that scores are of."""
ARMS = {
    RECIPE: "rare classes in the target's colours, and zero style (the recipe)",
    "minus-zero-style": "rare classes in the target's colours",
    "no-style": "rare classes in their own colours",
    "feature": "rare classes among the features",
    "decoded": "rare classes drawn by the decoder, and zero style",
    "half-of-classes": "half of all classes in their own colours (class-mix)",
    STYLE_ONLY: "zero style, nothing pasted",
    "no-zero": "decoder and style encoder without the zero-style losses, nothing pasted",
    "no-drift": "zero style without the part that keeps content, nothing pasted",
    SELF: "self-training: nothing pasted, no zero style",
    "adabn": "source-only and AdaBN",
    "source-only": "source-only",
}
"""Arms of `proofs/content-transfer/run.sh` -> title. All but the last two train on the same kind of pseudo labels."""
WANTED = {
    "scenes-small": tuple(ARMS),
    "camvid-dusk-small": tuple(arm for arm in ARMS if arm not in ("decoded", "no-zero", "no-drift")),
}
GAINS = {
    "no-style": "own colours",
    "minus-zero-style": "target's colours",
    "feature": "features",
    "half-of-classes": "half of all",
    STYLE_ONLY: "zero style alone",
    RECIPE: "the recipe",
}
"""Arms whose gain by class is shown."""
TURNED = (*((gap, 0.0) for gap in (0.0, 0.5, 1.0, 1.5, 2.0)), (0.0, 0.5), (0.0, 1.0))
"""Gap and content at which zero style is looked at."""
SEPARATION = (
    Measure("domain accuracy content", "label_free", "domain accuracy content"),
    Measure("domain accuracy style", "label_free", "domain accuracy style"),
    Measure("content drift", "label_free", "content drift", digits=3),
    Measure("style emptiness", "label_free", "style emptiness", digits=4),
    Measure("reconstruction error", "label_free", "reconstruction error", digits=3),
)
HEADINGS = (
    "domain by content %",
    "domain by style %",
    "content drift",
    "style emptiness",
    "reconstruction error",
)


def transfer_evidence() -> str:
    """Scores of every arm on every pair of domains."""
    return evidence(RESULTS)


def transfer_classes() -> str:
    """What each class gains."""
    return gains(RESULTS)


def transfer_separation() -> str:
    """How far content and style are apart."""
    return separation(RESULTS)


def transfer_dial() -> str:
    """Zero style over the gap, and over the content."""
    return dial(RESULTS)


def transfer_not_run() -> str:
    """What the proof wants and the file has not."""
    return not_run(RESULTS)


def evidence(file: Path) -> str:
    """One table per pair of domains: means over all, frequent and rare classes, and differences to self-training."""
    parts = []
    for data, arms in _at_home(file).items():
        runs = [one for seeds in arms.values() for one in seeds.values()]
        columns = [f"{one.title} %" for one in (MAIN, HEAD, TAIL_MEAN, SOURCE)]
        more = ("Minus self-training [95 %]", "Detectable", "Verdict", "tail mIoU", "head mIoU")
        lines = [_line(arms, arm) for arm in _order(arms, ARMS)]
        scores = table(["Arm", "Seeds", *columns, *more, "Seconds, all stages"], lines)
        parts.append(f"**{DATA[data]}**\n\n{protocol(runs)}\n\n{scores}")
    return "\n\n".join(parts) or "Not run yet."


def _line(arms: Arms, arm: str) -> list[str]:
    mine, base = arms[arm], arms.get(SELF, {})
    told = ["–"] * 5
    if arm != SELF:
        told = list(_pair(values(mine, MAIN), values(base, MAIN), MAIN))
        told += [_pair(values(mine, one), values(base, one), one)[0] for one in (TAIL_MEAN, HEAD)]
    seconds = statistics.fmean(one.seconds + one.before for one in mine.values())
    scores = [_spread(mine, one) for one in (MAIN, HEAD, TAIL_MEAN, SOURCE)]
    return [ARMS.get(arm, arm), str(len(mine)), *scores, *told, f"{seconds:,.0f}"]


def gains(file: Path) -> str:
    """Classes, the rarest first: IoU with self-training, and mean gain of each way of pasting over it."""
    parts = []
    for data, arms in _at_home(file).items():
        base = arms.get(SELF, {})
        shown = [arm for arm in GAINS if arm in arms and arms[arm].keys() & base.keys()]
        if not shown:
            continue
        shares = next(iter(base.values())).shares
        scored = next(iter(base.values())).classes
        lines = []
        for name in sorted(scored, key=lambda one: shares.get(one, 0.0)):
            known = {seed: one.classes[name] for seed, one in base.items() if name in one.classes}
            cells = [MAIN.spread(list(known.values())) if known else "–"]
            cells += [_gain(arms[arm], known, name) for arm in shown]
            lines.append([name, f"{shares.get(name, 0.0):.2f}", *cells])
        columns = ["Class", "Share %", "self-training, IoU %", *(GAINS[arm] for arm in shown)]
        parts.append(f"**{DATA[data]}**, gain over self-training in points:\n\n{table(columns, lines)}")
    return "\n\n".join(parts) or "Not run yet."


def _gain(runs: Mapping[int, Adapted], base: Mapping[int, float], name: str) -> str:
    mine = {seed: one.classes[name] for seed, one in runs.items() if name in one.classes}
    told = _pair(mine, base, MAIN)[0]
    number, _, rest = told.partition(" [")
    return number + (rest.partition("]")[2] if rest else "")


def separation(file: Path) -> str:
    """Numbers that read no label, of the arms with a term zero-style."""
    lines = []
    for data, arms in _at_home(file).items():
        for arm in _order(arms, ARMS):
            if values(arms[arm], SEPARATION[0]) or values(arms[arm], SEPARATION[2]):
                numbers = [_spread(arms[arm], one) for one in SEPARATION]
                place = DATA[data].partition(",")[0]
                lines.append([place, ARMS.get(arm, arm), str(len(arms[arm])), *numbers])
    return table(["Data", "Arm", "Seeds", *HEADINGS], lines) if lines else "Not run yet."


def dial(file: Path) -> str:
    """One line per gap and content: self-training, zero style beside it, and how far it separates."""
    found = by_place(file)
    if not found:
        return "Not run yet."
    lines = []
    for gap, content in sorted({*TURNED, *found}, key=lambda one: (one[1], one[0])):
        arms = found.get((gap, content), {})
        base, mine = arms.get(SELF, {}), arms.get(STYLE_ONLY, {})
        seeds = max(len(base), len(mine))
        told = _pair(values(mine, MAIN), values(base, MAIN), MAIN)[0]
        numbers = [_spread(mine, one) for one in SEPARATION]
        cells = [f"{gap:g}", f"{content:g}", str(seeds or "–"), _told(base), _told(mine), told, *numbers]
        lines.append(cells)
    columns = ("Gap", "Content", "Seeds", "self-training, mIoU %", "and zero style, mIoU %", "Difference")
    return table([*columns, *HEADINGS], lines)


def by_place(file: Path) -> dict[tuple[float, float], Arms]:
    """Gap and content of generated scenes -> the arms that the dials turn."""
    runs = [
        one
        for one in _read(file)
        if one.data == "scenes-small" and not one.changes and one.arm in (SELF, STYLE_ONLY)
    ]
    places = {_place(one) for one in runs}
    return {place: by_arm(one for one in runs if _place(one) == place) for place in places}


def _read(file: Path) -> list[Adapted]:
    # Scenes of the proof are others than those that its settings were chosen on.
    return read(file, "content-transfer", (GAP, CONTENT, "data.source.seed", "data.target.seed"))


def _place(one: Adapted) -> tuple[float, float]:
    return one.target.get("gap", 1.0), one.target.get("content", 0.0)


def _at_home(file: Path) -> dict[str, Arms]:
    """Recipe -> its arms at the gap of the recipe."""
    runs = [one for one in _read(file) if _place(one) == (1.0, 0.0) and not one.changes]
    found = {data: by_arm(one for one in runs if one.data == data) for data in DATA}
    return {data: arms for data, arms in found.items() if arms}


def not_run(file: Path) -> str:
    """Arms, places of the dials and packaged recipes that the file has not."""
    there, turned, missing = _at_home(file), by_place(file), []
    for data, wanted in WANTED.items():
        lacking = [ARMS[arm] for arm in wanted if arm not in there.get(data, {})]
        if lacking:
            missing.append(f"- {DATA[data]}: {_every(lacking, len(wanted), '; ', 'none of the arms')}")
    left = [_named(one) for one in TURNED if not {SELF, STYLE_ONLY} <= turned.get(one, {}).keys()]
    if left:
        told = _every(left, len(TURNED), "; ", "none of the places")
        missing.append(f"- zero style over gap and content: {told}")
    return _not_run(missing, "content-transfer", DATA) or "All that the proof asks for has run."


def _named(place: Iterable[float]) -> str:
    gap, content = place
    return f"gap {gap:g}, content {content:g}"


BLOCKS: dict[str, Callable[[], str]] = {
    "content-transfer-evidence": transfer_evidence,
    "content-transfer-classes": transfer_classes,
    "content-transfer-separation": transfer_separation,
    "content-transfer-dial": transfer_dial,
    "content-transfer-not-run": transfer_not_run,
}
