"""Advice for one attributed graph: read it, measure it, apply the rules, in the order of the recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from leanlabel.advice import graph_rules as rules
from leanlabel.advice.graph_cost import duration, estimate, sampled_share
from leanlabel.advice.graph_facts import GraphFacts, SplitState, measure, mutual_share
from leanlabel.advice.place import written_place
from leanlabel.advice.recipe import Advice, Choice, has_key
from leanlabel.config import RunConfig
from leanlabel.data.graph_check import Finding, check_graph
from leanlabel.data.graph_files import read_graph
from leanlabel.data.graph_folder import missing_features
from leanlabel.data.graphs import Graph, tidy_edges
from leanlabel.errors import InputError
from leanlabel.methods import find as find_method

_SETTLED = {"one_way", "negative", "regular"}
"""Warnings of the data check that the recipe answers."""


def advise(places: list[str]) -> Advice:
    """Choose the settings of a GCA recipe for a graph.

    Args:
        places: one path of an .npz file or a folder, also below LEANLABEL_DATA.

    Raises:
        InputError: no such place, not a graph, a name that no recipe can hold, or what else the reader says.
    """
    (place,) = places
    path, written = written_place(place)
    graph, mutual, by_degree = _read(path)
    findings = check_graph(graph)
    facts = measure(graph, mutual=mutual, by_degree=by_degree, split=_split_state(graph, findings))
    warnings = [
        f"{one.severity}: {one.message}"
        for one in findings
        if one.severity != "info" and one.code not in _SETTLED
    ]
    return Advice(
        task="graph",
        facts=(f"Looked at {written}: {_counts(facts)}.",),
        choices=tuple(_choices(graph.name, written, facts, find_method("gca").Config)),
        warnings=(*warnings, *(f"warning: {text}" for text in rules.cautions(facts))),
    )


def _choices(name: str, path: str, facts: GraphFacts, schema: type[RunConfig]) -> list[Choice]:
    """All choices in the order of the file; keys of ``batch`` only where the schema has them."""
    width, steps = rules.width(facts.nodes), rules.steps(facts.nodes)
    batch = rules.batch(facts, width.value) if has_key(schema, "batch.nodes") else []
    return [
        Choice("about", f"GCA on {name}", "title of the reports"),
        Choice("task", "graph", "kind of job"),
        Choice("fidelity", "corrected", "the known faults of the authors' code are mended"),
        _cost(facts, width.value, steps.value, batch),
        Choice("seed", 0, "of every random number; `compare` counts up from it"),
        steps,
        Choice("method.name", "gca", "contrast of two views; with augment.scheme uniform it is GRACE"),
        Choice("method.tau", 0.4, "published default; 0.2 to 0.5 by data set"),
        Choice("method.chunk", None, "the kernel streams: its memory does not grow with pairs; null chooses"),
        width,
        Choice(
            "model.projection",
            width.value,
            "as wide as the embedding, as in three of five published settings",
        ),
        Choice(
            "model.activation",
            "prelu",
            "cannot die; relu lost 18 % (lr 0.001) to 83 % (0.1) of its units on Amazon-Photo",
        ),
        Choice("data.kind", "file", "a file or folder"),
        Choice("data.path", path, "relative paths are also looked for below LEANLABEL_DATA"),
        rules.reading(facts.mutual),
        rules.feature_source(facts.by_degree),
        rules.normalisation(facts),
        rules.scheme(facts),
        rules.edge_score(facts.undirected),
        rules.edge_rates(facts.mean_degree),
        rules.feature_rates(facts),
        Choice("augment.cutoff", 0.7, "published, for every data set"),
        rules.feature_rule(facts),
        *batch,
        Choice("optim.name", "adam", "published"),
        rules.learning_rate(facts.nodes),
        Choice("optim.weight_decay", 1e-5, "published, for every data set"),
        *rules.evaluation(facts),
        Choice("engine.accelerator", "auto", "a GPU where there is one"),
        rules.bf16_products(facts.nodes),
    ]


def _cost(facts: GraphFacts, width: int, steps: int, batch: list[Choice]) -> Choice:
    chosen = {choice.key: choice.value for choice in batch}
    anchors: int | None = chosen.get("batch.nodes")
    neighbours = anchors is not None and chosen.get("batch.sampler") == "neighbours"
    share = sampled_share(facts.nodes, anchors) if anchors is not None and neighbours else 1.0
    cost = estimate(facts, width, width, anchors, share)
    text = (
        f"estimate: about {duration(cost.seconds * steps)} on 2 cores ({duration(cost.seconds)} an iteration), "
        f"{cost.memory:.2g} GiB"
    )
    return Choice(
        "cost",
        text,
        f"of training, not measured: 16 B² d operations for the contrast of B = {anchors or facts.nodes:,} nodes at "
        f"width d = {width}, more for the encoder, 60 billion a second; may be off by a factor of two",
    )


def _read(path: Path) -> tuple[Graph, float, bool]:
    """The graph in the reading that the rules choose, the share of mutual edges as listed, whether it has no features.

    Whether features are missing, the reader knows for every layout: the suggestion of its error is asked for.
    """
    features = "file"
    try:
        graph = read_graph(path)
    except InputError as error:
        if error.suggestion != missing_features(path, "").suggestion:
            raise
        features = "degree"
        graph = read_graph(path, features="degree")
    mutual = mutual_share(graph.edge_index, graph.num_nodes)
    undirected = rules.reading(mutual).value
    if not undirected:
        return graph, mutual, features == "degree"
    if features == "degree":  # which the added edges change
        return read_graph(path, undirected=True, features="degree"), mutual, True
    edges, _, counts = tidy_edges(graph.edge_index, graph.num_nodes, undirected=True)
    added = {"reverses_added": counts["reverses_added"]}
    graph = replace(graph, edge_index=edges, undirected=True, facts={**graph.facts, **added})
    return graph, mutual, False


def _split_state(graph: Graph, findings: list[Finding]) -> SplitState:
    if not graph.splits:
        return "none"
    if any(len(graph.splits.get(part, ())) == 0 for part in ("train", "val", "test")):
        return "incomplete"
    wrong = any(one.severity == "error" and one.code.startswith("split_") for one in findings)
    return "unsound" if wrong else "sound"


def _counts(facts: GraphFacts) -> str:
    edges = f"{facts.edges // 2:,} undirected" if facts.undirected else f"{facts.edges:,} directed"
    classes = f"{facts.labelled:,} labels in {len(facts.classes)} classes" if facts.classes else "no labels"
    features = f"{facts.features:,} {'degree bands' if facts.by_degree else 'features'}"
    return (
        f"{facts.nodes:,} nodes, {edges} edges (mean degree {facts.mean_degree:.3g}), {features} "
        f"({100 * facts.density:.3g} % non-zero, {facts.lowest:.3g} to {facts.highest:.3g}), {classes}"
    )
