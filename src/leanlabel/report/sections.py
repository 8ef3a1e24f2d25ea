"""The sections of a run's page; each gives None where its data is missing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leanlabel.engine.runfolder import RunFolder
from leanlabel.report.answer import mapping
from leanlabel.report.charts import Curve, bar_chart, line_chart
from leanlabel.report.markup import Markup, join, tag
from leanlabel.report.numbers import (
    MISSING,
    are_shares,
    compact,
    difference,
    duration,
    finite,
    fixed,
    plural,
    size,
)
from leanlabel.report.page import code, details, facts, section, table, words
from leanlabel.report.scatter import scatter_chart

READOUTS = {
    "raw": "input features",
    "untrained": "model as initialised",
    "initial": "model that training started from",
    "trained": "model after training",
}
MONITORS = {
    "effective_rank": "directions in use: exponential of the entropy of the singular values, as shares",
    "dead_units": "share of output units that are constant over all rows",
    "alignment": "mean squared distance of two views of one row, unit length; lower is closer",
    "uniformity": "log mean of exp(−2 · squared distance) over pairs of unit rows; lower is more even",
    "mean_pairwise_cosine": "mean cosine of all pairs; near 1 is collapse",
}
FILES = {
    "config.yaml": "complete configuration; leanlabel fit takes it back",
    "environment.json": "versions and hardware",
    "data.json": "fingerprint and counts of the data",
    "metrics.jsonl": "every logged term by iteration",
    "timing.jsonl": "seconds and memory by iteration",
    "checkpoints": "states to resume from",
    "stages": "stages that ran before",
    "model.safetensors": "weights",
    "results.json": "scores of all readouts",
    "splits.npz": "rows of every split",
    "splits": "names of the images of every part",
    "figures": "data behind the pictures",
    "warnings.json": "warnings of this run",
    "tensorboard": "the same terms for TensorBoard",
}
MOST_BARS = 40
MOST_VALUES = 4
"""Facts that are longer lists are left to data.json."""
ABBREVIATION = 3
"""Names of metrics of at most so many letters are written in capitals."""
FEW_OTHERS = 4
"""Up to so many further numbers stand in the caption of a table."""


def results(
    values: Mapping[str, Any], main: str | None, called: Mapping[str, str] | None = None
) -> Markup | None:
    """One table per protocol, the main one first, and scores by class; ``called`` as for `judge`."""
    protocols = mapping(values.get("protocols"))
    order = sorted(protocols, key=lambda name: name != main)
    tables = [_result_table(name, mapping(protocols[name]), called or {}) for name in order]
    tables += [_other_table(name, mapping(protocols[name]), called or {}) for name in order]
    tables += [_by_domain(name, mapping(protocols[name])) for name in order]
    classes = [_per_class(name, mapping(protocols[name])) for name in order]
    others = [part for part in classes[1:] if part]
    if others:
        classes = [classes[0], details("By class under the other protocols", *others)]
    lead = "The same measurement before and after training."
    return section("results", "Results", lead, *tables, *classes)


def _result_table(name: str, protocol: Mapping[str, Any], called: Mapping[str, str]) -> Markup | None:
    readouts = {key: mapping(one) for key, one in mapping(protocol.get("readouts")).items()}
    if not readouts:
        return None
    means = {key: one["mean"] for key, one in readouts.items() if finite(one.get("mean"))}
    over = "initial" if "initial" in called and "untrained" not in means else "untrained"
    shares, base = are_shares(means.values()), means.get(over)
    rows = []
    for key, one in readouts.items():
        values = [v for v in one.get("per_split") or [] if finite(v)]
        gain = means[key] - base if base is not None and key in means and key != over else None
        rows.append(
            [
                join(
                    [tag("b", called.get(key, key)), " ", tag("span", READOUTS.get(key, ""), class_="soft")]
                ),
                join([fixed(one.get("mean")), tag("span", f" ± {fixed(one.get('std'))}", class_="soft")]),
                difference(gain, shares),
                f"{fixed(min(values))} to {fixed(max(values))}" if values else MISSING,
                len(values),
            ]
        )
    metric = str(protocol.get("metric") or "score")
    columns = [
        "readout",
        f"{metric}, mean ± std",
        "gain" if over in called else f"over {over}",
        "range",
        f"{_unit(protocol)}s",
    ]
    best = [i for i, key in enumerate(readouts) if means and means.get(key) == max(means.values())]
    return table(columns, rows, caption=_caption(name, protocol), strong=best, label=f"Results under {name}")


def _caption(name: str, protocol: Mapping[str, Any]) -> Markup:
    split = mapping(protocol.get("split") or protocol.get("splits"))
    count = split.get("count", protocol.get("n_splits"))
    told = [protocol.get("on") or (f"split {split['name']}" if split.get("name") else None)]
    shares = mapping(split.get("shares"))
    if shares:
        told.append(
            "/".join(shares)
            + " "
            + "/".join(f"{100 * share:.3g} %" for share in shares.values() if finite(share))
        )
    told.append(plural(count, "split") if isinstance(count, int) and _unit(protocol) == "split" else None)
    told.append(f"split seed {split['seed']}" if split.get("seed") is not None else None)
    told.append(f"sha256 {str(split['sha256'])[:12]}" if split.get("sha256") else None)
    selection = protocol.get("selection")
    return join(
        [
            tag("b", "Protocol ", code(protocol.get("protocol") or name)),
            _others(protocol),
            tag("span", ", ".join(part for part in told if part)),
            tag("span", f"Selection: {selection}") if selection else None,
            tag("span", f"Mean ± standard deviation over {_unit(protocol)}s; the highest mean is bold"),
        ]
    )


def _unit(protocol: Mapping[str, Any]) -> str:
    """What a mean is over: split, or for protocols without splits what they repeat."""
    return str(protocol.get("unit") or "split")


def _others(protocol: Mapping[str, Any]) -> Markup | None:
    """Means of the metrics that stand beside the main one, by readout; many of them fold away."""
    told = {
        str(readout): [
            (metric.upper() if len(metric) <= ABBREVIATION else metric, fixed(value))
            for metric, value in mapping(mapping(one).get("others")).items()
            if finite(value)
        ]
        for readout, one in mapping(protocol.get("readouts")).items()
    }
    if sum(map(len, told.values())) <= FEW_OTHERS:
        words = [f"{metric} {readout} {value}" for readout, pairs in told.items() for metric, value in pairs]
        return tag("span", ", ".join(words)) if words else None
    return None


def _other_table(name: str, protocol: Mapping[str, Any], called: Mapping[str, str]) -> Markup | None:
    """The same as a table, where there are many."""
    readouts = {
        str(key): mapping(mapping(one).get("others"))
        for key, one in mapping(protocol.get("readouts")).items()
    }
    metrics = list(dict.fromkeys(metric for others in readouts.values() for metric in others))
    if sum(map(len, readouts.values())) <= FEW_OTHERS:
        return None
    columns = ["metric", *(called.get(key, key) for key in readouts)]
    rows = [[metric, *(fixed(others.get(metric)) for others in readouts.values())] for metric in metrics]
    return details(
        f"Further numbers under {name}",
        table(columns, rows, label=f"Further numbers, {name}"),
    )


def _by_domain(name: str, protocol: Mapping[str, Any]) -> Markup | None:
    """Scores within each domain, where the rows come from several."""
    listed = protocol.get("domains")
    domains = [mapping(one) for one in listed] if isinstance(listed, list) else []
    keys = list(dict.fromkeys(key for one in domains for key in mapping(one.get("readouts"))))
    if not keys:
        return None
    rows = [
        [
            tag("b", one.get("name")),
            *(fixed(mapping(one.get("readouts")).get(key)) for key in keys),
            compact(one.get("test_rows")),
        ]
        for one in domains
    ]
    caption = join(
        [
            tag("b", "Within each domain"),
            tag("span", f" readouts fitted on the domain alone, {name}", class_="soft"),
        ]
    )
    return table(
        ["domain", *keys, "test rows"], rows, caption=caption, label=f"Results by domain under {name}"
    )


def _per_class(name: str, protocol: Mapping[str, Any]) -> Markup | None:
    listed = protocol.get("per_class")
    classes = [mapping(one) for one in listed] if isinstance(listed, list) else []
    classes = [one for one in classes if one]
    if not classes:
        return None
    key = next((k for k in ("recall", "score", "iou", "dice") if k in classes[0]), "recall")
    values = [one.get(key) for one in classes]
    top = 1.0 if are_shares(values) else None
    rows = [(str(one.get("name", i)), one.get(key), fixed(one.get(key))) for i, one in enumerate(classes)]
    caption = join(
        [tag("b", f"{words(key).capitalize()} by class"), tag("span", f" trained, {name}", class_="soft")]
    )
    bars = bar_chart(caption, rows[:MOST_BARS], name=f"{key} by class", top=top)
    if len(rows) <= MOST_BARS:
        return bars
    full = table(
        ["class", key, "rows"], [[a, c, compact(one.get("count"))] for (a, _, c), one in zip(rows, classes)]
    )
    return join([bars, details(f"All {len(rows)} classes", full)])


def curves(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """One small chart per logged term, the total loss first."""
    names = dict.fromkeys(key for row in rows for key in row if key != "t")
    order = sorted(names, key=lambda name: name not in ("loss", "total"))
    charts = [_curve(name, rows) for name in order]
    charts = [chart for chart in charts if chart]
    lead = "Every logged term by iteration. First and last value above each curve."
    return section("loss", "Training", lead, tag("div", *charts, class_="charts") if charts else None)


def _curve(
    name: str, rows: Sequence[Mapping[str, Any]], title: str | None = None, unit: str = ""
) -> Markup | None:
    pairs = [(row["t"], row[name]) for row in rows if finite(row.get("t")) and _number(row.get(name))]
    return line_chart(title or words(name), [Curve([t for t, _ in pairs], [v for _, v in pairs])], unit=unit)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def embedding(values: Mapping[str, Any]) -> Markup | None:
    """The picture of the embedding."""
    points, names = values.get("points"), values.get("class_names")
    if not isinstance(points, list) or not points:
        return None
    method = str(values.get("method") or "projection")
    shown, total = values.get("shown"), values.get("of")
    counted = (
        f"{shown:,} of {total:,} rows"
        if isinstance(shown, int) and isinstance(total, int)
        else f"{len(points):,} rows"
    )
    caption = join([tag("b", f"{method} of the trained embedding"), " ", tag("span", counted, class_="soft")])
    note = "Colour and shape tell the class. The axes have no unit; distances between far groups mean little."
    picture = scatter_chart(
        caption,
        points,
        values.get("labels"),
        names if isinstance(names, list) else None,
        name=f"{method} of the embedding",
        axis=method,
        note=note,
    )
    lead = "A picture, not a measurement: the table above decides."
    return section("embedding", "Embedding", lead, picture)


def data(values: Mapping[str, Any]) -> Markup | None:
    """Counts, classes, what the reader changed."""
    counts, changed = mapping(values.get("counts")), mapping(values.get("facts"))
    known = [("name", values.get("name")), ("kind", values.get("kind"))]
    known += [(words(key), value) for key, value in counts.items()]
    known += [(words(key), value) for key, value in changed.items() if not _long(value)]
    pairs: list[tuple[str, Any]] = [pair for pair in known if pair[1] is not None]
    if values.get("fingerprint"):
        pairs.append(("fingerprint", code(values["fingerprint"])))
    listed = values.get("classes")
    classes = [mapping(one) for one in listed if mapping(one)] if isinstance(listed, list) else []
    unit = "pixels" if values.get("kind") == "segmentation" else "rows"
    return section(
        "data",
        "Data",
        "What was read, and what was mended on the way in.",
        _classes(classes, unit),
        facts(pairs),
    )


def _long(value: Any) -> bool:
    """Whether a fact is a table of its own, which data.json holds, and not a line."""
    return isinstance(value, Mapping) or (isinstance(value, list) and len(value) > MOST_VALUES)


def _classes(classes: Sequence[Mapping[str, Any]], unit: str) -> Markup | None:
    if not classes:
        return None
    total = sum(one["count"] for one in classes if finite(one.get("count")))
    rows = []
    for index, one in enumerate(classes):
        count = one.get("count")
        share = (
            f"{count:,} · {100 * count / total:.1f} %" if isinstance(count, int) and total else compact(count)
        )
        rows.append((str(one.get("name", index)), count, share))
    shown = f"{len(classes)} classes, {compact(total)} labelled {unit}"
    title = f"{unit.capitalize()} by class"
    caption = join([tag("b", title), " ", tag("span", shown, class_="soft")])
    bars = bar_chart(caption, rows[:MOST_BARS], name=title)
    if len(rows) <= MOST_BARS:
        return bars
    full = table(["class", unit], [[label, written] for label, _, written in rows])
    return join([bars, details(f"All {len(rows)} classes (the first {MOST_BARS} are drawn)", full)])


def monitors(values: Mapping[str, Any]) -> Markup | None:
    """Label-free measures of each embedding side by side."""
    columns = [name for name in values if mapping(values[name])]
    names = dict.fromkeys(key for column in columns for key in values[column])
    if not names:
        return None
    rows = [
        [
            join([tag("b", words(name)), tag("br"), tag("span", MONITORS.get(name, ""), class_="soft")]),
            *(compact(values[column].get(name)) for column in columns),
        ]
        for name in names
    ]
    lead = "Measured without labels: signs of collapse show here first."
    return section("monitors", "Monitors", lead, table(["measure", *columns], rows, label="Monitors"))


def cost(values: Mapping[str, Any], timing: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Time, memory, waiting for data, number of parameters."""
    seconds = [row["seconds"] for row in timing if finite(row.get("seconds"))]
    waiting = [row["waiting"] for row in timing if finite(row.get("waiting"))]
    peaks = [row["peak_bytes"] for row in timing if finite(row.get("peak_bytes"))]
    stages = {name: one for name, one in mapping(values.get("stage_seconds")).items() if finite(one)}
    known = [(f"training time, stage {name}", duration(one)) for name, one in stages.items()]
    if finite(values.get("training_seconds")):
        last = values["training_seconds"]
        known.append((f"training time{', last stage' if stages else ''}", duration(last)))
        known += [("training time, all stages", duration(last + sum(stages.values())))] if stages else []
    if seconds:
        known.append(("per iteration, median", duration(statistics.median(seconds))))
        known.append(("per iteration, longest", duration(max(seconds))))
    if seconds and waiting and sum(seconds) > 0:
        known.append(("share of time waiting for data", f"{100 * sum(waiting) / sum(seconds):.1f} %"))
    if peaks:
        known.append(("peak memory", size(max(peaks))))
    if values.get("parameters") is not None:
        known.append(("parameters", values["parameters"]))
    chart = _curve("seconds", timing, "seconds per iteration", "s") if len(seconds) > 1 else None
    lead = "Times as measured in this run, on this machine."
    return section(
        "cost", "Cost", lead, facts(known, "facts figures"), chart and tag("div", chart, class_="charts")
    )


