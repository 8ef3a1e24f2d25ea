"""Write the generated blocks of the documentation: settings, evidence, recipes, code.

A block stands between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``. Without arguments all blocks are renewed;
``--check`` changes nothing and exits with 1 if one of them is stale.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GCA_RESULTS = ROOT / "proofs" / "gca" / "results.jsonl"

SYSTEMS = (
    ("GCA", "gca", "node embeddings of a graph without labels"),
    ("SPCL", "spcl", "adapt a segmentation network to an unlabelled domain: prototype contrast"),
    ("ReKD", "rekd", "self-supervised pre-training of small networks through relations"),
    ("AEL", "ael", "semi-supervised segmentation that does not lose rare classes"),
    ("CLINE", "cline", "language models robust to small edits that change the meaning"),
    ("CDAC", "cdac", "semi-supervised domain adaptation for classification"),
    (
        "Content transfer",
        "content_transfer",
        "segmentation in a new domain: tail content pasted across domains",
    ),
    ("MoCHi", "mochi", "image self-supervision with mixed hard negatives"),
    ("Global + local contrast", "global_local", "volumetric medical segmentation from a handful of volumes"),
    (
        "Feature regression",
        "feature_regression",
        "move a segmentation network to a new sensor without new masks",
    ),
    ("Locally adaptive loss", "locally_adaptive", "segmentation loss that groups neighbouring pixels"),
)
"""Name, row in `leanlabel.methods.TABLE` once it exists, job."""

BEGIN, END = "<!-- begin: {} -->", "<!-- end: {} -->"


def main(arguments: list[str]) -> int:
    """Renew or check all blocks; return the exit status."""
    stale = []
    for path in pages():
        old = path.read_text(encoding="utf-8")
        new = renewed(old)
        if new == old:
            continue
        stale.append(path.relative_to(ROOT).as_posix())
        if "--check" not in arguments:
            path.write_text(new, encoding="utf-8", newline="\n")
    if stale:
        state = "stale, run docs/generate.py" if "--check" in arguments else "renewed"
        sys.stdout.write(f"{state}: {', '.join(stale)}\n")
    return int(bool(stale) and "--check" in arguments)


def pages() -> list[Path]:
    """All pages that may hold blocks."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def renewed(text: str) -> str:
    """Text with every block written anew; KeyError for a block that nobody generates."""
    pattern = re.compile(r"<!-- begin: (\S+) -->\n.*?<!-- end: \1 -->", re.DOTALL)

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"{BEGIN.format(name)}\n{BLOCKS[name]().strip()}\n{END.format(name)}"

    return pattern.sub(block, text)


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ---------------------------------------------------------------------------------------------- systems


def systems() -> str:
    """The eleven systems and what can be used today."""
    from leanlabel.methods import TABLE

    rows = [[name, job, "**works**" if key in TABLE else "planned"] for name, key, job in SYSTEMS]
    return table(["System", "Job", "Status"], rows)


def recipes() -> str:
    """The packaged recipes."""
    from leanlabel.recipe import packaged_recipes, read_recipe

    rows = []
    for name in packaged_recipes():
        values = read_recipe(name).values
        rows.append([f"`{name}`", *(str(values.get(key, "")) for key in ("fidelity", "about", "cost"))])
    return table(["Recipe", "Fidelity", "What it is", "Cost"], rows)


def own_method() -> str:
    """The complete example of a method."""
    code = (DOCS / "examples" / "own_method.py").read_text(encoding="utf-8")
    return f"<!-- not run: it is a file, docs/examples/own_method.py, and tested as one -->\n```python\n{code}```"


# --------------------------------------------------------------------------------------------- settings


def gca_settings() -> str:
    """Every key of a GCA recipe."""
    from leanlabel.methods.gca import GCAConfig

    return settings(GCAConfig)


def settings(schema: type[BaseModel]) -> str:
    """One table per section: key, default, range, meaning."""
    plain, sections = [], []
    for name, info in schema.model_fields.items():
        variants = [part for part in _flat(info.annotation) if _is_section(part)]
        for variant in variants:
            kind = variant.model_fields.get("kind")
            title = f"`{name}`" if kind is None else f"`{name}` with `{name}.kind: {kind.default}`"
            default = info.default if isinstance(info.default, variant) else None
            rows = [_row(f"{name}.{key}", one, default, key) for key, one in variant.model_fields.items()]
            sections.append(f"**{title}**: {_sentence(info)}\n\n{_settings_table(rows)}")
        if not variants:
            plain.append(_row(name, info, None, name))
    return "\n\n".join([f"**Top level**\n\n{_settings_table(plain)}", *sections])


