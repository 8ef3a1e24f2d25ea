"""Rules for graphs: from measured facts to settings of GCA, each with its reason.

"Published" means the parameter files of GCA's authors for WikiCS, Amazon-Computers, Amazon-Photo, Coauthor-CS and
Coauthor-Physics, and those of GRACE for Cora and PubMed; the packaged recipes hold them. Where a rule draws a line
between such values, the line is a judgement and not a result.
"""

from __future__ import annotations

from leanlabel.advice.graph_cost import FANOUTS, estimate
from leanlabel.advice.graph_facts import GraphFacts
from leanlabel.advice.recipe import Choice

FEW_REVERSES, MOST_REVERSES = 0.05, 0.95
SPARSE_GRAPH, DENSE_GRAPH = 4, 30
DENSE_FEATURES = 0.5
SMALL, MEDIUM, LARGE = 1_000, 10_000, 20_000
ANCHORS = 4096
WHOLE_GRAPH = 8.0
"""GiB up to which the whole graph is encoded in every iteration."""
MISSED = 0.05
"""Largest chance that the smallest class has no training node."""
ALIKE = 0.3
"""Mean cosine of feature rows from which on a warning is given."""


def reading(mutual: float) -> Choice:
    """Directions, from the share of edges with their reverse.

    Every edge: the pair is one undirected edge. Hardly any: each pair is listed once (a list of random pairs meets
    some twice, hence not zero alone). Nearly every: gaps in an undirected list. Between: the directions say something.
    """
    if mutual == 1:
        return Choice(
            "data.undirected", None, "every edge has its reverse: such a pair is read as one undirected edge"
        )
    share = f"{100 * mutual:.3g} % of the edges have their reverse"
    if mutual < FEW_REVERSES:
        reason = f"{share}: each pair seems to be listed once; if directions mean something, set false"
        return Choice("data.undirected", True, reason)
    if mutual >= MOST_REVERSES:
        return Choice("data.undirected", True, f"{share}: the missing ones are added; set false to keep gaps")
    return Choice("data.undirected", False, f"{share}: directions are kept; true makes every edge undirected")


def feature_source(by_degree: bool) -> Choice:
    """Features of the file, or the degree where it has none."""
    if by_degree:
        return Choice(
            "data.features",
            "degree",
            "the data has no features: one 0/1 column per power of two of the degree",
        )
    return Choice("data.features", "file", "the data brings features")


def normalisation(facts: GraphFacts) -> Choice:
    """Row sums for bags of words [published for all data sets]; nothing where a sum means nothing.

    A row of signed values may sum to about zero, and a single column divided by its sum is 1 for every node.
    """
    if facts.lowest < 0:
        return Choice(
            "data.normalise", "none", f"values from {facts.lowest:.3g}: sums of signed rows mean little"
        )
    if facts.features == 1:
        return Choice(
            "data.normalise", "none", "one feature: divided by its row's sum it would be 1 everywhere"
        )
    if facts.unit_rows:
        return Choice("data.normalise", "none", "rows sum to 1, or have length 1, already")
    return Choice(
        "data.normalise", "row_sum", "no negative values: rows are divided by their sum, as published"
    )


def scheme(facts: GraphFacts) -> Choice:
    """Degree, the cheapest centrality: reruns find the three alike; uniform where degree says nothing.

    Eigenvector centrality is never chosen: it knows one component at a time. See "What others found" in
    docs/methods/gca.md.
    """
    key, (low, high) = "augment.scheme", facts.degrees
    kind = "degree" if facts.undirected else "in-degree"
    if facts.edges == 0:
        return Choice(key, "uniform", "no edges: nodes have no centrality")
    if low == high:
        return Choice(key, "uniform", f"every node has {kind} {low}: centrality says nothing here")
    reason = (
        f"{kind} from {low} to {high}; reruns by others find the centralities alike, this one is the cheapest"
    )
    if not facts.undirected:
        reason += "; pagerank is the variant to try on directed edges"
    if facts.components > 1:
        reason += f"; eigenvector is no choice for {facts.components} components"
    return Choice(key, "degree", reason)


def edge_score(undirected: bool) -> Choice:
    """Centrality of an edge [WWW 2021, section 3.2]."""
    if undirected:
        return Choice("augment.edge_score", "mean", "undirected edges: mean of both ends, as in the paper")
    return Choice("augment.edge_score", "sink", "directed edges: centrality of the sink, as in the paper")