def configuration(written: str) -> Markup | None:
    """The complete configuration, folded."""
    if not written.strip():
        return None
    lines = written.rstrip("\n").count("\n") + 1
    block = details(
        f"config.yaml, {plural(lines, 'line')}", tag("pre", tag("code", written.rstrip("\n")), tabindex="0")
    )
    return section(
        "configuration", "Configuration", "Complete; it can be given to leanlabel fit as it stands.", block
    )


def environment(values: Mapping[str, Any]) -> Markup | None:
    """Versions and hardware."""
    known: list[tuple[str, Any]] = []
    for key, value in values.items():
        if key == "packages":
            continue
        known.append((words(key), "none" if key == "gpus" and not value else _plain(value)))
    packages = mapping(values.get("packages"))
    known += [
        (name, "not installed" if version is None else str(version)) for name, version in packages.items()
    ]
    return section("environment", "Environment", "What the exact numbers depend on.", facts(known))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {compact(one)}" for key, one in value.items()) or MISSING
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else compact(value)


def files(run: RunFolder) -> Markup | None:
    """What lies in the run folder. Hidden files and the page itself are left out."""
    rows = []
    entries = sorted(run.path.iterdir(), key=lambda path: path.name) if run.path.is_dir() else []
    for path in entries:
        if path.name.startswith(".") or path == run.report or path.is_symlink():
            continue
        inside = _files_in(path) if path.is_dir() else [path]
        name = f"{path.name}/" if path.is_dir() else path.name
        counted = plural(len(inside), "file") if path.is_dir() else ""
        rows.append([code(name), FILES.get(path.name, ""), counted, size(sum(_size(one) for one in inside))])
    if not rows:
        return None
    listed = table(
        ["name", "what it holds", "", "size"], rows, words=(0, 1, 2), label="Files of the run folder"
    )
    return section("files", "Files", "What lies beside this page in the run folder.", listed)


def _files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed meanwhile: an old checkpoint of a run that goes on
        return 0
