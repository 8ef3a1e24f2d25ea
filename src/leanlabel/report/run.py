"""The page of one run, made from the files of its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from leanlabel.engine.runfolder import RunFolder, read_json, read_lines, write_text
from leanlabel.errors import InputError
from leanlabel.report import domains, gap, prototypes, sections
from leanlabel.report.adaptation import adaptation
from leanlabel.report.answer import Answer, judge, main_protocol, mapping
from leanlabel.report.charts import Row, interval_chart
from leanlabel.report.hardness import hardness, without
from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.neighbours import neighbours
from leanlabel.report.numbers import duration, finite, fixed, plural
from leanlabel.report.page import contents, header, notice, page, paragraphs, section, words
from leanlabel.report.pairs import pairs
from leanlabel.report.segmentation import segmentation
from leanlabel.report.transfer import transfer

FIDELITY = {
    "official": "follows the authors' code",
    "paper": "follows the paper's text",
    "corrected": "known faults of paper and code mended",
    "reconstruction": "of the published idea, whose details were not at hand",
    "small": "scaled down to a small machine",
}


def write_report(run: RunFolder) -> Path:
    """Write ``report.html`` of a run folder: one page that needs no other file and no network.

    What is missing is left out; a run without results gives a page that says so. Equal files, equal page.

    Args:
        run: folder of a finished or unfinished run.

    Returns:
        Path of the page.

    Raises:
        RunError: the page cannot be written; an earlier page is untouched.
    """
    write_text(run.report, run_page(run))
    return run.report


def run_page(run: RunFolder) -> str:
    """The HTML of :func:`write_report`."""
    faults: list[str] = []
    config_text, config = _config(run, faults)
    results = domains.placed(mapping(_read(run.results, faults)), config)
    data = mapping(_read(run.data, faults))
    environment = mapping(_read(run.environment, faults))
    metrics, timing = _lines(run.metrics, faults), _lines(run.timing, faults)
    embedding = mapping(_read(run.figures / "embedding.json", faults))
    near = mapping(_read(run.figures / "neighbours.json", faults))
    masks = segmentation(mapping(_read(run.figures / "segmentation.json", faults)))
    adapted = mapping(_read(run.figures / "adaptation.json", faults))
    paired = mapping(_read(run.figures / "pairs.json", faults))
    apart = mapping(_read(run.figures / "prototypes.json", faults))
    mixed = mapping(_read(run.figures / "mixes.json", faults))
    unstyled = mapping(_read(run.figures / "zero_style.json", faults))
    noted = _read(run.warnings, faults)
    warnings = [*faults, *(noted if isinstance(noted, list) else [])]

    main = main_protocol(results, config)
    shown = [
        ("embedding", "Embedding", sections.embedding(embedding)),
        ("neighbours", "Nearest neighbours", neighbours(near)),
    ]
    if any(part for *_, part in masks):
        shown = masks
    told = _without_classes(results) if masks[0][2] else results  # the classes have a section of their own
    parts = [
        ("warnings", "Warnings", _warnings(warnings)),
        ("results", "Results", sections.results(told, main, domains.readout_names(config))),
        *adaptation(run, adapted),
        ("pairs", "Pairs", pairs(paired) if paired else None),
        *transfer(mixed, unstyled, results, main, domains.readout_names(config)),
        ("prototypes", "Prototypes", prototypes.prototypes(run, apart, config)),
        ("gap", "Gap over time", gap.gap(run, results, config)),
        ("loss", "Training", sections.curves(prototypes.without(gap.without(without(metrics), config)))),
        ("hardness", "Hardest negatives", hardness(metrics)),
        *shown,
        ("data", "Data", sections.data(data)),
        ("monitors", "Monitors", sections.monitors(mapping(results.get("monitors")))),
        ("cost", "Cost", sections.cost(results, timing)),
        ("configuration", "Configuration", sections.configuration(config_text)),
        ("environment", "Environment", sections.environment(environment)),
        ("files", "Files", sections.files(run)),
    ]
    name = _name(mapping(_read(run.origin, faults)), config, data)
    top = header(
        "leanlabel run report",
        name,
        _about(config),
        tag("p", _what_ran(config, data, results), class_="ran"),
        _answer(results, main, metrics, config),
        contents(parts),
    )
    version = mapping(environment.get("packages")).get("leanlabel")
    footer = f"Written by leanlabel{f' {version}' if version else ''} from the files of the run folder."
    return page(f"{name} – leanlabel", top, [part for *_, part in parts], footer)


def _without_classes(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results without the scores by class."""
    protocols = {
        name: {key: value for key, value in mapping(one).items() if key != "per_class"}
        for name, one in mapping(results.get("protocols")).items()
    }
    return {**results, "protocols": protocols}


