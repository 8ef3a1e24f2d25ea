"""GCA beside the methods that it is held against: one matrix of scores, what they cost, how rates were chosen."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blocks.records import GCA_RESULTS, TUNED, Record, chosen, read, spread, tuned_with
from blocks.tables import table

PROTOCOL = "logistic-l2"
SETTLED = {TUNED, "model.width"}
"""What the proofs set on the command line, for all arms of a data set alike."""
OTHERS = ("bgrl", "dgi", "cca-ssg", "supervised-graph")


@dataclass(frozen=True)
class DataSet:
    """A column of the matrix.

    Attributes:
        title: its heading.
        contrast: recipe of GCA and GRACE on it.
        stem: name of the other methods' recipes on it.
    """

    title: str
    contrast: str
    stem: str

    @property
    def recipes(self) -> set[str]:
        """All recipes whose runs stand in this column."""
        return {self.contrast, *(f"{method}/{self.stem}" for method in OTHERS)}


DATA = (
    DataSet("Generated", "gca/generated", "generated"),
    DataSet("Cora", "gca/cora-corrected", "cora"),
    DataSet("ACM", "acm", "acm"),
    DataSet("Photo", "amazon-photo", "amazon-photo"),
    DataSet("Computers", "amazon-computers", "amazon-computers"),
    DataSet("BlogCatalog", "blogcatalog", "blogcatalog"),
)


def _contrast(scheme: str) -> Callable[[Record], bool]:
    return lambda one: one.method == "gca" and one.steps > 0 and one.config["augment"]["scheme"] == scheme


def _named(method: str) -> Callable[[Record], bool]:
    return lambda one: one.method == method and one.steps > 0


ARMS: dict[str, Callable[[Record], bool]] = {
    "raw features": lambda one: one.arm == "raw",
    "untrained encoder": lambda one: one.arm == "untrained",
    "GRACE": _contrast("uniform"),
    "GCA, degree": _contrast("degree"),
    "GCA, PageRank": _contrast("pagerank"),
    "GCA, eigenvector": _contrast("eigenvector"),
    "BGRL": _named("bgrl"),
    "DGI": _named("dgi"),
    "CCA-SSG": _named("cca-ssg"),
    "supervised GCN": _named("supervised-graph"),
}


def field() -> str:
    """Accuracy of every arm on every data set."""
    return matrix(GCA_RESULTS)


def field_cost() -> str:
    """Seconds of training, and the settings behind them."""
    return costs(GCA_RESULTS)


def field_tuning() -> str:
    """Validation accuracy of every tried learning rate."""
    return tuning(GCA_RESULTS)


def runs(file: Path) -> dict[tuple[str, str], list[Record]]:
    """(arm, data set) -> the runs that count, one per seed; empty where nothing has run."""
    records = [one for one in candidates(file) if not one.changed.keys() - SETTLED]
    counted = chosen(records)
    return {
        (arm, data.title): _one_setting([one for one in counted if one.recipe in data.recipes and fits(one)])
        for arm, fits in ARMS.items()
        for data in DATA
    }


def candidates(file: Path) -> list[Record]:
    """Runs of the matrix's protocol."""
    return [one for one in read(file) if one.protocol == PROTOCOL]


def _one_setting(found: Sequence[Record]) -> list[Record]:
    """The runs of one configuration: the one with most seeds, of equal ones the latest."""
    groups: dict[tuple[str, str], dict[int, Record]] = {}
    for one in found:
        groups.setdefault((one.recipe, one.changes()), {})[one.seed] = one
    if not groups:
        return []
    most = max(reversed(groups.values()), key=len)
    return [most[seed] for seed in sorted(most)]


def matrix(file: Path) -> str:
    """One line per arm, one column per data set: mean ± standard deviation in percent, seeds, mark against GRACE."""
    found = runs(file)
    rows = [
        [arm, *(_cell(found[arm, data.title], found["GRACE", data.title]) for data in DATA)] for arm in ARMS
    ]
    return table(["Arm", *(data.title for data in DATA)], rows)


def _cell(mine: Sequence[Record], grace: Sequence[Record]) -> str:
    if not mine:
        return "not run"
    return f"{spread([one.value for one in mine])} ({len(mine)}){_mark(mine, grace)}"


def _mark(mine: Sequence[Record], grace: Sequence[Record]) -> str:
    """▲ or ▼ where the 95 % paired interval of the difference to GRACE leaves out zero."""
    from leanlabel.evaluation.statistics import paired_difference

    one, two = ({run.seed: run.value for run in runs} for runs in (mine, grace))
    if mine is grace or not one.keys() & two.keys():
        return ""
    return {"helps": " ▲", "hurts": " ▼"}.get(paired_difference(one, two).verdict, "")


def costs(file: Path) -> str:
    """One line per arm that trains: seconds (iterations); one line each for width and nodes per contrast."""
    found = runs(file)
    rows = []
    for arm in ARMS:
        cells = []
        for data in DATA:
            mine = [one for one in found[arm, data.title] if one.steps]
            mean = statistics.fmean(one.seconds for one in mine) if mine else 0.0
            cells.append(f"{mean:,.0f} s ({mine[0].steps})" if mine else "")
        if any(cells):
            rows.append([arm, *cells])
    for label, of in (("width", _width), ("nodes per contrast", _nodes)):
        cells = []
        for data in DATA:
            said = {of(one) for arm in ("GRACE", "GCA, degree") for one in found[arm, data.title]}
            cells.append(", ".join(sorted(said)))
        rows.append([label, *cells])
    return table(["Arm", *(data.title for data in DATA)], rows)


def _width(one: Record) -> str:
    return str(one.config["model"]["width"])


def _nodes(one: Record) -> str:
    nodes = one.config.get("batch", {}).get("nodes")
    return "all" if nodes is None else f"{nodes:,}"


def tuning(file: Path) -> str:
    """One line per arm and data set of which more than one learning rate was tried."""
    tried: dict[tuple[str, str], dict[float, Record]] = {}
    counted: dict[tuple[str, str], float] = {}
    records = [one for one in candidates(file) if one.steps and not one.changed.keys() - SETTLED]
    for one in records:
        first = min(other.seed for other in records if tuned_with(other) == tuned_with(one))
        if one.seed == first:
            tried.setdefault(_place(one), {})[one.lr] = one
    for one in chosen(records):
        counted[_place(one)] = one.lr
    lines = []
    for (data, arm), rates in tried.items():
        if len(rates) > 1:
            scores = (f"{rate:g}: {rates[rate].validation or 0:.2f}" for rate in sorted(rates))
            lines.append([data, arm, ", ".join(scores), f"{counted[data, arm]:g}"])
    order = [data.title for data in DATA]
    lines.sort(key=lambda line: (order.index(line[0]), list(ARMS).index(line[1])))
    columns = ["Data", "Arm", "Learning rate: validation accuracy %", "Chosen"]
    return table(columns, lines or [["none yet", *[""] * 3]])


def _place(one: Record) -> tuple[str, str]:
    data = next((data.title for data in DATA if one.recipe in data.recipes), "")
    return data, next((arm for arm, fits in ARMS.items() if fits(one)), "")
