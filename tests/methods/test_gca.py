"""GCA as a whole: its step, its stage, resume, ranks, what users can get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leanlabel import api, rng
from leanlabel.augment.graph import AdaptiveAugmentor
from leanlabel.config import EngineSettings
from leanlabel.data.graphs import normalise
from leanlabel.engine import checkpoint
from leanlabel.engine.fit import Plan, fit, make_fabric
from leanlabel.engine.runfolder import RunFolder, read_lines
from leanlabel.errors import InputError
from leanlabel.methods.gca import GCA, GCAConfig
from leanlabel.sparse import Csr, from_edges
from smallrun import as_rank, train

TINY = [
    "data.nodes=60",
    "data.draws=200",
    "data.noise_words=40",
    "model.width=8",
    "model.projection=8",
    "steps=6",
]


def config(*more: str) -> GCAConfig:
    found = api.resolve("gca/generated", [*TINY, "engine.loggers=[]", "engine.checkpoint_every=3", *more])
    assert isinstance(found, GCAConfig)
    return found


@pytest.mark.parametrize("scheme", ["degree", "pagerank", "eigenvector", "uniform"])
def test_reference(tmp_path: Path, scheme: str) -> None:
    """One iteration equals the objective written out: same views, dense products, a loop over nodes."""
    cfg = config(
        "engine.precision=64-true", "steps=1", "engine.checkpoint_every=1", f"augment.scheme={scheme}"
    )
    graph = GCA.read(cfg)
    method = api.build(cfg, graph).double()
    assert isinstance(method, GCA)
    x = normalise(graph.x, cfg.data.normalise)
    dense = (x.to_dense() if isinstance(x, Csr) else x).double()
    augmentor = AdaptiveAugmentor(
        from_edges(graph.edge_index, graph.num_nodes),
        graph.x,
        scheme=cfg.augment.scheme,
        edge_rates=cfg.augment.edge_rates,
        feature_rates=cfg.augment.feature_rates,
    )
    rows = []
    weights = [layer.weight for layer in method.encoder.layers]
    for k in (0, 1):
        view = augmentor.view(k, rng.draw(cfg.seed, f"view {k}", 0))
        adjacency = view.adjacency.to_dense().double()
        h = dense * view.feature_mask.double()
        for layer, weight in zip(method.encoder.layers, weights, strict=True):
            h = method.encoder.activation(adjacency @ (h @ weight) + layer.bias)
        p = method.projector(h)
        rows.append(p / p.norm(dim=1, keepdim=True))
    total = torch.zeros((), dtype=torch.float64)
    for a, b in ((rows[0], rows[1]), (rows[1], rows[0])):
        inter, intra = (a @ b.T / cfg.method.tau).exp(), (a @ a.T / cfg.method.tau).exp()
        for i in range(graph.num_nodes):
            others = intra[i].sum() - intra[i, i]
            total = total - (inter[i, i] / (inter[i].sum() + others)).log()
    expected = float(total.detach()) / (2 * graph.num_nodes)
    train(tmp_path, cfg)
    assert read_lines(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_learns_and_beats_the_untrained_encoder(tmp_path: Path) -> None:
    """Gate of the learning test: +3 points over untrained, +10 over raw, on the planted graph of the spec."""
    cfg = api.resolve("gca/generated", ["engine.loggers=[]", "evaluation.splits=2", "data.nodes=600"])
    graph = GCA.read(cfg)
    method, untrained = api.build(cfg, graph), api.build(cfg, graph)
    fit(method, RunFolder(tmp_path), Plan(80, 0, cfg.optim, cfg.engine, quiet=True), make_fabric(cfg.engine))
    found = method.evaluate(graph, untrained)["protocol"]["readouts"]
    trained, start, raw = (found[name]["mean"] for name in ("trained", "untrained", "raw"))
    assert trained - start >= 0.03
    assert trained - raw >= 0.10


@pytest.mark.parametrize("scheme", ["degree", "uniform"])
def test_state(tmp_path: Path, scheme: str) -> None:
    """3 steps, save, load into fresh objects, 3 more equal 6, bit for bit, metrics file included."""
    cfg = config(f"augment.scheme={scheme}")
    whole = train(tmp_path / "whole", cfg)
    train(tmp_path / "parts", cfg, steps=5)
    resumed = train(tmp_path / "parts", cfg)
    first, second = checkpoint.state_of(whole), checkpoint.state_of(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()


def ranked(folder: str) -> dict[str, torch.Tensor]:
    as_rank(29998)
    engine = EngineSettings(accelerator="cpu", devices=2, precision="64-true", loggers=(), threads=1)
    return checkpoint.state_of(train(Path(folder), config().model_copy(update={"engine": engine})))


def test_ranks(pool: Any, tmp_path: Path) -> None:
    """Full-graph training on two ranks, each contrasting its half of the nodes, equals one rank."""
    alone = train(tmp_path / "one", config("engine.precision=64-true", "engine.accelerator=cpu"))
    results = pool.run(ranked, str(tmp_path / "two"), timeout=180.0)
    for name, value in checkpoint.state_of(alone).items():
        for result in results:
            torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-9, msg=name)
    one, two = (read_lines(tmp_path / part / "metrics.jsonl") for part in ("one", "two"))
    for left, right in zip(one, two, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-6)


def test_stage_is_shared_and_equals_no_stage(tmp_path: Path) -> None:
    overrides = [*TINY, "engine.loggers=[]", "augment.scheme=pagerank"]
    said: list[str] = []
    first = api.fit("gca/generated", run=tmp_path / "a", overrides=overrides, quiet=True, tell=said.append)
    second = api.fit("gca/generated", run=tmp_path / "b", overrides=overrides, quiet=True, tell=said.append)
    assert [line.split()[-1] for line in said if line.startswith("stage")] == ["computed", "run"]
    assert first.metrics == second.metrics
    assert train(tmp_path / "c", config("augment.scheme=pagerank")).centralities is None
    assert read_lines(tmp_path / "c/metrics.jsonl") == first.metrics


def test_baselines_differ_as_they_say() -> None:
    cfg = config()
    assert set(GCA.baselines) == {"raw", "untrained", "grace"}
    grace = api.resolve("gca/generated", [*TINY, "augment.scheme=uniform"])
    assert grace.augment.scheme == "uniform"  # type: ignore[attr-defined]
    assert grace.augment.edge_rates == cfg.augment.edge_rates  # type: ignore[attr-defined]


@pytest.mark.parametrize("convolution", ["sgc", "sage", "gat", "graphconv", "gin"])
def test_other_convolutions_train(tmp_path: Path, convolution: str) -> None:
    train(tmp_path, config(f"model.convolution={convolution}", "steps=2"))
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert len(rows) == 2
    assert all(0 < row["loss"] < 20 for row in rows)


def test_chunked_is_the_same_objective(tmp_path: Path) -> None:
    train(tmp_path / "a", config("engine.precision=64-true"))
    train(tmp_path / "b", config("engine.precision=64-true", "method.chunk=7"))
    for left, right in zip(*(read_lines(tmp_path / p / "metrics.jsonl") for p in "ab"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-6)


def test_degenerate_views_stay_finite(tmp_path: Path) -> None:
    """All edges and all features dropped: every row is alike, the loss is log(2N - 1), training goes on."""
    cfg = config(
        "augment.scheme=uniform", "augment.edge_rates=[1.0, 1.0]", "augment.feature_rates=[1.0, 1.0]"
    )
    train(tmp_path, cfg)
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(torch.tensor(2.0 * 60 - 1).log().item(), rel=1e-5)
    assert all(row["loss"] == row["loss"] for row in rows)


def test_a_graph_without_edges_trains(tmp_path: Path) -> None:
    train(tmp_path, config("data.draws=0"))
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 6


def test_errors() -> None:
    with pytest.raises(InputError, match=r"augment\.edge_rates.*less than or equal to 1, got 1.4"):
        config("augment.edge_rates=[0.3, 1.4]")
    cfg = config()
    method = api.build(cfg, GCA.read(cfg))
    other = GCA.read(config("data.noise_words=41"))
    with pytest.raises(InputError, match="features per node"):
        method.embed(other)


def test_bf16_products_stay_close(tmp_path: Path) -> None:
    train(tmp_path / "a", config("steps=1", "engine.checkpoint_every=1"))
    train(tmp_path / "b", config("steps=1", "engine.checkpoint_every=1", "engine.bf16_products=true"))
    left, right = (read_lines(tmp_path / part / "metrics.jsonl")[0]["loss"] for part in "ab")
    assert left == pytest.approx(right, rel=1e-2)


def test_notes_reach_the_warnings(tmp_path: Path) -> None:
    """A ring: all degrees are equal, so the adaptive scheme is uniform, and the run says so."""
    ring = torch.arange(30)
    arrays = {
        "edge_index": torch.stack([ring, ring.roll(-1)]).numpy(),
        "x": torch.rand(30, 6, generator=torch.Generator().manual_seed(0)).numpy() - 0.2,
        "y": (ring % 2).numpy(),
    }
    np.savez(tmp_path / "ring.npz", **arrays)
    settings = [
        "steps=2",
        "model.width=4",
        "data.undirected=true",
        "evaluation.splits=1",
        "engine.loggers=[]",
    ]
    run = api.fit(
        "gca/generated", data=tmp_path / "ring.npz", run=tmp_path / "run", overrides=settings, quiet=True
    )
    assert any("all edge scores are equal" in text for text in run.warnings)
    assert any("negative values" in text for text in run.warnings)


def test_realised_drop_rate_is_reported(tmp_path: Path) -> None:
    train(tmp_path, config("augment.scheme=uniform", "augment.edge_rates=[0.0, 1.0]", "steps=1"))
    row = read_lines(tmp_path / "metrics.jsonl")[0]
    assert (row["edge_drop_1"], row["edge_drop_2"]) == (0.0, 1.0)


def test_errors_of_attention_heads() -> None:
    with pytest.raises(InputError, match="width divisible by 4, the number of attention heads"):
        config("model.convolution=gat", "model.width=6")


@pytest.mark.slow
def test_trained_worse_than_untrained_warns(tmp_path: Path) -> None:
    """A far too large learning rate ruins the encoder, and the run says so."""
    settings = [
        "steps=20",
        "optim.lr=1.0",
        "model.activation=relu",
        "evaluation.splits=2",
        "engine.loggers=[]",
    ]
    run = api.fit("gca/generated", run=tmp_path / "run", overrides=settings, quiet=True)
    readouts = run.results["protocols"]["logistic-l2"]["readouts"]
    assert readouts["trained"]["mean"] < readouts["untrained"]["mean"]
    assert any(text.startswith("trained worse than untrained") for text in run.warnings)


@pytest.mark.slow
def test_adaptive_is_within_two_points_of_uniform(tmp_path: Path) -> None:
    """The gate of the learning test; adaptive above uniform is not asked for, for good reason."""
    found = {}
    for scheme in ("uniform", "degree", "pagerank", "eigenvector"):
        overrides = [f"augment.scheme={scheme}", "evaluation.splits=2", "engine.loggers=[]"]
        run = api.fit("gca/generated", run=tmp_path / scheme, overrides=overrides, quiet=True)
        found[scheme] = run.results["protocols"]["logistic-l2"]["readouts"]["trained"]["mean"]
    assert all(abs(value - found["uniform"]) <= 0.02 for value in found.values()), found
