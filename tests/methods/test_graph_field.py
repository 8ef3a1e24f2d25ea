"""The methods that GCA is held against, and training on a part of the nodes: steps, resume, ranks, bad input."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from leanlabel import api, rng
from leanlabel.banks.teacher import rising_momentum
from leanlabel.config import EngineSettings
from leanlabel.data.graphs import Graph, normalise
from leanlabel.engine import checkpoint
from leanlabel.engine.fit import Plan, fit, make_fabric
from leanlabel.engine.runfolder import RunFolder, read_lines
from leanlabel.errors import InputError
from leanlabel.evaluation.readouts import planned_splits
from leanlabel.methods import find
from leanlabel.methods.graph import GraphMethod
from leanlabel.sparse import Csr
from smallrun import as_rank, train

TINY = [
    "data.nodes=60",
    "data.draws=200",
    "data.noise_words=40",
    "model.width=8",
    "model.projection=8",
    "steps=6",
    "engine.loggers=[]",
    "engine.checkpoint_every=3",
    "engine.accelerator=cpu",
    "evaluation.splits=2",
]
ANCHORS = ["batch.nodes=20", "batch.sampler=anchors"]
NEIGHBOURS = ["batch.nodes=20", "batch.sampler=neighbours", "batch.fanouts=[3,2]"]
ARMS: dict[str, tuple[str, list[str]]] = {
    "bgrl": ("bgrl/generated", []),
    "cca-ssg": ("cca-ssg/generated", []),
    "dgi": ("dgi/generated", []),
    "supervised-graph": ("supervised-graph/generated", ["method.every=2"]),
    "gca anchors": ("gca/generated", ANCHORS),
    "gca neighbours": ("gca/generated", NEIGHBOURS),
    "bgrl neighbours": ("bgrl/generated", NEIGHBOURS),
    "cca-ssg anchors": ("cca-ssg/generated", ANCHORS),
}


def config(arm: str, *more: str) -> Any:
    recipe, changes = ARMS[arm]
    return api.resolve(recipe, [*TINY, *changes, *more])


def built(cfg: Any) -> tuple[Graph, GraphMethod]:
    graph = find(cfg.method.name).read(cfg)
    method = api.build(cfg, graph)
    assert isinstance(method, GraphMethod)
    return graph, method


def first_loss(folder: Path) -> float:
    return read_lines(folder / "metrics.jsonl")[0]["loss"]


def dense_inputs(cfg: Any, graph: Graph, method: GraphMethod) -> tuple[torch.Tensor, torch.Tensor]:
    x = normalise(graph.x, cfg.data.normalise)
    x = (x.to_dense() if isinstance(x, Csr) else x).double()
    return x, method.adjacency(graph).to_dense().double()


def encode(encoder: Any, x: torch.Tensor, adjacency: torch.Tensor, training: bool) -> torch.Tensor:
    """The encoder written out on dense matrices."""
    for k, layer in enumerate(encoder.layers):
        x = adjacency @ (x @ layer.weight) + layer.bias
        if len(encoder.norms):
            norm = encoder.norms[k]
            if training:
                x = (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
        x = encoder.activation(x)
    return x


@pytest.mark.parametrize("arm", ["bgrl", "cca-ssg"])
def test_reference_two_views(tmp_path: Path, arm: str) -> None:
    """The first iteration's loss from dense matrices, the equations of the papers and the same draws."""
    cfg = config(arm, "engine.precision=64-true", "steps=1", "engine.checkpoint_every=1")
    graph, method = built(cfg)
    method.double()
    x, _ = dense_inputs(cfg, graph, method)
    next(method.batches(0))
    augmentor: Any = method.augmentor  # type: ignore[attr-defined]
    z = []
    for k in (0, 1):
        view = augmentor.view(k, rng.draw(cfg.seed, f"view {k}", 0))
        z.append(
            encode(method.encoder, x * view.feature_mask.double(), view.adjacency.to_dense().double(), True)
        )
    if arm == "bgrl":  # online and target start equal
        q = [method.predictor(rows) for rows in z]  # type: ignore[operator]
        cosine = torch.nn.functional.cosine_similarity
        expected = 2 - cosine(q[0], z[1]).mean() - cosine(q[1], z[0]).mean()
    else:
        s = [(v - v.mean(0)) / v.std(0, unbiased=False) / len(v) ** 0.5 for v in z]
        eye = torch.eye(8, dtype=torch.float64)
        expected = 8 - (s[0].T @ s[1]).trace() + 1e-3 * sum(((v.T @ v - eye) ** 2).sum() for v in s)
    train(tmp_path, cfg)
    assert first_loss(tmp_path) == pytest.approx(expected.item(), rel=1e-6)


