"""Clusters against classes: counts by hand, scikit-learn's metrics, planted groups, the protocol and the verb."""

from __future__ import annotations

import doctest
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from leanlabel.config import EvaluationSettings
from leanlabel.data.splits import LabelledRows
from leanlabel.errors import InputError
from leanlabel.evaluation import clustering
from leanlabel.evaluation.clustering import (
    adjusted_rand_index,
    kmeans_scores,
    normalised_mutual_information,
)
from leanlabel.evaluation.confusion import confusion_matrix
from leanlabel.evaluation.protocols import compare_readouts, predicted, readout
from leanlabel.evaluation.readouts import evaluate_readouts, planned_splits
from leanlabel.sparse import from_dense
from smallrun import RECIPE, cli, options


def planted(groups: int = 3, each: int = 20, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Rows around as many orthogonal directions, of any length."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(groups * each) % groups
    rows = torch.eye(groups, 5)[y] + noise * torch.randn(len(y), 5, generator=generator)
    return rows * (0.1 + 10 * torch.rand(len(y), 1, generator=generator)), y


def test_values_by_hand() -> None:
    # Classes of 3 and 3 rows, clusters of 2 and 4: counts [[2, 1], [0, 3]].
    table = torch.tensor([[2, 1], [0, 3]])
    mutual = 2 / 6 * math.log(2 / 6 / (1 / 2 * 1 / 3)) + 1 / 6 * math.log(1 / 6 / (1 / 2 * 2 / 3))
    mutual += 3 / 6 * math.log(3 / 6 / (1 / 2 * 2 / 3))
    entropies = math.log(2) + (math.log(3) - 2 / 3 * math.log(2))
    assert normalised_mutual_information(table) == pytest.approx(2 * mutual / entropies, rel=1e-12)
    # Pairs together: 1 + 0 + 0 + 3 = 4; A = 3 + 3 = 6, B = 1 + 6 = 7, of 15: E = 42/15 = 2.8.
    assert adjusted_rand_index(table) == pytest.approx((4 - 2.8) / (6.5 - 2.8), rel=1e-12)


def test_values_planted() -> None:
    """k-means finds groups that are there, whatever the lengths of the rows; names of clusters play no part."""
    z, y = planted()
    for rows in (z, from_dense(z)):
        found = kmeans_scores(rows, y)
        assert [(one.nmi, one.ari) for one in found] == [(1.0, 1.0)] * 5
        assert {(one.clusters, one.found, one.scored_rows) for one in found} == {(3, 3, 60)}
        assert len({one.seed for one in found}) == 5
    assert kmeans_scores(z, y, normalise=False, repeats=1)[0].nmi < 0.9  # lengths would decide


def test_values_confused() -> None:
    """Labels that do not follow the groups: the score is that of the known counts."""
    z, groups = planted(groups=2, each=10)
    y = groups.clone()
    y[:4] = 1 - y[:4]  # two rows of either group get the other class: counts [[8, 2], [2, 8]]
    (found,) = kmeans_scores(z, y, repeats=1)
    table = torch.tensor([[8, 2], [2, 8]])
    assert found.nmi == pytest.approx(normalised_mutual_information(table), rel=1e-12)
    assert found.ari == pytest.approx(adjusted_rand_index(table), rel=1e-12)
    # H(U) = H(V) = log 2, I = log 2 - H(0.2) = 0.19274475702.
    assert found.nmi == pytest.approx(0.19274475702175753 / math.log(2), rel=1e-10)
    # Pairs 28 + 1 + 1 + 28 = 58, A = B = 90, C(20, 2) = 190.
    assert found.ari == pytest.approx((58 - 8100 / 190) / (90 - 8100 / 190), rel=1e-12)


def test_values_partly_labelled() -> None:
    """Rows without a label are clustered, and not scored."""
    z, y = planted()
    y[torch.arange(40)] = -100
    for one in kmeans_scores(z, y, repeats=2):
        assert (one.nmi, one.ari, one.scored_rows) == (1.0, 1.0, 20)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=25),
    st.permutations(range(4)),
)
@settings(max_examples=40)
def test_reference_scikit_learn(pairs: list[tuple[int, int]], names: list[int]) -> None:
    first, second = torch.tensor(pairs).T
    table = confusion_matrix(first, second, 4)
    nmi, ari = normalised_mutual_information(table), adjusted_rand_index(table)
    assert nmi == pytest.approx(normalized_mutual_info_score(first, second), rel=1e-9, abs=1e-12)
    assert ari == pytest.approx(adjusted_rand_score(first, second), rel=1e-9, abs=1e-12)
    renamed = table[torch.tensor(names)]
    assert normalised_mutual_information(renamed) == pytest.approx(nmi, rel=1e-9, abs=1e-12)
    assert adjusted_rand_index(renamed.T) == pytest.approx(ari, rel=1e-12, abs=1e-15)


