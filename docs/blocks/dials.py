"""When does the adaptive scheme help? Scores of GRACE and GCA over the settings of a dial: tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blocks.charts import LOOKS, chart
from blocks.field import DATA, PROTOCOL
from blocks.records import ATTACHMENT, GCA_RESULTS, RATES, Record, read, spread
from blocks.tables import table

DROPPED_ON = ("Generated", "Photo")
"""Data sets on which the drop rate is turned."""

Arms = dict[str, dict[int, float]]
"""Arm ("GRACE", "GCA, degree") -> seed -> score in percent."""


@dataclass(frozen=True)
class Curve:
    """One data set with a dial turned in one way.

    Attributes:
        data: title of the data set.
        turned: what the dial turns, in words.
        changes: other settings that depart from the recipe, in words.
        points: setting -> scores.
    """

    data: str
    turned: str
    changes: str
    points: dict[float, Arms]

    @property
    def lines(self) -> dict[str, dict[float, list[float]]]:
        """Arm -> setting -> scores."""
        return {
            arm: {x: list(arms[arm].values()) for x, arms in self.points.items() if arm in arms}
            for arm in LOOKS
        }


def drop_table() -> str:
    """Accuracy against the drop rate."""
    return curve_table(drop_curves(GCA_RESULTS), DROPPED_ON, ("Dropped", "Rate"))


def drop_figure() -> str:
    """The same as a picture."""
    title = "Accuracy against the drop rate, GRACE and GCA"
    return picture(drop_curves(GCA_RESULTS), DROPPED_ON, title, "drop rate of both views")


def attachment_table() -> str:
    """Accuracy against the place where crossing edges attach."""
    return curve_table(attachment_curves(GCA_RESULTS), ("Generated",), ("Turned", "Value"))


def drop_curves(file: Path) -> list[Curve]:
    """Runs whose two views lose the same share; with edges alone turned, features lose what the recipe says."""
    found: list[tuple[str, str, float, Record]] = []
    for data, one in _contrasts(file):
        if data not in DROPPED_ON or RATES[0] not in one.dials:
            continue
        edges, features = (one.config["augment"][key.rpartition(".")[2]] for key in RATES)
        if features == edges:
            found.append((data, "edges and features", edges[0], one))
        if RATES[1] not in one.changed:
            found.append((data, "edges", edges[0], one))
    return _curves(found, RATES)


def attachment_curves(file: Path) -> list[Curve]:
    """Runs on generated graphs that differ in where crossing edges attach; the recipe's own graph is one of them."""
    key = ATTACHMENT.rpartition(".")[2]
    found = [
        (data, f"`{key}`", one.config["data"][key], one)
        for data, one in _contrasts(file)
        if data == "Generated" and not one.changed.keys() - {ATTACHMENT}
    ]
    return _curves(found, (ATTACHMENT,))


def _contrasts(file: Path) -> Iterable[tuple[str, Record]]:
    """Trained runs of GCA and GRACE on the data sets of the matrix."""
    for one in read(file):
        data = next((data.title for data in DATA if data.contrast == one.recipe), None)
        if data is not None and one.protocol == PROTOCOL and one.method == "gca" and one.steps:
            yield data, one


def _curves(found: Iterable[tuple[str, str, float, Record]], keys: Sequence[str]) -> list[Curve]:
    """One curve per data set and way of turning, with at least two settings: the one with most of them."""
    groups: dict[tuple[str, str, str], dict[float, Arms]] = {}
    for data, turned, x, one in found:
        scheme = one.config["augment"]["scheme"]
        arm = "GRACE" if scheme == "uniform" else f"GCA, {scheme}"
        points = groups.setdefault((data, turned, one.changes(keys)), {})
        points.setdefault(x, {}).setdefault(arm, {})[one.seed] = one.value
    most: dict[tuple[str, str], Curve] = {}
    for (data, turned, changes), points in groups.items():
        known = most.get((data, turned))
        if len(points) > 1 and (known is None or len(points) > len(known.points)):
            most[data, turned] = Curve(data, turned, changes, dict(sorted(points.items())))
    return list(most.values())


def curve_table(curves: Sequence[Curve], wanted: Sequence[str], names: tuple[str, str]) -> str:
    """One line per data set and setting: both arms, paired difference, verdict.

    Args:
        curves: what was measured.
        wanted: data sets; those without a curve are "not run".
        names: headings of what is turned and of its value.
    """
    lines = []
    for data in wanted:
        mine = [curve for curve in curves if curve.data == data]
        lines += [_line(curve, x, arms) for curve in mine for x, arms in curve.points.items()]
        if not mine:
            lines.append([data, "not run", *[""] * 7])
    columns = ["Data", *names, "Seeds", "GRACE", "GCA, degree", "GCA − GRACE [95 %]", "Verdict"]
    return table([*columns, "Changed settings"], lines)


def _line(curve: Curve, x: float, arms: Arms) -> list[str]:
    from leanlabel.evaluation.statistics import paired_difference

    grace, gca = (arms.get(arm, {}) for arm in LOOKS)
    told = ["–", "–"]
    common = grace.keys() & gca.keys()
    if common:
        pair = paired_difference(gca, grace)
        interval = " [{:+.2f}, {:+.2f}]".format(*pair.interval) if pair.interval else ""
        told = [f"{pair.mean:+.2f}{interval}", pair.verdict]
    cells = [spread(list(one.values())) if one else "not run" for one in (grace, gca)]
    seeds = str(len(common) or max(len(grace), len(gca)))
    return [curve.data, curve.turned, f"{x:g}", seeds, *cells, *told, curve.changes]


def picture(curves: Sequence[Curve], wanted: Sequence[str], title: str, x_label: str) -> str:
    """One panel per data set."""
    panels = []
    for data in wanted:
        curve = next((one for one in curves if one.data == data), None)
        name = data if curve is None else f"{data}: {curve.turned} dropped"
        panels.append((name, None if curve is None else curve.lines))
    return chart(title, panels, x_label)