def test_reference_dgi(tmp_path: Path) -> None:
    cfg = config("dgi", "engine.precision=64-true", "steps=1", "engine.checkpoint_every=1")
    graph, method = built(cfg)
    method.double()
    x, adjacency = dense_inputs(cfg, graph, method)
    order = rng.draw(cfg.seed, "corrupt", 0).permutation(graph.num_nodes)
    true, false = (encode(method.encoder, rows, adjacency, True) for rows in (x, x[order]))
    summary = 1 / (1 + (-true.mean(0)).exp())
    weight = method.discriminator.weight  # type: ignore[union-attr]
    right, wrong = (torch.sigmoid(rows @ weight @ summary) for rows in (true, false))
    expected = -(right.log().sum() + (1 - wrong).log().sum()) / (2 * graph.num_nodes)
    train(tmp_path, cfg)
    assert first_loss(tmp_path) == pytest.approx(expected.item(), rel=1e-6)


def test_reference_supervised(tmp_path: Path) -> None:
    """Mean over the splits of cross-entropy on their training nodes, each with its own network."""
    cfg = config("supervised-graph", "engine.precision=64-true", "steps=1", "method.dropout=0.0")
    graph, method = built(cfg)
    method.double()
    x, adjacency = dense_inputs(cfg, graph, method)
    losses = []
    members = method.networks.members  # type: ignore[union-attr]
    for network, split in zip(members, planned_splits(graph, cfg.evaluation, cfg.seed), strict=True):
        logits = network.head(encode(network.encoder, x, adjacency, True))
        assert graph.y is not None
        losses.append(torch.nn.functional.cross_entropy(logits[split.train], graph.y[split.train]))
    train(tmp_path, cfg)
    assert first_loss(tmp_path) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6)


def test_supervised_never_trains_on_test_nodes(tmp_path: Path) -> None:
    """Other labels of the test nodes change no weight."""
    cfg = config("supervised-graph")
    graph, method = built(cfg)
    assert graph.y is not None
    held = torch.ones(graph.num_nodes, dtype=torch.bool)
    for split in planned_splits(graph, cfg.evaluation, cfg.seed):
        held[split.train] = False
        held[split.val] = False
    graph.y[held] = (graph.y[held] + 1) % graph.num_classes
    assert bool(held.any())
    fit(
        method,
        RunFolder(tmp_path / "a"),
        Plan(6, 0, cfg.optim, cfg.engine, quiet=True),
        make_fabric(cfg.engine),
    )
    honest = train(tmp_path / "b", cfg)
    one, two = checkpoint.state_of(method), checkpoint.state_of(honest)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_supervised_keeps_its_best(tmp_path: Path) -> None:
    """The kept networks are those of the best look at validation, not the last ones."""
    cfg = config("supervised-graph", "steps=30", "optim.lr=0.05")
    method: Any = train(tmp_path, cfg)
    logits = method.logits(method.graph)
    for k, split in enumerate(method.splits):
        score = (logits[k].argmax(1)[split.val] == method.graph.y[split.val]).float().mean()
        assert float(score) == pytest.approx(float(method.best[k]))


