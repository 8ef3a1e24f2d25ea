"""The classifier that a run hands out: its fit, its probabilities, what it says about itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from leanlabel.config import EvaluationSettings
from leanlabel.data.generated.graphs import planted_graph
from leanlabel.data.graphs import Graph
from leanlabel.data.splits import LabelledRows
from leanlabel.evaluation.classifier import (
    PROTOCOL,
    Classifier,
    deployed_classifier,
    fit_classifier,
    from_parts,
    rows_of,
)
from leanlabel.evaluation.probe import PARTS, logistic_l2
from leanlabel.evaluation.protocols import readout
from leanlabel.evaluation.readouts import planned_splits

NAMES = ("a", "b", "c")


def blobs(rows: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three overlapping clouds in four dimensions."""
    numbers = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    z = numbers.normal(size=(rows, 4)) + np.eye(3, 4)[y] * 2
    return torch.from_numpy(z).float(), torch.from_numpy(y)


def test_values() -> None:
    """softmax(u W^T + b) by hand, with and without division by the norm; a row of zeros stays."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    bias = torch.tensor([0.0, 1.0], dtype=torch.float64)
    z = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    plain = Classifier(weight, bias, False, ("a", "b")).probabilities(z)
    unit = Classifier(weight, bias, True, ("a", "b")).probabilities(z)
    # logits (3, 9), (0, 1); with unit rows (0.6, 2.6), (0, 1)
    expected = [1 / (1 + np.exp(6)), 1 / (1 + np.exp(1))]
    torch.testing.assert_close(plain[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)
    expected = [1 / (1 + np.exp(2)), 1 / (1 + np.exp(1))]
    torch.testing.assert_close(unit[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)
    torch.testing.assert_close(unit.sum(1), torch.ones(2, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("strength", [0.25, 16.0])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_reference(strength: float, normalise: bool, classes: int) -> None:
    """At the solution the gradient of penalty and loss is zero, whatever found it."""
    z, y = blobs()
    rows = (y < classes).nonzero()[:, 0]
    found = fit_classifier(z, y, rows, NAMES[:classes], strength=strength, normalise=normalise)
    weight, bias = (part.double().requires_grad_() for part in (found.weight, found.bias))
    u = z[rows].double()
    u = u / u.norm(dim=1, keepdim=True) if normalise else u
    loss = torch.nn.functional.cross_entropy(u @ weight.mT + bias, y[rows], reduction="sum")
    # With two classes the solver has one weight vector, w = W_1 - W_0, and the penalty ||w||^2 / 2.
    apart = weight if classes == 3 else weight[1] - weight[0]
    total = apart.square().sum() / 2 + strength * loss
    gradient = torch.autograd.grad(total, [weight, bias])
    scale = strength * len(rows)
    # Two classes: the penalty pulls at the difference of the rows only, so the gradients of both are opposite.
    assert all(float(g.abs().max()) / scale < 2e-5 for g in gradient)


def test_reference_of_the_protocol() -> None:
    """Fitted on a training part with the protocol's strength it predicts what the protocol scored."""
    z, y = blobs(90)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    split = dict(zip(PARTS, (order[:30], order[30:60], order[60:]), strict=True))
    score = logistic_l2(z, y, split)
    found = fit_classifier(z, y, split["train"], NAMES, strength=score.strength)
    guess = found.probabilities(z[split["test"]]).argmax(1)
    assert float((guess == y[split["test"]]).double().mean()) == pytest.approx(score.accuracy)


def test_dtypes() -> None:
    """In the wider type of embeddings and weights; half precision is not widened beyond the weights."""
    z, y = blobs()
    found = fit_classifier(z, y, torch.arange(60), NAMES)
    assert found.weight.dtype == torch.float32
    for dtype, wide in ((torch.float64, torch.float64), (torch.float16, torch.float32)):
        p = found.probabilities(z.to(dtype))
        assert p.dtype == wide
        torch.testing.assert_close(p.float(), found.probabilities(z), rtol=0, atol=2e-3)


def test_degenerate() -> None:
    """A class without rows has probability 0; with one class every row gets it; no rows, no probabilities."""
    z, y = blobs()
    two = fit_classifier(z, y, (y != 1).nonzero()[:, 0], NAMES)
    assert two.about["classes_without_rows"] == ["b"]
    p = two.probabilities(z)
    assert torch.isfinite(p).all()
    assert (p[:, 1] == 0).all()
    one = fit_classifier(z, y, (y == 2).nonzero()[:, 0], NAMES)
    assert (one.probabilities(z)[:, 2] == 1).all()
    assert one.probabilities(z[:0]).shape == (0, 3)
    same = fit_classifier(torch.zeros(6, 4), y[:6], torch.arange(6), NAMES)
    torch.testing.assert_close(same.probabilities(torch.zeros(1, 4)), torch.full((1, 3), 1 / 3))