def feature_rule(facts: GraphFacts) -> Choice:
    """Importance of a feature: its non-zeros, or its magnitudes [WWW 2021, section 3.3; published: dense on WikiCS]."""
    key, share = "augment.feature_rule", f"{100 * facts.density:.3g} % of the values are not zero"
    if facts.lowest < 0:
        return Choice(key, "dense", "negative values: magnitudes are summed")
    if facts.density > DENSE_FEATURES:
        return Choice(key, "dense", f"{share} (more than half): magnitudes are summed")
    return Choice(key, "sparse", f"{share} (at most half): non-zeros are counted")


def edge_rates(mean_degree: float) -> Choice:
    """Drop more where nodes keep enough neighbours.

    Mean of the two published rates: 0.25 on Coauthor-CS and -Physics (mean degree 9 and 14), 0.25, 0.45 and 0.4 on
    WikiCS, Computers and Photo (31 to 37), 0.3 on Cora (3.9); 0.3 and 0.4 are the authors' fallback.
    """
    key, degree = "augment.edge_rates", f"mean degree {mean_degree:.3g}"
    if mean_degree < SPARSE_GRAPH:
        return Choice(key, [0.2, 0.3], f"{degree}, below {SPARSE_GRAPH}: few edges to lose, so lower rates")
    if mean_degree > DENSE_GRAPH:
        return Choice(key, [0.4, 0.5], f"{degree}, above {DENSE_GRAPH}: enough edges remain, so higher rates")
    return Choice(key, [0.3, 0.4], f"{degree}, between {SPARSE_GRAPH} and {DENSE_GRAPH}: published fallback")


def feature_rates(facts: GraphFacts) -> Choice:
    """Mask more of many sparse features than of few or dense ones.

    Published: 0.1 and 0.1 on WikiCS (300 dense), 0.2 and 0.3 on Computers (767, a third filled), 0.3 and 0.4 on
    Coauthor-CS (6,805, below 1 %) and Cora (1,433, 1 %); 0.1 and 0.0 are the authors' fallback.
    """
    key, count = "augment.feature_rates", facts.features
    if count < 16:
        return Choice(
            key, [0.1, 0.0], f"{count:,} features: one masked is much, so the lowest published rates"
        )
    if count < 100 or facts.density > DENSE_FEATURES:
        what = "fewer than 100" if count < 100 else "dense"
        return Choice(key, [0.1, 0.1], f"{count:,} features, {what}: each says much, so low rates")
    if count >= 1000 and facts.density < 0.1:
        return Choice(key, [0.3, 0.4], f"{count:,} sparse features: many stand for each other, so high rates")
    return Choice(
        key, [0.2, 0.3], f"{count:,} features, neither few and dense nor many and sparse: middle rates"
    )


def width(nodes: int) -> Choice:
    """Width by size [published: 256, and 128 on the largest; 64 on the generated graph of 600 nodes]."""
    if nodes < SMALL:
        return Choice("model.width", 64, f"{nodes:,} nodes, below {SMALL:,}: a narrow encoder")
    if nodes > LARGE:
        return Choice(
            "model.width", 128, f"{nodes:,} nodes, above {LARGE:,}: as published for Coauthor-Physics"
        )
    return Choice("model.width", 256, f"{nodes:,} nodes: published default")


def learning_rate(nodes: int) -> Choice:
    """0.001; five times that on small graphs, where it was measured to train well in 80 iterations.

    Higher rates kill units or leave the loss where it began: proofs/gca/dead_units.jsonl.
    """
    if nodes < SMALL:
        return Choice("optim.lr", 0.005, f"below {SMALL:,} nodes: the rate of gca/generated")
    return Choice(
        "optim.lr", 0.001, "best of 0.1, 0.01, 0.001 in a short trial on Amazon-Photo; published 5e-4 to 0.1"
    )


def steps(nodes: int) -> Choice:
    """Length by size [published: 200 for Cora (GRACE), 1,000 to 3,000 for larger graphs; gca/generated: 80].

    Small graphs learn at five times the rate (:func:`learning_rate`), and longer is not better there: on the
    generated graph with these settings 200 iterations end 1.3 points behind 80 (three seeds, both above untrained).
    """
    if nodes < SMALL:
        return Choice(
            "steps", 100, f"below {SMALL:,} nodes: about as long as gca/generated, at the same rate"
        )
    if nodes < MEDIUM:
        return Choice("steps", 500, f"{nodes:,} nodes: a start; published lengths are 200 (Cora) to 3,000")
    return Choice(
        "steps", 1000, f"{nodes:,} nodes: the shortest published length for large graphs (1,000 to 3,000)"
    )