def _read(path: Path, faults: list[str]) -> Any:
    try:
        return read_json(path)
    except InputError:
        faults.append(f"{path.name} could not be read as JSON and is left out.")
        return None


def _lines(path: Path, faults: list[str]) -> list[dict[str, Any]]:
    try:
        return read_lines(path)
    except (OSError, UnicodeDecodeError):
        faults.append(f"{path.name} could not be read and is left out.")
        return []


def _config(run: RunFolder, faults: list[str]) -> tuple[str, Mapping[str, Any]]:
    try:
        written = run.config.read_text(encoding="utf-8")
    except FileNotFoundError:
        return "", {}
    except (OSError, UnicodeDecodeError):
        faults.append(f"{run.config.name} could not be read and is left out.")
        return "", {}
    try:
        return written, mapping(yaml.safe_load(written))
    except (yaml.YAMLError, ValueError, RecursionError):
        faults.append(f"{run.config.name} is not valid YAML; what it says is shown as text only.")
        return written, {}


def _method(config: Mapping[str, Any]) -> str:
    method = config.get("method")
    if isinstance(method, Mapping):
        method = method.get("name") or method.get("kind")
    return str(method) if method else ""


def _name(origin: Mapping[str, Any], config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The recipe where it is recorded, else method and data."""
    recipe = origin.get("recipe")
    if recipe:
        return str(recipe)
    parts = [part for part in (_method(config), str(data.get("name") or "")) if part]
    return " on ".join(parts) or "A run without a configuration"


def _about(config: Mapping[str, Any]) -> Markup | None:
    fidelity = str(config.get("fidelity") or "")
    tags = [
        ("task", config.get("task")),
        ("fidelity", f"{fidelity}: {FIDELITY[fidelity]}" if fidelity in FIDELITY else fidelity),
        ("base", config.get("base")),
        ("cost", config.get("cost")),
    ]
    items = [tag("li", tag("span", name), " ", value) for name, value in tags if value]
    about = tag("p", config["about"], class_="about") if config.get("about") else None
    return join([about, tag("ul", *items, class_="tags") if items else None])


def _what_ran(config: Mapping[str, Any], data: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """One sentence: method, iterations, seed, data, weights, time."""
    steps, reached = config.get("steps"), results.get("t")
    length = reached if isinstance(reached, int) else steps
    text = f"{_method(config) or 'The method'}"
    if isinstance(length, int):
        text += f", {plural(length, 'iteration')}"
        text += f" of {steps:,}" if isinstance(steps, int) and steps != length else ""
    text += f", seed {config['seed']}" if config.get("seed") is not None else ""
    if data.get("name"):
        counts = [
            f"{n:,} {words(what)}" for what, n in mapping(data.get("counts")).items() if isinstance(n, int)
        ]
        classes = data.get("classes")
        counts += [plural(len(classes), "class", "classes")] if isinstance(classes, list) and classes else []
        text += f", on {data['name']}"
        text += f" ({', '.join(counts)})" if counts else ""
    text += f"; weights: {results['weights']}" if results.get("weights") else ""
    text += (
        f"; trained in {duration(results['training_seconds'])}"
        if finite(results.get("training_seconds"))
        else ""
    )
    return text + "."


def _answer(
    results: Mapping[str, Any], main: str | None, metrics: list[dict[str, Any]], config: Mapping[str, Any]
) -> Markup:
    protocols = mapping(results.get("protocols"))
    if main is None:
        return _unfinished(metrics, config)
    protocol, called = mapping(protocols[main]), domains.readout_names(config)
    answer = judge(protocol, called)
    chart = _readout_chart(protocol, main, called)
    others = [(name, mapping(one)) for name, one in protocols.items() if name != main]
    said = [
        tag("p", answer.big, class_="big"),
        tag("p", answer.over, class_="over") if answer.over else None,
        tag("p", answer.sentence, class_="sentence"),
        tag("p", f"Measured on {protocol['on']}.", class_="fine") if protocol.get("on") else None,
        _box(answer),
        domains.chosen_by_target(config),
        *(
            tag("p", _under(name, one), _tail(answer, judge(one, called), one.get("on")), class_="other")
            for name, one in others
        ),
        tag("p", _spread(protocol), class_="fine"),
    ]
    return tag("div", tag("div", *said, class_="said"), chart, class_=f"answer {answer.kind}")


def _unfinished(metrics: list[dict[str, Any]], config: Mapping[str, Any]) -> Markup:
    ts = [row["t"] for row in metrics if isinstance(row.get("t"), int)]
    steps = config.get("steps")
    done = f"{max(ts) + 1:,}" if ts else "None"
    of = f" of {steps:,}" if isinstance(steps, int) else ""
    lines = [
        f"{done}{of} iterations are recorded; nothing has been evaluated.",
        "This page shows what is there; it is renewed when the run ends.",
    ]
    return notice("info", "This run has no results yet.", paragraphs(lines))


def _box(answer: Answer) -> Markup | None:
    if not answer.box:
        return None
    return notice("bad" if answer.kind == "none" else "warn", answer.box, paragraphs(answer.reasons))


def _under(name: str, protocol: Mapping[str, Any]) -> str:
    return f"On {protocol['on']} ({name}): " if protocol.get("on") else f"Under {name}: "


def _tail(main: Answer, other: Answer, on: Any) -> Markup:
    said = f"{other.big} {other.over}. {other.sentence}" if other.over else other.sentence
    disagree = {"none", "gain"} == {main.kind, other.kind} and not on  # other images are no contradiction
    return join([said, tag("strong", " The protocols disagree.") if disagree else None])


def _spread(protocol: Mapping[str, Any]) -> str:
    counts = [
        len(one.get("per_split") or []) for one in map(mapping, mapping(protocol.get("readouts")).values())
    ]
    splits = f"Means over {plural(max(counts), 'split')} of " if counts and max(counts) > 1 else "This is "
    return f"{splits}one run with one seed. The spread over seeds is not seen here: run leanlabel compare."


def _readout_chart(protocol: Mapping[str, Any], name: str, called: Mapping[str, str]) -> Markup | None:
    rows = []
    for readout, one in mapping(protocol.get("readouts")).items():
        one = mapping(one)
        values = [v for v in one.get("per_split") or [] if finite(v)]
        std = one.get("std")
        note = fixed(one.get("mean")) + (f" ± {fixed(std)}" if finite(std) and len(values) > 1 else "")
        kind = "strong" if readout == "trained" else "soft"
        rows.append(Row(called.get(readout, str(readout)), values, one.get("mean"), note=note, kind=kind))
    metric = str(protocol.get("metric") or "score")
    title = metric if any(letter.isupper() for letter in metric) else metric.capitalize()
    part = mapping(protocol.get("split")).get("name") if protocol.get("unit") == "part" else None
    caption = join(
        [
            tag("b", title),
            " ",
            tag("span", f"{protocol.get('on') or part or 'test rows'}, {name}", class_="soft"),
        ]
    )
    note = "A dot is one split, the upright bar their mean."
    return interval_chart(caption, rows, name=f"{metric} of each readout", x_label=metric, note=note)


def _warnings(lines: Iterable[Any]) -> Markup | None:
    items = [tag("li", line) for line in lines]
    if not items:
        return None
    box = notice("warn", f"{plural(len(items), 'warning')} in this run", tag("ul", *items))
    return section("warnings", "Warnings", "What may make the numbers below mean less.", box)