def _settings_table(rows: Iterable[Iterable[str]]) -> str:
    return table(["Key", "Default", "Range", "Meaning"], rows)


def _row(key: str, info: FieldInfo, section: BaseModel | None, name: str) -> list[str]:
    value = getattr(section, name) if section is not None else info.get_default(call_default_factory=True)
    default = "required" if info.is_required() and section is None else f"`{_plain(value)}`"
    return [f"`{key}`", default, allowed(info), _sentence(info)]


def _sentence(info: FieldInfo) -> str:
    return " ".join((info.description or "").split())


def allowed(info: FieldInfo) -> str:
    """Legal values of a field: choices, or type and bounds."""
    low, high = "", ""
    for bound in info.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">")):
            low = f"{sign} {_plain(getattr(bound, name))}" if hasattr(bound, name) else low
        for name, sign in (("le", "≤"), ("lt", "<")):
            high = f"{sign} {_plain(getattr(bound, name))}" if hasattr(bound, name) else high
    bounds = ", ".join(part for part in (low, high) if part)
    kinds = " or ".join(_kind(part) for part in _flat(info.annotation))
    return f"{kinds}, {bounds}" if bounds else kinds


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"({allowed(FieldInfo.from_annotation(annotation))})"
    if origin is Literal:
        return ", ".join(f"`{_plain(value)}`" for value in inner)
    if origin is tuple:
        values = [part for part in inner if part is not Ellipsis]
        word = _kind(values[0])
        return f"list of {word}" if Ellipsis in inner else f"{len(values)} × {word}"
    names = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", type(None): "`null`"}
    return names.get(annotation, "section")


def _flat(annotation: Any) -> Iterator[Any]:
    """Members of a union, tags and annotations taken off."""
    if get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _flat(part)
    elif get_origin(annotation) is Annotated:
        yield from _flat(get_args(annotation)[0])
    else:
        yield annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float):
        return repr(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value)


# --------------------------------------------------------------------------------------------- evidence


def gca_evidence() -> str:
    """Our measured results, and what has not run."""
    return evidence(GCA_RESULTS, "gca/")


def evidence(file: Path, prefix: str) -> str:
    """One line per recipe, arm, settings and protocol; one for each recipe under ``prefix`` without any run.

    Args:
        file: lines as `leanlabel compare` records them; it may be absent, and a line cut off by a kill is left out.
        prefix: start of the names of the recipes that belong to the system.
    """
    from leanlabel.engine.runfolder import read_lines
    from leanlabel.recipe import packaged_recipes

    groups: dict[tuple[str, ...], dict[int, tuple[float, float]]] = {}
    for row in read_lines(file):
        recipe, _, _ = row["recipe"].partition(" (")
        for protocol, found in row["results"]["protocols"].items():
            readouts = found["readouts"]
            value = readouts[row["readout"] if row["readout"] in readouts else "untrained"]["mean"]
            key = (recipe, row["arm"], changes(row, recipe), protocol)
            groups.setdefault(key, {})[row["seed"]] = (value, row["results"]["training_seconds"])
    lines = [[*_named(key), *_measured(seeds)] for key, seeds in sorted(groups.items(), key=_order)]
    done = {key[0] for key in groups}
    for name in packaged_recipes():
        if name.startswith(prefix) and name not in done:
            lines.append([f"`{name}`", "all", "", "", "", "not run", ""])
    columns = ["Recipe", "Arm", "Changed settings", "Protocol", "Seeds", "Accuracy %", "Seconds"]
    return table(columns, lines)


def _order(entry: tuple[tuple[str, ...], Any]) -> tuple[str, str, str, str]:
    recipe, arm, changed, protocol = entry[0]
    return recipe, protocol, changed, arm


def _named(key: tuple[str, ...]) -> list[str]:
    recipe, arm, changed, protocol = key
    return [f"`{recipe}`", arm, changed, protocol]