def test_values_many_rows() -> None:
    """Pairs of pairs do not overflow."""
    table = 10**9 * torch.tensor([[3, 1], [1, 3]])
    assert adjusted_rand_index(table) == pytest.approx(0.25, rel=1e-6)


def test_values_seeds() -> None:
    """The same seed gives the same clusters, another one others; five are the first five of seven."""
    z = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    y = torch.arange(60) % 4
    first = kmeans_scores(z, y, seed=3, n_init=1)
    assert kmeans_scores(z, y, seed=3, n_init=1) == first
    assert kmeans_scores(z, y, seed=3, n_init=1, repeats=7)[:5] == first
    assert [one.seed for one in kmeans_scores(z, y, seed=4, n_init=1)] != [one.seed for one in first]
    assert len({one.nmi for one in first}) > 1


def test_values_protocol() -> None:
    z, y = planted(noise=0.6)
    alone = kmeans_scores(z, y, seed=2)
    found = readout("clustering", z, y, [], seed=2)
    assert (found.metric, found.unit, found.n_splits, found.macro_f1) == ("nmi", "k-means seed", 5, None)
    assert found.per_split == [one.nmi for one in alone]
    assert found.mean == pytest.approx(np.mean(found.per_split), rel=1e-12)
    assert found.others == {"ari": pytest.approx(np.mean([one.ari for one in alone]), rel=1e-12)}
    assert [row["ari"] for row in found.details] == [one.ari for one in alone]
    assert found.settings == {"normalise": True, "n_init": 10, "repeats": 5}
    assert found.splits["name"] == "all labelled rows"
    assert found.splits["shares"] == {"scored": 1.0}
    assert "none" in found.selection
    written = found.as_dict()
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    part = y.clone()
    part[:30] = -1
    other = readout("clustering", z, part, [], repeats=1, n_init=1).splits
    assert other["shares"] == {"scored": 0.5}
    assert other["sha256"] != found.splits["sha256"]


def test_values_comparison() -> None:
    z, y = planted()
    noise = torch.randn(60, 5, generator=torch.Generator().manual_seed(3))
    found = compare_readouts({"raw": from_dense(z), "trained": noise}, y, [], protocol="clustering")
    assert found.results["raw"].mean == 1.0
    assert len(found.warnings) == 1
    assert "trained worse than raw: nmi" in found.warnings[0]
    assert "over 5 k-means seeds" in found.warnings[0]
    # One clustering has no spread, so nothing is said.
    assert (
        compare_readouts({"raw": z, "trained": noise}, y, [], protocol="clustering", repeats=1).warnings == []
    )


def labelled(**changes: object) -> LabelledRows:
    _, y = planted()
    return LabelledRows("planted", **({"y": y} | changes))  # type: ignore[arg-type]


def test_values_readouts(tmp_path: Path) -> None:
    """What the report and the command line read; splits that were recorded are left alone."""
    z, y = planted()
    cfg = EvaluationSettings(splits=2)
    splits = tmp_path / "splits.npz"
    readouts = {"raw": from_dense(z), "untrained": z, "trained": z}
    evaluate_readouts(labelled(), readouts, cfg, 0, splits_file=splits)
    before = splits.read_bytes()
    found = evaluate_readouts(labelled(), readouts, cfg, 0, "clustering", splits)["protocol"]
    assert splits.read_bytes() == before
    assert (found["protocol"], found["metric"], found["unit"]) == ("clustering", "nmi", "k-means seed")
    assert found["split"]["count"] == 1
    assert found["per_class"] == []
    for one in found["readouts"].values():
        assert one["mean"] == 1.0
        assert one["others"] == {"ari": 1.0}
        assert len(one["per_split"]) == len(one["details"]) == 5
    json.dumps(found, allow_nan=False)
    # Predictions of a classifier are made for splits; clusters are those of the embeddings.
    with_head = evaluate_readouts(
        labelled(), readouts, cfg, 0, "clustering", predictions={"trained": [torch.eye(3)[y]] * 2}
    )
    assert with_head["protocol"]["readouts"]["trained"] == found["readouts"]["trained"]