def test_supervised_last_look(tmp_path: Path) -> None:
    """The look after the last iteration is made outside training, validation scores it and leaves no trace."""
    cfg = config("supervised-graph", "steps=3", "method.every=5", "optim.lr=0.05")
    method: Any = train(tmp_path, cfg)
    assert method.best.tolist() == [-1, -1]
    before = checkpoint.state_of(method)
    score = method.eval().validate(3)
    after = checkpoint.state_of(method)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    method.finish()
    assert score > 0
    assert score == pytest.approx(float(method.best.mean()))
    kept = method.state_dict()
    name = "members.0.head.weight"
    assert torch.equal(kept[f"kept.network.{name}"], kept[f"networks.{name}"])
    assert not torch.equal(kept[f"kept.network.{name}"], before[f"kept.network.{name}"])


@pytest.mark.slow
def test_supervised_clustering_is_warned_about(tmp_path: Path) -> None:
    """Without splits the labels that trained the embeddings are scored with them; only these runs say so."""
    for arm, warned in (("supervised-graph", True), ("dgi", False)):
        cfg = config(arm, "steps=1")
        method = train(tmp_path / arm, cfg)
        untrained = api.build(cfg, method.graph)
        found = method.evaluate(method.graph, untrained, "clustering")["warnings"]
        assert any("labels of some of them trained these embeddings" in text for text in found) is warned
        for protocol in ("logistic-l2", "none"):
            texts = method.evaluate(method.graph, untrained, protocol)["warnings"]
            assert not any("trained these embeddings" in text for text in texts)


def test_teacher_follows(tmp_path: Path) -> None:
    """After one step the target encoder has moved by 1 - momentum of the way."""
    cfg = config("bgrl", "steps=2", "method.momentum=0.9")
    _, start = built(cfg)
    before = copy.deepcopy(start.encoder.state_dict())
    method: Any = train(tmp_path, cfg, steps=1)
    momentum = rising_momentum(0, 2, 0.9)
    name = "layers.0.weight"
    after, teacher = method.encoder.state_dict()[name], method.teacher.network.state_dict()[name]
    assert not torch.equal(after, before[name])
    torch.testing.assert_close(teacher, momentum * before[name] + (1 - momentum) * after)


@pytest.mark.parametrize("arm", ARMS)
def test_state(tmp_path: Path, arm: str) -> None:
    """Killed at iteration 5, saved at 3, resumed: the weights, banks and metrics of an uninterrupted run."""
    cfg = config(arm)
    whole = train(tmp_path / "whole", cfg)
    train(tmp_path / "parts", cfg, steps=5)
    resumed = train(tmp_path / "parts", cfg)
    first, second = checkpoint.state_of(whole), checkpoint.state_of(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()


def ranked(folder: str, arm: str) -> dict[str, torch.Tensor]:
    as_rank(29997)
    engine = EngineSettings(accelerator="cpu", devices=2, precision="64-true", loggers=(), threads=1)
    cfg = config(arm, "method.dropout=0.0") if arm == "supervised-graph" else config(arm)
    return checkpoint.state_of(train(Path(folder), cfg.model_copy(update={"engine": engine})))


@pytest.mark.parametrize("arm", ["bgrl", "cca-ssg anchors", "dgi", "supervised-graph", "gca neighbours"])
def test_ranks(pool: Any, tmp_path: Path, arm: str) -> None:
    """Two ranks equal one, in weights and banks."""
    extra = ["method.dropout=0.0"] if arm == "supervised-graph" else []
    alone = train(tmp_path / "one", config(arm, "engine.precision=64-true", *extra))
    results = pool.run(ranked, str(tmp_path / "two"), arm, timeout=180.0)
    for name, value in checkpoint.state_of(alone).items():
        for result in results:
            torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["bgrl", "cca-ssg", "dgi", "supervised-graph"])