def _measured(seeds: Mapping[int, tuple[float, float]]) -> list[str]:
    values = [100 * value for value, _ in seeds.values()]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    seconds = statistics.fmean(seconds for _, seconds in seeds.values())
    return [str(len(values)), f"{statistics.fmean(values):.2f}{spread}", f"{seconds:,.0f}"]


def changes(row: Mapping[str, Any], recipe: str) -> str:
    """Settings of a recorded run that differ from its recipe and do not follow from its arm or its seed."""
    from leanlabel import api, methods
    from leanlabel.recipe import packaged_recipes

    if recipe not in packaged_recipes():
        return ""
    published = _leaves(api.resolve(recipe).model_dump(mode="json"))
    arm = methods.find(row["config"]["method"]["name"]).baselines.get(row["arm"], {})
    expected = set(_leaves(arm)) | {"seed", "cost", "about", "fidelity", "task", "data.path"}
    found = _leaves(row["config"])
    return ", ".join(
        f"`{key}={_plain(value)}`"
        for key, value in found.items()
        if key not in expected and published.get(key, value) != value
    )


def gca_pairs() -> str:
    """GCA against each baseline, seed by seed."""
    return pairs(GCA_RESULTS)


def pairs(file: Path) -> str:
    """Paired differences of every recipe's own arm against the baselines run with the same settings and seeds."""
    from leanlabel.engine.runfolder import read_lines
    from leanlabel.evaluation.statistics import paired_difference

    groups: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    still: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in read_lines(file):
        recipe, _, _ = row["recipe"].partition(" (")
        protocol = row["config"]["evaluation"]["protocol"]
        value = row["results"]["protocols"][protocol]["readouts"][row["readout"]]["mean"]
        # Without training, no setting of the training matters: such an arm belongs to every group of its recipe.
        if row["steps"] == 0:
            arms = still.setdefault((recipe, protocol), {})
        else:
            arms = groups.setdefault((recipe, changes(row, recipe), protocol), {})
        arms.setdefault(row["arm"], {})[row["seed"]] = 100 * value
    lines = []
    for (recipe, changed, protocol), trained in sorted(groups.items()):
        own, arms = recipe.replace("/", "-"), trained | still.get((recipe, protocol), {})
        for arm, values in sorted(arms.items()):
            if arm == own or own not in arms or not values.keys() & arms[own].keys():
                continue
            found = paired_difference(arms[own], values)
            low, high = found.interval or (float("nan"), float("nan"))
            interval = f"{low:+.2f} … {high:+.2f}" if found.interval else "–"
            needed = "–" if found.seeds_needed is None else f"{found.seeds_needed:,}"
            smallest = "–" if found.detectable is None else f"{found.detectable:.2f}"
            cells = [
                f"`{recipe}`",
                changed,
                arm,
                str(found.n),
                f"{found.mean:+.2f}",
                interval,
                smallest,
                needed,
            ]
            lines.append([*cells, found.verdict])
    columns = [
        "Recipe",
        "Changed settings",
        "GCA minus",
        "Seeds",
        "Points",
        "95 % interval",
        "Detectable",
        "Needed",
    ]
    return table([*columns, "Verdict"], lines or [["none yet", *[""] * 8]])


def gca_dead_units() -> str:
    """Share of dead units by learning rate, as recorded."""
    from leanlabel.engine.runfolder import read_lines

    lines = []
    for row in read_lines(ROOT / "proofs" / "gca" / "dead_units.jsonl"):
        dead = row["dead_units"]
        shown = [f"{100 * dead[t - 1]:.0f} %" if t <= len(dead) else "–" for t in (1, 3, 5, 10, len(dead))]
        scores = [f"{100 * row['val_accuracy'][name]:.1f}" for name in ("raw", "untrained", "trained")]
        lines.append([row["activation"], f"{row['lr']:g}", *shown, *scores])
    columns = ["Activation", "lr", "after 1", "3", "5", "10", "the last"]
    return table([*columns, "raw", "untrained", "trained"], lines or [["not run", *[""] * 9]])


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


BLOCKS: dict[str, Callable[[], str]] = {
    "systems": systems,
    "recipes": recipes,
    "own_method": own_method,
    "gca-settings": gca_settings,
    "gca-evidence": gca_evidence,
    "gca-pairs": gca_pairs,
    "gca-dead-units": gca_dead_units,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
