"""What stands behind a comparison: how settings were chosen, and what scores without labels say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import MISSING, compact, finite, fixed, plural, signed
from leanlabel.report.page import section, table, words

SCORES = {
    "effective_rank": "effective rank",
    "neighbourhood_density": "neighbourhood density",
    "entropy": "entropy of predictions",
    "teacher_agreement": "agreement with the teacher",
}


def tuning_section(tuning: Mapping[str, Any], labels: Mapping[str, str]) -> Markup | None:
    """Every point that was tried, by arm; None where nothing was tuned.

    Args:
        tuning: "criterion", "keys", "seeds", "arms" ("arm", "runs", "chosen", "why", "points" of "label", "score",
            "stopped").
        labels: name of an arm -> its label.
    """
    arms = _rows(tuning, "arms")
    points = list(dict.fromkeys(str(one.get("label")) for arm in arms for one in _rows(arm, "points")))
    if not points:
        return None
    rows = []
    for arm in arms:
        name = labels.get(str(arm.get("arm")), str(arm.get("arm")))
        by = {str(one.get("label")): one for one in _rows(arm, "points")}
        chosen = arm.get("chosen") or (f"not tuned: {arm['why']}" if arm.get("why") else "not finished")
        cells = [_score(by.get(point), point == arm.get("chosen")) for point in points]
        rows.append([tag("b", name), compact(arm.get("runs")), chosen, *cells])
    seeds = tuning.get("seeds")
    told = f" ({len(seeds)})" if isinstance(seeds, list) else ""
    caption = join(
        [
            tag("b", "Validation accuracy of every setting that was tried"),
            tag(
                "span",
                f"Chosen by {tuning.get('criterion') or 'validation'}; test numbers were not looked at.",
            ),
        ]
    )
    note = tag(
        "p",
        f"The seeds used for choosing{told} also count in the final numbers, so the scores of tuned arms may be "
        "slightly too good; every arm that trains got the same grid.",
        class_="note",
    )
    columns = ["arm", "runs", "chosen", *points]
    listed = table(columns, rows, caption=caption, words=(0, 2), label="Tuning")
    return section("tuning", "Tuning", "The same grid for every arm that trains.", listed, note)


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


def _rank(one: Mapping[str, Any] | None) -> str:
    return signed(one["rank"], 2) if one is not None and finite(one.get("rank")) else MISSING


def _rows(value: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    found = value.get(key)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