def test_errors() -> None:
    z, y = blobs()
    with pytest.raises(ValueError, match=r"weight must be \(C, d\) and bias \(C,\), got \(2, 4\) and \(3,\)"):
        Classifier(torch.zeros(2, 4), torch.zeros(3), True, NAMES)
    with pytest.raises(ValueError, match="3 class names for 2 classes"):
        Classifier(torch.zeros(2, 4), torch.zeros(2), True, NAMES)
    rule = Classifier(torch.zeros(3, 4), torch.zeros(3), True, NAMES)
    with pytest.raises(ValueError, match=r"embeddings must be \(N, 4\), got \(60, 3\)"):
        rule.probabilities(z[:, :3])
    with pytest.raises(ValueError, match="rows"):
        fit_classifier(z, y, torch.arange(0), NAMES)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\), got 0 to 2"):
        fit_classifier(z, y, torch.arange(6), NAMES[:2])
    with pytest.raises(ValueError, match="strength must be positive"):
        fit_classifier(z, y, torch.arange(6), NAMES, strength=0)
    bad = z.clone()
    bad[3, 0] = torch.nan
    with pytest.raises(ValueError, match="not all finite"):
        fit_classifier(bad, y, torch.arange(6), NAMES)
    assert fit_classifier(bad, y, torch.arange(3), NAMES).about["rows"] == 3  # other rows play no part


def test_state() -> None:
    """Taken apart and put together again: the same bits."""
    z, y = blobs()
    found = fit_classifier(z, y, torch.arange(30), NAMES)
    again = from_parts(found.tensors(), found.described())
    assert torch.equal(found.probabilities(z), again.probabilities(z))
    assert (again.classes, again.normalise, dict(again.about)) == (NAMES, True, dict(found.about))
    assert torch.equal(again.seen, torch.arange(30))
    twice = fit_classifier(z, y, torch.arange(30), NAMES)
    assert torch.equal(found.weight, twice.weight)
    assert torch.equal(found.bias, twice.bias)


def settings(**changes: object) -> EvaluationSettings:
    return EvaluationSettings.model_validate({"splits": 3, "shares": (0.3, 0.3, 0.4), **changes})


def test_values_of_a_run_with_random_splits() -> None:
    """All labelled rows; the strength is the lower median of the splits'; accuracy as measured there."""
    z, y = blobs(90)
    y = y.clone()
    y[:5] = -100
    data, chosen = LabelledRows("data", y), settings()
    splits = [{part: getattr(one, part) for part in PARTS} for one in planned_splits(data, chosen, 0)]
    measured = {"readouts": {"trained": readout(PROTOCOL, z, y, splits).as_dict()}}
    found = deployed_classifier(data, z, chosen, 0, measured)
    assert found is not None
    assert found.seen.tolist() == list(range(5, 90))
    strengths = sorted(row["strength"] for row in measured["readouts"]["trained"]["details"])
    assert found.about["strength"] == strengths[1]
    expected = found.about["expected"]
    assert expected["accuracy"] == measured["readouts"]["trained"]["mean"]
    assert (expected["protocol"], expected["splits"], expected["training_rows"]) == (PROTOCOL, 3, 25)
    assert found.classes == ("0", "1", "2")
    alone = deployed_classifier(data, z, chosen, 0)
    assert alone is not None
    assert torch.equal(alone.weight, found.weight)
    assert alone.about["expected"]["accuracy"] == pytest.approx(expected["accuracy"])


def test_values_of_a_run_with_a_published_split() -> None:
    """Its validation and test rows stay unseen."""
    z, y = blobs()
    parts = {"train": torch.arange(20), "val": torch.arange(20, 40), "test": torch.arange(40, 60)}
    data = LabelledRows("data", y, parts, list(NAMES))
    found = deployed_classifier(data, z, settings(split="auto"), 0)
    assert found is not None
    assert found.seen.tolist() == list(range(20))
    assert found.about["part"] == "training part of the published split"
    assert found.about["expected"]["splits"] == 1
    assert found.about["expected"]["std"] is None


def test_degenerate_nothing_to_fit_on() -> None:
    z, y = blobs()
    assert deployed_classifier(LabelledRows("data", None), z, settings(), 0) is None
    assert deployed_classifier(LabelledRows("data", y), z, settings(protocol="none"), 0) is None
    assert deployed_classifier(LabelledRows("data", y), z, settings(protocol="gca-probe"), 0) is not None
    assert planned_splits(LabelledRows("data", y), settings(), 0)[0].seed == 0


def test_values_of_seen() -> None:
    """Rows are known by their content: labels may go, but not a feature or an edge."""
    graph = planted_graph(nodes=30, classes=3, draws=60, noise_words=20)
    rule = Classifier(
        torch.zeros(3, 2), torch.zeros(3), True, NAMES, torch.tensor([1, 4]), {"rows_of": rows_of(graph)}
    )
    assert rule.saw(graph, 30).nonzero()[:, 0].tolist() == [1, 4]
    bare = Graph(graph.x, graph.edge_index, None, 30, "other name", graph.undirected)
    assert int(rule.saw(bare, 30).sum()) == 2
    fewer = Graph(graph.x, graph.edge_index[:, 2:], graph.y, 30, graph.name, False)
    assert not rule.saw(fewer, 30).any()
    assert not Classifier(torch.zeros(3, 2), torch.zeros(3), True, NAMES).saw(graph, 30).any()
    x = torch.rand(4, 2)
    assert rows_of((x, torch.zeros(4))) == rows_of(x.clone())
    assert rows_of("text") is None