def test_learns(tmp_path: Path, arm: str) -> None:
    """Better than the untrained encoder on the planted graph."""
    recipe, _ = ARMS[arm]
    cfg = api.resolve(recipe, ["engine.loggers=[]", "evaluation.splits=2"])
    graph, method = built(cfg)
    untrained = api.build(cfg, graph)
    plan = Plan(cfg.steps, cfg.seed, cfg.optim, cfg.engine, quiet=True)
    fit(method, RunFolder(tmp_path), plan, make_fabric(cfg.engine))
    found = method.evaluate(graph, untrained)["protocol"]["readouts"]
    assert found["trained"]["mean"] >= found["untrained"]["mean"] + 0.02


def test_mini_batch_with_everything_equals_the_whole_graph(tmp_path: Path) -> None:
    """All nodes as anchors, or all neighbours of all nodes, give the whole graph's loss (nodes in another order)."""
    still = [
        "augment.edge_rates=[0.0,0.0]",
        "augment.feature_rates=[0.0,0.0]",
        "engine.precision=64-true",
        "steps=1",
    ]
    losses = []
    for position, sampler in enumerate(("", "anchors", "neighbours")):
        more = [f"batch.sampler={sampler}", "batch.nodes=60", "batch.fanouts=[-1,-1]"] if sampler else []
        train(tmp_path / str(position), api.resolve("gca/generated", [*TINY, *still, *more]))
        losses.append(first_loss(tmp_path / str(position)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[2] == pytest.approx(losses[0], rel=1e-9)


def test_notes_say_that_it_is_another_estimator(tmp_path: Path) -> None:
    method = train(tmp_path, config("gca anchors"))
    assert any("another estimator" in note for note in method.notes())


def test_label_free_scores(tmp_path: Path) -> None:
    """Every method has them; agreement with the teacher only where there is one, entropy where there are classes."""
    for arm, own in (("bgrl", "teacher_agreement"), ("supervised-graph", "entropy"), ("dgi", None)):
        method = train(tmp_path / arm, config(arm))
        found = method.label_free(method.graph)
        assert {"effective_rank", "neighbourhood_density"} <= found.keys()
        assert own is None or own in found


def test_selection_without_labels(tmp_path: Path) -> None:
    """The kept weights are those with the best score among the looks, not the last ones."""
    cfg = config(
        "gca anchors", "steps=12", "evaluation.select=effective_rank", "evaluation.every=2", "optim.lr=0.1"
    )
    _, method = built(cfg)
    seen = []
    validate = method.validate

    def watched(t: int) -> float:
        seen.append((validate(t), t))
        return seen[-1][0]

    method.validate = watched  # type: ignore[method-assign]
    plan = Plan(cfg.steps, cfg.seed, cfg.optim, cfg.engine, validate_every=2, quiet=True)
    fit(method, RunFolder(tmp_path), plan, make_fabric(cfg.engine))
    best = checkpoint.load(tmp_path / "checkpoints/best.ckpt").best
    assert best is not None
    assert len(seen) == 6
    assert best["score"] == max(score for score, _ in seen)


@pytest.mark.parametrize(
    ("arm", "change", "told"),
    [
        ("gca anchors", "batch.nodes=61", "batch.nodes is 61, .* has 60 nodes"),
        ("gca neighbours", "batch.fanouts=[3]", "one entry per layer"),
        ("gca neighbours", "batch.nodes=1", "batch.nodes"),
        ("bgrl", "method.momentum=1.5", "method.momentum"),
        ("dgi", "batch.nodes=10", "unknown key"),
        ("dgi", "evaluation.select=entropy", "dgi has no such score"),
        ("supervised-graph", "evaluation.protocol=none", "needs labels"),
        (
            "supervised-graph",
            "evaluation.protocol=clustering",
            "protocol=clustering: .* needs a protocol with splits.*Use gca-probe, logistic-l2, knn;",
        ),
    ],
)
def test_errors(arm: str, change: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        built(config(arm, change))
