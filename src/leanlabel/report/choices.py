"""What stands behind a comparison: how settings were chosen, what scores without labels say, what did not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import MISSING, compact, finite, fixed, plural, signed
from leanlabel.report.page import notice, section, table, words

SCORES = {
    "effective_rank": "effective rank",
    "neighbourhood_density": "neighbourhood density",
    "entropy": "entropy of predictions",
    "teacher_agreement": "agreement with the teacher",
}


def tuning_section(
    tuning: Mapping[str, Any], labels: Mapping[str, str], splits: Mapping[str, Any] | None = None
) -> Markup | None:
    """Every point that was tried, by arm; None where nothing was tuned.

    Args:
        tuning: "criterion", "keys", "seeds", "arms" ("arm", "runs", "chosen", "why", "stopped", "points" of "label",
            "score", "stopped").
        labels: name of an arm -> its label.
        splits: "name" and "count" of the splits of a run.
    """
    arms = _rows(tuning, "arms")
    points = list(dict.fromkeys(str(one.get("label")) for arm in arms for one in _rows(arm, "points")))
    if not points:
        return None
    rows = []
    for arm in arms:
        name = labels.get(str(arm.get("arm")), str(arm.get("arm")))
        by = {str(one.get("label")): one for one in _rows(arm, "points")}
        chosen = arm.get("chosen") or (
            f"not tuned: {arm['why']}"
            if arm.get("why")
            else "none: every setting stopped"
            if arm.get("stopped")
            else "not finished"
        )
        cells = [_score(by.get(point), point == arm.get("chosen")) for point in points]
        rows.append([tag("b", name), compact(arm.get("runs")), chosen, *cells])
    seeds = tuning.get("seeds")
    told = f" ({len(seeds)})" if isinstance(seeds, list) else ""
    caption = join(
        [
            tag("b", "Validation accuracy of every setting that was tried"),
            tag("span", f"Chosen by {tuning.get('criterion') or 'validation'}; it reads nothing else."),
        ]
    )
    note = tag(
        "p",
        f"The seeds used for choosing{told} also count in the final numbers, so the scores of tuned arms may be "
        f"slightly too good.{_shared_samples(splits or {})}",
        class_="note",
    )
    columns = ["arm", "runs", "chosen", *points]
    listed = table(columns, rows, caption=caption, words=(0, 2), label="Tuning")
    return section("tuning", "Tuning", _budget(arms, labels), listed, note)


def _shared_samples(splits: Mapping[str, Any]) -> str:
    """What the choice sees of test parts where splits of one run overlap."""
    count = splits.get("count")
    if splits.get("name") != "random" or not isinstance(count, int) or count < 2:
        return ""
    return (
        f" With {count} random splits in a run, what is a validation sample in one can be a test sample in another, so "
        "the choice is not wholly independent of the test parts."
    )


def _budget(arms: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """Who was tuned over how much, in one or two sentences."""
    names = {str(arm.get("arm")): labels.get(str(arm.get("arm")), str(arm.get("arm"))) for arm in arms}
    tuned = [arm for arm in arms if not arm.get("why")]
    left = [arm for arm in arms if arm.get("why") and arm["why"] != "does not train"]
    counts = {arm.get("runs") for arm in tuned}
    if len(counts) > 1:
        told = "; ".join(f"{names[str(arm.get('arm'))]}: {compact(arm.get('runs'))}" for arm in tuned)
        first = f"The arms differ in the runs spent on them, as some lack some of these settings ({told})."
    elif left:
        first = f"The same grid for {', '.join(names[str(arm.get('arm'))] for arm in tuned)}."
    else:
        first = "The same grid for every arm that trains."
    return " ".join([first, *(f"{names[str(arm.get('arm'))]} {arm['why']}." for arm in left)])


def _score(one: Mapping[str, Any] | None, chosen: bool) -> Markup | str:
    if one is None:
        return MISSING
    if one.get("stopped"):
        return tag("span", "stopped", title=str(one["stopped"]))
    return tag("b", f"✓ {fixed(one.get('score'))}") if chosen else fixed(one.get("score"))


def label_free_section(found: Mapping[str, Any], labels: Mapping[str, str], metric: str) -> Markup | None:
    """Scores that need no labels, by arm, and whether they order the arms as the labels do; None without scores."""
    names = [str(name) for name in found.get("scores") or []]
    arms = _rows(found, "arms")
    if not names or not arms:
        return None
    rows = []
    for arm in arms:
        values = arm.get("values") if isinstance(arm.get("values"), Mapping) else {}
        cells = [compact(float(values[name]), 4) if finite(values.get(name)) else MISSING for name in names]  # type: ignore[index,union-attr]
        rows.append([tag("b", labels.get(str(arm.get("arm")), str(arm.get("arm")))), *cells])
    ranks = {str(one.get("score")): one for one in _rows(found, "correlation")}
    note = None
    if ranks:
        rows.append([f"rank correlation with {metric}", *(_rank(ranks.get(name)) for name in names)])
        count = max((one.get("arms") or 0 for one in ranks.values()), default=0)
        note = tag(
            "p",
            f"Rank correlation (Spearman) over {plural(count, 'arm')}: it describes these arms and proves nothing.",
            class_="note",
        )
    columns = ["arm", *(SCORES.get(name, words(name)) for name in names)]
    caption = tag("b", "Scores that need no labels, mean over seeds")
    listed = table(columns, rows, caption=caption, label="Scores without labels")
    return section("label-free", "Without labels", "Measured on the embeddings alone.", listed, note)


def alike(arms: Sequence[Mapping[str, Any]], labels: Mapping[str, str], protocol: Any = None) -> str:
    """What is the same for all arms, and what is not, as far as it was recorded."""
    told = ["Same data and splits for all."]
    trained = {
        labels[str(arm.get("name"))]: {
            run["steps"] for run in _rows(arm, "runs") if finite(run.get("steps")) and run["steps"] > 0
        }
        for arm in arms
    }
    lengths = {label: "/".join(map(compact, sorted(found))) for label, found in trained.items() if found}
    if len(lengths) > 1:
        same = set(lengths.values())
        each = ", ".join(f"{label} {length}" for label, length in lengths.items())
        told.append(
            f"Every arm that trains has {same.pop()} iterations."
            if len(same) == 1
            else f"Iterations differ: {each}."
        )
    own = [
        labels[str(arm.get("name"))]
        for arm in arms
        if arm.get("supervised") and arm.get("readout") == "trained"
    ]
    if own:
        others = f", the other arms by {protocol}" if protocol else ""
        verb = (
            "is measured with its own classifier"
            if len(own) == 1
            else "are measured with their own classifiers"
        )
        told.append(f"{', '.join(own)} {verb}{others}.")
    elif protocol and any("readout" in arm for arm in arms):
        told.append(f"All are read out by {protocol}.")
    return " ".join(told)


def stopped_section(stopped: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Runs that can never be finished ("run", "reason"); None where there are none."""
    if not stopped:
        return None
    items = [tag("li", f"stopped: {one.get('run')}: {one.get('reason')}") for one in stopped]
    lead = "Their numbers left what can be computed; they are not tried again with the same settings."
    return section("stopped", "Stopped", lead, notice("bad", "Stopped for good", tag("ul", *items)))


def pending_section(pending: Sequence[Any]) -> Markup | None:
    """Runs that are still to come; None where there are none."""
    if not pending:
        return None
    box = notice(
        "info", f"{plural(len(pending), 'run')} not run", tag("ul", *(tag("li", str(one)) for one in pending))
    )
    return section("pending", "Not run", "Still in the queue: their numbers are in no table here.", box)


def _rank(one: Mapping[str, Any] | None) -> str:
    return signed(one["rank"], 2) if one is not None and finite(one.get("rank")) else MISSING


def _rows(value: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    found = value.get(key)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