def test_degenerate() -> None:
    """Rows that coincide, rows of zeros, a class with one row."""
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    for z in (torch.zeros(6, 3), torch.full((6, 3), 2.0)):
        (one,) = kmeans_scores(z, y, repeats=1)
        assert (one.found, one.nmi, one.ari) == (1, 0.0, 0.0)
    (single,) = kmeans_scores(torch.eye(3), torch.tensor([0, 1, 5]), repeats=1)
    assert (single.clusters, single.nmi, single.ari) == (3, 1.0, 1.0)
    assert normalised_mutual_information(torch.tensor([[4]])) == adjusted_rand_index(torch.tensor([[4]])) == 1
    assert (
        normalised_mutual_information(torch.tensor([[2, 2]]))
        == adjusted_rand_index(torch.tensor([[2, 2]]))
        == 0
    )


def test_degenerate_plans() -> None:
    """Clustering needs no splits, so none are drawn, except where they choose the weights."""
    few = labelled(splits={"train": torch.arange(3), "test": torch.arange(3, 9)})  # no validation part
    with pytest.raises(InputError, match="no val rows"):
        planned_splits(few, EvaluationSettings(), 0)
    assert planned_splits(few, EvaluationSettings(protocol="clustering"), 0) == []
    choosing = EvaluationSettings(protocol="clustering", select="best_val", splits=3)
    assert len(planned_splits(labelled(), choosing, 0)) == 3
    with pytest.raises(InputError, match="the labels hold 1 class"):
        planned_splits(
            labelled(y=torch.zeros(9, dtype=torch.long)), EvaluationSettings(protocol="clustering"), 0
        )
    nothing = evaluate_readouts(
        labelled(y=None), {"untrained": planted()[0]}, EvaluationSettings(protocol="clustering"), 0
    )
    assert nothing["protocol"] is None
    assert "no labels" in nothing["warnings"][0]


def test_errors() -> None:
    z, y = planted()
    with pytest.raises(ValueError, match="repeats and n_init must be positive, got 0 and 10"):
        kmeans_scores(z, y, repeats=0)
    with pytest.raises(ValueError, match="1 values that are not finite"):
        kmeans_scores(torch.tensor([[1.0], [float("inf")]]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"z must be \(N, d\) and y \(N,\), got \(60, 5\) and \(59,\)"):
        kmeans_scores(z, y[1:])
    with pytest.raises(ValueError, match="no label among 60 rows"):
        kmeans_scores(z, y - 3)
    for function in (normalised_mutual_information, adjusted_rand_index):
        for wrong in (torch.ones(2), torch.ones(2, 2), -torch.eye(2).long(), torch.zeros(2, 2).long()):
            with pytest.raises(ValueError, match="counts"):
                function(wrong)
    with pytest.raises(
        InputError, match=r"clustering has no setting 'k'\. It has normalise, n_init, repeats\."
    ):
        readout("clustering", z, y, [], k=3)
    with pytest.raises(ValueError, match="at least one split"):
        readout("logistic-l2", z, y, [])
    with pytest.raises(ValueError, match="1 sets of predictions for 0 splits"):
        predicted("clustering", [z], y, [], "none")


def test_values_command(tmp_path: Path) -> None:
    """From the command line: another protocol beside the recipe's own, in table, results and report."""
    run = tmp_path / "run"
    assert cli("fit", RECIPE, "--run", run, *options()).code == 0
    answer = cli("evaluate", run, "--protocol", "clustering")
    assert answer.code == 0, answer.err
    assert "clustering · split all labelled rows · selection: none" in answer.out
    assert "k-means seeds" in answer.out
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert set(results["protocols"]) == {"logistic-l2", "clustering"}
    assert set(results["protocols"]["clustering"]["readouts"]) == {"raw", "untrained", "trained"}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "nmi" in page
    assert "all labelled rows" in page
    assert "Did you mean clustering?" in cli("evaluate", run, "--protocol", "clusterin").err


def test_examples() -> None:
    assert doctest.testmod(clustering).failed == 0