def batch(facts: GraphFacts, width: int) -> list[Choice]:
    """All pairs of nodes up to 20,000 of them; beyond that, anchors in turns, which is another estimator.

    The contrast costs N² d. 4,096 anchors cost less than a second at any N; the graph itself is encoded whole while
    that fits the memory of a usual machine.
    """
    if facts.nodes <= LARGE:
        return [
            Choice(
                "batch.nodes",
                None,
                f"{facts.nodes:,} nodes, at most {LARGE:,}: all in one iteration, as published",
            )
        ]
    chosen = Choice(
        "batch.nodes",
        ANCHORS,
        f"{facts.nodes:,} nodes, above {LARGE:,}: anchors in turns, another estimator of the loss; on a GPU try null",
    )
    memory = estimate(facts, width, width, ANCHORS).memory
    if memory <= WHOLE_GRAPH:
        reason = f"the graph is encoded whole in about {memory:.2g} GiB (at most {WHOLE_GRAPH:g})"
        return [chosen, Choice("batch.sampler", "anchors", reason)]
    reason = f"encoding the whole graph would take {memory:.2g} GiB, more than {WHOLE_GRAPH:g}"
    return [
        chosen,
        Choice("batch.sampler", "neighbours", reason),
        Choice("batch.fanouts", list(FANOUTS), "neighbours per node, one number for each of the two layers"),
    ]


def bf16_products(nodes: int) -> Choice:
    """Off, so that a recipe gives the same numbers on every processor."""
    reason = "the same numbers everywhere"
    if nodes > 5000:
        reason += (
            "; true halves the contrast's time where `leanlabel doctor` says bf16 products are supported"
        )
    return Choice("engine.bf16_products", False, reason)


def evaluation(facts: GraphFacts) -> list[Choice]:
    """Protocol, split and shares; nothing to read out without two classes and a node for every part."""
    if len(facts.classes) < 2 or facts.labelled < 5:
        counts = f"{facts.labelled} labelled nodes in {len(facts.classes)} classes"
        return [Choice("evaluation.protocol", "none", f"{counts}: nothing to measure a readout on")]
    chosen = [
        Choice(
            "evaluation.protocol", "logistic-l2", "regularised readout; the paper's own probe is gca-probe"
        )
    ]
    if facts.split == "sound":
        return [*chosen, Choice("evaluation.split", "public", "the data brings train, val and test")]
    why = {
        "none": "the data brings no split",
        "incomplete": "the data's own split lacks train, val or test",
        "unsound": "the data's own split has errors, see `leanlabel data check`",
    }
    chosen.append(Choice("evaluation.split", "random", why[facts.split]))
    return [*chosen, split_count(facts.labelled), shares(min(facts.classes))]


def split_count(labelled: int) -> Choice:
    """Four random splits; one where its 40,000 test nodes alone put the standard error below 0.25 points."""
    if labelled > 50_000:
        return Choice(
            "evaluation.splits", 1, f"{labelled:,} labelled nodes, above 50,000: one test part is enough"
        )
    return Choice("evaluation.splits", 4, "the report shows their mean and spread")


def shares(smallest: int) -> Choice:
    """Published 10/10/80, with more training nodes where it would miss the smallest class.

    With c nodes in that class and a training share s, it has no training node with chance (1 - s)^c; the smallest
    share of 0.1, 0.2, 0.4 that keeps this at or below 5 % is taken.
    """
    options = ([0.1, 0.1, 0.8], [0.2, 0.2, 0.6], [0.4, 0.2, 0.4])
    found = next((one for one in options if (1 - one[0]) ** smallest <= MISSED), options[-1])
    missed = (1 - found[0]) ** smallest
    reason = f"train, val, test; the smallest class has {smallest} nodes"
    if found is options[0]:
        reason += ": published shares"
    elif missed <= MISSED:
        reason += f", which a share of {options[0][0]:g} misses with chance {100 * 0.9**smallest:.0f} %"
    else:
        reason += f": even so, training misses it with chance {100 * missed:.0f} %"
    return Choice("evaluation.shares", found, reason)


def cautions(facts: GraphFacts) -> list[str]:
    """What no setting mends.

    Likeness: with a mean cosine of 0.34 (Amazon-Photo) 100 iterations fell 17 points behind the untrained encoder;
    with 0.06 (Cora) training gained 16 points. See docs/methods/gca.md, "Evidence".
    """
    found = []
    if facts.likeness >= ALIKE:
        found.append(
            f"feature rows are alike (mean cosine {facts.likeness:.2f}): on such data a short training fell behind "
            "the untrained encoder; compare with it before you trust the result"
        )
    if facts.split in ("unsound", "incomplete"):
        found.append("the data's own split is not used: it has errors or lacks train, val or test")
    return found
