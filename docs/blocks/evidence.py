"""What the page of GCA shows: measured scores, paired differences, dead units."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from blocks.records import GCA_RESULTS, TUNED, Record, chosen, read, spread
from blocks.settings import names
from blocks.tables import ROOT, table

Key = tuple[str, str, str, str]


def gca_evidence() -> str:
    """Our measured results, and what has not run."""
    return evidence(GCA_RESULTS, "gca")


def gca_pairs() -> str:
    """GCA against each baseline, seed by seed."""
    return pairs(GCA_RESULTS, "gca")


def evidence(file: Path, method: str) -> str:
    """One line per recipe, arm, settings and protocol of a method; settings of a dial stand elsewhere."""
    from leanlabel.recipe import packaged_recipes

    groups: dict[Key, list[Record]] = {}
    for one in chosen([one for one in read(file) if one.method == method and not one.dials]):
        groups.setdefault((one.shown, one.protocol, one.changes(), one.arm), []).append(one)
    lines = []
    for (recipe, protocol, changes, arm), runs in sorted(groups.items()):
        seconds = statistics.fmean(one.seconds for one in runs)
        scores = spread([one.value for one in runs])
        lines.append([f"`{recipe}`", arm, changes, protocol, str(len(runs)), scores, f"{seconds:,.0f}"])
    columns = ["Recipe", "Arm", "Changed settings", "Protocol", "Seeds", "Accuracy %", "Seconds"]
    done = {recipe for recipe, *_ in groups}
    open_recipes = [n for n in packaged_recipes() if n.startswith(f"{method}/") and n not in done]
    text = table(columns, lines or [["none yet", *[""] * 6]])
    return f"{text}\n\nNot run: {names(open_recipes)}." if open_recipes else text


def pairs(file: Path, method: str) -> str:
    """Paired differences of every recipe's own arm against the arms run with the same settings and seeds."""
    from leanlabel.evaluation.statistics import paired_difference

    records = [one for one in read(file) if one.method == method and not one.dials]
    tuned = {one.recipe for one in records if len(_rates(records, one)) > 1}
    groups: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    still: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for one in chosen(records):
        if one.protocol != one.config["evaluation"]["protocol"]:
            continue
        # Without training, no setting of the training matters: such an arm belongs to every group of its recipe.
        if one.steps == 0:
            arms = still.setdefault((one.recipe, one.protocol), {})
        else:
            rate = [TUNED] if one.recipe in tuned else []
            changes = ", ".join(
                part for part in (one.changes(rate), *(f"`{key}` tuned" for key in rate)) if part
            )
            arms = groups.setdefault((one.recipe, changes, one.protocol), {})
        arms.setdefault(one.arm, {})[one.seed] = one.value
    lines = []
    for (recipe, changes, protocol), trained in sorted(groups.items()):
        own, arms = recipe.replace("/", "-"), trained | still.get((recipe, protocol), {})
        for arm, values in sorted(arms.items()):
            if arm == own or own not in arms or not values.keys() & arms[own].keys():
                continue
            found = paired_difference(arms[own], values)
            interval = "{:+.2f} … {:+.2f}".format(*found.interval) if found.interval else "–"
            needed = "–" if found.seeds_needed is None else f"{found.seeds_needed:,}"
            smallest = "–" if found.detectable is None else f"{found.detectable:.2f}"
            shown = recipe if "/" in recipe else f"proofs/gca/{recipe}.yaml"
            cells = [
                f"`{shown}`",
                changes,
                arm,
                str(found.n),
                f"{found.mean:+.2f}",
                interval,
                smallest,
                needed,
            ]
            lines.append([*cells, found.verdict])
    columns = ["Recipe", "Changed settings", "GCA minus", "Seeds", "Points", "95 % interval", "Detectable"]
    return table([*columns, "Needed", "Verdict"], lines or [["none yet", *[""] * 8]])


def _rates(records: list[Record], like: Record) -> set[float]:
    same = (like.recipe, like.arm, like.seed, like.protocol, like.changes([TUNED]))
    return {
        one.lr
        for one in records
        if one.steps > 0 and (one.recipe, one.arm, one.seed, one.protocol, one.changes([TUNED])) == same
    }


def dead_units() -> str:
    """Share of dead units by learning rate, as recorded."""
    lines = []
    for text in (ROOT / "proofs" / "gca" / "dead_units.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        dead = row["dead_units"]
        shown = [f"{100 * dead[t - 1]:.0f} %" if t <= len(dead) else "–" for t in (1, 3, 5, 10, len(dead))]
        scores = [f"{100 * row['val_accuracy'][name]:.1f}" for name in ("raw", "untrained", "trained")]
        lines.append([row["activation"], f"{row['lr']:g}", *shown, *scores])
    columns = ["Activation", "lr", "after 1", "3", "5", "10", "the last"]
    return table([*columns, "raw", "untrained", "trained"], lines or [["not run", *[""] * 9]])
